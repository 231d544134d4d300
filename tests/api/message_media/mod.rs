//! Files that come with messages: fetched, refused, tried again, served.

mod fetching;
mod serving;

use std::path::{Path, PathBuf};
use std::time::Duration;

use actix_web::web::Bytes;
use chrono::{DateTime, Utc};
use diesel::sql_types::{Jsonb, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use switchboard::db::{DbError, Prepare, sql};
use switchboard::domain::clock::Clock;
use switchboard::domain::ids::{MessageId, SessionId, TenantId};
use switchboard::media::arrivals::{self, Wanted};
use switchboard::serve::Role;
use switchboard::simulator::SimulatorConfig;

use crate::support::file_keeper::KEY;
use crate::support::world::{Client, Inside, PATIENCE, text};
use crate::support::{FileKeeper, World, eventually};

const ROLES: [Role; 2] = [Role::Api, Role::Ingest];

/// A tenant with a session at a server that keeps files.
struct Stand {
    world: World,
    node: Inside,
    tenant: Client,
    owner: TenantId,
    session: SessionId,
    keeper: FileKeeper,
    clock: Clock,
}

fn start() -> DateTime<Utc> {
    "2026-11-21T09:30:00Z".parse().unwrap()
}

impl Stand {
    async fn new() -> Self {
        Self::with(&ROLES, "GOWS", "").await
    }

    /// With a node that fetches nothing.
    async fn idle() -> Self {
        Self::with(&[Role::Api], "GOWS", "").await
    }

    /// With a node of these roles, and a server of this engine that says that it is below `base`.
    async fn with(roles: &[Role], engine: &str, base: &str) -> Self {
        let clock = Clock::manual(start());
        let world = World::on(&clock, SimulatorConfig::default()).await;
        let node = world.node_with(roles, |_| {});
        let keeper = FileKeeper::start(engine);
        let server =
            json!({"name": "files", "base_url": keeper.url(base), "api_key": KEY, "engine": engine, "capacity": 10});
        let tenant = world.tenant(&node.base, "one").await;
        let made = world.platform(&node.base).post("/v1/waha-servers", &server).await.expect(StatusCode::CREATED);
        let session = json!({"name": "first", "start": false, "engine": engine});
        let session = tenant.post("/v1/sessions", &session).await.expect(StatusCode::CREATED);
        assert_eq!(session["waha_server_id"], made["id"]);
        let owner = text(&tenant.get("/v1/tenant").await.expect(StatusCode::OK), "id").parse().unwrap();
        let session = text(&session, "id").parse().unwrap();
        Self { world, node, tenant, owner, session, keeper, clock }
    }

    /// A message came in, with a file that WAHA says is at `url`; answers its id.
    async fn arrives(&self, bare: &str, url: Option<&str>, mime: &str, name: Option<&str>) -> MessageId {
        let now = self.clock.now();
        let id = MessageId::fresh(now, &self.node.app.chance);
        let content = json!({"media": {"mime_type": mime, "filename": name, "status": "pending"}});
        let raw = json!({"id": format!("false_15550100009@c.us_{bare}")});
        let wanted = Wanted {
            tenant: self.owner,
            session: self.session,
            message: id,
            waha_message_id: bare.to_owned(),
            chat_id: "15550100009@c.us".to_owned(),
            url: url.map(str::to_owned),
            mime_type: Some(mime.to_owned()),
            filename: name.map(str::to_owned),
        };
        let (tenant, session) = (self.owner, self.session);
        self.node
            .app
            .db
            .system(async |conn| {
                sql("INSERT INTO messages (tenant_id, id, session_id, direction, status, message_type, chat_id, from_msisdn, body, \
                                           raw_payload, content, waha_message_id, created_at, updated_at) \
                     VALUES ($1, $2, $3, 'inbound', 'received', 'image', '15550100009@c.us', '+15550100009', $4, $5, $6, $7, $8, $8)")
                .bind::<SqlUuid, _>(tenant)
                .bind::<SqlUuid, _>(id)
                .bind::<SqlUuid, _>(session)
                .bind::<Nullable<Text>, _>(Some("look"))
                .bind::<Jsonb, _>(&raw)
                .bind::<Jsonb, _>(&content)
                .bind::<Text, _>(bare)
                .bind::<Timestamptz, _>(now)
                .prepared()
                .execute(&mut **conn)
                .await
                .map_err(DbError::from)?;
                arrivals::expect(conn, now, std::slice::from_ref(&wanted)).await
            })
            .await
            .unwrap();
        self.node.app.wake.media.notify_one();
        id
    }

    async fn media(&self, id: MessageId) -> Value {
        self.tenant.get(&format!("/v1/messages/{id}")).await.expect(StatusCode::OK)["media"].clone()
    }

    /// Waits until the file of `id` has `status`; the clock is moved a second at a time.
    async fn becomes(&self, id: MessageId, status: &str) -> Value {
        self.becomes_by(Duration::from_millis(100), id, status).await
    }

    async fn becomes_by(&self, step: Duration, id: MessageId, status: &str) -> Value {
        eventually(PATIENCE, &format!("the file to be {status}"), async || {
            self.clock.advance(step);
            let media = self.media(id).await;
            (media["status"] == status).then_some(media)
        })
        .await
    }

    /// As [`Self::becomes_by`], over pauses longer than the lease of a try, which must not run out under a try.
    async fn becomes_after_pauses(&self, id: MessageId, status: &str) -> Value {
        let lease = (self.node.app.config.arrivals.timeout + Duration::from_secs(180)).as_secs_f64();
        let conn = self.world.db.connect().await;
        let look = "SELECT EXISTS (SELECT FROM media_fetches WHERE due_at = updated_at + $2::float8 * interval '1 second'), \
                           EXISTS (SELECT FROM media_fetches WHERE due_at <= to_timestamp($1::float8 / 1000))";
        eventually(PATIENCE, &format!("the file to be {status}"), async || {
            let now = self.clock.now().timestamp_millis() as f64;
            let row = conn.query_one(look, &[&now, &lease]).await.unwrap();
            match (row.get(0), row.get(1)) {
                (true, _) => {}
                (false, true) => self.clock.advance(self.node.app.config.timings.poll),
                (false, false) => self.clock.advance(Duration::from_secs(600)),
            }
            let media = self.media(id).await;
            (media["status"] == status).then_some(media)
        })
        .await
    }

    /// The events of files, as tenants see them.
    async fn events(&self) -> Vec<Value> {
        let events = self.tenant.get("/v1/events?type=message.media").await.expect(StatusCode::OK);
        events["data"].as_array().unwrap().clone()
    }

    async fn fetch(&self, id: MessageId, query: &str) -> reqwest::Response {
        self.tenant.request(Method::GET, &format!("/v1/messages/{id}/media{query}")).send().await.unwrap()
    }

    async fn count(&self, table: &str) -> i64 {
        let query = format!("SELECT count(*) FROM {table}");
        self.world.db.connect().await.query_one(&query, &[]).await.unwrap().get(0)
    }

    fn files(&self) -> usize {
        files(&self.world.media_folder()).len()
    }

    async fn end(self) {
        self.node.node.stop().await;
    }
}

/// Every file below the folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// A picture: a PNG of one colour, compressed to almost nothing.
fn png(width: u32, height: u32) -> Bytes {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(png::ColorType::Grayscale);
    encoder.set_compression(png::Compression::High);
    let mut writer = encoder.write_header().unwrap();
    writer.write_image_data(&vec![200; (width * height) as usize]).unwrap();
    writer.finish().unwrap();
    bytes.into()
}

fn header(response: &reqwest::Response, name: &str) -> String {
    response.headers().get(name).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default()
}
