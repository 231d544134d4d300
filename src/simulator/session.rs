//! One session: its state machine, and what its configuration asks for.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::watch;

use super::brakes::{self, Brakes};
use super::ids;
use super::ledger::Mailbox;
use super::numbers;
use super::webhooks::{self, Event, Hook};
use super::world::{World, lock};

/// The first QR code lives longer than those that follow; after the last the session has failed.
const QR_LIFETIMES: [Duration; 6] = [
    Duration::from_secs(60),
    Duration::from_secs(20),
    Duration::from_secs(20),
    Duration::from_secs(20),
    Duration::from_secs(20),
    Duration::from_secs(20),
];
/// From STARTING to the first QR code, or to WORKING.
const START_UP: Duration = Duration::from_millis(900);
/// From the scan to WORKING.
const LINKING: Duration = Duration::from_millis(1_200);
/// From the first QR code to the scan that `auto_pair` makes.
const AUTO_PAIR: Duration = Duration::from_secs(2);

/// WAHA's session status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(super) enum Status {
    Stopped,
    Starting,
    ScanQrCode,
    Working,
    Failed,
}

impl Status {
    pub fn name(self) -> &'static str {
        match self {
            Self::Stopped => "STOPPED",
            Self::Starting => "STARTING",
            Self::ScanQrCode => "SCAN_QR_CODE",
            Self::Working => "WORKING",
            Self::Failed => "FAILED",
        }
    }
}

/// The paired account.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Me {
    pub id: String,
    #[serde(rename = "pushName")]
    pub push_name: &'static str,
    pub lid: String,
    #[serde(rename = "reachoutTimelock", skip_serializing_if = "Option::is_none")]
    pub timelock: Option<Value>,
    #[serde(rename = "messageCapping", skip_serializing_if = "Option::is_none")]
    pub capping: Option<Value>,
}

impl Me {
    /// The account with this number.
    fn of(number: &str) -> Self {
        Self {
            id: format!("{number}@c.us"),
            push_name: "Simulated",
            lid: numbers::lid_of(number),
            timelock: None,
            capping: None,
        }
    }
}

pub(super) struct Session {
    pub name: Arc<str>,
    /// One lifecycle call at a time.
    pub lifecycle: tokio::sync::Mutex<()>,
    pub status: watch::Sender<Status>,
    pub mailbox: Arc<Mutex<Mailbox>>,
    deleted: AtomicBool,
    inner: Mutex<Inner>,
}

struct Inner {
    config: Option<Value>,
    hooks: Arc<[Arc<Hook>]>,
    metadata: Option<Arc<str>>,
    me: Option<Arc<Me>>,
    me_json: Option<Arc<str>>,
    history: VecDeque<StatusPoint>,
    /// Changes with every start, stop and scan; what an older one planned no longer happens.
    generation: u64,
    qr: Option<String>,
    activity: Option<i64>,
    store: bool,
    acks: bool,
    brakes: Brakes,
    /// Messages up to this sequence were lost with the data of a logout.
    forgotten: u64,
}

#[derive(Clone, Copy, Serialize)]
struct StatusPoint {
    status: Status,
    timestamp: i64,
}

/// The parts of an envelope that come from the session.
pub(super) struct Sender {
    pub hooks: Arc<[Arc<Hook>]>,
    pub metadata: Option<Arc<str>>,
    pub me_json: Option<Arc<str>>,
}

#[derive(Serialize)]
struct StatusPayload<'a> {
    name: &'a str,
    status: Status,
    statuses: &'a VecDeque<StatusPoint>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Value>,
}

impl Session {
    pub fn new(world: &World, name: &str, config: Option<Value>) -> Arc<Self> {
        let name: Arc<str> = Arc::from(name);
        let session = Self {
            mailbox: world.mailbox(&name),
            lifecycle: tokio::sync::Mutex::new(()),
            status: watch::Sender::new(Status::Stopped),
            deleted: AtomicBool::new(false),
            inner: Mutex::new(Inner {
                config: None,
                hooks: Arc::from([]),
                metadata: None,
                me: None,
                me_json: None,
                history: VecDeque::new(),
                generation: 0,
                qr: None,
                activity: None,
                store: true,
                acks: true,
                brakes: Brakes::default(),
                forgotten: world.sequence(),
            }),
            name,
        };
        session.configure(world, config);
        Arc::new(session)
    }

    pub fn configure(&self, world: &World, config: Option<Value>) {
        let hooks = webhooks::compile(world, config.as_ref());
        let at = |pointer: &str| config.as_ref().and_then(|config| config.pointer(pointer));
        let flag = |pointer: &str| at(pointer).and_then(Value::as_bool).unwrap_or(false);
        let metadata = at("/metadata").map(|metadata| Arc::from(metadata.to_string()));
        let store = world.engine != super::Engine::Noweb || flag("/noweb/store/enabled");
        let acks = world.engine != super::Engine::Webjs || flag("/webjs/tagsEventsOn");
        let mut inner = lock(&self.inner);
        inner.hooks = hooks;
        inner.metadata = metadata;
        inner.store = store;
        inner.acks = acks;
        inner.config = config;
    }

    pub fn current(&self) -> Status {
        *self.status.borrow()
    }

    pub fn config(&self) -> Option<Value> {
        lock(&self.inner).config.clone()
    }

    pub fn me(&self) -> Option<Arc<Me>> {
        lock(&self.inner).me.clone()
    }

    pub fn qr(&self) -> Option<String> {
        lock(&self.inner).qr.clone()
    }

    pub fn activity(&self) -> Option<i64> {
        lock(&self.inner).activity
    }

    pub fn touch(&self, now_ms: i64) {
        lock(&self.inner).activity = Some(now_ms);
    }

    /// Whether the engine keeps messages that can be read back.
    pub fn has_store(&self) -> bool {
        lock(&self.inner).store
    }

    pub fn has_acks(&self) -> bool {
        lock(&self.inner).acks
    }

    pub fn forgotten(&self) -> u64 {
        lock(&self.inner).forgotten
    }

    pub fn is_deleted(&self) -> bool {
        self.deleted.load(Ordering::Relaxed)
    }

    pub fn delete(&self) {
        self.deleted.store(true, Ordering::Relaxed);
        // Wakes what waits for WORKING, so that it sees the end.
        self.status.send_replace(Status::Stopped);
    }

    pub fn sender(&self) -> Sender {
        let inner = lock(&self.inner);
        let working = *self.status.borrow() == Status::Working;
        Sender {
            hooks: Arc::clone(&inner.hooks),
            metadata: inner.metadata.clone(),
            me_json: inner.me_json.clone().filter(|_| working),
        }
    }

    /// Enters a status and tells the webhooks; false when `generation` is past.
    fn enter(&self, world: &Arc<World>, status: Status, generation: Option<u64>, qr: Option<String>) -> bool {
        let payload = {
            let mut inner = lock(&self.inner);
            if generation.is_some_and(|generation| generation != inner.generation) {
                return false;
            }
            inner.qr = qr;
            inner.history.push_back(StatusPoint { status, timestamp: world.now().timestamp_millis() });
            if inner.history.len() > 3 {
                inner.history.pop_front();
            }
            self.status.send_replace(status);
            let timelock = inner.brakes.timelock.filter(|_| status == Status::Working);
            let data = timelock.map(|lock| serde_json::json!({"reachoutTimelock": brakes::timelock_json(Some(lock))}));
            let payload = StatusPayload { name: &self.name, status, statuses: &inner.history, data };
            serde_json::to_string(&payload).unwrap_or_default()
        };
        world.changed.send_replace(());
        webhooks::emit(world, self, &[Event::SessionStatus], &payload);
        true
    }

    pub fn brakes(&self) -> Brakes {
        lock(&self.inner).brakes
    }

    /// Changes WhatsApp's brakes on this account; WORKING is told again when the timelock changed.
    pub fn brake(&self, world: &Arc<World>, change: impl FnOnce(&mut Brakes)) {
        let told_again = {
            let mut inner = lock(&self.inner);
            let before = inner.brakes.timelock;
            change(&mut inner.brakes);
            let Brakes { timelock, capping } = inner.brakes;
            if let Some(me) = &inner.me {
                let timelock = timelock.map(|lock| brakes::timelock_json(Some(lock)));
                let capping = capping.map(|capping| brakes::capping_json(Some(capping)));
                let me = Me { timelock, capping, ..Me::clone(me) };
                inner.me_json = serde_json::to_string(&me).ok().map(Arc::from);
                inner.me = Some(Arc::new(me));
            }
            before != timelock && *self.status.borrow() == Status::Working
        };
        if told_again {
            self.enter(world, Status::Working, None, None);
        }
    }

    /// Starts from nothing: STARTING now, then WORKING if paired, or QR codes.
    pub fn begin(self: &Arc<Self>, world: &Arc<World>) {
        world.faults.restarted(&self.name);
        self.connect(world);
    }

    fn connect(self: &Arc<Self>, world: &Arc<World>) {
        let generation = {
            let mut inner = lock(&self.inner);
            inner.generation += 1;
            inner.history.clear();
            inner.activity = None;
            inner.generation
        };
        self.enter(world, Status::Starting, Some(generation), None);
        let (session, world_of_task) = (Arc::clone(self), Arc::clone(world));
        world.runtime.spawn(async move { session.start_up(&world_of_task, generation).await });
    }

    async fn start_up(self: Arc<Self>, world: &Arc<World>, generation: u64) {
        world.pause(START_UP).await;
        if self.me().is_some() {
            self.enter(world, Status::Working, Some(generation), None);
            return;
        }
        for (turn, lifetime) in QR_LIFETIMES.into_iter().enumerate() {
            if !self.enter(world, Status::ScanQrCode, Some(generation), Some(ids::qr_value(&world.chance))) {
                return;
            }
            if turn == 0 && world.auto_pair {
                let (session, world_of_task) = (Arc::clone(&self), Arc::clone(world));
                world.runtime.spawn(async move {
                    world_of_task.pause(AUTO_PAIR).await;
                    session.scan(&world_of_task, Some(generation));
                });
            }
            world.pause(lifetime).await;
        }
        self.enter(world, Status::Failed, Some(generation), None);
    }

    /// The phone scans the code on show; false when there is none.
    pub fn scan(self: &Arc<Self>, world: &Arc<World>, generation: Option<u64>) -> bool {
        let generation = {
            let mut inner = lock(&self.inner);
            let past = generation.is_some_and(|generation| generation != inner.generation);
            if past || *self.status.borrow() != Status::ScanQrCode {
                return false;
            }
            inner.generation += 1;
            let number = world.next_number();
            let me = Me::of(&number);
            inner.me_json = serde_json::to_string(&me).ok().map(Arc::from);
            inner.me = Some(Arc::new(me));
            inner.generation
        };
        let (session, world_of_task) = (Arc::clone(self), Arc::clone(world));
        world.runtime.spawn(async move {
            world_of_task.pause(LINKING).await;
            session.enter(&world_of_task, Status::Working, Some(generation), None);
        });
        true
    }

    /// Paired with `number` and WORKING at once; nobody is told.
    pub fn work_as(&self, number: &str) {
        let me = Me::of(number);
        let mut inner = lock(&self.inner);
        inner.me_json = serde_json::to_string(&me).ok().map(Arc::from);
        inner.me = Some(Arc::new(me));
        self.status.send_replace(Status::Working);
    }

    /// STOPPED at once; the pairing stays.
    pub fn end(&self, world: &Arc<World>) {
        lock(&self.inner).generation += 1;
        self.enter(world, Status::Stopped, None, None);
        lock(&self.inner).activity = None;
    }

    /// The process is gone: no event, and nothing it planned happens.
    pub fn vanish(&self) {
        let mut inner = lock(&self.inner);
        inner.generation += 1;
        inner.qr = None;
        self.status.send_replace(Status::Starting);
    }

    /// The connection drops and comes back by itself.
    pub fn reconnect(self: &Arc<Self>, world: &Arc<World>) {
        let activity = self.activity();
        self.connect(world);
        lock(&self.inner).activity = activity;
    }

    /// The pairing and the engine's data are gone.
    pub fn forget(&self, world: &World) {
        let mut inner = lock(&self.inner);
        inner.me = None;
        inner.me_json = None;
        inner.brakes = Brakes::default();
        inner.forgotten = world.sequence();
    }

    /// The phone removed the linked device, or WhatsApp did.
    pub fn fail(&self, world: &Arc<World>) {
        self.forget(world);
        lock(&self.inner).generation += 1;
        self.enter(world, Status::Failed, None, None);
    }

    /// Returns once the session is WORKING; false when it was deleted.
    pub async fn working(&self) -> bool {
        if self.current() == Status::Working {
            return true;
        }
        let mut status = self.status.subscribe();
        let wanted = |status: &Status| *status == Status::Working || self.is_deleted();
        status.wait_for(wanted).await.is_ok_and(|status| *status == Status::Working)
    }

    /// As WAHA waits for a status: 5 s for the session to run, then 10 s for the status. `Err` has the status it ended with.
    pub async fn expect(&self, world: &World, expected: Status) -> Result<(), Status> {
        let wait_for = async |wanted: &(dyn Fn(Status) -> bool + Sync), patience: Duration| {
            let mut status = self.status.subscribe();
            tokio::select! {
                reached = status.wait_for(|status| wanted(*status)) => reached.is_ok(),
                () = world.pause(patience) => false,
            }
        };
        if self.current() == expected {
            return Ok(());
        }
        if !wait_for(&|status| status != Status::Stopped, Duration::from_secs(5)).await {
            return Err(self.current());
        }
        if wait_for(&|status| status == expected, Duration::from_secs(10)).await { Ok(()) } else { Err(self.current()) }
    }
}
