//! The calls under `/_simulator/` that stand for people: each does what the [`Control`] of the same name does.

use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::answers::Answer;
use super::circles::{CallEnd, Label, Membership};
use super::control::{Control, ControlError};
use super::history::History;
use super::routes::Call;
use super::saying::{Naming, Presence, Writing};

/// Members beside the session's name.
#[derive(Deserialize)]
struct Of<T> {
    session: String,
    #[serde(flatten)]
    rest: T,
}

#[derive(Deserialize)]
struct Written {
    chat: String,
    message: Writing,
}

#[derive(Deserialize)]
struct Message {
    id: String,
}

#[derive(Deserialize)]
struct Told {
    id: String,
    naming: Naming,
}

#[derive(Deserialize)]
struct Edited {
    id: String,
    text: String,
}

#[derive(Deserialize)]
struct Reacted {
    id: String,
    #[serde(default)]
    who: Option<String>,
    emoji: String,
}

#[derive(Deserialize)]
struct Voted {
    id: String,
    #[serde(default)]
    who: Option<String>,
    /// None of a vote that cannot be decrypted.
    #[serde(default)]
    options: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Acked {
    id: String,
    level: i8,
    #[serde(default)]
    participant: Option<String>,
}

#[derive(Deserialize)]
struct Chat {
    chat: String,
}

#[derive(Deserialize)]
struct Called {
    from: String,
    #[serde(default)]
    video: bool,
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    end: Option<CallEnd>,
}

#[derive(Deserialize)]
struct Grouped {
    group: String,
    #[serde(default)]
    subject: Option<String>,
    #[serde(default)]
    participants: Vec<String>,
    #[serde(default)]
    change: Option<Membership>,
    #[serde(default)]
    left: bool,
}

#[derive(Deserialize)]
struct Present {
    chat: String,
    #[serde(default)]
    participant: Option<String>,
    presence: Presence,
}

#[derive(Deserialize)]
struct Labelled {
    #[serde(default)]
    label: Option<Label>,
    #[serde(default)]
    deleted: Option<String>,
    #[serde(default)]
    chat: Option<(String, String, bool)>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Learnt {
    number: String,
    learnt: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Lifetime {
    seconds: u64,
}

/// One call; none when it is another one.
pub(super) fn answer(control: &Control, name: &str, call: &Call) -> Option<Answer> {
    Some(match name {
        "POST write" => of(call, |session, Written { chat, message }| {
            made(control.write(session, &chat, message).map(|id| json!({"id": id})))
        }),
        "POST reveal" => of(call, |session, Message { id }| done(control.reveal(session, &id))),
        "POST tell-again" => of(call, |session, Told { id, naming }| done(control.tell_again(session, &id, naming))),
        "POST edit" => of(call, |session, Edited { id, text }| done(control.edit(session, &id, &text))),
        "POST revoke" => of(call, |session, Message { id }| done(control.revoke(session, &id))),
        "POST react" => {
            of(call, |session, Reacted { id, who, emoji }| done(control.react(session, &id, who.as_deref(), &emoji)))
        }
        "POST vote" => of(call, |session, Voted { id, who, options }| match (options, who) {
            (Some(options), who) => {
                let options: Vec<&str> = options.iter().map(String::as_str).collect();
                done(control.vote(session, &id, who.as_deref(), &options))
            }
            (None, Some(who)) => done(control.vote_failed(session, &id, &who)),
            (None, None) => Answer::nest(400, "who is needed"),
        }),
        "POST ack" => of(call, |session, Acked { id, level, participant }| {
            done(control.ack(session, &id, level, participant.as_deref()))
        }),
        "POST read-on-phone" => of(call, |session, Chat { chat }| done(control.read_on_phone(session, &chat))),
        "POST call" => of(call, |session, Called { from, video, id, end }| match (id, end) {
            (Some(id), Some(end)) => done(control.call_ended(session, &id, &from, end)),
            _ => made(control.call(session, &from, video).map(|id| json!({"id": id}))),
        }),
        "POST group" => of(call, |session, group: Grouped| done(grouped(control, session, &group))),
        "POST presence" => of(call, |session, Present { chat, participant, presence }| {
            done(control.presence(session, &chat, participant.as_deref(), presence))
        }),
        "POST label" => of(call, |session, labelled: Labelled| done(label(control, session, labelled))),
        "POST history" => of(call, |session, history: History| {
            made(control.history(session, &history).map(|run| json!({"ids": run.ids})))
        }),
        "GET conversation" => match control.conversation(call.parameter("session").unwrap_or_default()) {
            Ok(conversations) => Answer::of(200, &conversations),
            Err(error) => done(Err(error)),
        },
        "POST lid" => with(call, |Learnt { number, learnt }| {
            control.lid_learnt(&number, learnt);
            Answer::empty(204)
        }),
        "POST file-lifetime" => with(call, |Lifetime { seconds }| {
            control.file_lifetime(Duration::from_secs(seconds));
            Answer::empty(204)
        }),
        _ => return None,
    })
}

fn grouped(control: &Control, session: &str, group: &Grouped) -> Result<(), ControlError> {
    let people: Vec<&str> = group.participants.iter().map(String::as_str).collect();
    match (group.left, group.change, &group.subject) {
        (true, _, _) => control.group_left(session, &group.group),
        (false, Some(change), _) => control.group_members(session, &group.group, change, &people),
        (false, None, Some(subject)) if people.is_empty() => control.group_named(session, &group.group, subject),
        (false, None, subject) => {
            control.group_joined(session, &group.group, subject.as_deref().unwrap_or_default(), &people)
        }
    }
}

fn label(control: &Control, session: &str, labelled: Labelled) -> Result<(), ControlError> {
    if let Some(label) = labelled.label {
        control.label(session, label)?;
    }
    if let Some((id, chat, on)) = labelled.chat {
        control.label_chat(session, &id, &chat, on)?;
    }
    labelled.deleted.map_or(Ok(()), |id| control.label_deleted(session, &id))
}

fn done(result: Result<(), ControlError>) -> Answer {
    match result {
        Ok(()) => Answer::empty(204),
        Err(error @ ControlError::NoSuchSession) => Answer::nest(404, &error.to_string()),
        Err(error) => Answer::nest(422, &error.to_string()),
    }
}

fn made(result: Result<Value, ControlError>) -> Answer {
    result.map_or_else(|error| done(Err(error)), |made| Answer::of(201, &made))
}

fn with<T: DeserializeOwned>(call: &Call, act: impl FnOnce(T) -> Answer) -> Answer {
    serde_json::from_slice(&call.raw).map_or_else(|error| Answer::nest(400, &error.to_string()), act)
}

fn of<T: DeserializeOwned>(call: &Call, act: impl FnOnce(&str, T) -> Answer) -> Answer {
    with(call, |Of { session, rest }: Of<T>| act(&session, rest))
}
