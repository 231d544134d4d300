//! One step at a time for each session that is not as desired.

use std::collections::HashMap;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Bool, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use tokio::sync::watch;
use tokio::task::{Id, JoinSet};

use super::act::{self, Again, Looked};
use super::plan::{Wishes, wish_columns};
use crate::app::App;
use crate::db::{DbError, Prepare, SystemConn, sql};
use crate::domain::ids::{SessionId, TenantId, WahaServerId};
use crate::sessions::status::{self, Observation, Polled, Source};

/// Steps under way on this node.
const MOST: usize = 64;
/// Steps under way on this node at one WAHA server, so that a hanging one holds up only its own sessions.
const MOST_PER_SERVER: i64 = 4;
/// How long one node alone acts on a session. Longer than a step takes: two calls of 30 s and some statements.
const LEASE: TimeDelta = TimeDelta::seconds(120);
/// The pause before the next look, doubled for each step or failure in a row.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// A session taken under a lease.
#[derive(Clone, QueryableByName)]
pub(super) struct Taken {
    #[diesel(sql_type = SqlUuid)]
    pub tenant_id: TenantId,
    #[diesel(sql_type = SqlUuid)]
    pub id: SessionId,
    #[diesel(sql_type = SqlUuid)]
    pub waha_server_id: WahaServerId,
    #[diesel(sql_type = Text)]
    pub external_session_id: String,
    #[diesel(embed)]
    pub wishes: Wishes,
    #[diesel(sql_type = BigInt)]
    pub known: i64,
    #[diesel(sql_type = Integer)]
    pub reconcile_failures: i32,
    #[diesel(sql_type = Timestamptz)]
    pub reconcile_lease: DateTime<Utc>,
}

// A server known to be away is left to the polls, which notice when it is back. Those that wait for a place to start are taken
// only as there are places, so that waiting costs no calls.
const TAKE: &str = concat!(
    "\
WITH looks AS (
    SELECT d.tenant_id, d.id FROM waha_servers v
    LEFT JOIN unnest($2, $3) AS busy (server, running) ON busy.server = v.id
    CROSS JOIN LATERAL (
        SELECT s.tenant_id, s.id FROM waha_sessions s
        WHERE s.waha_server_id = v.id AND s.reconcile_at <= $1 AND s.start_queued_at IS NULL
          AND (s.reconcile_lease IS NULL OR s.reconcile_lease <= $1) AND s.removed_at IS NULL
        ORDER BY s.reconcile_at LIMIT greatest($4 - coalesce(busy.running, 0), 0)
        FOR UPDATE SKIP LOCKED
    ) d
    WHERE v.deleted_at IS NULL AND v.health IN ('healthy', 'unknown')
    LIMIT $5
), starts AS (
    SELECT d.tenant_id, d.id FROM waha_servers v
    LEFT JOIN unnest($2, $3) AS busy (server, running) ON busy.server = v.id
    CROSS JOIN LATERAL (
        SELECT $7 - count(*) AS places FROM waha_sessions o WHERE o.waha_server_id = v.id AND o.starting_since > $8
    ) room
    CROSS JOIN LATERAL (
        SELECT s.tenant_id, s.id FROM waha_sessions s
        WHERE s.waha_server_id = v.id AND s.reconcile_at <= $1 AND s.start_queued_at IS NOT NULL
          AND (s.reconcile_lease IS NULL OR s.reconcile_lease <= $1) AND s.removed_at IS NULL
        ORDER BY s.start_queued_at LIMIT greatest(least(room.places, $4 - coalesce(busy.running, 0)), 0)
        FOR UPDATE SKIP LOCKED
    ) d
    WHERE v.deleted_at IS NULL AND v.health IN ('healthy', 'unknown')
    LIMIT $5
), taken AS (
    UPDATE waha_sessions s SET reconcile_at = $6, reconcile_lease = $6
    FROM (SELECT * FROM looks UNION ALL SELECT * FROM starts) d
    WHERE s.tenant_id = d.tenant_id AND s.id = d.id
    RETURNING s.*
)
SELECT s.tenant_id, s.id, s.waha_server_id, s.external_session_id, s.version + s.observations AS known, s.reconcile_failures,
       s.reconcile_lease, ",
    wish_columns!(),
    " FROM taken s JOIN waha_servers v ON v.id = s.waha_server_id LEFT JOIN waha_servers t ON t.id = s.move_to"
);

// Who asked for another look meanwhile has moved reconcile_at, and gets it. A place for starting that was not used is free again.
const GIVE_BACK: &str = "\
UPDATE waha_sessions SET
    reconcile_at = CASE WHEN reconcile_at = reconcile_lease THEN $4 ELSE reconcile_at END,
    reconcile_failures = CASE WHEN reconcile_at = reconcile_lease THEN $5 ELSE reconcile_failures END,
    reconcile_lease = NULL,
    start_queued_at = CASE WHEN $9 THEN coalesce(start_queued_at, $10) END,
    starting_since = CASE WHEN $11 AND waha_status <> 'starting' THEN NULL ELSE starting_since END,
    restart_wanted_at = CASE WHEN restart_wanted_at = $6 THEN NULL ELSE restart_wanted_at END,
    restart_by_tenant = restart_by_tenant AND restart_wanted_at IS DISTINCT FROM $6,
    logout_wanted_at = CASE WHEN logout_wanted_at = $7 THEN NULL ELSE logout_wanted_at END,
    phone = CASE WHEN logout_wanted_at = $7 THEN NULL ELSE phone END,
    restarts = CASE WHEN $8 THEN array_append(
        ARRAY(SELECT at FROM unnest(restarts) AS at WHERE at > $10 - interval '1 hour'), $10) ELSE restarts END,
    failure_restarted = failure_restarted OR $8 AND $12
WHERE tenant_id = $1 AND id = $2 AND reconcile_lease = $3";

/// Takes what is due until `stop` turns true, then waits for the steps under way.
pub(super) async fn run(app: App, mut stop: watch::Receiver<bool>) {
    let mut steps = JoinSet::new();
    let mut servers: HashMap<Id, WahaServerId> = HashMap::new();
    while !*stop.borrow() {
        while let Some(ended) = steps.try_join_next_with_id() {
            servers.remove(&ended.map_or_else(|panicked| panicked.id(), |(id, ())| id));
        }
        let mut pause = app.config.timings.poll;
        if servers.len() < MOST {
            match take(&app, &servers).await {
                Ok(taken) => {
                    for session in taken {
                        let server = session.waha_server_id;
                        servers.insert(steps.spawn(look(app.clone(), session)).id(), server);
                    }
                }
                Err(fault) => {
                    tracing::warn!(%fault, "reconcile: the sessions cannot be read");
                    pause = Duration::from_secs(1);
                }
            }
        }
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => break,
            Some(ended) = steps.join_next_with_id() => {
                servers.remove(&ended.map_or_else(|panicked| panicked.id(), |(id, ())| id));
            }
            () = app.wake.sessions.notified() => {}
            () = app.clock.sleep(pause) => {}
        }
    }
    while steps.join_next().await.is_some() {}
}

async fn take(app: &App, busy: &HashMap<Id, WahaServerId>) -> Result<Vec<Taken>, DbError> {
    let now = app.clock.now();
    let mut running: HashMap<WahaServerId, i64> = HashMap::new();
    for server in busy.values() {
        *running.entry(*server).or_default() += 1;
    }
    let (busy_servers, counts): (Vec<_>, Vec<_>) = running.into_iter().unzip();
    let free = i64::try_from(MOST.saturating_sub(busy.len())).unwrap_or(i64::MAX);
    let fleet = &app.config.fleet;
    app.db
        .system(async |conn| {
            Ok(sql(TAKE)
                .bind::<Timestamptz, _>(now)
                .bind::<Array<SqlUuid>, _>(busy_servers)
                .bind::<Array<BigInt>, _>(counts)
                .bind::<BigInt, _>(MOST_PER_SERVER)
                .bind::<BigInt, _>(free)
                .bind::<Timestamptz, _>(now + LEASE)
                .bind::<BigInt, _>(fleet.starts_at_once)
                .bind::<Timestamptz, _>(now - fleet.start_deadline)
                .prepared()
                .load(&mut **conn)
                .await?)
        })
        .await
}

async fn look(app: App, session: Taken) {
    let looked = act::act(&app, &session).await;
    let in_a_row = session.reconcile_failures.saturating_add(1);
    let written = match &looked {
        Ok(looked) => {
            if looked.step.is_some() {
                let step = looked.step.map_or("nothing", super::plan::Step::name);
                metrics::counter!("switchboard_reconcile_steps_total", "step" => step).increment(1);
                tracing::info!(session_id = %session.id, step, "reconcile: a step towards the desired state");
            }
            finish(&app, &session, looked, in_a_row).await
        }
        Err(fault) => {
            metrics::counter!("switchboard_reconcile_failures_total").increment(1);
            tracing::warn!(session_id = %session.id, %fault, failures = in_a_row, "reconcile: a step failed; it is tried again");
            let failed = Looked { again: Again::Soon, unused_place: true, ..Looked::default() };
            finish(&app, &session, &failed, in_a_row).await
        }
    };
    if let Err(fault) = written {
        // The lease runs out, and another look begins.
        tracing::warn!(session_id = %session.id, %fault, "reconcile: the outcome of a step could not be written down");
    }
}

/// Writes down what was seen and gives the session back, to be looked at again unless nothing was missing.
async fn finish(app: &App, session: &Taken, looked: &Looked, in_a_row: i32) -> Result<(), DbError> {
    let now = app.clock.now();
    let (next, failures) = match looked.again {
        Again::No => (None, 0),
        Again::Soon => (Some(now + pause_before(app, in_a_row)), in_a_row),
        Again::At(at) => (Some(at), session.reconcile_failures),
        Again::WhenRoom => (Some(now), session.reconcile_failures),
    };
    // A wish is done with once its step succeeded. One that is not to be had (the session stopped by itself, say) is no longer
    // wanted either.
    let done = |wish: Option<DateTime<Utc>>| wish.filter(|_| looked.wishes_done);
    let changed = app
        .db
        .system(async |conn: &mut SystemConn| {
            let mut changed = 0;
            if let Some((status, me)) = &looked.status {
                let observation = Observation {
                    tenant: session.tenant_id,
                    session: session.id,
                    status: *status,
                    reported_at: None,
                    me: me.clone(),
                    source: if looked.step.is_some() { Source::Step } else { Source::Poll },
                };
                let polled = [Polled { observation, known: session.known }];
                changed = status::observe_polled(conn, &app.chance, now, &polled).await?;
            }
            sql(GIVE_BACK)
                .bind::<SqlUuid, _>(session.tenant_id)
                .bind::<SqlUuid, _>(session.id)
                .bind::<Timestamptz, _>(session.reconcile_lease)
                .bind::<Nullable<Timestamptz>, _>(next)
                .bind::<Integer, _>(failures)
                .bind::<Nullable<Timestamptz>, _>(done(session.wishes.restart_wanted_at))
                .bind::<Nullable<Timestamptz>, _>(done(session.wishes.logout_wanted_at))
                .bind::<Bool, _>(looked.own_restart)
                .bind::<Bool, _>(looked.again == Again::WhenRoom)
                .bind::<Timestamptz, _>(now)
                .bind::<Bool, _>(looked.unused_place)
                .bind::<Bool, _>(session.wishes.waha_status == "failed")
                .prepared()
                .execute(&mut **conn)
                .await?;
            Ok::<_, DbError>(changed)
        })
        .await?;
    if changed > 0 {
        app.wake.events.notify_one();
        app.wake.dispatch.notify_one();
    }
    Ok(())
}

/// 1 s after the first step or failure, twice as long after each further one, a minute at the most; and up to half of it
/// more, by chance.
fn pause_before(app: &App, in_a_row: i32) -> TimeDelta {
    let doublings = u32::try_from(in_a_row.saturating_sub(1)).unwrap_or(0).min(16);
    let pause = FIRST_PAUSE.saturating_mul(1 << doublings).min(LONGEST_PAUSE);
    TimeDelta::from_std(pause + app.chance.jitter(pause / 2)).unwrap_or_default()
}
