//! The rules of what a message carries beyond its text.

use std::collections::HashSet;

use url::Url;

use crate::domain::content::{ContactCard, Kind, Location, Poll};
use crate::domain::recipient::ChatId;
use crate::guard::{Guard, GuardError};
use crate::http::rules::Rules;

use super::request::recipient_code;

/// Cards in a message, at the most.
const MOST_CONTACTS: usize = 50;
/// Characters in a poll's question and in each option, at the most: WhatsApp's own bounds.
const MOST_QUESTION: usize = 255;
const MOST_OPTION: usize = 100;

pub(super) fn location(rules: &mut Rules, place: &Location) {
    let within = |degrees: f64, most: f64| (-most..=most).contains(&degrees);
    rules.check(within(place.latitude, 90.0), "location.latitude", "out_of_range", "must be from -90 to 90");
    rules.check(within(place.longitude, 180.0), "location.longitude", "out_of_range", "must be from -180 to 180");
    if let Some(name) = &place.name {
        rules.name("location.name", name, 255);
    }
}

/// The cards with their numbers in E.164.
pub(super) fn contacts(rules: &mut Rules, cards: Option<Vec<ContactCard>>) -> Vec<ContactCard> {
    let Some(mut cards) = cards else { return Vec::new() };
    rules.check(!cards.is_empty(), "contacts", "required", "must have 1 to 50 cards");
    if cards.len() > MOST_CONTACTS {
        rules.broken("contacts", "too_long", "must have 1 to 50 cards");
        return Vec::new();
    }
    for (index, card) in cards.iter_mut().enumerate() {
        rules.name(&format!("contacts[{index}].full_name"), &card.full_name, 100);
        if let Some(organization) = &card.organization {
            rules.name(&format!("contacts[{index}].organization"), organization, 100);
        }
        let field = format!("contacts[{index}].phone");
        match ChatId::parse(&card.phone).map(|chat| chat.phone()) {
            Ok(Some(phone)) => card.phone = phone,
            Ok(None) => rules.broken(&field, "invalid_value", "must be a phone number in E.164"),
            Err(fault) => rules.broken(&field, recipient_code(fault), fault.to_string()),
        }
    }
    cards
}

pub(super) fn poll(rules: &mut Rules, poll: &Poll) {
    rules.name("poll.question", &poll.question, MOST_QUESTION);
    rules.check((2..=12).contains(&poll.options.len()), "poll.options", "out_of_range", "must be 2 to 12 options");
    let mut seen = HashSet::new();
    for (index, option) in poll.options.iter().take(12).enumerate() {
        let field = format!("poll.options[{index}]");
        rules.name(&field, option, MOST_OPTION);
        rules.check(seen.insert(option.as_str()), &field, "duplicate", "must differ from the other options");
    }
}

/// Whether a file of this MIME type can be of this kind. What the type leaves open, nothing is said against.
pub(super) fn suits(kind: Kind, mime_type: &str) -> bool {
    let bare = mime_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let group = bare.split('/').next().unwrap_or_default();
    bare == "application/octet-stream"
        || match kind {
            Kind::Image => group == "image",
            Kind::Video => group == "video",
            Kind::Voice => group == "audio" || bare == "application/ogg" || bare == "video/ogg",
            _ => true,
        }
}

/// What a file of this kind must be, in words.
pub(super) const fn wanted(kind: Kind) -> &'static str {
    match kind {
        Kind::Image => "must be an image",
        Kind::Video => "must be a video",
        Kind::Voice => "must be a sound",
        _ => "must be a file",
    }
}

pub(super) fn mime_type(rules: &mut Rules, kind: Kind, mime_type: &str) {
    const FIELD: &str = "media.mime_type";
    let token = |text: &str| {
        !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$&-^_.+".contains(&byte))
    };
    let mut parts = mime_type.split(';');
    let named = parts.next().and_then(|bare| bare.trim().split_once('/')).is_some_and(|(a, b)| token(a) && token(b));
    let printable = mime_type.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    if mime_type.len() > 255 || !named || !printable {
        rules.broken(FIELD, "invalid_value", "must be a MIME type such as `image/jpeg`");
    } else if !suits(kind, mime_type) {
        rules.broken(FIELD, "wrong_type", format!("{} for a message of type `{kind}`", wanted(kind)));
    }
}

/// An address that a file may be fetched from, as far as can be told before its name is resolved.
pub(super) fn media_url(rules: &mut Rules, text: &str, guard: Guard) -> Option<Url> {
    const FIELD: &str = "media.url";
    let Ok(url) = Url::parse(text) else {
        rules.broken(FIELD, "invalid_url", "must be an absolute URL");
        return None;
    };
    let (code, message) = match guard.check_url(&url) {
        Ok(()) => return Some(url),
        Err(GuardError::TooLong) => ("too_long", "must have at most 2048 characters"),
        Err(GuardError::Scheme) => ("https_required", "must begin with https://"),
        Err(GuardError::UserInfo) => ("invalid_url", "must not hold a name or password"),
        Err(GuardError::NoHost) => ("invalid_url", "must name a host"),
        Err(GuardError::Port) => ("forbidden_target", "must not use a port of another service"),
        Err(GuardError::NotPublic) => ("forbidden_target", "must point at a public address"),
    };
    rules.broken(FIELD, code, message);
    None
}
