//! Sessions and servers in trouble: what a test can make of them, and how they come out of it.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use reqwest::Method;
use serde_json::{Value, json};
use switchboard::domain::clock::Clock;
use switchboard::simulator::{ControlError, Engine, Fault, FaultRule, SimulatorConfig, Storage, Zombie, ZombieQueries};

use super::{Bench, config};
use crate::support::eventually;

const PATIENCE: Duration = Duration::from_secs(10);
const NUMBER: &str = "15550100001";

fn start() -> DateTime<Utc> {
    DateTime::from_timestamp(1_790_000_000, 0).unwrap()
}

/// A simulator whose time stands still, with sessions that are WORKING.
async fn standing(names: &[&str]) -> (Bench, Clock) {
    let clock = Clock::manual(start());
    let bench = Bench::start_with(SimulatorConfig { clock: clock.clone(), ..config() }).await;
    fleet(&bench, names).await;
    (bench, clock)
}

async fn fleet(bench: &Bench, names: &[&str]) {
    let member =
        |(index, name)| json!({"name": name, "number": format!("1555030{index:04}"), "config": bench.session_config()});
    let sessions: Vec<Value> = names.iter().enumerate().map(member).collect();
    assert_eq!(bench.post("/_simulator/fleet", &json!({"sessions": sessions})).await.status(), 204);
}

fn status(bench: &Bench, name: &str) -> Option<&'static str> {
    let sessions = bench.simulator.control().sessions();
    sessions.iter().find(|session| session.name == name).map(|session| session.status)
}

async fn becomes(bench: &Bench, name: &str, wanted: &str) {
    let what = format!("{name} to be {wanted}");
    eventually(PATIENCE, &what, async || (status(bench, name) == Some(wanted)).then_some(())).await;
}

/// The same while time goes by.
async fn comes_to_be(bench: &Bench, clock: &Clock, name: &str, wanted: &str) {
    let what = format!("{name} to be {wanted}");
    let moved = async || {
        clock.advance(Duration::from_millis(100));
        (status(bench, name) == Some(wanted)).then_some(())
    };
    eventually(PATIENCE, &what, moved).await;
}

/// What `call` answers, while time goes by.
async fn meanwhile<T>(clock: &Clock, call: impl Future<Output = T>) -> T {
    tokio::pin!(call);
    loop {
        match tokio::time::timeout(Duration::from_millis(20), &mut call).await {
            Ok(answer) => return answer,
            Err(_) => clock.advance(Duration::from_secs(1)),
        }
    }
}

async fn order(bench: &Bench, name: &str, call: &str) -> u16 {
    bench.post(&format!("/api/sessions/{name}/{call}"), &Value::Null).await.status().as_u16()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn working_in_name_only_until_it_is_started_anew() {
    let bench = Bench::start(Engine::Noweb).await;
    bench.working("main").await;
    let control = bench.simulator.control();
    assert_eq!(control.zombie("other", Zombie::default()), Err(ControlError::NoSuchSession));
    control.zombie("main", Zombie { survives: 1, queries: ZombieQueries::Fail }).unwrap();
    let check = format!("/api/contacts/check-exists?session=main&phone={NUMBER}");
    for cured in [false, true] {
        let swallowed = bench.send("main", NUMBER, "hello?", if cured { "3EB0B" } else { "3EB0A" }).await;
        assert_eq!(swallowed.status(), 201);
        control.inbound_text("main", NUMBER, "anybody there?").unwrap();
        assert_eq!(bench.get(&check).await.status(), 500);
        let info: Value = bench.get("/api/sessions/main").await.json().await.unwrap();
        assert_eq!((&info["status"], info["me"]["id"].is_string()), (&json!("WORKING"), true));
        assert_eq!(bench.get("/api/sessions/main/me").await.status(), 200);
        assert_eq!(order(&bench, "main", "restart").await, 201);
        control.working("main").await;
    }
    assert_eq!(bench.get(&check).await.status(), 200);
    // What came in meanwhile is told now, and what was swallowed reached nobody.
    bench.receiver.wait_for("what came in meanwhile", 2, |hook| hook.event() == "message").await;
    let ledger = control.ledger();
    assert_eq!(
        ledger.entries.iter().map(|entry| (entry.seen, entry.ack)).collect::<Vec<_>>(),
        [(false, 0), (false, 0)]
    );
    assert!(!bench.receiver.seen().iter().any(|hook| hook.event() == "message.ack"));
    let restarted = |hook: &super::receiver::Hook| hook.status() == Some("STARTING");
    bench.receiver.wait_for("its status, told as ever", 3, restarted).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_query_hangs_and_a_session_revives() {
    let (bench, clock) = standing(&["main"]).await;
    let control = bench.simulator.control();
    control.zombie("main", Zombie { survives: 0, queries: ZombieQueries::Hang }).unwrap();
    let check = format!("/api/contacts/check-exists?session=main&phone={NUMBER}");
    let asked = bench.get(&check);
    tokio::pin!(asked);
    assert!(tokio::time::timeout(Duration::from_millis(200), &mut asked).await.is_err());
    assert_eq!(meanwhile(&clock, asked).await.status(), 500);
    assert!(clock.now() >= start() + TimeDelta::seconds(120));
    control.revive("main").unwrap();
    assert_eq!(bench.get(&check).await.status(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatsapp_throws_all_out_and_lets_them_in_without_a_scan() {
    let bench = Bench::start(Engine::Noweb).await;
    fleet(&bench, &["a", "b"]).await;
    bench.create("stopped").await;
    assert_eq!(bench.post("/_simulator/outage", &json!({"on": true})).await.status(), 204);
    for name in ["a", "b"] {
        becomes(&bench, name, "FAILED").await;
    }
    assert_eq!(status(&bench, "stopped"), Some("STOPPED"));
    bench.receiver.wait_for("both failures", 2, |hook| hook.status() == Some("FAILED")).await;
    assert_eq!(order(&bench, "a", "restart").await, 201);
    bench.receiver.wait_for("another failure", 3, |hook| hook.status() == Some("FAILED")).await;
    bench.simulator.control().let_in();
    assert_eq!(status(&bench, "a"), Some("FAILED"), "nothing comes back by itself");
    assert_eq!(order(&bench, "a", "restart").await, 201);
    bench.simulator.control().working("a").await;
    assert!(!bench.receiver.seen().iter().any(|hook| hook.status() == Some("SCAN_QR_CODE")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_forgets_some_stops_some_and_restores_the_rest_one_by_one() {
    let (bench, clock) = standing(&["a", "b", "missing", "stopped", "wiped"]).await;
    let plan =
        json!({"missing": ["missing"], "wiped": ["wiped"], "stopped": ["stopped"], "delay_ms": 5_000, "gap_ms": 1_000});
    assert_eq!(bench.post("/_simulator/restart", &plan).await.status(), 204);
    let found = |name| status(&bench, name);
    assert_eq!((found("missing"), found("wiped")), (None, None));
    assert_eq!((found("a"), found("b"), found("stopped")), (Some("STOPPED"), Some("STOPPED"), Some("STOPPED")));
    clock.advance(Duration::from_secs(5));
    becomes(&bench, "a", "STARTING").await;
    assert_eq!(found("b"), Some("STOPPED"));
    // Who starts it first has started it: it is not started over.
    assert_eq!(order(&bench, "b", "start").await, 201);
    for name in ["a", "b"] {
        comes_to_be(&bench, &clock, name, "WORKING").await;
    }
    clock.advance(Duration::from_secs(10));
    let of_b =
        |wanted| move |hook: &super::receiver::Hook| hook.body["session"] == "b" && hook.status() == Some(wanted);
    bench.receiver.wait("b's status", of_b("WORKING")).await;
    assert_eq!(bench.receiver.seen().iter().filter(|hook| of_b("STARTING")(hook)).count(), 1);
    assert_eq!((found("b"), found("stopped")), (Some("WORKING"), Some("STOPPED")));
    for (name, then) in [("missing", "WORKING"), ("wiped", "SCAN_QR_CODE")] {
        assert_eq!(bench.post("/api/sessions", &json!({"name": name})).await.status(), 201);
        comes_to_be(&bench, &clock, name, then).await;
    }
    let runs = bench.simulator.control().runs();
    let of = |name: &str| -> Vec<_> {
        let offset = |at: DateTime<Utc>| (at - start()).num_seconds();
        let own = runs.iter().filter(|run| run.session == name);
        own.map(|run| (offset(run.from), run.to.map(offset))).collect()
    };
    assert_eq!(of("a"), [(0, Some(0)), (5, None)]);
    assert_eq!(of("b"), [(0, Some(0)), (5, None)]);
    assert_eq!(of("stopped"), [(0, Some(0))]);
    let starts = bench.simulator.control().lifecycle_calls(None);
    let starts: Vec<_> = starts.iter().map(|call| (call.session.as_str(), call.endpoint, call.status)).collect();
    assert_eq!(starts, [("b", "start", Some(201)), ("missing", "create", Some(201)), ("wiped", "create", Some(201))]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn starts_stick_and_connections_drop_for_as_long_as_asked() {
    let (bench, clock) = standing(&["main"]).await;
    let control = bench.simulator.control();
    control.flap_for("main", Duration::from_secs(29)).unwrap();
    assert_eq!(status(&bench, "main"), Some("STARTING"));
    clock.advance(Duration::from_secs(28));
    let asked: Value = bench.get("/api/sessions/main").await.json().await.unwrap();
    assert_eq!(asked["status"], "STARTING");
    comes_to_be(&bench, &clock, "main", "WORKING").await;

    assert_eq!(bench.post("/_simulator/stuck", &json!({"session": "main", "starts": 1})).await.status(), 204);
    assert_eq!(meanwhile(&clock, order(&bench, "main", "restart")).await, 201);
    clock.advance(Duration::from_secs(3_600));
    let asked: Value = bench.get("/api/sessions/main").await.json().await.unwrap();
    assert_eq!(asked["status"], "STARTING");
    control.stick_starting("main", 0);
    assert_eq!(meanwhile(&clock, order(&bench, "main", "restart")).await, 201);
    comes_to_be(&bench, &clock, "main", "WORKING").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_taken_lock_is_waited_for_and_then_an_error() {
    let bench = Bench::start(Engine::Noweb).await;
    fleet(&bench, &["main"]).await;
    let control = bench.simulator.control();
    control.hold_lock("main", Duration::from_secs(3_600)).unwrap();
    assert_eq!(order(&bench, "main", "stop").await, 500);
    assert_eq!(status(&bench, "main"), Some("WORKING"));
    let gone = bench.request(Method::DELETE, "/api/sessions/main").send().await.unwrap();
    assert_eq!(gone.status(), 500);

    fleet(&bench, &["other"]).await;
    control.add_fault(FaultRule::always("sessions/stop", Fault::Locked422).times(1).for_session("other"));
    let refused = bench.post("/api/sessions/other/stop", &Value::Null).await;
    assert_eq!(refused.status(), 422);
    assert!(refused.text().await.unwrap().contains("busy"));
    control.fault_once("sessions/stop", Fault::Locked500);
    assert_eq!(order(&bench, "other", "stop").await, 500);
    assert_eq!(order(&bench, "other", "stop").await, 201);
    // Also of a session that does not exist.
    assert_eq!(order(&bench, "nobody", "start").await, 404);
    let calls = control.lifecycle_calls(Some("nobody"));
    assert_eq!(calls.iter().map(|call| (call.endpoint, call.status)).collect::<Vec<_>>(), [("start", Some(404))]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_shared_storage_a_session_moves_and_two_servers_throw_each_other_out() {
    let storage = Storage::default();
    let with = || SimulatorConfig { storage: storage.clone(), time_scale: 50.0, ..config() };
    let (here, there) = (Bench::start_with(with()).await, Bench::start_with(with()).await);
    here.working("main").await;
    assert_eq!(order(&here, "main", "stop").await, 201);
    there.create("main").await;
    assert_eq!(order(&there, "main", "start").await, 201);
    there.simulator.control().working("main").await;
    let number = |bench: &Bench| bench.simulator.control().sessions()[0].me.clone();
    assert_eq!(number(&there), number(&here));
    assert!(!there.receiver.seen().iter().any(|hook| hook.status() == Some("SCAN_QR_CODE")));
    let (before, after) = (here.simulator.control().runs(), there.simulator.control().runs());
    assert!(before[0].to.unwrap() - after[0].from <= TimeDelta::zero(), "{before:?} {after:?}");
    assert!(storage.conflicts().is_empty());

    assert_eq!(order(&here, "main", "start").await, 201);
    for bench in [&here, &there] {
        becomes(bench, "main", "FAILED").await;
        assert_eq!(number(bench), None);
    }
    let conflicts = storage.conflicts();
    assert_eq!(conflicts.iter().map(|conflict| conflict.session.as_str()).collect::<Vec<_>>(), ["main"]);
    // Each has to be paired anew.
    assert_eq!(order(&there, "main", "restart").await, 201);
    becomes(&there, "main", "SCAN_QR_CODE").await;
}
