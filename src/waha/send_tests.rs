//! Every row of what an answer proves.

use bytes::Bytes;

use super::*;

const TEXT: &str = "a very private text";

fn answer(status: u16, body: &str) -> Answer {
    Answer {
        status: StatusCode::from_u16(status).unwrap(),
        retry_after: Some(Duration::from_secs(7)),
        body: Bytes::copy_from_slice(body.as_bytes()),
    }
}

fn exception(exception: &str) -> String {
    format!(
        r#"{{"statusCode":500,"exception":{exception},"request":{{"path":"/api/sendText","method":"POST","body":{{"chatId":"4915112345678@c.us","text":"{TEXT}"}},"query":{{}}}}}}"#
    )
}

fn nest(status: u16, message: &str) -> String {
    format!(r#"{{"message":"{message}","error":"x","statusCode":{status}}}"#)
}

fn accepted(id: &str) -> SendOutcome {
    SendOutcome::Accepted { bare_id: Some(id.into()) }
}

fn not_sent(why: NotSent) -> SendOutcome {
    SendOutcome::NotSent { why }
}

fn refused(code: RefusalCode, detail: &str) -> SendOutcome {
    SendOutcome::Refused { code, detail: detail.into() }
}

fn unknown(why: Unknown) -> SendOutcome {
    SendOutcome::Unknown { why }
}

#[test]
fn successes() {
    let noweb = r#"{"key":{"remoteJid":"22222222222@s.whatsapp.net","fromMe":true,"id":"3EB015872F111D2E17935F"},"message":{"extendedTextMessage":{"text":"hi"}},"messageTimestamp":"1795211853","status":"PENDING"}"#;
    let cases = [
        (201, noweb, accepted("3EB015872F111D2E17935F")),
        (201, r#"{"id":"true_1@c.us_3EB0A","_data":{"Info":{"ID":"3EB0A"}}}"#, accepted("3EB0A")),
        (200, r#"{"id":{"id":"3EB0B","_serialized":"true_1@c.us_3EB0B"},"ack":0}"#, accepted("3EB0B")),
        (201, r#"{"_data":{"id":{"id":"3EB0C"}}}"#, accepted("3EB0C")),
        (201, r#"{"something":"else"}"#, SendOutcome::Accepted { bare_id: None }),
        (201, "", unknown(Unknown::BadAnswer)),
        (201, "null", unknown(Unknown::BadAnswer)),
        (201, r#"{"key":{"id":"3EB0"#, unknown(Unknown::BadAnswer)),
        (200, "<html>ok</html>", unknown(Unknown::BadAnswer)),
    ];
    for (status, body, expected) in cases {
        assert_eq!(judge(&answer(status, body)), expected, "{status} {body}");
    }
}

#[test]
fn certainly_not_sent() {
    let state = r#"{"error":"Session status is not as expected. Try again later or restart the session","session":"default","status":"SCAN_QR_CODE","expected":["WORKING"]}"#;
    let core = nest(422, "WAHA Core support only 'default' session. You tried to access 'other' session");
    let cases = [
        (422, state.to_owned(), NotSent::SessionNotWorking { status: SessionStatus::ScanQrCode }),
        (422, r#"{"error":"Session \"x\" does not exist","session":"x"}"#.into(), NotSent::SessionMissing),
        (404, nest(404, "Session not found"), NotSent::SessionMissing),
        (422, core, NotSent::SessionMissing),
        (401, r#"{"message":"Unauthorized","statusCode":401}"#.into(), NotSent::Unauthorized),
        (401, "<html>".into(), NotSent::Unauthorized),
        (403, nest(403, "Forbidden"), NotSent::Unauthorized),
        (429, "slow down".into(), NotSent::Throttled { retry_after: Some(Duration::from_secs(7)) }),
        (
            500,
            exception(r#"{"message":"2 UNKNOWN: server returned error 429"}"#),
            NotSent::Throttled { retry_after: None },
        ),
    ];
    for (status, body, why) in cases {
        assert_eq!(judge(&answer(status, &body)), not_sent(why), "{status} {body}");
    }
}

#[test]
fn refusals() {
    let cases = [
        (
            400,
            r#"{"message":["chatId must be a string"],"error":"Bad Request","statusCode":400}"#.to_owned(),
            refused(RefusalCode::InvalidRequest, "chatId must be a string"),
        ),
        (404, nest(404, "Message not found"), refused(RefusalCode::NotFound, "Message not found")),
        (413, nest(413, "request entity too large"), refused(RefusalCode::TooLarge, "request entity too large")),
        (
            422,
            nest(422, "Message '4915112345678' to forward not found"),
            refused(RefusalCode::Rule, "Message '…' to forward not found"),
        ),
        (
            422,
            nest(422, "The feature is available only in Plus version for 'NOWEB' engine."),
            refused(RefusalCode::Unsupported, "The feature is available only in Plus version for '…' engine."),
        ),
        (
            422,
            nest(422, "This method is not implemented by the engine"),
            refused(RefusalCode::Unsupported, "This method is not implemented by the engine"),
        ),
        (
            500,
            exception(r#"{"code":2,"message":"2 UNKNOWN: server returned error 479"}"#),
            refused(RefusalCode::WhatsApp(479), "WhatsApp refused the message with error 479"),
        ),
        (
            500,
            exception(r#"{"code":2,"message":"2 UNKNOWN: server returned error 463"}"#),
            SendOutcome::Restricted { detail: "WhatsApp restricts writing to new contacts (463)".into() },
        ),
    ];
    for (status, body, expected) in cases {
        assert_eq!(judge(&answer(status, &body)), expected, "{status} {body}");
    }
}

#[test]
fn doubts() {
    let type_error = r#"{"name":"TypeError","message":"Cannot read properties of undefined (reading 'serialize')"}"#;
    let state_under_500 = r#"{"error":"Session status is not as expected","session":"a","status":"STARTING"}"#;
    let cases = [
        (
            500,
            exception(r#"{"message":"Connection Closed","isBoom":true,"output":{}}"#),
            Unknown::EngineConnectionClosed,
        ),
        (500, exception(r#"{"message":"Timed Out","isBoom":true}"#), Unknown::EngineTimedOut),
        (500, exception(r#"{"code":4,"message":"4 DEADLINE_EXCEEDED: x"}"#), Unknown::EngineTimedOut),
        (500, exception(r#"{"code":14,"message":"14 UNAVAILABLE: x"}"#), Unknown::EngineConnectionClosed),
        (500, exception(type_error), Unknown::ServerError { status: 500 }),
        (500, exception(r#"{"message":"Evaluation failed"}"#), Unknown::ServerError { status: 500 }),
        (500, exception(r#"{"message":"server returned error 503"}"#), Unknown::WhatsAppError { code: 503 }),
        (500, nest(500, "Internal server error"), Unknown::ServerError { status: 500 }),
        (500, state_under_500.into(), Unknown::ServerError { status: 500 }),
        (500, nest(500, "Session not found"), Unknown::ServerError { status: 500 }),
        (502, "<html>502 Bad Gateway</html>".into(), Unknown::Proxy { status: 502 }),
        (503, String::new(), Unknown::Proxy { status: 503 }),
        (504, "upstream timed out".into(), Unknown::Proxy { status: 504 }),
        (404, "404 page not found".into(), Unknown::Proxy { status: 404 }),
        (408, nest(408, "Request Timeout"), Unknown::ServerError { status: 408 }),
        (302, String::new(), Unknown::Proxy { status: 302 }),
    ];
    for (status, body, why) in cases {
        assert_eq!(judge(&answer(status, &body)), unknown(why), "{status} {body}");
    }
}

#[test]
fn nothing_of_the_request_is_kept() {
    let exceptions = [
        r#"{"message":"server returned error 479"}"#,
        r#"{"message":"server returned error 463"}"#,
        r#"{"message":"Timed Out"}"#,
        r#"{"message":"4915112345678@c.us: a very private text"}"#,
    ];
    for details in exceptions {
        let outcome = format!("{:?}", judge(&answer(500, &exception(details))));
        assert!(!outcome.contains("private") && !outcome.contains("4915"), "{outcome}");
    }
}

#[test]
fn requests_have_wahas_member_names() {
    let text = SendText {
        session: "s".into(),
        chat_id: "1@c.us".into(),
        text: "hi".into(),
        id: Some("3EB0A".into()),
        reply_to: Some("true_1@c.us_A".into()),
        mentions: vec!["2@c.us".into()],
        link_preview: Some(false),
    };
    assert_eq!(
        serde_json::to_value(&text).unwrap(),
        serde_json::json!({"session": "s", "chatId": "1@c.us", "text": "hi", "id": "3EB0A", "reply_to": "true_1@c.us_A",
            "mentions": ["2@c.us"], "linkPreview": false})
    );
    let plain = SendText { session: "s".into(), chat_id: "1@c.us".into(), text: "hi".into(), ..SendText::default() };
    assert_eq!(
        serde_json::to_value(Outgoing::Text(plain)).unwrap(),
        serde_json::json!({"session": "s", "chatId": "1@c.us", "text": "hi"})
    );
}
