//! The registry of WAHA servers: where sessions live, and where a new one goes.
//!
//! Guarantee: `sessions` is changed only by [`place`], [`take`] and [`release`], in the transaction that places or removes a session,
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
use crate::sessions::probe::Probe;
use crate::waha::{Engine, Limitation};

/// A WAHA server, without its key.
#[derive(Clone, Debug, Serialize, QueryableByName, ToSchema)]
#[schema(example = json!({
    "id": "01994f3e-2222-7cc3-98d5-8f1c1f0a2b3c", "name": "waha-1", "base_url": "http://waha-1:3000", "engine": "GOWS",
    "capacity": 100, "sessions": 3, "labels": ["eu"], "storage_group": null, "draining": false, "health": "healthy",
    "waha_version": "2026.7.1", "reported_engine": "GOWS", "limitations": [], "last_seen_at": "2026-11-21T09:30:00Z",
    "unreachable_since": null, "version": 1, "created_at": "2026-11-21T09:30:00Z",
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
    /// What sessions may ask for in the place they are given.
    #[diesel(sql_type = Array<Text>)]
    pub labels: Vec<String>,
    /// Servers of one group share their session storage; null: it shares with none.
    #[diesel(sql_type = Nullable<Text>)]
    #[schema(required)]
    pub storage_group: Option<String>,
    /// Whether it gets no new sessions.
    #[diesel(sql_type = Bool)]
    pub draining: bool,
    /// How it fared when it was last asked: `unknown`, `healthy`, `unreachable` or `unauthorized`. Healthy is a server that
    /// answers `/ping`, takes the key and says since when it runs; `unknown` one that has not answered since it was registered
    /// or its address or key was changed, and was not asked again yet.
    #[diesel(sql_type = Text)]
    #[schema(pattern = "^(unknown|healthy|unreachable|unauthorized)$")]
    pub health: String,
    /// WAHA's own version, as far as it is known.
    #[diesel(sql_type = Nullable<Text>)]
    #[schema(required)]
    pub waha_version: Option<String>,
    /// The engine it says it runs.
    #[diesel(sql_type = Nullable<Text>)]
    #[schema(required)]
    pub reported_engine: Option<String>,
    /// What it cannot do, told from its version. `single_session`: it runs just one session, and `no_webhook_hmac`: its webhooks
    /// are neither signed nor repeated (both: the free edition before 2026.6.1); `wrong_engine`: it runs another engine than it
    /// is registered with; no session is placed on a server with one of these three. `no_media`: it sends no files.
    /// `no_own_message_ids`: a send in doubt cannot be repeated safely (WEBJS, WPP, and any before 2026.4.3).
    #[diesel(sql_type = Array<Text>)]
    pub limitations: Vec<String>,
    /// When it last was healthy.
    #[diesel(sql_type = Nullable<Timestamptz>)]
    #[schema(required)]
    pub last_seen_at: Option<DateTime<Utc>>,
    /// Since when it does not answer.
    #[diesel(sql_type = Nullable<Timestamptz>)]
    #[schema(required)]
    pub unreachable_since: Option<DateTime<Utc>>,
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
    /// What sessions may ask for in the place they are given.
    pub labels: Vec<String>,
    /// The servers it shares its session storage with.
    pub storage_group: Option<String>,
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
    /// Other labels instead of the old.
    pub labels: Option<Vec<String>>,
    /// Another storage group, or none.
    pub storage_group: Option<Option<String>>,
    /// Whether it gets no new sessions.
    pub draining: Option<bool>,
}

impl WahaServerChange {
    /// Whether what was known of the server may not hold any more.
    #[must_use]
    pub fn needs_probe(&self) -> bool {
        self.base_url.is_some() || self.api_key_sealed.is_some() || self.engine.is_some()
    }
}

/// What a new session asks for in its place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PlaceWish {
    /// The engine; `None` takes any.
    pub engine: Option<Engine>,
    /// Labels that the server must have, all of them.
    pub labels: Vec<String>,
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
            " id, name, base_url, engine, capacity, sessions, labels, storage_group, draining, health, waha_version, \
             reported_engine, limitations, last_seen_at, unreachable_since, version, created_at, updated_at ",
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
        "INSERT INTO waha_servers (id, name, base_url, api_key_sealed, engine, capacity, labels, storage_group, \
                                   created_at, updated_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $8, $9, $7, $7) RETURNING",
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
        .bind::<Array<Text>, _>(&new.labels)
        .bind::<Nullable<Text>, _>(&new.storage_group)
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

/// Changes a server. With another address, key or engine nothing is known of it until it was asked again.
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
         capacity = coalesce($6, capacity), draining = coalesce($7, draining), labels = coalesce($9, labels), \
         storage_group = CASE WHEN $10 THEN $11 ELSE storage_group END, \
         health = CASE WHEN $12 THEN 'unknown' ELSE health END, \
         reported_engine = CASE WHEN $12 THEN NULL ELSE reported_engine END, \
         limitations = CASE WHEN $12 THEN '{}' ELSE limitations END, \
         unreachable_since = CASE WHEN $12 THEN NULL ELSE unreachable_since END, \
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
        .bind::<Nullable<Array<Text>>, _>(&change.labels)
        .bind::<Bool, _>(change.storage_group.is_some())
        .bind::<Nullable<Text>, _>(change.storage_group.clone().flatten())
        .bind::<Bool, _>(change.needs_probe())
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

// Said of the row as it is at that moment: when it is chosen, and again when the place is taken.
macro_rules! may_take {
    () => {
        "deleted_at IS NULL AND NOT draining AND sessions < capacity AND health IN ('healthy', 'unknown') \
         AND ($1 IS NULL OR engine = $1) AND labels @> $2 AND NOT limitations && $3"
    };
}

const BEST: &str = concat!(
    "SELECT id, engine FROM waha_servers WHERE ",
    may_take!(),
    " AND id <> ALL($4) ORDER BY health = 'healthy' DESC, capacity - sessions DESC, id LIMIT 1"
);

const TAKE: &str = concat!(
    "UPDATE waha_servers SET sessions = sessions + 1, updated_at = $5 WHERE id = $4 AND ",
    may_take!(),
    " RETURNING id, engine"
);

/// Takes a place for a new session: on the healthy server with most room among those that have the wanted engine and labels; a
/// server that was never asked comes second. None is taken on a server that does not answer, is draining, or has a
/// limitation that keeps sessions away. `None` when there is no room anywhere.
///
/// # Errors
/// When the database does not answer.
pub async fn place(
    conn: &mut SystemConn,
    wish: &PlaceWish,
    now: DateTime<Utc>,
) -> Result<Option<(WahaServerId, Engine)>, DbError> {
    let engine = wish.engine.map(Engine::as_str);
    let mut lost: Vec<WahaServerId> = Vec::new();
    loop {
        let best: Vec<Candidate> = sql(BEST)
            .bind::<Nullable<Text>, _>(engine)
            .bind::<Array<Text>, _>(&wish.labels)
            .bind::<Array<Text>, _>(unfit())
            .bind::<Array<SqlUuid>, _>(&lost)
            .prepared()
            .load(&mut **conn)
            .await?;
        let Some(best) = best.into_iter().next() else { return Ok(None) };
        match take_as(conn, best.id, wish, now).await? {
            Some(engine) => return Ok(Some((best.id, engine))),
            // A concurrent transaction filled or changed it: look for another one.
            None => lost.push(best.id),
        }
    }
}

/// Takes a place on the server `id`, for a session that moves there; false when it may take none.
///
/// # Errors
/// When the database does not answer.
pub async fn take(conn: &mut SystemConn, id: WahaServerId, now: DateTime<Utc>) -> Result<bool, DbError> {
    Ok(take_as(conn, id, &PlaceWish::default(), now).await?.is_some())
}

/// Waits for whoever is taking a place there right now, and then looks at the row as they left it.
async fn take_as(
    conn: &mut SystemConn,
    id: WahaServerId,
    wish: &PlaceWish,
    now: DateTime<Utc>,
) -> Result<Option<Engine>, DbError> {
    let taken: Vec<Candidate> = sql(TAKE)
        .bind::<Nullable<Text>, _>(wish.engine.map(Engine::as_str))
        .bind::<Array<Text>, _>(&wish.labels)
        .bind::<Array<Text>, _>(unfit())
        .bind::<SqlUuid, _>(id)
        .bind::<Timestamptz, _>(now)
        .prepared()
        .load(&mut **conn)
        .await?;
    Ok(taken.into_iter().next().and_then(|taken| taken.engine.parse().ok()))
}

/// The limitations that keep sessions away.
pub(super) fn unfit() -> Vec<&'static str> {
    Limitation::ALL.into_iter().filter(|limit| limit.keeps_sessions_away()).map(Limitation::as_str).collect()
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

/// Notes what a server, registered with `engine`, said when it was asked; what it did not say stays as it was.
///
/// # Errors
/// When the database does not answer.
pub async fn record_health(
    conn: &mut SystemConn,
    id: WahaServerId,
    engine: Engine,
    probe: &Probe,
    now: DateTime<Utc>,
) -> Result<(), DbError> {
    let text = "UPDATE waha_servers SET health = $2, waha_version = coalesce($3, waha_version), \
                start_timestamp = coalesce($4, start_timestamp), \
                last_seen_at = CASE WHEN $2 = 'healthy' THEN $5 ELSE last_seen_at END, \
                reported_engine = coalesce($6, reported_engine), limitations = coalesce($7, limitations), \
                unreachable_since = CASE WHEN $2 = 'unreachable' THEN coalesce(unreachable_since, $5) END \
                WHERE id = $1 AND deleted_at IS NULL";
    let version = probe.version.as_ref();
    let started = probe.started_at.filter(|_| probe.health == ServerHealth::Healthy);
    let limitations: Option<Vec<&str>> =
        version.map(|version| version.limitations(engine).into_iter().map(Limitation::as_str).collect());
    sql(text)
        .bind::<SqlUuid, _>(id)
        .bind::<Text, _>(probe.health.as_str())
        .bind::<Nullable<Text>, _>(version.map(|version| version.version.as_str()))
        // Only with a look at its sessions, which one that is not healthy does not get.
        .bind::<Nullable<BigInt>, _>(started.map(|at| at.timestamp_millis()))
        .bind::<Timestamptz, _>(now)
        .bind::<Nullable<Text>, _>(version.and_then(|version| version.engine).map(Engine::as_str))
        .bind::<Nullable<Array<Text>>, _>(limitations)
        .prepared()
        .execute(&mut **conn)
        .await?;
    Ok(())
}
