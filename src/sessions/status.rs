//! Following a session's status, as webhooks and polls report it.
//!
//! A session that is not working holds its lane: its messages wait, in order, and leave when it works again. The status, the
//! lane, the session's history and the tenant's event change in one transaction.
//!
//! What WAHA says (`waha_status`) decides about the lane at once. What the tenant sees (`status`) does not follow an outage that
//! is over within [`PATIENCE`], such as a reconnect; one that lasts is shown by [`show_outages`], which any number of nodes may
//! run: each outage is shown once.

use std::collections::HashMap;

use chrono::{DateTime, TimeDelta, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Bool, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};

use crate::app::App;
use crate::db::{DbError, Prepare, sql};
use crate::domain::chance::Chance;
use crate::domain::ids::{EventId, SessionId, TenantId};
use crate::events::log::{self, NewEvent};
use crate::sessions::pairing;
use crate::sessions::view::{Session, SessionRow, session_columns};
use crate::waha::{Me, SessionStatus};

/// How long an outage is hidden from the tenant.
pub const PATIENCE: TimeDelta = TimeDelta::seconds(30);
/// Outages shown in one transaction at the most.
const BATCH: i64 = 200;

/// By what something was learnt of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// WAHA reported it.
    Webhook,
    /// WAHA was asked.
    Poll,
    /// A step of the reconciler brought it about.
    Step,
    /// WAHA was asked, and does not have it.
    Missing,
    /// A send found it so.
    Send,
    /// It is stuck or dead and about to be restarted.
    Stuck,
    /// Its WAHA server has not answered for a while.
    ServerAway,
}

impl Source {
    const fn cause(self) -> &'static str {
        match self {
            Self::Webhook => "reported by WAHA",
            Self::Poll => "found when WAHA was asked",
            Self::Step => "a step of the reconciler",
            Self::Missing => "WAHA does not have it",
            Self::Send => "found by a send",
            Self::Stuck => "it is stuck and is restarted",
            Self::ServerAway => "the WAHA server does not answer",
        }
    }

    const fn actor(self) -> &'static str {
        match self {
            Self::Step | Self::Stuck | Self::ServerAway => "gateway",
            Self::Webhook | Self::Poll | Self::Missing | Self::Send => "waha",
        }
    }
}

/// What was learnt of a session.
#[derive(Debug)]
pub struct Observation {
    /// Whose session.
    pub tenant: TenantId,
    /// The session.
    pub session: SessionId,
    /// The status WAHA reported.
    pub status: SessionStatus,
    /// When it came about on WAHA's clock; `None` for what a poll found just now.
    pub reported_at: Option<DateTime<Utc>>,
    /// The paired account.
    pub me: Option<Me>,
    /// By what it was learnt.
    pub source: Source,
}

/// Our name for WAHA's status; `None` for one that we do not know.
#[must_use]
pub const fn name_of(status: SessionStatus) -> Option<&'static str> {
    Some(match status {
        SessionStatus::Stopped => "stopped",
        SessionStatus::Starting => "starting",
        SessionStatus::ScanQrCode | SessionStatus::PasskeyRequired | SessionStatus::PasskeyConfirmationRequired => {
            "scan_qr"
        }
        SessionStatus::Working => "working",
        SessionStatus::Failed => "failed",
        SessionStatus::Other => return None,
    })
}

// No key update: whoever stores a message of the session need not wait. A place for starting is kept while the reconciler
// restarts the session; what is only about to be started takes none.
const OBSERVE: &str = concat!(
    "\
WITH before AS (
    SELECT s.tenant_id, s.id, s.status, s.waha_status, s.phone,
           s.status = 'working' AND $3 IN ('starting', 'stopped') AND s.desired = 'started' AND s.logout_wanted_at IS NULL
               AND NOT s.restart_by_tenant AND coalesce(s.outage_shown_at, $8) > $7 AS hidden
    FROM waha_sessions s
    WHERE s.tenant_id = $1 AND s.id = $2 AND s.deleted_at IS NULL AND ($4 IS NULL OR s.status_at <= $4)
    FOR NO KEY UPDATE
), s AS (
    UPDATE waha_sessions s SET
        status = CASE WHEN b.hidden THEN s.status ELSE $3 END,
        waha_status = $3,
        waha_status_since = CASE WHEN s.waha_status = $3 THEN s.waha_status_since ELSE $7 END,
        outage_shown_at = CASE WHEN b.hidden THEN coalesce(s.outage_shown_at, $8) END,
        status_at = coalesce($4, s.status_at),
        starting_since = CASE WHEN $3 = 'starting' AND $12 THEN coalesce(s.starting_since, $7)
                              WHEN $3 IN ('starting', 'stopped') AND s.reconcile_lease > $7 THEN s.starting_since END,
        pairing = $3 = 'scan_qr' OR (s.pairing AND $3 = 'starting'),
        paired_at = CASE WHEN $3 = 'working' AND (s.pairing OR s.paired_at IS NULL) THEN $7 ELSE s.paired_at END,
        failure_restarted = s.failure_restarted AND $3 <> 'working',
        phone = CASE WHEN $3 = 'working' THEN coalesce($5, s.phone) ELSE s.phone END,
        push_name = CASE WHEN $3 = 'working' THEN coalesce($6, s.push_name) ELSE s.push_name END,
        error_message = CASE WHEN $3 = 'failed' THEN s.error_message ELSE $9 END,
        version = s.version + (b.status <> $3 AND NOT b.hidden)::int,
        observations = s.observations + (b.waha_status <> $3)::int,
        updated_at = $7
    FROM before b
    WHERE s.tenant_id = b.tenant_id AND s.id = b.id
      AND ($4 IS NOT NULL OR b.waha_status <> $3 OR (b.status <> $3 AND NOT b.hidden)
           OR ($3 = 'working' AND $5 IS NOT NULL AND b.phone IS DISTINCT FROM $5))
    RETURNING s.*, b.status <> s.status AS changed, b.waha_status <> s.waha_status AS waha_changed
), history AS (
    INSERT INTO session_transitions (tenant_id, session_id, at, status, waha_status, cause, actor)
    SELECT tenant_id, id, coalesce($4, $7), status, waha_status, $10, $11 FROM s WHERE changed OR waha_changed
)
SELECT ",
    session_columns!(),
    ", s.changed, s.waha_changed FROM s JOIN lanes l ON l.tenant_id = s.tenant_id AND l.session_id = s.id"
);

const SHOW_OUTAGES: &str = concat!(
    "\
WITH due AS (
    SELECT tenant_id, id FROM waha_sessions WHERE outage_shown_at <= $1 AND deleted_at IS NULL
    ORDER BY id LIMIT $2 FOR NO KEY UPDATE SKIP LOCKED
), s AS (
    UPDATE waha_sessions s SET status = s.waha_status, outage_shown_at = NULL, version = s.version + 1, updated_at = $1
    FROM due d WHERE s.tenant_id = d.tenant_id AND s.id = d.id
    RETURNING s.*
), history AS (
    INSERT INTO session_transitions (tenant_id, session_id, at, status, waha_status, cause, actor)
    SELECT tenant_id, id, $1, status, waha_status, 'the outage lasts', 'gateway' FROM s
)
SELECT ",
    session_columns!(),
    " FROM s JOIN lanes l ON l.tenant_id = s.tenant_id AND l.session_id = s.id"
);

// A turn that nobody claimed is given again at once; a claim holds until its lease ends.
const LANE: &str = "\
UPDATE lanes l SET
    stopped_because = CASE WHEN $3 THEN nullif(l.stopped_because, 'session_not_working')
                           ELSE coalesce(l.stopped_because, 'session_not_working') END,
    ready_at = CASE WHEN NOT $3 OR nullif(l.stopped_because, 'session_not_working') IS NOT NULL
                         OR l.tenant_paused_at IS NOT NULL THEN NULL
                    WHEN l.in_flight IS NOT NULL
                    THEN greatest(CASE WHEN l.claimed_fence = l.fence THEN l.lease_until END, l.next_slot_at, $4)
                    WHEN l.queued > 0 THEN greatest(l.next_slot_at, $4) END,
    working_since = CASE WHEN $3 THEN coalesce(l.working_since, $4) ELSE l.working_since END,
    updated_at = $4
WHERE l.tenant_id = $1 AND l.session_id = $2
  AND (l.stopped_because IS NOT DISTINCT FROM 'session_not_working') = $3";

#[derive(QueryableByName)]
struct Observed {
    #[diesel(embed)]
    session: SessionRow,
    #[diesel(sql_type = Bool)]
    changed: bool,
    #[diesel(sql_type = Bool)]
    waha_changed: bool,
}

/// What a poll found, and how much was known of the session before WAHA was asked.
#[derive(Debug)]
pub struct Polled {
    /// What was found; without a time of WAHA's.
    pub observation: Observation,
    /// The sum of the session's version and the number of its observations before.
    pub known: i64,
}

#[derive(QueryableByName)]
struct Known {
    #[diesel(sql_type = SqlUuid)]
    id: SessionId,
    #[diesel(sql_type = BigInt)]
    known: i64,
}

/// Applies what polls found, except where the session changed since it was read: then something newer is known. Answers
/// how many statuses changed.
///
/// # Errors
/// When the database refuses; the transaction then must not be committed.
pub async fn observe_polled(
    conn: &mut AsyncPgConnection,
    chance: &Chance,
    now: DateTime<Utc>,
    polled: &[Polled],
) -> Result<usize, DbError> {
    let sessions: Vec<SessionId> = polled.iter().map(|polled| polled.observation.session).collect();
    lock_lanes(conn, &sessions).await?;
    let text =
        "SELECT id, version + observations AS known FROM waha_sessions WHERE id = ANY($1) AND deleted_at IS NULL";
    let known: Vec<Known> = sql(text).bind::<Array<SqlUuid>, _>(&sessions).prepared().load(conn).await?;
    let known: HashMap<SessionId, i64> = known.into_iter().map(|row| (row.id, row.known)).collect();
    let mut current: Vec<&Observation> = polled
        .iter()
        .filter(|polled| known.get(&polled.observation.session) == Some(&polled.known))
        .map(|polled| &polled.observation)
        .collect();
    current.sort_by_key(|observation| observation.session);
    let mut changed = 0;
    for observation in current {
        changed += usize::from(observe(conn, chance, now, observation).await?);
    }
    Ok(changed)
}

/// Locks the lanes of `sessions`. All lanes come before everything else, in the order of their ids: so nobody waits for us in a
/// circle.
///
/// # Errors
/// When the database refuses; the transaction then must not be committed.
pub async fn lock_lanes(conn: &mut AsyncPgConnection, sessions: &[SessionId]) -> Result<(), DbError> {
    sql("SELECT FROM lanes WHERE session_id = ANY($1) ORDER BY session_id FOR UPDATE")
        .bind::<Array<SqlUuid>, _>(sessions)
        .prepared()
        .execute(conn)
        .await?;
    Ok(())
}

/// Applies `observation`, unless a later report was applied before. Answers whether a status changed, seen by the tenant or
/// not.
///
/// # Errors
/// When the database refuses; the transaction then must not be committed.
pub async fn observe(
    conn: &mut AsyncPgConnection,
    chance: &Chance,
    now: DateTime<Utc>,
    observation: &Observation,
) -> Result<bool, DbError> {
    let Some(status) = name_of(observation.status) else { return Ok(false) };
    let me = observation.me.as_ref();
    // A server that was silent for as long is an outage already.
    let away = observation.source == Source::ServerAway;
    // Lanes are locked before anything else, here as everywhere.
    sql("SELECT FROM lanes WHERE tenant_id = $1 AND session_id = $2 FOR UPDATE")
        .bind::<SqlUuid, _>(observation.tenant)
        .bind::<SqlUuid, _>(observation.session)
        .prepared()
        .execute(conn)
        .await?;
    let followed = pairing::follow(conn, now, observation, status).await?;
    let observed: Vec<Observed> = sql(OBSERVE)
        .bind::<SqlUuid, _>(observation.tenant)
        .bind::<SqlUuid, _>(observation.session)
        .bind::<Text, _>(status)
        .bind::<Nullable<Timestamptz>, _>(observation.reported_at)
        .bind::<Nullable<Text>, _>(me.and_then(Me::phone).map(|digits| format!("+{digits}")))
        .bind::<Nullable<Text>, _>(me.and_then(|me| me.push_name.clone()))
        .bind::<Timestamptz, _>(now)
        .bind::<Timestamptz, _>(if away { now } else { now + PATIENCE })
        .bind::<Nullable<Text>, _>(away.then_some("The WAHA server of this session does not answer"))
        .bind::<Text, _>(observation.source.cause())
        .bind::<Text, _>(observation.source.actor())
        .bind::<Bool, _>(!away && observation.source != Source::Missing)
        .prepared()
        .load(conn)
        .await?;
    let Some(observed) = observed.into_iter().next() else {
        pairing::announce(conn, chance, now, observation, followed.as_ref(), None).await?;
        return Ok(false);
    };
    sql(LANE)
        .bind::<SqlUuid, _>(observation.tenant)
        .bind::<SqlUuid, _>(observation.session)
        .bind::<Bool, _>(status == "working")
        .bind::<Timestamptz, _>(now)
        .prepared()
        .execute(conn)
        .await?;
    if observed.changed {
        let at = observation.reported_at.unwrap_or(now);
        tell(conn, chance, at, now, std::slice::from_ref(&observed.session)).await?;
    }
    pairing::announce(conn, chance, now, observation, followed.as_ref(), Some(&observed.session)).await?;
    Ok(observed.changed || observed.waha_changed)
}

/// Tells the tenants of `sessions` that their status is another one since `at`.
async fn tell(
    conn: &mut AsyncPgConnection,
    chance: &Chance,
    at: DateTime<Utc>,
    now: DateTime<Utc>,
    sessions: &[SessionRow],
) -> Result<(), DbError> {
    let event = |session: &SessionRow| NewEvent {
        tenant: session.tenant_id,
        id: EventId::fresh(now, chance),
        kind: "session.status",
        at,
        session_id: Some(session.id),
        message_id: None,
        data: Session::from(session).to_json(),
    };
    log::append(conn, &sessions.iter().map(event).collect::<Vec<_>>()).await
}

/// Shows the outages that have lasted. Answers how many; as many as one batch holds may mean that there are more.
///
/// # Errors
/// When the database does not answer; they are shown later.
pub async fn show_outages(app: &App) -> Result<usize, DbError> {
    let now = app.clock.now();
    let shown = app
        .db
        .system(async |conn| {
            let rows: Vec<SessionRow> = sql(SHOW_OUTAGES)
                .bind::<Timestamptz, _>(now)
                .bind::<BigInt, _>(BATCH)
                .prepared()
                .load(&mut **conn)
                .await?;
            tell(conn, &app.chance, now, now, &rows).await?;
            Ok::<_, DbError>(rows.len())
        })
        .await?;
    if shown > 0 {
        app.wake.events.notify_one();
    }
    Ok(shown)
}

/// A send found the session in `status`, whatever the database says: takes note, so that its messages wait, and has it looked
/// at now.
///
/// # Errors
/// When the database does not answer; the next poll finds the same.
pub async fn found_not_working(
    app: &App,
    tenant: TenantId,
    session: SessionId,
    status: SessionStatus,
) -> Result<(), DbError> {
    let now = app.clock.now();
    let observation = Observation { tenant, session, status, reported_at: None, me: None, source: Source::Send };
    app.db
        .system(async |conn| {
            observe(conn, &app.chance, now, &observation).await?;
            sql("UPDATE waha_sessions SET reconcile_at = least(reconcile_at, $3) WHERE tenant_id = $1 AND id = $2")
                .bind::<SqlUuid, _>(tenant)
                .bind::<SqlUuid, _>(session)
                .bind::<Timestamptz, _>(now)
                .prepared()
                .execute(&mut **conn)
                .await?;
            Ok::<_, DbError>(())
        })
        .await?;
    app.wake.sessions.notify_one();
    app.wake.events.notify_one();
    Ok(())
}
