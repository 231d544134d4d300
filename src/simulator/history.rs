//! What a session finds when it was away: many messages of old times at once.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde::Deserialize;
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};

use super::control::{Control, ControlError};
use super::happenings;
use super::ids;
use super::saying::Writing;
use super::session::Session;
use super::webhooks;
use super::world::World;
use super::writing;

/// Messages of old times; see [`Control::history`].
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct History {
    /// So many direct chats, of the numbers `+1 555 04x xxxx`.
    pub chats: u32,
    /// So many messages in all, in turns over the chats.
    pub count: u32,
    /// When the first was written; the last was just now, the others evenly in between.
    pub since: DateTime<Utc>,
    /// Every so many-th was written on the own phone; 0 for none.
    #[serde(default)]
    pub by_phone_every: u32,
    /// Webhooks tell of them, so many under way at once; 0: nobody tells, they can be read back only.
    #[serde(default)]
    pub told_at_once: usize,
}

/// A history that was put into the store.
pub struct HistoryRun {
    /// The bare ids, oldest first.
    pub ids: Vec<String>,
    telling: Option<JoinHandle<()>>,
}

impl HistoryRun {
    /// Returns once the receiver has taken every webhook, or its attempts ran out; the bare ids.
    pub async fn told(self) -> Vec<String> {
        if let Some(telling) = self.telling {
            // It ends early only with the runtime.
            drop(telling.await);
        }
        self.ids
    }
}

impl Control {
    /// Puts messages of old times into the session's store and, if asked, tells of them as fast as the receiver takes them.
    ///
    /// # Errors
    /// The session does not exist or is not paired.
    pub fn history(&self, session: &str, history: &History) -> Result<HistoryRun, ControlError> {
        let session = self.paired(session)?;
        let now = self.world.now();
        let span = (now - history.since).num_seconds().max(0);
        let steps = i64::from(history.count.saturating_sub(1).max(1));
        let (mut ids, mut places) = (Vec::new(), Vec::new());
        for n in 0..history.count {
            let number = format!("155504{:05}", n % history.chats.max(1));
            let at = history.since + chrono::TimeDelta::seconds(span * i64::from(n) / steps);
            let by_phone = history.by_phone_every > 0 && n % history.by_phone_every == history.by_phone_every - 1;
            let text = Writing::text(&format!("history {n}")).at(at);
            let text = if by_phone { text.by_phone() } else { text };
            let id = ids::message_id(&self.world.chance);
            if let Some((index, _)) = writing::put(&self.world, &session, &number, &id, &text) {
                places.push(index);
                ids.push(id);
            }
        }
        self.world.changed.send_replace(());
        let telling = (history.told_at_once > 0).then(|| {
            let world = Arc::clone(&self.world);
            let at_once = history.told_at_once;
            self.world.runtime.spawn(async move { tell(&world, &session, &places, at_once).await })
        });
        Ok(HistoryRun { ids, telling })
    }
}

async fn tell(world: &Arc<World>, session: &Arc<Session>, places: &[u32], at_once: usize) {
    let gate = Arc::new(Semaphore::new(at_once));
    let mut posts = JoinSet::new();
    for index in places {
        if !session.alive().await {
            return;
        }
        let Some((events, payload)) = happenings::written(world, session, *index, None) else { continue };
        for delivery in webhooks::deliveries(world, session, events, &payload) {
            let Ok(place) = Arc::clone(&gate).acquire_owned().await else { return };
            while posts.try_join_next().is_some() {}
            let world = Arc::clone(world);
            posts.spawn(async move {
                delivery.run(world).await;
                drop(place);
            });
        }
    }
    drop(posts.join_all().await);
}
