//! One key, one effect.

use std::time::Duration;

use serde_json::{Value, json};
use switchboard::domain::clock::Clock;

use super::Stand;
use super::stand::{Answer, PLATFORM_KEY, eventually, morning};

async fn create(stand: &Stand, key: &str, body: &Value) -> Answer {
    let request = stand.request("POST", "/v1/tenants").bearer_auth(PLATFORM_KEY).header("idempotency-key", key);
    stand.send(request.json(body)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_answer_is_given_again_for_a_day() {
    let stand = Stand::at(Clock::manual(morning())).await;
    let body = json!({ "name": "acme", "settings": { "b": 1, "a": [1, 2] } });
    let first = create(&stand, "k", &body).await.expect(201);
    assert_eq!(first.header("idempotency-replayed"), None);
    let again = create(&stand, "k", &json!({ "settings": { "a": [1, 2], "b": 1 }, "name": "acme" })).await.expect(201);
    assert_eq!((again.header("idempotency-replayed"), &again.text), (Some("true"), &first.text));
    assert_eq!(again.header("location"), first.header("location"));
    create(&stand, "k", &json!({ "name": "other" })).await.refused(422, "idempotency_key_reused");
    create(&stand, "k2", &body).await.refused(409, "conflict");
    create(&stand, "k2", &json!({ "name": "second" })).await.expect(201);
    stand.app.clock.advance(Duration::from_secs(24 * 3600 - 1));
    create(&stand, "k", &body).await.expect(201);
    stand.app.clock.advance(Duration::from_secs(1));
    create(&stand, "k", &json!({ "name": "a day later" })).await.expect(201);
    assert_eq!(stand.get("/v1/tenants", PLATFORM_KEY).await.json()["data"].as_array().unwrap().len(), 3);
    stand.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_equal_requests_at_once_one_takes_effect() {
    let stand = Stand::new().await;
    let other = stand.another_node();
    let body = json!({ "name": "acme" });
    let answers = futures_util::future::join_all(
        (0..24).map(|index| create(if index % 2 == 0 { &stand } else { &other }, "same", &body)),
    )
    .await;
    let mut ids = std::collections::HashSet::new();
    let mut first = 0;
    for answer in &answers {
        if answer.status == 409 {
            answer.refused(409, "request_in_progress");
            continue;
        }
        assert_eq!(answer.status, 201, "{answer:?}");
        ids.insert(answer.json()["id"].as_str().unwrap().to_owned());
        first += usize::from(answer.header("idempotency-replayed").is_none());
    }
    assert_eq!((ids.len(), first), (1, 1));
    other.end().await;
    stand.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_still_runs_is_said_to() {
    let stand = Stand::new().await;
    // Somebody holds the name, so the first request waits for what becomes of it.
    let mut holder = stand.sql().await;
    let held = holder.transaction().await.unwrap();
    let insert =
        "INSERT INTO tenants (id, name, created_at, updated_at) VALUES (gen_random_uuid(), 'acme', now(), now())";
    held.execute(insert, &[]).await.unwrap();
    let body = json!({ "name": "acme" });
    let watch = stand.sql().await;
    let second = async {
        let taken = "SELECT 1 FROM pg_locks l JOIN pg_database d ON d.oid = l.database \
                     WHERE d.datname = current_database() AND locktype = 'advisory' AND granted";
        eventually(Duration::from_secs(5), async || !watch.query(taken, &[]).await.unwrap().is_empty()).await;
        let answer = create(&stand, "k", &body).await;
        held.rollback().await.unwrap();
        answer
    };
    let (first, second) = tokio::join!(create(&stand, "k", &body), second);
    second.refused(409, "request_in_progress");
    assert!(second.header("retry-after").is_some());
    let first = first.expect(201);
    assert_eq!(create(&stand, "k", &body).await.expect(201).text, first.text);
    stand.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_with_a_secret_is_kept_sealed() {
    let stand = Stand::new().await;
    let tenant = stand.tenant("acme").await;
    let all = stand.key(&tenant, &["*"]).await;
    let make = async || {
        let request = stand.request("POST", "/v1/api-keys").bearer_auth(&all).header("idempotency-key", "k");
        stand.send(request.json(&json!({ "name": "b", "scopes": ["*"] }))).await.expect(201)
    };
    let (first, again) = (make().await, make().await);
    assert_eq!((first.text.as_str(), again.header("idempotency-replayed")), (again.text.as_str(), Some("true")));
    let key = first.json()["key"].as_str().unwrap().to_owned();
    let sql = stand.sql().await;
    let rows = sql.query("SELECT response, sealed FROM idempotency_keys WHERE key = 'k'", &[]).await.unwrap();
    let (response, sealed): (Vec<u8>, bool) = (rows[0].get(0), rows[0].get(1));
    assert!(sealed && !String::from_utf8_lossy(&response).contains(&key));

    // Keys of two tenants do not meet.
    let other = stand.tenant("other").await;
    let theirs = stand.key(&other, &["*"]).await;
    let request = stand.request("POST", "/v1/api-keys").bearer_auth(&theirs).header("idempotency-key", "k");
    let answer = stand.send(request.json(&json!({ "name": "b", "scopes": ["*"] }))).await.expect(201);
    assert_eq!((answer.header("idempotency-replayed"), &answer.json()["tenant_id"]), (None, &json!(other)));
    stand.end().await;
}
