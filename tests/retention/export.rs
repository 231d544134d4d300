//! `GET /v1/export`.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::world::{Client, PATIENCE, text};
use crate::support::{World, eventually};

async fn lines(client: &Client, query: &str) -> Vec<Value> {
    let response = client.request(Method::GET, &format!("/v1/export{query}")).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["content-type"], "application/x-ndjson");
    let body = response.text().await.unwrap();
    body.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_of_a_tenants_data_comes_once_and_goes_on_where_it_broke_off() {
    let world = World::new().await;
    let node = world.node();
    let (tenant, other) = (world.tenant(&node.base, "one").await, world.tenant(&node.base, "two").await);
    let (session, _) = tenant.session("first").await;
    let (elsewhere, _) = other.session("theirs").await;
    other.send_text(&elsewhere, "+15550100009", "their words").await;
    let sent = tenant.send_text(&session, "+15550100001", "a line\nand \"another\"").await;
    tenant.message_with(text(&sent, "id"), "read").await;
    tenant.upload("cat.gif", "image/gif", b"GIF89a a small picture").await.expect(StatusCode::CREATED);
    let sql = world.db.connect().await;
    // More than a page.
    sql.batch_execute(&format!(
        "INSERT INTO messages (tenant_id, id, session_id, direction, message_type, chat_id, body, raw_payload, created_at, updated_at, status)
         SELECT tenant_id, gen_random_uuid(), session_id, 'inbound', 'text', '1@c.us', 'text ' || n, '{{\"raw\": 1}}', now(), now(), 'received'
         FROM messages, generate_series(1, 450) n WHERE id = '{0}';
         INSERT INTO contacts (tenant_id, id, phone, name, created_at, updated_at)
         SELECT tenant_id, gen_random_uuid(), '+15550100001', 'Somebody', now(), now() FROM messages WHERE id = '{0}'",
        text(&sent, "id")
    ))
    .await
    .unwrap();
    // What follows the message in the background comes to rest.
    let all = eventually(PATIENCE, "the same twice", async || {
        let (once, again) = (lines(&tenant, "").await, lines(&tenant, "").await);
        (once == again && once.iter().any(|line| line["type"] == "conversation")).then_some(once)
    })
    .await;
    assert_eq!(all.last(), Some(&json!({"type": "end"})), "it is whole");
    let of = |kind: &str| all.iter().filter(|line| line["type"] == kind).map(|line| &line["data"]).collect::<Vec<_>>();
    assert_eq!((of("tenant").len(), of("session").len(), of("media").len()), (1, 1, 1));
    assert_eq!(of("message").len(), 451);
    assert!(of("contact").iter().any(|contact| contact["name"] == "Somebody"));
    let shown = of("message").into_iter().find(|message| message["id"] == sent["id"]).unwrap().clone();
    assert_eq!((text(&shown, "body"), text(&shown, "status")), ("a line\nand \"another\"", "read"));
    assert!(of("message").iter().filter(|message| message["raw_payload"]["raw"] == 1).count() == 450);
    assert!(of("transition").len() >= 4 && of("event").len() >= 4);
    assert!(!all.iter().any(|line| line.to_string().contains("their words") || line.to_string().contains("sealed")));
    let order: Vec<&str> = all.iter().map(|line| text(line, "type")).collect();
    let mut kinds = order.clone();
    kinds.dedup();
    assert_eq!(
        kinds,
        ["tenant", "session", "contact", "conversation", "message", "transition", "event", "media", "end"]
    );

    // From any line on, the rest comes.
    for position in [0, 2, 100, 300, 460, all.len() - 2] {
        let after = text(&all[position], "cursor");
        assert_eq!(lines(&tenant, &format!("?after={after}")).await, all[position + 1..], "behind line {position}");
    }
    let refused = tenant.get("/v1/export?after=nowhere").await.expect(StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(text(&refused["errors"][0], "field"), "after");
    let key = tenant.post("/v1/api-keys", &json!({"name": "few", "scopes": ["messages:read"]})).await;
    let few = tenant.with_key(text(&key.expect(StatusCode::CREATED), "key"));
    assert_eq!(few.get("/v1/export").await.status, StatusCode::FORBIDDEN);
    node.node.stop().await;
}
