//! A session moves to another WAHA server: its messages go on, and no two servers ever run it.

use reqwest::{Method, StatusCode};
use secrecy::SecretString;
use serde_json::{Value, json};
use switchboard::simulator::{Control, Simulator, SimulatorConfig, Storage};

use crate::support::world::{Client, PATIENCE, text};
use crate::support::{World, eventually};

const MESSAGES: usize = 60;

/// Two servers with one storage of sessions, each under another API key than the world's first.
async fn second(world: &World, storage: &Storage) -> Simulator {
    let config = SimulatorConfig {
        storage: storage.clone(),
        engine: world.engine,
        time_scale: 20.0,
        auto_pair: true,
        api_key: SecretString::from("simulator"),
        ..SimulatorConfig::default()
    };
    Simulator::start(config).await.unwrap()
}

async fn patch(platform: &Client, server: &str, body: Value) {
    let request = platform.request(Method::PATCH, &format!("/v1/waha-servers/{server}")).json(&body);
    Client::send(request).await.expect(StatusCode::OK);
}

async fn server_of(platform: &Client, url: &str, group: Option<&str>) -> String {
    let body = json!({"name": url, "base_url": url, "api_key": "simulator", "engine": "NOWEB", "capacity": 100, "storage_group": group});
    let server = platform.post("/v1/waha-servers", &body).await.expect(StatusCode::CREATED);
    text(&server, "id").to_owned()
}

/// What each recipient saw, server by server, in order.
fn seen(controls: &[&Control]) -> Vec<String> {
    let mut entries: Vec<_> = controls.iter().flat_map(|control| control.ledger().entries).collect();
    entries.sort_by_key(|entry| entry.first_seen);
    entries.into_iter().map(|entry| entry.text).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drained_server_hands_its_sessions_over_with_what_they_have_to_send() {
    let storage = Storage::default();
    let world = World::with(SimulatorConfig { storage: storage.clone(), ..SimulatorConfig::default() }).await;
    let node = world.node();
    let tenant = world.tenant(&node.base, "one").await;
    let platform = world.platform(&node.base);
    let listed = platform.get("/v1/waha-servers").await.expect(StatusCode::OK);
    let from = text(&listed["data"][0], "id").to_owned();
    patch(&platform, &from, json!({"storage_group": "shared"})).await;
    let (session, external) = tenant.session("mine").await;

    let other = second(&world, &storage).await;
    let to = server_of(&platform, &other.url(), Some("shared")).await;
    // Messages are on their way before, during and after the move.
    let mut ids = Vec::new();
    for number in 0..MESSAGES {
        if number == MESSAGES / 3 {
            patch(&platform, &from, json!({"draining": true})).await;
        }
        let message = tenant.send_text(&session, "+15550100001", &format!("{number}")).await;
        ids.push(text(&message, "id").to_owned());
    }
    let path = format!("/v1/sessions/{session}");
    eventually(PATIENCE, "the session to live there", async || {
        let session = tenant.get(&path).await.expect(StatusCode::OK);
        (session["waha_server_id"] == to.as_str() && session["status"] == "working").then_some(())
    })
    .await;
    // A receipt of the last one before the move may have been told to nobody.
    for id in &ids {
        let path = format!("/v1/messages/{id}");
        eventually(PATIENCE, "the message to be acknowledged", async || {
            tenant.get(&path).await.expect(StatusCode::OK)["sent_at"].is_string().then_some(())
        })
        .await;
    }

    let controls = [world.simulator.control(), other.control()];
    let bubbles = seen(&controls);
    assert_eq!(bubbles, (0..MESSAGES).map(|number| number.to_string()).collect::<Vec<_>>(), "each once, in order");
    assert!(controls.iter().all(|control| !control.ledger().entries.is_empty()), "either server sent some");
    assert_eq!(storage.conflicts().len(), 0);
    let mut runs: Vec<_> =
        controls.iter().flat_map(|control| control.runs()).filter(|run| run.session == external).collect();
    runs.sort_by_key(|run| run.from);
    assert!(runs.len() >= 2 && runs.windows(2).all(|pair| pair[0].to.is_some_and(|to| to <= pair[1].from)), "{runs:?}");
    // It was never unlinked, and its old place is free.
    let calls: Vec<_> =
        controls.iter().flat_map(|control| control.lifecycle_calls(None)).map(|call| call.endpoint).collect();
    assert!(!calls.iter().any(|endpoint| endpoint.contains("logout") || endpoint.contains("delete")), "{calls:?}");
    let old = platform.get(&format!("/v1/waha-servers/{from}")).await.expect(StatusCode::OK);
    assert_eq!((&old["sessions"], &old["draining"]), (&json!(0), &json!(true)));
    let request = platform.request(Method::DELETE, &format!("/v1/waha-servers/{from}"));
    Client::send(request).await.expect(StatusCode::NO_CONTENT);
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_shared_storage_a_paired_session_stays_and_says_so() {
    let world = World::new().await;
    let node = world.node();
    let tenant = world.tenant(&node.base, "one").await;
    let platform = world.platform(&node.base);
    let listed = platform.get("/v1/waha-servers").await.expect(StatusCode::OK);
    let from = text(&listed["data"][0], "id").to_owned();
    let (session, _) = tenant.session("mine").await;
    let unpaired = tenant.post("/v1/sessions", &json!({"name": "unpaired", "start": false})).await;
    let unpaired = text(&unpaired.expect(StatusCode::CREATED), "id").to_owned();
    let other = second(&world, &Storage::default()).await;
    let to = server_of(&platform, &other.url(), None).await;
    patch(&platform, &from, json!({"draining": true})).await;
    let shows = async |id: &str, what: &str, wanted: fn(&Value, &str) -> bool| {
        eventually(PATIENCE, what, async || {
            let session = tenant.get(&format!("/v1/sessions/{id}")).await.expect(StatusCode::OK);
            wanted(&session, &to).then_some(session)
        })
        .await
    };
    let stays = shows(&session, "the report", |session, _| session["needs_rescan"] == true).await;
    assert_eq!((text(&stays, "status"), text(&stays, "waha_server_id")), ("working", from.as_str()));
    // One with nothing to keep moves, and so does the other once it was unlinked.
    shows(&unpaired, "the unpaired one to move", |session, to| session["waha_server_id"] == to).await;
    tenant.post(&format!("/v1/sessions/{session}/logout"), &json!({})).await.expect(StatusCode::ACCEPTED);
    let moved = |session: &Value, to: &str| session["waha_server_id"] == to && session["status"] == "working";
    let moved = shows(&session, "it to be paired anew over there", moved).await;
    assert!(moved.get("needs_rescan").is_none());
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sessions_of_a_dead_server_move_when_that_is_wanted() {
    let storage = Storage::default();
    let world = World::with(SimulatorConfig { storage: storage.clone(), ..SimulatorConfig::default() }).await;
    let node = world.node_with(&switchboard::serve::Role::ALL, |config| {
        config.fleet.move_from_dead = Some(std::time::Duration::from_secs(2));
    });
    let tenant = world.tenant(&node.base, "one").await;
    let platform = world.platform(&node.base);
    let listed = platform.get("/v1/waha-servers").await.expect(StatusCode::OK);
    let from = text(&listed["data"][0], "id").to_owned();
    patch(&platform, &from, json!({"storage_group": "shared"})).await;
    let (session, external) = tenant.session("mine").await;
    let other = second(&world, &storage).await;
    let to = server_of(&platform, &other.url(), Some("shared")).await;

    world.simulator.control().restart_after(std::time::Duration::from_secs(12));
    let path = format!("/v1/sessions/{session}");
    eventually(PATIENCE, "the session to live there", async || {
        let session = tenant.get(&path).await.expect(StatusCode::OK);
        (session["waha_server_id"] == to.as_str() && session["status"] == "working").then_some(())
    })
    .await;
    let message = tenant.send_text(&session, "+15550100001", "after").await;
    tenant.message_with(text(&message, "id"), "read").await;
    assert_eq!(other.control().ledger().bubbles("after"), 1);
    // The dead server comes back and is told to leave it alone.
    eventually(PATIENCE, "the old server to have stopped it", async || {
        let sessions = world.simulator.control().sessions();
        sessions.iter().any(|known| known.name == external && known.status == "STOPPED").then_some(())
    })
    .await;
    node.node.stop().await;
}
