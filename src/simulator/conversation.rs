//! The final truth of a session's conversations: what a faithful record of everything that was told has to say in the end.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use super::content::SeenFile;
use super::control::{Control, ControlError};
use super::mailbox::Entry;
use super::numbers;
use super::sends::bare_id;
use super::world::lock;
use super::writing::told_name;

/// All chats of one session.
#[derive(Clone, Debug, Serialize)]
pub struct Conversations {
    /// WAHA's session name.
    pub session: String,
    /// By id.
    pub chats: Vec<Conversation>,
}

/// One chat.
#[derive(Clone, Debug, Serialize)]
pub struct Conversation {
    /// Its id: `…@c.us` of a person whose number is known, by whichever id the messages were told.
    pub chat: String,
    /// The person's hidden id, where the number is known.
    pub lid: Option<String>,
    /// Oldest first, by WhatsApp's time and within a second in the order they came.
    pub messages: Vec<ConversationMessage>,
}

/// Who wrote a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// Somebody else.
    Inbound,
    /// The account.
    Outbound,
}

/// One message as it ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ConversationMessage {
    /// The bare id.
    pub id: String,
    /// The chat, as [`Conversation::chat`] has it.
    pub chat: String,
    /// Who wrote it.
    pub direction: Direction,
    /// `api` or, by the other side or the own phone, `app`.
    pub source: &'static str,
    /// In groups: who wrote it, by number where that is known.
    pub participant: Option<String>,
    /// The name its writer goes by; none of own ones.
    pub push_name: Option<String>,
    /// `text`, `image`, `file`, `voice`, `video`, `poll`, `location`, `contact`.
    pub kind: &'static str,
    /// Text, caption, a poll's question or a place's name, as last edited; empty when there is none. Of a revoked one, too.
    pub text: String,
    /// The same before the first edit; none when it was not edited.
    pub original: Option<String>,
    /// How often it was edited.
    pub edits: u32,
    /// Whether it was taken back.
    pub revoked: bool,
    /// Emoji by person (`…@c.us`; empty: the session's account); taken back ones are not there.
    pub reactions: BTreeMap<String, String>,
    /// Of polls: the options that each person chose last; none chosen is there, and empty.
    pub votes: BTreeMap<String, Vec<String>>,
    /// The highest ack: see [`super::LedgerEntry::ack`]. 2 or, once read on the phone, 3 of inbound ones.
    pub ack: i8,
    /// When it was written, in seconds since 1970.
    pub timestamp: i64,
    /// The bare id of the message it answers.
    pub reply_to: Option<String>,
    /// Its file.
    pub file: Option<SeenFile>,
    /// What its kind has beyond text and file: see [`super::LedgerEntry::details`].
    pub details: Value,
    /// Its content was never told: all that is known is that there is a message.
    pub stub: bool,
    /// Whether the recipient has it; always of inbound ones.
    pub seen: bool,
}

impl Conversations {
    /// The message with this bare id.
    #[must_use]
    pub fn message(&self, id: &str) -> Option<&ConversationMessage> {
        self.messages().find(|message| message.id == id)
    }

    /// All messages of all chats.
    pub fn messages(&self) -> impl Iterator<Item = &ConversationMessage> {
        self.chats.iter().flat_map(|chat| &chat.messages)
    }
}

impl Control {
    /// The final truth of a session's conversations.
    ///
    /// # Errors
    /// The session does not exist.
    pub fn conversation(&self, session: &str) -> Result<Conversations, ControlError> {
        let session = self.session(session)?;
        let mailbox = lock(&session.mailbox);
        let mut chats: BTreeMap<&str, Vec<&Entry>> = BTreeMap::new();
        for entry in mailbox.entries() {
            chats.entry(&entry.chat).or_default().push(entry);
        }
        let chats = chats.into_iter().map(|(chat, mut entries)| {
            entries.sort_by_key(|entry| (entry.at.timestamp(), entry.sequence));
            Conversation {
                chat: chat.to_owned(),
                lid: numbers::number_of(chat).map(|number| numbers::lid_of(&number)),
                messages: entries.into_iter().map(final_state).collect(),
            }
        });
        Ok(Conversations { session: session.name.as_ref().to_owned(), chats: chats.collect() })
    }
}

fn final_state(entry: &Entry) -> ConversationMessage {
    let more = entry.more.as_deref();
    let content = entry.content.as_deref();
    let details = content.map_or(Value::Null, |content| content.details.clone());
    let asked = || details.get("reply_to").and_then(Value::as_str).map(|id| bare_id(id).to_owned());
    let reply_to = more.and_then(|more| more.reply.as_ref()).map(|reply| reply.id.clone()).or_else(asked);
    let given = more.into_iter().flat_map(|more| &more.reactions);
    let votes = more.into_iter().flat_map(|more| &more.votes);
    ConversationMessage {
        id: entry.id.as_ref().to_owned(),
        chat: entry.chat.as_ref().to_owned(),
        direction: if entry.from_me { Direction::Outbound } else { Direction::Inbound },
        source: if entry.from_me && more.is_none_or(|more| !more.app) { "api" } else { "app" },
        participant: more.and_then(|more| more.participant.clone()),
        push_name: if entry.from_me { None } else { told_name(more) },
        kind: entry.kind,
        text: entry.text.as_ref().to_owned(),
        original: more.and_then(|more| more.original.as_deref()).map(str::to_owned),
        edits: entry.edits,
        revoked: entry.revoked,
        reactions: given
            .filter(|(_, given)| !given.emoji.is_empty())
            .map(|(person, given)| (person.clone(), given.emoji.clone()))
            .collect(),
        votes: votes.map(|(person, (_, options))| (person.clone(), options.clone())).collect(),
        ack: entry.ack,
        timestamp: entry.at.timestamp(),
        reply_to,
        file: content.and_then(|content| content.file.clone()),
        details,
        stub: more.is_some_and(|more| more.stub),
        seen: entry.is_seen(),
    }
}
