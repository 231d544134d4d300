//! The helpers keep their promises; otherwise what they prove is worth nothing.

use std::process::Command;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{Answer, Process, Receiver, TcpProxy, TestDb, eventually};

async fn post(receiver: &Receiver, body: &str) -> String {
    let mut stream = TcpStream::connect(receiver.addr()).await.unwrap();
    let request = format!(
        "POST /hook?a=1 HTTP/1.1\r\nHost: here\r\nX-Test: yes\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn databases_are_separate_and_vanish() {
    let (one, other) = tokio::join!(TestDb::create(), TestDb::create());
    assert_ne!(one.name(), other.name());
    let client = one.connect().await;
    client.batch_execute("UPDATE directory_generation SET generation = 7").await.unwrap();
    let there = other.connect().await.query_one("SELECT generation FROM directory_generation", &[]).await.unwrap();
    assert_eq!(there.get::<_, i64>(0), 0, "the other database does not see it");
    let name = one.name().to_owned();
    drop(one);
    assert!(client.query_one("SELECT 1", &[]).await.is_err(), "a dropped database takes its connections along");
    let left = other.connect().await.query("SELECT FROM pg_database WHERE datname = $1", &[&name]).await.unwrap();
    assert!(left.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_receiver_records_and_answers_by_script() {
    let receiver = Receiver::start();
    receiver.answer_next(Answer::status(503).retry_after(7));
    let answer = post(&receiver, "{\"n\":1}").await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.to_lowercase().contains("retry-after: 7"), "{answer}");
    assert!(post(&receiver, "{}").await.starts_with("HTTP/1.1 200"));
    let received = receiver.wait_for(2).await;
    assert_eq!(
        (received[0].path.as_str(), received[0].header("x-test"), received[0].answered),
        ("/hook?a=1", "yes", 503)
    );
    assert_eq!(received[0].json()["n"], 1);
    assert!(received[0].at <= received[1].at);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_proxy_passes_stalls_and_cuts() {
    let receiver = Receiver::start();
    let proxy = TcpProxy::start(receiver.addr().to_string()).await;
    let ask = async |stream: &mut TcpStream| {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n").await?;
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.map(|_| answer)
    };
    let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
    assert_eq!(&ask(&mut stream).await.unwrap(), b"HTTP/1.1 200");
    drop(stream);
    eventually(Duration::from_secs(5), "the closed connection to be forgotten", async || {
        (proxy.connections() == 0).then_some(())
    })
    .await;

    let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
    proxy.stall();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n").await.unwrap();
    let mut answer = [0; 12];
    let early = tokio::time::timeout(Duration::from_millis(150), stream.read_exact(&mut answer)).await;
    assert!(early.is_err() && receiver.received().len() == 1, "nothing passes while stalled");
    proxy.restore();
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200", "what was held back arrives");

    proxy.cut();
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut rest)).await.unwrap();
    assert!(ended.is_err(), "an open connection is reset");
    let refused = match TcpStream::connect(proxy.addr()).await {
        Ok(mut stream) => ask(&mut stream).await.is_err(),
        Err(_) => true,
    };
    assert!(refused, "a new connection gets nowhere");
    proxy.restore();
    let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
    assert_eq!(&ask(&mut stream).await.unwrap(), b"HTTP/1.1 200");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_sees_only_its_environment_and_ends_on_demand() {
    let shell = |script: &str| {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    };
    let mut polite = Process::start(
        shell("trap 'kill $!; echo bye; exit 3' TERM; echo \"$GIVEN-$HOME-up\"; sleep 600 & wait"),
        [("GIVEN", "given".to_owned())],
    );
    polite.wait_output(Duration::from_secs(5), "given--up").await;
    assert_eq!(polite.terminate(Duration::from_secs(5)).await.code(), Some(3));
    assert!(polite.output().ends_with("bye\n"), "{}", polite.output());

    let mut stubborn = Process::start(shell("trap '' TERM; echo up; exec sleep 600"), []);
    stubborn.wait_output(Duration::from_secs(5), "up").await;
    stubborn.signal("TERM");
    assert!(stubborn.ended().is_none());
    stubborn.kill9();
    assert!(stubborn.ended().is_some());
}
