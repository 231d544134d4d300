//! A session's status, and the account it is paired with.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::numbers;

/// WAHA's session status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(super) enum Status {
    Stopped,
    Starting,
    ScanQrCode,
    PasskeyRequired,
    PasskeyConfirmationRequired,
    Working,
    Failed,
}

impl Status {
    pub fn name(self) -> &'static str {
        match self {
            Self::Stopped => "STOPPED",
            Self::Starting => "STARTING",
            Self::ScanQrCode => "SCAN_QR_CODE",
            Self::PasskeyRequired => "PASSKEY_REQUIRED",
            Self::PasskeyConfirmationRequired => "PASSKEY_CONFIRMATION_REQUIRED",
            Self::Working => "WORKING",
            Self::Failed => "FAILED",
        }
    }
}

/// The paired account.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Me {
    pub id: String,
    #[serde(rename = "pushName")]
    pub push_name: &'static str,
    pub lid: String,
    #[serde(rename = "reachoutTimelock", skip_serializing_if = "Option::is_none")]
    pub timelock: Option<Value>,
    #[serde(rename = "messageCapping", skip_serializing_if = "Option::is_none")]
    pub capping: Option<Value>,
}

impl Me {
    /// The account with this number.
    pub fn of(number: &str) -> Self {
        Self {
            id: format!("{number}@c.us"),
            push_name: "Simulated",
            lid: numbers::lid_of(number),
            timelock: None,
            capping: None,
        }
    }

    pub fn number(&self) -> &str {
        self.id.split('@').next().unwrap_or_default()
    }
}
