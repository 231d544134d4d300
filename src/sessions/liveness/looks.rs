//! Looking at sessions that are due: judge, ask where need be, act.

use std::collections::HashMap;

use chrono::{DateTime, TimeDelta, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Bool, Double, Integer, Jsonb, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use tokio::task::{Id, JoinSet};

use crate::app::App;
use crate::db::{DbError, Prepare, SystemConn, sql};
use crate::domain::ids::{EventId, SessionId, TenantId, WahaServerId};
use crate::events::log::{self, NewEvent};
use crate::sessions::liveness::verdict::{Answer, Judgement, Step, Verdict, Vitals, judge};
use crate::sessions::liveness::{alarm, probe, restart};
use crate::sessions::status;
use crate::sessions::view::{Session, SessionRow, session_columns};

/// Sessions taken at once.
const BATCH: i64 = 200;
/// Questions under way on this node.
const MOST: usize = 64;
/// Questions under way on this node at one WAHA server, so that a hanging one holds up only its own sessions.
const MOST_PER_SERVER: usize = 4;
/// How long one node alone looks at a session: longer than two questions and some statements take.
const LEASE: TimeDelta = TimeDelta::seconds(120);
/// One whose turn to ask has not come, or that is not back yet, is looked at again after this.
const LATER: TimeDelta = TimeDelta::seconds(30);

/// A session taken under a lease.
#[derive(Clone, QueryableByName)]
struct Taken {
    #[diesel(sql_type = SqlUuid)]
    tenant_id: TenantId,
    #[diesel(sql_type = SqlUuid)]
    session_id: SessionId,
    #[diesel(sql_type = SqlUuid)]
    waha_server_id: WahaServerId,
    #[diesel(sql_type = Timestamptz)]
    probe_at: DateTime<Utc>,
    #[diesel(sql_type = Bool)]
    working: bool,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    watched_since: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    paired_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    last_sign_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    first_sign_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Integer)]
    signs: i32,
    #[diesel(sql_type = Double)]
    longest_gap_s: f64,
    #[diesel(sql_type = Integer)]
    unacked: i32,
    #[diesel(sql_type = Integer)]
    failed_calls: i32,
    #[diesel(sql_type = Text)]
    verdict: String,
    #[diesel(sql_type = Timestamptz)]
    verdict_since: DateTime<Utc>,
    #[diesel(sql_type = Jsonb)]
    evidence: serde_json::Value,
    #[diesel(sql_type = Integer)]
    failed_probes: i32,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    restarted_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    reported_at: Option<DateTime<Utc>>,
}

const TAKE: &str = "\
WITH due AS (
    SELECT tenant_id, session_id FROM session_vitals WHERE probe_at <= $1
    ORDER BY probe_at LIMIT $2 FOR NO KEY UPDATE SKIP LOCKED
), v AS (
    UPDATE session_vitals v SET probe_at = $3 FROM due d
    WHERE v.tenant_id = d.tenant_id AND v.session_id = d.session_id
    RETURNING v.*
)
SELECT v.tenant_id, v.session_id, s.waha_server_id, v.probe_at,
       s.waha_status = 'working' AND s.desired = 'started' AND s.deleted_at IS NULL AS working,
       v.watched_since, coalesce(s.paired_at, l.working_since) AS paired_at, greatest(v.last_inbound_at, v.last_ack_at) AS last_sign_at,
       v.first_sign_at, v.signs, v.longest_gap_s, l.unacked, v.failed_calls, v.verdict, v.verdict_since, v.evidence,
       v.failed_probes, l.restarted_at, v.reported_at
FROM v
JOIN waha_sessions s ON s.tenant_id = v.tenant_id AND s.id = v.session_id
JOIN lanes l ON l.tenant_id = v.tenant_id AND l.session_id = v.session_id";

// Nothing changed but the time of the next look; whoever asked for one meanwhile has moved it, and gets it.
const REST: &str = "\
UPDATE session_vitals v SET probe_at = u.next FROM (
    SELECT v.tenant_id, v.session_id, i.next FROM session_vitals v
    JOIN unnest($1, $2, $3, $4) AS i (tenant_id, session_id, lease, next)
      ON v.tenant_id = i.tenant_id AND v.session_id = i.session_id AND v.probe_at = i.lease
    ORDER BY v.session_id FOR NO KEY UPDATE OF v
) u WHERE v.tenant_id = u.tenant_id AND v.session_id = u.session_id";

const SETTLE: &str = "\
UPDATE session_vitals SET
    verdict = $4,
    verdict_since = CASE WHEN verdict <> $4 THEN $5 ELSE verdict_since END,
    evidence = $6,
    probe_at = $7,
    probed_at = CASE WHEN $8 THEN $5 ELSE probed_at END,
    last_call_at = CASE WHEN $9 THEN $5 ELSE last_call_at END,
    failed_probes = $10,
    failed_calls = CASE WHEN $4 = 'healthy' THEN 0 ELSE failed_calls END,
    reported_at = CASE WHEN $11 THEN $5 WHEN $4 = 'dead' THEN reported_at END,
    updated_at = $5
WHERE tenant_id = $1 AND session_id = $2 AND probe_at = $3";

// The resource shows the verdict, so it is a new version.
const SHOW: &str = concat!(
    "WITH s AS (UPDATE waha_sessions s SET version = s.version + 1, updated_at = $3 \
     WHERE s.tenant_id = $1 AND s.id = $2 AND s.deleted_at IS NULL RETURNING s.*) SELECT ",
    session_columns!(),
    " FROM s JOIN lanes l ON l.tenant_id = s.tenant_id AND l.session_id = s.id"
);

impl Taken {
    fn vitals(&self, app: &App, answer: Option<Answer>) -> Vitals {
        let failed = matches!(answer, Some(Answer::Silent(_)));
        let evidence = self.evidence.as_array().into_iter().flatten().filter_map(|line| line.as_str());
        Vitals {
            watched_since: self.watched_since.unwrap_or(self.verdict_since),
            paired_at: self.paired_at,
            last_sign_at: self.last_sign_at,
            first_sign_at: self.first_sign_at,
            signs: self.signs,
            #[expect(clippy::cast_possible_truncation, reason = "seconds since 1970 at the most")]
            longest_gap: TimeDelta::seconds(self.longest_gap_s as i64),
            unacked: self.unacked,
            stuck_after: app.config.sending.stuck_after,
            failed_calls: self.failed_calls,
            verdict: Verdict::from_name(&self.verdict).unwrap_or(Verdict::Healthy),
            since: self.verdict_since,
            evidence: evidence.map(str::to_owned).collect(),
            failed_probes: if failed { self.failed_probes.saturating_add(1) } else { self.failed_probes },
            answer,
            restarted_at: self.restarted_at,
            reported_at: self.reported_at,
        }
    }
}

/// The looks under way on this node.
#[derive(Default)]
pub(super) struct Looks {
    tasks: JoinSet<()>,
    servers: HashMap<Id, WahaServerId>,
}

impl Looks {
    /// Takes what is due; what needs no question is done when this returns.
    pub async fn begin(&mut self, app: &App) -> Result<(), DbError> {
        while let Some(ended) = self.tasks.try_join_next_with_id() {
            self.servers.remove(&ended.map_or_else(|panicked| panicked.id(), |(id, ())| id));
        }
        let now = app.clock.now();
        let taken: Vec<Taken> = app
            .db
            .system(async |conn| {
                Ok::<_, DbError>(
                    sql(TAKE)
                        .bind::<Timestamptz, _>(now)
                        .bind::<BigInt, _>(BATCH)
                        .bind::<Timestamptz, _>(now + LEASE)
                        .prepared()
                        .load(&mut **conn)
                        .await?,
                )
            })
            .await?;
        let mut rests = Vec::new();
        for session in taken {
            if !session.working {
                rests.push((session, now + LATER));
                continue;
            }
            let vitals = session.vitals(app, None);
            let judgement = judge(&vitals, now);
            let same = judgement.verdict == vitals.verdict && judgement.evidence == vitals.evidence;
            if judgement.step == Step::Rest && same {
                // Spread by chance, lest all that were counted at once are looked at together for ever.
                let pause = (judgement.look_at - now).to_std().unwrap_or_default();
                let jitter = TimeDelta::from_std(app.chance.jitter(pause / 10)).unwrap_or_default();
                rests.push((session, judgement.look_at + jitter));
            } else if judgement.step == Step::Probe && !self.has_room(session.waha_server_id) {
                rests.push((session, now + LATER));
            } else {
                let server = session.waha_server_id;
                let id = self.tasks.spawn(look(app.clone(), session, judgement)).id();
                self.servers.insert(id, server);
            }
        }
        rest(app, &rests).await
    }

    fn has_room(&self, server: WahaServerId) -> bool {
        let at_it = self.servers.values().filter(|other| **other == server).count();
        self.servers.len() < MOST && at_it < MOST_PER_SERVER
    }

    /// Returns when a look has ended; never while there is none.
    pub async fn ended(&mut self) {
        match self.tasks.join_next_with_id().await {
            Some(ended) => {
                self.servers.remove(&ended.map_or_else(|panicked| panicked.id(), |(id, ())| id));
            }
            None => std::future::pending().await,
        }
    }

    /// Waits for the looks under way.
    pub async fn finish(mut self) {
        while self.tasks.join_next().await.is_some() {}
    }
}

async fn rest(app: &App, rests: &[(Taken, DateTime<Utc>)]) -> Result<(), DbError> {
    if rests.is_empty() {
        return Ok(());
    }
    app.db
        .system(async |conn| {
            sql(REST)
                .bind::<Array<SqlUuid>, _>(rests.iter().map(|(session, _)| session.tenant_id).collect::<Vec<_>>())
                .bind::<Array<SqlUuid>, _>(rests.iter().map(|(session, _)| session.session_id).collect::<Vec<_>>())
                .bind::<Array<Timestamptz>, _>(rests.iter().map(|(session, _)| session.probe_at).collect::<Vec<_>>())
                .bind::<Array<Timestamptz>, _>(rests.iter().map(|(_, next)| *next).collect::<Vec<_>>())
                .prepared()
                .execute(&mut **conn)
                .await?;
            Ok(())
        })
        .await
}

async fn look(app: App, session: Taken, mut judgement: Judgement) {
    let mut answer = None;
    if judgement.step == Step::Probe {
        let asked = probe::ask(&app, session.tenant_id, session.session_id, session.waha_server_id).await;
        let result = match &asked {
            Answer::Alive => "alive",
            Answer::Silent(_) => "silent",
            Answer::Unasked(_) => "unasked",
        };
        metrics::counter!("switchboard_session_probes_total", "result" => result).increment(1);
        tracing::info!(session_id = %session.session_id, result, "liveness: WhatsApp was asked through a session");
        answer = Some(asked);
        judgement = judge(&session.vitals(&app, answer.clone()), app.clock.now());
    }
    // The lease runs out, and another look begins.
    if let Err(fault) = settle(&app, &session, answer.as_ref(), &judgement).await {
        tracing::warn!(session_id = %session.session_id, %fault, "liveness: a verdict could not be written down");
    }
}

/// Writes the verdict down and does what follows from it, unless another look has begun.
async fn settle(app: &App, session: &Taken, answer: Option<&Answer>, judgement: &Judgement) -> Result<(), DbError> {
    let now = app.clock.now();
    let (tenant, id) = (session.tenant_id, session.session_id);
    let failed_probes = match answer {
        _ if judgement.verdict == Verdict::Healthy || judgement.step == Step::Restart => 0,
        Some(Answer::Silent(_)) => session.failed_probes.saturating_add(1),
        _ => session.failed_probes,
    };
    let changed = judgement.verdict.as_str() != session.verdict;
    let reports = judgement.step == Step::Report;
    let recovers = judgement.verdict == Verdict::Healthy && session.reported_at.is_some();
    let restarts = app
        .db
        .system(async |conn: &mut SystemConn| {
            let restarts = judgement.step == Step::Restart && alarm::active(conn).await?.is_none();
            if restarts {
                // Lanes before everything else, as everywhere.
                status::lock_lanes(conn, &[id]).await?;
            }
            if changed || reports || restarts {
                // Sessions before vitals: ingest holds them in that order.
                sql("SELECT FROM waha_sessions WHERE tenant_id = $1 AND id = $2 FOR NO KEY UPDATE")
                    .bind::<SqlUuid, _>(tenant)
                    .bind::<SqlUuid, _>(id)
                    .prepared()
                    .execute(&mut **conn)
                    .await?;
            }
            let settled = sql(SETTLE)
                .bind::<SqlUuid, _>(tenant)
                .bind::<SqlUuid, _>(id)
                .bind::<Timestamptz, _>(session.probe_at)
                .bind::<Text, _>(judgement.verdict.as_str())
                .bind::<Timestamptz, _>(now)
                .bind::<Jsonb, _>(serde_json::json!(judgement.evidence))
                .bind::<Timestamptz, _>(judgement.look_at)
                .bind::<Bool, _>(answer.is_some())
                .bind::<Bool, _>(answer == Some(&Answer::Alive))
                .bind::<Integer, _>(failed_probes)
                .bind::<Bool, _>(reports)
                .prepared()
                .execute(&mut **conn)
                .await?;
            if settled == 0 {
                return Ok(false);
            }
            let restarts = restarts && restart::restart(app, conn, now, tenant, id).await?;
            if changed || reports {
                let rows: Vec<SessionRow> = sql(SHOW)
                    .bind::<SqlUuid, _>(tenant)
                    .bind::<SqlUuid, _>(id)
                    .bind::<Timestamptz, _>(now)
                    .prepared()
                    .load(&mut **conn)
                    .await?;
                let kind = match (reports, recovers) {
                    (true, _) => Some("session.unhealthy"),
                    (_, true) => Some("session.healthy"),
                    _ => None,
                };
                if let Some((kind, row)) = kind.zip(rows.as_slice().first()) {
                    tell(app, conn, now, kind, row).await?;
                }
            }
            Ok::<_, DbError>(restarts)
        })
        .await?;
    if changed {
        tracing::info!(session_id = %id, verdict = judgement.verdict.as_str(), "liveness: another verdict on a session");
    }
    if restarts {
        app.wake.sessions.notify_one();
    }
    app.wake.events.notify_one();
    Ok(())
}

async fn tell(
    app: &App,
    conn: &mut SystemConn,
    now: DateTime<Utc>,
    kind: &'static str,
    row: &SessionRow,
) -> Result<(), DbError> {
    let event = NewEvent {
        tenant: row.tenant_id,
        id: EventId::fresh(now, &app.chance),
        kind,
        at: now,
        session_id: Some(row.id),
        message_id: None,
        data: Session::from(row).to_json(),
    };
    log::append(conn, &[event]).await?;
    metrics::counter!("switchboard_sessions_reported_total", "as" => kind).increment(1);
    if kind == "session.unhealthy" {
        tracing::warn!(tenant_id = %row.tenant_id, session_id = %row.id, "a session is dead, and a restart did not help");
    }
    Ok(())
}
