//! The API's description: OpenAPI 3.1, put together from the resources' own files.

use serde_json::{Map, Value, json};
use utoipa::OpenApi;
use utoipa::openapi::security::{ApiKey, ApiKeyValue, Http, HttpAuthScheme, SecurityScheme};

use super::problem::{Code, FieldError, ProblemBody};
use crate::domain::failure::FailureCode;

/// What all resources share.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Switchboard",
        description = "A multi-tenant WhatsApp gateway that keeps what it accepts. Errors are \
            `application/problem+json`; lists are paged by cursor, newest first; creating requests take an \
            `Idempotency-Key`; changing ones take `If-Match` with the resource's `version`.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    tags(
        (name = "Messages", description = "Send messages and follow them"),
        (name = "Conversations", description = "What was written with whom"),
        (name = "Contacts", description = "The people you are in touch with"),
        (name = "Media", description = "Files to be sent, and those that came with messages"),
        (name = "Sessions", description = "Paired WhatsApp numbers"),
        (name = "Webhook endpoints", description = "Where events are delivered"),
        (name = "Events", description = "What happened, in order"),
        (name = "Tenant", description = "The caller's own tenant"),
        (name = "API keys", description = "The caller's own API keys"),
        (name = "Tenants", description = "All tenants; needs a platform key"),
        (name = "Sender pools", description = "Named sets of sessions to send by"),
        (name = "WAHA servers", description = "The servers that hold WhatsApp sessions; needs a platform key"),
        (name = "Alarms", description = "What an operator has to know of; needs a platform key"),
        (name = "From WAHA", description = "What WAHA servers post"),
        (name = "Operations", description = "Health, metrics and this document; no credentials"),
    ),
    components(schemas(ProblemBody, FieldError)),
    security(("bearer" = []), ("api_key" = [])),
)]
struct Base;

/// The descriptions of the resources' files, in the order of the document's tags.
fn parts() -> Vec<utoipa::openapi::OpenApi> {
    vec![
        super::messages::openapi(),
        super::media::openapi(),
        super::sessions::openapi(),
        super::sender_pools::openapi(),
        super::session_control::openapi(),
        super::pairing::openapi(),
        super::session_queue::openapi(),
        super::numbers::openapi(),
        super::contacts::openapi(),
        super::erasures::openapi(),
        super::conversations::openapi(),
        super::webhook_endpoints::openapi(),
        super::events::openapi(),
        super::event_stream::openapi(),
        super::hooks::openapi(),
        super::own_tenant::openapi(),
        super::export::openapi(),
        super::api_keys::openapi(),
        super::tenants::openapi(),
        super::waha_servers::openapi(),
        super::alarms::openapi(),
        super::operations::openapi(),
    ]
}

/// The whole document.
#[must_use]
pub fn document() -> Value {
    let mut api = Base::openapi();
    for part in parts() {
        api.merge(part);
    }
    if let Some(components) = &mut api.components {
        let bearer = Http::builder()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some("An API key or an access token: `Authorization: Bearer swb_…`"))
            .build();
        components.add_security_scheme("bearer", SecurityScheme::Http(bearer));
        let header = ApiKeyValue::with_description("X-Api-Key", "An API key: `X-Api-Key: swb_…`");
        components.add_security_scheme("api_key", SecurityScheme::ApiKey(ApiKey::Header(header)));
    }
    let mut document = serde_json::to_value(api).unwrap_or_default();
    describe_errors(&mut document);
    describe_failures(&mut document);
    if let Some(root) = document.as_object_mut() {
        root.insert("webhooks".to_owned(), webhooks());
    }
    document
}

/// The document as it is committed and served: indented, in a stable order, with a newline at its end.
#[must_use]
pub fn render() -> String {
    let mut text = serde_json::to_string_pretty(&document()).unwrap_or_default();
    text.push('\n');
    text
}

/// Adds the answers that every operation can give, so that no resource's file has to repeat them.
fn describe_errors(document: &mut Value) {
    let Some(paths) = document.get_mut("paths").and_then(Value::as_object_mut) else { return };
    for (path, item) in paths {
        let Some(operations) = item.as_object_mut() else { continue };
        for (method, operation) in operations {
            let Some(operation) = operation.as_object_mut() else { continue };
            let mut codes = vec![Code::Internal];
            if path.starts_with("/v1") {
                codes.push(Code::Unavailable);
                let open = operation.get("security").is_some_and(|security| *security == json!([{}]));
                if !open {
                    codes.extend([Code::Unauthorized, Code::Forbidden, Code::RateLimited]);
                }
                if operation.contains_key("requestBody") {
                    codes.extend([Code::MalformedJson, Code::PayloadTooLarge, Code::UnsupportedMediaType]);
                    codes.push(Code::ValidationFailed);
                }
                if operation.contains_key("parameters") {
                    codes.push(Code::ValidationFailed);
                }
                if path.contains('{') {
                    codes.push(Code::NotFound);
                }
                match method.as_str() {
                    "post" | "delete" => codes.push(Code::Conflict),
                    "patch" => codes.extend([Code::Conflict, Code::PreconditionFailed]),
                    _ => {}
                }
            }
            let responses = operation.entry("responses").or_insert_with(|| Value::Object(Map::new()));
            let Some(responses) = responses.as_object_mut() else { continue };
            for code in codes {
                responses.entry(code.status().as_u16().to_string()).or_insert_with(|| problem_response(code));
            }
        }
    }
    if let Some(responses) = document.pointer_mut("/components").and_then(Value::as_object_mut) {
        let all: Map<_, _> =
            Code::ALL.iter().map(|code| (code.as_str().to_owned(), problem_component(*code))).collect();
        responses.insert("responses".to_owned(), Value::Object(all));
    }
}

/// Tells with the messages why one can fail: `error.code`, what it means, and what to do.
fn describe_failures(document: &mut Value) {
    let rows = FailureCode::ALL.iter().map(|code| format!("| `{code}` | {} | {} |\n", code.meaning(), code.action()));
    let table: String = rows.collect();
    let tags = document.get_mut("tags").and_then(Value::as_array_mut).into_iter().flatten();
    for tag in tags.filter(|tag| tag["name"] == "Messages") {
        let says = tag["description"].as_str().unwrap_or_default();
        let page = format!(
            "{says}.\n\nA message that failed says why in `error.code`; `GET /v1/messages?status=failed&error_code=…` finds them, and \
             `POST /v1/messages/retry` sends them once more. The codes never change:\n\n\
             | `error.code` | Meaning | What to do |\n|---|---|---|\n{table}"
        );
        if let Some(tag) = tag.as_object_mut() {
            tag.insert("description".to_owned(), Value::String(page));
        }
    }
}

fn problem_response(code: Code) -> Value {
    json!({ "$ref": format!("#/components/responses/{}", code.as_str()) })
}

fn problem_component(code: Code) -> Value {
    let mut example = json!({
        "type": format!("/docs/errors#{}", code.as_str()),
        "title": code.title(),
        "status": code.status().as_u16(),
        "detail": code.title(),
        "code": code.as_str(),
        "request_id": "01994f3e-6d4f-7cc3-98d5-8f1c1f0a2b3c",
    });
    if let (Code::ValidationFailed, Some(members)) = (code, example.as_object_mut()) {
        let error =
            json!({ "field": "to", "code": "invalid_value", "message": "must be a phone number or a WhatsApp id" });
        members.insert("errors".to_owned(), json!([error]));
    }
    let mut headers = Map::new();
    headers.insert("X-Request-Id".to_owned(), text_header("The request's id, as in the body"));
    if matches!(code, Code::Unavailable | Code::RateLimited | Code::QuotaExceeded | Code::RequestInProgress) {
        headers.insert("Retry-After".to_owned(), text_header("Seconds to wait before the next try"));
    }
    json!({
        "description": code.title(),
        "headers": headers,
        "content": { "application/problem+json": {
            "schema": { "$ref": "#/components/schemas/Problem" },
            "example": example,
        } },
    })
}

fn text_header(description: &str) -> Value {
    json!({ "description": description, "schema": { "type": "string" } })
}

/// Every event a webhook endpoint can receive: its type, what it says, and what `data` is.
const EVENTS: [(&str, &str, &str); 33] = [
    ("message.received", "A message came in", "message"),
    ("message.queued", "A message was accepted and waits for its turn", "message"),
    ("message.sent", "WhatsApp's server has the message", "message"),
    ("message.delivered", "The recipient's phone has the message", "message"),
    ("message.read", "The recipient has read the message", "message"),
    ("message.played", "The recipient has played the voice message", "message"),
    ("message.failed", "The message was not sent; `error` says why", "message"),
    ("message.cancelled", "The message was cancelled before it was sent", "message"),
    ("message.expired", "The message was not sent before `expires_at`", "message"),
    ("message.edited", "The message's text was changed on WhatsApp", "message"),
    ("message.revoked", "The message was revoked on WhatsApp", "message"),
    ("message.reaction", "Somebody reacted to the message", "message"),
    ("message.media", "The message's file was stored, or is not to be had; `media.status` says which", "message"),
    ("session.status", "A session's status changed", "session"),
    (
        "session.restricted",
        "WhatsApp does not let a session write to people who never wrote to it; `restriction` says until when",
        "session",
    ),
    (
        "session.unhealthy",
        "A session says it works and is dead, and a restart did not help; `health` says why",
        "session",
    ),
    ("session.healthy", "A session that was reported as unhealthy works again", "session"),
    (
        "session.qr",
        "A session shows another QR code; `GET /v1/sessions/{id}/qr` has it. `qr` says which one; what it says is a credential and is not in the event",
        "session",
    ),
    ("poll.vote", "Somebody voted in a poll, changed their vote or took it back", "vote"),
    ("call.received", "Somebody calls the session's number", "call"),
    ("call.accepted", "A call was taken on another device", "call"),
    ("call.rejected", "A call was turned down", "call"),
    ("group.joined", "The session's account is in a group now", "group"),
    ("group.left", "The session's account is not in a group any more", "group"),
    ("group.participants", "Members of a group came, went, or may do more or less; `change` says which", "group"),
    ("group.updated", "A group's subject or settings changed", "group"),
    ("label.upserted", "A label was made or changed", "label"),
    ("label.deleted", "A label was deleted", "label"),
    ("label.added", "A label was put on a chat", "label"),
    ("label.removed", "A label was taken from a chat", "label"),
    ("presence.update", "Who is online or typing: on live streams only, never delivered", "presence"),
    ("endpoint.disabled", "An endpoint failed for days and gets no more events", "endpoint"),
    ("test.ping", "Sent on request, to try an endpoint", "ping"),
];

fn webhooks() -> Value {
    let all: Map<_, _> =
        EVENTS.iter().map(|(kind, says, data)| ((*kind).to_owned(), webhook(kind, says, data))).collect();
    Value::Object(all)
}

fn webhook(kind: &str, says: &str, data: &str) -> Value {
    let header = |name: &str, description: &str, example: &str| {
        json!({ "name": name, "in": "header", "required": true, "description": description,
                "schema": { "type": "string" }, "example": example })
    };
    json!({ "post": {
        "tags": ["Events"],
        "operationId": format!("on_{}", kind.replace('.', "_")),
        "summary": says,
        "description": "Signed by Standard Webhooks. Answer 2xx within 15 seconds; anything else is tried again for days, \
                        with the same `webhook-id`. 410 disables the endpoint.",
        "security": [],
        "parameters": [
            header("webhook-id", "The event's id, the same on every try", "01994f3e-6d4f-7cc3-98d5-8f1c1f0a2b3c"),
            header("webhook-timestamp", "When this try was made, in seconds since 1970", "1760000000"),
            header("webhook-signature", "`v1,` and the base64 HMAC-SHA256 of `{id}.{timestamp}.{body}`; several are \
                    separated by spaces", "v1,K5oZfzN95Z9UVu1EsfQmfVNQhnkZ2pj9o9NDN/H/pI4="),
        ],
        "requestBody": { "required": true, "content": { "application/json": {
            "schema": {
                "type": "object",
                "required": ["id", "type", "timestamp", "data"],
                "properties": {
                    "id": { "type": "string", "format": "uuid" },
                    "type": { "type": "string", "const": kind },
                    "timestamp": { "type": "string", "format": "date-time" },
                    "data": { "type": "object", "description": "The resource as the API shows it" },
                },
            },
            "example": {
                "id": "01994f3e-6d4f-7cc3-98d5-8f1c1f0a2b3c",
                "type": kind,
                "timestamp": "2026-11-21T09:30:00Z",
                "data": sample(kind, data),
            },
        } } },
        "responses": {
            "200": { "description": "Received" },
            "410": { "description": "Gone: no more events, please" },
        },
    } })
}

fn sample(kind: &str, data: &str) -> Value {
    let status = kind.rsplit('.').next().unwrap_or_default();
    match data {
        "message" => json!({
            "id": "01994f3e-6d4f-7cc3-98d5-8f1c1f0a2b3d",
            "session_id": "01994f3e-0000-7cc3-98d5-8f1c1f0a2b3e",
            "direction": if matches!(status, "received" | "media") { "inbound" } else { "outbound" },
            "status": match status {
                "edited" | "revoked" | "reaction" => "read",
                "media" => "received",
                status => status,
            },
            "type": "text",
            "to": "+12025550123",
            "body": "Your table is ready",
            "created_at": "2026-11-21T09:29:58Z",
        }),
        "session" if status == "qr" => json!({
            "id": "01994f3e-0000-7cc3-98d5-8f1c1f0a2b3e",
            "name": "front desk",
            "status": "scan_qr",
            "pairing": { "step": "qr", "rotation": 1, "of": 6, "expires_at": "2026-11-21T09:31:00Z" },
            "qr": { "rotation": 1, "of": 6, "expires_at": "2026-11-21T09:31:00Z" },
        }),
        "session" => json!({
            "id": "01994f3e-0000-7cc3-98d5-8f1c1f0a2b3e",
            "name": "front desk",
            "status": "working",
        }),
        "endpoint" => json!({
            "id": "01994f3e-1111-7cc3-98d5-8f1c1f0a2b3f",
            "url": "https://example.com/hooks",
            "enabled": false,
        }),
        "vote" => json!({
            "session_id": "01994f3e-0000-7cc3-98d5-8f1c1f0a2b3e",
            "waha_message_id": "3EB0C767D097B7C7C030",
            "message": { "id": "01994f3e-6d4f-7cc3-98d5-8f1c1f0a2b3d", "type": "poll" },
            "vote": { "options": ["Yes"], "from_me": false, "person": "12025550123@c.us" },
        }),
        "call" => json!({
            "session_id": "01994f3e-0000-7cc3-98d5-8f1c1f0a2b3e",
            "call_id": "ABCDEFGABCDEFGABCDEFGABCDEFG",
            "from": "12025550123@c.us",
            "is_video": false,
            "is_group": false,
            "at": "2026-11-21T09:30:00Z",
        }),
        "group" => json!({
            "session_id": "01994f3e-0000-7cc3-98d5-8f1c1f0a2b3e",
            "chat_id": "120363000000000001@g.us",
            "subject": "Team",
            "participants": [{ "id": "12025550123@c.us", "role": "admin" }],
        }),
        "label" => json!({
            "session_id": "01994f3e-0000-7cc3-98d5-8f1c1f0a2b3e",
            "label_id": "1",
            "name": "Lead",
            "chat_id": "12025550123@c.us",
        }),
        "presence" => json!({
            "session_id": "01994f3e-0000-7cc3-98d5-8f1c1f0a2b3e",
            "chat_id": "12025550123@c.us",
            "people": [{ "id": "12025550123@c.us", "presence": "typing" }],
        }),
        _ => json!({ "endpoint_id": "01994f3e-1111-7cc3-98d5-8f1c1f0a2b3f" }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_is_described() {
        let document = document();
        assert_eq!(document["openapi"], "3.1.0");
        let text = document.to_string();
        for code in FailureCode::ALL {
            assert!(text.contains(&format!("| `{code}` |")), "{code} is explained");
        }
        for later in ["\"$self\"", "\"itemSchema\"", "\"additionalOperations\"", "\"dataValue\"", "\"querystring\""] {
            assert!(!text.contains(later), "{later} is of OpenAPI 3.2");
        }
        assert_eq!(document["webhooks"].as_object().unwrap().len(), EVENTS.len());
        let mut ids = std::collections::HashSet::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                let name = format!("{method} {path}");
                for text in ["summary", "description", "operationId"] {
                    assert!(operation[text].as_str().is_some_and(|text| !text.is_empty()), "{name} has no {text}");
                }
                assert!(ids.insert(operation["operationId"].as_str().unwrap().to_owned()), "{name}: id used twice");
                assert!(operation["tags"].as_array().is_some_and(|tags| tags.len() == 1), "{name} has no tag");
                assert!(operation["responses"]["500"].is_object(), "{name} has no problem answer");
                if let Some(body) = operation.get("requestBody") {
                    assert!(has_example(&document, body), "{name} has a body without an example");
                }
            }
        }
    }

    /// An example stands beside the schema, in it, or in each of its fields.
    fn has_example(document: &Value, body: &Value) -> bool {
        let content = body["content"].as_object().unwrap().values().next().unwrap();
        let schema = content["schema"]["$ref"].as_str().and_then(|name| document.pointer(name.trim_start_matches('#')));
        content.get("example").is_some()
            || content.get("examples").is_some()
            || schema.is_some_and(|schema| schema.get("example").is_some() || schema.get("examples").is_some())
    }

    #[test]
    fn every_reference_leads_somewhere() {
        fn walk(root: &Value, at: &Value) {
            match at {
                Value::Object(members) => {
                    if let Some(target) = members.get("$ref").and_then(Value::as_str) {
                        let pointer = target.strip_prefix('#').unwrap();
                        assert!(root.pointer(pointer).is_some(), "{target} leads nowhere");
                    }
                    members.values().for_each(|value| walk(root, value));
                }
                Value::Array(items) => items.iter().for_each(|item| walk(root, item)),
                _ => {}
            }
        }
        let document = document();
        walk(&document, &document);
        assert_eq!(render(), render(), "a stable order");
    }
}
