//! Many sessions at once that are paired and WORKING from the start, for benchmarks: no codes, no events, no waiting.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

use super::answers::Answer;
use super::routes::Call;
use super::session::Session;
use super::world::World;

/// The body of `POST /_simulator/fleet`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fleet {
    sessions: Vec<Member>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Member {
    name: String,
    /// The digits of its phone number.
    number: String,
    /// As `POST /api/sessions` takes it.
    config: Value,
}

/// Makes the sessions of the call; one that exists is replaced.
pub(super) fn answer(world: &Arc<World>, call: &Call) -> Answer {
    let fleet: Fleet = match serde_json::from_slice(&call.raw) {
        Ok(fleet) => fleet,
        Err(error) => return Answer::nest(400, &error.to_string()),
    };
    for member in fleet.sessions {
        let session = Session::new(world, &member.name, Some(member.config));
        session.work_as(world, &member.number);
        world.sessions_mut().insert(Arc::clone(&session.name), session);
    }
    world.changed.send_replace(());
    Answer::empty(204)
}
