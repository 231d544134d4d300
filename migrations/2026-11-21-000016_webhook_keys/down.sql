DROP TRIGGER waha_sessions_previous_webhook_key ON waha_sessions;
ALTER TABLE waha_sessions
    DROP CONSTRAINT waha_sessions_previous_webhook_key_check,
    DROP COLUMN previous_webhook_key_until, DROP COLUMN previous_webhook_key_sealed;
