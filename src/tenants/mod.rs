//! Tenants: the customers of the gateway, and their rows in the database.

use chrono::{DateTime, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Bool, Integer, Jsonb, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::db::{DbError, Prepare, SystemConn, TenantConn, sql};
use crate::domain::ids::TenantId;

/// Whether a tenant may use the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TenantStatus {
    /// It may.
    Active,
    /// Its keys are refused with 403; nothing is lost.
    Inactive,
}

impl TenantStatus {
    /// The word in the database and the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Inactive => "inactive",
        }
    }
}

/// A tenant.
#[derive(Clone, Debug, Serialize, QueryableByName, ToSchema)]
#[schema(example = json!({
    "id": "01994f3e-6d4f-7cc3-98d5-8f1c1f0a2b3c", "name": "acme", "status": "active", "description": null,
    "settings": {}, "max_sessions": 50, "version": 1, "created_at": "2026-11-21T09:30:00Z", "updated_at": "2026-11-21T09:30:00Z"
}))]
pub struct Tenant {
    /// Its id.
    #[diesel(sql_type = SqlUuid)]
    pub id: TenantId,
    /// Its name, unique among the tenants that are not deleted.
    #[diesel(sql_type = Text)]
    pub name: String,
    /// `active` or `inactive`.
    #[diesel(sql_type = Text)]
    #[schema(value_type = TenantStatus)]
    pub status: String,
    /// What it is, for people.
    #[diesel(sql_type = Nullable<Text>)]
    #[schema(required)]
    pub description: Option<String>,
    /// Its own settings.
    #[diesel(sql_type = Jsonb)]
    #[schema(value_type = Object)]
    pub settings: Value,
    /// How many sessions it may have; null: as many as there is room for. Set from above.
    #[diesel(sql_type = Nullable<Integer>)]
    #[schema(required, minimum = 0)]
    pub max_sessions: Option<i32>,
    /// Counts its changes; for `If-Match`.
    #[diesel(sql_type = BigInt)]
    pub version: i64,
    /// When it was created.
    #[diesel(sql_type = Timestamptz)]
    pub created_at: DateTime<Utc>,
    /// When it was last changed.
    #[diesel(sql_type = Timestamptz)]
    pub updated_at: DateTime<Utc>,
}

/// A change of a tenant; what is `None` stays as it is.
#[derive(Clone, Debug, Default)]
pub struct TenantChange {
    /// A new name.
    pub name: Option<String>,
    /// A new status.
    pub status: Option<TenantStatus>,
    /// A new description, or none.
    pub description: Option<Option<String>>,
    /// New settings instead of the old.
    pub settings: Option<Value>,
    /// How many sessions it may have, or `None` for as many as there is room for. Those it has stay.
    pub max_sessions: Option<Option<i32>>,
}

/// The name of the unique constraint on names.
pub const NAME_TAKEN: &str = "tenants_name";

/// Writes a new tenant.
///
/// # Errors
/// [`DbError::Duplicate`] of [`NAME_TAKEN`].
pub async fn insert(
    conn: &mut SystemConn,
    id: TenantId,
    name: &str,
    description: Option<&str>,
    settings: &Value,
    max_sessions: Option<i32>,
    now: DateTime<Utc>,
) -> Result<Tenant, DbError> {
    let text = "INSERT INTO tenants (id, name, description, settings, max_sessions, created_at, updated_at) \
                VALUES ($1, $2, $3, $4, $6, $5, $5) \
                RETURNING id, name, status, description, settings, max_sessions, version, created_at, updated_at";
    Ok(sql(text)
        .bind::<SqlUuid, _>(id)
        .bind::<Text, _>(name)
        .bind::<Nullable<Text>, _>(description)
        .bind::<Jsonb, _>(settings)
        .bind::<Timestamptz, _>(now)
        .bind::<Nullable<Integer>, _>(max_sessions)
        .prepared()
        .get_result(&mut **conn)
        .await?)
}

/// One tenant that is not deleted.
///
/// # Errors
/// When the database does not answer.
pub async fn find(conn: &mut AsyncPgConnection, id: TenantId) -> Result<Option<Tenant>, DbError> {
    let text = "SELECT id, name, status, description, settings, max_sessions, version, created_at, updated_at \
                FROM tenants WHERE id = $1 AND deleted_at IS NULL";
    let rows: Vec<Tenant> = sql(text).bind::<SqlUuid, _>(id).prepared().load(conn).await?;
    Ok(rows.into_iter().next())
}

/// One tenant that is not deleted, by its name.
///
/// # Errors
/// When the database does not answer.
pub async fn find_by_name(conn: &mut SystemConn, name: &str) -> Result<Option<Tenant>, DbError> {
    let text = "SELECT id, name, status, description, settings, max_sessions, version, created_at, updated_at \
                FROM tenants WHERE name = $1 AND deleted_at IS NULL";
    let rows: Vec<Tenant> = sql(text).bind::<Text, _>(name).prepared().load(&mut **conn).await?;
    Ok(rows.into_iter().next())
}

/// `limit` tenants that are not deleted, newest first, from behind the place `after` on.
///
/// # Errors
/// When the database does not answer.
pub async fn list(
    conn: &mut SystemConn,
    after: Option<(DateTime<Utc>, Uuid)>,
    limit: i64,
) -> Result<Vec<Tenant>, DbError> {
    let text = "SELECT id, name, status, description, settings, max_sessions, version, created_at, updated_at FROM tenants \
                WHERE deleted_at IS NULL AND ($1 IS NULL OR (created_at, id) < ($1, $2)) \
                ORDER BY created_at DESC, id DESC LIMIT $3";
    Ok(sql(text)
        .bind::<Nullable<Timestamptz>, _>(after.map(|after| after.0))
        .bind::<Nullable<SqlUuid>, _>(after.map(|after| after.1))
        .bind::<BigInt, _>(limit)
        .prepared()
        .load(&mut **conn)
        .await?)
}

/// Locks a tenant's row and answers its version; `None` when there is none.
///
/// # Errors
/// When the database does not answer.
pub async fn lock(conn: &mut AsyncPgConnection, id: TenantId) -> Result<Option<i64>, DbError> {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = BigInt)]
        version: i64,
    }
    let text = "SELECT version FROM tenants WHERE id = $1 AND deleted_at IS NULL FOR UPDATE";
    let rows: Vec<Row> = sql(text).bind::<SqlUuid, _>(id).prepared().load(conn).await?;
    Ok(rows.into_iter().next().map(|row| row.version))
}

/// How many sessions the tenant may have; `None`: as many as there is room for. Its row stays locked until the transaction
/// ends, so that of two that ask at once the second counts what the first has added.
///
/// # Errors
/// When the database does not answer.
pub async fn lock_session_quota(conn: &mut SystemConn, id: TenantId) -> Result<Option<i32>, DbError> {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = Nullable<Integer>)]
        max_sessions: Option<i32>,
    }
    // Foreign keys to the tenant do not wait for this lock.
    let text = "SELECT max_sessions FROM tenants WHERE id = $1 FOR NO KEY UPDATE";
    let rows: Vec<Row> = sql(text).bind::<SqlUuid, _>(id).prepared().load(&mut **conn).await?;
    Ok(rows.into_iter().next().and_then(|row| row.max_sessions))
}

/// How many sessions the tenant has, without those that are being deleted.
///
/// # Errors
/// When the database does not answer.
pub async fn sessions(conn: &mut SystemConn, id: TenantId) -> Result<i64, DbError> {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = BigInt)]
        count: i64,
    }
    let text = "SELECT count(*) AS count FROM waha_sessions \
                WHERE tenant_id = $1 AND deleted_at IS NULL AND desired <> 'deleted'";
    let row: Row = sql(text).bind::<SqlUuid, _>(id).prepared().get_result(&mut **conn).await?;
    Ok(row.count)
}

/// Changes a tenant, from above.
///
/// # Errors
/// [`DbError::Duplicate`] of [`NAME_TAKEN`].
pub async fn update(
    conn: &mut SystemConn,
    id: TenantId,
    change: &TenantChange,
    now: DateTime<Utc>,
) -> Result<Tenant, DbError> {
    let text = "UPDATE tenants SET name = coalesce($2, name), status = coalesce($3, status), \
                description = CASE WHEN $4 THEN $5 ELSE description END, settings = coalesce($6, settings), \
                max_sessions = CASE WHEN $8 THEN $9 ELSE max_sessions END, \
                version = version + 1, updated_at = $7 WHERE id = $1 \
                RETURNING id, name, status, description, settings, max_sessions, version, created_at, updated_at";
    Ok(sql(text)
        .bind::<SqlUuid, _>(id)
        .bind::<Nullable<Text>, _>(&change.name)
        .bind::<Nullable<Text>, _>(change.status.map(TenantStatus::as_str))
        .bind::<Bool, _>(change.description.is_some())
        .bind::<Nullable<Text>, _>(change.description.clone().flatten())
        .bind::<Nullable<Jsonb>, _>(&change.settings)
        .bind::<Timestamptz, _>(now)
        .bind::<Bool, _>(change.max_sessions.is_some())
        .bind::<Nullable<Integer>, _>(change.max_sessions.flatten())
        .prepared()
        .get_result(&mut **conn)
        .await?)
}

/// Changes what a tenant may change of itself: description and settings.
///
/// # Errors
/// When the database does not answer.
pub async fn update_own(
    conn: &mut TenantConn,
    description: Option<Option<String>>,
    settings: Option<&Value>,
    now: DateTime<Utc>,
) -> Result<Tenant, DbError> {
    let text = "UPDATE tenants SET description = CASE WHEN $2 THEN $3 ELSE description END, \
                settings = coalesce($4, settings), version = version + 1, updated_at = $5 WHERE id = $1 \
                RETURNING id, name, status, description, settings, max_sessions, version, created_at, updated_at";
    let id = conn.tenant();
    Ok(sql(text)
        .bind::<SqlUuid, _>(id)
        .bind::<Bool, _>(description.is_some())
        .bind::<Nullable<Text>, _>(description.flatten())
        .bind::<Nullable<Jsonb>, _>(settings)
        .bind::<Timestamptz, _>(now)
        .prepared()
        .get_result(&mut **conn)
        .await?)
}

/// Deletes a tenant softly: its keys are refused from then on, its rows stay. Answers whether there was one.
///
/// # Errors
/// When the database does not answer.
pub async fn delete(conn: &mut SystemConn, id: TenantId, now: DateTime<Utc>) -> Result<bool, DbError> {
    let text = "UPDATE tenants SET deleted_at = $2, version = version + 1, updated_at = $2 \
                WHERE id = $1 AND deleted_at IS NULL";
    let changed = sql(text).bind::<SqlUuid, _>(id).bind::<Timestamptz, _>(now).prepared().execute(&mut **conn).await?;
    Ok(changed > 0)
}

/// Takes a soft deletion back; a tenant that is not deleted stays as it is. `None` when there is none.
///
/// # Errors
/// [`DbError::Duplicate`] of [`NAME_TAKEN`] when another tenant took the name meanwhile.
pub async fn restore(conn: &mut SystemConn, id: TenantId, now: DateTime<Utc>) -> Result<Option<Tenant>, DbError> {
    let text = "UPDATE tenants SET deleted_at = NULL, version = version + 1, updated_at = $2 \
                WHERE id = $1 AND deleted_at IS NOT NULL";
    sql(text).bind::<SqlUuid, _>(id).bind::<Timestamptz, _>(now).prepared().execute(&mut **conn).await?;
    find(conn, id).await
}
