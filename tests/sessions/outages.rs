//! What a tenant sees of a session that comes and goes, and how many come back at once.

use std::time::Duration;

use futures_util::future::join_all;
use switchboard::domain::ids::TenantId;
use switchboard::sessions::queries::{self, Wish};
use switchboard::sessions::view::SessionRow;
use switchboard::simulator::{Fault, FaultRule};

use super::stand::{Stand, session};

const STEP: Duration = Duration::from_millis(200);

/// `count` sessions that work.
async fn working(stand: &Stand, tenant: TenantId, count: usize) -> Vec<SessionRow> {
    let mut rows = Vec::new();
    for index in 0..count {
        rows.push(stand.create(tenant, session(&format!("s{index}"))).await.unwrap());
    }
    let wanted = i64::try_from(count).unwrap();
    let working = "SELECT count(*) FROM waha_sessions WHERE status = 'working' AND reconcile_at IS NULL AND reconcile_lease IS NULL";
    stand.moving(STEP, "all to work", async || (stand.count(working).await == wanted).then_some(())).await;
    rows
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_shows_only_when_it_lasts() {
    let stand = Stand::moved(&[]).await;
    let tenant = stand.tenant("a").await;
    stand.server(5).await;
    let node = Stand::reconcile(&stand.app);
    let row = working(&stand, tenant, 1).await.remove(0);
    let told = "SELECT count(*) FROM events WHERE type = 'session.status'";
    let before = stand.count(told).await;

    // It flaps again and again. Its messages wait while it is away, and nobody is told.
    let mut held = 0;
    for _ in 0..5 {
        stand.simulator.control().flap(&row.external_session_id).unwrap();
        stand
            .pass(Duration::from_secs(4), STEP, async || {
                assert_eq!(stand.find(tenant, row.id).await.unwrap().status, "working");
                held += stand.count("SELECT count(*) FROM lanes WHERE paused_because = 'session_not_working'").await;
            })
            .await;
    }
    assert!(held > 0, "the lane was held meanwhile");
    assert_eq!(stand.count(told).await, before);
    let history = "SELECT count(*) FROM session_transitions WHERE waha_status = 'starting' AND status = 'working'";
    assert_eq!(stand.count(history).await, 5, "but it is written down");

    // The server is away: after 30 s that is said, once.
    stand.simulator.control().restart_after(Duration::from_secs(50));
    let since = stand.app.clock.now();
    let shown = stand
        .moving(STEP * 5, "the outage to show", async || {
            stand.find(tenant, row.id).await.filter(|row| row.status == "starting")
        })
        .await;
    let hidden = stand.app.clock.now() - since;
    assert!((30..40).contains(&hidden.num_seconds()), "shown after {hidden}");
    assert_eq!(shown.error_message.as_deref(), Some("The WAHA server of this session does not answer"));
    let back = stand
        .moving(STEP * 5, "it to be back", async || {
            stand.find(tenant, row.id).await.filter(|row| row.status == "working")
        })
        .await;
    assert_eq!(back.error_message, None);
    assert_eq!(stand.count(told).await, before + 2);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sessions_of_a_restarted_server_come_back_a_few_at_a_time() {
    let stand = Stand::moved(&[("SWITCHBOARD_STARTS_AT_ONCE", "1000")]).await;
    let tenant = stand.tenant("a").await;
    stand.server(200).await;
    let first = Stand::reconcile(&stand.app);
    let rows = working(&stand, tenant, 200).await;
    first.stop().await;
    // Twenty were stopped, and twenty are forgotten.
    let (waha, server) = (&stand.app.waha, stand.waha());
    let at = &server;
    let ends = rows.iter().take(40).enumerate().map(|(index, row)| async move {
        let name = row.external_session_id.as_str();
        if index < 20 { waha.delete(at, name).await } else { waha.stop(at, name).await }
    });
    let ending = join_all(ends);
    let moved = stand.pass(Duration::from_secs(10), STEP, async || {});
    let (ended, ()) = tokio::join!(ending, moved);
    ended.into_iter().for_each(|ended| ended.unwrap());
    assert_eq!(waha.list_sessions(&server, true).await.unwrap().len(), 180);
    stand.counter.forget();
    stand.simulator.control().restart();

    let there = stand.node_with("SWITCHBOARD_STARTS_AT_ONCE", "5");
    let second = Stand::reconcile(&there);
    let mut most = 0;
    stand
        .moving(STEP, "all to be back", async || {
            let all = stand.simulator.control().sessions();
            let starting = |row: &&SessionRow| {
                all.iter().any(|session| session.name == row.external_session_id && session.status == "STARTING")
            };
            most = most.max(rows.iter().take(40).filter(starting).count());
            let working = all.iter().filter(|session| session.status == "WORKING").count();
            let seen = stand.count("SELECT count(*) FROM waha_sessions WHERE waha_status = 'working'").await;
            (working == 200 && seen == 200).then_some(())
        })
        .await;
    stand
        .moving(STEP, "nothing to be left", async || {
            let query =
                "SELECT count(*) FROM waha_sessions WHERE reconcile_at IS NOT NULL OR reconcile_lease IS NOT NULL";
            (stand.count(query).await == 0).then_some(())
        })
        .await;
    assert!((1..=5).contains(&most), "{most} started at once");
    let created = stand.counter.calls("create");
    assert_eq!((created.len(), created.values().sum::<usize>()), (20, 20));
    let orders = stand.counter.calls("POST");
    assert_eq!((orders.len(), orders.values().sum::<usize>()), (20, 20), "{orders:?}");
    // Before and after the step, and once more for the time in between.
    let looks = stand.counter.calls("GET /api/sessions/sb_");
    let looked: usize = looks.values().sum();
    assert!(looks.len() == 40 && looked <= 40 * 4, "{looked} looks at {} sessions", looks.len());
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_hangs_while_starting_is_restarted_until_it_works() {
    let stand = Stand::moved(&[]).await;
    let tenant = stand.tenant("a").await;
    stand.server(5).await;
    let node = Stand::reconcile(&stand.app);
    let row = working(&stand, tenant, 1).await.remove(0);
    let name = row.external_session_id.as_str();
    stand.pass(Duration::from_secs(120), Duration::from_secs(1), async || {}).await;
    // Its server is restarted, and it hangs in this start and in the next two.
    let control = stand.simulator.control();
    control.stick_starting(name, 3);
    control.restart();
    let begun = stand.app.clock.now();
    let call = format!("POST /api/sessions/{name}/restart");
    let restarts = || stand.counter.calls(&call).get(&call).copied().unwrap_or(0);
    for (number, after) in [(1, 90), (2, 90 + 180), (3, 90 + 180 + 360)] {
        stand.moving(Duration::from_secs(1), "a restart", async || (restarts() >= number).then_some(())).await;
        let passed = (stand.app.clock.now() - begun).num_seconds();
        assert!((after..after + 60).contains(&passed), "restart {number} after {passed} s");
    }
    stand
        .moving(STEP, "it to work", async || stand.find(tenant, row.id).await.filter(|row| row.status == "working"))
        .await;
    stand.pass(Duration::from_secs(200), Duration::from_secs(2), async || {}).await;
    assert_eq!(restarts(), 3);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_session_is_tried_again_and_not_hammered() {
    let stand = Stand::moved(&[]).await;
    let tenant = stand.tenant("a").await;
    stand.server(5).await;
    let control = stand.simulator.control();
    control.add_fault(FaultRule::always("/api/sessions/{session}/start", Fault::Locked500).times(2));
    control.add_fault(FaultRule::always("/api/sessions/{session}/stop", Fault::Locked422).times(2));
    let node = Stand::reconcile(&stand.app);
    let row = stand.create(tenant, session("a")).await.unwrap();
    let is = async |status: &str| stand.find(tenant, row.id).await.filter(|row| row.status == status);
    stand.moving(STEP, "it to work", async || is("working").await).await;
    for (wish, status) in [(Wish::Stop, "stopped"), (Wish::Start, "working")] {
        let now = stand.app.clock.now();
        stand
            .app
            .db
            .tenant(tenant, async move |conn| queries::want(conn, row.id, wish, "me", now).await)
            .await
            .unwrap();
        stand.app.wake.sessions.notify_one();
        stand.moving(STEP, status, async || is(status).await).await;
    }
    stand.pass(Duration::from_secs(30), STEP, async || {}).await;
    let calls = stand.counter.calls("POST");
    assert_eq!(calls.values().copied().collect::<Vec<_>>(), [3, 3], "{calls:?}");
    node.stop().await;
}
