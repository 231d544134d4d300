//! `GET /v1/export`: all of a tenant's data, a line to each row.

use std::io;
use std::time::Duration;

use actix_web::http::header;
use actix_web::web::{self, ServiceConfig};
use actix_web::{HttpRequest, HttpResponse};
use bytes::Bytes;
use futures_util::stream;
use serde::Deserialize;
use tokio::sync::mpsc;
use utoipa::OpenApi;

use super::caller::Credential;
use super::{Caller, Code, Problem, Query};
use crate::app::App;
use crate::domain::ids::TenantId;
use crate::identity::scope::Scope;
use crate::retention::export::{self, Place};

/// How long a client may take to read on.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) fn routes(cfg: &mut ServiceConfig) {
    cfg.service(web::resource("/export").route(web::get().to(read)));
}

#[derive(OpenApi)]
#[openapi(paths(read))]
struct Api;

pub(super) fn openapi() -> utoipa::openapi::OpenApi {
    Api::openapi()
}

/// Where to begin.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ExportParams {
    /// Where to go on: `cursor` of the last line of an export that broke off. From the beginning, if left out.
    after: Option<String>,
}

/// Export all data
///
/// Lines of JSON, one for each row: `{"type": …, "cursor": …, "data": …}`. They come in this order: `tenant`, `session`, `contact`,
/// `conversation`, `message` (as in the API, with what WAHA told of it as `raw_payload` while that is kept), `transition` (the steps
/// of the messages), `event` (those that are kept), `media` (what is known of files; their bytes are at `/v1/media/{id}/content`).
/// Within a kind the order is that of the ids, events are in the order of the log. What comes into being during the export may
/// or may not be in it.
///
/// The last line is `{"type":"end"}`. Without it the export broke off: go on with `after`. Needs the scope `*`.
#[utoipa::path(get, path = "/v1/export", tag = "Tenant", operation_id = "export", params(ExportParams),
    responses((status = 200, description = "The lines", body = String, content_type = "application/x-ndjson",
        example = "{\"type\":\"tenant\",\"cursor\":\"dGVuYW50\",\"data\":{}}\n{\"type\":\"end\"}\n")))]
async fn read(
    app: web::Data<App>,
    caller: Caller,
    params: Query<ExportParams>,
    request: HttpRequest,
) -> Result<HttpResponse, Problem> {
    let tenant = caller.tenant(Scope::All)?;
    let invalid = |_| Problem::invalid("after", "invalid_value", "must be the cursor of a line of an export");
    let place = params.0.after.map_or(Ok(Place::START), |after| after.parse().map_err(invalid))?;
    let Some(slot) = app.streams.take(tenant, Duration::from_millis(100)).await else {
        return Err(Problem::new(Code::RateLimited, "Too many streams are open at once"));
    };
    let credential = Credential::of(&request).ok_or_else(|| Problem::new(Code::Internal, "No credential"))?;
    let (sender, mut receiver) = mpsc::channel(2);
    let parts = App::clone(&app);
    app.spawn(async move {
        write(&parts, tenant, place, &credential, &sender).await;
        drop(slot);
    });
    let body = stream::poll_fn(move |context| receiver.poll_recv(context));
    Ok(HttpResponse::Ok()
        .content_type("application/x-ndjson")
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .streaming(body))
}

/// Writes page by page, until all is written, the client is gone or its key is revoked.
async fn write(
    app: &App,
    tenant: TenantId,
    mut place: Place,
    credential: &Credential,
    out: &mpsc::Sender<Result<Bytes, io::Error>>,
) {
    loop {
        if app.health.is_draining() || !credential.is_valid(app).await {
            return break_off(out).await;
        }
        let from = place.clone();
        let lines = match app.db.tenant(tenant, async |conn| export::read(conn, &from).await).await {
            Ok(lines) => lines,
            Err(fault) => {
                tracing::warn!(%fault, "an export broke off");
                return break_off(out).await;
            }
        };
        let mut text = lines.text;
        if lines.next.is_none() {
            text.push_str("{\"type\":\"end\"}\n");
        }
        if !text.is_empty() && !matches!(tokio::time::timeout(PATIENCE, out.send(Ok(text.into()))).await, Ok(Ok(()))) {
            return;
        }
        let Some(next) = lines.next else { return };
        place = next;
    }
}

/// Ends the answer so that the client sees that it is not whole.
async fn break_off(out: &mpsc::Sender<Result<Bytes, io::Error>>) {
    // A client that is gone has seen it already.
    let _seen = out.send(Err(io::Error::other("the export broke off"))).await;
}
