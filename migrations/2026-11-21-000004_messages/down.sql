DROP TABLE idempotency_keys;
DROP TABLE early_acks;
DROP TABLE message_transitions;
DROP TABLE messages;
