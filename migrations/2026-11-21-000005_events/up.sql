CREATE TABLE events (
    tenant_id  uuid NOT NULL REFERENCES tenants,
    id         uuid NOT NULL,
    seq        bigint GENERATED ALWAYS AS IDENTITY,
    -- The transaction that wrote the row. seq is not commit order: a reader takes rows in (xact, seq) order and only those
    -- older than every transaction still running, so it never passes one that commits late.
    xact       bigint NOT NULL DEFAULT (pg_current_xact_id()::text::bigint),
    type       text NOT NULL,
    at         timestamptz NOT NULL,
    session_id uuid,
    message_id uuid,
    data       text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, id)
);
CREATE INDEX events_order ON events (xact, seq);
CREATE INDEX events_tenant_order ON events (tenant_id, xact, seq);
ALTER TABLE events ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON events TO switchboard_tenant
    USING (tenant_id = current_tenant()) WITH CHECK (tenant_id = current_tenant());
CREATE POLICY all_rows ON events TO switchboard_system USING (true) WITH CHECK (true);
GRANT SELECT, INSERT ON events TO switchboard_tenant, switchboard_system;

-- How far each reader of the event log has come.
CREATE TABLE event_cursors (
    name       text PRIMARY KEY,
    xact       bigint NOT NULL,
    seq        bigint NOT NULL,
    updated_at timestamptz NOT NULL
);
INSERT INTO event_cursors (name, xact, seq, updated_at) VALUES ('fan_out', 0, 0, now());
GRANT SELECT, UPDATE ON event_cursors TO switchboard_system;

CREATE TABLE webhook_endpoints (
    tenant_id              uuid NOT NULL REFERENCES tenants,
    id                     uuid NOT NULL,
    url                    text NOT NULL,
    event_types            text[] NOT NULL,
    description            text,
    enabled                boolean NOT NULL DEFAULT true,
    disabled_because       text,
    secret_sealed          bytea NOT NULL,
    failing_since          timestamptz,
    version                bigint NOT NULL DEFAULT 1,
    created_at             timestamptz NOT NULL,
    updated_at             timestamptz NOT NULL,
    deleted_at             timestamptz,
    PRIMARY KEY (tenant_id, id)
);
CREATE INDEX webhook_endpoints_created ON webhook_endpoints (tenant_id, created_at DESC, id DESC);
ALTER TABLE webhook_endpoints ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON webhook_endpoints TO switchboard_tenant
    USING (tenant_id = current_tenant()) WITH CHECK (tenant_id = current_tenant());
CREATE POLICY all_rows ON webhook_endpoints TO switchboard_system USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, UPDATE ON webhook_endpoints TO switchboard_tenant;
GRANT SELECT ON webhook_endpoints TO switchboard_system;
GRANT UPDATE (enabled, disabled_because, failing_since, version, updated_at) ON webhook_endpoints TO switchboard_system;

-- The id of a delivery follows from its event and endpoint (a UUID v7 of the event's moment), so that making it twice
-- makes one.
CREATE FUNCTION delivery_id(event uuid, endpoint uuid) RETURNS uuid
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    RETURN left(overlay(overlay(overlay(encode(sha256(uuid_send(event) || uuid_send(endpoint)), 'hex')
        PLACING left(replace(event::text, '-', ''), 12) FROM 1) PLACING '7' FROM 13) PLACING 'a' FROM 17), 32)::uuid;

-- One event on its way to one endpoint.
CREATE TABLE webhook_deliveries (
    tenant_id       uuid NOT NULL,
    id              uuid NOT NULL,
    endpoint_id     uuid NOT NULL,
    event_id        uuid NOT NULL,
    status          text NOT NULL DEFAULT 'pending' CHECK (status IN ('pending', 'delivered', 'failed')),
    -- Counted before the attempt begins; the number is also the fence that keeps a late outcome out.
    attempts        integer NOT NULL DEFAULT 0,
    -- Attempts made before the schedule of retries (re)started: a replay starts it again.
    attempts_before integer NOT NULL DEFAULT 0,
    -- When to try next; moved to the end of the lease while an attempt runs.
    next_attempt_at timestamptz NOT NULL,
    -- The end of the lease while an attempt runs.
    claimed_until   timestamptz,
    created_at      timestamptz NOT NULL,
    updated_at      timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, id),
    UNIQUE (tenant_id, endpoint_id, event_id),
    FOREIGN KEY (tenant_id, endpoint_id) REFERENCES webhook_endpoints (tenant_id, id),
    FOREIGN KEY (tenant_id, event_id) REFERENCES events (tenant_id, id)
);
-- By endpoint, so that the backlog of one is never read to find the work of another.
CREATE INDEX webhook_deliveries_due ON webhook_deliveries (tenant_id, endpoint_id, next_attempt_at) WHERE status = 'pending';
ALTER TABLE webhook_deliveries ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON webhook_deliveries TO switchboard_tenant
    USING (tenant_id = current_tenant()) WITH CHECK (tenant_id = current_tenant());
CREATE POLICY all_rows ON webhook_deliveries TO switchboard_system USING (true) WITH CHECK (true);
-- Test events and replays are written by the tenant's own request.
GRANT SELECT, INSERT ON webhook_deliveries TO switchboard_tenant;
GRANT UPDATE (status, attempts_before, next_attempt_at, updated_at) ON webhook_deliveries TO switchboard_tenant;
GRANT SELECT, INSERT, UPDATE ON webhook_deliveries TO switchboard_system;

CREATE TABLE webhook_attempts (
    tenant_id       uuid NOT NULL,
    id              uuid NOT NULL,
    delivery_id     uuid NOT NULL,
    endpoint_id     uuid NOT NULL,
    event_id        uuid NOT NULL,
    attempt         integer NOT NULL,
    at              timestamptz NOT NULL,
    duration_ms     integer NOT NULL,
    response_status smallint,
    error           text,
    response_body   text,
    created_at      timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, id),
    FOREIGN KEY (tenant_id, delivery_id) REFERENCES webhook_deliveries (tenant_id, id)
);
CREATE INDEX webhook_attempts_endpoint ON webhook_attempts (tenant_id, endpoint_id, at DESC, id DESC);
ALTER TABLE webhook_attempts ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON webhook_attempts TO switchboard_tenant
    USING (tenant_id = current_tenant()) WITH CHECK (tenant_id = current_tenant());
CREATE POLICY all_rows ON webhook_attempts TO switchboard_system USING (true) WITH CHECK (true);
GRANT SELECT ON webhook_attempts TO switchboard_tenant;
GRANT SELECT, INSERT ON webhook_attempts TO switchboard_system;
