ALTER TABLE media
    -- Of a picture, in pixels.
    ADD COLUMN width          integer CHECK (width > 0),
    ADD COLUMN height         integer CHECK (height > 0),
    -- Bytes of the small picture that is kept beside it; NULL: there is none.
    ADD COLUMN thumbnail_size bigint CHECK (thumbnail_size > 0);

-- Files that WhatsApp told of and that are still to be fetched from WAHA: one of each message, until it is stored or given up.
CREATE TABLE media_fetches (
    tenant_id       uuid NOT NULL,
    message_id      uuid NOT NULL,
    session_id      uuid NOT NULL,
    -- As the message was known when it came; WAHA is asked for it by these.
    waha_message_id varchar(255) NOT NULL,
    chat_id         text NOT NULL,
    -- Where WAHA said it is. It is there for minutes only, so later tries ask anew.
    url             text,
    mime_type       text,
    filename        text,
    -- Tries that were begun; also the fence of the outcome.
    attempts        integer NOT NULL DEFAULT 0,
    -- Of those, the ones that failed through no fault of WAHA's or WhatsApp's.
    excused         integer NOT NULL DEFAULT 0,
    -- How often WAHA said that it knows neither file nor message.
    gone            integer NOT NULL DEFAULT 0,
    -- Not before; of one that is being fetched, the end of its lease.
    due_at          timestamptz NOT NULL,
    created_at      timestamptz NOT NULL,
    updated_at      timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, message_id),
    FOREIGN KEY (tenant_id, message_id) REFERENCES messages (tenant_id, id),
    FOREIGN KEY (tenant_id, session_id) REFERENCES waha_sessions (tenant_id, id)
) WITH (fillfactor = 70);
CREATE INDEX media_fetches_due ON media_fetches (session_id, due_at);
ALTER TABLE media_fetches ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON media_fetches TO switchboard_tenant
    USING (tenant_id = current_tenant()) WITH CHECK (tenant_id = current_tenant());
CREATE POLICY all_rows ON media_fetches TO switchboard_system USING (true) WITH CHECK (true);
-- Tenants ask for another try.
GRANT SELECT, INSERT ON media_fetches TO switchboard_tenant;
GRANT SELECT, INSERT, UPDATE, DELETE ON media_fetches TO switchboard_system;
