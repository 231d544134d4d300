//! `switchboard admin dead-letters` and `reapply`: what WAHA told and nothing could be made of.

use anyhow::bail;
use switchboard::app::App;
use switchboard::config::Config;
use switchboard::db::Db;
use switchboard::domain::chance::Chance;
use switchboard::domain::clock::Clock;
use switchboard::domain::ids::DeadLetterId;
use switchboard::ingest::dead_letters::{self, Reason, Which};

/// Which letters are meant.
#[derive(clap::Args)]
pub struct Choice {
    /// This letter; may be given several times
    #[arg(long)]
    id: Vec<DeadLetterId>,
    /// Those set aside as `unreadable`, `refused` or `unknown_event`
    #[arg(long)]
    reason: Option<Reason>,
    /// All of them
    #[arg(long)]
    all: bool,
}

impl Choice {
    /// What is changed has to be named.
    fn which(self) -> anyhow::Result<Which> {
        if self.id.is_empty() && self.reason.is_none() && !self.all {
            bail!("say which letters: --id, --reason or --all");
        }
        Ok(Which { ids: self.id, reason: self.reason })
    }
}

/// What is done with letters beside listing them.
#[derive(clap::Subcommand)]
pub enum Deed {
    /// Remove letters for good
    Remove {
        #[command(flatten)]
        choice: Choice,
    },
}

/// Lists the letters, without their content.
pub async fn list(db: &Db, reason: Option<Reason>) -> anyhow::Result<()> {
    let which = Which { ids: Vec::new(), reason };
    let mut after = None;
    loop {
        let page = dead_letters::list(db, &which, after, 500).await?;
        let Some(last) = page.last() else { return Ok(()) };
        after = Some(last.id);
        for letter in &page {
            println!(
                "{} {} tenant={} session={} event={} attempts={} received={}: {}",
                letter.id,
                letter.reason,
                letter.tenant_id,
                letter.session_id,
                letter.event.as_deref().unwrap_or("?"),
                letter.attempts,
                letter.received_at.to_rfc3339(),
                letter.cause
            );
        }
    }
}

/// Does `deed`.
pub async fn run(db: &Db, deed: Deed) -> anyhow::Result<()> {
    match deed {
        Deed::Remove { choice } => println!("{} removed", dead_letters::remove(db, &choice.which()?).await?),
    }
    Ok(())
}

/// Applies letters again; fails when some of them could not be.
pub async fn reapply(config: Config, choice: Choice) -> anyhow::Result<()> {
    let which = choice.which()?;
    let app = App::build(config, Clock::running(), Chance::from_system())?;
    let tally = dead_letters::reapply(&app, &which).await?;
    println!("{} applied, {} left", tally.applied, tally.left);
    if tally.left > 0 {
        bail!("{} letters could not be applied; `switchboard admin dead-letters` says why", tally.left);
    }
    Ok(())
}
