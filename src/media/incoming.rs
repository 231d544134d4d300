//! A file on its way into storage, chunk by chunk.
//!
//! Guarantee: what begins is announced in the database before its first byte is stored, so whatever ends the way, a crash
//! included, leaves nothing for good: [`Incoming::abandon`] removes it now, [`super::purge`] an hour later.

use bytes::Bytes;
use chrono::{DateTime, Utc};
use sha2::{Digest, Sha256};

use super::kind::{self, HEAD};
use super::rows::{self, Media};
use super::storage::Writer;
use super::{MOST_BYTES, MediaError};
use crate::app::App;
use crate::db::DbError;
use crate::domain::ids::{MediaId, TenantId};

/// What a file's sender says of it.
#[derive(Clone, Default)]
pub struct Declared {
    /// Its media type.
    pub mime_type: Option<String>,
    /// Its name.
    pub filename: Option<String>,
    /// Where it was fetched from.
    pub source_url: Option<String>,
}

/// A file on its way.
pub struct Incoming {
    app: App,
    tenant: TenantId,
    id: MediaId,
    began: DateTime<Utc>,
    key: String,
    declared: Declared,
    most: usize,
    writer: Writer,
    digest: Sha256,
    head: Vec<u8>,
    size: usize,
}

impl Incoming {
    /// Announces a file of `tenant`'s.
    ///
    /// # Errors
    /// When database or storage cannot be used.
    pub async fn begin(app: &App, tenant: TenantId, declared: Declared) -> Result<Self, MediaError> {
        Self::begin_within(app, tenant, declared, MOST_BYTES).await
    }

    /// Announces a file of `tenant`'s with at most `most` bytes.
    ///
    /// # Errors
    /// When database or storage cannot be used.
    pub async fn begin_within(
        app: &App,
        tenant: TenantId,
        declared: Declared,
        most: usize,
    ) -> Result<Self, MediaError> {
        let now = app.clock.now();
        let id = MediaId::fresh(now, &app.chance);
        let key = format!("{tenant}/{id}");
        let writer = app.media.storage.write(&key)?;
        app.db
            .tenant(tenant, async |conn| {
                rows::announce(conn, id, &key, declared.source_url.as_deref(), now).await?;
                Ok::<_, DbError>(())
            })
            .await?;
        Ok(Self {
            app: app.clone(),
            tenant,
            id,
            began: now,
            key,
            declared,
            most: most.min(MOST_BYTES),
            writer,
            digest: Sha256::new(),
            head: Vec::new(),
            size: 0,
        })
    }

    /// Adds `chunk`.
    ///
    /// # Errors
    /// When the file grows too large or the storage fails; abandon it then.
    pub async fn write(&mut self, chunk: Bytes) -> Result<(), MediaError> {
        self.size += chunk.len();
        if self.size > self.most {
            return Err(MediaError::TooLarge);
        }
        let room = HEAD.saturating_sub(self.head.len()).min(chunk.len());
        self.head.extend_from_slice(chunk.get(..room).unwrap_or_default());
        self.digest.update(&chunk);
        Ok(self.writer.write(chunk).await?)
    }

    /// Ends the file. It can be used once [`rows::make_ready`] is committed.
    ///
    /// # Errors
    /// When it is empty or the storage fails; nothing is left then.
    pub async fn finish(self) -> Result<Media, MediaError> {
        let Self { app, tenant, id, began, key, declared, writer, digest, head, size, .. } = self;
        let ended = if size == 0 { Err(MediaError::Empty) } else { writer.finish().await.map_err(MediaError::from) };
        if let Err(fault) = ended {
            discard(&app, tenant, id, &key).await;
            return Err(fault);
        }
        Ok(Media {
            id,
            mime_type: kind::sniff(&head, declared.mime_type.as_deref()),
            filename: declared.filename.as_deref().and_then(kind::clean_name),
            size: i64::try_from(size).unwrap_or(i64::MAX),
            sha256: hex::encode(digest.finalize()),
            width: None,
            height: None,
            created_at: began,
            thumbnail_size: None,
            key,
        })
    }

    /// Gives the file up and removes what is there of it.
    pub async fn abandon(self) {
        let Self { app, tenant, id, key, writer, .. } = self;
        writer.abort().await;
        discard(&app, tenant, id, &key).await;
    }
}

/// Removes a file that is not to become ready after all. What fails here is left to the purge.
pub async fn discard(app: &App, tenant: TenantId, id: MediaId, key: &str) {
    let removed = match app.media.remove(key).await {
        Ok(()) => rows::forget(app, tenant, id).await.map_err(MediaError::from),
        Err(fault) => Err(fault.into()),
    };
    if let Err(fault) = removed {
        tracing::debug!(%fault, "media: an unfinished file is left to the purge");
    }
}
