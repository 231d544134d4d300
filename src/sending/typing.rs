//! Showing that somebody is typing, for about as long as the text takes.
//!
//! A courtesy: nothing that goes wrong with it concerns the message, and it takes no more time than its lease has to spare.

use std::time::Duration;

use crate::app::App;
use crate::sending::attempt::Way;

/// Letters in a second, more or less.
const SPEED: u64 = 30;
/// The longest that anybody is shown typing.
const LONGEST: Duration = Duration::from_secs(8);
/// The shortest.
const SHORTEST: Duration = Duration::from_millis(500);
/// What WAHA's answer may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// Shows typing in `chat` before `text` is sent, within `spare`.
pub(super) async fn show(app: &App, way: &Way, chat: &str, text: &str, spare: Duration) {
    let Some(spare) = spare.checked_sub(2 * PATIENCE.min(spare / 4)) else { return };
    let patience = PATIENCE.min(spare / 4);
    let (server, session) = (&way.server.server, way.session.external_name.as_str());
    let started = tokio::time::timeout(patience, app.waha.typing(server, session, chat, true)).await;
    if !matches!(started, Ok(Ok(()))) {
        return;
    }
    app.clock.sleep(duration(app, text).min(spare)).await;
    let _courtesy = tokio::time::timeout(patience, app.waha.typing(server, session, chat, false)).await;
}

/// By the text's length, give or take a fifth.
fn duration(app: &App, text: &str) -> Duration {
    let letters = u64::try_from(text.chars().count()).unwrap_or(u64::MAX);
    let plain = Duration::from_millis(letters.saturating_mul(1000) / SPEED).clamp(SHORTEST, LONGEST);
    (plain * 4 / 5 + app.chance.jitter(plain * 2 / 5)).min(LONGEST)
}
