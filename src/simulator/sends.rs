//! Sends: what WhatsApp makes of a POST, and the life of the message after it.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

use super::Engine;
use super::answers::{Answer, Failure};
use super::content::{self, Missing};
use super::deeds;
use super::faults::Fault;
use super::ids;
use super::mailbox::{Arrival, Mailbox, More, PostStart};
use super::numbers::{self, Fate};
use super::routes::{Call, Route};
use super::saying::{Naming, Writing};
use super::session::{Session, Status};
use super::shapes::Shape;
use super::webhooks::{self, Event};
use super::world::{World, lock};
use super::writing;

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

/// The record of one call; ends when it is answered or when the caller hangs up.
pub(super) struct PostGuard {
    world: Arc<World>,
    mailbox: Arc<Mutex<Mailbox>>,
    index: usize,
    status: Option<u16>,
}

impl PostGuard {
    /// Puts down a send, or another call that the ledger keeps; none for the rest.
    pub fn begin(
        world: &Arc<World>,
        route: &Route,
        name: &str,
        session: Option<&Session>,
        call: &Call,
    ) -> Option<Self> {
        let (endpoint, is_send, chat, about, words) = match route {
            Route::Send(endpoint) => (
                *endpoint,
                true,
                call.text("chatId").map(numbers::chat_id),
                call.text("id").map(Into::into),
                content::words(call),
            ),
            route => {
                let (chat, about) = route.about(call);
                (route.call_name()?, false, chat.map(|chat| numbers::chat_id(&chat)), about.map(Into::into), None)
            }
        };
        let mailbox = match session {
            Some(session) => Arc::clone(&session.mailbox),
            // What steers a session is kept even when it does not exist.
            None if is_lifecycle(route) && !name.is_empty() => world.mailbox(&Arc::from(name)),
            None => return None,
        };
        let start = PostStart {
            endpoint,
            is_send,
            chat: chat.map(Into::into),
            requested_id: about,
            text: words.map(Into::into),
            working: session.is_some_and(|session| session.current() == Status::Working),
            at: world.now(),
            tick: world.next_tick(),
        };
        let index = lock(&mailbox).post_begins(start);
        Some(Self { world: Arc::clone(world), mailbox, index, status: None })
    }

    pub fn index(&self) -> usize {
        self.index
    }

    pub fn answered(mut self, status: u16) {
        self.status = Some(status);
    }
}

fn is_lifecycle(route: &Route) -> bool {
    use Route::{CreateSession, DeleteSession, Logout, Restart, Start, Stop, UpdateSession};
    matches!(route, CreateSession | DeleteSession | Logout | Restart | Start | Stop | UpdateSession)
}

impl Drop for PostGuard {
    fn drop(&mut self) {
        let tick = self.world.next_tick();
        lock(&self.mailbox).post_ends(self.index, self.status, self.world.now(), tick);
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
    let fault = fault.or_else(|| session.is_undead().then_some(Fault::Swallowed));
    let kind = ENDPOINTS.iter().find(|(name, _)| *name == endpoint).map_or("text", |(_, kind)| *kind);
    let Some(chat) = call.text("chatId") else {
        return type_error(&world, &call, "includes");
    };
    let named = numbers::chat_id(chat);
    let chat = numbers::canonical(&named);
    // A chat that is written to under its hidden id is told of under it, too.
    let naming = Naming { lid: named != chat, ..Naming::default() };
    let said = match content::understand(&world, &session, kind, &call).await {
        Ok(said) => said,
        Err(Missing::Property(property)) => return type_error(&world, &call, property),
        Err(Missing::Message) => return Answer::nest(422, "Message to forward not found"),
        Err(Missing::File(message)) => return axios_error(&world, &call, &message),
    };
    let fate = fate_under(world.fate_of(&chat), fault);
    if fault == Some(Fault::Refused463) || (fate.refused && world.engine == Engine::Gows && fault.is_none()) {
        return refused_by_whatsapp(&world, &call, 463);
    }
    let brakes = session.brakes();
    let cold = (brakes.timelock.is_some() || brakes.capping.is_some()) && !lock(&session.mailbox).has_talked(&chat);
    if cold && brakes.refuse_cold() && world.engine == Engine::Gows {
        return refused_by_whatsapp(&world, &call, 463);
    }
    let braked = cold && brakes.refuse_cold();
    let fate = if braked { Fate { seen: false, last_ack: 0, refused: true, ..fate } } else { fate };
    if cold && !braked && fate.seen {
        session.brake(&world, |brakes| {
            if let Some(capping) = &mut brakes.capping {
                capping.used = capping.used.saturating_add(1);
            }
        });
    }
    let (kind, text, content) = (said.kind, said.text, said.content.map(Arc::new));
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
            content: content.clone(),
            from_me: true,
            seen: fate.seen,
            repeats_show: world.repeats_show.load(Ordering::Relaxed),
            at: now,
            ack: 0,
            more: naming.lid.then(|| Box::new(More { naming, ..More::default() })),
        };
        let (index, fresh) = mailbox.arrive(&arrival);
        mailbox.post_made(post, index);
        (index, fresh)
    };
    world.changed.send_replace(());
    let me = session.me();
    let me = me.as_deref().map_or("", |me| me.id.as_str());
    let shape = Shape {
        kind,
        naming,
        content: content.as_deref(),
        ..Shape::plain(world.engine, me, &chat, &id, &text, now.timestamp())
    };
    if fault != Some(Fault::Swallowed) {
        webhooks::emit(&world, &session, &[Event::MessageAny], &shape.wa_message());
        // A repeat is acked by the server again, and shown to nobody again.
        let fate = if fresh { fate } else { Fate { last_ack: fate.last_ack.min(1), replies: false, ..fate } };
        if fate.last_ack > 0 || fate.refused || fate.replies {
            let life = life(Arc::clone(&world), Arc::clone(&session), index, fate, fault);
            drop(world.runtime.spawn(life));
        }
    }
    let answer = Answer::json(201, shape.send_answer(endpoint, fault == Some(Fault::NoId)));
    if fate.slow {
        world.pause(SLOW).await;
    }
    answer
}

/// What a fault makes of a message that is accepted.
fn fate_under(fate: Fate, fault: Option<Fault>) -> Fate {
    match fault {
        Some(Fault::Swallowed | Fault::StuckWithoutSend) => Fate { seen: false, last_ack: 0, refused: false, ..fate },
        Some(Fault::StuckAfterSend) => Fate { last_ack: 0, ..fate },
        Some(Fault::AckError) => Fate { seen: false, last_ack: 0, refused: true, ..fate },
        Some(Fault::AckErrorLate) => Fate { last_ack: fate.last_ack.min(1), replies: false, ..fate },
        _ => fate,
    }
}

/// Acks as they come in, and the reply; waits while the session is not WORKING, as WhatsApp does.
async fn life(world: Arc<World>, session: Arc<Session>, index: u32, fate: Fate, fault: Option<Fault>) {
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
        let told = fault != Some(Fault::AckReadOnly) || ack == fate.last_ack;
        if told && !acked(&world, &session, index, ack, fate).await {
            return;
        }
    }
    if fault == Some(Fault::AckErrorLate) {
        world.pause(world.between(100, 400)).await;
        acked(&world, &session, index, -1, fate).await;
        return;
    }
    if fate.replies {
        world.pause(world.between(800, 1_200)).await;
        let (chat, text) = {
            let mailbox = lock(&session.mailbox);
            let Some(entry) = mailbox.get(index) else { return };
            (Arc::clone(&entry.chat), format!("Reply to: {}", entry.text))
        };
        let id = ids::message_id(&world.chance);
        let reply = Writing::text(&text);
        deeds::happen(&world, &session, move |world, session| writing::write(world, session, &chat, &id, &reply));
    }
}

async fn acked(world: &Arc<World>, session: &Session, index: u32, ack: i8, fate: Fate) -> bool {
    if !session.alive().await {
        return false;
    }
    let me = session.me();
    let payloads: Vec<(Event, String)> = {
        let mut mailbox = lock(&session.mailbox);
        mailbox.ack(index, ack);
        world.changed.send_replace(());
        if !session.has_acks() {
            return true;
        }
        let Some(entry) = mailbox.get(index) else { return false };
        let me = me.as_deref().map_or("", |me| me.id.as_str());
        let shape = Shape::of(entry, world.engine, me);
        let naming = if fate.lid_acks { Naming { lid: true, ..shape.naming } } else { shape.naming };
        let shape = Shape { ack, naming, ..shape };
        // In a group whose participants are known, each of them has it and reads it for himself.
        let group = mailbox.circles.groups.get(entry.chat.as_ref()).filter(|_| ack > 1);
        match group {
            Some(group) => {
                let others = group.participants.keys().filter(|person| *person != me);
                others.map(|person| (Event::MessageAckGroup, shape.ack_payload(None, Some(person)))).collect()
            }
            None => {
                let timelock = session.brakes().timelock.filter(|_| ack == -1);
                vec![(Event::MessageAck, shape.ack_payload(timelock.map(|lock| lock.until), None))]
            }
        }
    };
    for (event, payload) in payloads {
        webhooks::emit(world, session, &[event], &payload);
    }
    true
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

/// WhatsApp's server refused the message; not sent.
pub(super) fn refused_by_whatsapp(world: &World, call: &Call, code: u16) -> Answer {
    let details = format!("server returned error {code}");
    let exception = json!({
        "name": "Error",
        "message": format!("2 UNKNOWN: {details}"),
        "stack": format!("Error: 2 UNKNOWN: {details}\n    at callErrorFromStatus (/app/node_modules/@grpc/grpc-js/build/src/call.js:32:19)"),
        "code": 2,
        "details": details,
    });
    engine_error(world, call, &exception)
}

/// The file could not be fetched; nothing was sent.
fn axios_error(world: &World, call: &Call, message: &str) -> Answer {
    let exception = json!({
        "name": "AxiosError",
        "message": message,
        "stack": format!("AxiosError: {message}\n    at settle (/app/node_modules/axios/dist/node/axios.cjs:2019:12)"),
        "code": "ERR_BAD_REQUEST",
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
