//! What happens on WhatsApp's side, in its order: at once while the session hears it, else as soon as it does.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use super::session::{Session, Status};
use super::world::{World, lock};

/// Something that happens to a session.
type Deed = Box<dyn FnOnce(&Arc<World>, &Arc<Session>) + Send>;

/// What a session has not heard of yet.
#[derive(Default)]
pub(super) struct Deeds(Mutex<VecDeque<Option<Deed>>>);

/// Does it now, if the session is WORKING and not in name only and nothing waits before it; else later, in order. What waits for
/// a session that is deleted never happens.
pub(super) fn happen(
    world: &Arc<World>,
    session: &Arc<Session>,
    deed: impl FnOnce(&Arc<World>, &Arc<Session>) + Send + 'static,
) {
    {
        let mut waiting = lock(&session.deeds.0);
        let hears = session.current() == Status::Working && !session.is_undead();
        if !waiting.is_empty() || !hears {
            waiting.push_back(Some(Box::new(deed)));
            if waiting.len() == 1 {
                drop(world.runtime.spawn(catch_up(Arc::clone(world), Arc::clone(session))));
            }
            return;
        }
    }
    deed(world, session);
}

async fn catch_up(world: Arc<World>, session: Arc<Session>) {
    loop {
        let alive = session.alive().await;
        let deed = {
            let mut waiting = lock(&session.deeds.0);
            if !alive {
                waiting.clear();
                return;
            }
            // Its place stays taken while it happens, so that nothing overtakes it.
            let Some(first) = waiting.front_mut() else { return };
            first.take()
        };
        if let Some(deed) = deed {
            deed(&world, &session);
        }
        let mut waiting = lock(&session.deeds.0);
        drop(waiting.pop_front());
        if waiting.is_empty() {
            return;
        }
    }
}
