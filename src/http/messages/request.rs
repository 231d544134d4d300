//! What a request to send says, checked: every fault is named, and nothing is done before all is found well.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use serde::Deserialize;
use serde_json::{Map, Value};
use url::Url;
use utoipa::ToSchema;

use super::content;
use crate::domain::content::{ContactCard, Content, Kind, Location, MediaContent, Poll};
use crate::domain::ids::{MediaId, MessageId, SessionId};
use crate::domain::recipient::{ChatId, InvalidRecipient};
use crate::guard::Guard;
use crate::http::problem::{FieldError, Problem};
use crate::http::rules::Rules;
use crate::messages::view::Priority;

/// Characters in a text, at the most.
pub(super) const MOST_TEXT: usize = 5000;
/// Characters in a caption, at the most: WhatsApp's own bound.
pub(super) const MOST_CAPTION: usize = Kind::MOST_CAPTION;
/// Bytes of JSON in `metadata`, at the most.
const MOST_METADATA: usize = 16 * 1024;
/// People mentioned, at the most: as many as a group has members.
const MOST_MENTIONS: usize = 1024;
/// How far ahead a message can be scheduled.
const FARTHEST: TimeDelta = TimeDelta::days(366);
/// A `scheduled_at` in the past is taken for "now" if it is no older than this; else it is a mistake.
const OLDEST: TimeDelta = TimeDelta::hours(24);

/// A file to send: named by exactly one of `id`, `url` and `data`.
#[derive(Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"url": "https://example.com/menu.pdf", "filename": "Menu.pdf"}))]
pub(in crate::http) struct MediaRequest {
    /// A file that was uploaded before.
    pub(super) id: Option<MediaId>,
    /// Where the file is fetched from before it is sent: `https`, on the public internet, at most 64 MiB.
    #[schema(example = "https://example.com/menu.pdf")]
    pub(super) url: Option<String>,
    /// The file itself in base64; the body of a request has 1 MiB at the most, so upload larger ones.
    pub(super) data: Option<String>,
    /// What it is; found out from the bytes if left out.
    #[schema(example = "application/pdf")]
    pub(super) mime_type: Option<String>,
    /// The name that the recipient sees.
    #[schema(example = "Menu.pdf")]
    pub(super) filename: Option<String>,
}

/// A message to be sent.
#[derive(Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"to": "+15550100001", "body": "Your order has left the house.", "metadata": {"order": "4711"}}))]
pub(in crate::http) struct SendMessage {
    /// The session to send by; may be left out when the tenant has exactly one.
    pub(super) session_id: Option<SessionId>,
    /// Instead of `session_id`: the name or the id of a sender pool, one of whose sessions sends it. All messages to one
    /// recipient are sent by the same one, as long as it works.
    #[schema(max_length = 100, example = json!(null))]
    pub(super) pool: Option<String>,
    /// The recipient: a phone number in E.164 (country code first, no national leading zero), with or without `+` and separators,
    /// or a WhatsApp id (`…@c.us`, `…@g.us`, `…@lid`, `…@newsletter`).
    #[schema(example = "+15550100001")]
    pub(super) to: String,
    /// The kind of content: `text` (the default), `image`, `video`, `voice`, `document`, `location`, `contact`, `poll`.
    #[serde(default, rename = "type")]
    pub(super) kind: Option<String>,
    /// The text, 1 to 5000 characters; for an image, video or document the caption, at most 1024. The other types have none.
    #[schema(min_length = 1, max_length = 5000)]
    pub(super) body: Option<String>,
    /// The file of an image, video, voice message or document.
    pub(super) media: Option<MediaRequest>,
    /// The place of a `location`.
    pub(super) location: Option<Location>,
    /// The cards of a `contact`: 1 to 50.
    #[schema(min_items = 1, max_items = 50)]
    pub(super) contacts: Option<Vec<ContactCard>>,
    /// The question of a `poll`.
    pub(super) poll: Option<Poll>,
    /// The message that this one answers: one of the same session and chat.
    pub(super) reply_to: Option<MessageId>,
    /// Who is mentioned: phone numbers or WhatsApp ids (say `@<number>` in the body, too); in a group also `["all"]`. For texts, images, videos and
    /// documents.
    #[schema(example = json!(["+15550100002"]))]
    pub(super) mentions: Option<Vec<String>>,
    /// Whether the first link of a text gets a preview; it does unless this is `false`.
    pub(super) link_preview: Option<bool>,
    /// How urgent; `normal` is the default.
    #[serde(default)]
    pub(super) priority: Priority,
    /// Not to leave before: at most a year ahead. A time up to a day in the past means at once.
    pub(super) scheduled_at: Option<DateTime<Utc>>,
    /// Not to leave after; the message then ends as `expired`.
    pub(super) expires_at: Option<DateTime<Utc>>,
    /// Your own id of the message, 1 to 255 characters without white space. A second message with it is refused for good (409), also long after
    /// an Idempotency-Key would be forgotten.
    #[schema(min_length = 1, max_length = 255, example = "order-4711/shipped")]
    pub(super) client_reference: Option<String>,
    /// Your own data, an object of at most 16 KiB; shown with the message and its events.
    #[serde(default)]
    #[schema(value_type = Object)]
    pub(super) metadata: Option<Map<String, Value>>,
}

// They hold text and numbers, which belong in no log.
impl std::fmt::Debug for SendMessage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SendMessage(…)")
    }
}

/// Bytes that came with the request.
pub(super) struct Upload {
    pub(super) bytes: Bytes,
    pub(super) mime_type: Option<String>,
    pub(super) filename: Option<String>,
}

/// A request to send that is well in itself; what it refers to is still to be looked up.
pub(super) struct Valid {
    pub(super) session: Option<SessionId>,
    pub(super) pool: Option<String>,
    pub(super) chat: ChatId,
    pub(super) kind: Kind,
    pub(super) body: Option<String>,
    pub(super) content: Content,
    pub(super) upload: Option<Upload>,
    pub(super) reply_to: Option<MessageId>,
    pub(super) priority: Priority,
    pub(super) scheduled_at: Option<DateTime<Utc>>,
    pub(super) expires_at: Option<DateTime<Utc>>,
    pub(super) client_reference: Option<String>,
    pub(super) metadata: Value,
}

/// What the checks need to know.
#[derive(Clone, Copy)]
pub(super) struct Bounds {
    pub(super) now: DateTime<Utc>,
    pub(super) guard: Guard,
}

impl SendMessage {
    /// The request, checked; every fault is named.
    pub(super) fn check(self, bounds: Bounds) -> Result<Valid, Problem> {
        let mut rules = Rules::new();
        let chat = recipient(&mut rules, "to", &self.to);
        let kind = match self.kind.as_deref().map(str::parse::<Kind>) {
            None => Some(Kind::Text),
            Some(Ok(kind)) => Some(kind),
            Some(Err(_)) => {
                let kinds = Kind::ALL.map(Kind::as_str).join(", ");
                rules.broken("type", "unsupported", format!("must be one of {kinds}"));
                None
            }
        };
        let in_group = chat.as_ref().is_some_and(ChatId::is_group);
        let mut content = Content::default();
        let mut upload = None;
        let mut body = None;
        // Without a known type nothing can be said about what belongs to it.
        if let Some(kind) = kind {
            body = check_body(&mut rules, kind, self.body);
            belongs(&mut rules, kind, "media", self.media.is_some(), kind.has_media(), true);
            belongs(&mut rules, kind, "location", self.location.is_some(), kind == Kind::Location, true);
            belongs(&mut rules, kind, "contacts", self.contacts.is_some(), kind == Kind::Contact, true);
            belongs(&mut rules, kind, "poll", self.poll.is_some(), kind == Kind::Poll, true);
            let mentions = matches!(kind, Kind::Text | Kind::Image | Kind::Video | Kind::Document);
            belongs(&mut rules, kind, "mentions", self.mentions.is_some(), mentions, false);
            belongs(&mut rules, kind, "link_preview", self.link_preview.is_some(), kind == Kind::Text, false);
            if let Some(media) = self.media.filter(|_| kind.has_media()) {
                (content.media, upload) = check_media(&mut rules, kind, media, bounds.guard);
            }
        }
        content.location = self.location.inspect(|place| content::location(&mut rules, place));
        content.contacts = content::contacts(&mut rules, self.contacts);
        content.poll = self.poll.inspect(|poll| content::poll(&mut rules, poll));
        content.mentions = check_mentions(&mut rules, self.mentions.unwrap_or_default(), in_group);
        content.link_preview = self.link_preview;
        if self.pool.is_some() && self.session_id.is_some() {
            rules.broken("pool", "invalid_combination", "must not be given together with `session_id`");
        }
        check_times(&mut rules, self.scheduled_at, self.expires_at, bounds.now);
        if let Some(reference) = &self.client_reference {
            let visible = |letter: char| !letter.is_whitespace() && !letter.is_control();
            let length = reference.chars().count();
            rules.check(length > 0, "client_reference", "required", "must have 1 to 255 characters");
            rules.check(length <= 255, "client_reference", "too_long", "must have 1 to 255 characters");
            let fits = reference.chars().all(visible);
            rules.check(fits, "client_reference", "invalid_character", "must have visible characters only");
        }
        let metadata = Value::Object(self.metadata.unwrap_or_default());
        if metadata.to_string().len() > MOST_METADATA {
            rules.broken("metadata", "too_long", "must be at most 16 KiB of JSON");
        }
        rules.finish()?;
        // With no rule broken, both are there.
        let (Some(chat), Some(kind)) = (chat, kind) else { return Err(Problem::validation(Vec::new())) };
        Ok(Valid {
            session: self.session_id,
            pool: self.pool,
            chat,
            kind,
            body,
            content,
            upload,
            reply_to: self.reply_to,
            priority: self.priority,
            scheduled_at: self.scheduled_at,
            expires_at: self.expires_at,
            client_reference: self.client_reference,
            metadata,
        })
    }
}

/// Reads a recipient; what is wrong is noted.
pub(super) fn recipient(rules: &mut Rules, field: &str, text: &str) -> Option<ChatId> {
    ChatId::parse(text).map_err(|fault| rules.broken(field, recipient_code(fault), fault.to_string())).ok()
}

/// The code of a broken rule about recipients.
pub(super) const fn recipient_code(fault: InvalidRecipient) -> &'static str {
    match fault {
        InvalidRecipient::Empty => "required",
        InvalidRecipient::CallPrefix | InvalidRecipient::NationalForm => "no_country_code",
        InvalidRecipient::NationalZero
        | InvalidRecipient::Length
        | InvalidRecipient::Letters
        | InvalidRecipient::Shape => "invalid_recipient",
    }
}

/// Notes a member that the type does not have, or that it lacks.
fn belongs(rules: &mut Rules, kind: Kind, field: &str, given: bool, fits: bool, needed: bool) {
    if given && !fits {
        rules.broken(field, "not_allowed", format!("does not belong to a message of type `{kind}`"));
    } else if !given && fits && needed {
        rules.broken(field, "required", format!("is required for a message of type `{kind}`"));
    }
}

fn check_body(rules: &mut Rules, kind: Kind, body: Option<String>) -> Option<String> {
    let length = body.as_ref().map_or(0, |body| body.chars().count());
    match kind {
        Kind::Text => {
            rules.check(length > 0, "body", "required", "must have 1 to 5000 characters");
            rules.check(length <= MOST_TEXT, "body", "too_long", "must have 1 to 5000 characters");
            body
        }
        Kind::Image | Kind::Video | Kind::Document => {
            rules.check(
                length <= MOST_CAPTION,
                "body",
                "too_long",
                "as a caption it must have at most 1024 characters",
            );
            body.filter(|body| !body.is_empty())
        }
        Kind::Voice | Kind::Location | Kind::Contact | Kind::Poll => {
            belongs(rules, kind, "body", body.is_some(), false, false);
            None
        }
    }
}

fn check_media(
    rules: &mut Rules,
    kind: Kind,
    media: MediaRequest,
    guard: Guard,
) -> (Option<MediaContent>, Option<Upload>) {
    let MediaRequest { id, url, data, mime_type, filename } = media;
    let given = usize::from(id.is_some()) + usize::from(url.is_some()) + usize::from(data.is_some());
    rules.check(given == 1, "media", "invalid_value", "must have exactly one of `id`, `url` and `data`");
    if let Some(mime_type) = &mime_type {
        content::mime_type(rules, kind, mime_type);
    }
    if let Some(filename) = &filename {
        rules.name("media.filename", filename, 255);
        let bare = !filename.contains(['/', '\\']);
        rules.check(bare, "media.filename", "invalid_character", "must be a name without a path");
    }
    let url = url.and_then(|url| content::media_url(rules, &url, guard));
    if given != 1 {
        return (None, None);
    }
    let upload = data.and_then(|data| match STANDARD.decode(data.as_bytes()) {
        Ok(bytes) if !bytes.is_empty() => {
            Some(Upload { bytes: bytes.into(), mime_type: mime_type.clone(), filename: filename.clone() })
        }
        Ok(_) => {
            rules.broken("media.data", "required", "must not be empty");
            None
        }
        Err(_) => {
            rules.broken("media.data", "invalid_value", "must be base64 (the standard alphabet, padded)");
            None
        }
    });
    (Some(MediaContent { id, url: url.map(Url::into), mime_type, filename, ..MediaContent::default() }), upload)
}

fn check_mentions(rules: &mut Rules, mentions: Vec<String>, in_group: bool) -> Vec<String> {
    if mentions.len() > MOST_MENTIONS {
        rules.broken("mentions", "too_long", format!("must name at most {MOST_MENTIONS} people"));
        return Vec::new();
    }
    let several = mentions.len() > 1;
    let mut chats: Vec<String> = Vec::with_capacity(mentions.len());
    for (index, mention) in mentions.iter().enumerate() {
        let field = format!("mentions[{index}]");
        if mention == "all" {
            rules.check(in_group, &field, "not_allowed", "`all` can be mentioned in a group only");
            rules.check(!several, &field, "invalid_value", "`all` must stand alone");
            chats.push("all".to_owned());
        } else if let Some(chat) = recipient(rules, &field, mention) {
            rules.check(chat.is_person(), &field, "invalid_value", "must be a person");
            if !chats.iter().any(|known| known == chat.as_str()) {
                chats.push(chat.as_str().to_owned());
            }
        }
    }
    chats
}

fn check_times(
    rules: &mut Rules,
    scheduled: Option<DateTime<Utc>>,
    expires: Option<DateTime<Utc>>,
    now: DateTime<Utc>,
) {
    if let Some(at) = scheduled {
        rules.check(at >= now - OLDEST, "scheduled_at", "out_of_range", "must not be more than a day in the past");
        rules.check(at <= now + FARTHEST, "scheduled_at", "out_of_range", "must be at most a year ahead");
    }
    if let Some(at) = expires {
        rules.future("expires_at", at, now);
        let after = scheduled.is_none_or(|scheduled| at > scheduled);
        rules.check(after, "expires_at", "out_of_range", "must be after `scheduled_at`");
    }
}

/// The fault of a member with this path, in a problem of its own.
pub(super) fn fault(field: &str, code: &str, message: impl Into<String>) -> Problem {
    Problem::validation(vec![FieldError::new(field, code, message)])
}
