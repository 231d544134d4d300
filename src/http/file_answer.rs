//! The bytes of a stored file as an answer: whole or one range of them, and so that a browser cannot be harmed by them.

use std::borrow::Cow;
use std::ops::Range;

use actix_web::body::SizedStream;
use actix_web::http::header::{self, ContentDisposition, DispositionParam, DispositionType};
use actix_web::http::{Method, StatusCode};
use actix_web::{HttpRequest, HttpResponse};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use serde::Deserialize;
use tokio::sync::mpsc;
use utoipa::IntoParams;

use super::{Code, Problem};
use crate::app::App;
use crate::media::{Media, MediaError, StorageError, kind};

/// Which form of a file.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct WhichFile {
    /// `true`: a small picture of it instead, a JPEG of at most 320 pixels a side; 404 when there is none (`media.thumbnail`).
    /// Default: `false`.
    #[serde(default)]
    pub(super) thumbnail: bool,
}

/// A file, or the small picture of one, about to be served.
pub(super) struct FileAnswer {
    media: Media,
    small: bool,
    content_type: Cow<'static, str>,
    inline: bool,
}

impl FileAnswer {
    /// A file of the tenant's own: as what it is, but for what a browser would run.
    pub(super) fn own(media: Media) -> Self {
        let active = kind::is_active(&media.mime_type);
        let content_type = if active { kind::UNKNOWN.into() } else { media.mime_type.clone().into() };
        Self { inline: kind::is_shown(&media.mime_type), content_type, small: false, media }
    }

    /// A file that strangers sent: as one of few types that are known to be harmless, or as bytes to be saved.
    pub(super) fn received(media: Media, small: bool) -> Result<Self, Problem> {
        if small {
            if media.thumbnail_size.is_none() {
                return Err(Problem::not_found());
            }
            return Ok(Self { media, small, content_type: "image/jpeg".into(), inline: true });
        }
        let served = kind::served(&media.mime_type);
        Ok(Self { media, small, content_type: served.content_type.into(), inline: served.inline })
    }

    fn disposition(&self) -> ContentDisposition {
        let mut parameters = Vec::new();
        if let Some(name) = self.media.filename.as_ref().filter(|_| !self.small) {
            let plain =
                name.chars().map(|c| if c.is_ascii_graphic() && !"\"\\".contains(c) { c } else { '_' }).collect();
            parameters.push(DispositionParam::Filename(plain));
            parameters.push(DispositionParam::FilenameExt(header::ExtendedValue {
                charset: header::Charset::Ext("UTF-8".to_owned()),
                language_tag: None,
                value: name.clone().into_bytes(),
            }));
        }
        let disposition = if self.inline { DispositionType::Inline } else { DispositionType::Attachment };
        ContentDisposition { disposition, parameters }
    }

    /// The bytes as the request wants them.
    pub(super) async fn serve(self, app: &App, request: &HttpRequest) -> Result<HttpResponse, Problem> {
        let size = if self.small { self.media.thumbnail_size.unwrap_or_default() } else { self.media.size };
        let size = u64::try_from(size).unwrap_or_default();
        let tag = format!("\"{}{}\"", self.media.sha256, if self.small { "-small" } else { "" });
        let text = |name| request.headers().get(name).and_then(|value: &header::HeaderValue| value.to_str().ok());
        let known = text(header::IF_NONE_MATCH).is_some_and(|tags| {
            tags.split(',')
                .any(|other| matches!(other.trim().trim_start_matches("W/"), other if other == "*" || other == tag))
        });
        let wanted = text(header::RANGE).filter(|_| text(header::IF_RANGE).is_none_or(|other| other == tag));
        let part = match wanted.filter(|_| !known).and_then(|range| asked_range(range, size)) {
            None => None,
            Some(Some(part)) => Some(part),
            Some(None) => {
                return Err(Problem::new(Code::RangeNotSatisfiable, format!("The file has {size} bytes")));
            }
        };
        let mut response = HttpResponse::Ok();
        if let Some(part) = &part {
            let last = part.end.saturating_sub(1);
            response.status(StatusCode::PARTIAL_CONTENT);
            response.insert_header((header::CONTENT_RANGE, format!("bytes {}-{last}/{size}", part.start)));
        }
        response
            .content_type(&*self.content_type)
            .insert_header(self.disposition())
            .insert_header((header::ETAG, tag))
            .insert_header((header::ACCEPT_RANGES, "bytes"))
            .insert_header((header::CACHE_CONTROL, "private, no-store"))
            .insert_header((header::CONTENT_SECURITY_POLICY, "default-src 'none'; sandbox"));
        if known {
            return Ok(response.status(StatusCode::NOT_MODIFIED).finish());
        }
        let length = part.as_ref().map_or(size, |part| part.end - part.start);
        if request.method() == Method::HEAD {
            return Ok(response.body(SizedStream::new(length, stream::empty::<Result<Bytes, StorageError>>())));
        }
        let parts = app.clone();
        let opened = app.detached(async move {
            let room = &parts.media;
            let bytes =
                if self.small { room.read_small(&self.media, part).await } else { room.read(&self.media, part).await };
            bytes.map_err(MediaError::from)
        });
        let mut bytes = opened.await??;
        let (sender, mut receiver) = mpsc::channel(8);
        // Connections to the storage belong to the process-wide runtime.
        app.spawn(async move {
            while let Some(chunk) = bytes.next().await {
                if let Err(fault) = &chunk {
                    tracing::warn!(%fault, "media: a file could not be read to its end");
                }
                if sender.send(chunk).await.is_err() {
                    return;
                }
            }
        });
        Ok(response.body(SizedStream::new(length, stream::poll_fn(move |context| receiver.poll_recv(context)))))
    }
}

/// The bytes that a `Range` header asks for: `None` when it is to be ignored, `Some(None)` when there are none of them.
fn asked_range(range: &str, size: u64) -> Option<Option<Range<u64>>> {
    let (first, last) = range.trim().strip_prefix("bytes=")?.trim().split_once('-')?;
    let number =
        |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse::<u64>().ok()).flatten();
    let part = if first.is_empty() {
        size.saturating_sub(number(last)?)..size
    } else {
        let first = number(first)?;
        let end =
            if last.is_empty() { size } else { number(last)?.checked_add(1).filter(|end| *end > first)?.min(size) };
        first..end
    };
    Some((part.start < part.end).then_some(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_http_says() {
        for (range, expected) in [
            ("bytes=0-0", Some(Some(0..1))),
            ("bytes=2-", Some(Some(2..10))),
            ("bytes=2-100", Some(Some(2..10))),
            ("bytes=-3", Some(Some(7..10))),
            ("bytes=-30", Some(Some(0..10))),
            ("bytes=10-", Some(None)),
            ("bytes=-0", Some(None)),
            ("bytes=5-4", None),
            ("bytes=0-1,3-4", None),
            ("bytes=+1-2", None),
            ("bytes=a-b", None),
            ("bytes=99999999999999999999-", None),
            ("bytes=0-18446744073709551615", None),
            ("items=0-1", None),
            ("", None),
        ] {
            assert_eq!(asked_range(range, 10), expected, "{range}");
        }
    }
}
