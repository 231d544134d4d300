-- Both are trusted: whoever may create in the database may create them.
CREATE EXTENSION btree_gin;
CREATE EXTENSION unaccent;

-- Words as they are written, in whatever language, without accents.
CREATE TEXT SEARCH CONFIGURATION message_text (COPY = simple);
ALTER TEXT SEARCH CONFIGURATION message_text ALTER MAPPING FOR hword, hword_part, word WITH unaccent, simple;

-- A message is no HTML: nothing in it is a tag, of which the parser would leave out what is within. Of very long ones the
-- beginning counts, since a text of more than a megabyte of words has no tsvector.
CREATE FUNCTION message_words(body text) RETURNS tsvector
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    RETURN to_tsvector('message_text', translate(left(body, 100000), '<>', '  '));

-- The words of the messages, kept beside them by a worker that follows the event log: neither accepting nor applying pays for
-- the index. Tenants have no way in: under a policy the words could not be looked up in the index, since that operator is
-- not leakproof. Whoever searches names the tenant, and reads what is found as that tenant.
CREATE TABLE message_search (
    tenant_id  uuid NOT NULL,
    message_id uuid NOT NULL,
    session_id uuid NOT NULL,
    created_at timestamptz NOT NULL,
    document   tsvector NOT NULL,
    PRIMARY KEY (tenant_id, message_id),
    FOREIGN KEY (tenant_id, message_id) REFERENCES messages (tenant_id, id)
);
CREATE INDEX message_search_words ON message_search USING gin (tenant_id, document);
ALTER TABLE message_search ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY all_rows ON message_search TO switchboard_system USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, UPDATE, DELETE ON message_search TO switchboard_system;

INSERT INTO event_cursors (name, xact, seq, updated_at) VALUES ('search', 0, 0, now());
-- Messages from before there was an index are walked through once; the last one that was looked at.
CREATE TABLE message_search_backlog (
    only_row   boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    last_tenant uuid NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000',
    last_id    uuid NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000',
    ended_at   timestamptz
);
INSERT INTO message_search_backlog DEFAULT VALUES;
GRANT SELECT, UPDATE ON message_search_backlog TO switchboard_system;

-- How far retention has come in what it walks through by age; rows that it left because they were still in use.
CREATE TABLE retention_progress (
    tenant_id  uuid NOT NULL REFERENCES tenants,
    kind       text NOT NULL CHECK (kind IN ('content', 'raw_payload')),
    -- Everything up to this message has been looked at.
    at         timestamptz NOT NULL,
    message_id uuid NOT NULL,
    updated_at timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, kind)
);
CREATE TABLE retention_postponed (
    tenant_id  uuid NOT NULL,
    message_id uuid NOT NULL,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, message_id),
    FOREIGN KEY (tenant_id, message_id) REFERENCES messages (tenant_id, id)
);

-- Receipts of erased contacts, and how far each erasure has come. Nothing personal is in them: until the last step the
-- contact itself says who it is.
CREATE TABLE erasures (
    tenant_id    uuid NOT NULL REFERENCES tenants,
    id           uuid NOT NULL,
    contact_id   uuid NOT NULL,
    -- api_key:<id>, platform_key:<id> or platform.
    requested_by varchar(100) NOT NULL,
    status       text NOT NULL DEFAULT 'pending' CHECK (status IN ('pending', 'running', 'done')),
    stage        text NOT NULL DEFAULT 'groups' CHECK (stage IN ('groups', 'messages', 'events', 'answers', 'person', 'media')),
    -- How far the stage has come, where it takes more than one step.
    place        jsonb,
    -- When the next step is due: later, where something has to end first.
    due_at       timestamptz NOT NULL,
    messages     bigint NOT NULL DEFAULT 0,
    cancelled    bigint NOT NULL DEFAULT 0,
    events       bigint NOT NULL DEFAULT 0,
    files        bigint NOT NULL DEFAULT 0,
    created_at   timestamptz NOT NULL,
    updated_at   timestamptz NOT NULL,
    finished_at  timestamptz,
    PRIMARY KEY (tenant_id, id),
    FOREIGN KEY (tenant_id, contact_id) REFERENCES contacts (tenant_id, id)
);
CREATE INDEX erasures_created ON erasures (tenant_id, created_at DESC, id DESC);
CREATE INDEX erasures_due ON erasures (due_at) WHERE finished_at IS NULL;
-- One at a time of each contact.
CREATE UNIQUE INDEX erasures_running ON erasures (tenant_id, contact_id) WHERE finished_at IS NULL;

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['retention_progress', 'retention_postponed', 'erasures']
    LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', name);
        EXECUTE format('CREATE POLICY own_tenant ON %I TO switchboard_tenant
                        USING (tenant_id = current_tenant()) WITH CHECK (tenant_id = current_tenant())', name);
        EXECUTE format('CREATE POLICY all_rows ON %I TO switchboard_system USING (true) WITH CHECK (true)', name);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I TO switchboard_system', name);
    END LOOP;
END
$$;
GRANT SELECT, INSERT ON erasures TO switchboard_tenant;

-- Files of an erased person, whose bytes have to go before the receipt says that all is gone.
ALTER TABLE media ADD COLUMN erasure_id uuid;
CREATE INDEX media_erased ON media (tenant_id, erasure_id) WHERE erasure_id IS NOT NULL;
-- Who else uses a file.
CREATE INDEX messages_media ON messages (tenant_id, (content #>> '{media,id}')) WHERE content #>> '{media,id}' IS NOT NULL;
-- What a person wrote where the chat is not the person.
CREATE INDEX messages_sender ON messages (tenant_id, sender_id) WHERE sender_id <> chat_id;
CREATE INDEX messages_sender_alternative ON messages (tenant_id, sender_alternative_id)
    WHERE sender_alternative_id IS NOT NULL AND sender_id <> chat_id;

-- The same key the other way round: it says as well which deliveries an event has, which whoever removes the event must know.
ALTER TABLE webhook_deliveries DROP CONSTRAINT webhook_deliveries_tenant_id_endpoint_id_event_id_key;
ALTER TABLE webhook_deliveries ADD CONSTRAINT webhook_deliveries_event UNIQUE (tenant_id, event_id, endpoint_id);
CREATE INDEX webhook_attempts_delivery ON webhook_attempts (tenant_id, delivery_id);

-- The same event that is set aside twice is one letter.
CREATE UNIQUE INDEX inbound_dead_letters_body ON inbound_dead_letters (session_id, md5(body));

GRANT UPDATE (data), DELETE ON events TO switchboard_system;
GRANT DELETE ON webhook_deliveries TO switchboard_system;
GRANT UPDATE (response_body), DELETE ON webhook_attempts TO switchboard_system;
GRANT DELETE ON known_chats TO switchboard_system;
