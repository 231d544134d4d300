//! Groups, calls and labels: each told once, and the latest counts.

use serde_json::{Value, json};

use super::stand::{Stand, Told};

const GROUP: &str = "120363000000000001@g.us";

fn members(id: &str, second: i64, change: &str, members: &Value) -> Told {
    let payload = json!({"type": change, "timestamp": super::stand::BEGIN + second, "group": {"id": GROUP}, "participants": members});
    Told::new(id, "group.v2.participants", second, payload)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_groups_members_and_subject_are_those_told_last() {
    let stand = Stand::new().await;
    let told = [
        Told::new(
            "j",
            "group.v2.join",
            0,
            json!({"timestamp": super::stand::BEGIN, "group": {"id": GROUP, "subject": "Team", "participants": [
            {"id": "77000000000001@lid", "pn": "15550100001@c.us", "role": "admin"}, {"id": "15550100002@c.us", "role": "participant"}]}}),
        ),
        members("a", 10, "join", &json!([{"id": "15550100003@c.us", "role": "participant"}])),
        members("b", 20, "promote", &json!([{"id": "15550100003@c.us", "role": "admin"}])),
        members("c", 30, "leave", &json!([{"id": "15550100002@c.us", "role": "left"}])),
        Told::new(
            "u",
            "group.v2.update",
            40,
            json!({"timestamp": super::stand::BEGIN + 40, "group": {"id": GROUP, "subject": "The team"}}),
        ),
    ];
    for turned in [false, true] {
        let session = stand.session().await;
        let mut told = told.to_vec();
        if turned {
            told.reverse();
        }
        for event in &told {
            stand.apply(session, std::slice::from_ref(event)).await;
            stand.apply(session, std::slice::from_ref(event)).await;
        }
        let people = stand
            .rows(&format!("SELECT jsonb_build_array(person, role, left_at IS NULL)::text FROM conversation_participants WHERE session_id = '{session}' ORDER BY person"))
            .await;
        assert_eq!(
            people,
            [
                json!(["15550100001@c.us", "admin", true]),
                json!(["15550100002@c.us", "participant", false]),
                json!(["15550100003@c.us", "admin", true])
            ]
        );
        let subject = stand
            .rows(&format!(
                "SELECT jsonb_build_array(subject, joined)::text FROM group_subjects WHERE session_id = '{session}'"
            ))
            .await;
        assert_eq!(subject, [json!(["The team", true])]);
        let mut events = stand.events(session).await;
        events.sort_unstable();
        assert_eq!(
            events,
            ["group.joined", "group.participants", "group.participants", "group.participants", "group.updated"]
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_rings_on_is_told_once() {
    let stand = Stand::new().await;
    let session = stand.session().await;
    let ringing = |id: &str, second: i64, event: &'static str| {
        let payload = json!({"id": "CALL1", "from": "15550100001@c.us", "timestamp": super::stand::BEGIN, "isVideo": true, "isGroup": false});
        Told::new(id, event, second, payload)
    };
    stand
        .apply(
            session,
            &[ringing("1", 0, "call.received"), ringing("2", 3, "call.received"), ringing("3", 6, "call.rejected")],
        )
        .await;
    stand.apply(session, &[ringing("1", 0, "call.received")]).await;
    assert_eq!(stand.events(session).await, ["call.received", "call.rejected"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn labels_are_told_and_what_is_not_known_is_kept_raw() {
    let stand = Stand::new().await;
    let session = stand.session().await;
    let label = json!({"id": "1", "name": "Lead", "color": 0, "colorHex": "#ff9485"});
    stand
        .apply(
            session,
            &[
                Told::new("1", "label.upsert", 0, label.clone()),
                Told::new(
                    "2",
                    "label.chat.added",
                    1,
                    json!({"labelId": "1", "chatId": "15550100001@c.us", "label": label}),
                ),
                Told::new(
                    "3",
                    "label.chat.deleted",
                    2,
                    json!({"labelId": "1", "chatId": "15550100001@c.us", "label": null}),
                ),
                Told::new("4", "label.deleted", 3, json!({"id": "1"})),
                Told::new("5", "newsletter.subscribed", 4, json!({"id": "1@newsletter"})),
                Told::new("6", "poll.vote.failed", 5, json!({})),
            ],
        )
        .await;
    assert_eq!(stand.events(session).await, ["label.upserted", "label.added", "label.removed", "label.deleted"]);
    let kept = stand.rows("SELECT jsonb_build_array(event, reason)::text FROM inbound_dead_letters").await;
    assert_eq!(kept, [json!(["newsletter.subscribed", "unknown_event"])]);
}
