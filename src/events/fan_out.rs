//! From the event log to webhook endpoints and live streams.
//!
//! Guarantee: every committed event is handed exactly once, in effect, to every endpoint that was enabled and subscribed to
//! its type when it was fanned out. It is a [`follower`](super::follower) of the log: no event is passed over, and the
//! deliveries of a batch and the move of the cursor past it share one transaction. A delivery is unique per event and endpoint.
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

use super::follower::{Follow, Follower, Step, next_batch};
use super::types::TEST_PING;
use crate::app::{App, EventBell};
use crate::db::{DbError, Prepare, SystemConn};
use crate::domain::ids::{EventId, MessageId, SessionId, TenantId};

static FOLLOWER: Follower = Follower {
    cursor: "fan_out",
    lag: "switchboard_fan_out_lag_seconds",
    batch: 1000,
    rest: Duration::ZERO,
    bell: Some(EventBell::notified),
    failed: "events could not be fanned out",
};

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

struct FanOut(Option<Publish>);

impl Follow for FanOut {
    async fn step(&self, app: &App) -> Result<Step, DbError> {
        Ok(step(app, self.0.as_ref()).await?.0)
    }
}

/// Fans out until `stop` becomes true (or its sender is gone). Any number of nodes may run it.
pub async fn run(app: App, publish: Option<Publish>, stop: watch::Receiver<bool>) {
    FOLLOWER.run(&app, &FanOut(publish), stop).await;
}

/// Hands on one batch, if no other node is doing so; answers also how many deliveries were made of it.
///
/// # Errors
/// When the database does not answer; nothing was handed on then.
pub async fn step(app: &App, publish: Option<&Publish>) -> Result<(Step, i64), DbError> {
    let now = app.clock.now();
    let started = tokio::time::Instant::now();
    let (batch, step) = app.db.system(async |conn| take(conn, now, publish.is_some()).await).await?;
    FOLLOWER.tell_lag(step, now);
    let deliveries = batch.as_slice().first().map_or(0, |event| event.deliveries);
    if deliveries > 0 {
        app.wake.deliveries.notify_one();
    }
    if !batch.is_empty() {
        metrics::counter!("switchboard_events_fanned_out_total")
            .increment(u64::try_from(step.events).unwrap_or_default());
        metrics::counter!("switchboard_webhook_deliveries_total")
            .increment(u64::try_from(deliveries).unwrap_or_default());
        metrics::histogram!("switchboard_fan_out_seconds").record(started.elapsed().as_secs_f64());
        if let Some(publish) = publish {
            publish(batch);
        }
    }
    Ok((step, deliveries))
}

async fn take(conn: &mut SystemConn, now: DateTime<Utc>, with_data: bool) -> Result<(Vec<FannedOut>, Step), DbError> {
    let Some(place) = FOLLOWER.lock(conn).await? else { return Ok((Vec::new(), Step::default())) };
    // All in one: the deliveries need the batch, and the database has it already.
    let text = next_batch!(
        "e.*",
        ", made AS ( \
             INSERT INTO webhook_deliveries (tenant_id, id, endpoint_id, event_id, next_attempt_at, created_at, updated_at) \
             SELECT b.tenant_id, delivery_id(b.id, w.id), w.id, b.id, $4, $4, $4 \
             FROM webhook_endpoints w JOIN batch b USING (tenant_id) \
             WHERE w.enabled AND w.deleted_at IS NULL AND b.type <> $6 \
               AND w.event_types && ARRAY['*', split_part(b.type, '.', 1) || '.*', b.type] \
               AND w.tenant_id IN (SELECT DISTINCT tenant_id FROM batch) \
             ON CONFLICT DO NOTHING RETURNING 1) \
         SELECT tenant_id, id, type AS kind, at, session_id, message_id, CASE WHEN $7 THEN data ELSE '' END AS data, \
                xact, seq, (SELECT count(*) FROM made) AS deliveries \
         FROM batch ORDER BY xact, seq"
    );
    let statement =
        FOLLOWER.statement(text, place, now).bind::<Text, _>(TEST_PING).bind::<Bool, _>(with_data).prepared();
    let batch: Vec<FannedOut> = statement.load(&mut **conn).await?;
    let step = FOLLOWER.taken(conn, batch.len(), batch.as_slice().first().map(|event| event.at)).await?;
    Ok((batch, step))
}
