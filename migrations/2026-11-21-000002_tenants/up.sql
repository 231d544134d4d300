-- Nodes cache keys, sessions and servers; they drop their caches when this number moves (see db::directory).
CREATE TABLE directory_generation (
    only_row   boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    generation bigint NOT NULL DEFAULT 0
);
INSERT INTO directory_generation DEFAULT VALUES;
GRANT SELECT ON directory_generation TO switchboard_system;

CREATE FUNCTION bump_directory_generation() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    UPDATE directory_generation SET generation = generation + 1;
    RETURN NULL;
END
$$;

CREATE TABLE tenants (
    id          uuid PRIMARY KEY,
    name        varchar(100) NOT NULL,
    status      text NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'inactive')),
    description text,
    settings    jsonb NOT NULL DEFAULT '{}',
    version     bigint NOT NULL DEFAULT 1,
    created_at  timestamptz NOT NULL,
    updated_at  timestamptz NOT NULL,
    deleted_at  timestamptz
);
CREATE UNIQUE INDEX tenants_name ON tenants (name) WHERE deleted_at IS NULL;
ALTER TABLE tenants ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY own_row ON tenants TO switchboard_tenant USING (id = current_tenant()) WITH CHECK (id = current_tenant());
CREATE POLICY all_rows ON tenants TO switchboard_system USING (true) WITH CHECK (true);
GRANT SELECT ON tenants TO switchboard_tenant;
GRANT UPDATE (description, settings, version, updated_at) ON tenants TO switchboard_tenant;
GRANT SELECT, INSERT, UPDATE ON tenants TO switchboard_system;
CREATE TRIGGER tenants_directory AFTER UPDATE ON tenants
    FOR EACH STATEMENT EXECUTE FUNCTION bump_directory_generation();

CREATE TABLE users (
    tenant_id     uuid NOT NULL REFERENCES tenants,
    id            uuid NOT NULL,
    email         varchar(255) NOT NULL,
    password_hash text NOT NULL,
    first_name    varchar(50) NOT NULL,
    last_name     varchar(50) NOT NULL,
    role          text NOT NULL CHECK (role IN ('TENANT_ADMIN', 'MANAGER', 'AGENT', 'AUDITOR')),
    is_active     boolean NOT NULL DEFAULT true,
    last_login_at timestamptz,
    preferences   jsonb NOT NULL DEFAULT '{}',
    version       bigint NOT NULL DEFAULT 1,
    created_at    timestamptz NOT NULL,
    updated_at    timestamptz NOT NULL,
    deleted_at    timestamptz,
    PRIMARY KEY (tenant_id, id)
);
CREATE UNIQUE INDEX users_email ON users (tenant_id, lower(email)) WHERE deleted_at IS NULL;
ALTER TABLE users ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON users TO switchboard_tenant
    USING (tenant_id = current_tenant()) WITH CHECK (tenant_id = current_tenant());
GRANT SELECT, INSERT, UPDATE ON users TO switchboard_tenant;

CREATE TABLE api_keys (
    tenant_id    uuid NOT NULL REFERENCES tenants,
    id           uuid NOT NULL,
    name         varchar(100) NOT NULL,
    prefix       varchar(20) NOT NULL UNIQUE,
    secret_hash  bytea NOT NULL CHECK (octet_length(secret_hash) = 32),
    scopes       text[] NOT NULL,
    expires_at   timestamptz,
    last_used_at timestamptz,
    version      bigint NOT NULL DEFAULT 1,
    created_at   timestamptz NOT NULL,
    updated_at   timestamptz NOT NULL,
    deleted_at   timestamptz,
    PRIMARY KEY (tenant_id, id)
);
ALTER TABLE api_keys ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON api_keys TO switchboard_tenant
    USING (tenant_id = current_tenant()) WITH CHECK (tenant_id = current_tenant());
-- Before the tenant is known a key is looked up by its prefix.
CREATE POLICY all_rows ON api_keys TO switchboard_system USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, UPDATE ON api_keys TO switchboard_tenant;
GRANT SELECT, INSERT ON api_keys TO switchboard_system;
GRANT UPDATE (last_used_at) ON api_keys TO switchboard_system;
CREATE TRIGGER api_keys_directory AFTER UPDATE OF secret_hash, scopes, expires_at, deleted_at ON api_keys
    FOR EACH STATEMENT EXECUTE FUNCTION bump_directory_generation();

-- Keys above tenants, minted by the command line.
CREATE TABLE platform_keys (
    id          uuid PRIMARY KEY,
    name        varchar(100) NOT NULL,
    prefix      varchar(20) NOT NULL UNIQUE,
    secret_hash bytea NOT NULL CHECK (octet_length(secret_hash) = 32),
    created_at  timestamptz NOT NULL,
    updated_at  timestamptz NOT NULL,
    deleted_at  timestamptz
);
GRANT SELECT, INSERT, UPDATE ON platform_keys TO switchboard_system;
CREATE TRIGGER platform_keys_directory AFTER UPDATE ON platform_keys
    FOR EACH STATEMENT EXECUTE FUNCTION bump_directory_generation();
