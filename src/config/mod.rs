//! The settings of a process, read once and checked as a whole: [`Config::load`] lists every fault, not just the first.
//!
//! A setting comes from the environment, else from the file named by `SWITCHBOARD_CONFIG` (TOML, the same names in lower
//! case without the `SWITCHBOARD_` prefix), else from its default. This is the only module that reads the environment.

mod arrivals;
mod fleet;
mod gap_fill;
mod liveness;
mod sending;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use secrecy::SecretString;
use url::Url;

pub use self::arrivals::Arrivals;
pub use self::fleet::Fleet;
pub use self::gap_fill::GapFill;
pub use self::liveness::Liveness;
pub use self::sending::Sending;
use crate::db::DbConfig;

/// The settings of one process.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the API listens; `SWITCHBOARD_BIND`, default `127.0.0.1:8080`.
    pub bind: SocketAddr,
    /// A port of its own for `/metrics`; `SWITCHBOARD_METRICS_BIND`, default none (served beside the API).
    pub metrics_bind: Option<SocketAddr>,
    /// How WAHA servers reach this service, and browsers the pairing page; `SWITCHBOARD_PUBLIC_URL`, default `http://<bind>`.
    pub public_url: Url,
    /// The database; `DATABASE_URL` and the `DATABASE_*` pool settings.
    pub database: DbConfig,
    /// The broker; `AMQP_URL`.
    pub amqp_url: SecretString,
    /// Prefix of every exchange and queue; `SWITCHBOARD_BROKER_NAMESPACE`, default `switchboard`.
    pub broker_namespace: String,
    /// Seals WAHA keys and webhook secrets at rest; `SWITCHBOARD_MASTER_KEY`, 32 bytes in base64.
    pub master_key: Option<MasterKey>,
    /// Further keys that open what was sealed under them; `SWITCHBOARD_MASTER_KEY_PREVIOUS`, separated by commas, default none.
    pub previous_master_keys: Vec<MasterKey>,
    /// The key above tenants; `SWITCHBOARD_PLATFORM_KEY`, default none.
    pub platform_key: Option<SecretString>,
    /// Whether webhooks and media may point at private addresses; `SWITCHBOARD_ALLOW_PRIVATE_TARGETS`, default false.
    pub allow_private_targets: bool,
    /// Where files are kept; `SWITCHBOARD_MEDIA_URL` and, for `s3://…`, the usual `AWS_*` variables.
    pub media: MediaConfig,
    /// What is logged, as a filter such as `info,switchboard=debug`; `SWITCHBOARD_LOG`, default `info`.
    pub log_filter: String,
    /// `text` or `json`; `SWITCHBOARD_LOG_FORMAT`, default `text`.
    pub log_format: LogFormat,
    /// Timings of the engine.
    pub timings: Timings,
    /// How messages are handed over.
    pub sending: Sending,
    /// How sessions are kept alive.
    pub fleet: Fleet,
    /// How sessions are watched over.
    pub liveness: Liveness,
    /// How files that come with messages are fetched.
    pub arrivals: Arrivals,
    /// How gaps are filled that webhooks left.
    pub gap_fill: GapFill,
}

/// Where files are kept.
#[derive(Clone)]
pub struct MediaConfig {
    /// `file:///folder` or `s3://bucket/prefix`; default: the folder `switchboard/media` where the user's data is kept
    /// (`XDG_DATA_HOME`, else `~/.local/share`), or `/var/lib/switchboard/media` for a user without a home.
    pub url: Url,
    /// The `AWS_*` variables, their names in lower case: region, endpoint, credentials.
    pub options: Vec<(String, SecretString)>,
}

impl fmt::Debug for MediaConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MediaConfig({}:…)", self.url.scheme())
    }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines: one JSON object a line.
    Json,
}

impl FromStr for LogFormat {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("must be `text` or `json`"),
        }
    }
}

/// The master key; shown nowhere.
#[derive(Clone)]
pub struct MasterKey(pub [u8; 32]);

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MasterKey(…)")
    }
}

impl FromStr for MasterKey {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = STANDARD.decode(text.trim()).map_err(|_| "must be base64")?;
        bytes.try_into().map(Self).map_err(|_| "must be 32 bytes in base64 (openssl rand -base64 32)")
    }
}

/// Master keys, separated by commas.
struct MasterKeys(Vec<MasterKey>);

impl FromStr for MasterKeys {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.split(',').map(str::parse).collect::<Result<_, _>>().map(Self)
    }
}

/// How long things may take.
#[derive(Clone, Debug)]
pub struct Timings {
    /// Longest attempt to hand a message to WAHA; `SWITCHBOARD_SEND_TIMEOUT_MS`, default 130 s (WAHA may hang for 120 s).
    pub send_timeout: Duration,
    /// From dispatch to claim: how long a message may be on the road before it is dispatched again;
    /// `SWITCHBOARD_DISPATCH_LEASE_MS`, default 30 s.
    pub dispatch_lease: Duration,
    /// Added to `send_timeout` for the lease of an attempt; `SWITCHBOARD_LEASE_MARGIN_MS`, default 20 s.
    pub lease_margin: Duration,
    /// How often a node looks for work that another node caused; `SWITCHBOARD_POLL_MS`, default 250 ms.
    pub poll: Duration,
    /// How often each WAHA server's sessions are compared with what should be; `SWITCHBOARD_RECONCILE_MS`, default 10 s.
    pub reconcile: Duration,
    /// How long SIGTERM waits for running work; `SWITCHBOARD_DRAIN_MS`, default 25 s.
    pub drain: Duration,
}

impl Default for Timings {
    fn default() -> Self {
        Self {
            send_timeout: Duration::from_secs(130),
            dispatch_lease: Duration::from_secs(30),
            lease_margin: Duration::from_secs(20),
            poll: Duration::from_millis(250),
            reconcile: Duration::from_secs(10),
            drain: Duration::from_secs(25),
        }
    }
}

/// Every fault found in the settings.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct ConfigError(pub Vec<String>);

const NAMES: [&str; 25] = [
    "DATABASE_URL",
    "DATABASE_MAX_CONNECTIONS",
    "DATABASE_MIN_CONNECTIONS",
    "DATABASE_ACQUIRE_TIMEOUT_MS",
    "DATABASE_CONNECT_TIMEOUT_MS",
    "DATABASE_IDLE_TIMEOUT_MS",
    "AMQP_URL",
    "SWITCHBOARD_BIND",
    "SWITCHBOARD_METRICS_BIND",
    "SWITCHBOARD_PUBLIC_URL",
    "SWITCHBOARD_BROKER_NAMESPACE",
    "SWITCHBOARD_MASTER_KEY",
    "SWITCHBOARD_MASTER_KEY_PREVIOUS",
    "SWITCHBOARD_PLATFORM_KEY",
    "SWITCHBOARD_ALLOW_PRIVATE_TARGETS",
    "SWITCHBOARD_MEDIA_URL",
    "SWITCHBOARD_LOG",
    "SWITCHBOARD_LOG_FORMAT",
    "SWITCHBOARD_SEND_TIMEOUT_MS",
    "SWITCHBOARD_DISPATCH_LEASE_MS",
    "SWITCHBOARD_LEASE_MARGIN_MS",
    "SWITCHBOARD_POLL_MS",
    "SWITCHBOARD_RECONCILE_MS",
    "SWITCHBOARD_DRAIN_MS",
    "SWITCHBOARD_CONFIG",
];

impl Config {
    /// Reads the environment and the file it names.
    ///
    /// # Errors
    /// [`ConfigError`] with every fault: missing, malformed and unknown settings.
    pub fn load() -> Result<Self, ConfigError> {
        Self::from_settings(std::env::vars().collect())
    }

    /// Reads the settings `environment`, as [`Config::load`] does with the process's own.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn from_settings(environment: BTreeMap<String, String>) -> Result<Self, ConfigError> {
        let mut reader = Reader { values: environment, faults: Vec::new() };
        reader.add_file();
        let defaults = Timings::default();
        let bind = reader.or("SWITCHBOARD_BIND", SocketAddr::from(([127, 0, 0, 1], 8080)));
        let here = Url::parse(&format!("http://{bind}")).ok();
        let public_url = reader.optional("SWITCHBOARD_PUBLIC_URL").or(here);
        let (Some(public_url), Some(media)) = (public_url, reader.media()) else {
            return Err(ConfigError(reader.faults));
        };
        let config = Self {
            bind,
            metrics_bind: reader.optional("SWITCHBOARD_METRICS_BIND"),
            database: DbConfig {
                url: reader.required("DATABASE_URL", "postgres://user:password@host/database"),
                max_connections: reader.or("DATABASE_MAX_CONNECTIONS", 20),
                min_connections: reader.or("DATABASE_MIN_CONNECTIONS", 5),
                acquire_timeout: reader.millis("DATABASE_ACQUIRE_TIMEOUT_MS", Duration::from_secs(30)),
                connect_timeout: reader.millis("DATABASE_CONNECT_TIMEOUT_MS", Duration::from_secs(2)),
                idle_timeout: reader.millis("DATABASE_IDLE_TIMEOUT_MS", Duration::from_secs(30)),
            },
            amqp_url: reader.required("AMQP_URL", "amqp://user:password@host:5672/%2f"),
            broker_namespace: reader.or("SWITCHBOARD_BROKER_NAMESPACE", "switchboard".to_owned()),
            master_key: reader.optional("SWITCHBOARD_MASTER_KEY"),
            previous_master_keys: reader
                .optional::<MasterKeys>("SWITCHBOARD_MASTER_KEY_PREVIOUS")
                .map_or_else(Vec::new, |keys| keys.0),
            platform_key: reader.optional::<String>("SWITCHBOARD_PLATFORM_KEY").map(SecretString::from),
            allow_private_targets: reader.or("SWITCHBOARD_ALLOW_PRIVATE_TARGETS", false),
            media,
            log_filter: reader.or("SWITCHBOARD_LOG", "info".to_owned()),
            log_format: reader.or("SWITCHBOARD_LOG_FORMAT", LogFormat::Text),
            timings: Timings {
                send_timeout: reader.millis("SWITCHBOARD_SEND_TIMEOUT_MS", defaults.send_timeout),
                dispatch_lease: reader.millis("SWITCHBOARD_DISPATCH_LEASE_MS", defaults.dispatch_lease),
                lease_margin: reader.millis("SWITCHBOARD_LEASE_MARGIN_MS", defaults.lease_margin),
                poll: reader.millis("SWITCHBOARD_POLL_MS", defaults.poll),
                reconcile: reader.millis("SWITCHBOARD_RECONCILE_MS", defaults.reconcile),
                drain: reader.millis("SWITCHBOARD_DRAIN_MS", defaults.drain),
            },
            sending: Sending::read(&mut reader),
            fleet: Fleet::read(&mut reader),
            liveness: Liveness::read(&mut reader),
            arrivals: Arrivals::read(&mut reader),
            gap_fill: GapFill::read(&mut reader),
            public_url,
        };
        if config.database.max_connections < 2 {
            reader.faults.push("DATABASE_MAX_CONNECTIONS: must be at least 2".to_owned());
        }
        if config.platform_key.is_some()
            && reader.values.get("SWITCHBOARD_PLATFORM_KEY").is_some_and(|key| key.len() < 16)
        {
            reader.faults.push("SWITCHBOARD_PLATFORM_KEY: must have at least 16 characters".to_owned());
        }
        if reader.faults.is_empty() { Ok(config) } else { Err(ConfigError(reader.faults)) }
    }
}

/// Every setting's name.
fn names() -> impl Iterator<Item = &'static str> {
    NAMES
        .into_iter()
        .chain(Sending::NAMES)
        .chain(Fleet::NAMES)
        .chain(Liveness::NAMES)
        .chain(Arrivals::NAMES)
        .chain(GapFill::NAMES)
}

struct Reader {
    values: BTreeMap<String, String>,
    faults: Vec<String>,
}

impl Reader {
    fn add_file(&mut self) {
        for name in self.values.keys() {
            if name.starts_with("SWITCHBOARD_") && !names().any(|known| known == name) {
                self.faults.push(format!("{name}: no such setting"));
            }
        }
        let Some(path) = self.values.get("SWITCHBOARD_CONFIG").cloned() else { return };
        let table = match std::fs::read_to_string(&path) {
            Ok(text) => text.parse::<toml::Table>().map_err(|fault| fault.message().to_owned()),
            Err(fault) => Err(fault.to_string()),
        };
        match table {
            Ok(table) => {
                for (key, value) in table {
                    let upper = key.to_ascii_uppercase();
                    let Some(name) = names().find(|name| name.strip_prefix("SWITCHBOARD_").unwrap_or(name) == upper)
                    else {
                        self.faults.push(format!("SWITCHBOARD_CONFIG: {key}: no such setting"));
                        continue;
                    };
                    let text = match value {
                        toml::Value::String(text) => text,
                        toml::Value::Integer(number) => number.to_string(),
                        toml::Value::Boolean(flag) => flag.to_string(),
                        _ => {
                            self.faults
                                .push(format!("SWITCHBOARD_CONFIG: {key}: must be a string, a number or true/false"));
                            continue;
                        }
                    };
                    self.values.entry(name.to_owned()).or_insert(text);
                }
            }
            Err(fault) => self.faults.push(format!("SWITCHBOARD_CONFIG: {path}: {fault}")),
        }
    }

    fn optional<T: FromStr<Err: fmt::Display>>(&mut self, name: &str) -> Option<T> {
        let text = self.values.get(name).filter(|text| !text.is_empty())?;
        match text.parse() {
            Ok(value) => Some(value),
            Err(fault) => {
                self.faults.push(format!("{name}: {fault}"));
                None
            }
        }
    }

    fn or<T: FromStr<Err: fmt::Display>>(&mut self, name: &str, default: T) -> T {
        self.optional(name).unwrap_or(default)
    }

    fn millis(&mut self, name: &str, default: Duration) -> Duration {
        self.optional(name).map_or(default, Duration::from_millis)
    }

    fn media(&mut self) -> Option<MediaConfig> {
        let folder = || {
            let text = |name: &str| self.values.get(name).filter(|value| value.starts_with('/')).map(PathBuf::from);
            let data = text("XDG_DATA_HOME").or_else(|| text("HOME").map(|home| home.join(".local/share")));
            data.unwrap_or_else(|| PathBuf::from("/var/lib")).join("switchboard/media")
        };
        let default = Url::from_file_path(folder()).ok();
        let given = self.optional::<Url>("SWITCHBOARD_MEDIA_URL");
        let fits = |url: &Url| match url.scheme() {
            "file" => url.to_file_path().is_ok_and(|path| path.parent().is_some()),
            "s3" => url.host_str().is_some_and(|bucket| !bucket.is_empty()),
            _ => false,
        };
        if given.as_ref().is_some_and(|url| !fits(url)) {
            self.faults.push("SWITCHBOARD_MEDIA_URL: must be file:///folder or s3://bucket/prefix".to_owned());
        }
        let options = self.values.iter().filter(|(name, value)| name.starts_with("AWS_") && !value.is_empty());
        let options = options.map(|(name, value)| (name.to_ascii_lowercase(), value.clone().into())).collect();
        given.or(default).map(|url| MediaConfig { url, options })
    }

    fn required(&mut self, name: &str, example: &str) -> SecretString {
        match self.optional::<Url>(name) {
            Some(url) => SecretString::from(String::from(url)),
            None => {
                if !self.faults.iter().any(|fault| fault.starts_with(name)) {
                    self.faults.push(format!("{name}: is not set; for example {example}"));
                }
                SecretString::from(String::new())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(settings: &[(&str, &str)]) -> Result<Config, ConfigError> {
        Config::from_settings(settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn every_fault_is_listed() {
        let faults = load(&[
            ("SWITCHBOARD_BIND", "nowhere"),
            ("SWITCHBOARD_MASTER_KEY", "short"),
            ("SWITCHBOARD_MASTER_KEY_PREVIOUS", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=,short"),
            ("SWITCHBOARD_TYPO", "1"),
            ("DATABASE_URL", "no url"),
        ])
        .unwrap_err()
        .0;
        for name in [
            "SWITCHBOARD_BIND",
            "SWITCHBOARD_MASTER_KEY",
            "SWITCHBOARD_MASTER_KEY_PREVIOUS",
            "SWITCHBOARD_TYPO",
            "DATABASE_URL",
            "AMQP_URL",
        ] {
            let of_it = |fault: &&String| fault.starts_with(&format!("{name}:"));
            assert_eq!(faults.iter().filter(of_it).count(), 1, "{name} in {faults:?}");
        }
    }

    #[test]
    fn older_master_keys_are_a_list() {
        let keys = |text: &str| {
            let settings = [
                ("DATABASE_URL", "postgres://localhost/db"),
                ("AMQP_URL", "amqp://localhost"),
                ("SWITCHBOARD_MASTER_KEY_PREVIOUS", text),
            ];
            let keys = load(&settings).unwrap().previous_master_keys;
            keys.iter().map(|key| key.0[0]).collect::<Vec<_>>()
        };
        assert!(keys("").is_empty());
        let (zeros, ones) = (STANDARD.encode([0; 32]), STANDARD.encode([1; 32]));
        assert_eq!(keys(&ones), [1]);
        assert_eq!(keys(&format!("{ones}, {zeros}")), [1, 0]);
    }

    #[test]
    fn secrets_are_not_shown() {
        let config = load(&[
            ("DATABASE_URL", "postgres://me:hunter2@localhost/db"),
            ("AMQP_URL", "amqp://me:hunter2@localhost"),
            ("SWITCHBOARD_PLATFORM_KEY", "hunter2hunter2hunter2"),
            ("SWITCHBOARD_MASTER_KEY", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="),
        ])
        .unwrap();
        assert!(!format!("{config:?}").contains("hunter2"));
    }
}
