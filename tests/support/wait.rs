//! Waiting for a condition instead of sleeping.

use std::time::{Duration, Instant};

use switchboard::domain::clock::Clock;

const EVERY: Duration = Duration::from_millis(20);

/// Asks `condition` every 20 ms until it answers `Some`; panics with `what` when `timeout` is over. A single question that
/// hangs counts as a no. Where the machine is busy and answers come late, so do the questions: they must not keep it busy, and
/// those that move a clock must not outrun the work.
pub async fn eventually<T>(timeout: Duration, what: &str, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    let started = Instant::now();
    let mut asked = 0_u32;
    loop {
        let left = timeout.saturating_sub(started.elapsed());
        asked += 1;
        let asking = Instant::now();
        if let Ok(Some(value)) = tokio::time::timeout(left.max(EVERY), condition()).await {
            return value;
        }
        assert!(started.elapsed() < timeout, "waited {timeout:?} in vain for {what} (looked {asked} times)");
        tokio::time::sleep(EVERY.max(asking.elapsed() * 2)).await;
    }
}

/// A moved clock that goes on by itself, as long as this lives.
pub struct Hurrying(tokio::task::JoinHandle<()>);

impl Drop for Hurrying {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Lets `clock` go `times` as fast as the machine's.
pub fn hurry(clock: &Clock, times: u32) -> Hurrying {
    let clock = clock.clone();
    Hurrying(tokio::spawn(async move {
        let mut last = Instant::now();
        loop {
            tokio::time::sleep(EVERY / 2).await;
            let now = Instant::now();
            clock.advance((now - last) * times);
            last = now;
        }
    }))
}
