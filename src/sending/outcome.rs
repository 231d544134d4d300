//! Recording what an attempt proved, and passing the lane on.
//!
//! Only the holder of the lane's current fence is heard: a worker that slept past its lease writes nothing. An outcome that
//! could not be written is found by the next claim as an open attempt, and reconciled.

use chrono::{DateTime, TimeDelta, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Bool, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;

use crate::app::App;
use crate::broker::envelope::OutboundRef;
use crate::db::group_commit::BatchWriter;
use crate::db::{Db, DbError, Prepare, SystemConn, sql};
use crate::domain::chance::Chance;
use crate::domain::failure::FailureCode;
use crate::domain::status::Status;
use crate::ingest::acks;
use crate::messages::changes::{self, Change};
use crate::messages::row::{MessageRow, message_columns};
use crate::sessions::restriction::{self, Finding};

/// Whether a message that is to be tried again may have been sent already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// It was certainly not sent.
    None,
    /// An earlier attempt left that open, and this one has not settled it.
    Earlier,
    /// This attempt left it open; such attempts are counted.
    Fresh,
}

/// What became of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// WAHA has the message; acknowledgements will tell the rest.
    HandedOver {
        /// The id WhatsApp knows it by, if WAHA said it.
        waha_message_id: Option<String>,
        /// The chat it went to, where that is not the one it was accepted for.
        chat_id: Option<String>,
    },
    /// To be tried again at `at`.
    Retry {
        /// When.
        at: DateTime<Utc>,
        /// Whether the message may have been sent already.
        doubt: Doubt,
        /// Whether the attempt counts: one that did not reach WAHA is a pause.
        counts: bool,
        /// Why, for the tenant: a stable code and a sentence.
        error: (&'static str, String),
    },
    /// Not sent, for good.
    Failed {
        /// Why, for the tenant.
        code: FailureCode,
        /// More about it, in a sentence.
        detail: String,
    },
    /// Certainly not sent, and now it is too late.
    Expired,
    /// WhatsApp does not let this account write to somebody new: the message waits until that is over.
    Restricted {
        /// When that will be, if WhatsApp said so.
        until: Option<DateTime<Utc>>,
    },
}

/// An outcome with the turn it belongs to.
#[derive(Clone, Debug)]
pub struct Report {
    /// The turn.
    pub turn: OutboundRef,
    /// Which attempt.
    pub attempt: i32,
    /// When it ended.
    pub at: DateTime<Utc>,
    /// The gap to the session's next message.
    pub gap: TimeDelta,
    /// What became of it.
    pub outcome: Outcome,
}

/// Writes batches of reports.
pub struct Outcomes {
    db: Db,
    chance: Chance,
    restriction: TimeDelta,
    committed: Box<dyn Fn() + Send + Sync>,
}

impl Outcomes {
    /// Reports to the app's database.
    #[must_use]
    pub fn new(app: &App) -> Self {
        let wake = std::sync::Arc::clone(&app.wake);
        Self {
            db: app.db.clone(),
            chance: app.chance.clone(),
            restriction: TimeDelta::from_std(app.config.sending.restriction).unwrap_or(TimeDelta::days(1)),
            committed: Box::new(move || {
                wake.dispatch.notify_one();
                wake.events.notify_one();
            }),
        }
    }
}

#[derive(QueryableByName)]
struct Row {
    #[diesel(embed)]
    message: MessageRow,
    #[diesel(sql_type = Bool)]
    settled: bool,
    #[diesel(sql_type = Text)]
    kind: String,
}

// An acknowledgement may have settled the message before its outcome is known: then the outcome changes nothing about it, and
// there is nothing to try again. A gap is kept after every attempt, since each may have sent something.
const RECORD: &str = concat!(
    "\
WITH input AS (
    SELECT * FROM unnest($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) AS i (
        tenant_id, session_id, message_id, fence, kind, waha_message_id, error_code, error_message, retry_at, at, free_at)
), lane AS (
    SELECT i.* FROM lanes l JOIN input i USING (tenant_id, session_id)
    WHERE l.fence = i.fence AND l.claimed_fence = i.fence AND l.in_flight = i.message_id
    ORDER BY l.session_id FOR UPDATE OF l
), before AS (
    SELECT lane.*, m.status AS before
    FROM messages m JOIN lane ON m.tenant_id = lane.tenant_id AND m.id = lane.message_id
    ORDER BY m.tenant_id, m.id FOR UPDATE OF m
), message AS (
    UPDATE messages m SET
        attempt_state = CASE WHEN b.kind IN ('doubt', 'doubt_stays', 'doubt_pause') AND b.before = 'sending' THEN 'unknown' ELSE 'none' END,
        attempts = m.attempts - (b.kind IN ('pause', 'doubt_pause') AND b.before = 'sending')::int,
        doubts = m.doubts + (b.kind = 'doubt')::int,
        handed_over_at = CASE b.kind WHEN 'handed_over' THEN b.at ELSE m.handed_over_at END,
        waha_message_id = coalesce(b.waha_message_id, m.waha_message_id),
        requeued = b.kind = 'restricted' AND b.before = 'sending',
        held_because = CASE WHEN b.kind = 'restricted' AND b.before = 'sending' THEN 'restricted' END,
        status = CASE WHEN b.kind IN ('failed', 'expired') AND b.before = 'sending' THEN b.kind ELSE m.status END,
        failed_at = CASE WHEN b.kind = 'failed' AND b.before = 'sending' THEN b.at ELSE m.failed_at END,
        error_code = CASE WHEN b.before = 'sending' THEN b.error_code ELSE m.error_code END,
        error_message = CASE WHEN b.before = 'sending' THEN b.error_message ELSE m.error_message END,
        updated_at = b.at
    FROM before b WHERE m.tenant_id = b.tenant_id AND m.id = b.message_id
    RETURNING m.*, b.kind IN ('failed', 'expired') AND b.before = 'sending' AS settled, b.kind
), turn AS (
    UPDATE lanes l SET
        in_flight = CASE WHEN again.again THEN l.in_flight END,
        lease_until = NULL,
        next_slot_at = b.free_at,
        last_send_at = b.at,
        ready_at = CASE WHEN l.paused_because IS NOT NULL THEN NULL
                        WHEN again.again THEN greatest(b.retry_at, b.free_at)
                        WHEN l.queued > 0 THEN b.free_at END,
        updated_at = b.at
    FROM before b, LATERAL (
        SELECT b.kind IN ('retry', 'pause', 'doubt', 'doubt_stays', 'doubt_pause') AND b.before = 'sending' AS again
    ) again
    WHERE l.session_id = b.session_id
)
SELECT ",
    message_columns!(),
    ", m.settled, m.kind FROM message m"
);

impl BatchWriter for Outcomes {
    type Item = Report;
    type Answer = ();

    async fn write(&self, reports: &[Report]) -> Result<Vec<()>, DbError> {
        fn column<'a, T>(reports: &'a [Report], of: impl Fn(&'a Report) -> T) -> Vec<T> {
            reports.iter().map(of).collect()
        }
        self.db
            .system(async |conn| {
                let rows: Vec<Row> = sql(RECORD)
                    .bind::<Array<SqlUuid>, _>(column(reports, |report| report.turn.tenant_id))
                    .bind::<Array<SqlUuid>, _>(column(reports, |report| report.turn.session_id))
                    .bind::<Array<SqlUuid>, _>(column(reports, |report| report.turn.message_id))
                    .bind::<Array<BigInt>, _>(column(reports, |report| report.turn.fence))
                    .bind::<Array<Text>, _>(column(reports, |report| report.outcome.kind()))
                    .bind::<Array<Nullable<Text>>, _>(column(reports, |report| report.outcome.waha_message_id()))
                    .bind::<Array<Nullable<Text>>, _>(column(reports, |report| {
                        report.outcome.error().map(|error| error.0)
                    }))
                    .bind::<Array<Nullable<Text>>, _>(column(reports, |report| {
                        report.outcome.error().map(|error| error.1)
                    }))
                    .bind::<Array<Nullable<Timestamptz>>, _>(column(reports, |report| report.outcome.retry_at()))
                    .bind::<Array<Timestamptz>, _>(column(reports, |report| report.at))
                    .bind::<Array<Timestamptz>, _>(column(reports, |report| report.at + report.gap))
                    .prepared()
                    .load(&mut **conn)
                    .await?;
                let settled: Vec<Change<'_>> = rows
                    .iter()
                    .filter(|row| row.settled)
                    .map(|row| Change {
                        message: &row.message,
                        status: if row.kind == "expired" { Status::Expired } else { Status::Failed },
                        at: row.message.updated_at,
                        cause: row.message.error_code.clone().unwrap_or_else(|| "expires_at".to_owned()),
                        attempt: Some(row.message.attempts),
                    })
                    .collect();
                changes::record(conn, &self.chance, &settled).await?;
                self.note_chats(conn, reports, &rows).await?;
                let now_known: Vec<&MessageRow> =
                    rows.iter().filter(|row| row.kind == "handed_over").map(|row| &row.message).collect();
                acks::apply_early(conn, &self.chance, &now_known).await?;
                self.note_restrictions(conn, reports, &rows).await
            })
            .await?;
        (self.committed)();
        Ok(vec![(); reports.len()])
    }

    fn conflict(&self, earlier: &Report, later: &Report) -> bool {
        earlier.turn.session_id == later.turn.session_id
    }

    fn conflict_key(&self, report: &Report) -> Option<u64> {
        Some(report.turn.session_id.0.as_u64_pair().1)
    }
}

impl Outcomes {
    /// Notes where messages went that were accepted for another chat; seldom any.
    async fn note_chats(&self, conn: &mut SystemConn, reports: &[Report], rows: &[Row]) -> Result<(), DbError> {
        for report in reports {
            let Outcome::HandedOver { chat_id: Some(chat), .. } = &report.outcome else { continue };
            if rows.iter().any(|row| row.message.id == report.turn.message_id) {
                sql("UPDATE messages SET chat_id = $3 WHERE tenant_id = $1 AND id = $2")
                    .bind::<SqlUuid, _>(report.turn.tenant_id)
                    .bind::<SqlUuid, _>(report.turn.message_id)
                    .bind::<Text, _>(chat)
                    .prepared()
                    .execute(&mut **conn)
                    .await?;
            }
        }
        Ok(())
    }

    /// Notes what was learnt of accounts that may not write to somebody new; seldom any.
    async fn note_restrictions(&self, conn: &mut SystemConn, reports: &[Report], rows: &[Row]) -> Result<(), DbError> {
        let mut restricted: Vec<(&Report, Option<DateTime<Utc>>)> = reports
            .iter()
            .filter_map(|report| match report.outcome {
                Outcome::Restricted { until } => Some((report, until)),
                _ => None,
            })
            .filter(|(report, _)| rows.iter().any(|row| row.message.id == report.turn.message_id))
            .collect();
        restricted.sort_by_key(|(report, _)| report.turn.session_id);
        for (report, until) in restricted {
            let finding = Finding {
                tenant: report.turn.tenant_id,
                session: report.turn.session_id,
                kind: restriction::Kind::ReachoutTimelock,
                until: until.filter(|until| *until > report.at).unwrap_or(report.at + self.restriction),
                certain: until.is_some_and(|until| until > report.at),
            };
            restriction::restrict(conn, &self.chance, report.at, &finding).await?;
        }
        Ok(())
    }
}

impl Outcome {
    const fn kind(&self) -> &'static str {
        match self {
            Self::HandedOver { .. } => "handed_over",
            Self::Retry { doubt: Doubt::Fresh, .. } => "doubt",
            Self::Retry { doubt: Doubt::Earlier, counts: true, .. } => "doubt_stays",
            Self::Retry { doubt: Doubt::Earlier, counts: false, .. } => "doubt_pause",
            Self::Retry { doubt: Doubt::None, counts: true, .. } => "retry",
            Self::Retry { doubt: Doubt::None, counts: false, .. } => "pause",
            Self::Failed { .. } => "failed",
            Self::Expired => "expired",
            Self::Restricted { .. } => "restricted",
        }
    }

    fn waha_message_id(&self) -> Option<&str> {
        match self {
            Self::HandedOver { waha_message_id, .. } => waha_message_id.as_deref(),
            _ => None,
        }
    }

    /// The code and the sentence that the tenant is shown.
    #[must_use]
    pub fn error(&self) -> Option<(&'static str, &str)> {
        match self {
            Self::HandedOver { .. } | Self::Expired => None,
            Self::Retry { error, .. } => Some((error.0, &error.1)),
            Self::Failed { code, detail } => Some((code.as_str(), detail)),
            Self::Restricted { .. } => Some((FailureCode::Restricted.as_str(), FailureCode::Restricted.meaning())),
        }
    }

    const fn retry_at(&self) -> Option<DateTime<Utc>> {
        match self {
            Self::Retry { at, .. } => Some(*at),
            _ => None,
        }
    }
}
