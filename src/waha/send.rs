//! Sends, and what an attempt proves.

use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde::Serialize;
use serde_json::Value;

use super::answer::{ErrorBody, Exception, ExceptionKind, read_error};
use super::client::{Answer, NoAnswer, Server, WahaClient};
use super::engine::SessionStatus;
use super::error::is_unsupported;
use super::id;
use super::outgoing::{Outgoing, SendText};

/// WhatsApp's number for "this account may not write to new contacts for now".
const RESTRICTED: u16 = 463;

/// What a send attempt proves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SendOutcome {
    /// The engine has the message. Not yet WhatsApp: that takes an ack.
    Accepted {
        /// The id WhatsApp knows it by; `None` when the answer did not say. Compare it with the id asked for: an engine that
        /// does not honour ids gives another.
        bare_id: Option<String>,
    },
    /// The message was certainly not sent; the same attempt may be made again.
    NotSent {
        /// What stood in the way.
        why: NotSent,
    },
    /// WAHA or WhatsApp refused the message; repeating it changes nothing.
    Refused {
        /// By which rule.
        code: RefusalCode,
        /// More for humans; holds no message text and no numbers.
        detail: String,
    },
    /// WhatsApp restricts this account (463): new contacts cannot be written to for now. Not delivered.
    Restricted {
        /// More for humans; holds no message text and no numbers.
        detail: String,
    },
    /// The message may or may not have been sent.
    Unknown {
        /// Where the doubt comes from.
        why: Unknown,
    },
}

/// Why a message was certainly not sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotSent {
    /// The session is not working.
    #[error("the session is {status}")]
    SessionNotWorking {
        /// The state it is in.
        status: SessionStatus,
    },
    /// The server has no such session.
    #[error("the session does not exist on its WAHA server")]
    SessionMissing,
    /// No connection came about, so no byte of the message left.
    #[error("no connection to the WAHA server")]
    ConnectFailed,
    /// WAHA or WhatsApp asks to slow down.
    #[error("asked to slow down")]
    Throttled {
        /// How long to wait at least, if it was said.
        retry_after: Option<Duration>,
    },
    /// The server refused the gateway's key: the gateway is misconfigured, the message is not at fault.
    #[error("the WAHA server refused the gateway's API key")]
    Unauthorized,
    /// The request could not be built.
    #[error("the request could not be built")]
    NotBuilt,
}

/// Which rule refused a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalCode {
    /// WAHA finds the request malformed.
    InvalidRequest,
    /// Something the request refers to does not exist.
    NotFound,
    /// The engine or edition of this server cannot do it.
    Unsupported,
    /// The message is too large for WAHA.
    TooLarge,
    /// Another rule of WAHA's.
    Rule,
    /// WhatsApp's server refused it with this error number.
    WhatsApp(u16),
}

impl RefusalCode {
    /// A stable name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidRequest => "invalid_request",
            Self::NotFound => "not_found",
            Self::Unsupported => "unsupported",
            Self::TooLarge => "too_large",
            Self::Rule => "refused_by_waha",
            Self::WhatsApp(_) => "refused_by_whatsapp",
        }
    }
}

/// Why it is unknown whether a message was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unknown {
    /// No answer before the deadline.
    #[error("no answer before the deadline")]
    TimedOut,
    /// The connection broke after the request may have been written.
    #[error("the connection broke before the answer was complete")]
    ConnectionBroke,
    /// The engine waited for WhatsApp in vain.
    #[error("the engine timed out")]
    EngineTimedOut,
    /// The engine lost its connection.
    #[error("the engine lost its connection")]
    EngineConnectionClosed,
    /// WAHA or its engine failed in a way that says nothing about the message.
    #[error("WAHA failed with status {status}")]
    ServerError {
        /// The HTTP status.
        status: u16,
    },
    /// WhatsApp's server failed.
    #[error("WhatsApp failed with error {code}")]
    WhatsAppError {
        /// Its error number.
        code: u16,
    },
    /// A proxy answered in WAHA's place.
    #[error("a proxy answered with status {status}")]
    Proxy {
        /// The HTTP status.
        status: u16,
    },
    /// A success whose body cannot be read.
    #[error("the answer cannot be read")]
    BadAnswer,
    /// The process is stopping.
    #[error("the process is stopping")]
    Stopping,
}

impl WahaClient {
    /// Sends a text message and says what that proves. Never fails: every way it can go is an outcome.
    ///
    /// `deadline` bounds the whole attempt; WAHA itself may take 120 s. The attempt goes on when the caller goes away.
    pub async fn send_text(
        &self,
        server: &Server,
        message: &SendText,
        deadline: Duration,
        request_id: Option<&str>,
    ) -> SendOutcome {
        self.attempt(server, "sendText", message, deadline, request_id).await
    }

    /// Sends any kind of message; otherwise like [`WahaClient::send_text`].
    pub async fn send(
        &self,
        server: &Server,
        message: &Outgoing,
        deadline: Duration,
        request_id: Option<&str>,
    ) -> SendOutcome {
        self.attempt(server, message.endpoint(), message, deadline, request_id).await
    }

    async fn attempt(
        &self,
        server: &Server,
        endpoint: &str,
        message: &impl Serialize,
        deadline: Duration,
        request_id: Option<&str>,
    ) -> SendOutcome {
        let call = self.request(server, Method::POST, &["api", endpoint]).timeout(deadline).request_id(request_id);
        match call.json(message) {
            Ok(call) => match call.exchange().await {
                Ok(answer) => judge(&answer),
                Err(cause) => judge_silence(&cause),
            },
            Err(_) => SendOutcome::NotSent { why: NotSent::NotBuilt },
        }
    }
}

/// What an attempt without a whole answer proves.
fn judge_silence(cause: &NoAnswer) -> SendOutcome {
    match cause {
        NoAnswer::Transport(error) if error.is_connect() => SendOutcome::NotSent { why: NotSent::ConnectFailed },
        NoAnswer::Transport(error) if error.is_builder() => SendOutcome::NotSent { why: NotSent::NotBuilt },
        NoAnswer::Transport(error) if error.is_timeout() => SendOutcome::Unknown { why: Unknown::TimedOut },
        NoAnswer::Transport(_) => SendOutcome::Unknown { why: Unknown::ConnectionBroke },
        // The status alone settles these: WAHA decided them before it touched the message.
        NoAnswer::Body { status: StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, .. } => {
            SendOutcome::NotSent { why: NotSent::Unauthorized }
        }
        NoAnswer::Body { timed_out: true, .. } => SendOutcome::Unknown { why: Unknown::TimedOut },
        NoAnswer::Body { timed_out: false, .. } => SendOutcome::Unknown { why: Unknown::ConnectionBroke },
        NoAnswer::Stopping => SendOutcome::Unknown { why: Unknown::Stopping },
    }
}

/// What a whole answer proves.
fn judge(answer: &Answer) -> SendOutcome {
    let status = answer.status.as_u16();
    if answer.status.is_success() {
        return match serde_json::from_slice::<Value>(&answer.body) {
            Ok(body @ Value::Object(_)) => SendOutcome::Accepted { bare_id: id::from_message(&body) },
            _ => SendOutcome::Unknown { why: Unknown::BadAnswer },
        };
    }
    match status {
        401 | 403 => return SendOutcome::NotSent { why: NotSent::Unauthorized },
        429 => return SendOutcome::NotSent { why: NotSent::Throttled { retry_after: answer.retry_after } },
        _ => {}
    }
    match read_error(&answer.body) {
        // A state or a missing session is told by 422 or 404; under another status the body is not to be trusted so far.
        ErrorBody::State(session) if status == 422 => {
            SendOutcome::NotSent { why: NotSent::SessionNotWorking { status: session } }
        }
        ErrorBody::SessionMissing if matches!(status, 404 | 422) => {
            SendOutcome::NotSent { why: NotSent::SessionMissing }
        }
        ErrorBody::Exception(exception) => judge_exception(status, &exception),
        ErrorBody::NotFound(detail) if status == 404 => SendOutcome::Refused { code: RefusalCode::NotFound, detail },
        ErrorBody::Rule(detail) if answer.status.is_client_error() && status != 408 => {
            let code = match status {
                400 | 415 => RefusalCode::InvalidRequest,
                404 => RefusalCode::NotFound,
                413 => RefusalCode::TooLarge,
                _ if is_unsupported(&detail) => RefusalCode::Unsupported,
                _ => RefusalCode::Rule,
            };
            SendOutcome::Refused { code, detail }
        }
        ErrorBody::Foreign => SendOutcome::Unknown { why: Unknown::Proxy { status } },
        _ => SendOutcome::Unknown { why: Unknown::ServerError { status } },
    }
}

fn judge_exception(status: u16, exception: &Exception) -> SendOutcome {
    match exception.whatsapp_code {
        Some(RESTRICTED) => {
            SendOutcome::Restricted { detail: "WhatsApp restricts writing to new contacts (463)".into() }
        }
        Some(429) => SendOutcome::NotSent { why: NotSent::Throttled { retry_after: None } },
        Some(code @ 400..500) => SendOutcome::Refused {
            code: RefusalCode::WhatsApp(code),
            detail: format!("WhatsApp refused the message with error {code}"),
        },
        Some(code) => SendOutcome::Unknown { why: Unknown::WhatsAppError { code } },
        None => SendOutcome::Unknown {
            why: match exception.kind {
                ExceptionKind::TimedOut => Unknown::EngineTimedOut,
                ExceptionKind::ConnectionClosed => Unknown::EngineConnectionClosed,
                // Thrown before or after the message left: both happen.
                ExceptionKind::TypeError | ExceptionKind::Other => Unknown::ServerError { status },
            },
        },
    }
}

#[cfg(test)]
#[path = "send_tests.rs"]
mod tests;
