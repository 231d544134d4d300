//! Files that tenants name by URL: fetched once, by the same rules as webhooks are delivered.

use std::time::Duration;

use futures_util::StreamExt;
use reqwest::header::{CONTENT_TYPE, HeaderMap, LOCATION};
use reqwest::{Method, Response};
use tokio::time::{Instant, timeout_at};
use url::Url;

use super::incoming::{Declared, Incoming};
use super::rows::Media;
use super::{MOST_BYTES, MediaError};
use crate::app::App;
use crate::domain::ids::TenantId;
use crate::guard::GuardError;

/// Redirects that are followed; each address is checked as the first one is.
const MOST_REDIRECTS: usize = 5;

/// Fetches `url` into storage within `limit`. The file can be used once it was made ready.
///
/// # Errors
/// [`MediaError`]; nothing is left then.
pub(super) async fn fetch(
    app: &App,
    tenant: TenantId,
    url: &str,
    filename: Option<&str>,
    limit: Duration,
) -> Result<Media, MediaError> {
    let deadline = Instant::now() + limit;
    let _slot = app.media.fetches.take(tenant, limit).await.ok_or(MediaError::TimedOut)?;
    let (response, url) = timeout_at(deadline, open(app, url)).await.map_err(|_| MediaError::TimedOut)??;
    if response.content_length().is_some_and(|length| length > MOST_BYTES as u64) {
        return Err(MediaError::TooLarge);
    }
    let last = url.path_segments().and_then(|mut segments| segments.next_back()).unwrap_or_default();
    let last = percent_decoded(last);
    let declared = Declared {
        mime_type: header(response.headers(), CONTENT_TYPE.as_str()),
        filename: filename.map(str::to_owned).or_else(|| last.contains('.').then_some(last)),
        source_url: Some(url.into()),
    };
    let mut incoming = Incoming::begin(app, tenant, declared).await?;
    match timeout_at(deadline, read(response, &mut incoming)).await {
        Ok(Ok(())) => incoming.finish().await,
        Ok(Err(fault)) => {
            incoming.abandon().await;
            Err(fault)
        }
        Err(_) => {
            incoming.abandon().await;
            Err(MediaError::TimedOut)
        }
    }
}

async fn read(response: Response, incoming: &mut Incoming) -> Result<(), MediaError> {
    let mut body = response.bytes_stream();
    while let Some(chunk) = body.next().await {
        incoming.write(chunk.map_err(|fault| of_transport(&fault))?).await?;
    }
    Ok(())
}

/// The answer behind `url` and at most five redirects, and where it came from.
async fn open(app: &App, url: &str) -> Result<(Response, Url), MediaError> {
    let mut url = Url::parse(url).map_err(|_| MediaError::NotAUrl)?;
    for _ in 0..=MOST_REDIRECTS {
        let request = app.media.client.request(Method::GET, &url).map_err(MediaError::Refused)?;
        let response = request.send().await.map_err(|fault| of_transport(&fault))?;
        let status = response.status();
        if status.is_success() {
            return Ok((response, url));
        }
        match status.as_u16() {
            301 | 302 | 303 | 307 | 308 => {
                let location =
                    header(response.headers(), LOCATION.as_str()).ok_or(MediaError::Answered(status.as_u16()))?;
                url = url.join(&location).map_err(|_| MediaError::NotAUrl)?;
            }
            408 | 425 | 429 | 500.. => return Err(MediaError::Unavailable(status.as_u16())),
            refused => return Err(MediaError::Answered(refused)),
        }
    }
    Err(MediaError::Redirects)
}

fn of_transport(fault: &reqwest::Error) -> MediaError {
    match GuardError::behind(fault) {
        Some(refusal) => MediaError::Refused(refusal),
        None if fault.is_timeout() => MediaError::TimedOut,
        None => MediaError::Unreachable,
    }
}

fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

fn percent_decoded(segment: &str) -> String {
    // The form encoding differs in the plus sign only.
    let pair = segment.replace('+', "%2B").replace('&', "%26").replace('=', "%3D");
    url::form_urlencoded::parse(pair.as_bytes()).next().map(|(name, _)| name.into_owned()).unwrap_or_default()
}
