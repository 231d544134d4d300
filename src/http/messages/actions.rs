//! Edit, react, forward, mark as read; and the revocation behind `DELETE`.

use actix_web::{HttpResponse, web};
use serde::Deserialize;
use utoipa::ToSchema;

use super::request::{MOST_TEXT, recipient};
use super::send::answer;
use crate::app::App;
use crate::domain::emoji;
use crate::domain::ids::{MessageId, SessionId, TenantId};
use crate::http::problem::{Code, Problem, ProblemBody};
use crate::http::rules::Rules;
use crate::http::{Body, Caller, MaybeIdempotencyKey, Path};
use crate::identity::scope::Scope;
use crate::messages::accept::{Accepted, Draft, FORWARD, KeyUse};
use crate::messages::actions::{self, Action, Denied};
use crate::messages::row::MessageRow;
use crate::messages::view::Message;
use crate::waha::CallError;

/// Does `action` with the message, and answers the message after it.
pub(super) async fn act(app: &App, tenant: TenantId, id: MessageId, action: Action) -> Result<MessageRow, Problem> {
    let parts = app.clone();
    Ok(app.detached(async move { actions::act(&parts, tenant, id, action).await }).await??)
}

/// A new text.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"body": "Your table is ready at eight."}))]
pub(super) struct EditMessage {
    /// The new text, 1 to 5000 characters; of an image, video or document the new caption, at most 1024.
    #[schema(min_length = 1, max_length = 5000)]
    body: String,
}

/// Edit a message
///
/// Changes the text or caption of a sent message on WhatsApp, which allows it for about 15 minutes. 409 unless the message was sent and its session
/// works; repeat the request after a 503.
#[utoipa::path(patch, path = "/v1/messages/{id}", tag = "Messages", operation_id = "edit_message", request_body = EditMessage,
    params(("id" = MessageId, Path, description = "The message's id")),
    responses((status = 200, description = "It is edited", body = Message<'_>),
              (status = 409, description = "It cannot be edited; `detail` says why", body = ProblemBody<'_>, content_type = "application/problem+json"),
              (status = 503, description = "WAHA does not answer", body = ProblemBody<'_>, content_type = "application/problem+json")))]
pub(in crate::http) async fn edit(
    app: web::Data<App>,
    caller: Caller,
    id: Path<MessageId>,
    request: Body<EditMessage>,
) -> Result<HttpResponse, Problem> {
    let tenant = caller.tenant(Scope::MessagesWrite)?;
    let EditMessage { body } = request.into_inner();
    let mut rules = Rules::new();
    rules.check(!body.is_empty(), "body", "required", "must have 1 to 5000 characters");
    rules.check(body.chars().count() <= MOST_TEXT, "body", "too_long", "must have 1 to 5000 characters");
    rules.finish()?;
    let row = act(&app, tenant, id.0, Action::Edit(body)).await?;
    Ok(HttpResponse::Ok().json(Message::from(&row)))
}

/// A reaction.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"emoji": "👍"}))]
pub(super) struct React {
    /// One emoji of at most 32 bytes; `""` takes the reaction back.
    emoji: String,
}

/// React to a message
///
/// Sets your reaction to a message that was sent or received, in place of an earlier one; an empty `emoji` takes it back. 409 unless the message was
/// sent or received and its session works; repeat the request after a 503.
#[utoipa::path(put, path = "/v1/messages/{id}/reaction", tag = "Messages", operation_id = "react_to_message", request_body = React,
    params(("id" = MessageId, Path, description = "The message's id")),
    responses((status = 200, description = "The reaction is set", body = Message<'_>),
              (status = 409, description = "There can be no reaction; `detail` says why", body = ProblemBody<'_>, content_type = "application/problem+json"),
              (status = 503, description = "WAHA does not answer", body = ProblemBody<'_>, content_type = "application/problem+json")))]
pub(in crate::http) async fn react(
    app: web::Data<App>,
    caller: Caller,
    id: Path<MessageId>,
    request: Body<React>,
) -> Result<HttpResponse, Problem> {
    let tenant = caller.tenant(Scope::MessagesWrite)?;
    let React { emoji } = request.into_inner();
    if !emoji.is_empty() && !emoji::is_one(&emoji) {
        let message = "must be one emoji of at most 32 bytes, or empty";
        return Err(Problem::invalid("emoji", "invalid_value", message));
    }
    let row = act(&app, tenant, id.0, Action::React(emoji)).await?;
    Ok(HttpResponse::Ok().json(Message::from(&row)))
}

/// Mark a message as read
///
/// Lets the sender of a message that you received see that it was read, and sets its `read_at`. 409 unless its session works; repeat the request
/// after a 503.
#[utoipa::path(post, path = "/v1/messages/{id}/seen", tag = "Messages", operation_id = "mark_message_read",
    params(("id" = MessageId, Path, description = "The message's id")),
    responses((status = 200, description = "It is marked as read", body = Message<'_>),
              (status = 409, description = "It cannot be marked; `detail` says why", body = ProblemBody<'_>, content_type = "application/problem+json"),
              (status = 503, description = "WAHA does not answer", body = ProblemBody<'_>, content_type = "application/problem+json")))]
pub(in crate::http) async fn seen(
    app: web::Data<App>,
    caller: Caller,
    id: Path<MessageId>,
) -> Result<HttpResponse, Problem> {
    let tenant = caller.tenant(Scope::MessagesWrite)?;
    let row = act(&app, tenant, id.0, Action::MarkRead).await?;
    Ok(HttpResponse::Ok().json(Message::from(&row)))
}

/// Whom a message is forwarded to.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"to": "+15550100002"}))]
pub(super) struct ForwardMessage {
    /// The recipient: a phone number in E.164 or a WhatsApp id.
    #[schema(example = "+15550100002")]
    to: String,
    /// The session of the message; another one cannot forward it.
    session_id: Option<SessionId>,
}

/// Forward a message
///
/// Sends a message that was sent or received to somebody else, as WhatsApp's "forward" does. The answer is a new message, of the same type and with the
/// same body, which is sent like any other. 409 unless the message was sent or received.
#[utoipa::path(post, path = "/v1/messages/{id}/forward", tag = "Messages", operation_id = "forward_message", request_body = ForwardMessage,
    params(("id" = MessageId, Path, description = "The message to forward"),
           ("Idempotency-Key" = Option<String>, Header, description = "1 to 255 visible ASCII characters; kept for 24 hours")),
    responses((status = 202, description = "The new message, accepted and kept", body = Message<'_>,
               headers(("Location" = String, description = "Where the message can be looked at"),
                       ("Idempotency-Replayed" = String, description = "`true` when this is the first answer again"))),
              (status = 409, description = "It cannot be forwarded; `detail` says why", body = ProblemBody<'_>, content_type = "application/problem+json")))]
pub(in crate::http) async fn forward(
    app: web::Data<App>,
    caller: Caller,
    id: Path<MessageId>,
    key: MaybeIdempotencyKey,
    request: Body<ForwardMessage>,
) -> Result<HttpResponse, Problem> {
    let tenant = caller.tenant(Scope::MessagesWrite)?;
    // The same body means another request for another message.
    let fingerprint = request.fingerprint(&format!("{FORWARD} {}", id.0));
    let idempotency = key.0.map(|key| KeyUse { operation: FORWARD, key: key.0, fingerprint });
    let repeat = idempotency.clone();
    let accepted = accept(&app, tenant, id.0, request.into_inner(), idempotency).await;
    answer(&app, tenant, repeat, accepted).await
}

async fn accept(
    app: &App,
    tenant: TenantId,
    id: MessageId,
    request: ForwardMessage,
    idempotency: Option<KeyUse>,
) -> Result<Accepted, Problem> {
    let mut rules = Rules::new();
    let chat = recipient(&mut rules, "to", &request.to);
    rules.finish()?;
    let Some(chat) = chat else { return Err(Problem::invalid("to", "invalid_recipient", "must be a recipient")) };
    let (parts, by) = (app.clone(), request.session_id);
    let draft = app.detached(async move { actions::forward(&parts, tenant, id, chat, by).await }).await??;
    Ok(app.acceptor.accept(app, Draft { idempotency, ..draft }).await?)
}

impl From<Denied> for Problem {
    fn from(denied: Denied) -> Self {
        match denied {
            Denied::NotFound => Self::not_found(),
            Denied::NotNow(why) => Self::conflict(why),
            Denied::CaptionTooLong => {
                Self::invalid("body", "too_long", "as a caption it must have at most 1024 characters")
            }
            Denied::OtherSession => Self::invalid("session_id", "other_session", "must be the session of the message"),
            Denied::Database(fault) => fault.into(),
            Denied::Directory(fault) => fault.into(),
            Denied::Waha(fault) => refused_by_waha(fault),
        }
    }
}

fn refused_by_waha(fault: CallError) -> Problem {
    match fault {
        CallError::State { status } => {
            Problem::conflict(format!("The session of the message has to be working; it is {status} at WAHA"))
        }
        CallError::NotFound => Problem::conflict("The WAHA server does not know this message or its session any more"),
        CallError::Rule(why) | CallError::Unsupported(why) => Problem::conflict(format!("WAHA refuses it: {why}")),
        CallError::Throttled => Problem::new(Code::Unavailable, "The WAHA server asks to slow down").retry_after(10),
        CallError::Unauthorized | CallError::AlreadyExists | CallError::BadAnswer(_) => {
            tracing::error!(%fault, "an operation on a message was refused");
            Problem::new(Code::Unavailable, "The WAHA server of this session refuses the gateway").retry_after(30)
        }
        CallError::Server { .. } => {
            Problem::new(Code::Unavailable, "The WAHA server of this session could not do it").retry_after(5)
        }
        CallError::Unreachable | CallError::TimedOut | CallError::Stopping => {
            Problem::new(Code::Unavailable, "The WAHA server of this session does not answer").retry_after(5)
        }
    }
}
