//! A database of its own for each test, a tenant's receiver, and a clock that is moved by hand.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Integer, Nullable, SmallInt, Text, Uuid};
use diesel_async::RunQueryDsl;
use secrecy::SecretString;
use switchboard::app::App;
use switchboard::config::Config;
use switchboard::db::{DbError, sql};
use switchboard::delivery::endpoints::{self, Endpoint, EndpointError, NewEndpoint};
use switchboard::delivery::worker::Worker;
use switchboard::domain::chance::Chance;
use switchboard::domain::clock::Clock;
use switchboard::domain::ids::{EndpointId, EventId, TenantId};
use switchboard::events::fan_out;
use switchboard::events::log::{self, NewEvent};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

use crate::support::TestDb;

const PATIENCE: Duration = Duration::from_secs(20);

/// May act for every tenant.
pub const PLATFORM_KEY: &str = "a-platform-key-for-tests";

/// A tenant on a node with a database of its own.
#[derive(Clone)]
pub struct World {
    pub app: App,
    pub tenant: TenantId,
    db: Arc<TestDb>,
}

/// Runs `test` in a world whose targets may be private, and takes the world down whatever happens.
pub async fn world<F: Future<Output = ()> + Send + 'static>(test: impl FnOnce(World) -> F) {
    world_with(true, test).await;
}

pub async fn world_with<F: Future<Output = ()> + Send + 'static>(private: bool, test: impl FnOnce(World) -> F) {
    let db = Arc::new(TestDb::create().await);
    let clock = Clock::manual(Clock::running().now());
    let app = node(&db.url(), private, clock);
    let world = World { tenant: tenant(&app).await, app: app.clone(), db };
    let outcome = tokio::spawn(test(world)).await;
    app.db.close();
    if let Err(failure) = outcome {
        std::panic::resume_unwind(failure.into_panic());
    }
}

fn node(url: &str, private: bool, clock: Clock) -> App {
    let settings = [
        ("DATABASE_URL", url),
        ("DATABASE_MAX_CONNECTIONS", "6"),
        ("AMQP_URL", "amqp://nobody@127.0.0.1:1"),
        ("SWITCHBOARD_MASTER_KEY", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="),
        ("SWITCHBOARD_PLATFORM_KEY", PLATFORM_KEY),
        ("SWITCHBOARD_ALLOW_PRIVATE_TARGETS", if private { "true" } else { "false" }),
    ];
    let settings: BTreeMap<_, _> =
        settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    App::build(Config::from_settings(settings).unwrap(), clock, Chance::from_system()).unwrap()
}

async fn tenant(app: &App) -> TenantId {
    let id = TenantId::fresh(app.clock.now(), &app.chance);
    app.db
        .system(async move |conn| {
            sql("INSERT INTO tenants (id, name, created_at, updated_at) VALUES ($1, $1::text, now(), now())")
                .bind::<Uuid, _>(id)
                .execute(&mut **conn)
                .await?;
            Ok::<_, DbError>(())
        })
        .await
        .unwrap();
    id
}

#[derive(Debug, PartialEq, Eq, QueryableByName)]
pub struct Row {
    #[diesel(sql_type = Text)]
    pub status: String,
    #[diesel(sql_type = Integer)]
    pub attempts: i32,
}

#[derive(Debug, PartialEq, Eq, QueryableByName)]
pub struct Tried {
    #[diesel(sql_type = Integer)]
    pub attempt: i32,
    #[diesel(sql_type = Nullable<SmallInt>)]
    pub response_status: Option<i16>,
    #[diesel(sql_type = Nullable<Text>)]
    pub error: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    pub response_body: Option<String>,
}

impl World {
    /// Another node on the same database and clock.
    pub fn another_node(&self) -> App {
        node(&self.db.url(), self.app.config.allow_private_targets, self.app.clock.clone())
    }

    pub async fn another_tenant(&self) -> World {
        World { tenant: tenant(&self.app).await, app: self.app.clone(), db: Arc::clone(&self.db) }
    }

    /// Runs a statement as the owner of the tables.
    pub async fn maintain(&self, statement: &str) {
        self.db.connect().await.batch_execute(statement).await.unwrap();
    }

    pub fn worker(&self) -> Worker {
        Worker::new(self.app.clone()).unwrap()
    }

    pub async fn try_endpoint(&self, url: &str, types: &[&str]) -> Result<(Endpoint, SecretString), EndpointError> {
        let draft = NewEndpoint {
            url: url.to_owned(),
            event_types: types.iter().map(|name| (*name).to_owned()).collect(),
            description: None,
        };
        let app = &self.app;
        app.db.tenant(self.tenant, async move |conn| endpoints::create(app, conn, draft).await).await
    }

    pub async fn endpoint(&self, url: &str, types: &[&str]) -> (EndpointId, String) {
        use secrecy::ExposeSecret;
        let (endpoint, secret) = self.try_endpoint(url, types).await.unwrap();
        (endpoint.id, secret.expose_secret().to_owned())
    }

    pub async fn show(&self, id: EndpointId) -> Result<Endpoint, EndpointError> {
        self.app.db.tenant(self.tenant, async move |conn| endpoints::get(conn, id).await).await
    }

    pub async fn change(
        &self,
        id: EndpointId,
        version: Option<i64>,
        change: endpoints::Change,
    ) -> Result<Endpoint, EndpointError> {
        let app = &self.app;
        app.db.tenant(self.tenant, async move |conn| endpoints::change(app, conn, id, version, change).await).await
    }

    pub async fn set_url(&self, id: EndpointId, url: &str) {
        let url = url.to_owned();
        let set = async move |conn: &mut switchboard::db::TenantConn| {
            sql("UPDATE webhook_endpoints SET url = $2 WHERE id = $1")
                .bind::<Uuid, _>(id)
                .bind::<Text, _>(url)
                .execute(&mut **conn)
                .await?;
            Ok::<_, DbError>(())
        };
        self.app.db.tenant(self.tenant, set).await.unwrap();
    }

    pub fn event(&self, kind: &'static str) -> NewEvent {
        let now = self.app.clock.now();
        NewEvent {
            tenant: self.tenant,
            id: EventId::fresh(now, &self.app.chance),
            kind,
            at: now,
            session_id: None,
            message_id: None,
            data: r#"{"body":"Grüße \"quoted\" 👍"}"#.to_owned(),
        }
    }

    /// Writes an event of each type, in one transaction.
    pub async fn emit(&self, kinds: &[&'static str]) -> Vec<EventId> {
        let events: Vec<_> = kinds.iter().map(|kind| self.event(kind)).collect();
        let ids = events.iter().map(|event| event.id).collect();
        let write = async move |conn: &mut switchboard::db::TenantConn| log::append(conn, &events).await;
        self.app.db.tenant(self.tenant, write).await.unwrap();
        ids
    }

    /// Fans out until `events` were handed on; answers the number of deliveries. (Transactions in other databases of the
    /// server hold events back as well, for as long as they run.)
    pub async fn fan_out(&self, events: usize) -> i64 {
        let (mut seen, mut deliveries) = (0, 0);
        let handing_on = async {
            while seen < events {
                let (step, made) = fan_out::step(&self.app, None).await.unwrap();
                seen += step.events;
                deliveries += made;
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, handing_on).await.unwrap();
        assert_eq!(seen, events);
        deliveries
    }

    pub async fn emit_and_fan_out(&self, kind: &'static str) -> EventId {
        let id = self.emit(&[kind]).await[0];
        self.fan_out(1).await;
        id
    }

    pub async fn delivery(&self, event: EventId, endpoint: EndpointId) -> Option<Row> {
        let load = async move |conn: &mut switchboard::db::TenantConn| {
            let rows: Vec<Row> =
                sql("SELECT status, attempts FROM webhook_deliveries WHERE event_id = $1 AND endpoint_id = $2")
                    .bind::<Uuid, _>(event)
                    .bind::<Uuid, _>(endpoint)
                    .load(&mut **conn)
                    .await?;
            Ok::<_, DbError>(rows.into_iter().next())
        };
        self.app.db.tenant(self.tenant, load).await.unwrap()
    }

    pub async fn status(&self, event: EventId, endpoint: EndpointId) -> String {
        self.delivery(event, endpoint).await.map_or_else(|| "none".to_owned(), |row| row.status)
    }

    pub async fn tried(&self, event: EventId) -> Vec<Tried> {
        let load = async move |conn: &mut switchboard::db::TenantConn| {
            Ok::<_, DbError>(
                sql("SELECT attempt, response_status, error, response_body FROM webhook_attempts WHERE event_id = $1 ORDER BY attempt, at")
                    .bind::<Uuid, _>(event)
                    .load(&mut **conn)
                    .await?,
            )
        };
        self.app.db.tenant(self.tenant, load).await.unwrap()
    }

    pub async fn count(&self, query: &'static str) -> i64 {
        #[derive(QueryableByName)]
        struct Count {
            #[diesel(sql_type = BigInt)]
            count: i64,
        }
        let load = async move |conn: &mut switchboard::db::SystemConn| {
            let row: Count = sql(query).get_result(&mut **conn).await?;
            Ok::<_, DbError>(row.count)
        };
        self.app.db.system(load).await.unwrap()
    }

    pub fn pass(&self, seconds: u64) -> DateTime<Utc> {
        self.app.clock.advance(Duration::from_secs(seconds));
        self.app.clock.now()
    }
}

/// What a receiver got.
#[derive(Clone, Debug)]
pub struct Request {
    pub path: String,
    pub headers: BTreeMap<String, String>,
    pub body: String,
}

impl Request {
    pub fn id(&self) -> &str {
        &self.headers["webhook-id"]
    }

    /// Lets the reference library verify the request, timestamp included.
    pub fn verify(&self, secret: &str) {
        let mut headers = reqwest::header::HeaderMap::new();
        for (name, value) in &self.headers {
            headers.insert(reqwest::header::HeaderName::try_from(name).unwrap(), value.parse().unwrap());
        }
        standardwebhooks::Webhook::new(secret).unwrap().verify(self.body.as_bytes(), &headers).unwrap();
    }

    /// True when the reference library accepts the signature of this `secret` at this attempt's own time.
    pub fn is_signed_with(&self, secret: &str) -> bool {
        let timestamp = self.headers["webhook-timestamp"].parse().unwrap();
        let theirs =
            standardwebhooks::Webhook::new(secret).unwrap().sign(self.id(), timestamp, self.body.as_bytes()).unwrap();
        self.headers["webhook-signature"].split(' ').any(|ours| ours == theirs)
    }
}

struct Shared {
    got: watch::Sender<Vec<Request>>,
    answers: Mutex<VecDeque<String>>,
    last_answer: Mutex<String>,
    gate: Semaphore,
}

/// A tenant's endpoint on a port of its own.
#[derive(Clone)]
pub struct Receiver {
    shared: Arc<Shared>,
    pub url: String,
}

/// An answer with this status, header lines and body.
pub fn answer(status: u16, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n{headers}\r\n{body}", body.len())
}

impl Receiver {
    /// Answers with `answers` one after the other, then always with the last.
    pub async fn start(answers: &[String]) -> Self {
        let receiver = Self::hanging(answers).await;
        receiver.shared.gate.add_permits(Semaphore::MAX_PERMITS / 2);
        receiver
    }

    /// The same, but no answer leaves before [`Receiver::release`].
    pub async fn hanging(answers: &[String]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook?token=secret", listener.local_addr().unwrap());
        let shared = Arc::new(Shared {
            got: watch::Sender::default(),
            answers: Mutex::new(answers.iter().cloned().collect()),
            last_answer: Mutex::new(answer(204, "", "")),
            gate: Semaphore::new(0),
        });
        let serving = Arc::clone(&shared);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&serving)));
            }
        });
        Self { shared, url }
    }

    pub fn release(&self, answers: usize) {
        self.shared.gate.add_permits(answers);
    }

    pub fn got(&self) -> Vec<Request> {
        self.shared.got.borrow().clone()
    }

    /// Waits until at least `count` requests have come; answers all of them.
    pub async fn wait_for(&self, count: usize) -> Vec<Request> {
        let mut got = self.shared.got.subscribe();
        let waiting = got.wait_for(|got| got.len() >= count);
        tokio::time::timeout(PATIENCE, waiting).await.unwrap().unwrap().clone()
    }
}

async fn serve(mut stream: TcpStream, shared: Arc<Shared>) -> Option<()> {
    let mut text = Vec::new();
    let head_ends = loop {
        if let Some(at) = text.windows(4).position(|window| window == b"\r\n\r\n") {
            break at;
        }
        if stream.read_buf(&mut text).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(text[..head_ends].to_vec()).unwrap();
    let mut lines = head.lines();
    let path = lines.next()?.split(' ').nth(1)?.to_owned();
    let headers: BTreeMap<_, _> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let length: usize = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
    while text.len() < head_ends + 4 + length {
        stream.read_buf(&mut text).await.ok()?;
    }
    let body = String::from_utf8(text[head_ends + 4..].to_vec()).unwrap();
    shared.got.send_modify(|got| got.push(Request { path, headers, body }));
    let next = shared.answers.lock().unwrap().pop_front();
    let answer = {
        let mut last = shared.last_answer.lock().unwrap();
        if let Some(next) = next {
            *last = next;
        }
        last.clone()
    };
    shared.gate.acquire().await.ok()?.forget();
    stream.write_all(answer.as_bytes()).await.ok()?;
    stream.shutdown().await.ok()
}
