//! Sessions: how the gateway wants them, and how WAHA describes them.

use std::collections::BTreeMap;
use std::fmt;

use chrono::{DateTime, Utc};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use url::Url;

use super::engine::{Engine, SessionStatus};
use super::message::{milliseconds, person, seconds, text};

/// The events the gateway asks WAHA for.
pub const WEBHOOK_EVENTS: [&str; 20] = [
    "session.status",
    "message.any",
    "message.ack",
    "message.ack.group",
    "message.reaction",
    "message.edited",
    "message.revoked",
    "poll.vote",
    "call.received",
    "call.accepted",
    "call.rejected",
    "group.v2.join",
    "group.v2.leave",
    "group.v2.update",
    "group.v2.participants",
    "presence.update",
    "label.upsert",
    "label.deleted",
    "label.chat.added",
    "label.chat.deleted",
];

/// Where a session's connection to WhatsApp goes through. `Debug` shows nothing of it.
#[derive(Clone)]
pub struct Proxy {
    /// `host:port`, without a scheme.
    pub server: String,
    /// The name it knows the session by.
    pub username: Option<String>,
    /// The password that goes with the name.
    pub password: Option<SecretString>,
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Proxy(…)")
    }
}

impl Proxy {
    /// As WAHA wants it. Holds the password in clear.
    fn config(&self) -> Value {
        let mut config = json!({"server": self.server});
        if let Some(members) = config.as_object_mut() {
            if let Some(username) = &self.username {
                members.insert("username".into(), json!(username));
            }
            if let Some(password) = &self.password {
                members.insert("password".into(), json!(password.expose_secret()));
            }
        }
        config
    }
}

/// How a session is set up. Everything is said at creation, because a later change costs a reconnect.
#[derive(Clone)]
pub struct SessionSpec {
    /// Its name on the server: up to 54 of `a-z A-Z 0-9 _ -`.
    pub name: String,
    /// The engine of the server it is created on.
    pub engine: Engine,
    /// Where WAHA posts its events.
    pub webhook_url: Url,
    /// What WAHA signs its events with.
    pub hmac_key: SecretString,
    /// Echoed in every event.
    pub metadata: BTreeMap<String, String>,
    /// Where its connection to WhatsApp goes through; `None`: straight.
    pub proxy: Option<Proxy>,
}

impl fmt::Debug for SessionSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionSpec").field("name", &self.name).field("engine", &self.engine).finish_non_exhaustive()
    }
}

impl SessionSpec {
    /// The whole configuration. Holds the HMAC key and the proxy's password in clear.
    pub(super) fn config(&self) -> Value {
        let mut config = json!({
            "metadata": self.metadata,
            "webhooks": [{
                "url": self.webhook_url.as_str(),
                "events": WEBHOOK_EVENTS,
                "hmac": {"key": self.hmac_key.expose_secret()},
                // About four and a half hours; what is lost after that is read back.
                "retries": {"policy": "exponential", "delaySeconds": 2, "attempts": 12},
            }],
        });
        if let Some(members) = config.as_object_mut() {
            if let Some(proxy) = &self.proxy {
                members.insert("proxy".into(), proxy.config());
            }
            match self.engine {
                // Off by default, and without it there are no acks.
                Engine::Webjs => {
                    members.insert("webjs".into(), json!({"tagsEventsOn": true}));
                }
                // Off by default, and without it nothing can be read back.
                Engine::Noweb => {
                    members.insert("noweb".into(), json!({"store": {"enabled": true, "fullSync": false}}));
                }
                Engine::Wpp | Engine::Gows => {}
            }
        }
        config
    }

    /// The body that creates the session, started at once or not.
    pub(super) fn create_body(&self, start: bool) -> Value {
        json!({"name": self.name, "start": start, "config": self.config()})
    }

    /// The body that replaces the session's configuration.
    pub(super) fn update_body(&self) -> Value {
        json!({"config": self.config()})
    }
}

/// The account a session is paired with. `Debug` shows nothing of it.
#[derive(Clone, PartialEq, Eq)]
pub struct Me {
    /// Its WhatsApp id, `…@c.us`.
    pub id: String,
    /// The name it goes by.
    pub push_name: Option<String>,
    /// Its hidden id, `…@lid`.
    pub lid: Option<String>,
}

impl fmt::Debug for Me {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Me(…)")
    }
}

impl Me {
    pub(super) fn from_value(value: &Value) -> Option<Self> {
        Some(Self {
            id: person(text(value, "/id")?),
            push_name: text(value, "/pushName").map(str::to_owned),
            lid: text(value, "/lid").map(person),
        })
    }

    /// The digits of the account's phone number; `None` when only a hidden id is known.
    #[must_use]
    pub fn phone(&self) -> Option<&str> {
        self.id.strip_suffix("@c.us").filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()))
    }
}

/// How WhatsApp restricts an account. Servers before 2026.8 do not tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restriction {
    /// It may not write to new contacts, until then.
    Timelock {
        /// The end, if WhatsApp said it.
        until: Option<DateTime<Utc>>,
    },
    /// Its quota of new chats is used up.
    Capped {
        /// When the next cycle begins.
        until: Option<DateTime<Utc>>,
    },
}

impl Restriction {
    /// Reads what is beside the account (`me`), or what `session.status` carries as `data`.
    pub(super) fn from_value(value: &Value) -> Option<Self> {
        let until = value
            .pointer("/reachoutTimelock/timeEnforcementEnds")
            .filter(|_| value.pointer("/reachoutTimelock/isActive").and_then(Value::as_bool) != Some(false));
        if let Some(until) = until.and_then(seconds) {
            return Some(Self::Timelock { until: Some(until) });
        }
        (text(value, "/messageCapping/cappingStatus") == Some("CAPPED"))
            .then(|| Self::Capped { until: value.pointer("/messageCapping/cycleEnd").and_then(seconds) })
    }

    /// When it ends, as far as that is known.
    #[must_use]
    pub const fn until(self) -> Option<DateTime<Utc>> {
        match self {
            Self::Timelock { until } | Self::Capped { until } => until,
        }
    }
}

/// A session as WAHA describes it.
#[derive(Clone)]
pub struct SessionInfo {
    /// Its name.
    pub name: String,
    /// Its state.
    pub status: SessionStatus,
    /// The paired account.
    pub me: Option<Me>,
    /// The engine it runs on; `None` while stopped and in lists.
    pub engine: Option<Engine>,
    /// When it last did something.
    pub active_at: Option<DateTime<Utc>>,
    /// How WhatsApp restricts the account, if it does and WAHA knows.
    pub restriction: Option<Restriction>,
    config: Value,
}

impl fmt::Debug for SessionInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionInfo").field("name", &self.name).field("status", &self.status).finish_non_exhaustive()
    }
}

impl SessionInfo {
    pub(super) fn from_value(mut value: Value) -> Option<Self> {
        let config = value.get_mut("config").map(Value::take).unwrap_or_default();
        Some(Self {
            name: text(&value, "/name")?.to_owned(),
            status: SessionStatus::from_name(text(&value, "/status")?),
            me: value.get("me").and_then(Me::from_value),
            engine: text(&value, "/engine/engine").and_then(|name| name.parse().ok()),
            active_at: value.pointer("/timestamps/activity").and_then(milliseconds),
            restriction: value.get("me").and_then(Restriction::from_value),
            config,
        })
    }

    /// Whether the session is set up as `spec` wants it. What WAHA adds of its own does not count.
    #[must_use]
    pub fn matches(&self, spec: &SessionSpec) -> bool {
        // WAHA adds no proxy of its own: one that nobody wants is a change.
        let proxied = self.config.get("proxy").is_some_and(|proxy| !proxy.is_null());
        self.name == spec.name && holds(&self.config, &spec.config()) && proxied == spec.proxy.is_some()
    }

    /// Whether its events are posted to `url`.
    #[must_use]
    pub fn posts_to(&self, url: &str) -> bool {
        let hooks = self.config.get("webhooks").and_then(Value::as_array);
        hooks.into_iter().flatten().any(|hook| hook.get("url").and_then(Value::as_str) == Some(url))
    }

    /// A value of the session's metadata.
    #[must_use]
    pub fn metadata(&self, name: &str) -> Option<&str> {
        self.config.get("metadata")?.get(name)?.as_str()
    }
}

/// Whether `actual` says all that `wanted` says. Lists of names (the events) are sets: their order is WAHA's own affair.
fn holds(actual: &Value, wanted: &Value) -> bool {
    match (actual, wanted) {
        (Value::Array(actual), Value::Array(wanted))
            if !wanted.is_empty() && actual.iter().chain(wanted).all(Value::is_string) =>
        {
            wanted.iter().all(|name| actual.contains(name)) && actual.iter().all(|name| wanted.contains(name))
        }
        (Value::Object(actual), Value::Object(wanted)) => wanted.iter().all(|(name, wanted)| {
            actual
                .get(name)
                .map_or_else(|| wanted.as_object().is_some_and(serde_json::Map::is_empty), |a| holds(a, wanted))
        }),
        (Value::Array(actual), Value::Array(wanted)) => {
            actual.len() == wanted.len() && actual.iter().zip(wanted).all(|(actual, wanted)| holds(actual, wanted))
        }
        _ => actual == wanted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(engine: Engine) -> SessionSpec {
        SessionSpec {
            name: "sb_1".into(),
            engine,
            webhook_url: "http://gateway:8080/hooks/waha/1".parse().unwrap(),
            hmac_key: "hmac-key-of-the-session".into(),
            metadata: BTreeMap::from([("session_id".into(), "1".into())]),
            proxy: None,
        }
    }

    #[test]
    fn each_engine_gets_what_it_needs_at_creation() {
        let cases = [
            (Engine::Webjs, json!({"tagsEventsOn": true}), Value::Null),
            (Engine::Noweb, Value::Null, json!({"store": {"enabled": true, "fullSync": false}})),
            (Engine::Wpp, Value::Null, Value::Null),
            (Engine::Gows, Value::Null, Value::Null),
        ];
        for (engine, webjs, noweb) in cases {
            let body = spec(engine).create_body(true);
            assert_eq!(body["config"]["webjs"], webjs, "{engine}");
            assert_eq!(body["config"]["noweb"], noweb, "{engine}");
            assert_eq!(body["name"], "sb_1");
            assert_eq!(body["start"], true);
            assert_eq!(body["config"]["metadata"], json!({"session_id": "1"}));
            assert_eq!(
                body["config"]["webhooks"],
                json!([{
                    "url": "http://gateway:8080/hooks/waha/1",
                    "events": ["session.status", "message.any", "message.ack", "message.ack.group", "message.reaction",
                        "message.edited", "message.revoked", "poll.vote", "call.received", "call.accepted", "call.rejected",
                        "group.v2.join", "group.v2.leave", "group.v2.update", "group.v2.participants", "presence.update",
                        "label.upsert", "label.deleted", "label.chat.added", "label.chat.deleted"],
                    "hmac": {"key": "hmac-key-of-the-session"},
                    "retries": {"policy": "exponential", "delaySeconds": 2, "attempts": 12},
                }])
            );
        }
    }

    #[test]
    fn a_session_as_captured() {
        let value: Value = serde_json::from_str(
            r#"{"name":"default","status":"WORKING","config":{"metadata":{"a":"b"}},"me":{"id":"11111111111@c.us","pushName":"Sim User","lid":"99999999999@lid"},"presence":null,"timestamps":{"activity":1795211854091},"engine":{"engine":"NOWEB"}}"#,
        )
        .unwrap();
        let info = SessionInfo::from_value(value).unwrap();
        assert_eq!(info.status, SessionStatus::Working);
        assert_eq!(info.engine, Some(Engine::Noweb));
        assert_eq!(info.active_at.unwrap().timestamp_millis(), 1_795_211_854_091);
        assert_eq!(info.metadata("a"), Some("b"));
        let me = info.me.unwrap();
        assert_eq!((me.phone(), me.lid.as_deref()), (Some("11111111111"), Some("99999999999@lid")));

        let stopped = json!({"name": "a", "status": "NEW_STATE", "me": null, "timestamps": {}, "engine": {}});
        let info = SessionInfo::from_value(stopped).unwrap();
        assert_eq!((info.status, info.engine), (SessionStatus::Other, None));
        assert!(SessionInfo::from_value(json!({"status": "WORKING"})).is_none());
    }

    #[test]
    fn a_drifted_configuration_is_noticed() {
        let spec = spec(Engine::Noweb);
        let info = |config: Value| {
            SessionInfo::from_value(json!({"name": "sb_1", "status": "WORKING", "config": config})).unwrap()
        };
        let mut config = spec.config();
        config["noweb"]["markOnline"] = json!(true);
        config["debug"] = json!(false);
        assert!(info(config.clone()).matches(&spec));
        config["webhooks"][0]["events"].as_array_mut().unwrap().reverse();
        assert!(info(config.clone()).matches(&spec), "events have no order");
        let mut fewer = config.clone();
        fewer["webhooks"][0]["events"].as_array_mut().unwrap().pop();
        assert!(!info(fewer).matches(&spec), "an event is missing");
        let mut more = config.clone();
        more["webhooks"][0]["events"].as_array_mut().unwrap().push(json!("message"));
        assert!(!info(more).matches(&spec), "each message would be told twice");
        config["webhooks"][0]["hmac"]["key"] = json!("another");
        assert!(!info(config).matches(&spec));
        assert!(!info(Value::Null).matches(&spec));
    }

    #[test]
    fn a_proxy_is_part_of_the_configuration() {
        let plain = spec(Engine::Gows);
        let with = |username: Option<&str>, password: Option<&str>| {
            let (username, password) = (username.map(str::to_owned), password.map(SecretString::from));
            let proxy = Proxy { server: "proxy.example.net:3128".into(), username, password };
            SessionSpec { proxy: Some(proxy), ..plain.clone() }
        };
        assert_eq!(plain.create_body(true)["config"].get("proxy"), None);
        let body = with(Some("me"), Some("secret")).create_body(true);
        let whole = json!({"server": "proxy.example.net:3128", "username": "me", "password": "secret"});
        assert_eq!(body["config"]["proxy"], whole);
        assert_eq!(
            with(None, None).update_body()["config"]["proxy"],
            json!({"server": "proxy.example.net:3128"}),
            "what is not there is not said"
        );
        assert!(
            !format!("{:?} {:?}", with(Some("me"), Some("secret")), with(None, None).proxy).contains("proxy.example")
        );

        let info = |spec: &SessionSpec| {
            SessionInfo::from_value(json!({"name": "sb_1", "status": "WORKING", "config": spec.config()})).unwrap()
        };
        let proxied = with(Some("me"), Some("secret"));
        assert!(info(&plain).matches(&plain) && info(&proxied).matches(&proxied));
        assert!(!info(&plain).matches(&proxied), "a proxy is missing");
        assert!(!info(&proxied).matches(&plain), "a proxy is left over");
        assert!(!info(&proxied).matches(&with(Some("me"), Some("other"))), "another password");
    }

    #[test]
    fn keys_and_numbers_are_not_in_debug() {
        let text = format!("{:?}", spec(Engine::Gows));
        assert!(!text.contains("hmac-key"), "{text}");
    }
}
