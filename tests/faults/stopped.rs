//! A worker that sleeps past its lease and comes back.

use serde_json::json;
use switchboard::simulator::{Fault, FaultRule};

use crate::support::world::{PATIENCE, text};
use crate::support::{World, eventually, free_port, invariants};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_comes_back_after_its_lease_sends_nothing_and_writes_nothing() {
    let world = World::new().await;
    let door = world.process(free_port(), "api,ingest,deliver", |_| {}).await;
    let public = door.base.clone();
    let worker = async |port| {
        let public = public.clone();
        world
            .process(port, "api,dispatch,send", |settings| {
                settings.insert("SWITCHBOARD_PUBLIC_URL".to_owned(), public);
            })
            .await
    };
    let first = worker(free_port()).await;
    let tenant = world.tenant(&door.base, "one").await;
    let (session, external) = tenant.session("only").await;
    world.simulator.control().add_fault(FaultRule::always("sendText", Fault::DelayMs(1500)).times(1));
    // Never acknowledged: only the workers can tell what became of it.
    let message = tenant.send_text(&session, "+15550100008", "slow").await;
    let sent = world.simulator.control().ledger_when(|ledger| ledger.bubbles("slow") == 1);
    tokio::time::timeout(PATIENCE, sent).await.expect("the message to leave");
    first.process.signal("STOP");

    let second = worker(free_port()).await;
    let path = format!("/v1/messages/{}", text(&message, "id"));
    let next = tenant.send_text(&session, "+15550100001", "next").await;
    tenant.message_with(text(&next, "id"), "read").await;
    // The next one left, so the second worker has recorded what it found.
    let taken_over = tenant.get(&path).await.body;
    assert!(second.process.output().contains("handed_over"));
    first.process.signal("CONT");
    eventually(PATIENCE, "the first worker to end its attempt", async || {
        first.process.output().contains("message attempt").then_some(())
    })
    .await;
    let last = tenant.send_text(&session, "+15550100001", "last").await;
    tenant.message_with(text(&last, "id"), "read").await;

    let now = tenant.get(&path).await.body;
    assert_eq!((&now["attempts"], &now["updated_at"]), (&json!(2), &taken_over["updated_at"]), "nothing was written");
    assert_eq!(tenant.history(text(&message, "id")).await, ["queued", "sending", "sending"]);
    let ledger = world.simulator.control().ledger();
    assert_eq!(ledger.texts(&external), ["slow", "next", "last"]);
    assert!(ledger.entries.iter().all(|entry| entry.post_count == 1), "found by reading back, not by sending again");
    invariants::hold(&world).await;
}
