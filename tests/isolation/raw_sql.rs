//! Whatever statement is smuggled into a tenant's transaction: other tenants' rows stay out of reach.

use switchboard::db::{Db, DbConfig, DbError};
use switchboard::domain::ids::TenantId;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::connections::{Facts, facts};
use super::rows::{Table, seed};
use crate::support::TestDb;

/// Runs `statement` in a transaction of its own and takes it back; answers the rows it touched or its error's code.
async fn attempt(client: &Client, begin: &str, statement: &str) -> Result<u64, SqlState> {
    client.batch_execute(begin).await.unwrap();
    let result = client.execute(statement, &[]).await;
    client.batch_execute("ROLLBACK").await.unwrap();
    result.map_err(|fault| fault.code().unwrap_or_else(|| panic!("{statement}: {fault:?}")).clone())
}

fn is_nothing(result: &Result<u64, SqlState>) -> bool {
    matches!(result, Ok(0)) || *result == Err(SqlState::INSUFFICIENT_PRIVILEGE)
}

fn tenant_tables(tables: &[Table]) -> impl Iterator<Item = (&Table, &str)> {
    tables.iter().filter_map(|table| Some((table, table.tenant_column.as_deref()?)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_tenants_rows_are_out_of_reach() {
    let db = TestDb::create().await;
    let client = db.connect().await;
    let seeded = seed(&client).await;
    let [us, them] = seeded.tenants;
    let begin = format!("BEGIN; SET LOCAL ROLE switchboard_tenant; SET LOCAL app.tenant_id = '{us}'");
    let (mut visible, mut writable) = (0, 0);
    for (table, tenant) in tenant_tables(&seeded.tables) {
        let name = &table.name;
        let own = attempt(&client, &begin, &format!("SELECT 1 FROM {name}")).await;
        assert!(own == Ok(1) || own == Err(SqlState::INSUFFICIENT_PRIVILEGE), "{name}: of its own rows: {own:?}");
        visible += u32::from(own.is_ok());
        let mut statements = vec![
            format!("SELECT 1 FROM {name} WHERE {tenant} = '{them}'"),
            format!("SELECT 1 FROM {name} WHERE {tenant} <> '{us}'"),
            format!("SELECT 1 FROM {name} WHERE {tenant} = '{them}' FOR UPDATE"),
            format!("DELETE FROM {name} WHERE {tenant} = '{them}'"),
        ];
        for column in &table.columns {
            statements.push(format!("UPDATE {name} SET \"{column}\" = \"{column}\" WHERE {tenant} = '{them}'"));
        }
        for statement in statements {
            // Identity columns can only be set to DEFAULT, whoever asks.
            let result = attempt(&client, &begin, &statement).await;
            let refused = is_nothing(&result) || result == Err(SqlState::GENERATED_ALWAYS);
            assert!(refused, "{statement}: {result:?}");
        }
        let moved = attempt(&client, &begin, &format!("UPDATE {name} SET {tenant} = '{them}'")).await;
        assert_eq!(moved, Err(SqlState::INSUFFICIENT_PRIVILEGE), "{name}: a row was given away");
        // Their parents exist, so nothing but the policy can refuse these.
        let foreign = table.insert(&table.row(them, &seeded.rows[1], 77));
        let result = attempt(&client, &begin, &foreign).await;
        assert_eq!(result, Err(SqlState::INSUFFICIENT_PRIVILEGE), "{foreign}");
        let own = attempt(&client, &begin, &table.insert(&table.row(us, &seeded.rows[0], 78))).await;
        writable += u32::from(own == Ok(1));
        let truncated = attempt(&client, &begin, &format!("TRUNCATE {name} CASCADE")).await;
        assert_eq!(truncated, Err(SqlState::INSUFFICIENT_PRIVILEGE), "TRUNCATE {name}");
    }
    assert!(
        visible >= 10 && writable >= 5,
        "otherwise the refusals prove little: {visible} visible, {writable} writable"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_tenant_there_is_nothing() {
    let db = TestDb::create().await;
    let client = db.connect().await;
    let seeded = seed(&client).await;
    let unnamed = "BEGIN; SET LOCAL ROLE switchboard_tenant";
    // A setting that was made local once is an empty text afterwards, not absent.
    let emptied = "BEGIN; SET LOCAL ROLE switchboard_tenant; SET LOCAL app.tenant_id = ''";
    for begin in [unnamed, emptied] {
        client.batch_execute(begin).await.unwrap();
        let tenant = client.query_one("SELECT current_tenant() IS NULL", &[]).await.unwrap();
        assert!(tenant.get::<_, bool>(0));
        client.batch_execute("ROLLBACK").await.unwrap();
        for (table, _) in tenant_tables(&seeded.tables) {
            let seen = attempt(&client, begin, &format!("SELECT 1 FROM {}", table.name)).await;
            assert!(is_nothing(&seen), "{}: {seen:?}", table.name);
            let row = table.row(seeded.tenants[0], &seeded.rows[0], 79);
            let written = attempt(&client, begin, &table.insert(&row)).await;
            assert_eq!(written, Err(SqlState::INSUFFICIENT_PRIVILEGE), "{}", table.name);
        }
    }
    let garbage = "BEGIN; SET LOCAL ROLE switchboard_tenant; SET LOCAL app.tenant_id = 'x'' OR true --'";
    let refused = attempt(&client, garbage, "SELECT 1 FROM messages").await;
    assert_eq!(refused, Err(SqlState::INVALID_TEXT_REPRESENTATION));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn above_tenants_a_row_still_cannot_point_at_another_tenants() {
    let db = TestDb::create().await;
    let client = db.connect().await;
    let seeded = seed(&client).await;
    let [us, _] = seeded.tenants;
    let mut tried = 0;
    for (table, _) in tenant_tables(&seeded.tables) {
        for key in &table.foreign_keys {
            let of_a_tenant = tenant_tables(&seeded.tables).any(|(parent, _)| parent.name == key.parent);
            if key.parent == "tenants" || !of_a_tenant {
                continue;
            }
            let mut row = table.row(us, &seeded.rows[0], 80);
            for (column, parent_column) in key.columns.iter().filter(|(column, _)| column != "tenant_id") {
                row.insert(column.clone(), seeded.rows[1][&key.parent][parent_column].clone());
            }
            // Two keys may share a column; only those of this one are foreign now, which is enough.
            let mut begin = format!("BEGIN; SET LOCAL app.tenant_id = '{us}'");
            // Where there is one row per parent, theirs would be in the way before the key is looked at.
            if !seeded.tables.iter().any(|other| other.foreign_keys.iter().any(|key| key.parent == table.name)) {
                begin.push_str(&format!("; DELETE FROM {}", table.name));
            }
            let refused = attempt(&client, &begin, &table.insert(&row)).await;
            assert_eq!(refused, Err(SqlState::FOREIGN_KEY_VIOLATION), "{}.{}", table.name, key.name);
            tried += 1;
        }
    }
    assert!(tried >= 6, "only {tried} foreign keys were tried");

    let messages = seeded.tables.iter().find(|table| table.name == "messages").unwrap();
    let mut row = messages.row(us, &seeded.rows[0], 81);
    assert_eq!(attempt(&client, "BEGIN; SET LOCAL ROLE switchboard_system", &messages.insert(&row)).await, Ok(1));
    row.insert("session_id".to_owned(), seeded.rows[1]["waha_sessions"]["id"].clone());
    let refused = attempt(&client, "BEGIN; SET LOCAL ROLE switchboard_system", &messages.insert(&row)).await;
    assert_eq!(refused, Err(SqlState::FOREIGN_KEY_VIOLATION), "a message for another tenant's session");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pooled_connection_forgets_its_tenant() {
    let db = TestDb::create().await;
    let seeded = seed(&db.connect().await).await;
    let pool = Db::open(&DbConfig { max_connections: 1, ..db.config() }).unwrap();
    let [us, _] = seeded.tenants;
    let inside: Facts = pool.tenant(TenantId(us), async |conn| facts(conn).await).await.unwrap();
    assert_eq!((inside.role.as_str(), inside.tenant.as_str()), ("switchboard_tenant", us.to_string().as_str()));
    assert_eq!((inside.tenants, inside.messages), (1, 1), "its own rows");
    let after: Facts = pool.system(async |conn| facts(conn).await).await.unwrap();
    assert_eq!(after.pid, inside.pid, "the same connection");
    assert_eq!((after.role.as_str(), after.tenant.as_str()), ("switchboard_system", ""));
    assert_eq!((after.tenants, after.messages), (2, 2));

    let failed: Result<Facts, DbError> =
        pool.tenant(TenantId(us), async |_| Err(DbError::Refused("on purpose".to_owned()))).await;
    assert!(matches!(failed, Err(DbError::Refused(_))));
    let after: Facts = pool.system(async |conn| facts(conn).await).await.unwrap();
    assert_eq!((after.pid, after.role.as_str(), after.tenant.as_str()), (inside.pid, "switchboard_system", ""));
}
