//! Pairing: which step a session is at, which code is on show, the code to type, and new codes after the last one.
//!
//! Guarantee: each QR code that WAHA shows is one `session.qr` event, written in the transaction of the report that told of
//! it. What a code says is a credential and in no event, row or log: it is fetched when somebody is to see it.

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{Bool, Nullable, SmallInt, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use secrecy::SecretString;
use serde::Serialize;

use crate::app::App;
use crate::db::{DbError, Prepare, TenantConn, sql};
use crate::domain::chance::Chance;
use crate::domain::ids::{EventId, SessionId, TenantId};
use crate::events::log::{self, NewEvent};
use crate::sessions::directory::{DirectoryError, ServerEntry};
use crate::sessions::queries;
use crate::sessions::status::{self, Observation};
use crate::sessions::view::{Session, SessionRow, session_columns};
use crate::waha::{CallError, SessionStatus};

/// Codes that WAHA shows before it gives up.
pub const ROTATIONS: i16 = 6;
/// How often codes may be asked for within [`ASKS_WITHIN`]: WhatsApp takes offence at numbers that ask for many.
const ASKS: i16 = 8;
/// See [`ASKS`].
const ASKS_WITHIN: TimeDelta = TimeDelta::minutes(10);

/// What the resource says of a session whose codes nobody scanned.
macro_rules! nobody_scanned {
    () => {
        "Nobody scanned a QR code in time, so WhatsApp stopped showing them; start the session again for new codes"
    };
}
/// What the resource says of a session that failed otherwise.
macro_rules! ended {
    () => {
        "WhatsApp has ended the session: it was logged out on the phone, or the number was blocked; start the session again and scan anew"
    };
}

/// What a session that waits to be paired waits for; `None` for every other.
#[must_use]
pub const fn step_of(status: SessionStatus) -> Option<&'static str> {
    match status {
        SessionStatus::ScanQrCode => Some("qr"),
        SessionStatus::PasskeyRequired => Some("passkey"),
        SessionStatus::PasskeyConfirmationRequired => Some("passkey_confirmation"),
        _ => None,
    }
}

/// Whether a failed session failed because nobody scanned its codes.
#[must_use]
pub fn has_expired(session: &SessionRow) -> bool {
    session.status == "failed" && session.error_message.as_deref() == Some(nobody_scanned!())
}

// A report as old as the one before is a repeat of it. The first report after a poll that found a code is that code's own.
// The first code lives for 60 s, each further one for 20 s.
const FOLLOW: &str = concat!(
    "\
WITH b AS (
    SELECT s.tenant_id, s.id, s.waha_status, s.pairing_step,
           coalesce($5 = 'qr' AND (s.pairing_step IS DISTINCT FROM 'qr' OR $4 > s.qr_reported_at), false) AS another,
           $5 = 'qr' AND s.pairing_step = 'qr' AND s.qr_reported_at IS NULL AND $4 IS NOT NULL AS confirmed
    FROM waha_sessions s
    WHERE s.tenant_id = $1 AND s.id = $2 AND s.deleted_at IS NULL AND ($4 IS NULL OR s.status_at <= $4)
    FOR NO KEY UPDATE
), s AS (
    UPDATE waha_sessions s SET
        pairing_step = $5,
        qr_shown = CASE WHEN $5 IS NULL THEN 0 ELSE least(s.qr_shown + b.another::int, 6) END,
        qr_reported_at = CASE WHEN $5 IS DISTINCT FROM 'qr' THEN NULL
                              WHEN b.another OR b.confirmed THEN $4 ELSE s.qr_reported_at END,
        qr_expires_at = CASE WHEN $5 IS DISTINCT FROM 'qr' THEN NULL
                             WHEN b.another OR b.confirmed
                             THEN coalesce($4, $6) + CASE WHEN s.qr_shown + b.another::int <= 1 THEN interval '60 s' ELSE interval '20 s' END
                             ELSE s.qr_expires_at END,
        working_from = CASE WHEN $3 = 'working' AND b.waha_status <> 'working' THEN $6 ELSE s.working_from END,
        error_message = CASE WHEN $3 <> 'failed' THEN NULL
                             WHEN b.waha_status = 'failed' THEN s.error_message
                             WHEN b.waha_status = 'scan_qr' THEN '",
    nobody_scanned!(),
    "' ELSE '",
    ended!(),
    "' END,
        version = s.version + (b.waha_status = $3 AND b.pairing_step IS DISTINCT FROM $5)::int
    FROM b
    WHERE s.tenant_id = b.tenant_id AND s.id = b.id
      AND ($4 IS NOT NULL OR b.waha_status <> $3 OR b.pairing_step IS DISTINCT FROM $5)
    RETURNING s.*, b.another, b.waha_status = $3 AND b.pairing_step IS DISTINCT FROM $5 AS stepped
)
SELECT ",
    session_columns!(),
    ", s.another, s.stepped FROM s JOIN lanes l ON l.tenant_id = s.tenant_id AND l.session_id = s.id"
);

/// What an observation did to a pairing.
#[derive(QueryableByName)]
pub struct Followed {
    #[diesel(embed)]
    session: SessionRow,
    #[diesel(sql_type = Bool)]
    another: bool,
    #[diesel(sql_type = Bool)]
    stepped: bool,
}

/// Follows the pairing through `observation`, which has the session in `status`; before the status itself is applied, in the
/// same transaction, with the lane locked. Hand the answer to [`announce`].
///
/// # Errors
/// When the database refuses; the transaction then must not be committed.
pub async fn follow(
    conn: &mut AsyncPgConnection,
    now: DateTime<Utc>,
    observation: &Observation,
    status: &str,
) -> Result<Option<Followed>, DbError> {
    let followed: Vec<Followed> = sql(FOLLOW)
        .bind::<SqlUuid, _>(observation.tenant)
        .bind::<SqlUuid, _>(observation.session)
        .bind::<Text, _>(status)
        .bind::<Nullable<Timestamptz>, _>(observation.reported_at)
        .bind::<Nullable<Text>, _>(step_of(observation.status))
        .bind::<Timestamptz, _>(now)
        .prepared()
        .load(conn)
        .await?;
    Ok(followed.into_iter().next())
}

/// Which code is on show.
#[derive(Serialize)]
struct Rotation {
    rotation: i16,
    of: i16,
    expires_at: Option<DateTime<Utc>>,
}

/// `data` of `session.qr`: the session and which code is on show, but not what it says.
#[derive(Serialize)]
struct QrEvent<'a> {
    #[serde(flatten)]
    session: Session<'a>,
    qr: Rotation,
}

/// Tells the tenant of another code, and of another step where the status stayed what it was. `after` is the session with
/// its new status, where that changed something.
///
/// # Errors
/// When the database refuses; the transaction then must not be committed.
pub async fn announce(
    conn: &mut AsyncPgConnection,
    chance: &Chance,
    now: DateTime<Utc>,
    observation: &Observation,
    followed: Option<&Followed>,
    after: Option<&SessionRow>,
) -> Result<(), DbError> {
    let Some(followed) = followed else { return Ok(()) };
    let row = after.unwrap_or(&followed.session);
    let event = |kind, data| NewEvent {
        tenant: observation.tenant,
        id: EventId::fresh(now, chance),
        kind,
        at: observation.reported_at.unwrap_or(now),
        session_id: Some(observation.session),
        message_id: None,
        data,
    };
    let mut events = Vec::new();
    if followed.stepped {
        events.push(event("session.status", Session::from(row).to_json()));
    }
    if followed.another {
        let qr = Rotation { rotation: row.qr_shown, of: ROTATIONS, expires_at: row.qr_expires_at };
        // Strings, numbers and JSON values always serialise.
        let data = serde_json::to_string(&QrEvent { session: Session::from(row), qr }).unwrap_or_default();
        events.push(event("session.qr", data));
    }
    log::append(conn, &events).await
}

/// Why pairing cannot go on as asked.
#[derive(Debug, thiserror::Error)]
pub enum PairingError {
    /// The tenant has no such session.
    #[error("there is no such session")]
    NotFound,
    /// The session is at another step; which one.
    #[error("the session is {0}")]
    WrongStep(String),
    /// Codes were asked for too often.
    #[error("codes were asked for too often")]
    TooOften,
    /// WAHA will not do it, for this session or at all.
    #[error("refused: {0}")]
    Refused(CallError),
    /// The WAHA server cannot be asked now.
    #[error("not to be had: {0}")]
    Unavailable(CallError),
    /// The database said no.
    #[error(transparent)]
    Database(#[from] DbError),
    /// What is known of the server cannot be read.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
}

impl From<CallError> for PairingError {
    fn from(fault: CallError) -> Self {
        match fault {
            CallError::State { status } => Self::WrongStep(status::name_of(status).unwrap_or("elsewhere").to_owned()),
            CallError::NotFound => Self::WrongStep("starting".to_owned()),
            CallError::Rule(_) | CallError::Unsupported(_) | CallError::Unauthorized => Self::Refused(fault),
            fault => Self::Unavailable(fault),
        }
    }
}

/// The session and the server it is being paired on, provided that it waits for one of `steps`.
pub(super) async fn at_step(
    app: &App,
    tenant: TenantId,
    session: SessionId,
    steps: &[&str],
) -> Result<(SessionRow, Arc<ServerEntry>), PairingError> {
    let found = app.db.tenant(tenant, async move |conn| queries::find(conn, session).await).await?;
    let row = found.ok_or(PairingError::NotFound)?;
    match row.pairing_step.as_deref().filter(|_| row.status == "scan_qr") {
        Some(step) if steps.contains(&step) => {}
        Some("qr") => {
            return Err(PairingError::WrongStep("scan_qr and waits for its QR code to be scanned".to_owned()));
        }
        Some(step) => return Err(PairingError::WrongStep(format!("scan_qr and waits for its {step}"))),
        None => return Err(PairingError::WrongStep(row.status)),
    }
    let server = app.directory.server(row.waha_server_id).await?.ok_or(PairingError::NotFound)?;
    Ok((row, server))
}

/// A code that is typed into the phone with the number `digits` instead of a scan. A credential like the QR code.
///
/// # Errors
/// [`PairingError`].
pub async fn code(app: &App, tenant: TenantId, session: SessionId, digits: &str) -> Result<SecretString, PairingError> {
    let (row, server) = at_step(app, tenant, session, &["qr"]).await?;
    let now = app.clock.now();
    let granted = app.db.tenant(tenant, async move |conn| ask(conn, session, now).await).await?;
    if !granted {
        return Err(PairingError::TooOften);
    }
    Ok(app.waha.pairing_code(&server.server, &row.external_session_id, digits).await?)
}

const ASK: &str = "\
UPDATE waha_sessions SET
    pairing_asks = CASE WHEN pairing_asks_since > $4 THEN pairing_asks + 1 ELSE 1 END,
    pairing_asks_since = CASE WHEN pairing_asks_since > $4 THEN pairing_asks_since ELSE $3 END
WHERE tenant_id = $1 AND id = $2 AND deleted_at IS NULL
  AND (pairing_asks_since IS NULL OR pairing_asks_since <= $4 OR pairing_asks < $5)";

/// Counts a request for codes; false when there were too many of late.
async fn ask(conn: &mut TenantConn, session: SessionId, now: DateTime<Utc>) -> Result<bool, DbError> {
    let counted = sql(ASK)
        .bind::<SqlUuid, _>(conn.tenant())
        .bind::<SqlUuid, _>(session)
        .bind::<Timestamptz, _>(now)
        .bind::<Timestamptz, _>(now - ASKS_WITHIN)
        .bind::<SmallInt, _>(ASKS)
        .prepared()
        .execute(&mut **conn)
        .await?;
    Ok(counted > 0)
}

/// Wants new codes for a session that has failed.
///
/// # Errors
/// [`PairingError`]: [`PairingError::WrongStep`] unless the session has failed.
pub async fn restart(app: &App, tenant: TenantId, session: SessionId) -> Result<(), PairingError> {
    let now = app.clock.now();
    let wanted = app
        .db
        .tenant(tenant, async move |conn| {
            let row = queries::find(conn, session).await?.ok_or(PairingError::NotFound)?;
            if row.status != "failed" {
                return Err(PairingError::WrongStep(row.status));
            }
            if !ask(conn, session, now).await? {
                return Err(PairingError::TooOften);
            }
            queries::want(conn, session, queries::Wish::Restart, "pairing_link", now)
                .await?
                .ok_or(PairingError::NotFound)
        })
        .await;
    wanted?;
    app.wake.sessions.notify_one();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_statement_counts_to_the_last_code_and_its_words_need_no_escape() {
        assert!(FOLLOW.contains(&format!(", {ROTATIONS}) END")));
        for words in [nobody_scanned!(), ended!()] {
            assert!(!words.contains('\''));
        }
    }
}
