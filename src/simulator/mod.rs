//! A WAHA server that needs no phone.
//!
//! It answers as WAHA answers (bodies, headers, waiting times, engine by engine), posts webhooks as WAHA posts them (signed,
//! retried, unordered), and keeps a [`Ledger`] of what each recipient *saw*, which is how a test tells one WhatsApp message
//! from two. It shares no code with the gateway's own WAHA client: two readings of the same contract find each other's errors.
//!
//! Guarantees: a message id that is posted again makes one bubble (unless told otherwise), and every call is counted. What it does not keep: anything
//! at all once the process ends.
//!
//! # Numbers with a fate
//!
//! The recipient's number decides what becomes of a message. Numbers are fictional, `+1 555 010 xxxx`:
//!
//! | number          | what happens |
//! |-----------------|--------------|
//! | any other       | delivered and read: acks 1, 2, 3 |
//! | `+1555010 0001` | delivered and read, as any other |
//! | `+1555010 0002` | delivered, never read: acks 1, 2 |
//! | `+1555010 0003` | never acked: 201, stays PENDING, reaches nobody |
//! | `+1555010 0004` | refused by WhatsApp: 500 "server returned error 463" on GOWS, 201 and then ack -1 elsewhere |
//! | `+1555010 0005` | not on WhatsApp: `check-exists` says no, a send gets 201 and ack 1 and reaches nobody |
//! | `+1555010 0006` | slow: sent at once, answered after 10 s, then delivered and read |
//! | `+1555010 0007` | replies: delivered and read, then a text comes back about 1 s later |
//! | `+1555010 0008` | delivered, but WAHA never learns: no acks, stays PENDING |
//! | `+1555010 0009` | delivered and read, with the chat named `@lid` in the acks |
//! | `+1555010 0010` | ack 1 and no other, yet it replies |
//! | `+1555010 0011` | no ack at all, yet it replies |
//! | `+55 11 95555 01xx` | known to WhatsApp without its ninth digit, `5511555501xx`; sent to as it is written it vanishes after ack 1 |
//!
//! # Control
//!
//! In process through [`Control`], from outside under `/_simulator/` with the same `X-Api-Key`: see [`CONTROL_HELP`].

mod answers;
mod brakes;
mod circles;
mod content;
mod control;
mod conversation;
mod deeds;
mod events;
mod faults;
mod files;
mod fleet;
mod happenings;
mod history;
mod http;
mod ids;
mod judge;
mod ledger;
mod lifecycle;
mod lists;
mod mailbox;
mod numbers;
mod pairing;
mod raw;
mod read_back;
mod remote;
mod routes;
mod saying;
mod sends;
mod session;
mod shapes;
mod status;
mod storage;
mod troubles;
mod waiting;
mod webhooks;
mod world;
mod writing;

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use secrecy::SecretString;
use serde::{Deserialize, Serialize};

pub use self::brakes::{Capping, Timelock};
pub use self::circles::{CallEnd, Label, Membership};
pub use self::content::SeenFile;
pub use self::control::{Control, ControlError, SessionView};
pub use self::conversation::{Conversation, ConversationMessage, Conversations, Direction};
pub use self::faults::{Fault, FaultPlan, FaultRule, WebhookFaults};
pub use self::history::{History, HistoryRun};
pub use self::ledger::{Ledger, LedgerEntry, PostRecord};
pub use self::numbers::HELP as NUMBERS_HELP;
pub use self::saying::{FileKind, FilePlan, Naming, Presence, SaidFile, Saying, Writing};
pub use self::storage::{Conflict, Run, Storage};
pub use self::troubles::{RestartPlan, Zombie, ZombieQueries};
use self::world::World;
use crate::domain::chance::Chance;
use crate::domain::clock::Clock;

/// The control endpoints, as `simulate --help` prints them.
pub const CONTROL_HELP: &str = "\
Control endpoints (same X-Api-Key):
  GET    /_simulator/ledger[?session=NAME]   what each recipient saw, and every POST
  DELETE /_simulator/ledger                  forget it
  GET    /_simulator/sessions                name, status, number
  POST   /_simulator/scan                    {\"session\"}                 the phone scans the QR code
  POST   /_simulator/passkey                 {\"session\",\"confirm\"}       WhatsApp asks for the passkey after a scan (GOWS)
  POST   /_simulator/phone-logout            {\"session\"}                 the phone removes the linked device
  POST   /_simulator/flap                    {\"session\"}                 the connection drops and comes back
  POST   /_simulator/inbound                 {\"session\",\"from\",\"text\"}   somebody writes to the session
  POST   /_simulator/write                   {\"session\",\"chat\",\"message\":{\"saying\":{\"text\"|\"file\"|\"location\"|\"contacts\"|\"poll\"},
                                             \"id\",\"by_phone\",\"participant\",\"push_name\",\"reply_to\",\"naming\":{\"lid\",\"alternative\"},
                                             \"at\",\"silent\",\"stub\",\"ack\"}}   anything, by anybody
  POST   /_simulator/reveal                  {\"session\",\"id\"}            the content of a stub is told
  POST   /_simulator/tell-again              {\"session\",\"id\",\"naming\"}   the message is told once more, with these ids
  POST   /_simulator/edit                    {\"session\",\"id\",\"text\"}     its writer changes it, and likewise revoke {\"session\",\"id\"}
  POST   /_simulator/react                   {\"session\",\"id\",\"who\",\"emoji\"}   without who: the own phone; likewise vote {..,\"options\"}
  POST   /_simulator/ack                     {\"session\",\"id\",\"level\",\"participant\"}   an ack as it pleases
  POST   /_simulator/read-on-phone           {\"session\",\"chat\"}          the own phone reads a chat
  POST   /_simulator/call                    {\"session\",\"from\",\"video\"}, then {\"session\",\"from\",\"id\",\"end\":\"accepted\"|\"rejected\"}
  POST   /_simulator/group                   {\"session\",\"group\",\"subject\",\"participants\",\"change\",\"left\"}
  POST   /_simulator/presence                {\"session\",\"chat\",\"participant\",\"presence\"}
  POST   /_simulator/label                   {\"session\",\"label\":{\"id\",\"name\",\"color\"},\"chat\":[id,chat,on],\"deleted\":id}
  POST   /_simulator/history                 {\"session\",\"chats\",\"count\",\"since\",\"by_phone_every\",\"told_at_once\"}
  GET    /_simulator/conversation?session=NAME  the final truth of its chats
  POST   /_simulator/lid                     {\"number\",\"learnt\"}         whether the lids API knows it
  POST   /_simulator/file-lifetime           {\"seconds\"}                 how long files can be fetched
  POST   /_simulator/numbers                 {\"phone\",\"known\"}         WhatsApp knows a number as another, or (null) not at all
  POST   /_simulator/brakes                  {\"session\",\"timelock\":{\"until\"},\"capping\":{\"total\"}}   463 for new chats
  POST   /_simulator/repeats                 {\"show\"}                   whether a repeated id shows another bubble
  POST   /_simulator/faults                  {\"rules\":[{\"endpoint\",\"session\",\"nth\",\"times\",\"probability\",\"until_restart\",\"fault\"}],\"webhooks\":{..}}
  DELETE /_simulator/faults                  no faults any more
  POST   /_simulator/fleet                   {\"sessions\":[{\"name\",\"number\",\"config\"}]}  sessions that are WORKING at once
  POST   /_simulator/restart                 {\"down_ms\",\"missing\",\"wiped\",\"stopped\",\"delay_ms\",\"gap_ms\"}   WAHA restarts; webhook retries are lost
  POST   /_simulator/zombie                  {\"session\",\"survives\",\"queries\"}   WORKING in name only, until it is started anew
  POST   /_simulator/revive                  {\"session\"}                 it lives again by itself
  POST   /_simulator/outage                  {\"on\"}                      WhatsApp refuses every session: FAILED, still paired
  POST   /_simulator/stuck                   {\"session\",\"starts\"}        its next starts stay STARTING
  POST   /_simulator/down                    {\"session\",\"for_ms\"}        the connection drops and comes back after that time
  POST   /_simulator/lock                    {\"session\",\"for_ms\"}        lifecycle calls find it busy
  GET    /_simulator/lifecycle[?session=NAME]   the calls that steered sessions
  GET    /_simulator/runs                    when which session ran here";

/// WAHA's engine: decides the shape of answers and whether a message id may be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Engine {
    /// A browser with WhatsApp Web; chooses its own message ids, acks only with `tagsEventsOn`.
    Webjs,
    /// A browser with WhatsApp Web, by another library; chooses its own message ids.
    Wpp,
    /// WebSocket, in Node; honours the requested message id.
    Noweb,
    /// WebSocket, in Go; honours the requested message id.
    Gows,
}

impl Engine {
    /// The name as WAHA writes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Webjs => "WEBJS",
            Self::Wpp => "WPP",
            Self::Noweb => "NOWEB",
            Self::Gows => "GOWS",
        }
    }

    /// Whether a send takes the message id that the request names, and bare ids can be looked up.
    #[must_use]
    pub fn honours_ids(self) -> bool {
        matches!(self, Self::Noweb | Self::Gows)
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Engine {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.to_ascii_uppercase().as_str() {
            "WEBJS" => Ok(Self::Webjs),
            "WPP" => Ok(Self::Wpp),
            "NOWEB" => Ok(Self::Noweb),
            "GOWS" => Ok(Self::Gows),
            _ => Err("the engine is one of WEBJS, WPP, NOWEB, GOWS".to_owned()),
        }
    }
}

/// How one simulator behaves.
#[derive(Clone, Debug)]
pub struct SimulatorConfig {
    /// Where to listen; port 0 takes a free one.
    pub bind: SocketAddr,
    /// What `X-Api-Key` must say.
    pub api_key: SecretString,
    /// The engine of every session.
    pub engine: Engine,
    /// The WAHA version it claims to be.
    pub version: String,
    /// 1.0 keeps WAHA's own timings; 20.0 is twenty times as fast.
    pub time_scale: f64,
    /// A session that waits for a scan is scanned by itself, about 2 s (scaled) after its first QR code.
    pub auto_pair: bool,
    /// Where pairings are kept; one that several simulators share lets sessions move between them.
    pub storage: Storage,
    /// The source of time.
    pub clock: Clock,
    /// The source of chance.
    pub chance: Chance,
}

impl Default for SimulatorConfig {
    fn default() -> Self {
        Self {
            bind: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            api_key: SecretString::from("simulator"),
            engine: Engine::Noweb,
            version: "2026.7.1".to_owned(),
            time_scale: 1.0,
            auto_pair: false,
            storage: Storage::default(),
            clock: Clock::running(),
            chance: Chance::from_system(),
        }
    }
}

/// A running simulator; it ends with [`Simulator::stop`] or when dropped.
pub struct Simulator {
    address: SocketAddr,
    control: Control,
    server: actix_web::dev::ServerHandle,
}

impl Simulator {
    /// Binds and starts to answer. Call it on the process-wide multi-thread runtime, which then carries the webhooks.
    ///
    /// # Errors
    /// The address cannot be bound, or no HTTP client can be made.
    pub async fn start(config: SimulatorConfig) -> io::Result<Self> {
        // Fails only when a provider is installed already, which is as good.
        drop(rustls::crypto::ring::default_provider().install_default());
        let listener = std::net::TcpListener::bind(config.bind)?;
        let address = listener.local_addr()?;
        let world = Arc::new(World::new(config, format!("http://{address}"))?);
        let server = http::serve(listener, Arc::clone(&world))?;
        let handle = server.handle();
        tokio::spawn(async move {
            if let Err(error) = server.await {
                tracing::error!(%error, "the simulator's server ended");
            }
        });
        Ok(Self { address, control: Control::new(world), server: handle })
    }

    /// Where it listens, without a trailing slash.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What a test or an operator does to it; clones share the simulator.
    #[must_use]
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// Stops answering at once; requests under way lose their connection and waiting webhooks are dropped.
    pub async fn stop(self) {
        self.control.shut_down();
        self.server.stop(false).await;
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        self.control.shut_down();
        // The command is sent by the call itself; the future only waits for the end.
        drop(self.server.stop(false));
    }
}
