//! Sessions on a simulated WAHA whose time stands still until it is moved, and nodes that watch over them.

use std::net::TcpListener;
use std::time::Duration;

use chrono::{DateTime, Utc};
use secrecy::SecretString;
use serde_json::{Value, json};
use switchboard::app::App;
use switchboard::broker::envelope::InboundEvent;
use switchboard::domain::clock::Clock;
use switchboard::domain::ids::{TenantId, WahaServerId};
use switchboard::http;
use switchboard::ingest::apply;
use switchboard::sessions::view::{Session, SessionRow};
use switchboard::sessions::{create, liveness, queries, reconcile};
use switchboard::simulator::{Control, Simulator, SimulatorConfig};
use switchboard::waha::Engine;
use tokio::sync::watch;

use super::stand::{PATIENCE, PLATFORM_KEY, insert_server, insert_tenant, node, session};
use crate::support::{TestDb, eventually};

/// What one look at the world takes on the clock.
const STEP: Duration = Duration::from_secs(2);

pub struct Ward {
    pub clock: Clock,
    pub apps: [App; 2],
    pub simulator: Simulator,
    pub tenant: TenantId,
    pub server: WahaServerId,
    db: TestDb,
    stop: watch::Sender<bool>,
}

impl Ward {
    /// Two nodes that reconcile and watch.
    pub async fn new() -> Self {
        Self::with(&[]).await
    }

    /// The same with `more` settings.
    pub async fn with(more: &[(&'static str, String)]) -> Self {
        let db = TestDb::create().await;
        let clock = Clock::manual(DateTime::from_timestamp(1_790_000_000, 0).unwrap());
        let simulator = Simulator::start(SimulatorConfig {
            api_key: SecretString::from("key-of-the-simulator"),
            auto_pair: true,
            clock: clock.clone(),
            ..SimulatorConfig::default()
        })
        .await
        .unwrap();
        let apps = [node(&db, clock.clone(), more), node(&db, clock.clone(), more)];
        let tenant = insert_tenant(&apps[0].db, "a").await;
        let server = insert_server(&apps[0], "waha-1", &simulator.url(), Engine::Noweb, 100).await;
        let (stop, stopped) = watch::channel(false);
        for app in &apps {
            tokio::spawn(reconcile::run(app.clone(), stopped.clone()));
            tokio::spawn(liveness::run(app.clone(), stopped.clone()));
        }
        Self { clock, apps, simulator, tenant, server, db, stop }
    }

    pub fn app(&self) -> &App {
        &self.apps[0]
    }

    pub fn control(&self) -> &Control {
        self.simulator.control()
    }

    /// Returns what `condition` answers at last, while time goes by.
    pub async fn passing<T>(&self, what: &str, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
        let step = async || {
            self.clock.advance(STEP);
            condition().await
        };
        eventually(PATIENCE, what, step).await
    }

    /// Lets `time` go by.
    pub async fn pass(&self, time: Duration) {
        let until = self.clock.now() + time;
        self.passing("time", async || (self.clock.now() >= until).then_some(())).await;
    }

    /// A session, once it works and is watched.
    pub async fn working(&self, name: &str) -> SessionRow {
        let created = create::create(self.app(), self.tenant, session(name)).await.unwrap();
        let watched =
            format!("SELECT count(*) FROM session_vitals WHERE session_id = '{}' AND seen = 'working'", created.id);
        self.passing(name, async || (self.count(&watched).await == 1).then_some(())).await;
        self.find(&created).await
    }

    pub async fn find(&self, session: &SessionRow) -> SessionRow {
        let id = session.id;
        let found = self.app().db.tenant(self.tenant, async move |conn| queries::find(conn, id).await).await;
        found.unwrap().unwrap()
    }

    /// The session's `health`, as its tenant sees it.
    pub async fn health(&self, session: &SessionRow) -> Value {
        let row = self.find(session).await;
        serde_json::from_str::<Value>(&Session::from(&row).to_json()).unwrap()["health"].take()
    }

    /// Somebody writes to the session, as WAHA would tell it.
    pub async fn hears(&self, session: &SessionRow, id: &str) {
        let now = self.clock.now();
        let body = json!({
            "id": format!("evt_{id}"), "timestamp": now.timestamp_millis(), "event": "message",
            "session": session.external_session_id, "engine": "NOWEB",
            "payload": {"id": format!("false_15550100001@c.us_{id}"), "timestamp": now.timestamp(), "from": "15550100001@c.us",
                        "fromMe": false, "to": "15550200000@c.us", "body": "hello", "hasMedia": false, "ack": 2},
        });
        let event = InboundEvent {
            tenant_id: self.tenant,
            session_id: session.id,
            waha_server_id: self.server,
            received_at: now,
            body: body.to_string(),
        };
        let fates = apply::apply_all(self.app(), &[event]).await;
        assert!(matches!(fates.as_slice(), [apply::Fate::Applied]), "{fates:?}");
    }

    /// A past of `hours`, with a message in each of them.
    pub async fn has_past(&self, session: &SessionRow, hours: usize) {
        for hour in 0..hours {
            self.clock.advance(Duration::from_secs(3600));
            self.hears(session, &format!("3EB0{}{hour}", session.id.0.simple())).await;
        }
    }

    /// How often the simulator was called so: a lifecycle call or `check-exists`.
    pub fn calls(&self, session: &SessionRow, endpoint: &str) -> usize {
        let calls = self.control().ledger_of(Some(&session.external_session_id)).calls;
        calls.iter().filter(|call| call.endpoint == endpoint).count()
    }

    pub async fn events(&self, kind: &str) -> Vec<Value> {
        let rows =
            self.sql().await.query("SELECT data FROM events WHERE type = $1 ORDER BY seq", &[&kind]).await.unwrap();
        rows.iter().map(|row| serde_json::from_str(row.get(0)).unwrap()).collect()
    }

    /// What is counted by `query`, above tenants.
    pub async fn count(&self, query: &str) -> i64 {
        self.sql().await.query_one(query, &[]).await.unwrap().get(0)
    }

    async fn sql(&self) -> tokio_postgres::Client {
        let client = self.db.connect().await;
        client.batch_execute("SET ROLE switchboard_system").await.unwrap();
        client
    }

    /// What the API answers the platform.
    pub async fn platform(&self, path: &str) -> Value {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let options =
            http::Options { workers: 1, shutdown_timeout: Duration::from_secs(1), ..http::Options::default() };
        let doors = http::serve(self.app().clone(), listener, options).unwrap();
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let url = format!("http://{}{path}", doors.address);
        let answer = client.get(&url).bearer_auth(PLATFORM_KEY).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        let body = answer.json().await.unwrap();
        assert_eq!(client.get(&url).send().await.unwrap().status(), 401);
        doors.stop().await;
        body
    }

    pub fn now(&self) -> DateTime<Utc> {
        self.clock.now()
    }
}

impl Drop for Ward {
    fn drop(&mut self) {
        self.stop.send_replace(true);
    }
}
