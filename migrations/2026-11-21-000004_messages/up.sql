CREATE TABLE messages (
    tenant_id       uuid NOT NULL,
    id              uuid NOT NULL,
    session_id      uuid NOT NULL,
    -- Order of acceptance within a session.
    seq             bigint GENERATED ALWAYS AS IDENTITY,
    direction       text NOT NULL CHECK (direction IN ('inbound', 'outbound')),
    status          text NOT NULL CHECK (status IN ('scheduled', 'queued', 'sending', 'sent', 'delivered', 'read', 'played',
                                                    'failed', 'cancelled', 'expired', 'received')),
    priority        smallint NOT NULL DEFAULT 1 CHECK (priority BETWEEN 0 AND 2),
    message_type    varchar(50) NOT NULL,
    chat_id         text NOT NULL,
    to_msisdn       varchar(20),
    from_msisdn     varchar(20),
    body            text,
    media_url       text,
    reply_to        uuid,
    metadata        jsonb NOT NULL DEFAULT '{}',
    raw_payload     jsonb,
    -- WhatsApp's id, bare. Outbound: chosen before the first attempt where the engine honours it.
    waha_message_id varchar(255),
    ack             smallint,
    attempts        integer NOT NULL DEFAULT 0,
    -- open: claimed, no outcome yet (found so by the next claim, its worker died); unknown: nobody knows whether it went.
    attempt_state   text NOT NULL DEFAULT 'none' CHECK (attempt_state IN ('none', 'open', 'unknown')),
    worker_deaths   smallint NOT NULL DEFAULT 0,
    -- Attempts of which nobody knows whether they sent.
    doubts          smallint NOT NULL DEFAULT 0,
    error_code      text,
    error_message   text,
    scheduled_at    timestamptz,
    expires_at      timestamptz,
    handed_over_at  timestamptz,
    sent_at         timestamptz,
    delivered_at    timestamptz,
    read_at         timestamptz,
    played_at       timestamptz,
    failed_at       timestamptz,
    created_at      timestamptz NOT NULL,
    updated_at      timestamptz NOT NULL,
    deleted_at      timestamptz,
    PRIMARY KEY (tenant_id, id),
    FOREIGN KEY (tenant_id, session_id) REFERENCES waha_sessions (tenant_id, id)
) WITH (fillfactor = 85);
CREATE INDEX messages_created ON messages (tenant_id, created_at DESC, id DESC);
CREATE INDEX messages_session ON messages (tenant_id, session_id, created_at DESC, id DESC);
CREATE INDEX messages_to ON messages (tenant_id, to_msisdn, created_at DESC, id DESC);
CREATE INDEX messages_from ON messages (tenant_id, from_msisdn, created_at DESC, id DESC) WHERE from_msisdn IS NOT NULL;
CREATE INDEX messages_status ON messages (tenant_id, status, created_at DESC, id DESC);
CREATE UNIQUE INDEX messages_waha_id ON messages (session_id, waha_message_id) WHERE waha_message_id IS NOT NULL;
-- What waits, in the order in which it leaves.
CREATE INDEX messages_queue ON messages (session_id, priority, seq) WHERE status = 'queued';
ALTER TABLE messages ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON messages TO switchboard_tenant
    USING (tenant_id = current_tenant()) WITH CHECK (tenant_id = current_tenant());
CREATE POLICY all_rows ON messages TO switchboard_system USING (true) WITH CHECK (true);
GRANT SELECT, UPDATE ON messages TO switchboard_tenant;
GRANT SELECT, INSERT, UPDATE ON messages TO switchboard_system;

CREATE TABLE message_transitions (
    tenant_id  uuid NOT NULL,
    message_id uuid NOT NULL,
    id         bigint GENERATED ALWAYS AS IDENTITY,
    status     text NOT NULL,
    at         timestamptz NOT NULL,
    cause      text NOT NULL,
    attempt    integer,
    PRIMARY KEY (tenant_id, message_id, id),
    FOREIGN KEY (tenant_id, message_id) REFERENCES messages (tenant_id, id)
);
ALTER TABLE message_transitions ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON message_transitions TO switchboard_tenant
    USING (tenant_id = current_tenant()) WITH CHECK (tenant_id = current_tenant());
CREATE POLICY all_rows ON message_transitions TO switchboard_system USING (true) WITH CHECK (true);
GRANT SELECT, INSERT ON message_transitions TO switchboard_tenant, switchboard_system;

-- Acks that came before their message knew its WhatsApp id; applied when it learns it.
CREATE TABLE early_acks (
    tenant_id       uuid NOT NULL,
    session_id      uuid NOT NULL,
    waha_message_id varchar(255) NOT NULL,
    ack             smallint NOT NULL,
    at              timestamptz NOT NULL,
    created_at      timestamptz NOT NULL,
    PRIMARY KEY (session_id, waha_message_id),
    FOREIGN KEY (tenant_id, session_id) REFERENCES waha_sessions (tenant_id, id)
);
CREATE INDEX early_acks_created ON early_acks (created_at);
ALTER TABLE early_acks ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY all_rows ON early_acks TO switchboard_system USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, UPDATE, DELETE ON early_acks TO switchboard_system;

-- The first answer to each Idempotency-Key. The nil tenant holds the keys of platform requests.
CREATE TABLE idempotency_keys (
    tenant_id   uuid NOT NULL,
    operation   text NOT NULL,
    key         varchar(255) NOT NULL,
    fingerprint bytea NOT NULL CHECK (octet_length(fingerprint) = 32),
    resource_id uuid NOT NULL,
    status_code smallint NOT NULL,
    -- The body of the answer; sealed where it shows a secret.
    response    bytea NOT NULL,
    sealed      boolean NOT NULL DEFAULT false,
    created_at  timestamptz NOT NULL,
    expires_at  timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, operation, key)
);
CREATE INDEX idempotency_keys_expires ON idempotency_keys (expires_at);
ALTER TABLE idempotency_keys ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON idempotency_keys TO switchboard_tenant
    USING (tenant_id = current_tenant()) WITH CHECK (tenant_id = current_tenant());
CREATE POLICY all_rows ON idempotency_keys TO switchboard_system USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, DELETE ON idempotency_keys TO switchboard_tenant, switchboard_system;
