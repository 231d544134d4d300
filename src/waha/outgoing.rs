//! What can be sent, in WAHA's words.
//!
//! `id` is the WhatsApp message id the gateway chose ([`super::new_message_id`]); engines that do not honour ids ignore it. `reply_to`
//! and `mentions` are ids as WAHA knows them. None of these types shows its content in `Debug`.

use std::fmt;

use serde::{Serialize, Serializer};
use url::Url;

use crate::domain::content::Kind;

/// A text message.
#[derive(Clone, Default, Serialize)]
pub struct SendText {
    /// The session's name on the WAHA server.
    pub session: String,
    /// The chat it goes to.
    #[serde(rename = "chatId")]
    pub chat_id: String,
    /// The text.
    pub text: String,
    /// The message id to use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The message it answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply_to: Option<String>,
    /// The people it mentions.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mentions: Vec<String>,
    /// Whether a link gets a preview; WAHA's default is yes.
    #[serde(rename = "linkPreview", skip_serializing_if = "Option::is_none")]
    pub link_preview: Option<bool>,
}

/// The kinds of media, each with an endpoint of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MediaKind {
    /// A picture.
    Image,
    /// A video; WAHA converts it to MP4.
    Video,
    /// A voice message; WAHA converts it to Ogg Opus.
    Voice,
    /// Any file, shown as a document.
    Document,
}

impl MediaKind {
    fn endpoint(self) -> &'static str {
        match self {
            Self::Image => "sendImage",
            Self::Video => "sendVideo",
            Self::Voice => "sendVoice",
            Self::Document => "sendFile",
        }
    }

    fn is_sent_as_it_is(&self) -> bool {
        matches!(self, Self::Image | Self::Document)
    }
}

fn as_true<S: Serializer>(_kind: &MediaKind, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_bool(true)
}

/// Where a file's bytes come from.
#[derive(Clone, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FileSource {
    /// WAHA fetches it from here.
    Url(#[serde(serialize_with = "as_text")] Url),
    /// The bytes, in base64.
    Data(String),
}

fn as_text<S: Serializer>(url: &Url, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(url.as_str())
}

/// A file to send.
#[derive(Clone, Serialize)]
pub struct MediaFile {
    /// Its media type.
    pub mimetype: String,
    /// Its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filename: Option<String>,
    /// Its bytes.
    #[serde(flatten)]
    pub source: FileSource,
}

/// A file with an optional caption.
#[derive(Clone, Serialize)]
pub struct SendMedia {
    /// What it is shown as. WAHA may convert voice and video to what WhatsApp plays.
    #[serde(rename = "convert", serialize_with = "as_true", skip_serializing_if = "MediaKind::is_sent_as_it_is")]
    pub kind: MediaKind,
    /// The session's name on the WAHA server.
    pub session: String,
    /// The chat it goes to.
    #[serde(rename = "chatId")]
    pub chat_id: String,
    /// The file.
    pub file: MediaFile,
    /// Text under it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub caption: Option<String>,
    /// The message id to use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The message it answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply_to: Option<String>,
    /// The people its caption mentions.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mentions: Vec<String>,
}

/// A place.
#[derive(Clone, Serialize)]
pub struct SendLocation {
    /// The session's name on the WAHA server.
    pub session: String,
    /// The chat it goes to.
    #[serde(rename = "chatId")]
    pub chat_id: String,
    /// Degrees north.
    pub latitude: f64,
    /// Degrees east.
    pub longitude: f64,
    /// What the place is called; may be empty.
    pub title: String,
    /// The message id to use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The message it answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply_to: Option<String>,
}

/// A person's card.
#[derive(Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ContactCard {
    /// The name shown.
    pub full_name: String,
    /// The number shown, with `+`.
    pub phone_number: String,
    /// Where the person works.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub organization: Option<String>,
    /// Digits of the person's WhatsApp number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub whatsapp_id: Option<String>,
}

/// One or more cards.
#[derive(Clone, Serialize)]
pub struct SendContacts {
    /// The session's name on the WAHA server.
    pub session: String,
    /// The chat it goes to.
    #[serde(rename = "chatId")]
    pub chat_id: String,
    /// The cards.
    pub contacts: Vec<ContactCard>,
    /// The message id to use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The message it answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply_to: Option<String>,
}

/// A poll.
#[derive(Clone, Serialize)]
pub struct SendPoll {
    /// The session's name on the WAHA server.
    pub session: String,
    /// The chat it goes to.
    #[serde(rename = "chatId")]
    pub chat_id: String,
    /// The question and its options.
    pub poll: Poll,
    /// The message id to use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The message it answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply_to: Option<String>,
}

/// What a poll asks.
#[derive(Clone, Serialize)]
pub struct Poll {
    /// The question.
    pub name: String,
    /// 2 to 12 options.
    pub options: Vec<String>,
    /// Whether more than one may be chosen.
    #[serde(rename = "multipleAnswers")]
    pub multiple_answers: bool,
}

/// A message that is passed on as it is.
#[derive(Clone, Serialize)]
pub struct ForwardMessage {
    /// The session's name on the WAHA server.
    pub session: String,
    /// The chat it goes to.
    #[serde(rename = "chatId")]
    pub chat_id: String,
    /// WhatsApp's id, whole, of the message that is passed on.
    #[serde(rename = "messageId")]
    pub message_id: String,
    /// The message id to use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
}

/// Anything that can be sent.
#[derive(Clone, Serialize)]
#[serde(untagged)]
pub enum Outgoing {
    /// A text message.
    Text(SendText),
    /// A file.
    Media(SendMedia),
    /// A place.
    Location(SendLocation),
    /// Cards.
    Contacts(SendContacts),
    /// A poll.
    Poll(SendPoll),
    /// Another message, passed on.
    Forward(ForwardMessage),
}

/// The endpoint that takes messages of `kind`, or that passes another message on.
#[must_use]
pub const fn endpoint_of(kind: Kind, forwards: bool) -> &'static str {
    match kind {
        _ if forwards => "forwardMessage",
        Kind::Text => "sendText",
        Kind::Image => "sendImage",
        Kind::Video => "sendVideo",
        Kind::Voice => "sendVoice",
        Kind::Document => "sendFile",
        Kind::Location => "sendLocation",
        Kind::Contact => "sendContactVcard",
        Kind::Poll => "sendPoll",
    }
}

impl Outgoing {
    /// The last part of the endpoint's path.
    #[must_use]
    pub fn endpoint(&self) -> &'static str {
        match self {
            Self::Text(_) => "sendText",
            Self::Media(media) => media.kind.endpoint(),
            Self::Location(_) => "sendLocation",
            Self::Contacts(_) => "sendContactVcard",
            Self::Poll(_) => "sendPoll",
            Self::Forward(_) => "forwardMessage",
        }
    }
}

macro_rules! opaque {
    ($($name:ident)+) => {$(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "(…)"))
            }
        }
    )+};
}

opaque! { SendText SendMedia SendLocation SendContacts SendPoll ForwardMessage Poll ContactCard MediaFile FileSource Outgoing }
