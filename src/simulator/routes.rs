//! Which call a request is. Written by hand, since WAHA answers a wrong method as it answers an unknown path.

use bytes::Bytes;
use serde_json::Value;
use url::form_urlencoded;

use super::sends;

/// One request, taken apart.
pub(super) struct Call {
    pub method: String,
    /// With the query, as a 500 echoes it.
    pub path: String,
    pub query: Vec<(String, String)>,
    pub raw: Bytes,
    /// Null when there is none.
    pub body: Value,
    pub accepts_json: bool,
}

impl Call {
    /// A text member of the body.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.body.get(name).and_then(Value::as_str)
    }

    /// A parameter of the query.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// What is called; names are as WAHA's OpenAPI has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Route {
    Ping,
    Health,
    Version,
    ServerStatus,
    ServerStop,
    ListSessions,
    CreateSession,
    GetSession,
    UpdateSession,
    DeleteSession,
    Start,
    Stop,
    Restart,
    Logout,
    Me,
    Qr,
    RequestCode,
    PasskeyChallenge,
    Passkey,
    PasskeyConfirmation,
    PasskeyConfirm,
    CheckExists,
    Lids,
    LidCount,
    Lid(String),
    LidOfPhone(String),
    NewMessageId,
    Send(&'static str),
    Reaction,
    /// Seen, typing, presence: put down in the ledger.
    Gesture(&'static str),
    /// What WhatsApp forbids the account for now.
    Timelock,
    Capping,
    Groups,
    GroupCount,
    Group(String),
    GroupParticipants(String),
    RefreshGroups,
    RejectCall,
    /// A file that came with a message, by its path below `/api/files/`.
    File(String),
    Chats,
    Overview,
    Messages(String),
    Message(String, String),
    Edit(String, String),
    Revoke(String, String),
    ReadChat(String),
    Control(String),
}

impl Route {
    /// The name under which the ledger puts it down, for calls that are no sends.
    pub fn call_name(&self) -> Option<&'static str> {
        Some(match self {
            Self::Gesture(name) => name,
            Self::Reaction => "reaction",
            Self::Edit(..) => "edit",
            Self::Revoke(..) => "revoke",
            Self::ReadChat(_) => "read",
            Self::RejectCall => "call-reject",
            Self::File(_) => "file",
            Self::CheckExists => "check-exists",
            Self::Message(..) => "message",
            Self::Messages(_) => "messages",
            Self::CreateSession => "create",
            Self::UpdateSession => "update",
            Self::DeleteSession => "delete",
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Restart => "restart",
            Self::Logout => "logout",
            _ => return None,
        })
    }

    /// The chat and the other thing that a call is about: a message, a phone, a presence.
    pub fn about(&self, call: &Call) -> (Option<String>, Option<String>) {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        match self {
            Self::Edit(chat, id) | Self::Revoke(chat, id) | Self::Message(chat, id) => {
                (Some(chat.clone()), Some(id.clone()))
            }
            Self::ReadChat(chat) | Self::Messages(chat) => (Some(chat.clone()), None),
            Self::Reaction => (owned(call.text("chatId")), owned(call.text("messageId"))),
            Self::File(path) => (None, Some(path.clone())),
            Self::RejectCall => (owned(call.text("from")), owned(call.text("id"))),
            Self::CheckExists => (None, owned(call.parameter("phone"))),
            Self::Gesture("presence") => (owned(call.text("chatId")), owned(call.text("presence"))),
            _ => (owned(call.text("chatId")), None),
        }
    }
}

/// A route with its path as the OpenAPI writes it, and the session when the path names it.
pub(super) struct Found {
    pub route: Route,
    pub template: &'static str,
    pub session: Option<String>,
}

/// The route of a method and a raw path.
pub(super) fn find(method: &str, path: &str) -> Option<Found> {
    let decoded: Vec<String> = path.trim_start_matches('/').split('/').map(decode).collect();
    let segments: Vec<&str> = decoded.iter().map(String::as_str).collect();
    let found = |route, template| Some(Found { route, template, session: None });
    match (method, segments.as_slice()) {
        ("GET", ["ping"]) => found(Route::Ping, "/ping"),
        ("GET", ["health"]) => found(Route::Health, "/health"),
        (_, ["_simulator", name]) => found(Route::Control(format!("{method} {name}")), "/_simulator"),
        (_, ["api", rest @ ..]) => find_api(method, rest),
        _ => None,
    }
}

fn find_api(method: &str, segments: &[&str]) -> Option<Found> {
    let server = |route, template| Some(Found { route, template, session: None });
    let of = |session: &str, route, template| Some(Found { route, template, session: Some(session.to_owned()) });
    match (method, segments) {
        ("GET", ["server", "version"]) => server(Route::Version, "/api/server/version"),
        ("GET", ["version"]) => server(Route::Version, "/api/version"),
        ("GET", ["server", "status"]) => server(Route::ServerStatus, "/api/server/status"),
        ("POST", ["server", "stop"]) => server(Route::ServerStop, "/api/server/stop"),
        ("GET", ["sessions"]) => server(Route::ListSessions, "/api/sessions"),
        ("POST", ["sessions"]) => server(Route::CreateSession, "/api/sessions"),
        ("GET", ["sessions", s]) => of(s, Route::GetSession, "/api/sessions/{session}"),
        ("PUT", ["sessions", s]) => of(s, Route::UpdateSession, "/api/sessions/{session}"),
        ("DELETE", ["sessions", s]) => of(s, Route::DeleteSession, "/api/sessions/{session}"),
        ("POST", ["sessions", s, "start"]) => of(s, Route::Start, "/api/sessions/{session}/start"),
        ("POST", ["sessions", s, "stop"]) => of(s, Route::Stop, "/api/sessions/{session}/stop"),
        ("POST", ["sessions", s, "restart"]) => of(s, Route::Restart, "/api/sessions/{session}/restart"),
        ("POST", ["sessions", s, "logout"]) => of(s, Route::Logout, "/api/sessions/{session}/logout"),
        ("GET", ["sessions", s, "me"]) => of(s, Route::Me, "/api/sessions/{session}/me"),
        ("GET", ["sessions", s, "timelock"]) => of(s, Route::Timelock, "/api/sessions/{session}/timelock"),
        ("GET", ["sessions", s, "capping"]) => of(s, Route::Capping, "/api/sessions/{session}/capping"),
        ("GET", ["contacts", "check-exists"]) => server(Route::CheckExists, "/api/contacts/check-exists"),
        ("GET", ["files", s, name]) => of(s, Route::File(format!("{s}/{name}")), "/api/files/{session}/{file}"),
        ("PUT", ["reaction"]) => server(Route::Reaction, "/api/reaction"),
        ("POST", ["sendSeen"]) => server(Route::Gesture("sendSeen"), "/api/sendSeen"),
        ("POST", ["startTyping"]) => server(Route::Gesture("startTyping"), "/api/startTyping"),
        ("POST", ["stopTyping"]) => server(Route::Gesture("stopTyping"), "/api/stopTyping"),
        ("POST", [name]) => {
            let (name, template) = SENDS.iter().find(|(known, _)| known == name)?;
            server(Route::Send(name), template)
        }
        _ => find_of_session(method, segments),
    }
}

fn find_of_session(method: &str, segments: &[&str]) -> Option<Found> {
    let (session, rest) = segments.split_first()?;
    let found = |route, template| Some(Found { route, template, session: Some((*session).to_owned()) });
    match (method, rest) {
        ("GET", ["auth", "qr"]) => found(Route::Qr, "/api/{session}/auth/qr"),
        ("POST", ["auth", "request-code"]) => found(Route::RequestCode, "/api/{session}/auth/request-code"),
        ("GET", ["auth", "passkey", "challenge"]) => {
            found(Route::PasskeyChallenge, "/api/{session}/auth/passkey/challenge")
        }
        ("POST", ["auth", "passkey"]) => found(Route::Passkey, "/api/{session}/auth/passkey"),
        ("GET", ["auth", "passkey", "confirmation"]) => {
            found(Route::PasskeyConfirmation, "/api/{session}/auth/passkey/confirmation")
        }
        ("POST", ["auth", "passkey", "confirm"]) => found(Route::PasskeyConfirm, "/api/{session}/auth/passkey/confirm"),
        ("GET", ["lids"]) => found(Route::Lids, "/api/{session}/lids"),
        ("GET", ["lids", "count"]) => found(Route::LidCount, "/api/{session}/lids/count"),
        ("GET", ["lids", "pn", phone]) => {
            found(Route::LidOfPhone((*phone).to_owned()), "/api/{session}/lids/pn/{phoneNumber}")
        }
        ("GET", ["lids", lid]) => found(Route::Lid((*lid).to_owned()), "/api/{session}/lids/{lid}"),
        ("GET", ["new-message-id"]) => found(Route::NewMessageId, "/api/{session}/new-message-id"),
        ("POST", ["presence"]) => found(Route::Gesture("presence"), "/api/{session}/presence"),
        ("GET", ["timelock"]) => found(Route::Timelock, "/api/{session}/timelock"),
        ("GET", ["capping"]) => found(Route::Capping, "/api/{session}/capping"),
        ("GET", ["groups"]) => found(Route::Groups, "/api/{session}/groups"),
        ("GET", ["groups", "count"]) => found(Route::GroupCount, "/api/{session}/groups/count"),
        ("POST", ["groups", "refresh"]) => found(Route::RefreshGroups, "/api/{session}/groups/refresh"),
        ("GET", ["groups", id]) => found(Route::Group((*id).to_owned()), "/api/{session}/groups/{id}"),
        ("GET", ["groups", id, "participants", "v2"]) => {
            found(Route::GroupParticipants((*id).to_owned()), "/api/{session}/groups/{id}/participants/v2")
        }
        ("POST", ["calls", "reject"]) => found(Route::RejectCall, "/api/{session}/calls/reject"),
        ("GET", ["chats"]) => found(Route::Chats, "/api/{session}/chats"),
        ("GET", ["chats", "overview"]) => found(Route::Overview, "/api/{session}/chats/overview"),
        ("GET", ["chats", chat, "messages"]) => {
            found(Route::Messages((*chat).to_owned()), "/api/{session}/chats/{chatId}/messages")
        }
        ("POST", ["chats", chat, "messages", "read"]) => {
            found(Route::ReadChat((*chat).to_owned()), "/api/{session}/chats/{chatId}/messages/read")
        }
        (_, ["chats", chat, "messages", id]) => {
            let (chat, id) = ((*chat).to_owned(), (*id).to_owned());
            let route = match method {
                "GET" => Route::Message(chat, id),
                "PUT" => Route::Edit(chat, id),
                "DELETE" => Route::Revoke(chat, id),
                _ => return None,
            };
            found(route, "/api/{session}/chats/{chatId}/messages/{messageId}")
        }
        _ => None,
    }
}

const SENDS: [(&str, &str); sends::ENDPOINTS.len()] = [
    ("sendText", "/api/sendText"),
    ("sendImage", "/api/sendImage"),
    ("sendFile", "/api/sendFile"),
    ("sendVoice", "/api/sendVoice"),
    ("sendVideo", "/api/sendVideo"),
    ("sendPoll", "/api/sendPoll"),
    ("sendLocation", "/api/sendLocation"),
    ("sendContactVcard", "/api/sendContactVcard"),
    ("forwardMessage", "/api/forwardMessage"),
];

/// The parameters of a raw query.
pub(super) fn query(raw: &str) -> Vec<(String, String)> {
    form_urlencoded::parse(raw.as_bytes()).into_owned().collect()
}

/// A path segment without its percent signs.
fn decode(segment: &str) -> String {
    if !segment.contains('%') {
        return segment.to_owned();
    }
    let bytes = segment.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let pair = segment.get(at + 1..at + 3).and_then(|pair| u8::from_str_radix(pair, 16).ok());
        match (byte, pair) {
            (b'%', Some(value)) => {
                decoded.push(value);
                at += 3;
            }
            _ => {
                decoded.push(*byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_decoded_and_methods_matter() {
        let found = find("GET", "/api/main/chats/15550100001%40c.us/messages").unwrap();
        assert_eq!(found.route, Route::Messages("15550100001@c.us".to_owned()));
        assert_eq!(found.session.as_deref(), Some("main"));
        assert!(find("PATCH", "/api/sessions/default").is_none());
        assert_eq!(find("POST", "/api/sendText").unwrap().route, Route::Send("sendText"));
    }
}
