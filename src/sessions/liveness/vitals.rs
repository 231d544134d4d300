//! Signs of life, kept to the minute: what ingest hears and what sending is answered.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::sql_types::{Array, Bool, Integer, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use tokio::sync::watch;

use crate::app::App;
use crate::db::{DbError, Prepare, sql};
use crate::domain::ids::{SessionId, TenantId};

/// What came from WhatsApp through some sessions.
#[derive(Debug, Default)]
pub struct Signs(BTreeMap<SessionId, Sign>);

#[derive(Debug)]
struct Sign {
    tenant: TenantId,
    inbound: bool,
    ack: bool,
}

impl Signs {
    /// Something came in: a message, a reaction, an edit.
    pub fn inbound(&mut self, tenant: TenantId, session: SessionId) {
        self.entry(tenant, session).inbound = true;
    }

    /// WhatsApp's server acknowledged or rejected something.
    pub fn ack(&mut self, tenant: TenantId, session: SessionId) {
        self.entry(tenant, session).ack = true;
    }

    fn entry(&mut self, tenant: TenantId, session: SessionId) -> &mut Sign {
        self.0.entry(session).or_insert(Sign { tenant, inbound: false, ack: false })
    }
}

// At most once a minute for each kind of sign. The longest gap counts only time in which the session worked, and fades by half
// in a week. Vitals are locked last, here as everywhere.
const NOTE: &str = "\
WITH fresh AS (
    SELECT v.tenant_id, v.session_id, i.inbound, i.ack,
           CASE WHEN v.watched_since IS NULL OR v.first_sign_at IS NULL THEN 0 ELSE greatest(0, extract(epoch FROM
               $5 - greatest(v.last_inbound_at, v.last_ack_at, v.watched_since)))::float8 END AS gap
    FROM session_vitals v
    JOIN unnest($1, $2, $3, $4) AS i (tenant_id, session_id, inbound, ack)
      ON v.tenant_id = i.tenant_id AND v.session_id = i.session_id
    WHERE (i.inbound AND (v.last_inbound_at IS NULL OR v.last_inbound_at < $5 - interval '1 minute'))
       OR (i.ack AND (v.last_ack_at IS NULL OR v.last_ack_at < $5 - interval '1 minute'))
    ORDER BY v.session_id FOR NO KEY UPDATE OF v
)
UPDATE session_vitals v SET
    last_inbound_at = CASE WHEN f.inbound THEN $5 ELSE v.last_inbound_at END,
    last_ack_at = CASE WHEN f.ack THEN $5 ELSE v.last_ack_at END,
    first_sign_at = coalesce(v.first_sign_at, $5),
    signs = least(v.signs, 1000000) + 1,
    longest_gap_s = greatest(f.gap, v.longest_gap_s * power(0.5, f.gap / 604800)),
    updated_at = $5
FROM fresh f WHERE v.tenant_id = f.tenant_id AND v.session_id = f.session_id";

/// Writes down `signs` with one statement; in the transaction of what brought them, after everything that locks.
///
/// # Errors
/// When the database refuses; the transaction then must not be committed.
pub async fn note(conn: &mut AsyncPgConnection, now: DateTime<Utc>, signs: &Signs) -> Result<(), DbError> {
    if signs.0.is_empty() {
        return Ok(());
    }
    sql(NOTE)
        .bind::<Array<SqlUuid>, _>(signs.0.values().map(|sign| sign.tenant).collect::<Vec<_>>())
        .bind::<Array<SqlUuid>, _>(signs.0.keys().copied().collect::<Vec<_>>())
        .bind::<Array<Bool>, _>(signs.0.values().map(|sign| sign.inbound).collect::<Vec<_>>())
        .bind::<Array<Bool>, _>(signs.0.values().map(|sign| sign.ack).collect::<Vec<_>>())
        .bind::<Timestamptz, _>(now)
        .prepared()
        .execute(conn)
        .await?;
    Ok(())
}

/// A session whose sends get stuck is looked at now, rather than in a few minutes; in the caller's transaction, which may hold
/// its lane.
///
/// # Errors
/// When the database refuses; the transaction then must not be committed.
pub async fn look_now(
    conn: &mut AsyncPgConnection,
    now: DateTime<Utc>,
    tenant: TenantId,
    session: SessionId,
) -> Result<(), DbError> {
    sql("UPDATE session_vitals v SET probe_at = $3 FROM ( \
             SELECT tenant_id, session_id FROM session_vitals \
             WHERE tenant_id = $1 AND session_id = $2 AND probe_at > $3 AND verdict <> 'dead' FOR NO KEY UPDATE SKIP LOCKED) u \
         WHERE v.tenant_id = u.tenant_id AND v.session_id = u.session_id")
    .bind::<SqlUuid, _>(tenant)
    .bind::<SqlUuid, _>(session)
    .bind::<Timestamptz, _>(now)
    .prepared()
    .execute(conn)
    .await?;
    Ok(())
}

/// How sends were answered, since this was last written down; clones share it. A process that ends forgets half a minute of it.
#[derive(Clone, Debug, Default)]
pub struct Calls(Arc<Mutex<HashMap<SessionId, Call>>>);

#[derive(Clone, Debug)]
struct Call {
    tenant: TenantId,
    answered: bool,
    /// In a row, after the last answer.
    failed: i32,
}

const WRITE_EVERY: Duration = Duration::from_secs(30);

// Enough of them in a row have the session looked at.
const WRITE: &str = "\
WITH u AS (
    SELECT v.tenant_id, v.session_id, i.answered, i.failed FROM session_vitals v
    JOIN unnest($1, $2, $3, $4) AS i (tenant_id, session_id, answered, failed)
      ON v.tenant_id = i.tenant_id AND v.session_id = i.session_id
    ORDER BY v.session_id FOR NO KEY UPDATE OF v
)
UPDATE session_vitals v SET
    last_call_at = CASE WHEN u.answered THEN $5 ELSE v.last_call_at END,
    failed_calls = least(CASE WHEN u.answered THEN 0 ELSE v.failed_calls END + u.failed, 1000000),
    probe_at = CASE WHEN u.failed > 0 AND v.verdict <> 'dead' AND v.probe_at > $5 THEN $5 ELSE v.probe_at END,
    updated_at = $5
FROM u WHERE v.tenant_id = u.tenant_id AND v.session_id = u.session_id";

impl Calls {
    /// WAHA said what became of a message.
    pub fn answered(&self, tenant: TenantId, session: SessionId) {
        let mut calls = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        calls.insert(session, Call { tenant, answered: true, failed: 0 });
    }

    /// WAHA did not say what became of a message.
    pub fn failed(&self, tenant: TenantId, session: SessionId) {
        let mut calls = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let call = calls.entry(session).or_insert(Call { tenant, answered: false, failed: 0 });
        call.failed = call.failed.saturating_add(1);
    }

    /// Writes it down twice a minute until `stop` turns true.
    pub async fn run(self, app: App, mut stop: watch::Receiver<bool>) {
        while !*stop.borrow() {
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => {}
                () = app.clock.sleep(WRITE_EVERY) => {}
            }
            if let Err(fault) = self.write(&app).await {
                tracing::debug!(%fault, "liveness: how sends were answered could not be written down");
            }
        }
    }

    /// Writes down what came since the last time.
    ///
    /// # Errors
    /// When the database does not answer; what was to be written is forgotten then.
    pub async fn write(&self, app: &App) -> Result<(), DbError> {
        let calls = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        if calls.is_empty() {
            return Ok(());
        }
        let now = app.clock.now();
        app.db
            .system(async |conn| {
                sql(WRITE)
                    .bind::<Array<SqlUuid>, _>(calls.values().map(|call| call.tenant).collect::<Vec<_>>())
                    .bind::<Array<SqlUuid>, _>(calls.keys().copied().collect::<Vec<_>>())
                    .bind::<Array<Bool>, _>(calls.values().map(|call| call.answered).collect::<Vec<_>>())
                    .bind::<Array<Integer>, _>(calls.values().map(|call| call.failed).collect::<Vec<_>>())
                    .bind::<Timestamptz, _>(now)
                    .prepared()
                    .execute(&mut **conn)
                    .await?;
                Ok(())
            })
            .await
    }
}
