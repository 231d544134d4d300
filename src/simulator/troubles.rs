//! Sessions and servers in trouble, on demand: in name only, stuck, thrown out, half restored.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::answers::Answer;
use super::control::{Control, ControlError};
use super::ledger::PostRecord;
use super::routes::Call;
use super::session::{Session, Status};
use super::storage::Run;
use super::world::{World, lock};

/// The calls that steer a session.
const LIFECYCLE: [&str; 7] = ["create", "update", "start", "stop", "restart", "logout", "delete"];

/// How a session fares that is WORKING in name only: nothing comes in, sends are taken and swallowed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Zombie {
    /// Starts that do not cure it.
    pub survives: u32,
    /// What becomes of calls that ask WhatsApp, such as `check-exists`.
    pub queries: ZombieQueries,
}

/// What becomes of calls that ask WhatsApp while the session is WORKING in name only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ZombieQueries {
    /// 500 at once.
    #[default]
    Fail,
    /// 500 after the engine's 120 s (scaled).
    Hang,
}

/// How a WAHA server comes back from a restart.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RestartPlan {
    /// Milliseconds (not scaled) during which no request is answered.
    pub down_ms: u64,
    /// Sessions that it does not know any more; their pairing is on the disk, and is found again by whoever creates them anew.
    pub missing: Vec<String>,
    /// Sessions that it does not know any more, pairing and all.
    pub wiped: Vec<String>,
    /// Sessions that are STOPPED afterwards, although they ran.
    pub stopped: Vec<String>,
    /// Milliseconds (not scaled) after it is up before the first of the others is restored; STOPPED until then.
    pub delay_ms: u64,
    /// Milliseconds (not scaled) between two that are restored.
    pub gap_ms: u64,
}

/// What is wrong with a whole server.
#[derive(Default)]
pub(super) struct Troubles {
    /// WhatsApp refuses every session of the server.
    refused: AtomicBool,
    /// Starts that will stay STARTING, by session.
    stuck: Mutex<HashMap<String, u32>>,
}

impl Troubles {
    pub fn refused(&self) -> bool {
        self.refused.load(Ordering::Relaxed)
    }

    /// Whether this start of the session stays STARTING.
    pub fn sticks(&self, session: &str) -> bool {
        let mut stuck = lock(&self.stuck);
        let Some(left) = stuck.get_mut(session).filter(|left| **left > 0) else { return false };
        *left -= 1;
        true
    }
}

impl Control {
    /// From now on the session is WORKING in name only, until it is started anew: no events, sends are taken and swallowed, what
    /// asks WhatsApp fails. What is known without WhatsApp (`me`, the session's own information, stored messages) is
    /// answered. Who writes to the session meanwhile is heard once it lives again.
    ///
    /// # Errors
    /// The session does not exist.
    pub fn zombie(&self, session: &str, zombie: Zombie) -> Result<(), ControlError> {
        self.session(session)?.doom(Some(zombie));
        Ok(())
    }

    /// The session that was WORKING in name only lives again by itself.
    ///
    /// # Errors
    /// The session does not exist.
    pub fn revive(&self, session: &str) -> Result<(), ControlError> {
        self.session(session)?.doom(None);
        Ok(())
    }

    /// WhatsApp refuses every session of this server: those that are paired and run become FAILED and stay paired. Until
    /// [`Control::let_in`] each start ends FAILED, too.
    pub fn throw_out(&self) {
        self.world.troubles.refused.store(true, Ordering::Relaxed);
        for session in self.world.running() {
            if session.me().is_some() {
                session.refuse(&self.world);
            }
        }
    }

    /// WhatsApp takes sessions again. Those that are FAILED stay so until they are started anew.
    pub fn let_in(&self) {
        self.world.troubles.refused.store(false, Ordering::Relaxed);
    }

    /// The next `starts` starts of the session of this name, which need not exist yet, stay STARTING for ever; 0: none any more.
    pub fn stick_starting(&self, session: &str, starts: u32) {
        lock(&self.world.troubles.stuck).insert(session.to_owned(), starts);
    }

    /// The connection drops and comes back after `down` (not scaled): STARTING, then WORKING.
    ///
    /// # Errors
    /// The session does not exist or is not paired.
    pub fn flap_for(&self, session: &str, down: Duration) -> Result<(), ControlError> {
        let session = self.session(session)?;
        if session.me().is_none() {
            return Err(ControlError::NotPaired);
        }
        session.reconnect(&self.world, Some(down));
        Ok(())
    }

    /// Another lifecycle call holds the session's lock for `by` (not scaled). Those that come meanwhile wait 5 s (scaled), then get
    /// a 500. For single calls see [`super::Fault::Locked500`] and [`super::Fault::Locked422`].
    ///
    /// # Errors
    /// The session does not exist.
    pub fn hold_lock(&self, session: &str, by: Duration) -> Result<(), ControlError> {
        let session = self.session(session)?;
        let world = Arc::clone(&self.world);
        // Taken here if it is free, so that whoever calls next finds it taken.
        let held = Arc::clone(&session.lifecycle).try_lock_owned().ok();
        drop(self.world.runtime.spawn(async move {
            let _held = match held {
                Some(held) => held,
                None => Arc::clone(&session.lifecycle).lock_owned().await,
            };
            world.clock.sleep(by).await;
        }));
        Ok(())
    }

    /// WAHA restarts as `plan` says.
    pub fn restart_with(&self, plan: &RestartPlan) {
        restart(&self.world, plan);
    }

    /// The calls that steered sessions, in the order they began: create, update (PUT), start, stop, restart, logout and delete;
    /// of `session` only, if given.
    #[must_use]
    pub fn lifecycle_calls(&self, session: Option<&str>) -> Vec<PostRecord> {
        let mut calls = self.ledger_of(session).calls;
        calls.retain(|call| LIFECYCLE.contains(&call.endpoint));
        calls
    }

    /// When this server ran which session, in the order in which that began.
    #[must_use]
    pub fn runs(&self) -> Vec<Run> {
        lock(&self.world.runs).all()
    }
}

/// The process ends without a word and another one begins.
pub(super) fn restart(world: &Arc<World>, plan: &RestartPlan) {
    let down = Duration::from_millis(plan.down_ms);
    world.new_epoch(down);
    let lost = |session: &Session| {
        let named = |names: &[String]| names.iter().any(|name| *name == *session.name);
        (named(&plan.missing) || named(&plan.wiped), named(&plan.wiped))
    };
    let mut running = world.running();
    running.sort_by(|one, other| one.name.cmp(&other.name));
    for session in world.sessions_mut().extract_if(|_, session| lost(session).0).map(|(_, session)| session) {
        session.lose(world);
        if lost(&session).1 {
            world.storage.unpair(&session.name);
        }
    }
    let delay = Duration::from_millis(plan.delay_ms);
    let mut wait = down + delay;
    for session in running.into_iter().filter(|session| !session.is_deleted()) {
        if plan.stopped.iter().any(|name| *name == *session.name) {
            session.vanish(world, Status::Stopped);
            continue;
        }
        if wait.is_zero() {
            session.vanish(world, Status::Starting);
            session.begin(world);
            continue;
        }
        // Nothing happens in a process that is gone; the next one announces STARTING when it comes to this session.
        let status = if delay.is_zero() { Status::Starting } else { Status::Stopped };
        let planned = session.vanish(world, status);
        let world_of_task = Arc::clone(world);
        let this_one = wait;
        drop(world.runtime.spawn(async move {
            world_of_task.clock.sleep(this_one).await;
            if session.is_still(planned) {
                session.begin(&world_of_task);
            }
        }));
        wait += Duration::from_millis(plan.gap_ms);
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Doomed {
    session: String,
    #[serde(default)]
    survives: u32,
    #[serde(default)]
    queries: ZombieQueries,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Named {
    session: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Timed {
    session: String,
    for_ms: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Stuck {
    session: String,
    starts: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Outage {
    on: bool,
}

/// One call under `/_simulator/` that makes or mends trouble; none when it is another one.
pub(super) fn answer(control: &Control, name: &str, call: &Call) -> Option<Answer> {
    fn done(result: Result<(), ControlError>) -> Answer {
        match result {
            Ok(()) => Answer::empty(204),
            Err(error @ ControlError::NoSuchSession) => Answer::nest(404, &error.to_string()),
            Err(error) => Answer::nest(422, &error.to_string()),
        }
    }
    fn with<T: serde::de::DeserializeOwned>(call: &Call, act: impl FnOnce(T) -> Answer) -> Answer {
        serde_json::from_slice(&call.raw).map_or_else(|error| Answer::nest(400, &error.to_string()), act)
    }
    Some(match name {
        "POST zombie" => with(call, |Doomed { session, survives, queries }| {
            done(control.zombie(&session, Zombie { survives, queries }))
        }),
        "POST revive" => with(call, |Named { session }| done(control.revive(&session))),
        "POST outage" => with(call, |Outage { on }| {
            if on {
                control.throw_out();
            } else {
                control.let_in();
            }
            Answer::empty(204)
        }),
        "POST stuck" => with(call, |Stuck { session, starts }| {
            control.stick_starting(&session, starts);
            Answer::empty(204)
        }),
        "POST down" => {
            with(call, |Timed { session, for_ms }| done(control.flap_for(&session, Duration::from_millis(for_ms))))
        }
        "POST lock" => {
            with(call, |Timed { session, for_ms }| done(control.hold_lock(&session, Duration::from_millis(for_ms))))
        }
        "POST restart" if call.body.is_null() => {
            control.restart();
            Answer::empty(204)
        }
        "POST restart" => with(call, |plan: RestartPlan| {
            control.restart_with(&plan);
            Answer::empty(204)
        }),
        "GET lifecycle" => Answer::of(200, &control.lifecycle_calls(call.parameter("session"))),
        "GET runs" => Answer::of(200, &control.runs()),
        _ => return None,
    })
}
