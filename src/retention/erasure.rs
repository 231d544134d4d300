//! Erasing a person: what they wrote, what was written to them, and everything that names them, wherever a tenant's rows hold it.
//!
//! Guarantee: once a receipt says `done`, nothing from before the request holds the person's numbers, ids, names or texts:
//! not the messages (which stay as rows without content), not their edits, reactions, votes, files, words of the search,
//! events, answers kept for repeats, dead letters or the spool. What still waited to be sent to them was cancelled. An
//! erasure is worked off in steps of a few hundred rows, each a transaction of its own that also moves the receipt on; so a
//! crash or another node goes on where the last step ended, and a step that is repeated finds nothing to do. Until the step
//! that forgets the contact, the contact's own rows say who is meant: a receipt holds nothing personal.
//!
//! What comes or is sent after the request is new, and belongs to a new contact. Texts of others are theirs; only in groups that
//! the person is in are their number and what was quoted of them taken out of those. Whatever a broker or a tenant's own
//! systems have received is out of reach.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::erasure_steps::{self, Done, Running};
use crate::app::App;
use crate::db::{DbError, Prepare, TenantConn, sql};
use crate::domain::chance::Chance;
use crate::domain::ids::{ContactId, ErasureId, TenantId};
use crate::media;

/// Between two steps, so that everybody else has his turn.
const PAUSE: Duration = Duration::from_millis(10);
/// How long one that failed is left alone.
const LATER: TimeDelta = TimeDelta::seconds(60);

/// The receipt of an erasure.
#[derive(Clone, Debug, Serialize, QueryableByName, ToSchema)]
#[schema(example = json!({
    "id": "01994f3e-4444-7cc3-98d5-8f1c1f0a2b3c", "contact_id": "01994f3e-5555-7cc3-98d5-8f1c1f0a2b3c", "status": "done",
    "requested_by": "api_key:01994f3e-6666-7cc3-98d5-8f1c1f0a2b3c", "messages": 12, "cancelled": 1, "events": 40, "files": 2,
    "created_at": "2026-11-21T09:30:00Z", "finished_at": "2026-11-21T09:30:02Z"
}))]
pub struct Erasure {
    /// Its id.
    #[diesel(sql_type = SqlUuid)]
    pub id: ErasureId,
    /// The contact that was erased.
    #[diesel(sql_type = SqlUuid)]
    pub contact_id: ContactId,
    /// `pending`, `running` or `done`.
    #[diesel(sql_type = Text)]
    pub status: String,
    /// Who asked for it: `api_key:<id>`, `platform_key:<id>` or `platform`.
    #[diesel(sql_type = Text)]
    pub requested_by: String,
    /// Messages that were emptied.
    #[diesel(sql_type = BigInt)]
    pub messages: i64,
    /// Of those, the ones that had not been sent and were cancelled.
    #[diesel(sql_type = BigInt)]
    pub cancelled: i64,
    /// Events that were emptied.
    #[diesel(sql_type = BigInt)]
    pub events: i64,
    /// Files that were removed.
    #[diesel(sql_type = BigInt)]
    pub files: i64,
    /// When it was asked for. What came after that is not part of it.
    #[diesel(sql_type = Timestamptz)]
    pub created_at: DateTime<Utc>,
    /// When nothing was left.
    #[diesel(sql_type = Nullable<Timestamptz>)]
    #[schema(required)]
    pub finished_at: Option<DateTime<Utc>>,
}

macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT id, contact_id, status, requested_by, messages, cancelled, events, files, created_at, finished_at FROM erasures \
             WHERE tenant_id = $1 AND ",
            $rest
        )
    };
}

/// Asks for the erasure of `contact`; of one that was merged into another, of that one. Answers the receipt, the earlier one
/// where there is one; `None` when this tenant has no such contact.
///
/// # Errors
/// When the database refuses; the transaction then must not be committed.
pub async fn begin(
    conn: &mut TenantConn,
    chance: &Chance,
    now: DateTime<Utc>,
    contact: ContactId,
    by: &str,
) -> Result<Option<Erasure>, DbError> {
    #[derive(QueryableByName)]
    struct Root {
        #[diesel(sql_type = SqlUuid)]
        id: ContactId,
        #[diesel(sql_type = Nullable<Timestamptz>)]
        erased_at: Option<DateTime<Utc>>,
    }
    let tenant = conn.tenant();
    // Locked, so that of two that ask at once the second finds the first one's receipt.
    let found: Vec<Root> = sql("SELECT id, erased_at FROM contacts WHERE tenant_id = $1 AND id = ( \
             WITH RECURSIVE up AS ( \
                 SELECT id, merged_into FROM contacts WHERE tenant_id = $1 AND id = $2 \
                 UNION SELECT c.id, c.merged_into FROM contacts c JOIN up ON c.id = up.merged_into WHERE c.tenant_id = $1) \
             SELECT id FROM up WHERE merged_into IS NULL) FOR UPDATE")
    .bind::<SqlUuid, _>(tenant)
    .bind::<SqlUuid, _>(contact)
    .prepared()
    .load(&mut **conn)
    .await?;
    let Some(root) = found.into_iter().next() else { return Ok(None) };
    let earlier: Vec<Erasure> = sql(select!("contact_id = $2 ORDER BY created_at DESC LIMIT 1"))
        .bind::<SqlUuid, _>(tenant)
        .bind::<SqlUuid, _>(root.id)
        .prepared()
        .load(&mut **conn)
        .await?;
    let earlier = earlier.into_iter().next();
    if let Some(earlier) = earlier.filter(|receipt| receipt.finished_at.is_none() || root.erased_at.is_some()) {
        return Ok(Some(earlier));
    }
    let id = ErasureId::fresh(now, chance);
    sql("INSERT INTO erasures (tenant_id, id, contact_id, requested_by, due_at, created_at, updated_at) \
         VALUES ($1, $2, $3, $4, $5, $5, $5)")
    .bind::<SqlUuid, _>(tenant)
    .bind::<SqlUuid, _>(id)
    .bind::<SqlUuid, _>(root.id)
    .bind::<Text, _>(by)
    .bind::<Timestamptz, _>(now)
    .prepared()
    .execute(&mut **conn)
    .await?;
    find(conn, id).await
}

/// The receipt `id`, if this tenant has it.
///
/// # Errors
/// When the database does not answer.
pub async fn find(conn: &mut TenantConn, id: ErasureId) -> Result<Option<Erasure>, DbError> {
    let rows: Vec<Erasure> = sql(select!("id = $2"))
        .bind::<SqlUuid, _>(conn.tenant())
        .bind::<SqlUuid, _>(id)
        .prepared()
        .load(&mut **conn)
        .await?;
    Ok(rows.into_iter().next())
}

/// The tenant's receipts, newest first, from behind `after` on.
///
/// # Errors
/// When the database does not answer.
pub async fn list(
    conn: &mut TenantConn,
    after: Option<(DateTime<Utc>, Uuid)>,
    limit: i64,
) -> Result<Vec<Erasure>, DbError> {
    let (at, id) = after.unzip();
    Ok(sql(select!(
        "($2::timestamptz IS NULL OR (created_at, id) < ($2, $3)) ORDER BY created_at DESC, id DESC LIMIT $4"
    ))
    .bind::<SqlUuid, _>(conn.tenant())
    .bind::<Nullable<Timestamptz>, _>(at)
    .bind::<Nullable<SqlUuid>, _>(id)
    .bind::<BigInt, _>(limit)
    .prepared()
    .load(&mut **conn)
    .await?)
}

/// Takes every step that is due, of all erasures in turn. Any number of nodes may do so.
///
/// # Errors
/// When the database is away; what was done until then stays done.
pub async fn work(app: &App) -> Result<(), DbError> {
    while let Some(Due { tenant_id: tenant, id, stage }) = next(app).await? {
        // Bytes are not the database's: they go before the step that looks whether they are gone.
        if stage == erasure_steps::MEDIA {
            media::purge(app).await?;
        }
        match step(app, tenant, id).await {
            Ok(true) => {
                metrics::counter!("switchboard_erasures_total").increment(1);
            }
            Ok(false) => {}
            Err(fault) if fault.is_transient() => return Err(fault),
            Err(fault) => {
                tracing::error!(%fault, erasure = %id, "retention: an erasure cannot go on; it is tried again in a minute");
                postpone(app, tenant, id).await?;
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

#[derive(QueryableByName)]
struct Due {
    #[diesel(sql_type = SqlUuid)]
    tenant_id: TenantId,
    #[diesel(sql_type = SqlUuid)]
    id: ErasureId,
    #[diesel(sql_type = Text)]
    stage: String,
}

/// The erasure that has waited longest, of those that no other node is at.
async fn next(app: &App) -> Result<Option<Due>, DbError> {
    let now = app.clock.now();
    let due: Vec<Due> = app
        .db
        .system(async |conn| {
            Ok::<_, DbError>(
                sql("SELECT tenant_id, id, stage FROM erasures WHERE finished_at IS NULL AND due_at <= $1 ORDER BY due_at \
                     LIMIT 1 FOR UPDATE SKIP LOCKED")
                .bind::<Timestamptz, _>(now)
                .prepared()
                .load(&mut **conn)
                .await?,
            )
        })
        .await?;
    Ok(due.into_iter().next())
}

/// Takes one step; whether it was the last one.
async fn step(app: &App, tenant: TenantId, id: ErasureId) -> Result<bool, DbError> {
    let now = app.clock.now();
    let done = app
        .db
        .system(async |conn| {
            let running: Vec<Running> =
                sql("SELECT tenant_id, id, contact_id, stage, place, created_at FROM erasures \
                 WHERE tenant_id = $1 AND id = $2 AND finished_at IS NULL FOR UPDATE SKIP LOCKED")
                .bind::<SqlUuid, _>(tenant)
                .bind::<SqlUuid, _>(id)
                .prepared()
                .load(&mut **conn)
                .await?;
            let Some(running) = running.into_iter().next() else { return Ok(None) };
            let done = erasure_steps::take(conn, &app.chance, now, &running).await?;
            note(conn, now, &running, &done).await?;
            Ok::<_, DbError>(Some(done))
        })
        .await?;
    app.wake.events.notify_one();
    Ok(done.is_some_and(|done| done.finished))
}

/// Writes down how far an erasure has come.
async fn note(
    conn: &mut diesel_async::AsyncPgConnection,
    now: DateTime<Utc>,
    running: &Running,
    done: &Done,
) -> Result<(), DbError> {
    sql("UPDATE erasures SET status = CASE WHEN $3 IS NULL THEN 'running' ELSE 'done' END, finished_at = $3, stage = $4, place = $5, \
            due_at = $6, messages = messages + $7, cancelled = cancelled + $8, events = events + $9, files = files + $10, updated_at = $11 \
         WHERE tenant_id = $1 AND id = $2")
    .bind::<SqlUuid, _>(running.tenant_id)
    .bind::<SqlUuid, _>(running.id)
    .bind::<Nullable<Timestamptz>, _>(done.finished.then_some(now))
    .bind::<Text, _>(done.stage)
    .bind::<Nullable<diesel::sql_types::Jsonb>, _>(&done.place)
    .bind::<Timestamptz, _>(now + done.pause)
    .bind::<BigInt, _>(done.messages)
    .bind::<BigInt, _>(done.cancelled)
    .bind::<BigInt, _>(done.events)
    .bind::<BigInt, _>(done.files)
    .bind::<Timestamptz, _>(now)
    .prepared()
    .execute(conn)
    .await?;
    Ok(())
}

async fn postpone(app: &App, tenant: TenantId, id: ErasureId) -> Result<(), DbError> {
    let due = app.clock.now() + LATER;
    app.db
        .system(async |conn| {
            sql("UPDATE erasures SET due_at = $3 WHERE tenant_id = $1 AND id = $2")
                .bind::<SqlUuid, _>(tenant)
                .bind::<SqlUuid, _>(id)
                .bind::<Timestamptz, _>(due)
                .prepared()
                .execute(&mut **conn)
                .await
                .map(drop)
                .map_err(DbError::from)
        })
        .await
}
