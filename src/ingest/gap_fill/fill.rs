//! One fill: page after page of what WAHA has, oldest first, into the database.
//!
//! Oldest first, so that what comes in meanwhile is appended behind the place where this reads. After a full page the next one
//! begins at the second of its last message rather than behind so many rows: a message that vanishes from what was read
//! already moves nothing past this reader. A short page is no end, since engines leave rows out; only one without rows is.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;

use crate::app::App;
use crate::broker::envelope::InboundEvent;
use crate::db::{DbError, SystemConn};
use crate::ingest::apply;
use crate::ingest::dead_letters::{self, DeadLetter, Reason};
use crate::ingest::gap_fill::due::{self, GivenUp, Taken};
use crate::sessions::directory::{DirectoryError, ServerEntry, SessionEntry};
use crate::waha::{CallError, Me, MessageFilter, WahaMessage};

/// The pseudo chat that holds all messages, on engines that have it.
const ALL: &str = "all";
/// Chats asked for in one call.
const CHATS: u32 = 100;
/// The fewest messages asked for in one call, however often larger pages have failed.
const SMALLEST_PAGE: u32 = 5;
/// After so many failures in a row at one chat the others go on without it.
const TRIES_OF_A_CHAT: i32 = 3;

/// Why a fill does not go on now.
#[derive(Debug, thiserror::Error)]
enum Stop {
    #[error(transparent)]
    Waha(#[from] CallError),
    #[error(transparent)]
    Database(#[from] DbError),
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    #[error("the session is gone")]
    Gone,
    #[error("the session does not work any more")]
    NotWorking,
    #[error("another node goes on")]
    Lost,
    #[error("this node stops")]
    Stopping,
}

impl Stop {
    /// How it goes on; `None`: by somebody else.
    fn given_up(&self) -> Option<GivenUp> {
        Some(match self {
            // Such as a store that is switched off. Whoever changes that restarts the session, which leads to a fill.
            Self::Waha(CallError::Rule(_) | CallError::Unsupported(_) | CallError::AlreadyExists) | Self::Gone => {
                GivenUp::Refused
            }
            Self::Waha(_) | Self::Database(_) | Self::Directory(_) | Self::NotWorking => GivenUp::Later,
            Self::Lost => return None,
            Self::Stopping => GivenUp::HandedOver,
        })
    }
}

/// Reads back what `taken` says, as far as it comes, and gives it back.
pub(super) async fn run(app: App, taken: Taken, stop: watch::Receiver<bool>) {
    let because = taken.because().as_str();
    let (session, server) = (taken.session_id, taken.waha_server_id);
    let mut fill = Fill { app: &app, taken, stop, called: false, found: 0 };
    let ended = fill.read().await;
    let result = match &ended {
        Ok(()) => "complete",
        Err(Stop::Waha(_)) => "waha",
        Err(Stop::Database(_) | Stop::Directory(_)) => "database",
        Err(_) => "broken_off",
    };
    metrics::counter!("switchboard_gap_fills_total", "because" => because, "result" => result).increment(1);
    let written = match &ended {
        Ok(()) => due::complete(&app, &fill.taken).await.map(|told| {
            let told = told.and_then(|told| u64::try_from(told).ok()).unwrap_or(0);
            metrics::counter!("switchboard_gap_fill_messages_total", "by" => "webhook").increment(told);
            tracing::info!(session_id = %session, because, missing = fill.found, "a gap is filled");
        }),
        Err(stop) => {
            tracing::info!(session_id = %session, server_id = %server, because, %stop, "a gap fill was broken off");
            match stop.given_up() {
                Some(given_up) => due::give_up(&app, &fill.taken, given_up).await,
                None => Ok(()),
            }
        }
    };
    if let Err(fault) = written {
        tracing::debug!(session_id = %session, %fault, "the lease of a gap fill runs out by itself");
    }
}

struct Fill<'a> {
    app: &'a App,
    taken: Taken,
    stop: watch::Receiver<bool>,
    /// Whether the server was called already.
    called: bool,
    /// Messages that were missing, as far as this node read.
    found: usize,
}

/// Whom a fill asks.
struct Way {
    session: Arc<SessionEntry>,
    server: Arc<ServerEntry>,
    me: Option<Me>,
}

impl Fill<'_> {
    async fn read(&mut self) -> Result<(), Stop> {
        let directory = &self.app.directory;
        let session = directory.session(self.taken.tenant_id, self.taken.session_id).await?.ok_or(Stop::Gone)?;
        let server = directory.server(session.server).await?.ok_or(Stop::Gone)?;
        let digits = session.phone.as_deref().map(|phone| phone.trim_start_matches('+'));
        let me = digits.map(|digits| Me { id: format!("{digits}@c.us"), push_name: None, lid: None });
        let way = Way { session, server, me };
        if way.session.engine.can_read_back_by_bare_id() {
            return self.read_chat(&way, ALL).await;
        }
        let after = self.taken.cursor_after;
        for (place, chat) in self.chats(&way).await? {
            if after.is_some_and(|after| place <= after) {
                continue;
            }
            match self.read_chat(&way, &chat).await {
                Ok(()) | Err(Stop::Waha(CallError::NotFound)) => {}
                Err(Stop::Waha(fault @ (CallError::Server { .. } | CallError::TimedOut | CallError::BadAnswer(_))))
                    if self.taken.failures >= TRIES_OF_A_CHAT =>
                {
                    let session = self.taken.session_id;
                    tracing::warn!(session_id = %session, %fault, "a chat cannot be read back; it is left out");
                }
                Err(stop) => return Err(stop),
            }
            self.taken.cursor_after = Some(place);
            self.advance(0).await?;
        }
        Ok(())
    }

    /// The chats in which something happened since the fill's beginning, in an order that says nothing of them.
    async fn chats(&mut self, way: &Way) -> Result<BTreeMap<i64, String>, Stop> {
        let (mut seen, mut chats) = (HashSet::new(), BTreeMap::new());
        let from = self.taken.fill_from.timestamp();
        // A chat in which something happens meanwhile moves to the top, past this reader; so what is at the top by now is
        // looked at once more.
        for again in [false, true] {
            let mut offset = 0;
            loop {
                self.turn().await?;
                let name = &way.session.external_name;
                let (page, rows) = self.app.waha.chats_overview(&way.server.server, name, CHATS, offset).await?;
                let (before, mut older) = (seen.len(), rows > 0);
                for chat in page {
                    let recent = chat.last_message_at.is_some_and(|at| at.timestamp() >= from);
                    older &= !recent;
                    if recent {
                        chats.insert(place(&chat.id), chat.id.clone());
                    }
                    seen.insert(chat.id);
                }
                if rows == 0 || older || seen.len() == before {
                    break;
                }
                offset += CHATS;
            }
            if !again && offset == 0 {
                break;
            }
        }
        Ok(chats)
    }

    /// Reads a chat, or all of them, up to the fill's end.
    async fn read_chat(&mut self, way: &Way, chat: &str) -> Result<(), Stop> {
        // The progress within one of many chats is not kept: on another day it could be another chat's.
        let whole = chat == ALL;
        let (mut since, mut offset) = (self.taken.fill_from, 0);
        if whole {
            since = self.taken.cursor_since.unwrap_or(since);
            offset = u32::try_from(self.taken.cursor_offset).unwrap_or(0);
        }
        let mut last: Vec<String> = Vec::new();
        loop {
            let limit = self.page();
            let filter = MessageFilter {
                limit: Some(limit),
                offset: Some(offset),
                from_me: None,
                since: Some(since),
                until: Some(self.taken.fill_until),
                oldest_first: true,
            };
            self.turn().await?;
            let name = &way.session.external_name;
            let page = self.app.waha.message_page(&way.server.server, name, chat, &filter).await?;
            let ids: Vec<String> = page.messages.iter().map(|message| message.bare_id.clone()).collect();
            // The same again, although the next ones were asked for: the server does not mind the offset, and there is no more.
            if page.rows == 0 || (offset > 0 && !ids.is_empty() && ids == last) {
                return Ok(());
            }
            last = ids;
            let full = page.rows >= usize::try_from(limit).unwrap_or(usize::MAX);
            let found = self.keep(way, page.messages).await?;
            match page.latest.filter(|latest| full && page.ascending && latest.timestamp() > since.timestamp()) {
                Some(latest) => (since, offset) = (latest, 0),
                None => offset = offset.saturating_add(limit),
            }
            if whole {
                self.taken.cursor_since = Some(since);
                self.taken.cursor_offset = i64::from(offset);
            }
            self.advance(found).await?;
        }
    }

    /// How many messages are asked for at once; fewer after failures, since a page may be too much for an engine.
    fn page(&self) -> u32 {
        let page = self.app.config.gap_fill.page;
        (page >> self.taken.failures.clamp(0, 10)).max(SMALLEST_PAGE.min(page))
    }

    /// Waits until the server may be called.
    async fn turn(&mut self) -> Result<(), Stop> {
        if self.called {
            tokio::select! {
                _ = self.stop.wait_for(|stop| *stop) => {}
                () = self.app.clock.sleep(self.app.config.gap_fill.spacing()) => {}
            }
        }
        self.called = true;
        if *self.stop.borrow() { Err(Stop::Stopping) } else { Ok(()) }
    }

    async fn advance(&mut self, found: usize) -> Result<(), Stop> {
        self.found += found;
        match due::advance(self.app, &mut self.taken, found).await? {
            Some(true) => Ok(()),
            Some(false) => Err(Stop::NotWorking),
            None => Err(Stop::Lost),
        }
    }

    /// Stores those of `messages` that are missing; answers how many that were. One that the database refuses goes to the dead
    /// letters and holds up no other.
    async fn keep(&self, way: &Way, messages: Vec<WahaMessage>) -> Result<usize, DbError> {
        let (tenant, session) = (self.taken.tenant_id, self.taken.session_id);
        let mut found = 0;
        let mut parts = vec![messages];
        while let Some(mut part) = parts.pop() {
            if part.is_empty() {
                continue;
            }
            match apply::read_back(self.app, tenant, session, way.me.as_ref(), part.clone()).await {
                Ok(missing) => found += missing,
                Err(fault) if fault.is_transient() => return Err(fault),
                Err(_) if part.len() > 1 => {
                    let rest = part.split_off(part.len() / 2);
                    parts.extend([rest, part]);
                }
                Err(fault) => {
                    tracing::error!(%fault, "a message that was read back cannot be stored; it goes to the dead letters");
                    if let Some(message) = part.pop() {
                        self.set_aside(way, message, &fault).await?;
                    }
                }
            }
        }
        metrics::counter!("switchboard_gap_fill_messages_total", "by" => "read_back")
            .increment(u64::try_from(found).unwrap_or(0));
        Ok(found)
    }

    /// As if a webhook had told of it, so that it can be applied later like any other.
    async fn set_aside(&self, way: &Way, message: WahaMessage, fault: &DbError) -> Result<(), DbError> {
        let now = self.app.clock.now();
        let body = json!({
            "event": "message.any",
            "session": way.session.external_name,
            "timestamp": message.timestamp.unwrap_or(now).timestamp_millis(),
            "payload": message.raw,
        });
        let event = InboundEvent {
            tenant_id: self.taken.tenant_id,
            session_id: self.taken.session_id,
            waha_server_id: self.taken.waha_server_id,
            received_at: now,
            body: body.to_string(),
        };
        let kind = Some("message.any".to_owned());
        let letter = DeadLetter { event, kind, reason: Reason::Refused, cause: fault.to_string() };
        let keep = async |conn: &mut SystemConn| {
            dead_letters::keep(conn, &self.app.chance, now, std::slice::from_ref(&letter)).await
        };
        self.app.db.system(keep).await
    }
}

/// Where a chat stands in the order of chats: a digest, since an id may be a phone number.
fn place(chat: &str) -> i64 {
    let digest = Sha256::digest(chat.as_bytes());
    let mut bytes = [0; 8];
    for (byte, drawn) in bytes.iter_mut().zip(digest) {
        *byte = drawn;
    }
    i64::from_be_bytes(bytes)
}
