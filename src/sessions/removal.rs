//! Deleting a session: for its tenant at once, at WAHA by the reconciler.
//!
//! Guarantee: once the tenant was told, nothing more leaves by the session; its messages are kept, and each of them ends in a
//! final state: what waits is cancelled (or moved, where its pool has another session), and of what was on its way it is said how
//! much is known. Its place on the WAHA server is given back only when WAHA does not have it any more. Each part may be repeated.

use chrono::{DateTime, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;

use crate::app::App;
use crate::db::{DbError, Prepare, SystemConn, TenantConn, sql};
use crate::domain::failure::FailureCode;
use crate::domain::ids::{SessionId, TenantId, WahaServerId};
use crate::domain::status::Status;
use crate::messages::changes::{self, Change};
use crate::messages::row::{MessageRow, message_columns};
use crate::messages::settle::{self, Waiting};
use crate::sessions::{change, moving, servers, timeline};

/// Messages settled in one transaction at the most.
const BATCH: i64 = 500;

// The lane is locked. Whoever asks for the session from now on finds none.
const DELETE: &str = "\
WITH s AS (
    UPDATE waha_sessions SET
        desired = 'deleted', deleted_at = $3, reconcile_at = $3, reconcile_failures = 0, outage_shown_at = NULL,
        version = version + 1, updated_at = $3
    WHERE tenant_id = $1 AND id = $2 AND deleted_at IS NULL
    RETURNING tenant_id, id
)
UPDATE lanes l SET stopped_because = 'session_deleted', ready_at = NULL, updated_at = $3
FROM s WHERE l.tenant_id = s.tenant_id AND l.session_id = s.id";

/// Deletes the session `id` for its tenant; the reconciler removes it at WAHA. False if this tenant has no such session.
///
/// # Errors
/// When the database does not answer.
pub async fn delete(conn: &mut TenantConn, id: SessionId, actor: &str, now: DateTime<Utc>) -> Result<bool, DbError> {
    if change::lock(conn, id).await?.is_none() {
        return Ok(false);
    }
    timeline::wish(conn, id, "deleted", actor, now).await?;
    let tenant = conn.tenant();
    let deleted = sql(DELETE)
        .bind::<SqlUuid, _>(tenant)
        .bind::<SqlUuid, _>(id)
        .bind::<Timestamptz, _>(now)
        .prepared()
        .execute(&mut **conn)
        .await?;
    Ok(deleted > 0)
}

// What a pool may still send by another session is left to the pool.
const WAITING: &str = "\
SELECT m.tenant_id, m.id, m.session_id FROM messages m
WHERE m.tenant_id = $1 AND m.session_id = $2 AND m.status IN ('scheduled', 'queued') AND (m.pool_id IS NULL OR NOT EXISTS (
    SELECT FROM sender_pool_sessions p JOIN waha_sessions s ON s.tenant_id = p.tenant_id AND s.id = p.session_id
    WHERE p.tenant_id = m.tenant_id AND p.pool_id = m.pool_id AND s.deleted_at IS NULL))
LIMIT $3";

// An attempt that a worker may still be making is not touched: its outcome is worth more.
const ABANDON: &str = concat!(
    "\
WITH lane AS MATERIALIZED (
    SELECT l.tenant_id, l.session_id, CASE WHEN l.lease_until > $3 THEN l.in_flight END AS held
    FROM lanes l WHERE l.tenant_id = $1 AND l.session_id = $2 FOR UPDATE
), before AS (
    SELECT m.tenant_id, m.id FROM lane JOIN messages m ON m.tenant_id = lane.tenant_id AND m.session_id = lane.session_id
    WHERE m.status = 'sending' AND m.id IS DISTINCT FROM lane.held
    ORDER BY m.tenant_id, m.id LIMIT $4 FOR UPDATE OF m
), message AS (
    UPDATE messages m SET
        status = 'failed', failed_at = $3, requeued = false, held_because = NULL, updated_at = $3,
        error_code = CASE WHEN m.attempt_state <> 'none' THEN $5 WHEN m.requeued OR m.held_because IS NOT NULL THEN $6 ELSE $7 END,
        error_message = 'The session was deleted before more was known.'
    FROM before b WHERE m.tenant_id = b.tenant_id AND m.id = b.id
    RETURNING m.*
), turn AS (
    UPDATE lanes l SET queued = 0, updated_at = $3 FROM lane WHERE l.session_id = lane.session_id AND l.queued > 0
        AND NOT EXISTS (SELECT FROM messages q WHERE q.tenant_id = lane.tenant_id AND q.session_id = lane.session_id AND q.status = 'queued')
)
SELECT ",
    message_columns!(),
    " FROM message m ORDER BY m.seq"
);

#[derive(QueryableByName)]
struct Count {
    #[diesel(sql_type = BigInt)]
    messages: i64,
}

/// Settles the messages of a deleted session. True once none is left on its way; false: one is being handed over right now, ask
/// again.
///
/// # Errors
/// When the database does not answer; what was settled until then stays so.
pub async fn settle_messages(app: &App, tenant: TenantId, id: SessionId) -> Result<bool, DbError> {
    let most = usize::try_from(BATCH).unwrap_or(usize::MAX);
    loop {
        let now = app.clock.now();
        let settled = app.db.system(async |conn: &mut SystemConn| cancel(conn, app, tenant, id, now).await).await?;
        app.wake.events.notify_one();
        if settled < most {
            break;
        }
    }
    loop {
        let now = app.clock.now();
        let abandoned = app.db.system(async |conn: &mut SystemConn| abandon(conn, app, tenant, id, now).await).await?;
        app.wake.events.notify_one();
        if abandoned < most {
            break;
        }
    }
    let left: Count = app
        .db
        .system(async |conn| {
            let text = "SELECT count(*) AS messages FROM messages \
                        WHERE tenant_id = $1 AND session_id = $2 AND status = 'sending'";
            Ok::<_, DbError>(
                sql(text).bind::<SqlUuid, _>(tenant).bind::<SqlUuid, _>(id).prepared().get_result(&mut **conn).await?,
            )
        })
        .await?;
    Ok(left.messages == 0)
}

async fn cancel(
    conn: &mut SystemConn,
    app: &App,
    tenant: TenantId,
    id: SessionId,
    now: DateTime<Utc>,
) -> Result<usize, DbError> {
    let waiting: Vec<Waiting> = sql(WAITING)
        .bind::<SqlUuid, _>(tenant)
        .bind::<SqlUuid, _>(id)
        .bind::<BigInt, _>(BATCH)
        .prepared()
        .load(&mut **conn)
        .await?;
    let cause = "the session was deleted";
    Ok(settle::settle(conn, &app.chance, now, &waiting, Status::Cancelled, cause).await?.len())
}

async fn abandon(
    conn: &mut SystemConn,
    app: &App,
    tenant: TenantId,
    id: SessionId,
    now: DateTime<Utc>,
) -> Result<usize, DbError> {
    let rows: Vec<MessageRow> = sql(ABANDON)
        .bind::<SqlUuid, _>(tenant)
        .bind::<SqlUuid, _>(id)
        .bind::<Timestamptz, _>(now)
        .bind::<BigInt, _>(BATCH)
        .bind::<Text, _>(FailureCode::Unconfirmed.as_str())
        .bind::<Text, _>(FailureCode::SessionDeleted.as_str())
        .bind::<Text, _>(FailureCode::NoServerAck.as_str())
        .prepared()
        .load(&mut **conn)
        .await?;
    let changes: Vec<Change<'_>> = rows
        .iter()
        .map(|message| Change {
            message,
            status: Status::Failed,
            at: now,
            cause: "the session was deleted".to_owned(),
            attempt: Some(message.attempts),
        })
        .collect();
    changes::record(conn, &app.chance, &changes).await?;
    Ok(rows.len())
}

/// WAHA does not have the session any more: its place, and the one taken for a move, are free.
///
/// # Errors
/// When the database does not answer.
pub async fn give_place_back(app: &App, tenant: TenantId, id: SessionId) -> Result<(), DbError> {
    #[derive(QueryableByName)]
    struct Places {
        #[diesel(sql_type = SqlUuid)]
        waha_server_id: WahaServerId,
        #[diesel(sql_type = Nullable<SqlUuid>)]
        move_to: Option<WahaServerId>,
    }
    let now = app.clock.now();
    app.db
        .system(async |conn: &mut SystemConn| {
            moving::lock_servers(conn, tenant, id).await?;
            let text = "WITH before AS ( \
                    SELECT tenant_id, id, waha_server_id, move_to FROM waha_sessions \
                    WHERE tenant_id = $1 AND id = $2 AND deleted_at IS NOT NULL AND removed_at IS NULL FOR NO KEY UPDATE \
                ) \
                UPDATE waha_sessions s SET removed_at = $3, move_to = NULL, starting_since = NULL FROM before b \
                WHERE s.tenant_id = b.tenant_id AND s.id = b.id RETURNING b.waha_server_id, b.move_to";
            let places: Vec<Places> = sql(text)
                .bind::<SqlUuid, _>(tenant)
                .bind::<SqlUuid, _>(id)
                .bind::<Timestamptz, _>(now)
                .prepared()
                .load(&mut **conn)
                .await?;
            for place in places {
                servers::release(conn, place.waha_server_id, now).await?;
                if let Some(other) = place.move_to {
                    servers::release(conn, other, now).await?;
                }
            }
            Ok::<_, DbError>(())
        })
        .await
}
