-- What accounts want to hear of, and how far telling them has come. Secrets are derived from the installation's, so none stands here.

CREATE TABLE webhook_endpoint (
    id             TEXT PRIMARY KEY,
    account_id     TEXT NOT NULL REFERENCES account (id),
    url            TEXT NOT NULL,
    -- JSON list of kinds of events; empty: all.
    kinds          TEXT NOT NULL,
    -- Raised when the secret is changed; for a while after that the one before it signs, too.
    secret_version INTEGER NOT NULL,
    secret_since   INTEGER NOT NULL,
    created_at     INTEGER NOT NULL,
    removed_at     INTEGER
) STRICT;
CREATE INDEX webhook_endpoint_by_account ON webhook_endpoint (account_id);

-- Something that happened. source names what made it: the same source again makes no second one.
CREATE TABLE webhook_message (
    id         TEXT PRIMARY KEY,
    account_id TEXT NOT NULL REFERENCES account (id),
    source     TEXT NOT NULL UNIQUE,
    kind       TEXT NOT NULL,
    payload    TEXT NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;
CREATE INDEX webhook_message_by_account ON webhook_message (account_id, created_at);
CREATE INDEX webhook_message_by_age ON webhook_message (created_at);

CREATE TABLE webhook_delivery (
    message_id      TEXT NOT NULL REFERENCES webhook_message (id),
    endpoint_id     TEXT NOT NULL REFERENCES webhook_endpoint (id),
    n_attempts      INTEGER NOT NULL,
    -- Nothing once it was delivered or given up.
    next_attempt_at INTEGER,
    delivered_at    INTEGER,
    -- Of the last attempt: the status, or what went wrong.
    outcome         TEXT NOT NULL,
    PRIMARY KEY (message_id, endpoint_id)
) STRICT;
CREATE INDEX webhook_delivery_due ON webhook_delivery (next_attempt_at) WHERE next_attempt_at IS NOT NULL;
CREATE INDEX webhook_delivery_by_endpoint ON webhook_delivery (endpoint_id);
