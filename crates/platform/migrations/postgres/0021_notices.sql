-- Mails to members about what happened to their account: the same messages that webhooks tell of.

-- What somebody does not want to hear of by mail.
CREATE TABLE notice_refusal (
    person_id TEXT NOT NULL REFERENCES person (id),
    topic     TEXT NOT NULL,
    PRIMARY KEY (person_id, topic)
);

-- A mail about a message to somebody: written with the message, sent later, once.
CREATE TABLE notice (
    message_id      TEXT NOT NULL REFERENCES webhook_message (id),
    person_id       TEXT NOT NULL REFERENCES person (id),
    n_attempts      BIGINT NOT NULL,
    -- Nothing once it was sent or given up.
    next_attempt_at BIGINT,
    sent_at         BIGINT,
    -- Of the last attempt: what went wrong.
    outcome         TEXT NOT NULL,
    PRIMARY KEY (message_id, person_id)
);
CREATE INDEX notice_due ON notice (next_attempt_at) WHERE next_attempt_at IS NOT NULL;
