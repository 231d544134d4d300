//! The QR code that pairs a session. What it says is a credential: it is fetched when it is asked for, shown, and kept
//! nowhere.

use chrono::{DateTime, TimeDelta, Utc};
use qrcode::{Color, QrCode};
use secrecy::{ExposeSecret, SecretString};

use crate::app::App;
use crate::db::DbError;
use crate::domain::ids::{SessionId, TenantId};
use crate::sessions::directory::DirectoryError;
use crate::sessions::queries;
use crate::waha::CallError;

/// Pixels of a module's side, at the least.
const MODULE: usize = 8;
/// White modules around the code; scanners need four.
const QUIET: usize = 4;
/// How long a code lives that nobody has announced yet.
const ROTATION: TimeDelta = TimeDelta::seconds(20);

/// A code to scan.
#[derive(Debug)]
pub struct Qr {
    /// What the picture says.
    pub value: SecretString,
    /// When WhatsApp replaces it by another one, as far as it can be told.
    pub expires_at: DateTime<Utc>,
}

/// Why there is no code.
#[derive(Debug, thiserror::Error)]
pub enum QrError {
    /// The tenant has no such session.
    #[error("there is no such session")]
    NotFound,
    /// The session waits for no scan; its status.
    #[error("the session is {0}, and a QR code is only there while it is scan_qr")]
    NotScanning(String),
    /// The WAHA server cannot be asked now.
    #[error("the QR code cannot be fetched: {0}")]
    Unavailable(CallError),
    /// The code cannot be drawn.
    #[error("the QR code cannot be drawn")]
    Drawing,
    /// The database said no.
    #[error(transparent)]
    Database(#[from] DbError),
    /// What is known of the server cannot be read.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
}

/// The code to scan right now. WAHA takes up to 15 s to answer when the session has just left `scan_qr`.
///
/// # Errors
/// [`QrError`].
pub async fn qr(app: &App, tenant: TenantId, session: SessionId) -> Result<Qr, QrError> {
    let found = app.db.tenant(tenant, async move |conn| queries::find(conn, session).await).await?;
    let row = found.ok_or(QrError::NotFound)?;
    if row.status != "scan_qr" {
        return Err(QrError::NotScanning(row.status));
    }
    if let Some(step @ ("passkey" | "passkey_confirmation")) = row.pairing_step.as_deref() {
        return Err(QrError::NotScanning(format!("scanned, and waits for its {step}")));
    }
    let server = app.directory.server(row.waha_server_id).await?.ok_or(QrError::NotFound)?;
    match app.waha.qr_value(&server.server, &row.external_session_id).await {
        Ok(value) => {
            let now = app.clock.now();
            // Past its time the code on show is a newer one, whose announcement is still under way.
            let expires_at = row.qr_expires_at.filter(|at| *at > now).unwrap_or(now + ROTATION);
            Ok(Qr { value, expires_at })
        }
        Err(CallError::State { status }) => {
            let status = super::status::name_of(status).unwrap_or("in another state");
            Err(QrError::NotScanning(status.to_owned()))
        }
        Err(CallError::NotFound) => Err(QrError::NotScanning("starting".to_owned())),
        Err(fault) => Err(QrError::Unavailable(fault)),
    }
}

impl Qr {
    /// The code as a PNG, black on white, with a quiet zone and modules of 8 pixels.
    ///
    /// # Errors
    /// [`QrError::Drawing`] when the value does not fit into a code.
    pub fn png(&self) -> Result<Vec<u8>, QrError> {
        let code = QrCode::new(self.value.expose_secret().as_bytes()).map_err(|_| QrError::Drawing)?;
        let modules = code.width();
        let side = (modules + 2 * QUIET) * MODULE;
        // One bit a pixel, 1 is white; a row of 8-pixel modules is one byte for each module.
        let white_row = vec![0xff_u8; side.div_ceil(8)];
        let mut pixels = Vec::with_capacity(white_row.len() * side);
        let blank = |pixels: &mut Vec<u8>| (0..QUIET * MODULE).for_each(|_| pixels.extend_from_slice(&white_row));
        blank(&mut pixels);
        for line in code.to_colors().chunks(modules) {
            let mut row = vec![0xff_u8; QUIET];
            row.extend(line.iter().map(|color| if *color == Color::Dark { 0x00 } else { 0xff }));
            row.extend([0xff_u8; QUIET]);
            (0..MODULE).for_each(|_| pixels.extend_from_slice(&row));
        }
        blank(&mut pixels);
        let side = u32::try_from(side).map_err(|_| QrError::Drawing)?;
        let mut png = Vec::new();
        let mut encoder = png::Encoder::new(&mut png, side, side);
        encoder.set_color(png::ColorType::Grayscale);
        encoder.set_depth(png::BitDepth::One);
        let mut writer = encoder.write_header().map_err(|_| QrError::Drawing)?;
        writer.write_image_data(&pixels).map_err(|_| QrError::Drawing)?;
        writer.finish().map_err(|_| QrError::Drawing)?;
        Ok(png)
    }
}

impl Qr {
    /// The code for a terminal: lines of half blocks, two modules high, white and black whatever the terminal's own colours
    /// are, with a quiet zone.
    ///
    /// # Errors
    /// [`QrError::Drawing`] when the value does not fit into a code.
    pub fn terminal(&self) -> Result<String, QrError> {
        let code = QrCode::new(self.value.expose_secret().as_bytes()).map_err(|_| QrError::Drawing)?;
        let modules = code.width();
        let colors = code.to_colors();
        let light = |x: usize, y: usize| {
            let module = |at: usize| at.checked_sub(QUIET).filter(|at| *at < modules);
            let color = module(x).zip(module(y)).and_then(|(x, y)| colors.get(y * modules + x));
            color != Some(&Color::Dark)
        };
        let side = modules + 2 * QUIET;
        let mut text = String::with_capacity(side * side * 2);
        for y in (0..side).step_by(2) {
            // Bright white on black: a light module is ink.
            text.push_str("\u{1b}[97;40m");
            // Below the last line there is nothing; its half stays light, as the quiet zone is.
            text.extend((0..side).map(|x| match (light(x, y), y + 1 >= side || light(x, y + 1)) {
                (true, true) => '█',
                (true, false) => '▀',
                (false, true) => '▄',
                (false, false) => ' ',
            }));
            text.push_str("\u{1b}[0m\n");
        }
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_picture_says_what_the_value_says() {
        let value = "2@AbCdEf0123456789,AbCdEf0123456789+/=,AbCdEf0123456789,AbCd";
        let qr = Qr { value: SecretString::from(value), expires_at: DateTime::UNIX_EPOCH };
        let png = qr.png().unwrap();
        let mut decoder = png::Decoder::new(std::io::Cursor::new(&png));
        decoder.set_transformations(png::Transformations::EXPAND);
        let mut reader = decoder.read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut pixels).unwrap();
        let code = QrCode::new(value.as_bytes()).unwrap();
        let side = usize::try_from(info.width).unwrap();
        assert_eq!((info.width, side), (info.height, (code.width() + 2 * QUIET) * MODULE));
        assert!(side >= 6 * code.width());
        let colors = code.to_colors();
        for y in 0..side {
            for x in 0..side {
                let module = |pixel: usize| (pixel / MODULE).checked_sub(QUIET).filter(|at| *at < code.width());
                let dark = match (module(x), module(y)) {
                    (Some(x), Some(y)) => colors[y * code.width() + x] == Color::Dark,
                    _ => false,
                };
                assert_eq!(pixels[y * side + x] == 0, dark, "pixel {x},{y}");
            }
        }
    }

    #[test]
    fn the_terminals_picture_says_the_same() {
        let value = "2@AbCdEf0123456789,AbCdEf0123456789+/=,AbCdEf0123456789,AbCd";
        let qr = Qr { value: SecretString::from(value), expires_at: DateTime::UNIX_EPOCH };
        let text = qr.terminal().unwrap();
        let code = QrCode::new(value.as_bytes()).unwrap();
        let lines: Vec<Vec<char>> = text
            .lines()
            .map(|line| {
                line.strip_prefix("\u{1b}[97;40m").unwrap().strip_suffix("\u{1b}[0m").unwrap().chars().collect()
            })
            .collect();
        let side = code.width() + 2 * QUIET;
        assert_eq!((lines.len(), lines[0].len()), (side.div_ceil(2), side));
        let colors = code.to_colors();
        for y in 0..side {
            for x in 0..side {
                let ink = lines[y / 2][x];
                let light = ink == '█' || ink == if y % 2 == 0 { '▀' } else { '▄' };
                let inside = (QUIET..QUIET + code.width()).contains(&x) && (QUIET..QUIET + code.width()).contains(&y);
                let dark = inside && colors[(y - QUIET) * code.width() + x - QUIET] == Color::Dark;
                assert_eq!(light, !dark, "module {x},{y}");
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_and_nothing_is_shown() {
        let qr = Qr { value: SecretString::from("x".repeat(5000)), expires_at: DateTime::UNIX_EPOCH };
        assert!(matches!(qr.png(), Err(QrError::Drawing)));
        assert!(!format!("{qr:?}").contains("xxx"));
    }
}
