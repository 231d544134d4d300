-- Reading back what webhooks did not bring, session by session. See ingest::gap_fill.
CREATE TABLE gap_fills (
    tenant_id            uuid NOT NULL,
    session_id           uuid NOT NULL,
    -- When the next fill is due, and why. NULL: none is, since the session does not work.
    due_at               timestamptz,
    because              text NOT NULL DEFAULT 'reconnect'
                         CHECK (because IN ('reconnect', 'server_restart', 'silence', 'schedule', 'tenant')),
    -- How often one was asked for; and how often it had been when the one under way began.
    asked                bigint NOT NULL DEFAULT 0,
    taken                bigint NOT NULL DEFAULT 0,
    -- Where the session lives, since when it works, since when its server runs, and when WhatsApp was last asked whether it is
    -- alive: as they were when that last led to a fill.
    waha_server_id       uuid NOT NULL,
    working_since        timestamptz,
    server_started       bigint,
    probed_at            timestamptz,
    -- Everything written until then has been read back. The next fill begins there, or farther back, where what an engine
    -- hears late would be missed otherwise.
    filled_until         timestamptz,
    reread_from          timestamptz,
    -- The node that reads holds the row until then.
    lease_until          timestamptz,
    -- The fill under way or broken off: its range, and how far it has come.
    began_at             timestamptz,
    fill_from            timestamptz,
    fill_until           timestamptz,
    cursor_since         timestamptz,
    cursor_offset        bigint NOT NULL DEFAULT 0,
    -- A digest of the last chat that is done, where chats are read one by one.
    cursor_after         bigint,
    found                bigint NOT NULL DEFAULT 0,
    -- Failures in a row.
    failures             integer NOT NULL DEFAULT 0 CHECK (failures >= 0),
    -- When one was last completed.
    filled_at            timestamptz,
    -- How many messages came by webhooks, and how many had to be read back: in all, and up to the last completed fill since
    -- the one before.
    by_webhook           bigint NOT NULL DEFAULT 0,
    by_read_back         bigint NOT NULL DEFAULT 0,
    recent_by_webhook    bigint NOT NULL DEFAULT 0,
    recent_by_read_back  bigint NOT NULL DEFAULT 0,
    counted_until        timestamptz NOT NULL,
    created_at           timestamptz NOT NULL,
    updated_at           timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, session_id),
    FOREIGN KEY (tenant_id, session_id) REFERENCES waha_sessions (tenant_id, id)
) WITH (fillfactor = 60);
CREATE INDEX gap_fills_due ON gap_fills (due_at) WHERE due_at IS NOT NULL;
CREATE INDEX gap_fills_leased ON gap_fills (lease_until) WHERE lease_until IS NOT NULL;

-- Which hidden ids WAHA is asked about, and when.
CREATE TABLE lid_lookups (
    tenant_id  uuid NOT NULL,
    contact_id uuid NOT NULL,
    -- When it is asked next, moved to the end of the lease when taken.
    due_at     timestamptz NOT NULL,
    -- How often nobody knew.
    misses     integer NOT NULL DEFAULT 0 CHECK (misses >= 0),
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, contact_id),
    FOREIGN KEY (tenant_id, contact_id) REFERENCES contacts (tenant_id, id) ON DELETE CASCADE
);
CREATE INDEX lid_lookups_due ON lid_lookups (due_at);
-- People of whom only the hidden id is known.
CREATE INDEX contacts_hidden ON contacts (tenant_id, id)
    WHERE phone IS NULL AND lid IS NOT NULL AND merged_into IS NULL AND deleted_at IS NULL;

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['gap_fills', 'lid_lookups']
    LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', name);
        EXECUTE format('CREATE POLICY own_tenant ON %I TO switchboard_tenant
                        USING (tenant_id = current_tenant()) WITH CHECK (tenant_id = current_tenant())', name);
        EXECUTE format('CREATE POLICY all_rows ON %I TO switchboard_system USING (true) WITH CHECK (true)', name);
    END LOOP;
END
$$;
GRANT SELECT, UPDATE (due_at, because, asked, updated_at) ON gap_fills TO switchboard_tenant;
GRANT SELECT, INSERT, UPDATE ON gap_fills TO switchboard_system;
GRANT SELECT, INSERT, UPDATE, DELETE ON lid_lookups TO switchboard_system;
