//! Sessions in a database of its own, and events as WAHA writes them, applied without doors and broker.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};
use switchboard::app::App;
use switchboard::broker::envelope::InboundEvent;
use switchboard::config::Config;
use switchboard::domain::chance::Chance;
use switchboard::domain::clock::Clock;
use switchboard::domain::ids::{SessionId, TenantId, WahaServerId};
use switchboard::ingest::apply::{self, Fate};
use tokio_postgres::Client;

use crate::support::TestDb;

/// A tenant on one node, whose clock stands still.
pub struct Stand {
    pub app: App,
    pub sql: Client,
    pub tenant: TenantId,
    server: WahaServerId,
    engine: &'static str,
    _db: TestDb,
}

/// When the conversations of the tests begin.
pub const BEGIN: i64 = 1_795_211_000;

impl Stand {
    pub async fn new() -> Self {
        Self::of("NOWEB").await
    }

    pub async fn of(engine: &'static str) -> Self {
        let db = TestDb::create().await;
        let settings = [
            ("DATABASE_URL", db.url()),
            ("DATABASE_MAX_CONNECTIONS", "6".to_owned()),
            ("AMQP_URL", "amqp://nobody@127.0.0.1:1".to_owned()),
            ("SWITCHBOARD_MASTER_KEY", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=".to_owned()),
            ("SWITCHBOARD_PLATFORM_KEY", "platform-key-of-the-tests".to_owned()),
        ];
        let settings: BTreeMap<_, _> = settings.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        let clock = Clock::manual(DateTime::from_timestamp(BEGIN + 3600, 0).unwrap());
        let app = App::build(Config::from_settings(settings).unwrap(), clock, Chance::seeded(1)).unwrap();
        let sql = db.connect().await;
        let tenant = TenantId::fresh(app.clock.now(), &app.chance);
        let server = WahaServerId::fresh(app.clock.now(), &app.chance);
        sql.batch_execute(&format!(
            "INSERT INTO tenants (id, name, created_at, updated_at) VALUES ('{tenant}', 'tenant', now(), now());
             INSERT INTO waha_servers (id, name, base_url, api_key_sealed, engine, capacity, created_at, updated_at)
             VALUES ('{server}', 'waha', 'http://127.0.0.1:1', '\\x00', '{engine}', 1000000, now(), now())"
        ))
        .await
        .unwrap();
        Self { app, sql, tenant, server, engine, _db: db }
    }

    pub async fn session(&self) -> SessionId {
        let id = SessionId::fresh(self.app.clock.now(), &self.app.chance);
        let (tenant, server, engine) = (self.tenant, self.server, self.engine);
        self.sql
            .batch_execute(&format!(
                "INSERT INTO waha_sessions (tenant_id, id, name, external_session_id, waha_server_id, status, status_at, desired,
                                            engine, webhook_key_sealed, pacing, created_at, updated_at)
                 VALUES ('{tenant}', '{id}', '{id}', 'sb-{id}', '{server}', 'working', now(), 'started', '{engine}', '\\x00', '{{}}', now(), now());
                 INSERT INTO lanes (tenant_id, session_id, waha_server_id, next_slot_at, min_gap_ms, jitter_ms, working_since, created_at, updated_at)
                 VALUES ('{tenant}', '{id}', '{server}', now(), 0, 0, now(), now(), now())"
            ))
            .await
            .unwrap();
        id
    }

    /// Applies `events`, of which nothing may be refused.
    pub async fn apply(&self, session: SessionId, events: &[Told]) {
        let events: Vec<InboundEvent> = events.iter().map(|event| self.envelope(session, event)).collect();
        for fate in apply::apply_all(&self.app, &events).await {
            assert!(matches!(fate, Fate::Applied), "{fate:?}");
        }
    }

    pub fn envelope(&self, session: SessionId, event: &Told) -> InboundEvent {
        let at = event.at_ms;
        let body = json!({
            "id": event.id, "timestamp": at, "event": event.event, "session": format!("sb-{session}"),
            "me": {"id": "15550200000@c.us", "pushName": "Us"}, "payload": event.payload, "engine": self.engine,
        });
        InboundEvent {
            tenant_id: self.tenant,
            session_id: session,
            waha_server_id: self.server,
            received_at: self.app.clock.now(),
            body: body.to_string(),
        }
    }

    /// The rows of `query`, whose only column is JSON.
    pub async fn rows(&self, query: &str) -> Vec<Value> {
        let rows = self.sql.query(query, &[]).await.unwrap();
        rows.iter().map(|row| serde_json::from_str(row.get::<_, &str>(0)).unwrap()).collect()
    }

    /// The messages of `session` without what differs by itself, by their WhatsApp ids.
    pub async fn messages(&self, session: SessionId) -> Vec<Value> {
        self.rows(&format!(
            "SELECT jsonb_strip_nulls(to_jsonb(m) - ARRAY['id', 'session_id', 'tenant_id', 'seq', 'created_at', 'updated_at', 'raw_payload', 'reply_to']
                    || jsonb_build_object('answers', (SELECT o.waha_message_id FROM messages o WHERE o.tenant_id = m.tenant_id AND o.id = m.reply_to)))::text
             FROM messages m WHERE session_id = '{session}' ORDER BY waha_message_id"
        ))
        .await
    }

    /// The one message with this WhatsApp id.
    pub async fn message(&self, session: SessionId, id: &str) -> Value {
        let found: Vec<Value> =
            self.messages(session).await.into_iter().filter(|message| message["waha_message_id"] == id).collect();
        let [message] = found.as_slice() else { panic!("{} messages {id}", found.len()) };
        message.clone()
    }

    /// The types of the events about `session`, in order.
    pub async fn events(&self, session: SessionId) -> Vec<String> {
        let query =
            format!("SELECT to_jsonb(type)::text FROM events WHERE session_id = '{session}' ORDER BY xact, seq");
        self.rows(&query).await.iter().map(|kind| kind.as_str().unwrap().to_owned()).collect()
    }
}

/// An event of WAHA's.
#[derive(Clone, Debug)]
pub struct Told {
    pub id: String,
    pub event: &'static str,
    pub at_ms: i64,
    pub payload: Value,
}

impl Told {
    pub fn new(id: impl Into<String>, event: &'static str, second: i64, payload: Value) -> Self {
        Self { id: format!("evt_{}", id.into()), event, at_ms: (BEGIN + second) * 1000, payload }
    }

    /// The same, told this much later than it happened.
    pub fn later(self, delay: TimeDelta) -> Self {
        Self { at_ms: self.at_ms + delay.num_milliseconds(), ..self }
    }
}

pub fn at(second: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(BEGIN + second, 0).unwrap()
}

/// The chat that the messages of [`message`] stand in.
pub const CHAT: &str = "15550100001@c.us";

/// A message of NOWEB's: in or, with `own`, written on the phone.
pub fn message(id: &str, second: i64, own: bool, body: &str) -> Told {
    Told::new(format!("m{id}"), "message.any", second, payload(id, second, own, body, CHAT))
}

pub fn payload(id: &str, second: i64, own: bool, body: &str, chat: &str) -> Value {
    json!({
        "id": format!("{own}_{chat}_{id}"), "timestamp": BEGIN + second, "from": chat, "fromMe": own, "source": "app", "to": null,
        "body": body, "hasMedia": false, "ack": if own { 1 } else { 2 }, "replyTo": null,
        "_data": {"key": {"remoteJid": chat.replace("@c.us", "@s.whatsapp.net"), "fromMe": own, "id": id}, "pushName": if own { Value::Null } else { json!("Peer") }},
    })
}

pub fn edit(of: &str, edit_id: &str, second: i64, own: bool, body: &str) -> Told {
    let mut payload = payload(edit_id, second, own, body, CHAT);
    payload["editedMessageId"] = json!(of);
    Told::new(format!("e{edit_id}"), "message.edited", second, payload)
}

pub fn revoke(of: &str, second: i64, own: bool) -> Told {
    let shell = payload(&format!("R{of}"), second, own, "", CHAT);
    Told::new(
        format!("r{of}"),
        "message.revoked",
        second,
        json!({"after": shell, "before": null, "revokedMessageId": of}),
    )
}

pub fn reaction(of: &str, second: i64, person: &str, emoji: &str) -> Told {
    let payload = json!({
        "id": format!("false_{CHAT}_X{of}{second}"), "from": person, "fromMe": false, "participant": person, "timestamp": BEGIN + second,
        "reaction": {"text": emoji, "messageId": format!("true_{CHAT}_{of}")},
    });
    Told::new(format!("x{of}{person}{second}{emoji}"), "message.reaction", second, payload)
}

pub fn vote(of: &str, second: i64, person: &str, options: &[&str]) -> Told {
    let payload = json!({
        "vote": {"id": format!("false_{CHAT}_V{of}{second}"), "from": person, "fromMe": false, "selectedOptions": options, "timestamp": BEGIN + second},
        "poll": {"id": format!("true_{CHAT}_{of}"), "from": CHAT, "fromMe": true},
    });
    Told::new(format!("v{of}{person}{second}"), "poll.vote", second, payload)
}

pub fn ack(of: &str, second: i64, level: i64) -> Told {
    let payload = json!({"id": format!("true_{CHAT}_{of}"), "from": CHAT, "fromMe": true, "ack": level});
    Told::new(format!("a{of}{level}"), "message.ack", second, payload)
}

/// The own phone has read an incoming message.
pub fn read(of: &str, second: i64) -> Told {
    let payload = json!({"id": format!("false_{CHAT}_{of}"), "from": CHAT, "fromMe": false, "ack": 3});
    Told::new(format!("a{of}read"), "message.ack", second, payload)
}

/// Answers `of`.
pub fn answering(mut told: Told, of: &str) -> Told {
    told.payload["replyTo"] = json!({"id": of, "body": "…"});
    told
}
