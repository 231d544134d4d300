//! Accepting: durable 202s a second.

use std::time::Duration;

use switchboard::config::Config;

use super::fleet::Fleet;
use super::load::{Until, drive};
use super::rig::Rig;
use super::usage::Meter;
use super::{Arguments, Finding, median, print_used};

/// Sessions that the messages are spread over.
const SESSIONS: usize = 500;

pub async fn run(config: &Config, arguments: &Arguments) -> anyhow::Result<Vec<Finding>> {
    let mut rig = Rig::new(config, "accept").await?;
    rig.serve("gateway", "api").await?;
    let result = measure(&mut rig, arguments).await;
    rig.tear_down().await?;
    result
}

async fn measure(rig: &mut Rig, arguments: &Arguments) -> anyhow::Result<Vec<Finding>> {
    let requests = Fleet::make(rig, SESSIONS, 0).await?.requests();
    println!(
        "\naccept: {} connections, {SESSIONS} sessions, {} s a run, in turns with pgbench (prepared, one insert per commit)",
        arguments.connections, arguments.seconds
    );
    // Prepared statements, caches and connections: not counted.
    drive(&rig.address, arguments.connections, &requests, Until::Elapsed(Duration::from_secs(2)), 202).await?;
    rig.analyze().await?;
    let (mut ratios, mut p99s) = (Vec::new(), Vec::new());
    for turn in 1..=arguments.turns {
        let baseline = rig.pgbench(arguments.connections, arguments.seconds).await?;
        println!("  {turn}.  pgbench {:.0}/s, {:.0} µs of processor an insert", baseline.rate, baseline.micros);
        let meter = Meter::start(&rig.admin, &rig.database, &rig.processes(), false).await?;
        let limit = Until::Elapsed(Duration::from_secs(arguments.seconds));
        let times = drive(&rig.address, arguments.connections, &requests, limit, 202).await?;
        let (rate, p99) = (times.per_second(), times.percentile(99));
        println!(
            "      accept {rate:.0}/s, ratio {:.2}, p50 {:.1} ms, p99 {p99:.1} ms",
            rate / baseline.rate,
            times.percentile(50)
        );
        print_used(&meter.stop(), times.count());
        ratios.push(rate / baseline.rate);
        p99s.push(p99);
    }
    let (ratio, p99) = (median(ratios), median(p99s));
    Ok(vec![
        Finding {
            what: "accepted messages a second, to inserts a second",
            measured: format!("{ratio:.2}"),
            goal: "≥ 1.0",
            met: ratio >= 1.0,
        },
        Finding {
            what: "accept, 99 of 100 within",
            measured: format!("{p99:.1} ms"),
            goal: "≤ 20 ms",
            met: p99 <= 20.0,
        },
    ])
}
