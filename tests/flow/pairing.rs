//! Pairing, from the first code to the last and back, on a clock that the test moves.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use standardwebhooks::Webhook;
use switchboard::domain::clock::Clock;
use switchboard::simulator::{Engine, SimulatorConfig};

use crate::support::world::{Client, Inside, PATIENCE, text};
use crate::support::{Receiver, Stream, World, eventually};

/// A session that is being paired, and the clock that all of it is on.
pub struct Pairing {
    pub world: World,
    pub node: Inside,
    pub tenant: Client,
    pub clock: Clock,
    pub id: String,
    pub external: String,
    pub path: String,
}

/// A clock that stands, some minutes ago: what is signed with it while it is moved is still of these minutes.
pub fn standing() -> Clock {
    Clock::manual(Clock::running().now() - TimeDelta::minutes(2))
}

impl Pairing {
    pub async fn begin(engine: Engine) -> Self {
        let clock = standing();
        let world = World::on(&clock, SimulatorConfig { engine, ..SimulatorConfig::default() }).await;
        let node = world.node();
        let tenant = world.tenant(&node.base, "one").await;
        let created = tenant.post("/v1/sessions", &json!({"name": "main"})).await.expect(StatusCode::CREATED);
        let (id, external) = (text(&created, "id").to_owned(), text(&created, "external_session_id").to_owned());
        let path = format!("/v1/sessions/{id}");
        Self { world, node, tenant, clock, id, external, path }
    }

    pub async fn session(&self) -> Value {
        self.tenant.get(&self.path).await.expect(StatusCode::OK)
    }

    /// Moves the clock until the session is as `wanted`, and answers it.
    pub async fn moved_until(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        eventually(PATIENCE, what, async || {
            let session = self.session().await;
            if wanted(&session) {
                return Some(session);
            }
            self.clock.advance(Duration::from_millis(250));
            None
        })
        .await
    }

    /// Moves the clock until the code of this number is on show.
    pub async fn rotation(&self, number: i64) -> Value {
        self.moved_until(&format!("code {number}"), |session| session["pairing"]["rotation"] == number).await
    }

    pub async fn status(&self, status: &str) -> Value {
        self.moved_until(status, |session| session["status"] == status).await
    }

    pub async fn qr(&self) -> Value {
        self.tenant.get(&format!("{}/qr", self.path)).await.expect(StatusCode::OK)
    }

    /// Moves the clock over the life of the code on show, but for a moment.
    pub fn nearly_expire(&self, code: &Value) {
        let left = time(code, "expires_at") - self.clock.now() - TimeDelta::milliseconds(500);
        self.clock.advance(left.to_std().unwrap_or_default());
    }
}

/// But for a step of the clock or two, between a poll that finds a code and the report that tells when it came about.
fn near(one: DateTime<Utc>, other: DateTime<Utc>) -> bool {
    (one - other).abs() <= TimeDelta::seconds(2)
}

pub fn time(value: &Value, name: &str) -> DateTime<Utc> {
    text(value, name).parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn six_codes_expire_each_is_told_and_new_ones_are_to_be_had() {
    let pairing = Pairing::begin(Engine::Noweb).await;
    let tenant = &pairing.tenant;
    let receiver = Receiver::start();
    let endpoint = json!({"url": receiver.url("/hook"), "event_types": ["session.qr"]});
    let endpoint = tenant.post("/v1/webhook-endpoints", &endpoint).await.expect(StatusCode::CREATED);

    let mut values: Vec<String> = Vec::new();
    let mut expiries = Vec::new();
    for number in 1..=6 {
        let session = pairing.rotation(number).await;
        assert_eq!((&session["status"], &session["pairing"]["step"]), (&json!("scan_qr"), &json!("qr")));
        assert_eq!(session["pairing"]["of"], 6);
        let code = pairing.qr().await;
        assert!(near(time(&code, "expires_at"), time(&session["pairing"], "expires_at")));
        let value = text(&code, "value").to_owned();
        assert!(!values.contains(&value), "another code each time");
        values.push(value);
        expiries.push(time(&code, "expires_at"));
        pairing.nearly_expire(&code);
        assert_eq!(pairing.qr().await["value"], code["value"], "it holds until it expires");
    }
    let lives: Vec<i64> = expiries.windows(2).map(|pair| (pair[1] - pair[0]).num_seconds()).collect();
    assert!(lives.iter().all(|life| (18..=22).contains(life)), "{lives:?}");

    let failed = pairing.status("failed").await;
    assert!(text(&failed, "error_message").contains("Nobody scanned a QR code in time"), "{failed}");
    assert!(failed.get("pairing").is_none());
    let refused = tenant.get(&format!("{}/qr", pairing.path)).await.expect(StatusCode::CONFLICT);
    assert_eq!(refused["code"], "conflict");

    // Started again, it shows new codes, and the phone gets its turn.
    tenant.post(&format!("{}/start", pairing.path), &json!({})).await.expect(StatusCode::ACCEPTED);
    let session = pairing.rotation(1).await;
    assert_eq!(session["error_message"], Value::Null);
    let value = text(&pairing.qr().await, "value").to_owned();
    assert!(!values.contains(&value));
    values.push(value);
    pairing.world.simulator.control().scan(&pairing.external).unwrap();
    let working = pairing.status("working").await;
    assert!(working.get("pairing").is_none());

    // Each code is one event, which says everything but what the code says.
    let list = eventually(PATIENCE, "seven events", async || {
        let list = tenant.get("/v1/events?type=session.qr").await.expect(StatusCode::OK);
        (list["data"].as_array().unwrap().len() >= 7).then_some(list)
    })
    .await;
    let told: Vec<&Value> = list["data"].as_array().unwrap().iter().map(|event| &event["data"]).collect();
    let numbers: Vec<i64> = told.iter().map(|data| data["qr"]["rotation"].as_i64().unwrap()).collect();
    assert_eq!(numbers, [1, 2, 3, 4, 5, 6, 1]);
    for (data, expires_at) in told.iter().zip(&expiries) {
        assert_eq!(
            (&data["id"], &data["status"], &data["qr"]["of"]),
            (&json!(pairing.id), &json!("scan_qr"), &json!(6))
        );
        assert!(near(time(&data["qr"], "expires_at"), *expires_at));
        assert_eq!(data["qr"].as_object().unwrap().len(), 3);
    }
    let received = receiver.wait_for(7).await;
    let verifier = Webhook::new(text(&endpoint, "secret")).unwrap();
    for webhook in &received {
        let headers: reqwest::header::HeaderMap =
            webhook.headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        verifier.verify(&webhook.body, &headers).unwrap();
        let body = String::from_utf8_lossy(&webhook.body);
        assert!(values.iter().all(|value| !body.contains(value.as_str())));
    }
    let client = pairing.world.db.connect().await;
    let kept = "SELECT (SELECT count(*) FROM events WHERE position($1 in data) > 0)
                     + (SELECT count(*) FROM waha_sessions s WHERE position($1 in s::text) > 0)";
    for value in &values {
        let count: i64 = client.query_one(kept, &[value]).await.unwrap().get(0);
        assert_eq!(count, 0, "a code is kept nowhere");
    }

    // Another end is told as another one.
    pairing.world.simulator.control().phone_logout(&pairing.external).unwrap();
    let ended = pairing.status("failed").await;
    assert!(text(&ended, "error_message").contains("logged out"), "{ended}");
    pairing.node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_live_stream_carries_the_code_to_those_who_may_see_it() {
    let pairing = Pairing::begin(Engine::Noweb).await;
    let Pairing { world, node, tenant, .. } = &pairing;
    let platform = world.platform(&node.base);
    let owner = text(&pairing.session().await, "tenant_id").to_owned();
    let key = async |scopes: &[&str]| {
        let path = format!("/v1/tenants/{owner}/api-keys");
        platform.post(&path, &json!({"name": "k", "scopes": scopes})).await.expect(StatusCode::CREATED)
    };
    let blind = key(&["messages:read"]).await;
    let blind_key = tenant.with_key(text(&blind, "key"));
    let stream = |client: &Client, path: &str| client.request(Method::GET, path);
    let nobody = tenant.with_key(text(&key(&["sessions:read"]).await, "key"));
    assert_eq!(nobody.get("/v1/events/stream").await.status, StatusCode::FORBIDDEN);
    let mut seeing = Stream::open(stream(tenant, "/v1/events/stream?type=session.*")).await;
    let mut unseeing = Stream::open(stream(&blind_key, "/v1/events/stream")).await;
    let other = world.tenant(&node.base, "two").await;
    let mut others = Stream::open(stream(&other, "/v1/events/stream")).await;

    pairing.rotation(1).await;
    let shown = seeing.wait("the first code", |frame| frame.event == "session.qr").await;
    let value = pairing.qr().await["value"].clone();
    let event = shown.json();
    assert_eq!((&event["type"], text(&event, "id")), (&json!("session.qr"), shown.id.as_str()));
    assert_eq!((&event["data"]["qr"]["value"], &event["data"]["qr"]["rotation"]), (&value, &json!(1)));
    let hidden = unseeing.wait("the first code", |frame| frame.event == "session.qr").await;
    assert_eq!(hidden.id, shown.id);
    assert!(hidden.json()["data"]["qr"].get("value").is_none());

    // Whoever comes again with the last event it saw goes on behind it; a code of the past is not shown.
    drop(seeing);
    pairing.rotation(2).await;
    pairing.rotation(3).await;
    let again = stream(tenant, "/v1/events/stream?type=session.qr").header("Last-Event-ID", &shown.id);
    let mut again = Stream::open(again).await;
    let (second, third) = (again.next().await.unwrap().json(), again.next().await.unwrap().json());
    assert_eq!((&second["data"]["qr"]["rotation"], second["data"]["qr"].get("value")), (&json!(2), None));
    assert_eq!(third["data"]["qr"]["value"], pairing.qr().await["value"]);

    // WAHA does not answer: the event comes all the same.
    world.simulator.control().add_fault(switchboard::simulator::FaultRule::always(
        "/api/{session}/auth/qr",
        switchboard::simulator::Fault::HangWithoutSend,
    ));
    eventually(PATIENCE, "the fourth code", async || {
        pairing.clock.advance(Duration::from_millis(250));
        (pairing.session().await["pairing"]["rotation"] == 4).then_some(())
    })
    .await;
    let fourth = again.wait("the fourth code", |frame| frame.event == "session.qr").await.json();
    assert_eq!((&fourth["data"]["qr"]["rotation"], fourth["data"]["qr"].get("value")), (&json!(4), None));
    world.simulator.control().clear_faults();

    // A key that is revoked ends its streams; the other tenant heard nothing of all this.
    let revoked = tenant.request(Method::DELETE, &format!("/v1/api-keys/{}", text(&blind, "id")));
    assert!(Client::send(revoked).await.status.is_success());
    while unseeing.next().await.is_some() {}
    assert_eq!(other.get("/v1/events").await.expect(StatusCode::OK)["data"], json!([]));
    let bad = stream(tenant, "/v1/events/stream").header("Last-Event-ID", "x");
    assert_eq!(Client::send(bad).await.status, StatusCode::UNPROCESSABLE_ENTITY);
    // A node that stops ends the rest.
    let ended = tokio::spawn(async move { while others.next().await.is_some() {} });
    pairing.node.node.stop().await;
    ended.await.unwrap();
}

fn assertion(challenge: &Value, origin: &str) -> Value {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let said = json!({"type": "webauthn.get", "challenge": challenge["challenge"], "origin": origin}).to_string();
    json!({"credential": {"id": "c2ltdWxhdGVk", "rawId": "c2ltdWxhdGVk", "type": "public-key", "clientExtensionResults": {},
        "response": {"clientDataJSON": URL_SAFE_NO_PAD.encode(said), "authenticatorData": "AA", "signature": "AA"}}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn passkeys_are_passed_through() {
    let pairing = Pairing::begin(Engine::Gows).await;
    let Pairing { world, tenant, path, .. } = &pairing;
    let passkey = format!("{path}/passkey");
    pairing.rotation(1).await;
    assert_eq!(tenant.get(&passkey).await.expect(StatusCode::CONFLICT)["code"], "conflict");
    world.simulator.control().require_passkey(&pairing.external, true).unwrap();
    world.simulator.control().scan(&pairing.external).unwrap();
    let waiting = pairing.moved_until("the passkey", |session| session["pairing"]["step"] == "passkey").await;
    assert_eq!((&waiting["status"], waiting["pairing"].as_object().unwrap().len()), (&json!("scan_qr"), 1));
    assert_eq!(tenant.get(&format!("{path}/qr")).await.status, StatusCode::CONFLICT);
    let code = tenant.post(&format!("{path}/pairing-code"), &json!({"phone": "+15550100001"})).await;
    assert_eq!(code.status, StatusCode::CONFLICT);

    let asked = tenant.get(&passkey).await;
    assert_eq!(asked.header("cache-control"), "no-store");
    let asked = asked.expect(StatusCode::OK);
    assert_eq!((&asked["step"], &asked["challenge"]["rpId"]), (&json!("passkey"), &json!("web.whatsapp.com")));
    assert_eq!(tenant.post(&format!("{passkey}/confirm"), &json!({})).await.status, StatusCode::CONFLICT);
    let early = tenant.post(&passkey, &json!({"credential": {}})).await.expect(StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(early["errors"][0]["field"], "credential.id");
    let elsewhere = assertion(&asked["challenge"], "https://phishing.example");
    assert_eq!(tenant.post(&passkey, &elsewhere).await.status, StatusCode::CONFLICT);
    let good = assertion(&asked["challenge"], "https://web.whatsapp.com");
    tenant.post(&passkey, &good).await.expect(StatusCode::ACCEPTED);

    let step = "passkey_confirmation";
    pairing.moved_until(step, |session| session["pairing"]["step"] == step).await;
    let asked = tenant.get(&passkey).await.expect(StatusCode::OK);
    assert_eq!((&asked["step"], text(&asked, "code").len()), (&json!(step), 9));
    tenant.post(&format!("{passkey}/confirm"), &json!({})).await.expect(StatusCode::ACCEPTED);
    pairing.status("working").await;

    // The steps were told, with what they are and without what they say.
    let list = eventually(PATIENCE, "the events", async || {
        let list = tenant.get("/v1/events?type=session.status&limit=200").await.expect(StatusCode::OK);
        let last = list["data"].as_array().unwrap().last().cloned().unwrap_or_default();
        (last["data"]["status"] == "working").then_some(list)
    })
    .await;
    let steps: Vec<&str> =
        list["data"].as_array().unwrap().iter().filter_map(|event| event["data"]["pairing"]["step"].as_str()).collect();
    assert_eq!(steps, ["qr", "passkey", step]);
    assert!(!list.to_string().contains(text(&asked, "code")));
    pairing.node.node.stop().await;
}
