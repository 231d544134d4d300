//! Erasing a person: afterwards neither the database nor the storage holds a word or a number of theirs.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use switchboard::retention::erasure;
use switchboard::serve::Role;

use super::{count, days, dump, later};
use crate::support::receiver::Answer as Reply;
use crate::support::world::{Client, PATIENCE, text};
use crate::support::{Receiver, World, eventually};

const NUMBER: &str = "15550107777";
const LID: &str = "77000123";

/// Whether any file below `folder` holds `words`.
fn stored(folder: &Path, words: &str) -> bool {
    let Ok(entries) = std::fs::read_dir(folder) else { return false };
    entries.map(|entry| entry.unwrap().path()).any(|path| {
        path.is_dir() && stored(&path, words)
            || std::fs::read(&path).is_ok_and(|bytes| String::from_utf8_lossy(&bytes).contains(words))
    })
}

/// What the person left where the tests' WAHA does not reach: as rows.
fn rows(contact: &str, merged: &str) -> String {
    format!(
        "INSERT INTO contacts (tenant_id, id, phone, lid, name, push_name, tags, notes, created_at, updated_at)
         SELECT id, '{contact}', '+{NUMBER}', '{LID}@lid', 'Grace Hopper', 'Grace', '{{Grace}}', 'Grace likes secretwords', now(), now()
         FROM tenants WHERE name = 'one';
         INSERT INTO contacts (tenant_id, id, lid, push_name, merged_into, created_at, updated_at)
         SELECT id, '{merged}', '{LID}@lid', 'Grace', '{contact}', now(), now() FROM tenants WHERE name = 'one';
         INSERT INTO contact_ids (tenant_id, key, contact_id, wa_id, created_at)
         SELECT id, key, '{contact}', key, now() FROM tenants, unnest(ARRAY['{NUMBER}@c.us', '{LID}@lid']) key WHERE name = 'one';
         INSERT INTO contact_merges (tenant_id, id, kept_id, merged_id, because, keys, kept, merged, at)
         SELECT id, gen_random_uuid(), '{contact}', '{merged}', 'message', '{{{LID}@lid}}', '{{\"phone\": \"+{NUMBER}\"}}', '{{\"lid\": \"{LID}@lid\"}}', now()
         FROM tenants WHERE name = 'one';
         INSERT INTO conversations (tenant_id, id, session_id, kind, contact_id, chat_id, name, created_at, updated_at)
         SELECT tenant_id, gen_random_uuid(), id, 'direct', '{contact}', '{NUMBER}@c.us', 'Grace', now(), now() FROM waha_sessions;
         INSERT INTO conversation_participants (tenant_id, session_id, chat_id, person, wa_id, told_at, created_at, updated_at)
         SELECT tenant_id, id, '120363000000000000@g.us', '{NUMBER}@c.us', '{LID}@lid', now(), now(), now() FROM waha_sessions;
         INSERT INTO message_reactions (tenant_id, session_id, waha_message_id, person, emoji, reacted_at, reported_at, created_at, updated_at)
         SELECT tenant_id, id, 'G2', '{LID}@lid', '!', now(), now(), now(), now() FROM waha_sessions;
         INSERT INTO poll_votes (tenant_id, session_id, waha_message_id, person, options, voted_at, reported_at, created_at, updated_at)
         SELECT tenant_id, id, 'G2', '{NUMBER}@c.us', '{{yes}}', now(), now(), now(), now() FROM waha_sessions;
         -- In a group: their own message, an answer that quotes it, one that mentions them, and one of somebody else.
         INSERT INTO messages (tenant_id, id, session_id, direction, message_type, chat_id, body, raw_payload, created_at, updated_at, status,
                               waha_message_id, sender_id, sender_alternative_id, sender_name, quoted_waha_id)
         SELECT tenant_id, gen_random_uuid(), id, 'inbound', 'text', '120363000000000000@g.us', m.body, m.raw::jsonb, now(), now(), 'received',
                m.waha_id, m.sender, m.alternative, 'Somebody', m.quoted
         FROM waha_sessions, (VALUES
             ('G1', 'secretwords for all', '{{\"body\": \"secretwords\", \"participant\": \"{LID}@lid\"}}', '{LID}@lid', '{NUMBER}@c.us', NULL),
             ('G2', 'an answer', '{{\"quoted\": \"secretwords\"}}', '15550108888@c.us', NULL, 'G1'),
             ('G3', 'hello @{NUMBER}, how are you?', '{{}}', '15550108888@c.us', NULL, NULL),
             ('G4', 'of somebody with 1{NUMBER}', '{{}}', '15550108888@c.us', NULL, NULL)) m (waha_id, body, raw, sender, alternative, quoted);
         INSERT INTO message_edits (tenant_id, session_id, waha_message_id, edit_id, body, edited_at, reported_at, created_at)
         SELECT tenant_id, id, 'G1', 'E1', 'more secretwords', now(), now(), now() FROM waha_sessions;
         INSERT INTO message_search (tenant_id, message_id, session_id, created_at, document)
         SELECT tenant_id, id, session_id, created_at, to_tsvector('message_text', body) FROM messages WHERE body IS NOT NULL ON CONFLICT DO NOTHING;
         INSERT INTO inbound_dead_letters (tenant_id, id, session_id, waha_server_id, received_at, reason, cause, body, created_at, updated_at)
         SELECT tenant_id, gen_random_uuid(), id, waha_server_id, now(), 'refused', '', '{{\"from\": \"{NUMBER}@c.us\", \"body\": \"secretwords\"}}', now(), now()
         FROM waha_sessions;
         INSERT INTO spool (tenant_id, session_id, waha_server_id, received_at, body)
         SELECT tenant_id, id, waha_server_id, now(), '{{\"from\": \"{NUMBER}@c.us\", \"body\": \"secretwords\"}}' FROM waha_sessions"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_left_of_an_erased_person() {
    let world = World::new().await;
    let node = world.node();
    let tenant = world.tenant(&node.base, "one").await;
    let receiver = Receiver::start();
    receiver.answer_always(Reply { body: format!("thanks, +{NUMBER}, for secretwords"), ..Reply::default() });
    let endpoint = json!({"url": receiver.url("/"), "event_types": ["*"]});
    tenant.post("/v1/webhook-endpoints", &endpoint).await.expect(StatusCode::CREATED);
    let (session, external) = tenant.session("first").await;
    // Out and in, edited, reacted to, with a file, and not yet sent.
    let to = format!("+{NUMBER}");
    let body = json!({"session_id": session, "to": to, "body": "secretwords of ours", "metadata": {"name": "Grace"}});
    let request = tenant.request(Method::POST, "/v1/messages").header("Idempotency-Key", "one").json(&body);
    let sent = Client::send(request).await.expect(StatusCode::ACCEPTED);
    let picture = json!({"session_id": session, "to": to, "type": "image", "body": "secretwords below",
        "media": {"data": STANDARD.encode("GIF89a secretwords"), "filename": "secretwords.gif"}});
    let picture = tenant.post("/v1/messages", &picture).await.expect(StatusCode::ACCEPTED);
    let kept = tenant.send_text(&session, "+15550108888", "words of somebody else").await;
    for message in [&sent, &picture, &kept] {
        tenant.message_with(text(message, "id"), "read").await;
    }
    let path = format!("/v1/messages/{}", text(&sent, "id"));
    let edit = tenant.request(Method::PATCH, &path).json(&json!({"body": "other secretwords"}));
    Client::send(edit).await.expect(StatusCode::OK);
    Client::send(tenant.request(Method::PUT, &format!("{path}/reaction")).json(&json!({"emoji": "\u{1f44d}"}))).await;
    let scheduled = json!({"session_id": session, "to": to, "body": "secretwords to come", "scheduled_at": switchboard::domain::clock::Clock::running().now() + days(3)});
    let scheduled = tenant.post("/v1/messages", &scheduled).await.expect(StatusCode::ACCEPTED);
    world.simulator.control().inbound_text(&external, NUMBER, "secretwords of theirs").unwrap();
    let sql = world.db.connect().await;
    eventually(PATIENCE, "everything to be told and indexed", async || {
        let pending = count(&sql, "SELECT count(*) FROM webhook_deliveries WHERE status = 'pending'").await;
        let inbound = count(&sql, "SELECT count(*) FROM webhook_deliveries d JOIN events e ON e.id = d.event_id WHERE e.type = 'message.received'").await;
        let indexed = count(&sql, "SELECT count(*) FROM message_search WHERE document @@ 'secretwords'").await;
        (pending == 0 && inbound == 1 && indexed == 3).then_some(())
    })
    .await;
    node.node.stop().await;
    let (contact, merged) = ("01994f3e-5555-7cc3-98d5-8f1c1f0a2b3c", "01994f3e-5555-7cc3-98d5-8f1c1f0a2b3d");
    // What the node may have found out by itself is written down here.
    sql.batch_execute("DELETE FROM conversations; DELETE FROM contact_ids; DELETE FROM contacts").await.unwrap();
    sql.batch_execute(&rows(contact, merged)).await.unwrap();
    let before = dump(&sql).await;
    for words in [NUMBER, LID, "secretwords", "Grace"] {
        assert!(before.contains(words), "{words}");
    }
    assert!(stored(&world.media_folder(), "secretwords"));

    // Asked for under the merged one's id; and asked again.
    let doors = world.node_with(&[Role::Api], |_| {});
    let tenant = tenant.at(&doors.base);
    let ask = async |id: &str| Client::send(tenant.request(Method::DELETE, &format!("/v1/contacts/{id}"))).await;
    let answer = ask(merged).await;
    let path = answer.header("location").to_owned();
    let receipt = answer.expect(StatusCode::ACCEPTED);
    assert_eq!((text(&receipt, "status"), text(&receipt, "contact_id")), ("pending", contact));
    assert_eq!(ask(contact).await.expect(StatusCode::ACCEPTED)["id"], receipt["id"]);
    assert_eq!(ask("01994f3e-5555-7cc3-98d5-8f1c1f0a2bff").await.status, StatusCode::NOT_FOUND);
    // Two nodes at once, both of which may find it half done; the clock goes on where something has to end first.
    for seconds in 0..50 {
        let (one, two) = (later(&world, days(0)), later(&world, std::time::Duration::from_secs(seconds)));
        let (one, two) = tokio::join!(erasure::work(&one), erasure::work(&two));
        one.and(two).unwrap();
        if tenant.get(&path).await.expect(StatusCode::OK)["status"] == "done" {
            break;
        }
    }
    let receipt = tenant.get(&path).await.expect(StatusCode::OK);
    assert_eq!(text(&receipt, "status"), "done", "{receipt}");
    assert_eq!((&receipt["messages"], &receipt["cancelled"], &receipt["files"]), (&json!(5), &json!(1), &json!(1)));
    assert!(
        receipt["events"].as_i64().unwrap() > 8 && text(&receipt, "requested_by").starts_with("api_key:"),
        "{receipt}"
    );

    let after = dump(&sql).await;
    let left =
        |words: &str| after.lines().filter(|line| line.to_lowercase().contains(words)).collect::<Vec<_>>().join("\n");
    for words in [LID, "secretwords", "grace"] {
        assert_eq!(left(words), "", "{words}");
    }
    let number = left(NUMBER);
    assert!(number.lines().all(|line| line.replace(&format!("1{NUMBER}"), "").contains(NUMBER).eq(&false)), "{number}");
    assert!(!stored(&world.media_folder(), "secretwords"));
    assert!(after.contains("words of somebody else") && after.contains("hello @erased, how are you?"));

    // The messages are there, without content; so is what became of them.
    let message = tenant.get(&format!("/v1/messages/{}", text(&sent, "id"))).await.expect(StatusCode::OK);
    assert_eq!((text(&message, "status"), &message["body"]), ("read", &Value::Null));
    assert_eq!(message["chat_id"], json!(format!("erased:{}", text(&receipt, "id"))));
    assert_eq!(tenant.message_with(text(&scheduled, "id"), "cancelled").await["body"], Value::Null);
    // A repeat of the request is still known, and tells nothing.
    let request = tenant.request(Method::POST, "/v1/messages").header("Idempotency-Key", "one").json(&body);
    assert_eq!(Client::send(request).await.expect(StatusCode::ACCEPTED)["id"], sent["id"]);
    let found = tenant.get("/v1/messages?q=secretwords").await.expect(StatusCode::OK);
    assert_eq!(found["data"], json!([]));
    // Nothing is left to do.
    assert_eq!(ask(contact).await.expect(StatusCode::ACCEPTED), receipt);
    let list = tenant.get("/v1/erasures").await.expect(StatusCode::OK);
    assert_eq!(list["data"].as_array().unwrap().len(), 1);
    doors.node.stop().await;
}
