//! Files of messages, while a WAHA server keeps them: for three minutes, unless it is told otherwise.
//!
//! **Guarantee:** the server's key goes to the server's own address and below `/api/files/` only, whatever an address in a
//! webhook says.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};
use reqwest::Method;
use url::Url;

use super::client::{Server, WahaClient};
use super::error::CallError;

/// What stands in front of the path of every file.
const FOLDER: &str = "/api/files/";
/// Bytes of a path, at the most; session and bare id are far shorter.
const LONGEST: usize = 1024;
/// Folders and name, at the most.
const DEEPEST: usize = 4;

/// Where a WAHA server keeps a file: the names below `/api/files/`.
#[derive(Clone, PartialEq, Eq)]
pub struct FilePath(Vec<String>);

impl fmt::Debug for FilePath {
    // It may hold a phone number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FilePath(…)")
    }
}

/// What the address of a file turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileAddress {
    /// A file of the WAHA server itself.
    Own(FilePath),
    /// Elsewhere, such as a bucket: to be fetched without the key, if at all.
    Elsewhere(Url),
    /// Neither; not to be fetched.
    Refused,
}

impl FileAddress {
    /// What `url`, which `server` told, stands for. WAHA names hosts that only it knows, so the path decides.
    #[must_use]
    pub fn of(server: &Server, url: &str) -> Self {
        let Ok(url) = Url::parse(url) else { return Self::Refused };
        if !matches!(url.scheme(), "http" | "https") || url.cannot_be_a_base() {
            return Self::Refused;
        }
        let base = server.base_url.path().trim_end_matches('/');
        let path = url.path();
        let below = path.strip_prefix(FOLDER).or_else(|| path.strip_prefix(base)?.strip_prefix(FOLDER));
        match below {
            Some(below) => FilePath::parse(below).map_or(Self::Refused, Self::Own),
            None if url.origin() == server.base_url.origin() => Self::Refused,
            None => Self::Elsewhere(url),
        }
    }
}

impl FilePath {
    /// The names in what follows `/api/files/`; `None` if one of them would lead elsewhere.
    fn parse(below: &str) -> Option<Self> {
        let names: Vec<String> = below.split('/').map(plain).collect::<Option<_>>()?;
        (below.len() <= LONGEST && names.len() <= DEEPEST).then_some(Self(names))
    }
}

/// A name in a path without its escapes; `None` unless it names just one thing, however often it is unescaped.
fn plain(segment: &str) -> Option<String> {
    // The form encoding differs in the plus sign only.
    let pair = segment.replace('+', "%2B").replace('&', "%26").replace('=', "%3D");
    let name = url::form_urlencoded::parse(pair.as_bytes()).next().map(|(name, _)| name.into_owned())?;
    let leads = |c: char| c.is_control() || matches!(c, '/' | '\\' | '%' | '?' | '#' | '\u{fffd}');
    (!name.is_empty() && name != "." && name != ".." && !name.contains(leads)).then_some(name)
}

/// A file on its way in.
pub struct FileAnswer {
    /// Its size, where the server tells it.
    pub length: Option<u64>,
    /// Its bytes. Poll the stream on the process-wide runtime.
    pub bytes: BoxStream<'static, Result<Bytes, CallError>>,
}

impl fmt::Debug for FileAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileAnswer").field("length", &self.length).finish_non_exhaustive()
    }
}

impl WahaClient {
    /// Begins to fetch a file; `within` bounds the whole of it. Redirects are not followed: the key is for this server alone.
    ///
    /// # Errors
    /// [`CallError::NotFound`] when it is not there (any more), [`CallError::Unauthorized`] when the server refuses the key; see
    /// [`CallError`] for the rest.
    pub async fn file(&self, server: &Server, path: &FilePath, within: Duration) -> Result<FileAnswer, CallError> {
        let segments: Vec<&str> = ["api", "files"].into_iter().chain(path.0.iter().map(String::as_str)).collect();
        let response = self.request(server, Method::GET, &segments).timeout(within).begin().await?;
        let status = response.status();
        match status.as_u16() {
            200 => {}
            404 | 410 => return Err(CallError::NotFound),
            401 | 403 => return Err(CallError::Unauthorized),
            429 => return Err(CallError::Throttled),
            500.. => return Err(CallError::Server { status: status.as_u16(), timed_out: false }),
            _ => return Err(CallError::BadAnswer("a file was asked for")),
        }
        let length = response.content_length();
        let bytes = response.bytes_stream().map_err(|fault| CallError::from_transport(&fault)).boxed();
        Ok(FileAnswer { length, bytes })
    }
}

#[cfg(test)]
mod tests {
    use secrecy::SecretString;

    use super::*;

    fn server(base: &str) -> Server {
        Server { base_url: base.parse().unwrap(), api_key: SecretString::from("key") }
    }

    fn own(names: &[&str]) -> FileAddress {
        FileAddress::Own(FilePath(names.iter().map(|name| (*name).to_owned()).collect()))
    }

    #[test]
    fn the_path_decides_and_the_host_does_not() {
        for (base, url, expected) in [
            ("http://waha:3000", "http://localhost:3000/api/files/default/3EB0.jpg", own(&["default", "3EB0.jpg"])),
            ("http://waha:3000", "http://waha:3000/api/files/true_1@c.us_3EB0.jpeg", own(&["true_1@c.us_3EB0.jpeg"])),
            ("http://waha:3000", "http://x/api/files/true_1%40c.us_A.jpeg?a=b#c", own(&["true_1@c.us_A.jpeg"])),
            ("http://proxy/waha/", "https://proxy/waha/api/files/a/b.ogg", own(&["a", "b.ogg"])),
            ("http://proxy/waha/", "http://localhost:3000/api/files/a/b.ogg", own(&["a", "b.ogg"])),
            ("http://waha:3000", "http://x/api/files/a+b/c%20d.pdf", own(&["a+b", "c d.pdf"])),
        ] {
            assert_eq!(FileAddress::of(&server(base), url), expected, "{url}");
        }
    }

    #[test]
    fn tricks_lead_nowhere() {
        let server = server("http://waha:3000");
        for url in [
            "http://waha:3000/api/sessions",
            "http://waha:3000/api/files/../sessions",
            "http://waha:3000/api/files/%2e%2e/sessions",
            "http://waha:3000/api/files/..%2fsessions",
            "http://waha:3000/api/files/a/..%5c..%5csessions",
            "http://waha:3000/api/files/..%252f..%252fsessions",
            "http://waha:3000/api/files/a%00b",
            "http://waha:3000/api/files/a%0d%0ax-evil:1",
            "http://waha:3000/api/files/a%3fb",
            "http://waha:3000/api/files/",
            "http://waha:3000/api/files//etc/passwd",
            "http://waha:3000/api/files/%ff",
            "http://waha:3000/api/files/a/b/c/d/e",
            "http://waha:3000/api/filesystem/a",
            "http://waha:3000/x/api/files/a",
            "file:///api/files/a",
            "data:text/html,x",
            "not a url",
            "",
        ] {
            assert_eq!(FileAddress::of(&server, url), FileAddress::Refused, "{url}");
        }
        let long = format!("http://waha:3000/api/files/{}", "a".repeat(2000));
        assert_eq!(FileAddress::of(&server, &long), FileAddress::Refused);
        for url in ["https://bucket.s3.example/key.jpg?X-Amz-Signature=1", "http://waha:3001/api/sessions"] {
            assert_eq!(FileAddress::of(&server, url), FileAddress::Elsewhere(url.parse().unwrap()), "{url}");
        }
    }
}
