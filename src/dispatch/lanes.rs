//! Lanes: one session's queue and whose turn it is.
//!
//! A lane's row is the lock of its session: who changes what waits, what is in flight or when the next may leave holds it,
//! and takes it before any row of `messages`. While it is held nothing can be added, so "nothing waits" is a fact.

use chrono::{DateTime, TimeDelta, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Bool, Nullable, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};

use super::limits::{self, LOCK_DUE, Lane, Limits};
use crate::broker::envelope::OutboundRef;
use crate::db::{Db, DbError, Prepare, sql};
use crate::domain::ids::{MessageId, SessionId, TenantId, WahaServerId};

/// What one look at the lanes found.
#[derive(Debug)]
pub struct Due {
    /// The messages whose turn it is, with the server they go to.
    pub turns: Vec<(WahaServerId, OutboundRef)>,
    /// Whether more lanes may be due right now.
    pub more: bool,
    /// When the next lane becomes due.
    pub next: Option<DateTime<Utc>>,
}

#[derive(QueryableByName)]
struct Turn {
    #[diesel(sql_type = SqlUuid)]
    tenant_id: TenantId,
    #[diesel(sql_type = SqlUuid)]
    session_id: SessionId,
    #[diesel(sql_type = SqlUuid)]
    waha_server_id: WahaServerId,
    #[diesel(sql_type = Nullable<SqlUuid>)]
    in_flight: Option<MessageId>,
    #[diesel(sql_type = BigInt)]
    fence: i64,
}

#[derive(QueryableByName)]
struct Next {
    #[diesel(sql_type = Nullable<Timestamptz>)]
    ready_at: Option<DateTime<Utc>>,
}

/// Picks the heads and puts them in flight; public for the test of its plan.
///
/// A statement of its own, so that its snapshot is younger than the locks and sees all that was accepted before them.
/// `going_on` is what was claimed and has no outcome, or was settled under way: it keeps its turn, since caps counted it and
/// what became of it must be found out. One that nobody claimed steps back into the queue, where a high one may overtake it. The head is looked at before the window, never searched
/// behind it: high ones come first in the order, so that a closed lane costs one probe. `queued` is set right where it is
/// known for certain: nothing waits.
#[doc(hidden)]
pub const TAKE_TURNS: &str = "\
WITH input AS (
    SELECT * FROM unnest($1, $2, $3, $6) AS i (session_id, opens_at, new_chats, free_at)
), head AS (
    SELECT l.tenant_id, l.session_id, i.opens_at, i.free_at, going_on.id AS going_on, first.id, first.priority, first.held
    FROM input i JOIN lanes l USING (session_id)
    CROSS JOIN LATERAL (
        SELECT CASE WHEN l.in_flight IS NOT NULL AND NOT coalesce((
            SELECT m.status = 'queued' OR m.requeued FROM messages m WHERE m.tenant_id = l.tenant_id AND m.id = l.in_flight
        ), false) THEN l.in_flight END AS id
    ) going_on
    LEFT JOIN LATERAL (
        SELECT c.id, c.priority, c.held FROM (
            (SELECT m.id, m.priority, m.seq, false AS held FROM messages m
             WHERE going_on.id IS NULL AND i.free_at IS NULL AND m.session_id = l.session_id
               AND (m.status = 'queued' OR m.requeued) AND m.held_because IS NULL
               AND (m.requeued OR m.expires_at IS NULL OR m.expires_at > $5)
             ORDER BY m.priority, m.seq LIMIT 1)
            UNION ALL
            (SELECT m.id, m.priority, m.seq, true AS held FROM messages m
             WHERE going_on.id IS NULL AND i.free_at IS NULL AND i.new_chats AND m.session_id = l.session_id
               AND m.held_because = 'new_chats_per_day' AND (m.expires_at IS NULL OR m.expires_at > $5)
             ORDER BY m.priority, m.seq LIMIT 1)
        ) c ORDER BY c.priority, c.seq LIMIT 1
    ) first ON true
), pick AS (
    SELECT h.tenant_id, h.session_id, h.opens_at, h.free_at,
        coalesce(h.going_on, CASE WHEN h.opens_at IS NULL OR h.priority = 0 THEN h.id END) AS message_id,
        coalesce(h.held AND (h.opens_at IS NULL OR h.priority = 0), false) AS held,
        h.id IS NOT NULL AS waits,
        CASE WHEN h.id IS NULL AND h.going_on IS NULL AND h.free_at IS NULL THEN EXISTS (
            SELECT FROM messages m
            WHERE m.session_id = h.session_id AND (m.status = 'queued' OR m.requeued) AND m.held_because IS NULL
        ) ELSE false END AS expired
    FROM head h
), released AS (
    UPDATE messages m SET held_because = NULL, updated_at = $5
    FROM pick p WHERE p.held AND m.tenant_id = p.tenant_id AND m.id = p.message_id
)
UPDATE lanes l SET
    in_flight = p.message_id,
    fence = l.fence + 1,
    lease_until = CASE WHEN p.message_id IS NOT NULL THEN $4 END,
    ready_at = CASE WHEN p.message_id IS NOT NULL THEN $4
                    WHEN p.free_at IS NOT NULL THEN p.free_at
                    WHEN p.waits THEN p.opens_at
                    WHEN p.expired THEN $5 + interval '1 second' END,
    queued = CASE WHEN p.held THEN l.queued + 1
                  WHEN p.message_id IS NOT NULL OR p.free_at IS NOT NULL OR p.waits OR p.expired THEN l.queued
                  ELSE 0 END,
    updated_at = $5
FROM pick p WHERE p.session_id = l.session_id
RETURNING l.tenant_id, l.session_id, l.waha_server_id, l.in_flight, l.fence";

/// Takes up to `most` due lanes and puts the message whose turn it is in flight in each, under a lease until
/// `now + lease`. A lane that may not send yet is due again when it may. A lane that was taken and not claimed in time
/// becomes due again by itself.
///
/// # Errors
/// When the database does not answer; nothing was taken then.
pub async fn take_due(db: &Db, now: DateTime<Utc>, lease: TimeDelta, most: i64) -> Result<Due, DbError> {
    db.system(async |conn| {
        let due: Vec<Lane> =
            sql(LOCK_DUE).bind::<Timestamptz, _>(now).bind::<BigInt, _>(most).prepared().load(&mut **conn).await?;
        let more = i64::try_from(due.len()).unwrap_or(i64::MAX) >= most;
        let limits = limits::of(conn, due, now).await?;
        limits::postpone(conn, &limits.later, now).await?;
        let turns = take(conn, &limits, now, lease).await?;
        let next: Next = sql("SELECT min(ready_at) AS ready_at FROM lanes WHERE ready_at IS NOT NULL")
            .prepared()
            .get_result(&mut **conn)
            .await?;
        let turns = turns
            .into_iter()
            .filter_map(|turn| {
                let message_id = turn.in_flight?;
                let reference = OutboundRef {
                    message_id,
                    session_id: turn.session_id,
                    tenant_id: turn.tenant_id,
                    fence: turn.fence,
                };
                Some((turn.waha_server_id, reference))
            })
            .collect();
        Ok(Due { turns, more, next: next.ready_at })
    })
    .await
}

async fn take(
    conn: &mut AsyncPgConnection,
    limits: &Limits,
    now: DateTime<Utc>,
    lease: TimeDelta,
) -> Result<Vec<Turn>, DbError> {
    if limits.now.is_empty() {
        return Ok(Vec::new());
    }
    Ok(sql(TAKE_TURNS)
        .bind::<Array<SqlUuid>, _>(limits.now.iter().map(|lane| lane.session).collect::<Vec<_>>())
        .bind::<Array<Nullable<Timestamptz>>, _>(limits.now.iter().map(|lane| lane.opens_at).collect::<Vec<_>>())
        .bind::<Array<Bool>, _>(limits.now.iter().map(|lane| lane.new_chats).collect::<Vec<_>>())
        .bind::<Timestamptz, _>(now + lease)
        .bind::<Timestamptz, _>(now)
        .bind::<Array<Nullable<Timestamptz>>, _>(limits.now.iter().map(|lane| lane.free_at).collect::<Vec<_>>())
        .prepared()
        .load(conn)
        .await?)
}

/// Makes lanes due again at `at` whose message could not be put on the road. One that was claimed or taken again meanwhile
/// is left alone.
///
/// # Errors
/// When the database does not answer; the leases then run out.
pub async fn give_back(db: &Db, turns: &[OutboundRef], at: DateTime<Utc>) -> Result<(), DbError> {
    db.system(async |conn| {
        sql("WITH input AS (SELECT * FROM unnest($1, $2) AS i (session_id, fence)), \
             locked AS (SELECT l.session_id FROM lanes l JOIN input i USING (session_id) \
                        WHERE l.fence = i.fence AND l.claimed_fence < l.fence AND l.paused_because IS NULL \
                        ORDER BY l.session_id FOR UPDATE OF l) \
             UPDATE lanes l SET ready_at = $3, lease_until = NULL FROM locked WHERE l.session_id = locked.session_id")
        .bind::<Array<SqlUuid>, _>(turns.iter().map(|turn| turn.session_id).collect::<Vec<_>>())
        .bind::<Array<BigInt>, _>(turns.iter().map(|turn| turn.fence).collect::<Vec<_>>())
        .bind::<Timestamptz, _>(at)
        .prepared()
        .execute(&mut **conn)
        .await?;
        Ok(())
    })
    .await
}
