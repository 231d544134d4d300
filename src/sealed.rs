//! Everything in the database that is sealed, for who changes the master key. A test compares it with the schema.

use crate::delivery::SEALED_SECRETS;
use crate::http::idempotency::SEALED_ANSWERS;
use crate::identity::rotate::SealedColumn;
use crate::sessions::directory::{SEALED_API_KEYS, SEALED_WEBHOOK_KEYS};
use crate::sessions::proxy::SEALED_PROXIES;

/// Every column that holds sealed values.
pub const COLUMNS: [SealedColumn; 5] =
    [SEALED_API_KEYS, SEALED_WEBHOOK_KEYS, SEALED_PROXIES, SEALED_SECRETS, SEALED_ANSWERS];
