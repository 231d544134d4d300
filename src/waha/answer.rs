//! WAHA's answers as they come over the wire: the error bodies it writes, and how little of them may be kept.

use serde_json::Value;

use super::engine::SessionStatus;

/// The longest piece of WAHA's own wording that is kept.
const LONGEST_DETAIL: usize = 200;

/// What kind of refusal an error body is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ErrorBody {
    /// `{error, session, status, expected}`: the session is not in the state the call needs. WAHA did nothing.
    State(SessionStatus),
    /// The server has no such session. WAHA did nothing.
    SessionMissing,
    /// The thing asked for (a message, a route) does not exist.
    NotFound(String),
    /// A rule of WAHA's refused the call; its wording, redacted.
    Rule(String),
    /// The engine threw: what is known of the exception.
    Exception(Exception),
    /// Not a body WAHA writes: a proxy's page, half an answer.
    Foreign,
}

/// What is kept of a 500: never the echo of the request, never the stack.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Exception {
    /// WhatsApp's own error number, if the engine passed one on.
    pub whatsapp_code: Option<u16>,
    /// What went wrong, as far as it is told apart.
    pub kind: ExceptionKind,
}

/// Engine errors that are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ExceptionKind {
    /// The engine waited in vain for WhatsApp.
    TimedOut,
    /// The connection to WhatsApp closed meanwhile.
    ConnectionClosed,
    /// A bug in WAHA or its engine.
    TypeError,
    /// Anything else.
    Other,
}

/// Reads the body of an answer that is not a success.
pub(super) fn read_error(body: &[u8]) -> ErrorBody {
    let Ok(Value::Object(members)) = serde_json::from_slice::<Value>(body) else {
        return ErrorBody::Foreign;
    };
    if let Some(exception) = members.get("exception") {
        return ErrorBody::Exception(read_exception(exception));
    }
    if let Some(error) = members.get("error").and_then(Value::as_str)
        && members.get("message").is_none()
    {
        if let Some(status) = members.get("status").and_then(Value::as_str) {
            return ErrorBody::State(SessionStatus::from_name(status));
        }
        return if error.contains("does not exist") {
            ErrorBody::SessionMissing
        } else {
            ErrorBody::Rule(redact(error))
        };
    }
    let message = match members.get("message") {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(lines)) => lines.iter().filter_map(Value::as_str).collect::<Vec<_>>().join("; "),
        _ => return ErrorBody::Foreign,
    };
    let missing =
        ["Session not found", "We didn't find a session with name", "WAHA Core support only 'default' session"];
    if missing.iter().any(|start| message.starts_with(start))
        || (message.starts_with("Session ") && message.ends_with("does not exist"))
    {
        return ErrorBody::SessionMissing;
    }
    if members.get("statusCode").and_then(Value::as_u64) == Some(404) {
        return ErrorBody::NotFound(redact(&message));
    }
    ErrorBody::Rule(redact(&message))
}

fn read_exception(exception: &Value) -> Exception {
    let text = |name: &str| exception.get(name).and_then(Value::as_str).unwrap_or_default();
    let (name, message, details) = (text("name"), text("message"), text("details"));
    let whatsapp_code = server_returned(message).or_else(|| server_returned(details)).or_else(|| {
        // gRPC codes are below 17 and Boom's copies of HTTP codes say nothing of a refusal, but this one is WhatsApp's alone.
        let code = exception.get("code")?;
        let code = code.as_u64().or_else(|| code.as_str()?.parse().ok())?;
        (code == 463).then_some(463)
    });
    let kind = if ["Timed Out", "timed out", "DEADLINE_EXCEEDED", "ETIMEDOUT"].iter().any(|part| message.contains(part))
    {
        ExceptionKind::TimedOut
    } else if ["Connection Closed", "Connection Terminated", "Target closed", "UNAVAILABLE", "ECONNRESET"]
        .iter()
        .any(|part| message.contains(part))
    {
        ExceptionKind::ConnectionClosed
    } else if name == "TypeError" {
        ExceptionKind::TypeError
    } else {
        ExceptionKind::Other
    };
    Exception { whatsapp_code, kind }
}

/// `… server returned error 463 …` → 463.
fn server_returned(message: &str) -> Option<u16> {
    let (_, rest) = message.split_once("server returned error ")?;
    let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok().filter(|code| (100..1000).contains(code))
}

/// WAHA's wording without what may be a number, an id or somebody's text: quoted parts and longer digit runs are blanked, and
/// the rest is cut short.
pub(super) fn redact(message: &str) -> String {
    let mut kept = String::new();
    let mut digits = String::new();
    let mut quote: Option<char> = None;
    let mut previous = ' ';
    for character in message.chars().chain(std::iter::once('\n')) {
        if character.is_ascii_digit() && quote.is_none() {
            digits.push(character);
            previous = character;
            continue;
        }
        kept.push_str(if digits.len() > 4 { "…" } else { &digits });
        digits.clear();
        match quote {
            Some(open) if character == open => {
                kept.push('…');
                kept.push(character);
                quote = None;
            }
            Some(_) => {}
            // An apostrophe inside a word opens nothing.
            None if matches!(character, '\'' | '"' | '`') && !previous.is_alphanumeric() => {
                kept.push(character);
                quote = Some(character);
            }
            None if character.is_control() => kept.push(' '),
            None => kept.push(character),
        }
        previous = character;
    }
    let kept = kept.trim_end();
    kept.chars().take(LONGEST_DETAIL).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_bodies_as_captured() {
        let cases = [
            (
                r#"{"error":"Session status is not as expected. Try again later or restart the session","session":"default","status":"STARTING","expected":["WORKING"]}"#,
                ErrorBody::State(SessionStatus::Starting),
            ),
            (r#"{"error":"Session \"x\" does not exist","session":"x"}"#, ErrorBody::SessionMissing),
            (r#"{"message":"Session not found","error":"Not Found","statusCode":404}"#, ErrorBody::SessionMissing),
            (
                r#"{"message":"We didn't find a session with name 'default'.\nPlease start it first by using POST /api/sessions/default/start request","error":"Not Found","statusCode":404}"#,
                ErrorBody::SessionMissing,
            ),
            (
                r#"{"message":"WAHA Core support only 'default' session. You tried to access 'other' session (base64: b3RoZXI=).","error":"Unprocessable Entity","statusCode":422}"#,
                ErrorBody::SessionMissing,
            ),
            (
                r#"{"message":"Session 'default' already exists. Use PUT to update it.","error":"Unprocessable Entity","statusCode":422}"#,
                ErrorBody::Rule("Session '…' already exists. Use PUT to update it.".into()),
            ),
            (
                r#"{"message":["name must be shorter than or equal to 54 characters","b"],"error":"Bad Request","statusCode":400}"#,
                ErrorBody::Rule("name must be shorter than or equal to 54 characters; b".into()),
            ),
            (
                r#"{"message":"Cannot GET /api/nope","error":"Not Found","statusCode":404}"#,
                ErrorBody::NotFound("Cannot GET /api/nope".into()),
            ),
            ("<html>502 Bad Gateway</html>", ErrorBody::Foreign),
            ("", ErrorBody::Foreign),
            ("[]", ErrorBody::Foreign),
            ("{}", ErrorBody::Foreign),
        ];
        for (body, expected) in cases {
            assert_eq!(read_error(body.as_bytes()), expected, "{body}");
        }
    }

    #[test]
    fn exceptions_keep_a_code_and_a_kind_only() {
        let cases: [(&str, Option<u16>, ExceptionKind); 10] = [
            (
                r#"{"name":"Error","code":2,"message":"2 UNKNOWN: server returned error 463"}"#,
                Some(463),
                ExceptionKind::Other,
            ),
            (
                r#"{"code":2,"message":"2 UNKNOWN: x","details":"server returned error 479"}"#,
                Some(479),
                ExceptionKind::Other,
            ),
            (r#"{"code":463,"message":"restricted"}"#, Some(463), ExceptionKind::Other),
            (r#"{"code":"463","message":"restricted"}"#, Some(463), ExceptionKind::Other),
            (r#"{"code":428,"message":"Connection Closed","isBoom":true}"#, None, ExceptionKind::ConnectionClosed),
            (r#"{"code":408,"message":"Timed Out"}"#, None, ExceptionKind::TimedOut),
            (r#"{"code":4,"message":"4 DEADLINE_EXCEEDED: Deadline exceeded"}"#, None, ExceptionKind::TimedOut),
            (r#"{"name":"TypeError","message":"Cannot read properties of undefined"}"#, None, ExceptionKind::TypeError),
            (r#"{"message":"server returned error 99999999"}"#, None, ExceptionKind::Other),
            (r#""text""#, None, ExceptionKind::Other),
        ];
        for (exception, whatsapp_code, kind) in cases {
            let body =
                format!(r#"{{"statusCode":500,"exception":{exception},"request":{{"body":{{"text":"secret"}}}}}}"#);
            assert_eq!(
                read_error(body.as_bytes()),
                ErrorBody::Exception(Exception { whatsapp_code, kind }),
                "{exception}"
            );
        }
    }

    #[test]
    fn redaction_blanks_numbers_and_quotes() {
        assert_eq!(redact("invalid jid 4915112345678@c.us"), "invalid jid …@c.us");
        assert_eq!(redact("the text 'call me on 123' is wrong"), "the text '…' is wrong");
        assert_eq!(redact("an open 'quote never ends 4915112345678"), "an open '");
        assert_eq!(redact("We didn't do 422 things"), "We didn't do 422 things");
        assert_eq!(redact("a\nb"), "a b");
        assert_eq!(redact(&"é".repeat(300)).chars().count(), 200);
    }
}
