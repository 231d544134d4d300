//! Endpoints that were seen not to keep the message id they were given.
//!
//! WAHA keeps no promise about ids: an engine, a version or one endpoint may ignore the one it is given, and says so only by
//! answering with another. From then on a repeat there would be a second message, so nothing is sent again in doubt. What was
//! seen is kept in the database, by engine, version and endpoint, and known on every node within a second.

use std::collections::HashSet;
use std::sync::Arc;

use diesel::QueryableByName;
use diesel::sql_types::{Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;

use crate::app::App;
use crate::db::generation::Cache;
use crate::db::{DbError, Prepare, sql};
use crate::domain::ids::WahaServerId;

/// What is known of the endpoints of each server; clones share it.
#[derive(Clone)]
pub struct ForeignIds {
    app: App,
    seen: Arc<Cache<WahaServerId, Arc<HashSet<String>>>>,
}

impl std::fmt::Debug for ForeignIds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ForeignIds").finish_non_exhaustive()
    }
}

#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = Nullable<Text>)]
    endpoint: Option<String>,
}

impl ForeignIds {
    const MOST: usize = 10_000;

    /// Nothing is known yet.
    #[must_use]
    pub fn new(app: &App) -> Self {
        Self { app: app.clone(), seen: Arc::new(Cache::new(app.generation.clone(), Self::MOST)) }
    }

    /// Whether `endpoint` of `server` was seen not to keep ids.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn seen_at(&self, server: WahaServerId, endpoint: &str) -> Result<bool, DbError> {
        if let Some(known) = self.seen.get(&server) {
            return Ok(known.contains(endpoint));
        }
        let begun = self.seen.begin();
        let rows: Vec<Row> = self
            .app
            .db
            .system(async |conn| {
                Ok::<_, DbError>(
                    sql("SELECT f.endpoint FROM waha_servers v JOIN foreign_id_endpoints f \
                         ON f.engine = v.engine AND f.waha_version = coalesce(v.waha_version, '') WHERE v.id = $1")
                    .bind::<SqlUuid, _>(server)
                    .prepared()
                    .load(&mut **conn)
                    .await?,
                )
            })
            .await?;
        let known: HashSet<String> = rows.into_iter().filter_map(|row| row.endpoint).collect();
        let seen = known.contains(endpoint);
        self.seen.put(begun, server, Arc::new(known));
        Ok(seen)
    }

    /// Notes that `endpoint` of `server` answered with another id than it was given. Every call empties the caches of all nodes, so
    /// ask [`ForeignIds::seen_at`] before.
    pub async fn note(&self, server: WahaServerId, endpoint: &str) {
        let now = self.app.clock.now();
        let noted = self
            .app
            .db
            .system(async |conn| {
                let rows = sql("INSERT INTO foreign_id_endpoints (engine, waha_version, endpoint, noted_at) \
                     SELECT engine, coalesce(waha_version, ''), $2, $3 FROM waha_servers WHERE id = $1 ON CONFLICT DO NOTHING")
                    .bind::<SqlUuid, _>(server)
                    .bind::<Text, _>(endpoint)
                    .bind::<Timestamptz, _>(now)
                    .prepared()
                    .execute(&mut **conn)
                    .await?;
                Ok::<_, DbError>(rows)
            })
            .await;
        match noted {
            Ok(0) => {}
            Ok(_) => {
                tracing::warn!(waha_server_id = %server, endpoint, "an endpoint does not keep message ids: from now on nothing is sent there again in doubt");
                if let Err(fault) = self.app.generation.refresh(&self.app.db).await {
                    tracing::debug!(%fault, "the caches are refreshed a little later");
                }
            }
            // The next answer tells it again.
            Err(fault) => {
                tracing::warn!(%fault, waha_server_id = %server, "sending: an endpoint that does not keep ids could not be noted");
            }
        }
    }
}
