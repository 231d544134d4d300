//! What is known of each file.

use chrono::{DateTime, TimeDelta, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Binary, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::app::App;
use crate::db::{DbError, Prepare, TenantConn, sql};
use crate::domain::ids::{MediaId, TenantId};

/// A stored file.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(example = json!({"id": "01994f3e-2222-7cc3-98d5-8f1c1f0a2b3c", "mime_type": "application/pdf", "filename": "bill.pdf",
    "size": 48213, "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08", "created_at": "2026-11-21T09:30:00Z"}))]
pub struct Media {
    /// Its id, for `media.id` of a message.
    pub id: MediaId,
    /// What it is, found out from its bytes.
    pub mime_type: String,
    /// Its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filename: Option<String>,
    /// Its size in bytes.
    pub size: i64,
    /// SHA-256 of its bytes, in hexadecimal digits.
    pub sha256: String,
    /// The width of a picture that came with a message, in pixels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub width: Option<i32>,
    /// Its height.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub height: Option<i32>,
    /// When it was stored.
    pub created_at: DateTime<Utc>,
    /// Bytes of the small picture beside it.
    #[serde(skip)]
    pub thumbnail_size: Option<i64>,
    #[serde(skip)]
    pub(super) key: String,
}

#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = SqlUuid)]
    id: MediaId,
    #[diesel(sql_type = Text)]
    mime_type: String,
    #[diesel(sql_type = Nullable<Text>)]
    filename: Option<String>,
    #[diesel(sql_type = BigInt)]
    size: i64,
    #[diesel(sql_type = Binary)]
    sha256: Vec<u8>,
    #[diesel(sql_type = Nullable<Integer>)]
    width: Option<i32>,
    #[diesel(sql_type = Nullable<Integer>)]
    height: Option<i32>,
    #[diesel(sql_type = Nullable<BigInt>)]
    thumbnail_size: Option<i64>,
    #[diesel(sql_type = Timestamptz)]
    created_at: DateTime<Utc>,
    #[diesel(sql_type = Text)]
    storage_key: String,
}

impl From<Row> for Media {
    fn from(row: Row) -> Self {
        Self {
            id: row.id,
            mime_type: row.mime_type,
            filename: row.filename,
            size: row.size,
            sha256: hex::encode(row.sha256),
            width: row.width,
            height: row.height,
            created_at: row.created_at,
            thumbnail_size: row.thumbnail_size,
            key: row.storage_key,
        }
    }
}

macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT id, mime_type, filename, size, sha256, width, height, thumbnail_size, created_at, storage_key FROM media \
             WHERE tenant_id = $1 AND ready_at IS NOT NULL AND deleted_at IS NULL AND ",
            $rest
        )
    };
}

/// The file `id`, if this tenant has it.
///
/// # Errors
/// When the database does not answer.
pub async fn find(conn: &mut TenantConn, id: MediaId) -> Result<Option<Media>, DbError> {
    let rows: Vec<Row> = sql(select!("id = $2"))
        .bind::<SqlUuid, _>(conn.tenant())
        .bind::<SqlUuid, _>(id)
        .prepared()
        .load(&mut **conn)
        .await?;
    Ok(rows.into_iter().next().map(Media::from))
}

/// The tenant's files, newest first, from behind `after` on.
///
/// # Errors
/// When the database does not answer.
pub async fn list(
    conn: &mut TenantConn,
    after: Option<(DateTime<Utc>, Uuid)>,
    limit: i64,
) -> Result<Vec<Media>, DbError> {
    let (at, id) = after.unzip();
    let rows: Vec<Row> = sql(select!(
        "($2::timestamptz IS NULL OR (created_at, id) < ($2, $3)) ORDER BY created_at DESC, id DESC LIMIT $4"
    ))
    .bind::<SqlUuid, _>(conn.tenant())
    .bind::<Nullable<Timestamptz>, _>(at)
    .bind::<Nullable<SqlUuid>, _>(id)
    .bind::<BigInt, _>(limit)
    .prepared()
    .load(&mut **conn)
    .await?;
    Ok(rows.into_iter().map(Media::from).collect())
}

/// Deletes the file `id`; whether there was one. Its bytes go a little later.
///
/// # Errors
/// When the database does not answer.
pub async fn delete(conn: &mut TenantConn, id: MediaId, now: DateTime<Utc>) -> Result<bool, DbError> {
    let deleted = sql("UPDATE media SET deleted_at = $3, updated_at = $3 \
                       WHERE tenant_id = $1 AND id = $2 AND ready_at IS NOT NULL AND deleted_at IS NULL")
    .bind::<SqlUuid, _>(conn.tenant())
    .bind::<SqlUuid, _>(id)
    .bind::<Timestamptz, _>(now)
    .prepared()
    .execute(&mut **conn)
    .await?;
    Ok(deleted > 0)
}

/// Notes that a file is on its way, so that whatever a crash leaves of it is found.
pub(super) async fn announce(
    conn: &mut TenantConn,
    id: MediaId,
    key: &str,
    source_url: Option<&str>,
    now: DateTime<Utc>,
) -> Result<(), DbError> {
    sql("INSERT INTO media (tenant_id, id, mime_type, size, sha256, storage_key, source_url, created_at, updated_at) \
         VALUES ($1, $2, '', 0, decode(repeat('00', 32), 'hex'), $3, $4, $5, $5)")
    .bind::<SqlUuid, _>(conn.tenant())
    .bind::<SqlUuid, _>(id)
    .bind::<Text, _>(key)
    .bind::<Nullable<Text>, _>(source_url)
    .bind::<Timestamptz, _>(now)
    .prepared()
    .execute(&mut **conn)
    .await?;
    Ok(())
}

/// Makes a file whose bytes are stored one that can be used. False when it took so long that it was given up.
///
/// # Errors
/// When the database does not answer.
pub async fn make_ready(
    conn: &mut AsyncPgConnection,
    tenant: TenantId,
    media: &Media,
    now: DateTime<Utc>,
) -> Result<bool, DbError> {
    let made =
        sql("UPDATE media SET mime_type = $3, filename = $4, size = $5, sha256 = $6, ready_at = $7, updated_at = $7, \
             width = $8, height = $9, thumbnail_size = $10 \
                    WHERE tenant_id = $1 AND id = $2 AND ready_at IS NULL")
        .bind::<SqlUuid, _>(tenant)
        .bind::<SqlUuid, _>(media.id)
        .bind::<Text, _>(&media.mime_type)
        .bind::<Nullable<Text>, _>(&media.filename)
        .bind::<BigInt, _>(media.size)
        .bind::<Binary, _>(hex::decode(&media.sha256).unwrap_or_default())
        .bind::<Timestamptz, _>(now)
        .bind::<Nullable<Integer>, _>(media.width)
        .bind::<Nullable<Integer>, _>(media.height)
        .bind::<Nullable<BigInt>, _>(media.thumbnail_size)
        .prepared()
        .execute(conn)
        .await?;
    Ok(made > 0)
}

/// Forgets a file that never became ready.
pub(super) async fn forget(app: &App, tenant: TenantId, id: MediaId) -> Result<(), DbError> {
    app.db
        .system(async |conn| {
            sql("DELETE FROM media WHERE tenant_id = $1 AND id = $2 AND ready_at IS NULL")
                .bind::<SqlUuid, _>(tenant)
                .bind::<SqlUuid, _>(id)
                .prepared()
                .execute(&mut **conn)
                .await
                .map(drop)
                .map_err(DbError::from)
        })
        .await
}

#[derive(QueryableByName)]
struct Leftover {
    #[diesel(sql_type = SqlUuid)]
    tenant_id: TenantId,
    #[diesel(sql_type = SqlUuid)]
    id: MediaId,
    #[diesel(sql_type = Text)]
    storage_key: String,
}

/// How long bytes outlive their deletion, and how long a file may be on its way: longer than any upload, fetch or link.
pub const GRACE: TimeDelta = TimeDelta::hours(1);

/// Removes the bytes of files that were deleted, or given up on their way by a process that died. Answers how many. Two nodes
/// may do this at once.
///
/// # Errors
/// When the database does not answer. What the storage does not remove now is tried again the next time.
pub async fn purge(app: &App) -> Result<usize, DbError> {
    let now = app.clock.now();
    let leftovers: Vec<Leftover> = app
        .db
        .system(async |conn| {
            Ok::<_, DbError>(
                sql("SELECT tenant_id, id, storage_key FROM media WHERE purged_at IS NULL \
                     AND (deleted_at IS NOT NULL OR ready_at IS NULL) AND coalesce(deleted_at, created_at) < $1 \
                     ORDER BY coalesce(deleted_at, created_at) LIMIT 200")
                .bind::<Timestamptz, _>(now - GRACE)
                .prepared()
                .load(&mut **conn)
                .await?,
            )
        })
        .await?;
    let mut purged = 0;
    for leftover in leftovers {
        if let Err(fault) = app.media.remove(&leftover.storage_key).await {
            tracing::warn!(%fault, "media: a file's bytes could not be removed");
            continue;
        }
        let (tenant, id) = (leftover.tenant_id, leftover.id);
        app.db
            .system(async |conn| {
                sql("UPDATE media SET purged_at = $3, updated_at = $3 WHERE tenant_id = $1 AND id = $2 AND deleted_at IS NOT NULL")
                    .bind::<SqlUuid, _>(tenant)
                    .bind::<SqlUuid, _>(id)
                    .bind::<Timestamptz, _>(now)
                    .prepared()
                    .execute(&mut **conn)
                    .await
                    .map_err(DbError::from)
            })
            .await?;
        forget(app, tenant, id).await?;
        purged += 1;
    }
    Ok(purged)
}
