//! `switchboard admin`: keys, tenants, the master key, webhook keys and dead letters, straight in the database.

mod dead_letters;
mod webhook_keys;

use anyhow::{anyhow, bail};
use secrecy::ExposeSecret as _;
use switchboard::app::StartError;
use switchboard::config::Config;
use switchboard::db::{Db, DbError};
use switchboard::domain::chance::Chance;
use switchboard::domain::clock::Clock;
use switchboard::domain::ids::{ApiKeyId, TenantId};
use switchboard::identity::api_keys::{self, NewApiKey};
use switchboard::identity::keys::{KeyKind, mint};
use switchboard::identity::rotate;
use switchboard::identity::scope::{Scope, Scopes};
use switchboard::identity::seal::Sealer;
use switchboard::ingest::dead_letters::Reason;
use switchboard::sealed;
use switchboard::tenants;

/// What `admin` does.
#[derive(clap::Subcommand)]
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
    /// Seal everything anew that is sealed under an older master key
    ///
    /// SWITCHBOARD_MASTER_KEY is the new key, SWITCHBOARD_MASTER_KEY_PREVIOUS has the older ones. Nodes may run meanwhile, if they
    /// know both. It may be broken off and begun again at any time; what is under the new key already is left alone.
    #[command(verbatim_doc_comment)]
    RotateMasterKey {
        /// Values in one transaction
        #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(i64).range(1..=10_000))]
        batch: i64,
    },
    /// Give sessions new keys that WAHA signs its webhooks with
    ///
    /// Nobody is reconnected: a session that works gets its new key with its next start or restart, and until then WAHA signs with
    /// the previous one. That is accepted as long as WAHA has not got the new one, and for six hours more, in which WAHA may repeat
    /// what it signed before. A session whose previous key is still accepted is skipped. It may be broken off and begun again.
    #[command(verbatim_doc_comment)]
    RotateWebhookKeys {
        #[command(flatten)]
        choice: webhook_keys::Choice,
    },
    /// List what WAHA told and could not be applied, without its content; or remove some of it
    #[command(args_conflicts_with_subcommands = true)]
    DeadLetters {
        /// Only those set aside as `unreadable`, `refused` or `unknown_event`
        #[arg(long)]
        reason: Option<Reason>,
        #[command(subcommand)]
        deed: Option<dead_letters::Deed>,
    },
    /// Apply dead letters again, after a fix; those that work are no letters any more
    Reapply {
        #[command(flatten)]
        choice: dead_letters::Choice,
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
                .system(async |conn| {
                    tenants::insert(conn, id, &name, description.as_deref(), &settings, None, now).await
                })
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
        Command::RotateMasterKey { batch } => rotate_master_key(&config, &db, chance, batch).await?,
        Command::RotateWebhookKeys { choice } => webhook_keys::rotate(&config, &db, &chance, choice).await?,
        Command::DeadLetters { deed: Some(deed), .. } => dead_letters::run(&db, deed).await?,
        Command::DeadLetters { reason, deed: None } => dead_letters::list(&db, reason).await?,
        Command::Reapply { choice } => dead_letters::reapply(config, choice).await?,
    }
    Ok(())
}

async fn rotate_master_key(config: &Config, db: &Db, chance: Chance, batch: i64) -> anyhow::Result<()> {
    let Some(key) = &config.master_key else { bail!(StartError::NoMasterKey) };
    let sealer = Sealer::new(key, chance).with_previous(&config.previous_master_keys);
    let clock = Clock::running();
    let mut unreadable = 0;
    for column in &sealed::COLUMNS {
        let tally = rotate::reseal_all(db, &clock, &sealer, column, batch)
            .await
            .map_err(|fault| explained(fault, column.name))?;
        println!("{}: {} sealed anew", column.name, tally.resealed);
        for place in &tally.unreadable {
            println!("{}: {place} does not open under any of these keys", column.name);
        }
        unreadable += tally.unreadable.len();
    }
    if unreadable > 0 {
        bail!(
            "{unreadable} sealed values do not open; is a key missing in SWITCHBOARD_MASTER_KEY_PREVIOUS? All others are under \
             SWITCHBOARD_MASTER_KEY"
        );
    }
    println!("Everything is under SWITCHBOARD_MASTER_KEY.");
    Ok(())
}

/// What to do about `fault`, met while `what` was read or written.
fn explained(fault: DbError, what: &str) -> anyhow::Error {
    match fault {
        DbError::Unavailable(why) => anyhow!("DATABASE_URL: the database cannot be reached: {why}"),
        fault => anyhow!("{what} cannot be read or written; has `switchboard migrate` run? {fault}"),
    }
}
