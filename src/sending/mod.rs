//! Sending: claim, hand over to WAHA, record what that proved.
//!
//! One consumer per WAHA server, so that a hanging server holds only its own queue. Guarantee: a message is handed over at
//! least once where its id makes a repeat harmless (the engine carries our id), and at most once elsewhere. The broker's
//! repeats, a second worker and a worker that comes back from the dead are stopped by the claim's fence; a worker that died
//! in mid-attempt leaves it open, and the next one reads back before it sends.

pub mod attempt;
pub mod claim;
pub mod outcome;

use std::collections::HashMap;
use std::time::Duration;

use chrono::TimeDelta;
use tokio::sync::watch;

use crate::app::App;
use crate::broker::envelope::{Envelope, OutboundRef};
use crate::broker::{ConsumeOptions, ConsumerHandle, Delivery, Queue, Verdict};
use crate::db::DbError;
use crate::db::group_commit::{GroupCommit, GroupCommitError};
use crate::domain::ids::WahaServerId;
use crate::sending::claim::{Claimed, Claims};
use crate::sending::outcome::{Doubt, Outcome, Outcomes, Report};
use crate::telemetry::trace;

/// Attempts at once per WAHA server and process.
const AT_ONCE: u16 = 256;

#[derive(Clone)]
struct Worker {
    app: App,
    claims: GroupCommit<Claims>,
    outcomes: GroupCommit<Outcomes>,
}

/// Consumes the queue of every WAHA server until `stop` turns true, then lets running attempts end.
pub async fn run(app: App, mut stop: watch::Receiver<bool>) {
    let worker = Worker {
        claims: GroupCommit::start("claim", Claims::new(&app), 10_000, 500),
        outcomes: GroupCommit::start("outcome", Outcomes::new(&app), 10_000, 500),
        app,
    };
    let mut consumers: HashMap<WahaServerId, ConsumerHandle> = HashMap::new();
    loop {
        match worker.app.directory.all_servers().await {
            Ok(servers) => {
                // One that has ended, whatever the cause, is replaced.
                consumers.retain(|_, consumer| !consumer.is_ended());
                for server in servers {
                    consumers.entry(server.id).or_insert_with(|| worker.consume(server.id));
                }
            }
            Err(fault) => tracing::warn!(%fault, "sending: the WAHA servers cannot be read"),
        }
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => break,
            () = tokio::time::sleep(worker.app.config.timings.poll) => {}
        }
    }
    let limit = worker.app.config.timings.drain;
    let stopping = consumers.values().map(|consumer| consumer.stop(limit));
    futures_util::future::join_all(stopping).await;
}

impl Worker {
    fn consume(&self, server: WahaServerId) -> ConsumerHandle {
        let worker = self.clone();
        let options = ConsumeOptions { prefetch: AT_ONCE, ..ConsumeOptions::default() };
        self.app.broker.consume(Queue::Outbound(server), options, move |delivery: Delivery| {
            let worker = worker.clone();
            async move { worker.handle(server, delivery).await }
        })
    }

    async fn handle(&self, server: WahaServerId, delivery: Delivery) -> Verdict {
        let turn = match OutboundRef::parse(&delivery.body) {
            Ok(turn) => turn,
            Err(fault) => {
                tracing::error!(%fault, "sending: not a turn");
                return Verdict::Dead;
            }
        };
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
        let outcome = match attempt::find_way(&self.app, &claimed, server).await {
            Ok(way) => attempt::make(&self.app, &claimed, way.as_ref()).await,
            Err(fault) => Outcome::Retry {
                at: self.app.clock.now() + TimeDelta::seconds(1),
                doubt: claimed.doubt(),
                error: ("not_sent", fault.to_string()),
            },
        };
        self.log(&claimed, &outcome, server, started.elapsed(), delivery.traceparent.as_deref());
        self.report(&claimed, outcome).await;
        Verdict::Done
    }

    /// Records the outcome; tries for as long as the claim holds. After that the next claim finds the attempt open.
    async fn report(&self, claimed: &Claimed, outcome: Outcome) {
        let jitter = self.app.chance.jitter(claimed.jitter.to_std().unwrap_or_default());
        let at = self.app.clock.now();
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
                report.outcome = Outcome::HandedOver { waha_message_id: None };
            }
            if self.app.clock.now() >= claimed.lease_until {
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
        let (result, code) = match outcome {
            Outcome::HandedOver { .. } => ("handed_over", None),
            Outcome::Retry { doubt: Doubt::None, error, .. } => ("retry", Some(error.0)),
            Outcome::Retry { doubt: Doubt::Earlier | Doubt::Fresh, error, .. } => ("doubt", Some(error.0)),
            Outcome::Failed { error } => ("failed", Some(error.0)),
        };
        metrics::counter!("switchboard_send_attempts_total", "result" => result).increment(1);
        metrics::histogram!("switchboard_send_attempt_seconds").record(took.as_secs_f64());
        let waited = (self.app.clock.now() - claimed.created_at).to_std().unwrap_or_default();
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
