//! The secrets of one endpoint: the current one, and those it replaced, which sign along for a while.
//!
//! They are sealed together, as a JSON list, in one column.

use chrono::{DateTime, TimeDelta, Utc};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use super::sign::SigningSecret;
use crate::domain::chance::Chance;
use crate::domain::ids::EndpointId;
use crate::identity::rotate::{SealedColumn, sealed_column};
use crate::identity::seal::Sealer;

/// How long a replaced secret signs along.
pub(super) const OVERLAP: TimeDelta = TimeDelta::hours(24);

/// Secrets kept at the most; of the replaced ones the oldest goes first.
const MOST: usize = 5;

/// The sealed secrets do not open or make no sense.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the endpoint's secrets do not open")]
pub struct KeyringError;

/// The secrets, the current one first.
#[derive(Debug)]
pub(super) struct Keyring(Vec<Key>);

#[derive(Debug)]
struct Key {
    secret: SigningSecret,
    not_after: Option<DateTime<Utc>>,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    secret: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    not_after: Option<DateTime<Utc>>,
}

/// Where they are kept.
pub(super) const SECRETS: SealedColumn =
    sealed_column!("webhook_endpoints", "secret_sealed", "webhook_endpoints.secret");

fn purpose(endpoint: EndpointId) -> String {
    SECRETS.purpose_at(&endpoint.to_string())
}

impl Keyring {
    /// One fresh secret.
    pub(super) fn generate(chance: &Chance) -> Self {
        Self(vec![Key { secret: SigningSecret::generate(chance), not_after: None }])
    }

    /// Opens what [`Keyring::seal`] sealed.
    pub(super) fn open(sealer: &Sealer, endpoint: EndpointId, sealed: &[u8]) -> Result<Self, KeyringError> {
        let plain = sealer.open(&purpose(endpoint), sealed).map_err(|_| KeyringError)?;
        let stored: Vec<Stored> = serde_json::from_slice(&plain).map_err(|_| KeyringError)?;
        let keys = stored.into_iter().map(|stored| {
            let secret = SigningSecret::parse(&stored.secret).map_err(|_| KeyringError)?;
            Ok(Key { secret, not_after: stored.not_after })
        });
        keys.collect::<Result<Vec<_>, _>>().map(Self)
    }

    pub(super) fn seal(&self, sealer: &Sealer, endpoint: EndpointId) -> Vec<u8> {
        let stored: Vec<Stored> = self
            .0
            .iter()
            .map(|key| Stored { secret: key.secret.reveal().expose_secret().to_owned(), not_after: key.not_after })
            .collect();
        // Strings and times always have a JSON form.
        let plain = serde_json::to_vec(&stored).unwrap_or_default();
        sealer.seal(&purpose(endpoint), &plain)
    }

    /// The secret as its tenant sees it.
    pub(super) fn current(&self) -> Result<SecretString, KeyringError> {
        self.0.first().map(|key| key.secret.reveal()).ok_or(KeyringError)
    }

    /// The secrets that sign at `now`.
    pub(super) fn valid(&self, now: DateTime<Utc>) -> Vec<&SigningSecret> {
        self.0.iter().filter(|key| key.not_after.is_none_or(|end| now < end)).map(|key| &key.secret).collect()
    }

    /// Puts a fresh secret before the others; the one that was current signs along for [`OVERLAP`].
    pub(super) fn rotate(&mut self, now: DateTime<Utc>, chance: &Chance) {
        for key in &mut self.0 {
            key.not_after.get_or_insert(now + OVERLAP);
        }
        self.0.retain(|key| key.not_after.is_none_or(|end| now < end));
        self.0.insert(0, Key { secret: SigningSecret::generate(chance), not_after: None });
        self.0.truncate(MOST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::MasterKey;

    #[test]
    fn the_old_secret_signs_along_for_a_day() {
        let chance = Chance::seeded(1);
        let sealer = Sealer::new(&MasterKey([1; 32]), chance.clone());
        let endpoint = EndpointId(uuid::Uuid::from_u128(1));
        let now = DateTime::from_timestamp(1_700_000_000, 0).unwrap();
        let mut keys = Keyring::generate(&chance);
        let first = keys.current().unwrap();
        keys.rotate(now, &chance);
        let keys = Keyring::open(&sealer, endpoint, &keys.seal(&sealer, endpoint)).unwrap();
        assert_ne!(keys.current().unwrap().expose_secret(), first.expose_secret());
        let last_moment = now + OVERLAP - TimeDelta::seconds(1);
        assert_eq!((keys.valid(now).len(), keys.valid(last_moment).len(), keys.valid(now + OVERLAP).len()), (2, 2, 1));
        assert_eq!(keys.valid(now)[1].reveal().expose_secret(), first.expose_secret());
        assert!(Keyring::open(&sealer, EndpointId(uuid::Uuid::from_u128(2)), &keys.seal(&sealer, endpoint)).is_err());
    }

    #[test]
    fn many_rotations_keep_few_secrets() {
        let chance = Chance::seeded(1);
        let now = DateTime::from_timestamp(1_700_000_000, 0).unwrap();
        let mut keys = Keyring::generate(&chance);
        for _ in 0..20 {
            keys.rotate(now, &chance);
        }
        assert_eq!(keys.valid(now).len(), MOST);
    }
}
