DROP TABLE lanes;
DROP TABLE waha_sessions;
DROP TABLE waha_servers;
