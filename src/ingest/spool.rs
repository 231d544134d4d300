//! The spool: where WAHA's events wait when the broker is away.
//!
//! An event leaves the spool in the transaction that applies it, so it is applied once whatever crashes.

use chrono::{DateTime, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};

use crate::app::App;
use crate::broker::envelope::InboundEvent;
use crate::db::group_commit::BatchWriter;
use crate::db::{Db, DbError, Prepare, sql};
use crate::domain::ids::{SessionId, TenantId, WahaServerId};
use crate::ingest::{apply, intake};

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

/// Applies up to `most` spooled events and removes them; answers how many. One that is refused by itself goes on to the
/// broker, whose consumer puts it with the dead letters; while the broker is away it stays, and holds up no other.
///
/// # Errors
/// When the database is away; everything not yet applied then stays in the spool.
pub async fn drain(app: &App, most: i64) -> Result<usize, DbError> {
    let drained = match drain_part(app, None, most).await {
        Err(fault) if !fault.is_transient() => {
            tracing::warn!(%fault, "ingest: spooled events were refused; trying them one by one");
            drain_singly(app, most).await?
        }
        drained => drained?,
    };
    if drained > 0 {
        app.wake.events.notify_one();
        app.wake.dispatch.notify_one();
    }
    Ok(drained)
}

/// Applies and removes up to `most` events, or just the one with the id `only`, in one transaction.
async fn drain_part(app: &App, only: Option<i64>, most: i64) -> Result<usize, DbError> {
    app.db
        .system(async |conn| {
            let rows = take(conn, only, most).await?;
            if rows.is_empty() {
                return Ok::<_, DbError>(0);
            }
            let ids: Vec<_> = rows.iter().map(|row| row.id).collect();
            let events: Vec<_> = rows.into_iter().map(Row::into_event).collect();
            apply::apply_in(app, conn, &events).await?;
            remove(conn, &ids).await?;
            Ok(ids.len())
        })
        .await
}

async fn drain_singly(app: &App, most: i64) -> Result<usize, DbError> {
    let rows = app.db.system(async |conn| take(conn, None, most).await).await?;
    let mut drained = 0;
    for id in rows.into_iter().map(|row| row.id) {
        match drain_part(app, Some(id), 1).await {
            Ok(count) => drained += count,
            Err(fault) if fault.is_transient() => return Err(fault),
            Err(fault) if pass_on(app, id).await? => {
                tracing::error!(%fault, "ingest: a spooled event cannot be applied; it goes to the dead letters");
                drained += 1;
            }
            Err(fault) => tracing::debug!(%fault, "ingest: a spooled event waits for the broker's dead letters"),
        }
    }
    Ok(drained)
}

/// Hands a spooled event to the broker and removes it then; answers whether that could be done.
async fn pass_on(app: &App, id: i64) -> Result<bool, DbError> {
    app.db
        .system(async |conn| {
            let Some(row) = take(conn, Some(id), 1).await?.into_iter().next() else { return Ok::<_, DbError>(false) };
            if let Err(fault) = intake::publish(app, &row.into_event()).await {
                tracing::debug!(%fault, "ingest: not passed on");
                return Ok(false);
            }
            remove(conn, &[id]).await?;
            Ok(true)
        })
        .await
}

async fn take(conn: &mut AsyncPgConnection, only: Option<i64>, most: i64) -> Result<Vec<Row>, DbError> {
    Ok(sql("SELECT id, tenant_id, session_id, waha_server_id, received_at, body FROM spool \
            WHERE $1 IS NULL OR id = $1 ORDER BY id LIMIT $2 FOR UPDATE SKIP LOCKED")
    .bind::<Nullable<BigInt>, _>(only)
    .bind::<BigInt, _>(most)
    .prepared()
    .load(conn)
    .await?)
}

async fn remove(conn: &mut AsyncPgConnection, ids: &[i64]) -> Result<(), DbError> {
    sql("DELETE FROM spool WHERE id = ANY($1)").bind::<Array<BigInt>, _>(ids).prepared().execute(conn).await?;
    Ok(())
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
