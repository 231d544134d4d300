//! `/v1/media`: files to be sent, uploaded once and named by their id; and `/media/{token}`, where WAHA fetches them.

use std::ops::Range;
use std::time::Duration;

use actix_multipart::{Field, Multipart, MultipartError};
use actix_web::body::SizedStream;
use actix_web::http::header::{self, ContentDisposition, DispositionParam, DispositionType};
use actix_web::http::{Method, StatusCode};
use actix_web::web::{self, Payload, ServiceConfig};
use actix_web::{HttpMessage, HttpRequest, HttpResponse};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio::time::Instant;
use utoipa::{OpenApi, ToSchema};

use super::{
    Caller, Code, Created, Cursor, IdempotencyHeader, List, MaybeIdempotencyKey, Once, Page, PageParams, Path, Problem,
    once_tenant,
};
use crate::app::App;
use crate::domain::ids::{MediaId, TenantId};
use crate::identity::scope::Scope;
use crate::media::{self, Declared, MOST_BYTES, Media, MediaError, Piece, StorageError, kind};

const COLLECTION: &str = "/v1/media";

/// What the form around the file may add to its size.
const FORM: usize = 64 * 1024;
/// How long the next piece of an upload may take, and the whole of it.
const PIECE: Duration = Duration::from_secs(30);
const UPLOAD: Duration = Duration::from_secs(15 * 60);

pub(super) fn routes(cfg: &mut ServiceConfig) {
    cfg.service(web::resource("/media").route(web::post().to(upload)).route(web::get().to(list)))
        .service(web::resource("/media/{id}").route(web::get().to(one)).route(web::delete().to(delete)))
        .service(web::resource("/media/{id}/content").route(web::get().to(content)).route(web::head().to(content)));
}

pub(super) fn link_routes(cfg: &mut ServiceConfig) {
    cfg.service(web::resource("/media/{token}").route(web::get().to(linked)).route(web::head().to(linked)));
}

/// The operations of this file, described.
#[derive(OpenApi)]
#[openapi(paths(upload, list, one, delete, content, linked), components(schemas(Media, Upload)))]
struct Api;

pub(super) fn openapi() -> utoipa::openapi::OpenApi {
    Api::openapi()
}

/// A form with one part.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes a form; `upload` reads it")]
struct Upload {
    /// The file, at most 64 MiB, with its `filename`. What it is, is found out from its bytes; its declared type counts only
    /// where the bytes say nothing.
    #[schema(value_type = String, format = Binary)]
    file: Vec<u8>,
}

/// Upload a file
///
/// Send it by any number of messages, as `media: {"id": …}`. It is stored as it arrives; an upload that breaks off leaves
/// nothing.
#[utoipa::path(post, path = "/v1/media", tag = "Media", operation_id = "upload_media", params(IdempotencyHeader),
    request_body(content = Upload, content_type = "multipart/form-data", example = json!({"file": "(the bytes)"})),
    responses((status = 201, description = "Stored", body = Media)))]
async fn upload(
    app: web::Data<App>,
    caller: Caller,
    key: MaybeIdempotencyKey,
    request: HttpRequest,
    payload: Payload,
) -> Result<HttpResponse, Problem> {
    let tenant = caller.tenant(Scope::MessagesWrite)?;
    if !request.content_type().eq_ignore_ascii_case("multipart/form-data") {
        return Err(Problem::new(
            Code::UnsupportedMediaType,
            "Send the file as multipart/form-data, in the part `file`",
        ));
    }
    let announced = request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    if announced.is_some_and(|length: usize| length > MOST_BYTES + FORM) {
        return Err(MediaError::TooLarge.into());
    }
    let Some(_slot) = app.media.upload_slot(tenant).await else {
        return Err(Problem::new(Code::RateLimited, "Too many files are on their way at once"));
    };
    let deadline = Instant::now() + UPLOAD;
    let mut form = Multipart::new(request.headers(), payload);
    let required = || Problem::invalid("file", "required", "is required");
    let file = part(&mut form, deadline).await?.ok_or_else(required)?;
    if file.name() != Some("file") {
        return Err(no_such_part(&file));
    }
    let declared = Declared {
        mime_type: file.content_type().map(ToString::to_string),
        filename: file.content_disposition().and_then(ContentDisposition::get_filename_ext).map_or_else(
            || file.content_disposition().and_then(ContentDisposition::get_filename).map(str::to_owned),
            |name| String::from_utf8(name.value.clone()).ok(),
        ),
        source_url: None,
    };
    // Read here, since a connection belongs to its worker, and stored on the process-wide runtime.
    let (sender, pieces) = mpsc::channel(8);
    let feeding = feed(form, file, sender, deadline);
    let (fed, stored) = futures_util::join!(feeding, store(&app, tenant, key, declared, pieces));
    fed?;
    Ok(stored?.response(COLLECTION))
}

/// The next part of a form.
async fn part(form: &mut Multipart, deadline: Instant) -> Result<Option<Field>, Problem> {
    let next = tokio::time::timeout_at(deadline.min(Instant::now() + PIECE), form.next());
    next.await.map_err(|_| too_slow())?.transpose().map_err(|fault| broken(&fault))
}

fn too_slow() -> Problem {
    Problem::new(Code::RequestTimeout, "The file took too long to arrive")
}

fn broken(fault: &MultipartError) -> Problem {
    Problem::new(Code::BadRequest, format!("The form cannot be read: {fault}"))
}

fn no_such_part(field: &Field) -> Problem {
    let name = field.name().unwrap_or_default().chars().filter(|c| !c.is_control()).take(100).collect::<String>();
    match name.as_str() {
        "file" => Problem::invalid("file", "duplicate", "is given twice"),
        _ => Problem::invalid(name, "unknown_field", "no such field"),
    }
}

/// Hands on the bytes of `file`, and the end once the whole form has been read.
async fn feed(
    mut form: Multipart,
    mut file: Field,
    sender: mpsc::Sender<Piece>,
    deadline: Instant,
) -> Result<(), Problem> {
    loop {
        let next = tokio::time::timeout_at(deadline.min(Instant::now() + PIECE), file.next());
        match next.await.map_err(|_| too_slow())? {
            Some(Ok(bytes)) => {
                if sender.send(Piece::Bytes(bytes)).await.is_err() {
                    // Whoever stores it has had enough, and says why.
                    return Ok(());
                }
            }
            Some(Err(fault)) => return Err(broken(&fault)),
            None => break,
        }
    }
    drop(file);
    if let Some(another) = part(&mut form, deadline).await? {
        return Err(no_such_part(&another));
    }
    // If nobody listens any more, the other side says why.
    let _heard = sender.send(Piece::End).await;
    Ok(())
}

/// Stores the pieces, and makes the file usable once under its key.
async fn store(
    app: &web::Data<App>,
    tenant: TenantId,
    key: MaybeIdempotencyKey,
    declared: Declared,
    pieces: mpsc::Receiver<Piece>,
) -> Result<Created, Problem> {
    const OPERATION: &str = "media.create";
    let parts = App::clone(app);
    app.detached(async move {
        let app = parts;
        let media = media::receive(&app, tenant, declared, pieces).await?;
        let same = [OPERATION, &media.sha256, &media.mime_type, media.filename.as_deref().unwrap_or_default()];
        let fingerprint = Sha256::digest(same.join("\0")).into();
        let once = Once { operation: OPERATION, key: key.0, fingerprint, secret: false };
        let (now, made) = (app.clock.now(), media.clone());
        let created = once_tenant(&app, tenant, once, async move |conn| {
            if !media::make_ready(conn, tenant, &made, now).await? {
                return Err(Problem::new(Code::Unavailable, "The file could not be kept"));
            }
            Created::new(StatusCode::CREATED, made.id.0, &made)
        })
        .await;
        let unused = match &created {
            Ok(created) => created.replayed,
            Err(problem) => matches!(problem.code(), Code::IdempotencyKeyReused | Code::RequestInProgress),
        };
        // After any other error the commit may have come about: then it stays, else the purge finds it.
        if unused {
            media::take_back(&app, tenant, &media).await;
        }
        created
    })
    .await?
}

/// List files
///
/// Newest first.
#[utoipa::path(get, path = "/v1/media", tag = "Media", operation_id = "list_media", params(PageParams),
    responses((status = 200, description = "A page of files", body = List<Media>)))]
async fn list(app: web::Data<App>, caller: Caller, page: Page) -> Result<HttpResponse, Problem> {
    let tenant = caller.tenant(Scope::MessagesRead)?;
    let parts = App::clone(&app);
    let after = page.after.map(|cursor| (cursor.at, cursor.id));
    let rows = app
        .detached(
            async move { parts.db.tenant(tenant, async |conn| media::list(conn, after, page.fetch()).await).await },
        )
        .await??;
    Ok(HttpResponse::Ok().json(page.answer(rows, |row| Cursor { at: row.created_at, id: row.id.0 })))
}

async fn found(app: &web::Data<App>, tenant: TenantId, id: MediaId) -> Result<Media, Problem> {
    let parts = App::clone(app);
    Ok(app.detached(async move { media::get(&parts, tenant, id).await }).await??)
}

/// Look at a file
///
/// What is known of it; its bytes are at `/v1/media/{id}/content`.
#[utoipa::path(get, path = "/v1/media/{id}", tag = "Media", operation_id = "get_media",
    params(("id" = MediaId, Path, description = "The file's id")),
    responses((status = 200, description = "The file", body = Media)))]
async fn one(app: web::Data<App>, caller: Caller, id: Path<MediaId>) -> Result<HttpResponse, Problem> {
    let tenant = caller.tenant(Scope::MessagesRead)?;
    Ok(HttpResponse::Ok().json(found(&app, tenant, id.0).await?))
}

/// Delete a file
///
/// A message that still waits for it fails with `media_unavailable`. Its bytes are removed an hour later.
#[utoipa::path(delete, path = "/v1/media/{id}", tag = "Media", operation_id = "delete_media",
    params(("id" = MediaId, Path, description = "The file's id")),
    responses((status = 204, description = "Deleted")))]
async fn delete(app: web::Data<App>, caller: Caller, id: Path<MediaId>) -> Result<HttpResponse, Problem> {
    let tenant = caller.tenant(Scope::MessagesWrite)?;
    let parts = App::clone(&app);
    let deleted = app
        .detached(async move {
            let now = parts.clock.now();
            parts.db.tenant(tenant, async |conn| media::delete(conn, id.0, now).await).await
        })
        .await??;
    if deleted { Ok(HttpResponse::NoContent().finish()) } else { Err(Problem::not_found()) }
}

/// Download a file
///
/// Its bytes, or those of one `Range`.
#[utoipa::path(get, path = "/v1/media/{id}/content", tag = "Media", operation_id = "get_media_content",
    params(("id" = MediaId, Path, description = "The file's id"),
           ("Range" = Option<String>, Header, description = "One range of bytes, such as `bytes=0-1023`")),
    responses((status = 200, description = "The bytes", body = Vec<u8>, content_type = "*/*"),
              (status = 206, description = "The bytes of the range", body = Vec<u8>, content_type = "*/*"),
              (status = 416, description = "The file has no such bytes")))]
async fn content(
    app: web::Data<App>,
    caller: Caller,
    id: Path<MediaId>,
    request: HttpRequest,
) -> Result<HttpResponse, Problem> {
    let tenant = caller.tenant(Scope::MessagesRead)?;
    let media = found(&app, tenant, id.0).await?;
    serve(&app, media, &request).await
}

/// Fetch a file of a message
///
/// For WAHA servers: the address is made when a message leaves and is good for a quarter of an hour. It is the credential.
#[utoipa::path(get, path = "/media/{token}", tag = "From WAHA", operation_id = "fetch_media", security(()),
    params(("token" = String, Path, description = "Names the file, until when, and that this gateway made it")),
    responses((status = 200, description = "The bytes", body = Vec<u8>, content_type = "*/*"),
              (status = 206, description = "The bytes of the range", body = Vec<u8>, content_type = "*/*"),
              (status = 404, description = "No such file, or the address has expired"),
              (status = 416, description = "The file has no such bytes")))]
async fn linked(app: web::Data<App>, token: Path<String>, request: HttpRequest) -> Result<HttpResponse, Problem> {
    let (tenant, id) = app.media.linked(&token.0, app.clock.now()).ok_or_else(Problem::not_found)?;
    let media = found(&app, tenant, id).await?;
    serve(&app, media, &request).await
}

/// The bytes of `media`, as the request wants them and as a browser cannot be harmed by them.
async fn serve(app: &web::Data<App>, media: Media, request: &HttpRequest) -> Result<HttpResponse, Problem> {
    let size = u64::try_from(media.size).unwrap_or_default();
    let tag = format!("\"{}\"", media.sha256);
    let text = |name| request.headers().get(name).and_then(|value: &header::HeaderValue| value.to_str().ok());
    let wanted = text(header::RANGE).filter(|_| text(header::IF_RANGE).is_none_or(|other| other == tag));
    let part = match wanted.and_then(|range| asked_range(range, size)) {
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
    let shown = kind::is_shown(&media.mime_type);
    let kind = if kind::is_active(&media.mime_type) { kind::UNKNOWN } else { &media.mime_type };
    let mut parameters = Vec::new();
    if let Some(name) = &media.filename {
        let plain = name.chars().map(|c| if c.is_ascii_graphic() && !"\"\\".contains(c) { c } else { '_' }).collect();
        parameters.push(DispositionParam::Filename(plain));
        parameters.push(DispositionParam::FilenameExt(header::ExtendedValue {
            charset: header::Charset::Ext("UTF-8".to_owned()),
            language_tag: None,
            value: name.clone().into_bytes(),
        }));
    }
    let disposition = if shown { DispositionType::Inline } else { DispositionType::Attachment };
    response
        .content_type(kind)
        .insert_header(ContentDisposition { disposition, parameters })
        .insert_header((header::ETAG, tag))
        .insert_header((header::ACCEPT_RANGES, "bytes"))
        .insert_header((header::CACHE_CONTROL, "private, no-store"))
        .insert_header((header::CONTENT_SECURITY_POLICY, "default-src 'none'; sandbox"));
    let length = part.as_ref().map_or(size, |part| part.end - part.start);
    if request.method() == Method::HEAD {
        return Ok(response.body(SizedStream::new(length, stream::empty::<Result<Bytes, StorageError>>())));
    }
    let parts = App::clone(app);
    let opened = app.detached(async move { parts.media.read(&media, part).await.map_err(MediaError::from) });
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

impl From<MediaError> for Problem {
    fn from(fault: MediaError) -> Self {
        let said = fault.to_string();
        match fault {
            MediaError::NotFound | MediaError::Storage(StorageError::NotFound) => Self::not_found(),
            MediaError::TooLarge => Self::new(Code::PayloadTooLarge, "The file may have at most 64 MiB"),
            MediaError::Empty => Self::invalid("file", "invalid_value", "must not be empty"),
            MediaError::BrokenOff => Self::new(Code::BadRequest, said),
            MediaError::Database(fault) => fault.into(),
            MediaError::Storage(StorageError::Failed(cause)) => {
                tracing::error!(cause, "a file could not be stored or read");
                Self::new(Code::Unavailable, "The storage of files is away; the same request may succeed later")
            }
            MediaError::NotAUrl | MediaError::Refused(_) | MediaError::Answered(_) | MediaError::Redirects => {
                Self::invalid("media.url", "invalid_value", said)
            }
            MediaError::Unavailable(_) | MediaError::Unreachable | MediaError::TimedOut => {
                Self::new(Code::Unavailable, said)
            }
        }
    }
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
