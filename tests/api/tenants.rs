//! Tenants from above, and one's own.

use serde_json::json;

use super::Stand;
use super::stand::PLATFORM_KEY;

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_is_created_changed_deleted_and_restored() {
    let stand = Stand::new().await;
    let made = stand.post("/v1/tenants", PLATFORM_KEY, json!({ "name": "acme", "description": "d" })).await.expect(201);
    let tenant = made.json();
    let path = made.header("location").unwrap().to_owned();
    assert_eq!(path, format!("/v1/tenants/{}", tenant["id"].as_str().unwrap()));
    assert_eq!((&tenant["status"], &tenant["version"], &tenant["settings"]), (&json!("active"), &json!(1), &json!({})));
    assert!(tenant["created_at"].as_str().unwrap().ends_with('Z'));
    let shown = stand.get(&path, PLATFORM_KEY).await.expect(200);
    assert_eq!((shown.header("etag"), shown.json()), (Some("\"1\""), tenant));

    let patch = async |version: &str, body| {
        let request = stand.request("PATCH", &path).bearer_auth(PLATFORM_KEY);
        let request = if version.is_empty() { request } else { request.header("if-match", version) };
        stand.send(request.json::<serde_json::Value>(&body)).await
    };
    let changed = patch("\"1\"", json!({ "name": "acme 2", "settings": { "x": 1 } })).await.expect(200);
    assert_eq!(changed.header("etag"), Some("\"2\""));
    assert_eq!((&changed.json()["description"], &changed.json()["settings"]), (&json!("d"), &json!({ "x": 1 })));
    patch("\"1\"", json!({ "name": "lost" })).await.refused(412, "precondition_failed");
    patch("nonsense", json!({})).await.refused_field("If-Match");
    patch("", json!({ "version": 3 })).await.refused_field("version");
    patch("", json!({ "status": "asleep" })).await.refused_field("status");
    assert_eq!(patch("", json!({ "description": null })).await.expect(200).json()["description"], json!(null));

    stand.tenant("taken").await;
    let conflict = patch("", json!({ "name": "taken" })).await;
    conflict.refused(409, "conflict");
    assert_eq!(conflict.problem().1, "name");

    stand.call("DELETE", &path, PLATFORM_KEY, None).await.expect(204);
    stand.call("DELETE", &path, PLATFORM_KEY, None).await.refused(404, "not_found");
    stand.get(&path, PLATFORM_KEY).await.refused(404, "not_found");
    patch("", json!({})).await.refused(404, "not_found");
    stand.post(&format!("{path}/api-keys"), PLATFORM_KEY, json!({ "name": "x" })).await.refused(404, "not_found");
    let successor = stand.tenant("acme 2").await;
    let restore = async || stand.call("POST", &format!("{path}/restore"), PLATFORM_KEY, None).await;
    restore().await.refused(409, "conflict");
    stand.call("DELETE", &format!("/v1/tenants/{successor}"), PLATFORM_KEY, None).await.expect(204);
    assert_eq!(restore().await.expect(200).json()["name"], "acme 2");
    let version = restore().await.expect(200).json()["version"].clone();
    assert_eq!(stand.get(&path, PLATFORM_KEY).await.json()["version"], version, "restoring twice changes nothing");
    stand.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn how_many_sessions_a_tenant_may_have_is_said_from_above() {
    let stand = Stand::new().await;
    let body = json!({ "name": "acme", "max_sessions": 5 });
    let made = stand.post("/v1/tenants", PLATFORM_KEY, body).await.expect(201).json();
    assert_eq!(made["max_sessions"], 5);
    let id = made["id"].as_str().unwrap();
    let path = format!("/v1/tenants/{id}");
    let patch = async |body| stand.call("PATCH", &path, PLATFORM_KEY, Some(body)).await;
    assert_eq!(patch(json!({ "description": "x" })).await.expect(200).json()["max_sessions"], 5);
    for wrong in [json!(-1), json!(1_000_001), json!("5"), json!(1.5)] {
        patch(json!({ "max_sessions": wrong })).await.refused_field("max_sessions");
        let body = json!({ "name": "other", "max_sessions": wrong });
        stand.post("/v1/tenants", PLATFORM_KEY, body).await.refused_field("max_sessions");
    }
    assert_eq!(patch(json!({ "max_sessions": 0 })).await.expect(200).json()["max_sessions"], 0);
    let key = stand.key(id, &["*"]).await;
    stand.call("PATCH", "/v1/tenant", &key, Some(json!({ "max_sessions": 9 }))).await.refused_field("max_sessions");
    let body = json!({ "settings": { "max_sessions": 9 } });
    stand.call("PATCH", "/v1/tenant", &key, Some(body)).await.expect(200);
    assert_eq!(stand.get("/v1/tenant", &key).await.expect(200).json()["max_sessions"], 0);
    assert_eq!(patch(json!({ "max_sessions": null })).await.expect(200).json()["max_sessions"], json!(null));
    stand.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_changes_at_once_one_is_told() {
    let stand = Stand::new().await;
    let tenant = stand.tenant("acme").await;
    let change = async |text: &str| {
        let request = stand.request("PATCH", &format!("/v1/tenants/{tenant}")).bearer_auth(PLATFORM_KEY);
        stand.send(request.header("if-match", "\"1\"").json(&json!({ "description": text }))).await.status
    };
    let (one, two) = tokio::join!(change("one"), change("two"));
    assert_eq!([one.min(two), one.max(two)], [200, 412]);
    stand.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_changes_its_own_settings_and_nothing_else() {
    let stand = Stand::new().await;
    let tenant = stand.tenant("acme").await;
    let key = stand.key(&tenant, &["*"]).await;
    let patch = async |body| stand.call("PATCH", "/v1/tenant", &key, Some(body)).await;
    assert_eq!(patch(json!({ "settings": { "locale": "de" } })).await.expect(200).json()["version"], 2);
    for (body, field) in [
        (json!({ "name": "x" }), "name"),
        (json!({ "status": "inactive" }), "status"),
        (json!({ "settings": 3 }), "settings"),
        (json!({ "settings": { "x": "y".repeat(20_000) } }), "settings"),
    ] {
        patch(body).await.refused_field(field);
    }
    let own = stand.get("/v1/tenant", &key).await.expect(200).json();
    assert_eq!((&own["id"], &own["settings"]), (&json!(tenant), &json!({ "locale": "de" })));
    stand.end().await;
}
