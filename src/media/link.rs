//! Short-lived links to stored files, for those who have no credentials: `<public url>/media/<token>`.
//!
//! The token names tenant, file and hour of expiry: whoever has it may read that one file until then. WAHA gets the file as
//! what it is; what came from outside is shown to browsers only as far as it can do no harm, so the two have purposes of
//! their own.

use chrono::{DateTime, TimeDelta, Utc};
use url::Url;
use uuid::Uuid;

use crate::config::MasterKey;
use crate::domain::ids::{MediaId, TenantId};
use crate::identity::signed::SignedLinks;

/// How long a link for WAHA can be used: long enough for the slowest attempt and WAHA's own tries.
pub const LIFETIME: TimeDelta = TimeDelta::minutes(15);

const BODY: usize = 16 + 16 + 8;

/// Who a link is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// A WAHA server, which sends the file.
    Waha,
    /// A browser, which shows it.
    Browser,
}

/// Makes and reads links.
#[derive(Clone, Debug)]
pub struct Links {
    waha: SignedLinks,
    browser: SignedLinks,
}

impl Links {
    /// Links below `public_url`, made under `master`; those made under one of `previous` are read, too.
    #[must_use]
    pub fn new(master: &MasterKey, previous: &[MasterKey], public_url: &Url) -> Self {
        let links = |purpose| SignedLinks::new(purpose, "media", master, previous, public_url);
        Self {
            waha: links("switchboard: links to media, 1"),
            browser: links("switchboard: links to media for browsers, 1"),
        }
    }

    /// A link to a file, good until `until`.
    #[must_use]
    pub fn make(&self, reader: Reader, tenant: TenantId, media: MediaId, until: DateTime<Utc>) -> Url {
        let mut bytes = Vec::with_capacity(BODY);
        bytes.extend_from_slice(tenant.0.as_bytes());
        bytes.extend_from_slice(media.0.as_bytes());
        bytes.extend_from_slice(&until.timestamp().to_be_bytes());
        match reader {
            Reader::Waha => self.waha.make(&bytes),
            Reader::Browser => self.browser.make(&bytes),
        }
    }

    /// The file a token stands for and who it was made for, if it is genuine and `now` is not too late.
    #[must_use]
    pub fn read(&self, token: &str, now: DateTime<Utc>) -> Option<(Reader, TenantId, MediaId)> {
        let waha = self.waha.read::<BODY>(token).map(|body| (Reader::Waha, body));
        let (reader, body) = waha.or_else(|| self.browser.read(token).map(|body| (Reader::Browser, body)))?;
        let (tenant, rest) = body.split_first_chunk::<16>()?;
        let (media, until) = rest.split_first_chunk::<16>()?;
        let until = i64::from_be_bytes(until.try_into().ok()?);
        let ids = (reader, TenantId(Uuid::from_bytes(*tenant)), MediaId(Uuid::from_bytes(*media)));
        (now.timestamp() < until).then_some(ids)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_opens_its_file_for_its_reader_until_it_expires() {
        let base: Url = "https://gateway.example/base/?x=1".parse().unwrap();
        let links = Links::new(&MasterKey([7; 32]), &[], &base);
        let (tenant, media) = (TenantId(Uuid::from_u128(1)), MediaId(Uuid::from_u128(2)));
        let now = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        for reader in [Reader::Waha, Reader::Browser] {
            let url = links.make(reader, tenant, media, now + LIFETIME);
            assert!(url.as_str().starts_with("https://gateway.example/base/media/") && url.query().is_none());
            let token = url.path_segments().unwrap().next_back().unwrap();
            assert_eq!(links.read(token, now), Some((reader, tenant, media)));
            assert_eq!(links.read(token, now + LIFETIME), None, "expired");
        }
    }
}
