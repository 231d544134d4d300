//! Files of messages that came in, or were written on the phone: fetched from WAHA as soon as they are told of, since WAHA
//! keeps them for minutes only.
//!
//! Guarantee: a file that was told of ([`expect`], in the transaction that stores the message) ends as `stored`, `failed` or
//! `expired`, as long as one node runs this, and each change of its message is told by an event in the same transaction. Any
//! number of nodes may run it: a try is counted and leased before it begins, so a node that dies in the middle costs the lease
//! and no more, and its outcome counts only under that lease, so a file is never stored twice. What a try leaves behind is
//! removed as any unfinished file is.
//!
//! One session has a few tries at a time, one WAHA server some, and a node so many in all: a server that hangs, or a session
//! with a long backlog, delays only itself.

mod attempt;
mod claim;
mod settle;

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use diesel::sql_types::{Array, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use metrics::describe_counter;
use tokio::sync::watch;
use tokio::task::{Id, JoinSet};

pub use self::settle::{AnotherTry, retry};

use self::claim::{Claimed, Room};
use super::kind;
use crate::app::App;
use crate::db::{DbError, Prepare, sql};
use crate::domain::content::{MediaContent, MediaStatus};
use crate::domain::ids::{MessageId, SessionId, TenantId, WahaServerId};
use crate::messages::row::MessageRow;
use crate::waha::WahaMessage;

/// Characters of an address that is kept, at the most; WAHA is asked for another one otherwise.
const LONGEST_URL: usize = 2048;
/// Characters of a declared type, at the most.
const LONGEST_TYPE: usize = 255;

/// A file to be fetched.
#[derive(Clone)]
pub struct Wanted {
    /// Whose message.
    pub tenant: TenantId,
    /// The session it came by.
    pub session: SessionId,
    /// The message.
    pub message: MessageId,
    /// Its bare WhatsApp id.
    pub waha_message_id: String,
    /// Its chat.
    pub chat_id: String,
    /// Where WAHA says the file is; `None`: it was not downloaded.
    pub url: Option<String>,
    /// What its sender says it is.
    pub mime_type: Option<String>,
    /// What its sender calls it.
    pub filename: Option<String>,
}

// Numbers, names and addresses belong in no log.
impl std::fmt::Debug for Wanted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wanted").field("message", &self.message).finish_non_exhaustive()
    }
}

impl Wanted {
    /// The file of `said`, which is stored as `message`; `None` when it has none.
    #[must_use]
    pub fn of(tenant: TenantId, session: SessionId, message: MessageId, said: &WahaMessage) -> Option<Self> {
        let MediaContent { mime_type, filename, .. } = pending(said)?;
        let url = said.media.as_ref().and_then(|media| media.url.as_ref()).map(|url| url.as_str().to_owned());
        Some(Self {
            tenant,
            session,
            message,
            waha_message_id: said.bare_id.clone(),
            chat_id: said.chat_id.clone(),
            url: url.filter(|url| url.len() <= LONGEST_URL),
            mime_type,
            filename,
        })
    }
}

impl Wanted {
    /// The files of `stored`, which was `said` so.
    pub fn among<'a>(stored: &[MessageRow], said: impl Iterator<Item = (SessionId, &'a WahaMessage)>) -> Vec<Self> {
        let with_file = |row: &&MessageRow| row.content.as_ref().is_some_and(|content| content.get("media").is_some());
        let stored: HashMap<(SessionId, &str), &MessageRow> = stored
            .iter()
            .filter(with_file)
            .filter_map(|row| Some(((row.session_id, row.waha_message_id.as_deref()?), row)))
            .collect();
        if stored.is_empty() {
            return Vec::new();
        }
        let mut wanted: HashMap<MessageId, Self> = HashMap::new();
        for (session, said) in said {
            let Some(row) = stored.get(&(session, said.bare_id.as_str())) else { continue };
            let Some(file) = Self::of(row.tenant_id, session, row.id, said) else { continue };
            let file = Self { chat_id: row.chat_id.clone(), ..file };
            // Of several tellings the one that says where it is.
            let known = wanted.entry(row.id).or_insert_with(|| file.clone());
            if known.url.is_none() {
                *known = file;
            }
        }
        wanted.into_values().collect()
    }
}

/// What a message shows of its file until that is fetched; `None` when it has none.
#[must_use]
pub fn pending(said: &WahaMessage) -> Option<MediaContent> {
    if !said.has_media {
        return None;
    }
    let media = said.media.as_ref();
    let printable = |text: &&String| text.len() <= LONGEST_TYPE && text.bytes().all(|byte| matches!(byte, b' '..=b'~'));
    Some(MediaContent {
        mime_type: media.and_then(|media| media.mime_type.as_ref()).filter(printable).cloned(),
        filename: media.and_then(|media| media.filename.as_deref()).and_then(kind::clean_name),
        status: Some(MediaStatus::Pending),
        ..MediaContent::default()
    })
}

/// Notes the files that are to be fetched, in the transaction that stores their messages (with [`pending`] as their content),
/// after these. A repeat changes nothing. Ring `app.wake.media` after the commit.
///
/// # Errors
/// When the database refuses; the transaction then must not be committed.
pub async fn expect(conn: &mut AsyncPgConnection, now: DateTime<Utc>, wanted: &[Wanted]) -> Result<(), DbError> {
    fn column<'a, T>(wanted: &'a [Wanted], of: impl Fn(&'a Wanted) -> T) -> Vec<T> {
        wanted.iter().map(of).collect()
    }
    if wanted.is_empty() {
        return Ok(());
    }
    sql("INSERT INTO media_fetches (tenant_id, message_id, session_id, waha_message_id, chat_id, url, mime_type, filename, \
                                    due_at, created_at, updated_at) \
         SELECT i.*, $9, $9, $9 FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::text[], $5::text[], $6::text[], $7::text[], \
                                            $8::text[]) AS i \
         ON CONFLICT (tenant_id, message_id) DO NOTHING")
    .bind::<Array<SqlUuid>, _>(column(wanted, |file| file.tenant))
    .bind::<Array<SqlUuid>, _>(column(wanted, |file| file.message))
    .bind::<Array<SqlUuid>, _>(column(wanted, |file| file.session))
    .bind::<Array<Text>, _>(column(wanted, |file| file.waha_message_id.as_str()))
    .bind::<Array<Text>, _>(column(wanted, |file| file.chat_id.as_str()))
    .bind::<Array<Nullable<Text>>, _>(column(wanted, |file| file.url.as_deref()))
    .bind::<Array<Nullable<Text>>, _>(column(wanted, |file| file.mime_type.as_deref()))
    .bind::<Array<Nullable<Text>>, _>(column(wanted, |file| file.filename.as_deref()))
    .bind::<Timestamptz, _>(now)
    .prepared()
    .execute(conn)
    .await?;
    Ok(())
}

/// Forgets the files that are to be fetched for `messages`, which are to be erased: nothing of them is stored any more, not
/// even of one that is on its way.
///
/// # Errors
/// When the database refuses.
pub async fn forget(conn: &mut AsyncPgConnection, tenant: TenantId, messages: &[MessageId]) -> Result<(), DbError> {
    sql("DELETE FROM media_fetches WHERE tenant_id = $1 AND message_id = ANY($2)")
        .bind::<SqlUuid, _>(tenant)
        .bind::<Array<SqlUuid>, _>(messages)
        .prepared()
        .execute(conn)
        .await?;
    Ok(())
}

/// Fetches files until `stop` turns true; tries that have begun are ended first.
pub async fn run(app: App, mut stop: watch::Receiver<bool>) {
    let mut tries = Tries::default();
    while !*stop.borrow() {
        if let Err(fault) = tries.begin(&app).await {
            tracing::warn!(%fault, "media: files cannot be claimed");
        }
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => break,
            () = tries.ended() => {}
            () = app.wake.media.notified() => {}
            () = app.clock.sleep(app.config.timings.poll) => {}
        }
    }
    tries.finish().await;
}

/// The tries under way on this node.
#[derive(Default)]
struct Tries {
    tasks: JoinSet<()>,
    places: HashMap<Id, (WahaServerId, SessionId)>,
    /// Whose turn it was last.
    last: Option<SessionId>,
}

impl Tries {
    /// Claims what is due and begins with it, as far as there is room.
    async fn begin(&mut self, app: &App) -> Result<(), DbError> {
        while let Some(ended) = self.tasks.try_join_next_with_id() {
            self.places.remove(&ended.map_or_else(|panicked| panicked.id(), |(id, ())| id));
        }
        loop {
            let room = Room::beside(&app.config.arrivals, self.places.values().copied());
            let claimed = claim::claim(app, room, &mut self.last).await?;
            if claimed.is_empty() {
                return Ok(());
            }
            for (server, file) in claimed {
                let session = file.session_id;
                let id = self.tasks.spawn(fetch(app.clone(), file)).id();
                self.places.insert(id, (server, session));
            }
        }
    }

    /// Returns when a try has ended; never while there is none.
    async fn ended(&mut self) {
        match self.tasks.join_next_with_id().await {
            Some(ended) => {
                self.places.remove(&ended.map_or_else(|panicked| panicked.id(), |(id, ())| id));
            }
            None => std::future::pending().await,
        }
    }

    async fn finish(mut self) {
        while self.tasks.join_next().await.is_some() {}
    }
}

async fn fetch(app: App, file: Claimed) {
    let outcome = attempt::attempt(&app, &file).await;
    let (session_id, result, why) = (file.session_id, outcome.result(), outcome.why());
    metrics::counter!("switchboard_media_fetches_total", "result" => result).increment(1);
    tracing::debug!(%session_id, result, why, attempt = file.attempts, "media: a file was tried");
    // The lease runs out, and another try begins.
    if let Err(fault) = settle::settle(&app, &file, outcome).await {
        tracing::warn!(%session_id, %fault, "media: an outcome could not be written down");
    }
}

/// Says what this room's metrics mean.
pub fn describe_metrics() {
    describe_counter!("switchboard_media_fetches_total", "Tries to fetch a file that came with a message, by result");
}
