-- What an operator needs: the installation's identity, keys for administration, credit that is given from outside of the server.

-- One row: the secret that keys were hashed with, by its fingerprint.
CREATE TABLE installation (
    id                 INTEGER PRIMARY KEY CHECK (id = 1),
    secret_fingerprint TEXT NOT NULL
) STRICT;

-- What a key opens: models, or the organisation's own API.
ALTER TABLE api_key ADD COLUMN access TEXT NOT NULL DEFAULT 'inference' CHECK (access IN ('inference', 'admin'));

-- Credit that somebody gave. The ledger makes a grant of the same id of it, once, when it learns of it.
CREATE TABLE credit_order (
    id         TEXT PRIMARY KEY,
    account_id TEXT NOT NULL REFERENCES account (id),
    amount     INTEGER NOT NULL CHECK (amount > 0),
    ordered_at INTEGER NOT NULL,
    expires_at INTEGER,
    reason     TEXT NOT NULL
) STRICT;
