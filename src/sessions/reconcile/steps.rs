//! One step at a time for each session that is not as desired.

use std::collections::HashMap;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::watch;
use tokio::task::{Id, JoinSet};

use super::{Step, next_step, status_of};
use crate::app::App;
use crate::db::{DbError, Prepare, SystemConn, sql};
use crate::domain::ids::{SessionId, TenantId, WahaServerId};
use crate::sessions::directory::{DirectoryError, SessionEntry};
use crate::sessions::queries::Desired;
use crate::sessions::status::{self, Observation, Polled};
use crate::waha::{CallError, Me, Server, SessionInfo, SessionSpec, SessionStatus};

/// Steps under way on this node.
const MOST: usize = 64;
/// Steps under way on this node at one WAHA server, so that a hanging one holds up only its own sessions.
const MOST_PER_SERVER: i64 = 4;
/// How long one node alone acts on a session. Longer than a step takes: two calls of 30 s and some statements.
const LEASE: TimeDelta = TimeDelta::seconds(120);
/// A step is not begun with less than this left of its lease.
const STEP: TimeDelta = TimeDelta::seconds(60);
/// The pause before the next look, doubled for each step or failure in a row.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// A session taken under a lease.
#[derive(Clone, QueryableByName)]
struct Taken {
    #[diesel(sql_type = SqlUuid)]
    tenant_id: TenantId,
    #[diesel(sql_type = SqlUuid)]
    id: SessionId,
    #[diesel(sql_type = SqlUuid)]
    waha_server_id: WahaServerId,
    #[diesel(sql_type = Text)]
    desired: String,
    #[diesel(sql_type = BigInt)]
    version: i64,
    #[diesel(sql_type = Integer)]
    reconcile_failures: i32,
    #[diesel(sql_type = Timestamptz)]
    reconcile_lease: DateTime<Utc>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    restart_wanted_at: Option<DateTime<Utc>>,
}

// A server known to be away is left to the polls, which notice when it is back.
const TAKE: &str = "\
WITH due AS (
    SELECT d.tenant_id, d.id FROM waha_servers v
    LEFT JOIN unnest($2, $3) AS busy (server, running) ON busy.server = v.id
    CROSS JOIN LATERAL (
        SELECT s.tenant_id, s.id FROM waha_sessions s
        WHERE s.waha_server_id = v.id AND s.reconcile_at <= $1
          AND (s.reconcile_lease IS NULL OR s.reconcile_lease <= $1)
          AND s.deleted_at IS NULL AND s.desired IN ('started', 'stopped')
        ORDER BY s.reconcile_at LIMIT greatest($4 - coalesce(busy.running, 0), 0)
        FOR UPDATE SKIP LOCKED
    ) d
    WHERE v.deleted_at IS NULL AND v.health IN ('healthy', 'unknown')
    LIMIT $5
)
UPDATE waha_sessions s SET reconcile_at = $6, reconcile_lease = $6
FROM due d WHERE s.tenant_id = d.tenant_id AND s.id = d.id
RETURNING s.tenant_id, s.id, s.waha_server_id, s.desired, s.version, s.reconcile_failures, s.reconcile_lease, s.restart_wanted_at";

// Who asked for another look meanwhile has moved reconcile_at, and gets it.
const GIVE_BACK: &str = "\
UPDATE waha_sessions SET
    reconcile_at = CASE WHEN reconcile_at = reconcile_lease THEN $4 ELSE reconcile_at END,
    reconcile_failures = CASE WHEN reconcile_at = reconcile_lease THEN $5 ELSE reconcile_failures END,
    reconcile_lease = NULL,
    restart_wanted_at = CASE WHEN restart_wanted_at = $6 THEN NULL ELSE restart_wanted_at END
WHERE tenant_id = $1 AND id = $2 AND reconcile_lease = $3";

/// Why a step did not succeed. Its texts are safe to log.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error(transparent)]
    Waha(#[from] CallError),
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    #[error("the address of this service does not make a webhook address")]
    PublicUrl,
    #[error("WAHA answered too late for a step within the lease")]
    TooLate,
}

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
    app.db
        .system(async |conn| {
            Ok(sql(TAKE)
                .bind::<Timestamptz, _>(now)
                .bind::<Array<SqlUuid>, _>(busy_servers)
                .bind::<Array<BigInt>, _>(counts)
                .bind::<BigInt, _>(MOST_PER_SERVER)
                .bind::<BigInt, _>(free)
                .bind::<Timestamptz, _>(now + LEASE)
                .prepared()
                .load(&mut **conn)
                .await?)
        })
        .await
}

/// What a look at a session brought.
struct Looked {
    /// The step that was taken.
    step: Step,
    /// The status WAHA has it in; `None` when that is known only at the next look.
    status: Option<(SessionStatus, Option<Me>)>,
}

async fn look(app: App, session: Taken) {
    let looked = match Desired::from_name(&session.desired) {
        Some(desired) => act(&app, &session, desired).await,
        None => Ok(Looked { step: Step::Nothing, status: None }),
    };
    let in_a_row = session.reconcile_failures.saturating_add(1);
    // A restart that is not to be had (the session stopped by itself, say) is no longer wanted either.
    let restart_done = session.restart_wanted_at.filter(|_| looked.is_ok());
    let (failures, status) = match looked {
        Ok(Looked { step: Step::Nothing, status }) => (0, status),
        Ok(Looked { step, status }) => {
            metrics::counter!("switchboard_reconcile_steps_total", "step" => step.name()).increment(1);
            tracing::info!(session_id = %session.id, step = step.name(), "reconcile: a step towards the desired state");
            (in_a_row, status)
        }
        Err(fault) => {
            metrics::counter!("switchboard_reconcile_failures_total").increment(1);
            tracing::warn!(session_id = %session.id, %fault, failures = in_a_row, "reconcile: a step failed; it is tried again");
            (in_a_row, None)
        }
    };
    if let Err(fault) = finish(&app, &session, failures, status, restart_done).await {
        // The lease runs out, and another look begins.
        tracing::warn!(session_id = %session.id, %fault, "reconcile: the outcome of a step could not be written down");
    }
}

/// Looks at WAHA and takes the step that is missing.
async fn act(app: &App, session: &Taken, desired: Desired) -> Result<Looked, Fault> {
    let gone = Looked { step: Step::Nothing, status: None };
    let Some(entry) = app.directory.session(session.tenant_id, session.id).await? else { return Ok(gone) };
    let Some(place) = app.directory.server(entry.server).await? else { return Ok(gone) };
    let (server, name) = (&place.server, entry.external_name.as_str());
    let found = app.waha.get_session(server, name).await?;
    let step = match found.as_ref().map(|info| info.status) {
        Some(SessionStatus::Working | SessionStatus::Starting)
            if desired == Desired::Started && session.restart_wanted_at.is_some() =>
        {
            Step::Restart
        }
        status => next_step(desired, status),
    };
    if step != Step::Nothing && session.reconcile_lease - app.clock.now() < STEP {
        return Err(Fault::TooLate);
    }
    let status = match step {
        Step::Create => create(app, server, &entry).await?,
        Step::Start => {
            app.waha.start(server, name).await?;
            None
        }
        Step::Stop => {
            app.waha.stop(server, name).await?;
            None
        }
        Step::Restart => {
            app.waha.restart(server, name).await?;
            Some((SessionStatus::Starting, None))
        }
        Step::Nothing => {
            let status = status_of(desired, found.as_ref());
            Some((status, found.and_then(|info| info.me)))
        }
    };
    Ok(Looked { step, status })
}

async fn create(
    app: &App,
    server: &Server,
    entry: &SessionEntry,
) -> Result<Option<(SessionStatus, Option<Me>)>, Fault> {
    let spec = spec(app, entry)?;
    match app.waha.create_session(server, &spec, true).await {
        Ok(Some(info)) => Ok(Some(seen(info))),
        // It is there after all: the next look tells how.
        Ok(None) | Err(CallError::AlreadyExists) => Ok(None),
        Err(fault) => Err(fault.into()),
    }
}

fn seen(info: SessionInfo) -> (SessionStatus, Option<Me>) {
    (info.status, info.me)
}

/// How `session` is set up at WAHA.
fn spec(app: &App, session: &SessionEntry) -> Result<SessionSpec, Fault> {
    let base = app.config.public_url.as_str().trim_end_matches('/');
    let key = std::str::from_utf8(session.webhook_key.expose_secret())
        .map_err(|_| Fault::Directory(DirectoryError::Unreadable("webhook key")))?;
    Ok(SessionSpec {
        name: session.external_name.clone(),
        engine: session.engine,
        webhook_url: format!("{base}/hooks/waha/{}", session.server).parse().map_err(|_| Fault::PublicUrl)?,
        hmac_key: SecretString::from(key),
        metadata: [("switchboard.session".to_owned(), session.id.to_string())].into(),
    })
}

/// Writes down what was seen and gives the session back, to be looked at again unless nothing was missing.
async fn finish(
    app: &App,
    session: &Taken,
    failures: i32,
    status: Option<(SessionStatus, Option<Me>)>,
    restart_done: Option<DateTime<Utc>>,
) -> Result<(), DbError> {
    let now = app.clock.now();
    let next = (failures > 0).then(|| now + pause_before(app, failures));
    let changed = app
        .db
        .system(async |conn: &mut SystemConn| {
            let mut changed = 0;
            if let Some((status, me)) = status {
                let observation =
                    Observation { tenant: session.tenant_id, session: session.id, status, reported_at: None, me };
                let polled = [Polled { observation, version: session.version }];
                changed = status::observe_polled(conn, &app.chance, now, &polled).await?;
            }
            sql(GIVE_BACK)
                .bind::<SqlUuid, _>(session.tenant_id)
                .bind::<SqlUuid, _>(session.id)
                .bind::<Timestamptz, _>(session.reconcile_lease)
                .bind::<Nullable<Timestamptz>, _>(next)
                .bind::<Integer, _>(failures)
                .bind::<Nullable<Timestamptz>, _>(restart_done)
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
