//! A gateway that has nothing to do.

use std::time::Duration;

use switchboard::config::Config;

use super::Finding;
use super::rig::Rig;
use super::usage::{Meter, memory};

/// How long it is left alone before it is looked at, and how long it is looked at.
const SETTLE: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_secs(10);

pub async fn run(config: &Config) -> anyhow::Result<Finding> {
    let mut rig = Rig::new(config, "idle").await?;
    rig.serve("gateway", "api,dispatch,send,ingest,deliver").await?;
    tokio::time::sleep(SETTLE).await;
    let meter = Meter::start(&rig.admin, &rig.database, &rig.processes(), false).await?;
    tokio::time::sleep(LOOK).await;
    let used = meter.stop();
    let pid = rig.processes().first().map_or(0, |(_, pid)| *pid);
    let (now, most) = memory(pid);
    let each: Vec<String> = used
        .iter()
        .filter(|(name, _)| name == "gateway" || name == "postgres")
        .map(|(name, used)| format!("{name} {:.1} ms", used.as_secs_f64() * 1e3 / LOOK.as_secs_f64()))
        .collect();
    println!("\nidle: {now} MiB of memory (at most {most}), processor a second: {}", each.join(", "));
    rig.tear_down().await?;
    Ok(Finding { what: "memory of an idle gateway", measured: format!("{now} MiB"), goal: "≤ 50 MB", met: now <= 48 })
}
