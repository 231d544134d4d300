//! `switchboard migrate`.

use anyhow::Context as _;
use switchboard::config::Config;
use switchboard::db::migrate;

/// Arguments of `migrate`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Take back the latest N migrations instead (0: none). Their tables go, with what is in them.
    #[arg(long, value_name = "N")]
    down: Option<usize>,
}

pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let config = Config::load()?;
    let (word, versions) = match arguments.down {
        None => ("applied", migrate::up(&config.database.url).await.context("DATABASE_URL")?),
        Some(count) => ("taken back", migrate::down(&config.database.url, count).await.context("DATABASE_URL")?),
    };
    if versions.is_empty() {
        println!("The schema is up to date.");
    }
    for version in versions {
        println!("{word} {version}");
    }
    Ok(())
}
