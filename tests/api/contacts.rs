//! `/v1/contacts`, as WAHA's webhooks fill it.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::world::{Answer, Client, Inside, PATIENCE, text};
use crate::support::{World, eventually};

use super::conversations::Phone;

const ANA: &str = "15550107001@c.us";
const ANA_HIDDEN: &str = "77007001@lid";

async fn patch(client: &Client, path: &str, version: Option<&str>, body: &Value) -> Answer {
    let mut request = client.request(Method::PATCH, path).json(body);
    if let Some(version) = version {
        request = request.header("if-match", version);
    }
    Client::send(request).await
}

/// The contacts, once there are so many.
async fn contacts(client: &Client, query: &str, count: usize) -> Vec<Value> {
    eventually(PATIENCE, &format!("{count} contacts{query}"), async || {
        let list = client.get(&format!("/v1/contacts{query}")).await.expect(StatusCode::OK);
        list["data"].as_array().filter(|data| data.len() == count).cloned()
    })
    .await
}

async fn start() -> (World, Inside, Client) {
    let world = World::new().await;
    let node = world.node();
    let tenant = world.tenant(&node.base, "one").await;
    (world, node, tenant)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn contacts_are_listed_found_and_changed() {
    let (world, node, tenant) = start().await;
    let phone = Phone::of(&world, &node, &tenant, "one").await;
    phone.text("A1", ANA, "hello").named("Ana Silva").post().await;
    phone.text("B1", "15550107002@c.us", "hello").named("Ben").post().await;
    phone.text("C1", "5511987657001@c.us", "hello").named("Änne").post().await;
    let listed = contacts(&tenant, "", 3).await;
    let first = tenant.get("/v1/contacts?limit=2").await.expect(StatusCode::OK);
    let rest = tenant.get(&format!("/v1/contacts?limit=2&cursor={}", text(&first, "next_cursor"))).await;
    let rest = rest.expect(StatusCode::OK);
    let pages: Vec<&Value> = first["data"].as_array().unwrap().iter().chain(rest["data"].as_array().unwrap()).collect();
    assert_eq!(pages.len(), 3);
    assert!(listed.iter().zip(pages).all(|(one, other)| one["id"] == other["id"]));

    let found = contacts(&tenant, "?phone=%2B15550107001", 1).await;
    let id = text(&found[0], "id").to_owned();
    assert_eq!((text(&found[0], "phone"), &found[0]["name"]), ("+15550107001", &Value::Null));
    // With the ninth digit or without, it is one person.
    for number in ["5511987657001", "551187657001"] {
        contacts(&tenant, &format!("?phone={number}"), 1).await;
    }
    contacts(&tenant, "?phone=%2B15550109999", 0).await;
    for bad in ["?phone=x", "?phone=120363000000000001@g.us", "?limit=0", "?cursor=x", "?name=x"] {
        tenant.get(&format!("/v1/contacts{bad}")).await.expect(StatusCode::UNPROCESSABLE_ENTITY);
    }

    let path = format!("/v1/contacts/{id}");
    let answer = tenant.get(&path).await;
    let version = answer.header("etag").to_owned();
    let shown = answer.expect(StatusCode::OK);
    assert_eq!((&shown["wa_ids"], &shown["merges"]), (&json!([ANA]), &json!([])));
    assert_eq!((&shown["chats"][0]["chat_id"], &shown["chats"][0]["session_id"]), (&json!(ANA), &json!(phone.session)));

    let change = json!({"name": "Ana (Lisbon)", "tags": ["vip", "new", "vip"], "notes": "Prefers mornings"});
    let changed = patch(&tenant, &path, Some(&version), &change).await.expect(StatusCode::OK);
    assert_eq!((&changed["tags"], text(&changed, "notes")), (&json!(["new", "vip"]), "Prefers mornings"));
    patch(&tenant, &path, Some(&version), &change).await.expect(StatusCode::PRECONDITION_FAILED);
    let cleared = patch(&tenant, &path, None, &json!({"notes": null})).await.expect(StatusCode::OK);
    assert_eq!((&cleared["notes"], text(&cleared, "name")), (&Value::Null, "Ana (Lisbon)"));
    for bad in [
        json!({"name": ""}),
        json!({"tags": [" x"]}),
        json!({"tags": [""]}),
        json!({"phone": "+1"}),
        json!({"notes": "x".repeat(5001)}),
    ] {
        patch(&tenant, &path, None, &bad).await.expect(StatusCode::UNPROCESSABLE_ENTITY);
    }
    contacts(&tenant, "?tag=vip", 1).await;
    contacts(&tenant, "?tag=none", 0).await;
    for beginning in ["ana", "ANA%20(l"] {
        assert_eq!(text(&contacts(&tenant, &format!("?q={beginning}"), 1).await[0], "id"), id);
    }
    contacts(&tenant, "?q=nobody", 0).await;
    contacts(&tenant, "?q=%25", 0).await;
    // Another tenant has none of it.
    let other = world.tenant(&node.base, "two").await;
    contacts(&other, "", 0).await;
    other.get(&path).await.expect(StatusCode::NOT_FOUND);
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_contacts_are_merged_and_told_apart_again() {
    let (world, node, tenant) = start().await;
    let phone = Phone::of(&world, &node, &tenant, "one").await;
    phone.text("A1", ANA, "by number").post().await;
    contacts(&tenant, "", 1).await;
    phone.text("A2", ANA_HIDDEN, "hidden").post().await;
    let both = contacts(&tenant, "", 2).await;
    let (hidden, known) = (text(&both[0], "id").to_owned(), text(&both[1], "id").to_owned());
    patch(&tenant, &format!("/v1/contacts/{hidden}"), None, &json!({"tags": ["a"]})).await.expect(StatusCode::OK);
    patch(&tenant, &format!("/v1/contacts/{known}"), None, &json!({"tags": ["b"]})).await.expect(StatusCode::OK);

    let path = format!("/v1/contacts/{known}/merge");
    for _again in 0..2 {
        let merged = tenant.post(&path, &json!({"contact_id": hidden})).await.expect(StatusCode::OK);
        assert_eq!((text(&merged, "phone"), text(&merged, "lid")), ("+15550107001", ANA_HIDDEN));
        assert_eq!((&merged["tags"], merged["merges"].as_array().unwrap().len()), (&json!(["a", "b"]), 1));
        assert_eq!(merged["chats"].as_array().unwrap().len(), 1);
    }
    let answered = tenant.get(&format!("/v1/contacts/{hidden}")).await.expect(StatusCode::OK);
    assert_eq!(text(&answered, "id"), known, "the id of the merged one answers the kept one");
    let nobody = json!({"contact_id": "01900000-0000-7000-8000-000000000000"});
    tenant.post(&path, &nobody).await.expect(StatusCode::UNPROCESSABLE_ENTITY);
    let conversations = tenant.get(&format!("/v1/conversations?contact_id={hidden}")).await.expect(StatusCode::OK);
    assert_eq!(
        (conversations["data"].as_array().unwrap().len(), &conversations["data"][0]["message_count"]),
        (1, &json!(2))
    );
    let conversation = text(&conversations["data"][0], "id").to_owned();
    let messages = tenant.get(&format!("/v1/conversations/{conversation}/messages")).await.expect(StatusCode::OK);
    assert_eq!(messages["data"].as_array().unwrap().len(), 2);

    let merge = text(&answered["merges"][0], "id").to_owned();
    let undo = format!("/v1/contacts/{known}/merges/{merge}/undo");
    for _again in 0..2 {
        let restored = tenant.post(&undo, &Value::Null).await.expect(StatusCode::OK);
        assert_eq!(
            (text(&restored, "id"), text(&restored, "lid"), &restored["phone"]),
            (hidden.as_str(), ANA_HIDDEN, &Value::Null)
        );
        assert_eq!((&restored["tags"], restored["chats"].as_array().unwrap().len()), (&json!(["a"]), 1));
    }
    let kept = tenant.get(&format!("/v1/contacts/{known}")).await.expect(StatusCode::OK);
    assert_eq!((&kept["tags"], &kept["lid"]), (&json!(["b"]), &Value::Null));
    assert!(kept["merges"][0]["undone_at"].is_string());
    let kept = tenant.get(&format!("/v1/conversations/{conversation}")).await.expect(StatusCode::OK);
    assert_eq!((&kept["message_count"], &kept["chat_id"]), (&json!(1), &json!(ANA)));
    let unknown = format!("/v1/contacts/{known}/merges/{hidden}/undo");
    tenant.post(&unknown, &Value::Null).await.expect(StatusCode::NOT_FOUND);
    node.node.stop().await;
}
