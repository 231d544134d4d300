//! Two contacts that turned out to be one person.

use chrono::{DateTime, Utc};
use diesel::sql_types::{Array, Jsonb, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};

use super::combine::{self, Card};
use super::{Because, current, lock, move_facts, resolve};
use crate::conversations;
use crate::db::{DbError, Prepare, sql};
use crate::domain::chance::Chance;
use crate::domain::ids::{ContactId, ContactMergeId, TenantId};

/// Makes `other` a part of `kept`: its ids and conversations, and what is told of it. The caller holds the lock.
pub(super) async fn merge(
    conn: &mut AsyncPgConnection,
    chance: &Chance,
    now: DateTime<Utc>,
    tenant: TenantId,
    kept: ContactId,
    other: ContactId,
    because: Because,
) -> Result<(), DbError> {
    let cards = combine::cards(conn, tenant, &[kept, other]).await?;
    let find = |id: ContactId| cards.iter().find(|card| card.id == id);
    let (Some(before), Some(merged)) = (find(kept), find(other)) else { return Ok(()) };
    let snapshot = |card: &Card| serde_json::to_value(card).unwrap_or_default();
    sql(
        "WITH moved AS (UPDATE contact_ids SET contact_id = $3 WHERE tenant_id = $1 AND contact_id = $4 RETURNING key) \
         INSERT INTO contact_merges (tenant_id, id, kept_id, merged_id, because, keys, kept, merged, at) \
         SELECT $1, $2, $3, $4, $5, coalesce(array_agg(key ORDER BY key), '{}'), $6, $7, $8 FROM moved",
    )
    .bind::<SqlUuid, _>(tenant)
    .bind::<SqlUuid, _>(ContactMergeId::fresh(now, chance))
    .bind::<SqlUuid, _>(kept)
    .bind::<SqlUuid, _>(other)
    .bind::<Text, _>(because.as_str())
    .bind::<Jsonb, _>(snapshot(before))
    .bind::<Jsonb, _>(snapshot(merged))
    .bind::<Timestamptz, _>(now)
    .prepared()
    .execute(conn)
    .await?;
    combine::write(conn, now, tenant, &before.with(merged)).await?;
    combine::write(conn, now, tenant, &Card { merged_into: Some(kept), ..merged.clone() }).await?;
    resolve::refresh(conn, now, tenant, &[kept]).await?;
    move_facts(conn, tenant, &[kept]).await?;
    conversations::join(conn, now, tenant, kept, other).await?;
    metrics::counter!("switchboard_contacts_merged_total", "because" => because.as_str()).increment(1);
    Ok(())
}

/// Why two contacts were not merged.
#[derive(Debug, thiserror::Error)]
pub enum MergeDenied {
    /// This tenant has no such contact.
    #[error("no such contact")]
    NotFound,
    /// The one to be merged does not exist.
    #[error("no such contact to merge")]
    OtherNotFound,
    /// The database did not.
    #[error(transparent)]
    Database(#[from] DbError),
}

/// Merges `other` into `kept`, because the tenant says that they are one person; answers the contact that they are. A repeat
/// changes nothing. For the system role.
///
/// # Errors
/// [`MergeDenied`].
pub async fn merge_by_tenant(
    conn: &mut AsyncPgConnection,
    chance: &Chance,
    now: DateTime<Utc>,
    tenant: TenantId,
    kept: ContactId,
    other: ContactId,
) -> Result<ContactId, MergeDenied> {
    lock(conn, tenant).await?;
    let kept = current(conn, tenant, kept).await?.ok_or(MergeDenied::NotFound)?;
    let other = current(conn, tenant, other).await?.ok_or(MergeDenied::OtherNotFound)?;
    if kept != other {
        merge(conn, chance, now, tenant, kept, other, Because::Tenant).await?;
        // What an earlier undoing forbade is allowed again.
        sql("UPDATE contact_links l SET denied_at = NULL FROM contact_ids a, contact_ids b \
             WHERE l.tenant_id = $1 AND l.denied_at IS NOT NULL AND a.tenant_id = $1 AND b.tenant_id = $1 \
               AND a.contact_id = ANY($2) AND b.contact_id = ANY($2) AND l.lid = a.key AND l.phone = b.key")
        .bind::<SqlUuid, _>(tenant)
        .bind::<Array<SqlUuid>, _>(vec![kept])
        .prepared()
        .execute(conn)
        .await
        .map_err(DbError::from)?;
    }
    Ok(kept)
}
