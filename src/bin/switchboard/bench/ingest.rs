//! Ingesting: signed webhooks of WAHA's, a second, until what they tell is visible; and what a burst of old ones does to others.

use std::time::{Duration, Instant};

use anyhow::bail;
use chrono::{DateTime, Utc};
use diesel::QueryableByName;
use diesel::sql_types::BigInt;
use diesel_async::{AsyncPgConnection, RunQueryDsl as _};
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde_json::{Value, json};
use sha2::Sha512;
use switchboard::config::Config;
use switchboard::domain::chance::Chance;
use switchboard::domain::clock::Clock;

use super::fleet::{Fleet, Member};
use super::load::{Times, Until, drive, with_headers};
use super::rig::{Baseline, Rig, connect};
use super::usage::Meter;
use super::{Arguments, Finding, median, print_used};

/// Sessions that the messages come in by.
const SESSIONS: usize = 500;
/// Webhooks that WAHA posts at once in a burst.
const BURST_CONNECTIONS: usize = 8;

pub async fn run(config: &Config, arguments: &Arguments) -> anyhow::Result<Vec<Finding>> {
    let mut rig = Rig::new(config, "ingest").await?;
    rig.serve("gateway", "api,ingest").await?;
    let result = measure(&mut rig, arguments).await;
    rig.tear_down().await?;
    result
}

async fn measure(rig: &mut Rig, arguments: &Arguments) -> anyhow::Result<Vec<Finding>> {
    let fleet = Fleet::make(rig, SESSIONS, 0).await?;
    let mut conn = connect(&rig.url).await?;
    let chance = Chance::from_system();
    println!(
        "\ningest: {} signed webhooks until what they tell is stored: of ten, six messages that came in, one of the phone's, an \
         acknowledgement, an edit and a reaction",
        arguments.messages
    );
    let mut stored = Stored::default();
    let mut ids: Vec<Vec<String>> = vec![Vec::new(); SESSIONS];
    let mut ratios = Vec::new();
    for turn in 0..=arguments.turns {
        let count = if turn == 0 { SESSIONS } else { arguments.messages };
        let mut webhooks = Vec::with_capacity(count);
        for n in 0..count {
            let (Some(session), Some(ids)) = (fleet.sessions.get(n % SESSIONS), ids.get_mut(n % SESSIONS)) else {
                continue;
            };
            webhooks.push(mixed(session, &chance, n / SESSIONS, ids, &mut stored));
        }
        // The first turn only fills caches and gives the planner its statistics.
        let baseline = match turn {
            0 => Baseline::default(),
            _ => rig.pgbench(arguments.connections, arguments.seconds).await?,
        };
        let meter = Meter::start(&rig.admin, &rig.database, &rig.processes(), false).await?;
        let started = Instant::now();
        let kept = drive(&rig.address, arguments.connections, &webhooks, Until::Made(count), 200).await?;
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
    let ingest = Finding {
        what: "webhooks of mixed kinds a second until stored, to inserts a second",
        measured: format!("{ratio:.2}"),
        goal: "≥ 0.7",
        met: ratio >= 0.7,
    };
    Ok(vec![ingest, burst(rig, &fleet, &mut conn, arguments).await?])
}

/// Old messages of one session's, as an engine tells them after a silence; meanwhile others' come in one by one.
async fn burst(
    rig: &Rig,
    fleet: &Fleet,
    conn: &mut AsyncPgConnection,
    arguments: &Arguments,
) -> anyhow::Result<Finding> {
    let count = arguments.messages * 5;
    let chance = Chance::from_system();
    println!("\nburst: {count} old messages of one session, and what it means for the others");
    let Some((one, others)) = fleet.sessions.split_first() else { bail!("no sessions") };
    let idle = probes(rig, others, conn, &chance, |probes| probes == 300).await?;
    let old = Clock::running().now() - chrono::TimeDelta::days(1);
    let history: Vec<Vec<u8>> = (0..count).map(|_| message(one, &chance, &fresh(&chance), false, old)).collect();
    let address = rig.address.clone();
    let posting =
        tokio::spawn(async move { drive(&address, BURST_CONNECTIONS, &history, Until::Made(count), 200).await });
    let busy = probes(rig, others, conn, &chance, |_| posting.is_finished()).await?;
    let posted = posting.await??;
    let (calm, beside) = (idle.percentile(99), busy.percentile(99));
    println!(
        "  the burst was taken in {:.1} s; a message of another session is stored after p50 {:.1} ms, p99 {calm:.1} ms when idle, \
         p50 {:.1} ms, p99 {beside:.1} ms beside it ({} measured)",
        posted.took.as_secs_f64(),
        idle.percentile(50),
        busy.percentile(50),
        busy.count()
    );
    Ok(Finding {
        what: "beside a burst of old messages, 99 of 100 of other sessions' stored within, to idle",
        measured: format!("{:.1}", beside / calm),
        goal: "≤ 2",
        met: beside <= calm * 2.0,
    })
}

/// One message after the other, each until it is stored, until there are enough.
async fn probes(
    rig: &Rig,
    sessions: &[Member],
    conn: &mut AsyncPgConnection,
    chance: &Chance,
    mut enough: impl FnMut(usize) -> bool,
) -> anyhow::Result<Times> {
    let began = Instant::now();
    let mut times = Vec::new();
    for session in sessions.iter().cycle() {
        if enough(times.len()) {
            break;
        }
        let id = fresh(chance);
        let webhook = message(session, chance, &id, false, Clock::running().now());
        let started = Instant::now();
        drive(&rig.address, 1, &[webhook], Until::Made(1), 200).await?;
        let stored = || {
            diesel::sql_query(
                "SELECT count(*) AS messages FROM messages WHERE session_id = $1 AND waha_message_id = $2",
            )
        };
        loop {
            let found: Count = stored()
                .bind::<diesel::sql_types::Uuid, _>(session.id)
                .bind::<diesel::sql_types::Text, _>(&id)
                .get_result(conn)
                .await?;
            if found.messages > 0 {
                break;
            }
            if started.elapsed() > Duration::from_secs(60) {
                bail!("a message beside the burst was not stored");
            }
        }
        times.push(started.elapsed());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(Times::new(times, began.elapsed()))
}

fn fresh(chance: &Chance) -> String {
    format!("3EB0{}", hex::encode_upper(chance.bytes::<9>()))
}

/// What has been told, and has to be stored in the end.
#[derive(Clone, Copy, Debug, Default)]
struct Stored {
    messages: i64,
    edits: i64,
    reactions: i64,
}

/// The `n`th webhook of a session, whose messages so far are `ids`.
fn mixed(session: &Member, chance: &Chance, n: usize, ids: &mut Vec<String>, stored: &mut Stored) -> Vec<u8> {
    let now = Clock::running().now();
    let at = now.timestamp();
    let chat = "15550101234@c.us";
    let event = match (n % 10, ids.iter().rev().nth(n % 3)) {
        (7, Some(of)) => {
            json!(["message.ack", {"id": format!("false_{chat}_{of}"), "from": chat, "fromMe": false, "ack": 3, "ackName": "READ"}])
        }
        (8, Some(of)) => {
            stored.edits += 1;
            json!(["message.edited", {"id": format!("false_{chat}_{}", fresh(chance)), "timestamp": at, "from": chat, "fromMe": false,
                "body": "Thank you, I shall be at home on Friday.", "hasMedia": false, "editedMessageId": of}])
        }
        (9, Some(of)) => {
            // Each message gets one reaction at the most here.
            let of = of.clone();
            ids.retain(|id| *id != of);
            stored.reactions += 1;
            json!(["message.reaction", {"id": format!("false_{chat}_{}", fresh(chance)), "timestamp": at, "from": chat, "fromMe": false,
                "participant": chat, "reaction": {"text": "👍", "messageId": format!("false_{chat}_{of}")}}])
        }
        (kind, _) => {
            stored.messages += 1;
            let id = fresh(chance);
            if kind != 6 {
                ids.push(id.clone());
            }
            return message(session, chance, &id, kind == 6, now);
        }
    };
    let (name, payload) = (event.get(0).cloned().unwrap_or_default(), event.get(1).cloned().unwrap_or_default());
    signed(session, chance, name.as_str().unwrap_or_default(), &payload, now)
}

/// A message that somebody sent to the session or, with `own`, that was written on the phone.
fn message(session: &Member, chance: &Chance, id: &str, own: bool, at: DateTime<Utc>) -> Vec<u8> {
    let chat = "15550101234@c.us";
    let payload = json!({
        "id": format!("{own}_{chat}_{id}"), "timestamp": at.timestamp(), "from": chat,
        "fromMe": own, "to": format!("{}@c.us", session.number), "source": "app",
        "body": "Thank you, I shall be at home tomorrow.", "hasMedia": false, "ack": 2, "ackName": "DEVICE",
        "_data": {"key": {"remoteJid": "15550101234@s.whatsapp.net", "fromMe": own, "id": id}, "pushName": "Somebody"},
    });
    signed(session, chance, "message.any", &payload, Clock::running().now())
}

/// An event as WAHA posts it.
fn signed(session: &Member, chance: &Chance, event: &str, payload: &Value, at: DateTime<Utc>) -> Vec<u8> {
    let body = json!({
        "id": format!("evt_{}", fresh(chance).to_lowercase()), "timestamp": at.timestamp_millis(), "event": event,
        "session": session.name, "metadata": {"switchboard.session": session.id},
        "me": {"id": format!("{}@c.us", session.number), "pushName": "Bench"},
        "payload": payload,
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

#[derive(QueryableByName)]
struct Counts {
    #[diesel(sql_type = BigInt)]
    messages: i64,
    #[diesel(sql_type = BigInt)]
    edits: i64,
    #[diesel(sql_type = BigInt)]
    reactions: i64,
}

async fn until_stored(conn: &mut AsyncPgConnection, expected: Stored) -> anyhow::Result<()> {
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(60) {
        let found: Counts = diesel::sql_query(
            "SELECT (SELECT count(*) FROM messages) AS messages, (SELECT count(*) FROM message_edits) AS edits, \
                    (SELECT count(*) FROM message_reactions) AS reactions",
        )
        .get_result(conn)
        .await?;
        if (found.messages, found.edits, found.reactions) == (expected.messages, expected.edits, expected.reactions) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    bail!("not everything that came in was stored: {expected:?}");
}
