//! `switchboard openapi`.

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use switchboard::http::openapi;

/// Arguments of `openapi`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Compare with the committed file instead of printing
    #[arg(long)]
    check: bool,
    /// The committed file
    #[arg(long, default_value = "openapi/openapi.json", requires = "check")]
    file: PathBuf,
}

pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let document = openapi::render();
    if !arguments.check {
        return std::io::stdout().write_all(document.as_bytes()).context("standard output");
    }
    let file = arguments.file.display();
    let committed = std::fs::read_to_string(&arguments.file).with_context(|| format!("{file}"))?;
    if committed != document {
        bail!("{file} is not what the code describes; run `make openapi` and commit it");
    }
    Ok(())
}
