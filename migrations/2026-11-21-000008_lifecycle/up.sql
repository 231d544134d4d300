-- What a session's life needs: what WAHA says beside what the tenant sees, wishes that are acted on once, and its history.
ALTER TABLE waha_sessions
    -- What WAHA says. status is what the tenant sees: it does not follow an outage that ends soon.
    ADD COLUMN waha_status       text NOT NULL DEFAULT 'stopped' CHECK (waha_status IN ('starting', 'scan_qr', 'working', 'failed', 'stopped')),
    -- Since when WAHA says so.
    ADD COLUMN waha_status_since timestamptz NOT NULL DEFAULT 'epoch',
    -- Rises with everything that makes an older poll's answer stale, shown or not.
    ADD COLUMN observations      bigint NOT NULL DEFAULT 0,
    -- When the tenant is told of the outage that is hidden until then.
    ADD COLUMN outage_shown_at   timestamptz,
    -- Since when it starts, or holds one of its server's places for starting.
    ADD COLUMN starting_since    timestamptz,
    -- It waits for such a place; since then.
    ADD COLUMN start_queued_at   timestamptz,
    -- It waits for a scan, or connects after one.
    ADD COLUMN pairing           boolean NOT NULL DEFAULT false,
    -- When it was last paired; no restart shortly after.
    ADD COLUMN paired_at         timestamptz,
    -- Restarts of the gateway's own in the last hour.
    ADD COLUMN restarts          timestamptz[] NOT NULL DEFAULT '{}',
    -- It was restarted because it failed; not again before it worked.
    ADD COLUMN failure_restarted boolean NOT NULL DEFAULT false,
    -- The tenant wants it unlinked from the phone; since then.
    ADD COLUMN logout_wanted_at  timestamptz,
    -- Whether restart_wanted_at is the tenant's wish.
    ADD COLUMN restart_by_tenant boolean NOT NULL DEFAULT false,
    -- A deleted one is gone from WAHA, and its place was given back.
    ADD COLUMN removed_at        timestamptz,
    -- Its server is drained: where it moves, with a place taken there, or that it would have to be paired anew elsewhere.
    ADD COLUMN move_to           uuid REFERENCES waha_servers,
    ADD COLUMN move_began_at     timestamptz,
    ADD COLUMN needs_rescan      boolean NOT NULL DEFAULT false;
-- A session that moves sends nothing, however well it works where it leaves.
ALTER TABLE lanes DROP CONSTRAINT lanes_stopped_because_check;
ALTER TABLE lanes ADD CONSTRAINT lanes_stopped_because_check
    CHECK (stopped_because IN ('session_not_working', 'session_moving', 'session_deleted'));
UPDATE waha_sessions SET waha_status = status, waha_status_since = updated_at;
CREATE INDEX waha_sessions_hidden_outage ON waha_sessions (outage_shown_at) WHERE outage_shown_at IS NOT NULL;
DROP INDEX waha_sessions_server;
CREATE INDEX waha_sessions_server ON waha_sessions (waha_server_id) WHERE removed_at IS NULL;
-- Those that start, server by server: how many may do so at once is limited.
CREATE INDEX waha_sessions_starting ON waha_sessions (waha_server_id, starting_since) WHERE starting_since IS NOT NULL;

-- The life of a session: every change of its status and every wish, with its cause and who caused it.
CREATE TABLE session_transitions (
    tenant_id   uuid NOT NULL,
    session_id  uuid NOT NULL,
    id          bigint GENERATED ALWAYS AS IDENTITY,
    at          timestamptz NOT NULL,
    -- What the tenant saw from then on.
    status      text NOT NULL,
    -- What WAHA said.
    waha_status text NOT NULL,
    cause       varchar(200) NOT NULL,
    -- waha, gateway, platform, or api_key:<id>.
    actor       varchar(100) NOT NULL,
    PRIMARY KEY (session_id, id),
    FOREIGN KEY (tenant_id, session_id) REFERENCES waha_sessions (tenant_id, id)
);
CREATE INDEX session_transitions_at ON session_transitions (tenant_id, session_id, id DESC);
ALTER TABLE session_transitions ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON session_transitions TO switchboard_tenant
    USING (tenant_id = current_tenant()) WITH CHECK (tenant_id = current_tenant());
CREATE POLICY all_rows ON session_transitions TO switchboard_system USING (true) WITH CHECK (true);
GRANT SELECT, INSERT ON session_transitions TO switchboard_tenant, switchboard_system;
