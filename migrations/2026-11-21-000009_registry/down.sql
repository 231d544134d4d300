REVOKE UPDATE (secret_sealed) ON webhook_endpoints FROM switchboard_system;
ALTER TABLE tenants DROP COLUMN max_sessions;
DROP TRIGGER waha_sessions_proxy ON waha_sessions;
ALTER TABLE waha_sessions
    DROP CONSTRAINT waha_sessions_proxy_check,
    DROP COLUMN proxy_sealed, DROP COLUMN proxy, DROP COLUMN labels;
DROP TRIGGER waha_servers_limitations ON waha_servers;
ALTER TABLE waha_servers
    DROP COLUMN unreachable_since, DROP COLUMN reported_engine, DROP COLUMN limitations, DROP COLUMN storage_group,
    DROP COLUMN labels;
