//! Taking due deliveries: fair between endpoints, and counted before they are attempted.

use std::collections::HashMap;

use chrono::{DateTime, TimeDelta, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Binary, Integer, Nullable, Text, Timestamptz, Uuid};
use diesel_async::RunQueryDsl;

use crate::db::{Db, DbError, Prepare, sql};
use crate::domain::ids::{DeliveryId, EndpointId, EventId, TenantId};

/// From the claim until another node may try: the longest attempt, and as much again to record its outcome.
pub(super) const LEASE: TimeDelta = TimeDelta::seconds(30);

/// Attempts in flight for one endpoint on one node.
pub(super) const PER_ENDPOINT: i32 = 10;

/// An endpoint that has done nothing but fail for this long gets one attempt at a time, so that many dead endpoints do not
/// hold all slots of a node.
const PATIENCE: TimeDelta = TimeDelta::seconds(60);

/// Deliveries stopped in one transaction at the most.
const STOPPED: i64 = 5000;

/// A delivery that this node may attempt once, until the lease ends.
#[derive(QueryableByName)]
pub(super) struct Claimed {
    #[diesel(sql_type = Uuid)]
    pub(super) tenant_id: TenantId,
    #[diesel(sql_type = Uuid)]
    pub(super) id: DeliveryId,
    #[diesel(sql_type = Uuid)]
    pub(super) endpoint_id: EndpointId,
    #[diesel(sql_type = Uuid)]
    pub(super) event_id: EventId,
    /// The number of this attempt, from 1; also the fence of its outcome.
    #[diesel(sql_type = Integer)]
    pub(super) attempt: i32,
    /// Where the schedule began to count.
    #[diesel(sql_type = Integer)]
    pub(super) attempts_before: i32,
    #[diesel(sql_type = Text)]
    pub(super) kind: String,
    #[diesel(sql_type = Timestamptz)]
    pub(super) at: DateTime<Utc>,
    #[diesel(sql_type = Text)]
    pub(super) data: String,
    #[diesel(sql_type = Text)]
    pub(super) url: String,
    #[diesel(sql_type = Binary)]
    pub(super) secret_sealed: Vec<u8>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub(super) failing_since: Option<DateTime<Utc>>,
}

/// Whose turn it was last; the next claim begins behind it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Turn {
    pub(super) tenant: TenantId,
    pub(super) endpoint: EndpointId,
}

impl Turn {
    pub(super) const FIRST: Self =
        Self { tenant: TenantId(uuid::Uuid::nil()), endpoint: EndpointId(uuid::Uuid::nil()) };
}

/// Claims up to `free` due deliveries, endpoint by endpoint from behind `after`, no endpoint beyond its room beside what is
/// `in_flight` on this node.
///
/// The first part jumps through the index from one endpoint to the next, so the cost follows the number of endpoints that
/// have something pending, however much that is.
pub(super) async fn claim(
    db: &Db,
    now: DateTime<Utc>,
    after: Turn,
    in_flight: &HashMap<EndpointId, i32>,
    free: i64,
) -> Result<Vec<Claimed>, DbError> {
    let (busy, counts): (Vec<EndpointId>, Vec<i32>) = in_flight.iter().unzip();
    db.system(async move |conn| {
        let claimed = sql("WITH RECURSIVE lanes AS ( \
                 (SELECT d.tenant_id, d.endpoint_id FROM webhook_deliveries d WHERE d.status = 'pending' \
                  ORDER BY d.tenant_id, d.endpoint_id LIMIT 1) \
                 UNION ALL \
                 SELECT n.tenant_id, n.endpoint_id FROM lanes l CROSS JOIN LATERAL ( \
                     SELECT d.tenant_id, d.endpoint_id FROM webhook_deliveries d \
                     WHERE d.status = 'pending' AND (d.tenant_id, d.endpoint_id) > (l.tenant_id, l.endpoint_id) \
                     ORDER BY d.tenant_id, d.endpoint_id LIMIT 1) n), \
             turns AS MATERIALIZED ( \
                 SELECT l.tenant_id, l.endpoint_id, \
                        greatest(0, CASE WHEN w.failing_since <= $2 THEN 1 ELSE $3 END - coalesce(b.count, 0)) AS room \
                 FROM lanes l \
                 JOIN webhook_endpoints w ON w.tenant_id = l.tenant_id AND w.id = l.endpoint_id \
                 LEFT JOIN unnest($4::uuid[], $5::int[]) b (endpoint_id, count) ON b.endpoint_id = l.endpoint_id \
                 WHERE w.enabled AND w.deleted_at IS NULL \
                 ORDER BY (l.tenant_id, l.endpoint_id) <= ($6, $7), l.tenant_id, l.endpoint_id), \
             picked AS MATERIALIZED ( \
                 SELECT d.tenant_id, d.id FROM turns t CROSS JOIN LATERAL ( \
                     SELECT d.tenant_id, d.id FROM webhook_deliveries d \
                     WHERE d.tenant_id = t.tenant_id AND d.endpoint_id = t.endpoint_id \
                       AND d.status = 'pending' AND d.next_attempt_at <= $1 \
                     ORDER BY d.next_attempt_at LIMIT t.room FOR UPDATE SKIP LOCKED) d \
                 LIMIT $8), \
             claimed AS ( \
                 UPDATE webhook_deliveries d \
                 SET attempts = d.attempts + 1, next_attempt_at = $9, claimed_until = $9, updated_at = $1 \
                 FROM picked p WHERE d.tenant_id = p.tenant_id AND d.id = p.id \
                 RETURNING d.tenant_id, d.id, d.endpoint_id, d.event_id, d.attempts, d.attempts_before) \
             SELECT c.tenant_id, c.id, c.endpoint_id, c.event_id, c.attempts AS attempt, c.attempts_before, \
                    e.type AS kind, e.at, e.data, w.url, w.secret_sealed, w.failing_since \
             FROM claimed c \
             JOIN events e ON e.tenant_id = c.tenant_id AND e.id = c.event_id \
             JOIN webhook_endpoints w ON w.tenant_id = c.tenant_id AND w.id = c.endpoint_id \
             ORDER BY (c.tenant_id, c.endpoint_id) <= ($6, $7), c.tenant_id, c.endpoint_id")
        .bind::<Timestamptz, _>(now)
        .bind::<Timestamptz, _>(now - PATIENCE)
        .bind::<Integer, _>(PER_ENDPOINT)
        .bind::<Array<Uuid>, _>(busy)
        .bind::<Array<Integer>, _>(counts)
        .bind::<Uuid, _>(after.tenant)
        .bind::<Uuid, _>(after.endpoint)
        .bind::<BigInt, _>(free)
        .bind::<Timestamptz, _>(now + LEASE)
        .prepared()
        .load(&mut **conn)
        .await?;
        Ok(claimed)
    })
    .await
}

/// Ends pending deliveries of endpoints that are disabled or deleted, whoever made them so; answers how many.
pub(super) async fn stop_pending(db: &Db, now: DateTime<Utc>) -> Result<usize, DbError> {
    db.system(async |conn| {
        let stopped = sql("WITH RECURSIVE lanes AS ( \
                 (SELECT d.tenant_id, d.endpoint_id FROM webhook_deliveries d WHERE d.status = 'pending' \
                  ORDER BY d.tenant_id, d.endpoint_id LIMIT 1) \
                 UNION ALL \
                 SELECT n.tenant_id, n.endpoint_id FROM lanes l CROSS JOIN LATERAL ( \
                     SELECT d.tenant_id, d.endpoint_id FROM webhook_deliveries d \
                     WHERE d.status = 'pending' AND (d.tenant_id, d.endpoint_id) > (l.tenant_id, l.endpoint_id) \
                     ORDER BY d.tenant_id, d.endpoint_id LIMIT 1) n), \
             picked AS MATERIALIZED ( \
                 SELECT d.tenant_id, d.id FROM lanes l \
                 JOIN webhook_endpoints w ON w.tenant_id = l.tenant_id AND w.id = l.endpoint_id \
                  AND (NOT w.enabled OR w.deleted_at IS NOT NULL) \
                 CROSS JOIN LATERAL ( \
                     SELECT d.tenant_id, d.id FROM webhook_deliveries d \
                     WHERE d.tenant_id = l.tenant_id AND d.endpoint_id = l.endpoint_id AND d.status = 'pending' \
                     ORDER BY d.next_attempt_at LIMIT $2 FOR UPDATE SKIP LOCKED) d \
                 LIMIT $2) \
             UPDATE webhook_deliveries d SET status = 'failed', updated_at = $1 \
             FROM picked p WHERE d.tenant_id = p.tenant_id AND d.id = p.id")
        .bind::<Timestamptz, _>(now)
        .bind::<BigInt, _>(STOPPED)
        .prepared()
        .execute(&mut **conn)
        .await?;
        Ok(stopped)
    })
    .await
}

/// How many deliveries are due, counted up to `most`.
pub(super) async fn backlog(db: &Db, now: DateTime<Utc>, most: i64) -> Result<i64, DbError> {
    #[derive(QueryableByName)]
    struct Count {
        #[diesel(sql_type = BigInt)]
        count: i64,
    }
    db.system(async |conn| {
        let row: Count = sql("SELECT count(*) AS count FROM (SELECT 1 FROM webhook_deliveries \
             WHERE status = 'pending' AND next_attempt_at <= $1 LIMIT $2) due")
        .bind::<Timestamptz, _>(now)
        .bind::<BigInt, _>(most)
        .prepared()
        .get_result(&mut **conn)
        .await?;
        Ok(row.count)
    })
    .await
}
