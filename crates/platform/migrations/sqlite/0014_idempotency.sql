-- Requests that were made under a key of their client's, and what was answered: made again, they are answered the same and do nothing.
CREATE TABLE idempotent_request (
    account_id   TEXT NOT NULL REFERENCES account (id),
    key          TEXT NOT NULL,
    -- Of method, path and body: another request under the same key is refused.
    request_hash BLOB NOT NULL,
    begun_at     INTEGER NOT NULL,
    -- Nothing while it is being done.
    status       INTEGER,
    answer       TEXT NOT NULL,
    PRIMARY KEY (account_id, key)
) STRICT;
CREATE INDEX idempotent_request_by_age ON idempotent_request (begun_at);

-- What is old of the sums by minute is deleted: buckets that begin before this are not there. Hours and days stay.
CREATE TABLE usage_rollup_horizon (
    id             INTEGER PRIMARY KEY CHECK (id = 1),
    minutes_before INTEGER NOT NULL
) STRICT;
INSERT INTO usage_rollup_horizon VALUES (1, 0);
CREATE INDEX usage_rollup_by_minute ON usage_rollup (bucket_start) WHERE grain = 'minute';
CREATE INDEX request_outcome_by_age ON request_outcome (hour_start);
