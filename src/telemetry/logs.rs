//! Structured logs on standard error.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::LogFormat;

/// A filter that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("SWITCHBOARD_LOG: {0}")]
pub struct BadFilter(#[from] tracing_subscriber::filter::ParseError);

/// Starts logging in `format`, as far as `filter` lets lines through; a second call changes nothing.
///
/// # Errors
/// [`BadFilter`].
pub fn init(format: LogFormat, filter: &str) -> Result<(), BadFilter> {
    // Whatever else is asked for: these would show message bodies.
    let filter = EnvFilter::builder().parse(format!("{filter},{}", crate::broker::LOG_FILTER))?;
    let registry = tracing_subscriber::registry().with(filter);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let started = match format {
        LogFormat::Text => registry.with(lines.with_ansi(std::io::stderr().is_terminal())).try_init(),
        LogFormat::Json => registry.with(lines.json().flatten_event(true).with_current_span(false)).try_init(),
    };
    // In one process with several starts (tests) the first one wins.
    if started.is_ok() {
        report_panics();
    }
    Ok(())
}

/// A panic's message may quote data, so only its place is logged.
fn report_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string);
        let thread = std::thread::current();
        tracing::error!(place, thread = thread.name(), "panicked");
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_twice_and_refuses_a_bad_filter() {
        init(LogFormat::Json, "info,switchboard=debug").unwrap();
        init(LogFormat::Text, "warn").unwrap();
        assert!(init(LogFormat::Text, "switchboard=loudly").unwrap_err().to_string().starts_with("SWITCHBOARD_LOG"));
    }
}
