//! A database's schema as text, so that two can be compared line by line.

use tokio_postgres::Client;

/// Everything in the schema `public` but Diesel's own table. Each query answers one column of finished lines; order and
/// names are all that matters, ids of the server never appear.
const PARTS: [(&str, &str); 12] = [
    (
        "schema",
        "SELECT concat_ws(' ', nspname, 'owner', pg_get_userbyid(nspowner), 'acl',
                          (SELECT string_agg(acl::text, ' ' ORDER BY acl::text) FROM unnest(nspacl) acl))
           FROM pg_namespace WHERE nspname NOT LIKE 'pg\\_%' AND nspname <> 'information_schema'",
    ),
    (
        "relation",
        "SELECT concat_ws(' ', relname, relkind, 'owner', pg_get_userbyid(relowner),
                          CASE WHEN relrowsecurity THEN 'rls' END, CASE WHEN relforcerowsecurity THEN 'forced' END,
                          reloptions::text, 'acl',
                          (SELECT string_agg(acl::text, ' ' ORDER BY acl::text) FROM unnest(relacl) acl))
           FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'v', 'm', 'S', 'f')
            AND relname <> '__diesel_schema_migrations'",
    ),
    (
        "column",
        "SELECT concat_ws(' ', relname || '.' || attname, row_number() OVER (PARTITION BY attrelid ORDER BY attnum),
                          format_type(atttypid, atttypmod), CASE WHEN attnotnull THEN 'not null' END,
                          'identity=' || nullif(attidentity::text, ''), 'generated=' || nullif(attgenerated::text, ''),
                          'default ' || pg_get_expr(adbin, adrelid), 'acl ' || attacl::text)
           FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
           LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
          WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'v', 'm') AND attnum > 0
            AND NOT attisdropped AND relname <> '__diesel_schema_migrations'",
    ),
    (
        "constraint",
        "SELECT concat_ws(' ', conrelid::regclass, conname, pg_get_constraintdef(oid),
                          CASE WHEN NOT convalidated THEN 'not valid' END)
           FROM pg_constraint WHERE connamespace = 'public'::regnamespace
            AND conrelid <> coalesce(to_regclass('__diesel_schema_migrations'), 0)",
    ),
    (
        "index",
        "SELECT concat_ws(' ', pg_get_indexdef(indexrelid), CASE WHEN NOT indisvalid THEN 'invalid' END)
           FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
          WHERE relnamespace = 'public'::regnamespace
            AND indrelid <> coalesce(to_regclass('__diesel_schema_migrations'), 0)",
    ),
    (
        "policy",
        "SELECT concat_ws(' ', tablename, policyname, permissive, cmd, roles::text, 'using', qual, 'check', with_check)
           FROM pg_policies",
    ),
    ("trigger", "SELECT concat_ws(' ', pg_get_triggerdef(oid), tgenabled) FROM pg_trigger WHERE NOT tgisinternal"),
    (
        "function",
        "SELECT concat_ws(' ', pg_get_functiondef(oid), 'owner', pg_get_userbyid(proowner), 'acl', proacl::text)
           FROM pg_proc WHERE pronamespace = 'public'::regnamespace AND prokind IN ('f', 'p')",
    ),
    ("view", "SELECT concat_ws(' ', viewname, definition) FROM pg_views WHERE schemaname = 'public'"),
    (
        "type",
        "SELECT concat_ws(' ', typname, typtype, (SELECT string_agg(enumlabel, ',' ORDER BY enumsortorder)
                                                    FROM pg_enum WHERE enumtypid = pg_type.oid))
           FROM pg_type WHERE typnamespace = 'public'::regnamespace AND typtype IN ('e', 'd', 'r')",
    ),
    (
        "default privileges",
        "SELECT concat_ws(' ', pg_get_userbyid(defaclrole), defaclobjtype, defaclacl::text) FROM pg_default_acl",
    ),
    ("extension", "SELECT concat_ws(' ', extname, extversion) FROM pg_extension"),
];

/// The schema, sorted within each kind of thing.
pub async fn dump(client: &Client) -> String {
    let mut text = String::new();
    for (kind, query) in PARTS {
        let rows = client.query(query, &[]).await.unwrap_or_else(|fault| panic!("{kind}: {fault:?}"));
        let mut lines: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        lines.sort();
        for line in lines {
            text.push_str(&format!("{kind}: {line}\n"));
        }
    }
    text
}

/// The lines in which two dumps differ; empty when they are equal.
pub fn difference(before: &str, after: &str) -> String {
    let gone = before.lines().filter(|line| !after.lines().any(|other| other == *line)).map(|line| format!("- {line}"));
    let come = after.lines().filter(|line| !before.lines().any(|other| other == *line)).map(|line| format!("+ {line}"));
    gone.chain(come).collect::<Vec<_>>().join("\n")
}
