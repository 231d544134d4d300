DROP TABLE session_transitions;
DROP INDEX waha_sessions_starting, waha_sessions_server, waha_sessions_hidden_outage;
CREATE INDEX waha_sessions_server ON waha_sessions (waha_server_id) WHERE deleted_at IS NULL;
UPDATE lanes SET stopped_because = 'session_not_working' WHERE stopped_because = 'session_moving';
ALTER TABLE lanes DROP CONSTRAINT lanes_stopped_because_check;
ALTER TABLE lanes ADD CONSTRAINT lanes_stopped_because_check
    CHECK (stopped_because IN ('session_not_working', 'session_deleted'));
ALTER TABLE waha_sessions
    DROP COLUMN needs_rescan,
    DROP COLUMN move_began_at,
    DROP COLUMN move_to,
    DROP COLUMN removed_at,
    DROP COLUMN restart_by_tenant,
    DROP COLUMN logout_wanted_at,
    DROP COLUMN failure_restarted,
    DROP COLUMN restarts,
    DROP COLUMN paired_at,
    DROP COLUMN pairing,
    DROP COLUMN start_queued_at,
    DROP COLUMN starting_since,
    DROP COLUMN outage_shown_at,
    DROP COLUMN observations,
    DROP COLUMN waha_status_since,
    DROP COLUMN waha_status;
