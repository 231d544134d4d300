-- What is known of a WAHA server beyond its address.
ALTER TABLE waha_servers
    -- What a session may ask for in the place it is given.
    ADD COLUMN labels            text[] NOT NULL DEFAULT '{}',
    -- Servers of one group share their session storage; NULL: it shares with none.
    ADD COLUMN storage_group     varchar(100),
    -- What it cannot do, in the words of waha::Limitation.
    ADD COLUMN limitations       text[] NOT NULL DEFAULT '{}',
    -- The engine it says it runs; NULL: it never said.
    ADD COLUMN reported_engine   text,
    ADD COLUMN unreachable_since timestamptz;
-- Per row and only for a real change: every poll writes the limitations.
CREATE TRIGGER waha_servers_limitations AFTER UPDATE ON waha_servers FOR EACH ROW
    WHEN (OLD.limitations IS DISTINCT FROM NEW.limitations)
    EXECUTE FUNCTION bump_directory_generation();

ALTER TABLE waha_sessions
    -- Labels that its server must have.
    ADD COLUMN labels       text[] NOT NULL DEFAULT '{}',
    -- Its proxy as it is shown, without the password, and as it is used.
    ADD COLUMN proxy        jsonb,
    ADD COLUMN proxy_sealed bytea,
    ADD CONSTRAINT waha_sessions_proxy_check CHECK ((proxy IS NULL) = (proxy_sealed IS NULL));
CREATE TRIGGER waha_sessions_proxy AFTER UPDATE ON waha_sessions FOR EACH ROW
    WHEN (OLD.proxy_sealed IS DISTINCT FROM NEW.proxy_sealed)
    EXECUTE FUNCTION bump_directory_generation();

-- How many sessions a tenant may have; NULL: as many as there is room for. Tenants may read it, not write it.
ALTER TABLE tenants ADD COLUMN max_sessions integer CHECK (max_sessions >= 0);

-- Another master key seals anew what is sealed.
GRANT UPDATE (secret_sealed) ON webhook_endpoints TO switchboard_system;
