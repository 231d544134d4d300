//! One session: its state machine, and what its configuration asks for.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use tokio::sync::watch;

use super::brakes::{self, Brakes};
use super::deeds::Deeds;
use super::ids;
use super::mailbox::Mailbox;
use super::pairing::Passkey;
pub(super) use super::status::{Me, Status};
use super::troubles::Zombie;
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

pub(super) struct Session {
    pub name: Arc<str>,
    /// One lifecycle call at a time.
    pub lifecycle: Arc<tokio::sync::Mutex<()>>,
    pub status: watch::Sender<Status>,
    pub mailbox: Arc<Mutex<Mailbox>>,
    pub deeds: Deeds,
    deleted: AtomicBool,
    /// Whether `inner.zombie` is there; asked for each event.
    undead: AtomicBool,
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
    /// What WhatsApp asks for after the scan.
    passkey: Option<Passkey>,
    activity: Option<i64>,
    store: bool,
    acks: bool,
    /// Kinds of chats that are dropped at the source.
    ignored: Arc<[&'static str]>,
    brakes: Brakes,
    /// WORKING in name only.
    zombie: Option<Zombie>,
    /// Messages up to this sequence were lost with the data of a logout.
    forgotten: u64,
}

impl Inner {
    /// Paired with the account of `number`, as WhatsApp restricts it, or with none.
    fn adopt(&mut self, number: Option<&str>) {
        let me = number.map(|number| {
            let timelock = self.brakes.timelock.map(|lock| brakes::timelock_json(Some(lock)));
            let capping = self.brakes.capping.map(|capping| brakes::capping_json(Some(capping)));
            Me { timelock, capping, ..Me::of(number) }
        });
        self.me_json = me.as_ref().and_then(|me| serde_json::to_string(me).ok()).map(Arc::from);
        self.me = me.map(Arc::new);
    }
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
            lifecycle: Arc::default(),
            deeds: Deeds::default(),
            status: watch::Sender::new(Status::Stopped),
            deleted: AtomicBool::new(false),
            undead: AtomicBool::new(false),
            inner: Mutex::new(Inner {
                config: None,
                hooks: Arc::from([]),
                metadata: None,
                me: None,
                me_json: None,
                history: VecDeque::new(),
                generation: 0,
                qr: None,
                passkey: None,
                activity: None,
                store: true,
                acks: true,
                ignored: Arc::from([]),
                brakes: Brakes::default(),
                zombie: None,
                forgotten: world.sequence(),
            }),
            name,
        };
        session.configure(world, config);
        lock(&session.inner).adopt(world.storage.number(&session.name).as_deref());
        Arc::new(session)
    }

    pub fn configure(&self, world: &World, config: Option<Value>) {
        let hooks = webhooks::compile(world, config.as_ref());
        let at = |pointer: &str| config.as_ref().and_then(|config| config.pointer(pointer));
        let flag = |pointer: &str| at(pointer).and_then(Value::as_bool).unwrap_or(false);
        let metadata = at("/metadata").map(|metadata| Arc::from(metadata.to_string()));
        let store = world.engine != super::Engine::Noweb || flag("/noweb/store/enabled");
        let acks = world.engine != super::Engine::Webjs || flag("/webjs/tagsEventsOn");
        let kinds = ["status", "groups", "channels", "broadcast"];
        let ignored = kinds.into_iter().filter(|kind| flag(&format!("/ignore/{kind}"))).collect();
        let mut inner = lock(&self.inner);
        inner.ignored = ignored;
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

    /// The kinds of chats that are dropped at the source: `status`, `groups`, `channels`, `broadcast`.
    pub fn ignored(&self) -> Arc<[&'static str]> {
        Arc::clone(&lock(&self.inner).ignored)
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
        let (payload, others) = {
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
            let runs = !matches!(status, Status::Stopped | Status::Failed);
            let others = self.put_down(world, runs);
            let timelock = inner.brakes.timelock.filter(|_| status == Status::Working);
            let timelock =
                timelock.map(|lock| serde_json::json!({"reachoutTimelock": brakes::timelock_json(Some(lock))}));
            let data = inner.passkey.as_ref().and_then(|passkey| passkey.data(status)).or(timelock);
            let payload = StatusPayload { name: &self.name, status, statuses: &inner.history, data };
            (serde_json::to_string(&payload).unwrap_or_default(), others)
        };
        world.changed.send_replace(());
        webhooks::emit(world, self, &[Event::SessionStatus], &payload);
        if !others.is_empty() {
            for other in others {
                if let Some(session) = other.session(&self.name) {
                    session.fail(&other);
                }
            }
            self.fail(world);
        }
        true
    }

    /// Puts down whether the session runs here; under its lock, in the order of its statuses. Answers the servers that run it as
    /// well: then WhatsApp throws all of them out.
    fn put_down(&self, world: &Arc<World>, runs: bool) -> Vec<Arc<World>> {
        let now = world.now();
        if runs {
            lock(&world.runs).begins(&self.name, now);
            return world.storage.begins(&self.name, world, now);
        }
        lock(&world.runs).ends(&self.name, now);
        world.storage.ends(&self.name, world.server);
        Vec::new()
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
            if let Some(number) = inner.me.as_ref().map(|me| me.number().to_owned()) {
                inner.adopt(Some(&number));
            }
            before != inner.brakes.timelock && *self.status.borrow() == Status::Working
        };
        if told_again {
            self.enter(world, Status::Working, None, None);
        }
    }

    /// Starts from nothing: STARTING now, then WORKING if paired, or QR codes.
    pub fn begin(self: &Arc<Self>, world: &Arc<World>) {
        world.faults.restarted(&self.name);
        {
            let mut inner = lock(&self.inner);
            inner.zombie =
                inner.zombie.and_then(|zombie| Some(Zombie { survives: zombie.survives.checked_sub(1)?, ..zombie }));
            self.undead.store(inner.zombie.is_some(), Ordering::Relaxed);
        }
        let sticks = world.troubles.sticks(&self.name);
        self.connect(world, None, sticks);
    }

    /// STARTING, for `down` if that is given, and for ever if it `sticks`.
    fn connect(self: &Arc<Self>, world: &Arc<World>, down: Option<Duration>, sticks: bool) {
        let generation = {
            let mut inner = lock(&self.inner);
            inner.generation += 1;
            inner.history.clear();
            inner.activity = None;
            // Another server may have paired it, or logged it out.
            inner.adopt(world.storage.number(&self.name).as_deref());
            inner.generation
        };
        self.enter(world, Status::Starting, Some(generation), None);
        if sticks {
            return;
        }
        let (session, world_of_task) = (Arc::clone(self), Arc::clone(world));
        world.runtime.spawn(async move { session.start_up(&world_of_task, generation, down).await });
    }

    async fn start_up(self: Arc<Self>, world: &Arc<World>, generation: u64, down: Option<Duration>) {
        match down {
            Some(down) => world.clock.sleep(down).await,
            None => world.pause(START_UP).await,
        }
        if self.me().is_some() {
            let status = if world.troubles.refused() { Status::Failed } else { Status::Working };
            self.enter(world, status, Some(generation), None);
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
            if let Some(passkey) = &mut inner.passkey {
                passkey.renew(world);
                let generation = inner.generation;
                drop(inner);
                return self.enter(world, Status::PasskeyRequired, Some(generation), None);
            }
            inner.generation
        };
        self.link(world, generation);
        true
    }

    /// WhatsApp asks for a passkey after every scan, and with `Passkey::confirm` for a confirmation after that.
    pub fn want_passkey(&self, passkey: Option<Passkey>) {
        lock(&self.inner).passkey = passkey;
    }

    pub fn passkey(&self) -> Option<Passkey> {
        lock(&self.inner).passkey.clone()
    }

    /// The passkey was shown: on to the confirmation, or to WORKING. False when the session has left `from`.
    pub fn pass(self: &Arc<Self>, world: &Arc<World>, from: Status) -> bool {
        let (generation, confirm) = {
            let mut inner = lock(&self.inner);
            if *self.status.borrow() != from {
                return false;
            }
            inner.generation += 1;
            let confirm = inner.passkey.as_ref().is_some_and(|passkey| passkey.confirm);
            (inner.generation, confirm && from == Status::PasskeyRequired)
        };
        if confirm {
            return self.enter(world, Status::PasskeyConfirmationRequired, Some(generation), None);
        }
        self.link(world, generation);
        true
    }

    /// Paired with a number of its own, and WORKING in a moment.
    fn link(self: &Arc<Self>, world: &Arc<World>, generation: u64) {
        let number = world.storage.next_number();
        world.storage.pair(&self.name, &number);
        lock(&self.inner).adopt(Some(&number));
        let (session, world_of_task) = (Arc::clone(self), Arc::clone(world));
        world.runtime.spawn(async move {
            world_of_task.pause(LINKING).await;
            session.enter(&world_of_task, Status::Working, Some(generation), None);
        });
    }

    /// Paired with `number` and WORKING at once; nobody is told.
    pub fn work_as(&self, world: &Arc<World>, number: &str) {
        world.storage.pair(&self.name, number);
        let mut inner = lock(&self.inner);
        inner.adopt(Some(number));
        self.status.send_replace(Status::Working);
        let _others = self.put_down(world, true);
    }

    /// STOPPED at once; the pairing stays.
    pub fn end(&self, world: &Arc<World>) {
        lock(&self.inner).generation += 1;
        self.enter(world, Status::Stopped, None, None);
        lock(&self.inner).activity = None;
    }

    /// The process is gone: no event, and nothing it planned happens. The next one has the session in `status`, if nothing else
    /// happens to it: see [`Session::is_still`].
    pub fn vanish(&self, world: &Arc<World>, status: Status) -> u64 {
        let mut inner = lock(&self.inner);
        inner.generation += 1;
        inner.qr = None;
        inner.history.clear();
        self.status.send_replace(status);
        let _none = self.put_down(world, false);
        inner.generation
    }

    /// Whether nothing was started, stopped or scanned since `generation`.
    pub fn is_still(&self, generation: u64) -> bool {
        lock(&self.inner).generation == generation
    }

    /// The server does not know the session any more; the pairing stays where it is kept.
    pub fn lose(&self, world: &Arc<World>) {
        self.vanish(world, Status::Stopped);
        self.delete();
    }

    /// The connection drops and comes back by itself, after `down` (not scaled) or as soon as may be.
    pub fn reconnect(self: &Arc<Self>, world: &Arc<World>, down: Option<Duration>) {
        let activity = self.activity();
        self.connect(world, down, false);
        lock(&self.inner).activity = activity;
    }

    /// WORKING in name only from now on, or no more.
    pub fn doom(&self, zombie: Option<Zombie>) {
        lock(&self.inner).zombie = zombie;
        self.undead.store(zombie.is_some(), Ordering::Relaxed);
        // Wakes what waits for it to live.
        self.status.send_modify(|_| ());
    }

    /// Whether it is WORKING in name only.
    pub fn is_undead(&self) -> bool {
        self.undead.load(Ordering::Relaxed)
    }

    /// In which way it is WORKING in name only.
    pub fn zombie(&self) -> Option<Zombie> {
        lock(&self.inner).zombie
    }

    /// The pairing and the engine's data are gone.
    pub fn forget(&self, world: &World) {
        world.storage.unpair(&self.name);
        let mut inner = lock(&self.inner);
        inner.brakes = Brakes::default();
        inner.adopt(None);
        inner.forgotten = world.sequence();
    }

    /// WhatsApp ends the connection and keeps the pairing.
    pub fn refuse(&self, world: &Arc<World>) {
        lock(&self.inner).generation += 1;
        self.enter(world, Status::Failed, None, None);
    }

    /// The phone removed the linked device, or WhatsApp did.
    pub fn fail(&self, world: &Arc<World>) {
        self.forget(world);
        lock(&self.inner).generation += 1;
        self.enter(world, Status::Failed, None, None);
    }
}
