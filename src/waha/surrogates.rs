//! JavaScript's strings may hold half of a character: WAHA passes on an emoji that somebody's phone cut in two as `\\ud83d`.
//! That is JSON by its grammar, and no text; strict readers refuse it with everything around it.

/// `json` with every escape of half a character replaced by U+FFFD; everything else stays as it is.
pub(super) fn mended(json: &[u8]) -> Vec<u8> {
    let mut mended = Vec::with_capacity(json.len());
    let mut rest = json;
    while let Some((&byte, behind)) = rest.split_first() {
        let taken = match (byte, code_unit(rest)) {
            (b'\\', Some(0xd800..=0xdbff)) if matches!(code_unit(behind_escape(rest)), Some(0xdc00..=0xdfff)) => 12,
            (b'\\', Some(0xd800..=0xdfff)) => {
                mended.extend_from_slice(b"\\ufffd");
                rest = behind_escape(rest);
                continue;
            }
            // A backslash and what it escapes, which may be another backslash.
            (b'\\', _) if !behind.is_empty() => 2,
            _ => 1,
        };
        let (whole, behind) = rest.split_at_checked(taken).unwrap_or((rest, &[]));
        mended.extend_from_slice(whole);
        rest = behind;
    }
    mended
}

/// What `json` begins with, if that is an escape of the form `\uXXXX`.
fn code_unit(json: &[u8]) -> Option<u16> {
    let digits = json.strip_prefix(b"\\u")?.first_chunk::<4>()?;
    // A sign would be read, too.
    digits.iter().all(u8::is_ascii_hexdigit).then_some(())?;
    u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

fn behind_escape(json: &[u8]) -> &[u8] {
    json.get(6..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_replaced_and_wholes_are_not() {
        for (json, expected) in [
            (r#""\ud83d""#, "\u{fffd}"),
            (r#""a\uDE00b""#, "a\u{fffd}b"),
            (r#""\ud83d\ude00""#, "😀"),
            (r#""\ude00\ud83d""#, "\u{fffd}\u{fffd}"),
            (r#""\ud83d\ud83d\ude00""#, "\u{fffd}😀"),
            (r#""\ud83d\n""#, "\u{fffd}\n"),
            (r#""\\ud83d""#, "\\ud83d"),
            (r#""\\\ud83d""#, "\\\u{fffd}"),
            (r#""\u00e9😀""#, "é😀"),
        ] {
            assert_eq!(serde_json::from_slice::<String>(&mended(json.as_bytes())).unwrap(), expected, "{json}");
        }
    }

    #[test]
    fn what_is_no_json_stays_as_it_is() {
        for json in ["", "\\", "\"\\u", "\"\\ud8", "\"\\ud83", "\"\\u+d83d\"", "{\"a\":"] {
            assert_eq!(mended(json.as_bytes()), json.as_bytes(), "{json}");
        }
    }
}
