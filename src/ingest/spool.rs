//! The spool: where WAHA's events wait when the broker is away.
//!
//! An event leaves the spool in the transaction that applies it, so it is applied once whatever crashes. One that cannot be
//! applied leaves it in the transaction that sets it aside with the dead letters.

use chrono::{DateTime, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};

use crate::app::App;
use crate::broker::envelope::InboundEvent;
use crate::db::group_commit::BatchWriter;
use crate::db::{Db, DbError, Prepare, sql};
use crate::domain::ids::{SessionId, TenantId, WahaServerId};
use crate::ingest::{apply, dead_letters};

/// Writes batches of events into the spool.
pub struct Spool(pub Db);

impl BatchWriter for Spool {
    type Item = InboundEvent;
    type Answer = ();

    async fn write(&self, events: &[InboundEvent]) -> Result<Vec<()>, DbError> {
        self.0
            .system(async |conn| {
                sql("INSERT INTO spool (tenant_id, session_id, waha_server_id, received_at, body) \
                     SELECT t, s, w, r, b FROM unnest($1, $2, $3, $4, $5) WITH ORDINALITY AS i (t, s, w, r, b, o) ORDER BY o")
                .bind::<Array<SqlUuid>, _>(events.iter().map(|event| event.tenant_id).collect::<Vec<_>>())
                .bind::<Array<SqlUuid>, _>(events.iter().map(|event| event.session_id).collect::<Vec<_>>())
                .bind::<Array<SqlUuid>, _>(events.iter().map(|event| event.waha_server_id).collect::<Vec<_>>())
                .bind::<Array<Timestamptz>, _>(events.iter().map(|event| event.received_at).collect::<Vec<_>>())
                .bind::<Array<Text>, _>(events.iter().map(|event| event.body.as_str()).collect::<Vec<_>>())
                .prepared()
                .execute(&mut **conn)
                .await?;
                Ok::<_, DbError>(())
            })
            .await?;
        Ok(vec![(); events.len()])
    }
}

#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = BigInt)]
    id: i64,
    #[diesel(sql_type = SqlUuid)]
    tenant_id: TenantId,
    #[diesel(sql_type = SqlUuid)]
    session_id: SessionId,
    #[diesel(sql_type = SqlUuid)]
    waha_server_id: WahaServerId,
    #[diesel(sql_type = Timestamptz)]
    received_at: DateTime<Utc>,
    #[diesel(sql_type = Text)]
    body: String,
}

/// Empties the spool of up to `most` events; answers how many.
///
/// # Errors
/// When the database is away; what was not yet applied then stays in the spool.
pub async fn drain(app: &App, most: i64) -> Result<usize, DbError> {
    match apply_first(app, most).await {
        Ok(drained) => Ok(drained),
        Err(fault) if fault.is_transient() => Err(fault),
        Err(fault) => {
            tracing::warn!(%fault, "ingest: spooled events were refused; trying each of them alone");
            drain_singly(app, most).await
        }
    }
}

async fn drain_singly(app: &App, most: i64) -> Result<usize, DbError> {
    let mut drained = 0;
    for _ in 0..most {
        if !drain_first(app).await? {
            break;
        }
        drained += 1;
    }
    Ok(drained)
}

/// Takes the first event that no other node holds out of the spool: applied, or set aside. Answers whether there was one.
async fn drain_first(app: &App) -> Result<bool, DbError> {
    let drained = app
        .db
        .system(async |conn| {
            let Some(row) = take(conn, 1).await?.into_iter().next() else { return Ok::<_, DbError>(false) };
            let id = row.id;
            if let Some(letter) = dead_letters::try_apply(app, conn, &row.into_event()).await? {
                dead_letters::keep(conn, &app.chance, app.clock.now(), &[letter]).await?;
            }
            remove(conn, &[id]).await?;
            Ok(true)
        })
        .await?;
    if drained {
        app.wake.events.notify_one();
        app.wake.dispatch.notify_one();
    }
    Ok(drained)
}

async fn take(conn: &mut AsyncPgConnection, most: i64) -> Result<Vec<Row>, DbError> {
    Ok(sql("SELECT id, tenant_id, session_id, waha_server_id, received_at, body FROM spool ORDER BY id LIMIT $1 \
            FOR UPDATE SKIP LOCKED")
    .bind::<BigInt, _>(most)
    .prepared()
    .load(conn)
    .await?)
}

async fn remove(conn: &mut AsyncPgConnection, ids: &[i64]) -> Result<(), DbError> {
    sql("DELETE FROM spool WHERE id = ANY($1)").bind::<Array<BigInt>, _>(ids).prepared().execute(conn).await?;
    Ok(())
}

/// Applies up to `most` events and removes them, all or none; answers how many.
async fn apply_first(app: &App, most: i64) -> Result<usize, DbError> {
    let drained = app
        .db
        .system(async |conn| {
            let rows = take(conn, most).await?;
            if rows.is_empty() {
                return Ok::<_, DbError>(0);
            }
            let ids: Vec<_> = rows.iter().map(|row| row.id).collect();
            let events: Vec<_> = rows.into_iter().map(Row::into_event).collect();
            apply::apply_in(app, conn, &events).await?;
            remove(conn, &ids).await?;
            Ok(ids.len())
        })
        .await?;
    if drained > 0 {
        app.wake.events.notify_one();
        app.wake.dispatch.notify_one();
    }
    Ok(drained)
}

impl Row {
    fn into_event(self) -> InboundEvent {
        InboundEvent {
            tenant_id: self.tenant_id,
            session_id: self.session_id,
            waha_server_id: self.waha_server_id,
            received_at: self.received_at,
            body: self.body,
        }
    }
}
