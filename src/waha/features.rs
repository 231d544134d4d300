//! What a WAHA server can do, told from its version.
//!
//! WAHA says nothing of its features, so the version decides. Since 2026.6.1 there is one edition that does everything; before,
//! the free one (Core) ran a single session, sent no files and signed no webhooks, and only there the reported tier says which
//! edition it is. A version that cannot be read belongs to a build of somebody's own and counts as current.

use super::calls::ServerVersion;
use super::engine::Engine;

/// A calendar version, such as 2026.6.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Version {
    year: u16,
    month: u16,
    patch: u16,
}

/// Since then there is one edition, which does everything.
const ONE_EDITION: Version = Version { year: 2026, month: 6, patch: 1 };
/// Since then NOWEB and GOWS take the message id that the caller chose.
const OWN_MESSAGE_IDS: Version = Version { year: 2026, month: 4, patch: 3 };

impl Version {
    /// Reads `2026.6.1`, also with a `v` before or anything after it (`2026.6.1-beta`), and `2026.6` as `2026.6.0`.
    fn read(text: &str) -> Option<Self> {
        let mut numbers = text.trim().trim_start_matches('v').splitn(3, '.').map(|part| {
            let digits = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
            part.get(..digits)?.parse::<u16>().ok()
        });
        let (year, month) = (numbers.next()??, numbers.next()??);
        let patch = numbers.next().flatten().unwrap_or(0);
        ((2000..3000).contains(&year) && (1..=12).contains(&month)).then_some(Self { year, month, patch })
    }
}

/// Something that a WAHA server cannot do, or that makes it unfit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Limitation {
    /// It runs one session, named `default`, which the gateway cannot use.
    SingleSession,
    /// Its webhooks are neither signed nor repeated, so nobody could tell WAHA from anybody else.
    NoWebhookHmac,
    /// It sends no files.
    NoMedia,
    /// The message id that the gateway chose is not kept: a send in doubt cannot be repeated without risk of a second message.
    NoOwnMessageIds,
    /// It runs another engine than it was registered with.
    WrongEngine,
}

impl Limitation {
    /// All limitations.
    pub const ALL: [Self; 5] =
        [Self::SingleSession, Self::NoWebhookHmac, Self::NoMedia, Self::NoOwnMessageIds, Self::WrongEngine];

    /// The word in the database and the API; it never changes.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SingleSession => "single_session",
            Self::NoWebhookHmac => "no_webhook_hmac",
            Self::NoMedia => "no_media",
            Self::NoOwnMessageIds => "no_own_message_ids",
            Self::WrongEngine => "wrong_engine",
        }
    }

    /// Whether no session is placed on a server with this limitation.
    #[must_use]
    pub const fn keeps_sessions_away(self) -> bool {
        matches!(self, Self::SingleSession | Self::NoWebhookHmac | Self::WrongEngine)
    }
}

impl ServerVersion {
    /// What the server cannot do, when it is to run `wanted`.
    #[must_use]
    pub fn limitations(&self, wanted: Engine) -> Vec<Limitation> {
        let version = Version::read(&self.version);
        let before = |since: Version| version.is_some_and(|version| version < since);
        let is_plus = self.tier.as_deref().is_some_and(|tier| tier.eq_ignore_ascii_case("PLUS"));
        let is_core = before(ONE_EDITION) && !is_plus;
        let wrong_engine = self.engine.is_some_and(|engine| engine != wanted);
        let keeps_ids = self.engine.unwrap_or(wanted).honours_message_id() && !before(OWN_MESSAGE_IDS);
        let applies = |limitation: &Limitation| match limitation {
            Limitation::SingleSession | Limitation::NoWebhookHmac | Limitation::NoMedia => is_core,
            Limitation::NoOwnMessageIds => !keeps_ids,
            Limitation::WrongEngine => wrong_engine,
        };
        Limitation::ALL.into_iter().filter(applies).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_and_ordered() {
        for (text, expected) in [
            ("2026.6.1", Some((2026, 6, 1))),
            ("v2026.6.1", Some((2026, 6, 1))),
            ("2026.10.12-beta.3", Some((2026, 10, 12))),
            ("2026.8", Some((2026, 8, 0))),
            ("2026.8-dev", Some((2026, 8, 0))),
            (" 2024.10.8 ", Some((2024, 10, 8))),
            ("", None),
            ("2026", None),
            ("latest", None),
            ("1.2.3", None),
            ("2026.13.1", None),
            ("2026..1", None),
            ("99999.1.1", None),
        ] {
            let read = Version::read(text).map(|version| (version.year, version.month, version.patch));
            assert_eq!(read, expected, "{text}");
        }
        let rising = ["2024.10.8", "2025.9.1", "2026.4.2", "2026.4.3", "2026.6.0", "2026.6.1", "2026.10.1"];
        let versions: Vec<_> = rising.iter().map(|text| Version::read(text).unwrap()).collect();
        assert!(versions.is_sorted_by(|a, b| a < b), "{versions:?}");
    }

    #[test]
    fn each_version_lacks_what_it_lacks() {
        let core = "single_session no_webhook_hmac no_media";
        for (version, tier, reported, wanted, expected) in [
            ("2026.7.1", Some("CORE"), Some(Engine::Noweb), Engine::Noweb, ""),
            ("2026.6.1", Some("CORE"), Some(Engine::Gows), Engine::Gows, ""),
            ("2026.6.1", None, Some(Engine::Webjs), Engine::Webjs, "no_own_message_ids"),
            ("2026.6.1", Some("PLUS"), Some(Engine::Wpp), Engine::Wpp, "no_own_message_ids"),
            ("2026.6.0", Some("CORE"), Some(Engine::Gows), Engine::Gows, core),
            ("2026.6.0", None, Some(Engine::Gows), Engine::Gows, core),
            ("2026.6.0", Some("PLUS"), Some(Engine::Gows), Engine::Gows, ""),
            ("2026.4.3", Some("plus"), Some(Engine::Noweb), Engine::Noweb, ""),
            ("2026.4.2", Some("PLUS"), Some(Engine::Noweb), Engine::Noweb, "no_own_message_ids"),
            (
                "2024.10.8",
                Some("CORE"),
                Some(Engine::Noweb),
                Engine::Noweb,
                "single_session no_webhook_hmac no_media no_own_message_ids",
            ),
            ("2026.7.1", Some("CORE"), Some(Engine::Webjs), Engine::Gows, "no_own_message_ids wrong_engine"),
            ("2026.7.1", Some("CORE"), None, Engine::Gows, ""),
            ("my-own-build", Some("CORE"), Some(Engine::Gows), Engine::Gows, ""),
        ] {
            let server = ServerVersion { version: version.to_owned(), engine: reported, tier: tier.map(str::to_owned) };
            let words: Vec<_> = server.limitations(wanted).into_iter().map(Limitation::as_str).collect();
            assert_eq!(words.join(" "), expected, "{version} {tier:?} {reported:?} {wanted}");
        }
    }
}
