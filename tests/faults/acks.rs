//! Acknowledgements in any order, any number of times, before, after and at the moment of the send's outcome.

use chrono::TimeDelta;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use switchboard::app::App;
use switchboard::broker::envelope::OutboundRef;
use switchboard::db::DbError;
use switchboard::db::group_commit::BatchWriter;
use switchboard::dispatch::lanes;
use switchboard::domain::ids::{SessionId, TenantId};
use switchboard::domain::recipient::ChatId;
use switchboard::domain::status::Ack;
use switchboard::ingest::acks::{self, AckEvent};
use switchboard::messages::accept::Draft;
use switchboard::sending::claim::Claims;
use switchboard::sending::outcome::{Outcome, Outcomes, Report};
use switchboard::serve::Role;

use crate::support::world::Inside;
use crate::support::{World, invariants};

/// What happens to one message.
#[derive(Clone, Debug)]
struct Case {
    /// Batches of acks.
    acks: Vec<Vec<i16>>,
    /// Before which of the batches the outcome is written.
    outcome_at: usize,
    /// The batch at that place is applied at the same moment.
    at_once: bool,
    /// Whether the engine takes our id, so that it is known from the start.
    own_id: bool,
}

fn cases() -> impl Strategy<Value = Case> {
    let batch = prop::collection::vec(-1_i16..=4, 1..3);
    (prop::collection::vec(batch, 0..5), any::<bool>(), any::<bool>()).prop_flat_map(|(acks, at_once, own_id)| {
        (0..=acks.len()).prop_map(move |outcome_at| Case { acks: acks.clone(), outcome_at, at_once, own_id })
    })
}

/// What the acks amount to, in whatever order: WhatsApp's server refuses a message or takes it, and then it only goes on.
fn expected(acks: &[i16]) -> &'static str {
    match acks.iter().max() {
        Some(1) => "sent",
        Some(2) => "delivered",
        Some(3) => "read",
        Some(4) => "played",
        _ if acks.contains(&-1) => "failed",
        _ => "sending",
    }
}

fn rank(status: &str) -> u8 {
    status.parse::<switchboard::domain::status::Status>().unwrap().rank()
}

struct Setting {
    world: World,
    node: Inside,
    client: tokio_postgres::Client,
    tenant: TenantId,
    session: SessionId,
}

async fn apply(app: &App, setting: &Setting, id: &str, levels: &[i16]) {
    let event = |level: &i16| AckEvent {
        tenant: setting.tenant,
        session: setting.session,
        waha_message_id: id.to_owned(),
        ack: Ack::from_level(*level).unwrap(),
        at: app.clock.now(),
        inferred: false,
    };
    let events: Vec<AckEvent> = levels.iter().map(event).collect();
    app.db.system(async |conn| acks::apply(conn, &app.chance, events).await).await.unwrap();
}

async fn run(setting: &Setting, case: &Case) -> Result<(), TestCaseError> {
    let app = &setting.node.app;
    let chat = ChatId::parse("+15550101234").unwrap();
    let draft = Draft { honours_message_id: case.own_id, ..Draft::text(setting.tenant, setting.session, chat, "any") };
    let message = app.acceptor.accept(app, draft).await.unwrap().id;
    // The lane rests for a moment after each message.
    let now = app.clock.now() + TimeDelta::seconds(1);
    let due = lanes::take_due(&app.db, now, TimeDelta::minutes(5), 10).await.unwrap();
    let (_, turn): (_, OutboundRef) = due.turns.into_iter().next().expect("its turn");
    prop_assert_eq!(turn.message_id, message);
    let claimed = Claims::new(app).write(std::slice::from_ref(&turn)).await.unwrap().pop().unwrap().expect("a claim");
    let id = claimed.waha_message_id.clone().unwrap_or_else(|| format!("3EB0{}", message.0.simple()));
    let report = [Report {
        turn,
        attempt: claimed.attempt,
        at: app.clock.now(),
        gap: TimeDelta::zero(),
        outcome: Outcome::HandedOver { waha_message_id: Some(id.clone()), chat_id: None },
    }];
    let outcomes = Outcomes::new(app);
    for (place, batch) in case.acks.iter().enumerate() {
        if place == case.outcome_at && case.at_once {
            let (written, ()) = tokio::join!(outcomes.write(&report), apply(app, setting, &id, batch));
            written.unwrap();
            continue;
        }
        if place == case.outcome_at {
            outcomes.write(&report).await.unwrap();
        }
        apply(app, setting, &id, batch).await;
    }
    if case.outcome_at == case.acks.len() {
        outcomes.write(&report).await.unwrap();
    }
    let swept = app.db.system(async |conn| acks::sweep_early(conn, &app.chance, app.clock.now()).await).await;
    swept.map_err(|fault: DbError| TestCaseError::fail(fault.to_string()))?;

    let levels: Vec<i16> = case.acks.iter().flatten().copied().collect();
    let row = setting
        .client
        .query_one("SELECT status, ack, error_code FROM messages WHERE id::text = $1", &[&message.0.to_string()])
        .await
        .unwrap();
    let status: String = row.get(0);
    prop_assert_eq!(&status, expected(&levels));
    let best = levels.iter().max().copied();
    let ack: Option<i16> = row.get(1);
    match best {
        Some(best) if best >= 1 => prop_assert_eq!(ack, Some(best)),
        _ if levels.contains(&-1) => prop_assert_eq!(ack, Some(-1)),
        _ => prop_assert!(matches!(ack, None | Some(0))),
    }
    let error: Option<String> = row.get(2);
    prop_assert_eq!(error.as_deref(), (status == "failed").then_some("rejected_by_whatsapp"));
    let steps = setting
        .client
        .query(
            "SELECT status FROM message_transitions WHERE message_id::text = $1 ORDER BY id",
            &[&message.0.to_string()],
        )
        .await
        .unwrap();
    let ranks: Vec<u8> = steps.iter().map(|step| rank(step.get(0))).collect();
    prop_assert!(ranks.is_sorted_by(|one, two| one < two), "{:?}", ranks);
    Ok(())
}

#[test]
fn acks_in_any_order_end_the_same_and_never_step_back() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let setting = runtime.block_on(async {
        let world = World::new().await;
        let first = world.node();
        let tenant = world.tenant(&first.base, "one").await;
        tenant.session("only").await;
        first.node.stop().await;
        let client = world.db.connect().await;
        let row = client.query_one("SELECT tenant_id::text, id::text FROM waha_sessions", &[]).await.unwrap();
        let (tenant, session) = (row.get::<_, String>(0), row.get::<_, String>(1));
        Setting {
            node: world.node_with(&[Role::Api], |_| {}),
            world,
            client,
            tenant: TenantId(tenant.parse().unwrap()),
            session: SessionId(session.parse().unwrap()),
        }
    });
    let mut runner = TestRunner::new(Config { cases: 96, failure_persistence: None, ..Config::default() });
    runner.run(&cases(), |case| runtime.block_on(run(&setting, &case))).unwrap();
    runtime.block_on(async {
        invariants::hold(&setting.world).await;
        setting.node.node.stop().await;
    });
}
