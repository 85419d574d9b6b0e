-- Passkeys: keys that a device or a password manager holds, and of which only the public half is here.

CREATE TABLE passkey (
    id            TEXT PRIMARY KEY,
    person_id     TEXT NOT NULL REFERENCES person (id),
    -- As the device calls it.
    credential_id BYTEA NOT NULL UNIQUE,
    -- As COSE (RFC 9052) writes it.
    public_key    BYTEA NOT NULL,
    -- How often the device says that it has signed; 0 where it does not count.
    sign_count    BIGINT NOT NULL,
    name          TEXT NOT NULL,
    created_at    BIGINT NOT NULL,
    used_at       BIGINT
);
CREATE INDEX passkey_by_person ON passkey (person_id);

-- What a device is asked to sign: gone once it is answered.
CREATE TABLE passkey_challenge (
    hash       BYTEA PRIMARY KEY,
    -- Who registers a passkey; nobody where somebody signs in.
    person_id  TEXT REFERENCES person (id),
    expires_at BIGINT NOT NULL
);
CREATE INDEX passkey_challenge_by_time ON passkey_challenge (expires_at);
