//! Webhooks to tenants, after Standard Webhooks.
//!
//! **Guarantee:** a delivery is attempted at least once, with the same `webhook-id` each time, until the endpoint has
//! answered 2xx, the schedule is used up, or the endpoint is disabled or deleted; what makes a repeat harmless is that id.
//! A request is signed with every secret valid at that moment, and never reaches an address that is not public: the address
//! is checked as it stands in the URL and again, on every answer of the DNS, where the connection is made. An endpoint that
//! hangs or fails uses up its own slots and nobody else's.
//!
//! ```text
//! events::fan_out ─> webhook_deliveries ─> claim ─> attempt ─> outcome ─> webhook_attempts, next try, health of the endpoint
//! ```

mod attempt;
mod claim;
pub mod endpoints;
mod keyring;
mod outcome;
pub mod replay;
pub mod schedule;
pub mod sign;
pub mod worker;

use crate::identity::rotate::SealedColumn;
use metrics::{describe_counter, describe_gauge, describe_histogram};

/// The secrets that sign webhooks, sealed.
pub const SEALED_SECRETS: SealedColumn = keyring::SECRETS;

/// Tells the metrics' recorder what the metrics of events and webhooks mean.
pub fn describe_metrics() {
    describe_counter!("switchboard_events_fanned_out_total", "Events handed to endpoints and live streams");
    describe_gauge!(
        "switchboard_fan_out_lag_seconds",
        "Age of the oldest event of the latest batch that was fanned out"
    );
    describe_histogram!("switchboard_fan_out_seconds", "Handing on a batch of events, in seconds");
    describe_counter!("switchboard_webhook_deliveries_total", "Deliveries made by the fan-out");
    describe_counter!("switchboard_webhook_attempts_total", "Webhook attempts, by outcome");
    describe_histogram!("switchboard_webhook_attempt_seconds", "A webhook attempt from request to answer, in seconds");
    describe_gauge!("switchboard_webhook_backlog_deliveries", "Webhook deliveries that are due and not in flight");
}
