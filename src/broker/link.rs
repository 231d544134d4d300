//! One connection to the broker, kept up for ever.
//!
//! lapin's own recovery is off: it gives up after some tries and has sent acknowledgements of one connection over the next.
//! Here a failed connection is thrown away as a whole and a new one is made after a jittered pause, for as long as the process
//! runs. What hung on the old connection fails at once and is repeated by its owner.

use std::collections::HashSet;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use lapin::tcp::{AsyncTcpStream, OwnedTLSConfig};
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{Channel, Connection, ConnectionProperties, Event};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout};

use super::meter;
use super::topology::{self, Names, Queue};
use crate::domain::chance::Chance;

/// How long any single question to the broker may take.
const RPC_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection may take from the first packet to the last handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The interval of heartbeats asked for, in seconds; a silent peer is given up after twice that.
const HEARTBEAT_SECONDS: u16 = 10;
/// The largest frame asked for, in bytes; lapin keeps 64 frames of buffer for each connection.
const FRAME_MAX_BYTES: u32 = 32 * 1024;
/// How often the state of a connection is looked at when no event announces a change.
const LOOK: Duration = Duration::from_millis(250);
/// The pause after the first failure; doubled with each further one.
const BACKOFF_FIRST: Duration = Duration::from_millis(200);
/// The longest pause between two tries.
const BACKOFF_MOST: Duration = Duration::from_secs(10);
/// A connection that lived this long starts again with short pauses.
const STABLE: Duration = Duration::from_secs(10);

/// What a connection to the broker is good for now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkState {
    /// In use.
    Connected,
    /// Connected, but the broker accepts no messages: short of memory or disk.
    Blocked,
    /// Not there; being made.
    Disconnected,
}

/// Why a question to the broker has no good answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    #[error("no answer in time")]
    TimedOut,
    #[error("{0}")]
    Amqp(#[from] lapin::Error),
}

/// Waits for an answer of the broker, not for ever.
pub(crate) async fn within<T>(answer: impl Future<Output = lapin::Result<T>>) -> Result<T, LinkError> {
    timeout(RPC_TIMEOUT, answer).await.map_err(|_| LinkError::TimedOut)?.map_err(LinkError::from)
}

/// The pause before the try after `failures` failures in a row: exponential, half of it random.
pub(crate) fn backoff(failures: u32, first: Duration, most: Duration, chance: &Chance) -> Duration {
    let full = first.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(most);
    full / 2 + chance.jitter(full / 2)
}

/// A second handle on a connection's socket: pulling it ends a connection whose peer no longer answers.
#[derive(Clone, Default)]
struct Cord(Arc<Mutex<CordState>>);

#[derive(Default)]
enum CordState {
    #[default]
    Loose,
    Tied(std::net::TcpStream),
    Pulled,
}

impl Cord {
    fn tie(&self, socket: &impl AsFd) -> std::io::Result<()> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*state, CordState::Pulled) {
            return Err(std::io::ErrorKind::ConnectionAborted.into());
        }
        *state = CordState::Tied(socket.as_fd().try_clone_to_owned()?.into());
        Ok(())
    }

    fn pull(&self) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let CordState::Tied(socket) = std::mem::replace(&mut *state, CordState::Pulled) {
            // A socket the peer has closed already is as good as shut down.
            let _closed = socket.shutdown(Shutdown::Both);
        }
    }
}

/// A live connection.
pub(crate) struct Link {
    connection: Connection,
    cord: Cord,
    given_up: Notify,
    declared: Mutex<Declared>,
}

#[derive(Default)]
struct Declared {
    base: bool,
    queues: HashSet<Queue>,
}

impl Link {
    async fn open(uri: &AMQPUri, name: &str) -> Result<Self, LinkError> {
        let cord = Cord::default();
        let tied = cord.clone();
        let properties = ConnectionProperties::default().with_connection_name(name.into());
        let connecting = Connection::connector(
            uri.clone(),
            lapin::runtime::default_runtime()?,
            async move |uri: AMQPUri, runtime| {
                let dial = async {
                    let host = (uri.authority.host.as_str(), uri.authority.port);
                    let addresses: Vec<_> = tokio::net::lookup_host(host).await?.collect();
                    let stream = AsyncTcpStream::connect(&runtime, addresses).await?;
                    if let AsyncTcpStream::Plain(socket) = &stream {
                        socket.get_ref().set_nodelay(true)?;
                        tied.tie(socket.get_ref())?;
                    }
                    match uri.scheme {
                        AMQPScheme::AMQP => Ok(stream),
                        AMQPScheme::AMQPS => {
                            stream.into_tls(&uri.authority.host, OwnedTLSConfig::default().as_ref()).await
                        }
                    }
                };
                let stream: std::io::Result<_> = match timeout(CONNECT_TIMEOUT, dial).await {
                    Ok(stream) => stream,
                    Err(_) => Err(std::io::ErrorKind::TimedOut.into()),
                };
                Ok(stream?)
            },
            properties,
        );
        match timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(Ok(connection)) => Ok(Self { connection, cord, given_up: Notify::new(), declared: Mutex::default() }),
            Ok(Err(error)) => {
                cord.pull();
                Err(error.into())
            }
            Err(_) => {
                cord.pull();
                Err(LinkError::TimedOut)
            }
        }
    }

    pub(crate) async fn channel(&self) -> Result<Channel, LinkError> {
        within(self.connection.create_channel()).await
    }

    pub(crate) fn is_up(&self) -> bool {
        self.connection.status().connected()
    }

    /// Ends a connection that does not answer; the supervisor makes another.
    pub(crate) fn give_up(&self) {
        self.cord.pull();
        self.given_up.notify_one();
    }

    /// Declares dead letters and exchanges unless that was done on this connection before.
    pub(crate) async fn ensure_base(&self, names: &Names) -> Result<(), LinkError> {
        if !self.declared().base {
            topology::declare_base(self, names).await?;
            self.declared().base = true;
        }
        Ok(())
    }

    /// Declares `queue`, and what it relies on, unless that was done on this connection before.
    pub(crate) async fn ensure(&self, names: &Names, queue: Queue) -> Result<(), LinkError> {
        self.ensure_base(names).await?;
        if !self.declared().queues.contains(&queue) {
            topology::declare(self, names, queue).await?;
            self.declared().queues.insert(queue);
        }
        Ok(())
    }

    /// Forgets what was declared: somebody has deleted some of it.
    pub(crate) fn forget(&self) {
        *self.declared() = Declared::default();
    }

    fn declared(&self) -> MutexGuard<'_, Declared> {
        self.declared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn close(&self) {
        if self.is_up() && !self.connection.status().blocked() {
            let _ended = within(self.connection.close(200, "OK".into())).await;
        }
        self.cord.pull();
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.cord.pull();
    }
}

/// Keeps one connection up and hands it out.
pub(crate) struct Supervisor {
    /// What the connection is for: a metric label and part of its name.
    pub(crate) role: &'static str,
    /// Where to; `None` when the configured address cannot be read.
    pub(crate) uri: Option<AMQPUri>,
    pub(crate) names: Names,
    pub(crate) chance: Chance,
    pub(crate) links: watch::Sender<Option<Arc<Link>>>,
    pub(crate) states: watch::Sender<LinkState>,
    pub(crate) stop: watch::Receiver<bool>,
}

/// Reads the broker's address and settles what it leaves open.
pub(crate) fn address(url: &str) -> Option<AMQPUri> {
    let mut uri: AMQPUri = match url.parse() {
        Ok(uri) => uri,
        Err(_) => {
            tracing::error!("the broker's address is not an amqp:// or amqps:// URL");
            return None;
        }
    };
    uri.query.heartbeat.get_or_insert(HEARTBEAT_SECONDS);
    uri.query.frame_max.get_or_insert(FRAME_MAX_BYTES);
    Some(uri)
}

impl Supervisor {
    pub(crate) async fn run(mut self) {
        let Some(uri) = self.uri.take() else {
            return;
        };
        let mut stop = self.stop.clone();
        let mut failures = 0_u32;
        meter::link(self.role, LinkState::Disconnected);
        while !*stop.borrow() {
            let opened = tokio::select! {
                opened = self.open(&uri) => opened,
                _ = stop.wait_for(|stop| *stop) => break,
            };
            match opened {
                Ok(link) => {
                    let since = Instant::now();
                    let link = Arc::new(link);
                    tracing::info!(role = self.role, "connected to the broker");
                    self.attend(&link, &mut stop).await;
                    self.links.send_replace(None);
                    self.set(LinkState::Disconnected);
                    link.close().await;
                    if since.elapsed() >= STABLE {
                        failures = 0;
                    }
                    if !*stop.borrow() {
                        tracing::warn!(role = self.role, "the connection to the broker is lost");
                        meter::reconnect(self.role);
                    }
                }
                Err(error) if failures.is_power_of_two() || failures == 0 => {
                    tracing::warn!(role = self.role, %error, failures, "the broker cannot be reached");
                }
                Err(error) => tracing::debug!(role = self.role, %error, failures, "the broker cannot be reached"),
            }
            failures = failures.saturating_add(1);
            let pause = backoff(failures, BACKOFF_FIRST, BACKOFF_MOST, &self.chance);
            if timeout(pause, stop.wait_for(|stop| *stop)).await.is_ok() {
                break;
            }
        }
    }

    async fn open(&self, uri: &AMQPUri) -> Result<Link, LinkError> {
        let link = Link::open(uri, &format!("switchboard {}", self.role)).await?;
        link.ensure_base(&self.names).await?;
        Ok(link)
    }

    /// Hands the link out and follows its state until it is gone.
    async fn attend(&self, link: &Arc<Link>, stop: &mut watch::Receiver<bool>) {
        let mut events = pin!(link.connection.events_listener());
        let mut look = tokio::time::interval(LOOK);
        self.links.send_replace(Some(link.clone()));
        loop {
            let status = link.connection.status();
            if !status.connected() {
                return;
            }
            self.set(if status.blocked() { LinkState::Blocked } else { LinkState::Connected });
            tokio::select! {
                event = events.next() => match event {
                    Some(Event::ConnectionBlocked(reason)) => {
                        tracing::warn!(role = self.role, reason, "the broker accepts no messages");
                    }
                    Some(Event::ConnectionUnblocked) => tracing::info!(role = self.role, "the broker accepts messages again"),
                    Some(_) => {}
                    None => return,
                },
                _ = look.tick() => {}
                () = link.given_up.notified() => return,
                _ = stop.wait_for(|stop| *stop) => return,
            }
        }
    }

    fn set(&self, state: LinkState) {
        let changed = self.states.send_if_modified(|old| std::mem::replace(old, state) != state);
        if changed {
            meter::link(self.role, state);
        }
    }
}
