//! What becomes of messages after they were written, by whichever side: changed in the store, and told.

use std::sync::Arc;

use serde_json::{Value, json};

use super::Engine;
use super::files;
use super::ids;
use super::mailbox::{Given, More};
use super::raw;
use super::saying::Naming;
use super::session::Session;
use super::shapes::Shape;
use super::webhooks::{self, Event};
use super::world::{World, lock};

/// The session's own chat id; empty while it is not paired.
pub(super) fn my_id(session: &Session) -> String {
    session.me().map_or_else(String::new, |me| me.id.clone())
}

/// Tells of a message that came into being.
pub(super) fn tell(world: &Arc<World>, session: &Session, index: u32, naming: Option<Naming>) {
    if let Some((events, payload)) = written(world, session, index, naming) {
        webhooks::emit(world, session, events, &payload);
    }
}

/// Under which names a message is told, and its form.
pub(super) fn written(
    world: &World,
    session: &Session,
    index: u32,
    naming: Option<Naming>,
) -> Option<(&'static [Event], String)> {
    let me = my_id(session);
    let mailbox = lock(&session.mailbox);
    let entry = mailbox.get(index)?;
    let shape = Shape::of(entry, world.engine, &me);
    let stub = shape.more.is_some_and(|more| more.stub);
    let media = if stub { None } else { files::media_of(world, entry, false) };
    let shape = Shape { naming: naming.unwrap_or(shape.naming), media: media.as_ref(), ..shape };
    let events: &[Event] = match (entry.from_me, stub && world.engine == Engine::Webjs) {
        (_, true) => &[Event::MessageWaiting],
        (true, false) => &[Event::MessageAny],
        (false, false) => &[Event::Message, Event::MessageAny],
    };
    Some((events, shape.wa_message()))
}

/// The text of a message becomes another one.
pub(super) fn edit(world: &Arc<World>, session: &Session, index: u32, text: &str) {
    let me = my_id(session);
    let fresh = ids::message_id(&world.chance);
    let payload = {
        let mut mailbox = lock(&session.mailbox);
        let Some(entry) = mailbox.get_mut(index) else { return };
        entry.edit(text);
        let original = Shape::of(entry, world.engine, &me);
        // The change is a message of its own but on WEBJS, where it is the message as it is now.
        let changed = match world.engine {
            Engine::Webjs => original,
            _ => Shape { id: &fresh, kind: "text", content: None, timestamp: world.now().timestamp(), ..original },
        };
        let message = changed.wa_message();
        let head = message.strip_suffix('}').unwrap_or_default();
        format!(r#"{head},"editedMessageId":{}}}"#, json!(original.id))
    };
    world.changed.send_replace(());
    webhooks::emit(world, session, &[Event::MessageEdited], &payload);
}

/// A message is taken back for everyone.
pub(super) fn revoke(world: &Arc<World>, session: &Session, index: u32) {
    let me = my_id(session);
    let fresh = ids::message_id(&world.chance);
    let payload = {
        let mut mailbox = lock(&session.mailbox);
        let Some(entry) = mailbox.get_mut(index) else { return };
        let shape = Shape::of(entry, world.engine, &me);
        let payload = if shape.is_browser() {
            let (before, after) = (shape.wa_message(), Shape { revoked: true, ..shape }.wa_message());
            format!(r#"{{"after":{after},"before":{before},"revokedMessageId":{}}}"#, json!(shape.id))
        } else {
            // A message of its own that names the other one; what that was, these engines do not say.
            let now = world.now().timestamp();
            let after = Shape { id: &fresh, revoked: true, timestamp: now, ..shape }.wa_message();
            let mut after: Value = serde_json::from_str(&after).unwrap_or_default();
            let data = after.get_mut("_data").and_then(Value::as_object_mut);
            let chat = raw::jid(&shape.chat_name());
            if let Some(data) = data {
                for flag in ["messageStubType", "IsRevoked", "reactions"] {
                    data.remove(flag);
                }
                if world.engine == Engine::Gows {
                    let key = json!({"remoteJID": chat, "fromMe": shape.from_me, "ID": shape.id});
                    data.insert("Message".to_owned(), json!({"protocolMessage": {"key": key, "type": 0}}));
                } else {
                    let key = json!({"remoteJid": chat, "fromMe": shape.from_me, "id": shape.id});
                    data.insert("message".to_owned(), json!({"protocolMessage": {"key": key, "type": "REVOKE"}}));
                }
            }
            json!({"after": after, "before": null, "revokedMessageId": shape.id}).to_string()
        };
        entry.revoked = true;
        payload
    };
    world.changed.send_replace(());
    webhooks::emit(world, session, &[Event::MessageRevoked], &payload);
}

/// Who does something about a message: the session's account (through WAHA, or on the phone), or somebody else.
#[derive(Clone, Debug)]
pub(super) enum Who {
    Api,
    Phone,
    Other(String),
}

impl Who {
    pub fn is_me(&self) -> bool {
        !matches!(self, Self::Other(_))
    }

    /// As a message of this person's would have it.
    fn more(&self, naming: Naming) -> More {
        let participant = match self {
            Self::Other(person) => Some(person.clone()),
            _ => None,
        };
        More { app: !matches!(self, Self::Api), participant, naming, ..More::default() }
    }

    /// The key under which it is put down; empty for the session's account.
    fn key(&self) -> String {
        match self {
            Self::Other(person) => person.clone(),
            _ => String::new(),
        }
    }
}

/// Somebody reacts to a message, or takes a reaction back. The id of the reaction.
pub(super) fn react(
    world: &Arc<World>,
    session: &Session,
    index: u32,
    who: &Who,
    emoji: &str,
    naming: Option<Naming>,
) -> Option<String> {
    let me = my_id(session);
    let fresh = ids::message_id(&world.chance);
    let at_ms = world.next_moment();
    let payload = {
        let mut mailbox = lock(&session.mailbox);
        let entry = mailbox.get_mut(index)?;
        if who.is_me() {
            entry.reaction = (!emoji.is_empty()).then(|| emoji.into());
        }
        let given = Given { emoji: emoji.to_owned(), at_ms };
        entry.more_mut().reactions.insert(who.key(), given);
        let target = Shape::of(entry, world.engine, &me);
        let target = Shape { naming: naming.unwrap_or(target.naming), ..target };
        let more = who.more(target.naming);
        let own = Shape { id: &fresh, from_me: who.is_me(), more: Some(&more), content: None, ..target };
        let (from, to) = own.ends();
        // NOWEB has it from milliseconds.
        let timestamp = match world.engine {
            Engine::Noweb => fraction(at_ms),
            _ => json!(at_ms / 1_000),
        };
        json!({
            "id": own.serialized_id(),
            "from": from,
            "to": to,
            "fromMe": own.from_me,
            "participant": own.participant_name(),
            "timestamp": timestamp,
            "source": if more.app { "app" } else { "api" },
            "reaction": {"text": emoji, "messageId": target.serialized_id()},
        })
    };
    world.changed.send_replace(());
    webhooks::emit(world, session, &[Event::MessageReaction], &payload.to_string());
    Some(fresh)
}

/// Milliseconds as seconds with a fraction.
pub(super) fn fraction(ms: i64) -> Value {
    #[expect(clippy::cast_precision_loss, reason = "milliseconds of this millennium fit exactly")]
    let seconds = ms as f64 / 1_000.0;
    json!(seconds)
}

/// Somebody chooses among a poll's options, anew; `None`: in a way that cannot be decrypted.
pub(super) fn vote(
    world: &Arc<World>,
    session: &Session,
    index: u32,
    who: &Who,
    options: Option<&[String]>,
    naming: Option<Naming>,
) {
    let me = my_id(session);
    let fresh = ids::message_id(&world.chance);
    let at_ms = world.next_moment();
    let payload = {
        let mut mailbox = lock(&session.mailbox);
        let Some(entry) = mailbox.get_mut(index) else { return };
        if let Some(options) = options {
            entry.more_mut().votes.insert(who.key(), (at_ms, options.to_vec()));
        }
        let poll = Shape::of(entry, world.engine, &me);
        let poll = Shape { naming: naming.unwrap_or(poll.naming), ..poll };
        let more = who.more(poll.naming);
        let vote = Shape { id: &fresh, from_me: who.is_me(), more: Some(&more), content: None, ..poll };
        let ends = |shape: &Shape<'_>| {
            let (from, to) = shape.ends();
            let (from, to) = (from.into_owned(), to.map(std::borrow::Cow::into_owned));
            json!({
                "id": shape.serialized_id(),
                "from": from,
                "to": to.unwrap_or_else(|| if shape.from_me { from.clone() } else { me.clone() }),
                "fromMe": shape.from_me,
                "participant": shape.participant_name(),
            })
        };
        let (mut told, mut of) = (ends(&vote), ends(&poll));
        for side in [&mut told, &mut of] {
            if let Some(members) = side.as_object_mut() {
                members.retain(|_, value| !value.is_null());
            }
        }
        let timestamp = if poll.is_browser() { at_ms / 1_000 } else { at_ms };
        if let Some(members) = told.as_object_mut() {
            members.insert("selectedOptions".to_owned(), json!(options.unwrap_or_default()));
            members.insert("timestamp".to_owned(), json!(timestamp));
        }
        json!({"vote": told, "poll": of, "_data": {}})
    };
    world.changed.send_replace(());
    let event = if options.is_some() { Event::PollVote } else { Event::PollVoteFailed };
    webhooks::emit(world, session, &[event], &payload.to_string());
}

/// How far a message came, told as it is: nothing is filtered.
pub(super) fn tell_ack(world: &Arc<World>, session: &Session, index: u32, ack: i8, reader: Option<&str>) {
    let me = my_id(session);
    let payload = {
        let mut mailbox = lock(&session.mailbox);
        mailbox.ack(index, ack);
        let Some(entry) = mailbox.get(index) else { return };
        let shape = Shape { ack, ..Shape::of(entry, world.engine, &me) };
        shape.ack_payload(None, reader)
    };
    world.changed.send_replace(());
    if session.has_acks() {
        let event = if reader.is_some() { Event::MessageAckGroup } else { Event::MessageAck };
        webhooks::emit(world, session, &[event], &payload);
    }
}
