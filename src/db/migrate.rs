//! Schema migrations, built into the binary. One node migrates at a time; the others wait and then find nothing to do.

use diesel_async::{AsyncConnection, AsyncMigrationHarness, AsyncPgConnection, SimpleAsyncConnection};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};
use secrecy::{ExposeSecret, SecretString};

use super::DbError;

const MIGRATIONS: EmbeddedMigrations = embed_migrations!("migrations");

/// Roles belong to the whole cluster, so the lock does too: it is taken in whatever database is migrated, and the
/// migrations themselves tolerate another database of the same cluster being migrated at the same moment.
const LOCK: &str = "SELECT pg_advisory_lock(hashtext('switchboard.migrate'))";

/// Applies what is pending; answers the versions applied. Needs a multi-thread runtime.
///
/// # Errors
/// When the database cannot be reached or a migration fails; a failed one leaves no trace.
pub async fn up(url: &SecretString) -> Result<Vec<String>, DbError> {
    run(url, |harness| Ok(harness.run_pending_migrations(MIGRATIONS)?.iter().map(ToString::to_string).collect())).await
}

/// Takes back the latest `count` migrations, newest first; answers their versions. Needs a multi-thread runtime.
///
/// # Errors
/// When the database cannot be reached or a migration fails.
pub async fn down(url: &SecretString, count: usize) -> Result<Vec<String>, DbError> {
    run(url, move |harness| {
        let mut reverted = Vec::new();
        for _ in 0..count.min(harness.applied_migrations()?.len()) {
            reverted.push(harness.revert_last_migration(MIGRATIONS)?.to_string());
        }
        Ok(reverted)
    })
    .await
}

type MigrationResult = Result<Vec<String>, Box<dyn std::error::Error + Send + Sync>>;

async fn run(
    url: &SecretString,
    work: impl FnOnce(&mut AsyncMigrationHarness<AsyncPgConnection>) -> MigrationResult + Send + 'static,
) -> Result<Vec<String>, DbError> {
    let url = url.clone();
    // The harness blocks its thread and drives its own futures; in a task of its own it holds up no sibling's.
    let running = tokio::spawn(async move {
        let mut conn = AsyncPgConnection::establish(url.expose_secret())
            .await
            .map_err(|fault| DbError::Unavailable(fault.to_string()))?;
        // The lock ends with the connection.
        conn.batch_execute(LOCK).await?;
        let mut harness = AsyncMigrationHarness::new(conn);
        work(&mut harness).map_err(|fault| DbError::Refused(format!("migration: {fault}")))
    });
    running.await.unwrap_or_else(|ended| Err(DbError::Unavailable(ended.to_string())))
}
