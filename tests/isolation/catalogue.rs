//! The rules of isolation, read from the catalogue: they hold for tables that nobody has thought of yet.

use tokio_postgres::Client;

use crate::support::TestDb;

/// A query whose every row is a fault. `tenant_tables` is every table with a `tenant_id`, and `tenants` itself.
const RULES: [(&str, &str); 13] = [
    ("row-level security is not enabled", "SELECT name FROM tenant_tables WHERE NOT enabled"),
    ("row-level security is not forced", "SELECT name FROM tenant_tables WHERE NOT forced"),
    (
        "there is no policy",
        "SELECT name FROM tenant_tables WHERE NOT EXISTS (SELECT FROM pg_policy WHERE polrelid = tenant_tables.oid)",
    ),
    (
        "a policy is for a role that is not ours",
        "SELECT tablename || '.' || policyname || ' for ' || roles::text FROM pg_policies
          WHERE NOT roles <@ ARRAY['switchboard_tenant', 'switchboard_system']::name[]",
    ),
    (
        "a policy of tenants does not hold them to their own rows, in reading and in writing",
        // Permissive policies add up, so one that allows more would undo the others.
        "SELECT tablename || '.' || policyname FROM pg_policies
          WHERE 'switchboard_tenant' = ANY (roles) AND permissive = 'PERMISSIVE'
            AND (qual IS DISTINCT FROM own OR with_check IS DISTINCT FROM own)",
    ),
    (
        "tenants have a privilege on a table that has no policy for them",
        "SELECT name || ' ' || privilege FROM relations, unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'REFERENCES']) privilege
          WHERE kind <> 'S' AND has_any_column_privilege('switchboard_tenant', oid, privilege)
            AND NOT EXISTS (SELECT FROM pg_policies WHERE tablename = name AND 'switchboard_tenant' = ANY (roles))",
    ),
    (
        "a run-time role may do what row-level security does not see",
        "SELECT name || ' ' || privilege || ' for ' || role FROM relations, unnest(ARRAY['TRUNCATE', 'TRIGGER']) privilege,
                unnest(ARRAY['switchboard_tenant', 'switchboard_system']) role
          WHERE kind <> 'S' AND has_table_privilege(role, oid, privilege)",
    ),
    (
        "a foreign key between tenants' tables does not carry the tenant",
        "SELECT conrelid::regclass || '.' || conname FROM pg_constraint
           JOIN tenant_tables child ON child.oid = conrelid
           JOIN tenant_tables parent ON parent.oid = confrelid
          WHERE contype = 'f' AND NOT EXISTS (
                SELECT FROM unnest(conkey, confkey) AS pair (child_column, parent_column)
                 WHERE child_column = child.tenant_column AND parent_column = parent.tenant_column)",
    ),
    (
        "a run-time role has too much power",
        "SELECT rolname FROM pg_roles
          WHERE rolname IN ('switchboard_tenant', 'switchboard_system')
            AND (rolsuper OR rolbypassrls OR rolcreatedb OR rolcreaterole OR rolreplication OR rolcanlogin)",
    ),
    (
        "a run-time role is a member of another role",
        "SELECT pg_get_userbyid(member) || ' of ' || pg_get_userbyid(roleid) FROM pg_auth_members
          WHERE pg_get_userbyid(member) IN ('switchboard_tenant', 'switchboard_system')",
    ),
    (
        "a run-time role owns something",
        "SELECT name FROM relations WHERE owner IN ('switchboard_tenant', 'switchboard_system')
          UNION ALL SELECT proname FROM pg_proc WHERE pg_get_userbyid(proowner) IN ('switchboard_tenant', 'switchboard_system')",
    ),
    (
        "something is granted to PUBLIC",
        "SELECT name || ' ' || privilege_type FROM relations, aclexplode(acl) WHERE grantee = 0
          UNION ALL
         SELECT attrelid::regclass || '.' || attname || ' ' || privilege_type
           FROM pg_attribute JOIN relations ON oid = attrelid, aclexplode(attacl) WHERE grantee = 0
          UNION ALL
         SELECT 'schema public ' || privilege_type
           FROM pg_namespace, aclexplode(nspacl)
          WHERE nspname = 'public' AND grantee = 0 AND privilege_type <> 'USAGE'
          UNION ALL
         SELECT 'default privileges of ' || pg_get_userbyid(defaclrole) FROM pg_default_acl, aclexplode(defaclacl)
          WHERE grantee = 0",
    ),
    (
        "a view reads with its owner's rights",
        "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace
            AND (relkind = 'm' OR relkind = 'v' AND NOT coalesce('security_invoker=true' = ANY (reloptions), false))",
    ),
];

/// What the rules speak of.
const TERMS: &str = "
    CREATE TEMPORARY VIEW relations AS
        SELECT oid, relname::text AS name, relkind AS kind, relrowsecurity AS enabled, relforcerowsecurity AS forced,
               pg_get_userbyid(relowner) AS owner, relacl AS acl
          FROM pg_class
         WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'v', 'm', 'S', 'f');
    CREATE TEMPORARY VIEW tenant_tables AS
        SELECT relations.*, attnum AS tenant_column
          FROM relations JOIN pg_attribute ON attrelid = oid AND NOT attisdropped
           AND attname = CASE name WHEN 'tenants' THEN 'id' ELSE 'tenant_id' END
         WHERE kind IN ('r', 'p');
    CREATE TEMPORARY VIEW pg_policies AS
        SELECT policies.*,
               CASE tablename WHEN 'tenants' THEN '(id = current_tenant())' ELSE '(tenant_id = current_tenant())' END AS own
          FROM pg_catalog.pg_policies policies WHERE schemaname = 'public'";

/// Every breach of the rules in this database, each as `rule: what breaks it`.
pub async fn faults(client: &Client) -> Vec<String> {
    client.batch_execute("BEGIN; SET LOCAL search_path = pg_temp, public, pg_catalog").await.unwrap();
    client.batch_execute(TERMS).await.unwrap();
    let mut faults = Vec::new();
    for (rule, query) in RULES {
        let rows = client.query(query, &[]).await.unwrap_or_else(|fault| panic!("{rule}: {fault:?}"));
        faults.extend(rows.iter().map(|row| {
            let what: String = row.try_get(0).unwrap_or_else(|fault| panic!("{rule}: {fault}"));
            format!("{rule}: {what}")
        }));
    }
    client.batch_execute("ROLLBACK").await.unwrap();
    faults
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_schema_isolates_tenants() {
    let db = TestDb::create().await;
    let found = faults(&db.connect().await).await;
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// A check that finds nothing proves something only if it would find what it looks for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_breach_is_found() {
    let db = TestDb::create().await;
    let client = db.connect().await;
    let breaches = [
        ("ALTER TABLE messages NO FORCE ROW LEVEL SECURITY", "row-level security is not forced: messages"),
        ("ALTER TABLE lanes DISABLE ROW LEVEL SECURITY", "row-level security is not enabled: lanes"),
        ("DROP POLICY own_row ON tenants; DROP POLICY all_rows ON tenants", "there is no policy: tenants"),
        ("DROP POLICY all_rows ON spool", "there is no policy: spool"),
        (
            "DROP POLICY own_tenant ON messages",
            "tenants have a privilege on a table that has no policy for them: messages SELECT",
        ),
        (
            "ALTER POLICY own_tenant ON users WITH CHECK (true)",
            "a policy of tenants does not hold them to their own rows, in reading and in writing: users.own_tenant",
        ),
        (
            "CREATE POLICY extra ON events FOR SELECT TO switchboard_tenant USING (tenant_id = current_tenant())",
            "a policy of tenants does not hold them to their own rows, in reading and in writing: events.extra",
        ),
        (
            "CREATE POLICY open ON events TO PUBLIC USING (true)",
            "a policy is for a role that is not ours: events.open for {public}",
        ),
        (
            "GRANT SELECT (name) ON waha_servers TO switchboard_tenant",
            "tenants have a privilege on a table that has no policy for them: waha_servers SELECT",
        ),
        (
            "GRANT TRUNCATE ON events TO switchboard_system",
            "a run-time role may do what row-level security does not see: events TRUNCATE for switchboard_system",
        ),
        (
            "ALTER TABLE lanes ADD CONSTRAINT lone FOREIGN KEY (session_id) REFERENCES waha_sessions (id)",
            "a foreign key between tenants' tables does not carry the tenant: lanes.lone",
        ),
        ("GRANT SELECT ON events TO PUBLIC", "something is granted to PUBLIC: events SELECT"),
        (
            "GRANT SELECT (url) ON webhook_endpoints TO PUBLIC",
            "something is granted to PUBLIC: webhook_endpoints.url SELECT",
        ),
        ("CREATE VIEW leak AS SELECT * FROM messages", "a view reads with its owner's rights: leak"),
        (
            "CREATE TABLE notes (tenant_id uuid NOT NULL REFERENCES tenants, body text)",
            "row-level security is not enabled: notes",
        ),
        (
            "GRANT CREATE ON SCHEMA public TO switchboard_system; ALTER TABLE event_cursors OWNER TO switchboard_system",
            "a run-time role owns something: event_cursors",
        ),
    ];
    for (breach, fault) in breaches {
        // One transaction around both would nest; so the breach is made for good, in a database of its own.
        let own = TestDb::create().await;
        let client = own.connect().await;
        client.batch_execute(breach).await.expect(breach);
        let found = faults(&client).await;
        assert!(found.iter().any(|found| found == fault), "{breach}: found only {found:?}");
    }
    assert!(faults(&client).await.is_empty(), "the other database is as it was");
}
