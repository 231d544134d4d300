//! What one simulator holds.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use chrono::{DateTime, Utc};
use secrecy::SecretString;
use serde::Serialize;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};

use super::faults::Faults;
use super::files::Files;
use super::ids;
use super::mailbox::Mailbox;
use super::numbers::{self, Fate};
use super::session::{Session, Status};
use super::storage::{Runs, Storage};
use super::troubles::Troubles;
use super::{Engine, SimulatorConfig};
use crate::domain::chance::Chance;
use crate::domain::clock::Clock;

/// Posts under way at once to one URL; WAHA has no limit, this machine has.
const POSTS_PER_URL: usize = 128;

pub(super) struct World {
    pub api_key: SecretString,
    pub engine: Engine,
    /// The `environment` of webhooks and the answer of the version calls, as JSON.
    pub environment: String,
    pub auto_pair: bool,
    pub clock: Clock,
    pub chance: Chance,
    /// Carries everything that outlives a request.
    pub runtime: Handle,
    pub poster: reqwest::Client,
    pub faults: Faults,
    /// Files that came with messages, and where this server is to be asked for them.
    pub files: Files,
    pub base_url: String,
    pub troubles: Troubles,
    /// Where pairings are kept, and our number there.
    pub storage: Storage,
    pub server: u64,
    pub runs: Mutex<Runs>,
    /// Whether a repeated id shows another bubble.
    pub repeats_show: AtomicBool,
    /// Wakes whoever waits for something to happen here.
    pub changed: watch::Sender<()>,
    stopped: AtomicBool,
    time_scale: f64,
    sessions: RwLock<HashMap<Arc<str>, Arc<Session>>>,
    /// Numbers (digits) and what WhatsApp knows them as; these come before the numbers with a fate.
    book: RwLock<HashMap<String, Option<String>>>,
    mailboxes: RwLock<HashMap<Arc<str>, Arc<Mutex<Mailbox>>>>,
    gates: Mutex<HashMap<String, Arc<Semaphore>>>,
    /// Numbers whose hidden id WAHA has not learnt.
    unlearnt: RwLock<HashSet<String>>,
    started_at: AtomicI64,
    down_until: AtomicI64,
    epoch: AtomicU64,
    sequence: AtomicU64,
    ticks: AtomicU64,
    last_request_id: AtomicU64,
    last_moment: AtomicI64,
}

#[derive(Serialize)]
struct Environment<'a> {
    version: &'a str,
    engine: Engine,
    tier: &'a str,
    browser: Option<&'a str>,
    platform: &'a str,
    worker: Worker,
}

#[derive(Serialize)]
struct Worker {
    id: Option<&'static str>,
}

impl World {
    pub fn new(config: SimulatorConfig, base_url: String) -> io::Result<Self> {
        let environment = Environment {
            version: &config.version,
            engine: config.engine,
            tier: "CORE",
            browser: None,
            platform: "linux/x64",
            worker: Worker { id: None },
        };
        // As WAHA: no proxy, no timeout, and certificates are not verified.
        let poster = reqwest::Client::builder()
            .no_proxy()
            .tls_danger_accept_invalid_certs(true)
            .pool_max_idle_per_host(POSTS_PER_URL)
            .tcp_nodelay(true)
            .user_agent(format!("WAHA/{}", config.version))
            .build()
            .map_err(io::Error::other)?;
        Ok(Self {
            environment: serde_json::to_string(&environment)?,
            api_key: config.api_key,
            engine: config.engine,
            auto_pair: config.auto_pair,
            started_at: AtomicI64::new(config.clock.now().timestamp_millis()),
            clock: config.clock,
            chance: config.chance,
            runtime: Handle::current(),
            poster,
            faults: Faults::default(),
            files: Files::default(),
            base_url,
            troubles: Troubles::default(),
            server: config.storage.admit(),
            storage: config.storage,
            runs: Mutex::default(),
            repeats_show: AtomicBool::new(false),
            changed: watch::Sender::new(()),
            stopped: AtomicBool::new(false),
            time_scale: if config.time_scale > 0.0 { config.time_scale } else { 1.0 },
            sessions: RwLock::default(),
            book: RwLock::default(),
            mailboxes: RwLock::default(),
            gates: Mutex::default(),
            unlearnt: RwLock::default(),
            down_until: AtomicI64::new(0),
            epoch: AtomicU64::new(0),
            sequence: AtomicU64::new(0),
            ticks: AtomicU64::new(0),
            last_request_id: AtomicU64::new(0),
            last_moment: AtomicI64::new(0),
        })
    }

    pub fn now(&self) -> DateTime<Utc> {
        self.clock.now()
    }

    /// How long here is what is `real` for WAHA.
    pub fn scaled(&self, real: Duration) -> Duration {
        real.div_f64(self.time_scale)
    }

    /// Waits what takes WAHA `real`.
    pub async fn pause(&self, real: Duration) {
        let scaled = self.scaled(real);
        // The timer counts milliseconds; less than one is no wait.
        if scaled >= Duration::from_micros(500) {
            self.clock.sleep(scaled).await;
        }
    }

    /// A random duration between two, in WAHA's milliseconds.
    pub fn between(&self, least: u64, most: u64) -> Duration {
        Duration::from_millis(least) + self.chance.jitter(Duration::from_millis(most.saturating_sub(least)))
    }

    pub fn next_sequence(&self) -> u64 {
        self.sequence.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub fn sequence(&self) -> u64 {
        self.sequence.load(Ordering::Relaxed)
    }

    /// Orders starts and ends of POSTs.
    pub fn next_tick(&self) -> u64 {
        self.ticks.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Like the real ones: from the time, and never twice.
    pub fn next_request_id(&self) -> String {
        let now = u64::try_from(self.now().timestamp_millis()).unwrap_or(0);
        let next = |last: u64| Some(last.saturating_add(1).max(now));
        let last = self.last_request_id.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).unwrap_or(0);
        ids::request_id(last.saturating_add(1).max(now))
    }

    /// Milliseconds since 1970, never the same twice: what people do one after the other has its order in them.
    pub fn next_moment(&self) -> i64 {
        let now = self.now().timestamp_millis();
        let next = |last: i64| Some(last.saturating_add(1).max(now));
        let last = self.last_moment.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).unwrap_or(0);
        last.saturating_add(1).max(now)
    }

    pub fn sessions(&self) -> RwLockReadGuard<'_, HashMap<Arc<str>, Arc<Session>>> {
        self.sessions.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn sessions_mut(&self) -> RwLockWriteGuard<'_, HashMap<Arc<str>, Arc<Session>>> {
        self.sessions.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn session(&self, name: &str) -> Option<Arc<Session>> {
        self.sessions().get(name).cloned()
    }

    /// The sessions that are not STOPPED.
    pub fn running(&self) -> Vec<Arc<Session>> {
        self.sessions().values().filter(|session| session.current() != Status::Stopped).cloned().collect()
    }

    /// From now on WhatsApp knows the number as `known`, or not at all.
    pub fn write_number(&self, digits: String, known: Option<String>) {
        self.book.write().unwrap_or_else(PoisonError::into_inner).insert(digits, known);
    }

    /// The number under which WhatsApp knows `digits`; none when it does not.
    pub fn registered(&self, digits: &str) -> Option<String> {
        let book = self.book.read().unwrap_or_else(PoisonError::into_inner);
        book.get(digits).map_or_else(|| numbers::registered(digits), Clone::clone)
    }

    /// Whether WAHA has learnt the hidden id of this number.
    pub fn learn_lid(&self, digits: &str, learnt: bool) {
        let mut unlearnt = self.unlearnt.write().unwrap_or_else(PoisonError::into_inner);
        if learnt {
            unlearnt.remove(digits);
        } else {
            unlearnt.insert(digits.to_owned());
        }
    }

    /// Whether WAHA can tell the one id of this number's owner from the other.
    pub fn knows_lid(&self, digits: &str) -> bool {
        let unlearnt = self.unlearnt.read().unwrap_or_else(PoisonError::into_inner);
        !unlearnt.contains(digits) && self.registered(digits).is_some_and(|known| known == digits)
    }

    /// The fate of messages to `chat`.
    pub fn fate_of(&self, chat: &str) -> Fate {
        let book = self.book.read().unwrap_or_else(PoisonError::into_inner);
        if book.is_empty() {
            return numbers::fate_of(chat);
        }
        let digits = numbers::number_of(chat).unwrap_or_default();
        match book.get(&digits) {
            None => numbers::fate_of(chat),
            Some(Some(known)) if *known == digits => numbers::READ,
            Some(_) => numbers::VANISHES,
        }
    }

    /// The messages of the session of this name; they outlive it.
    pub fn mailbox(&self, name: &Arc<str>) -> Arc<Mutex<Mailbox>> {
        let mut mailboxes = self.mailboxes.write().unwrap_or_else(PoisonError::into_inner);
        let fresh = || Arc::new(Mutex::new(Mailbox::new(Arc::clone(name))));
        Arc::clone(mailboxes.entry(Arc::clone(name)).or_insert_with(fresh))
    }

    pub fn mailboxes(&self) -> Vec<Arc<Mutex<Mailbox>>> {
        self.mailboxes.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    pub fn gate(&self, url: &str) -> Arc<Semaphore> {
        let mut gates = lock(&self.gates);
        Arc::clone(gates.entry(url.to_owned()).or_insert_with(|| Arc::new(Semaphore::new(POSTS_PER_URL))))
    }

    /// Milliseconds since 1970 of this process's start, as WAHA reports it.
    pub fn started_at(&self) -> i64 {
        self.started_at.load(Ordering::Relaxed)
    }

    /// What belongs to another epoch belongs to a process that is gone.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Relaxed)
    }

    /// A new process: another start time, and nothing of the old one's retries. Connections are refused for `down`.
    pub fn new_epoch(&self, down: Duration) {
        self.epoch.fetch_add(1, Ordering::Relaxed);
        let down = i64::try_from(down.as_millis()).unwrap_or(i64::MAX);
        let now = self.now().timestamp_millis();
        self.down_until.store(now.saturating_add(down), Ordering::Relaxed);
        let started = self.started_at().saturating_add(1).max(now.saturating_add(down));
        self.started_at.store(started, Ordering::Relaxed);
    }

    /// Nothing is posted any more.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
        lock(&self.runs).all_end(self.now());
        self.storage.all_end(self.server);
        self.new_epoch(Duration::ZERO);
    }

    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    pub fn is_down(&self) -> bool {
        let until = self.down_until.load(Ordering::Relaxed);
        until > 0 && self.now().timestamp_millis() < until
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
