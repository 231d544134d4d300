//! A session as the database keeps it and as the API shows it.

use chrono::{DateTime, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Integer, Jsonb, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::domain::ids::{SessionId, TenantId, WahaServerId};

/// The columns of [`SessionRow`] from the aliases `s` (session) and `l` (its lane).
macro_rules! session_columns {
    () => {
        "s.tenant_id, s.id, s.name, s.engine, s.status, s.external_session_id, s.waha_server_id, s.phone, s.push_name, \
         s.error_message, s.pacing, s.config, s.metadata, s.last_activity_at, s.version, s.created_at, s.updated_at, \
         s.qr_expires_at, s.desired, l.queued"
    };
}
pub(crate) use session_columns;

/// How fast a session's messages may leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Pacing {
    /// The smallest gap between two messages, in milliseconds; 0 switches it off.
    #[serde(default = "Pacing::default_gap")]
    #[schema(minimum = 0, maximum = 86_400_000, default = 1000)]
    pub min_gap_ms: i32,
    /// The most that chance adds to each gap, in milliseconds; 0 switches it off.
    #[serde(default = "Pacing::default_jitter")]
    #[schema(minimum = 0, maximum = 86_400_000, default = 500)]
    pub jitter_ms: i32,
}

impl Pacing {
    const fn default_gap() -> i32 {
        1000
    }

    const fn default_jitter() -> i32 {
        500
    }
}

impl Default for Pacing {
    fn default() -> Self {
        Self { min_gap_ms: Self::default_gap(), jitter_ms: Self::default_jitter() }
    }
}

/// A session as the database keeps it; the meaning of each field is that of [`Session`].
#[derive(Clone, QueryableByName)]
#[expect(missing_docs, reason = "documented on the resource")]
pub struct SessionRow {
    #[diesel(sql_type = SqlUuid)]
    pub tenant_id: TenantId,
    #[diesel(sql_type = SqlUuid)]
    pub id: SessionId,
    #[diesel(sql_type = Text)]
    pub name: String,
    #[diesel(sql_type = Text)]
    pub engine: String,
    #[diesel(sql_type = Text)]
    pub status: String,
    #[diesel(sql_type = Text)]
    pub external_session_id: String,
    #[diesel(sql_type = SqlUuid)]
    pub waha_server_id: WahaServerId,
    #[diesel(sql_type = Nullable<Text>)]
    pub phone: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    pub push_name: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    pub error_message: Option<String>,
    #[diesel(sql_type = Jsonb)]
    pub pacing: serde_json::Value,
    #[diesel(sql_type = Jsonb)]
    pub config: serde_json::Value,
    #[diesel(sql_type = Jsonb)]
    pub metadata: serde_json::Value,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub last_activity_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = BigInt)]
    pub version: i64,
    #[diesel(sql_type = Timestamptz)]
    pub created_at: DateTime<Utc>,
    #[diesel(sql_type = Timestamptz)]
    pub updated_at: DateTime<Utc>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub qr_expires_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Text)]
    pub desired: String,
    #[diesel(sql_type = Integer)]
    pub queued: i32,
}

impl std::fmt::Debug for SessionRow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SessionRow").field("id", &self.id).field("status", &self.status).finish_non_exhaustive()
    }
}

/// A WhatsApp session: one number, paired or to be paired.
#[derive(Serialize, ToSchema)]
pub struct Session<'a> {
    /// The session's id (UUID v7).
    pub id: SessionId,
    /// The tenant it belongs to.
    pub tenant_id: TenantId,
    /// The tenant's name for it, unique among the tenant's sessions.
    #[schema(example = "support")]
    pub name: &'a str,
    /// The engine that runs it: `WEBJS`, `WPP`, `NOWEB` or `GOWS`.
    #[schema(example = "NOWEB")]
    pub engine: &'a str,
    /// `starting`, `scan_qr`, `working`, `failed` or `stopped`.
    #[schema(example = "working")]
    pub status: &'a str,
    /// Its name on the WAHA server.
    pub external_session_id: &'a str,
    /// The WAHA server it lives on.
    pub waha_server_id: WahaServerId,
    /// Its number in E.164 with `+`, once paired.
    pub phone: Option<&'a str>,
    /// The name it goes by, once paired.
    pub push_name: Option<&'a str>,
    /// What is wrong with it.
    pub error_message: Option<&'a str>,
    /// How fast its messages may leave.
    #[schema(value_type = Pacing)]
    pub pacing: &'a serde_json::Value,
    /// Messages waiting for their turn.
    pub queued: i32,
    /// The tenant's own settings of the session.
    pub config: &'a serde_json::Value,
    /// The tenant's own data.
    pub metadata: &'a serde_json::Value,
    /// When it last received something; to the minute.
    pub last_activity_at: Option<DateTime<Utc>>,
    /// Rises with every change.
    pub version: i64,
    /// When it was created.
    pub created_at: DateTime<Utc>,
    /// When it last changed.
    pub updated_at: DateTime<Utc>,
}

impl<'a> From<&'a SessionRow> for Session<'a> {
    fn from(row: &'a SessionRow) -> Self {
        Self {
            id: row.id,
            tenant_id: row.tenant_id,
            name: &row.name,
            engine: &row.engine,
            status: &row.status,
            external_session_id: &row.external_session_id,
            waha_server_id: row.waha_server_id,
            phone: row.phone.as_deref(),
            push_name: row.push_name.as_deref(),
            error_message: row.error_message.as_deref(),
            pacing: &row.pacing,
            queued: row.queued,
            config: &row.config,
            metadata: &row.metadata,
            last_activity_at: row.last_activity_at,
            version: row.version,
            created_at: row.created_at,
            updated_at: row.updated_at,
        }
    }
}

impl Session<'_> {
    /// The resource as JSON text.
    #[must_use]
    pub fn to_json(&self) -> String {
        // Strings, numbers and JSON values always serialise.
        serde_json::to_string(self).unwrap_or_default()
    }
}
