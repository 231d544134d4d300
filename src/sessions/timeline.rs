//! The history of a session: every change of its status and every wish about it, with cause and actor. What WAHA and the gateway
//! change is written with the change, in `status`.

use chrono::{DateTime, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};

use crate::db::{DbError, Prepare, TenantConn, sql};
use crate::domain::ids::{SessionId, TenantId};

/// An entry.
#[derive(Clone, Debug, QueryableByName)]
pub struct Entry {
    /// Its place in the history; rises.
    #[diesel(sql_type = BigInt)]
    pub id: i64,
    /// When it happened.
    #[diesel(sql_type = Timestamptz)]
    pub at: DateTime<Utc>,
    /// What the tenant saw from then on.
    #[diesel(sql_type = Text)]
    pub status: String,
    /// What WAHA said.
    #[diesel(sql_type = Text)]
    pub waha_status: String,
    /// Why.
    #[diesel(sql_type = Text)]
    pub cause: String,
    /// Who caused it.
    #[diesel(sql_type = Text)]
    pub actor: String,
}

/// The actor of what the gateway does by itself.
pub const GATEWAY: &str = "gateway";

/// Notes that `actor` wants something of the session `id`, which it is told by `cause`.
///
/// # Errors
/// When the database does not answer.
pub async fn wish(
    conn: &mut TenantConn,
    id: SessionId,
    cause: &str,
    actor: &str,
    now: DateTime<Utc>,
) -> Result<(), DbError> {
    let tenant = conn.tenant();
    note(conn, tenant, id, cause, actor, now).await
}

/// Notes something that leaves the status as it is.
///
/// # Errors
/// When the database does not answer.
pub async fn note(
    conn: &mut AsyncPgConnection,
    tenant: TenantId,
    id: SessionId,
    cause: &str,
    actor: &str,
    now: DateTime<Utc>,
) -> Result<(), DbError> {
    sql("INSERT INTO session_transitions (tenant_id, session_id, at, status, waha_status, cause, actor) \
         SELECT tenant_id, id, $3, status, waha_status, $4, $5 FROM waha_sessions WHERE tenant_id = $1 AND id = $2")
    .bind::<SqlUuid, _>(tenant)
    .bind::<SqlUuid, _>(id)
    .bind::<Timestamptz, _>(now)
    .bind::<Text, _>(cause)
    .bind::<Text, _>(actor)
    .prepared()
    .execute(conn)
    .await?;
    Ok(())
}

/// `limit` entries of the session `id`, newest first, from behind the entry `before` on.
///
/// # Errors
/// When the database does not answer.
pub async fn list(
    conn: &mut TenantConn,
    id: SessionId,
    before: Option<i64>,
    limit: i64,
) -> Result<Vec<Entry>, DbError> {
    Ok(sql("SELECT id, at, status, waha_status, cause, actor FROM session_transitions \
            WHERE tenant_id = $1 AND session_id = $2 AND ($3 IS NULL OR id < $3) ORDER BY id DESC LIMIT $4")
    .bind::<SqlUuid, _>(conn.tenant())
    .bind::<SqlUuid, _>(id)
    .bind::<Nullable<BigInt>, _>(before)
    .bind::<BigInt, _>(limit)
    .prepared()
    .load(&mut **conn)
    .await?)
}
