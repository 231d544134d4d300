//! Messages as WAHA shows them, in webhooks and when read back.

use std::fmt;

use chrono::{DateTime, Utc};
use serde_json::Value;
use url::Url;

use super::id;

/// Where an own message was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Through WAHA.
    Api,
    /// On the phone or another linked device.
    App,
}

/// A file that came with a message.
#[derive(Clone)]
pub struct Media {
    /// Where WAHA keeps it for a short while. The host may be one only WAHA knows; take the path. `None`: not (yet) there.
    pub url: Option<Url>,
    /// Its media type.
    pub mime_type: Option<String>,
    /// Its name.
    pub filename: Option<String>,
    /// Whether WAHA failed to fetch it.
    pub failed: bool,
}

/// A message, inbound or outbound. `Debug` shows neither text nor numbers.
#[derive(Clone)]
pub struct WahaMessage {
    /// What the message is known by, together with its session.
    pub bare_id: String,
    /// The chat it stands in.
    pub chat_id: String,
    /// Who wrote it: in a group its participant, else the chat; `None` for own messages without that detail.
    pub sender: Option<String>,
    /// Another id of the sender or chat (phone number for a hidden id or the reverse), where the engine tells it.
    pub alternative_id: Option<String>,
    /// Whether this session's own account wrote it.
    pub from_me: bool,
    /// Text or caption.
    pub body: Option<String>,
    /// When it was written; to the second.
    pub timestamp: Option<DateTime<Utc>>,
    /// Whether a file belongs to it.
    pub has_media: bool,
    /// The file, as far as WAHA has it.
    pub media: Option<Media>,
    /// How far it came: -1 error, 0 pending, 1 server, 2 device, 3 read, 4 played.
    pub ack: Option<i16>,
    /// The name its sender goes by.
    pub push_name: Option<String>,
    /// The bare id of the message it answers.
    pub reply_to: Option<String>,
    /// Where an own message was written.
    pub source: Option<Source>,
    /// What it says beyond its text.
    pub beyond: Beyond,
    /// Whether it was taken back: what is read back of it is an empty shell.
    pub revoked: bool,
    /// Reactions to it, where the engine keeps them with the message.
    pub reactions: Vec<KeptReaction>,
    /// Everything as WAHA told it.
    pub raw: Value,
}

/// What a message says beyond text and file.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Beyond {
    /// Nothing.
    #[default]
    Nothing,
    /// A place.
    Place {
        /// Degrees north.
        latitude: f64,
        /// Degrees east.
        longitude: f64,
        /// What it is called.
        name: Option<String>,
    },
    /// Cards of people, as vCards.
    Cards(Vec<String>),
    /// A question with options.
    Poll {
        /// The question.
        question: String,
        /// What can be chosen.
        options: Vec<String>,
        /// Whether more than one may be chosen.
        multiple: bool,
    },
}

/// A reaction that the engine keeps with its message.
#[derive(Clone, PartialEq, Eq)]
pub struct KeptReaction {
    /// Who reacted; `None`: the session's own account.
    pub person: Option<String>,
    /// The emoji; empty when it was taken back.
    pub emoji: String,
    /// When.
    pub timestamp: Option<DateTime<Utc>>,
}

impl fmt::Debug for KeptReaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeptReaction(…)")
    }
}

impl fmt::Debug for WahaMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WahaMessage")
            .field("bare_id", &self.bare_id)
            .field("from_me", &self.from_me)
            .field("ack", &self.ack)
            .field("has_media", &self.has_media)
            .field("source", &self.source)
            .finish_non_exhaustive()
    }
}

impl WahaMessage {
    /// Reads a message; `None` without an id and a chat.
    #[must_use]
    pub fn from_value(raw: Value) -> Option<Self> {
        let bare_id = id::from_message(&raw)?;
        let from_me = from_me(&raw);
        let chat_id = chat_of_message(&raw, from_me)?;
        let participant = first_text(&raw, &["/participant", "/author", "/_data/key/participant"]).map(person);
        let sender = participant.or_else(|| (!from_me && !chat_id.ends_with("@g.us")).then(|| chat_id.clone()));
        let alternatives: &[&str] = if chat_id.ends_with("@g.us") {
            &["/_data/key/participantAlt", "/_data/Info/SenderAlt"]
        } else if from_me {
            &["/_data/key/remoteJidAlt", "/_data/Info/RecipientAlt"]
        } else {
            &["/_data/key/remoteJidAlt", "/_data/Info/SenderAlt"]
        };
        Some(Self {
            alternative_id: first_text(&raw, alternatives).map(person),
            body: text(&raw, "/body").map(str::to_owned),
            timestamp: raw.get("timestamp").and_then(seconds),
            has_media: raw.get("hasMedia").and_then(Value::as_bool).unwrap_or(false),
            media: raw.get("media").and_then(read_media),
            ack: ack(&raw),
            push_name: first_text(&raw, &["/_data/notifyName", "/_data/pushName", "/_data/Info/PushName"])
                .map(str::to_owned),
            reply_to: raw.get("replyTo").and_then(|reply| reply.get("id")).and_then(id::from_id_member),
            source: match text(&raw, "/source") {
                Some("api") => Some(Source::Api),
                Some("app") => Some(Source::App),
                _ => None,
            },
            beyond: Beyond::read(&raw),
            revoked: is_revoked(&raw),
            reactions: kept_reactions(&raw, &chat_id),
            bare_id,
            chat_id,
            sender,
            from_me,
            raw,
        })
    }

    /// Whether it is a message that could not be decrypted (yet): its content may follow under the same id.
    #[must_use]
    pub fn is_stub(&self) -> bool {
        self.ack == Some(-1) && !self.from_me && !self.has_content()
    }

    /// Whether it says anything.
    #[must_use]
    pub fn has_content(&self) -> bool {
        self.body.is_some() || self.has_media || self.beyond != Beyond::Nothing
    }
}

impl Beyond {
    fn read(raw: &Value) -> Self {
        if let Some(place) = raw.get("location").filter(|place| place.is_object()) {
            let degrees = |name: &str| place.get(name).and_then(number);
            if let (Some(latitude), Some(longitude)) = (degrees("latitude"), degrees("longitude")) {
                let name = first_text(place, &["/name", "/description", "/address"]).map(str::to_owned);
                return Self::Place { latitude, longitude, name };
            }
        }
        let cards: Vec<String> = raw
            .get("vCards")
            .and_then(Value::as_array)
            .map(|cards| cards.iter().filter_map(|card| card.as_str().map(str::to_owned)).collect())
            .unwrap_or_default();
        if cards.is_empty() { poll(raw).unwrap_or_default() } else { Self::Cards(cards) }
    }
}

/// A number written as one or as text.
fn number(value: &Value) -> Option<f64> {
    value.as_f64().or_else(|| value.as_str()?.trim().parse().ok()).filter(|number| number.is_finite())
}

/// The poll in the engine's own form of a message.
fn poll(raw: &Value) -> Option<Beyond> {
    let content = raw.pointer("/_data/message").or_else(|| raw.pointer("/_data/Message"));
    let created = content.and_then(|content| {
        ["pollCreationMessage", "pollCreationMessageV2", "pollCreationMessageV3", "pollCreationMessageV4"]
            .into_iter()
            .find_map(|name| content.get(name))
    });
    let (question, options, multiple) = match created {
        Some(poll) => {
            let choices = poll.get("selectableOptionsCount").and_then(whole);
            (text(poll, "/name")?, poll.get("options"), choices != Some(1))
        }
        // Browser engines.
        None => {
            let data = raw.get("_data")?;
            let one = data.get("pollSelectableOptionsCount").and_then(whole) == Some(1);
            (text(data, "/pollName")?, data.get("pollOptions"), !one)
        }
    };
    let name = |option: &Value| first_text(option, &["/optionName", "/name"]).or(option.as_str()).map(str::to_owned);
    Some(Beyond::Poll {
        question: question.to_owned(),
        options: options.and_then(Value::as_array).into_iter().flatten().filter_map(name).collect(),
        multiple,
    })
}

/// Whether an engine's store shows the message as one that was taken back.
fn is_revoked(raw: &Value) -> bool {
    /// Baileys' and whatsapp-web.js' names of it.
    const REVOKE_STUB: i64 = 1;
    raw.pointer("/_data/messageStubType").is_some_and(|stub| whole(stub) == Some(REVOKE_STUB) || stub == "REVOKE")
        || raw.pointer("/_data/IsRevoked").and_then(Value::as_bool) == Some(true)
        || raw.pointer("/_data/type").is_some_and(|kind| kind == "revoked")
}

fn kept_reactions(raw: &Value, chat_id: &str) -> Vec<KeptReaction> {
    let kept = raw.pointer("/_data/reactions").and_then(Value::as_array);
    kept.into_iter()
        .flatten()
        .map(|reaction| {
            let own = reaction.pointer("/key/fromMe").and_then(Value::as_bool) == Some(true);
            let person = first_text(reaction, &["/key/participant", "/key/remoteJid"]).unwrap_or(chat_id);
            KeptReaction {
                person: (!own).then(|| self::person(person)),
                emoji: text(reaction, "/text").unwrap_or_default().to_owned(),
                timestamp: reaction.get("senderTimestampMs").and_then(seconds),
            }
        })
        .collect()
}

fn read_media(media: &Value) -> Option<Media> {
    let members = media.as_object()?;
    Some(Media {
        url: text(media, "/url").and_then(|url| Url::parse(url).ok()),
        mime_type: text(media, "/mimetype").map(str::to_owned),
        filename: text(media, "/filename").map(str::to_owned),
        failed: members.get("error").is_some_and(|error| !error.is_null()),
    })
}

/// Whether the message or ack is about an own message.
pub(super) fn from_me(raw: &Value) -> bool {
    raw.get("fromMe")
        .or_else(|| raw.pointer("/key/fromMe"))
        .or_else(|| raw.pointer("/id/fromMe"))
        .or_else(|| raw.pointer("/_data/key/fromMe"))
        .or_else(|| raw.pointer("/_data/Info/IsFromMe"))
        .and_then(Value::as_bool)
        .unwrap_or_else(|| raw.get("id").and_then(id::serialized).is_some_and(|id| id.starts_with("true_")))
}

/// The chat a message, ack or reaction belongs to: of own ones `to`, else `from`.
pub(super) fn chat_of_message(raw: &Value, from_me: bool) -> Option<String> {
    let (to, from) = (text(raw, "/to"), text(raw, "/from"));
    // In groups GOWS has the participant as `to`.
    let said = if from_me && !from.is_some_and(|from| from.ends_with("@g.us")) { to.or(from) } else { from };
    said.or_else(|| raw.get("id").and_then(id::serialized).and_then(id::chat_of))
        .or_else(|| first_text(raw, &["/key/remoteJid", "/_data/key/remoteJid", "/_data/Info/Chat"]))
        .map(person)
}

/// A WhatsApp id the way WAHA takes it: `@c.us` for people, without a device number.
pub(super) fn person(id: &str) -> String {
    let Some((name, domain)) = id.split_once('@') else {
        return id.to_owned();
    };
    let name = name.split_once(':').map_or(name, |(name, _device)| name);
    let domain = if domain == "s.whatsapp.net" { "c.us" } else { domain };
    format!("{name}@{domain}")
}

/// The text at `pointer`, unless it is empty.
pub(super) fn text<'a>(raw: &'a Value, pointer: &str) -> Option<&'a str> {
    raw.pointer(pointer).and_then(Value::as_str).filter(|text| !text.is_empty())
}

/// The first text found at `pointers`.
pub(super) fn first_text<'a>(raw: &'a Value, pointers: &[&str]) -> Option<&'a str> {
    pointers.iter().find_map(|pointer| text(raw, pointer))
}

/// The ack level of a message or ack; `None` when it is unknown.
pub(super) fn ack(raw: &Value) -> Option<i16> {
    let number =
        raw.get("ack").and_then(whole).and_then(|ack| i16::try_from(ack).ok()).filter(|ack| (-1..=4).contains(ack));
    number.or(match text(raw, "/ackName") {
        Some("ERROR") => Some(-1),
        Some("PENDING") => Some(0),
        Some("SERVER") => Some(1),
        Some("DEVICE") => Some(2),
        Some("READ") => Some(3),
        Some("PLAYED") => Some(4),
        _ => None,
    })
}

/// A point in time given in seconds (whole, fractional or as text); large numbers are milliseconds.
pub(super) fn seconds(value: &Value) -> Option<DateTime<Utc>> {
    /// Seconds beyond this would be the year 5138.
    const MILLISECONDS_FROM: i64 = 100_000_000_000;
    let number = whole(value)?;
    if number <= 0 {
        None
    } else if number >= MILLISECONDS_FROM {
        DateTime::from_timestamp_millis(number)
    } else {
        DateTime::from_timestamp(number, 0)
    }
}

/// A point in time given in milliseconds.
pub(super) fn milliseconds(value: &Value) -> Option<DateTime<Utc>> {
    whole(value).filter(|millis| *millis > 0).and_then(DateTime::from_timestamp_millis)
}

/// A whole number written as a number (a fraction is cut off) or as text.
#[expect(clippy::cast_possible_truncation, reason = "float to int casts saturate, and the fraction is meant to go")]
fn whole(value: &Value) -> Option<i64> {
    value
        .as_i64()
        .or_else(|| value.as_f64().map(|number| number as i64))
        .or_else(|| value.as_str().and_then(|text| text.parse().ok()))
}
