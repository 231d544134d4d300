//! `switchboard serve`.

use std::net::{SocketAddr, TcpListener};

use anyhow::{Context as _, bail};
use sha2::{Digest, Sha256};
use switchboard::app::App;
use switchboard::config::{Config, MasterKey};
use switchboard::db::migrate;
use switchboard::domain::chance::Chance;
use switchboard::domain::clock::Clock;
use switchboard::http;
use switchboard::serve::{Node, Role, set_clock};
use switchboard::telemetry::logs;
use tokio::signal::unix::{SignalKind, signal};

use crate::demo;

/// Arguments of `serve`.
#[derive(clap::Args)]
pub struct Arguments {
    /// What this node does: a comma-separated choice of api, dispatch, send, ingest, deliver
    #[arg(long, value_delimiter = ',', default_value = "api,dispatch,send,ingest,deliver")]
    roles: Vec<Role>,
    /// Do not bring the schema up to date first
    #[arg(long)]
    no_migrate: bool,
    /// For development: a master key that everybody knows, a simulated WAHA server, a demonstration
    #[arg(long)]
    dev: bool,
    /// With --dev: no simulated WAHA server and no demonstration
    #[arg(long, requires = "dev")]
    no_demo: bool,
}

pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let mut config = Config::load()?;
    if arguments.dev {
        prepare_for_development(&mut config);
    }
    if config.master_key.is_none() {
        bail!(switchboard::app::StartError::NoMasterKey);
    }
    logs::init(config.log_format, &config.log_filter).context("SWITCHBOARD_LOG")?;
    let with_api = arguments.roles.contains(&Role::Api);
    let api = with_api.then(|| listen("SWITCHBOARD_BIND", config.bind)).transpose()?;
    let metrics = config.metrics_bind.map(|bind| listen("SWITCHBOARD_METRICS_BIND", bind)).transpose()?;
    if !arguments.no_migrate {
        migrate::up(&config.database.url).await.context("DATABASE_URL")?;
    }
    let app = App::build(config, Clock::running(), Chance::from_system())?;
    set_clock(&app).await.context("DATABASE_URL")?;
    let demonstrating = arguments.dev && !arguments.no_demo && with_api;
    let node = Node::start(app.clone(), &arguments.roles, api, metrics, http::Options::default())?;
    tracing::info!(bind = %app.config.bind, roles = ?arguments.roles, "serving");
    if demonstrating {
        let demo = demo::Demo::start(&app).await?;
        let result = tokio::select! {
            ended = ended_by_signal() => ended,
            failed = demo.show() => failed,
        };
        if result.is_ok() {
            println!("\nStopping…");
        }
        node.stop().await;
        demo.stop().await;
        return result;
    }
    ended_by_signal().await?;
    tracing::info!("stopping");
    node.stop().await;
    Ok(())
}

/// What development does without: keys of one's own, public addresses, chatty logs in the way of the demonstration.
pub fn prepare_for_development(config: &mut Config) {
    if config.master_key.is_none() {
        config.master_key = Some(MasterKey(Sha256::digest(b"switchboard, for development only").into()));
    }
    if config.platform_key.is_none() {
        config.platform_key = Some(demo::PLATFORM_KEY.to_owned().into());
    }
    config.allow_private_targets = true;
    if std::env::var_os("SWITCHBOARD_LOG").is_none() {
        config.log_filter = "warn".to_owned();
    }
}

fn listen(setting: &str, bind: SocketAddr) -> anyhow::Result<TcpListener> {
    let listener = TcpListener::bind(bind).with_context(|| format!("{setting}: {bind} cannot be listened on"))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Returns when the process is asked to end, by Ctrl-C or SIGTERM.
pub async fn ended_by_signal() -> anyhow::Result<()> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}
