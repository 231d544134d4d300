//! Reading back page by page: what is needed to know where a page ends and which chats have something new.

use chrono::{DateTime, Utc};
use reqwest::Method;
use serde_json::Value;

use super::calls::{MessageFilter, list};
use super::client::{Server, WahaClient};
use super::error::CallError;
use super::id;
use super::message::{WahaMessage, person, seconds};

/// Some messages of a chat or of all chats.
#[derive(Debug)]
pub struct MessagePage {
    /// Those that can be read.
    pub messages: Vec<WahaMessage>,
    /// How many there were; none at all is the end.
    pub rows: usize,
    /// When the latest of them was written, readable or not.
    pub latest: Option<DateTime<Utc>>,
    /// Whether the rows came oldest first. Not every server minds what it was asked for.
    pub ascending: bool,
}

/// A chat and when something last happened in it.
#[derive(Clone, PartialEq, Eq)]
pub struct ChatOverview {
    /// Its WhatsApp id.
    pub id: String,
    /// When its last message was written; `None` where there is none.
    pub last_message_at: Option<DateTime<Utc>>,
}

impl std::fmt::Debug for ChatOverview {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatOverview").field("last_message_at", &self.last_message_at).finish_non_exhaustive()
    }
}

impl ChatOverview {
    fn from_value(row: &Value) -> Option<Self> {
        let name = row.get("id").and_then(id::serialized)?;
        let times = ["/lastMessage/timestamp", "/_chat/conversationTimestamp", "/_chat/timestamp"];
        let last_message_at = times.iter().find_map(|pointer| row.pointer(pointer).and_then(seconds));
        Some(Self { id: person(name), last_message_at })
    }
}

impl WahaClient {
    /// A page of messages as [`WahaClient::messages`] reads them, with the number of rows that it had.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn message_page(
        &self,
        server: &Server,
        session: &str,
        chat_id: &str,
        filter: &MessageFilter,
    ) -> Result<MessagePage, CallError> {
        let rows = self.message_rows(server, session, chat_id, filter).await?;
        let times: Vec<_> = rows.iter().filter_map(|row| row.get("timestamp").and_then(seconds)).collect();
        Ok(MessagePage {
            rows: rows.len(),
            latest: times.iter().max().copied(),
            ascending: times.is_sorted(),
            messages: rows.into_iter().filter_map(WahaMessage::from_value).collect(),
        })
    }

    /// `limit` chats behind the first `offset`, those first in which something happened last. With the number of rows, of
    /// which some may be unreadable.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn chats_overview(
        &self,
        server: &Server,
        session: &str,
        limit: u32,
        offset: u32,
    ) -> Result<(Vec<ChatOverview>, usize), CallError> {
        let call = self
            .request(server, Method::GET, &["api", session, "chats", "overview"])
            .query("limit", &limit.to_string())
            .query("offset", &offset.to_string());
        let rows = list(&call.ok().await?, Some)?;
        Ok((rows.iter().filter_map(ChatOverview::from_value).collect(), rows.len()))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_chats_id_and_time_are_found_in_each_engines_shape() {
        for (row, id, at) in [
            (json!({"id": "1@c.us", "lastMessage": {"timestamp": 1_790_000_000}}), "1@c.us", Some(1_790_000_000)),
            (json!({"id": {"_serialized": "1@g.us"}, "_chat": {"timestamp": 5}}), "1@g.us", Some(5)),
            (json!({"id": "1@s.whatsapp.net", "_chat": {"conversationTimestamp": "7"}}), "1@c.us", Some(7)),
            (json!({"id": "1@lid", "lastMessage": null}), "1@lid", None),
        ] {
            let read = ChatOverview::from_value(&row).unwrap();
            assert_eq!((read.id.as_str(), read.last_message_at.map(|at| at.timestamp())), (id, at), "{row}");
        }
        assert_eq!(ChatOverview::from_value(&json!({"name": "no id"})), None);
    }
}
