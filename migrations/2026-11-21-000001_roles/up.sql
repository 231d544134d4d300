-- Two roles do all work at run time; neither can log in, owns a table or bypasses row-level security.
--   switchboard_tenant  sees the rows of the tenant named by app.tenant_id, and nothing when none is named
--   switchboard_system  does the work above tenants, with its own narrow grants and policies
-- The role that logs in (and migrates) is made a member of both and switches to one of them on every connection.
-- Roles belong to the whole cluster, so another database of ours may have created them, or be creating them right now.
DO $$
DECLARE
    wanted text;
BEGIN
    FOREACH wanted IN ARRAY ARRAY['switchboard_tenant', 'switchboard_system'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = wanted) THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I NOLOGIN NOSUPERUSER NOBYPASSRLS NOCREATEDB NOCREATEROLE', wanted);
            EXCEPTION WHEN duplicate_object OR unique_violation THEN
                NULL;
            END;
        END IF;
        IF NOT pg_has_role(current_user, wanted, 'MEMBER') THEN
            EXECUTE format('GRANT %I TO CURRENT_USER', wanted);
        END IF;
    END LOOP;
END
$$;

GRANT USAGE ON SCHEMA public TO switchboard_tenant, switchboard_system;
REVOKE CREATE ON SCHEMA public FROM PUBLIC;

-- The tenant of the running transaction; NULL, which equals nothing, when none was named.
CREATE FUNCTION current_tenant() RETURNS uuid
    LANGUAGE sql STABLE PARALLEL SAFE
    RETURN nullif(current_setting('app.tenant_id', true), '')::uuid;
