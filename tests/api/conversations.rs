//! `/v1/conversations`, as WAHA's webhooks fill it.

use hmac::{Hmac, KeyInit, Mac};
use reqwest::{Method, StatusCode};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use sha2::Sha512;
use switchboard::domain::clock::Clock;

use crate::support::world::{Client, Inside, PATIENCE, text};
use crate::support::{World, eventually};

const ANA: &str = "15550107001@c.us";
const ANA_HIDDEN: &str = "77007001@lid";
const GROUP: &str = "120363000000007001@g.us";

/// A session, and what WAHA posts about it.
pub struct Phone {
    client: Client,
    hook: String,
    pub session: String,
    pub external: String,
    key: String,
}

/// A message on its way in.
pub struct Incoming<'a> {
    phone: &'a Phone,
    payload: Value,
}

impl Phone {
    pub async fn of(world: &World, node: &Inside, tenant: &Client, name: &str) -> Self {
        let (session, external) = tenant.session(name).await;
        let servers = world.platform(&node.base).get("/v1/waha-servers").await.expect(StatusCode::OK);
        let hook = format!("/hooks/waha/{}", text(&servers["data"][0], "id"));
        let key = world.simulator.control().webhook_key(&external).unwrap().expect("a key in the configuration");
        Self { client: tenant.clone(), hook, session, external, key: key.expose_secret().to_owned() }
    }

    /// A message `id` of `from`, now.
    pub fn text(&self, id: &str, from: &str, body: &str) -> Incoming<'_> {
        let payload = json!({"id": format!("false_{from}_{id}"), "timestamp": Clock::running().now().timestamp(), "from": from,
            "fromMe": false, "to": "15550100000@c.us", "body": body, "hasMedia": false, "ack": 1, "ackName": "SERVER",
            "_data": {"key": {"id": id, "remoteJid": from, "fromMe": false}}});
        Incoming { phone: self, payload }
    }

    async fn post(&self, event: &str, payload: &Value) {
        let body = json!({"id": format!("evt_{event}_{}", payload["id"]), "timestamp": Clock::running().now().timestamp_millis(),
            "event": event, "session": self.external, "me": {"id": "15550100000@c.us"}, "payload": payload, "engine": "NOWEB"})
        .to_string();
        let mac = Hmac::<Sha512>::new_from_slice(self.key.as_bytes()).unwrap().chain_update(&body);
        let request = self.client.request(Method::POST, &self.hook).header("content-type", "application/json");
        let request = request.header("x-webhook-hmac", hex::encode(mac.finalize().into_bytes()));
        assert_eq!(Client::send(request.body(body)).await.status, StatusCode::OK);
    }
}

impl Incoming<'_> {
    pub fn named(mut self, name: &str) -> Self {
        self.payload["_data"]["pushName"] = json!(name);
        self
    }

    /// The sender's other id is told along.
    pub fn also(mut self, other: &str) -> Self {
        self.payload["_data"]["key"]["remoteJidAlt"] = json!(other);
        self
    }

    /// Written in a group by `sender`.
    pub fn by(mut self, sender: &str) -> Self {
        self.payload["participant"] = json!(sender);
        self
    }

    /// Written so many seconds from now.
    pub fn at(mut self, seconds: i64) -> Self {
        self.payload["timestamp"] = json!(Clock::running().now().timestamp() + seconds);
        self
    }

    pub async fn post(self) {
        self.phone.post("message.any", &self.payload).await;
    }
}

/// The conversations, once their message counts are these, in order.
async fn conversations(client: &Client, query: &str, counts: &[i64]) -> Vec<Value> {
    eventually(PATIENCE, &format!("conversations{query} of {counts:?} messages"), async || {
        let list = client.get(&format!("/v1/conversations{query}")).await.expect(StatusCode::OK);
        let data = list["data"].as_array().unwrap().clone();
        let is: Vec<i64> = data.iter().map(|row| row["message_count"].as_i64().unwrap()).collect();
        (is == counts).then_some(data)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_person_under_two_ids_has_one_conversation() {
    let world = World::new().await;
    let node = world.node();
    let tenant = world.tenant(&node.base, "one").await;
    let phone = Phone::of(&world, &node, &tenant, "one").await;
    phone.text("A1", ANA_HIDDEN, "first, hidden").at(-300).post().await;
    conversations(&tenant, "", &[1]).await;
    phone.text("A2", ANA, "then by number").also(ANA_HIDDEN).named("Ana").at(-200).post().await;
    phone.text("A3", ANA_HIDDEN, "and hidden again").at(-100).post().await;
    let sent = tenant.send_text(&phone.session, "+15550107001", "an answer").await;
    tenant.message_with(text(&sent, "id"), "read").await;
    let listed = conversations(&tenant, "", &[4]).await;
    let conversation = &listed[0];
    assert_eq!((text(conversation, "kind"), text(conversation, "name")), ("direct", "Ana"));
    assert_eq!(
        (text(&conversation["contact"], "phone"), text(&conversation["contact"], "lid")),
        ("+15550107001", ANA_HIDDEN)
    );
    assert_eq!((&conversation["unread_count"], text(conversation, "last_message_id")), (&json!(3), text(&sent, "id")));
    let contacts = tenant.get("/v1/contacts").await.expect(StatusCode::OK);
    assert_eq!(contacts["data"].as_array().unwrap().len(), 1);

    // Its messages, whichever id they came under, page by page.
    let path = format!("/v1/conversations/{}/messages", text(conversation, "id"));
    let (mut bodies, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = tenant.get(&format!("{path}?limit=1{cursor}")).await.expect(StatusCode::OK);
        bodies.extend(page["data"].as_array().unwrap().iter().map(|message| text(message, "body").to_owned()));
        let Some(next) = page["next_cursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    assert_eq!(bodies, ["an answer", "and hidden again", "then by number", "first, hidden"]);
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conversations_are_listed_by_their_latest_message_and_narrowed() {
    let world = World::new().await;
    let node = world.node();
    let tenant = world.tenant(&node.base, "one").await;
    let phone = Phone::of(&world, &node, &tenant, "one").await;
    let second = Phone::of(&world, &node, &tenant, "two").await;
    phone.text("A1", ANA, "x").at(-50).post().await;
    phone.text("A2", ANA, "x").at(-10).post().await;
    phone.text("G1", GROUP, "x").by("15550107002@c.us").named("Ben").at(-30).post().await;
    phone.text("G2", GROUP, "x").by(ANA).at(-20).post().await;
    phone.text("G3", GROUP, "x").by("15550107002@c.us").at(-25).post().await;
    second.text("A1", ANA, "x").at(-5).post().await;
    let listed = conversations(&tenant, "", &[1, 2, 3]).await;
    assert_eq!(listed[0]["contact_id"], listed[1]["contact_id"], "one person, two sessions");
    let group = text(&listed[2], "id").to_owned();

    conversations(&tenant, &format!("?session_id={}", phone.session), &[2, 3]).await;
    conversations(&tenant, "?kind=group", &[3]).await;
    conversations(&tenant, &format!("?contact_id={}", text(&listed[0], "contact_id")), &[1, 2]).await;
    conversations(&tenant, "?is_active=false", &[]).await;
    conversations(&tenant, "?unread=false", &[]).await;
    for bad in ["?kind=x", "?session_id=x", "?unread=x", "?limit=0"] {
        tenant.get(&format!("/v1/conversations{bad}")).await.expect(StatusCode::UNPROCESSABLE_ENTITY);
    }
    let page = tenant.get("/v1/conversations?limit=2").await.expect(StatusCode::OK);
    conversations(&tenant, &format!("?limit=2&cursor={}", text(&page, "next_cursor")), &[3]).await;

    let shown = tenant.get(&format!("/v1/conversations/{group}")).await.expect(StatusCode::OK);
    assert_eq!((&shown["contact"], text(&shown, "chat_id")), (&Value::Null, GROUP));
    let participants = shown["participants"].as_array().unwrap();
    let of_ben = participants.iter().find(|person| person["wa_id"] == "15550107002@c.us").unwrap();
    assert_eq!((participants.len(), text(of_ben, "name"), text(of_ben, "role")), (2, "Ben", "participant"));

    // Put aside, until somebody writes again.
    let path = format!("/v1/conversations/{group}");
    let put = |active: bool| Client::send(tenant.request(Method::PATCH, &path).json(&json!({"is_active": active})));
    assert_eq!(put(false).await.expect(StatusCode::OK)["is_active"], json!(false));
    conversations(&tenant, "?is_active=false", &[3]).await;
    let stale = tenant.request(Method::PATCH, &path).header("if-match", "\"1\"").json(&json!({"is_active": true}));
    Client::send(stale).await.expect(StatusCode::PRECONDITION_FAILED);
    phone.text("G4", GROUP, "x").by(ANA).post().await;
    conversations(&tenant, "?is_active=true", &[4, 1, 2]).await;
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reading_is_noted_and_whatsapp_told_where_the_session_works() {
    let world = World::new().await;
    let node = world.node();
    let tenant = world.tenant(&node.base, "one").await;
    let phone = Phone::of(&world, &node, &tenant, "one").await;
    for number in 1..=3 {
        phone.text(&format!("A{number}"), ANA, "x").at(number - 10).post().await;
    }
    let listed = conversations(&tenant, "?unread=true", &[3]).await;
    assert_eq!(listed[0]["unread_count"], json!(3));
    let id = text(&listed[0], "id").to_owned();
    // One message that is marked by itself takes those before it along.
    let messages = tenant.get(&format!("/v1/conversations/{id}/messages")).await.expect(StatusCode::OK);
    let second = text(&messages["data"][1], "id");
    tenant.post(&format!("/v1/messages/{second}/seen"), &Value::Null).await.expect(StatusCode::OK);
    let shown = tenant.get(&format!("/v1/conversations/{id}")).await.expect(StatusCode::OK);
    assert_eq!(shown["unread_count"], json!(1));

    let path = format!("/v1/conversations/{id}/read");
    for _again in 0..2 {
        let read = tenant.post(&path, &Value::Null).await.expect(StatusCode::OK);
        assert_eq!((&read["unread_count"], &read["whatsapp_told"]), (&json!(0), &json!(true)));
        assert_eq!(read["last_read_at"], read["last_message_at"]);
    }
    let seen = world.simulator.control().ledger().calls.iter().filter(|call| call.endpoint == "sendSeen").count();
    assert_eq!(seen, 2, "the single one, and the rest");
    conversations(&tenant, "?unread=true", &[]).await;

    // What comes in later is unread, what is found from before is not.
    phone.text("A0", ANA, "x").at(-60).post().await;
    conversations(&tenant, "?unread=false", &[4]).await;
    phone.text("A4", ANA, "x").post().await;
    conversations(&tenant, "?unread=true", &[5]).await;
    tenant.post(&format!("/v1/sessions/{}/stop", phone.session), &Value::Null).await.expect(StatusCode::ACCEPTED);
    eventually(PATIENCE, "the session to be stopped", async || {
        let session = tenant.get(&format!("/v1/sessions/{}", phone.session)).await.body;
        (session["status"] == "stopped").then_some(())
    })
    .await;
    let read = tenant.post(&path, &Value::Null).await.expect(StatusCode::OK);
    assert_eq!((&read["unread_count"], &read["whatsapp_told"]), (&json!(0), &json!(false)));
    assert!(text(&read, "whatsapp_detail").contains("stopped"), "{read:#}");
    node.node.stop().await;
}
