//! Recording outcomes, many at once: the attempt, the delivery's next step and the endpoint's health share a transaction.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, TimeDelta, Utc};
use diesel::sql_types::{Array, Integer, Nullable, SmallInt, Text, Timestamptz, Uuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};

use super::endpoints::{self, Endpoint};
use crate::app::App;
use crate::db::group_commit::BatchWriter;
use crate::db::{DbError, Prepare, sql};
use crate::domain::ids::{DeliveryId, EndpointId, EventId, TenantId};
use crate::events::log::{self, NewEvent};
use crate::events::types::ENDPOINT_DISABLED;

/// An endpoint that did nothing but fail for this long is disabled.
const LONGEST_FAILURE: TimeDelta = TimeDelta::hours(120);

/// What becomes of the delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// The endpoint has it.
    Delivered,
    /// It is tried again at this time.
    Retry(DateTime<Utc>),
    /// Its schedule is used up.
    Exhausted,
    /// The endpoint wants no more (410).
    Gone,
}

/// One attempt that was made.
#[derive(Clone, Debug)]
pub(super) struct Outcome {
    pub(super) tenant: TenantId,
    pub(super) delivery: DeliveryId,
    pub(super) endpoint: EndpointId,
    pub(super) event: EventId,
    pub(super) attempt: i32,
    pub(super) attempt_id: uuid::Uuid,
    pub(super) at: DateTime<Utc>,
    pub(super) duration_ms: i32,
    pub(super) response_status: Option<i16>,
    pub(super) error: Option<&'static str>,
    pub(super) response_body: Option<String>,
    pub(super) was_failing: bool,
    pub(super) fate: Fate,
}

/// Writes outcomes.
pub(super) struct OutcomeWriter {
    pub(super) app: App,
}

impl BatchWriter for OutcomeWriter {
    type Item = Outcome;
    type Answer = ();

    async fn write(&self, items: &[Outcome]) -> Result<Vec<()>, DbError> {
        let app = &self.app;
        let now = app.clock.now();
        let disabled = app
            .db
            .system(async |conn| {
                add_attempts(conn, items, now).await?;
                move_deliveries(conn, items, now).await?;
                judge_endpoints(conn, app, items, now).await
            })
            .await?;
        if disabled > 0 {
            app.wake.events.notify_one();
        }
        Ok(vec![(); items.len()])
    }

    fn conflict(&self, earlier: &Outcome, later: &Outcome) -> bool {
        earlier.delivery == later.delivery
    }

    fn conflict_key(&self, item: &Outcome) -> Option<u64> {
        Some(item.delivery.0.as_u64_pair().1)
    }
}

async fn add_attempts(conn: &mut AsyncPgConnection, items: &[Outcome], now: DateTime<Utc>) -> Result<(), DbError> {
    // A commit whose answer was lost is written again: its rows are there already.
    sql("INSERT INTO webhook_attempts (tenant_id, id, delivery_id, endpoint_id, event_id, attempt, at, duration_ms, \
                                       response_status, error, response_body, created_at) \
         SELECT o.*, $12 FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::uuid[], $5::uuid[], $6::int[], \
                                     $7::timestamptz[], $8::int[], $9::smallint[], $10::text[], $11::text[]) o \
         ON CONFLICT DO NOTHING")
    .bind::<Array<Uuid>, _>(items.iter().map(|item| item.tenant).collect::<Vec<_>>())
    .bind::<Array<Uuid>, _>(items.iter().map(|item| item.attempt_id).collect::<Vec<_>>())
    .bind::<Array<Uuid>, _>(items.iter().map(|item| item.delivery).collect::<Vec<_>>())
    .bind::<Array<Uuid>, _>(items.iter().map(|item| item.endpoint).collect::<Vec<_>>())
    .bind::<Array<Uuid>, _>(items.iter().map(|item| item.event).collect::<Vec<_>>())
    .bind::<Array<Integer>, _>(items.iter().map(|item| item.attempt).collect::<Vec<_>>())
    .bind::<Array<Timestamptz>, _>(items.iter().map(|item| item.at).collect::<Vec<_>>())
    .bind::<Array<Integer>, _>(items.iter().map(|item| item.duration_ms).collect::<Vec<_>>())
    .bind::<Array<Nullable<SmallInt>>, _>(items.iter().map(|item| item.response_status).collect::<Vec<_>>())
    .bind::<Array<Nullable<Text>>, _>(items.iter().map(|item| item.error).collect::<Vec<_>>())
    .bind::<Array<Nullable<Text>>, _>(items.iter().map(|item| item.response_body.as_deref()).collect::<Vec<_>>())
    .bind::<Timestamptz, _>(now)
    .prepared()
    .execute(conn)
    .await?;
    Ok(())
}

/// The outcome of an attempt that is not the latest says nothing about what comes next; but that the endpoint took the
/// event is true whenever it is learned.
async fn move_deliveries(conn: &mut AsyncPgConnection, items: &[Outcome], now: DateTime<Utc>) -> Result<(), DbError> {
    let mut items: Vec<&Outcome> = items.iter().collect();
    items.sort_unstable_by_key(|item| (item.tenant, item.delivery));
    let status = |item: &&Outcome| match item.fate {
        Fate::Delivered => "delivered",
        Fate::Retry(_) => "pending",
        Fate::Exhausted | Fate::Gone => "failed",
    };
    let next = |item: &&Outcome| match item.fate {
        Fate::Retry(at) => Some(at),
        Fate::Delivered | Fate::Exhausted | Fate::Gone => None,
    };
    sql("UPDATE webhook_deliveries d \
         SET status = o.status, next_attempt_at = coalesce(o.next, d.next_attempt_at), claimed_until = NULL, updated_at = $6 \
         FROM unnest($1::uuid[], $2::uuid[], $3::int[], $4::text[], $5::timestamptz[]) \
              o (tenant_id, id, attempt, status, next) \
         WHERE d.tenant_id = o.tenant_id AND d.id = o.id \
           AND ((d.status = 'pending' AND d.attempts = o.attempt) OR (o.status = 'delivered' AND d.status <> 'delivered'))")
    .bind::<Array<Uuid>, _>(items.iter().map(|item| item.tenant).collect::<Vec<_>>())
    .bind::<Array<Uuid>, _>(items.iter().map(|item| item.delivery).collect::<Vec<_>>())
    .bind::<Array<Integer>, _>(items.iter().map(|item| item.attempt).collect::<Vec<_>>())
    .bind::<Array<Text>, _>(items.iter().map(status).collect::<Vec<_>>())
    .bind::<Array<Nullable<Timestamptz>>, _>(items.iter().map(next).collect::<Vec<_>>())
    .bind::<Timestamptz, _>(now)
    .prepared()
    .execute(conn)
    .await?;
    Ok(())
}

/// Remembers since when an endpoint does nothing but fail, and disables those that are gone or have failed for too long.
/// Answers how many were disabled.
async fn judge_endpoints(
    conn: &mut AsyncPgConnection,
    app: &App,
    items: &[Outcome],
    now: DateTime<Utc>,
) -> Result<usize, DbError> {
    let succeeded: BTreeSet<_> =
        items.iter().filter(|item| item.fate == Fate::Delivered).map(|item| (item.tenant, item.endpoint)).collect();
    let recovered: BTreeSet<_> = items
        .iter()
        .filter(|item| item.was_failing && item.fate == Fate::Delivered)
        .map(|item| (item.tenant, item.endpoint))
        .collect();
    // The first failure of each endpoint, and whether it is gone.
    let mut failed: BTreeMap<(TenantId, EndpointId), (DateTime<Utc>, bool)> = BTreeMap::new();
    for item in items.iter().filter(|item| item.fate != Fate::Delivered) {
        let gone = item.fate == Fate::Gone;
        if gone || !succeeded.contains(&(item.tenant, item.endpoint)) {
            let known = failed.entry((item.tenant, item.endpoint)).or_insert((item.at, gone));
            *known = (known.0.min(item.at), known.1 || gone);
        }
    }
    if !recovered.is_empty() {
        let (tenants, ids): (Vec<_>, Vec<_>) = recovered.into_iter().unzip();
        sql("UPDATE webhook_endpoints w SET failing_since = NULL \
             FROM unnest($1::uuid[], $2::uuid[]) o (tenant_id, id) \
             WHERE w.tenant_id = o.tenant_id AND w.id = o.id AND w.failing_since IS NOT NULL")
        .bind::<Array<Uuid>, _>(tenants)
        .bind::<Array<Uuid>, _>(ids)
        .prepared()
        .execute(conn)
        .await?;
    }
    if failed.is_empty() {
        return Ok(0);
    }
    let (keys, facts): (Vec<_>, Vec<_>) = failed.into_iter().unzip();
    let (tenants, ids): (Vec<TenantId>, Vec<EndpointId>) = keys.into_iter().unzip();
    let (since, gone): (Vec<DateTime<Utc>>, Vec<bool>) = facts.into_iter().unzip();
    sql("UPDATE webhook_endpoints w SET failing_since = o.since \
         FROM unnest($1::uuid[], $2::uuid[], $3::timestamptz[]) o (tenant_id, id, since) \
         WHERE w.tenant_id = o.tenant_id AND w.id = o.id AND w.failing_since IS NULL AND w.enabled")
    .bind::<Array<Uuid>, _>(tenants.clone())
    .bind::<Array<Uuid>, _>(ids.clone())
    .bind::<Array<Timestamptz>, _>(since)
    .prepared()
    .execute(conn)
    .await?;
    let disabled: Vec<Endpoint> = sql("UPDATE webhook_endpoints w \
         SET enabled = false, disabled_because = CASE WHEN o.gone THEN 'gone' ELSE 'failing' END, \
             version = w.version + 1, updated_at = $4 \
         FROM unnest($1::uuid[], $2::uuid[], $3::bool[]) o (tenant_id, id, gone) \
         WHERE w.tenant_id = o.tenant_id AND w.id = o.id AND w.enabled AND w.deleted_at IS NULL \
           AND (o.gone OR w.failing_since <= $5) \
         RETURNING w.tenant_id, w.id, w.url, w.event_types, w.description, w.enabled, w.disabled_because, \
                   w.failing_since, w.version, w.created_at, w.updated_at")
    .bind::<Array<Uuid>, _>(tenants)
    .bind::<Array<Uuid>, _>(ids)
    .bind::<Array<diesel::sql_types::Bool>, _>(gone)
    .bind::<Timestamptz, _>(now)
    .bind::<Timestamptz, _>(now - LONGEST_FAILURE)
    .prepared()
    .load(conn)
    .await?;
    let told: Vec<NewEvent> = disabled
        .iter()
        .map(|endpoint| NewEvent {
            tenant: endpoint.tenant_id,
            id: EventId::fresh(now, &app.chance),
            kind: ENDPOINT_DISABLED,
            at: now,
            session_id: None,
            message_id: None,
            data: endpoints::to_json(endpoint),
        })
        .collect();
    log::append(conn, &told).await?;
    for endpoint in &disabled {
        tracing::warn!(
            tenant.id = %endpoint.tenant_id,
            endpoint.id = %endpoint.id,
            because = endpoint.disabled_because,
            "webhook endpoint disabled"
        );
    }
    Ok(disabled.len())
}
