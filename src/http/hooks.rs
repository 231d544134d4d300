//! `/hooks/waha/{waha_server_id}`: where WAHA servers post what happened.

use actix_web::web::{self, Payload, ServiceConfig};
use actix_web::{HttpRequest, HttpResponse};
use utoipa::OpenApi;

use super::{Code, MOST_BYTES, Path, Problem, read_raw};
use crate::app::App;
use crate::domain::ids::WahaServerId;
use crate::ingest::intake::{self, IntakeError};
use crate::waha::webhook::SIGNATURE_HEADER;

pub(super) fn routes(cfg: &mut ServiceConfig) {
    cfg.service(web::resource("/hooks/waha/{id}").route(web::post().to(receive)));
}

/// The operation of this file, described.
#[derive(OpenApi)]
#[openapi(paths(receive))]
struct Api;

pub(super) fn openapi() -> utoipa::openapi::OpenApi {
    Api::openapi()
}

/// Take an event of WAHA's
///
/// Answered as soon as the raw event is kept. A repeat is welcome and changes nothing.
#[utoipa::path(post, path = "/hooks/waha/{waha_server_id}", tag = "From WAHA", operation_id = "receive_waha_event",
    security(()),
    params(("waha_server_id" = WahaServerId, Path, description = "The WAHA server that posts"),
           ("X-Webhook-Hmac" = String, Header, description = "HMAC-SHA512 of the raw body under the session's key, in hex")),
    request_body(content = serde_json::Value, description = "The event",
                 example = json!({"event": "session.status", "session": "sb_0", "payload": {"status": "WORKING"}})),
    responses((status = 200, description = "Kept"),
              (status = 401, description = "The signature does not fit"),
              (status = 404, description = "No such WAHA server"),
              (status = 413, description = "Larger than 1 MiB"),
              (status = 503, description = "Neither broker nor database can keep it now")))]
async fn receive(
    app: web::Data<App>,
    server: Path<WahaServerId>,
    request: HttpRequest,
    payload: Payload,
) -> Result<HttpResponse, Problem> {
    let body = read_raw(&request, payload.into_inner(), MOST_BYTES).await?;
    let signature =
        request.headers().get(SIGNATURE_HEADER).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let parts = App::clone(&app);
    app.detached(async move { intake::receive(&parts, server.0, &signature, body).await }).await??;
    Ok(HttpResponse::Ok().finish())
}

impl From<IntakeError> for Problem {
    fn from(fault: IntakeError) -> Self {
        match fault {
            IntakeError::UnknownServer => Self::not_found(),
            IntakeError::BadSignature => Self::new(Code::Unauthorized, "The signature does not fit"),
            IntakeError::NotKept => Self::new(Code::Unavailable, "The event cannot be kept now").retry_after(5),
        }
    }
}
