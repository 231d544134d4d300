//! Applying WAHA's events, many in one transaction.
//!
//! Guarantee: an event that was kept is applied at least once, and a repeat changes nothing: messages are unique by (session,
//! bare id), acks are a monotone maximum, a session's status follows its latest report, and what is told of a message is kept by
//! itself (see [`facts`]). An event that cannot be read, or that the database refuses by itself, is set aside with its cause and
//! holds up no other.

use std::mem;
use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel_async::AsyncPgConnection;

use crate::app::App;
use crate::broker::envelope::InboundEvent;
use crate::db::{DbError, SystemConn};
use crate::domain::chance::Chance;
use crate::domain::ids::{EventId, SessionId, TenantId};
use crate::domain::status::Status;
use crate::events::log::{self, NewEvent};
use crate::ingest::arrivals::{self, Stored};
use crate::ingest::dead_letters::{self, DeadLetter};
use crate::ingest::sorted::Sorted;
use crate::ingest::{acks, aftermath, evidence, happenings, waiting};
use crate::media;
use crate::media::arrivals::Wanted;
use crate::messages::changes;
use crate::messages::facts;
use crate::messages::facts::Target;
use crate::messages::row::MessageRow;
use crate::messages::view::Message;
use crate::sessions::liveness::vitals;
use crate::sessions::status;
use crate::waha::{self, WahaMessage};
use crate::{contacts, conversations};

/// What became of an event.
#[derive(Debug)]
pub enum Fate {
    /// What it says is stored.
    Applied,
    /// It can never be applied as things are, and is to be set aside.
    Refused(DeadLetter),
}

/// Applies `events` and answers each one's fate, in their order. Waits while the database is away.
pub async fn apply_all(app: &App, events: &[InboundEvent]) -> Vec<Fate> {
    let mut fates = Vec::with_capacity(events.len());
    // Halves are tried when the whole is refused, until the culprit stands alone.
    let mut parts = vec![events];
    while let Some(part) = parts.pop() {
        match apply_part(app, part).await {
            Ok(()) => fates.extend(part.iter().map(|_| Fate::Applied)),
            Err(fault) if fault.is_transient() => {
                tracing::warn!(%fault, "ingest: waiting for the database");
                tokio::time::sleep(Duration::from_millis(500)).await;
                parts.push(part);
            }
            Err(fault) if part.len() > 1 => {
                tracing::warn!(%fault, events = part.len(), "ingest: a batch was refused; trying its halves");
                let (left, right) = part.split_at(part.len() / 2);
                parts.push(right);
                parts.push(left);
            }
            Err(fault) => {
                fates.extend(part.iter().map(|event| Fate::Refused(DeadLetter::of(event.clone(), &fault))));
            }
        }
    }
    fates
}

async fn apply_part(app: &App, events: &[InboundEvent]) -> Result<(), DbError> {
    let mut sorted = Sorted::of(app, events)?;
    let after = aftermath::take(&mut sorted);
    let now = app.clock.now();
    app.db.system(async |conn: &mut SystemConn| apply_sorted(app, conn, now, sorted).await.map(drop)).await?;
    aftermath::follow(app, after);
    app.wake.events.notify_one();
    app.wake.dispatch.notify_one();
    app.wake.media.notify_one();
    Ok(())
}

/// Applies `events` in the caller's transaction, for events that leave their store in the same one.
///
/// # Errors
/// When the database refuses; the transaction then must not be committed.
pub async fn apply_in(app: &App, conn: &mut AsyncPgConnection, events: &[InboundEvent]) -> Result<(), DbError> {
    let sorted = Sorted::of(app, events)?;
    apply_sorted(app, conn, app.clock.now(), sorted).await.map(drop)
}

/// Stores those of `messages`, which were read back from WAHA, that no webhook told of, and what they show of the others: how far
/// they came, other texts, revocations and reactions. Answers how many were missing.
///
/// # Errors
/// When the database does not take them; nothing was stored then.
pub async fn read_back(
    app: &App,
    tenant: TenantId,
    session: SessionId,
    me: Option<&waha::Me>,
    messages: Vec<WahaMessage>,
) -> Result<usize, DbError> {
    let now = app.clock.now();
    let sorted = Sorted::read_back(now, (tenant, session), me, messages);
    let missing = app.db.system(async |conn: &mut SystemConn| apply_sorted(app, conn, now, sorted).await).await?;
    app.wake.events.notify_one();
    app.wake.dispatch.notify_one();
    app.wake.media.notify_one();
    Ok(missing)
}

/// Answers how many messages were found by reading back.
async fn apply_sorted(
    app: &App,
    conn: &mut AsyncPgConnection,
    now: DateTime<Utc>,
    mut sorted: Sorted,
) -> Result<usize, DbError> {
    let chance = &app.chance;
    // Lanes before messages, as everywhere.
    let sessions: Vec<_> = sorted.statuses.iter().map(|observation| observation.session).collect();
    if !sessions.is_empty() {
        status::lock_lanes(conn, &sessions).await?;
    }
    for observation in &sorted.statuses {
        status::observe(conn, chance, now, observation).await?;
    }
    lock_messages(conn, &sorted).await?;
    let mut stored = arrivals::store(conn, chance, now, &sorted.arrivals).await?;
    let mut waiting = waiting::find(conn, &stored.fresh).await?;
    waiting::link_replies(conn, &mut stored.fresh, &waiting).await?;
    tell_arrivals(conn, chance, now, &stored.fresh).await?;
    let moved = acks::apply(conn, chance, mem::take(&mut sorted.acks)).await?;
    let inferred = evidence::infer_delivered(conn, chance, &stored.fresh).await?;
    sorted.reads.extend(acks::take_up(conn, chance, &waiting.acked).await?);
    for text in mem::take(&mut stored.changed) {
        let target = Target { tenant: text.tenant_id, session: text.session_id, waha_message_id: text.waha_message_id };
        sorted.facts.edits.push(Sorted::edit_read_back(now, target, text.body));
    }
    lock_contacts(conn, &sorted).await?;
    facts::apply(conn, chance, now, mem::take(&mut sorted.facts), mem::take(&mut waiting.facts)).await?;
    let read = evidence::read_on_phone(conn, mem::take(&mut sorted.reads)).await?;
    happenings::apply(conn, now, mem::take(&mut sorted.happenings)).await?;
    let said = sorted.arrivals.iter().map(|arrival| (arrival.session, &arrival.message));
    media::arrivals::expect(conn, now, &Wanted::among(&stored.fresh, said)).await?;
    arrivals::note_activity(conn, now, &stored.fresh).await?;
    arrivals::remember(conn, now, &sorted.arrivals).await?;
    vitals::note(conn, now, &sorted.signs).await?;
    dead_letters::keep(conn, chance, now, &sorted.unknown).await?;
    let read: Vec<_> =
        read.iter().map(|(tenant, session, chat, moment)| (*tenant, *session, chat.as_str(), *moment)).collect();
    conversations::note_read(conn, now, &read).await?;
    count(&stored, moved + inferred);
    Ok(stored.backfilled)
}

/// Who people are must not change between the look at it and what is kept by it.
async fn lock_contacts(conn: &mut AsyncPgConnection, sorted: &Sorted) -> Result<(), DbError> {
    let facts = &sorted.facts;
    let tenants = facts
        .reactions
        .iter()
        .map(|reaction| reaction.target.tenant)
        .chain(facts.votes.iter().map(|vote| vote.target.tenant))
        .chain(sorted.happenings.groups.iter().map(|(place, _)| place.tenant))
        .chain(sorted.reads.iter().map(|read| read.target.tenant));
    contacts::lock_all(conn, tenants).await
}

/// Messages that are changed here more than once are locked before anything is, since batches run side by side.
async fn lock_messages(conn: &mut AsyncPgConnection, sorted: &Sorted) -> Result<(), DbError> {
    if sorted.facts.is_empty() && sorted.reads.is_empty() {
        return Ok(());
    }
    let facts = &sorted.facts;
    let named = facts
        .edits
        .iter()
        .map(|edit| &edit.target)
        .chain(facts.revocations.iter().map(|(target, _)| target))
        .chain(facts.reactions.iter().map(|reaction| &reaction.target))
        .chain(sorted.reads.iter().map(|read| &read.target))
        .map(|target| (target.session, target.waha_message_id.as_str()))
        .chain(sorted.acks.iter().map(|ack| (ack.session, ack.waha_message_id.as_str())));
    facts::lock(conn, named.collect()).await
}

/// Tells of messages that are new: what came in, and what was written on the phone.
async fn tell_arrivals(
    conn: &mut AsyncPgConnection,
    chance: &Chance,
    now: DateTime<Utc>,
    fresh: &[MessageRow],
) -> Result<(), DbError> {
    let (received, own): (Vec<&MessageRow>, Vec<&MessageRow>) =
        fresh.iter().partition(|row| row.direction == "inbound");
    let events: Vec<NewEvent> = received
        .into_iter()
        .map(|row| NewEvent {
            tenant: row.tenant_id,
            id: EventId::fresh(now, chance),
            kind: "message.received",
            at: now,
            session_id: Some(row.session_id),
            message_id: Some(row.id),
            data: Message::from(row).to_json(),
        })
        .collect();
    log::append(conn, &events).await?;
    let own: Vec<MessageRow> = own.into_iter().cloned().collect();
    changes::record_all(conn, chance, now, &own, Status::Sent, "written on the phone").await
}

fn count(stored: &Stored, moved: usize) {
    let number = |count: usize| u64::try_from(count).unwrap_or(0);
    let by_webhook = stored.fresh.len().saturating_sub(stored.backfilled);
    metrics::counter!("switchboard_ingest_messages_stored_total", "by" => "webhook").increment(number(by_webhook));
    metrics::counter!("switchboard_ingest_messages_stored_total", "by" => "read_back")
        .increment(number(stored.backfilled));
    metrics::counter!("switchboard_ingest_acks_applied_total").increment(number(moved));
}
