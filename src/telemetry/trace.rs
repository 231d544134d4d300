//! Trace context (W3C `traceparent`) that travels with what is put on the road.
//!
//! A message's id is its trace id, so that every log line about it is found by the id that the tenant knows.

use uuid::Uuid;

use crate::domain::chance::Chance;

/// A `traceparent` for work on the resource `id`, with a fresh span.
#[must_use]
pub fn parent_for(id: Uuid, chance: &Chance) -> String {
    format!("00-{}-{}-01", id.simple(), hex::encode(chance.bytes::<8>()))
}

/// The trace id in `traceparent`; `None` when it is not one.
#[must_use]
pub fn trace_id(traceparent: &str) -> Option<&str> {
    let mut parts = traceparent.split('-');
    let (_version, id) = (parts.next()?, parts.next()?);
    (id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(id)
}
