//! The command line, as processes.

mod ending;
mod keys;
mod rotation;
mod starting;

use std::collections::BTreeMap;
use std::time::Duration;

use crate::support::{Process, eventually};

/// How long a subcommand that does its work and ends may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs `switchboard` to its end; answers its exit code and what it wrote to both streams.
pub async fn run(arguments: &[&str], settings: &BTreeMap<String, String>) -> (i32, String) {
    let environment: Vec<(&str, String)> =
        settings.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
    let mut process = Process::switchboard(arguments, environment);
    let ended = eventually(PATIENCE, &format!("{arguments:?} to end"), async || process.ended()).await;
    (ended.code().expect("not killed"), process.output())
}

/// The same with exit code 0; answers what was written, without white space at its ends.
pub async fn good(arguments: &[&str], settings: &BTreeMap<String, String>) -> String {
    let (code, output) = run(arguments, settings).await;
    assert_eq!(code, 0, "{arguments:?}: {output}");
    output.trim().to_owned()
}
