//! A database, a simulated WAHA, and nodes that reconcile.

use std::net::TcpListener;
use std::time::Duration;

use reqwest::RequestBuilder;
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use switchboard::app::App;
use switchboard::config::Config;
use switchboard::db::{Db, DbError};
use switchboard::dispatch::pacing::Pacing;
use switchboard::domain::chance::Chance;
use switchboard::domain::clock::Clock;
use switchboard::domain::ids::{SessionId, TenantId, WahaServerId};
use switchboard::http::{self, Running};
use switchboard::sessions::create::{self, CreateError, NewSession};
use switchboard::sessions::directory::api_key_purpose;
use switchboard::sessions::queries;
use switchboard::sessions::reconcile;
use switchboard::sessions::servers::{self, NewWahaServer, PlaceWish};
use switchboard::sessions::view::SessionRow;
use switchboard::simulator::{Simulator, SimulatorConfig};
use switchboard::waha::{Engine, Server};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::counter::Counter;
use crate::support::{TestDb, eventually};

pub const PATIENCE: Duration = Duration::from_secs(60);
pub const PLATFORM_KEY: &str = "platform-key-of-the-tests";
const WAHA_KEY: &str = "key-of-the-simulator";

pub struct Stand {
    pub app: App,
    pub simulator: Simulator,
    pub counter: Counter,
    settings: Vec<(&'static str, String)>,
    db: TestDb,
}

/// A node that reconciles; it stops when this is dropped.
pub struct Node {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Node {
    pub async fn stop(self) {
        self.stop.send_replace(true);
        self.task.await.unwrap();
    }
}

/// A node on the database: it polls each server four times a second.
pub fn node(db: &TestDb, clock: Clock, more: &[(&'static str, String)]) -> App {
    let mut settings = vec![
        ("DATABASE_URL", db.url()),
        ("DATABASE_MAX_CONNECTIONS", "8".to_owned()),
        ("DATABASE_MIN_CONNECTIONS", "0".to_owned()),
        ("AMQP_URL", "amqp://127.0.0.1:1".to_owned()),
        ("SWITCHBOARD_PUBLIC_URL", "http://127.0.0.1:1/base/".to_owned()),
        ("SWITCHBOARD_PLATFORM_KEY", PLATFORM_KEY.to_owned()),
        ("SWITCHBOARD_MASTER_KEY", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=".to_owned()),
        ("SWITCHBOARD_POLL_MS", "20".to_owned()),
        ("SWITCHBOARD_RECONCILE_MS", "250".to_owned()),
    ];
    settings.extend(more.iter().cloned());
    let settings = settings.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    let app = App::build(Config::from_settings(settings).unwrap(), clock, Chance::from_system()).unwrap();
    let following = app.clone();
    tokio::spawn(async move { following.generation.clone().follow(following.db.clone()).await });
    app
}

pub async fn insert_tenant(db: &Db, name: &str) -> TenantId {
    let id = TenantId(Chance::from_system().uuid(Clock::running().now()));
    let insert =
        format!("INSERT INTO tenants (id, name, created_at, updated_at) VALUES ('{id}', '{name}', now(), now())");
    db.system(async move |conn| {
        diesel_async::SimpleAsyncConnection::batch_execute(&mut **conn, &insert).await.map_err(DbError::from)
    })
    .await
    .unwrap();
    id
}

pub async fn insert_server(app: &App, name: &str, base_url: &str, engine: Engine, capacity: i32) -> WahaServerId {
    let now = app.clock.now();
    let id = WahaServerId::fresh(now, &app.chance);
    let new = NewWahaServer {
        id,
        name: name.to_owned(),
        base_url: base_url.to_owned(),
        api_key_sealed: app.sealer.seal(&api_key_purpose(id), WAHA_KEY.as_bytes()),
        engine,
        capacity,
        labels: Vec::new(),
        storage_group: None,
    };
    app.db.system(async |conn| servers::insert(conn, &new, now).await).await.unwrap();
    id
}

pub fn session(name: &str) -> NewSession {
    NewSession {
        name: name.to_owned(),
        wish: PlaceWish::default(),
        start: true,
        pacing: Pacing::default(),
        windows: None,
        check_numbers: true,
        config: json!({}),
        metadata: json!({"team": "support"}),
        proxy: None,
    }
}

impl Stand {
    pub async fn new() -> Self {
        Self::at_speed(10.0).await
    }

    /// The simulator is so many times as fast as WAHA.
    pub async fn at_speed(time_scale: f64) -> Self {
        Self::with(SimulatorConfig { time_scale, ..SimulatorConfig::default() }, &[]).await
    }

    /// With a clock that stands still until it is moved, for WAHA too; phones scan by themselves.
    pub async fn moved(settings: &[(&'static str, &str)]) -> Self {
        let clock = Clock::manual("2026-11-21T09:30:00Z".parse().unwrap());
        Self::with(SimulatorConfig { auto_pair: true, clock, ..SimulatorConfig::default() }, settings).await
    }

    pub async fn with(config: SimulatorConfig, settings: &[(&'static str, &str)]) -> Self {
        let db = TestDb::create().await;
        let clock = config.clock.clone();
        let config = SimulatorConfig { api_key: SecretString::from(WAHA_KEY), ..config };
        let simulator = Simulator::start(config).await.unwrap();
        let counter = Counter::before(&simulator.url());
        let settings: Vec<_> = settings.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        let app = node(&db, clock, &settings);
        Self { app, simulator, counter, settings, db }
    }

    /// Another node with one setting more.
    pub fn node_with(&self, name: &'static str, value: &str) -> App {
        let settings: Vec<_> = self.settings.iter().cloned().chain([(name, value.to_owned())]).collect();
        node(&self.db, self.app.clock.clone(), &settings)
    }

    pub fn another_node(&self) -> App {
        node(&self.db, self.app.clock.clone(), &self.settings)
    }

    /// Moves the clock, a step at a time, until `condition` answers something.
    pub async fn moving<T>(&self, step: Duration, what: &str, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
        eventually(PATIENCE * 2, what, async || {
            self.app.clock.advance(step);
            condition().await
        })
        .await
    }

    /// Moves the clock by `time` in all, a step at a time, and looks at each.
    pub async fn pass(&self, time: Duration, step: Duration, mut look: impl AsyncFnMut()) {
        let end = self.app.clock.now() + time;
        self.moving(step, "time to pass", async || {
            look().await;
            (self.app.clock.now() >= end).then_some(())
        })
        .await;
    }

    /// Opens the doors of the API.
    pub fn open(&self) -> Doors {
        self.open_on(&self.app)
    }

    /// Opens the doors of `app`, a node on this database.
    pub fn open_on(&self, app: &App) -> Doors {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let options =
            http::Options { workers: 1, shutdown_timeout: Duration::from_secs(1), ..http::Options::default() };
        let running = http::serve(app.clone(), listener, options).unwrap();
        let base = format!("http://{}", running.address);
        Doors { base, client: reqwest::Client::builder().no_proxy().build().unwrap(), running }
    }

    pub async fn tenant(&self, name: &str) -> TenantId {
        insert_tenant(&self.app.db, name).await
    }

    /// Registers the simulator, by way of the counter.
    pub async fn server(&self, capacity: i32) -> WahaServerId {
        insert_server(&self.app, "waha-1", &self.counter.url, Engine::Noweb, capacity).await
    }

    pub fn waha(&self) -> Server {
        Server { base_url: self.simulator.url().parse().unwrap(), api_key: SecretString::from(WAHA_KEY) }
    }

    pub fn waha_key(&self) -> &'static str {
        WAHA_KEY
    }

    /// A connection of the role that owns the tables.
    pub async fn owner(&self) -> tokio_postgres::Client {
        self.db.connect().await
    }

    pub fn reconcile(app: &App) -> Node {
        let (stop, stopped) = watch::channel(false);
        Node { stop, task: tokio::spawn(reconcile::run(app.clone(), stopped)) }
    }

    pub async fn create(&self, tenant: TenantId, new: NewSession) -> Result<SessionRow, CreateError> {
        create::create(&self.app, tenant, new).await
    }

    pub async fn find(&self, tenant: TenantId, id: SessionId) -> Option<SessionRow> {
        self.app.db.tenant(tenant, async move |conn| queries::find(conn, id).await).await.unwrap()
    }

    /// Returns the session once it has `status`.
    pub async fn becomes(&self, tenant: TenantId, id: SessionId, status: &str) -> SessionRow {
        eventually(PATIENCE, status, async || self.find(tenant, id).await.filter(|row| row.status == status)).await
    }

    /// Returns once nothing has to be looked at any more.
    pub async fn settled(&self) {
        let sql = self.sql().await;
        eventually(PATIENCE, "nothing to be reconciled", async || {
            let row = sql
                .query_one(
                    "SELECT count(*) FROM waha_sessions WHERE reconcile_at IS NOT NULL OR reconcile_lease IS NOT NULL",
                    &[],
                )
                .await
                .unwrap();
            (row.get::<_, i64>(0) == 0).then_some(())
        })
        .await;
    }

    /// What is counted by `query`, above tenants.
    pub async fn count(&self, query: &str) -> i64 {
        self.sql().await.query_one(query, &[]).await.unwrap().get(0)
    }

    pub async fn sql(&self) -> tokio_postgres::Client {
        let client = self.db.connect().await;
        client.batch_execute("SET ROLE switchboard_system").await.unwrap();
        client
    }

    pub async fn webhook_key(&self, tenant: TenantId, id: SessionId) -> String {
        let entry = self.app.directory.session(tenant, id).await.unwrap().unwrap();
        String::from_utf8(entry.webhook_key.expose_secret().clone()).unwrap()
    }
}

/// The API, open.
pub struct Doors {
    base: String,
    client: reqwest::Client,
    running: Running,
}

pub struct Answer {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub bytes: Vec<u8>,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes)
            .unwrap_or_else(|fault| panic!("{fault}: {:?}", String::from_utf8_lossy(&self.bytes)))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", String::from_utf8_lossy(&self.bytes));
        self
    }

    /// The code of a problem, and the field of its first error.
    #[track_caller]
    pub fn problem(&self, status: u16) -> (String, String) {
        assert_eq!(self.status, status, "{}", String::from_utf8_lossy(&self.bytes));
        assert_eq!(self.header("content-type"), Some("application/problem+json"));
        let body = self.json();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        (text(&body["code"]), text(&body["errors"][0]["field"]))
    }
}

impl Doors {
    pub fn request(&self, method: &str, path: &str, key: &str) -> RequestBuilder {
        let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
        self.client.request(method, format!("{}{path}", self.base)).bearer_auth(key)
    }

    pub async fn send(&self, request: RequestBuilder) -> Answer {
        let response = request.send().await.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Answer { status, headers, bytes: response.bytes().await.unwrap().to_vec() }
    }

    pub async fn get(&self, path: &str, key: &str) -> Answer {
        self.send(self.request("GET", path, key)).await
    }

    pub async fn post(&self, path: &str, key: &str, body: Value) -> Answer {
        self.send(self.request("POST", path, key).json(&body)).await
    }

    /// A key of `tenant` with `scopes`.
    pub async fn key(&self, tenant: TenantId, scopes: &[&str]) -> String {
        let path = format!("/v1/tenants/{tenant}/api-keys");
        let answer = self.post(&path, PLATFORM_KEY, json!({"name": "test", "scopes": scopes})).await.expect(201);
        answer.json()["key"].as_str().unwrap().to_owned()
    }

    pub async fn close(self) {
        self.running.stop().await;
    }
}
