//! The proxies of sessions: where a session's connection to WhatsApp goes through.
//!
//! Kept twice, and written together: as it is shown, without the password, and sealed as a whole, as it is used. Nobody who
//! can write the shown one alone can have the password sent elsewhere.

use diesel::sql_types::{Binary, Jsonb, Nullable, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::directory::DirectoryError;
use crate::db::{DbError, Prepare, TenantConn, sql};
use crate::domain::ids::SessionId;
use crate::identity::rotate::{SealedColumn, sealed_column};
use crate::identity::seal::Sealer;
use crate::waha::Proxy;

/// Proxies with their passwords, sealed.
pub const SEALED_PROXIES: SealedColumn = sealed_column!("waha_sessions", "proxy_sealed", "waha_sessions.proxy");

#[derive(Serialize, Deserialize)]
struct Stored {
    server: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    username: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    password: Option<String>,
}

/// A proxy as the resource shows it.
#[must_use]
pub fn shown(proxy: &Proxy) -> Value {
    let mut shown = json!({"server": proxy.server});
    if let (Some(username), Some(members)) = (&proxy.username, shown.as_object_mut()) {
        members.insert("username".to_owned(), json!(username));
    }
    shown
}

/// `proxy`, sealed for the session `id`.
#[must_use]
pub fn sealed(sealer: &Sealer, id: SessionId, proxy: &Proxy) -> Vec<u8> {
    let stored = Stored {
        server: proxy.server.clone(),
        username: proxy.username.clone(),
        password: proxy.password.as_ref().map(|password| password.expose_secret().to_owned()),
    };
    // Strings always have a JSON form.
    let plain = serde_json::to_vec(&stored).unwrap_or_default();
    sealer.seal(&SEALED_PROXIES.purpose_at(&id.to_string()), &plain)
}

/// The proxy of the session `id`, opened.
///
/// # Errors
/// When it does not open, or is not what was sealed.
pub fn opened(sealer: &Sealer, id: SessionId, sealed: &[u8]) -> Result<Proxy, DirectoryError> {
    let plain = sealer.open(&SEALED_PROXIES.purpose_at(&id.to_string()), sealed)?;
    let stored: Stored = serde_json::from_slice(&plain).map_err(|_| DirectoryError::Unreadable("proxy"))?;
    Ok(Proxy { server: stored.server, username: stored.username, password: stored.password.map(SecretString::from) })
}

/// Gives the session `id`, which is locked, another proxy or none. It is used from the session's next start on.
///
/// # Errors
/// When the database does not answer.
pub async fn set(conn: &mut TenantConn, sealer: &Sealer, id: SessionId, proxy: Option<&Proxy>) -> Result<(), DbError> {
    let tenant = conn.tenant();
    sql("UPDATE waha_sessions SET proxy = $3, proxy_sealed = $4 WHERE tenant_id = $1 AND id = $2")
        .bind::<SqlUuid, _>(tenant)
        .bind::<SqlUuid, _>(id)
        .bind::<Nullable<Jsonb>, _>(proxy.map(shown))
        .bind::<Nullable<Binary>, _>(proxy.map(|proxy| sealed(sealer, id, proxy)))
        .prepared()
        .execute(&mut **conn)
        .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::MasterKey;
    use crate::domain::chance::Chance;

    #[test]
    fn a_proxy_opens_for_its_session_alone_and_shows_no_password() {
        let sealer = Sealer::new(&MasterKey([1; 32]), Chance::seeded(1));
        let (mine, other) = (SessionId(uuid::Uuid::from_u128(1)), SessionId(uuid::Uuid::from_u128(2)));
        for (username, password) in [(None, None), (Some("me"), Some("secret")), (Some("me"), None)] {
            let proxy = Proxy {
                server: "proxy.example.net:3128".to_owned(),
                username: username.map(str::to_owned),
                password: password.map(SecretString::from),
            };
            let sealed = sealed(&sealer, mine, &proxy);
            let opened = opened(&sealer, mine, &sealed).unwrap();
            assert_eq!((opened.server.as_str(), opened.username.as_deref()), ("proxy.example.net:3128", username));
            assert_eq!(opened.password.as_ref().map(ExposeSecret::expose_secret), password);
            assert!(super::opened(&sealer, other, &sealed).is_err());
            assert!(!shown(&proxy).to_string().contains("secret"));
            assert_eq!(shown(&proxy).get("username").and_then(Value::as_str), username);
        }
    }
}
