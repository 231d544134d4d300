//! What the pairing page shows of a session: how far pairing is, the code on show, and nothing else.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chrono::{DateTime, Utc};
use serde::Serialize;
use tokio::time::Instant;

use crate::app::App;
use crate::http::sse::{Frames, Gone, HEARTBEAT};
use crate::media::slots::Slot;
use crate::sessions::pairing::{self, ROTATIONS};
use crate::sessions::pairing_link::Pass;
use crate::sessions::view::SessionRow;
use crate::sessions::{qr, queries};

/// Between two looks at the session.
const LOOKS: Duration = Duration::from_millis(400);
/// How long a QR code may take to come from WAHA.
const CODE_WITHIN: Duration = Duration::from_secs(5);
/// How long to wait for the next try after one that did not come.
const CODE_AGAIN: Duration = Duration::from_secs(2);
/// How long a page waits before it comes again.
const RETRY: Duration = Duration::from_secs(2);

/// How far pairing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum State {
    /// The session connects, and will show a code.
    Starting,
    /// The code is on show.
    Scan,
    /// The phone has scanned it; WhatsApp links the two.
    Linking,
    /// WhatsApp asks for a passkey, which whoever made the link has to deal with.
    Passkey,
    /// Done. Also when the session stopped working later: the link has done what it was made for.
    Connected,
    /// Nobody scanned in time.
    Expired,
    /// It failed otherwise.
    Failed,
    /// Somebody stopped the session.
    Stopped,
}

impl State {
    /// The state of `session` for a link; `linking` says that a code was on show a moment ago.
    pub(super) fn of(session: &SessionRow, pass: &Pass, linking: bool) -> Self {
        if session.status == "working" || session.working_from.is_some_and(|from| from >= pass.made_at) {
            return Self::Connected;
        }
        match (session.status.as_str(), session.pairing_step.as_deref()) {
            ("scan_qr", Some("qr")) => Self::Scan,
            ("scan_qr", _) => Self::Passkey,
            ("stopped", _) => Self::Stopped,
            ("failed", _) if pairing::has_expired(session) => Self::Expired,
            ("failed", _) => Self::Failed,
            _ if linking => Self::Linking,
            _ => Self::Starting,
        }
    }
}

/// What the page is told. It holds a credential, and so has no form for logs.
#[derive(Serialize)]
struct Told {
    state: State,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<Code>,
}

/// The code on show.
#[derive(Serialize)]
struct Code {
    /// A PNG as a `data:` URL.
    image: String,
    rotation: i16,
    of: i16,
    /// From now: the clock of whoever looks may be wrong.
    expires_in_ms: i64,
}

/// Which code was shown: a later one has another number, or expires later.
type Shown = (i16, Option<DateTime<Utc>>);

/// One open page.
pub(super) struct Progress {
    app: App,
    pass: Pass,
    told: Option<State>,
    shown: Option<Shown>,
    /// The picture on show, to know another one.
    last_image: Option<String>,
    again_at: Instant,
    linking: bool,
}

impl Progress {
    pub(super) fn new(app: App, pass: Pass) -> Self {
        Self { app, pass, told: None, shown: None, last_image: None, again_at: Instant::now(), linking: false }
    }

    /// Tells the page what changes until pairing is done, the link has expired, or one side goes.
    pub(super) async fn run(mut self, frames: &Frames, _slot: Slot) -> Result<(), Gone> {
        let app = self.app.clone();
        frames.retry(RETRY).await?;
        let mut heard = Instant::now();
        loop {
            if app.clock.now() >= self.pass.expires_at {
                return frames.event(None, "gone", "{}").await;
            }
            let (tenant, session) = (self.pass.tenant, self.pass.session);
            match app.db.tenant(tenant, async move |conn| queries::find(conn, session).await).await {
                Ok(None) => return frames.event(None, "gone", "{}").await,
                Ok(Some(row)) => {
                    if let Some(told) = self.look(&row).await {
                        let done = told.state == State::Connected;
                        // Numbers and strings always serialise.
                        let text = serde_json::to_string(&told).unwrap_or_default();
                        frames.event(None, "state", &text).await?;
                        heard = Instant::now();
                        if done {
                            return Ok(());
                        }
                    }
                }
                Err(fault) => tracing::debug!(%fault, "a pairing page waits for the database"),
            }
            if heard.elapsed() >= HEARTBEAT {
                frames.comment().await?;
                heard = Instant::now();
            }
            tokio::select! {
                () = tokio::time::sleep(LOOKS) => {}
                () = frames.gone() => return Err(Gone),
                () = app.health.drained() => return Ok(()),
            }
        }
    }

    /// What the page has to be told, if anything.
    async fn look(&mut self, row: &SessionRow) -> Option<Told> {
        let state = State::of(row, &self.pass, self.linking);
        self.linking = match state {
            State::Scan | State::Passkey | State::Linking => true,
            State::Starting => self.linking,
            State::Connected | State::Expired | State::Failed | State::Stopped => false,
        };
        let changed = self.told != Some(state);
        if state != State::Scan {
            (self.shown, self.last_image) = (None, None);
            self.told = Some(state);
            return changed.then_some(Told { state, code: None });
        }
        let current = (row.qr_shown, row.qr_expires_at);
        let expired = row.qr_expires_at.is_some_and(|at| at <= self.app.clock.now());
        let due = self.shown != Some(current) || expired;
        if due && Instant::now() >= self.again_at {
            if let Some(code) = self.fetch(row).await {
                // A report of the code that a poll had found tells its true expiry.
                let news = self.shown != Some(current) || changed;
                self.shown = Some(current);
                if expired {
                    self.again_at = Instant::now() + CODE_AGAIN;
                }
                let another = self.last_image.as_deref() != Some(code.image.as_str());
                if another || news {
                    self.last_image = Some(code.image.clone());
                    self.told = Some(state);
                    return Some(Told { state, code: Some(code) });
                }
                return None;
            }
            self.again_at = Instant::now() + CODE_AGAIN;
        }
        if changed {
            // The code itself follows.
            self.told = Some(state);
            return Some(Told { state, code: None });
        }
        None
    }

    async fn fetch(&self, row: &SessionRow) -> Option<Code> {
        let (tenant, session) = (self.pass.tenant, self.pass.session);
        let fetched = tokio::time::timeout(CODE_WITHIN, qr::qr(&self.app, tenant, session)).await.ok()?;
        let code = match fetched {
            Ok(code) => code,
            Err(fault) => {
                tracing::debug!(session_id = %session, %fault, "a pairing page waits for its code");
                return None;
            }
        };
        let image = format!("data:image/png;base64,{}", STANDARD.encode(code.png().ok()?));
        let left = code.expires_at - self.app.clock.now();
        Some(Code { image, rotation: row.qr_shown, of: ROTATIONS, expires_in_ms: left.num_milliseconds().max(0) })
    }
}
