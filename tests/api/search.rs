//! `GET /v1/messages?q=`: by the words, in whatever language, and nobody else's.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::world::{Client, PATIENCE, text};
use crate::support::{World, eventually};

/// The texts that a query finds, newest first.
async fn found(client: &Client, query: &str) -> Vec<String> {
    let list = client.get(&format!("/v1/messages?{query}")).await.expect(StatusCode::OK);
    list["data"].as_array().unwrap().iter().map(|message| text(message, "body").to_owned()).collect()
}

async fn highlights(client: &Client, query: &str) -> Value {
    client.get(&format!("/v1/messages?{query}")).await.expect(StatusCode::OK)["data"][0]["highlights"].take()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_are_found_by_their_words() {
    let world = World::new().await;
    let node = world.node();
    let (tenant, other) = (world.tenant(&node.base, "one").await, world.tenant(&node.base, "two").await);
    let (session, external) = tenant.session("first").await;
    let (elsewhere, _) = other.session("theirs").await;
    let texts = [
        "Your invoice of November is attached",
        "A fatura de São Paulo está paga",
        "<script>alert('invoice')</script> & \"more\"",
        "Rechnung und Lieferschein",
        "the invoice, once more",
    ];
    for body in texts {
        tenant.send_text(&session, "+15550100001", body).await;
    }
    other.send_text(&elsewhere, "+15550100001", "their invoice").await;
    world.simulator.control().inbound_text(&external, "15550107777", "which invoice do you mean?").unwrap();
    eventually(PATIENCE, "all to be found", async || {
        let all = found(&tenant, "q=invoice").await.len() + found(&tenant, "q=Rechnung").await.len();
        (all + found(&tenant, "q=fatura").await.len() == 6).then_some(())
    })
    .await;
    for (query, expected) in [
        ("q=INVOICE%20november", vec![texts[0]]),
        ("q=sao%20paulo", vec![texts[1]]),
        ("q=S%C3%A3o", vec![texts[1]]),
        ("q=rechn", vec![texts[3]]),
        ("q=%22rechn%22", vec![]),
        ("q=%22once%20more%22", vec![texts[4]]),
        ("q=invoice%20-november%20-mean&direction=outbound", vec![texts[4], texts[2]]),
        ("q=fatura%20or%20rechnung", vec![texts[3], texts[1]]),
        ("q=invoice&direction=inbound", vec!["which invoice do you mean?"]),
        ("q=invoice&to=%2B15550100002", vec![]),
        ("q=%3F%21", vec![]),
        ("q='%20:*%20%26%20%7C%20(", vec![]),
    ] {
        assert_eq!(found(&tenant, query).await, expected, "{query}");
    }
    // Page by page, with the same cursor as any list.
    let mut pages = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = tenant.get(&format!("/v1/messages?q=invoice&limit=2{cursor}")).await.expect(StatusCode::OK);
        pages.extend(page["data"].as_array().unwrap().iter().map(|message| text(message, "id").to_owned()));
        let Some(next) = page["next_cursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    let whole = tenant.get("/v1/messages?q=invoice").await.expect(StatusCode::OK);
    let whole: Vec<_> =
        whole["data"].as_array().unwrap().iter().map(|message| text(message, "id").to_owned()).collect();
    assert_eq!((pages.len(), &pages), (4, &whole));

    assert_eq!(highlights(&tenant, "q=novem").await, json!(["Your invoice of <mark>November</mark> is attached"]));
    let hostile = "script&gt;alert(&#39;<mark>invoice</mark>&#39;)&lt;/script&gt; &amp; &quot;<mark>more</mark>";
    let shown = highlights(&tenant, "q=invoice%20more%20-once").await;
    assert_eq!(shown, json!([hostile]));
    let plain = tenant.get("/v1/messages").await.expect(StatusCode::OK);
    assert!(plain["data"][0].get("highlights").is_none());
    for query in ["q=", "q=%20", &format!("q={}", "x".repeat(257))] {
        let refused = tenant.get(&format!("/v1/messages?{query}")).await.expect(StatusCode::UNPROCESSABLE_ENTITY);
        assert_eq!(text(&refused["errors"][0], "field"), "q", "{query}");
    }
    assert_eq!(found(&other, "q=invoice").await, ["their invoice"]);
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_there_before_the_index_is_found_and_edits_and_revocations_count() {
    let world = World::new().await;
    let node = world.node();
    let tenant = world.tenant(&node.base, "one").await;
    let (session, _) = tenant.session("first").await;
    let sent = tenant.send_text(&session, "+15550100001", "before the edit").await;
    let revoked = tenant.send_text(&session, "+15550100001", "before the end").await;
    for message in [&sent, &revoked] {
        tenant.message_with(text(message, "id"), "read").await;
    }
    eventually(PATIENCE, "both to be found", async || (found(&tenant, "q=before").await.len() == 2).then_some(()))
        .await;
    let path = format!("/v1/messages/{}", text(&sent, "id"));
    let edit = tenant.request(Method::PATCH, &path).json(&json!({"body": "after it"}));
    Client::send(edit).await.expect(StatusCode::OK);
    let path = format!("/v1/messages/{}?for_everyone=true", text(&revoked, "id"));
    assert!(Client::send(tenant.request(Method::DELETE, &path)).await.status.is_success());
    eventually(PATIENCE, "the edit", async || (found(&tenant, "q=after").await == ["after it"]).then_some(())).await;
    eventually(PATIENCE, "the end", async || found(&tenant, "q=before").await.is_empty().then_some(())).await;

    // The events of old messages may be gone; they are walked through once.
    let client = world.db.connect().await;
    let anew = "UPDATE event_cursors SET xact = 9223372036854775807 WHERE name = 'search'; DELETE FROM message_search;
         UPDATE message_search_backlog SET ended_at = NULL, last_tenant = '00000000-0000-0000-0000-000000000000',
             last_id = '00000000-0000-0000-0000-000000000000'";
    client.batch_execute(anew).await.unwrap();
    eventually(PATIENCE, "the old one", async || (found(&tenant, "q=after").await == ["after it"]).then_some(())).await;
    node.node.stop().await;
}

/// The words of a small tenant are found by the index, and not by looking through a large one's messages.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_tenant_beside_a_large_one_searches_by_the_index() {
    let world = World::new().await;
    let node = world.node();
    let (small, _large) = (world.tenant(&node.base, "small").await, world.tenant(&node.base, "large").await);
    let (session, _) = small.session("first").await;
    small.send_text(&session, "+15550100001", "the word and another").await;
    eventually(PATIENCE, "it to be found", async || (found(&small, "q=word").await.len() == 1).then_some(())).await;
    let client = world.db.connect().await;
    client
        .batch_execute(
            "INSERT INTO waha_sessions (tenant_id, id, name, external_session_id, waha_server_id, status, status_at, desired, engine,
                                        webhook_key_sealed, pacing, created_at, updated_at)
             SELECT t.id, gen_random_uuid(), 'many', 'many', (SELECT id FROM waha_servers LIMIT 1), 'working', now(), 'stopped', 'NOWEB',
                    '', '{}', now(), now() FROM tenants t WHERE name = 'large';
             INSERT INTO messages (tenant_id, id, session_id, direction, message_type, chat_id, body, created_at, updated_at, status)
             SELECT s.tenant_id, gen_random_uuid(), s.id, 'inbound', 'text', '1@c.us', 'the word ' || n || ' ' || md5(n::text), now(), now(), 'received'
             FROM waha_sessions s, generate_series(1, 60000) n WHERE s.name = 'many';
             INSERT INTO message_search (tenant_id, message_id, session_id, created_at, document)
             SELECT tenant_id, id, session_id, created_at, message_words(body) FROM messages WHERE body LIKE 'the word %'
             ON CONFLICT DO NOTHING",
        )
        .await
        .unwrap();
    // One at a time: it cannot be part of a transaction.
    for statement in ["VACUUM ANALYZE messages", "VACUUM ANALYZE message_search", "SET ROLE switchboard_system"] {
        client.batch_execute(statement).await.unwrap();
    }
    let tenant: String =
        client.query_one("SELECT id::text FROM tenants WHERE name = 'small'", &[]).await.unwrap().get(0);
    let explain = format!(
        "EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF) SELECT m.id FROM message_search s \
         JOIN messages m ON m.tenant_id = s.tenant_id AND m.id = s.message_id \
         WHERE s.tenant_id = '{tenant}' AND s.document @@ '''word'''::tsquery AND m.tenant_id = '{tenant}' AND m.deleted_at IS NULL \
         ORDER BY s.created_at DESC, s.message_id DESC LIMIT 51"
    );
    let rows = client.query(&explain, &[]).await.unwrap();
    let plan = rows.iter().map(|row| row.get::<_, String>(0)).collect::<Vec<_>>().join("\n");
    assert!(plan.contains("message_search_words") || plan.contains("message_search_pkey"), "{plan}");
    assert!(!plan.contains("Seq Scan"), "{plan}");
    // A large one's rare words, too.
    let explain = explain.replace("'''word'''", "'''12345'''");
    let large: String =
        client.query_one("SELECT id::text FROM tenants WHERE name = 'large'", &[]).await.unwrap().get(0);
    let rows = client.query(&explain.replace(&tenant, &large), &[]).await.unwrap();
    let plan = rows.iter().map(|row| row.get::<_, String>(0)).collect::<Vec<_>>().join("\n");
    assert!(plan.contains("Bitmap Index Scan on message_search_words") && !plan.contains("Seq Scan"), "{plan}");
    node.node.stop().await;
}
