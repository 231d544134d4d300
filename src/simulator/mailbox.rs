//! The messages of one session as the engine's store has them, and the calls that were made for it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde_json::Value;

use super::circles::Circles;
use super::content::Content;
use super::ledger::{Ledger, LedgerEntry, PostRecord};
use super::saying::Naming;

/// The messages of one session, in and out; outlives the session.
pub(super) struct Mailbox {
    pub session: Arc<str>,
    entries: Vec<Entry>,
    by_id: HashMap<Box<str>, u32>,
    by_chat: HashMap<Arc<str>, Vec<u32>>,
    posts: Vec<Post>,
    /// All messages by WhatsApp's time; those of one second as they came. The lists of the chats are in that order, too.
    in_time: Vec<u32>,
    /// Groups and labels; what clears the ledger leaves them.
    pub circles: Circles,
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
    pub edits: u32,
    pub revoked: bool,
    pub reaction: Option<Box<str>>,
    /// What most messages lack.
    pub more: Option<Box<More>>,
    pub read: bool,
    bubbles: u32,
    /// Order and time of the first bubble; of the arrival while there is none.
    appeared: (u64, DateTime<Utc>),
    altered: bool,
    post_count: u32,
    /// Another chat's message with the same id.
    same_id: Option<u32>,
}

/// What most messages lack.
#[derive(Clone, Debug, Default)]
pub(super) struct More {
    /// In groups: who wrote it, by phone number where that is known.
    pub participant: Option<String>,
    pub push_name: Option<String>,
    /// Written on the phone, not by way of the API.
    pub app: bool,
    pub naming: Naming,
    pub reply: Option<Reply>,
    /// Its content could not be decrypted, and was not told so far.
    pub stub: bool,
    /// What it said before it was changed.
    pub original: Option<Box<str>>,
    /// Reactions of others.
    pub reactions: BTreeMap<String, Given>,
    /// The latest vote of each, with its milliseconds since 1970.
    pub votes: BTreeMap<String, (i64, Vec<String>)>,
    /// The file, where the bytes are here.
    pub file: Option<String>,
}

/// The message that is answered.
#[derive(Clone, Debug)]
pub(super) struct Reply {
    pub id: String,
    pub participant: Option<String>,
    pub body: Option<String>,
}

/// One reaction.
#[derive(Clone, Debug)]
pub(super) struct Given {
    pub emoji: String,
    pub at_ms: i64,
}

impl Entry {
    pub fn more_mut(&mut self) -> &mut More {
        self.more.get_or_insert_default()
    }

    /// Whether its recipient has it.
    pub fn is_seen(&self) -> bool {
        self.bubbles > 0
    }

    /// The text is another one now.
    pub fn edit(&mut self, text: &str) {
        self.edits = self.edits.saturating_add(1);
        let before = std::mem::replace(&mut self.text, text.into());
        self.more_mut().original.get_or_insert(before);
    }
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
    pub more: Option<Box<More>>,
}

impl Mailbox {
    pub fn new(session: Arc<str>) -> Self {
        Self {
            session,
            entries: Vec::new(),
            by_id: HashMap::new(),
            by_chat: HashMap::new(),
            posts: Vec::new(),
            in_time: Vec::new(),
            circles: Circles::default(),
        }
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
        let of_chat = self.by_chat.entry(Arc::clone(&chat)).or_default();
        for list in [of_chat, &mut self.in_time] {
            let second = |index: &u32| self.entries.get(*index as usize).map(|entry| entry.at.timestamp());
            let at = Some(arrival.at.timestamp());
            // Most messages are the newest.
            let place = match list.last() {
                Some(last) if second(last) > at => list.partition_point(|index| second(index) <= at),
                _ => list.len(),
            };
            list.insert(place, index);
        }
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
            edits: 0,
            revoked: false,
            reaction: None,
            more: arrival.more.clone(),
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

    /// All of a chat's inbound messages are read now; those that were not before.
    pub fn read_now(&mut self, chat: &str) -> Vec<u32> {
        let of_chat = self.by_chat.get(chat).map(Vec::as_slice).unwrap_or_default();
        let mut unread = Vec::new();
        for index in of_chat {
            if let Some(entry) = self.entries.get_mut(*index as usize).filter(|entry| !entry.from_me && !entry.read) {
                entry.read = true;
                unread.push(*index);
            }
        }
        unread
    }

    /// Messages newest first, of one chat or of all.
    pub fn newest<'a>(&'a self, chat: Option<&str>) -> impl Iterator<Item = &'a Entry> + use<'a> {
        let list = match chat {
            None => self.in_time.as_slice(),
            Some(chat) => self.by_chat.get(chat).map(Vec::as_slice).unwrap_or_default(),
        };
        list.iter().rev().filter_map(|index| self.entries.get(*index as usize))
    }

    /// All messages, in the order they came.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
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
        let circles = std::mem::take(&mut self.circles);
        *self = Self { circles, ..Self::new(Arc::clone(&self.session)) };
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
            edited: entry.edits > 0,
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
