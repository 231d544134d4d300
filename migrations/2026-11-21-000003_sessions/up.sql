CREATE TABLE waha_servers (
    id               uuid PRIMARY KEY,
    name             varchar(100) NOT NULL,
    base_url         text NOT NULL,
    api_key_sealed   bytea NOT NULL,
    engine           text NOT NULL CHECK (engine IN ('WEBJS', 'WPP', 'NOWEB', 'GOWS')),
    capacity         integer NOT NULL CHECK (capacity >= 0),
    -- Sessions placed here; changed in the transaction that places or removes one, so capacity is never exceeded.
    sessions         integer NOT NULL DEFAULT 0 CHECK (sessions >= 0),
    draining         boolean NOT NULL DEFAULT false,
    health           text NOT NULL DEFAULT 'unknown' CHECK (health IN ('unknown', 'healthy', 'unreachable', 'unauthorized')),
    waha_version     text,
    start_timestamp  bigint,
    last_seen_at     timestamptz,
    -- When some node polls the server next; moved past the lease while one does. NULL: at once.
    poll_at          timestamptz,
    version          bigint NOT NULL DEFAULT 1,
    created_at       timestamptz NOT NULL,
    updated_at       timestamptz NOT NULL,
    deleted_at       timestamptz
);
CREATE UNIQUE INDEX waha_servers_name ON waha_servers (name) WHERE deleted_at IS NULL;
GRANT SELECT, INSERT, UPDATE ON waha_servers TO switchboard_system;
CREATE TRIGGER waha_servers_directory AFTER INSERT OR UPDATE OF base_url, api_key_sealed, engine, deleted_at ON waha_servers
    FOR EACH STATEMENT EXECUTE FUNCTION bump_directory_generation();

CREATE TABLE waha_sessions (
    tenant_id           uuid NOT NULL REFERENCES tenants,
    id                  uuid NOT NULL,
    name                varchar(100) NOT NULL,
    external_session_id varchar(255) NOT NULL UNIQUE,
    waha_server_id      uuid NOT NULL REFERENCES waha_servers,
    status              text NOT NULL CHECK (status IN ('starting', 'scan_qr', 'working', 'failed', 'stopped')),
    status_at           timestamptz NOT NULL,
    desired             text NOT NULL CHECK (desired IN ('started', 'stopped', 'deleted')),
    engine              text NOT NULL CHECK (engine IN ('WEBJS', 'WPP', 'NOWEB', 'GOWS')),
    webhook_key_sealed  bytea NOT NULL,
    phone               varchar(20),
    push_name           text,
    pacing              jsonb NOT NULL,
    config              jsonb NOT NULL DEFAULT '{}',
    metadata            jsonb NOT NULL DEFAULT '{}',
    last_activity_at    timestamptz,
    error_message       text,
    qr_shown            smallint NOT NULL DEFAULT 0,
    qr_expires_at       timestamptz,
    -- When the reconciler has to look at the session; NULL: it is as desired. Moved to the end of the lease when taken.
    reconcile_at        timestamptz,
    -- Until then one node alone acts on the session; NULL: none does.
    reconcile_lease     timestamptz,
    -- Steps and failures in a row since WAHA was last found as desired.
    reconcile_failures  integer NOT NULL DEFAULT 0,
    version             bigint NOT NULL DEFAULT 1,
    created_at          timestamptz NOT NULL,
    updated_at          timestamptz NOT NULL,
    deleted_at          timestamptz,
    PRIMARY KEY (tenant_id, id),
    UNIQUE (id)
);
CREATE UNIQUE INDEX waha_sessions_name ON waha_sessions (tenant_id, name) WHERE deleted_at IS NULL;
CREATE INDEX waha_sessions_created ON waha_sessions (tenant_id, created_at DESC, id DESC);
CREATE INDEX waha_sessions_server ON waha_sessions (waha_server_id) WHERE deleted_at IS NULL;
-- Sessions that the reconciler has to look at, server by server.
CREATE INDEX waha_sessions_reconcile ON waha_sessions (waha_server_id, reconcile_at) WHERE reconcile_at IS NOT NULL;
ALTER TABLE waha_sessions ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON waha_sessions TO switchboard_tenant
    USING (tenant_id = current_tenant()) WITH CHECK (tenant_id = current_tenant());
CREATE POLICY all_rows ON waha_sessions TO switchboard_system USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, UPDATE ON waha_sessions TO switchboard_tenant;
GRANT SELECT, UPDATE ON waha_sessions TO switchboard_system;
CREATE TRIGGER waha_sessions_directory_new AFTER INSERT ON waha_sessions
    FOR EACH STATEMENT EXECUTE FUNCTION bump_directory_generation();
-- Per row and only for a real change: every report of a status names the phone, and must not empty all caches.
CREATE TRIGGER waha_sessions_directory AFTER UPDATE ON waha_sessions FOR EACH ROW
    WHEN ((OLD.waha_server_id, OLD.webhook_key_sealed, OLD.external_session_id, OLD.phone, OLD.deleted_at)
          IS DISTINCT FROM
          (NEW.waha_server_id, NEW.webhook_key_sealed, NEW.external_session_id, NEW.phone, NEW.deleted_at))
    EXECUTE FUNCTION bump_directory_generation();

-- A lane is one session's queue and its turn-taking state. See dispatch::lanes.
CREATE TABLE lanes (
    tenant_id      uuid NOT NULL,
    session_id     uuid PRIMARY KEY,
    waha_server_id uuid NOT NULL REFERENCES waha_servers,
    -- When the dispatcher must look at this lane next: its slot, its retry or the end of its lease. NULL: nothing to do.
    ready_at       timestamptz,
    -- The message whose turn it is, from its dispatch until its attempt has an outcome.
    in_flight      uuid,
    -- Raised by every dispatch; a claim, an outcome must show the current one.
    fence          bigint NOT NULL DEFAULT 0,
    claimed_fence  bigint NOT NULL DEFAULT 0,
    lease_until    timestamptz,
    -- No message may leave before this: the last send plus the gap. Survives restarts.
    next_slot_at   timestamptz NOT NULL,
    paused_because text CHECK (paused_because IN ('session_not_working', 'paused_by_tenant', 'session_deleted')),
    queued         integer NOT NULL DEFAULT 0 CHECK (queued >= 0),
    min_gap_ms     integer NOT NULL CHECK (min_gap_ms >= 0),
    jitter_ms      integer NOT NULL CHECK (jitter_ms >= 0),
    created_at     timestamptz NOT NULL,
    updated_at     timestamptz NOT NULL,
    FOREIGN KEY (tenant_id, session_id) REFERENCES waha_sessions (tenant_id, id)
) WITH (fillfactor = 60);
CREATE INDEX lanes_ready ON lanes (ready_at) WHERE ready_at IS NOT NULL;
ALTER TABLE lanes ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON lanes TO switchboard_tenant
    USING (tenant_id = current_tenant()) WITH CHECK (tenant_id = current_tenant());
CREATE POLICY all_rows ON lanes TO switchboard_system USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, UPDATE ON lanes TO switchboard_tenant;
GRANT SELECT, UPDATE ON lanes TO switchboard_system;
