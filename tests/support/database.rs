//! A database per test, cloned from one migrated template.
//!
//! The server is the one of `DATABASE_URL` (any role that may create databases), else the local development server. The
//! template's name holds a hash of the migrations, so a changed migration makes a new template. Every test runs in a
//! process of its own; an advisory lock in the admin database keeps them from building the same template twice.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use secrecy::SecretString;
use sha2::{Digest, Sha256};
use switchboard::db::{Db, DbConfig, migrate};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, NoTls};
use url::Url;

const DEFAULT_URL: &str = "postgres://switchboard:switchboard@127.0.0.1:5432/switchboard";
const TEMPLATE: &str = "switchboard_template_";
const TEST: &str = "switchboard_test_";
/// Guards the templates: exclusive while one is built, shared while one is cloned.
const LOCK: &str = "hashtext('switchboard.tests.template')";
/// Older databases are abandoned: no test runs this long, and another checkout's template is rebuilt when it is needed.
const ABANDONED_AFTER_SECONDS: i64 = 3600;

/// A database of one test; dropped with this value, together with the connections that are still open.
#[derive(Debug)]
pub struct TestDb {
    name: String,
    url: Url,
}

impl TestDb {
    /// A database with all migrations applied and no rows but theirs.
    pub async fn create() -> Self {
        let admin = connect(admin_url().as_str()).await;
        let template = format!("{TEMPLATE}{}", migrations_hash());
        loop {
            execute(&admin, &format!("SELECT pg_advisory_lock_shared({LOCK})")).await;
            let ready = exists(&admin, &template).await;
            let made = if ready { Some(Self::make(&admin, &template).await) } else { None };
            execute(&admin, &format!("SELECT pg_advisory_unlock_shared({LOCK})")).await;
            match made {
                Some(made) => return made,
                None => build_template(&admin, &template).await,
            }
        }
    }

    /// A database without anything of ours.
    pub async fn empty() -> Self {
        let admin = connect(admin_url().as_str()).await;
        Self::make(&admin, "template0").await
    }

    async fn make(admin: &Client, template: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let row = admin
            .query_one("SELECT extract(epoch FROM now())::bigint, pg_backend_pid()", &[])
            .await
            .expect("the admin connection answers");
        let (seconds, pid) = (row.get::<_, i64>(0), row.get::<_, i32>(1));
        let name = format!("{TEST}{seconds}_{pid}_{}", COUNT.fetch_add(1, Ordering::Relaxed));
        // Autovacuum may be looking at the template, or another test be cloning it in a way that excludes this one.
        let mut tries = 0;
        while let Err(fault) = admin.batch_execute(&format!("CREATE DATABASE {name} TEMPLATE {template}")).await {
            tries += 1;
            assert!(tries < 20 && fault.code() == Some(&SqlState::OBJECT_IN_USE), "CREATE DATABASE: {fault:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let url = database_url(&name);
        Self { name, url }
    }

    /// The address, with the password.
    pub fn url(&self) -> String {
        self.url.to_string()
    }

    /// The address, for what keeps it secret.
    pub fn secret_url(&self) -> SecretString {
        SecretString::from(self.url())
    }

    /// The database's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Settings of a pool of at most ten connections.
    pub fn config(&self) -> DbConfig {
        DbConfig {
            url: self.secret_url(),
            max_connections: 10,
            min_connections: 0,
            acquire_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(30),
        }
    }

    /// As [`TestDb::config`], by way of a proxy at `address`.
    pub fn config_through(&self, address: SocketAddr) -> DbConfig {
        let mut url = self.url.clone();
        url.set_ip_host(address.ip()).expect("an address fits into the url");
        url.set_port(Some(address.port())).expect("a port fits into the url");
        DbConfig { url: SecretString::from(String::from(url)), ..self.config() }
    }

    /// Where the server listens: the target of a proxy.
    pub fn server(&self) -> String {
        format!("{}:{}", self.url.host_str().expect("a host"), self.url.port().unwrap_or(5432))
    }

    /// A pool on the current runtime.
    pub fn open(&self) -> Db {
        Db::open(&self.config()).expect("the settings are valid")
    }

    /// A connection of the role that owns the tables.
    pub async fn connect(&self) -> Client {
        connect(self.url.as_str()).await
    }
}

impl Drop for TestDb {
    /// On a thread with a runtime of its own: the test's runtime may be stopping, or be busy running this.
    fn drop(&mut self) {
        let statement = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name);
        let dropping = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
            runtime.block_on(async {
                let (admin, driver) = tokio_postgres::connect(admin_url().as_str(), NoTls).await.ok()?;
                tokio::spawn(driver);
                admin.batch_execute(&statement).await.ok()
            })
        });
        // What is left behind is removed when the next template is built.
        let _best_effort = dropping.join();
    }
}

fn admin_url() -> Url {
    let url = std::env::var("DATABASE_URL").unwrap_or_else(|_| DEFAULT_URL.to_owned());
    url.parse().expect("DATABASE_URL is a url")
}

fn database_url(name: &str) -> Url {
    let mut url = admin_url();
    url.set_path(name);
    url
}

async fn connect(url: &str) -> Client {
    let (client, driver) = tokio_postgres::connect(url, NoTls)
        .await
        .unwrap_or_else(|fault| panic!("tests need PostgreSQL (DATABASE_URL, else {DEFAULT_URL}): {fault}"));
    tokio::spawn(driver);
    client
}

async fn execute(client: &Client, statement: &str) {
    client.batch_execute(statement).await.unwrap_or_else(|fault| panic!("{statement}: {fault:?}"));
}

async fn exists(admin: &Client, database: &str) -> bool {
    let found = admin.query_opt("SELECT FROM pg_database WHERE datname = $1", &[&database]).await;
    found.expect("pg_database can be read").is_some()
}

/// Builds under another name and renames at the end, so that a template that exists is complete.
async fn build_template(admin: &Client, template: &str) {
    execute(admin, &format!("SELECT pg_advisory_lock({LOCK})")).await;
    if !exists(admin, template).await {
        remove_abandoned(admin).await;
        let building = format!("{template}_building");
        execute(admin, &format!("DROP DATABASE IF EXISTS {building} WITH (FORCE)")).await;
        execute(admin, &format!("CREATE DATABASE {building} TEMPLATE template0")).await;
        // In a task of its own: it blocks inside, and a future beside it in this task would miss its wake-up.
        let url = SecretString::from(String::from(database_url(&building)));
        let applied = tokio::spawn(async move { migrate::up(&url).await })
            .await
            .expect("migrating does not panic")
            .unwrap_or_else(|fault| panic!("the migrations fail: {fault}"));
        let expected = migration_names().len();
        assert_eq!(
            applied.len(),
            expected,
            "the library was built from other migrations than the directory holds: touch src/db/migrate.rs"
        );
        execute(
            admin,
            &format!(
                "COMMENT ON DATABASE {building} IS '{}'",
                admin
                    .query_one("SELECT extract(epoch FROM now())::bigint", &[])
                    .await
                    .expect("the admin connection answers")
                    .get::<_, i64>(0)
            ),
        )
        .await;
        // Nobody can connect from now on, so cloning is never in anybody's way.
        execute(admin, &format!("ALTER DATABASE {building} ALLOW_CONNECTIONS false")).await;
        rename(admin, &building, template).await;
    }
    execute(admin, &format!("SELECT pg_advisory_unlock({LOCK})")).await;
}

/// The connection of the migrations may take a moment to go.
async fn rename(admin: &Client, from: &str, to: &str) {
    let mut tries = 0;
    while let Err(fault) = admin.batch_execute(&format!("ALTER DATABASE {from} RENAME TO {to}")).await {
        tries += 1;
        assert!(tries < 100 && fault.code() == Some(&SqlState::OBJECT_IN_USE), "ALTER DATABASE: {fault:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Removes templates and test databases that nobody needs any more. Best effort: another role may own one.
async fn remove_abandoned(admin: &Client) {
    let rows = admin
        .query(
            "WITH ours AS (
                 SELECT datname,
                        CASE WHEN datname ~ '^switchboard_test_[0-9]+_' THEN split_part(datname, '_', 3)
                             ELSE coalesce(substring(shobj_description(oid, 'pg_database') FROM '^[0-9]+$'), '0')
                        END::bigint AS made
                   FROM pg_database
                  WHERE datname ~ '^switchboard_(test|template)_')
             SELECT datname FROM ours
              WHERE made < extract(epoch FROM now()) - $1::bigint
                AND NOT EXISTS (SELECT FROM pg_stat_activity activity WHERE activity.datname = ours.datname)",
            &[&ABANDONED_AFTER_SECONDS],
        )
        .await
        .expect("pg_database can be read");
    for row in rows {
        let name: String = row.get(0);
        let _best_effort = admin.batch_execute(&format!("DROP DATABASE IF EXISTS {name}")).await;
    }
}

fn migrations() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/migrations"))
}

/// The migrations' directories, oldest first.
pub fn migration_names() -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(migrations())
        .expect("migrations/ exists")
        .map(|entry| entry.expect("migrations/ can be read").file_name().into_string().expect("a plain name"))
        .filter(|name| migrations().join(name).is_dir())
        .collect();
    names.sort();
    names
}

/// The text of a migration's `up.sql` or `down.sql`.
pub fn migration_text(name: &str, file: &str) -> String {
    let path = migrations().join(name).join(file);
    std::fs::read_to_string(&path).unwrap_or_else(|fault| panic!("{}: {fault}", path.display()))
}

fn migrations_hash() -> String {
    let mut hash = Sha256::new();
    for name in migration_names() {
        let text = migration_text(&name, "up.sql");
        hash.update(name.as_bytes());
        hash.update(text.len().to_le_bytes());
        hash.update(text);
    }
    hex::encode(&hash.finalize()[..6])
}
