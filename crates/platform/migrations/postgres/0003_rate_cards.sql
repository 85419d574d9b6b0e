-- Rate cards: versions of plans and prices, each with the time in which it holds. A new price is a new row, and an end to the old one.

CREATE TABLE plan (
    id                  TEXT NOT NULL,
    valid_from          BIGINT NOT NULL,
    valid_until         BIGINT,
    name                TEXT NOT NULL,
    monthly_price       BIGINT NOT NULL,
    meter               TEXT NOT NULL CHECK (meter IN ('operations', 'tokens')),
    -- Without a number: any.
    included_operations BIGINT,
    requests_per_minute BIGINT,
    tokens_per_minute   BIGINT,
    n_concurrent_max    BIGINT,
    n_api_keys_max      BIGINT,
    n_members_max       BIGINT,
    priority            TEXT NOT NULL CHECK (priority IN ('standard', 'priority')),
    PRIMARY KEY (id, valid_from)
);

CREATE TABLE token_price (
    class              TEXT NOT NULL,
    valid_from         BIGINT NOT NULL,
    valid_until        BIGINT,
    -- For a million tokens of each kind. Rounding: the three are added exactly, and rounded once, half a micro up.
    input_per_million  BIGINT NOT NULL CHECK (input_per_million >= 0),
    cached_per_million BIGINT NOT NULL CHECK (cached_per_million >= 0),
    output_per_million BIGINT NOT NULL CHECK (output_per_million >= 0),
    PRIMARY KEY (class, valid_from)
);

-- Which class a model is priced as; '*' is every model that is not named.
CREATE TABLE model_class (
    model TEXT PRIMARY KEY,
    class TEXT NOT NULL
);

INSERT INTO plan VALUES
    ('free',            0, NULL, 'Free',            0,          'operations', 10000,    20,   NULL, 2,    1,    1,    'standard'),
    ('developer',       0, NULL, 'Developer',       99000000,   'operations', 1000000,  300,  NULL, 16,   10,   1,    'standard'),
    ('team',            0, NULL, 'Team',            499000000,  'operations', 10000000, NULL, NULL, NULL, NULL, 10,   'priority'),
    ('enterprise',      0, NULL, 'Enterprise',      2999000000, 'operations', NULL,     NULL, NULL, NULL, NULL, NULL, 'priority'),
    ('enterprise-plus', 0, NULL, 'Enterprise Plus', 9999000000, 'operations', NULL,     NULL, NULL, NULL, NULL, NULL, 'priority'),
    ('payg',            0, NULL, 'Pay as you go',   0,          'tokens',     NULL,     NULL, NULL, NULL, NULL, NULL, 'standard');

INSERT INTO token_price VALUES
    ('small',  0, NULL, 1000000,  100000,  1000000),
    ('medium', 0, NULL, 3000000,  300000,  3000000),
    ('large',  0, NULL, 10000000, 1000000, 10000000);

INSERT INTO model_class VALUES ('*', 'small');
