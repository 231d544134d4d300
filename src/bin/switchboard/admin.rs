//! `switchboard admin`: keys and tenants, straight in the database.

use anyhow::{anyhow, bail};
use secrecy::ExposeSecret as _;
use switchboard::config::Config;
use switchboard::db::{Db, DbError};
use switchboard::domain::chance::Chance;
use switchboard::domain::clock::Clock;
use switchboard::domain::ids::{ApiKeyId, TenantId};
use switchboard::identity::api_keys::{self, NewApiKey};
use switchboard::identity::keys::{KeyKind, mint};
use switchboard::identity::scope::{Scope, Scopes};
use switchboard::tenants;

/// What `admin` does.
#[derive(clap::Subcommand)]
#[expect(clippy::enum_variant_names, reason = "the names are the subcommands'")]
pub enum Command {
    /// Mint a key above tenants; it is shown once
    CreatePlatformKey {
        /// What it is for
        #[arg(long, default_value = "admin")]
        name: String,
    },
    /// Create a tenant
    CreateTenant {
        /// Its name: 1 to 100 characters, unique
        name: String,
        /// What it is
        #[arg(long)]
        description: Option<String>,
    },
    /// Mint an API key of a tenant; it is shown once
    CreateApiKey {
        /// The tenant's name or id
        tenant: String,
        /// What it is for
        #[arg(long, default_value = "admin")]
        name: String,
        /// What it may do, such as messages:write,messages:read; `*` is everything
        #[arg(long, value_delimiter = ',', default_value = "*")]
        scopes: Vec<Scope>,
    },
}

pub async fn run(command: Command) -> anyhow::Result<()> {
    let config = Config::load()?;
    let db = Db::open(&config.database)?;
    let (now, chance) = (Clock::running().now(), Chance::from_system());
    match command {
        Command::CreatePlatformKey { name } => {
            let minted = mint(KeyKind::Platform, &chance);
            let id = chance.uuid(now);
            db.system(async |conn| api_keys::insert_platform(conn, id, &name, &minted, now).await)
                .await
                .map_err(|fault| explained(fault, "the key"))?;
            println!("{}", minted.key.expose_secret());
        }
        Command::CreateTenant { name, description } => {
            // As the API has it.
            if !(1..=100).contains(&name.chars().count()) || name.trim() != name || name.chars().any(char::is_control) {
                bail!(
                    "a tenant's name has 1 to 100 characters, none of them control characters, and no blanks at its ends"
                );
            }
            let id = TenantId::fresh(now, &chance);
            let settings = serde_json::json!({});
            let created = db
                .system(async |conn| tenants::insert(conn, id, &name, description.as_deref(), &settings, now).await)
                .await;
            match created {
                Err(fault) if fault.is_duplicate_of(tenants::NAME_TAKEN) => {
                    bail!("there is a tenant of that name already")
                }
                created => {
                    let tenant = created.map_err(|fault| explained(fault, "the tenant"))?;
                    println!("{}", tenant.id);
                }
            }
        }
        Command::CreateApiKey { tenant, name, scopes } => {
            let found = db
                .system(async |conn| match tenant.parse() {
                    Ok(id) => tenants::find(conn, id).await,
                    Err(_) => tenants::find_by_name(conn, &tenant).await,
                })
                .await
                .map_err(|fault| explained(fault, "the tenant"))?;
            let Some(found) = found else { bail!("there is no tenant {tenant}") };
            let minted = mint(KeyKind::Tenant, &chance);
            let scopes: Scopes = scopes.into_iter().collect();
            let new = NewApiKey { id: ApiKeyId::fresh(now, &chance), tenant: found.id, name, scopes, expires_at: None };
            db.system(async |conn| {
                api_keys::insert(conn, &new, &minted, now).await?;
                Ok::<_, DbError>(())
            })
            .await?;
            println!("{}", minted.key.expose_secret());
        }
    }
    Ok(())
}

/// What to do about `fault`, met while `what` was read or written.
fn explained(fault: DbError, what: &str) -> anyhow::Error {
    match fault {
        DbError::Unavailable(why) => anyhow!("DATABASE_URL: the database cannot be reached: {why}"),
        fault => anyhow!("{what} cannot be read or written; has `switchboard migrate` run? {fault}"),
    }
}
