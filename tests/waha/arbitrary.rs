//! Whatever comes in, reading it neither panics nor invents.

use proptest::prelude::*;
use secrecy::SecretString;
use serde_json::{Value, json};
use switchboard::waha::webhook::{WebhookEvent, session_name, verify};
use switchboard::waha::{WahaMessage, bare_id, chat_of};

const EVENTS: [&str; 8] = [
    "session.status",
    "message",
    "message.any",
    "message.ack",
    "message.reaction",
    "message.edited",
    "message.revoked",
    "other",
];

const NAMES: [&str; 18] = [
    "id",
    "_serialized",
    "key",
    "fromMe",
    "from",
    "to",
    "participant",
    "timestamp",
    "ack",
    "ackName",
    "_data",
    "Info",
    "reaction",
    "messageId",
    "statuses",
    "status",
    "media",
    "after",
];

fn payload() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "(true|false)_[0-9]{1,3}(@c\\.us|@g\\.us|@lid)?_?[A-Z0-9]{0,4}(_[0-9]@lid)?".prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 40, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((prop::sample::select(&NAMES[..]), inner), 0..8)
                .prop_map(|members| members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()),
        ]
    })
}

proptest! {
    #[test]
    fn any_payload_is_read_or_refused(event in prop::sample::select(&EVENTS[..]), payload in payload()) {
        let body = json!({"event": event, "session": "s", "timestamp": payload, "me": payload, "payload": payload}).to_string();
        if let Ok(parsed) = WebhookEvent::parse(body.as_bytes()) {
            prop_assert_eq!(parsed.session.as_str(), "s");
            prop_assert_eq!(parsed.event.as_str(), event);
        }
        if let Some(message) = WahaMessage::from_value(payload) {
            prop_assert!(!message.bare_id.is_empty() && !message.bare_id.contains('@'));
            prop_assert!(message.ack.is_none_or(|ack| (-1..=4).contains(&ack)));
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200), header in ".{0,140}") {
        let _read = (WebhookEvent::parse(&bytes).is_ok(), session_name(&bytes).is_some());
        prop_assert!(!verify(&[&SecretString::from("key")], &bytes, &header));
    }

    #[test]
    fn an_id_survives_serialization(id in "[A-Z0-9]{1,32}", chat in "[0-9]{5,15}@(c\\.us|g\\.us|lid)", own in any::<bool>()) {
        for serialized in [format!("{own}_{chat}_{id}"), format!("{own}_{chat}_{id}_999:3@lid")] {
            prop_assert_eq!(bare_id(&serialized), Some(id.clone()));
            prop_assert_eq!(chat_of(&serialized), Some(chat.as_str()));
        }
    }
}
