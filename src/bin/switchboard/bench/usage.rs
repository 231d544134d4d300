//! Who used how much processor time and memory (Linux).
//!
//! PostgreSQL is counted by the processes that serve this run's database, so that other databases of the server do not
//! show; its background writers, and RabbitMQ's other users, cannot be told apart.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use diesel::QueryableByName;
use diesel::sql_types::{Integer, Text};
use diesel_async::{AsyncConnection as _, AsyncPgConnection, RunQueryDsl as _};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::task::JoinHandle;

/// Between two looks at the processes; one that ends in between takes what it used since with it.
const LOOK: Duration = Duration::from_millis(200);

#[derive(QueryableByName)]
struct Backend {
    #[diesel(sql_type = Integer)]
    pid: i32,
    #[diesel(sql_type = Integer)]
    client_port: i32,
}

/// Processor time by name.
pub type Used = Vec<(String, Duration)>;

/// Counts from its start on.
pub struct Meter {
    /// With what each had used at the start.
    processes: Vec<(String, u32, Duration)>,
    /// What each had used when it was last looked at, by its id.
    last: Arc<Mutex<HashMap<u32, Duration>>>,
    backends: Arc<Mutex<Backends>>,
    looking: JoinHandle<()>,
}

#[derive(Default)]
struct Backends {
    /// Processor time at the first look and at the last, and whom the backend serves.
    seen: HashMap<u32, (Duration, Duration, Option<String>)>,
}

impl Meter {
    /// Counts for `processes` and for the backends of `database`; with `by_client` these are told apart by the process they serve.
    pub async fn start(
        admin: &SecretString,
        database: &str,
        processes: &[(&str, u32)],
        by_client: bool,
    ) -> anyhow::Result<Self> {
        let mut all: Vec<(String, u32)> = processes.iter().map(|(name, pid)| ((*name).to_owned(), *pid)).collect();
        let clients = if by_client { all.clone() } else { Vec::new() };
        all.extend(broker().map(|pid| ("rabbitmq".to_owned(), pid)));
        all.push(("load".to_owned(), std::process::id()));
        let mut conn = AsyncPgConnection::establish(admin.expose_secret()).await.context("DATABASE_URL")?;
        let backends = Arc::new(Mutex::new(Backends::default()));
        let mut list = list(&mut conn, database).await?;
        backends.lock().unwrap_or_else(PoisonError::into_inner).look(&list, true, &clients);
        let processes: Vec<_> = all.into_iter().map(|(name, pid)| (name, pid, processor_time(pid))).collect();
        let pids: Vec<u32> = processes.iter().map(|(_, pid, _)| *pid).collect();
        let last = Arc::new(Mutex::new(HashMap::new()));
        let shared_last = Arc::clone(&last);
        let (shared, database) = (Arc::clone(&backends), database.to_owned());
        let looking = tokio::spawn(async move {
            for turn in 1_u32.. {
                tokio::time::sleep(LOOK).await;
                if turn.is_multiple_of(4)
                    && let Ok(fresh) = self::list(&mut conn, &database).await
                {
                    list = fresh;
                }
                shared.lock().unwrap_or_else(PoisonError::into_inner).look(&list, false, &clients);
                let mut last = shared_last.lock().unwrap_or_else(PoisonError::into_inner);
                for pid in &pids {
                    let seen: &mut Duration = last.entry(*pid).or_default();
                    *seen = processor_time(*pid).max(*seen);
                }
            }
        });
        Ok(Self { processes, last, backends, looking })
    }

    /// What was used since the start.
    pub fn stop(self) -> Used {
        self.looking.abort();
        let mut used: Used = Vec::new();
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, pid, before) in &self.processes {
            // One that has ended is counted as it was last seen.
            let now = processor_time(*pid).max(last.get(pid).copied().unwrap_or_default());
            used.push((name.clone(), now.saturating_sub(*before)));
        }
        let backends = self.backends.lock().unwrap_or_else(PoisonError::into_inner);
        let mut by_client: HashMap<String, Duration> = HashMap::new();
        for (pid, (first, last, client)) in &backends.seen {
            // One that is still there may have worked since the last look.
            let last = processor_time(*pid).max(*last);
            let name = client.as_ref().map_or_else(|| "postgres".to_owned(), |client| format!("postgres for {client}"));
            *by_client.entry(name).or_default() += last.saturating_sub(*first);
        }
        let mut by_client: Used = by_client.into_iter().collect();
        by_client.sort();
        used.extend(by_client);
        used
    }
}

impl Backends {
    fn look(&mut self, list: &[Backend], first: bool, clients: &[(String, u32)]) {
        let unknown = list.iter().any(|backend| !self.seen.contains_key(&pid_of(backend)));
        let owners = if unknown { owners(clients) } else { HashMap::new() };
        for backend in list {
            let pid = pid_of(backend);
            let now = processor_time(pid);
            let client = || u16::try_from(backend.client_port).ok().and_then(|port| owners.get(&port).cloned());
            // What began during the run is counted whole.
            let before = if first { now } else { Duration::ZERO };
            let seen = self.seen.entry(pid).or_insert_with(|| (before, now, client()));
            seen.1 = seen.1.max(now);
        }
    }
}

fn pid_of(backend: &Backend) -> u32 {
    u32::try_from(backend.pid).unwrap_or_default()
}

async fn list(conn: &mut AsyncPgConnection, database: &str) -> anyhow::Result<Vec<Backend>> {
    Ok(diesel::sql_query(
        "SELECT pid, coalesce(client_port, -1) AS client_port FROM pg_stat_activity WHERE datname = $1",
    )
    .bind::<Text, _>(database)
    .load(conn)
    .await?)
}

/// User and system time of a process; zero when it is not there.
pub fn processor_time(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // utime and stime, in hundredths of a second, are the 14th and 15th field; the name before may hold anything.
    let ticks: u64 = stat.rsplit_once(')').map_or(0, |(_, fields)| {
        fields.split_whitespace().skip(11).take(2).map(|field| field.parse().unwrap_or(0)).sum()
    });
    Duration::from_millis(ticks * 10)
}

/// Resident memory of a process now and at its most, in MiB.
pub fn memory(pid: u32) -> (u64, u64) {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let of = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0).div_ceil(1024)
    };
    (of("VmRSS:"), of("VmHWM:"))
}

/// RabbitMQ's process on this machine, if there is just one.
fn broker() -> Option<u32> {
    let processes = std::fs::read_dir("/proc").ok()?.flatten();
    let mut found = processes.filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let name = std::fs::read_to_string(entry.path().join("comm")).ok()?;
        (name.trim() == "beam.smp").then_some(pid)
    });
    let pid = found.next()?;
    found.next().is_none().then_some(pid)
}

/// Which of `clients` holds the local TCP port.
fn owners(clients: &[(String, u32)]) -> HashMap<u16, String> {
    let mut of_socket: HashMap<String, &String> = HashMap::new();
    for (name, pid) in clients {
        for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
            let target = std::fs::read_link(entry.path()).ok();
            let socket = target.as_deref().and_then(|path| path.to_str()?.strip_prefix("socket:[")?.strip_suffix(']'));
            if let Some(socket) = socket {
                of_socket.insert(socket.to_owned(), name);
            }
        }
    }
    let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap_or_default();
    let port_and_owner = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let port = u16::from_str_radix(fields.get(1)?.rsplit_once(':')?.1, 16).ok()?;
        Some((port, (*of_socket.get(*fields.get(9)?)?).clone()))
    };
    table.lines().filter_map(port_and_owner).collect()
}
