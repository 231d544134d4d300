//! Files: uploaded, looked at, fetched by link and from elsewhere, and gone without a trace.

use std::path::{Path, PathBuf};
use std::time::Duration;

use chrono::TimeDelta;
use reqwest::{Method, StatusCode};
use switchboard::domain::content::MediaContent;
use switchboard::domain::failure::FailureCode;
use switchboard::domain::ids::{MessageId, TenantId};
use switchboard::media::{self, GRACE, MediaError};
use switchboard::serve::Role;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::support::receiver::Answer as Reply;
use crate::support::world::{Answer, Client, Inside, PATIENCE, Part, form, text};
use crate::support::{Receiver, World, eventually, free_port};

const PNG: &[u8] = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x01\0\0\0\x01\x08\x06\0\0\0\x1f\x15\xc4\x89 and so on";

async fn stand() -> (World, Inside, Client) {
    let world = World::new().await;
    let node = world.node_with(&[Role::Api], |_| {});
    let tenant = world.tenant(&node.base, "one").await;
    (world, node, tenant)
}

async fn post(client: &Client, kind: &str, body: impl Into<reqwest::Body>) -> Answer {
    Client::send(client.request(Method::POST, "/v1/media").header("Content-Type", kind).body(body)).await
}

async fn get(url: &str) -> reqwest::Response {
    reqwest::Client::builder().no_proxy().build().unwrap().get(url).send().await.unwrap()
}

/// Every file below the folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

async fn rows(world: &World) -> i64 {
    world.db.connect().await.query_one("SELECT count(*) FROM media", &[]).await.unwrap().get(0)
}

async fn own(client: &Client) -> TenantId {
    text(&client.get("/v1/tenant").await.expect(StatusCode::OK), "id").parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_comes_back_as_it_was_sent_and_leaves_nothing_when_it_is_deleted() {
    let (world, node, tenant) = stand().await;
    let stored = tenant.upload("../../Übersicht\t.png", "text/html", PNG).await;
    let location = stored.header("Location").to_owned();
    let file = stored.expect(StatusCode::CREATED);
    let id = text(&file, "id");
    assert_eq!(location, format!("/v1/media/{id}"));
    assert_eq!((text(&file, "mime_type"), text(&file, "filename")), ("image/png", "Übersicht.png"));
    assert_eq!(file["size"].as_u64(), Some(PNG.len() as u64));
    assert_eq!(tenant.get(&location).await.expect(StatusCode::OK), file);
    assert_eq!(tenant.get("/v1/media").await.expect(StatusCode::OK)["data"][0], file);

    let content = format!("{location}/content");
    let whole = tenant.request(Method::GET, &content).send().await.unwrap();
    let header = |response: &reqwest::Response, name: &str| response.headers()[name].to_str().unwrap().to_owned();
    assert_eq!(header(&whole, "content-type"), "image/png");
    assert_eq!(header(&whole, "x-content-type-options"), "nosniff");
    assert!(
        header(&whole, "content-disposition")
            .starts_with("inline; filename=\"_bersicht.png\"; filename*=UTF-8''%C3%9C")
    );
    assert_eq!(whole.content_length(), Some(PNG.len() as u64));
    assert_eq!(whole.bytes().await.unwrap(), PNG);
    let part = tenant.request(Method::GET, &content).header("Range", "bytes=1-3").send().await.unwrap();
    assert_eq!((part.status().as_u16(), header(&part, "content-range")), (206, format!("bytes 1-3/{}", PNG.len())));
    assert_eq!(part.bytes().await.unwrap(), "PNG");
    let beyond = tenant.request(Method::GET, &content).header("Range", "bytes=1000-");
    assert_eq!(
        text(&Client::send(beyond).await.expect(StatusCode::RANGE_NOT_SATISFIABLE), "code"),
        "range_not_satisfiable"
    );
    let head = tenant.request(Method::HEAD, &content).send().await.unwrap();
    assert_eq!((head.status().as_u16(), header(&head, "content-length")), (200, PNG.len().to_string()));

    assert_eq!(files(&world.media_folder()).len(), 1);
    Client::send(tenant.request(Method::DELETE, &location)).await.expect(StatusCode::NO_CONTENT);
    for path in [&location, &content] {
        assert_eq!(tenant.get(path).await.status, StatusCode::NOT_FOUND, "{path}");
    }
    assert_eq!(Client::send(tenant.request(Method::DELETE, &location)).await.status, StatusCode::NOT_FOUND);
    assert_eq!(media::purge(&node.app).await.unwrap(), 0, "somebody may still be reading it");
    node.app.clock.set(node.app.clock.now() + GRACE + TimeDelta::seconds(1));
    assert_eq!(media::purge(&node.app).await.unwrap(), 1);
    assert_eq!(files(&world.media_folder()), Vec::<PathBuf>::new());
    assert_eq!(media::purge(&node.app).await.unwrap(), 0);
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_browser_would_run_is_never_served_as_such() {
    let (_world, node, tenant) = stand().await;
    let page = b"\n <html><script>alert(1)</script></html>";
    for (bytes, declared, expected) in [
        (&page[..], "image/png", "text/html"),
        (b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>", "image/svg+xml", "text/plain"),
        (b"<?xml version='1.0'?><x/>", "image/gif", "text/xml"),
        (b"alert(1)", "text/javascript", "text/plain"),
    ] {
        let file = tenant.upload("cat.png", declared, bytes).await.expect(StatusCode::CREATED);
        assert_eq!(text(&file, "mime_type"), expected);
        let content = format!("/v1/media/{}/content", text(&file, "id"));
        let answer = tenant.request(Method::GET, &content).send().await.unwrap();
        let header = |name: &str| answer.headers()[name].to_str().unwrap();
        let served = header("content-type");
        assert!(["application/octet-stream", "text/plain"].contains(&served), "{served}");
        assert!(header("content-disposition").starts_with("attachment"));
        assert_eq!(header("x-content-type-options"), "nosniff");
    }
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_form_that_is_not_understood_is_refused_by_name_and_stores_nothing() {
    let (world, node, tenant) = stand().await;
    let refused = async |parts: &[Part<'_>]| {
        let (kind, body) = form(parts);
        let problem = post(&tenant, kind, body).await.expect(StatusCode::UNPROCESSABLE_ENTITY);
        let error = &problem["errors"][0];
        (text(error, "field").to_owned(), text(error, "code").to_owned())
    };
    let named = |field: &str, code: &str| (field.to_owned(), code.to_owned());
    assert_eq!(refused(&[]).await, named("file", "required"));
    assert_eq!(refused(&[("files", None, None, b"x")]).await, named("files", "unknown_field"));
    assert_eq!(
        refused(&[("file", None, None, b"x"), ("caption", None, None, b"x")]).await,
        named("caption", "unknown_field")
    );
    assert_eq!(refused(&[("file", None, None, b"x"), ("file", None, None, b"y")]).await, named("file", "duplicate"));
    assert_eq!(refused(&[("file", Some("a.txt"), None, b"")]).await, named("file", "invalid_value"));
    let json = tenant.post("/v1/media", &serde_json::json!({"file": "x"})).await;
    assert_eq!(json.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    for (kind, body) in [("multipart/form-data", "x"), ("multipart/form-data; boundary=edge", "--edge\r\nnonsense")] {
        let answer = post(&tenant, kind, body).await;
        assert_eq!((answer.status, text(&answer.body, "code")), (StatusCode::BAD_REQUEST, "bad_request"), "{body}");
    }
    let key = tenant.post("/v1/api-keys", &serde_json::json!({"name": "r", "scopes": ["messages:read"]})).await;
    let reader = tenant.with_key(text(&key.expect(StatusCode::CREATED), "key"));
    assert_eq!(reader.upload("a", "text/plain", b"x").await.status, StatusCode::FORBIDDEN);
    // Taking back what was stored already is not waited for.
    eventually(PATIENCE, "nothing to be left", async || {
        (rows(&world).await == 0 && files(&world.media_folder()).is_empty()).then_some(())
    })
    .await;
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_upload_is_answered_as_the_first_and_stored_once() {
    let (world, node, tenant) = stand().await;
    let send = async |bytes: &[u8]| {
        let (kind, body) = form(&[("file", Some("a.txt"), Some("text/plain"), bytes)]);
        let request = tenant.request(Method::POST, "/v1/media").header("Content-Type", kind).body(body);
        Client::send(request.header("Idempotency-Key", "upload-1")).await
    };
    let answers = futures_util::future::join_all((0..6).map(|_| send(b"once"))).await;
    assert!(answers.iter().all(|answer| answer.status == StatusCode::CREATED && answer.body == answers[0].body));
    assert_eq!(answers.iter().filter(|answer| answer.header("Idempotency-Replayed") != "true").count(), 1);
    let other = send(b"other").await;
    assert_eq!((other.status, text(&other.body, "code")), (StatusCode::UNPROCESSABLE_ENTITY, "idempotency_key_reused"));
    eventually(PATIENCE, "one file to be left", async || {
        (rows(&world).await == 1 && files(&world.media_folder()).len() == 1).then_some(())
    })
    .await;
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_much_is_refused_whether_it_is_announced_or_not() {
    let (world, node, tenant) = stand().await;
    let announced = tenant
        .request(Method::POST, "/v1/media")
        .header("Content-Type", "multipart/form-data; boundary=edge")
        .header("Content-Length", (70 << 20).to_string())
        .body(vec![0; 1000])
        .send()
        .await;
    // A client that announces more than it sends may also find the connection closed.
    assert!(announced.is_err() || announced.is_ok_and(|answer| answer.status() == StatusCode::PAYLOAD_TOO_LARGE));
    let (_, head) = form(&[("file", None, None, b"")]);
    let head = head[..head.len() - 12].to_vec();
    let zeros = (0..66).map(|_| vec![0_u8; 1 << 20]);
    let chunks = futures_util::stream::iter(std::iter::once(head).chain(zeros).map(Ok::<_, std::io::Error>));
    let request =
        tenant.request(Method::POST, "/v1/media").header("Content-Type", "multipart/form-data; boundary=edge");
    let answer = request.body(reqwest::Body::wrap_stream(chunks)).send().await;
    assert!(answer.is_err() || answer.is_ok_and(|answer| answer.status() == StatusCode::PAYLOAD_TOO_LARGE));
    eventually(PATIENCE, "nothing to be left", async || {
        (rows(&world).await == 0 && files(&world.media_folder()).is_empty()).then_some(())
    })
    .await;
    node.node.stop().await;
}

/// Sends the beginning of an upload, enough for the first bytes to be in the folder.
async fn begin_upload(world: &World, address: &str, key: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = format!(
        "POST /v1/media HTTP/1.1\r\nHost: x\r\nX-Api-Key: {key}\r\nContent-Type: multipart/form-data; boundary=edge\r\n\
         Content-Length: 5000000\r\n\r\n--edge\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&vec![7; 1 << 20]).await.unwrap();
    eventually(PATIENCE, "the upload to begin", async || (!files(&world.media_folder()).is_empty()).then_some(()))
        .await;
    stream
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_breaks_off_leaves_nothing() {
    let (world, node, tenant) = stand().await;
    let address = node.base.strip_prefix("http://").unwrap();
    let stream = begin_upload(&world, address, &tenant.key).await;
    assert_eq!(tenant.get("/v1/media").await.expect(StatusCode::OK)["data"].as_array().unwrap().len(), 0);
    drop(stream);
    eventually(PATIENCE, "nothing to be left", async || {
        (rows(&world).await == 0 && files(&world.media_folder()).is_empty()).then_some(())
    })
    .await;

    // Nor does one whose process dies; it is found when the time for uploads is over.
    let mut dying = world.process(free_port(), "api", |_| {}).await;
    let stream = begin_upload(&world, dying.base.strip_prefix("http://").unwrap(), &tenant.key).await;
    dying.process.kill9();
    drop(stream);
    assert_eq!((rows(&world).await, files(&world.media_folder()).len()), (1, 1));
    // Opens the folder, as any use of it does.
    tenant.upload("a.txt", "text/plain", b"x").await.expect(StatusCode::CREATED);
    node.app.clock.set(node.app.clock.now() + GRACE + TimeDelta::seconds(1));
    assert_eq!(media::purge(&node.app).await.unwrap(), 1);
    assert_eq!((rows(&world).await, files(&world.media_folder()).len()), (1, 1), "the other file stays");
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_opens_one_file_for_a_while_and_nothing_else() {
    let (world, node, tenant) = stand().await;
    let stored = tenant.upload("bill.pdf", "application/pdf", b"%PDF-1.7 bill").await.expect(StatusCode::CREATED);
    let owner = own(&tenant).await;
    let content = MediaContent { id: Some(text(&stored, "id").parse().unwrap()), ..MediaContent::default() };
    let nobody = MessageId::fresh(node.app.clock.now(), &node.app.chance);
    let file = media::hand_over(&node.app, owner, nobody, &content).await.unwrap();
    assert_eq!((file.mimetype.as_str(), file.filename.as_deref()), ("application/pdf", Some("bill.pdf")));
    let url = serde_json::to_value(&file).unwrap()["url"].as_str().unwrap().to_owned();
    let answer = get(&url).await;
    assert_eq!(
        (answer.status().as_u16(), answer.headers()["content-type"].to_str().unwrap()),
        (200, "application/pdf")
    );
    assert_eq!(answer.bytes().await.unwrap(), "%PDF-1.7 bill");

    let other = world.tenant(&node.base, "other").await;
    let stranger = own(&other).await;
    let foreign = media::hand_over(&node.app, stranger, nobody, &content).await.unwrap_err();
    assert!(matches!(foreign, MediaError::NotFound) && foreign.failure() == Some(FailureCode::MediaUnavailable));
    let (base, token) = url.rsplit_once('/').unwrap();
    let other = |at: usize| {
        let mut characters: Vec<char> = token.chars().collect();
        characters[at] = if characters[at] == 'A' { 'B' } else { 'A' };
        characters.into_iter().collect::<String>()
    };
    for altered in [other(0), other(40), other(token.len() - 1), "x".to_owned(), format!("{token}%00")] {
        assert_eq!(get(&format!("{base}/{altered}")).await.status(), StatusCode::NOT_FOUND, "{altered}");
    }
    let now = node.app.clock.now();
    node.app.clock.set(now + media::link::LIFETIME + TimeDelta::seconds(1));
    assert_eq!(get(&url).await.status(), StatusCode::NOT_FOUND, "expired");
    node.app.clock.set(now);
    assert_eq!(get(&url).await.status(), StatusCode::OK);
    Client::send(tenant.request(Method::DELETE, &format!("/v1/media/{}", text(&stored, "id")))).await;
    assert_eq!(get(&url).await.status(), StatusCode::NOT_FOUND, "deleted");
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_elsewhere_is_fetched_once_for_a_message_and_its_faults_are_told_apart() {
    let world = World::new().await;
    let node = world.node_with(&[Role::Api, Role::Dispatch], |config| {
        config.timings.send_timeout = Duration::from_secs(2);
    });
    let tenant = world.tenant(&node.base, "one").await;
    let (session, _) = tenant.session("first").await;
    let owner = own(&tenant).await;
    let elsewhere = Receiver::start();
    elsewhere.answer_next(Reply::status(302).header("Location", "/moved/a%20cat.gif"));
    elsewhere.answer_next(Reply { body: "GIF89a cat".to_owned(), ..Reply::default() });
    let message = tenant.send_text(&session, "+15550100001", "caption").await;
    let id: MessageId = text(&message, "id").parse().unwrap();
    let content = serde_json::json!({"media": {"url": elsewhere.url("/cat")}});
    let sql = world.db.connect().await;
    sql.execute("UPDATE messages SET content = $1::text::jsonb", &[&content.to_string()]).await.unwrap();
    let content: MediaContent = serde_json::from_value(content["media"].clone()).unwrap();
    for _ in 0..3 {
        let file = media::hand_over(&node.app, owner, id, &content).await.unwrap();
        assert_eq!((file.mimetype.as_str(), file.filename.as_deref()), ("image/gif", Some("a cat.gif")));
    }
    assert_eq!(elsewhere.received().len(), 2, "the redirect and the file");
    assert_eq!(rows(&world).await, 1);

    let fetch = async |path: &str| media::keep_remote(&node.app, owner, &elsewhere.url(path), None).await.unwrap_err();
    for (reply, failure) in [
        (Reply::status(404), Some(FailureCode::MediaUnavailable)),
        (Reply::status(403), Some(FailureCode::MediaUnavailable)),
        (Reply::status(503), None),
        (Reply::status(429), None),
        (Reply::status(200), Some(FailureCode::MediaUnavailable)),
        (Reply::status(302).header("Location", "ftp://127.0.0.1/x"), Some(FailureCode::MediaUnavailable)),
        (Reply::status(200).delayed(Duration::from_secs(5)), None),
    ] {
        let told = format!("{reply:?}");
        elsewhere.answer_next(reply);
        let fault = fetch("/x").await;
        assert_eq!(fault.failure(), failure, "{told}: {fault}");
    }
    elsewhere.answer_always(Reply::status(302).header("Location", "/round"));
    assert!(matches!(fetch("/round").await, MediaError::Redirects));
    assert_eq!(rows(&world).await, 1, "what could not be fetched left nothing");
    assert_eq!(files(&world.media_folder()).len(), 1);

    let strict = world.node_with(&[], |config| config.allow_private_targets = false);
    let asked = elsewhere.received().len();
    for url in [elsewhere.url("/x"), "https://localhost/x".to_owned(), "https://169.254.169.254/latest".to_owned()] {
        let fault = media::keep_remote(&strict.app, owner, &url, None).await.unwrap_err();
        assert!(matches!(fault, MediaError::Refused(_)) && fault.failure().is_some(), "{url}: {fault}");
    }
    assert_eq!(elsewhere.received().len(), asked);
    node.node.stop().await;
    strict.node.stop().await;
}
