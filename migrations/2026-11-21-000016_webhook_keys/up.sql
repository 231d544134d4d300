ALTER TABLE waha_sessions
    -- What WAHA signed its webhooks with before the key that it has or is about to be given; NULL: there was no other.
    ADD COLUMN previous_webhook_key_sealed bytea,
    -- Until when that is accepted; NULL: WAHA was not seen with the new key yet.
    ADD COLUMN previous_webhook_key_until  timestamptz,
    ADD CONSTRAINT waha_sessions_previous_webhook_key_check
        CHECK (previous_webhook_key_until IS NULL OR previous_webhook_key_sealed IS NOT NULL);
CREATE TRIGGER waha_sessions_previous_webhook_key AFTER UPDATE ON waha_sessions FOR EACH ROW
    WHEN ((OLD.previous_webhook_key_sealed, OLD.previous_webhook_key_until)
          IS DISTINCT FROM
          (NEW.previous_webhook_key_sealed, NEW.previous_webhook_key_until))
    EXECUTE FUNCTION bump_directory_generation();
