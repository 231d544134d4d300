ALTER TABLE waha_sessions
    -- What a session that is scan_qr waits for. NULL: it is not being paired.
    ADD COLUMN pairing_step       text CHECK (pairing_step IN ('qr', 'passkey', 'passkey_confirmation')),
    -- When WAHA says that the code on show came about; NULL: a poll found it, and its report is still to come.
    ADD COLUMN qr_reported_at     timestamptz,
    -- When it last began to work. A pairing link that is older has done what it was made for.
    ADD COLUMN working_from       timestamptz,
    -- How often codes were asked for since then; both begin anew after a while.
    ADD COLUMN pairing_asks       smallint NOT NULL DEFAULT 0,
    ADD COLUMN pairing_asks_since timestamptz;
UPDATE waha_sessions SET pairing_step = 'qr', qr_reported_at = status_at WHERE status = 'scan_qr';
