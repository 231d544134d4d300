DROP TABLE platform_keys;
DROP TABLE api_keys;
DROP TABLE users;
DROP TABLE tenants;
DROP FUNCTION bump_directory_generation();
DROP TABLE directory_generation;
