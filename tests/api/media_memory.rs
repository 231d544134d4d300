//! A large file passes through a process that stays small.

use reqwest::{Method, StatusCode};
use sha2::{Digest, Sha256};
use switchboard::domain::content::MediaContent;
use switchboard::domain::ids::MessageId;
use switchboard::media;

use crate::support::World;
use crate::support::world::{Client, form, text};

const MIB: usize = 1024 * 1024;

/// The most memory the process ever had, in bytes.
fn peak(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_mebibytes_go_in_and_out_of_a_process_of_less_than_150_megabytes() {
    let world = World::new().await;
    let serve = world.any_process().await;
    let tenant = world.tenant(&serve.base, "one").await;
    let (kind, empty) = form(&[("file", Some("film.bin"), None, b"")]);
    let (head, tail) = empty.split_at(empty.len() - b"\r\n--edge--\r\n".len());
    let piece = |number: usize| vec![u8::try_from(number).unwrap(); MIB];
    let parts = std::iter::once(head.to_vec()).chain((0..60).map(piece)).chain(std::iter::once(tail.to_vec()));
    let length = head.len() + 60 * MIB + tail.len();
    let parts: Vec<_> = parts.map(Ok::<_, std::io::Error>).collect();
    let body = reqwest::Body::wrap_stream(futures_util::stream::iter(parts));
    let request =
        tenant.request(Method::POST, "/v1/media").header("Content-Type", kind).header("Content-Length", length);
    let stored = Client::send(request.body(body)).await.expect(StatusCode::CREATED);
    assert_eq!(stored["size"].as_u64(), Some(60 * MIB as u64));

    // Another node makes the link, as it does when it sends; this process serves it.
    let sender = world.node_with(&[], |config| config.public_url = serve.base.parse().unwrap());
    let owner = tenant.get("/v1/tenant").await.expect(StatusCode::OK);
    let content = MediaContent { id: Some(text(&stored, "id").parse().unwrap()), ..MediaContent::default() };
    let message = MessageId::fresh(sender.app.clock.now(), &sender.app.chance);
    let file = media::hand_over(&sender.app, text(&owner, "id").parse().unwrap(), message, &content).await.unwrap();
    let file = serde_json::to_value(&file).unwrap();
    let mut fetched =
        reqwest::Client::builder().no_proxy().build().unwrap().get(text(&file, "url")).send().await.unwrap();
    let mut digest = Sha256::new();
    while let Some(chunk) = fetched.chunk().await.unwrap() {
        digest.update(&chunk);
    }
    assert_eq!(hex::encode(digest.finalize()), text(&stored, "sha256"));
    let most = peak(serve.process.id());
    assert!(most < 150_000_000, "the process had {} MB", most / 1_000_000);
    eprintln!("60 MiB in and out: at most {} MB", most / 1_000_000);
    sender.node.stop().await;
}
