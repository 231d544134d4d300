//! `/v1/alarms`: for platform keys.

use actix_web::Responder;
use actix_web::web::{self, ServiceConfig};
use utoipa::OpenApi;

use super::{Caller, Cursor, List, Page, PageParams, Problem};
use crate::app::App;
use crate::sessions::liveness::alarm::{self, Alarm};

pub(super) fn routes(cfg: &mut ServiceConfig) {
    cfg.service(web::resource("/alarms").route(web::get().to(list)));
}

#[derive(OpenApi)]
#[openapi(paths(list))]
struct Api;

pub(super) fn openapi() -> utoipa::openapi::OpenApi {
    Api::openapi()
}

/// List alarms
///
/// What an operator has to know of, newest first; one whose `ended_at` is null lasts.
#[utoipa::path(get, path = "/v1/alarms", tag = "Alarms", operation_id = "list_alarms",
    params(PageParams), responses((status = 200, description = "A page of alarms", body = List<Alarm>)))]
async fn list(app: web::Data<App>, caller: Caller, page: Page) -> Result<impl Responder, Problem> {
    caller.platform()?;
    let parts = App::clone(&app);
    let rows = app
        .detached(async move {
            let after = page.after.map(|after| (after.at, after.id));
            parts.db.system(async move |conn| alarm::list(conn, after, page.fetch()).await).await
        })
        .await??;
    Ok(web::Json(page.answer(rows, |alarm| Cursor { at: alarm.since, id: alarm.id.0 })))
}
