//! Dispatch: whose turn is it?
//!
//! The loop takes due lanes from Postgres, commits their turn, puts the message on the road (RabbitMQ, confirmed) and sleeps
//! until the next lane is due. Any number may run: locks are skipped, not waited for. A second loop ([`sweep`]) does what
//! becomes due by itself: scheduled messages, expired ones, held ones.
//!
//! Guarantee: a message of a lane is put on the road at least once, and one message of a session at a time. A publish that
//! failed, a wiped broker or a dead worker shows as a lease that ran out, and the lane is dispatched again with a higher
//! fence. A repeat is harmless because only the highest fence can be claimed, and only once.
//!
//! Pace: nothing leaves before the last send and the gap, which a restart remembers (`lanes.next_slot_at`), nor above a cap:
//! the n-th latest send and the cap's window are the earliest time, exactly ([`limits`]). Gap and caps hold for every priority.
//! Outside of a session's windows only high messages leave ([`windows`]). High ones overtake, bulk ones yield, and within a
//! priority the order is that of acceptance; one in flight is never overtaken, so that a high message waits for one gap at the
//! most, whatever the backlog. No message leaves after its `expires_at`, and what is claimed does not expire.
//!
//! Fairness: a lane that may not send costs nothing until it may; those due take turns by how long they have waited, one
//! message each; the lanes of a server whose circuit breaker is open get no turn, and after its pause one at a time until it
//! is closed. So nobody's backlog delays anybody else.

pub mod lanes;
pub mod limits;
pub mod pacing;
pub mod sweep;
pub mod windows;

use std::time::Duration;

use bytes::Bytes;
use chrono::TimeDelta;
use tokio::sync::watch;

use crate::app::App;
use crate::broker::envelope::{Envelope, OutboundRef};
use crate::broker::{LinkState, Outgoing, Route};
use crate::domain::ids::WahaServerId;
use crate::telemetry::trace;

/// Lanes taken at once.
const BATCH: i64 = 500;

/// How long a lane waits after its message could not be put on the road.
const AFTER_FAILED_PUBLISH: Duration = Duration::from_millis(500);

/// Dispatches until `stop` turns true.
pub async fn run(app: App, stop: watch::Receiver<bool>) {
    tokio::join!(take_turns(app.clone(), stop.clone()), sweep::run(app, stop));
}

async fn take_turns(app: App, mut stop: watch::Receiver<bool>) {
    let mut link = app.broker.state();
    while !*stop.borrow() {
        // With nowhere to publish to, leases would only run out: wait for the broker.
        let connected = async { link.wait_for(|state| *state == LinkState::Connected).await.map(|_| ()) };
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            state = connected => if state.is_err() { return },
        }
        let pause = match round(&app).await {
            Ok(pause) => pause,
            Err(fault) => {
                tracing::warn!(%fault, "dispatch: the lanes cannot be read");
                Duration::from_secs(1)
            }
        };
        if pause.is_zero() {
            continue;
        }
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            () = app.wake.dispatch.notified() => {}
            () = app.clock.sleep(pause) => {}
        }
    }
}

/// One look at the lanes; answers how long to sleep.
async fn round(app: &App) -> Result<Duration, crate::db::DbError> {
    let timings = &app.config.timings;
    let lease = TimeDelta::from_std(timings.dispatch_lease).unwrap_or(TimeDelta::MAX);
    let now = app.clock.now();
    let due = lanes::take_due(&app.db, now, lease, BATCH).await?;
    metrics::counter!("switchboard_dispatch_turns_total").increment(due.turns.len().try_into().unwrap_or(u64::MAX));
    if !due.turns.is_empty() {
        publish(app, due.turns).await?;
    }
    if due.more {
        return Ok(Duration::ZERO);
    }
    // The other nodes' work shows at the next poll at the latest.
    let until_next = due.next.map_or(timings.poll, |next| (next - app.clock.now()).to_std().unwrap_or(Duration::ZERO));
    // At least a moment, lest a lane that somebody holds locked keeps the loop spinning.
    Ok(until_next.clamp(Duration::from_millis(1), timings.poll))
}

async fn publish(app: &App, turns: Vec<(WahaServerId, OutboundRef)>) -> Result<(), crate::db::DbError> {
    let messages = turns
        .iter()
        .map(|(server, reference)| Outgoing {
            route: Route::Outbound(*server),
            kind: OutboundRef::KIND,
            id: reference.message_id.0,
            traceparent: Some(trace::parent_for(reference.message_id.0, &app.chance)),
            // An id and a number always serialise.
            body: reference.to_bytes().unwrap_or_else(|_| Bytes::new()),
        })
        .collect();
    let results = app.broker.publish_all(messages).await;
    let mut failed = Vec::new();
    for ((_, reference), result) in turns.into_iter().zip(results) {
        if let Err(fault) = result {
            tracing::debug!(message_id = %reference.message_id, %fault, "dispatch: not put on the road");
            failed.push(reference);
        }
    }
    if failed.is_empty() {
        return Ok(());
    }
    tracing::warn!(messages = failed.len(), "dispatch: messages could not be put on the road; they are tried again");
    let pause = TimeDelta::from_std(AFTER_FAILED_PUBLISH).unwrap_or_default();
    lanes::give_back(&app.db, &failed, app.clock.now() + pause).await
}
