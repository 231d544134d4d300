//! Every kind of message as its recipient has it, and what can be done to it afterwards.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use switchboard::simulator::{Engine, LedgerEntry};

use super::{Bench, serve_file};

const CHAT: &str = "15550101234@c.us";

async fn send(bench: &Bench, endpoint: &str, id: &str, rest: Value) -> u16 {
    let mut body = json!({"session": "main", "chatId": CHAT, "id": id});
    body.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
    bench.post(&format!("/api/{endpoint}"), &body).await.status().as_u16()
}

fn entry(bench: &Bench, id: &str) -> LedgerEntry {
    bench.simulator.control().ledger().entry("main", id).unwrap().clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_are_fetched_and_hashed() {
    let bench = Bench::start(Engine::Gows).await;
    bench.working("main").await;
    let bytes: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
    let url = serve_file(bytes.clone(), "video/mp4").await;
    let file = json!({"mimetype": "video/mp4", "filename": "a.mp4", "url": url});
    assert_eq!(
        send(&bench, "sendVideo", "3EB0URL", json!({"file": file, "caption": "look", "convert": true})).await,
        201
    );
    let seen = entry(&bench, "3EB0URL");
    let got = seen.file.unwrap();
    assert_eq!((got.size, got.sha256), (1_200_000, hex::encode(Sha256::digest(&bytes))));
    assert_eq!((got.mimetype.as_deref(), got.served_as.as_deref()), (Some("video/mp4"), Some("video/mp4")));
    assert_eq!((seen.kind, seen.text.as_str(), &seen.details), ("video", "look", &json!({"convert": true})));

    let inline = json!({"mimetype": "image/png", "filename": "a.png", "data": "aGk="});
    assert_eq!(send(&bench, "sendImage", "3EB0DATA", json!({"file": inline})).await, 201);
    let got = entry(&bench, "3EB0DATA").file.unwrap();
    assert_eq!((got.size, got.sha256), (2, hex::encode(Sha256::digest(b"hi"))));

    let gone = json!({"mimetype": "image/png", "url": format!("{url}/gone")});
    assert_eq!(send(&bench, "sendImage", "3EB0GONE", json!({"file": gone})).await, 500);
    let ledger = bench.simulator.control().ledger();
    assert!(ledger.entry("main", "3EB0GONE").is_none());
    assert_eq!(ledger.posts.len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn places_cards_polls_answers_and_forwards_keep_what_they_say() {
    let bench = Bench::start(Engine::Noweb).await;
    bench.working("main").await;
    let poll = json!({"name": "tea?", "options": ["yes", "no"], "multipleAnswers": false});
    send(&bench, "sendPoll", "3EB0POLL", json!({"poll": poll})).await;
    send(&bench, "sendLocation", "3EB0PLACE", json!({"latitude": 1.5, "longitude": -2.0, "title": "here"})).await;
    let card = json!([{"fullName": "Ann", "phoneNumber": "+15550101111"}]);
    send(&bench, "sendContactVcard", "3EB0CARD", json!({"contacts": card})).await;
    let answer =
        json!({"text": "hi @15550105555", "reply_to": "false_15550101234@c.us_AAA", "mentions": ["15550105555@c.us"]});
    send(&bench, "sendText", "3EB0TEXT", answer).await;
    send(&bench, "forwardMessage", "3EB0FWD", json!({"messageId": format!("true_{CHAT}_3EB0POLL")})).await;
    assert_eq!(entry(&bench, "3EB0POLL").details["poll"], poll);
    let place = entry(&bench, "3EB0PLACE");
    assert_eq!((place.kind, place.text.as_str(), &place.details["longitude"]), ("location", "here", &json!(-2.0)));
    assert_eq!(entry(&bench, "3EB0CARD").details["contacts"], card);
    let text = entry(&bench, "3EB0TEXT");
    assert_eq!(text.details["reply_to"], "false_15550101234@c.us_AAA");
    assert_eq!(text.details["mentions"], json!(["15550105555@c.us"]));
    let forwarded = entry(&bench, "3EB0FWD");
    assert_eq!((forwarded.kind, &forwarded.details["forwarded"]), ("poll", &json!(true)));
    let order: Vec<String> =
        bench.simulator.control().ledger().chat("main", CHAT).iter().map(|entry| entry.id.clone()).collect();
    assert_eq!(order, ["3EB0POLL", "3EB0PLACE", "3EB0CARD", "3EB0TEXT", "3EB0FWD"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn edits_revocations_reactions_and_gestures_are_put_down() {
    let bench = Bench::start(Engine::Noweb).await;
    bench.working("main").await;
    bench.simulator.control().inbound_text_as("main", "15550101234", "hello", "3EB0IN").unwrap();
    bench.receiver.wait("inbound", |hook| hook.event() == "message").await;
    bench.post("/api/startTyping", &json!({"session": "main", "chatId": CHAT})).await;
    bench.post("/api/stopTyping", &json!({"session": "main", "chatId": CHAT})).await;
    bench.send("main", "15550101234", "one", "3EB0ONE").await;
    bench.send("main", "15550101234", "two", "3EB0TWO").await;
    let path = |id: &str| format!("/api/main/chats/15550101234%40c.us/messages/true_15550101234%40c.us_{id}");
    let edit = bench.request(reqwest::Method::PUT, &path("3EB0ONE")).json(&json!({"text": "uno"}));
    assert_eq!(edit.send().await.unwrap().status(), 200);
    assert_eq!(bench.request(reqwest::Method::DELETE, &path("3EB0TWO")).send().await.unwrap().status(), 200);
    let react = async |emoji: &str| {
        let body = json!({"session": "main", "messageId": format!("false_{CHAT}_3EB0IN"), "reaction": emoji});
        bench.request(reqwest::Method::PUT, "/api/reaction").json(&body).send().await.unwrap();
        bench.simulator.control().ledger().received("main", "3EB0IN").unwrap().reaction.clone()
    };
    assert_eq!((react("👍").await, react("").await), ("👍".to_owned(), String::new()));
    bench.post("/api/sendSeen", &json!({"session": "main", "chatId": CHAT})).await;
    bench.get("/api/contacts/check-exists?session=main&phone=15550101234").await;

    let ledger = bench.simulator.control().ledger();
    let (one, two) = (ledger.entry("main", "3EB0ONE").unwrap(), ledger.entry("main", "3EB0TWO").unwrap());
    assert_eq!((one.text.as_str(), one.edited, one.revoked), ("uno", true, false));
    assert_eq!((two.text.as_str(), two.edited, two.revoked), ("two", false, true));
    assert!(ledger.received("main", "3EB0IN").unwrap().read);
    assert!(ledger.typed_before(ledger.posts_saying("one")[0]).is_some(), "typing was shown before the first");
    assert!(ledger.typed_before(ledger.posts_saying("two")[0]).is_none());
    for (call, times) in [("edit", 1), ("revoke", 1), ("reaction", 2), ("sendSeen", 1), ("check-exists", 1)] {
        assert_eq!(ledger.calls_of("main", call).len(), times, "{call}");
    }
    assert_eq!(ledger.calls_of("main", "check-exists")[0].requested_id.as_deref(), Some("15550101234"));
    let life: Vec<&str> = ledger.lifecycle("main").iter().map(|call| call.endpoint).collect();
    assert_eq!(life, ["create", "start"]);
    assert!(ledger.calls.iter().all(|call| call.status.is_some()));
}
