//! Which number meets which fate, and the two ids a person has.

/// The table of numbers, as `simulate --help` prints it.
pub const HELP: &str = "\
Recipients with a fate (any other number: delivered and read):
  +15550100001  delivered and read
  +15550100002  delivered, never read
  +15550100003  never acked: stays PENDING, reaches nobody
  +15550100004  refused: error 463 (a 500 on GOWS, ack -1 elsewhere)
  +15550100005  not on WhatsApp: check-exists says no; a send vanishes after ack 1
  +15550100006  slow: the answer takes 10 s
  +15550100007  replies about 1 s after reading
  +15550100008  delivered, but never acked
  +15550100009  delivered and read, acks under the @lid
  +15550100010  sent (ack 1) and never acked beyond that, yet it replies
  +15550100011  never acked at all, yet it replies
  +55119555501xx  Brazilian, registered without its ninth digit: check-exists answers 5511555501xx@c.us, and a send
                  to the number as it is written vanishes after ack 1";

/// What becomes of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fate {
    /// Whether a bubble appears on the recipient's phone.
    pub seen: bool,
    /// The last ack that comes; 0 for none.
    pub last_ack: i8,
    pub refused: bool,
    pub registered: bool,
    pub slow: bool,
    pub replies: bool,
    pub lid_acks: bool,
}

pub(super) const READ: Fate =
    Fate { seen: true, last_ack: 3, refused: false, registered: true, slow: false, replies: false, lid_acks: false };

/// Messages to a number that WhatsApp does not know.
pub(super) const VANISHES: Fate = Fate { seen: false, last_ack: 1, registered: false, ..READ };

/// The number under which WhatsApp knows `digits`; none when it does not.
pub(super) fn registered(digits: &str) -> Option<String> {
    if let Some(rest) = digits.strip_prefix(BRAZIL_WRITTEN).filter(|rest| rest.len() == 2) {
        return Some(format!("{BRAZIL_REGISTERED}{rest}"));
    }
    (digits != "15550100005" && !digits.is_empty()).then(|| digits.to_owned())
}

/// A Brazilian mobile number that was registered before its ninth digit, as it is written today and as WhatsApp knows it.
const BRAZIL_WRITTEN: &str = "55119555501";
const BRAZIL_REGISTERED: &str = "5511555501";

/// The fate of messages to `chat` (`…@c.us`, `…@lid`, or anything else).
pub(super) fn fate_of(chat: &str) -> Fate {
    let digits = number_of(chat).unwrap_or_default();
    if registered(&digits).is_some_and(|known| known != digits) {
        return VANISHES;
    }
    let Some(suffix) = digits.strip_prefix("1555010") else { return READ };
    match suffix {
        "0002" => Fate { last_ack: 2, ..READ },
        "0003" => Fate { seen: false, last_ack: 0, ..READ },
        "0004" => Fate { seen: false, last_ack: 0, refused: true, ..READ },
        "0005" => VANISHES,
        "0006" => Fate { slow: true, ..READ },
        "0007" => Fate { replies: true, ..READ },
        "0008" => Fate { last_ack: 0, ..READ },
        "0009" => Fate { lid_acks: true, ..READ },
        "0010" => Fate { last_ack: 1, replies: true, ..READ },
        "0011" => Fate { last_ack: 0, replies: true, ..READ },
        _ => READ,
    }
}

/// The phone number behind a chat id, digits only; none for groups and channels.
pub(super) fn number_of(chat: &str) -> Option<String> {
    let (user, server) = chat.split_once('@').unwrap_or((chat, "c.us"));
    let user = user.split(':').next().unwrap_or(user);
    match server {
        "c.us" | "s.whatsapp.net" => Some(user.chars().filter(char::is_ascii_digit).collect()),
        "lid" => user.strip_prefix(LID_PREFIX).map(str::to_owned),
        _ => None,
    }
}

/// The hidden id of a person, made from the number so that it needs no table.
pub(super) fn lid_of(digits: &str) -> String {
    format!("{LID_PREFIX}{digits}@lid")
}

const LID_PREFIX: &str = "98";

/// `…@c.us` for a bare number or Baileys' form, everything else as it is.
pub(super) fn chat_id(given: &str) -> String {
    match given.split_once('@') {
        None => format!("{}@c.us", given.trim_start_matches('+')),
        Some((user, "s.whatsapp.net")) => format!("{user}@c.us"),
        Some(_) => given.to_owned(),
    }
}

/// The chat or person under one name, whichever was given: by phone number where the hidden id has one.
pub(super) fn canonical(given: &str) -> String {
    let chat = chat_id(given);
    match number_of(&chat).filter(|number| !number.is_empty()) {
        Some(number) => format!("{number}@c.us"),
        None => chat,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_and_its_lid_share_a_fate() {
        assert!(!fate_of("15550100005@c.us").registered);
        assert!(!fate_of(&lid_of("15550100005")).registered);
        assert_eq!(fate_of("15550100042@c.us"), READ);
        assert_eq!(fate_of("120363@g.us"), READ);
        assert_eq!((fate_of("5511955550101"), fate_of("551155550101")), (VANISHES, READ));
    }

    #[test]
    fn a_bare_number_becomes_a_chat() {
        assert_eq!(chat_id("+15550100001"), "15550100001@c.us");
        assert_eq!(chat_id("15550100001@s.whatsapp.net"), "15550100001@c.us");
    }
}
