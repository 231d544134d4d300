//! `DELETE /v1/contacts/{id}` and `/v1/erasures`: erasing a person, and the receipts of it.

use actix_web::http::header;
use actix_web::web::{self, ServiceConfig};
use actix_web::{HttpResponse, guard};
use utoipa::OpenApi;

use super::{Caller, Cursor, List, Page, PageParams, Path, Problem};
use crate::app::App;
use crate::domain::ids::{ContactId, ErasureId};
use crate::identity::scope::Scope;
use crate::retention::erasure::{self, Erasure};

const COLLECTION: &str = "/v1/erasures";

pub(super) fn routes(cfg: &mut ServiceConfig) {
    // The other methods of the same path are the contacts' own.
    cfg.service(web::resource("/contacts/{id}").guard(guard::Delete()).route(web::delete().to(erase)))
        .service(web::resource("/erasures").route(web::get().to(list)))
        .service(web::resource("/erasures/{id}").route(web::get().to(one)));
}

#[derive(OpenApi)]
#[openapi(paths(erase, list, one))]
struct Api;

pub(super) fn openapi() -> utoipa::openapi::OpenApi {
    Api::openapi()
}

/// Erase a contact
///
/// Everything of the person from before this request goes, in all sessions: texts, files and raw payloads of the messages with
/// them, edits, reactions and votes, numbers and ids, what events and kept answers tell of them, their place in groups, and
/// the contact itself with everything merged into it. Messages that wait to be sent to them are cancelled; one that is being
/// sent right now is emptied when its outcome is known. The messages stay as rows without content, with `erased:…` as their
/// chat. It cannot be undone. What comes later belongs to a new contact.
///
/// It takes a while; the answer is a receipt that stays, and says `done` once nothing is left. Asked again, the same receipt
/// is the answer.
#[utoipa::path(delete, path = "/v1/contacts/{id}", tag = "Contacts", operation_id = "erase_contact",
    params(("id" = ContactId, Path, description = "The contact")),
    responses((status = 202, description = "Being erased", body = Erasure,
        headers(("Location" = String, description = "The receipt's path")))))]
async fn erase(app: web::Data<App>, caller: Caller, id: Path<ContactId>) -> Result<HttpResponse, Problem> {
    let tenant = caller.tenant(Scope::MessagesWrite)?;
    let (parts, by) = (App::clone(&app), caller.actor().to_string());
    let receipt = app
        .detached(async move {
            let (now, chance) = (parts.clock.now(), &parts.chance);
            parts.db.tenant(tenant, async |conn| erasure::begin(conn, chance, now, id.0, &by).await).await
        })
        .await??
        .ok_or_else(Problem::not_found)?;
    let place = format!("{COLLECTION}/{}", receipt.id);
    Ok(HttpResponse::Accepted().insert_header((header::LOCATION, place)).json(receipt))
}

/// List erasures
///
/// The receipts, newest first.
#[utoipa::path(get, path = "/v1/erasures", tag = "Contacts", operation_id = "list_erasures", params(PageParams),
    responses((status = 200, description = "A page of receipts", body = List<Erasure>)))]
async fn list(app: web::Data<App>, caller: Caller, page: Page) -> Result<HttpResponse, Problem> {
    let tenant = caller.tenant(Scope::MessagesRead)?;
    let parts = App::clone(&app);
    let after = page.after.map(|cursor| (cursor.at, cursor.id));
    let rows = app
        .detached(
            async move { parts.db.tenant(tenant, async |conn| erasure::list(conn, after, page.fetch()).await).await },
        )
        .await??;
    Ok(HttpResponse::Ok().json(page.answer(rows, |row| Cursor { at: row.created_at, id: row.id.0 })))
}

/// Look at an erasure
///
/// Its receipt as it is now.
#[utoipa::path(get, path = "/v1/erasures/{id}", tag = "Contacts", operation_id = "get_erasure",
    params(("id" = ErasureId, Path, description = "The receipt's id")),
    responses((status = 200, description = "The receipt", body = Erasure)))]
async fn one(app: web::Data<App>, caller: Caller, id: Path<ErasureId>) -> Result<HttpResponse, Problem> {
    let tenant = caller.tenant(Scope::MessagesRead)?;
    let parts = App::clone(&app);
    let receipt = app
        .detached(async move { parts.db.tenant(tenant, async |conn| erasure::find(conn, id.0).await).await })
        .await??
        .ok_or_else(Problem::not_found)?;
    Ok(HttpResponse::Ok().json(receipt))
}
