//! The spool: where WAHA's events wait when the broker is away.
//!
//! An event leaves the spool in the transaction that applies it, so it is applied once whatever crashes.

use chrono::{DateTime, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;

use crate::app::App;
use crate::broker::envelope::InboundEvent;
use crate::db::group_commit::BatchWriter;
use crate::db::{Db, DbError, Prepare, sql};
use crate::domain::ids::{SessionId, TenantId, WahaServerId};
use crate::ingest::apply;

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

/// Applies up to `most` spooled events and removes them; answers how many.
///
/// # Errors
/// When the database refuses; everything then stays in the spool.
pub async fn drain(app: &App, most: i64) -> Result<usize, DbError> {
    let drained = app
        .db
        .system(async |conn| {
            let rows: Vec<Row> = sql(
                "SELECT id, tenant_id, session_id, waha_server_id, received_at, body FROM spool ORDER BY id LIMIT $1 \
                 FOR UPDATE SKIP LOCKED",
            )
            .bind::<BigInt, _>(most)
            .prepared()
            .load(&mut **conn)
            .await?;
            if rows.is_empty() {
                return Ok::<_, DbError>(0);
            }
            let ids: Vec<_> = rows.iter().map(|row| row.id).collect();
            let events: Vec<_> = rows.into_iter().map(Row::into_event).collect();
            apply::apply_in(app, conn, &events).await?;
            sql("DELETE FROM spool WHERE id = ANY($1)")
                .bind::<Array<BigInt>, _>(&ids)
                .prepared()
                .execute(&mut **conn)
                .await?;
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
