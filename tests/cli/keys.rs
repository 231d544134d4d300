//! Keys and tenants made by the command line work, and the doctor tells the healthy from the sick.

use std::collections::BTreeMap;

use reqwest::StatusCode;
use serde_json::json;

use crate::support::World;
use crate::support::free_port;
use crate::support::world::text;

use super::{good, run};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_and_tenants_that_admin_makes_work() {
    let world = World::new().await;
    let node = world.node();
    let settings = world.settings(free_port());
    let platform = good(&["admin", "create-platform-key", "--name", "ops"], &settings).await;
    assert_eq!(platform.lines().count(), 1, "the key and nothing else, for scripts");
    let platform = world.platform(&node.base).with_key(&platform);
    platform.get("/v1/tenants").await.expect(StatusCode::OK);

    let tenant = good(&["admin", "create-tenant", "acme", "--description", "a tenant"], &settings).await;
    let shown = platform.get(&format!("/v1/tenants/{tenant}")).await.expect(StatusCode::OK);
    assert_eq!((text(&shown, "name"), text(&shown, "description")), ("acme", "a tenant"));
    let long = "x".repeat(101);
    for (arguments, words) in [
        (vec!["admin", "create-tenant", "acme"], "already"),
        (vec!["admin", "create-tenant", ""], "1 to 100"),
        (vec!["admin", "create-tenant", "  "], "1 to 100"),
        (vec!["admin", "create-tenant", &long], "1 to 100"),
        (vec!["admin", "create-api-key", "nobody"], "no tenant"),
        (vec!["admin", "create-api-key", "01994f3e-6d4f-7cc3-98d5-8f1c1f0a2b3c"], "no tenant"),
        (vec!["admin", "create-api-key", "acme", "--scopes", "everything"], "everything"),
    ] {
        let (code, output) = run(&arguments, &settings).await;
        assert!(code != 0 && output.contains(words), "{arguments:?}: {code} {output}");
    }

    let all = good(&["admin", "create-api-key", "acme"], &settings).await;
    let reads = good(&["admin", "create-api-key", &tenant, "--scopes", "messages:read,sessions:read"], &settings).await;
    let (all, reads) = (platform.with_key(&all), platform.with_key(&reads));
    assert_eq!(all.get("/v1/tenant").await.expect(StatusCode::OK)["id"], shown["id"]);
    reads.get("/v1/messages").await.expect(StatusCode::OK);
    let refused = reads.post("/v1/messages", &json!({"to": "+15550100001", "body": "a"})).await;
    assert_eq!(refused.status, StatusCode::FORBIDDEN);
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_doctor_tells_the_healthy_from_the_sick() {
    let world = World::new().await;
    let node = world.node();
    let settings = world.settings(free_port());
    let (code, output) = run(&["doctor"], &settings).await;
    assert_ne!(code, 0);
    assert!(output.contains("FAULT  WAHA servers") && output.contains("POST /v1/waha-servers"), "{output}");
    world.tenant(&node.base, "one").await;
    let output = good(&["doctor"], &settings).await;
    for part in ["settings", "master key", "database", "roles", "schema", "clock", "broker", "WAHA server"] {
        assert!(output.lines().any(|line| line.starts_with("ok ") && line.contains(part)), "{part} in {output}");
    }

    let faulty = |name: &str, value: &str| -> BTreeMap<String, String> {
        let mut settings = settings.clone();
        settings.insert(name.to_owned(), value.to_owned());
        settings
    };
    let nobody = format!("127.0.0.1:{}", free_port());
    for (settings, part) in [
        (faulty("DATABASE_URL", &format!("postgres://nobody@{nobody}/nothing")), "database"),
        (faulty("AMQP_URL", &format!("amqp://{nobody}")), "broker"),
        (faulty("SWITCHBOARD_MASTER_KEY", ""), "master key"),
        (faulty("SWITCHBOARD_MASTER_KEY", "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE="), "WAHA servers"),
        (faulty("SWITCHBOARD_TYPO", "1"), "settings"),
    ] {
        let (code, output) = run(&["doctor"], &settings).await;
        assert_ne!(code, 0, "{output}");
        let lines: Vec<&str> = output.lines().collect();
        let at = lines.iter().position(|line| line.starts_with("FAULT") && line.contains(part));
        let at = at.unwrap_or_else(|| panic!("a fault of {part} in {output}"));
        for (n, line) in lines.iter().enumerate().filter(|(_, line)| line.starts_with("FAULT")) {
            assert!(lines.get(n + 1).is_some_and(|next| next.contains("→ ")), "a remedy for {line} in {output}");
        }
        assert!(at < lines.len());
    }

    let empty = crate::support::TestDb::empty().await;
    let (code, output) = run(&["doctor"], &faulty("DATABASE_URL", &empty.url())).await;
    assert!(code != 0 && output.contains("switchboard migrate"), "{output}");
    node.node.stop().await;
}
