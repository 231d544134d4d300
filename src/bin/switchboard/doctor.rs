//! `switchboard doctor`: looks at everything the gateway depends on, and says what to do about each fault.

use std::time::Duration;

use anyhow::bail;
use chrono::TimeDelta;
use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Bool, Text};
use diesel_async::{AsyncConnection as _, AsyncPgConnection, RunQueryDsl as _};
use secrecy::ExposeSecret as _;
use switchboard::app::App;
use switchboard::broker::LinkState;
use switchboard::config::Config;
use switchboard::domain::chance::Chance;
use switchboard::domain::clock::Clock;

/// Arguments of `doctor`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Use the master key of `serve --dev` when none is set
    #[arg(long)]
    dev: bool,
}

struct Report {
    faults: usize,
}

impl Report {
    fn good(&self, what: &str, detail: &str) {
        println!("ok     {what:<14} {detail}");
    }

    fn bad(&mut self, what: &str, detail: &str, remedy: &str) {
        self.faults += 1;
        println!("FAULT  {what:<14} {detail}\n       {:<14} → {remedy}", "");
    }
}

pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let mut report = Report { faults: 0 };
    let mut config = match Config::load() {
        Ok(config) => config,
        Err(faults) => {
            for fault in faults.0 {
                report.bad("settings", &fault, "README.md lists every setting with its form");
            }
            bail!("{} faults", report.faults);
        }
    };
    report.good("settings", "readable");
    if arguments.dev {
        crate::serve::prepare_for_development(&mut config);
    }
    keys(&mut report, &mut config);
    if database(&mut report, &config).await {
        parts(&mut report, config).await;
    }
    match report.faults {
        0 => Ok(()),
        1 => bail!("1 fault"),
        faults => bail!("{faults} faults"),
    }
}

fn keys(report: &mut Report, config: &mut Config) {
    if config.master_key.is_some() {
        report.good("master key", "32 bytes");
    } else {
        let remedy =
            "openssl rand -base64 32, set it as SWITCHBOARD_MASTER_KEY, and keep it safe: it opens what is sealed";
        report.bad("master key", "SWITCHBOARD_MASTER_KEY is not set", remedy);
        // The rest can be looked at all the same.
        config.master_key = Some(switchboard::config::MasterKey([0; 32]));
    }
    if config.platform_key.is_some() {
        report.good("platform key", "set");
    } else {
        report.good("platform key", "not set; minted ones work (switchboard admin create-platform-key)");
    }
}

#[derive(QueryableByName)]
struct Server {
    #[diesel(sql_type = BigInt)]
    version: i64,
    #[diesel(sql_type = Text)]
    encoding: String,
}

#[derive(QueryableByName)]
struct RoleState {
    #[diesel(sql_type = Text)]
    name: String,
    #[diesel(sql_type = Bool)]
    too_mighty: bool,
    #[diesel(sql_type = Bool)]
    member: bool,
}

async fn database(report: &mut Report, config: &Config) -> bool {
    let connecting = AsyncPgConnection::establish(config.database.url.expose_secret());
    let mut conn = match tokio::time::timeout(Duration::from_secs(5), connecting).await {
        Ok(Ok(conn)) => conn,
        Ok(Err(fault)) => {
            report.bad(
                "database",
                &fault.to_string(),
                "start Postgres or correct DATABASE_URL (`make services` does the first)",
            );
            return false;
        }
        Err(_) => {
            report.bad(
                "database",
                "no answer within 5 s",
                "check the host and port in DATABASE_URL, and firewalls between",
            );
            return false;
        }
    };
    let server: Result<Server, _> = diesel::sql_query(
        "SELECT current_setting('server_version_num')::bigint AS version, current_setting('server_encoding') AS encoding",
    )
    .get_result(&mut conn)
    .await;
    match server {
        Ok(server) if server.version < 150_000 => {
            report.bad("database", "PostgreSQL is older than 15", "use PostgreSQL 15 or later");
        }
        Ok(server) if server.encoding != "UTF8" => {
            report.bad(
                "database",
                &format!("its encoding is {}", server.encoding),
                "create it with ENCODING 'UTF8' TEMPLATE template0",
            );
        }
        Ok(server) => report.good("database", &format!("PostgreSQL {}, UTF8", server.version / 10_000)),
        Err(fault) => report.bad("database", &fault.to_string(), "look into Postgres' log"),
    }
    let roles: Result<Vec<RoleState>, _> = diesel::sql_query(
        "SELECT rolname::text AS name, rolsuper OR rolbypassrls OR rolcanlogin AS too_mighty, \
                pg_has_role(current_user, oid, 'MEMBER') AS member \
         FROM pg_roles WHERE rolname IN ('switchboard_tenant', 'switchboard_system') ORDER BY 1",
    )
    .load(&mut conn)
    .await;
    match roles {
        Ok(roles) if roles.len() == 2 => {
            for role in roles {
                if role.too_mighty {
                    let remedy = format!("ALTER ROLE {} NOSUPERUSER NOBYPASSRLS NOLOGIN", role.name);
                    report.bad("roles", &format!("{} can do more than it must", role.name), &remedy);
                } else if !role.member {
                    let remedy = format!("GRANT {} TO the role in DATABASE_URL", role.name);
                    report.bad("roles", &format!("DATABASE_URL's role is no member of {}", role.name), &remedy);
                } else {
                    report.good("roles", &role.name);
                }
            }
        }
        Ok(_) => {
            report.bad("roles", "the run-time roles are missing", "switchboard migrate");
            return false;
        }
        Err(fault) => report.bad("roles", &fault.to_string(), "look into Postgres' log"),
    }
    let tables: Result<Vec<RoleState>, _> = diesel::sql_query(
        "SELECT c.relname::text AS name, NOT (c.relrowsecurity AND c.relforcerowsecurity) AS too_mighty, true AS member \
         FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'tenant_id' AND NOT a.attisdropped \
         WHERE c.relkind = 'r' AND c.relnamespace = 'public'::regnamespace ORDER BY 1",
    )
    .load(&mut conn)
    .await;
    match tables {
        Ok(tables) if tables.is_empty() => {
            report.bad("schema", "there are no tables", "switchboard migrate");
            return false;
        }
        Ok(tables) => {
            for table in tables.iter().filter(|table| table.too_mighty) {
                let remedy = format!("ALTER TABLE {} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY", table.name);
                report.bad("isolation", &format!("{} does not force row-level security", table.name), &remedy);
            }
            report.good("schema", &format!("{} tenant tables", tables.len()));
        }
        Err(fault) => report.bad("schema", &fault.to_string(), "look into Postgres' log"),
    }
    true
}

/// What needs the app's own parts: clock, broker, WAHA servers and the secrets to reach them.
async fn parts(report: &mut Report, config: Config) {
    let app = match App::build(config, Clock::running(), Chance::from_system()) {
        Ok(app) => app,
        Err(fault) => return report.bad("process", &fault.to_string(), "see the settings above"),
    };
    let here = app.clock.now();
    match app.db.now().await {
        Ok(there) if (there - here).abs() > TimeDelta::seconds(5) => {
            let off = (there - here).num_seconds();
            report.bad("clock", &format!("the database's clock is {off} s ahead of this machine's"), "run NTP on both");
        }
        Ok(_) => report.good("clock", "agrees with the database's"),
        Err(fault) => report.bad("clock", &fault.to_string(), "see the database above"),
    }
    let mut link = app.broker.state();
    let connected = link.wait_for(|state| *state == LinkState::Connected);
    let answer = tokio::time::timeout(Duration::from_secs(8), connected).await;
    match answer.map(|state| state.is_ok()) {
        Ok(true) => report.good("broker", "connected, topology declared"),
        _ if *app.broker.state().borrow() == LinkState::Blocked => {
            report.bad(
                "broker",
                "it blocks publishers",
                "free memory or disk on the broker (rabbitmq-diagnostics alarms)",
            );
        }
        _ => report.bad(
            "broker",
            "not reachable within 8 s",
            "start RabbitMQ or correct AMQP_URL; messages are accepted meanwhile, and wait",
        ),
    }
    match app.directory.all_servers().await {
        Ok(servers) if servers.is_empty() => {
            report.bad("WAHA servers", "none is registered", "POST /v1/waha-servers with a platform key");
        }
        Ok(servers) => {
            for entry in servers {
                let address = entry.server.base_url.host_str().unwrap_or_default().to_owned();
                match app.waha.server_version(&entry.server).await {
                    Ok(version) => {
                        let limitations = version.limitations(entry.engine);
                        let words: Vec<&str> = limitations.iter().map(|limitation| limitation.as_str()).collect();
                        let mut said = format!("{address}: {} {}", entry.engine, version.version);
                        if !words.is_empty() {
                            said = format!("{said} ({})", words.join(", "));
                        }
                        if limitations.iter().any(|limitation| limitation.keeps_sessions_away()) {
                            let remedy = "no session is placed there; bring WAHA to 2026.6.1 or later, and correct the engine if it is wrong";
                            report.bad("WAHA server", &said, remedy);
                        } else {
                            report.good("WAHA server", &said);
                        }
                    }
                    Err(fault) => {
                        let remedy = "check its address and API key (PATCH /v1/waha-servers/{id}), and that it runs";
                        report.bad("WAHA server", &format!("{address}: {fault}"), remedy);
                    }
                }
            }
        }
        Err(fault) => {
            let remedy = "set the SWITCHBOARD_MASTER_KEY that sealed them (or have it in SWITCHBOARD_MASTER_KEY_PREVIOUS), or register the WAHA servers' keys anew";
            report.bad("WAHA servers", &fault.to_string(), remedy);
        }
    }
    app.broker.stop_within(Duration::from_secs(2)).await;
}
