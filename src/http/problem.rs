//! Errors as `application/problem+json` (RFC 9457). [`Code`] is the whole list of what a caller can meet.
//!
//! `type` is the relative reference `/docs/errors#<code>`: stable, and the same on every host.

use std::fmt;

use actix_web::error::ResponseError;
use actix_web::http::StatusCode;
use actix_web::http::header::{self, HeaderName, HeaderValue};
use actix_web::{HttpResponse, HttpResponseBuilder};
use serde::Serialize;
use utoipa::ToSchema;

use crate::db::DbError;
use crate::db::group_commit::GroupCommitError;

/// The header that names a request in answers and logs.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $status:literal $code:literal $title:literal;)+) => {
        /// What went wrong; stable, one word per case.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Code { $($(#[$doc])* $name,)+ }

        impl Code {
            /// Every code.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// The word of the contract.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $code,)+ }
            }

            /// The status it is sent with.
            #[must_use]
            pub fn status(self) -> StatusCode {
                let status = match self { $(Self::$name => $status,)+ };
                StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
            }

            /// A short summary that does not vary between occurrences.
            #[must_use]
            pub fn title(self) -> &'static str {
                match self { $(Self::$name => $title,)+ }
            }
        }
    };
}

codes! {
    /// The body is not JSON.
    MalformedJson = 400 "malformed_json" "The body is not valid JSON";
    /// The request breaks HTTP's own rules.
    BadRequest = 400 "bad_request" "The request is not valid";
    /// No credentials, or none that are valid.
    Unauthorized = 401 "unauthorized" "Credentials are missing or not valid";
    /// The credentials do not allow this.
    Forbidden = 403 "forbidden" "These credentials do not allow this";
    /// A platform key must name the tenant it acts for.
    TenantRequired = 403 "tenant_required" "Name the tenant with X-Tenant-Id";
    /// No such thing, or not the caller's.
    NotFound = 404 "not_found" "Not found";
    /// The path exists, this method on it does not.
    MethodNotAllowed = 405 "method_not_allowed" "This method is not allowed here";
    /// The client was too slow in sending its request.
    RequestTimeout = 408 "request_timeout" "The request took too long to arrive";
    /// The present state does not allow this.
    Conflict = 409 "conflict" "The present state does not allow this";
    /// The first request with this Idempotency-Key is still running.
    RequestInProgress = 409 "request_in_progress" "The first request with this Idempotency-Key is still running";
    /// It was there once, or was to be there, and will not be any more.
    Gone = 410 "gone" "Not available any more";
    /// `If-Match` names another version than the current one.
    PreconditionFailed = 412 "precondition_failed" "The resource was changed meanwhile";
    /// The body is too large.
    PayloadTooLarge = 413 "payload_too_large" "The body is too large";
    /// The body is of another type than what is read here.
    UnsupportedMediaType = 415 "unsupported_media_type" "The body's content type is not read here";
    /// The resource has no bytes in the range that was asked for.
    RangeNotSatisfiable = 416 "range_not_satisfiable" "There are no such bytes";
    /// The content breaks a rule; `errors` says which.
    ValidationFailed = 422 "validation_failed" "The request breaks a rule";
    /// The Idempotency-Key was used with another body.
    IdempotencyKeyReused = 422 "idempotency_key_reused" "The Idempotency-Key was used for another request";
    /// Too many requests.
    RateLimited = 429 "rate_limited" "Too many requests";
    /// The tenant's quota is used up.
    QuotaExceeded = 429 "quota_exceeded" "The quota is used up";
    /// A fault of this service.
    Internal = 500 "internal" "Internal error";
    /// Something this service needs is away.
    Unavailable = 503 "unavailable" "Temporarily unavailable";
}

impl Code {
    fn retry_after(self) -> Option<u32> {
        match self {
            Self::Unavailable | Self::RequestInProgress | Self::RateLimited => Some(1),
            Self::QuotaExceeded => Some(60),
            _ => None,
        }
    }

    /// The code for an answer of which only the status is known.
    #[must_use]
    pub fn of_status(status: StatusCode) -> Self {
        match status.as_u16() {
            401 => Self::Unauthorized,
            403 => Self::Forbidden,
            404 => Self::NotFound,
            405 => Self::MethodNotAllowed,
            408 => Self::RequestTimeout,
            409 => Self::Conflict,
            410 => Self::Gone,
            412 => Self::PreconditionFailed,
            413 => Self::PayloadTooLarge,
            415 => Self::UnsupportedMediaType,
            416 => Self::RangeNotSatisfiable,
            422 => Self::ValidationFailed,
            429 => Self::RateLimited,
            503 => Self::Unavailable,
            400..500 => Self::BadRequest,
            _ => Self::Internal,
        }
    }
}

/// One rule that was broken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct FieldError {
    /// Path of the field, such as `media.url` or `messages[3].to`; a header's or a query parameter's name.
    #[schema(example = "to")]
    pub field: String,
    /// Which rule: `unknown_field`, `required`, `invalid_type`, `invalid_value`, `invalid_character`, `too_long`, ….
    #[schema(example = "invalid_value")]
    pub code: String,
    /// The rule in words.
    #[schema(example = "must be a phone number in E.164 form or a WhatsApp id")]
    pub message: String,
}

impl FieldError {
    /// A broken rule.
    pub fn new(field: impl Into<String>, code: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), code: code.into(), message: message.into() }
    }
}

/// An answer that tells what went wrong; handlers return it as their error.
#[derive(Clone, Debug)]
pub struct Problem {
    code: Code,
    detail: String,
    errors: Vec<FieldError>,
    retry_after: Option<u32>,
    // Boxed: it is rare, and a Problem is what every handler's Result carries.
    allow: Option<Box<HeaderValue>>,
    request_id: Option<String>,
}

/// The body of a [`Problem`], as it is sent.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Problem)]
pub struct ProblemBody<'a> {
    /// A stable reference for this kind of problem.
    #[serde(rename = "type")]
    #[schema(example = "/docs/errors#validation_failed")]
    type_: String,
    /// The kind in words.
    #[schema(example = "The request breaks a rule")]
    title: &'a str,
    /// The HTTP status.
    #[schema(example = 422)]
    status: u16,
    /// What happened this time.
    #[schema(example = "to: must be a phone number in E.164 form or a WhatsApp id")]
    detail: &'a str,
    /// The kind in one stable word.
    #[schema(example = "validation_failed")]
    code: &'a str,
    /// The request, as in the header `X-Request-Id`.
    #[schema(example = "01994f3e-6d4f-7cc3-98d5-8f1c1f0a2b3c")]
    request_id: &'a str,
    /// Each rule that was broken; only with `validation_failed`.
    #[serde(skip_serializing_if = "<[FieldError]>::is_empty")]
    #[schema(required = false)]
    errors: &'a [FieldError],
}

impl Problem {
    /// A problem of the kind `code`; `detail` is for people.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        let retry_after = code.retry_after();
        Self { code, detail: detail.into(), errors: Vec::new(), retry_after, allow: None, request_id: None }
    }

    /// 422 with every rule that was broken.
    #[must_use]
    pub fn validation(errors: Vec<FieldError>) -> Self {
        let detail = match errors.first() {
            Some(first) if errors.len() == 1 => format!("{}: {}", first.field, first.message),
            Some(first) => format!("{}: {} (and {} more)", first.field, first.message, errors.len() - 1),
            None => Code::ValidationFailed.title().to_owned(),
        };
        Self { errors, ..Self::new(Code::ValidationFailed, detail) }
    }

    /// 422 with one broken rule.
    pub fn invalid(field: impl Into<String>, code: impl Into<String>, message: impl Into<String>) -> Self {
        Self::validation(vec![FieldError::new(field, code, message)])
    }

    /// 404. Also for what belongs to another tenant: the two must not be told apart.
    #[must_use]
    pub fn not_found() -> Self {
        Self::new(Code::NotFound, "No such resource")
    }

    /// 409 with what stands in the way.
    pub fn conflict(detail: impl Into<String>) -> Self {
        Self::new(Code::Conflict, detail)
    }

    /// Adds a broken rule.
    #[must_use]
    pub fn field(mut self, field: impl Into<String>, code: impl Into<String>, message: impl Into<String>) -> Self {
        self.errors.push(FieldError::new(field, code, message));
        self
    }

    /// Sets `Retry-After`, in seconds.
    #[must_use]
    pub fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// Names the request in the answer; the middleware does it for every answer.
    #[must_use]
    pub fn request_id(mut self, id: &str) -> Self {
        self.request_id = Some(id.to_owned());
        self
    }

    pub(super) fn allow(mut self, methods: Option<HeaderValue>) -> Self {
        self.allow = methods.map(Box::new);
        self
    }

    /// Its kind.
    #[must_use]
    pub fn code(&self) -> Code {
        self.code
    }

    /// What happened this time.
    #[must_use]
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// Each rule that was broken.
    #[must_use]
    pub fn errors(&self) -> &[FieldError] {
        &self.errors
    }

    /// The body as JSON, for answers that carry problems of their parts.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::to_value(self.body()).unwrap_or_default()
    }

    fn body(&self) -> ProblemBody<'_> {
        ProblemBody {
            type_: format!("/docs/errors#{}", self.code.as_str()),
            title: self.code.title(),
            status: self.code.status().as_u16(),
            detail: &self.detail,
            code: self.code.as_str(),
            request_id: self.request_id.as_deref().unwrap_or(""),
            errors: &self.errors,
        }
    }

    /// The problem that an error of actix itself stands for.
    #[must_use]
    pub fn of_error(error: &actix_web::Error) -> Self {
        if let Some(problem) = error.as_error::<Self>() {
            return problem.clone();
        }
        let status = error.as_response_error().status_code();
        if status.is_server_error() {
            tracing::error!(%error, "a request failed inside the server");
        }
        Self::of_status(status)
    }

    /// The problem for an answer of which only the status is known.
    #[must_use]
    pub fn of_status(status: StatusCode) -> Self {
        let code = Code::of_status(status);
        Self::new(code, code.title())
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code.as_str(), self.detail)
    }
}

impl std::error::Error for Problem {}

impl ResponseError for Problem {
    fn status_code(&self) -> StatusCode {
        self.code.status()
    }

    fn error_response(&self) -> HttpResponse {
        let mut response = HttpResponseBuilder::new(self.code.status());
        response.insert_header((header::CONTENT_TYPE, "application/problem+json"));
        response.insert_header((header::CACHE_CONTROL, "no-store"));
        if let Some(seconds) = self.retry_after {
            response.insert_header((header::RETRY_AFTER, seconds));
        }
        if self.code == Code::Unauthorized {
            response.insert_header((header::WWW_AUTHENTICATE, "Bearer"));
        }
        if let Some(methods) = &self.allow {
            response.insert_header((header::ALLOW, HeaderValue::clone(methods)));
        }
        if let Some(id) = &self.request_id {
            response.insert_header((REQUEST_ID, id.as_str()));
        }
        response.body(serde_json::to_vec(&self.body()).unwrap_or_default())
    }
}

impl From<&DbError> for Problem {
    fn from(fault: &DbError) -> Self {
        match fault {
            DbError::Unavailable(_) | DbError::Contended(_) => {
                tracing::warn!(%fault, "a request found the database unavailable");
                Self::new(Code::Unavailable, "The database is busy or away; the same request may succeed later")
            }
            DbError::Duplicate(_) => Self::conflict("It exists already"),
            DbError::Refused(_) | DbError::Query(_) => {
                tracing::error!(%fault, "a request failed in the database");
                Self::new(Code::Internal, "The request failed; its id finds it in the log")
            }
        }
    }
}

impl From<DbError> for Problem {
    fn from(fault: DbError) -> Self {
        Self::from(&fault)
    }
}

impl From<diesel::result::Error> for Problem {
    fn from(fault: diesel::result::Error) -> Self {
        match fault {
            diesel::result::Error::NotFound => Self::not_found(),
            fault => Self::from(DbError::from(fault)),
        }
    }
}

impl From<GroupCommitError> for Problem {
    fn from(fault: GroupCommitError) -> Self {
        match fault {
            GroupCommitError::Database(fault) => Self::from(&*fault),
            GroupCommitError::Overloaded | GroupCommitError::Stopped => {
                Self::new(Code::Unavailable, "Too much is waiting; the same request may succeed later")
            }
        }
    }
}

impl From<tokio::task::JoinError> for Problem {
    fn from(fault: tokio::task::JoinError) -> Self {
        if fault.is_panic() {
            metrics::counter!("http_panics_total").increment(1);
            tracing::error!("a request's work panicked");
            return Self::new(Code::Internal, "The request failed; its id finds it in the log");
        }
        Self::new(Code::Unavailable, "The service is shutting down")
    }
}
