//! What goes when it is old, when a person is erased, and what a tenant can take along.

mod erasure;
mod export;
mod sweep;

use std::time::Duration;

use switchboard::app::App;
use switchboard::config::Config;
use switchboard::domain::chance::Chance;
use switchboard::domain::clock::Clock;
use tokio_postgres::Client as Sql;

use crate::support::World;

/// A process without doors and workers, whose clock is so far ahead.
pub fn later(world: &World, by: Duration) -> App {
    let clock = Clock::manual(Clock::running().now() + by);
    App::build(Config::from_settings(world.settings(1)).unwrap(), clock, Chance::from_system()).unwrap()
}

pub const fn days(days: u64) -> Duration {
    Duration::from_secs(days * 86_400)
}

pub async fn count(sql: &Sql, query: &str) -> i64 {
    sql.query_one(query, &[]).await.unwrap_or_else(|fault| panic!("{query}: {fault:?}")).get(0)
}

/// Everything that the database holds, bytes as text.
pub async fn dump(sql: &Sql) -> String {
    sql.batch_execute("SET bytea_output = 'escape'").await.unwrap();
    let tables =
        "SELECT relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' ORDER BY 1";
    let mut text = String::new();
    for table in sql.query(tables, &[]).await.unwrap() {
        let table: String = table.get(0);
        for row in sql.query(&format!("SELECT t::text FROM {table} t"), &[]).await.unwrap() {
            text.push_str(&format!("{table}: {}\n", row.get::<_, String>(0)));
        }
    }
    text
}
