//! What each engine writes, as the fixtures have it, is stored as what it means.

use serde_json::{Value, json};
use switchboard::ingest::apply::{self, Fate};

use super::stand::Stand;

async fn fixtures_are_stored_right(engine: &'static str) {
    let stand = Stand::of(engine).await;
    let session = stand.session().await;
    let path = format!("{}/tests/fixtures/engines/{}.json", env!("CARGO_MANIFEST_DIR"), engine.to_lowercase());
    let cases: Vec<Value> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert!(cases.len() >= 17);
    for case in &cases {
        let says = format!("{engine}: {}", case["says"].as_str().unwrap());
        let mut event = stand.envelope(session, &super::stand::message("-", 0, false, ""));
        event.body = case["event"].to_string();
        // Told twice, as WAHA does.
        for fate in apply::apply_all(&stand.app, &[event.clone(), event]).await {
            assert!(matches!(fate, Fate::Applied), "{says}: {fate:?}");
        }
        let expected = case["expect"].as_object().unwrap();
        let id = expected["waha_message_id"].as_str().unwrap();
        let found = stand.message(session, id).await;
        for (member, expected) in expected {
            let found = match member.as_str() {
                "revoked" => json!(found["revoked_at"].is_string()),
                "reactions" => pairs(&stand, "jsonb_build_array(person, emoji)", "message_reactions", id).await,
                "votes" => pairs(&stand, "jsonb_build_array(person, options)", "poll_votes", id).await,
                member => found.get(member).cloned().unwrap_or_default(),
            };
            assert_eq!(&found, expected, "{says}: {member}");
        }
    }
}

async fn pairs(stand: &Stand, columns: &str, table: &str, id: &str) -> Value {
    json!(
        stand
            .rows(&format!("SELECT ({columns})::text FROM {table} WHERE waha_message_id = '{id}' ORDER BY person"))
            .await
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn webjs() {
    fixtures_are_stored_right("WEBJS").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn noweb() {
    fixtures_are_stored_right("NOWEB").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gows() {
    fixtures_are_stored_right("GOWS").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wpp() {
    fixtures_are_stored_right("WPP").await;
}
