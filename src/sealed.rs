//! Everything in the database that is sealed, for who changes the master key. A test compares it with the schema.

use crate::delivery::SEALED_SECRETS;
use crate::http::idempotency::SEALED_ANSWERS;
use crate::identity::rotate::SealedColumn;
use crate::sessions::directory::{SEALED_API_KEYS, SEALED_PREVIOUS_WEBHOOK_KEYS, SEALED_WEBHOOK_KEYS};
use crate::sessions::proxy::SEALED_PROXIES;

/// Every column that holds sealed values. The previous webhook keys stand behind the current ones, which may become previous ones
/// at any moment: what moves between the two is met in one of them.
pub const COLUMNS: [SealedColumn; 6] = [
    SEALED_API_KEYS,
    SEALED_WEBHOOK_KEYS,
    SEALED_PREVIOUS_WEBHOOK_KEYS,
    SEALED_PROXIES,
    SEALED_SECRETS,
    SEALED_ANSWERS,
];
