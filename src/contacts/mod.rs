//! The people a tenant is in touch with: one contact each, whatever ids they go by.
//!
//! Guarantee: ids that were told to be one person's belong to one contact, in whatever order people were seen and links told. A link
//! that is told before either of its ids was seen is kept (`contact_links`) and counts from the first sight on. Whoever writes here
//! holds the tenant's [`lock`], so that two who learn of one person make one contact. A repeat finds everything as it is and writes
//! nothing.

mod combine;
mod links;
mod merge;
pub mod queries;
mod resolve;
mod undo;
pub mod view;

use std::collections::HashMap;

use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Text, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};

use crate::db::{DbError, Prepare, sql};
use crate::domain::ids::{ContactId, TenantId};

pub use links::{Link, link, link_all};
pub use merge::{MergeDenied, merge_by_tenant};
pub use resolve::{Sighting, resolve};
pub use undo::{UndoDenied, undo};

/// What told that two ids are one person.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Because {
    /// A message that came under one id and named the other.
    Message,
    /// WAHA, when it was asked for the hidden ids it knows.
    Lookup,
    /// WAHA's answer to a send.
    Send,
    /// The tenant.
    Tenant,
}

impl Because {
    /// As the database and the API say it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Message => "message",
            Self::Lookup => "lookup",
            Self::Send => "send",
            Self::Tenant => "tenant",
        }
    }
}

/// Holds the contacts and conversations of `tenant` until the transaction ends. Last of all locks: who holds it must not go on
/// to lock messages, lanes or sessions.
///
/// # Errors
/// When the database does not answer.
pub async fn lock(conn: &mut AsyncPgConnection, tenant: TenantId) -> Result<(), DbError> {
    lock_all(conn, [tenant]).await
}

/// As [`lock`], for several tenants, in an order that is the same for everybody.
///
/// # Errors
/// When the database does not answer.
pub async fn lock_all(
    conn: &mut AsyncPgConnection,
    tenants: impl IntoIterator<Item = TenantId>,
) -> Result<(), DbError> {
    let mut tenants: Vec<TenantId> = tenants.into_iter().collect();
    tenants.sort_unstable();
    tenants.dedup();
    if tenants.is_empty() {
        return Ok(());
    }
    sql("SELECT pg_advisory_xact_lock(k) FROM (SELECT DISTINCT hashtextextended('contacts ' || t::text, 0) AS k \
         FROM unnest($1) t ORDER BY k) keys")
    .bind::<Array<SqlUuid>, _>(tenants)
    .prepared()
    .execute(conn)
    .await?;
    Ok(())
}

/// The key that each person of `keys` (see [`crate::domain::person::key`]) is known by: that of their phone number, where it is
/// known, else their hidden id's. People who are not known are absent.
///
/// # Errors
/// When the database does not answer.
pub async fn canonical_keys(
    conn: &mut AsyncPgConnection,
    keys: &[(TenantId, String)],
) -> Result<HashMap<(TenantId, String), String>, DbError> {
    #[derive(QueryableByName)]
    struct Known {
        #[diesel(sql_type = SqlUuid)]
        tenant_id: TenantId,
        #[diesel(sql_type = Text)]
        key: String,
        #[diesel(sql_type = Text)]
        canonical: String,
    }
    if keys.is_empty() {
        return Ok(HashMap::new());
    }
    // The contact alone, which has one tenant, leads to its keys: no plan may take the way by all keys of the tenant.
    let known: Vec<Known> = sql("SELECT i.tenant_id, i.key, \
           (SELECT o.key FROM contact_ids o WHERE o.contact_id = i.contact_id \
            ORDER BY o.key LIKE '%@lid', o.key COLLATE \"C\" LIMIT 1) AS canonical \
         FROM unnest($1, $2) AS w (tenant_id, key) CROSS JOIN LATERAL ( \
             SELECT * FROM contact_ids i WHERE i.tenant_id = w.tenant_id AND i.key = w.key OFFSET 0) i")
    .bind::<Array<SqlUuid>, _>(keys.iter().map(|(tenant, _)| *tenant).collect::<Vec<_>>())
    .bind::<Array<Text>, _>(keys.iter().map(|(_, key)| key.as_str()).collect::<Vec<_>>())
    .prepared()
    .load(conn)
    .await?;
    Ok(known.into_iter().map(|row| ((row.tenant_id, row.key), row.canonical)).collect())
}

/// The contact that `id` is by now: itself, or the one that it was merged into. `None` if the tenant has no such contact.
///
/// # Errors
/// When the database does not answer.
pub async fn current(
    conn: &mut AsyncPgConnection,
    tenant: TenantId,
    id: ContactId,
) -> Result<Option<ContactId>, DbError> {
    #[derive(QueryableByName)]
    struct Found {
        #[diesel(sql_type = SqlUuid)]
        id: ContactId,
        #[expect(dead_code, reason = "the order of the rows, which diesel wants to see")]
        #[diesel(sql_type = BigInt)]
        step: i64,
    }
    // The chain has an end: only who is merged into nobody is merged.
    let found: Vec<Found> = sql("WITH RECURSIVE chain AS ( \
             SELECT id, merged_into, deleted_at, 1::bigint AS step FROM contacts WHERE tenant_id = $1 AND id = $2 \
             UNION ALL \
             SELECT c.id, c.merged_into, c.deleted_at, chain.step + 1 FROM chain \
             JOIN contacts c ON c.tenant_id = $1 AND c.id = chain.merged_into WHERE chain.step < 1000) \
         SELECT id, step FROM chain WHERE merged_into IS NULL AND deleted_at IS NULL ORDER BY step DESC LIMIT 1")
    .bind::<SqlUuid, _>(tenant)
    .bind::<SqlUuid, _>(id)
    .prepared()
    .load(conn)
    .await?;
    Ok(found.into_iter().next().map(|found| found.id))
}

/// Keeps what is told of people (reactions, votes, memberships) under the keys that they are known by now, for the `contacts`
/// whose keys have changed. Of two facts that become one, the later told holds.
async fn move_facts(conn: &mut AsyncPgConnection, tenant: TenantId, contacts: &[ContactId]) -> Result<(), DbError> {
    for text in MOVE_FACTS {
        sql(text).bind::<SqlUuid, _>(tenant).bind::<Array<SqlUuid>, _>(contacts).prepared().execute(conn).await?;
    }
    Ok(())
}

macro_rules! renamed {
    () => {
        "WITH names AS MATERIALIZED ( \
             SELECT i.key, first_value(i.key) OVER (PARTITION BY i.contact_id ORDER BY i.key LIKE '%@lid', i.key COLLATE \"C\") AS canonical \
             FROM contact_ids i WHERE i.tenant_id = $1 AND i.contact_id = ANY($2)), \
         renamed AS MATERIALIZED (SELECT key, canonical FROM names WHERE key <> canonical) "
    };
}

// What is moved is taken out and put in again, so that two of one person meet in the key. Of a conflict within the statement
// itself the later one is chosen beforehand.
const MOVE_FACTS: [&str; 3] = [
    concat!(
        renamed!(),
        ", moved AS (DELETE FROM message_reactions r USING renamed n WHERE r.tenant_id = $1 AND r.person = n.key RETURNING r.*, n.canonical) \
         INSERT INTO message_reactions AS r (tenant_id, session_id, waha_message_id, person, emoji, reacted_at, reported_at, created_at, updated_at) \
         SELECT DISTINCT ON (session_id, waha_message_id, canonical) tenant_id, session_id, waha_message_id, canonical, emoji, reacted_at, \
                reported_at, created_at, updated_at \
         FROM moved ORDER BY session_id, waha_message_id, canonical, reacted_at DESC, reported_at DESC \
         ON CONFLICT (session_id, waha_message_id, person) DO UPDATE SET \
             emoji = excluded.emoji, reacted_at = excluded.reacted_at, reported_at = excluded.reported_at, updated_at = excluded.updated_at \
         WHERE (r.reacted_at, r.reported_at) < (excluded.reacted_at, excluded.reported_at)"
    ),
    concat!(
        renamed!(),
        ", moved AS (DELETE FROM poll_votes r USING renamed n WHERE r.tenant_id = $1 AND r.person = n.key RETURNING r.*, n.canonical) \
         INSERT INTO poll_votes AS r (tenant_id, session_id, waha_message_id, person, options, voted_at, reported_at, created_at, updated_at) \
         SELECT DISTINCT ON (session_id, waha_message_id, canonical) tenant_id, session_id, waha_message_id, canonical, options, voted_at, \
                reported_at, created_at, updated_at \
         FROM moved ORDER BY session_id, waha_message_id, canonical, voted_at DESC, reported_at DESC \
         ON CONFLICT (session_id, waha_message_id, person) DO UPDATE SET \
             options = excluded.options, voted_at = excluded.voted_at, reported_at = excluded.reported_at, updated_at = excluded.updated_at \
         WHERE (r.voted_at, r.reported_at) < (excluded.voted_at, excluded.reported_at)"
    ),
    concat!(
        renamed!(),
        ", moved AS (DELETE FROM conversation_participants p USING renamed n WHERE p.tenant_id = $1 AND p.person = n.key RETURNING p.*, n.canonical) \
         INSERT INTO conversation_participants AS p (tenant_id, session_id, chat_id, person, wa_id, role, told_at, left_at, created_at, updated_at) \
         SELECT DISTINCT ON (session_id, chat_id, canonical) tenant_id, session_id, chat_id, canonical, wa_id, role, told_at, left_at, \
                created_at, updated_at \
         FROM moved ORDER BY session_id, chat_id, canonical, told_at DESC \
         ON CONFLICT (session_id, chat_id, person) DO UPDATE SET \
             wa_id = excluded.wa_id, role = excluded.role, told_at = excluded.told_at, left_at = excluded.left_at, updated_at = excluded.updated_at \
         WHERE p.told_at < excluded.told_at"
    ),
];
