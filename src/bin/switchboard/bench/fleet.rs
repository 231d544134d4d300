//! Sessions that work from the start, on both sides: rows in the gateway's database, and the simulator's sessions to them.

use anyhow::Context as _;
use diesel::sql_types::{Array, Binary, Integer, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{RunQueryDsl as _, SimpleAsyncConnection as _};
use serde_json::{Value, json};
use switchboard::config::MasterKey;
use switchboard::domain::chance::Chance;
use switchboard::domain::clock::Clock;
use switchboard::domain::ids::{SessionId, TenantId, WahaServerId};
use switchboard::identity::seal::Sealer;
use switchboard::sessions::directory::webhook_key_purpose;
use switchboard::waha::WEBHOOK_EVENTS;

use super::load::{Connection, member, request, with_headers};
use super::rig::{MASTER_KEY, PLATFORM_KEY, Rig, connect};

/// Sessions made with one call.
const AT_ONCE: usize = 500;

/// A tenant with working sessions.
pub struct Fleet {
    pub tenant: TenantId,
    /// The tenant's API key.
    pub key: String,
    pub sessions: Vec<Member>,
}

/// One session.
pub struct Member {
    pub id: SessionId,
    /// Its name at its WAHA server.
    pub name: String,
    pub server: WahaServerId,
    /// What its webhooks are signed with.
    pub webhook_key: String,
    /// Its number, digits only.
    pub number: String,
}

const SESSIONS: &str = "\
WITH input AS (
    SELECT * FROM unnest($3, $4, $5, $6, $7) AS i (id, name, server, key, phone)
), made AS (
    INSERT INTO waha_sessions (tenant_id, id, name, external_session_id, waha_server_id, status, waha_status, status_at, desired, engine,
                               webhook_key_sealed, phone, pacing, created_at, updated_at)
    SELECT $1, id, name, name, server, 'working', 'working', 'epoch', 'started', 'NOWEB', key, phone,
           jsonb_build_object('min_gap_ms', $2, 'jitter_ms', 0), $8, $8 FROM input
)
INSERT INTO lanes (tenant_id, session_id, waha_server_id, next_slot_at, min_gap_ms, jitter_ms, check_numbers, created_at, updated_at)
SELECT $1, id, server, $8, $2, 0, false, $8, $8 FROM input";

impl Fleet {
    /// `count` sessions with a gap of `gap_ms`, spread over the simulated WAHA servers; without these over one that is away.
    pub async fn make(rig: &mut Rig, count: usize, gap_ms: i32) -> anyhow::Result<Self> {
        let mut api = Connection::open(&rig.address).await?;
        let away = ["127.0.0.1:9".to_owned()];
        let places = if rig.wahas.is_empty() { away.as_slice() } else { rig.wahas.as_slice() };
        let mut servers = Vec::new();
        for (number, place) in places.iter().enumerate() {
            let server = json!({"name": format!("bench {number}"), "base_url": format!("http://{place}"), "api_key": "simulator",
                                "engine": "NOWEB", "capacity": 100_000});
            let server = api.create("/v1/waha-servers", PLATFORM_KEY, &server).await?;
            servers.push(WahaServerId(member(&server, "id")?.parse()?));
        }
        rig.servers.extend(&servers);
        let tenant = api.create("/v1/tenants", PLATFORM_KEY, &json!({"name": "bench"})).await?;
        let tenant = member(&tenant, "id")?;
        let minted = json!({"name": "bench", "scopes": ["*"]});
        let minted = api.create(&format!("/v1/tenants/{tenant}/api-keys"), PLATFORM_KEY, &minted).await?;
        let (clock, chance) = (Clock::running(), Chance::from_system());
        let sessions = (0..count)
            .filter_map(|number| {
                let id = SessionId::fresh(clock.now(), &chance);
                Some(Member {
                    id,
                    name: format!("sb_{}", id.0.simple()),
                    server: *servers.get(number % servers.len())?,
                    webhook_key: hex::encode(chance.bytes::<32>()),
                    number: format!("155502{number:05}"),
                })
            })
            .collect();
        let fleet = Self { tenant: TenantId(tenant.parse()?), key: member(&minted, "key")?, sessions };
        fleet.store(rig, gap_ms, &clock, &chance).await?;
        fleet.pair(rig).await?;
        Ok(fleet)
    }

    async fn store(&self, rig: &Rig, gap_ms: i32, clock: &Clock, chance: &Chance) -> anyhow::Result<()> {
        let master: MasterKey = MASTER_KEY.parse().map_err(|why: &str| anyhow::anyhow!(why))?;
        let sealer = Sealer::new(&master, chance.clone());
        let mut conn = connect(&rig.url).await?;
        let act = format!("SET app.tenant_id = '{}'; SET ROLE switchboard_tenant", self.tenant.0);
        conn.batch_execute(&act).await?;
        for part in self.sessions.chunks(AT_ONCE) {
            let sealed = |member: &Member| sealer.seal(&webhook_key_purpose(member.id), member.webhook_key.as_bytes());
            diesel::sql_query(SESSIONS)
                .bind::<SqlUuid, _>(self.tenant)
                .bind::<Integer, _>(gap_ms)
                .bind::<Array<SqlUuid>, _>(part.iter().map(|member| member.id).collect::<Vec<_>>())
                .bind::<Array<Text>, _>(part.iter().map(|member| member.name.as_str()).collect::<Vec<_>>())
                .bind::<Array<SqlUuid>, _>(part.iter().map(|member| member.server).collect::<Vec<_>>())
                .bind::<Array<Binary>, _>(part.iter().map(sealed).collect::<Vec<_>>())
                .bind::<Array<Text>, _>(part.iter().map(|member| format!("+{}", member.number)).collect::<Vec<_>>())
                .bind::<Timestamptz, _>(clock.now())
                .execute(&mut conn)
                .await
                .context("the sessions")?;
        }
        conn.batch_execute(
            "SET ROLE switchboard_system; UPDATE waha_servers v SET sessions = \
             (SELECT count(*) FROM waha_sessions s WHERE s.waha_server_id = v.id)",
        )
        .await?;
        Ok(())
    }

    /// Has the simulated WAHA servers know the sessions.
    async fn pair(&self, rig: &Rig) -> anyhow::Result<()> {
        for (place, server) in rig.wahas.iter().zip(&rig.servers) {
            let mut waha = Connection::open(place).await?;
            let here: Vec<&Member> = self.sessions.iter().filter(|member| member.server == *server).collect();
            for part in here.chunks(AT_ONCE) {
                let sessions: Vec<Value> = part.iter().map(|member| member.at_waha(&rig.address)).collect();
                let body = json!({"sessions": sessions}).to_string();
                waha.json(&with_headers("POST", "/_simulator/fleet", "X-Api-Key: simulator\r\n", &body)).await?;
            }
        }
        Ok(())
    }

    /// A request to send for each session.
    pub fn requests(&self) -> Vec<Vec<u8>> {
        let message = |member: &Member| {
            json!({
                "session_id": member.id, "to": "+15550101234",
                "body": "Your order 4711 has left the house and will be with you tomorrow.", "metadata": {"order": "4711"},
            })
        };
        self.sessions.iter().map(|member| request("POST", "/v1/messages", &self.key, Some(&message(member)))).collect()
    }
}

impl Member {
    /// As the gateway would set it up.
    fn at_waha(&self, gateway: &str) -> Value {
        json!({
            "name": self.name,
            "number": self.number,
            "config": {
                "metadata": {"switchboard.session": self.id},
                "webhooks": [{
                    "url": format!("http://{gateway}/hooks/waha/{}", self.server),
                    "events": WEBHOOK_EVENTS,
                    "hmac": {"key": self.webhook_key},
                    "retries": {"policy": "exponential", "delaySeconds": 2, "attempts": 12},
                }],
                "noweb": {"store": {"enabled": true, "fullSync": false}},
            },
        })
    }
}
