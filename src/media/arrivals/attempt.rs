//! One try to fetch a file: from where WAHA said it is, and where that is in vain, by asking WAHA for it anew.

use std::time::Duration;

use bytes::Bytes;
use chrono::TimeDelta;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};
use reqwest::Method;
use tokio::time::{Instant, timeout_at};

use super::claim::Claimed;
use crate::app::App;
use crate::media::incoming::{Declared, Incoming};
use crate::media::{Media, MediaError, kind, picture, small_key};
use crate::sessions::directory::{ServerEntry, SessionEntry};
use crate::waha::{CallError, FileAddress};

/// How long the next piece of a file may take.
const PIECE: Duration = Duration::from_secs(30);
/// Tries that go to the address of the webhook; WAHA keeps files for three minutes.
const WHILE_FRESH: i32 = 2;
/// How often WAHA has to say that it knows neither file nor message before that is believed: engines that have just started
/// know little.
const GONE_FOR_GOOD: i32 = 5;
/// The pauses after tries that failed; the last one repeats.
const PAUSES: [TimeDelta; 9] = [
    TimeDelta::seconds(10),
    TimeDelta::seconds(30),
    TimeDelta::minutes(2),
    TimeDelta::minutes(10),
    TimeDelta::minutes(30),
    TimeDelta::hours(1),
    TimeDelta::hours(2),
    TimeDelta::hours(4),
    TimeDelta::hours(6),
];

/// What became of a try.
#[derive(Debug)]
pub(super) enum Outcome {
    /// The bytes are there, and can be used once they are made ready.
    Stored(Box<Media>),
    /// It will not come; why, in one stable word.
    Failed(&'static str),
    /// WhatsApp does not have it any more.
    Expired,
    /// Perhaps later.
    Later {
        /// When.
        after: TimeDelta,
        /// Whether it is no fault of WAHA's or WhatsApp's.
        excused: bool,
        /// Whether WAHA said that it knows neither file nor message.
        gone: bool,
        /// Why, in a word.
        why: &'static str,
    },
}

impl Outcome {
    pub(super) fn result(&self) -> &'static str {
        match self {
            Self::Stored(_) => "stored",
            Self::Failed(_) => "failed",
            Self::Expired => "expired",
            Self::Later { .. } => "later",
        }
    }

    pub(super) fn why(&self) -> &'static str {
        match self {
            Self::Stored(_) => "",
            Self::Failed(why) | Self::Later { why, .. } => why,
            Self::Expired => "gone",
        }
    }
}

/// Why an address gave no file.
enum Fault {
    TooLarge,
    Empty,
    /// The file is not there (any more).
    NotThere,
    /// It may come another time.
    Elsewise(&'static str),
    /// The storage or the database failed.
    Own(MediaError),
}

impl From<MediaError> for Fault {
    fn from(fault: MediaError) -> Self {
        match fault {
            MediaError::TooLarge => Self::TooLarge,
            MediaError::Empty => Self::Empty,
            fault => Self::Own(fault),
        }
    }
}

impl From<CallError> for Fault {
    fn from(fault: CallError) -> Self {
        match fault {
            CallError::NotFound => Self::NotThere,
            CallError::Unauthorized => Self::Elsewise("refused"),
            CallError::Unreachable => Self::Elsewise("unreachable"),
            CallError::TimedOut => Self::Elsewise("timed_out"),
            _ => Self::Elsewise("server_failed"),
        }
    }
}

/// Fetches the file, once.
pub(super) async fn attempt(app: &App, file: &Claimed) -> Outcome {
    if !file.wanted {
        return Outcome::Failed("not_wanted");
    }
    let deadline = Instant::now() + app.config.arrivals.timeout;
    let place = match place(app, file).await {
        Ok(Some(place)) => place,
        Ok(None) => return Outcome::Failed("session_deleted"),
        Err(fault) => {
            tracing::warn!(%fault, "media: a session cannot be looked up");
            return later(app, file, "database", true);
        }
    };
    let try_ = Try { app, file, session: &place.0, server: &place.1, deadline };
    let fetched = match &file.url {
        Some(url) if file.attempts - file.excused <= WHILE_FRESH => try_.download(url).await,
        _ => Err(Fault::NotThere),
    };
    match fetched {
        Ok(media) => Outcome::Stored(Box::new(media)),
        Err(fault @ (Fault::TooLarge | Fault::Own(_))) => try_.gave(fault),
        Err(_) => try_.ask_anew().await,
    }
}

type Place = (std::sync::Arc<SessionEntry>, std::sync::Arc<ServerEntry>);

/// Where the file's session lives now; `None` when it is gone.
async fn place(app: &App, file: &Claimed) -> Result<Option<Place>, crate::sessions::directory::DirectoryError> {
    let Some(session) = app.directory.session(file.tenant_id, file.session_id).await? else { return Ok(None) };
    let server = app.directory.server(session.server).await?;
    Ok(server.map(|server| (session, server)))
}

/// Another try after a while, unless there were enough.
fn later(app: &App, file: &Claimed, why: &'static str, excused: bool) -> Outcome {
    let counted = file.attempts - file.excused;
    if !excused && counted >= app.config.arrivals.attempts {
        return Outcome::Failed(if why == "empty" { "empty" } else { "unavailable" });
    }
    Outcome::Later { after: pause(app, counted), excused, gone: false, why }
}

fn pause(app: &App, tries: i32) -> TimeDelta {
    let step = usize::try_from(tries.saturating_sub(1)).unwrap_or_default();
    let pause = PAUSES.get(step).or(PAUSES.last()).copied().unwrap_or_default();
    let spread = (pause / 10).to_std().unwrap_or_default();
    pause + TimeDelta::from_std(app.chance.jitter(spread)).unwrap_or_default()
}

struct Try<'a> {
    app: &'a App,
    file: &'a Claimed,
    session: &'a SessionEntry,
    server: &'a ServerEntry,
    deadline: Instant,
}

impl Try<'_> {
    /// What follows from `fault`, if WAHA is not asked (again).
    fn gave(&self, fault: Fault) -> Outcome {
        match fault {
            Fault::TooLarge => Outcome::Failed("too_large"),
            Fault::Empty => later(self.app, self.file, "empty", false),
            Fault::NotThere => later(self.app, self.file, "not_found", false),
            Fault::Elsewise(why) => later(self.app, self.file, why, false),
            Fault::Own(fault) => {
                tracing::warn!(%fault, "media: a file cannot be kept");
                later(self.app, self.file, "storage", true)
            }
        }
    }

    /// Has WAHA fetch the file from WhatsApp anew.
    async fn ask_anew(&self) -> Outcome {
        let bare = self.session.engine.can_read_back_by_bare_id();
        let (chat, id) = if bare {
            ("all", self.file.waha_message_id.as_str())
        } else {
            (self.file.chat_id.as_str(), self.file.whatsapp_id.as_str())
        };
        let name = &self.session.external_name;
        let asked = self.app.waha.message_with_media(&self.server.server, name, chat, id, self.left()).await;
        match asked {
            Ok(Some(message)) => match message.media.as_ref().and_then(|media| media.url.as_ref()) {
                Some(url) => match self.download(url.as_str()).await {
                    Ok(media) => Outcome::Stored(Box::new(media)),
                    Err(fault) => self.gave(fault),
                },
                None => later(self.app, self.file, "not_downloaded", false),
            },
            Ok(None) if self.file.gone + 1 >= GONE_FOR_GOOD => Outcome::Expired,
            Ok(None) => match later(self.app, self.file, "gone", false) {
                Outcome::Later { after, excused, why, .. } => Outcome::Later { after, excused, gone: true, why },
                _ => Outcome::Expired,
            },
            Err(CallError::NotFound) => later(self.app, self.file, "session_missing", false),
            Err(fault) => match Fault::from(fault) {
                Fault::Elsewise(why) => later(self.app, self.file, why, false),
                fault => self.gave(fault),
            },
        }
    }

    fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// Stores what is at `url`.
    async fn download(&self, url: &str) -> Result<Media, Fault> {
        let most = self.file.most_bytes();
        let (length, bytes) =
            timeout_at(self.deadline, self.open(url)).await.map_err(|_| Fault::Elsewise("timed_out"))??;
        if length.is_some_and(|length| length > most as u64) {
            return Err(Fault::TooLarge);
        }
        let declared = Declared {
            mime_type: kind::hint(self.file.mime_type.as_deref()),
            filename: self.file.filename.clone(),
            source_url: None,
        };
        let mut incoming = Incoming::begin_within(self.app, self.file.tenant_id, declared, most).await?;
        if let Err(fault) = self.take_in(bytes, &mut incoming).await {
            incoming.abandon().await;
            return Err(fault);
        }
        let media = incoming.finish().await?;
        Ok(self.with_picture(media).await)
    }

    async fn take_in(
        &self,
        mut bytes: BoxStream<'static, Result<Bytes, Fault>>,
        incoming: &mut Incoming,
    ) -> Result<(), Fault> {
        loop {
            let next = timeout_at(self.deadline.min(Instant::now() + PIECE), bytes.next());
            match next.await.map_err(|_| Fault::Elsewise("timed_out"))? {
                Some(chunk) => incoming.write(chunk?).await?,
                None => return Ok(()),
            }
        }
    }

    /// The size and the bytes of what is at `url`. The key goes to the known server only.
    async fn open(&self, url: &str) -> Result<(Option<u64>, BoxStream<'static, Result<Bytes, Fault>>), Fault> {
        match FileAddress::of(&self.server.server, url) {
            FileAddress::Own(path) => {
                let answer = self.app.waha.file(&self.server.server, &path, self.left()).await?;
                Ok((answer.length, answer.bytes.map_err(Fault::from).boxed()))
            }
            FileAddress::Elsewhere(url) => {
                let request = self.app.media.client.request(Method::GET, &url);
                let request = request.map_err(|_| Fault::Elsewise("address_refused"))?.timeout(self.left());
                let response = request.send().await.map_err(|_| Fault::Elsewise("unreachable"))?;
                match response.status().as_u16() {
                    200 => {}
                    404 | 410 => return Err(Fault::NotThere),
                    401 | 403 => return Err(Fault::Elsewise("refused")),
                    _ => return Err(Fault::Elsewise("server_failed")),
                }
                let length = response.content_length();
                Ok((length, response.bytes_stream().map_err(|_| Fault::Elsewise("broke_off")).boxed()))
            }
            FileAddress::Refused => Err(Fault::Elsewise("address_refused")),
        }
    }

    /// Adds what can be found out about a picture, and its small one. A file without is as good.
    async fn with_picture(&self, mut media: Media) -> Media {
        let found = match picture::look(&self.app.media, &media).await {
            Ok(found) => found,
            Err(fault) => {
                tracing::debug!(%fault, "media: a picture cannot be looked at");
                return media;
            }
        };
        (media.width, media.height) = found.size.unzip();
        if let Some(small) = found.small {
            let size = i64::try_from(small.len()).ok();
            match self.keep_small(&media, small.into()).await {
                Ok(()) => media.thumbnail_size = size,
                Err(fault) => tracing::debug!(%fault, "media: a small picture cannot be kept"),
            }
        }
        media
    }

    async fn keep_small(&self, media: &Media, small: Bytes) -> Result<(), MediaError> {
        let mut writer = self.app.media.storage.write(&small_key(&media.key))?;
        writer.write(small).await?;
        Ok(writer.finish().await?)
    }
}
