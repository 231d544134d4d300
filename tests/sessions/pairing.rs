//! The doors of pairing: forms of the code, codes to type, and links.

use chrono::{DateTime, Utc};
use serde_json::json;
use switchboard::domain::ids::{SessionId, TenantId};
use switchboard::simulator::{Fault, FaultRule};

use super::stand::{Answer, Doors, Node, Stand, session};

struct Scanning {
    stand: Stand,
    doors: Doors,
    node: Node,
    tenant: TenantId,
    id: SessionId,
    external: String,
    key: String,
    path: String,
}

impl Scanning {
    async fn new() -> Self {
        Self::at_speed(1.0).await
    }

    async fn at_speed(speed: f64) -> Self {
        let stand = Stand::at_speed(speed).await;
        let doors = stand.open();
        let tenant = stand.tenant("a").await;
        stand.server(5).await;
        let key = doors.key(tenant, &["*"]).await;
        let node = Stand::reconcile(&stand.app);
        let row = stand.create(tenant, session("a")).await.unwrap();
        stand.becomes(tenant, row.id, "scan_qr").await;
        let path = format!("/v1/sessions/{}", row.id);
        Self { stand, doors, node, tenant, id: row.id, external: row.external_session_id, key, path }
    }

    async fn post(&self, rest: &str, body: serde_json::Value) -> Answer {
        self.doors.post(&format!("{}/{rest}", self.path), &self.key, body).await
    }

    /// A link's path on these doors.
    async fn link(&self, body: serde_json::Value) -> String {
        let link = self.post("pairing-link", body).await.expect(201);
        path_of(link.json()["url"].as_str().unwrap())
    }

    async fn end(self) {
        self.node.stop().await;
        self.doors.close().await;
    }
}

/// What follows the public address, which these tests do not listen on.
fn path_of(url: &str) -> String {
    url.strip_prefix("http://127.0.0.1:1/base").unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_code_is_drawn_for_a_terminal() {
    let one = Scanning::new().await;
    let path = format!("{}/qr", one.path);
    let drawn =
        one.doors.send(one.doors.request("GET", &path, &one.key).header("Accept", "text/plain")).await.expect(200);
    assert_eq!(
        (drawn.header("content-type"), drawn.header("cache-control")),
        (Some("text/plain; charset=utf-8"), Some("no-store"))
    );
    let text = String::from_utf8(drawn.bytes).unwrap();
    let first = text.lines().next().unwrap();
    let width = first.chars().filter(|ink| *ink == '█').count();
    assert_eq!(first, format!("\u{1b}[97;40m{}\u{1b}[0m", "█".repeat(width)), "the quiet zone");
    assert!(text.lines().count() * 2 >= width && width > 40, "{width} wide");
    let pairing = one.doors.get(&one.path, &one.key).await.expect(200).json()["pairing"].clone();
    assert_eq!((&pairing["step"], &pairing["rotation"], &pairing["of"]), (&json!("qr"), &json!(1), &json!(6)));
    one.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_code_to_type_or_the_way_to_the_picture() {
    let one = Scanning::new().await;
    let answer = one.post("pairing-code", json!({"phone": "+1 (555) 010-0001"})).await.expect(200);
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    let code = answer.json()["code"].as_str().unwrap().to_owned();
    assert_eq!((code.len(), answer.json().as_object().unwrap().len()), (9, 1));
    for (body, field) in [
        (json!({}), "phone"),
        (json!({"phone": ""}), "phone"),
        (json!({"phone": "0171 2345678"}), "phone"),
        (json!({"phone": "12345@g.us"}), "phone"),
        (json!({"phone": "+15550100001", "method": "sms"}), "method"),
    ] {
        assert_eq!(
            one.post("pairing-code", body.clone()).await.problem(422),
            ("validation_failed".into(), field.into()),
            "{body}"
        );
    }
    // What is not to be had names the fallback.
    let control = one.stand.simulator.control();
    for (fault, status) in [(Fault::BadRequest400, 409), (Fault::BadGateway502, 503), (Fault::Error500Before, 503)] {
        control.fault_once("/api/{session}/auth/request-code", fault);
        let refused = one.post("pairing-code", json!({"phone": "+15550100001"})).await;
        refused.problem(status);
        let detail = refused.json()["detail"].as_str().unwrap().to_owned();
        assert!(detail.contains(&format!("GET {}/qr", one.path)), "{fault:?}: {detail}");
    }
    // Eight in ten minutes, the ones that failed included.
    for _ in 0..4 {
        one.post("pairing-code", json!({"phone": "+15550100001"})).await.expect(200);
    }
    let many = one.post("pairing-code", json!({"phone": "+15550100001"})).await;
    assert_eq!((many.problem(429).0.as_str(), many.header("retry-after")), ("rate_limited", Some("300")));
    one.stand
        .sql()
        .await
        .batch_execute("UPDATE waha_sessions SET pairing_asks_since = now() - interval '11 min'")
        .await
        .unwrap();
    one.post("pairing-code", json!({"phone": "+15550100001"})).await.expect(200);

    let reads = one.doors.key(one.tenant, &["sessions:read"]).await;
    for (rest, body) in [
        ("pairing-code", json!({"phone": "+15550100001"})),
        ("pairing-link", json!({})),
        ("passkey", json!({"credential": {}})),
        ("passkey/confirm", json!({})),
    ] {
        let path = format!("{}/{rest}", one.path);
        assert_eq!(one.doors.post(&path, &reads, body).await.problem(403).0, "forbidden", "{rest}");
    }
    control.scan(&one.external).unwrap();
    one.stand.becomes(one.tenant, one.id, "working").await;
    let late = one.post("pairing-code", json!({"phone": "+15550100001"})).await;
    assert_eq!(late.problem(409).0, "conflict");
    assert_eq!(one.post("pairing-link", json!({})).await.problem(409).0, "conflict");
    one.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn links_are_made_once_for_a_key_and_within_bounds() {
    let one = Scanning::new().await;
    for seconds in [59, 3601, -1, 0] {
        let refused = one.post("pairing-link", json!({"expires_in_seconds": seconds})).await;
        assert_eq!(refused.problem(422).1, "expires_in_seconds");
    }
    let before = one.stand.app.clock.now();
    let link = one.post("pairing-link", json!({})).await.expect(201);
    assert_eq!(link.header("cache-control"), Some("no-store"));
    let expires_at: DateTime<Utc> = link.json()["expires_at"].as_str().unwrap().parse().unwrap();
    assert!((890..=901).contains(&(expires_at - before).num_seconds()));
    let path = format!("{}/pairing-link", one.path);
    let keyed = |seconds: i64| {
        let request = one.doors.request("POST", &path, &one.key).header("Idempotency-Key", "k1");
        request.json(&json!({"expires_in_seconds": seconds}))
    };
    let first = one.doors.send(keyed(60)).await.expect(201);
    let again = one.doors.send(keyed(60)).await.expect(201);
    assert_eq!((again.json(), again.header("idempotency-replayed")), (first.json(), Some("true")));
    assert_eq!(one.doors.send(keyed(61)).await.problem(422).0, "idempotency_key_reused");
    let token = path_of(first.json()["url"].as_str().unwrap());
    let kept =
        format!("SELECT count(*) FROM idempotency_keys k WHERE position('{token}' in encode(response, 'escape')) > 0");
    assert_eq!(one.stand.count(&kept).await, 0, "the link is kept sealed");
    one.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_opens_its_page_and_every_other_looks_the_same() {
    let one = Scanning::new().await;
    let link = one.link(json!({})).await;
    // No key: the link is all there is.
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let bare = |method: &str, path: &str| {
        let url = one.doors.request(method, path, "").build().unwrap().url().clone();
        client.request(reqwest::Method::from_bytes(method.as_bytes()).unwrap(), url)
    };
    let page = one.doors.send(bare("GET", &link)).await.expect(200);
    assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
    for (name, value) in [
        ("cache-control", "no-store"),
        ("referrer-policy", "no-referrer"),
        ("x-frame-options", "DENY"),
        ("x-content-type-options", "nosniff"),
        ("x-robots-tag", "noindex, nofollow, noarchive"),
    ] {
        assert_eq!(page.header(name), Some(value), "{name}");
    }
    let policy = page.header("content-security-policy").unwrap().to_owned();
    let html = String::from_utf8(page.bytes).unwrap();
    let nonce = policy.split("script-src 'nonce-").nth(1).unwrap().split('\'').next().unwrap();
    assert!(policy.starts_with("default-src 'none';") && policy.contains("frame-ancestors 'none'"));
    assert!(html.matches(&format!("nonce=\"{nonce}\"")).count() == 2 && !html.contains("{{"));
    assert!(html.contains("lang=\"en\"") && html.contains("aria-live"));
    assert!(!html.contains("http://") && !html.contains("https://"), "nothing from elsewhere");
    let second = one.doors.send(bare("GET", &link)).await.expect(200);
    assert!(!second.header("content-security-policy").unwrap().contains(nonce), "a fresh nonce each time");

    // Altered, of a session that is gone, of nobody: one answer.
    let other = one.stand.create(one.tenant, session("b")).await.unwrap();
    let gone =
        one.doors.post(&format!("/v1/sessions/{}/pairing-link", other.id), &one.key, json!({})).await.expect(201);
    let gone = path_of(gone.json()["url"].as_str().unwrap());
    one.doors.send(bare("GET", &gone)).await.expect(200);
    let delete = format!("UPDATE waha_sessions SET deleted_at = now() WHERE id = '{}'", other.id);
    one.stand.sql().await.batch_execute(&delete).await.unwrap();
    let mut altered: Vec<char> = link.chars().collect();
    altered[40] = if altered[40] == 'A' { 'B' } else { 'A' };
    let altered: String = altered.into_iter().collect();
    let mut pages = Vec::new();
    for path in [altered.as_str(), &gone, "/pair/x", &format!("{link}A")] {
        let answer = one.doors.send(bare("GET", path)).await.expect(404);
        let nonce = answer
            .header("content-security-policy")
            .unwrap()
            .split("'nonce-")
            .nth(1)
            .unwrap()
            .chars()
            .take(24)
            .collect::<String>();
        pages.push(String::from_utf8(answer.bytes).unwrap().replace(&nonce, ""));
        for (method, rest) in [("GET", "events"), ("POST", "restart")] {
            let answer = one.doors.send(bare(method, &format!("{path}/{rest}"))).await;
            assert_eq!(answer.problem(404).0, "not_found", "{method} {path}/{rest}");
        }
        let code = bare("POST", &format!("{path}/code")).json(&json!({"phone": "+15550100001"}));
        assert_eq!(one.doors.send(code).await.problem(404).0, "not_found");
    }
    assert!(pages.iter().all(|page| *page == pages[0] && page.contains("cannot be used")));

    // While it scans there are codes to type, and no new QR codes.
    let code = |phone: &str| bare("POST", &format!("{link}/code")).json(&json!({"phone": phone}));
    assert_eq!(one.doors.send(code("nonsense")).await.problem(422).1, "phone");
    let answer = one.doors.send(code("+15550100001")).await.expect(200);
    assert_eq!(answer.json()["code"].as_str().unwrap().len(), 9);
    let restart = || bare("POST", &format!("{link}/restart"));
    assert_eq!(one.doors.send(restart()).await.problem(409).0, "conflict");

    // The link opens nothing else.
    let token = link.trim_start_matches("/pair/");
    for path in ["/v1/sessions".to_owned(), one.path.clone(), format!("{}/qr", one.path)] {
        assert_eq!(one.doors.get(&path, token).await.status, 401);
    }
    one.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_failed_is_restarted_by_the_link_until_it_has_worked() {
    let one = Scanning::at_speed(20.0).await;
    let (link, control) = (one.link(json!({})).await, one.stand.simulator.control());
    let post = |rest: &str| one.doors.request("POST", &format!("{link}/{rest}"), "");
    // The codes run out: 160 s, twenty times as fast.
    let failed = one.stand.becomes(one.tenant, one.id, "failed").await;
    assert!(failed.error_message.unwrap().contains("Nobody scanned"));
    one.doors.send(post("restart")).await.expect(202);
    one.stand.becomes(one.tenant, one.id, "scan_qr").await;
    let restarts = format!("POST /api/sessions/{}/restart", one.external);
    assert_eq!(one.stand.counter.calls(&restarts).get(&restarts), Some(&1));
    control.scan(&one.external).unwrap();
    one.stand.becomes(one.tenant, one.id, "working").await;
    assert_eq!(one.doors.send(post("restart")).await.problem(409).0, "conflict");
    // It is lost again: this link has done what it was made for.
    control.phone_logout(&one.external).unwrap();
    let ended = one.stand.becomes(one.tenant, one.id, "failed").await;
    assert!(ended.error_message.unwrap().contains("logged out"));
    assert_eq!(one.doors.send(post("restart")).await.problem(409).0, "conflict");
    // A new one may.
    let link = one.link(json!({})).await;
    one.doors.send(one.doors.request("POST", &format!("{link}/restart"), "")).await.expect(202);
    one.stand.becomes(one.tenant, one.id, "scan_qr").await;

    // A server that shows no code is no reason to give up.
    control.add_fault(FaultRule::always("/api/{session}/auth/qr", Fault::BadGateway502).times(2));
    assert_eq!(one.doors.get(&format!("{}/qr", one.path), &one.key).await.problem(503).0, "unavailable");
    one.end().await;
}
