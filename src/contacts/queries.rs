//! Reading contacts, always as one tenant; and what a tenant writes of them.

use chrono::{DateTime, Utc};
use diesel::QueryableByName;
use diesel::pg::Pg;
use diesel::sql_types::{Array, BigInt, Bool, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use uuid::Uuid;

use super::current;
use super::view::{Contact, ContactDetails};
use crate::db::{DbError, Prepare, TenantConn, sql};
use crate::domain::ids::ContactId;

/// Which contacts to list; what is absent does not narrow.
#[derive(Clone, Default)]
pub struct Filter {
    /// With this key of a number or hidden id.
    pub key: Option<String>,
    /// With this tag.
    pub tag: Option<String>,
    /// With a name that begins so, in whatever case.
    pub prefix: Option<String>,
}

macro_rules! select {
    () => {
        "SELECT c.id, c.tenant_id, c.phone, c.lid, c.name, c.push_name, c.tags, c.notes, c.last_seen_at, c.version, c.created_at, \
                c.updated_at \
         FROM contacts c WHERE c.tenant_id = $1 AND c.merged_into IS NULL AND c.deleted_at IS NULL"
    };
}

/// The text of [`list`] with these filters, and with or without a place to go on from.
#[must_use]
pub fn list_text(filter: &Filter, after: bool) -> String {
    let mut text = select!().to_owned();
    let mut place = 1;
    let mut next = || {
        place += 1;
        place
    };
    if filter.key.is_some() {
        let key = next();
        text.push_str(&format!(
            " AND c.id = (SELECT i.contact_id FROM contact_ids i WHERE i.tenant_id = $1 AND i.key = ${key})"
        ));
    }
    if filter.tag.is_some() {
        text.push_str(&format!(" AND c.tags @> ARRAY[${}]", next()));
    }
    if filter.prefix.is_some() {
        // As bounds, which an index serves whatever they are.
        let (from, until) = (next(), next());
        text.push_str(&format!(
            " AND c.id IN (SELECT n.id FROM contacts n WHERE n.tenant_id = $1 AND n.merged_into IS NULL AND n.deleted_at IS NULL \
                  AND n.name_key COLLATE \"C\" >= ${from} AND n.name_key COLLATE \"C\" < ${until} \
                UNION ALL SELECT n.id FROM contacts n WHERE n.tenant_id = $1 AND n.merged_into IS NULL AND n.deleted_at IS NULL \
                  AND n.push_name_key COLLATE \"C\" >= ${from} AND n.push_name_key COLLATE \"C\" < ${until})"
        ));
    }
    if after {
        text.push_str(&format!(" AND (c.created_at, c.id) < (${}, ${})", next(), next()));
    }
    text.push_str(&format!(" ORDER BY c.created_at DESC, c.id DESC LIMIT ${}", next()));
    text
}

/// Contacts that pass `filter`, newest first, from behind `after` on.
///
/// # Errors
/// When the database does not answer.
pub async fn list(
    conn: &mut TenantConn,
    filter: &Filter,
    after: Option<(DateTime<Utc>, Uuid)>,
    limit: i64,
) -> Result<Vec<Contact>, DbError> {
    #[derive(QueryableByName)]
    struct Lower {
        #[diesel(sql_type = Text)]
        text: String,
    }
    // The text varies with the filters in use, so that each combination gets the plan of its index.
    let tenant = conn.tenant();
    let mut query = diesel::sql_query(list_text(filter, after.is_some())).into_boxed::<Pg>().bind::<SqlUuid, _>(tenant);
    if let Some(key) = &filter.key {
        query = query.bind::<Text, _>(key.clone());
    }
    if let Some(tag) = &filter.tag {
        query = query.bind::<Text, _>(tag.clone());
    }
    if let Some(prefix) = &filter.prefix {
        // In the database's own lower case, as the names are kept.
        let lower: Vec<Lower> =
            sql("SELECT lower($1) AS text").bind::<Text, _>(prefix).prepared().load(&mut **conn).await?;
        let from = lower.into_iter().next().map(|row| row.text).unwrap_or_default();
        let until = format!("{from}\u{10ffff}");
        query = query.bind::<Text, _>(from).bind::<Text, _>(until);
    }
    if let Some((at, id)) = after {
        query = query.bind::<Timestamptz, _>(at).bind::<SqlUuid, _>(id);
    }
    Ok(query.bind::<BigInt, _>(limit).load(&mut **conn).await?)
}

/// The contact `id`, or the one it was merged into, with everything that is known of it.
///
/// # Errors
/// When the database does not answer.
pub async fn find(conn: &mut TenantConn, id: ContactId) -> Result<Option<ContactDetails>, DbError> {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = Text)]
        wa_id: String,
    }
    let tenant = conn.tenant();
    let Some(id) = current(conn, tenant, id).await? else { return Ok(None) };
    let found: Vec<Contact> = sql(concat!(select!(), " AND c.id = $2"))
        .bind::<SqlUuid, _>(tenant)
        .bind::<SqlUuid, _>(id)
        .prepared()
        .load(&mut **conn)
        .await?;
    let Some(contact) = found.into_iter().next() else { return Ok(None) };
    let wa_ids: Vec<Row> = sql("SELECT wa_id FROM contact_ids WHERE tenant_id = $1 AND contact_id = $2 \
         ORDER BY key LIKE '%@lid', key COLLATE \"C\"")
    .bind::<SqlUuid, _>(tenant)
    .bind::<SqlUuid, _>(id)
    .prepared()
    .load(&mut **conn)
    .await?;
    let chats = sql("SELECT session_id, id AS conversation_id, chat_id FROM conversations \
         WHERE tenant_id = $1 AND contact_id = $2 AND deleted_at IS NULL ORDER BY last_message_at DESC, id DESC")
    .bind::<SqlUuid, _>(tenant)
    .bind::<SqlUuid, _>(id)
    .prepared()
    .load(&mut **conn)
    .await?;
    let merges = sql("SELECT id, merged_id AS contact_id, because, at, undone_at FROM contact_merges \
         WHERE tenant_id = $1 AND kept_id = $2 ORDER BY at DESC, id DESC")
    .bind::<SqlUuid, _>(tenant)
    .bind::<SqlUuid, _>(id)
    .prepared()
    .load(&mut **conn)
    .await?;
    Ok(Some(ContactDetails { contact, wa_ids: wa_ids.into_iter().map(|row| row.wa_id).collect(), chats, merges }))
}

/// What is to change of a contact; what is absent stays.
#[derive(Clone, Default)]
pub struct Change {
    /// The tenant's own name for the person, or none.
    pub name: Option<Option<String>>,
    /// In place of the old ones.
    pub tags: Option<Vec<String>>,
    /// In place of the old ones.
    pub notes: Option<Option<String>>,
}

/// Changes the contact `id`, which must not be merged into another. The caller holds the lock.
///
/// # Errors
/// When the database does not answer.
pub async fn change(conn: &mut TenantConn, now: DateTime<Utc>, id: ContactId, change: &Change) -> Result<(), DbError> {
    let tenant = conn.tenant();
    sql("UPDATE contacts SET name = CASE WHEN $3 THEN $4 ELSE name END, tags = coalesce($5, tags), \
                notes = CASE WHEN $6 THEN $7 ELSE notes END, version = version + 1, updated_at = $8 \
         WHERE tenant_id = $1 AND id = $2 AND (name, tags, notes) IS DISTINCT FROM \
               (CASE WHEN $3 THEN $4 ELSE name END, coalesce($5, tags), CASE WHEN $6 THEN $7 ELSE notes END)")
    .bind::<SqlUuid, _>(tenant)
    .bind::<SqlUuid, _>(id)
    .bind::<Bool, _>(change.name.is_some())
    .bind::<Nullable<Text>, _>(change.name.clone().flatten())
    .bind::<Nullable<Array<Text>>, _>(change.tags.clone())
    .bind::<Bool, _>(change.notes.is_some())
    .bind::<Nullable<Text>, _>(change.notes.clone().flatten())
    .bind::<Timestamptz, _>(now)
    .prepared()
    .execute(&mut **conn)
    .await?;
    Ok(())
}
