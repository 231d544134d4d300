//! Reading a tenant's sessions, and saying how they should be. Always as that tenant.

use chrono::{DateTime, Utc};
use diesel::sql_types::{BigInt, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use uuid::Uuid;

use crate::db::{DbError, Prepare, TenantConn, sql};
use crate::domain::ids::SessionId;
use crate::sessions::view::{SessionRow, session_columns};

/// How the gateway wants a session to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Desired {
    /// Running at WAHA.
    Started,
    /// Stopped at WAHA, its pairing kept.
    Stopped,
}

impl Desired {
    /// The word in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Stopped => "stopped",
        }
    }

    /// Reads the word of the database.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Started, Self::Stopped].into_iter().find(|desired| desired.as_str() == name)
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

// The version rises only for what the resource shows or for a wish that is new.
const WANT: &str = concat!(
    "\
WITH s AS (
    UPDATE waha_sessions SET
        desired = $3,
        reconcile_at = $4,
        reconcile_failures = 0,
        version = version + (desired <> $3)::int,
        updated_at = CASE WHEN desired <> $3 THEN $4 ELSE updated_at END
    WHERE tenant_id = $1 AND id = $2 AND deleted_at IS NULL AND desired <> 'deleted'
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

/// Wants the session `id` to be `desired` and makes the reconciler look at it at once, whether or not that was wanted
/// before. `None` if this tenant has no such session.
///
/// # Errors
/// When the database does not answer.
pub async fn want(
    conn: &mut TenantConn,
    id: SessionId,
    desired: Desired,
    now: DateTime<Utc>,
) -> Result<Option<SessionRow>, DbError> {
    let rows: Vec<SessionRow> = sql(WANT)
        .bind::<SqlUuid, _>(conn.tenant())
        .bind::<SqlUuid, _>(id)
        .bind::<Text, _>(desired.as_str())
        .bind::<Timestamptz, _>(now)
        .prepared()
        .load(&mut **conn)
        .await?;
    Ok(rows.into_iter().next())
}
