//! API keys in the database.

use chrono::{DateTime, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Binary, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::keys::Minted;
use super::scope::{Scope, Scopes};
use crate::db::{DbError, Prepare, SystemConn, TenantConn, sql};
use crate::domain::ids::{ApiKeyId, TenantId};

/// An API key, without its secret.
#[derive(Clone, Debug, Serialize, QueryableByName, ToSchema)]
#[schema(example = json!({
    "id": "01994f3e-6d4f-7cc3-98d5-8f1c1f0a2b3c", "tenant_id": "01994f3e-0000-7cc3-98d5-8f1c1f0a2b3c", "name": "backend",
    "prefix": "swb_4fT0aZ81kQpX", "scopes": ["messages:write", "messages:read"], "expires_at": null, "last_used_at": null,
    "version": 1, "created_at": "2026-11-21T09:30:00Z", "updated_at": "2026-11-21T09:30:00Z"
}))]
pub struct ApiKey {
    /// Its id.
    #[diesel(sql_type = SqlUuid)]
    pub id: ApiKeyId,
    /// Whose it is.
    #[diesel(sql_type = SqlUuid)]
    pub tenant_id: TenantId,
    /// Its name, for people.
    #[diesel(sql_type = Text)]
    pub name: String,
    /// How the key begins.
    #[diesel(sql_type = Text)]
    pub prefix: String,
    /// What it may do.
    #[diesel(sql_type = Array<Text>)]
    #[schema(value_type = Vec<Scope>)]
    pub scopes: Vec<String>,
    /// When it ends by itself.
    #[diesel(sql_type = Nullable<Timestamptz>)]
    #[schema(required)]
    pub expires_at: Option<DateTime<Utc>>,
    /// When it was last used, to the minute.
    #[diesel(sql_type = Nullable<Timestamptz>)]
    #[schema(required)]
    pub last_used_at: Option<DateTime<Utc>>,
    /// Counts its changes.
    #[diesel(sql_type = BigInt)]
    pub version: i64,
    /// When it was created.
    #[diesel(sql_type = Timestamptz)]
    pub created_at: DateTime<Utc>,
    /// When it was last changed.
    #[diesel(sql_type = Timestamptz)]
    pub updated_at: DateTime<Utc>,
}

impl ApiKey {
    /// What it may do, as a set.
    #[must_use]
    pub fn scope_set(&self) -> Scopes {
        self.scopes.iter().filter_map(|scope| scope.parse().ok()).collect()
    }
}

/// What a new key is to be.
#[derive(Clone, Debug)]
pub struct NewApiKey {
    /// Its id.
    pub id: ApiKeyId,
    /// Whose it is.
    pub tenant: TenantId,
    /// Its name.
    pub name: String,
    /// What it may do.
    pub scopes: Scopes,
    /// When it ends by itself.
    pub expires_at: Option<DateTime<Utc>>,
}

/// Writes a new key.
///
/// # Errors
/// When the database does not answer or knows no such tenant.
pub async fn insert(
    conn: &mut AsyncPgConnection,
    new: &NewApiKey,
    minted: &Minted,
    now: DateTime<Utc>,
) -> Result<ApiKey, DbError> {
    let text = "INSERT INTO api_keys (tenant_id, id, name, prefix, secret_hash, scopes, expires_at, created_at, updated_at) \
                VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $8) RETURNING id, tenant_id, name, prefix, scopes, expires_at, \
                last_used_at, version, created_at, updated_at";
    let scopes: Vec<&str> = new.scopes.iter().map(Scope::as_str).collect();
    Ok(sql(text)
        .bind::<SqlUuid, _>(new.tenant)
        .bind::<SqlUuid, _>(new.id)
        .bind::<Text, _>(&new.name)
        .bind::<Text, _>(&minted.prefix)
        .bind::<Binary, _>(&minted.hash[..])
        .bind::<Array<Text>, _>(scopes)
        .bind::<Nullable<Timestamptz>, _>(new.expires_at)
        .bind::<Timestamptz, _>(now)
        .prepared()
        .get_result(conn)
        .await?)
}

/// Writes a new key above tenants, minted as [`super::keys::KeyKind::Platform`].
///
/// # Errors
/// When the database does not answer.
pub async fn insert_platform(
    conn: &mut SystemConn,
    id: Uuid,
    name: &str,
    minted: &Minted,
    now: DateTime<Utc>,
) -> Result<(), DbError> {
    let text = "INSERT INTO platform_keys (id, name, prefix, secret_hash, created_at, updated_at) \
                VALUES ($1, $2, $3, $4, $5, $5)";
    sql(text)
        .bind::<SqlUuid, _>(id)
        .bind::<Text, _>(name)
        .bind::<Text, _>(&minted.prefix)
        .bind::<Binary, _>(&minted.hash[..])
        .bind::<Timestamptz, _>(now)
        .prepared()
        .execute(&mut **conn)
        .await?;
    Ok(())
}

/// `limit` keys that are not revoked, newest first, from behind the place `after` on.
///
/// # Errors
/// When the database does not answer.
pub async fn list(
    conn: &mut TenantConn,
    after: Option<(DateTime<Utc>, Uuid)>,
    limit: i64,
) -> Result<Vec<ApiKey>, DbError> {
    let text = "SELECT id, tenant_id, name, prefix, scopes, expires_at, last_used_at, version, created_at, updated_at \
                FROM api_keys WHERE tenant_id = $1 AND deleted_at IS NULL AND ($2 IS NULL OR (created_at, id) < ($2, $3)) \
                ORDER BY created_at DESC, id DESC LIMIT $4";
    let tenant = conn.tenant();
    Ok(sql(text)
        .bind::<SqlUuid, _>(tenant)
        .bind::<Nullable<Timestamptz>, _>(after.map(|after| after.0))
        .bind::<Nullable<SqlUuid>, _>(after.map(|after| after.1))
        .bind::<BigInt, _>(limit)
        .prepared()
        .load(&mut **conn)
        .await?)
}

/// One key that is not revoked, its row locked.
///
/// # Errors
/// When the database does not answer.
pub async fn lock(conn: &mut TenantConn, id: ApiKeyId) -> Result<Option<ApiKey>, DbError> {
    let text = "SELECT id, tenant_id, name, prefix, scopes, expires_at, last_used_at, version, created_at, updated_at \
                FROM api_keys WHERE tenant_id = $1 AND id = $2 AND deleted_at IS NULL FOR UPDATE";
    let tenant = conn.tenant();
    let rows: Vec<ApiKey> =
        sql(text).bind::<SqlUuid, _>(tenant).bind::<SqlUuid, _>(id).prepared().load(&mut **conn).await?;
    Ok(rows.into_iter().next())
}

/// Ends a key at `at`, or earlier if it ends earlier by itself.
///
/// # Errors
/// When the database does not answer.
pub async fn expire(conn: &mut TenantConn, id: ApiKeyId, at: DateTime<Utc>, now: DateTime<Utc>) -> Result<(), DbError> {
    let text = "UPDATE api_keys SET expires_at = least(expires_at, $3), version = version + 1, updated_at = $4 \
                WHERE tenant_id = $1 AND id = $2";
    let tenant = conn.tenant();
    sql(text)
        .bind::<SqlUuid, _>(tenant)
        .bind::<SqlUuid, _>(id)
        .bind::<Timestamptz, _>(at)
        .bind::<Timestamptz, _>(now)
        .prepared()
        .execute(&mut **conn)
        .await?;
    Ok(())
}

/// Revokes a key; answers whether there was one.
///
/// # Errors
/// When the database does not answer.
pub async fn revoke(conn: &mut TenantConn, id: ApiKeyId, now: DateTime<Utc>) -> Result<bool, DbError> {
    let text = "UPDATE api_keys SET deleted_at = $3, version = version + 1, updated_at = $3 \
                WHERE tenant_id = $1 AND id = $2 AND deleted_at IS NULL";
    let tenant = conn.tenant();
    let changed = sql(text)
        .bind::<SqlUuid, _>(tenant)
        .bind::<SqlUuid, _>(id)
        .bind::<Timestamptz, _>(now)
        .prepared()
        .execute(&mut **conn)
        .await?;
    Ok(changed > 0)
}
