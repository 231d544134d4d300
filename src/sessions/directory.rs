//! Which session lives where: the look-ups of the hot paths, cached per node (see `db::generation`).

use std::sync::Arc;

use chrono::{DateTime, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{Array, Binary, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use secrecy::{SecretBox, SecretString};

use crate::db::generation::{Cache, Generation};
use crate::db::{Db, DbError, Prepare, sql};
use crate::domain::ids::{SessionId, TenantId, WahaServerId};
use crate::identity::rotate::{SealedColumn, sealed_column};
use crate::identity::seal::{Sealer, UnsealError};
use crate::sessions::proxy;
use crate::waha::{Engine, Limitation, Proxy, Server};

/// What the hot paths need to know of a session.
#[derive(Debug)]
pub struct SessionEntry {
    /// Whose session.
    pub tenant: TenantId,
    /// The session.
    pub id: SessionId,
    /// Its name on its WAHA server.
    pub external_name: String,
    /// Where it lives.
    pub server: WahaServerId,
    /// The engine that runs it.
    pub engine: Engine,
    /// Its own number in E.164 with `+`, once paired.
    pub phone: Option<String>,
    /// What WAHA signs its webhooks with.
    pub webhook_key: SecretBox<Vec<u8>>,
    /// What it signed them with before that key, if there was another one.
    pub previous_webhook_key: Option<PreviousKey>,
    /// Where its connection to WhatsApp is to go through; `None`: straight.
    pub proxy: Option<Proxy>,
}

/// A webhook key that was replaced.
#[derive(Debug)]
pub struct PreviousKey {
    /// The key.
    pub key: SecretBox<Vec<u8>>,
    /// When it is accepted no longer; `None`: WAHA was not seen with the new key yet.
    pub until: Option<DateTime<Utc>>,
}

impl SessionEntry {
    /// The keys that an event may be signed with at `now`.
    #[must_use]
    pub fn webhook_keys(&self, now: DateTime<Utc>) -> Vec<&SecretBox<Vec<u8>>> {
        let accepted = |previous: &&PreviousKey| previous.until.is_none_or(|until| now < until);
        let previous = self.previous_webhook_key.as_ref().filter(accepted).map(|previous| &previous.key);
        std::iter::once(&self.webhook_key).chain(previous).collect()
    }

    /// Whether WAHA may not have the current key yet.
    #[must_use]
    pub fn has_untold_webhook_key(&self) -> bool {
        self.previous_webhook_key.as_ref().is_some_and(|previous| previous.until.is_none())
    }
}

/// A WAHA server that calls can go to.
#[derive(Debug)]
pub struct ServerEntry {
    /// The server.
    pub id: WahaServerId,
    /// Where it is and how it knows us.
    pub server: Server,
    /// What it runs.
    pub engine: Engine,
    /// Whether its version is one that keeps the message ids which its engine honours.
    pub keeps_ids: bool,
}

impl ServerEntry {
    /// Whether a send keeps the message id the caller chose, which makes a repeat of the send harmless.
    #[must_use]
    pub fn honours_message_id(&self) -> bool {
        self.keeps_ids && self.engine.honours_message_id()
    }
}

/// Why a look-up has no answer.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// The database said no.
    #[error(transparent)]
    Database(#[from] DbError),
    /// A stored secret does not open.
    #[error("a stored secret does not open: {0}")]
    Sealed(#[from] UnsealError),
    /// A stored value is not what was written.
    #[error("a stored {0} cannot be read")]
    Unreadable(&'static str),
}

/// A tenant's session when the request names none.
#[derive(Clone, Debug)]
pub enum Only {
    /// The tenant has none.
    None,
    /// The tenant has just this one.
    One(Arc<SessionEntry>),
    /// The tenant has several.
    Several,
}

/// The look-ups.
#[derive(Debug)]
pub struct Directory {
    db: Db,
    sealer: Sealer,
    by_id: Cache<SessionId, Arc<SessionEntry>>,
    by_name: Cache<(WahaServerId, String), Arc<SessionEntry>>,
    only: Cache<TenantId, Only>,
    servers: Cache<WahaServerId, Arc<ServerEntry>>,
}

#[derive(QueryableByName)]
struct SessionRow {
    #[diesel(sql_type = SqlUuid)]
    tenant_id: TenantId,
    #[diesel(sql_type = SqlUuid)]
    id: SessionId,
    #[diesel(sql_type = Text)]
    external_session_id: String,
    #[diesel(sql_type = SqlUuid)]
    waha_server_id: WahaServerId,
    #[diesel(sql_type = Text)]
    engine: String,
    #[diesel(sql_type = Nullable<Text>)]
    phone: Option<String>,
    #[diesel(sql_type = Binary)]
    webhook_key_sealed: Vec<u8>,
    #[diesel(sql_type = Nullable<Binary>)]
    previous_webhook_key_sealed: Option<Vec<u8>>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    previous_webhook_key_until: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<Binary>)]
    proxy_sealed: Option<Vec<u8>>,
}

#[derive(QueryableByName)]
struct ServerRow {
    #[diesel(sql_type = SqlUuid)]
    id: WahaServerId,
    #[diesel(sql_type = Text)]
    base_url: String,
    #[diesel(sql_type = Binary)]
    api_key_sealed: Vec<u8>,
    #[diesel(sql_type = Text)]
    engine: String,
    #[diesel(sql_type = Array<Text>)]
    limitations: Vec<String>,
}

macro_rules! session_query {
    ($condition:literal) => {
        concat!(
            "SELECT tenant_id, id, external_session_id, waha_server_id, engine, phone, webhook_key_sealed, \
             previous_webhook_key_sealed, previous_webhook_key_until, proxy_sealed \
             FROM waha_sessions WHERE deleted_at IS NULL AND ",
            $condition
        )
    };
}

macro_rules! server_query {
    ($condition:literal) => {
        concat!(
            "SELECT id, base_url, api_key_sealed, engine, limitations FROM waha_servers WHERE deleted_at IS NULL",
            $condition
        )
    };
}

/// What WAHA signs its webhooks with, sealed.
pub const SEALED_WEBHOOK_KEYS: SealedColumn =
    sealed_column!("waha_sessions", "webhook_key_sealed", "waha_sessions.webhook_key");

/// What it signed them with before, sealed for the same purpose, so that a key becomes a previous one as it is.
pub const SEALED_PREVIOUS_WEBHOOK_KEYS: SealedColumn =
    sealed_column!("waha_sessions", "previous_webhook_key_sealed", SEALED_WEBHOOK_KEYS.purpose);

/// The keys that WAHA servers know the gateway by, sealed.
pub const SEALED_API_KEYS: SealedColumn = sealed_column!("waha_servers", "api_key_sealed", "waha_servers.api_key");

/// The purpose under which a session's webhook key is sealed.
#[must_use]
pub fn webhook_key_purpose(session: SessionId) -> String {
    SEALED_WEBHOOK_KEYS.purpose_at(&session.to_string())
}

/// The purpose under which a server's API key is sealed.
#[must_use]
pub fn api_key_purpose(server: WahaServerId) -> String {
    SEALED_API_KEYS.purpose_at(&server.to_string())
}

impl Directory {
    const MOST: usize = 100_000;

    /// An empty directory.
    #[must_use]
    pub fn new(db: Db, sealer: Sealer, generation: &Generation) -> Self {
        Self {
            db,
            sealer,
            by_id: Cache::new(generation.clone(), Self::MOST),
            by_name: Cache::new(generation.clone(), Self::MOST),
            only: Cache::new(generation.clone(), Self::MOST),
            servers: Cache::new(generation.clone(), Self::MOST),
        }
    }

    fn webhook_key(&self, session: SessionId, sealed: &[u8]) -> Result<SecretBox<Vec<u8>>, UnsealError> {
        let key = self.sealer.open(&webhook_key_purpose(session), sealed)?;
        Ok(SecretBox::new(Box::new(key)))
    }

    fn session_entry(&self, row: SessionRow) -> Result<Arc<SessionEntry>, DirectoryError> {
        let webhook_key = self.webhook_key(row.id, &row.webhook_key_sealed)?;
        let previous = row.previous_webhook_key_sealed.map(|sealed| self.webhook_key(row.id, &sealed)).transpose()?;
        let until = row.previous_webhook_key_until;
        let proxy =
            row.proxy_sealed.as_deref().map(|sealed| proxy::opened(&self.sealer, row.id, sealed)).transpose()?;
        Ok(Arc::new(SessionEntry {
            tenant: row.tenant_id,
            id: row.id,
            external_name: row.external_session_id,
            server: row.waha_server_id,
            engine: row.engine.parse().map_err(|_| DirectoryError::Unreadable("engine"))?,
            phone: row.phone,
            webhook_key,
            previous_webhook_key: previous.map(|key| PreviousKey { key, until }),
            proxy,
        }))
    }

    /// The session `id`, if it is `tenant`'s and this node has looked it up before.
    pub fn known_session(&self, tenant: TenantId, id: SessionId) -> Option<Arc<SessionEntry>> {
        self.by_id.get(&id).filter(|entry| entry.tenant == tenant)
    }

    /// [`Directory::only_session`], if this node has looked it up before.
    pub fn known_only_session(&self, tenant: TenantId) -> Option<Only> {
        self.only.get(&tenant)
    }

    /// The session `id`, if it is `tenant`'s.
    ///
    /// # Errors
    /// [`DirectoryError`].
    pub async fn session(&self, tenant: TenantId, id: SessionId) -> Result<Option<Arc<SessionEntry>>, DirectoryError> {
        if let Some(entry) = self.by_id.get(&id) {
            return Ok((entry.tenant == tenant).then_some(entry));
        }
        let begun = self.by_id.begin();
        let rows: Vec<SessionRow> = self
            .db
            .system(async |conn| {
                Ok::<_, DbError>(
                    sql(session_query!("tenant_id = $1 AND id = $2"))
                        .bind::<SqlUuid, _>(tenant)
                        .bind::<SqlUuid, _>(id)
                        .prepared()
                        .load(&mut **conn)
                        .await?,
                )
            })
            .await?;
        let Some(row) = rows.into_iter().next() else { return Ok(None) };
        let entry = self.session_entry(row)?;
        self.by_id.put(begun, id, Arc::clone(&entry));
        Ok(Some(entry))
    }

    /// The session that `server` calls `name`.
    ///
    /// # Errors
    /// [`DirectoryError`].
    pub async fn session_named(
        &self,
        server: WahaServerId,
        name: &str,
    ) -> Result<Option<Arc<SessionEntry>>, DirectoryError> {
        // Postgres keeps no NUL in text, so nothing has such a name; to ask would be an error.
        if name.contains('\0') {
            return Ok(None);
        }
        let key = (server, name.to_owned());
        if let Some(entry) = self.by_name.get(&key) {
            return Ok(Some(entry));
        }
        let begun = self.by_name.begin();
        let rows: Vec<SessionRow> = self
            .db
            .system(async |conn| {
                Ok::<_, DbError>(
                    sql(session_query!("waha_server_id = $1 AND external_session_id = $2"))
                        .bind::<SqlUuid, _>(server)
                        .bind::<Text, _>(name)
                        .prepared()
                        .load(&mut **conn)
                        .await?,
                )
            })
            .await?;
        let Some(row) = rows.into_iter().next() else { return Ok(None) };
        let entry = self.session_entry(row)?;
        self.by_name.put(begun, key, Arc::clone(&entry));
        Ok(Some(entry))
    }

    /// The session of a tenant that has just one.
    ///
    /// # Errors
    /// [`DirectoryError`].
    pub async fn only_session(&self, tenant: TenantId) -> Result<Only, DirectoryError> {
        if let Some(only) = self.only.get(&tenant) {
            return Ok(only);
        }
        let begun = self.only.begin();
        let rows: Vec<SessionRow> = self
            .db
            .system(async |conn| {
                Ok::<_, DbError>(
                    sql(session_query!("tenant_id = $1 LIMIT 2"))
                        .bind::<SqlUuid, _>(tenant)
                        .prepared()
                        .load(&mut **conn)
                        .await?,
                )
            })
            .await?;
        let several = rows.len() > 1;
        let only = match rows.into_iter().next() {
            // Not kept: the first session must be found as soon as it is there.
            None => return Ok(Only::None),
            Some(_) if several => Only::Several,
            Some(row) => Only::One(self.session_entry(row)?),
        };
        self.only.put(begun, tenant, only.clone());
        Ok(only)
    }

    fn server_entry(&self, row: &ServerRow) -> Result<Arc<ServerEntry>, DirectoryError> {
        let api_key = self.sealer.open(&api_key_purpose(row.id), &row.api_key_sealed)?;
        let api_key = String::from_utf8(api_key).map_err(|_| DirectoryError::Unreadable("API key"))?;
        Ok(Arc::new(ServerEntry {
            id: row.id,
            server: Server {
                base_url: row.base_url.parse().map_err(|_| DirectoryError::Unreadable("address"))?,
                api_key: SecretString::from(api_key),
            },
            engine: row.engine.parse().map_err(|_| DirectoryError::Unreadable("engine"))?,
            keeps_ids: !row.limitations.iter().any(|word| word == Limitation::NoOwnMessageIds.as_str()),
        }))
    }

    /// The WAHA server `id`.
    ///
    /// # Errors
    /// [`DirectoryError`].
    pub async fn server(&self, id: WahaServerId) -> Result<Option<Arc<ServerEntry>>, DirectoryError> {
        if let Some(entry) = self.servers.get(&id) {
            return Ok(Some(entry));
        }
        let begun = self.servers.begin();
        let rows: Vec<ServerRow> = self
            .db
            .system(async |conn| {
                Ok::<_, DbError>(
                    sql(server_query!(" AND id = $1")).bind::<SqlUuid, _>(id).prepared().load(&mut **conn).await?,
                )
            })
            .await?;
        let Some(row) = rows.as_slice().first() else { return Ok(None) };
        let entry = self.server_entry(row)?;
        self.servers.put(begun, id, Arc::clone(&entry));
        Ok(Some(entry))
    }

    /// Every WAHA server.
    ///
    /// # Errors
    /// [`DirectoryError`].
    pub async fn all_servers(&self) -> Result<Vec<Arc<ServerEntry>>, DirectoryError> {
        let rows: Vec<ServerRow> = self
            .db
            .system(async |conn| Ok::<_, DbError>(sql(server_query!("")).prepared().load(&mut **conn).await?))
            .await?;
        rows.iter().map(|row| self.server_entry(row)).collect()
    }
}
