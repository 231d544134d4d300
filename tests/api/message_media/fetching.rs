//! Files of messages on their way from WAHA.

use std::time::Duration;

use actix_web::web::Bytes;
use chrono::DateTime;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use switchboard::serve::Role;

use super::{ROLES, Stand, header, png};
use crate::support::file_keeper::Reply;
use crate::support::world::{Client, PATIENCE, text};
use crate::support::{FileKeeper, eventually, free_port};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_refused_gone_or_not_downloaded_is_asked_for_anew() {
    let stand = Stand::new().await;
    let again = |url: Value| {
        Some(json!({"id": "false_15550100009@c.us_B", "from": "15550100009@c.us", "hasMedia": true,
        "media": {"url": url, "mimetype": "image/png", "error": null}}))
    };
    let png = Reply::File("image/png", png(1, 1));
    for (bare, first, url) in [
        ("REFUSED", Reply::Status(403), Some("http://waha/api/files/s/1.png")),
        ("EXPIRED", Reply::Status(404), Some("http://waha/api/files/s/1.png")),
        ("FAILING", Reply::Status(500), Some("http://waha/api/files/s/1.png")),
        ("NULL", Reply::Status(404), None),
    ] {
        let before = stand.keeper.asked().len();
        stand.keeper.file("/api/files/s/1.png", [first]);
        stand.keeper.file("/api/files/s/2.png", [png.clone()]);
        stand.keeper.message(again(json!("http://waha/api/files/s/2.png")));
        let id = stand.arrives(bare, url, "image/png", None).await;
        stand.becomes(id, "stored").await;
        let asked: Vec<String> = stand.keeper.asked()[before..].iter().map(|asked| asked.path.clone()).collect();
        let message = asked.iter().find(|path| path.contains("/messages/")).unwrap();
        assert!(message.ends_with(&format!("/chats/all/messages/{bare}?downloadMedia=true")), "{message}");
        assert_eq!(asked.len(), if url.is_some() { 3 } else { 2 }, "{bare}: {asked:?}");
    }
    stand.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn engines_of_browsers_are_asked_by_chat_and_whole_id() {
    let stand = Stand::with(&ROLES, "WEBJS", "").await;
    stand.keeper.message(None);
    let id = stand.arrives("C1", None, "image/png", None).await;
    eventually(PATIENCE, "the question", async || (!stand.keeper.asked().is_empty()).then_some(())).await;
    let path = stand.keeper.asked()[0].path.clone();
    assert!(
        path.ends_with("/chats/15550100009%40c.us/messages/false_15550100009%40c.us_C1?downloadMedia=true"),
        "{path}"
    );
    assert_eq!(stand.media(id).await["status"], "pending");
    stand.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_has_any_more_expires_and_what_never_comes_fails_until_it_is_asked_for_again() {
    let stand = Stand::new().await;
    stand.keeper.message(None);
    let id = stand.arrives("D1", Some("http://waha/api/files/s/D1.png"), "image/png", Some("d.png")).await;
    let pending = stand.fetch(id, "").await;
    assert_eq!((pending.status(), header(&pending, "retry-after")), (StatusCode::CONFLICT, "5".to_owned()));
    stand.becomes_after_pauses(id, "expired").await;
    assert_eq!(stand.fetch(id, "").await.status(), StatusCode::GONE);
    assert_eq!(stand.count("media_fetches").await, 0);
    eventually(PATIENCE, "its event", async || (stand.events().await.len() == 1).then_some(())).await;

    // WAHA has it once more after all.
    stand
        .keeper
        .file("/api/files/s/D2.gif", [Reply::File("image/gif", Bytes::from_static(b"GIF89a\x05\0\x07\0 and so on"))]);
    stand.keeper.message(Some(json!({"id": "false_15550100009@c.us_D1", "from": "15550100009@c.us", "hasMedia": true,
        "media": {"url": "http://waha/api/files/s/D2.gif", "mimetype": "image/gif"}})));
    let again = stand.tenant.post(&format!("/v1/messages/{id}/media/retry"), &json!({})).await;
    let again = again.expect(StatusCode::ACCEPTED);
    assert_eq!(again["media"]["status"], "pending");
    let media = stand.becomes(id, "stored").await;
    assert_eq!((&media["filename"], &media["width"], &media["height"]), (&json!("d.png"), &json!(5), &json!(7)));

    // One that never comes is given up after some tries.
    stand.keeper.message(Some(
        json!({"id": "false_15550100009@c.us_D3", "from": "15550100009@c.us", "hasMedia": true, "media": null}),
    ));
    let failing = stand.arrives("D3", Some("http://waha/api/files/s/D3.png"), "image/png", None).await;
    let media = stand.becomes_after_pauses(failing, "failed").await;
    assert_eq!(media["error"], "unavailable");
    let asked = stand.keeper.asked().iter().filter(|asked| asked.path.contains("/messages/D3")).count();
    assert_eq!(asked, 10);
    stand.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_large_is_refused_before_and_while_it_comes() {
    let stand = Stand::new().await;
    for wrong in [json!(-1), json!(1.5), json!("1"), json!((64 << 20) + 1)] {
        let settings = json!({"settings": {"media": {"max_bytes": wrong}}});
        let request = stand.tenant.request(Method::PATCH, "/v1/tenant").json(&settings);
        let refused = Client::send(request).await.expect(StatusCode::UNPROCESSABLE_ENTITY);
        assert_eq!(refused["errors"][0]["field"], "settings.media.max_bytes");
    }
    let settings = json!({"settings": {"media": {"max_bytes": 1_000_000}}});
    let request = stand.tenant.request(Method::PATCH, "/v1/tenant").json(&settings);
    assert_eq!(Client::send(request).await.status, StatusCode::OK);
    for (name, reply) in [("claims", Reply::Claims(1 << 30)), ("endless", Reply::Endless)] {
        stand.keeper.file(&format!("/api/files/s/{name}"), [reply]);
        let id = stand.arrives(name, Some(&format!("http://waha/api/files/s/{name}")), "video/mp4", None).await;
        let media = stand.becomes(id, "failed").await;
        assert_eq!(media["error"], "too_large", "{name}");
        assert_eq!(stand.fetch(id, "").await.status(), StatusCode::GONE);
    }
    stand.keeper.file("/api/files/s/fits", [Reply::File("text/plain", Bytes::from(vec![b'x'; 999_999]))]);
    let id = stand.arrives("fits", Some("http://waha/api/files/s/fits"), "text/plain", None).await;
    stand.becomes(id, "stored").await;
    assert_eq!((stand.files(), stand.count("media").await), (1, 1), "nothing is left of the others");
    stand.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_key_goes_to_the_known_server_and_below_its_files_only() {
    let stand = Stand::with(&ROLES, "GOWS", "/waha").await;
    let foreign = FileKeeper::start("GOWS");
    foreign.file("/bucket/H.gif", [Reply::File("image/gif", Bytes::from_static(b"GIF89a\x01\0\x01\0 from a bucket"))]);
    // A bucket elsewhere is asked without the key.
    let id = stand.arrives("H", Some(&foreign.url("/bucket/H.gif?X-Amz-Signature=1")), "image/gif", None).await;
    stand.becomes(id, "stored").await;
    assert_eq!(foreign.asked().len(), 1);
    assert_eq!(
        (foreign.asked()[0].key.as_deref(), foreign.asked()[0].path.as_str()),
        (None, "/bucket/H.gif?X-Amz-Signature=1")
    );

    // Whoever names another host below /api/files/ gets nothing, nor does a redirect take the key along.
    stand.keeper.message(None);
    stand.keeper.file("/waha/api/files/s/I", [Reply::Redirect(foreign.url("/api/files/s/I"))]);
    for (bare, url) in [
        ("I", foreign.url("/api/files/s/I")),
        ("J", stand.keeper.url("/api/sessions?all=true")),
        ("K", stand.keeper.url("/waha/api/files/..%2f..%2fapi%2fsessions")),
        ("L", stand.keeper.url("/waha/api/files/%2e%2e/sessions")),
        ("M", foreign.url("/api/files/..%252f..%252fetc%252fpasswd")),
        ("N", "file:///etc/passwd".to_owned()),
    ] {
        let before = stand.keeper.asked().len();
        stand.arrives(bare, Some(&url), "image/png", None).await;
        let message = format!("/messages/{bare}?");
        eventually(PATIENCE, "WAHA to be asked anew", async || {
            stand.keeper.asked().iter().any(|asked| asked.path.contains(&message)).then_some(())
        })
        .await;
        let asked: Vec<String> = stand.keeper.asked()[before..]
            .iter()
            .map(|asked| asked.path.clone())
            .filter(|path| !path.contains("/messages/"))
            .collect();
        let expected: &[&str] = if bare == "I" { &["/waha/api/files/s/I"] } else { &[] };
        assert_eq!(asked, expected, "{bare}");
    }
    assert_eq!(foreign.asked().len(), 1);
    stand.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn addresses_that_are_not_public_are_not_asked() {
    let stand = Stand::idle().await;
    let strict = stand.world.node_with(&[Role::Ingest], |config| config.allow_private_targets = false);
    let foreign = FileKeeper::start("GOWS");
    stand.keeper.message(None);
    for (bare, url) in [("O", foreign.url("/bucket/key")), ("P", "https://169.254.169.254/latest/meta-data".to_owned())]
    {
        stand.arrives(bare, Some(&url), "image/png", None).await;
        let message = format!("/messages/{bare}?");
        eventually(PATIENCE, "WAHA to be asked anew", async || {
            stand.clock.advance(Duration::from_millis(100));
            stand.keeper.asked().iter().any(|asked| asked.path.contains(&message)).then_some(())
        })
        .await;
    }
    assert!(foreign.asked().is_empty());
    strict.node.stop().await;
    stand.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_fetch_each_file_once_and_a_few_at_a_time() {
    let stand = Stand::new().await;
    let other = stand.world.node_with(&[Role::Ingest], |_| {});
    let mut ids = Vec::new();
    for number in 0..30 {
        let path = format!("/api/files/s/{number}.txt");
        stand.keeper.file(&path, [Reply::File("text/plain", Bytes::from(format!("file {number}")))]);
        ids.push(stand.arrives(&format!("Q{number}"), Some(&format!("http://waha{path}")), "text/plain", None).await);
    }
    for (number, id) in ids.iter().enumerate() {
        stand.becomes(*id, "stored").await;
        assert_eq!(stand.fetch(*id, "").await.bytes().await.unwrap(), format!("file {number}"));
    }
    assert_eq!(stand.keeper.asked().len(), 30, "each once");
    assert_eq!((stand.count("media").await, stand.count("media_fetches").await, stand.files()), (30, 0, 30));
    eventually(PATIENCE, "their events", async || (stand.events().await.len() == 30).then_some(())).await;
    other.node.stop().await;
    stand.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hanging_file_holds_up_its_own_session_only() {
    let stand = Stand::new().await;
    let second = json!({"name": "second", "start": false, "engine": "GOWS"});
    let second = stand.tenant.post("/v1/sessions", &second).await.expect(StatusCode::CREATED);
    for number in 0..5 {
        let path = format!("/api/files/s/held{number}");
        stand.keeper.file(&path, [Reply::Held(Bytes::from_static(b"late"))]);
        stand.arrives(&format!("R{number}"), Some(&format!("http://waha{path}")), "text/plain", None).await;
    }
    eventually(PATIENCE, "two to be asked for", async || (stand.keeper.asked().len() >= 2).then_some(())).await;
    stand.keeper.file("/api/files/s/quick", [Reply::File("text/plain", Bytes::from_static(b"quick"))]);
    let stand = Stand { session: text(&second, "id").parse().unwrap(), ..stand };
    let id = stand.arrives("S", Some("http://waha/api/files/s/quick"), "text/plain", None).await;
    stand.becomes(id, "stored").await;
    assert_eq!(stand.keeper.asked().len(), 3, "two of the first session at a time");
    stand.keeper.release();
    eventually(PATIENCE, "the rest", async || {
        stand.clock.advance(Duration::from_millis(100));
        (stand.count("media_fetches").await == 0).then_some(())
    })
    .await;
    stand.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_whose_worker_was_killed_is_fetched_by_another_when_the_lease_is_over() {
    let stand = Stand::idle().await;
    // The process has a clock of its own; the file is due on both.
    stand.keeper.file("/api/files/s/T", [Reply::Claims(1000)]);
    let mut dying = stand.world.process(free_port(), "api,ingest", |_| {}).await;
    let id = stand.arrives("T", Some("http://waha/api/files/s/T"), "text/plain", None).await;
    let sql = stand.world.db.connect().await;
    sql.execute("UPDATE media_fetches SET due_at = now() - interval '1 hour' WHERE attempts = 0", &[]).await.unwrap();
    eventually(PATIENCE, "the fetch to begin", async || (!stand.keeper.asked().is_empty()).then_some(())).await;
    dying.process.kill9();
    drop(dying);
    let query = "SELECT (extract(epoch FROM due_at) * 1000)::bigint FROM media_fetches";
    let lease = DateTime::from_timestamp_millis(sql.query_one(query, &[]).await.unwrap().get(0)).unwrap();
    stand.keeper.file("/api/files/s/T", [Reply::File("text/plain", Bytes::from_static(b"whole"))]);
    let heir = stand.world.node_with(&[Role::Ingest], |_| {});
    let before = lease - chrono::TimeDelta::seconds(2);
    if let Ok(by) = (before - stand.clock.now()).to_std() {
        stand.clock.advance(by);
        assert_eq!(stand.media(id).await["status"], "pending", "the lease holds");
    }
    stand.becomes_by(Duration::from_secs(1), id, "stored").await;
    assert_eq!(stand.fetch(id, "").await.bytes().await.unwrap(), "whole");
    // What the dead one left goes with the next purge.
    stand.clock.advance(Duration::from_secs(4000));
    switchboard::media::purge(&stand.node.app).await.unwrap();
    assert_eq!((stand.count("media").await, stand.files()), (1, 1));
    heir.node.stop().await;
    stand.end().await;
}

/// The most memory the process ever had, in bytes.
fn peak(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_large_files_are_fetched_by_a_process_of_less_than_200_megabytes() {
    let stand = Stand::idle().await;
    let picture = png(4000, 3900);
    let mut ids = Vec::new();
    for number in 0..6 {
        let path = format!("/api/files/s/{number}");
        stand.keeper.file(&path, [Reply::Zeros(60 << 20)]);
        ids.push(stand.arrives(&format!("V{number}"), Some(&format!("http://waha{path}")), "video/mp4", None).await);
        let path = format!("/api/files/s/{number}.png");
        stand.keeper.file(&path, [Reply::File("image/png", picture.clone())]);
        ids.push(stand.arrives(&format!("W{number}"), Some(&format!("http://waha{path}")), "image/png", None).await);
    }
    let serve = stand.world.process(free_port(), "api,ingest", |_| {}).await;
    for id in ids {
        let media = stand.becomes(id, "stored").await;
        assert!(media["size"] == 60 << 20 || media["thumbnail"] == true, "{media}");
    }
    let most = peak(serve.process.id());
    eprintln!("360 MiB of files and 94 million pixels fetched: at most {} MB", most / 1_000_000);
    assert!(most < 200_000_000, "the process had {} MB", most / 1_000_000);
    stand.end().await;
}
