//! The share of webhooks that never came, by server. A session's own share is shown with the session.

use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;

use crate::app::App;
use crate::db::{DbError, Prepare, SystemConn, sql};
use crate::domain::ids::WahaServerId;

#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = SqlUuid)]
    waha_server_id: WahaServerId,
    #[diesel(sql_type = BigInt)]
    by_webhook: i64,
    #[diesel(sql_type = BigInt)]
    by_read_back: i64,
}

const SHARES: &str = "\
SELECT waha_server_id, sum(recent_by_webhook)::bigint AS by_webhook, sum(recent_by_read_back)::bigint AS by_read_back
FROM gap_fills WHERE working_since IS NOT NULL GROUP BY waha_server_id";

/// Sets the gauges.
pub(super) async fn show(app: &App) -> Result<(), DbError> {
    let rows: Vec<Row> = app
        .db
        .system(async |conn: &mut SystemConn| Ok::<_, DbError>(sql(SHARES).prepared().load(&mut **conn).await?))
        .await?;
    for row in rows {
        let all = row.by_webhook + row.by_read_back;
        let share = if all > 0 { row.by_read_back as f64 / all as f64 } else { 0.0 };
        metrics::gauge!("switchboard_missed_webhooks_share", "server" => row.waha_server_id.to_string()).set(share);
    }
    Ok(())
}
