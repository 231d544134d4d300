//! The whole way: accepted, sent, delivered, read, with every acknowledgement ingested and every event written.

use std::time::{Duration, Instant};

use anyhow::bail;
use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Text};
use diesel_async::{AsyncPgConnection, RunQueryDsl as _};
use switchboard::config::Config;

use super::fleet::Fleet;
use super::load::{Until, drive};
use super::rig::{Rig, connect};
use super::usage::{Meter, memory};
use super::{Arguments, Finding, median, print_used};

/// Sessions that the messages are spread over.
const SESSIONS: usize = 500;
/// The longest that nothing may move.
const PATIENCE: Duration = Duration::from_secs(20);

pub async fn run(config: &Config, arguments: &Arguments) -> anyhow::Result<Finding> {
    let mut rig = Rig::new(config, "way").await?;
    rig.simulate(1, arguments.time_scale).await?;
    let result = measure(&mut rig, arguments).await;
    rig.tear_down().await?;
    result
}

async fn measure(rig: &mut Rig, arguments: &Arguments) -> anyhow::Result<Finding> {
    if arguments.split {
        for role in ["api", "dispatch", "send", "ingest", "deliver"] {
            rig.serve(role, role).await?;
        }
    } else {
        rig.serve("gateway", "api,dispatch,send,ingest,deliver").await?;
    }
    let requests = Fleet::make(rig, SESSIONS, 0).await?.requests();
    let mut conn = connect(&rig.url).await?;
    println!(
        "\nthe whole way: {} messages over {SESSIONS} sessions without pacing, acknowledgements {} times as fast as WhatsApp's",
        arguments.messages, arguments.time_scale
    );
    drive(&rig.address, arguments.connections, &requests, Until::Made(SESSIONS), 202).await?;
    let mut read = all_read(&mut conn, SESSIONS).await?;
    rig.analyze().await?;
    let mut ratios = Vec::new();
    for turn in 1..=arguments.turns {
        let baseline = rig.pgbench(arguments.connections, arguments.seconds).await?;
        let meter = Meter::start(&rig.admin, &rig.database, &rig.processes(), arguments.split).await?;
        let started = Instant::now();
        let accepted =
            drive(&rig.address, arguments.connections, &requests, Until::Made(arguments.messages), 202).await?;
        read = all_read(&mut conn, read + arguments.messages).await?;
        let took = started.elapsed().as_secs_f64();
        let rate = accepted.count() / took;
        println!(
            "  {turn}.  pgbench {:.0}/s, whole way {rate:.0}/s, ratio {:.3}; accepted after {:.1} s of {took:.1} s",
            baseline.rate,
            rate / baseline.rate,
            accepted.took.as_secs_f64()
        );
        let micros = print_used(&meter.stop(), accepted.count());
        println!(
            "      processor of an insert to that of the whole way: {:.0} µs to {micros:.0} µs, {:.3}",
            baseline.micros,
            baseline.micros / micros.max(1.0)
        );
        ratios.push(rate / baseline.rate);
    }
    for (name, pid) in rig.processes() {
        let (now, most) = memory(pid);
        println!("      memory of {name}: {now} MiB, at most {most} MiB");
    }
    let ratio = median(ratios);
    Ok(Finding {
        what: "messages a second the whole way, to inserts a second",
        measured: format!("{ratio:.3}"),
        goal: "≥ 0.15",
        met: ratio >= 0.15,
    })
}

#[derive(QueryableByName)]
struct Count {
    #[diesel(sql_type = Text)]
    status: String,
    #[diesel(sql_type = BigInt)]
    messages: i64,
}

async fn by_status(conn: &mut AsyncPgConnection) -> anyhow::Result<Vec<(String, i64)>> {
    let counts: Vec<Count> =
        diesel::sql_query("SELECT status, count(*) AS messages FROM messages GROUP BY status ORDER BY status")
            .load(conn)
            .await?;
    Ok(counts.into_iter().map(|count| (count.status, count.messages)).collect())
}

#[derive(QueryableByName)]
struct Open {
    #[diesel(sql_type = BigInt)]
    open: i64,
}

/// Waits until `expected` messages are read, and none is anything else; answers their number.
pub async fn all_read(conn: &mut AsyncPgConnection, expected: usize) -> anyhow::Result<usize> {
    none_open(conn).await?;
    let counts = by_status(conn).await?;
    if counts != [("read".to_owned(), i64::try_from(expected)?)] {
        bail!("{expected} messages should be read, and there are {counts:?}");
    }
    Ok(expected)
}

/// Waits until no message is on its way any more.
pub async fn none_open(conn: &mut AsyncPgConnection) -> anyhow::Result<()> {
    let mut moved = (Instant::now(), Vec::new());
    loop {
        // Only as far as the first that is still open, by the index on the status.
        let open: Open = diesel::sql_query(
            "SELECT count(*) AS open FROM tenants t CROSS JOIN unnest(ARRAY['queued', 'sending', 'sent', 'delivered']) s \
             CROSS JOIN LATERAL (SELECT FROM messages m WHERE m.tenant_id = t.id AND m.status = s LIMIT 1) m",
        )
        .get_result(conn)
        .await?;
        if open.open == 0 {
            return Ok(());
        }
        if moved.0.elapsed() > PATIENCE {
            let counts = by_status(conn).await?;
            if moved.1 == counts {
                bail!("nothing moves any more: {counts:?}");
            }
            moved = (Instant::now(), counts);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
