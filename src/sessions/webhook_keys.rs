//! New keys for sessions: what WAHA signs their webhooks with.
//!
//! Guarantee: no event is refused because a key was replaced. The previous key is accepted until WAHA shows that it has the
//! new one, and then for [`GRACE`]; as long as it is, the session is given no further key, which would push it out. Each session
//! is a transaction of its own, so that a rotation can be broken off at any moment and begun again.
//!
//! A session that works is not restarted for this: the reconciler hands the new key over with the next start.

use std::time::Duration;

use chrono::TimeDelta;
use diesel::QueryableByName;
use diesel::sql_types::{Binary, Nullable, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;

use crate::app::App;
use crate::db::{Db, DbError, Prepare, sql};
use crate::domain::chance::Chance;
use crate::domain::clock::Clock;
use crate::domain::ids::{SessionId, TenantId, WahaServerId};
use crate::identity::seal::Sealer;
use crate::sessions::directory::{DirectoryError, webhook_key_purpose};

/// How long the previous key is accepted once WAHA has the new one: WAHA repeats an event for up to five and a half hours (see
/// `waha::SessionSpec`), with the signature of the first attempt.
pub const GRACE: TimeDelta = TimeDelta::hours(6);

/// Tries of a session's transaction that lost against concurrent ones.
const TRIES: u32 = 8;

/// Whose keys are replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// This session's.
    Session(SessionId),
    /// Those of all sessions on this WAHA server.
    Server(WahaServerId),
    /// Those of all sessions.
    All,
}

/// What became of the sessions that were meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Sessions with a new key.
    pub rotated: usize,
    /// Sessions left alone, since their previous key is still accepted.
    pub skipped: usize,
}

#[derive(QueryableByName)]
struct Chosen {
    #[diesel(sql_type = SqlUuid)]
    tenant_id: TenantId,
    #[diesel(sql_type = SqlUuid)]
    id: SessionId,
    #[diesel(sql_type = Binary)]
    webhook_key_sealed: Vec<u8>,
}

const CHOSEN: &str = "\
SELECT tenant_id, id, webhook_key_sealed FROM waha_sessions
WHERE deleted_at IS NULL AND ($1 IS NULL OR id = $1) AND ($2 IS NULL OR waha_server_id = $2)
ORDER BY id";

// The reconciler looks at it, and hands the key over where that costs no connection.
const REPLACE: &str = "\
UPDATE waha_sessions SET
    previous_webhook_key_sealed = webhook_key_sealed,
    previous_webhook_key_until = NULL,
    webhook_key_sealed = $3,
    reconcile_at = $4
WHERE tenant_id = $1 AND id = $2 AND deleted_at IS NULL
  AND (previous_webhook_key_sealed IS NULL OR previous_webhook_key_until <= $4)";

const TOLD: &str = "\
UPDATE waha_sessions SET previous_webhook_key_until = $3
WHERE tenant_id = $1 AND id = $2 AND previous_webhook_key_sealed IS NOT NULL AND previous_webhook_key_until IS NULL";

/// A new key for `session`, sealed.
#[must_use]
pub fn fresh(sealer: &Sealer, chance: &Chance, session: SessionId) -> Vec<u8> {
    let key = hex::encode(chance.bytes::<32>());
    sealer.seal(&webhook_key_purpose(session), key.as_bytes())
}

/// Gives sessions new keys, one after the other.
///
/// # Errors
/// When the database does not answer, or when a session's key does not open with `sealer`, under which the nodes could not open
/// the new one either. What was done until then stays done.
pub async fn rotate(
    db: &Db,
    clock: &Clock,
    sealer: &Sealer,
    chance: &Chance,
    whose: Whose,
) -> Result<Tally, DirectoryError> {
    let (session, server) = match whose {
        Whose::Session(session) => (Some(session), None),
        Whose::Server(server) => (None, Some(server)),
        Whose::All => (None, None),
    };
    let chosen: Vec<Chosen> = db
        .system(async |conn| {
            Ok::<_, DbError>(
                sql(CHOSEN)
                    .bind::<Nullable<SqlUuid>, _>(session)
                    .bind::<Nullable<SqlUuid>, _>(server)
                    .prepared()
                    .load(&mut **conn)
                    .await?,
            )
        })
        .await?;
    let mut tally = Tally::default();
    for session in &chosen {
        sealer.open(&webhook_key_purpose(session.id), &session.webhook_key_sealed)?;
        let sealed = fresh(sealer, chance, session.id);
        if replace(db, clock, session, &sealed).await? {
            tally.rotated += 1;
        } else {
            tally.skipped += 1;
        }
    }
    Ok(tally)
}

/// Answers whether the session has the key `sealed` now.
async fn replace(db: &Db, clock: &Clock, session: &Chosen, sealed: &[u8]) -> Result<bool, DbError> {
    let mut tries = 0;
    loop {
        tries += 1;
        let now = clock.now();
        let replaced = db
            .system(async |conn| {
                Ok::<_, DbError>(
                    sql(REPLACE)
                        .bind::<SqlUuid, _>(session.tenant_id)
                        .bind::<SqlUuid, _>(session.id)
                        .bind::<Binary, _>(sealed)
                        .bind::<Timestamptz, _>(now)
                        .prepared()
                        .execute(&mut **conn)
                        .await?,
                )
            })
            .await;
        match replaced {
            Err(DbError::Contended(_)) if tries < TRIES => clock.sleep(Duration::from_millis(50) * tries).await,
            replaced => return Ok(replaced? > 0),
        }
    }
}

/// WAHA was seen with the session's new key: from now on the previous one has its time.
pub(super) async fn told(app: &App, tenant: TenantId, session: SessionId) -> Result<(), DbError> {
    let until = app.clock.now() + GRACE;
    app.db
        .system(async |conn| {
            sql(TOLD)
                .bind::<SqlUuid, _>(tenant)
                .bind::<SqlUuid, _>(session)
                .bind::<Timestamptz, _>(until)
                .prepared()
                .execute(&mut **conn)
                .await?;
            Ok::<_, DbError>(())
        })
        .await
}
