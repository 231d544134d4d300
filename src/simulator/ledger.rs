//! What each recipient saw, and every call that was made: the judge of "one message, one effect".

use std::collections::HashMap;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;

use super::content::{Content, SeenFile};

/// A snapshot of everything that was posted and seen.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Ledger {
    /// Outbound messages in the order WhatsApp got them.
    pub entries: Vec<LedgerEntry>,
    /// Inbound messages, in the order they came.
    pub inbound: Vec<LedgerEntry>,
    /// Every POST of a send, refused ones too, in the order they began.
    pub posts: Vec<PostRecord>,
    /// Every other call that has an effect or asks WhatsApp, in the order they began: `startTyping`, `stopTyping`, `sendSeen`,
    /// `presence`, `reaction`, `edit`, `revoke`, `read`, `check-exists`, `message`, `messages`, `create`, `update`, `start`,
    /// `stop`, `restart`, `logout`, `delete`.
    pub calls: Vec<PostRecord>,
}

/// One message: at most one bubble, however often it was posted, unless repeats are set to double.
#[derive(Clone, Debug, Serialize)]
pub struct LedgerEntry {
    /// Order of arrival over all sessions; of what the recipient has, the order of appearance.
    pub sequence: u64,
    /// The session it belongs to.
    pub session: String,
    /// The other side's chat id.
    pub chat: String,
    /// The bare message id.
    pub id: String,
    /// `text`, `image`, `poll`, …
    pub kind: &'static str,
    /// Text or caption, as first posted or last edited.
    pub text: String,
    /// The file, of image, file, voice and video.
    pub file: Option<SeenFile>,
    /// What the kind has beyond text and file, as WAHA was given it: `poll`, `latitude`, `contacts`, `reply_to`, `mentions`, …
    pub details: Value,
    /// Whether the recipient has a bubble.
    pub seen: bool,
    /// How many bubbles the recipient has.
    pub bubbles: u32,
    /// Whether its text was changed after it was sent.
    pub edited: bool,
    /// Whether it was taken back for everyone.
    pub revoked: bool,
    /// The session's own reaction; empty for none.
    pub reaction: String,
    /// Inbound: whether the session has shown that it read it.
    pub read: bool,
    /// When the engine handed it to WhatsApp for the first time.
    pub first_seen: DateTime<Utc>,
    /// The highest ack so far: -1 refused, 0 pending, 1 server, 2 device, 3 read.
    pub ack: i8,
    /// How many POSTs carried this id.
    pub post_count: u32,
    /// A later POST with the same id said something else, which nobody saw.
    pub altered: bool,
    /// Its POSTs that reached the engine.
    pub posts: Vec<PostRecord>,
}

/// One call, from the first byte understood to the answer.
#[derive(Clone, Debug, Serialize)]
pub struct PostRecord {
    /// The session it is about.
    pub session: String,
    /// `sendText`, `sendImage`, …
    pub endpoint: &'static str,
    /// The chat it names, if any.
    pub chat: Option<String>,
    /// The message id asked for, if any; of other calls what they are about: a message, a phone, a presence.
    pub requested_id: Option<String>,
    /// The text or caption of a send.
    pub text: Option<String>,
    /// Whether the session was WORKING when it began.
    pub working: bool,
    /// When it began.
    pub started: DateTime<Utc>,
    /// When it was answered or given up by the caller; none while it is under way.
    pub ended: Option<DateTime<Utc>>,
    /// Orders starts and ends over the whole simulator, finer than any clock.
    pub started_tick: u64,
    /// As `started_tick`; none while it is under way.
    pub ended_tick: Option<u64>,
    /// The status answered; none when it never was.
    pub status: Option<u16>,
}

/// The messages of one session, in and out; outlives the session.
pub(super) struct Mailbox {
    pub session: Arc<str>,
    entries: Vec<Entry>,
    by_id: HashMap<Box<str>, u32>,
    by_chat: HashMap<Arc<str>, Vec<u32>>,
    posts: Vec<Post>,
}

/// One message as the engine's store has it.
pub(super) struct Entry {
    pub sequence: u64,
    pub chat: Arc<str>,
    pub id: Box<str>,
    pub kind: &'static str,
    pub text: Box<str>,
    pub content: Option<Arc<Content>>,
    pub from_me: bool,
    pub at: DateTime<Utc>,
    pub ack: i8,
    pub edited: bool,
    pub revoked: bool,
    pub reaction: Option<Box<str>>,
    pub read: bool,
    bubbles: u32,
    /// Order and time of the first bubble; of the arrival while there is none.
    appeared: (u64, DateTime<Utc>),
    altered: bool,
    post_count: u32,
    /// Another chat's message with the same id.
    same_id: Option<u32>,
}

struct Post {
    start: PostStart,
    ended: Option<(DateTime<Utc>, u64)>,
    status: Option<u16>,
    entry: Option<u32>,
}

/// A call that begins.
pub(super) struct PostStart {
    pub endpoint: &'static str,
    pub is_send: bool,
    pub chat: Option<Box<str>>,
    pub requested_id: Option<Box<str>>,
    pub text: Option<Box<str>>,
    pub working: bool,
    pub at: DateTime<Utc>,
    pub tick: u64,
}

/// What is put down about a message.
pub(super) struct Arrival<'a> {
    pub sequence: u64,
    pub chat: &'a str,
    pub id: &'a str,
    pub kind: &'static str,
    pub text: &'a str,
    pub content: Option<Arc<Content>>,
    pub from_me: bool,
    pub seen: bool,
    /// Whether a repeat of the id shows another bubble.
    pub repeats_show: bool,
    pub at: DateTime<Utc>,
    pub ack: i8,
}

impl Mailbox {
    pub fn new(session: Arc<str>) -> Self {
        Self { session, entries: Vec::new(), by_id: HashMap::new(), by_chat: HashMap::new(), posts: Vec::new() }
    }

    /// Puts a message down; true when it is new to the recipient: its id was not there before in this chat, or had reached
    /// nobody.
    pub fn arrive(&mut self, arrival: &Arrival<'_>) -> (u32, bool) {
        if let Some(index) = self.find(Some(arrival.chat), arrival.id) {
            let Some(entry) = self.entries.get_mut(index as usize) else { return (index, false) };
            entry.post_count = entry.post_count.saturating_add(1);
            entry.altered |= *entry.text != *arrival.text || entry.content != arrival.content;
            let first = arrival.seen && entry.bubbles == 0;
            if first {
                entry.appeared = (arrival.sequence, arrival.at);
                entry.ack = entry.ack.max(arrival.ack);
            }
            if first || (arrival.seen && arrival.repeats_show) {
                entry.bubbles = entry.bubbles.saturating_add(1);
            }
            return (index, first);
        }
        let index = u32::try_from(self.entries.len()).unwrap_or(u32::MAX);
        let chat = match self.by_chat.get_key_value(arrival.chat) {
            Some((chat, _)) => Arc::clone(chat),
            None => Arc::from(arrival.chat),
        };
        let same_id = self.by_id.insert(arrival.id.into(), index);
        self.by_chat.entry(Arc::clone(&chat)).or_default().push(index);
        self.entries.push(Entry {
            sequence: arrival.sequence,
            chat,
            id: arrival.id.into(),
            kind: arrival.kind,
            text: arrival.text.into(),
            content: arrival.content.clone(),
            from_me: arrival.from_me,
            at: arrival.at,
            ack: arrival.ack,
            edited: false,
            revoked: false,
            reaction: None,
            read: false,
            bubbles: u32::from(arrival.seen),
            appeared: (arrival.sequence, arrival.at),
            altered: false,
            post_count: 1,
            same_id,
        });
        (index, true)
    }

    /// The newest message with this id, in `chat` or anywhere.
    pub fn find(&self, chat: Option<&str>, id: &str) -> Option<u32> {
        let mut next = self.by_id.get(id).copied();
        while let Some(index) = next {
            let entry = self.entries.get(index as usize)?;
            if chat.is_none_or(|chat| *entry.chat == *chat) {
                return Some(index);
            }
            next = entry.same_id;
        }
        None
    }

    pub fn get(&self, index: u32) -> Option<&Entry> {
        self.entries.get(index as usize)
    }

    pub fn get_mut(&mut self, index: u32) -> Option<&mut Entry> {
        self.entries.get_mut(index as usize)
    }

    /// Raises the ack, never lowers it; -1 counts only while nothing is delivered.
    pub fn ack(&mut self, index: u32, ack: i8) {
        if let Some(entry) = self.entries.get_mut(index as usize)
            && (ack > entry.ack || (ack == -1 && entry.ack < 2))
        {
            entry.ack = ack;
        }
    }

    /// Whether there is a conversation with this chat: somebody wrote, or got a message.
    pub fn has_talked(&self, chat: &str) -> bool {
        let entries = self.by_chat.get(chat).map(Vec::as_slice).unwrap_or_default();
        entries.iter().filter_map(|index| self.get(*index)).any(|entry| !entry.from_me || entry.bubbles > 0)
    }

    /// The session shows that it has read a chat's inbound messages: those named, or all.
    pub fn read(&mut self, chat: &str, ids: &[&str]) {
        let of_chat = self.by_chat.get(chat).map(Vec::as_slice).unwrap_or_default();
        for index in of_chat {
            if let Some(entry) = self.entries.get_mut(*index as usize)
                && !entry.from_me
                && (ids.is_empty() || ids.contains(&entry.id.as_ref()))
            {
                entry.read = true;
            }
        }
    }

    /// Messages newest first, of one chat or of all.
    pub fn newest<'a>(&'a self, chat: Option<&str>) -> Box<dyn Iterator<Item = &'a Entry> + 'a> {
        match chat {
            None => Box::new(self.entries.iter().rev()),
            Some(chat) => {
                let of_chat = self.by_chat.get(chat).map(Vec::as_slice).unwrap_or_default();
                Box::new(of_chat.iter().rev().filter_map(|index| self.entries.get(*index as usize)))
            }
        }
    }

    /// The chats that have messages.
    pub fn chats(&self) -> impl Iterator<Item = &Arc<str>> {
        self.by_chat.keys()
    }

    pub fn post_begins(&mut self, start: PostStart) -> usize {
        self.posts.push(Post { start, ended: None, status: None, entry: None });
        self.posts.len() - 1
    }

    pub fn post_made(&mut self, post: usize, entry: u32) {
        if let Some(post) = self.posts.get_mut(post) {
            post.entry = Some(entry);
        }
    }

    pub fn post_ends(&mut self, post: usize, status: Option<u16>, ended: DateTime<Utc>, tick: u64) {
        if let Some(post) = self.posts.get_mut(post)
            && post.ended.is_none()
        {
            post.ended = Some((ended, tick));
            post.status = status;
        }
    }

    /// How many bubbles its recipients have.
    pub fn seen(&self) -> usize {
        self.entries.iter().filter(|entry| entry.from_me && entry.bubbles > 0).count()
    }

    pub fn clear(&mut self) {
        *self = Self::new(Arc::clone(&self.session));
    }

    /// Copies everything into `ledger`; the caller sorts it.
    pub fn report(&self, ledger: &mut Ledger) {
        let mut of_entry: HashMap<u32, Vec<PostRecord>> = HashMap::new();
        for post in &self.posts {
            let record = self.record(post);
            if let Some(entry) = post.entry {
                of_entry.entry(entry).or_default().push(record.clone());
            }
            if post.start.is_send {
                ledger.posts.push(record);
            } else {
                ledger.calls.push(record);
            }
        }
        for (index, entry) in self.entries.iter().enumerate() {
            let posts = u32::try_from(index).ok().and_then(|index| of_entry.remove(&index)).unwrap_or_default();
            let side = if entry.from_me { &mut ledger.entries } else { &mut ledger.inbound };
            side.push(self.entry(entry, posts));
        }
    }

    fn entry(&self, entry: &Entry, posts: Vec<PostRecord>) -> LedgerEntry {
        let (sequence, first_seen) = entry.appeared;
        let content = entry.content.as_deref();
        LedgerEntry {
            sequence,
            session: self.session.as_ref().to_owned(),
            chat: entry.chat.as_ref().to_owned(),
            id: entry.id.as_ref().to_owned(),
            kind: entry.kind,
            text: entry.text.as_ref().to_owned(),
            file: content.and_then(|content| content.file.clone()),
            details: content.map_or(Value::Null, |content| content.details.clone()),
            seen: entry.bubbles > 0,
            bubbles: entry.bubbles,
            edited: entry.edited,
            revoked: entry.revoked,
            reaction: entry.reaction.as_deref().unwrap_or_default().to_owned(),
            read: entry.read,
            first_seen,
            ack: entry.ack,
            post_count: entry.post_count,
            altered: entry.altered,
            posts,
        }
    }

    fn record(&self, post: &Post) -> PostRecord {
        let start = &post.start;
        PostRecord {
            session: self.session.as_ref().to_owned(),
            endpoint: start.endpoint,
            chat: start.chat.as_deref().map(str::to_owned),
            requested_id: start.requested_id.as_deref().map(str::to_owned),
            text: start.text.as_deref().map(str::to_owned),
            working: start.working,
            started: start.at,
            ended: post.ended.map(|(at, _)| at),
            started_tick: start.tick,
            ended_tick: post.ended.map(|(_, tick)| tick),
            status: post.status,
        }
    }
}
