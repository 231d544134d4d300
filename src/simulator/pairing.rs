//! Linking a phone: the QR code in three forms, the code to type, and the passkey.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use qrcode::{Color, QrCode};
use serde::Serialize;
use serde_json::{Value, json};

use super::answers::{Answer, Body};
use super::ids;
use super::routes::{Call, Route};
use super::session::{Session, Status};
use super::world::World;

/// Pixels per module, and light modules around the code, as a phone's camera needs them.
const SCALE: usize = 4;
const QUIET: usize = 4;

pub(super) async fn qr(world: &World, session: &Session, call: &Call) -> Answer {
    if let Err(status) = session.expect(world, Status::ScanQrCode).await {
        return Answer::wrong_state(&session.name, status.name(), &["SCAN_QR_CODE"]);
    }
    let Some(value) = session.qr() else {
        return Answer::wrong_state(&session.name, session.current().name(), &["SCAN_QR_CODE"]);
    };
    if call.parameter("format") == Some("raw") {
        #[derive(Serialize)]
        struct Raw {
            value: String,
        }
        return Answer::of(200, &Raw { value });
    }
    let Some(png) = png_of(&value) else { return Answer::nest(500, "the code cannot be drawn") };
    if call.accepts_json {
        #[derive(Serialize)]
        struct Base64File {
            mimetype: &'static str,
            data: String,
        }
        return Answer::of(200, &Base64File { mimetype: "image/png", data: STANDARD.encode(png) });
    }
    Answer { status: 200, body: Body::Png(png) }
}

pub(super) async fn request_code(world: &World, session: &Session) -> Answer {
    // While STARTING it waits for long; otherwise it says no at once.
    if session.current() == Status::Starting {
        let mut status = session.status.subscribe();
        tokio::select! {
            _changed = status.wait_for(|status| *status != Status::Starting) => {}
            () = world.pause(Duration::from_secs(60)) => {}
        }
    }
    match session.current() {
        Status::ScanQrCode => {
            #[derive(Serialize)]
            struct Code {
                code: String,
            }
            Answer::of(201, &Code { code: ids::pairing_code(&world.chance) })
        }
        Status::Stopped => match session.expect(world, Status::ScanQrCode).await {
            Ok(()) => Answer::nest(422, "Try again"),
            Err(status) => Answer::wrong_state(&session.name, status.name(), &["SCAN_QR_CODE"]),
        },
        other => {
            let name = other.name();
            Answer::nest(422, &format!("Can request code only in SCAN_QR_CODE status. The current status is {name}"))
        }
    }
}

/// WhatsApp asks for the account's passkey.
#[derive(Clone, Debug)]
pub(super) struct Passkey {
    /// Whether it wants a confirmation after that.
    pub confirm: bool,
    challenge: String,
    code: String,
}

impl Passkey {
    pub fn new(world: &World, confirm: bool) -> Self {
        let mut passkey = Self { confirm, challenge: String::new(), code: String::new() };
        passkey.renew(world);
        passkey
    }

    /// Another challenge and another code.
    pub fn renew(&mut self, world: &World) {
        self.challenge = URL_SAFE_NO_PAD.encode(world.chance.bytes::<32>());
        self.code = ids::pairing_code(&world.chance);
    }

    /// What `session.status` carries with `status`.
    pub fn data(&self, status: Status) -> Option<Value> {
        match status {
            Status::PasskeyRequired => Some(self.challenge()),
            Status::PasskeyConfirmationRequired => Some(json!({"code": self.code})),
            _ => None,
        }
    }

    fn challenge(&self) -> Value {
        json!({
            "challenge": self.challenge,
            "timeout": 60_000,
            "rpId": "web.whatsapp.com",
            "allowCredentials": [{"id": "c2ltdWxhdGVk", "type": "public-key", "transports": ["internal", "hybrid"]}],
            "userVerification": "required",
        })
    }

    /// Whether `assertion` is over the challenge, and made on WhatsApp's own site.
    fn is_met_by(&self, assertion: &Value) -> bool {
        let client_data = assertion.pointer("/response/clientDataJSON").and_then(Value::as_str);
        let client_data = client_data.and_then(|text| URL_SAFE_NO_PAD.decode(text).ok());
        let client_data: Option<Value> = client_data.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        client_data.is_some_and(|said| {
            said.get("challenge").and_then(Value::as_str) == Some(self.challenge.as_str())
                && said.get("origin").and_then(Value::as_str) == Some("https://web.whatsapp.com")
        })
    }
}

/// The four calls about passkeys, which GOWS alone knows.
pub(super) fn passkey(world: &Arc<World>, session: &Arc<Session>, route: &Route, call: &Call) -> Answer {
    if world.engine != super::Engine::Gows {
        return Answer::nest(422, "The method is not implemented by the engine");
    }
    let pending = session.passkey();
    let Some(pending) = pending.as_ref() else { return Answer::nest(422, "No passkey is pending") };
    match (route, session.current()) {
        (Route::PasskeyChallenge, Status::PasskeyRequired) => Answer::of(200, &pending.challenge()),
        (Route::Passkey, Status::PasskeyRequired) => {
            let members = [
                "/id",
                "/rawId",
                "/type",
                "/response/clientDataJSON",
                "/response/authenticatorData",
                "/response/signature",
            ];
            let missing = |member: &&str| call.body.pointer(member).and_then(Value::as_str).is_none();
            if let Some(member) = members.into_iter().find(missing) {
                let name = member.trim_start_matches('/').replace('/', ".");
                return Answer::invalid(&[format!("{name} must be a string")]);
            }
            if !pending.is_met_by(&call.body) || !session.pass(world, Status::PasskeyRequired) {
                return Answer::nest(422, "The passkey assertion was refused");
            }
            Answer::empty(201)
        }
        (Route::PasskeyConfirmation, Status::PasskeyConfirmationRequired) => {
            Answer::of(200, &json!({"code": pending.code}))
        }
        (Route::PasskeyConfirm, Status::PasskeyConfirmationRequired)
            if session.pass(world, Status::PasskeyConfirmationRequired) =>
        {
            Answer::empty(201)
        }
        _ => Answer::nest(422, "No passkey is pending"),
    }
}

fn png_of(value: &str) -> Option<Vec<u8>> {
    let code = QrCode::new(value).ok()?;
    let side = (code.width() + 2 * QUIET) * SCALE;
    let colors = code.to_colors();
    let dark = |x: usize, y: usize| {
        let (x, y) = ((x / SCALE).checked_sub(QUIET)?, (y / SCALE).checked_sub(QUIET)?);
        (x < code.width()).then(|| colors.get(y * code.width() + x).copied())?
    };
    let points = (0..side).flat_map(|y| (0..side).map(move |x| (x, y)));
    let pixels: Vec<u8> = points.map(|(x, y)| if dark(x, y) == Some(Color::Dark) { 0 } else { 255 }).collect();
    let mut bytes = Vec::new();
    let size = u32::try_from(side).ok()?;
    let mut encoder = png::Encoder::new(&mut bytes, size, size);
    encoder.set_color(png::ColorType::Grayscale);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header().ok()?;
    writer.write_image_data(&pixels).ok()?;
    writer.finish().ok()?;
    Some(bytes)
}
