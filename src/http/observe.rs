//! The outermost layer: every answer gets its request id, every error its problem body, every panic an answer, and every
//! request one line in the log and its metrics. Log lines hold ids, never content.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Instant;

use actix_web::body::{BoxBody, MessageBody};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header::{self, HeaderValue};
use actix_web::http::{Method, StatusCode};
use actix_web::middleware::Next;
use actix_web::{HttpMessage, HttpResponse, ResponseError, web};
use futures_util::FutureExt;
use metrics::SharedString;

use super::caller::Caller;
use super::problem::{Code, Problem, REQUEST_ID};
use crate::app::App;

/// The id of the running request, in its extensions.
#[derive(Clone, Debug)]
pub struct RequestId(pub String);

/// The pattern of the route that the running request meets, in its extensions: found once for all layers.
#[derive(Clone, Debug)]
pub(super) struct Pattern(pub(super) Option<Arc<str>>);

fn is_sane(id: &str) -> bool {
    (1..=128).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

/// Middleware, as told above.
pub(super) async fn observe(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, actix_web::Error> {
    let began = Instant::now();
    let id = match request.headers().get(&REQUEST_ID).and_then(|value| value.to_str().ok()).filter(|id| is_sane(id)) {
        Some(id) => id.to_owned(),
        None => fresh_id(&request),
    };
    let method = request.method().clone();
    let pattern: Option<Arc<str>> = request.match_pattern().map(Into::into);
    let route = pattern.clone().unwrap_or_else(|| "unmatched".into());
    request.extensions_mut().insert(RequestId(id.clone()));
    request.extensions_mut().insert(Pattern(pattern));

    let answer = AssertUnwindSafe(next.call(request)).catch_unwind().await.unwrap_or_else(|_| {
        metrics::counter!("http_panics_total").increment(1);
        tracing::error!(%method, route = &*route, request_id = id, "a handler panicked");
        Err(Problem::new(Code::Internal, "The request failed; its id finds it in the log").into())
    });
    let answer = match answer {
        Ok(response) => Ok(finish(response.map_into_boxed_body(), &id)),
        Err(error) => Err(Problem::of_error(&error).request_id(&id)),
    };

    let status = match &answer {
        Ok(response) => response.status(),
        Err(problem) => problem.status_code(),
    };
    let elapsed = began.elapsed();
    let tenant = answer
        .as_ref()
        .ok()
        .and_then(|response| response.request().extensions().get::<Caller>().and_then(Caller::tenant_for_log));
    let (verb, path) = (method_label(&method), SharedString::from(Arc::clone(&route)));
    metrics::counter!("http_requests_total", "method" => verb, "route" => path.clone(), "status" => status_label(status))
        .increment(1);
    metrics::histogram!("http_request_duration_seconds", "method" => verb, "route" => path).record(elapsed);
    let ms = elapsed.as_micros() as f64 / 1000.0;
    let tenant_id = tenant.map(|tenant| tenant.to_string());
    if route.starts_with("/v1") || status.is_server_error() {
        tracing::info!(%method, route = &*route, status = status.as_u16(), ms, request_id = id, tenant_id, "request");
    } else {
        tracing::debug!(%method, route = &*route, status = status.as_u16(), ms, request_id = id, "request");
    }
    answer.map_err(Into::into)
}

/// An invented method must not make a time series of its own.
fn method_label(method: &Method) -> &'static str {
    const KNOWN: [&str; 7] = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"];
    KNOWN.into_iter().find(|known| *known == method.as_str()).unwrap_or("OTHER")
}

/// The usual ones without an allocation.
fn status_label(status: StatusCode) -> SharedString {
    match status.as_u16() {
        200 => "200".into(),
        201 => "201".into(),
        202 => "202".into(),
        other => other.to_string().into(),
    }
}

fn fresh_id(request: &ServiceRequest) -> String {
    match request.app_data::<web::Data<App>>() {
        Some(app) => app.chance.uuid(app.clock.now()).to_string(),
        None => String::new(),
    }
}

/// Gives `response` its request id, and a problem body if it is an error that does not explain itself.
fn finish(response: ServiceResponse<BoxBody>, id: &str) -> ServiceResponse<BoxBody> {
    let status = response.status();
    // A page for people explains itself, too.
    let described = response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| {
        [&b"application/"[..], b"text/html"].iter().any(|known| kind.as_bytes().starts_with(known))
    });
    let problem = match response.response().error() {
        Some(error) => Some(Problem::of_error(error)),
        None if (status.is_client_error() || status.is_server_error()) && !described => {
            Some(Problem::of_status(status))
        }
        None => None,
    };
    let mut response = match problem {
        Some(problem) => {
            let allow = response.headers().get(header::ALLOW).cloned();
            let (request, _) = response.into_parts();
            let response: HttpResponse = problem.allow(allow).request_id(id).error_response();
            ServiceResponse::new(request, response)
        }
        None => response,
    };
    if let Ok(value) = HeaderValue::from_str(id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sane_ids_are_taken() {
        for good in ["a", "01994f3e-6d4f-7cc3-98d5-8f1c1f0a2b3c", "A.b_c-9", &"x".repeat(128)] {
            assert!(is_sane(good), "{good}");
        }
        for bad in ["", "a b", "a\nb", "é", "a/b", "a\"", &"x".repeat(129)] {
            assert!(!is_sane(bad), "{bad:?}");
        }
    }
}
