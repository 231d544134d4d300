//! `src/db/schema.rs` is what the database says.

use std::fmt::Write as _;

use tokio_postgres::Client;

use crate::support::TestDb;

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/db/schema.rs");
const COMMAND: &str = "UPDATE_SCHEMA=1 cargo nextest run --test suite schema_file";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_schema_file_agrees_with_the_migrations() {
    let db = TestDb::create().await;
    let generated = generate(&db.connect().await).await;
    if std::env::var_os("UPDATE_SCHEMA").is_some() {
        std::fs::write(FILE, &generated).expect("the file can be written");
    }
    let committed = std::fs::read_to_string(FILE).expect("the file exists");
    let stale = committed.lines().zip(generated.lines()).position(|(committed, generated)| committed != generated);
    assert!(
        committed == generated,
        "src/db/schema.rs is not what the migrations make (first difference in line {}); write it anew:\n  {COMMAND}",
        stale.unwrap_or(committed.lines().count().min(generated.lines().count())) + 1
    );
}

async fn generate(client: &Client) -> String {
    let mut text = format!(
        "//! The tables, as Diesel sees them: written by the test that compares this file with the migrations.\n\
         //!\n\
         //! `{COMMAND}`\n\
         #![expect(missing_docs, reason = \"the migrations describe the tables\")]\n"
    );
    let tables = names(
        client,
        "SELECT relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')
            AND relname <> '__diesel_schema_migrations' ORDER BY 1",
        None,
    )
    .await;
    for table in &tables {
        let key = names(
            client,
            "SELECT attname::text FROM pg_index, unnest(indkey) WITH ORDINALITY AS key (attnum, place)
               JOIN pg_attribute USING (attnum)
              WHERE indrelid = $1::text::regclass AND attrelid = indrelid AND indisprimary ORDER BY place",
            Some(table),
        )
        .await;
        writeln!(text, "\ndiesel::table! {{\n    {table} ({}) {{", key.join(", ")).unwrap();
        let columns = client
            .query(
                "SELECT attname::text, format_type(atttypid, NULL), attnotnull,
                        CASE WHEN atttypid = 'varchar'::regtype AND atttypmod > 4 THEN atttypmod - 4 END
                   FROM pg_attribute WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped
                  ORDER BY attnum",
                &[table],
            )
            .await
            .unwrap();
        for column in columns {
            let (name, sql_type): (String, String) = (column.get(0), column.get(1));
            let mut diesel_type = diesel_type(&sql_type).to_owned();
            if !column.get::<_, bool>(2) {
                diesel_type = format!("Nullable<{diesel_type}>");
            }
            if let Some(length) = column.get::<_, Option<i32>>(3) {
                writeln!(text, "        #[max_length = {length}]").unwrap();
            }
            if is_reserved(&name) {
                writeln!(text, "        #[sql_name = \"{name}\"]\n        {name}_ -> {diesel_type},").unwrap();
            } else {
                writeln!(text, "        {name} -> {diesel_type},").unwrap();
            }
        }
        text.push_str("    }\n}\n");
    }
    text.push('\n');
    let joins = names(
        client,
        "SELECT format('diesel::joinable!(%s -> %s (%s));', conrelid::regclass, confrelid::regclass, attname)
           FROM pg_constraint JOIN pg_attribute ON attrelid = conrelid AND attnum = conkey[1]
          WHERE contype = 'f' AND cardinality(conkey) = 1 AND connamespace = 'public'::regnamespace
            AND confrelid IN (SELECT indrelid FROM pg_index WHERE indisprimary AND indkey::text = confkey[1]::text)
            AND (SELECT count(*) FROM pg_constraint o WHERE o.contype = 'f' AND cardinality(o.conkey) = 1
                  AND o.conrelid = pg_constraint.conrelid AND o.confrelid = pg_constraint.confrelid) = 1
          ORDER BY 1",
        None,
    )
    .await;
    for join in joins {
        writeln!(text, "{join}").unwrap();
    }
    writeln!(text, "\ndiesel::allow_tables_to_appear_in_same_query!(\n    {},\n);", tables.join(",\n    ")).unwrap();
    text
}

async fn names(client: &Client, query: &str, table: Option<&String>) -> Vec<String> {
    let rows = match table {
        Some(table) => client.query(query, &[table]).await,
        None => client.query(query, &[]).await,
    };
    rows.unwrap_or_else(|fault| panic!("{query}: {fault:?}")).iter().map(|row| row.get(0)).collect()
}

fn diesel_type(sql_type: &str) -> &'static str {
    match sql_type {
        "uuid" => "Uuid",
        "text" => "Text",
        "character varying" => "Varchar",
        "jsonb" => "Jsonb",
        "timestamp with time zone" => "Timestamptz",
        "date" => "Date",
        "boolean" => "Bool",
        "smallint" => "Int2",
        "integer" => "Int4",
        "bigint" => "Int8",
        "double precision" => "Double",
        "bytea" => "Bytea",
        // Read and written by statements written by hand only, which never take it out of the database.
        "tsvector" => "Text",
        "text[]" => "Array<Text>",
        "uuid[]" => "Array<Uuid>",
        "timestamp with time zone[]" => "Array<Timestamptz>",
        other => panic!("no Diesel type is known for {other}: add it here"),
    }
}

/// Names that Rust or the macro keeps for itself.
fn is_reserved(name: &str) -> bool {
    matches!(
        name,
        "type" | "ref" | "match" | "move" | "where" | "use" | "in" | "as" | "for" | "loop" | "box" | "static"
    )
}
