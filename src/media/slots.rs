//! How many files are on their way, or streams open, at once: some per tenant, so that one who is slow delays only himself, and so many in all.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::domain::ids::TenantId;

/// The places.
#[derive(Debug)]
pub struct Slots {
    each: usize,
    all: Arc<Semaphore>,
    tenants: Mutex<HashMap<TenantId, Weak<Semaphore>>>,
}

/// A place, until it is dropped.
#[derive(Debug)]
pub struct Slot {
    _all: OwnedSemaphorePermit,
    _own: OwnedSemaphorePermit,
    // Kept as long as somebody holds a place of it.
    _tenant: Arc<Semaphore>,
}

impl Slots {
    /// `each` for every tenant, `all` together.
    #[must_use]
    pub fn new(each: usize, all: usize) -> Self {
        Self { each, all: Arc::new(Semaphore::new(all)), tenants: Mutex::default() }
    }

    /// A place for `tenant`; `None` when there is none within `patience`.
    pub async fn take(&self, tenant: TenantId, patience: Duration) -> Option<Slot> {
        let deadline = Instant::now() + patience;
        let of_tenant = self.of(tenant);
        let own = tokio::time::timeout_at(deadline, Arc::clone(&of_tenant).acquire_owned()).await.ok()?.ok()?;
        let all = tokio::time::timeout_at(deadline, Arc::clone(&self.all).acquire_owned()).await.ok()?.ok()?;
        Some(Slot { _all: all, _own: own, _tenant: of_tenant })
    }

    fn of(&self, tenant: TenantId) -> Arc<Semaphore> {
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = tenants.get(&tenant).and_then(Weak::upgrade) {
            return known;
        }
        tenants.retain(|_, known| known.strong_count() > 0);
        let fresh = Arc::new(Semaphore::new(self.each));
        tenants.insert(tenant, Arc::downgrade(&fresh));
        fresh
    }
}
