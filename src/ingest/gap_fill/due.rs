//! Which sessions are due, who reads them back, and how far they have come: the rows of `gap_fills`.
//!
//! What makes a fill due is not told by whoever causes it, but found by comparing each row with its session and server
//! ([`follow`]): so no hot path writes here, and nothing is forgotten by a node that dies in between.

use chrono::{DateTime, TimeDelta, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Bool, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;

use crate::app::App;
use crate::db::{DbError, Prepare, SystemConn, TenantConn, sql};
use crate::domain::ids::{SessionId, TenantId, WahaServerId};

/// After a question whether a session is alive has led to a fill, the next one has to wait this long.
const BETWEEN_SILENCES: TimeDelta = TimeDelta::hours(1);
/// What was stored this short a while ago may not be committed yet, and is counted by the next fill.
const UNCOUNTED: TimeDelta = TimeDelta::seconds(5);

/// Why a gap is filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Because {
    /// The session came to work, for the first time or again.
    Reconnect,
    /// Its WAHA server was started anew, which forgets webhooks.
    ServerRestart,
    /// It was so silent that WhatsApp was asked whether it is alive.
    Silence,
    /// Its time came.
    Schedule,
    /// The tenant asked for it.
    Tenant,
}

impl Because {
    /// The word in the database and the metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Reconnect => "reconnect",
            Self::ServerRestart => "server_restart",
            Self::Silence => "silence",
            Self::Schedule => "schedule",
            Self::Tenant => "tenant",
        }
    }

    fn from_name(name: &str) -> Self {
        [Self::Reconnect, Self::ServerRestart, Self::Silence, Self::Tenant]
            .into_iter()
            .find(|because| because.as_str() == name)
            .unwrap_or(Self::Schedule)
    }
}

/// A session taken under a lease, and how far its fill has come.
#[derive(Clone, Debug, QueryableByName)]
pub(super) struct Taken {
    #[diesel(sql_type = SqlUuid)]
    pub tenant_id: TenantId,
    #[diesel(sql_type = SqlUuid)]
    pub session_id: SessionId,
    #[diesel(sql_type = SqlUuid)]
    pub waha_server_id: WahaServerId,
    #[diesel(sql_type = Text)]
    because: String,
    #[diesel(sql_type = Timestamptz)]
    pub lease_until: DateTime<Utc>,
    #[diesel(sql_type = Timestamptz)]
    pub fill_from: DateTime<Utc>,
    #[diesel(sql_type = Timestamptz)]
    pub fill_until: DateTime<Utc>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub cursor_since: Option<DateTime<Utc>>,
    #[diesel(sql_type = BigInt)]
    pub cursor_offset: i64,
    #[diesel(sql_type = Nullable<BigInt>)]
    pub cursor_after: Option<i64>,
    #[diesel(sql_type = Integer)]
    pub failures: i32,
}

impl Taken {
    /// Why its gap is filled.
    pub fn because(&self) -> Because {
        Because::from_name(&self.because)
    }
}

/// How a fill that is not complete goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GivenUp {
    /// It goes on where it was after a while.
    Later,
    /// It cannot be done as things are; it begins anew at its next time.
    Refused,
    /// This node stops; another one may go on at once.
    HandedOver,
}

const ENLIST: &str = "\
INSERT INTO gap_fills (tenant_id, session_id, waha_server_id, counted_until, created_at, updated_at)
SELECT s.tenant_id, s.id, s.waha_server_id, greatest(s.created_at, $1 - interval '1 day'), $1, $1 FROM waha_sessions s
WHERE s.deleted_at IS NULL
  AND NOT EXISTS (SELECT FROM gap_fills g WHERE g.tenant_id = s.tenant_id AND g.session_id = s.id)
ORDER BY s.id ON CONFLICT DO NOTHING";

// A session that works for a second time without having ceased to is as it was. What the tenant asked for stays so until it begins.
// Another server counts rows in another way.
const FOLLOW: &str = "\
WITH m AS (
    SELECT g.tenant_id, g.session_id, n.*, CASE
        WHEN n.working_since IS NULL THEN NULL
        WHEN g.server_started <> n.server_started AND g.waha_server_id = n.waha_server_id THEN 'server_restart'
        WHEN g.working_since IS DISTINCT FROM n.working_since THEN 'reconnect'
        WHEN n.silent THEN 'silence' END AS cause
    FROM gap_fills g
    JOIN waha_sessions s ON s.tenant_id = g.tenant_id AND s.id = g.session_id
    JOIN waha_servers w ON w.id = s.waha_server_id
    LEFT JOIN session_vitals v ON v.tenant_id = g.tenant_id AND v.session_id = g.session_id
    CROSS JOIN LATERAL (
        SELECT s.waha_server_id,
               CASE WHEN s.waha_status = 'working' AND s.desired = 'started' AND s.move_to IS NULL AND s.deleted_at IS NULL
                    THEN s.waha_status_since END AS working_since,
               w.start_timestamp AS server_started, v.probed_at,
               v.probed_at > coalesce(g.probed_at, '-infinity') AND coalesce(g.filled_at, '-infinity') < $3 AS silent
    ) n
    WHERE g.working_since IS DISTINCT FROM n.working_since OR g.waha_server_id <> n.waha_server_id
       OR n.working_since IS NOT NULL AND (n.silent OR n.server_started IS NOT NULL AND g.server_started IS DISTINCT FROM n.server_started)
    ORDER BY g.session_id FOR NO KEY UPDATE OF g SKIP LOCKED
)
UPDATE gap_fills g SET
    waha_server_id = m.waha_server_id,
    working_since = m.working_since,
    server_started = CASE WHEN m.working_since IS NULL THEN g.server_started ELSE coalesce(m.server_started, g.server_started) END,
    probed_at = CASE WHEN m.working_since IS NULL THEN g.probed_at ELSE coalesce(m.probed_at, g.probed_at) END,
    cursor_offset = CASE WHEN g.waha_server_id = m.waha_server_id THEN g.cursor_offset ELSE 0 END,
    because = CASE WHEN m.cause IS NULL OR g.because = 'tenant' AND g.asked > g.taken THEN g.because ELSE m.cause END,
    asked = g.asked + (m.cause IS NOT NULL)::int,
    failures = CASE WHEN m.cause IS NULL THEN g.failures ELSE 0 END,
    due_at = CASE WHEN m.working_since IS NULL THEN NULL WHEN m.cause IS NULL THEN g.due_at ELSE least(g.due_at, $2) END,
    updated_at = $1
FROM m WHERE g.tenant_id = m.tenant_id AND g.session_id = m.session_id";

/// Finds what has become due.
///
/// # Errors
/// When the database does not answer; it is found the next time.
pub(super) async fn follow(app: &App, now: DateTime<Utc>) -> Result<(), DbError> {
    let due = now + delta(app.config.gap_fill.delay);
    app.db
        .system(async |conn: &mut SystemConn| {
            sql(ENLIST).bind::<Timestamptz, _>(now).prepared().execute(&mut **conn).await?;
            sql(FOLLOW)
                .bind::<Timestamptz, _>(now)
                .bind::<Timestamptz, _>(due)
                .bind::<Timestamptz, _>(now - BETWEEN_SILENCES)
                .prepared()
                .execute(&mut **conn)
                .await?;
            Ok(())
        })
        .await
}

const ASK: &str = "\
UPDATE gap_fills SET
    asked = asked + 1, because = 'tenant', due_at = CASE WHEN working_since IS NOT NULL THEN least(due_at, $3) END, updated_at = $3
WHERE tenant_id = $1 AND session_id = $2";

/// Asks for a fill of the tenant's session `id` now; of one that does not work when it works again.
///
/// # Errors
/// When the database does not answer.
pub async fn ask(conn: &mut TenantConn, id: SessionId, now: DateTime<Utc>) -> Result<(), DbError> {
    sql(ASK)
        .bind::<SqlUuid, _>(conn.tenant())
        .bind::<SqlUuid, _>(id)
        .bind::<Timestamptz, _>(now)
        .prepared()
        .execute(&mut **conn)
        .await?;
    Ok(())
}

#[derive(QueryableByName)]
struct Alone {
    #[diesel(sql_type = Bool)]
    alone: bool,
}

// A place at a server is taken until the lease ends. One that was broken off goes on; whoever asked since it began is not
// served by it.
const TAKE: &str = "\
WITH busy AS (
    SELECT waha_server_id, count(*) AS fills FROM gap_fills WHERE lease_until > $1 GROUP BY waha_server_id
), due AS (
    SELECT g.tenant_id, g.session_id, g.due_at,
           row_number() OVER (PARTITION BY g.waha_server_id ORDER BY g.due_at, g.session_id) + coalesce(b.fills, 0) AS place
    FROM gap_fills g LEFT JOIN busy b ON b.waha_server_id = g.waha_server_id
    WHERE g.due_at <= $1 AND (g.lease_until IS NULL OR g.lease_until <= $1)
), mine AS (
    SELECT g.tenant_id, g.session_id, s.created_at AS since FROM due d
    JOIN gap_fills g ON g.tenant_id = d.tenant_id AND g.session_id = d.session_id
    JOIN waha_sessions s ON s.tenant_id = d.tenant_id AND s.id = d.session_id
    WHERE d.place <= $2 ORDER BY d.due_at, d.session_id LIMIT $3 FOR NO KEY UPDATE OF g SKIP LOCKED
)
UPDATE gap_fills g SET
    lease_until = $4,
    began_at = coalesce(g.began_at, $1),
    taken = CASE WHEN g.began_at IS NULL THEN g.asked ELSE g.taken END,
    fill_from = CASE WHEN g.began_at IS NULL THEN greatest(coalesce(g.reread_from, g.filled_until, m.since) - ($5 * interval '1 second'), $6)
                     ELSE g.fill_from END,
    fill_until = CASE WHEN g.began_at IS NOT NULL THEN g.fill_until WHEN g.because = 'tenant' THEN $1 ELSE $7 END,
    updated_at = $1
FROM mine m WHERE g.tenant_id = m.tenant_id AND g.session_id = m.session_id
RETURNING g.tenant_id, g.session_id, g.waha_server_id, g.because, g.lease_until, g.fill_from, g.fill_until, g.cursor_since,
          g.cursor_offset, g.cursor_after, g.failures";

/// Takes up to `most` sessions that are due, as far as their servers have places; none while another node takes some.
///
/// # Errors
/// When the database does not answer.
pub(super) async fn take(app: &App, now: DateTime<Utc>, most: usize) -> Result<Vec<Taken>, DbError> {
    let settings = &app.config.gap_fill;
    app.db
        .system(async |conn: &mut SystemConn| {
            // Two nodes that count at the same time would take one place twice.
            let alone: Alone = sql("SELECT pg_try_advisory_xact_lock(hashtextextended('gap fills', 0)) AS alone")
                .prepared()
                .get_result(&mut **conn)
                .await?;
            if !alone.alone {
                return Ok(Vec::new());
            }
            Ok::<_, DbError>(
                sql(TAKE)
                    .bind::<Timestamptz, _>(now)
                    .bind::<BigInt, _>(i64::from(settings.at_once))
                    .bind::<BigInt, _>(i64::try_from(most).unwrap_or(i64::MAX))
                    .bind::<Timestamptz, _>(now + delta(settings.lease + settings.spacing()))
                    .bind::<diesel::sql_types::Double, _>(settings.overlap.as_secs_f64())
                    .bind::<Timestamptz, _>(now - TimeDelta::days(i64::from(settings.days_back)))
                    .bind::<Timestamptz, _>(now - delta(settings.delay))
                    .prepared()
                    .load(&mut **conn)
                    .await?,
            )
        })
        .await
}

#[derive(QueryableByName)]
struct Works {
    #[diesel(sql_type = Bool)]
    works: bool,
}

const ADVANCE: &str = "\
UPDATE gap_fills SET
    cursor_since = $4, cursor_offset = $5, cursor_after = $6, found = found + $7, failures = 0, lease_until = $8, updated_at = $9
WHERE tenant_id = $1 AND session_id = $2 AND lease_until = $3
RETURNING working_since IS NOT NULL AS works";

/// Writes down how far `taken` has come, with `found` messages that were missing, and holds the lease on. Answers whether the
/// session still works; `None` when another node has taken it.
///
/// # Errors
/// When the database does not answer; what was read is read again then.
pub(super) async fn advance(app: &App, taken: &mut Taken, found: usize) -> Result<Option<bool>, DbError> {
    let now = app.clock.now();
    let settings = &app.config.gap_fill;
    let lease = now + delta(settings.lease + settings.spacing());
    let rows: Vec<Works> = app
        .db
        .system(async |conn: &mut SystemConn| {
            Ok::<_, DbError>(
                sql(ADVANCE)
                    .bind::<SqlUuid, _>(taken.tenant_id)
                    .bind::<SqlUuid, _>(taken.session_id)
                    .bind::<Timestamptz, _>(taken.lease_until)
                    .bind::<Nullable<Timestamptz>, _>(taken.cursor_since)
                    .bind::<BigInt, _>(taken.cursor_offset)
                    .bind::<Nullable<BigInt>, _>(taken.cursor_after)
                    .bind::<BigInt, _>(i64::try_from(found).unwrap_or(i64::MAX))
                    .bind::<Timestamptz, _>(lease)
                    .bind::<Timestamptz, _>(now)
                    .prepared()
                    .load(&mut **conn)
                    .await?,
            )
        })
        .await?;
    taken.lease_until = lease;
    taken.failures = 0;
    Ok(rows.as_slice().first().map(|row| row.works))
}

// The lease is kept until the server may be called again. A fill that began before what the engine heard late could be there
// is followed by one that reads the same once more.
const COMPLETE: &str = "\
WITH counted AS (
    SELECT count(*) AS told FROM messages m, gap_fills g
    WHERE g.tenant_id = $1 AND g.session_id = $2 AND m.tenant_id = $1 AND m.session_id = $2
      AND m.created_at > g.counted_until AND m.created_at <= $4 AND NOT m.backfilled
      AND (m.direction = 'inbound' OR m.source = 'app')
), s AS (
    SELECT g.tenant_id, g.session_id, g.fill_until < g.working_since + ($6 * interval '1 second') AS early
    FROM gap_fills g WHERE g.tenant_id = $1 AND g.session_id = $2
)
UPDATE gap_fills g SET
    due_at = CASE WHEN g.working_since IS NULL THEN NULL WHEN g.asked > g.taken THEN $8
                  WHEN s.early THEN least($5, g.working_since + ($6 * interval '1 second') + ($9 * interval '1 second')) ELSE $5 END,
    because = CASE WHEN g.asked > g.taken THEN g.because ELSE 'schedule' END,
    reread_from = CASE WHEN s.early THEN coalesce(g.filled_until, g.fill_from + ($6 * interval '1 second')) END,
    filled_until = g.fill_until,
    filled_at = $7,
    lease_until = $10,
    began_at = NULL, fill_from = NULL, fill_until = NULL, cursor_since = NULL, cursor_offset = 0, cursor_after = NULL,
    by_webhook = g.by_webhook + c.told,
    by_read_back = g.by_read_back + g.found,
    recent_by_webhook = c.told,
    recent_by_read_back = g.found,
    counted_until = greatest(g.counted_until, $4),
    found = 0, failures = 0, updated_at = $7
FROM s, counted c
WHERE g.tenant_id = s.tenant_id AND g.session_id = s.session_id AND g.lease_until = $3
RETURNING c.told";

#[derive(QueryableByName)]
struct Told {
    #[diesel(sql_type = BigInt)]
    told: i64,
}

/// `taken` is read to its end. Answers how many messages webhooks brought since the last time; `None` when another node has
/// taken it.
///
/// # Errors
/// When the database does not answer.
pub(super) async fn complete(app: &App, taken: &Taken) -> Result<Option<i64>, DbError> {
    let (now, settings) = (app.clock.now(), &app.config.gap_fill);
    let next = now + regular(app);
    let rows: Vec<Told> = app
        .db
        .system(async |conn: &mut SystemConn| {
            Ok::<_, DbError>(
                sql(COMPLETE)
                    .bind::<SqlUuid, _>(taken.tenant_id)
                    .bind::<SqlUuid, _>(taken.session_id)
                    .bind::<Timestamptz, _>(taken.lease_until)
                    .bind::<Timestamptz, _>(now - UNCOUNTED)
                    .bind::<Timestamptz, _>(next)
                    .bind::<diesel::sql_types::Double, _>(settings.overlap.as_secs_f64())
                    .bind::<Timestamptz, _>(now)
                    .bind::<Timestamptz, _>(now + delta(settings.delay))
                    .bind::<diesel::sql_types::Double, _>(settings.delay.as_secs_f64())
                    .bind::<Timestamptz, _>(now + delta(settings.spacing()))
                    .prepared()
                    .load(&mut **conn)
                    .await?,
            )
        })
        .await?;
    Ok(rows.as_slice().first().map(|row| row.told))
}

// One that was refused begins anew: whatever it had read, the next one's range begins where this one's did.
const GIVE_UP: &str = "\
UPDATE gap_fills SET
    due_at = CASE WHEN working_since IS NULL THEN NULL ELSE $4 END,
    because = CASE WHEN $5 AND asked <= taken THEN 'schedule' ELSE because END,
    lease_until = $6,
    began_at = CASE WHEN $5 THEN NULL ELSE began_at END,
    cursor_since = CASE WHEN $5 THEN NULL ELSE cursor_since END,
    cursor_offset = CASE WHEN $5 THEN 0 ELSE cursor_offset END,
    cursor_after = CASE WHEN $5 THEN NULL ELSE cursor_after END,
    failures = least(failures, 1000) + 1, updated_at = $7
WHERE tenant_id = $1 AND session_id = $2 AND lease_until = $3";

/// The first pause after a failure; doubled with each one that follows, up to the longest.
const FIRST_PAUSE: TimeDelta = TimeDelta::seconds(15);
const LONGEST_PAUSE: TimeDelta = TimeDelta::hours(1);

/// `taken` is given back unfinished.
///
/// # Errors
/// When the database does not answer; the lease runs out then.
pub(super) async fn give_up(app: &App, taken: &Taken, given_up: GivenUp) -> Result<(), DbError> {
    let (now, settings) = (app.clock.now(), &app.config.gap_fill);
    let refused = given_up == GivenUp::Refused;
    let pause = match given_up {
        GivenUp::HandedOver => TimeDelta::zero(),
        GivenUp::Refused => regular(app),
        GivenUp::Later => {
            let pause = (FIRST_PAUSE * (1 << taken.failures.clamp(0, 10))).min(LONGEST_PAUSE);
            pause + delta(app.chance.jitter(pause.to_std().unwrap_or_default() / 5))
        }
    };
    app.db
        .system(async |conn: &mut SystemConn| {
            sql(GIVE_UP)
                .bind::<SqlUuid, _>(taken.tenant_id)
                .bind::<SqlUuid, _>(taken.session_id)
                .bind::<Timestamptz, _>(taken.lease_until)
                .bind::<Timestamptz, _>(now + pause)
                .bind::<Bool, _>(refused)
                .bind::<Timestamptz, _>(now + delta(settings.spacing()))
                .bind::<Timestamptz, _>(now)
                .prepared()
                .execute(&mut **conn)
                .await?;
            Ok(())
        })
        .await
}

/// From one fill to the next, spread by chance lest all that began together are due together for ever.
fn regular(app: &App) -> TimeDelta {
    let interval = app.config.gap_fill.interval;
    delta(interval * 9 / 10 + app.chance.jitter(interval / 5))
}

/// A duration on the clock.
pub(super) fn delta(duration: std::time::Duration) -> TimeDelta {
    TimeDelta::from_std(duration).unwrap_or(TimeDelta::days(365))
}
