//! Sends: what WhatsApp makes of a POST, and the life of the message after it.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::{Value, json};

use super::Engine;
use super::answers::{Answer, Failure};
use super::faults::Fault;
use super::ids;
use super::ledger::Arrival;
use super::numbers::{self, Fate};
use super::routes::Call;
use super::session::{Session, Status};
use super::shapes::Shape;
use super::webhooks::{self, Event};
use super::world::{World, lock};

/// The calls that put a message on somebody's screen.
pub(super) const ENDPOINTS: [(&str, &str); 9] = [
    ("sendText", "text"),
    ("sendImage", "image"),
    ("sendFile", "file"),
    ("sendVoice", "voice"),
    ("sendVideo", "video"),
    ("sendPoll", "poll"),
    ("sendLocation", "location"),
    ("sendContactVcard", "contact"),
    ("forwardMessage", "forward"),
];

/// How long the number for slow answers takes.
const SLOW: Duration = Duration::from_secs(10);

/// The record of one POST; ends when it is answered or when the caller hangs up.
pub(super) struct PostGuard {
    world: Arc<World>,
    session: Arc<Session>,
    index: usize,
    status: Option<u16>,
}

impl PostGuard {
    pub fn begin(world: &Arc<World>, session: &Arc<Session>, endpoint: &'static str, body: &Value) -> Self {
        let text = |name: &str| body.get(name).and_then(Value::as_str);
        let chat = text("chatId").map(numbers::chat_id);
        let tick = world.next_tick();
        let index = lock(&session.mailbox).post_begins(endpoint, chat.as_deref(), text("id"), world.now(), tick);
        Self { world: Arc::clone(world), session: Arc::clone(session), index, status: None }
    }

    pub fn index(&self) -> usize {
        self.index
    }

    pub fn answered(mut self, status: u16) {
        self.status = Some(status);
    }
}

impl Drop for PostGuard {
    fn drop(&mut self) {
        let tick = self.world.next_tick();
        lock(&self.session.mailbox).post_ends(self.index, self.status, self.world.now(), tick);
        self.world.changed.send_replace(());
    }
}

/// Sends one message and answers as the engine does.
pub(super) async fn send(
    world: Arc<World>,
    session: Arc<Session>,
    endpoint: &'static str,
    call: Arc<Call>,
    post: usize,
    fault: Option<Fault>,
) -> Answer {
    if let Err(status) = session.expect(&world, Status::Working).await {
        return Answer::wrong_state(&session.name, status.name(), &["WORKING"]);
    }
    let kind = ENDPOINTS.iter().find(|(name, _)| *name == endpoint).map_or("text", |(_, kind)| *kind);
    let Some(chat) = call.text("chatId") else {
        return type_error(&world, &call, "includes");
    };
    let chat = numbers::chat_id(chat);
    let (kind, text) = match content(&session, kind, &call) {
        Ok(content) => content,
        Err(Missing::Property(property)) => return type_error(&world, &call, property),
        Err(Missing::Message) => return Answer::nest(422, "Message to forward not found"),
    };
    let fate = numbers::fate_of(&chat);
    let fate = if fault == Some(Fault::Swallowed) { Fate { seen: false, last_ack: 0, ..fate } } else { fate };
    if fault == Some(Fault::Refused463) || (fate.refused && world.engine == Engine::Gows) {
        return refused_463(&world, &call);
    }
    let requested = call.text("id").filter(|id| !id.is_empty());
    let id = match requested {
        Some(id) if world.engine.honours_ids() && fault != Some(Fault::ForeignId) => id.to_owned(),
        _ => ids::message_id(&world.chance),
    };
    let now = world.now();
    session.touch(now.timestamp_millis());
    let (index, fresh) = {
        let mut mailbox = lock(&session.mailbox);
        let arrival = Arrival {
            // Drawn under the session's lock, so that the order of numbers is the order of arrival.
            sequence: world.next_sequence(),
            chat: &chat,
            id: &id,
            kind,
            text: &text,
            from_me: true,
            seen: fate.seen,
            at: now,
            ack: 0,
        };
        let (index, fresh) = mailbox.arrive(&arrival);
        mailbox.post_made(post, index);
        (index, fresh)
    };
    world.changed.send_replace(());
    let me = session.me();
    let me = me.as_deref().map_or("", |me| me.id.as_str());
    let shape = Shape {
        engine: world.engine,
        me,
        chat: &chat,
        id: &id,
        kind,
        text: &text,
        from_me: true,
        ack: 0,
        timestamp: now.timestamp(),
    };
    if fault != Some(Fault::Swallowed) {
        webhooks::emit(&world, &session, &[Event::MessageAny], &shape.wa_message());
        // A repeat is acked by the server again, and shown to nobody again.
        let fate = if fresh { fate } else { Fate { last_ack: fate.last_ack.min(1), replies: false, ..fate } };
        if fate.last_ack > 0 || fate.refused {
            let life = life(Arc::clone(&world), Arc::clone(&session), index, fate);
            drop(world.runtime.spawn(life));
        }
    }
    let answer = Answer::json(201, shape.send_answer(endpoint, fault == Some(Fault::NoId)));
    if fate.slow {
        world.pause(SLOW).await;
    }
    answer
}

/// Acks as they come in, and the reply; waits while the session is not WORKING, as WhatsApp does.
async fn life(world: Arc<World>, session: Arc<Session>, index: u32, fate: Fate) {
    if fate.refused {
        world.pause(world.between(100, 400)).await;
        acked(&world, &session, index, -1, fate).await;
        return;
    }
    for ack in 1..=fate.last_ack {
        let (least, most) = match ack {
            1 => (50, 250),
            2 => (150, 900),
            _ => (600, 2_500),
        };
        world.pause(world.between(least, most)).await;
        if !acked(&world, &session, index, ack, fate).await {
            return;
        }
    }
    if fate.replies {
        world.pause(world.between(800, 1_200)).await;
        let (chat, text) = {
            let mailbox = lock(&session.mailbox);
            let Some(entry) = mailbox.get(index) else { return };
            (Arc::clone(&entry.chat), format!("Reply to: {}", entry.text))
        };
        receive(&world, &session, &chat, &text, None).await;
    }
}

async fn acked(world: &Arc<World>, session: &Arc<Session>, index: u32, ack: i8, fate: Fate) -> bool {
    if !session.working().await {
        return false;
    }
    let me = session.me();
    let payload = {
        let mut mailbox = lock(&session.mailbox);
        mailbox.ack(index, ack);
        world.changed.send_replace(());
        if !session.has_acks() {
            return true;
        }
        let Some(entry) = mailbox.get(index) else { return false };
        let me = me.as_deref().map_or("", |me| me.id.as_str());
        let lid = numbers::number_of(&entry.chat).filter(|_| fate.lid_acks).map(|number| numbers::lid_of(&number));
        let shape = Shape::of(entry, world.engine, me);
        Shape { ack, chat: lid.as_deref().unwrap_or(shape.chat), ..shape }.ack_payload()
    };
    webhooks::emit(world, session, &[Event::MessageAck], &payload);
    true
}

/// Somebody writes to the session; waits while it is not WORKING. The message's bare id.
pub(super) async fn receive(
    world: &Arc<World>,
    session: &Arc<Session>,
    chat: &str,
    text: &str,
    id: Option<&str>,
) -> Option<String> {
    if !session.working().await {
        return None;
    }
    let now: DateTime<Utc> = world.now();
    let id = id.map_or_else(|| ids::message_id(&world.chance), str::to_owned);
    session.touch(now.timestamp_millis());
    {
        let mut mailbox = lock(&session.mailbox);
        let sequence = world.next_sequence();
        let arrival =
            Arrival { sequence, chat, id: &id, kind: "text", text, from_me: false, seen: true, at: now, ack: 2 };
        let _known = mailbox.arrive(&arrival);
    }
    world.changed.send_replace(());
    let me = session.me();
    let shape = Shape {
        engine: world.engine,
        me: me.as_deref().map_or("", |me| me.id.as_str()),
        chat,
        id: &id,
        kind: "text",
        text,
        from_me: false,
        ack: 2,
        timestamp: now.timestamp(),
    };
    webhooks::emit(world, session, &[Event::Message, Event::MessageAny], &shape.wa_message());
    Some(id)
}

enum Missing {
    /// A member the engine reads without looking; Node's word for it is in the answer.
    Property(&'static str),
    Message,
}

/// The kind and the words of a message.
fn content(session: &Session, kind: &'static str, call: &Call) -> Result<(&'static str, String), Missing> {
    let at = |pointer: &str| call.body.pointer(pointer).and_then(Value::as_str);
    let words = match kind {
        "text" => at("/text").ok_or(Missing::Property("match"))?,
        "image" | "file" | "voice" | "video" => {
            let _source = at("/file/url").or(at("/file/data")).ok_or(Missing::Property("url"))?;
            at("/caption").unwrap_or_default()
        }
        "poll" => at("/poll/name").ok_or(Missing::Property("name"))?,
        "location" => at("/title").unwrap_or_default(),
        "contact" => at("/contacts/0/fullName").or(at("/contacts/0/vcard")).ok_or(Missing::Property("map"))?,
        _ => {
            let id = bare_id(at("/messageId").ok_or(Missing::Property("split"))?);
            let mailbox = lock(&session.mailbox);
            let entry = mailbox.find(None, id).and_then(|index| mailbox.get(index)).ok_or(Missing::Message)?;
            return Ok((entry.kind, entry.text.as_ref().to_owned()));
        }
    };
    Ok((kind, words.to_owned()))
}

/// The third part of `true_111@c.us_3EB0…[_participant]`, or all of a bare id.
pub(super) fn bare_id(id: &str) -> &str {
    id.split('_').nth(2).unwrap_or(id)
}

fn type_error(world: &World, call: &Call, property: &str) -> Answer {
    let message = format!("Cannot read properties of undefined (reading '{property}')");
    let stack = format!(
        "TypeError: {message}\n    at process.processTicksAndRejections (node:internal/process/task_queues:95:5)"
    );
    engine_error(world, call, &json!({"message": message, "name": "TypeError", "stack": stack}))
}

fn refused_463(world: &World, call: &Call) -> Answer {
    let details = "server returned error 463";
    let exception = json!({
        "name": "Error",
        "message": format!("2 UNKNOWN: {details}"),
        "stack": format!("Error: 2 UNKNOWN: {details}\n    at callErrorFromStatus (/app/node_modules/@grpc/grpc-js/build/src/call.js:32:19)"),
        "code": 2,
        "details": details,
    });
    engine_error(world, call, &exception)
}

/// The 500 of an engine that lost its connection.
pub(super) fn connection_closed(world: &World, call: &Call) -> Answer {
    let exception = json!({
        "message": "Connection Closed",
        "isBoom": true,
        "output": {},
        "name": "Error",
        "stack": "Error: Connection Closed\n    at process.processTicksAndRejections (node:internal/process/task_queues:95:5)",
    });
    engine_error(world, call, &exception)
}

fn engine_error(world: &World, call: &Call, exception: &Value) -> Answer {
    let failure = Failure {
        method: &call.method,
        path: &call.path,
        body: &call.raw,
        environment: &world.environment,
        now: world.now(),
    };
    Answer::engine_error(&failure, exception)
}
