//! Files that come with messages: where they are, for how long, and what can go wrong.

use std::time::Duration;

use serde_json::{Value, json};
use switchboard::domain::clock::Clock;
use switchboard::simulator::{Engine, FilePlan, SimulatorConfig, Writing};

use super::{Bench, config};

const ANN: &str = "15550101234";

async fn moved_bench() -> (Bench, Clock) {
    let clock = Clock::manual("2026-03-01T12:00:00Z".parse().unwrap());
    let bench =
        Bench::start_with(SimulatorConfig { engine: Engine::Gows, time_scale: 1.0, clock: clock.clone(), ..config() })
            .await;
    bench.fleet(&["main"]).await;
    (bench, clock)
}

async fn written(bench: &Bench, id: &str, plan: FilePlan) -> Value {
    let writing = Writing::image(b"bytes of a picture".as_slice()).fetched(plan).id(id);
    bench.simulator.control().write("main", ANN, writing).unwrap();
    let ours = |hook: &super::receiver::Hook| {
        hook.event() == "message" && hook.body["payload"]["id"].as_str().is_some_and(|whole| whole.ends_with(id))
    };
    bench.receiver.wait(id, ours).await.body["payload"].clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_is_there_for_a_while_and_again_when_asked_for() {
    let (bench, clock) = moved_bench().await;
    let message = written(&bench, "ONE", FilePlan::default()).await;
    let url = message["media"]["url"].as_str().unwrap().to_owned();
    let path = url.strip_prefix(&bench.simulator.url()).unwrap();
    assert_eq!(bench.get(path).await.bytes().await.unwrap().as_ref(), b"bytes of a picture");
    assert_eq!(reqwest::get(&url).await.unwrap().status(), 401, "the key is needed");
    clock.advance(Duration::from_secs(179));
    assert_eq!(bench.get(path).await.status(), 200);
    clock.advance(Duration::from_secs(1));
    let gone = bench.get(path).await;
    assert_eq!(gone.status(), 404);
    assert_eq!(gone.json::<Value>().await.unwrap()["error"]["key"], "FILE_NOT_FOUND");

    let by_id = "/api/main/chats/all/messages/ONE";
    let without: Value = bench.get(&format!("{by_id}?downloadMedia=false")).await.json().await.unwrap();
    assert_eq!((&without["hasMedia"], &without["media"]), (&json!(true), &Value::Null));
    assert_eq!(bench.get(path).await.status(), 404);
    let with: Value = bench.get(&format!("{by_id}?downloadMedia=true")).await.json().await.unwrap();
    assert_eq!(with["media"]["url"], url);
    assert_eq!(bench.get(path).await.status(), 200);

    bench.simulator.control().file_lifetime(Duration::from_secs(5));
    let message = written(&bench, "TWO", FilePlan::default()).await;
    clock.advance(Duration::from_secs(6));
    let path = message["media"]["url"].as_str().unwrap().strip_prefix(&bench.simulator.url()).unwrap().to_owned();
    assert_eq!(bench.get(&path).await.status(), 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_are_in_trouble_on_demand() {
    let bench = Bench::start(Engine::Noweb).await;
    bench.working("main").await;
    let path = |message: &Value| {
        let url = message["media"]["url"].as_str().unwrap();
        url.split_once("/api/").map(|(_, path)| format!("/api/{path}")).unwrap()
    };
    let refused = path(&written(&bench, "REFUSED", FilePlan { refusals: 2, ..FilePlan::default() }).await);
    let mut statuses = Vec::new();
    for _ in 0..3 {
        statuses.push(bench.get(&refused).await.status().as_u16());
    }
    assert_eq!(statuses, [403, 403, 200]);

    let foreign = written(&bench, "FOREIGN", FilePlan { foreign_host: true, ..FilePlan::default() }).await;
    assert_eq!(foreign["media"]["url"], "http://localhost:3000/api/files/main/FOREIGN.jpeg");
    assert_eq!(bench.get(&path(&foreign)).await.status(), 200);

    let mimetype = Some("text/html".to_owned());
    let wrong = written(&bench, "WRONG", FilePlan { mimetype, ..FilePlan::default() }).await;
    assert_eq!(wrong["media"]["mimetype"], "text/html");
    assert_eq!(bench.get(&path(&wrong)).await.headers()["content-type"], "text/html");

    let huge = written(&bench, "HUGE", FilePlan { claimed: Some(1_000_000_000), ..FilePlan::default() }).await;
    let answer = bench.get(&path(&huge)).await;
    assert_eq!(answer.content_length(), Some(1_000_000_000));
    drop(answer);

    let slow = written(&bench, "SLOW", FilePlan { slow_ms: 150, ..FilePlan::default() }).await;
    let begun = std::time::Instant::now();
    assert_eq!(bench.get(&path(&slow)).await.status(), 200);
    assert!(begun.elapsed() >= Duration::from_millis(149));

    for (id, plan, comes_back) in [
        ("NONE", FilePlan { no_url: true, ..FilePlan::default() }, true),
        ("LOST", FilePlan { lost: true, ..FilePlan::default() }, false),
    ] {
        let message = written(&bench, id, plan).await;
        assert!(message["media"]["url"].is_null() && message["media"]["error"].is_object(), "{message}");
        let again: Value = bench.get(&format!("/api/main/chats/all/messages/{id}")).await.json().await.unwrap();
        assert_eq!(again["media"]["url"].is_string(), comes_back, "{again}");
    }
}
