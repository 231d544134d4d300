//! All of a tenant's data, line by line.
//!
//! Guarantee: what was there when an export began, and was not removed meanwhile, is in it once, in an order that is the same
//! every time: kinds one after the other, rows by their ids. It is read page by page as the tenant, so it holds a page in
//! memory and no connection in between, and each line names the place behind it, from where another export goes on.

use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Text, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use uuid::Uuid;

use crate::db::{DbError, Prepare, TenantConn, sql};
use crate::domain::ids::MessageId;
use crate::messages::queries;
use crate::messages::view::Message;

/// Rows of a page.
const PAGE: i64 = 200;

/// What is exported, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The tenant itself.
    Tenant,
    /// Its sessions, without what is secret of them.
    Session,
    /// Its contacts.
    Contact,
    /// Its conversations.
    Conversation,
    /// Its messages, as the API shows them.
    Message,
    /// The steps in the lives of the messages.
    Transition,
    /// The events that are still kept.
    Event,
    /// What is known of its files.
    Media,
}

impl Kind {
    const ALL: [Self; 8] = [
        Self::Tenant,
        Self::Session,
        Self::Contact,
        Self::Conversation,
        Self::Message,
        Self::Transition,
        Self::Event,
        Self::Media,
    ];

    /// The word of `type`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tenant => "tenant",
            Self::Session => "session",
            Self::Contact => "contact",
            Self::Conversation => "conversation",
            Self::Message => "message",
            Self::Transition => "transition",
            Self::Event => "event",
            Self::Media => "media",
        }
    }

    fn next(self) -> Option<Self> {
        let position = Self::ALL.iter().position(|kind| *kind == self)?;
        Self::ALL.get(position + 1).copied()
    }
}

/// A place in an export: behind a row of a kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    kind: Kind,
    /// The row's id.
    id: Uuid,
    /// Where one id is not enough: the place within.
    first: i64,
    second: i64,
}

impl Place {
    /// Before everything.
    pub const START: Self = Self::of(Kind::Tenant);

    const fn of(kind: Kind) -> Self {
        Self { kind, id: Uuid::nil(), first: -1, second: -1 }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = format!("{} {} {} {}", self.kind.as_str(), self.id, self.first, self.second);
        f.write_str(&URL_SAFE_NO_PAD.encode(text))
    }
}

/// Not a place in an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a place in an export")]
pub struct NoPlace;

impl FromStr for Place {
    type Err = NoPlace;

    fn from_str(text: &str) -> Result<Self, NoPlace> {
        let text = URL_SAFE_NO_PAD.decode(text).map_err(|_| NoPlace)?;
        let text = String::from_utf8(text).map_err(|_| NoPlace)?;
        let mut parts = text.split(' ');
        let mut part = || parts.next().ok_or(NoPlace);
        let kind = part()?;
        let kind = Kind::ALL.into_iter().find(|known| known.as_str() == kind).ok_or(NoPlace)?;
        let id = part()?.parse().map_err(|_| NoPlace)?;
        let first = part()?.parse().map_err(|_| NoPlace)?;
        let second = part()?.parse().map_err(|_| NoPlace)?;
        Ok(Self { kind, id, first, second })
    }
}

#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = SqlUuid)]
    id: Uuid,
    #[diesel(sql_type = BigInt)]
    first: i64,
    #[diesel(sql_type = BigInt)]
    second: i64,
    #[diesel(sql_type = Text)]
    data: String,
}

/// Some lines behind a place, and where to go on; `None` when that was all.
#[derive(Debug)]
pub struct Lines {
    /// JSON, a row to a line.
    pub text: String,
    /// Behind the last of them.
    pub next: Option<Place>,
}

/// Reads the lines behind `after`: a page of one kind, which may be empty.
///
/// # Errors
/// When the database does not answer.
pub async fn read(conn: &mut TenantConn, after: &Place) -> Result<Lines, DbError> {
    let rows = match after.kind {
        Kind::Message => messages(conn, after).await?,
        kind => rows(conn, kind, after).await?,
    };
    let mut lines = Lines { text: String::new(), next: None };
    for row in &rows {
        let place = Place { kind: after.kind, id: row.id, first: row.first, second: row.second };
        // Deleted between the two looks at it.
        if !row.data.is_empty() {
            // Line breaks are white space in JSON; within texts they are escaped.
            let data = row.data.replace(['\n', '\r'], " ");
            lines.text.push_str(&format!(
                "{{\"type\":\"{}\",\"cursor\":\"{place}\",\"data\":{data}}}\n",
                after.kind.as_str()
            ));
        }
        lines.next = Some(place);
    }
    if i64::try_from(rows.len()).is_ok_and(|count| count < PAGE) {
        lines.next = after.kind.next().map(Place::of);
    }
    Ok(lines)
}

/// The statement of a kind: the tenant, the id, the place within, how many.
const fn text(kind: Kind) -> &'static str {
    match kind {
        Kind::Tenant => {
            "SELECT id, 0::bigint AS first, 0::bigint AS second, (to_jsonb(t) - 'deleted_at')::text AS data FROM tenants t \
             WHERE id = $1 AND id > $2 AND $3::bigint IS NOT NULL AND $4::bigint IS NOT NULL ORDER BY id LIMIT $5"
        }
        Kind::Session => {
            "SELECT id, 0::bigint AS first, 0::bigint AS second, jsonb_build_object('id', id, 'name', name, 'status', status, \
                    'engine', engine, 'phone', phone, 'push_name', push_name, 'pacing', pacing, 'metadata', metadata, 'labels', labels, \
                    'created_at', created_at, 'updated_at', updated_at, 'deleted_at', deleted_at)::text AS data FROM waha_sessions \
             WHERE tenant_id = $1 AND id > $2 AND $3::bigint IS NOT NULL AND $4::bigint IS NOT NULL ORDER BY id LIMIT $5"
        }
        Kind::Contact => {
            "SELECT id, 0::bigint AS first, 0::bigint AS second, ((to_jsonb(c) - 'tenant_id') || jsonb_build_object('ids', ( \
                    SELECT coalesce(jsonb_agg(i.wa_id ORDER BY i.key), '[]') FROM contact_ids i \
                    WHERE i.tenant_id = c.tenant_id AND i.contact_id = c.id)))::text AS data FROM contacts c \
             WHERE tenant_id = $1 AND id > $2 AND $3::bigint IS NOT NULL AND $4::bigint IS NOT NULL ORDER BY id LIMIT $5"
        }
        Kind::Conversation => {
            "SELECT id, 0::bigint AS first, 0::bigint AS second, (to_jsonb(c) - 'tenant_id' - 'last_waha_id')::text AS data \
             FROM conversations c \
             WHERE tenant_id = $1 AND id > $2 AND $3::bigint IS NOT NULL AND $4::bigint IS NOT NULL ORDER BY id LIMIT $5"
        }
        Kind::Message => {
            "SELECT id, 0::bigint AS first, 0::bigint AS second, '' AS data FROM messages \
             WHERE tenant_id = $1 AND id > $2 AND deleted_at IS NULL AND $3::bigint IS NOT NULL AND $4::bigint IS NOT NULL ORDER BY id LIMIT $5"
        }
        Kind::Transition => {
            "SELECT message_id AS id, id AS first, 0::bigint AS second, jsonb_build_object('message_id', message_id, 'status', status, \
                    'at', at, 'cause', cause, 'attempt', attempt)::text AS data FROM message_transitions \
             WHERE tenant_id = $1 AND (message_id, id) > ($2, $3) AND $4::bigint IS NOT NULL ORDER BY message_id, id LIMIT $5"
        }
        // `data` is JSON that was rendered once; it is given as it is.
        Kind::Event => {
            "SELECT id, xact AS first, seq AS second, json_build_object('id', id, 'type', type, 'timestamp', at, 'data', data::json)::text AS data \
             FROM events WHERE tenant_id = $1 AND $2::uuid IS NOT NULL AND (xact, seq) > ($3, $4) \
               AND xact < pg_snapshot_xmin(pg_current_snapshot())::text::bigint ORDER BY xact, seq LIMIT $5"
        }
        Kind::Media => {
            "SELECT id, 0::bigint AS first, 0::bigint AS second, jsonb_build_object('id', id, 'mime_type', mime_type, 'filename', filename, \
                    'size', size, 'sha256', encode(sha256, 'hex'), 'created_at', created_at)::text AS data FROM media \
             WHERE tenant_id = $1 AND id > $2 AND ready_at IS NOT NULL AND deleted_at IS NULL AND $3::bigint IS NOT NULL AND $4::bigint IS NOT NULL \
             ORDER BY id LIMIT $5"
        }
    }
}

async fn rows(conn: &mut TenantConn, kind: Kind, after: &Place) -> Result<Vec<Row>, DbError> {
    Ok(sql(text(kind))
        .bind::<SqlUuid, _>(conn.tenant())
        .bind::<SqlUuid, _>(after.id)
        .bind::<BigInt, _>(after.first)
        .bind::<BigInt, _>(after.second)
        .bind::<BigInt, _>(PAGE)
        .prepared()
        .load(&mut **conn)
        .await?)
}

/// Messages as the API shows them, each with what WAHA told of it.
async fn messages(conn: &mut TenantConn, after: &Place) -> Result<Vec<Row>, DbError> {
    #[derive(QueryableByName)]
    struct Raw {
        #[diesel(sql_type = SqlUuid)]
        id: MessageId,
        #[diesel(sql_type = diesel::sql_types::Jsonb)]
        raw_payload: serde_json::Value,
    }
    let mut rows = rows(conn, Kind::Message, after).await?;
    let ids: Vec<MessageId> = rows.iter().map(|row| MessageId(row.id)).collect();
    let messages = queries::find_all(conn, &ids).await?;
    let raw: Vec<Raw> =
        sql("SELECT id, raw_payload FROM messages WHERE tenant_id = $1 AND id = ANY($2) AND raw_payload IS NOT NULL")
            .bind::<SqlUuid, _>(conn.tenant())
            .bind::<Array<SqlUuid>, _>(&ids)
            .prepared()
            .load(&mut **conn)
            .await?;
    for row in &mut rows {
        let Some(message) = messages.iter().find(|message| message.id.0 == row.id) else { continue };
        let mut data = serde_json::to_value(Message::from(message)).unwrap_or_default();
        if let (Some(members), Some(raw)) = (data.as_object_mut(), raw.iter().find(|raw| raw.id.0 == row.id)) {
            members.insert("raw_payload".to_owned(), raw.raw_payload.clone());
        }
        row.data = data.to_string();
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_round_trip_and_nonsense_does_not() {
        for kind in Kind::ALL {
            let place = Place { kind, id: Uuid::from_u128(7), first: 8, second: 9 };
            assert_eq!(place.to_string().parse::<Place>(), Ok(place));
        }
        for text in ["", "x", "bWVzc2FnZQ", "____"] {
            assert_eq!(text.parse::<Place>(), Err(NoPlace), "{text}");
        }
    }
}
