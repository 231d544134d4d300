//! Looking back and trying again: attempts, test events, replays.

use chrono::{DateTime, TimeDelta, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Bool, Integer, Nullable, SmallInt, Text, Timestamptz, Uuid};
use diesel_async::RunQueryDsl;
use serde::Serialize;
use utoipa::ToSchema;

use super::endpoints::{self, EndpointError};
use crate::app::App;
use crate::db::{DbError, Prepare, TenantConn, sql};
use crate::domain::ids::{DeliveryId, EndpointId, EventId, TenantId};
use crate::events::log::{self, NewEvent};
use crate::events::query::first_id_at;
use crate::events::types::TEST_PING;

/// Deliveries renewed in one transaction at the most.
const CHUNK: i64 = 5000;
/// How far the clocks of nodes may disagree.
const SKEW: TimeDelta = TimeDelta::minutes(5);

/// One attempt to deliver an event, as its tenant sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, QueryableByName, ToSchema)]
#[schema(as = WebhookAttempt)]
pub struct Attempt {
    /// The attempt.
    #[diesel(sql_type = Uuid)]
    pub id: uuid::Uuid,
    /// The delivery it belongs to.
    #[diesel(sql_type = Uuid)]
    pub delivery_id: DeliveryId,
    /// The event; also its `webhook-id`.
    #[diesel(sql_type = Uuid)]
    pub event_id: EventId,
    /// The event's type.
    #[diesel(sql_type = Text)]
    #[schema(example = "message.delivered")]
    pub event_type: String,
    /// The number of the attempt, from 1.
    #[diesel(sql_type = Integer)]
    pub attempt: i32,
    /// When it began.
    #[diesel(sql_type = Timestamptz)]
    pub at: DateTime<Utc>,
    /// How long it took, in milliseconds.
    #[diesel(sql_type = Integer)]
    pub duration_ms: i32,
    /// The status of the answer; `null` when there was none.
    #[diesel(sql_type = Nullable<SmallInt>)]
    #[schema(example = 200)]
    pub response_status: Option<i16>,
    /// Why there was no answer: `timeout`, `connect`, `broken`, `refused_address` or `internal`.
    #[diesel(sql_type = Nullable<Text>)]
    pub error: Option<String>,
    /// The beginning of the answer's body, up to 1 KB.
    #[diesel(sql_type = Nullable<Text>)]
    pub response_body: Option<String>,
}

/// A page of up to `limit` attempts for the endpoint, newest first, behind the one at `before` with that id.
///
/// # Errors
/// [`EndpointError::NotFound`] and [`EndpointError::Db`].
pub async fn attempts(
    conn: &mut TenantConn,
    endpoint: EndpointId,
    before: Option<(DateTime<Utc>, uuid::Uuid)>,
    limit: i64,
) -> Result<Vec<Attempt>, EndpointError> {
    endpoints::get(conn, endpoint).await?;
    let (at, id) = before.unwrap_or((DateTime::UNIX_EPOCH, uuid::Uuid::nil()));
    let attempts = sql(
        "SELECT a.id, a.delivery_id, a.event_id, e.type AS event_type, a.attempt, a.at, a.duration_ms, a.response_status, \
                a.error, a.response_body \
         FROM webhook_attempts a JOIN events e ON e.tenant_id = a.tenant_id AND e.id = a.event_id \
         WHERE a.tenant_id = $1 AND a.endpoint_id = $2 AND ($3 OR (a.at, a.id) < ($4, $5)) \
         ORDER BY a.at DESC, a.id DESC LIMIT $6",
    )
    .bind::<Uuid, _>(conn.tenant())
    .bind::<Uuid, _>(endpoint)
    .bind::<Bool, _>(before.is_none())
    .bind::<Timestamptz, _>(at)
    .bind::<Uuid, _>(id)
    .bind::<BigInt, _>(limit)
    .prepared()
    .load(&mut **conn)
    .await?;
    Ok(attempts)
}

/// Writes a `test.ping` event for this endpoint alone, whatever it is subscribed to; answers the event's id. Ring
/// `app.wake.deliveries` after the commit.
///
/// # Errors
/// [`EndpointError::NotFound`], [`EndpointError::Disabled`] and [`EndpointError::Db`].
pub async fn test(app: &App, conn: &mut TenantConn, endpoint: EndpointId) -> Result<EventId, EndpointError> {
    let target = endpoints::get(conn, endpoint).await?;
    if !target.enabled {
        return Err(EndpointError::Disabled);
    }
    let now = app.clock.now();
    let id = EventId::fresh(now, &app.chance);
    let tenant = conn.tenant();
    let ping = NewEvent {
        tenant,
        id,
        kind: TEST_PING,
        at: now,
        session_id: None,
        message_id: None,
        data: format!(r#"{{"endpoint_id":"{endpoint}"}}"#),
    };
    log::append(conn, &[ping]).await?;
    sql("INSERT INTO webhook_deliveries (tenant_id, id, endpoint_id, event_id, next_attempt_at, created_at, updated_at) \
         VALUES ($1, delivery_id($2, $3), $3, $2, $4, $4, $4)")
    .bind::<Uuid, _>(tenant)
    .bind::<Uuid, _>(id)
    .bind::<Uuid, _>(endpoint)
    .bind::<Timestamptz, _>(now)
    .prepared()
    .execute(&mut **conn)
    .await?;
    Ok(id)
}

/// What to deliver again.
#[derive(Clone, Copy, Debug)]
pub struct Replay {
    /// Events that happened at this moment or later.
    pub since: DateTime<Utc>,
    /// Events that happened before this moment; `None`: up to now.
    pub until: Option<DateTime<Utc>>,
    /// Only deliveries that failed; otherwise every event that the endpoint is subscribed to, delivered ones too.
    pub only_failed: bool,
}

#[derive(QueryableByName)]
struct Renewed {
    #[diesel(sql_type = Nullable<Uuid>)]
    last: Option<EventId>,
    #[diesel(sql_type = BigInt)]
    seen: i64,
    #[diesel(sql_type = BigInt)]
    renewed: i64,
}

/// Delivers events again, with their own `webhook-id` and a schedule that starts anew; answers how many. What is being
/// attempted at the moment is left alone.
///
/// Works in steps of its own transactions; one that fails leaves the steps before it done, and a repeat does them again.
///
/// # Errors
/// [`EndpointError::NotFound`], [`EndpointError::Disabled`], [`EndpointError::Invalid`] and [`EndpointError::Db`].
pub async fn replay(app: &App, tenant: TenantId, endpoint: EndpointId, replay: Replay) -> Result<u64, EndpointError> {
    let now = app.clock.now();
    // Nothing happened before the epoch, nor after now; far beyond either a time means nothing to Postgres.
    let replay = Replay { since: replay.since.max(DateTime::UNIX_EPOCH), ..replay };
    let until = replay.until.map_or(now + SKEW, |until| until.min(now + SKEW));
    if until <= replay.since {
        let (field, rule) = match replay.until {
            Some(until) if until <= replay.since => ("until", "must be later than `since`"),
            _ => ("since", "must not be in the future"),
        };
        return Err(EndpointError::Invalid { field, code: "out_of_range", message: rule.to_owned() });
    }
    // An event's id is made when it is written, so none that happened since has an id from before.
    let mut after = first_id_at(replay.since - SKEW);
    let mut total = 0;
    loop {
        let step = app
            .db
            .tenant(tenant, async move |conn| {
                if !endpoints::get(conn, endpoint).await?.enabled {
                    return Err(EndpointError::Disabled);
                }
                Ok(renew(conn, endpoint, after, until, replay, now).await?)
            })
            .await?;
        total += u64::try_from(step.renewed).unwrap_or_default();
        if step.renewed > 0 {
            app.wake.deliveries.notify_one();
        }
        match step.last {
            Some(last) if step.seen >= CHUNK => after = last,
            _ => return Ok(total),
        }
    }
}

async fn renew(
    conn: &mut TenantConn,
    endpoint: EndpointId,
    after: EventId,
    until: DateTime<Utc>,
    replay: Replay,
    now: DateTime<Utc>,
) -> Result<Renewed, DbError> {
    let renewed = sql("WITH seen AS MATERIALIZED ( \
             SELECT e.id, e.type, e.at FROM events e \
             WHERE e.tenant_id = $1 AND e.id > $3 ORDER BY e.id LIMIT $8), \
         wanted AS ( \
             SELECT s.id FROM seen s \
             JOIN webhook_endpoints w ON w.tenant_id = $1 AND w.id = $2 \
             LEFT JOIN webhook_deliveries d ON d.tenant_id = $1 AND d.endpoint_id = $2 AND d.event_id = s.id \
             WHERE s.at >= $4 AND s.at < $5 \
               AND CASE WHEN $6 THEN d.status = 'failed' \
                   ELSE s.type <> $9 AND w.event_types && ARRAY['*', split_part(s.type, '.', 1) || '.*', s.type] END), \
         renewed AS ( \
             INSERT INTO webhook_deliveries AS d \
                 (tenant_id, id, endpoint_id, event_id, next_attempt_at, created_at, updated_at) \
             SELECT $1, delivery_id(s.id, $2), $2, s.id, $7, $7, $7 FROM wanted s \
             ON CONFLICT (tenant_id, endpoint_id, event_id) DO UPDATE \
                 SET status = 'pending', attempts_before = d.attempts, next_attempt_at = $7, updated_at = $7 \
                 WHERE d.status <> 'pending' OR d.claimed_until IS NULL OR d.claimed_until <= $7 \
             RETURNING 1) \
         SELECT (SELECT id FROM seen ORDER BY id DESC LIMIT 1) AS last, (SELECT count(*) FROM seen) AS seen, \
                (SELECT count(*) FROM renewed) AS renewed")
    .bind::<Uuid, _>(conn.tenant())
    .bind::<Uuid, _>(endpoint)
    .bind::<Uuid, _>(after)
    .bind::<Timestamptz, _>(replay.since)
    .bind::<Timestamptz, _>(until)
    .bind::<Bool, _>(replay.only_failed)
    .bind::<Timestamptz, _>(now)
    .bind::<BigInt, _>(CHUNK)
    .bind::<Text, _>(TEST_PING)
    .prepared()
    .get_result(&mut **conn)
    .await?;
    Ok(renewed)
}
