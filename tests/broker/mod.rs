//! The broker room against a real RabbitMQ: each test in a namespace of its own, deleted at the end.

mod consuming;
mod faults;
mod publishing;

use std::time::Duration;

use bytes::Bytes;
use lapin::options::{ConfirmSelectOptions, ExchangeDeleteOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::FieldTable;
use switchboard::broker::{Broker, BrokerConfig, Delivery, LinkState, Outgoing, Route};
use switchboard::domain::chance::Chance;
use tokio::sync::mpsc;
use tokio::time::timeout;
use uuid::Uuid;

/// Longer than anything here may take.
const PATIENCE: Duration = Duration::from_secs(30);

pub fn amqp_url() -> String {
    std::env::var("AMQP_URL").unwrap_or_else(|_| "amqp://guest:guest@127.0.0.1:5672/%2f".to_owned())
}

/// A broker in a namespace of its own.
struct Room {
    broker: Broker,
    namespace: String,
    chance: Chance,
}

impl Room {
    async fn open() -> Self {
        Self::open_at(&amqp_url(), Duration::from_secs(5)).await
    }

    async fn open_at(url: &str, publish_timeout: Duration) -> Self {
        let _shown =
            tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).try_init();
        let chance = Chance::from_system();
        let namespace = format!("test.{}", fresh(&chance));
        let broker = start(url, &namespace, publish_timeout);
        let room = Self { broker, namespace, chance };
        room.wait_for(LinkState::Connected).await;
        room
    }

    async fn wait_for(&self, state: LinkState) {
        let mut states = self.broker.state();
        timeout(PATIENCE, states.wait_for(|now| *now == state))
            .await
            .expect("the state in time")
            .expect("a supervisor");
    }

    fn message(&self, route: Route, body: impl Into<String>) -> Outgoing {
        Outgoing {
            route,
            kind: "test.message",
            id: fresh(&self.chance),
            traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned()),
            body: Bytes::from(body.into()),
        }
    }

    /// Publishes numbered messages in one go.
    async fn publish_numbers(&self, route: &Route, numbers: std::ops::Range<u32>) {
        let messages = numbers.map(|number| self.message(route.clone(), number.to_string())).collect();
        for answer in self.broker.publish_all(messages).await {
            assert_eq!(answer, Ok(()));
        }
    }

    /// How many messages wait in a queue, by its name without the namespace; `None` when it does not exist.
    async fn depth(&self, queue: &str) -> Option<u32> {
        let channel = control().await;
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::durable() };
        let name = format!("{}.{queue}", self.namespace);
        channel.queue_declare(name.into(), passive, FieldTable::default()).await.ok().map(|queue| queue.message_count())
    }

    /// Deletes a queue behind the broker room's back.
    async fn delete_queue(&self, queue: &str) {
        let name = format!("{}.{queue}", self.namespace);
        control().await.queue_delete(name.into(), QueueDeleteOptions::default()).await.unwrap();
    }

    async fn delete_exchange(&self, exchange: &str) {
        let name = format!("{}.{exchange}", self.namespace);
        control().await.exchange_delete(name.into(), ExchangeDeleteOptions::default()).await.unwrap();
    }

    /// Stops and deletes everything.
    async fn close(self) {
        assert!(self.broker.stop_within(PATIENCE).await, "handlers finish");
        let sweeper = start(&amqp_url(), &self.namespace, PATIENCE);
        let mut states = sweeper.state();
        states.wait_for(|now| *now == LinkState::Connected).await.unwrap();
        sweeper.delete_all().await.unwrap();
        sweeper.stop().await;
    }
}

fn start(url: &str, namespace: &str, publish_timeout: Duration) -> Broker {
    let config = BrokerConfig { url: url.into(), namespace: namespace.to_owned(), publish_timeout, channels: 2 };
    Broker::start(config, Chance::from_system())
}

fn fresh(chance: &Chance) -> Uuid {
    uuid::Builder::from_random_bytes(chance.bytes()).into_uuid()
}

/// A channel of the test's own.
async fn control() -> lapin::Channel {
    let connection = lapin::Connection::connect(&amqp_url(), lapin::ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    channel
}

async fn next<T>(received: &mut mpsc::UnboundedReceiver<T>) -> T {
    timeout(PATIENCE, received.recv()).await.expect("a delivery in time").expect("a consumer")
}

fn number(delivery: &Delivery) -> u32 {
    std::str::from_utf8(&delivery.body).unwrap().parse().unwrap()
}

/// Asks again until the answer is yes.
async fn eventually<F: AsyncFnMut() -> bool>(mut asked: F) {
    timeout(PATIENCE, async { while !asked().await {} }).await.expect("it comes true in time");
}
