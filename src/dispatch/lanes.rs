//! Lanes: one session's queue and whose turn it is.
//!
//! A lane's row is the lock of its session: who changes what waits, what is in flight or when the next may leave holds it,
//! and takes it before any row of `messages`. While it is held nothing can be added, so "nothing waits" is a fact.

use chrono::{DateTime, TimeDelta, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Nullable, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;

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
struct Lane {
    #[diesel(sql_type = SqlUuid)]
    session_id: SessionId,
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

// Those that have waited longest go first: between lanes of the same moment that is taking turns.
const LOCK_DUE: &str =
    "SELECT session_id FROM lanes WHERE ready_at <= $1 ORDER BY ready_at LIMIT $2 FOR UPDATE SKIP LOCKED";

// A statement of its own, so that its snapshot is younger than the locks and sees all that was accepted before them.
// `queued` is set right where it is known for certain: nothing waits.
const TAKE_TURNS: &str = "\
WITH head AS (
    SELECT l.session_id, coalesce(l.in_flight, m.id) AS message_id
    FROM lanes l
    LEFT JOIN LATERAL (
        SELECT m.id FROM messages m
        WHERE l.in_flight IS NULL AND m.session_id = l.session_id
          AND (m.status = 'queued' OR m.requeued) AND m.held_because IS NULL
        ORDER BY m.priority, m.seq LIMIT 1
    ) m ON true
    WHERE l.session_id = ANY($1)
)
UPDATE lanes l SET
    in_flight = h.message_id,
    fence = l.fence + 1,
    lease_until = CASE WHEN h.message_id IS NOT NULL THEN $2 END,
    ready_at = CASE WHEN h.message_id IS NOT NULL THEN $2 END,
    queued = CASE WHEN h.message_id IS NOT NULL THEN l.queued ELSE 0 END,
    updated_at = $3
FROM head h WHERE h.session_id = l.session_id
RETURNING l.tenant_id, l.session_id, l.waha_server_id, l.in_flight, l.fence";

/// Takes up to `most` due lanes and puts the message whose turn it is in flight in each, under a lease until
/// `now + lease`. A lane that was taken and not claimed in time becomes due again by itself.
///
/// # Errors
/// When the database does not answer; nothing was taken then.
pub async fn take_due(db: &Db, now: DateTime<Utc>, lease: TimeDelta, most: i64) -> Result<Due, DbError> {
    db.system(async |conn| {
        let due: Vec<Lane> =
            sql(LOCK_DUE).bind::<Timestamptz, _>(now).bind::<BigInt, _>(most).prepared().load(&mut **conn).await?;
        let more = i64::try_from(due.len()).unwrap_or(i64::MAX) >= most;
        let sessions: Vec<_> = due.into_iter().map(|lane| lane.session_id).collect();
        let turns: Vec<Turn> = if sessions.is_empty() {
            Vec::new()
        } else {
            sql(TAKE_TURNS)
                .bind::<Array<SqlUuid>, _>(sessions)
                .bind::<Timestamptz, _>(now + lease)
                .bind::<Timestamptz, _>(now)
                .prepared()
                .load(&mut **conn)
                .await?
        };
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
