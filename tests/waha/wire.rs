//! The client against servers that answer, break off or hang.

use std::time::Duration;

use switchboard::waha::{
    CallError, Engine, MessageFilter, NotSent, SendOutcome, SendText, Server, SessionSpec, SessionStatus, Timeouts,
    Unknown, WahaClient,
};
use tokio::net::TcpListener;
use tokio::runtime::Handle;

use super::server::{Act, Scripted, answer};

const LONG: Duration = Duration::from_secs(30);
const SENT: &str = r#"{"key":{"remoteJid":"1@s.whatsapp.net","fromMe":true,"id":"3EB0A"},"status":"PENDING"}"#;

fn client() -> WahaClient {
    WahaClient::new(Handle::current(), Timeouts::default()).unwrap()
}

fn at(scripted: &Scripted) -> Server {
    Server { base_url: scripted.url.clone(), api_key: "the-api-key".into() }
}

fn text() -> SendText {
    SendText {
        session: "sb_1".into(),
        chat_id: "4915112345678@c.us".into(),
        text: "hi".into(),
        id: Some("3EB0A".into()),
        ..SendText::default()
    }
}

async fn send(script: Vec<Act>, deadline: Duration) -> SendOutcome {
    let scripted = Scripted::start(script).await;
    let outcome = client().send_text(&at(&scripted), &text(), deadline, None).await;
    assert_eq!(scripted.requests().len(), 1, "a send is never repeated by the client itself");
    outcome
}

#[tokio::test]
async fn a_send_carries_key_id_and_trace() {
    let scripted = Scripted::start(vec![answer("201 Created", SENT)]).await;
    let outcome = client().send_text(&at(&scripted), &text(), LONG, Some("trace-1")).await;
    assert_eq!(outcome, SendOutcome::Accepted { bare_id: Some("3EB0A".into()) });
    let request = scripted.requests().remove(0);
    let (head, body) = request.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("POST /api/sendText HTTP/1.1"), "{head}");
    assert!(head.contains("x-api-key: the-api-key") && head.contains("x-request-id: trace-1"), "{head}");
    assert_eq!(body, r#"{"session":"sb_1","chatId":"4915112345678@c.us","text":"hi","id":"3EB0A"}"#);
}

#[tokio::test]
async fn no_connection_is_certainly_not_sent() {
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    for base_url in [format!("http://{free}"), "http://no-such-host.invalid".into()] {
        let server = Server { base_url: base_url.parse().unwrap(), api_key: "k".into() };
        let outcome = client().send_text(&server, &text(), LONG, None).await;
        assert_eq!(outcome, SendOutcome::NotSent { why: NotSent::ConnectFailed }, "{base_url}");
        assert_eq!(client().ping(&server).await, Err(CallError::Unreachable), "{base_url}");
    }
}

#[tokio::test]
async fn whatever_breaks_later_is_a_doubt() {
    let half = "HTTP/1.1 201 Created\r\nContent-Length: 100\r\n\r\n{\"key\":";
    let cases = [
        (vec![Act::Reset], LONG, Unknown::ConnectionBroke),
        (vec![Act::BytesThenReset(String::new())], LONG, Unknown::ConnectionBroke),
        (vec![Act::BytesThenReset(half.into())], LONG, Unknown::ConnectionBroke),
        (vec![Act::BytesThenReset("not http at all\r\n\r\n".into())], LONG, Unknown::ConnectionBroke),
        (vec![Act::Hang], Duration::from_millis(100), Unknown::TimedOut),
        (vec![Act::Bytes(half.into())], Duration::from_millis(100), Unknown::TimedOut),
        (vec![answer("502 Bad Gateway", "<html></html>")], LONG, Unknown::Proxy { status: 502 }),
        (vec![answer("302 Found\r\nLocation: /elsewhere", "")], LONG, Unknown::Proxy { status: 302 }),
    ];
    for (script, deadline, why) in cases {
        assert_eq!(send(script, deadline).await, SendOutcome::Unknown { why }, "{why}");
    }
}

#[tokio::test]
async fn a_reused_connection_that_breaks_is_a_doubt_and_not_repeated() {
    let scripted = Scripted::start(vec![answer("201 Created", SENT), Act::Reset, answer("201 Created", SENT)]).await;
    let (client, server) = (client(), at(&scripted));
    let first = client.send_text(&server, &text(), LONG, None).await;
    assert!(matches!(first, SendOutcome::Accepted { .. }));
    let second = client.send_text(&server, &text(), LONG, None).await;
    assert_eq!(second, SendOutcome::Unknown { why: Unknown::ConnectionBroke });
    assert_eq!((scripted.requests().len(), scripted.connections()), (2, 1));
}

#[tokio::test]
async fn throttling_says_how_long() {
    let act = answer("429 Too Many Requests\r\nRetry-After: 12", "{}");
    let why = NotSent::Throttled { retry_after: Some(Duration::from_secs(12)) };
    assert_eq!(send(vec![act], LONG).await, SendOutcome::NotSent { why });
}

#[tokio::test]
async fn ids_are_escaped_in_paths_and_base_paths_are_kept() {
    let scripted = Scripted::start(vec![answer("200 OK", "[]")]).await;
    let mut server = at(&scripted);
    server.base_url.set_path("/waha/");
    let filter = MessageFilter { limit: Some(20), from_me: Some(true), ..MessageFilter::default() };
    let messages = client().messages(&server, "sb 1/../x", "1@c.us", &filter).await.unwrap();
    assert!(messages.is_empty());
    let request = scripted.requests().remove(0);
    let line = request.lines().next().unwrap();
    assert_eq!(
        line,
        "GET /waha/api/sb%201%2F..%2Fx/chats/1%40c.us/messages?downloadMedia=false&sortBy=timestamp&sortOrder=desc&limit=20&filter.fromMe=true HTTP/1.1"
    );
}

#[tokio::test]
async fn a_message_is_read_back() {
    let found = r#"{"id":"true_1@c.us_3EB0A","from":"1@c.us","fromMe":true,"ack":2,"hasMedia":false}"#;
    let missing = r#"{"message":"Message not found","error":"Not Found","statusCode":404}"#;
    let no_session = r#"{"message":"Session not found","error":"Not Found","statusCode":404}"#;
    let scripted = Scripted::start(vec![
        answer("200 OK", found),
        answer("404 Not Found", missing),
        answer("404 Not Found", no_session),
        answer("404 Not Found", "404 page not found"),
        answer("200 OK", ""),
        answer("200 OK", "[]"),
    ])
    .await;
    let (client, server) = (client(), at(&scripted));
    let read = async || client.message_by_id(&server, "sb_1", "all", "3EB0A").await;
    let message = read().await.unwrap().unwrap();
    assert_eq!((message.bare_id.as_str(), message.ack), ("3EB0A", Some(2)));
    assert!(read().await.unwrap().is_none());
    assert_eq!(read().await.unwrap_err(), CallError::NotFound);
    assert!(matches!(read().await.unwrap_err(), CallError::BadAnswer(_)));
    assert!(read().await.unwrap().is_none());
    assert!(matches!(read().await.unwrap_err(), CallError::BadAnswer(_)));
    let line = scripted.requests().remove(0);
    assert!(line.starts_with("GET /api/sb_1/chats/all/messages/3EB0A?downloadMedia=false HTTP/1.1"), "{line}");
}

#[tokio::test]
async fn errors_of_calls_are_told_apart() {
    let state = r#"{"error":"Session status is not as expected. Try again later or restart the session","session":"default","status":"STARTING","expected":["SCAN_QR_CODE"]}"#;
    let started =
        r#"{"message":"Session 'default' is already started.","error":"Unprocessable Entity","statusCode":422}"#;
    let exists = r#"{"message":"Session 'a' already exists. Use PUT to update it.","error":"Unprocessable Entity","statusCode":422}"#;
    let gone = r#"{"message":"Session not found","error":"Not Found","statusCode":404}"#;
    let spec = SessionSpec {
        name: "a".into(),
        engine: Engine::Noweb,
        webhook_url: "http://gateway/".parse().unwrap(),
        hmac_key: "k".into(),
        metadata: [].into(),
        proxy: None,
    };
    let scripted = Scripted::start(vec![
        answer("422 Unprocessable Entity", state),
        answer("422 Unprocessable Entity", started),
        answer("422 Unprocessable Entity", exists),
        answer("404 Not Found", gone),
        answer("404 Not Found", gone),
        answer("401 Unauthorized", r#"{"message":"Unauthorized","statusCode":401}"#),
        answer("500 Internal Server Error", r#"{"statusCode":500,"exception":{"message":"Timed Out"}}"#),
        answer("503 Service Unavailable", "<html>"),
        answer("201 Created", ""),
        answer("200 OK", r#"{"value":"2@abc"}"#),
        Act::Hang,
    ])
    .await;
    let (client, server) = (client(), at(&scripted));
    let state = CallError::State { status: SessionStatus::Starting };
    assert_eq!(client.qr_value(&server, "a").await.unwrap_err(), state);
    assert_eq!(client.start(&server, "a").await, Ok(()));
    assert_eq!(client.create_session(&server, &spec, true).await.unwrap_err(), CallError::AlreadyExists);
    assert!(client.get_session(&server, "a").await.unwrap().is_none());
    assert_eq!(client.restart(&server, "a").await.unwrap_err(), CallError::NotFound);
    assert_eq!(client.list_sessions(&server, true).await.unwrap_err(), CallError::Unauthorized);
    assert_eq!(
        client.check_exists(&server, "a", "1").await.err().unwrap(),
        CallError::Server { status: 500, timed_out: true }
    );
    assert_eq!(client.ping(&server).await.unwrap_err(), CallError::Server { status: 503, timed_out: false });
    assert!(client.create_session(&server, &spec, false).await.unwrap().is_none());
    assert!(client.qr_value(&server, "a").await.is_ok());
    let hasty =
        WahaClient::new(Handle::current(), Timeouts { probe: Duration::from_millis(100), ..Timeouts::default() });
    assert_eq!(hasty.unwrap().ping(&server).await.unwrap_err(), CallError::TimedOut);
}

#[tokio::test]
async fn the_server_says_what_and_since_when_it_runs() {
    let scripted = Scripted::start(vec![
        answer(
            "200 OK",
            r#"{"version":"2026.3.4","engine":"NOWEB","tier":"CORE","browser":null,"worker":{"id":null}}"#,
        ),
        answer("200 OK", r#"{"startTimestamp":1795211258844,"uptime":176322,"worker":{"id":""}}"#),
        answer("200 OK", r#"{"numberExists":true,"chatId":"22222222222@c.us"}"#),
    ])
    .await;
    let (client, server) = (client(), at(&scripted));
    let version = client.server_version(&server).await.unwrap();
    assert_eq!((version.version.as_str(), version.engine), ("2026.3.4", Some(Engine::Noweb)));
    assert_eq!(version.tier.as_deref(), Some("CORE"));
    let status = client.server_status(&server).await.unwrap();
    assert_eq!(status.started_at.timestamp_millis(), 1_795_211_258_844);
    assert_eq!(status.uptime, Duration::from_millis(176_322));
    let check = client.check_exists(&server, "s", "22222222222").await.unwrap();
    assert_eq!((check.exists, check.chat_id.as_deref()), (true, Some("22222222222@c.us")));
}

#[test]
fn a_call_outlives_the_runtime_it_is_asked_from() {
    let owner = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let scripted = owner.block_on(Scripted::start(vec![answer("201 Created", SENT)]));
    let client = WahaClient::new(owner.handle().clone(), Timeouts::default()).unwrap();
    // Each caller's runtime goes away after its call; the pooled connection must not go with it.
    for _ in 0..3 {
        let caller = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let outcome = caller.block_on(client.send_text(&at(&scripted), &text(), LONG, None));
        assert!(matches!(outcome, SendOutcome::Accepted { .. }), "{outcome:?}");
    }
    assert_eq!(scripted.connections(), 1);
}
