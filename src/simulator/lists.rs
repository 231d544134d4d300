//! What a session's store has: messages, chats, hidden ids and groups.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::Engine;
use super::answers::Answer;
use super::circles::{Group, participant};
use super::files;
use super::happenings::my_id;
use super::mailbox::Entry;
use super::numbers;
use super::routes::Call;
use super::sends::bare_id;
use super::session::Session;
use super::shapes::{Shape, ack_name};
use super::world::{World, lock};

/// A number in the query.
fn count(call: &Call, name: &str, default: usize) -> usize {
    call.parameter(name).and_then(|value| value.parse().ok()).unwrap_or(default)
}

/// `all` (where the engine has it), or the chat under either of its ids.
pub(super) fn chat_filter(world: &World, chat: &str) -> Option<String> {
    let all = chat == "all" && world.engine.honours_ids();
    (!all).then(|| numbers::canonical(chat))
}

/// Whether the store shows it: by our reading GOWS and NOWEB keep what was taken back, without its content.
fn is_listed(world: &World, entry: &Entry) -> bool {
    !entry.revoked || world.engine.honours_ids()
}

/// A message as it is read back; with its file, which is there again from now on, when that is asked for.
fn written(world: &World, entry: &Entry, me: &str, with_file: bool) -> String {
    let shape = Shape::of(entry, world.engine, me);
    let media = if with_file && !shape.is_empty() { files::media_of(world, entry, true) } else { None };
    Shape { media: media.as_ref(), ..shape }.wa_message()
}

fn wants_file(call: &Call) -> bool {
    call.parameter("downloadMedia") != Some("false")
}

pub(super) fn messages(world: &World, session: &Session, chat: &str, call: &Call) -> Answer {
    let number = |name: &str| call.parameter(name).and_then(|value| value.parse::<i64>().ok());
    let from_me = call.parameter("filter.fromMe").and_then(|value| value.parse::<bool>().ok());
    let (least, most) = (number("filter.timestamp.gte"), number("filter.timestamp.lte"));
    let ack = call.parameter("filter.ack");
    let forgotten = session.forgotten();
    let chat = chat_filter(world, chat);
    let me = my_id(session);
    let mailbox = lock(&session.mailbox);
    let kept = mailbox
        .newest(chat.as_deref())
        .take_while(|entry| least.is_none_or(|least| entry.at.timestamp() >= least))
        .filter(|entry| entry.sequence > forgotten && is_listed(world, entry))
        .filter(|entry| most.is_none_or(|most| entry.at.timestamp() <= most))
        .filter(|entry| from_me.is_none_or(|from_me| entry.from_me == from_me))
        .filter(|entry| ack.is_none_or(|ack| ack_name(entry.ack) == ack));
    let with_file = wants_file(call);
    let written = |entry: &Entry| written(world, entry, &me, with_file);
    let (offset, limit) = (count(call, "offset", 0), count(call, "limit", 10));
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
pub(super) fn look_up(world: &World, session: &Session, chat: &str, id: &str) -> Option<u32> {
    if !id.contains('_') && !world.engine.honours_ids() {
        return None;
    }
    let mailbox = lock(&session.mailbox);
    let index = mailbox.find(chat_filter(world, chat).as_deref(), bare_id(id))?;
    mailbox.get(index).filter(|entry| entry.sequence > session.forgotten()).map(|_| index)
}

pub(super) fn message(world: &World, session: &Session, chat: &str, id: &str, call: &Call) -> Answer {
    let me = my_id(session);
    let index = look_up(world, session, chat, id);
    let mailbox = lock(&session.mailbox);
    match index.and_then(|index| mailbox.get(index)).filter(|entry| is_listed(world, entry)) {
        Some(entry) => Answer::json(200, written(world, entry, &me, wants_file(call))),
        None => Answer::nest(404, "Message not found"),
    }
}

pub(super) fn chats(world: &World, session: &Session, overview: bool, call: &Call) -> Answer {
    let me = my_id(session);
    let forgotten = session.forgotten();
    let mailbox = lock(&session.mailbox);
    let last = |chat: &str| mailbox.newest(Some(chat)).find(|entry| entry.sequence > forgotten);
    let mut latest: Vec<(&str, &Entry)> =
        mailbox.chats().filter_map(|chat| last(chat).map(|entry| (chat.as_ref(), entry))).collect();
    latest.sort_by_key(|(_, entry)| std::cmp::Reverse((entry.at.timestamp(), entry.sequence)));
    let page = latest.into_iter().skip(count(call, "offset", 0)).take(count(call, "limit", 20));
    let rows = page.map(|(chat, entry)| {
        let at = entry.at.timestamp();
        let name = mailbox.circles.groups.get(chat).map(|group| group.subject.as_str());
        if !overview {
            return json!({"id": chat, "conversationTimestamp": at, "name": name});
        }
        let message: Value = serde_json::from_str(&written(world, entry, &me, false)).unwrap_or_default();
        json!({"id": chat, "name": name, "picture": null, "lastMessage": message,
               "_chat": {"id": chat, "conversationTimestamp": at}})
    });
    Answer::of(200, &rows.collect::<Vec<_>>())
}

/// The known pairs of hidden id and number: those of people the session has talked to or shares a group with.
pub(super) fn lids(world: &World, session: &Session) -> Vec<Value> {
    let mailbox = lock(&session.mailbox);
    let of_chats = mailbox.chats().filter_map(|chat| numbers::number_of(chat));
    let groups = mailbox.circles.groups.values();
    let of_groups = groups.flat_map(|group| group.participants.keys()).filter_map(|id| numbers::number_of(id));
    let numbers: BTreeSet<String> = of_chats.chain(of_groups).filter(|number| world.knows_lid(number)).collect();
    numbers.into_iter().map(|number| json!({"lid": numbers::lid_of(&number), "pn": format!("{number}@c.us")})).collect()
}

pub(super) fn lid_page(world: &World, session: &Session, call: &Call) -> Answer {
    let page = lids(world, session).into_iter().skip(count(call, "offset", 0)).take(count(call, "limit", 100));
    Answer::of(200, &page.collect::<Vec<_>>())
}

pub(super) fn number_of_lid(world: &World, lid: &str) -> Answer {
    let lid = if lid.contains('@') { lid.to_owned() } else { format!("{lid}@lid") };
    let known = numbers::number_of(&lid).filter(|number| world.knows_lid(number));
    Answer::of(200, &json!({"lid": lid, "pn": known.map(|number| format!("{number}@c.us"))}))
}

pub(super) fn lid_of_number(world: &World, phone: &str) -> Answer {
    let chat = numbers::chat_id(phone);
    let known = numbers::number_of(&chat).filter(|number| world.knows_lid(number));
    Answer::of(200, &json!({"lid": known.map(|number| numbers::lid_of(&number)), "pn": chat}))
}

/// All groups; NOWEB answers them by id.
pub(super) fn groups(world: &World, session: &Session, call: &Call) -> Answer {
    let mailbox = lock(&session.mailbox);
    let all = mailbox.circles.groups.iter();
    let page = all.skip(count(call, "offset", 0)).take(count(call, "limit", usize::MAX));
    let rows = page.map(|(id, group)| (id.clone(), group.raw(world.engine, id)));
    if world.engine == Engine::Noweb {
        Answer::of(200, &Value::Object(rows.collect::<Map<_, _>>()))
    } else {
        Answer::of(200, &rows.map(|(_, group)| group).collect::<Vec<_>>())
    }
}

pub(super) fn group_count(session: &Session) -> Answer {
    Answer::of(200, &json!({"count": lock(&session.mailbox).circles.groups.len()}))
}

fn with_group(session: &Session, id: &str, answer: impl FnOnce(&Group) -> Answer) -> Answer {
    let mailbox = lock(&session.mailbox);
    mailbox.circles.groups.get(id).map_or_else(|| Answer::nest(404, "Group not found"), answer)
}

pub(super) fn group(world: &World, session: &Session, id: &str) -> Answer {
    with_group(session, id, |group| Answer::of(200, &group.raw(world.engine, id)))
}

pub(super) fn group_participants(world: &World, session: &Session, id: &str) -> Answer {
    with_group(session, id, |group| {
        let all = group.participants.iter().map(|(id, role)| participant(world.engine, id, role));
        Answer::of(200, &all.collect::<Vec<_>>())
    })
}
