//! Receives webhooks, whole, and answers what the test wants.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, web};
use serde_json::Value;
use tokio::sync::watch;

/// One POST as it came.
#[derive(Clone, Debug)]
pub struct Hook {
    pub headers: Vec<(String, String)>,
    pub raw: Vec<u8>,
    pub body: Value,
}

impl Hook {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub fn event(&self) -> &str {
        self.body["event"].as_str().unwrap_or_default()
    }

    /// The session's status, when it is about one.
    pub fn status(&self) -> Option<&str> {
        (self.event() == "session.status").then(|| self.body["payload"]["status"].as_str())?
    }

    /// The ack level of the message with this bare id.
    pub fn ack_of(&self, id: &str) -> Option<i64> {
        let is_it = self.event() == "message.ack" && self.body["payload"]["id"].as_str()?.ends_with(id);
        is_it.then(|| self.body["payload"]["ack"].as_i64())?
    }
}

/// A session status whose webhooks are answered so, each with a status and a `Retry-After`.
type Script = (String, VecDeque<(u16, Option<u64>)>);

struct Shared {
    seen: watch::Sender<Vec<Hook>>,
    script: Mutex<Script>,
}

/// A receiver on a free port; ends with the process.
pub struct Receiver {
    url: String,
    shared: Arc<Shared>,
}

impl Receiver {
    pub async fn start() -> Self {
        let shared = Arc::new(Shared { seen: watch::Sender::new(Vec::new()), script: Mutex::default() });
        let data = web::Data::from(Arc::clone(&shared));
        let server = HttpServer::new(move || App::new().app_data(data.clone()).default_service(web::to(take)))
            .workers(1)
            .disable_signals()
            .bind("127.0.0.1:0")
            .unwrap();
        let url = format!("http://{}/hook", server.addrs()[0]);
        tokio::spawn(server.run());
        Self { url, shared }
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// Answers the next POSTs about this session status with these; then 200 again.
    pub fn answer_to(&self, status: &str, answers: &[(u16, Option<u64>)]) {
        *self.shared.script.lock().unwrap() = (status.to_owned(), answers.iter().copied().collect());
    }

    /// All so far.
    pub fn seen(&self) -> Vec<Hook> {
        self.shared.seen.borrow().clone()
    }

    /// The first that fits, now or later.
    pub async fn wait(&self, what: &str, fits: impl Fn(&Hook) -> bool) -> Hook {
        self.wait_for(what, 1, fits).await.remove(0)
    }

    /// The first `count` that fit, now or later.
    pub async fn wait_for(&self, what: &str, count: usize, fits: impl Fn(&Hook) -> bool) -> Vec<Hook> {
        let mut seen = self.shared.seen.subscribe();
        let enough = |hooks: &Vec<Hook>| hooks.iter().filter(|hook| fits(hook)).count() >= count;
        let reached = tokio::time::timeout(Duration::from_secs(20), seen.wait_for(enough)).await;
        assert!(reached.is_ok(), "no webhook: {what}");
        let hooks = reached.unwrap().unwrap().clone();
        hooks.into_iter().filter(|hook| fits(hook)).take(count).collect()
    }
}

async fn take(request: HttpRequest, raw: web::Bytes, shared: web::Data<Shared>) -> HttpResponse {
    let header = |(name, value): (&actix_web::http::header::HeaderName, &actix_web::http::header::HeaderValue)| {
        (name.as_str().to_owned(), value.to_str().unwrap_or_default().to_owned())
    };
    let hook = Hook {
        headers: request.headers().iter().map(header).collect(),
        body: serde_json::from_slice(&raw).unwrap_or_default(),
        raw: raw.to_vec(),
    };
    let scripted = {
        let mut script = shared.script.lock().unwrap();
        if hook.status() == Some(script.0.as_str()) { script.1.pop_front() } else { None }
    };
    let (status, retry_after) = scripted.unwrap_or((200, None));
    shared.seen.send_modify(|seen| seen.push(hook));
    let mut response = HttpResponse::build(StatusCode::from_u16(status).unwrap());
    if let Some(seconds) = retry_after {
        response.insert_header(("Retry-After", seconds.to_string()));
    }
    response.finish()
}
