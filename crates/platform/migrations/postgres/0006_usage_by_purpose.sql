-- Rollups tell chats, completions and embeddings apart. They are derived, so they are made anew, from the events.
DROP TABLE usage_rollup;
CREATE TABLE usage_rollup (
    account_id   TEXT NOT NULL,
    grain        TEXT NOT NULL,
    bucket_start BIGINT NOT NULL,
    project_id   TEXT NOT NULL,
    -- Empty where there was no key.
    api_key_id   TEXT NOT NULL,
    model        TEXT NOT NULL,
    purpose      TEXT NOT NULL,
    n_events     BIGINT NOT NULL,
    n_operations BIGINT NOT NULL,
    n_input      BIGINT NOT NULL,
    n_cached     BIGINT NOT NULL,
    n_output     BIGINT NOT NULL,
    charge       BIGINT NOT NULL,
    due          BIGINT NOT NULL,
    PRIMARY KEY (account_id, grain, bucket_start, project_id, api_key_id, model, purpose)
);
INSERT INTO usage_rollup
SELECT u.account_id, g.grain, u.occurred_at - ((u.occurred_at % g.micros) + g.micros) % g.micros, u.project_id,
    COALESCE(u.api_key_id, ''), u.model, u.purpose, CAST(COUNT(*) AS BIGINT), CAST(SUM(u.n_operations) AS BIGINT),
    CAST(SUM(u.n_input) AS BIGINT), CAST(SUM(u.n_cached) AS BIGINT), CAST(SUM(u.n_output) AS BIGINT),
    CAST(SUM(e.charge) AS BIGINT), CAST(SUM(e.due) AS BIGINT)
FROM usage_event u
JOIN ledger_entry e ON e.seq = u.seq
CROSS JOIN (
    SELECT 'minute' AS grain, 60000000 AS micros
    UNION ALL SELECT 'hour', 3600000000
    UNION ALL SELECT 'day', 86400000000
) g
GROUP BY u.account_id, g.grain, u.occurred_at - ((u.occurred_at % g.micros) + g.micros) % g.micros, u.project_id,
    COALESCE(u.api_key_id, ''), u.model, u.purpose;

-- A month's entries of an account, for its invoice.
CREATE INDEX usage_event_by_account ON usage_event (account_id, occurred_at);
