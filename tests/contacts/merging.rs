//! Two ids, one person: learnt at once, later, last, and taken back.

use serde_json::{Value, json};
use switchboard::contacts;
use switchboard::db::{DbError, SystemConn};

use super::stand::{IN, Message, OUT, Stand, Tenant};

const PHONE: &str = "15550100001@c.us";
const LID: &str = "77000001@lid";

async fn one(tenant: &Tenant<'_>) -> Value {
    let mut people = tenant.outcome().await;
    assert_eq!(people.len(), 1, "{people:#?}");
    let person = people.remove(0);
    assert_eq!((&person["phone"], &person["lid"]), (&json!("+15550100001"), &json!(LID)));
    assert_eq!(person["conversations"].as_array().unwrap().len(), 1, "{person:#}");
    person
}

fn from(id: &'static str, chat: &'static str, at: i64) -> Message {
    Message { id, chat, sender: Some(chat), at, ..IN }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hidden_first_and_by_number_later_with_the_other_id_told_along() {
    let stand = Stand::new().await;
    let tenant = stand.tenant().await;
    tenant.message(&from("M1", LID, 1)).await;
    stand.settle().await;
    tenant.message(&Message { other: Some(LID), ..from("M2", PHONE, 2) }).await;
    stand.settle().await;
    tenant.message(&from("M3", LID, 3)).await;
    stand.settle().await;
    let person = one(&tenant).await;
    assert_eq!((&person["conversations"][0]["count"], &person["conversations"][0]["unread"]), (&json!(3), &json!(3)));
    assert!(
        tenant.rows("SELECT 1 FROM contact_merges WHERE tenant_id = $tenant").await.is_empty(),
        "nothing had to be merged"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_ids_in_one_event() {
    let stand = Stand::new().await;
    let tenant = stand.tenant().await;
    tenant.message(&Message { other: Some(PHONE), ..from("M1", LID, 1) }).await;
    tenant.message(&Message { id: "M2", chat: PHONE, at: 2, ..OUT }).await;
    stand.settle().await;
    let person = one(&tenant).await;
    assert_eq!((&person["conversations"][0]["count"], &person["conversations"][0]["chat"]), (&json!(2), &json!(PHONE)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mapping_learnt_last_merges_and_can_be_taken_back() {
    let stand = Stand::new().await;
    let tenant = stand.tenant().await;
    tenant.message(&from("M1", LID, 1)).await;
    stand.settle().await;
    // The contact of the hidden id is the older one.
    stand.clock.advance(std::time::Duration::from_secs(1));
    tenant.message(&from("M2", PHONE, 2)).await;
    tenant.message(&Message { read: true, ..from("M3", PHONE, 3) }).await;
    stand.settle().await;
    assert_eq!(tenant.outcome().await.len(), 2);
    let fact = |person: &str, emoji: &str, at: i32| {
        format!(
            "INSERT INTO message_reactions (tenant_id, session_id, waha_message_id, person, emoji, reacted_at, reported_at, created_at, updated_at)
             VALUES ('{}', '{}', 'M9', '{person}', '{emoji}', to_timestamp({at}), now(), now(), now())",
            tenant.id, tenant.session
        )
    };
    stand.sql.batch_execute(&format!("{}; {}", fact(LID, "later", 5), fact(PHONE, "sooner", 4))).await.unwrap();
    // A message that the projection does not know of yet is not counted twice.
    tenant.message(&from("M4", LID, 4)).await;
    for _again in 0..3 {
        tenant.link(LID, PHONE).await;
    }
    let person = one(&tenant).await;
    assert_eq!((&person["conversations"][0]["count"], &person["conversations"][0]["unread"]), (&json!(3), &json!(0)));
    stand.settle().await;
    let person = one(&tenant).await;
    assert_eq!((&person["conversations"][0]["count"], &person["conversations"][0]["unread"]), (&json!(4), &json!(1)));
    let reactions = tenant.rows("SELECT person, emoji FROM message_reactions WHERE tenant_id = $tenant").await;
    assert_eq!(reactions, [json!({"person": PHONE, "emoji": "later"})]);
    let merges = tenant.rows("SELECT because, keys FROM contact_merges WHERE tenant_id = $tenant").await;
    assert_eq!(merges, [json!({"because": "lookup", "keys": [PHONE]})], "the older contact was kept");

    let kept = tenant.contact(LID).await;
    tenant.message(&from("M5", PHONE, 5)).await;
    let restored = tenant.undo(kept).await;
    assert_eq!((tenant.contact(PHONE).await, tenant.contact(LID).await), (restored, kept));
    stand.settle().await;
    let apart = tenant.outcome().await;
    let counts: Vec<_> = apart.iter().map(|person| &person["conversations"][0]["count"]).collect();
    assert_eq!((apart.len(), counts), (2, vec![&json!(3), &json!(2)]), "{apart:#?}");
    assert_eq!((&apart[0]["phone"], &apart[0]["lid"]), (&json!("+15550100001"), &Value::Null));
    assert_eq!((&apart[1]["phone"], &apart[1]["lid"]), (&Value::Null, &json!(LID)));

    // Nobody's word but the tenant's brings them together again.
    tenant.link(LID, PHONE).await;
    tenant.message(&Message { other: Some(LID), ..from("M6", PHONE, 6) }).await;
    stand.settle().await;
    assert_eq!(tenant.outcome().await.len(), 2);
    let (now, chance, id) = (stand.app.clock.now(), &stand.app.chance, tenant.id);
    let merged = stand.app.db.system(async |conn: &mut SystemConn| {
        contacts::merge_by_tenant(conn, chance, now, id, kept, restored)
            .await
            .map_err(|fault| DbError::Refused(fault.to_string()))
    });
    assert_eq!(merged.await.unwrap(), kept);
    let person = one(&tenant).await;
    assert_eq!(person["conversations"][0]["count"], json!(6));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn links_of_people_nobody_has_seen_make_no_contacts() {
    let stand = Stand::new().await;
    let tenant = stand.tenant().await;
    tenant.link(LID, PHONE).await;
    tenant.link("120363000000000001@g.us", PHONE).await;
    tenant.link(LID, LID).await;
    assert!(tenant.outcome().await.is_empty());
    tenant.message(&from("M1", LID, 1)).await;
    stand.settle().await;
    tenant.message(&from("M2", PHONE, 2)).await;
    stand.settle().await;
    one(&tenant).await;
    // Another tenant knows nothing of it.
    let other = stand.tenant().await;
    other.message(&from("M1", LID, 1)).await;
    other.message(&from("M2", PHONE, 2)).await;
    stand.settle().await;
    assert_eq!(other.outcome().await.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatsapp_may_say_anything_without_stopping_the_projection() {
    let stand = Stand::new().await;
    let tenant = stand.tenant().await;
    for (id, chat) in [
        ("M1", "123456789012345678901234567890@c.us"),
        ("M2", "status@broadcast"),
        ("M3", "120363000000000001@newsletter"),
        ("M4", "@c.us"),
        ("M5", "no id at all"),
        ("M6", "somebody@elsewhere"),
        ("M7", "120363000000000002@g.us"),
    ] {
        tenant.message(&Message { name: Some("  "), ..from(id, chat, 1) }).await;
    }
    stand.settle().await;
    let kinds =
        tenant.rows("SELECT kind, message_count AS n FROM conversations WHERE tenant_id = $tenant ORDER BY kind").await;
    let kinds: Vec<_> = kinds.iter().map(|row| row["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["broadcast", "channel", "direct", "group"]);
    let people = tenant.outcome().await;
    assert_eq!((people.len(), &people[0]["phone"], &people[0]["push_name"]), (1, &Value::Null, &Value::Null));
}
