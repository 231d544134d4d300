//! What WAHA tells us: verify, keep, apply.
//!
//! A webhook is answered as soon as its raw event is kept, by the broker or, when that is away, by the spool table. Consumers
//! apply events in batches; see [`apply`] for what makes a repeat harmless.

pub mod acks;
pub mod apply;
pub mod inbound;
pub mod intake;
pub mod road;
pub mod spool;

use std::time::Duration;

use tokio::sync::watch;

use crate::app::App;
use crate::broker::envelope::{Envelope, EnvelopeError, InboundBatch, InboundEvent};
use crate::broker::{ConsumeOptions, Delivery, Queue, Verdict};
use crate::db::DbError;

/// Messages of the broker's in a batch at most: of [`road::TOGETHER`] events each, about 500 events.
const BATCH: usize = 8;

/// Applies events from broker and spool until `stop` turns true.
pub async fn run(app: App, mut stop: watch::Receiver<bool>) {
    let options = ConsumeOptions { prefetch: 64, max_batch: BATCH, ..ConsumeOptions::default() };
    let applier = app.clone();
    let consumer = app.broker.consume_batches(Queue::Inbound, options, move |deliveries: Vec<Delivery>| {
        let app = applier.clone();
        async move { apply_deliveries(&app, &deliveries).await }
    });
    loop {
        let pause = match tidy(&app).await {
            Ok(true) => Duration::ZERO,
            Ok(false) => Duration::from_secs(1),
            Err(fault) => {
                tracing::warn!(%fault, "ingest: the spool cannot be drained");
                Duration::from_secs(2)
            }
        };
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => break,
            () = tokio::time::sleep(pause) => {}
        }
    }
    consumer.stop(app.config.timings.drain).await;
}

/// Drains some of the spool and takes up acks that came early; answers whether there may be more.
async fn tidy(app: &App) -> Result<bool, DbError> {
    let drained = spool::drain(app, 200).await?;
    let now = app.clock.now();
    let taken = app.db.system(async |conn| acks::sweep_early(conn, &app.chance, now).await).await?;
    if taken > 0 {
        app.wake.events.notify_one();
    }
    Ok(drained > 0)
}

async fn apply_deliveries(app: &App, deliveries: &[Delivery]) -> Vec<Verdict> {
    // What cannot be read will not be readable later; it is kept with the dead letters.
    let parsed: Vec<Option<Vec<InboundEvent>>> = deliveries
        .iter()
        .map(|delivery| {
            read(delivery).inspect_err(|fault| tracing::error!(%fault, "ingest: not an inbound event")).ok()
        })
        .collect();
    let events: Vec<InboundEvent> = parsed.iter().flatten().flatten().cloned().collect();
    let mut applied = apply::apply_all(app, &events).await.into_iter();
    let mut verdicts = Vec::with_capacity(deliveries.len());
    for events in &parsed {
        let Some(events) = events else {
            verdicts.push(Verdict::Dead);
            continue;
        };
        let each: Vec<Verdict> = events.iter().map(|_| applied.next().unwrap_or(Verdict::Retry)).collect();
        verdicts.push(judge(app, events, &each).await);
    }
    verdicts
}

fn read(delivery: &Delivery) -> Result<Vec<InboundEvent>, EnvelopeError> {
    if delivery.kind == InboundBatch::KIND {
        return InboundBatch::parse(&delivery.body).map(|batch| batch.events);
    }
    InboundEvent::parse(&delivery.body).map(|event| vec![event])
}

/// One verdict for events that came together: those that cannot be applied are sent to the dead letters one by one, by the
/// same road.
async fn judge(app: &App, events: &[InboundEvent], each: &[Verdict]) -> Verdict {
    if let [verdict] = each {
        return *verdict;
    }
    if each.contains(&Verdict::Retry) {
        return Verdict::Retry;
    }
    for (event, _) in events.iter().zip(each).filter(|(_, verdict)| **verdict == Verdict::Dead) {
        if let Err(fault) = intake::publish_alone(app, event).await {
            tracing::debug!(%fault, "ingest: an event could not be set aside yet");
            return Verdict::Retry;
        }
    }
    Verdict::Done
}
