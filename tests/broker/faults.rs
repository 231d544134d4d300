use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use switchboard::broker::{ConsumeOptions, LinkState, PublishError, Queue, Route, Verdict};
use tokio::sync::mpsc;

use super::{PATIENCE, Room, amqp_url, eventually, next, number};
use crate::support::proxy::TcpProxy;

const LIMIT: Duration = Duration::from_secs(1);
/// What a publish may take over its limit on a busy machine.
const SLACK: Duration = Duration::from_millis(700);

/// A room behind a proxy.
async fn behind_proxy() -> (Room, TcpProxy) {
    let mut url: url::Url = amqp_url().parse().unwrap();
    let target = format!("{}:{}", url.host_str().unwrap(), url.port().unwrap_or(5672));
    let proxy = TcpProxy::start(target).await;
    url.set_host(Some("127.0.0.1")).unwrap();
    url.set_port(Some(proxy.addr().port())).unwrap();
    (Room::open_at(url.as_str(), LIMIT).await, proxy)
}

/// Collects numbers until all of `expected` have come, some perhaps twice.
async fn collect(received: &mut mpsc::UnboundedReceiver<u32>, expected: std::ops::Range<u32>) {
    let mut missing: BTreeSet<u32> = expected.collect();
    while !missing.is_empty() {
        missing.remove(&next(received).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_connection_fails_publishes_in_time_and_heals() {
    let (room, proxy) = behind_proxy().await;
    room.publish_numbers(&Route::Inbound, 0..10).await;
    for round in 0..3 {
        proxy.cut();
        let began = Instant::now();
        let answer = room.broker.publish(room.message(Route::Inbound, "lost")).await;
        assert!(matches!(answer, Err(PublishError::Disconnected | PublishError::TimedOut)), "{answer:?}");
        assert!(began.elapsed() < LIMIT + SLACK, "{:?}", began.elapsed());
        room.wait_for(LinkState::Disconnected).await;
        let began = Instant::now();
        let answers = room.broker.publish_all(vec![room.message(Route::Inbound, "lost"); 100]).await;
        assert_eq!(answers, vec![Err(PublishError::Disconnected); 100]);
        assert!(began.elapsed() < SLACK, "known to be away: at once");
        proxy.restore();
        room.wait_for(LinkState::Connected).await;
        let first = 10 + round * 10;
        room.publish_numbers(&Route::Inbound, first..first + 10).await;
    }
    assert_eq!(room.depth("inbound").await, Some(40));
    room.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn publishes_under_way_when_the_connection_is_cut_end() {
    let (room, proxy) = behind_proxy().await;
    room.publish_numbers(&Route::Inbound, 0..1).await;
    let callers: Vec<_> = (0..20)
        .map(|_| {
            let messages: Vec<_> = (0..200).map(|number| room.message(Route::Inbound, number.to_string())).collect();
            let broker = room.broker.clone();
            tokio::spawn(async move {
                let began = Instant::now();
                let answers = broker.publish_all(messages).await;
                (began.elapsed(), answers.iter().filter(|answer| answer.is_ok()).count())
            })
        })
        .collect();
    proxy.cut();
    let mut confirmed = 1;
    for caller in callers {
        let (took, ok) = caller.await.unwrap();
        assert!(took < LIMIT + SLACK, "{took:?}");
        confirmed += ok;
    }
    assert!(room.depth("inbound").await.unwrap() as usize >= confirmed, "only what the broker has was confirmed");
    room.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_comes_back_and_gets_everything_unacknowledged_again() {
    let (room, proxy) = behind_proxy().await;
    room.publish_numbers(&Route::Deliver, 0..20).await;
    let (seen, mut received) = mpsc::unbounded_channel();
    let (release, released) = tokio::sync::watch::channel(false);
    let options = ConsumeOptions { prefetch: 40, ..ConsumeOptions::default() };
    room.broker.consume(Queue::Deliver, options, move |delivery| {
        let (seen, mut released) = (seen.clone(), released.clone());
        async move {
            seen.send((number(&delivery), delivery.redelivered)).unwrap();
            // The first time round a handler is still at work when the connection goes.
            if !delivery.redelivered {
                released.wait_for(|released| *released).await.unwrap();
            }
            Verdict::Done
        }
    });
    for _ in 0..20 {
        assert!(!next(&mut received).await.1);
    }
    proxy.cut();
    room.wait_for(LinkState::Disconnected).await;
    proxy.restore();
    let mut again = BTreeSet::new();
    while again.len() < 20 {
        let (number, redelivered) = next(&mut received).await;
        assert!(redelivered);
        again.insert(number);
    }
    // Answers of the first round come now, on a channel that is gone, and must not answer anything of the new one.
    release.send_replace(true);
    room.wait_for(LinkState::Connected).await;
    room.publish_numbers(&Route::Deliver, 20..40).await;
    let mut fresh = BTreeSet::new();
    while fresh.len() < 20 {
        fresh.insert(next(&mut received).await.0);
    }
    assert_eq!(fresh, (20..40).collect());
    assert!(room.broker.stop_within(PATIENCE).await);
    assert_eq!(room.depth("deliver").await, Some(0));
    room.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_consumer_survives_repeated_cuts() {
    let (room, proxy) = behind_proxy().await;
    let (seen, mut received) = mpsc::unbounded_channel();
    room.broker.consume_batches(Queue::Inbound, ConsumeOptions::default(), move |deliveries| {
        for delivery in &deliveries {
            seen.send(number(delivery)).unwrap();
        }
        let verdicts = vec![Verdict::Done; deliveries.len()];
        async { verdicts }
    });
    for round in 0..3 {
        room.publish_numbers(&Route::Inbound, round * 50..(round + 1) * 50).await;
        collect(&mut received, round * 50..(round + 1) * 50).await;
        proxy.cut();
        room.wait_for(LinkState::Disconnected).await;
        proxy.restore();
        room.wait_for(LinkState::Connected).await;
    }
    room.close().await;
}

/// RabbitMQ 3.10 says nothing to a consumer whose quorum queue is deleted.
#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_survives_the_deletion_of_its_queue() {
    let room = Room::open().await;
    let (seen, mut received) = mpsc::unbounded_channel();
    room.broker.consume(Queue::Deliver, ConsumeOptions::default(), move |delivery| {
        seen.send(number(&delivery)).unwrap();
        async { Verdict::Done }
    });
    for round in 0..3 {
        room.publish_numbers(&Route::Deliver, round * 10..(round + 1) * 10).await;
        collect(&mut received, round * 10..(round + 1) * 10).await;
        room.delete_queue("deliver").await;
    }
    room.close().await;
}

/// Nobody tells this process that another one has made the queue again.
#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_notices_a_queue_that_another_process_made_again() {
    let room = Room::open().await;
    let broker = super::start(&amqp_url(), &room.namespace, LIMIT);
    let other = Room { broker, namespace: room.namespace.clone(), chance: room.chance.clone() };
    other.wait_for(LinkState::Connected).await;
    let (seen, mut received) = mpsc::unbounded_channel();
    let options = ConsumeOptions { idle_renewal: Duration::from_millis(200), ..ConsumeOptions::default() };
    room.broker.consume_batches(Queue::Inbound, options, move |deliveries| {
        for delivery in &deliveries {
            seen.send(number(delivery)).unwrap();
        }
        let verdicts = vec![Verdict::Done; deliveries.len()];
        async { verdicts }
    });
    for round in 0..3 {
        other.publish_numbers(&Route::Inbound, round * 10..(round + 1) * 10).await;
        collect(&mut received, round * 10..(round + 1) * 10).await;
        room.delete_queue("inbound").await;
    }
    other.broker.stop().await;
    room.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_live_subscription_survives_the_deletion_of_its_exchange() {
    let room = Room::open().await;
    let (seen, mut received) = mpsc::unbounded_channel();
    room.broker.subscribe_events("#", move |delivery| {
        let seen = seen.clone();
        async move { seen.send(number(&delivery)).unwrap() }
    });
    for round in 0..3 {
        eventually(async || {
            let event = room.message(Route::Event { routing_key: "t1.x".to_owned() }, round.to_string());
            assert_eq!(room.broker.publish(event).await, Ok(()));
            received.try_recv() == Ok(round)
        })
        .await;
        room.delete_exchange("events").await;
    }
    room.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_connection_times_out_and_is_replaced() {
    let (room, proxy) = behind_proxy().await;
    room.publish_numbers(&Route::Inbound, 0..10).await;
    proxy.stall();
    let began = Instant::now();
    let answer = room.broker.publish(room.message(Route::Inbound, "stalled")).await;
    assert_eq!(answer, Err(PublishError::TimedOut));
    assert!(began.elapsed() < LIMIT + SLACK, "{:?}", began.elapsed());
    room.wait_for(LinkState::Disconnected).await;
    proxy.restore();
    room.wait_for(LinkState::Connected).await;
    room.publish_numbers(&Route::Inbound, 10..20).await;
    // The stalled one was never confirmed; it may or may not have come through when the bytes moved again.
    eventually(async || matches!(room.depth("inbound").await, Some(20 | 21))).await;
    room.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_survives_a_wipe() {
    let room = Room::open().await;
    let (seen, mut received) = mpsc::unbounded_channel();
    room.broker.consume(Queue::Inbound, ConsumeOptions::default(), move |delivery| {
        seen.send(number(&delivery)).unwrap();
        async { Verdict::Done }
    });
    room.publish_numbers(&Route::Inbound, 0..10).await;
    collect(&mut received, 0..10).await;
    room.broker.delete_all().await.unwrap();
    room.publish_numbers(&Route::Inbound, 10..20).await;
    collect(&mut received, 10..20).await;
    room.close().await;
}
