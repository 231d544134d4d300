//! Waiting for a session to be as a caller needs it.

use std::time::Duration;

use super::session::{Session, Status};
use super::world::World;

impl Session {
    /// Returns once the session is WORKING; false when it was deleted.
    pub async fn working(&self) -> bool {
        if self.current() == Status::Working {
            return true;
        }
        let mut status = self.status.subscribe();
        let wanted = |status: &Status| *status == Status::Working || self.is_deleted();
        status.wait_for(wanted).await.is_ok_and(|status| *status == Status::Working)
    }

    /// Returns once the session is WORKING and not in name only; false when it was deleted.
    pub async fn alive(&self) -> bool {
        let mut status = self.status.subscribe();
        let lives = |status: &Status| (*status == Status::Working && !self.is_undead()) || self.is_deleted();
        status.wait_for(lives).await.is_ok_and(|status| *status == Status::Working)
    }

    /// As WAHA waits for a status: 5 s for the session to run, then 10 s for the status. `Err` has the status it ended with.
    pub async fn expect(&self, world: &World, expected: Status) -> Result<(), Status> {
        let wait_for = async |wanted: &(dyn Fn(Status) -> bool + Sync), patience: Duration| {
            let mut status = self.status.subscribe();
            tokio::select! {
                reached = status.wait_for(|status| wanted(*status)) => reached.is_ok(),
                () = world.pause(patience) => false,
            }
        };
        if self.current() == expected {
            return Ok(());
        }
        if !wait_for(&|status| status != Status::Stopped, Duration::from_secs(5)).await {
            return Err(self.current());
        }
        if wait_for(&|status| status == expected, Duration::from_secs(10)).await { Ok(()) } else { Err(self.current()) }
    }
}
