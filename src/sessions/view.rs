//! A session as the database keeps it and as the API shows it.

use chrono::{DateTime, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Bool, Integer, Jsonb, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use serde::{Deserialize as _, Serialize};
use utoipa::ToSchema;

use crate::dispatch::pacing::Pacing;
use crate::dispatch::windows::Windows;
use crate::domain::ids::{SessionId, TenantId, WahaServerId};
use crate::sessions::change::Settings;

/// The columns of [`SessionRow`] from the aliases `s` (session) and `l` (its lane).
macro_rules! session_columns {
    () => {
        "s.tenant_id, s.id, s.name, s.engine, s.status, s.external_session_id, s.waha_server_id, s.phone, s.push_name, \
         s.error_message, s.pacing, s.config, s.metadata, s.last_activity_at, s.version, s.created_at, s.updated_at, \
         s.qr_expires_at, s.desired, l.queued, s.windows, s.check_numbers, s.restriction_kind, s.restriction_since, \
         CASE WHEN isfinite(s.restriction_until) THEN s.restriction_until END AS restriction_until, \
         l.tenant_paused_at, l.tenant_pause_reason"
    };
}
pub(crate) use session_columns;

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
    #[diesel(sql_type = Nullable<Jsonb>)]
    pub windows: Option<serde_json::Value>,
    #[diesel(sql_type = Bool)]
    pub check_numbers: bool,
    #[diesel(sql_type = Nullable<Text>)]
    pub restriction_kind: Option<String>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub restriction_since: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub restriction_until: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub tenant_paused_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<Text>)]
    pub tenant_pause_reason: Option<String>,
}

impl SessionRow {
    /// What the tenant has set.
    ///
    /// # Errors
    /// When it is not what was written.
    pub fn settings(&self) -> Result<Settings, serde_json::Error> {
        Ok(Settings {
            name: self.name.clone(),
            pacing: Pacing::deserialize(&self.pacing)?,
            windows: self.windows.as_ref().map(Windows::deserialize).transpose()?,
            check_numbers: self.check_numbers,
            config: self.config.clone(),
            metadata: self.metadata.clone(),
        })
    }
}

impl std::fmt::Debug for SessionRow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SessionRow").field("id", &self.id).field("status", &self.status).finish_non_exhaustive()
    }
}

/// Why and since when WhatsApp does not let a session write to people who never wrote to it.
#[derive(Serialize, ToSchema)]
pub struct Restriction<'a> {
    /// What kind of restriction.
    #[schema(example = "new_chats")]
    pub kind: &'a str,
    /// Since when.
    pub since: Option<DateTime<Utc>>,
    /// Until when; null: until further notice.
    #[schema(required)]
    pub until: Option<DateTime<Utc>>,
}

/// That sending is paused by the tenant.
#[derive(Serialize, ToSchema)]
pub struct Paused<'a> {
    /// Why, as it was said.
    #[schema(required)]
    pub reason: Option<&'a str>,
    /// Since when.
    pub since: DateTime<Utc>,
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
    /// When its normal and bulk messages may leave; absent: always.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Windows>)]
    pub windows: Option<&'a serde_json::Value>,
    /// Whether a recipient's number is checked with WhatsApp before the first message to it.
    pub check_numbers: bool,
    /// Present while WhatsApp does not let it write to people who never wrote to it. Such messages wait; replies leave.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restriction: Option<Restriction<'a>>,
    /// Present while sending is paused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paused: Option<Paused<'a>>,
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
            windows: row.windows.as_ref(),
            check_numbers: row.check_numbers,
            restriction: row.restriction_kind.as_deref().map(|kind| Restriction {
                kind,
                since: row.restriction_since,
                until: row.restriction_until,
            }),
            paused: row.tenant_paused_at.map(|since| Paused { reason: row.tenant_pause_reason.as_deref(), since }),
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
