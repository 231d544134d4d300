//! Which addresses a tenant may make the gateway call: public ones only.
//!
//! Tenants choose the addresses of their webhooks and of files to send, and the gateway stands inside the operator's network. So an address is checked
//! twice: as it stands in the URL, and after the DNS has answered, inside the connector, so that the address that was checked is
//! the address that is dialled.

use std::error::Error;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{Method, RequestBuilder, redirect};
use url::{Host, Url};

const LONGEST_URL: usize = 2048;

/// Ports of services that answer to lines of text, so that an HTTP request could be made to speak their language; the list is
/// the one browsers keep to (the Fetch standard's bad ports).
const BAD_PORTS: [u16; 83] = [
    0, 1, 7, 9, 11, 13, 15, 17, 19, 20, 21, 22, 23, 25, 37, 42, 43, 53, 69, 77, 79, 87, 95, 101, 102, 103, 104, 109,
    110, 111, 113, 115, 117, 119, 123, 135, 137, 139, 143, 161, 179, 389, 427, 465, 512, 513, 514, 515, 526, 530, 531,
    532, 540, 548, 554, 556, 563, 587, 601, 636, 989, 990, 993, 995, 1719, 1720, 1723, 2049, 3659, 4045, 4190, 5060,
    5061, 6000, 6566, 6665, 6666, 6667, 6668, 6669, 6679, 6697, 10080,
];

/// What is not public in IPv4 (the IANA special-purpose registry, multicast and the reserved rest).
const SPECIAL_V4: [(Ipv4Addr, u32); 15] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    (Ipv4Addr::new(192, 0, 2, 0), 24),
    (Ipv4Addr::new(192, 88, 99, 0), 24),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(198, 18, 0, 0), 15),
    (Ipv4Addr::new(198, 51, 100, 0), 24),
    (Ipv4Addr::new(203, 0, 113, 0), 24),
    (Ipv4Addr::new(224, 0, 0, 0), 4),
    (Ipv4Addr::new(240, 0, 0, 0), 4),
];

/// Where IPv6 is public at all.
const GLOBAL_V6: (Ipv6Addr, u32) = (Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);

/// What is not public even there: protocol assignments (Teredo among them), documentation, and 6to4, which hides an IPv4 address.
const SPECIAL_V6: [(Ipv6Addr, u32); 4] = [
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23),
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32),
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16),
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20),
];

/// Whether an address is reachable on the public internet, and nowhere else.
#[must_use]
pub fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => !SPECIAL_V4.iter().any(|(network, bits)| {
            let beyond = 32 - bits;
            u32::from(address) >> beyond == u32::from(*network) >> beyond
        }),
        IpAddr::V6(address) => {
            let within = |(network, bits): &(Ipv6Addr, u32)| {
                let beyond = 128 - bits;
                u128::from(address) >> beyond == u128::from(*network) >> beyond
            };
            within(&GLOBAL_V6) && !SPECIAL_V6.iter().any(within)
        }
    }
}

/// Why an address is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GuardError {
    /// More than 2048 characters.
    #[error("the address is longer than 2048 characters")]
    TooLong,
    /// Not `https`.
    #[error("the address is not https")]
    Scheme,
    /// A name or password in the address.
    #[error("the address holds a name or password")]
    UserInfo,
    /// No host.
    #[error("the address has no host")]
    NoHost,
    /// A port that belongs to another service.
    #[error("the address has a port that belongs to another service")]
    Port,
    /// Not a public address.
    #[error("the address is not public")]
    NotPublic,
}

impl GuardError {
    /// The refusal behind a failed request, if the guard refused it after the DNS had answered.
    #[must_use]
    pub fn behind(error: &reqwest::Error) -> Option<Self> {
        let mut source = error.source();
        while let Some(error) = source {
            if let Some(refusal) = error.downcast_ref::<Self>() {
                return Some(*refusal);
            }
            source = error.source();
        }
        None
    }
}

/// Decides which addresses may be called.
#[derive(Clone, Copy, Debug)]
pub struct Guard {
    allow_private: bool,
}

impl Guard {
    /// `allow_private` lets plain `http` and every address pass: for development only.
    #[must_use]
    pub fn new(allow_private: bool) -> Self {
        Self { allow_private }
    }

    /// Checks all that can be told from the address itself. A name is checked again when it has been resolved.
    ///
    /// # Errors
    /// Why the address is refused.
    pub fn check_url(&self, url: &Url) -> Result<(), GuardError> {
        if url.as_str().chars().count() > LONGEST_URL {
            return Err(GuardError::TooLong);
        }
        let scheme_fits = url.scheme() == "https" || (self.allow_private && url.scheme() == "http");
        if !scheme_fits {
            return Err(GuardError::Scheme);
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(GuardError::UserInfo);
        }
        let host = url.host().ok_or(GuardError::NoHost)?;
        if url.port_or_known_default().is_none_or(|port| BAD_PORTS.contains(&port)) {
            return Err(GuardError::Port);
        }
        let public = match host {
            Host::Ipv4(address) => is_public(address.into()),
            Host::Ipv6(address) => is_public(address.into()),
            Host::Domain(name) => {
                let name = name.trim_end_matches('.');
                if name.is_empty() {
                    return Err(GuardError::NoHost);
                }
                name != "localhost" && !name.ends_with(".localhost")
            }
        };
        if public || self.allow_private { Ok(()) } else { Err(GuardError::NotPublic) }
    }

    /// A resolver that gives only addresses that may be called.
    #[must_use]
    pub fn resolver(&self) -> Arc<dyn Resolve> {
        Arc::new(*self)
    }

    fn admit(&self, found: impl Iterator<Item = SocketAddr>) -> Result<Vec<SocketAddr>, GuardError> {
        let admitted: Vec<_> = found.filter(|found| self.allow_private || is_public(found.ip())).collect();
        if admitted.is_empty() { Err(GuardError::NotPublic) } else { Ok(admitted) }
    }
}

impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let guard = *self;
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let admitted: Addrs = Box::new(guard.admit(found)?.into_iter());
            Ok(admitted)
        })
    }
}

/// How long a request may take.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// Until a connection stands.
    pub connect: Duration,
    /// From the start until the answer is read.
    pub total: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { connect: Duration::from_secs(5), total: Duration::from_secs(15) }
    }
}

/// An HTTP client that calls no address its guard refuses, follows no redirect and uses no proxy.
#[derive(Clone, Debug)]
pub struct GuardedClient {
    guard: Guard,
    http: reqwest::Client,
}

impl GuardedClient {
    /// Starts a request, unless the address is refused.
    ///
    /// # Errors
    /// Why the address is refused.
    pub fn request(&self, method: Method, url: &Url) -> Result<RequestBuilder, GuardError> {
        // The connector asks its resolver about names only; literal addresses are refused here or not at all.
        self.guard.check_url(url)?;
        Ok(self.http.request(method, url.clone()))
    }
}

/// The client for everything that goes to addresses tenants choose.
///
/// Requests must be sent, and answers read, on the process-wide runtime: connections belong to the runtime that opened them.
///
/// # Errors
/// When the TLS backend cannot be set up.
pub fn client(guard: &Guard, timeouts: Timeouts) -> Result<GuardedClient, reqwest::Error> {
    // Fails only if somebody installed one already, which is as good.
    let _already_installed = rustls::crypto::ring::default_provider().install_default();
    let http = reqwest::Client::builder()
        .http1_only()
        .https_only(!guard.allow_private)
        .redirect(redirect::Policy::none())
        .retry(reqwest::retry::never())
        .no_proxy()
        .referer(false)
        .dns_resolver(guard.resolver())
        .connect_timeout(timeouts.connect)
        .timeout(timeouts.total)
        .pool_idle_timeout(Duration::from_secs(30))
        .pool_max_idle_per_host(4)
        .tcp_nodelay(true)
        .user_agent(concat!("switchboard/", env!("CARGO_PKG_VERSION")))
        .build()?;
    Ok(GuardedClient { guard: *guard, http })
}

#[cfg(test)]
mod tests;
