//! `POST /hooks/waha/{id}`: what WAHA posts, what somebody else posts in its name, and what happens when nothing can be kept.

use std::time::{Duration, Instant};

use hmac::{Hmac, KeyInit, Mac};
use reqwest::{Method, StatusCode};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use sha2::Sha512;
use switchboard::broker::LinkState;
use switchboard::domain::clock::Clock;

use crate::support::world::{Answer, Client, Inside, PATIENCE, amqp_url, text};
use crate::support::{TcpProxy, World, eventually};

/// Delivered, but the simulator never acknowledges it.
const NEVER_ACKED: &str = "+15550100008";
const CALLER: &str = "15550107777@c.us";

/// A session with everything that WAHA knows to post about it.
struct Hook {
    client: Client,
    path: String,
    session: String,
    external: String,
    key: String,
}

impl Hook {
    async fn of(world: &World, node: &Inside, tenant: &Client) -> Self {
        let (session, external) = tenant.session("hooked").await;
        let servers = world.platform(&node.base).get("/v1/waha-servers").await.expect(StatusCode::OK);
        let path = format!("/hooks/waha/{}", text(&servers["data"][0], "id"));
        let key = world.simulator.control().webhook_key(&external).unwrap().expect("a key in the configuration");
        Self { client: tenant.clone(), path, session, external, key: key.expose_secret().to_owned() }
    }

    fn signature(&self, body: &[u8]) -> String {
        let mac = Hmac::<Sha512>::new_from_slice(self.key.as_bytes()).unwrap().chain_update(body);
        hex::encode(mac.finalize().into_bytes())
    }

    /// Posts `body` under `signature` to `path`.
    async fn post(&self, path: &str, body: impl Into<Vec<u8>>, signature: Option<&str>) -> Answer {
        let mut request = self.client.request(Method::POST, path).header("content-type", "application/json");
        if let Some(signature) = signature {
            request = request.header("x-webhook-hmac", signature);
        }
        Client::send(request.body(body.into())).await
    }

    /// Posts `body` rightly signed.
    async fn signed(&self, body: impl Into<Vec<u8>>) -> StatusCode {
        let body = body.into();
        let signature = self.signature(&body);
        self.post(&self.path, body, Some(&signature)).await.status
    }

    fn event(&self, id: &str, event: &str, payload: &Value) -> String {
        json!({"id": id, "timestamp": Clock::running().now().timestamp_millis(), "event": event, "session": self.external,
            "me": {"id": "15550100000@c.us"}, "payload": payload, "engine": "NOWEB"})
        .to_string()
    }

    /// Somebody's message `id` with the text `body`.
    fn message(&self, id: &str, body: &str) -> String {
        self.event(&format!("evt_{id}"), "message.any", &inbound(id, body))
    }

    fn ack(&self, id: &str, level: i64) -> String {
        let payload = json!({"id": format!("true_15550100001@c.us_{id}"), "from": "15550100001@c.us", "fromMe": true, "ack": level});
        self.event(&format!("evt_{id}_{level}"), "message.ack", &payload)
    }

    /// The texts that came in, newest first.
    async fn texts(&self) -> Vec<String> {
        let path = format!("/v1/messages?direction=inbound&limit=200&session_id={}", self.session);
        let list = self.client.get(&path).await.expect(StatusCode::OK);
        list["data"].as_array().unwrap().iter().map(|message| text(message, "body").to_owned()).collect()
    }

    async fn arrives(&self, body: &str) {
        eventually(PATIENCE, "the message to come in", async || {
            self.texts().await.iter().any(|text| text == body).then_some(())
        })
        .await;
    }
}

fn inbound(id: &str, body: &str) -> Value {
    json!({"id": format!("false_{CALLER}_{id}"), "timestamp": Clock::running().now().timestamp(), "from": CALLER,
        "fromMe": false, "to": "15550100000@c.us", "body": body, "hasMedia": false, "ack": 1, "ackName": "SERVER"})
}

/// How many dead letters there are.
async fn dead(world: &World) -> i64 {
    let client = world.db.connect().await;
    client
        .query_one("SELECT count(*) FROM inbound_dead_letters WHERE reason <> 'unknown_event'", &[])
        .await
        .unwrap()
        .get(0)
}

async fn unknown(world: &World) -> i64 {
    let client = world.db.connect().await;
    let count = "SELECT count(*) FROM inbound_dead_letters WHERE reason = 'unknown_event'";
    client.query_one(count, &[]).await.unwrap().get(0)
}

/// How many events of this type there are, once there is one: they show a moment after what they tell.
async fn events_of(tenant: &Client, kind: &str) -> usize {
    let none_yet = format!("an event {kind}");
    eventually(PATIENCE, &none_yet, async || Some(count_events(tenant, kind).await).filter(|count| *count > 0)).await
}

async fn count_events(tenant: &Client, kind: &str) -> usize {
    let list = tenant.get(&format!("/v1/events?type={kind}&limit=200")).await.expect(StatusCode::OK);
    list["data"].as_array().unwrap().len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_sessions_own_signature_opens_the_door() {
    let world = World::new().await;
    let node = world.node();
    let (one, two) = (world.tenant(&node.base, "one").await, world.tenant(&node.base, "two").await);
    let (hook, other) = (Hook::of(&world, &node, &one).await, Hook::of(&world, &node, &two).await);
    assert_ne!(hook.key, other.key, "a key of its own for each session");

    let good = hook.message("A1", "good");
    let signature = hook.signature(good.as_bytes());
    let answer = hook.post(&hook.path, good.clone(), Some(&signature)).await;
    assert_eq!(answer.status, StatusCode::OK, "{:?}", answer.body);
    assert!(!answer.header("x-request-id").is_empty());
    hook.arrives("good").await;
    assert_eq!(hook.signed(hook.message("A2", "upper").as_bytes()).await, StatusCode::OK);
    let upper = hook.message("A3", "in capitals");
    let capitals = hook.signature(upper.as_bytes()).to_uppercase();
    assert_eq!(hook.post(&hook.path, upper, Some(&capitals)).await.status, StatusCode::OK);

    let bad = hook.message("B1", "bad");
    let right = hook.signature(bad.as_bytes());
    let wrong = right.chars().rev().collect::<String>();
    let shortened: String = right.chars().take(126).collect();
    let half: String = bad.chars().take(bad.len() / 2).collect();
    for (body, signature) in [
        (bad.clone(), None),
        (bad.clone(), Some("")),
        (bad.clone(), Some("sha512")),
        (bad.clone(), Some(wrong.as_str())),
        (bad.clone(), Some(shortened.as_str())),
        (bad.clone(), Some(&other.signature(bad.as_bytes()))),
        (format!("{bad} "), Some(right.as_str())),
        (half.clone(), Some(right.as_str())),
    ] {
        let answer = hook.post(&hook.path, body, signature).await;
        assert_eq!((answer.status, &answer.body["code"]), (StatusCode::UNAUTHORIZED, &json!("unauthorized")));
    }
    // What says whose it is cannot be believed before it is verified, so all of this is a wrong signature.
    for body in [
        half.into_bytes(),
        b"".to_vec(),
        b"null".to_vec(),
        b"[]".to_vec(),
        b"{}".to_vec(),
        b"{\"session\":1,\"event\":\"message\"}".to_vec(),
        b"{\"session\":\"nobody\",\"event\":\"message\",\"payload\":{}}".to_vec(),
        b"{\"session\":\"a\\u0000b\",\"event\":\"message\",\"payload\":{}}".to_vec(),
        b"{\"session\":\"\",\"event\":\"message\",\"payload\":{}}".to_vec(),
        format!("{{\"session\":\"{}\",\"event\":\"message\"}}", "s".repeat(100_000)).into_bytes(),
        vec![0xff, 0xfe, 0x00],
    ] {
        let shown = String::from_utf8_lossy(&body[..body.len().min(80)]).into_owned();
        assert_eq!(hook.signed(body).await, StatusCode::UNAUTHORIZED, "{shown}");
    }
    // Another session's name under this session's key.
    let stolen = bad.replace(&hook.external, &other.external);
    assert_eq!(hook.signed(stolen).await, StatusCode::UNAUTHORIZED);

    for path in [
        "/hooks/waha/01994f3e-6d4f-7cc3-98d5-8f1c1f0a2b3c",
        "/hooks/waha/x",
        "/hooks/waha/%00",
        "/hooks/waha/",
        "/hooks/waha",
    ] {
        let answer = hook.post(path, bad.clone(), Some(&right)).await;
        assert_eq!((answer.status, &answer.body["code"]), (StatusCode::NOT_FOUND, &json!("not_found")), "{path}");
    }
    let huge = hook.message("B2", &"x".repeat(1024 * 1024));
    assert_eq!(hook.signed(huge).await, StatusCode::PAYLOAD_TOO_LARGE);
    let answer = Client::send(hook.client.request(Method::GET, &hook.path)).await;
    assert_eq!((answer.status, answer.header("allow")), (StatusCode::METHOD_NOT_ALLOWED, "POST"));

    hook.arrives("in capitals").await;
    assert_eq!((hook.texts().await.len(), other.texts().await.len()), (3, 0), "nothing of it came in");
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_wahas_versions_differ_in_does_no_harm() {
    let world = World::new().await;
    let node = world.node();
    let tenant = world.tenant(&node.base, "one").await;
    let hook = Hook::of(&world, &node, &tenant).await;
    let sent = tenant.send_text(&hook.session, "+15550100001", "out").await;
    let sent = tenant.message_with(text(&sent, "id"), "read").await;
    let history = tenant.history(text(&sent, "id")).await;
    let id = text(&sent, "waha_message_id");

    for (event, payload) in [
        ("presence.update", json!({"id": CALLER, "presences": []})),
        ("of.a.future.version", json!(null)),
        ("engine.event", json!([1, 2, 3])),
        (
            "message.reaction",
            json!({"id": "false_1@c.us_R", "reaction": {"text": "👍", "messageId": format!("true_1@c.us_{id}")}}),
        ),
        ("message.revoked", json!({"revokedMessageId": "UNKNOWN", "before": null, "after": null})),
        ("session.status", json!({"status": "DANCING"})),
    ] {
        assert_eq!(hook.signed(hook.event("evt_x", event, &payload)).await, StatusCode::OK, "{event}");
    }
    for level in [0, 5, 99, -7, 1, 2] {
        assert_eq!(hook.signed(hook.ack(id, level)).await, StatusCode::OK, "ack {level}");
    }
    let error = hook.ack(id, -1);
    assert_eq!(hook.signed(error).await, StatusCode::OK);

    // Text as people and broken clients write it. JSON's escapes are told from a text that looks like one.
    let texts = [
        ("T1", "with a NUL \0 in it", "with a NUL  in it"),
        ("T2", "a path C:\\u0000\\new", "a path C:\\u0000\\new"),
        ("T3", "\\\\u0000", "\\\\u0000"),
        ("T4", "\u{202e}👩‍👩‍👧‍👦 é\u{301} \u{1}\u{7f}\n\t", "\u{202e}👩‍👩‍👧‍👦 é\u{301} \u{1}\u{7f}\n\t"),
        ("T5", "'; DROP TABLE messages; -- {} $1 %s", "'; DROP TABLE messages; -- {} $1 %s"),
    ];
    for (id, sent, kept) in texts {
        assert_eq!(hook.signed(hook.message(id, sent)).await, StatusCode::OK);
        hook.arrives(kept).await;
    }
    let huge = "é".repeat(300_000);
    assert_eq!(hook.signed(hook.message("T6", &huge)).await, StatusCode::OK);
    hook.arrives(&huge).await;
    // An emoji cut in half, as JavaScript escapes it, and bytes that are no UTF-8.
    let halved = hook.message("T7", "half HERE end").replace("HERE", "\\ud83d");
    assert_eq!(hook.signed(halved).await, StatusCode::OK);
    hook.arrives("half \u{fffd} end").await;
    let pair = hook.message("T8", "pair HERE end").replace("HERE", "\\ud83d\\ude00 \\\\ud83d");
    assert_eq!(hook.signed(pair).await, StatusCode::OK);
    hook.arrives("pair 😀 \\ud83d end").await;

    assert_eq!(hook.texts().await.len(), texts.len() + 3);
    let now = tenant.get(&format!("/v1/messages/{}", text(&sent, "id"))).await.expect(StatusCode::OK);
    assert_eq!((&now["status"], &now["ack"]), (&json!("read"), &json!(3)), "status only moves forward");
    assert_eq!(tenant.history(text(&sent, "id")).await, history);
    let session = tenant.get(&format!("/v1/sessions/{}", hook.session)).await.expect(StatusCode::OK);
    assert_eq!(session["status"], "working");
    assert_eq!(dead(&world).await, 0, "nothing of it is a dead letter");
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn repeats_change_nothing() {
    let world = World::new().await;
    let node = world.node();
    let tenant = world.tenant(&node.base, "one").await;
    let hook = Hook::of(&world, &node, &tenant).await;
    let message = hook.message("D1", "once");
    let bodies = [
        message.clone(),
        message.clone(),
        hook.event("evt_other", "message.any", &inbound("D1", "once")),
        hook.event("evt_other", "message", &inbound("D1", "once")),
        message,
    ];
    let posts = bodies.iter().chain(&bodies).map(|body| hook.signed(body.clone()));
    for status in futures_util::future::join_all(posts).await {
        assert_eq!(status, StatusCode::OK);
    }
    assert_eq!(hook.signed(hook.message("D2", "after")).await, StatusCode::OK);
    hook.arrives("after").await;
    assert_eq!(hook.texts().await, ["after", "once"]);
    eventually(PATIENCE, "both events", async || (events_of(&tenant, "message.received").await >= 2).then_some(()))
        .await;
    assert_eq!(events_of(&tenant, "message.received").await, 2, "one event for each message");

    // The same id in another session is another message.
    let second = Hook::of(&world, &node, &world.tenant(&node.base, "two").await).await;
    assert_eq!(second.signed(second.message("D1", "elsewhere")).await, StatusCode::OK);
    second.arrives("elsewhere").await;
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acks_may_come_in_any_order() {
    let world = World::new().await;
    let node = world.node();
    let tenant = world.tenant(&node.base, "one").await;
    let hook = Hook::of(&world, &node, &tenant).await;
    let sent = tenant.send_text(&hook.session, NEVER_ACKED, "out").await;
    let sent = eventually(PATIENCE, "the message to have left", async || {
        let message = tenant.get(&format!("/v1/messages/{}", text(&sent, "id"))).await.body;
        (message["waha_message_id"].is_string() && message["attempts"] == 1).then_some(message)
    })
    .await;
    let (id, bare) = (text(&sent, "id"), text(&sent, "waha_message_id"));
    for level in [3, 2, 1, 3] {
        assert_eq!(hook.signed(hook.ack(bare, level)).await, StatusCode::OK);
    }
    tenant.message_with(id, "read").await;
    assert_eq!(hook.signed(hook.message("E1", "behind it")).await, StatusCode::OK);
    hook.arrives("behind it").await;
    assert_eq!(tenant.history(id).await, ["queued", "sending", "sent", "delivered", "read"]);
    for kind in ["message.sent", "message.delivered", "message.read"] {
        assert_eq!(events_of(&tenant, kind).await, 1, "{kind}");
    }

    // Before the message is known: kept, and somebody else's ack claims nothing.
    assert_eq!(hook.signed(hook.ack("3EB0NOBODYKNOWSTHIS", 3)).await, StatusCode::OK);
    assert_eq!(dead(&world).await, 0);
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_applied_is_kept_aside_and_holds_nothing_up() {
    let world = World::new().await;
    let node = world.node();
    let tenant = world.tenant(&node.base, "one").await;
    let hook = Hook::of(&world, &node, &tenant).await;
    let mut without_id = inbound("X", "no id");
    without_id.as_object_mut().unwrap().remove("id");
    let posts = [
        hook.message("F1", "first"),
        hook.event("evt_1", "message.any", &without_id),
        hook.message("F2", "second"),
        hook.event("evt_2", "message.ack", &json!({"ack": 2})),
        hook.event("evt_3", "session.status", &json!({})),
        hook.event("evt_4", "message.any", &json!("text")),
        hook.message("F3", "third"),
    ];
    for status in futures_util::future::join_all(posts.iter().map(|body| hook.signed(body.clone()))).await {
        assert_eq!(status, StatusCode::OK);
    }
    for body in ["first", "second", "third"] {
        hook.arrives(body).await;
    }
    eventually(PATIENCE, "the dead letters", async || (dead(&world).await == 4).then_some(())).await;
    assert_eq!(hook.texts().await.len(), 3);
    // The same once more, as WAHA repeats itself: no more letters.
    assert_eq!(hook.signed(posts[1].clone()).await, StatusCode::OK);
    assert_eq!(hook.signed(hook.message("F4", "fourth")).await, StatusCode::OK);
    hook.arrives("fourth").await;
    assert_eq!(dead(&world).await, 4);

    // What is not known is kept too, and an operator sees what there is, without what it says.
    assert_eq!(
        hook.signed(hook.event("evt_5", "newsletter.update", &json!({"secret": "words"}))).await,
        StatusCode::OK
    );
    eventually(PATIENCE, "the unknown one", async || (unknown(&world).await == 1).then_some(())).await;
    let settings = world.settings(1);
    let listed = crate::cli::good(&["admin", "dead-letters"], &settings).await;
    assert_eq!(listed.lines().count(), 5, "{listed}");
    assert!(
        listed.contains("event=newsletter.update") && !listed.contains("secret") && !listed.contains("no id"),
        "{listed}"
    );
    let unread = crate::cli::good(&["admin", "dead-letters", "--reason", "unreadable"], &settings).await;
    assert_eq!(unread.lines().count(), 4, "{unread}");

    // A fix (here of the letter, since the code stays as it is), and it is applied after all.
    let client = world.db.connect().await;
    let fixed = hook.message("F5", "fixed");
    let letter: String = client
        .query_one("UPDATE inbound_dead_letters SET body = $1 WHERE body = $2 RETURNING id::text", &[&fixed, &posts[1]])
        .await
        .unwrap()
        .get(0);
    let (code, output) = crate::cli::run(&["admin", "reapply"], &settings).await;
    assert!(code != 0 && output.contains("--id, --reason or --all"), "{output}");
    let output = crate::cli::good(&["admin", "reapply", "--id", &letter], &settings).await;
    assert!(output.contains("1 applied, 0 left"), "{output}");
    hook.arrives("fixed").await;
    let (code, output) = crate::cli::run(&["admin", "reapply", "--all"], &settings).await;
    assert!(code != 0 && output.contains("0 applied, 4 left"), "{output}");
    let removed = crate::cli::good(&["admin", "dead-letters", "remove", "--reason", "unreadable"], &settings).await;
    assert!(removed.contains("3 removed"), "{removed}");
    assert_eq!((dead(&world).await, unknown(&world).await), (0, 1));
    node.node.stop().await;
}

async fn proxied_broker() -> (TcpProxy, String) {
    let direct = url::Url::parse(&amqp_url()).unwrap();
    let proxy = TcpProxy::start(format!("{}:{}", direct.host_str().unwrap(), direct.port().unwrap_or(5672))).await;
    let mut through = direct;
    through.set_host(Some("127.0.0.1")).unwrap();
    through.set_port(Some(proxy.addr().port())).unwrap();
    (proxy, through.to_string())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_are_kept_while_the_broker_the_database_or_both_are_away() {
    let (broker, through) = proxied_broker().await;
    let mut world = World::new().await;
    world.amqp = through;
    let database = TcpProxy::start(world.db.server()).await;
    let url = world.db.config_through(database.addr()).url;
    let node = world.node_with(&switchboard::serve::Role::ALL, |config| config.database.url = url);
    let tenant = world.tenant(&node.base, "one").await;
    let hook = Hook::of(&world, &node, &tenant).await;
    assert_eq!(hook.signed(hook.message("G0", "all is well")).await, StatusCode::OK);
    hook.arrives("all is well").await;
    let readiness = async || {
        let answer = tenant.get("/readyz").await;
        (answer.status.as_u16(), text(&answer.body, "status").to_owned())
    };

    // Without the broker: the spool. One of them cannot be applied, and holds the others up no more than in the queue.
    broker.cut();
    node.app.broker.state().wait_for(|state| *state != LinkState::Connected).await.unwrap();
    eventually(PATIENCE, "readiness to say it", async || (readiness().await.1 == "degraded").then_some(())).await;
    assert_eq!(hook.signed(hook.message("G1", "spooled")).await, StatusCode::OK);
    assert_eq!(hook.signed(hook.event("evt_1", "message.any", &json!({"body": "no id"}))).await, StatusCode::OK);
    assert_eq!(hook.signed(hook.message("G2", "spooled behind it")).await, StatusCode::OK);
    hook.arrives("spooled").await;
    hook.arrives("spooled behind it").await;
    broker.restore();
    node.app.broker.state().wait_for(|state| *state == LinkState::Connected).await.unwrap();
    eventually(PATIENCE, "what cannot be applied to be with the dead letters", async || {
        (dead(&world).await == 1).then_some(())
    })
    .await;

    // Without the database: the broker. The node knows the session by now.
    assert_eq!(hook.signed(hook.message("G3", "again")).await, StatusCode::OK);
    hook.arrives("again").await;
    database.cut();
    eventually(PATIENCE, "readiness to say it", async || (readiness().await.0 == 503).then_some(())).await;
    assert_eq!(readiness().await.1, "unavailable");
    tenant.get("/healthz").await.expect(StatusCode::OK);
    for n in 0..5 {
        let began = Instant::now();
        assert_eq!(hook.signed(hook.message(&format!("H{n}"), &format!("held {n}"))).await, StatusCode::OK);
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    }

    // Without both, WAHA has to come again, and learns it before it gives up waiting.
    broker.cut();
    node.app.broker.state().wait_for(|state| *state != LinkState::Connected).await.unwrap();
    let began = Instant::now();
    let body = hook.message("I1", "nowhere to go");
    let signature = hook.signature(body.as_bytes());
    let answer = hook.post(&hook.path, body.clone(), Some(&signature)).await;
    assert_eq!((answer.status, &answer.body["code"]), (StatusCode::SERVICE_UNAVAILABLE, &json!("unavailable")));
    assert!(!answer.header("retry-after").is_empty());
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());

    broker.restore();
    database.restore();
    for n in 0..5 {
        hook.arrives(&format!("held {n}")).await;
    }
    eventually(PATIENCE, "readiness to come back", async || (readiness().await.1 == "ok").then_some(())).await;
    assert_eq!(hook.signed(body).await, StatusCode::OK);
    hook.arrives("nowhere to go").await;
    assert_eq!(hook.texts().await.len(), 10, "each once");
    node.node.stop().await;
}
