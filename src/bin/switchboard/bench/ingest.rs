//! Ingesting: signed webhooks of WAHA's, a second, until what they tell is visible.

use std::time::{Duration, Instant};

use anyhow::bail;
use diesel::QueryableByName;
use diesel::sql_types::BigInt;
use diesel_async::{AsyncPgConnection, RunQueryDsl as _};
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde_json::json;
use sha2::Sha512;
use switchboard::config::Config;
use switchboard::domain::chance::Chance;
use switchboard::domain::clock::Clock;

use super::fleet::{Fleet, Member};
use super::load::{Until, drive, with_headers};
use super::rig::{Baseline, Rig, connect};
use super::usage::Meter;
use super::{Arguments, Finding, median, print_used};

/// Sessions that the messages come in by.
const SESSIONS: usize = 500;

pub async fn run(config: &Config, arguments: &Arguments) -> anyhow::Result<Finding> {
    let mut rig = Rig::new(config, "ingest").await?;
    rig.serve("gateway", "api,ingest").await?;
    let result = measure(&mut rig, arguments).await;
    rig.tear_down().await?;
    result
}

async fn measure(rig: &mut Rig, arguments: &Arguments) -> anyhow::Result<Finding> {
    let fleet = Fleet::make(rig, SESSIONS, 0).await?;
    let mut conn = connect(&rig.url).await?;
    let chance = Chance::from_system();
    println!("\ningest: {} incoming messages by signed webhooks, until they are stored", arguments.messages);
    let mut stored = 0;
    let mut ratios = Vec::new();
    for turn in 0..=arguments.turns {
        let count = if turn == 0 { SESSIONS } else { arguments.messages };
        let webhooks: Vec<Vec<u8>> =
            (0..count).filter_map(|n| Some(webhook(fleet.sessions.get(n % SESSIONS)?, &chance))).collect();
        // The first turn only fills caches and gives the planner its statistics.
        let baseline = match turn {
            0 => Baseline::default(),
            _ => rig.pgbench(arguments.connections, arguments.seconds).await?,
        };
        let meter = Meter::start(&rig.admin, &rig.database, &rig.processes(), false).await?;
        let started = Instant::now();
        let kept = drive(&rig.address, arguments.connections, &webhooks, Until::Made(count), 200).await?;
        stored += count;
        until_stored(&mut conn, stored).await?;
        let took = started.elapsed().as_secs_f64();
        let rate = kept.count() / took;
        if turn == 0 {
            rig.analyze().await?;
            continue;
        }
        println!(
            "  {turn}.  pgbench {:.0}/s, ingest {rate:.0}/s, ratio {:.2}; answered after {:.1} s of {took:.1} s, \
             p50 {:.1} ms, p99 {:.1} ms",
            baseline.rate,
            rate / baseline.rate,
            kept.took.as_secs_f64(),
            kept.percentile(50),
            kept.percentile(99)
        );
        print_used(&meter.stop(), kept.count());
        ratios.push(rate / baseline.rate);
    }
    let ratio = median(ratios);
    Ok(Finding {
        what: "incoming messages a second until stored, to inserts a second",
        measured: format!("{ratio:.2}"),
        goal: "≥ 0.7",
        met: ratio >= 0.7,
    })
}

/// A message that somebody sent to the session, as WAHA tells of it.
fn webhook(session: &Member, chance: &Chance) -> Vec<u8> {
    let id = format!("3EB0{}", hex::encode_upper(chance.bytes::<9>()));
    let now = Clock::running().now();
    let body = json!({
        "id": format!("evt_{id}"), "timestamp": now.timestamp_millis(), "event": "message.any",
        "session": session.name, "metadata": {"switchboard.session": session.id},
        "me": {"id": format!("{}@c.us", session.number), "pushName": "Bench"},
        "payload": {
            "id": format!("false_15550101234@c.us_{id}"), "timestamp": now.timestamp(), "from": "15550101234@c.us",
            "fromMe": false, "to": format!("{}@c.us", session.number), "source": "app",
            "body": "Thank you, I shall be at home tomorrow.", "hasMedia": false, "ack": 2, "ackName": "DEVICE",
            "_data": {"key": {"remoteJid": "15550101234@s.whatsapp.net", "fromMe": false, "id": id}, "pushName": "Somebody"},
        },
        "engine": "NOWEB", "environment": {"version": "2026.7.1", "engine": "NOWEB", "tier": "CORE", "browser": null},
    })
    .to_string();
    let signature = Hmac::<Sha512>::new_from_slice(session.webhook_key.as_bytes())
        .map(|mac| hex::encode(mac.chain_update(&body).finalize().into_bytes()))
        .unwrap_or_default();
    let headers = format!("X-Webhook-Hmac: {signature}\r\nX-Webhook-Hmac-Algorithm: sha512\r\n");
    with_headers("POST", &format!("/hooks/waha/{}", session.server), &headers, &body)
}

#[derive(QueryableByName)]
struct Count {
    #[diesel(sql_type = BigInt)]
    messages: i64,
}

async fn until_stored(conn: &mut AsyncPgConnection, expected: usize) -> anyhow::Result<()> {
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(60) {
        let count: Count = diesel::sql_query("SELECT count(*) AS messages FROM messages WHERE direction = 'inbound'")
            .get_result(conn)
            .await?;
        if count.messages == i64::try_from(expected)? {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    bail!("not all incoming messages were stored");
}
