ALTER TABLE messages DROP CONSTRAINT messages_tenant_id_pool_id_fkey;
DROP TABLE sender_pool_recipients;
DROP TABLE sender_pool_sessions;
DROP TABLE sender_pools;
DROP TABLE media;
DROP TRIGGER waha_servers_version ON waha_servers;
DROP TABLE foreign_id_endpoints;
DROP TABLE number_checks;
DROP TABLE conversations;
DROP TABLE lane_sends;
ALTER TABLE waha_servers DROP COLUMN breaker_trial_at, DROP COLUMN breaker_failures, DROP COLUMN breaker_open_until;
ALTER TABLE lanes DROP COLUMN restarted_at;
ALTER TABLE waha_sessions
    DROP COLUMN restart_wanted_at,
    DROP COLUMN restriction_until, DROP COLUMN restriction_since, DROP COLUMN restriction_kind,
    DROP COLUMN check_numbers, DROP COLUMN windows;
DROP INDEX lanes_restricted;
ALTER TABLE lanes DROP COLUMN paused_because, DROP CONSTRAINT lanes_stopped_because_check;
ALTER TABLE lanes RENAME COLUMN stopped_because TO paused_because;
ALTER TABLE lanes ADD CONSTRAINT lanes_paused_because_check
    CHECK (paused_because IN ('session_not_working', 'paused_by_tenant', 'session_deleted'));
ALTER TABLE lanes
    DROP COLUMN tenant_pause_reason, DROP COLUMN tenant_paused_at, DROP COLUMN last_send_at, DROP COLUMN unacked, DROP COLUMN restricted_until, DROP COLUMN check_numbers, DROP COLUMN windows,
    DROP COLUMN typing, DROP COLUMN working_since, DROP COLUMN warm_up, DROP COLUMN new_chats_per_day,
    DROP COLUMN per_day, DROP COLUMN per_hour, DROP COLUMN per_minute;
REVOKE UPDATE (response) ON idempotency_keys FROM switchboard_system;
DROP INDEX messages_failed, messages_type, messages_pooled, messages_unacked, messages_expiring, messages_scheduled, messages_held, messages_queue, messages_client_reference;
ALTER TABLE messages
    DROP COLUMN attempts_before, DROP COLUMN revoked_at, DROP COLUMN edited_at, DROP COLUMN resends, DROP COLUMN requeued, DROP COLUMN held_because,
    DROP COLUMN pool_id, DROP COLUMN client_reference, DROP COLUMN content;
CREATE INDEX messages_queue ON messages (session_id, priority, seq) WHERE status = 'queued';
