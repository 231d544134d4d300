DELETE FROM event_cursors WHERE name = 'conversations';
DROP TABLE inbound_dead_letters, group_subjects, conversation_participants, conversations, contact_merges, contact_links, contact_ids, contacts,
    poll_votes, message_reactions, message_revocations, message_edits;
DROP INDEX messages_undelivered, messages_unidentified, messages_quoting, messages_chat;
-- What only this version can tell apart.
DELETE FROM message_transitions t USING messages m WHERE m.tenant_id = t.tenant_id AND m.id = t.message_id AND m.source = 'app';
DELETE FROM messages WHERE source = 'app';
ALTER TABLE messages
    DROP COLUMN source,
    DROP COLUMN occurred_at,
    DROP COLUMN sender_id,
    DROP COLUMN sender_alternative_id,
    DROP COLUMN sender_name,
    DROP COLUMN backfilled,
    DROP COLUMN delivery_inferred,
    DROP COLUMN quoted_waha_id,
    DROP COLUMN edits,
    DROP COLUMN original_body,
    DROP COLUMN is_stub,
    DROP COLUMN erased_at;
ALTER TABLE known_chats RENAME CONSTRAINT known_chats_tenant_id_session_id_fkey TO conversations_tenant_id_session_id_fkey;
ALTER INDEX known_chats_pkey RENAME TO conversations_pkey;
ALTER TABLE known_chats RENAME TO conversations;
