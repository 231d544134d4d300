//! The gap between two messages of a session, whatever goes wrong between them.

use chrono::TimeDelta;
use serde_json::json;
use switchboard::simulator::{Fault, FaultRule};

use crate::support::World;
use crate::support::invariants;
use crate::support::world::text;

const GAP: i64 = 400;
const MESSAGES: u64 = 7;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_gap_is_kept_through_doubts_refusals_and_a_restart() {
    let world = World::new().await;
    let mut node = world.node();
    let mut tenant = world.tenant(&node.base, "one").await;
    let paced = json!({"name": "paced", "pacing": {"min_gap_ms": GAP, "jitter_ms": 0}});
    let (session, external) = tenant.session_with(&paced).await;
    let control = world.simulator.control();
    for (nth, fault) in
        [(2, Fault::HangAfterSend), (3, Fault::ResetBefore), (5, Fault::Error500After), (7, Fault::TooMany429)]
    {
        control.add_fault(FaultRule::always("sendText", fault).on_call(nth));
    }
    let mut messages = Vec::new();
    for n in 0..MESSAGES {
        let message = tenant.send_text(&session, "+15550101234", &n.to_string()).await;
        messages.push(text(&message, "id").to_owned());
    }
    tenant.message_with(&messages[1], "read").await;
    node.node.stop().await;
    node = world.node();
    tenant = tenant.at(&node.base);
    let all = control.ledger_when(|ledger| ledger.texts(&external).len() >= messages.len());
    let ledger = tokio::time::timeout(crate::support::world::PATIENCE, all).await.expect("all messages");
    assert_eq!(ledger.texts(&external), (0..MESSAGES).map(|n| n.to_string()).collect::<Vec<_>>());
    for pair in ledger.posts.windows(2) {
        // One that hangs ends for the gateway after its three seconds, and for WAHA never.
        let ended = pair[0].ended.unwrap_or(pair[0].started + TimeDelta::seconds(3));
        let gap = pair[1].started - ended;
        // The simulator's clock and the database's differ by less than a tick.
        assert!(gap >= TimeDelta::milliseconds(GAP - 20), "{gap} between two POSTs");
    }
    drop(tenant);
    invariants::hold(&world).await;
    node.node.stop().await;
}
