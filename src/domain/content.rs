//! What a message says beyond its text.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::ids::MediaId;

/// The kinds of content a message can have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Text alone.
    #[default]
    Text,
    /// A picture, with an optional caption.
    Image,
    /// A video, with an optional caption.
    Video,
    /// A voice message.
    Voice,
    /// A file, with an optional caption.
    Document,
    /// A place.
    Location,
    /// One or more contact cards.
    Contact,
    /// A poll.
    Poll,
}

impl Kind {
    /// Every kind that can be sent, in the order of the documentation.
    pub const ALL: [Self; 8] =
        [Self::Text, Self::Image, Self::Video, Self::Voice, Self::Document, Self::Location, Self::Contact, Self::Poll];

    /// Characters in a caption, at the most.
    pub const MOST_CAPTION: usize = 1024;

    /// The kind as the API and the database write it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Image => "image",
            Self::Video => "video",
            Self::Voice => "voice",
            Self::Document => "document",
            Self::Location => "location",
            Self::Contact => "contact",
            Self::Poll => "poll",
        }
    }

    /// Whether it carries a file.
    #[must_use]
    pub const fn has_media(self) -> bool {
        matches!(self, Self::Image | Self::Video | Self::Voice | Self::Document)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text names no kind of content that can be sent.
#[derive(Debug, thiserror::Error)]
#[error("not a kind of message")]
pub struct UnknownKind;

impl FromStr for Kind {
    type Err = UnknownKind;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text).ok_or(UnknownKind)
    }
}

/// How far the file of a message that was received, or written on the phone, has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum MediaStatus {
    /// It is being fetched from WhatsApp.
    Pending,
    /// It is stored.
    Stored,
    /// It could not be fetched, or is not to be kept; `error` says why.
    Failed,
    /// WhatsApp does not have it any more.
    Expired,
}

impl MediaStatus {
    /// The status as the API and the database write it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Stored => "stored",
            Self::Failed => "failed",
            Self::Expired => "expired",
        }
    }
}

/// A file of a message: one that is stored; one that is fetched from `url` before the message is sent; or one that came with a
/// message, which has a `status`.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MediaContent {
    /// The stored file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<MediaId>,
    /// Where it is fetched from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// What the tenant says it is; the stored file's own type is found out from its bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mime_type: Option<String>,
    /// The name shown to the recipient.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filename: Option<String>,
    /// Of a file that came with a message: how far it has come. `GET /v1/messages/{id}/media` has it once it is `stored`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<MediaStatus>,
    /// Its size in bytes, once it is stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<i64>,
    /// The width of a stored picture, in pixels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub width: Option<i32>,
    /// The height of a stored picture, in pixels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub height: Option<i32>,
    /// Whether there is a small picture of it: `GET /v1/messages/{id}/media?thumbnail=true`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thumbnail: Option<bool>,
    /// Why it is not to be had, in one stable word: `too_large`, `empty`, `not_found`, `unavailable`, `session_deleted`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A place.
#[derive(Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Location {
    /// Degrees north, −90 to 90.
    #[schema(minimum = -90, maximum = 90)]
    pub latitude: f64,
    /// Degrees east, −180 to 180.
    #[schema(minimum = -180, maximum = 180)]
    pub longitude: f64,
    /// What the place is called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// A person's card.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ContactCard {
    /// The name shown.
    pub full_name: String,
    /// The number shown, in E.164.
    pub phone: String,
    /// Where the person works.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub organization: Option<String>,
}

/// A question with options.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Poll {
    /// The question.
    pub question: String,
    /// 2 to 12 different options.
    #[schema(min_items = 2, max_items = 12)]
    pub options: Vec<String>,
    /// Whether more than one may be chosen.
    #[serde(default)]
    pub multiple: bool,
}

/// What a message says beyond its body; what its kind does not need is absent.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Content {
    /// The file of an image, video, voice message or document.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media: Option<MediaContent>,
    /// The place of a location.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub location: Option<Location>,
    /// The cards of a contact.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub contacts: Vec<ContactCard>,
    /// The question of a poll.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub poll: Option<Poll>,
    /// The people mentioned, as WhatsApp ids, or `all`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mentions: Vec<String>,
    /// Whether the first link of a text gets a preview; absent: it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link_preview: Option<bool>,
    /// WhatsApp's id, whole, of the message that this one forwards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forwards: Option<String>,
}

impl Content {
    /// Whether there is nothing beyond the body.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

macro_rules! opaque {
    ($($name:ident)+) => {$(
        // Numbers, names and addresses belong in no log.
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "(…)"))
            }
        }
    )+};
}

opaque! { MediaContent Location ContactCard Poll Content }
