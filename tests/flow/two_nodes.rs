//! Two processes share the work and never the same message.

use reqwest::StatusCode;
use serde_json::json;

use crate::support::World;
use crate::support::world::{PATIENCE, text};

const SESSIONS: usize = 20;
const MESSAGES: usize = 500;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes_send_500_messages_over_20_sessions_each_once_and_in_order() {
    let world = World::new().await;
    let (first, second) = (world.any_process().await, world.any_process().await);
    let tenant = world.tenant(&first.base, "one").await;
    let created = (0..SESSIONS).map(|n| {
        let tenant = tenant.clone();
        async move { tenant.session(&format!("s{n}")).await }
    });
    let sessions = futures_util::future::join_all(created).await;

    // Each session's messages are accepted one after the other, alternating between the nodes.
    let accepted = sessions.iter().enumerate().map(|(number, (session, _))| {
        let nodes = [tenant.at(&first.base), tenant.at(&second.base)];
        async move {
            for n in 0..MESSAGES / SESSIONS {
                let body = json!({"session_id": session, "to": "+15550101234", "body": format!("{number}-{n}")});
                nodes[n % 2].post("/v1/messages", &body).await.expect(StatusCode::ACCEPTED);
            }
        }
    });
    futures_util::future::join_all(accepted).await;
    let ledger = tokio::time::timeout(
        PATIENCE,
        world
            .simulator
            .control()
            .ledger_when(|ledger| ledger.entries.iter().filter(|entry| entry.seen).count() >= MESSAGES),
    )
    .await
    .expect("all messages to be seen");

    for (number, (_, external)) in sessions.iter().enumerate() {
        let expected: Vec<String> = (0..MESSAGES / SESSIONS).map(|n| format!("{number}-{n}")).collect();
        assert_eq!(ledger.texts(external), expected, "the order of session {number}");
    }
    assert!(ledger.overlaps().is_empty(), "never two of a session at a time");
    assert_eq!(ledger.posts.len(), MESSAGES, "nothing was posted twice");

    let both = [&first, &second].map(|node| node.process.output().matches("message attempt").count());
    assert!(both.iter().all(|attempts| *attempts > 0), "both processes sent: {both:?}");
    let list = tenant.get("/v1/messages?limit=1").await.expect(StatusCode::OK);
    assert_eq!(text(&list["data"][0], "direction"), "outbound");
}
