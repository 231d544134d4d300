//! What each fault of a send does to 2,000 messages over 40 sessions, engine by engine: a table, and the promises it has to
//! keep. Each is sent at most once, in the order of acceptance, and ends in a state that says what happened.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::time::Duration;

use futures_util::future::join_all;
use switchboard::simulator::{Engine, Fault, FaultRule, Ledger, PostRecord, SimulatorConfig, Timelock};

use crate::support::world::{Client, Inside, PATIENCE};
use crate::support::{World, eventually, invariants};

/// Sessions that meet the same fault.
const EACH: usize = 4;
/// Messages by each session: some at first, within which the sessions that need it are restarted, and the rest after.
const BEFORE: usize = 20;
const MESSAGES: usize = 50;
/// Chats of each session; under a timelock the last is a new one.
const CHATS: usize = 5;
/// How long the gateway waits for an answer to a send.
const TIMEOUT: Duration = Duration::from_millis(2_500);

struct Row {
    name: &'static str,
    fault: Option<Fault>,
    /// Which calls it strikes; empty for all of them.
    calls: &'static [u64],
}

/// What the contract lists, and nothing at all. Those that make a session wait strike less often.
const ROWS: [Row; 10] = [
    Row { name: "none", fault: None, calls: &[] },
    Row { name: "422 state", fault: Some(Fault::State422), calls: &[7, 33] },
    Row { name: "422 missing", fault: Some(Fault::Missing422), calls: &[7, 33] },
    Row { name: "500 before sending", fault: Some(Fault::Error500Before), calls: &[3, 9, 15, 27, 36, 48] },
    Row { name: "500 after sending", fault: Some(Fault::Error500After), calls: &[3, 9, 15, 27, 36, 48] },
    Row { name: "timeout after sending", fault: Some(Fault::HangAfterSend), calls: &[5, 31] },
    Row { name: "reset after body", fault: Some(Fault::ResetAfterSend), calls: &[3, 9, 15, 27, 36, 48] },
    Row { name: "foreign id", fault: Some(Fault::ForeignId), calls: &[3, 9, 15, 27, 36, 48] },
    Row { name: "463 for new chats", fault: None, calls: &[] },
    Row { name: "400 until restart", fault: Some(Fault::Refused400), calls: &[] },
];

impl Row {
    fn is_timelock(&self) -> bool {
        self.name.starts_with("463")
    }

    /// One answer under another id, and the gateway trusts no id of that server's any more: a world of its own.
    fn is_foreign(&self) -> bool {
        self.fault == Some(Fault::ForeignId)
    }

    fn needs_restart(&self) -> bool {
        self.fault == Some(Fault::Refused400)
    }

    fn rules(&self, session: &str) -> Vec<FaultRule> {
        let Some(fault) = self.fault else { return Vec::new() };
        let rule = FaultRule::always("sendText", fault).for_session(session);
        if self.needs_restart() {
            return vec![rule.until_restart()];
        }
        self.calls.iter().map(|call| rule.clone().on_call(*call)).collect()
    }
}

struct Sender {
    row: usize,
    number: usize,
    id: String,
    external: String,
}

impl Sender {
    fn chat(&self, n: usize) -> String {
        format!("1555020{:03}{}", self.number, n % CHATS)
    }

    fn text(&self, n: usize) -> String {
        format!("{}-{n}", self.number)
    }

    async fn send(&self, tenant: &Client, range: std::ops::Range<usize>) {
        for n in range {
            let to = format!("+{}", self.chat(n));
            tenant.send_text(&self.id, &to, &self.text(n)).await;
        }
    }
}

/// What the gateway says of one message.
struct Told {
    status: String,
    error: Option<String>,
    held: bool,
}

async fn told(client: &tokio_postgres::Client) -> HashMap<String, Told> {
    let query = "SELECT body, status, error_code, held_because IS NOT NULL FROM messages WHERE direction = 'outbound'";
    let rows = client.query(query, &[]).await.unwrap();
    let of = |row: &tokio_postgres::Row| Told { status: row.get(1), error: row.get(2), held: row.get(3) };
    rows.iter().map(|row| (row.get(0), of(row))).collect()
}

/// Waits until so many messages are settled: read, failed, or held until WhatsApp lets them go.
async fn settled(client: &tokio_postgres::Client, count: usize) {
    let query = "SELECT count(*) FROM messages WHERE direction = 'outbound' AND (status IN ('read', 'failed') OR held_because IS NOT NULL)";
    eventually(2 * PATIENCE, "every message to settle", async || {
        let row = client.query_one(query, &[]).await.unwrap();
        (usize::try_from(row.get::<_, i64>(0)).unwrap() >= count).then_some(())
    })
    .await;
}

async fn open(world: &World, tenant: &Client, foreign: bool) -> Vec<Sender> {
    let control = world.simulator.control();
    let numbers = (0..ROWS.len() * EACH).filter(|number| ROWS[number / EACH].is_foreign() == foreign);
    let opening = numbers.map(async |number| {
        let (id, external) = tenant.session(&format!("s{number}")).await;
        Sender { row: number / EACH, number, id, external }
    });
    let senders = join_all(opening).await;
    let mut friends = 0;
    for sender in &senders {
        if ROWS[sender.row].is_timelock() {
            for n in 0..CHATS - 1 {
                control.inbound_text(&sender.external, &sender.chat(n), "hi").unwrap();
                friends += 1;
            }
            control.timelock(&sender.external, Some(Timelock { until: 4_000_000_000 })).unwrap();
        }
        for rule in ROWS[sender.row].rules(&sender.external) {
            control.add_fault(rule);
        }
    }
    let client = world.db.connect().await;
    eventually(PATIENCE, "the first words of those who are known", async || {
        let row = client.query_one("SELECT count(*) FROM messages WHERE direction = 'inbound'", &[]).await.unwrap();
        (row.get::<_, i64>(0) >= friends).then_some(())
    })
    .await;
    senders
}

async fn judge(engine: Engine) {
    judge_in_a_world(engine, false).await;
    judge_in_a_world(engine, true).await;
}

async fn judge_in_a_world(engine: Engine, foreign: bool) {
    let world = World::with(SimulatorConfig { engine, ..SimulatorConfig::default() }).await;
    let Inside { node, base, .. } = world.node_with(&switchboard::serve::Role::ALL, |config| {
        config.timings.send_timeout = TIMEOUT;
    });
    let tenant = world.tenant(&base, "one").await;
    let senders = open(&world, &tenant, foreign).await;
    let client = world.db.connect().await;
    join_all(senders.iter().map(|sender| sender.send(&tenant, 0..BEFORE))).await;
    settled(&client, senders.len() * BEFORE).await;
    join_all(senders.iter().map(|sender| sender.send(&tenant, BEFORE..MESSAGES))).await;
    settled(&client, senders.len() * MESSAGES).await;
    let table = check(engine, &senders, &world.simulator.control().ledger(), &told(&client).await);
    std::io::stderr().lock().write_all(table.as_bytes()).unwrap();
    invariants::hold(&world).await;
    node.stop().await;
}

/// Holds each message's story against what its recipient saw; answers the table.
fn check(engine: Engine, senders: &[Sender], ledger: &Ledger, told: &HashMap<String, Told>) -> String {
    let mut bubbles: HashMap<&str, u32> = HashMap::new();
    for entry in &ledger.entries {
        *bubbles.entry(entry.text.as_str()).or_default() += entry.bubbles;
    }
    let mut posts: HashMap<&str, u32> = HashMap::new();
    for post in &ledger.posts {
        *posts.entry(post.text.as_deref().unwrap_or_default()).or_default() += 1;
    }
    let mut table = format!(
        "\n{engine}: {} messages over {} sessions\n{:<22} accepted  seen  read  failed  unconfirmed  held  POSTs  most  twice  lost\n",
        senders.len() * MESSAGES,
        senders.len(),
        "fault"
    );
    for (number, row) in ROWS.iter().enumerate() {
        if senders.iter().all(|sender| sender.row != number) {
            continue;
        }
        let (mut seen, mut read, mut failed, mut unconfirmed, mut held) = (0, 0, 0, 0, 0);
        let (mut all, mut most, mut twice, mut lost) = (0, 0, 0, 0);
        for sender in senders.iter().filter(|sender| sender.row == number) {
            let mut order = Vec::new();
            for n in 0..MESSAGES {
                let text = sender.text(n);
                let shown = bubbles.get(text.as_str()).copied().unwrap_or(0);
                let posted = posts.get(text.as_str()).copied().unwrap_or(0);
                let story = told.get(&text).unwrap_or_else(|| panic!("{}: {text} is gone", row.name));
                (seen, all, most) = (seen + u32::from(shown > 0), all + posted, most.max(posted));
                twice += u32::from(shown > 1);
                match (story.status.as_str(), story.error.as_deref()) {
                    ("read", _) => {
                        read += 1;
                        assert_eq!(shown, 1, "{engine}, {}: {text} is said to be read", row.name);
                    }
                    ("failed", Some("unconfirmed")) => {
                        unconfirmed += 1;
                        assert!(!engine.honours_ids(), "{engine}, {}: {text} could have been confirmed", row.name);
                        assert_eq!(posted, 1, "{engine}, {}: {text} was sent again blindly", row.name);
                    }
                    ("failed", error) => {
                        failed += 1;
                        assert_eq!(shown, 0, "{engine}, {}: {text} failed with {error:?}", row.name);
                    }
                    _ if story.held => {
                        held += 1;
                        assert_eq!(shown, 0, "{engine}, {}: {text} is held", row.name);
                    }
                    (status, _) => {
                        lost += 1;
                        assert_ne!(status, "read");
                    }
                }
                if shown > 0 {
                    order.push(text);
                }
            }
            assert_eq!(ledger.texts(&sender.external), order, "{engine}, {}: in order", row.name);
        }
        writeln!(
            table,
            "{:<22} {:>8} {seen:>5} {read:>5} {failed:>7} {unconfirmed:>12} {held:>5} {all:>6} {most:>5} {twice:>6} {lost:>5}",
            row.name,
            EACH * MESSAGES,
        )
        .unwrap();
        assert_eq!((twice, lost), (0, 0), "{engine}, {}", row.name);
    }
    // A POST that the gateway has given up stays under way at WAHA.
    let given_up = |post: &PostRecord| {
        let lasted = post.ended.map(|ended| (ended - post.started).to_std().unwrap_or_default());
        post.status.is_none() || lasted.is_some_and(|lasted| lasted >= TIMEOUT.mul_f64(0.9))
    };
    for (before, after) in ledger.overlaps() {
        assert!(given_up(&before), "{engine}: two at a time: {before:?} {after:?}");
    }
    for sender in senders.iter().filter(|sender| ROWS[sender.row].needs_restart()) {
        let after = (BEFORE..MESSAGES).filter(|n| bubbles.contains_key(sender.text(*n).as_str())).count();
        assert_eq!(after, MESSAGES - BEFORE, "{engine}: the gateway's own restart ends it");
        assert_eq!(ledger.lifecycle(&sender.external).iter().filter(|call| call.endpoint == "restart").count(), 1);
    }
    table
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_fault_on_gows() {
    judge(Engine::Gows).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_fault_on_noweb() {
    judge(Engine::Noweb).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_fault_on_webjs() {
    judge(Engine::Webjs).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_fault_on_wpp() {
    judge(Engine::Wpp).await;
}
