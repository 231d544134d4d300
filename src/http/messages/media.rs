//! `/v1/messages/{id}/media`: the file of a message, whichever way it went.

use actix_web::http::header;
use actix_web::web::{self, ServiceConfig};
use actix_web::{HttpRequest, HttpResponse};
use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::app::App;
use crate::domain::content::MediaStatus;
use crate::domain::ids::{MessageId, TenantId};
use crate::http::file_answer::{FileAnswer, WhichFile};
use crate::http::problem::{Code, Problem, ProblemBody};
use crate::http::{Caller, MaybeBody, Path, Query};
use crate::identity::scope::Scope;
use crate::media::arrivals::{self, AnotherTry};
use crate::media::{self, Media};
use crate::messages::queries;
use crate::messages::view::Message;

/// How long a link can be used, in seconds: unless said otherwise, at the least, at the most.
const LINK_DEFAULT: i64 = 900;
const LINK_LEAST: i64 = 10;
const LINK_MOST: i64 = 86_400;
/// When to look again for a file that is on its way, in seconds.
const LOOK_AGAIN: u32 = 5;

pub(super) fn routes(cfg: &mut ServiceConfig) {
    cfg.service(web::resource("/messages/{id}/media").route(web::get().to(content)).route(web::head().to(content)))
        .service(web::resource("/messages/{id}/media/link").route(web::post().to(link)))
        .service(web::resource("/messages/{id}/media/retry").route(web::post().to(retry)));
}

/// The stored file of a message.
async fn stored(app: &App, tenant: TenantId, id: MessageId) -> Result<Media, Problem> {
    let parts = app.clone();
    let found = app.detached(async move {
        parts
            .db
            .tenant(tenant, async |conn| {
                let row = queries::find(conn, id).await?.ok_or_else(Problem::not_found)?;
                let said = row.content().media.ok_or_else(Problem::not_found)?;
                match (said.status, said.id) {
                    (Some(MediaStatus::Pending), _) => {
                        Err(Problem::conflict("The file is being fetched from WhatsApp").retry_after(LOOK_AGAIN))
                    }
                    (Some(MediaStatus::Failed), _) => {
                        Err(Problem::new(Code::Gone, "The file could not be fetched; `media.error` says why"))
                    }
                    (Some(MediaStatus::Expired), _) => {
                        Err(Problem::new(Code::Gone, "WhatsApp does not have the file any more"))
                    }
                    (_, Some(file)) => {
                        let file = media::find(conn, file).await?;
                        file.ok_or_else(|| Problem::new(Code::Gone, "The file was deleted"))
                    }
                    (_, None) => Err(Problem::conflict("The file is fetched when the message leaves")),
                }
            })
            .await
    });
    found.await?
}

/// Download the file of a message
///
/// Its bytes, or those of one `Range`. A file that came in is a stranger's: it is served as what its bytes are if that is a common picture, sound,
/// video or PDF, and as `application/octet-stream` otherwise. 409 with `Retry-After` while it is being fetched; 410 when it is not to be had.
#[utoipa::path(get, path = "/v1/messages/{id}/media", tag = "Messages", operation_id = "get_message_media",
    params(("id" = MessageId, Path, description = "The message's id"), WhichFile,
           ("Range" = Option<String>, Header, description = "One range of bytes, such as `bytes=0-1023`")),
    responses((status = 200, description = "The bytes", body = Vec<u8>, content_type = "*/*"),
              (status = 206, description = "The bytes of the range", body = Vec<u8>, content_type = "*/*"),
              (status = 304, description = "The bytes are those of `If-None-Match`"),
              (status = 409, description = "The file is on its way", body = ProblemBody<'_>, content_type = "application/problem+json"),
              (status = 410, description = "The file is not to be had, or not any more", body = ProblemBody<'_>, content_type = "application/problem+json"),
              (status = 416, description = "The file has no such bytes", body = ProblemBody<'_>, content_type = "application/problem+json")))]
pub(in crate::http) async fn content(
    app: web::Data<App>,
    caller: Caller,
    id: Path<MessageId>,
    which: Query<WhichFile>,
    request: HttpRequest,
) -> Result<HttpResponse, Problem> {
    let tenant = caller.tenant(Scope::MessagesRead)?;
    let media = stored(&app, tenant, id.0).await?;
    FileAnswer::received(media, which.0.thumbnail)?.serve(&app, &request).await
}

/// How long the link can be used.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = MediaLinkRequest, example = json!({"expires_in": 900}))]
pub(super) struct LinkRequest {
    /// For so many seconds: 10 to 86400, default 900.
    #[schema(minimum = 10, maximum = 86_400, default = 900)]
    expires_in: Option<i64>,
}

/// A link to a file.
#[derive(Serialize, ToSchema)]
#[schema(as = MediaLink, example = json!({"url": "https://gateway.example/media/AZlPPm1P…", "expires_at": "2026-11-21T09:45:00Z"}))]
pub(super) struct Link {
    /// Where the file is; with `?thumbnail=true` its small picture. Whoever has the address can see it.
    url: String,
    /// Until when.
    expires_at: DateTime<Utc>,
}

/// Make a link to the file of a message
///
/// For browsers, which have no credentials: an address that shows this one file for a while. 409 and 410 as for the file itself.
#[utoipa::path(post, path = "/v1/messages/{id}/media/link", tag = "Messages", operation_id = "create_message_media_link",
    params(("id" = MessageId, Path, description = "The message's id")),
    request_body(content = Option<LinkRequest>, example = json!({"expires_in": 900})),
    responses((status = 200, description = "The link", body = Link),
              (status = 410, description = "The file is not to be had, or not any more", body = ProblemBody<'_>, content_type = "application/problem+json")))]
pub(in crate::http) async fn link(
    app: web::Data<App>,
    caller: Caller,
    id: Path<MessageId>,
    request: MaybeBody<LinkRequest>,
) -> Result<HttpResponse, Problem> {
    let tenant = caller.tenant(Scope::MessagesRead)?;
    let seconds = request.0.into_inner().expires_in.unwrap_or(LINK_DEFAULT);
    if !(LINK_LEAST..=LINK_MOST).contains(&seconds) {
        return Err(Problem::invalid("expires_in", "out_of_range", "must be from 10 to 86400"));
    }
    let media = stored(&app, tenant, id.0).await?;
    // The link says whole seconds.
    let now = app.clock.now();
    let expires_at = DateTime::from_timestamp(now.timestamp(), 0).unwrap_or(now) + TimeDelta::seconds(seconds);
    let url = app.media.browser_link(tenant, media.id, expires_at);
    Ok(HttpResponse::Ok().insert_header((header::CACHE_CONTROL, "no-store")).json(Link { url: url.into(), expires_at }))
}

/// Fetch the file of a message once more
///
/// For one that came in and whose `media.status` is `failed` or `expired`; 409 otherwise. A `message.media` event tells how it went.
#[utoipa::path(post, path = "/v1/messages/{id}/media/retry", tag = "Messages", operation_id = "retry_message_media",
    params(("id" = MessageId, Path, description = "The message's id")),
    responses((status = 202, description = "It is being fetched again", body = Message<'_>),
              (status = 409, description = "There is nothing to fetch again", body = ProblemBody<'_>, content_type = "application/problem+json")))]
pub(in crate::http) async fn retry(
    app: web::Data<App>,
    caller: Caller,
    id: Path<MessageId>,
) -> Result<HttpResponse, Problem> {
    let tenant = caller.tenant(Scope::MessagesWrite)?;
    let parts = App::clone(&app);
    let done = app.detached(async move { arrivals::retry(&parts, tenant, id.0).await }).await??;
    match done {
        AnotherTry::Begun(row) => Ok(HttpResponse::Accepted().json(Message::from(&*row))),
        AnotherTry::NotNow(row) => {
            let status =
                row.content().media.and_then(|media| media.status).map_or("not one that came in", MediaStatus::as_str);
            Err(Problem::conflict(format!("The file is {status}; only one that failed or expired is fetched again")))
        }
        AnotherTry::NotFound => Err(Problem::not_found()),
    }
}
