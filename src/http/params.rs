//! What a request carries beside its body: path, query, pages and conditional headers.

use std::future::{Ready, ready};

use actix_web::dev::Payload;
use actix_web::http::header;
use actix_web::{FromRequest, HttpRequest};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, Utc};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::body::explain;
use super::problem::{Code, Problem};

/// The ids in the path: one value, or a tuple in the order of the path. What cannot be an id answers 404.
#[derive(Debug)]
pub struct Path<T>(pub T);

impl<T: DeserializeOwned> FromRequest for Path<T> {
    type Error = Problem;
    type Future = Ready<Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let info = request.match_info();
        let storable = info.iter().all(|(_, segment)| !segment.contains('\0') && !segment.contains("%00"));
        let parsed = storable.then(|| info.load::<T>().ok()).flatten();
        ready(parsed.map(Self).ok_or_else(Problem::not_found))
    }
}

/// The query as `T`. Derive `Deserialize` with `deny_unknown_fields` for `T`; a list adds the fields
/// `limit: Option<u32>` and `cursor: Option<String>` and makes its [`Page`] of them.
#[derive(Debug)]
pub struct Query<T>(pub T);

impl<T: DeserializeOwned> FromRequest for Query<T> {
    type Error = Problem;
    type Future = Ready<Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(query_pairs(request).and_then(|pairs| parse_query(&pairs)).map(Self))
    }
}

/// The query as it stands, for routes with open-ended parameters; hand what remains to [`parse_query`].
///
/// # Errors
/// 422 when a value holds U+0000.
pub fn query_pairs(request: &HttpRequest) -> Result<Vec<(String, String)>, Problem> {
    url::form_urlencoded::parse(request.query_string().as_bytes())
        .map(|(name, value)| {
            if name.contains('\0') || value.contains('\0') {
                let name = name.replace('\0', "\u{fffd}");
                return Err(Problem::invalid(name, "invalid_character", "must not contain the character U+0000"));
            }
            Ok((name.into_owned(), value.into_owned()))
        })
        .collect()
}

/// Reads query parameters as `T`.
///
/// # Errors
/// 422 naming the parameter.
pub fn parse_query<T: DeserializeOwned>(pairs: &[(String, String)]) -> Result<T, Problem> {
    let encoded = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish();
    let reader = serde_urlencoded::Deserializer::new(url::form_urlencoded::parse(encoded.as_bytes()));
    serde_path_to_error::deserialize(reader).map_err(|fault| {
        let path = fault.path().to_string();
        Problem::validation(vec![explain(if path == "." { "" } else { &path }, &fault.inner().to_string())])
    })
}

/// The parameters of a list without filters, for the OpenAPI document.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PageParams {
    /// How many at most: 1 to 200, default 50.
    #[param(minimum = 1, maximum = 200, default = 50, example = 50)]
    pub limit: Option<u32>,
    /// Where to go on: `next_cursor` of the page before.
    pub cursor: Option<String>,
}

/// Which page of a list is asked for: `limit` rows after `after`, newest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    /// 1 to 200 rows.
    pub limit: i64,
    /// The last row of the page before.
    pub after: Option<Cursor>,
}

impl Page {
    /// Rows on a page unless the caller says otherwise.
    pub const DEFAULT: u32 = 50;
    /// Rows on a page at the most.
    pub const MOST: u32 = 200;

    /// Checks what the caller asked for.
    ///
    /// # Errors
    /// 422 naming `limit` or `cursor`.
    pub fn new(limit: Option<u32>, cursor: Option<&str>) -> Result<Self, Problem> {
        let limit = limit.unwrap_or(Self::DEFAULT);
        if !(1..=Self::MOST).contains(&limit) {
            return Err(Problem::invalid("limit", "out_of_range", "must be from 1 to 200"));
        }
        let after = cursor.map(|text| {
            Cursor::decode(text)
                .ok_or_else(|| Problem::invalid("cursor", "invalid_value", "is not a cursor of this list"))
        });
        Ok(Self { limit: i64::from(limit), after: after.transpose()? })
    }

    /// One more than `limit`: ask the database for this many, to know whether another page follows.
    #[must_use]
    pub fn fetch(&self) -> i64 {
        self.limit + 1
    }

    /// The answer for `rows`, of which [`Page::fetch`] were asked for; `place` tells where a row stands in the list.
    pub fn answer<T>(&self, mut rows: Vec<T>, place: impl Fn(&T) -> Cursor) -> List<T> {
        let limit = usize::try_from(self.limit).unwrap_or(usize::MAX);
        let more = rows.len() > limit;
        rows.truncate(limit);
        let next_cursor = rows.last().filter(|_| more).map(|last| place(last).encode());
        List { data: rows, next_cursor }
    }
}

impl FromRequest for Page {
    type Error = Problem;
    type Future = Ready<Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(
            query_pairs(request)
                .and_then(|pairs| parse_query::<PageParams>(&pairs))
                .and_then(|params| Self::new(params.limit, params.cursor.as_deref())),
        )
    }
}

/// A page of a list.
#[derive(Debug, Serialize, ToSchema)]
pub struct List<T> {
    /// The rows, newest first.
    pub data: Vec<T>,
    /// Hand it in as `cursor` for the next page; null on the last one.
    #[schema(required)]
    pub next_cursor: Option<String>,
}

impl<T> List<T> {
    /// The same page with each row turned into another form.
    pub fn map<U>(self, form: impl FnMut(T) -> U) -> List<U> {
        List { data: self.data.into_iter().map(form).collect(), next_cursor: self.next_cursor }
    }
}

/// A row's place in a list that is ordered by time, then id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// The time the list is ordered by.
    pub at: DateTime<Utc>,
    /// Breaks ties.
    pub id: Uuid,
}

impl Cursor {
    /// The opaque form.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut bytes = [0; 24];
        let (at, id) = bytes.split_at_mut(8);
        at.copy_from_slice(&self.at.timestamp_micros().to_be_bytes());
        id.copy_from_slice(self.id.as_bytes());
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Reads what [`Cursor::encode`] wrote.
    #[must_use]
    pub fn decode(text: &str) -> Option<Self> {
        let bytes: [u8; 24] = URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()?;
        let (at, id) = bytes.split_first_chunk::<8>()?;
        let at = DateTime::from_timestamp_micros(i64::from_be_bytes(*at))?;
        // Postgres keeps years 4713 BC to 294276; anything this service wrote is far inside.
        if !(0..=9999).contains(&chrono::Datelike::year(&at)) {
            return None;
        }
        Some(Self { at, id: Uuid::from_slice(id).ok()? })
    }
}

/// The header of creating requests, for the OpenAPI document.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "describes a header; IdempotencyKey reads it")]
pub struct IdempotencyHeader {
    /// 1 to 255 visible ASCII characters. The same key with the same body gets the first answer again, for 24 hours.
    #[param(rename = "Idempotency-Key", min_length = 1, max_length = 255, example = "order-4711")]
    key: Option<String>,
}

/// The header of changing requests, for the OpenAPI document.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "describes a header; IfMatch reads it")]
pub struct IfMatchHeader {
    /// The `version` the change is based on, in double quotes; another current version answers 412.
    #[param(rename = "If-Match", example = "\"3\"")]
    version: Option<String>,
}

/// The `Idempotency-Key` of a request, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdempotencyKey(pub String);

impl FromRequest for IdempotencyKey {
    type Error = Problem;
    type Future = Ready<Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let missing = || Problem::invalid("Idempotency-Key", "required", "is required");
        ready(idempotency_key(request).and_then(|key| key.ok_or_else(missing)))
    }
}

/// The `Idempotency-Key` of a request that need not have one; as an argument of a handler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MaybeIdempotencyKey(pub Option<IdempotencyKey>);

impl FromRequest for MaybeIdempotencyKey {
    type Error = Problem;
    type Future = Ready<Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(idempotency_key(request).map(Self))
    }
}

fn idempotency_key(request: &HttpRequest) -> Result<Option<IdempotencyKey>, Problem> {
    let mut values = request.headers().get_all("idempotency-key");
    let Some(value) = values.next() else { return Ok(None) };
    let fits = (1..=255).contains(&value.len()) && value.as_bytes().iter().all(u8::is_ascii_graphic);
    match value.to_str() {
        Ok(key) if fits && values.next().is_none() => Ok(Some(IdempotencyKey(key.to_owned()))),
        _ => Err(Problem::invalid(
            "Idempotency-Key",
            "invalid_value",
            "must be 1 to 255 visible ASCII characters, given once",
        )),
    }
}

/// The version that `If-Match` asks for; `None` when the header is absent or `*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IfMatch(pub Option<i64>);

impl IfMatch {
    /// Compares with the current version.
    ///
    /// # Errors
    /// 412 when another one was asked for.
    pub fn check(self, current: i64) -> Result<(), Problem> {
        match self.0 {
            Some(wanted) if wanted != current => Err(Problem::new(
                Code::PreconditionFailed,
                format!("The current version is {current}; read the resource again before changing it"),
            )),
            _ => Ok(()),
        }
    }
}

impl FromRequest for IfMatch {
    type Error = Problem;
    type Future = Ready<Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let Some(value) = request.headers().get(header::IF_MATCH) else { return ready(Ok(Self(None))) };
        let text = value.to_str().unwrap_or_default().trim();
        if text == "*" {
            return ready(Ok(Self(None)));
        }
        let version = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(text);
        let rule =
            || Problem::invalid("If-Match", "invalid_value", "must be a version in double quotes, such as \"3\"");
        ready(version.parse().map(|version| Self(Some(version))).map_err(|_| rule()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use actix_web::test::TestRequest;

    fn page(query: &str) -> Result<Page, Problem> {
        let request = TestRequest::with_uri(&format!("/x?{query}")).to_http_request();
        Page::from_request(&request, &mut Payload::None).into_inner()
    }

    #[test]
    fn pages_are_checked() {
        assert_eq!(page("").unwrap(), Page { limit: 50, after: None });
        for (query, field) in [
            ("limit=0", "limit"),
            ("limit=201", "limit"),
            ("limit=-1", "limit"),
            ("limit=x", "limit"),
            ("limit=", "limit"),
            ("cursor=%00", "cursor"),
            ("cursor=abc", "cursor"),
            ("cursor=__________________________________________", "cursor"),
            ("cursor=", "cursor"),
            ("offset=1", "offset"),
            ("limit=1&limit=2", "limit"),
        ] {
            let problem = page(query).unwrap_err();
            assert_eq!(problem.code(), Code::ValidationFailed, "{query}");
            assert_eq!(problem.errors()[0].field, field, "{query}");
        }
    }

    #[test]
    fn a_cursor_comes_back_as_it_was() {
        let cursor =
            Cursor { at: DateTime::from_timestamp_micros(1_760_000_000_123_456).unwrap(), id: Uuid::from_u128(7) };
        assert_eq!(Cursor::decode(&cursor.encode()), Some(cursor));
        let page = page(&format!("limit=2&cursor={}", cursor.encode())).unwrap();
        assert_eq!(page, Page { limit: 2, after: Some(cursor) });
        let full = page.answer(vec![1, 2, 3], |_| cursor);
        assert_eq!((full.data, full.next_cursor), (vec![1, 2], Some(cursor.encode())));
        assert_eq!(page.answer(vec![1, 2], |_| cursor).next_cursor, None);
    }

    #[test]
    fn keys_and_versions_are_checked() {
        let key = |value: &str| {
            let request = TestRequest::default().insert_header(("Idempotency-Key", value)).to_http_request();
            idempotency_key(&request)
        };
        assert_eq!(key("a").unwrap(), Some(IdempotencyKey("a".to_owned())));
        assert!(key(&"a".repeat(255)).is_ok());
        for bad in ["", " ", "a b", "ü", &"a".repeat(256)] {
            assert_eq!(key(bad).unwrap_err().errors()[0].field, "Idempotency-Key", "{bad:?}");
        }
        let version = |value: &str| {
            let request = TestRequest::default().insert_header(("If-Match", value)).to_http_request();
            IfMatch::from_request(&request, &mut Payload::None).into_inner()
        };
        assert_eq!(version("\"3\"").unwrap(), IfMatch(Some(3)));
        assert_eq!(version("3").unwrap(), IfMatch(Some(3)));
        assert_eq!(version("*").unwrap(), IfMatch(None));
        assert!(version("\"x\"").is_err());
        assert_eq!(IfMatch(Some(3)).check(4).unwrap_err().code(), Code::PreconditionFailed);
    }
}
