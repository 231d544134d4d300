//! Messages as each engine writes them. The order of members is that of the captures.

use std::borrow::Cow;

use serde::Serialize;
use serde_json::Value;

use super::Engine;
use super::content::Content;
use super::mailbox::{Entry, More};
use super::numbers;
use super::raw::{self, Baileys, Webjs, WebjsData, Whatsmeow};
use super::saying::Naming;

/// The name of who says none.
pub(super) const PEER: &str = "Peer";

/// A message together with what its shape depends on.
#[derive(Clone, Copy)]
pub(super) struct Shape<'a> {
    pub engine: Engine,
    /// The account's own chat id.
    pub me: &'a str,
    /// The chat, by phone number where that is known.
    pub chat: &'a str,
    pub id: &'a str,
    pub kind: &'a str,
    pub text: &'a str,
    pub from_me: bool,
    pub ack: i8,
    /// Seconds since 1970.
    pub timestamp: i64,
    /// Which of a person's ids are told.
    pub naming: Naming,
    pub more: Option<&'a More>,
    pub content: Option<&'a Content>,
    /// `media` of WAHA's own form.
    pub media: Option<&'a Value>,
    /// Taken back: nothing of it is told any more.
    pub revoked: bool,
}

impl<'a> Shape<'a> {
    pub fn of(entry: &'a Entry, engine: Engine, me: &'a str) -> Self {
        let more = entry.more.as_deref();
        Self {
            engine,
            me,
            chat: &entry.chat,
            id: &entry.id,
            kind: entry.kind,
            text: &entry.text,
            from_me: entry.from_me,
            ack: if more.is_some_and(|more| more.stub) { -1 } else { entry.ack },
            timestamp: entry.at.timestamp(),
            naming: more.map(|more| more.naming).unwrap_or_default(),
            more,
            content: entry.content.as_deref(),
            media: None,
            revoked: entry.revoked,
        }
    }

    /// A text without anything else, by nobody in particular.
    pub fn plain(engine: Engine, me: &'a str, chat: &'a str, id: &'a str, text: &'a str, timestamp: i64) -> Self {
        Self {
            engine,
            me,
            chat,
            id,
            kind: "text",
            text,
            from_me: true,
            ack: 0,
            timestamp,
            naming: Naming::default(),
            more: None,
            content: None,
            media: None,
            revoked: false,
        }
    }

    /// Whether a browser runs WhatsApp Web.
    pub fn is_browser(&self) -> bool {
        matches!(self.engine, Engine::Webjs | Engine::Wpp)
    }

    pub fn is_group(&self) -> bool {
        self.chat.ends_with("@g.us")
    }

    /// Whether its content is not known (yet, or any more).
    pub fn is_empty(&self) -> bool {
        self.revoked || self.more.is_some_and(|more| more.stub)
    }

    /// `id` as it is told here.
    pub fn name_of<'b>(&self, id: &'b str) -> Cow<'b, str> {
        match numbers::number_of(id).filter(|_| self.naming.lid && !id.ends_with("@lid")) {
            Some(number) => Cow::Owned(numbers::lid_of(&number)),
            None => Cow::Borrowed(id),
        }
    }

    /// The other id of a person, where it is told.
    pub fn other_name_of(&self, id: &str) -> Option<String> {
        let told = self.naming.alternative.unwrap_or(self.engine == Engine::Gows || self.naming.lid);
        let number = numbers::number_of(id).filter(|number| told && !number.is_empty())?;
        Some(if self.naming.lid { format!("{number}@c.us") } else { numbers::lid_of(&number) })
    }

    pub fn chat_name(&self) -> Cow<'a, str> {
        self.name_of(self.chat)
    }

    /// In groups: who wrote it.
    pub fn participant(&self) -> Option<&'a str> {
        let other = self.more.and_then(|more| more.participant.as_deref());
        if self.is_group() { Some(if self.from_me { self.me } else { other.unwrap_or(self.me) }) } else { None }
    }

    pub fn participant_name(&self) -> Option<Cow<'a, str>> {
        self.participant().map(|participant| self.name_of(participant))
    }

    pub fn push_name(&self) -> Option<&'a str> {
        let name = self.more.and_then(|more| more.push_name.as_deref()).unwrap_or(PEER);
        (!self.from_me && !name.is_empty()).then_some(name)
    }

    /// `true_111@c.us_3EB0…`, in groups with the participant.
    pub fn serialized_id(&self) -> String {
        let (from_me, chat, id) = (self.from_me, self.chat_name(), self.id);
        match self.participant_name() {
            Some(participant) => format!("{from_me}_{chat}_{id}_{participant}"),
            None => format!("{from_me}_{chat}_{id}"),
        }
    }

    /// `from` and `to` as this engine has them; by WAHA's source GOWS tells the participant of a group in `to` as well.
    pub fn ends(&self) -> (Cow<'a, str>, Option<Cow<'a, str>>) {
        let (chat, me) = (self.chat_name(), Cow::Borrowed(self.me));
        match (self.is_browser(), self.from_me) {
            (true, true) => (me, Some(chat)),
            (true, false) => (chat, Some(me)),
            (false, _) => (chat, self.participant_name().filter(|_| self.engine == Engine::Gows)),
        }
    }

    /// The answer to a send; without the id when `anonymous`.
    pub fn send_answer(&self, endpoint: &str, anonymous: bool) -> String {
        let text = match self.engine {
            _ if anonymous => to_json(&Anonymous { ack: self.ack, message_timestamp: self.timestamp.to_string() }),
            Engine::Noweb if matches!(endpoint, "sendPoll" | "forwardMessage") => return self.wa_message(),
            Engine::Noweb => to_json(&Baileys::of(self)),
            Engine::Gows => to_json(&GowsAnswer { id: self.serialized_id(), data: Whatsmeow::of(self) }),
            Engine::Webjs => to_json(&Webjs::of(self)),
            Engine::Wpp => to_json(&WppAnswer {
                id: self.serialized_id(),
                ack: self.ack,
                from: self.me,
                to: &self.chat_name(),
                body: self.text,
                from_me: self.from_me,
                t: self.timestamp,
            }),
        };
        text.unwrap_or_default()
    }

    /// WAHA's own form: webhooks and reading back.
    pub fn wa_message(&self) -> String {
        let (from, to) = self.ends();
        let by_phone = self.more.is_some_and(|more| more.app);
        let message = WaMessage {
            id: self.serialized_id(),
            timestamp: self.timestamp,
            from: &from,
            from_me: self.from_me,
            source: if self.from_me && !by_phone { "api" } else { "app" },
            to: to.as_deref(),
            participant: self.participant_name(),
            body: self.body(),
            has_media: self.has_media() && !self.is_empty(),
            media: self.media.filter(|_| !self.is_empty()),
            ack: self.ack,
            ack_name: ack_name(self.ack),
            location: self.location(),
            v_cards: self.cards(),
            reply_to: self.reply(),
            data: match self.engine {
                Engine::Noweb => Data::Baileys(Box::new(Baileys::of(self))),
                Engine::Gows => Data::Whatsmeow(Box::new(Whatsmeow::of(self))),
                Engine::Webjs | Engine::Wpp => Data::Webjs(Box::new(WebjsData::of(self))),
            },
        };
        to_json(&message).unwrap_or_default()
    }

    /// The payload of `message.ack`, or of `message.ack.group` for one participant; an error under a timelock says until when.
    pub fn ack_payload(&self, locked_until: Option<i64>, reader: Option<&str>) -> String {
        let (from, to) = self.ends();
        let reader = reader.map(|reader| self.name_of(reader));
        let to = if self.engine == Engine::Gows { reader.clone() } else { to };
        let payload = AckPayload {
            id: self.serialized_id(),
            from: &from,
            to: to.as_deref(),
            participant: reader.as_deref(),
            from_me: self.from_me,
            ack: self.ack,
            ack_name: ack_name(self.ack),
            error: locked_until.filter(|_| self.engine == Engine::Noweb).map(|until| AckError {
                code: 463,
                blocked: true,
                reason: "reachout_timelock",
                until,
                enforcement_type: "DEFAULT",
            }),
        };
        to_json(&payload).unwrap_or_default()
    }

    pub fn has_media(&self) -> bool {
        matches!(self.kind, "image" | "file" | "voice" | "video")
    }

    /// The words, as far as this engine finds some.
    pub fn body(&self) -> Option<&'a str> {
        let by_api = self.from_me && self.more.is_none_or(|more| !more.app);
        if self.is_empty() {
            return self.is_browser().then_some("");
        }
        if self.kind == "text" || self.is_browser() || by_api {
            return Some(self.text);
        }
        // These engines look for a text or a caption.
        (self.has_media() && !self.text.is_empty()).then_some(self.text)
    }

    /// A member of what the kind has beyond text and file.
    pub fn detail(&self, pointer: &str) -> Option<&'a Value> {
        self.content.filter(|_| !self.is_empty())?.details.pointer(pointer)
    }

    fn location(&self) -> Option<Location<'a>> {
        let degrees = |pointer: &str| self.detail(pointer).and_then(Value::as_f64).map(|degrees| degrees.to_string());
        let text = |pointer: &str| self.detail(pointer).and_then(Value::as_str).filter(|text| !text.is_empty());
        Some(Location {
            latitude: degrees("/latitude")?,
            longitude: degrees("/longitude")?,
            live: false,
            name: text("/title"),
            address: text("/address"),
        })
    }

    fn cards(&self) -> Option<Vec<Cow<'a, str>>> {
        let cards = self.detail("/contacts").and_then(Value::as_array)?;
        Some(cards.iter().map(raw::card).collect())
    }

    fn reply(&self) -> Option<ReplyTo<'a>> {
        if self.is_empty() {
            return None;
        }
        if let Some(reply) = self.more.and_then(|more| more.reply.as_ref()) {
            return Some(ReplyTo {
                id: &reply.id,
                participant: reply.participant.as_deref().map(|participant| self.name_of(participant)),
                body: reply.body.as_deref(),
                has_media: false,
            });
        }
        let id = super::sends::bare_id(self.detail("/reply_to").and_then(Value::as_str)?);
        Some(ReplyTo { id, participant: None, body: None, has_media: false })
    }
}

/// WAHA's name of an ack level.
pub(super) fn ack_name(ack: i8) -> &'static str {
    match ack {
        -1 => "ERROR",
        0 => "PENDING",
        1 => "SERVER",
        2 => "DEVICE",
        3 => "READ",
        4 => "PLAYED",
        _ => "UNKNOWN",
    }
}

fn to_json(value: &impl Serialize) -> Option<String> {
    serde_json::to_string(value).ok()
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WaMessage<'a> {
    id: String,
    timestamp: i64,
    from: &'a str,
    from_me: bool,
    source: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    participant: Option<Cow<'a, str>>,
    body: Option<&'a str>,
    has_media: bool,
    media: Option<&'a Value>,
    ack: i8,
    ack_name: &'a str,
    location: Option<Location<'a>>,
    v_cards: Option<Vec<Cow<'a, str>>>,
    reply_to: Option<ReplyTo<'a>>,
    #[serde(rename = "_data")]
    data: Data<'a>,
}

#[derive(Serialize)]
struct Location<'a> {
    latitude: String,
    longitude: String,
    live: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<&'a str>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ReplyTo<'a> {
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    participant: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<&'a str>,
    has_media: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AckPayload<'a> {
    id: String,
    from: &'a str,
    to: Option<&'a str>,
    participant: Option<&'a str>,
    from_me: bool,
    ack: i8,
    ack_name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<AckError>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AckError {
    code: u16,
    blocked: bool,
    reason: &'static str,
    /// Seconds since 1970.
    until: i64,
    enforcement_type: &'static str,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Data<'a> {
    Baileys(Box<Baileys<'a>>),
    Whatsmeow(Box<Whatsmeow<'a>>),
    Webjs(Box<WebjsData<'a>>),
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Anonymous {
    ack: i8,
    message_timestamp: String,
}

#[derive(Serialize)]
struct GowsAnswer<'a> {
    id: String,
    #[serde(rename = "_data")]
    data: Whatsmeow<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WppAnswer<'a> {
    id: String,
    ack: i8,
    from: &'a str,
    to: &'a str,
    body: &'a str,
    from_me: bool,
    t: i64,
}
