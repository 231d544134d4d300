//! Engines and session states, as WAHA names them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The WhatsApp client a WAHA server runs its sessions on; one per server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Engine {
    /// WhatsApp Web in a browser, driven by whatsapp-web.js.
    Webjs,
    /// WhatsApp Web in a browser, driven by WPPConnect.
    Wpp,
    /// Websocket client in Node (Baileys).
    Noweb,
    /// Websocket client in Go (whatsmeow).
    Gows,
}

/// The text names no engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown WAHA engine")]
pub struct UnknownEngine;

impl Engine {
    /// All engines.
    pub const ALL: [Self; 4] = [Self::Webjs, Self::Wpp, Self::Noweb, Self::Gows];

    /// Whether a send keeps the message id the caller chose, which makes a repeat of the send harmless.
    #[must_use]
    pub fn honours_message_id(self) -> bool {
        matches!(self, Self::Noweb | Self::Gows)
    }

    /// Whether a message can be read back by its bare id alone, in the pseudo chat `all`.
    #[must_use]
    pub fn can_read_back_by_bare_id(self) -> bool {
        matches!(self, Self::Noweb | Self::Gows)
    }

    /// WAHA's name of the engine.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Webjs => "WEBJS",
            Self::Wpp => "WPP",
            Self::Noweb => "NOWEB",
            Self::Gows => "GOWS",
        }
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Engine {
    type Err = UnknownEngine;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|engine| engine.as_str().eq_ignore_ascii_case(text)).ok_or(UnknownEngine)
    }
}

/// The state of a session, as WAHA reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum SessionStatus {
    /// Not running; credentials are kept.
    Stopped,
    /// Connecting, for the first time or again.
    Starting,
    /// Waiting for the phone to scan a QR code or for a pairing code.
    ScanQrCode,
    /// Waiting for a passkey assertion.
    PasskeyRequired,
    /// Waiting for the passkey code to be confirmed.
    PasskeyConfirmationRequired,
    /// Paired and connected.
    Working,
    /// Gave up: logged out, banned, or never connected.
    Failed,
    /// A state this client does not know.
    #[serde(other)]
    Other,
}

impl SessionStatus {
    /// WAHA's name of the state.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stopped => "STOPPED",
            Self::Starting => "STARTING",
            Self::ScanQrCode => "SCAN_QR_CODE",
            Self::PasskeyRequired => "PASSKEY_REQUIRED",
            Self::PasskeyConfirmationRequired => "PASSKEY_CONFIRMATION_REQUIRED",
            Self::Working => "WORKING",
            Self::Failed => "FAILED",
            Self::Other => "OTHER",
        }
    }

    /// Reads WAHA's name; anything unknown is [`SessionStatus::Other`].
    #[must_use]
    pub fn from_name(name: &str) -> Self {
        [
            Self::Stopped,
            Self::Starting,
            Self::ScanQrCode,
            Self::PasskeyRequired,
            Self::PasskeyConfirmationRequired,
            Self::Working,
            Self::Failed,
        ]
        .into_iter()
        .find(|status| status.as_str() == name)
        .unwrap_or(Self::Other)
    }
}

impl fmt::Display for SessionStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
