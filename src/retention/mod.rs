//! How long things are kept, how they are removed, and how a tenant takes them along.
//!
//! [`sweep`] removes what has become old, [`erasure`] what belongs to one person, [`export`] reads all of a tenant.

pub mod erasure;
mod erasure_groups;
mod erasure_person;
mod erasure_steps;
mod person;
pub mod export;
pub mod settings;
pub mod sweep;

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::app::App;

/// How often what has become old is looked for.
const EVERY: Duration = Duration::from_secs(60);
/// How often erasures are looked for.
const LOOKS: Duration = Duration::from_secs(1);

/// Removes what is old, and what is to be erased, until `stop` becomes true (or its sender is gone). Any number of nodes may
/// run it: one of them at a time does the work.
pub async fn run(app: App, mut stop: watch::Receiver<bool>) {
    let mut swept = Instant::now();
    while !*stop.borrow() && stop.has_changed().is_ok() {
        if let Err(fault) = erasure::work(&app).await {
            tracing::warn!(%fault, "retention: an erasure goes on later");
        }
        if swept.elapsed() >= EVERY {
            swept = Instant::now();
            // Small pieces with pauses between; it may be left at any of them.
            tokio::select! {
                done = sweep::sweep(&app) => if let Err(fault) = done {
                    tracing::warn!(%fault, "retention: what is old goes later");
                },
                _ = stop.wait_for(|stop| *stop) => break,
            }
        }
        tokio::select! {
            () = tokio::time::sleep(LOOKS) => {}
            _ = stop.wait_for(|stop| *stop) => {}
        }
    }
}

/// Tells the metrics what these counters mean.
pub fn describe_metrics() {
    metrics::describe_counter!(
        "switchboard_retention_removed_total",
        "Rows emptied or removed because they were old, by kind"
    );
    metrics::describe_counter!("switchboard_erasures_total", "Contacts that were erased");
    metrics::describe_counter!(
        "switchboard_ingest_dead_letters_total",
        "Events of WAHA's that could not be applied and were set aside, by reason"
    );
    metrics::describe_gauge!(
        "switchboard_search_lag_seconds",
        "Age of the oldest event of the latest batch that the search index has read"
    );
}
