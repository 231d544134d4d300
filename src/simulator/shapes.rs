//! Messages as each engine writes them. The order of members is that of the captures.

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use super::Engine;
use super::ledger::Entry;
use super::numbers;

/// A message together with what its shape depends on.
#[derive(Clone, Copy)]
pub(super) struct Shape<'a> {
    pub engine: Engine,
    /// The account's own chat id.
    pub me: &'a str,
    /// The chat as it is named here (`…@c.us` or `…@lid`).
    pub chat: &'a str,
    pub id: &'a str,
    pub kind: &'a str,
    pub text: &'a str,
    pub from_me: bool,
    pub ack: i8,
    /// Seconds since 1970.
    pub timestamp: i64,
}

impl<'a> Shape<'a> {
    pub fn of(entry: &'a Entry, engine: Engine, me: &'a str) -> Self {
        Self {
            engine,
            me,
            chat: &entry.chat,
            id: &entry.id,
            kind: entry.kind,
            text: &entry.text,
            from_me: entry.from_me,
            ack: entry.ack,
            timestamp: entry.at.timestamp(),
        }
    }

    /// `true_111@c.us_3EB0…`, in groups with the participant.
    pub fn serialized_id(&self) -> String {
        let Self { from_me, chat, id, .. } = self;
        if chat.ends_with("@g.us") {
            format!("{from_me}_{chat}_{id}_{}", self.me)
        } else {
            format!("{from_me}_{chat}_{id}")
        }
    }

    /// The answer to a send; without the id when `anonymous`.
    pub fn send_answer(&self, endpoint: &str, anonymous: bool) -> String {
        let text = match self.engine {
            _ if anonymous => to_json(&Anonymous { ack: self.ack, message_timestamp: self.timestamp.to_string() }),
            Engine::Noweb if matches!(endpoint, "sendPoll" | "forwardMessage") => return self.wa_message(),
            Engine::Noweb => to_json(&self.baileys()),
            Engine::Gows => to_json(&GowsAnswer { id: self.serialized_id(), data: self.whatsmeow() }),
            Engine::Webjs => to_json(&self.webjs()),
            Engine::Wpp => to_json(&WppAnswer {
                id: self.serialized_id(),
                ack: self.ack,
                from: self.me,
                to: self.chat,
                body: self.text,
                from_me: self.from_me,
                t: self.timestamp,
            }),
        };
        text.unwrap_or_default()
    }

    /// WAHA's own form: webhooks and reading back.
    pub fn wa_message(&self) -> String {
        let browser = matches!(self.engine, Engine::Webjs | Engine::Wpp);
        let (from, to) = match (browser, self.from_me) {
            (true, true) => (self.me, Some(self.chat)),
            (true, false) => (self.chat, Some(self.me)),
            (false, _) => (self.chat, None),
        };
        let message = WaMessage {
            id: self.serialized_id(),
            timestamp: self.timestamp,
            from,
            from_me: self.from_me,
            source: if self.from_me { "api" } else { "app" },
            to,
            body: self.text,
            has_media: self.has_media(),
            media: None,
            ack: self.ack,
            ack_name: ack_name(self.ack),
            location: None,
            v_cards: None,
            reply_to: None,
            data: match self.engine {
                Engine::Noweb => Data::Baileys(self.baileys()),
                Engine::Gows => Data::Whatsmeow(self.whatsmeow()),
                Engine::Webjs | Engine::Wpp => Data::Webjs(self.webjs_data()),
            },
        };
        to_json(&message).unwrap_or_default()
    }

    /// The payload of `message.ack`; an error under a timelock says until when.
    pub fn ack_payload(&self, locked_until: Option<i64>) -> String {
        let browser = matches!(self.engine, Engine::Webjs | Engine::Wpp);
        let payload = AckPayload {
            id: self.serialized_id(),
            from: if browser { self.me } else { self.chat },
            to: browser.then_some(self.chat),
            participant: None,
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

    fn has_media(&self) -> bool {
        matches!(self.kind, "image" | "file" | "voice" | "video")
    }

    fn jid(&self) -> String {
        match self.chat.strip_suffix("@c.us") {
            Some(user) => format!("{user}@s.whatsapp.net"),
            None => self.chat.to_owned(),
        }
    }

    fn baileys(&self) -> Baileys<'a> {
        Baileys {
            key: BaileysKey { remote_jid: self.jid(), from_me: self.from_me, id: self.id },
            message: self.content(),
            message_timestamp: self.timestamp.to_string(),
            status: match self.ack {
                -1 => "ERROR",
                0 => "PENDING",
                1 => "SERVER_ACK",
                2 => "DELIVERY_ACK",
                _ => "READ",
            },
            push_name: (!self.from_me).then_some("Peer"),
        }
    }

    fn whatsmeow(&self) -> Whatsmeow<'a> {
        let timestamp = chrono::DateTime::from_timestamp(self.timestamp, 0).unwrap_or_default();
        let sender = if self.from_me { self.me.to_owned() } else { self.chat.to_owned() };
        let alt = numbers::number_of(&sender).map(|number| numbers::lid_of(&number));
        Whatsmeow {
            info: WhatsmeowInfo {
                chat: self.jid(),
                sender: sender.replace("@c.us", "@s.whatsapp.net"),
                is_from_me: self.from_me,
                is_group: self.chat.ends_with("@g.us"),
                sender_alt: alt.unwrap_or_default(),
                id: self.id,
                push_name: if self.from_me { "" } else { "Peer" },
                timestamp: timestamp.to_rfc3339_opts(chrono::SecondsFormat::Secs, true),
            },
            message: self.content(),
        }
    }

    fn webjs_data(&self) -> WebjsData<'a> {
        WebjsData {
            id: WebjsId { from_me: self.from_me, remote: self.chat, id: self.id, serialized: self.serialized_id() },
            body: self.text,
            kind: if self.kind == "text" { "chat" } else { self.kind },
            t: self.timestamp,
            from: if self.from_me { self.me } else { self.chat },
            to: if self.from_me { self.chat } else { self.me },
            ack: self.ack,
        }
    }

    fn webjs(&self) -> Webjs<'a> {
        let data = self.webjs_data();
        Webjs {
            id: data.id.clone(),
            ack: data.ack,
            has_media: self.has_media(),
            body: data.body,
            kind: data.kind,
            timestamp: data.t,
            from: data.from,
            to: data.to,
            from_me: self.from_me,
            data,
        }
    }

    fn content(&self) -> Content<'a> {
        Content { kind: self.kind, text: self.text, from_me: self.from_me }
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
    body: &'a str,
    has_media: bool,
    media: Option<()>,
    ack: i8,
    ack_name: &'a str,
    location: Option<()>,
    v_cards: Option<()>,
    reply_to: Option<()>,
    #[serde(rename = "_data")]
    data: Data<'a>,
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
    Baileys(Baileys<'a>),
    Whatsmeow(Whatsmeow<'a>),
    Webjs(WebjsData<'a>),
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Baileys<'a> {
    key: BaileysKey<'a>,
    message: Content<'a>,
    message_timestamp: String,
    status: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    push_name: Option<&'a str>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct BaileysKey<'a> {
    remote_jid: String,
    from_me: bool,
    id: &'a str,
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
#[serde(rename_all = "PascalCase")]
struct Whatsmeow<'a> {
    info: WhatsmeowInfo<'a>,
    message: Content<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct WhatsmeowInfo<'a> {
    chat: String,
    sender: String,
    is_from_me: bool,
    is_group: bool,
    sender_alt: String,
    #[serde(rename = "ID")]
    id: &'a str,
    push_name: &'a str,
    timestamp: String,
}

#[derive(Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct WebjsId<'a> {
    from_me: bool,
    remote: &'a str,
    id: &'a str,
    #[serde(rename = "_serialized")]
    serialized: String,
}

#[derive(Serialize)]
struct WebjsData<'a> {
    id: WebjsId<'a>,
    body: &'a str,
    #[serde(rename = "type")]
    kind: &'a str,
    t: i64,
    from: &'a str,
    to: &'a str,
    ack: i8,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Webjs<'a> {
    #[serde(rename = "_data")]
    data: WebjsData<'a>,
    id: WebjsId<'a>,
    ack: i8,
    has_media: bool,
    body: &'a str,
    #[serde(rename = "type")]
    kind: &'a str,
    timestamp: i64,
    from: &'a str,
    to: &'a str,
    from_me: bool,
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

/// The protobuf's content: one member, named after the kind.
struct Content<'a> {
    kind: &'a str,
    text: &'a str,
    from_me: bool,
}

impl Serialize for Content<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(1))?;
        match (self.kind, self.from_me) {
            ("text", true) => map.serialize_entry("extendedTextMessage", &One { name: "text", value: self.text })?,
            ("text", false) => map.serialize_entry("conversation", self.text)?,
            ("poll", _) => map.serialize_entry("pollCreationMessage", &One { name: "name", value: self.text })?,
            ("location", _) => map.serialize_entry("locationMessage", &One { name: "name", value: self.text })?,
            ("contact", _) => map.serialize_entry("contactMessage", &One { name: "displayName", value: self.text })?,
            ("image", _) => map.serialize_entry("imageMessage", &One { name: "caption", value: self.text })?,
            ("video", _) => map.serialize_entry("videoMessage", &One { name: "caption", value: self.text })?,
            ("voice", _) => map.serialize_entry("audioMessage", &One { name: "mimetype", value: OGG })?,
            _ => map.serialize_entry("documentMessage", &One { name: "caption", value: self.text })?,
        }
        map.end()
    }
}

/// What WhatsApp takes for voice.
const OGG: &str = "audio/ogg; codecs=opus";

struct One<'a> {
    name: &'a str,
    value: &'a str,
}

impl Serialize for One<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(1))?;
        map.serialize_entry(self.name, self.value)?;
        map.end()
    }
}
