//! When gaps are filled, on the moved clock: after restarts and reconnects, after silence, and every few hours, no more often
//! than a WAHA server is to be called.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use reqwest::StatusCode;
use serde_json::{Value, json};
use switchboard::broker::envelope::InboundEvent;
use switchboard::config::GapFill;
use switchboard::ingest::{apply, gap_fill};
use switchboard::serve::Role;
use switchboard::sessions::view::SessionRow;
use switchboard::simulator::WebhookFaults;
use switchboard::telemetry::metrics;
use tokio::sync::watch;

use crate::sessions::ward::Ward;
use crate::support::world::PATIENCE;
use crate::support::{World, eventually};

const MINUTE: Duration = Duration::from_secs(60);

/// Both nodes of a ward fill gaps, too, until this is dropped. No webhook ever reaches them.
struct Filling(watch::Sender<bool>);

impl Filling {
    fn in_ward(ward: &Ward) -> Self {
        let (stop, stopped) = watch::channel(false);
        for app in &ward.apps {
            tokio::spawn(gap_fill::run(app.clone(), stopped.clone()));
        }
        Self(stop)
    }
}

impl Drop for Filling {
    fn drop(&mut self) {
        self.0.send_replace(true);
    }
}

/// When the session's messages were asked for.
fn reads(ward: &Ward, session: &SessionRow) -> Vec<DateTime<Utc>> {
    let calls = ward.control().ledger_of(Some(&session.external_session_id)).calls;
    calls.iter().filter(|call| call.endpoint == "messages").map(|call| call.started).collect()
}

/// When fills of the session began: calls that are a minute apart at least belong to different ones.
fn fills(ward: &Ward, session: &SessionRow) -> Vec<DateTime<Utc>> {
    let mut fills: Vec<DateTime<Utc>> = Vec::new();
    let mut last: Option<DateTime<Utc>> = None;
    for at in reads(ward, session) {
        if last.is_none_or(|last| at - last > TimeDelta::seconds(60)) {
            fills.push(at);
        }
        last = Some(at);
    }
    fills
}

async fn filled(ward: &Ward, session: &SessionRow, times: usize) {
    let what = format!("fill {times}");
    ward.passing(&what, async || (fills(ward, session).len() >= times).then_some(())).await;
    // To its end.
    let idle = "SELECT count(*) FROM gap_fills WHERE began_at IS NOT NULL";
    ward.passing("its end", async || (ward.count(idle).await == 0).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_read_back_every_six_hours_or_so_and_finds_what_no_webhook_told() {
    let ward = Ward::new().await;
    let session = ward.working("quiet").await;
    let _filling = Filling::in_ward(&ward);
    filled(&ward, &session, 1).await;
    // Once more when what comes late after a reconnect is there.
    ward.clock.advance(10 * MINUTE);
    filled(&ward, &session, 2).await;
    ward.control().inbound_text(&session.external_session_id, "+15550200001", "found").unwrap();
    for n in 0..150 {
        ward.clock.advance(10 * MINUTE);
        // Never silent, or that would be a reason, too.
        ward.hears(&session, &format!("HEARD{n}")).await;
        ward.pass(Duration::from_secs(4)).await;
    }
    let times = fills(&ward, &session).split_off(1);
    let mut pauses: Vec<i64> = times.windows(2).map(|pair| (pair[1] - pair[0]).num_minutes()).collect();
    // A fill that found something looks once more, a little later.
    pauses.retain(|pause| *pause > 10);
    assert!(pauses.len() >= 3, "{pauses:?}");
    assert!(pauses.iter().all(|pause| (320..=410).contains(pause)), "6 h, a tenth more or less: {pauses:?}");
    let found = "SELECT count(*) FROM messages WHERE backfilled AND body = 'found'";
    assert_eq!(ward.count(found).await, 1);
    let told = "SELECT count(*) FROM events WHERE type = 'message.received' AND data LIKE '%\"found\"%'";
    assert_eq!(ward.count(told).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happened_to_the_session_decides_when_it_is_read_back() {
    let ward = Ward::new().await;
    let session = ward.working("one").await;
    let name = session.external_session_id.clone();
    let _filling = Filling::in_ward(&ward);
    filled(&ward, &session, 1).await;
    ward.clock.advance(10 * MINUTE);
    filled(&ward, &session, 2).await;

    // It works, says WAHA once more: no news.
    let body = json!({
        "id": "evt_again", "timestamp": ward.now().timestamp_millis(), "event": "session.status", "session": name,
        "engine": "NOWEB", "payload": {"name": name, "status": "WORKING", "statuses": []},
    });
    let event = InboundEvent {
        tenant_id: ward.tenant,
        session_id: session.id,
        waha_server_id: ward.server,
        received_at: ward.now(),
        body: body.to_string(),
    };
    let fates = apply::apply_all(ward.app(), &[event]).await;
    assert!(matches!(fates.as_slice(), [apply::Fate::Applied]), "{fates:?}");
    ward.pass(2 * MINUTE).await;
    assert_eq!(fills(&ward, &session).len(), 2);

    // The connection was away for a while.
    ward.control().flap_for(&name, Duration::from_secs(10)).unwrap();
    ward.pass(MINUTE).await;
    filled(&ward, &session, 3).await;
    ward.clock.advance(12 * MINUTE);
    filled(&ward, &session, 4).await;
    ward.pass(2 * MINUTE).await;
    assert_eq!(fills(&ward, &session).len(), 4);

    // WAHA was started anew.
    ward.control().restart();
    ward.pass(2 * MINUTE).await;
    filled(&ward, &session, 5).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silence_that_is_odd_leads_to_a_look_at_what_was_missed() {
    let ward = Ward::new().await;
    let session = ward.working("one").await;
    ward.has_past(&session, 30).await;
    let _filling = Filling::in_ward(&ward);
    filled(&ward, &session, 1).await;
    ward.control().inbound_text(&session.external_session_id, "+15550200001", "unheard").unwrap();
    ward.clock.advance(3 * 60 * MINUTE);
    ward.passing("a question", async || (ward.calls(&session, "check-exists") > 0).then_some(())).await;
    let found = "SELECT count(*) FROM messages WHERE backfilled AND body = 'unheard'";
    ward.passing("the message", async || (ward.count(found).await == 1).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_called_no_more_often_than_it_is_meant_to_be() {
    let more = [("SWITCHBOARD_GAP_FILL_AT_ONCE", "1".to_owned()), ("SWITCHBOARD_GAP_FILL_PER_MINUTE", "6".to_owned())];
    let ward = Ward::with(&more).await;
    let mut sessions = Vec::new();
    for n in 0..4 {
        sessions.push(ward.working(&format!("s{n}")).await);
    }
    for session in &sessions {
        ward.control().inbound_text(&session.external_session_id, "+15550200001", "one").unwrap();
    }
    let _filling = Filling::in_ward(&ward);
    let found = "SELECT count(*) FROM messages WHERE backfilled";
    ward.passing("all messages", async || (ward.count(found).await == 4).then_some(())).await;
    let mut calls = ward.control().ledger().calls;
    calls.retain(|call| call.endpoint == "messages");
    assert!(calls.len() >= 7, "two for each session: {}", calls.len());
    for pair in calls.windows(2) {
        let pause = pair[1].started - pair[0].started;
        assert!(pause >= TimeDelta::seconds(10), "six in a minute, by two nodes: {pause}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_asks_for_a_fill_and_sees_what_share_of_webhooks_was_lost() {
    metrics::install();
    let world = World::new().await;
    let node = world.node_with(&Role::ALL, |config| {
        let every = Duration::from_millis(100);
        let settings = GapFill { every, delay: every, per_minute: 100_000, ..GapFill::default() };
        config.gap_fill = settings;
    });
    let tenant = world.tenant(&node.base, "one").await;
    let (session, external) = tenant.session("only").await;
    let path = format!("/v1/sessions/{session}");
    let control = world.simulator.control();
    let stored = async |count: usize| {
        let list = tenant.get("/v1/messages?direction=inbound&limit=200").await.expect(StatusCode::OK);
        (list["data"].as_array().unwrap().len() == count).then_some(())
    };
    for n in 0..6 {
        control.inbound_text(&external, "+15550200001", &format!("heard {n}")).unwrap();
    }
    eventually(PATIENCE, "what webhooks bring", async || stored(6).await).await;
    let lost = WebhookFaults { event: Some("message.any".to_owned()), drop: 1.0, ..WebhookFaults::default() };
    control.webhook_faults(lost);
    for n in 0..2 {
        control.inbound_text(&external, "+15550200001", &format!("lost {n}")).unwrap();
    }
    let shown = eventually(PATIENCE, "the share", async || {
        tenant.post(&format!("{path}/gap-fill"), &Value::Null).await.expect(StatusCode::ACCEPTED);
        let shown = tenant.get(&path).await.body["ingest"].clone();
        (shown["by_webhook"] == 6 && shown["by_read_back"] == 2).then_some(shown)
    })
    .await;
    assert_eq!(shown["missed_share"], json!(0.25));
    assert!(shown["last_gap_fill_at"].is_string());
    stored(8).await.unwrap();
    let of_read_back = r#"switchboard_gap_fill_messages_total{by="read_back"}"#;
    eventually(PATIENCE, "the figures", async || {
        let figures = metrics::render();
        (figures.contains(of_read_back) && figures.contains("switchboard_missed_webhooks_share{server=")).then_some(())
    })
    .await;
    node.node.stop().await;
}
