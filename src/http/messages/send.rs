//! `POST /v1/messages`.

use actix_web::http::header;
use actix_web::{HttpResponse, web};

use super::prepare::{Known, draft, drop_file, no_such_session};
use super::request::{Bounds, SendMessage};
use crate::app::App;
use crate::domain::ids::TenantId;
use crate::guard::Guard;
use crate::http::problem::{Code, Problem};
use crate::http::{Body, Caller, MaybeIdempotencyKey};
use crate::identity::scope::Scope;
use crate::messages::accept::{self, AcceptError, Accepted, CREATE, KeyUse};
use crate::messages::view::Message;
use crate::sessions::directory::DirectoryError;

/// Send a message
///
/// The message is kept before the answer is given: whatever happens afterwards, it is sent once, in the order of acceptance
/// within its session and priority, and ends in exactly one final state. Repeat a request whose answer you did not get with
/// the same `Idempotency-Key`; give messages a `client_reference` to be safe from repeats for good.
#[utoipa::path(post, path = "/v1/messages", tag = "Messages", operation_id = "send_message", request_body = SendMessage,
    params(("Idempotency-Key" = Option<String>, Header, description = "1 to 255 visible ASCII characters; kept for 24 hours")),
    responses(
        (status = 202, description = "Accepted and kept", body = Message<'_>,
         headers(("Location" = String, description = "Where the message can be looked at"),
                 ("Idempotency-Replayed" = String, description = "`true` when this is the first answer again"))),
    ))]
pub(in crate::http) async fn send(
    app: web::Data<App>,
    caller: Caller,
    key: MaybeIdempotencyKey,
    request: Body<SendMessage>,
) -> Result<HttpResponse, Problem> {
    let tenant = caller.tenant(Scope::MessagesWrite)?;
    let idempotency =
        key.0.map(|key| KeyUse { operation: CREATE, key: key.0, fingerprint: request.fingerprint(CREATE) });
    let repeat = idempotency.clone();
    let accepted = accept_one(&app, tenant, request.into_inner(), idempotency).await;
    answer(&app, tenant, repeat, accepted).await
}

/// The answer to a request for one message that carried the key `repeat`. A repeat gets the first answer even if the same
/// request would be refused by now: since its session was deleted or is not the only one any more, its time has passed, or what
/// it forwards is gone.
pub(super) async fn answer(
    app: &App,
    tenant: TenantId,
    repeat: Option<KeyUse>,
    accepted: Result<Accepted, Problem>,
) -> Result<HttpResponse, Problem> {
    let problem = match accepted {
        Ok(accepted) => {
            metrics::counter!("switchboard_messages_accepted_total").increment(u64::from(!accepted.replayed));
            return Ok(render(accepted));
        }
        Err(problem) => problem,
    };
    let refused = problem.code().status().is_client_error() && problem.code() != Code::IdempotencyKeyReused;
    let Some(used) = repeat.filter(|_| refused) else { return Err(problem) };
    let parts = app.clone();
    match app.detached(async move { accept::first_answer(&parts.db, tenant, &used).await }).await? {
        Ok(Some(first)) => Ok(render(first)),
        Ok(None) | Err(AcceptError::KeyReused) => Err(problem),
        Err(fault) => Err(fault.into()),
    }
}

async fn accept_one(
    app: &App,
    tenant: TenantId,
    request: SendMessage,
    idempotency: Option<KeyUse>,
) -> Result<Accepted, Problem> {
    let valid = request.check(bounds(app))?;
    let known = Known::of(app, tenant, std::iter::once(&valid)).await?;
    let inline = valid.upload.is_some();
    let mut draft = draft(app, tenant, valid, &known).await?;
    draft.idempotency = idempotency;
    let file = draft.content.media.as_ref().and_then(|media| media.id).filter(|_| inline);
    let accepted = app.acceptor.accept(app, draft).await;
    let unused = match &accepted {
        Ok(accepted) => accepted.replayed,
        Err(fault) => {
            matches!(fault, AcceptError::NoSuchSession | AcceptError::ReferenceTaken(_) | AcceptError::KeyReused)
        }
    };
    if let Some(file) = file.filter(|_| unused) {
        drop_file(app, tenant, file).await;
    }
    Ok(accepted?)
}

/// What requests are checked against now.
pub(super) fn bounds(app: &App) -> Bounds {
    Bounds { now: app.clock.now(), guard: Guard::new(app.config.allow_private_targets) }
}

fn render(accepted: Accepted) -> HttpResponse {
    let mut response = HttpResponse::Accepted();
    response
        .content_type("application/json")
        .insert_header((header::LOCATION, format!("/v1/messages/{}", accepted.id)));
    if accepted.replayed {
        response.insert_header(("Idempotency-Replayed", "true"));
    }
    response.body(accepted.json)
}

impl From<AcceptError> for Problem {
    fn from(fault: AcceptError) -> Self {
        match fault {
            AcceptError::NoSuchSession => no_such_session(),
            AcceptError::ReferenceTaken(by) => {
                let by = by.map(|id| format!(": {id}")).unwrap_or_default();
                Self::conflict(format!("A message with this client_reference exists already{by}")).field(
                    "client_reference",
                    "taken",
                    "must be unique among all of your messages",
                )
            }
            AcceptError::KeyReused => {
                Self::new(Code::IdempotencyKeyReused, "This Idempotency-Key came with another body before")
            }
            AcceptError::NotWritten(fault) => fault.into(),
            AcceptError::Database(fault) => fault.into(),
            AcceptError::Stopping(fault) => fault.into(),
        }
    }
}

impl From<DirectoryError> for Problem {
    fn from(fault: DirectoryError) -> Self {
        match fault {
            DirectoryError::Database(fault) => fault.into(),
            DirectoryError::Sealed(_) | DirectoryError::Unreadable(_) => {
                tracing::error!(%fault, "the directory cannot be read");
                Self::new(Code::Internal, "The request failed; its id finds it in the log")
            }
        }
    }
}
