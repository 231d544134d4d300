//! A WAHA server that says of itself what a test wants, and nothing else.

use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use actix_web::web::{self, Data};
use actix_web::{App, HttpRequest, HttpResponse, HttpServer};
use serde_json::{Value, json};

/// The key it takes.
pub const KEY: &str = "key-of-the-said-waha";

struct Said {
    version: Value,
    fails: Option<String>,
    calls: usize,
}

/// The server; it ends with the test's process.
pub struct SaidWaha {
    pub url: String,
    said: Arc<Mutex<Said>>,
}

impl SaidWaha {
    /// Says that it is of this version, engine and edition.
    pub fn start(version: &str, engine: &str, tier: Option<&str>) -> Self {
        let said = Said { version: json!(null), fails: None, calls: 0 };
        let said = Arc::new(Mutex::new(said));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let data = Arc::clone(&said);
        let server = HttpServer::new(move || {
            App::new().app_data(Data::from(Arc::clone(&data))).default_service(web::to(answer))
        });
        tokio::spawn(server.workers(1).disable_signals().listen(listener).unwrap().run());
        let waha = Self { url, said };
        waha.says(version, engine, tier);
        waha
    }

    /// From now on it says this.
    pub fn says(&self, version: &str, engine: &str, tier: Option<&str>) {
        let mut answer = json!({"version": version, "engine": engine, "browser": null, "worker": {"id": null}});
        if let Some(tier) = tier {
            answer["tier"] = json!(tier);
        }
        self.said.lock().unwrap().version = answer;
    }

    /// From now on a call of this path fails; none does with `None`.
    pub fn fails(&self, path: Option<&str>) {
        self.said.lock().unwrap().fails = path.map(str::to_owned);
    }

    /// How often it was called.
    pub fn calls(&self) -> usize {
        self.said.lock().unwrap().calls
    }
}

async fn answer(said: Data<Mutex<Said>>, request: HttpRequest) -> HttpResponse {
    let mut said = said.lock().unwrap();
    said.calls += 1;
    if request.headers().get("x-api-key").is_none_or(|key| key != KEY) {
        return HttpResponse::Unauthorized().json(json!({"message": "Unauthorized", "statusCode": 401}));
    }
    if said.fails.as_deref() == Some(request.path()) {
        return HttpResponse::BadGateway().body("<html>");
    }
    HttpResponse::Ok().json(match request.path() {
        "/ping" => json!({"message": "pong"}),
        "/api/server/version" => said.version.clone(),
        "/api/server/status" => json!({"startTimestamp": 1_795_211_258_844_i64, "uptime": 1000, "worker": {"id": ""}}),
        "/api/sessions" => json!([]),
        _ => return HttpResponse::NotFound().json(json!({"message": "Not Found", "statusCode": 404})),
    })
}
