-- Signs of life of each session, and what they say about it. See sessions::liveness.
CREATE TABLE session_vitals (
    tenant_id      uuid NOT NULL,
    session_id     uuid NOT NULL,
    -- Watermarks, to the minute: something came in from WhatsApp; its server acknowledged something; WAHA took a message.
    last_inbound_at timestamptz,
    last_ack_at    timestamptz,
    last_call_at   timestamptz,
    -- Messages in a row of which WAHA did not say what became of them.
    failed_calls   integer NOT NULL DEFAULT 0 CHECK (failed_calls >= 0),
    -- The session's own measure of silence: how often something came since when, and the longest time between two, which
    -- fades by half in a week.
    first_sign_at  timestamptz,
    signs          integer NOT NULL DEFAULT 0 CHECK (signs >= 0),
    longest_gap_s  double precision NOT NULL DEFAULT 0 CHECK (longest_gap_s >= 0),
    -- The session's status as it was last counted, and when that began and ended.
    seen           text NOT NULL DEFAULT 'idle' CHECK (seen IN ('working', 'starting', 'failed', 'idle')),
    watched_since  timestamptz,
    worked_until   timestamptz,
    failed_at      timestamptz,
    -- The operator's alarm that it is part of.
    alarm_id       uuid,
    verdict        text NOT NULL DEFAULT 'healthy' CHECK (verdict IN ('healthy', 'suspect', 'dead')),
    verdict_since  timestamptz NOT NULL,
    evidence       jsonb NOT NULL DEFAULT '[]',
    -- When it has to be looked at, moved to the end of the lease when taken; NULL: it is not watched.
    probe_at       timestamptz,
    probed_at      timestamptz,
    failed_probes  integer NOT NULL DEFAULT 0 CHECK (failed_probes >= 0),
    reported_at    timestamptz,
    created_at     timestamptz NOT NULL,
    updated_at     timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, session_id),
    FOREIGN KEY (tenant_id, session_id) REFERENCES waha_sessions (tenant_id, id)
) WITH (fillfactor = 60);
CREATE INDEX session_vitals_probe ON session_vitals (probe_at) WHERE probe_at IS NOT NULL;
ALTER TABLE session_vitals ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON session_vitals TO switchboard_tenant
    USING (tenant_id = current_tenant()) WITH CHECK (tenant_id = current_tenant());
CREATE POLICY all_rows ON session_vitals TO switchboard_system USING (true) WITH CHECK (true);
GRANT SELECT ON session_vitals TO switchboard_tenant;
GRANT SELECT, INSERT, UPDATE ON session_vitals TO switchboard_system;

-- What an operator has to know of, above tenants.
CREATE TABLE operator_alarms (
    id         uuid PRIMARY KEY,
    kind       text NOT NULL CHECK (kind IN ('sessions_failed')),
    -- The engine whose sessions are concerned; NULL: all.
    engine     text CHECK (engine IN ('WEBJS', 'WPP', 'NOWEB', 'GOWS')),
    since      timestamptz NOT NULL,
    ended_at   timestamptz,
    details    jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL
);
-- However many nodes notice: one alarm.
CREATE UNIQUE INDEX operator_alarms_active ON operator_alarms (kind) WHERE ended_at IS NULL;
CREATE INDEX operator_alarms_since ON operator_alarms (since DESC, id DESC);
GRANT SELECT, INSERT, UPDATE ON operator_alarms TO switchboard_system;
