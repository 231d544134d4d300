//! Metrics in Prometheus' form. Units stand in the names: `_seconds`, `_bytes`, `_total`.

use std::sync::OnceLock;

use metrics::{describe_counter, describe_histogram};
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
