//! Pairing by passkey, as GOWS knows it since 2026.7.1: WhatsApp asks for an assertion of the account's passkey, and now and
//! then for a confirmation that both sides show the same code.

use reqwest::Method;
use secrecy::SecretString;
use serde_json::{Map, Value};

use super::client::{Server, WahaClient};
use super::error::CallError;
use super::message::text;

impl WahaClient {
    /// What the passkey has to sign: the options of WebAuthn's `navigator.credentials.get`, as WhatsApp gives them.
    ///
    /// # Errors
    /// [`CallError::Rule`] or [`CallError::State`] when none is asked for; see [`CallError`] for the rest.
    pub async fn passkey_challenge(&self, server: &Server, session: &str) -> Result<Map<String, Value>, CallError> {
        let call = self.request(server, Method::GET, &["api", session, "auth", "passkey", "challenge"]);
        match serde_json::from_slice(&call.ok().await?) {
            Ok(Value::Object(challenge)) if challenge.contains_key("challenge") => Ok(challenge),
            _ => Err(CallError::BadAnswer("no challenge")),
        }
    }

    /// Hands in an assertion: a WebAuthn credential as its `toJSON()` gives it.
    ///
    /// # Errors
    /// [`CallError::Rule`] when it is refused or none is asked for; see [`CallError`] for the rest.
    pub async fn submit_passkey(
        &self,
        server: &Server,
        session: &str,
        credential: &Map<String, Value>,
    ) -> Result<(), CallError> {
        let call = self.request(server, Method::POST, &["api", session, "auth", "passkey"]).json(credential)?;
        call.ok().await.map(drop)
    }

    /// The code that has to be the one on the phone. A credential like the QR code.
    ///
    /// # Errors
    /// [`CallError::Rule`] or [`CallError::State`] when none is to be confirmed; see [`CallError`] for the rest.
    pub async fn passkey_confirmation(&self, server: &Server, session: &str) -> Result<SecretString, CallError> {
        let call = self.request(server, Method::GET, &["api", session, "auth", "passkey", "confirmation"]);
        let value: Value = serde_json::from_slice(&call.ok().await?).map_err(|_| CallError::BadAnswer("not JSON"))?;
        text(&value, "/code").map(SecretString::from).ok_or(CallError::BadAnswer("no code"))
    }

    /// Confirms that both sides show the same code.
    ///
    /// # Errors
    /// [`CallError::Rule`] or [`CallError::State`] when none is to be confirmed; see [`CallError`] for the rest.
    pub async fn confirm_passkey(&self, server: &Server, session: &str) -> Result<(), CallError> {
        self.request(server, Method::POST, &["api", session, "auth", "passkey", "confirm"]).ok().await.map(drop)
    }
}
