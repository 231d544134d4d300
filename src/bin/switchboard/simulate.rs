//! `switchboard simulate`.

use std::net::SocketAddr;

use anyhow::Context as _;
use secrecy::SecretString;
use switchboard::simulator::{CONTROL_HELP, Engine, NUMBERS_HELP, Simulator, SimulatorConfig};

use crate::serve::ended_by_signal;

/// Arguments of `simulate`.
#[derive(clap::Args)]
#[command(after_help = format!("{NUMBERS_HELP}\n\n{CONTROL_HELP}"))]
pub struct Arguments {
    /// Where to listen; port 0 takes a free one. Each further address is a WAHA server of its own
    #[arg(long, default_value = "127.0.0.1:3000")]
    bind: Vec<SocketAddr>,
    /// The API key it asks for
    #[arg(long, env = "WAHA_API_KEY", hide_env_values = true, default_value = "simulator")]
    api_key: String,
    /// WEBJS, WPP, NOWEB or GOWS
    #[arg(long, default_value = "NOWEB")]
    engine: Engine,
    /// How many times faster than WAHA
    #[arg(long, default_value_t = 1.0)]
    time_scale: f64,
    /// Sessions that wait for a scan are paired by themselves
    #[arg(long)]
    auto_pair: bool,
}

pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let mut simulators = Vec::new();
    for bind in arguments.bind {
        let simulator = Simulator::start(SimulatorConfig {
            bind,
            api_key: SecretString::from(arguments.api_key.clone()),
            engine: arguments.engine,
            time_scale: arguments.time_scale,
            auto_pair: arguments.auto_pair,
            ..SimulatorConfig::default()
        })
        .await
        .with_context(|| format!("{bind}"))?;
        println!("A simulated WAHA server listens on {}; Ctrl-C ends it.", simulator.url());
        simulators.push(simulator);
    }
    ended_by_signal().await?;
    for simulator in simulators {
        simulator.stop().await;
    }
    Ok(())
}
