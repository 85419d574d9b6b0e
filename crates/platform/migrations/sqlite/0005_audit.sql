-- The audit log: a chain in which each record holds the hash of the one before it, and signed statements of how far it was when.

-- One row, locked by every record, so that they are numbered and chained in the order in which they are committed.
CREATE TABLE audit_head (
    id   INTEGER PRIMARY KEY CHECK (id = 1),
    seq  INTEGER NOT NULL,
    hash BLOB NOT NULL
) STRICT;
INSERT INTO audit_head (id, seq, hash) VALUES (1, 0, X'0000000000000000000000000000000000000000000000000000000000000000');

-- Who did what to whom. Never changed, never removed.
CREATE TABLE audit_record (
    seq           INTEGER PRIMARY KEY,
    at            INTEGER NOT NULL,
    actor         TEXT NOT NULL,
    action        TEXT NOT NULL,
    -- The account that it concerns; empty if none or all.
    account_id    TEXT NOT NULL,
    target        TEXT NOT NULL,
    -- JSON; empty if there was or is nothing.
    before_state  TEXT NOT NULL,
    after_state   TEXT NOT NULL,
    address       TEXT NOT NULL,
    request_id    TEXT NOT NULL,
    previous_hash BLOB NOT NULL,
    hash          BLOB NOT NULL
) STRICT;
CREATE INDEX audit_record_by_account ON audit_record (account_id, seq);

-- That the chain had this hash at this record, signed. Copies are kept elsewhere.
CREATE TABLE audit_checkpoint (
    seq        INTEGER PRIMARY KEY,
    at         INTEGER NOT NULL,
    hash       BLOB NOT NULL,
    public_key TEXT NOT NULL,
    signature  TEXT NOT NULL
) STRICT;
