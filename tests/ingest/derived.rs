//! What messages show of what was told after them.

use chrono::TimeDelta;
use serde_json::json;

use super::stand::{CHAT, Stand, Told, ack, answering, at, edit, message, payload, reaction, read, revoke, vote};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edit_keeps_the_text_before_it_and_counts_once() {
    let stand = Stand::new().await;
    let session = stand.session().await;
    let first = edit("A", "E1", 10, false, "second");
    stand.apply(session, &[message("A", 0, false, "first")]).await;
    stand.apply(session, std::slice::from_ref(&first)).await;
    stand.apply(session, &[first, edit("A", "E2", 20, false, "third"), edit("A", "E0", 5, false, "late news")]).await;
    let message = stand.message(session, "A").await;
    assert_eq!(
        (&message["body"], &message["original_body"], &message["edits"]),
        (&json!("third"), &json!("first"), &json!(3))
    );
    assert_eq!(stand.events(session).await, ["message.received", "message.edited", "message.edited"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_told_before_its_message_is_shown_when_it_comes() {
    let stand = Stand::new().await;
    let session = stand.session().await;
    stand
        .apply(
            session,
            &[
                edit("A", "E1", 10, false, "second"),
                revoke("A", 20, false),
                reaction("A", 15, CHAT, "👍"),
                read("A", 30),
            ],
        )
        .await;
    assert!(stand.messages(session).await.is_empty() && stand.events(session).await.is_empty());
    stand.apply(session, &[message("A", 0, false, "first")]).await;
    let message = stand.message(session, "A").await;
    assert_eq!(message["body"], "second");
    assert!(message["revoked_at"].is_string() && message["read_at"].is_string());
    let mut events = stand.events(session).await;
    assert_eq!(events.remove(0), "message.received");
    events.sort_unstable();
    assert_eq!(events, ["message.edited", "message.reaction", "message.revoked"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_person_has_one_reaction_and_one_vote() {
    let stand = Stand::new().await;
    let session = stand.session().await;
    stand.apply(session, &[message("A", 0, true, "our own")]).await;
    let told = [
        reaction("A", 10, CHAT, "👍"),
        reaction("A", 12, CHAT, "❤"),
        reaction("A", 11, CHAT, "😂"),
        vote("A", 10, CHAT, &["Yes", "No"]),
    ];
    for event in &told {
        stand.apply(session, std::slice::from_ref(event)).await;
        stand.apply(session, std::slice::from_ref(event)).await;
    }
    let reactions = stand.rows("SELECT to_jsonb(emoji)::text FROM message_reactions").await;
    assert_eq!(reactions, [json!("❤")]);
    assert_eq!(stand.rows("SELECT to_jsonb(options)::text FROM poll_votes").await, [json!(["No", "Yes"])]);
    // Told of as written on the phone, then what changed; the reaction that was old news is told to nobody.
    assert_eq!(stand.events(session).await, ["message.sent", "message.reaction", "message.reaction", "poll.vote"]);
    stand.apply(session, &[reaction("A", 20, CHAT, ""), vote("A", 20, CHAT, &[])]).await;
    assert_eq!(stand.rows("SELECT to_jsonb(emoji)::text FROM message_reactions").await, [json!("")]);
    assert_eq!(stand.events(session).await.len(), 6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_is_linked_whichever_comes_first() {
    let stand = Stand::new().await;
    let session = stand.session().await;
    stand.apply(session, &[answering(message("B", 10, false, "yes"), "A")]).await;
    assert!(stand.message(session, "B").await.get("answers").is_none());
    stand.apply(session, &[message("A", 0, true, "coming?")]).await;
    assert_eq!(stand.message(session, "B").await["answers"], "A");
    stand
        .apply(session, &[answering(message("C", 20, false, "no"), "A"), answering(message("D", 30, true, "ok"), "C")])
        .await;
    assert_eq!(stand.message(session, "C").await["answers"], "A");
    assert_eq!(stand.message(session, "D").await["answers"], "C");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stub_is_told_of_when_its_content_comes() {
    let stand = Stand::new().await;
    let session = stand.session().await;
    let mut stub = message("A", 0, false, "");
    (stub.payload["ack"], stub.payload["body"]) = (json!(-1), json!(null));
    stand.apply(session, &[stub.clone(), edit("A", "E1", 5, false, "mended")]).await;
    assert_eq!(stand.message(session, "A").await["is_stub"], true);
    assert!(stand.events(session).await.is_empty());
    stand.apply(session, &[message("A", 0, false, "there it is")]).await;
    stand.apply(session, &[stub, message("A", 0, false, "there it is")]).await;
    let message = stand.message(session, "A").await;
    assert_eq!(
        (&message["body"], &message["original_body"], &message["is_stub"]),
        (&json!("mended"), &json!("there it is"), &json!(false))
    );
    assert_eq!(stand.events(session).await, ["message.received", "message.edited"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_phone_wrote_is_outbound_and_takes_its_acknowledgements() {
    let stand = Stand::new().await;
    let session = stand.session().await;
    // The acknowledgement overtakes the message.
    stand.apply(session, &[ack("A", 3, 2)]).await;
    stand.apply(session, &[message("A", 0, true, "from the phone")]).await;
    let found = stand.message(session, "A").await;
    assert_eq!(
        (&found["direction"], &found["source"], &found["status"]),
        (&json!("outbound"), &json!("app"), &json!("delivered"))
    );
    assert_eq!((&found["to_msisdn"], &found["from_msisdn"]), (&json!("+15550100001"), &json!("+15550200000")));
    stand.apply(session, &[ack("A", 5, 3)]).await;
    assert_eq!(stand.message(session, "A").await["status"], "read");
    assert_eq!(stand.events(session).await, ["message.sent", "message.delivered", "message.read"]);
    // What WAHA labels as sent through it is the gateway's own, which writes it down by itself.
    let mut own = message("B", 1, true, "by API");
    own.payload["source"] = json!("api");
    stand.apply(session, &[own]).await;
    assert_eq!(stand.messages(session).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_answers_has_what_was_sent_before() {
    let stand = Stand::new().await;
    let session = stand.session().await;
    stand.apply(session, &[message("A", 0, true, "hello?"), message("B", 300, true, "still there?")]).await;
    stand.apply(session, &[message("C", 310, false, "yes")]).await;
    let (first, second) = (stand.message(session, "A").await, stand.message(session, "B").await);
    assert_eq!(
        (&first["status"], &first["delivery_inferred"], &first["ack"]),
        (&json!("delivered"), &json!(true), &json!(1))
    );
    // Its acknowledgement may still be on its way.
    assert_eq!((&second["status"], &second["delivery_inferred"]), (&json!("sent"), &json!(false)));
    stand.apply(session, &[ack("A", 400, 2)]).await;
    let first = stand.message(session, "A").await;
    assert_eq!(
        (&first["status"], &first["delivery_inferred"], &first["ack"]),
        (&json!("delivered"), &json!(false), &json!(2))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_message_under_two_ids_is_one_row_under_the_number() {
    let stand = Stand::new().await;
    for turned in [false, true] {
        let session = stand.session().await;
        let hidden = Told::new("hidden", "message.any", 0, payload("A", 0, false, "hi", "77000000000001@lid"));
        let mut told = vec![hidden, message("A", 0, false, "hi")];
        if turned {
            told.reverse();
        }
        for event in told {
            stand.apply(session, &[event]).await;
        }
        let message = stand.message(session, "A").await;
        assert_eq!((&message["chat_id"], &message["from_msisdn"]), (&json!(CHAT), &json!("+15550100001")));
        assert_eq!(stand.events(session).await, ["message.received"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_events_keep_their_own_time() {
    let stand = Stand::new().await;
    let session = stand.session().await;
    stand.apply(session, &[message("A", -86_400, false, "yesterday").later(TimeDelta::days(1))]).await;
    let message = stand.message(session, "A").await;
    let written: chrono::DateTime<chrono::Utc> = message["occurred_at"].as_str().unwrap().parse().unwrap();
    assert_eq!(written, at(-86_400));
}
