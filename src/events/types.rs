//! The types of events, and the patterns that select them.

/// Every type of event, in the order of the documentation.
pub const TYPES: [&str; 33] = [
    "message.received",
    "message.queued",
    "message.sent",
    "message.delivered",
    "message.read",
    "message.played",
    "message.failed",
    "message.cancelled",
    "message.expired",
    "message.edited",
    "message.revoked",
    "message.reaction",
    MESSAGE_MEDIA,
    "session.status",
    "session.unhealthy",
    "session.healthy",
    "session.restricted",
    "session.qr",
    "poll.vote",
    "call.received",
    "call.accepted",
    "call.rejected",
    "group.joined",
    "group.left",
    "group.participants",
    "group.updated",
    "label.upserted",
    "label.deleted",
    "label.added",
    "label.removed",
    PRESENCE,
    ENDPOINT_DISABLED,
    TEST_PING,
];

/// The file of a message that came in was stored, or is not to be had.
pub const MESSAGE_MEDIA: &str = "message.media";

/// Who is online or typing: told in passing to live streams, kept nowhere and delivered to no endpoint.
pub const PRESENCE: &str = "presence.update";

/// An endpoint was disabled because it failed for too long or said that it is gone.
pub const ENDPOINT_DISABLED: &str = "endpoint.disabled";

/// Asked for by a tenant, for one endpoint only: it is never fanned out.
pub const TEST_PING: &str = "test.ping";

/// Whether `patterns` (none: all) select the type `kind`.
#[must_use]
pub fn selects(patterns: &[String], kind: &str) -> bool {
    let group = kind.split_once('.').map_or(kind, |(group, _)| group);
    patterns.is_empty()
        || patterns.iter().any(|pattern| pattern == "*" || pattern == kind || pattern.strip_suffix(".*") == Some(group))
}

/// True for `*`, for a group such as `message.*` that has events, and for a type of event.
#[must_use]
pub fn is_pattern(text: &str) -> bool {
    if text == "*" {
        return true;
    }
    match text.strip_suffix(".*") {
        Some(group) => TYPES.iter().any(|name| name.split_once('.').is_some_and(|(of, _)| of == group)),
        None => TYPES.contains(&text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_select_something_or_are_none() {
        for good in ["*", "message.*", "session.*", "endpoint.*", "test.*", "message.sent", "test.ping"] {
            assert!(is_pattern(good), "{good}");
        }
        for bad in
            ["", ".*", "**", "message", "message.", "message.*.x", "order.*", "message.typo", "*.sent", "Message.sent"]
        {
            assert!(!is_pattern(bad), "{bad}");
        }
    }
}
