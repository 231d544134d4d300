//! Webhooks as WAHA posts them: signed, retried in memory, neither ordered nor waited for.
//!
//! Guarantees nothing that WAHA does not: a delivery whose attempts run out, or whose process ends, is gone.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use reqwest::Url;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use serde_json::Value;
use sha2::Sha512;
use tokio::sync::Semaphore;

pub(super) use super::events::{EVENT_NAMES, Event};
use super::faults::WebhookFate;
use super::ids;
use super::session::Session;
use super::world::World;

/// One webhook of one session's configuration.
pub(super) struct Hook {
    url: Url,
    wanted: u32,
    key: Option<Hmac<Sha512>>,
    headers: HeaderMap,
    retries: Retries,
    gate: Arc<Semaphore>,
}

#[derive(Clone, Copy, Debug)]
struct Retries {
    policy: Policy,
    delay: Duration,
    attempts: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Policy {
    Constant,
    Linear,
    Exponential,
}

impl Retries {
    /// The wait before retry `n`, counted from 1; `luck` from 0.0 to 1.0.
    fn wait(self, n: u32, luck: f64) -> Duration {
        match self.policy {
            Policy::Constant => self.delay,
            Policy::Linear => self.delay.saturating_mul(n),
            Policy::Exponential => self
                .delay
                .saturating_mul(2u32.saturating_pow(n))
                .min(Duration::from_secs(30 * 86_400))
                .mul_f64(1.0 + 0.2 * luck),
        }
    }
}

/// The webhooks of a configuration that was checked already; what cannot be used is left out.
pub(super) fn compile(world: &World, config: Option<&Value>) -> Arc<[Arc<Hook>]> {
    let hooks = config.and_then(|config| config.get("webhooks")).and_then(Value::as_array);
    hooks.into_iter().flatten().filter_map(|hook| compile_one(world, hook)).map(Arc::new).collect()
}

fn compile_one(world: &World, hook: &Value) -> Option<Hook> {
    let url = hook.get("url")?.as_str()?;
    let names: Vec<&str> = hook.get("events").and_then(Value::as_array)?.iter().filter_map(Value::as_str).collect();
    let wants = |event: &Event| {
        names.iter().any(|name| {
            *name == "*"
                || *name == event.name()
                || name.strip_suffix('*').is_some_and(|start| event.name().starts_with(start))
        })
    };
    let text = |pointer: &str| hook.pointer(pointer).and_then(Value::as_str);
    let number = |pointer: &str| hook.pointer(pointer).and_then(Value::as_f64);
    let mut headers = HeaderMap::new();
    for header in hook.get("customHeaders").and_then(Value::as_array).into_iter().flatten() {
        let name = header.get("name").and_then(Value::as_str).and_then(|name| HeaderName::try_from(name).ok());
        let value = header.get("value").and_then(Value::as_str).and_then(|value| HeaderValue::try_from(value).ok());
        if let (Some(name), Some(value)) = (name, value) {
            headers.insert(name, value);
        }
    }
    headers.insert(ACCEPT, HeaderValue::from_static("application/json, text/plain, */*"));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let attempts = number("/retries/attempts").unwrap_or(15.0).clamp(0.0, 1_000.0);
    Some(Hook {
        url: Url::parse(url).ok()?,
        wanted: Event::ALL.iter().filter(|event| wants(event)).fold(0, |mask, event| mask | event.bit()),
        key: text("/hmac/key").and_then(|key| Hmac::new_from_slice(key.as_bytes()).ok()),
        headers,
        retries: Retries {
            policy: match text("/retries/policy") {
                Some("linear") => Policy::Linear,
                Some("exponential") => Policy::Exponential,
                _ => Policy::Constant,
            },
            delay: Duration::from_secs_f64(number("/retries/delaySeconds").unwrap_or(2.0).clamp(0.0, 86_400.0)),
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped above")]
            attempts: attempts as u32,
        },
        gate: world.gate(url),
    })
}

/// The lower-case hexadecimal HMAC-SHA512 of `body`.
pub(super) fn sign(key: &Hmac<Sha512>, body: &[u8]) -> String {
    let mut mac = key.clone();
    mac.update(body);
    hex::encode(mac.finalize().into_bytes())
}

/// Posts one happening under each of `events`; one happening has one event id, whatever its names.
pub(super) fn emit(world: &Arc<World>, session: &Session, events: &[Event], payload: &str) {
    for delivery in deliveries(world, session, events, payload) {
        drop(world.runtime.spawn(delivery.run(Arc::clone(world))));
    }
}

/// What [`emit`] posts, for whoever posts it himself.
pub(super) fn deliveries(world: &World, session: &Session, events: &[Event], payload: &str) -> Vec<Arc<Delivery>> {
    let sender = session.sender();
    if sender.hooks.is_empty() || world.is_stopped() {
        return Vec::new();
    }
    // What WAHA itself tells goes out all the same.
    if session.is_undead() && events != [Event::SessionStatus] {
        return Vec::new();
    }
    let now = world.now();
    let timestamp = now.timestamp_millis();
    let id = ids::ulid(now, &world.chance);
    let mut all = Vec::new();
    for event in events.iter().filter(|event| event.is_told_by(world.engine)) {
        if !sender.hooks.iter().any(|hook| hook.wanted & event.bit() != 0) {
            continue;
        }
        let name = event.name();
        let metadata =
            sender.metadata.as_deref().map(|metadata| format!(r#""metadata":{metadata},"#)).unwrap_or_default();
        // Written by hand, since the order of members is part of what was captured.
        let body = format!(
            r#"{{"id":"evt_{id}","timestamp":{timestamp},"event":"{name}","session":"{}",{metadata}"me":{},"payload":{payload},"engine":"{}","environment":{}}}"#,
            session.name,
            sender.me_json.as_deref().unwrap_or("null"),
            world.engine,
            world.environment,
        );
        let body = Bytes::from(body);
        for hook in sender.hooks.iter().filter(|hook| hook.wanted & event.bit() != 0) {
            let fate = world.faults.webhook(name, &world.chance);
            let delivery = Arc::new(Delivery::new(world, Arc::clone(hook), body.clone(), timestamp, fate));
            all.extend(std::iter::repeat_n(delivery, usize::from(fate.copies)));
        }
    }
    all
}

/// One event on its way to one URL: the same bytes and ids in every attempt. Small, since thousands may wait.
pub(super) struct Delivery {
    hook: Arc<Hook>,
    body: Bytes,
    request_id: String,
    timestamp: i64,
    fate: WebhookFate,
    epoch: u64,
}

impl Delivery {
    fn new(world: &World, hook: Arc<Hook>, body: Bytes, timestamp: i64, fate: WebhookFate) -> Self {
        Self { hook, body, request_id: world.next_request_id(), timestamp, fate, epoch: world.epoch() }
    }

    fn headers(&self) -> HeaderMap {
        let mut headers = self.hook.headers.clone();
        let mut put = |name: &'static str, value: &str| {
            if let Ok(value) = HeaderValue::try_from(value) {
                headers.insert(HeaderName::from_static(name), value);
            }
        };
        put("x-webhook-request-id", &self.request_id);
        put("x-webhook-timestamp", &self.timestamp.to_string());
        if let Some(key) = &self.hook.key {
            let signature = sign(key, &self.body);
            let forged = self.fate.bad_hmac.then(|| signature.chars().rev().collect::<String>());
            put("x-webhook-hmac", &forged.unwrap_or(signature));
            put("x-webhook-hmac-algorithm", "sha512");
        }
        headers
    }

    pub async fn run(self: Arc<Self>, world: Arc<World>) {
        if !self.fate.delay.is_zero() {
            world.clock.sleep(self.fate.delay).await;
        }
        if !self.fate.late.is_zero() {
            world.pause(self.fate.late).await;
        }
        for attempt in 1..=self.hook.retries.attempts.saturating_add(1) {
            if world.epoch() != self.epoch {
                return;
            }
            let Err(asked) = self.post(&world).await else { return };
            if attempt > self.hook.retries.attempts {
                break;
            }
            let luck = f64::from(u32::try_from(world.chance.up_to(1_000)).unwrap_or(0)) / 1_000.0;
            let wait = self.hook.retries.wait(attempt, luck);
            let wait = match (self.hook.retries.policy, asked) {
                (Policy::Constant | Policy::Exponential, Some(asked)) => wait.max(asked),
                _ => wait,
            };
            world.pause(wait).await;
        }
        tracing::debug!("a simulated webhook ran out of attempts");
    }

    /// One attempt; an error has the wait that the receiver asked for.
    async fn post(&self, world: &World) -> Result<(), Option<Duration>> {
        let Ok(_place) = self.hook.gate.acquire().await else { return Ok(()) };
        // The request is far larger than what waits for its turn.
        Box::pin(self.exchange(world)).await
    }

    async fn exchange(&self, world: &World) -> Result<(), Option<Duration>> {
        let length = if self.fate.truncated { self.body.len() / 2 } else { self.body.len() };
        let body = self.body.slice(..length);
        let request = world.poster.post(self.hook.url.clone()).headers(self.headers()).body(body);
        let response = request.send().await.map_err(|_| None)?;
        let status = response.status();
        let asked = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
        // Read to the end, or the connection cannot be used again.
        drop(response.bytes().await);
        if status.is_success() { Ok(()) } else { Err(asked.map(Duration::from_secs)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_vector_is_reproduced() {
        let key = Hmac::<Sha512>::new_from_slice(b"my-secret-key").unwrap();
        assert_eq!(
            sign(&key, br#"{"event":"message","session":"default","engine":"WEBJS"}"#),
            "208f8a55dde9e05519e898b10b89bf0d0b3b0fdf11fdbf09b6b90476301b98d8097c462b2b17a6ce93b6b47a136cf2e78a33a63f6752c2c1631777076153fa89"
        );
    }

    #[test]
    fn the_three_policies_wait_as_waha_does() {
        let wait = |policy, n| Retries { policy, delay: Duration::from_secs(2), attempts: 15 }.wait(n, 0.0).as_secs();
        assert_eq!([1, 2, 3].map(|n| wait(Policy::Constant, n)), [2, 2, 2]);
        assert_eq!([1, 2, 3].map(|n| wait(Policy::Linear, n)), [2, 4, 6]);
        assert_eq!([1, 2, 3].map(|n| wait(Policy::Exponential, n)), [4, 8, 16]);
    }
}
