//! Webhooks of a real WAHA, byte for byte.

use secrecy::SecretString;
use switchboard::waha::webhook::{Payload, WebhookEvent, session_name, verify};
use switchboard::waha::{Engine, SessionStatus, Source};

struct Capture {
    signature: Option<String>,
    body: Vec<u8>,
}

fn capture(name: &str) -> Capture {
    let path = format!("{}/tests/fixtures/waha-captures/{name}.http", env!("CARGO_MANIFEST_DIR"));
    let bytes = std::fs::read(path).unwrap();
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
    let head = std::str::from_utf8(&bytes[..end]).unwrap();
    let header = |wanted: &str| {
        head.lines()
            .filter_map(|line| line.split_once(": "))
            .find_map(|(name, value)| name.eq_ignore_ascii_case(wanted).then(|| value.to_owned()))
    };
    let length: usize = header("content-length").unwrap().parse().unwrap();
    Capture { signature: header("x-webhook-hmac"), body: bytes[end + 4..][..length].to_vec() }
}

fn parsed(name: &str) -> WebhookEvent {
    WebhookEvent::parse(&capture(name).body).unwrap()
}

#[test]
fn signatures_of_a_real_waha_verify() {
    let cases = [
        ("STARTING", "hook-secret-1"),
        ("STOPPED", "hook-secret-1"),
        ("FAILED", "hook-secret-2"),
        ("SCAN_QR_CODE", "hook-secret-3"),
        ("WORKING", "hook-secret-3"),
        ("message", "hook-secret-3"),
        ("message.any", "hook-secret-3"),
    ];
    let wrong = SecretString::from("another");
    for (name, key) in cases {
        let Capture { signature, body } = capture(name);
        let (signature, key) = (signature.unwrap(), SecretString::from(key));
        assert!(verify(&[&key], &body, &signature), "{name}");
        assert!(verify(&[&wrong, &key], &body, &signature.to_uppercase()), "{name}: previous key, upper case");
        assert!(!verify(&[&wrong], &body, &signature), "{name}");
        assert!(!verify::<str>(&[], &body, &signature), "{name}");
        let mut changed = body.clone();
        changed[20] ^= 1;
        assert!(!verify(&[&key], &changed, &signature), "{name}");
        assert!(!verify(&[&key], &body[1..], &signature), "{name}");
    }
}

#[test]
fn the_documented_vector_verifies() {
    let key = SecretString::from("my-secret-key");
    let body = br#"{"event":"message","session":"default","engine":"WEBJS"}"#;
    let digest = "208f8a55dde9e05519e898b10b89bf0d0b3b0fdf11fdbf09b6b90476301b98d8097c462b2b17a6ce93b6b47a136cf2e78a33a63f6752c2c1631777076153fa89";
    assert!(verify(&[&key], body, digest));
    for bad in
        ["", "zz", "2", "20", digest.split_at(2).1, &format!("{digest}00"), "é", &"g".repeat(128), &"é".repeat(64)]
    {
        assert!(!verify(&[&key], body, bad), "{bad}");
    }
}

#[test]
fn states_as_captured() {
    let cases = [
        ("STARTING", SessionStatus::Starting, 1),
        ("STOPPED", SessionStatus::Stopped, 2),
        ("FAILED", SessionStatus::Failed, 3),
        ("SCAN_QR_CODE", SessionStatus::ScanQrCode, 2),
        ("WORKING", SessionStatus::Working, 3),
    ];
    for (name, status, statuses) in cases {
        let event = parsed(name);
        assert_eq!((event.event.as_str(), event.session.as_str()), ("session.status", "default"), "{name}");
        assert_eq!(event.engine, Some(Engine::Noweb), "{name}");
        assert!(event.id.unwrap().starts_with("evt_"), "{name}");
        assert_eq!(event.me.is_some(), name == "WORKING");
        let Payload::SessionStatus(change) = event.payload else { panic!("{name}") };
        assert_eq!((change.status, change.statuses.len()), (status, statuses), "{name}");
        assert_eq!(change.statuses.last().unwrap().0, status, "{name}");
    }
    let working = parsed("WORKING");
    assert_eq!(working.timestamp.unwrap().timestamp_millis(), 1_795_211_842_827);
    assert_eq!(working.me.unwrap().phone(), Some("11111111111"));
}

#[test]
fn an_old_core_without_id_and_time() {
    let event = parsed("2024.10.8-STARTING");
    assert_eq!((event.id, event.timestamp), (None, None));
    let Payload::SessionStatus(change) = event.payload else { panic!() };
    assert_eq!((change.status, change.statuses.len()), (SessionStatus::Starting, 0));
    let body = capture("2024.10.8-STARTING").body;
    let peek = session_name(&body).unwrap();
    assert_eq!((peek.session.as_ref(), peek.event.as_ref(), peek.id), ("default", "session.status", None));
}

#[test]
fn messages_as_captured() {
    let event = parsed("message.any");
    assert_eq!(event.event, "message.any");
    let Payload::Message(own) = event.payload else { panic!() };
    assert_eq!((own.bare_id.as_str(), own.chat_id.as_str()), ("3EB015872F111D2E17935F", "22222222222@c.us"));
    assert!(own.from_me && !own.has_media);
    assert_eq!((own.body.as_deref(), own.ack, own.source), (Some("hi"), Some(0), Some(Source::Api)));
    assert_eq!(own.timestamp.unwrap().timestamp(), 1_795_211_853);
    assert_eq!((own.sender, own.push_name, own.reply_to), (None, None, None));

    let Payload::Message(theirs) = parsed("message").payload else { panic!() };
    assert_eq!(theirs.bare_id, "3EB0INCOMING000001");
    assert_eq!((theirs.chat_id.as_str(), theirs.sender.as_deref()), ("22222222222@c.us", Some("22222222222@c.us")));
    assert_eq!((theirs.from_me, theirs.ack, theirs.source), (false, Some(2), Some(Source::App)));
    assert_eq!((theirs.body.as_deref(), theirs.push_name.as_deref()), (Some("hello in"), Some("Peer")));
}

#[test]
fn peeking_reads_the_same_as_parsing() {
    for name in ["STARTING", "WORKING", "message", "message.any"] {
        let body = capture(name).body;
        let event = WebhookEvent::parse(&body).unwrap();
        let peek = session_name(&body).unwrap();
        assert_eq!((peek.session.as_ref(), peek.event.as_ref()), (event.session.as_str(), event.event.as_str()));
        assert_eq!(peek.id, event.id);
    }
    for bad in [&b"{"[..], b"", b"[]", b"{}", br#"{"session":7,"event":"message"}"#, b"\xff\xfe"] {
        assert_eq!(session_name(bad), None);
    }
}

#[test]
fn debug_shows_no_text_and_no_numbers() {
    for name in ["message", "message.any", "WORKING"] {
        let shown = format!("{:?}", parsed(name));
        for secret in ["hello in", "22222222222", "11111111111", "Peer", "Sim User", "99999999999"] {
            assert!(!shown.contains(secret), "{name}: {shown}");
        }
    }
}
