//! Ids in WAHA's and WhatsApp's own forms.

use chrono::{DateTime, Utc};

use crate::domain::chance::Chance;

const CROCKFORD: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

/// 26 lower-case characters: 48 bits of time, 80 of chance.
pub(super) fn ulid(now: DateTime<Utc>, chance: &Chance) -> String {
    let millis = u128::from(u64::try_from(now.timestamp_millis()).unwrap_or(0));
    let random = chance.bytes::<10>().iter().fold(0u128, |sum, byte| (sum << 8) | u128::from(*byte));
    let value = (millis << 80) | random;
    (0..26u32).rev().map(|place| digit(CROCKFORD, value >> (place * 5))).collect()
}

/// `3EB0` and 18 upper-case hexadecimal digits, as a web client makes them.
pub(super) fn message_id(chance: &Chance) -> String {
    format!("3EB0{}", hex::encode_upper(chance.bytes::<9>()))
}

/// A delivery's id: machine, process, and the time in base 36.
pub(super) fn request_id(millis: u64) -> String {
    const BASE36: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    let mut digits = Vec::with_capacity(9);
    let mut rest = millis;
    while rest > 0 {
        let index = usize::try_from(rest % 36).unwrap_or(0);
        digits.push(BASE36.get(index).copied().map_or('0', char::from));
        rest /= 36;
    }
    let time: String = digits.into_iter().rev().collect();
    format!("3b2ozl17a{time}")
}

/// What a QR code says: one reference and three keys.
pub(super) fn qr_value(chance: &Chance) -> String {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    let part = || STANDARD.encode(chance.bytes::<32>());
    format!("2@{}{},{},{},{}", part(), part(), part(), part(), part())
}

/// `ABCD-1234`: what is typed into the phone instead of a scan.
pub(super) fn pairing_code(chance: &Chance) -> String {
    let characters: String = chance.bytes::<8>().iter().map(|byte| digit(CROCKFORD, u128::from(*byte))).collect();
    let characters = characters.to_ascii_uppercase();
    let (first, second) = characters.split_at_checked(4).unwrap_or((&characters, ""));
    format!("{first}-{second}")
}

fn digit(alphabet: &[u8; 32], value: u128) -> char {
    alphabet.get(usize::try_from(value & 31).unwrap_or(0)).copied().map_or('0', char::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_id_starts_with_its_time() {
        let chance = Chance::seeded(1);
        let now = DateTime::from_timestamp_millis(1_795_211_402_211).unwrap();
        let id = ulid(now, &chance);
        assert_eq!(id.len(), 26);
        assert!(id.starts_with("01m7xf06z"), "{id}");
    }

    #[test]
    fn a_request_id_ends_with_its_time() {
        assert_eq!(request_id(1_795_211_853_742), "3b2ozl17amwpisbla");
    }

    #[test]
    fn message_ids_look_like_a_web_clients() {
        let id = message_id(&Chance::seeded(2));
        assert_eq!(id.len(), 22);
        assert!(id.starts_with("3EB0") && id.chars().all(|c| c.is_ascii_hexdigit() && !c.is_ascii_lowercase()));
    }
}
