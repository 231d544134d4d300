//! Events no capture shows, in the shapes the engines are known to give them.

use serde_json::{Value, json};
use switchboard::waha::webhook::{Payload, WebhookError, WebhookEvent};
use switchboard::waha::{SessionStatus, WahaMessage};

fn parse(event: &str, payload: Value) -> Result<WebhookEvent, WebhookError> {
    let body = json!({"id": "evt_1", "timestamp": 1_795_211_853_742_u64, "event": event, "session": "s", "engine": "GOWS",
        "unknown": [1, 2], "payload": payload});
    WebhookEvent::parse(body.to_string().as_bytes())
}

#[test]
fn acks() {
    let cases = [
        (
            json!({"id": "true_1@c.us_A", "from": "1@c.us", "to": null, "fromMe": true, "ack": 1}),
            "1@c.us",
            Some(1),
            None,
        ),
        (
            json!({"id": "true_1@c.us_A", "from": "9@c.us", "to": "1@c.us", "fromMe": true, "ack": 3}),
            "1@c.us",
            Some(3),
            None,
        ),
        (json!({"id": "true_1@lid_A", "fromMe": true, "ack": -1, "error": {"code": 463}}), "1@lid", Some(-1), None),
        (
            json!({"id": "true_5@g.us_A_7@lid", "from": "5@g.us", "participant": "7:3@lid", "fromMe": true, "ack": 2}),
            "5@g.us",
            Some(2),
            Some("7@lid"),
        ),
        (json!({"id": "true_1@c.us_A", "fromMe": true, "ack": null, "ackName": "UNKNOWN"}), "1@c.us", None, None),
        (json!({"id": "true_1@c.us_A", "fromMe": true, "ackName": "READ"}), "1@c.us", Some(3), None),
        (json!({"id": {"_serialized": "true_1@c.us_A", "id": "A", "fromMe": true}, "ack": 4}), "1@c.us", Some(4), None),
        (json!({"id": "true_1@c.us_A", "ack": 99}), "1@c.us", None, None),
    ];
    for (payload, chat, level, participant) in cases {
        for event in ["message.ack", "message.ack.group"] {
            let Payload::Ack(ack) = parse(event, payload.clone()).unwrap().payload else { panic!("{payload}") };
            assert_eq!((ack.bare_id.as_str(), ack.chat_id.as_deref()), ("A", Some(chat)), "{payload}");
            assert_eq!((ack.level, ack.participant.as_deref()), (level, participant), "{payload}");
            assert!(ack.from_me, "{payload}");
            assert_eq!(ack.error_code, payload.pointer("/error/code").and_then(Value::as_i64));
        }
    }
    assert_eq!(parse("message.ack", json!({"ack": 1})).unwrap_err(), WebhookError::Missing("message id"));
}

#[test]
fn reactions_edits_and_revocations() {
    let reaction = json!({"id": "false_1@c.us_R", "from": "1@c.us", "fromMe": false, "timestamp": 1_795_211_853.75,
        "reaction": {"text": "👍", "messageId": "true_1@c.us_A"}});
    let Payload::Reaction(reaction) = parse("message.reaction", reaction).unwrap().payload else { panic!() };
    assert_eq!((reaction.bare_id.as_str(), reaction.emoji.as_str(), reaction.from_me), ("A", "👍", false));
    assert_eq!(reaction.timestamp.unwrap().timestamp(), 1_795_211_853);
    assert_eq!(parse("message.reaction", json!({"id": "x"})).unwrap_err(), WebhookError::Missing("message id"));

    let edit = json!({"id": "true_1@c.us_E", "from": "1@c.us", "fromMe": true, "body": "new", "editedMessageId": "A"});
    let Payload::Edited(edited) = parse("message.edited", edit).unwrap().payload else { panic!() };
    assert_eq!((edited.bare_id.as_str(), edited.message.body.as_deref()), ("A", Some("new")));
    let edit = json!({"id": "true_1@c.us_A", "from": "1@c.us", "fromMe": true, "body": "new"});
    let Payload::Edited(edited) = parse("message.edited", edit).unwrap().payload else { panic!() };
    assert_eq!(edited.bare_id, "A");

    let side = json!({"id": "false_1@c.us_A", "from": "1@c.us", "fromMe": false});
    for revoked in [
        json!({"after": side, "before": null, "revokedMessageId": "A"}),
        json!({"after": null, "before": side}),
        json!({"after": side, "before": null}),
    ] {
        let Payload::Revoked(revoked) = parse("message.revoked", revoked).unwrap().payload else { panic!() };
        assert_eq!((revoked.bare_id.as_str(), revoked.chat_id.as_deref()), ("A", Some("1@c.us")));
    }
    assert!(parse("message.revoked", json!({"after": null})).is_err());
}

#[test]
fn messages_of_each_engine() {
    let gows = json!({"id": "false_5@g.us_AAA_7@lid", "from": "5@g.us", "participant": "7@lid", "fromMe": false, "body": "x",
        "timestamp": 1_795_211_853, "_data": {"Info": {"ID": "AAA", "PushName": "Ann", "SenderAlt": "49151:2@s.whatsapp.net"}},
        "replyTo": {"id": "3EB0Q", "body": "q"}});
    let message = WahaMessage::from_value(gows).unwrap();
    assert_eq!((message.bare_id.as_str(), message.chat_id.as_str()), ("AAA", "5@g.us"));
    assert_eq!((message.sender.as_deref(), message.alternative_id.as_deref()), (Some("7@lid"), Some("49151@c.us")));
    assert_eq!((message.push_name.as_deref(), message.reply_to.as_deref()), (Some("Ann"), Some("3EB0Q")));

    let webjs = json!({"id": {"fromMe": true, "remote": "1@c.us", "id": "3EB0W", "_serialized": "true_1@c.us_3EB0W"},
        "from": "9@c.us", "to": "1@c.us", "fromMe": true, "body": "x", "hasMedia": true, "ack": 1,
        "media": {"url": "http://localhost:3000/api/files/s/3EB0W.jpg", "mimetype": "image/jpeg", "filename": null},
        "_data": {"notifyName": "Bob"}});
    let message = WahaMessage::from_value(webjs).unwrap();
    assert_eq!((message.bare_id.as_str(), message.chat_id.as_str()), ("3EB0W", "1@c.us"));
    assert_eq!((message.push_name.as_deref(), message.ack), (Some("Bob"), Some(1)));
    let media = message.media.unwrap();
    assert_eq!(media.url.unwrap().path(), "/api/files/s/3EB0W.jpg");
    assert!(!media.failed);

    let noweb = json!({"id": "false_7@lid_AAA", "from": "7@lid", "fromMe": false, "body": null, "ack": -1, "hasMedia": true,
        "media": {"url": null, "error": {"message": "gone"}},
        "_data": {"key": {"remoteJid": "7@lid", "remoteJidAlt": "49151@s.whatsapp.net"}, "pushName": "Cem"}});
    let message = WahaMessage::from_value(noweb).unwrap();
    assert_eq!((message.chat_id.as_str(), message.alternative_id.as_deref()), ("7@lid", Some("49151@c.us")));
    assert_eq!((message.body.as_deref(), message.ack, message.timestamp), (None, Some(-1), None));
    assert!(message.media.unwrap().failed);

    let raw = json!({"key": {"remoteJid": "1@s.whatsapp.net", "fromMe": true, "id": "3EB0R"}});
    let message = WahaMessage::from_value(raw).unwrap();
    assert_eq!((message.chat_id.as_str(), message.from_me), ("1@c.us", true));

    assert!(WahaMessage::from_value(json!({"id": "A"})).is_none());
    assert!(WahaMessage::from_value(json!({"from": "1@c.us"})).is_none());
}

#[test]
fn other_events_and_broken_ones() {
    let Payload::Other { event } = parse("newsletter.read", json!({"id": "1"})).unwrap().payload else { panic!() };
    assert_eq!(event, "newsletter.read");
    assert!(parse("call.received", json!({"id": "1"})).is_err(), "nobody calls");
    let call = json!({"id": "1", "from": "15550100001@s.whatsapp.net", "timestamp": 1_795_300_000, "isVideo": true});
    let Payload::Call(call) = parse("call.received", call).unwrap().payload else { panic!() };
    assert_eq!((call.id.as_str(), call.from.as_str(), call.is_video), ("1", "15550100001@c.us", true));
    let Payload::SessionStatus(change) =
        parse("session.status", json!({"name": "s", "status": "SOMETHING_NEW", "statuses": "odd"})).unwrap().payload
    else {
        panic!()
    };
    assert_eq!(change.status, SessionStatus::Other);
    let restricted = json!({"status": "WORKING", "data": {"reachoutTimelock": {"timeEnforcementEnds": 1_795_300_000}}});
    let Payload::SessionStatus(change) = parse("session.status", restricted).unwrap().payload else { panic!() };
    assert_eq!(change.restriction.unwrap().until().unwrap().timestamp(), 1_795_300_000);

    assert_eq!(WebhookEvent::parse(b"{\"event\":").unwrap_err(), WebhookError::NotJson);
    assert_eq!(WebhookEvent::parse(b"[]").unwrap_err(), WebhookError::Missing("event"));
    assert_eq!(WebhookEvent::parse(br#"{"event":"message"}"#).unwrap_err(), WebhookError::Missing("session"));
    assert!(parse("message", Value::Null).is_err());
    assert!(parse("session.status", json!({})).is_err());
}
