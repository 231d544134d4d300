//! Sending: claim, hand over to WAHA, record what that proved.
//!
//! One consumer per WAHA server, so that a hanging server holds only its own queue. Guarantee: a message is handed over at
//! least once where its id makes a repeat harmless (the engine carries our id), and at most once elsewhere. The broker's
//! repeats, a second worker and a worker that comes back from the dead are stopped by the claim's fence; a worker that died
//! in mid-attempt leaves it open, and the next one reads back before it sends.

pub mod attempt;
pub mod breaker;
pub mod claim;
pub mod compose;
pub mod foreign;
pub mod outcome;
mod reconcile;
pub mod stuck;
mod typing;
pub mod watchdog;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::app::App;
use crate::broker::envelope::{Envelope, OutboundRef};
use crate::broker::{ConsumeOptions, ConsumerHandle, Delivery, Queue, Verdict};
use crate::db::DbError;
use crate::db::group_commit::{GroupCommit, GroupCommitError};
use crate::dispatch::lanes;
use crate::domain::ids::WahaServerId;
use crate::sending::breaker::{Breaker, Pass};
use crate::sending::claim::{Claimed, Claims};
use crate::sending::foreign::ForeignIds;
use crate::sending::outcome::{Doubt, Outcome, Outcomes, Report};
use crate::sending::stuck::Refusals;
use crate::sessions::liveness::vitals::Calls;
use crate::telemetry::trace;

/// An attempt that has waited for so long holds up nobody but its own server.
const SLOW: Duration = Duration::from_secs(5);

/// What every attempt needs; clones share it.
#[derive(Clone, Debug)]
pub struct Tools {
    /// The process.
    pub app: App,
    /// Endpoints that do not keep message ids.
    pub foreign: ForeignIds,
    /// The servers' circuit breakers.
    pub breaker: Breaker,
    /// Messages that were refused with the same words, one after the other.
    pub refusals: Refusals,
    /// How WAHA answers, for the sessions' vitals.
    pub calls: Calls,
}

impl Tools {
    /// Those of one process.
    #[must_use]
    pub fn new(app: &App) -> Self {
        Self {
            app: app.clone(),
            foreign: ForeignIds::new(app),
            breaker: Breaker::default(),
            refusals: Refusals::default(),
            calls: Calls::default(),
        }
    }
}

#[derive(Clone)]
struct Worker {
    tools: Tools,
    permits: Arc<Semaphore>,
    claims: GroupCommit<Claims>,
    outcomes: GroupCommit<Outcomes>,
}

/// Consumes the queue of every WAHA server until `stop` turns true, then lets running attempts end.
pub async fn run(app: App, mut stop: watch::Receiver<bool>) {
    let tools = Tools::new(&app);
    let worker = Worker {
        permits: Arc::new(Semaphore::new(app.config.sending.at_once.min(Semaphore::MAX_PERMITS))),
        claims: GroupCommit::start("claim", Claims::new(&app), 10_000, 500),
        outcomes: GroupCommit::start("outcome", Outcomes::new(&app), 10_000, 500),
        tools,
    };
    let mut consumers: HashMap<WahaServerId, ConsumerHandle> = HashMap::new();
    let watchdog = tokio::spawn(watchdog::run(worker.tools.clone(), stop.clone()));
    let calls = tokio::spawn(worker.tools.calls.clone().run(app.clone(), stop.clone()));
    loop {
        match app.directory.all_servers().await {
            Ok(servers) => {
                // One that has ended, whatever the cause, is replaced.
                consumers.retain(|_, consumer| !consumer.is_ended());
                for server in servers {
                    consumers.entry(server.id).or_insert_with(|| worker.consume(server.id));
                }
            }
            Err(fault) => tracing::warn!(%fault, "sending: the WAHA servers cannot be read"),
        }
        if let Err(fault) = worker.tools.breaker.follow(&app.db, app.clock.now()).await {
            tracing::debug!(%fault, "sending: the circuit breakers cannot be read");
        }
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => break,
            () = tokio::time::sleep(app.config.timings.poll) => {}
        }
    }
    let limit = app.config.timings.drain;
    let stopping = consumers.values().map(|consumer| consumer.stop(limit));
    futures_util::future::join_all(stopping).await;
    // They end by themselves; whether they panicked is in the log.
    let _ended = tokio::join!(watchdog, calls);
}

impl Worker {
    fn consume(&self, server: WahaServerId) -> ConsumerHandle {
        let worker = self.clone();
        let prefetch = self.tools.app.config.sending.at_once_per_server;
        let options = ConsumeOptions { prefetch, ..ConsumeOptions::default() };
        self.tools.app.broker.consume(Queue::Outbound(server), options, move |delivery: Delivery| {
            let worker = worker.clone();
            async move { Box::pin(worker.handle(server, delivery)).await }
        })
    }

    async fn handle(&self, server: WahaServerId, delivery: Delivery) -> Verdict {
        let app = &self.tools.app;
        let turn = match OutboundRef::parse(&delivery.body) {
            Ok(turn) => turn,
            Err(fault) => {
                tracing::error!(%fault, "sending: not a turn");
                return Verdict::Dead;
            }
        };
        // The semaphore is never closed.
        let Ok(permit) = Arc::clone(&self.permits).acquire_owned().await else { return Verdict::Done };
        let now = app.clock.now();
        let longest = TimeDelta::from_std(app.config.timings.send_timeout).unwrap_or(TimeDelta::minutes(3));
        if let Pass::Wait(until) = self.tools.breaker.admit(server, now, longest) {
            // Not claimed, so nothing counts. Should this fail, the lane's lease brings the message back.
            if let Err(fault) = lanes::give_back(&app.db, &[turn], until).await {
                tracing::debug!(%fault, "sending: a turn could not be put back");
            }
            return Verdict::Done;
        }
        let verdict = Box::pin(self.take_turn(server, turn, permit, &delivery)).await;
        self.tools.breaker.tried(server);
        verdict
    }

    async fn take_turn(
        &self,
        server: WahaServerId,
        turn: OutboundRef,
        permit: OwnedSemaphorePermit,
        delivery: &Delivery,
    ) -> Verdict {
        let claimed = match self.claims.write(turn).await {
            Ok(Some(claimed)) => claimed,
            Ok(None) => {
                metrics::counter!("switchboard_send_turns_stale_total").increment(1);
                return Verdict::Done;
            }
            // The lane's lease brings the message back; the broker need not keep it.
            Err(fault) => {
                tracing::warn!(%fault, "sending: a turn could not be claimed");
                return Verdict::Done;
            }
        };
        let started = tokio::time::Instant::now();
        let outcome = Box::pin(held_for_a_while(permit, self.attempt(&claimed, server))).await;
        self.log(&claimed, &outcome, server, started.elapsed(), delivery.traceparent.as_deref());
        self.report(&claimed, outcome).await;
        Verdict::Done
    }

    async fn attempt(&self, claimed: &Claimed, server: WahaServerId) -> Outcome {
        match attempt::find_way(&self.tools.app, claimed, server).await {
            Ok(way) => attempt::make(&self.tools, claimed, way.as_ref()).await,
            Err(fault) => Outcome::Retry {
                at: self.tools.app.clock.now() + TimeDelta::seconds(1),
                doubt: claimed.doubt(),
                counts: false,
                error: ("not_sent", fault.to_string()),
            },
        }
    }

    /// Records the outcome; tries for as long as the claim holds. After that the next claim finds the attempt open.
    async fn report(&self, claimed: &Claimed, outcome: Outcome) {
        let app = &self.tools.app;
        let jitter = app.chance.jitter(claimed.jitter.to_std().unwrap_or_default());
        let at = app.clock.now();
        let mut report = Report {
            turn: claimed.turn.clone(),
            attempt: claimed.attempt,
            at,
            gap: claimed.min_gap + TimeDelta::from_std(jitter).unwrap_or_default(),
            outcome,
        };
        while let Err(fault) = self.outcomes.write(report.clone()).await {
            if let GroupCommitError::Database(cause) = &fault
                && matches!(**cause, DbError::Duplicate(_))
            {
                // Another message of the session has the id that WAHA answered; this one goes on without.
                report.outcome = Outcome::HandedOver { waha_message_id: None, chat_id: None };
            }
            if app.clock.now() >= claimed.lease_until {
                tracing::error!(message_id = %claimed.turn.message_id, %fault, "sending: an outcome could not be recorded");
                return;
            }
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    }

    fn log(
        &self,
        claimed: &Claimed,
        outcome: &Outcome,
        server: WahaServerId,
        took: Duration,
        traceparent: Option<&str>,
    ) {
        let result = match outcome {
            Outcome::HandedOver { .. } => "handed_over",
            Outcome::Retry { doubt: Doubt::None, .. } => "retry",
            Outcome::Retry { doubt: Doubt::Earlier | Doubt::Fresh, .. } => "doubt",
            Outcome::Failed { .. } => "failed",
            Outcome::Expired => "expired",
            Outcome::Restricted { .. } => "held",
        };
        let code = outcome.error().map(|error| error.0);
        metrics::counter!("switchboard_send_attempts_total", "result" => result).increment(1);
        metrics::histogram!("switchboard_send_attempt_seconds").record(took.as_secs_f64());
        let waited = (self.tools.app.clock.now() - claimed.created_at).to_std().unwrap_or_default();
        metrics::histogram!("switchboard_send_wait_seconds").record(waited.saturating_sub(took).as_secs_f64());
        tracing::info!(
            tenant_id = %claimed.turn.tenant_id,
            session_id = %claimed.turn.session_id,
            message_id = %claimed.turn.message_id,
            waha_server_id = %server,
            trace_id = traceparent.and_then(trace::trace_id),
            attempt = claimed.attempt,
            took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            result,
            code,
            "message attempt"
        );
    }
}

/// Waits for `work`, and gives `permit` back when it takes long: one that hangs holds up nobody else.
async fn held_for_a_while<T>(permit: OwnedSemaphorePermit, work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    tokio::select! {
        done = &mut work => return done,
        () = tokio::time::sleep(SLOW) => drop(permit),
    }
    work.await
}
