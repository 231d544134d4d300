//! The key of a person's WhatsApp id: ids of one number have one key, however they are written.

/// `wa_id` (`…@c.us`, `…@s.whatsapp.net`, `…@lid`, with or without a device) without its device, as WAHA takes it; `None` for
/// groups and the like.
#[must_use]
pub fn plain(wa_id: &str) -> Option<String> {
    let (name, domain) = wa_id.split_once('@')?;
    let name = name.split_once(':').map_or(name, |(name, _device)| name);
    if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    match domain {
        "lid" => Some(format!("{name}@lid")),
        "c.us" | "s.whatsapp.net" => Some(format!("{name}@c.us")),
        _ => None,
    }
}

/// The key of `wa_id` (in the forms of [`plain`]); `None` for groups and the like.
///
/// Many Brazilian mobile numbers are known to WhatsApp without the ninth digit that everybody dials, so their key has none.
#[must_use]
pub fn key(wa_id: &str) -> Option<String> {
    let plain = plain(wa_id)?;
    match plain.strip_suffix("@c.us").and_then(brazilian_without_nine) {
        Some((area, number)) => Some(format!("55{area}{number}@c.us")),
        None => Some(plain),
    }
}

/// The chats that the person of `key` may write in: under the key itself and, of a Brazilian mobile number, with its ninth digit.
#[must_use]
pub fn chat_ids(key: &str) -> Vec<String> {
    let with_nine = key.strip_suffix("@c.us").and_then(|digits| {
        let national = digits.strip_prefix("55").filter(|national| national.len() == 10)?;
        let (area, number) = national.split_at_checked(2)?;
        matches!(number.as_bytes().first(), Some(b'6'..=b'9')).then(|| format!("55{area}9{number}@c.us"))
    });
    std::iter::once(key.to_owned()).chain(with_nine).collect()
}

/// Area code and the eight digits behind the ninth, of a Brazilian mobile number that has it.
fn brazilian_without_nine(digits: &str) -> Option<(&str, &str)> {
    let national = digits.strip_prefix("55").filter(|national| national.len() == 11)?;
    let (area, number) = national.split_at_checked(2)?;
    let number = number.strip_prefix('9')?;
    // Eight digits of a mobile number begin with 6 to 9; others are no mobile number written in nine digits.
    matches!(number.as_bytes().first(), Some(b'6'..=b'9')).then_some((area, number))
}

#[cfg(test)]
mod tests {
    use super::{chat_ids, key};

    #[test]
    fn ids_of_one_number_have_one_key() {
        for (id, expected) in [
            ("15550100001@c.us", Some("15550100001@c.us")),
            ("15550100001@s.whatsapp.net", Some("15550100001@c.us")),
            ("15550100001:12@s.whatsapp.net", Some("15550100001@c.us")),
            ("77000123:3@lid", Some("77000123@lid")),
            ("5511987654321@c.us", Some("551187654321@c.us")),
            ("551187654321@c.us", Some("551187654321@c.us")),
            // A landline has eight digits, and none of the ninth.
            ("551131234567@c.us", Some("551131234567@c.us")),
            ("5511931234567@c.us", Some("5511931234567@c.us")),
            ("120363000000000000@g.us", None),
            ("status@broadcast", None),
            ("", None),
        ] {
            assert_eq!(key(id).as_deref(), expected, "{id}");
        }
    }

    #[test]
    fn a_key_stands_for_the_chats_whose_key_it_is() {
        assert_eq!(chat_ids("551187654321@c.us"), ["551187654321@c.us", "5511987654321@c.us"]);
        for key in ["15550100001@c.us", "551131234567@c.us", "551187654321@lid"] {
            assert_eq!(chat_ids(key), [key]);
        }
        assert!(chat_ids("551187654321@c.us").iter().all(|chat| key(chat).as_deref() == Some("551187654321@c.us")));
    }
}
