//! Links to the pairing page, for whoever holds the phone and has no credentials: `<public url>/pair/<token>`.
//!
//! The token names tenant, session, and when it was made and expires, and is authenticated under a key derived from the master
//! key: whoever has it may pair that one session until then, and nobody can make one.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, Utc};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use url::Url;
use uuid::Uuid;

use crate::config::MasterKey;
use crate::domain::ids::{SessionId, TenantId};

const BODY: usize = 16 + 16 + 8 + 8;

/// Makes and reads links.
#[derive(Clone)]
pub struct Links {
    mac: Option<Hmac<Sha256>>,
    previous: Vec<Hmac<Sha256>>,
    base: Url,
}

/// Authenticates under a key derived from `master`.
fn mac_under(master: &MasterKey) -> Option<Hmac<Sha256>> {
    // HMAC takes keys of any length, so there always is one.
    let mac = |key: &[u8]| Hmac::<Sha256>::new_from_slice(key).ok();
    let derived = mac(&master.0)?.chain_update(b"switchboard: links to pairing, 1").finalize().into_bytes();
    mac(&derived)
}

impl fmt::Debug for Links {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Links(…)")
    }
}

/// What a link is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pass {
    /// Whose session.
    pub tenant: TenantId,
    /// The session.
    pub session: SessionId,
    /// When the link was made; to the microsecond.
    pub made_at: DateTime<Utc>,
    /// Until when it can be used; to the microsecond.
    pub expires_at: DateTime<Utc>,
}

impl Links {
    /// Links below `public_url`, made under `master`; those made under one of `previous` are read, too.
    #[must_use]
    pub fn new(master: &MasterKey, previous: &[MasterKey], public_url: &Url) -> Self {
        let previous = previous.iter().filter_map(mac_under).collect();
        Self { mac: mac_under(master), previous, base: public_url.clone() }
    }

    /// A link for `pass`.
    #[must_use]
    pub fn make(&self, pass: &Pass) -> Url {
        let mut bytes = Vec::with_capacity(BODY + 32);
        bytes.extend_from_slice(pass.tenant.0.as_bytes());
        bytes.extend_from_slice(pass.session.0.as_bytes());
        bytes.extend_from_slice(&pass.made_at.timestamp_micros().to_be_bytes());
        bytes.extend_from_slice(&pass.expires_at.timestamp_micros().to_be_bytes());
        let tag = self.mac.clone().map(|mac| mac.chain_update(&bytes).finalize().into_bytes());
        bytes.extend_from_slice(&tag.unwrap_or_default());
        let mut url = self.base.clone();
        url.set_query(None);
        url.set_fragment(None);
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(["pair", &URL_SAFE_NO_PAD.encode(bytes)]);
        }
        url
    }

    /// What `token` is for, if it is genuine and `now` is not too late.
    #[must_use]
    pub fn read(&self, token: &str, now: DateTime<Utc>) -> Option<Pass> {
        let bytes: [u8; BODY + 32] = URL_SAFE_NO_PAD.decode(token).ok()?.try_into().ok()?;
        let (body, tag) = bytes.split_at_checked(BODY)?;
        // In constant time.
        let genuine = |mac: &Hmac<Sha256>| mac.clone().chain_update(body).verify_slice(tag).is_ok();
        self.mac.iter().chain(&self.previous).any(genuine).then_some(())?;
        let (tenant, rest) = body.split_first_chunk::<16>()?;
        let (session, rest) = rest.split_first_chunk::<16>()?;
        let (made_at, rest) = rest.split_first_chunk::<8>()?;
        let expires_at = rest.first_chunk::<8>()?;
        let time = |micros: &[u8; 8]| DateTime::from_timestamp_micros(i64::from_be_bytes(*micros));
        let pass = Pass {
            tenant: TenantId(Uuid::from_bytes(*tenant)),
            session: SessionId(Uuid::from_bytes(*session)),
            made_at: time(made_at)?,
            expires_at: time(expires_at)?,
        };
        (now < pass.expires_at).then_some(pass)
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;

    #[test]
    fn a_link_opens_its_session_until_it_expires_and_nothing_else() {
        let base: Url = "https://gateway.example/base/?x=1".parse().unwrap();
        let links = Links::new(&MasterKey([7; 32]), &[], &base);
        let now = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        let pass = Pass {
            tenant: TenantId(Uuid::from_u128(1)),
            session: SessionId(Uuid::from_u128(2)),
            made_at: now,
            expires_at: now + TimeDelta::minutes(15),
        };
        let url = links.make(&pass);
        assert!(url.as_str().starts_with("https://gateway.example/base/pair/") && url.query().is_none());
        let token = url.path_segments().unwrap().next_back().unwrap();
        assert_eq!(links.read(token, now), Some(pass));
        assert_eq!(links.read(token, pass.expires_at), None, "expired");
        let other = |previous: &[MasterKey]| Links::new(&MasterKey([8; 32]), previous, &base).read(token, now);
        assert_eq!(other(&[]), None, "another key");
        assert_eq!(other(&[MasterKey([9; 32]), MasterKey([7; 32])]), Some(pass), "a key of before");
        let bytes = URL_SAFE_NO_PAD.decode(token).unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut altered = bytes.clone();
            altered[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(links.read(&URL_SAFE_NO_PAD.encode(altered), now), None, "bit {bit}");
        }
        for text in ["", "a", "=", token.split_at(1).1, &format!("{token}A"), "%00"] {
            assert_eq!(links.read(text, now), None, "{text:?}");
        }
    }
}
