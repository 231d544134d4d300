//! Claiming: from now on this worker, and no other, may hand the message to WAHA.
//!
//! A claim must show the lane's current fence and works once per fence. It counts the attempt and opens it before the POST,
//! so a message that kills its worker is found out by the next claim. Committed before anything leaves the process.

use chrono::{DateTime, TimeDelta, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Bool, Integer, Jsonb, Nullable, SmallInt, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};

use crate::app::App;
use crate::broker::envelope::OutboundRef;
use crate::db::group_commit::BatchWriter;
use crate::db::{Db, DbError, Prepare, sql};
use crate::domain::chance::Chance;
use crate::domain::clock::Clock;
use crate::domain::ids::{MessageId, SessionId, TenantId};
use crate::domain::status::Status;
use crate::messages::changes::{self, Change};
use crate::messages::row::{MessageRow, message_columns, whatsapp_id};
use crate::sending::outcome::Doubt;

/// How the attempt before this one ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Before {
    /// There was none, or it certainly sent nothing.
    Nothing,
    /// Its worker died, or nobody knows whether it sent.
    Doubt,
}

/// What is known about the recipient's number before a message is sent there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Number {
    /// Nothing has to be known: no number, somebody written with before, or the session does not check.
    Trusted,
    /// WhatsApp has to be asked.
    Unknown,
    /// WhatsApp said that it is not registered.
    NotRegistered,
    /// WhatsApp said which chat is the number's; its id may differ from the number.
    Chat(String),
}

/// A message that this worker may hand over, until `lease_until`.
pub struct Claimed {
    /// The turn this claim belongs to.
    pub turn: OutboundRef,
    /// The chat.
    pub chat_id: String,
    /// The recipient's number in E.164, if it is a person's.
    pub phone: Option<String>,
    /// What is known about that number.
    pub number: Number,
    /// What kind of message, as the database writes it.
    pub kind: String,
    /// The text or caption.
    pub body: String,
    /// What the message says beyond its body, as it was stored.
    pub content: Option<serde_json::Value>,
    /// Whether it answers another message.
    pub replies: bool,
    /// WhatsApp's id, whole, of the message it answers, if that has one.
    pub quoted: Option<String>,
    /// The id it carries on every attempt; `None` where the engine chooses.
    pub waha_message_id: Option<String>,
    /// Which attempt this is, from 1. Those that did not reach WAHA do not count.
    pub attempt: i32,
    /// The same since the tenant last asked for a retry: what is bounded.
    pub tries: i32,
    /// How the one before ended.
    pub before: Before,
    /// Whether it was handed over before, and is sent again because WhatsApp's server did not acknowledge it.
    pub resend: bool,
    /// Workers that died on this message.
    pub worker_deaths: i16,
    /// Attempts before this one of which nobody knows whether they sent.
    pub doubts: i16,
    /// When it was accepted.
    pub created_at: DateTime<Utc>,
    /// From when on it must not be sent.
    pub expires_at: Option<DateTime<Utc>>,
    /// Until when the claim holds.
    pub lease_until: DateTime<Utc>,
    /// The session's smallest gap between two messages.
    pub min_gap: TimeDelta,
    /// The most that chance adds to the gap.
    pub jitter: TimeDelta,
    /// Whether the recipient is shown that somebody is typing.
    pub typing: bool,
}

// A message holds text and numbers, which belong in no log.
impl std::fmt::Debug for Claimed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Claimed").field("turn", &self.turn).field("attempt", &self.attempt).finish_non_exhaustive()
    }
}

/// Writes batches of claims.
pub struct Claims {
    db: Db,
    clock: Clock,
    chance: Chance,
    lease: TimeDelta,
}

impl Claims {
    /// Claims that hold for the longest attempt and a margin.
    #[must_use]
    pub fn new(app: &App) -> Self {
        let timings = &app.config.timings;
        let lease = TimeDelta::from_std(timings.send_timeout + timings.lease_margin).unwrap_or(TimeDelta::MAX);
        Self { db: app.db.clone(), clock: app.clock.clone(), chance: app.chance.clone(), lease }
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
    verdict: String,
    #[diesel(sql_type = Text)]
    chat_id: String,
    #[diesel(sql_type = Nullable<Text>)]
    to_msisdn: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    number: Option<String>,
    #[diesel(sql_type = Text)]
    message_type: String,
    #[diesel(sql_type = Nullable<Text>)]
    body: Option<String>,
    #[diesel(sql_type = Nullable<Jsonb>)]
    content: Option<serde_json::Value>,
    #[diesel(sql_type = Bool)]
    replies: bool,
    #[diesel(sql_type = Nullable<Text>)]
    quoted: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    waha_message_id: Option<String>,
    #[diesel(sql_type = Integer)]
    attempts: i32,
    #[diesel(sql_type = Integer)]
    attempts_before: i32,
    #[diesel(sql_type = Text)]
    before: String,
    #[diesel(sql_type = Bool)]
    resend: bool,
    #[diesel(sql_type = SmallInt)]
    worker_deaths: i16,
    #[diesel(sql_type = SmallInt)]
    doubts: i16,
    #[diesel(sql_type = Timestamptz)]
    created_at: DateTime<Utc>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    expires_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Integer)]
    min_gap_ms: i32,
    #[diesel(sql_type = Integer)]
    jitter_ms: i32,
    #[diesel(sql_type = Bool)]
    typing: bool,
}

// A lane whose message turned out not to be sendable any more (cancelled, or acknowledged meanwhile) is freed for the next;
// since it may just have been sent, by a worker that died, the next one keeps the gap to it. One that is not to be sent
// (expired, held) certainly was not, and frees the lane without a gap.
//
// Verdicts: `send`; `expired`; why it is held; `spare`: handed over before, and no longer worth a repeat. A message in doubt is
// always sent on: the attempt begins with settling the doubt.
//
// A message to somebody whom the session has not written with is a cold one. Who that is, is only looked up where it matters.
//
// Lanes and messages are joined once and go on together: the planner expects one of each, and would compare all with all for
// every further join.
const CLAIM: &str = concat!(
    "\
WITH input AS (
    SELECT * FROM unnest($1, $2, $3, $4) AS i (tenant_id, session_id, message_id, fence)
), lane AS (
    SELECT l.tenant_id, l.session_id, l.in_flight AS message_id, l.fence, l.min_gap_ms, l.jitter_ms, l.next_slot_at,
           l.typing, l.check_numbers,
           coalesce(l.restricted_until > $5, false) AS restricted,
           nullif(l.new_chats_per_day, 0) AS new_chats,
           coalesce(l.per_minute, 0) > 0 OR coalesce(l.per_hour, 0) > 0 OR coalesce(l.per_day, 0) > 0
               OR coalesce(l.new_chats_per_day, 0) > 0 OR l.warm_up IS NOT NULL AS capped,
           CASE WHEN l.typing THEN $6 + interval '15 s' ELSE $6 END AS lease_until
    FROM lanes l JOIN input i USING (tenant_id, session_id)
    WHERE l.fence = i.fence AND l.claimed_fence < l.fence AND l.in_flight = i.message_id AND l.paused_because IS NULL
    ORDER BY l.session_id FOR UPDATE OF l
), before AS (
    SELECT m.tenant_id, m.id, m.chat_id, m.to_msisdn, m.attempts, m.attempt_state, m.status, m.handed_over_at,
           m.status = 'queued' OR m.requeued AS waited,
           m.expires_at <= $5 AND m.attempt_state = 'none' AS late,
           CASE WHEN lane.check_numbers OR lane.restricted OR lane.new_chats IS NOT NULL THEN
               EXISTS (SELECT FROM known_chats k WHERE k.session_id = m.session_id AND k.chat_id = m.chat_id)
           END AS known
    FROM messages m JOIN lane ON m.tenant_id = lane.tenant_id AND m.id = lane.message_id
    WHERE m.status IN ('queued', 'sending') AND m.deleted_at IS NULL
    ORDER BY m.tenant_id, m.id FOR UPDATE OF m
), weighed AS (
    SELECT lane.session_id, lane.fence, lane.min_gap_ms, lane.jitter_ms, lane.next_slot_at, lane.typing, lane.check_numbers,
           lane.restricted, lane.new_chats, lane.capped, lane.lease_until, b.*,
           CASE WHEN (lane.restricted OR lane.new_chats IS NOT NULL) AND NOT b.known AND b.attempt_state = 'none' THEN
        right(b.chat_id, 5) = '@c.us' OR right(b.chat_id, 4) = '@lid'
        AND NOT EXISTS (
            SELECT FROM number_checks n JOIN known_chats k ON k.session_id = lane.session_id AND k.chat_id = n.chat_id
            WHERE n.tenant_id = b.tenant_id AND n.phone = b.to_msisdn)
        ELSE false END AS cold
    FROM lane LEFT JOIN before b ON b.tenant_id = lane.tenant_id AND b.id = lane.message_id
), judged AS (
    SELECT w.*, CASE
        WHEN w.id IS NULL THEN NULL
        WHEN w.late AND (w.handed_over_at IS NULL OR w.status = 'queued') THEN 'expired'
        WHEN w.late THEN 'spare'
        WHEN w.cold AND w.restricted THEN 'restricted'
        WHEN w.cold AND w.attempts = 0 AND w.new_chats <= (
            SELECT count(*) FROM lane_sends s WHERE s.session_id = w.session_id AND s.new_chat AND s.at > $5 - interval '1 day')
            THEN 'new_chats_per_day'
        ELSE 'send' END AS verdict
    FROM weighed w
), claimed AS (
    UPDATE messages m SET
        status = CASE j.verdict WHEN 'send' THEN 'sending' WHEN 'expired' THEN 'expired' ELSE m.status END,
        attempts = m.attempts + (j.verdict = 'send')::int,
        attempt_state = CASE j.verdict WHEN 'send' THEN 'open' ELSE m.attempt_state END,
        worker_deaths = m.worker_deaths + (j.attempt_state = 'open')::int,
        requeued = j.verdict IN ('restricted', 'new_chats_per_day') AND m.status = 'sending',
        held_because = CASE WHEN j.verdict IN ('restricted', 'new_chats_per_day') THEN j.verdict END,
        error_code = CASE WHEN j.verdict <> 'expired' THEN m.error_code END,
        error_message = CASE WHEN j.verdict <> 'expired' THEN m.error_message END,
        updated_at = $5
    FROM judged j WHERE m.tenant_id = j.tenant_id AND m.id = j.id
    RETURNING m.*, j.verdict, j.known, j.fence, j.min_gap_ms, j.jitter_ms, j.typing, j.check_numbers, j.attempt_state AS before,
              j.handed_over_at IS NOT NULL AS resend
), transition AS (
    INSERT INTO message_transitions (tenant_id, message_id, status, at, cause, attempt)
    SELECT tenant_id, id, 'sending', $5, CASE WHEN j.status = 'queued' THEN 'its turn' ELSE 'tried again' END, j.attempts + 1
    FROM judged j WHERE j.verdict = 'send'
), counted AS (
    INSERT INTO lane_sends (tenant_id, session_id, at, new_chat)
    SELECT j.tenant_id, j.session_id, $5, j.cold AND j.attempts = 0
    FROM judged j WHERE j.verdict = 'send' AND j.capped
), turn AS (
    UPDATE lanes l SET
        claimed_fence = l.fence,
        in_flight = CASE WHEN j.verdict = 'send' THEN l.in_flight END,
        lease_until = CASE WHEN j.verdict = 'send' THEN j.lease_until END,
        next_slot_at = CASE WHEN j.id IS NOT NULL THEN l.next_slot_at ELSE slot.at END,
        last_send_at = CASE WHEN j.id IS NOT NULL THEN l.last_send_at ELSE $5 END,
        ready_at = CASE WHEN j.verdict = 'send' THEN j.lease_until
                        WHEN l.queued <= coalesce(j.waited, false)::int THEN NULL
                        WHEN j.id IS NOT NULL THEN greatest(l.next_slot_at, $5)
                        ELSE slot.at END,
        queued = greatest(l.queued - coalesce(j.waited, false)::int, 0),
        updated_at = $5
    FROM judged j, LATERAL (SELECT greatest(j.next_slot_at, $5 + j.min_gap_ms * interval '1 ms') AS at) slot
    WHERE l.session_id = j.session_id
)
SELECT c.tenant_id, c.session_id, c.id, c.fence, c.verdict, c.chat_id, c.to_msisdn, c.message_type, c.body, c.content,
       c.reply_to IS NOT NULL AS replies,
       CASE WHEN c.reply_to IS NOT NULL THEN (
           SELECT ",
    whatsapp_id!("q"),
    " FROM messages q WHERE q.tenant_id = c.tenant_id AND q.id = c.reply_to)
       END AS quoted,
       CASE WHEN c.check_numbers AND NOT c.known AND c.to_msisdn IS NOT NULL AND NOT c.resend THEN coalesce((
           SELECT CASE WHEN n.registered THEN coalesce(n.chat_id, c.chat_id) ELSE '' END FROM number_checks n
           WHERE n.tenant_id = c.tenant_id AND n.phone = c.to_msisdn AND n.expires_at > $5), '?')
       END AS number,
       c.waha_message_id, c.attempts, c.attempts_before, c.before, c.resend, c.worker_deaths, c.doubts, c.created_at, c.expires_at,
       c.min_gap_ms, c.jitter_ms, c.typing
FROM claimed c WHERE c.verdict IN ('send', 'expired')"
);

/// Added to the lease of lanes that simulate typing, as in the statement above.
const TYPING_LEASE: TimeDelta = TimeDelta::seconds(15);

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
                let rows: Vec<Row> = sql(CLAIM)
                    .bind::<Array<SqlUuid>, _>(turns.iter().map(|turn| turn.tenant_id).collect::<Vec<_>>())
                    .bind::<Array<SqlUuid>, _>(turns.iter().map(|turn| turn.session_id).collect::<Vec<_>>())
                    .bind::<Array<SqlUuid>, _>(turns.iter().map(|turn| turn.message_id).collect::<Vec<_>>())
                    .bind::<Array<BigInt>, _>(turns.iter().map(|turn| turn.fence).collect::<Vec<_>>())
                    .bind::<Timestamptz, _>(now)
                    .bind::<Timestamptz, _>(lease_until)
                    .prepared()
                    .load(&mut **conn)
                    .await?;
                let (expired, rows): (Vec<Row>, Vec<Row>) = rows.into_iter().partition(|row| row.verdict == "expired");
                tell_expired(conn, &self.chance, &expired, now).await?;
                Ok::<_, DbError>(rows)
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
            phone: row.to_msisdn,
            number: match row.number.as_deref() {
                None => Number::Trusted,
                Some("?") => Number::Unknown,
                Some("") => Number::NotRegistered,
                Some(chat) => Number::Chat(chat.to_owned()),
            },
            kind: row.message_type,
            body: row.body.unwrap_or_default(),
            content: row.content,
            replies: row.replies,
            quoted: row.quoted,
            waha_message_id: row.waha_message_id,
            attempt: row.attempts,
            tries: row.attempts - row.attempts_before,
            before: if row.before == "none" { Before::Nothing } else { Before::Doubt },
            resend: row.resend,
            worker_deaths: row.worker_deaths,
            doubts: row.doubts,
            created_at: row.created_at,
            expires_at: row.expires_at,
            lease_until: if row.typing { lease_until + TYPING_LEASE } else { lease_until },
            min_gap: TimeDelta::milliseconds(row.min_gap_ms.into()),
            jitter: TimeDelta::milliseconds(row.jitter_ms.into()),
            typing: row.typing,
        }
    }
}

/// Records the step of messages that expired before their turn came.
async fn tell_expired(
    conn: &mut AsyncPgConnection,
    chance: &Chance,
    expired: &[Row],
    now: DateTime<Utc>,
) -> Result<(), DbError> {
    if expired.is_empty() {
        return Ok(());
    }
    let text = concat!(
        "SELECT ",
        message_columns!(),
        " FROM messages m JOIN unnest($1, $2) AS i (tenant_id, id) USING (tenant_id, id) ORDER BY m.tenant_id, m.id"
    );
    let rows: Vec<MessageRow> = sql(text)
        .bind::<Array<SqlUuid>, _>(expired.iter().map(|row| row.tenant_id).collect::<Vec<_>>())
        .bind::<Array<SqlUuid>, _>(expired.iter().map(|row| row.id).collect::<Vec<_>>())
        .prepared()
        .load(conn)
        .await?;
    let changes: Vec<Change<'_>> = rows
        .iter()
        .map(|message| Change {
            message,
            status: Status::Expired,
            at: now,
            cause: "expires_at".to_owned(),
            attempt: None,
        })
        .collect();
    changes::record(conn, chance, &changes).await
}
