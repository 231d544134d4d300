//! One attempt: the signed request, and what its answer means.

use std::time::Duration;

use chrono::{DateTime, Utc};
use reqwest::header::{CONTENT_TYPE, RETRY_AFTER};
use reqwest::{Method, Response, StatusCode};
use url::Url;

use super::claim::Claimed;
use super::keyring::Keyring;
use super::outcome::{Fate, Outcome};
use super::schedule;
use super::sign::{ID_HEADER, SIGNATURE_HEADER, TIMESTAMP_HEADER, sign};
use crate::app::App;
use crate::events::view;
use crate::guard::{GuardError, GuardedClient};

/// The longest an attempt may take, answer included.
pub(super) const TIMEOUT: Duration = Duration::from_secs(15);

/// Bytes read of an answer, so that a sound connection can be used again.
const READ: usize = 16 * 1024;
/// Bytes kept of an answer.
const KEPT: usize = 1024;

/// What came of the request.
struct Answer {
    status: Option<StatusCode>,
    error: Option<&'static str>,
    retry_after: Option<Duration>,
    body: Option<String>,
}

impl Answer {
    fn failed(error: &'static str) -> Self {
        Self { status: None, error: Some(error), retry_after: None, body: None }
    }
}

/// Makes the attempt that was claimed. Never fails: a failure is an outcome.
pub(super) async fn make(app: &App, client: &GuardedClient, claimed: &Claimed) -> Outcome {
    let at = app.clock.now();
    let started = tokio::time::Instant::now();
    let answer = match tokio::time::timeout(TIMEOUT, send(app, client, claimed, at)).await {
        Ok(answer) => answer,
        Err(_) => Answer::failed("timeout"),
    };
    let took = started.elapsed();
    let fate = fate(app, claimed, &answer);
    let class = class(&answer);
    metrics::counter!("switchboard_webhook_attempts_total", "outcome" => class).increment(1);
    metrics::histogram!("switchboard_webhook_attempt_seconds").record(took.as_secs_f64());
    let duration_ms = i32::try_from(took.as_millis()).unwrap_or(i32::MAX);
    tracing::info!(
        tenant.id = %claimed.tenant_id,
        endpoint.id = %claimed.endpoint_id,
        delivery.id = %claimed.id,
        event.id = %claimed.event_id,
        event.kind = claimed.kind,
        attempt = claimed.attempt,
        status = answer.status.map(|status| status.as_u16()),
        outcome = class,
        ms = duration_ms,
        "webhook attempted"
    );
    Outcome {
        tenant: claimed.tenant_id,
        delivery: claimed.id,
        endpoint: claimed.endpoint_id,
        event: claimed.event_id,
        attempt: claimed.attempt,
        attempt_id: app.chance.uuid(at),
        at,
        duration_ms,
        response_status: answer.status.and_then(|status| i16::try_from(status.as_u16()).ok()),
        error: answer.error,
        response_body: answer.body,
        was_failing: claimed.failing_since.is_some(),
        fate,
    }
}

async fn send(app: &App, client: &GuardedClient, claimed: &Claimed, at: DateTime<Utc>) -> Answer {
    let Ok(url) = Url::parse(&claimed.url) else { return Answer::failed("refused_address") };
    let Ok(keys) = Keyring::open(&app.sealer, claimed.endpoint_id, &claimed.secret_sealed) else {
        tracing::error!(endpoint.id = %claimed.endpoint_id, "the endpoint's secrets do not open under this master key");
        return Answer::failed("internal");
    };
    let id = claimed.event_id.to_string();
    let body = view::envelope(claimed.event_id, &claimed.kind, claimed.at, &claimed.data);
    let timestamp = at.timestamp();
    let signature = sign(&keys.valid(at), &id, timestamp, body.as_bytes());
    let request = match client.request(Method::POST, &url) {
        Ok(request) => request,
        Err(_) => return Answer::failed("refused_address"),
    };
    let sent = request
        .header(ID_HEADER, id)
        .header(TIMESTAMP_HEADER, timestamp)
        .header(SIGNATURE_HEADER, signature)
        .header(CONTENT_TYPE, "application/json")
        .body(body)
        .send()
        .await;
    match sent {
        Ok(response) => read(response, app.clock.now()).await,
        Err(fault) => Answer::failed(reason(&fault)),
    }
}

/// The status decides; a body that breaks off or drips changes nothing.
async fn read(mut response: Response, now: DateTime<Utc>) -> Answer {
    let status = response.status();
    let retry_after = response
        .headers()
        .get(RETRY_AFTER)
        .and_then(|header| header.to_str().ok())
        .and_then(|header| schedule::retry_after(header, now));
    let mut body = Vec::new();
    let mut read = 0;
    while read < READ {
        // The client's own limit ends this too.
        let Ok(Some(chunk)) = response.chunk().await else { break };
        read += chunk.len();
        body.extend(chunk.iter().take(KEPT.saturating_sub(body.len())));
    }
    // Postgres keeps no U+0000.
    let body = String::from_utf8_lossy(&body).replace('\0', "\u{fffd}");
    Answer { status: Some(status), error: None, retry_after, body: (!body.is_empty()).then_some(body) }
}

fn reason(fault: &reqwest::Error) -> &'static str {
    if GuardError::behind(fault).is_some() {
        "refused_address"
    } else if fault.is_timeout() {
        "timeout"
    } else if fault.is_connect() {
        "connect"
    } else {
        "broken"
    }
}

/// The label of the metric.
fn class(answer: &Answer) -> &'static str {
    match (answer.status.map(|status| status.as_u16()), answer.error) {
        (Some(200..=299), _) => "delivered",
        (Some(410), _) => "gone",
        (Some(300..=399), _) => "http_3xx",
        (Some(400..=499), _) => "http_4xx",
        (Some(500..=599), _) => "http_5xx",
        (Some(_), _) => "http_other",
        (None, error) => error.unwrap_or("broken"),
    }
}

fn fate(app: &App, claimed: &Claimed, answer: &Answer) -> Fate {
    match answer.status {
        Some(status) if status.is_success() => Fate::Delivered,
        Some(StatusCode::GONE) => Fate::Gone,
        _ => {
            let made = u32::try_from(claimed.attempt.saturating_sub(claimed.attempts_before)).unwrap_or_default();
            schedule::next_attempt(made, app.clock.now(), answer.retry_after, &app.chance)
                .map_or(Fate::Exhausted, Fate::Retry)
        }
    }
}
