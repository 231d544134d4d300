//! Signatures after Standard Webhooks: `v1,<base64 HMAC-SHA256 of "{id}.{timestamp}.{body}">`.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use secrecy::{ExposeSecret, SecretSlice, SecretString};
use sha2::Sha256;

use crate::domain::chance::Chance;

/// The header with the event's id, the same on every attempt.
pub const ID_HEADER: &str = "webhook-id";
/// The header with the second of this attempt.
pub const TIMESTAMP_HEADER: &str = "webhook-timestamp";
/// The header with the signatures.
pub const SIGNATURE_HEADER: &str = "webhook-signature";

const PREFIX: &str = "whsec_";
const SHORTEST: usize = 24;
const LONGEST: usize = 64;

/// What one endpoint's deliveries are signed with: 24 to 64 bytes, written `whsec_<base64>`.
#[derive(Clone)]
pub struct SigningSecret(SecretSlice<u8>);

/// The text is not `whsec_` and the base64 of 24 to 64 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a signing secret is whsec_ and the base64 of 24 to 64 bytes")]
pub struct BadSecret;

impl SigningSecret {
    /// A fresh secret of 32 bytes.
    #[must_use]
    pub fn generate(chance: &Chance) -> Self {
        Self(chance.bytes::<32>().to_vec().into())
    }

    /// Reads the form a tenant sees.
    ///
    /// # Errors
    /// When the text has another form or the secret another length.
    pub fn parse(text: &str) -> Result<Self, BadSecret> {
        let encoded = text.strip_prefix(PREFIX).ok_or(BadSecret)?;
        let bytes = STANDARD.decode(encoded).map_err(|_| BadSecret)?;
        if (SHORTEST..=LONGEST).contains(&bytes.len()) { Ok(Self(bytes.into())) } else { Err(BadSecret) }
    }

    /// The form a tenant sees.
    #[must_use]
    pub fn reveal(&self) -> SecretString {
        format!("{PREFIX}{}", STANDARD.encode(self.0.expose_secret())).into()
    }
}

impl fmt::Debug for SigningSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningSecret(…)")
    }
}

/// The value of [`SIGNATURE_HEADER`]: one signature per secret, in their order, separated by spaces.
#[must_use]
pub fn sign(secrets: &[&SigningSecret], id: &str, timestamp_secs: i64, body: &[u8]) -> String {
    let timestamp = timestamp_secs.to_string();
    let signatures: Vec<String> = secrets
        .iter()
        // HMAC takes keys of any length, so none is left out.
        .filter_map(|secret| Hmac::<Sha256>::new_from_slice(secret.0.expose_secret()).ok())
        .map(|mut mac| {
            for part in [id.as_bytes(), b".", timestamp.as_bytes(), b".", body] {
                mac.update(part);
            }
            format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
        })
        .collect();
    signatures.join(" ")
}

#[cfg(test)]
mod tests {
    use standardwebhooks::Webhook;

    use super::*;

    #[test]
    fn the_published_vector() {
        let secret = SigningSecret::parse("whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD").unwrap();
        let body = br#"{"email":"test@example.com","username":"test_user"}"#;
        assert_eq!(
            sign(&[&secret], "msg_27UH4WbU6Z5A5EzD8u03UvzRbpk", 1_649_367_553, body),
            "v1,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw="
        );
    }

    #[test]
    fn the_reference_library_agrees() {
        let chance = Chance::seeded(7);
        for body in ["", "{}", "{\"a\":\"ü 👍\"}", &"x".repeat(100_000)] {
            let secret = SigningSecret::generate(&chance);
            let theirs = Webhook::new(secret.reveal().expose_secret()).unwrap();
            let expected = theirs.sign("0192-event", 1_795_211_853, body.as_bytes()).unwrap();
            assert_eq!(sign(&[&secret], "0192-event", 1_795_211_853, body.as_bytes()), expected);
        }
    }

    #[test]
    fn during_a_rotation_both_secrets_sign() {
        let chance = Chance::seeded(7);
        let (new, old) = (SigningSecret::generate(&chance), SigningSecret::generate(&chance));
        let both = sign(&[&new, &old], "id", 1, b"{}");
        assert_eq!(both, format!("{} {}", sign(&[&new], "id", 1, b"{}"), sign(&[&old], "id", 1, b"{}")));
        assert_eq!(sign(&[], "id", 1, b"{}"), "");
    }

    #[test]
    fn secrets_are_read_as_they_are_shown() {
        let secret = SigningSecret::generate(&Chance::seeded(1));
        let shown = secret.reveal();
        assert_eq!(shown.expose_secret().len(), 6 + 44);
        let read = SigningSecret::parse(shown.expose_secret()).unwrap();
        assert_eq!(read.0.expose_secret(), secret.0.expose_secret());
        assert_eq!(format!("{secret:?}"), "SigningSecret(…)");

        let of = |length: usize| format!("whsec_{}", STANDARD.encode(vec![1; length]));
        for (text, good) in [
            (of(23), false),
            (of(24), true),
            (of(64), true),
            (of(65), false),
            (of(32).replace("whsec_", ""), false),
            ("whsec_".into(), false),
            ("whsec_not base64 not base64 not base64".into(), false),
        ] {
            assert_eq!(SigningSecret::parse(&text).is_ok(), good, "{text}");
        }
    }
}
