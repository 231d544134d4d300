//! Time as an argument.
//!
//! Every deadline, lease and timestamp is read from one [`Clock`]. In a running process it advances with the machine's
//! monotonic clock and is set to the database's clock, so nodes whose own clocks disagree still agree about leases. In a
//! test it stands still until it is moved.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use tokio::sync::watch;

/// The source of time of one process; clones share it.
#[derive(Clone, Debug)]
pub struct Clock(Arc<Source>);

#[derive(Debug)]
enum Source {
    Running { started: Instant, started_at_micros: AtomicI64 },
    Manual { now: watch::Sender<DateTime<Utc>> },
}

impl Clock {
    /// A clock that runs, set by the machine's wall clock until [`Clock::set`] corrects it.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the machine's clock")]
    pub fn running() -> Self {
        Self(Arc::new(Source::Running {
            started: Instant::now(),
            started_at_micros: AtomicI64::new(Utc::now().timestamp_micros()),
        }))
    }

    /// A clock that stands at `start` until [`Clock::advance`] moves it.
    #[must_use]
    pub fn manual(start: DateTime<Utc>) -> Self {
        Self(Arc::new(Source::Manual { now: watch::Sender::new(start) }))
    }

    /// The current time, to the microsecond (what Postgres keeps).
    #[must_use]
    pub fn now(&self) -> DateTime<Utc> {
        match &*self.0 {
            Source::Running { started, started_at_micros } => {
                let elapsed = i64::try_from(started.elapsed().as_micros()).unwrap_or(i64::MAX);
                let micros = started_at_micros.load(Ordering::Relaxed).saturating_add(elapsed);
                DateTime::from_timestamp_micros(micros).unwrap_or_default()
            }
            Source::Manual { now } => *now.borrow(),
        }
    }

    /// Sets a running clock to `now`, as read from the database; a manual clock keeps its time.
    pub fn set(&self, now: DateTime<Utc>) {
        if let Source::Running { started, started_at_micros } = &*self.0 {
            let elapsed = i64::try_from(started.elapsed().as_micros()).unwrap_or(i64::MAX);
            started_at_micros.store(now.timestamp_micros().saturating_sub(elapsed), Ordering::Relaxed);
        }
    }

    /// Moves a manual clock forward and wakes what sleeps on it; a running clock is not moved.
    pub fn advance(&self, by: Duration) {
        if let Source::Manual { now } = &*self.0 {
            now.send_modify(|now| *now += TimeDelta::from_std(by).unwrap_or(TimeDelta::MAX));
        }
    }

    /// Returns once the clock shows `at` or later.
    pub async fn sleep_until(&self, at: DateTime<Utc>) {
        match &*self.0 {
            Source::Running { .. } => {
                while let Ok(left) = (at - self.now()).to_std() {
                    if left.is_zero() {
                        return;
                    }
                    // Short naps, so that a correction of the clock is noticed.
                    tokio::time::sleep(left.min(Duration::from_secs(30))).await;
                }
            }
            Source::Manual { now } => {
                let mut moved = now.subscribe();
                // The sender lives as long as `self`, so waiting cannot fail.
                let _reached = moved.wait_for(|now| *now >= at).await.map(|now| *now);
            }
        }
    }

    /// Returns once `by` has passed on this clock.
    pub async fn sleep(&self, by: Duration) {
        self.sleep_until(self.now() + TimeDelta::from_std(by).unwrap_or(TimeDelta::MAX)).await;
    }
}
