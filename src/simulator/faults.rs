//! Faults on demand: which call goes wrong, and how.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::domain::chance::Chance;

/// Rules for calls and for webhooks; what `POST /_simulator/faults` takes.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FaultPlan {
    /// Rules for calls, added to those that are set; the first that matches decides.
    pub rules: Vec<FaultRule>,
    /// Faults of webhooks; replaces what is set, when given.
    pub webhooks: Option<WebhookFaults>,
}

/// When a call goes wrong.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaultRule {
    /// WAHA's path as its OpenAPI writes it, the same without `/api/` and without placeholders (`sendText`, `sessions/start`,
    /// `chats/messages`), or `*` for every call. With a method before it (`PUT chats/messages`) calls of that method only.
    #[serde(default = "any")]
    pub endpoint: String,
    /// The session's name, or `*`.
    #[serde(default = "any")]
    pub session: String,
    /// Only the nth matching call, counted from 1.
    #[serde(default)]
    pub nth: Option<u64>,
    /// How often it happens at most.
    #[serde(default)]
    pub times: Option<u64>,
    /// From 0.0 to 1.0.
    #[serde(default = "certain")]
    pub probability: f64,
    /// A session that was started anew since the rule was set is spared.
    #[serde(default)]
    pub until_restart: bool,
    /// What happens.
    pub fault: Fault,
}

impl FaultRule {
    /// A rule that always strikes, for one endpoint and every session.
    #[must_use]
    pub fn always(endpoint: &str, fault: Fault) -> Self {
        Self {
            endpoint: endpoint.to_owned(),
            session: any(),
            nth: None,
            times: None,
            probability: 1.0,
            until_restart: false,
            fault,
        }
    }

    /// The same, at most `times` times.
    #[must_use]
    pub fn times(self, times: u64) -> Self {
        Self { times: Some(times), ..self }
    }

    /// The same, for one session.
    #[must_use]
    pub fn for_session(self, session: &str) -> Self {
        Self { session: session.to_owned(), ..self }
    }

    /// The same, with a probability from 0.0 to 1.0.
    #[must_use]
    pub fn sometimes(self, probability: f64) -> Self {
        Self { probability, ..self }
    }

    /// The same, until the session that it strikes is started anew.
    #[must_use]
    pub fn until_restart(self) -> Self {
        Self { until_restart: true, ..self }
    }

    /// The same, for the nth matching call only, counted from 1.
    #[must_use]
    pub fn on_call(self, nth: u64) -> Self {
        Self { nth: Some(nth), ..self }
    }
}

/// What goes wrong. "Sent" means that the call had its effect: the recipient has the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// 422: the session is not in the expected status. Not sent.
    #[serde(rename = "state_422")]
    State422,
    /// 422: the session does not exist. Not sent.
    #[serde(rename = "missing_422")]
    Missing422,
    /// 401. Not sent.
    #[serde(rename = "unauthorized_401")]
    Unauthorized401,
    /// 404. Not sent.
    #[serde(rename = "not_found_404")]
    NotFound404,
    /// 400 of the validation. Not sent.
    #[serde(rename = "bad_request_400")]
    BadRequest400,
    /// 429 without a body that says more. Not sent.
    #[serde(rename = "too_many_429")]
    TooMany429,
    /// 500 of the engine. Not sent.
    #[serde(rename = "error_500_before")]
    Error500Before,
    /// 500 of the engine. Sent.
    #[serde(rename = "error_500_after")]
    Error500After,
    /// 500 "server returned error 463". Not sent.
    #[serde(rename = "refused_463")]
    Refused463,
    /// 500 "server returned error 400", as GOWS answers every send of a session that has to be restarted. Not sent.
    #[serde(rename = "refused_400")]
    Refused400,
    /// 500, as of a session whose lifecycle lock is taken. Nothing happens.
    #[serde(rename = "locked_500")]
    Locked500,
    /// 422 of a session that is busy with another lifecycle call. Nothing happens.
    #[serde(rename = "locked_422")]
    Locked422,
    /// A proxy's page. Not sent.
    #[serde(rename = "bad_gateway_502")]
    BadGateway502,
    /// A proxy's page. Sent.
    #[serde(rename = "bad_gateway_502_after")]
    BadGateway502After,
    /// 503, a proxy's page. Not sent.
    #[serde(rename = "unavailable_503")]
    Unavailable503,
    /// A proxy's page. Sent.
    #[serde(rename = "gateway_timeout_504")]
    GatewayTimeout504,
    /// Sent, and never answered.
    HangAfterSend,
    /// Not sent, and never answered.
    HangWithoutSend,
    /// The connection ends without an answer. Not sent.
    ResetBefore,
    /// The connection ends without an answer. Sent.
    ResetAfterSend,
    /// The connection ends in the middle of the answer. Sent.
    HalfResponse,
    /// Sent at once, answered so many milliseconds (not scaled) later.
    DelayMs(u64),
    /// Sent under an id of the engine's own choice.
    ForeignId,
    /// Sent, and the answer names no id.
    NoId,
    /// 201 like any other, but nothing is sent and nothing is told: a session that is WORKING in name only.
    Swallowed,
    /// 201 and `message.any`, but the message stays PENDING for ever. Sent.
    StuckAfterSend,
    /// 201 and `message.any`, but the message stays PENDING for ever. Not sent.
    StuckWithoutSend,
    /// 201, then ack -1. Not sent.
    AckError,
    /// Acks 1, then -1 although it arrived. Sent.
    AckErrorLate,
    /// Acknowledged as read, and by no other ack. Sent.
    AckReadOnly,
}

/// What goes wrong with webhooks; probabilities from 0.0 to 1.0.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WebhookFaults {
    /// Only events of this name; all when none.
    pub event: Option<String>,
    /// Only events of these names; all when there are none.
    pub events: Vec<String>,
    /// Never posted.
    pub drop: f64,
    /// Posted twice, with the same ids.
    pub duplicate: f64,
    /// Posted late by at least this many milliseconds (not scaled).
    pub delay_min_ms: u64,
    /// Posted late by at most this many milliseconds (not scaled).
    pub delay_max_ms: u64,
    /// Shuffled: each is posted late by a part of so many milliseconds (not scaled) of its own.
    pub reorder_ms: u64,
    /// Late by at least `late_min_s` and at most `late_max_s`.
    pub late: f64,
    /// Seconds of WAHA's time.
    pub late_min_s: u64,
    /// Seconds of WAHA's time.
    pub late_max_s: u64,
    /// Signed with another key.
    pub bad_hmac: f64,
    /// The body is cut after it was signed.
    pub truncated: f64,
}

/// What the faults make of one webhook.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct WebhookFate {
    pub copies: u8,
    pub delay: Duration,
    /// In WAHA's time.
    pub late: Duration,
    pub bad_hmac: bool,
    pub truncated: bool,
}

#[derive(Default)]
pub(super) struct Faults {
    any: AtomicBool,
    plan: Mutex<Plan>,
}

#[derive(Default)]
struct Plan {
    rules: Vec<Counted>,
    webhooks: Option<WebhookFaults>,
}

struct Counted {
    rule: FaultRule,
    matched: u64,
    struck: u64,
    /// Sessions that were started anew.
    spared: HashSet<String>,
}

impl Faults {
    pub fn add(&self, plan: FaultPlan) {
        let mut current = self.plan.lock().unwrap_or_else(PoisonError::into_inner);
        current.rules.extend(plan.rules.into_iter().map(|rule| Counted {
            rule,
            matched: 0,
            struck: 0,
            spared: HashSet::new(),
        }));
        if plan.webhooks.is_some() {
            current.webhooks = plan.webhooks;
        }
        self.any.store(true, Ordering::Release);
    }

    pub fn clear(&self) {
        let mut current = self.plan.lock().unwrap_or_else(PoisonError::into_inner);
        *current = Plan::default();
        self.any.store(false, Ordering::Release);
    }

    /// The fault of this call, if any strikes.
    pub fn strike(&self, method: &str, template: &str, session: Option<&str>, chance: &Chance) -> Option<Fault> {
        if !self.any.load(Ordering::Acquire) {
            return None;
        }
        let mut plan = self.plan.lock().unwrap_or_else(PoisonError::into_inner);
        for counted in &mut plan.rules {
            let rule = &counted.rule;
            let (of_method, endpoint) = rule.endpoint.split_once(' ').unwrap_or((method, &rule.endpoint));
            let fits = of_method == method && (endpoint == "*" || endpoint == template || endpoint == short(template));
            let spared = session.is_some_and(|session| counted.spared.contains(session));
            if !fits || spared || (rule.session != "*" && Some(rule.session.as_str()) != session) {
                continue;
            }
            counted.matched += 1;
            let due = rule.nth.is_none_or(|nth| nth == counted.matched)
                && rule.times.is_none_or(|times| counted.struck < times)
                && happens(rule.probability, chance);
            if due {
                counted.struck += 1;
                return Some(rule.fault);
            }
        }
        None
    }

    /// The session was started anew.
    pub fn restarted(&self, session: &str) {
        if self.any.load(Ordering::Acquire) {
            let mut plan = self.plan.lock().unwrap_or_else(PoisonError::into_inner);
            for counted in plan.rules.iter_mut().filter(|counted| counted.rule.until_restart) {
                counted.spared.insert(session.to_owned());
            }
        }
    }

    pub fn webhook(&self, event: &str, chance: &Chance) -> WebhookFate {
        let fine = WebhookFate { copies: 1, ..WebhookFate::default() };
        if !self.any.load(Ordering::Acquire) {
            return fine;
        }
        let plan = self.plan.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(faults) = &plan.webhooks else { return fine };
        if faults.event.as_deref().is_some_and(|only| only != event) {
            return fine;
        }
        if !faults.events.is_empty() && !faults.events.iter().any(|only| only == event) {
            return fine;
        }
        let between = |least: u64, most: u64| match most.saturating_sub(least) {
            0 => least,
            span => least + chance.up_to(span),
        };
        let late = happens(faults.late, chance);
        let delay = between(faults.delay_min_ms, faults.delay_max_ms) + between(0, faults.reorder_ms);
        WebhookFate {
            copies: match (happens(faults.drop, chance), happens(faults.duplicate, chance)) {
                (true, _) => 0,
                (false, true) => 2,
                (false, false) => 1,
            },
            delay: Duration::from_millis(delay),
            late: Duration::from_secs(if late { between(faults.late_min_s, faults.late_max_s) } else { 0 }),
            bad_hmac: happens(faults.bad_hmac, chance),
            truncated: happens(faults.truncated, chance),
        }
    }
}

/// `/api/sessions/{session}/start` as `sessions/start`.
fn short(template: &str) -> String {
    let parts = template.split('/').filter(|part| !part.is_empty() && *part != "api" && !part.starts_with('{'));
    parts.collect::<Vec<_>>().join("/")
}

fn happens(probability: f64, chance: &Chance) -> bool {
    const PARTS: u32 = 1_000_000;
    if probability >= 1.0 {
        return true;
    }
    let drawn = u32::try_from(chance.up_to(u64::from(PARTS - 1))).unwrap_or(0);
    probability > 0.0 && f64::from(drawn) < probability * f64::from(PARTS)
}

fn any() -> String {
    "*".to_owned()
}

fn certain() -> f64 {
    1.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(rules: &str) -> Faults {
        let faults = Faults::default();
        faults.add(serde_json::from_str(rules).unwrap());
        faults
    }

    #[test]
    fn rules_match_by_path_session_count_and_number() {
        let chance = Chance::seeded(1);
        let faults = faults(
            r#"{"rules":[{"endpoint":"sendText","session":"a","nth":2,"fault":"hang_after_send"},
                         {"endpoint":"sessions/start","times":1,"fault":{"delay_ms":5}}]}"#,
        );
        assert_eq!(faults.strike("POST", "/api/sendText", Some("b"), &chance), None);
        assert_eq!(faults.strike("POST", "/api/sendText", Some("a"), &chance), None);
        assert_eq!(faults.strike("POST", "/api/sendText", Some("a"), &chance), Some(Fault::HangAfterSend));
        assert_eq!(faults.strike("POST", "/api/sendText", Some("a"), &chance), None);
        let start = "/api/sessions/{session}/start";
        assert_eq!(faults.strike("POST", start, Some("a"), &chance), Some(Fault::DelayMs(5)));
        assert_eq!(faults.strike("POST", start, Some("a"), &chance), None);
        faults.clear();
        assert_eq!(faults.strike("POST", "/api/sendText", Some("a"), &chance), None);
    }

    #[test]
    fn a_method_and_a_restart_are_minded() {
        let chance = Chance::seeded(1);
        let faults = faults(
            r#"{"rules":[{"endpoint":"PUT chats/messages","fault":"not_found_404"},
                         {"endpoint":"sendText","until_restart":true,"fault":"refused_400"}]}"#,
        );
        let message = "/api/{session}/chats/{chatId}/messages/{messageId}";
        assert_eq!(faults.strike("GET", message, Some("a"), &chance), None);
        assert_eq!(faults.strike("PUT", message, Some("a"), &chance), Some(Fault::NotFound404));
        faults.restarted("a");
        assert_eq!(faults.strike("POST", "/api/sendText", Some("a"), &chance), None);
        assert_eq!(faults.strike("POST", "/api/sendText", Some("b"), &chance), Some(Fault::Refused400));
    }

    #[test]
    fn names_on_the_wire_are_as_documented() {
        for (fault, name) in [(Fault::State422, "state_422"), (Fault::Error500After, "error_500_after")] {
            assert_eq!(serde_json::to_value(fault).unwrap(), name);
        }
    }
}
