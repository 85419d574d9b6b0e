-- Final invoices and what they are made of besides usage. Written once, in the transaction that closes an account's month; what is
-- changed later is how an invoice is paid. Rates are parts in a million.

-- Who issues invoices. Numbers are taken under this row's lock, in the transaction that writes the invoice: they have no gaps.
CREATE TABLE invoice_issuer (
    id               TEXT PRIMARY KEY,
    name             TEXT NOT NULL,
    address          TEXT NOT NULL,
    -- ISO 3166-1; empty for unknown. Only with it a customer elsewhere may owe the tax itself.
    country          TEXT NOT NULL,
    tax_id           TEXT NOT NULL,
    -- Stands before numbers of invoices, and of credit notes.
    invoice_prefix   TEXT NOT NULL,
    note_prefix      TEXT NOT NULL,
    last_invoice     BIGINT NOT NULL,
    last_credit_note BIGINT NOT NULL
);
INSERT INTO invoice_issuer VALUES ('default', '', '', '', '', 'INV-', 'CN-', 0, 0);

-- To whom and how an account is billed. Without a row: by the default issuer, by hand, in 30 days, under the account's name.
CREATE TABLE billing_profile (
    account_id TEXT PRIMARY KEY REFERENCES account (id),
    issuer_id  TEXT NOT NULL REFERENCES invoice_issuer (id),
    name       TEXT NOT NULL,
    address    TEXT NOT NULL,
    -- ISO 3166-1 and what stands behind the dash in ISO 3166-2; empty for unknown.
    country    TEXT NOT NULL,
    region     TEXT NOT NULL,
    tax_id     TEXT NOT NULL,
    email      TEXT NOT NULL,
    collection TEXT NOT NULL CHECK (collection IN ('manual', 'automatic')),
    net_days   BIGINT NOT NULL CHECK (net_days >= 0)
);

-- Taxes of a country, or of a region of it. All that hold when an invoice is issued are lines of it.
CREATE TABLE tax_rate (
    country        TEXT NOT NULL,
    -- Empty: all of the country.
    region         TEXT NOT NULL,
    name           TEXT NOT NULL,
    rate           BIGINT NOT NULL CHECK (rate >= 0),
    -- 1: a customer of another country of the European Union with a valid number for it owes it to the state, not to us.
    reverse_charge BIGINT NOT NULL CHECK (reverse_charge IN (0, 1)),
    valid_from     BIGINT NOT NULL,
    valid_until    BIGINT,
    PRIMARY KEY (country, region, name, valid_from)
);

-- What an account has promised to spend in each of these months, on fees and usage before credit.
CREATE TABLE commitment (
    account_id  TEXT NOT NULL REFERENCES account (id),
    from_period BIGINT NOT NULL,
    -- The first month without it.
    until_period BIGINT,
    amount      BIGINT NOT NULL CHECK (amount > 0),
    PRIMARY KEY (account_id, from_period)
);

-- A coupon is a part off fees and usage for some months, or credit, or both.
CREATE TABLE coupon (
    code              TEXT PRIMARY KEY,
    name              TEXT NOT NULL,
    part_off          BIGINT CHECK (part_off > 0 AND part_off <= 1000000),
    -- Without a number: every month.
    n_months          BIGINT CHECK (n_months > 0),
    credit            BIGINT CHECK (credit > 0),
    credit_days       BIGINT CHECK (credit_days > 0),
    n_redemptions_max BIGINT,
    redeem_until      BIGINT,
    created_at        BIGINT NOT NULL
);
CREATE TABLE coupon_redemption (
    code         TEXT NOT NULL REFERENCES coupon (code),
    account_id   TEXT NOT NULL REFERENCES account (id),
    redeemed_at  BIGINT NOT NULL,
    from_period  BIGINT NOT NULL,
    until_period BIGINT,
    PRIMARY KEY (code, account_id)
);

-- Amounts that wait for the next invoice. source names what made it: the same source again makes no second one.
CREATE TABLE invoice_item (
    id         TEXT PRIMARY KEY,
    account_id TEXT NOT NULL REFERENCES account (id),
    source     TEXT NOT NULL UNIQUE,
    text       TEXT NOT NULL,
    amount     BIGINT NOT NULL,
    -- 1: its tax was reckoned before, so it stands behind the taxes, such as what was paid too much.
    is_gross   BIGINT NOT NULL CHECK (is_gross IN (0, 1)),
    created_at BIGINT NOT NULL,
    invoice_id TEXT
);
CREATE INDEX invoice_item_waiting ON invoice_item (account_id) WHERE invoice_id IS NULL;

CREATE TABLE invoice (
    id           TEXT PRIMARY KEY,
    issuer_id    TEXT NOT NULL REFERENCES invoice_issuer (id),
    kind         TEXT NOT NULL CHECK (kind IN ('invoice', 'credit_note')),
    number       BIGINT NOT NULL,
    -- The number with its prefix, as it is printed.
    name         TEXT NOT NULL,
    account_id   TEXT NOT NULL REFERENCES account (id),
    period       BIGINT NOT NULL,
    -- The invoice that a credit note corrects.
    corrects     TEXT REFERENCES invoice (id),
    issued_at    BIGINT NOT NULL,
    due_at       BIGINT NOT NULL,
    currency     TEXT NOT NULL,
    -- JSON of issuer and customer as they were.
    parties      TEXT NOT NULL,
    total        BIGINT NOT NULL,
    collection   TEXT NOT NULL CHECK (collection IN ('manual', 'automatic')),
    status       TEXT NOT NULL CHECK (status IN ('open', 'paid', 'uncollectible')),
    -- What credit notes took off, and what was paid.
    credited     BIGINT NOT NULL,
    paid         BIGINT NOT NULL,
    UNIQUE (issuer_id, kind, number)
);
CREATE UNIQUE INDEX invoice_of_period ON invoice (account_id, period) WHERE kind = 'invoice';
CREATE INDEX invoice_to_collect ON invoice (due_at) WHERE status = 'open';

CREATE TABLE invoice_line (
    invoice_id  TEXT NOT NULL REFERENCES invoice (id),
    line_number BIGINT NOT NULL,
    line_id     TEXT NOT NULL,
    text        TEXT NOT NULL,
    -- JSON of what the line is for.
    detail      TEXT NOT NULL,
    rounding    TEXT NOT NULL,
    n_requests  BIGINT NOT NULL,
    amount      BIGINT NOT NULL,
    PRIMARY KEY (invoice_id, line_number)
);

-- An account's months that are closed, one after the other without a gap. A month's invoice covers what the ledger had up to an
-- entry: of this month all, of earlier ones what came after they were closed.
CREATE TABLE closed_period (
    account_id TEXT NOT NULL REFERENCES account (id),
    period     BIGINT NOT NULL,
    upto_seq   BIGINT NOT NULL,
    closed_at  BIGINT NOT NULL,
    -- Without one, nothing was to be invoiced.
    invoice_id TEXT REFERENCES invoice (id),
    PRIMARY KEY (account_id, period)
);

-- Attempts to be paid.
CREATE TABLE payment (
    id           TEXT PRIMARY KEY,
    invoice_id   TEXT NOT NULL REFERENCES invoice (id),
    attempt      BIGINT NOT NULL,
    provider     TEXT NOT NULL,
    -- What the provider calls it; empty until it is known.
    provider_ref TEXT NOT NULL,
    amount       BIGINT NOT NULL CHECK (amount > 0),
    status       TEXT NOT NULL CHECK (status IN ('pending', 'succeeded', 'failed')),
    reason       TEXT NOT NULL,
    created_at   BIGINT NOT NULL,
    updated_at   BIGINT NOT NULL,
    UNIQUE (invoice_id, attempt)
);
CREATE INDEX payment_by_provider ON payment (provider, provider_ref);

-- An open invoice that is collected automatically: how often that was tried, and when it is tried next.
CREATE TABLE dunning (
    invoice_id      TEXT PRIMARY KEY REFERENCES invoice (id),
    account_id      TEXT NOT NULL REFERENCES account (id),
    n_attempts      BIGINT NOT NULL,
    next_attempt_at BIGINT,
    -- Since when the account may do nothing because of it; whatever an operator says of the account stands in account.status.
    restricted_at   BIGINT
);
CREATE INDEX dunning_restricted ON dunning (account_id) WHERE restricted_at IS NOT NULL;

-- Money that went back of a payment: refunds, and what a bank took back.
CREATE TABLE refund (
    id           TEXT PRIMARY KEY,
    payment_id   TEXT NOT NULL REFERENCES payment (id),
    kind         TEXT NOT NULL CHECK (kind IN ('refund', 'dispute')),
    -- What the provider calls it; empty until it is known.
    provider_ref TEXT NOT NULL,
    amount       BIGINT NOT NULL CHECK (amount > 0),
    -- What has succeeded is off what was paid.
    status       TEXT NOT NULL CHECK (status IN ('pending', 'succeeded', 'failed')),
    reason       TEXT NOT NULL,
    -- The credit note that says so; a dispute has none.
    note_id      TEXT REFERENCES invoice (id),
    created_at   BIGINT NOT NULL,
    updated_at   BIGINT NOT NULL
);
CREATE INDEX refund_by_payment ON refund (payment_id);
CREATE UNIQUE INDEX refund_by_provider ON refund (kind, provider_ref) WHERE provider_ref <> '';

-- What a payment provider knows an account as.
CREATE TABLE payment_customer (
    account_id     TEXT PRIMARY KEY REFERENCES account (id),
    provider       TEXT NOT NULL,
    customer       TEXT NOT NULL,
    -- Empty without one.
    payment_method TEXT NOT NULL,
    UNIQUE (provider, customer)
);

-- Events that a payment provider has sent: each is heard once.
CREATE TABLE provider_event (
    provider    TEXT NOT NULL,
    event_id    TEXT NOT NULL,
    received_at BIGINT NOT NULL,
    PRIMARY KEY (provider, event_id)
);
CREATE INDEX provider_event_by_age ON provider_event (received_at);
