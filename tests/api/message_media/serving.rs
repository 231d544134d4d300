//! Files of messages as tenants and browsers get them.

use std::time::Duration;

use actix_web::web::Bytes;
use reqwest::{Method, StatusCode};
use serde_json::json;
use switchboard::serve::Role;

use super::{Stand, header, png};
use crate::support::file_keeper::{KEY, Reply};
use crate::support::world::{Client, PATIENCE, text};
use crate::support::{Receiver, eventually};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_picture_is_stored_told_of_and_served() {
    let stand = Stand::new().await;
    let picture = png(800, 400);
    // The host is one that only WAHA knows.
    stand.keeper.file("/api/files/s/A1.png", [Reply::File("image/png", picture.clone())]);
    let id = stand
        .arrives("A1", Some("http://localhost:3000/api/files/s/A1.png"), "image/png", Some("../Übersicht.png"))
        .await;
    let media = stand.becomes(id, "stored").await;
    assert_eq!(
        (
            &media["mime_type"],
            &media["filename"],
            &media["size"],
            &media["width"],
            &media["height"],
            &media["thumbnail"]
        ),
        (&json!("image/png"), &json!("Übersicht.png"), &json!(picture.len()), &json!(800), &json!(400), &json!(true))
    );
    let events = eventually(PATIENCE, "the event", async || {
        let events = stand.events().await;
        (!events.is_empty()).then_some(events)
    })
    .await;
    assert_eq!(events.len(), 1);
    assert_eq!((&events[0]["data"]["id"], &events[0]["data"]["media"]), (&json!(id), &media));
    let asked = stand.keeper.asked();
    assert_eq!(asked.len(), 1);
    assert_eq!((asked[0].path.as_str(), asked[0].key.as_deref()), ("/api/files/s/A1.png", Some(KEY)));
    assert_eq!(stand.count("media_fetches").await, 0);

    let whole = stand.fetch(id, "").await;
    let tag = header(&whole, "etag");
    assert_eq!((whole.status(), header(&whole, "content-type")), (StatusCode::OK, "image/png".to_owned()));
    assert!(
        header(&whole, "content-disposition").starts_with("inline; filename=\"_bersicht.png\"; filename*=UTF-8''%C3")
    );
    assert_eq!(header(&whole, "x-content-type-options"), "nosniff");
    assert_eq!(header(&whole, "content-security-policy"), "default-src 'none'; sandbox");
    assert_eq!(whole.bytes().await.unwrap(), picture);
    let path = format!("/v1/messages/{id}/media");
    let with = async |name: &str, value: &str| {
        stand.tenant.request(Method::GET, &path).header(name, value).send().await.unwrap()
    };
    let part = with("Range", "bytes=1-3").await;
    assert_eq!((part.status(), part.bytes().await.unwrap()), (StatusCode::PARTIAL_CONTENT, Bytes::from_static(b"PNG")));
    assert_eq!(with("Range", "bytes=99999999-").await.status(), StatusCode::RANGE_NOT_SATISFIABLE);
    assert_eq!(with("If-None-Match", &tag).await.status(), StatusCode::NOT_MODIFIED);
    let small = stand.fetch(id, "?thumbnail=true").await;
    assert_eq!((small.status(), header(&small, "content-type")), (StatusCode::OK, "image/jpeg".to_owned()));
    assert_ne!(header(&small, "etag"), tag);
    let small = small.bytes().await.unwrap();
    assert!(small.starts_with(b"\xff\xd8\xff") && small.len() < 20_000);
    assert_eq!(stand.files(), 2);

    // A link shows it to whoever has it, for a while.
    let link = stand.tenant.post(&format!("{path}/link"), &json!({"expires_in": 60})).await.expect(StatusCode::OK);
    let get = async |url: &str| reqwest::Client::builder().no_proxy().build().unwrap().get(url).send().await.unwrap();
    let url = text(&link, "url");
    let shown = get(url).await;
    assert_eq!((shown.status(), header(&shown, "content-type")), (StatusCode::OK, "image/png".to_owned()));
    assert_eq!(get(&format!("{url}?thumbnail=true")).await.bytes().await.unwrap(), small);
    stand.clock.advance(Duration::from_secs(61));
    assert_eq!(get(url).await.status(), StatusCode::NOT_FOUND);
    for expires_in in [json!(9), json!(86_401), json!("x")] {
        let refused = stand.tenant.post(&format!("{path}/link"), &json!({"expires_in": expires_in})).await;
        assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY);
    }
    let again = stand.tenant.post(&format!("{path}/retry"), &json!({})).await;
    assert_eq!(again.status, StatusCode::CONFLICT, "it is there");

    // What is deleted is gone, with its small picture.
    let file = format!("/v1/media/{}", text(&media, "id"));
    Client::send(stand.tenant.request(Method::DELETE, &file)).await.expect(StatusCode::NO_CONTENT);
    assert_eq!(stand.fetch(id, "").await.status(), StatusCode::GONE);
    stand.clock.advance(Duration::from_secs(3700));
    assert_eq!(switchboard::media::purge(&stand.node.app).await.unwrap(), 1);
    assert_eq!(stand.files(), 0);
    stand.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_browser_would_run_is_saved_and_not_shown() {
    let stand = Stand::new().await;
    let page = Bytes::from_static(b"\n <!DOCTYPE html><html><script>alert(1)</script></html>");
    for (bare, name, bytes, said, stored) in [
        ("E1", "cat.png", page.clone(), "image/png", "text/html"),
        (
            "E2",
            "cat.svg",
            Bytes::from_static(b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>"),
            "image/svg+xml",
            "text/plain",
        ),
        (
            "E3",
            "a\r\nX-Evil: 1.png",
            Bytes::from_static(b"\x01\x02\x03 rubbish"),
            "image/png",
            "application/octet-stream",
        ),
        ("E4", "a.csv", Bytes::from_static(b"a;b\n1;2\n"), "text/csv", "text/csv"),
        (
            "E5",
            "..\\..\\evil\u{202e}gnp.exe",
            Bytes::from_static(b"MZ\x90\0\x03"),
            "image/png",
            "application/vnd.microsoft.portable-executable",
        ),
    ] {
        let path = format!("/api/files/s/{bare}");
        stand.keeper.file(&path, [Reply::File("image/png", bytes.clone())]);
        let id = stand.arrives(bare, Some(&format!("http://waha{path}")), said, Some(name)).await;
        let media = stand.becomes(id, "stored").await;
        assert_eq!(media["mime_type"], stored, "{bare}");
        let link = stand.tenant.post(&format!("/v1/messages/{id}/media/link"), &json!({})).await.expect(StatusCode::OK);
        let linked =
            reqwest::Client::builder().no_proxy().build().unwrap().get(text(&link, "url")).send().await.unwrap();
        for answer in [stand.fetch(id, "").await, linked] {
            assert_eq!(header(&answer, "content-type"), "application/octet-stream", "{bare}");
            let disposition = header(&answer, "content-disposition");
            assert!(disposition.starts_with("attachment"), "{bare}: {disposition}");
            assert!(!disposition.contains("..") && !disposition.contains("%0"), "{bare}: {disposition}");
            assert!(!answer.headers().contains_key("x-evil"));
            assert_eq!(header(&answer, "x-content-type-options"), "nosniff");
            assert_eq!(answer.bytes().await.unwrap(), bytes);
        }
        assert_eq!(stand.fetch(id, "?thumbnail=true").await.status(), StatusCode::NOT_FOUND);
    }
    let pdf = Bytes::from_static(b"%PDF-1.7 bill");
    stand.keeper.file("/api/files/s/F", [Reply::File("application/pdf", pdf)]);
    let id = stand.arrives("F", Some("http://waha/api/files/s/F"), "application/pdf", Some("bill.pdf")).await;
    stand.becomes(id, "stored").await;
    let answer = stand.fetch(id, "").await;
    assert_eq!(header(&answer, "content-type"), "application/pdf");
    assert!(header(&answer, "content-disposition").starts_with("attachment; filename=\"bill.pdf\""));
    stand.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bomb_is_stored_and_not_set_off() {
    let stand = Stand::new().await;
    let bomb = png(8000, 8000);
    assert!(bomb.len() < 500_000);
    stand.keeper.file("/api/files/s/G", [Reply::File("image/png", bomb.clone())]);
    let id = stand.arrives("G", Some("http://waha/api/files/s/G"), "image/png", None).await;
    let media = stand.becomes(id, "stored").await;
    assert_eq!((&media["thumbnail"], &media["width"]), (&json!(false), &json!(8000)));
    assert_eq!(stand.fetch(id, "").await.bytes().await.unwrap(), bomb);
    stand.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_is_deleted_meanwhile_gets_no_file() {
    let stand = Stand::new().await;
    stand.keeper.file("/api/files/s/U", [Reply::Held(Bytes::from_static(b"late"))]);
    let id = stand.arrives("U", Some("http://waha/api/files/s/U"), "text/plain", None).await;
    eventually(PATIENCE, "the fetch to begin", async || (!stand.keeper.asked().is_empty()).then_some(())).await;
    let path = format!("/v1/messages/{id}");
    Client::send(stand.tenant.request(Method::DELETE, &path)).await.expect(StatusCode::NO_CONTENT);
    stand.keeper.release();
    eventually(PATIENCE, "nothing to be left", async || {
        (stand.count("media_fetches").await == 0 && stand.count("media").await == 0 && stand.files() == 0).then_some(())
    })
    .await;
    assert!(stand.events().await.is_empty());
    assert_eq!(stand.fetch(id, "").await.status(), StatusCode::NOT_FOUND);
    stand.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_sent_is_served_too() {
    let stand = Stand::new().await;
    let file = stand.tenant.upload("cat.gif", "image/gif", b"GIF89a a small cat").await.expect(StatusCode::CREATED);
    let message =
        json!({"session_id": stand.session, "to": "+15550100001", "type": "image", "media": {"id": file["id"]}});
    let message = stand.tenant.post("/v1/messages", &message).await.expect(StatusCode::ACCEPTED);
    let path = format!("/v1/messages/{}/media", text(&message, "id"));
    let answer = stand.tenant.request(Method::GET, &path).send().await.unwrap();
    assert_eq!((answer.status(), header(&answer, "content-type")), (StatusCode::OK, "image/gif".to_owned()));
    assert_eq!(stand.tenant.post(&format!("{path}/retry"), &json!({})).await.status, StatusCode::CONFLICT);
    let plain = stand.tenant.send_text(&stand.session.to_string(), "+15550100001", "no file").await;
    let path = format!("/v1/messages/{}/media", text(&plain, "id"));
    assert_eq!(stand.tenant.get(&path).await.status, StatusCode::NOT_FOUND);
    for member in ["status", "size", "width", "thumbnail", "error"] {
        let message = json!({"session_id": stand.session, "to": "+15550100001", "type": "image",
            "media": {"id": file["id"], member: null}});
        let refused = stand.tenant.post("/v1/messages", &message).await.expect(StatusCode::UNPROCESSABLE_ENTITY);
        assert_eq!(text(&refused["errors"][0], "code"), "unknown_field", "{member}");
    }
    stand.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_webhook_tells_that_the_file_is_there() {
    let stand = Stand::with(&[Role::Api, Role::Ingest, Role::Deliver], "GOWS", "").await;
    let receiver = Receiver::start();
    let endpoint = json!({"url": receiver.url("/hook"), "event_types": ["message.media"]});
    let endpoint = stand.tenant.post("/v1/webhook-endpoints", &endpoint).await.expect(StatusCode::CREATED);
    stand.keeper.file("/api/files/s/X", [Reply::File("text/plain", Bytes::from_static(b"file"))]);
    let id = stand.arrives("X", Some("http://waha/api/files/s/X"), "text/plain", None).await;
    let media = stand.becomes(id, "stored").await;
    let told = eventually(PATIENCE, "the webhook", async || {
        stand.clock.advance(Duration::from_millis(100));
        receiver.received().first().cloned()
    })
    .await;
    let (body, timestamp) = (told.json(), told.header("webhook-timestamp").parse().unwrap());
    assert_eq!((&body["type"], &body["data"]["media"]), (&json!("message.media"), &media));
    let signature = standardwebhooks::Webhook::new(text(&endpoint, "secret")).unwrap();
    let signature = signature.sign(told.header("webhook-id"), timestamp, &told.body).unwrap();
    assert!(told.header("webhook-signature").split(' ').any(|ours| ours == signature));
    stand.end().await;
}
