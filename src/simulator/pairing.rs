//! Linking a phone: the QR code in three forms, and the code to type.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use qrcode::{Color, QrCode};
use serde::Serialize;

use super::answers::{Answer, Body};
use super::ids;
use super::routes::Call;
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
