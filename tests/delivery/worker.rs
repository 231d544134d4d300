//! Attempts: signed, retried, isolated, repeated only when they must be.

use std::collections::HashMap;

use switchboard::delivery::endpoints::{self, Change};
use switchboard::delivery::worker::Worker;
use switchboard::events::query::{self, After, Position};

use super::support::{Receiver, Tried, World, answer, world, world_with};

fn tried(attempt: i32, status: i16, body: Option<&str>) -> Tried {
    Tried { attempt, response_status: Some(status), error: None, response_body: body.map(str::to_owned) }
}

/// Claims and attempts once; answers how many were claimed.
async fn turn(worker: &mut Worker) -> usize {
    let claimed = worker.step().await.unwrap();
    worker.finish().await;
    claimed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delivery_is_signed_and_retried_on_the_schedule() {
    world(|world| async move {
        let receiver =
            Receiver::start(&[answer(500, "", "down\0!"), answer(404, "", &"x".repeat(5000)), answer(200, "", "")])
                .await;
        let (endpoint, secret) = world.endpoint(&receiver.url, &["*"]).await;
        let event = world.emit_and_fan_out("message.sent").await;
        let mut worker = world.worker();

        assert_eq!(turn(&mut worker).await, 1);
        assert_eq!(turn(&mut worker).await, 0, "not due yet");
        let first = receiver.got().pop().unwrap();
        assert_eq!(first.path, "/hook?token=secret");
        assert_eq!(first.id(), event.to_string());
        assert_eq!(first.headers["content-type"], "application/json");
        assert!(first.headers["user-agent"].starts_with("switchboard/"));
        assert_eq!(first.headers["webhook-timestamp"], world.app.clock.now().timestamp().to_string());
        assert!(first.is_signed_with(&secret));
        first.verify(&secret);
        let body: serde_json::Value = serde_json::from_str(&first.body).unwrap();
        assert_eq!(body["id"], event.to_string());
        assert_eq!(body["type"], "message.sent");
        assert_eq!(body["data"]["body"], "Grüße \"quoted\" 👍");
        assert!(body["timestamp"].as_str().unwrap().ends_with('Z'));

        world.pass(4);
        assert_eq!(turn(&mut worker).await, 0, "the first retry is after 5 s");
        world.pass(2);
        assert_eq!(turn(&mut worker).await, 1);
        world.pass(299);
        assert_eq!(turn(&mut worker).await, 0, "the second retry is after 5 min");
        world.pass(61);
        assert_eq!(turn(&mut worker).await, 1);

        let all = receiver.got();
        assert_eq!(all.len(), 3);
        assert!(all.iter().all(|request| request.id() == event.to_string() && request.body == first.body));
        assert!(all.iter().all(|request| request.is_signed_with(&secret)));
        assert_ne!(all[0].headers["webhook-timestamp"], all[2].headers["webhook-timestamp"]);
        assert_eq!(world.status(event, endpoint).await, "delivered");
        let kept = "x".repeat(1024);
        let expected = [tried(1, 500, Some("down\u{fffd}!")), tried(2, 404, Some(&kept)), tried(3, 200, None)];
        assert_eq!(world.tried(event).await, expected);
        assert_eq!(world.show(endpoint).await.unwrap().failing_since, None, "a success ends the failure");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schedule_that_is_used_up_ends_in_failed() {
    world(|world| async move {
        let receiver = Receiver::start(&[answer(500, "", "")]).await;
        let (endpoint, _) = world.endpoint(&receiver.url, &["*"]).await;
        let event = world.emit_and_fan_out("message.sent").await;
        let mut worker = world.worker();
        for delay in [5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400] {
            assert_eq!(turn(&mut worker).await, 1);
            assert_eq!(world.status(event, endpoint).await, "pending");
            world.pass(delay - 1);
            assert_eq!(turn(&mut worker).await, 0, "before {delay} s");
            world.pass(delay / 5 + 2);
        }
        assert_eq!(turn(&mut worker).await, 1);
        assert_eq!(world.status(event, endpoint).await, "failed");
        assert!(world.show(endpoint).await.unwrap().enabled);
        world.pass(14 * 24 * 3600);
        assert_eq!(turn(&mut worker).await, 0);
        assert_eq!(world.tried(event).await.len(), 10);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_endpoint_may_ask_for_more_time() {
    world(|world| async move {
        let receiver = Receiver::start(&[answer(503, "retry-after: 3600\r\n", ""), answer(200, "", "")]).await;
        world.endpoint(&receiver.url, &["*"]).await;
        world.emit_and_fan_out("message.sent").await;
        let mut worker = world.worker();
        assert_eq!(turn(&mut worker).await, 1);
        world.pass(3599);
        assert_eq!(turn(&mut worker).await, 0);
        world.pass(721);
        assert_eq!(turn(&mut worker).await, 1);
    })
    .await;
}

async fn disabled_events(world: &World) -> Vec<serde_json::Value> {
    let patterns = vec!["endpoint.*".to_owned()];
    let list = async move |conn: &mut switchboard::db::TenantConn| {
        query::list(conn, After::Position(Position::START), &patterns, 10).await
    };
    let events = world.app.db.tenant(world.tenant, list).await.unwrap().unwrap();
    events.iter().map(|event| serde_json::from_str(&event.to_json()).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gone_disables_and_tells_the_tenant() {
    world(|world| async move {
        let receiver = Receiver::start(&[answer(500, "", ""), answer(410, "", "")]).await;
        let (endpoint, _) = world.endpoint(&receiver.url, &["message.*"]).await;
        let mut worker = world.worker();
        let waiting = world.emit_and_fan_out("message.sent").await;
        assert_eq!(turn(&mut worker).await, 1);
        let event = world.emit_and_fan_out("message.sent").await;
        assert_eq!(turn(&mut worker).await, 1);

        let shown = world.show(endpoint).await.unwrap();
        assert_eq!((shown.enabled, shown.disabled_because.as_deref(), shown.version), (false, Some("gone"), 2));
        assert_eq!(world.status(event, endpoint).await, "failed");
        worker.tidy().await;
        assert_eq!(world.status(waiting, endpoint).await, "failed", "what was pending is ended");
        assert_eq!(world.fan_out(1).await, 0, "the event of the disabling, for nobody");
        let told = disabled_events(&world).await;
        assert_eq!(told.len(), 1);
        assert_eq!(told[0]["type"], "endpoint.disabled");
        assert_eq!(told[0]["data"]["id"], endpoint.to_string());
        assert_eq!(told[0]["data"]["disabled_because"], "gone");
        assert!(told[0]["data"].get("secret").is_none());

        world.emit_and_fan_out("message.sent").await;
        world.pass(3600);
        assert_eq!(turn(&mut worker).await, 0, "a disabled endpoint gets nothing");
        let change = Change { enabled: Some(true), ..Change::default() };
        let shown = world.change(endpoint, Some(2), change).await.unwrap();
        assert_eq!((shown.enabled, shown.disabled_because, shown.failing_since), (true, None, None));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_days_of_nothing_but_failures_disable() {
    world(|world| async move {
        let receiver = Receiver::start(&[answer(500, "", ""), answer(200, "", ""), answer(500, "", "")]).await;
        let (endpoint, _) = world.endpoint(&receiver.url, &["message.*"]).await;
        let mut worker = world.worker();
        world.emit_and_fan_out("message.sent").await;
        turn(&mut worker).await;
        world.pass(130 * 3600);
        assert_eq!(turn(&mut worker).await, 1, "a success in between");
        world.emit_and_fan_out("message.sent").await;
        turn(&mut worker).await;
        assert!(world.show(endpoint).await.unwrap().enabled);
        world.pass(119 * 3600);
        turn(&mut worker).await;
        assert!(world.show(endpoint).await.unwrap().enabled);
        world.pass(3601);
        turn(&mut worker).await;
        let shown = world.show(endpoint).await.unwrap();
        assert_eq!((shown.enabled, shown.disabled_because.as_deref()), (false, Some("failing")));
        world.fan_out(1).await;
        assert_eq!(disabled_events(&world).await.len(), 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_hangs_delays_no_other() {
    world(|world| async move {
        let hanging = Receiver::hanging(&[]).await;
        let healthy = Receiver::start(&[]).await;
        world.endpoint(&hanging.url, &["message.*"]).await;
        let another = world.another_tenant().await;
        let mut worker = world.worker();
        world.emit(&["message.sent"; 40]).await;
        assert_eq!(world.fan_out(40).await, 40);
        assert_eq!(worker.step().await.unwrap(), 10, "a few slots, no more");
        hanging.wait_for(10).await;
        assert_eq!(worker.step().await.unwrap(), 0);

        another.endpoint(&healthy.url, &["*"]).await;
        another.emit(&["message.read"; 30]).await;
        assert_eq!(world.fan_out(30).await, 30);
        let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(10);
        while healthy.got().len() < 30 {
            worker.step().await.unwrap();
            tokio::task::yield_now().await;
            assert!(tokio::time::Instant::now() < deadline, "{} of 30", healthy.got().len());
        }
        assert_eq!(hanging.got().len(), 10);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_keeps_failing_gets_one_slot() {
    world(|world| async move {
        let receiver = Receiver::start(&[answer(500, "", "")]).await;
        world.endpoint(&receiver.url, &["*"]).await;
        let mut worker = world.worker();
        world.emit_and_fan_out("message.sent").await;
        turn(&mut worker).await;
        world.emit(&["message.sent"; 20]).await;
        world.fan_out(20).await;
        assert_eq!(turn(&mut worker).await, 10, "not failing for long");
        world.pass(61);
        assert_eq!(turn(&mut worker).await, 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_killed_in_the_attempt_causes_one_repeat_with_the_same_id() {
    world(|world| async move {
        let receiver = Receiver::hanging(&[answer(200, "", "")]).await;
        let (endpoint, _) = world.endpoint(&receiver.url, &["*"]).await;
        let event = world.emit_and_fan_out("message.sent").await;
        let mut doomed = world.worker();
        assert_eq!(doomed.step().await.unwrap(), 1);
        receiver.wait_for(1).await;
        drop(doomed);

        receiver.release(10);
        let mut worker = world.worker();
        world.pass(29);
        assert_eq!(turn(&mut worker).await, 0, "leased");
        world.pass(1);
        assert_eq!(turn(&mut worker).await, 1);
        let got = receiver.got();
        assert_eq!((got.len(), got[0].id(), got[1].id()), (2, got[1].id(), got[0].id()));
        let row = world.delivery(event, endpoint).await.unwrap();
        assert_eq!((row.status.as_str(), row.attempts), ("delivered", 2));
        world.pass(3600);
        assert_eq!(turn(&mut worker).await, 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_record_decides_nothing_but_a_success_counts() {
    world(|world| async move {
        for (late, status) in [(500_u16, "pending"), (200, "delivered")] {
            let receiver = Receiver::hanging(&[answer(late, "", "")]).await;
            let (endpoint, _) = world.endpoint(&receiver.url, &["message.sent"]).await;
            let event = world.emit_and_fan_out("message.sent").await;
            let mut stalled = world.worker();
            assert_eq!(stalled.step().await.unwrap(), 1);
            receiver.wait_for(1).await;
            world.pass(31);
            let mut worker = world.worker();
            assert_eq!(worker.step().await.unwrap(), 1);
            receiver.wait_for(2).await;
            receiver.release(1);
            stalled.finish().await;
            let row = world.delivery(event, endpoint).await.unwrap();
            assert_eq!((row.status.as_str(), row.attempts), (status, 2));
            assert_eq!(turn(&mut world.worker()).await, 0, "the second attempt still holds its lease");
            assert_eq!(world.tried(event).await, [tried(1, i16::try_from(late).unwrap(), None)]);
            drop(worker);
            let change = Change { enabled: Some(false), ..Change::default() };
            world.change(endpoint, None, change).await.unwrap();
            world.worker().tidy().await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_workers_never_make_the_same_attempt() {
    world(|world| async move {
        let receiver = Receiver::start(&[]).await;
        for _ in 0..3 {
            world.endpoint(&receiver.url, &["*"]).await;
        }
        world.emit(&["message.sent"; 100]).await;
        assert_eq!(world.fan_out(100).await, 300);
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let other = world.another_node();
        let workers: Vec<_> = [world.app.clone(), other]
            .into_iter()
            .map(|app| tokio::spawn(switchboard::delivery::worker::run(app, stopped.clone())))
            .collect();
        receiver.wait_for(300).await;
        stop.send(true).unwrap();
        for worker in workers {
            worker.await.unwrap().unwrap();
        }
        let mut times: HashMap<String, usize> = HashMap::new();
        for request in receiver.got() {
            *times.entry(request.id().to_owned()).or_default() += 1;
        }
        assert_eq!((times.len(), times.values().all(|times| *times == 3)), (100, true));
        assert_eq!(
            world.count("SELECT count(*) FROM webhook_deliveries WHERE status = 'delivered' AND attempts = 1").await,
            300
        );
        assert_eq!(world.count("SELECT count(*) FROM webhook_attempts").await, 300);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redirect_is_a_failure_and_not_followed() {
    world(|world| async move {
        let target = Receiver::start(&[]).await;
        let receiver = Receiver::start(&[answer(302, &format!("location: {}\r\n", target.url), "")]).await;
        let (endpoint, _) = world.endpoint(&receiver.url, &["*"]).await;
        let event = world.emit_and_fan_out("message.sent").await;
        turn(&mut world.worker()).await;
        assert_eq!((receiver.got().len(), target.got().len()), (1, 0));
        assert_eq!(world.tried(event).await, [tried(1, 302, None)]);
        assert_eq!(world.status(event, endpoint).await, "pending");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn private_addresses_are_refused_when_made_and_when_called() {
    world_with(false, |world| async move {
        let receiver = Receiver::start(&[]).await;
        for url in
            [receiver.url.as_str(), "https://127.0.0.1/", "https://[::ffff:10.0.0.1]/", "http://example.com/", "x"]
        {
            let refused = world.try_endpoint(url, &["*"]).await.unwrap_err();
            assert!(matches!(refused, endpoints::EndpointError::Invalid { field: "url", .. }), "{url}");
        }
        // An address that was allowed when the endpoint was made.
        let (endpoint, _) = world.endpoint("https://example.com/", &["*"]).await;
        world.set_url(endpoint, &receiver.url.replace("http:", "https:")).await;
        let event = world.emit_and_fan_out("message.sent").await;
        turn(&mut world.worker()).await;
        let tried = world.tried(event).await;
        assert_eq!(tried[0].error.as_deref(), Some("refused_address"));
        assert_eq!(receiver.got().len(), 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_rotation_both_secrets_sign_for_a_day() {
    use secrecy::ExposeSecret;
    world(|world| async move {
        let receiver = Receiver::start(&[]).await;
        let (endpoint, old) = world.endpoint(&receiver.url, &["*"]).await;
        let app = world.app.clone();
        let rotate =
            async move |conn: &mut switchboard::db::TenantConn| endpoints::rotate_secret(&app, conn, endpoint).await;
        let new = world.app.db.tenant(world.tenant, rotate).await.unwrap();
        let app = world.app.clone();
        let show = async move |conn: &mut switchboard::db::TenantConn| endpoints::secret(&app, conn, endpoint).await;
        let shown = world.app.db.tenant(world.tenant, show).await.unwrap();
        assert_eq!(shown.expose_secret(), new.expose_secret());

        let mut worker = world.worker();
        world.emit_and_fan_out("message.sent").await;
        turn(&mut worker).await;
        world.pass(24 * 3600);
        world.emit_and_fan_out("message.sent").await;
        turn(&mut worker).await;
        let got = receiver.got();
        assert!(got[0].is_signed_with(&old) && got[0].is_signed_with(new.expose_secret()));
        assert!(!got[1].is_signed_with(&old) && got[1].is_signed_with(new.expose_secret()));
    })
    .await;
}
