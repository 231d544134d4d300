//! The index of words, kept up to date from the event log.
//!
//! Guarantee: a message is found once the events that tell of it were read here, a moment after it became visible; an edit
//! changes what it is found by, a revocation or an erasure ends it. It is a [`follower`](crate::events::follower) of the log:
//! no event is passed over, and the words of a batch and the move of the cursor past it share one transaction. What is read is
//! the message as it is, so a repeat changes nothing.
//!
//! Whoever takes text away from messages (retention, erasure) holds the cursor meanwhile, see [`hold`]: a batch that read the
//! text before would bring it back after.

use chrono::{DateTime, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Bool, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use std::time::Duration;
use tokio::sync::watch;
use uuid::Uuid;

use crate::app::App;
use crate::db::{DbError, Prepare, SystemConn, sql};
use crate::domain::ids::{MessageId, TenantId};
use crate::events::follower::{Follow, Follower, Step};

/// Messages of the backlog in one transaction.
const BACKLOG: i64 = 500;

static FOLLOWER: Follower = Follower {
    cursor: "search",
    lag: "switchboard_search_lag_seconds",
    batch: 1000,
    // Not at every event: many in one batch cost less, and nobody searches for what came this very moment.
    rest: Duration::from_millis(200),
    bell: None,
    failed: "search: the index cannot be kept up",
};

struct Index;

impl Follow for Index {
    /// One step along the log, and one through the backlog.
    async fn step(&self, app: &App) -> Result<Step, DbError> {
        let step = step(app).await?;
        Ok(Step { full: catch_up(app).await? || step.full, ..step })
    }
}

/// Follows the event log until `stop` becomes true (or its sender is gone). Any number of nodes may run it.
pub async fn run(app: App, stop: watch::Receiver<bool>) {
    FOLLOWER.run(&app, &Index, stop).await;
}

/// Reads one batch of events, if no other node is doing so.
///
/// # Errors
/// When the database does not answer; nothing was changed then.
pub async fn step(app: &App) -> Result<Step, DbError> {
    let now = app.clock.now();
    let step = app.db.system(async |conn| take(conn, now).await).await?;
    FOLLOWER.tell_lag(step, now);
    Ok(step)
}

async fn take(conn: &mut SystemConn, now: DateTime<Utc>) -> Result<Step, DbError> {
    let (batch, step) = FOLLOWER.take(conn, now).await?;
    // Whether the text may be another than before.
    let changed = |kind: &str| matches!(kind, "message.edited" | "message.revoked");
    let mut told: Vec<(TenantId, MessageId, bool)> =
        batch.iter().filter_map(|event| Some((event.tenant_id, event.message_id?, changed(&event.kind)))).collect();
    // Of several events of a message one is enough, provided it is the one that says most.
    told.sort_unstable_by_key(|(tenant, id, changed)| (*tenant, *id, !changed));
    told.dedup_by_key(|(tenant, id, _)| (*tenant, *id));
    write(conn, &told).await?;
    Ok(step)
}

const WRITE: &str = "\
WITH input AS (
    SELECT * FROM unnest($1, $2, $3) AS i (tenant_id, message_id, changed)
), message AS MATERIALIZED (
    SELECT m.tenant_id, m.id, m.session_id, m.created_at, m.body,
           m.body IS NOT NULL AND m.revoked_at IS NULL AND m.erased_at IS NULL AND m.deleted_at IS NULL AS wanted
    FROM input i JOIN messages m ON m.tenant_id = i.tenant_id AND m.id = i.message_id
    WHERE i.changed OR NOT EXISTS (
        SELECT 1 FROM message_search s WHERE s.tenant_id = i.tenant_id AND s.message_id = i.message_id)
), gone AS (
    DELETE FROM message_search s USING message m WHERE s.tenant_id = m.tenant_id AND s.message_id = m.id AND NOT m.wanted
)
INSERT INTO message_search (tenant_id, message_id, session_id, created_at, document)
SELECT tenant_id, id, session_id, created_at, message_words(body) FROM message WHERE wanted
ON CONFLICT (tenant_id, message_id) DO UPDATE SET document = excluded.document, session_id = excluded.session_id";

async fn write(conn: &mut AsyncPgConnection, told: &[(TenantId, MessageId, bool)]) -> Result<(), DbError> {
    if told.is_empty() {
        return Ok(());
    }
    sql(WRITE)
        .bind::<Array<SqlUuid>, _>(told.iter().map(|(tenant, ..)| *tenant).collect::<Vec<_>>())
        .bind::<Array<SqlUuid>, _>(told.iter().map(|(_, id, _)| *id).collect::<Vec<_>>())
        .bind::<Array<Bool>, _>(told.iter().map(|(.., changed)| *changed).collect::<Vec<_>>())
        .prepared()
        .execute(conn)
        .await?;
    Ok(())
}

#[derive(QueryableByName)]
struct Place {
    #[diesel(sql_type = SqlUuid)]
    last_tenant: TenantId,
    #[diesel(sql_type = SqlUuid)]
    last_id: Uuid,
}

#[derive(QueryableByName)]
struct Old {
    #[diesel(sql_type = SqlUuid)]
    tenant_id: TenantId,
    #[diesel(sql_type = SqlUuid)]
    id: MessageId,
}

/// Indexes some messages from before there was an index; whether there may be more.
///
/// # Errors
/// When the database does not answer; nothing was changed then.
pub async fn catch_up(app: &App) -> Result<bool, DbError> {
    let now = app.clock.now();
    app.db
        .system(async |conn| {
            let place: Vec<Place> =
                sql("SELECT last_tenant, last_id FROM message_search_backlog WHERE ended_at IS NULL \
                 FOR UPDATE SKIP LOCKED")
                .prepared()
                .load(&mut **conn)
                .await?;
            let Some(place) = place.into_iter().next() else { return Ok::<_, DbError>(false) };
            if FOLLOWER.lock(conn).await?.is_none() {
                return Ok(false);
            }
            let old: Vec<Old> = sql(
                "SELECT tenant_id, id FROM messages WHERE (tenant_id, id) > ($1, $2) ORDER BY tenant_id, id LIMIT $3",
            )
            .bind::<SqlUuid, _>(place.last_tenant)
            .bind::<SqlUuid, _>(place.last_id)
            .bind::<BigInt, _>(BACKLOG)
            .prepared()
            .load(&mut **conn)
            .await?;
            let told: Vec<_> = old.iter().map(|message| (message.tenant_id, message.id, false)).collect();
            write(conn, &told).await?;
            let last = old.last();
            sql(
                "UPDATE message_search_backlog SET last_tenant = $1, last_id = $2, ended_at = CASE WHEN $3 THEN $4 END",
            )
            .bind::<SqlUuid, _>(last.map_or(place.last_tenant, |last| last.tenant_id))
            .bind::<SqlUuid, _>(last.map_or(place.last_id, |last| last.id.0))
            .bind::<Bool, _>(last.is_none())
            .bind::<Timestamptz, _>(now)
            .prepared()
            .execute(&mut **conn)
            .await?;
            Ok(last.is_some())
        })
        .await
}

/// Holds everyone who writes down what messages say, until the transaction ends. Whoever takes something away from messages
/// holds it first, before any row of theirs.
///
/// # Errors
/// When the database does not answer.
pub async fn hold(conn: &mut AsyncPgConnection) -> Result<(), DbError> {
    #[derive(QueryableByName)]
    struct Held {
        #[diesel(sql_type = Text)]
        #[expect(dead_code, reason = "the lock is what is wanted")]
        name: String,
    }
    let _held: Vec<Held> =
        sql("SELECT name FROM event_cursors WHERE name IN ('conversations', 'search') ORDER BY name FOR UPDATE")
            .prepared()
            .load(conn)
            .await?;
    Ok(())
}
