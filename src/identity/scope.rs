//! Scopes: what a key may do.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::ToSchema;

macro_rules! scopes {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)+) => {
        /// One thing a key may do.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, ToSchema)]
        pub enum Scope { $($(#[$doc])* #[schema(rename = $text)] $name,)+ }

        impl Scope {
            /// Every scope.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// The word of the contract.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }
        }

        impl FromStr for Scope {
            type Err = UnknownScope;
            fn from_str(text: &str) -> Result<Self, UnknownScope> {
                match text { $($text => Ok(Self::$name),)+ _ => Err(UnknownScope) }
            }
        }
    };
}

scopes! {
    /// Send, change and cancel messages.
    MessagesWrite = "messages:write",
    /// Read messages and events.
    MessagesRead = "messages:read",
    /// Create, change and remove sessions.
    SessionsWrite = "sessions:write",
    /// Read sessions.
    SessionsRead = "sessions:read",
    /// Create, change and remove webhook endpoints.
    WebhooksWrite = "webhooks:write",
    /// Read webhook endpoints and their deliveries.
    WebhooksRead = "webhooks:read",
    /// Create, change and remove users and API keys.
    UsersWrite = "users:write",
    /// Read users and API keys.
    UsersRead = "users:read",
    /// Read the audit log.
    AuditRead = "audit:read",
    /// All of it, and the tenant's settings.
    All = "*",
}

/// Not one of the scopes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no such scope")]
pub struct UnknownScope;

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Scope {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Scope {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(|UnknownScope| {
            serde::de::Error::invalid_value(
                serde::de::Unexpected::Str(&text),
                &"one of the scopes, such as messages:write",
            )
        })
    }
}

/// A set of scopes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scopes(u16);

impl Scopes {
    /// Everything.
    pub const EVERYTHING: Self = Self(1 << Scope::All as u16);

    /// True when the set allows `scope`: by name, or with `*`.
    #[must_use]
    pub fn allow(self, scope: Scope) -> bool {
        self.0 & ((1 << scope as u16) | Self::EVERYTHING.0) != 0
    }

    /// True when everything that `other` allows is allowed here too.
    #[must_use]
    pub fn cover(self, other: Self) -> bool {
        Scope::ALL.iter().all(|scope| !other.allow(*scope) || self.allow(*scope))
    }

    /// The scopes by name.
    pub fn iter(self) -> impl Iterator<Item = Scope> {
        Scope::ALL.iter().copied().filter(move |scope| self.0 & (1 << *scope as u16) != 0)
    }
}

impl FromIterator<Scope> for Scopes {
    fn from_iter<I: IntoIterator<Item = Scope>>(scopes: I) -> Self {
        Self(scopes.into_iter().fold(0, |set, scope| set | (1 << scope as u16)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_allows_everything_and_nothing_else_does() {
        let some: Scopes = [Scope::MessagesRead, Scope::UsersWrite].into_iter().collect();
        assert!(some.allow(Scope::MessagesRead) && !some.allow(Scope::MessagesWrite) && !some.allow(Scope::All));
        assert!(Scope::ALL.iter().all(|scope| Scopes::EVERYTHING.allow(*scope)));
        assert!(Scopes::EVERYTHING.cover(some) && !some.cover(Scopes::EVERYTHING));
        let all_by_name: Scopes = Scope::ALL.iter().copied().filter(|scope| *scope != Scope::All).collect();
        assert!(!all_by_name.cover(Scopes::EVERYTHING), "the tenant's settings need the star");
        assert_eq!(some.iter().collect::<Vec<_>>(), [Scope::MessagesRead, Scope::UsersWrite]);
    }
}
