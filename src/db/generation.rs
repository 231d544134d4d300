//! Caches that see a change made on another node within a second.
//!
//! Tables whose rows are cached bump one number in the transaction of the change (a trigger does it). Each node reads the
//! number a few times a second; when it moved, every cache built on it is stale. While the database is away the caches
//! keep their last content.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use diesel::QueryableByName;
use diesel::sql_types::BigInt;
use diesel_async::RunQueryDsl;

use super::{Db, DbError, Prepare, sql};

/// How often a node looks for changes of the others.
const EVERY: Duration = Duration::from_millis(300);

/// The generation that this node has seen; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Generation(Arc<AtomicI64>);

#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = BigInt)]
    generation: i64,
}

impl Generation {
    /// Reads the number for ever; ends only with its task.
    pub async fn follow(self, db: Db) {
        loop {
            if let Err(fault) = self.refresh(&db).await {
                tracing::debug!(%fault, "the directory's generation could not be read");
            }
            tokio::time::sleep(EVERY).await;
        }
    }

    /// Reads the number now: caches then reflect every change committed before the call.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn refresh(&self, db: &Db) -> Result<(), DbError> {
        let row: Row = db
            .system(async |conn| {
                Ok::<_, DbError>(
                    sql("SELECT generation FROM directory_generation").prepared().get_result(&mut **conn).await?,
                )
            })
            .await?;
        AtomicI64::store(&self.0, row.generation, Ordering::Release);
        Ok(())
    }

    fn current(&self) -> i64 {
        AtomicI64::load(&self.0, Ordering::Acquire)
    }
}

/// A map that forgets everything when the generation moves. What is absent is not remembered, so a row that was just
/// created is found at once on every node.
#[derive(Debug)]
pub struct Cache<K, V> {
    generation: Generation,
    most: usize,
    held: RwLock<(i64, HashMap<K, V>)>,
}

impl<K: Eq + Hash, V: Clone> Cache<K, V> {
    /// An empty cache of at most `most` entries.
    #[must_use]
    pub fn new(generation: Generation, most: usize) -> Self {
        let seen = generation.current();
        Self { generation, most, held: RwLock::new((seen, HashMap::new())) }
    }

    /// The entry, if it is held and not stale.
    pub fn get<Q: Eq + Hash + ?Sized>(&self, key: &Q) -> Option<V>
    where
        K: std::borrow::Borrow<Q>,
    {
        let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
        (held.0 == self.generation.current()).then(|| held.1.get(key).cloned()).flatten()
    }

    /// The generation to read before loading a value and to hand to [`Cache::put`] with it.
    pub fn begin(&self) -> i64 {
        self.generation.current()
    }

    /// Keeps a value that was loaded after [`Cache::begin`] answered `begun`; one that is stale by now is not kept.
    pub fn put(&self, begun: i64, key: K, value: V) {
        let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
        let current = self.generation.current();
        if begun != current {
            return;
        }
        if held.0 != current || held.1.len() >= self.most {
            held.1.clear();
            held.0 = current;
        }
        held.1.insert(key, value);
    }
}
