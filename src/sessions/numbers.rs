//! Whether a number is on WhatsApp, and under which chat id.
//!
//! The two differ for many Brazilian mobiles, whose registered id lacks the ninth digit: a message to the other form is taken
//! and vanishes. WhatsApp limits how often this may be asked, so answers are kept: weeks for a number that is registered, hours
//! for one that is not (yet).

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{Bool, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;

use crate::app::App;
use crate::db::{DbError, Prepare, sql};
use crate::domain::chance::Chance;
use crate::domain::ids::TenantId;
use crate::domain::recipient::ChatId;
use crate::sessions::directory::{ServerEntry, SessionEntry};
use crate::waha::CallError;

/// How long an answer is kept at least.
const REGISTERED_FOR: Duration = Duration::from_secs(21 * 24 * 3600);
const UNREGISTERED_FOR: Duration = Duration::from_secs(6 * 3600);
/// The longest that WAHA may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What WhatsApp says about a number.
#[derive(Clone, PartialEq, Eq)]
pub enum Registration {
    /// It is on WhatsApp, under this chat id.
    Registered(String),
    /// It is not on WhatsApp.
    NotRegistered,
}

// A chat id holds a number, which belongs in no log.
impl std::fmt::Debug for Registration {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Registered(_) => "Registered(…)",
            Self::NotRegistered => "NotRegistered",
        })
    }
}

#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = Bool)]
    registered: bool,
    #[diesel(sql_type = Nullable<Text>)]
    chat_id: Option<String>,
}

/// What was found out about `phone` (E.164 with `+`) and is still believed.
///
/// # Errors
/// When the database does not answer.
pub async fn known(app: &App, tenant: TenantId, phone: &str) -> Result<Option<Registration>, DbError> {
    let now = app.clock.now();
    let rows: Vec<Row> = app
        .db
        .tenant(tenant, async |conn| {
            Ok::<_, DbError>(
                sql("SELECT registered, chat_id FROM number_checks WHERE tenant_id = $1 AND phone = $2 AND expires_at > $3")
                    .bind::<SqlUuid, _>(tenant)
                    .bind::<Text, _>(phone)
                    .bind::<Timestamptz, _>(now)
                    .prepared()
                    .load(&mut **conn)
                    .await?,
            )
        })
        .await?;
    Ok(rows.into_iter().next().map(|row| match row.chat_id {
        Some(chat) if row.registered => Registration::Registered(chat),
        _ => Registration::NotRegistered,
    }))
}

/// Asks WhatsApp about `phone` (E.164 with `+`), and keeps the answer. Whether that succeeds changes nothing about the answer.
///
/// # Errors
/// See [`CallError`].
pub async fn ask(
    app: &App,
    session: &SessionEntry,
    server: &ServerEntry,
    phone: &str,
) -> Result<Registration, CallError> {
    let digits = phone.trim_start_matches('+');
    let asked = app.waha.check_exists(&server.server, &session.external_name, digits);
    let answer = tokio::time::timeout(PATIENCE, asked).await.unwrap_or(Err(CallError::TimedOut))?;
    let registration = if answer.exists {
        // The phone's own id rather than a hidden one, where WAHA tells them apart.
        let chat = [answer.phone_id, answer.chat_id].into_iter().flatten().find_map(|id| ChatId::parse(&id).ok());
        Registration::Registered(chat.map_or_else(|| format!("{digits}@c.us"), |chat| chat.as_str().to_owned()))
    } else {
        Registration::NotRegistered
    };
    metrics::counter!("switchboard_number_checks_total", "registered" => if answer.exists { "yes" } else { "no" })
        .increment(1);
    if let Err(fault) = keep(app, session.tenant, phone, &registration).await {
        tracing::debug!(%fault, "the answer to a number check could not be kept");
    }
    Ok(registration)
}

async fn keep(app: &App, tenant: TenantId, phone: &str, answer: &Registration) -> Result<(), DbError> {
    let now = app.clock.now();
    let (registered, chat) = match answer {
        Registration::Registered(chat) => (true, Some(chat.as_str())),
        Registration::NotRegistered => (false, None),
    };
    let until = until(now, registered, &app.chance);
    app.db
        .tenant(tenant, async |conn| {
            sql("INSERT INTO number_checks (tenant_id, phone, registered, chat_id, checked_at, expires_at) \
                 VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (tenant_id, phone) DO UPDATE SET \
                 registered = excluded.registered, chat_id = excluded.chat_id, checked_at = excluded.checked_at, \
                 expires_at = excluded.expires_at")
            .bind::<SqlUuid, _>(tenant)
            .bind::<Text, _>(phone)
            .bind::<Bool, _>(registered)
            .bind::<Nullable<Text>, _>(chat)
            .bind::<Timestamptz, _>(now)
            .bind::<Timestamptz, _>(until)
            .prepared()
            .execute(&mut **conn)
            .await?;
            Ok::<_, DbError>(())
        })
        .await
}

/// Up to a quarter longer by chance, lest a list that was checked at once comes up for its next check at once.
fn until(now: DateTime<Utc>, registered: bool, chance: &Chance) -> DateTime<Utc> {
    let least = if registered { REGISTERED_FOR } else { UNREGISTERED_FOR };
    now + TimeDelta::from_std(least + chance.jitter(least / 4)).unwrap_or(TimeDelta::hours(6))
}
