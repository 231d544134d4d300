//! Every route that takes an id, called with another tenant's key: driven by the OpenAPI document, so that a new route is
//! covered the moment it is described.

use std::collections::BTreeMap;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use switchboard::http::openapi;

use crate::support::world::{Client, PATIENCE, text};
use crate::support::{Receiver, World, eventually};

/// An id that nothing has.
const NOBODY: &str = "01900000-0000-7000-8000-000000000000";

/// What stands for the ids in a path: the path up to the parameter names the kind of resource.
async fn resources(world: &World, base: &str, tenant: &Client) -> BTreeMap<&'static str, String> {
    let receiver = Receiver::start();
    let endpoint = json!({"url": receiver.url("/"), "event_types": ["*"]});
    let endpoint = tenant.post("/v1/webhook-endpoints", &endpoint).await.expect(StatusCode::CREATED);
    let (session, _) = tenant.session("mine").await;
    let message = tenant.send_text(&session, "+15550100001", "mine").await;
    tenant.message_with(text(&message, "id"), "read").await;
    let key = tenant.post("/v1/api-keys", &json!({"name": "mine", "scopes": ["messages:read"]})).await;
    let key = key.expect(StatusCode::CREATED);
    let pool = json!({"name": "mine", "session_ids": [session]});
    let pool = tenant.post("/v1/sender-pools", &pool).await.expect(StatusCode::CREATED);
    let file = tenant.upload("mine.txt", "text/plain", b"mine").await.expect(StatusCode::CREATED);
    // The message made a contact and a conversation.
    let of = async |path: &'static str| {
        eventually(PATIENCE, path, async || tenant.get(path).await.body["data"][0]["id"].as_str().map(str::to_owned))
            .await
    };
    let (contact, conversation) = (of("/v1/contacts").await, of("/v1/conversations").await);
    let erased = "01994f3e-5555-7cc3-98d5-8f1c1f0a2b3d";
    let another = format!(
        "INSERT INTO contacts (tenant_id, id, name, created_at, updated_at)
         SELECT id, '{erased}', 'mine', now(), now() FROM tenants WHERE name = 'mine'"
    );
    world.db.connect().await.batch_execute(&another).await.unwrap();
    let erase = tenant.request(Method::DELETE, &format!("/v1/contacts/{erased}"));
    let erasure = Client::send(erase).await.expect(StatusCode::ACCEPTED);
    let platform = world.platform(base);
    let first = |list: Value| text(&list["data"][0], "id").to_owned();
    BTreeMap::from([
        ("/v1/webhook-endpoints/", text(&endpoint, "id").to_owned()),
        ("/v1/sessions/", session),
        ("/v1/sender-pools/", text(&pool, "id").to_owned()),
        ("/v1/messages/", text(&message, "id").to_owned()),
        ("/v1/contacts/", contact),
        ("/v1/conversations/", conversation),
        ("/v1/media/", text(&file, "id").to_owned()),
        ("/v1/erasures/", text(&erasure, "id").to_owned()),
        ("/v1/api-keys/", text(&key, "id").to_owned()),
        ("/v1/tenants/", first(platform.get("/v1/tenants").await.body)),
        ("/v1/waha-servers/", first(platform.get("/v1/waha-servers").await.body)),
    ])
}

fn example(operation: &Value, document: &Value) -> Option<Value> {
    let content = operation.pointer("/requestBody/content/application~1json")?;
    let schema = content.pointer("/schema")?;
    let named = schema["$ref"].as_str().and_then(|reference| reference.strip_prefix('#'));
    let resolved = named.and_then(|pointer| document.pointer(pointer)).unwrap_or(schema);
    let candidates = [content.get("example"), resolved.get("example"), resolved.pointer("/examples/0")];
    candidates.into_iter().flatten().next().cloned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_tenants_id_answers_like_one_that_does_not_exist() {
    let world = World::new().await;
    let node = world.node();
    let mine = world.tenant(&node.base, "mine").await;
    let other = world.tenant(&node.base, "other").await;
    let ids = resources(&world, &node.base, &mine).await;
    let document = openapi::document();
    let mut called = Vec::new();
    for (path, operations) in document["paths"].as_object().unwrap() {
        let Some((prefix, rest)) = path.strip_prefix("/v1").and(path.split_once('{')) else { continue };
        let Some((_, rest)) = rest.split_once('}') else { continue };
        let rest = rest.replace("{phone}", "+15550100001").replace("{merge_id}", NOBODY);
        assert!(!rest.contains('{'), "{path}: teach this test about a second id");
        let Some(id) = ids.get(prefix) else {
            panic!("{path}: teach this test about a resource of this kind");
        };
        let platform = ["/v1/tenants/", "/v1/waha-servers/"].contains(&prefix);
        for (method, operation) in operations.as_object().unwrap() {
            let method: Method = method.to_uppercase().parse().unwrap();
            let body = example(operation, &document);
            let call = async |client: &Client, id: &str| {
                let mut request = client.request(method.clone(), &format!("{prefix}{id}{rest}"));
                if let Some(body) = &body {
                    request = request.json(body);
                }
                Client::send(request).await
            };
            let (foreign, absent) = (call(&other, id).await, call(&other, NOBODY).await);
            let expected = if platform { StatusCode::FORBIDDEN } else { StatusCode::NOT_FOUND };
            assert_eq!(foreign.status, expected, "{method} {path}: {:?}", foreign.body);
            let strip = |mut body: Value| {
                body.as_object_mut().unwrap().remove("request_id");
                body
            };
            assert_eq!(
                strip(foreign.body),
                strip(absent.body),
                "{method} {path} tells a foreign id from an absent one"
            );
            called.push(format!("{method} {path}"));
        }
    }
    assert!(called.len() >= 12, "the document describes the routes: {called:?}");
    // Nothing of it had an effect.
    let list = mine.get("/v1/messages").await.expect(StatusCode::OK);
    assert_eq!(list["data"].as_array().unwrap().len(), 1);
    let empty = other.get("/v1/messages").await.expect(StatusCode::OK);
    assert_eq!(empty["data"].as_array().unwrap().len(), 0);
    node.node.stop().await;
}
