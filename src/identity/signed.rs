//! Links that are their own credential: `<public url>/<folder>/<token>`.
//!
//! The token is a few bytes and their authentication under a key derived from the master key for one purpose: whoever has it
//! may do what it says, nobody can make one, and one made for another purpose says nothing. A link that was made under an older
//! master key opens as long as that key is configured.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use url::Url;

use crate::config::MasterKey;

const TAG: usize = 32;

/// Makes and reads the links of one purpose.
#[derive(Clone)]
pub struct SignedLinks {
    mac: Option<Hmac<Sha256>>,
    previous: Vec<Hmac<Sha256>>,
    base: Url,
    folder: &'static str,
}

/// Authenticates under a key derived from `master`.
fn mac_under(master: &MasterKey, purpose: &str) -> Option<Hmac<Sha256>> {
    // HMAC takes keys of any length, so there always is one.
    let mac = |key: &[u8]| Hmac::<Sha256>::new_from_slice(key).ok();
    let derived = mac(&master.0)?.chain_update(purpose).finalize().into_bytes();
    mac(&derived)
}

impl fmt::Debug for SignedLinks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SignedLinks(…)")
    }
}

impl SignedLinks {
    /// Links into `folder` below `public_url`, made under `master`; those made under one of `previous` are read, too. No two
    /// kinds of links may have the same `purpose`.
    #[must_use]
    pub fn new(
        purpose: &str,
        folder: &'static str,
        master: &MasterKey,
        previous: &[MasterKey],
        public_url: &Url,
    ) -> Self {
        let previous = previous.iter().filter_map(|key| mac_under(key, purpose)).collect();
        Self { mac: mac_under(master, purpose), previous, base: public_url.clone(), folder }
    }

    /// A link that says `body`.
    #[must_use]
    pub fn make(&self, body: &[u8]) -> Url {
        let mut bytes = Vec::with_capacity(body.len() + TAG);
        bytes.extend_from_slice(body);
        let tag = self.mac.clone().map(|mac| mac.chain_update(body).finalize().into_bytes());
        bytes.extend_from_slice(&tag.unwrap_or_default());
        let mut url = self.base.clone();
        url.set_query(None);
        url.set_fragment(None);
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend([self.folder, &URL_SAFE_NO_PAD.encode(bytes)]);
        }
        url
    }

    /// What `token` says, if it is genuine.
    #[must_use]
    pub fn read<const N: usize>(&self, token: &str) -> Option<[u8; N]> {
        let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
        let (body, tag) = bytes.split_at_checked(N)?;
        if tag.len() != TAG {
            return None;
        }
        // In constant time.
        let genuine = |mac: &Hmac<Sha256>| mac.clone().chain_update(body).verify_slice(tag).is_ok();
        self.mac.iter().chain(&self.previous).any(genuine).then_some(())?;
        body.try_into().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_says_what_it_was_made_for_and_nothing_else() {
        let base: Url = "https://gateway.example/base/?x=1".parse().unwrap();
        let (old, new) = (MasterKey([7; 32]), MasterKey([8; 32]));
        let links = SignedLinks::new("one", "door", &old, &[], &base);
        let url = links.make(b"hello");
        assert!(url.as_str().starts_with("https://gateway.example/base/door/") && url.query().is_none());
        let token = url.path_segments().unwrap().next_back().unwrap();
        assert_eq!(links.read(token), Some(*b"hello"));
        assert_eq!(links.read::<4>(token), None, "another length");
        let others = |purpose: &str, previous: &[MasterKey]| {
            SignedLinks::new(purpose, "door", &new, previous, &base).read::<5>(token)
        };
        assert_eq!(others("one", &[]), None, "another key");
        assert_eq!(others("one", &[MasterKey([9; 32]), old.clone()]), Some(*b"hello"), "a key of before");
        assert_eq!(others("two", &[old]), None, "another purpose");
        let bytes = URL_SAFE_NO_PAD.decode(token).unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut altered = bytes.clone();
            altered[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(links.read::<5>(&URL_SAFE_NO_PAD.encode(altered)), None, "bit {bit}");
        }
        for text in ["", "a", "=", token.split_at(1).1, &format!("{token}A"), "%00"] {
            assert_eq!(links.read::<5>(text), None, "{text:?}");
        }
    }
}
