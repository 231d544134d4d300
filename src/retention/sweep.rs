//! Removing what has become old: texts and files of messages, raw payloads, events with their deliveries, attempts, and events of
//! unknown kinds.
//!
//! Guarantee: what is older than its tenant wants it kept is gone within minutes, and nothing goes that is still in use: a
//! message that waits keeps its text until it is settled, an event stays until everyone who follows the log has read it and
//! each of its deliveries has come to an end. Rows go in pieces of [`PIECE`] in transactions of their own, found by an index,
//! with pauses between, and only one node at a time takes a piece. Each piece is whole or was not begun, so a crash leaves
//! nothing half done; where the work stands is in the database.
//!
//! Messages are found by walking along their age, from where the last piece ended; rows that were still in use then are noted
//! and looked at again.

use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Bool, Jsonb, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use serde_json::Value;
use uuid::Uuid;

use crate::app::App;
use crate::db::{DbError, Prepare, SystemConn, sql};
use crate::domain::ids::{MessageId, TenantId};
use crate::events::query::first_id_at;
use crate::ingest::dead_letters;
use crate::retention::settings::Retention;
use crate::search::index;

/// Rows in one transaction at the most.
pub const PIECE: i64 = 500;
/// Between two pieces, so that everybody else has his turn.
const PAUSE: Duration = Duration::from_millis(20);
/// Of the advisory lock that one node at a time has.
const LOCK: &str = "switchboard.retention";

/// Removes everything that is old by now. Where another node is at it, that is left to it.
///
/// # Errors
/// When the database does not answer; what was removed until then stays removed.
pub async fn sweep(app: &App) -> Result<(), DbError> {
    let now = app.clock.now();
    let mut after = None;
    loop {
        let tenants = tenants(app, after).await?;
        let Some((last, _)) = tenants.last() else { break };
        after = Some(*last);
        for (tenant, settings) in tenants {
            of_tenant(app, tenant, Retention::of(&settings), now).await?;
        }
    }
    pieces(app, Job { tenant: TenantId(Uuid::nil()), work: Work::UnknownEvents, before: now }, now).await
}

async fn of_tenant(app: &App, tenant: TenantId, keep: Retention, now: DateTime<Utc>) -> Result<(), DbError> {
    for (work, before) in [
        (Work::Content, keep.content_before(now)),
        (Work::RawPayloads, Some(keep.raw_payload_before(now))),
        (Work::Attempts, Some(keep.attempts_before(now))),
        (Work::Events(i64::MIN, i64::MIN), Some(keep.events_before(now))),
    ] {
        if let Some(before) = before {
            pieces(app, Job { tenant, work, before }, now).await?;
        }
    }
    Ok(())
}

/// What there is to remove, and from which time.
#[derive(Clone, Copy)]
struct Job {
    tenant: TenantId,
    work: Work,
    before: DateTime<Utc>,
}

#[derive(Clone, Copy)]
enum Work {
    Content,
    RawPayloads,
    Attempts,
    /// Behind this place of the log.
    Events(i64, i64),
    UnknownEvents,
}

impl Work {
    const fn kind(self) -> &'static str {
        match self {
            Self::Content => "content",
            Self::RawPayloads => "raw_payload",
            Self::Attempts => "attempts",
            Self::Events(..) => "events",
            Self::UnknownEvents => "unknown_event",
        }
    }
}

/// What came of a piece.
struct Piece {
    /// Rows that were removed or emptied.
    removed: usize,
    /// What to go on with, if there may be more.
    next: Option<Work>,
}

/// Does `job` piece by piece, as long as there is more of it and no other node is at it.
async fn pieces(app: &App, mut job: Job, now: DateTime<Utc>) -> Result<(), DbError> {
    loop {
        let piece = app.db.system(async |conn| piece(conn, job, now).await).await?;
        metrics::counter!("switchboard_retention_removed_total", "kind" => job.work.kind())
            .increment(u64::try_from(piece.removed).unwrap_or_default());
        let Some(next) = piece.next else { return Ok(()) };
        job.work = next;
        tokio::time::sleep(PAUSE).await;
    }
}

async fn piece(conn: &mut SystemConn, job: Job, now: DateTime<Utc>) -> Result<Piece, DbError> {
    if !alone(conn).await? {
        return Ok(Piece { removed: 0, next: None });
    }
    let Job { tenant, work, before } = job;
    let (removed, looked) = match work {
        Work::Content => content(conn, tenant, before, now).await?,
        Work::RawPayloads => raw_payloads(conn, tenant, before, now).await?,
        Work::Attempts => same(attempts(conn, tenant, before).await?),
        Work::UnknownEvents => same(dead_letters::forget_unknown(conn, now).await?),
        Work::Events(xact, seq) => return events(conn, tenant, before, (xact, seq)).await,
    };
    Ok(Piece { removed, next: is_full(looked).then_some(work) })
}

const fn same(count: usize) -> (usize, usize) {
    (count, count)
}

fn is_full(count: usize) -> bool {
    i64::try_from(count).is_ok_and(|count| count >= PIECE)
}

#[derive(QueryableByName)]
struct Flag {
    #[diesel(sql_type = Bool)]
    flag: bool,
}

/// Whether this transaction is the only one that removes old rows; it stays so until it ends.
async fn alone(conn: &mut AsyncPgConnection) -> Result<bool, DbError> {
    let row: Flag = sql("SELECT pg_try_advisory_xact_lock(hashtextextended($1, 0)) AS flag")
        .bind::<Text, _>(LOCK)
        .prepared()
        .get_result(conn)
        .await?;
    Ok(row.flag)
}

/// Tenants with their settings, deleted ones as well: nobody wants their data kept for longer.
async fn tenants(app: &App, after: Option<TenantId>) -> Result<Vec<(TenantId, Value)>, DbError> {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = SqlUuid)]
        id: TenantId,
        #[diesel(sql_type = Jsonb)]
        settings: Value,
    }
    let rows: Vec<Row> = app
        .db
        .system(async |conn| {
            Ok::<_, DbError>(
                sql("SELECT id, settings FROM tenants WHERE $1 IS NULL OR id > $1 ORDER BY id LIMIT 200")
                    .bind::<Nullable<SqlUuid>, _>(after)
                    .prepared()
                    .load(&mut **conn)
                    .await?,
            )
        })
        .await?;
    Ok(rows.into_iter().map(|row| (row.id, row.settings)).collect())
}

#[derive(QueryableByName)]
struct Old {
    #[diesel(sql_type = SqlUuid)]
    id: MessageId,
    #[diesel(sql_type = Timestamptz)]
    created_at: DateTime<Utc>,
    #[diesel(sql_type = Bool)]
    waits: bool,
}

/// The next messages of `tenant` that are older than `before` and were not walked past.
async fn walk(
    conn: &mut AsyncPgConnection,
    tenant: TenantId,
    kind: &'static str,
    before: DateTime<Utc>,
) -> Result<Vec<Old>, DbError> {
    #[derive(QueryableByName)]
    struct Place {
        #[diesel(sql_type = Timestamptz)]
        at: DateTime<Utc>,
        #[diesel(sql_type = SqlUuid)]
        message_id: Uuid,
    }
    let place: Vec<Place> = sql("SELECT at, message_id FROM retention_progress WHERE tenant_id = $1 AND kind = $2")
        .bind::<SqlUuid, _>(tenant)
        .bind::<Text, _>(kind)
        .prepared()
        .load(conn)
        .await?;
    let place =
        place.into_iter().next().map_or((DateTime::UNIX_EPOCH, Uuid::nil()), |place| (place.at, place.message_id));
    Ok(sql("SELECT id, created_at, status IN ('scheduled', 'queued', 'sending') AS waits FROM messages \
         WHERE tenant_id = $1 AND (created_at, id) > ($2, $3) AND created_at < $4 ORDER BY created_at, id LIMIT $5")
    .bind::<SqlUuid, _>(tenant)
    .bind::<Timestamptz, _>(place.0)
    .bind::<SqlUuid, _>(place.1)
    .bind::<Timestamptz, _>(before)
    .bind::<BigInt, _>(PIECE)
    .prepared()
    .load(conn)
    .await?)
}

/// Notes that `old` was walked past.
async fn walked(
    conn: &mut AsyncPgConnection,
    tenant: TenantId,
    kind: &'static str,
    old: &[Old],
    now: DateTime<Utc>,
) -> Result<(), DbError> {
    let Some(last) = old.last() else { return Ok(()) };
    sql("INSERT INTO retention_progress (tenant_id, kind, at, message_id, updated_at) VALUES ($1, $2, $3, $4, $5) \
         ON CONFLICT (tenant_id, kind) DO UPDATE SET at = excluded.at, message_id = excluded.message_id, updated_at = excluded.updated_at")
    .bind::<SqlUuid, _>(tenant)
    .bind::<Text, _>(kind)
    .bind::<Timestamptz, _>(last.created_at)
    .bind::<SqlUuid, _>(last.id)
    .bind::<Timestamptz, _>(now)
    .prepared()
    .execute(conn)
    .await?;
    Ok(())
}

/// Answers how many it emptied, and how many it looked at.
async fn content(
    conn: &mut AsyncPgConnection,
    tenant: TenantId,
    before: DateTime<Utc>,
    now: DateTime<Utc>,
) -> Result<(usize, usize), DbError> {
    index::hold(conn).await?;
    // Those that waited when they were walked past, and do not any more.
    let due: Vec<Id> = sql("SELECT p.message_id AS id FROM retention_postponed p \
         JOIN messages m ON m.tenant_id = p.tenant_id AND m.id = p.message_id \
         WHERE p.tenant_id = $1 AND m.status NOT IN ('scheduled', 'queued', 'sending') LIMIT $2")
    .bind::<SqlUuid, _>(tenant)
    .bind::<BigInt, _>(PIECE)
    .prepared()
    .load(conn)
    .await?;
    let old = walk(conn, tenant, "content", before).await?;
    let waiting: Vec<MessageId> = old.iter().filter(|message| message.waits).map(|message| message.id).collect();
    let mut ids: Vec<MessageId> = due.into_iter().map(|row| row.id).collect();
    ids.extend(old.iter().filter(|message| !message.waits).map(|message| message.id));
    let removed = empty(conn, tenant, &ids, now).await?;
    sql("DELETE FROM retention_postponed WHERE tenant_id = $1 AND message_id = ANY($2)")
        .bind::<SqlUuid, _>(tenant)
        .bind::<Array<SqlUuid>, _>(&ids)
        .prepared()
        .execute(conn)
        .await?;
    if !waiting.is_empty() {
        sql("INSERT INTO retention_postponed (tenant_id, message_id, created_at) SELECT $1, id, $3 FROM unnest($2) AS i (id) \
             ON CONFLICT DO NOTHING")
        .bind::<SqlUuid, _>(tenant)
        .bind::<Array<SqlUuid>, _>(&waiting)
        .bind::<Timestamptz, _>(now)
        .prepared()
        .execute(conn)
        .await?;
    }
    walked(conn, tenant, "content", &old, now).await?;
    Ok((removed, old.len()))
}

#[derive(QueryableByName)]
struct Id {
    #[diesel(sql_type = SqlUuid)]
    id: MessageId,
}

#[derive(QueryableByName)]
struct Emptied {
    #[diesel(sql_type = Nullable<Text>)]
    media: Option<String>,
}

/// Takes their content from the messages `ids`; answers how many had any. The rows stay, with all that became of them.
async fn empty(
    conn: &mut AsyncPgConnection,
    tenant: TenantId,
    ids: &[MessageId],
    now: DateTime<Utc>,
) -> Result<usize, DbError> {
    if ids.is_empty() {
        return Ok(0);
    }
    let emptied: Vec<Emptied> = sql("WITH old AS MATERIALIZED ( \
             SELECT tenant_id, id, session_id, waha_message_id, content #>> '{media,id}' AS media FROM messages \
             WHERE tenant_id = $1 AND id = ANY($2) AND status NOT IN ('scheduled', 'queued', 'sending') \
               AND (body IS NOT NULL OR original_body IS NOT NULL OR content IS NOT NULL OR raw_payload IS NOT NULL OR media_url IS NOT NULL) \
             ORDER BY tenant_id, id FOR UPDATE), \
         edits AS (DELETE FROM message_edits e USING old o \
             WHERE e.tenant_id = o.tenant_id AND e.session_id = o.session_id AND e.waha_message_id = o.waha_message_id), \
         words AS (DELETE FROM message_search s USING old o WHERE s.tenant_id = o.tenant_id AND s.message_id = o.id) \
         UPDATE messages m SET body = NULL, original_body = NULL, content = NULL, raw_payload = NULL, media_url = NULL, updated_at = $3 \
         FROM old o WHERE m.tenant_id = o.tenant_id AND m.id = o.id RETURNING o.media")
    .bind::<SqlUuid, _>(tenant)
    .bind::<Array<SqlUuid>, _>(ids)
    .bind::<Timestamptz, _>(now)
    .prepared()
    .load(conn)
    .await?;
    let media: Vec<Uuid> = emptied.iter().filter_map(|row| row.media.as_deref()?.parse().ok()).collect();
    // A file that a younger message has as well stays with that one; bytes go a little later, as of any deleted file.
    sql("UPDATE media f SET deleted_at = $3, updated_at = $3 \
         WHERE f.tenant_id = $1 AND f.id = ANY($2) AND f.deleted_at IS NULL AND f.ready_at IS NOT NULL \
           AND NOT EXISTS (SELECT 1 FROM messages m WHERE m.tenant_id = $1 AND m.content #>> '{media,id}' = f.id::text)")
    .bind::<SqlUuid, _>(tenant)
    .bind::<Array<SqlUuid>, _>(&media)
    .bind::<Timestamptz, _>(now)
    .prepared()
    .execute(conn)
    .await?;
    Ok(emptied.len())
}

/// Answers as [`content`] does.
async fn raw_payloads(
    conn: &mut AsyncPgConnection,
    tenant: TenantId,
    before: DateTime<Utc>,
    now: DateTime<Utc>,
) -> Result<(usize, usize), DbError> {
    let old = walk(conn, tenant, "raw_payload", before).await?;
    let removed = if old.is_empty() {
        0
    } else {
        sql("WITH old AS MATERIALIZED (SELECT tenant_id, id FROM messages \
                 WHERE tenant_id = $1 AND id = ANY($2) AND raw_payload IS NOT NULL ORDER BY tenant_id, id FOR UPDATE) \
             UPDATE messages m SET raw_payload = NULL FROM old o WHERE m.tenant_id = o.tenant_id AND m.id = o.id")
        .bind::<SqlUuid, _>(tenant)
        .bind::<Array<SqlUuid>, _>(old.iter().map(|message| message.id).collect::<Vec<_>>())
        .prepared()
        .execute(conn)
        .await?
    };
    walked(conn, tenant, "raw_payload", &old, now).await?;
    Ok((removed, old.len()))
}

/// The id of an attempt is made when it ends, so the key is in the order of age.
async fn attempts(conn: &mut AsyncPgConnection, tenant: TenantId, before: DateTime<Utc>) -> Result<usize, DbError> {
    Ok(sql("DELETE FROM webhook_attempts WHERE tenant_id = $1 AND id IN \
         (SELECT id FROM webhook_attempts WHERE tenant_id = $1 AND id < $2 ORDER BY id LIMIT $3)")
    .bind::<SqlUuid, _>(tenant)
    .bind::<SqlUuid, _>(first_id_at(before))
    .bind::<BigInt, _>(PIECE)
    .prepared()
    .execute(conn)
    .await?)
}

#[derive(QueryableByName)]
struct Looked {
    #[diesel(sql_type = BigInt)]
    xact: i64,
    #[diesel(sql_type = BigInt)]
    seq: i64,
    #[diesel(sql_type = Bool)]
    old: bool,
    #[diesel(sql_type = SqlUuid)]
    id: Uuid,
    #[diesel(sql_type = Bool)]
    done: bool,
}

/// Removes some of the oldest events, with what was delivered of them.
async fn events(
    conn: &mut AsyncPgConnection,
    tenant: TenantId,
    before: DateTime<Utc>,
    from: (i64, i64),
) -> Result<Piece, DbError> {
    let looked: Vec<Looked> = sql("SELECT e.xact, e.seq, e.id, e.created_at < $4 AS old, NOT EXISTS ( \
             SELECT 1 FROM webhook_deliveries d WHERE d.tenant_id = e.tenant_id AND d.event_id = e.id AND d.status = 'pending') AS done \
         FROM events e \
         WHERE e.tenant_id = $1 AND (e.xact, e.seq) > ($2, $3) \
           AND (e.xact, e.seq) <= (SELECT xact, seq FROM event_cursors ORDER BY xact, seq LIMIT 1) \
         ORDER BY e.xact, e.seq LIMIT $5")
    .bind::<SqlUuid, _>(tenant)
    .bind::<BigInt, _>(from.0)
    .bind::<BigInt, _>(from.1)
    .bind::<Timestamptz, _>(before)
    .bind::<BigInt, _>(PIECE)
    .prepared()
    .load(conn)
    .await?;
    let Some(last) = looked.last() else { return Ok(Piece { removed: 0, next: None }) };
    // They are in the order in which they were written: behind one that is young all are.
    let next = (last.old && is_full(looked.len())).then_some(Work::Events(last.xact, last.seq));
    let ids: Vec<Uuid> = looked.iter().filter(|event| event.old && event.done).map(|event| event.id).collect();
    if ids.is_empty() {
        return Ok(Piece { removed: 0, next });
    }
    for text in [
        "DELETE FROM webhook_attempts a USING webhook_deliveries d WHERE d.tenant_id = $1 AND d.event_id = ANY($2) \
         AND d.status <> 'pending' AND a.tenant_id = d.tenant_id AND a.delivery_id = d.id",
        "DELETE FROM webhook_deliveries WHERE tenant_id = $1 AND event_id = ANY($2) AND status <> 'pending'",
        // One that is being replayed at this moment has a delivery again.
        "DELETE FROM events e WHERE e.tenant_id = $1 AND e.id = ANY($2) AND NOT EXISTS \
         (SELECT 1 FROM webhook_deliveries d WHERE d.tenant_id = e.tenant_id AND d.event_id = e.id)",
    ] {
        sql(text).bind::<SqlUuid, _>(tenant).bind::<Array<SqlUuid>, _>(&ids).prepared().execute(conn).await?;
    }
    Ok(Piece { removed: ids.len(), next })
}
