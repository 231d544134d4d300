//! Metrics in Prometheus' form. Units stand in the names: `_seconds`, `_bytes`, `_total`.

use std::sync::OnceLock;

use metrics::{describe_counter, describe_gauge, describe_histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

/// Upper bounds for durations, in seconds: from half a millisecond to WAHA's two minutes.
const SECONDS: [f64; 16] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0];

static RECORDER: OnceLock<Option<PrometheusHandle>> = OnceLock::new();

/// Starts recording; a second call changes nothing. Metrics recorded before are lost.
pub fn install() {
    RECORDER.get_or_init(|| {
        let builder = PrometheusBuilder::new().set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS);
        let handle = match builder.map(PrometheusBuilder::install_recorder) {
            Ok(Ok(handle)) => handle,
            Ok(Err(fault)) => {
                tracing::warn!(%fault, "another recorder of metrics is in place");
                return None;
            }
            Err(fault) => {
                tracing::warn!(%fault, "metrics cannot be recorded");
                return None;
            }
        };
        describe();
        Some(handle)
    });
}

fn describe() {
    describe_counter!("http_requests_total", "Requests answered, by method, route pattern and status");
    describe_histogram!("http_request_duration_seconds", "From a request's head to its answer, in seconds");
    describe_counter!("http_panics_total", "Requests whose handler panicked");
    describe_counter!("switchboard_messages_accepted_total", "Messages accepted and kept");
    describe_histogram!("switchboard_group_commit_batch_items", "Items written in one transaction, by group");
    describe_histogram!("switchboard_group_commit_seconds", "Writing one batch, in seconds, by group");
    describe_counter!("switchboard_dispatch_turns_total", "Turns taken by lanes");
    describe_counter!("switchboard_send_turns_stale_total", "Turns that were not current any more when they arrived");
    describe_counter!("switchboard_send_attempts_total", "Attempts to hand a message to WAHA, by result");
    describe_histogram!("switchboard_send_attempt_seconds", "One attempt to hand a message to WAHA, in seconds");
    describe_histogram!("switchboard_send_wait_seconds", "From acceptance to the attempt, in seconds");
    describe_counter!("switchboard_ingest_events_total", "Events of WAHA's that were applied, by kind");
    describe_counter!("switchboard_ingest_spooled_total", "Events of WAHA's kept in the spool, for want of a broker");
    describe_counter!("switchboard_ingest_messages_stored_total", "Inbound messages that were new");
    describe_counter!("switchboard_ingest_acks_applied_total", "Acknowledgements that told something new");
    describe_counter!("switchboard_events_live_dropped_total", "Events that live streams have to find in the log");
    describe_gauge!(
        "switchboard_clock_offset_seconds",
        "How far the database's clock is ahead of ours, before correction"
    );
    crate::broker::describe_metrics();
    crate::delivery::describe_metrics();
    crate::retention::describe_metrics();
    crate::ingest::gap_fill::describe_metrics();
    crate::sessions::liveness::describe_metrics();
    crate::media::arrivals::describe_metrics();
}

/// Everything recorded so far, as Prometheus reads it.
#[must_use]
pub fn render() -> String {
    match RECORDER.get() {
        Some(Some(handle)) => {
            handle.run_upkeep();
            handle.render()
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_is_recorded_is_rendered_in_buckets() {
        super::install();
        super::install();
        metrics::histogram!("render_test_seconds").record(0.002);
        metrics::counter!("render_test_total").increment(1);
        let text = super::render();
        assert!(
            text.contains("render_test_total 1") && text.contains("render_test_seconds_bucket{le=\"0.0025\"} 1"),
            "{text}"
        );
    }
}
