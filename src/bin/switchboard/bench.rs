//! `switchboard bench`: what the gateway accepts, beside what the same database does with one insert per commit.
//!
//! Machines differ, and the same machine differs from minute to minute; so both sides run in one go, in turns, and the ratio
//! is what counts. The gateway runs as a process of its own, over HTTP, with everything a tenant's request goes through.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use diesel_async::{AsyncConnection as _, AsyncPgConnection, SimpleAsyncConnection as _};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Value, json};
use switchboard::config::Config;
use switchboard::db::migrate;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use url::Url;

const PLATFORM_KEY: &str = "switchboard-bench-platform-key";
const MASTER_KEY: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

/// Arguments of `bench`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Seconds of each run
    #[arg(long, default_value_t = 8)]
    seconds: u64,
    /// Connections at once, on either side
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Sessions that the messages are spread over
    #[arg(long, default_value_t = 100)]
    sessions: usize,
    /// How often the two sides take turns
    #[arg(long, default_value_t = 3)]
    turns: usize,
}

pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let config = Config::load()?;
    let bench = Bench::set_up(&config, arguments).await?;
    let result = bench.measure().await;
    bench.tear_down().await?;
    result
}

struct Bench {
    arguments: Arguments,
    admin: SecretString,
    database: String,
    url: SecretString,
    address: String,
    gateway: Child,
}

/// One run of the gateway's side.
struct Accepted {
    per_second: f64,
    p50: Duration,
    p99: Duration,
    /// Processor time of the gateway, in microseconds a message.
    micros: f64,
}

impl Bench {
    async fn set_up(config: &Config, arguments: Arguments) -> anyhow::Result<Self> {
        let admin = config.database.url.clone();
        let database = format!("switchboard_bench_{}", std::process::id());
        execute(&admin, &format!("CREATE DATABASE {database} ENCODING 'UTF8' TEMPLATE template0")).await?;
        let mut url = Url::parse(admin.expose_secret())?;
        url.set_path(&database);
        let url = SecretString::from(String::from(url));
        migrate::up(&url).await?;
        // The twin has the same columns, checks and indexes.
        execute(&url, "CREATE TABLE twin (LIKE messages INCLUDING ALL) WITH (fillfactor = 85)").await?;
        let port = free_port()?;
        let gateway = Command::new(std::env::current_exe()?)
            .args(["serve", "--roles", "api", "--no-migrate"])
            .env("DATABASE_URL", url.expose_secret())
            .env("AMQP_URL", config.amqp_url.expose_secret())
            .env("SWITCHBOARD_BIND", format!("127.0.0.1:{port}"))
            .env("SWITCHBOARD_BROKER_NAMESPACE", &database)
            .env("SWITCHBOARD_MASTER_KEY", MASTER_KEY)
            .env("SWITCHBOARD_PLATFORM_KEY", PLATFORM_KEY)
            .env("SWITCHBOARD_LOG", "error")
            .kill_on_drop(true)
            .spawn()
            .context("the gateway cannot be started")?;
        let bench = Self { arguments, admin, database, url, address: format!("127.0.0.1:{port}"), gateway };
        bench.wait_ready().await?;
        Ok(bench)
    }

    async fn tear_down(mut self) -> anyhow::Result<()> {
        self.gateway.kill().await?;
        execute(&self.admin, &format!("DROP DATABASE {} WITH (FORCE)", self.database)).await
    }

    async fn wait_ready(&self) -> anyhow::Result<()> {
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(20) {
            if let Ok(mut connection) = Connection::open(&self.address).await
                && let Ok((200, _)) = connection.exchange(&request("GET", "/readyz", "", None)).await
            {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        bail!("the gateway did not become ready");
    }

    async fn measure(&self) -> anyhow::Result<()> {
        let requests = self.requests().await?;
        let seconds = Duration::from_secs(self.arguments.seconds);
        println!(
            "{} connections, {} sessions, {} s a run; one insert per commit (pgbench, prepared) beside accepted messages",
            self.arguments.connections, self.arguments.sessions, self.arguments.seconds
        );
        // Prepared statements, caches and the gateway's connections: not counted.
        self.accept(&requests, Duration::from_secs(2)).await?;
        println!(
            "{:>4}  {:>12}  {:>12}  {:>6}  {:>9}  {:>9}  {:>12}",
            "turn", "pgbench /s", "accept /s", "ratio", "p50 ms", "p99 ms", "gateway µs"
        );
        let mut ratios = Vec::new();
        for turn in 1..=self.arguments.turns {
            let baseline = self.pgbench().await?;
            let accepted = self.accept(&requests, seconds).await?;
            let ratio = accepted.per_second / baseline;
            println!(
                "{turn:>4}  {baseline:>12.0}  {:>12.0}  {ratio:>6.2}  {:>9.1}  {:>9.1}  {:>12.0}",
                accepted.per_second,
                accepted.p50.as_secs_f64() * 1e3,
                accepted.p99.as_secs_f64() * 1e3,
                accepted.micros
            );
            ratios.push(ratio);
        }
        ratios.sort_by(f64::total_cmp);
        let median = ratios.get(ratios.len() / 2).copied().unwrap_or_default();
        println!("accept / one insert per commit, median: {median:.2}");
        Ok(())
    }

    /// A request to send for each session.
    async fn requests(&self) -> anyhow::Result<Vec<Vec<u8>>> {
        let mut api = Connection::open(&self.address).await?;
        let server = json!({"name": "bench", "base_url": "http://127.0.0.1:9", "api_key": "x", "engine": "NOWEB", "capacity": 100_000});
        api.create("/v1/waha-servers", PLATFORM_KEY, &server).await?;
        let tenant = api.create("/v1/tenants", PLATFORM_KEY, &json!({"name": "bench"})).await?;
        let path = format!("/v1/tenants/{}/api-keys", member(&tenant, "id")?);
        let minted = api.create(&path, PLATFORM_KEY, &json!({"name": "bench", "scopes": ["*"]})).await?;
        let key = member(&minted, "key")?;
        let mut requests = Vec::new();
        for number in 0..self.arguments.sessions {
            let session =
                api.create("/v1/sessions", &key, &json!({"name": format!("s{number}"), "start": false})).await?;
            let message = json!({
                "session_id": member(&session, "id")?, "to": "+15550101234",
                "body": "Your order 4711 has left the house and will be with you tomorrow.", "metadata": {"order": "4711"},
            });
            requests.push(request("POST", "/v1/messages", &key, Some(&message)));
        }
        Ok(requests)
    }

    async fn accept(&self, requests: &[Vec<u8>], duration: Duration) -> anyhow::Result<Accepted> {
        let before = self.processor_time();
        let started = Instant::now();
        let until = started + duration;
        let mut clients = tokio::task::JoinSet::new();
        for number in 0..self.arguments.connections {
            let (address, requests) = (self.address.clone(), requests.to_vec());
            clients.spawn(async move {
                let mut connection = Connection::open(&address).await?;
                let mut times = Vec::new();
                for request in requests.iter().cycle().skip(number) {
                    let begun = Instant::now();
                    if begun >= until {
                        break;
                    }
                    let (status, body) = connection.exchange(request).await?;
                    if status != 202 {
                        bail!("a message was answered {status}: {}", String::from_utf8_lossy(&body));
                    }
                    times.push(begun.elapsed());
                }
                Ok(times)
            });
        }
        let mut times = Vec::new();
        while let Some(ended) = clients.join_next().await {
            times.extend(ended??);
        }
        let took = started.elapsed();
        times.sort_unstable();
        let at = |share: usize| times.get(times.len().saturating_sub(1) * share / 100).copied().unwrap_or_default();
        let count = f64::from(u32::try_from(times.len()).unwrap_or(u32::MAX)).max(1.0);
        let processor = self.processor_time().saturating_sub(before);
        Ok(Accepted {
            per_second: count / took.as_secs_f64(),
            p50: at(50),
            p99: at(99),
            micros: processor.as_secs_f64() * 1e6 / count,
        })
    }

    /// What the gateway's process has used so far (Linux).
    fn processor_time(&self) -> Duration {
        let stat = self.gateway.id().and_then(|id| std::fs::read_to_string(format!("/proc/{id}/stat")).ok());
        let fields: Vec<u64> = stat
            .as_deref()
            .and_then(|stat| stat.rsplit_once(')'))
            .map(|(_, fields)| fields.split_whitespace().map(|field| field.parse().unwrap_or(0)).collect())
            .unwrap_or_default();
        // utime and stime, in hundredths of a second, are the 14th and 15th field; the first two are cut off.
        let ticks: u64 = fields.iter().skip(11).take(2).sum();
        Duration::from_millis(ticks * 10)
    }

    async fn pgbench(&self) -> anyhow::Result<f64> {
        let script = std::env::temp_dir().join(format!("{}.sql", self.database));
        std::fs::write(
            &script,
            "INSERT INTO twin (tenant_id, id, session_id, direction, status, priority, message_type, chat_id, to_msisdn, body, \
             metadata, waha_message_id, created_at, updated_at) VALUES ('00000000-0000-0000-0000-000000000001', \
             gen_random_uuid(), '00000000-0000-0000-0000-000000000002', 'outbound', 'queued', 1, 'text', \
             '15550101234@c.us', '+15550101234', 'Your order 4711 has left the house and will be with you tomorrow.', \
             '{\"order\": \"4711\"}', gen_random_uuid(), now(), now());\n",
        )?;
        let connections = self.arguments.connections.to_string();
        let output = Command::new(pgbench_binary()?)
            .args([
                "-n",
                "-M",
                "prepared",
                "-j",
                "2",
                "-c",
                &connections,
                "-T",
                &self.arguments.seconds.to_string(),
                "-f",
            ])
            .arg(&script)
            .arg(self.url.expose_secret())
            .stdin(Stdio::null())
            .output()
            .await?;
        let _gone = std::fs::remove_file(&script);
        let text = String::from_utf8_lossy(&output.stdout);
        let rate = text.lines().find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok());
        rate.with_context(|| format!("pgbench: {}", String::from_utf8_lossy(&output.stderr).trim()))
    }
}

/// `pgbench` from the path, or from where Debian keeps the server's own programs.
fn pgbench_binary() -> anyhow::Result<PathBuf> {
    let in_path =
        std::env::var_os("PATH").into_iter().flat_map(|path| std::env::split_paths(&path).collect::<Vec<_>>());
    let packaged =
        std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten().map(|entry| entry.path().join("bin"));
    let mut found: Vec<_> =
        in_path.chain(packaged).map(|folder| folder.join("pgbench")).filter(|file| file.is_file()).collect();
    found.pop().context("pgbench is not installed (Debian: the package postgresql-contrib or postgresql-15)")
}

async fn execute(url: &SecretString, statement: &str) -> anyhow::Result<()> {
    let mut conn = AsyncPgConnection::establish(url.expose_secret()).await.context("DATABASE_URL")?;
    conn.batch_execute(statement).await.with_context(|| statement.to_owned())
}

fn free_port() -> anyhow::Result<u16> {
    Ok(std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

fn member(value: &Value, name: &str) -> anyhow::Result<String> {
    value.get(name).and_then(Value::as_str).map(str::to_owned).with_context(|| format!("an answer without `{name}`"))
}

fn request(method: &str, path: &str, key: &str, body: Option<&Value>) -> Vec<u8> {
    let body = body.map(Value::to_string).unwrap_or_default();
    let length = body.len();
    format!(
        "{method} {path} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

/// A connection that is kept alive; as little work as possible, since the client shares the machine.
struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    async fn open(address: &str) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: vec![0; 64 * 1024] })
    }

    /// The status and body that answer `request`.
    async fn exchange(&mut self, request: &[u8]) -> anyhow::Result<(u16, Vec<u8>)> {
        self.stream.write_all(request).await?;
        let mut filled = 0;
        loop {
            let read = self.stream.read(self.buffer.get_mut(filled..).unwrap_or_default()).await?;
            if read == 0 {
                bail!("the gateway closed the connection");
            }
            filled += read;
            let answer = self.buffer.get(..filled).unwrap_or_default();
            let Some(head) = answer.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
            let (head, body) = answer.split_at(head + 4);
            let head = std::str::from_utf8(head)?.to_ascii_lowercase();
            let length: usize = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok())
                .context("an answer without its length")?;
            if body.len() >= length {
                let status = head
                    .split(' ')
                    .nth(1)
                    .and_then(|status| status.parse().ok())
                    .context("an answer without status")?;
                return Ok((status, body.to_vec()));
            }
        }
    }

    async fn create(&mut self, path: &str, key: &str, body: &Value) -> anyhow::Result<Value> {
        let (status, answer) = self.exchange(&request("POST", path, key, Some(body))).await?;
        if !(200..300).contains(&status) {
            bail!("POST {path} answered {status}: {}", String::from_utf8_lossy(&answer));
        }
        Ok(serde_json::from_slice(&answer)?)
    }
}
