//! Whatever becomes of webhooks, what WAHA has is stored in the end, each message once.

use std::collections::BTreeMap;
use std::time::Duration;

use reqwest::StatusCode;
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use switchboard::config::{Config, GapFill};
use switchboard::domain::clock::Clock;
use switchboard::serve::Role;
use switchboard::simulator::{Engine, Fault, FaultRule, PostRecord, SimulatorConfig, WebhookFaults, Writing};

use crate::support::world::{Client, PATIENCE, amqp_url};
use crate::support::{TcpProxy, World, eventually, free_port, hurry, invariants, truth};

const MINUTE: Duration = Duration::from_secs(60);
const ALL: &str = "api,dispatch,send,ingest,deliver";

/// Looks for what is due all the time and calls as often as it likes.
fn eager(config: &mut Config) {
    config.gap_fill = GapFill {
        every: Duration::from_millis(100),
        delay: Duration::from_millis(100),
        overlap: Duration::from_secs(60),
        lease: Duration::from_secs(2),
        per_minute: 100_000,
        at_once: 4,
        page: 20,
        ..GapFill::default()
    };
}

/// The same for a process.
fn eager_process(settings: &mut BTreeMap<String, String>) {
    for (name, value) in [
        ("POLL_MS", "100"),
        ("DELAY_MS", "100"),
        ("OVERLAP_MS", "60000"),
        ("LEASE_MS", "2000"),
        ("PER_MINUTE", "100000"),
        ("PAGE", "5"),
    ] {
        settings.insert(format!("SWITCHBOARD_GAP_FILL_{name}"), value.to_owned());
    }
}

/// The fate of webhooks that the issue asks for: lost, doubled, reordered and late.
fn rough() -> WebhookFaults {
    let (late_min_s, late_max_s) = (60, 300);
    WebhookFaults {
        drop: 0.05,
        duplicate: 0.1,
        reorder_ms: 1500,
        late: 0.1,
        late_min_s,
        late_max_s,
        ..WebhookFaults::default()
    }
}

/// No word of messages, in or out; of everything else as it happens.
fn silence() -> WebhookFaults {
    WebhookFaults { event: Some("message.any".to_owned()), drop: 1.0, ..WebhookFaults::default() }
}

async fn sessions(tenant: &Client, count: usize) -> Vec<(String, String)> {
    let mut sessions = Vec::new();
    for n in 0..count {
        sessions.push(tenant.session(&format!("s{n}")).await);
    }
    sessions
}

/// Messages in and, for every third of them, out, in each of the sessions; some are written on the phone, and some are changed,
/// taken back or reacted to.
async fn talk(world: &World, tenant: &Client, sessions: &[(String, String)], name: &str, rounds: usize) {
    for n in 0..rounds {
        for (session, external) in sessions {
            let (from, body) = (format!("+1555020{:04}", n % 7), format!("{name} in {n}"));
            let control = world.simulator.control();
            let id = control.inbound_text(external, &from, &body).unwrap();
            match n % 7 {
                1 => control.edit(external, &id, &format!("{body}, mended")).unwrap(),
                2 => control.revoke(external, &id).unwrap(),
                3 => {
                    let own = Writing::text(&format!("{name} by phone {n}")).by_phone();
                    let own = control.write(external, &from, own).unwrap();
                    control.react(external, &own, Some(&from), "👍").unwrap();
                }
                4 => {
                    control.react(external, &id, Some(&from), "😂").unwrap();
                    control.react(external, &id, None, "🙏").unwrap();
                }
                _ => {}
            }
            if n % 3 == 0 {
                let message = json!({"session_id": session, "to": "+15550301234", "body": format!("{name} out {n}")});
                eventually(PATIENCE, "the message to be accepted", async || {
                    (tenant.post("/v1/messages", &message).await.status == StatusCode::ACCEPTED).then_some(())
                })
                .await;
            }
        }
        tokio::task::yield_now().await;
    }
}

/// Waits until the simulator has `inbound` and `outbound` messages in each of the sessions, all of the latter read.
async fn settled(world: &World, sessions: &[(String, String)], inbound: usize, outbound: usize) {
    let all = world.simulator.control().ledger_when(|ledger| {
        sessions.iter().all(|(_, external)| {
            let of = |entry: &&switchboard::simulator::LedgerEntry| entry.session == *external;
            ledger.inbound.iter().filter(of).count() >= inbound
                && ledger.entries.iter().filter(of).filter(|entry| entry.ack >= 3).count() >= outbound
        })
    });
    if tokio::time::timeout(PATIENCE, all).await.is_err() {
        let ledger = world.simulator.control().ledger();
        panic!("the traffic does not end: {} in, {} out", ledger.inbound.len(), ledger.entries.len());
    }
}

async fn ask(tenant: &Client, sessions: &[(String, String)]) {
    for (session, _) in sessions {
        tenant.post(&format!("/v1/sessions/{session}/gap-fill"), &Value::Null).await.expect(StatusCode::ACCEPTED);
    }
}

fn reads(world: &World, external: &str) -> Vec<PostRecord> {
    let mut calls = world.simulator.control().ledger_of(Some(external)).calls;
    calls.retain(|call| call.endpoint == "messages");
    calls
}

/// That no two of `calls` were under way at once.
fn one_at_a_time(calls: &[PostRecord]) -> bool {
    calls.windows(2).all(|pair| pair[0].ended_tick.is_some_and(|ended| ended < pair[1].started_tick))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_doubled_and_late_webhooks_and_a_restart_leave_nothing_missing() {
    let world = World::new().await;
    let node = world.node_with(&Role::ALL, eager);
    let tenant = world.tenant(&node.base, "one").await;
    let sessions = sessions(&tenant, 3).await;
    let control = world.simulator.control();
    control.webhook_faults(rough());
    talk(&world, &tenant, &sessions, "before", 45).await;
    // What waits to be posted again is lost with the process.
    control.restart_after(Duration::from_millis(500));
    talk(&world, &tenant, &sessions, "after", 45).await;
    settled(&world, &sessions, 90, 30).await;
    ask(&tenant, &sessions).await;
    let client = world.db.connect().await;
    truth::holds(&client, control, &sessions, PATIENCE).await;
    invariants::hold(&world).await;
    // Late ones that come after they were read back change nothing.
    control.clear_faults();
    truth::holds(&client, control, &sessions, PATIENCE).await;
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_with_the_database_and_then_the_broker_away_for_a_minute_each() {
    // Minutes pass in seconds, for the servers' late webhooks and for the node alike.
    let clock = Clock::manual("2026-11-21T09:30:00Z".parse().unwrap());
    let hurrying = hurry(&clock, 20);
    let direct = url::Url::parse(&amqp_url()).unwrap();
    let broker = TcpProxy::start(format!("{}:{}", direct.host_str().unwrap(), direct.port().unwrap_or(5672))).await;
    let mut through = direct.clone();
    through.set_host(Some("127.0.0.1")).unwrap();
    through.set_port(Some(broker.addr().port())).unwrap();
    let mut world = World::on(&clock, SimulatorConfig { auto_pair: true, ..SimulatorConfig::default() }).await;
    world.amqp = through.to_string();
    let database = TcpProxy::start(world.db.server()).await;
    let behind = world.db.config_through(database.addr()).url.expose_secret().to_owned();
    let node = world.node_with(&Role::ALL, |config| {
        eager(config);
        config.gap_fill.lease = Duration::from_secs(40);
        config.gap_fill.overlap = GapFill::default().overlap;
        config.database.url = SecretString::from(behind);
        config.database.acquire_timeout = Duration::from_secs(2);
    });
    let tenant = world.tenant(&node.base, "one").await;
    let sessions = sessions(&tenant, 2).await;
    let control = world.simulator.control();
    control.webhook_faults(rough());
    let inbound = |name: &str| {
        for n in 0..40 {
            for (_, external) in &sessions {
                control.inbound_text(external, &format!("+1555020{:04}", n % 7), &format!("{name} {n}")).unwrap();
            }
        }
    };
    talk(&world, &tenant, &sessions, "before", 15).await;

    ask(&tenant, &sessions).await;
    database.cut();
    eventually(PATIENCE, "the node to miss its database", async || {
        (tenant.get("/readyz").await.status == StatusCode::SERVICE_UNAVAILABLE).then_some(())
    })
    .await;
    inbound("without database");
    clock.sleep(MINUTE).await;
    database.restore();
    eventually(PATIENCE, "the node to be ready", async || {
        (tenant.get("/readyz").await.status == StatusCode::OK).then_some(())
    })
    .await;

    broker.cut();
    eventually(PATIENCE, "readiness to say degraded", async || {
        (tenant.get("/readyz").await.body["status"] == "degraded").then_some(())
    })
    .await;
    inbound("without broker");
    ask(&tenant, &sessions).await;
    clock.sleep(MINUTE).await;
    broker.restore();

    talk(&world, &tenant, &sessions, "after", 15).await;
    settled(&world, &sessions, 110, 10).await;
    ask(&tenant, &sessions).await;
    truth::holds(&world.db.connect().await, control, &sessions, PATIENCE).await;
    invariants::hold(&world).await;
    drop(hurrying);
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_never_read_one_session_at_once() {
    let world = World::new().await;
    let (first, second) = (world.node_with(&Role::ALL, eager), world.node_with(&Role::ALL, eager));
    let tenant = world.tenant(&first.base, "one").await;
    let sessions = sessions(&tenant, 3).await;
    let control = world.simulator.control();
    control.webhook_faults(silence());
    // Slow enough that a second fill would meet the first.
    control.add_fault(FaultRule::always("GET chats/messages", Fault::DelayMs(30)));
    for round in 0..4 {
        talk(&world, &tenant, &sessions, &format!("round {round}"), 30).await;
        ask(&tenant, &sessions).await;
        ask(&tenant.at(&second.base), &sessions).await;
    }
    settled(&world, &sessions, 120, 40).await;
    ask(&tenant, &sessions).await;
    let client = world.db.connect().await;
    truth::holds(&client, control, &sessions, PATIENCE).await;
    for (_, external) in &sessions {
        let calls = reads(&world, external);
        assert!(calls.len() >= 6 && one_at_a_time(&calls), "{calls:#?}");
    }
    let missing: i64 = client
        .query_one("SELECT count(*) FROM messages WHERE direction = 'inbound' AND NOT backfilled", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(missing, 0, "what no webhook brought says so");
    first.node.stop().await;
    second.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_killed_in_the_middle_of_a_fill_leaves_the_rest_to_the_next_one() {
    const MESSAGES: usize = 100;
    let world = World::new().await;
    let port = free_port();
    let mut node = world.process(port, ALL, eager_process).await;
    let tenant = world.tenant(&node.base, "one").await;
    let sessions = sessions(&tenant, 1).await;
    let (_, external) = &sessions[0];
    let control = world.simulator.control();
    let shown = async || {
        tenant.get(&format!("/v1/sessions/{}", sessions[0].0)).await.body["ingest"]["last_gap_fill_at"].is_string()
    };
    eventually(PATIENCE, "the first fill", async || shown().await.then_some(())).await;
    control.webhook_faults(silence());
    control.add_fault(FaultRule::always("GET chats/messages", Fault::DelayMs(50)));
    for n in 0..MESSAGES {
        control.inbound_text(external, "+15550200001", &format!("{n}")).unwrap();
    }
    settled(&world, &sessions, MESSAGES, 0).await;
    let before = reads(&world, external).len();
    ask(&tenant, &sessions).await;
    let begun = control.ledger_when(|_| reads(&world, external).len() >= before + 6);
    let waiting = tokio::time::timeout(Duration::from_secs(1), begun).await;
    if waiting.is_err() {
        // Reading alone does not wake who waits for the ledger.
        eventually(PATIENCE, "some pages", async || (reads(&world, external).len() >= before + 6).then_some(())).await;
    }
    node.process.kill9();
    let client = world.db.connect().await;
    let stored = truth::of_database(&client, &sessions[0].0).await.len();
    assert!((1..MESSAGES).contains(&stored), "in the middle: {stored}");
    let until_then = reads(&world, external).len();

    let node = world.process(port, ALL, eager_process).await;
    truth::holds(&client, control, &sessions, PATIENCE).await;
    let calls = reads(&world, external).len() - until_then;
    assert!(
        calls <= (MESSAGES - stored) / 5 + 4,
        "it went on where it was: {calls} calls after {stored} of {MESSAGES}"
    );
    drop(node);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_arrive_during_a_fill_are_stored_once() {
    let world = World::new().await;
    let node = world.node_with(&Role::ALL, |config| {
        eager(config);
        config.gap_fill.page = 5;
    });
    let tenant = world.tenant(&node.base, "one").await;
    let sessions = sessions(&tenant, 2).await;
    let control = world.simulator.control();
    control.webhook_faults(WebhookFaults { drop: 0.5, duplicate: 0.2, delay_max_ms: 300, ..WebhookFaults::default() });
    control.add_fault(FaultRule::always("GET chats/messages", Fault::DelayMs(20)));
    for n in 0..6 {
        talk(&world, &tenant, &sessions, &format!("round {n}"), 15).await;
        ask(&tenant, &sessions).await;
    }
    settled(&world, &sessions, 90, 30).await;
    ask(&tenant, &sessions).await;
    truth::holds(&world.db.connect().await, control, &sessions, PATIENCE).await;
    invariants::hold(&world).await;
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_is_off_and_a_session_that_stops_are_left_alone_and_read_later() {
    let world = World::new().await;
    let node = world.node_with(&Role::ALL, |config| {
        eager(config);
        config.gap_fill.page = 5;
    });
    let tenant = world.tenant(&node.base, "one").await;
    let sessions = sessions(&tenant, 1).await;
    let (session, external) = &sessions[0];
    let control = world.simulator.control();
    let client = world.db.connect().await;
    let row = async |column: &str| -> bool {
        let query = format!("SELECT {column} FROM gap_fills");
        client.query_one(&query, &[]).await.unwrap().get(0)
    };
    control.webhook_faults(silence());
    control.add_fault(FaultRule::always("GET chats/messages", Fault::BadRequest400));
    for n in 0..60 {
        control.inbound_text(external, "+15550200001", &format!("{n}")).unwrap();
    }
    settled(&world, &sessions, 60, 0).await;
    ask(&tenant, &sessions).await;
    eventually(PATIENCE, "the fill to be given up", async || {
        row("asked = taken AND failures > 0 AND due_at > now() + interval '1 hour'").await.then_some(())
    })
    .await;
    let before = reads(&world, external).len();

    // Slow, and stopped in the middle of it.
    control.clear_faults();
    control.webhook_faults(silence());
    control.add_fault(FaultRule::always("GET chats/messages", Fault::DelayMs(100)));
    ask(&tenant, &sessions).await;
    eventually(PATIENCE, "some pages", async || (reads(&world, external).len() >= before + 3).then_some(())).await;
    tenant.post(&format!("/v1/sessions/{session}/stop"), &Value::Null).await.expect(StatusCode::ACCEPTED);
    eventually(PATIENCE, "the fill to be broken off", async || {
        row("working_since IS NULL AND due_at IS NULL AND began_at IS NOT NULL AND coalesce(lease_until <= now(), true)")
            .await
            .then_some(())
    })
    .await;
    let not_working = reads(&world, external).iter().filter(|call| !call.working).count();
    assert!(not_working <= 1, "a session that is stopped is asked nothing: {not_working}");
    tenant.post(&format!("/v1/sessions/{session}/start"), &Value::Null).await.expect(StatusCode::ACCEPTED);
    tenant.working(session).await;
    truth::holds(&client, control, &sessions, PATIENCE).await;
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn browser_engines_are_read_chat_by_chat() {
    let world = World::with(SimulatorConfig { engine: Engine::Webjs, ..SimulatorConfig::default() }).await;
    let node = world.node_with(&Role::ALL, eager);
    let tenant = world.tenant(&node.base, "one").await;
    let sessions = sessions(&tenant, 1).await;
    let (_, external) = &sessions[0];
    let control = world.simulator.control();
    control.webhook_faults(silence());
    for n in 0..90 {
        control.inbound_text(external, &format!("+1555020{:04}", n % 3), &format!("{n}")).unwrap();
    }
    settled(&world, &sessions, 90, 0).await;
    ask(&tenant, &sessions).await;
    truth::holds(&world.db.connect().await, control, &sessions, PATIENCE).await;
    let shown = eventually(PATIENCE, "the share", async || {
        let shown = tenant.get(&format!("/v1/sessions/{}", sessions[0].0)).await.body["ingest"].clone();
        (shown["by_read_back"] == 90).then_some(shown)
    })
    .await;
    assert_eq!((&shown["by_webhook"], &shown["missed_share"]), (&json!(0), &json!(1.0)));
    node.node.stop().await;
}
