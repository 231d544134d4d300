//! Files: those to be sent, taken from tenants, fetched from their URLs and handed to WAHA by short-lived links; and those that
//! came with messages ([`arrivals`]). All are kept in object storage.
//!
//! Guarantee: a file is never in memory as a whole on its way in or out; what it is said of its bytes, not of its sender's
//! words; and what breaks off on its way leaves nothing behind. A URL is fetched once for each message, whatever repeats.

pub mod arrivals;
mod fetch;
mod incoming;
pub mod kind;
pub mod link;
mod picture;
mod rows;
pub mod slots;
mod storage;

use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{Nullable, Text, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use futures_util::stream::BoxStream;
use tokio::sync::mpsc;
use url::Url;

pub use self::incoming::Declared;
pub use self::rows::{GRACE, Media, delete, find, list, make_ready, purge};
pub use self::storage::StorageError;

use self::incoming::{Incoming, discard};
use self::link::Links;
use self::slots::{Slot, Slots};
use self::storage::Storage;
use crate::app::App;
use crate::config::{Config, MasterKey};
use crate::db::{DbError, Prepare, TenantConn, sql};
use crate::domain::content::MediaContent;
use crate::domain::failure::FailureCode;
use crate::domain::ids::{MediaId, MessageId, TenantId};
use crate::guard::{self, Guard, GuardError, GuardedClient, Timeouts};
use crate::waha::{FileSource, MediaFile};

/// The largest file, in bytes.
pub const MOST_BYTES: usize = 64 * 1024 * 1024;

/// Files of one tenant on their way at once, in each direction, and of all.
const EACH: usize = 8;
const ALL: usize = 64;

/// Why a file is not there.
#[derive(Debug, thiserror::Error)]
pub enum MediaError {
    /// The tenant has no such file.
    #[error("the file is not stored, or not any more")]
    NotFound,
    /// Not an absolute URL.
    #[error("the address is not a URL")]
    NotAUrl,
    /// An address the gateway does not call.
    #[error("{0}")]
    Refused(GuardError),
    /// The address answered that it has no such file for us.
    #[error("the address answered with status {0}")]
    Answered(u16),
    /// One redirect led to the next too often.
    #[error("the address redirects too often")]
    Redirects,
    /// More than [`MOST_BYTES`].
    #[error("the file is larger than 64 MiB")]
    TooLarge,
    /// No bytes at all.
    #[error("the file is empty")]
    Empty,
    /// The address answered that it cannot answer now.
    #[error("the address answered with status {0}")]
    Unavailable(u16),
    /// No connection, or it broke.
    #[error("the address cannot be reached")]
    Unreachable,
    /// Not all bytes came in time.
    #[error("the file did not arrive in time")]
    TimedOut,
    /// Its sender went away before all bytes had come.
    #[error("the file broke off")]
    BrokenOff,
    /// The storage failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The database did not answer.
    #[error(transparent)]
    Database(#[from] DbError),
}

impl MediaError {
    /// Why a message with this file fails for good; `None` when another try may succeed.
    #[must_use]
    pub fn failure(&self) -> Option<FailureCode> {
        match self {
            Self::NotFound
            | Self::NotAUrl
            | Self::Refused(_)
            | Self::Answered(_)
            | Self::Redirects
            | Self::Empty
            | Self::Storage(StorageError::NotFound) => Some(FailureCode::MediaUnavailable),
            Self::TooLarge => Some(FailureCode::TooLarge),
            Self::Unavailable(_)
            | Self::Unreachable
            | Self::TimedOut
            | Self::BrokenOff
            | Self::Storage(StorageError::Failed(_))
            | Self::Database(_) => None,
        }
    }
}

/// What a process holds for files.
#[derive(Debug)]
pub struct MediaRoom {
    storage: Storage,
    links: Links,
    client: GuardedClient,
    uploads: Slots,
    fetches: Slots,
}

/// Why a process cannot handle files.
#[derive(Debug, thiserror::Error)]
pub enum RoomError {
    /// The storage's settings do not fit together.
    #[error("SWITCHBOARD_MEDIA_URL: {0}")]
    Storage(#[from] StorageError),
    /// The TLS backend cannot be set up.
    #[error("the HTTP client cannot be set up: {0}")]
    Http(#[from] reqwest::Error),
}

impl MediaRoom {
    /// Builds the parts; nothing is read or written yet.
    ///
    /// # Errors
    /// [`RoomError`].
    pub fn open(config: &Config, key: &MasterKey) -> Result<Self, RoomError> {
        let guard = Guard::new(config.allow_private_targets);
        // The client sets up TLS for the storage, too.
        let client = guard::client(&guard, Timeouts { total: config.timings.send_timeout, ..Timeouts::default() })?;
        Ok(Self {
            storage: Storage::open(&config.media)?,
            links: Links::new(key, &config.previous_master_keys, &config.public_url),
            client,
            uploads: Slots::new(EACH, ALL),
            fetches: Slots::new(EACH, ALL),
        })
    }

    /// A place for an upload of `tenant`'s; `None` when too many are on their way.
    pub async fn upload_slot(&self, tenant: TenantId) -> Option<Slot> {
        self.uploads.take(tenant, Duration::from_secs(5)).await
    }

    /// The file a link's token stands for, if it is genuine and has not expired.
    #[must_use]
    pub fn linked(&self, token: &str, now: DateTime<Utc>) -> Option<(link::Reader, TenantId, MediaId)> {
        self.links.read(token, now)
    }

    /// A link for browsers to the file `id` of `tenant`'s, good until `until`.
    #[must_use]
    pub fn browser_link(&self, tenant: TenantId, id: MediaId, until: DateTime<Utc>) -> Url {
        self.links.make(link::Reader::Browser, tenant, id, until)
    }

    /// The bytes of `media`, or those in `range`. Poll the stream on the process-wide runtime.
    ///
    /// # Errors
    /// When its bytes are not there or the storage does not answer.
    pub async fn read(
        &self,
        media: &Media,
        range: Option<Range<u64>>,
    ) -> Result<BoxStream<'static, Result<Bytes, StorageError>>, StorageError> {
        self.storage.read(&media.key, range).await
    }

    /// [`MediaRoom::read`] of the small picture that is kept beside `media`, where there is one.
    ///
    /// # Errors
    /// When its bytes are not there or the storage does not answer.
    pub async fn read_small(
        &self,
        media: &Media,
        range: Option<Range<u64>>,
    ) -> Result<BoxStream<'static, Result<Bytes, StorageError>>, StorageError> {
        self.storage.read(&small_key(&media.key), range).await
    }

    /// Removes what is kept under `key`, with the small picture beside it.
    async fn remove(&self, key: &str) -> Result<(), StorageError> {
        self.storage.delete(&small_key(key)).await?;
        self.storage.delete(key).await
    }
}

/// Where the small picture of the file under `key` is.
fn small_key(key: &str) -> String {
    format!("{key}.small")
}

/// A piece of an upload.
#[derive(Debug)]
pub enum Piece {
    /// Some bytes.
    Bytes(Bytes),
    /// All bytes have come. An upload that ends without it broke off.
    End,
}

/// Stores what comes in by `pieces`. The file can be used once [`make_ready`] is committed; [`take_back`] removes it.
///
/// # Errors
/// [`MediaError`]; nothing is left then.
pub async fn receive(
    app: &App,
    tenant: TenantId,
    declared: Declared,
    mut pieces: mpsc::Receiver<Piece>,
) -> Result<Media, MediaError> {
    let mut incoming = Incoming::begin(app, tenant, declared).await?;
    let fault = loop {
        match pieces.recv().await {
            Some(Piece::Bytes(bytes)) => {
                if let Err(fault) = incoming.write(bytes).await {
                    break fault;
                }
            }
            Some(Piece::End) => return incoming.finish().await,
            None => break MediaError::BrokenOff,
        }
    };
    incoming.abandon().await;
    Err(fault)
}

/// Removes a file that was not made ready.
pub async fn take_back(app: &App, tenant: TenantId, media: &Media) {
    discard(app, tenant, media.id, &media.key).await;
}

/// Stores `bytes` as a file of `tenant`'s.
///
/// # Errors
/// [`MediaError`]; nothing is left then.
pub async fn keep_bytes(
    app: &App,
    tenant: TenantId,
    bytes: Bytes,
    mime_type: Option<&str>,
    filename: Option<&str>,
) -> Result<Media, MediaError> {
    let text = |text: Option<&str>| text.map(str::to_owned);
    let declared = Declared { mime_type: text(mime_type), filename: text(filename), source_url: None };
    let mut incoming = Incoming::begin(app, tenant, declared).await?;
    if let Err(fault) = incoming.write(bytes).await {
        incoming.abandon().await;
        return Err(fault);
    }
    let media = incoming.finish().await?;
    ready(app, tenant, media, None).await
}

/// Fetches `url` and stores it as a file of `tenant`'s.
///
/// # Errors
/// [`MediaError`]; nothing is left then.
pub async fn keep_remote(app: &App, tenant: TenantId, url: &str, filename: Option<&str>) -> Result<Media, MediaError> {
    let media = fetch::fetch(app, tenant, url, filename, app.config.timings.send_timeout).await?;
    ready(app, tenant, media, None).await
}

/// The file `id` of `tenant`'s.
///
/// # Errors
/// [`MediaError::NotFound`], or the database's.
pub async fn get(app: &App, tenant: TenantId, id: MediaId) -> Result<Media, MediaError> {
    app.db.tenant(tenant, async |conn| find(conn, id).await).await?.ok_or(MediaError::NotFound)
}

/// What WAHA is given of the file of `message`: a link that is good for a quarter of an hour. A file named by URL is fetched
/// at the first call and kept with the message, so that later ones, after a crash too, find it stored. A fetch takes at most
/// as long as an attempt to send.
///
/// # Errors
/// [`MediaError`]; its `failure` says whether another try may succeed.
pub async fn hand_over(
    app: &App,
    tenant: TenantId,
    message: MessageId,
    content: &MediaContent,
) -> Result<MediaFile, MediaError> {
    let media = match (content.id, content.url.as_deref()) {
        (Some(id), _) => get(app, tenant, id).await?,
        (None, Some(url)) => match app.db.tenant(tenant, async |conn| fetched(conn, message).await).await? {
            Some(id) => get(app, tenant, id).await?,
            None => {
                let limit = app.config.timings.send_timeout;
                let media = fetch::fetch(app, tenant, url, content.filename.as_deref(), limit).await?;
                ready(app, tenant, media, Some(message)).await?
            }
        },
        (None, None) => return Err(MediaError::NotFound),
    };
    let url = app.media.links.make(link::Reader::Waha, tenant, media.id, app.clock.now() + link::LIFETIME);
    let named = content.filename.as_deref().and_then(kind::clean_name);
    Ok(MediaFile { mimetype: media.mime_type, filename: named.or(media.filename), source: FileSource::Url(url) })
}

/// Makes a stored file usable and, if it was fetched for a message, notes it there in the same transaction.
async fn ready(app: &App, tenant: TenantId, media: Media, message: Option<MessageId>) -> Result<Media, MediaError> {
    let now = app.clock.now();
    let used = app
        .db
        .tenant(tenant, async |conn| {
            if let Some(message) = message
                && let Some(earlier) = note(conn, message, media.id).await?
            {
                return find(conn, earlier).await;
            }
            Ok::<_, DbError>(make_ready(conn, tenant, &media, now).await?.then(|| media.clone()))
        })
        .await;
    match used {
        Ok(Some(used)) if used.id == media.id => {
            metrics::counter!("switchboard_media_stored_total").increment(1);
            Ok(used)
        }
        // Somebody was faster, or the commit failed; if it only seemed to fail, the file is ready and stays.
        other => {
            if other.is_ok() {
                discard(app, tenant, media.id, &media.key).await;
            }
            other?.ok_or(MediaError::NotFound)
        }
    }
}

#[derive(QueryableByName)]
struct Noted {
    #[diesel(sql_type = Nullable<Text>)]
    media: Option<String>,
}

impl Noted {
    fn id(self) -> Option<MediaId> {
        self.media?.parse().ok()
    }
}

/// The file that was fetched for `message` before.
async fn fetched(conn: &mut TenantConn, message: MessageId) -> Result<Option<MediaId>, DbError> {
    let rows: Vec<Noted> =
        sql("SELECT content #>> '{media,id}' AS media FROM messages WHERE tenant_id = $1 AND id = $2")
            .bind::<SqlUuid, _>(conn.tenant())
            .bind::<SqlUuid, _>(message)
            .prepared()
            .load(&mut **conn)
            .await?;
    Ok(rows.into_iter().next().and_then(Noted::id))
}

/// Notes that `media` was fetched for `message`; answers the one that was noted before, if there is one.
async fn note(conn: &mut TenantConn, message: MessageId, media: MediaId) -> Result<Option<MediaId>, DbError> {
    let rows: Vec<Noted> = sql("SELECT content #>> '{media,id}' AS media FROM messages \
                                WHERE tenant_id = $1 AND id = $2 FOR NO KEY UPDATE")
    .bind::<SqlUuid, _>(conn.tenant())
    .bind::<SqlUuid, _>(message)
    .prepared()
    .load(&mut **conn)
    .await?;
    if let Some(earlier) = rows.into_iter().next().and_then(Noted::id) {
        return Ok(Some(earlier));
    }
    sql("UPDATE messages SET content = jsonb_set(content, '{media,id}', to_jsonb($3::text)) \
         WHERE tenant_id = $1 AND id = $2 AND content ? 'media'")
    .bind::<SqlUuid, _>(conn.tenant())
    .bind::<SqlUuid, _>(message)
    .bind::<Text, _>(media.0.to_string())
    .prepared()
    .execute(&mut **conn)
    .await?;
    Ok(None)
}
