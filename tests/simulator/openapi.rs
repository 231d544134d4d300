//! Every answer against WAHA's own OpenAPI; where the captures contradict it, the contradiction is listed.

use jsonschema::Validator;
use serde_json::{Value, json};
use switchboard::simulator::{Engine, Naming, Writing};

use super::Bench;

/// Where WAHA itself contradicts its document: path (`*` for any), place in the answer (numbers as `*`), and the end of what
/// the validator says. Seen in the captures unless it says otherwise.
const DEVIATIONS: [(&str, &str, &str); 25] = [
    ("/api/version", "/browser", "null is not of type \"string\""),
    ("/api/server/version", "/browser", "null is not of type \"string\""),
    ("/api/sessions", "/*/me", "null is not of type \"object\""),
    ("/api/sessions", "/*/presence", "null is not of type \"object\""),
    ("/api/sessions/{session}", "/presence", "null is not of type \"object\""),
    // The configuration comes back as it was given; the document makes event names objects and defaults required.
    ("/api/sessions", "/*/config/noweb", "\"markOnline\" is a required property"),
    ("/api/sessions/{session}", "/config/noweb", "\"markOnline\" is a required property"),
    ("/api/sessions", "/*/config/webhooks/*/events/*", "is not of type \"object\""),
    ("/api/sessions/{session}", "/config/webhooks/*/events/*", "is not of type \"object\""),
    // Contract 4.8: a send is answered with the engine's own message.
    ("/api/sendText", "", "is a required property"),
    ("/api/sendText", "/id", "is not of type \"string\""),
    ("/api/forwardMessage", "", "is a required property"),
    ("/api/forwardMessage", "/id", "is not of type \"string\""),
    // Contract 4.7: an unknown number is 200 with null.
    ("/api/{session}/lids/pn/{phoneNumber}", "/lid", "null is not of type \"string\""),
    // A message leaves out or nulls what it does not have, wherever it stands.
    (MESSAGE, "", "\"to\" is a required property"),
    (MESSAGE, "", "\"participant\" is a required property"),
    (MESSAGE, "", "\"mediaUrl\" is a required property"),
    (MESSAGE, "/media", "null is not of type \"object\""),
    (MESSAGE, "/media/filename", "null is not of type \"string\""),
    (MESSAGE, "/body", "null is not of type \"string\""),
    // A list on all engines but NOWEB.
    ("/api/{session}/groups", "", "is not of type \"object\""),
    (MESSAGE, "/location", "null is not of type \"object\""),
    (MESSAGE, "/replyTo", "null is not of type \"object\""),
    (MESSAGE, "/vCards", "null is not of type \"array\""),
    ("/api/sessions/{session}", "/me", "null is not of type \"object\""),
];

/// Stands for every path whose answer is a message or a list of them.
const MESSAGE: &str = "message";
const MESSAGES: [&str; 3] = [
    "/api/{session}/chats/{chatId}/messages",
    "/api/{session}/chats/{chatId}/messages/{messageId}",
    "/api/forwardMessage",
];

fn is_listed(template: &str, place: &str, what: &str) -> bool {
    DEVIATIONS.iter().any(|(path, at, said)| {
        let here = *path == template || (*path == MESSAGE && MESSAGES.contains(&template));
        let at_place = *at == place || (*path == MESSAGE && place.strip_prefix("/*") == Some(at));
        here && at_place && what.ends_with(said)
    })
}

struct Document {
    root: Value,
}

impl Document {
    fn load() -> Self {
        let path = format!("{}/tests/fixtures/waha-openapi.json", env!("CARGO_MANIFEST_DIR"));
        let mut root: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        modernize(&mut root);
        Self { root }
    }

    fn validator(&self, method: &str, path: &str, status: u16) -> Option<Validator> {
        let response = &self.root["paths"][path][method]["responses"][status.to_string()];
        assert!(response.is_object(), "{method} {path} {status} is not in the document");
        let schema = response.pointer("/content/application~1json/schema")?;
        let schema = json!({"allOf": [schema], "components": self.root["components"]});
        Some(jsonschema::validator_for(&schema).unwrap())
    }
}

/// The document mixes OpenAPI 3.0's `nullable` and `required: true` into 3.1; the validator knows JSON Schema only.
fn modernize(value: &mut Value) {
    match value {
        Value::Object(members) => {
            if members.get("required").is_some_and(Value::is_boolean) {
                members.remove("required");
            }
            if members.remove("nullable") == Some(json!(true))
                && let Some(kind) = members.get("type").cloned()
            {
                members.insert("type".to_owned(), json!([kind, "null"]));
            }
            members.values_mut().for_each(modernize);
        }
        Value::Array(items) => items.iter_mut().for_each(modernize),
        _ => {}
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_are_valid_but_for_what_waha_itself_does() {
    let document = Document::load();
    let mut unlisted = Vec::new();
    for engine in [Engine::Noweb, Engine::Gows, Engine::Webjs, Engine::Wpp] {
        let bench = Bench::start(engine).await;
        bench.working("main").await;
        bench.create("other").await;
        let control = bench.simulator.control();
        let group = "120363000000000001@g.us";
        control.group_joined("main", group, "Tea", &["15550101234"]).unwrap();
        for writing in [
            Writing::image(b"picture".as_slice()).caption("look").id("QUOTED"),
            Writing::location(1.5, -2.25, "here").answering("QUOTED"),
            Writing::contacts(&["BEGIN:VCARD\nFN:Bob\nEND:VCARD"]).by_phone(),
            Writing::poll("tea?", &["yes", "no"]).named(Naming::LID),
            Writing::text("undecrypted").as_stub(),
        ] {
            control.write("main", "15550105555", writing).unwrap();
        }
        control.write("main", group, Writing::text("to all")).unwrap();
        control.write("main", "15550105555", Writing::text("taken back").id("BACK")).unwrap();
        control.revoke("main", "BACK").unwrap();
        bench.receiver.wait("all of them", |hook| hook.event() == "message.revoked").await;
        control.inbound_text_as("main", "15550101234", "hello", "3EB0HELLO").unwrap();
        let inbound = "false_15550101234@c.us_3EB0HELLO".to_owned();
        for (method, template, path, body) in calls(&inbound) {
            let request = bench.request(method.parse().unwrap(), &path);
            let request = if body.is_null() { request } else { request.json(&body) };
            let answer = request.header("Accept", "application/json").send().await.unwrap();
            let status = answer.status().as_u16();
            if template.ends_with("new-message-id") && !engine.honours_ids() {
                assert_eq!(status, 422);
                continue;
            }
            assert!((200..300).contains(&status), "{engine} {method} {path}: {status}");
            let text = answer.text().await.unwrap();
            let Some(validator) = document.validator(&method.to_ascii_lowercase(), template, status) else { continue };
            let instance: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{method} {path}: {text}"));
            for error in validator.iter_errors(&instance) {
                let place: Vec<String> = error
                    .instance_path()
                    .to_string()
                    .split('/')
                    .map(|part| if part.parse::<usize>().is_ok() { "*".to_owned() } else { part.to_owned() })
                    .collect();
                let (place, what) = (place.join("/"), error.to_string());
                if !is_listed(template, &place, &what) {
                    unlisted.push(format!("{engine} {method} {template} at {place:?}: {what}"));
                }
            }
        }
    }
    unlisted.sort();
    unlisted.dedup();
    assert!(unlisted.is_empty(), "{}", unlisted.join("\n"));
}

fn calls(inbound: &str) -> Vec<(&'static str, &'static str, String, Value)> {
    let chat = "15550101234@c.us";
    let send = |rest: Value| {
        let mut body = json!({"session": "main", "chatId": chat});
        body.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
        body
    };
    let file = json!({"mimetype": "image/png", "filename": "a.png", "data": "aGk="});
    let escaped = inbound.replace('@', "%40");
    let of_chat = "/api/main/chats/15550101234%40c.us/messages";
    let get = |template: &'static str, path: &str| ("GET", template, path.to_owned(), Value::Null);
    let post = |template: &'static str, body: Value| ("POST", template, template.to_owned(), body);
    let life = |template: &'static str, path: &str| ("POST", template, path.to_owned(), Value::Null);
    let message = "/api/{session}/chats/{chatId}/messages/{messageId}";
    vec![
        get("/ping", "/ping"),
        get("/health", "/health"),
        get("/api/server/version", "/api/server/version"),
        get("/api/version", "/api/version"),
        get("/api/server/status", "/api/server/status"),
        get("/api/sessions", "/api/sessions?all=true"),
        get("/api/sessions/{session}", "/api/sessions/main"),
        get("/api/sessions/{session}/me", "/api/sessions/main/me"),
        get("/api/contacts/check-exists", "/api/contacts/check-exists?session=main&phone=15550101234"),
        get("/api/contacts/check-exists", "/api/contacts/check-exists?session=main&phone=15550100005"),
        get("/api/{session}/lids", "/api/main/lids"),
        get("/api/{session}/lids/count", "/api/main/lids/count"),
        get("/api/{session}/lids/{lid}", "/api/main/lids/9815550101234%40lid"),
        get("/api/{session}/lids/pn/{phoneNumber}", "/api/main/lids/pn/15550100005"),
        get("/api/{session}/groups", "/api/main/groups"),
        get("/api/{session}/groups/count", "/api/main/groups/count"),
        get("/api/{session}/groups/{id}", "/api/main/groups/120363000000000001%40g.us"),
        get("/api/{session}/groups/{id}/participants/v2", "/api/main/groups/120363000000000001%40g.us/participants/v2"),
        ("POST", "/api/{session}/calls/reject", "/api/main/calls/reject".to_owned(), json!({"from": chat, "id": "A"})),
        get("/api/{session}/chats/{chatId}/messages", "/api/main/chats/15550105555%40c.us/messages?limit=50"),
        get(
            "/api/{session}/chats/{chatId}/messages",
            "/api/main/chats/120363000000000001%40g.us/messages?downloadMedia=false",
        ),
        get("/api/{session}/new-message-id", "/api/main/new-message-id"),
        post("/api/sendText", send(json!({"text": "hi"}))),
        post("/api/sendImage", send(json!({"file": file, "caption": "c"}))),
        post("/api/sendFile", send(json!({"file": file}))),
        post("/api/sendVoice", send(json!({"file": file}))),
        post("/api/sendVideo", send(json!({"file": file}))),
        post("/api/sendPoll", send(json!({"poll": {"name": "?", "options": ["a", "b"], "multipleAnswers": false}}))),
        post("/api/sendLocation", send(json!({"latitude": 1.0, "longitude": 2.0, "title": "here"}))),
        post("/api/sendContactVcard", send(json!({"contacts": [{"fullName": "A", "phoneNumber": "+1"}]}))),
        post("/api/forwardMessage", send(json!({"messageId": inbound}))),
        ("PUT", "/api/reaction", "/api/reaction".to_owned(), send(json!({"messageId": inbound, "reaction": "+"}))),
        post("/api/sendSeen", send(json!({}))),
        post("/api/startTyping", send(json!({}))),
        post("/api/stopTyping", send(json!({}))),
        ("POST", "/api/{session}/presence", "/api/main/presence".to_owned(), json!({"presence": "online"})),
        get("/api/{session}/chats", "/api/main/chats"),
        get("/api/{session}/chats/overview", "/api/main/chats/overview"),
        get("/api/{session}/chats/{chatId}/messages", of_chat),
        get(message, &format!("{of_chat}/{escaped}")),
        life("/api/{session}/chats/{chatId}/messages/read", &format!("{of_chat}/read")),
        ("PUT", message, format!("{of_chat}/{escaped}"), json!({"text": "edited"})),
        ("DELETE", message, format!("{of_chat}/{escaped}"), Value::Null),
        (
            "PUT",
            "/api/sessions/{session}",
            "/api/sessions/other".to_owned(),
            json!({"config": {"metadata": {"a": "b"}}}),
        ),
        life("/api/sessions/{session}/start", "/api/sessions/other/start"),
        life("/api/sessions/{session}/restart", "/api/sessions/other/restart"),
        life("/api/sessions/{session}/logout", "/api/sessions/other/logout"),
        life("/api/sessions/{session}/stop", "/api/sessions/other/stop"),
        ("DELETE", "/api/sessions/{session}", "/api/sessions/other".to_owned(), Value::Null),
        post("/api/sessions", json!({"name": "third", "config": {"metadata": {"a": "b"}}})),
        get("/api/{session}/auth/qr", "/api/third/auth/qr?format=raw"),
        get("/api/{session}/auth/qr", "/api/third/auth/qr"),
        (
            "POST",
            "/api/{session}/auth/request-code",
            "/api/third/auth/request-code".to_owned(),
            json!({"phoneNumber": "1"}),
        ),
    ]
}
