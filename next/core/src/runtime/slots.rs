//! The slots in which a store keeps the results of steps.

use std::ops::Range;
use std::sync::Arc;

use super::registry::RequestRegistry;
use crate::backend::{Marker, Slot};
use crate::sync::{Mutex, OwnedSemaphorePermit, Semaphore};

/// The slots of steps.
const STEPS: u16 = 64;

/// How many slots the departures of one sort have.
pub(super) const DEPARTURES: u16 = 8;

/// Slots that steps of one sort share. Departures have others than steps, and one sort of departures has others than the
/// next, so that a sort whose steps all fail holds up no other.
pub(crate) struct Slots {
    free: Mutex<Vec<Slot>>,
    permits: Arc<Semaphore>,
    count: u16,
}

impl Slots {
    fn new(slots: Range<u16>) -> Arc<Self> {
        debug_assert!(slots.end <= Slot::COUNT);
        Arc::new(Self {
            permits: Arc::new(Semaphore::new(slots.len())),
            count: slots.end - slots.start,
            free: Mutex::new(slots.rev().map(Slot::new).collect()),
        })
    }

    /// Returns the slots of steps.
    pub(super) fn of_steps() -> Arc<Self> {
        Self::new(0..STEPS)
    }

    /// Returns the slots of the departures of the sort with number `sort`.
    pub(super) fn of_departures(sort: u16) -> Arc<Self> {
        let first = STEPS + sort * DEPARTURES;
        Self::new(first..first + DEPARTURES)
    }

    /// Takes the identity of a step. Waits while all slots are in use.
    pub(crate) async fn marker(self: &Arc<Self>, registry: &RequestRegistry) -> MarkerLease {
        // The semaphore is never closed.
        let permit = Arc::clone(&self.permits).acquire_owned().await.ok();
        let slot = self.free.lock().pop().unwrap_or(Slot::new(0));
        // The nonce is taken after the slot: within a slot, nonces rise.
        let nonce = registry.take_nonce();
        MarkerLease {
            marker: Marker { nonce, slot },
            slots: Arc::clone(self),
            _permit: permit,
        }
    }

    /// Waits until no step is in flight.
    pub(super) async fn until_free(&self) {
        let mut held = Vec::new();
        for _ in 0..self.count {
            held.push(Arc::clone(&self.permits).acquire_owned().await);
        }
    }
}

/// The identity of one step. Its slot is free again after the drop.
pub(crate) struct MarkerLease {
    marker: Marker,
    slots: Arc<Slots>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl MarkerLease {
    pub(crate) const fn marker(&self) -> Marker {
        self.marker
    }
}

impl Drop for MarkerLease {
    fn drop(&mut self) {
        // Before the permit is returned.
        self.slots.free.lock().push(self.marker.slot);
    }
}
