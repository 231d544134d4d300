//! Why a message failed: the stable codes, what each means and what the tenant should do.

use std::fmt;

macro_rules! failures {
    ($($name:ident $code:literal $meaning:literal $action:literal;)+) => {
        /// Why a message failed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum FailureCode {
            $(#[doc = $meaning] $name,)+
        }

        impl FailureCode {
            /// Every code, in the order of the documentation.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// The code as the API shows it. It never changes.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $code,)+ }
            }

            /// What it means.
            #[must_use]
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$name => $meaning,)+ }
            }

            /// What the tenant should do about it.
            #[must_use]
            pub const fn action(self) -> &'static str {
                match self { $(Self::$name => $action,)+ }
            }
        }
    };
}

failures! {
    RecipientNotOnWhatsapp "recipient_not_on_whatsapp"
        "The recipient's number is not registered with WhatsApp."
        "Check the number. A retry asks WhatsApp again.";
    Restricted "restricted"
        "WhatsApp does not let this account write to people it has not written with before."
        "Wait until the session's `restriction` has ended, then retry. Replies still work.";
    NoServerAck "no_server_ack"
        "WhatsApp's server never acknowledged the message, though it was handed over twice."
        "Look at the session: restart it or pair it again, then retry. A late acknowledgement still moves the message on.";
    Unconfirmed "unconfirmed"
        "The message may or may not have been sent, and nothing can tell."
        "Ask the recipient, or retry if a second copy is acceptable.";
    RejectedByWhatsapp "rejected_by_whatsapp"
        "WhatsApp reported an error for the message after it was handed over."
        "Check the recipient and the session; a retry sends it again.";
    RefusedByWhatsapp "refused_by_whatsapp"
        "WhatsApp's server refused the message."
        "The error's message names WhatsApp's number for the cause; a retry without a change is refused again.";
    RefusedByWaha "refused_by_waha"
        "The WAHA server refused the message by a rule of its own."
        "The error's message says which; a retry without a change is refused again.";
    InvalidRequest "invalid_request"
        "The WAHA server found the request malformed."
        "Report it: the gateway should not have accepted the message.";
    NotFound "not_found"
        "Something the message refers to does not exist on WhatsApp: a chat, or the message it answers."
        "Check `to` and `reply_to`.";
    Unsupported "unsupported"
        "The session's engine cannot send this kind of message."
        "Send another kind, or use a session of another engine.";
    TooLarge "too_large"
        "The message is too large for the WAHA server."
        "Send a smaller file.";
    MediaUnavailable "media_unavailable"
        "The file could not be fetched from its URL, or is not stored any more."
        "Check that the URL can be reached from the internet, or upload the file and send it by its id.";
    Undeliverable "undeliverable"
        "Given up after the most attempts; the message was certainly not sent."
        "The error's message names the last cause; retry when it has gone.";
    Quarantined "quarantined"
        "Sending was broken off three times in a row, so the message was set aside to protect the others."
        "Report it; retry it once the cause is known.";
    SessionDeleted "session_deleted"
        "The session was deleted before the message left."
        "Send it by another session.";
}

impl fmt::Display for FailureCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
