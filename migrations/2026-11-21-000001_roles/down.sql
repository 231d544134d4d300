DROP FUNCTION current_tenant();
REVOKE USAGE ON SCHEMA public FROM switchboard_tenant, switchboard_system;
-- Another database may still use the roles; then they stay.
DO $$
DECLARE
    unwanted text;
BEGIN
    FOREACH unwanted IN ARRAY ARRAY['switchboard_tenant', 'switchboard_system'] LOOP
        BEGIN
            EXECUTE format('DROP ROLE IF EXISTS %I', unwanted);
        EXCEPTION WHEN dependent_objects_still_exist OR insufficient_privilege THEN
            NULL;
        END;
    END LOOP;
END
$$;
