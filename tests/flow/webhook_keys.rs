//! A session's webhook key is replaced while it works, and nothing that comes in is missed.

use std::time::Duration;

use reqwest::StatusCode;
use secrecy::ExposeSecret;
use serde_json::json;
use switchboard::serve::Role;

use crate::cli::good;
use crate::support::world::PATIENCE;
use crate::support::{World, eventually, free_port};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_restart_waha_signs_with_the_new_key() {
    let world = World::new().await;
    // What comes in, comes by webhook.
    let node = world.node_with(&Role::ALL, |config| config.gap_fill.delay = Duration::from_secs(3600));
    let tenant = world.tenant(&node.base, "one").await;
    let (session, external) = tenant.session("keyed").await;
    let control = world.simulator.control();
    let key = || control.webhook_key(&external).unwrap().unwrap().expose_secret().to_owned();
    let arrives = async |words: &str| {
        control.inbound_text(&external, "+15550200001", words).unwrap();
        let path = format!("/v1/messages?direction=inbound&session_id={session}");
        eventually(PATIENCE, words, async || {
            let list = tenant.get(&path).await.expect(StatusCode::OK);
            list["data"].as_array().unwrap().iter().any(|message| message["body"] == words).then_some(())
        })
        .await;
    };
    let settings = world.settings(free_port());
    let rotate = async || good(&["admin", "rotate-webhook-keys", "--session", &session], &settings).await;

    let old = key();
    assert_eq!(rotate().await, "1 rotated, 0 skipped");
    arrives("signed with the old key").await;
    assert_eq!(rotate().await, "0 rotated, 1 skipped");
    assert_eq!(key(), old, "nobody is reconnected for a key");

    node.app.generation.refresh(&node.app.db).await.unwrap();
    let restart = format!("/v1/sessions/{session}/restart");
    tenant.post(&restart, &json!({})).await.expect(StatusCode::ACCEPTED);
    eventually(PATIENCE, "WAHA to have the new key", async || (key() != old).then_some(())).await;
    control.working(&external).await;
    arrives("signed with the new key").await;
    node.node.stop().await;
}
