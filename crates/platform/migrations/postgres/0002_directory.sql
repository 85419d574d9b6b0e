-- Accounts, projects, keys, and the feed by which other processes learn of changes.

-- One row, locked by every change, so that revisions are committed in their order.
CREATE TABLE directory_revision (
    id       BIGINT PRIMARY KEY CHECK (id = 1),
    revision BIGINT NOT NULL
);
INSERT INTO directory_revision (id, revision) VALUES (1, 0);

-- What changed, to be read again by whoever keeps a copy.
CREATE TABLE directory_change (
    revision BIGINT PRIMARY KEY,
    kind     TEXT NOT NULL,
    id       TEXT NOT NULL
);

CREATE TABLE account (
    id           TEXT PRIMARY KEY,
    name         TEXT NOT NULL,
    status       TEXT NOT NULL CHECK (status IN ('active', 'suspended')),
    overage      TEXT NOT NULL CHECK (overage IN ('refuse', 'charge')),
    spending_cap BIGINT NOT NULL CHECK (spending_cap >= 0),
    created_at   BIGINT NOT NULL
);

-- Which plan an account had when.
CREATE TABLE account_plan (
    account_id  TEXT NOT NULL REFERENCES account (id),
    plan_id     TEXT NOT NULL,
    valid_from  BIGINT NOT NULL,
    valid_until BIGINT,
    PRIMARY KEY (account_id, valid_from)
);

CREATE TABLE project (
    id                  TEXT PRIMARY KEY,
    account_id          TEXT NOT NULL REFERENCES account (id),
    name                TEXT NOT NULL,
    spending_cap        BIGINT,
    requests_per_minute BIGINT,
    tokens_per_minute   BIGINT,
    n_concurrent_max    BIGINT,
    created_at          BIGINT NOT NULL
);
CREATE INDEX project_by_account ON project (account_id);

CREATE TABLE api_key (
    id                  TEXT PRIMARY KEY,
    account_id          TEXT NOT NULL REFERENCES account (id),
    project_id          TEXT NOT NULL REFERENCES project (id),
    name                TEXT NOT NULL,
    -- The beginning of the key, for people to tell keys apart.
    prefix              TEXT NOT NULL,
    -- Keyed BLAKE3. The key itself is nowhere.
    hash                BYTEA NOT NULL UNIQUE,
    -- JSON lists; without one, any.
    models              TEXT,
    routes              TEXT,
    spending_cap        BIGINT,
    requests_per_minute BIGINT,
    tokens_per_minute   BIGINT,
    n_concurrent_max    BIGINT,
    created_at          BIGINT NOT NULL,
    expires_at          BIGINT,
    revoked_at          BIGINT,
    -- The key that this one replaced.
    replaces            TEXT
);
CREATE INDEX api_key_by_account ON api_key (account_id);
