//! The worker: claims due deliveries, attempts them, records what came of it.
//!
//! Guarantee: at least once. A claim is counted and leased before the request and recorded after it. A worker that is killed
//! between the request and the record leaves a lease that ends, and the delivery is attempted once more, with the same
//! `webhook-id`; by that the endpoint knows the repeat. Two workers never make the same attempt. A late record of an attempt
//! that another one has overtaken is kept in the list of attempts, but decides nothing (unless it was a success).
//!
//! An endpoint has a few slots per node, and one when it has been failing for a minute; endpoints take turns. So one that
//! hangs delays its own deliveries and no others.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use super::attempt;
use super::claim::{self, Claimed, PER_ENDPOINT, Turn};
use super::outcome::{Outcome, OutcomeWriter};
use crate::app::App;
use crate::db::DbError;
use crate::db::group_commit::{GroupCommit, GroupCommitError};
use crate::domain::ids::EndpointId;
use crate::guard::{self, Guard, GuardedClient, Timeouts};

/// Attempts in flight on one node.
const IN_FLIGHT: usize = 1024;
/// Deliveries claimed in one transaction at the most.
const BATCH: usize = 256;
/// How often pending deliveries of disabled endpoints are looked for, and the backlog counted.
const TIDY: Duration = Duration::from_secs(5);
/// The backlog is counted up to here.
const MOST_COUNTED: i64 = 100_000;

/// Attempts and records deliveries on the runtime that made it.
pub struct Worker {
    app: App,
    client: GuardedClient,
    outcomes: GroupCommit<OutcomeWriter>,
    slots: Arc<Slots>,
    attempts: JoinSet<()>,
    turn: Turn,
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker").field("attempts", &self.attempts.len()).finish_non_exhaustive()
    }
}

/// Runs a [`Worker`] until `stop` becomes true (or its sender is gone), then lets running attempts finish. Any number of nodes
/// may run one.
///
/// # Errors
/// When the TLS backend cannot be set up.
pub async fn run(app: App, stop: watch::Receiver<bool>) -> Result<(), reqwest::Error> {
    Worker::new(app)?.run(stop).await;
    Ok(())
}

impl Worker {
    /// A worker that has not begun.
    ///
    /// # Errors
    /// When the TLS backend cannot be set up.
    pub fn new(app: App) -> Result<Self, reqwest::Error> {
        let guard = Guard::new(app.config.allow_private_targets);
        let timeouts = Timeouts { total: attempt::TIMEOUT, ..Timeouts::default() };
        let outcomes = GroupCommit::start("webhook_outcomes", OutcomeWriter { app: app.clone() }, 4 * IN_FLIGHT, BATCH);
        Ok(Self {
            client: guard::client(&guard, timeouts)?,
            outcomes,
            slots: Arc::default(),
            attempts: JoinSet::new(),
            turn: Turn::FIRST,
            app,
        })
    }

    async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let poll = self.app.config.timings.poll;
        let mut tidied = None;
        while !*stop.borrow() && stop.has_changed().is_ok() {
            if tidied.is_none_or(|at: tokio::time::Instant| at.elapsed() >= TIDY) {
                tidied = Some(tokio::time::Instant::now());
                self.tidy().await;
            }
            let began = tokio::time::Instant::now();
            let pause = match self.step().await {
                Ok(claimed) if claimed >= BATCH => continue,
                // With very many endpoints waiting for a retry a look takes a while; then look less often.
                Ok(_) => poll.max(began.elapsed() * 4),
                Err(fault) => {
                    tracing::warn!(%fault, "webhook deliveries could not be claimed");
                    poll.max(Duration::from_secs(1))
                }
            };
            tokio::select! {
                () = self.app.wake.deliveries.notified() => {}
                () = self.slots.freed.notified() => {}
                () = tokio::time::sleep(pause) => {}
                _ = stop.wait_for(|stop| *stop) => {}
            }
        }
        self.finish().await;
    }

    /// Claims what is due and there is room for, and begins to attempt it; answers how many.
    ///
    /// # Errors
    /// When the database does not answer; nothing was begun then.
    pub async fn step(&mut self) -> Result<usize, DbError> {
        while let Some(ended) = self.attempts.try_join_next() {
            if let Err(fault) = ended {
                tracing::error!(%fault, "a webhook attempt ended badly");
            }
        }
        let in_flight = self.slots.in_flight();
        let free = IN_FLIGHT.saturating_sub(self.attempts.len()).min(BATCH);
        if free == 0 {
            return Ok(0);
        }
        let now = self.app.clock.now();
        let limit = i64::try_from(free).unwrap_or(i64::MAX);
        let claimed = claim::claim(&self.app.db, now, self.turn, &in_flight, limit).await?;
        let count = claimed.len();
        if let Some(last) = claimed.last().filter(|_| count >= free) {
            self.turn = Turn { tenant: last.tenant_id, endpoint: last.endpoint_id };
        }
        let slots = self.slots.take(claimed.iter().map(|delivery| delivery.endpoint_id), in_flight, count >= free);
        for (delivery, slot) in claimed.into_iter().zip(slots) {
            let (app, client, outcomes) = (self.app.clone(), self.client.clone(), self.outcomes.clone());
            self.attempts.spawn(async move {
                attempt_and_record(&app, &client, &outcomes, &delivery).await;
                drop(slot);
            });
        }
        Ok(count)
    }

    /// Waits until every attempt that was begun is recorded.
    pub async fn finish(&mut self) {
        while let Some(ended) = self.attempts.join_next().await {
            if let Err(fault) = ended {
                tracing::error!(%fault, "a webhook attempt ended badly");
            }
        }
    }

    /// Ends pending deliveries of endpoints that are disabled or deleted, and measures the backlog.
    pub async fn tidy(&self) {
        let now = self.app.clock.now();
        let tidied = async {
            while claim::stop_pending(&self.app.db, now).await? > 0 {}
            claim::backlog(&self.app.db, now, MOST_COUNTED).await
        };
        match tidied.await {
            #[expect(clippy::cast_precision_loss, reason = "counted up to a far smaller number than 2^52")]
            Ok(due) => metrics::gauge!("switchboard_webhook_backlog_deliveries").set(due as f64),
            Err(fault) => tracing::debug!(%fault, "the webhook backlog could not be tidied"),
        }
    }
}

async fn attempt_and_record(
    app: &App,
    client: &GuardedClient,
    outcomes: &GroupCommit<OutcomeWriter>,
    delivery: &Claimed,
) {
    let outcome = attempt::make(app, client, delivery).await;
    record(app, outcomes, outcome).await;
}

/// While the database is away an outcome is worth keeping for as long as its lease lasts.
async fn record(app: &App, outcomes: &GroupCommit<OutcomeWriter>, outcome: Outcome) {
    let mut pause = Duration::from_millis(100);
    let patience = tokio::time::Instant::now() + claim::LEASE.to_std().unwrap_or_default();
    loop {
        let fault = match outcomes.write(outcome.clone()).await {
            Ok(()) => return,
            Err(fault) => fault,
        };
        let passing = match &fault {
            GroupCommitError::Overloaded => true,
            GroupCommitError::Stopped => false,
            GroupCommitError::Database(fault) => fault.is_transient(),
        };
        if !passing || tokio::time::Instant::now() >= patience {
            tracing::error!(%fault, delivery.id = %outcome.delivery, "an outcome was not recorded; the delivery will be repeated");
            return;
        }
        tokio::time::sleep(pause + app.chance.jitter(pause)).await;
        pause *= 2;
    }
}

/// What is in flight on this node.
#[derive(Default)]
struct Slots {
    taken: Mutex<Taken>,
    /// Rung when a slot is free for which more may be waiting.
    freed: Notify,
}

#[derive(Default)]
struct Taken {
    count: HashMap<EndpointId, i32>,
    /// Endpoints that had no room left at the latest claim.
    full: HashSet<EndpointId>,
    /// Whether the node had none.
    all_full: bool,
}

struct Slot {
    slots: Arc<Slots>,
    endpoint: EndpointId,
}

impl Slots {
    fn in_flight(&self) -> HashMap<EndpointId, i32> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).count.clone()
    }

    /// Takes a slot for each of `endpoints`, as claimed beside what was `before` in flight.
    fn take(
        self: &Arc<Self>,
        endpoints: impl Iterator<Item = EndpointId>,
        mut before: HashMap<EndpointId, i32>,
        all_full: bool,
    ) -> Vec<Slot> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let slots = endpoints
            .map(|endpoint| {
                *taken.count.entry(endpoint).or_default() += 1;
                *before.entry(endpoint).or_default() += 1;
                Slot { slots: Arc::clone(self), endpoint }
            })
            .collect();
        taken.full =
            before.into_iter().filter(|(_, count)| *count >= PER_ENDPOINT).map(|(endpoint, _)| endpoint).collect();
        taken.all_full = all_full;
        slots
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut taken = self.slots.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.count.get_mut(&self.endpoint) {
            *count -= 1;
            if *count <= 0 {
                taken.count.remove(&self.endpoint);
            }
        }
        if taken.all_full || taken.full.contains(&self.endpoint) {
            self.slots.freed.notify_one();
        }
    }
}
