//! Postgres going away is a pause.

use reqwest::{Method, StatusCode};
use secrecy::SecretString;
use serde_json::json;

use crate::support::world::{Client, PATIENCE, text};
use crate::support::{TcpProxy, World, eventually, invariants};

const SESSIONS: usize = 4;
const EACH: usize = 40;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_cut_in_the_middle_of_everything_lose_nothing_and_double_nothing() {
    let world = World::new().await;
    let proxy = TcpProxy::start(world.db.server()).await;
    let through = world.db.config_through(proxy.addr()).url;
    let node = world.node_with(&switchboard::serve::Role::ALL, |config| {
        config.database.url = SecretString::from(secrecy::ExposeSecret::expose_secret(&through).to_owned());
        config.database.acquire_timeout = std::time::Duration::from_secs(2);
    });
    let tenant = world.tenant(&node.base, "one").await;
    let mut sessions = Vec::new();
    for n in 0..SESSIONS {
        sessions.push(tenant.session(&format!("s{n}")).await);
    }
    // Repeats under one key until it is accepted, as a careful client does.
    let accept = async |tenant: &Client, body: &serde_json::Value, key: &str| {
        eventually(PATIENCE, "the message to be accepted", async || {
            let request = tenant.request(Method::POST, "/v1/messages").header("Idempotency-Key", key).json(body);
            let answer = Client::send(request).await;
            assert!(answer.status == StatusCode::ACCEPTED || answer.status.is_server_error(), "{answer:?}");
            (answer.status == StatusCode::ACCEPTED).then(|| text(&answer.body, "id").to_owned())
        })
        .await
    };
    let clients = sessions.iter().enumerate().map(|(number, (session, _))| {
        let (tenant, accept) = (tenant.clone(), &accept);
        async move {
            let mut ids = Vec::new();
            for n in 0..EACH {
                let body = json!({"session_id": session, "to": "+15550101234", "body": format!("{number}-{n}")});
                ids.push(accept(&tenant, &body, &format!("{number}-{n}")).await);
            }
            ids
        }
    });
    let cutting = async {
        for round in 1..=4 {
            let moving = world.simulator.control().ledger_when(|ledger| ledger.entries.len() > round * 20);
            tokio::time::timeout(PATIENCE, moving).await.expect("messages to leave");
            proxy.cut();
            eventually(PATIENCE, "the node to miss its database", async || {
                (tenant.get("/readyz").await.status == StatusCode::SERVICE_UNAVAILABLE).then_some(())
            })
            .await;
            proxy.restore();
        }
    };
    let (ids, ()) = tokio::join!(futures_util::future::join_all(clients), cutting);
    for id in ids.iter().flatten() {
        tenant.message_with(id, "read").await;
    }
    let client = world.db.connect().await;
    let rows: i64 = client.query_one("SELECT count(*) FROM messages", &[]).await.unwrap().get(0);
    assert_eq!(rows, i64::try_from(SESSIONS * EACH).unwrap(), "each key made one message");
    let ledger = world.simulator.control().ledger();
    for (number, (_, external)) in sessions.iter().enumerate() {
        let expected: Vec<String> = (0..EACH).map(|n| format!("{number}-{n}")).collect();
        assert_eq!(ledger.texts(external), expected, "once, and in order");
    }
    assert!(ledger.overlaps().is_empty());
    invariants::hold(&world).await;
    node.node.stop().await;
}
