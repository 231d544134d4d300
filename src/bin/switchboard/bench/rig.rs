//! What is measured: a database, a gateway and a WAHA server of the run's own, each a process of its own.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use diesel_async::{AsyncConnection as _, AsyncPgConnection, SimpleAsyncConnection as _};
use secrecy::{ExposeSecret as _, SecretString};
use switchboard::broker::{Broker, BrokerConfig, ConsumeOptions, Queue, Verdict};
use switchboard::config::Config;
use switchboard::db::migrate;
use switchboard::domain::chance::Chance;
use switchboard::domain::ids::WahaServerId;
use tokio::process::{Child, Command};
use url::Url;

use super::load::{Connection, request};
use super::usage::Meter;

pub const PLATFORM_KEY: &str = "switchboard-bench-platform-key";
pub const MASTER_KEY: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

/// The twin has the same columns, checks and indexes.
const TWIN: &str = "CREATE TABLE twin (LIKE messages INCLUDING ALL) WITH (fillfactor = 85)";

/// One row of the twin, as a program without a gateway would write it: a statement and a commit for each message.
const INSERT: &str = "INSERT INTO twin (tenant_id, id, session_id, direction, status, priority, message_type, chat_id, to_msisdn, body, \
     metadata, waha_message_id, created_at, updated_at) VALUES ('00000000-0000-0000-0000-000000000001', \
     gen_random_uuid(), '00000000-0000-0000-0000-000000000002', 'outbound', 'queued', 1, 'text', \
     '15550101234@c.us', '+15550101234', 'Your order 4711 has left the house and will be with you tomorrow.', \
     '{\"order\": \"4711\"}', gen_random_uuid(), now(), now());\n";

/// What one insert per commit achieves.
#[derive(Default)]
pub struct Baseline {
    /// Inserts a second.
    pub rate: f64,
    /// Microseconds of processor for each.
    pub micros: f64,
}

/// A gateway with everything it needs, on its own.
pub struct Rig {
    pub admin: SecretString,
    pub amqp: SecretString,
    pub database: String,
    pub url: SecretString,
    /// Where the API listens.
    pub address: String,
    /// The processes of the gateway, by the names they are shown under.
    pub gateway: Vec<(String, Child)>,
    pub simulator: Option<Child>,
    /// Where the simulated WAHA servers listen.
    pub wahas: Vec<String>,
    /// The gateway's WAHA servers, whose queues are deleted in the end.
    pub servers: Vec<WahaServerId>,
}

impl Rig {
    /// A migrated database and nothing running.
    pub async fn new(config: &Config, name: &str) -> anyhow::Result<Self> {
        let admin = config.database.url.clone();
        let database = format!("switchboard_bench_{name}_{}", std::process::id());
        execute(&admin, &format!("CREATE DATABASE {database} ENCODING 'UTF8' TEMPLATE template0")).await?;
        let mut url = Url::parse(admin.expose_secret())?;
        url.set_path(&database);
        let url = SecretString::from(String::from(url));
        migrate::up(&url).await?;
        execute(&url, TWIN).await?;
        Ok(Self {
            admin,
            amqp: config.amqp_url.clone(),
            database,
            url,
            address: format!("127.0.0.1:{}", free_port()?),
            gateway: Vec::new(),
            simulator: None,
            wahas: Vec::new(),
            servers: Vec::new(),
        })
    }

    /// Starts `count` simulated WAHA servers in one process.
    pub async fn simulate(&mut self, count: usize, time_scale: f64) -> anyhow::Result<()> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("simulate").args([
            "--api-key",
            "simulator",
            "--engine",
            "NOWEB",
            "--time-scale",
            &time_scale.to_string(),
        ]);
        for _ in 0..count {
            let address = format!("127.0.0.1:{}", free_port()?);
            command.args(["--bind", &address]);
            self.wahas.push(address);
        }
        let child =
            command.stdout(Stdio::null()).kill_on_drop(true).spawn().context("the simulator cannot be started")?;
        self.simulator = Some(child);
        for waha in &self.wahas {
            wait_for(waha, "/ping").await?;
        }
        Ok(())
    }

    /// Starts a process of the gateway, shown as `name`.
    pub async fn serve(&mut self, name: &str, roles: &str) -> anyhow::Result<()> {
        let child = Command::new(std::env::current_exe()?)
            .args(["serve", "--no-migrate", "--roles", roles])
            .env("DATABASE_URL", self.url.expose_secret())
            .env("AMQP_URL", self.amqp.expose_secret())
            .env("SWITCHBOARD_BIND", &self.address)
            .env("SWITCHBOARD_PUBLIC_URL", format!("http://{}", self.address))
            .env("SWITCHBOARD_BROKER_NAMESPACE", &self.database)
            .env("SWITCHBOARD_MASTER_KEY", MASTER_KEY)
            .env("SWITCHBOARD_PLATFORM_KEY", PLATFORM_KEY)
            .env("SWITCHBOARD_ALLOW_PRIVATE_TARGETS", "true")
            .env("SWITCHBOARD_LOG", "error")
            .kill_on_drop(true)
            .spawn()
            .context("the gateway cannot be started")?;
        self.gateway.push((name.to_owned(), child));
        if roles.contains("api") {
            wait_for(&self.address, "/readyz").await?;
        }
        Ok(())
    }

    /// What autovacuum does within a minute: until then the planner knows nothing of the tables.
    pub async fn analyze(&self) -> anyhow::Result<()> {
        execute(&self.url, "ANALYZE").await
    }

    /// The processes that are measured, by name.
    pub fn processes(&self) -> Vec<(&str, u32)> {
        let gateway = self.gateway.iter().filter_map(|(name, child)| Some((name.as_str(), child.id()?)));
        let simulator = self.simulator.as_ref().and_then(|child| Some(("simulator", child.id()?)));
        gateway.chain(simulator).collect()
    }

    /// One insert per commit: transactions a second, and microseconds of processor for each, its client's included. Where the
    /// server has no room for so many connections at the moment, it is tried again.
    pub async fn pgbench(&self, connections: usize, seconds: u64) -> anyhow::Result<Baseline> {
        for _ in 0..10 {
            match self.pgbench_once(connections, seconds).await {
                Err(fault) if fault.to_string().contains("too many clients") => {
                    tokio::time::sleep(Duration::from_secs(2)).await;
                }
                result => return result,
            }
        }
        bail!("the database server has no room for {connections} connections (max_connections)")
    }

    async fn pgbench_once(&self, connections: usize, seconds: u64) -> anyhow::Result<Baseline> {
        let script = std::env::temp_dir().join(format!("{}.sql", self.database));
        std::fs::write(&script, INSERT)?;
        let (connections, duration) = (connections.to_string(), seconds.to_string());
        let child = Command::new(pgbench_binary()?)
            .args(["-n", "-M", "prepared", "-j", "2", "-c", &connections, "-T", &duration, "-f"])
            .arg(&script)
            .arg(self.url.expose_secret())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let pid = child.id().unwrap_or_default();
        let meter = Meter::start(&self.admin, &self.database, &[("pgbench", pid)], false).await?;
        let output = child.wait_with_output().await?;
        let used: Duration = meter
            .stop()
            .iter()
            .filter(|(name, _)| name == "pgbench" || name == "postgres")
            .map(|(_, used)| *used)
            .sum();
        let _gone = std::fs::remove_file(&script);
        let text = String::from_utf8_lossy(&output.stdout);
        let rate = text.lines().find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok());
        let rate: f64 = rate.with_context(|| format!("pgbench: {}", String::from_utf8_lossy(&output.stderr).trim()))?;
        let inserts = rate * f64::from(u32::try_from(seconds).unwrap_or(u32::MAX));
        Ok(Baseline { rate, micros: used.as_secs_f64() * 1e6 / inserts.max(1.0) })
    }

    /// Ends the processes of the gateway.
    pub async fn stop(&mut self) -> anyhow::Result<()> {
        for (_, mut child) in self.gateway.drain(..) {
            child.kill().await?;
        }
        Ok(())
    }

    /// Ends the processes and removes the database and the queues.
    pub async fn tear_down(mut self) -> anyhow::Result<()> {
        self.stop().await?;
        if let Some(simulator) = &mut self.simulator {
            simulator.kill().await?;
        }
        self.delete_queues().await;
        execute(&self.admin, &format!("DROP DATABASE {} WITH (FORCE)", self.database)).await
    }

    async fn delete_queues(&self) {
        let config = BrokerConfig {
            url: self.amqp.clone(),
            namespace: self.database.clone(),
            publish_timeout: Duration::from_secs(5),
            channels: 1,
        };
        let broker = Broker::start(config, Chance::from_system());
        let mut state = broker.state();
        let connected = state.wait_for(|state| *state == switchboard::broker::LinkState::Connected);
        if tokio::time::timeout(Duration::from_secs(5), connected).await.is_err() {
            return;
        }
        // Only queues that this process has used are deleted.
        let consumers: Vec<_> = self
            .servers
            .iter()
            .map(|server| {
                let options = ConsumeOptions { prefetch: 1, ..ConsumeOptions::default() };
                broker.consume(Queue::Outbound(*server), options, |_| async { Verdict::Done })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(300)).await;
        for consumer in consumers {
            consumer.stop(Duration::from_secs(1)).await;
        }
        if let Err(fault) = broker.delete_all().await {
            eprintln!("queues named {}.… are left behind: {fault}", self.database);
        }
        broker.stop_within(Duration::from_secs(1)).await;
    }
}

/// Waits until a GET of `path` answers 200.
async fn wait_for(address: &str, path: &str) -> anyhow::Result<()> {
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(30) {
        if let Ok(mut connection) = Connection::open(address).await
            && let Ok((200, _)) = connection.exchange(&request("GET", path, "", None)).await
        {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    bail!("{address} did not become ready");
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

/// A connection to look on with. It goes by the indexes: a look at ten million messages must not cost more than what is measured.
pub async fn connect(url: &SecretString) -> anyhow::Result<AsyncPgConnection> {
    let mut conn = AsyncPgConnection::establish(url.expose_secret()).await.context("DATABASE_URL")?;
    conn.batch_execute("SET enable_seqscan = off").await?;
    Ok(conn)
}

pub async fn execute(url: &SecretString, statement: &str) -> anyhow::Result<()> {
    connect(url).await?.batch_execute(statement).await.with_context(|| statement.to_owned())
}

fn free_port() -> anyhow::Result<u16> {
    Ok(std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}
