//! Many paced sessions: does each message leave when its turn is, and none before?
//!
//! Lateness is measured from outside: a message's slot is the moment its session's send before was answered, plus the gap; it
//! left when its POST reached the simulated WAHA server. So the way of the outcome into the database, of the turn to the
//! worker, and of the request are all in it.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use chrono::{DateTime, TimeDelta, Utc};
use serde::Deserialize;
use switchboard::config::Config;

use super::fleet::Fleet;
use super::load::{Connection, with_headers};
use super::rig::{Rig, connect};
use super::usage::{Meter, memory};
use super::way::all_read;
use super::{Arguments, Finding, print_used};

/// WAHA servers that the sessions are spread over.
const SERVERS: usize = 10;

pub async fn run(config: &Config, arguments: &Arguments) -> anyhow::Result<Vec<Finding>> {
    let mut rig = Rig::new(config, "paced").await?;
    rig.simulate(SERVERS, 10.0).await?;
    rig.serve("gateway", "api,dispatch,send,ingest,deliver").await?;
    let result = measure(&mut rig, arguments).await;
    rig.tear_down().await?;
    result
}

async fn measure(rig: &mut Rig, arguments: &Arguments) -> anyhow::Result<Vec<Finding>> {
    let (sessions, gap, rounds) = if arguments.quick { (500_u32, 2_u32, 3_u32) } else { (10_000, arguments.gap, 5) };
    let fleet = Fleet::make(rig, usize::try_from(sessions)?, i32::try_from(gap * 1000)?).await?;
    let requests = fleet.requests();
    rig.analyze().await?;
    println!(
        "\npaced: {sessions} sessions over {SERVERS} WAHA servers with a gap of {gap} s each, {} messages a second in sum",
        sessions / gap
    );
    let meter = Meter::start(&rig.admin, &rig.database, &rig.processes(), false).await?;
    let started = Instant::now();
    // Each session's first turn brings two messages, so that from then on one always waits for its slot.
    let turns = (0..rounds).flat_map(|round| std::iter::repeat_n(round, requests.len()));
    let every = Duration::from_secs(u64::from(gap)) / sessions;
    let posts: Vec<(Duration, &Vec<u8>)> = turns
        .zip(requests.iter().cycle())
        .zip(0_u32..)
        .flat_map(|((round, request), place)| {
            std::iter::repeat_n((every * place, request), if round == 0 { 2 } else { 1 })
        })
        .collect();
    let total = posts.len();
    post_in_time(&rig.address, arguments.connections, started, &posts).await?;
    let mut conn = connect(&rig.url).await?;
    all_read(&mut conn, total).await?;
    let used = meter.stop();
    let seen = ledger(rig).await?;
    let late = lateness(&seen, TimeDelta::seconds(i64::from(gap)));
    let at = |share: usize| {
        let micros = late.get(late.len().saturating_sub(1) * share / 100).copied().unwrap_or_default();
        micros.as_seconds_f64() * 1e3
    };
    let early = late.iter().filter(|late| **late < TimeDelta::zero()).count();
    println!(
        "      {total} messages in {:.0} s; {} slots: lateness p50 {:.0} ms, p90 {:.0} ms, p99 {:.0} ms, most {:.0} ms; early: {early}",
        started.elapsed().as_secs_f64(),
        late.len(),
        at(50),
        at(90),
        at(99),
        at(100)
    );
    print_used(&used, f64::from(u32::try_from(total)?));
    let pid = rig.processes().first().map_or(0, |(_, pid)| *pid);
    let (now, most) = memory(pid);
    println!("      memory of the gateway: {now} MiB, at most {most} MiB");
    Ok(vec![
        Finding {
            what: "10,000 paced sessions: 99 of 100 messages late by at most",
            measured: format!("{:.0} ms, {early} early", at(99)),
            goal: "≤ 100 ms, none early",
            met: at(99) <= 100.0 && early == 0,
        },
        Finding {
            what: "memory of the gateway with 10,000 sessions, at most",
            measured: format!("{most} MiB"),
            goal: "≤ 200 MB",
            met: most <= 190,
        },
    ])
}

/// Posts each request when its time has come.
async fn post_in_time(
    address: &str,
    connections: usize,
    started: Instant,
    posts: &[(Duration, &Vec<u8>)],
) -> anyhow::Result<()> {
    let mut clients = tokio::task::JoinSet::new();
    for number in 0..connections {
        let mine: Vec<(Duration, Vec<u8>)> =
            posts.iter().skip(number).step_by(connections).map(|(at, request)| (*at, (*request).clone())).collect();
        let address = address.to_owned();
        clients.spawn(async move {
            let mut connection = Connection::open(&address).await?;
            for (at, request) in mine {
                tokio::time::sleep_until((started + at).into()).await;
                connection.json(&request).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(ended) = clients.join_next().await {
        ended??;
    }
    Ok(())
}

#[derive(Deserialize)]
struct Ledger {
    posts: Vec<Post>,
}

#[derive(Deserialize)]
struct Post {
    session: String,
    started: DateTime<Utc>,
    ended: Option<DateTime<Utc>>,
}

/// Every POST of a send that the simulated WAHA servers saw.
async fn ledger(rig: &Rig) -> anyhow::Result<Vec<Post>> {
    let mut posts = Vec::new();
    for waha in &rig.wahas {
        let request = with_headers("GET", "/_simulator/ledger", "X-Api-Key: simulator\r\n", "");
        let (_, body) = Connection::open(waha).await?.exchange(&request).await?;
        posts.extend(serde_json::from_slice::<Ledger>(&body).context("the ledger")?.posts);
    }
    Ok(posts)
}

/// How much later than its slot each message left, but for each session's first; shortest first.
fn lateness(posts: &[Post], gap: TimeDelta) -> Vec<TimeDelta> {
    let mut by_session: HashMap<&str, Vec<&Post>> = HashMap::new();
    for post in posts {
        by_session.entry(&post.session).or_default().push(post);
    }
    let mut late = Vec::new();
    for posts in by_session.values_mut() {
        posts.sort_by_key(|post| post.started);
        let before = posts.iter().filter_map(|post| post.ended);
        late.extend(before.zip(posts.iter().skip(1)).map(|(before, post)| post.started - (before + gap)));
    }
    late.sort_unstable();
    late
}
