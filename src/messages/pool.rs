//! Sender pools: named sets of sessions, and which of them writes to whom.
//!
//! A recipient keeps the session that wrote to it first, as long as that one can write. Otherwise it gets the least loaded of
//! those that can. Guarantee: two messages to a new recipient, however close together, get the same session.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Bool, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::app::App;
use crate::db::{DbError, Prepare, TenantConn, sql};
use crate::domain::ids::{SenderPoolId, SessionId, TenantId};
use crate::domain::recipient::ChatId;
use crate::sessions::directory::{DirectoryError, SessionEntry};

/// The constraint that a name used twice breaks.
pub const NAME_TAKEN: &str = "sender_pools_name";

/// A named set of sessions. Messages to it are sent by one of them.
#[derive(Clone, Debug, Serialize, QueryableByName, ToSchema)]
#[schema(example = json!({
    "id": "01994f3e-2222-7cc3-98d5-8f1c1f0a2b3c", "name": "support", "session_ids": ["01994f3e-1111-7cc3-98d5-8f1c1f0a2b3c"],
    "version": 1, "created_at": "2026-11-21T09:30:00Z", "updated_at": "2026-11-21T09:30:00Z"
}))]
pub struct SenderPool {
    /// Its id.
    #[diesel(sql_type = SqlUuid)]
    pub id: SenderPoolId,
    /// Its name, unique within the tenant.
    #[diesel(sql_type = Text)]
    pub name: String,
    /// Its sessions.
    #[diesel(sql_type = Array<SqlUuid>)]
    pub session_ids: Vec<SessionId>,
    /// Counts the changes of this resource; for `If-Match`.
    #[diesel(sql_type = BigInt)]
    pub version: i64,
    /// When it was made.
    #[diesel(sql_type = Timestamptz)]
    pub created_at: DateTime<Utc>,
    /// When it was last changed.
    #[diesel(sql_type = Timestamptz)]
    pub updated_at: DateTime<Utc>,
}

// A session that was deleted is not shown any more.
macro_rules! pools {
    ($condition:literal) => {
        concat!(
            "SELECT p.id, p.name, p.version, p.created_at, p.updated_at, ARRAY( \
                 SELECT i.session_id FROM sender_pool_sessions i \
                 JOIN waha_sessions s ON s.tenant_id = i.tenant_id AND s.id = i.session_id AND s.deleted_at IS NULL \
                 WHERE i.tenant_id = p.tenant_id AND i.pool_id = p.id ORDER BY i.session_id) AS session_ids \
             FROM sender_pools p WHERE p.tenant_id = $1 AND p.deleted_at IS NULL AND ",
            $condition
        )
    };
}

/// Those of `sessions` that this tenant does not have.
///
/// # Errors
/// When the database does not answer.
pub async fn unknown_sessions(conn: &mut TenantConn, sessions: &[SessionId]) -> Result<Vec<SessionId>, DbError> {
    #[derive(QueryableByName)]
    struct Known {
        #[diesel(sql_type = SqlUuid)]
        id: SessionId,
    }
    let known: Vec<Known> = sql("SELECT id FROM waha_sessions \
         WHERE tenant_id = $1 AND id = ANY($2) AND deleted_at IS NULL AND desired <> 'deleted'")
    .bind::<SqlUuid, _>(conn.tenant())
    .bind::<Array<SqlUuid>, _>(sessions)
    .prepared()
    .load(&mut **conn)
    .await?;
    Ok(sessions.iter().copied().filter(|id| known.iter().all(|known| known.id != *id)).collect())
}

/// Makes a pool of sessions that exist.
///
/// # Errors
/// [`DbError::Duplicate`] of [`NAME_TAKEN`], or when the database does not answer.
pub async fn insert(
    conn: &mut TenantConn,
    id: SenderPoolId,
    name: &str,
    sessions: &[SessionId],
    now: DateTime<Utc>,
) -> Result<SenderPool, DbError> {
    sql("INSERT INTO sender_pools (tenant_id, id, name, created_at, updated_at) VALUES ($1, $2, $3, $4, $4)")
        .bind::<SqlUuid, _>(conn.tenant())
        .bind::<SqlUuid, _>(id)
        .bind::<Text, _>(name)
        .bind::<Timestamptz, _>(now)
        .prepared()
        .execute(&mut **conn)
        .await?;
    add_sessions(conn, id, sessions, now).await?;
    find(conn, id).await?.ok_or_else(|| diesel::result::Error::NotFound.into())
}

async fn add_sessions(
    conn: &mut TenantConn,
    id: SenderPoolId,
    sessions: &[SessionId],
    now: DateTime<Utc>,
) -> Result<(), DbError> {
    sql("INSERT INTO sender_pool_sessions (tenant_id, pool_id, session_id, created_at) \
         SELECT $1, $2, s, $4 FROM unnest($3) AS i (s) ON CONFLICT DO NOTHING")
    .bind::<SqlUuid, _>(conn.tenant())
    .bind::<SqlUuid, _>(id)
    .bind::<Array<SqlUuid>, _>(sessions)
    .bind::<Timestamptz, _>(now)
    .prepared()
    .execute(&mut **conn)
    .await?;
    Ok(())
}

/// The pool `id`, if this tenant has it.
///
/// # Errors
/// When the database does not answer.
pub async fn find(conn: &mut TenantConn, id: SenderPoolId) -> Result<Option<SenderPool>, DbError> {
    let rows: Vec<SenderPool> = sql(pools!("p.id = $2"))
        .bind::<SqlUuid, _>(conn.tenant())
        .bind::<SqlUuid, _>(id)
        .prepared()
        .load(&mut **conn)
        .await?;
    Ok(rows.into_iter().next())
}

/// `limit` pools, newest first, from behind the place `after` on.
///
/// # Errors
/// When the database does not answer.
pub async fn list(
    conn: &mut TenantConn,
    after: Option<(DateTime<Utc>, Uuid)>,
    limit: i64,
) -> Result<Vec<SenderPool>, DbError> {
    Ok(sql(pools!("($2 IS NULL OR (p.created_at, p.id) < ($2, $3)) ORDER BY p.created_at DESC, p.id DESC LIMIT $4"))
        .bind::<SqlUuid, _>(conn.tenant())
        .bind::<Nullable<Timestamptz>, _>(after.map(|after| after.0))
        .bind::<Nullable<SqlUuid>, _>(after.map(|after| after.1))
        .bind::<BigInt, _>(limit)
        .prepared()
        .load(&mut **conn)
        .await?)
}

/// The version of the pool `id`, its row locked; `None` if this tenant has no such pool.
///
/// # Errors
/// When the database does not answer.
pub async fn lock(conn: &mut TenantConn, id: SenderPoolId) -> Result<Option<i64>, DbError> {
    #[derive(QueryableByName)]
    struct Locked {
        #[diesel(sql_type = BigInt)]
        version: i64,
    }
    // Not as strong as UPDATE: accepted messages refer to the row meanwhile.
    let rows: Vec<Locked> = sql("SELECT version FROM sender_pools \
         WHERE tenant_id = $1 AND id = $2 AND deleted_at IS NULL FOR NO KEY UPDATE")
    .bind::<SqlUuid, _>(conn.tenant())
    .bind::<SqlUuid, _>(id)
    .prepared()
    .load(&mut **conn)
    .await?;
    Ok(rows.into_iter().next().map(|row| row.version))
}

/// Changes a pool that is locked. What waits in a session that leaves it stays there; its recipients are free.
///
/// # Errors
/// [`DbError::Duplicate`] of [`NAME_TAKEN`], or when the database does not answer.
pub async fn update(
    conn: &mut TenantConn,
    id: SenderPoolId,
    name: Option<&str>,
    sessions: Option<&[SessionId]>,
    now: DateTime<Utc>,
) -> Result<Option<SenderPool>, DbError> {
    sql("UPDATE sender_pools SET name = coalesce($3, name), version = version + 1, updated_at = $4 \
         WHERE tenant_id = $1 AND id = $2")
    .bind::<SqlUuid, _>(conn.tenant())
    .bind::<SqlUuid, _>(id)
    .bind::<Nullable<Text>, _>(name)
    .bind::<Timestamptz, _>(now)
    .prepared()
    .execute(&mut **conn)
    .await?;
    if let Some(sessions) = sessions {
        remove_others(conn, id, sessions).await?;
        add_sessions(conn, id, sessions, now).await?;
    }
    find(conn, id).await
}

async fn remove_others(conn: &mut TenantConn, id: SenderPoolId, kept: &[SessionId]) -> Result<(), DbError> {
    for text in [
        "DELETE FROM sender_pool_sessions WHERE tenant_id = $1 AND pool_id = $2 AND session_id <> ALL($3)",
        "DELETE FROM sender_pool_recipients WHERE tenant_id = $1 AND pool_id = $2 AND session_id <> ALL($3)",
    ] {
        sql(text)
            .bind::<SqlUuid, _>(conn.tenant())
            .bind::<SqlUuid, _>(id)
            .bind::<Array<SqlUuid>, _>(kept)
            .prepared()
            .execute(&mut **conn)
            .await?;
    }
    Ok(())
}

/// Deletes a pool; what waits stays with its sessions. Answers whether this tenant had it.
///
/// # Errors
/// When the database does not answer.
pub async fn delete(conn: &mut TenantConn, id: SenderPoolId, now: DateTime<Utc>) -> Result<bool, DbError> {
    if lock(conn, id).await?.is_none() {
        return Ok(false);
    }
    remove_others(conn, id, &[]).await?;
    sql("UPDATE sender_pools SET deleted_at = $3, version = version + 1, updated_at = $3 WHERE tenant_id = $1 AND id = $2")
        .bind::<SqlUuid, _>(conn.tenant())
        .bind::<SqlUuid, _>(id)
        .bind::<Timestamptz, _>(now)
        .prepared()
        .execute(&mut **conn)
        .await?;
    Ok(true)
}

/// Why no session could be chosen.
#[derive(Debug, thiserror::Error)]
pub enum ChooseError {
    /// The tenant has no such pool.
    #[error("there is no such sender pool")]
    Unknown,
    /// The pool has no sessions.
    #[error("the sender pool has no sessions")]
    Empty,
    /// The database said no.
    #[error(transparent)]
    Database(#[from] DbError),
    /// The session could not be read.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
}

#[derive(QueryableByName)]
struct Candidate {
    #[diesel(sql_type = SqlUuid)]
    id: SessionId,
    #[diesel(sql_type = Bool)]
    usable: bool,
}

// Can write: works, is not paused, and is not restricted or has written with this chat before.
// The recipient's own session comes before the rest; of equally loaded ones, that which was chosen least recently.
const CANDIDATES: &str = "\
SELECT c.id, c.usable FROM (
    SELECT s.id, coalesce(r.session_id = s.id, false) AS own, l.queued + (l.in_flight IS NOT NULL)::int AS load, i.chosen_at,
           s.status = 'working' AND l.paused_because IS NULL AND (
               coalesce(l.restricted_until <= $4, true) OR EXISTS (
                   SELECT FROM known_chats v WHERE v.tenant_id = $1 AND v.session_id = s.id AND v.chat_id = $3)) AS usable
    FROM sender_pool_sessions i
    JOIN waha_sessions s ON s.tenant_id = i.tenant_id AND s.id = i.session_id
    JOIN lanes l ON l.tenant_id = s.tenant_id AND l.session_id = s.id
    LEFT JOIN sender_pool_recipients r ON r.tenant_id = $1 AND r.pool_id = $2 AND r.chat_id = $3
    WHERE i.tenant_id = $1 AND i.pool_id = $2 AND s.deleted_at IS NULL AND s.desired <> 'deleted'
) c
WHERE NOT $5 OR c.own
ORDER BY c.usable DESC, c.own DESC, c.load, c.chosen_at NULLS FIRST, c.id
LIMIT 1";

/// The session that writes to `chat` for the pool of this name or id. When none can write, the message waits with one of
/// them.
///
/// # Errors
/// [`ChooseError`].
pub async fn choose(
    app: &App,
    tenant: TenantId,
    pool: &str,
    chat: &ChatId,
) -> Result<(SenderPoolId, Arc<SessionEntry>), ChooseError> {
    let now = app.clock.now();
    let (pool, session) = app
        .db
        .tenant(tenant, async |conn| {
            let pool = resolve(conn, pool).await?.ok_or(ChooseError::Unknown)?;
            // A recipient's own session that can write needs no lock and no note.
            if let Some(own) = candidate(conn, pool, chat, now, true).await?
                && own.usable
            {
                return Ok((pool, own.id));
            }
            // From here on one at a time, so that the next one sees what this one chose.
            lock(conn, pool).await?.ok_or(ChooseError::Unknown)?;
            let best = candidate(conn, pool, chat, now, false).await?.ok_or(ChooseError::Empty)?;
            note_choice(conn, pool, chat, best.id, now).await?;
            Ok::<_, ChooseError>((pool, best.id))
        })
        .await?;
    let entry = app.directory.session(tenant, session).await?.ok_or(ChooseError::Empty)?;
    Ok((pool, entry))
}

async fn resolve(conn: &mut TenantConn, pool: &str) -> Result<Option<SenderPoolId>, DbError> {
    #[derive(QueryableByName)]
    struct Found {
        #[diesel(sql_type = SqlUuid)]
        id: SenderPoolId,
    }
    let text = "SELECT id FROM sender_pools WHERE tenant_id = $1 AND deleted_at IS NULL AND (id = $2 OR name = $3)";
    let rows: Vec<Found> = sql(text)
        .bind::<SqlUuid, _>(conn.tenant())
        .bind::<Nullable<SqlUuid>, _>(pool.parse::<SenderPoolId>().ok())
        .bind::<Text, _>(pool)
        .prepared()
        .load(&mut **conn)
        .await?;
    Ok(rows.into_iter().next().map(|row| row.id))
}

async fn candidate(
    conn: &mut TenantConn,
    pool: SenderPoolId,
    chat: &ChatId,
    now: DateTime<Utc>,
    only_own: bool,
) -> Result<Option<Candidate>, DbError> {
    let rows: Vec<Candidate> = sql(CANDIDATES)
        .bind::<SqlUuid, _>(conn.tenant())
        .bind::<SqlUuid, _>(pool)
        .bind::<Text, _>(chat.as_str())
        .bind::<Timestamptz, _>(now)
        .bind::<Bool, _>(only_own)
        .prepared()
        .load(&mut **conn)
        .await?;
    Ok(rows.into_iter().next())
}

async fn note_choice(
    conn: &mut TenantConn,
    pool: SenderPoolId,
    chat: &ChatId,
    session: SessionId,
    now: DateTime<Utc>,
) -> Result<(), DbError> {
    sql("WITH recipient AS ( \
             INSERT INTO sender_pool_recipients (tenant_id, pool_id, chat_id, session_id, created_at, updated_at) \
             VALUES ($1, $2, $3, $4, $5, $5) \
             ON CONFLICT (pool_id, chat_id) DO UPDATE SET session_id = excluded.session_id, updated_at = excluded.updated_at \
         ) UPDATE sender_pool_sessions SET chosen_at = clock_timestamp() WHERE tenant_id = $1 AND pool_id = $2 AND session_id = $4")
    .bind::<SqlUuid, _>(conn.tenant())
    .bind::<SqlUuid, _>(pool)
    .bind::<Text, _>(chat.as_str())
    .bind::<SqlUuid, _>(session)
    .bind::<Timestamptz, _>(now)
    .prepared()
    .execute(&mut **conn)
    .await?;
    Ok(())
}
