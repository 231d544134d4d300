//! A circuit breaker for each WAHA server.
//!
//! A server that fails five times in a row, by its transport and not by refusing messages, gets no turns for a second, and
//! twice as long after each further failure, up to a minute. Then one attempt tries; its success closes the circuit. While it is
//! open the turns of that server go back without counting as attempts. The state stands in `waha_servers`, where every
//! dispatcher and every other worker sees it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use chrono::{DateTime, TimeDelta, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{Integer, Nullable, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;

use crate::db::{Db, DbError, Prepare, sql};
use crate::domain::ids::WahaServerId;

/// Failures in a row that open the circuit.
const OPENS: u32 = 5;
/// How often the first pause is doubled at the most: 64 s, cut to a minute.
const MOST_DOUBLINGS: u32 = 6;
const LONGEST: TimeDelta = TimeDelta::seconds(60);
/// How long the turns of a server wait whose one attempt is under way.
const PROBING: TimeDelta = TimeDelta::seconds(1);

/// What an attempt says about its server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// It answered, whatever it said.
    Alive,
    /// No connection, no answer, or a proxy's page in its place.
    Failing,
    /// Neither.
    Silent,
}

/// Whether an attempt may be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// It may.
    Go,
    /// Not before then.
    Wait(DateTime<Utc>),
}

#[derive(Clone, Copy, Debug, Default)]
struct Circuit {
    failures: u32,
    open_until: Option<DateTime<Utc>>,
    /// The one attempt that tries is under way; forgotten when it takes too long.
    probing_until: Option<DateTime<Utc>>,
}

/// The circuits of all servers; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Breaker(Arc<Mutex<HashMap<WahaServerId, Circuit>>>);

#[derive(QueryableByName)]
struct Stored {
    #[diesel(sql_type = SqlUuid)]
    id: WahaServerId,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    breaker_open_until: Option<DateTime<Utc>>,
    #[diesel(sql_type = Integer)]
    breaker_failures: i32,
}

impl Breaker {
    fn with<T>(&self, server: WahaServerId, change: impl FnOnce(&mut Circuit) -> T) -> T {
        let mut circuits = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        change(circuits.entry(server).or_default())
    }

    /// Whether an attempt at `server` may be made now. Who is let through has to [`Breaker::record`] what it saw, within
    /// `longest`.
    pub fn admit(&self, server: WahaServerId, now: DateTime<Utc>, longest: TimeDelta) -> Pass {
        self.with(server, |circuit| match (circuit.open_until, circuit.probing_until) {
            (Some(until), _) if until > now => Pass::Wait(until),
            (Some(_), Some(until)) if until > now => Pass::Wait(now + PROBING),
            (Some(_), _) => {
                circuit.probing_until = Some(now + longest);
                Pass::Go
            }
            (None, _) => Pass::Go,
        })
    }

    /// The attempt that was let through has ended, whether or not it saw anything of the server.
    pub fn tried(&self, server: WahaServerId) {
        self.with(server, |circuit| circuit.probing_until = None);
    }

    /// Counts what an attempt saw, and writes down a circuit that opened or closed.
    ///
    /// # Errors
    /// When the database does not answer; this process goes by what it counted.
    pub async fn record(&self, db: &Db, server: WahaServerId, now: DateTime<Utc>, sign: Sign) -> Result<(), DbError> {
        let changed = self.with(server, |circuit| match sign {
            Sign::Silent => {
                circuit.probing_until = None;
                None
            }
            Sign::Alive => {
                let was_open = circuit.open_until.is_some();
                *circuit = Circuit::default();
                was_open.then_some((0, None))
            }
            Sign::Failing => {
                circuit.failures = circuit.failures.saturating_add(1);
                circuit.probing_until = None;
                // Those that were under way when it opened prove nothing new.
                (circuit.failures >= OPENS && circuit.open_until.is_none_or(|until| until <= now)).then(|| {
                    let until = now + pause(circuit.failures);
                    circuit.open_until = Some(until);
                    (circuit.failures, Some(until))
                })
            }
        });
        let Some((failures, until)) = changed else { return Ok(()) };
        match until {
            Some(until) => {
                metrics::counter!("switchboard_breaker_opened_total").increment(1);
                tracing::warn!(waha_server_id = %server, failures, %until, "a WAHA server fails: nothing is sent there for a while");
            }
            None => tracing::info!(waha_server_id = %server, "a WAHA server works again"),
        }
        db.system(async |conn| {
            sql("UPDATE waha_servers SET breaker_open_until = $2, breaker_failures = $3 WHERE id = $1")
                .bind::<SqlUuid, _>(server)
                .bind::<Nullable<Timestamptz>, _>(until)
                .bind::<Integer, _>(i32::try_from(failures).unwrap_or(i32::MAX))
                .prepared()
                .execute(&mut **conn)
                .await?;
            Ok(())
        })
        .await
    }

    /// Takes over what other nodes found.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn follow(&self, db: &Db, now: DateTime<Utc>) -> Result<(), DbError> {
        let stored: Vec<Stored> = db
            .system(async |conn| {
                Ok::<_, DbError>(
                    sql("SELECT id, breaker_open_until, breaker_failures FROM waha_servers WHERE deleted_at IS NULL")
                        .prepared()
                        .load(&mut **conn)
                        .await?,
                )
            })
            .await?;
        let mut circuits = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        circuits.retain(|id, _| stored.iter().any(|stored| stored.id == *id));
        for Stored { id, breaker_open_until, breaker_failures } in stored {
            match breaker_open_until {
                Some(until) => {
                    let circuit = circuits.entry(id).or_default();
                    if circuit.open_until.is_none_or(|known| known < until) {
                        circuit.open_until = Some(until);
                        circuit.failures = u32::try_from(breaker_failures).unwrap_or(OPENS);
                    }
                }
                None => {
                    // One that was opened here a moment ago may not have been written yet.
                    if let Some(circuit) = circuits.get_mut(&id)
                        && circuit.open_until.is_some_and(|until| until <= now)
                        && circuit.probing_until.is_none()
                    {
                        *circuit = Circuit::default();
                    }
                }
            }
        }
        Ok(())
    }
}

fn pause(failures: u32) -> TimeDelta {
    let doublings = failures.saturating_sub(OPENS).min(MOST_DOUBLINGS);
    TimeDelta::seconds(1 << doublings).min(LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_doubles_to_a_minute() {
        let pauses: Vec<i64> = (5..14).map(|failures| pause(failures).num_seconds()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
    }
}
