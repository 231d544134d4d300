//! `/v1/sessions/{id}/contacts/{phone}`: is a number on WhatsApp?

use actix_web::HttpResponse;
use actix_web::web::{self, ServiceConfig};
use serde::Serialize;
use utoipa::{OpenApi, ToSchema};

use super::{Caller, Code, FieldError, Path, Problem, ProblemBody};
use crate::app::App;
use crate::domain::ids::{SessionId, TenantId};
use crate::domain::recipient::ChatId;
use crate::identity::scope::Scope;
use crate::sessions::numbers::{self, Registration};
use crate::waha::CallError;

pub(super) fn routes(cfg: &mut ServiceConfig) {
    cfg.service(web::resource("/sessions/{id}/contacts/{phone}").route(web::get().to(check)));
}

#[derive(OpenApi)]
#[openapi(paths(check), components(schemas(NumberCheck)))]
struct Api;

pub(super) fn openapi() -> utoipa::openapi::OpenApi {
    Api::openapi()
}

/// What WhatsApp knows about a number.
#[derive(Serialize, ToSchema)]
#[schema(example = json!({"exists": true, "chat_id": "15550100001@c.us"}))]
struct NumberCheck {
    /// Whether the number is on WhatsApp.
    exists: bool,
    /// The chat to write to, if it is. It may differ from the number (Brazil's ninth digit).
    #[serde(skip_serializing_if = "Option::is_none")]
    chat_id: Option<String>,
}

/// Check a number
///
/// Whether `phone`, in E.164 with or without `+`, is on WhatsApp. The answer is kept, for three weeks if it is and for six
/// hours if it is not, since WhatsApp limits how often this may be asked. 409 unless the session works.
#[utoipa::path(get, path = "/v1/sessions/{id}/contacts/{phone}", tag = "Sessions", operation_id = "check_number",
    params(("id" = SessionId, Path, description = "The session to ask by"),
           ("phone" = String, Path, description = "The number in E.164", example = "+15550100001")),
    responses((status = 200, description = "What WhatsApp knows", body = NumberCheck),
              (status = 409, description = "The session does not work", body = ProblemBody<'_>, content_type = "application/problem+json"),
              (status = 422, description = "Not a phone number", body = ProblemBody<'_>, content_type = "application/problem+json"),
              (status = 503, description = "WAHA does not answer", body = ProblemBody<'_>, content_type = "application/problem+json")))]
async fn check(app: web::Data<App>, caller: Caller, path: Path<(SessionId, String)>) -> Result<HttpResponse, Problem> {
    let tenant = caller.tenant(Scope::SessionsRead)?;
    let parts = App::clone(&app);
    let (id, phone) = path.0;
    let registration = app.detached(async move { look_up(&parts, tenant, id, &phone).await }).await??;
    Ok(HttpResponse::Ok().json(match registration {
        Registration::Registered(chat) => NumberCheck { exists: true, chat_id: Some(chat) },
        Registration::NotRegistered => NumberCheck { exists: false, chat_id: None },
    }))
}

async fn look_up(app: &App, tenant: TenantId, id: SessionId, phone: &str) -> Result<Registration, Problem> {
    let session = app.directory.session(tenant, id).await?.ok_or_else(Problem::not_found)?;
    let invalid = |message: String| {
        Problem::validation(vec![FieldError { field: "phone".to_owned(), code: "invalid".to_owned(), message }])
    };
    let chat = ChatId::parse(phone).map_err(|fault| invalid(fault.to_string()))?;
    let phone = chat.phone().ok_or_else(|| invalid("must be a phone number in E.164".to_owned()))?;
    if let Some(known) = numbers::known(app, tenant, &phone).await? {
        return Ok(known);
    }
    let server = app.directory.server(session.server).await?.ok_or_else(Problem::not_found)?;
    numbers::ask(app, &session, &server, &phone).await.map_err(|fault| match fault {
        CallError::State { .. } | CallError::NotFound => {
            Problem::conflict("The session does not work; numbers can be checked only while it is working")
        }
        CallError::Throttled => Problem::new(Code::Unavailable, "WhatsApp asks to check fewer numbers").retry_after(60),
        CallError::Unauthorized | CallError::Rule(_) | CallError::Unsupported(_) => {
            tracing::error!(%fault, "a number check was refused");
            Problem::new(Code::Unavailable, "The WAHA server of this session refuses to check numbers").retry_after(30)
        }
        _ => Problem::new(Code::Unavailable, "The WAHA server of this session does not answer").retry_after(5),
    })
}
