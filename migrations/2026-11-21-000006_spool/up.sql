-- Webhooks of WAHA that were kept here because the broker was away.
CREATE TABLE spool (
    id             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_id      uuid NOT NULL,
    session_id     uuid NOT NULL,
    waha_server_id uuid NOT NULL,
    received_at    timestamptz NOT NULL,
    body           text NOT NULL,
    created_at     timestamptz NOT NULL DEFAULT now(),
    FOREIGN KEY (tenant_id, session_id) REFERENCES waha_sessions (tenant_id, id)
);
ALTER TABLE spool ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY all_rows ON spool TO switchboard_system USING (true) WITH CHECK (true);
-- UPDATE is what a row lock asks for.
GRANT SELECT, INSERT, UPDATE, DELETE ON spool TO switchboard_system;
