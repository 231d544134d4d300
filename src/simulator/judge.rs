//! Questions a test puts to the ledger.

use std::collections::HashMap;

use chrono::TimeDelta;

use super::ledger::{Ledger, LedgerEntry, PostRecord};

/// The calls that change a session's life.
const LIFECYCLE: [&str; 7] = ["create", "update", "start", "stop", "restart", "logout", "delete"];

impl Ledger {
    /// The entry of one message.
    #[must_use]
    pub fn entry(&self, session: &str, id: &str) -> Option<&LedgerEntry> {
        self.entries.iter().find(|entry| entry.session == session && entry.id == id)
    }

    /// The inbound message with this id.
    #[must_use]
    pub fn received(&self, session: &str, id: &str) -> Option<&LedgerEntry> {
        self.inbound.iter().find(|entry| entry.session == session && entry.id == id)
    }

    /// The texts one session's recipients saw, in order.
    #[must_use]
    pub fn texts(&self, session: &str) -> Vec<&str> {
        let seen = self.entries.iter().filter(|entry| entry.session == session && entry.seen);
        seen.map(|entry| entry.text.as_str()).collect()
    }

    /// What one recipient saw of one session, in order.
    #[must_use]
    pub fn chat(&self, session: &str, chat: &str) -> Vec<&LedgerEntry> {
        let of_chat = |entry: &&LedgerEntry| entry.session == session && entry.chat == chat && entry.seen;
        self.entries.iter().filter(of_chat).collect()
    }

    /// How many bubbles say exactly `text`, over all sessions and chats.
    #[must_use]
    pub fn bubbles(&self, text: &str) -> usize {
        let those = self.entries.iter().filter(|entry| entry.text == text);
        those.map(|entry| usize::try_from(entry.bubbles).unwrap_or(usize::MAX)).sum()
    }

    /// POSTs of a send whose text or caption was exactly `text`, refused ones too, over all sessions and chats.
    #[must_use]
    pub fn posts_saying(&self, text: &str) -> Vec<&PostRecord> {
        self.posts.iter().filter(|post| post.text.as_deref() == Some(text)).collect()
    }

    /// POSTs of sends that began while their session was not WORKING.
    #[must_use]
    pub fn sent_while_not_working(&self) -> Vec<&PostRecord> {
        self.posts.iter().filter(|post| !post.working).collect()
    }

    /// The calls of one name that were made for a session: see [`Ledger::calls`].
    #[must_use]
    pub fn calls_of(&self, session: &str, endpoint: &str) -> Vec<&PostRecord> {
        self.calls.iter().filter(|call| call.session == session && call.endpoint == endpoint).collect()
    }

    /// The calls that started, stopped or otherwise changed a session.
    #[must_use]
    pub fn lifecycle(&self, session: &str) -> Vec<&PostRecord> {
        let those = |call: &&PostRecord| call.session == session && LIFECYCLE.contains(&call.endpoint);
        self.calls.iter().filter(those).collect()
    }

    /// How long the session showed "typing…" in the chat right before this POST of a send; none when it did not, or when
    /// another message of the session left in between.
    #[must_use]
    pub fn typed_before(&self, post: &PostRecord) -> Option<TimeDelta> {
        let earlier = |other: &&PostRecord| other.session == post.session && other.started_tick < post.started_tick;
        let last_send = self.posts.iter().filter(earlier).map(|other| other.started_tick).max().unwrap_or(0);
        let in_chat = |call: &&PostRecord| earlier(call) && call.started_tick > last_send && call.chat == post.chat;
        let last = |name: &str| self.calls.iter().filter(in_chat).rfind(|call| call.endpoint == name);
        let began = last("startTyping")?;
        let ended = last("stopTyping").filter(|stop| stop.started_tick > began.started_tick);
        Some(ended.map_or(post.started, |stop| stop.started) - began.started)
    }

    /// The most POSTs of sends that one session had under way at the same time.
    #[must_use]
    pub fn most_at_once(&self, session: &str) -> usize {
        let mut steps: Vec<(u64, bool)> = Vec::new();
        for post in self.posts.iter().filter(|post| post.session == session) {
            steps.push((post.started_tick, true));
            steps.extend(post.ended_tick.map(|tick| (tick, false)));
        }
        steps.sort_unstable();
        let (mut now, mut most) = (0_usize, 0);
        for (_, begins) in steps {
            now = if begins { now + 1 } else { now.saturating_sub(1) };
            most = most.max(now);
        }
        most
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
