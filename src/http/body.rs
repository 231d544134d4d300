//! JSON bodies, read strictly: what is not understood is refused, and named.

use std::time::Duration;

use actix_web::dev::Payload;
use actix_web::http::header;
use actix_web::{FromRequest, HttpMessage, HttpRequest};
use bytes::BytesMut;
use futures_util::StreamExt;
use futures_util::future::LocalBoxFuture;
use serde::de::DeserializeOwned;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::problem::{Code, FieldError, Problem};

/// The largest JSON body, in bytes.
pub const MOST_BYTES: usize = 1024 * 1024;

/// How long a body may take to arrive.
const ARRIVAL: Duration = Duration::from_secs(10);

/// A JSON body of the form `T`. Derive `Deserialize` with `deny_unknown_fields` for `T`.
#[derive(Debug)]
pub struct Body<T> {
    /// The content.
    pub content: T,
    json: Value,
}

impl<T> Body<T> {
    /// The content alone.
    pub fn into_inner(self) -> T {
        self.content
    }

    /// What two requests of the same `operation` with the same content have in common, however they are written.
    pub fn fingerprint(&self, operation: &str) -> [u8; 32] {
        fingerprint(operation, &self.json)
    }
}

/// SHA-256 over the operation and the canonical form of `json`: members sorted by name, no white space.
#[must_use]
pub fn fingerprint(operation: &str, json: &Value) -> [u8; 32] {
    let mut canonical = Vec::with_capacity(256);
    canonical.extend_from_slice(operation.as_bytes());
    canonical.push(0);
    write_canonical(json, &mut canonical);
    Sha256::digest(&canonical).into()
}

fn write_canonical(json: &Value, out: &mut Vec<u8>) {
    match json {
        Value::Object(members) => {
            let mut sorted: Vec<_> = members.iter().collect();
            sorted.sort_unstable_by_key(|(name, _)| *name);
            out.push(b'{');
            for (name, value) in sorted {
                write_scalar(&Value::String(name.clone()), out);
                out.push(b':');
                write_canonical(value, out);
                out.push(b',');
            }
            out.push(b'}');
        }
        Value::Array(items) => {
            out.push(b'[');
            for item in items {
                write_canonical(item, out);
                out.push(b',');
            }
            out.push(b']');
        }
        scalar => write_scalar(scalar, out),
    }
}

fn write_scalar(scalar: &Value, out: &mut Vec<u8>) {
    // Writing a scalar to memory cannot fail.
    let _written: Result<(), _> = serde_json::to_writer(out, scalar);
}

/// Reads `bytes` as `T` under the rules of [`Body`].
///
/// # Errors
/// 400 when it is not JSON, 422 naming the field when it is not a `T`.
pub fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<Body<T>, Problem> {
    let json: Value = serde_json::from_slice(bytes).map_err(|fault| {
        // The parser's words name a place and a rule; they hold no content.
        Problem::new(Code::MalformedJson, fault.to_string())
    })?;
    let content = from_json(&json)?;
    Ok(Body { content, json })
}

/// Reads `json` as `T` under the rules of [`Body`].
///
/// # Errors
/// 422 naming the field.
pub fn from_json<T: DeserializeOwned>(json: &Value) -> Result<T, Problem> {
    // Serde would take an array for a struct, field by field.
    if !json.is_object() {
        return Err(Problem::invalid("(body)", "invalid_type", "must be an object"));
    }
    let mut path = Vec::new();
    if let Some(field) = find_nul(json, &mut path) {
        return Err(Problem::invalid(field, "invalid_character", "must not contain the character U+0000"));
    }
    serde_path_to_error::deserialize(json).map_err(|fault| {
        let path = fault.path().to_string();
        Problem::validation(vec![explain(if path == "." { "" } else { &path }, &fault.inner().to_string())])
    })
}

fn find_nul<'a>(json: &'a Value, path: &mut Vec<std::borrow::Cow<'a, str>>) -> Option<String> {
    let here = |path: &[std::borrow::Cow<'a, str>]| path.concat().trim_start_matches('.').replace('\0', "\u{fffd}");
    match json {
        Value::String(text) if text.contains('\0') => Some(here(path)),
        Value::Object(members) => {
            for (name, value) in members {
                path.push(".".into());
                path.push(name.into());
                if name.contains('\0') {
                    return Some(here(path));
                }
                if let Some(found) = find_nul(value, path) {
                    return Some(found);
                }
                path.truncate(path.len().saturating_sub(2));
            }
            None
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                path.push(format!("[{index}]").into());
                if let Some(found) = find_nul(item, path) {
                    return Some(found);
                }
                path.pop();
            }
            None
        }
        _ => None,
    }
}

/// Says what a deserialiser's message means for a caller, without repeating the value.
pub(super) fn explain(path: &str, message: &str) -> FieldError {
    let named = |rest: &str| {
        let name = rest.split('`').next().unwrap_or_default();
        if path.is_empty() {
            name.to_owned()
        } else if path == name || path.ends_with(&format!(".{name}")) {
            path.to_owned()
        } else {
            format!("{path}.{name}")
        }
    };
    let expected = || message.rsplit_once(", expected ").map(|(_, expected)| wording(expected));
    let field = || if path.is_empty() { "(body)".to_owned() } else { path.to_owned() };
    if let Some(rest) = message.strip_prefix("unknown field `") {
        FieldError::new(named(rest), "unknown_field", "no such field")
    } else if let Some(rest) = message.strip_prefix("missing field `") {
        FieldError::new(named(rest), "required", "is required")
    } else if let Some(rest) = message.strip_prefix("duplicate field `") {
        FieldError::new(named(rest), "duplicate", "is given twice")
    } else if message.starts_with("invalid type: ") {
        let rule =
            expected().map_or_else(|| "is of the wrong type".to_owned(), |expected| format!("must be {expected}"));
        FieldError::new(field(), "invalid_type", rule)
    } else if message.starts_with("unknown variant `") {
        let rule =
            expected().map_or_else(|| "is not one of the values".to_owned(), |expected| format!("must be {expected}"));
        FieldError::new(field(), "invalid_value", rule)
    } else if message.starts_with("invalid value: ") || message.starts_with("invalid length ") {
        let rule = expected().map_or_else(|| "is out of range".to_owned(), |expected| format!("must be {expected}"));
        FieldError::new(field(), "invalid_value", rule)
    } else if message.contains("invalid digit") || message.contains("cannot parse integer") {
        FieldError::new(field(), "invalid_type", "must be a whole number in range")
    } else {
        FieldError::new(field(), "invalid_value", "is not valid")
    }
}

fn wording(expected: &str) -> String {
    match expected {
        "a sequence" => "an array".to_owned(),
        "a map" => "an object".to_owned(),
        "f32" | "f64" => "a number".to_owned(),
        "bool" => "true or false".to_owned(),
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number in range".to_owned(),
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number in range, not below 0".to_owned(),
        other if other.starts_with("struct ") || other.starts_with("map") => "an object".to_owned(),
        other if other.starts_with("a sequence") || other.starts_with("sequence") => "an array".to_owned(),
        other if other.contains("enum ") || other.starts_with("variant") => "one of the listed values".to_owned(),
        other => other.replace("formatted date and time string", "a time in RFC 3339 form"),
    }
}

impl<T: DeserializeOwned + 'static> FromRequest for Body<T> {
    type Error = Problem;
    type Future = LocalBoxFuture<'static, Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let acceptable = is_json(request);
        let announced = announced_length(request);
        let payload = payload.take();
        Box::pin(async move {
            if !acceptable {
                return Err(Problem::new(Code::UnsupportedMediaType, "Send the body as application/json"));
            }
            parse(&read(payload, announced, MOST_BYTES).await?)
        })
    }
}

/// A JSON body that is read item by item, so that a fault in one of them stays its own.
#[derive(Debug)]
pub struct Json(pub Value);

impl FromRequest for Json {
    type Error = Problem;
    type Future = LocalBoxFuture<'static, Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let acceptable = is_json(request);
        let announced = announced_length(request);
        let payload = payload.take();
        Box::pin(async move {
            if !acceptable {
                return Err(Problem::new(Code::UnsupportedMediaType, "Send the body as application/json"));
            }
            let bytes = read(payload, announced, MOST_BYTES).await?;
            serde_json::from_slice(&bytes)
                .map(Self)
                .map_err(|fault| Problem::new(Code::MalformedJson, fault.to_string()))
        })
    }
}

/// A [`Body`] that may be left out altogether, which means the same as `{}`.
#[derive(Debug)]
pub struct MaybeBody<T>(pub Body<T>);

impl<T: DeserializeOwned + 'static> FromRequest for MaybeBody<T> {
    type Error = Problem;
    type Future = LocalBoxFuture<'static, Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let acceptable = is_json(request);
        let announced = announced_length(request);
        let payload = payload.take();
        Box::pin(async move {
            let bytes = read(payload, announced, MOST_BYTES).await?;
            if bytes.is_empty() {
                return parse(b"{}").map(Self);
            }
            if !acceptable {
                return Err(Problem::new(Code::UnsupportedMediaType, "Send the body as application/json"));
            }
            parse(&bytes).map(Self)
        })
    }
}

/// For a member that may be left out or be null: `#[serde(default, deserialize_with = "nullable")]` on an
/// `Option<Option<T>>`. Absent is `None`, null is `Some(None)`.
///
/// # Errors
/// Those of `T`.
pub fn nullable<'de, D: serde::Deserializer<'de>, T: serde::Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<Option<T>>, D::Error> {
    <Option<T> as serde::Deserialize>::deserialize(deserializer).map(Some)
}

fn is_json(request: &HttpRequest) -> bool {
    let kind = request.content_type();
    let json = kind.eq_ignore_ascii_case("application/json")
        || (kind.to_ascii_lowercase().starts_with("application/") && kind.to_ascii_lowercase().ends_with("+json"));
    // A compressed body would be read as rubbish; say so instead.
    json && request.headers().get(header::CONTENT_ENCODING).is_none_or(|coding| coding == "identity")
}

fn announced_length(request: &HttpRequest) -> Option<usize> {
    request.headers().get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Reads a raw body of at most `most` bytes, within the time a body may take.
///
/// # Errors
/// 413 when it is larger, 408 when it is too slow, 400 when it breaks off.
pub async fn read_raw(request: &HttpRequest, payload: Payload, most: usize) -> Result<bytes::Bytes, Problem> {
    read(payload, announced_length(request), most).await
}

async fn read(mut payload: Payload, announced: Option<usize>, most: usize) -> Result<bytes::Bytes, Problem> {
    let too_large = || Problem::new(Code::PayloadTooLarge, format!("The body may have at most {most} bytes"));
    if announced.is_some_and(|length| length > most) {
        return Err(too_large());
    }
    let reading = async {
        let mut body = BytesMut::with_capacity(announced.unwrap_or(512).min(64 * 1024));
        while let Some(chunk) = payload.next().await {
            let chunk = chunk.map_err(|_| Problem::new(Code::BadRequest, "The body broke off"))?;
            if body.len() + chunk.len() > most {
                return Err(too_large());
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body.freeze())
    };
    tokio::time::timeout(ARRIVAL, reading)
        .await
        .unwrap_or_else(|_| Err(Problem::new(Code::RequestTimeout, "The body took too long to arrive")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only its form matters")]
    struct Inner {
        count: u8,
        when: Option<chrono::DateTime<chrono::Utc>>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Choice {
        One,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only its form matters")]
    struct Outer {
        name: String,
        inner: Option<Inner>,
        list: Option<Vec<Inner>>,
        choice: Option<Choice>,
    }

    fn refusal(body: &str) -> (Code, String, String) {
        let problem = parse::<Outer>(body.as_bytes()).unwrap_err();
        let (field, code) = problem.errors().first().map(|e| (e.field.clone(), e.code.clone())).unwrap_or_default();
        (problem.code(), field, code)
    }

    #[test]
    fn faults_name_their_field() {
        for (body, field, code) in [
            (r#"{"name":"a","nam":1}"#, "nam", "unknown_field"),
            (r#"{"name":"a","inner":{"count":1,"x":1}}"#, "inner.x", "unknown_field"),
            (r#"{}"#, "name", "required"),
            (r#"{"name":"a","inner":{}}"#, "inner.count", "required"),
            (r#"{"name":1}"#, "name", "invalid_type"),
            (r#"{"name":null}"#, "name", "invalid_type"),
            (r#"[]"#, "(body)", "invalid_type"),
            (r#""text""#, "(body)", "invalid_type"),
            (r#"{"name":"a","list":[{"count":1},{"count":"1"}]}"#, "list[1].count", "invalid_type"),
            (r#"{"name":"a","inner":{"count":300}}"#, "inner.count", "invalid_value"),
            (r#"{"name":"a","inner":{"count":1,"when":"soon"}}"#, "inner.when", "invalid_value"),
            (r#"{"name":"a","choice":"two"}"#, "choice", "invalid_value"),
            (r#"{"name":"a\u0000b"}"#, "name", "invalid_character"),
            (r#"{"name":"a","list":[{"count":1},{"b\u0000c":1}]}"#, "list[1].b\u{fffd}c", "invalid_character"),
        ] {
            assert_eq!(refusal(body), (Code::ValidationFailed, field.to_owned(), code.to_owned()), "{body}");
        }
    }

    #[test]
    fn what_is_not_json_is_malformed() {
        for body in
            ["", "{", "{\"name\":\"\\ud800\"}", "{\"name\":\"a\"} x", "{\"name\":\"a\u{1}\"}", "nul", "{'name':1}"]
        {
            assert_eq!(refusal(body).0, Code::MalformedJson, "{body}");
        }
        assert_eq!(parse::<Outer>(b"{\"name\":\"\xff\"}").unwrap_err().code(), Code::MalformedJson);
        assert_eq!(parse::<Outer>("[".repeat(100_000).as_bytes()).unwrap_err().code(), Code::MalformedJson, "depth");
    }

    #[test]
    fn a_fingerprint_ignores_the_way_of_writing() {
        let one = parse::<Outer>(br#"{"name":"a","inner":{"count":1,"when":null}}"#).unwrap();
        let same = parse::<Outer>(b"{ \"inner\": {\"when\":null,\"count\":1}, \"name\":\"\\u0061\" }").unwrap();
        let other = parse::<Outer>(br#"{"name":"b","inner":{"count":1,"when":null}}"#).unwrap();
        assert_eq!(one.fingerprint("x"), same.fingerprint("x"));
        assert_ne!(one.fingerprint("x"), other.fingerprint("x"));
        assert_ne!(one.fingerprint("x"), one.fingerprint("y"), "another operation");
    }
}
