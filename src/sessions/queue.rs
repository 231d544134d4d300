//! A session's queue as its owner sees it, and emptying it. Always as that tenant.

use chrono::{DateTime, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Nullable, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;

use crate::app::App;
use crate::db::{DbError, Prepare, TenantConn, sql};
use crate::domain::ids::{SessionId, TenantId};
use crate::domain::status::Status;
use crate::messages::settle::{self, Waiting};

/// Messages cancelled in one transaction at the most.
const BATCH: i64 = 500;

/// What waits.
#[derive(Clone, Debug, QueryableByName)]
pub struct Queue {
    /// Waiting, by priority.
    #[diesel(sql_type = BigInt)]
    pub high: i64,
    /// As above.
    #[diesel(sql_type = BigInt)]
    pub normal: i64,
    /// As above.
    #[diesel(sql_type = BigInt)]
    pub bulk: i64,
    /// Not to be queued yet.
    #[diesel(sql_type = BigInt)]
    pub scheduled: i64,
    /// Held because the session is restricted.
    #[diesel(sql_type = BigInt)]
    pub restricted: i64,
    /// Held because of the cap of new chats.
    #[diesel(sql_type = BigInt)]
    pub new_chats_per_day: i64,
    /// When the oldest of those that wait or are held was accepted.
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub oldest: Option<DateTime<Utc>>,
    /// When the dispatcher looks at the lane next.
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub next: Option<DateTime<Utc>>,
}

// The oldest of each priority is the first in the order of acceptance.
const SHOW: &str = "\
SELECT counts.*, held.*, scheduled.*, least(oldest.high, oldest.normal, oldest.bulk, oldest.held) AS oldest, l.ready_at AS next
FROM lanes l, LATERAL (
    SELECT count(*) FILTER (WHERE m.priority = 0) AS high, count(*) FILTER (WHERE m.priority = 1) AS normal,
           count(*) FILTER (WHERE m.priority = 2) AS bulk
    FROM messages m
    WHERE m.session_id = l.session_id AND (m.status = 'queued' OR m.requeued) AND m.held_because IS NULL
) counts, LATERAL (
    SELECT count(*) FILTER (WHERE m.held_because = 'restricted') AS restricted,
           count(*) FILTER (WHERE m.held_because = 'new_chats_per_day') AS new_chats_per_day
    FROM messages m WHERE m.session_id = l.session_id AND m.held_because IS NOT NULL
) held, LATERAL (
    SELECT count(*) AS scheduled FROM messages m
    WHERE m.tenant_id = l.tenant_id AND m.session_id = l.session_id AND m.status = 'scheduled'
) scheduled, LATERAL (
    SELECT (SELECT m.created_at FROM messages m WHERE m.session_id = l.session_id AND (m.status = 'queued' OR m.requeued)
               AND m.held_because IS NULL AND m.priority = 0 ORDER BY m.seq LIMIT 1) AS high,
           (SELECT m.created_at FROM messages m WHERE m.session_id = l.session_id AND (m.status = 'queued' OR m.requeued)
               AND m.held_because IS NULL AND m.priority = 1 ORDER BY m.seq LIMIT 1) AS normal,
           (SELECT m.created_at FROM messages m WHERE m.session_id = l.session_id AND (m.status = 'queued' OR m.requeued)
               AND m.held_because IS NULL AND m.priority = 2 ORDER BY m.seq LIMIT 1) AS bulk,
           (SELECT min(m.created_at) FROM messages m
               WHERE m.session_id = l.session_id AND m.held_because IS NOT NULL) AS held
) oldest
WHERE l.tenant_id = $1 AND l.session_id = $2
  AND EXISTS (SELECT FROM waha_sessions s WHERE s.tenant_id = $1 AND s.id = $2 AND s.deleted_at IS NULL)";

/// The queue of the session `id`; `None` if this tenant has no such session.
///
/// # Errors
/// When the database does not answer.
pub async fn show(conn: &mut TenantConn, id: SessionId) -> Result<Option<Queue>, DbError> {
    let rows: Vec<Queue> =
        sql(SHOW).bind::<SqlUuid, _>(conn.tenant()).bind::<SqlUuid, _>(id).prepared().load(&mut **conn).await?;
    Ok(rows.into_iter().next())
}

// Those accepted until the request only, lest emptying never ends. Last ones first: meanwhile the first go on leaving, in order.
const LAST: &str = "\
(SELECT m.tenant_id, m.id, m.session_id FROM messages m
 WHERE m.session_id = $2 AND m.tenant_id = $1 AND m.status = 'queued' AND m.held_because IS NULL AND m.created_at <= $3
 ORDER BY m.priority DESC, m.seq DESC LIMIT $4)
UNION ALL
(SELECT m.tenant_id, m.id, m.session_id FROM messages m
 WHERE m.session_id = $2 AND m.tenant_id = $1 AND m.status = 'queued' AND m.held_because IS NOT NULL AND m.created_at <= $3
 LIMIT $4)
UNION ALL
(SELECT m.tenant_id, m.id, m.session_id FROM messages m
 WHERE m.tenant_id = $1 AND m.session_id = $2 AND m.status = 'scheduled' AND m.created_at <= $3
 LIMIT $4)
LIMIT $4";

/// Cancels what waits in the queue of the session `id`: queued, held and scheduled messages, but not the one that is being
/// handed over. In batches; who asks again goes on where this was broken off. `None` if this tenant has no such session.
///
/// # Errors
/// When the database does not answer; what was cancelled until then stays so.
pub async fn empty(app: &App, tenant: TenantId, id: SessionId) -> Result<Option<usize>, DbError> {
    let asked = app.clock.now();
    let mut cancelled = 0;
    loop {
        let batch = app
            .db
            .tenant(tenant, async |conn: &mut TenantConn| {
                if crate::sessions::queries::find(conn, id).await?.is_none() {
                    return Ok::<_, DbError>(None);
                }
                let waiting: Vec<Waiting> = sql(LAST)
                    .bind::<SqlUuid, _>(tenant)
                    .bind::<SqlUuid, _>(id)
                    .bind::<Timestamptz, _>(asked)
                    .bind::<BigInt, _>(BATCH)
                    .prepared()
                    .load(&mut **conn)
                    .await?;
                let now = app.clock.now();
                let cause = "cancelled with the queue";
                let done = settle::settle(conn, &app.chance, now, &waiting, Status::Cancelled, cause).await?;
                Ok(Some((waiting.len(), done.len())))
            })
            .await?;
        let Some((found, done)) = batch else { return Ok(None) };
        cancelled += done;
        app.wake.events.notify_one();
        if found < usize::try_from(BATCH).unwrap_or(usize::MAX) {
            return Ok(Some(cancelled));
        }
    }
}
