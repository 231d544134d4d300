REVOKE DELETE ON known_chats FROM switchboard_system;
REVOKE UPDATE (response_body), DELETE ON webhook_attempts FROM switchboard_system;
REVOKE DELETE ON webhook_deliveries FROM switchboard_system;
REVOKE UPDATE (data), DELETE ON events FROM switchboard_system;
DROP INDEX inbound_dead_letters_body, webhook_attempts_delivery;
ALTER TABLE webhook_deliveries DROP CONSTRAINT webhook_deliveries_event;
ALTER TABLE webhook_deliveries ADD UNIQUE (tenant_id, endpoint_id, event_id);
DROP INDEX messages_sender_alternative, messages_sender,
    messages_media, media_erased;
ALTER TABLE media DROP COLUMN erasure_id;
DROP TABLE erasures, retention_postponed, retention_progress, message_search_backlog, message_search;
DELETE FROM event_cursors WHERE name = 'search';
DROP FUNCTION message_words(text);
DROP TEXT SEARCH CONFIGURATION message_text;
DROP EXTENSION unaccent;
DROP EXTENSION btree_gin;
