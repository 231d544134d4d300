//! The steps of an erasure, each a few hundred rows: in groups, messages, events, answers, the person, files.
//!
//! The order matters: the person is needed until the last of their rows was found, and a file's bytes go when nobody can ask for
//! them any more.

use chrono::{DateTime, TimeDelta, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Jsonb, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use serde_json::{Value, json};
use uuid::Uuid;

use super::person::Person;
use super::{erasure_groups, erasure_person};
use crate::db::{DbError, Prepare, SystemConn, sql};
use crate::domain::chance::Chance;
use crate::domain::ids::{ContactId, ErasureId, MessageId, SessionId, TenantId};
use crate::domain::status::Status;
use crate::media;
use crate::messages::settle::{self, Waiting};
use crate::search::index;

/// Rows in one step at the most.
pub(super) const PIECE: i64 = 500;
/// The stages by name.
const GROUPS: &str = "groups";
const MESSAGES: &str = "messages";
const EVENTS: &str = "events";
const ANSWERS: &str = "answers";
const PERSON: &str = "person";
/// The stage that waits for the bytes of files to be gone.
pub(super) const MEDIA: &str = "media";

/// An erasure that is not finished.
#[derive(QueryableByName)]
pub(super) struct Running {
    #[diesel(sql_type = SqlUuid)]
    pub tenant_id: TenantId,
    #[diesel(sql_type = SqlUuid)]
    pub id: ErasureId,
    #[diesel(sql_type = SqlUuid)]
    pub contact_id: ContactId,
    #[diesel(sql_type = Text)]
    pub stage: String,
    #[diesel(sql_type = Nullable<Jsonb>)]
    pub place: Option<Value>,
    /// What is younger is not part of it.
    #[diesel(sql_type = Timestamptz)]
    pub created_at: DateTime<Utc>,
}

impl Running {
    /// What stands for the person from now on.
    pub fn nobody(&self) -> String {
        format!("erased:{}", self.id)
    }
}

/// What a step did, and what comes next.
pub(super) struct Done {
    pub stage: &'static str,
    pub place: Option<Value>,
    pub pause: TimeDelta,
    pub messages: i64,
    pub cancelled: i64,
    pub events: i64,
    pub files: i64,
    pub finished: bool,
}

impl Done {
    /// `stage` comes next, at once.
    pub fn next(stage: &'static str) -> Self {
        Self {
            stage,
            place: None,
            pause: TimeDelta::zero(),
            messages: 0,
            cancelled: 0,
            events: 0,
            files: 0,
            finished: false,
        }
    }
}

fn count(rows: usize) -> i64 {
    i64::try_from(rows).unwrap_or(i64::MAX)
}

/// Takes the next step of `running`.
pub(super) async fn take(
    conn: &mut SystemConn,
    chance: &Chance,
    now: DateTime<Utc>,
    running: &Running,
) -> Result<Done, DbError> {
    if running.stage == MEDIA {
        return media_gone(conn, running).await;
    }
    // Before any other lock, as whoever writes down what messages say has it before theirs.
    index::hold(conn).await?;
    let person = Person::find(conn, running.tenant_id, running.contact_id).await?;
    match running.stage.as_str() {
        EVENTS => events(conn, now, running, &person).await,
        ANSWERS => answers(conn, running, &person).await,
        PERSON => Ok(match erasure_person::forget(conn, now, running, &person).await? {
            true => Done::next(MEDIA),
            false => Done::next(PERSON),
        }),
        MESSAGES => messages(conn, chance, now, running, &person).await,
        _ => Ok(match erasure_groups::step(conn, running, &person).await? {
            Some(place) => Done { place: Some(place), ..Done::next(GROUPS) },
            None => Done::next(MESSAGES),
        }),
    }
}

// By every name under which a message may be of the person, each by its index.
const FIND: &str = "\
SELECT tenant_id, id, session_id FROM (
    (SELECT tenant_id, id, session_id FROM messages
     WHERE tenant_id = $1 AND session_id = ANY($2) AND chat_id = ANY($3) AND erased_at IS NULL AND created_at <= $5 AND status = ANY($6)
     LIMIT $7)
    UNION
    (SELECT tenant_id, id, session_id FROM messages
     WHERE tenant_id = $1 AND to_msisdn = ANY($4) AND direction = 'outbound' AND erased_at IS NULL AND created_at <= $5 AND status = ANY($6)
     LIMIT $7)
    UNION
    (SELECT tenant_id, id, session_id FROM messages
     WHERE tenant_id = $1 AND from_msisdn = ANY($4) AND direction = 'inbound' AND erased_at IS NULL AND created_at <= $5 AND status = ANY($6)
     LIMIT $7)
    UNION
    (SELECT tenant_id, id, session_id FROM messages
     WHERE tenant_id = $1 AND sender_id = ANY($3) AND sender_id <> chat_id AND direction = 'inbound' AND erased_at IS NULL
       AND created_at <= $5 AND status = ANY($6)
     LIMIT $7)
    UNION
    (SELECT tenant_id, id, session_id FROM messages
     WHERE tenant_id = $1 AND sender_alternative_id = ANY($3) AND sender_alternative_id IS NOT NULL AND sender_id <> chat_id
       AND direction = 'inbound' AND erased_at IS NULL AND created_at <= $5 AND status = ANY($6)
     LIMIT $7)
) found LIMIT $7";

async fn find(
    conn: &mut AsyncPgConnection,
    running: &Running,
    person: &Person,
    statuses: &[&str],
) -> Result<Vec<Waiting>, DbError> {
    #[derive(QueryableByName)]
    struct Session {
        #[diesel(sql_type = SqlUuid)]
        id: SessionId,
    }
    let sessions: Vec<Session> = sql("SELECT id FROM waha_sessions WHERE tenant_id = $1")
        .bind::<SqlUuid, _>(running.tenant_id)
        .prepared()
        .load(conn)
        .await?;
    Ok(sql(FIND)
        .bind::<SqlUuid, _>(running.tenant_id)
        .bind::<Array<SqlUuid>, _>(sessions.into_iter().map(|session| session.id).collect::<Vec<_>>())
        .bind::<Array<Text>, _>(&person.ids)
        .bind::<Array<Text>, _>(&person.phones)
        .bind::<Timestamptz, _>(running.created_at)
        .bind::<Array<Text>, _>(statuses)
        .bind::<BigInt, _>(PIECE)
        .prepared()
        .load(conn)
        .await?)
}

/// Cancels what waits, then empties what is settled, then waits for what is being sent.
async fn messages(
    conn: &mut SystemConn,
    chance: &Chance,
    now: DateTime<Utc>,
    running: &Running,
    person: &Person,
) -> Result<Done, DbError> {
    let waiting = find(conn, running, person, &["scheduled", "queued"]).await?;
    if !waiting.is_empty() {
        let rows = settle::settle(conn, chance, now, &waiting, Status::Cancelled, "contact erased").await?;
        // Of one that has just moved to another session the next step finds the new lane.
        let pause = if rows.is_empty() { TimeDelta::seconds(1) } else { TimeDelta::zero() };
        return Ok(Done { cancelled: count(rows.len()), pause, ..Done::next(MESSAGES) });
    }
    let settled: Vec<&str> = Status::ALL
        .into_iter()
        .filter(|status| !matches!(status, Status::Scheduled | Status::Queued | Status::Sending))
        .map(Status::as_str)
        .collect();
    let found = find(conn, running, person, &settled).await?;
    if !found.is_empty() {
        let ids: Vec<MessageId> = found.iter().map(|message| message.id).collect();
        let (messages, files) = empty(conn, now, running, &ids).await?;
        return Ok(Done { messages, files, ..Done::next(MESSAGES) });
    }
    // Its text is still needed, should it have to be sent again.
    if !find(conn, running, person, &["sending"]).await?.is_empty() {
        return Ok(Done { pause: TimeDelta::seconds(2), ..Done::next(MESSAGES) });
    }
    let place = Position { xact: 0, seq: 0, last: current_xact(conn).await? };
    Ok(Done { place: Some(place.to_json()), ..Done::next(EVENTS) })
}

#[derive(QueryableByName)]
struct Emptied {
    #[diesel(sql_type = Nullable<Text>)]
    media: Option<String>,
}

/// Empties the messages `ids`, and removes all that hangs on them; answers how many, and how many files.
async fn empty(
    conn: &mut AsyncPgConnection,
    now: DateTime<Utc>,
    running: &Running,
    ids: &[MessageId],
) -> Result<(i64, i64), DbError> {
    // The WhatsApp id stays: by it a repeat of the message is known, and left alone.
    let emptied: Vec<Emptied> = sql("WITH person AS MATERIALIZED ( \
             SELECT tenant_id, id, session_id, waha_message_id, content #>> '{media,id}' AS media FROM messages \
             WHERE tenant_id = $1 AND id = ANY($2) AND erased_at IS NULL AND status NOT IN ('scheduled', 'queued', 'sending') \
             ORDER BY tenant_id, id FOR UPDATE), \
         edits AS (DELETE FROM message_edits e USING person p \
             WHERE e.tenant_id = p.tenant_id AND e.session_id = p.session_id AND e.waha_message_id = p.waha_message_id), \
         reactions AS (DELETE FROM message_reactions r USING person p \
             WHERE r.tenant_id = p.tenant_id AND r.session_id = p.session_id AND r.waha_message_id = p.waha_message_id), \
         votes AS (DELETE FROM poll_votes v USING person p \
             WHERE v.tenant_id = p.tenant_id AND v.session_id = p.session_id AND v.waha_message_id = p.waha_message_id), \
         words AS (DELETE FROM message_search s USING person p WHERE s.tenant_id = p.tenant_id AND s.message_id = p.id), \
         files AS (DELETE FROM media_fetches f USING person p WHERE f.tenant_id = p.tenant_id AND f.message_id = p.id) \
         UPDATE messages m SET body = NULL, original_body = NULL, content = NULL, raw_payload = NULL, media_url = NULL, metadata = '{}', \
             error_message = NULL, sender_id = NULL, sender_alternative_id = NULL, sender_name = NULL, is_stub = false, \
             to_msisdn = CASE m.direction WHEN 'inbound' THEN m.to_msisdn END, \
             from_msisdn = CASE m.direction WHEN 'outbound' THEN m.from_msisdn END, \
             chat_id = CASE WHEN m.chat_id ~ '@(g[.]us|broadcast|newsletter)$' THEN m.chat_id ELSE $3 END, \
             erased_at = $4, updated_at = $4 \
         FROM person p WHERE m.tenant_id = p.tenant_id AND m.id = p.id RETURNING p.media")
    .bind::<SqlUuid, _>(running.tenant_id)
    .bind::<Array<SqlUuid>, _>(ids)
    .bind::<Text, _>(running.nobody())
    .bind::<Timestamptz, _>(now)
    .prepared()
    .load(conn)
    .await?;
    let media: Vec<Uuid> = emptied.iter().filter_map(|row| row.media.as_deref()?.parse().ok()).collect();
    // A file that others were sent as well is not the person's. For the others, the time for which bytes outlive their deletion
    // is over.
    let files = sql("UPDATE media f SET erasure_id = $3, filename = NULL, source_url = NULL, deleted_at = $4, updated_at = $5 \
         WHERE f.tenant_id = $1 AND f.id = ANY($2) \
           AND NOT EXISTS (SELECT 1 FROM messages m WHERE m.tenant_id = $1 AND m.content #>> '{media,id}' = f.id::text)")
    .bind::<SqlUuid, _>(running.tenant_id)
    .bind::<Array<SqlUuid>, _>(&media)
    .bind::<SqlUuid, _>(running.id)
    .bind::<Timestamptz, _>(now - media::GRACE - TimeDelta::seconds(1))
    .bind::<Timestamptz, _>(now)
    .prepared()
    .execute(conn)
    .await?;
    Ok((count(emptied.len()), count(files)))
}

/// How far the log was read; and the transaction that has to be over before it is read to its end.
struct Position {
    xact: i64,
    seq: i64,
    last: i64,
}

impl Position {
    fn of(place: Option<&Value>) -> Self {
        let number = |name: &str| place.and_then(|place| place.get(name)?.as_i64()).unwrap_or_default();
        Self { xact: number("xact"), seq: number("seq"), last: number("last") }
    }

    fn to_json(&self) -> Value {
        json!({"xact": self.xact, "seq": self.seq, "last": self.last})
    }
}

#[derive(QueryableByName)]
struct Number {
    #[diesel(sql_type = BigInt)]
    number: i64,
}

async fn current_xact(conn: &mut AsyncPgConnection) -> Result<i64, DbError> {
    let row: Number = sql("SELECT pg_current_xact_id()::text::bigint AS number").prepared().get_result(conn).await?;
    Ok(row.number)
}

async fn oldest_xact(conn: &mut AsyncPgConnection) -> Result<i64, DbError> {
    let row: Number = sql("SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS number")
        .prepared()
        .get_result(conn)
        .await?;
    Ok(row.number)
}

#[derive(QueryableByName)]
struct Looked {
    #[diesel(sql_type = BigInt)]
    xact: i64,
    #[diesel(sql_type = BigInt)]
    seq: i64,
    #[diesel(sql_type = SqlUuid)]
    id: Uuid,
}

/// Walks along the tenant's events: those of erased messages, and those that name the person, tell nothing any more.
async fn events(
    conn: &mut AsyncPgConnection,
    now: DateTime<Utc>,
    running: &Running,
    person: &Person,
) -> Result<Done, DbError> {
    let place = Position::of(running.place.as_ref());
    // Asked first: whatever is written by a transaction that ran until then is found by what follows, or by the next step.
    let oldest = oldest_xact(conn).await?;
    let looked: Vec<Looked> =
        sql("SELECT xact, seq, id FROM events WHERE tenant_id = $1 AND (xact, seq) > ($2, $3) AND xact < $4 \
         ORDER BY xact, seq LIMIT $5")
        .bind::<SqlUuid, _>(running.tenant_id)
        .bind::<BigInt, _>(place.xact)
        .bind::<BigInt, _>(place.seq)
        .bind::<BigInt, _>(oldest)
        .bind::<BigInt, _>(PIECE)
        .prepared()
        .load(conn)
        .await?;
    let Some(last) = looked.last() else {
        // What was written before the last message was emptied may still tell of it.
        if oldest <= place.last {
            return Ok(Done {
                place: Some(place.to_json()),
                pause: TimeDelta::milliseconds(200),
                ..Done::next(EVENTS)
            });
        }
        return Ok(Done::next(ANSWERS));
    };
    let to = Position { xact: last.xact, seq: last.seq, last: place.last };
    let emptied: Vec<Looked> = sql("UPDATE events e SET data = json_strip_nulls(json_build_object('erased_at', $4::timestamptz, 'id', e.message_id, \
             'session_id', e.session_id))::text \
         WHERE e.tenant_id = $1 AND e.id = ANY($2) AND e.data NOT LIKE '{\"erased_at\"%' \
           AND (e.data ~ $3 OR EXISTS (SELECT 1 FROM messages m WHERE m.tenant_id = e.tenant_id AND m.id = e.message_id \
                                       AND m.erased_at IS NOT NULL)) \
         RETURNING e.xact, e.seq, e.id")
    .bind::<SqlUuid, _>(running.tenant_id)
    .bind::<Array<SqlUuid>, _>(looked.iter().map(|event| event.id).collect::<Vec<_>>())
    .bind::<Nullable<Text>, _>(&person.pattern)
    .bind::<Timestamptz, _>(now)
    .prepared()
    .load(conn)
    .await?;
    // What an endpoint answered may repeat what it was told.
    sql("UPDATE webhook_attempts a SET response_body = NULL FROM webhook_deliveries d \
         WHERE d.tenant_id = $1 AND d.event_id = ANY($2) AND a.tenant_id = d.tenant_id AND a.delivery_id = d.id \
           AND (a.response_body ~ $4 OR a.response_body IS NOT NULL AND d.event_id = ANY($3))")
    .bind::<SqlUuid, _>(running.tenant_id)
    .bind::<Array<SqlUuid>, _>(looked.iter().map(|event| event.id).collect::<Vec<_>>())
    .bind::<Array<SqlUuid>, _>(emptied.iter().map(|event| event.id).collect::<Vec<_>>())
    .bind::<Nullable<Text>, _>(&person.pattern)
    .prepared()
    .execute(conn)
    .await?;
    Ok(Done { place: Some(to.to_json()), events: count(emptied.len()), ..Done::next(EVENTS) })
}

#[derive(QueryableByName)]
struct Answer {
    #[diesel(sql_type = Text)]
    operation: String,
    #[diesel(sql_type = Text)]
    key: String,
}

/// Walks along the answers that are kept for repeats. The keys stay, so that a repeat still does nothing.
async fn answers(conn: &mut AsyncPgConnection, running: &Running, person: &Person) -> Result<Done, DbError> {
    let text = |name: &str| running.place.as_ref().and_then(|place| place.get(name)?.as_str()).unwrap_or_default();
    let looked: Vec<Answer> =
        sql("SELECT operation, key FROM idempotency_keys WHERE tenant_id = $1 AND (operation, key) > ($2, $3) \
         ORDER BY operation, key LIMIT $4")
        .bind::<SqlUuid, _>(running.tenant_id)
        .bind::<Text, _>(text("operation"))
        .bind::<Text, _>(text("key"))
        .bind::<BigInt, _>(PIECE)
        .prepared()
        .load(conn)
        .await?;
    let Some(last) = looked.last() else { return Ok(Done::next(PERSON)) };
    let place = json!({"operation": last.operation, "key": last.key});
    sql("UPDATE idempotency_keys k SET response = convert_to(json_build_object('id', k.resource_id, 'erased', true)::text, 'UTF8') \
         FROM unnest($2, $3) AS i (operation, key) \
         WHERE k.tenant_id = $1 AND k.operation = i.operation AND k.key = i.key AND NOT k.sealed \
           AND (encode(k.response, 'escape') ~ $4 OR EXISTS (SELECT 1 FROM messages m WHERE m.tenant_id = $1 AND m.id = k.resource_id \
                                                             AND m.erased_at IS NOT NULL))")
    .bind::<SqlUuid, _>(running.tenant_id)
    .bind::<Array<Text>, _>(looked.iter().map(|answer| answer.operation.as_str()).collect::<Vec<_>>())
    .bind::<Array<Text>, _>(looked.iter().map(|answer| answer.key.as_str()).collect::<Vec<_>>())
    .bind::<Nullable<Text>, _>(&person.pattern)
    .prepared()
    .execute(conn)
    .await?;
    Ok(Done { place: Some(place), ..Done::next(ANSWERS) })
}

/// The last step: whether no bytes of the person's files are left.
async fn media_gone(conn: &mut AsyncPgConnection, running: &Running) -> Result<Done, DbError> {
    let left: Number =
        sql("SELECT count(*) AS number FROM media WHERE tenant_id = $1 AND erasure_id = $2 AND purged_at IS NULL")
            .bind::<SqlUuid, _>(running.tenant_id)
            .bind::<SqlUuid, _>(running.id)
            .prepared()
            .get_result(conn)
            .await?;
    let finished = left.number == 0;
    Ok(Done { finished, pause: TimeDelta::seconds(if finished { 0 } else { 2 }), ..Done::next(MEDIA) })
}
