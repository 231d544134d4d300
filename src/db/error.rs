//! What can go wrong in the database, as far as a caller can act on it.

use diesel::result::{DatabaseErrorKind, Error};

/// A failed database operation.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    /// The database cannot be reached or is going away; the same operation may succeed later.
    #[error("the database is unavailable: {0}")]
    Unavailable(String),
    /// The operation lost against a concurrent one and may be repeated as it is.
    #[error("a concurrent transaction won: {0}")]
    Contended(String),
    /// A unique constraint, named here, refused the row.
    #[error("already exists: {0}")]
    Duplicate(String),
    /// The row refers to one that does not exist, or breaks a rule of its table.
    #[error("refused by the database: {0}")]
    Refused(String),
    /// A fault in a statement or in its result.
    #[error(transparent)]
    Query(Error),
}

impl From<Error> for DbError {
    fn from(error: Error) -> Self {
        match error {
            Error::DatabaseError(kind, info) => {
                let constraint = || info.constraint_name().unwrap_or_else(|| info.message()).to_owned();
                match kind {
                    DatabaseErrorKind::UniqueViolation => Self::Duplicate(constraint()),
                    DatabaseErrorKind::ForeignKeyViolation
                    | DatabaseErrorKind::CheckViolation
                    | DatabaseErrorKind::NotNullViolation => Self::Refused(constraint()),
                    DatabaseErrorKind::SerializationFailure => Self::Contended(info.message().to_owned()),
                    DatabaseErrorKind::ClosedConnection
                    | DatabaseErrorKind::UnableToSendCommand
                    | DatabaseErrorKind::ReadOnlyTransaction => Self::Unavailable(info.message().to_owned()),
                    _ => Self::by_message(Error::DatabaseError(kind, info)),
                }
            }
            Error::BrokenTransactionManager => Self::Unavailable("the connection broke in a transaction".to_owned()),
            other => Self::Query(other),
        }
    }
}

impl DbError {
    // Diesel passes no SQLSTATE on; these classes are told apart by the server's (unlocalised) message.
    fn by_message(error: Error) -> Self {
        let message = error.to_string();
        let contended = ["deadlock detected", "canceling statement due to lock timeout"];
        let unavailable = [
            "terminating connection",
            "the database system is",
            "too many clients",
            "too many connections",
            "remaining connection slots",
            "canceling statement due to statement timeout",
            "No space left on device",
        ];
        if contended.iter().any(|text| message.contains(text)) {
            Self::Contended(message)
        } else if unavailable.iter().any(|text| message.contains(text)) {
            Self::Unavailable(message)
        } else {
            Self::Query(error)
        }
    }

    /// True when the same operation may succeed if it is tried again.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Contended(_))
    }

    /// True when the unique constraint `name` refused the row.
    #[must_use]
    pub fn is_duplicate_of(&self, name: &str) -> bool {
        matches!(self, Self::Duplicate(constraint) if constraint == name)
    }
}
