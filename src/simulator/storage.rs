//! What outlives a WAHA process: which session is paired with which account, and who runs it.
//!
//! Each simulator has one of its own, or several share one, as WAHA servers share a Postgres for their sessions. One account may
//! be connected once: where two servers run the same paired session at the same time, WhatsApp throws both out, and the pairing
//! is gone.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, Weak};

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::world::{World, lock};

/// The storage of sessions; clones are the same storage. Give one to several simulators, and a session that is stopped on one
/// starts on another without a scan.
#[derive(Clone, Default)]
pub struct Storage(Arc<Mutex<Shared>>);

#[derive(Default)]
struct Shared {
    servers: u64,
    numbers: u64,
    paired: HashMap<String, String>,
    running: HashMap<String, Vec<Place>>,
    conflicts: Vec<Conflict>,
}

struct Place {
    server: u64,
    world: Weak<World>,
}

/// Two servers ran one paired session at the same time; both were logged out.
#[derive(Clone, Debug, Serialize)]
pub struct Conflict {
    /// WAHA's session name.
    pub session: String,
    /// When.
    pub at: DateTime<Utc>,
}

/// A stretch of time in which a server ran a session: from its start to its stop, its failure or the end of the process.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    /// WAHA's session name.
    pub session: String,
    /// When it began.
    pub from: DateTime<Utc>,
    /// When it ended; none while it lasts.
    pub to: Option<DateTime<Utc>>,
}

impl fmt::Debug for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Storage").field("paired", &lock(&self.0).paired.len()).finish_non_exhaustive()
    }
}

impl Storage {
    /// Every time that two servers ran one paired session.
    #[must_use]
    pub fn conflicts(&self) -> Vec<Conflict> {
        lock(&self.0).conflicts.clone()
    }

    /// A number for another server.
    pub(super) fn admit(&self) -> u64 {
        let mut shared = lock(&self.0);
        shared.servers += 1;
        shared.servers
    }

    /// A phone number that no other session has: `+1 555 02x xxxx`.
    pub(super) fn next_number(&self) -> String {
        let mut shared = lock(&self.0);
        shared.numbers += 1;
        format!("155502{:05}", (shared.numbers - 1) % 100_000)
    }

    /// The digits of the account that the session is paired with.
    pub(super) fn number(&self, session: &str) -> Option<String> {
        lock(&self.0).paired.get(session).cloned()
    }

    pub(super) fn pair(&self, session: &str, number: &str) {
        lock(&self.0).paired.insert(session.to_owned(), number.to_owned());
    }

    pub(super) fn unpair(&self, session: &str) {
        lock(&self.0).paired.remove(session);
    }

    /// The session runs at `world` now. Answers the servers that ran it already, if its account is in conflict by that.
    pub(super) fn begins(&self, session: &str, world: &Arc<World>, now: DateTime<Utc>) -> Vec<Arc<World>> {
        let mut shared = lock(&self.0);
        let places = shared.running.entry(session.to_owned()).or_default();
        if !places.iter().any(|place| place.server == world.server) {
            places.push(Place { server: world.server, world: Arc::downgrade(world) });
        }
        places.retain(|place| place.world.strong_count() > 0);
        let others = places.iter().filter(|place| place.server != world.server);
        let others: Vec<Arc<World>> = others.filter_map(|place| place.world.upgrade()).collect();
        if others.is_empty() || !shared.paired.contains_key(session) {
            return Vec::new();
        }
        shared.conflicts.push(Conflict { session: session.to_owned(), at: now });
        others
    }

    /// The session runs at `server` no more.
    pub(super) fn ends(&self, session: &str, server: u64) {
        if let Some(places) = lock(&self.0).running.get_mut(session) {
            places.retain(|place| place.server != server);
        }
    }

    /// Nothing runs at `server` any more.
    pub(super) fn all_end(&self, server: u64) {
        for places in lock(&self.0).running.values_mut() {
            places.retain(|place| place.server != server);
        }
    }
}

/// What ran at one server, in the order in which it began.
#[derive(Default)]
pub(super) struct Runs {
    all: Vec<Run>,
    open: HashMap<Arc<str>, usize>,
}

impl Runs {
    pub fn all(&self) -> Vec<Run> {
        self.all.clone()
    }

    pub fn begins(&mut self, session: &Arc<str>, now: DateTime<Utc>) {
        if !self.open.contains_key(session) {
            self.open.insert(Arc::clone(session), self.all.len());
            self.all.push(Run { session: session.as_ref().to_owned(), from: now, to: None });
        }
    }

    pub fn ends(&mut self, session: &str, now: DateTime<Utc>) {
        if let Some(run) = self.open.remove(session).and_then(|index| self.all.get_mut(index)) {
            run.to = Some(now);
        }
    }

    pub fn all_end(&mut self, now: DateTime<Utc>) {
        for (_, index) in self.open.drain() {
            if let Some(run) = self.all.get_mut(index) {
                run.to = Some(now);
            }
        }
    }
}
