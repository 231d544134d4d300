//! Asking every WAHA server how it fares and what its sessions do.

use std::collections::HashMap;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Bool, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::ghosts;
use super::plan::{self, Found, Next, Step, Wishes, wish_columns};
use crate::app::App;
use crate::db::{DbError, Prepare, SystemConn, sql};
use crate::domain::ids::{SessionId, TenantId, WahaServerId};
use crate::sessions::directory::ServerEntry;
use crate::sessions::liveness::alarm;
use crate::sessions::moving;
use crate::sessions::probe;
use crate::sessions::queries::Desired;
use crate::sessions::restriction;
use crate::sessions::servers::{self, ServerHealth};
use crate::sessions::status::{self, Observation, PATIENCE, Polled, Source, name_of};
use crate::waha::{Me, SessionInfo, SessionStatus};

/// Polls under way on this node.
const MOST: usize = 32;
/// How long one node alone polls a server: longer than its three calls take.
const LEASE: TimeDelta = TimeDelta::seconds(60);
/// The longest nap between two looks for servers that are due.
const NAP: Duration = Duration::from_secs(1);
/// Observations written in one transaction.
const BATCH: usize = 200;
/// Between two sessions of a server that are looked at again, so that it need not start them all at once.
const STAGGER: TimeDelta = TimeDelta::milliseconds(50);
/// The time over which at most they are spread.
const SPREAD: TimeDelta = TimeDelta::seconds(60);

/// A server taken under a lease.
#[derive(Clone, QueryableByName)]
struct Taken {
    #[diesel(sql_type = SqlUuid)]
    id: WahaServerId,
    #[diesel(sql_type = Nullable<BigInt>)]
    start_timestamp: Option<i64>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    last_seen_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    unreachable_since: Option<DateTime<Utc>>,
    #[diesel(sql_type = Bool)]
    draining: bool,
    #[diesel(sql_type = Timestamptz)]
    poll_at: DateTime<Utc>,
}

/// A session as it was known before its server was asked.
#[derive(QueryableByName)]
struct Known {
    #[diesel(sql_type = SqlUuid)]
    tenant_id: TenantId,
    #[diesel(sql_type = SqlUuid)]
    id: SessionId,
    #[diesel(sql_type = Text)]
    external_session_id: String,
    #[diesel(sql_type = Text)]
    status: String,
    #[diesel(sql_type = BigInt)]
    known: i64,
    #[diesel(embed)]
    wishes: Wishes,
}

const TAKE: &str = "\
WITH due AS (
    SELECT id FROM waha_servers WHERE deleted_at IS NULL AND (poll_at IS NULL OR poll_at <= $1)
    ORDER BY poll_at NULLS FIRST LIMIT $2 FOR UPDATE SKIP LOCKED
)
UPDATE waha_servers v SET poll_at = $3 FROM due WHERE v.id = due.id RETURNING v.id, v.start_timestamp, v.last_seen_at, v.unreachable_since, v.draining, v.poll_at";

const KNOWN: &str = concat!(
    "SELECT s.tenant_id, s.id, s.external_session_id, s.status, s.version + s.observations AS known, ",
    wish_columns!(),
    " FROM waha_sessions s JOIN waha_servers v ON v.id = s.waha_server_id LEFT JOIN waha_servers t ON t.id = s.move_to \
     WHERE s.waha_server_id = $1 AND s.removed_at IS NULL"
);

// One that waits for its next look already keeps its time.
const LOOK_AGAIN: &str = "\
WITH locked AS (
    SELECT s.tenant_id, s.id, i.at, i.starts FROM waha_sessions s JOIN unnest($1, $2, $3) AS i (id, at, starts) ON i.id = s.id
    WHERE s.removed_at IS NULL AND s.reconcile_at IS NULL
    ORDER BY s.id FOR NO KEY UPDATE OF s
)
UPDATE waha_sessions s SET reconcile_at = l.at, start_queued_at = CASE WHEN l.starts THEN coalesce(s.start_queued_at, l.at) END
FROM locked l WHERE s.tenant_id = l.tenant_id AND s.id = l.id";

/// Polls the servers that are due until `stop` turns true, then waits for the polls under way.
pub(super) async fn run(app: App, mut stop: watch::Receiver<bool>) {
    let nap = (app.config.timings.reconcile / 4).clamp(Duration::from_millis(10), NAP);
    let mut polls = JoinSet::new();
    while !*stop.borrow() {
        while polls.try_join_next().is_some() {}
        if let Err(fault) = status::show_outages(&app).await {
            tracing::warn!(%fault, "reconcile: outages that last cannot be shown");
        }
        if polls.len() < MOST {
            match take(&app, MOST.saturating_sub(polls.len())).await {
                Ok(taken) => taken.into_iter().for_each(|server| {
                    polls.spawn(poll(app.clone(), server));
                }),
                Err(fault) => tracing::warn!(%fault, "reconcile: the WAHA servers cannot be read"),
            }
        }
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => break,
            () = app.clock.sleep(nap) => {}
        }
    }
    while polls.join_next().await.is_some() {}
}

async fn take(app: &App, most: usize) -> Result<Vec<Taken>, DbError> {
    let now = app.clock.now();
    app.db
        .system(async |conn| {
            Ok(sql(TAKE)
                .bind::<Timestamptz, _>(now)
                .bind::<BigInt, _>(i64::try_from(most).unwrap_or(i64::MAX))
                .bind::<Timestamptz, _>(now + LEASE)
                .prepared()
                .load(&mut **conn)
                .await?)
        })
        .await
}

async fn poll(app: App, server: Taken) {
    let begun = app.clock.now();
    if let Err(fault) = ask(&app, &server).await {
        tracing::warn!(server_id = %server.id, %fault, "reconcile: what a WAHA server said could not be written down");
    }
    if let Err(fault) = give_back(&app, &server, begun).await {
        tracing::debug!(server_id = %server.id, %fault, "reconcile: the lease of a poll runs out by itself");
    }
}

/// Lets the server be polled again one interval after this poll began, give or take a tenth by chance.
async fn give_back(app: &App, server: &Taken, begun: DateTime<Utc>) -> Result<(), DbError> {
    let every = app.config.timings.reconcile;
    let pause = every * 9 / 10 + app.chance.jitter(every / 5);
    let next = begun + TimeDelta::from_std(pause).unwrap_or(LEASE);
    app.db
        .system(async |conn| {
            sql("UPDATE waha_servers SET poll_at = $3 WHERE id = $1 AND poll_at = $2")
                .bind::<SqlUuid, _>(server.id)
                .bind::<Timestamptz, _>(server.poll_at)
                .bind::<Timestamptz, _>(next)
                .prepared()
                .execute(&mut **conn)
                .await?;
            Ok::<_, DbError>(())
        })
        .await
}

async fn ask(app: &App, server: &Taken) -> Result<(), DbError> {
    let entry = match app.directory.server(server.id).await {
        Ok(Some(entry)) => entry,
        Ok(None) => return Ok(()),
        Err(fault) => {
            tracing::error!(server_id = %server.id, %fault, "reconcile: a WAHA server cannot be read");
            return Ok(());
        }
    };
    // Read before WAHA is asked: what changes meanwhile is newer than the answer, and wins.
    let known = known(app, server.id).await?;
    let Some(probe) = probe::probe(&app.waha, &entry.server).await else { return Ok(()) };
    let started = probe.started_at.map(|at| at.timestamp_millis());
    let now = app.clock.now();
    if probe.health != ServerHealth::Healthy && server.last_seen_at.is_some_and(|seen| seen < now - PATIENCE) {
        out_of_reach(app, &known).await?;
    }
    if probe.health == ServerHealth::Healthy {
        let restarted = matches!((server.start_timestamp, started), (Some(before), Some(now)) if before != now);
        if restarted {
            tracing::info!(server_id = %server.id, sessions = known.len(), "reconcile: a WAHA server was restarted");
        }
        compare(app, &entry, &known).await?;
    }
    let now = app.clock.now();
    let dead = app.config.fleet.move_from_dead.and_then(|after| TimeDelta::from_std(after).ok());
    let dead = dead.is_some_and(|after| server.unreachable_since.is_some_and(|since| since <= now - after));
    if (server.draining && probe.health == ServerHealth::Healthy) || (dead && probe.health == ServerHealth::Unreachable)
    {
        moving::leave(app, server.id, dead && probe.health == ServerHealth::Unreachable).await?;
    }
    // Last, and in a transaction of its own: a restart is remembered once its sessions are marked.
    app.db
        .system(async |conn: &mut SystemConn| servers::record_health(conn, server.id, entry.engine, &probe, now).await)
        .await
}

async fn known(app: &App, server: WahaServerId) -> Result<Vec<Known>, DbError> {
    app.db.system(async |conn| Ok(sql(KNOWN).bind::<SqlUuid, _>(server).prepared().load(&mut **conn).await?)).await
}

/// The server has not answered for a while: whatever its sessions do, nobody can use them.
async fn out_of_reach(app: &App, known: &[Known]) -> Result<(), DbError> {
    let used = known.iter().filter(|session| {
        session.wishes.desired == Desired::Started.as_str()
            && (matches!(session.wishes.waha_status.as_str(), "working" | "scan_qr") || session.status == "working")
    });
    let polled: Vec<Polled> =
        used.map(|session| session.polled(SessionStatus::Starting, None, Source::ServerAway)).collect();
    observe(app, &polled).await
}

/// Compares what the server has with what is known and wanted.
async fn compare(app: &App, server: &ServerEntry, known: &[Known]) -> Result<(), DbError> {
    let listed = match app.waha.list_sessions(&server.server, true).await {
        Ok(listed) => listed,
        Err(fault) => {
            tracing::warn!(server_id = %server.id, %fault, "reconcile: a WAHA server does not list its sessions");
            return Ok(());
        }
    };
    let by_name: HashMap<&str, &SessionInfo> = listed.iter().map(|info| (info.name.as_str(), info)).collect();
    let mut polled = Vec::new();
    let mut again = Vec::new();
    let mut restricted = Vec::new();
    let alarm = app.db.system(async |conn: &mut SystemConn| alarm::active(conn).await).await?;
    let held_back = alarm.is_some_and(|alarm| alarm.concerns(server.engine));
    let now = app.clock.now();
    for session in known {
        let found = by_name.get(session.external_session_id.as_str()).copied();
        if session.wishes.desired != Desired::Deleted.as_str() {
            // What WAHA does not have is about to be created, or simply not running.
            let missing = if session.wishes.desired == Desired::Started.as_str() {
                SessionStatus::Starting
            } else {
                SessionStatus::Stopped
            };
            let status = found.map_or(missing, |info| info.status);
            let me = found.and_then(|info| info.me.as_ref());
            if let Some(told) = found.and_then(|info| info.restriction) {
                restricted.push(restriction::finding(app, session.tenant_id, session.id, told));
            }
            if session.differs(status, me) {
                let source = if found.is_some() { Source::Poll } else { Source::Missing };
                polled.push(session.polled(status, me.cloned(), source));
            }
        }
        // Whether it is set up as wanted matters to the step, not to whether there is one.
        let at_waha = found.map(|info| Found { status: info.status, drifted: false });
        match plan::next(&session.wishes, at_waha, now, &app.config.fleet, held_back) {
            Next::Step(Step::Nothing) | Next::Later => {}
            Next::Step(step) => again.push((session.id, step.starts())),
            Next::OwnRestart => again.push((session.id, true)),
        }
    }
    observe(app, &polled).await?;
    restriction::note(app, &restricted).await?;
    look_again(app, &again).await?;
    ghosts::lay(app, server, known.iter().map(|session| session.external_session_id.as_str()), &listed).await
}

impl Known {
    fn differs(&self, status: SessionStatus, me: Option<&Me>) -> bool {
        // A status that is hidden for now is shown in its time.
        let other_status = name_of(status).is_some_and(|name| name != self.wishes.waha_status);
        let digits = me.and_then(Me::phone).filter(|_| status == SessionStatus::Working);
        let stored = self.wishes.phone.as_deref().map(|phone| phone.trim_start_matches('+'));
        other_status || (digits.is_some() && digits != stored)
    }

    fn polled(&self, status: SessionStatus, me: Option<Me>, source: Source) -> Polled {
        let (tenant, session) = (self.tenant_id, self.id);
        let observation = Observation { tenant, session, status, reported_at: None, me, source };
        Polled { observation, known: self.known }
    }
}

async fn observe(app: &App, polled: &[Polled]) -> Result<(), DbError> {
    let mut changed = 0;
    for part in polled.chunks(BATCH) {
        let now = app.clock.now();
        changed += app
            .db
            .system(async |conn: &mut SystemConn| status::observe_polled(conn, &app.chance, now, part).await)
            .await?;
    }
    if changed > 0 {
        app.wake.events.notify_one();
        app.wake.dispatch.notify_one();
    }
    Ok(())
}

/// Has the steps look at `sessions`, one after the other; those that are to be started as there is room.
async fn look_again(app: &App, sessions: &[(SessionId, bool)]) -> Result<(), DbError> {
    if sessions.is_empty() {
        return Ok(());
    }
    let now = app.clock.now();
    let gap = STAGGER.min(SPREAD / i32::try_from(sessions.len()).unwrap_or(i32::MAX));
    let times: Vec<DateTime<Utc>> = (0..).take(sessions.len()).map(|index| now + gap * index).collect();
    let (ids, starts): (Vec<SessionId>, Vec<bool>) = sessions.iter().copied().unzip();
    app.db
        .system(async |conn| {
            sql(LOOK_AGAIN)
                .bind::<Array<SqlUuid>, _>(ids)
                .bind::<Array<Timestamptz>, _>(times)
                .bind::<Array<Bool>, _>(starts)
                .prepared()
                .execute(&mut **conn)
                .await?;
            Ok::<_, DbError>(())
        })
        .await?;
    app.wake.sessions.notify_one();
    Ok(())
}
