//! How large a picture is, and a small one of it.
//!
//! Guarantee: a picture is decoded on a thread of its own, one at a time on a node, and one that would need more memory than
//! [`MOST_MEMORY`] is not decoded at all: its bytes come from strangers.

use std::io::Cursor;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use image::codecs::jpeg::JpegEncoder;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits, Rgb, RgbImage};
use tokio::sync::Semaphore;

use super::rows::Media;
use super::{MediaRoom, StorageError};

/// Longer side of a small picture, in pixels.
const SMALL: u32 = 320;
/// Quality of a small picture, 1 to 100.
const QUALITY: u8 = 75;
/// Bytes of a file that is looked at, at the most: it is in memory as a whole meanwhile.
const MOST_FILE: i64 = 16 * 1024 * 1024;
/// Pixels on a side of a picture that is looked at, at the most.
const MOST_SIDE: u32 = 16_384;
/// Pixels of a picture that is decoded, at the most: as many as a good phone's camera has, and a few more.
const MOST_PIXELS: u64 = 16_000_000;
/// What a decoder may allocate, and what a decoded picture may take, in bytes.
const MOST_MEMORY: u64 = 96 * 1024 * 1024;
/// How long a picture waits for those before it. After that it goes without a small one.
const PATIENCE: Duration = Duration::from_secs(60);

/// One picture at a time on a node.
static TURN: Semaphore = Semaphore::const_new(1);

/// What was found out about a picture.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Picture {
    /// Width and height in pixels, as it is shown.
    pub size: Option<(i32, i32)>,
    /// A small one, as JPEG.
    pub small: Option<Vec<u8>>,
}

/// Looks at a stored file. One that is no picture, or none that can be read, has neither size nor small picture.
pub(super) async fn look(room: &MediaRoom, media: &Media) -> Result<Picture, StorageError> {
    let kind = media.mime_type.clone();
    if !readable(&kind) || media.size > MOST_FILE {
        return Ok(Picture::default());
    }
    let Ok(Ok(_turn)) = tokio::time::timeout(PATIENCE, TURN.acquire()).await else { return Ok(Picture::default()) };
    let mut chunks = room.read(media, None).await?;
    let mut bytes = BytesMut::with_capacity(usize::try_from(media.size).unwrap_or_default());
    while let Some(chunk) = chunks.next().await {
        bytes.extend_from_slice(&chunk?);
    }
    let bytes = bytes.freeze();
    // A decoder that panics has found no picture either.
    Ok(tokio::task::spawn_blocking(move || read(&bytes, &kind)).await.unwrap_or_default())
}

fn format_of(kind: &str) -> Option<ImageFormat> {
    match kind {
        "image/jpeg" => Some(ImageFormat::Jpeg),
        "image/png" => Some(ImageFormat::Png),
        "image/webp" => Some(ImageFormat::WebP),
        _ => None,
    }
}

fn readable(kind: &str) -> bool {
    kind == "image/gif" || format_of(kind).is_some()
}

fn read(bytes: &Bytes, kind: &str) -> Picture {
    if kind == "image/gif" {
        return Picture { size: gif_size(bytes), small: None };
    }
    format_of(kind).and_then(|format| decode(bytes, format)).unwrap_or_default()
}

/// A GIF says its size in its first bytes; to decode it takes more than it is worth.
fn gif_size(bytes: &[u8]) -> Option<(i32, i32)> {
    let (magic, rest) = bytes.split_at_checked(6)?;
    if !matches!(magic, b"GIF87a" | b"GIF89a") {
        return None;
    }
    let (width, rest) = rest.split_first_chunk::<2>()?;
    let height = rest.first_chunk::<2>()?;
    sides(u16::from_le_bytes(*width).into(), u16::from_le_bytes(*height).into())
}

fn sides(width: u32, height: u32) -> Option<(i32, i32)> {
    let side = |pixels: u32| i32::try_from(pixels).ok().filter(|pixels| *pixels > 0);
    side(width).zip(side(height))
}

fn decode(bytes: &Bytes, format: ImageFormat) -> Option<Picture> {
    let mut limits = Limits::default();
    limits.max_image_width = Some(MOST_SIDE);
    limits.max_image_height = Some(MOST_SIDE);
    limits.max_alloc = Some(MOST_MEMORY);
    let mut reader = ImageReader::with_format(Cursor::new(bytes.as_ref()), format);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().ok()?;
    let (width, height) = decoder.dimensions();
    let turned = decoder.orientation().ok().filter(|turned| turned.to_exif() > 1);
    let sideways = turned.is_some_and(|turned| turned.to_exif() >= 5);
    let size = if sideways { sides(height, width) } else { sides(width, height) };
    if u64::from(width) * u64::from(height) > MOST_PIXELS || decoder.total_bytes() > MOST_MEMORY {
        return Some(Picture { size, small: None });
    }
    let Ok(whole) = DynamicImage::from_decoder(decoder) else { return Some(Picture { size, small: None }) };
    let mut small = if width.max(height) > SMALL { whole.thumbnail(SMALL, SMALL) } else { whole };
    if let Some(turned) = turned {
        small.apply_orientation(turned);
    }
    let mut jpeg = Vec::new();
    let written = JpegEncoder::new_with_quality(&mut jpeg, QUALITY).encode_image(&on_white(&small));
    Some(Picture { size, small: written.is_ok().then_some(jpeg) })
}

/// JPEG has no transparency.
fn on_white(picture: &DynamicImage) -> RgbImage {
    let seen = picture.to_rgba8();
    let (width, height) = seen.dimensions();
    let mut flat = RgbImage::new(width, height);
    for (pixel, below) in seen.pixels().zip(flat.pixels_mut()) {
        let [red, green, blue, alpha] = pixel.0;
        let mixed = |colour: u8| {
            let sum = u32::from(colour) * u32::from(alpha) + 255 * (255 - u32::from(alpha));
            u8::try_from(sum / 255).unwrap_or(u8::MAX)
        };
        *below = Rgb([mixed(red), mixed(green), mixed(blue)]);
    }
    flat
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(picture: &DynamicImage, format: ImageFormat) -> Bytes {
        let mut bytes = Vec::new();
        picture.write_to(&mut Cursor::new(&mut bytes), format).unwrap();
        bytes.into()
    }

    #[test]
    fn pictures_get_small_ones() {
        let wide = DynamicImage::new_rgba8(1600, 400);
        for (format, kind) in [(ImageFormat::Png, "image/png"), (ImageFormat::WebP, "image/webp")] {
            let found = read(&encoded(&wide, format), kind);
            assert_eq!(found.size, Some((1600, 400)), "{kind}");
            let small = image::load_from_memory(&found.small.unwrap()).unwrap();
            assert_eq!((small.width(), small.height()), (320, 80), "{kind}");
            assert_eq!(small.to_rgb8().get_pixel(1, 1), &Rgb([255, 255, 255]), "what is not seen is white");
        }
        let tiny = encoded(&DynamicImage::new_rgb8(3, 2), ImageFormat::Jpeg);
        let found = read(&tiny, "image/jpeg");
        assert_eq!(found.size, Some((3, 2)));
        assert_eq!(image::load_from_memory(&found.small.unwrap()).unwrap().width(), 3, "nothing is blown up");
        assert_eq!(read(&Bytes::from_static(b"GIF89a\x05\0\x07\0"), "image/gif").size, Some((5, 7)));
    }

    #[test]
    fn bombs_are_not_decoded() {
        // Large to decode and small to store.
        let plain = encoded(&DynamicImage::new_luma8(5000, 5000), ImageFormat::Png);
        assert!(plain.len() < 1_000_000);
        assert_eq!(read(&plain, "image/png"), Picture { size: Some((5000, 5000)), small: None });
        // A header that claims more than there is.
        let mut claims = encoded(&DynamicImage::new_luma8(1, 1), ImageFormat::Png).to_vec();
        claims[16..24].copy_from_slice(&[0x7f, 0xff, 0xff, 0xff, 0x7f, 0xff, 0xff, 0xff]);
        assert_eq!(read(&claims.into(), "image/png"), Picture::default());
        for rubbish in [&b""[..], b"GIF", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0\0\x10JFIF"] {
            for kind in ["image/png", "image/jpeg", "image/webp", "image/gif", "text/html"] {
                assert_eq!(read(&Bytes::from_static(rubbish), kind), Picture::default(), "{kind}");
            }
        }
    }
}
