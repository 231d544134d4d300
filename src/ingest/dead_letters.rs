//! What nothing could be made of: kept with its cause until it can be applied.
//!
//! Guarantee: an event leaves the broker or the spool only when it is applied or is here, and it leaves this place only in the
//! transaction that applies it, or because an operator says so; events of unknown kinds after a week. The same event set aside
//! twice is one letter, so a repeat adds nothing.

use chrono::{DateTime, TimeDelta, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};

use crate::app::App;
use crate::broker::envelope::InboundEvent;
use crate::db::{Db, DbError, Prepare, sql};
use crate::domain::chance::Chance;
use crate::domain::ids::{DeadLetterId, SessionId, TenantId, WahaServerId};
use crate::ingest::apply;
use crate::waha::webhook::{Payload, WebhookEvent};

/// How long events of unknown kinds are kept.
const UNKNOWN_FOR: TimeDelta = TimeDelta::days(7);
/// Letters removed in one transaction at the most.
const PIECE: i64 = 500;

/// Why an event was set aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It is not what WAHA writes.
    Unreadable,
    /// The database refused what it says.
    Refused,
    /// Its kind is not known; such are kept for a week.
    UnknownEvent,
}

impl Reason {
    /// As the database writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unreadable => "unreadable",
            Self::Refused => "refused",
            Self::UnknownEvent => "unknown_event",
        }
    }
}

impl std::str::FromStr for Reason {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Self::Unreadable, Self::Refused, Self::UnknownEvent]
            .into_iter()
            .find(|reason| reason.as_str() == text)
            .ok_or("a reason is one of unreadable, refused, unknown_event")
    }
}

/// An event to be set aside.
#[derive(Clone, Debug)]
pub struct DeadLetter {
    /// What WAHA posted.
    pub event: InboundEvent,
    /// Its kind, if that could be read.
    pub kind: Option<String>,
    /// Why.
    pub reason: Reason,
    /// What went wrong, without anything that the event says.
    pub cause: String,
}

impl DeadLetter {
    /// The letter of `event`, which could not be applied because of `fault`.
    #[must_use]
    pub fn of(event: InboundEvent, fault: &DbError) -> Self {
        let (kind, reason, cause) = match WebhookEvent::parse(event.body.as_bytes()) {
            Ok(read) => (Some(read.event), Reason::Refused, without_values(&fault.to_string())),
            Err(unread) => {
                let named = serde_json::from_str::<serde_json::Value>(&event.body).ok();
                let kind = named.and_then(|json| json.get("event")?.as_str().map(str::to_owned));
                (kind, Reason::Unreadable, unread.to_string())
            }
        };
        let kind = kind.map(|kind| kind.replace('\0', ""));
        tracing::error!(cause, reason = reason.as_str(), "ingest: an event cannot be applied; it is set aside");
        Self { event, kind, reason, cause }
    }
}

/// A database's complaint without the values that it quotes, and without long numbers.
fn without_values(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut quoted = false;
    let mut digits = 0;
    for c in text.chars().take(500) {
        if c == '"' {
            quoted = !quoted;
            out.push(c);
        } else if !quoted {
            digits = if c.is_ascii_digit() { digits + 1 } else { 0 };
            out.push(if digits > 4 { '#' } else { c });
        }
    }
    out
}

/// Sets `letters` aside.
///
/// # Errors
/// When the database refuses; the transaction then must not be committed.
pub async fn keep(
    conn: &mut AsyncPgConnection,
    chance: &Chance,
    now: DateTime<Utc>,
    letters: &[DeadLetter],
) -> Result<(), DbError> {
    if letters.is_empty() {
        return Ok(());
    }
    fn column<'a, T>(letters: &'a [DeadLetter], of: impl Fn(&'a DeadLetter) -> T) -> Vec<T> {
        letters.iter().map(of).collect()
    }
    sql("INSERT INTO inbound_dead_letters (tenant_id, id, session_id, waha_server_id, received_at, event, reason, cause, body, \
                                           created_at, updated_at) \
         SELECT i.*, $10, $10 FROM unnest($1, $2, $3, $4, $5, $6, $7, $8, $9) AS i ON CONFLICT DO NOTHING")
    .bind::<Array<SqlUuid>, _>(column(letters, |letter| letter.event.tenant_id))
    .bind::<Array<SqlUuid>, _>(column(letters, |_| DeadLetterId::fresh(now, chance)))
    .bind::<Array<SqlUuid>, _>(column(letters, |letter| letter.event.session_id))
    .bind::<Array<SqlUuid>, _>(column(letters, |letter| letter.event.waha_server_id))
    .bind::<Array<Timestamptz>, _>(column(letters, |letter| letter.event.received_at))
    .bind::<Array<Nullable<Text>>, _>(column(letters, |letter| letter.kind.as_deref()))
    .bind::<Array<Text>, _>(column(letters, |letter| letter.reason.as_str()))
    .bind::<Array<Text>, _>(column(letters, |letter| letter.cause.as_str()))
    .bind::<Array<Text>, _>(column(letters, |letter| letter.event.body.replace('\0', "")))
    .bind::<Timestamptz, _>(now)
    .prepared()
    .execute(conn)
    .await?;
    for letter in letters {
        metrics::counter!("switchboard_ingest_dead_letters_total", "reason" => letter.reason.as_str()).increment(1);
    }
    Ok(())
}

/// Sets `letters` aside in a transaction of their own.
///
/// # Errors
/// When the database does not take them; none of them is set aside then.
pub async fn set_aside(app: &App, letters: &[DeadLetter]) -> Result<(), DbError> {
    if letters.is_empty() {
        return Ok(());
    }
    let now = app.clock.now();
    app.db.system(async |conn| keep(conn, &app.chance, now, letters).await).await
}

/// Applies `event` in the caller's transaction; answers its letter when it cannot be applied, and the transaction is as before
/// then.
///
/// # Errors
/// When the database is away.
pub async fn try_apply(
    app: &App,
    conn: &mut AsyncPgConnection,
    event: &InboundEvent,
) -> Result<Option<DeadLetter>, DbError> {
    conn.batch_execute("SAVEPOINT applying").await?;
    match apply::apply_in(app, conn, std::slice::from_ref(event)).await {
        Ok(()) => {
            conn.batch_execute("RELEASE SAVEPOINT applying").await?;
            Ok(None)
        }
        Err(fault) if fault.is_transient() => Err(fault),
        Err(fault) => {
            conn.batch_execute("ROLLBACK TO SAVEPOINT applying").await?;
            Ok(Some(DeadLetter::of(event.clone(), &fault)))
        }
    }
}

/// Which letters are meant: all that fit what is given.
#[derive(Clone, Debug, Default)]
pub struct Which {
    /// These; none: of any id.
    pub ids: Vec<DeadLetterId>,
    /// Set aside for this reason.
    pub reason: Option<Reason>,
}

impl Which {
    fn ids(&self) -> Option<Vec<DeadLetterId>> {
        (!self.ids.is_empty()).then(|| self.ids.clone())
    }
}

/// A letter as an operator sees it: without its content.
#[derive(Clone, Debug, QueryableByName)]
pub struct Envelope {
    /// Its id.
    #[diesel(sql_type = SqlUuid)]
    pub id: DeadLetterId,
    /// Whose.
    #[diesel(sql_type = SqlUuid)]
    pub tenant_id: TenantId,
    /// Which session WAHA told of.
    #[diesel(sql_type = SqlUuid)]
    pub session_id: SessionId,
    /// When it came.
    #[diesel(sql_type = Timestamptz)]
    pub received_at: DateTime<Utc>,
    /// Its kind, if that could be read.
    #[diesel(sql_type = Nullable<Text>)]
    pub event: Option<String>,
    /// Why it was set aside.
    #[diesel(sql_type = Text)]
    pub reason: String,
    /// What went wrong.
    #[diesel(sql_type = Text)]
    pub cause: String,
    /// How often it was tried to apply it.
    #[diesel(sql_type = Integer)]
    pub attempts: i32,
}

/// Up to `limit` of the letters `which`, oldest first, behind `after`.
///
/// # Errors
/// When the database does not answer.
pub async fn list(db: &Db, which: &Which, after: Option<DeadLetterId>, limit: i64) -> Result<Vec<Envelope>, DbError> {
    db.system(async |conn| {
        Ok(sql("SELECT id, tenant_id, session_id, received_at, event, reason, cause, attempts FROM inbound_dead_letters \
             WHERE ($1::uuid[] IS NULL OR id = ANY($1)) AND ($2::text IS NULL OR reason = $2) AND ($3::uuid IS NULL OR id > $3) \
             ORDER BY id LIMIT $4")
        .bind::<Nullable<Array<SqlUuid>>, _>(which.ids())
        .bind::<Nullable<Text>, _>(which.reason.map(Reason::as_str))
        .bind::<Nullable<SqlUuid>, _>(after)
        .bind::<BigInt, _>(limit)
        .prepared()
        .load(&mut **conn)
        .await?)
    })
    .await
}

/// What came of applying letters again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Applied, and no letters any more.
    pub applied: usize,
    /// Still letters.
    pub left: usize,
}

#[derive(QueryableByName)]
struct Letter {
    #[diesel(sql_type = SqlUuid)]
    tenant_id: TenantId,
    #[diesel(sql_type = SqlUuid)]
    session_id: SessionId,
    #[diesel(sql_type = SqlUuid)]
    waha_server_id: WahaServerId,
    #[diesel(sql_type = Timestamptz)]
    received_at: DateTime<Utc>,
    #[diesel(sql_type = Text)]
    body: String,
}

/// Applies the letters `which` again, oldest first, each in a transaction of its own, and removes those that worked.
///
/// # Errors
/// When the database is away; what was done until then stays done.
pub async fn reapply(app: &App, which: &Which) -> Result<Tally, DbError> {
    let mut tally = Tally::default();
    let mut after = None;
    loop {
        let page = list(&app.db, which, after, PIECE).await?;
        let Some(last) = page.last() else { break };
        after = Some(last.id);
        for envelope in &page {
            match reapply_one(app, envelope.tenant_id, envelope.id).await? {
                Some(true) => tally.applied += 1,
                Some(false) => tally.left += 1,
                None => {}
            }
        }
    }
    Ok(tally)
}

/// Whether it was applied; `None` when it is gone, or somebody else is at it.
async fn reapply_one(app: &App, tenant: TenantId, id: DeadLetterId) -> Result<Option<bool>, DbError> {
    let now = app.clock.now();
    let applied = app
        .db
        .system(async |conn| {
            let found: Vec<Letter> = sql("SELECT tenant_id, session_id, waha_server_id, received_at, body \
                 FROM inbound_dead_letters WHERE tenant_id = $1 AND id = $2 FOR UPDATE SKIP LOCKED")
            .bind::<SqlUuid, _>(tenant)
            .bind::<SqlUuid, _>(id)
            .prepared()
            .load(&mut **conn)
            .await?;
            let Some(letter) = found.into_iter().next() else { return Ok::<_, DbError>(None) };
            let event = InboundEvent {
                tenant_id: letter.tenant_id,
                session_id: letter.session_id,
                waha_server_id: letter.waha_server_id,
                received_at: letter.received_at,
                body: letter.body,
            };
            let refused = match WebhookEvent::parse(event.body.as_bytes()).map(|read| read.payload) {
                // Still: it stays, with its time.
                Ok(Payload::Other { .. }) => return Ok(Some(false)),
                _ => try_apply(app, conn, &event).await?,
            };
            let Some(refused) = refused else {
                remove_ids(conn, tenant, id).await?;
                return Ok(Some(true));
            };
            sql("UPDATE inbound_dead_letters SET attempts = attempts + 1, event = $3, reason = $4, cause = $5, updated_at = $6 \
                 WHERE tenant_id = $1 AND id = $2")
            .bind::<SqlUuid, _>(tenant)
            .bind::<SqlUuid, _>(id)
            .bind::<Nullable<Text>, _>(refused.kind)
            .bind::<Text, _>(refused.reason.as_str())
            .bind::<Text, _>(refused.cause)
            .bind::<Timestamptz, _>(now)
            .prepared()
            .execute(&mut **conn)
            .await?;
            Ok(Some(false))
        })
        .await?;
    if applied == Some(true) {
        app.wake.events.notify_one();
        app.wake.dispatch.notify_one();
    }
    Ok(applied)
}

async fn remove_ids(conn: &mut AsyncPgConnection, tenant: TenantId, id: DeadLetterId) -> Result<(), DbError> {
    sql("DELETE FROM inbound_dead_letters WHERE tenant_id = $1 AND id = $2")
        .bind::<SqlUuid, _>(tenant)
        .bind::<SqlUuid, _>(id)
        .prepared()
        .execute(conn)
        .await?;
    Ok(())
}

/// Removes the letters `which` for good; answers how many.
///
/// # Errors
/// When the database does not answer.
pub async fn remove(db: &Db, which: &Which) -> Result<usize, DbError> {
    db.system(async |conn| {
        Ok(sql("DELETE FROM inbound_dead_letters \
                WHERE ($1::uuid[] IS NULL OR id = ANY($1)) AND ($2::text IS NULL OR reason = $2)")
        .bind::<Nullable<Array<SqlUuid>>, _>(which.ids())
        .bind::<Nullable<Text>, _>(which.reason.map(Reason::as_str))
        .prepared()
        .execute(&mut **conn)
        .await?)
    })
    .await
}

/// Removes some of the events of unknown kinds that are older than a week; answers how many.
///
/// # Errors
/// When the database does not answer.
pub async fn forget_unknown(conn: &mut AsyncPgConnection, now: DateTime<Utc>) -> Result<usize, DbError> {
    Ok(sql(
        "DELETE FROM inbound_dead_letters WHERE (tenant_id, id) IN (SELECT tenant_id, id FROM inbound_dead_letters \
            WHERE reason = 'unknown_event' AND created_at < $1 ORDER BY created_at, id LIMIT $2)",
    )
    .bind::<Timestamptz, _>(now - UNKNOWN_FOR)
    .bind::<BigInt, _>(PIECE)
    .prepared()
    .execute(conn)
    .await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_quotes_nothing() {
        let said = "invalid input syntax for type integer: \"15550100001 hello\" near 15550100001";
        assert_eq!(without_values(said), "invalid input syntax for type integer: \"\" near 1555#######");
    }
}
