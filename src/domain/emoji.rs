//! Whether a text is one emoji, as a reaction has to be.

/// Bytes in an emoji, at the most; the longest families have fewer.
const LONGEST: usize = 32;

/// Joins emoji to one: a family, a profession.
const JOINER: char = '\u{200d}';

/// Whether `text` is one emoji: a symbol with its modifiers, several that are joined, a flag, or a keycap.
#[must_use]
pub fn is_one(text: &str) -> bool {
    text.len() <= LONGEST && text.split(JOINER).all(is_element)
}

fn is_element(text: &str) -> bool {
    let mut rest = text.chars();
    match rest.next() {
        Some('0'..='9' | '#' | '*') => matches!(rest.as_str(), "\u{fe0f}\u{20e3}" | "\u{20e3}"),
        Some(first) if is_regional(first) => rest.next().is_some_and(is_regional) && rest.next().is_none(),
        Some(first) => is_symbol(first) && rest.all(is_modifier),
        None => false,
    }
}

/// Two of these make a flag.
const fn is_regional(c: char) -> bool {
    matches!(c, '\u{1f1e6}'..='\u{1f1ff}')
}

/// The blocks that emoji are in, and the single ones outside of them.
const fn is_symbol(c: char) -> bool {
    matches!(c,
        '\u{a9}' | '\u{ae}' | '\u{203c}' | '\u{2049}' | '\u{2122}' | '\u{2139}' | '\u{24c2}' | '\u{3030}' | '\u{303d}'
        | '\u{3297}' | '\u{3299}' | '\u{2190}'..='\u{21ff}' | '\u{2300}'..='\u{23ff}' | '\u{25a0}'..='\u{27bf}'
        | '\u{2900}'..='\u{297f}' | '\u{2b00}'..='\u{2bff}' | '\u{1f000}'..='\u{1faff}')
}

/// Forms, skin tones, and the tags of regional flags.
const fn is_modifier(c: char) -> bool {
    matches!(c, '\u{fe0e}' | '\u{fe0f}' | '\u{1f3fb}'..='\u{1f3ff}' | '\u{e0020}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_emoji_and_nothing_else() {
        for good in ["👍", "👍🏽", "❤️", "❤", "🇩🇪", "1️⃣", "👨‍👩‍👧‍👦", "🏴󠁧󠁢󠁳󠁣󠁴󠁿", "❤️‍🔥", "™️", "ℹ️", "☺"]
        {
            assert!(is_one(good), "{good}");
        }
        for bad in ["", "a", "1", "👍👍", "👍 ", "ok", "🇩", "👍a", "\u{200d}", "👍\u{200d}", "\u{fe0f}", "日"]
        {
            assert!(!is_one(bad), "{bad}");
        }
        assert!(!is_one(&["👨"; 6].join("\u{200d}")), "too long");
    }
}
