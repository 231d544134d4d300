//! Keys: who gets in, as whom, and how fast a key stops.

use std::time::{Duration, Instant};

use serde_json::json;
use switchboard::domain::clock::Clock;

use super::Stand;
use super::stand::{PLATFORM_KEY, eventually, morning};

#[tokio::test(flavor = "multi_thread")]
async fn every_bad_credential_gets_the_same_answer() {
    let stand = Stand::at(Clock::manual(morning())).await;
    let tenant = stand.tenant("acme").await;
    let good = stand.key(&tenant, &["*"]).await;
    let mut mistyped = good.clone();
    let last = mistyped.pop();
    mistyped.push(if last == Some('a') { 'b' } else { 'a' });
    let unknown = {
        use secrecy::ExposeSecret;
        use switchboard::identity::keys::{KeyKind, mint};
        mint(KeyKind::Tenant, &stand.app.chance).key.expose_secret().to_owned()
    };
    let path = format!("/v1/tenants/{tenant}/api-keys");
    let ends = json!({ "name": "short", "expires_at": "2026-11-21T09:31:00Z" });
    let expiring = stand.post(&path, PLATFORM_KEY, ends).await.expect(201).json()["key"].as_str().unwrap().to_owned();
    stand.get("/v1/tenant", &expiring).await.expect(200);
    stand.app.clock.advance(Duration::from_secs(61));

    let mut details = std::collections::HashSet::new();
    for key in [
        mistyped.as_str(),
        &unknown,
        &expiring,
        "",
        "x",
        "swb_",
        "swbp_x_y",
        &"x".repeat(600),
        "platform-key-of-the-test",
    ] {
        let answer = stand.get("/v1/tenant", key).await;
        answer.refused(401, "unauthorized");
        assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
        details.insert(answer.json()["detail"].to_string());
    }
    for authorization in ["Basic eDp5", "Bearer", &good, "bearer  "] {
        let answer = stand.send(stand.request("GET", "/v1/tenant").header("authorization", authorization)).await;
        answer.refused(401, "unauthorized");
        details.insert(answer.json()["detail"].to_string());
    }
    stand.send(stand.request("GET", "/v1/tenant")).await.refused(401, "unauthorized");
    assert_eq!(details.len(), 1, "{details:?}");

    stand.get("/v1/tenant", &good).await.expect(200);
    stand.send(stand.request("GET", "/v1/tenant").header("x-api-key", &good)).await.expect(200);
    stand.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_key_stops_on_every_node_within_a_second() {
    let stand = Stand::new().await;
    let other = stand.another_node();
    let tenant = stand.tenant("acme").await;
    let admin = stand.key(&tenant, &["*"]).await;
    let made =
        stand.post("/v1/api-keys", &admin, json!({ "name": "b", "scopes": ["messages:read"] })).await.expect(201);
    let (id, key) = (made.json()["id"].as_str().unwrap().to_owned(), made.json()["key"].as_str().unwrap().to_owned());
    for node in [&stand, &other] {
        node.get("/v1/tenant", &key).await.expect(200);
    }
    stand.call("DELETE", &format!("/v1/api-keys/{id}"), &admin, None).await.expect(204);
    let began = Instant::now();
    stand.get("/v1/tenant", &key).await.refused(401, "unauthorized");
    eventually(Duration::from_secs(1), async || other.get("/v1/tenant", &key).await.status == 401).await;
    assert!(began.elapsed() < Duration::from_secs(1));
    other.get("/v1/tenant", &admin).await.expect(200);

    // The tenant itself: inactive, deleted, restored.
    let path = format!("/v1/tenants/{tenant}");
    stand.call("PATCH", &path, PLATFORM_KEY, Some(json!({ "status": "inactive" }))).await.expect(200);
    stand.get("/v1/tenant", &admin).await.refused(403, "forbidden");
    eventually(Duration::from_secs(1), async || other.get("/v1/tenant", &admin).await.status == 403).await;
    stand.call("PATCH", &path, PLATFORM_KEY, Some(json!({ "status": "active" }))).await.expect(200);
    stand.call("DELETE", &path, PLATFORM_KEY, None).await.expect(204);
    stand.get("/v1/tenant", &admin).await.refused(401, "unauthorized");
    eventually(Duration::from_secs(1), async || other.get("/v1/tenant", &admin).await.status == 401).await;
    stand.post(&format!("{path}/restore"), PLATFORM_KEY, json!({})).await.expect(200);
    stand.get("/v1/tenant", &admin).await.expect(200);
    other.end().await;
    stand.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_platform_key_names_its_tenant_and_a_tenants_key_cannot() {
    let stand = Stand::new().await;
    let (one, two) = (stand.tenant("one").await, stand.tenant("two").await);
    let key = stand.key(&one, &["*"]).await;
    stand.get("/v1/tenant", PLATFORM_KEY).await.refused(403, "tenant_required");
    stand.get("/v1/api-keys", PLATFORM_KEY).await.refused(403, "tenant_required");
    let naming = async |key: &str, tenant: &str| {
        stand.send(stand.request("GET", "/v1/tenant").bearer_auth(key).header("x-tenant-id", tenant)).await
    };
    assert_eq!(naming(PLATFORM_KEY, &two).await.expect(200).json()["name"], "two");
    for unknown in ["01994f3e-6d4f-7cc3-98d5-8f1c1f0a2b3c", "x", ""] {
        naming(PLATFORM_KEY, unknown).await.refused(404, "not_found");
    }
    assert_eq!(naming(&key, &two).await.expect(200).json()["name"], "one", "the tenant follows from the key");
    for path in ["/v1/tenants", "/v1/waha-servers", &format!("/v1/tenants/{one}")] {
        stand.get(path, &key).await.refused(403, "forbidden");
    }
    stand.call("DELETE", &format!("/v1/tenants/{two}"), PLATFORM_KEY, None).await.expect(204);
    naming(PLATFORM_KEY, &two).await.refused(404, "not_found");
    stand.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn minted_platform_keys_work_until_they_are_deleted() {
    use secrecy::ExposeSecret;
    use switchboard::identity::api_keys::insert_platform;
    use switchboard::identity::keys::{KeyKind, mint};
    let stand = Stand::new().await;
    let minted = mint(KeyKind::Platform, &stand.app.chance);
    let key = minted.key.expose_secret().to_owned();
    stand.get("/v1/tenants", &key).await.refused(401, "unauthorized");
    let (now, id) = (stand.app.clock.now(), stand.app.chance.uuid(stand.app.clock.now()));
    stand.app.db.system(async |conn| insert_platform(conn, id, "ops", &minted, now).await).await.unwrap();
    stand.get("/v1/tenants", &key).await.expect(200);
    stand.sql().await.execute("UPDATE platform_keys SET deleted_at = now()", &[]).await.unwrap();
    eventually(Duration::from_secs(1), async || stand.get("/v1/tenants", &key).await.status == 401).await;
    stand.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_does_what_its_scopes_allow_and_gives_no_more() {
    let stand = Stand::new().await;
    let tenant = stand.tenant("acme").await;
    let reader = stand.key(&tenant, &["users:read"]).await;
    let writer = stand.key(&tenant, &["users:write", "messages:read"]).await;
    let all = stand.key(&tenant, &["*"]).await;
    let new = |scopes: &[&str]| json!({ "name": "n", "scopes": scopes });
    stand.get("/v1/api-keys", &reader).await.expect(200);
    stand.get("/v1/api-keys", &writer).await.refused(403, "forbidden");
    stand.post("/v1/api-keys", &reader, new(&["users:read"])).await.refused(403, "forbidden");
    stand.post("/v1/api-keys", &writer, new(&["messages:read"])).await.expect(201);
    stand.post("/v1/api-keys", &writer, new(&["messages:write"])).await.refused(403, "forbidden");
    stand.post("/v1/api-keys", &writer, new(&["*"])).await.refused(403, "forbidden");
    stand.post("/v1/api-keys", &all, new(&[])).await.refused_field("scopes");
    stand.post("/v1/api-keys", &all, new(&["messages:wriite"])).await.refused_field("scopes[0]");
    let past = json!({ "name": "n", "scopes": ["*"], "expires_at": "2020-01-01T00:00:00Z" });
    stand.post("/v1/api-keys", &all, past).await.refused_field("expires_at");
    stand.call("PATCH", "/v1/tenant", &writer, Some(json!({ "description": "x" }))).await.refused(403, "forbidden");

    // A rotation is no way around that.
    let rows = stand.get("/v1/api-keys", &all).await.json();
    let id = |scope: &str| {
        let rows = rows["data"].as_array().unwrap().iter();
        rows.clone().find(|row| row["scopes"][0] == scope).unwrap()["id"].as_str().unwrap().to_owned()
    };
    let star = id("*");
    stand.post(&format!("/v1/api-keys/{star}/rotate"), &writer, json!({})).await.refused(403, "forbidden");
    assert!(!rows.to_string().contains("secret") && !rows.to_string().contains("\"key\""), "{rows}");

    // Nobody else's.
    let stranger = {
        let other = stand.tenant("other").await;
        stand.key(&other, &["*"]).await
    };
    stand.call("DELETE", &format!("/v1/api-keys/{star}"), &stranger, None).await.refused(404, "not_found");
    stand.post(&format!("/v1/api-keys/{star}/rotate"), &stranger, json!({})).await.refused(404, "not_found");
    assert_eq!(stand.get("/v1/api-keys", &stranger).await.json()["data"].as_array().unwrap().len(), 1);
    stand.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotated_key_lives_for_its_grace() {
    let stand = Stand::at(Clock::manual(morning())).await;
    let tenant = stand.tenant("acme").await;
    let all = stand.key(&tenant, &["*"]).await;
    let made = stand.post("/v1/api-keys", &all, json!({ "name": "b", "scopes": ["messages:read"] })).await.json();
    let (id, old) = (made["id"].as_str().unwrap(), made["key"].as_str().unwrap());
    let path = format!("/v1/api-keys/{id}/rotate");
    stand.post(&path, &all, json!({ "grace_seconds": 604_801 })).await.refused_field("grace_seconds");
    stand.post(&path, &all, json!({ "grace_seconds": -1 })).await.refused_field("grace_seconds");
    let new = stand.post(&path, &all, json!({ "grace_seconds": 60 })).await.expect(201).json();
    assert_eq!(
        (&new["name"], &new["scopes"], &new["expires_at"]),
        (&json!("b"), &json!(["messages:read"]), &json!(null))
    );
    for key in [old, new["key"].as_str().unwrap()] {
        stand.get("/v1/tenant", key).await.expect(200);
    }
    stand.app.clock.advance(Duration::from_secs(60));
    stand.get("/v1/tenant", old).await.refused(401, "unauthorized");
    stand.get("/v1/tenant", new["key"].as_str().unwrap()).await.expect(200);
    stand.post(&path, &all, json!({})).await.refused(409, "conflict");

    // Without a body: at once.
    let next = stand.call("POST", &format!("/v1/api-keys/{}/rotate", new["id"].as_str().unwrap()), &all, None).await;
    let next = next.expect(201).json();
    stand.get("/v1/tenant", new["key"].as_str().unwrap()).await.refused(401, "unauthorized");
    stand.get("/v1/tenant", next["key"].as_str().unwrap()).await.expect(200);
    stand.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_use_is_kept_to_the_minute() {
    let stand = Stand::at(Clock::manual(morning())).await;
    let tenant = stand.tenant("acme").await;
    let key = stand.key(&tenant, &["*"]).await;
    let shown = async || stand.get("/v1/api-keys", &key).await.json()["data"][0]["last_used_at"].clone();
    eventually(Duration::from_secs(5), async || shown().await == json!("2026-11-21T09:30:00Z")).await;
    stand.app.clock.advance(Duration::from_secs(59));
    assert_eq!(shown().await, json!("2026-11-21T09:30:00Z"));
    stand.app.clock.advance(Duration::from_secs(1));
    eventually(Duration::from_secs(5), async || shown().await == json!("2026-11-21T09:31:00Z")).await;
    stand.end().await;
}
