//! Whether a due lane may send now: its caps, its window and its server's circuit breaker.
//!
//! What a lane may not do yet is written into `ready_at`, so that it costs nothing until then.

use std::collections::{HashMap, HashSet};

use chrono::{DateTime, TimeDelta, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{Array, Bool, Integer, Jsonb, Nullable, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::pacing::{WarmUp, per_day_at};
use super::windows::{Windows, next_open};
use crate::db::{DbError, Prepare, sql};
use crate::domain::ids::{SessionId, WahaServerId};

/// Locks due lanes; public for the test of its plan. Those that have waited longest go first: between lanes of the same moment
/// that is taking turns.
#[doc(hidden)]
pub const LOCK_DUE: &str = "\
SELECT l.session_id, l.waha_server_id, l.per_minute, l.per_hour, l.per_day, l.new_chats_per_day, l.warm_up,
       l.working_since, l.windows,
       (SELECT v.breaker_open_until FROM waha_servers v WHERE v.id = l.waha_server_id) AS breaker_open_until
FROM lanes l WHERE l.ready_at <= $1 ORDER BY l.ready_at LIMIT $2 FOR UPDATE OF l SKIP LOCKED";

/// A lane that is due.
#[derive(QueryableByName)]
pub(super) struct Lane {
    #[diesel(sql_type = SqlUuid)]
    session_id: SessionId,
    #[diesel(sql_type = SqlUuid)]
    waha_server_id: WahaServerId,
    #[diesel(sql_type = Nullable<Integer>)]
    per_minute: Option<i32>,
    #[diesel(sql_type = Nullable<Integer>)]
    per_hour: Option<i32>,
    #[diesel(sql_type = Nullable<Integer>)]
    per_day: Option<i32>,
    #[diesel(sql_type = Nullable<Integer>)]
    new_chats_per_day: Option<i32>,
    #[diesel(sql_type = Nullable<Jsonb>)]
    warm_up: Option<Value>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    working_since: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<Jsonb>)]
    windows: Option<Value>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    breaker_open_until: Option<DateTime<Utc>>,
}

/// What due lanes may do.
#[derive(Debug, Default)]
pub(super) struct Limits {
    /// Lanes to be looked into.
    pub now: Vec<MaySend>,
    /// Lanes whose server gets no turns, and until when.
    pub later: Vec<(SessionId, DateTime<Utc>)>,
}

/// What a lane may send.
#[derive(Debug)]
pub(super) struct MaySend {
    pub session: SessionId,
    /// Set when a cap is reached: until then nothing new may leave.
    pub free_at: Option<DateTime<Utc>>,
    /// Set when its window is closed: until then only high messages may leave.
    pub opens_at: Option<DateTime<Utc>>,
    /// Whether its new-chat cap has room for a message that waits because of it.
    pub new_chats: bool,
}

// The n-th latest send and the window: then there is room for the next. Each is one walk backwards along the primary key.
const ROOM: &str = "\
SELECT i.session_id,
    greatest(
        CASE WHEN i.per_minute > 0 THEN (
            SELECT s.at + interval '1 minute' FROM lane_sends s
            WHERE s.session_id = i.session_id AND s.at > $6 - interval '1 minute'
            ORDER BY s.at DESC, s.id DESC OFFSET i.per_minute - 1 LIMIT 1) END,
        CASE WHEN i.per_hour > 0 THEN (
            SELECT s.at + interval '1 hour' FROM lane_sends s
            WHERE s.session_id = i.session_id AND s.at > $6 - interval '1 hour'
            ORDER BY s.at DESC, s.id DESC OFFSET i.per_hour - 1 LIMIT 1) END
    ) AS free_at,
    CASE WHEN i.per_day > 0 THEN (
        SELECT s.at + interval '24 hours' FROM lane_sends s
        WHERE s.session_id = i.session_id AND s.at > $6 - interval '24 hours'
        ORDER BY s.at DESC, s.id DESC OFFSET i.per_day - 1 LIMIT 1) END AS day_free_at,
    i.new_chats > 0 AND NOT EXISTS (
        SELECT FROM lane_sends s
        WHERE s.session_id = i.session_id AND s.new_chat AND s.at > $6 - interval '24 hours'
        ORDER BY s.at DESC OFFSET greatest(i.new_chats, 1) - 1 LIMIT 1) AS new_chats
FROM unnest($1, $2, $3, $4, $5) AS i (session_id, per_minute, per_hour, per_day, new_chats)";

#[derive(QueryableByName)]
struct Room {
    #[diesel(sql_type = SqlUuid)]
    session_id: SessionId,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    free_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    day_free_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Bool)]
    new_chats: bool,
}

// After a breaker's pause one turn at a time tries the server out. The row's lock and the time of the last trial keep two
// dispatchers from giving one each.
const TRY_OUT: &str = "\
UPDATE waha_servers v SET breaker_trial_at = $2
WHERE v.id = ANY($1) AND v.breaker_open_until <= $2
  AND (v.breaker_trial_at IS NULL OR v.breaker_trial_at <= $2 - interval '250 ms')
  AND NOT EXISTS (SELECT FROM lanes l WHERE l.waha_server_id = v.id AND l.in_flight IS NOT NULL AND l.lease_until > $2)
RETURNING v.id";

#[derive(QueryableByName)]
struct ServerId {
    #[diesel(sql_type = SqlUuid)]
    id: WahaServerId,
}

impl Lane {
    fn per_day(&self, now: DateTime<Utc>) -> (Option<i32>, Option<DateTime<Utc>>) {
        match (self.per_day, read::<WarmUp>(self.session_id, self.warm_up.as_ref())) {
            (Some(cap), Some(warm_up)) => {
                let (cap, until) = per_day_at(cap, warm_up, self.working_since, now);
                (Some(cap), until)
            }
            (cap, _) => (cap, None),
        }
    }

    fn is_capped(&self) -> bool {
        [self.per_minute, self.per_hour, self.per_day, self.new_chats_per_day].into_iter().flatten().any(|cap| cap > 0)
    }

    /// When normal and bulk messages may leave again; `None`: now.
    fn opens_at(&self, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let windows: Windows = read(self.session_id, self.windows.as_ref())?;
        // With no opening in sight, look again tomorrow.
        let at = next_open(&windows, now).unwrap_or(now + TimeDelta::days(1));
        (at > now).then_some(at)
    }
}

/// What the settings were validated as when they were written.
fn read<T: DeserializeOwned>(session: SessionId, value: Option<&Value>) -> Option<T> {
    T::deserialize(value?)
        .inspect_err(
            |fault| tracing::error!(session_id = %session, %fault, "dispatch: a lane's settings cannot be read"),
        )
        .ok()
}

/// Spreads lanes that wait for the same thing over two seconds: by their ids, which are as good as chance.
fn spread(session: SessionId) -> TimeDelta {
    let low = session.0.as_u64_pair().1 % 2000;
    TimeDelta::milliseconds(i64::try_from(low).unwrap_or(0))
}

/// What each of `due`, which are locked, may do.
///
/// # Errors
/// When the database does not answer.
pub(super) async fn of(conn: &mut AsyncPgConnection, due: Vec<Lane>, now: DateTime<Utc>) -> Result<Limits, DbError> {
    let mut limits = Limits::default();
    let (broken, due): (Vec<Lane>, Vec<Lane>) = due.into_iter().partition(|lane| lane.breaker_open_until.is_some());
    let mut candidates = try_out(conn, broken, now, &mut limits).await?;
    candidates.extend(due);
    let capped: Vec<&Lane> = candidates.iter().filter(|lane| lane.is_capped()).collect();
    let room = room(conn, &capped, now).await?;
    for lane in &candidates {
        let room = room.get(&lane.session_id);
        let day_free_at = room.and_then(|room| room.day_free_at).map(|at| match lane.per_day(now).1 {
            // A cap that grows may make room before the window does.
            Some(grows_at) => at.min(grows_at),
            None => at,
        });
        limits.now.push(MaySend {
            session: lane.session_id,
            free_at: room.and_then(|room| room.free_at).max(day_free_at).filter(|at| *at > now),
            opens_at: lane.opens_at(now),
            new_chats: room.is_some_and(|room| room.new_chats),
        });
    }
    Ok(limits)
}

async fn room(
    conn: &mut AsyncPgConnection,
    capped: &[&Lane],
    now: DateTime<Utc>,
) -> Result<HashMap<SessionId, Room>, DbError> {
    if capped.is_empty() {
        return Ok(HashMap::new());
    }
    let caps = |cap: fn(&Lane) -> Option<i32>| -> Vec<Option<i32>> { capped.iter().map(|lane| cap(lane)).collect() };
    let rows: Vec<Room> = sql(ROOM)
        .bind::<Array<SqlUuid>, _>(capped.iter().map(|lane| lane.session_id).collect::<Vec<_>>())
        .bind::<Array<Nullable<Integer>>, _>(caps(|lane| lane.per_minute))
        .bind::<Array<Nullable<Integer>>, _>(caps(|lane| lane.per_hour))
        .bind::<Array<Nullable<Integer>>, _>(capped.iter().map(|lane| lane.per_day(now).0).collect::<Vec<_>>())
        .bind::<Array<Integer>, _>(capped.iter().map(|lane| lane.new_chats_per_day.unwrap_or(0)).collect::<Vec<_>>())
        .bind::<Timestamptz, _>(now)
        .prepared()
        .load(conn)
        .await?;
    Ok(rows.into_iter().map(|row| (row.session_id, row)).collect())
}

/// Answers the lanes of `broken`, whose servers' breakers are not closed, that may try their server out.
async fn try_out(
    conn: &mut AsyncPgConnection,
    broken: Vec<Lane>,
    now: DateTime<Utc>,
    limits: &mut Limits,
) -> Result<Vec<Lane>, DbError> {
    let mut half_open = Vec::new();
    for lane in broken {
        match lane.breaker_open_until {
            Some(until) if until > now => limits.later.push((lane.session_id, until + spread(lane.session_id))),
            _ => half_open.push(lane),
        }
    }
    if half_open.is_empty() {
        return Ok(half_open);
    }
    let servers: HashSet<WahaServerId> = half_open.iter().map(|lane| lane.waha_server_id).collect();
    let ready: Vec<ServerId> = sql(TRY_OUT)
        .bind::<Array<SqlUuid>, _>(servers.into_iter().collect::<Vec<_>>())
        .bind::<Timestamptz, _>(now)
        .prepared()
        .load(conn)
        .await?;
    let mut ready: HashSet<WahaServerId> = ready.into_iter().map(|server| server.id).collect();
    let mut trials = Vec::new();
    for lane in half_open {
        if ready.remove(&lane.waha_server_id) {
            trials.push(lane);
        } else {
            let again = now + TimeDelta::milliseconds(500) + spread(lane.session_id) / 2;
            limits.later.push((lane.session_id, again));
        }
    }
    Ok(trials)
}

/// Makes lanes due when they may send.
///
/// # Errors
/// When the database does not answer.
pub(super) async fn postpone(
    conn: &mut AsyncPgConnection,
    lanes: &[(SessionId, DateTime<Utc>)],
    now: DateTime<Utc>,
) -> Result<(), DbError> {
    if lanes.is_empty() {
        return Ok(());
    }
    sql("UPDATE lanes l SET ready_at = i.at, updated_at = $3 FROM unnest($1, $2) AS i (session_id, at) \
         WHERE l.session_id = i.session_id")
    .bind::<Array<SqlUuid>, _>(lanes.iter().map(|lane| lane.0).collect::<Vec<_>>())
    .bind::<Array<Timestamptz>, _>(lanes.iter().map(|lane| lane.1).collect::<Vec<_>>())
    .bind::<Timestamptz, _>(now)
    .prepared()
    .execute(conn)
    .await?;
    Ok(())
}
