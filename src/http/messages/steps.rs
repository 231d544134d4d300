//! Cancel, retry and delete: one message, or as many as a filter finds.

use actix_web::{HttpResponse, web};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::actions::act;
use super::list::ListMessages;
use crate::app::App;
use crate::db::DbError;
use crate::domain::ids::{MessageId, SessionId, TenantId};
use crate::domain::status::Status;
use crate::http::problem::{FieldError, Problem};
use crate::http::{Body, Caller, Path, Query};
use crate::identity::scope::Scope;
use crate::messages::actions::Action;
use crate::messages::queries::{self, Filter};
use crate::messages::retry::{self, Retried};
use crate::messages::row::MessageRow;
use crate::messages::view::Message;
use crate::messages::withdraw::{self, Withdrawn};

/// Messages changed in one transaction, at the most.
const AT_ONCE: i64 = 500;
/// Messages changed by one request, about.
const MOST: usize = 10_000;

/// Cancel a message
///
/// Possible as long as it waits (`scheduled` or `queued`); 409 once it is being sent. Cancelling again changes nothing.
#[utoipa::path(post, path = "/v1/messages/{id}/cancel", tag = "Messages", operation_id = "cancel_message",
    params(("id" = MessageId, Path, description = "The message's id")),
    responses((status = 200, description = "It is cancelled", body = Message<'_>)))]
pub(in crate::http) async fn cancel(
    app: web::Data<App>,
    caller: Caller,
    id: Path<MessageId>,
) -> Result<HttpResponse, Problem> {
    let tenant = caller.tenant(Scope::MessagesWrite)?;
    let row = withdraw(&app, tenant, id.0, Way::Cancel).await?;
    Ok(HttpResponse::Ok().json(Message::from(&row)))
}

/// How a message is withdrawn.
#[derive(Clone, Copy)]
enum Way {
    Cancel,
    Delete,
}

async fn withdraw(app: &App, tenant: TenantId, id: MessageId, way: Way) -> Result<MessageRow, Problem> {
    let parts = app.clone();
    let withdrawn = app
        .detached(async move {
            let (now, chance) = (parts.clock.now(), &parts.chance);
            let done = parts.db.tenant(tenant, async |conn| match way {
                Way::Cancel => withdraw::cancel(conn, chance, now, id).await,
                Way::Delete => withdraw::delete(conn, chance, now, id).await,
            });
            let done = done.await;
            // The turn that it gave up is another's.
            parts.wake.dispatch.notify_one();
            parts.wake.events.notify_one();
            done
        })
        .await??;
    match (withdrawn, way) {
        (Withdrawn::Done(row), _) => Ok(*row),
        (Withdrawn::TooLate(row), Way::Cancel) => Err(too_late(&row, "cancelled")),
        (Withdrawn::TooLate(row), Way::Delete) => Err(too_late(&row, "deleted")),
        (Withdrawn::NotFound, _) => Err(Problem::not_found()),
    }
}

fn too_late(row: &MessageRow, what: &str) -> Problem {
    Problem::conflict(format!("A message that is {} cannot be {what}", row.status))
}

/// Retry a failed message
///
/// The same message once more, at its place in the queue, with its id and its history; 409 unless it is `failed`, and when its `expires_at` has
/// passed or its session was deleted. One that failed as `unconfirmed` may reach the recipient a second time.
#[utoipa::path(post, path = "/v1/messages/{id}/retry", tag = "Messages", operation_id = "retry_message",
    params(("id" = MessageId, Path, description = "The message's id")),
    responses((status = 202, description = "It waits again", body = Message<'_>)))]
pub(in crate::http) async fn retry(
    app: web::Data<App>,
    caller: Caller,
    id: Path<MessageId>,
) -> Result<HttpResponse, Problem> {
    let tenant = caller.tenant(Scope::MessagesWrite)?;
    let parts = App::clone(&app);
    let retried = app
        .detached(async move {
            let now = parts.clock.now();
            let chance = &parts.chance;
            let done = parts.db.tenant(tenant, async |conn| retry::retry(conn, chance, now, id.0).await).await;
            parts.wake.dispatch.notify_one();
            parts.wake.events.notify_one();
            done
        })
        .await??;
    match retried {
        Retried::Done(row) => Ok(HttpResponse::Accepted().json(Message::from(&*row))),
        Retried::NotNow(row) if row.status != Status::Failed.as_str() => Err(too_late(&row, "retried")),
        Retried::NotNow(row) if row.expires_at.is_some_and(|at| at <= app.clock.now()) => {
            Err(Problem::conflict("The message has expired meanwhile"))
        }
        Retried::NotNow(_) => Err(Problem::conflict("The session of the message was deleted")),
        Retried::NotFound => Err(Problem::not_found()),
    }
}

/// How a message is deleted.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::http) struct DeleteMessage {
    /// `true` revokes it on WhatsApp first, so that the recipient does not keep it either. Default: `false`.
    for_everyone: Option<bool>,
}

/// Delete a message
///
/// It is gone from every list for good; one that waits is cancelled first. The recipient keeps what was sent, unless it is deleted `for_everyone`,
/// which is possible for what you sent as long as WhatsApp allows it and the session works. 409 while it is being sent, or when it cannot be revoked;
/// repeat the request after a 503.
#[utoipa::path(delete, path = "/v1/messages/{id}", tag = "Messages", operation_id = "delete_message",
    params(("id" = MessageId, Path, description = "The message's id"), DeleteMessage),
    responses((status = 204, description = "Deleted")))]
pub(in crate::http) async fn delete(
    app: web::Data<App>,
    caller: Caller,
    id: Path<MessageId>,
    how: Query<DeleteMessage>,
) -> Result<HttpResponse, Problem> {
    let tenant = caller.tenant(Scope::MessagesWrite)?;
    if how.0.for_everyone == Some(true) {
        act(&app, tenant, id.0, Action::Revoke).await?;
    } else {
        withdraw(&app, tenant, id.0, Way::Delete).await?;
    }
    Ok(HttpResponse::NoContent().finish())
}

/// Which messages; each member as in the list's parameters, and what is absent does not narrow.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Which {
    /// Of this session.
    session_id: Option<SessionId>,
    /// To this number or WhatsApp id.
    #[schema(example = "+15550100001")]
    to: Option<String>,
    /// Of this kind.
    #[serde(rename = "type")]
    kind: Option<String>,
    /// Failed for this reason; for `retry`.
    #[schema(example = "no_server_ack")]
    error_code: Option<String>,
    /// Created at or after this time.
    created_after: Option<DateTime<Utc>>,
    /// Created before this time.
    created_before: Option<DateTime<Utc>>,
    /// With these members in your own data.
    #[serde(default)]
    #[schema(value_type = Object)]
    metadata: Map<String, Value>,
}

/// A change of many messages.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"filter": {"session_id": "01994f3e-0000-7cc3-98d5-8f1c1f0a2b3e"}}))]
pub(super) struct BulkRequest {
    /// Which; `{}` means all.
    filter: Which,
}

/// How many messages were retried.
#[derive(Serialize, ToSchema)]
struct RetriedMany {
    /// How many wait again.
    retried: usize,
    /// Whether there may be more; ask again then.
    more: bool,
}

/// How many messages were cancelled.
#[derive(Serialize, ToSchema)]
struct CancelledMany {
    /// How many were cancelled.
    cancelled: usize,
    /// Whether there may be more; ask again then.
    more: bool,
}

/// The same faults as members of `filter`.
fn within_filter(problem: Problem) -> Problem {
    let within = |error: &FieldError| FieldError::new(format!("filter.{}", error.field), &error.code, &error.message);
    Problem::validation(problem.errors().iter().map(within).collect())
}

impl Which {
    fn filter(self, status: Status) -> Result<Filter, Problem> {
        let text = |(key, value): (String, Value)| match value {
            Value::String(text) => Ok((key, text)),
            Value::Number(_) | Value::Bool(_) => Ok((key, value.to_string())),
            _ => {
                let field = format!("filter.metadata.{key}");
                Err(Problem::invalid(field, "invalid_type", "must be text, a number, true or false"))
            }
        };
        let metadata = self.metadata.into_iter().map(text).collect::<Result<Vec<_>, _>>()?;
        let list = ListMessages {
            session_id: self.session_id,
            direction: Some("outbound".to_owned()),
            status: Some(status.as_str().to_owned()),
            to: self.to,
            kind: self.kind,
            error_code: self.error_code,
            created_after: self.created_after,
            created_before: self.created_before,
            ..ListMessages::default()
        };
        list.filter(metadata).map_err(within_filter)
    }
}

#[derive(Clone, Copy)]
enum Step {
    Cancel,
    Retry,
}

/// Takes the step with about [`MOST`] messages that `filters` find, in transactions of [`AT_ONCE`] each; answers how many took it
/// and whether there may be more.
async fn many(app: &App, tenant: TenantId, filters: &[Filter], step: Step) -> Result<(usize, bool), DbError> {
    let mut changed = 0;
    for filter in filters {
        let mut after: Option<(DateTime<Utc>, Uuid)> = None;
        loop {
            if changed >= MOST {
                return Ok((changed, true));
            }
            let now = app.clock.now();
            let chance = &app.chance;
            let (found, done, last) = app
                .db
                .tenant(tenant, async |conn| {
                    let rows = queries::list(conn, filter, after, AT_ONCE).await?;
                    let ids: Vec<MessageId> = rows.iter().map(|row| row.id).collect();
                    let done = match step {
                        _ if ids.is_empty() => 0,
                        Step::Cancel => withdraw::cancel_waiting(conn, chance, now, &ids).await?.len(),
                        Step::Retry => retry::retry_failed(conn, chance, now, &ids).await?.len(),
                    };
                    Ok::<_, DbError>((ids.len(), done, rows.last().map(|row| (row.created_at, row.id.0))))
                })
                .await?;
            app.wake.dispatch.notify_one();
            app.wake.events.notify_one();
            changed += done;
            // From there on, so that those that cannot take the step are not found again.
            after = last;
            if i64::try_from(found).unwrap_or(i64::MAX) < AT_ONCE {
                break;
            }
        }
    }
    Ok((changed, false))
}

/// Retry many messages
///
/// Every failed message that the filter finds, as if each had been retried by itself; those that cannot be retried are left as they are. About 10,000
/// per request: ask again while `more` is true.
#[utoipa::path(post, path = "/v1/messages/retry", tag = "Messages", operation_id = "retry_messages", request_body = BulkRequest,
    responses((status = 200, description = "How many wait again", body = RetriedMany)))]
pub(in crate::http) async fn retry_many(
    app: web::Data<App>,
    caller: Caller,
    request: Body<BulkRequest>,
) -> Result<HttpResponse, Problem> {
    let tenant = caller.tenant(Scope::MessagesWrite)?;
    let filters = [request.into_inner().filter.filter(Status::Failed)?];
    let parts = App::clone(&app);
    let (retried, more) = app.detached(async move { many(&parts, tenant, &filters, Step::Retry).await }).await??;
    Ok(HttpResponse::Ok().json(RetriedMany { retried, more }))
}

/// Cancel many messages
///
/// Every waiting message (`scheduled` or `queued`) that the filter finds. About 10,000 per request: ask again
/// while `more` is true.
#[utoipa::path(post, path = "/v1/messages/cancel", tag = "Messages", operation_id = "cancel_messages", request_body = BulkRequest,
    responses((status = 200, description = "How many were cancelled", body = CancelledMany)))]
pub(in crate::http) async fn cancel_many(
    app: web::Data<App>,
    caller: Caller,
    request: Body<BulkRequest>,
) -> Result<HttpResponse, Problem> {
    let tenant = caller.tenant(Scope::MessagesWrite)?;
    let which = request.into_inner().filter;
    if which.error_code.is_some() {
        return Err(Problem::invalid("filter.error_code", "not_allowed", "what waits has not failed"));
    }
    let waiting = which.filter(Status::Queued)?;
    let filters = [waiting.clone(), Filter { status: Some(Status::Scheduled.as_str().to_owned()), ..waiting }];
    let parts = App::clone(&app);
    let (cancelled, more) = app.detached(async move { many(&parts, tenant, &filters, Step::Cancel).await }).await??;
    Ok(HttpResponse::Ok().json(CancelledMany { cancelled, more }))
}
