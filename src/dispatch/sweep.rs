//! What becomes due by itself: scheduled messages, expired ones, held ones and restrictions.
//!
//! Guarantee: each is done once, whatever number of nodes does it: the lane's lock and the message's status decide. In
//! batches, so that a million due messages hold nobody up for longer than one batch.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Bool, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use tokio::sync::watch;

use crate::app::App;
use crate::db::{DbError, Prepare, SystemConn, sql};
use crate::domain::ids::SessionId;
use crate::domain::status::Status;
use crate::messages::changes;
use crate::messages::row::{MessageRow, message_columns};
use crate::messages::settle::{self, Waiting};

/// Messages changed in one transaction at the most.
const BATCH: i64 = 500;

/// The time between two looks at the least; a scheduled message is late by this at the most, and by its batch.
const PAUSE: Duration = Duration::from_millis(250);

/// Sends that no cap looks at any more are kept for a while, lest a clock that is behind misses them.
const SENDS_KEPT: TimeDelta = TimeDelta::hours(25);
const PRUNE_EVERY: TimeDelta = TimeDelta::minutes(10);

/// Sweeps until `stop` turns true.
pub(super) async fn run(app: App, mut stop: watch::Receiver<bool>) {
    let mut pruned_at = None::<DateTime<Utc>>;
    while !*stop.borrow() {
        let pause = match round(&app).await {
            Ok(Swept { more: true, .. }) => continue,
            Ok(Swept { next, .. }) => {
                let until_next = next.map(|next| (next - app.clock.now()).to_std().unwrap_or(Duration::ZERO));
                until_next.unwrap_or(PAUSE).clamp(Duration::from_millis(10), PAUSE)
            }
            Err(fault) => {
                tracing::warn!(%fault, "dispatch: what became due cannot be read");
                Duration::from_secs(1)
            }
        };
        let now = app.clock.now();
        if pruned_at.is_none_or(|at| now - at >= PRUNE_EVERY) {
            pruned_at = Some(now);
            if let Err(fault) = prune(&app, now).await {
                tracing::warn!(%fault, "dispatch: old sends could not be removed");
            }
        }
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            () = app.clock.sleep(pause) => {}
        }
    }
}

/// What one look found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Messages that expired.
    pub expired: usize,
    /// Scheduled messages that were queued.
    pub queued: usize,
    /// Held messages that were released.
    pub released: usize,
    /// Restrictions that ended.
    pub unrestricted: usize,
    /// Whether there may be more to do right now.
    pub more: bool,
    /// When the next scheduled message is due.
    pub next: Option<DateTime<Utc>>,
}

// Each is one probe of a partial index, so that looking when there is nothing costs next to nothing.
const LOOK: &str = "\
SELECT EXISTS (SELECT FROM messages WHERE status = 'scheduled' AND scheduled_at <= $1) AS scheduled,
       EXISTS (SELECT FROM messages
               WHERE expires_at IS NOT NULL AND status IN ('scheduled', 'queued') AND expires_at <= $1) AS expired,
       EXISTS (SELECT FROM messages WHERE held_because IS NOT NULL) AS held,
       EXISTS (SELECT FROM lanes WHERE restricted_until IS NOT NULL AND restricted_until <= $1) AS restricted,
       (SELECT min(scheduled_at) FROM messages WHERE status = 'scheduled' AND scheduled_at > $1) AS next";

#[derive(QueryableByName)]
struct Look {
    #[diesel(sql_type = Bool)]
    scheduled: bool,
    #[diesel(sql_type = Bool)]
    expired: bool,
    #[diesel(sql_type = Bool)]
    held: bool,
    #[diesel(sql_type = Bool)]
    restricted: bool,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    next: Option<DateTime<Utc>>,
}

const EXPIRED: &str = "\
SELECT tenant_id, id, session_id FROM messages
WHERE expires_at IS NOT NULL AND status IN ('scheduled', 'queued') AND expires_at <= $1
ORDER BY expires_at LIMIT $2";

const PROMOTE: &str = concat!(
    "\
WITH due AS MATERIALIZED (
    SELECT m.tenant_id, m.id, m.session_id FROM messages m
    WHERE m.status = 'scheduled' AND m.scheduled_at <= $1 AND (m.expires_at IS NULL OR m.expires_at > $1)
    ORDER BY m.scheduled_at LIMIT $2
), lane AS MATERIALIZED (
    SELECT l.session_id FROM lanes l WHERE l.session_id IN (SELECT session_id FROM due) ORDER BY l.session_id FOR UPDATE
), message AS MATERIALIZED (
    SELECT m.tenant_id, m.id
    FROM due d JOIN lane USING (session_id) JOIN messages m ON m.tenant_id = d.tenant_id AND m.id = d.id
    WHERE m.status = 'scheduled' ORDER BY m.tenant_id, m.id FOR UPDATE OF m
), changed AS (
    UPDATE messages m SET status = 'queued', updated_at = $1
    FROM message b WHERE m.tenant_id = b.tenant_id AND m.id = b.id
    RETURNING m.*
), turn AS (
    UPDATE lanes l SET
        queued = l.queued + c.messages,
        ready_at = CASE WHEN l.in_flight IS NOT NULL OR l.paused_because IS NOT NULL THEN l.ready_at
                        WHEN c.urgent THEN least(l.ready_at, greatest(l.next_slot_at, $1))
                        ELSE coalesce(l.ready_at, greatest(l.next_slot_at, $1)) END,
        updated_at = $1
    FROM (
        SELECT session_id, count(*)::int AS messages, bool_or(priority = 0) AS urgent FROM changed GROUP BY session_id
    ) c
    WHERE l.session_id = c.session_id
)
SELECT ",
    message_columns!(),
    " FROM changed m ORDER BY m.seq"
);

// From session to session along the index, however many messages each holds. A lane with room for a new chat is woken when
// nothing else does so, and takes them one by one with its turns.
const HELD: &str = "\
WITH RECURSIVE held AS (
    (SELECT m.session_id FROM messages m WHERE m.held_because IS NOT NULL ORDER BY m.session_id LIMIT 1)
    UNION ALL
    SELECT (SELECT m.session_id FROM messages m WHERE m.held_because IS NOT NULL AND m.session_id > h.session_id
            ORDER BY m.session_id LIMIT 1)
    FROM held h WHERE h.session_id IS NOT NULL
)
SELECT l.session_id,
       (l.restricted_until IS NULL OR l.restricted_until <= $1) AND EXISTS (
           SELECT FROM messages m WHERE m.session_id = l.session_id AND m.held_because = 'restricted') AS unrestricted,
       coalesce(l.new_chats_per_day, 0) = 0 AND new_chats.wait AS uncapped,
       l.new_chats_per_day > 0 AND new_chats.wait AND l.ready_at IS NULL AND l.in_flight IS NULL
           AND l.paused_because IS NULL AND NOT EXISTS (
               SELECT FROM lane_sends s
               WHERE s.session_id = l.session_id AND s.new_chat AND s.at > $1 - interval '24 hours'
               ORDER BY s.at DESC OFFSET greatest(l.new_chats_per_day, 1) - 1 LIMIT 1) AS room
FROM held h JOIN lanes l ON l.session_id = h.session_id, LATERAL (
    SELECT EXISTS (SELECT FROM messages m
                   WHERE m.session_id = l.session_id AND m.held_because = 'new_chats_per_day') AS wait
) new_chats";

#[derive(QueryableByName)]
struct Held {
    #[diesel(sql_type = SqlUuid)]
    session_id: SessionId,
    #[diesel(sql_type = Bool)]
    unrestricted: bool,
    #[diesel(sql_type = Bool)]
    uncapped: bool,
    #[diesel(sql_type = Nullable<Bool>)]
    room: Option<bool>,
}

const RELEASE: &str = "\
WITH input AS (
    SELECT * FROM unnest($1, $2) AS i (session_id, reason)
), lane AS MATERIALIZED (
    SELECT l.session_id FROM lanes l WHERE l.session_id IN (SELECT session_id FROM input) ORDER BY l.session_id FOR UPDATE
), first AS MATERIALIZED (
    SELECT c.tenant_id, c.id FROM input i JOIN lane USING (session_id) CROSS JOIN LATERAL (
        SELECT m.tenant_id, m.id FROM messages m WHERE m.session_id = i.session_id AND m.held_because = i.reason
        ORDER BY m.priority, m.seq LIMIT $4
    ) c LIMIT $4
), message AS MATERIALIZED (
    SELECT m.tenant_id, m.id FROM first f JOIN messages m USING (tenant_id, id)
    WHERE m.held_because IS NOT NULL ORDER BY m.tenant_id, m.id FOR UPDATE OF m
), changed AS (
    UPDATE messages m SET held_because = NULL, updated_at = $3
    FROM message b WHERE m.tenant_id = b.tenant_id AND m.id = b.id
    RETURNING m.session_id, m.status = 'queued' OR m.requeued AS waits
), turn AS (
    UPDATE lanes l SET
        queued = l.queued + c.messages,
        ready_at = CASE WHEN l.in_flight IS NOT NULL OR l.paused_because IS NOT NULL THEN l.ready_at
                        ELSE least(l.ready_at, greatest(l.next_slot_at, $3)) END,
        updated_at = $3
    FROM (SELECT session_id, count(*) FILTER (WHERE waits)::int AS messages FROM changed GROUP BY session_id) c
    WHERE l.session_id = c.session_id
)
SELECT count(*) AS messages FROM changed";

#[derive(QueryableByName)]
struct Count {
    #[diesel(sql_type = BigInt)]
    messages: i64,
}

const WAKE: &str = "\
WITH lane AS MATERIALIZED (
    SELECT l.session_id FROM lanes l WHERE l.session_id = ANY($1) ORDER BY l.session_id FOR UPDATE
)
UPDATE lanes l SET ready_at = greatest(l.next_slot_at, $2), updated_at = $2
FROM lane WHERE l.session_id = lane.session_id AND l.ready_at IS NULL AND l.in_flight IS NULL AND l.paused_because IS NULL";

const END_RESTRICTIONS: &str = "\
WITH lane AS MATERIALIZED (
    SELECT l.tenant_id, l.session_id FROM lanes l
    WHERE l.restricted_until IS NOT NULL AND l.restricted_until <= $1 ORDER BY l.session_id FOR UPDATE
), freed AS (
    UPDATE lanes l SET restricted_until = NULL, updated_at = $1 FROM lane WHERE l.session_id = lane.session_id
)
UPDATE waha_sessions s SET
    restriction_kind = NULL, restriction_since = NULL, restriction_until = NULL, version = s.version + 1, updated_at = $1
FROM lane WHERE s.tenant_id = lane.tenant_id AND s.id = lane.session_id";

/// Does one batch of what has become due.
///
/// # Errors
/// When the database does not answer; the rest is done later.
pub async fn round(app: &App) -> Result<Swept, DbError> {
    let now = app.clock.now();
    let look: Look = app
        .db
        .system(async |conn| {
            Ok::<_, DbError>(sql(LOOK).bind::<Timestamptz, _>(now).prepared().get_result(&mut **conn).await?)
        })
        .await?;
    let mut swept = Swept { next: look.next, ..Swept::default() };
    // Expired ones first, so that none of them is queued or released.
    if look.expired {
        swept.expired = app.db.system(async |conn| expire(conn, app, now).await).await?;
    }
    if look.scheduled {
        swept.queued = app.db.system(async |conn| promote(conn, app, now).await).await?;
    }
    if look.restricted {
        swept.unrestricted = app
            .db
            .system(async |conn| {
                let ended = sql(END_RESTRICTIONS).bind::<Timestamptz, _>(now).prepared().execute(&mut **conn);
                Ok::<_, DbError>(ended.await?)
            })
            .await?;
    }
    let mut woken = 0;
    if look.held {
        (swept.released, woken) = release(app, now).await?;
    }
    let full = usize::try_from(BATCH).unwrap_or(usize::MAX);
    swept.more = [swept.expired, swept.queued, swept.released].into_iter().any(|done| done >= full);
    if swept.queued + swept.released + swept.expired + woken > 0 {
        app.wake.dispatch.notify_one();
    }
    if swept.queued + swept.expired > 0 {
        app.wake.events.notify_one();
    }
    Ok(swept)
}

async fn expire(conn: &mut SystemConn, app: &App, now: DateTime<Utc>) -> Result<usize, DbError> {
    let expired: Vec<Waiting> =
        sql(EXPIRED).bind::<Timestamptz, _>(now).bind::<BigInt, _>(BATCH).prepared().load(&mut **conn).await?;
    let cause = "not sent before expires_at";
    Ok(settle::settle(conn, &app.chance, now, &expired, Status::Expired, cause).await?.len())
}

async fn promote(conn: &mut SystemConn, app: &App, now: DateTime<Utc>) -> Result<usize, DbError> {
    let rows: Vec<MessageRow> =
        sql(PROMOTE).bind::<Timestamptz, _>(now).bind::<BigInt, _>(BATCH).prepared().load(&mut **conn).await?;
    changes::record_all(conn, &app.chance, now, &rows, Status::Queued, "scheduled time").await?;
    Ok(rows.len())
}

/// Releases held messages whose cause is over and wakes lanes with room; answers how many of each. In transactions of their
/// own, as each locks lanes in the order of their ids.
async fn release(app: &App, now: DateTime<Utc>) -> Result<(usize, usize), DbError> {
    let held: Vec<Held> = app
        .db
        .system(async |conn| {
            Ok::<_, DbError>(sql(HELD).bind::<Timestamptz, _>(now).prepared().load(&mut **conn).await?)
        })
        .await?;
    let mut over: Vec<(SessionId, &str)> = Vec::new();
    let mut room = Vec::new();
    for lane in held {
        if lane.unrestricted {
            over.push((lane.session_id, "restricted"));
        }
        if lane.uncapped {
            over.push((lane.session_id, "new_chats_per_day"));
        }
        if lane.room == Some(true) {
            room.push(lane.session_id);
        }
    }
    let (mut released, mut woken) = (0, 0);
    if !over.is_empty() {
        let (sessions, reasons): (Vec<SessionId>, Vec<&str>) = over.into_iter().unzip();
        let count: Count = app
            .db
            .system(async |conn| {
                let released = sql(RELEASE)
                    .bind::<Array<SqlUuid>, _>(&sessions)
                    .bind::<Array<Text>, _>(&reasons)
                    .bind::<Timestamptz, _>(now)
                    .bind::<BigInt, _>(BATCH);
                Ok::<_, DbError>(released.prepared().get_result(&mut **conn).await?)
            })
            .await?;
        released = usize::try_from(count.messages).unwrap_or(0);
    }
    if !room.is_empty() {
        woken = app
            .db
            .system(async |conn| {
                let woken = sql(WAKE).bind::<Array<SqlUuid>, _>(&room).bind::<Timestamptz, _>(now);
                Ok::<_, DbError>(woken.prepared().execute(&mut **conn).await?)
            })
            .await?;
    }
    Ok((released, woken))
}

/// Removes sends that no cap looks at any more.
///
/// # Errors
/// When the database does not answer.
pub async fn prune(app: &App, now: DateTime<Utc>) -> Result<usize, DbError> {
    const PIECE: usize = 5000;
    let mut all = 0;
    loop {
        let removed = app
            .db
            .system(async |conn| {
                sql("DELETE FROM lane_sends WHERE (session_id, at, id) IN ( \
                         SELECT s.session_id, s.at, s.id FROM lanes l CROSS JOIN LATERAL ( \
                             SELECT s.session_id, s.at, s.id FROM lane_sends s \
                             WHERE s.session_id = l.session_id AND s.at < $1 ORDER BY s.at LIMIT 5000 \
                         ) s LIMIT 5000)")
                .bind::<Timestamptz, _>(now - SENDS_KEPT)
                .prepared()
                .execute(&mut **conn)
                .await
                .map_err(DbError::from)
            })
            .await?;
        all += removed;
        if removed < PIECE {
            return Ok(all);
        }
    }
}
