//! Asking WAHA for the numbers of people of whom only the hidden id is known.
//!
//! Guarantee: as long as one node runs this, each such contact of a tenant with a working session is asked about; who is not
//! known is asked about again, less and less often. A node asks one question at a time, no more often than gaps are filled. Two
//! that ask the same learn the same; a contact taken by a node that dies is due again after the lease.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Bool, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use tokio::sync::watch;

use crate::app::App;
use crate::contacts::{self, Because};
use crate::db::{DbError, Prepare, SystemConn, sql};
use crate::domain::chance::Chance;
use crate::domain::ids::{ContactId, SessionId, TenantId};
use crate::ingest::gap_fill::due::delta;
use crate::waha::{CallError, LidPair};

/// How often it is looked for contacts to ask about.
const EVERY: Duration = Duration::from_secs(30);
/// Contacts taken at once; what they take to be asked about is within the lease.
const BATCH: i64 = 20;
const LEASE: TimeDelta = TimeDelta::minutes(15);
/// Between two questions, at least.
const BETWEEN: Duration = Duration::from_millis(500);
/// Who is not known is asked about after this, twice it, and so on up to the longest.
const UNKNOWN: TimeDelta = TimeDelta::hours(6);
const LONGEST: TimeDelta = TimeDelta::days(7);
/// When nobody could be asked.
const UNASKED: TimeDelta = TimeDelta::minutes(10);

#[derive(QueryableByName)]
struct Taken {
    #[diesel(sql_type = SqlUuid)]
    tenant_id: TenantId,
    #[diesel(sql_type = SqlUuid)]
    contact_id: ContactId,
    #[diesel(sql_type = Integer)]
    misses: i32,
    #[diesel(sql_type = Text)]
    lid: String,
    #[diesel(sql_type = Nullable<SqlUuid>)]
    session_id: Option<SessionId>,
}

/// What came of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Number,
    Nothing,
    Unasked,
}

macro_rules! hidden {
    () => {
        "c.phone IS NULL AND c.lid IS NOT NULL AND c.merged_into IS NULL AND c.deleted_at IS NULL"
    };
}

const ENLIST: &str = concat!(
    "INSERT INTO lid_lookups (tenant_id, contact_id, due_at, created_at, updated_at) \
     SELECT c.tenant_id, c.id, $1, $1, $1 FROM contacts c WHERE ",
    hidden!(),
    " AND NOT EXISTS (SELECT FROM lid_lookups l WHERE l.tenant_id = c.tenant_id AND l.contact_id = c.id) \
     ORDER BY c.tenant_id, c.id LIMIT 1000 ON CONFLICT DO NOTHING"
);

// Through the session that talks to the person, else through any of the tenant's that works.
const TAKE: &str = concat!(
    "\
WITH due AS (
    SELECT l.tenant_id, l.contact_id FROM lid_lookups l WHERE l.due_at <= $1 ORDER BY l.due_at LIMIT $2 FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM lid_lookups l USING due d, contacts c
    WHERE l.tenant_id = d.tenant_id AND l.contact_id = d.contact_id AND c.tenant_id = d.tenant_id AND c.id = d.contact_id AND NOT (",
    hidden!(),
    ")
), taken AS (
    UPDATE lid_lookups l SET due_at = $3, updated_at = $1 FROM due d, contacts c
    WHERE l.tenant_id = d.tenant_id AND l.contact_id = d.contact_id AND c.tenant_id = d.tenant_id AND c.id = d.contact_id AND ",
    hidden!(),
    "
    RETURNING l.tenant_id, l.contact_id, l.misses, c.lid
)
SELECT t.tenant_id, t.contact_id, t.misses, t.lid, s.id AS session_id
FROM taken t LEFT JOIN LATERAL (
    SELECT s.id FROM waha_sessions s
    LEFT JOIN conversations v ON v.tenant_id = s.tenant_id AND v.session_id = s.id AND v.contact_id = t.contact_id AND v.deleted_at IS NULL
    WHERE s.tenant_id = t.tenant_id AND s.waha_status = 'working' AND s.desired = 'started' AND s.deleted_at IS NULL
    ORDER BY v.last_message_at DESC NULLS LAST, s.id LIMIT 1
) s ON true"
);

const SETTLE: &str = "\
UPDATE lid_lookups SET due_at = $3, misses = misses + $4::int, updated_at = $5 WHERE tenant_id = $1 AND contact_id = $2";

/// Asks until `stop` turns true.
pub(super) async fn run(app: App, mut stop: watch::Receiver<bool>) {
    while !*stop.borrow() {
        let taken = match take(&app).await {
            Ok(taken) => taken,
            Err(fault) => {
                tracing::debug!(%fault, "hidden ids: the contacts cannot be read");
                Vec::new()
            }
        };
        let more = !taken.is_empty();
        for contact in taken {
            if *stop.borrow() {
                return;
            }
            look_up(&app, &contact).await;
            pause(&app, &mut stop, BETWEEN.max(app.config.gap_fill.spacing())).await;
        }
        if !more {
            pause(&app, &mut stop, EVERY).await;
        }
    }
}

async fn pause(app: &App, stop: &mut watch::Receiver<bool>, time: Duration) {
    tokio::select! {
        _ = stop.wait_for(|stop| *stop) => {}
        () = app.clock.sleep(time) => {}
    }
}

async fn take(app: &App) -> Result<Vec<Taken>, DbError> {
    let now = app.clock.now();
    app.db
        .system(async |conn: &mut SystemConn| {
            sql(ENLIST).bind::<Timestamptz, _>(now).prepared().execute(&mut **conn).await?;
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
        .await
}

async fn look_up(app: &App, contact: &Taken) {
    let pair = ask(app, contact).await;
    let found = match &pair {
        Ok(Some(LidPair { phone_id: Some(_), .. })) => Found::Number,
        Ok(Some(_)) => Found::Nothing,
        Ok(None) | Err(_) => Found::Unasked,
    };
    let result = match found {
        Found::Number => "number",
        Found::Nothing => "nothing",
        Found::Unasked => "unasked",
    };
    metrics::counter!("switchboard_lid_lookups_total", "result" => result).increment(1);
    let phone = pair.ok().flatten().and_then(|pair| pair.phone_id);
    if let Err(fault) = settle(app, contact, found, phone.as_deref()).await {
        tracing::debug!(contact_id = %contact.contact_id, %fault, "hidden ids: an answer could not be written down");
    }
}

/// `None` when there is nobody to ask.
async fn ask(app: &App, contact: &Taken) -> Result<Option<LidPair>, CallError> {
    let Some(session) = contact.session_id else { return Ok(None) };
    let Ok(Some(session)) = app.directory.session(contact.tenant_id, session).await else { return Ok(None) };
    let Ok(Some(server)) = app.directory.server(session.server).await else { return Ok(None) };
    match app.waha.phone_of_lid(&server.server, &session.external_name, &contact.lid).await {
        Ok(pair) => Ok(Some(pair)),
        // Some servers say so of an id that they do not know; others keep nothing to look it up in.
        Err(CallError::NotFound | CallError::Rule(_) | CallError::Unsupported(_)) => {
            Ok(Some(LidPair { lid: None, phone_id: None }))
        }
        Err(fault) => Err(fault),
    }
}

async fn settle(app: &App, contact: &Taken, found: Found, phone_id: Option<&str>) -> Result<(), DbError> {
    let now = app.clock.now();
    let pause = match found {
        Found::Unasked => UNASKED,
        Found::Nothing => (UNKNOWN * (1 << contact.misses.clamp(0, 10))).min(LONGEST),
        // Once the contact has its number, nobody asks again.
        Found::Number => UNKNOWN,
    };
    let due = now + pause + delta(app.chance.jitter(pause.to_std().unwrap_or_default() / 5));
    app.db
        .system(async |conn: &mut SystemConn| {
            if let Some(phone_id) = phone_id {
                link(conn, &app.chance, now, contact.tenant_id, &contact.lid, phone_id).await?;
            }
            sql(SETTLE)
                .bind::<SqlUuid, _>(contact.tenant_id)
                .bind::<SqlUuid, _>(contact.contact_id)
                .bind::<Timestamptz, _>(due)
                .bind::<Bool, _>(found == Found::Nothing)
                .bind::<Timestamptz, _>(now)
                .prepared()
                .execute(&mut **conn)
                .await?;
            Ok(())
        })
        .await
}

/// Tells the contacts that both ids are one person's.
async fn link(
    conn: &mut AsyncPgConnection,
    chance: &Chance,
    now: DateTime<Utc>,
    tenant: TenantId,
    lid: &str,
    phone_id: &str,
) -> Result<(), DbError> {
    contacts::link(conn, chance, now, tenant, lid, phone_id, Because::Lookup).await
}
