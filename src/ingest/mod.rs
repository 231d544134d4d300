//! What WAHA tells us: verify, keep, apply.
//!
//! A webhook is answered as soon as its raw event is kept, by the broker or, when that is away, by the spool table. Consumers
//! apply events in batches; see [`apply`] for what makes a repeat harmless.

pub mod acks;
mod aftermath;
pub mod apply;
pub mod arrivals;
pub mod dead_letters;
pub mod evidence;
pub mod gap_fill;
pub mod happenings;
pub mod intake;
pub mod road;
mod sorted;
pub mod spool;
mod vcard;
mod waiting;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::app::App;
use crate::broker::envelope::{Envelope, EnvelopeError, InboundBatch, InboundEvent};
use crate::broker::{ConsumeOptions, Delivery, Queue, Verdict};
use crate::db::DbError;
use crate::ingest::apply::Fate;
use crate::ingest::dead_letters::DeadLetter;

/// Messages of the broker's in a batch at most: of [`road::TOGETHER`] events each, about 500 events.
const BATCH: usize = 8;

/// For how many milliseconds after something that happens now history steps aside.
const BESIDE: u64 = 1000;

/// Applies events from broker and spool until `stop` turns true.
pub async fn run(app: App, mut stop: watch::Receiver<bool>) {
    let options = ConsumeOptions { prefetch: 64, max_batch: BATCH, ..ConsumeOptions::default() };
    let applier = app.clone();
    let began = Instant::now();
    // When something that happens now was applied last, in milliseconds since the beginning.
    let latest = Arc::new(AtomicU64::new(0));
    let (noting, seen) = (Arc::clone(&latest), latest);
    let consumer = app.broker.consume_batches(Queue::Inbound, options, move |deliveries: Vec<Delivery>| {
        let app = applier.clone();
        noting.store(millis(began.elapsed()).max(1), Ordering::Relaxed);
        async move { apply_deliveries(&app, &deliveries).await }
    });
    let applier = app.clone();
    let options = ConsumeOptions { prefetch: 4, max_batch: 1, ..ConsumeOptions::default() };
    let history = app.broker.consume_batches(Queue::History, options, move |deliveries: Vec<Delivery>| {
        let (app, seen) = (applier.clone(), Arc::clone(&seen));
        async move {
            let started = Instant::now();
            let verdicts = apply_deliveries(&app, &deliveries).await;
            // Beside what happens now, history takes a fifth of the time.
            let last = seen.load(Ordering::Relaxed);
            if last > 0 && millis(began.elapsed()).saturating_sub(last) < BESIDE {
                tokio::time::sleep(started.elapsed() * 4).await;
            }
            verdicts
        }
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
    tokio::join!(consumer.stop(app.config.timings.drain), history.stop(app.config.timings.drain));
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
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
    // What is no envelope of ours has no tenant; the broker keeps it with its own dead letters.
    let parsed: Vec<Option<Vec<InboundEvent>>> = deliveries
        .iter()
        .map(|delivery| {
            read(delivery).inspect_err(|fault| tracing::error!(%fault, "ingest: not an inbound event")).ok()
        })
        .collect();
    let events: Vec<InboundEvent> = parsed.iter().flatten().flatten().cloned().collect();
    let mut fates = apply::apply_all(app, &events).await.into_iter();
    let mut verdicts = Vec::with_capacity(deliveries.len());
    for events in &parsed {
        let Some(events) = events else {
            verdicts.push(Verdict::Dead);
            continue;
        };
        let each: Vec<Fate> = fates.by_ref().take(events.len()).collect();
        verdicts.push(if each.len() == events.len() { settle(app, each).await } else { Verdict::Retry });
    }
    verdicts
}

fn read(delivery: &Delivery) -> Result<Vec<InboundEvent>, EnvelopeError> {
    if delivery.kind == InboundBatch::KIND {
        return InboundBatch::parse(&delivery.body).map(|batch| batch.events);
    }
    InboundEvent::parse(&delivery.body).map(|event| vec![event])
}

/// One verdict for events that came together: the broker may forget them once those that were not applied are set aside.
async fn settle(app: &App, fates: Vec<Fate>) -> Verdict {
    let letters: Vec<DeadLetter> = fates
        .into_iter()
        .filter_map(|fate| match fate {
            Fate::Applied => None,
            Fate::Refused(letter) => Some(letter),
        })
        .collect();
    match dead_letters::set_aside(app, &letters).await {
        Ok(()) => Verdict::Done,
        Err(fault) if fault.is_transient() => {
            tracing::debug!(%fault, "ingest: events cannot be set aside yet");
            Verdict::Retry
        }
        // The last resort, which loses nothing either.
        Err(fault) => {
            tracing::error!(%fault, "ingest: events cannot be set aside; the broker keeps them");
            Verdict::Dead
        }
    }
}
