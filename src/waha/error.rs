//! Why a call to WAHA did not give what was asked for.

use reqwest::StatusCode;

use super::answer::{ErrorBody, ExceptionKind, read_error};
use super::engine::SessionStatus;

/// Why a call other than a send failed. Its texts are safe to log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The server has no such session, message or route.
    #[error("not found on the WAHA server")]
    NotFound,
    /// The session is in another state than the call needs.
    #[error("the session is {status}")]
    State {
        /// The state it is in.
        status: SessionStatus,
    },
    /// A session of that name exists already.
    #[error("the session exists already")]
    AlreadyExists,
    /// The engine or edition of this server cannot do it.
    #[error("not supported by this WAHA server: {0}")]
    Unsupported(String),
    /// WAHA refused the request; its wording, redacted. Repeating it changes nothing.
    #[error("refused by WAHA: {0}")]
    Rule(String),
    /// The server did not accept the gateway's key.
    #[error("the WAHA server refused the gateway's API key")]
    Unauthorized,
    /// The server asked to slow down.
    #[error("the WAHA server asks to slow down")]
    Throttled,
    /// No connection could be made, or it broke.
    #[error("the WAHA server cannot be reached")]
    Unreachable,
    /// No answer in time; the call may still take effect.
    #[error("the WAHA server did not answer in time")]
    TimedOut,
    /// A 5xx answer; the call may have taken effect.
    #[error("the WAHA server failed with status {status}{}", if *.timed_out { " (the engine timed out)" } else { "" })]
    Server {
        /// The HTTP status.
        status: u16,
        /// Whether the engine said that it waited for WhatsApp in vain.
        timed_out: bool,
    },
    /// An answer that is not WAHA's, or not in a shape this client knows.
    #[error("the WAHA server gave an answer that cannot be read: {0}")]
    BadAnswer(&'static str),
    /// The runtime that makes the calls is shutting down.
    #[error("the call was given up because the process is stopping")]
    Stopping,
}

impl CallError {
    /// Whether the same call may succeed later without anybody changing anything.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::State { .. }
            | Self::Throttled
            | Self::Unreachable
            | Self::TimedOut
            | Self::Server { .. }
            | Self::BadAnswer(_)
            | Self::Stopping => true,
            Self::NotFound | Self::AlreadyExists | Self::Unsupported(_) | Self::Rule(_) | Self::Unauthorized => false,
        }
    }

    pub(super) fn from_transport(error: &reqwest::Error) -> Self {
        if error.is_connect() {
            Self::Unreachable
        } else if error.is_timeout() {
            Self::TimedOut
        } else if error.is_builder() {
            Self::BadAnswer("the request could not be built")
        } else {
            Self::Unreachable
        }
    }

    /// What an answer that is not a success says.
    pub(super) fn from_answer(status: StatusCode, body: &[u8]) -> Self {
        match status.as_u16() {
            401 | 403 => return Self::Unauthorized,
            429 => return Self::Throttled,
            _ => {}
        }
        match read_error(body) {
            ErrorBody::State(status) => Self::State { status },
            ErrorBody::SessionMissing | ErrorBody::NotFound(_) => Self::NotFound,
            ErrorBody::Rule(message) if status.is_client_error() => Self::from_rule(message),
            ErrorBody::Exception(exception) => {
                Self::Server { status: status.as_u16(), timed_out: exception.kind == ExceptionKind::TimedOut }
            }
            ErrorBody::Rule(_) | ErrorBody::Foreign if status.is_server_error() => {
                Self::Server { status: status.as_u16(), timed_out: false }
            }
            ErrorBody::Rule(_) | ErrorBody::Foreign => Self::BadAnswer("not an answer of WAHA"),
        }
    }

    fn from_rule(message: String) -> Self {
        if message.contains("already exists") {
            Self::AlreadyExists
        } else if is_unsupported(&message) {
            Self::Unsupported(message)
        } else {
            Self::Rule(message)
        }
    }
}

/// Whether a rule says that this server will never do it.
pub(super) fn is_unsupported(message: &str) -> bool {
    ["not implemented", "available only in Plus", "not supported"].iter().any(|part| message.contains(part))
}
