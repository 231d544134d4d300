//! Reading a tenant's sessions, and saying how they should be. Always as that tenant.

use chrono::{DateTime, Utc};
use diesel::sql_types::{BigInt, Bool, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use uuid::Uuid;

use crate::db::{DbError, Prepare, TenantConn, sql};
use crate::domain::ids::SessionId;
use crate::sessions::timeline;
use crate::sessions::view::{SessionRow, session_columns};

/// How the gateway wants a session to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Desired {
    /// Running at WAHA.
    Started,
    /// Stopped at WAHA, its pairing kept.
    Stopped,
    /// Gone from WAHA, unlinked from the phone.
    Deleted,
}

impl Desired {
    /// The word in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Stopped => "stopped",
            Self::Deleted => "deleted",
        }
    }

    /// Reads the word of the database.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Started, Self::Stopped, Self::Deleted].into_iter().find(|desired| desired.as_str() == name)
    }
}

const FIND: &str = concat!(
    "SELECT ",
    session_columns!(),
    " FROM waha_sessions s JOIN lanes l ON l.tenant_id = s.tenant_id AND l.session_id = s.id \
     WHERE s.tenant_id = $1 AND s.id = $2 AND s.deleted_at IS NULL"
);

const LIST: &str = concat!(
    "SELECT ",
    session_columns!(),
    " FROM waha_sessions s JOIN lanes l ON l.tenant_id = s.tenant_id AND l.session_id = s.id \
     WHERE s.tenant_id = $1 AND s.deleted_at IS NULL AND ($2 IS NULL OR (s.created_at, s.id) < ($2, $3)) \
     ORDER BY s.created_at DESC, s.id DESC LIMIT $4"
);

/// What a tenant wants done with a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Let it run; one that has failed begins anew.
    Start,
    /// Stop it and keep its pairing.
    Stop,
    /// Stop and start it.
    Restart,
    /// Unlink it from the phone; one that runs shows QR codes then.
    Logout,
}

impl Wish {
    /// How the history calls it.
    #[must_use]
    pub const fn cause(self) -> &'static str {
        match self {
            Self::Start => "start was asked for",
            Self::Stop => "stop was asked for",
            Self::Restart => "restart was asked for",
            Self::Logout => "logout was asked for",
        }
    }

    /// How the session should be because of it, if that changes.
    const fn desired(self) -> Option<Desired> {
        match self {
            Self::Start | Self::Restart => Some(Desired::Started),
            Self::Stop => Some(Desired::Stopped),
            Self::Logout => None,
        }
    }
}

// The version rises only for what the resource shows or for a wish that is new. A later wish takes the place of an earlier one.
const WANT: &str = concat!(
    "\
WITH s AS (
    UPDATE waha_sessions SET
        desired = coalesce($3, desired),
        restart_wanted_at = CASE WHEN $5 OR $6 AND waha_status = 'failed' THEN $4 WHEN $3 = 'stopped' THEN NULL ELSE restart_wanted_at END,
        restart_by_tenant = $5 OR $6 AND waha_status = 'failed' OR restart_by_tenant AND $3 IS DISTINCT FROM 'stopped',
        logout_wanted_at = CASE WHEN $7 THEN $4 ELSE logout_wanted_at END,
        reconcile_at = $4,
        reconcile_failures = 0,
        observations = observations + 1,
        version = version + (desired <> coalesce($3, desired))::int,
        updated_at = CASE WHEN desired <> coalesce($3, desired) THEN $4 ELSE updated_at END
    WHERE tenant_id = $1 AND id = $2 AND deleted_at IS NULL
    RETURNING *
)
SELECT ",
    session_columns!(),
    " FROM s JOIN lanes l ON l.tenant_id = s.tenant_id AND l.session_id = s.id"
);

/// The session `id`, if this tenant has it.
///
/// # Errors
/// When the database does not answer.
pub async fn find(conn: &mut TenantConn, id: SessionId) -> Result<Option<SessionRow>, DbError> {
    let rows: Vec<SessionRow> =
        sql(FIND).bind::<SqlUuid, _>(conn.tenant()).bind::<SqlUuid, _>(id).prepared().load(&mut **conn).await?;
    Ok(rows.into_iter().next())
}

/// `limit` sessions, newest first, from behind the place `after` on.
///
/// # Errors
/// When the database does not answer.
pub async fn list(
    conn: &mut TenantConn,
    after: Option<(DateTime<Utc>, Uuid)>,
    limit: i64,
) -> Result<Vec<SessionRow>, DbError> {
    Ok(sql(LIST)
        .bind::<SqlUuid, _>(conn.tenant())
        .bind::<Nullable<Timestamptz>, _>(after.map(|after| after.0))
        .bind::<Nullable<SqlUuid>, _>(after.map(|after| after.1))
        .bind::<BigInt, _>(limit)
        .prepared()
        .load(&mut **conn)
        .await?)
}

/// Wants something of the session `id` for `actor` and makes the reconciler look at it at once, whether or not that was wanted
/// before. `None` if this tenant has no such session.
///
/// # Errors
/// When the database does not answer.
pub async fn want(
    conn: &mut TenantConn,
    id: SessionId,
    wish: Wish,
    actor: &str,
    now: DateTime<Utc>,
) -> Result<Option<SessionRow>, DbError> {
    let rows: Vec<SessionRow> = sql(WANT)
        .bind::<SqlUuid, _>(conn.tenant())
        .bind::<SqlUuid, _>(id)
        .bind::<Nullable<Text>, _>(wish.desired().map(Desired::as_str))
        .bind::<Timestamptz, _>(now)
        .bind::<Bool, _>(wish == Wish::Restart)
        .bind::<Bool, _>(wish == Wish::Start)
        .bind::<Bool, _>(wish == Wish::Logout)
        .prepared()
        .load(&mut **conn)
        .await?;
    if !rows.is_empty() {
        timeline::wish(conn, id, wish.cause(), actor, now).await?;
    }
    Ok(rows.into_iter().next())
}
