//! What happens around messages: groups, calls, presences and labels.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Engine;
use super::control::{Control, ControlError};
use super::deeds;
use super::happenings;
use super::ids;
use super::numbers;
use super::raw::jid;
use super::saying::Presence;
use super::session::Session;
use super::webhooks::{self, Event};
use super::world::{World, lock};

/// The groups and labels of one session.
#[derive(Clone, Debug, Default)]
pub(super) struct Circles {
    pub groups: BTreeMap<String, Group>,
    pub labels: BTreeMap<String, Label>,
    pub labelled: BTreeSet<(String, String)>,
}

/// A group.
#[derive(Clone, Debug, Default)]
pub(super) struct Group {
    pub subject: String,
    pub description: String,
    /// Roles, by id.
    pub participants: BTreeMap<String, &'static str>,
}

/// A label of WhatsApp Business.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Label {
    /// Its id, a small number.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The number of its colour.
    pub color: u8,
}

/// What happens to participants of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Membership {
    /// They come.
    Join,
    /// They go.
    Leave,
    /// They become admins.
    Promote,
    /// They are admins no more.
    Demote,
}

/// How a call ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CallEnd {
    /// It is taken on the phone.
    Accepted,
    /// It is refused, or the caller gives up.
    Rejected,
}

impl Label {
    fn json(&self) -> Value {
        const COLORS: [&str; 5] = ["#ff9485", "#64c4ff", "#ffd429", "#dfaef0", "#99b6c1"];
        let hex = COLORS.get(usize::from(self.color) % COLORS.len()).copied().unwrap_or("#ff9485");
        json!({"id": self.id, "name": self.name, "color": self.color, "colorHex": hex})
    }
}

/// A participant as WAHA shows one: by hidden id where groups have these.
pub(super) fn participant(engine: Engine, id: &str, role: &str) -> Value {
    match numbers::number_of(id).filter(|_| engine.honours_ids()) {
        Some(number) => json!({"id": numbers::lid_of(&number), "pn": format!("{number}@c.us"), "role": role}),
        None => json!({"id": id, "role": role}),
    }
}

impl Group {
    /// The whole group, as WAHA shows it.
    pub fn json(&self, engine: Engine, id: &str) -> Value {
        let all: Vec<Value> = self.participants.iter().map(|(id, role)| participant(engine, id, role)).collect();
        json!({
            "id": id,
            "subject": self.subject,
            "description": self.description,
            "invite": "https://chat.whatsapp.com/simulated",
            "membersCanAddNewMember": true,
            "membersCanSendMessages": true,
            "newMembersApprovalRequired": false,
            "participants": all,
        })
    }

    /// The group as the engine's own library writes it.
    pub fn raw(&self, engine: Engine, id: &str) -> Value {
        match engine {
            Engine::Gows => {
                let all: Vec<Value> = self
                    .participants
                    .iter()
                    .map(|(id, role)| {
                        let lid = numbers::number_of(id).map(|number| numbers::lid_of(&number)).unwrap_or_default();
                        json!({"JID": lid, "PhoneNumber": jid(id), "LID": lid, "IsAdmin": role.ends_with("admin"),
                               "IsSuperAdmin": *role == "superadmin"})
                    })
                    .collect();
                json!({"JID": id, "Name": self.subject, "Topic": self.description, "Participants": all})
            }
            Engine::Noweb => {
                let all: Vec<Value> = self
                    .participants
                    .iter()
                    .map(|(id, role)| {
                        let admin = role.ends_with("admin").then_some(*role);
                        let lid = numbers::number_of(id).map(|number| numbers::lid_of(&number));
                        json!({"id": lid, "phoneNumber": jid(id), "admin": admin})
                    })
                    .collect();
                json!({"id": id, "subject": self.subject, "desc": self.description, "participants": all})
            }
            Engine::Webjs | Engine::Wpp => {
                let all: Vec<Value> = self
                    .participants
                    .iter()
                    .map(|(id, role)| {
                        json!({"id": {"_serialized": id}, "isAdmin": role.ends_with("admin"),
                               "isSuperAdmin": *role == "superadmin"})
                    })
                    .collect();
                json!({"id": {"_serialized": id}, "name": self.subject, "isGroup": true,
                       "groupMetadata": {"subject": self.subject, "participants": all}})
            }
        }
    }
}

/// The id of a group, whether or not its server was named.
fn group_id(given: &str) -> String {
    if given.contains('@') { given.to_owned() } else { format!("{given}@g.us") }
}

impl Control {
    fn tell(
        &self,
        session: &str,
        deed: impl FnOnce(&Arc<World>, &Arc<Session>) -> Option<(Event, Value)> + Send + 'static,
    ) -> Result<(), ControlError> {
        let session = self.paired(session)?;
        deeds::happen(&self.world, &session, move |world, session| {
            let told = deed(world, session);
            world.changed.send_replace(());
            if let Some((event, payload)) = told {
                webhooks::emit(world, session, &[event], &payload.to_string());
            }
        });
        Ok(())
    }

    /// The account is in this group from now on, with these other participants (numbers or ids; the first is the owner).
    ///
    /// # Errors
    /// The session does not exist or is not paired.
    pub fn group_joined(
        &self,
        session: &str,
        group: &str,
        subject: &str,
        participants: &[&str],
    ) -> Result<(), ControlError> {
        let id = group_id(group);
        let roles = participants
            .iter()
            .enumerate()
            .map(|(n, person)| (numbers::canonical(person), if n == 0 { "superadmin" } else { "participant" }));
        let mut members: BTreeMap<String, &'static str> = roles.collect();
        let subject = subject.to_owned();
        self.tell(session, move |world, session| {
            members.insert(happenings::my_id(session), "participant");
            let group = Group { subject, description: String::new(), participants: members };
            let data = group.raw(world.engine, &id);
            let told = group.json(world.engine, &id);
            lock(&session.mailbox).circles.groups.insert(id, group);
            Some((Event::GroupJoin, json!({"timestamp": world.now().timestamp(), "group": told, "_data": data})))
        })
    }

    /// The account is in this group no more.
    ///
    /// # Errors
    /// The session does not exist or is not paired.
    pub fn group_left(&self, session: &str, group: &str) -> Result<(), ControlError> {
        let id = group_id(group);
        self.tell(session, move |world, session| {
            lock(&session.mailbox).circles.groups.remove(&id)?;
            let now = world.now().timestamp();
            Some((Event::GroupLeave, json!({"timestamp": now, "group": {"id": id}, "_data": {}})))
        })
    }

    /// Somebody names the group anew.
    ///
    /// # Errors
    /// The session does not exist or is not paired.
    pub fn group_named(&self, session: &str, group: &str, subject: &str) -> Result<(), ControlError> {
        let (id, subject) = (group_id(group), subject.to_owned());
        self.tell(session, move |world, session| {
            let mut mailbox = lock(&session.mailbox);
            mailbox.circles.groups.get_mut(&id)?.subject.clone_from(&subject);
            let now = world.now().timestamp();
            Some((Event::GroupUpdate, json!({"timestamp": now, "group": {"id": id, "subject": subject}, "_data": {}})))
        })
    }

    /// Participants of a group come, go, or become something else.
    ///
    /// # Errors
    /// The session does not exist or is not paired.
    pub fn group_members(
        &self,
        session: &str,
        group: &str,
        change: Membership,
        people: &[&str],
    ) -> Result<(), ControlError> {
        let id = group_id(group);
        let people: Vec<String> = people.iter().map(|person| numbers::canonical(person)).collect();
        self.tell(session, move |world, session| {
            let (name, role) = match change {
                Membership::Join => ("join", "participant"),
                Membership::Leave => ("leave", "left"),
                Membership::Promote => ("promote", "admin"),
                Membership::Demote => ("demote", "participant"),
            };
            let mut mailbox = lock(&session.mailbox);
            let group = mailbox.circles.groups.get_mut(&id)?;
            for person in &people {
                if change == Membership::Leave {
                    group.participants.remove(person);
                } else {
                    group.participants.insert(person.clone(), role);
                }
            }
            let told: Vec<Value> = people.iter().map(|person| participant(world.engine, person, role)).collect();
            let now = world.now().timestamp();
            let payload =
                json!({"type": name, "timestamp": now, "group": {"id": id}, "participants": told, "_data": {}});
            Some((Event::GroupParticipants, payload))
        })
    }

    /// Somebody calls. The id of the call.
    ///
    /// # Errors
    /// The session does not exist or is not paired.
    pub fn call(&self, session: &str, from: &str, video: bool) -> Result<String, ControlError> {
        let id = ids::message_id(&self.world.chance);
        self.call_event(session, &id, from, video, Event::CallReceived)?;
        Ok(id)
    }

    /// A call ends one way or another, by the phone or the caller.
    ///
    /// # Errors
    /// The session does not exist or is not paired.
    pub fn call_ended(&self, session: &str, id: &str, from: &str, end: CallEnd) -> Result<(), ControlError> {
        let event = match end {
            CallEnd::Accepted => Event::CallAccepted,
            // WEBJS knows of rejections through its own API only.
            CallEnd::Rejected if self.world.engine == Engine::Webjs => return Ok(()),
            CallEnd::Rejected => Event::CallRejected,
        };
        self.call_event(session, id, from, false, event)
    }

    fn call_event(&self, session: &str, id: &str, from: &str, video: bool, event: Event) -> Result<(), ControlError> {
        let (id, from) = (id.to_owned(), numbers::chat_id(from));
        self.tell(session, move |world, _| Some((event, call_json(world, &id, &from, video))))
    }

    /// Somebody is there, or writes.
    ///
    /// # Errors
    /// The session does not exist or is not paired.
    pub fn presence(
        &self,
        session: &str,
        chat: &str,
        participant: Option<&str>,
        presence: Presence,
    ) -> Result<(), ControlError> {
        let chat = numbers::chat_id(chat);
        let who = participant.map_or_else(|| chat.clone(), numbers::chat_id);
        self.tell(session, move |world, session| {
            let seen = (presence == Presence::Offline).then(|| world.now().timestamp());
            let one = json!({"participant": who, "lastKnownPresence": presence, "lastSeen": seen});
            session.has_acks().then(|| (Event::PresenceUpdate, json!({"id": chat, "presences": [one]})))
        })
    }

    /// A label comes into being or is changed.
    ///
    /// # Errors
    /// The session does not exist or is not paired.
    pub fn label(&self, session: &str, label: Label) -> Result<(), ControlError> {
        self.tell(session, move |_, session| {
            let told = label.json();
            lock(&session.mailbox).circles.labels.insert(label.id.clone(), label);
            Some((Event::LabelUpsert, told))
        })
    }

    /// A label is deleted.
    ///
    /// # Errors
    /// The session does not exist or is not paired.
    pub fn label_deleted(&self, session: &str, id: &str) -> Result<(), ControlError> {
        let id = id.to_owned();
        self.tell(session, move |_, session| {
            let mut mailbox = lock(&session.mailbox);
            let label = mailbox.circles.labels.remove(&id)?;
            mailbox.circles.labelled.retain(|(of, _)| *of != id);
            Some((Event::LabelDeleted, label.json()))
        })
    }

    /// A chat gets a label, or loses it.
    ///
    /// # Errors
    /// The session does not exist or is not paired.
    pub fn label_chat(&self, session: &str, id: &str, chat: &str, on: bool) -> Result<(), ControlError> {
        let (id, chat) = (id.to_owned(), numbers::chat_id(chat));
        self.tell(session, move |_, session| {
            let mut mailbox = lock(&session.mailbox);
            let label = mailbox.circles.labels.get(&id).map(Label::json);
            let pair = (id.clone(), chat.clone());
            let event = if on {
                mailbox.circles.labelled.insert(pair);
                Event::LabelChatAdded
            } else {
                mailbox.circles.labelled.remove(&pair);
                Event::LabelChatDeleted
            };
            Some((event, json!({"labelId": id, "chatId": chat, "label": label})))
        })
    }
}

/// A call as WAHA shows it.
pub(super) fn call_json(world: &World, id: &str, from: &str, video: bool) -> Value {
    let timestamp = match world.engine {
        Engine::Gows => happenings::fraction(world.now().timestamp_millis()),
        _ => json!(world.now().timestamp()),
    };
    let group = from.ends_with("@g.us");
    json!({"id": id, "from": from, "timestamp": timestamp, "isVideo": video, "isGroup": group, "_data": {}})
}
