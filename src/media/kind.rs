//! What a file is, found out from its bytes, and what it may be called.

/// How many of a file's first bytes tell what it is.
pub const HEAD: usize = 8 * 1024;

/// What nothing is known about.
pub const UNKNOWN: &str = "application/octet-stream";

const LONGEST_NAME: usize = 255;

/// The media type of a file that begins with `head`. What its sender says counts only where the bytes say nothing, and never
/// for what a browser would run.
#[must_use]
pub fn sniff(head: &[u8], declared: Option<&str>) -> String {
    if let Some(found) = infer::get(head) {
        // WhatsApp plays a voice message only under this name.
        return if found.mime_type() == "audio/opus" { "audio/ogg; codecs=opus" } else { found.mime_type() }.to_owned();
    }
    match declared.and_then(essence) {
        Some(declared) if !is_active(&declared) => declared,
        _ if is_text(head) => "text/plain".to_owned(),
        _ => UNKNOWN.to_owned(),
    }
}

/// `type/subtype` in lower case, without parameters; `None` for what is none.
fn essence(declared: &str) -> Option<String> {
    let text = declared.split(';').next()?.trim();
    let (kind, subtype) = text.split_once('/')?;
    let token = |part: &str| {
        !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$&-^_.+".contains(&byte))
    };
    (text.len() <= 127 && token(kind) && token(subtype) && text != UNKNOWN).then(|| text.to_ascii_lowercase())
}

/// Whether a browser that opens it may run something.
#[must_use]
pub fn is_active(mime_type: &str) -> bool {
    let essence = mime_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let (kind, subtype) = essence.split_once('/').unwrap_or_default();
    ["html", "javascript", "ecmascript", "svg", "flash"].iter().any(|word| subtype.contains(word))
        || subtype == "xml"
        || subtype.ends_with("+xml")
        || ["multipart", "message"].contains(&kind)
}

/// How a file that strangers sent may be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Served {
    /// As what.
    pub content_type: &'static str,
    /// Whether a browser may show it in place.
    pub inline: bool,
}

/// How a file of this type, found out from its bytes, may be served: as itself if it is one of the few that browsers can be
/// trusted with, else as bytes to be saved.
#[must_use]
pub fn served(mime_type: &str) -> Served {
    const SHOWN: [&str; 15] = [
        "image/jpeg",
        "image/png",
        "image/webp",
        "image/gif",
        "video/mp4",
        "video/webm",
        "video/3gpp",
        "video/quicktime",
        "audio/ogg",
        "audio/mpeg",
        "audio/mp4",
        "audio/m4a",
        "audio/aac",
        "audio/amr",
        "audio/x-wav",
    ];
    const PDF: &str = "application/pdf";
    let essence = mime_type.split(';').next().unwrap_or_default().trim();
    let shown = SHOWN.into_iter().find(|shown| shown.eq_ignore_ascii_case(essence));
    match shown {
        Some(content_type) => Served { content_type, inline: true },
        None if essence.eq_ignore_ascii_case(PDF) => Served { content_type: PDF, inline: false },
        None => Served { content_type: UNKNOWN, inline: false },
    }
}

/// What a stranger says of a file, as far as it may count where the bytes say nothing: not if it would be served as that.
#[must_use]
pub fn hint(declared: Option<&str>) -> Option<String> {
    declared.and_then(essence).filter(|kind| served(kind).content_type == UNKNOWN)
}

/// Whether a browser may show it in place.
#[must_use]
pub fn is_shown(mime_type: &str) -> bool {
    !is_active(mime_type) && ["image/", "audio/", "video/"].iter().any(|kind| mime_type.starts_with(kind))
}

fn is_text(head: &[u8]) -> bool {
    let text = match std::str::from_utf8(head) {
        Ok(text) => text,
        // The head may end within a character.
        Err(fault) if fault.error_len().is_none() => {
            std::str::from_utf8(head.get(..fault.valid_up_to()).unwrap_or_default()).unwrap_or_default()
        }
        Err(_) => return false,
    };
    !text.is_empty() && !text.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t' | '\u{c}'))
}

/// A file name without the folders in front of it and without characters that are not seen; `None` when nothing is left.
#[must_use]
pub fn clean_name(name: &str) -> Option<String> {
    let last = name.rsplit(['/', '\\']).next().unwrap_or_default();
    let unseen = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
    };
    let seen: String = last.chars().filter(|c| !unseen(*c)).collect();
    let name = seen.trim_start_matches(|c: char| c.is_whitespace() || c == '.').trim_end();
    if name.is_empty() {
        return None;
    }
    if name.chars().count() <= LONGEST_NAME {
        return Some(name.to_owned());
    }
    // The end says what to open it with, so the middle goes.
    let ending: String = match name.rsplit_once('.') {
        Some((_, ending)) if ending.chars().count() <= 16 => format!(".{ending}"),
        _ => String::new(),
    };
    let front: String = name.chars().take(LONGEST_NAME - ending.chars().count()).collect();
    Some(front + &ending)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PNG: &[u8] = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR";

    #[test]
    fn bytes_are_believed_and_words_are_not() {
        let cases: [(&[u8], Option<&str>, &str); 16] = [
            (PNG, Some("text/html"), "image/png"),
            (PNG, None, "image/png"),
            (b"\xff\xd8\xff\xe0\0\x10JFIF", Some("image/png"), "image/jpeg"),
            (b"%PDF-1.7\n", None, "application/pdf"),
            (b"OggS\0\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\x13OpusHead\x01", None, "audio/ogg; codecs=opus"),
            (b"  <!DOCTYPE html><script>alert(1)</script>", Some("image/png"), "text/html"),
            (b"<svg onload=alert(1)>", Some("image/svg+xml"), "text/plain"),
            (b"alert(1)", Some("text/javascript"), "text/plain"),
            (b"alert(1)", Some("application/xhtml+xml"), "text/plain"),
            (b"a;b\n1;2\n", Some("text/csv; charset=utf-8"), "text/csv"),
            (b"a;b\n1;2\n", None, "text/plain"),
            (b"a;b\n1;2\n", Some("nonsense"), "text/plain"),
            (b"a;b\n1;2\n", Some("text/x\r\nx-evil: 1"), "text/plain"),
            (b"\x01\x02\x03", Some("application/vnd.custom"), "application/vnd.custom"),
            (b"\x01\x02\x03", None, UNKNOWN),
            (b"", None, UNKNOWN),
        ];
        for (head, declared, expected) in cases {
            assert_eq!(sniff(head, declared), expected, "{declared:?} {:?}", String::from_utf8_lossy(head));
        }
        assert!(!is_active("application/vnd.openxmlformats-officedocument.wordprocessingml.document"));
        assert!(is_active("Text/HTML; charset=utf-8") && !is_shown("image/svg+xml") && is_shown("image/png"));
    }

    #[test]
    fn what_strangers_send_is_served_as_little() {
        for (kind, content_type, inline) in [
            ("image/jpeg", "image/jpeg", true),
            ("Image/PNG", "image/png", true),
            ("audio/ogg; codecs=opus", "audio/ogg", true),
            ("application/pdf", "application/pdf", false),
            ("text/html", UNKNOWN, false),
            ("text/plain", UNKNOWN, false),
            ("image/svg+xml", UNKNOWN, false),
            ("image/tiff", UNKNOWN, false),
            ("application/zip", UNKNOWN, false),
            ("", UNKNOWN, false),
        ] {
            assert_eq!(served(kind), Served { content_type, inline }, "{kind}");
        }
        assert_eq!(hint(Some("text/csv; charset=utf-8")).as_deref(), Some("text/csv"));
        assert_eq!(hint(Some("image/png")), None, "its bytes would say so");
        assert_eq!(hint(Some("nonsense")), None);
    }

    #[test]
    fn names_lose_their_folders_and_tricks() {
        let long = format!("{}.pdf", "ä".repeat(300));
        for (given, expected) in [
            ("bill.pdf", Some("bill.pdf")),
            ("../../etc/passwd", Some("passwd")),
            ("C:\\temp\\bill.pdf", Some("bill.pdf")),
            ("a\r\nb\0.txt", Some("ab.txt")),
            ("bill\u{202e}fdp.exe", Some("billfdp.exe")),
            (" .hidden ", Some("hidden")),
            ("Übersicht 2026 – final.pdf", Some("Übersicht 2026 – final.pdf")),
            ("..", None),
            ("a/", None),
            ("", None),
            ("\u{7}", None),
        ] {
            assert_eq!(clean_name(given).as_deref(), expected, "{given:?}");
        }
        let cut = clean_name(&long).unwrap();
        assert!(cut.chars().count() == 255 && cut.ends_with("ä.pdf"));
    }
}
