//! Postgres: the pool, and the two ways into it.
//!
//! A connection in the pool always acts as `switchboard_system`. [`Db::tenant`] runs a transaction as
//! `switchboard_tenant`, scoped to one tenant by row-level security; it is the only way to a [`TenantConn`].
//! [`Db::system`] runs a transaction above tenants, with the system role's narrow grants; it can act as one tenant for a
//! while ([`SystemConn::narrow_to`]). Both end in a commit or a rollback, and both are cheap: role, tenant and `BEGIN`
//! travel in one round trip.

mod error;
pub mod generation;
pub mod group_commit;
pub mod migrate;
pub mod schema;
pub mod sql;

use std::future::Future;
use std::ops::{Deref, DerefMut};
use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::QueryableByName;
use diesel::sql_types::Timestamptz;
use diesel_async::pooled_connection::deadpool::{Object, Pool};
use diesel_async::pooled_connection::{AsyncDieselConnectionManager, ManagerConfig, RecyclingMethod};
use diesel_async::{AnsiTransactionManager, AsyncConnection, AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use futures_util::FutureExt;
use secrecy::{ExposeSecret, SecretString};
use tokio::runtime::Handle;

use crate::domain::ids::TenantId;

pub use error::DbError;
pub use sql::{Prepare, sql};

/// How to reach Postgres.
#[derive(Clone, Debug)]
pub struct DbConfig {
    /// `postgres://…`; the role that logs in must be a member of both of our roles.
    pub url: SecretString,
    /// Connections at the most.
    pub max_connections: usize,
    /// How long a caller waits for a free connection.
    pub acquire_timeout: Duration,
    /// How long opening a connection may take.
    pub connect_timeout: Duration,
    /// A connection unused for this long is closed, down to `min_connections`.
    pub idle_timeout: Duration,
    /// Connections kept open when idle.
    pub min_connections: usize,
}

/// The database; clones share one pool, whose connections live on the runtime that called [`Db::open`].
#[derive(Clone)]
pub struct Db {
    pool: Pool<AsyncPgConnection>,
}

impl std::fmt::Debug for Db {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Db").field("status", &self.pool.status()).finish()
    }
}

/// A transaction above tenants.
pub struct SystemConn(Object<AsyncPgConnection>);

/// A transaction that sees one tenant's rows and no others.
pub struct TenantConn {
    conn: Object<AsyncPgConnection>,
    tenant: TenantId,
}

impl TenantConn {
    /// The tenant this transaction belongs to.
    #[must_use]
    pub fn tenant(&self) -> TenantId {
        self.tenant
    }
}

/// A transaction above tenants that for a while sees one tenant's rows and no others: see [`SystemConn::narrow_to`].
pub struct Narrowed<'a> {
    conn: &'a mut AsyncPgConnection,
    tenant: TenantId,
}

impl SystemConn {
    /// Goes on as `tenant` until [`Narrowed::widen`], so that what a transaction above tenants writes for one of them is held
    /// to that tenant's policies. Dropped without widening, the rest of the transaction stays narrow.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn narrow_to(&mut self, tenant: TenantId) -> Result<Narrowed<'_>, DbError> {
        // A parsed UUID is the only thing ever formatted into this text.
        let narrow = format!("SET LOCAL ROLE switchboard_tenant; SET LOCAL app.tenant_id = '{}'", tenant.0);
        self.0.batch_execute(&narrow).await?;
        Ok(Narrowed { conn: &mut self.0, tenant })
    }
}

impl Narrowed<'_> {
    /// The tenant whose rows are seen.
    #[must_use]
    pub fn tenant(&self) -> TenantId {
        self.tenant
    }

    /// Goes back above tenants.
    ///
    /// # Errors
    /// When the database does not answer; the transaction then stays narrow.
    pub async fn widen(self) -> Result<(), DbError> {
        self.conn.batch_execute("SET LOCAL app.tenant_id = ''; SET LOCAL ROLE switchboard_system").await?;
        Ok(())
    }
}

impl Deref for Narrowed<'_> {
    type Target = AsyncPgConnection;
    fn deref(&self) -> &Self::Target {
        self.conn
    }
}

impl DerefMut for Narrowed<'_> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        self.conn
    }
}

impl Deref for TenantConn {
    type Target = AsyncPgConnection;
    fn deref(&self) -> &Self::Target {
        &self.conn
    }
}

impl DerefMut for TenantConn {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.conn
    }
}

impl Deref for SystemConn {
    type Target = AsyncPgConnection;
    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl DerefMut for SystemConn {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}

/// An async closure whose future can move between threads (the bound that stable Rust cannot yet spell directly).
pub trait Work<C, T>: AsyncFnOnce(C) -> T + FnOnce(C) -> <Self as Work<C, T>>::Fut {
    /// The future of the closure.
    type Fut: Future<Output = T>;
}

impl<F, C, Fut, T> Work<C, T> for F
where
    F: AsyncFnOnce(C) -> T + FnOnce(C) -> Fut,
    Fut: Future<Output = T>,
{
    type Fut = Fut;
}

impl Db {
    /// Prepares the pool; connections open when they are needed, on the runtime that calls this.
    ///
    /// # Errors
    /// When the pool's settings contradict each other.
    pub fn open(config: &DbConfig) -> Result<Self, DbError> {
        let runtime = Handle::current();
        let connect_timeout = config.connect_timeout;
        let mut setup = ManagerConfig::<AsyncPgConnection>::default();
        setup.recycling_method = RecyclingMethod::Fast;
        setup.custom_setup = Box::new(move |url| {
            let url = url.to_owned();
            let runtime = runtime.clone();
            async move {
                let opening = runtime.spawn(async move {
                    let mut conn = tokio::time::timeout(connect_timeout, AsyncPgConnection::establish(&url))
                        .await
                        .map_err(|_| diesel::ConnectionError::BadConnection("timed out".to_owned()))??;
                    conn.batch_execute(
                        // One plan for each statement of the engine: they take arrays of whatever length, and planning them anew
                        // for each costs more than running them. Compiling them never pays. A plan outlives the size that its
                        // tables had, so it goes by keys even where a table is so small that reading all of it were cheaper.
                        "SET ROLE switchboard_system; SET application_name = 'switchboard'; SET statement_timeout = '30s'; \
                         SET lock_timeout = '10s'; SET idle_in_transaction_session_timeout = '60s'; SET TimeZone = 'UTC'; \
                         SET plan_cache_mode = 'force_generic_plan'; SET jit = off; SET enable_seqscan = off",
                    )
                    .await
                    .map_err(diesel::ConnectionError::CouldntSetupConfiguration)?;
                    Ok(conn)
                });
                opening.await.map_err(|gone| diesel::ConnectionError::BadConnection(gone.to_string()))?
            }
            .boxed()
        });
        let manager = AsyncDieselConnectionManager::new_with_config(config.url.expose_secret(), setup);
        let pool = Pool::builder(manager)
            .max_size(config.max_connections)
            .wait_timeout(Some(config.acquire_timeout))
            .create_timeout(Some(config.connect_timeout))
            .recycle_timeout(Some(config.connect_timeout))
            .runtime(deadpool::Runtime::Tokio1)
            .build()
            .map_err(|fault| DbError::Unavailable(fault.to_string()))?;
        Ok(Self { pool })
    }

    /// Closes connections that were idle for longer than `idle_timeout`, keeping `min_connections`. Call it now and then.
    pub fn close_idle(&self, config: &DbConfig) {
        let mut spare = self.pool.status().size.saturating_sub(config.min_connections);
        self.pool.retain(|_, metrics| {
            let keep = spare == 0 || metrics.last_used() < config.idle_timeout;
            if !keep {
                spare -= 1;
            }
            keep
        });
    }

    /// Ends the pool: waiting and later callers get an error.
    pub fn close(&self) {
        self.pool.close();
    }

    /// Runs `work` in a transaction that sees only `tenant`'s rows; commits when it answers `Ok`.
    ///
    /// # Errors
    /// Those of `work`, and [`DbError`] when the transaction cannot begin or commit.
    pub async fn tenant<R, E, F>(&self, tenant: TenantId, work: F) -> Result<R, E>
    where
        for<'r> F: AsyncFnOnce(&'r mut TenantConn) -> Result<R, E> + Work<&'r mut TenantConn, Result<R, E>, Fut: Send>,
        F: Send,
        E: From<DbError> + Send,
        R: Send,
    {
        // A parsed UUID is the only thing ever formatted into this text. What a tenant looks for differs from request to request,
        // so its statements may have plans of their own.
        let begin = format!(
            "BEGIN; SET LOCAL ROLE switchboard_tenant; SET LOCAL app.tenant_id = '{}'; SET LOCAL plan_cache_mode = 'auto'",
            tenant.0
        );
        let mut conn = TenantConn { conn: self.begin(&begin).await?, tenant };
        let result = work(&mut conn).await;
        finish(&mut conn, result).await
    }

    /// Runs `work` in a transaction above tenants; commits when it answers `Ok`.
    ///
    /// # Errors
    /// Those of `work`, and [`DbError`] when the transaction cannot begin or commit.
    pub async fn system<R, E, F>(&self, work: F) -> Result<R, E>
    where
        for<'r> F: AsyncFnOnce(&'r mut SystemConn) -> Result<R, E> + Work<&'r mut SystemConn, Result<R, E>, Fut: Send>,
        F: Send,
        E: From<DbError> + Send,
        R: Send,
    {
        let mut conn = SystemConn(self.begin("BEGIN").await?);
        let result = work(&mut conn).await;
        finish(&mut conn, result).await
    }

    /// The database's clock.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn now(&self) -> Result<DateTime<Utc>, DbError> {
        #[derive(QueryableByName)]
        struct Now {
            #[diesel(sql_type = Timestamptz)]
            now: DateTime<Utc>,
        }
        self.system(async |conn| {
            let row: Now = sql("SELECT clock_timestamp() AS now").prepared().get_result(&mut **conn).await?;
            Ok(row.now)
        })
        .await
    }

    /// A connection with an open transaction. One that died unnoticed in the pool is replaced: nothing was asked of it yet.
    async fn begin(&self, begin: &str) -> Result<Object<AsyncPgConnection>, DbError> {
        loop {
            let mut conn = self.pool.get().await.map_err(|fault| DbError::Unavailable(fault.to_string()))?;
            let used = Object::metrics(&conn).recycle_count;
            let fresh = used == 0;
            let begun = if plans_are_stale(used) {
                let begin = begin.replacen("BEGIN", "BEGIN; DISCARD PLANS", 1);
                AnsiTransactionManager::begin_transaction_sql(&mut *conn, &begin).await
            } else {
                AnsiTransactionManager::begin_transaction_sql(&mut *conn, begin).await
            };
            match begun {
                Ok(()) => return Ok(conn),
                Err(fault) => {
                    // A broken connection must not go back into the pool.
                    drop(Object::take(conn));
                    let fault = DbError::from(fault);
                    if fresh || !fault.is_transient() {
                        return Err(fault);
                    }
                }
            }
        }
    }
}

/// Whether a connection that was `used` so often makes its plans anew. A plan is as good as the tables were large when it was
/// made, and a young database grows a thousandfold in minutes; the server makes plans anew by itself only after it has analysed a
/// table. With use the tables grow, so the times between grow with it, and the work of planning stays small.
const fn plans_are_stale(used: usize) -> bool {
    used >= 16 && used.is_power_of_two() && used.trailing_zeros().is_multiple_of(2)
}

async fn finish<R, E: From<DbError>>(conn: &mut AsyncPgConnection, result: Result<R, E>) -> Result<R, E> {
    use diesel_async::TransactionManager;
    match result {
        Ok(value) => {
            AnsiTransactionManager::commit_transaction(conn).await.map_err(DbError::from)?;
            Ok(value)
        }
        Err(error) => {
            // A failed rollback leaves the connection marked broken; the pool then drops it.
            if let Err(fault) = AnsiTransactionManager::rollback_transaction(conn).await {
                tracing::debug!(%fault, "rollback failed");
            }
            Err(error)
        }
    }
}
