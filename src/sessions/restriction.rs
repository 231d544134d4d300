//! The restriction brake: WhatsApp does not let an account write to people it has not written with before.
//!
//! Messages to somebody new then wait (`messages.held_because`), replies flow, and the tenant is told once. Nothing is
//! restarted and nothing is repeated because of it: that makes a restriction longer. When it ends, or after a day where
//! WhatsApp does not say when that is, the first message that waited is the probe: refused again, the restriction goes on.

use chrono::{DateTime, TimeDelta, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Bool, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};

use crate::app::App;
use crate::db::{DbError, Prepare, sql};
use crate::domain::chance::Chance;
use crate::domain::ids::{EventId, SessionId, TenantId};
use crate::events::log::{self, NewEvent};
use crate::sessions::view::{Session, SessionRow, session_columns};
use crate::waha;

/// Messages to somebody new that WhatsApp rejected, within [`WITHIN`], that make a restriction.
const REJECTIONS: i64 = 3;
const WITHIN: TimeDelta = TimeDelta::hours(1);
/// An end that moves by less is the same end.
const SAME: TimeDelta = TimeDelta::minutes(1);

/// How an account is restricted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// WhatsApp refuses messages to new contacts (error 463).
    ReachoutTimelock,
    /// The account's quota of new chats is used up.
    MessageCapping,
    /// WhatsApp rejects messages to new contacts without saying why.
    Rejections,
}

impl Kind {
    /// The word in the database and the API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ReachoutTimelock => "reachout_timelock",
            Self::MessageCapping => "message_capping",
            Self::Rejections => "rejections",
        }
    }
}

/// What was learnt of a session.
#[derive(Clone, Debug)]
pub struct Finding {
    /// Whose session.
    pub tenant: TenantId,
    /// The session.
    pub session: SessionId,
    /// How it is restricted.
    pub kind: Kind,
    /// Until when.
    pub until: DateTime<Utc>,
    /// Whether WhatsApp said so; else it is a guess, which changes nothing while a restriction lasts.
    pub certain: bool,
}

// `since` stays where a restriction goes on. What is known already changes nothing, so that a finding may be repeated.
const RESTRICT: &str = concat!(
    "\
WITH s AS (
    UPDATE waha_sessions s SET
        restriction_kind = $3,
        restriction_since = CASE WHEN s.restriction_until > $5 THEN s.restriction_since ELSE $5 END,
        restriction_until = $4,
        version = s.version + 1,
        updated_at = $5
    WHERE s.tenant_id = $1 AND s.id = $2 AND s.deleted_at IS NULL
      AND (s.restriction_until IS NULL OR s.restriction_until < $4 - interval '1 minute')
      AND ($6 OR s.restriction_until IS NULL OR s.restriction_until <= $5)
    RETURNING s.*
)
SELECT ",
    session_columns!(),
    " FROM s JOIN lanes l ON l.tenant_id = s.tenant_id AND l.session_id = s.id"
);

/// Restricts a session, holds its messages to somebody new, and tells the tenant; in the caller's transaction, which holds the
/// session's lane or locks nothing before it. Answers whether that was news.
///
/// # Errors
/// When the database refuses; the transaction then must not be committed.
pub async fn restrict(
    conn: &mut AsyncPgConnection,
    chance: &Chance,
    now: DateTime<Utc>,
    finding: &Finding,
) -> Result<bool, DbError> {
    // Lanes before anything else, as everywhere. An earlier restriction that ends later stays.
    sql("UPDATE lanes SET restricted_until = $3, updated_at = $4 WHERE tenant_id = $1 AND session_id = $2 \
         AND (restricted_until IS NULL OR restricted_until < $3) AND ($5 OR restricted_until IS NULL OR restricted_until <= $4)")
    .bind::<SqlUuid, _>(finding.tenant)
    .bind::<SqlUuid, _>(finding.session)
    .bind::<Timestamptz, _>(finding.until)
    .bind::<Timestamptz, _>(now)
    .bind::<Bool, _>(finding.certain)
    .prepared()
    .execute(conn)
    .await?;
    let rows: Vec<SessionRow> = sql(RESTRICT)
        .bind::<SqlUuid, _>(finding.tenant)
        .bind::<SqlUuid, _>(finding.session)
        .bind::<Text, _>(finding.kind.as_str())
        .bind::<Timestamptz, _>(finding.until)
        .bind::<Timestamptz, _>(now)
        .bind::<Bool, _>(finding.certain)
        .prepared()
        .load(conn)
        .await?;
    let Some(row) = rows.as_slice().first() else { return Ok(false) };
    let event = NewEvent {
        tenant: finding.tenant,
        id: EventId::fresh(now, chance),
        kind: "session.restricted",
        at: now,
        session_id: Some(finding.session),
        message_id: None,
        data: Session::from(row).to_json(),
    };
    log::append(conn, &[event]).await?;
    metrics::counter!("switchboard_sessions_restricted_total", "kind" => finding.kind.as_str()).increment(1);
    tracing::warn!(
        tenant_id = %finding.tenant,
        session_id = %finding.session,
        kind = finding.kind.as_str(),
        until = %finding.until,
        "WhatsApp restricts a session: messages to somebody new wait"
    );
    Ok(true)
}

/// Notes `findings` in a transaction of its own.
///
/// # Errors
/// When the database does not answer; nothing is noted then.
pub async fn note(app: &App, findings: &[Finding]) -> Result<(), DbError> {
    let now = app.clock.now();
    let mut findings: Vec<&Finding> = findings.iter().filter(|finding| finding.until > now + SAME).collect();
    findings.sort_by_key(|finding| finding.session);
    let mut news = false;
    for finding in findings {
        news |= app.db.system(async |conn| restrict(conn, &app.chance, now, finding).await).await?;
    }
    if news {
        app.wake.events.notify_one();
    }
    Ok(())
}

#[derive(QueryableByName)]
struct Count {
    #[diesel(sql_type = BigInt)]
    count: i64,
}

// Of the tenant's failed messages only the latest are looked at. Who has written with the session since is nobody new.
const REJECTED: &str = "\
SELECT count(*) AS count FROM messages m
WHERE m.tenant_id = $1 AND m.session_id = $2 AND m.status = 'failed' AND m.created_at > $3 - interval '1 day'
  AND m.failed_at > $3 AND m.error_code = 'rejected_by_whatsapp' AND m.direction = 'outbound'
  AND NOT EXISTS (SELECT FROM known_chats k WHERE k.session_id = m.session_id AND k.chat_id = m.chat_id)";

/// WhatsApp rejected messages of `session` after they were handed over. A few of them to people who are new, within an hour,
/// are a restriction that nobody calls so.
///
/// # Errors
/// When the database does not answer; the next rejection leads here again.
pub async fn after_rejection(app: &App, tenant: TenantId, session: SessionId) -> Result<(), DbError> {
    let now = app.clock.now();
    let rejected: Count = app
        .db
        .system(async |conn| {
            Ok::<_, DbError>(
                sql(REJECTED)
                    .bind::<SqlUuid, _>(tenant)
                    .bind::<SqlUuid, _>(session)
                    .bind::<Timestamptz, _>(now - WITHIN)
                    .prepared()
                    .get_result(&mut **conn)
                    .await?,
            )
        })
        .await?;
    if rejected.count < REJECTIONS {
        return Ok(());
    }
    let until = now + TimeDelta::from_std(app.config.sending.restriction).unwrap_or(TimeDelta::days(1));
    note(app, &[Finding { tenant, session, kind: Kind::Rejections, until, certain: false }]).await
}

/// What WAHA said about a session's account, as a finding.
#[must_use]
pub fn finding(app: &App, tenant: TenantId, session: SessionId, told: waha::Restriction) -> Finding {
    let kind = match told {
        waha::Restriction::Timelock { .. } => Kind::ReachoutTimelock,
        waha::Restriction::Capped { .. } => Kind::MessageCapping,
    };
    let guess = || app.clock.now() + TimeDelta::from_std(app.config.sending.restriction).unwrap_or(TimeDelta::days(1));
    Finding { tenant, session, kind, until: told.until().unwrap_or_else(guess), certain: told.until().is_some() }
}
