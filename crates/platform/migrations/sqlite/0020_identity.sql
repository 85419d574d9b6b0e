-- People, how they prove who they are, and what they are in which account. Of everything that is presented to prove something
-- (sessions, links, codes) only a keyed hash is here.

CREATE TABLE person (
    id             TEXT PRIMARY KEY,
    -- In small letters.
    email          TEXT NOT NULL UNIQUE,
    name           TEXT NOT NULL,
    -- Argon2id, as PHC strings are written; peppered with the installation's secret.
    password_hash  TEXT NOT NULL,
    created_at     INTEGER NOT NULL,
    -- Since when the address is known to be theirs; before, nothing opens.
    verified_at    INTEGER,
    -- Since when they run this installation.
    operator_since INTEGER,
    -- The second factor's secret is made of this and the installation's secret.
    totp_salt      BLOB,
    totp_since     INTEGER,
    -- The last step of time whose code was taken: none is taken twice.
    totp_last_step INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE INDEX person_unconfirmed ON person (created_at) WHERE verified_at IS NULL;

-- For whoever has lost the second factor; each opens once.
CREATE TABLE recovery_code (
    hash      BLOB PRIMARY KEY,
    person_id TEXT NOT NULL REFERENCES person (id),
    used_at   INTEGER
) STRICT;
CREATE INDEX recovery_code_by_person ON recovery_code (person_id);

CREATE TABLE session (
    hash       BLOB PRIMARY KEY,
    person_id  TEXT NOT NULL REFERENCES person (id),
    -- Whether the second factor is still to come.
    stage      TEXT NOT NULL CHECK (stage IN ('second_factor', 'open')),
    created_at INTEGER NOT NULL,
    seen_at    INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    address    TEXT NOT NULL,
    agent      TEXT NOT NULL
) STRICT;
CREATE INDEX session_by_person ON session (person_id);

-- Links that were sent by e-mail; gone once they are used.
CREATE TABLE mail_link (
    hash       BLOB PRIMARY KEY,
    person_id  TEXT NOT NULL REFERENCES person (id),
    purpose    TEXT NOT NULL CHECK (purpose IN ('confirm', 'reset')),
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL
) STRICT;
CREATE INDEX mail_link_by_person ON mail_link (person_id);

CREATE TABLE member (
    account_id TEXT NOT NULL REFERENCES account (id),
    person_id  TEXT NOT NULL REFERENCES person (id),
    role       TEXT NOT NULL CHECK (role IN ('owner', 'admin', 'developer', 'billing', 'viewer')),
    created_at INTEGER NOT NULL,
    PRIMARY KEY (account_id, person_id)
) STRICT;
CREATE INDEX member_by_person ON member (person_id);

CREATE TABLE invitation (
    id         TEXT PRIMARY KEY,
    account_id TEXT NOT NULL REFERENCES account (id),
    email      TEXT NOT NULL,
    role       TEXT NOT NULL CHECK (role IN ('owner', 'admin', 'developer', 'billing', 'viewer')),
    hash       BLOB NOT NULL UNIQUE,
    invited_by TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    UNIQUE (account_id, email)
) STRICT;

-- Forms that were sent: the same form again does nothing, and leads to where the first one led.
CREATE TABLE submission (
    hash     BLOB PRIMARY KEY,
    location TEXT,
    at       INTEGER NOT NULL
) STRICT;
CREATE INDEX submission_by_time ON submission (at);
