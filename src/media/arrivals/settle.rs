//! Writing down what became of a try: the file, the message and its event in one transaction.

use chrono::{DateTime, TimeDelta, Utc};
use diesel::sql_types::{Bool, Integer, Jsonb, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use serde_json::Value;

use super::attempt::Outcome;
use super::claim::Claimed;
use crate::app::App;
use crate::db::{DbError, Prepare, SystemConn, sql};
use crate::domain::content::{MediaContent, MediaStatus};
use crate::domain::ids::{EventId, MessageId, TenantId};
use crate::events::log::{self, NewEvent};
use crate::events::types::MESSAGE_MEDIA;
use crate::media::{Media, rows, take_back};
use crate::messages::queries;
use crate::messages::row::{MessageRow, message_columns};
use crate::messages::view::Message;

// What was deleted or erased meanwhile gets no file any more.
const SHOW: &str = concat!(
    "\
WITH m AS (
    UPDATE messages m SET content = jsonb_set(m.content, '{media}', ((m.content -> 'media') - 'error') || $3), updated_at = $4
    WHERE m.tenant_id = $1 AND m.id = $2 AND m.content ? 'media' AND m.deleted_at IS NULL AND m.erased_at IS NULL
    RETURNING m.*
)
SELECT ",
    message_columns!(),
    " FROM m"
);

const AGAIN: &str = concat!(
    "\
WITH m AS (
    UPDATE messages m
    SET content = jsonb_set(m.content, '{media}', ((m.content -> 'media') - 'error') || '{\"status\": \"pending\"}'), updated_at = $3
    WHERE m.tenant_id = $1 AND m.id = $2 AND m.content #>> '{media,status}' IN ('failed', 'expired')
      AND m.waha_message_id IS NOT NULL AND m.deleted_at IS NULL AND m.erased_at IS NULL
    RETURNING m.*
), f AS (
    INSERT INTO media_fetches (tenant_id, message_id, session_id, waha_message_id, chat_id, mime_type, filename,
                               due_at, created_at, updated_at)
    SELECT m.tenant_id, m.id, m.session_id, m.waha_message_id, m.chat_id, m.content #>> '{media,mime_type}',
           m.content #>> '{media,filename}', $3, $3, $3
    FROM m
    ON CONFLICT (tenant_id, message_id) DO NOTHING
)
SELECT ",
    message_columns!(),
    " FROM m"
);

/// Why an outcome was not written down.
enum Undone {
    /// Another try has begun, or the file was given up meanwhile.
    Late,
    Database(DbError),
}

impl From<DbError> for Undone {
    fn from(fault: DbError) -> Self {
        Self::Database(fault)
    }
}

/// Writes `outcome` down, unless another try has begun.
pub(super) async fn settle(app: &App, file: &Claimed, outcome: Outcome) -> Result<(), DbError> {
    let now = app.clock.now();
    match outcome {
        Outcome::Stored(media) => stored(app, file, *media, now).await,
        Outcome::Failed(why) => given_up(app, file, MediaStatus::Failed, Some(why), now).await,
        Outcome::Expired => given_up(app, file, MediaStatus::Expired, None, now).await,
        Outcome::Later { after, excused, gone, .. } => wait(app, file, now, after, excused, gone).await,
    }
}

async fn stored(app: &App, file: &Claimed, media: Media, now: DateTime<Utc>) -> Result<(), DbError> {
    let shown = MediaContent {
        id: Some(media.id),
        mime_type: Some(media.mime_type.clone()),
        filename: media.filename.clone(),
        status: Some(MediaStatus::Stored),
        size: Some(media.size),
        width: media.width,
        height: media.height,
        thumbnail: Some(media.thumbnail_size.is_some()),
        ..MediaContent::default()
    };
    let kept = app
        .db
        .system(async |conn: &mut SystemConn| {
            let kept = show(app, conn, file, &shown, now).await?;
            if kept && !rows::make_ready(conn, file.tenant_id, &media, now).await? {
                return Err(Undone::Late);
            }
            Ok(kept)
        })
        .await;
    match kept {
        Ok(true) => {
            metrics::counter!("switchboard_media_stored_total").increment(1);
            app.wake.events.notify_one();
            Ok(())
        }
        Ok(false) | Err(Undone::Late) => {
            take_back(app, file.tenant_id, &media).await;
            Ok(())
        }
        // The commit may have come about; if it did not, the purge finds the bytes.
        Err(Undone::Database(fault)) => Err(fault),
    }
}

async fn given_up(
    app: &App,
    file: &Claimed,
    status: MediaStatus,
    why: Option<&str>,
    now: DateTime<Utc>,
) -> Result<(), DbError> {
    let shown = MediaContent { status: Some(status), error: why.map(str::to_owned), ..MediaContent::default() };
    match app.db.system(async |conn: &mut SystemConn| show(app, conn, file, &shown, now).await).await {
        Ok(_) => {
            app.wake.events.notify_one();
            Ok(())
        }
        Err(Undone::Late) => Ok(()),
        Err(Undone::Database(fault)) => Err(fault),
    }
}

/// Ends the fetching of `file` and shows it as `shown`; false when its message is not there any more.
async fn show(
    app: &App,
    conn: &mut AsyncPgConnection,
    file: &Claimed,
    shown: &MediaContent,
    now: DateTime<Utc>,
) -> Result<bool, Undone> {
    let patch = serde_json::to_value(shown).unwrap_or(Value::Null);
    // Messages before what hangs on them, as everywhere.
    let changed: Vec<MessageRow> = sql(SHOW)
        .bind::<SqlUuid, _>(file.tenant_id)
        .bind::<SqlUuid, _>(file.message_id)
        .bind::<Jsonb, _>(patch)
        .bind::<Timestamptz, _>(now)
        .prepared()
        .load(&mut *conn)
        .await
        .map_err(DbError::from)?;
    let ended = sql("DELETE FROM media_fetches WHERE tenant_id = $1 AND message_id = $2 AND attempts = $3")
        .bind::<SqlUuid, _>(file.tenant_id)
        .bind::<SqlUuid, _>(file.message_id)
        .bind::<Integer, _>(file.attempts)
        .prepared()
        .execute(&mut *conn)
        .await
        .map_err(DbError::from)?;
    if ended == 0 {
        return Err(Undone::Late);
    }
    let Some(row) = changed.as_slice().first() else { return Ok(false) };
    let event = NewEvent {
        tenant: row.tenant_id,
        id: EventId::fresh(now, &app.chance),
        kind: MESSAGE_MEDIA,
        at: now,
        session_id: Some(row.session_id),
        message_id: Some(row.id),
        data: Message::from(row).to_json(),
    };
    log::append(conn, &[event]).await?;
    Ok(true)
}

async fn wait(
    app: &App,
    file: &Claimed,
    now: DateTime<Utc>,
    after: TimeDelta,
    excused: bool,
    gone: bool,
) -> Result<(), DbError> {
    app.db
        .system(async |conn: &mut SystemConn| {
            sql("UPDATE media_fetches SET due_at = $4, excused = excused + $5::int, gone = CASE WHEN $6 THEN gone + 1 ELSE gone END, \
                     updated_at = $7 \
                 WHERE tenant_id = $1 AND message_id = $2 AND attempts = $3")
            .bind::<SqlUuid, _>(file.tenant_id)
            .bind::<SqlUuid, _>(file.message_id)
            .bind::<Integer, _>(file.attempts)
            .bind::<Timestamptz, _>(now + after)
            .bind::<Integer, _>(i32::from(excused))
            .bind::<Bool, _>(gone)
            .bind::<Timestamptz, _>(now)
            .prepared()
            .execute(&mut **conn)
            .await?;
            Ok(())
        })
        .await
}

/// What came of asking for a file once more.
#[derive(Debug)]
pub enum AnotherTry {
    /// It is fetched again.
    Begun(Box<MessageRow>),
    /// It is neither `failed` nor `expired`.
    NotNow(Box<MessageRow>),
    /// There is no such message, or it has no file.
    NotFound,
}

/// Has the file of `message` fetched once more.
///
/// # Errors
/// When the database does not answer.
pub async fn retry(app: &App, tenant: TenantId, message: MessageId) -> Result<AnotherTry, DbError> {
    let now = app.clock.now();
    let done = app
        .db
        .tenant(tenant, async |conn| {
            let begun: Vec<MessageRow> = sql(AGAIN)
                .bind::<SqlUuid, _>(tenant)
                .bind::<SqlUuid, _>(message)
                .bind::<Timestamptz, _>(now)
                .prepared()
                .load(&mut **conn)
                .await?;
            if let Some(row) = begun.into_iter().next() {
                return Ok::<_, DbError>(AnotherTry::Begun(Box::new(row)));
            }
            let found = queries::find(conn, message).await?.filter(|row| row.content().media.is_some());
            Ok(found.map_or(AnotherTry::NotFound, |row| AnotherTry::NotNow(Box::new(row))))
        })
        .await?;
    app.wake.media.notify_one();
    Ok(done)
}
