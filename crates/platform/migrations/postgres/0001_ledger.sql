-- The journal and what is made of it. Times are microseconds since 1970, UTC; money is millionths of the platform's currency.

-- One row: who may write, and how far the journal and the tables are.
CREATE TABLE ledger_writer (
    id            BIGINT PRIMARY KEY CHECK (id = 1),
    -- Raised by whoever takes over; an append under an older one is refused.
    epoch         BIGINT NOT NULL,
    journal_row   BIGINT NOT NULL,
    projected_row BIGINT NOT NULL,
    -- The last entry in ledger_entry.
    last_seq      BIGINT NOT NULL
);
INSERT INTO ledger_writer (id, epoch, journal_row, projected_row, last_seq) VALUES (1, 0, 0, 0, 0);

-- Records of decisions, a group commit a row. Rows go once they are in the tables below.
CREATE TABLE journal (
    row_number BIGINT PRIMARY KEY,
    epoch      BIGINT NOT NULL,
    records    BYTEA NOT NULL
);

-- Requests that have shown tokens and are not settled: what a crash would have to bill.
CREATE TABLE open_request (
    hold_epoch  BIGINT NOT NULL,
    hold_number BIGINT NOT NULL,
    request     BYTEA NOT NULL,
    n_cached    BIGINT NOT NULL,
    n_output    BIGINT NOT NULL,
    PRIMARY KEY (hold_epoch, hold_number)
);

-- What happened. Never changed.
CREATE TABLE usage_event (
    seq          BIGINT PRIMARY KEY,
    account_id   TEXT NOT NULL,
    source       TEXT NOT NULL,
    event_id     TEXT NOT NULL,
    payload_hash BYTEA NOT NULL,
    project_id   TEXT NOT NULL,
    api_key_id   TEXT,
    request_id   TEXT NOT NULL,
    model        TEXT NOT NULL,
    purpose      TEXT NOT NULL,
    outcome      TEXT NOT NULL,
    occurred_at  BIGINT NOT NULL,
    n_input      BIGINT NOT NULL,
    n_cached     BIGINT NOT NULL,
    n_output     BIGINT NOT NULL,
    n_operations BIGINT NOT NULL,
    -- The same event is booked once, whoever says it how often.
    UNIQUE (account_id, source, event_id)
);
CREATE INDEX usage_event_by_request ON usage_event (request_id);

-- What it cost, by the price of its time. Never changed. due = charge - what credit_draw says.
CREATE TABLE ledger_entry (
    seq        BIGINT PRIMARY KEY,
    account_id TEXT NOT NULL,
    period     BIGINT NOT NULL,
    posted_at  BIGINT NOT NULL,
    plan_id    TEXT NOT NULL,
    class      TEXT NOT NULL,
    price_from BIGINT NOT NULL,
    funding    TEXT NOT NULL,
    charge     BIGINT NOT NULL,
    due        BIGINT NOT NULL
);
CREATE INDEX ledger_entry_by_account ON ledger_entry (account_id, period);

-- Credit that was given. remaining is derived: amount - what credit_draw says.
CREATE TABLE credit_grant (
    id         TEXT PRIMARY KEY,
    account_id TEXT NOT NULL,
    amount     BIGINT NOT NULL,
    remaining  BIGINT NOT NULL,
    granted_at BIGINT NOT NULL,
    expires_at BIGINT,
    reason     TEXT NOT NULL
);
CREATE INDEX credit_grant_by_account ON credit_grant (account_id);

-- Which grant paid for which entry.
CREATE TABLE credit_draw (
    seq      BIGINT NOT NULL,
    grant_id TEXT NOT NULL,
    amount   BIGINT NOT NULL,
    PRIMARY KEY (seq, grant_id)
);
CREATE INDEX credit_draw_by_grant ON credit_draw (grant_id);

-- Derived: what was used in a month, by account, project and key. period = year * 12 + month - 1.
CREATE TABLE period_use (
    scope_kind   TEXT NOT NULL,
    scope_id     TEXT NOT NULL,
    period       BIGINT NOT NULL,
    n_events     BIGINT NOT NULL,
    n_operations BIGINT NOT NULL,
    n_included   BIGINT NOT NULL,
    charge       BIGINT NOT NULL,
    due          BIGINT NOT NULL,
    PRIMARY KEY (scope_kind, scope_id, period)
);

-- Derived: what was used in a minute, hour or day. api_key_id is empty where there was no key.
CREATE TABLE usage_rollup (
    account_id   TEXT NOT NULL,
    grain        TEXT NOT NULL,
    bucket_start BIGINT NOT NULL,
    project_id   TEXT NOT NULL,
    api_key_id   TEXT NOT NULL,
    model        TEXT NOT NULL,
    n_events     BIGINT NOT NULL,
    n_operations BIGINT NOT NULL,
    n_input      BIGINT NOT NULL,
    n_cached     BIGINT NOT NULL,
    n_output     BIGINT NOT NULL,
    charge       BIGINT NOT NULL,
    due          BIGINT NOT NULL,
    PRIMARY KEY (account_id, grain, bucket_start, project_id, api_key_id, model)
);
