//! A database of its own, an [`App`] on it, and its doors open on a free port.

use std::net::TcpListener;
use std::time::Duration;

use chrono::{DateTime, Utc};
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use switchboard::app::App;
use switchboard::config::Config;
use switchboard::domain::chance::Chance;
use switchboard::domain::clock::Clock;
use switchboard::http::{self, Running};
use tokio_postgres::Client;

use crate::support::TestDb;

pub const PLATFORM_KEY: &str = "platform-key-of-the-tests";

pub struct Stand {
    pub app: App,
    pub base: String,
    pub client: reqwest::Client,
    running: Option<Running>,
    database: Option<TestDb>,
    url: String,
}

/// An answer, read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub text: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|fault| panic!("{fault}: {self:?}"))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// The code of a well-formed problem document of this status, and the field of its first error.
    pub fn problem(&self) -> (String, String) {
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        let body = self.json();
        assert_eq!(body["status"], self.status, "{self:?}");
        assert_eq!(body["request_id"].as_str(), self.header("x-request-id"), "{self:?}");
        let code = body["code"].as_str().unwrap().to_owned();
        assert_eq!(body["type"], format!("/docs/errors#{code}"));
        assert!(!body["title"].as_str().unwrap().is_empty() && !body["detail"].as_str().unwrap().is_empty());
        (code, body["errors"][0]["field"].as_str().unwrap_or_default().to_owned())
    }

    #[track_caller]
    pub fn refused(&self, status: u16, code: &str) {
        assert_eq!((self.status, self.problem().0.as_str()), (status, code), "{self:?}");
    }

    #[track_caller]
    pub fn refused_field(&self, field: &str) {
        let (code, at) = self.problem();
        assert_eq!((self.status, code.as_str(), at.as_str()), (422, "validation_failed", field), "{self:?}");
    }

    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{self:?}");
        self
    }
}

impl Stand {
    pub async fn new() -> Self {
        Self::at(Clock::running()).await
    }

    pub async fn at(clock: Clock) -> Self {
        let database = TestDb::create().await;
        let mut stand = Self::open(database.url(), clock, Chance::from_system());
        stand.database = Some(database);
        stand
    }

    /// Another node on the same database.
    pub fn another_node(&self) -> Self {
        Self::open(self.url.clone(), self.app.clock.clone(), Chance::from_system())
    }

    fn open(url: String, clock: Clock, chance: Chance) -> Self {
        // Another test of this process may have installed it.
        let _installed = rustls::crypto::ring::default_provider().install_default();
        let settings = [
            ("DATABASE_URL", url.as_str()),
            ("DATABASE_ACQUIRE_TIMEOUT_MS", "3000"),
            ("AMQP_URL", "amqp://127.0.0.1:1"),
            ("SWITCHBOARD_PLATFORM_KEY", PLATFORM_KEY),
            ("SWITCHBOARD_MASTER_KEY", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="),
        ];
        let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).into_iter().collect();
        let app = App::build(Config::from_settings(settings).unwrap(), clock, chance).unwrap();
        let following = app.clone();
        tokio::spawn(async move { following.generation.clone().follow(following.db.clone()).await });
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let options = http::Options {
            workers: 2,
            shutdown_timeout: Duration::from_secs(1),
            more: Some(super::doors::more_routes),
        };
        let running = http::serve(app.clone(), listener, options).unwrap();
        let base = format!("http://{}", running.address);
        Self { app, base, client: reqwest::Client::new(), running: Some(running), database: None, url }
    }

    /// A connection above tenants.
    pub async fn sql(&self) -> Client {
        let client = self.database.as_ref().expect("the first node has the database").connect().await;
        client.batch_execute("SET ROLE switchboard_system").await.unwrap();
        client
    }

    pub fn request(&self, method: &str, path: &str) -> RequestBuilder {
        self.client.request(Method::from_bytes(method.as_bytes()).unwrap(), format!("{}{path}", self.base))
    }

    pub async fn send(&self, request: RequestBuilder) -> Answer {
        let response = request.send().await.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        assert!(headers.contains_key("x-request-id"), "every answer has a request id");
        assert_ne!(response.status(), StatusCode::NOT_IMPLEMENTED);
        Answer { status, headers, text: response.text().await.unwrap() }
    }

    pub async fn call(&self, method: &str, path: &str, key: &str, body: Option<Value>) -> Answer {
        let request = self.request(method, path).bearer_auth(key);
        self.send(match body {
            Some(body) => request.json(&body),
            None => request,
        })
        .await
    }

    pub async fn get(&self, path: &str, key: &str) -> Answer {
        self.call("GET", path, key, None).await
    }

    pub async fn post(&self, path: &str, key: &str, body: Value) -> Answer {
        self.call("POST", path, key, Some(body)).await
    }

    /// A new tenant's id.
    pub async fn tenant(&self, name: &str) -> String {
        let answer = self.post("/v1/tenants", PLATFORM_KEY, json!({ "name": name })).await.expect(201);
        answer.json()["id"].as_str().unwrap().to_owned()
    }

    /// A new key of a tenant.
    pub async fn key(&self, tenant: &str, scopes: &[&str]) -> String {
        let path = format!("/v1/tenants/{tenant}/api-keys");
        let answer = self.post(&path, PLATFORM_KEY, json!({ "name": "test", "scopes": scopes })).await.expect(201);
        answer.json()["key"].as_str().unwrap().to_owned()
    }

    /// Closes the doors; the database goes with the stand.
    pub async fn end(mut self) {
        if let Some(running) = self.running.take() {
            running.stop().await;
        }
        self.app.db.close();
    }
}

/// Returns once `holds`, or fails after `within`.
pub async fn eventually(within: Duration, mut holds: impl AsyncFnMut() -> bool) {
    crate::support::eventually(within, "what the test waits for", async || holds().await.then_some(())).await;
}

/// A moment for clocks that stand still.
pub fn morning() -> DateTime<Utc> {
    "2026-11-21T09:30:00Z".parse().unwrap()
}
