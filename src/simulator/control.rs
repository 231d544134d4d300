//! What a test or an operator does to the simulator, in process or under `/_simulator/`.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use chrono::{DateTime, Utc};
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::answers::Answer;
use super::brakes::{Capping, Timelock};
use super::faults::{Fault, FaultPlan, FaultRule, WebhookFaults};
use super::ledger::Ledger;
use super::pairing::Passkey;
use super::remote;
use super::routes::Call;
use super::saying::Writing;
use super::session::Session;
use super::troubles::{self, RestartPlan};
use super::world::{World, lock};

/// Why a control call could not be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// There is no session of this name.
    #[error("there is no such session")]
    NoSuchSession,
    /// There is no QR code to scan: the session is not in `SCAN_QR_CODE`.
    #[error("the session shows no QR code")]
    NoQrCode,
    /// The session is not paired.
    #[error("the session is not paired")]
    NotPaired,
}

/// One session as the control endpoints show it.
#[derive(Clone, Debug, Serialize)]
pub struct SessionView {
    /// WAHA's session name.
    pub name: String,
    /// WAHA's status, such as `WORKING`.
    pub status: &'static str,
    /// The paired account's chat id, if any.
    pub me: Option<String>,
    /// URLs that its webhooks go to are not shown; this is how many there are.
    pub webhooks: usize,
}

/// A handle on a running simulator; clones share it.
#[derive(Clone)]
pub struct Control {
    pub(super) world: Arc<World>,
}

impl Control {
    pub(super) fn new(world: Arc<World>) -> Self {
        Self { world }
    }

    pub(super) fn shut_down(&self) {
        self.world.stop();
    }

    pub(super) fn session(&self, name: &str) -> Result<Arc<Session>, ControlError> {
        self.world.session(name).ok_or(ControlError::NoSuchSession)
    }

    /// The phone scans the QR code on show.
    ///
    /// # Errors
    /// The session does not exist or shows no code.
    pub fn scan(&self, session: &str) -> Result<(), ControlError> {
        if self.session(session)?.scan(&self.world, None) { Ok(()) } else { Err(ControlError::NoQrCode) }
    }

    /// From now on WhatsApp asks for the account's passkey after a scan (on GOWS), and with `confirm` for a confirmation after
    /// that.
    ///
    /// # Errors
    /// The session does not exist.
    pub fn require_passkey(&self, session: &str, confirm: bool) -> Result<(), ControlError> {
        self.session(session)?.want_passkey(Some(Passkey::new(&self.world, confirm)));
        Ok(())
    }

    /// The phone removes the linked device: the session becomes FAILED and has to be paired anew.
    ///
    /// # Errors
    /// The session does not exist or is not paired.
    pub fn phone_logout(&self, session: &str) -> Result<(), ControlError> {
        let session = self.session(session)?;
        if session.me().is_none() {
            return Err(ControlError::NotPaired);
        }
        session.fail(&self.world);
        Ok(())
    }

    /// The connection drops and comes back: STARTING, then WORKING.
    ///
    /// # Errors
    /// The session does not exist or is not paired.
    pub fn flap(&self, session: &str) -> Result<(), ControlError> {
        let session = self.session(session)?;
        if session.me().is_none() {
            return Err(ControlError::NotPaired);
        }
        session.reconnect(&self.world, None);
        Ok(())
    }

    /// Somebody writes to the session. It arrives once the session is WORKING. `from_chat` is a number or a chat id.
    ///
    /// # Errors
    /// The session does not exist or is not paired.
    pub fn inbound_text(&self, session: &str, from_chat: &str, text: &str) -> Result<String, ControlError> {
        let id = super::ids::message_id(&self.world.chance);
        self.inbound_text_as(session, from_chat, text, &id)?;
        Ok(id)
    }

    /// The same under a bare message id of the caller's choice, which may have been used before.
    ///
    /// # Errors
    /// The session does not exist or is not paired.
    pub fn inbound_text_as(&self, session: &str, from_chat: &str, text: &str, id: &str) -> Result<(), ControlError> {
        self.write(session, from_chat, Writing::text(text).id(id)).map(drop)
    }

    /// WhatsApp refuses (463) what the session writes to people it has no conversation with: as a 500 on GOWS, as ack -1
    /// elsewhere. `None` lifts it.
    ///
    /// # Errors
    /// The session does not exist.
    pub fn timelock(&self, session: &str, timelock: Option<Timelock>) -> Result<(), ControlError> {
        self.session(session)?.brake(&self.world, |brakes| brakes.timelock = timelock);
        Ok(())
    }

    /// WhatsApp lets the session write to so many new people only. `None` lifts it.
    ///
    /// # Errors
    /// The session does not exist.
    pub fn capping(&self, session: &str, capping: Option<Capping>) -> Result<(), ControlError> {
        self.session(session)?.brake(&self.world, |brakes| brakes.capping = capping);
        Ok(())
    }

    /// From now on WhatsApp knows the number `phone` (digits) as the number `known`, or not at all. What is sent to another
    /// variant than the known one gets 201 and vanishes.
    pub fn number(&self, phone: &str, known: Option<&str>) {
        self.world.write_number(phone.to_owned(), known.map(str::to_owned));
    }

    /// Whether a repeat of a message id shows another bubble, as a client that does not mind ids would.
    pub fn repeats_show(&self, on: bool) {
        self.world.repeats_show.store(on, Ordering::Relaxed);
    }

    /// What each recipient saw, and every call.
    #[must_use]
    pub fn ledger(&self) -> Ledger {
        self.ledger_of(None)
    }

    /// The same for one session.
    #[must_use]
    pub fn ledger_of(&self, session: Option<&str>) -> Ledger {
        let mut ledger = Ledger::default();
        for mailbox in self.world.mailboxes() {
            let mailbox = lock(&mailbox);
            if session.is_none_or(|session| *mailbox.session == *session) {
                mailbox.report(&mut ledger);
            }
        }
        ledger.entries.sort_by_key(|entry| entry.sequence);
        ledger.inbound.sort_by_key(|entry| entry.sequence);
        ledger.posts.sort_by_key(|post| post.started_tick);
        ledger.calls.sort_by_key(|call| call.started_tick);
        ledger
    }

    /// Returns the ledger as soon as it is as `enough` wants it, now or later. It copies the ledger whenever something
    /// happens: for tests, not for benchmarks.
    pub async fn ledger_when(&self, mut enough: impl FnMut(&Ledger) -> bool) -> Ledger {
        let mut changed = self.world.changed.subscribe();
        loop {
            changed.mark_unchanged();
            let ledger = self.ledger();
            if enough(&ledger) {
                return ledger;
            }
            // The sender lives as long as `self`, so waiting cannot fail.
            drop(changed.changed().await);
        }
    }

    /// How many bubbles there are, without copying the ledger.
    #[must_use]
    pub fn seen(&self) -> usize {
        self.world.mailboxes().iter().map(|mailbox| lock(mailbox).seen()).sum()
    }

    /// Forgets every message and POST so far.
    pub fn clear_ledger(&self) {
        for mailbox in self.world.mailboxes() {
            lock(&mailbox).clear();
        }
    }

    /// All sessions, by name.
    #[must_use]
    pub fn sessions(&self) -> Vec<SessionView> {
        let view = |session: &Arc<Session>| SessionView {
            name: session.name.as_ref().to_owned(),
            status: session.current().name(),
            me: session.me().map(|me| me.id.clone()),
            webhooks: session.sender().hooks.len(),
        };
        let mut sessions: Vec<SessionView> = self.world.sessions().values().map(view).collect();
        sessions.sort_by(|one, other| one.name.cmp(&other.name));
        sessions
    }

    /// The key that the session's first webhook is signed with, as its configuration holds it; for whoever wants to post as
    /// WAHA would.
    ///
    /// # Errors
    /// The session does not exist.
    pub fn webhook_key(&self, session: &str) -> Result<Option<SecretString>, ControlError> {
        let config = self.session(session)?.config();
        let key = config.as_ref().and_then(|config| config.pointer("/webhooks/0/hmac/key"));
        Ok(key.and_then(serde_json::Value::as_str).map(SecretString::from))
    }

    /// Returns once the session of this name is WORKING; waits for it to be created, too.
    pub async fn working(&self, session: &str) {
        let mut changed = self.world.changed.subscribe();
        loop {
            changed.mark_unchanged();
            match self.world.session(session) {
                Some(session) if session.working().await => return,
                Some(_) => {}
                // The sender lives as long as `self`, so waiting cannot fail.
                None => drop(changed.changed().await),
            }
        }
    }

    /// Adds fault rules, and replaces the webhook faults when the plan has some.
    pub fn add_faults(&self, plan: FaultPlan) {
        self.world.faults.add(plan);
    }

    /// Adds one rule.
    pub fn add_fault(&self, rule: FaultRule) {
        self.add_faults(FaultPlan { rules: vec![rule], webhooks: None });
    }

    /// Adds one fault that strikes the next call of `endpoint`, of any session.
    pub fn fault_once(&self, endpoint: &str, fault: Fault) {
        self.add_fault(FaultRule::always(endpoint, fault).times(1));
    }

    /// Sets what goes wrong with webhooks.
    pub fn webhook_faults(&self, faults: WebhookFaults) {
        self.add_faults(FaultPlan { rules: Vec::new(), webhooks: Some(faults) });
    }

    /// No faults any more.
    pub fn clear_faults(&self) {
        self.world.faults.clear();
    }

    /// WAHA restarts: another `startTimestamp`, waiting webhooks are lost, running sessions start again.
    pub fn restart(&self) {
        self.restart_after(Duration::ZERO);
    }

    /// The same with `down` (not scaled) during which no request is answered.
    pub fn restart_after(&self, down: Duration) {
        let down_ms = u64::try_from(down.as_millis()).unwrap_or(u64::MAX);
        self.restart_with(&RestartPlan { down_ms, ..RestartPlan::default() });
    }

    /// When this WAHA process started, as `startTimestamp` says it.
    #[must_use]
    pub fn started_at(&self) -> DateTime<Utc> {
        DateTime::from_timestamp_millis(self.world.started_at()).unwrap_or_default()
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Named {
    session: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Asking {
    session: String,
    #[serde(default)]
    confirm: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Inbound {
    session: String,
    from: String,
    text: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Braked {
    session: String,
    #[serde(default)]
    timelock: Option<Timelock>,
    #[serde(default)]
    capping: Option<Capping>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Number {
    phone: String,
    #[serde(default)]
    known: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Repeats {
    show: bool,
}

/// One call under `/_simulator/`, named by method and last segment.
pub(super) fn answer(world: &Arc<World>, name: &str, call: &Call) -> Answer {
    let control = Control::new(Arc::clone(world));
    let done = |result: Result<(), ControlError>| match result {
        Ok(()) => Answer::empty(204),
        Err(error @ ControlError::NoSuchSession) => Answer::nest(404, &error.to_string()),
        Err(error) => Answer::nest(422, &error.to_string()),
    };
    let invalid = |error: serde_json::Error| Answer::nest(400, &error.to_string());
    match name {
        "GET ledger" => Answer::of(200, &control.ledger_of(call.parameter("session"))),
        "DELETE ledger" => {
            control.clear_ledger();
            Answer::empty(204)
        }
        "GET sessions" => Answer::of(200, &control.sessions()),
        "POST scan" => body(call).map_or_else(invalid, |Named { session }| done(control.scan(&session))),
        "POST passkey" => body(call)
            .map_or_else(invalid, |Asking { session, confirm }| done(control.require_passkey(&session, confirm))),
        "POST phone-logout" => {
            body(call).map_or_else(invalid, |Named { session }| done(control.phone_logout(&session)))
        }
        "POST flap" => body(call).map_or_else(invalid, |Named { session }| done(control.flap(&session))),
        "POST inbound" => body(call).map_or_else(invalid, |Inbound { session, from, text }| {
            match control.inbound_text(&session, &from, &text) {
                Ok(id) => Answer::of(201, &json!({"id": id})),
                Err(error) => done(Err(error)),
            }
        }),
        "POST brakes" => body(call).map_or_else(invalid, |Braked { session, timelock, capping }| {
            done(control.timelock(&session, timelock).and_then(|()| control.capping(&session, capping)))
        }),
        "POST numbers" => body(call).map_or_else(invalid, |Number { phone, known }| {
            control.number(&phone, known.as_deref());
            Answer::empty(204)
        }),
        "POST repeats" => body(call).map_or_else(invalid, |Repeats { show }| {
            control.repeats_show(show);
            Answer::empty(204)
        }),
        "POST faults" => body(call).map_or_else(invalid, |plan: FaultPlan| {
            control.add_faults(plan);
            Answer::empty(204)
        }),
        "DELETE faults" => {
            control.clear_faults();
            Answer::empty(204)
        }
        "POST fleet" => super::fleet::answer(world, call),
        _ => troubles::answer(&control, name, call)
            .or_else(|| remote::answer(&control, name, call))
            .unwrap_or_else(|| Answer::unknown_route(&call.method, &call.path)),
    }
}

fn body<T: serde::de::DeserializeOwned>(call: &Call) -> Result<T, serde_json::Error> {
    serde_json::from_slice(&call.raw)
}
