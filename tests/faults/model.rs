//! The state machine under any interleaving and repetition of what can happen to it, on the real statements: accepting, giving
//! turns, claiming, reporting each outcome, acknowledgements of each level and before their time, cancelling, expiring, retrying
//! what failed, workers that die, and time.
//!
//! Whatever happens, every message ends in one final state, no step goes back unless the tenant asked for a retry, and the
//! lanes' books are right.

use std::collections::HashMap;
use std::time::Duration;

use chrono::TimeDelta;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use serde_json::json;
use switchboard::broker::envelope::OutboundRef;
use switchboard::db::DbError;
use switchboard::db::group_commit::BatchWriter as _;
use switchboard::dispatch::{lanes, sweep};
use switchboard::domain::chance::Chance;
use switchboard::domain::clock::Clock;
use switchboard::domain::failure::FailureCode;
use switchboard::domain::ids::{MessageId, SessionId, TenantId};
use switchboard::domain::recipient::ChatId;
use switchboard::domain::status::{Ack, Status};
use switchboard::ingest::acks::{self, AckEvent};
use switchboard::messages::accept::Draft;
use switchboard::messages::{retry, withdraw};
use switchboard::sending::claim::{Claimed, Claims};
use switchboard::sending::outcome::{Doubt, Outcome, Outcomes, Report};
use tokio_postgres::Client;

use crate::api::Stand;
use crate::support::invariants;

const CASES: u32 = 200;
const LEASE: TimeDelta = TimeDelta::seconds(30);

/// Something that happens. Indexes point at what there is, modulo how much there is.
#[derive(Clone, Copy, Debug)]
enum Step {
    Accept,
    /// The same with a time after which it must not be sent: milliseconds from now.
    AcceptUntil(u16),
    /// The tenant takes a message back.
    Cancel(usize),
    /// The tenant has a failed message sent once more.
    Retry(usize),
    /// The dispatcher looks at the lanes.
    Dispatch,
    /// A worker takes a turn that was given, now or long ago; the broker may deliver it twice.
    Claim(usize),
    /// A worker reports an attempt, now or long ago, perhaps again.
    Report(usize, Proof),
    /// WAHA tells how far a message came.
    Ack(usize, i16),
    /// Acks that came before their message knew its id are looked at, and what is too late to be sent expires.
    Sweep,
    /// Time passes: milliseconds.
    Wait(u16),
    /// As long as a lease, so that whoever holds one has died.
    Die,
}

/// What an attempt proved.
#[derive(Clone, Copy, Debug)]
enum Proof {
    HandedOver,
    HandedOverWithoutId,
    NotSent,
    Unknown,
    Failed,
}

fn outcome(proof: Proof, claimed: &Claimed, now: chrono::DateTime<chrono::Utc>) -> Outcome {
    let retry = |doubt, code| Outcome::Retry {
        at: now + TimeDelta::milliseconds(500),
        doubt,
        counts: true,
        error: (code, "of the model".to_owned()),
    };
    match proof {
        Proof::HandedOver => Outcome::HandedOver { waha_message_id: Some(id_of(claimed)), chat_id: None },
        Proof::HandedOverWithoutId => Outcome::HandedOver { waha_message_id: None, chat_id: None },
        Proof::NotSent => retry(Doubt::None, "not_sent"),
        Proof::Unknown => retry(Doubt::Fresh, "unknown_outcome"),
        Proof::Failed => Outcome::Failed { code: FailureCode::RefusedByWaha, detail: "of the model".to_owned() },
    }
}

/// The engine's own id where it chooses; the message's where it has one.
fn id_of(claimed: &Claimed) -> String {
    claimed.waha_message_id.clone().unwrap_or_else(|| engine_id(claimed.turn.message_id.0))
}

fn engine_id(message: uuid::Uuid) -> String {
    format!("3EB0{}", hex::encode_upper(&message.as_bytes()[7..16]))
}

fn step() -> impl Strategy<Value = Step> {
    let proof = prop_oneof![
        4 => Just(Proof::HandedOver),
        1 => Just(Proof::HandedOverWithoutId),
        2 => Just(Proof::NotSent),
        2 => Just(Proof::Unknown),
        1 => Just(Proof::Failed),
    ];
    prop_oneof![
        3 => Just(Step::Accept),
        1 => (1..2_000_u16).prop_map(Step::AcceptUntil),
        1 => (0..6_usize).prop_map(Step::Cancel),
        2 => (0..6_usize).prop_map(Step::Retry),
        5 => Just(Step::Dispatch),
        5 => (0..6_usize).prop_map(Step::Claim),
        5 => (0..6_usize, proof).prop_map(|(claim, proof)| Step::Report(claim, proof)),
        4 => (0..6_usize, -1..=4_i16).prop_map(|(message, level)| Step::Ack(message, level)),
        1 => Just(Step::Sweep),
        3 => (1..2_000_u16).prop_map(Step::Wait),
        1 => Just(Step::Die),
    ]
}

struct Model {
    stand: Stand,
    sql: Client,
    tenant: TenantId,
    key: String,
    claims: Claims,
    outcomes: Outcomes,
    chance: Chance,
}

/// One session with its messages.
struct Case {
    session: SessionId,
    honours: bool,
    turns: Vec<OutboundRef>,
    claimed: Vec<Claimed>,
    messages: Vec<(uuid::Uuid, String)>,
}

impl Model {
    async fn new() -> Self {
        let stand = Stand::at(Clock::manual("2026-11-21T09:30:00Z".parse().unwrap())).await;
        let server = json!({"name": "w", "base_url": "http://127.0.0.1:1", "api_key": "k", "engine": "GOWS", "capacity": 10_000});
        stand.post("/v1/waha-servers", "platform-key-of-the-tests", server).await.expect(201);
        let tenant = stand.tenant("one").await;
        let key = stand.key(&tenant, &["*"]).await;
        let sql = stand.sql().await;
        let (claims, outcomes) = (Claims::new(&stand.app), Outcomes::new(&stand.app));
        let tenant = tenant.parse().unwrap();
        Self { sql, tenant, key, claims, outcomes, chance: Chance::seeded(7), stand }
    }

    async fn open(&self, number: usize, honours: bool) -> Case {
        let body = json!({"name": format!("s{number}"), "start": false, "pacing": {"min_gap_ms": 100, "jitter_ms": 0}});
        let created = self.stand.post("/v1/sessions", &self.key, body).await.expect(201).json();
        let id = created["id"].as_str().unwrap();
        let works = format!("UPDATE lanes SET stopped_because = NULL WHERE session_id = '{id}'");
        self.sql.batch_execute(&works).await.unwrap();
        let session = id.parse().unwrap();
        Case { session, honours, turns: Vec::new(), claimed: Vec::new(), messages: Vec::new() }
    }

    async fn take(&self, case: &mut Case, step: Step) {
        let app = &self.stand.app;
        let pick = |index: usize, length: usize| length.checked_sub(1).map(|last| last - index.min(last));
        match step {
            Step::Accept => self.accept(case, None).await,
            Step::AcceptUntil(millis) => self.accept(case, Some(TimeDelta::milliseconds(millis.into()))).await,
            Step::Cancel(index) => {
                let Some((id, _)) = pick(index, case.messages.len()).map(|at| &case.messages[at]) else { return };
                let (now, chance, id) = (app.clock.now(), &self.chance, MessageId(*id));
                app.db.tenant(self.tenant, async |conn| withdraw::cancel(conn, chance, now, id).await).await.unwrap();
            }
            Step::Retry(index) => {
                let Some((id, _)) = pick(index, case.messages.len()).map(|at| &case.messages[at]) else { return };
                let (now, chance, ids) = (app.clock.now(), &self.chance, [MessageId(*id)]);
                app.db
                    .tenant(self.tenant, async |conn| retry::retry_failed(conn, chance, now, &ids).await)
                    .await
                    .unwrap();
            }
            Step::Dispatch => {
                let due = lanes::take_due(&app.db, app.clock.now(), LEASE, 100).await.unwrap();
                case.turns.extend(due.turns.into_iter().map(|(_, turn)| turn));
            }
            Step::Claim(index) => {
                let Some(turn) = pick(index, case.turns.len()).map(|at| case.turns[at].clone()) else { return };
                let claimed = self.claims.write(&[turn]).await.unwrap();
                case.claimed.extend(claimed.into_iter().flatten());
            }
            Step::Report(index, proof) => {
                let Some(claimed) = pick(index, case.claimed.len()).map(|at| &case.claimed[at]) else { return };
                self.report(claimed, proof).await;
            }
            Step::Ack(index, level) => {
                let Some((_, id)) = pick(index, case.messages.len()).map(|at| &case.messages[at]) else { return };
                self.ack(case.session, id, level).await;
            }
            Step::Sweep => {
                let (now, chance) = (app.clock.now(), self.chance.clone());
                app.db.system(async move |conn| acks::sweep_early(conn, &chance, now).await).await.unwrap();
                sweep::round(app).await.unwrap();
            }
            Step::Wait(millis) => app.clock.advance(Duration::from_millis(millis.into())),
            Step::Die => app.clock.advance(Duration::from_secs(600)),
        }
    }

    async fn accept(&self, case: &mut Case, lasts: Option<TimeDelta>) {
        let app = &self.stand.app;
        let chat = ChatId::parse("+15550101234").unwrap();
        let draft = Draft {
            honours_message_id: case.honours,
            expires_at: lasts.map(|lasts| app.clock.now() + lasts),
            ..Draft::text(self.tenant, case.session, chat, "hi")
        };
        let accepted = app.acceptor.accept(app, draft).await.unwrap();
        let message: serde_json::Value = serde_json::from_slice(&accepted.json).unwrap();
        let id = message["waha_message_id"].as_str().map_or_else(|| engine_id(accepted.id.0), str::to_owned);
        case.messages.push((accepted.id.0, id));
    }

    async fn report(&self, claimed: &Claimed, proof: Proof) {
        let now = self.stand.app.clock.now();
        let outcome = outcome(proof, claimed, now);
        let gap = TimeDelta::milliseconds(100);
        let report = Report { turn: claimed.turn.clone(), attempt: claimed.attempt, at: now, gap, outcome };
        self.outcomes.write(&[report]).await.unwrap();
    }

    async fn ack(&self, session: SessionId, id: &str, level: i16) {
        let app = &self.stand.app;
        let event = AckEvent {
            tenant: self.tenant,
            session,
            waha_message_id: id.to_owned(),
            ack: Ack::from_level(level).unwrap(),
            at: app.clock.now(),
            inferred: false,
        };
        let chance = self.chance.clone();
        let applied: Result<usize, DbError> =
            app.db.system(async move |conn| acks::apply(conn, &chance, vec![event]).await).await;
        applied.unwrap();
    }

    /// Everything that was out of order is over: turns are given, claimed and handed over, and whatever was handed over is
    /// read.
    async fn settle(&self, case: &mut Case) -> Result<(), TestCaseError> {
        for _ in 0..4 * case.messages.len() + 4 {
            self.take(case, Step::Die).await;
            self.take(case, Step::Sweep).await;
            let before = case.turns.len();
            self.take(case, Step::Dispatch).await;
            for turn in case.turns.split_off(before) {
                for claimed in self.claims.write(&[turn]).await.unwrap().into_iter().flatten() {
                    self.report(&claimed, Proof::HandedOver).await;
                    self.ack(case.session, &id_of(&claimed), 3).await;
                }
            }
        }
        // What an engine that says no id had taken is told by message.any sooner or later; here, by its ack being lost.
        let query = "SELECT id::text || ' ' || status FROM messages WHERE session_id = $1::text::uuid
            AND status NOT IN ('read', 'played', 'failed', 'cancelled', 'expired')
            AND NOT (status IN ('sent', 'delivered')) AND NOT (status = 'sending' AND handed_over_at IS NOT NULL)";
        let left = self.sql.query(query, &[&case.session.to_string()]).await.unwrap();
        let left: Vec<String> = left.iter().map(|row| row.get(0)).collect();
        prop_assert!(left.is_empty(), "not settled: {left:?}");
        Ok(())
    }

    /// Ranks never fall but by a retry, which begins with what failed.
    async fn check(&self, case: &Case) -> Result<(), TestCaseError> {
        let query = "SELECT t.message_id::text, t.status, t.cause FROM message_transitions t
            JOIN messages m ON m.tenant_id = t.tenant_id AND m.id = t.message_id
            WHERE m.session_id = $1::text::uuid ORDER BY t.id";
        let mut last: HashMap<String, Status> = HashMap::new();
        for row in self.sql.query(query, &[&case.session.to_string()]).await.unwrap() {
            let (message, status, cause): (String, String, String) = (row.get(0), row.get(1), row.get(2));
            let status: Status = status.parse().unwrap();
            if let Some(before) = last.insert(message.clone(), status) {
                let retried = cause == retry::RETRIED && before == Status::Failed && status == Status::Queued;
                let again = status == Status::Sending && before == Status::Sending;
                let forward = status.rank() > before.rank() || again || retried;
                prop_assert!(forward, "{message} went from {before} to {status}");
            }
        }
        Ok(())
    }
}

#[test]
fn whatever_happens_ends_well() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let model = runtime.block_on(Model::new());
    let number = std::cell::Cell::new(0);
    let mut runner = TestRunner::new(Config { cases: CASES, failure_persistence: None, ..Config::default() });
    let strategy = (any::<bool>(), prop::collection::vec(step(), 5..32));
    let outcome = runner.run(&strategy, |(honours, steps)| {
        runtime.block_on(async {
            number.set(number.get() + 1);
            let mut case = model.open(number.get(), honours).await;
            for step in steps {
                model.take(&mut case, step).await;
            }
            model.settle(&mut case).await?;
            model.check(&case).await
        })
    });
    runtime.block_on(async {
        model.sql.batch_execute("RESET ROLE").await.unwrap();
        invariants::hold_in(&model.sql).await;
    });
    runtime.block_on(model.stand.end());
    outcome.unwrap();
}
