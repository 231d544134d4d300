//! Files, from the tenant to the recipient.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::support::receiver::Answer as Reply;
use crate::support::world::{Client, PATIENCE, text};
use crate::support::{Receiver, World};

const GIF: &str = "GIF89a a small picture";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_picture_reaches_its_recipient_by_id_by_url_and_in_the_request() {
    let world = World::new().await;
    let node = world.node();
    let tenant = world.tenant(&node.base, "one").await;
    let (session, _) = tenant.session("first").await;
    let stored = tenant.upload("cat.gif", "image/gif", GIF.as_bytes()).await.expect(StatusCode::CREATED);
    let elsewhere = Receiver::start();
    elsewhere.answer_always(Reply { body: GIF.to_owned(), ..Reply::default() });
    let image = |caption: &str, media: Value| json!({"session_id": session, "to": "+15550100001", "type": "image", "body": caption, "media": media});
    let data = STANDARD.encode(GIF);
    for (caption, media) in [
        ("by id", json!({"id": stored["id"]})),
        ("by url", json!({"url": elsewhere.url("/cat.gif")})),
        ("by data", json!({"data": data, "filename": "cat.gif"})),
    ] {
        let message = tenant.post("/v1/messages", &image(caption, media)).await.expect(StatusCode::ACCEPTED);
        tenant.message_with(text(&message, "id"), "read").await;
    }
    let ledger = world.simulator.control().ledger();
    let digest = hex::encode(Sha256::digest(GIF));
    for caption in ["by id", "by url", "by data"] {
        assert_eq!(ledger.bubbles(caption), 1, "{caption}");
        let entry = ledger.entries.iter().find(|entry| entry.text == caption).unwrap();
        let file = entry.file.as_ref().unwrap();
        assert_eq!((&file.sha256, file.mimetype.as_deref()), (&digest, Some("image/gif")), "{caption}");
        assert_eq!((file.filename.as_deref(), file.served_as.as_deref()), (Some("cat.gif"), Some("image/gif")));
        assert!(file.url.as_ref().unwrap().starts_with(&format!("{}/media/", node.base)), "{caption}");
    }
    assert_eq!(elsewhere.received().len(), 1, "fetched once, and not by WAHA");

    // What is not a picture is not sent as one, and a file that is not there fails its message.
    let page =
        image("page", json!({"data": STANDARD.encode("<html><script>1</script></html>"), "mime_type": "image/gif"}));
    let refused = tenant.post("/v1/messages", &page).await.expect(StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(
        (text(&refused["errors"][0], "field"), text(&refused["errors"][0], "code")),
        ("media.data", "wrong_type")
    );
    elsewhere.answer_always(Reply::status(404));
    let gone = image("gone", json!({"url": elsewhere.url("/gone.gif")}));
    let gone = tenant.post("/v1/messages", &gone).await.expect(StatusCode::ACCEPTED);
    let failed = tenant.message_with(text(&gone, "id"), "failed").await;
    assert_eq!(text(&failed["error"], "code"), "media_unavailable");

    // A repeat of a request that holds a file stores nothing more.
    let before = tenant.get("/v1/media").await.expect(StatusCode::OK)["data"].as_array().unwrap().len();
    let again = image("again", json!({ "data": data }));
    for replayed in ["", "true", "true"] {
        let request = tenant.request(Method::POST, "/v1/messages").header("Idempotency-Key", "again").json(&again);
        let answer = Client::send(request).await;
        assert_eq!((answer.status, answer.header("Idempotency-Replayed")), (StatusCode::ACCEPTED, replayed));
    }
    let after = tenant.get("/v1/media").await.expect(StatusCode::OK)["data"].as_array().unwrap().len();
    assert_eq!((before, after), (3, 4));
    node.node.stop().await;
}

const MIB: usize = 1024 * 1024;

/// The most memory the process ever had, in bytes.
fn peak(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_mebibytes_are_sent_by_a_process_of_less_than_150_megabytes() {
    let world = World::new().await;
    let serve = world
        .process(crate::support::free_port(), "api,dispatch,send,ingest,deliver", |settings| {
            settings.insert("SWITCHBOARD_SEND_TIMEOUT_MS".to_owned(), "60000".to_owned());
        })
        .await;
    let tenant = world.tenant(&serve.base, "one").await;
    let (session, _) = tenant.session("first").await;
    let (kind, empty) = crate::support::world::form(&[("file", Some("film.bin"), None, b"")]);
    let (head, tail) = empty.split_at(empty.len() - b"\r\n--edge--\r\n".len());
    let piece = |number: u8| vec![number; MIB];
    let parts = std::iter::once(head.to_vec()).chain((0..60).map(piece)).chain(std::iter::once(tail.to_vec()));
    let length = head.len() + 60 * MIB + tail.len();
    let parts: Vec<_> = parts.map(Ok::<_, std::io::Error>).collect();
    let body = reqwest::Body::wrap_stream(futures_util::stream::iter(parts));
    let request =
        tenant.request(Method::POST, "/v1/media").header("Content-Type", kind).header("Content-Length", length);
    let stored = Client::send(request.body(body)).await.expect(StatusCode::CREATED);
    assert_eq!(stored["size"].as_u64(), Some(60 * MIB as u64));
    let document =
        json!({"session_id": session, "to": "+15550100001", "type": "document", "media": {"id": stored["id"]}});
    let message = tenant.post("/v1/messages", &document).await.expect(StatusCode::ACCEPTED);
    tokio::time::timeout(PATIENCE, tenant.message_with(text(&message, "id"), "read")).await.unwrap();
    let ledger = world.simulator.control().ledger();
    let file = ledger.entries.iter().find_map(|entry| entry.file.as_ref()).unwrap();
    assert_eq!((file.size, file.sha256.as_str()), (60 * MIB as u64, text(&stored, "sha256")));
    let most = peak(serve.process.id());
    eprintln!("60 MiB uploaded and sent: at most {} MB", most / 1_000_000);
    assert!(most < 150_000_000, "the process had {} MB", most / 1_000_000);
}
