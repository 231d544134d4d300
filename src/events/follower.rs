//! Following the event log: what is the same for all who do.
//!
//! Guarantee: a follower takes every committed event once, in effect. One node at a time holds its cursor, and the move of the
//! cursor past a batch shares a transaction with whatever the batch brings about. No event is passed over: a batch ends before
//! the oldest transaction that is still running, so one that commits late is still ahead of the cursor.

use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::QueryableByName;
use diesel::pg::Pg;
use diesel::query_builder::{BoxedSqlQuery, SqlQuery};
use diesel::sql_types::{BigInt, Bool, Nullable, Text, Timestamptz, Uuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use tokio::sync::futures::Notified;
use tokio::sync::watch;

use super::query::Position;
use crate::app::{App, EventBell};
use crate::db::{DbError, Prepare, sql};
use crate::domain::ids::{MessageId, TenantId};

/// The first wait for a transaction that holds events back; it doubles from try to try.
const HELD_BACK: Duration = Duration::from_millis(5);

/// A text for `Follower::statement`: `$columns` of the next events `e`, `xact` and `seq` among them, are there as `batch`, and the
/// cursor moves past them; `$rest` goes on from there.
macro_rules! next_batch {
    ($columns:literal, $rest:literal) => {
        concat!(
            "WITH batch AS MATERIALIZED (SELECT ",
            $columns,
            " FROM events e \
                 WHERE (e.xact, e.seq) > ($1, $2) AND e.xact < pg_snapshot_xmin(pg_current_snapshot())::text::bigint \
                 ORDER BY e.xact, e.seq LIMIT $3), \
             moved AS ( \
                 UPDATE event_cursors c SET xact = last.xact, seq = last.seq, updated_at = $4 \
                 FROM (SELECT xact, seq FROM batch ORDER BY xact DESC, seq DESC LIMIT 1) last WHERE c.name = $5) ",
            $rest
        )
    };
}
pub(super) use next_batch;

/// One that follows the log.
pub(crate) struct Follower {
    /// The name of its cursor.
    pub cursor: &'static str,
    /// The gauge of its lag in seconds.
    pub lag: &'static str,
    /// Events taken in one transaction at the most.
    pub batch: i64,
    /// How long it rests at the least when it has caught up.
    pub rest: Duration,
    /// What wakes it before its time.
    pub bell: Option<fn(&EventBell) -> Notified<'_>>,
    /// What is said when a step failed.
    pub failed: &'static str,
}

/// What is done at each step along the log.
pub(crate) trait Follow: Sync {
    /// Takes one batch, if no other node is doing so.
    fn step(&self, app: &App) -> impl Future<Output = Result<Step, DbError>> + Send;
}

/// What one step along the log found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Events taken.
    pub events: usize,
    /// When the oldest of them happened.
    pub oldest: Option<DateTime<Utc>>,
    /// Whether more may be waiting.
    pub full: bool,
    /// Whether committed events wait for the end of an older transaction.
    pub held_back: bool,
}

/// An event, as far as most followers look at it.
#[derive(QueryableByName)]
pub(crate) struct Event {
    /// Whose it is.
    #[diesel(sql_type = Uuid)]
    pub tenant_id: TenantId,
    /// Its type.
    #[diesel(sql_type = Text)]
    pub kind: String,
    /// The message it speaks of.
    #[diesel(sql_type = Nullable<Uuid>)]
    pub message_id: Option<MessageId>,
    #[diesel(sql_type = Timestamptz)]
    at: DateTime<Utc>,
}

impl Follower {
    /// Takes step after step until `stop` becomes true (or its sender is gone). Any number of nodes may run it.
    pub async fn run(&self, app: &App, work: &impl Follow, mut stop: watch::Receiver<bool>) {
        let poll = app.config.timings.poll.max(self.rest);
        let first = HELD_BACK.max(self.rest);
        let mut held_back = first;
        while !*stop.borrow() && stop.has_changed().is_ok() {
            let pause = match work.step(app).await {
                Ok(Step { full: true, .. }) => continue,
                Ok(Step { held_back: true, .. }) => {
                    let pause = held_back.min(poll);
                    held_back = pause * 2;
                    pause
                }
                Ok(_) => {
                    held_back = first;
                    poll
                }
                Err(fault) => {
                    tracing::warn!(%fault, "{}", self.failed);
                    poll.max(Duration::from_secs(1))
                }
            };
            tokio::select! {
                () = self.rung(app) => {}
                () = tokio::time::sleep(pause) => {}
                _ = stop.wait_for(|stop| *stop) => {}
            }
        }
    }

    async fn rung(&self, app: &App) {
        match self.bell {
            Some(bell) => bell(&app.wake.events).await,
            None => std::future::pending().await,
        }
    }

    /// Takes the next events in the caller's transaction, and moves the cursor past them; none while another node is doing so.
    pub async fn take(&self, conn: &mut AsyncPgConnection, now: DateTime<Utc>) -> Result<(Vec<Event>, Step), DbError> {
        let Some(place) = self.lock(conn).await? else { return Ok((Vec::new(), Step::default())) };
        let text = next_batch!(
            "e.tenant_id, e.type AS kind, e.message_id, e.at, e.xact, e.seq",
            "SELECT tenant_id, kind, message_id, at FROM batch ORDER BY xact, seq"
        );
        let batch: Vec<Event> = self.statement(text, place, now).prepared().load(conn).await?;
        let step = self.taken(conn, batch.len(), batch.as_slice().first().map(|event| event.at)).await?;
        Ok((batch, step))
    }

    /// Holds the cursor until the transaction ends, and says where it is; `None` when somebody else holds it.
    pub async fn lock(&self, conn: &mut AsyncPgConnection) -> Result<Option<Position>, DbError> {
        let cursor: Vec<Position> = sql("SELECT xact, seq FROM event_cursors WHERE name = $1 FOR UPDATE SKIP LOCKED")
            .bind::<Text, _>(self.cursor)
            .prepared()
            .load(conn)
            .await?;
        Ok(cursor.into_iter().next())
    }

    /// The statement `text`, made by `next_batch!`, for the events after `place`. It has used `$1` to `$5`.
    pub fn statement(
        &self,
        text: &'static str,
        place: Position,
        now: DateTime<Utc>,
    ) -> BoxedSqlQuery<'static, Pg, SqlQuery> {
        sql(text)
            .into_boxed::<Pg>()
            .bind::<BigInt, _>(place.xact)
            .bind::<BigInt, _>(place.seq)
            .bind::<BigInt, _>(self.batch)
            .bind::<Timestamptz, _>(now)
            .bind::<Text, _>(self.cursor)
    }

    /// The step that took so many `events`. After a batch that is not full it looks whether others are held back.
    pub async fn taken(
        &self,
        conn: &mut AsyncPgConnection,
        events: usize,
        oldest: Option<DateTime<Utc>>,
    ) -> Result<Step, DbError> {
        #[derive(QueryableByName)]
        struct Latest {
            #[diesel(sql_type = Bool)]
            waits: bool,
        }
        if i64::try_from(events).is_ok_and(|count| count >= self.batch) {
            return Ok(Step { events, oldest, full: true, held_back: false });
        }
        // By the latest event alone: that is one step in the index, however long the log is.
        let latest: Vec<Latest> = sql("SELECT xact >= pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS waits \
             FROM events ORDER BY xact DESC, seq DESC LIMIT 1")
        .prepared()
        .load(conn)
        .await?;
        Ok(Step { events, oldest, full: false, held_back: latest.into_iter().any(|latest| latest.waits) })
    }

    /// Tells the age of the oldest event of a step: none when all were taken before. How old those are that are held back is
    /// not known, so what was told last holds meanwhile.
    pub fn tell_lag(&self, step: Step, now: DateTime<Utc>) {
        let lag = match step.oldest {
            Some(oldest) => (now - oldest).to_std().unwrap_or_default(),
            None if step.held_back => return,
            None => Duration::ZERO,
        };
        metrics::gauge!(self.lag).set(lag.as_secs_f64());
    }
}
