//! API keys: their form, and who stands behind one.
//!
//! A key is `swb_<12>_<43><6>` in base 62: a public prefix by which it is found, 256 random bits, and a checksum with which
//! a mistyped or invented key is refused before anything is looked up. Only the SHA-256 of the whole key is kept. Keys
//! above tenants begin with `swbp_`.
//!
//! Answers come from a cache that a change on any node empties within a second. Revoked, expired and unknown keys, and
//! keys of deleted tenants, are refused alike.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use chrono::{DateTime, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{Array, Binary, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use uuid::Uuid;

use super::scope::Scopes;
use crate::db::generation::{Cache, Generation};
use crate::db::{Db, DbError, Prepare, sql};
use crate::domain::chance::Chance;
use crate::domain::ids::{ApiKeyId, TenantId};

const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const PREFIX_LENGTH: usize = 12;
const SECRET_LENGTH: usize = 43;
const CHECKSUM_LENGTH: usize = 6;

/// How long a use may stay unwritten.
const TOUCH_EVERY_MICROS: i64 = 60_000_000;

/// What a key is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// `swb_`: one tenant's.
    Tenant,
    /// `swbp_`: above tenants.
    Platform,
}

impl KeyKind {
    fn tag(self) -> &'static str {
        match self {
            Self::Tenant => "swb",
            Self::Platform => "swbp",
        }
    }
}

/// A key that was just made; the only moment it can be shown.
#[derive(Debug)]
pub struct Minted {
    /// The whole key.
    pub key: SecretString,
    /// Its public part, by which it is found.
    pub prefix: String,
    /// SHA-256 of the whole key: what is kept.
    pub hash: [u8; 32],
}

/// Makes a key.
#[must_use]
pub fn mint(kind: KeyKind, chance: &Chance) -> Minted {
    let prefix = format!("{}_{}", kind.tag(), random_text(chance, PREFIX_LENGTH));
    let body = format!("{prefix}_{}", random_text(chance, SECRET_LENGTH));
    let key = format!("{body}{}", checksum(&body));
    Minted { hash: Sha256::digest(key.as_bytes()).into(), key: SecretString::from(key), prefix }
}

fn random_text(chance: &Chance, length: usize) -> String {
    let mut text = String::with_capacity(length);
    while text.len() < length {
        let bytes: [u8; 64] = chance.bytes();
        // Six bits reach 63; the two values without a digit are drawn again, so that every digit is as likely.
        let digits = bytes.iter().filter_map(|byte| ALPHABET.get(usize::from(byte & 63)));
        text.extend(digits.take(length - text.len()).map(|digit| char::from(*digit)));
    }
    text
}

fn checksum(body: &str) -> String {
    let digest = Sha256::digest(body.as_bytes());
    let mut number = digest.iter().take(4).fold(0_u32, |number, byte| (number << 8) | u32::from(*byte));
    let mut text = [b'0'; CHECKSUM_LENGTH];
    for digit in text.iter_mut().rev() {
        let rest = usize::try_from(number % 62).unwrap_or(0);
        *digit = ALPHABET.get(rest).copied().unwrap_or(b'0');
        number /= 62;
    }
    text.iter().map(|digit| char::from(*digit)).collect()
}

/// The kind and prefix of `key`, if it is well formed and its checksum is right.
#[must_use]
pub fn parse(key: &str) -> Option<(KeyKind, &str)> {
    if !key.is_ascii() {
        return None;
    }
    let (head, tail) = key.rsplit_once('_')?;
    let (tag, id) = head.split_once('_')?;
    let kind = [KeyKind::Tenant, KeyKind::Platform].into_iter().find(|kind| kind.tag() == tag)?;
    let formed = id.len() == PREFIX_LENGTH && tail.len() == SECRET_LENGTH + CHECKSUM_LENGTH;
    let digits = id.bytes().chain(tail.bytes()).all(|byte| byte.is_ascii_alphanumeric());
    let (body, sum) = key.split_at_checked(key.len().checked_sub(CHECKSUM_LENGTH)?)?;
    (formed && digits && checksum(body) == sum).then_some((kind, head))
}

/// Who a valid key stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// A tenant, by one of its keys.
    Tenant {
        /// Whose key it is.
        tenant: TenantId,
        /// The key.
        key: ApiKeyId,
        /// What it may do.
        scopes: Scopes,
    },
    /// Whoever runs the service; the key's id, or `None` for the configured one.
    Platform(Option<Uuid>),
}

/// Why a key does not let its caller in.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Unknown, wrong, revoked, expired, or of a deleted tenant.
    #[error("not a valid key")]
    Invalid,
    /// The tenant is switched off.
    #[error("the tenant is inactive")]
    InactiveTenant,
    /// It could not be looked up.
    #[error(transparent)]
    Database(#[from] DbError),
}

struct Known {
    hash: [u8; 32],
    expires_at: Option<DateTime<Utc>>,
    holder: Holder,
    active: bool,
    touched_micros: AtomicI64,
}

/// What is known of keys and of the tenants behind them; clones share it.
#[derive(Clone)]
pub struct Keys(Arc<Parts>);

struct Parts {
    configured: Option<[u8; 32]>,
    keys: Cache<String, Arc<Known>>,
    tenants: Cache<TenantId, bool>,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys(…)")
    }
}

#[derive(QueryableByName)]
struct TenantKeyRow {
    #[diesel(sql_type = SqlUuid)]
    tenant_id: TenantId,
    #[diesel(sql_type = SqlUuid)]
    id: ApiKeyId,
    #[diesel(sql_type = Binary)]
    secret_hash: Vec<u8>,
    #[diesel(sql_type = Array<Text>)]
    scopes: Vec<String>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    expires_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    last_used_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Text)]
    status: String,
}

#[derive(QueryableByName)]
struct PlatformKeyRow {
    #[diesel(sql_type = SqlUuid)]
    id: Uuid,
    #[diesel(sql_type = Binary)]
    secret_hash: Vec<u8>,
}

#[derive(QueryableByName)]
struct StatusRow {
    #[diesel(sql_type = Text)]
    status: String,
}

impl Keys {
    /// Knows nothing yet but the platform key of the configuration.
    #[must_use]
    pub fn new(platform_key: Option<&SecretString>, generation: &Generation) -> Self {
        Self(Arc::new(Parts {
            configured: platform_key.map(|key| Sha256::digest(key.expose_secret().as_bytes()).into()),
            keys: Cache::new(generation.clone(), 100_000),
            tenants: Cache::new(generation.clone(), 100_000),
        }))
    }

    /// The answer for `key` as far as it can be given without the database; `None` when it must be looked up.
    pub fn check(&self, key: &str, now: DateTime<Utc>) -> Option<Result<Holder, KeyError>> {
        let hash: [u8; 32] = Sha256::digest(key.as_bytes()).into();
        if self.0.configured.is_some_and(|configured| bool::from(configured.ct_eq(&hash))) {
            return Some(Ok(Holder::Platform(None)));
        }
        let Some((_, prefix)) = parse(key) else { return Some(Err(KeyError::Invalid)) };
        self.0.keys.get(prefix).map(|known| judge(&known, &hash, now))
    }

    /// Who stands behind `key`, from the database where need be. Runs on the process-wide runtime.
    ///
    /// # Errors
    /// [`KeyError`].
    pub async fn look_up(&self, db: &Db, key: &str, now: DateTime<Utc>) -> Result<Holder, KeyError> {
        if let Some(answer) = self.check(key, now) {
            return answer;
        }
        let (kind, prefix) = parse(key).ok_or(KeyError::Invalid)?;
        let begun = self.0.keys.begin();
        let known = match kind {
            KeyKind::Tenant => load_tenant_key(db, prefix).await?,
            KeyKind::Platform => load_platform_key(db, prefix).await?,
        };
        let known = Arc::new(known.ok_or(KeyError::Invalid)?);
        self.0.keys.put(begun, prefix.to_owned(), Arc::clone(&known));
        judge(&known, &Sha256::digest(key.as_bytes()).into(), now)
    }

    /// True when the use of `key` at `now` should be written down: the first use in a minute.
    pub fn must_touch(&self, key: &str, now: DateTime<Utc>) -> bool {
        let Some(known) = parse(key).and_then(|(_, prefix)| self.0.keys.get(prefix)) else { return false };
        let (now, last) = (now.timestamp_micros(), AtomicI64::load(&known.touched_micros, Ordering::Relaxed));
        now.saturating_sub(last) >= TOUCH_EVERY_MICROS
            && known.touched_micros.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Whether `tenant` exists and is active, as far as known without the database.
    pub fn known_tenant(&self, tenant: TenantId) -> Option<bool> {
        self.0.tenants.get(&tenant)
    }

    /// Whether `tenant` is active; `None` when there is none. Runs on the process-wide runtime.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn tenant(&self, db: &Db, tenant: TenantId) -> Result<Option<bool>, DbError> {
        let begun = self.0.tenants.begin();
        let row: Option<StatusRow> = db
            .system(async move |conn| {
                let text = "SELECT status FROM tenants WHERE id = $1 AND deleted_at IS NULL";
                let rows: Vec<StatusRow> = sql(text).bind::<SqlUuid, _>(tenant).prepared().load(&mut **conn).await?;
                Ok::<_, DbError>(rows.into_iter().next())
            })
            .await?;
        let active = row.map(|row| row.status == "active");
        if let Some(active) = active {
            self.0.tenants.put(begun, tenant, active);
        }
        Ok(active)
    }
}

fn judge(known: &Known, hash: &[u8; 32], now: DateTime<Utc>) -> Result<Holder, KeyError> {
    let right = bool::from(known.hash.ct_eq(hash));
    if !right || known.expires_at.is_some_and(|at| at <= now) {
        return Err(KeyError::Invalid);
    }
    if known.active { Ok(known.holder) } else { Err(KeyError::InactiveTenant) }
}

async fn load_tenant_key(db: &Db, prefix: &str) -> Result<Option<Known>, DbError> {
    let prefix = prefix.to_owned();
    let rows: Vec<TenantKeyRow> = db
        .system(async move |conn| {
            let text = "SELECT k.tenant_id, k.id, k.secret_hash, k.scopes, k.expires_at, k.last_used_at, t.status \
                        FROM api_keys k JOIN tenants t ON t.id = k.tenant_id \
                        WHERE k.prefix = $1 AND k.deleted_at IS NULL AND t.deleted_at IS NULL";
            Ok::<_, DbError>(sql(text).bind::<Text, _>(prefix).prepared().load(&mut **conn).await?)
        })
        .await?;
    Ok(rows.into_iter().next().and_then(|row| {
        Some(Known {
            hash: row.secret_hash.try_into().ok()?,
            expires_at: row.expires_at,
            holder: Holder::Tenant {
                tenant: row.tenant_id,
                key: row.id,
                scopes: row.scopes.iter().filter_map(|scope| scope.parse().ok()).collect(),
            },
            active: row.status == "active",
            touched_micros: AtomicI64::new(row.last_used_at.map_or(0, |at| at.timestamp_micros())),
        })
    }))
}

async fn load_platform_key(db: &Db, prefix: &str) -> Result<Option<Known>, DbError> {
    let prefix = prefix.to_owned();
    let rows: Vec<PlatformKeyRow> = db
        .system(async move |conn| {
            let text = "SELECT id, secret_hash FROM platform_keys WHERE prefix = $1 AND deleted_at IS NULL";
            Ok::<_, DbError>(sql(text).bind::<Text, _>(prefix).prepared().load(&mut **conn).await?)
        })
        .await?;
    Ok(rows.into_iter().next().and_then(|row| {
        Some(Known {
            hash: row.secret_hash.try_into().ok()?,
            expires_at: None,
            holder: Holder::Platform(Some(row.id)),
            active: true,
            // Nobody asks when a platform key was last used.
            touched_micros: AtomicI64::new(i64::MAX),
        })
    }))
}

/// Writes down that `key` was used at `now`. Runs on the process-wide runtime.
///
/// # Errors
/// When the database does not answer.
pub async fn touch(db: &Db, key: ApiKeyId, now: DateTime<Utc>) -> Result<(), DbError> {
    db.system(async move |conn| {
        let text =
            "UPDATE api_keys SET last_used_at = $2 WHERE id = $1 AND (last_used_at IS NULL OR last_used_at < $2)";
        sql(text).bind::<SqlUuid, _>(key).bind::<Timestamptz, _>(now).prepared().execute(&mut **conn).await?;
        Ok(())
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minted_key_parses_and_an_altered_one_does_not() {
        let chance = Chance::seeded(1);
        for kind in [KeyKind::Tenant, KeyKind::Platform] {
            let minted = mint(kind, &chance);
            let key = minted.key.expose_secret();
            assert_eq!(key.len(), kind.tag().len() + 1 + 12 + 1 + 43 + 6);
            assert_eq!(parse(key), Some((kind, minted.prefix.as_str())));
            for at in 0..key.len() {
                let mut altered = key.as_bytes().to_vec();
                altered[at] = if altered[at] == b'a' { b'b' } else { b'a' };
                assert_eq!(parse(std::str::from_utf8(&altered).unwrap()), None, "at {at}");
            }
        }
        for bad in ["", "_", "__", "swb_", "swb__", "swb_x_y", "Bearer", "swb_é_", &"_".repeat(80)] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn keys_differ_and_use_every_digit() {
        let chance = Chance::seeded(2);
        let keys: Vec<_> = (0..200).map(|_| mint(KeyKind::Tenant, &chance)).collect();
        let prefixes: std::collections::HashSet<_> = keys.iter().map(|key| &key.prefix).collect();
        assert_eq!(prefixes.len(), keys.len());
        let seen: std::collections::HashSet<u8> = keys.iter().flat_map(|key| key.key.expose_secret().bytes()).collect();
        assert!(ALPHABET.iter().all(|digit| seen.contains(digit)));
    }
}
