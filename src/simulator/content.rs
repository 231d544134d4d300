//! What a message says: its words, its file (fetched as WAHA fetches it) and whatever its kind has beyond.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::StreamExt as _;
use serde::Serialize;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::mailbox::Mailbox;
use super::routes::Call;
use super::sends::bare_id;
use super::session::Session;
use super::world::{World, lock};

/// How often a file is asked for, as `axios-retry` does: connections that break and 5xx only.
const FETCHES: u8 = 4;

/// Members of a send that are kept for the ledger as they were given.
const DETAILS: [&str; 13] = [
    "poll",
    "latitude",
    "longitude",
    "title",
    "contacts",
    "reply_to",
    "mentions",
    "linkPreview",
    "linkPreviewHighQuality",
    "convert",
    "asNote",
    "preview",
    "message",
];

/// A file as the recipient has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SeenFile {
    /// Bytes.
    pub size: u64,
    /// SHA-256 of the bytes, in lower-case hexadecimal.
    pub sha256: String,
    /// The type the send named.
    pub mimetype: Option<String>,
    /// The name the send gave it.
    pub filename: Option<String>,
    /// The URL it was fetched from; none when the bytes came with the send.
    pub url: Option<String>,
    /// The `Content-Type` that URL answered.
    pub served_as: Option<String>,
}

/// All but the words.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Content {
    pub file: Option<SeenFile>,
    /// An object, or null when there is nothing.
    pub details: Value,
}

/// A message as the engine understood it.
pub(super) struct Said {
    pub kind: &'static str,
    pub text: String,
    pub content: Option<Content>,
}

/// Why a message cannot be made.
pub(super) enum Missing {
    /// A member the engine reads without looking; Node's word for it is in the answer.
    Property(&'static str),
    /// The message to forward.
    Message,
    /// The file, with what the HTTP client says of it.
    File(String),
}

/// Whether understanding the send takes time.
pub(super) fn is_fetched(call: &Call) -> bool {
    call.body.pointer("/file/url").is_some_and(Value::is_string)
}

/// The words of a send, before anything is checked.
pub(super) fn words(call: &Call) -> Option<&str> {
    let at = |pointer: &str| call.body.pointer(pointer).and_then(Value::as_str);
    at("/text").or(at("/caption")).or(at("/poll/name")).or(at("/title")).or(at("/contacts/0/fullName"))
}

/// The kind, the words and the rest of a send.
pub(super) async fn understand(
    world: &World,
    session: &Session,
    kind: &'static str,
    call: &Call,
) -> Result<Said, Missing> {
    let at = |pointer: &str| call.body.pointer(pointer).and_then(Value::as_str);
    let mut file = None;
    let text = match kind {
        "text" => at("/text").ok_or(Missing::Property("match"))?,
        "image" | "file" | "voice" | "video" => {
            file = Some(fetch(world, call).await?);
            at("/caption").unwrap_or_default()
        }
        "poll" => at("/poll/name").ok_or(Missing::Property("name"))?,
        "location" => at("/title").unwrap_or_default(),
        "contact" => at("/contacts/0/fullName").or(at("/contacts/0/vcard")).ok_or(Missing::Property("map"))?,
        _ => {
            let id = bare_id(at("/messageId").ok_or(Missing::Property("split"))?);
            return forwarded(&lock(&session.mailbox), id).ok_or(Missing::Message);
        }
    };
    let members = DETAILS.iter().filter_map(|name| Some(((*name).to_owned(), call.body.get(name)?.clone())));
    let details: Map<String, Value> = members.filter(|(_, value)| !value.is_null()).collect();
    let empty = file.is_none() && details.is_empty();
    let details = if details.is_empty() { Value::Null } else { Value::Object(details) };
    Ok(Said { kind, text: text.to_owned(), content: (!empty).then_some(Content { file, details }) })
}

fn forwarded(mailbox: &Mailbox, id: &str) -> Option<Said> {
    let entry = mailbox.find(None, id).and_then(|index| mailbox.get(index))?;
    let file = entry.content.as_deref().and_then(|content| content.file.clone());
    let mut details = match entry.content.as_deref().map(|content| content.details.clone()) {
        Some(Value::Object(details)) => details,
        _ => Map::new(),
    };
    details.insert("forwarded".to_owned(), Value::Bool(true));
    let content = Content { file, details: Value::Object(details) };
    Some(Said { kind: entry.kind, text: entry.text.as_ref().to_owned(), content: Some(content) })
}

async fn fetch(world: &World, call: &Call) -> Result<SeenFile, Missing> {
    let member = |name: &str| call.body.get("file").and_then(|file| file.get(name)).and_then(Value::as_str);
    let named = SeenFile {
        size: 0,
        sha256: String::new(),
        mimetype: member("mimetype").map(str::to_owned),
        filename: member("filename").map(str::to_owned),
        url: None,
        served_as: None,
    };
    match (member("url"), member("data")) {
        (Some(url), _) => {
            let mut attempt = 1;
            loop {
                match download(world, url).await {
                    Ok((size, sha256, served_as)) => {
                        return Ok(SeenFile { size, sha256, url: Some(url.to_owned()), served_as, ..named });
                    }
                    Err((message, lasting)) if lasting || attempt == FETCHES => return Err(Missing::File(message)),
                    Err(_) => attempt += 1,
                }
            }
        }
        (None, Some(data)) => {
            let bytes = STANDARD.decode(data).map_err(|_| Missing::File("Invalid base64".to_owned()))?;
            let size = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
            Ok(SeenFile { size, sha256: hex::encode(Sha256::digest(&bytes)), ..named })
        }
        (None, None) => Err(Missing::Property("url")),
    }
}

/// Size, hash and type; an error says whether asking again is pointless. Never holds the whole file.
async fn download(world: &World, url: &str) -> Result<(u64, String, Option<String>), (String, bool)> {
    let broken = |_: reqwest::Error| ("socket hang up".to_owned(), false);
    let request = world.poster.get(url).header("accept", "application/json, text/plain, */*");
    let response = request.send().await.map_err(broken)?;
    let status = response.status();
    if !status.is_success() {
        return Err((format!("Request failed with status code {}", status.as_u16()), !status.is_server_error()));
    }
    let served_as = response.headers().get("content-type").and_then(|value| value.to_str().ok()).map(str::to_owned);
    let (mut size, mut hash, mut parts) = (0_u64, Sha256::new(), response.bytes_stream());
    while let Some(part) = parts.next().await {
        let part = part.map_err(broken)?;
        size += u64::try_from(part.len()).unwrap_or(0);
        hash.update(&part);
    }
    Ok((size, hex::encode(hash.finalize()), served_as))
}
