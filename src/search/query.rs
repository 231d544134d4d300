//! Finding messages by their words, and showing where these stand.
//!
//! The words are looked up above tenants, with the tenant named in the statement: under its policy the index could not be used.
//! Nothing but ids comes of that; what they stand for is read as the tenant, whom the database shows its own rows only.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use diesel::QueryableByName;
use diesel::pg::Pg;
use diesel::sql_types::{Array, BigInt, Bool, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use uuid::Uuid;

use crate::db::{Db, DbError, Prepare, sql};
use crate::domain::ids::{MessageId, TenantId};
use crate::messages::queries::{self, Filter};
use crate::messages::row::{MessageRow, message_columns};

/// Where a hit begins and ends, and where one passage ends, before they are written as HTML: characters that mean nothing, and
/// that are taken out of the text first.
const BEGINS: char = '\u{e000}';
const ENDS: char = '\u{e001}';
const CUT: char = '\u{e002}';
/// What stands for `<`, `>` and `&` meanwhile, which the search's parser would take for markup and leave out.
const LESS: char = '\u{e003}';
const GREATER: char = '\u{e004}';
const AND: char = '\u{e005}';

/// A message that was found, and the passages with what was looked for.
#[derive(Clone, Debug)]
pub struct Hit {
    /// The message.
    pub message: MessageRow,
    /// Passages as HTML, the words between `<mark>` and `</mark>`.
    pub highlights: Vec<String>,
}

#[derive(QueryableByName)]
struct Words {
    #[diesel(sql_type = Text)]
    words: String,
}

#[derive(QueryableByName)]
struct Found {
    #[diesel(sql_type = SqlUuid)]
    id: MessageId,
}

#[derive(QueryableByName)]
struct Passages {
    #[diesel(sql_type = SqlUuid)]
    id: MessageId,
    #[diesel(sql_type = Text)]
    passages: String,
}

/// Whether the last word of `query` may be the beginning of one: it is being typed, and it is neither quoted nor excluded.
fn ends_in_a_word(query: &str) -> bool {
    let quoted = query.chars().filter(|c| *c == '"').count() % 2 == 1;
    let last = query.split_whitespace().next_back().unwrap_or_default();
    !quoted && !last.starts_with('-') && query.chars().next_back().is_some_and(char::is_alphanumeric)
}

/// What is looked for, as the database writes it.
async fn words(conn: &mut AsyncPgConnection, query: &str) -> Result<String, DbError> {
    let found: Words =
        sql("SELECT CASE WHEN $2 THEN regexp_replace(q::text, '''$', ''':*') ELSE q::text END AS words \
         FROM websearch_to_tsquery('message_text', translate($1, '<>', '  ')) q")
        .bind::<Text, _>(query)
        .bind::<Bool, _>(ends_in_a_word(query))
        .prepared()
        .get_result(conn)
        .await?;
    Ok(found.words)
}

/// The messages of `tenant` with the words of `query` that pass `filter`, newest first, from behind `after` on.
///
/// `query` is written as for a search engine: words that must all be there, `or`, `"a phrase"`, `-without`. The last word may
/// be the beginning of one.
///
/// # Errors
/// When the database does not answer.
pub async fn search(
    db: &Db,
    tenant: TenantId,
    query: &str,
    filter: &Filter,
    after: Option<(DateTime<Utc>, Uuid)>,
    limit: i64,
) -> Result<Vec<Hit>, DbError> {
    db.system(async |conn| {
        // What a tenant looks for differs from request to request, and so does the best way to it.
        conn.batch_execute("SET LOCAL plan_cache_mode = 'auto'").await?;
        let words = words(conn, query).await?;
        if words.is_empty() {
            return Ok(Vec::new());
        }
        let found = find(conn, tenant, &words, filter, after, limit).await?;
        let mut conn = conn.narrow_to(tenant).await?;
        show(&mut conn, tenant, &words, &found).await
    })
    .await
}

async fn find(
    conn: &mut AsyncPgConnection,
    tenant: TenantId,
    words: &str,
    filter: &Filter,
    after: Option<(DateTime<Utc>, Uuid)>,
    limit: i64,
) -> Result<Vec<MessageId>, DbError> {
    let mut query = diesel::sql_query(
        "SELECT m.id FROM message_search s JOIN messages m ON m.tenant_id = s.tenant_id AND m.id = s.message_id \
         WHERE s.tenant_id = $1 AND s.document @@ $2::tsquery AND m.tenant_id = $1 AND m.deleted_at IS NULL",
    )
    .into_boxed::<Pg>()
    .bind::<SqlUuid, _>(tenant)
    .bind::<Text, _>(words.to_owned());
    let mut place = 2;
    let mut next = || {
        place += 1;
        place
    };
    if let Some(session) = filter.session_id {
        query = query.sql(format!(" AND s.session_id = ${}", next())).bind::<SqlUuid, _>(session);
    }
    // Said of the index's row as well: whatever is left out there need not be looked up.
    if let Some((at, id)) = after {
        query = query
            .sql(format!(" AND (s.created_at, s.message_id) < (${}, ${})", next(), next()))
            .bind::<Timestamptz, _>(at)
            .bind::<SqlUuid, _>(id);
    }
    let (query, place) = queries::narrow(query, place, filter, None);
    let query = query
        .sql(format!(" ORDER BY s.created_at DESC, s.message_id DESC LIMIT ${}", place + 1))
        .bind::<BigInt, _>(limit);
    let found: Vec<Found> = query.load(conn).await?;
    Ok(found.into_iter().map(|found| found.id).collect())
}

/// What was found, in its order, as the tenant sees it.
async fn show(
    conn: &mut AsyncPgConnection,
    tenant: TenantId,
    words: &str,
    found: &[MessageId],
) -> Result<Vec<Hit>, DbError> {
    let rows: Vec<MessageRow> =
        sql(concat!("SELECT ", message_columns!(), " FROM messages m WHERE m.tenant_id = $1 AND m.id = ANY($2)"))
            .bind::<SqlUuid, _>(tenant)
            .bind::<Array<SqlUuid>, _>(found)
            .prepared()
            .load(conn)
            .await?;
    let passages: Vec<Passages> = sql(
        "SELECT m.id, ts_headline('message_text', translate(left(coalesce(m.body, ''), 100000), \
                    E'<>&\\uE000\\uE001\\uE002\\uE003\\uE004\\uE005', E'\\uE003\\uE004\\uE005'), $3::tsquery, \
                E'StartSel=\"\\uE000\", StopSel=\"\\uE001\", FragmentDelimiter=\"\\uE002\", MaxFragments=3, MaxWords=25, MinWords=8') AS passages \
         FROM messages m WHERE m.tenant_id = $1 AND m.id = ANY($2)",
    )
    .bind::<SqlUuid, _>(tenant)
    .bind::<Array<SqlUuid>, _>(found)
    .bind::<Text, _>(words)
    .prepared()
    .load(conn)
    .await?;
    let mut rows: HashMap<_, _> = rows.into_iter().map(|row| (row.id, row)).collect();
    let mut passages: HashMap<_, _> = passages.into_iter().map(|shown| (shown.id, shown.passages)).collect();
    Ok(found
        .iter()
        .filter_map(|id| {
            let message = rows.remove(id)?;
            let highlights = passages.remove(id).unwrap_or_default();
            Some(Hit {
                message,
                highlights: highlights.split(CUT).filter(|cut| cut.contains(BEGINS)).map(marked).collect(),
            })
        })
        .collect())
}

/// `passage` as HTML: a message may say anything, so nothing of it is markup but the marks.
fn marked(passage: &str) -> String {
    let mut html = String::with_capacity(passage.len() + 32);
    for c in passage.chars() {
        match c {
            '&' | AND => html.push_str("&amp;"),
            '<' | LESS => html.push_str("&lt;"),
            '>' | GREATER => html.push_str("&gt;"),
            '"' => html.push_str("&quot;"),
            '\'' => html.push_str("&#39;"),
            BEGINS => html.push_str("<mark>"),
            ENDS => html.push_str("</mark>"),
            c => html.push(c),
        }
    }
    html
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_a_message_is_markup() {
        let passage = format!("<b onclick='x'>{BEGINS}hello{ENDS}{LESS}/b{GREATER} {AND} \"{BEGINS}you{ENDS}\"");
        let html = "&lt;b onclick=&#39;x&#39;&gt;<mark>hello</mark>&lt;/b&gt; &amp; &quot;<mark>you</mark>&quot;";
        assert_eq!(marked(&passage), html);
    }

    #[test]
    fn only_a_word_in_the_open_may_be_a_beginning() {
        for (query, expected) in [
            ("hel", true),
            ("hello wor", true),
            ("ação", true),
            ("\"hello wor\"", false),
            ("\"hello wor", false),
            ("hello -wor", false),
            ("hello ", false),
            ("", false),
            ("?", false),
        ] {
            assert_eq!(ends_in_a_word(query), expected, "{query}");
        }
    }
}
