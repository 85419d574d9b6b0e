-- How requests of an account ended, by hour, as the server saw them: for the objectives that plans promise.
CREATE TABLE request_outcome (
    account_id TEXT NOT NULL,
    hour_start BIGINT NOT NULL,
    -- 'failed': ended by us. Otherwise it was served: within how many milliseconds its first token was there, or 'later'.
    outcome    TEXT NOT NULL,
    n          BIGINT NOT NULL,
    PRIMARY KEY (account_id, hour_start, outcome)
);

-- What a plan promises, and what is given back for a month in which it was not kept. Parts in a million.
CREATE TABLE service_objective (
    plan_id          TEXT NOT NULL,
    valid_from       BIGINT NOT NULL,
    valid_until      BIGINT,
    availability     BIGINT NOT NULL,
    -- This part of requests has a first token within so many milliseconds.
    latency_part     BIGINT NOT NULL,
    latency_ms_max   BIGINT NOT NULL,
    -- Of the month's fee, for each objective that was not kept.
    credit_part      BIGINT NOT NULL,
    -- Of the month's fee, if availability was below `deep_availability`.
    deep_availability BIGINT NOT NULL,
    deep_credit_part BIGINT NOT NULL,
    PRIMARY KEY (plan_id, valid_from)
);
INSERT INTO service_objective VALUES
    ('enterprise',      0, NULL, 999000, 950000, 10000, 100000, 990000, 250000),
    ('enterprise-plus', 0, NULL, 999500, 950000, 5000,  100000, 990000, 300000);
