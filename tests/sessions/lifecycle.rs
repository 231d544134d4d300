//! What a tenant may want of a session, and how it ends.

use std::time::Duration;

use secrecy::SecretString;
use serde_json::{Value, json};
use switchboard::domain::ids::TenantId;
use switchboard::sessions::view::SessionRow;
use switchboard::simulator::SimulatorConfig;
use switchboard::waha::{Engine, SessionSpec, SessionStatus};

use super::stand::{Doors, PATIENCE, Stand, session};
use crate::support::eventually;

const STEP: Duration = Duration::from_millis(100);

/// A session that works, and a key of its tenant.
struct One {
    stand: Stand,
    doors: Doors,
    tenant: TenantId,
    key: String,
    row: SessionRow,
}

impl One {
    async fn new() -> Self {
        let stand = Stand::new().await;
        let doors = stand.open();
        let tenant = stand.tenant("a").await;
        stand.server(5).await;
        let key = doors.key(tenant, &["*"]).await;
        let row = stand.create(tenant, session("support")).await.unwrap();
        Self { stand, doors, tenant, key, row }
    }

    fn external(&self) -> &str {
        &self.row.external_session_id
    }

    async fn pair(&self) {
        self.stand.becomes(self.tenant, self.row.id, "scan_qr").await;
        self.stand.simulator.control().scan(self.external()).unwrap();
        self.stand.becomes(self.tenant, self.row.id, "working").await;
        self.stand.settled().await;
    }

    async fn order(&self, order: &str, status: u16) -> Value {
        let path = format!("/v1/sessions/{}/{order}", self.row.id);
        self.doors.post(&path, &self.key, json!({})).await.expect(status).json()
    }

    fn calls(&self, order: &str) -> usize {
        let call = format!("POST /api/sessions/{}/{order}", self.external());
        self.stand.counter.calls(&call).get(&call).copied().unwrap_or(0)
    }

    async fn message(&self, body: Value) -> Value {
        self.doors.post("/v1/messages", &self.key, body).await.expect(202).json()
    }

    async fn status_of(&self, message: &Value) -> String {
        let path = format!("/v1/messages/{}", message["id"].as_str().unwrap());
        self.doors.get(&path, &self.key).await.expect(200).json()["status"].as_str().unwrap().to_owned()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn logged_out_it_can_be_paired_with_another_phone() {
    let one = One::new().await;
    let node = Stand::reconcile(&one.stand.app);
    one.pair().await;
    let first = one.stand.find(one.tenant, one.row.id).await.unwrap().phone;
    one.order("logout", 202).await;
    let waiting = one.stand.becomes(one.tenant, one.row.id, "scan_qr").await;
    assert_eq!((waiting.phone, one.calls("logout")), (None, 1));
    one.pair().await;
    let second = one.stand.find(one.tenant, one.row.id).await.unwrap().phone;
    assert!(second.is_some() && second != first);
    assert_eq!(one.calls("logout"), 1, "a wish is carried out once");

    let path = format!("/v1/sessions/{}/timeline?limit=3", one.row.id);
    let mut page = one.doors.get(&path, &one.key).await.expect(200).json();
    let mut entries = page["data"].as_array().unwrap().clone();
    while let Some(cursor) = page["next_cursor"].as_str() {
        page = one.doors.get(&format!("{path}&cursor={cursor}"), &one.key).await.expect(200).json();
        entries.extend(page["data"].as_array().unwrap().clone());
    }
    let asked = entries.iter().position(|entry| entry["cause"] == "logout was asked for").unwrap();
    assert!(entries[asked]["actor"].as_str().unwrap().starts_with("api_key:"), "{entries:?}");
    let statuses: Vec<&str> = entries[..asked].iter().rev().map(|entry| entry["status"].as_str().unwrap()).collect();
    assert!(statuses.ends_with(&["scan_qr", "working"]), "{statuses:?}");
    assert!(entries.is_sorted_by(|newer, older| newer["at"].as_str() >= older["at"].as_str()));
    node.stop().await;
    one.doors.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_it_is_gone_and_its_messages_end() {
    let one = One::new().await;
    let node = Stand::reconcile(&one.stand.app);
    one.pair().await;
    one.order("pause", 200).await;
    let text = json!({"session_id": one.row.id, "to": "+15550100001", "body": "x"});
    let queued = one.message(text.clone()).await;
    let tomorrow = one.stand.app.clock.now() + chrono::TimeDelta::days(1);
    let later = json!({"session_id": one.row.id, "to": "+15550100001", "body": "x", "scheduled_at": tomorrow});
    let scheduled = one.message(later).await;
    let path = format!("/v1/sessions/{}", one.row.id);
    one.doors.send(one.doors.request("DELETE", &path, &one.key)).await.expect(204);
    // Gone at once: the name is free, and nobody can use it.
    one.doors.get(&path, &one.key).await.expect(404);
    one.doors.send(one.doors.request("DELETE", &path, &one.key)).await.expect(404);
    assert_eq!(one.doors.post("/v1/messages", &one.key, text).await.problem(404).0, "not_found");
    one.doors.post("/v1/sessions", &one.key, json!({"name": "support", "start": false})).await.expect(201);

    eventually(PATIENCE, "the place to be free", async || {
        (one.stand.count("SELECT sessions::bigint FROM waha_servers").await == 1).then_some(())
    })
    .await;
    assert!(one.stand.app.waha.get_session(&one.stand.waha(), one.external()).await.unwrap().is_none());
    for message in [&queued, &scheduled] {
        assert_eq!(one.status_of(message).await, "cancelled");
    }
    assert_eq!(one.stand.count("SELECT queued::bigint FROM lanes WHERE stopped_because = 'session_deleted'").await, 0);
    node.stop().await;
    one.doors.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_on_its_way_when_the_session_was_deleted_is_told() {
    let one = One::new().await;
    let node = Stand::reconcile(&one.stand.app);
    one.pair().await;
    let text = json!({"session_id": one.row.id, "to": "+15550100001", "body": "x"});
    let mut messages = Vec::new();
    // Handed over, certainly not sent, in doubt, and being handed over this moment.
    for state in ["handed_over_at = now()", "requeued = true", "attempt_state = 'unknown'", "attempt_state = 'open'"] {
        let message = one.message(text.clone()).await;
        let id = message["id"].as_str().unwrap();
        let sql = one.stand.sql().await;
        let update = format!("UPDATE messages SET status = 'sending', attempts = 1, {state} WHERE id = '{id}'");
        sql.batch_execute(&update).await.unwrap();
        messages.push(message);
    }
    let held = format!(
        "UPDATE lanes SET queued = 1, in_flight = '{}', lease_until = now() + interval '1 hour'",
        messages[3]["id"].as_str().unwrap()
    );
    one.stand.sql().await.batch_execute(&held).await.unwrap();
    let path = format!("/v1/sessions/{}", one.row.id);
    one.doors.send(one.doors.request("DELETE", &path, &one.key)).await.expect(204);
    let codes = eventually(PATIENCE, "three to have failed", async || {
        let list = one.doors.get("/v1/messages?status=failed", &one.key).await.expect(200).json();
        let code = |row: &Value| row["error"]["code"].as_str().unwrap().to_owned();
        let codes: Vec<String> = list["data"].as_array().unwrap().iter().rev().map(code).collect();
        (codes.len() == 3).then_some(codes)
    })
    .await;
    assert_eq!(codes, ["no_server_ack", "session_deleted", "unconfirmed"]);
    assert_eq!(one.status_of(&messages[3]).await, "sending", "its worker may still tell");
    assert_eq!(one.stand.count("SELECT count(*) FROM waha_sessions WHERE removed_at IS NULL").await, 1);
    one.stand.sql().await.batch_execute("UPDATE lanes SET lease_until = now()").await.unwrap();
    eventually(PATIENCE, "the last one", async || (one.status_of(&messages[3]).await == "failed").then_some(())).await;
    eventually(PATIENCE, "the place to be free", async || {
        (one.stand.count("SELECT sessions::bigint FROM waha_servers").await == 0).then_some(())
    })
    .await;
    node.stop().await;
    one.doors.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_restart_follows_a_scan() {
    let stand = Stand::moved(&[]).await;
    let doors = stand.open();
    let tenant = stand.tenant("a").await;
    stand.server(5).await;
    let key = doors.key(tenant, &["*"]).await;
    let node = Stand::reconcile(&stand.app);
    let row = stand.create(tenant, session("a")).await.unwrap();
    let is = async |status: &str| stand.find(tenant, row.id).await.filter(|row| row.status == status);
    stand.moving(STEP, "it to work", async || is("working").await).await;
    let paired = stand.app.clock.now();
    doors.post(&format!("/v1/sessions/{}/restart", row.id), &key, json!({})).await.expect(202);
    let call = format!("POST /api/sessions/{}/restart", row.external_session_id);
    let restarted = async || stand.counter.calls(&call).contains_key(&call).then_some(());
    stand.moving(STEP * 5, "the restart", restarted).await;
    assert!((stand.app.clock.now() - paired).num_seconds() >= 115, "two minutes after the scan, as the poll saw it");
    stand.moving(STEP, "it to be seen", async || is("starting").await).await;
    stand.moving(STEP, "it to work again", async || is("working").await).await;
    assert_eq!(stand.counter.calls(&call).get(&call), Some(&1));
    node.stop().await;
    doors.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_failed_is_restarted_once() {
    let stand = Stand::with(
        SimulatorConfig {
            clock: switchboard::domain::clock::Clock::manual("2026-11-21T09:30:00Z".parse().unwrap()),
            ..SimulatorConfig::default()
        },
        &[],
    )
    .await;
    let tenant = stand.tenant("a").await;
    stand.server(5).await;
    let node = Stand::reconcile(&stand.app);
    let row = stand.create(tenant, session("a")).await.unwrap();
    let name = row.external_session_id.as_str();
    let is = async |status: &str| stand.find(tenant, row.id).await.filter(|row| row.status == status);
    stand.moving(STEP, "the code", async || is("scan_qr").await).await;
    stand.simulator.control().scan(name).unwrap();
    stand.moving(STEP, "it to work", async || is("working").await).await;
    stand.pass(Duration::from_secs(130), Duration::from_secs(1), async || {}).await;
    stand.simulator.control().phone_logout(name).unwrap();
    stand.moving(STEP, "the failure", async || is("failed").await).await;
    stand.moving(Duration::from_secs(1), "new codes", async || is("scan_qr").await).await;
    stand.moving(Duration::from_secs(1), "nobody to scan", async || is("failed").await).await;
    stand.pass(Duration::from_secs(200), Duration::from_secs(2), async || {}).await;
    let call = format!("POST /api/sessions/{name}/restart");
    assert_eq!(stand.counter.calls("POST").get(&call), Some(&1), "the phone has to be asked");
    assert!(stand.counter.calls(&format!("POST /api/sessions/{name}/logout")).is_empty());
    let history = "SELECT count(*) FROM session_transitions WHERE status = 'failed' AND actor = 'waha'";
    assert_eq!(stand.count(history).await, 2);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ghosts_are_ended_and_strangers_left_alone() {
    let one = One::new().await;
    let server = one.row.waha_server_id;
    let node = Stand::reconcile(&one.stand.app);
    one.pair().await;
    let (waha, at) = (&one.stand.app.waha, one.stand.waha());
    let spec = |name: &str, url: &str| SessionSpec {
        name: name.to_owned(),
        engine: Engine::Noweb,
        webhook_url: url.parse().unwrap(),
        hmac_key: SecretString::from("k"),
        metadata: [].into(),
        proxy: None,
    };
    let ours = format!("http://127.0.0.1:1/base/hooks/waha/{server}");
    waha.create_session(&at, &spec("sb_unknown", &ours), true).await.unwrap();
    waha.create_session(&at, &spec("foreign", "http://127.0.0.1:1/elsewhere"), true).await.unwrap();
    let status = async |name: &str| waha.get_session(&at, name).await.unwrap().map(|info| info.status);
    eventually(PATIENCE, "the unknown one to be stopped", async || {
        (status("sb_unknown").await == Some(SessionStatus::Stopped)).then_some(())
    })
    .await;

    let path = format!("/v1/sessions/{}", one.row.id);
    one.doors.send(one.doors.request("DELETE", &path, &one.key)).await.expect(204);
    let gone = async || status(one.external()).await.is_none().then_some(());
    eventually(PATIENCE, "it to be removed", gone).await;
    eventually(PATIENCE, "its place to be free", async || {
        (one.stand.count("SELECT count(removed_at) FROM waha_sessions").await == 1).then_some(())
    })
    .await;
    // It comes back, as from a backup of the server's.
    waha.create_session(&at, &spec(one.external(), &ours), true).await.unwrap();
    eventually(PATIENCE, "it to be removed again", gone).await;
    assert!(status("foreign").await.is_some_and(|status| status != SessionStatus::Stopped));
    node.stop().await;
    one.doors.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drifted_configuration_is_mended_when_it_costs_no_connection() {
    let one = One::new().await;
    let node = Stand::reconcile(&one.stand.app);
    one.pair().await;
    let (waha, at) = (&one.stand.app.waha, one.stand.waha());
    let drifted = SessionSpec {
        name: one.external().to_owned(),
        engine: Engine::Noweb,
        webhook_url: "http://127.0.0.1:1/old".parse().unwrap(),
        hmac_key: SecretString::from("old"),
        metadata: [].into(),
        proxy: None,
    };
    // Nobody looks while it is stopped for that.
    node.stop().await;
    waha.update_session(&at, &drifted).await.unwrap();
    one.stand.simulator.control().working(one.external()).await;
    let node = Stand::reconcile(&one.stand.app);
    let hook = format!("http://127.0.0.1:1/base/hooks/waha/{}", one.row.waha_server_id);
    let mended = async || waha.get_session(&at, one.external()).await.unwrap().is_some_and(|info| info.posts_to(&hook));
    // Polls see it and leave the connection alone.
    let polls = async || one.stand.counter.calls("GET /api/sessions").get("GET /api/sessions").copied().unwrap_or(0);
    let before = polls().await;
    eventually(PATIENCE, "three polls", async || (polls().await >= before + 3).then_some(())).await;
    assert!(!mended().await && one.stand.counter.calls("PUT").is_empty());
    one.order("stop", 202).await;
    one.stand.becomes(one.tenant, one.row.id, "stopped").await;
    one.order("start", 202).await;
    one.stand.becomes(one.tenant, one.row.id, "working").await;
    assert!(mended().await);
    assert_eq!(one.stand.counter.calls("PUT").values().sum::<usize>(), 1);
    node.stop().await;
    one.doors.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_take_no_step_twice_for_five_hundred_sessions() {
    let fast = SimulatorConfig { time_scale: 100.0, auto_pair: true, ..SimulatorConfig::default() };
    // The steps alone have enough to look at.
    let settings = [("SWITCHBOARD_STARTS_AT_ONCE", "500"), ("SWITCHBOARD_RECONCILE_MS", "5000")];
    let stand = Stand::with(fast, &settings).await;
    let tenant = stand.tenant("a").await;
    stand.server(600).await;
    let there = stand.another_node();
    let mut rows = Vec::new();
    for index in 0..500 {
        rows.push(stand.create(tenant, session(&format!("s{index}"))).await.unwrap());
    }
    let nodes = [Stand::reconcile(&stand.app), Stand::reconcile(&there)];
    let patience = PATIENCE * 8;
    let all = async |what: &str, status: &str| {
        let query = format!("SELECT count(*) FROM waha_sessions WHERE waha_status = '{status}'");
        eventually(patience, what, async || (stand.count(&query).await == 500).then_some(())).await;
    };
    all("all to work", "working").await;
    stand.settled().await;
    let once = |calls: std::collections::BTreeMap<String, usize>, what: &str| {
        assert_eq!(
            (calls.len(), calls.values().max()),
            (500, Some(&1)),
            "{what}: {:?}",
            calls.iter().max_by_key(|call| call.1)
        );
    };
    once(stand.counter.calls("create"), "creations");
    stand.counter.forget();
    stand
        .sql()
        .await
        .batch_execute("UPDATE waha_sessions SET desired = 'stopped', reconcile_at = now()")
        .await
        .unwrap();
    stand.app.wake.sessions.notify_one();
    all("all to be stopped", "stopped").await;
    stand.settled().await;
    let calls = stand.counter.calls("POST");
    assert!(calls.keys().all(|call| call.ends_with("/stop")));
    once(calls, "stops");
    for node in nodes {
        node.stop().await;
    }
}
