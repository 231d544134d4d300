//! WAHA is brought to what is wanted, once and by one node.

use futures_util::future::join_all;
use switchboard::db::DbError;
use switchboard::domain::clock::Clock;
use switchboard::domain::ids::{SessionId, TenantId};
use switchboard::sessions::queries::{self, Wish};
use switchboard::sessions::status::Source;
use switchboard::simulator::{Fault, FaultRule};
use switchboard::waha::Engine;

use super::stand::{PATIENCE, Stand, insert_server, session};
use crate::support::eventually;

async fn want(stand: &Stand, tenant: TenantId, id: SessionId, wish: Wish) {
    let now = stand.app.clock.now();
    let row = stand.app.db.tenant(tenant, async move |conn| queries::want(conn, id, wish, "me", now).await).await;
    assert_eq!(row.unwrap().unwrap().desired, if wish == Wish::Stop { "stopped" } else { "started" });
    stand.app.wake.sessions.notify_one();
}

#[tokio::test(flavor = "multi_thread")]
async fn from_nothing_to_working_and_back() {
    let stand = Stand::new().await;
    let (tenant, server) = (stand.tenant("a").await, stand.server(5).await);
    let node = Stand::reconcile(&stand.app);
    let created = stand.create(tenant, session("support")).await.unwrap();
    let name = created.external_session_id.as_str();

    let waiting = stand.becomes(tenant, created.id, "scan_qr").await;
    assert!(waiting.qr_expires_at.is_some() && waiting.phone.is_none());
    let at_waha = stand.app.waha.get_session(&stand.waha(), name).await.unwrap().unwrap();
    let wanted = format!("{}", created.id);
    assert_eq!(at_waha.metadata("switchboard.session"), Some(wanted.as_str()));
    stand.simulator.control().scan(name).unwrap();
    let working = stand.becomes(tenant, created.id, "working").await;
    assert!(working.phone.as_deref().is_some_and(|phone| phone.starts_with('+')) && working.push_name.is_some());
    assert_eq!(stand.count("SELECT count(*) FROM lanes WHERE paused_because IS NULL").await, 1);

    want(&stand, tenant, created.id, Wish::Stop).await;
    let stopped = stand.becomes(tenant, created.id, "stopped").await;
    assert_eq!(stopped.phone, working.phone, "the pairing is kept");
    assert_eq!(stand.count("SELECT count(*) FROM lanes WHERE paused_because = 'session_not_working'").await, 1);
    want(&stand, tenant, created.id, Wish::Start).await;
    stand.becomes(tenant, created.id, "working").await;
    stand.settled().await;

    assert_eq!(stand.counter.calls("create").len(), 1);
    let healthy = format!(
        "SELECT count(*) FROM waha_servers WHERE id = '{server}' AND health = 'healthy' AND waha_version = '2026.7.1' \
         AND last_seen_at IS NOT NULL AND start_timestamp IS NOT NULL"
    );
    assert_eq!(stand.count(&healthy).await, 1);
    let events = "SELECT count(*) FROM events WHERE type = 'session.status'";
    assert!(stand.count(events).await >= 4, "scan_qr, working, stopped, working, and what lay between them");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_restart_of_waha_lost_is_made_anew() {
    let stand = Stand::new().await;
    let tenant = stand.tenant("a").await;
    stand.server(5).await;
    let node = Stand::reconcile(&stand.app);
    let (kept, lost) =
        (stand.create(tenant, session("kept")).await.unwrap(), stand.create(tenant, session("lost")).await.unwrap());
    for row in [&kept, &lost] {
        stand.becomes(tenant, row.id, "scan_qr").await;
        stand.simulator.control().scan(&row.external_session_id).unwrap();
        stand.becomes(tenant, row.id, "working").await;
    }
    stand.settled().await;
    // Nobody looks while it goes: a deletion shows as STOPPED for a moment.
    node.stop().await;
    stand.counter.forget();
    stand.app.waha.delete(&stand.waha(), &lost.external_session_id).await.unwrap();
    stand.simulator.control().restart();
    let node = Stand::reconcile(&stand.app);
    stand.becomes(tenant, lost.id, "scan_qr").await;
    stand.becomes(tenant, kept.id, "working").await;
    stand.settled().await;
    let created = stand.counter.calls("create");
    assert_eq!(created.into_iter().collect::<Vec<_>>(), [(format!("create {}", lost.external_session_id), 1)]);
    let others = stand.counter.calls("POST");
    assert!(others.is_empty(), "nothing else had to be done: {others:?}");
    // The list told how the others do.
    let look = format!("GET /api/sessions/{}", kept.external_session_id);
    assert!(!stand.counter.calls(&look).contains_key(&look));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_take_each_step_once() {
    let stand = Stand::new().await;
    let tenant = stand.tenant("a").await;
    stand.server(100).await;
    let there = stand.another_node();
    let nodes = [Stand::reconcile(&stand.app), Stand::reconcile(&there)];
    let mut rows = Vec::new();
    for index in 0..40 {
        rows.push(stand.create(tenant, session(&format!("s{index}"))).await.unwrap());
    }
    join_all(rows.iter().map(|row| stand.becomes(tenant, row.id, "scan_qr"))).await;
    stand.settled().await;
    let created = stand.counter.calls("create");
    assert_eq!((created.len(), created.values().max()), (40, Some(&1)), "{created:?}");
    assert!(stand.counter.calls("POST").is_empty(), "they were created started");

    // They are stopped behind the gateway's back: each is started once.
    stand.counter.forget();
    let (waha, server) = (&stand.app.waha, stand.waha());
    for stopped in join_all(rows.iter().map(|row| waha.stop(&server, &row.external_session_id))).await {
        stopped.unwrap();
    }
    let started = eventually(PATIENCE, "forty starts", async || {
        let calls = stand.counter.calls("POST /api/sessions/sb_");
        (calls.len() == 40).then_some(())
    });
    started.await;
    stand.settled().await;
    let calls = stand.counter.calls("POST");
    assert_eq!((calls.len(), calls.values().max()), (40, Some(&1)), "{calls:?}");
    assert!(stand.counter.calls("create").is_empty());
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_poll_per_server_and_interval_however_many_nodes() {
    let stand = Stand::new().await;
    stand.server(5).await;
    let there = stand.another_node();
    let begun = stand.app.clock.now();
    let nodes = [Stand::reconcile(&stand.app), Stand::reconcile(&there)];
    const POLL: &str = "GET /api/server/status";
    eventually(PATIENCE, "ten polls", async || {
        (stand.counter.calls(POLL).get(POLL).copied().unwrap_or(0) >= 10).then_some(())
    })
    .await;
    let passed = (stand.app.clock.now() - begun).num_milliseconds();
    assert!(passed >= 9 * 225, "ten polls, 250 ms apart give or take a tenth, in {passed} ms");
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_only_delay() {
    let stand = Stand::new().await;
    let tenant = stand.tenant("a").await;
    stand.server(5).await;
    let control = stand.simulator.control();
    // It takes effect and is not answered: the next try learns that the session exists.
    control.fault_once("/api/sessions/{session}", Fault::Error500Before);
    control.fault_once("/api/sessions", Fault::ResetAfterSend);
    let node = Stand::reconcile(&stand.app);
    let row = stand.create(tenant, session("a")).await.unwrap();
    stand.becomes(tenant, row.id, "scan_qr").await;
    stand.settled().await;
    assert_eq!(stand.count("SELECT reconcile_failures::bigint FROM waha_sessions").await, 0);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wish_during_a_step_is_not_lost() {
    let stand = Stand::new().await;
    let tenant = stand.tenant("a").await;
    stand.server(5).await;
    stand.simulator.control().add_fault(FaultRule::always("/api/sessions", Fault::DelayMs(700)).times(2));
    let node = Stand::reconcile(&stand.app);
    let row = stand.create(tenant, session("a")).await.unwrap();
    let name = row.external_session_id.as_str();
    let creating = format!("create {name}");
    eventually(PATIENCE, "the creation under way", async || {
        stand.counter.calls("create").contains_key(&creating).then_some(())
    })
    .await;
    want(&stand, tenant, row.id, Wish::Stop).await;
    stand.becomes(tenant, row.id, "stopped").await;
    stand.settled().await;
    let at_waha = stand.app.waha.get_session(&stand.waha(), name).await.unwrap().unwrap();
    assert_eq!(at_waha.status.as_str(), "STOPPED");
    assert_eq!(stand.counter.calls("create").get(&creating), Some(&1));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_is_respected_until_it_runs_out() {
    let stand = Stand::new().await;
    let tenant = stand.tenant("a").await;
    stand.server(5).await;
    let row = stand.create(tenant, session("a")).await.unwrap();
    // A node that has died took it a moment ago, and somebody asked for another look since.
    let sql = stand.sql().await;
    sql.batch_execute("UPDATE waha_sessions SET reconcile_lease = now() + interval '1 hour'").await.unwrap();
    let node = Stand::reconcile(&stand.app);
    let other = stand.create(tenant, session("b")).await.unwrap();
    stand.becomes(tenant, other.id, "scan_qr").await;
    let create = format!("create {}", row.external_session_id);
    assert!(!stand.counter.calls("create").contains_key(&create));
    sql.batch_execute("UPDATE waha_sessions SET reconcile_lease = now()").await.unwrap();
    stand.becomes(tenant, row.id, "scan_qr").await;
    assert_eq!(stand.counter.calls("create").get(&create), Some(&1));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_away_or_refuses_the_key_is_named_and_left_alone() {
    let stand = Stand::new().await;
    let tenant = stand.tenant("a").await;
    let away = insert_server(&stand.app, "away", "http://127.0.0.1:1", Engine::Gows, 5).await;
    let refusing = stand.server(5).await;
    stand.simulator.control().add_fault(FaultRule::always("*", Fault::Unauthorized401));
    let node = Stand::reconcile(&stand.app);
    let health = async |server, expected: &str| {
        let query = format!("SELECT count(*) FROM waha_servers WHERE id = '{server}' AND health = '{expected}'");
        let name = format!("{server} to be {expected}");
        eventually(PATIENCE, &name, async || (stand.count(&query).await == 1).then_some(())).await;
    };
    health(away, "unreachable").await;
    health(refusing, "unauthorized").await;
    assert!(stand.create(tenant, session("a")).await.is_err(), "nothing is placed there");
    stand.simulator.control().clear_faults();
    health(refusing, "healthy").await;
    let row = stand.create(tenant, session("a")).await.unwrap();
    stand.becomes(tenant, row.id, "scan_qr").await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_older_than_what_is_known_is_not_believed() {
    use switchboard::sessions::status::{Observation, Polled, observe_polled};
    use switchboard::waha::SessionStatus;
    let stand = Stand::new().await;
    let tenant = stand.tenant("a").await;
    stand.server(5).await;
    let row = stand.create(tenant, session("a")).await.unwrap();
    let apply = async |status, known| {
        let (chance, now) = (&stand.app.chance, Clock::running().now());
        let observation =
            Observation { tenant, session: row.id, status, reported_at: None, me: None, source: Source::Poll };
        let polled = [Polled { observation, known }];
        let changed = stand.app.db.system(async |conn| observe_polled(conn, chance, now, &polled).await).await;
        changed.map_err(|fault: DbError| fault.to_string()).unwrap()
    };
    assert_eq!(apply(SessionStatus::Working, row.version).await, 1);
    assert_eq!(apply(SessionStatus::Starting, row.version).await, 0, "read before it worked");
    assert_eq!(stand.find(tenant, row.id).await.unwrap().status, "working");
    // The status that is seen and the one that WAHA reports count.
    assert_eq!(apply(SessionStatus::Starting, row.version + 2).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_empties_the_caches_only_when_they_hold_what_changed() {
    let stand = Stand::new().await;
    let tenant = stand.tenant("a").await;
    stand.server(5).await;
    let generation = async || stand.count("SELECT generation FROM directory_generation").await;
    let node = Stand::reconcile(&stand.app);
    // A server's version is cached, too.
    eventually(PATIENCE, "the server to be known", async || {
        (stand.count("SELECT count(waha_version) FROM waha_servers").await == 1).then_some(())
    })
    .await;
    let row = stand.create(tenant, session("a")).await.unwrap();
    let created = generation().await;
    stand.becomes(tenant, row.id, "scan_qr").await;
    assert_eq!(generation().await, created, "statuses are not cached");
    stand.simulator.control().scan(&row.external_session_id).unwrap();
    stand.becomes(tenant, row.id, "working").await;
    assert_eq!(generation().await, created + 1, "the phone is");
    node.stop().await;
}
