//! One type per id, so that a session's id cannot stand where a tenant's is asked for.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use diesel::deserialize::{self, FromSql, FromSqlRow};
use diesel::expression::AsExpression;
use diesel::pg::{Pg, PgValue};
use diesel::serialize::{self, Output, ToSql};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::chance::Chance;

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident;)+) => {$(
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema, AsExpression, FromSqlRow,
        )]
        #[diesel(sql_type = diesel::sql_types::Uuid)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// A fresh id (UUID v7) of the moment `now`.
            #[must_use]
            pub fn fresh(now: DateTime<Utc>, chance: &Chance) -> Self {
                Self(chance.uuid(now))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self)
            }
        }

        impl ToSql<diesel::sql_types::Uuid, Pg> for $name {
            fn to_sql<'b>(&'b self, out: &mut Output<'b, '_, Pg>) -> serialize::Result {
                <Uuid as ToSql<diesel::sql_types::Uuid, Pg>>::to_sql(&self.0, out)
            }
        }

        impl FromSql<diesel::sql_types::Uuid, Pg> for $name {
            fn from_sql(value: PgValue<'_>) -> deserialize::Result<Self> {
                <Uuid as FromSql<diesel::sql_types::Uuid, Pg>>::from_sql(value).map(Self)
            }
        }
    )+};
}

ids! {
    /// A tenant: one customer of the gateway.
    TenantId;
    /// A WhatsApp session: one paired number.
    SessionId;
    /// A message, inbound or outbound.
    MessageId;
    /// A WAHA server.
    WahaServerId;
    /// An API key.
    ApiKeyId;
    /// An event a tenant is told about.
    EventId;
    /// A tenant's webhook endpoint.
    EndpointId;
    /// One event on its way to one endpoint.
    DeliveryId;
    /// A stored file.
    MediaId;
    /// A named set of sessions to send by.
    SenderPoolId;
    /// Something that an operator has to know of.
    AlarmId;
    /// A person a tenant is in touch with.
    ContactId;
    /// Two contacts that were found to be one person.
    ContactMergeId;
    /// A chat of a session with a person or a group.
    ConversationId;
    /// Something WAHA told that nothing could be made of.
    DeadLetterId;
    /// The receipt of an erasure.
    ErasureId;
}
