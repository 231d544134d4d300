//! WAHA's webhooks: are they genuine, whose are they, and what do they say.
//!
//! WAHA signs the raw body only, so a replay verifies too: dedupe by (session, event name, event id), since `message` and
//! `message.any` of one message share their id, and by (session, kind, bare message id), since engines repeat themselves.

use std::borrow::Cow;
use std::fmt;

use chrono::{DateTime, Utc};
use hmac::{Hmac, KeyInit, Mac};
use secrecy::{ExposeSecret, SecretBox, zeroize::Zeroize};
use serde::Deserialize;
use serde_json::Value;
use sha2::Sha512;

use super::engine::{Engine, SessionStatus};
use super::happenings::{CallStage, GroupChange, IncomingCall, LabelChange, Presence, Vote};
use super::id;
use super::message::{WahaMessage, ack, chat_of_message, first_text, from_me, milliseconds, person, seconds, text};
use super::session::{Me, Restriction};
use super::surrogates;

/// The header that holds the signature.
pub const SIGNATURE_HEADER: &str = "x-webhook-hmac";

/// Whether `header_hex` is the HMAC-SHA512 of `body` under one of `keys` (the current one and, after a rotation, the previous).
///
/// The algorithm is fixed, whatever the request's headers say; the comparison takes the same time wherever the difference is.
#[must_use]
pub fn verify<S>(keys: &[&SecretBox<S>], body: &[u8], header_hex: &str) -> bool
where
    S: Zeroize + AsRef<[u8]> + ?Sized,
{
    let mut claimed = [0; 64];
    if hex::decode_to_slice(header_hex.trim(), &mut claimed).is_err() {
        return false;
    }
    // All keys are tried, so that the time does not tell which one fits.
    keys.iter().fold(false, |genuine, key| {
        let fits = Hmac::<Sha512>::new_from_slice(key.expose_secret().as_ref())
            .is_ok_and(|mac| mac.chain_update(body).verify_slice(&claimed).is_ok());
        genuine | fits
    })
}

/// What is needed to find the key and to dedupe, before anything else of a body is believed.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Peek<'a> {
    /// The session's name.
    #[serde(borrow)]
    pub session: Cow<'a, str>,
    /// The event's name.
    #[serde(borrow)]
    pub event: Cow<'a, str>,
    /// The event's id; old servers send none.
    #[serde(default)]
    pub id: Option<String>,
}

/// Reads the session, name and id of an event without reading the rest; `None` when that cannot be.
#[must_use]
pub fn session_name(body: &[u8]) -> Option<Peek<'_>> {
    serde_json::from_slice(body).ok()
}

/// What an event tells of, as far as it has to be known before the event is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Glance {
    /// It only says that the engine has a message that was handed to it through its API, and WhatsApp not yet. Where the gateway
    /// chose the message's id, it knows that already.
    pub is_pending_echo: bool,
    /// When the message was written that it tells of.
    pub written_at: Option<DateTime<Utc>>,
}

/// Looks at `body`, an event named `event`.
#[must_use]
pub fn glance(event: &str, body: &[u8]) -> Glance {
    #[derive(Deserialize)]
    struct Told<'a> {
        #[serde(borrow)]
        payload: Payload<'a>,
    }
    #[derive(Deserialize)]
    struct Payload<'a> {
        #[serde(rename = "fromMe", default)]
        from_me: bool,
        #[serde(borrow, default)]
        source: Option<Cow<'a, str>>,
        #[serde(default)]
        ack: Option<i64>,
        #[serde(default)]
        timestamp: Value,
    }
    if !matches!(event, "message.any" | "message") {
        return Glance::default();
    }
    // What is not written as usual is read whole, later.
    let Ok(Told { payload }) = serde_json::from_slice::<Told<'_>>(body) else { return Glance::default() };
    Glance {
        is_pending_echo: event == "message.any"
            && payload.from_me
            && payload.source.as_deref() == Some("api")
            && payload.ack == Some(0),
        written_at: seconds(&payload.timestamp),
    }
}

/// Why a body is not an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WebhookError {
    /// Not JSON.
    #[error("the body is not JSON")]
    NotJson,
    /// A member without which an event means nothing is not there.
    #[error("the event has no usable {0}")]
    Missing(&'static str),
}

/// An event of WAHA's.
#[derive(Clone, Debug)]
pub struct WebhookEvent {
    /// Its id, the same on retries and for `message` and `message.any`; old servers send none.
    pub id: Option<String>,
    /// When it happened, to the millisecond; old servers do not say.
    pub timestamp: Option<DateTime<Utc>>,
    /// Its name.
    pub event: String,
    /// The session's name.
    pub session: String,
    /// The server's engine.
    pub engine: Option<Engine>,
    /// The paired account.
    pub me: Option<Me>,
    /// What happened.
    pub payload: Payload,
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Payload {
    /// A session changed its state, or says again which one it is in.
    SessionStatus(StatusChange),
    /// A message came into being, by either side.
    Message(Box<WahaMessage>),
    /// A message came further.
    Ack(Ack),
    /// Somebody reacted to a message.
    Reaction(Reaction),
    /// A message's text was changed.
    Edited(Edited),
    /// A message was taken back.
    Revoked(Revoked),
    /// A message is there and cannot be decrypted yet.
    Waiting(Box<WahaMessage>),
    /// Somebody voted in a poll.
    Vote(Vote),
    /// Somebody calls.
    Call(IncomingCall),
    /// A group changed.
    Group(GroupChange),
    /// Somebody is online, or typing.
    Presence(Presence),
    /// A label changed, or its place on a chat.
    Label(LabelChange),
    /// Something that needs no attention, such as a vote that could not be decrypted.
    Unimportant,
    /// Something this client does not follow.
    Other {
        /// The event's name.
        event: String,
    },
}

/// A session's state and how it got there.
#[derive(Clone, Debug)]
pub struct StatusChange {
    /// The state.
    pub status: SessionStatus,
    /// The last few states with the time they began, oldest first.
    pub statuses: Vec<(SessionStatus, DateTime<Utc>)>,
    /// How WhatsApp restricts the account, if it said so.
    pub restriction: Option<Restriction>,
}

/// How far a message came.
#[derive(Clone)]
pub struct Ack {
    /// Which message.
    pub bare_id: String,
    /// Its chat.
    pub chat_id: Option<String>,
    /// Whether it is an own message; only then the ack is about delivery.
    pub from_me: bool,
    /// -1 error, 0 pending, 1 server, 2 device, 3 read, 4 played; `None` when WAHA does not know.
    pub level: Option<i16>,
    /// In groups: whose device.
    pub participant: Option<String>,
    /// With an error: WhatsApp's number for it.
    pub error_code: Option<i64>,
}

/// A reaction.
#[derive(Clone)]
pub struct Reaction {
    /// The message reacted to.
    pub bare_id: String,
    /// Its chat.
    pub chat_id: Option<String>,
    /// Who reacted, if not the chat itself.
    pub participant: Option<String>,
    /// Whether the session's own account reacted.
    pub from_me: bool,
    /// The emoji; empty when the reaction was taken back.
    pub emoji: String,
    /// When.
    pub timestamp: Option<DateTime<Utc>>,
}

/// A changed message.
#[derive(Clone, Debug)]
pub struct Edited {
    /// The message that was changed.
    pub bare_id: String,
    /// The change: its body is the new text, and its id its own, but for browser engines, which repeat the message's.
    pub message: Box<WahaMessage>,
}

/// A message taken back.
#[derive(Clone, Debug)]
pub struct Revoked {
    /// Which message.
    pub bare_id: String,
    /// Its chat.
    pub chat_id: Option<String>,
    /// Whether the session's own account took it back.
    pub from_me: bool,
}

impl fmt::Debug for Ack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ack").field("bare_id", &self.bare_id).field("level", &self.level).finish_non_exhaustive()
    }
}

impl fmt::Debug for Reaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reaction").field("bare_id", &self.bare_id).finish_non_exhaustive()
    }
}

impl WebhookEvent {
    /// Reads an event. Unknown members and events are no error.
    ///
    /// # Errors
    /// When the body is not JSON, or a member without which the event means nothing is missing.
    pub fn parse(body: &[u8]) -> Result<Self, WebhookError> {
        let read = serde_json::from_slice(body).or_else(|_| serde_json::from_slice(&surrogates::mended(body)));
        let mut envelope: Value = read.map_err(|_| WebhookError::NotJson)?;
        let payload = envelope.get_mut("payload").map(Value::take).unwrap_or_default();
        let event = text(&envelope, "/event").ok_or(WebhookError::Missing("event"))?.to_owned();
        Ok(Self {
            id: text(&envelope, "/id").map(str::to_owned),
            timestamp: envelope.get("timestamp").and_then(milliseconds),
            session: text(&envelope, "/session").ok_or(WebhookError::Missing("session"))?.to_owned(),
            engine: first_text(&envelope, &["/engine", "/environment/engine"]).and_then(|name| name.parse().ok()),
            me: envelope.get("me").and_then(Me::from_value),
            payload: Payload::parse(&event, payload)?,
            event,
        })
    }
}

impl Payload {
    fn parse(event: &str, payload: Value) -> Result<Self, WebhookError> {
        Ok(match event {
            "session.status" => Self::SessionStatus(StatusChange::read(&payload)?),
            "message" | "message.any" => Self::Message(Box::new(message(payload)?)),
            "message.ack" | "message.ack.group" => Self::Ack(Ack::read(&payload)?),
            "message.reaction" => Self::Reaction(Reaction::read(&payload)?),
            "message.edited" => {
                let bare_id = payload.get("editedMessageId").and_then(id::from_id_member);
                let message = message(payload)?;
                Self::Edited(Edited {
                    bare_id: bare_id.unwrap_or_else(|| message.bare_id.clone()),
                    message: Box::new(message),
                })
            }
            "message.revoked" => Self::Revoked(Revoked::read(&payload)?),
            "message.waiting" => Self::Waiting(Box::new(message(payload)?)),
            "poll.vote" => Self::Vote(Vote::read(&payload).ok_or(WebhookError::Missing("poll or voter"))?),
            "call.received" => Self::call(CallStage::Received, &payload)?,
            "call.accepted" => Self::call(CallStage::Accepted, &payload)?,
            "call.rejected" => Self::call(CallStage::Rejected, &payload)?,
            "presence.update" => {
                Self::Presence(Presence::read(&payload).ok_or(WebhookError::Missing("chat of the presence"))?)
            }
            "poll.vote.failed" | "state.change" | "engine.event" | "group.join" | "group.leave" | "chat.archive" => {
                Self::Unimportant
            }
            name => match (name.strip_prefix("group.v2."), name.strip_prefix("label.")) {
                (Some(happening @ ("join" | "leave" | "participants" | "update")), _) => Self::Group(
                    GroupChange::read(happening, &payload).ok_or(WebhookError::Missing("group of the change"))?,
                ),
                (_, Some(happening @ ("upsert" | "deleted" | "chat.added" | "chat.deleted"))) => {
                    Self::Label(LabelChange::read(happening, &payload).ok_or(WebhookError::Missing("label or chat"))?)
                }
                _ => Self::Other { event: name.to_owned() },
            },
        })
    }
}

impl Payload {
    fn call(stage: CallStage, payload: &Value) -> Result<Self, WebhookError> {
        IncomingCall::read(stage, payload).map(Self::Call).ok_or(WebhookError::Missing("id or caller"))
    }
}

fn message(payload: Value) -> Result<WahaMessage, WebhookError> {
    WahaMessage::from_value(payload).ok_or(WebhookError::Missing("message id or chat"))
}

impl StatusChange {
    fn read(payload: &Value) -> Result<Self, WebhookError> {
        let entries = payload.get("statuses").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        Ok(Self {
            status: SessionStatus::from_name(text(payload, "/status").ok_or(WebhookError::Missing("status"))?),
            statuses: entries
                .iter()
                .filter_map(|entry| {
                    let status = SessionStatus::from_name(text(entry, "/status")?);
                    Some((status, milliseconds(entry.get("timestamp")?)?))
                })
                .collect(),
            restriction: payload.get("data").and_then(Restriction::from_value),
        })
    }
}

impl Ack {
    fn read(payload: &Value) -> Result<Self, WebhookError> {
        let from_me = from_me(payload);
        Ok(Self {
            bare_id: id::from_message(payload).ok_or(WebhookError::Missing("message id"))?,
            chat_id: chat_of_message(payload, from_me),
            from_me,
            level: ack(payload),
            participant: text(payload, "/participant").map(person),
            error_code: payload
                .pointer("/error/code")
                .and_then(|code| code.as_i64().or_else(|| code.as_str()?.parse().ok())),
        })
    }
}

impl Reaction {
    fn read(payload: &Value) -> Result<Self, WebhookError> {
        let from_me = from_me(payload);
        let target = payload.pointer("/reaction/messageId").and_then(id::from_id_member);
        Ok(Self {
            bare_id: target.ok_or(WebhookError::Missing("message id"))?,
            chat_id: chat_of_message(payload, from_me),
            participant: text(payload, "/participant").map(person),
            from_me,
            emoji: payload.pointer("/reaction/text").and_then(Value::as_str).unwrap_or_default().to_owned(),
            timestamp: payload.get("timestamp").and_then(seconds),
        })
    }
}

impl Revoked {
    fn read(payload: &Value) -> Result<Self, WebhookError> {
        let known = ["after", "before"].into_iter().filter_map(|name| payload.get(name)).find(|side| side.is_object());
        let target = payload
            .get("revokedMessageId")
            .and_then(id::from_id_member)
            .or_else(|| payload.get("before").and_then(id::from_message))
            .or_else(|| payload.get("after").and_then(id::from_message));
        let from_me = known.is_some_and(from_me);
        Ok(Self {
            bare_id: target.ok_or(WebhookError::Missing("message id"))?,
            chat_id: known.and_then(|side| chat_of_message(side, from_me)),
            from_me,
        })
    }
}
