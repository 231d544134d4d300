//! The log, and the fan-out: nothing passed over, nothing twice, nobody else's.

use diesel_async::RunQueryDsl;
use switchboard::db::{DbError, TenantConn, sql};
use switchboard::domain::ids::EventId;
use switchboard::events::fan_out;
use switchboard::events::log;
use switchboard::events::query::{self, After, Event, Position};
use tokio::sync::oneshot;

use super::support::{World, world};

async fn list(world: &World, after: After, patterns: &[&str], limit: i64) -> Option<Vec<Event>> {
    let patterns: Vec<String> = patterns.iter().map(|name| (*name).to_owned()).collect();
    let list = async move |conn: &mut TenantConn| query::list(conn, after, &patterns, limit).await;
    world.app.db.tenant(world.tenant, list).await.unwrap()
}

/// Waits until `count` events can be read: transactions in other databases of the server hold them back as well.
async fn readable(world: &World, count: usize) -> Vec<Event> {
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
    loop {
        let events = list(world, After::Position(Position::START), &[], 1000).await.unwrap();
        if events.len() >= count {
            return events;
        }
        assert!(tokio::time::Instant::now() < deadline, "{} of {count} events", events.len());
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoints_get_what_they_subscribed_to_and_of_their_tenant_only() {
    world(|world| async move {
        let other = world.another_tenant().await;
        let kinds = ["message.sent", "message.read", "session.status", "session.qr", "endpoint.disabled"];
        let cases: [(&[&str], &[bool; 5]); 5] = [
            (&["*"], &[true; 5]),
            (&["message.*"], &[true, true, false, false, false]),
            (&["message.read", "session.*"], &[false, true, true, true, false]),
            (&["session.qr", "session.*", "*"], &[true; 5]),
            (&["test.ping"], &[false; 5]),
        ];
        let mut endpoints = Vec::new();
        for (types, expected) in cases {
            endpoints.push((world.endpoint("https://example.com/hook", types).await.0, expected));
        }
        let (foreign, _) = other.endpoint("https://example.com/hook", &["*"]).await;
        let events = world.emit(&kinds).await;
        let ping = world.emit(&["test.ping"]).await[0];
        world.fan_out(6).await;
        for (endpoint, expected) in endpoints {
            for (event, expected) in events.iter().zip(expected) {
                assert_eq!(world.delivery(*event, endpoint).await.is_some(), *expected);
            }
            assert_eq!(world.delivery(ping, endpoint).await, None, "a test is for the endpoint it was asked for");
        }
        for event in events {
            assert_eq!(other.delivery(event, foreign).await, None);
        }
        assert_eq!(
            world.count("SELECT count(*) FROM webhook_deliveries WHERE id::text !~ '^.{14}7.{4}a'").await,
            0,
            "v7"
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_commits_late_is_not_passed_over() {
    world(|world| async move {
        let (endpoint, _) = world.endpoint("https://example.com/hook", &["*"]).await;
        let (begun, has_begun) = oneshot::channel();
        let (go_on, may_go_on) = oneshot::channel::<()>();
        let slow = world.event("message.sent");
        let slow_id = slow.id;
        let (app, tenant) = (world.app.clone(), world.tenant);
        let writer = tokio::spawn(async move {
            app.db
                .tenant(tenant, async move |conn: &mut TenantConn| {
                    log::append(conn, &[slow]).await?;
                    begun.send(()).unwrap();
                    may_go_on.await.unwrap();
                    Ok::<_, DbError>(())
                })
                .await
                .unwrap();
        });
        has_begun.await.unwrap();
        let quick = world.emit(&["message.sent"]).await[0];

        let (step, _) = fan_out::step(&world.app, None).await.unwrap();
        assert_eq!((step.events, step.held_back), (0, true));
        assert!(list(&world, After::Position(Position::START), &[], 10).await.unwrap().is_empty());

        go_on.send(()).unwrap();
        writer.await.unwrap();
        assert_eq!(world.fan_out(2).await, 2);
        assert_eq!(world.status(slow_id, endpoint).await, "pending");
        assert_eq!(world.status(quick, endpoint).await, "pending");
        assert_eq!(readable(&world, 2).await.iter().map(|event| event.id).collect::<Vec<_>>(), [slow_id, quick]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_rolled_back_was_never_an_event() {
    world(|world| async move {
        world.endpoint("https://example.com/hook", &["*"]).await;
        let event = world.event("message.sent");
        let fail = async move |conn: &mut TenantConn| {
            log::append(conn, &[event]).await?;
            Err::<(), _>(DbError::Refused("changed its mind".to_owned()))
        };
        world.app.db.tenant(world.tenant, fail).await.unwrap_err();
        world.emit(&["message.sent"]).await;
        assert_eq!(world.fan_out(1).await, 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_nodes_hand_on_each_event_once() {
    world(|world| async move {
        world.endpoint("https://example.com/a", &["*"]).await;
        world.endpoint("https://example.com/b", &["message.*"]).await;
        let published = std::sync::Arc::new(std::sync::Mutex::new(Vec::<EventId>::new()));
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let nodes: Vec<_> = [world.app.clone(), world.another_node(), world.another_node()]
            .into_iter()
            .map(|app| {
                let published = published.clone();
                let publish: fan_out::Publish = std::sync::Arc::new(move |events| {
                    published.lock().unwrap().extend(events.into_iter().map(|event| event.id));
                });
                tokio::spawn(fan_out::run(app, Some(publish), stopped.clone()))
            })
            .collect();
        let mut ids = Vec::new();
        for _ in 0..30 {
            ids.extend(world.emit(&["message.sent"; 50]).await);
            world.app.wake.events.notify_one();
        }
        let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
        while world.count("SELECT count(*) FROM webhook_deliveries").await < 3000 {
            assert!(tokio::time::Instant::now() < deadline);
        }
        stop.send(true).unwrap();
        for node in nodes {
            node.await.unwrap();
        }
        let mut published = published.lock().unwrap().clone();
        published.sort_unstable();
        ids.sort_unstable();
        assert_eq!(published, ids);
        assert_eq!(world.count("SELECT count(*) FROM webhook_deliveries").await, 3000);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_larger_than_one_step_is_handed_on_whole() {
    world(|world| async move {
        world.endpoint("https://example.com/a", &["*"]).await;
        for _ in 0..5 {
            world.emit(&["message.sent"; 500]).await;
        }
        assert_eq!(world.fan_out(2500).await, 2500);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_reads_oldest_first_from_anywhere() {
    world(|world| async move {
        let other = world.another_tenant().await;
        other.emit(&["message.sent"]).await;
        let mut ids = world.emit(&["message.sent", "session.qr", "message.read"]).await;
        let between = world.app.clock.now();
        world.pass(3600);
        ids.extend(world.emit(&["message.sent"]).await);
        readable(&world, 4).await;
        let names = |events: Option<Vec<Event>>| events.unwrap().iter().map(|event| event.id).collect::<Vec<_>>();

        assert_eq!(names(list(&world, After::Position(Position::START), &[], 10).await), ids);
        let first = list(&world, After::Position(Position::START), &[], 2).await.unwrap();
        assert_eq!(names(list(&world, After::Position(first[1].position), &[], 10).await), ids[2..]);
        assert_eq!(names(list(&world, After::Event(ids[0]), &[], 10).await), ids[1..]);
        assert_eq!(names(list(&world, After::Time(between), &[], 10).await), ids[3..]);
        assert_eq!(names(list(&world, After::Time(world.app.clock.now()), &[], 10).await), []);
        assert_eq!(
            names(list(&world, After::Position(Position::START), &["message.*"], 10).await),
            [ids[0], ids[2], ids[3]]
        );
        assert_eq!(names(list(&world, After::Position(Position::START), &["session.qr"], 10).await), [ids[1]]);
        assert!(list(&other, After::Event(ids[0]), &[], 10).await.is_none(), "another tenant's event does not exist");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reading_follows_indexes() {
    world(|world| async move {
        for _ in 0..4 {
            world.emit(&["message.sent"; 500]).await;
        }
        world.maintain("ANALYZE events").await;
        let plan = async |query: &'static str| {
            #[derive(diesel::QueryableByName)]
            struct Line {
                #[diesel(sql_type = diesel::sql_types::Text, column_name = "QUERY PLAN")]
                line: String,
            }
            let explain = async move |conn: &mut switchboard::db::SystemConn| {
                let lines: Vec<Line> = sql(query).load(&mut **conn).await?;
                Ok::<_, DbError>(lines.into_iter().map(|line| line.line + "\n").collect::<String>())
            };
            world.app.db.system(explain).await.unwrap()
        };
        let fan_out = plan(
            "EXPLAIN SELECT * FROM events e WHERE (e.xact, e.seq) > (1, 1) \
             AND e.xact < pg_snapshot_xmin(pg_current_snapshot())::text::bigint ORDER BY e.xact, e.seq LIMIT 100",
        )
        .await;
        assert!(fan_out.contains("events_order") && !fan_out.contains("Sort"), "{fan_out}");
    })
    .await;
}
