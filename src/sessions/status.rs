//! Following a session's status, as webhooks and polls report it.
//!
//! A session that is not working holds its lane: its messages wait, in order, and leave when it works again. The status, the
//! lane and the tenant's event change in one transaction.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Bool, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};

use crate::app::App;
use crate::db::{DbError, Prepare, sql};
use crate::domain::chance::Chance;
use crate::domain::ids::{EventId, SessionId, TenantId};
use crate::events::log::{self, NewEvent};
use crate::sessions::view::{Session, SessionRow, session_columns};
use crate::waha::{Me, SessionStatus};

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

// No key update: whoever stores a message of the session need not wait. The first code lives for 60 s, each further one for 20 s; every rotation is reported anew.
const OBSERVE: &str = concat!(
    "\
WITH before AS (
    SELECT s.tenant_id, s.id, s.status, s.phone FROM waha_sessions s
    WHERE s.tenant_id = $1 AND s.id = $2 AND s.deleted_at IS NULL AND ($4 IS NULL OR s.status_at <= $4)
    FOR NO KEY UPDATE
), s AS (
    UPDATE waha_sessions s SET
        status = $3,
        status_at = coalesce($4, s.status_at),
        phone = CASE WHEN $3 = 'working' THEN coalesce($5, s.phone) ELSE s.phone END,
        push_name = CASE WHEN $3 = 'working' THEN coalesce($6, s.push_name) ELSE s.push_name END,
        error_message = CASE WHEN $3 = 'failed' THEN 'WhatsApp has ended the session or it could not be paired; restart it and scan again' END,
        qr_shown = CASE WHEN $3 <> 'scan_qr' THEN 0 WHEN $4 IS NULL AND b.status = 'scan_qr' THEN s.qr_shown ELSE s.qr_shown + 1 END,
        qr_expires_at = CASE WHEN $3 <> 'scan_qr' THEN NULL
                             WHEN $4 IS NULL AND b.status = 'scan_qr' THEN s.qr_expires_at
                             ELSE coalesce($4, $7) + CASE s.qr_shown WHEN 0 THEN interval '60 s' ELSE interval '20 s' END END,
        version = s.version + (b.status <> $3)::int,
        updated_at = $7
    FROM before b
    WHERE s.tenant_id = b.tenant_id AND s.id = b.id
      AND ($4 IS NOT NULL OR b.status <> $3 OR ($3 = 'working' AND $5 IS NOT NULL AND b.phone IS DISTINCT FROM $5))
    RETURNING s.*, b.status <> $3 AS changed
)
SELECT ",
    session_columns!(),
    ", s.changed FROM s JOIN lanes l ON l.tenant_id = s.tenant_id AND l.session_id = s.id"
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
}

/// What a poll found, and the version of the session that was read before WAHA was asked.
#[derive(Debug)]
pub struct Polled {
    /// What was found; without a time of WAHA's.
    pub observation: Observation,
    /// The session's version before.
    pub version: i64,
}

#[derive(QueryableByName)]
struct Version {
    #[diesel(sql_type = SqlUuid)]
    id: SessionId,
    #[diesel(sql_type = BigInt)]
    version: i64,
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
    let versions: Vec<Version> = sql("SELECT id, version FROM waha_sessions WHERE id = ANY($1) AND deleted_at IS NULL")
        .bind::<Array<SqlUuid>, _>(&sessions)
        .prepared()
        .load(conn)
        .await?;
    let versions: HashMap<SessionId, i64> = versions.into_iter().map(|row| (row.id, row.version)).collect();
    let mut current: Vec<&Observation> = polled
        .iter()
        .filter(|polled| versions.get(&polled.observation.session) == Some(&polled.version))
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

/// Applies `observation`, unless a later report was applied before. Answers whether the status changed.
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
    // Lanes are locked before anything else, here as everywhere.
    sql("SELECT FROM lanes WHERE tenant_id = $1 AND session_id = $2 FOR UPDATE")
        .bind::<SqlUuid, _>(observation.tenant)
        .bind::<SqlUuid, _>(observation.session)
        .prepared()
        .execute(conn)
        .await?;
    let observed: Vec<Observed> = sql(OBSERVE)
        .bind::<SqlUuid, _>(observation.tenant)
        .bind::<SqlUuid, _>(observation.session)
        .bind::<Text, _>(status)
        .bind::<Nullable<Timestamptz>, _>(observation.reported_at)
        .bind::<Nullable<Text>, _>(me.and_then(Me::phone).map(|digits| format!("+{digits}")))
        .bind::<Nullable<Text>, _>(me.and_then(|me| me.push_name.clone()))
        .bind::<Timestamptz, _>(now)
        .prepared()
        .load(conn)
        .await?;
    let Some(observed) = observed.into_iter().next() else { return Ok(false) };
    sql(LANE)
        .bind::<SqlUuid, _>(observation.tenant)
        .bind::<SqlUuid, _>(observation.session)
        .bind::<Bool, _>(status == "working")
        .bind::<Timestamptz, _>(now)
        .prepared()
        .execute(conn)
        .await?;
    if observed.changed {
        let event = NewEvent {
            tenant: observation.tenant,
            id: EventId::fresh(now, chance),
            kind: "session.status",
            at: observation.reported_at.unwrap_or(now),
            session_id: Some(observation.session),
            message_id: None,
            data: Session::from(&observed.session).to_json(),
        };
        log::append(conn, &[event]).await?;
    }
    Ok(observed.changed)
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
    let observation = Observation { tenant, session, status, reported_at: None, me: None };
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
