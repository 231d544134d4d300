//! What somebody writes: a message of any kind, by the other side or on the account's own phone.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::content::{Content, SeenFile};

/// A message that somebody writes; see [`super::Control::write`].
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Writing {
    /// What it says.
    pub saying: Saying,
    /// Its bare id; a fresh one when none.
    #[serde(default)]
    pub id: Option<String>,
    /// Written on the account's own phone: `fromMe`, source `app`.
    #[serde(default)]
    pub by_phone: bool,
    /// In a group: who writes, as a number or an id. Without one it is the group's first other participant.
    #[serde(default)]
    pub participant: Option<String>,
    /// The name the writer goes by.
    #[serde(default)]
    pub push_name: Option<String>,
    /// The bare id of the message that it answers.
    #[serde(default)]
    pub reply_to: Option<String>,
    /// Which ids it is told with.
    #[serde(default)]
    pub naming: Naming,
    /// When it was written; now when none.
    #[serde(default)]
    pub at: Option<DateTime<Utc>>,
    /// Is in the engine's store, and no webhook tells of it.
    #[serde(default)]
    pub silent: bool,
    /// Comes undecrypted: ack -1 and no content until [`super::Control::reveal`].
    #[serde(default)]
    pub stub: bool,
    /// By the own phone: how far it came by the time it is told.
    #[serde(default)]
    pub ack: Option<i8>,
}

/// What a message says.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Saying {
    /// Words.
    Text(String),
    /// A file.
    File(SaidFile),
    /// A place.
    Location {
        /// Degrees north.
        latitude: f64,
        /// Degrees east.
        longitude: f64,
        /// What it is called; may be empty.
        #[serde(default)]
        name: String,
        /// Its address; may be empty.
        #[serde(default)]
        address: String,
    },
    /// Cards of contacts, as vCards.
    Contacts(Vec<String>),
    /// A question with answers to choose from.
    Poll {
        /// The question.
        name: String,
        /// The answers.
        options: Vec<String>,
        /// Whether more than one may be chosen.
        #[serde(default)]
        multiple: bool,
    },
}

/// What a file is shown as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileKind {
    /// A picture.
    Image,
    /// A film.
    Video,
    /// A voice note.
    Voice,
    /// A document.
    Document,
}

/// A file that comes with a message.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SaidFile {
    /// What it is shown as.
    pub kind: FileKind,
    /// The bytes; in JSON as base64.
    #[serde(rename = "data", deserialize_with = "from_base64")]
    pub bytes: Bytes,
    /// Its media type.
    pub mimetype: String,
    /// Its name, if it has one.
    #[serde(default)]
    pub filename: Option<String>,
    /// The words under it.
    #[serde(default)]
    pub caption: String,
    /// How it can be fetched.
    #[serde(default)]
    pub plan: FilePlan,
}

/// How a file can be fetched from `/api/files/`; without more: at once, until its lifetime is over.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FilePlan {
    /// 403 so many times before it is given.
    pub refusals: u32,
    /// Milliseconds (not scaled) that giving it takes, on top.
    pub slow_ms: u64,
    /// The media type that is told and served instead of its own.
    pub mimetype: Option<String>,
    /// The `Content-Length` that is claimed; as many bytes come, in the end.
    pub claimed: Option<u64>,
    /// `url: null` and an `error`: WAHA could not fetch it. Asking for the message with `downloadMedia` fetches it.
    pub no_url: bool,
    /// Like `no_url`, and asking again does not help either.
    pub lost: bool,
    /// The URL names the host `http://localhost:3000`, as WAHA does without `WAHA_BASE_URL`.
    pub foreign_host: bool,
    /// Milliseconds (of WAHA's time) until it is gone; those of the server when none.
    pub lifetime_ms: Option<u64>,
}

/// Which of a person's ids are told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Naming {
    /// `…@lid` instead of `…@c.us`.
    pub lid: bool,
    /// Whether `_data` has the other one (NOWEB, GOWS). When none: GOWS tells it, NOWEB only beside a `…@lid`.
    pub alternative: Option<bool>,
}

impl Naming {
    /// `…@c.us` and nothing else.
    pub const PHONE: Self = Self { lid: false, alternative: Some(false) };
    /// `…@lid` and nothing else.
    pub const LID: Self = Self { lid: true, alternative: Some(false) };
    /// `…@lid`, and the phone number in `_data`.
    pub const LID_AND_PHONE: Self = Self { lid: true, alternative: Some(true) };
    /// `…@c.us`, and the lid in `_data`.
    pub const PHONE_AND_LID: Self = Self { lid: false, alternative: Some(true) };
}

impl Writing {
    /// Something that is said, and nothing else.
    #[must_use]
    pub fn new(saying: Saying) -> Self {
        Self {
            saying,
            id: None,
            by_phone: false,
            participant: None,
            push_name: None,
            reply_to: None,
            naming: Naming::default(),
            at: None,
            silent: false,
            stub: false,
            ack: None,
        }
    }

    /// A text.
    #[must_use]
    pub fn text(text: &str) -> Self {
        Self::new(Saying::Text(text.to_owned()))
    }

    fn file(kind: FileKind, bytes: impl Into<Bytes>, mimetype: &str) -> Self {
        Self::new(Saying::File(SaidFile {
            kind,
            bytes: bytes.into(),
            mimetype: mimetype.to_owned(),
            filename: None,
            caption: String::new(),
            plan: FilePlan::default(),
        }))
    }

    /// A picture, `image/jpeg`.
    #[must_use]
    pub fn image(bytes: impl Into<Bytes>) -> Self {
        Self::file(FileKind::Image, bytes, "image/jpeg")
    }

    /// A film, `video/mp4`.
    #[must_use]
    pub fn video(bytes: impl Into<Bytes>) -> Self {
        Self::file(FileKind::Video, bytes, "video/mp4")
    }

    /// A voice note, Ogg with Opus.
    #[must_use]
    pub fn voice(bytes: impl Into<Bytes>) -> Self {
        Self::file(FileKind::Voice, bytes, "audio/ogg; codecs=opus")
    }

    /// A document with a name, `application/pdf`.
    #[must_use]
    pub fn document(bytes: impl Into<Bytes>, filename: &str) -> Self {
        Self::file(FileKind::Document, bytes, "application/pdf").with_file(|file| {
            file.filename = Some(filename.to_owned());
        })
    }

    /// A place.
    #[must_use]
    pub fn location(latitude: f64, longitude: f64, name: &str) -> Self {
        Self::new(Saying::Location { latitude, longitude, name: name.to_owned(), address: String::new() })
    }

    /// Cards of contacts.
    #[must_use]
    pub fn contacts(vcards: &[&str]) -> Self {
        Self::new(Saying::Contacts(vcards.iter().map(|card| (*card).to_owned()).collect()))
    }

    /// A poll.
    #[must_use]
    pub fn poll(name: &str, options: &[&str]) -> Self {
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        Self::new(Saying::Poll { name: name.to_owned(), options, multiple: false })
    }

    /// The same, with its file changed, if it has one.
    #[must_use]
    pub fn with_file(mut self, change: impl FnOnce(&mut SaidFile)) -> Self {
        if let Saying::File(file) = &mut self.saying {
            change(file);
        }
        self
    }

    /// The same, with words under its file.
    #[must_use]
    pub fn caption(self, caption: &str) -> Self {
        self.with_file(|file| caption.clone_into(&mut file.caption))
    }

    /// The same, with its file fetched as `plan` says.
    #[must_use]
    pub fn fetched(self, plan: FilePlan) -> Self {
        self.with_file(|file| file.plan = plan)
    }

    /// The same, under this bare id.
    #[must_use]
    pub fn id(self, id: &str) -> Self {
        Self { id: Some(id.to_owned()), ..self }
    }

    /// The same, written on the account's own phone.
    #[must_use]
    pub fn by_phone(self) -> Self {
        Self { by_phone: true, ..self }
    }

    /// The same, in a group by this participant.
    #[must_use]
    pub fn by(self, participant: &str) -> Self {
        Self { participant: Some(participant.to_owned()), ..self }
    }

    /// The same, by somebody who goes by this name.
    #[must_use]
    pub fn called(self, push_name: &str) -> Self {
        Self { push_name: Some(push_name.to_owned()), ..self }
    }

    /// The same, as an answer to the message with this bare id.
    #[must_use]
    pub fn answering(self, id: &str) -> Self {
        Self { reply_to: Some(id.to_owned()), ..self }
    }

    /// The same, told with these ids.
    #[must_use]
    pub fn named(self, naming: Naming) -> Self {
        Self { naming, ..self }
    }

    /// The same, written at this time.
    #[must_use]
    pub fn at(self, at: DateTime<Utc>) -> Self {
        Self { at: Some(at), ..self }
    }

    /// The same, told by no webhook.
    #[must_use]
    pub fn silently(self) -> Self {
        Self { silent: true, ..self }
    }

    /// The same, undecrypted at first.
    #[must_use]
    pub fn as_stub(self) -> Self {
        Self { stub: true, ..self }
    }

    /// The same, by the own phone, acknowledged so far by the time it is told.
    #[must_use]
    pub fn acked(self, ack: i8) -> Self {
        Self { ack: Some(ack), ..self }
    }
}

impl Saying {
    /// The kind, as the ledger names it.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) => "text",
            Self::File(file) => match file.kind {
                FileKind::Image => "image",
                FileKind::Video => "video",
                FileKind::Voice => "voice",
                FileKind::Document => "file",
            },
            Self::Location { .. } => "location",
            Self::Contacts(_) => "contact",
            Self::Poll { .. } => "poll",
        }
    }

    /// Text, caption, the poll's question or the place's name.
    pub(super) fn words(&self) -> &str {
        match self {
            Self::Text(text) => text,
            Self::File(file) => &file.caption,
            Self::Location { name, .. } => name,
            Self::Contacts(_) => "",
            Self::Poll { name, .. } => name,
        }
    }

    /// All but the words, in the members of WAHA's own sends.
    pub(super) fn content(&self) -> Option<Content> {
        let details = match self {
            Self::Text(_) => return None,
            Self::File(file) => {
                let seen = SeenFile {
                    size: u64::try_from(file.bytes.len()).unwrap_or(u64::MAX),
                    sha256: hex::encode(Sha256::digest(&file.bytes)),
                    mimetype: Some(file.mimetype.clone()),
                    filename: file.filename.clone(),
                    url: None,
                    served_as: None,
                };
                return Some(Content { file: Some(seen), details: Value::Null });
            }
            Self::Location { latitude, longitude, name, address } => {
                json!({"latitude": latitude, "longitude": longitude, "title": name, "address": address})
            }
            Self::Contacts(cards) => {
                json!({"contacts": cards.iter().map(|card| json!({"vcard": card})).collect::<Vec<_>>()})
            }
            Self::Poll { name, options, multiple } => {
                json!({"poll": {"name": name, "options": options, "multipleAnswers": multiple}})
            }
        };
        Some(Content { file: None, details })
    }
}

fn from_base64<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
    let text = String::deserialize(deserializer)?;
    STANDARD.decode(text).map(Bytes::from).map_err(serde::de::Error::custom)
}

/// What somebody is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Presence {
    /// Gone.
    Offline,
    /// There.
    Online,
    /// Writing.
    Typing,
    /// Speaking into the phone.
    Recording,
    /// Stopped writing.
    Paused,
}
