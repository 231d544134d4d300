//! `/v1/media`: files to be sent, uploaded once and named by their id; and `/media/{token}`, where WAHA fetches them and
//! browsers see those that came in.

use std::time::Duration;

use actix_multipart::{Field, Multipart, MultipartError};
use actix_web::http::StatusCode;
use actix_web::http::header::{self, ContentDisposition};
use actix_web::web::{self, Payload, ServiceConfig};
use actix_web::{HttpMessage, HttpRequest, HttpResponse};
use futures_util::StreamExt;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio::time::Instant;
use utoipa::{OpenApi, ToSchema};

use super::file_answer::{FileAnswer, WhichFile};
use super::{
    Caller, Code, Created, Cursor, IdempotencyHeader, List, MaybeIdempotencyKey, Once, Page, PageParams, Path, Problem,
    Query, Rules, once_tenant,
};
use crate::app::App;
use crate::domain::ids::{MediaId, TenantId};
use crate::identity::scope::Scope;
use crate::media::link::Reader;
use crate::media::{self, Declared, MOST_BYTES, Media, MediaError, Piece, StorageError};

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

/// `media` of a tenant's settings.
pub(super) fn check_settings(rules: &mut Rules, settings: &Value) {
    let Some(media) = settings.get("media") else { return };
    let fits = |most: &Value| most.as_u64().is_some_and(|most| most <= MOST_BYTES as u64);
    match media.as_object() {
        None => rules.broken("settings.media", "invalid_type", "must be an object"),
        Some(media) => {
            let message = "must be a whole number of bytes, at most 67108864";
            rules.check(media.get("max_bytes").is_none_or(fits), "settings.media.max_bytes", "out_of_range", message);
        }
    }
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
    FileAnswer::own(media).serve(&app, &request).await
}

/// Fetch a file of a message
///
/// For WAHA servers: the address is made when a message leaves and is good for a quarter of an hour. For browsers:
/// `POST /v1/messages/{id}/media/link` makes it. The address is the credential.
#[utoipa::path(get, path = "/media/{token}", tag = "From WAHA", operation_id = "fetch_media", security(()),
    params(("token" = String, Path, description = "Names the file, until when, and that this gateway made it"), WhichFile),
    responses((status = 200, description = "The bytes", body = Vec<u8>, content_type = "*/*"),
              (status = 206, description = "The bytes of the range", body = Vec<u8>, content_type = "*/*"),
              (status = 404, description = "No such file, or the address has expired"),
              (status = 416, description = "The file has no such bytes")))]
async fn linked(
    app: web::Data<App>,
    token: Path<String>,
    which: Query<WhichFile>,
    request: HttpRequest,
) -> Result<HttpResponse, Problem> {
    let (reader, tenant, id) = app.media.linked(&token.0, app.clock.now()).ok_or_else(Problem::not_found)?;
    let media = found(&app, tenant, id).await?;
    let file = match reader {
        Reader::Waha => FileAnswer::own(media),
        Reader::Browser => FileAnswer::received(media, which.0.thumbnail)?,
    };
    file.serve(&app, &request).await
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
