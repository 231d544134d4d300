//! Groups, calls, labels and presence: what WhatsApp tells beside messages.
//!
//! Guarantee: each is told to the tenant once, whatever repeats, since its event's id follows from what WAHA sent; a group's
//! members and subject are those told last, in whichever order they were told. Presence goes to live streams only.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use diesel::sql_types::{Array, Bool, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::db::{DbError, Prepare, sql};
use crate::domain::ids::{EventId, SessionId, TenantId};
use crate::domain::person;
use crate::events::log::{self, NewEvent};
use crate::waha::{CallStage, GroupChange, GroupHappening, IncomingCall, LabelChange, Presence};

/// Where something happened.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Whose session.
    pub tenant: TenantId,
    /// The session.
    pub session: SessionId,
    /// When, as WAHA says.
    pub at: DateTime<Utc>,
}

/// Everything of a batch.
#[derive(Default)]
pub struct Happenings {
    /// Changes of groups.
    pub groups: Vec<(Place, GroupChange)>,
    /// What tenants are told.
    pub events: Vec<NewEvent>,
}

/// The id of the event that tells of `what`: the same however often WAHA tells it.
fn event_id(place: &Place, kind: &str, what: &str) -> EventId {
    let digest = Sha256::new()
        .chain_update(place.session.0.as_bytes())
        .chain_update([0])
        .chain_update(kind)
        .chain_update([0])
        .chain_update(what)
        .finalize();
    let mut chance = [0; 10];
    for (byte, drawn) in chance.iter_mut().zip(digest) {
        *byte = drawn;
    }
    let millis = u64::try_from(place.at.timestamp_millis()).unwrap_or(0);
    EventId(uuid::Builder::from_unix_timestamp_millis(millis, &chance).into_uuid())
}

fn event(place: &Place, kind: &'static str, what: &str, data: &Value) -> NewEvent {
    NewEvent {
        tenant: place.tenant,
        id: event_id(place, kind, what),
        kind,
        at: place.at,
        session_id: Some(place.session),
        message_id: None,
        data: data.to_string(),
    }
}

impl Happenings {
    /// Somebody calls, or a call came further.
    pub fn call(&mut self, place: Place, call: &IncomingCall) {
        let kind = match call.stage {
            CallStage::Received => "call.received",
            CallStage::Accepted => "call.accepted",
            CallStage::Rejected => "call.rejected",
        };
        // The engine tells of a call again and again while it rings, each time under another envelope.
        let place = Place { at: call.timestamp.unwrap_or(place.at), ..place };
        let data = json!({
            "session_id": place.session,
            "call_id": call.id,
            "from": call.from,
            "is_video": call.is_video,
            "is_group": call.is_group,
            "at": place.at,
        });
        self.events.push(event(&place, kind, &call.id, &data));
    }

    /// A group changed. `envelope` is what WAHA knows its event by.
    pub fn group(&mut self, place: Place, envelope: &str, change: GroupChange) {
        let kind = match &change.happening {
            GroupHappening::Joined => "group.joined",
            GroupHappening::Left => "group.left",
            GroupHappening::Members { .. } => "group.participants",
            GroupHappening::Updated => "group.updated",
        };
        let members = change.members.iter().map(
            |member| json!({"id": member.id, "phone_id": member.phone_id, "role": member.role.map(|role| role.as_str())}),
        );
        let mut data = json!({
            "session_id": place.session,
            "chat_id": change.chat_id,
            "subject": change.subject,
            "participants": members.collect::<Vec<_>>(),
        });
        if let (GroupHappening::Members { change }, Some(data)) = (&change.happening, data.as_object_mut()) {
            data.insert("change".to_owned(), json!(change));
        }
        self.events.push(event(&place, kind, envelope, &data));
        let told = Place { at: change.timestamp.unwrap_or(place.at).max(place.at), ..place };
        self.groups.push((told, change));
    }

    /// A label changed, or its place on a chat.
    pub fn label(&mut self, place: Place, envelope: &str, change: &LabelChange) {
        let kind = match (&change.chat_id, change.removed) {
            (None, false) => "label.upserted",
            (None, true) => "label.deleted",
            (Some(_), false) => "label.added",
            (Some(_), true) => "label.removed",
        };
        let data = json!({
            "session_id": place.session,
            "label_id": change.label_id,
            "name": change.name,
            "color": change.color,
            "chat_id": change.chat_id,
        });
        self.events.push(event(&place, kind, envelope, &data));
    }
}

/// The event that tells live streams of who is there; it is not kept.
#[must_use]
pub fn presence(place: &Place, envelope: &str, presence: &Presence) -> NewEvent {
    let people =
        presence.people.iter().map(|(id, state, seen)| json!({"id": id, "presence": state, "last_seen_at": seen}));
    let data = json!({"session_id": place.session, "chat_id": presence.chat_id, "people": people.collect::<Vec<_>>()});
    event(place, "presence.update", envelope, &data)
}

/// Applies `happenings`.
///
/// # Errors
/// When the database refuses; the transaction then must not be committed.
pub async fn apply(conn: &mut AsyncPgConnection, now: DateTime<Utc>, happenings: Happenings) -> Result<(), DbError> {
    members(conn, now, &happenings.groups).await?;
    subjects(conn, now, &happenings.groups).await?;
    log::append_once(conn, &happenings.events).await
}

async fn members(
    conn: &mut AsyncPgConnection,
    now: DateTime<Utc>,
    groups: &[(Place, GroupChange)],
) -> Result<(), DbError> {
    struct Told<'a> {
        place: &'a Place,
        wa_id: &'a str,
        role: Option<&'static str>,
    }
    let mut latest: BTreeMap<(SessionId, &str, String), Told<'_>> = BTreeMap::new();
    for (place, change) in groups {
        for member in &change.members {
            // The number's id, where it is told.
            let wa_id = member.phone_id.as_deref().unwrap_or(&member.id);
            let Some(key) = person::key(wa_id) else { continue };
            let told = Told { place, wa_id, role: member.role.map(|role| role.as_str()) };
            let known = latest.entry((place.session, change.chat_id.as_str(), key)).or_insert_with(|| Told { ..told });
            if known.place.at <= place.at {
                *known = told;
            }
        }
    }
    if latest.is_empty() {
        return Ok(());
    }
    sql("INSERT INTO conversation_participants AS p (tenant_id, session_id, chat_id, person, wa_id, role, told_at, left_at, created_at, updated_at) \
         SELECT t, s, c, k, w, coalesce(r, 'participant'), at, CASE WHEN r IS NULL THEN at END, $8, $8 \
         FROM unnest($1, $2, $3, $4, $5, $6, $7) AS i (t, s, c, k, w, r, at) ORDER BY s, c, k \
         ON CONFLICT (session_id, chat_id, person) DO UPDATE SET \
             wa_id = excluded.wa_id, told_at = excluded.told_at, left_at = excluded.left_at, updated_at = excluded.updated_at, \
             role = CASE WHEN excluded.left_at IS NULL THEN excluded.role ELSE p.role END \
         WHERE excluded.told_at >= p.told_at")
    .bind::<Array<SqlUuid>, _>(latest.values().map(|told| told.place.tenant).collect::<Vec<_>>())
    .bind::<Array<SqlUuid>, _>(latest.keys().map(|(session, ..)| *session).collect::<Vec<_>>())
    .bind::<Array<Text>, _>(latest.keys().map(|(_, chat, _)| *chat).collect::<Vec<_>>())
    .bind::<Array<Text>, _>(latest.keys().map(|(.., key)| key.as_str()).collect::<Vec<_>>())
    .bind::<Array<Text>, _>(latest.values().map(|told| told.wa_id).collect::<Vec<_>>())
    .bind::<Array<Nullable<Text>>, _>(latest.values().map(|told| told.role).collect::<Vec<_>>())
    .bind::<Array<Timestamptz>, _>(latest.values().map(|told| told.place.at).collect::<Vec<_>>())
    .bind::<Timestamptz, _>(now)
    .prepared()
    .execute(conn)
    .await?;
    Ok(())
}

async fn subjects(
    conn: &mut AsyncPgConnection,
    now: DateTime<Utc>,
    groups: &[(Place, GroupChange)],
) -> Result<(), DbError> {
    let joined = |change: &GroupChange| match change.happening {
        GroupHappening::Left => false,
        GroupHappening::Joined | GroupHappening::Members { .. } | GroupHappening::Updated => true,
    };
    let told = groups.iter().filter(|(_, change)| {
        change.subject.is_some() || matches!(change.happening, GroupHappening::Joined | GroupHappening::Left)
    });
    let mut latest: BTreeMap<(SessionId, &str), (&Place, Option<&str>, bool)> = BTreeMap::new();
    for (place, change) in told {
        let entry = latest.entry((place.session, &change.chat_id)).or_insert((place, None, joined(change)));
        if entry.0.at <= place.at {
            *entry = (place, change.subject.as_deref().or(entry.1), joined(change));
        }
    }
    if latest.is_empty() {
        return Ok(());
    }
    sql("INSERT INTO group_subjects AS g (tenant_id, session_id, chat_id, subject, joined, told_at, updated_at) \
         SELECT t, s, c, n, j, at, $7 FROM unnest($1, $2, $3, $4, $5, $6) AS i (t, s, c, n, j, at) ORDER BY s, c \
         ON CONFLICT (session_id, chat_id) DO UPDATE SET \
             subject = CASE WHEN excluded.told_at >= g.told_at THEN coalesce(excluded.subject, g.subject) \
                            ELSE coalesce(g.subject, excluded.subject) END, \
             joined = CASE WHEN excluded.told_at >= g.told_at THEN excluded.joined ELSE g.joined END, \
             told_at = greatest(g.told_at, excluded.told_at), updated_at = excluded.updated_at")
    .bind::<Array<SqlUuid>, _>(latest.values().map(|(place, ..)| place.tenant).collect::<Vec<_>>())
    .bind::<Array<SqlUuid>, _>(latest.keys().map(|(session, _)| *session).collect::<Vec<_>>())
    .bind::<Array<Text>, _>(latest.keys().map(|(_, chat)| *chat).collect::<Vec<_>>())
    .bind::<Array<Nullable<Text>>, _>(latest.values().map(|(_, subject, _)| *subject).collect::<Vec<_>>())
    .bind::<Array<Bool>, _>(latest.values().map(|(.., joined)| *joined).collect::<Vec<_>>())
    .bind::<Array<Timestamptz>, _>(latest.values().map(|(place, ..)| place.at).collect::<Vec<_>>())
    .bind::<Timestamptz, _>(now)
    .prepared()
    .execute(conn)
    .await?;
    Ok(())
}
