//! The step of an erasure that forgets the contact: after it nobody knows any more who it was.

use chrono::{DateTime, Utc};
use diesel::sql_types::{Array, BigInt, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};

use super::erasure_steps::{PIECE, Running};
use super::person::Person;
use crate::db::{DbError, Prepare, sql};

/// Rows under the person's keys, of which there may be many: some of them at a time.
const BY_KEY: [&str; 4] = [
    "DELETE FROM message_reactions WHERE ctid = ANY(ARRAY( \
     SELECT ctid FROM message_reactions WHERE tenant_id = $1 AND person = ANY($2) LIMIT $3))",
    "DELETE FROM poll_votes WHERE ctid = ANY(ARRAY(SELECT ctid FROM poll_votes WHERE tenant_id = $1 AND person = ANY($2) LIMIT $3))",
    "DELETE FROM conversation_participants WHERE ctid = ANY(ARRAY( \
     SELECT ctid FROM conversation_participants WHERE tenant_id = $1 AND person = ANY($2) LIMIT $3))",
    "DELETE FROM contact_links WHERE ctid = ANY(ARRAY( \
     SELECT ctid FROM contact_links WHERE tenant_id = $1 AND (lid = ANY($2) OR phone = ANY($2)) LIMIT $3))",
];

/// What sending remembers of the person's chats, and what came of them and was not applied yet.
const BY_ID: [&str; 3] = [
    "DELETE FROM known_chats WHERE session_id IN (SELECT id FROM waha_sessions WHERE tenant_id = $1) AND tenant_id = $1 \
     AND chat_id = ANY($2)",
    "DELETE FROM sender_pool_recipients WHERE pool_id IN (SELECT id FROM sender_pools WHERE tenant_id = $1) AND tenant_id = $1 \
     AND chat_id = ANY($2)",
    "DELETE FROM number_checks WHERE tenant_id = $1 AND chat_id = ANY($2)",
];

const BY_PATTERN: [&str; 2] = [
    "DELETE FROM inbound_dead_letters WHERE tenant_id = $1 AND body ~ $2",
    "DELETE FROM spool WHERE tenant_id = $1 AND body ~ $2",
];

const CONTACT: [&str; 4] = [
    "UPDATE contact_merges SET keys = '{}', kept = '{}', merged = '{}' \
     WHERE tenant_id = $1 AND (kept_id = ANY($2) OR merged_id = ANY($2)) AND $3::text <> '' AND $4::timestamptz IS NOT NULL",
    "UPDATE conversations SET chat_id = $3, name = NULL, deleted_at = coalesce(deleted_at, $4), is_active = false, \
            version = version + 1, updated_at = $4 \
     WHERE tenant_id = $1 AND contact_id = ANY($2)",
    "DELETE FROM contact_ids WHERE tenant_id = $1 AND contact_id = ANY($2) AND $3::text <> '' AND $4::timestamptz IS NOT NULL",
    "UPDATE contacts SET phone = NULL, lid = NULL, name = NULL, push_name = NULL, tags = '{}', notes = NULL, last_seen_at = NULL, \
            erased_at = $4, deleted_at = coalesce(deleted_at, $4), version = version + 1, updated_at = $4 \
     WHERE tenant_id = $1 AND id = ANY($2) AND $3::text <> ''",
];

/// Forgets the contact; false when there is so much that another step has to follow.
pub(super) async fn forget(
    conn: &mut AsyncPgConnection,
    now: DateTime<Utc>,
    running: &Running,
    person: &Person,
) -> Result<bool, DbError> {
    let tenant = running.tenant_id;
    for text in BY_KEY {
        let removed = sql(text)
            .bind::<SqlUuid, _>(tenant)
            .bind::<Array<Text>, _>(&person.keys)
            .bind::<BigInt, _>(PIECE)
            .prepared()
            .execute(conn)
            .await?;
        if i64::try_from(removed).is_ok_and(|count| count >= PIECE) {
            return Ok(false);
        }
    }
    for text in BY_ID {
        sql(text).bind::<SqlUuid, _>(tenant).bind::<Array<Text>, _>(&person.ids).prepared().execute(conn).await?;
    }
    sql("DELETE FROM number_checks WHERE tenant_id = $1 AND phone = ANY($2)")
        .bind::<SqlUuid, _>(tenant)
        .bind::<Array<Text>, _>(&person.phones)
        .prepared()
        .execute(conn)
        .await?;
    for text in BY_PATTERN {
        sql(text)
            .bind::<SqlUuid, _>(tenant)
            .bind::<Nullable<Text>, _>(&person.pattern)
            .prepared()
            .execute(conn)
            .await?;
    }
    // Contacts and conversations last, as everywhere.
    for text in CONTACT {
        sql(text)
            .bind::<SqlUuid, _>(tenant)
            .bind::<Array<SqlUuid>, _>(&person.contacts)
            .bind::<Text, _>(running.nobody())
            .bind::<Timestamptz, _>(now)
            .prepared()
            .execute(conn)
            .await?;
    }
    Ok(true)
}
