//! The registry of WAHA servers: where sessions live, and where a new one goes.
//!
//! Guarantee: `sessions` is changed only by [`place`] and [`release`], in the transaction that places or removes a session,
//! so a server never holds more than its capacity however many nodes place sessions at the same time.

use chrono::{DateTime, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Binary, Bool, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::db::{DbError, Prepare, SystemConn, sql};
use crate::domain::ids::WahaServerId;
use crate::waha::Engine;

/// A WAHA server, without its key.
#[derive(Clone, Debug, Serialize, QueryableByName, ToSchema)]
#[schema(example = json!({
    "id": "01994f3e-2222-7cc3-98d5-8f1c1f0a2b3c", "name": "waha-1", "base_url": "http://waha-1:3000", "engine": "GOWS",
    "capacity": 100, "sessions": 3, "draining": false, "health": "healthy", "waha_version": "2026.7.1",
    "last_seen_at": "2026-11-21T09:30:00Z", "version": 1, "created_at": "2026-11-21T09:30:00Z",
    "updated_at": "2026-11-21T09:30:00Z"
}))]
pub struct WahaServer {
    /// Its id.
    #[diesel(sql_type = SqlUuid)]
    pub id: WahaServerId,
    /// Its name, unique among the servers that are not deleted.
    #[diesel(sql_type = Text)]
    pub name: String,
    /// Where its API is.
    #[diesel(sql_type = Text)]
    pub base_url: String,
    /// The engine its sessions run on: `WEBJS`, `WPP`, `NOWEB` or `GOWS`.
    #[diesel(sql_type = Text)]
    #[schema(pattern = "^(WEBJS|WPP|NOWEB|GOWS)$")]
    pub engine: String,
    /// How many sessions it may hold.
    #[diesel(sql_type = Integer)]
    pub capacity: i32,
    /// How many it holds.
    #[diesel(sql_type = Integer)]
    pub sessions: i32,
    /// Whether it gets no new sessions.
    #[diesel(sql_type = Bool)]
    pub draining: bool,
    /// How it fared when it was last asked: `unknown`, `healthy`, `unreachable` or `unauthorized`.
    #[diesel(sql_type = Text)]
    #[schema(pattern = "^(unknown|healthy|unreachable|unauthorized)$")]
    pub health: String,
    /// WAHA's own version, as far as it is known.
    #[diesel(sql_type = Nullable<Text>)]
    #[schema(required)]
    pub waha_version: Option<String>,
    /// When it last answered.
    #[diesel(sql_type = Nullable<Timestamptz>)]
    #[schema(required)]
    pub last_seen_at: Option<DateTime<Utc>>,
    /// Counts the changes of this resource; for `If-Match`.
    #[diesel(sql_type = BigInt)]
    pub version: i64,
    /// When it was registered.
    #[diesel(sql_type = Timestamptz)]
    pub created_at: DateTime<Utc>,
    /// When it was last changed.
    #[diesel(sql_type = Timestamptz)]
    pub updated_at: DateTime<Utc>,
}

/// What a new server is to be.
#[derive(Clone, Debug)]
pub struct NewWahaServer {
    /// Its id.
    pub id: WahaServerId,
    /// Its name.
    pub name: String,
    /// Where its API is.
    pub base_url: String,
    /// Its key, sealed for [`super::directory::api_key_purpose`].
    pub api_key_sealed: Vec<u8>,
    /// The engine its sessions run on.
    pub engine: Engine,
    /// How many sessions it may hold.
    pub capacity: i32,
}

/// A change of a server; what is `None` stays as it is.
#[derive(Clone, Debug, Default)]
pub struct WahaServerChange {
    /// A new name.
    pub name: Option<String>,
    /// A new address.
    pub base_url: Option<String>,
    /// A new key, sealed.
    pub api_key_sealed: Option<Vec<u8>>,
    /// Another engine.
    pub engine: Option<Engine>,
    /// Another capacity.
    pub capacity: Option<i32>,
    /// Whether it gets no new sessions.
    pub draining: Option<bool>,
}

/// How a server fared when it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerHealth {
    /// It answered.
    Healthy,
    /// It did not answer.
    Unreachable,
    /// It refused the key.
    Unauthorized,
}

impl ServerHealth {
    /// The word in the database and the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Unreachable => "unreachable",
            Self::Unauthorized => "unauthorized",
        }
    }
}

/// The name of the unique constraint on names.
pub const NAME_TAKEN: &str = "waha_servers_name";

macro_rules! columns {
    ($before:literal, $after:literal) => {
        concat!(
            $before,
            " id, name, base_url, engine, capacity, sessions, draining, health, waha_version, last_seen_at, version, \
             created_at, updated_at ",
            $after
        )
    };
}

/// Writes a new server.
///
/// # Errors
/// [`DbError::Duplicate`] of [`NAME_TAKEN`].
pub async fn insert(conn: &mut SystemConn, new: &NewWahaServer, now: DateTime<Utc>) -> Result<WahaServer, DbError> {
    let text = columns!(
        "INSERT INTO waha_servers (id, name, base_url, api_key_sealed, engine, capacity, created_at, updated_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $7) RETURNING",
        ""
    );
    Ok(sql(text)
        .bind::<SqlUuid, _>(new.id)
        .bind::<Text, _>(&new.name)
        .bind::<Text, _>(&new.base_url)
        .bind::<Binary, _>(&new.api_key_sealed)
        .bind::<Text, _>(new.engine.as_str())
        .bind::<Integer, _>(new.capacity)
        .bind::<Timestamptz, _>(now)
        .prepared()
        .get_result(&mut **conn)
        .await?)
}

/// One server that is not deleted.
///
/// # Errors
/// When the database does not answer.
pub async fn find(conn: &mut SystemConn, id: WahaServerId) -> Result<Option<WahaServer>, DbError> {
    let text = columns!("SELECT", "FROM waha_servers WHERE id = $1 AND deleted_at IS NULL");
    let rows: Vec<WahaServer> = sql(text).bind::<SqlUuid, _>(id).prepared().load(&mut **conn).await?;
    Ok(rows.into_iter().next())
}

/// One server that is not deleted, its row locked.
///
/// # Errors
/// When the database does not answer.
pub async fn lock(conn: &mut SystemConn, id: WahaServerId) -> Result<Option<WahaServer>, DbError> {
    let text = columns!("SELECT", "FROM waha_servers WHERE id = $1 AND deleted_at IS NULL FOR UPDATE");
    let rows: Vec<WahaServer> = sql(text).bind::<SqlUuid, _>(id).prepared().load(&mut **conn).await?;
    Ok(rows.into_iter().next())
}

/// `limit` servers that are not deleted, newest first, from behind the place `after` on.
///
/// # Errors
/// When the database does not answer.
pub async fn list(
    conn: &mut SystemConn,
    after: Option<(DateTime<Utc>, Uuid)>,
    limit: i64,
) -> Result<Vec<WahaServer>, DbError> {
    let text = columns!(
        "SELECT",
        "FROM waha_servers WHERE deleted_at IS NULL AND ($1 IS NULL OR (created_at, id) < ($1, $2)) \
         ORDER BY created_at DESC, id DESC LIMIT $3"
    );
    Ok(sql(text)
        .bind::<Nullable<Timestamptz>, _>(after.map(|after| after.0))
        .bind::<Nullable<SqlUuid>, _>(after.map(|after| after.1))
        .bind::<BigInt, _>(limit)
        .prepared()
        .load(&mut **conn)
        .await?)
}

/// Changes a server. Another address or key makes its health unknown until it was asked again.
///
/// # Errors
/// [`DbError::Duplicate`] of [`NAME_TAKEN`].
pub async fn update(
    conn: &mut SystemConn,
    id: WahaServerId,
    change: &WahaServerChange,
    now: DateTime<Utc>,
) -> Result<WahaServer, DbError> {
    let text = columns!(
        "UPDATE waha_servers SET name = coalesce($2, name), base_url = coalesce($3, base_url), \
         api_key_sealed = coalesce($4, api_key_sealed), engine = coalesce($5, engine), \
         capacity = coalesce($6, capacity), draining = coalesce($7, draining), \
         health = CASE WHEN $3 IS NULL AND $4 IS NULL THEN health ELSE 'unknown' END, \
         version = version + 1, updated_at = $8 WHERE id = $1 RETURNING",
        ""
    );
    if change.base_url.is_some() || change.api_key_sealed.is_some() {
        // Behind another address there may be another server, which knows nothing of the sessions.
        sql("UPDATE waha_sessions SET reconcile_at = least(reconcile_at, $2) WHERE waha_server_id = $1 AND deleted_at IS NULL")
            .bind::<SqlUuid, _>(id)
            .bind::<Timestamptz, _>(now)
            .prepared()
            .execute(&mut **conn)
            .await?;
    }
    Ok(sql(text)
        .bind::<SqlUuid, _>(id)
        .bind::<Nullable<Text>, _>(&change.name)
        .bind::<Nullable<Text>, _>(&change.base_url)
        .bind::<Nullable<Binary>, _>(&change.api_key_sealed)
        .bind::<Nullable<Text>, _>(change.engine.map(Engine::as_str))
        .bind::<Nullable<Integer>, _>(change.capacity)
        .bind::<Nullable<Bool>, _>(change.draining)
        .bind::<Timestamptz, _>(now)
        .prepared()
        .get_result(&mut **conn)
        .await?)
}

/// Deletes a server softly; only one without sessions. Lock it first.
///
/// # Errors
/// When the database does not answer.
pub async fn delete(conn: &mut SystemConn, id: WahaServerId, now: DateTime<Utc>) -> Result<(), DbError> {
    let text = "UPDATE waha_servers SET deleted_at = $2, version = version + 1, updated_at = $2 WHERE id = $1";
    sql(text).bind::<SqlUuid, _>(id).bind::<Timestamptz, _>(now).prepared().execute(&mut **conn).await?;
    Ok(())
}

#[derive(QueryableByName)]
struct Candidate {
    #[diesel(sql_type = SqlUuid)]
    id: WahaServerId,
    #[diesel(sql_type = Text)]
    engine: String,
}

/// Takes a place for a new session: on the healthy server with most room, of the wanted engine if one is wanted; a server
/// that was never asked comes second, one that does not answer never. `None` when there is no room anywhere.
///
/// # Errors
/// When the database does not answer.
pub async fn place(
    conn: &mut SystemConn,
    engine: Option<Engine>,
    now: DateTime<Utc>,
) -> Result<Option<(WahaServerId, Engine)>, DbError> {
    let best = "SELECT id, engine FROM waha_servers WHERE deleted_at IS NULL AND NOT draining AND sessions < capacity \
                AND health IN ('healthy', 'unknown') AND ($1 IS NULL OR engine = $1) AND id <> ALL($2) \
                ORDER BY health = 'healthy' DESC, capacity - sessions DESC, id LIMIT 1";
    let take = "UPDATE waha_servers SET sessions = sessions + 1, updated_at = $2 WHERE id = $1 AND deleted_at IS NULL \
                AND NOT draining AND sessions < capacity";
    let mut full: Vec<WahaServerId> = Vec::new();
    loop {
        let candidates: Vec<Candidate> = sql(best)
            .bind::<Nullable<Text>, _>(engine.map(Engine::as_str))
            .bind::<Array<SqlUuid>, _>(&full)
            .prepared()
            .load(&mut **conn)
            .await?;
        let Some(candidate) = candidates.into_iter().next() else { return Ok(None) };
        let taken = sql(take)
            .bind::<SqlUuid, _>(candidate.id)
            .bind::<Timestamptz, _>(now)
            .prepared()
            .execute(&mut **conn)
            .await?;
        match candidate.engine.parse() {
            Ok(engine) if taken == 1 => return Ok(Some((candidate.id, engine))),
            // Filled up, drained or deleted by a concurrent transaction: look for another one.
            _ => full.push(candidate.id),
        }
    }
}

/// Gives the place of a removed session back.
///
/// # Errors
/// When the database does not answer.
pub async fn release(conn: &mut SystemConn, id: WahaServerId, now: DateTime<Utc>) -> Result<(), DbError> {
    let text = "UPDATE waha_servers SET sessions = greatest(sessions - 1, 0), updated_at = $2 WHERE id = $1";
    sql(text).bind::<SqlUuid, _>(id).bind::<Timestamptz, _>(now).prepared().execute(&mut **conn).await?;
    Ok(())
}

/// Notes how a server fared; `seen` is WAHA's version and start time, when it answered.
///
/// # Errors
/// When the database does not answer.
pub async fn record_health(
    conn: &mut SystemConn,
    id: WahaServerId,
    health: ServerHealth,
    seen: Option<(&str, Option<i64>)>,
    now: DateTime<Utc>,
) -> Result<(), DbError> {
    let text = "UPDATE waha_servers SET health = $2, waha_version = coalesce($3, waha_version), \
                start_timestamp = coalesce($4, start_timestamp), \
                last_seen_at = CASE WHEN $2 = 'healthy' THEN $5 ELSE last_seen_at END \
                WHERE id = $1 AND deleted_at IS NULL";
    sql(text)
        .bind::<SqlUuid, _>(id)
        .bind::<Text, _>(health.as_str())
        .bind::<Nullable<Text>, _>(seen.map(|seen| seen.0))
        .bind::<Nullable<BigInt>, _>(seen.and_then(|seen| seen.1))
        .bind::<Timestamptz, _>(now)
        .prepared()
        .execute(&mut **conn)
        .await?;
    Ok(())
}
