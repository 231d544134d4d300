//! `switchboard bench`.

/// Arguments of `bench`.
#[derive(clap::Args)]
pub struct Arguments {}

pub async fn run(_arguments: Arguments) -> anyhow::Result<()> {
    Ok(())
}
