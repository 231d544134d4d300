//! SQL written by hand, prepared once per connection.
//!
//! Diesel prepares `sql_query` anew on every call, because the text may vary. Ours is constant: lists travel as arrays, so
//! that one text, one prepared statement and one plan serve every batch size.

use diesel::pg::Pg;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId, SqlQuery};
use diesel::result::QueryResult;

/// A statement whose text never varies and which is therefore kept prepared.
#[derive(Debug, Clone)]
pub struct Prepared<Q>(Q);

/// A statement with the constant text `text`; add binds with `.bind::<SqlType, _>(value)`, then [`Prepare::prepared`].
pub fn sql(text: &'static str) -> SqlQuery {
    diesel::sql_query(text)
}

/// Turns a hand-written statement into one that stays prepared.
pub trait Prepare: Sized {
    /// Keeps the statement prepared on its connection.
    fn prepared(self) -> Prepared<Self> {
        Prepared(self)
    }
}

impl<Q: Query> Prepare for Q {}

impl<Q: QueryFragment<Pg>> QueryFragment<Pg> for Prepared<Q> {
    fn walk_ast<'b>(&'b self, out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        self.0.walk_ast(out)
    }

    fn is_safe_to_cache_prepared(&self, _backend: &Pg) -> QueryResult<bool> {
        Ok(true)
    }
}

impl<Q> QueryId for Prepared<Q> {
    type QueryId = ();
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl<Q: Query> Query for Prepared<Q> {
    type SqlType = Q::SqlType;
}
