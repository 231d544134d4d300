//! From the event log to webhook endpoints and live streams.
//!
//! Guarantee: every committed event is handed exactly once, in effect, to every endpoint that was enabled and subscribed to
//! its type when it was fanned out. The deliveries of a batch and the move of the cursor past it share one transaction, a
//! delivery is unique per event and endpoint, and one node at a time holds the cursor. No event is passed over: a batch
//! ends before the oldest transaction that is still running, so one that commits late is still ahead of the cursor.
//!
//! Live streams are told after the commit, as far as that works at the moment: they are a convenience, and resume from the
//! log.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Bool, Nullable, Text, Timestamptz, Uuid};
use diesel_async::RunQueryDsl;
use tokio::sync::watch;

use super::types::TEST_PING;
use crate::app::App;
use crate::db::{DbError, Prepare, SystemConn, sql};
use crate::domain::ids::{EventId, MessageId, SessionId, TenantId};

/// Events handed on in one transaction at the most.
const BATCH: i64 = 1000;
/// The first wait for a transaction that holds events back; it doubles from try to try.
const HELD_BACK: Duration = Duration::from_millis(5);

/// An event that was just fanned out.
#[derive(Clone, QueryableByName)]
pub struct FannedOut {
    /// Who is told.
    #[diesel(sql_type = Uuid)]
    pub tenant_id: TenantId,
    /// The event.
    #[diesel(sql_type = Uuid)]
    pub id: EventId,
    /// Its type.
    #[diesel(sql_type = Text)]
    pub kind: String,
    /// When it happened.
    #[diesel(sql_type = Timestamptz)]
    pub at: DateTime<Utc>,
    /// The session it speaks of.
    #[diesel(sql_type = Nullable<Uuid>)]
    pub session_id: Option<SessionId>,
    /// The message it speaks of.
    #[diesel(sql_type = Nullable<Uuid>)]
    pub message_id: Option<MessageId>,
    /// The resource as JSON.
    #[diesel(sql_type = Text)]
    pub data: String,
    #[diesel(sql_type = BigInt)]
    xact: i64,
    #[diesel(sql_type = BigInt)]
    seq: i64,
    #[diesel(sql_type = BigInt)]
    deliveries: i64,
}

impl FannedOut {
    /// The place in the log, as [`super::query`] counts it.
    #[must_use]
    pub fn position(&self) -> super::query::Position {
        super::query::Position { xact: self.xact, seq: self.seq }
    }
}

// `data` may hold message text and numbers, which belong in no log.
impl std::fmt::Debug for FannedOut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FannedOut").field("id", &self.id).field("kind", &self.kind).finish_non_exhaustive()
    }
}

/// Tells live streams of events; called after the commit. It must neither wait nor fail: hand the events to a task or drop
/// them.
pub type Publish = Arc<dyn Fn(Vec<FannedOut>) + Send + Sync>;

/// What one step of the fan-out did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Events handed on.
    pub events: usize,
    /// Deliveries made of them.
    pub deliveries: i64,
    /// Whether more may be waiting.
    pub full: bool,
    /// Whether committed events wait for the end of an older transaction.
    pub held_back: bool,
}

#[derive(QueryableByName)]
struct Cursor {
    #[diesel(sql_type = BigInt)]
    xact: i64,
    #[diesel(sql_type = BigInt)]
    seq: i64,
}

#[derive(QueryableByName)]
struct Flag {
    #[diesel(sql_type = Bool)]
    flag: bool,
}

/// Fans out until `stop` becomes true (or its sender is gone). Any number of nodes may run it.
pub async fn run(app: App, publish: Option<Publish>, mut stop: watch::Receiver<bool>) {
    let poll = app.config.timings.poll;
    let mut held_back = HELD_BACK;
    while !*stop.borrow() && stop.has_changed().is_ok() {
        let pause = match step(&app, publish.as_ref()).await {
            Ok(Step { full: true, .. }) => continue,
            Ok(Step { held_back: true, .. }) => {
                let pause = held_back.min(poll);
                held_back = pause * 2;
                pause
            }
            Ok(_) => {
                held_back = HELD_BACK;
                poll
            }
            Err(fault) => {
                tracing::warn!(%fault, "events could not be fanned out");
                poll.max(Duration::from_secs(1))
            }
        };
        tokio::select! {
            () = app.wake.events.notified() => {}
            () = tokio::time::sleep(pause) => {}
            _ = stop.wait_for(|stop| *stop) => {}
        }
    }
}

/// Hands on one batch, if no other node is doing so.
///
/// # Errors
/// When the database does not answer; nothing was handed on then.
pub async fn step(app: &App, publish: Option<&Publish>) -> Result<Step, DbError> {
    let now = app.clock.now();
    let started = tokio::time::Instant::now();
    let (batch, held_back) = app.db.system(async |conn| take(conn, now, publish.is_some()).await).await?;
    let step = Step {
        events: batch.len(),
        deliveries: batch.as_slice().first().map_or(0, |event| event.deliveries),
        full: i64::try_from(batch.len()).is_ok_and(|count| count >= BATCH),
        held_back,
    };
    if step.deliveries > 0 {
        app.wake.deliveries.notify_one();
    }
    if let Some(oldest) = batch.as_slice().first() {
        let events = u64::try_from(step.events).unwrap_or_default();
        metrics::counter!("switchboard_events_fanned_out_total").increment(events);
        metrics::counter!("switchboard_webhook_deliveries_total")
            .increment(u64::try_from(step.deliveries).unwrap_or_default());
        metrics::histogram!("switchboard_fan_out_seconds").record(started.elapsed().as_secs_f64());
        let lag = (now - oldest.at).to_std().unwrap_or_default();
        metrics::gauge!("switchboard_fan_out_lag_seconds").set(lag.as_secs_f64());
        if let Some(publish) = publish {
            publish(batch);
        }
    } else if !held_back {
        metrics::gauge!("switchboard_fan_out_lag_seconds").set(0.0);
    }
    Ok(step)
}

async fn take(conn: &mut SystemConn, now: DateTime<Utc>, with_data: bool) -> Result<(Vec<FannedOut>, bool), DbError> {
    let cursor: Vec<Cursor> = sql("SELECT xact, seq FROM event_cursors WHERE name = 'fan_out' FOR UPDATE SKIP LOCKED")
        .prepared()
        .load(&mut **conn)
        .await?;
    let Some(cursor) = cursor.as_slice().first() else { return Ok((Vec::new(), false)) };
    let batch: Vec<FannedOut> = sql(
        "WITH batch AS MATERIALIZED ( \
             SELECT * FROM events e \
             WHERE (e.xact, e.seq) > ($1, $2) AND e.xact < pg_snapshot_xmin(pg_current_snapshot())::text::bigint \
             ORDER BY e.xact, e.seq LIMIT $3), \
         made AS ( \
             INSERT INTO webhook_deliveries (tenant_id, id, endpoint_id, event_id, next_attempt_at, created_at, updated_at) \
             SELECT b.tenant_id, delivery_id(b.id, w.id), w.id, b.id, $4, $4, $4 \
             FROM webhook_endpoints w JOIN batch b USING (tenant_id) \
             WHERE w.enabled AND w.deleted_at IS NULL AND b.type <> $5 \
               AND w.event_types && ARRAY['*', split_part(b.type, '.', 1) || '.*', b.type] \
               AND w.tenant_id IN (SELECT DISTINCT tenant_id FROM batch) \
             ON CONFLICT DO NOTHING RETURNING 1), \
         moved AS ( \
             UPDATE event_cursors c SET xact = last.xact, seq = last.seq, updated_at = $4 \
             FROM (SELECT xact, seq FROM batch ORDER BY xact DESC, seq DESC LIMIT 1) last WHERE c.name = 'fan_out') \
         SELECT tenant_id, id, type AS kind, at, session_id, message_id, CASE WHEN $6 THEN data ELSE '' END AS data, \
                xact, seq, (SELECT count(*) FROM made) AS deliveries \
         FROM batch ORDER BY xact, seq",
    )
    .bind::<BigInt, _>(cursor.xact)
    .bind::<BigInt, _>(cursor.seq)
    .bind::<BigInt, _>(BATCH)
    .bind::<Timestamptz, _>(now)
    .bind::<Text, _>(TEST_PING)
    .bind::<Bool, _>(with_data)
    .prepared()
    .load(&mut **conn)
    .await?;
    if i64::try_from(batch.len()).is_ok_and(|count| count >= BATCH) {
        return Ok((batch, false));
    }
    // By the latest event alone: that is one step in the index, however long the log is.
    let held_back: Vec<Flag> = sql("SELECT xact >= pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS flag \
         FROM events ORDER BY xact DESC, seq DESC LIMIT 1")
    .prepared()
    .load(&mut **conn)
    .await?;
    Ok((batch, held_back.into_iter().any(|latest| latest.flag)))
}
