-- What sending needs beyond a text in its turn.
ALTER TABLE messages
    -- What the type needs beyond the body: media, location, contacts, poll, mentions, link preview (domain::content).
    ADD COLUMN content          jsonb,
    -- The tenant's own id of the message, unique for good.
    ADD COLUMN client_reference varchar(255),
    ADD COLUMN pool_id          uuid,
    -- Waits although its turn came: writing to somebody new is not possible now. It does not hold up those behind it.
    ADD COLUMN held_because     text CHECK (held_because IN ('restricted', 'new_chats_per_day')),
    -- In status sending, and waiting for another turn: certainly not sent, or never acknowledged by WhatsApp's server.
    ADD COLUMN requeued         boolean NOT NULL DEFAULT false,
    -- Sends that were repeated because WhatsApp's server did not acknowledge the first.
    ADD COLUMN resends          smallint NOT NULL DEFAULT 0,
    -- Attempts before the last retry: how many more there may be is counted from here.
    ADD COLUMN attempts_before  integer NOT NULL DEFAULT 0,
    ADD COLUMN edited_at        timestamptz,
    ADD COLUMN revoked_at       timestamptz;
CREATE UNIQUE INDEX messages_client_reference ON messages (tenant_id, client_reference) WHERE client_reference IS NOT NULL;
DROP INDEX messages_queue;
-- What waits, in the order in which it leaves.
CREATE INDEX messages_queue ON messages (session_id, priority, seq) WHERE (status = 'queued' OR requeued) AND held_because IS NULL;
-- What waits outside of the queue; lanes.queued does not count it.
CREATE INDEX messages_held ON messages (session_id, held_because, priority, seq) WHERE held_because IS NOT NULL;
-- Lists by kind, of the kinds that are few; dead letters by cause.
CREATE INDEX messages_type ON messages (tenant_id, message_type, created_at DESC, id DESC) WHERE message_type <> 'text';
CREATE INDEX messages_failed ON messages (tenant_id, error_code, created_at DESC, id DESC) WHERE status = 'failed';
CREATE INDEX messages_scheduled ON messages (scheduled_at) WHERE status = 'scheduled';
CREATE INDEX messages_expiring ON messages (expires_at) WHERE expires_at IS NOT NULL AND status IN ('scheduled', 'queued');
-- Handed over and not acknowledged by WhatsApp's server.
CREATE INDEX messages_unacked ON messages (handed_over_at) WHERE status = 'sending' AND handed_over_at IS NOT NULL;

-- What became of the messages of a batch is known after its key was taken.
GRANT UPDATE (response) ON idempotency_keys TO switchboard_system;

ALTER TABLE lanes
    -- Caps over sliding windows; NULL or 0: none.
    ADD COLUMN per_minute        integer CHECK (per_minute >= 0),
    ADD COLUMN per_hour          integer CHECK (per_hour >= 0),
    ADD COLUMN per_day           integer CHECK (per_day >= 0),
    ADD COLUMN new_chats_per_day integer CHECK (new_chats_per_day >= 0),
    ADD COLUMN warm_up           jsonb,
    -- When the number was first paired; a young one sends less.
    ADD COLUMN working_since     timestamptz,
    ADD COLUMN typing            boolean NOT NULL DEFAULT false,
    -- When normal and bulk messages may leave; NULL: always.
    ADD COLUMN windows           jsonb,
    ADD COLUMN check_numbers     boolean NOT NULL DEFAULT true,
    -- WhatsApp refuses messages to people not written with before, until then; infinity: until further notice.
    ADD COLUMN restricted_until  timestamptz,
    -- Messages in a row that were handed over and not acknowledged by WhatsApp's server.
    ADD COLUMN unacked           integer NOT NULL DEFAULT 0 CHECK (unacked >= 0),
    -- When the last attempt ended. next_slot_at is this and the gap; a gap that changes applies from here on.
    ADD COLUMN last_send_at      timestamptz,
    -- Paused by the tenant, which is independent of what else holds the lane.
    ADD COLUMN tenant_paused_at  timestamptz,
    ADD COLUMN tenant_pause_reason varchar(200);
-- What holds the lane apart from the tenant is stopped_because; paused_because says whether anything does, and is never written.
ALTER TABLE lanes DROP CONSTRAINT lanes_paused_because_check;
ALTER TABLE lanes RENAME COLUMN paused_because TO stopped_because;
ALTER TABLE lanes
    ADD CONSTRAINT lanes_stopped_because_check CHECK (stopped_because IN ('session_not_working', 'session_deleted')),
    ADD COLUMN paused_because text GENERATED ALWAYS AS (
        coalesce(stopped_because, CASE WHEN tenant_paused_at IS NOT NULL THEN 'paused_by_tenant' END)) STORED;
CREATE INDEX lanes_restricted ON lanes (restricted_until) WHERE restricted_until IS NOT NULL;

-- When the session was last restarted because it took messages and sent none; not again for a while.
ALTER TABLE lanes ADD COLUMN restarted_at timestamptz;

ALTER TABLE waha_sessions
    -- It is to be restarted at WAHA, once, because it is stuck; since then.
    ADD COLUMN restart_wanted_at timestamptz,
    ADD COLUMN windows           jsonb,
    ADD COLUMN check_numbers     boolean NOT NULL DEFAULT true,
    ADD COLUMN restriction_kind  text,
    ADD COLUMN restriction_since timestamptz,
    ADD COLUMN restriction_until timestamptz;

ALTER TABLE waha_servers
    -- The circuit breaker: no turns for this server until then; failures in a row.
    ADD COLUMN breaker_open_until timestamptz,
    ADD COLUMN breaker_failures   integer NOT NULL DEFAULT 0 CHECK (breaker_failures >= 0),
    -- When the last turn was given to try the server out after that; sends close the breaker by setting breaker_open_until to NULL.
    ADD COLUMN breaker_trial_at   timestamptz;

-- Sends of lanes with caps: the n-th latest tells when the next may leave.
CREATE TABLE lane_sends (
    tenant_id  uuid NOT NULL,
    session_id uuid NOT NULL,
    id         bigint GENERATED ALWAYS AS IDENTITY,
    at         timestamptz NOT NULL,
    new_chat   boolean NOT NULL DEFAULT false,
    PRIMARY KEY (session_id, at, id),
    FOREIGN KEY (tenant_id, session_id) REFERENCES waha_sessions (tenant_id, id)
);
CREATE INDEX lane_sends_new_chats ON lane_sends (session_id, at) WHERE new_chat;
ALTER TABLE lane_sends ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY all_rows ON lane_sends TO switchboard_system USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, DELETE ON lane_sends TO switchboard_system;

-- Who a session has written with. A first message to somebody who never wrote is a cold one.
CREATE TABLE conversations (
    tenant_id         uuid NOT NULL,
    session_id        uuid NOT NULL,
    chat_id           text NOT NULL,
    first_outbound_at timestamptz,
    first_inbound_at  timestamptz,
    last_inbound_at   timestamptz,
    created_at        timestamptz NOT NULL,
    updated_at        timestamptz NOT NULL,
    PRIMARY KEY (session_id, chat_id),
    FOREIGN KEY (tenant_id, session_id) REFERENCES waha_sessions (tenant_id, id)
) WITH (fillfactor = 85);
ALTER TABLE conversations ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON conversations TO switchboard_tenant
    USING (tenant_id = current_tenant()) WITH CHECK (tenant_id = current_tenant());
CREATE POLICY all_rows ON conversations TO switchboard_system USING (true) WITH CHECK (true);
GRANT SELECT ON conversations TO switchboard_tenant;
GRANT SELECT, INSERT, UPDATE ON conversations TO switchboard_system;

-- Whether a number is on WhatsApp, and under which id: answers of WhatsApp's that are kept for a while.
CREATE TABLE number_checks (
    tenant_id  uuid NOT NULL REFERENCES tenants,
    phone      varchar(20) NOT NULL,
    registered boolean NOT NULL,
    -- The id to send to; may differ from the number (Brazil's ninth digit).
    chat_id    text,
    checked_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, phone)
);
CREATE INDEX number_checks_expires ON number_checks (expires_at);
ALTER TABLE number_checks ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON number_checks TO switchboard_tenant
    USING (tenant_id = current_tenant()) WITH CHECK (tenant_id = current_tenant());
CREATE POLICY all_rows ON number_checks TO switchboard_system USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, UPDATE ON number_checks TO switchboard_tenant;
GRANT SELECT, INSERT, UPDATE, DELETE ON number_checks TO switchboard_system;

-- Endpoints that were seen not to keep the message id they were given: a repeat there would be a second message.
CREATE TABLE foreign_id_endpoints (
    engine       text NOT NULL CHECK (engine IN ('WEBJS', 'WPP', 'NOWEB', 'GOWS')),
    waha_version text NOT NULL,
    endpoint     text NOT NULL,
    noted_at     timestamptz NOT NULL,
    PRIMARY KEY (engine, waha_version, endpoint)
);
GRANT SELECT, INSERT, DELETE ON foreign_id_endpoints TO switchboard_system;
CREATE TRIGGER foreign_id_endpoints_directory AFTER INSERT OR DELETE ON foreign_id_endpoints
    FOR EACH STATEMENT EXECUTE FUNCTION bump_directory_generation();
-- Another version may keep ids.
CREATE TRIGGER waha_servers_version AFTER UPDATE OF waha_version ON waha_servers FOR EACH ROW
    WHEN (OLD.waha_version IS DISTINCT FROM NEW.waha_version)
    EXECUTE FUNCTION bump_directory_generation();

-- Files to be sent; the bytes are in object storage under storage_key.
CREATE TABLE media (
    tenant_id   uuid NOT NULL REFERENCES tenants,
    id          uuid NOT NULL,
    mime_type   varchar(255) NOT NULL,
    filename    varchar(255),
    size        bigint NOT NULL CHECK (size >= 0),
    sha256      bytea NOT NULL CHECK (octet_length(sha256) = 32),
    storage_key text NOT NULL,
    -- Where it was fetched from, for what was given as a URL.
    source_url  text,
    created_at  timestamptz NOT NULL,
    updated_at  timestamptz NOT NULL,
    -- When all bytes were there; NULL: on their way, or given up on the way.
    ready_at    timestamptz,
    deleted_at  timestamptz,
    -- When the bytes of a deleted one were removed.
    purged_at   timestamptz,
    PRIMARY KEY (tenant_id, id),
    UNIQUE (id)
);
CREATE INDEX media_to_purge ON media (coalesce(deleted_at, created_at))
    WHERE purged_at IS NULL AND (deleted_at IS NOT NULL OR ready_at IS NULL);
CREATE INDEX media_created ON media (tenant_id, created_at DESC, id DESC);
ALTER TABLE media ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON media TO switchboard_tenant
    USING (tenant_id = current_tenant()) WITH CHECK (tenant_id = current_tenant());
CREATE POLICY all_rows ON media TO switchboard_system USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, UPDATE ON media TO switchboard_tenant, switchboard_system;
GRANT DELETE ON media TO switchboard_system;

-- Named sets of sessions to send by.
CREATE TABLE sender_pools (
    tenant_id  uuid NOT NULL REFERENCES tenants,
    id         uuid NOT NULL,
    name       varchar(100) NOT NULL,
    version    bigint NOT NULL DEFAULT 1,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    deleted_at timestamptz,
    PRIMARY KEY (tenant_id, id),
    UNIQUE (id)
);
CREATE UNIQUE INDEX sender_pools_name ON sender_pools (tenant_id, name) WHERE deleted_at IS NULL;
CREATE INDEX sender_pools_created ON sender_pools (tenant_id, created_at DESC, id DESC);
ALTER TABLE sender_pools ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON sender_pools TO switchboard_tenant
    USING (tenant_id = current_tenant()) WITH CHECK (tenant_id = current_tenant());
CREATE POLICY all_rows ON sender_pools TO switchboard_system USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, UPDATE ON sender_pools TO switchboard_tenant, switchboard_system;

CREATE TABLE sender_pool_sessions (
    tenant_id  uuid NOT NULL,
    pool_id    uuid NOT NULL,
    session_id uuid NOT NULL,
    created_at timestamptz NOT NULL,
    -- When the session was last given a new recipient.
    chosen_at  timestamptz,
    PRIMARY KEY (pool_id, session_id),
    FOREIGN KEY (tenant_id, pool_id) REFERENCES sender_pools (tenant_id, id),
    FOREIGN KEY (tenant_id, session_id) REFERENCES waha_sessions (tenant_id, id)
);
CREATE INDEX sender_pool_sessions_session ON sender_pool_sessions (tenant_id, session_id);
ALTER TABLE sender_pool_sessions ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON sender_pool_sessions TO switchboard_tenant
    USING (tenant_id = current_tenant()) WITH CHECK (tenant_id = current_tenant());
CREATE POLICY all_rows ON sender_pool_sessions TO switchboard_system USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, UPDATE, DELETE ON sender_pool_sessions TO switchboard_tenant, switchboard_system;

-- Which session of a pool a recipient is used to.
CREATE TABLE sender_pool_recipients (
    tenant_id  uuid NOT NULL,
    pool_id    uuid NOT NULL,
    chat_id    text NOT NULL,
    session_id uuid NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    PRIMARY KEY (pool_id, chat_id),
    FOREIGN KEY (tenant_id, pool_id) REFERENCES sender_pools (tenant_id, id),
    FOREIGN KEY (tenant_id, session_id) REFERENCES waha_sessions (tenant_id, id)
);
ALTER TABLE sender_pool_recipients ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON sender_pool_recipients TO switchboard_tenant
    USING (tenant_id = current_tenant()) WITH CHECK (tenant_id = current_tenant());
CREATE POLICY all_rows ON sender_pool_recipients TO switchboard_system USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, UPDATE, DELETE ON sender_pool_recipients TO switchboard_tenant, switchboard_system;

-- What waits and may move to another session of its pool.
CREATE INDEX messages_pooled ON messages (session_id, pool_id, priority, seq) WHERE pool_id IS NOT NULL AND status IN ('queued', 'scheduled');
ALTER TABLE messages ADD FOREIGN KEY (tenant_id, pool_id) REFERENCES sender_pools (tenant_id, id);
