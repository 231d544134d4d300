//! Events on the road: each one on a topic exchange, for whoever streams them.
//!
//! Best effort by design: the log in Postgres is the truth, and a stream resumes from it. What cannot be put on the road at
//! once is dropped, so the fan-out never waits for the broker. A tenant to whom nobody listens costs next to nothing: when an
//! event comes back because no queue takes it, the tenant's next ones stay off the road for [`QUIET`]. A stream therefore
//! binds all of its tenant's events (`<tenant>.#`) and looks into the log once more that long after it has begun.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::fan_out::{FannedOut, Publish};
use super::log::NewEvent;
use super::view::envelope;
use crate::app::App;
use crate::broker::{Broker, Outgoing, PublishError, Route};
use crate::domain::ids::TenantId;

/// Batches that may wait for the broker.
const WAITING: usize = 64;
/// How long a tenant's events stay off the road after nobody listened.
pub const QUIET: Duration = Duration::from_secs(1);

/// Puts events on the road in a task of its own on the current runtime. The routing key is `<tenant>.<type>`.
#[must_use]
pub fn publisher(app: &App) -> Publish {
    let (batches, mut waiting) = mpsc::channel::<Vec<FannedOut>>(WAITING);
    let broker = app.broker.clone();
    drop(tokio::spawn(async move {
        let mut quiet = Quiet::default();
        while let Some(batch) = waiting.recv().await {
            if broker.is_connected() {
                quiet.publish(&broker, batch).await;
            }
        }
    }));
    Arc::new(move |batch| {
        // A full channel means that the broker is slow; streams find what they missed in the log.
        let _full = batches.try_send(batch);
    })
}

/// Tells live streams of `events` that are kept nowhere.
pub fn tell(app: &App, events: Vec<NewEvent>) {
    let broker = app.broker.clone();
    app.spawn(async move {
        let told = events.iter().map(|event| Outgoing {
            route: Route::Event { routing_key: format!("{}.{}", event.tenant, event.kind) },
            kind: "event",
            id: event.id.0,
            traceparent: None,
            body: Bytes::from(envelope(event.id, event.kind, event.at, &event.data)),
        });
        // Nobody may be listening, and who misses it learns the next.
        let _answers = broker.publish_to_listeners(told.collect()).await;
    });
}

/// The tenants to whom nobody listened a moment ago, and until when that is believed.
#[derive(Default)]
struct Quiet(HashMap<TenantId, Instant>);

impl Quiet {
    async fn publish(&mut self, broker: &Broker, mut batch: Vec<FannedOut>) {
        let now = Instant::now();
        self.0.retain(|_, until| *until > now);
        batch.retain(|event| !self.0.contains_key(&event.tenant_id));
        // Each tenant's first event finds out whether anybody listens, before the others follow it.
        let mut seen = HashSet::new();
        let (first, rest): (Vec<_>, Vec<_>) = batch.into_iter().partition(|event| seen.insert(event.tenant_id));
        let tenants: Vec<TenantId> = first.iter().map(|event| event.tenant_id).collect();
        let answers = broker.publish_to_listeners(first.iter().map(outgoing).collect()).await;
        for (tenant, answer) in tenants.into_iter().zip(&answers) {
            if *answer == Err(PublishError::Unroutable) {
                self.0.insert(tenant, now + QUIET);
            }
        }
        let heard = rest.iter().filter(|event| !self.0.contains_key(&event.tenant_id)).map(outgoing).collect();
        let more = broker.publish_to_listeners(heard).await;
        let lost = |answer: &&Result<(), PublishError>| !matches!(answer, Ok(()) | Err(PublishError::Unroutable));
        let dropped = answers.iter().chain(&more).filter(lost).count();
        metrics::counter!("switchboard_events_live_dropped_total").increment(dropped.try_into().unwrap_or(0));
    }
}

fn outgoing(event: &FannedOut) -> Outgoing {
    Outgoing {
        route: Route::Event { routing_key: format!("{}.{}", event.tenant_id, event.kind) },
        kind: "event",
        id: event.id.0,
        traceparent: None,
        body: Bytes::from(envelope(event.id, &event.kind, event.at, &event.data)),
    }
}
