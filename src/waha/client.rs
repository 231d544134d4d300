//! One HTTP client for all WAHA servers.
//!
//! Every call runs as a task on the runtime the client was made with, never on the caller's: pooled connections belong to the
//! runtime that opened them, and a caller that goes away does not cut a call in half.

use std::fmt;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{Method, StatusCode, redirect};
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use tokio::runtime::Handle;
use url::Url;

use super::error::CallError;

/// The largest answer that is read.
const LARGEST_ANSWER: usize = 16 * 1024 * 1024;

/// How long calls may take.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// Until a connection stands.
    pub connect: Duration,
    /// Health and version calls, from the first byte out to the last byte in.
    pub probe: Duration,
    /// Everything else but sends. WAHA waits up to 15 s before it says that a session is in the wrong state, so less than
    /// about 20 s turns clear answers into doubts.
    pub control: Duration,
    /// How long an unused connection is kept; shorter than WAHA keeps it, so that a request seldom meets a closing one.
    pub idle: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(3),
            probe: Duration::from_secs(5),
            control: Duration::from_secs(30),
            idle: Duration::from_secs(4),
        }
    }
}

/// Which WAHA server a call goes to.
#[derive(Clone)]
pub struct Server {
    /// Where it listens, with or without a path in front of `/api`.
    pub base_url: Url,
    /// The key it knows the gateway by.
    pub api_key: SecretString,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("host", &self.base_url.host_str())
            .field("port", &self.base_url.port_or_known_default())
            .finish_non_exhaustive()
    }
}

/// The client of all WAHA servers; clones share its connections.
#[derive(Clone, Debug)]
pub struct WahaClient {
    http: reqwest::Client,
    handle: Handle,
    timeouts: Timeouts,
}

/// An answer, whole.
pub(super) struct Answer {
    pub status: StatusCode,
    pub retry_after: Option<Duration>,
    pub body: Bytes,
}

/// Why there is no whole answer.
#[derive(Debug)]
pub(super) enum NoAnswer {
    /// The request did not come about or the exchange broke.
    Transport(reqwest::Error),
    /// The server answered with `status`, but the body broke off or grew too large.
    Body { status: StatusCode, timed_out: bool },
    /// The runtime is going away.
    Stopping,
}

impl From<NoAnswer> for CallError {
    fn from(cause: NoAnswer) -> Self {
        match cause {
            NoAnswer::Transport(error) => Self::from_transport(&error),
            NoAnswer::Body { timed_out: true, .. } => Self::TimedOut,
            NoAnswer::Body { timed_out: false, .. } => Self::BadAnswer("the body broke off or is too large"),
            NoAnswer::Stopping => Self::Stopping,
        }
    }
}

impl WahaClient {
    /// A client whose calls run on `handle`.
    ///
    /// # Errors
    /// When the TLS backend cannot be set up.
    pub fn new(handle: Handle, timeouts: Timeouts) -> Result<Self, reqwest::Error> {
        // Fails only if somebody installed one already, which is as good.
        let _already_installed = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .http1_only()
            .redirect(redirect::Policy::none())
            .retry(reqwest::retry::never())
            .no_proxy()
            .referer(false)
            .connect_timeout(timeouts.connect)
            .pool_idle_timeout(timeouts.idle)
            .pool_max_idle_per_host(64)
            .tcp_nodelay(true)
            .tcp_keepalive(Duration::from_secs(15))
            .build()?;
        Ok(Self { http, handle, timeouts })
    }

    pub(super) fn timeouts(&self) -> &Timeouts {
        &self.timeouts
    }

    /// Starts a request for `segments` below the server's base address; each is escaped.
    pub(super) fn request(&self, server: &Server, method: Method, segments: &[&str]) -> Call {
        let mut url = server.base_url.clone();
        let mut path = url.path().trim_end_matches('/').to_owned();
        for segment in segments {
            path.push('/');
            path.push_str(&escape(segment));
        }
        url.set_path(&path);
        url.set_query(None);
        url.set_fragment(None);
        let mut headers = HeaderMap::new();
        // A key that fits in no header is refused by the server like any other wrong key.
        if let Ok(mut key) = HeaderValue::from_str(server.api_key.expose_secret()) {
            key.set_sensitive(true);
            headers.insert("x-api-key", key);
        }
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        Call { client: self.clone(), method, url, headers, body: None, timeout: self.timeouts.control }
    }
}

/// A call being put together.
pub(super) struct Call {
    client: WahaClient,
    method: Method,
    url: Url,
    headers: HeaderMap,
    body: Option<Bytes>,
    timeout: Duration,
}

impl Call {
    pub(super) fn query(mut self, name: &str, value: &str) -> Self {
        self.url.query_pairs_mut().append_pair(name, value);
        self
    }

    pub(super) fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    pub(super) fn request_id(mut self, id: Option<&str>) -> Self {
        if let Some(id) = id.and_then(|id| HeaderValue::from_str(id).ok()) {
            self.headers.insert("x-request-id", id);
        }
        self
    }

    pub(super) fn json(mut self, body: &impl Serialize) -> Result<Self, CallError> {
        let body = serde_json::to_vec(body).map_err(|_| CallError::BadAnswer("the request could not be written"))?;
        self.body = Some(Bytes::from(body));
        self.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Ok(self)
    }

    /// Makes the call and waits for the whole answer, whatever its status.
    pub(super) async fn exchange(self) -> Result<Answer, NoAnswer> {
        let Self { client, method, url, headers, body, timeout } = self;
        let http = client.http;
        metrics::counter!("switchboard_waha_calls_total", "method" => method_label(&method)).increment(1);
        let task = client.handle.spawn(async move {
            let mut request = http.request(method, url).headers(headers).timeout(timeout);
            if let Some(body) = body {
                request = request.body(body);
            }
            let response = request.send().await.map_err(|error| NoAnswer::Transport(error.without_url()))?;
            read(response).await
        });
        task.await.unwrap_or(Err(NoAnswer::Stopping))
    }

    /// Makes the call and waits for the head of the answer only. Read its body on the process-wide runtime.
    pub(super) async fn begin(self) -> Result<reqwest::Response, CallError> {
        let Self { client, method, url, mut headers, timeout, .. } = self;
        headers.insert(ACCEPT, HeaderValue::from_static("*/*"));
        let http = client.http;
        metrics::counter!("switchboard_waha_calls_total", "method" => method_label(&method)).increment(1);
        let task = client
            .handle
            .spawn(async move { http.request(method, url).headers(headers).timeout(timeout).send().await });
        let answer = task.await.map_err(|_| CallError::Stopping)?;
        answer.map_err(|error| CallError::from_transport(&error))
    }

    /// Makes the call; any status but 2xx is an error.
    pub(super) async fn ok(self) -> Result<Bytes, CallError> {
        let answer = self.exchange().await?;
        if answer.status.is_success() {
            Ok(answer.body)
        } else {
            Err(CallError::from_answer(answer.status, &answer.body))
        }
    }
}

fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        _ => "other",
    }
}

async fn read(mut response: reqwest::Response) -> Result<Answer, NoAnswer> {
    let status = response.status();
    let retry_after = response
        .headers()
        .get(RETRY_AFTER)
        .and_then(|value| value.to_str().ok())
        .and_then(|seconds| seconds.trim().parse().ok())
        .map(Duration::from_secs);
    let mut body = BytesMut::new();
    loop {
        match response.chunk().await {
            Ok(None) => return Ok(Answer { status, retry_after, body: body.freeze() }),
            Ok(Some(chunk)) if body.len().saturating_add(chunk.len()) <= LARGEST_ANSWER => {
                body.extend_from_slice(&chunk);
            }
            Ok(Some(_)) => return Err(NoAnswer::Body { status, timed_out: false }),
            Err(error) => return Err(NoAnswer::Body { status, timed_out: error.is_timeout() }),
        }
    }
}

/// One path segment, everything but unreserved characters escaped (WAHA wants `@` as `%40`).
fn escape(segment: &str) -> String {
    // The form encoding differs only in the space.
    let escaped: String = url::form_urlencoded::byte_serialize(segment.as_bytes()).collect();
    match escaped.as_str() {
        // Dot segments would be folded away.
        "." | ".." => escaped.replace('.', "%252E"),
        _ => escaped.replace('+', "%20"),
    }
}
