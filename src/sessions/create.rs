//! Creating a session: a place on a WAHA server, and the rows.
//!
//! Guarantee: place and rows are one transaction, so no server gets more sessions than its capacity, no tenant more than its
//! quota (which is locked meanwhile), and none is counted that does not exist. WAHA is not asked; that is the reconciler's work.

use diesel::sql_types::{Array, Binary, Bool, Integer, Jsonb, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use serde_json::Value;

use crate::app::App;
use crate::db::{DbError, Prepare, SystemConn, sql};
use crate::dispatch::pacing::Pacing;
use crate::dispatch::windows::Windows;
use crate::domain::ids::{SessionId, TenantId};
use crate::sessions::change::{NAME_TAKEN, json};
use crate::sessions::proxy;
use crate::sessions::servers::{self, PlaceWish};
use crate::sessions::view::{SessionRow, session_columns};
use crate::sessions::webhook_keys;
use crate::tenants;
use crate::waha::Proxy;

/// What a new session is to be.
#[derive(Clone, Debug)]
pub struct NewSession {
    /// The tenant's name for it: 1 to 100 characters, unique among the tenant's sessions.
    pub name: String,
    /// What its server must be; without an engine whatever has most room.
    pub wish: PlaceWish,
    /// Whether it is started as soon as it exists.
    pub start: bool,
    /// How fast its messages may leave.
    pub pacing: Pacing,
    /// When normal and bulk messages may leave; `None`: always.
    pub windows: Option<Windows>,
    /// Whether recipients' numbers are checked before the first message.
    pub check_numbers: bool,
    /// The tenant's own settings of the session: an object.
    pub config: Value,
    /// The tenant's own data: an object.
    pub metadata: Value,
    /// Where its connection to WhatsApp goes through; `None`: straight.
    pub proxy: Option<Proxy>,
}

/// Why a session is not created.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// No WAHA server has room.
    #[error("no WAHA server{} has room for another session", described(.0))]
    NoRoom(PlaceWish),
    /// The tenant may not have another one; how many it may have.
    #[error("this tenant may have {0} sessions and has them")]
    QuotaExceeded(i32),
    /// The tenant has a session of this name.
    #[error("a session of this name exists")]
    NameTaken,
    /// The database said no.
    #[error(transparent)]
    Database(DbError),
}

fn described(wish: &PlaceWish) -> String {
    let engine = wish.engine.map(|engine| format!("the engine {engine}"));
    let labels = (!wish.labels.is_empty()).then(|| format!("the labels {}", wish.labels.join(", ")));
    let wishes: Vec<String> = engine.into_iter().chain(labels).collect();
    if wishes.is_empty() { String::new() } else { format!(" with {}", wishes.join(" and ")) }
}

impl From<DbError> for CreateError {
    fn from(fault: DbError) -> Self {
        if fault.is_duplicate_of(NAME_TAKEN) { Self::NameTaken } else { Self::Database(fault) }
    }
}

// status_at is on WAHA's clock, which may be behind ours: any first report is later than the epoch.
const INSERT: &str = concat!(
    "\
WITH s AS (
    INSERT INTO waha_sessions (tenant_id, id, name, external_session_id, waha_server_id, status, waha_status, status_at,
                               desired, engine, webhook_key_sealed, pacing, config, metadata, reconcile_at, windows,
                               check_numbers, labels, proxy, proxy_sealed, created_at, updated_at)
    VALUES ($1, $2, $3, $4, $5, $6, 'stopped', 'epoch', $8, $9, $10, $11, $12, $13, $14, $17, $18, $25, $26, $27,
            $7, $7)
    RETURNING *
), l AS (
    INSERT INTO lanes (tenant_id, session_id, waha_server_id, next_slot_at, stopped_because, min_gap_ms, jitter_ms,
                       windows, check_numbers, per_minute, per_hour, per_day, new_chats_per_day, warm_up, typing,
                       created_at, updated_at)
    SELECT s.tenant_id, s.id, s.waha_server_id, $7, 'session_not_working', $15, $16, $17, $18, $19, $20, $21, $22, $23, $24,
           $7, $7
    FROM s
    RETURNING *
)
SELECT ",
    session_columns!(),
    " FROM s JOIN l ON l.tenant_id = s.tenant_id AND l.session_id = s.id"
);

/// Creates a session of `tenant` in a transaction of its own.
///
/// # Errors
/// [`CreateError`].
pub async fn create(app: &App, tenant: TenantId, new: NewSession) -> Result<SessionRow, CreateError> {
    let created = app.db.system(async |conn| create_in(conn, app, tenant, &new).await).await?;
    announce(app).await;
    Ok(created)
}

/// Creates a session of `tenant` in the transaction of `conn`; [`announce`] it after the commit.
///
/// # Errors
/// [`CreateError`]; the transaction then must not be committed.
pub async fn create_in(
    conn: &mut SystemConn,
    app: &App,
    tenant: TenantId,
    new: &NewSession,
) -> Result<SessionRow, CreateError> {
    let now = app.clock.now();
    let id = SessionId::fresh(now, &app.chance);
    if let Some(most) = tenants::lock_session_quota(conn, tenant).await?
        && tenants::sessions(conn, tenant).await? >= i64::from(most)
    {
        return Err(CreateError::QuotaExceeded(most));
    }
    let place = servers::place(conn, &new.wish, now).await?;
    let (server, engine) = place.ok_or_else(|| CreateError::NoRoom(new.wish.clone()))?;
    let sealed = webhook_keys::fresh(&app.sealer, &app.chance, id);
    let (status, desired) = if new.start { ("starting", "started") } else { ("stopped", "stopped") };
    let mut narrowed = conn.narrow_to(tenant).await?;
    let row = sql(INSERT)
        .bind::<SqlUuid, _>(tenant)
        .bind::<SqlUuid, _>(id)
        .bind::<Text, _>(&new.name)
        .bind::<Text, _>(format!("sb_{}", id.0.simple()))
        .bind::<SqlUuid, _>(server)
        .bind::<Text, _>(status)
        .bind::<Timestamptz, _>(now)
        .bind::<Text, _>(desired)
        .bind::<Text, _>(engine.as_str())
        .bind::<Binary, _>(sealed)
        .bind::<Jsonb, _>(json(&new.pacing))
        .bind::<Jsonb, _>(&new.config)
        .bind::<Jsonb, _>(&new.metadata)
        .bind::<Nullable<Timestamptz>, _>(new.start.then_some(now))
        .bind::<Integer, _>(new.pacing.min_gap_ms)
        .bind::<Integer, _>(new.pacing.jitter_ms)
        .bind::<Nullable<Jsonb>, _>(new.windows.as_ref().map(json))
        .bind::<Bool, _>(new.check_numbers)
        .bind::<Nullable<Integer>, _>(new.pacing.per_minute)
        .bind::<Nullable<Integer>, _>(new.pacing.per_hour)
        .bind::<Nullable<Integer>, _>(new.pacing.per_day)
        .bind::<Nullable<Integer>, _>(new.pacing.new_chats_per_day)
        .bind::<Nullable<Jsonb>, _>(new.pacing.warm_up.as_ref().map(json))
        .bind::<Bool, _>(new.pacing.typing)
        .bind::<Array<Text>, _>(&new.wish.labels)
        .bind::<Nullable<Jsonb>, _>(new.proxy.as_ref().map(proxy::shown))
        .bind::<Nullable<Binary>, _>(new.proxy.as_ref().map(|proxy| proxy::sealed(&app.sealer, id, proxy)))
        .prepared()
        .get_result(&mut *narrowed)
        .await
        .map_err(DbError::from)?;
    narrowed.widen().await?;
    Ok(row)
}

/// Lets this node see what was just committed: its caches forget, and its reconciler looks.
pub async fn announce(app: &App) {
    if let Err(fault) = app.generation.refresh(&app.db).await {
        tracing::debug!(%fault, "the caches are refreshed a little later");
    }
    app.wake.sessions.notify_one();
}
