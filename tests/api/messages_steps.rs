//! Cancel, retry, delete.

use chrono::TimeDelta;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use switchboard::simulator::Fault;

use super::messages_kinds::still;
use crate::support::invariants;
use crate::support::world::{Answer, Client, PATIENCE, text};
use crate::support::{World, eventually};

const TO: &str = "+15550101001";

async fn ask(client: &Client, message: &Value, what: &str) -> Answer {
    client.post(&format!("/v1/messages/{}/{what}", text(message, "id")), &json!({})).await
}

async fn delete(client: &Client, message: &Value) -> Answer {
    Client::send(client.request(Method::DELETE, &format!("/v1/messages/{}", text(message, "id")))).await
}

/// Waits until as many events of this type can be read.
async fn told(client: &Client, kind: &str, times: usize) {
    let path = format!("/v1/events?type={kind}");
    eventually(PATIENCE, "the events to be readable", async || {
        let events = client.get(&path).await.expect(StatusCode::OK);
        (events["data"].as_array().unwrap().len() == times).then_some(())
    })
    .await;
}

async fn queued(world: &World, session: &str) -> i32 {
    let sql = world.db.connect().await;
    sql.query_one("SELECT queued FROM lanes WHERE session_id::text = $1", &[&session]).await.unwrap().get(0)
}

/// Makes it as if the attempts at these messages had ended so.
async fn fail(world: &World, code: &str, condition: &str) {
    let sql = world.db.connect().await;
    let text = format!(
        "WITH m AS (UPDATE messages SET status = 'failed', error_code = '{code}', error_message = 'x', attempts = 8, worker_deaths = 3,
                           doubts = 8, failed_at = now() WHERE status = 'queued' AND {condition} RETURNING *),
              t AS (INSERT INTO message_transitions (tenant_id, message_id, status, at, cause) SELECT tenant_id, id, 'failed', now(), '{code}' FROM m),
              e AS (INSERT INTO events (tenant_id, id, type, at, session_id, message_id, data)
                    SELECT tenant_id, gen_random_uuid(), 'message.failed', now(), session_id, id, '{{}}' FROM m)
         UPDATE lanes SET queued = queued - n FROM (SELECT session_id, count(*) AS n FROM m GROUP BY session_id) c
         WHERE lanes.session_id = c.session_id"
    );
    sql.execute(&text, &[]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_can_be_cancelled_and_deleted() {
    let world = World::new().await;
    let (node, tenant, session) = still(&world).await;
    let other = world.tenant(&node.base, "two").await;
    let kept = tenant.send_text(&session, TO, "kept").await;
    let message = tenant.send_text(&session, TO, "a").await;
    let at = (node.app.clock.now() + TimeDelta::hours(1)).to_rfc3339();
    let scheduled = json!({"to": TO, "body": "later", "scheduled_at": at});
    let scheduled = tenant.post("/v1/messages", &scheduled).await.expect(StatusCode::ACCEPTED);
    assert_eq!(ask(&other, &message, "cancel").await.status, StatusCode::NOT_FOUND);
    for message in [&message, &scheduled] {
        let cancelled = ask(&tenant, message, "cancel").await.expect(StatusCode::OK);
        assert_eq!(text(&cancelled, "status"), "cancelled");
        assert_eq!(ask(&tenant, message, "cancel").await.expect(StatusCode::OK), cancelled, "again changes nothing");
        assert_eq!(ask(&tenant, message, "retry").await.status, StatusCode::CONFLICT);
    }
    assert_eq!(tenant.history(text(&message, "id")).await, ["queued", "cancelled"]);
    assert_eq!(tenant.history(text(&scheduled, "id")).await, ["scheduled", "cancelled"]);
    assert_eq!(queued(&world, &session).await, 1);
    told(&tenant, "message.cancelled", 2).await;

    assert_eq!(delete(&other, &kept).await.status, StatusCode::NOT_FOUND);
    assert_eq!(delete(&tenant, &kept).await.status, StatusCode::NO_CONTENT);
    assert_eq!(delete(&tenant, &kept).await.status, StatusCode::NOT_FOUND);
    assert_eq!(tenant.get(&format!("/v1/messages/{}", text(&kept, "id"))).await.status, StatusCode::NOT_FOUND);
    assert_eq!(queued(&world, &session).await, 0, "deleted means cancelled first");
    told(&tenant, "message.cancelled", 3).await;
    let list = tenant.get("/v1/messages").await.expect(StatusCode::OK);
    assert_eq!(list["data"].as_array().unwrap().len(), 2);
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancellation_and_a_send_at_once_end_in_one_of_the_two() {
    let world = World::new().await;
    let node = world.node();
    let tenant = world.tenant(&node.base, "one").await;
    let (session, external) = tenant.session("only").await;
    let mut fates = Vec::new();
    for n in 0..60_u64 {
        let message = tenant.send_text(&session, TO, &format!("n{n}")).await;
        // Spread over the whole way, from before the turn to behind the answer.
        for _ in 0..n % 12 {
            tenant.get("/v1/messages?limit=1").await.expect(StatusCode::OK);
        }
        let answer = ask(&tenant, &message, "cancel").await;
        assert!(matches!(answer.status, StatusCode::OK | StatusCode::CONFLICT), "{:?}", answer.body);
        fates.push((message, answer.status == StatusCode::OK));
    }
    let last = tenant.send_text(&session, TO, "last").await;
    tenant.message_with(text(&last, "id"), "read").await;
    for (message, cancelled) in &fates {
        let expected = if *cancelled { "cancelled" } else { "read" };
        tenant.message_with(text(message, "id"), expected).await;
    }
    let ledger = world.simulator.control().ledger();
    let sent = ledger.texts(&external);
    let expected: Vec<&str> =
        fates.iter().filter(|(_, gone)| !gone).map(|(message, _)| text(message, "body")).chain(["last"]).collect();
    assert_eq!(sent, expected, "each either cancelled or sent, in order");
    invariants::hold(&world).await;
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_message_is_sent_by_a_retry_as_the_same_message() {
    let world = World::new().await;
    let node = world.node();
    let tenant = world.tenant(&node.base, "one").await;
    let (session, external) = tenant.session("only").await;
    world.simulator.control().fault_once("sendText", Fault::BadRequest400);
    let message = tenant.send_text(&session, TO, "again").await;
    let id = text(&message, "id");
    let failed = tenant.message_with(id, "failed").await;
    assert!(failed["error"]["code"].is_string() && failed["failed_at"].is_string());
    assert_eq!(ask(&tenant, &message, "cancel").await.status, StatusCode::CONFLICT);
    // As if all attempts there may be had been made: a retry has as many again.
    world.db.connect().await.execute("UPDATE messages SET attempts = 8", &[]).await.unwrap();
    world.simulator.control().fault_once("sendText", Fault::Error500Before);
    let retried = ask(&tenant, &message, "retry").await.expect(StatusCode::ACCEPTED);
    assert_eq!((text(&retried, "status"), &retried["error"], &retried["id"]), ("queued", &Value::Null, &message["id"]));
    assert_eq!(retried["waha_message_id"], failed["waha_message_id"]);
    let read = tenant.message_with(id, "read").await;
    assert_eq!((&read["error"], &read["failed_at"], &read["attempts"]), (&Value::Null, &Value::Null, &json!(10)));
    let history = ["queued", "sending", "failed", "queued", "sending", "sending", "sent", "delivered", "read"];
    assert_eq!(tenant.history(id).await, history);
    assert_eq!(ask(&tenant, &message, "retry").await.status, StatusCode::CONFLICT);
    assert_eq!(world.simulator.control().ledger().texts(&external), ["again"]);
    told(&tenant, "message.queued", 2).await;
    invariants::hold(&world).await;
    assert_eq!(delete(&tenant, &message).await.status, StatusCode::NO_CONTENT);
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_are_retried_and_cancelled_by_filter() {
    let world = World::new().await;
    let (node, tenant, session) = still(&world).await;
    let second = tenant.post("/v1/sessions", &json!({"name": "second"})).await.expect(StatusCode::CREATED);
    let batch = |session: &str, n: i32| json!({"messages": (0..n).map(|n| json!({"session_id": session, "to": TO, "body": n.to_string(), "metadata": {"even": n % 2 == 0}})).collect::<Vec<_>>()});
    tenant.post("/v1/messages/batch", &batch(&session, 700)).await.expect(StatusCode::ACCEPTED);
    tenant.post("/v1/messages/batch", &batch(text(&second, "id"), 10)).await.expect(StatusCode::ACCEPTED);
    fail(&world, "quarantined", "body < '2'").await;
    fail(&world, "undeliverable", "body >= '2' AND body < '3'").await;
    let dead = tenant.get("/v1/messages?status=failed&error_code=quarantined&limit=200").await.expect(StatusCode::OK);
    let dead = dead["data"].as_array().unwrap().len();
    assert!(
        dead > 100
            && tenant.get("/v1/messages?error_code=quarantined&limit=200").await.body["data"].as_array().unwrap().len()
                == dead
    );
    assert_eq!(tenant.get("/v1/messages?error_code=nonsense").await.status, StatusCode::UNPROCESSABLE_ENTITY);

    let before = queued(&world, &session).await;
    let many = async |what: &str, filter: Value| {
        tenant.post(&format!("/v1/messages/{what}"), &json!({ "filter": filter })).await
    };
    let here = json!({"session_id": session, "error_code": "quarantined"});
    let retried = many("retry", here.clone()).await.expect(StatusCode::OK);
    let n = retried["retried"].as_i64().unwrap();
    assert_eq!(
        (n, &retried["more"]),
        (112, &json!(false)),
        "0, 1, 10 to 19, 100 to 199 but not those of the other session"
    );
    assert_eq!(i64::from(queued(&world, &session).await - before), n);
    assert_eq!(many("retry", here).await.body["retried"], 0);
    let row = world
        .db
        .connect()
        .await
        .query_one(
            "SELECT max(worker_deaths), max(doubts), max(attempts_before) FROM messages WHERE status = 'queued'",
            &[],
        )
        .await
        .unwrap();
    assert_eq!((row.get::<_, i16>(0), row.get::<_, i16>(1), row.get::<_, i32>(2)), (0, 0, 8));

    // One that has expired meanwhile is left as it is, and so is one whose session is gone.
    world
        .db
        .connect()
        .await
        .execute(
            "UPDATE messages SET expires_at = now() - interval '1 s' WHERE body = '2' AND session_id::text = $1",
            &[&session],
        )
        .await
        .unwrap();
    assert_eq!(many("retry", json!({"session_id": session})).await.body["retried"], 110);

    assert_eq!(many("cancel", json!({"metadata": {"even": true}})).await.expect(StatusCode::OK)["cancelled"], 352);
    assert_eq!(many("cancel", json!({})).await.expect(StatusCode::OK)["cancelled"], 354);
    assert_eq!((queued(&world, &session).await, queued(&world, text(&second, "id")).await), (0, 0));
    for (filter, field) in [
        (json!({"status": "failed"}), "filter.status"),
        (json!({"type": "pigeon"}), "filter.type"),
        (json!({"error_code": "x"}), "filter.error_code"),
        (json!({"metadata": {"a": []}}), "filter.metadata.a"),
        (json!({"to": "0171"}), "filter.to"),
    ] {
        let answer = many("retry", filter).await;
        assert_eq!(answer.body["errors"][0]["field"], field, "{:?}", answer.body);
    }
    assert_eq!(tenant.post("/v1/messages/cancel", &json!({})).await.body["errors"][0]["field"], "filter");
    eventually(PATIENCE, "the queue to be empty", async || {
        let waiting = tenant.get("/v1/messages?status=queued").await.body;
        (waiting["data"] == json!([])).then_some(())
    })
    .await;
    node.node.stop().await;
}
