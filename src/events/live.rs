//! Events on the road: each one on a topic exchange, for whoever streams them.
//!
//! Best effort by design: the log in Postgres is the truth, and a stream resumes from it. What cannot be put on the road at
//! once is dropped, so the fan-out never waits for the broker.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::fan_out::{FannedOut, Publish};
use super::view::envelope;
use crate::app::App;
use crate::broker::{Outgoing, Route};

/// Batches that may wait for the broker.
const WAITING: usize = 64;

/// Puts events on the road in a task of its own on the current runtime. The routing key is `<tenant>.<type>`.
#[must_use]
pub fn publisher(app: &App) -> Publish {
    let (batches, mut waiting) = mpsc::channel::<Vec<FannedOut>>(WAITING);
    let broker = app.broker.clone();
    drop(tokio::spawn(async move {
        while let Some(batch) = waiting.recv().await {
            if !broker.is_connected() {
                continue;
            }
            let messages = batch
                .into_iter()
                .map(|event| Outgoing {
                    route: Route::Event { routing_key: format!("{}.{}", event.tenant_id, event.kind) },
                    kind: "event",
                    id: event.id.0,
                    traceparent: None,
                    body: Bytes::from(envelope(event.id, &event.kind, event.at, &event.data)),
                })
                .collect();
            let failed = broker.publish_all(messages).await.into_iter().filter(Result::is_err).count();
            metrics::counter!("switchboard_events_live_dropped_total").increment(failed.try_into().unwrap_or(0));
        }
    }));
    Arc::new(move |batch| {
        // A full channel means that the broker is slow; streams find what they missed in the log.
        let _full = batches.try_send(batch);
    })
}
