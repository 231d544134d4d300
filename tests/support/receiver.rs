//! A server that receives webhooks, records them and answers as it is told.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use actix_web::http::StatusCode;
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, web};
use chrono::{DateTime, Utc};
use switchboard::domain::clock::Clock;
use tokio::sync::watch;

/// One request that came in.
#[derive(Clone, Debug)]
pub struct Received {
    /// When it had arrived as a whole.
    pub at: DateTime<Utc>,
    /// The same moment, for measuring.
    pub instant: Instant,
    /// `POST`, usually.
    pub method: String,
    /// The path and the query.
    pub path: String,
    /// By name in lower case; of a repeated header the last.
    pub headers: BTreeMap<String, String>,
    /// The raw body.
    pub body: Vec<u8>,
    /// The status that was answered.
    pub answered: u16,
}

impl Received {
    /// The body as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).expect("a webhook's body is JSON")
    }

    /// A header, by its name in lower case.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("no header {name} among {:?}", self.headers.keys()))
    }
}

/// How a request is answered.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// The status; 0 stands for 200.
    pub status: u16,
    /// Waited before answering.
    pub delay: Duration,
    /// Extra headers.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: String,
}

impl Answer {
    /// An empty answer with this status.
    pub fn status(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    /// The same, after a while.
    pub fn delayed(self, delay: Duration) -> Self {
        Self { delay, ..self }
    }

    /// The same, with a header.
    pub fn header(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }

    /// The same, with `Retry-After` in seconds.
    pub fn retry_after(self, seconds: u64) -> Self {
        self.header("Retry-After", seconds)
    }
}

#[derive(Debug, Default)]
struct Script {
    next: VecDeque<Answer>,
    otherwise: Answer,
    received: Vec<Received>,
}

#[derive(Debug)]
struct Shared {
    script: Mutex<Script>,
    count: watch::Sender<usize>,
    clock: Clock,
}

impl Shared {
    fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The receiver; stops when dropped.
#[derive(Debug)]
pub struct Receiver {
    address: SocketAddr,
    shared: Arc<Shared>,
    server: actix_web::dev::ServerHandle,
}

impl Receiver {
    /// Listens on a free port and answers 200 to everything.
    pub fn start() -> Self {
        let shared =
            Arc::new(Shared { script: Mutex::default(), count: watch::Sender::new(0), clock: Clock::running() });
        let data = web::Data::from(Arc::clone(&shared));
        let (started, start) = std::sync::mpsc::channel();
        // On a thread of its own: a test that keeps its runtime busy must not slow the receiver.
        std::thread::spawn(move || {
            actix_web::rt::System::new().block_on(async move {
                let server = HttpServer::new(move || {
                    App::new()
                        .app_data(data.clone())
                        .app_data(web::PayloadConfig::new(16 << 20))
                        .default_service(web::to(receive))
                })
                .workers(1)
                .disable_signals()
                .shutdown_timeout(0)
                .bind(("127.0.0.1", 0))
                .expect("a free port");
                let address = server.addrs()[0];
                let server = server.run();
                started.send((address, server.handle())).expect("the test waits");
                server.await
            })
        });
        let (address, server) = start.recv().expect("the receiver starts");
        Self { address, shared, server }
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.address
    }

    /// The address of `path` here.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Answers the next request so; calls queue up.
    pub fn answer_next(&self, answer: Answer) {
        self.shared.script().next.push_back(answer);
    }

    /// Answers so whenever nothing is queued.
    pub fn answer_always(&self, answer: Answer) {
        self.shared.script().otherwise = answer;
    }

    /// Everything that came in, oldest first.
    pub fn received(&self) -> Vec<Received> {
        self.shared.script().received.clone()
    }

    /// Waits until at least `count` requests came in and returns all; panics after ten seconds.
    pub async fn wait_for(&self, count: usize) -> Vec<Received> {
        let mut seen = self.shared.count.subscribe();
        let waited = tokio::time::timeout(Duration::from_secs(10), async {
            seen.wait_for(|seen| *seen >= count).await.map(|seen| *seen)
        })
        .await;
        let received = self.received();
        assert!(waited.is_ok(), "only {} of {count} requests came in within 10 s", received.len());
        received
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        // The command is sent by the call; its answer is not awaited.
        drop(self.server.stop(false));
    }
}

async fn receive(request: HttpRequest, body: web::Bytes, shared: web::Data<Shared>) -> HttpResponse {
    let answer = {
        let mut script = shared.script();
        let answer = script.next.pop_front().unwrap_or_else(|| script.otherwise.clone());
        let headers = request.headers().iter();
        script.received.push(Received {
            at: shared.clock.now(),
            instant: Instant::now(),
            method: request.method().to_string(),
            path: request.uri().to_string(),
            headers: headers
                .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
                .collect(),
            body: body.to_vec(),
            answered: if answer.status == 0 { 200 } else { answer.status },
        });
        shared.count.send_replace(script.received.len());
        answer
    };
    tokio::time::sleep(answer.delay).await;
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::OK);
    let mut response = HttpResponse::build(status);
    for header in answer.headers {
        response.insert_header(header);
    }
    response.body(answer.body)
}
