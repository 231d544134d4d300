//! A tenant with a session, and messages that are there as ingest leaves them.

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::Value;
use switchboard::app::App;
use switchboard::config::Config;
use switchboard::contacts::{self, Because};
use switchboard::conversations::projection;
use switchboard::db::{DbError, SystemConn};
use switchboard::domain::chance::Chance;
use switchboard::domain::clock::Clock;
use switchboard::domain::ids::{ContactId, TenantId};
use tokio_postgres::Client;
use uuid::Uuid;

use crate::support::world::PATIENCE;
use crate::support::{TestDb, eventually};

pub struct Stand {
    pub app: App,
    pub clock: Clock,
    /// A connection of the role that owns the tables.
    pub sql: Client,
    pub db: TestDb,
    pub server: Uuid,
}

/// A message as ingest leaves it.
#[derive(Clone, Debug)]
pub struct Message {
    /// WhatsApp's id; also tells messages apart.
    pub id: &'static str,
    pub chat: &'static str,
    pub sender: Option<&'static str>,
    pub other: Option<&'static str>,
    pub name: Option<&'static str>,
    /// Seconds after noon.
    pub at: i64,
    /// `received`, or the first status that WhatsApp told of one that went out.
    pub status: &'static str,
    pub read: bool,
}

/// Somebody's message.
pub const IN: Message =
    Message { id: "", chat: "", sender: None, other: None, name: None, at: 0, status: "received", read: false };
/// One that went out.
pub const OUT: Message = Message { status: "sent", ..IN };

pub fn noon() -> DateTime<Utc> {
    "2026-11-21T12:00:00Z".parse().unwrap()
}

impl Stand {
    pub async fn new() -> Self {
        let db = TestDb::create().await;
        let sql = db.connect().await;
        // Nothing here survives a crash anyway.
        sql.batch_execute(&format!("ALTER DATABASE {} SET synchronous_commit = off", db.name())).await.unwrap();
        let clock = Clock::manual(noon());
        let app = Self::app(&db, &clock);
        let server = fresh();
        let insert = format!(
            "INSERT INTO waha_servers (id, name, base_url, api_key_sealed, engine, capacity, created_at, updated_at)
             VALUES ('{server}', '{server}', 'http://127.0.0.1:1', '', 'NOWEB', 100000, now(), now())"
        );
        sql.batch_execute(&insert).await.unwrap();
        Self { app, clock, sql, db, server }
    }

    fn app(db: &TestDb, clock: &Clock) -> App {
        let settings = [
            ("DATABASE_URL", db.url()),
            ("DATABASE_MAX_CONNECTIONS", "4".to_owned()),
            ("DATABASE_MIN_CONNECTIONS", "0".to_owned()),
            ("AMQP_URL", "amqp://127.0.0.1:1".to_owned()),
            ("SWITCHBOARD_MASTER_KEY", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=".to_owned()),
        ];
        let settings = settings.map(|(name, value)| (name.to_owned(), value)).into_iter().collect();
        App::build(Config::from_settings(settings).unwrap(), clock.clone(), Chance::from_system()).unwrap()
    }

    /// Another node on the same database.
    pub fn node(&self) -> App {
        Self::app(&self.db, &self.clock)
    }

    /// A tenant with a session.
    pub async fn tenant(&self) -> Tenant<'_> {
        let (tenant, server) = (fresh(), self.server);
        let insert = format!(
            "INSERT INTO tenants (id, name, created_at, updated_at) VALUES ('{tenant}', '{tenant}', now(), now())"
        );
        self.sql.batch_execute(&insert).await.unwrap();
        let session = fresh();
        let insert = format!(
            "INSERT INTO waha_sessions (tenant_id, id, name, external_session_id, waha_server_id, status, status_at,
                 desired, engine, webhook_key_sealed, pacing, created_at, updated_at)
             VALUES ('{tenant}', '{session}', 's', '{session}', '{server}', 'working', now(), 'started', 'NOWEB', '', '{{}}', now(), now())"
        );
        self.sql.batch_execute(&insert).await.unwrap();
        Tenant { stand: self, id: TenantId(tenant), session }
    }

    /// Lets the projection take all events that there are.
    pub async fn settle(&self) {
        eventually(PATIENCE, "the projection to be through", async || {
            projection::step(&self.app).await.unwrap();
            // Another node may be at it.
            let ahead = "SELECT count(*) FROM events e, event_cursors k WHERE k.name = 'conversations' AND (e.xact, e.seq) > (k.xact, k.seq)";
            let ahead: i64 = self.sql.query_one(ahead, &[]).await.unwrap().get(0);
            (ahead == 0).then_some(())
        })
        .await;
    }
}

pub struct Tenant<'a> {
    pub stand: &'a Stand,
    pub id: TenantId,
    pub session: Uuid,
}

fn quoted(text: Option<&str>) -> String {
    text.map_or("NULL".to_owned(), |text| format!("'{text}'"))
}

impl Tenant<'_> {
    /// Stores a message with its step and its event, as ingest does.
    pub async fn message(&self, message: &Message) {
        let Message { id, chat, at, status, .. } = message;
        let at = noon() + TimeDelta::seconds(*at);
        let direction = if *status == "received" { "inbound" } else { "outbound" };
        let insert = format!(
            "WITH m AS (
                 INSERT INTO messages (tenant_id, id, session_id, direction, status, message_type, chat_id, body, waha_message_id,
                                       occurred_at, sender_id, sender_alternative_id, sender_name, read_at, created_at, updated_at)
                 VALUES ('{tenant}', '{uuid}', '{session}', '{direction}', '{status}', 'text', '{chat}', 'x', '{id}', '{at}',
                         {sender}, {other}, {name}, {read}, now(), now()) RETURNING *)
             INSERT INTO message_transitions (tenant_id, message_id, status, at, cause) SELECT tenant_id, id, status, now(), 'test' FROM m",
            tenant = self.id,
            uuid = fresh(),
            session = self.session,
            sender = quoted(message.sender),
            other = quoted(message.other),
            name = quoted(message.name),
            read = if message.read { "now()" } else { "NULL" },
        );
        let event = format!(
            "INSERT INTO events (tenant_id, id, type, at, session_id, message_id, data)
             SELECT tenant_id, gen_random_uuid(), 'message.' || status, now(), session_id, id, '{{}}' FROM messages
             WHERE session_id = '{}' AND waha_message_id = '{id}'",
            self.session
        );
        self.stand.sql.batch_execute(&format!("BEGIN; {insert}; {event}; COMMIT")).await.unwrap();
    }

    /// The message goes on to `status`.
    pub async fn goes_on(&self, id: &str, status: &str) {
        let moved = format!(
            "BEGIN; UPDATE messages SET status = '{status}' WHERE session_id = '{session}' AND waha_message_id = '{id}';
             INSERT INTO message_transitions (tenant_id, message_id, status, at, cause)
             SELECT tenant_id, id, status, now(), 'test' FROM messages WHERE session_id = '{session}' AND waha_message_id = '{id}';
             INSERT INTO events (tenant_id, id, type, at, session_id, message_id, data)
             SELECT tenant_id, gen_random_uuid(), 'message.' || status, now(), session_id, id, '{{}}' FROM messages
             WHERE session_id = '{session}' AND waha_message_id = '{id}'; COMMIT",
            session = self.session
        );
        self.stand.sql.batch_execute(&moved).await.unwrap();
    }

    pub async fn link(&self, lid: &str, phone: &str) {
        let (now, chance, tenant) = (self.stand.app.clock.now(), &self.stand.app.chance, self.id);
        self.stand
            .app
            .db
            .system(async |conn: &mut SystemConn| {
                contacts::link(conn, chance, now, tenant, lid, phone, Because::Lookup).await
            })
            .await
            .unwrap();
    }

    /// Rows as JSON, of a query on this tenant's rows (`$tenant`).
    pub async fn rows(&self, query: &str) -> Vec<Value> {
        let query = query.replace("$tenant", &format!("'{}'", self.id));
        let rows = self.stand.sql.query(&format!("SELECT to_jsonb(r)::text FROM ({query}) r"), &[]).await.unwrap();
        rows.iter().map(|row| serde_json::from_str(row.get(0)).unwrap()).collect()
    }

    /// Every contact with its ids and conversations, in an order that does not depend on when anything came.
    pub async fn outcome(&self) -> Vec<Value> {
        self.rows(
            "SELECT (SELECT jsonb_agg(i.key || ' ' || i.wa_id ORDER BY i.key) FROM contact_ids i WHERE i.tenant_id = c.tenant_id AND i.contact_id = c.id) AS ids,
                    c.phone, c.lid, c.push_name, c.last_seen_at, c.name, c.tags, c.notes,
                    (SELECT jsonb_agg(jsonb_build_object('chat', v.chat_id, 'last', v.last_waha_id, 'count', v.message_count, 'unread', v.unread_count,
                                                         'read', v.last_read_at)) FROM conversations v
                     WHERE v.tenant_id = c.tenant_id AND v.contact_id = c.id AND v.deleted_at IS NULL) AS conversations
             FROM contacts c WHERE c.tenant_id = $tenant AND c.merged_into IS NULL ORDER BY 1",
        )
        .await
    }

    /// The id of the contact with this key.
    pub async fn contact(&self, key: &str) -> ContactId {
        let rows =
            self.rows(&format!("SELECT contact_id FROM contact_ids WHERE tenant_id = $tenant AND key = '{key}'")).await;
        ContactId(rows[0]["contact_id"].as_str().unwrap().parse().unwrap())
    }

    /// Does `work` in a transaction of the system role.
    pub async fn undo(&self, kept: ContactId) -> ContactId {
        let rows = self
            .rows("SELECT id FROM contact_merges WHERE tenant_id = $tenant AND undone_at IS NULL ORDER BY at DESC")
            .await;
        let merge = rows[0]["id"].as_str().unwrap().parse().unwrap();
        let (now, chance, tenant) = (self.stand.app.clock.now(), &self.stand.app.chance, self.id);
        self.stand
            .app
            .db
            .system(async |conn: &mut SystemConn| {
                contacts::undo(conn, chance, now, tenant, kept, merge)
                    .await
                    .map_err(|fault| DbError::Refused(fault.to_string()))
            })
            .await
            .unwrap()
    }
}

pub fn fresh() -> Uuid {
    Chance::from_system().uuid(Clock::running().now())
}
