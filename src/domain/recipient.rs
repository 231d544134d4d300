//! Who a message goes to: a phone number in E.164, or a WhatsApp chat id.

use std::fmt;

/// Why a text is not a recipient.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRecipient {
    /// Nothing but blanks.
    #[error("must not be empty")]
    Empty,
    /// A number with the prefix for calls abroad.
    #[error("must begin with the country code, without the prefix `00`: `+44…` instead of `0044…`")]
    CallPrefix,
    /// A number in national form.
    #[error(
        "must begin with the country code, without the leading zero of the national form: `+49171…` instead of `0171…`"
    )]
    NationalForm,
    /// A number whose national zero was left in behind the country code.
    #[error("must be as it is dialled from abroad, without a zero in parentheses: `+44 20…` instead of `+44 (0)20…`")]
    NationalZero,
    /// E.164 allows 7 to 15 digits.
    #[error("must have 7 to 15 digits, country code included")]
    Length,
    /// Letters in a phone number.
    #[error("must not contain letters, unless it is a WhatsApp id (…@c.us, …@g.us, …@lid, …@newsletter)")]
    Letters,
    /// Neither digits with separators nor a known kind of chat id.
    #[error("must be a phone number in E.164 or a WhatsApp id (…@c.us, …@g.us, …@lid, …@newsletter)")]
    Shape,
}

/// A WhatsApp chat id in the form that WAHA sends to, such as `15550100001@c.us`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct ChatId(String);

// A chat id holds a phone number, which belongs in no log.
impl fmt::Debug for ChatId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ChatId(…)")
    }
}

impl ChatId {
    /// Reads a phone number (with or without `+`, spaces, dots, dashes, parentheses) or a WhatsApp id.
    ///
    /// # Errors
    /// [`InvalidRecipient`], saying what is wrong.
    pub fn parse(text: &str) -> Result<Self, InvalidRecipient> {
        let text = text.trim();
        if text.is_empty() {
            return Err(InvalidRecipient::Empty);
        }
        match text.split_once('@') {
            None => Ok(Self(format!("{}@c.us", digits_of_phone(text)?))),
            Some((number, "c.us" | "s.whatsapp.net")) => Ok(Self(format!("{}@c.us", digits_of_phone(number)?))),
            Some((id, server @ ("lid" | "newsletter"))) if is_number(id) => Ok(Self(format!("{id}@{server}"))),
            Some((id, "g.us")) if id.len() <= 64 && id.split('-').all(is_number) => Ok(Self(format!("{id}@g.us"))),
            Some(_) => Err(InvalidRecipient::Shape),
        }
    }

    /// The id as WAHA takes it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is a group.
    #[must_use]
    pub fn is_group(&self) -> bool {
        self.0.ends_with("@g.us")
    }

    /// Whether it is one person.
    #[must_use]
    pub fn is_person(&self) -> bool {
        self.0.ends_with("@c.us") || self.0.ends_with("@lid")
    }

    /// The phone number in E.164 with `+`; `None` for groups, channels and hidden ids.
    #[must_use]
    pub fn phone(&self) -> Option<String> {
        self.0.strip_suffix("@c.us").map(|digits| format!("+{digits}"))
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.len() <= 32 && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn digits_of_phone(text: &str) -> Result<String, InvalidRecipient> {
    let text = text.trim();
    let mut digits = String::with_capacity(15);
    let mut shape = Ok(());
    for (index, letter) in text.chars().enumerate() {
        match letter {
            '0'..='9' => digits.push(letter),
            '+' if index == 0 => {}
            ' ' | '-' | '.' | '(' | ')' | '\u{a0}' => {}
            letter if letter.is_alphabetic() => return Err(InvalidRecipient::Letters),
            _ => shape = Err(InvalidRecipient::Shape),
        }
    }
    shape?;
    if digits.is_empty() {
        return Err(InvalidRecipient::Shape);
    }
    if digits.starts_with("00") {
        return Err(InvalidRecipient::CallPrefix);
    }
    if digits.starts_with('0') {
        return Err(InvalidRecipient::NationalForm);
    }
    if text.contains("(0)") {
        return Err(InvalidRecipient::NationalZero);
    }
    if (7..=15).contains(&digits.len()) { Ok(digits) } else { Err(InvalidRecipient::Length) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_of_one_number_are_one_chat() {
        for text in
            ["+1 (555) 010-0001", "15550100001", " +15550100001 ", "15550100001@c.us", "15550100001@s.whatsapp.net"]
        {
            let chat = ChatId::parse(text).unwrap();
            assert_eq!((chat.as_str(), chat.phone().as_deref()), ("15550100001@c.us", Some("+15550100001")), "{text}");
        }
    }

    #[test]
    fn other_chats_have_no_phone() {
        for text in ["120363000000000000@g.us", "15550100001-1600000000@g.us", "99999999999@lid", "120363@newsletter"] {
            let chat = ChatId::parse(text).unwrap();
            assert_eq!((chat.as_str(), chat.phone()), (text, None));
        }
    }

    #[test]
    fn what_is_no_recipient_says_why() {
        for (text, why) in [
            ("", InvalidRecipient::Empty),
            ("  ", InvalidRecipient::Empty),
            ("0044 20 7946 0000", InvalidRecipient::CallPrefix),
            ("+0044 20 7946 0000", InvalidRecipient::CallPrefix),
            ("0171 1234567", InvalidRecipient::NationalForm),
            ("(089) 123456", InvalidRecipient::NationalForm),
            ("01711234567@c.us", InvalidRecipient::NationalForm),
            ("+44 (0)20 7946 0000", InvalidRecipient::NationalZero),
            ("12345", InvalidRecipient::Length),
            ("1234567890123456", InvalidRecipient::Length),
            ("call me", InvalidRecipient::Letters),
            ("+1 555 010 0001 ext 5", InvalidRecipient::Letters),
            ("1-800-FLOWERS", InvalidRecipient::Letters),
            ("1+5550100001", InvalidRecipient::Shape),
            ("+", InvalidRecipient::Shape),
            ("status@broadcast", InvalidRecipient::Shape),
            ("abc@g.us", InvalidRecipient::Shape),
            ("-@g.us", InvalidRecipient::Shape),
            ("１５５５０１００００１", InvalidRecipient::Shape),
        ] {
            assert_eq!(ChatId::parse(text).unwrap_err(), why, "{text:?}");
        }
    }
}
