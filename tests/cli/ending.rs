//! SIGTERM: a process ends within its drain time, and loses nothing.

use std::time::{Duration, Instant};

use reqwest::StatusCode;
use serde_json::json;
use switchboard::simulator::{Fault, FaultRule};
use tokio::io::AsyncWriteExt;

use crate::support::world::text;
use crate::support::{World, eventually, free_port};

use super::PATIENCE;

const ALL: &str = "api,dispatch,send,ingest,deliver";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_ends_within_its_drain_time_and_loses_nothing() {
    const SESSIONS: usize = 4;
    let world = World::new().await;
    let port = free_port();
    let mut node = world.process(port, ALL, |_| {}).await;
    let tenant = world.tenant(&node.base, "one").await;
    let mut sessions = Vec::new();
    for n in 0..SESSIONS {
        sessions.push(tenant.session(&format!("s{n}")).await);
    }
    world.simulator.control().add_fault(FaultRule::always("sendText", Fault::DelayMs(50)));
    // Somebody with an open connection and half a request, who never goes on.
    let mut idle = tokio::net::TcpStream::connect(node.base.trim_start_matches("http://")).await.unwrap();
    idle.write_all(b"POST /v1/messages HTTP/1.1\r\nhost: x\r\n").await.unwrap();

    let mut expected = vec![Vec::new(); SESSIONS];
    let sending = async {
        for n in 0.. {
            for (number, (session, _)) in sessions.iter().enumerate() {
                let body = json!({"session_id": session, "to": "+15550101234", "body": format!("{number}-{n}")});
                let request = tenant.request(reqwest::Method::POST, "/v1/messages").json(&body);
                match request.send().await.map(|response| response.status()) {
                    Ok(StatusCode::ACCEPTED) => expected[number].push(format!("{number}-{n}")),
                    Ok(StatusCode::SERVICE_UNAVAILABLE) | Err(_) => return,
                    Ok(other) => panic!("{other}"),
                }
            }
        }
    };
    let ending = async {
        let moving = world.simulator.control().ledger_when(|ledger| ledger.entries.len() > 20);
        tokio::time::timeout(PATIENCE, moving).await.expect("messages to leave");
        let began = Instant::now();
        let status = node.process.terminate(PATIENCE).await;
        (status, began.elapsed())
    };
    let ((), (status, took)) = tokio::join!(sending, ending);
    assert_eq!(status.code(), Some(0), "{}", node.process.output());
    // SWITCHBOARD_DRAIN_MS is 5 s.
    assert!(took < Duration::from_secs(7), "{took:?}\n{}", node.process.output());
    drop(idle);
    let total: usize = expected.iter().map(Vec::len).sum();
    assert!(total > 20, "{total}");

    let next = world.process(port, ALL, |_| {}).await;
    let all = world.simulator.control().ledger_when(|ledger| ledger.entries.len() >= total);
    let ledger = tokio::time::timeout(PATIENCE, all).await.expect("all to arrive");
    let tenant = tenant.at(&next.base);
    for (number, (session, external)) in sessions.iter().enumerate() {
        // An answer may have been lost on its way; its message then comes behind the others.
        let texts = ledger.texts(external);
        assert_eq!(texts[..expected[number].len()], expected[number][..], "once, and in order");
        assert!(texts.len() <= expected[number].len() + 1);
        let path = format!("/v1/messages?session_id={session}&limit=1");
        let last = tenant.get(&path).await.expect(StatusCode::OK);
        tenant.message_with(text(&last["data"][0], "id"), "read").await;
    }
    assert!(ledger.overlaps().is_empty(), "never two of a session at a time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_attempt_and_client_hang_still_ends() {
    let world = World::new().await;
    let port = free_port();
    let mut node = world
        .process(port, ALL, |settings| {
            settings.insert("SWITCHBOARD_DRAIN_MS".to_owned(), "1500".to_owned());
        })
        .await;
    let tenant = world.tenant(&node.base, "one").await;
    let (session, external) = tenant.session("only").await;
    world.simulator.control().add_fault(FaultRule::always("sendText", Fault::DelayMs(60_000)).times(1));
    let message = tenant.send_text(&session, "+15550101234", "held").await;
    eventually(PATIENCE, "the attempt to hang", async || {
        (!world.simulator.control().ledger().posts.is_empty()).then_some(())
    })
    .await;
    // And a client that announced a body and does not send it.
    let mut idle = tokio::net::TcpStream::connect(node.base.trim_start_matches("http://")).await.unwrap();
    let head = format!(
        "POST /v1/messages HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\n\
         content-length: 100\r\n\r\n{{",
        tenant.key
    );
    idle.write_all(head.as_bytes()).await.unwrap();
    let began = Instant::now();
    let status = node.process.terminate(PATIENCE).await;
    assert_eq!(status.code(), Some(0), "{}", node.process.output());
    // The drain time is 1.5 s.
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}\n{}", began.elapsed(), node.process.output());

    let next = world.process(port, ALL, |_| {}).await;
    tenant.at(&next.base).message_with(text(&message, "id"), "read").await;
    assert_eq!(world.simulator.control().ledger().texts(&external), ["held"]);
}
