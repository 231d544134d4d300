//! What a message may say: every kind, and the rules of each.

use chrono::TimeDelta;
use reqwest::StatusCode;
use serde_json::{Value, json};
use switchboard::serve::Role;

use crate::support::world::{Answer, Client, Inside, PATIENCE, text};
use crate::support::{World, eventually};

const TO: &str = "+15550101001";
const GROUP: &str = "120363000000000000@g.us";

/// A node that accepts and sends nothing, a tenant, and its session.
pub async fn still(world: &World) -> (Inside, Client, String) {
    let node = world.node_with(&[Role::Api], |_| {});
    let tenant = world.tenant(&node.base, "one").await;
    let session = tenant.post("/v1/sessions", &json!({"name": "only"})).await.expect(StatusCode::CREATED);
    let session = text(&session, "id").to_owned();
    (node, tenant, session)
}

#[track_caller]
fn broken(answer: &Answer) -> Vec<String> {
    assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{:?}", answer.body);
    let errors = answer.body["errors"].as_array().unwrap();
    errors.iter().map(|error| format!("{} {}", text(error, "field"), text(error, "code"))).collect()
}

fn with(base: &Value, more: &Value) -> Value {
    let mut all = base.clone();
    all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    all
}

fn at(app: &switchboard::app::App, from_now: TimeDelta) -> String {
    (app.clock.now() + from_now).to_rfc3339()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_is_accepted_and_shown_as_it_was_said() {
    let world = World::new().await;
    let (node, tenant, _) = still(&world).await;
    let url = "https://example.com/a.jpg";
    for (kind, said, shown) in [
        ("text", json!({"body": "see https://example.com", "link_preview": false}), json!({"link_preview": false})),
        (
            "text",
            json!({"body": "@15550101002 hi", "mentions": ["+1 555 010-1002", "15550101002@c.us", "99@lid"]}),
            json!({"mentions": ["15550101002@c.us", "99@lid"]}),
        ),
        (
            "image",
            json!({"media": {"url": url, "mime_type": "image/jpeg"}, "body": "cap"}),
            json!({"media": {"url": url, "mime_type": "image/jpeg"}, "body": "cap", "media_url": url}),
        ),
        ("video", json!({"media": {"url": url}}), json!({"media": {"url": url}, "body": null})),
        ("voice", json!({"media": {"url": url, "mime_type": "audio/ogg; codecs=opus"}}), json!({"body": null})),
        (
            "document",
            json!({"media": {"url": url, "filename": "a b.pdf"}, "body": "c".repeat(1024)}),
            json!({"media": {"url": url, "filename": "a b.pdf"}}),
        ),
        (
            "location",
            json!({"location": {"latitude": -90, "longitude": 180, "name": "End"}}),
            json!({"location": {"latitude": -90.0, "longitude": 180.0, "name": "End"}}),
        ),
        (
            "contact",
            json!({"contacts": [{"full_name": "Ann", "phone": "1 555 010 1002", "organization": "Acme"}]}),
            json!({"contacts": [{"full_name": "Ann", "phone": "+15550101002", "organization": "Acme"}]}),
        ),
        (
            "poll",
            json!({"poll": {"question": "When?", "options": ["Now", "Later"]}}),
            json!({"poll": {"question": "When?", "options": ["Now", "Later"], "multiple": false}}),
        ),
    ] {
        let message = with(&json!({"to": TO, "type": kind}), &said);
        let kept = tenant.post("/v1/messages", &message).await.expect(StatusCode::ACCEPTED);
        let read = tenant.get(&format!("/v1/messages/{}", text(&kept, "id"))).await.expect(StatusCode::OK);
        for (member, value) in shown.as_object().unwrap() {
            assert_eq!((&kept[member], &read[member]), (value, value), "{member} of {kind}");
        }
        assert_eq!((text(&kept, "type"), text(&read, "type")), (kind, kind));
    }
    let all = json!({"to": GROUP, "body": "@all", "mentions": ["all"]});
    assert_eq!(tenant.post("/v1/messages", &all).await.expect(StatusCode::ACCEPTED)["mentions"], json!(["all"]));
    let listed = tenant.get("/v1/messages?type=poll").await.expect(StatusCode::OK);
    assert_eq!(listed["data"].as_array().unwrap().len(), 1);
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_belong_or_fit_is_named() {
    let world = World::new().await;
    let (node, tenant, _) = still(&world).await;
    let image = json!({"to": TO, "type": "image", "media": {"url": "https://example.com/a.jpg"}});
    let media = |media: Value| with(&image, &json!({ "media": media }));
    let place = |place: Value| json!({"to": TO, "type": "location", "location": place});
    let card = |card: Value| json!({"to": TO, "type": "contact", "contacts": [card]});
    let poll = |question: &str, options: Value| json!({"to": TO, "type": "poll", "poll": {"question": question, "options": options}});
    let text_with = |more: Value| with(&json!({"to": TO, "body": "a"}), &more);
    for (message, expected) in [
        (json!({"to": TO, "type": "image"}), "media required"),
        (with(&image, &json!({"body": "c".repeat(1025)})), "body too_long"),
        (with(&image, &json!({"link_preview": true})), "link_preview not_allowed"),
        (with(&image, &json!({"type": "voice", "body": "c"})), "body not_allowed"),
        (with(&image, &json!({"type": "voice", "mentions": [TO]})), "mentions not_allowed"),
        (text_with(json!({"media": {"url": "https://example.com"}})), "media not_allowed"),
        (text_with(json!({"poll": {"question": "q", "options": ["a", "b"]}})), "poll not_allowed"),
        (text_with(json!({"location": {"latitude": 1, "longitude": 1}})), "location not_allowed"),
        (text_with(json!({"contacts": [{"full_name": "A", "phone": TO}]})), "contacts not_allowed"),
        (media(json!({})), "media invalid_value"),
        (media(json!({"url": "https://example.com", "data": "aGk="})), "media invalid_value"),
        (media(json!({"uri": "x"})), "media.uri unknown_field"),
        (media(json!({"url": "example.com/a.jpg"})), "media.url invalid_url"),
        (media(json!({"url": "ftp://example.com/a.jpg"})), "media.url https_required"),
        (media(json!({"url": "https://u:p@example.com/a.jpg"})), "media.url invalid_url"),
        (media(json!({"url": "https://example.com:25/a.jpg"})), "media.url forbidden_target"),
        (media(json!({"id": "01994f3e-6d4f-7cc3-98d5-8f1c1f0a2b3c"})), "media.id not_found"),
        (media(json!({"id": "x"})), "media.id invalid_value"),
        (media(json!({"data": "not base64"})), "media.data invalid_value"),
        (media(json!({"data": ""})), "media.data required"),
        (media(json!({"url": "https://example.com", "mime_type": "jpeg"})), "media.mime_type invalid_value"),
        (media(json!({"url": "https://example.com", "mime_type": "video/mp4"})), "media.mime_type wrong_type"),
        (media(json!({"url": "https://example.com", "filename": "../a"})), "media.filename invalid_character"),
        (media(json!({"url": "https://example.com", "filename": "a\nb"})), "media.filename invalid_character"),
        (place(json!({"latitude": 90.1, "longitude": 0})), "location.latitude out_of_range"),
        (place(json!({"latitude": 0, "longitude": -180.5})), "location.longitude out_of_range"),
        (place(json!({"latitude": 0})), "location.longitude required"),
        (place(json!({"latitude": "0", "longitude": 0})), "location.latitude invalid_type"),
        (card(json!({"full_name": "", "phone": TO})), "contacts[0].full_name required"),
        (card(json!({"full_name": "A\r\nTEL:1", "phone": TO})), "contacts[0].full_name invalid_character"),
        (card(json!({"full_name": "A", "phone": "0171 1234567"})), "contacts[0].phone no_country_code"),
        (card(json!({"full_name": "A", "phone": GROUP})), "contacts[0].phone invalid_value"),
        (json!({"to": TO, "type": "contact", "contacts": []}), "contacts required"),
        (poll("", json!(["a", "b"])), "poll.question required"),
        (poll("q", json!(["a"])), "poll.options out_of_range"),
        (poll("q", json!(["a", "a"])), "poll.options[1] duplicate"),
        (poll("q", json!(["a", "b".repeat(101)])), "poll.options[1] too_long"),
        (text_with(json!({"mentions": ["all"]})), "mentions[0] not_allowed"),
        (text_with(json!({"mentions": [GROUP]})), "mentions[0] invalid_value"),
        (text_with(json!({"mentions": ["nobody"]})), "mentions[0] invalid_recipient"),
        (json!({"to": GROUP, "body": "a", "mentions": ["all", TO]}), "mentions[0] invalid_value"),
        (text_with(json!({"client_reference": ""})), "client_reference required"),
        (text_with(json!({"client_reference": "a b"})), "client_reference invalid_character"),
        (text_with(json!({"client_reference": "x".repeat(256)})), "client_reference too_long"),
        (text_with(json!({"scheduled_at": at(&node.app, TimeDelta::days(367))})), "scheduled_at out_of_range"),
        (text_with(json!({"scheduled_at": at(&node.app, TimeDelta::days(-2))})), "scheduled_at out_of_range"),
        (text_with(json!({"scheduled_at": "tomorrow"})), "scheduled_at invalid_value"),
        (text_with(json!({"expires_at": at(&node.app, TimeDelta::seconds(-1))})), "expires_at out_of_range"),
        (
            text_with(
                json!({"scheduled_at": at(&node.app, TimeDelta::hours(2)), "expires_at": at(&node.app, TimeDelta::hours(1))}),
            ),
            "expires_at out_of_range",
        ),
        (json!({"to": "0171 1234567", "body": "a"}), "to no_country_code"),
        (json!({"to": "+44 (0)20 7946 0000", "body": "a"}), "to invalid_recipient"),
    ] {
        assert_eq!(broken(&tenant.post("/v1/messages", &message).await), [expected], "{message}");
    }
    let list = tenant.get("/v1/messages").await.expect(StatusCode::OK);
    assert_eq!(list["data"], json!([]), "nothing of it was kept");

    // Where private targets are not let through, a literal address is refused at once.
    let strict = world.node_with(&[Role::Api], |config| config.allow_private_targets = false);
    for url in [
        "http://example.com/a.jpg",
        "https://127.0.0.1/a.jpg",
        "https://[::1]/",
        "https://localhost/",
        "https://0x7f.1/",
    ] {
        let answer = tenant.at(&strict.base).post("/v1/messages", &media(json!({ "url": url }))).await;
        assert!(broken(&answer)[0].starts_with("media.url "), "{url}: {:?}", answer.body);
    }
    strict.node.stop().await;
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reply_answers_a_message_of_its_own_chat() {
    let world = World::new().await;
    let (node, tenant, session) = still(&world).await;
    let other = world.tenant(&node.base, "two").await;
    other.post("/v1/sessions", &json!({"name": "theirs"})).await.expect(StatusCode::CREATED);
    let send = async |more: Value| {
        tenant.post("/v1/messages", &with(&json!({"session_id": session, "to": TO, "body": "a"}), &more)).await
    };
    let first = send(json!({})).await.expect(StatusCode::ACCEPTED);
    let reply = send(json!({"reply_to": first["id"]})).await.expect(StatusCode::ACCEPTED);
    assert_eq!(reply["reply_to"], first["id"]);

    assert_eq!(
        broken(&send(json!({"reply_to": "01994f3e-6d4f-7cc3-98d5-8f1c1f0a2b3c"})).await),
        ["reply_to not_found"]
    );
    assert_eq!(broken(&send(json!({"reply_to": first["id"], "to": "+15550101002"})).await), ["reply_to other_chat"]);
    let second = tenant.post("/v1/sessions", &json!({"name": "second"})).await.expect(StatusCode::CREATED);
    assert_eq!(
        broken(&send(json!({"reply_to": first["id"], "session_id": second["id"]})).await),
        ["reply_to other_session"]
    );
    let foreign = json!({"to": TO, "body": "a", "reply_to": first["id"]});
    assert_eq!(broken(&other.post("/v1/messages", &foreign).await), ["reply_to not_found"], "another tenant's");

    let later = send(json!({"scheduled_at": at(&node.app, TimeDelta::hours(1))})).await.expect(StatusCode::ACCEPTED);
    assert_eq!(broken(&send(json!({"reply_to": later["id"]})).await), ["reply_to not_sent"]);
    tenant.post(&format!("/v1/messages/{}/cancel", text(&reply, "id")), &json!({})).await.expect(StatusCode::OK);
    assert_eq!(broken(&send(json!({"reply_to": reply["id"]})).await), ["reply_to not_sent"]);
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scheduled_message_is_not_queued_yet() {
    let world = World::new().await;
    let (node, tenant, session) = still(&world).await;
    let path = |message: &Value| format!("/v1/messages/{}", text(message, "id"));
    let schedule = async |from_now: TimeDelta| {
        let message = json!({"to": TO, "body": "a", "scheduled_at": at(&node.app, from_now), "expires_at": at(&node.app, TimeDelta::days(2))});
        tenant.post("/v1/messages", &message).await.expect(StatusCode::ACCEPTED)
    };
    let later = schedule(TimeDelta::hours(1)).await;
    assert_eq!((text(&later, "status"), later["expires_at"].is_string()), ("scheduled", true));
    let steps = tenant.get(&format!("{}/transitions", path(&later))).await.expect(StatusCode::OK);
    assert_eq!(steps["data"], json!([{"status": "scheduled", "at": later["created_at"], "cause": "accepted"}]));
    let now = schedule(TimeDelta::hours(-1)).await;
    assert_eq!(text(&now, "status"), "queued", "a time that has just passed means now");
    let steps = tenant.get(&format!("{}/transitions", path(&now))).await.expect(StatusCode::OK);
    assert_eq!(steps["data"], json!([{"status": "queued", "at": now["created_at"], "cause": "accepted"}]));

    let told = eventually(PATIENCE, "the event to be readable", async || {
        let events = tenant.get("/v1/events").await.expect(StatusCode::OK)["data"].as_array().unwrap().clone();
        (!events.is_empty()).then_some(events)
    })
    .await;
    let told: Vec<&str> = told.iter().map(|event| text(&event["data"], "id")).collect();
    assert_eq!(told, [text(&now, "id")], "nothing is told of a scheduled one");
    let lane = world.db.connect().await;
    let row = lane.query_one("SELECT queued FROM lanes WHERE session_id::text = $1", &[&session]).await.unwrap();
    assert_eq!(row.get::<_, i32>(0), 1);
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_urgent_message_makes_its_lane_due() {
    let world = World::new().await;
    let (node, tenant, session) = still(&world).await;
    let sql = world.db.connect().await;
    let due = async |priority: &str, waits: &str| {
        sql.execute("UPDATE lanes SET stopped_because = NULL, in_flight = NULL, ready_at = now() + interval '8 hours', next_slot_at = now()
                     WHERE session_id::text = $1", &[&session]).await.unwrap();
        if !waits.is_empty() {
            sql.execute(&format!("UPDATE lanes SET {waits} WHERE session_id::text = $1"), &[&session]).await.unwrap();
        }
        let message = json!({"to": TO, "body": "a", "priority": priority});
        tenant.post("/v1/messages", &message).await.expect(StatusCode::ACCEPTED);
        let waits = "SELECT (extract(epoch FROM ready_at - now()) / 60)::float8 FROM lanes WHERE session_id::text = $1";
        let row = sql.query_one(waits, &[&session]).await.unwrap();
        row.get::<_, Option<f64>>(0).map(f64::round)
    };
    // A window that opens in eight hours.
    assert_eq!(due("normal", "").await, Some(480.0));
    assert_eq!(due("high", "").await.map(f64::abs), Some(0.0));
    assert_eq!(due("high", "next_slot_at = now() + interval '1 hour'").await, Some(60.0), "the gap is kept");
    let paused = due("high", "stopped_because = 'session_not_working', ready_at = NULL").await;
    assert_eq!(paused, None, "a paused lane stays so");
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_reference_has_one_message_for_good() {
    let world = World::new().await;
    let (node, tenant, session) = still(&world).await;
    let second = world.node_with(&[Role::Api], |_| {});
    let other = world.tenant(&node.base, "two").await;
    other.post("/v1/sessions", &json!({"name": "theirs"})).await.expect(StatusCode::CREATED);
    let message = |reference: &str| json!({"to": TO, "body": "a", "client_reference": reference});
    let first = tenant.post("/v1/messages", &message("o-1")).await.expect(StatusCode::ACCEPTED);
    assert_eq!(first["client_reference"], "o-1");
    let again = tenant.post("/v1/messages", &message("o-1")).await;
    assert_eq!((again.status, text(&again.body, "code")), (StatusCode::CONFLICT, "conflict"));
    assert_eq!(
        (&again.body["errors"][0]["field"], &again.body["errors"][0]["code"]),
        (&json!("client_reference"), &json!("taken"))
    );
    assert!(text(&again.body, "detail").contains(text(&first, "id")), "{:?}", again.body);
    other.post("/v1/messages", &message("o-1")).await.expect(StatusCode::ACCEPTED);

    // A refused request keeps no key; one with the first one's key gets the first one's answer.
    let keyed = async |client: &Client, key: &str, reference: &str| {
        let request = client.request(reqwest::Method::POST, "/v1/messages").header("idempotency-key", key);
        Client::send(request.json(&message(reference))).await
    };
    assert_eq!(keyed(&tenant, "k", "o-1").await.status, StatusCode::CONFLICT);
    let kept = keyed(&tenant, "k", "o-2").await;
    assert_eq!((kept.status, kept.header("idempotency-replayed")), (StatusCode::ACCEPTED, ""), "{:?}", kept.body);
    assert_eq!(keyed(&tenant, "k", "o-2").await.header("idempotency-replayed"), "true");

    // Many at once, over two nodes, among neighbours without a fault.
    let racing = futures_util::future::join_all((0..60).map(|n| {
        let client = tenant.at(if n % 2 == 0 { &node.base } else { &second.base });
        let body = match n % 3 {
            0 => json!({"session_id": session, "to": TO, "body": "neighbour"}),
            _ => message(&format!("race-{}", n % 4)),
        };
        async move { (n % 3 == 0, client.post("/v1/messages", &body).await) }
    }))
    .await;
    let won = racing.iter().filter(|(plain, answer)| !plain && answer.status == StatusCode::ACCEPTED).count();
    assert_eq!(won, 4, "one for each reference");
    assert!(
        racing.iter().all(|(plain, answer)| answer.status == StatusCode::ACCEPTED
            || (!plain && answer.status == StatusCode::CONFLICT))
    );
    let found = tenant.get("/v1/messages?client_reference=race-1").await.expect(StatusCode::OK);
    assert_eq!(found["data"].as_array().unwrap().len(), 1);
    let row = world
        .db
        .connect()
        .await
        .query_one("SELECT queued FROM lanes WHERE session_id::text = $1", &[&session])
        .await
        .unwrap();
    assert_eq!(row.get::<_, i32>(0), 26, "the lane counts what was accepted");
    second.node.stop().await;
    node.node.stop().await;
}
