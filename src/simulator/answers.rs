//! Answers as WAHA words them: three families of error bodies, and the ways a connection ends badly.

use std::io;
use std::time::Duration;

use actix_web::HttpResponse;
use actix_web::body::SizedStream;
use actix_web::http::StatusCode;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use serde::Serialize;
use serde_json::json;

/// One answer before it is put on the wire.
#[derive(Debug)]
pub(super) struct Answer {
    pub status: u16,
    pub body: Body,
}

#[derive(Debug)]
pub(super) enum Body {
    Empty,
    Json(String),
    Png(Vec<u8>),
    Html(&'static str),
    File(Served),
}

/// A file as it is given out.
#[derive(Debug)]
pub(super) struct Served {
    pub bytes: Bytes,
    pub mimetype: String,
    /// What `Content-Length` says; zeros come after the bytes.
    pub length: u64,
}

impl Served {
    fn into_response(self) -> HttpResponse {
        const PIECE: usize = 64 * 1024;
        let zeros = self.length.saturating_sub(self.bytes.len() as u64);
        let first = stream::once(std::future::ready(Ok::<_, io::Error>(self.bytes)));
        let rest = stream::unfold(zeros, |left| {
            let piece = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
            let next = (piece > 0).then(|| (Ok(Bytes::from_static(&[0; PIECE]).slice(..piece)), left - piece as u64));
            std::future::ready(next)
        });
        HttpResponse::Ok().content_type(self.mimetype).body(SizedStream::new(self.length, Box::pin(first.chain(rest))))
    }
}

impl Answer {
    pub fn json(status: u16, body: impl Into<String>) -> Self {
        Self { status, body: Body::Json(body.into()) }
    }

    pub fn of(status: u16, body: &impl Serialize) -> Self {
        Self::json(status, serde_json::to_string(body).unwrap_or_default())
    }

    pub fn empty(status: u16) -> Self {
        Self { status, body: Body::Empty }
    }

    /// Nest's own error body, in its own order of members.
    pub fn nest(status: u16, message: &str) -> Self {
        let error = match status {
            400 => "Bad Request",
            403 => "Forbidden",
            404 => "Not Found",
            422 => "Unprocessable Entity",
            _ => "Error",
        };
        Self::of(status, &Nest { message, error, status_code: status })
    }

    /// A 400 of the validation pipe.
    pub fn invalid(messages: &[String]) -> Self {
        Self::of(400, &Nest { message: messages, error: "Bad Request", status_code: 400 })
    }

    pub fn unauthorized() -> Self {
        Self::json(401, r#"{"message":"Unauthorized","statusCode":401}"#)
    }

    pub fn unknown_route(method: &str, path: &str) -> Self {
        Self::nest(404, &format!("Cannot {method} {path}"))
    }

    pub fn session_not_found() -> Self {
        Self::nest(404, "Session not found")
    }

    /// 422 of a call that needs a running session which does not exist.
    pub fn session_missing(session: &str) -> Self {
        #[derive(Serialize)]
        struct Missing<'a> {
            error: String,
            session: &'a str,
        }
        Self::of(422, &Missing { error: format!("Session \"{session}\" does not exist"), session })
    }

    /// 422 of a session in the wrong state: proof that nothing was sent.
    pub fn wrong_state(session: &str, status: &str, expected: &[&str]) -> Self {
        #[derive(Serialize)]
        struct WrongState<'a> {
            error: &'static str,
            session: &'a str,
            status: &'a str,
            expected: &'a [&'a str],
        }
        let error = "Session status is not as expected. Try again later or restart the session";
        Self::of(422, &WrongState { error, session, status, expected })
    }

    /// The 500 that echoes the request; `exception` is the engine's own object.
    pub fn engine_error(failure: &Failure<'_>, exception: &serde_json::Value) -> Self {
        let body: serde_json::Value = serde_json::from_slice(failure.body).unwrap_or(serde_json::Value::Null);
        let version: serde_json::Value = serde_json::from_str(failure.environment).unwrap_or_default();
        Self::of(
            500,
            &json!({
                "statusCode": 500,
                "timestamp": failure.now.to_rfc3339_opts(chrono::SecondsFormat::Millis, true),
                "exception": exception,
                "request": {"path": failure.path, "method": failure.method, "body": body, "query": {}},
                "version": version,
            }),
        )
    }

    /// What a reverse proxy says when WAHA does not.
    pub fn proxy_page(status: u16) -> Self {
        let page = match status {
            504 => {
                "<html>\r\n<head><title>504 Gateway Time-out</title></head>\r\n<body>\r\n<center><h1>504 Gateway Time-out</h1></center>\r\n<hr><center>nginx</center>\r\n</body>\r\n</html>\r\n"
            }
            _ => {
                "<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body>\r\n<center><h1>502 Bad Gateway</h1></center>\r\n<hr><center>nginx</center>\r\n</body>\r\n</html>\r\n"
            }
        };
        Self { status, body: Body::Html(page) }
    }

    pub fn into_response(self) -> HttpResponse {
        let mut response = HttpResponse::build(StatusCode::from_u16(self.status).unwrap_or(StatusCode::OK));
        match self.body {
            Body::Empty => response.finish(),
            Body::Json(text) => response.content_type("application/json; charset=utf-8").body(text),
            Body::Png(bytes) => response.content_type("image/png").body(bytes),
            Body::Html(page) => response.content_type("text/html").body(page),
            Body::File(served) => served.into_response(),
        }
    }

    /// The first half of the body, then the end of the connection.
    pub fn into_half_response(self) -> HttpResponse {
        let whole = match self.body {
            Body::Json(text) => Bytes::from(text),
            Body::Png(bytes) => Bytes::from(bytes),
            Body::Html(page) => Bytes::from_static(page.as_bytes()),
            Body::File(served) => served.bytes,
            Body::Empty => Bytes::from_static(b"{}"),
        };
        let length = whole.len() as u64;
        let half = whole.slice(..whole.len() / 2);
        let stream = stream::once(async move { Ok::<_, io::Error>(half) }).chain(stream::once(async {
            // The first half has to leave before the connection breaks.
            actix_web::rt::time::sleep(Duration::from_millis(30)).await;
            Err(io::ErrorKind::ConnectionReset.into())
        }));
        HttpResponse::build(StatusCode::from_u16(self.status).unwrap_or(StatusCode::OK))
            .content_type("application/json; charset=utf-8")
            .body(SizedStream::new(length, Box::pin(stream)))
    }
}

/// The end of the connection without a byte of answer.
pub(super) fn reset() -> HttpResponse {
    // A body that fails at once fails before the head is flushed, and takes the connection with it.
    let body = stream::once(async { Err::<Bytes, io::Error>(io::ErrorKind::ConnectionReset.into()) });
    HttpResponse::Ok().streaming(Box::pin(body))
}

/// What the 500's body echoes.
pub(super) struct Failure<'a> {
    pub method: &'a str,
    pub path: &'a str,
    pub body: &'a [u8],
    pub environment: &'a str,
    pub now: chrono::DateTime<chrono::Utc>,
}

#[derive(Serialize)]
struct Nest<'a, M: ?Sized> {
    message: &'a M,
    error: &'a str,
    #[serde(rename = "statusCode")]
    status_code: u16,
}
