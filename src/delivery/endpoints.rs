//! What tenants do with their webhook endpoints.
//!
//! An endpoint that is disabled or deleted gets nothing more; what was pending for it is ended by the worker within seconds
//! and can be replayed when it is enabled again.

use chrono::{DateTime, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Binary, Bool, Nullable, Text, Timestamptz, Uuid};
use diesel_async::RunQueryDsl;
use secrecy::SecretString;
use serde::Serialize;
use url::Url;
use utoipa::ToSchema;

use super::keyring::{Keyring, KeyringError};
use crate::app::App;
use crate::db::{DbError, Prepare, TenantConn, sql};
use crate::domain::ids::{EndpointId, TenantId};
use crate::events::types;
use crate::guard::{Guard, GuardError};

/// The longest description, in characters.
const MOST_DESCRIPTION: usize = 500;
/// Patterns per endpoint.
const MOST_PATTERNS: usize = 50;

/// A webhook endpoint as its tenant sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, QueryableByName, ToSchema)]
#[schema(as = WebhookEndpoint)]
pub struct Endpoint {
    /// The endpoint.
    #[diesel(sql_type = Uuid)]
    pub id: EndpointId,
    /// Whose it is.
    #[diesel(sql_type = Uuid)]
    pub tenant_id: TenantId,
    /// Where deliveries go.
    #[diesel(sql_type = Text)]
    #[schema(example = "https://example.com/hooks/whatsapp")]
    pub url: String,
    /// What it is told of: types of events, groups such as `message.*`, or `*`.
    #[diesel(sql_type = Array<Text>)]
    #[schema(example = json!(["message.*", "session.status"]))]
    pub event_types: Vec<String>,
    /// The tenant's own words.
    #[diesel(sql_type = Nullable<Text>)]
    pub description: Option<String>,
    /// Whether deliveries are made.
    #[diesel(sql_type = Bool)]
    pub enabled: bool,
    /// Why the gateway disabled it: `gone` (it answered 410) or `failing` (nothing but failures for five days).
    #[diesel(sql_type = Nullable<Text>)]
    #[schema(example = "failing")]
    pub disabled_because: Option<String>,
    /// Since when every attempt has failed.
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub failing_since: Option<DateTime<Utc>>,
    /// Goes up with every change; for `If-Match`.
    #[diesel(sql_type = BigInt)]
    pub version: i64,
    /// When it was made.
    #[diesel(sql_type = Timestamptz)]
    pub created_at: DateTime<Utc>,
    /// When it was last changed.
    #[diesel(sql_type = Timestamptz)]
    pub updated_at: DateTime<Utc>,
}

/// The endpoint as JSON.
pub(super) fn to_json(endpoint: &Endpoint) -> String {
    // Text, numbers and times always have a JSON form.
    serde_json::to_string(endpoint).unwrap_or_else(|_| "null".to_owned())
}

/// Why an endpoint cannot be made, changed or used.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// The tenant has no such endpoint.
    #[error("no such webhook endpoint")]
    NotFound,
    /// Somebody changed it since the caller looked.
    #[error("the webhook endpoint was changed meanwhile")]
    Stale,
    /// It is disabled, and what was asked needs it enabled.
    #[error("the webhook endpoint is disabled")]
    Disabled,
    /// A field breaks a rule.
    #[error("{field}: {message}")]
    Invalid {
        /// The field, as the API names it.
        field: &'static str,
        /// Which rule, for programs.
        code: &'static str,
        /// Which rule, for people.
        message: String,
    },
    /// Its secrets do not open under this master key.
    #[error(transparent)]
    Keyring(#[from] KeyringError),
    /// The database failed.
    #[error(transparent)]
    Db(#[from] DbError),
}

impl EndpointError {
    fn invalid(field: &'static str, code: &'static str, message: impl Into<String>) -> Self {
        Self::Invalid { field, code, message: message.into() }
    }
}

impl From<diesel::result::Error> for EndpointError {
    fn from(error: diesel::result::Error) -> Self {
        Self::Db(error.into())
    }
}

/// An endpoint to be made.
#[derive(Clone, Debug)]
pub struct NewEndpoint {
    /// Where deliveries go.
    pub url: String,
    /// What it is told of.
    pub event_types: Vec<String>,
    /// The tenant's own words.
    pub description: Option<String>,
}

/// A change; what is `None` stays.
#[derive(Clone, Debug, Default)]
pub struct Change {
    /// Where deliveries go.
    pub url: Option<String>,
    /// What it is told of.
    pub event_types: Option<Vec<String>>,
    /// The tenant's own words; `Some(None)` removes them.
    pub description: Option<Option<String>>,
    /// Whether deliveries are made.
    pub enabled: Option<bool>,
}

/// Checks the form of `url` and whether it may be called at all.
fn checked_url(app: &App, url: &str) -> Result<String, EndpointError> {
    let parsed =
        Url::parse(url).map_err(|_| EndpointError::invalid("url", "invalid_url", "must be an absolute URL"))?;
    Guard::new(app.config.allow_private_targets).check_url(&parsed).map_err(|refusal| match refusal {
        GuardError::TooLong => EndpointError::invalid("url", "too_long", "must have at most 2048 characters"),
        GuardError::Scheme => EndpointError::invalid("url", "https_required", "must begin with https://"),
        GuardError::UserInfo => EndpointError::invalid("url", "invalid_url", "must not hold a name or password"),
        GuardError::NoHost => EndpointError::invalid("url", "invalid_url", "must name a host"),
        GuardError::Port => EndpointError::invalid("url", "forbidden_target", "must not use a port of another service"),
        GuardError::NotPublic => EndpointError::invalid("url", "forbidden_target", "must point at a public address"),
    })?;
    Ok(parsed.into())
}

fn checked_types(patterns: Vec<String>) -> Result<Vec<String>, EndpointError> {
    if patterns.is_empty() {
        return Err(EndpointError::invalid("event_types", "required", "must name at least one type of event"));
    }
    if patterns.len() > MOST_PATTERNS {
        return Err(EndpointError::invalid("event_types", "too_many", "must have at most 50 entries"));
    }
    let mut kept: Vec<String> = Vec::with_capacity(patterns.len());
    for pattern in patterns {
        if !types::is_pattern(&pattern) {
            let known = types::TYPES.join(", ");
            let rule = format!("must be `*`, a group such as `message.*`, or one of: {known}");
            return Err(EndpointError::invalid("event_types", "unknown_event_type", rule));
        }
        if !kept.contains(&pattern) {
            kept.push(pattern);
        }
    }
    Ok(kept)
}

fn checked_description(description: Option<String>) -> Result<Option<String>, EndpointError> {
    match description {
        Some(text) if text.chars().count() > MOST_DESCRIPTION => {
            Err(EndpointError::invalid("description", "too_long", "must have at most 500 characters"))
        }
        other => Ok(other),
    }
}

/// Makes an endpoint, in the caller's transaction; answers it with its secret.
///
/// # Errors
/// [`EndpointError::Invalid`] and [`EndpointError::Db`].
pub async fn create(
    app: &App,
    conn: &mut TenantConn,
    draft: NewEndpoint,
) -> Result<(Endpoint, SecretString), EndpointError> {
    let url = checked_url(app, &draft.url)?;
    let event_types = checked_types(draft.event_types)?;
    let description = checked_description(draft.description)?;
    let now = app.clock.now();
    let id = EndpointId::fresh(now, &app.chance);
    let keys = Keyring::generate(&app.chance);
    let endpoint = sql(
        "INSERT INTO webhook_endpoints (tenant_id, id, url, event_types, description, secret_sealed, created_at, updated_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $7) \
         RETURNING tenant_id, id, url, event_types, description, enabled, disabled_because, failing_since, version, \
                   created_at, updated_at",
    )
    .bind::<Uuid, _>(conn.tenant())
    .bind::<Uuid, _>(id)
    .bind::<Text, _>(url)
    .bind::<Array<Text>, _>(event_types)
    .bind::<Nullable<Text>, _>(description)
    .bind::<Binary, _>(keys.seal(&app.sealer, id))
    .bind::<Timestamptz, _>(now)
    .prepared()
    .get_result(&mut **conn)
    .await?;
    Ok((endpoint, keys.current()?))
}

/// A page of up to `limit` endpoints, newest first, behind the one made at `before` with that id.
///
/// # Errors
/// When the database does not answer.
pub async fn list(
    conn: &mut TenantConn,
    before: Option<(DateTime<Utc>, EndpointId)>,
    limit: i64,
) -> Result<Vec<Endpoint>, EndpointError> {
    let (at, id) = before.unwrap_or((DateTime::<Utc>::MAX_UTC, EndpointId(uuid::Uuid::max())));
    let endpoints =
        sql("SELECT tenant_id, id, url, event_types, description, enabled, disabled_because, failing_since, version, \
                created_at, updated_at \
         FROM webhook_endpoints \
         WHERE tenant_id = $1 AND deleted_at IS NULL AND ($2 OR (created_at, id) < ($3, $4)) \
         ORDER BY created_at DESC, id DESC LIMIT $5")
        .bind::<Uuid, _>(conn.tenant())
        .bind::<Bool, _>(before.is_none())
        // Beyond what Postgres can tell apart from infinity; not looked at then.
        .bind::<Timestamptz, _>(if before.is_none() { DateTime::UNIX_EPOCH } else { at })
        .bind::<Uuid, _>(id)
        .bind::<BigInt, _>(limit)
        .prepared()
        .load(&mut **conn)
        .await?;
    Ok(endpoints)
}

/// One endpoint.
///
/// # Errors
/// [`EndpointError::NotFound`] and [`EndpointError::Db`].
pub async fn get(conn: &mut TenantConn, id: EndpointId) -> Result<Endpoint, EndpointError> {
    let found: Vec<Endpoint> =
        sql("SELECT tenant_id, id, url, event_types, description, enabled, disabled_because, failing_since, version, \
                created_at, updated_at \
         FROM webhook_endpoints WHERE tenant_id = $1 AND id = $2 AND deleted_at IS NULL")
        .bind::<Uuid, _>(conn.tenant())
        .bind::<Uuid, _>(id)
        .prepared()
        .load(&mut **conn)
        .await?;
    found.into_iter().next().ok_or(EndpointError::NotFound)
}

/// Changes an endpoint; with `version`, only that version of it. Enabling it again forgets its failures.
///
/// # Errors
/// [`EndpointError`], except [`EndpointError::Disabled`].
pub async fn change(
    app: &App,
    conn: &mut TenantConn,
    id: EndpointId,
    version: Option<i64>,
    change: Change,
) -> Result<Endpoint, EndpointError> {
    let url = change.url.map(|url| checked_url(app, &url)).transpose()?;
    let event_types = change.event_types.map(checked_types).transpose()?;
    let describes = change.description.is_some();
    let description = checked_description(change.description.flatten())?;
    let changed: Vec<Endpoint> =
        sql("UPDATE webhook_endpoints SET url = coalesce($3, url), event_types = coalesce($4, event_types), \
             description = CASE WHEN $5 THEN $6 ELSE description END, enabled = coalesce($7, enabled), \
             disabled_because = CASE WHEN $7 IS NULL THEN disabled_because END, \
             failing_since = CASE WHEN $7 AND NOT enabled THEN NULL ELSE failing_since END, \
             version = version + 1, updated_at = $8 \
         WHERE tenant_id = $1 AND id = $2 AND deleted_at IS NULL AND ($9 IS NULL OR version = $9) \
         RETURNING tenant_id, id, url, event_types, description, enabled, disabled_because, failing_since, version, \
                   created_at, updated_at")
        .bind::<Uuid, _>(conn.tenant())
        .bind::<Uuid, _>(id)
        .bind::<Nullable<Text>, _>(url)
        .bind::<Nullable<Array<Text>>, _>(event_types)
        .bind::<Bool, _>(describes)
        .bind::<Nullable<Text>, _>(description)
        .bind::<Nullable<Bool>, _>(change.enabled)
        .bind::<Timestamptz, _>(app.clock.now())
        .bind::<Nullable<BigInt>, _>(version)
        .prepared()
        .load(&mut **conn)
        .await?;
    match changed.into_iter().next() {
        Some(endpoint) => Ok(endpoint),
        None => get(conn, id).await.and(Err(EndpointError::Stale)),
    }
}

/// Deletes an endpoint: it is kept, but neither shown nor called any more.
///
/// # Errors
/// [`EndpointError::NotFound`] and [`EndpointError::Db`].
pub async fn delete(app: &App, conn: &mut TenantConn, id: EndpointId) -> Result<(), EndpointError> {
    let deleted =
        sql("UPDATE webhook_endpoints SET deleted_at = $3, enabled = false, version = version + 1, updated_at = $3 \
         WHERE tenant_id = $1 AND id = $2 AND deleted_at IS NULL")
        .bind::<Uuid, _>(conn.tenant())
        .bind::<Uuid, _>(id)
        .bind::<Timestamptz, _>(app.clock.now())
        .prepared()
        .execute(&mut **conn)
        .await?;
    if deleted == 0 { Err(EndpointError::NotFound) } else { Ok(()) }
}

#[derive(QueryableByName)]
struct Sealed {
    #[diesel(sql_type = Binary)]
    secret_sealed: Vec<u8>,
}

/// The endpoint's current secret.
///
/// # Errors
/// [`EndpointError::NotFound`], [`EndpointError::Keyring`] and [`EndpointError::Db`].
pub async fn secret(app: &App, conn: &mut TenantConn, id: EndpointId) -> Result<SecretString, EndpointError> {
    let found: Vec<Sealed> =
        sql("SELECT secret_sealed FROM webhook_endpoints WHERE tenant_id = $1 AND id = $2 AND deleted_at IS NULL")
            .bind::<Uuid, _>(conn.tenant())
            .bind::<Uuid, _>(id)
            .prepared()
            .load(&mut **conn)
            .await?;
    let sealed = found.into_iter().next().ok_or(EndpointError::NotFound)?;
    Ok(Keyring::open(&app.sealer, id, &sealed.secret_sealed)?.current()?)
}

/// Gives the endpoint a fresh secret; the one before signs along for 24 hours.
///
/// # Errors
/// [`EndpointError::NotFound`], [`EndpointError::Keyring`] and [`EndpointError::Db`].
pub async fn rotate_secret(app: &App, conn: &mut TenantConn, id: EndpointId) -> Result<SecretString, EndpointError> {
    let now = app.clock.now();
    let found: Vec<Sealed> = sql(
        "SELECT secret_sealed FROM webhook_endpoints WHERE tenant_id = $1 AND id = $2 AND deleted_at IS NULL FOR UPDATE",
    )
    .bind::<Uuid, _>(conn.tenant())
    .bind::<Uuid, _>(id)
    .prepared()
    .load(&mut **conn)
    .await?;
    let sealed = found.into_iter().next().ok_or(EndpointError::NotFound)?;
    let mut keys = Keyring::open(&app.sealer, id, &sealed.secret_sealed)?;
    keys.rotate(now, &app.chance);
    sql("UPDATE webhook_endpoints SET secret_sealed = $3, version = version + 1, updated_at = $4 \
         WHERE tenant_id = $1 AND id = $2")
    .bind::<Uuid, _>(conn.tenant())
    .bind::<Uuid, _>(id)
    .bind::<Binary, _>(keys.seal(&app.sealer, id))
    .bind::<Timestamptz, _>(now)
    .prepared()
    .execute(&mut **conn)
    .await?;
    Ok(keys.current()?)
}
