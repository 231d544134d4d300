//! One row per tenant table and tenant, made from the catalogue, so that a new table is covered the day it is created.

use std::collections::BTreeMap;

use tokio_postgres::Client;
use uuid::Uuid;

/// A foreign key: the column, the parent and its column, pairwise.
#[derive(Clone, Debug)]
pub struct ForeignKey {
    pub name: String,
    pub parent: String,
    pub columns: Vec<(String, String)>,
}

/// A table as far as rows are concerned.
#[derive(Clone, Debug)]
pub struct Table {
    pub name: String,
    /// `tenant_id`, or `id` of `tenants`; `None` in a table above tenants.
    pub tenant_column: Option<String>,
    /// Columns without which no row can be written, with their types and check constraints.
    required: Vec<(String, String, String)>,
    pub columns: Vec<String>,
    pub foreign_keys: Vec<ForeignKey>,
}

/// Values of a row, as SQL literals.
pub type Row = BTreeMap<String, String>;

/// Every table of ours, parents first.
pub async fn tables(client: &Client) -> Vec<Table> {
    let mut waiting = Vec::new();
    let names = client
        .query(
            "SELECT relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')
                AND relname <> '__diesel_schema_migrations' ORDER BY 1",
            &[],
        )
        .await
        .unwrap();
    for name in names {
        waiting.push(table(client, name.get(0)).await);
    }
    let mut sorted: Vec<Table> = Vec::new();
    while !waiting.is_empty() {
        let free = waiting.iter().position(|table| {
            let mut parents = table.foreign_keys.iter().map(|key| &key.parent);
            parents.all(|parent| *parent == table.name || sorted.iter().any(|sorted| sorted.name == *parent))
        });
        sorted.push(waiting.remove(free.expect("foreign keys form no circle")));
    }
    sorted
}

async fn table(client: &Client, name: String) -> Table {
    let columns = client
        .query(
            "SELECT attname::text, format_type(atttypid, NULL), attnotnull AND NOT atthasdef AND attidentity = '',
                    coalesce((SELECT string_agg(pg_get_constraintdef(oid), ' ') FROM pg_constraint
                               WHERE conrelid = attrelid AND contype = 'c' AND conkey = ARRAY[attnum]), '')
               FROM pg_attribute WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
            &[&name],
        )
        .await
        .unwrap();
    let keys = client
        .query(
            "SELECT conname::text, confrelid::regclass::text,
                    ARRAY(SELECT attname::text FROM unnest(conkey) WITH ORDINALITY AS k (n, place)
                            JOIN pg_attribute ON attrelid = conrelid AND attnum = n ORDER BY place),
                    ARRAY(SELECT attname::text FROM unnest(confkey) WITH ORDINALITY AS k (n, place)
                            JOIN pg_attribute ON attrelid = confrelid AND attnum = n ORDER BY place)
               FROM pg_constraint WHERE contype = 'f' AND conrelid = $1::text::regclass",
            &[&name],
        )
        .await
        .unwrap();
    let names: Vec<String> = columns.iter().map(|column| column.get(0)).collect();
    let tenant = if name == "tenants" { "id" } else { "tenant_id" };
    Table {
        tenant_column: names.iter().find(|column| *column == tenant).cloned(),
        required: columns
            .iter()
            .filter(|column| column.get(2))
            .map(|column| (column.get(0), column.get(1), column.get(3)))
            .collect(),
        columns: names,
        foreign_keys: keys
            .iter()
            .map(|key| ForeignKey {
                name: key.get(0),
                parent: key.get(1),
                columns: key.get::<_, Vec<String>>(2).into_iter().zip(key.get::<_, Vec<String>>(3)).collect(),
            })
            .collect(),
        name,
    }
}

impl Table {
    /// A row that the table would take: fresh ids, the parents in `parents`, and `tenant`. `number` keeps names apart.
    pub fn row(&self, tenant: Uuid, parents: &BTreeMap<String, Row>, number: u32) -> Row {
        let mut row = Row::new();
        for (column, sql_type, check) in &self.required {
            row.insert(column.clone(), value(sql_type, check, number));
        }
        // What may point at a row of the same table need not.
        for key in self.foreign_keys.iter().filter(|key| key.parent != self.name) {
            for (column, parent_column) in &key.columns {
                row.insert(column.clone(), parents[&key.parent][parent_column].clone());
            }
        }
        if let Some(column) = &self.tenant_column {
            row.insert(column.clone(), format!("'{tenant}'"));
        }
        row
    }

    /// The statement that inserts `row`.
    pub fn insert(&self, row: &Row) -> String {
        let columns: Vec<String> = row.keys().map(|column| format!("\"{column}\"")).collect();
        let values: Vec<&str> = row.values().map(String::as_str).collect();
        format!("INSERT INTO {} ({}) VALUES ({})", self.name, columns.join(", "), values.join(", "))
    }
}

/// A literal of the type that satisfies the check: of a list of words the first, of a fixed length that length.
fn value(sql_type: &str, check: &str, number: u32) -> String {
    match sql_type {
        "uuid" => "gen_random_uuid()".to_owned(),
        "text" | "character varying" => match check.split('\'').nth(1) {
            Some(word) => format!("'{word}'"),
            None => format!("'v{number}'"),
        },
        "jsonb" => "'{}'".to_owned(),
        "tsvector" => "''".to_owned(),
        "timestamp with time zone" => "now()".to_owned(),
        "boolean" => "true".to_owned(),
        "smallint" | "integer" | "bigint" => "1".to_owned(),
        "bytea" => format!("decode(repeat('0{}', 32), 'hex')", number % 10),
        "text[]" => "'{}'".to_owned(),
        other => panic!("no value is known for {other}: add it here"),
    }
}

/// Tenants with one row in every table each, written by the owner of the tables.
#[derive(Debug)]
pub struct Seeded {
    pub tables: Vec<Table>,
    pub tenants: [Uuid; 2],
    /// By table, what was stored for each tenant.
    pub rows: [BTreeMap<String, Row>; 2],
}

/// Fills every table for two tenants.
pub async fn seed(client: &Client) -> Seeded {
    let tables = tables(client).await;
    let tenants = [Uuid::from_u128(0xa), Uuid::from_u128(0xb)];
    let mut rows = [BTreeMap::new(), BTreeMap::new()];
    let mut number = 0;
    for (tenant, stored) in tenants.into_iter().zip(&mut rows) {
        // Forced row-level security holds for the owner too, who is a member of both roles.
        client.batch_execute(&format!("SET app.tenant_id = '{tenant}'")).await.unwrap();
        for table in &tables {
            number += 1;
            // Above tenants, and with one row for all: there already, or one alarm of a kind at a time.
            if ["directory_generation", "operator_alarms", "message_search_backlog"].contains(&table.name.as_str()) {
                continue;
            }
            let statement = table.insert(&table.row(tenant, stored, number));
            let columns: Vec<String> = table.columns.iter().map(|column| format!("\"{column}\"::text")).collect();
            let row = client
                .query_one(&format!("{statement} RETURNING {}", columns.join(", ")), &[])
                .await
                .unwrap_or_else(|fault| panic!("{statement}: {fault:?}"));
            let values = table.columns.iter().enumerate().map(|(index, column)| {
                let text: Option<String> = row.get(index);
                (column.clone(), text.map_or("NULL".to_owned(), |text| format!("'{text}'")))
            });
            stored.insert(table.name.clone(), values.collect());
        }
    }
    client.batch_execute("RESET app.tenant_id").await.unwrap();
    Seeded { tables, tenants, rows }
}
