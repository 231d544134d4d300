//! Lanes in a database, a clock that stands still, and somebody who sends whatever has its turn.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::Value;
use switchboard::app::App;
use switchboard::config::Config;
use switchboard::dispatch::lanes::{self, Due};
use switchboard::dispatch::sweep::{self, Swept};
use switchboard::domain::chance::Chance;
use switchboard::domain::clock::Clock;
use tokio_postgres::{Client, SimpleQueryMessage};
use uuid::Uuid;

use crate::support::TestDb;

pub struct Stand {
    pub app: App,
    pub clock: Clock,
    /// A connection of the role that owns the tables.
    pub sql: Client,
    pub tenant: Uuid,
    pub server: Uuid,
    /// When the first of the lanes that sent last may send again.
    sent_next: std::cell::Cell<Option<DateTime<Utc>>>,
    _db: TestDb,
}

/// What is set on a lane.
pub struct Lane {
    pub gap_ms: i32,
    pub jitter_ms: i32,
    pub per_minute: Option<i32>,
    pub per_hour: Option<i32>,
    pub per_day: Option<i32>,
    pub new_chats_per_day: Option<i32>,
    pub warm_up: Option<Value>,
    pub windows: Option<Value>,
}

pub const PLAIN: Lane = Lane {
    gap_ms: 0,
    jitter_ms: 0,
    per_minute: None,
    per_hour: None,
    per_day: None,
    new_chats_per_day: None,
    warm_up: None,
    windows: None,
};

pub fn at(text: &str) -> DateTime<Utc> {
    text.parse().unwrap()
}

// As a claim and an outcome write it, in one go: handed over and acknowledged at once. The gap's chance is the message's id's.
fn sending(turns: &str, now: DateTime<Utc>) -> String {
    format!(
        "\
WITH input AS (SELECT session_id::uuid, message_id::uuid, fence::int8 FROM (VALUES {turns}) AS i (session_id, message_id, fence)
), lane AS (
    SELECT l.tenant_id, l.session_id, i.message_id,
           (l.min_gap_ms + abs(hashtext(i.message_id::text)) % (l.jitter_ms + 1)) * interval '1 ms' AS gap
    FROM lanes l JOIN input i USING (session_id)
    WHERE l.fence = i.fence AND l.claimed_fence < l.fence AND l.in_flight = i.message_id AND l.paused_because IS NULL
    ORDER BY l.session_id FOR UPDATE OF l
), message AS (
    UPDATE messages m SET status = 'sent', requeued = false, attempts = attempts + 1, handed_over_at = '{now}'::timestamptz, sent_at = '{now}'::timestamptz, updated_at = '{now}'::timestamptz
    FROM lane WHERE m.tenant_id = lane.tenant_id AND m.id = lane.message_id AND m.status = 'queued'
    RETURNING m.session_id, m.metadata
), send AS (
    INSERT INTO lane_sends (tenant_id, session_id, at, new_chat)
    SELECT lane.tenant_id, lane.session_id, '{now}'::timestamptz, m.metadata ? 'cold' FROM lane JOIN message m USING (session_id)
)
UPDATE lanes l SET
    claimed_fence = l.fence, in_flight = NULL, lease_until = NULL, queued = greatest(l.queued - 1, 0),
    next_slot_at = '{now}'::timestamptz + lane.gap, last_send_at = '{now}'::timestamptz, ready_at = CASE WHEN l.queued > 1 THEN '{now}'::timestamptz + lane.gap END, updated_at = '{now}'::timestamptz
FROM lane WHERE l.session_id = lane.session_id
RETURNING lane.message_id || ' ' || coalesce(to_char(l.ready_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'), '')"
    )
}

impl Stand {
    pub async fn new(now: &str) -> Self {
        let db = TestDb::create().await;
        let sql = db.connect().await;
        // Nothing here survives a crash anyway.
        sql.batch_execute(&format!("ALTER DATABASE {} SET synchronous_commit = off", db.name())).await.unwrap();
        let settings = [
            ("DATABASE_URL", db.url()),
            ("DATABASE_MAX_CONNECTIONS", "4".to_owned()),
            ("DATABASE_MIN_CONNECTIONS", "0".to_owned()),
            ("AMQP_URL", "amqp://127.0.0.1:1".to_owned()),
            ("SWITCHBOARD_MASTER_KEY", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=".to_owned()),
        ];
        let settings = settings.map(|(name, value)| (name.to_owned(), value)).into_iter().collect();
        let clock = Clock::manual(at(now));
        let app = App::build(Config::from_settings(settings).unwrap(), clock.clone(), Chance::seeded(7)).unwrap();
        let (tenant, server) = (fresh(), fresh());
        let insert =
            format!("INSERT INTO tenants (id, name, created_at, updated_at) VALUES ('{tenant}', 'a', now(), now())");
        sql.batch_execute(&insert).await.unwrap();
        let stand = Self { app, clock, sql, tenant, server, sent_next: std::cell::Cell::default(), _db: db };
        stand.server(server).await;
        stand
    }

    pub async fn server(&self, id: Uuid) {
        let insert = format!(
            "INSERT INTO waha_servers (id, name, base_url, api_key_sealed, engine, capacity, created_at, updated_at)
             VALUES ('{id}', '{id}', 'http://127.0.0.1:1', '', 'NOWEB', 100000, now(), now())"
        );
        self.sql.batch_execute(&insert).await.unwrap();
    }

    pub fn now(&self) -> DateTime<Utc> {
        self.clock.now()
    }

    pub fn advance(&self, millis: u64) {
        self.clock.advance(Duration::from_millis(millis));
    }

    pub async fn lane(&self, lane: Lane) -> Uuid {
        self.lane_at(self.server, lane).await
    }

    pub async fn lane_at(&self, server: Uuid, lane: Lane) -> Uuid {
        let (id, now, tenant) = (fresh(), self.now(), self.tenant);
        let number = |value: Option<i32>| value.map_or("NULL".to_owned(), |value| value.to_string());
        let json = |value: Option<Value>| value.map_or("NULL".to_owned(), |value| format!("'{value}'"));
        let (minute, hour, day) = (number(lane.per_minute), number(lane.per_hour), number(lane.per_day));
        let (chats, warm_up, windows) = (number(lane.new_chats_per_day), json(lane.warm_up), json(lane.windows));
        let (gap, jitter) = (lane.gap_ms, lane.jitter_ms);
        let insert = format!(
            "INSERT INTO waha_sessions (tenant_id, id, name, external_session_id, waha_server_id, status, status_at,
                 desired, engine, webhook_key_sealed, pacing, created_at, updated_at)
             VALUES ('{tenant}', '{id}', '{id}', '{id}', '{server}', 'working', '{now}', 'started', 'NOWEB', '', '{{}}', '{now}', '{now}');
             INSERT INTO lanes (tenant_id, session_id, waha_server_id, next_slot_at, min_gap_ms, jitter_ms, per_minute,
                 per_hour, per_day, new_chats_per_day, warm_up, windows, working_since, created_at, updated_at)
             VALUES ('{tenant}', '{id}', '{server}', '{now}', {gap}, {jitter}, {minute}, {hour}, {day}, {chats}, {warm_up}, {windows},
                 '{now}', '{now}', '{now}')"
        );
        self.sql.batch_execute(&insert).await.unwrap();
        id
    }

    /// Queues `count` messages of `priority`, as if accepted now.
    pub async fn queue(&self, session: Uuid, count: i64, priority: i16) -> Vec<Uuid> {
        self.insert(session, count, priority, "'queued', NULL, NULL, NULL, '{}'").await
    }

    /// Inserts messages; `rest` is status, scheduled_at, expires_at, held_because, metadata.
    pub async fn insert(&self, session: Uuid, count: i64, priority: i16, rest: &str) -> Vec<Uuid> {
        let (now, tenant) = (self.now(), self.tenant);
        let rest = rest.replace("$4", &format!("'{now}'::timestamptz"));
        let rows = self
            .rows(&format!(
                "INSERT INTO messages (tenant_id, id, session_id, direction, message_type, chat_id, body, priority, created_at,
                                       updated_at, status, scheduled_at, expires_at, held_because, metadata)
                 SELECT '{tenant}', gen_random_uuid(), '{session}', 'outbound', 'text', '1@c.us', 'x', {priority}, '{now}', '{now}',
                        {rest}
                 FROM generate_series(1, {count}) RETURNING id"
            ))
            .await;
        let slot = format!("greatest(l.next_slot_at, '{now}'::timestamptz)");
        let urgent = priority == 0;
        self.sql
            .batch_execute(&format!(
                "UPDATE lanes l SET
                     queued = w.waiting,
                     ready_at = CASE WHEN l.in_flight IS NOT NULL OR l.paused_because IS NOT NULL THEN l.ready_at
                                     WHEN {urgent} THEN least(l.ready_at, {slot}) ELSE coalesce(l.ready_at, {slot}) END
                 FROM (SELECT count(*)::int AS waiting FROM messages m
                       WHERE m.session_id = '{session}' AND m.status = 'queued' AND m.held_because IS NULL) w
                 WHERE l.session_id = '{session}' AND w.waiting > 0"
            ))
            .await
            .unwrap();
        rows.iter().map(|row| row.parse().unwrap()).collect()
    }

    pub async fn look(&self) -> Due {
        lanes::take_due(&self.app.db, self.now(), TimeDelta::seconds(30), 500).await.unwrap()
    }

    /// Sends what has its turn; answers the messages.
    pub async fn send(&self, due: &Due) -> Vec<Uuid> {
        let turns: Vec<String> = due
            .turns
            .iter()
            .map(|(_, turn)| format!("('{}', '{}', {})", turn.session_id, turn.message_id, turn.fence))
            .collect();
        if turns.is_empty() {
            return Vec::new();
        }
        let sent = self.rows(&sending(&turns.join(", "), self.now())).await;
        let sent: Vec<(&str, &str)> = sent.iter().map(|row| row.split_once(' ').unwrap()).collect();
        let next = sent.iter().filter_map(|(_, ready_at)| ready_at.parse().ok()).min();
        self.sent_next.set(next);
        sent.iter().map(|(id, _)| id.parse().unwrap()).collect()
    }

    /// A look and its sends.
    pub async fn turn(&self) -> Vec<Uuid> {
        let due = self.look().await;
        self.send(&due).await
    }

    /// Moves the clock from turn to turn until `until`; answers what left, and when.
    pub async fn run_until(&self, until: DateTime<Utc>) -> Vec<(DateTime<Utc>, Uuid)> {
        let mut sent = Vec::new();
        loop {
            let due = self.look().await;
            let now = self.now();
            sent.extend(self.send(&due).await.into_iter().map(|id| (now, id)));
            // What was just sent has moved its lane; the others' times are as the look left them.
            let moved = if due.turns.is_empty() { None } else { self.sent_next.take() };
            match [due.next, moved].into_iter().flatten().min() {
                _ if due.more => {}
                Some(next) if next <= until => self.move_to(next),
                _ => break,
            }
        }
        self.move_to(until);
        sent
    }

    pub async fn next(&self) -> Option<DateTime<Utc>> {
        let next = "SELECT to_char(min(ready_at) AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') FROM lanes";
        self.text(next).await.parse().ok()
    }

    pub fn move_to(&self, at: DateTime<Utc>) {
        if let Ok(by) = (at - self.now()).to_std() {
            self.clock.advance(by);
        }
    }

    pub async fn sweep(&self) -> Swept {
        sweep::round(&self.app).await.unwrap()
    }

    /// The first column of the first row.
    pub async fn text(&self, query: &str) -> String {
        self.rows(query).await.into_iter().next().unwrap_or_default()
    }

    /// The first column, as text; `-` for NULL.
    pub async fn rows(&self, query: &str) -> Vec<String> {
        let rows = self.sql.simple_query(query).await.unwrap();
        rows.iter()
            .filter_map(|row| match row {
                SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or("-").to_owned()),
                _ => None,
            })
            .collect()
    }
}

pub fn fresh() -> Uuid {
    Chance::from_system().uuid(Clock::running().now())
}
