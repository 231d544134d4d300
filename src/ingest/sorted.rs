//! Events sorted by what they change.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};

use crate::app::App;
use crate::broker::envelope::InboundEvent;
use crate::db::DbError;
use crate::domain::ids::{SessionId, TenantId};
use crate::domain::status::Ack;
use crate::events::log::NewEvent;
use crate::ingest::acks::AckEvent;
use crate::ingest::arrivals::Arrival;
use crate::ingest::dead_letters::{DeadLetter, Reason};
use crate::ingest::evidence::ReadOnPhone;
use crate::ingest::happenings::{self, Happenings, Place};
use crate::messages::facts::{Edit, Facts, READ_BACK, Target};
use crate::messages::reactions::Reaction;
use crate::messages::votes::Vote;
use crate::sessions::liveness::vitals::Signs;
use crate::sessions::restriction::{self, Finding};
use crate::sessions::status::{Observation, Source};
use crate::waha::webhook::{self, Payload, WebhookEvent};
use crate::waha::{self, CallStage, WahaMessage};

/// A call to be turned down.
#[derive(Clone, Debug)]
pub struct Ringing {
    /// Whose session.
    pub tenant: TenantId,
    /// The session that is called.
    pub session: SessionId,
    /// The call.
    pub call: waha::IncomingCall,
}

/// Events sorted by what they change.
#[derive(Default)]
pub struct Sorted {
    /// Messages, in and own ones of the phone's.
    pub arrivals: Vec<Arrival>,
    /// How far own messages came.
    pub acks: Vec<AckEvent>,
    /// What was told of messages after they were written.
    pub facts: Facts,
    /// What was read on the phone.
    pub reads: Vec<ReadOnPhone>,
    /// Groups, calls, labels.
    pub happenings: Happenings,
    /// What sessions are in.
    pub statuses: Vec<Observation>,
    /// Through which sessions something came from WhatsApp.
    pub signs: Signs,
    /// Events of kinds that are not known.
    pub unknown: Vec<DeadLetter>,
    /// What WAHA told of restricted accounts, to be looked at after the rest is committed.
    pub restrictions: Vec<Finding>,
    /// Sessions with messages that WhatsApp rejected; likewise.
    pub rejections: BTreeSet<(TenantId, SessionId)>,
    /// Who is there, for live streams; likewise.
    pub presence: Vec<NewEvent>,
    /// Calls that ring; likewise.
    pub ringing: Vec<Ringing>,
}

/// Whose event it is, and when it happened.
struct Told<'a> {
    tenant: TenantId,
    session: SessionId,
    at: DateTime<Utc>,
    me: Option<&'a waha::Me>,
}

impl Told<'_> {
    fn target(&self, waha_message_id: String) -> Target {
        Target { tenant: self.tenant, session: self.session, waha_message_id }
    }

    fn place(&self) -> Place {
        Place { tenant: self.tenant, session: self.session, at: self.at }
    }
}

impl Sorted {
    /// Reads `events`.
    ///
    /// # Errors
    /// When one of them is not what WAHA writes.
    pub fn of(app: &App, events: &[InboundEvent]) -> Result<Self, DbError> {
        let mut sorted = Self::default();
        for envelope in events {
            let event =
                WebhookEvent::parse(envelope.body.as_bytes()).map_err(|fault| DbError::Refused(fault.to_string()))?;
            metrics::counter!("switchboard_ingest_events_total", "event" => label(&event.payload)).increment(1);
            sorted.add(app, envelope, event);
        }
        sorted.statuses.sort_by_key(|observation| (observation.session, observation.reported_at));
        Ok(sorted)
    }

    /// What was read back from WAHA at `now`.
    #[must_use]
    pub fn read_back(
        now: DateTime<Utc>,
        (tenant, session): (TenantId, SessionId),
        me: Option<&waha::Me>,
        messages: Vec<WahaMessage>,
    ) -> Self {
        let mut sorted = Self::default();
        let told = Told { tenant, session, at: now, me };
        for message in messages {
            sorted.message(&told, message, true);
        }
        sorted
    }

    /// An edit that was read back: the message `waha_message_id` has the text `body`.
    #[must_use]
    pub fn edit_read_back(now: DateTime<Utc>, target: Target, body: String) -> Edit {
        // One text is one edit, however often it is read back.
        let edit_id = format!("{READ_BACK}{}", hex::encode(<sha2::Sha256 as sha2::Digest>::digest(body.as_bytes())));
        Edit { target, edit_id, body: Some(body), at: now, reported_at: now, own: false }
    }

    fn add(&mut self, app: &App, envelope: &InboundEvent, event: WebhookEvent) {
        let at = event.timestamp.unwrap_or(envelope.received_at);
        let (tenant, session) = (envelope.tenant_id, envelope.session_id);
        let told = Told { tenant, session, at, me: event.me.as_ref() };
        self.sign(&told, &event.payload);
        let id = event.id.as_deref().unwrap_or(&envelope.body);
        match event.payload {
            Payload::SessionStatus(change) => {
                self.restrictions
                    .extend(change.restriction.map(|told| restriction::finding(app, tenant, session, told)));
                self.statuses.push(Observation {
                    tenant,
                    session,
                    status: change.status,
                    reported_at: Some(at),
                    me: event.me,
                    source: Source::Webhook,
                });
            }
            Payload::Message(message) | Payload::Waiting(message) => self.message(&told, *message, false),
            Payload::Ack(ack) => self.ack(app, &told, ack),
            Payload::Reaction(reaction) => {
                let from = reaction.participant.or(reaction.chat_id);
                self.facts.reactions.push(Reaction {
                    target: told.target(reaction.bare_id),
                    person: from.filter(|_| !reaction.from_me),
                    emoji: reaction.emoji,
                    at: reaction.timestamp.unwrap_or(at),
                    reported_at: at,
                });
            }
            Payload::Edited(edited) => self.edit(&told, edited),
            Payload::Revoked(revoked) => self.facts.revocations.push((told.target(revoked.bare_id), at)),
            Payload::Vote(vote) => self.facts.votes.push(Vote {
                target: told.target(vote.bare_id),
                person: vote.person,
                options: vote.options,
                at: vote.timestamp.unwrap_or(at),
                reported_at: at,
            }),
            Payload::Call(call) => {
                self.happenings.call(told.place(), &call);
                if call.stage == CallStage::Received {
                    self.ringing.push(Ringing { tenant, session, call });
                }
            }
            Payload::Group(change) => self.happenings.group(told.place(), id, change),
            Payload::Label(change) => self.happenings.label(told.place(), id, &change),
            Payload::Presence(presence) => self.presence.push(happenings::presence(&told.place(), id, &presence)),
            Payload::Unimportant => {}
            Payload::Other { event } => self.unknown.push(DeadLetter {
                event: envelope.clone(),
                kind: Some(event),
                reason: Reason::UnknownEvent,
                cause: "events of this kind are not known".to_owned(),
            }),
        }
    }

    /// Notes what shows that a session is alive: WhatsApp told something, and not WAHA by itself.
    fn sign(&mut self, told: &Told<'_>, payload: &Payload) {
        let (tenant, session) = (told.tenant, told.session);
        match payload {
            Payload::Message(message) if message.from_me && message.ack.is_none_or(|ack| ack < 1) => {}
            Payload::Ack(ack) if ack.level == Some(0) => {}
            Payload::Reaction(webhook::Reaction { from_me: true, .. })
            | Payload::Revoked(webhook::Revoked { from_me: true, .. }) => {}
            Payload::Edited(edited) if edited.message.from_me => {}
            Payload::SessionStatus(_) | Payload::Unimportant | Payload::Other { .. } => {}
            Payload::Ack(_) => self.signs.ack(tenant, session),
            _ => self.signs.inbound(tenant, session),
        }
    }

    fn message(&mut self, told: &Told<'_>, message: WahaMessage, backfilled: bool) {
        let Told { tenant, session, at, .. } = *told;
        if message.revoked {
            self.facts.revocations.push((told.target(message.bare_id.clone()), at));
        }
        for reaction in &message.reactions {
            let moment = reaction.timestamp.or(message.timestamp).unwrap_or(at);
            self.facts.reactions.push(Reaction {
                target: told.target(message.bare_id.clone()),
                person: reaction.person.clone(),
                emoji: reaction.emoji.clone(),
                at: moment,
                reported_at: moment,
            });
        }
        if message.from_me {
            if let Some(ack) = message.ack.and_then(Ack::from_level) {
                let waha_message_id = message.bare_id.clone();
                self.acks.push(AckEvent { tenant, session, waha_message_id, ack, at, inferred: false });
            }
            // The gateway writes down by itself what it sends; what WAHA labels as its own may be that.
            if !backfilled && message.source != Some(waha::Source::App) {
                return;
            }
        }
        let own_phone = told.me.and_then(waha::Me::phone).map(|digits| format!("+{digits}"));
        self.arrivals.push(Arrival { tenant, session, own_phone, at, message, backfilled });
    }

    fn ack(&mut self, app: &App, told: &Told<'_>, ack: webhook::Ack) {
        let Told { tenant, session, at, .. } = *told;
        if !ack.from_me {
            // Somebody read it on the phone.
            if ack.level.is_some_and(|level| level >= 3) {
                self.reads.push(ReadOnPhone { target: told.target(ack.bare_id), at });
            }
            return;
        }
        if ack.level == Some(-1) {
            self.rejections.insert((tenant, session));
            // 463: WhatsApp says itself what the rejection means.
            if ack.error_code == Some(463) {
                let lock = waha::Restriction::Timelock { until: None };
                self.restrictions.push(restriction::finding(app, tenant, session, lock));
            }
        }
        if let Some(level) = ack.level.and_then(Ack::from_level) {
            let waha_message_id = ack.bare_id;
            self.acks.push(AckEvent { tenant, session, waha_message_id, ack: level, at, inferred: false });
        }
    }

    fn edit(&mut self, told: &Told<'_>, edited: webhook::Edited) {
        let own_id = edited.message.bare_id != edited.bare_id;
        // Browser engines tell no id of the edit, and as its time that of the message.
        let edit_id = if own_id {
            edited.message.bare_id.clone()
        } else {
            format!("{}:{}", edited.bare_id, told.at.timestamp_millis())
        };
        self.facts.edits.push(Edit {
            target: told.target(edited.bare_id),
            edit_id,
            body: edited.message.body,
            at: edited.message.timestamp.filter(|_| own_id).unwrap_or(told.at),
            reported_at: told.at,
            own: edited.message.from_me,
        });
    }
}

const fn label(payload: &Payload) -> &'static str {
    match payload {
        Payload::SessionStatus(_) => "session.status",
        Payload::Message(_) | Payload::Waiting(_) => "message",
        Payload::Ack(_) => "message.ack",
        Payload::Reaction(_) => "message.reaction",
        Payload::Edited(_) => "message.edited",
        Payload::Revoked(_) => "message.revoked",
        Payload::Vote(_) => "poll.vote",
        Payload::Call(_) => "call",
        Payload::Group(_) => "group",
        Payload::Presence(_) => "presence.update",
        Payload::Label(_) => "label",
        Payload::Unimportant => "unimportant",
        Payload::Other { .. } => "other",
    }
}
