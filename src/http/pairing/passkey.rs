//! `/v1/sessions/{id}/passkey`: WhatsApp asks for the account's passkey, and the tenant answers.

use actix_web::HttpResponse;
use actix_web::web::{self, ServiceConfig};
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::{OpenApi, ToSchema};

use super::secret;
use crate::app::App;
use crate::domain::ids::{SessionId, TenantId};
use crate::http::{Body, Caller, Path, Problem, ProblemBody, Rules};
use crate::identity::scope::Scope;
use crate::sessions::passkey::{self, Asked};
use crate::sessions::queries;
use crate::sessions::view::Session;

/// Bytes of JSON of an assertion, at the most.
const MOST_JSON: usize = 16 * 1024;

pub(super) fn routes(cfg: &mut ServiceConfig) {
    cfg.service(web::resource("/sessions/{id}/passkey").route(web::get().to(asked)).route(web::post().to(submit)))
        .service(web::resource("/sessions/{id}/passkey/confirm").route(web::post().to(confirm)));
}

#[derive(OpenApi)]
#[openapi(paths(asked, submit, confirm))]
struct Api;

pub(super) fn openapi() -> utoipa::openapi::OpenApi {
    Api::openapi()
}

/// What WhatsApp asks for.
#[derive(Serialize, ToSchema)]
#[schema(example = json!({"step": "passkey", "challenge": {"challenge": "q83vEjRW…", "timeout": 60000, "rpId": "web.whatsapp.com",
    "allowCredentials": [{"id": "AbCd…", "type": "public-key"}], "userVerification": "required"}}))]
struct PasskeyRequest {
    /// `passkey` or `passkey_confirmation`.
    step: &'static str,
    /// With the step `passkey`: the options for `navigator.credentials.get({publicKey: …})`, as WhatsApp gives them.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    challenge: Option<Map<String, Value>>,
    /// With the step `passkey_confirmation`: what the phone must show as well.
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<String>,
}

/// Look at the passkey request
///
/// Some accounts are paired with a passkey after the scan: `pairing.step` of the session is `passkey` then. The passkey belongs to
/// the origin `https://web.whatsapp.com`, so it has to be used there, as a browser extension can; hand in the credential's
/// `toJSON()`. Now and then WhatsApp wants a confirmation after that (`passkey_confirmation`): compare the `code` with the one on
/// the phone and confirm. 409 at any other step.
#[utoipa::path(get, path = "/v1/sessions/{id}/passkey", tag = "Sessions", operation_id = "get_session_passkey",
    params(("id" = SessionId, Path, description = "The session")),
    responses((status = 200, description = "What is asked for", body = PasskeyRequest),
        (status = 409, description = "No passkey is asked for", body = ProblemBody<'_>, content_type = "application/problem+json")))]
async fn asked(app: web::Data<App>, caller: Caller, id: Path<SessionId>) -> Result<HttpResponse, Problem> {
    let tenant = caller.tenant(Scope::SessionsRead)?;
    let parts = App::clone(&app);
    let asked = app.detached(async move { passkey::asked(&parts, tenant, id.0).await }).await??;
    Ok(secret().json(match asked {
        Asked::Assertion(challenge) => PasskeyRequest { step: "passkey", challenge: Some(challenge), code: None },
        Asked::Confirmation(code) => PasskeyRequest {
            step: "passkey_confirmation",
            challenge: None,
            code: Some(code.expose_secret().to_owned()),
        },
    }))
}

/// An assertion by a passkey.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"credential": {"id": "AbCd…", "rawId": "AbCd…", "type": "public-key", "response": {
    "clientDataJSON": "eyJ0…", "authenticatorData": "SZYN…", "signature": "MEUC…"}}}))]
struct PasskeyAnswer {
    /// The credential, as its `toJSON()` gives it: at most 16 KiB. It is passed on as it is.
    #[schema(value_type = Object)]
    credential: Map<String, Value>,
}

/// Answer the passkey request
///
/// The answer says that WhatsApp has the assertion; follow the session to `working` or to `passkey_confirmation`. 409 unless
/// `pairing.step` is `passkey`, or where WhatsApp refuses the assertion.
#[utoipa::path(post, path = "/v1/sessions/{id}/passkey", tag = "Sessions", operation_id = "submit_session_passkey",
    params(("id" = SessionId, Path, description = "The session")), request_body = PasskeyAnswer,
    responses((status = 202, description = "It was passed on", body = Session<'_>)))]
async fn submit(
    app: web::Data<App>,
    caller: Caller,
    id: Path<SessionId>,
    body: Body<PasskeyAnswer>,
) -> Result<HttpResponse, Problem> {
    let tenant = caller.tenant(Scope::SessionsWrite)?;
    let credential = body.into_inner().credential;
    let mut rules = Rules::new();
    rules.object("credential", &Value::Object(credential.clone()), MOST_JSON);
    for member in ["id", "response"] {
        rules.check(credential.contains_key(member), &format!("credential.{member}"), "required", "is required");
    }
    rules.finish()?;
    let parts = App::clone(&app);
    app.detached(async move { passkey::submit(&parts, tenant, id.0, &credential).await }).await??;
    accepted(&app, tenant, id.0).await
}

/// Confirm the passkey's code
///
/// Says that the code is the one on the phone. 409 unless `pairing.step` is `passkey_confirmation`.
#[utoipa::path(post, path = "/v1/sessions/{id}/passkey/confirm", tag = "Sessions", operation_id = "confirm_session_passkey",
    params(("id" = SessionId, Path, description = "The session")),
    responses((status = 202, description = "It was passed on", body = Session<'_>)))]
async fn confirm(app: web::Data<App>, caller: Caller, id: Path<SessionId>) -> Result<HttpResponse, Problem> {
    let tenant = caller.tenant(Scope::SessionsWrite)?;
    let parts = App::clone(&app);
    app.detached(async move { passkey::confirm(&parts, tenant, id.0).await }).await??;
    accepted(&app, tenant, id.0).await
}

async fn accepted(app: &App, tenant: TenantId, id: SessionId) -> Result<HttpResponse, Problem> {
    let parts = app.clone();
    let row = app
        .detached(async move { parts.db.tenant(tenant, async move |conn| queries::find(conn, id).await).await })
        .await??
        .ok_or_else(Problem::not_found)?;
    Ok(HttpResponse::Accepted().json(Session::from(&row)))
}
