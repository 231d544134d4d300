//! Sealing at rest: secrets that must be shown or used again (WAHA keys, webhook secrets) are stored encrypted.
//!
//! XChaCha20-Poly1305 in an envelope: each value has a key of its own, and that key is wrapped under the master key, so that
//! another master key means other wraps and no value is touched. The purpose (table, column, row) is authenticated with the
//! value: one that is copied into another row does not open there.
//!
//! | form | bytes |
//! |---|---|
//! | 2 | `2`, id of the master key (8), nonce (24), wrapped key (48), nonce (24), ciphertext |
//! | 1, still opened | `1`, id of the master key (8), nonce (24), ciphertext under the master key |

use std::fmt;

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use sha2::{Digest, Sha256};

use crate::config::MasterKey;
use crate::domain::chance::Chance;

const DIRECT: u8 = 1;
const ENVELOPE: u8 = 2;

const KEY_ID: usize = 8;
const NONCE: usize = 24;
/// A key of 32 bytes and its tag of 16.
const WRAPPED: usize = 48;

/// What a wrapped key is authenticated for.
const WRAP: &[u8] = b"switchboard: the key of a sealed value, 2";

/// Seals under one master key, and opens under that and older ones.
#[derive(Clone)]
pub struct Sealer {
    current: Key,
    previous: Vec<Key>,
    chance: Chance,
}

#[derive(Clone)]
struct Key {
    id: [u8; KEY_ID],
    cipher: XChaCha20Poly1305,
}

impl Key {
    fn new(key: &MasterKey) -> Self {
        let mut id = [0; KEY_ID];
        for (to, from) in id.iter_mut().zip(Sha256::digest(key.0)) {
            *to = from;
        }
        Self { id, cipher: XChaCha20Poly1305::new(&key.0.into()) }
    }
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sealer(key {}, {} older)", hex::encode(self.current.id), self.previous.len())
    }
}

/// Why a sealed value does not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnsealError {
    /// Not in a form that [`Sealer::seal`] writes or wrote.
    #[error("not a sealed value")]
    Form,
    /// Sealed under another master key.
    #[error("sealed under another master key")]
    OtherKey,
    /// Altered, or sealed for another purpose.
    #[error("altered, or sealed for another purpose")]
    Altered,
}

/// A sealed value, taken apart.
struct Envelope<'a> {
    wrap_nonce: &'a [u8; NONCE],
    wrapped: &'a [u8; WRAPPED],
    /// Nonce and ciphertext under the value's own key.
    body: &'a [u8],
}

impl<'a> Envelope<'a> {
    fn read(rest: &'a [u8]) -> Result<Self, UnsealError> {
        let (wrap_nonce, rest) = rest.split_first_chunk::<NONCE>().ok_or(UnsealError::Form)?;
        let (wrapped, body) = rest.split_first_chunk::<WRAPPED>().ok_or(UnsealError::Form)?;
        Ok(Self { wrap_nonce, wrapped, body })
    }

    fn own_key(&self, master: &Key) -> Result<[u8; 32], UnsealError> {
        let payload = Payload { msg: self.wrapped.as_slice(), aad: WRAP };
        let key = master.cipher.decrypt(&XNonce::from(*self.wrap_nonce), payload).map_err(|_| UnsealError::Altered)?;
        key.try_into().map_err(|_| UnsealError::Altered)
    }
}

impl Sealer {
    /// Seals under `key`.
    #[must_use]
    pub fn new(key: &MasterKey, chance: Chance) -> Self {
        Self { current: Key::new(key), previous: Vec::new(), chance }
    }

    /// The same, and what was sealed under one of `keys` opens as well.
    #[must_use]
    pub fn with_previous(mut self, keys: &[MasterKey]) -> Self {
        self.previous.extend(keys.iter().map(Key::new));
        self
    }

    /// Seals `plain` for `purpose`, such as `waha_servers.api_key:<id>`.
    #[must_use]
    pub fn seal(&self, purpose: &str, plain: &[u8]) -> Vec<u8> {
        let own: [u8; 32] = self.chance.bytes();
        let mut sealed = self.wrap(&own);
        let body = self.encrypt(&XChaCha20Poly1305::new(&own.into()), Payload { msg: plain, aad: purpose.as_bytes() });
        sealed.extend_from_slice(&body);
        sealed
    }

    /// Opens what [`Sealer::seal`] sealed for the same `purpose`.
    ///
    /// # Errors
    /// [`UnsealError`].
    pub fn open(&self, purpose: &str, sealed: &[u8]) -> Result<Vec<u8>, UnsealError> {
        let (form, master, rest) = self.parts(sealed)?;
        if form == DIRECT {
            return decrypt(&master.cipher, purpose, rest);
        }
        let envelope = Envelope::read(rest)?;
        decrypt(&XChaCha20Poly1305::new(&envelope.own_key(master)?.into()), purpose, envelope.body)
    }

    /// `sealed` as it would be under the current master key; `None` when it is that already. Of an envelope only the wrap
    /// changes, and the value in it is not opened.
    ///
    /// # Errors
    /// [`UnsealError`].
    pub fn reseal(&self, purpose: &str, sealed: &[u8]) -> Result<Option<Vec<u8>>, UnsealError> {
        let (form, master, rest) = self.parts(sealed)?;
        if form == DIRECT {
            return Ok(Some(self.seal(purpose, &decrypt(&master.cipher, purpose, rest)?)));
        }
        if master.id == self.current.id {
            return Ok(None);
        }
        let envelope = Envelope::read(rest)?;
        let mut resealed = self.wrap(&envelope.own_key(master)?);
        resealed.extend_from_slice(envelope.body);
        Ok(Some(resealed))
    }

    /// What every value begins with that is sealed as [`Sealer::seal`] does it now.
    #[must_use]
    pub fn mark(&self) -> Vec<u8> {
        [[ENVELOPE].as_slice(), self.current.id.as_slice()].concat()
    }

    /// Form, master key and rest of a sealed value.
    fn parts<'a>(&self, sealed: &'a [u8]) -> Result<(u8, &Key, &'a [u8]), UnsealError> {
        let (&form, rest) = sealed.split_first().ok_or(UnsealError::Form)?;
        let (id, rest) = rest.split_first_chunk::<KEY_ID>().ok_or(UnsealError::Form)?;
        if rest.len() < NONCE || !matches!(form, DIRECT | ENVELOPE) {
            return Err(UnsealError::Form);
        }
        let known = std::iter::once(&self.current).chain(&self.previous).find(|key| key.id == *id);
        Ok((form, known.ok_or(UnsealError::OtherKey)?, rest))
    }

    /// The beginning of an envelope, up to the value's own key.
    fn wrap(&self, own: &[u8; 32]) -> Vec<u8> {
        let mut sealed = self.mark();
        sealed.extend_from_slice(&self.encrypt(&self.current.cipher, Payload { msg: own.as_slice(), aad: WRAP }));
        sealed
    }

    /// A fresh nonce and the ciphertext.
    fn encrypt(&self, cipher: &XChaCha20Poly1305, payload: Payload<'_, '_>) -> Vec<u8> {
        let nonce: [u8; NONCE] = self.chance.bytes();
        // Encryption fails only for texts of more than 256 GiB.
        let ciphertext = cipher.encrypt(&XNonce::from(nonce), payload).unwrap_or_default();
        [nonce.as_slice(), &ciphertext].concat()
    }
}

fn decrypt(cipher: &XChaCha20Poly1305, purpose: &str, body: &[u8]) -> Result<Vec<u8>, UnsealError> {
    let (nonce, ciphertext) = body.split_first_chunk::<NONCE>().ok_or(UnsealError::Form)?;
    let payload = Payload { msg: ciphertext, aad: purpose.as_bytes() };
    cipher.decrypt(&XNonce::from(*nonce), payload).map_err(|_| UnsealError::Altered)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealer(key: u8, previous: &[u8]) -> Sealer {
        let previous: Vec<MasterKey> = previous.iter().map(|key| MasterKey([*key; 32])).collect();
        Sealer::new(&MasterKey([key; 32]), Chance::seeded(1)).with_previous(&previous)
    }

    /// As the first releases sealed.
    fn directly(key: u8, purpose: &str, plain: &[u8]) -> Vec<u8> {
        let sealer = sealer(key, &[]);
        let body = sealer.encrypt(&sealer.current.cipher, Payload { msg: plain, aad: purpose.as_bytes() });
        [[DIRECT].as_slice(), sealer.current.id.as_slice(), &body].concat()
    }

    #[test]
    fn opens_only_for_its_purpose_and_key() {
        let seven = sealer(7, &[]);
        let (new, old) = (seven.seal("a:1", b"secret"), directly(7, "a:1", b"secret"));
        assert!(new.starts_with(&seven.mark()) && !old.starts_with(&seven.mark()));
        for sealed in [&new, &old] {
            assert_eq!(seven.open("a:1", sealed).unwrap(), b"secret");
            assert_eq!(seven.open("a:2", sealed), Err(UnsealError::Altered));
            assert_eq!(sealer(8, &[]).open("a:1", sealed), Err(UnsealError::OtherKey));
            assert_eq!(sealer(8, &[9, 7]).open("a:1", sealed).unwrap(), b"secret");
            for length in [0, 1, 9, 20, 32] {
                assert_eq!(seven.open("a:1", &sealed[..length]), Err(UnsealError::Form), "{length}");
            }
            for place in [9, 33, 60, sealed.len() - 1].into_iter().filter(|place| *place < sealed.len()) {
                let mut altered = sealed.clone();
                altered[place] ^= 1;
                assert_eq!(seven.open("a:1", &altered), Err(UnsealError::Altered), "{place}");
            }
        }
        assert_ne!(seven.seal("a:1", b"secret"), new, "a fresh key and nonces each time");
        assert_eq!(seven.open("a:1", &[3; 200]), Err(UnsealError::Form));
    }

    #[test]
    fn another_master_key_changes_the_wrap_alone() {
        let (old, both, new) = (sealer(1, &[]), sealer(2, &[1]), sealer(2, &[]));
        let sealed = old.seal("a:1", b"secret");
        let resealed = both.reseal("a:1", &sealed).unwrap().expect("it was under the old key");
        assert!(resealed.starts_with(&new.mark()));
        let body = 1 + KEY_ID + NONCE + WRAPPED;
        assert_eq!(resealed[body..], sealed[body..], "the value itself is as it was");
        assert_eq!(new.open("a:1", &resealed).unwrap(), b"secret");
        assert_eq!(old.open("a:1", &resealed), Err(UnsealError::OtherKey));
        assert_eq!(both.reseal("a:1", &resealed), Ok(None), "once is enough");

        let first = directly(1, "a:1", b"secret");
        let resealed = both.reseal("a:1", &first).unwrap().expect("a form of old");
        assert_eq!(new.open("a:1", &resealed).unwrap(), b"secret");
        assert_eq!(both.reseal("a:2", &first), Err(UnsealError::Altered));
        let current = directly(2, "a:1", b"secret");
        assert!(both.reseal("a:1", &current).unwrap().is_some(), "the right key in a form of old");
        assert_eq!(new.reseal("a:1", &sealed), Err(UnsealError::OtherKey));
    }

    #[test]
    fn keys_are_not_in_debug() {
        let text = format!("{:?}", sealer(7, &[8]));
        assert!(!text.contains("07070707") && !text.contains("[7, 7"), "{text}");
    }
}
