//! Claiming: from now on this worker, and no other, may hand the message to WAHA.
//!
//! A claim must show the lane's current fence and works once per fence. It counts the attempt and opens it before the POST,
//! so a message that kills its worker is found out by the next claim. Committed before anything leaves the process.

use chrono::{DateTime, TimeDelta, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Integer, Nullable, SmallInt, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;

use crate::app::App;
use crate::broker::envelope::OutboundRef;
use crate::db::group_commit::BatchWriter;
use crate::db::{Db, DbError, Prepare, sql};
use crate::domain::clock::Clock;
use crate::domain::ids::{MessageId, SessionId, TenantId};
use crate::sending::outcome::Doubt;

/// How the attempt before this one ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Before {
    /// There was none, or it certainly sent nothing.
    Nothing,
    /// Its worker died, or nobody knows whether it sent.
    Doubt,
}

/// A message that this worker may hand over, until `lease_until`.
#[derive(Debug)]
pub struct Claimed {
    /// The turn this claim belongs to.
    pub turn: OutboundRef,
    /// The chat.
    pub chat_id: String,
    /// The text.
    pub body: String,
    /// The id it carries on every attempt; `None` where the engine chooses.
    pub waha_message_id: Option<String>,
    /// Which attempt this is, from 1.
    pub attempt: i32,
    /// How the one before ended.
    pub before: Before,
    /// Workers that died on this message.
    pub worker_deaths: i16,
    /// Attempts before this one of which nobody knows whether they sent.
    pub doubts: i16,
    /// When it was accepted.
    pub created_at: DateTime<Utc>,
    /// Until when the claim holds.
    pub lease_until: DateTime<Utc>,
    /// The session's smallest gap between two messages.
    pub min_gap: TimeDelta,
    /// The most that chance adds to the gap.
    pub jitter: TimeDelta,
}

/// Writes batches of claims.
pub struct Claims {
    db: Db,
    clock: Clock,
    lease: TimeDelta,
}

impl Claims {
    /// Claims that hold for the longest attempt and a margin.
    #[must_use]
    pub fn new(app: &App) -> Self {
        let timings = &app.config.timings;
        let lease = TimeDelta::from_std(timings.send_timeout + timings.lease_margin).unwrap_or(TimeDelta::MAX);
        Self { db: app.db.clone(), clock: app.clock.clone(), lease }
    }
}

#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = SqlUuid)]
    tenant_id: TenantId,
    #[diesel(sql_type = SqlUuid)]
    session_id: SessionId,
    #[diesel(sql_type = SqlUuid)]
    id: MessageId,
    #[diesel(sql_type = BigInt)]
    fence: i64,
    #[diesel(sql_type = Text)]
    chat_id: String,
    #[diesel(sql_type = Nullable<Text>)]
    body: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    waha_message_id: Option<String>,
    #[diesel(sql_type = Integer)]
    attempts: i32,
    #[diesel(sql_type = Text)]
    before: String,
    #[diesel(sql_type = SmallInt)]
    worker_deaths: i16,
    #[diesel(sql_type = SmallInt)]
    doubts: i16,
    #[diesel(sql_type = Timestamptz)]
    created_at: DateTime<Utc>,
    #[diesel(sql_type = Integer)]
    min_gap_ms: i32,
    #[diesel(sql_type = Integer)]
    jitter_ms: i32,
}

// A lane whose message turned out not to be sendable any more (cancelled, or acknowledged meanwhile) is freed for the next;
// since it may just have been sent, by a worker that died, the next one keeps the gap to it.
const CLAIM: &str = "\
WITH input AS (
    SELECT * FROM unnest($1, $2, $3, $4) AS i (tenant_id, session_id, message_id, fence)
), lane AS (
    SELECT l.tenant_id, l.session_id, l.in_flight AS message_id, l.fence, l.min_gap_ms, l.jitter_ms, l.next_slot_at
    FROM lanes l JOIN input i USING (tenant_id, session_id)
    WHERE l.fence = i.fence AND l.claimed_fence < l.fence AND l.in_flight = i.message_id AND l.paused_because IS NULL
    ORDER BY l.session_id FOR UPDATE OF l
), before AS (
    SELECT m.tenant_id, m.id, m.attempt_state, m.status
    FROM messages m JOIN lane ON m.tenant_id = lane.tenant_id AND m.id = lane.message_id
    WHERE m.status IN ('queued', 'sending') AND m.deleted_at IS NULL
    ORDER BY m.tenant_id, m.id FOR UPDATE OF m
), claimed AS (
    UPDATE messages m SET
        status = 'sending',
        attempts = m.attempts + 1,
        attempt_state = 'open',
        worker_deaths = m.worker_deaths + (b.attempt_state = 'open')::int,
        updated_at = $5
    FROM before b WHERE m.tenant_id = b.tenant_id AND m.id = b.id
    RETURNING m.*
), transition AS (
    INSERT INTO message_transitions (tenant_id, message_id, status, at, cause, attempt)
    SELECT tenant_id, id, 'sending', $5, CASE WHEN attempts = 1 THEN 'its turn' ELSE 'tried again' END, attempts FROM claimed
), turn AS (
    UPDATE lanes l SET
        claimed_fence = l.fence,
        in_flight = CASE WHEN b.id IS NOT NULL THEN l.in_flight END,
        lease_until = CASE WHEN b.id IS NOT NULL THEN $6 END,
        next_slot_at = CASE WHEN b.id IS NOT NULL THEN l.next_slot_at ELSE slot.at END,
        last_send_at = CASE WHEN b.id IS NOT NULL THEN l.last_send_at ELSE $5 END,
        ready_at = CASE WHEN b.id IS NOT NULL THEN $6 WHEN l.queued > 0 THEN slot.at END,
        queued = greatest(l.queued - coalesce(b.status = 'queued', false)::int, 0),
        updated_at = $5
    FROM lane LEFT JOIN before b ON b.tenant_id = lane.tenant_id AND b.id = lane.message_id, LATERAL (
        SELECT greatest(lane.next_slot_at, $5 + lane.min_gap_ms * interval '1 ms') AS at
    ) slot
    WHERE l.session_id = lane.session_id
)
SELECT c.tenant_id, c.session_id, c.id, lane.fence, c.chat_id, c.body, c.waha_message_id, c.attempts,
       b.attempt_state AS before, c.worker_deaths, c.doubts, c.created_at, lane.min_gap_ms, lane.jitter_ms
FROM claimed c
JOIN before b ON b.tenant_id = c.tenant_id AND b.id = c.id
JOIN lane ON lane.session_id = c.session_id";

impl BatchWriter for Claims {
    type Item = OutboundRef;
    /// `None`: the turn is not current any more, or the message is not to be sent.
    type Answer = Option<Claimed>;

    async fn write(&self, turns: &[OutboundRef]) -> Result<Vec<Option<Claimed>>, DbError> {
        let now = self.clock.now();
        let lease_until = now + self.lease;
        let rows: Vec<Row> = self
            .db
            .system(async |conn| {
                Ok::<_, DbError>(
                    sql(CLAIM)
                        .bind::<Array<SqlUuid>, _>(turns.iter().map(|turn| turn.tenant_id).collect::<Vec<_>>())
                        .bind::<Array<SqlUuid>, _>(turns.iter().map(|turn| turn.session_id).collect::<Vec<_>>())
                        .bind::<Array<SqlUuid>, _>(turns.iter().map(|turn| turn.message_id).collect::<Vec<_>>())
                        .bind::<Array<BigInt>, _>(turns.iter().map(|turn| turn.fence).collect::<Vec<_>>())
                        .bind::<Timestamptz, _>(now)
                        .bind::<Timestamptz, _>(lease_until)
                        .prepared()
                        .load(&mut **conn)
                        .await?,
                )
            })
            .await?;
        let mut claimed: std::collections::HashMap<(SessionId, i64), Claimed> =
            rows.into_iter().map(|row| ((row.session_id, row.fence), Claimed::new(row, lease_until))).collect();
        Ok(turns.iter().map(|turn| claimed.remove(&(turn.session_id, turn.fence))).collect())
    }

    // The broker may deliver one turn twice; the second must find the first one's claim.
    fn conflict(&self, earlier: &OutboundRef, later: &OutboundRef) -> bool {
        earlier.session_id == later.session_id
    }

    fn conflict_key(&self, turn: &OutboundRef) -> Option<u64> {
        Some(turn.session_id.0.as_u64_pair().1)
    }
}

impl Claimed {
    /// What an attempt that settles nothing leaves behind.
    pub(super) const fn doubt(&self) -> Doubt {
        match self.before {
            Before::Nothing => Doubt::None,
            Before::Doubt => Doubt::Earlier,
        }
    }

    fn new(row: Row, lease_until: DateTime<Utc>) -> Self {
        Self {
            turn: OutboundRef {
                message_id: row.id,
                session_id: row.session_id,
                tenant_id: row.tenant_id,
                fence: row.fence,
            },
            chat_id: row.chat_id,
            body: row.body.unwrap_or_default(),
            waha_message_id: row.waha_message_id,
            attempt: row.attempts,
            before: if row.before == "none" { Before::Nothing } else { Before::Doubt },
            worker_deaths: row.worker_deaths,
            doubts: row.doubts,
            created_at: row.created_at,
            lease_until,
            min_gap: TimeDelta::milliseconds(row.min_gap_ms.into()),
            jitter: TimeDelta::milliseconds(row.jitter_ms.into()),
        }
    }
}
