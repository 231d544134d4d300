//! A way to a WAHA server that counts the calls.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use actix_web::web::{self, Bytes, Data};
use actix_web::{App, HttpRequest, HttpResponse, HttpServer};

struct Shared {
    target: String,
    http: reqwest::Client,
    calls: Mutex<BTreeMap<String, usize>>,
}

/// Passes every call on and counts it; `METHOD path`, and for creations `create`, as the session's name is in the body.
pub struct Counter {
    pub url: String,
    shared: Arc<Shared>,
}

impl Counter {
    pub fn before(target: &str) -> Self {
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let shared = Arc::new(Shared { target: target.to_owned(), http, calls: Mutex::default() });
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let data = Arc::clone(&shared);
        let server =
            HttpServer::new(move || App::new().app_data(Data::from(Arc::clone(&data))).default_service(web::to(pass)));
        let server = server.workers(1).disable_signals().listen(listener).unwrap().run();
        tokio::spawn(server);
        Self { url, shared }
    }

    /// How often each call was made whose name begins with `prefix`.
    pub fn calls(&self, prefix: &str) -> BTreeMap<String, usize> {
        let calls = self.shared.calls.lock().unwrap();
        calls.iter().filter(|(name, _)| name.starts_with(prefix)).map(|(name, count)| (name.clone(), *count)).collect()
    }

    pub fn forget(&self) {
        self.shared.calls.lock().unwrap().clear();
    }
}

async fn pass(shared: Data<Shared>, request: HttpRequest, body: Bytes) -> HttpResponse {
    let mut name = format!("{} {}", request.method(), request.path());
    if name == "POST /api/sessions" {
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        name = format!("create {}", body["name"].as_str().unwrap());
    }
    *shared.calls.lock().unwrap().entry(name).or_default() += 1;
    let method = reqwest::Method::from_bytes(request.method().as_str().as_bytes()).unwrap();
    let mut call = shared.http.request(method, format!("{}{}", shared.target, request.uri())).body(body.to_vec());
    for name in ["x-api-key", "content-type", "accept"] {
        if let Some(value) = request.headers().get(name) {
            call = call.header(name, value.as_bytes());
        }
    }
    let Ok(answer) = call.send().await else { return HttpResponse::BadGateway().finish() };
    let status = actix_web::http::StatusCode::from_u16(answer.status().as_u16()).unwrap();
    let mut response = HttpResponse::build(status);
    if let Some(kind) = answer.headers().get("content-type") {
        response.insert_header(("content-type", kind.as_bytes()));
    }
    response.body(answer.bytes().await.unwrap_or_default())
}
