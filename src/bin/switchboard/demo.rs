//! The demonstration of `serve --dev`: a simulated WAHA server, a tenant `demo` with one of everything, and a message that
//! travels the whole way before one's eyes. It uses the public API only, as a tenant's backend would.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use actix_web::{HttpRequest, HttpResponse, HttpServer, web};
use anyhow::{Context as _, bail};
use chrono::{DateTime, Local, Utc};
use reqwest::{Method, StatusCode};
use secrecy::SecretString;
use serde_json::{Value, json};
use switchboard::app::App;
use switchboard::delivery::sign::{self, SigningSecret};
use switchboard::simulator::{Engine, Simulator, SimulatorConfig};

/// The platform key of development, which everybody knows.
pub const PLATFORM_KEY: &str = "switchboard-development-platform-key";

/// A number of the simulator's that reads and replies.
const RECIPIENT: &str = "+15550100007";

/// How long each part of the demonstration may take.
const PATIENCE: Duration = Duration::from_secs(40);

/// The demonstration's own processes.
pub struct Demo {
    simulator: Simulator,
    receiver: actix_web::dev::ServerHandle,
    board: web::Data<Board>,
    api: Api,
    receiver_url: String,
}

/// What the receiver of webhooks needs to know, and what it saw.
#[derive(Default)]
struct Board {
    secret: Mutex<Option<SigningSecret>>,
    seen: Mutex<HashSet<String>>,
    message: Mutex<Option<String>>,
    reply: tokio::sync::Notify,
}

struct Api {
    http: reqwest::Client,
    base: String,
}

impl Demo {
    /// Starts the simulated WAHA server and the receiver of webhooks.
    pub async fn start(app: &App) -> anyhow::Result<Self> {
        let simulator = Simulator::start(SimulatorConfig {
            api_key: SecretString::from("simulator".to_owned()),
            engine: Engine::Noweb,
            auto_pair: true,
            time_scale: 4.0,
            ..SimulatorConfig::default()
        })
        .await
        .context("the simulated WAHA server")?;
        let board = web::Data::new(Board::default());
        let shared = board.clone();
        let server = HttpServer::new(move || {
            actix_web::App::new().app_data(shared.clone()).route("/webhooks", web::post().to(receive))
        })
        .workers(1)
        .disable_signals()
        .bind(("127.0.0.1", 0))
        .context("the receiver of webhooks")?;
        let address = server.addrs().first().copied().context("the receiver of webhooks")?;
        let server = server.run();
        let receiver = server.handle();
        drop(tokio::spawn(server));
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(20)).build()?;
        let api = Api { http, base: format!("http://{}", app.config.bind) };
        Ok(Self { simulator, receiver, board, api, receiver_url: format!("http://{address}/webhooks") })
    }

    /// Sets everything up, sends the message, prints its timeline, and stays.
    pub async fn show(&self) -> anyhow::Result<()> {
        tokio::time::timeout(PATIENCE, self.travel())
            .await
            .context("the demonstration did not come to its end in time")??;
        std::future::pending().await
    }

    pub async fn stop(self) {
        self.receiver.stop(false).await;
        self.simulator.stop().await;
    }

    async fn travel(&self) -> anyhow::Result<()> {
        let tenant = self.tenant().await?;
        let key = self.key(&tenant).await?;
        self.waha_server().await?;
        self.endpoint(&key).await?;
        let session = self.session(&key).await?;
        println!("\nA message on its way (session {session}, to {RECIPIENT}):\n");
        let sent = json!({"session_id": session, "to": RECIPIENT, "body": "Hello from Switchboard", "metadata": {"demo": true}});
        let message = self.api.call(&key, Method::POST, "/v1/messages", Some(&sent)).await?;
        let id = text(&message, "id")?;
        self.board.follow(&id);
        self.timeline(&key, &id).await?;
        self.board.reply.notified().await;
        println!(
            "\nReady. Everything stays up until Ctrl-C.\n\n  API      {base}\n  docs     {base}/docs\n  key      {key}\n  try      \
             curl -s {base}/v1/messages -H 'Authorization: Bearer {key}' -H 'Content-Type: application/json' \\\n           \
             -H \"Idempotency-Key: $(date +%s%N)\" -d '{{\"to\": \"+15550100001\", \"body\": \"Hello\"}}'\n",
            base = self.api.base
        );
        Ok(())
    }

    async fn tenant(&self) -> anyhow::Result<String> {
        let found = self.api.find(PLATFORM_KEY, "/v1/tenants", "demo").await?;
        let tenant = match found {
            Some(tenant) => tenant,
            None => self.api.call(PLATFORM_KEY, Method::POST, "/v1/tenants", Some(&json!({"name": "demo"}))).await?,
        };
        text(&tenant, "id")
    }

    /// The tenant's key: the one of the last run, else a new one.
    async fn key(&self, tenant: &str) -> anyhow::Result<String> {
        let file = key_file();
        if let Ok(kept) = std::fs::read_to_string(&file)
            && let Some((owner, key)) = kept.trim().split_once(' ')
            && owner == tenant
            && self.api.call(key, Method::GET, "/v1/tenant", None).await.is_ok()
        {
            return Ok(key.to_owned());
        }
        let path = format!("/v1/tenants/{tenant}/api-keys");
        let minted =
            self.api.call(PLATFORM_KEY, Method::POST, &path, Some(&json!({"name": "demo", "scopes": ["*"]}))).await?;
        let key = text(&minted, "key")?;
        if let Err(fault) = keep(&file, &format!("{tenant} {key}\n")) {
            tracing::warn!(%fault, "the key cannot be kept for the next run");
        }
        Ok(key)
    }

    async fn waha_server(&self) -> anyhow::Result<()> {
        let mut server = json!({"base_url": self.simulator.url(), "api_key": "simulator"});
        match self.api.find(PLATFORM_KEY, "/v1/waha-servers", "simulator").await? {
            Some(known) => {
                let path = format!("/v1/waha-servers/{}", text(&known, "id")?);
                self.api.call(PLATFORM_KEY, Method::PATCH, &path, Some(&server)).await?;
            }
            None => {
                if let Some(members) = server.as_object_mut() {
                    members.extend([
                        ("name".to_owned(), json!("simulator")),
                        ("engine".to_owned(), json!("NOWEB")),
                        ("capacity".to_owned(), json!(100)),
                    ]);
                }
                self.api.call(PLATFORM_KEY, Method::POST, "/v1/waha-servers", Some(&server)).await?;
            }
        }
        Ok(())
    }

    async fn endpoint(&self, key: &str) -> anyhow::Result<()> {
        let listed = self.api.call(key, Method::GET, "/v1/webhook-endpoints", None).await?;
        let known = entries(&listed).find(|entry| entry.get("description") == Some(&json!("demo")));
        let wanted = json!({"url": self.receiver_url, "event_types": ["*"], "description": "demo"});
        let id = match known {
            Some(known) => {
                let id = text(known, "id")?;
                let patch = json!({"url": self.receiver_url, "enabled": true});
                self.api.call(key, Method::PATCH, &format!("/v1/webhook-endpoints/{id}"), Some(&patch)).await?;
                id
            }
            None => text(&self.api.call(key, Method::POST, "/v1/webhook-endpoints", Some(&wanted)).await?, "id")?,
        };
        let secret = self.api.call(key, Method::GET, &format!("/v1/webhook-endpoints/{id}/secret"), None).await?;
        let secret =
            SigningSecret::parse(&text(&secret, "secret")?).ok().context("the endpoint's secret cannot be read")?;
        if let Ok(mut held) = self.board.secret.lock() {
            *held = Some(secret);
        }
        Ok(())
    }

    async fn session(&self, key: &str) -> anyhow::Result<String> {
        let id = match self.api.find(key, "/v1/sessions", "demo").await? {
            Some(session) => text(&session, "id")?,
            None => {
                let wanted = json!({"name": "demo", "engine": "NOWEB"});
                text(&self.api.call(key, Method::POST, "/v1/sessions", Some(&wanted)).await?, "id")?
            }
        };
        print_line("session", "created; waiting until it is paired");
        loop {
            let session = self.api.call(key, Method::GET, &format!("/v1/sessions/{id}"), None).await?;
            if session.get("status") == Some(&json!("working")) {
                print_line("session", "working");
                return Ok(id);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn timeline(&self, key: &str, id: &str) -> anyhow::Result<()> {
        let mut shown = 0;
        loop {
            let history = self.api.call(key, Method::GET, &format!("/v1/messages/{id}/transitions"), None).await?;
            let steps: Vec<&Value> = entries(&history).collect();
            for step in steps.iter().skip(shown) {
                let at: Option<DateTime<Utc>> = text(step, "at")?.parse().ok();
                print_line_at(at, "message", &format!("{:<10} ({})", text(step, "status")?, text(step, "cause")?));
            }
            shown = steps.len();
            match steps.last().and_then(|step| step.get("status")).and_then(Value::as_str) {
                Some("read" | "played") => return Ok(()),
                Some(end @ ("failed" | "cancelled" | "expired")) => bail!("the message ended as {end}"),
                _ => tokio::time::sleep(Duration::from_millis(25)).await,
            }
        }
    }
}

impl Api {
    async fn call(&self, key: &str, method: Method, path: &str, body: Option<&Value>) -> anyhow::Result<Value> {
        let mut request = self.http.request(method.clone(), format!("{}{path}", self.base)).bearer_auth(key);
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = request.send().await.with_context(|| format!("{method} {path}"))?;
        let status = answer.status();
        let content: Value = if status == StatusCode::NO_CONTENT { Value::Null } else { answer.json().await? };
        if !status.is_success() {
            bail!(
                "{method} {path} answered {status}: {}",
                content.get("detail").and_then(Value::as_str).unwrap_or_default()
            );
        }
        Ok(content)
    }

    /// The entry called `name` in the list at `path`.
    async fn find(&self, key: &str, path: &str, name: &str) -> anyhow::Result<Option<Value>> {
        let mut cursor = String::new();
        loop {
            let page = self.call(key, Method::GET, &format!("{path}?limit=200{cursor}"), None).await?;
            if let Some(found) = entries(&page).find(|entry| entry.get("name").and_then(Value::as_str) == Some(name)) {
                return Ok(Some(found.clone()));
            }
            match page.get("next_cursor").and_then(Value::as_str) {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return Ok(None),
            }
        }
    }
}

impl Board {
    /// Shows, from now on, what concerns the message `id` and replies.
    fn follow(&self, id: &str) {
        if let Ok(mut message) = self.message.lock() {
            *message = Some(id.to_owned());
        }
    }
}

async fn receive(board: web::Data<Board>, request: HttpRequest, body: web::Bytes) -> HttpResponse {
    let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let id = header(sign::ID_HEADER);
    let secret = board.secret.lock().ok().and_then(|secret| secret.clone());
    let genuine = secret.zip(header(sign::TIMESTAMP_HEADER).parse().ok()).is_some_and(|(secret, timestamp)| {
        header(sign::SIGNATURE_HEADER)
            .split(' ')
            .any(|signature| signature == sign::sign(&[&secret], id, timestamp, &body))
    });
    if !genuine {
        return HttpResponse::Unauthorized().finish();
    }
    let event: Value = serde_json::from_slice(&body).unwrap_or_default();
    let kind = event.get("type").and_then(Value::as_str).unwrap_or_default();
    let message = event.pointer("/data/id").and_then(Value::as_str);
    let followed = board.message.lock().ok().and_then(|followed| followed.clone());
    let reply = kind == "message.received";
    let first = board.seen.lock().is_ok_and(|mut seen| seen.insert(id.to_owned()));
    if first && (reply || message.is_some() && message == followed.as_deref()) {
        print_line("webhook", &format!("{kind}, signature verified"));
    }
    if reply && followed.is_some() {
        let said = event.pointer("/data/body").and_then(Value::as_str).unwrap_or_default();
        print_line("reply", &format!("“{said}”"));
        board.reply.notify_one();
    }
    HttpResponse::NoContent().finish()
}

fn entries(list: &Value) -> impl Iterator<Item = &Value> {
    list.get("data").and_then(Value::as_array).into_iter().flatten()
}

fn text(value: &Value, member: &str) -> anyhow::Result<String> {
    value
        .get(member)
        .and_then(Value::as_str)
        .map(str::to_owned)
        .with_context(|| format!("an answer without `{member}`"))
}

fn print_line(what: &str, detail: &str) {
    print_line_at(None, what, detail);
}

#[expect(clippy::disallowed_methods, reason = "a time for people to read")]
fn print_line_at(at: Option<DateTime<Utc>>, what: &str, detail: &str) {
    let at = at.unwrap_or_else(Utc::now).with_timezone(&Local).format("%H:%M:%S%.3f");
    println!("  {at}  {what:<8}  {detail}");
}

/// Beside the build, so that a `cargo clean` forgets it and nothing else is touched.
fn key_file() -> PathBuf {
    let build = std::env::current_exe().ok();
    let folder = build.as_deref().and_then(Path::parent).unwrap_or(Path::new("."));
    folder.join("demo-api-key")
}

fn keep(file: &Path, content: &str) -> std::io::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    options.open(file)?.write_all(content.as_bytes())
}
