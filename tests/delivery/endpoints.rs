//! What tenants do with their endpoints.

use switchboard::db::TenantConn;
use switchboard::delivery::endpoints::{self, Change, EndpointError};
use switchboard::delivery::replay::{self, Replay};
use switchboard::domain::ids::{EndpointId, EventId};

use super::support::{Receiver, World, answer, world};

async fn test_event(world: &World, id: EndpointId) -> Result<EventId, EndpointError> {
    let app = &world.app;
    app.db.tenant(world.tenant, async move |conn: &mut TenantConn| replay::test(app, conn, id).await).await
}

async fn delete(world: &World, id: EndpointId) -> Result<(), EndpointError> {
    let app = &world.app;
    app.db.tenant(world.tenant, async move |conn: &mut TenantConn| endpoints::delete(app, conn, id).await).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoints_are_made_listed_changed_and_deleted() {
    world(|world| async move {
        let mut made = Vec::new();
        for number in 0..5 {
            made.push(world.endpoint(&format!("https://example.com/{number}"), &["message.*", "message.*"]).await.0);
            world.pass(1);
        }
        let shown = world.show(made[0]).await.unwrap();
        assert_eq!((shown.version, shown.enabled, shown.event_types.len()), (1, true, 1));

        let list = async |before| {
            let list = async move |conn: &mut TenantConn| endpoints::list(conn, before, 2).await;
            world.app.db.tenant(world.tenant, list).await.unwrap()
        };
        let mut seen = Vec::new();
        let mut before = None;
        loop {
            let page = list(before).await;
            let Some(last) = page.last() else { break };
            before = Some((last.created_at, last.id));
            seen.extend(page.iter().map(|endpoint| endpoint.id));
        }
        made.reverse();
        assert_eq!(seen, made, "newest first");

        let change = Change { description: Some(Some("ours".to_owned())), ..Change::default() };
        let changed = world.change(made[0], Some(1), change.clone()).await.unwrap();
        assert_eq!((changed.version, changed.description.as_deref()), (2, Some("ours")));
        assert!(matches!(world.change(made[0], Some(1), change).await, Err(EndpointError::Stale)));
        let change = Change { description: Some(None), event_types: Some(vec!["*".to_owned()]), ..Change::default() };
        let changed = world.change(made[0], None, change).await.unwrap();
        assert_eq!((changed.description, changed.event_types), (None, vec!["*".to_owned()]));

        let other = world.another_tenant().await;
        assert!(matches!(other.show(made[0]).await, Err(EndpointError::NotFound)));
        assert!(matches!(other.change(made[0], None, Change::default()).await, Err(EndpointError::NotFound)));
        assert!(matches!(delete(&other, made[0]).await, Err(EndpointError::NotFound)));
        assert!(matches!(test_event(&other, made[0]).await, Err(EndpointError::NotFound)));

        delete(&world, made[0]).await.unwrap();
        assert!(matches!(delete(&world, made[0]).await, Err(EndpointError::NotFound)));
        assert!(matches!(world.show(made[0]).await, Err(EndpointError::NotFound)));
        assert_eq!(list(None).await[0].id, made[1]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fields_that_break_a_rule_are_named() {
    world(|world| async move {
        let too_many = vec!["*"; 51];
        for (url, types, field, code) in [
            ("nowhere", vec!["*"], "url", "invalid_url"),
            ("ftp://example.com/", vec!["*"], "url", "https_required"),
            ("https://me:you@example.com/", vec!["*"], "url", "invalid_url"),
            ("https://example.com:25/", vec!["*"], "url", "forbidden_target"),
            ("https://example.com/", vec![], "event_types", "required"),
            ("https://example.com/", vec!["message.typo"], "event_types", "unknown_event_type"),
            ("https://example.com/", too_many, "event_types", "too_many"),
        ] {
            let error = world.try_endpoint(url, &types).await.unwrap_err();
            assert!(
                matches!(&error, EndpointError::Invalid { field: f, code: c, .. } if (*f, *c) == (field, code)),
                "{url} {types:?}: {error:?}"
            );
        }
        let (id, _) = world.endpoint("https://example.com/", &["*"]).await;
        let change = Change { description: Some(Some("ü".repeat(501))), ..Change::default() };
        let error = world.change(id, None, change).await.unwrap_err();
        assert!(matches!(error, EndpointError::Invalid { field: "description", code: "too_long", .. }));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_test_goes_to_its_endpoint_alone() {
    world(|world| async move {
        let (asked, silent) = (Receiver::start(&[]).await, Receiver::start(&[]).await);
        let (id, secret) = world.endpoint(&asked.url, &["session.qr"]).await;
        world.endpoint(&silent.url, &["*"]).await;
        let event = test_event(&world, id).await.unwrap();
        assert_eq!(world.fan_out(1).await, 0);
        let mut worker = world.worker();
        assert_eq!(worker.step().await.unwrap(), 1);
        worker.finish().await;
        let got = asked.got();
        assert_eq!((got.len(), silent.got().len(), got[0].id()), (1, 0, event.to_string().as_str()));
        got[0].verify(&secret);
        assert!(got[0].body.contains("\"test.ping\""));

        let change = Change { enabled: Some(false), ..Change::default() };
        world.change(id, None, change).await.unwrap();
        assert!(matches!(test_event(&world, id).await, Err(EndpointError::Disabled)));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attempts_are_listed_newest_first() {
    world(|world| async move {
        let receiver = Receiver::start(&[answer(500, "", "no")]).await;
        let (id, _) = world.endpoint(&receiver.url, &["*"]).await;
        world.emit_and_fan_out("message.sent").await;
        let mut worker = world.worker();
        for _ in 0..3 {
            assert_eq!(worker.step().await.unwrap(), 1);
            worker.finish().await;
            world.pass(8 * 3600);
        }
        let page = async |before| {
            let list = async move |conn: &mut TenantConn| replay::attempts(conn, id, before, 2).await;
            world.app.db.tenant(world.tenant, list).await.unwrap()
        };
        let first = page(None).await;
        let last = first.last().unwrap();
        let second = page(Some((last.at, last.id))).await;
        let numbers: Vec<_> = first.iter().chain(&second).map(|attempt| attempt.attempt).collect();
        assert_eq!(numbers, [3, 2, 1]);
        assert_eq!((first[0].event_type.as_str(), first[0].response_status), ("message.sent", Some(500)));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_delivers_again_with_the_same_ids() {
    world(|world| async move {
        let receiver = Receiver::start(&[answer(410, "", ""), answer(200, "", "")]).await;
        let (id, _) = world.endpoint(&receiver.url, &["message.*"]).await;
        let mut worker = world.worker();
        let early = world.emit_and_fan_out("message.sent").await;
        worker.step().await.unwrap();
        worker.finish().await;
        world.fan_out(1).await;
        let run = async |replay| replay::replay(&world.app, world.tenant, id, replay).await;
        let all = Replay { since: world.app.clock.now(), until: None, only_failed: false };
        world.pass(60);
        assert!(matches!(run(all).await, Err(EndpointError::Disabled)));
        let enable = Change { enabled: Some(true), ..Change::default() };
        world.change(id, None, enable).await.unwrap();
        let good = world.emit_and_fan_out("message.read").await;
        world.emit_and_fan_out("session.status").await;
        worker.step().await.unwrap();
        worker.finish().await;
        assert_eq!(
            (world.status(early, id).await.as_str(), world.status(good, id).await.as_str()),
            ("failed", "delivered")
        );
        world.pass(60);

        assert_eq!(run(Replay { only_failed: true, ..all }).await.unwrap(), 1);
        assert_eq!(worker.step().await.unwrap(), 1);
        worker.finish().await;
        assert_eq!(world.status(early, id).await, "delivered");
        assert_eq!(run(Replay { only_failed: true, ..all }).await.unwrap(), 0);

        let until = Some(world.app.clock.now() - chrono::TimeDelta::seconds(90));
        assert_eq!(run(Replay { until, ..all }).await.unwrap(), 1, "only the early one");
        assert_eq!(run(all).await.unwrap(), 2, "what it is subscribed to");
        assert_eq!(worker.step().await.unwrap(), 2);
        worker.finish().await;
        let ids: Vec<_> = receiver.got().iter().map(|request| request.id().to_owned()).collect();
        assert_eq!(ids.iter().filter(|got| **got == early.to_string()).count(), 3);
        assert_eq!(ids.iter().filter(|got| **got == good.to_string()).count(), 2);
        assert_eq!(world.delivery(early, id).await.unwrap().attempts, 3);
        assert!(matches!(
            run(Replay { until: Some(all.since), ..all }).await,
            Err(EndpointError::Invalid { field: "until", .. })
        ));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_made_later_can_catch_up_by_replay() {
    world(|world| async move {
        let before = world.app.clock.now();
        world.emit(&["message.sent"; 20]).await;
        world.fan_out(20).await;
        world.pass(5);
        let receiver = Receiver::start(&[]).await;
        let (id, _) = world.endpoint(&receiver.url, &["*"]).await;
        let all = Replay { since: before, until: None, only_failed: false };
        assert_eq!(replay::replay(&world.app, world.tenant, id, all).await.unwrap(), 20);
        let other = world.another_tenant().await;
        assert!(matches!(replay::replay(&world.app, other.tenant, id, all).await, Err(EndpointError::NotFound)));
    })
    .await;
}
