//! RabbitMQ is the road, not the truth: it can be away, and it can be wiped.

use reqwest::StatusCode;
use serde_json::json;

use crate::support::world::{PATIENCE, amqp_url, text};
use crate::support::{TcpProxy, World, eventually};

const SESSIONS: usize = 5;
const MESSAGES: usize = 200;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_accepted_while_the_broker_is_away_and_wiped_arrive_once_and_in_order() {
    let direct = url::Url::parse(&amqp_url()).unwrap();
    let target = format!("{}:{}", direct.host_str().unwrap(), direct.port().unwrap_or(5672));
    let proxy = TcpProxy::start(target).await;
    let mut through = direct.clone();
    through.set_host(Some("127.0.0.1")).unwrap();
    through.set_port(Some(proxy.addr().port())).unwrap();
    let mut world = World::new().await;
    world.amqp = through.to_string();
    let node = world.node();
    let tenant = world.tenant(&node.base, "one").await;
    let mut sessions = Vec::new();
    for n in 0..SESSIONS {
        sessions.push(tenant.session(&format!("s{n}")).await);
    }

    proxy.cut();
    let degraded = async || {
        let readiness = tenant.get("/readyz").await;
        (readiness.status == StatusCode::OK && readiness.body["status"] == "degraded").then_some(())
    };
    eventually(PATIENCE, "readiness to say degraded", degraded).await;
    for n in 0..MESSAGES {
        let (number, n) = (n % SESSIONS, n / SESSIONS);
        let body = json!({"session_id": sessions[number].0, "to": "+15550101234", "body": format!("{number}-{n}")});
        tenant.post("/v1/messages", &body).await.expect(StatusCode::ACCEPTED);
    }
    assert!(world.simulator.control().ledger().entries.is_empty(), "nothing leaves without the broker");
    world.wipe_broker().await;
    proxy.restore();

    // Once more in the middle of it, with messages on the road.
    let some = world.simulator.control().ledger_when(|ledger| ledger.entries.len() > MESSAGES / 10);
    tokio::time::timeout(PATIENCE, some).await.expect("messages to leave again");
    world.wipe_broker().await;
    let all = world.simulator.control().ledger_when(|ledger| ledger.entries.len() >= MESSAGES);
    let ledger = tokio::time::timeout(PATIENCE, all).await.expect("all messages to arrive");
    for (number, (_, external)) in sessions.iter().enumerate() {
        let expected: Vec<String> = (0..MESSAGES / SESSIONS).map(|n| format!("{number}-{n}")).collect();
        assert_eq!(ledger.texts(external), expected, "once, and in order");
    }
    assert!(ledger.entries.iter().all(|entry| entry.seen), "one bubble each");
    assert!(ledger.overlaps().is_empty(), "never two of a session at a time");
    let last = tenant.get("/v1/messages?limit=1").await.expect(StatusCode::OK);
    assert!(["sending", "sent", "delivered", "read"].contains(&text(&last["data"][0], "status")));
    node.node.stop().await;
}
