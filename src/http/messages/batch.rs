//! `POST /v1/messages/batch`: many messages in one request, written in one transaction.

use std::fmt::Write as _;
use std::sync::Arc;

use actix_web::{HttpMessage, HttpRequest, HttpResponse, web};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::prepare::{Known, draft};
use super::request::{MOST_CAPTION, MOST_TEXT, MediaRequest, SendMessage, Valid, fault};
use super::send::bounds;
use crate::app::App;
use crate::domain::ids::{SessionId, TenantId};
use crate::domain::template::{Template, Unfilled};
use crate::http::problem::{FieldError, Problem, ProblemBody};
use crate::http::{Caller, Json, MaybeIdempotencyKey, RequestId, fingerprint, from_json};
use crate::identity::scope::Scope;
use crate::messages::accept::{AcceptError, BATCH, Draft, KeyUse};
use crate::messages::view::{Message, Priority};
use crate::messages::writer::Fate;

/// Messages in a batch, at the most.
const MOST_MESSAGES: usize = 1000;

/// Messages as they are.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes what is read item by item")]
pub(super) struct BatchMessages {
    /// 1 to 1000 messages, sent in this order within each session and priority.
    #[schema(min_items = 1, max_items = 1000)]
    messages: Vec<SendMessage>,
}

/// One text for many recipients.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes what is read part by part")]
pub(super) struct BatchTemplate {
    /// The text or caption, with `{{name}}` where a variable goes. A name has letters, digits and `_`, beginning with a letter. What a variable holds
    /// is written as it stands.
    #[schema(min_length = 1, max_length = 5000, example = "Hi {{name}}, your table is ready.")]
    template: String,
    /// 1 to 1000 recipients, sent to in this order.
    #[schema(min_items = 1, max_items = 1000)]
    to: Vec<Recipient>,
    #[serde(flatten)]
    shared: Shared,
}

/// What is sent in a batch.
#[derive(ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "describes the two forms")]
#[schema(example = json!({"messages": [{"to": "+15550100001", "body": "One"}, {"to": "+15550100002", "body": "Two"}]}))]
pub(super) enum BatchRequest {
    Messages(BatchMessages),
    Template(Box<BatchTemplate>),
}

/// One recipient of a template.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Recipient {
    /// As in a single message.
    #[schema(example = "+15550100001")]
    to: String,
    /// The values of the template's variables: text, numbers, true or false.
    #[serde(default)]
    #[schema(value_type = Object, example = json!({"name": "Ann"}))]
    variables: Map<String, Value>,
    /// Your own id of this message.
    client_reference: Option<String>,
    /// Your own data; instead of the batch's.
    #[serde(default)]
    #[schema(value_type = Object)]
    metadata: Option<Map<String, Value>>,
}

/// What all messages of a template have in common; each member as in a single message.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Shared {
    session_id: Option<SessionId>,
    pool: Option<String>,
    /// `text`, `image`, `video` or `document`.
    #[serde(rename = "type")]
    kind: Option<String>,
    /// By `id` or `url`.
    media: Option<MediaRequest>,
    link_preview: Option<bool>,
    #[serde(default)]
    priority: Priority,
    scheduled_at: Option<DateTime<Utc>>,
    expires_at: Option<DateTime<Utc>>,
    #[schema(value_type = Object)]
    metadata: Option<Map<String, Value>>,
}

/// What became of each message, in the order of the request.
#[derive(Serialize, ToSchema)]
struct BatchAnswer<'a> {
    data: Vec<BatchItem<'a>>,
}

/// What became of one message.
#[derive(Serialize, ToSchema)]
struct BatchItem<'a> {
    /// Its place in the request, from 0.
    index: usize,
    /// The status that a request of its own would have been answered with.
    #[schema(example = 202)]
    status: u16,
    /// The message, if it was accepted.
    message: Option<Message<'a>>,
    /// Why not, otherwise.
    #[schema(value_type = Option<ProblemBody>)]
    problem: Option<Value>,
}

/// Send many messages
///
/// Good ones are kept and bad ones named: the answer is 202 whatever becomes of each. Within a session and priority they are sent in the order of the
/// request. They come as they are (`messages`), or as one `template` for many recipients. The body has 1 MiB at the most. An `Idempotency-Key` stands
/// for the batch as a whole; a `client_reference` for one message.
#[utoipa::path(post, path = "/v1/messages/batch", tag = "Messages", operation_id = "send_messages", request_body = BatchRequest,
    params(("Idempotency-Key" = Option<String>, Header, description = "1 to 255 visible ASCII characters; kept for 24 hours")),
    responses(
        (status = 202, description = "What became of each", body = BatchAnswer<'_>,
         headers(("Idempotency-Replayed" = String, description = "`true` when this is the first answer again"))),
    ))]
pub(in crate::http) async fn send_batch(
    app: web::Data<App>,
    caller: Caller,
    key: MaybeIdempotencyKey,
    request: HttpRequest,
    body: Json,
) -> Result<HttpResponse, Problem> {
    let tenant = caller.tenant(Scope::MessagesWrite)?;
    let idempotency =
        key.0.map(|key| KeyUse { operation: BATCH, key: key.0, fingerprint: fingerprint(BATCH, &body.0) });
    let request_id = request.extensions().get::<RequestId>().map(|id| id.0.clone()).unwrap_or_default();
    let requests = read(&app, body.0)?;
    let drafts = prepare(&app, tenant, requests).await?;
    // What was refused beforehand stands between what the database has a say in.
    let mut accepted = Vec::with_capacity(drafts.len());
    let mut refused = Vec::with_capacity(drafts.len());
    for draft in drafts {
        match draft {
            Ok(draft) => {
                accepted.push(draft);
                refused.push(None);
            }
            Err(problem) => refused.push(Some(problem)),
        }
    }
    let say = move |fates: &[(Fate, Arc<str>)]| render(&refused, fates, &request_id);
    let answer = app.acceptor.accept_batch(&app, tenant, accepted, idempotency, say).await?;
    metrics::counter!("switchboard_messages_accepted_total").increment(answer.accepted);
    let mut response = HttpResponse::Accepted();
    response.content_type("application/json");
    if answer.replayed {
        response.insert_header(("Idempotency-Replayed", "true"));
    }
    Ok(response.body(answer.json))
}

/// The messages asked for; each stands for itself.
fn read(app: &App, body: Value) -> Result<Vec<Result<Valid, Problem>>, Problem> {
    let Value::Object(mut members) = body else {
        return Err(Problem::invalid("(body)", "invalid_type", "must be an object"));
    };
    if members.contains_key("template") {
        return read_template(app, members);
    }
    let Some(messages) = members.remove("messages") else {
        return Err(Problem::invalid("messages", "required", "is required, unless there is a `template`"));
    };
    if let Some(name) = members.keys().next() {
        return Err(Problem::invalid(name.replace('\0', "\u{fffd}"), "unknown_field", "no such field"));
    }
    let bounds = bounds(app);
    let items = listed("messages", messages)?;
    Ok(items.iter().map(|item| from_json::<SendMessage>(item).and_then(|message| message.check(bounds))).collect())
}

fn listed(field: &str, list: Value) -> Result<Vec<Value>, Problem> {
    let Value::Array(items) = list else { return Err(Problem::invalid(field, "invalid_type", "must be an array")) };
    if !(1..=MOST_MESSAGES).contains(&items.len()) {
        let code = if items.is_empty() { "required" } else { "too_long" };
        return Err(Problem::invalid(field, code, format!("must have 1 to {MOST_MESSAGES} items")));
    }
    Ok(items)
}

fn read_template(app: &App, mut members: Map<String, Value>) -> Result<Vec<Result<Valid, Problem>>, Problem> {
    let bounds = bounds(app);
    let template = match members.remove("template") {
        Some(Value::String(template)) => template,
        _ => return Err(Problem::invalid("template", "invalid_type", "must be a string")),
    };
    if template.contains('\0') {
        return Err(Problem::invalid("template", "invalid_character", "must not contain the character U+0000"));
    }
    let too_long = template.chars().count() > MOST_TEXT;
    if template.is_empty() || too_long {
        let code = if too_long { "too_long" } else { "required" };
        return Err(Problem::invalid("template", code, format!("must have 1 to {MOST_TEXT} characters")));
    }
    let template = Template::parse(&template)
        .map_err(|fault| Problem::invalid("template", "invalid_template", fault.to_string()))?;
    let recipients = members.remove("to").ok_or_else(|| Problem::invalid("to", "required", "is required"))?;
    let recipients = listed("to", recipients)?;
    let shared: Shared = from_json(&Value::Object(members))?;
    if shared.media.as_ref().is_some_and(|media| media.data.is_some()) {
        let message = "upload the file once and name it by `id`";
        return Err(Problem::invalid("media.data", "not_allowed", message));
    }
    let plain = SendMessage {
        session_id: shared.session_id,
        pool: shared.pool,
        kind: shared.kind,
        media: shared.media,
        link_preview: shared.link_preview,
        priority: shared.priority,
        scheduled_at: shared.scheduled_at,
        expires_at: shared.expires_at,
        metadata: shared.metadata,
        ..SendMessage::default()
    };
    // What is wrong with the common part is said once.
    let sample = SendMessage { to: "+15550100000".to_owned(), body: Some("x".to_owned()), ..plain.clone() };
    if let Err(problem) = sample.check(bounds) {
        let rename = |error: &FieldError| {
            let field = if error.field == "body" { "template" } else { &error.field };
            FieldError::new(field, &error.code, &error.message)
        };
        return Err(Problem::validation(problem.errors().iter().map(rename).collect()));
    }
    let is_text = plain.kind.as_deref().is_none_or(|kind| kind == "text");
    let most = if is_text { MOST_TEXT } else { MOST_CAPTION };
    Ok(recipients
        .iter()
        .map(|recipient| {
            let recipient: Recipient = from_json(recipient)?;
            let body = template.fill(&recipient.variables, most).map_err(|unfilled| {
                let message = unfilled.to_string();
                match unfilled {
                    Unfilled::Missing(name) => fault(&format!("variables.{name}"), "required", message),
                    Unfilled::NotText(name) => fault(&format!("variables.{name}"), "invalid_type", message),
                    Unfilled::TooLong => {
                        fault("variables", "too_long", format!("the text must have at most {most} characters"))
                    }
                }
            })?;
            let message = SendMessage {
                to: recipient.to,
                body: Some(body),
                client_reference: recipient.client_reference,
                metadata: recipient.metadata.or_else(|| plain.metadata.clone()),
                ..plain.clone()
            };
            message.check(bounds)
        })
        .collect())
}

async fn prepare(
    app: &App,
    tenant: TenantId,
    requests: Vec<Result<Valid, Problem>>,
) -> Result<Vec<Result<Draft, Problem>>, Problem> {
    let known = Known::of(app, tenant, requests.iter().filter_map(|request| request.as_ref().ok())).await?;
    let mut drafts = Vec::with_capacity(requests.len());
    for request in requests {
        drafts.push(match request {
            Ok(valid) => match draft(app, tenant, valid, &known).await {
                // Not a fault of the message: it must not be kept as its answer.
                Err(problem) if problem.code().status().is_server_error() => return Err(problem),
                draft => draft,
            },
            Err(problem) => Err(problem),
        });
    }
    Ok(drafts)
}

/// The answer: `refused` beforehand where it says so, else the next one of `fates`.
fn render(refused: &[Option<Problem>], fates: &[(Fate, Arc<str>)], request_id: &str) -> String {
    let mut fates = fates.iter();
    let mut text = String::from(r#"{"data":["#);
    for (index, refused) in refused.iter().enumerate() {
        let problem = match refused {
            Some(problem) => Some(problem.clone()),
            None => match fates.next() {
                Some((Fate::Accepted, message)) => {
                    // Writing to a String cannot fail.
                    let _written = write!(text, r#"{{"index":{index},"status":202,"message":{message}}},"#);
                    None
                }
                Some((Fate::ReferenceTaken(by), _)) => Some(AcceptError::ReferenceTaken(*by).into()),
                Some((Fate::NoSuchSession, _)) | None => Some(AcceptError::NoSuchSession.into()),
            },
        };
        if let Some(problem) = problem {
            let status = problem.code().status().as_u16();
            let problem = problem.request_id(request_id).to_json();
            text.push_str(&json!({"index": index, "status": status, "problem": problem}).to_string());
            text.push(',');
        }
    }
    if text.ends_with(',') {
        text.pop();
    }
    text.push_str("]}");
    text
}
