//! The same work with many stored messages: it must not cost more.

use std::time::{Duration, Instant};

use anyhow::bail;
use diesel::QueryableByName;
use diesel::sql_types::Text;
use diesel_async::{AsyncPgConnection, RunQueryDsl as _, SimpleAsyncConnection as _};
use switchboard::config::Config;

use super::fleet::Fleet;
use super::load::{Until, drive, request};
use super::rig::{Rig, connect};
use super::usage::{Meter, Used};
use super::way::none_open;
use super::{Arguments, Finding};

/// Sessions that the messages are spread over.
const SESSIONS: usize = 500;
/// Messages of one run of each kind of work.
const MESSAGES: usize = 10_000;
/// Pages of one run.
const PAGES: usize = 2_000;
/// Stored messages before.
const FEW: u32 = 10_000;
/// The process that is measured, and its roles.
const GATEWAY: (&str, &str) = ("gateway", "api,dispatch,send,ingest,deliver");
/// Bytes on disk of a stored message with its places in the indexes, and what else it takes while that is made.
const BYTES_EACH: u64 = 1_500;

/// What the work costs: microseconds of gateway and database a message, or a page.
struct Costs {
    accept: f64,
    list: f64,
    dispatch: f64,
}

pub async fn run(config: &Config, arguments: &Arguments) -> anyhow::Result<Vec<Finding>> {
    let mut rig = Rig::new(config, "stored").await?;
    rig.simulate(1, arguments.time_scale).await?;
    let result = measure(&mut rig, arguments).await;
    rig.tear_down().await?;
    result
}

async fn measure(rig: &mut Rig, arguments: &Arguments) -> anyhow::Result<Vec<Finding>> {
    room_for(u64::from(arguments.stored) * BYTES_EACH).await?;
    rig.serve(GATEWAY.0, GATEWAY.1).await?;
    let fleet = Fleet::make(rig, SESSIONS, 0).await?;
    let mut conn = connect(&rig.url).await?;
    println!("\nstored: the same work with {FEW} and with {} stored messages", arguments.stored);
    let few = costs_beside(rig, &fleet, &mut conn, FEW, arguments).await?;
    let many = costs_beside(rig, &fleet, &mut conn, arguments.stored, arguments).await?;
    let line = |what: &'static str, few: f64, many: f64| {
        println!("      {what}: {few:.0} µs of processor, then {many:.0} µs");
        Finding { what, measured: format!("{:.2}", many / few.max(1.0)), goal: "≤ 1.2", met: many <= few * 1.2 }
    };
    Ok(vec![
        line("cost with 10 million stored messages, accept", few.accept, many.accept),
        line("cost with 10 million stored messages, list a page", few.list, many.list),
        line("cost with 10 million stored messages, dispatch to read", few.dispatch, many.dispatch),
    ])
}

/// What the work costs beside `stored` more messages. The gateway does not run while those are filled in: it would sweep and read
/// back over tables without indexes.
async fn costs_beside(
    rig: &mut Rig,
    fleet: &Fleet,
    conn: &mut AsyncPgConnection,
    stored: u32,
    arguments: &Arguments,
) -> anyhow::Result<Costs> {
    rig.stop().await?;
    let began = Instant::now();
    fill(conn, fleet, stored).await?;
    println!("      {stored} messages were stored in {:.0} s", began.elapsed().as_secs_f64());
    rig.serve(GATEWAY.0, GATEWAY.1).await?;
    // Not counted.
    work(rig, fleet, conn, arguments).await?;
    work(rig, fleet, conn, arguments).await
}

async fn work(rig: &Rig, fleet: &Fleet, conn: &mut AsyncPgConnection, arguments: &Arguments) -> anyhow::Result<Costs> {
    let cost = |used: Used, count: usize| {
        let ours = used.iter().filter(|(name, _)| name == "gateway" || name == "postgres");
        let all: Duration = ours.map(|(_, used)| *used).sum();
        all.as_secs_f64() * 1e6 / f64::from(u32::try_from(count).unwrap_or(u32::MAX))
    };
    // Held back first, so that accepting and dispatching are told apart.
    pause(conn, true).await?;
    let meter = Meter::start(&rig.admin, &rig.database, &rig.processes(), false).await?;
    drive(&rig.address, arguments.connections, &fleet.requests(), Until::Made(MESSAGES), 202).await?;
    let accept = cost(meter.stop(), MESSAGES);
    let session = fleet.sessions.as_slice().first().map(|member| member.id.to_string()).unwrap_or_default();
    let pages = ["?limit=50".to_owned(), "?limit=50&status=read".to_owned(), format!("?limit=50&session_id={session}")]
        .map(|query| request("GET", &format!("/v1/messages{query}"), &fleet.key, None));
    let meter = Meter::start(&rig.admin, &rig.database, &rig.processes(), false).await?;
    drive(&rig.address, 4, &pages, Until::Made(PAGES), 200).await?;
    let list = cost(meter.stop(), PAGES);
    let meter = Meter::start(&rig.admin, &rig.database, &rig.processes(), false).await?;
    pause(conn, false).await?;
    none_open(conn).await?;
    let dispatch = cost(meter.stop(), MESSAGES);
    Ok(Costs { accept, list, dispatch })
}

async fn pause(conn: &mut AsyncPgConnection, paused: bool) -> anyhow::Result<()> {
    conn.batch_execute(if paused {
        "UPDATE lanes SET tenant_paused_at = now(), ready_at = NULL"
    } else {
        "UPDATE lanes SET tenant_paused_at = NULL, ready_at = CASE WHEN queued > 0 THEN now() END"
    })
    .await?;
    Ok(())
}

#[derive(QueryableByName)]
struct Definition {
    #[diesel(sql_type = Text)]
    name: String,
    #[diesel(sql_type = Text)]
    definition: String,
}

/// Stores `count` read messages of the last weeks, which nobody's retention takes yet. The indexes are made anew afterwards, as a restore does.
async fn fill(conn: &mut AsyncPgConnection, fleet: &Fleet, count: u32) -> anyhow::Result<()> {
    let indexes: Vec<Definition> = diesel::sql_query(
        "SELECT indexrelid::regclass::text AS name, pg_get_indexdef(indexrelid) AS definition FROM pg_index \
         WHERE indrelid = 'messages'::regclass AND NOT indisprimary AND NOT EXISTS \
             (SELECT FROM pg_constraint c WHERE c.conindid = indexrelid)",
    )
    .load(conn)
    .await?;
    for index in &indexes {
        conn.batch_execute(&format!("DROP INDEX {}", index.name)).await?;
    }
    // Foreign keys hold by construction; a role that may not leave them unchecked has them checked.
    let _may_not = conn.batch_execute("SET session_replication_role = replica").await;
    let sessions: Vec<String> = fleet.sessions.iter().map(|member| format!("'{}'", member.id)).collect();
    let sessions = sessions.join(",");
    for part in 0..count.div_ceil(1_000_000) {
        let (first, last) = (part * 1_000_000 + 1, count.min((part + 1) * 1_000_000));
        conn.batch_execute(&format!(
            "INSERT INTO messages (tenant_id, id, session_id, direction, status, message_type, chat_id, to_msisdn, from_msisdn, body, \
                 metadata, waha_message_id, ack, attempts, handed_over_at, sent_at, delivered_at, read_at, created_at, updated_at) \
             SELECT '{tenant}', (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || '7' || substr(h, 1, 3) || 'a' \
                 || substr(h, 4, 15))::uuid, (ARRAY[{sessions}]::uuid[])[1 + n % {count}], 'outbound', 'read', 'text', \
                 to_ || '@c.us', '+' || to_, NULL, 'Your order 4711 has left the house and will be with you tomorrow.', \
                 '{{\"order\": \"4711\"}}', '3EB0' || upper(substr(h, 1, 18)), 3, 1, at, at, at, at, at, at \
             FROM (SELECT n, now() - interval '20 days' + n * interval '0.15 s' AS at, md5('{salt}' || n) AS h, \
                          (15550200000 + n % 50000)::text AS to_ \
                   FROM generate_series({first}, {last}) n) made",
            tenant = fleet.tenant.0,
            count = fleet.sessions.len(),
            salt = count,
        ))
        .await?;
    }
    let _may_not = conn.batch_execute("SET session_replication_role = origin").await;
    conn.batch_execute("SET maintenance_work_mem = '512MB'").await?;
    for index in &indexes {
        conn.batch_execute(&index.definition).await?;
    }
    Ok(conn.batch_execute("VACUUM ANALYZE messages").await?)
}

/// Is there room on the disk that the database is most likely on?
async fn room_for(bytes: u64) -> anyhow::Result<()> {
    let output = tokio::process::Command::new("df").args(["--output=avail", "-B1", "/var"]).output().await?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let free = text.lines().nth(1).and_then(|line| line.trim().parse::<u64>().ok());
    match free {
        Some(free) if free < bytes * 2 => bail!("{bytes} bytes are needed twice over, and {free} are free"),
        _ => Ok(()),
    }
}
