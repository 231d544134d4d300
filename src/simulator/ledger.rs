//! What each recipient saw, and every call that was made: the judge of "one message, one effect".

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;

use super::content::SeenFile;

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
    /// `stop`, `restart`, `logout`, `delete`, `file`, `call-reject`.
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
