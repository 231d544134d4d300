//! Reading the log of one tenant, oldest first.
//!
//! The order is that of [`Position`]: it is the same for every reader and at every time, and a reader that remembers the
//! last position it saw misses nothing, because events of transactions that are still running are not shown yet.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, TimeDelta, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Text, Timestamptz, Uuid};
use diesel_async::RunQueryDsl;

use super::view;
use crate::db::{DbError, Prepare, TenantConn, sql};
use crate::domain::ids::EventId;

/// How far the clocks of nodes may disagree.
const SKEW: TimeDelta = TimeDelta::minutes(5);

/// A place in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, QueryableByName)]
pub struct Position {
    /// The transaction that wrote the event.
    #[diesel(sql_type = BigInt)]
    pub xact: i64,
    /// The order within it.
    #[diesel(sql_type = BigInt)]
    pub seq: i64,
}

impl Position {
    /// Before every event.
    pub const START: Self = Self { xact: 0, seq: 0 };
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}-{:x}", self.xact, self.seq)
    }
}

/// The text is not a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a place in the event log")]
pub struct NoPosition;

impl FromStr for Position {
    type Err = NoPosition;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = |text| i64::from_str_radix(text, 16).ok().filter(|number| *number >= 0).ok_or(NoPosition);
        let (xact, seq) = text.split_once('-').ok_or(NoPosition)?;
        Ok(Self { xact: number(xact)?, seq: number(seq)? })
    }
}

/// Where to begin reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// After the place that an earlier page ended at.
    Position(Position),
    /// After this event.
    Event(EventId),
    /// After this moment.
    Time(DateTime<Utc>),
}

impl FromStr for After {
    type Err = NoPosition;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(id) = text.parse() {
            return Ok(Self::Event(id));
        }
        if let Ok(position) = text.parse() {
            return Ok(Self::Position(position));
        }
        DateTime::parse_from_rfc3339(text).map(|at| Self::Time(at.to_utc())).map_err(|_| NoPosition)
    }
}

/// An event of the log.
#[derive(Clone, QueryableByName)]
pub struct Event {
    /// The event.
    #[diesel(sql_type = Uuid)]
    pub id: EventId,
    /// Its type.
    #[diesel(sql_type = Text)]
    pub kind: String,
    /// When it happened.
    #[diesel(sql_type = Timestamptz)]
    pub at: DateTime<Utc>,
    /// The resource as JSON.
    #[diesel(sql_type = Text)]
    pub data: String,
    /// Its place.
    #[diesel(embed)]
    pub position: Position,
}

// `data` may hold message text and numbers, which belong in no log.
impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Event").field("id", &self.id).field("kind", &self.kind).finish_non_exhaustive()
    }
}

impl Event {
    /// The event as the API shows it.
    #[must_use]
    pub fn to_json(&self) -> String {
        view::envelope(self.id, &self.kind, self.at, &self.data)
    }
}

/// Up to `limit` events after `after`, oldest first, of the types selected by `patterns` (none: all). `None` when `after`
/// names an event that the tenant does not have.
///
/// # Errors
/// When the database does not answer.
pub async fn list(
    conn: &mut TenantConn,
    after: After,
    patterns: &[String],
    limit: i64,
) -> Result<Option<Vec<Event>>, DbError> {
    // Beyond these no event can be, and far beyond them a time means nothing to Postgres.
    let within = |at: DateTime<Utc>| at.clamp(DateTime::UNIX_EPOCH, DateTime::UNIX_EPOCH + TimeDelta::days(1_000_000));
    let (start, since) = match after {
        After::Position(position) => (Some(position), DateTime::UNIX_EPOCH),
        After::Event(id) => (position_of(conn, id).await?, DateTime::UNIX_EPOCH),
        After::Time(at) => (Some(position_before(conn, within(at)).await?), within(at)),
    };
    let Some(start) = start else { return Ok(None) };
    let patterns = if patterns.is_empty() { vec!["*"] } else { patterns.iter().map(String::as_str).collect() };
    let events = sql("SELECT id, type AS kind, at, data, xact, seq FROM events \
         WHERE tenant_id = $1 AND (xact, seq) > ($2, $3) \
           AND xact < pg_snapshot_xmin(pg_current_snapshot())::text::bigint AND at > $4 \
           AND ARRAY['*', split_part(type, '.', 1) || '.*', type] && $5 \
         ORDER BY xact, seq LIMIT $6")
    .bind::<Uuid, _>(conn.tenant())
    .bind::<BigInt, _>(start.xact)
    .bind::<BigInt, _>(start.seq)
    .bind::<Timestamptz, _>(since)
    .bind::<Array<Text>, _>(patterns)
    .bind::<BigInt, _>(limit)
    .prepared()
    .load(&mut **conn)
    .await?;
    Ok(Some(events))
}

/// The place that `after` names, or without it the end of the log: before every event that cannot be read yet. `None` when
/// `after` names an event that the tenant does not have.
///
/// # Errors
/// When the database does not answer.
pub async fn place(conn: &mut TenantConn, after: Option<After>) -> Result<Option<Position>, DbError> {
    match after {
        Some(After::Position(position)) => Ok(Some(position)),
        Some(After::Event(id)) => position_of(conn, id).await,
        Some(After::Time(at)) => {
            let first = list(conn, After::Time(at), &[], 1).await?.unwrap_or_default().into_iter().next();
            match first {
                Some(event) => Ok(Some(Position { seq: event.position.seq.saturating_sub(1), ..event.position })),
                None => end(conn).await.map(Some),
            }
        }
        None => end(conn).await.map(Some),
    }
}

/// The end of the log: behind every event that can be read now, before every one that cannot be read yet.
///
/// # Errors
/// When the database does not answer.
pub async fn end(conn: &mut TenantConn) -> Result<Position, DbError> {
    let text = "SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint - 1 AS xact, 9223372036854775807 AS seq";
    Ok(sql(text).prepared().get_result(&mut **conn).await?)
}

/// The place of the event `id`.
///
/// # Errors
/// When the database does not answer.
pub async fn position_of(conn: &mut TenantConn, id: EventId) -> Result<Option<Position>, DbError> {
    let found: Vec<Position> = sql("SELECT xact, seq FROM events WHERE tenant_id = $1 AND id = $2")
        .bind::<Uuid, _>(conn.tenant())
        .bind::<Uuid, _>(id)
        .prepared()
        .load(&mut **conn)
        .await?;
    Ok(found.into_iter().next())
}

/// A place before every event that happened after `at`. An event's id is made when it is written, so none that happened
/// after `at` has an id from before; and those are few.
async fn position_before(conn: &mut TenantConn, at: DateTime<Utc>) -> Result<Position, DbError> {
    let found: Vec<Position> = sql(
        "SELECT min(xact) AS xact, 0::bigint AS seq FROM \
         (SELECT xact FROM events WHERE tenant_id = $1 AND id >= $2 ORDER BY id LIMIT 1000) first HAVING min(xact) IS NOT NULL",
    )
    .bind::<Uuid, _>(conn.tenant())
    .bind::<Uuid, _>(first_id_at(at - SKEW))
    .prepared()
    .load(&mut **conn)
    .await?;
    Ok(found.into_iter().next().unwrap_or(Position { xact: i64::MAX, seq: 0 }))
}

/// The lowest id that can be made at `at`.
pub(crate) fn first_id_at(at: DateTime<Utc>) -> EventId {
    let millis = u64::try_from(at.timestamp_millis()).unwrap_or(0);
    EventId(uuid::Builder::from_unix_timestamp_millis(millis, &[0; 10]).into_uuid())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_round_trip_and_nonsense_does_not() {
        let place = Position { xact: 123_456_789, seq: 42 };
        assert_eq!(place.to_string().parse::<Position>(), Ok(place));
        for text in ["", "-", "1", "x-1", "-1-1", "1--1", "1-1-1"] {
            assert_eq!(text.parse::<Position>(), Err(NoPosition), "{text}");
        }
        assert!(matches!("2026-11-21T00:00:00Z".parse(), Ok(After::Time(_))));
        assert!(matches!("0192f0c4-0000-7000-8000-000000000000".parse(), Ok(After::Event(_))));
        assert_eq!("yesterday".parse::<After>(), Err(NoPosition));
    }
}
