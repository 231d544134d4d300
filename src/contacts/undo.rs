//! Taking a merge back.

use chrono::{DateTime, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{Array, Jsonb, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use serde::Deserialize;
use serde_json::Value;

use super::combine::{self, Card};
use super::{current, lock, resolve};
use crate::conversations;
use crate::db::{DbError, Prepare, sql};
use crate::domain::chance::Chance;
use crate::domain::ids::{ContactId, ContactMergeId, TenantId};

/// Why a merge was not taken back.
#[derive(Debug, thiserror::Error)]
pub enum UndoDenied {
    /// This tenant has no such contact, or the contact no such merge.
    #[error("no such merge")]
    NotFound,
    /// The contacts are not there any more to be told apart.
    #[error("{0}")]
    NotNow(&'static str),
    /// The database did not.
    #[error(transparent)]
    Database(#[from] DbError),
}

#[derive(QueryableByName)]
struct Merge {
    #[diesel(sql_type = SqlUuid)]
    kept_id: ContactId,
    #[diesel(sql_type = SqlUuid)]
    merged_id: ContactId,
    #[diesel(sql_type = Array<Text>)]
    keys: Vec<String>,
    #[diesel(sql_type = Jsonb)]
    kept: Value,
    #[diesel(sql_type = Jsonb)]
    merged: Value,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    undone_at: Option<DateTime<Utc>>,
}

/// Takes the merge `id` of `contact` back, and answers the contact that is a person of its own again. Its ids, names, tags and notes
/// are its own again, and its messages stand in conversations of its own; what was changed since then stays with the kept one, and so
/// do reactions and votes. Nobody's word but the tenant's makes the two one person after that. A repeat changes nothing. For the
/// system role.
///
/// # Errors
/// [`UndoDenied`].
pub async fn undo(
    conn: &mut AsyncPgConnection,
    chance: &Chance,
    now: DateTime<Utc>,
    tenant: TenantId,
    contact: ContactId,
    id: ContactMergeId,
) -> Result<ContactId, UndoDenied> {
    lock(conn, tenant).await?;
    let root = current(conn, tenant, contact).await?.ok_or(UndoDenied::NotFound)?;
    let merges: Vec<Merge> = sql("SELECT kept_id, merged_id, keys, kept, merged, undone_at FROM contact_merges \
         WHERE tenant_id = $1 AND id = $2")
    .bind::<SqlUuid, _>(tenant)
    .bind::<SqlUuid, _>(id)
    .prepared()
    .load(conn)
    .await
    .map_err(DbError::from)?;
    let merge = merges.into_iter().next().ok_or(UndoDenied::NotFound)?;
    if current(conn, tenant, merge.kept_id).await? != Some(root) {
        return Err(UndoDenied::NotFound);
    }
    if merge.undone_at.is_some() {
        return Ok(merge.merged_id);
    }
    let cards = combine::cards(conn, tenant, &[root, merge.merged_id]).await?;
    let find = |id: ContactId| cards.iter().find(|card| card.id == id);
    let read = |json: &Value| Card::deserialize(json).ok();
    let (Some(kept_now), Some(merged_now)) = (find(root), find(merge.merged_id)) else {
        return Err(UndoDenied::NotNow("One of the contacts is not there any more"));
    };
    let (Some(kept), Some(merged)) = (read(&merge.kept), read(&merge.merged)) else {
        return Err(UndoDenied::NotNow("What the contacts were before the merge is not known any more"));
    };
    if merged_now.erased_at.is_some() || kept_now.erased_at.is_some() {
        return Err(UndoDenied::NotNow("One of the contacts was erased"));
    }
    if merged_now.merged_into != Some(merge.kept_id) {
        return Err(UndoDenied::NotNow("The contact is a part of another one by now"));
    }
    // The kept contact may have become a part of a third one, whose own doings are its own.
    if root == merge.kept_id {
        combine::write(conn, now, tenant, &kept.without(&kept.with(&merged), kept_now)).await?;
    }
    combine::write(conn, now, tenant, &Card { merged_into: None, ..merged }).await?;
    give_back(conn, now, tenant, id, root, &merge).await?;
    resolve::refresh(conn, now, tenant, &[root, merge.merged_id]).await?;
    conversations::part(conn, chance, now, tenant, root, merge.merged_id).await?;
    Ok(merge.merged_id)
}

/// Gives the merged contact its ids back, and forbids to link them to the kept one's.
async fn give_back(
    conn: &mut AsyncPgConnection,
    now: DateTime<Utc>,
    tenant: TenantId,
    id: ContactMergeId,
    root: ContactId,
    merge: &Merge,
) -> Result<(), DbError> {
    sql("UPDATE contact_ids SET contact_id = $3 WHERE tenant_id = $1 AND contact_id = $2 AND key = ANY($4)")
        .bind::<SqlUuid, _>(tenant)
        .bind::<SqlUuid, _>(root)
        .bind::<SqlUuid, _>(merge.merged_id)
        .bind::<Array<Text>, _>(&merge.keys)
        .prepared()
        .execute(conn)
        .await?;
    sql("INSERT INTO contact_links AS l (tenant_id, lid, phone, because, denied_at, created_at) \
         SELECT $1, CASE WHEN a.key LIKE '%@lid' THEN a.key ELSE b.key END, CASE WHEN a.key LIKE '%@lid' THEN b.key ELSE a.key END, \
                'tenant', $4, $4 \
         FROM contact_ids a, contact_ids b \
         WHERE a.tenant_id = $1 AND a.contact_id = $2 AND b.tenant_id = $1 AND b.contact_id = $3 \
           AND a.key LIKE '%@lid' <> (b.key LIKE '%@lid') \
         ON CONFLICT (tenant_id, lid, phone) DO UPDATE SET denied_at = excluded.denied_at")
    .bind::<SqlUuid, _>(tenant)
    .bind::<SqlUuid, _>(root)
    .bind::<SqlUuid, _>(merge.merged_id)
    .bind::<Timestamptz, _>(now)
    .prepared()
    .execute(conn)
    .await?;
    sql("UPDATE contact_merges SET undone_at = $3 WHERE tenant_id = $1 AND id = $2")
        .bind::<SqlUuid, _>(tenant)
        .bind::<SqlUuid, _>(id)
        .bind::<Timestamptz, _>(now)
        .prepared()
        .execute(conn)
        .await?;
    Ok(())
}
