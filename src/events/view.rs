//! Events as tenants see them: `{id, type, timestamp, data}`.

use std::fmt::Write as _;

use chrono::{DateTime, SecondsFormat, Utc};

use crate::domain::ids::EventId;

/// The event as JSON. `data` is the resource, rendered when the event was written, and goes out as it is.
#[must_use]
pub fn envelope(id: EventId, kind: &str, at: DateTime<Utc>, data: &str) -> String {
    let mut text = String::with_capacity(data.len() + 128);
    write_envelope(&mut text, id, kind, at, data);
    text
}

/// Appends [`envelope`] to `text`.
pub fn write_envelope(text: &mut String, id: EventId, kind: &str, at: DateTime<Utc>, data: &str) {
    let timestamp = at.to_rfc3339_opts(SecondsFormat::AutoSi, true);
    // Writing to a String cannot fail; none of these values needs escaping.
    let _written = write!(text, r#"{{"id":"{id}","type":"{kind}","timestamp":"{timestamp}","data":{data}}}"#);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_envelope_is_json_with_the_resource_inside() {
        let at = DateTime::from_timestamp(1_700_000_000, 120_000_000).unwrap();
        let id = EventId(uuid::Uuid::from_u128(7));
        let text = envelope(id, "message.sent", at, r#"{"body":"\"}{"}"#);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        let expected = serde_json::json!({
            "id": id, "type": "message.sent", "timestamp": "2023-11-14T22:13:20.120Z", "data": {"body": "\"}{"},
        });
        assert_eq!(value, expected);
    }
}
