//! Which hidden id is whose number.

use std::collections::HashSet;

use chrono::{DateTime, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{Array, Bool, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};

use super::resolve::{Sighting, resolve};
use super::{Because, lock_all};
use crate::db::{DbError, Prepare, sql};
use crate::domain::chance::Chance;
use crate::domain::ids::TenantId;
use crate::domain::person;

/// A hidden id and a number of one person, as keys.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Pair {
    pub tenant: TenantId,
    pub lid: String,
    pub phone: String,
}

impl Pair {
    /// The pair of two keys; `None` unless one is a hidden id's and the other a number's.
    pub(super) fn of(tenant: TenantId, one: &str, other: &str) -> Option<Self> {
        let (lid, phone) = match (one.ends_with("@lid"), other.ends_with("@lid")) {
            (true, false) => (one, other),
            (false, true) => (other, one),
            _ => return None,
        };
        Some(Self { tenant, lid: lid.to_owned(), phone: phone.to_owned() })
    }
}

/// Two ids that were told to be one person's.
#[derive(Clone, Copy, Debug)]
pub struct Link<'a> {
    /// Whose contacts.
    pub tenant: TenantId,
    /// The hidden id, `…@lid`.
    pub lid: &'a str,
    /// The number's id, `…@c.us`.
    pub phone_id: &'a str,
}

/// Notes that `lid` and `phone_id` are one person. Two contacts become one; one learns the other id; of people nobody has seen it is
/// remembered. A repeat changes nothing. Runs in a transaction of the system role, and locks the tenant's contacts: call it when
/// the locks on messages are taken already, or in a transaction of its own. Ids of groups and the like are passed over.
///
/// # Errors
/// When the database refuses; the transaction then must not be committed.
pub async fn link(
    conn: &mut AsyncPgConnection,
    chance: &Chance,
    now: DateTime<Utc>,
    tenant: TenantId,
    lid: &str,
    phone_id: &str,
    because: Because,
) -> Result<(), DbError> {
    link_all(conn, chance, now, &[Link { tenant, lid, phone_id }], because).await
}

/// As [`link`], for many at once.
///
/// # Errors
/// See [`link`].
pub async fn link_all(
    conn: &mut AsyncPgConnection,
    chance: &Chance,
    now: DateTime<Utc>,
    told: &[Link<'_>],
    because: Because,
) -> Result<(), DbError> {
    let mut pairs: Vec<Pair> = told
        .iter()
        .filter_map(|link| Pair::of(link.tenant, &person::key(link.lid)?, &person::key(link.phone_id)?))
        .collect();
    pairs.sort_unstable();
    pairs.dedup();
    if pairs.is_empty() {
        return Ok(());
    }
    lock_all(conn, pairs.iter().map(|pair| pair.tenant)).await?;
    let news = remember(conn, now, because, &pairs).await?.fresh;
    // Nobody becomes a contact by being linked alone.
    let seen = seen(conn, &news).await?;
    let sightings: Vec<Sighting<'_>> = seen
        .iter()
        .map(|pair| Sighting {
            tenant: pair.tenant,
            id: &pair.lid,
            other: Some(&pair.phone),
            name: None,
            wrote_at: None,
        })
        .collect();
    if !sightings.is_empty() {
        resolve(conn, chance, now, because, &sightings).await?;
    }
    Ok(())
}

/// What came of remembering pairs.
#[derive(Debug, Default)]
pub(super) struct Remembered {
    /// Nobody had told of these before.
    pub fresh: Vec<Pair>,
    /// Of these the tenant said that they are two people.
    pub denied: HashSet<Pair>,
}

#[derive(QueryableByName)]
struct PairRow {
    #[diesel(sql_type = SqlUuid)]
    tenant_id: TenantId,
    #[diesel(sql_type = Text)]
    lid: String,
    #[diesel(sql_type = Text)]
    phone: String,
    #[diesel(sql_type = Bool)]
    fresh: bool,
}

pub(super) async fn remember(
    conn: &mut AsyncPgConnection,
    now: DateTime<Utc>,
    because: Because,
    pairs: &[Pair],
) -> Result<Remembered, DbError> {
    if pairs.is_empty() {
        return Ok(Remembered::default());
    }
    // The second part sees the table as it was before the first.
    let rows: Vec<PairRow> = sql("WITH told AS (SELECT * FROM unnest($1, $2, $3) AS t (tenant_id, lid, phone)), \
         made AS ( \
             INSERT INTO contact_links (tenant_id, lid, phone, because, created_at) \
             SELECT tenant_id, lid, phone, $4, $5 FROM told ORDER BY tenant_id, lid, phone \
             ON CONFLICT DO NOTHING RETURNING tenant_id, lid, phone) \
         SELECT tenant_id, lid, phone, true AS fresh FROM made \
         UNION ALL \
         SELECT tenant_id, lid, phone, false FROM told t WHERE EXISTS ( \
             SELECT FROM contact_links l WHERE l.tenant_id = t.tenant_id AND l.lid = t.lid AND l.phone = t.phone \
                AND l.denied_at IS NOT NULL OFFSET 0)")
    .bind::<Array<SqlUuid>, _>(pairs.iter().map(|pair| pair.tenant).collect::<Vec<_>>())
    .bind::<Array<Text>, _>(pairs.iter().map(|pair| pair.lid.as_str()).collect::<Vec<_>>())
    .bind::<Array<Text>, _>(pairs.iter().map(|pair| pair.phone.as_str()).collect::<Vec<_>>())
    .bind::<Text, _>(because.as_str())
    .bind::<Timestamptz, _>(now)
    .prepared()
    .load(conn)
    .await?;
    let mut remembered = Remembered::default();
    for row in rows {
        let pair = Pair { tenant: row.tenant_id, lid: row.lid, phone: row.phone };
        if row.fresh {
            remembered.fresh.push(pair);
        } else {
            remembered.denied.insert(pair);
        }
    }
    Ok(remembered)
}

/// Those of `pairs` of which somebody is a contact, be it by way of other links.
async fn seen(conn: &mut AsyncPgConnection, pairs: &[Pair]) -> Result<Vec<Pair>, DbError> {
    if pairs.is_empty() {
        return Ok(Vec::new());
    }
    let keys: Vec<(TenantId, String)> = pairs.iter().map(|pair| (pair.tenant, pair.lid.clone())).collect();
    // Both ends of a pair reach the same keys.
    let mut reached = reachable(conn, &keys).await?;
    reached.extend(pairs.iter().map(|pair| Reached {
        tenant_id: pair.tenant,
        seed: pair.lid.clone(),
        key: pair.lid.clone(),
    }));
    #[derive(QueryableByName)]
    struct Seed {
        #[diesel(sql_type = SqlUuid)]
        tenant_id: TenantId,
        #[diesel(sql_type = Text)]
        seed: String,
    }
    let known: Vec<Seed> =
        sql("SELECT DISTINCT w.tenant_id, w.seed FROM unnest($1, $2, $3) AS w (tenant_id, seed, key) \
         WHERE EXISTS (SELECT FROM contact_ids i WHERE i.tenant_id = w.tenant_id AND i.key = w.key OFFSET 0)")
        .bind::<Array<SqlUuid>, _>(reached.iter().map(|reached| reached.tenant_id).collect::<Vec<_>>())
        .bind::<Array<Text>, _>(reached.iter().map(|reached| reached.seed.as_str()).collect::<Vec<_>>())
        .bind::<Array<Text>, _>(reached.iter().map(|reached| reached.key.as_str()).collect::<Vec<_>>())
        .prepared()
        .load(conn)
        .await?;
    let known: HashSet<(TenantId, String)> = known.into_iter().map(|row| (row.tenant_id, row.seed)).collect();
    Ok(pairs.iter().filter(|pair| known.contains(&(pair.tenant, pair.lid.clone()))).cloned().collect())
}

/// A key that links lead to.
#[derive(QueryableByName)]
pub(super) struct Reached {
    #[diesel(sql_type = SqlUuid)]
    pub tenant_id: TenantId,
    /// Where the way began.
    #[diesel(sql_type = Text)]
    pub seed: String,
    #[diesel(sql_type = Text)]
    pub key: String,
}

/// The keys that links lead to from each of `keys`, however many links away.
pub(super) async fn reachable(
    conn: &mut AsyncPgConnection,
    keys: &[(TenantId, String)],
) -> Result<Vec<Reached>, DbError> {
    Ok(sql("WITH RECURSIVE way AS ( \
             SELECT t AS tenant_id, k AS seed, k AS key FROM unnest($1, $2) AS w (t, k) \
             UNION \
             SELECT way.tenant_id, way.seed, next.key FROM way CROSS JOIN LATERAL ( \
                 SELECT phone AS key FROM contact_links WHERE tenant_id = way.tenant_id AND lid = way.key AND denied_at IS NULL \
                 UNION ALL \
                 SELECT lid FROM contact_links WHERE tenant_id = way.tenant_id AND phone = way.key AND denied_at IS NULL) next) \
         SELECT tenant_id, seed, key FROM way WHERE key <> seed")
    .bind::<Array<SqlUuid>, _>(keys.iter().map(|(tenant, _)| *tenant).collect::<Vec<_>>())
    .bind::<Array<Text>, _>(keys.iter().map(|(_, key)| key.as_str()).collect::<Vec<_>>())
    .prepared()
    .load(conn)
    .await?)
}
