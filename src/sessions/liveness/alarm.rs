//! Many sessions that fail within minutes: WhatsApp's doing, not theirs.
//!
//! Guarantee: one alarm at a time, however many nodes notice (a unique index). While it lasts, nobody is logged out, and
//! restarts that nobody asked for are held back ([`active`]): re-pairing and restarting would make it worse. It ends when the
//! majority of the sessions concerned works again, or is no longer wanted.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Jsonb, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::app::App;
use crate::db::{DbError, Prepare, SystemConn, sql};
use crate::domain::ids::AlarmId;
use crate::sessions::liveness::census::Toll;
use crate::waha::Engine;

/// Sessions that failed longer ago than this are another matter.
pub(super) const WITHIN: TimeDelta = TimeDelta::minutes(5);
/// The share is of those that worked this short a while ago.
pub(super) const WORKED: TimeDelta = TimeDelta::minutes(10);

/// Something that an operator has to know of.
#[derive(Clone, Debug, Serialize, QueryableByName, ToSchema)]
#[schema(example = json!({
    "id": "01994f3e-4444-7cc3-98d5-8f1c1f0a2b3c", "kind": "sessions_failed", "engine": null,
    "since": "2026-11-21T09:30:00Z", "ended_at": null, "details": {"failed": 180, "worked": 200}
}))]
pub struct Alarm {
    /// Its id.
    #[diesel(sql_type = SqlUuid)]
    pub id: AlarmId,
    /// What happened. `sessions_failed`: many sessions failed within minutes, so that WhatsApp or the engine is the cause.
    /// Restarts that nobody asked for are held back while it lasts.
    #[diesel(sql_type = Text)]
    #[schema(pattern = "^(sessions_failed)$")]
    pub kind: String,
    /// The engine whose sessions are concerned; null: all.
    #[diesel(sql_type = Nullable<Text>)]
    #[schema(required)]
    pub engine: Option<String>,
    /// Since when.
    #[diesel(sql_type = Timestamptz)]
    pub since: DateTime<Utc>,
    /// When it ended; null: it lasts.
    #[diesel(sql_type = Nullable<Timestamptz>)]
    #[schema(required)]
    pub ended_at: Option<DateTime<Utc>>,
    /// Figures of the moment in which it was raised: how many sessions had failed, and of how many that worked.
    #[diesel(sql_type = Jsonb)]
    #[schema(value_type = Object)]
    pub details: serde_json::Value,
}

/// An alarm that lasts.
#[derive(Clone, Debug, QueryableByName)]
pub struct Active {
    /// Its id.
    #[diesel(sql_type = SqlUuid)]
    pub id: AlarmId,
    /// The engine whose sessions are concerned; `None`: all.
    #[diesel(sql_type = Nullable<Text>)]
    pub engine: Option<String>,
    /// Since when.
    #[diesel(sql_type = Timestamptz)]
    pub since: DateTime<Utc>,
}

impl Active {
    /// Whether sessions of `engine` are concerned.
    #[must_use]
    pub fn concerns(&self, engine: Engine) -> bool {
        self.engine.as_deref().is_none_or(|name| name == engine.as_str())
    }
}

/// The alarm of failed sessions that lasts, if any: then no session that failed is restarted unless somebody asks for it.
///
/// # Errors
/// When the database does not answer.
pub async fn active(conn: &mut AsyncPgConnection) -> Result<Option<Active>, DbError> {
    let rows: Vec<Active> =
        sql("SELECT id, engine, since FROM operator_alarms WHERE kind = 'sessions_failed' AND ended_at IS NULL")
            .prepared()
            .load(conn)
            .await?;
    Ok(rows.into_iter().next())
}

/// `limit` alarms, newest first, from behind the place `after` on.
///
/// # Errors
/// When the database does not answer.
pub async fn list(
    conn: &mut SystemConn,
    after: Option<(DateTime<Utc>, Uuid)>,
    limit: i64,
) -> Result<Vec<Alarm>, DbError> {
    Ok(sql("SELECT id, kind, engine, since, ended_at, details FROM operator_alarms \
            WHERE ($1 IS NULL OR (since, id) < ($1, $2)) ORDER BY since DESC, id DESC LIMIT $3")
    .bind::<Nullable<Timestamptz>, _>(after.map(|after| after.0))
    .bind::<Nullable<SqlUuid>, _>(after.map(|after| after.1))
    .bind::<BigInt, _>(limit)
    .prepared()
    .load(&mut **conn)
    .await?)
}

const RAISE: &str = "\
INSERT INTO operator_alarms (id, kind, engine, since, details, created_at, updated_at)
VALUES ($1, 'sessions_failed', $2, $3, $4, $3, $3)
ON CONFLICT (kind) WHERE ended_at IS NULL DO NOTHING";

// Who fails while it lasts is part of it.
const CONCERN: &str = "\
WITH u AS (
    SELECT v.tenant_id, v.session_id FROM session_vitals v
    JOIN waha_sessions s ON s.tenant_id = v.tenant_id AND s.id = v.session_id
    WHERE v.seen = 'failed' AND v.failed_at > $2 AND v.worked_until >= v.failed_at - interval '5 minutes'
      AND v.alarm_id IS DISTINCT FROM $1 AND ($3 IS NULL OR s.engine = $3)
    ORDER BY v.session_id FOR NO KEY UPDATE OF v
)
UPDATE session_vitals v SET alarm_id = $1 FROM u WHERE v.tenant_id = u.tenant_id AND v.session_id = u.session_id";

const END: &str = "\
UPDATE operator_alarms a SET ended_at = $2, updated_at = $2
WHERE a.id = $1 AND a.ended_at IS NULL AND (
    SELECT count(*) FILTER (WHERE v.seen = 'working') * 2 > count(*) OR count(*) = 0 FROM session_vitals v
    WHERE v.alarm_id = a.id AND v.seen <> 'idle')";

/// Which engine's sessions fail as if WhatsApp wanted it so; `Some(None)`: all engines'.
fn alarming(tolls: &BTreeMap<String, Toll>, least: i64, percent: i64) -> Option<(Option<&str>, Toll)> {
    let fits = |toll: &Toll| toll.failed >= least && toll.failed * 100 >= toll.worked * percent;
    let all = tolls
        .values()
        .fold(Toll::default(), |sum, toll| Toll { failed: sum.failed + toll.failed, worked: sum.worked + toll.worked });
    if fits(&all) {
        return Some((None, all));
    }
    tolls.iter().find(|(_, toll)| fits(toll)).map(|(engine, toll)| (Some(engine.as_str()), *toll))
}

/// Raises the alarm, keeps it, or ends it.
pub(super) async fn follow(app: &App, now: DateTime<Utc>, tolls: &BTreeMap<String, Toll>) -> Result<(), DbError> {
    let settings = &app.config.liveness;
    let found = alarming(tolls, settings.alarm_sessions, settings.alarm_percent);
    let lasts = app
        .db
        .system(async |conn: &mut SystemConn| {
            let mut lasting = active(conn).await?;
            if let (None, Some((engine, toll))) = (&lasting, &found) {
                let id = AlarmId::fresh(now, &app.chance);
                let raised = sql(RAISE)
                    .bind::<SqlUuid, _>(id)
                    .bind::<Nullable<Text>, _>(*engine)
                    .bind::<Timestamptz, _>(now)
                    .bind::<Jsonb, _>(serde_json::json!({"failed": toll.failed, "worked": toll.worked}))
                    .prepared()
                    .execute(&mut **conn)
                    .await?;
                if raised == 1 {
                    tracing::error!(
                        alarm_id = %id,
                        engine,
                        failed = toll.failed,
                        worked = toll.worked,
                        "many sessions failed within minutes, which is WhatsApp's doing: restarts are held back"
                    );
                }
                lasting = active(conn).await?;
            }
            let Some(alarm) = lasting else { return Ok(false) };
            sql(CONCERN)
                .bind::<SqlUuid, _>(alarm.id)
                .bind::<Timestamptz, _>(alarm.since - WITHIN)
                .bind::<Nullable<Text>, _>(alarm.engine.as_deref())
                .prepared()
                .execute(&mut **conn)
                .await?;
            let ended = sql(END)
                .bind::<SqlUuid, _>(alarm.id)
                .bind::<Timestamptz, _>(now)
                .prepared()
                .execute(&mut **conn)
                .await?;
            if ended == 1 {
                tracing::info!(alarm_id = %alarm.id, "the majority of the sessions that failed works again: the alarm ends");
            }
            Ok::<_, DbError>(ended == 0)
        })
        .await?;
    metrics::gauge!("switchboard_operator_alarms", "kind" => "sessions_failed").set(if lasts { 1.0 } else { 0.0 });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_those_that_worked_and_five_at_least() {
        let toll = |failed, worked| Toll { failed, worked };
        let gows = |failed, worked| BTreeMap::from([("GOWS".to_owned(), toll(failed, worked))]);
        for (failed, worked, expected) in [(0, 0, false), (4, 4, false), (5, 10, true), (5, 11, false), (90, 100, true)]
        {
            assert_eq!(alarming(&gows(failed, worked), 5, 50).is_some(), expected, "{failed} of {worked}");
        }
        assert_eq!(alarming(&gows(5, 10), 6, 50), None);
        assert_eq!(alarming(&gows(5, 10), 5, 51), None);
        let mut engines = gows(20, 20);
        engines.insert("NOWEB".to_owned(), toll(1, 100));
        assert_eq!(alarming(&engines, 5, 50), Some((Some("GOWS"), toll(20, 20))));
        engines.insert("NOWEB".to_owned(), toll(60, 100));
        assert_eq!(alarming(&engines, 5, 50), Some((None, toll(80, 120))));
    }
}
