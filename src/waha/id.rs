//! Message ids. The same message is seen under several serialized ids (`…@c.us` and `…@lid`), so it is known by its bare id.

use std::fmt::Write as _;

use serde_json::Value;

use crate::domain::chance::Chance;

/// More than any real id has; a longer one is not kept.
const LONGEST: usize = 255;

/// A fresh message id in the shape of a normal web client's: `3EB0` and 18 upper-case hexadecimal digits.
///
/// Drawn and stored before the first attempt to send, and used for every attempt of that message.
#[must_use]
pub fn new_message_id(chance: &Chance) -> String {
    let mut id = String::with_capacity(22);
    id.push_str("3EB0");
    for byte in chance.bytes::<9>() {
        // Writing to a String cannot fail.
        let _always_ok = write!(id, "{byte:02X}");
    }
    id
}

/// The bare id in an id as WAHA writes it: `true_111@c.us_3EB0…`, `false_123@g.us_AAA_999@lid`, or bare already.
///
/// `None` when nothing is left that could be an id.
#[must_use]
pub fn bare_id(serialized: &str) -> Option<String> {
    let bare = match split(serialized) {
        Some((_chat, rest)) => {
            let id = match rest.rsplit_once('_') {
                Some((id, participant)) if participant.contains('@') => id,
                _ => rest,
            };
            // Browser engines mark the two halves of a note to self.
            id.strip_suffix("_out").or_else(|| id.strip_suffix("_in")).unwrap_or(id)
        }
        None if serialized.starts_with("true_") || serialized.starts_with("false_") => return None,
        None => serialized,
    };
    (!bare.is_empty() && bare.len() <= LONGEST && !bare.contains('@') && !bare.chars().any(char::is_whitespace))
        .then(|| bare.to_owned())
}

/// The chat in a serialized id; `None` for a bare id.
#[must_use]
pub fn chat_of(serialized: &str) -> Option<&str> {
    split(serialized).map(|(chat, _)| chat)
}

/// `{fromMe}_{chat}_{rest}` → chat and rest.
fn split(serialized: &str) -> Option<(&str, &str)> {
    let rest = serialized.strip_prefix("true_").or_else(|| serialized.strip_prefix("false_"))?;
    rest.split_once('_')
}

/// The bare id in an `id` member, which is text on some engines and an object on others.
pub(super) fn from_id_member(id: &Value) -> Option<String> {
    match id {
        Value::String(text) => bare_id(text),
        Value::Object(parts) => {
            ["id", "_serialized"].into_iter().find_map(|name| parts.get(name).and_then(Value::as_str).and_then(bare_id))
        }
        _ => None,
    }
}

/// The serialized form in an `id` member, where there is one.
pub(super) fn serialized(id: &Value) -> Option<&str> {
    id.as_str().or_else(|| id.get("_serialized").and_then(Value::as_str))
}

/// The bare id in the answer of a send or in a message, wherever this engine puts it.
pub(super) fn from_message(message: &Value) -> Option<String> {
    message
        .get("id")
        .and_then(from_id_member)
        .or_else(|| text_at(message, "/key/id"))
        .or_else(|| message.pointer("/_data/id").and_then(from_id_member))
        .or_else(|| text_at(message, "/_data/Info/ID"))
        .or_else(|| text_at(message, "/_data/key/id"))
}

fn text_at(message: &Value, pointer: &str) -> Option<String> {
    message.pointer(pointer).and_then(Value::as_str).and_then(bare_id)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn bare_ids_of_serialized_ids() {
        let cases: [(&str, Option<&str>, Option<&str>); 13] = [
            ("true_22222222222@c.us_3EB015872F111D2E17935F", Some("3EB015872F111D2E17935F"), Some("22222222222@c.us")),
            ("false_123@g.us_AAA_999@lid", Some("AAA"), Some("123@g.us")),
            ("false_status@broadcast_AAA_999@c.us", Some("AAA"), Some("status@broadcast")),
            ("true_111@lid_3EB0AA_222:7@lid", Some("3EB0AA"), Some("111@lid")),
            ("true_1-2@g.us_A_B", Some("A_B"), Some("1-2@g.us")),
            ("true_1@newsletter_175", Some("175"), Some("1@newsletter")),
            ("true_111@c.us_3EB0AA_out", Some("3EB0AA"), Some("111@c.us")),
            ("3EB0AA", Some("3EB0AA"), None),
            ("true_111@c.us_", None, Some("111@c.us")),
            ("true_", None, None),
            ("", None, None),
            ("111@c.us", None, None),
            ("true_111@c.us", None, None),
        ];
        for (serialized, id, chat) in cases {
            assert_eq!(bare_id(serialized).as_deref(), id, "{serialized}");
            assert_eq!(chat_of(serialized), chat, "{serialized}");
        }
        assert_eq!(bare_id(&"A".repeat(256)), None);
    }

    #[test]
    fn bare_ids_of_each_engines_answer() {
        let cases = [
            ("GOWS", json!({"id": "true_1@c.us_3EB01", "_data": {"Info": {"ID": "3EB01"}}}), Some("3EB01")),
            ("GOWS group", json!({"id": "true_1@g.us_3EB01_9@lid", "_data": {}}), Some("3EB01")),
            ("GOWS without id", json!({"_data": {"Info": {"ID": "3EB02", "Chat": "1@lid"}}}), Some("3EB02")),
            ("NOWEB", json!({"key": {"remoteJid": "1@s.whatsapp.net", "fromMe": true, "id": "3EB03"}}), Some("3EB03")),
            ("NOWEB poll", json!({"id": "true_1@c.us_3EB04", "_data": {"key": {"id": "3EB04"}}}), Some("3EB04")),
            (
                "WEBJS",
                json!({"id": {"fromMe": true, "remote": "1@c.us", "id": "3EB05", "_serialized": "true_1@c.us_3EB05"}}),
                Some("3EB05"),
            ),
            ("WEBJS serialized only", json!({"id": {"_serialized": "true_1@c.us_3EB06"}}), Some("3EB06")),
            ("WEBJS data only", json!({"_data": {"id": {"fromMe": true, "id": "3EB07"}}, "ack": 0}), Some("3EB07")),
            ("WPP text", json!({"id": "true_1@c.us_3EB08_out", "ack": 0}), Some("3EB08")),
            ("WPP object", json!({"id": {"_serialized": "true_1@c.us_3EB09", "fromMe": true}}), Some("3EB09")),
            ("odd types", json!({"id": 7, "key": "no", "_data": [1]}), None),
            ("nothing", json!({}), None),
            ("null", json!(null), None),
        ];
        for (name, answer, expected) in cases {
            assert_eq!(from_message(&answer).as_deref(), expected, "{name}");
        }
    }

    #[test]
    fn fresh_ids_have_the_shape_of_a_web_clients() {
        let chance = Chance::seeded(1);
        let id = new_message_id(&chance);
        assert_eq!(id.len(), 22);
        assert!(id.starts_with("3EB0"));
        assert!(id.chars().all(|c| c.is_ascii_digit() || ('A'..='F').contains(&c)));
        assert_ne!(id, new_message_id(&chance));
    }
}
