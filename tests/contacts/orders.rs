//! Whatever is learnt first, the end is the same.

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::stand::{IN, Message, OUT, Stand};

/// Something that is learnt.
#[derive(Clone, Debug)]
enum Step {
    Message(Message),
    Link(&'static str, &'static str),
    Read(&'static str),
}

const ANA: &str = "15550100001@c.us";
const ANA_HIDDEN: &str = "77000001@lid";
const ANA_ELSEWHERE: &str = "77000009@lid";
const BEN: &str = "5511987654321@c.us";
const BEN_WITHOUT_NINE: &str = "551187654321@c.us";
const BEN_HIDDEN: &str = "77000002@lid";
const CAY: &str = "15550100003@c.us";
const GROUP: &str = "120363000000000001@g.us";

/// What is told of three people: in direct chats under several ids, in a group, and by links.
fn steps() -> Vec<Step> {
    let message = Step::Message;
    vec![
        message(Message { id: "A1", chat: ANA_HIDDEN, sender: Some(ANA_HIDDEN), name: Some("Ana"), at: 10, ..IN }),
        message(Message { id: "A2", chat: ANA, sender: Some(ANA), name: Some("Ana S."), at: 130, ..IN }),
        message(Message { id: "A3", chat: ANA, sender: Some(ANA), at: 500, read: true, ..IN }),
        message(Message { id: "A4", chat: ANA, at: 620, ..OUT }),
        message(Message { id: "A5", chat: ANA_HIDDEN, sender: Some(ANA_HIDDEN), name: Some("Ana"), at: 620, ..IN }),
        Step::Link(ANA_HIDDEN, ANA),
        Step::Link(ANA_ELSEWHERE, ANA),
        message(Message { id: "B1", chat: BEN, at: 20, ..OUT }),
        message(Message {
            id: "B2",
            chat: BEN_WITHOUT_NINE,
            sender: Some(BEN_WITHOUT_NINE),
            name: Some("Ben"),
            at: 30,
            ..IN
        }),
        message(Message {
            id: "B3",
            chat: BEN_HIDDEN,
            sender: Some(BEN_HIDDEN),
            other: Some(BEN_WITHOUT_NINE),
            at: 40,
            ..IN
        }),
        message(Message { id: "B4", chat: BEN_HIDDEN, other: Some(BEN), at: 50, status: "delivered", ..OUT }),
        message(Message { id: "C1", chat: CAY, sender: Some(CAY), name: Some("Cay"), at: 60, ..IN }),
        message(Message { id: "G1", chat: GROUP, sender: Some(ANA_HIDDEN), name: Some("Ana"), at: 700, ..IN }),
        message(Message { id: "G2", chat: GROUP, sender: Some(BEN), at: 710, ..IN }),
        message(Message { id: "G3", chat: GROUP, sender: Some("77000005@lid"), name: Some("Dot"), at: 720, ..IN }),
        Step::Read("B4"),
    ]
}

async fn play(stand: &Stand, steps: &[Step], often: bool) -> (Vec<serde_json::Value>, Vec<serde_json::Value>) {
    let tenant = stand.tenant().await;
    let mut sent = false;
    for step in steps {
        match step {
            Step::Message(message) => {
                sent |= message.id == "B4";
                tenant.message(message).await;
            }
            Step::Link(lid, phone) => tenant.link(lid, phone).await,
            Step::Read(id) if sent => tenant.goes_on(id, "read").await,
            Step::Read(_) => {}
        }
        if often {
            stand.settle().await;
        }
    }
    stand.settle().await;
    let groups = tenant
        .rows(
            "SELECT v.chat_id, v.message_count, v.unread_count, v.last_waha_id,
                    (SELECT jsonb_agg(p.person || ' ' || p.told_at ORDER BY p.person) FROM conversation_participants p
                     WHERE p.session_id = v.session_id AND p.chat_id = v.chat_id) AS people
             FROM conversations v WHERE v.tenant_id = $tenant AND v.contact_id IS NULL",
        )
        .await;
    (tenant.outcome().await, groups)
}

#[test]
fn any_order_of_learning_ends_in_the_same_contacts_and_conversations() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let _inside = runtime.enter();
    let stand = runtime.block_on(Stand::new());
    let expected = runtime.block_on(play(&stand, &steps(), true));
    let (people, groups) = &expected;
    assert_eq!(people.len(), 4, "{people:#?}");
    let ana = people.iter().find(|person| person["phone"] == "+15550100001").unwrap();
    assert_eq!(ana["ids"].as_array().unwrap().len(), 3);
    assert_eq!((&ana["push_name"], &ana["lid"]), (&"Ana".into(), &ANA_HIDDEN.into()));
    assert_eq!(ana["conversations"].as_array().unwrap().len(), 1);
    assert_eq!((&ana["conversations"][0]["count"], &ana["conversations"][0]["unread"]), (&5.into(), &1.into()));
    let ben = people.iter().find(|person| person["phone"] == "+5511987654321").unwrap();
    assert_eq!((&ben["conversations"][0]["count"], &ben["conversations"][0]["last"]), (&4.into(), &"B4".into()));
    assert_eq!((groups.len(), &groups[0]["message_count"]), (1, &3.into()));

    let mut runner = TestRunner::new(Config { cases: 40, failure_persistence: None, ..Config::default() });
    let strategy = (Just(steps()).prop_shuffle(), any::<bool>());
    runner
        .run(&strategy, |(steps, often)| {
            let outcome = runtime.block_on(play(&stand, &steps, often));
            prop_assert_eq!(&outcome, &expected);
            Ok(())
        })
        .unwrap();
}
