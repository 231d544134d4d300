//! `switchboard admin rotate-webhook-keys`: new keys for what WAHA signs its webhooks with.

use anyhow::{anyhow, bail};
use switchboard::app::StartError;
use switchboard::config::Config;
use switchboard::db::Db;
use switchboard::domain::chance::Chance;
use switchboard::domain::clock::Clock;
use switchboard::domain::ids::{SessionId, WahaServerId};
use switchboard::identity::seal::Sealer;
use switchboard::sessions::directory::DirectoryError;
use switchboard::sessions::webhook_keys::{self, Tally, Whose};

use super::explained;

/// Whose keys are meant.
#[derive(clap::Args)]
#[group(multiple = false)]
pub struct Choice {
    /// This session's
    #[arg(long)]
    session: Option<SessionId>,
    /// Those of all sessions on this WAHA server
    #[arg(long)]
    server: Option<WahaServerId>,
    /// Those of all sessions
    #[arg(long)]
    all: bool,
}

impl Choice {
    /// What is changed has to be named.
    fn whose(self) -> anyhow::Result<Whose> {
        match (self.session, self.server, self.all) {
            (Some(session), ..) => Ok(Whose::Session(session)),
            (None, Some(server), _) => Ok(Whose::Server(server)),
            (None, None, true) => Ok(Whose::All),
            (None, None, false) => bail!("say whose keys: --session, --server or --all"),
        }
    }
}

/// Gives sessions new keys, and tells how many have one.
pub async fn rotate(config: &Config, db: &Db, chance: &Chance, choice: Choice) -> anyhow::Result<()> {
    let whose = choice.whose()?;
    let Some(key) = &config.master_key else { bail!(StartError::NoMasterKey) };
    let sealer = Sealer::new(key, chance.clone()).with_previous(&config.previous_master_keys);
    let tally =
        webhook_keys::rotate(db, &Clock::running(), &sealer, chance, whose).await.map_err(|fault| match fault {
            DirectoryError::Database(fault) => explained(fault, "a session"),
            fault => anyhow!("{fault}; is SWITCHBOARD_MASTER_KEY the nodes' own?"),
        })?;
    if matches!(whose, Whose::Session(_)) && tally == Tally::default() {
        bail!("there is no such session");
    }
    println!("{} rotated, {} skipped", tally.rotated, tally.skipped);
    Ok(())
}
