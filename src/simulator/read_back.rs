//! What can be asked of a running session: messages, chats, numbers, hidden ids, and small gestures.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::answers::Answer;
use super::brakes;
use super::ids;
use super::ledger::Entry;
use super::numbers;
use super::routes::{Call, Route};
use super::sends::{self, bare_id};
use super::session::{Session, Status};
use super::shapes::{Shape, ack_name};
use super::troubles::ZombieQueries;
use super::webhooks::{self, Event};
use super::world::{World, lock};

/// How long the engine waits for an answer of WhatsApp's.
const QUERY_TIMEOUT: Duration = Duration::from_secs(120);
const NO_STORE: &str = "Enable NOWEB store \"config.noweb.store.enabled=True\" and \"config.noweb.store.full_sync=True\" when starting a new session. Read more: https://waha.devlike.pro/docs/engines/noweb#store";

pub(super) async fn answer(
    world: &std::sync::Arc<World>,
    session: &std::sync::Arc<Session>,
    route: Route,
    call: &Call,
) -> Answer {
    if let Err(status) = session.expect(world, Status::Working).await {
        return Answer::wrong_state(&session.name, status.name(), &["WORKING"]);
    }
    let needs_store = matches!(
        route,
        Route::Messages(_) | Route::Message(..) | Route::Chats | Route::Overview | Route::ReadChat(_) | Route::Lids
    );
    if needs_store && !session.has_store() {
        return Answer::nest(400, NO_STORE);
    }
    if let Some(zombie) = session.zombie().filter(|_| asks_whatsapp(&route)) {
        if zombie.queries == ZombieQueries::Hang {
            world.pause(QUERY_TIMEOUT).await;
        }
        return sends::connection_closed(world, call);
    }
    match route {
        Route::CheckExists => check_exists(world, call),
        Route::Timelock => Answer::of(200, &brakes::timelock_json(session.brakes().timelock)),
        Route::Capping => Answer::of(200, &brakes::capping_json(session.brakes().capping)),
        Route::NewMessageId if world.engine.honours_ids() => {
            Answer::of(200, &json!({"id": ids::message_id(&world.chance)}))
        }
        Route::NewMessageId => Answer::nest(422, "The method is not implemented by the engine."),
        Route::Gesture("sendSeen") => seen(session, call),
        Route::Gesture(_) => Answer::json(201, r#"{"result":true}"#),
        Route::Reaction => reaction(world, session, call),
        Route::Lids => Answer::of(200, &lids(world, session).values().collect::<Vec<_>>()),
        Route::LidCount => Answer::of(200, &json!({"count": lids(world, session).len()})),
        Route::Lid(lid) => {
            let lid = if lid.contains('@') { lid } else { format!("{lid}@lid") };
            let known = numbers::number_of(&lid).filter(|number| is_registered(world, number));
            Answer::of(200, &json!({"lid": lid, "pn": known.map(|number| format!("{number}@c.us"))}))
        }
        Route::LidOfPhone(phone) => {
            let chat = numbers::chat_id(&phone);
            let known = numbers::number_of(&chat).filter(|number| is_registered(world, number));
            Answer::of(200, &json!({"lid": known.map(|number| numbers::lid_of(&number)), "pn": chat}))
        }
        Route::Messages(chat) => messages(world, session, &chat, call),
        Route::Message(chat, id) => message(world, session, &chat, &id),
        Route::Edit(chat, id) => edit(world, session, &chat, &id, call),
        Route::Revoke(chat, id) => revoke(world, session, &chat, &id),
        Route::ReadChat(chat) => read_chat(session, &chat),
        Route::Chats | Route::Overview => chats(world, session, route == Route::Overview, call),
        _ => Answer::nest(404, "Not Found"),
    }
}

/// Whether the call needs an answer of WhatsApp's; the rest is known to the engine.
fn asks_whatsapp(route: &Route) -> bool {
    matches!(
        route,
        Route::CheckExists
            | Route::LidOfPhone(_)
            | Route::Gesture(_)
            | Route::Reaction
            | Route::Edit(..)
            | Route::Revoke(..)
            | Route::ReadChat(_)
            | Route::Timelock
            | Route::Capping
    )
}

fn is_registered(world: &World, number: &str) -> bool {
    world.registered(number).is_some_and(|known| known == number)
}

fn check_exists(world: &World, call: &Call) -> Answer {
    let phone = call.parameter("phone").unwrap_or_default();
    let number: String = phone.chars().filter(char::is_ascii_digit).collect();
    let Some(known) = world.registered(&number) else {
        return Answer::json(200, r#"{"numberExists":false}"#);
    };
    let phone_too =
        if world.engine == super::Engine::Gows { format!(r#","pn":"{known}@c.us""#) } else { String::new() };
    Answer::json(200, format!(r#"{{"numberExists":true,"chatId":"{known}@c.us"{phone_too}}}"#))
}

fn seen(session: &Session, call: &Call) -> Answer {
    if let Some(chat) = call.text("chatId") {
        let given = call.body.get("messageIds").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let ids: Vec<&str> = given.iter().filter_map(Value::as_str).map(bare_id).collect();
        lock(&session.mailbox).read(&numbers::chat_id(chat), &ids);
    }
    Answer::json(201, r#"{"result":true}"#)
}

/// The known pairs of hidden id and number: those of people the session has talked to.
fn lids(world: &World, session: &Session) -> BTreeMap<String, Value> {
    let mailbox = lock(&session.mailbox);
    let numbers = mailbox.chats().filter_map(|chat| numbers::number_of(chat));
    let numbers = numbers.filter(|number| is_registered(world, number));
    numbers
        .map(|number| {
            let pair = json!({"lid": numbers::lid_of(&number), "pn": format!("{number}@c.us")});
            (number, pair)
        })
        .collect()
}

/// `all` (where the engine has it), or the chat under either of its ids.
fn chat_filter(world: &World, chat: &str) -> Option<String> {
    if chat == "all" && world.engine.honours_ids() {
        return None;
    }
    match numbers::number_of(chat).filter(|_| chat.ends_with("@lid")) {
        Some(number) => Some(format!("{number}@c.us")),
        None => Some(numbers::chat_id(chat)),
    }
}

fn my_id(session: &Session) -> String {
    session.me().map_or_else(String::new, |me| me.id.clone())
}

fn messages(world: &World, session: &Session, chat: &str, call: &Call) -> Answer {
    let number = |name: &str| call.parameter(name).and_then(|value| value.parse::<i64>().ok());
    let count = |name: &str, default: usize| call.parameter(name).and_then(|v| v.parse().ok()).unwrap_or(default);
    let from_me = call.parameter("filter.fromMe").and_then(|value| value.parse::<bool>().ok());
    let (least, most) = (number("filter.timestamp.gte"), number("filter.timestamp.lte"));
    let ack = call.parameter("filter.ack");
    let forgotten = session.forgotten();
    let chat = chat_filter(world, chat);
    let me = my_id(session);
    let mailbox = lock(&session.mailbox);
    let kept = mailbox
        .newest(chat.as_deref())
        .take_while(|entry| entry.sequence > forgotten && least.is_none_or(|least| entry.at.timestamp() >= least))
        .filter(|entry| !entry.revoked)
        .filter(|entry| most.is_none_or(|most| entry.at.timestamp() <= most))
        .filter(|entry| from_me.is_none_or(|from_me| entry.from_me == from_me))
        .filter(|entry| ack.is_none_or(|ack| ack_name(entry.ack) == ack));
    let written = |entry: &Entry| Shape::of(entry, world.engine, &me).wa_message();
    let (offset, limit) = (count("offset", 0), count("limit", 10));
    let page: Vec<String> = if call.parameter("sortOrder") == Some("asc") {
        let mut all: Vec<&Entry> = kept.collect();
        all.reverse();
        all.into_iter().skip(offset).take(limit).map(written).collect()
    } else {
        kept.skip(offset).take(limit).map(written).collect()
    };
    Answer::json(200, format!("[{}]", page.join(",")))
}

/// The place of a message that may be named by its whole or (on some engines) its bare id.
fn look_up(world: &World, session: &Session, chat: &str, id: &str) -> Option<u32> {
    if !id.contains('_') && !world.engine.honours_ids() {
        return None;
    }
    let mailbox = lock(&session.mailbox);
    let index = mailbox.find(chat_filter(world, chat).as_deref(), bare_id(id))?;
    mailbox.get(index).filter(|entry| entry.sequence > session.forgotten()).map(|_| index)
}

fn message(world: &World, session: &Session, chat: &str, id: &str) -> Answer {
    let me = my_id(session);
    let index = look_up(world, session, chat, id);
    let mailbox = lock(&session.mailbox);
    match index.and_then(|index| mailbox.get(index)).filter(|entry| !entry.revoked) {
        Some(entry) => Answer::json(200, Shape::of(entry, world.engine, &me).wa_message()),
        None => Answer::nest(404, "Message not found"),
    }
}

fn edit(world: &std::sync::Arc<World>, session: &std::sync::Arc<Session>, chat: &str, id: &str, call: &Call) -> Answer {
    let Some(text) = call.text("text") else { return Answer::nest(400, "text is required") };
    let Some(index) = look_up(world, session, chat, id) else { return Answer::nest(404, "Message not found") };
    let me = my_id(session);
    let (answer, payload) = {
        let mut mailbox = lock(&session.mailbox);
        let Some(entry) = mailbox.get_mut(index) else { return Answer::nest(404, "Message not found") };
        entry.text = text.into();
        entry.edited = true;
        let shape = Shape::of(entry, world.engine, &me);
        let message = shape.wa_message();
        let tail = message.strip_prefix('{').unwrap_or_default();
        let payload = format!(r#"{{"editedMessageId":"{}",{tail}"#, shape.id);
        (Answer::json(200, shape.send_answer("edit", false)), payload)
    };
    webhooks::emit(world, session, &[Event::MessageEdited], &payload);
    answer
}

fn revoke(world: &std::sync::Arc<World>, session: &std::sync::Arc<Session>, chat: &str, id: &str) -> Answer {
    let Some(index) = look_up(world, session, chat, id) else { return Answer::nest(404, "Message not found") };
    let me = my_id(session);
    let payload = {
        let mut mailbox = lock(&session.mailbox);
        let Some(entry) = mailbox.get_mut(index) else { return Answer::nest(404, "Message not found") };
        entry.revoked = true;
        let shape = Shape::of(entry, world.engine, &me);
        let before = shape.wa_message();
        let after = Shape { text: "", ..shape }.wa_message();
        format!(r#"{{"after":{after},"before":{before},"revokedMessageId":"{}"}}"#, shape.id)
    };
    webhooks::emit(world, session, &[Event::MessageRevoked], &payload);
    Answer::json(200, "{}")
}

fn reaction(world: &std::sync::Arc<World>, session: &std::sync::Arc<Session>, call: &Call) -> Answer {
    let (Some(id), Some(text)) = (call.text("messageId"), call.text("reaction")) else {
        return Answer::invalid(&["messageId must be a string".to_owned()]);
    };
    let me = my_id(session);
    let chat = id.split('_').nth(1).unwrap_or_default();
    {
        let mut mailbox = lock(&session.mailbox);
        let target = mailbox.find(chat_filter(world, chat).as_deref(), bare_id(id));
        if let Some(entry) = target.and_then(|index| mailbox.get_mut(index)) {
            entry.reaction = (!text.is_empty()).then(|| text.into());
        }
    }
    let fresh = ids::message_id(&world.chance);
    let now = world.now();
    let shape = Shape {
        engine: world.engine,
        me: &me,
        chat,
        id: &fresh,
        kind: "text",
        text,
        from_me: true,
        ack: 0,
        timestamp: now.timestamp(),
    };
    let payload = json!({
        "id": shape.serialized_id(),
        "from": chat,
        "to": me,
        "fromMe": true,
        "participant": null,
        "timestamp": now.timestamp(),
        "source": "api",
        "reaction": {"text": text, "messageId": id},
    });
    webhooks::emit(world, session, &[Event::MessageReaction], &payload.to_string());
    Answer::json(200, shape.send_answer("reaction", false))
}

fn read_chat(session: &Session, chat: &str) -> Answer {
    let chat = numbers::chat_id(chat);
    let mut mailbox = lock(&session.mailbox);
    mailbox.read(&chat, &[]);
    let inbound = mailbox.newest(Some(&chat)).filter(|entry| !entry.from_me).take(30);
    let ids: Vec<String> = inbound.map(|entry| format!("false_{}_{}", entry.chat, entry.id)).collect();
    Answer::of(201, &json!({"ids": ids}))
}

fn chats(world: &World, session: &Session, overview: bool, call: &Call) -> Answer {
    let count = |name: &str, default: usize| call.parameter(name).and_then(|v| v.parse().ok()).unwrap_or(default);
    let me = my_id(session);
    let mailbox = lock(&session.mailbox);
    let last = |chat: &str| mailbox.newest(Some(chat)).next();
    let mut latest: Vec<(&str, &Entry)> =
        mailbox.chats().filter_map(|chat| last(chat).map(|entry| (chat.as_ref(), entry))).collect();
    latest.sort_by_key(|(_, entry)| std::cmp::Reverse(entry.sequence));
    let page = latest.into_iter().skip(count("offset", 0)).take(count("limit", 20));
    let rows = page.map(|(chat, entry)| {
        let at = entry.at.timestamp();
        if !overview {
            return json!({"id": chat, "conversationTimestamp": at, "name": null});
        }
        let message = Shape::of(entry, world.engine, &me).wa_message();
        let message: Value = serde_json::from_str(&message).unwrap_or_default();
        json!({"id": chat, "name": null, "picture": null, "lastMessage": message, "_chat": {"id": chat, "conversationTimestamp": at}})
    });
    Answer::of(200, &rows.collect::<Vec<_>>())
}
