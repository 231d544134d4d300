//! Links to the pairing page, for whoever holds the phone and has no credentials: `<public url>/pair/<token>`.
//!
//! The token names tenant, session, and when it was made and expires: whoever has it may pair that one session until then, and
//! nobody can make one ([`SignedLinks`]).

use chrono::{DateTime, Utc};
use url::Url;
use uuid::Uuid;

use crate::config::MasterKey;
use crate::domain::ids::{SessionId, TenantId};
use crate::identity::signed::SignedLinks;

const BODY: usize = 16 + 16 + 8 + 8;

/// Makes and reads links.
#[derive(Clone, Debug)]
pub struct Links(SignedLinks);

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
        Self(SignedLinks::new("switchboard: links to pairing, 1", "pair", master, previous, public_url))
    }

    /// A link for `pass`.
    #[must_use]
    pub fn make(&self, pass: &Pass) -> Url {
        let mut bytes = Vec::with_capacity(BODY);
        bytes.extend_from_slice(pass.tenant.0.as_bytes());
        bytes.extend_from_slice(pass.session.0.as_bytes());
        bytes.extend_from_slice(&pass.made_at.timestamp_micros().to_be_bytes());
        bytes.extend_from_slice(&pass.expires_at.timestamp_micros().to_be_bytes());
        self.0.make(&bytes)
    }

    /// What `token` is for, if it is genuine and `now` is not too late.
    #[must_use]
    pub fn read(&self, token: &str, now: DateTime<Utc>) -> Option<Pass> {
        let body: [u8; BODY] = self.0.read(token)?;
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
    }
}
