//! The routes, from outside.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use switchboard::http::{Options, Running, serve};

use super::support::{PLATFORM_KEY, Receiver, World, world};

struct Api {
    base: String,
    http: reqwest::Client,
    server: Running,
}

struct Answer {
    status: StatusCode,
    headers: reqwest::header::HeaderMap,
    body: Value,
}

impl Api {
    fn open(world: &World) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let server = serve(world.app.clone(), listener, Options { workers: 1, ..Options::default() }).unwrap();
        let _installed_already = rustls::crypto::ring::default_provider().install_default();
        Self {
            base: format!("http://{}/v1", server.address),
            http: reqwest::Client::builder().no_proxy().build().unwrap(),
            server,
        }
    }

    async fn ask(
        &self,
        world: &World,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<Value>,
    ) -> Answer {
        let mut request = self
            .http
            .request(method, format!("{}{path}", self.base))
            .bearer_auth(PLATFORM_KEY)
            .header("x-tenant-id", world.tenant.to_string());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.send().await.unwrap();
        let (status, headers) = (response.status(), response.headers().clone());
        let text = response.text().await.unwrap();
        let body = if text.is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap() };
        Answer { status, headers, body }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_lives_through_the_api() {
    world(|world| async move {
        let api = Api::open(&world);
        let receiver = Receiver::start(&[]).await;
        let new = json!({"url": receiver.url, "event_types": ["message.*"], "description": "orders"});
        let key = [("idempotency-key", "once")];
        let made = api.ask(&world, Method::POST, "/webhook-endpoints", &key, Some(new.clone())).await;
        assert_eq!(made.status, 201, "{}", made.body);
        let secret = made.body["secret"].as_str().unwrap().to_owned();
        assert!(secret.starts_with("whsec_"));
        let again = api.ask(&world, Method::POST, "/webhook-endpoints", &key, Some(new)).await;
        assert_eq!((again.status.as_u16(), &again.body), (201, &made.body));
        assert_eq!(again.headers["idempotency-replayed"], "true");
        let path = format!("/webhook-endpoints/{}", made.body["id"].as_str().unwrap());
        assert_eq!(made.headers["location"], format!("/v1{path}"));

        let shown = api.ask(&world, Method::GET, &path, &[], None).await;
        assert_eq!((shown.status.as_u16(), &shown.headers["etag"].to_str().unwrap()), (200, &"\"1\""));
        assert!(shown.body.get("secret").is_none());
        let listed = api.ask(&world, Method::GET, "/webhook-endpoints?limit=1", &[], None).await;
        assert_eq!((&listed.body["data"][0], &listed.body["next_cursor"]), (&shown.body, &Value::Null));
        let kept = api.ask(&world, Method::GET, &format!("{path}/secret"), &[], None).await;
        assert_eq!(kept.body, json!({"secret": secret}));
        let rotated = api.ask(&world, Method::POST, &format!("{path}/rotate-secret"), &[], None).await;
        assert_eq!(rotated.status, 200);
        assert_ne!(rotated.body["secret"], secret);

        let patch = json!({"description": null, "event_types": ["*"]});
        let stale = api.ask(&world, Method::PATCH, &path, &[("if-match", "\"1\"")], Some(patch.clone())).await;
        assert_eq!((stale.status.as_u16(), &stale.body["code"]), (412, &json!("precondition_failed")));
        let changed = api.ask(&world, Method::PATCH, &path, &[("if-match", "\"2\"")], Some(patch)).await;
        assert_eq!(
            (changed.status.as_u16(), &changed.body["version"], &changed.body["description"]),
            (200, &json!(3), &Value::Null)
        );

        let tested = api.ask(&world, Method::POST, &format!("{path}/test"), &[], None).await;
        assert_eq!(tested.status, 202);
        let mut worker = world.worker();
        assert_eq!(worker.step().await.unwrap(), 1);
        worker.finish().await;
        let got = receiver.got();
        assert_eq!(got[0].id(), tested.body["event_id"].as_str().unwrap());
        assert!(got[0].is_signed_with(&secret) && got[0].is_signed_with(rotated.body["secret"].as_str().unwrap()));
        let attempts = api.ask(&world, Method::GET, &format!("{path}/attempts"), &[], None).await;
        assert_eq!(attempts.body["data"][0]["response_status"], 204);
        assert_eq!(attempts.body["data"][0]["event_type"], "test.ping");

        // A replay gives what the endpoint is subscribed to, and no tests.
        world.emit(&["message.sent"]).await;
        let since = json!({"since": "2020-01-01T00:00:00Z"});
        let replayed = api.ask(&world, Method::POST, &format!("{path}/replay"), &[], Some(since)).await;
        assert_eq!((replayed.status.as_u16(), &replayed.body), (202, &json!({"count": 1})));

        let other = world.another_tenant().await;
        for (method, tail, body) in [
            (Method::GET, "", None),
            (Method::PATCH, "", Some(json!({"enabled": false}))),
            (Method::DELETE, "", None),
            (Method::GET, "/secret", None),
            (Method::POST, "/rotate-secret", None),
            (Method::POST, "/test", None),
            (Method::GET, "/attempts", None),
            (Method::POST, "/replay", Some(json!({"since": "2020-01-01T00:00:00Z"}))),
        ] {
            let foreign = api.ask(&other, method.clone(), &format!("{path}{tail}"), &[], body.clone()).await;
            let missing_path = format!("/webhook-endpoints/00000000-0000-7000-8000-000000000000{tail}");
            let missing = api.ask(&other, method.clone(), &missing_path, &[], body).await;
            assert_eq!((foreign.status.as_u16(), missing.status.as_u16()), (404, 404), "{method} {tail}");
            assert_eq!(foreign.body["detail"], missing.body["detail"]);
        }

        let off = api.ask(&world, Method::PATCH, &path, &[], Some(json!({"enabled": false}))).await;
        assert_eq!(off.body["enabled"], false);
        let refused = api.ask(&world, Method::POST, &format!("{path}/test"), &[], None).await;
        assert_eq!((refused.status.as_u16(), &refused.body["code"]), (409, &json!("conflict")));
        assert_eq!(api.ask(&world, Method::DELETE, &path, &[], None).await.status, 204);
        assert_eq!(api.ask(&world, Method::GET, &path, &[], None).await.status, 404);
        api.server.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broken_rules_are_named() {
    world(|world| async move {
        let api = Api::open(&world);
        for (body, field, code) in [
            (json!({"event_types": ["*"]}), "url", "required"),
            (json!({"url": "https://example.com"}), "event_types", "required"),
            (json!({"url": "https://example.com", "event_types": []}), "event_types", "required"),
            (json!({"url": "https://example.com", "event_types": ["x"]}), "event_types", "unknown_event_type"),
            (json!({"url": "x", "event_types": ["*"]}), "url", "invalid_url"),
            (json!({"url": "https://example.com", "event_types": ["*"], "secret": "x"}), "secret", "unknown_field"),
        ] {
            let refused = api.ask(&world, Method::POST, "/webhook-endpoints", &[], Some(body)).await;
            assert_eq!(refused.status, 422);
            assert_eq!(
                (&refused.body["errors"][0]["field"], &refused.body["errors"][0]["code"]),
                (&json!(field), &json!(code))
            );
        }
        let (id, _) = world.endpoint("https://example.com/", &["*"]).await;
        for (body, field) in [
            (json!({"since": "2999-01-01T00:00:00Z"}), "since"),
            (json!({"since": "2020-01-01T00:00:00Z", "until": "2019-01-01T00:00:00Z"}), "until"),
            (json!({"since": "-262143-01-01T00:00:00Z", "until": "0000-01-01T00:00:00Z"}), "until"),
            (json!({"since": "yesterday"}), "since"),
            (json!({}), "since"),
        ] {
            let refused =
                api.ask(&world, Method::POST, &format!("/webhook-endpoints/{id}/replay"), &[], Some(body)).await;
            assert_eq!(
                (refused.status.as_u16(), &refused.body["errors"][0]["field"]),
                (422, &json!(field)),
                "{}",
                refused.body
            );
        }
        api.server.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_are_read_page_by_page() {
    world(|world| async move {
        let api = Api::open(&world);
        let ids = world.emit(&["message.sent", "session.qr", "message.read", "message.sent", "message.failed"]).await;
        world.fan_out(5).await;
        let mut seen = Vec::new();
        let mut path = "/events?limit=2&type=message.*".to_owned();
        loop {
            let page = api.ask(&world, Method::GET, &path, &[], None).await;
            assert_eq!(page.status, 200, "{}", page.body);
            seen.extend(
                page.body["data"].as_array().unwrap().iter().map(|event| event["id"].as_str().unwrap().to_owned()),
            );
            let Some(cursor) = page.body["next_cursor"].as_str() else { break };
            path = format!("/events?limit=2&type=message.*&cursor={cursor}");
        }
        let expected: Vec<_> = [0, 2, 3, 4].iter().map(|index: &usize| ids[*index].to_string()).collect();
        assert_eq!(seen, expected);
        let rest = api.ask(&world, Method::GET, &format!("/events?after={}", ids[3]), &[], None).await;
        assert_eq!(rest.body["data"].as_array().unwrap().len(), 1);
        assert_eq!(rest.body["data"][0]["type"], "message.failed");
        assert_eq!(rest.body["data"][0]["data"]["body"], "Grüße \"quoted\" 👍");
        let long_ago = api.ask(&world, Method::GET, "/events?after=2020-01-01T00:00:00Z", &[], None).await;
        assert_eq!(long_ago.body["data"].as_array().unwrap().len(), 5);
        for (query, field) in [
            ("after=nothing", "after"),
            ("after=01994f3e-6d4f-7cc3-98d5-8f1c1f0a2b3c", "after"),
            ("cursor=!", "cursor"),
            ("limit=0", "limit"),
            ("type=message", "type"),
            ("typ=message", "typ"),
        ] {
            let refused = api.ask(&world, Method::GET, &format!("/events?{query}"), &[], None).await;
            assert_eq!((refused.status.as_u16(), &refused.body["errors"][0]["field"]), (422, &json!(field)), "{query}");
        }
        api.server.stop().await;
    })
    .await;
}
