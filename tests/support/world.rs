//! A whole Switchboard for one test: its own database, broker names and simulated WAHA server; nodes in this process or as
//! processes of their own; and a tenant's view through the public API.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use reqwest::{Method, StatusCode};
use secrecy::SecretString;
use serde_json::{Value, json};
use switchboard::app::App;
use switchboard::broker::{Broker, BrokerConfig, LinkState};
use switchboard::config::Config;
use switchboard::domain::chance::Chance;
use switchboard::domain::clock::Clock;
use switchboard::http;
use switchboard::serve::{Node, Role};
use switchboard::simulator::{Engine, Simulator, SimulatorConfig};

use super::{Process, TestDb, eventually, free_port};

/// How long anything in a flow test may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

const PLATFORM_KEY: &str = "platform-key-of-the-tests";

/// Everything around the nodes.
pub struct World {
    pub db: TestDb,
    pub simulator: Simulator,
    pub engine: Engine,
    pub amqp: String,
    namespace: String,
    /// The clock of the nodes; each has one of its own, unless the test moves it.
    clock: Option<Clock>,
    servers: Mutex<Vec<String>>,
    http: reqwest::Client,
}

/// The broker that the tests use.
pub fn amqp_url() -> String {
    std::env::var("AMQP_URL").unwrap_or_else(|_| "amqp://guest:guest@127.0.0.1:5672/%2f".to_owned())
}

impl World {
    pub async fn new() -> Self {
        Self::with(SimulatorConfig::default()).await
    }

    /// A world whose simulator differs in what `simulator` says; it is twenty times as fast as WAHA and pairs by itself.
    pub async fn with(simulator: SimulatorConfig) -> Self {
        Self::around(SimulatorConfig { time_scale: 20.0, auto_pair: true, ..simulator }, None).await
    }

    /// A world on one clock, the nodes and the simulator alike; nobody scans a code unless told to.
    pub async fn on(clock: &Clock, simulator: SimulatorConfig) -> Self {
        Self::around(SimulatorConfig { clock: clock.clone(), ..simulator }, Some(clock.clone())).await
    }

    async fn around(simulator: SimulatorConfig, clock: Option<Clock>) -> Self {
        let db = TestDb::create().await;
        let engine = simulator.engine;
        let simulator = Simulator::start(simulator).await.unwrap();
        let namespace = format!("sbtest-{}", Chance::from_system().up_to(u64::MAX));
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(30)).build().unwrap();
        Self { db, simulator, engine, amqp: amqp_url(), namespace, clock, servers: Mutex::default(), http }
    }

    /// The settings of a node that listens on `port`.
    pub fn settings(&self, port: u16) -> BTreeMap<String, String> {
        [
            ("DATABASE_URL", self.db.url()),
            ("DATABASE_MAX_CONNECTIONS", "8".to_owned()),
            ("DATABASE_MIN_CONNECTIONS", "0".to_owned()),
            ("AMQP_URL", self.amqp.clone()),
            ("SWITCHBOARD_BIND", format!("127.0.0.1:{port}")),
            ("SWITCHBOARD_PUBLIC_URL", format!("http://127.0.0.1:{port}")),
            ("SWITCHBOARD_BROKER_NAMESPACE", self.namespace.clone()),
            ("SWITCHBOARD_MASTER_KEY", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=".to_owned()),
            ("SWITCHBOARD_PLATFORM_KEY", PLATFORM_KEY.to_owned()),
            ("SWITCHBOARD_ALLOW_PRIVATE_TARGETS", "true".to_owned()),
            ("SWITCHBOARD_MEDIA_URL", url::Url::from_file_path(self.media_folder()).unwrap().into()),
            ("SWITCHBOARD_LOG", "info".to_owned()),
            ("SWITCHBOARD_SEND_TIMEOUT_MS", "3000".to_owned()),
            ("SWITCHBOARD_DISPATCH_LEASE_MS", "2000".to_owned()),
            ("SWITCHBOARD_LEASE_MARGIN_MS", "1000".to_owned()),
            ("SWITCHBOARD_POLL_MS", "50".to_owned()),
            ("SWITCHBOARD_RECONCILE_MS", "500".to_owned()),
            ("SWITCHBOARD_RESTART_AFTER_PAIRING_MS", "0".to_owned()),
            ("SWITCHBOARD_DRAIN_MS", "5000".to_owned()),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
    }

    /// Where this world's files are kept.
    pub fn media_folder(&self) -> PathBuf {
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(&self.namespace)
    }

    /// A node in this process, with every role.
    pub fn node(&self) -> Inside {
        self.node_with(&Role::ALL, |_| {})
    }

    /// A node in this process.
    pub fn node_with(&self, roles: &[Role], adjust: impl FnOnce(&mut Config)) -> Inside {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let mut config = Config::from_settings(self.settings(address.port())).unwrap();
        adjust(&mut config);
        let app = App::build(config, self.clock.clone().unwrap_or_else(Clock::running), Chance::from_system()).unwrap();
        let options =
            http::Options { workers: 1, shutdown_timeout: Duration::from_secs(1), ..http::Options::default() };
        let node = Node::start(app.clone(), roles, Some(listener), None, options).unwrap();
        Inside { app, node, base: format!("http://{address}") }
    }

    /// A process with `roles` that listens on `port` and sends as `public_port` would.
    pub async fn process(&self, port: u16, roles: &str, adjust: impl FnOnce(&mut BTreeMap<String, String>)) -> Outside {
        let mut settings = self.settings(port);
        adjust(&mut settings);
        let environment: Vec<(&str, String)> =
            settings.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
        let mut process = Process::switchboard(&["serve", "--roles", roles], environment);
        let base = format!("http://127.0.0.1:{port}");
        process.wait_ready(&format!("{base}/readyz")).await;
        Outside { process, base }
    }

    /// A process with every role on a free port.
    pub async fn any_process(&self) -> Outside {
        self.process(free_port(), "api,dispatch,send,ingest,deliver", |_| {}).await
    }

    /// The API at `base`, as the platform.
    pub fn platform(&self, base: &str) -> Client {
        Client { http: self.http.clone(), base: base.to_owned(), key: PLATFORM_KEY.to_owned() }
    }

    /// Registers the simulator, and creates a tenant with a key that may do everything.
    pub async fn tenant(&self, base: &str, name: &str) -> Client {
        let platform = self.platform(base);
        let (engine, url) = (self.engine.name(), self.simulator.url());
        let server =
            json!({"name": "simulator", "base_url": url, "api_key": "simulator", "engine": engine, "capacity": 10_000});
        let registered = platform.post("/v1/waha-servers", &server).await;
        assert!(matches!(registered.status, StatusCode::CREATED | StatusCode::CONFLICT), "{registered:?}");
        if let Some(id) = registered.body["id"].as_str() {
            self.servers.lock().unwrap().push(id.to_owned());
        }
        let tenant = platform.post("/v1/tenants", &json!({"name": name})).await.expect(StatusCode::CREATED);
        let path = format!("/v1/tenants/{}/api-keys", text(&tenant, "id"));
        let key = platform.post(&path, &json!({"name": "all", "scopes": ["*"]})).await.expect(StatusCode::CREATED);
        Client { key: text(&key, "key").to_owned(), ..platform }
    }

    /// Deletes this world's queues, as if somebody had wiped the broker.
    pub async fn wipe_broker(&self) {
        let broker = self.own_broker();
        broker.state().wait_for(|state| *state == LinkState::Connected).await.unwrap();
        broker.delete_all().await.unwrap();
        broker.stop().await;
    }

    fn own_broker(&self) -> Broker {
        let config = BrokerConfig {
            url: SecretString::from(amqp_url()),
            namespace: self.namespace.clone(),
            publish_timeout: Duration::from_secs(5),
            channels: 1,
        };
        Broker::start(config, Chance::from_system())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _nothing_kept = std::fs::remove_dir_all(self.media_folder());
        let namespace = std::mem::take(&mut self.namespace);
        // Only who used them knows the names of these; left behind, they would fill the broker run by run.
        let outbound: Vec<String> =
            self.servers.lock().unwrap().drain(..).map(|id| format!("{namespace}.outbound.{id}")).collect();
        let cleaning = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let url = SecretString::from(amqp_url());
                let config = BrokerConfig { url, namespace, publish_timeout: Duration::from_secs(2), channels: 1 };
                let broker = Broker::start(config, Chance::from_system());
                let mut link = broker.state();
                let deleting = async {
                    // The reference must not outlive the line: it holds the state locked.
                    drop(link.wait_for(|state| *state == LinkState::Connected).await.map(drop));
                    broker.delete_all().await
                };
                let _gone = tokio::time::timeout(Duration::from_secs(5), deleting).await;
                let _gone = tokio::time::timeout(Duration::from_secs(5), delete_queues(&outbound)).await;
            });
        });
        let _ended = cleaning.join();
    }
}

async fn delete_queues(names: &[String]) -> lapin::Result<()> {
    let connection = lapin::Connection::connect(&amqp_url(), lapin::ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    for name in names {
        channel.queue_delete(name.as_str().into(), lapin::options::QueueDeleteOptions::default()).await?;
    }
    connection.close(200, "cleaned up".into()).await
}

/// A node in this process.
pub struct Inside {
    pub app: App,
    pub node: Node,
    pub base: String,
}

/// A node in a process of its own.
pub struct Outside {
    pub process: Process,
    pub base: String,
}

/// Somebody who calls the API.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    pub base: String,
    pub key: String,
}

/// What the API answered.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: reqwest::header::HeaderMap,
    pub body: Value,
}

impl Answer {
    /// The body of an answer with this status.
    #[track_caller]
    pub fn expect(self, status: StatusCode) -> Value {
        assert_eq!(self.status, status, "{:?}", self.body);
        self.body
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

impl Client {
    /// The same API with another key.
    pub fn with_key(&self, key: &str) -> Self {
        Self { key: key.to_owned(), ..self.clone() }
    }

    /// The same caller at another node.
    pub fn at(&self, base: &str) -> Self {
        Self { base: base.to_owned(), ..self.clone() }
    }

    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.http.request(method, format!("{}{path}", self.base)).bearer_auth(&self.key)
    }

    pub async fn send(request: reqwest::RequestBuilder) -> Answer {
        let response = request.send().await.unwrap();
        let (status, headers) = (response.status(), response.headers().clone());
        let bytes = response.bytes().await.unwrap();
        let body = serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned()));
        Answer { status, headers, body }
    }

    pub async fn get(&self, path: &str) -> Answer {
        Self::send(self.request(Method::GET, path)).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        Self::send(self.request(Method::POST, path).json(body)).await
    }

    /// Uploads a file.
    pub async fn upload(&self, filename: &str, mime_type: &str, bytes: &[u8]) -> Answer {
        let (kind, body) = form(&[("file", Some(filename), Some(mime_type), bytes)]);
        let request = self.request(Method::POST, "/v1/media").header("Content-Type", kind).body(body);
        Self::send(request).await
    }

    /// A session without pacing; answers its id and its name at WAHA.
    pub async fn session(&self, name: &str) -> (String, String) {
        self.session_with(&json!({"name": name, "pacing": {"min_gap_ms": 0, "jitter_ms": 0}})).await
    }

    /// A session, once it works.
    pub async fn session_with(&self, body: &Value) -> (String, String) {
        let created = self.post("/v1/sessions", body).await.expect(StatusCode::CREATED);
        let id = text(&created, "id").to_owned();
        self.working(&id).await;
        (id, text(&created, "external_session_id").to_owned())
    }

    /// Waits until the session works.
    pub async fn working(&self, session: &str) {
        let path = format!("/v1/sessions/{session}");
        eventually(PATIENCE, "the session to work", async || {
            let session = self.get(&path).await.body;
            (session["status"] == "working").then_some(())
        })
        .await;
    }

    /// Sends a text and answers the message as accepted.
    pub async fn send_text(&self, session: &str, to: &str, body: &str) -> Value {
        let message = json!({"session_id": session, "to": to, "body": body});
        self.post("/v1/messages", &message).await.expect(StatusCode::ACCEPTED)
    }

    /// Waits until the message has `status`, and answers it.
    pub async fn message_with(&self, id: &str, status: &str) -> Value {
        let path = format!("/v1/messages/{id}");
        eventually(PATIENCE, &format!("message {id} to be {status}"), async || {
            let message = self.get(&path).await.body;
            (message["status"] == status).then_some(message)
        })
        .await
    }

    /// The statuses a message went through.
    pub async fn history(&self, id: &str) -> Vec<String> {
        let steps = self.get(&format!("/v1/messages/{id}/transitions")).await.expect(StatusCode::OK);
        steps["data"].as_array().unwrap().iter().map(|step| text(step, "status").to_owned()).collect()
    }
}

/// A part of a form: name, file name, media type, bytes.
pub type Part<'a> = (&'a str, Option<&'a str>, Option<&'a str>, &'a [u8]);

/// A form of parts: its content type and its bytes.
pub fn form(parts: &[Part<'_>]) -> (&'static str, Vec<u8>) {
    let mut body = Vec::new();
    for (name, filename, mime_type, bytes) in parts {
        let filename = filename.map(|name| format!("; filename=\"{name}\"")).unwrap_or_default();
        let kind = mime_type.map(|kind| format!("\r\nContent-Type: {kind}")).unwrap_or_default();
        let head = format!("--edge\r\nContent-Disposition: form-data; name=\"{name}\"{filename}{kind}\r\n\r\n");
        body.extend_from_slice(head.as_bytes());
        body.extend_from_slice(bytes);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(b"--edge--\r\n");
    ("multipart/form-data; boundary=edge", body)
}

/// The text member `name`.
#[track_caller]
pub fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_else(|| panic!("no text {name} in {value}"))
}
