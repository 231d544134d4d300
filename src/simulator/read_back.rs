//! What can be asked of a running session: messages, chats, numbers, hidden ids, and small gestures.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::answers::Answer;
use super::brakes;
use super::circles;
use super::happenings::{self, Who, my_id};
use super::ids;
use super::lists;
use super::numbers;
use super::routes::{Call, Route};
use super::sends::{self, bare_id};
use super::session::{Session, Status};
use super::shapes::Shape;
use super::troubles::ZombieQueries;
use super::webhooks::{self, Event};
use super::world::{World, lock};

/// How long the engine waits for an answer of WhatsApp's.
const QUERY_TIMEOUT: Duration = Duration::from_secs(120);
const NO_STORE: &str = "Enable NOWEB store \"config.noweb.store.enabled=True\" and \"config.noweb.store.full_sync=True\" when starting a new session. Read more: https://waha.devlike.pro/docs/engines/noweb#store";

pub(super) async fn answer(world: &Arc<World>, session: &Session, route: Route, call: &Call) -> Answer {
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
        Route::Lids => lists::lid_page(world, session, call),
        Route::LidCount => Answer::of(200, &json!({"count": lists::lids(world, session).len()})),
        Route::Lid(lid) => lists::number_of_lid(world, &lid),
        Route::LidOfPhone(phone) => lists::lid_of_number(world, &phone),
        Route::Groups => lists::groups(world, session, call),
        Route::GroupCount => lists::group_count(session),
        Route::Group(id) => lists::group(world, session, &id),
        Route::GroupParticipants(id) => lists::group_participants(world, session, &id),
        Route::RefreshGroups => Answer::json(201, r#"{"success":true}"#),
        Route::RejectCall => reject_call(world, session, call),
        Route::Messages(chat) => lists::messages(world, session, &chat, call),
        Route::Message(chat, id) => lists::message(world, session, &chat, &id, call),
        Route::Edit(chat, id) => edit(world, session, &chat, &id, call),
        Route::Revoke(chat, id) => revoke(world, session, &chat, &id),
        Route::ReadChat(chat) => read_chat(session, &chat),
        Route::Chats | Route::Overview => lists::chats(world, session, route == Route::Overview, call),
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
            | Route::RejectCall
            | Route::Edit(..)
            | Route::Revoke(..)
            | Route::ReadChat(_)
            | Route::Timelock
            | Route::Capping
    )
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
        lock(&session.mailbox).read(&numbers::canonical(chat), &ids);
    }
    Answer::json(201, r#"{"result":true}"#)
}

fn edit(world: &Arc<World>, session: &Session, chat: &str, id: &str, call: &Call) -> Answer {
    let Some(text) = call.text("text") else { return Answer::nest(400, "text is required") };
    let Some(index) = lists::look_up(world, session, chat, id) else { return Answer::nest(404, "Message not found") };
    happenings::edit(world, session, index, text);
    let me = my_id(session);
    let mailbox = lock(&session.mailbox);
    let Some(entry) = mailbox.get(index) else { return Answer::nest(404, "Message not found") };
    Answer::json(200, Shape::of(entry, world.engine, &me).send_answer("edit", false))
}

fn revoke(world: &Arc<World>, session: &Session, chat: &str, id: &str) -> Answer {
    let Some(index) = lists::look_up(world, session, chat, id) else { return Answer::nest(404, "Message not found") };
    happenings::revoke(world, session, index);
    Answer::json(200, "{}")
}

fn reaction(world: &Arc<World>, session: &Session, call: &Call) -> Answer {
    let (Some(id), Some(text)) = (call.text("messageId"), call.text("reaction")) else {
        return Answer::invalid(&["messageId must be a string".to_owned()]);
    };
    let me = my_id(session);
    let chat = id.split('_').nth(1).unwrap_or_default();
    let target = lock(&session.mailbox).find(lists::chat_filter(world, chat).as_deref(), bare_id(id));
    let told = target.and_then(|index| happenings::react(world, session, index, &Who::Api, text, None));
    // Who reacts to a message that is not there is answered all the same.
    let fresh = told.unwrap_or_else(|| ids::message_id(&world.chance));
    let shape = Shape::plain(world.engine, &me, chat, &fresh, text, world.now().timestamp());
    Answer::json(200, shape.send_answer("reaction", false))
}

fn reject_call(world: &Arc<World>, session: &Session, call: &Call) -> Answer {
    let (Some(from), Some(id)) = (call.text("from"), call.text("id")) else {
        return Answer::invalid(&["from must be a string".to_owned(), "id must be a string".to_owned()]);
    };
    let payload = circles::call_json(world, id, &numbers::chat_id(from), false);
    webhooks::emit(world, session, &[Event::CallRejected], &payload.to_string());
    Answer::empty(201)
}

fn read_chat(session: &Session, chat: &str) -> Answer {
    let chat = numbers::canonical(chat);
    let mut mailbox = lock(&session.mailbox);
    mailbox.read(&chat, &[]);
    let inbound = mailbox.newest(Some(&chat)).filter(|entry| !entry.from_me).take(30);
    let ids: Vec<String> = inbound.map(|entry| format!("false_{}_{}", entry.chat, entry.id)).collect();
    Answer::of(201, &json!({"ids": ids}))
}
