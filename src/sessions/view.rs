//! A session as the database keeps it and as the API shows it.

use chrono::{DateTime, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Bool, Integer, Jsonb, Nullable, SmallInt, Text, Timestamptz, Uuid as SqlUuid};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::dispatch::pacing::Pacing;
use crate::dispatch::windows::Windows;
use crate::domain::ids::{SessionId, TenantId, WahaServerId};
use crate::sessions::change::Settings;
use crate::sessions::pairing::ROTATIONS;

/// The columns of [`SessionRow`] from the aliases `s` (session) and `l` (its lane).
macro_rules! session_columns {
    () => {
        "s.tenant_id, s.id, s.name, s.engine, s.status, s.external_session_id, s.waha_server_id, s.phone, s.push_name, \
         s.error_message, s.pacing, s.config, s.metadata, s.last_activity_at, s.version, s.created_at, s.updated_at, \
         s.qr_expires_at, s.qr_shown, s.pairing_step, s.working_from, s.desired, l.queued, s.windows, s.check_numbers, s.restriction_kind, s.restriction_since, \
         CASE WHEN isfinite(s.restriction_until) THEN s.restriction_until END AS restriction_until, \
         l.tenant_paused_at, l.tenant_pause_reason, s.labels, s.proxy, s.needs_rescan, \
         (SELECT jsonb_build_object('verdict', v.verdict, 'since', v.verdict_since, 'evidence', v.evidence) \
          FROM session_vitals v WHERE v.tenant_id = s.tenant_id AND v.session_id = s.id) AS health, \
         (SELECT jsonb_build_object('by_webhook', g.by_webhook, 'by_read_back', g.by_read_back, \
                  'missed_share', round(g.by_read_back::numeric / nullif(g.by_webhook + g.by_read_back, 0), 4), \
                  'last_gap_fill_at', g.filled_at) \
          FROM gap_fills g WHERE g.tenant_id = s.tenant_id AND g.session_id = s.id) AS ingest"
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
    #[diesel(sql_type = SmallInt)]
    pub qr_shown: i16,
    #[diesel(sql_type = Nullable<Text>)]
    pub pairing_step: Option<String>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub working_from: Option<DateTime<Utc>>,
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
    #[diesel(sql_type = Array<Text>)]
    pub labels: Vec<String>,
    #[diesel(sql_type = Nullable<Jsonb>)]
    pub proxy: Option<serde_json::Value>,
    #[diesel(sql_type = Bool)]
    pub needs_rescan: bool,
    #[diesel(sql_type = Nullable<Jsonb>)]
    pub health: Option<serde_json::Value>,
    #[diesel(sql_type = Nullable<Jsonb>)]
    pub ingest: Option<serde_json::Value>,
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

/// What is thought of a session that says it works.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// `healthy`; `suspect`: it is far more silent than usual, or its messages are not acknowledged, and WhatsApp could not be
    /// asked yet; `dead`: it works in name only.
    #[schema(pattern = "^(healthy|suspect|dead)$")]
    pub verdict: String,
    /// Since when.
    pub since: DateTime<Utc>,
    /// Why, in words.
    #[schema(example = json!(["3 messages in a row without an acknowledgement of WhatsApp's"]))]
    pub evidence: Vec<String>,
}

/// How its messages came in, as of the last time they were read back from its WAHA server.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[schema(as = SessionIngest, example = json!({
    "by_webhook": 1980, "by_read_back": 20, "missed_share": 0.01, "last_gap_fill_at": "2026-11-21T09:30:00Z"
}))]
pub struct Ingest {
    /// Messages that webhooks brought.
    pub by_webhook: i64,
    /// Messages that no webhook had brought when they were read back.
    pub by_read_back: i64,
    /// The share of the latter; null while there were no messages.
    #[schema(required)]
    pub missed_share: Option<f64>,
    /// When its messages were last read back to the end.
    #[schema(required)]
    pub last_gap_fill_at: Option<DateTime<Utc>>,
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

/// What a session's connection to WhatsApp goes through. The password is never shown.
#[derive(ToSchema)]
#[schema(as = SessionProxy, example = json!({"server": "proxy.example.net:3128", "username": "acme"}))]
#[expect(dead_code, reason = "describes what is kept as JSON")]
pub struct ShownProxy {
    /// `host:port`.
    server: String,
    /// The name it knows the session by.
    #[schema(required = false)]
    username: Option<String>,
}

/// How far pairing has come.
#[derive(Serialize, ToSchema)]
pub struct Pairing<'a> {
    /// What the session waits for: `qr` (a scan of its QR code, or a pairing code), `passkey` (an assertion by the account's
    /// passkey) or `passkey_confirmation` (that the code it shows is the one on the phone).
    #[schema(example = "qr")]
    pub step: &'a str,
    /// Which QR code is on show, counted from 1; with the step `qr`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = 1)]
    pub rotation: Option<i16>,
    /// How many there are before the session fails; with the step `qr`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = 6)]
    pub of: Option<i16>,
    /// When the next QR code replaces it; with the step `qr`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<DateTime<Utc>>,
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
    /// Present while it is `scan_qr`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pairing: Option<Pairing<'a>>,
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
    /// Whether it is alive, as far as is known; present while it is `working`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health: Option<Health>,
    /// How its messages came in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ingest: Option<Ingest>,
    /// Present, and true, while its WAHA server is to be emptied and the session can leave it only by being logged out and
    /// paired anew.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schema(required = false)]
    pub needs_rescan: bool,
    /// Messages waiting for their turn.
    pub queued: i32,
    /// Labels that its WAHA server was asked to have.
    pub labels: &'a [String],
    /// The proxy its connection goes through, from its next start on; absent: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<ShownProxy>)]
    pub proxy: Option<&'a serde_json::Value>,
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
            pairing: row.pairing_step.as_deref().filter(|_| row.status == "scan_qr").map(|step| {
                let of_code = step == "qr";
                Pairing {
                    step,
                    rotation: of_code.then_some(row.qr_shown),
                    of: of_code.then_some(ROTATIONS),
                    expires_at: row.qr_expires_at.filter(|_| of_code),
                }
            }),
            pacing: &row.pacing,
            windows: row.windows.as_ref(),
            check_numbers: row.check_numbers,
            restriction: row.restriction_kind.as_deref().map(|kind| Restriction {
                kind,
                since: row.restriction_since,
                until: row.restriction_until,
            }),
            paused: row.tenant_paused_at.map(|since| Paused { reason: row.tenant_pause_reason.as_deref(), since }),
            health: row
                .health
                .as_ref()
                .filter(|_| row.status == "working")
                .and_then(|health| Health::deserialize(health).ok()),
            ingest: row.ingest.as_ref().and_then(|ingest| Ingest::deserialize(ingest).ok()),
            queued: row.queued,
            labels: &row.labels,
            proxy: row.proxy.as_ref(),
            needs_rescan: row.needs_rescan,
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
