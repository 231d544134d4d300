-- What is remembered of a chat for sending: whether it is known, and since when. (Conversations, as tenants see them, follow
-- below; a person's two ids are two known chats and one conversation.)
ALTER TABLE conversations RENAME TO known_chats;
ALTER INDEX conversations_pkey RENAME TO known_chats_pkey;
ALTER TABLE known_chats RENAME CONSTRAINT conversations_tenant_id_session_id_fkey TO known_chats_tenant_id_session_id_fkey;

ALTER TABLE messages
    -- Outbound: app when it was written on the phone or another linked device; NULL: by way of the API.
    ADD COLUMN source text CHECK (source IN ('app')),
    -- When it was written, as WhatsApp says; NULL for what was accepted here.
    ADD COLUMN occurred_at timestamptz,
    -- Who wrote it, as WhatsApp ids: the one the message came under and, where it was told, the other; and their own name.
    ADD COLUMN sender_id text,
    ADD COLUMN sender_alternative_id text,
    ADD COLUMN sender_name text,
    -- Found by reading back, not told by a webhook.
    ADD COLUMN backfilled boolean NOT NULL DEFAULT false,
    -- delivered because the recipient answered, not because it was acknowledged.
    ADD COLUMN delivery_inferred boolean NOT NULL DEFAULT false,
    -- The bare id of the message it answers.
    ADD COLUMN quoted_waha_id varchar(255),
    -- How often its text was changed on WhatsApp, and what it was at first.
    ADD COLUMN edits integer NOT NULL DEFAULT 0,
    ADD COLUMN original_body text,
    -- Came without content that could be decrypted; its content may still follow.
    ADD COLUMN is_stub boolean NOT NULL DEFAULT false,
    ADD COLUMN erased_at timestamptz;
-- The messages of a chat, newest first. (By CASE, since under row-level security no index serves a condition on coalesce.)
CREATE INDEX messages_chat ON messages (tenant_id, session_id, chat_id, (CASE WHEN occurred_at IS NULL THEN created_at ELSE occurred_at END) DESC, id DESC);
-- Answers whose original is not there yet.
CREATE INDEX messages_quoting ON messages (session_id, quoted_waha_id) WHERE quoted_waha_id IS NOT NULL AND reply_to IS NULL;
-- What was handed over under an id that is not known yet: a message of the account's own may be the echo of it.
CREATE INDEX messages_unidentified ON messages (session_id, chat_id) WHERE direction = 'outbound' AND waha_message_id IS NULL AND attempts > 0;
-- What the recipient may have without having acknowledged it: an answer shows it.
CREATE INDEX messages_undelivered ON messages (session_id, chat_id) WHERE direction = 'outbound' AND status IN ('sending', 'sent');

-- What WhatsApp tells of a message after it was written. Kept by the message's WhatsApp id, since it may come before the
-- message; what the message shows is derived from them, so that neither order nor repetition matters.
CREATE TABLE message_edits (
    tenant_id       uuid NOT NULL,
    session_id      uuid NOT NULL,
    waha_message_id varchar(255) NOT NULL,
    -- The id of the edit itself.
    edit_id         varchar(255) NOT NULL,
    body            text,
    edited_at       timestamptz NOT NULL,
    -- When WAHA told of it: decides between edits of the same second.
    reported_at     timestamptz NOT NULL,
    created_at      timestamptz NOT NULL,
    PRIMARY KEY (session_id, waha_message_id, edit_id),
    FOREIGN KEY (tenant_id, session_id) REFERENCES waha_sessions (tenant_id, id)
);
CREATE TABLE message_revocations (
    tenant_id       uuid NOT NULL,
    session_id      uuid NOT NULL,
    waha_message_id varchar(255) NOT NULL,
    revoked_at      timestamptz NOT NULL,
    created_at      timestamptz NOT NULL,
    PRIMARY KEY (session_id, waha_message_id),
    FOREIGN KEY (tenant_id, session_id) REFERENCES waha_sessions (tenant_id, id)
);
-- One reaction of each person to each message.
CREATE TABLE message_reactions (
    tenant_id       uuid NOT NULL,
    session_id      uuid NOT NULL,
    waha_message_id varchar(255) NOT NULL,
    -- The person's contact key; empty for the session's own account.
    person          text NOT NULL,
    -- Empty: taken back.
    emoji           text NOT NULL,
    reacted_at      timestamptz NOT NULL,
    reported_at     timestamptz NOT NULL,
    created_at      timestamptz NOT NULL,
    updated_at      timestamptz NOT NULL,
    PRIMARY KEY (session_id, waha_message_id, person),
    FOREIGN KEY (tenant_id, session_id) REFERENCES waha_sessions (tenant_id, id)
);
CREATE INDEX message_reactions_person ON message_reactions (tenant_id, person);
-- The latest vote of each person in each poll.
CREATE TABLE poll_votes (
    tenant_id       uuid NOT NULL,
    session_id      uuid NOT NULL,
    waha_message_id varchar(255) NOT NULL,
    person          text NOT NULL,
    -- Empty: the vote was taken back.
    options         text[] NOT NULL,
    voted_at        timestamptz NOT NULL,
    reported_at     timestamptz NOT NULL,
    created_at      timestamptz NOT NULL,
    updated_at      timestamptz NOT NULL,
    PRIMARY KEY (session_id, waha_message_id, person),
    FOREIGN KEY (tenant_id, session_id) REFERENCES waha_sessions (tenant_id, id)
);
CREATE INDEX poll_votes_person ON poll_votes (tenant_id, person);

-- Persons, one row each and tenant.
CREATE TABLE contacts (
    tenant_id    uuid NOT NULL REFERENCES tenants,
    id           uuid NOT NULL,
    -- E.164 with +.
    phone        varchar(20),
    -- The hidden id, …@lid.
    lid          text,
    -- As the tenant named the person, and as the person goes by on WhatsApp.
    name         text,
    push_name    text,
    -- To find them by the beginnings of their names. Plain columns: row-level security lets an index serve no expression.
    name_key      text GENERATED ALWAYS AS (lower(name)) STORED,
    push_name_key text GENERATED ALWAYS AS (lower(push_name)) STORED,
    tags         text[] NOT NULL DEFAULT '{}',
    notes        text,
    -- When they last wrote, and when they last told their name: to the minute, so that a busy chat writes this row seldom.
    last_seen_at timestamptz,
    push_name_at timestamptz,
    -- Found to be the same person as this one.
    merged_into  uuid,
    erased_at    timestamptz,
    version      bigint NOT NULL DEFAULT 1,
    created_at   timestamptz NOT NULL,
    updated_at   timestamptz NOT NULL,
    deleted_at   timestamptz,
    PRIMARY KEY (tenant_id, id),
    FOREIGN KEY (tenant_id, merged_into) REFERENCES contacts (tenant_id, id)
) WITH (fillfactor = 85);
CREATE INDEX contacts_created ON contacts (tenant_id, created_at DESC, id DESC) WHERE merged_into IS NULL AND deleted_at IS NULL;
CREATE INDEX contacts_name ON contacts (tenant_id, name_key COLLATE "C") WHERE merged_into IS NULL AND deleted_at IS NULL;
CREATE INDEX contacts_push_name ON contacts (tenant_id, push_name_key COLLATE "C") WHERE merged_into IS NULL AND deleted_at IS NULL;
-- Every id a person goes by on WhatsApp. The key is the id, but for Brazil's mobile numbers without their ninth digit.
CREATE TABLE contact_ids (
    tenant_id  uuid NOT NULL,
    key        text NOT NULL,
    contact_id uuid NOT NULL,
    -- As WhatsApp wrote it last.
    wa_id      text NOT NULL,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, key),
    FOREIGN KEY (tenant_id, contact_id) REFERENCES contacts (tenant_id, id)
);
-- Without the tenant: it must never pass for a way to a tenant's key, which the primary key is.
CREATE INDEX contact_ids_contact ON contact_ids (contact_id);
-- Which hidden id is whose number, as it was told: also of people who were never seen, since it may be told first.
CREATE TABLE contact_links (
    tenant_id  uuid NOT NULL REFERENCES tenants,
    -- Both as keys of contact_ids.
    lid        text NOT NULL,
    phone      text NOT NULL,
    -- Who told it, in the words of contact_merges.
    because    text NOT NULL,
    -- Taken back by the tenant: nobody's word makes them one person any more.
    denied_at  timestamptz,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, lid, phone)
);
CREATE INDEX contact_links_phone ON contact_links (tenant_id, phone);
-- What was merged, why, and what it takes to undo it.
CREATE TABLE contact_merges (
    tenant_id  uuid NOT NULL,
    id         uuid NOT NULL,
    kept_id    uuid NOT NULL,
    merged_id  uuid NOT NULL,
    -- message, lookup, send or tenant: what told that both are one person.
    because    text NOT NULL,
    -- The keys that were the merged one's, and both contacts as they were.
    keys       text[] NOT NULL,
    kept       jsonb NOT NULL,
    merged     jsonb NOT NULL,
    at         timestamptz NOT NULL,
    undone_at  timestamptz,
    PRIMARY KEY (tenant_id, id),
    FOREIGN KEY (tenant_id, kept_id) REFERENCES contacts (tenant_id, id),
    FOREIGN KEY (tenant_id, merged_id) REFERENCES contacts (tenant_id, id)
);
CREATE INDEX contact_merges_kept ON contact_merges (tenant_id, kept_id);
CREATE INDEX contact_merges_merged ON contact_merges (tenant_id, merged_id);

-- One per session and person or group.
CREATE TABLE conversations (
    tenant_id        uuid NOT NULL,
    id               uuid NOT NULL,
    session_id       uuid NOT NULL,
    kind             text NOT NULL CHECK (kind IN ('direct', 'group', 'channel', 'broadcast')),
    -- direct: the person; of others the chat alone says which.
    contact_id       uuid,
    -- The chat as it was last named on WhatsApp.
    chat_id          text NOT NULL,
    -- A group's subject.
    name             text,
    last_message_id  uuid,
    last_message_at  timestamptz,
    -- Tells messages of the same second apart.
    last_waha_id     text,
    message_count    bigint NOT NULL DEFAULT 0,
    unread_count     integer NOT NULL DEFAULT 0,
    last_read_at     timestamptz,
    is_active        boolean NOT NULL DEFAULT true,
    version          bigint NOT NULL DEFAULT 1,
    created_at       timestamptz NOT NULL,
    updated_at       timestamptz NOT NULL,
    deleted_at       timestamptz,
    PRIMARY KEY (tenant_id, id),
    CHECK ((kind = 'direct') = (contact_id IS NOT NULL)),
    FOREIGN KEY (tenant_id, session_id) REFERENCES waha_sessions (tenant_id, id),
    FOREIGN KEY (tenant_id, contact_id) REFERENCES contacts (tenant_id, id)
) WITH (fillfactor = 85);
CREATE UNIQUE INDEX conversations_person ON conversations (session_id, contact_id) WHERE contact_id IS NOT NULL AND deleted_at IS NULL;
CREATE UNIQUE INDEX conversations_chat ON conversations (session_id, chat_id) WHERE contact_id IS NULL AND deleted_at IS NULL;
CREATE INDEX conversations_active ON conversations (tenant_id, last_message_at DESC, id DESC) WHERE deleted_at IS NULL;
CREATE INDEX conversations_unread ON conversations (tenant_id, last_message_at DESC, id DESC)
    WHERE unread_count > 0 AND deleted_at IS NULL;
CREATE INDEX conversations_session ON conversations (tenant_id, session_id, last_message_at DESC, id DESC) WHERE deleted_at IS NULL;
CREATE INDEX conversations_contact ON conversations (tenant_id, contact_id) WHERE contact_id IS NOT NULL;

-- Who is in a group.
CREATE TABLE conversation_participants (
    tenant_id  uuid NOT NULL,
    session_id uuid NOT NULL,
    chat_id    text NOT NULL,
    -- The person's contact key.
    person     text NOT NULL,
    wa_id      text NOT NULL,
    role       text NOT NULL DEFAULT 'participant' CHECK (role IN ('participant', 'admin', 'superadmin')),
    -- When WhatsApp last told of this person in the group, which orders what was told.
    told_at    timestamptz NOT NULL,
    left_at    timestamptz,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    PRIMARY KEY (session_id, chat_id, person),
    FOREIGN KEY (tenant_id, session_id) REFERENCES waha_sessions (tenant_id, id)
);
CREATE INDEX conversation_participants_person ON conversation_participants (tenant_id, person);
-- A group's subject, as told last.
CREATE TABLE group_subjects (
    tenant_id  uuid NOT NULL,
    session_id uuid NOT NULL,
    chat_id    text NOT NULL,
    subject    text,
    -- Whether the session's own account is in the group.
    joined     boolean NOT NULL DEFAULT true,
    told_at    timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    PRIMARY KEY (session_id, chat_id),
    FOREIGN KEY (tenant_id, session_id) REFERENCES waha_sessions (tenant_id, id)
);

-- What WAHA told and nothing could be made of: unreadable, refused by the database, or of a kind that is not known.
CREATE TABLE inbound_dead_letters (
    tenant_id      uuid NOT NULL,
    id             uuid NOT NULL,
    session_id     uuid NOT NULL,
    waha_server_id uuid NOT NULL,
    received_at    timestamptz NOT NULL,
    event          text,
    reason         text NOT NULL CHECK (reason IN ('unreadable', 'refused', 'unknown_event')),
    cause          text NOT NULL,
    body           text NOT NULL,
    attempts       integer NOT NULL DEFAULT 1,
    created_at     timestamptz NOT NULL,
    updated_at     timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, id),
    FOREIGN KEY (tenant_id, session_id) REFERENCES waha_sessions (tenant_id, id)
);
CREATE INDEX inbound_dead_letters_created ON inbound_dead_letters (reason, created_at, id);

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['message_edits', 'message_revocations', 'message_reactions', 'poll_votes', 'contacts', 'contact_ids',
                                'contact_links', 'contact_merges', 'conversations', 'conversation_participants', 'group_subjects',
                                'inbound_dead_letters']
    LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', name);
        EXECUTE format('CREATE POLICY own_tenant ON %I TO switchboard_tenant
                        USING (tenant_id = current_tenant()) WITH CHECK (tenant_id = current_tenant())', name);
        EXECUTE format('CREATE POLICY all_rows ON %I TO switchboard_system USING (true) WITH CHECK (true)', name);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I TO switchboard_system', name);
    END LOOP;
END
$$;
GRANT SELECT ON poll_votes, message_revocations, conversation_participants, group_subjects TO switchboard_tenant;
GRANT SELECT, INSERT, DELETE ON message_edits TO switchboard_tenant;
GRANT SELECT, INSERT, UPDATE ON message_reactions TO switchboard_tenant;
GRANT SELECT, INSERT, UPDATE ON contacts, contact_merges, conversations TO switchboard_tenant;
GRANT SELECT, INSERT, UPDATE, DELETE ON contact_ids TO switchboard_tenant;

-- How far contacts and conversations have come in the event log.
INSERT INTO event_cursors (name, xact, seq, updated_at) VALUES ('conversations', 0, 0, now());
