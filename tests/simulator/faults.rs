//! Each fault: what the caller hears, and whether the recipient has the message.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use switchboard::simulator::{Engine, Fault, FaultRule};

use super::Bench;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_lie_or_tell_the_truth_as_asked() {
    let bench = Bench::start(Engine::Noweb).await;
    bench.working("main").await;
    let control = bench.simulator.control();
    let cases = [
        (Fault::State422, 422, 0),
        (Fault::Missing422, 422, 0),
        (Fault::Unauthorized401, 401, 0),
        (Fault::NotFound404, 404, 0),
        (Fault::BadRequest400, 400, 0),
        (Fault::TooMany429, 429, 0),
        (Fault::Error500Before, 500, 0),
        (Fault::Error500After, 500, 1),
        (Fault::Refused463, 500, 0),
        (Fault::BadGateway502, 502, 0),
        (Fault::BadGateway502After, 502, 1),
        (Fault::Unavailable503, 503, 0),
        (Fault::GatewayTimeout504, 504, 1),
        (Fault::DelayMs(50), 201, 1),
        (Fault::ForeignId, 201, 1),
        (Fault::NoId, 201, 1),
        (Fault::Swallowed, 201, 0),
    ];
    for (fault, status, bubbles) in cases {
        control.fault_once("sendText", fault);
        let text = format!("{fault:?}");
        let begun = Instant::now();
        let answer = bench.send("main", "15550101234", &text, "3EB0REQUESTED").await;
        assert_eq!(answer.status(), status, "{fault:?}");
        let body = answer.text().await.unwrap();
        // A repeat of the id would be absorbed, so each case starts over.
        assert_eq!(control.ledger().bubbles(&text), bubbles, "{fault:?}");
        assert_eq!(control.ledger().posts.len(), 1);
        let names_the_id = serde_json::from_str::<Value>(&body).is_ok_and(|body| body["key"]["id"] == "3EB0REQUESTED");
        match fault {
            Fault::ForeignId | Fault::NoId => assert!(!names_the_id, "{body}"),
            Fault::DelayMs(_) => assert!(names_the_id && begun.elapsed() >= Duration::from_millis(50)),
            Fault::GatewayTimeout504 => assert!(body.starts_with("<html>")),
            _ => {}
        }
        control.clear_ledger();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_break_and_hang_as_asked() {
    let bench = Bench::start(Engine::Noweb).await;
    bench.working("main").await;
    let control = bench.simulator.control();
    let cases = [
        (Fault::ResetBefore, 0),
        (Fault::ResetAfterSend, 1),
        (Fault::HalfResponse, 1),
        (Fault::HangWithoutSend, 0),
        (Fault::HangAfterSend, 1),
    ];
    for (fault, bubbles) in cases {
        control.fault_once("sendText", fault);
        let text = format!("{fault:?}");
        let body = json!({"session": "main", "chatId": "15550101234@c.us", "text": text});
        let request =
            bench.request(reqwest::Method::POST, "/api/sendText").json(&body).timeout(Duration::from_millis(300));
        let heard = async { request.send().await?.bytes().await }.await;
        let error = heard.unwrap_err();
        let hangs = matches!(fault, Fault::HangWithoutSend | Fault::HangAfterSend);
        assert_eq!(error.is_timeout(), hangs, "{fault:?}: {error:?}");
        let ledger = control.ledger();
        assert_eq!(ledger.bubbles(&text), bubbles, "{fault:?}");
        assert_eq!(ledger.posts.last().unwrap().status, None);
    }
    // The connection after a broken one is as good as ever.
    assert_eq!(bench.send("main", "15550101234", "fine", "").await.status(), 201);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hang_up_while_waiting_does_not_unsend() {
    let bench = Bench::start(Engine::Noweb).await;
    bench.create("main").await;
    bench.post("/api/sessions/main/start", &Value::Null).await;
    bench.receiver.wait("a code", |hook| hook.status() == Some("SCAN_QR_CODE")).await;
    let body = json!({"session": "main", "chatId": "15550101234@c.us", "text": "late"});
    let request = bench.request(reqwest::Method::POST, "/api/sendText").json(&body).timeout(Duration::from_millis(30));
    assert!(request.send().await.unwrap_err().is_timeout());
    bench.simulator.control().scan("main").unwrap();
    bench.receiver.wait("the message", |hook| hook.body["payload"]["body"] == "late").await;
    assert_eq!(bench.simulator.control().ledger().bubbles("late"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_choose_sessions_and_calls() {
    let bench = Bench::start(Engine::Noweb).await;
    bench.working("one").await;
    bench.working("two").await;
    let control = bench.simulator.control();
    control.add_fault(FaultRule::always("sendText", Fault::Error500Before).for_session("one").on_call(2));
    let send = async |session: &str| bench.send(session, "15550101234", "hi", "").await.status().as_u16();
    assert_eq!((send("one").await, send("two").await), (201, 201));
    assert_eq!((send("one").await, send("one").await), (500, 201));
    control.add_fault(FaultRule::always("*", Fault::Unavailable503));
    assert_eq!(bench.get("/api/sessions").await.status(), 503);
    assert_eq!(bench.get("/ping").await.status(), 503);
    control.clear_faults();
    assert_eq!(bench.get("/ping").await.status(), 200);
}
