//! The proxy of a session, as a request names it.

use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use url::Url;
use utoipa::ToSchema;

use super::Rules;
use crate::guard::{Guard, GuardError};
use crate::waha::Proxy;

const MOST_SERVER: usize = 255;
const MOST_CREDENTIAL: usize = 255;

/// What a session's connection to WhatsApp is to go through.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewProxy, example = json!({"server": "proxy.example.net:3128", "username": "acme", "password": "change-me"}))]
pub(super) struct ProxyBody {
    /// `host:port`, without a scheme; a public address.
    #[schema(min_length = 3, max_length = 255, pattern = "^[^:/@ ]+:[0-9]{1,5}$|^\\[[0-9a-fA-F:.]+\\]:[0-9]{1,5}$")]
    server: String,
    /// The name the proxy knows the session by.
    #[schema(min_length = 1, max_length = 255)]
    username: Option<String>,
    /// The password that goes with the name; kept sealed and never shown.
    #[schema(value_type = Option<String>, format = "password", min_length = 1, max_length = 255)]
    password: Option<SecretString>,
}

impl ProxyBody {
    /// Notes what is wrong with it.
    pub(super) fn check(&self, rules: &mut Rules, guard: Guard) {
        check_server(rules, guard, &self.server);
        let fits =
            |text: &str| (1..=MOST_CREDENTIAL).contains(&text.chars().count()) && !text.chars().any(char::is_control);
        const RULE: &str = "must have 1 to 255 characters, none of them control characters";
        rules.check(self.username.as_deref().is_none_or(fits), "proxy.username", "invalid_value", RULE);
        let password = self.password.as_ref().map(ExposeSecret::expose_secret);
        rules.check(password.is_none_or(fits), "proxy.password", "invalid_value", RULE);
        rules.check(
            self.password.is_none() || self.username.is_some(),
            "proxy.username",
            "required",
            "must be there when there is a password",
        );
    }

    /// The proxy it stands for.
    pub(super) fn into_proxy(self) -> Proxy {
        Proxy { server: self.server, username: self.username, password: self.password }
    }
}

fn check_server(rules: &mut Rules, guard: Guard, server: &str) {
    const FIELD: &str = "proxy.server";
    let Some(url) = url_of(server) else {
        rules.broken(FIELD, "invalid_value", "must be host:port, such as proxy.example.net:3128");
        return;
    };
    // WAHA resolves the name itself, so only what stands there can be checked; but nobody need name an inner address.
    match guard.check_url(&url) {
        Ok(()) => {}
        Err(GuardError::Port) => {
            rules.broken(FIELD, "invalid_value", "must not have a port that belongs to another service");
        }
        Err(_) => rules.broken(FIELD, "invalid_value", "must be a public address"),
    }
}

/// The address as a URL; `None` when `server` is anything but a host and a port.
fn url_of(server: &str) -> Option<Url> {
    let (host, port) = server.rsplit_once(':')?;
    let digits = port.bytes().all(|byte| byte.is_ascii_digit()) && !port.starts_with('0');
    let plain = host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._[]:".contains(&byte));
    let bare = host.starts_with('[') || !host.contains(':');
    if server.len() > MOST_SERVER || host.is_empty() || !digits || !plain || !bare || port.parse::<u16>().is_err() {
        return None;
    }
    Url::parse(&format!("https://{server}/")).ok().filter(Url::has_host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(body: serde_json::Value, allow_private: bool) -> Option<String> {
        let body: ProxyBody = serde_json::from_value(body).unwrap();
        let mut rules = Rules::new();
        body.check(&mut rules, Guard::new(allow_private));
        rules.finish().err().map(|problem| problem.errors()[0].field.clone())
    }

    #[test]
    fn a_server_is_a_host_and_a_port() {
        for server in
            ["proxy.example.net:3128", "93.184.216.34:1080", "[2606:2800:21f:cb07::1]:8080", "a_b-c.net:65535", "p:443"]
        {
            assert_eq!(fault(serde_json::json!({ "server": server }), false), None, "{server}");
        }
        for server in [
            "",
            ":",
            "proxy.example.net",
            "proxy.example.net:",
            "proxy.example.net:0",
            "proxy.example.net:65536",
            "proxy.example.net:03128",
            "proxy.example.net:+80",
            "http://proxy.example.net:3128",
            "socks5://proxy.example.net:3128",
            "user@proxy.example.net:3128",
            "user:pass@proxy.example.net:3128",
            "proxy.example.net:3128/",
            "proxy.example.net:3128?a",
            " proxy.example.net:3128",
            "2606:2800::1:8080",
            "[::1:3128",
            "[]:3128",
            "pröxy.example.net:3128",
            "proxy.example.net:25",
            "127.0.0.1:3128",
            "0x7f.1:3128",
            "2130706433:3128",
            "localhost:3128",
            "10.0.0.1:3128",
            "[::1]:3128",
            &format!("{}.net:3128", "x".repeat(255)),
        ] {
            assert_eq!(
                fault(serde_json::json!({ "server": server }), false).as_deref(),
                Some("proxy.server"),
                "{server}"
            );
        }
        assert_eq!(fault(serde_json::json!({ "server": "127.0.0.1:3128" }), true), None, "in development");
    }

    #[test]
    fn credentials_go_together_and_are_not_in_debug() {
        let with = |username: Option<&str>, password: Option<&str>| serde_json::json!({"server": "proxy.example.net:3128", "username": username, "password": password});
        assert_eq!(fault(with(Some("me"), Some("secret")), false), None);
        assert_eq!(fault(with(Some("me"), None), false), None);
        assert_eq!(fault(with(None, Some("secret")), false).as_deref(), Some("proxy.username"));
        assert_eq!(fault(with(Some(""), None), false).as_deref(), Some("proxy.username"));
        assert_eq!(fault(with(Some("me"), Some("a\nb")), false).as_deref(), Some("proxy.password"));
        let body: ProxyBody = serde_json::from_value(with(Some("me"), Some("secret"))).unwrap();
        assert!(!format!("{body:?}").contains("secret\""), "{body:?}");
    }
}
