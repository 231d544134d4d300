//! What each recipient saw, and every POST that was made: the judge of "one message, one effect".

use std::collections::HashMap;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde::Serialize;

/// A snapshot of everything that was posted and seen.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Ledger {
    /// Outbound messages in the order WhatsApp got them.
    pub entries: Vec<LedgerEntry>,
    /// Every POST of a send, refused ones too, in the order they began.
    pub posts: Vec<PostRecord>,
}

/// One message: at most one bubble, however often it was posted.
#[derive(Clone, Debug, Serialize)]
pub struct LedgerEntry {
    /// Order of arrival over all sessions.
    pub sequence: u64,
    /// The session that sent it.
    pub session: String,
    /// The recipient's chat id.
    pub chat: String,
    /// The bare message id.
    pub id: String,
    /// `text`, `image`, `poll`, …
    pub kind: &'static str,
    /// Text or caption, as first posted or last edited.
    pub text: String,
    /// Whether the recipient has a bubble.
    pub seen: bool,
    /// When the engine handed it to WhatsApp for the first time.
    pub first_seen: DateTime<Utc>,
    /// The highest ack so far: -1 refused, 0 pending, 1 server, 2 device, 3 read.
    pub ack: i8,
    /// How many POSTs carried this id.
    pub post_count: u32,
    /// A later POST with the same id had another text, which nobody saw.
    pub altered: bool,
    /// Its POSTs that reached the engine.
    pub posts: Vec<PostRecord>,
}

/// One POST of a send, from the first byte understood to the answer.
#[derive(Clone, Debug, Serialize)]
pub struct PostRecord {
    /// The session named in the body.
    pub session: String,
    /// `sendText`, `sendImage`, …
    pub endpoint: &'static str,
    /// The chat named in the body, if any.
    pub chat: Option<String>,
    /// The message id asked for, if any.
    pub requested_id: Option<String>,
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

impl Ledger {
    /// The entry of one message.
    #[must_use]
    pub fn entry(&self, session: &str, id: &str) -> Option<&LedgerEntry> {
        self.entries.iter().find(|entry| entry.session == session && entry.id == id)
    }

    /// The texts one session's recipients saw, in order.
    #[must_use]
    pub fn texts(&self, session: &str) -> Vec<&str> {
        let seen = self.entries.iter().filter(|entry| entry.session == session && entry.seen);
        seen.map(|entry| entry.text.as_str()).collect()
    }

    /// How many bubbles say exactly `text`, over all sessions and chats.
    #[must_use]
    pub fn bubbles(&self, text: &str) -> usize {
        self.entries.iter().filter(|entry| entry.seen && entry.text == text).count()
    }

    /// Pairs of POSTs of one session that were under way at the same time.
    #[must_use]
    pub fn overlaps(&self) -> Vec<(PostRecord, PostRecord)> {
        let mut open: HashMap<&str, &PostRecord> = HashMap::new();
        let mut found = Vec::new();
        for post in &self.posts {
            if let Some(before) = open.get(post.session.as_str())
                && before.ended_tick.is_none_or(|ended| ended > post.started_tick)
            {
                found.push(((*before).clone(), post.clone()));
            }
            let lasts = |post: &PostRecord| post.ended_tick.unwrap_or(u64::MAX);
            let known = open.entry(&post.session).or_insert(post);
            if lasts(post) > lasts(known) {
                *known = post;
            }
        }
        found
    }
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
    pub from_me: bool,
    pub seen: bool,
    pub at: DateTime<Utc>,
    pub ack: i8,
    pub revoked: bool,
    altered: bool,
    post_count: u32,
    /// Another chat's message with the same id.
    same_id: Option<u32>,
}

struct Post {
    endpoint: &'static str,
    chat: Option<Box<str>>,
    requested_id: Option<Box<str>>,
    started: DateTime<Utc>,
    started_tick: u64,
    ended: Option<(DateTime<Utc>, u64)>,
    status: Option<u16>,
    entry: Option<u32>,
}

/// What is put down about a message.
pub(super) struct Arrival<'a> {
    pub sequence: u64,
    pub chat: &'a str,
    pub id: &'a str,
    pub kind: &'static str,
    pub text: &'a str,
    pub from_me: bool,
    pub seen: bool,
    pub at: DateTime<Utc>,
    pub ack: i8,
}

impl Mailbox {
    pub fn new(session: Arc<str>) -> Self {
        Self { session, entries: Vec::new(), by_id: HashMap::new(), by_chat: HashMap::new(), posts: Vec::new() }
    }

    /// Puts a message down; true when this id was new in this chat.
    pub fn arrive(&mut self, arrival: &Arrival<'_>) -> (u32, bool) {
        if let Some(index) = self.find(Some(arrival.chat), arrival.id) {
            if let Some(entry) = self.entries.get_mut(index as usize) {
                entry.post_count = entry.post_count.saturating_add(1);
                entry.altered |= *entry.text != *arrival.text;
            }
            return (index, false);
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
            from_me: arrival.from_me,
            seen: arrival.seen,
            at: arrival.at,
            ack: arrival.ack,
            revoked: false,
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

    pub fn post_begins(
        &mut self,
        endpoint: &'static str,
        chat: Option<&str>,
        requested_id: Option<&str>,
        started: DateTime<Utc>,
        started_tick: u64,
    ) -> usize {
        self.posts.push(Post {
            endpoint,
            chat: chat.map(Into::into),
            requested_id: requested_id.map(Into::into),
            started,
            started_tick,
            ended: None,
            status: None,
            entry: None,
        });
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
        self.entries.iter().filter(|entry| entry.from_me && entry.seen).count()
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
            ledger.posts.push(record);
        }
        for (index, entry) in self.entries.iter().enumerate().filter(|(_, entry)| entry.from_me) {
            let posts = u32::try_from(index).ok().and_then(|index| of_entry.remove(&index)).unwrap_or_default();
            ledger.entries.push(LedgerEntry {
                sequence: entry.sequence,
                session: self.session.as_ref().to_owned(),
                chat: entry.chat.as_ref().to_owned(),
                id: entry.id.as_ref().to_owned(),
                kind: entry.kind,
                text: entry.text.as_ref().to_owned(),
                seen: entry.seen,
                first_seen: entry.at,
                ack: entry.ack,
                post_count: entry.post_count,
                altered: entry.altered,
                posts,
            });
        }
    }

    fn record(&self, post: &Post) -> PostRecord {
        PostRecord {
            session: self.session.as_ref().to_owned(),
            endpoint: post.endpoint,
            chat: post.chat.as_deref().map(str::to_owned),
            requested_id: post.requested_id.as_deref().map(str::to_owned),
            started: post.started,
            ended: post.ended.map(|(at, _)| at),
            started_tick: post.started_tick,
            ended_tick: post.ended.map(|(_, tick)| tick),
            status: post.status,
        }
    }
}
