//! What the other side and the account's own phone do, on demand: write, change, take back, react, vote, read.

use std::sync::Arc;
use std::time::Duration;

use super::Engine;
use super::control::{Control, ControlError};
use super::deeds;
use super::happenings::{self, Who};
use super::ids;
use super::mailbox::{Arrival, More, Reply};
use super::numbers;
use super::saying::{Naming, Saying, Writing};
use super::session::Session;
use super::shapes::PEER;
use super::world::{World, lock};

/// Who writes in a group where nobody is named.
const SOMEBODY: &str = "15550109999@c.us";

/// Puts a message into the store; its place there, and whether it is to be told. None when the session ignores its chat.
pub(super) fn put(
    world: &Arc<World>,
    session: &Session,
    given_chat: &str,
    id: &str,
    writing: &Writing,
) -> Option<(u32, bool)> {
    let chat = numbers::canonical(given_chat);
    if ignores(session, &chat) {
        return None;
    }
    let now = world.now();
    session.touch(now.timestamp_millis());
    let me = happenings::my_id(session);
    let mut mailbox = lock(&session.mailbox);
    let sequence = world.next_sequence();
    let participant = chat.ends_with("@g.us").then(|| match &writing.participant {
        _ if writing.by_phone => me.clone(),
        Some(participant) => numbers::canonical(participant),
        None => {
            let group = mailbox.circles.groups.get(&chat);
            let other = group.and_then(|group| group.participants.keys().find(|person| **person != me));
            other.cloned().unwrap_or_else(|| SOMEBODY.to_owned())
        }
    });
    let reply = writing.reply_to.as_ref().map(|answered| {
        let original = mailbox.find(Some(&chat), answered).and_then(|index| mailbox.get(index));
        Reply {
            id: answered.clone(),
            participant: original.map(|entry| {
                let by = entry.more.as_deref().and_then(|more| more.participant.as_deref());
                if entry.from_me { me.clone() } else { by.unwrap_or(&entry.chat).to_owned() }
            }),
            body: original.map(|entry| entry.text.as_ref().to_owned()),
        }
    });
    let naming = Naming { lid: writing.naming.lid || given_chat.ends_with("@lid"), ..writing.naming };
    let file = match &writing.saying {
        Saying::File(file) => Some(world.files.keep(&session.name, id, file)),
        _ => None,
    };
    let more = More {
        participant,
        push_name: writing.push_name.clone(),
        app: writing.by_phone,
        naming,
        reply,
        stub: writing.stub,
        file,
        ..More::default()
    };
    let needed = more.participant.is_some()
        || more.push_name.is_some()
        || more.app
        || more.naming != Naming::default()
        || more.reply.is_some()
        || more.stub
        || more.file.is_some();
    let arrival = Arrival {
        sequence,
        chat: &chat,
        id,
        kind: writing.saying.kind(),
        text: writing.saying.words(),
        content: writing.saying.content().map(Arc::new),
        from_me: writing.by_phone,
        seen: true,
        repeats_show: false,
        at: writing.at.unwrap_or(now),
        ack: if writing.by_phone { writing.ack.unwrap_or(1) } else { 2 },
        more: needed.then(|| Box::new(more)),
    };
    let (index, _known) = mailbox.arrive(&arrival);
    Some((index, !writing.silent))
}

/// Whether the session's configuration has it drop what is said in this chat.
fn ignores(session: &Session, chat: &str) -> bool {
    session.ignored().iter().any(|kind| match *kind {
        "groups" => chat.ends_with("@g.us"),
        "channels" => chat.ends_with("@newsletter"),
        "status" => chat == "status@broadcast",
        _ => chat.ends_with("@broadcast") && chat != "status@broadcast",
    })
}

/// Somebody writes: put into the store, and told.
pub(super) fn write(world: &Arc<World>, session: &Session, chat: &str, id: &str, writing: &Writing) {
    let Some((index, told)) = put(world, session, chat, id, writing) else { return };
    world.changed.send_replace(());
    if told {
        happenings::tell(world, session, index, None);
    }
}

impl Control {
    pub(super) fn paired(&self, session: &str) -> Result<Arc<Session>, ControlError> {
        let session = self.session(session)?;
        if session.me().is_none() {
            return Err(ControlError::NotPaired);
        }
        Ok(session)
    }

    /// Something happens to a message that is there by then; what happens to one that is not, is nothing.
    fn befall(
        &self,
        session: &str,
        id: &str,
        deed: impl FnOnce(&Arc<World>, &Arc<Session>, u32) + Send + 'static,
    ) -> Result<(), ControlError> {
        let id = id.to_owned();
        deeds::happen(&self.world, &self.paired(session)?, move |world, session| {
            let index = lock(&session.mailbox).find(None, &id);
            if let Some(index) = index {
                deed(world, session, index);
            }
        });
        Ok(())
    }

    /// Somebody writes in this chat (a number, a person's id, a group), or the own phone does. It is in the ledger and told at
    /// once when the session is WORKING, else when it is again. The message's bare id.
    ///
    /// # Errors
    /// The session does not exist or is not paired.
    pub fn write(&self, session: &str, chat: &str, writing: Writing) -> Result<String, ControlError> {
        let session = self.paired(session)?;
        let id = writing.id.clone().unwrap_or_else(|| ids::message_id(&self.world.chance));
        let (chat, told_id) = (numbers::chat_id(chat), id.clone());
        deeds::happen(&self.world, &session, move |world, session| write(world, session, &chat, &id, &writing));
        Ok(told_id)
    }

    /// The content of a stub ([`Writing::as_stub`]) is told, under the same id.
    ///
    /// # Errors
    /// The session does not exist or is not paired.
    pub fn reveal(&self, session: &str, id: &str) -> Result<(), ControlError> {
        self.befall(session, id, |world, session, index| {
            if let Some(entry) = lock(&session.mailbox).get_mut(index) {
                entry.more_mut().stub = false;
            }
            happenings::tell(world, session, index, None);
        })
    }

    /// A message is told once more, with these ids.
    ///
    /// # Errors
    /// The session does not exist or is not paired.
    pub fn tell_again(&self, session: &str, id: &str, naming: Naming) -> Result<(), ControlError> {
        self.befall(session, id, move |world, session, index| happenings::tell(world, session, index, Some(naming)))
    }

    /// Who wrote a message changes its text: the other side, or, of an own one, the own phone.
    ///
    /// # Errors
    /// The session does not exist or is not paired.
    pub fn edit(&self, session: &str, id: &str, text: &str) -> Result<(), ControlError> {
        let text = text.to_owned();
        self.befall(session, id, move |world, session, index| happenings::edit(world, session, index, &text))
    }

    /// Who wrote a message takes it back: the other side, or, of an own one, the own phone.
    ///
    /// # Errors
    /// The session does not exist or is not paired.
    pub fn revoke(&self, session: &str, id: &str) -> Result<(), ControlError> {
        self.befall(session, id, |world, session, index| happenings::revoke(world, session, index))
    }

    /// Somebody (`None`: the own phone) reacts to a message, or with an empty `emoji` takes it back.
    ///
    /// # Errors
    /// The session does not exist or is not paired.
    pub fn react(&self, session: &str, id: &str, who: Option<&str>, emoji: &str) -> Result<(), ControlError> {
        self.react_as(session, id, who, emoji, None)
    }

    /// The same, told with these ids instead of the message's.
    ///
    /// # Errors
    /// The session does not exist or is not paired.
    pub fn react_as(
        &self,
        session: &str,
        id: &str,
        who: Option<&str>,
        emoji: &str,
        naming: Option<Naming>,
    ) -> Result<(), ControlError> {
        let (who, emoji) = (somebody(who), emoji.to_owned());
        self.befall(session, id, move |world, session, index| {
            let _id = happenings::react(world, session, index, &who, &emoji, naming);
        })
    }

    /// Somebody (`None`: the own phone) chooses these options of a poll, and no others.
    ///
    /// # Errors
    /// The session does not exist or is not paired.
    pub fn vote(&self, session: &str, poll: &str, who: Option<&str>, options: &[&str]) -> Result<(), ControlError> {
        let who = somebody(who);
        let options: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
        self.befall(session, poll, move |world, session, index| {
            happenings::vote(world, session, index, &who, Some(&options), None);
        })
    }

    /// Somebody votes, and WAHA cannot decrypt what: the ledger does not have it either.
    ///
    /// # Errors
    /// The session does not exist or is not paired.
    pub fn vote_failed(&self, session: &str, poll: &str, who: &str) -> Result<(), ControlError> {
        let who = somebody(Some(who));
        self.befall(session, poll, move |world, session, index| {
            happenings::vote(world, session, index, &who, None, None);
        })
    }

    /// An ack of a message as it pleases, of one participant (`message.ack.group`) if one is named.
    ///
    /// # Errors
    /// The session does not exist or is not paired.
    pub fn ack(&self, session: &str, id: &str, level: i8, participant: Option<&str>) -> Result<(), ControlError> {
        let participant = participant.map(numbers::canonical);
        self.befall(session, id, move |world, session, index| {
            happenings::tell_ack(world, session, index, level, participant.as_deref());
        })
    }

    /// The chat is read on the own phone. NOWEB tells it, by an ack of each inbound message that was unread.
    ///
    /// # Errors
    /// The session does not exist or is not paired.
    pub fn read_on_phone(&self, session: &str, chat: &str) -> Result<(), ControlError> {
        let chat = numbers::canonical(chat);
        deeds::happen(&self.world, &self.paired(session)?, move |world, session| {
            let unread = lock(&session.mailbox).read_now(&chat);
            world.changed.send_replace(());
            for index in unread.into_iter().filter(|_| world.engine == Engine::Noweb) {
                happenings::tell_ack(world, session, index, 3, None);
            }
        });
        Ok(())
    }

    /// Files can be fetched for so long (of WAHA's time, so scaled) after they were told of; 180 s unless it is changed.
    pub fn file_lifetime(&self, lifetime: Duration) {
        self.world.files.live_for(lifetime);
    }

    /// Whether WAHA's lids API can tell the number's hidden id, and its number from that: it answers null until it has learnt it.
    pub fn lid_learnt(&self, number: &str, learnt: bool) {
        let digits = numbers::number_of(&numbers::chat_id(number)).unwrap_or_default();
        self.world.learn_lid(&digits, learnt);
    }

    /// The hidden id of this number, as everything here has it.
    #[must_use]
    pub fn lid_of(&self, number: &str) -> String {
        numbers::lid_of(&numbers::number_of(&numbers::chat_id(number)).unwrap_or_default())
    }
}

fn somebody(who: Option<&str>) -> Who {
    who.map_or(Who::Phone, |who| Who::Other(numbers::canonical(who)))
}

/// The name that an inbound message is told with.
pub(super) fn told_name(more: Option<&More>) -> Option<String> {
    let name = more.and_then(|more| more.push_name.as_deref()).unwrap_or(PEER);
    (!name.is_empty()).then(|| name.to_owned())
}
