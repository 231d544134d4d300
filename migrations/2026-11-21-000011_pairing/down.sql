ALTER TABLE waha_sessions
    DROP COLUMN pairing_step,
    DROP COLUMN qr_reported_at,
    DROP COLUMN working_from,
    DROP COLUMN pairing_asks,
    DROP COLUMN pairing_asks_since;
