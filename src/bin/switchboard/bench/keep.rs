//! What it costs to keep sessions alive that have nothing to send.

use std::time::Duration;

use anyhow::Context as _;
use switchboard::config::Config;

use super::Arguments;
use super::fleet::Fleet;
use super::load::{Connection, request};
use super::rig::Rig;
use super::usage::{Meter, memory};

const SERVERS: usize = 4;
/// Until every server was asked once and what there was to do is done.
const SETTLE: Duration = Duration::from_secs(15);

pub async fn run(config: &Config, arguments: &Arguments) -> anyhow::Result<()> {
    let mut rig = Rig::new(config, "keep").await?;
    rig.simulate(SERVERS, 1.0).await?;
    rig.serve("gateway", "api,dispatch,send,ingest,deliver").await?;
    let result = measure(&mut rig, arguments).await;
    rig.tear_down().await?;
    result
}

async fn measure(rig: &mut Rig, arguments: &Arguments) -> anyhow::Result<()> {
    let (sessions, look) = if arguments.quick { (200, 10) } else { (2_000, 60) };
    Fleet::make(rig, sessions, 1000).await?;
    rig.analyze().await?;
    tokio::time::sleep(SETTLE).await;
    let before = calls(rig).await?;
    let meter = Meter::start(&rig.admin, &rig.database, &rig.processes(), false).await?;
    tokio::time::sleep(Duration::from_secs(look)).await;
    let used = meter.stop();
    let made = calls(rig).await? - before;
    let seconds = Duration::from_secs(look).as_secs_f64();
    let each: Vec<String> = used
        .iter()
        .filter(|(name, _)| name != "load")
        .map(|(name, used)| format!("{name} {:.1} ms", used.as_secs_f64() * 1e3 / seconds))
        .collect();
    let pid = rig.processes().first().map_or(0, |(_, pid)| *pid);
    println!("\nkeep: {sessions} sessions on {SERVERS} WAHA servers that have nothing to send, for {look} s");
    println!("      {:.0} calls to WAHA a minute; processor a second: {}", made * 60.0 / seconds, each.join(", "));
    println!("      memory of the gateway: {} MiB", memory(pid).0);
    Ok(())
}

/// Calls to WAHA so far, as the gateway counts them.
async fn calls(rig: &Rig) -> anyhow::Result<f64> {
    let (_, body) = Connection::open(&rig.address).await?.exchange(&request("GET", "/metrics", "", None)).await?;
    let text = String::from_utf8(body).context("the metrics")?;
    let counts = text.lines().filter(|line| line.starts_with("switchboard_waha_calls_total"));
    Ok(counts.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
}
