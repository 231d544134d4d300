//! Another master key: what is sealed is sealed anew, in place.
//!
//! Guarantee: a value is replaced only while it is still the one that was read, so nothing that is written meanwhile is lost;
//! each batch is a transaction of its own, so that it can be broken off at any moment and begun again; and what is under
//! the current key already is left alone. A value that opens under no key that is known stays as it is, and is named.

use std::time::Duration;

use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Binary, Text};
use diesel_async::RunQueryDsl;

use super::seal::Sealer;
use crate::db::{Db, DbError, Prepare, sql};
use crate::domain::clock::Clock;

/// Tries of a batch that lost against concurrent transactions.
const TRIES: u32 = 8;

/// A column that holds sealed values.
#[derive(Clone, Copy, Debug)]
pub struct SealedColumn {
    /// Table and column.
    pub name: &'static str,
    /// What its values are sealed for: this, a colon, and the row's place.
    pub purpose: &'static str,
    /// Reads `place` and `sealed` of rows whose value does not begin with `$1` and whose place is not in `$2`, `$3` at the most.
    pub stale: &'static str,
    /// Gives the rows at the places `$1` the values `$3`, where they still have the values `$2`.
    pub replace: &'static str,
}

/// The [`SealedColumn`] `$column` of `$table`, whose rows have ids, sealed for the row's id.
macro_rules! sealed_column {
    ($table:literal, $column:literal, $purpose:expr) => {
        $crate::identity::rotate::SealedColumn {
            name: concat!($table, ".", $column),
            purpose: $purpose,
            stale: concat!(
                "SELECT id::text AS place, ",
                $column,
                " AS sealed FROM ",
                $table,
                " WHERE substring(",
                $column,
                " FROM 1 FOR octet_length($1::bytea)) <> $1 AND id::text <> ALL($2) LIMIT $3"
            ),
            // Locked in the order of their ids, as whoever else locks several.
            replace: concat!(
                "WITH locked AS (SELECT t.id, n.new FROM unnest($1, $2, $3) AS n (place, old, new) JOIN ",
                $table,
                " t ON t.id = n.place::uuid WHERE t.",
                $column,
                " = n.old ORDER BY t.id FOR NO KEY UPDATE OF t) UPDATE ",
                $table,
                " t SET ",
                $column,
                " = l.new FROM locked l WHERE t.id = l.id"
            ),
        }
    };
}
pub(crate) use sealed_column;

impl SealedColumn {
    /// What the value at `place` is sealed for.
    #[must_use]
    pub fn purpose_at(&self, place: &str) -> String {
        format!("{}:{place}", self.purpose)
    }
}

/// What became of a column's values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Values that are now under the current key and were not before.
    pub resealed: usize,
    /// The places of values that open under no known key.
    pub unreadable: Vec<String>,
}

#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = Text)]
    place: String,
    #[diesel(sql_type = Binary)]
    sealed: Vec<u8>,
}

/// Seals at most `most` values of `column` anew and counts them in `tally`. Answers whether there may be more.
///
/// # Errors
/// When the database does not answer, or when others have got in the way time and again.
pub async fn reseal_some(
    db: &Db,
    clock: &Clock,
    sealer: &Sealer,
    column: &SealedColumn,
    most: i64,
    tally: &mut Tally,
) -> Result<bool, DbError> {
    let rows = stale(db, sealer, column, most, &tally.unreadable).await?;
    if rows.is_empty() {
        return Ok(false);
    }
    let (mut places, mut old, mut new) = (Vec::new(), Vec::new(), Vec::new());
    for Row { place, sealed } in rows {
        match sealer.reseal(&column.purpose_at(&place), &sealed) {
            Ok(Some(resealed)) => {
                places.push(place);
                old.push(sealed);
                new.push(resealed);
            }
            Ok(None) => {}
            Err(_) => tally.unreadable.push(place),
        }
    }
    let mut tries = 0;
    tally.resealed += loop {
        tries += 1;
        match replace(db, column, &places, &old, &new).await {
            Err(DbError::Contended(_)) if tries < TRIES => clock.sleep(Duration::from_millis(50) * tries).await,
            done => break done?,
        }
    };
    Ok(true)
}

/// Seals all values of `column` anew, `batch` at a time.
///
/// # Errors
/// As [`reseal_some`]; what was done until then stays done.
pub async fn reseal_all(
    db: &Db,
    clock: &Clock,
    sealer: &Sealer,
    column: &SealedColumn,
    batch: i64,
) -> Result<Tally, DbError> {
    let mut tally = Tally::default();
    while reseal_some(db, clock, sealer, column, batch, &mut tally).await? {}
    Ok(tally)
}

async fn stale(
    db: &Db,
    sealer: &Sealer,
    column: &SealedColumn,
    most: i64,
    skip: &[String],
) -> Result<Vec<Row>, DbError> {
    db.system(async |conn| {
        Ok(sql(column.stale)
            .bind::<Binary, _>(sealer.mark())
            .bind::<Array<Text>, _>(skip)
            .bind::<BigInt, _>(most)
            .prepared()
            .load(&mut **conn)
            .await?)
    })
    .await
}

async fn replace(
    db: &Db,
    column: &SealedColumn,
    places: &[String],
    old: &[Vec<u8>],
    new: &[Vec<u8>],
) -> Result<usize, DbError> {
    db.system(async |conn| {
        Ok(sql(column.replace)
            .bind::<Array<Text>, _>(places)
            .bind::<Array<Binary>, _>(old)
            .bind::<Array<Binary>, _>(new)
            .prepared()
            .execute(&mut **conn)
            .await?)
    })
    .await
}
