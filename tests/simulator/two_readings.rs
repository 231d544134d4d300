//! The gateway's WAHA client against the simulator: two readings of the same contract, which have to agree.

use std::time::Duration;

use secrecy::{SecretBox, SecretString};
use switchboard::simulator::{self, Fault};
use switchboard::waha::webhook::{Payload, WebhookEvent, verify};
use switchboard::waha::{
    Engine, NotSent, RefusalCode, SendOutcome, SendText, Server, SessionSpec, SessionStatus, Timeouts, Unknown,
    WahaClient,
};
use tokio::runtime::Handle;

use super::{Bench, KEY};

const PATIENCE: Duration = Duration::from_millis(400);

fn text(number: &str, id: &str) -> SendText {
    SendText {
        session: "main".to_owned(),
        chat_id: format!("{number}@c.us"),
        text: format!("to {id}"),
        id: Some(id.to_owned()),
        ..SendText::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_and_its_messages_are_understood_on_every_engine() {
    for engine in [Engine::Noweb, Engine::Gows, Engine::Webjs, Engine::Wpp] {
        let bench = Bench::start(engine.as_str().parse().unwrap()).await;
        let client = WahaClient::new(Handle::current(), Timeouts::default()).unwrap();
        let server = Server { base_url: bench.simulator.url().parse().unwrap(), api_key: SecretString::from(KEY) };
        let spec = SessionSpec {
            name: "main".to_owned(),
            engine,
            webhook_url: bench.receiver.url().parse().unwrap(),
            hmac_key: SecretString::from("hook-key"),
            metadata: [("tenant".to_owned(), "t1".to_owned())].into(),
            proxy: None,
        };
        client.create_session(&server, &spec, true).await.unwrap();
        bench.receiver.wait("a code", |hook| hook.status() == Some("SCAN_QR_CODE")).await;
        client.qr_value(&server, "main").await.unwrap();
        bench.simulator.control().scan("main").unwrap();
        bench.simulator.control().working("main").await;
        let info = client.get_session(&server, "main").await.unwrap().unwrap();
        assert_eq!((info.status, info.engine), (SessionStatus::Working, Some(engine)));
        assert_eq!(info.me.unwrap().phone(), Some("15550200000"));
        assert!(!client.check_exists(&server, "main", "15550100005").await.unwrap().exists);

        let asked = "3EB0AAAAAAAAAAAAAAAAAA";
        let outcome = client.send_text(&server, &text("15550100007", asked), PATIENCE, Some("r")).await;
        let SendOutcome::Accepted { bare_id: Some(id) } = outcome else { panic!("{engine:?}: {outcome:?}") };
        assert_eq!(id == asked, engine.honours_message_id());
        // The reply comes after the last ack.
        bench
            .receiver
            .wait("a reply", |hook| hook.event() == "message.any" && hook.body["payload"]["fromMe"] == false)
            .await;
        bench.receiver.wait("read", |hook| hook.ack_of(&id) == Some(3)).await;
        let key = SecretBox::new(Box::new(b"hook-key".to_vec()));
        let mut acks = Vec::new();
        let mut bodies = Vec::new();
        for hook in bench.receiver.seen() {
            assert!(verify(&[&key], &hook.raw, hook.header("x-webhook-hmac").unwrap()));
            let event = WebhookEvent::parse(&hook.raw).unwrap();
            assert_eq!((event.session.as_str(), event.engine), ("main", Some(engine)));
            match event.payload {
                Payload::Ack(ack) if ack.bare_id == id && ack.from_me => acks.push(ack.level.unwrap()),
                Payload::Message(message) if event.event == "message.any" => {
                    assert_eq!(message.chat_id, "15550100007@c.us", "{engine:?}");
                    bodies.push((message.from_me, message.body.unwrap()));
                }
                _ => {}
            }
        }
        acks.sort_unstable();
        bodies.sort();
        assert_eq!(acks, [1, 2, 3], "{engine:?}");
        assert_eq!(bodies, [(false, format!("Reply to: to {asked}")), (true, format!("to {asked}"))]);

        let (chat, whole) = match engine.can_read_back_by_bare_id() {
            true => ("all", id.clone()),
            false => ("15550100007@c.us", format!("true_15550100007@c.us_{id}")),
        };
        let read = client.message_by_id(&server, "main", chat, &whole).await.unwrap().unwrap();
        assert_eq!((read.bare_id.as_str(), read.ack), (id.as_str(), Some(3)));
        assert!(client.message_by_id(&server, "main", chat, "true_1@c.us_NONE").await.unwrap().is_none());
        client.delete(&server, "main").await.unwrap();
        assert!(client.get_session(&server, "main").await.unwrap().is_none());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_fault_proves_what_it_did() {
    let bench = Bench::start(simulator::Engine::Gows).await;
    bench.working("main").await;
    let client = WahaClient::new(Handle::current(), Timeouts::default()).unwrap();
    let server = Server { base_url: bench.simulator.url().parse().unwrap(), api_key: SecretString::from(KEY) };
    let not_sent = |why| SendOutcome::NotSent { why };
    let unknown = |why| SendOutcome::Unknown { why };
    let cases = [
        (Fault::State422, not_sent(NotSent::SessionNotWorking { status: SessionStatus::Starting })),
        (Fault::Missing422, not_sent(NotSent::SessionMissing)),
        (Fault::Unauthorized401, not_sent(NotSent::Unauthorized)),
        (Fault::Error500Before, unknown(Unknown::EngineConnectionClosed)),
        (Fault::Error500After, unknown(Unknown::EngineConnectionClosed)),
        (Fault::BadGateway502, unknown(Unknown::Proxy { status: 502 })),
        (Fault::GatewayTimeout504, unknown(Unknown::Proxy { status: 504 })),
        (Fault::ResetBefore, unknown(Unknown::ConnectionBroke)),
        (Fault::ResetAfterSend, unknown(Unknown::ConnectionBroke)),
        (Fault::HalfResponse, unknown(Unknown::ConnectionBroke)),
        (Fault::HangAfterSend, unknown(Unknown::TimedOut)),
        (Fault::HangWithoutSend, unknown(Unknown::TimedOut)),
        (Fault::NoId, SendOutcome::Accepted { bare_id: None }),
    ];
    for (fault, expected) in cases {
        bench.simulator.control().fault_once("sendText", fault);
        let outcome = client.send_text(&server, &text("15550101234", "3EB0"), PATIENCE, None).await;
        assert_eq!(outcome, expected, "{fault:?}");
    }
    let outcome = client.send_text(&server, &text("15550100004", "3EB0"), PATIENCE, None).await;
    assert!(matches!(outcome, SendOutcome::Restricted { .. }), "{outcome:?}");
    bench.simulator.control().fault_once("sendText", Fault::BadRequest400);
    let outcome = client.send_text(&server, &text("15550101234", "3EB0"), PATIENCE, None).await;
    assert!(matches!(outcome, SendOutcome::Refused { code: RefusalCode::InvalidRequest, .. }), "{outcome:?}");
}
