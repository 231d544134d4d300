//! What a process holds, built once by the command line and by tests.

use std::future::Future;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::futures::Notified;
use tokio::sync::{Notify, watch};

use crate::broker::{Broker, BrokerConfig, Route};
use crate::config::{Config, MasterKey};
use crate::db::generation::Generation;
use crate::db::group_commit::GroupCommit;
use crate::db::{Db, DbError};
use crate::domain::chance::Chance;
use crate::domain::clock::Clock;
use crate::identity::keys::Keys;
use crate::identity::seal::Sealer;
use crate::ingest::road::{self, Road};
use crate::ingest::spool::Spool;
use crate::media::slots::Slots;
use crate::media::{MediaRoom, RoomError};
use crate::messages::accept::Acceptor;
use crate::sessions::directory::Directory;
use crate::sessions::pairing_link;
use crate::waha::{Timeouts, WahaClient};

/// Live streams of one tenant at once on a node, pairing pages included, and of all together.
const STREAMS_PER_TENANT: usize = 64;
/// See [`STREAMS_PER_TENANT`].
const STREAMS: usize = 512;

/// Everything that lives as long as the process; clones share it.
#[derive(Clone, Debug)]
pub struct App(Arc<Parts>);

/// The parts of an [`App`].
#[derive(Debug)]
pub struct Parts {
    /// The settings.
    pub config: Config,
    /// The source of time.
    pub clock: Clock,
    /// The source of randomness.
    pub chance: Chance,
    /// Postgres.
    pub db: Db,
    /// Moves when something cached was changed on any node.
    pub generation: Generation,
    /// Seals secrets at rest.
    pub sealer: Sealer,
    /// RabbitMQ.
    pub broker: Broker,
    /// The client of all WAHA servers.
    pub waha: WahaClient,
    /// Which session lives where.
    pub directory: Directory,
    /// Files to be sent.
    pub media: MediaRoom,
    /// Links to the pairing page.
    pub pairing_links: pairing_link::Links,
    /// How many live streams there are at once.
    pub streams: Slots,
    /// Accepts messages.
    pub acceptor: Acceptor,
    /// Puts WAHA's events on the road.
    pub road: GroupCommit<Road>,
    /// The same for those that tell of what happened a while ago.
    pub history_road: GroupCommit<Road>,
    /// Keeps WAHA's events while the broker is away.
    pub spool: GroupCommit<Spool>,
    /// The callers' keys.
    pub keys: Keys,
    /// What this node says of itself.
    pub health: Health,
    /// Wakes what waits for work on this node.
    pub wake: Arc<Wake>,
    runtime: Handle,
}

/// Bells that save this node's loops the wait for their next poll. They are hints: each loop also looks by itself.
#[derive(Debug, Default)]
pub struct Wake {
    /// A lane may have become ready.
    pub dispatch: Notify,
    /// Events were written.
    pub events: EventBell,
    /// Webhook deliveries became due.
    pub deliveries: Notify,
    /// A session's desired state changed.
    pub sessions: Notify,
    /// Files that came with messages are to be fetched.
    pub media: Notify,
}

/// Rings for everybody who follows the event log: a bell each, since a ring wakes one only.
#[derive(Debug, Default)]
pub struct EventBell {
    fan_out: Notify,
    conversations: Notify,
}

impl EventBell {
    /// Events were written.
    pub fn notify_one(&self) {
        self.fan_out.notify_one();
        self.conversations.notify_one();
    }

    /// For the fan-out.
    pub fn notified(&self) -> Notified<'_> {
        self.fan_out.notified()
    }

    /// For the projection of contacts and conversations.
    pub fn conversations(&self) -> Notified<'_> {
        self.conversations.notified()
    }
}

/// What a node says of itself, beside what can be asked of the database.
#[derive(Debug, Default)]
pub struct Health {
    broker: AtomicU8,
    draining: watch::Sender<bool>,
}

impl Health {
    /// Notes whether the broker is connected. Without it requests are still accepted, but nothing leaves.
    pub fn set_broker(&self, connected: bool) {
        self.broker.store(if connected { 2 } else { 1 }, Ordering::Relaxed);
    }

    /// Whether the broker is connected; `None` on a node that does not use it.
    #[must_use]
    pub fn broker(&self) -> Option<bool> {
        match self.broker.load(Ordering::Relaxed) {
            0 => None,
            state => Some(state == 2),
        }
    }

    /// Notes that this node is about to stop and wants no more requests.
    pub fn start_draining(&self) {
        self.draining.send_replace(true);
    }

    /// Whether this node is about to stop.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        *self.draining.borrow()
    }

    /// Returns once this node is about to stop: answers without an end have to end then.
    pub async fn drained(&self) {
        // The sender lives as long as `self`, so waiting cannot fail.
        let _draining = self.draining.subscribe().wait_for(|draining| *draining).await.map(|draining| *draining);
    }
}

/// Why a process cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No master key outside of development.
    #[error(
        "SWITCHBOARD_MASTER_KEY: is not set; make one with `openssl rand -base64 32`, and keep it: it opens what is sealed"
    )]
    NoMasterKey,
    /// The database's settings do not work.
    #[error(transparent)]
    Database(#[from] DbError),
    /// The TLS backend cannot be set up.
    #[error("the HTTP client cannot be set up: {0}")]
    Http(#[from] reqwest::Error),
    /// The storage of files cannot be set up.
    #[error(transparent)]
    Media(#[from] RoomError),
}

impl Deref for App {
    type Target = Parts;
    fn deref(&self) -> &Parts {
        &self.0
    }
}

impl App {
    /// Builds the parts on the current (multi-thread) runtime, which from then on owns every connection to the outside.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn build(config: Config, clock: Clock, chance: Chance) -> Result<Self, StartError> {
        let key: &MasterKey = config.master_key.as_ref().ok_or(StartError::NoMasterKey)?;
        let sealer = Sealer::new(key, chance.clone()).with_previous(&config.previous_master_keys);
        let media = MediaRoom::open(&config, key)?;
        let pairing_links = pairing_link::Links::new(key, &config.previous_master_keys, &config.public_url);
        let db = Db::open(&config.database)?;
        let generation = Generation::default();
        let wake = Arc::new(Wake::default());
        let bells = Arc::clone(&wake);
        let acceptor = Acceptor::start(db.clone(), move || {
            bells.dispatch.notify_one();
            bells.events.notify_one();
        });
        let broker = BrokerConfig {
            url: config.amqp_url.clone(),
            namespace: config.broker_namespace.clone(),
            publish_timeout: Duration::from_secs(5),
            channels: 2,
        };
        let broker = Broker::start(broker, chance.clone());
        let road = |route, together| Road { broker: broker.clone(), chance: chance.clone(), route, together };
        Ok(Self(Arc::new(Parts {
            keys: Keys::new(config.platform_key.as_ref(), &generation),
            health: Health::default(),
            directory: Directory::new(db.clone(), sealer.clone(), &generation),
            waha: WahaClient::new(Handle::current(), Timeouts::default())?,
            road: GroupCommit::start("road", road(Route::Inbound, road::TOGETHER), 20_000, 1000),
            history_road: GroupCommit::start(
                "history_road",
                road(Route::History, road::HISTORY_TOGETHER),
                20_000,
                1000,
            ),
            broker,
            runtime: Handle::current(),
            spool: GroupCommit::start("spool", Spool(db.clone()), 20_000, 500),
            acceptor,
            media,
            pairing_links,
            streams: Slots::new(STREAMS_PER_TENANT, STREAMS),
            sealer,
            db,
            generation,
            wake,
            config,
            clock,
            chance,
        })))
    }

    /// Runs `work` on the process-wide runtime and waits for it. A caller that is dropped meanwhile (a client that hung up)
    /// does not stop it.
    ///
    /// # Errors
    /// When `work` panicked or the runtime is shutting down.
    pub async fn detached<F>(&self, work: F) -> Result<F::Output, tokio::task::JoinError>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        self.runtime.spawn(work).await
    }

    /// Starts `work` on the process-wide runtime; nobody waits for it.
    pub fn spawn<F>(&self, work: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        drop(self.runtime.spawn(work));
    }
}
