//! The truth about liveness, on the moved clock: who is dead is found, restarted once and reported; who is quiet is left alone;
//! and what WhatsApp does to all is nobody's fault.

use std::time::Duration;

use serde_json::{Value, json};
use switchboard::sessions::liveness::vitals::Calls;
use switchboard::sessions::view::SessionRow;
use switchboard::simulator::{Zombie, ZombieQueries};
use switchboard::telemetry::metrics;

use super::ward::Ward;

const HOUR: Duration = Duration::from_secs(3600);
const ALARMS: &str = "SELECT count(*) FROM operator_alarms";

fn text(value: &Value) -> String {
    value.to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_in_name_only_is_restarted_once_and_then_reported_until_it_lives() {
    let ward = Ward::new().await;
    let session = ward.working("dead").await;
    let name = session.external_session_id.as_str();
    ward.has_past(&session, 30).await;
    assert_eq!(ward.health(&session).await["verdict"], "healthy");

    ward.control().zombie(name, Zombie { survives: 1, queries: ZombieQueries::Fail }).unwrap();
    ward.clock.advance(3 * HOUR);
    ward.passing("a restart", async || (ward.calls(&session, "restart") == 1).then_some(())).await;
    let told = ward.passing("the report", async || ward.events("session.unhealthy").await.into_iter().next()).await;
    let health = &told["health"];
    assert_eq!((&told["status"], &health["verdict"]), (&json!("working"), &json!("dead")));
    let evidence = text(&health["evidence"]);
    for said in [
        "nothing came from WhatsApp for 3 hours",
        "the longest silence so far was 60 minutes",
        "2 times",
        "restarted at",
    ] {
        assert!(evidence.contains(said), "{said}: {evidence}");
    }
    assert!(!evidence.contains("15550"), "no number is told: {evidence}");
    // However long it goes on, and although two nodes watch.
    for _ in 0..6 {
        ward.clock.advance(Duration::from_secs(600));
        ward.pass(Duration::from_secs(20)).await;
    }
    assert_eq!((ward.calls(&session, "restart"), ward.events("session.unhealthy").await.len()), (1, 1));
    assert_eq!(ward.health(&session).await["verdict"], "dead");
    assert!(ward.events("session.healthy").await.is_empty());

    ward.control().revive(name).unwrap();
    let told = ward.passing("the recovery", async || ward.events("session.healthy").await.into_iter().next()).await;
    assert_eq!(told["health"]["verdict"], "healthy");
    assert_eq!(ward.health(&session).await["evidence"], json!([]));
    ward.pass(Duration::from_secs(60)).await;
    assert_eq!((ward.calls(&session, "restart"), ward.events("session.healthy").await.len()), (1, 1));
    assert_eq!(ward.calls(&session, "logout"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_that_helps_is_told_to_nobody() {
    let ward = Ward::new().await;
    let session = ward.working("dead").await;
    ward.has_past(&session, 30).await;
    ward.control().zombie(&session.external_session_id, Zombie::default()).unwrap();
    ward.clock.advance(3 * HOUR);
    ward.passing("a restart", async || (ward.calls(&session, "restart") == 1).then_some(())).await;
    ward.passing("health", async || (ward.health(&session).await["verdict"] == "healthy").then_some(())).await;
    ward.pass(Duration::from_secs(60)).await;
    assert_eq!(ward.calls(&session, "restart"), 1);
    assert!(ward.events("session.unhealthy").await.is_empty() && ward.events("session.healthy").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn silence_is_measured_by_the_sessions_own_past() {
    let ward = Ward::new().await;
    let (lively, quiet) = (ward.working("lively").await, ward.working("quiet").await);
    ward.has_past(&lively, 30).await;
    ward.hears(&quiet, "3EB0FF").await;
    // Silent for as long as never before, and alive.
    ward.clock.advance(3 * HOUR);
    ward.passing("a question", async || (ward.calls(&lively, "check-exists") == 1).then_some(())).await;
    // The quiet one is quiet for a day, and that says nothing.
    for _ in 0..8 {
        ward.clock.advance(3 * HOUR);
        ward.pass(Duration::from_secs(10)).await;
    }
    let asked = ward.calls(&lively, "check-exists");
    assert!((2..=7).contains(&asked), "less and less often: {asked}");
    assert_eq!(ward.calls(&quiet, "check-exists"), 0);
    for session in [&lively, &quiet] {
        assert_eq!(ward.health(session).await["verdict"], "healthy");
        assert_eq!(ward.calls(session, "restart"), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sends_of_unknown_outcome_lead_to_a_look_at_once() {
    let ward = Ward::new().await;
    let session = ward.working("dead").await;
    ward.pass(Duration::from_secs(150)).await;
    ward.control().zombie(&session.external_session_id, Zombie::default()).unwrap();
    let begun = ward.now();
    let calls = Calls::default();
    calls.answered(ward.tenant, session.id);
    for _ in 0..3 {
        calls.failed(ward.tenant, session.id);
    }
    calls.write(ward.app()).await.unwrap();
    ward.passing("a restart", async || (ward.calls(&session, "restart") == 1).then_some(())).await;
    assert!((ward.now() - begun).num_seconds() < 120, "two questions, half a minute apart");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_away_makes_nobody_dead() {
    let ward = Ward::new().await;
    let session = ward.working("silent").await;
    ward.has_past(&session, 30).await;
    ward.control().restart_after(10 * HOUR);
    ward.clock.advance(3 * HOUR);
    let suspect = "SELECT count(*) FROM session_vitals WHERE verdict = 'suspect'";
    ward.passing("a suspicion", async || (ward.count(suspect).await == 1).then_some(())).await;
    for _ in 0..3 {
        ward.clock.advance(Duration::from_secs(300));
        ward.pass(Duration::from_secs(20)).await;
    }
    let verdicts = "SELECT count(*) FROM session_vitals WHERE verdict = 'dead'";
    assert_eq!(ward.count(verdicts).await, 0);
    assert_eq!(ward.calls(&session, "restart"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn all_sessions_thrown_out_are_one_alarm_and_no_logout() {
    metrics::install();
    let ward = Ward::new().await;
    let mut sessions: Vec<SessionRow> = Vec::new();
    for index in 0..12 {
        sessions.push(ward.working(&format!("s{index}")).await);
    }
    let (unpaired, others) = sessions.split_first().unwrap();
    ward.pass(Duration::from_secs(60)).await;

    // One phone that removes its device is that phone's matter.
    ward.control().phone_logout(&unpaired.external_session_id).unwrap();
    let failed = "SELECT count(*) FROM session_vitals WHERE seen = 'failed'";
    ward.passing("a failure", async || (ward.count(failed).await == 1).then_some(())).await;
    ward.pass(Duration::from_secs(30)).await;
    assert_eq!(ward.count(ALARMS).await, 0);

    let before = ward.control().lifecycle_calls(None).len();
    ward.control().throw_out();
    ward.passing("the alarm", async || (ward.count(ALARMS).await > 0).then_some(())).await;
    for _ in 0..5 {
        ward.clock.advance(Duration::from_secs(120));
        ward.pass(Duration::from_secs(20)).await;
    }
    assert_eq!((ward.count(ALARMS).await, ward.count(failed).await), (1, 12));
    let calls = ward.control().lifecycle_calls(None).split_off(before);
    let of_others = |call: &&switchboard::simulator::PostRecord| {
        others.iter().any(|session| session.external_session_id == call.session)
    };
    let held_back: Vec<_> = calls.iter().filter(of_others).map(|call| call.endpoint).collect();
    assert!(held_back.is_empty(), "nobody is restarted meanwhile: {held_back:?}");
    let alarms = ward.platform("/v1/alarms").await;
    let alarm = &alarms["data"][0];
    assert_eq!(
        (&alarm["kind"], &alarm["engine"], &alarm["ended_at"]),
        (&json!("sessions_failed"), &Value::Null, &Value::Null)
    );
    assert!(alarm["details"]["failed"].as_i64().unwrap() >= 5, "{alarm}");
    let figures = metrics::render();
    for line in [
        r#"switchboard_operator_alarms{kind="sessions_failed"} 1"#,
        r#"switchboard_sessions{status="failed"} 12"#,
        r#"switchboard_working_sessions{verdict="healthy"} 0"#,
    ] {
        assert!(figures.lines().any(|known| known == line), "{line} in {figures}");
    }

    // WhatsApp lets them in again, and somebody has updated WAHA.
    ward.control().let_in();
    ward.control().restart();
    let ended = "SELECT count(*) FROM operator_alarms WHERE ended_at IS NOT NULL";
    ward.passing("the end of the alarm", async || (ward.count(ended).await == 1).then_some(())).await;
    ward.pass(Duration::from_secs(60)).await;
    assert_eq!(ward.count(ALARMS).await, 1);
    let calls = ward.control().lifecycle_calls(None);
    let unlinked: Vec<_> = calls.iter().filter(|call| ["logout", "delete"].contains(&call.endpoint)).collect();
    assert!(unlinked.is_empty(), "{unlinked:?}");
    for session in others {
        assert!(ward.find(session).await.phone.is_some());
    }
}
