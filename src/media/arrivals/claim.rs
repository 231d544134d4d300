//! Taking files that are due: fair between sessions, counted and leased before they are tried.

use std::collections::HashMap;

use chrono::{DateTime, TimeDelta, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{Array, Bool, Integer, Jsonb, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use serde_json::Value;

use crate::app::App;
use crate::config::Arrivals;
use crate::db::{DbError, Prepare, SystemConn, sql};
use crate::domain::ids::{MessageId, SessionId, TenantId, WahaServerId};
use crate::media::MOST_BYTES;
use crate::messages::row::whatsapp_id;

/// What a try may take beyond the fetch itself: its small picture, and writing its outcome down.
const MARGIN: TimeDelta = TimeDelta::minutes(3);

/// A file that this node may try once, until the lease ends.
#[derive(QueryableByName)]
pub(super) struct Claimed {
    #[diesel(sql_type = SqlUuid)]
    pub(super) tenant_id: TenantId,
    #[diesel(sql_type = SqlUuid)]
    pub(super) message_id: MessageId,
    #[diesel(sql_type = SqlUuid)]
    pub(super) session_id: SessionId,
    #[diesel(sql_type = Text)]
    pub(super) waha_message_id: String,
    #[diesel(sql_type = Text)]
    pub(super) chat_id: String,
    /// WhatsApp's id, whole.
    #[diesel(sql_type = Text)]
    pub(super) whatsapp_id: String,
    #[diesel(sql_type = Nullable<Text>)]
    pub(super) url: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    pub(super) mime_type: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    pub(super) filename: Option<String>,
    /// The number of this try, from 1; also the fence of its outcome.
    #[diesel(sql_type = Integer)]
    pub(super) attempts: i32,
    #[diesel(sql_type = Integer)]
    pub(super) excused: i32,
    #[diesel(sql_type = Integer)]
    pub(super) gone: i32,
    /// Whether its message is still there to show it.
    #[diesel(sql_type = Bool)]
    pub(super) wanted: bool,
    /// `media` of the tenant's settings.
    #[diesel(sql_type = Nullable<Jsonb>)]
    settings: Option<Value>,
}

impl Claimed {
    /// Bytes that a file of this tenant's may have.
    pub(super) fn most_bytes(&self) -> usize {
        let set = self.settings.as_ref().and_then(|settings| settings.get("max_bytes")).and_then(Value::as_u64);
        set.and_then(|most| usize::try_from(most).ok()).map_or(MOST_BYTES, |most| most.min(MOST_BYTES))
    }
}

/// How many more tries there may be at once on this node.
pub(super) struct Room {
    all: usize,
    each_server: usize,
    each_session: usize,
    servers: HashMap<WahaServerId, usize>,
    sessions: HashMap<SessionId, usize>,
}

impl Room {
    /// What `limits` leave beside what is `under_way`.
    pub(super) fn beside(limits: &Arrivals, under_way: impl Iterator<Item = (WahaServerId, SessionId)>) -> Self {
        let (mut all, mut servers, mut sessions) = (0, HashMap::new(), HashMap::new());
        for (server, session) in under_way {
            all += 1;
            *servers.entry(server).or_default() += 1;
            *sessions.entry(session).or_default() += 1;
        }
        Self {
            all: limits.at_once.saturating_sub(all),
            each_server: limits.per_server,
            each_session: limits.per_session,
            servers,
            sessions,
        }
    }

    /// Takes a place at this server, if there is one.
    fn take(&mut self, server: WahaServerId) -> bool {
        let of_server = self.servers.entry(server).or_default();
        let taken = self.all > 0 && *of_server < self.each_server;
        if taken {
            self.all -= 1;
            *of_server += 1;
        }
        taken
    }

    /// The ids of those without a free place.
    fn full<T: Copy>(used: &HashMap<T, usize>, limit: usize) -> Vec<T> {
        used.iter().filter(|(_, used)| **used >= limit).map(|(id, _)| *id).collect()
    }
}

#[derive(QueryableByName)]
struct Head {
    #[diesel(sql_type = SqlUuid)]
    session_id: SessionId,
    #[diesel(sql_type = SqlUuid)]
    waha_server_id: WahaServerId,
}

// From one session to the next through the index, so the cost follows the number of sessions that have something to fetch.
const HEADS: &str = "\
WITH RECURSIVE waiting AS (
    (SELECT f.tenant_id, f.session_id FROM media_fetches f ORDER BY f.session_id LIMIT 1)
    UNION ALL
    SELECT n.tenant_id, n.session_id FROM waiting w CROSS JOIN LATERAL (
        SELECT f.tenant_id, f.session_id FROM media_fetches f WHERE f.session_id > w.session_id
        ORDER BY f.session_id LIMIT 1) n
)
SELECT w.session_id, s.waha_server_id
FROM waiting w JOIN waha_sessions s ON s.tenant_id = w.tenant_id AND s.id = w.session_id
WHERE w.session_id <> ALL($2) AND s.waha_server_id <> ALL($3)
  AND EXISTS (SELECT FROM media_fetches f WHERE f.session_id = w.session_id AND f.due_at <= $1)
ORDER BY (w.session_id <= $4), w.session_id LIMIT 256";

const CLAIM: &str = concat!(
    "\
WITH picked AS MATERIALIZED (
    SELECT f.tenant_id, f.message_id FROM unnest($1::uuid[]) AS t (session_id) CROSS JOIN LATERAL (
        SELECT f.tenant_id, f.message_id FROM media_fetches f WHERE f.session_id = t.session_id AND f.due_at <= $2
        ORDER BY f.due_at LIMIT 1 FOR UPDATE SKIP LOCKED) f
), c AS (
    UPDATE media_fetches f SET attempts = f.attempts + 1, due_at = $3, updated_at = $2
    FROM picked p WHERE f.tenant_id = p.tenant_id AND f.message_id = p.message_id
    RETURNING f.*
)
SELECT c.tenant_id, c.message_id, c.session_id, c.waha_message_id, c.chat_id, coalesce(",
    whatsapp_id!("m"),
    ", c.waha_message_id) AS whatsapp_id,
       c.url, c.mime_type, c.filename, c.attempts, c.excused, c.gone,
       coalesce(m.content ? 'media', false) AND m.deleted_at IS NULL AND m.erased_at IS NULL AS wanted,
       t.settings -> 'media' AS settings
FROM c
JOIN messages m ON m.tenant_id = c.tenant_id AND m.id = c.message_id
JOIN tenants t ON t.id = c.tenant_id"
);

/// Claims files that are due, one of each session from behind `last` on, and moves that.
pub(super) async fn claim(
    app: &App,
    mut room: Room,
    last: &mut Option<SessionId>,
) -> Result<Vec<(WahaServerId, Claimed)>, DbError> {
    if room.all == 0 {
        return Ok(Vec::new());
    }
    let now = app.clock.now();
    let busy = Room::full(&room.sessions, room.each_session);
    let full = Room::full(&room.servers, room.each_server);
    let behind = last.unwrap_or(SessionId(uuid::Uuid::nil()));
    let timeout = TimeDelta::from_std(app.config.arrivals.timeout).unwrap_or(TimeDelta::MAX);
    let (heads, claimed) = app
        .db
        .system(async |conn: &mut SystemConn| {
            let heads: Vec<Head> = sql(HEADS)
                .bind::<Timestamptz, _>(now)
                .bind::<Array<SqlUuid>, _>(&busy)
                .bind::<Array<SqlUuid>, _>(&full)
                .bind::<SqlUuid, _>(behind)
                .prepared()
                .load(&mut **conn)
                .await?;
            let turns: Vec<Head> = heads.into_iter().filter(|head| room.take(head.waha_server_id)).collect();
            if turns.is_empty() {
                return Ok((turns, Vec::new()));
            }
            let claimed: Vec<Claimed> = claim_turns(conn, &turns, now, now + timeout + MARGIN).await?;
            Ok::<_, DbError>((turns, claimed))
        })
        .await?;
    *last = heads.last().map(|head| head.session_id).or(*last);
    let servers: HashMap<SessionId, WahaServerId> =
        heads.iter().map(|head| (head.session_id, head.waha_server_id)).collect();
    let placed = |file: Claimed| servers.get(&file.session_id).map(|server| (*server, file));
    Ok(claimed.into_iter().filter_map(placed).collect())
}

async fn claim_turns(
    conn: &mut SystemConn,
    turns: &[Head],
    now: DateTime<Utc>,
    lease: DateTime<Utc>,
) -> Result<Vec<Claimed>, DbError> {
    Ok(sql(CLAIM)
        .bind::<Array<SqlUuid>, _>(turns.iter().map(|head| head.session_id).collect::<Vec<_>>())
        .bind::<Timestamptz, _>(now)
        .bind::<Timestamptz, _>(lease)
        .prepared()
        .load(&mut **conn)
        .await?)
}
