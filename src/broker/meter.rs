//! What the broker room counts. Labels are kinds, never ids.

use std::time::Duration;

use metrics::{counter, gauge, histogram};

use super::link::LinkState;

/// Publishes of one kind of queue that ended the same way.
pub(crate) fn published(queue: &'static str, outcome: &'static str, count: u64) {
    counter!("broker_publishes_total", "queue" => queue, "outcome" => outcome).increment(count);
}

/// From handing messages to the connection until all of them were confirmed.
pub(crate) fn confirmed(took: Duration, messages: usize) {
    histogram!("broker_publish_confirm_seconds").record_many(took.as_secs_f64(), messages);
}

/// Deliveries of one kind of queue that were answered the same way.
pub(crate) fn delivered(queue: &'static str, verdict: &'static str, count: u64) {
    counter!("broker_deliveries_total", "queue" => queue, "verdict" => verdict).increment(count);
}

/// Panics of handlers.
pub(crate) fn panicked(queue: &'static str) {
    counter!("broker_handler_panics_total", "queue" => queue).increment(1);
}

/// Connections made after one was lost.
pub(crate) fn reconnect(role: &'static str) {
    counter!("broker_reconnects_total", "link" => role).increment(1);
}

/// Subscriptions made after one was lost.
pub(crate) fn resubscribe(queue: &'static str) {
    counter!("broker_resubscriptions_total", "queue" => queue).increment(1);
}

/// The state of a connection: up, and whether the broker takes messages on it.
pub(crate) fn link(role: &'static str, state: LinkState) {
    gauge!("broker_link_up", "link" => role).set(if state == LinkState::Disconnected { 0.0 } else { 1.0 });
    gauge!("broker_link_blocked", "link" => role).set(if state == LinkState::Blocked { 1.0 } else { 0.0 });
}

/// Says what the figures mean, for the exporter.
pub fn describe_metrics() {
    use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
    describe_counter!("broker_publishes_total", Unit::Count, "Messages published, by queue kind and outcome");
    describe_histogram!("broker_publish_confirm_seconds", Unit::Seconds, "Time from sending a message to its confirm");
    describe_counter!("broker_deliveries_total", Unit::Count, "Deliveries answered, by queue kind and verdict");
    describe_counter!("broker_handler_panics_total", Unit::Count, "Panics in handlers of deliveries, by queue kind");
    describe_counter!("broker_reconnects_total", Unit::Count, "Connections lost and made again");
    describe_counter!("broker_resubscriptions_total", Unit::Count, "Subscriptions lost and made again");
    describe_gauge!("broker_link_up", "1 while connected to the broker");
    describe_gauge!("broker_link_blocked", "1 while the broker accepts no messages");
}
