//! Short-lived links to stored files, for those who have no credentials: `<public url>/media/<token>`.
//!
//! The token names tenant, file and hour of expiry and is authenticated under a key derived from the master key: whoever has
//! it may read that one file until then, and nobody can make one. A link that was made under an older master key opens as
//! long as that key is configured.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, TimeDelta, Utc};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use url::Url;
use uuid::Uuid;

use crate::config::MasterKey;
use crate::domain::ids::{MediaId, TenantId};

/// How long a link can be used: long enough for the slowest attempt and WAHA's own tries.
pub const LIFETIME: TimeDelta = TimeDelta::minutes(15);

const BODY: usize = 16 + 16 + 8;

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
    let derived = mac(&master.0)?.chain_update(b"switchboard: links to media, 1").finalize().into_bytes();
    mac(&derived)
}

impl fmt::Debug for Links {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Links(…)")
    }
}

impl Links {
    /// Links below `public_url`, made under `master`; those made under one of `previous` are read, too.
    #[must_use]
    pub fn new(master: &MasterKey, previous: &[MasterKey], public_url: &Url) -> Self {
        let previous = previous.iter().filter_map(mac_under).collect();
        Self { mac: mac_under(master), previous, base: public_url.clone() }
    }

    /// A link to a file, good until `until`.
    #[must_use]
    pub fn make(&self, tenant: TenantId, media: MediaId, until: DateTime<Utc>) -> Url {
        let mut bytes = Vec::with_capacity(BODY + 32);
        bytes.extend_from_slice(tenant.0.as_bytes());
        bytes.extend_from_slice(media.0.as_bytes());
        bytes.extend_from_slice(&until.timestamp().to_be_bytes());
        let tag = self.mac.clone().map(|mac| mac.chain_update(&bytes).finalize().into_bytes());
        bytes.extend_from_slice(&tag.unwrap_or_default());
        let mut url = self.base.clone();
        url.set_query(None);
        url.set_fragment(None);
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(["media", &URL_SAFE_NO_PAD.encode(bytes)]);
        }
        url
    }

    /// The file a token stands for, if it is genuine and `now` is not too late.
    #[must_use]
    pub fn read(&self, token: &str, now: DateTime<Utc>) -> Option<(TenantId, MediaId)> {
        let bytes: [u8; BODY + 32] = URL_SAFE_NO_PAD.decode(token).ok()?.try_into().ok()?;
        let (body, tag) = bytes.split_at_checked(BODY)?;
        // In constant time.
        let genuine = |mac: &Hmac<Sha256>| mac.clone().chain_update(body).verify_slice(tag).is_ok();
        self.mac.iter().chain(&self.previous).any(genuine).then_some(())?;
        let (tenant, rest) = body.split_first_chunk::<16>()?;
        let (media, until) = rest.split_first_chunk::<16>()?;
        let until = i64::from_be_bytes(until.try_into().ok()?);
        let ids = (TenantId(Uuid::from_bytes(*tenant)), MediaId(Uuid::from_bytes(*media)));
        (now.timestamp() < until).then_some(ids)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_opens_its_file_until_it_expires_and_nothing_else() {
        let base: Url = "https://gateway.example/base/?x=1".parse().unwrap();
        let links = Links::new(&MasterKey([7; 32]), &[], &base);
        let (tenant, media) = (TenantId(Uuid::from_u128(1)), MediaId(Uuid::from_u128(2)));
        let now = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        let url = links.make(tenant, media, now + LIFETIME);
        assert!(url.as_str().starts_with("https://gateway.example/base/media/") && url.query().is_none());
        let token = url.path_segments().unwrap().next_back().unwrap();
        assert_eq!(links.read(token, now), Some((tenant, media)));
        assert_eq!(links.read(token, now + LIFETIME), None, "expired");
        let other = |previous: &[MasterKey]| Links::new(&MasterKey([8; 32]), previous, &base).read(token, now);
        assert_eq!(other(&[]), None, "another key");
        assert_eq!(other(&[MasterKey([9; 32]), MasterKey([7; 32])]), Some((tenant, media)), "a key of before");
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
