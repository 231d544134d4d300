use std::collections::HashSet;

use switchboard::broker::{ConsumeOptions, LinkState, PublishError, Queue, Route, Verdict};
use switchboard::domain::ids::WahaServerId;
use tokio::sync::mpsc;

use super::{PATIENCE, Room, fresh, next, number};

#[tokio::test(flavor = "multi_thread")]
async fn a_confirmed_message_is_delivered_with_all_it_carries() {
    let room = Room::open().await;
    let sent = room.message(Route::Deliver, "{\"a\":1}");
    assert_eq!(room.broker.publish(sent.clone()).await, Ok(()));
    let (seen, mut received) = mpsc::unbounded_channel();
    room.broker.consume(Queue::Deliver, ConsumeOptions::default(), move |delivery| {
        seen.send(delivery).unwrap();
        async { Verdict::Done }
    });
    let delivery = next(&mut received).await;
    assert_eq!(delivery.body, sent.body);
    assert_eq!(delivery.kind, "test.message");
    assert_eq!(delivery.id, Some(sent.id));
    assert_eq!(delivery.traceparent, sent.traceparent);
    assert!(!delivery.redelivered);
    assert_eq!(delivery.returns, 0);
    assert!(!format!("{sent:?} {delivery:?}").contains("\"a\""), "bodies stay out of Debug");
    room.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_queue_keeps_its_order() {
    let room = Room::open().await;
    let server = WahaServerId(fresh(&room.chance));
    let route = Route::Outbound(server);
    for hundred in 0..5 {
        room.publish_numbers(&route, hundred * 100..(hundred + 1) * 100).await;
    }
    let (seen, mut received) = mpsc::unbounded_channel();
    let one = ConsumeOptions { prefetch: 1, ..ConsumeOptions::default() };
    room.broker.consume(Queue::Outbound(server), one, move |delivery| {
        seen.send(number(&delivery)).unwrap();
        async { Verdict::Done }
    });
    for expected in 0..500 {
        assert_eq!(next(&mut received).await, expected);
    }
    // The queue of this server is known to this process only.
    room.broker.delete_all().await.unwrap();
    room.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_callers_share_the_channels_and_each_gets_its_own_answer() {
    let room = Room::open().await;
    let callers = (0..50).map(|caller| {
        let messages: Vec<_> =
            (0..20).map(|number| room.message(Route::Inbound, (caller * 20 + number).to_string())).collect();
        let broker = room.broker.clone();
        tokio::spawn(async move { broker.publish_all(messages).await })
    });
    for answers in futures_util::future::join_all(callers).await {
        assert_eq!(answers.unwrap(), vec![Ok(()); 20]);
    }
    let (seen, mut received) = mpsc::unbounded_channel();
    room.broker.consume_batches(Queue::Inbound, ConsumeOptions::default(), move |deliveries| {
        let verdicts = vec![Verdict::Done; deliveries.len()];
        for delivery in deliveries {
            seen.send(number(&delivery)).unwrap();
        }
        async { verdicts }
    });
    let mut all = HashSet::new();
    while all.len() < 1000 {
        assert!(all.insert(next(&mut received).await), "nothing twice");
    }
    room.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_nobody_listens_to_is_fine_and_a_listener_gets_what_matches() {
    let room = Room::open().await;
    let event = |key: &str, body: &str| room.message(Route::Event { routing_key: key.to_owned() }, body);
    assert_eq!(room.broker.publish(event("t1.message.sent", "0")).await, Ok(()));
    let unheard = room.broker.publish_to_listeners(vec![event("t1.message.sent", "0")]).await;
    assert_eq!(unheard, [Err(PublishError::Unroutable)], "whoever asks is told that nobody listens");
    let too_long = event(&"k".repeat(256), "0");
    assert_eq!(room.broker.publish(too_long).await, Err(PublishError::Refused));

    let (seen, mut received) = mpsc::unbounded_channel();
    room.broker.subscribe_events("t1.#", move |delivery| {
        let seen = seen.clone();
        async move { seen.send((delivery.routing_key.clone(), number(&delivery))).unwrap() }
    });
    // The subscription is not awaited: publish until the first arrives.
    let mut probe = 1;
    let first = loop {
        assert_eq!(room.broker.publish(event("t1.probe", &probe.to_string())).await, Ok(()));
        probe += 1;
        if let Ok(first) = received.try_recv() {
            break first;
        }
    };
    assert_eq!(first.0, "t1.probe");
    let heard = room.broker.publish_to_listeners(vec![event("t1.probe", "0"), event("t2.message.sent", "0")]).await;
    assert_eq!(heard, [Ok(()), Err(PublishError::Unroutable)]);
    assert_eq!(room.broker.publish(event("t2.message.sent", "7")).await, Ok(()));
    for number in 100..200 {
        assert_eq!(room.broker.publish(event("t1.message.sent", &number.to_string())).await, Ok(()));
    }
    let mut expected = 100;
    while expected < 200 {
        let (key, number) = next(&mut received).await;
        if key != "t1.probe" {
            assert_eq!((key.as_str(), number), ("t1.message.sent", expected));
            expected += 1;
        }
    }
    room.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_queue_is_made_again_by_the_publish_that_misses_it() {
    let room = Room::open().await;
    room.publish_numbers(&Route::Inbound, 0..3).await;
    room.delete_queue("inbound").await;
    room.publish_numbers(&Route::Inbound, 3..103).await;
    assert_eq!(room.depth("inbound").await, Some(100));
    room.close().await;
}

/// Returned messages of one queue must not be taken for those of another in the same window.
#[tokio::test(flavor = "multi_thread")]
async fn a_mixed_batch_across_a_deleted_queue_arrives_completely() {
    let room = Room::open().await;
    room.publish_numbers(&Route::Inbound, 0..1).await;
    room.publish_numbers(&Route::Deliver, 0..1).await;
    for _ in 0..10 {
        room.delete_queue("deliver").await;
        let before = room.depth("inbound").await.unwrap();
        let route = |number: u32| if number.is_multiple_of(3) { Route::Deliver } else { Route::Inbound };
        let mixed = (0..300).map(|number| room.message(route(number), number.to_string())).collect();
        assert_eq!(room.broker.publish_all(mixed).await, vec![Ok(()); 300]);
        assert_eq!(room.depth("deliver").await, Some(100));
        assert_eq!(room.depth("inbound").await, Some(before + 200));
    }
    room.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_namespace_is_made_again() {
    let room = Room::open().await;
    room.publish_numbers(&Route::Inbound, 0..3).await;
    for queue in ["inbound", "dead"] {
        room.delete_queue(queue).await;
    }
    for exchange in ["events", "dlx"] {
        room.delete_exchange(exchange).await;
    }
    // The missing exchange closes the channel; the message is published all the same.
    let event = room.message(Route::Event { routing_key: "t1.x".to_owned() }, "1");
    assert_eq!(room.broker.publish(event).await, Ok(()));
    room.publish_numbers(&Route::Inbound, 3..6).await;
    assert_eq!(room.depth("inbound").await, Some(3));
    assert_eq!(room.depth("dead").await, Some(0));
    room.close().await;
}

/// A queue that cannot be made: a name is taken by an exclusive queue of another connection.
#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_cannot_be_made_is_unroutable_and_harms_no_neighbour() {
    let room = Room::open().await;
    let server = WahaServerId(fresh(&room.chance));
    let channel = super::control().await;
    let exclusive = lapin::options::QueueDeclareOptions { exclusive: true, ..Default::default() };
    let name = format!("{}.outbound.{server}", room.namespace);
    channel.queue_declare(name.into(), exclusive, Default::default()).await.unwrap();

    let batch = vec![room.message(Route::Outbound(server), "1"), room.message(Route::Inbound, "2")];
    assert_eq!(room.broker.publish_all(batch).await, vec![Err(PublishError::Unroutable), Ok(())]);
    channel.close(200, "OK".into()).await.unwrap();
    room.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_queue_with_other_arguments_is_used() {
    let room = Room::open().await;
    let channel = super::control().await;
    let name = format!("{}.inbound", room.namespace);
    let durable = lapin::options::QueueDeclareOptions::durable();
    channel.queue_declare(name.into(), durable, Default::default()).await.unwrap();
    room.publish_numbers(&Route::Inbound, 0..3).await;
    assert_eq!(room.depth("inbound").await, Some(3));
    room.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_broker_a_publish_fails_at_once() {
    let chance = switchboard::domain::chance::Chance::from_system();
    for url in ["amqp://guest:guest@127.0.0.1:1/%2f", "http://nonsense", "amqp://guest:wrong@127.0.0.1:1"] {
        let broker = super::start(url, "test.nowhere", PATIENCE);
        let room = Room { broker, namespace: "test.nowhere".to_owned(), chance: chance.clone() };
        assert!(!room.broker.is_connected());
        assert_eq!(room.broker.publish(room.message(Route::Inbound, "1")).await, Err(PublishError::Disconnected));
        assert!(room.broker.delete_all().await.is_err());
        assert!(room.broker.stop_within(PATIENCE).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_stop_nothing_is_published() {
    let room = Room::open().await;
    room.publish_numbers(&Route::Inbound, 0..1).await;
    room.broker.stop().await;
    assert_eq!(*room.broker.state().borrow(), LinkState::Disconnected);
    assert_eq!(room.broker.publish(room.message(Route::Inbound, "1")).await, Err(PublishError::Disconnected));
    room.close().await;
}
