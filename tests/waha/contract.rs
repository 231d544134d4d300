//! Everything the client asks is something WAHA's own OpenAPI document describes.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use switchboard::waha::{
    ContactCard, Engine, FileSource, MediaFile, MediaKind, MessageFilter, Outgoing, Poll, Proxy, SendContacts,
    SendLocation, SendMedia, SendPoll, SendText, Server, SessionSpec, Timeouts, WahaClient,
};
use tokio::runtime::Handle;

use super::server::{Scripted, answer};

fn document() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/waha-openapi.json");
    let mut document: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    untype(&mut document);
    let schemas = &mut document["components"]["schemas"];
    // A card is either a ready vCard or its parts; the document asks for both.
    schemas["Contact"]["required"] = json!(["fullName", "phoneNumber"]);
    // Honoured, though not described: the message id with media, mentions everywhere.
    for name in ["Text", "Image", "Video", "Voice", "File"] {
        let properties = &mut schemas[format!("Message{name}Request")]["properties"];
        properties["id"] = json!({"type": "string"});
        properties["mentions"] = json!({"type": "array", "items": {"type": "string"}});
    }
    // WAHA strips what it does not know without a word, so a misspelt member must not pass here.
    for schema in schemas.as_object_mut().unwrap().values_mut().filter(|schema| schema.get("properties").is_some()) {
        schema["additionalProperties"] = false.into();
    }
    // Every member of a session's configuration has a default.
    schemas["NowebConfig"]["required"] = json!([]);
    document
}

/// Where the generator of the document could not name a type it wrote `object`, for flags and texts too.
fn untype(value: &mut Value) {
    match value {
        Value::Object(members) => {
            if members.get("type").is_some_and(|kind| kind == "object") && !members.contains_key("properties") {
                members.remove("type");
            }
            members.values_mut().for_each(untype);
        }
        Value::Array(entries) => entries.iter_mut().for_each(untype),
        _ => {}
    }
}

/// The document's entry for a request.
fn operation<'a>(document: &'a Value, method: &str, path: &str) -> Option<&'a Value> {
    let segments: Vec<_> = path.split('/').collect();
    let paths = document["paths"].as_object().unwrap();
    let fits = |template: &str| {
        let parts: Vec<_> = template.split('/').collect();
        parts.len() == segments.len()
            && parts.iter().zip(&segments).all(|(part, segment)| part.starts_with('{') || part == segment)
    };
    let exact = paths.get(path).and_then(|item| item.get(method));
    exact.or_else(|| paths.iter().filter(|(template, _)| fits(template)).find_map(|(_, item)| item.get(method)))
}

fn check(document: &Value, request: &str) {
    let (head, body) = request.split_once("\r\n\r\n").unwrap();
    let mut line = head.split(' ');
    let (method, target) = (line.next().unwrap(), line.next().unwrap());
    let url = url::Url::parse(&format!("http://waha{target}")).unwrap();
    let operation = operation(document, &method.to_lowercase(), url.path());
    let operation = operation.unwrap_or_else(|| panic!("WAHA has no {method} {}", url.path()));
    let parameters = operation["parameters"].as_array().map(Vec::as_slice).unwrap_or_default();
    for (name, value) in url.query_pairs() {
        let known = parameters.iter().find(|known| known["in"] == "query" && known["name"] == *name);
        let known = known.unwrap_or_else(|| panic!("{method} {} knows no {name}", url.path()));
        if let Some(allowed) = known["schema"]["enum"].as_array() {
            assert!(allowed.contains(&Value::from(&*value)), "{name}={value}");
        }
    }
    let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
    assert_eq!(schema.is_null(), body.is_empty(), "{method} {}", url.path());
    if !schema.is_null() {
        let mut schema = schema.clone();
        schema["components"] = document["components"].clone();
        let body: Value = serde_json::from_str(body).unwrap();
        let validator = jsonschema::validator_for(&schema).unwrap();
        let errors: Vec<_> = validator.iter_errors(&body).map(|error| error.to_string()).collect();
        assert!(errors.is_empty(), "{method} {}: {body}: {errors:?}", url.path());
    }
}

fn messages() -> Vec<Outgoing> {
    let (session, chat_id, id) = ("s".to_owned(), "1@c.us".to_owned(), Some("3EB0A".to_owned()));
    let media = |kind, source| {
        Outgoing::Media(SendMedia {
            kind,
            session: "s".into(),
            chat_id: "1@c.us".into(),
            file: MediaFile {
                mimetype: "a/b".into(),
                filename: (kind != MediaKind::Voice || matches!(source, FileSource::Data(_))).then(|| "a.b".into()),
                source,
            },
            caption: (kind != MediaKind::Voice).then(|| "caption".into()),
            id: Some("3EB0A".into()),
            reply_to: None,
            mentions: vec![],
        })
    };
    let url = || FileSource::Url("https://files.example.com/a.b".parse().unwrap());
    let data = || FileSource::Data("aGk=".into());
    vec![
        Outgoing::Text(SendText {
            session: session.clone(),
            chat_id: chat_id.clone(),
            text: "hi".into(),
            id: id.clone(),
            reply_to: Some("true_1@c.us_A".into()),
            mentions: vec!["2@c.us".into()],
            link_preview: Some(true),
        }),
        media(MediaKind::Image, url()),
        media(MediaKind::Image, data()),
        media(MediaKind::Video, url()),
        media(MediaKind::Video, data()),
        media(MediaKind::Voice, url()),
        media(MediaKind::Voice, data()),
        media(MediaKind::Document, url()),
        media(MediaKind::Document, data()),
        Outgoing::Location(SendLocation {
            session: session.clone(),
            chat_id: chat_id.clone(),
            latitude: 52.5,
            longitude: 13.4,
            title: String::new(),
            id: id.clone(),
            reply_to: None,
        }),
        Outgoing::Contacts(SendContacts {
            session: session.clone(),
            chat_id: chat_id.clone(),
            contacts: vec![ContactCard {
                full_name: "Ann".into(),
                phone_number: "+1 202 555 0100".into(),
                organization: None,
                whatsapp_id: Some("12025550100".into()),
            }],
            id: id.clone(),
            reply_to: None,
        }),
        Outgoing::Poll(SendPoll {
            session,
            chat_id,
            poll: Poll { name: "?".into(), options: vec!["a".into(), "b".into()], multiple_answers: false },
            id,
            reply_to: None,
        }),
    ]
}

#[tokio::test]
async fn every_send_is_described_by_wahas_document() {
    let (document, scripted) = (document(), Scripted::start(vec![answer("201 Created", r#"{"id":"A"}"#)]).await);
    let client = WahaClient::new(Handle::current(), Timeouts::default()).unwrap();
    let server = Server { base_url: scripted.url.clone(), api_key: "k".into() };
    let messages = messages();
    for message in &messages {
        let _accepted = client.send(&server, message, Duration::from_secs(10), None).await;
    }
    let requests = scripted.requests();
    assert_eq!(requests.len(), messages.len());
    requests.iter().for_each(|request| check(&document, request));
}

#[tokio::test]
async fn every_other_call_is_described_by_wahas_document() {
    let (document, scripted) = (document(), Scripted::start(vec![answer("200 OK", "{}")]).await);
    let client = WahaClient::new(Handle::current(), Timeouts::default()).unwrap();
    let server = Server { base_url: scripted.url.clone(), api_key: "k".into() };
    let filter = MessageFilter {
        limit: Some(1),
        offset: Some(1),
        from_me: Some(true),
        since: chrono::DateTime::from_timestamp(1, 0),
        until: chrono::DateTime::from_timestamp(2, 0),
        oldest_first: true,
    };
    // What the calls make of the empty answer is none of this test's business.
    for engine in Engine::ALL {
        let spec = SessionSpec {
            name: "s".into(),
            engine,
            webhook_url: "http://gateway/hook".parse().unwrap(),
            hmac_key: "k".into(),
            metadata: BTreeMap::from([("a".into(), "b".into())]),
            proxy: Some(Proxy {
                server: "proxy.example.net:3128".into(),
                username: Some("me".into()),
                password: Some("secret".into()),
            }),
        };
        let _created = client.create_session(&server, &spec, true).await;
        let _updated = client.update_session(&server, &spec).await;
    }
    let _session = client.get_session(&server, "s").await;
    let _sessions = client.list_sessions(&server, true).await;
    let _done = client.start(&server, "s").await;
    let _done = client.stop(&server, "s").await;
    let _done = client.restart(&server, "s").await;
    let _done = client.logout(&server, "s").await;
    let _done = client.delete(&server, "s").await;
    let _me = client.me(&server, "s").await;
    let _qr = client.qr_value(&server, "s").await;
    let _code = client.pairing_code(&server, "s", "1").await;
    let _message = client.message_by_id(&server, "s", "all", "A").await;
    let _messages = client.messages(&server, "s", "1@c.us", &filter).await;
    let _check = client.check_exists(&server, "s", "1").await;
    let _pair = client.phone_of_lid(&server, "s", "1@lid").await;
    let _pair = client.lid_of_phone(&server, "s", "1").await;
    let _done = client.edit_message(&server, "s", "1@c.us", "true_1@c.us_A", "new").await;
    let _done = client.revoke_message(&server, "s", "1@c.us", "true_1@c.us_A").await;
    let _done = client.react(&server, "s", "true_1@c.us_A", "").await;
    let _done = client.typing(&server, "s", "1@c.us", true).await;
    let _done = client.typing(&server, "s", "1@c.us", false).await;
    let _version = client.server_version(&server).await;
    let _status = client.server_status(&server).await;
    let _pong = client.ping(&server).await;
    let requests = scripted.requests();
    assert_eq!(requests.len(), 8 + 23);
    requests.iter().for_each(|request| check(&document, request));
}
