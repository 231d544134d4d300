//! Messages as the engines' own libraries write them: what WAHA passes on as `_data`.

use std::borrow::Cow;

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use super::Engine;
use super::shapes::Shape;

/// `…@s.whatsapp.net` for people by number.
pub(super) fn jid(id: &str) -> String {
    match id.strip_suffix("@c.us") {
        Some(user) => format!("{user}@s.whatsapp.net"),
        None => id.to_owned(),
    }
}

/// A card of a contact as a vCard, whichever way it was given.
pub(super) fn card(given: &Value) -> Cow<'_, str> {
    let text = |name: &str| given.get(name).and_then(Value::as_str).unwrap_or_default();
    match given.get("vcard").and_then(Value::as_str) {
        Some(card) => Cow::Borrowed(card),
        None => Cow::Owned(format!(
            "BEGIN:VCARD\nVERSION:3.0\nFN:{}\nORG:{};\nTEL;type=CELL;type=VOICE;waid={}:{}\nEND:VCARD",
            text("fullName"),
            text("organization"),
            text("whatsappId"),
            text("phoneNumber")
        )),
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Baileys<'a> {
    key: BaileysKey<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<Content<'a>>,
    message_timestamp: String,
    status: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    push_name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message_stub_type: Option<u8>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    message_stub_parameters: Vec<&'static str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    reactions: Vec<Value>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct BaileysKey<'a> {
    remote_jid: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    remote_jid_alt: Option<String>,
    from_me: bool,
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    participant: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    participant_alt: Option<String>,
}

impl<'a> Baileys<'a> {
    pub fn of(shape: &Shape<'a>) -> Self {
        let stub = shape.more.is_some_and(|more| more.stub);
        let other = |id: &str| shape.other_name_of(id).map(|id| jid(&id));
        let participant = shape.participant().filter(|_| !shape.from_me);
        Self {
            key: BaileysKey {
                remote_jid: jid(&shape.chat_name()),
                remote_jid_alt: other(shape.chat),
                from_me: shape.from_me,
                id: shape.id,
                participant: participant.map(|participant| jid(&shape.name_of(participant))),
                participant_alt: participant.and_then(other),
            },
            message: (!shape.is_empty()).then_some(Content(*shape)),
            message_timestamp: shape.timestamp.to_string(),
            status: match shape.ack {
                -1 => "ERROR",
                0 => "PENDING",
                1 => "SERVER_ACK",
                2 => "DELIVERY_ACK",
                4 => "PLAYED",
                _ => "READ",
            },
            push_name: shape.push_name(),
            // Our reading of Baileys: 1 is REVOKE, 2 is CIPHERTEXT.
            message_stub_type: if shape.revoked { Some(1) } else { stub.then_some(2) },
            message_stub_parameters: if stub { vec!["Message absent from node"] } else { Vec::new() },
            reactions: reactions(shape),
        }
    }
}

/// The reactions to a message, as the store of Baileys keeps them.
fn reactions(shape: &Shape<'_>) -> Vec<Value> {
    let Some(more) = shape.more.filter(|_| !shape.revoked) else { return Vec::new() };
    let all = more.reactions.iter().filter(|(_, given)| !given.emoji.is_empty());
    all.map(|(person, given)| {
        let by_me = person.is_empty();
        let mut key = json!({"remoteJid": jid(&shape.chat_name()), "fromMe": by_me, "id": shape.id});
        if let Some(key) = key.as_object_mut().filter(|_| shape.is_group()) {
            let who = if by_me { shape.me } else { person };
            key.insert("participant".to_owned(), json!(jid(&shape.name_of(who))));
        }
        json!({"key": key, "text": given.emoji, "senderTimestampMs": given.at_ms})
    })
    .collect()
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Whatsmeow<'a> {
    info: WhatsmeowInfo<'a>,
    message: Option<Content<'a>>,
    /// Our reading: what was taken back is still there, and says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    is_revoked: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    is_unavailable: Option<bool>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct WhatsmeowInfo<'a> {
    chat: String,
    sender: String,
    is_from_me: bool,
    is_group: bool,
    sender_alt: String,
    recipient_alt: String,
    #[serde(rename = "ID")]
    id: &'a str,
    push_name: &'a str,
    timestamp: String,
}

impl<'a> Whatsmeow<'a> {
    pub fn of(shape: &Shape<'a>) -> Self {
        let timestamp = chrono::DateTime::from_timestamp(shape.timestamp, 0).unwrap_or_default();
        let sender = shape.participant().unwrap_or(if shape.from_me { shape.me } else { shape.chat });
        let other = |id: &str| shape.other_name_of(id).map(|id| jid(&id)).unwrap_or_default();
        let own_chat = shape.from_me && !shape.is_group();
        Self {
            info: WhatsmeowInfo {
                chat: jid(&shape.chat_name()),
                sender: jid(&shape.name_of(sender)),
                is_from_me: shape.from_me,
                is_group: shape.is_group(),
                sender_alt: other(sender),
                recipient_alt: if own_chat { other(shape.chat) } else { String::new() },
                id: shape.id,
                push_name: shape.push_name().unwrap_or_default(),
                timestamp: timestamp.to_rfc3339_opts(chrono::SecondsFormat::Secs, true),
            },
            message: Some(Content(*shape)),
            is_revoked: shape.revoked.then_some(true),
            is_unavailable: shape.more.is_some_and(|more| more.stub).then_some(true),
        }
    }
}

#[derive(Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct WebjsId<'a> {
    from_me: bool,
    remote: Cow<'a, str>,
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    participant: Option<Cow<'a, str>>,
    #[serde(rename = "_serialized")]
    serialized: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct WebjsData<'a> {
    id: WebjsId<'a>,
    body: &'a str,
    #[serde(rename = "type")]
    kind: &'a str,
    t: i64,
    from: Cow<'a, str>,
    to: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    author: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    notify_name: Option<&'a str>,
    ack: i8,
    #[serde(skip_serializing_if = "Option::is_none")]
    poll_name: Option<&'a Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    poll_options: Option<Vec<Value>>,
}

impl<'a> WebjsData<'a> {
    pub fn of(shape: &Shape<'a>) -> Self {
        let participant = shape.participant_name();
        let (me, chat) = (Cow::Borrowed(shape.me), shape.chat_name());
        let (from, to) = if shape.from_me { (me, chat.clone()) } else { (chat.clone(), me) };
        let options = shape.detail("/poll/options").and_then(Value::as_array);
        Self {
            id: WebjsId {
                from_me: shape.from_me,
                remote: chat,
                id: shape.id,
                participant: participant.clone(),
                serialized: shape.serialized_id(),
            },
            body: shape.body().unwrap_or_default(),
            kind: match shape.kind {
                _ if shape.revoked => "revoked",
                _ if shape.is_empty() => "ciphertext",
                "text" => "chat",
                "voice" => "ptt",
                "file" => "document",
                "contact" => "vcard",
                "poll" => "poll_creation",
                kind => kind,
            },
            t: shape.timestamp,
            from,
            to,
            author: participant.filter(|_| !shape.from_me),
            notify_name: shape.push_name(),
            ack: shape.ack,
            poll_name: shape.detail("/poll/name"),
            poll_options: options.map(|options| {
                options.iter().enumerate().map(|(n, name)| json!({"name": name, "localId": n})).collect()
            }),
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Webjs<'a> {
    #[serde(rename = "_data")]
    data: WebjsData<'a>,
    id: WebjsId<'a>,
    ack: i8,
    has_media: bool,
    body: &'a str,
    #[serde(rename = "type")]
    kind: &'a str,
    timestamp: i64,
    from: Cow<'a, str>,
    to: Cow<'a, str>,
    from_me: bool,
}

impl<'a> Webjs<'a> {
    pub fn of(shape: &Shape<'a>) -> Self {
        let data = WebjsData::of(shape);
        Self {
            id: data.id.clone(),
            ack: data.ack,
            has_media: shape.has_media(),
            body: data.body,
            kind: data.kind,
            timestamp: data.t,
            from: data.from.clone(),
            to: data.to.clone(),
            from_me: shape.from_me,
            data,
        }
    }
}

/// What WhatsApp takes for voice.
const OGG: &str = "audio/ogg; codecs=opus";

/// The protobuf's content: one member, named after the kind; none when the content is not known.
struct Content<'a>(Shape<'a>);

impl Content<'_> {
    /// What the message answers, as the protobuf has it.
    fn context(&self) -> Option<Value> {
        let Self(shape) = self;
        let reply = shape.more?.reply.as_ref()?;
        let id = if shape.engine == Engine::Gows { "stanzaID" } else { "stanzaId" };
        let participant = reply.participant.as_deref().unwrap_or(shape.me);
        Some(json!({
            id: reply.id,
            "participant": jid(&shape.name_of(participant)),
            "quotedMessage": {"conversation": reply.body.as_deref().unwrap_or_default()},
        }))
    }

    /// The member's name and value; texts are not among them.
    fn member(&self) -> (&'static str, Value) {
        let Self(shape) = self;
        let file = shape.content.and_then(|content| content.file.as_ref());
        let mimetype = file.and_then(|file| file.mimetype.as_deref());
        let words = |name: &str| {
            let mut value = json!({name: shape.text});
            if let (Some(members), Some(mimetype)) = (value.as_object_mut(), mimetype) {
                members.insert("mimetype".to_owned(), json!(mimetype));
            }
            value
        };
        let cards = || shape.detail("/contacts").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let contact = |given: &Value| {
            let card = card(given);
            let name = card.lines().find_map(|line| line.strip_prefix("FN:")).unwrap_or(shape.text).to_owned();
            json!({"displayName": name, "vcard": card})
        };
        match shape.kind {
            "poll" => {
                let options = shape.detail("/poll/options").and_then(Value::as_array);
                let options = options.into_iter().flatten().map(|name| json!({"optionName": name}));
                let multiple = shape.detail("/poll/multipleAnswers").and_then(Value::as_bool).unwrap_or(false);
                let options: Vec<Value> = options.collect();
                let selectable = if multiple { 0 } else { 1 };
                let poll = json!({"name": shape.text, "options": options, "selectableOptionsCount": selectable});
                ("pollCreationMessage", poll)
            }
            "location" => {
                let place = json!({
                    "degreesLatitude": shape.detail("/latitude"),
                    "degreesLongitude": shape.detail("/longitude"),
                    "name": shape.text,
                    "address": shape.detail("/address"),
                });
                ("locationMessage", place)
            }
            "contact" => match cards() {
                [] => ("contactMessage", json!({"displayName": shape.text})),
                [one] => ("contactMessage", contact(one)),
                many => {
                    let all: Vec<Value> = many.iter().map(contact).collect();
                    ("contactsArrayMessage", json!({"displayName": shape.text, "contacts": all}))
                }
            },
            "image" => ("imageMessage", words("caption")),
            "video" => ("videoMessage", words("caption")),
            "voice" => ("audioMessage", json!({"mimetype": mimetype.unwrap_or(OGG), "ptt": true})),
            _ => {
                let mut document = words("caption");
                if let Some(members) = document.as_object_mut() {
                    members.insert("fileName".to_owned(), json!(file.and_then(|file| file.filename.as_deref())));
                }
                ("documentMessage", document)
            }
        }
    }
}

impl Serialize for Content<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(shape) = self;
        let mut map = serializer.serialize_map(Some(1))?;
        if shape.is_empty() {
            return map.end();
        }
        let context = self.context();
        match (shape.kind, shape.from_me, context) {
            ("text", true, None) => {
                map.serialize_entry("extendedTextMessage", &Text { text: shape.text, context_info: None })?;
            }
            ("text", _, Some(context)) => {
                let text = Text { text: shape.text, context_info: Some(context) };
                map.serialize_entry("extendedTextMessage", &text)?;
            }
            ("text", false, None) => map.serialize_entry("conversation", shape.text)?,
            (_, _, context) => {
                let (name, mut value) = self.member();
                if let (Some(members), Some(context)) = (value.as_object_mut(), context) {
                    members.insert("contextInfo".to_owned(), context);
                }
                map.serialize_entry(name, &value)?;
            }
        }
        map.end()
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Text<'a> {
    text: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    context_info: Option<Value>,
}
