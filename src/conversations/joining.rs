//! What becomes of conversations when two contacts turn out to be one, and when that is taken back.

use chrono::{DateTime, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{Array, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};

use super::count::{self, Ask, Stats};
use super::write::{self, Row};
use crate::db::{DbError, Prepare, sql};
use crate::domain::chance::Chance;
use crate::domain::ids::{ContactId, ConversationId, SessionId, TenantId};

/// Makes the conversations with `other` conversations with `kept`; two of one session become one. The caller holds the lock.
///
/// # Errors
/// When the database refuses; the transaction then must not be committed.
pub async fn join(
    conn: &mut AsyncPgConnection,
    now: DateTime<Utc>,
    tenant: TenantId,
    kept: ContactId,
    other: ContactId,
) -> Result<(), DbError> {
    let rows = write::with_contacts(conn, tenant, &[kept, other]).await?;
    let (own, theirs): (Vec<Row>, Vec<Row>) = rows.into_iter().partition(|row| row.contact_id == Some(kept));
    let (mut changed, mut gone, mut recount) = (Vec::new(), Vec::new(), Vec::new());
    for mut row in theirs {
        let Some(own) = own.iter().find(|own| own.session_id == row.session_id) else {
            row.contact_id = Some(kept);
            changed.push(row);
            continue;
        };
        gone.push(row.id);
        let latest = if row.last() > own.last() { &row } else { own };
        let mut joined = Row {
            id: own.id,
            contact_id: Some(kept),
            message_count: own.message_count + row.message_count,
            unread_count: own.unread_count.saturating_add(row.unread_count),
            last_read_at: own.last_read_at.max(row.last_read_at),
            is_active: own.is_active || row.is_active,
            ..latest.clone()
        };
        if joined.all_read() {
            joined.unread_count = 0;
        } else if own.last_read_at != row.last_read_at && joined.unread_count > 0 {
            recount.push(joined.id);
        }
        changed.push(joined);
    }
    write::delete(conn, now, tenant, &gone).await?;
    write::update(conn, now, &changed).await?;
    count::unread(conn, now, tenant, &recount).await
}

/// Takes the messages of `restored` out of the conversations with `kept`, into conversations of its own. The ids are given back
/// already; the caller holds the lock.
///
/// # Errors
/// When the database refuses; the transaction then must not be committed.
pub async fn part(
    conn: &mut AsyncPgConnection,
    chance: &Chance,
    now: DateTime<Utc>,
    tenant: TenantId,
    kept: ContactId,
    restored: ContactId,
) -> Result<(), DbError> {
    let rows = write::with_contacts(conn, tenant, &[kept]).await?;
    if rows.is_empty() {
        return Ok(());
    }
    let (own, theirs) = (count::chats_of(conn, tenant, kept).await?, count::chats_of(conn, tenant, restored).await?);
    let ask = |chats| rows.iter().map(move |row| Ask { session: row.session_id, chats, read: row.last_read_at });
    let asked: Vec<Ask<'_>> = ask(own.as_slice()).chain(ask(theirs.as_slice())).collect();
    let counted = count::all(conn, tenant, &asked).await?;
    let (of_kept, of_restored) = counted.split_at(rows.len());
    let earlier = put_away(conn, tenant, restored).await?;
    let (mut changed, mut made) = (Vec::new(), Vec::new());
    for ((row, own), theirs) in rows.into_iter().zip(of_kept).zip(of_restored) {
        let Some(theirs) = theirs else { continue };
        let Some(own) = own else {
            changed.push(Row { contact_id: Some(restored), ..row });
            continue;
        };
        let known = earlier.iter().find(|(session, _)| *session == row.session_id).map(|(_, id)| *id);
        let apart = Row {
            id: known.unwrap_or_else(|| ConversationId::fresh(now, chance)),
            contact_id: Some(restored),
            ..counted_as(&row, theirs)
        };
        if known.is_some() {
            changed.push(apart);
        } else {
            made.push(apart);
        }
        changed.push(counted_as(&row, own));
    }
    write::update(conn, now, &changed).await?;
    write::insert(conn, now, &made).await
}

fn counted_as(row: &Row, stats: &Stats) -> Row {
    Row {
        chat_id: stats.chat_id.clone(),
        last_message_id: Some(stats.last_id),
        last_message_at: Some(stats.last_at),
        last_waha_id: Some(stats.last_waha_id.clone()),
        message_count: stats.messages,
        unread_count: stats.unread,
        ..row.clone()
    }
}

/// The conversations that `contact` had before they became parts of others.
async fn put_away(
    conn: &mut AsyncPgConnection,
    tenant: TenantId,
    contact: ContactId,
) -> Result<Vec<(SessionId, ConversationId)>, DbError> {
    #[derive(QueryableByName)]
    struct Found {
        #[diesel(sql_type = SqlUuid)]
        session_id: SessionId,
        #[diesel(sql_type = SqlUuid)]
        id: ConversationId,
    }
    let rows: Vec<Found> = sql("SELECT DISTINCT ON (session_id) session_id, id FROM conversations \
         WHERE tenant_id = $1 AND contact_id = ANY($2) AND deleted_at IS NOT NULL ORDER BY session_id, deleted_at DESC, id")
    .bind::<SqlUuid, _>(tenant)
    .bind::<Array<SqlUuid>, _>(vec![contact])
    .prepared()
    .load(conn)
    .await?;
    Ok(rows.into_iter().map(|row| (row.session_id, row.id)).collect())
}
