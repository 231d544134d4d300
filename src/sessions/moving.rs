//! Moving sessions off a WAHA server that is drained, or dead.
//!
//! Guarantee: at no moment two servers run a session. A place on the new server is taken first, and the session sends nothing from
//! then on; once what was handed over is acknowledged, or a minute has passed, it is stopped on the old one, by the reconciler
//! under its lease; only when the old server says that it is stopped, it is placed on the new one,
//! and only then started there. Each step may be repeated, and a node that dies in between leaves the rest to another.
//!
//! A session keeps its pairing only where the new server has the session storage of the old one (`storage_group`). One that was
//! never paired, or is to be unlinked, has none to keep. All others stay and are reported as needing another scan. Its messages wait meanwhile and leave
//! from the new server, in their order.
//!
//! A dead server cannot say that it has stopped a session. Where that is asked for (`SWITCHBOARD_MOVE_FROM_DEAD_MS`), a server
//! that has not answered for so long is believed to be dead; should it come back, it is told to stop what has moved.

use chrono::{DateTime, TimeDelta, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Bool, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;

use crate::app::App;
use crate::db::{DbError, Prepare, SystemConn, sql};
use crate::domain::ids::{SessionId, TenantId, WahaServerId};
use crate::sessions::{servers, status, timeline};

/// Sessions of a server that move at the same time.
const AT_ONCE: i64 = 5;
/// How long the acknowledgement of a message is waited for that was handed over last.
const ACKNOWLEDGED: TimeDelta = TimeDelta::seconds(10);

#[derive(QueryableByName)]
struct Candidate {
    #[diesel(sql_type = SqlUuid)]
    tenant_id: TenantId,
    #[diesel(sql_type = SqlUuid)]
    id: SessionId,
    #[diesel(sql_type = Nullable<SqlUuid>)]
    target: Option<WahaServerId>,
    #[diesel(sql_type = Bool)]
    needs_rescan: bool,
}

// Those with nowhere to go are looked at again only as long as there is room for others.
const CANDIDATES: &str = "\
SELECT s.tenant_id, s.id, t.id AS target, s.needs_rescan
FROM waha_servers v JOIN waha_sessions s ON s.waha_server_id = v.id
LEFT JOIN LATERAL (
    SELECT t.id FROM waha_servers t
    WHERE t.id <> v.id AND t.deleted_at IS NULL AND NOT t.draining AND t.health = 'healthy' AND t.sessions < t.capacity
      AND t.engine = v.engine AND t.labels @> s.labels AND NOT t.limitations && $4
      AND (t.storage_group = v.storage_group OR ((s.phone IS NULL OR s.logout_wanted_at IS NOT NULL) AND NOT $3))
    ORDER BY t.capacity - t.sessions DESC, t.id LIMIT 1
) t ON true
WHERE v.id = $1 AND (v.draining OR $3) AND s.deleted_at IS NULL AND s.move_to IS NULL AND (t.id IS NOT NULL OR NOT s.needs_rescan)
ORDER BY t.id IS NULL, s.logout_wanted_at, s.id
LIMIT greatest($2 - (SELECT count(*) FROM waha_sessions o WHERE o.waha_server_id = $1 AND o.move_to IS NOT NULL AND o.removed_at IS NULL), 0)";

/// Begins the next moves off `server` if it is drained, and reports those sessions that have nowhere to go. With `dead` the
/// server is taken for stopped, and what can move has moved at once.
///
/// # Errors
/// When the database does not answer; the next poll goes on.
pub async fn leave(app: &App, server: WahaServerId, dead: bool) -> Result<(), DbError> {
    let candidates: Vec<Candidate> = app
        .db
        .system(async |conn| {
            Ok::<_, DbError>(
                sql(CANDIDATES)
                    .bind::<SqlUuid, _>(server)
                    .bind::<BigInt, _>(AT_ONCE)
                    .bind::<Bool, _>(dead)
                    .bind::<Array<Text>, _>(servers::unfit())
                    .prepared()
                    .load(&mut **conn)
                    .await?,
            )
        })
        .await?;
    for candidate in candidates {
        let Candidate { tenant_id, id, target, needs_rescan } = candidate;
        let now = app.clock.now();
        match target {
            Some(target) => {
                let begun = app.db.system(async |conn| begin(conn, tenant_id, id, server, target, now).await).await?;
                if begun && dead {
                    finish(app, tenant_id, id).await?;
                }
            }
            None if !needs_rescan && !dead => {
                app.db.system(async |conn| stay(conn, tenant_id, id, server, now).await).await?;
            }
            None => {}
        }
    }
    app.wake.sessions.notify_one();
    Ok(())
}

/// Takes a place on `target`; false when it is gone or the session is elsewhere by now.
async fn begin(
    conn: &mut SystemConn,
    tenant: TenantId,
    id: SessionId,
    from: WahaServerId,
    target: WahaServerId,
    now: DateTime<Utc>,
) -> Result<bool, DbError> {
    if !servers::take(conn, target, now).await? {
        return Ok(false);
    }
    status::lock_lanes(conn, &[id]).await?;
    let text = "UPDATE waha_sessions SET move_to = $4, move_began_at = $5, needs_rescan = false, reconcile_at = $5, start_queued_at = NULL, \
                    observations = observations + 1, version = version + needs_rescan::int \
                WHERE tenant_id = $1 AND id = $2 AND waha_server_id = $3 AND move_to IS NULL AND deleted_at IS NULL";
    let begun = sql(text)
        .bind::<SqlUuid, _>(tenant)
        .bind::<SqlUuid, _>(id)
        .bind::<SqlUuid, _>(from)
        .bind::<SqlUuid, _>(target)
        .bind::<Timestamptz, _>(now)
        .prepared()
        .execute(&mut **conn)
        .await?;
    if begun == 0 {
        servers::release(conn, target, now).await?;
        return Ok(false);
    }
    let hold = "UPDATE lanes SET stopped_because = 'session_moving', ready_at = NULL, updated_at = $3 \
                WHERE tenant_id = $1 AND session_id = $2 AND stopped_because IS DISTINCT FROM 'session_deleted'";
    sql(hold)
        .bind::<SqlUuid, _>(tenant)
        .bind::<SqlUuid, _>(id)
        .bind::<Timestamptz, _>(now)
        .prepared()
        .execute(&mut **conn)
        .await?;
    timeline::note(conn, tenant, id, "moves to another WAHA server", timeline::GATEWAY, now).await?;
    Ok(true)
}

/// Reports that the session would have to be scanned again to leave its server.
async fn stay(
    conn: &mut SystemConn,
    tenant: TenantId,
    id: SessionId,
    from: WahaServerId,
    now: DateTime<Utc>,
) -> Result<(), DbError> {
    let text = "UPDATE waha_sessions SET needs_rescan = true, version = version + 1, updated_at = $4 \
                WHERE tenant_id = $1 AND id = $2 AND waha_server_id = $3 AND NOT needs_rescan";
    let reported = sql(text)
        .bind::<SqlUuid, _>(tenant)
        .bind::<SqlUuid, _>(id)
        .bind::<SqlUuid, _>(from)
        .bind::<Timestamptz, _>(now)
        .prepared()
        .execute(&mut **conn)
        .await?;
    if reported > 0 {
        let cause = "its WAHA server is drained; it can move only with another scan";
        timeline::note(conn, tenant, id, cause, timeline::GATEWAY, now).await?;
    }
    Ok(())
}

#[derive(QueryableByName)]
struct Way {
    #[diesel(sql_type = SqlUuid)]
    from: WahaServerId,
}

// Servers, then lanes, then the rest: as everywhere.
const FINISH: &str = "\
WITH before AS (
    SELECT s.tenant_id, s.id, s.waha_server_id FROM waha_sessions s
    WHERE s.tenant_id = $1 AND s.id = $2 AND s.move_to IS NOT NULL AND s.deleted_at IS NULL FOR NO KEY UPDATE
), moved AS (
    UPDATE waha_sessions s SET
        waha_server_id = s.move_to, move_to = NULL, move_began_at = NULL,
        phone = CASE WHEN s.logout_wanted_at IS NULL THEN s.phone END, logout_wanted_at = NULL, starting_since = NULL, start_queued_at = NULL, reconcile_at = $3,
        observations = s.observations + 1, version = s.version + 1, updated_at = $3
    FROM before b WHERE s.tenant_id = b.tenant_id AND s.id = b.id
    RETURNING s.tenant_id, s.id, s.waha_server_id, b.waha_server_id AS before
), lane AS (
    UPDATE lanes l SET
        waha_server_id = m.waha_server_id, updated_at = $3,
        stopped_because = CASE l.stopped_because WHEN 'session_moving' THEN 'session_not_working' ELSE l.stopped_because END
    FROM moved m
    WHERE l.tenant_id = m.tenant_id AND l.session_id = m.id
)
SELECT m.before AS \"from\" FROM moved m";

/// Whether the session moves.
///
/// # Errors
/// When the database does not answer.
pub async fn is_moving(app: &App, tenant: TenantId, id: SessionId) -> Result<bool, DbError> {
    let text = "SELECT move_to IS NOT NULL AS busy FROM waha_sessions WHERE tenant_id = $1 AND id = $2";
    let rows: Vec<Busy> = app
        .db
        .system(async |conn| {
            let rows = sql(text).bind::<SqlUuid, _>(tenant).bind::<SqlUuid, _>(id).prepared().load(&mut **conn);
            Ok::<_, DbError>(rows.await?)
        })
        .await?;
    Ok(rows.into_iter().any(|row| row.busy))
}

#[derive(QueryableByName)]
struct Busy {
    #[diesel(sql_type = Bool)]
    busy: bool,
}

// An attempt under way, or a message that WhatsApp's server will acknowledge in a moment.
const BUSY: &str = "\
SELECT s.move_began_at > $3 - interval '1 minute' AND EXISTS (
    SELECT FROM messages m WHERE m.tenant_id = s.tenant_id AND m.session_id = s.id AND m.status = 'sending' AND NOT m.requeued
      AND m.held_because IS NULL AND (m.attempt_state = 'open' OR m.attempt_state = 'none' AND m.handed_over_at > $4)) AS busy
FROM waha_sessions s WHERE s.tenant_id = $1 AND s.id = $2 AND s.move_began_at IS NOT NULL";

/// Whether a session that is to move has something on its way that is worth a moment's wait.
///
/// # Errors
/// When the database does not answer.
pub async fn is_busy(app: &App, tenant: TenantId, id: SessionId) -> Result<bool, DbError> {
    let now = app.clock.now();
    let rows: Vec<Busy> = app
        .db
        .system(async |conn| {
            Ok::<_, DbError>(
                sql(BUSY)
                    .bind::<SqlUuid, _>(tenant)
                    .bind::<SqlUuid, _>(id)
                    .bind::<Timestamptz, _>(now)
                    .bind::<Timestamptz, _>(now - ACKNOWLEDGED)
                    .prepared()
                    .load(&mut **conn)
                    .await?,
            )
        })
        .await?;
    Ok(rows.into_iter().any(|row| row.busy))
}

/// Locks the servers on which the session has a place. They come before lanes and sessions.
///
/// # Errors
/// When the database does not answer.
pub(super) async fn lock_servers(conn: &mut SystemConn, tenant: TenantId, id: SessionId) -> Result<(), DbError> {
    sql("SELECT FROM waha_servers v JOIN waha_sessions s ON v.id IN (s.waha_server_id, s.move_to) \
         WHERE s.tenant_id = $1 AND s.id = $2 ORDER BY v.id FOR UPDATE OF v")
    .bind::<SqlUuid, _>(tenant)
    .bind::<SqlUuid, _>(id)
    .prepared()
    .execute(&mut **conn)
    .await?;
    Ok(())
}

/// Places a session that is stopped on the server it leaves on the one it goes to. Does nothing when it does not move.
///
/// # Errors
/// When the database does not answer; it may be asked for again.
pub async fn finish(app: &App, tenant: TenantId, id: SessionId) -> Result<(), DbError> {
    let now = app.clock.now();
    app.db
        .system(async |conn: &mut SystemConn| {
            lock_servers(conn, tenant, id).await?;
            status::lock_lanes(conn, &[id]).await?;
            let ways: Vec<Way> = sql(FINISH)
                .bind::<SqlUuid, _>(tenant)
                .bind::<SqlUuid, _>(id)
                .bind::<Timestamptz, _>(now)
                .prepared()
                .load(&mut **conn)
                .await?;
            for way in ways {
                servers::release(conn, way.from, now).await?;
                let cause = format!("moved from the WAHA server {}", way.from);
                timeline::note(conn, tenant, id, &cause, timeline::GATEWAY, now).await?;
                metrics::counter!("switchboard_sessions_moved_total").increment(1);
                tracing::info!(session_id = %id, from = %way.from, "a session lives on another WAHA server");
            }
            Ok::<_, DbError>(())
        })
        .await?;
    if let Err(fault) = app.generation.refresh(&app.db).await {
        tracing::debug!(%fault, "the caches are refreshed a little later");
    }
    Ok(())
}
