//! What WhatsApp itself refuses, loses or never acknowledges.

use serde_json::{Value, json};
use switchboard::simulator::{Capping, Engine, Fault, FaultRule, Timelock};

use super::Bench;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_a_timelock_cold_messages_are_refused_and_replies_flow() {
    for engine in [Engine::Noweb, Engine::Gows] {
        let bench = Bench::start(engine).await;
        bench.working("main").await;
        let control = bench.simulator.control();
        bench.send("main", "15550101111", "before", "3EB0BEFORE").await;
        control.inbound_text_as("main", "15550102222", "hi", "3EB0IN").unwrap();
        bench.receiver.wait("inbound", |hook| hook.event() == "message").await;
        control.timelock("main", Some(Timelock { until: 1_900_000_000 })).unwrap();
        let told = bench.receiver.wait("the lock", |hook| hook.body["payload"]["data"].is_object()).await;
        assert_eq!(told.body["payload"]["data"]["reachoutTimelock"]["timeEnforcementEnds"], 1_900_000_000);
        let info: Value = bench.get("/api/sessions/main").await.json().await.unwrap();
        assert_eq!(info["me"]["reachoutTimelock"]["isActive"], true);

        let cold = bench.send("main", "15550103333", "cold", "3EB0COLD").await;
        if engine == Engine::Gows {
            assert_eq!(cold.status(), 500);
            assert!(cold.text().await.unwrap().contains("server returned error 463"));
        } else {
            assert_eq!(cold.status(), 201);
            let refused = bench.receiver.wait("ack -1", |hook| hook.ack_of("3EB0COLD") == Some(-1)).await;
            assert_eq!(refused.body["payload"]["error"]["code"], 463);
        }
        for (number, id) in [("15550101111", "3EB0WARM1"), ("15550102222", "3EB0WARM2")] {
            assert_eq!(bench.send("main", number, "warm", id).await.status(), 201);
            bench.receiver.wait("read", |hook| hook.ack_of(id) == Some(3)).await;
        }
        assert_eq!(control.ledger().bubbles("cold"), 0);
        control.timelock("main", None).unwrap();
        assert_eq!(bench.send("main", "15550104444", "later", "3EB0LATER").await.status(), 201);
        bench.receiver.wait("read", |hook| hook.ack_of("3EB0LATER") == Some(3)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quota_of_new_chats_is_counted_and_kept() {
    let bench = Bench::start(Engine::Gows).await;
    bench.working("main").await;
    let quota = Capping { total: 2, used: 0, cycle_start: 1, cycle_end: 2 };
    bench.simulator.control().capping("main", Some(quota)).unwrap();
    let send = async |number: &str| bench.send("main", number, "hi", "").await.status().as_u16();
    assert_eq!((send("15550101111").await, send("15550101111").await), (201, 201));
    assert_eq!((send("15550102222").await, send("15550103333").await), (201, 500));
    assert_eq!(send("15550101111").await, 201);
    let capping: Value = bench.get("/api/main/capping").await.json().await.unwrap();
    assert_eq!((&capping["cappingStatus"], &capping["usedQuota"]), (&json!("CAPPED"), &json!(2)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn numbers_have_variants() {
    let bench = Bench::start(Engine::Noweb).await;
    bench.working("main").await;
    bench.simulator.control().number("4915550000000", None);
    bench.simulator.control().number("525515550000", Some("5215515550000"));
    let ask = async |phone: &str| {
        let answer = bench.get(&format!("/api/contacts/check-exists?session=main&phone={phone}")).await;
        answer.json::<Value>().await.unwrap()["chatId"].as_str().map(str::to_owned)
    };
    assert_eq!(ask("5511955550142").await.as_deref(), Some("551155550142@c.us"));
    assert_eq!(ask("551155550142").await.as_deref(), Some("551155550142@c.us"));
    assert_eq!(ask("4915550000000").await, None);
    assert_eq!(ask("525515550000").await.as_deref(), Some("5215515550000@c.us"));
    for (number, seen) in
        [("5511955550142", 0), ("551155550142", 1), ("4915550000000", 0), ("525515550000", 0), ("5215515550000", 1)]
    {
        assert_eq!(bench.send("main", number, number, "").await.status(), 201);
        assert_eq!(bench.simulator.control().ledger().bubbles(number), seen, "{number}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn some_faults_last_until_the_session_is_restarted() {
    let bench = Bench::start(Engine::Gows).await;
    bench.working("main").await;
    bench.working("other").await;
    let control = bench.simulator.control();
    control.add_fault(FaultRule::always("sendText", Fault::Refused400).until_restart());
    control.add_fault(FaultRule::always("sendImage", Fault::Swallowed).until_restart());
    let send = async |session: &str| bench.send(session, "15550101234", "hi", "").await.status().as_u16();
    assert_eq!((send("main").await, send("other").await), (500, 500));
    let image = json!({"session": "main", "chatId": "15550101234@c.us", "caption": "pic", "id": "3EB0PIC",
                       "file": {"mimetype": "image/png", "data": "aGk="}});
    assert_eq!(bench.post("/api/sendImage", &image).await.status(), 201);
    assert_eq!(control.ledger().bubbles("pic"), 0);
    control.flap("main").unwrap();
    control.working("main").await;
    assert_eq!(send("main").await, 500, "a reconnect is no restart");
    bench.post("/api/sessions/main/restart", &Value::Null).await;
    control.working("main").await;
    assert_eq!((send("main").await, send("other").await), (201, 500));
    assert_eq!(bench.post("/api/sendImage", &image).await.status(), 201);
    let ledger = control.ledger();
    assert_eq!((ledger.bubbles("pic"), ledger.entry("main", "3EB0PIC").unwrap().post_count), (1, 2));
    bench.receiver.wait("read", |hook| hook.ack_of("3EB0PIC") == Some(3)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acks_stick_fail_and_skip_as_asked() {
    let bench = Bench::start(Engine::Noweb).await;
    bench.working("main").await;
    let control = bench.simulator.control();
    let cases = [
        (Fault::StuckAfterSend, 1, vec![]),
        (Fault::StuckWithoutSend, 0, vec![]),
        (Fault::AckError, 0, vec![-1]),
        (Fault::AckErrorLate, 1, vec![-1, 1]),
        (Fault::AckReadOnly, 1, vec![3]),
    ];
    for (fault, bubbles, _) in &cases {
        let text = format!("{fault:?}");
        control.fault_once("sendText", *fault);
        assert_eq!(bench.send("main", "15550101234", &text, &text).await.status(), 201);
        assert_eq!(control.ledger().bubbles(&text), *bubbles, "{fault:?}");
    }
    for last in ["3EB0LAST1", "3EB0LAST2", "3EB0LAST3"] {
        bench.send("main", "15550107777", "last", last).await;
        bench.receiver.wait("read", |hook| hook.ack_of(last) == Some(3)).await;
    }
    for (fault, _, expected) in &cases {
        let mut acks: Vec<i64> =
            bench.receiver.seen().iter().filter_map(|hook| hook.ack_of(&format!("{fault:?}"))).collect();
        acks.sort_unstable();
        assert_eq!(acks, *expected, "{fault:?}");
    }
    // Sent again with the same id, what reached nobody arrives, and what arrived does not again.
    for (text, bubbles) in [("StuckAfterSend", 1), ("StuckWithoutSend", 1)] {
        bench.send("main", "15550101234", text, text).await;
        assert_eq!(control.ledger().bubbles(text), bubbles, "{text}");
    }
    let ledger = control.ledger();
    assert_eq!(ledger.texts("main").last().copied(), Some("StuckWithoutSend"), "it appears when it arrives");
    control.repeats_show(true);
    bench.send("main", "15550101234", "StuckAfterSend", "StuckAfterSend").await;
    assert_eq!(control.ledger().bubbles("StuckAfterSend"), 2);
}
