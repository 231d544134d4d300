DROP TABLE webhook_attempts;
DROP TABLE webhook_deliveries;
DROP FUNCTION delivery_id(uuid, uuid);
DROP TABLE webhook_endpoints;
DROP TABLE event_cursors;
DROP TABLE events;
