//! Reading messages, always as one tenant.

use chrono::{DateTime, Utc};
use diesel::QueryableByName;
use diesel::pg::Pg;
use diesel::query_builder::{BoxedSqlQuery, SqlQuery};
use diesel::sql_types::{Array, BigInt, Integer, Jsonb, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::db::{DbError, Prepare, TenantConn, sql};
use crate::domain::ids::{MediaId, MessageId, SessionId};
use crate::domain::status::Status;
use crate::messages::row::{MessageRow, message_columns};

/// The cause of every outbound message's first step.
const ACCEPTED: &str = "accepted";

/// Which messages to list; what is absent does not narrow.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Of this session.
    pub session_id: Option<SessionId>,
    /// `inbound` or `outbound`.
    pub direction: Option<String>,
    /// In this status.
    pub status: Option<String>,
    /// To this number, as stored.
    pub to: Option<String>,
    /// From this number, as stored.
    pub from: Option<String>,
    /// In this WhatsApp chat.
    pub chat_id: Option<String>,
    /// Of this kind.
    pub kind: Option<String>,
    /// Failed with this code.
    pub error_code: Option<String>,
    /// With this id of the tenant's own.
    pub client_reference: Option<String>,
    /// Created at or after.
    pub created_after: Option<DateTime<Utc>>,
    /// Created before.
    pub created_before: Option<DateTime<Utc>>,
    /// Whose metadata has these members. A value that reads as a JSON scalar fits that scalar as well as the text.
    pub metadata: Vec<(String, String)>,
}

/// The message `id`, if this tenant has it.
///
/// # Errors
/// When the database does not answer.
pub async fn find(conn: &mut TenantConn, id: MessageId) -> Result<Option<MessageRow>, DbError> {
    let rows: Vec<MessageRow> = sql(concat!(
        "SELECT ",
        message_columns!(),
        " FROM messages m WHERE m.tenant_id = $1 AND m.id = $2 AND m.deleted_at IS NULL"
    ))
    .bind::<SqlUuid, _>(conn.tenant())
    .bind::<SqlUuid, _>(id)
    .prepared()
    .load(&mut **conn)
    .await?;
    Ok(rows.into_iter().next())
}

/// Those of the messages `ids` that this tenant has.
///
/// # Errors
/// When the database does not answer.
pub async fn find_all(conn: &mut TenantConn, ids: &[MessageId]) -> Result<Vec<MessageRow>, DbError> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    Ok(sql(concat!(
        "SELECT ",
        message_columns!(),
        " FROM messages m WHERE m.tenant_id = $1 AND m.id = ANY($2) AND m.deleted_at IS NULL"
    ))
    .bind::<SqlUuid, _>(conn.tenant())
    .bind::<Array<SqlUuid>, _>(ids)
    .prepared()
    .load(&mut **conn)
    .await?)
}

/// Those of the files `ids` that this tenant has, with their MIME types.
///
/// # Errors
/// When the database does not answer.
pub async fn media_types(conn: &mut TenantConn, ids: &[MediaId]) -> Result<Vec<(MediaId, String)>, DbError> {
    #[derive(QueryableByName)]
    struct File {
        #[diesel(sql_type = SqlUuid)]
        id: MediaId,
        #[diesel(sql_type = Text)]
        mime_type: String,
    }
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let files: Vec<File> =
        sql("SELECT id, mime_type FROM media WHERE tenant_id = $1 AND id = ANY($2) AND deleted_at IS NULL AND ready_at IS NOT NULL")
            .bind::<SqlUuid, _>(conn.tenant())
            .bind::<Array<SqlUuid>, _>(ids)
            .prepared()
            .load(&mut **conn)
            .await?;
    Ok(files.into_iter().map(|file| (file.id, file.mime_type)).collect())
}

/// Messages that pass `filter`, newest first, from behind `after` on.
///
/// # Errors
/// When the database does not answer.
pub async fn list(
    conn: &mut TenantConn,
    filter: &Filter,
    after: Option<(DateTime<Utc>, Uuid)>,
    limit: i64,
) -> Result<Vec<MessageRow>, DbError> {
    // The text varies with the filters in use, so that each combination gets the plan of its index.
    let tenant = conn.tenant();
    let query = diesel::sql_query(concat!(
        "SELECT ",
        message_columns!(),
        " FROM messages m WHERE m.tenant_id = $1 AND m.deleted_at IS NULL"
    ))
    .into_boxed::<Pg>()
    .bind::<SqlUuid, _>(tenant);
    let (query, place) = narrow(query, 1, filter, after);
    let query =
        query.sql(format!(" ORDER BY m.created_at DESC, m.id DESC LIMIT ${}", place + 1)).bind::<BigInt, _>(limit);
    Ok(query.load(&mut **conn).await?)
}

/// `query`, which has `place` parameters, for those messages `m` alone that pass `filter` and stand behind `after`; and how many
/// parameters it has then.
pub(crate) fn narrow<'a>(
    mut query: BoxedSqlQuery<'a, Pg, SqlQuery>,
    mut place: u32,
    filter: &Filter,
    after: Option<(DateTime<Utc>, Uuid)>,
) -> (BoxedSqlQuery<'a, Pg, SqlQuery>, u32) {
    let mut next = || {
        place += 1;
        place
    };
    let texts = [
        ("direction", &filter.direction),
        ("status", &filter.status),
        ("to_msisdn", &filter.to),
        ("from_msisdn", &filter.from),
        ("chat_id", &filter.chat_id),
        ("message_type", &filter.kind),
        ("error_code", &filter.error_code),
        ("client_reference", &filter.client_reference),
    ];
    if let Some(session) = filter.session_id {
        query = query.sql(format!(" AND m.session_id = ${}", next())).bind::<SqlUuid, _>(session);
    }
    if filter.error_code.is_some() {
        // One that is tried again has a code as well; said so that the index of the failed ones serves.
        query = query.sql(" AND m.status = 'failed'");
    }
    for (column, value) in texts {
        if let Some(value) = value {
            query = query.sql(format!(" AND m.{column} = ${}", next())).bind::<Text, _>(value.clone());
        }
    }
    if let Some(from) = filter.created_after {
        query = query.sql(format!(" AND m.created_at >= ${}", next())).bind::<Timestamptz, _>(from);
    }
    if let Some(until) = filter.created_before {
        query = query.sql(format!(" AND m.created_at < ${}", next())).bind::<Timestamptz, _>(until);
    }
    for (key, value) in &filter.metadata {
        let member = |value: Value| Value::Object([(key.clone(), value)].into_iter().collect());
        let text = member(Value::String(value.clone()));
        // A query has no types: `metadata.order=4711` means the number as well as the text.
        let scalar = serde_json::from_str(value).ok().filter(|value: &Value| value.is_number() || value.is_boolean());
        query = match scalar {
            None => query.sql(format!(" AND m.metadata @> ${}", next())).bind::<Jsonb, _>(text),
            Some(scalar) => query
                .sql(format!(" AND (m.metadata @> ${} OR m.metadata @> ${})", next(), next()))
                .bind::<Jsonb, _>(text)
                .bind::<Jsonb, _>(member(scalar)),
        };
    }
    if let Some((at, id)) = after {
        query = query
            .sql(format!(" AND (m.created_at, m.id) < (${}, ${})", next(), next()))
            .bind::<Timestamptz, _>(at)
            .bind::<SqlUuid, _>(id);
    }
    (query, place)
}

/// One step in the life of a message.
#[derive(Debug, Serialize, ToSchema, QueryableByName)]
pub struct Transition {
    /// The status it took.
    #[diesel(sql_type = Text)]
    #[schema(example = "sent")]
    pub status: String,
    /// When.
    #[diesel(sql_type = Timestamptz)]
    pub at: DateTime<Utc>,
    /// Why.
    #[diesel(sql_type = Text)]
    #[schema(example = "ack 1")]
    pub cause: String,
    /// The attempt that caused it.
    #[diesel(sql_type = Nullable<Integer>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempt: Option<i32>,
}

/// The steps of the message `id`, oldest first; `None` if this tenant has no such message.
///
/// # Errors
/// When the database does not answer.
pub async fn transitions(conn: &mut TenantConn, id: MessageId) -> Result<Option<Vec<Transition>>, DbError> {
    let Some(message) = find(conn, id).await? else { return Ok(None) };
    let mut steps: Vec<Transition> = sql("SELECT status, at, cause, attempt FROM message_transitions WHERE tenant_id = $1 AND message_id = $2 ORDER BY id")
        .bind::<SqlUuid, _>(conn.tenant())
        .bind::<SqlUuid, _>(id)
        .prepared()
        .load(&mut **conn)
        .await?;
    // The message's own row is the record of its acceptance. (Rows of earlier versions have it among the steps, too.)
    if message.direction == "outbound" && message.source.is_none() && steps.iter().all(|step| step.cause != ACCEPTED) {
        let scheduled = message.scheduled_at.is_some_and(|at| at > message.created_at);
        let status = if scheduled { Status::Scheduled } else { Status::Queued };
        let (status, cause) = (status.as_str().to_owned(), ACCEPTED.to_owned());
        steps.insert(0, Transition { status, at: message.created_at, cause, attempt: None });
    }
    // So it is of what came in.
    if message.direction == "inbound" && steps.is_empty() {
        let cause = if message.backfilled { "read back" } else { "webhook" };
        let (status, cause) = (message.status, cause.to_owned());
        steps.push(Transition { status, at: message.created_at, cause, attempt: None });
    }
    Ok(Some(steps))
}
