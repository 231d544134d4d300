//! The fates of messages, and the ledger that judges them.

use serde_json::{Value, json};
use switchboard::simulator::{Engine, SimulatorConfig};

use super::{Bench, config};

const ID: &str = "3EB0AAAAAAAAAAAAAAAAAA";

fn acks(bench: &Bench, id: &str) -> Vec<i64> {
    let mut acks: Vec<i64> = bench.receiver.seen().iter().filter_map(|hook| hook.ack_of(id)).collect();
    acks.sort_unstable();
    acks
}

/// Sends to each number with an id of its own, and one ordinary message after them; returns when that one was read.
async fn send_to(bench: &Bench, numbers: &[&str]) {
    for number in numbers {
        let sent = bench.send("main", number, "hello", &format!("3EB0{number}")).await;
        assert_eq!(sent.status(), 201, "{number}");
    }
    // The slowest life is shorter than three of these in a row.
    for last in ["3EB0LAST1", "3EB0LAST2", "3EB0LAST3"] {
        bench.send("main", "15550107777", "last", last).await;
        bench.receiver.wait("read", |hook| hook.ack_of(last) == Some(3)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_number_has_its_fate() {
    let bench = Bench::start(Engine::Noweb).await;
    bench.working("main").await;
    let numbers = [
        "15550101234",
        "15550100001",
        "15550100002",
        "15550100003",
        "15550100004",
        "15550100005",
        "15550100008",
        "15550100009",
        "447700900123",
    ];
    send_to(&bench, &numbers).await;
    let ledger = bench.simulator.control().ledger();
    let fates = [
        ("15550101234", vec![1, 2, 3], true),
        ("15550100001", vec![1, 2, 3], true),
        ("15550100002", vec![1, 2], true),
        ("15550100003", vec![], false),
        ("15550100004", vec![-1], false),
        ("15550100005", vec![1], false),
        ("15550100008", vec![], true),
        ("15550100009", vec![1, 2, 3], true),
        ("447700900123", vec![1, 2, 3], true),
    ];
    for (number, expected, seen) in fates {
        let id = format!("3EB0{number}");
        assert_eq!(acks(&bench, &id), expected, "{number}");
        assert_eq!(ledger.entry("main", &id).unwrap().seen, seen, "{number}");
    }
    let lid = bench.receiver.wait("lid", |hook| hook.ack_of("3EB015550100009").is_some()).await;
    assert_eq!(lid.body["payload"]["id"], "true_9815550100009@lid_3EB015550100009");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_talkative_number_replies_and_the_slow_one_is_slow() {
    let bench = Bench::start(Engine::Noweb).await;
    bench.working("main").await;
    bench.send("main", "15550100007", "are you there", ID).await;
    let read = bench.simulator.control().ledger_when(|ledger| ledger.entries.iter().any(|entry| entry.ack == 3)).await;
    assert_eq!(read.entries[0].text, "are you there");
    let reply = bench.receiver.wait("a reply", |hook| hook.event() == "message").await;
    assert_eq!(reply.body["payload"]["from"], "15550100007@c.us");
    assert_eq!(reply.body["payload"]["body"], "Reply to: are you there");

    let begun = std::time::Instant::now();
    assert_eq!(bench.send("main", "15550100006", "slow", "3EB0SLOW").await.status(), 201);
    assert!(begun.elapsed() >= std::time::Duration::from_millis(199));
    assert_eq!(bench.simulator.control().ledger().bubbles("slow"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_number_that_is_not_on_whatsapp_is_known_as_such() {
    let bench = Bench::start(Engine::Noweb).await;
    bench.working("main").await;
    let ask = async |path: &str| bench.get(path).await.text().await.unwrap();
    let exists = ask("/api/contacts/check-exists?session=main&phone=15550101234").await;
    assert_eq!(exists, r#"{"numberExists":true,"chatId":"15550101234@c.us"}"#);
    let missing = ask("/api/contacts/check-exists?session=main&phone=15550100005").await;
    assert_eq!(missing, r#"{"numberExists":false}"#);
    let pair: Value = serde_json::from_str(&ask("/api/main/lids/pn/15550101234").await).unwrap();
    assert_eq!(pair, json!({"lid": "9815550101234@lid", "pn": "15550101234@c.us"}));
    let unknown: Value = serde_json::from_str(&ask("/api/main/lids/pn/15550100005").await).unwrap();
    assert_eq!(unknown["lid"], Value::Null);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_id_is_one_bubble_and_two_posts() {
    let bench = Bench::start(Engine::Noweb).await;
    bench.working("main").await;
    for _ in 0..2 {
        let sent: Value = bench.send("main", "15550101234", "once", ID).await.json().await.unwrap();
        assert_eq!(sent["key"]["id"], ID);
    }
    let ledger = bench.simulator.control().ledger();
    let entry = ledger.entry("main", ID).unwrap();
    assert_eq!((ledger.entries.len(), entry.post_count, entry.posts.len()), (1, 2, 2));
    assert_eq!(ledger.bubbles("once"), 1);
    assert!(ledger.overlaps().is_empty());
    assert!(entry.posts.iter().all(|post| post.status == Some(201) && post.ended_tick > Some(post.started_tick)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_posts_at_once_are_noticed() {
    let bench = Bench::start(Engine::Noweb).await;
    bench.working("main").await;
    let slow = bench.send("main", "15550100006", "one", "3EB0ONE");
    let other = async {
        bench.receiver.wait("the slow one", |hook| hook.event() == "message.any").await;
        bench.send("main", "15550101234", "two", "3EB0TWO").await
    };
    tokio::join!(slow, other);
    let ledger = bench.simulator.control().ledger();
    assert_eq!(ledger.overlaps().len(), 1);
    assert_eq!(ledger.texts("main"), ["one", "two"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn engines_differ_in_shape_and_in_ids() {
    for engine in [Engine::Noweb, Engine::Gows, Engine::Webjs, Engine::Wpp] {
        let bench = Bench::start(engine).await;
        bench.working("main").await;
        let sent: Value = bench.send("main", "15550101234", "hi", ID).await.json().await.unwrap();
        let id = match engine {
            Engine::Noweb => sent["key"]["id"].clone(),
            Engine::Gows => sent["_data"]["Info"]["ID"].clone(),
            Engine::Webjs => sent["id"]["id"].clone(),
            Engine::Wpp => json!(sent["id"].as_str().unwrap().rsplit('_').next().unwrap()),
        };
        assert_eq!(id == ID, engine.honours_ids(), "{engine} {sent}");
        let id = id.as_str().unwrap().to_owned();
        bench.receiver.wait("read", |hook| hook.ack_of(&id) == Some(3)).await;
        let fresh = bench.get("/api/main/new-message-id").await;
        assert_eq!(fresh.status(), if engine.honours_ids() { 200 } else { 422 });
        let bare = bench.get(&format!("/api/main/chats/all/messages/{id}")).await;
        assert_eq!(bare.status(), if engine.honours_ids() { 200 } else { 404 }, "{engine}");
        let whole = format!("/api/main/chats/15550101234%40c.us/messages/true_15550101234%40c.us_{id}");
        let whole: Value = bench.get(&whole).await.json().await.unwrap();
        assert_eq!((&whole["ack"], &whole["ackName"]), (&json!(3), &json!("READ")), "{engine}");
        let refused = bench.send("main", "15550100004", "no", "3EB0NO").await;
        assert_eq!(refused.status(), if engine == Engine::Gows { 500 } else { 201 });
        if engine == Engine::Gows {
            let body: Value = refused.json().await.unwrap();
            assert_eq!(body["exception"]["message"], "2 UNKNOWN: server returned error 463");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn webjs_tells_no_acks_unless_asked() {
    let bench =
        Bench::start_with(SimulatorConfig { engine: Engine::Webjs, time_scale: 200.0, auto_pair: true, ..config() })
            .await;
    let mut session = bench.session_config();
    session["webjs"]["tagsEventsOn"] = json!(false);
    bench.post("/api/sessions", &json!({"name": "main", "config": session})).await;
    bench.simulator.control().working("main").await;
    bench.send("main", "15550100007", "hi", "").await;
    // The reply comes after the last ack.
    bench.receiver.wait("the reply", |hook| hook.event() == "message").await;
    assert!(bench.receiver.seen().iter().all(|hook| hook.event() != "message.ack"));
    assert_eq!(bench.simulator.control().ledger().entries[0].ack, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_can_be_read_back() {
    let bench = Bench::start(Engine::Noweb).await;
    bench.working("main").await;
    for n in 0..5 {
        bench.send("main", "15550101234", &format!("text {n}"), &format!("3EB0{n}")).await;
    }
    bench.simulator.control().inbound_text_as("main", "15550105555", "hello in", "3EB0IN").unwrap();
    bench.receiver.wait("inbound", |hook| hook.event() == "message").await;
    let bodies = async |path: &str| {
        let page: Vec<Value> = bench.get(path).await.json().await.unwrap();
        page.iter().map(|message| message["body"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let of_chat = "/api/main/chats/15550101234%40c.us/messages";
    assert_eq!(bodies(&format!("{of_chat}?limit=2&offset=1")).await, ["text 3", "text 2"]);
    assert_eq!(bodies(&format!("{of_chat}?sortOrder=asc&limit=1")).await, ["text 0"]);
    assert_eq!(bodies("/api/main/chats/all/messages?filter.fromMe=false").await, ["hello in"]);
    assert_eq!(bodies("/api/main/chats/all/messages?filter.timestamp.gte=9999999999").await, [""; 0]);
    assert_eq!(bodies("/api/main/chats/9815550105555%40lid/messages").await, ["hello in"]);
    let missing = bench.get("/api/main/chats/all/messages/3EB0NOPE").await;
    assert_eq!(missing.status(), 404);
    assert_eq!(
        missing.text().await.unwrap(),
        r#"{"message":"Message not found","error":"Not Found","statusCode":404}"#
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_control_endpoints_do_what_the_handle_does() {
    let bench = Bench::start(Engine::Noweb).await;
    bench.create("main").await;
    bench.post("/api/sessions/main/start", &Value::Null).await;
    assert_eq!(bench.post("/_simulator/scan", &json!({"session": "nobody"})).await.status(), 404);
    bench.receiver.wait("a code", |hook| hook.status() == Some("SCAN_QR_CODE")).await;
    assert_eq!(bench.post("/_simulator/scan", &json!({"session": "main"})).await.status(), 204);
    bench.simulator.control().working("main").await;
    let inbound = json!({"session": "main", "from": "15550105555", "text": "hi"});
    assert_eq!(bench.post("/_simulator/inbound", &inbound).await.status(), 201);
    bench.receiver.wait("inbound", |hook| hook.event() == "message").await;
    let rules = json!({"rules": [{"endpoint": "sendText", "times": 1, "fault": "bad_gateway_502"}]});
    assert_eq!(bench.post("/_simulator/faults", &rules).await.status(), 204);
    assert_eq!(bench.send("main", "15550101234", "hi", ID).await.status(), 502);
    assert_eq!(bench.send("main", "15550101234", "hi", ID).await.status(), 201);
    let ledger: Value = bench.get("/_simulator/ledger?session=main").await.json().await.unwrap();
    assert_eq!((ledger["entries"].as_array().unwrap().len(), ledger["posts"].as_array().unwrap().len()), (1, 2));
    assert_eq!(ledger["posts"][0]["status"], 502);
    let sessions: Value = bench.get("/_simulator/sessions").await.json().await.unwrap();
    assert_eq!(sessions[0]["status"], "WORKING");
    assert_eq!(bench.post("/_simulator/phone-logout", &json!({"session": "main"})).await.status(), 204);
    assert_eq!(bench.post("/_simulator/restart", &Value::Null).await.status(), 204);
    assert_eq!(bench.post("/_simulator/faults", &json!({"rule": []})).await.status(), 400);
}
