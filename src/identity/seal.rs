//! Sealing at rest: secrets that must be shown or used again (WAHA keys, webhook secrets) are stored encrypted.
//!
//! XChaCha20-Poly1305 under the master key. The form is `1 | key id (8 bytes) | nonce (24 bytes) | ciphertext`; the purpose
//! (table, column, row) is authenticated, so a sealed value that is copied into another row does not open there.

use std::fmt;

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use sha2::{Digest, Sha256};

use crate::config::MasterKey;
use crate::domain::chance::Chance;

const FORM: u8 = 1;

/// Seals and opens under one master key.
#[derive(Clone)]
pub struct Sealer {
    cipher: XChaCha20Poly1305,
    key_id: [u8; 8],
    chance: Chance,
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sealer(key {})", hex::encode(self.key_id))
    }
}

/// Why a sealed value does not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnsealError {
    /// Not in the form that [`Sealer::seal`] writes.
    #[error("not a sealed value")]
    Form,
    /// Sealed under another master key.
    #[error("sealed under another master key")]
    OtherKey,
    /// Altered, or sealed for another purpose.
    #[error("altered, or sealed for another purpose")]
    Altered,
}

impl Sealer {
    /// Seals under `key`.
    #[must_use]
    pub fn new(key: &MasterKey, chance: Chance) -> Self {
        let mut key_id = [0; 8];
        for (to, from) in key_id.iter_mut().zip(Sha256::digest(key.0)) {
            *to = from;
        }
        Self { cipher: XChaCha20Poly1305::new(&key.0.into()), key_id, chance }
    }

    /// Seals `plain` for `purpose`, such as `waha_servers.api_key:<id>`.
    #[must_use]
    pub fn seal(&self, purpose: &str, plain: &[u8]) -> Vec<u8> {
        let nonce: [u8; 24] = self.chance.bytes();
        let payload = Payload { msg: plain, aad: purpose.as_bytes() };
        // Encryption fails only for texts of more than 256 GiB.
        let ciphertext = self.cipher.encrypt(&XNonce::from(nonce), payload).unwrap_or_default();
        let mut sealed = Vec::with_capacity(1 + 8 + 24 + ciphertext.len());
        sealed.push(FORM);
        sealed.extend_from_slice(&self.key_id);
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(&ciphertext);
        sealed
    }

    /// Opens what [`Sealer::seal`] sealed for the same `purpose`.
    ///
    /// # Errors
    /// [`UnsealError`].
    pub fn open(&self, purpose: &str, sealed: &[u8]) -> Result<Vec<u8>, UnsealError> {
        let (&form, rest) = sealed.split_first().ok_or(UnsealError::Form)?;
        let (key_id, rest) = rest.split_first_chunk::<8>().ok_or(UnsealError::Form)?;
        let (nonce, ciphertext) = rest.split_first_chunk::<24>().ok_or(UnsealError::Form)?;
        if form != FORM {
            return Err(UnsealError::Form);
        }
        if *key_id != self.key_id {
            return Err(UnsealError::OtherKey);
        }
        let payload = Payload { msg: ciphertext, aad: purpose.as_bytes() };
        self.cipher.decrypt(&XNonce::from(*nonce), payload).map_err(|_| UnsealError::Altered)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_only_for_its_purpose_and_key() {
        let sealer = Sealer::new(&MasterKey([7; 32]), Chance::seeded(1));
        let sealed = sealer.seal("a:1", b"secret");
        assert_eq!(sealer.open("a:1", &sealed).unwrap(), b"secret");
        assert_eq!(sealer.open("a:2", &sealed), Err(UnsealError::Altered));
        assert_eq!(sealer.open("a:1", &sealed[..20]), Err(UnsealError::Form));
        let other = Sealer::new(&MasterKey([8; 32]), Chance::seeded(1));
        assert_eq!(other.open("a:1", &sealed), Err(UnsealError::OtherKey));
        assert_ne!(sealer.seal("a:1", b"secret"), sealed, "a fresh nonce each time");
    }
}
