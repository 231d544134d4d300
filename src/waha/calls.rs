//! Every call but sends: sessions, pairing, reading back, number checks, and the server itself.

use std::time::Duration;

use chrono::{DateTime, Utc};
use reqwest::Method;
use secrecy::SecretString;
use serde_json::{Value, json};

use super::client::{Call, Server, WahaClient};
use super::engine::Engine;
use super::error::CallError;
use super::message::{WahaMessage, milliseconds, text};
use super::session::{Me, SessionInfo, SessionSpec};

/// Which messages to read back.
#[derive(Clone, Copy, Debug, Default)]
pub struct MessageFilter {
    /// At most this many; WAHA's default is 10.
    pub limit: Option<u32>,
    /// Skip this many; advance by `limit` even when a page came back short.
    pub offset: Option<u32>,
    /// Only own messages, or only others'.
    pub from_me: Option<bool>,
    /// Written at this time or later; to the second.
    pub since: Option<DateTime<Utc>>,
    /// Written at this time or earlier; to the second.
    pub until: Option<DateTime<Utc>>,
    /// Oldest first instead of newest first.
    pub oldest_first: bool,
}

/// What WhatsApp knows about a number.
#[derive(Clone, PartialEq, Eq)]
pub struct NumberCheck {
    /// Whether the number has WhatsApp.
    pub exists: bool,
    /// The chat to write to; may differ from the number asked about (Brazil) and may be a hidden id.
    pub chat_id: Option<String>,
    /// The number as a WhatsApp id, where the server tells it apart from `chat_id`.
    pub phone_id: Option<String>,
}

/// A person's two ids, as far as they are known.
#[derive(Clone, PartialEq, Eq)]
pub struct LidPair {
    /// The hidden id, `…@lid`.
    pub lid: Option<String>,
    /// The phone's id, `…@c.us`.
    pub phone_id: Option<String>,
}

/// What runs on a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerVersion {
    /// WAHA's version, such as `2026.7.1`.
    pub version: String,
    /// Its engine.
    pub engine: Option<Engine>,
    /// Its edition, `CORE` or `PLUS`. It says something of versions before 2026.6.1 only.
    pub tier: Option<String>,
}

/// Since when a server runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerStatus {
    /// When its process started; another value means that it was restarted.
    pub started_at: DateTime<Utc>,
    /// How long it has been running.
    pub uptime: Duration,
}

impl WahaClient {
    /// Creates a session. Some servers answer with nothing: `None`.
    ///
    /// # Errors
    /// [`CallError::AlreadyExists`] when the name is taken; see [`CallError`] for the rest.
    pub async fn create_session(
        &self,
        server: &Server,
        spec: &SessionSpec,
        start: bool,
    ) -> Result<Option<SessionInfo>, CallError> {
        let call = self.request(server, Method::POST, &["api", "sessions"]).json(&spec.create_body(start))?;
        optional(&call.ok().await?, SessionInfo::from_value)
    }

    /// One session; `None` when the server has none of that name.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn get_session(&self, server: &Server, name: &str) -> Result<Option<SessionInfo>, CallError> {
        match self.request(server, Method::GET, &["api", "sessions", name]).ok().await {
            Ok(body) => optional(&body, SessionInfo::from_value),
            Err(CallError::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The server's sessions, with `all` the stopped ones too.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn list_sessions(&self, server: &Server, all: bool) -> Result<Vec<SessionInfo>, CallError> {
        let call = self.request(server, Method::GET, &["api", "sessions"]);
        let call = if all { call.query("all", "true") } else { call };
        list(&call.ok().await?, SessionInfo::from_value)
    }

    /// Replaces a session's configuration, which restarts it unless it is stopped.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn update_session(&self, server: &Server, spec: &SessionSpec) -> Result<Option<SessionInfo>, CallError> {
        let call = self.request(server, Method::PUT, &["api", "sessions", &spec.name]).json(&spec.update_body())?;
        optional(&call.ok().await?, SessionInfo::from_value)
    }

    /// Starts a session; one that runs already is left alone.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn start(&self, server: &Server, name: &str) -> Result<(), CallError> {
        match self.order(server, name, "start").await {
            Err(CallError::Rule(message)) if message.contains("already started") => Ok(()),
            outcome => outcome,
        }
    }

    /// Stops a session and keeps its pairing; one that is stopped or gone is left alone.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn stop(&self, server: &Server, name: &str) -> Result<(), CallError> {
        self.order(server, name, "stop").await
    }

    /// Stops and starts a session.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn restart(&self, server: &Server, name: &str) -> Result<(), CallError> {
        self.order(server, name, "restart").await
    }

    /// Drops a session's pairing and keeps its configuration.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn logout(&self, server: &Server, name: &str) -> Result<(), CallError> {
        self.order(server, name, "logout").await
    }

    /// Removes a session with its pairing and data; one that is gone is fine.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn delete(&self, server: &Server, name: &str) -> Result<(), CallError> {
        match self.request(server, Method::DELETE, &["api", "sessions", name]).ok().await {
            Ok(_) | Err(CallError::NotFound) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn order(&self, server: &Server, name: &str, order: &str) -> Result<(), CallError> {
        self.request(server, Method::POST, &["api", "sessions", name, order]).ok().await.map(drop)
    }

    /// The account a session is paired with; `None` when it is not. Asks the engine, so a dead one is noticed.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn me(&self, server: &Server, name: &str) -> Result<Option<Me>, CallError> {
        let body = self.request(server, Method::GET, &["api", "sessions", name, "me"]).ok().await?;
        optional(&body, |value| Me::from_value(&value))
    }

    /// What the QR code to scan says. It is a credential: show it, keep it nowhere.
    ///
    /// # Errors
    /// [`CallError::State`] (after up to 15 s) unless the session waits for a scan; see [`CallError`] for the rest.
    pub async fn qr_value(&self, server: &Server, session: &str) -> Result<SecretString, CallError> {
        let call = self.request(server, Method::GET, &["api", session, "auth", "qr"]).query("format", "raw");
        let value = json_of(&call.ok().await?)?;
        text(&value, "/value").map(SecretString::from).ok_or(CallError::BadAnswer("no QR value"))
    }

    /// A code to type into the phone instead of scanning; `phone` is digits only. A credential like the QR code.
    ///
    /// # Errors
    /// [`CallError::Rule`] unless the session waits for a scan; see [`CallError`] for the rest.
    pub async fn pairing_code(&self, server: &Server, session: &str, phone: &str) -> Result<SecretString, CallError> {
        let call = self
            .request(server, Method::POST, &["api", session, "auth", "request-code"])
            .json(&json!({"phoneNumber": phone}))?;
        let value = json_of(&call.ok().await?)?;
        text(&value, "/code").map(SecretString::from).ok_or(CallError::BadAnswer("no pairing code"))
    }

    /// One message with its latest ack; `None` when the server does not know it, which proves nothing about WhatsApp.
    ///
    /// With `chat_id` `all` and a bare `id` on engines that can ([`Engine::can_read_back_by_bare_id`]); elsewhere the chat and
    /// the serialized id are needed.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn message_by_id(
        &self,
        server: &Server,
        session: &str,
        chat_id: &str,
        id: &str,
    ) -> Result<Option<WahaMessage>, CallError> {
        let call = self
            .request(server, Method::GET, &["api", session, "chats", chat_id, "messages", id])
            .query("downloadMedia", "false");
        one_message(call).await
    }

    /// [`WahaClient::message_by_id`], after the server has fetched the message's file from WhatsApp anew; `within` bounds it.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn message_with_media(
        &self,
        server: &Server,
        session: &str,
        chat_id: &str,
        id: &str,
        within: Duration,
    ) -> Result<Option<WahaMessage>, CallError> {
        let call = self
            .request(server, Method::GET, &["api", session, "chats", chat_id, "messages", id])
            .query("downloadMedia", "true")
            .timeout(within);
        one_message(call).await
    }

    /// Messages of a chat, or of all chats with `chat_id` `all` on engines that can.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn messages(
        &self,
        server: &Server,
        session: &str,
        chat_id: &str,
        filter: &MessageFilter,
    ) -> Result<Vec<WahaMessage>, CallError> {
        let rows = self.message_rows(server, session, chat_id, filter).await?;
        Ok(rows.into_iter().filter_map(WahaMessage::from_value).collect())
    }

    /// The same, unread.
    pub(super) async fn message_rows(
        &self,
        server: &Server,
        session: &str,
        chat_id: &str,
        filter: &MessageFilter,
    ) -> Result<Vec<Value>, CallError> {
        let call = self
            .request(server, Method::GET, &["api", session, "chats", chat_id, "messages"])
            .query("downloadMedia", "false")
            .query("sortBy", "timestamp")
            .query("sortOrder", if filter.oldest_first { "asc" } else { "desc" });
        let wishes = [
            ("limit", filter.limit.map(|limit| limit.to_string())),
            ("offset", filter.offset.map(|offset| offset.to_string())),
            ("filter.fromMe", filter.from_me.map(|from_me| from_me.to_string())),
            ("filter.timestamp.gte", filter.since.map(|at| at.timestamp().to_string())),
            ("filter.timestamp.lte", filter.until.map(|at| at.timestamp().to_string())),
        ];
        let call = wishes.into_iter().fold(call, |call, (name, wish)| match wish {
            Some(value) => call.query(name, &value),
            None => call,
        });
        list(&call.ok().await?, Some)
    }

    /// Whether a number (digits only) has WhatsApp. WhatsApp limits how often this may be asked.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn check_exists(&self, server: &Server, session: &str, phone: &str) -> Result<NumberCheck, CallError> {
        let call = self
            .request(server, Method::GET, &["api", "contacts", "check-exists"])
            .query("phone", phone)
            .query("session", session);
        let value = json_of(&call.ok().await?)?;
        let exists = value.get("numberExists").and_then(Value::as_bool);
        Ok(NumberCheck {
            exists: exists.ok_or(CallError::BadAnswer("no numberExists"))?,
            chat_id: text(&value, "/chatId").map(str::to_owned),
            phone_id: text(&value, "/pn").map(str::to_owned),
        })
    }

    /// The phone behind a hidden id.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn phone_of_lid(&self, server: &Server, session: &str, lid: &str) -> Result<LidPair, CallError> {
        self.lid_pair(self.request(server, Method::GET, &["api", session, "lids", lid])).await
    }

    /// The hidden id of a phone (digits only).
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn lid_of_phone(&self, server: &Server, session: &str, phone: &str) -> Result<LidPair, CallError> {
        self.lid_pair(self.request(server, Method::GET, &["api", session, "lids", "pn", phone])).await
    }

    async fn lid_pair(&self, call: Call) -> Result<LidPair, CallError> {
        let value = json_of(&call.ok().await?)?;
        Ok(LidPair { lid: text(&value, "/lid").map(str::to_owned), phone_id: text(&value, "/pn").map(str::to_owned) })
    }

    /// Replaces the text or caption of an own message; `id` is the serialized id.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn edit_message(
        &self,
        server: &Server,
        session: &str,
        chat_id: &str,
        id: &str,
        text: &str,
    ) -> Result<(), CallError> {
        let call = self
            .request(server, Method::PUT, &["api", session, "chats", chat_id, "messages", id])
            .json(&json!({"text": text}))?;
        call.ok().await.map(drop)
    }

    /// Takes an own message back for everyone; `id` is the serialized id.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn revoke_message(
        &self,
        server: &Server,
        session: &str,
        chat_id: &str,
        id: &str,
    ) -> Result<(), CallError> {
        let call = self.request(server, Method::DELETE, &["api", session, "chats", chat_id, "messages", id]);
        call.ok().await.map(drop)
    }

    /// Reacts to a message, or with an empty `emoji` takes the reaction back; `id` is the serialized id.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn react(&self, server: &Server, session: &str, id: &str, emoji: &str) -> Result<(), CallError> {
        let call = self
            .request(server, Method::PUT, &["api", "reaction"])
            .json(&json!({"session": session, "messageId": id, "reaction": emoji}))?;
        call.ok().await.map(drop)
    }

    /// Lets the sender of a message see that it was read; `id` is the serialized id, `participant` its sender in a group.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn mark_read(
        &self,
        server: &Server,
        session: &str,
        chat_id: &str,
        id: &str,
        participant: Option<&str>,
    ) -> Result<(), CallError> {
        self.mark_all_read(server, session, chat_id, &[id], participant).await
    }

    /// As [`WahaClient::mark_read`], for several messages of one chat and, in a group, of one sender.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn mark_all_read(
        &self,
        server: &Server,
        session: &str,
        chat_id: &str,
        ids: &[&str],
        participant: Option<&str>,
    ) -> Result<(), CallError> {
        let call = self
            .request(server, Method::POST, &["api", "sendSeen"])
            .json(&json!({"session": session, "chatId": chat_id, "messageIds": ids, "participant": participant}))?;
        call.ok().await.map(drop)
    }

    /// Turns a call down.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn reject_call(&self, server: &Server, session: &str, from: &str, id: &str) -> Result<(), CallError> {
        let call = self
            .request(server, Method::POST, &["api", session, "calls", "reject"])
            .json(&json!({"from": from, "id": id}))?;
        call.ok().await.map(drop)
    }

    /// Shows "typing…" in a chat, or ends it.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn typing(&self, server: &Server, session: &str, chat_id: &str, on: bool) -> Result<(), CallError> {
        let endpoint = if on { "startTyping" } else { "stopTyping" };
        let call = self
            .request(server, Method::POST, &["api", endpoint])
            .json(&json!({"session": session, "chatId": chat_id}))?;
        call.ok().await.map(drop)
    }

    /// What runs on the server; asks for the key, unlike [`WahaClient::ping`].
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn server_version(&self, server: &Server) -> Result<ServerVersion, CallError> {
        let value = self.probe(server, &["api", "server", "version"]).await?;
        Ok(ServerVersion {
            version: text(&value, "/version").ok_or(CallError::BadAnswer("no version"))?.to_owned(),
            engine: text(&value, "/engine").and_then(|name| name.parse().ok()),
            tier: text(&value, "/tier").map(str::to_owned),
        })
    }

    /// Since when the server runs.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn server_status(&self, server: &Server) -> Result<ServerStatus, CallError> {
        let value = self.probe(server, &["api", "server", "status"]).await?;
        Ok(ServerStatus {
            started_at: value
                .get("startTimestamp")
                .and_then(milliseconds)
                .ok_or(CallError::BadAnswer("no startTimestamp"))?,
            uptime: Duration::from_millis(value.get("uptime").and_then(Value::as_u64).unwrap_or_default()),
        })
    }

    /// Whether the server answers at all; needs no key.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn ping(&self, server: &Server) -> Result<(), CallError> {
        self.probe(server, &["ping"]).await.map(drop)
    }

    async fn probe(&self, server: &Server, segments: &[&str]) -> Result<Value, CallError> {
        let call = self.request(server, Method::GET, segments).timeout(self.timeouts().probe);
        json_of(&call.ok().await?)
    }
}

async fn one_message(call: Call) -> Result<Option<WahaMessage>, CallError> {
    let answer = call.exchange().await?;
    if answer.status.is_success() {
        return optional(&answer.body, WahaMessage::from_value);
    }
    match CallError::from_answer(answer.status, &answer.body) {
        // A missing session answers 404 as well, and says nothing about the message.
        CallError::NotFound if is_missing_message(&answer.body) => Ok(None),
        error => Err(error),
    }
}

fn is_missing_message(body: &[u8]) -> bool {
    let message = serde_json::from_slice::<Value>(body).ok();
    message.as_ref().and_then(|body| text(body, "/message")).is_some_and(|text| text.starts_with("Message "))
}

fn json_of(body: &[u8]) -> Result<Value, CallError> {
    serde_json::from_slice(body).map_err(|_| CallError::BadAnswer("not JSON"))
}

/// An answer that may be empty or `null`.
fn optional<T>(body: &[u8], read: impl FnOnce(Value) -> Option<T>) -> Result<Option<T>, CallError> {
    if body.trim_ascii().is_empty() {
        return Ok(None);
    }
    match json_of(body)? {
        Value::Null => Ok(None),
        value => read(value).map(Some).ok_or(CallError::BadAnswer("members are missing")),
    }
}

/// A list; entries that cannot be read are left out.
pub(super) fn list<T>(body: &[u8], read: impl Fn(Value) -> Option<T>) -> Result<Vec<T>, CallError> {
    match json_of(body)? {
        Value::Array(entries) => Ok(entries.into_iter().filter_map(read).collect()),
        _ => Err(CallError::BadAnswer("not a list")),
    }
}
