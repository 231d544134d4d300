//! The simulator against the captures and the contract: it has to be a WAHA before it can judge the gateway.

mod answers;
mod around;
mod brakes;
mod faults;
mod kinds;
mod media_of_people;
mod messages;
mod openapi;
mod people;
mod receiver;
mod sessions;
mod troubles;
mod two_readings;
mod webhooks;

use reqwest::{Client, Method, RequestBuilder, Response};
use secrecy::SecretString;
use serde_json::{Value, json};
use switchboard::simulator::{Engine, Simulator, SimulatorConfig};

use self::receiver::Receiver;

/// The key every test's simulator wants.
pub const KEY: &str = "test-key";

/// A simulator, a client that has its key, and a receiver of its webhooks.
pub struct Bench {
    pub simulator: Simulator,
    pub receiver: Receiver,
    client: Client,
}

impl Bench {
    /// Fifty times as fast as WAHA.
    pub async fn start(engine: Engine) -> Self {
        Self::start_with(SimulatorConfig { engine, time_scale: 50.0, ..config() }).await
    }

    pub async fn start_with(config: SimulatorConfig) -> Self {
        let simulator = Simulator::start(config).await.unwrap();
        let client = Client::builder().no_proxy().build().unwrap();
        Self { simulator, receiver: Receiver::start().await, client }
    }

    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.simulator.url())).header("X-Api-Key", KEY)
    }

    pub async fn get(&self, path: &str) -> Response {
        self.request(Method::GET, path).send().await.unwrap()
    }

    pub async fn post(&self, path: &str, body: &Value) -> Response {
        self.request(Method::POST, path).json(body).send().await.unwrap()
    }

    /// A session with every event posted to the receiver, not started.
    pub async fn create(&self, name: &str) {
        let body = json!({"name": name, "start": false, "config": self.session_config()});
        assert_eq!(self.post("/api/sessions", &body).await.status(), 201);
    }

    pub fn session_config(&self) -> Value {
        json!({
            "metadata": {"tenant": "t1"},
            "noweb": {"store": {"enabled": true, "fullSync": false}},
            "webjs": {"tagsEventsOn": true},
            "webhooks": [{
                "url": self.receiver.url(),
                "events": ["session.status", "message", "message.*", "poll.*", "group.*", "call.*", "label.*", "presence.update"],
                "hmac": {"key": "hook-key"},
                "retries": {"policy": "constant", "delaySeconds": 1, "attempts": 5},
                "customHeaders": [{"name": "X-Custom", "value": "abc"}],
            }],
        })
    }

    /// The same, started and paired.
    pub async fn working(&self, name: &str) {
        self.create(name).await;
        assert_eq!(self.post(&format!("/api/sessions/{name}/start"), &Value::Null).await.status(), 201);
        let shows_code = |hook: &receiver::Hook| hook.status() == Some("SCAN_QR_CODE") && hook.body["session"] == name;
        self.receiver.wait("a QR code", shows_code).await;
        self.simulator.control().scan(name).unwrap();
        self.simulator.control().working(name).await;
    }

    /// Sessions that are WORKING at once, with every event posted to the receiver.
    pub async fn fleet(&self, names: &[&str]) {
        let session = |(n, name): (usize, &&str)| json!({"name": name, "number": format!("1555030{n:04}"), "config": self.session_config()});
        let sessions: Vec<Value> = names.iter().enumerate().map(session).collect();
        assert!(self.post("/_simulator/fleet", &json!({"sessions": sessions})).await.status().is_success());
    }

    /// A text with a message id of our own.
    pub async fn send(&self, session: &str, number: &str, text: &str, id: &str) -> Response {
        let body = json!({"session": session, "chatId": format!("{number}@c.us"), "text": text, "id": id});
        self.post("/api/sendText", &body).await
    }
}

pub fn config() -> SimulatorConfig {
    SimulatorConfig { api_key: SecretString::from(KEY), ..SimulatorConfig::default() }
}

/// Serves `bytes` as `content_type` until the process ends; the answer is its URL, and anything below it is a 404.
pub async fn serve_file(bytes: Vec<u8>, content_type: &'static str) -> String {
    use actix_web::{App, HttpResponse, HttpServer, web};
    let bytes = bytes::Bytes::from(bytes);
    let server = HttpServer::new(move || {
        let bytes = bytes.clone();
        let file = move || {
            let bytes = bytes.clone();
            async move { HttpResponse::Ok().content_type(content_type).body(bytes) }
        };
        App::new().route("/file", web::get().to(file))
    });
    let server = server.workers(1).disable_signals().bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/file", server.addrs()[0]);
    drop(tokio::spawn(server.run()));
    url
}
