use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use switchboard::broker::{ConsumeOptions, Envelope, OutboundRef, Queue, Route, Verdict};
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::time::timeout;

use super::{PATIENCE, Room, eventually, next, number};

/// Returns without a pause worth waiting for.
const HASTY: ConsumeOptions = ConsumeOptions {
    prefetch: 16,
    max_batch: 16,
    retry_pause: Duration::from_millis(1),
    retry_pause_most: Duration::from_millis(2),
    idle_renewal: Duration::from_millis(50),
};

#[tokio::test(flavor = "multi_thread")]
async fn as_many_handlers_run_as_may_and_no_more() {
    let room = Room::open().await;
    room.publish_numbers(&Route::Deliver, 0..50).await;
    let (running, most, go) =
        (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
    let (seen, mut received) = mpsc::unbounded_channel();
    let options = ConsumeOptions { prefetch: 7, ..ConsumeOptions::default() };
    let state = (running.clone(), most.clone(), go.clone(), seen);
    room.broker.consume(Queue::Deliver, options, move |delivery| {
        let (running, most, go, seen) = state.clone();
        async move {
            most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            go.acquire().await.unwrap().forget();
            running.fetch_sub(1, Ordering::SeqCst);
            seen.send(number(&delivery)).unwrap();
            Verdict::Done
        }
    });
    eventually(async || running.load(Ordering::SeqCst) == 7).await;
    go.add_permits(50);
    let mut all = Vec::new();
    while all.len() < 50 {
        all.push(next(&mut received).await);
    }
    all.sort_unstable();
    assert_eq!(all, (0..50).collect::<Vec<_>>());
    assert_eq!(most.load(Ordering::SeqCst), 7);
    room.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_take_what_is_there_one_after_another() {
    let room = Room::open().await;
    room.publish_numbers(&Route::Inbound, 0..300).await;
    let (seen, mut received) = mpsc::unbounded_channel();
    let running = Arc::new(AtomicUsize::new(0));
    let options = ConsumeOptions { prefetch: 200, max_batch: 50, ..ConsumeOptions::default() };
    room.broker.consume_batches(Queue::Inbound, options, move |deliveries| {
        let (seen, running) = (seen.clone(), running.clone());
        async move {
            assert_eq!(running.fetch_add(1, Ordering::SeqCst), 0, "one batch at a time");
            tokio::task::yield_now().await;
            seen.send(deliveries.iter().map(number).collect::<Vec<_>>()).unwrap();
            running.fetch_sub(1, Ordering::SeqCst);
            vec![Verdict::Done; deliveries.len()]
        }
    });
    let (mut all, mut largest) = (Vec::new(), 0);
    while all.len() < 300 {
        let batch = next(&mut received).await;
        assert!(batch.len() <= 50);
        largest = largest.max(batch.len());
        all.extend(batch);
    }
    assert_eq!(all, (0..300).collect::<Vec<_>>());
    assert!(largest > 1, "a backlog comes in batches");
    room.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn verdicts_of_a_batch_go_to_their_own_deliveries() {
    let room = Room::open().await;
    room.publish_numbers(&Route::Inbound, 0..60).await;
    let (seen, mut received) = mpsc::unbounded_channel();
    room.broker.consume_batches(Queue::Inbound, HASTY, move |deliveries| {
        let seen = seen.clone();
        async move {
            let judge = |delivery: &switchboard::broker::Delivery| match number(delivery) % 3 {
                0 => Verdict::Done,
                1 if delivery.returns == 0 => Verdict::Retry,
                1 => Verdict::Done,
                _ => Verdict::Dead,
            };
            let verdicts: Vec<_> = deliveries.iter().map(judge).collect();
            for (delivery, verdict) in deliveries.iter().zip(&verdicts) {
                seen.send((number(delivery), *verdict, delivery.redelivered)).unwrap();
            }
            verdicts
        }
    });
    let mut done = Vec::new();
    let mut answers = 0;
    while answers < 80 {
        let (number, verdict, redelivered) = next(&mut received).await;
        answers += 1;
        if verdict == Verdict::Done {
            assert_eq!(redelivered, number % 3 == 1);
            done.push(number);
        }
    }
    done.sort_unstable();
    assert_eq!(done, (0..60).filter(|number| number % 3 != 2).collect::<Vec<_>>());
    eventually(async || room.depth("dead").await == Some(20)).await;
    assert!(room.broker.stop_within(PATIENCE).await);
    assert_eq!(room.depth("inbound").await, Some(0));
    assert!(received.try_recv().is_err(), "nothing is delivered again");
    room.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_keeps_its_body_and_says_where_it_came_from() {
    let room = Room::open().await;
    let sent = room.message(Route::Deliver, "not an envelope");
    assert_eq!(room.broker.publish(sent.clone()).await, Ok(()));
    room.broker.consume(Queue::Deliver, HASTY, |delivery| async move {
        match OutboundRef::parse(&delivery.body) {
            Ok(_) => Verdict::Done,
            Err(_) => Verdict::Dead,
        }
    });
    eventually(async || room.depth("dead").await == Some(1)).await;
    let channel = super::control().await;
    let letter =
        channel.basic_get(format!("{}.dead", room.namespace).into(), Default::default()).await.unwrap().unwrap();
    assert_eq!(letter.data, sent.body);
    assert_eq!(letter.properties.message_id().as_ref().unwrap().as_str(), sent.id.to_string());
    let headers = letter.properties.headers().as_ref().unwrap();
    assert!(headers.contains_key("x-death"));
    let lapin::types::AMQPValue::LongString(origin) = &headers.inner()["x-first-death-queue"] else { panic!("a name") };
    assert_eq!(origin.to_string(), format!("{}.deliver", room.namespace));
    room.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_always_comes_back_ends_in_the_dead_letters() {
    let room = Room::open().await;
    room.publish_numbers(&Route::Deliver, 0..1).await;
    let tries = Arc::new(AtomicUsize::new(0));
    let counted = tries.clone();
    room.broker.consume(Queue::Deliver, HASTY, move |delivery| {
        assert_eq!(delivery.returns as usize, counted.fetch_add(1, Ordering::SeqCst));
        async { Verdict::Retry }
    });
    eventually(async || room.depth("dead").await == Some(1)).await;
    assert_eq!(tries.load(Ordering::SeqCst), 51);
    room.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_in_a_handler_is_a_retry() {
    let room = Room::open().await;
    room.publish_numbers(&Route::Deliver, 0..5).await;
    let (seen, mut received) = mpsc::unbounded_channel();
    room.broker.consume(Queue::Deliver, HASTY, move |delivery| {
        assert!(number(&delivery) != 1 || delivery.returns > 0, "a panic before the future");
        let seen = seen.clone();
        async move {
            assert!(number(&delivery) != 2 || delivery.returns > 0, "a panic in the future");
            seen.send(number(&delivery)).unwrap();
            Verdict::Done
        }
    });
    let mut all = Vec::new();
    while all.len() < 5 {
        all.push(next(&mut received).await);
    }
    all.sort_unstable();
    assert_eq!(all, vec![0, 1, 2, 3, 4]);
    room.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poisonous_delivery_does_not_take_its_batch_with_it() {
    let room = Room::open().await;
    room.publish_numbers(&Route::Inbound, 0..40).await;
    let (seen, mut received) = mpsc::unbounded_channel();
    room.broker.consume_batches(Queue::Inbound, HASTY, move |deliveries| {
        assert!(deliveries.iter().all(|delivery| number(delivery) != 13), "poison");
        for delivery in &deliveries {
            seen.send((number(delivery), delivery.returns)).unwrap();
        }
        let verdicts = vec![Verdict::Done; deliveries.len()];
        async { verdicts }
    });
    eventually(async || room.depth("dead").await == Some(1)).await;
    let mut all = Vec::new();
    while all.len() < 39 {
        let (number, returns) = next(&mut received).await;
        assert_eq!(returns, 0, "no innocent comes back");
        all.push(number);
    }
    all.sort_unstable();
    assert_eq!(all, (0..40).filter(|number| *number != 13).collect::<Vec<_>>());
    room.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_lets_running_handlers_finish_and_gives_the_rest_back() {
    let room = Room::open().await;
    room.publish_numbers(&Route::Deliver, 0..20).await;
    let (begun, go) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let state = (begun.clone(), go.clone());
    let options = ConsumeOptions { prefetch: 4, ..ConsumeOptions::default() };
    let consumer = room.broker.consume(Queue::Deliver, options, move |_| {
        let (begun, go) = state.clone();
        async move {
            let wait = go.notified();
            begun.fetch_add(1, Ordering::SeqCst);
            wait.await;
            Verdict::Done
        }
    });
    eventually(async || begun.load(Ordering::SeqCst) == 4).await;
    let stopping = tokio::spawn(async move { consumer.stop(PATIENCE).await });
    // What the stopped consumer had not begun with goes to the next one, while its own handlers are still at work.
    let (seen, mut received) = mpsc::unbounded_channel();
    let next_one = room.broker.consume(Queue::Deliver, ConsumeOptions::default(), move |delivery| {
        seen.send(number(&delivery)).unwrap();
        async { Verdict::Done }
    });
    let mut others: Vec<u32> = Vec::new();
    while others.len() < 16 {
        others.push(next(&mut received).await);
    }
    assert!(!stopping.is_finished(), "it waits for the handlers");
    go.notify_waiters();
    assert!(stopping.await.unwrap());
    assert_eq!(begun.load(Ordering::SeqCst), 4);
    assert!(next_one.stop(PATIENCE).await);
    assert!(received.try_recv().is_err(), "answered deliveries do not come again");
    assert_eq!(room.depth("deliver").await, Some(0));
    room.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_never_ends_is_given_up_and_its_delivery_comes_again() {
    let room = Room::open().await;
    room.publish_numbers(&Route::Deliver, 0..1).await;
    let (seen, mut received) = mpsc::unbounded_channel();
    let consumer = room.broker.consume(Queue::Deliver, ConsumeOptions::default(), move |_| {
        seen.send(()).unwrap();
        std::future::pending()
    });
    next(&mut received).await;
    let stopped = timeout(PATIENCE, consumer.stop(Duration::from_millis(50))).await.unwrap();
    assert!(!stopped);
    eventually(async || room.depth("deliver").await == Some(1)).await;
    room.close().await;
}
