//! What WAHA tells beside messages and sessions: votes, calls, groups, presence and labels.

use std::fmt;

use chrono::{DateTime, Utc};
use serde_json::Value;

use super::id;
use super::message::{first_text, from_me, person, seconds, text};

/// Somebody's vote in a poll: all that they chose, each time anew.
#[derive(Clone)]
pub struct Vote {
    /// The poll's message.
    pub bare_id: String,
    /// Who voted; `None`: the session's own account.
    pub person: Option<String>,
    /// What they chose; empty when the vote was taken back.
    pub options: Vec<String>,
    /// When.
    pub timestamp: Option<DateTime<Utc>>,
}

/// How far a call came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallStage {
    /// It rings.
    Received,
    /// Somebody took it, on another device.
    Accepted,
    /// It was turned down.
    Rejected,
}

/// A call to the session's account.
#[derive(Clone)]
pub struct IncomingCall {
    /// WhatsApp's id of it.
    pub id: String,
    /// Who calls.
    pub from: String,
    /// How far it came.
    pub stage: CallStage,
    /// With pictures.
    pub is_video: bool,
    /// In a group.
    pub is_group: bool,
    /// When.
    pub timestamp: Option<DateTime<Utc>>,
}

/// What a member may do in a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GroupRole {
    /// Read and write.
    #[default]
    Participant,
    /// Also manage it.
    Admin,
    /// Created it.
    Superadmin,
}

impl GroupRole {
    /// As the database and the API write it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Participant => "participant",
            Self::Admin => "admin",
            Self::Superadmin => "superadmin",
        }
    }

    fn of(name: Option<&str>) -> Option<Self> {
        Some(match name? {
            "participant" | "member" => Self::Participant,
            "admin" => Self::Admin,
            "superadmin" | "owner" => Self::Superadmin,
            _ => return None,
        })
    }
}

/// Somebody in a group.
#[derive(Clone, PartialEq, Eq)]
pub struct GroupMember {
    /// The id they are told under.
    pub id: String,
    /// Their phone's id, where it is told as well.
    pub phone_id: Option<String>,
    /// What they may do; `None` when they left.
    pub role: Option<GroupRole>,
}

/// What happened to a group.
#[derive(Clone)]
pub enum GroupHappening {
    /// The session's own account is in it now.
    Joined,
    /// The session's own account is not in it any more.
    Left,
    /// Members came, went, or may do more or less than before.
    Members {
        /// `join`, `leave`, `promote` or `demote`.
        change: String,
    },
    /// Its subject or settings changed.
    Updated,
}

/// A change of a group.
#[derive(Clone)]
pub struct GroupChange {
    /// The group's chat.
    pub chat_id: String,
    /// What happened.
    pub happening: GroupHappening,
    /// Its subject, where that is told.
    pub subject: Option<String>,
    /// Those it is about; of a group that was joined all.
    pub members: Vec<GroupMember>,
    /// When.
    pub timestamp: Option<DateTime<Utc>>,
}

/// Who is online or typing in a chat.
#[derive(Clone)]
pub struct Presence {
    /// The chat.
    pub chat_id: String,
    /// Each person's state: `online`, `offline`, `typing`, `recording`, `paused`; and when they were last online.
    pub people: Vec<(String, String, Option<DateTime<Utc>>)>,
}

/// A label, or its place on a chat.
#[derive(Clone)]
pub struct LabelChange {
    /// The label's id.
    pub label_id: String,
    /// What it is called, where that is told.
    pub name: Option<String>,
    /// Its colour as `#rrggbb`, where that is told.
    pub color: Option<String>,
    /// The chat it was put on or taken from; `None`: the label itself was changed.
    pub chat_id: Option<String>,
    /// Whether it was removed.
    pub removed: bool,
}

macro_rules! opaque {
    ($($name:ident)+) => {$(
        // Numbers and names belong in no log.
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "(…)"))
            }
        }
    )+};
}

opaque! { Vote IncomingCall GroupMember GroupHappening GroupChange Presence LabelChange }

impl Vote {
    pub(super) fn read(payload: &Value) -> Option<Self> {
        let vote = payload.get("vote")?;
        let own = vote.get("fromMe").and_then(Value::as_bool).unwrap_or_else(|| from_me(vote));
        let voter = first_text(vote, &["/participant", "/from"]).map(person);
        let options = vote.get("selectedOptions").and_then(Value::as_array);
        Some(Self {
            bare_id: payload.pointer("/poll/id").and_then(id::from_id_member)?,
            person: if own { None } else { Some(voter?) },
            options: options
                .into_iter()
                .flatten()
                .filter_map(|option| option.as_str().or_else(|| text(option, "/name")).map(str::to_owned))
                .collect(),
            timestamp: vote.get("timestamp").and_then(seconds),
        })
    }
}

impl IncomingCall {
    pub(super) fn read(stage: CallStage, payload: &Value) -> Option<Self> {
        let flag = |name: &str| payload.get(name).and_then(Value::as_bool).unwrap_or(false);
        Some(Self {
            id: text(payload, "/id")?.to_owned(),
            from: person(first_text(payload, &["/from", "/_data/from", "/_data/chatId"])?),
            stage,
            is_video: flag("isVideo"),
            is_group: flag("isGroup"),
            timestamp: payload.get("timestamp").and_then(seconds),
        })
    }
}

impl GroupMember {
    fn read(member: &Value) -> Option<Self> {
        // Older engines name members by their id alone.
        let id = member.as_str().or_else(|| first_text(member, &["/id", "/jid"]))?;
        let phone_id = first_text(member, &["/pn", "/phoneNumber"]).map(person);
        Some(Self {
            id: person(id),
            phone_id: phone_id.filter(|id| id.ends_with("@c.us")),
            role: match text(member, "/role") {
                None => Some(GroupRole::Participant),
                // "left" is no role.
                name => GroupRole::of(name),
            },
        })
    }
}

impl GroupChange {
    pub(super) fn read(happening: &str, payload: &Value) -> Option<Self> {
        let group = payload.get("group").unwrap_or(payload);
        let members = |of: &Value| -> Vec<GroupMember> {
            let listed = of.get("participants").and_then(Value::as_array);
            listed.into_iter().flatten().filter_map(GroupMember::read).collect()
        };
        let (happening, members) = match happening {
            "join" => (GroupHappening::Joined, members(group)),
            "leave" => (GroupHappening::Left, Vec::new()),
            "participants" => {
                let change = text(payload, "/type")?.to_owned();
                let mut members = members(payload);
                if change == "leave" {
                    members.iter_mut().for_each(|member| member.role = None);
                }
                (GroupHappening::Members { change }, members)
            }
            _ => (GroupHappening::Updated, members(group)),
        };
        Some(Self {
            chat_id: first_text(group, &["/id", "/id/_serialized"]).filter(|id| id.ends_with("@g.us"))?.to_owned(),
            happening,
            subject: text(group, "/subject").map(str::to_owned),
            members,
            timestamp: payload.get("timestamp").and_then(seconds),
        })
    }
}

impl Presence {
    pub(super) fn read(payload: &Value) -> Option<Self> {
        let people = payload.get("presences").and_then(Value::as_array);
        Some(Self {
            chat_id: person(text(payload, "/id")?),
            people: people
                .into_iter()
                .flatten()
                .filter_map(|one| {
                    let state = text(one, "/lastKnownPresence")?.to_owned();
                    Some((person(text(one, "/participant")?), state, one.get("lastSeen").and_then(seconds)))
                })
                .collect(),
        })
    }
}

impl LabelChange {
    pub(super) fn read(happening: &str, payload: &Value) -> Option<Self> {
        let of_chat = happening.starts_with("chat.");
        let label = if of_chat { payload.get("label") } else { Some(payload) };
        let named = |pointer: &str| label.and_then(|label| text(label, pointer)).map(str::to_owned);
        let id = payload.get(if of_chat { "labelId" } else { "id" })?;
        Some(Self {
            label_id: id.as_str().map(str::to_owned).or_else(|| id.as_i64().map(|id| id.to_string()))?,
            name: named("/name"),
            color: named("/colorHex"),
            chat_id: if of_chat { Some(person(text(payload, "/chatId")?)) } else { None },
            removed: happening.ends_with("deleted"),
        })
    }
}
