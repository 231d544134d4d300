//! What happens around messages, what can be asked about it, and messages of old times.

use std::time::Duration;

use serde_json::{Value, json};
use switchboard::domain::clock::Clock;
use switchboard::simulator::{
    CallEnd, Engine, History, Label, Membership, Naming, Presence, SimulatorConfig, WebhookFaults, Writing,
};

use super::{Bench, config};
use crate::support::eventually;

const ANN: &str = "15550101234";
const ANN_ID: &str = "15550101234@c.us";
const GROUP: &str = "120363000000000001@g.us";

async fn payload(bench: &Bench, event: &str) -> Value {
    bench.receiver.wait(event, |hook| hook.event() == event).await.body["payload"].clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_calls_labels_and_presences_are_told() {
    let bench = Bench::start(Engine::Gows).await;
    bench.working("main").await;
    let control = bench.simulator.control();
    control.group_joined("main", GROUP, "Tea", &[ANN]).unwrap();
    let joined = payload(&bench, "group.v2.join").await;
    assert_eq!((&joined["group"]["id"], &joined["group"]["subject"]), (&json!(GROUP), &json!("Tea")));
    let ann = json!({"id": "9815550101234@lid", "pn": ANN_ID, "role": "superadmin"});
    assert!(joined["group"]["participants"].as_array().unwrap().contains(&ann));
    control.group_named("main", GROUP, "Coffee").unwrap();
    assert_eq!(payload(&bench, "group.v2.update").await["group"], json!({"id": GROUP, "subject": "Coffee"}));
    control.group_members("main", GROUP, Membership::Join, &["15550105555"]).unwrap();
    let change = payload(&bench, "group.v2.participants").await;
    assert_eq!((&change["type"], &change["participants"][0]["pn"]), (&json!("join"), &json!("15550105555@c.us")));
    let count: Value = bench.get("/api/main/groups/count").await.json().await.unwrap();
    assert_eq!(count["count"], 1);
    let people: Value = bench.get(&format!("/api/main/groups/{GROUP}/participants/v2")).await.json().await.unwrap();
    assert_eq!(people.as_array().unwrap().len(), 3);
    let groups: Value = bench.get("/api/main/groups").await.json().await.unwrap();
    assert_eq!(groups[0]["Name"], "Coffee");
    assert_eq!(bench.get("/api/main/groups/1%40g.us").await.status(), 404);
    control.group_left("main", GROUP).unwrap();
    assert_eq!(payload(&bench, "group.v2.leave").await["group"]["id"], GROUP);

    let call = control.call("main", ANN, true).unwrap();
    let received = payload(&bench, "call.received").await;
    assert_eq!(
        (&received["id"], &received["isVideo"], &received["from"]),
        (&json!(call), &json!(true), &json!(ANN_ID))
    );
    control.call_ended("main", &call, ANN, CallEnd::Accepted).unwrap();
    assert_eq!(payload(&bench, "call.accepted").await["id"], json!(call));
    let body = json!({"from": ANN_ID, "id": call});
    assert_eq!(bench.post("/api/main/calls/reject", &body).await.status(), 201);
    assert_eq!(payload(&bench, "call.rejected").await["id"], json!(call));
    assert_eq!(control.ledger().calls_of("main", "call-reject").len(), 1);

    let label = Label { id: "1".to_owned(), name: "Lead".to_owned(), color: 0 };
    let shown = json!({"id": "1", "name": "Lead", "color": 0, "colorHex": "#ff9485"});
    control.label("main", label).unwrap();
    assert_eq!(payload(&bench, "label.upsert").await, shown);
    control.label_chat("main", "1", ANN, true).unwrap();
    let added = payload(&bench, "label.chat.added").await;
    assert_eq!(added, json!({"labelId": "1", "chatId": ANN_ID, "label": shown}));
    control.label_deleted("main", "1").unwrap();
    assert_eq!(payload(&bench, "label.deleted").await, shown);

    control.presence("main", ANN, None, Presence::Typing).unwrap();
    let presence = payload(&bench, "presence.update").await;
    assert_eq!(presence["presences"][0]["lastKnownPresence"], "typing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn browsers_tell_less() {
    let bench = Bench::start(Engine::Webjs).await;
    bench.working("main").await;
    let control = bench.simulator.control();
    let call = control.call("main", ANN, false).unwrap();
    control.call_ended("main", &call, ANN, CallEnd::Accepted).unwrap();
    control.call_ended("main", &call, ANN, CallEnd::Rejected).unwrap();
    control.label("main", Label { id: "1".to_owned(), name: "Lead".to_owned(), color: 0 }).unwrap();
    control.write("main", ANN, Writing::text("last").id("LAST")).unwrap();
    payload(&bench, "message").await;
    payload(&bench, "call.received").await;
    let names: Vec<String> = bench.receiver.seen().iter().map(|hook| hook.event().to_owned()).collect();
    for name in ["call.accepted", "call.rejected", "label.upsert"] {
        assert!(!names.iter().any(|seen| seen == name), "{name}");
    }
    bench.post("/api/main/calls/reject", &json!({"from": ANN_ID, "id": call})).await;
    payload(&bench, "call.rejected").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hidden_ids_are_null_until_they_are_learnt() {
    let bench = Bench::start(Engine::Noweb).await;
    bench.working("main").await;
    let control = bench.simulator.control();
    control.write("main", ANN, Writing::text("hi").named(Naming::LID)).unwrap();
    let ask = async |path: &str| bench.get(path).await.json::<Value>().await.unwrap();
    control.lid_learnt(ANN, false);
    assert_eq!(ask("/api/main/lids/9815550101234%40lid").await, json!({"lid": "9815550101234@lid", "pn": null}));
    assert_eq!(ask("/api/main/lids/pn/15550101234").await, json!({"lid": null, "pn": ANN_ID}));
    assert_eq!((ask("/api/main/lids").await, ask("/api/main/lids/count").await), (json!([]), json!({"count": 0})));
    control.lid_learnt(ANN, true);
    assert_eq!(ask("/api/main/lids/9815550101234%40lid").await["pn"], ANN_ID);
    assert_eq!(ask("/api/main/lids/count").await, json!({"count": 1}));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reading_back_shows_both_sides_and_what_became_of_them() {
    for engine in [Engine::Noweb, Engine::Gows] {
        let bench = Bench::start(engine).await;
        bench.working("main").await;
        let control = bench.simulator.control();
        control.write("main", ANN, Writing::text("first").id("EDITED")).unwrap();
        control.write("main", ANN, Writing::text("gone").id("GONE")).unwrap();
        control.write("main", ANN, Writing::text("mine").by_phone().id("MINE")).unwrap();
        control.write("main", "15550105555", Writing::text("other").id("OTHER")).unwrap();
        control.edit("main", "EDITED", "second").unwrap();
        control.revoke("main", "GONE").unwrap();
        control.react("main", "MINE", Some(ANN), "❤️").unwrap();
        let read = async |path: &str| bench.get(path).await.json::<Vec<Value>>().await.unwrap();
        let all = read("/api/main/chats/all/messages?downloadMedia=false&sortOrder=asc").await;
        let id = |message: &Value| message["id"].as_str().unwrap().rsplit('_').next().unwrap().to_owned();
        let ids: Vec<String> = all.iter().map(id).collect();
        assert_eq!(ids, ["EDITED", "GONE", "MINE", "OTHER"]);
        assert_eq!((&all[0]["body"], &all[1]["body"]), (&json!("second"), &Value::Null));
        assert_eq!((&all[2]["fromMe"], &all[2]["source"]), (&json!(true), &json!("app")));
        if engine == Engine::Noweb {
            assert_eq!(all[1]["_data"]["messageStubType"], 1);
            let reaction = &all[2]["_data"]["reactions"][0];
            assert_eq!((&reaction["text"], &reaction["key"]["fromMe"]), (&json!("❤️"), &json!(false)));
            assert!(reaction["senderTimestampMs"].is_i64());
        } else {
            assert_eq!((&all[1]["_data"]["IsRevoked"], &all[1]["_data"]["Message"]), (&json!(true), &json!({})));
        }
        let own = read("/api/main/chats/all/messages?filter.fromMe=true").await;
        assert_eq!(own.iter().map(id).collect::<Vec<_>>(), ["MINE"]);
        let page = read("/api/main/chats/9815550101234%40lid/messages?limit=1&offset=1").await;
        assert_eq!(page.iter().map(id).collect::<Vec<_>>(), ["GONE"]);
        let overview = read("/api/main/chats/overview").await;
        let chats: Vec<&str> = overview.iter().map(|row| row["id"].as_str().unwrap()).collect();
        assert_eq!(chats, ["15550105555@c.us", ANN_ID]);
        assert_eq!(overview[1]["lastMessage"]["body"], "mine");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_messages_are_found_and_told_in_a_burst() {
    let bench = Bench::start(Engine::Gows).await;
    bench.working("main").await;
    let control = bench.simulator.control();
    control.write("main", ANN, Writing::text("new").id("NEW")).unwrap();
    let since = "2026-01-01T00:00:00Z".parse().unwrap();
    let silent = History { chats: 3, count: 30, since, by_phone_every: 5, told_at_once: 0 };
    let ids = control.history("main", &silent).unwrap().told().await;
    assert_eq!(ids.len(), 30);
    let told = History { told_at_once: 4, count: 50, ..silent };
    let ids = control.history("main", &told).unwrap().told().await;
    let any = |hook: &&super::receiver::Hook| hook.event() == "message.any";
    let seen = bench.receiver.seen();
    let bodies = seen.iter().filter(any).filter(|hook| hook.body["payload"]["body"] != "new").count();
    assert_eq!((bodies, ids.len()), (50, 50));

    let truth = control.conversation("main").unwrap();
    assert_eq!((truth.chats.len(), truth.messages().count()), (4, 81));
    let newest: Value = bench.get("/api/main/chats/all/messages?limit=1").await.json().await.unwrap();
    let oldest: Value = bench.get("/api/main/chats/all/messages?limit=1&sortOrder=asc").await.json().await.unwrap();
    assert_eq!(oldest[0]["body"], "history 0");
    assert!(newest[0]["timestamp"].as_i64() > oldest[0]["timestamp"].as_i64());
    assert_eq!(oldest[0]["timestamp"], 1_767_225_600);
    let old: Value =
        bench.get("/api/main/chats/all/messages?filter.timestamp.lte=1767225600&limit=100").await.json().await.unwrap();
    assert_eq!(old.as_array().unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn webhooks_come_late_and_out_of_order_on_the_moved_clock() {
    let clock = Clock::manual("2026-03-01T12:00:00Z".parse().unwrap());
    let bench =
        Bench::start_with(SimulatorConfig { engine: Engine::Noweb, time_scale: 2.0, clock: clock.clone(), ..config() })
            .await;
    bench.fleet(&["main"]).await;
    let control = bench.simulator.control();
    let faults = WebhookFaults {
        events: vec!["message".to_owned()],
        late: 1.0,
        late_min_s: 600,
        late_max_s: 600,
        ..WebhookFaults::default()
    };
    control.webhook_faults(faults);
    control.write("main", ANN, Writing::text("late").id("LATE")).unwrap();
    let any = bench.receiver.wait("at once", |hook| hook.event() == "message.any").await;
    clock.advance(Duration::from_secs(299));
    control.write("main", ANN, Writing::text("another").id("ANOTHER")).unwrap();
    bench.receiver.wait_for("at once, too", 2, |hook| hook.event() == "message.any").await;
    assert!(bench.receiver.seen().iter().all(|hook| hook.event() != "message"));
    clock.advance(Duration::from_secs(1));
    let late = bench.receiver.wait("late", |hook| hook.event() == "message").await;
    assert_eq!((&late.body["id"], &late.body["timestamp"]), (&any.body["id"], &any.body["timestamp"]));

    control.webhook_faults(WebhookFaults { reorder_ms: 60_000, ..WebhookFaults::default() });
    for n in 0..30 {
        control.write("main", ANN, Writing::text("shuffled").id(&format!("S{n:02}"))).unwrap();
    }
    let shuffled =
        |hook: &super::receiver::Hook| hook.event() == "message.any" && hook.body["payload"]["body"] == "shuffled";
    eventually(Duration::from_secs(20), "all of them", async || {
        clock.advance(Duration::from_secs(1));
        (bench.receiver.seen().iter().filter(|hook| shuffled(hook)).count() >= 30).then_some(())
    })
    .await;
    let seen = bench.receiver.wait_for("shuffled", 30, shuffled).await;
    let ids: Vec<&str> = seen.iter().map(|hook| hook.body["payload"]["id"].as_str().unwrap()).collect();
    assert!(!ids.is_sorted(), "{ids:?}");
}
