//! The spool while the broker is away.

use serde_json::json;

use crate::support::world::{PATIENCE, amqp_url, text};
use crate::support::{TcpProxy, World, eventually};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_cannot_be_applied_does_not_hold_up_the_spool() {
    let direct = url::Url::parse(&amqp_url()).unwrap();
    let target = format!("{}:{}", direct.host_str().unwrap(), direct.port().unwrap_or(5672));
    let proxy = TcpProxy::start(target).await;
    let mut through = direct.clone();
    through.set_host(Some("127.0.0.1")).unwrap();
    through.set_port(Some(proxy.addr().port())).unwrap();
    let mut world = World::new().await;
    world.amqp = through.to_string();
    let node = world.node();
    let tenant = world.tenant(&node.base, "one").await;
    let (_, external) = tenant.session("only").await;
    proxy.cut();
    eventually(PATIENCE, "readiness to say degraded", async || {
        (tenant.get("/readyz").await.body["status"] == "degraded").then_some(())
    })
    .await;

    let client = world.db.connect().await;
    client
        .execute(
            "INSERT INTO spool (tenant_id, session_id, waha_server_id, received_at, body)
             SELECT tenant_id, id, waha_server_id, now(), '{\"event\":\"message\"}' FROM waha_sessions",
            &[],
        )
        .await
        .unwrap();
    // No NUL, though it looks like one in JSON.
    let words = r"a \u0000 that somebody typed, and a real one: ";
    world.simulator.control().inbound_text(&external, "+15550101234", &format!("{words}\0")).unwrap();
    let inbound = eventually(PATIENCE, "the event behind it to be applied", async || {
        let list = tenant.get("/v1/messages?direction=inbound").await.body;
        list["data"].as_array().unwrap().first().cloned()
    })
    .await;
    assert_eq!(text(&inbound, "body"), words);
    let spooled = async || client.query_one("SELECT count(*) FROM spool", &[]).await.unwrap().get::<_, i64>(0);
    eventually(PATIENCE, "the spool to be empty", async || (spooled().await == 0).then_some(())).await;
    let letter = client.query_one("SELECT reason, cause, body FROM inbound_dead_letters", &[]).await.unwrap();
    assert_eq!(letter.get::<_, &str>(0), "unreadable");
    assert_eq!(letter.get::<_, &str>(1), "the event has no usable session");
    assert_eq!(letter.get::<_, &str>(2), "{\"event\":\"message\"}", "set aside as it came, without any broker");

    proxy.restore();
    assert_ne!(tenant.get("/readyz").await.body["status"], json!("unready"));
    node.node.stop().await;
}
