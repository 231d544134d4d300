//! Moving what waits in a pool's session that cannot write any more to one that can.
//!
//! Guarantee: only what was never attempted moves. Whatever may have been sent, by whatever crash, stays where it is. A move
//! happens under the locks of both lanes, and takes the turn of a message that was dispatched and not yet claimed with it: the
//! fence is raised, so a worker that still holds that turn claims nothing. The message keeps its id, its place in the order of
//! acceptance and, where the engine allows, its WhatsApp id. Any number of nodes may sweep.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Bool, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use tokio::sync::watch;

use crate::app::App;
use crate::db::{DbError, Prepare, SystemConn, sql};
use crate::domain::ids::{MessageId, SenderPoolId, SessionId, TenantId};
use crate::sessions::status::lock_lanes;
use crate::waha::{self, Engine};

/// How often it is looked for sessions that cannot write.
const EVERY: Duration = Duration::from_secs(2);
/// Messages moved in one transaction, at the most.
const MOST: i64 = 500;

// What may move: never attempted, not an answer to something only its own session knows, and to a person, since another
// session is not a member of the same groups.
macro_rules! movable {
    () => {
        "m.status IN ('queued', 'scheduled') AND m.attempts = 0 AND m.attempt_state = 'none' AND NOT m.requeued \
         AND m.handed_over_at IS NULL AND m.reply_to IS NULL AND coalesce(m.content -> 'forwards', 'null') = 'null' \
         AND (m.chat_id LIKE '%@c.us' OR m.chat_id LIKE '%@lid')"
    };
}

// Sessions whose messages have to leave: gone, failed, stopped on purpose or for longer than a restart takes, or restricted.
const SOURCES: &str = concat!(
    "\
SELECT s.tenant_id, s.id AS session_id, p.id AS pool_id
FROM lanes l
JOIN waha_sessions s ON s.tenant_id = l.tenant_id AND s.id = l.session_id
JOIN sender_pools p ON p.tenant_id = l.tenant_id AND p.deleted_at IS NULL
WHERE (l.paused_because IS NOT NULL OR l.restricted_until > $1)
  AND (s.deleted_at IS NOT NULL OR s.desired = 'deleted' OR s.status = 'failed' OR l.restricted_until > $1
       OR (s.status IN ('stopped', 'scan_qr') AND (s.desired = 'stopped' OR s.status_at < $1 - interval '10 s')))
  AND EXISTS (SELECT FROM messages m WHERE m.session_id = l.session_id AND m.pool_id = p.id AND ",
    movable!(),
    ")
  AND EXISTS (SELECT FROM sender_pool_sessions i
              JOIN lanes o ON o.tenant_id = i.tenant_id AND o.session_id = i.session_id
              JOIN waha_sessions w ON w.tenant_id = i.tenant_id AND w.id = i.session_id
              WHERE i.tenant_id = p.tenant_id AND i.pool_id = p.id AND i.session_id <> l.session_id
                AND w.status = 'working' AND w.deleted_at IS NULL AND o.paused_because IS NULL)"
);

#[derive(QueryableByName)]
struct Source {
    #[diesel(sql_type = SqlUuid)]
    tenant_id: TenantId,
    #[diesel(sql_type = SqlUuid)]
    session_id: SessionId,
    #[diesel(sql_type = SqlUuid)]
    pool_id: SenderPoolId,
}

// Read after the lanes are locked, since all that changes a session's state takes its lane first.
const MEMBERS: &str = "\
SELECT s.id, s.engine, s.phone, (l.queued + (l.in_flight IS NOT NULL)::int)::int8 AS load,
       s.status = 'working' AND s.deleted_at IS NULL AND s.desired <> 'deleted' AND l.paused_because IS NULL AS works,
       coalesce(l.restricted_until > $3, false) AS restricted
FROM lanes l JOIN waha_sessions s ON s.tenant_id = l.tenant_id AND s.id = l.session_id
WHERE l.tenant_id = $1 AND l.session_id = ANY($2)";

#[derive(QueryableByName)]
struct Member {
    #[diesel(sql_type = SqlUuid)]
    id: SessionId,
    #[diesel(sql_type = Text)]
    engine: String,
    #[diesel(sql_type = Nullable<Text>)]
    phone: Option<String>,
    #[diesel(sql_type = BigInt)]
    load: i64,
    #[diesel(sql_type = Bool)]
    works: bool,
    #[diesel(sql_type = Bool)]
    restricted: bool,
}

const WAITING: &str = concat!(
    "\
SELECT m.id, m.chat_id, m.waha_message_id FROM messages m
WHERE m.tenant_id = $1 AND m.session_id = $2 AND m.pool_id = $3 AND ",
    movable!(),
    " AND ($4 OR NOT EXISTS (SELECT FROM known_chats v
                           WHERE v.tenant_id = $1 AND v.session_id = $2 AND v.chat_id = m.chat_id))
ORDER BY m.priority, m.seq LIMIT $5"
);

#[derive(QueryableByName)]
struct Waiting {
    #[diesel(sql_type = SqlUuid)]
    id: MessageId,
    #[diesel(sql_type = Text)]
    chat_id: String,
    #[diesel(sql_type = Nullable<Text>)]
    waha_message_id: Option<String>,
}

#[derive(QueryableByName)]
struct Known {
    #[diesel(sql_type = SqlUuid)]
    session_id: SessionId,
    #[diesel(sql_type = Text)]
    chat_id: String,
}

/// One message with its new session.
struct Move {
    message: MessageId,
    session: SessionId,
    chat: String,
    from: Option<String>,
    waha_message_id: Option<String>,
}

/// Sweeps until `stop` turns true.
pub async fn run(app: App, mut stop: watch::Receiver<bool>) {
    while !*stop.borrow() {
        let more = match sweep(&app).await {
            Ok(moved) => moved > 0,
            Err(fault) => {
                tracing::warn!(%fault, "messages of sender pools could not be moved");
                false
            }
        };
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            () = app.clock.sleep(if more { Duration::from_millis(50) } else { EVERY }) => {}
        }
    }
}

/// Moves what can be moved now; answers how many messages.
///
/// # Errors
/// When the database does not answer; what was moved by then is moved.
pub async fn sweep(app: &App) -> Result<usize, DbError> {
    let now = app.clock.now();
    let sources: Vec<Source> = app
        .db
        .system(async |conn| {
            Ok::<_, DbError>(sql(SOURCES).bind::<Timestamptz, _>(now).prepared().load(&mut **conn).await?)
        })
        .await?;
    let mut moved = 0;
    for source in sources {
        moved += app.db.system(async |conn| move_some(app, conn, &source, now).await).await?;
    }
    if moved > 0 {
        metrics::counter!("switchboard_pool_moves_total").increment(moved.try_into().unwrap_or(u64::MAX));
        app.wake.dispatch.notify_one();
    }
    Ok(moved)
}

async fn move_some(app: &App, conn: &mut SystemConn, source: &Source, now: DateTime<Utc>) -> Result<usize, DbError> {
    let Source { tenant_id, session_id, pool_id } = *source;
    let of_pool: Vec<Known> =
        sql("SELECT session_id, '' AS chat_id FROM sender_pool_sessions WHERE tenant_id = $1 AND pool_id = $2")
            .bind::<SqlUuid, _>(tenant_id)
            .bind::<SqlUuid, _>(pool_id)
            .prepared()
            .load(&mut **conn)
            .await?;
    let mut lanes: Vec<SessionId> = of_pool.into_iter().map(|row| row.session_id).collect();
    let members: HashSet<SessionId> = lanes.iter().copied().collect();
    lanes.push(session_id);
    lock_lanes(conn, &lanes).await?;
    let found: Vec<Member> = sql(MEMBERS)
        .bind::<SqlUuid, _>(tenant_id)
        .bind::<Array<SqlUuid>, _>(&lanes)
        .bind::<Timestamptz, _>(now)
        .prepared()
        .load(&mut **conn)
        .await?;
    let Some(from) = found.iter().find(|member| member.id == session_id) else { return Ok(0) };
    // It may have recovered before its lane was locked.
    if from.works && !from.restricted {
        return Ok(0);
    }
    let gone = !from.works;
    let targets: Vec<Member> = found
        .into_iter()
        .filter(|member| member.works && member.id != session_id && members.contains(&member.id))
        .collect();
    if targets.is_empty() {
        return Ok(0);
    }
    let waiting: Vec<Waiting> = sql(WAITING)
        .bind::<SqlUuid, _>(tenant_id)
        .bind::<SqlUuid, _>(session_id)
        .bind::<SqlUuid, _>(pool_id)
        .bind::<Bool, _>(gone)
        .bind::<BigInt, _>(MOST)
        .prepared()
        .load(&mut **conn)
        .await?;
    let chats: Vec<&str> = waiting.iter().map(|message| message.chat_id.as_str()).collect();
    let own: Vec<Known> = sql("SELECT session_id, chat_id FROM sender_pool_recipients \
         WHERE tenant_id = $1 AND pool_id = $2 AND chat_id = ANY($3)")
    .bind::<SqlUuid, _>(tenant_id)
    .bind::<SqlUuid, _>(pool_id)
    .bind::<Array<Text>, _>(&chats)
    .prepared()
    .load(&mut **conn)
    .await?;
    let talked: Vec<Known> = sql("SELECT session_id, chat_id FROM known_chats \
         WHERE tenant_id = $1 AND session_id = ANY($2) AND chat_id = ANY($3)")
    .bind::<SqlUuid, _>(tenant_id)
    .bind::<Array<SqlUuid>, _>(&lanes)
    .bind::<Array<Text>, _>(&chats)
    .prepared()
    .load(&mut **conn)
    .await?;
    let moves = assign(app, waiting, targets, &own, &talked);
    if moves.is_empty() {
        return Ok(0);
    }
    write(conn, source, &moves, now).await
}

/// Gives each message its new session: its recipient's own, else the least loaded. All of one recipient go the same way.
fn assign(app: &App, waiting: Vec<Waiting>, mut targets: Vec<Member>, own: &[Known], talked: &[Known]) -> Vec<Move> {
    let talked: HashSet<(SessionId, &str)> = talked.iter().map(|row| (row.session_id, row.chat_id.as_str())).collect();
    let mut chosen: HashMap<String, SessionId> = own.iter().map(|row| (row.chat_id.clone(), row.session_id)).collect();
    let mut moves = Vec::with_capacity(waiting.len());
    for message in waiting {
        let can = |member: &Member| !member.restricted || talked.contains(&(member.id, message.chat_id.as_str()));
        let first = chosen.get(&message.chat_id).copied();
        let place = targets.iter().position(|member| Some(member.id) == first && can(member)).or_else(|| {
            let able = targets.iter().enumerate().filter(|(_, member)| can(member));
            able.min_by_key(|(_, member)| (member.load, member.id)).map(|(place, _)| place)
        });
        let Some(member) = place.and_then(|place| targets.get_mut(place)) else { continue };
        member.load += 1;
        chosen.insert(message.chat_id.clone(), member.id);
        let honours = member.engine.parse::<Engine>().is_ok_and(Engine::honours_message_id);
        moves.push(Move {
            message: message.id,
            session: member.id,
            chat: message.chat_id,
            from: member.phone.clone(),
            // It was never used; it stays where the new engine takes ours.
            waha_message_id: honours
                .then(|| message.waha_message_id.unwrap_or_else(|| waha::new_message_id(&app.chance))),
        });
    }
    moves
}

// The source's turn is withdrawn when its message moves: dispatched, and not claimed, since claimed messages count an attempt.
const MOVE: &str = concat!(
    "\
WITH input AS (
    SELECT * FROM unnest($4, $5, $6, $7, $8) AS i (id, session_id, chat_id, from_msisdn, waha_message_id)
), before AS (
    SELECT m.tenant_id, m.id, m.status, m.held_because, i.session_id, i.chat_id, i.from_msisdn, i.waha_message_id
    FROM messages m JOIN input i ON m.tenant_id = $1 AND m.id = i.id
    WHERE m.session_id = $2 AND m.pool_id = $3 AND ",
    movable!(),
    "
    ORDER BY m.tenant_id, m.id FOR UPDATE OF m
), message AS (
    UPDATE messages m SET session_id = b.session_id, from_msisdn = b.from_msisdn, waha_message_id = b.waha_message_id,
                          held_because = NULL, updated_at = $9
    FROM before b WHERE m.tenant_id = b.tenant_id AND m.id = b.id
    RETURNING m.id
), transition AS (
    INSERT INTO message_transitions (tenant_id, message_id, status, at, cause)
    SELECT tenant_id, id, status, $9, 'moved' FROM before ORDER BY id
), recipient AS (
    INSERT INTO sender_pool_recipients (tenant_id, pool_id, chat_id, session_id, created_at, updated_at)
    SELECT DISTINCT ON (chat_id) tenant_id, $3, chat_id, session_id, $9, $9 FROM before ORDER BY chat_id
    ON CONFLICT (pool_id, chat_id) DO UPDATE SET session_id = excluded.session_id, updated_at = excluded.updated_at
), source AS (
    UPDATE lanes l SET
        queued = greatest(l.queued - (SELECT count(*) FROM before WHERE status = 'queued' AND held_because IS NULL)::int, 0),
        in_flight = CASE WHEN withdrawn.now THEN NULL ELSE l.in_flight END,
        fence = l.fence + withdrawn.now::int,
        lease_until = CASE WHEN withdrawn.now THEN NULL ELSE l.lease_until END,
        ready_at = CASE WHEN withdrawn.now AND l.paused_because IS NULL THEN greatest(l.next_slot_at, $9)
                        WHEN withdrawn.now THEN NULL ELSE l.ready_at END,
        updated_at = $9
    FROM (SELECT EXISTS (SELECT FROM before b JOIN lanes s ON s.in_flight = b.id WHERE s.session_id = $2) AS now) withdrawn
    WHERE l.session_id = $2
), target AS (
    UPDATE lanes l SET
        queued = l.queued + b.messages,
        ready_at = CASE WHEN l.in_flight IS NULL AND l.paused_because IS NULL AND b.messages > 0
                        THEN coalesce(l.ready_at, greatest(l.next_slot_at, $9)) ELSE l.ready_at END,
        updated_at = $9
    FROM (SELECT session_id, count(*) FILTER (WHERE status = 'queued')::int AS messages FROM before GROUP BY session_id) b
    WHERE l.session_id = b.session_id
)
SELECT count(*) AS moved FROM message"
);

#[derive(QueryableByName)]
struct Moved {
    #[diesel(sql_type = BigInt)]
    moved: i64,
}

async fn write(conn: &mut SystemConn, source: &Source, moves: &[Move], now: DateTime<Utc>) -> Result<usize, DbError> {
    fn column<'a, T>(moves: &'a [Move], of: impl Fn(&'a Move) -> T) -> Vec<T> {
        moves.iter().map(of).collect()
    }
    let moved: Moved = sql(MOVE)
        .bind::<SqlUuid, _>(source.tenant_id)
        .bind::<SqlUuid, _>(source.session_id)
        .bind::<SqlUuid, _>(source.pool_id)
        .bind::<Array<SqlUuid>, _>(column(moves, |entry| entry.message))
        .bind::<Array<SqlUuid>, _>(column(moves, |entry| entry.session))
        .bind::<Array<Text>, _>(column(moves, |entry| entry.chat.as_str()))
        .bind::<Array<Nullable<Text>>, _>(column(moves, |entry| entry.from.as_deref()))
        .bind::<Array<Nullable<Text>>, _>(column(moves, |entry| entry.waha_message_id.as_deref()))
        .bind::<Timestamptz, _>(now)
        .prepared()
        .get_result(&mut **conn)
        .await?;
    Ok(usize::try_from(moved.moved).unwrap_or(0))
}
