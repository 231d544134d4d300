//! Neither order nor repetition of what WAHA tells changes where it ends.

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};
use switchboard::domain::ids::SessionId;

use super::stand::{Stand, Told, ack, answering, edit, message, payload, reaction, read, revoke, vote};

const PEOPLE: [&str; 3] = ["15550100001@c.us", "15550100002@c.us", "77000000000003@lid"];

/// What a conversation is made of; messages are numbered.
#[derive(Clone, Debug)]
enum Step {
    In { answers: Option<u8> },
    Phone { answers: Option<u8> },
    Stub,
    Edit { of: u8, text: u8 },
    Revoke { of: u8 },
    React { of: u8, person: usize, emoji: &'static str },
    Vote { of: u8, person: usize, options: Vec<&'static str> },
    Ack { of: u8, level: i64 },
    Read { of: u8 },
    TwoNames { of: u8 },
}

fn step() -> impl Strategy<Value = Step> {
    let of = 0u8..8;
    let person = 0..PEOPLE.len();
    prop_oneof![
        5 => proptest::option::of(0u8..8).prop_map(|answers| Step::In { answers }),
        2 => proptest::option::of(0u8..8).prop_map(|answers| Step::Phone { answers }),
        1 => Just(Step::Stub),
        3 => (of.clone(), 0u8..3).prop_map(|(of, text)| Step::Edit { of, text }),
        1 => of.clone().prop_map(|of| Step::Revoke { of }),
        3 => (of.clone(), person.clone(), prop_oneof![Just("👍"), Just("❤"), Just("")])
            .prop_map(|(of, person, emoji)| Step::React { of, person, emoji }),
        2 => (of.clone(), person, prop_oneof![Just(vec!["Yes"]), Just(vec!["No", "Yes"]), Just(vec![])])
            .prop_map(|(of, person, options)| Step::Vote { of, person, options }),
        3 => (of.clone(), 1i64..5).prop_map(|(of, level)| Step::Ack { of, level }),
        2 => of.clone().prop_map(|of| Step::Read { of }),
        1 => of.prop_map(|of| Step::TwoNames { of }),
    ]
}

fn id(number: u8) -> String {
    format!("3EB0{number:018X}")
}

/// The events of a conversation, in the order in which it happened, a second each.
fn told(steps: &[Step]) -> Vec<Told> {
    let mut events = Vec::new();
    // What each message is: only what came in is read on the phone, only own ones are acknowledged.
    let mut own: Vec<bool> = Vec::new();
    for (second, step) in steps.iter().enumerate() {
        let second = i64::try_from(second).unwrap();
        let next = u8::try_from(own.len()).unwrap();
        match step {
            Step::In { answers } | Step::Phone { answers } => {
                let phone = matches!(step, Step::Phone { .. });
                let event = message(&id(next), second, phone, &format!("text {next}"));
                events.push(match answers {
                    Some(of) if *of != next => answering(event, &id(*of)),
                    _ => event,
                });
                own.push(phone);
            }
            Step::Stub => {
                let mut stub = message(&id(next), second, false, "");
                (stub.payload["ack"], stub.payload["body"]) = (json!(-1), Value::Null);
                stub.id.push_str("stub");
                events.push(stub);
                events.push(message(&id(next), second, false, &format!("decrypted {next}")));
                own.push(false);
            }
            Step::Edit { of, text } => {
                let by = own.get(usize::from(*of)).copied().unwrap_or(false);
                events.push(edit(&id(*of), &format!("E{second}"), second, by, &format!("edited {text}")));
            }
            Step::Revoke { of } => events.push(revoke(&id(*of), second, false)),
            Step::React { of, person, emoji } => events.push(reaction(&id(*of), second, PEOPLE[*person], emoji)),
            Step::Vote { of, person, options } => events.push(vote(&id(*of), second, PEOPLE[*person], options)),
            Step::Ack { of, level } if own.get(usize::from(*of)) == Some(&true) => {
                events.push(ack(&id(*of), second, *level));
            }
            Step::Read { of } if own.get(usize::from(*of)) == Some(&false) => events.push(read(&id(*of), second)),
            Step::TwoNames { of } if own.get(usize::from(*of)) == Some(&false) => {
                // The same message once more, under the hidden id.
                let is_it = |event: &&Told| {
                    event.event == "message.any"
                        && event.payload["body"].is_string()
                        && event.payload["id"].as_str().is_some_and(|serialized| serialized.ends_with(&id(*of)))
                };
                let Some(original) = events.iter().find(is_it).cloned() else { continue };
                let hidden = "77000000000001@lid";
                let at = original.payload["timestamp"].as_i64().unwrap() - super::stand::BEGIN;
                let mut again = payload(&id(*of), at, false, original.payload["body"].as_str().unwrap(), hidden);
                again["replyTo"] = original.payload["replyTo"].clone();
                events.push(Told { id: format!("{}lid", original.id), payload: again, ..original });
            }
            Step::Ack { .. } | Step::Read { .. } | Step::TwoNames { .. } => {}
        }
    }
    events
}

/// Everything that is kept of the session's conversation, without what differs by itself.
async fn kept(stand: &Stand, session: SessionId) -> Vec<Value> {
    let mut all = stand.messages(session).await;
    for message in &mut all {
        // When a message took a step is when that was told; what it is, is what matters here.
        for moment in [
            "sent_at",
            "delivered_at",
            "read_at",
            "played_at",
            "handed_over_at",
            "sender_alternative_id",
            "delivery_inferred",
        ] {
            if let Some(members) = message.as_object_mut() {
                let was = members.remove(moment);
                if moment == "read_at" && message["direction"] == "inbound" {
                    message["was_read"] = json!(was.is_some());
                }
            }
        }
    }
    for table in ["message_edits", "message_revocations", "message_reactions", "poll_votes"] {
        let query = format!(
            "SELECT (to_jsonb(t) - ARRAY['session_id', 'created_at', 'updated_at'])::text FROM {table} t
             WHERE session_id = '{session}' ORDER BY 1"
        );
        all.extend(stand.rows(&query).await);
    }
    all
}

fn counted(mut events: Vec<String>) -> Vec<String> {
    events.sort_unstable();
    events
}

#[test]
fn any_order_and_repetition_of_a_conversation_ends_in_the_same_rows() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let stand = runtime.block_on(Stand::new());
    let cases = (
        proptest::collection::vec(step(), 1..24).prop_map(|steps| told(&steps)),
        proptest::collection::vec(any::<u64>(), 48),
        proptest::collection::vec(1usize..7, 48),
        any::<bool>(),
    );
    let config = Config { cases: 64, max_shrink_iters: 200, failure_persistence: None, ..Config::default() };
    let outcome = TestRunner::new(config).run(&cases, |(events, draws, sizes, repeated)| {
        let mut shuffled: Vec<(u64, &Told)> = Vec::new();
        for (event, draw) in events.iter().zip(draws.iter().cycle()) {
            shuffled.push((*draw, event));
            if repeated {
                shuffled.push((draw.rotate_left(17), event));
            }
        }
        shuffled.sort_by_key(|(draw, _)| *draw);
        let shuffled: Vec<Told> = shuffled.into_iter().map(|(_, event)| event.clone()).collect();
        runtime.block_on(async {
            let (straight, other) = (stand.session().await, stand.session().await);
            for event in &events {
                stand.apply(straight, std::slice::from_ref(event)).await;
            }
            let mut rest = shuffled.as_slice();
            for size in sizes.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (batch, behind) = rest.split_at((*size).min(rest.len()));
                stand.apply(other, batch).await;
                rest = behind;
            }
            prop_assert_eq!(kept(&stand, straight).await, kept(&stand, other).await);
            // Each message is told of once, in whichever order.
            let received = |events: Vec<String>| {
                events.into_iter().filter(|kind| kind == "message.received" || kind == "message.revoked").collect()
            };
            prop_assert_eq!(
                counted(received(stand.events(straight).await)),
                counted(received(stand.events(other).await))
            );
            Ok(())
        })
    });
    stand.app.db.close();
    outcome.unwrap();
}
