//! Sender pools: made, changed, used in a message, deleted.

use serde_json::{Value, json};

use super::Stand;

async fn session(stand: &Stand, key: &str, name: &str) -> String {
    let body = json!({"name": name, "start": false});
    stand.post("/v1/sessions", key, body).await.expect(201).json()["id"].as_str().unwrap().to_owned()
}

/// As if WAHA had told it.
async fn set_status(stand: &Stand, session: &str, status: &str) {
    let paused = if status == "working" { "NULL" } else { "'session_not_working'" };
    let sql = format!(
        "UPDATE waha_sessions SET status = '{status}' WHERE id = '{session}';
         UPDATE lanes SET stopped_because = {paused} WHERE session_id = '{session}'"
    );
    stand.sql().await.batch_execute(&sql).await.unwrap();
}

async fn stand_with_server() -> (Stand, String) {
    let stand = Stand::new().await;
    let server =
        json!({"name": "w", "base_url": "http://127.0.0.1:1", "api_key": "k", "engine": "GOWS", "capacity": 100});
    stand.post("/v1/waha-servers", super::stand::PLATFORM_KEY, server).await.expect(201);
    let tenant = stand.tenant("one").await;
    let key = stand.key(&tenant, &["*"]).await;
    (stand, key)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_is_made_shown_changed_and_deleted() {
    let (stand, key) = stand_with_server().await;
    let (one, two) = (session(&stand, &key, "one").await, session(&stand, &key, "two").await);
    let pools = "/v1/sender-pools";
    let made = stand.post(pools, &key, json!({"name": "support", "session_ids": [one]})).await.expect(201).json();
    let path = format!("{pools}/{}", made["id"].as_str().unwrap());
    assert_eq!((&made["name"], &made["session_ids"], &made["version"]), (&json!("support"), &json!([one]), &json!(1)));
    assert_eq!(stand.get(&path, &key).await.expect(200).json(), made);
    stand.post(pools, &key, json!({"name": "support", "session_ids": []})).await.refused(409, "conflict");

    let taken = json!({"name": made["id"], "session_ids": []});
    stand.post(pools, &key, taken).await.refused_field("name");
    stand.post(pools, &key, json!({"name": "twice", "session_ids": [one, one]})).await.refused_field("session_ids");
    let nobody = "01900000-0000-7000-8000-000000000000";
    stand.post(pools, &key, json!({"name": "nobody", "session_ids": [nobody]})).await.refused_field("session_ids");

    let change = json!({"name": "sales", "session_ids": [one, two]});
    let stale = stand.request("PATCH", &path).bearer_auth(&key).header("If-Match", "\"7\"").json(&change);
    assert_eq!(stand.send(stale).await.status, 412);
    let changed = stand.call("PATCH", &path, &key, Some(change)).await.expect(200).json();
    assert_eq!((&changed["name"], &changed["version"]), (&json!("sales"), &json!(2)));
    assert_eq!(changed["session_ids"].as_array().unwrap().len(), 2);
    let all = stand.get(pools, &key).await.expect(200).json();
    assert_eq!(all["data"], json!([changed]));

    stand.call("DELETE", &path, &key, None).await.expect(204);
    stand.get(&path, &key).await.refused(404, "not_found");
    stand.call("DELETE", &path, &key, None).await.refused(404, "not_found");
    // The name is free again.
    stand.post(pools, &key, json!({"name": "sales", "session_ids": []})).await.expect(201);
    stand.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recipient_keeps_its_session_and_new_ones_are_spread() {
    let (stand, key) = stand_with_server().await;
    let mut sessions = Vec::new();
    for name in ["a", "b", "c"] {
        let id = session(&stand, &key, name).await;
        set_status(&stand, &id, "working").await;
        sessions.push(id);
    }
    let pool = json!({"name": "all", "session_ids": sessions});
    let pool = stand.post("/v1/sender-pools", &key, pool).await.expect(201).json();
    let by = async |pool: &str, to: &str| {
        let body = json!({"pool": pool, "to": to, "body": "hi"});
        let message = stand.post("/v1/messages", &key, body).await.expect(202).json();
        (message["session_id"].as_str().unwrap().to_owned(), message["pool_id"].clone())
    };
    let mut first = Vec::new();
    for n in 0..6 {
        let (session, shown) = by("all", &format!("+1555010111{n}")).await;
        assert_eq!(shown, pool["id"]);
        first.push(session);
    }
    for session in &sessions {
        assert_eq!(first.iter().filter(|by| *by == session).count(), 2, "{first:?}");
    }
    // The pool's id does as well as its name.
    assert_eq!(by(pool["id"].as_str().unwrap(), "+15550101110").await.0, first[0]);

    // A session that has failed loses its recipients, and gets no new ones.
    set_status(&stand, &first[0], "failed").await;
    let (other, _) = by("all", "+15550101110").await;
    assert_ne!(other, first[0]);
    set_status(&stand, &first[0], "working").await;
    assert_eq!(by("all", "+15550101110").await.0, other, "it stays with the one that wrote last");

    // Under a restriction those who know the session are still written to by it.
    let restrict = format!(
        "UPDATE lanes SET restricted_until = 'infinity' WHERE session_id = '{0}';
         INSERT INTO known_chats (tenant_id, session_id, chat_id, first_outbound_at, created_at, updated_at)
         SELECT tenant_id, id, '15550101111@c.us', now(), now(), now() FROM waha_sessions WHERE id = '{0}'",
        first[1]
    );
    stand.sql().await.batch_execute(&restrict).await.unwrap();
    assert_eq!(by("all", "+15550101111").await.0, first[1]);
    for n in 0..4 {
        assert_ne!(by("all", &format!("+1555010222{n}")).await.0, first[1]);
    }
    // When none can write it waits with its own.
    for session in &sessions {
        set_status(&stand, session, "stopped").await;
    }
    assert_eq!(by("all", "+15550101110").await.0, other);
    stand.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_chosen_is_said() {
    let (stand, key) = stand_with_server().await;
    let one = session(&stand, &key, "one").await;
    stand.post("/v1/sender-pools", &key, json!({"name": "empty", "session_ids": []})).await.expect(201);
    let send = async |more: Value| {
        let mut body = json!({"to": "+15550101234", "body": "hi"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        stand.post("/v1/messages", &key, body).await
    };
    send(json!({"pool": "nobody"})).await.refused_field("pool");
    send(json!({"pool": "empty", "session_id": one})).await.refused_field("pool");
    let empty = send(json!({"pool": "empty"})).await;
    empty.refused(409, "conflict");
    assert_eq!(empty.problem().1, "pool");
    let listed = stand.get("/v1/messages", &key).await.expect(200).json();
    assert_eq!(listed["data"], json!([]));
    stand.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_is_new_and_untried_leaves_a_restricted_session() {
    let (stand, key) = stand_with_server().await;
    let (one, two) = (session(&stand, &key, "one").await, session(&stand, &key, "two").await);
    set_status(&stand, &one, "working").await;
    set_status(&stand, &two, "working").await;
    let pool = json!({"name": "all", "session_ids": [one]});
    let pool = stand.post("/v1/sender-pools", &key, pool).await.expect(201).json();
    let mut sent = std::collections::BTreeMap::new();
    for (name, to) in [
        ("cold", "+15550101111"),
        ("warm", "+15550102222"),
        ("tried", "+15550103333"),
        ("held", "+15550104444"),
        ("cold again", "+15550101111"),
        ("group", "120363000000000000@g.us"),
    ] {
        let message = json!({"pool": "all", "to": to, "body": name});
        sent.insert(name, stand.post("/v1/messages", &key, message).await.expect(202).json());
    }
    let path = format!("/v1/sender-pools/{}", pool["id"].as_str().unwrap());
    stand.call("PATCH", &path, &key, Some(json!({"session_ids": [one, two]}))).await.expect(200);
    assert_eq!(switchboard::messages::pool_moves::sweep(&stand.app).await.unwrap(), 0, "nothing is wrong yet");
    let sql = stand.sql().await;
    sql.batch_execute(&format!(
        "UPDATE lanes SET restricted_until = 'infinity', queued = queued - 1 WHERE session_id = '{one}';
         UPDATE messages SET held_because = 'restricted' WHERE body = 'held';
         UPDATE messages SET attempts = 1 WHERE body = 'tried';
         INSERT INTO known_chats (tenant_id, session_id, chat_id, first_inbound_at, created_at, updated_at)
         SELECT tenant_id, id, '15550102222@c.us', now(), now(), now() FROM waha_sessions WHERE id = '{one}'"
    ))
    .await
    .unwrap();
    assert_eq!(switchboard::messages::pool_moves::sweep(&stand.app).await.unwrap(), 3);
    assert_eq!(switchboard::messages::pool_moves::sweep(&stand.app).await.unwrap(), 0, "a repeat finds nothing");
    for (name, by) in
        [("cold", &two), ("cold again", &two), ("held", &two), ("warm", &one), ("tried", &one), ("group", &one)]
    {
        let before = &sent[name];
        let path = format!("/v1/messages/{}", before["id"].as_str().unwrap());
        let now = stand.get(&path, &key).await.expect(200).json();
        assert_eq!(now["session_id"], **by, "{name}");
        assert_eq!((&now["waha_message_id"], &now["status"]), (&before["waha_message_id"], &json!("queued")), "{name}");
    }
    let waiting = format!("SELECT body FROM messages WHERE session_id = '{two}' ORDER BY priority, seq");
    let order: Vec<String> = sql.query(&waiting, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
    assert_eq!(order, ["cold", "held", "cold again"], "in the order of acceptance");
    sql.batch_execute("RESET ROLE").await.unwrap();
    crate::support::invariants::hold_in(&sql).await;
    stand.end().await;
}
