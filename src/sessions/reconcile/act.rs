//! Looking at one session at WAHA, and doing what is missing.

use chrono::{DateTime, TimeDelta, Utc};
use diesel::sql_types::{BigInt, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use secrecy::{ExposeSecret, SecretString};

use super::plan::{self, Found, Next, Step};
use super::steps::Taken;
use crate::app::App;
use crate::db::{DbError, Prepare, SystemConn, sql};
use crate::domain::ids::WahaServerId;
use crate::sessions::directory::{DirectoryError, SessionEntry};
use crate::sessions::liveness::alarm;
use crate::sessions::{moving, removal, webhook_keys};
use crate::waha::{CallError, Me, Server, SessionSpec, SessionStatus};

/// A step is not begun with less than this left of its lease.
const STEP: TimeDelta = TimeDelta::seconds(60);
/// When a session that is to move and has a message on its way is looked at again.
const BUSY: TimeDelta = TimeDelta::milliseconds(500);
/// When a session whose last message is just being handed over is looked at again.
const HANDING_OVER: TimeDelta = TimeDelta::seconds(5);

/// Why a step did not succeed. Its texts are safe to log.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error(transparent)]
    Waha(#[from] CallError),
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    #[error(transparent)]
    Database(#[from] DbError),
    #[error("the address of this service does not make a webhook address")]
    PublicUrl,
    #[error("WAHA answered too late for a step within the lease")]
    TooLate,
}

/// When a session is looked at again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Again {
    /// Nothing is missing.
    #[default]
    No,
    /// After a short pause, longer each time.
    Soon,
    /// Then.
    At(DateTime<Utc>),
    /// When its server has a place for one more that starts.
    WhenRoom,
}

/// What a look at a session brought.
#[derive(Default)]
pub(super) struct Looked {
    /// The step that was taken.
    pub step: Option<Step>,
    /// The status WAHA has it in; `None` when that is known only at the next look.
    pub status: Option<(SessionStatus, Option<Me>)>,
    /// When to look again.
    pub again: Again,
    /// Whether what the tenant wished for was done, or cannot be.
    pub wishes_done: bool,
    /// Whether the step was a restart that nobody asked for.
    pub own_restart: bool,
    /// Whether a place for starting was taken and not used.
    pub unused_place: bool,
}

/// Looks at WAHA and takes the step that is missing.
pub(super) async fn act(app: &App, session: &Taken) -> Result<Looked, Fault> {
    let Some(place) = app.directory.server(session.waha_server_id).await? else { return Ok(Looked::default()) };
    let (server, name) = (&place.server, session.external_session_id.as_str());
    // A deleted session is in the directory no more, and needs no configuration.
    let entry = app.directory.session(session.tenant_id, session.id).await?;
    let spec = entry.as_ref().map(|entry| spec(app, entry, session.waha_server_id)).transpose()?;
    let info = app.waha.get_session(server, name).await?;
    let found = info
        .as_ref()
        .map(|info| Found { status: info.status, drifted: spec.as_ref().is_some_and(|spec| !info.matches(spec)) });
    // Whichever step brought it there: what counts is that WAHA shows it.
    let has_key = found.is_some_and(|found| !found.drifted);
    if has_key && entry.is_some_and(|entry| entry.has_untold_webhook_key()) {
        webhook_keys::told(app, session.tenant_id, session.id).await?;
    }
    let mut next = plan::next(&session.wishes, found, app.clock.now(), &app.config.fleet, false);
    if next == Next::OwnRestart {
        let alarm = app.db.system(async |conn: &mut SystemConn| alarm::active(conn).await).await?;
        if alarm.is_some_and(|alarm| alarm.concerns(place.engine)) {
            next = Next::Later;
        }
    }
    let seen = info.map(|info| (info.status, info.me));
    let (step, own_restart) = match next {
        Next::Step(Step::Nothing) => {
            let status = seen.or(Some((SessionStatus::Stopped, None)));
            return Ok(Looked { status, wishes_done: true, ..Looked::default() });
        }
        // The polls notice when it is time.
        Next::Later => return Ok(Looked { status: seen, ..Looked::default() }),
        Next::Step(step) => (step, false),
        Next::OwnRestart => (Step::Restart, true),
    };
    // Unlinked, it has nothing left that keeps it here.
    if step == Step::Logout && session.wishes.needs_rescan && session.wishes.move_to.is_none() {
        moving::leave(app, session.waha_server_id, false).await?;
        if moving::is_moving(app, session.tenant_id, session.id).await? {
            return Ok(Looked { status: seen, again: Again::At(app.clock.now()), ..Looked::default() });
        }
    }
    let leaves = session.wishes.move_to.is_some() && matches!(step, Step::Stop | Step::Delete);
    if leaves && moving::is_busy(app, session.tenant_id, session.id).await? {
        return Ok(Looked { status: seen, again: Again::At(app.clock.now() + BUSY), ..Looked::default() });
    }
    if session.reconcile_lease - app.clock.now() < STEP {
        return Err(Fault::TooLate);
    }
    if step.starts() && !reserve(app, session).await? {
        return Ok(Looked { status: seen, again: Again::WhenRoom, ..Looked::default() });
    }
    let drifted = found.is_some_and(|found| found.drifted);
    let status = carry_out(app, session, step, server, spec.as_ref(), drifted).await?;
    let again = match step {
        // What is left of a deleted session is nothing; where a message is still on its way, its end is waited for.
        Step::Release if status.is_none() => Again::At(app.clock.now() + HANDING_OVER),
        Step::Release => return Ok(Looked { step: Some(step), ..Looked::default() }),
        Step::Move => Again::At(app.clock.now()),
        _ => Again::Soon,
    };
    let wishes_done = !matches!(step, Step::Update | Step::Delete | Step::Move | Step::Release);
    Ok(Looked { step: Some(step), status, again, wishes_done, own_restart, unused_place: false })
}

/// Takes the step; answers the status it led to, if that is known.
async fn carry_out(
    app: &App,
    session: &Taken,
    step: Step,
    server: &Server,
    spec: Option<&SessionSpec>,
    drifted: bool,
) -> Result<Option<(SessionStatus, Option<Me>)>, Fault> {
    let name = session.external_session_id.as_str();
    match (step, spec) {
        (Step::Create, Some(spec)) => match app.waha.create_session(server, spec, true).await {
            Ok(Some(info)) => return Ok(Some((info.status, info.me))),
            // It is there after all: the next look tells how.
            Ok(None) | Err(CallError::AlreadyExists) => {}
            Err(fault) => return Err(fault.into()),
        },
        (Step::Start, _) => app.waha.start(server, name).await?,
        (Step::Stop, _) => app.waha.stop(server, name).await?,
        (Step::Update, Some(spec)) => {
            app.waha.update_session(server, spec).await?;
        }
        (Step::Restart, spec) => {
            // To set a session up anew is to restart it.
            match spec.filter(|_| drifted) {
                Some(spec) => drop(app.waha.update_session(server, spec).await?),
                None => app.waha.restart(server, name).await?,
            }
            return Ok(Some((SessionStatus::Starting, None)));
        }
        (Step::Logout, _) => {
            app.waha.logout(server, name).await?;
        }
        (Step::Delete, _) => app.waha.delete(server, name).await?,
        (Step::Release, _) => {
            if !removal::settle_messages(app, session.tenant_id, session.id).await? {
                return Ok(None);
            }
            removal::give_place_back(app, session.tenant_id, session.id).await?;
            return Ok(Some((SessionStatus::Stopped, None)));
        }
        (Step::Move, _) => moving::finish(app, session.tenant_id, session.id).await?,
        (Step::Nothing | Step::Create | Step::Update, _) => {}
    }
    Ok(None)
}

// The lock makes this the only count on the server at a time.
const RESERVE: &str = "\
UPDATE waha_sessions SET starting_since = $4, start_queued_at = NULL
WHERE tenant_id = $1 AND id = $2 AND (
    SELECT count(*) FROM waha_sessions o WHERE o.waha_server_id = $3 AND o.starting_since > $5 AND o.id <> $2) < $6";

/// Takes a place among those of the server that start; false when all are taken.
async fn reserve(app: &App, session: &Taken) -> Result<bool, DbError> {
    let (now, fleet) = (app.clock.now(), &app.config.fleet);
    app.db
        .system(async |conn: &mut SystemConn| {
            sql("SELECT pg_advisory_xact_lock(hashtextextended('starts at ' || $1, 0))")
                .bind::<Text, _>(session.waha_server_id.to_string())
                .prepared()
                .execute(&mut **conn)
                .await?;
            let reserved = sql(RESERVE)
                .bind::<SqlUuid, _>(session.tenant_id)
                .bind::<SqlUuid, _>(session.id)
                .bind::<SqlUuid, _>(session.waha_server_id)
                .bind::<Timestamptz, _>(now)
                .bind::<Timestamptz, _>(now - fleet.start_deadline)
                .bind::<BigInt, _>(fleet.starts_at_once)
                .prepared()
                .execute(&mut **conn)
                .await?;
            Ok::<_, DbError>(reserved > 0)
        })
        .await
}

/// How `session` is set up on `server`: where it lives now, of which the directory may not know yet.
fn spec(app: &App, session: &SessionEntry, server: WahaServerId) -> Result<SessionSpec, Fault> {
    let base = app.config.public_url.as_str().trim_end_matches('/');
    let key = std::str::from_utf8(session.webhook_key.expose_secret())
        .map_err(|_| Fault::Directory(DirectoryError::Unreadable("webhook key")))?;
    Ok(SessionSpec {
        name: session.external_name.clone(),
        engine: session.engine,
        webhook_url: format!("{base}/hooks/waha/{server}").parse().map_err(|_| Fault::PublicUrl)?,
        hmac_key: SecretString::from(key),
        metadata: [("switchboard.session".to_owned(), session.id.to_string())].into(),
        proxy: session.proxy.clone(),
    })
}
