//! Where the markers of commits stand, without growth.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Semaphore;

/// How many commits of one session may be on their way at the same time; others wait.
const SLOTS: u32 = 64;

/// The marker slots of one session: a few places in the store that each hold the marker of the
/// last commit which used them.
///
/// A commit takes a slot for itself, compares that nobody has written there since the revision
/// that this session knows, and writes its nonce there in the same atomic step. So a request that
/// arrives late, after the slot moved on, has no effect; nothing accumulates; and a lost answer
/// is settled by writing *aborted* there under the same comparison: if that succeeds the commit
/// never happens, and if not, the slot shows whose nonce was first.
#[derive(Debug)]
pub struct Slots {
    free: Semaphore,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Used before, the last one on top: as few as there are commits at a time.
    idle: Vec<Slot>,
    /// How many there are.
    made: u32,
    /// By nonce: those that hold a commit which is not settled.
    taken: HashMap<u64, Slot>,
}

/// One place for a marker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Which.
    pub number: u32,
    /// The revision at which it was last written, as this session knows; 0 for never.
    pub last: u64,
}

impl Default for Slots {
    fn default() -> Self {
        Self {
            free: Semaphore::new(SLOTS as usize),
            state: Mutex::default(),
        }
    }
}

impl Slots {
    /// None taken yet.
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A slot for the commit `nonce`, until that is [settled](Self::settle).
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn take(&self, nonce: u64) -> Slot {
        // Never closed, so it cannot fail. Given back by `settle`.
        if let Ok(permit) = self.free.acquire().await {
            permit.forget();
        }
        let mut state = self.state();
        let slot = state.idle.pop().unwrap_or_else(|| {
            state.made += 1;
            Slot {
                number: state.made - 1,
                last: 0,
            }
        });
        state.taken.insert(nonce, slot);
        slot
    }

    /// The slot of the commit `nonce`, while that is not settled.
    pub fn of(&self, nonce: u64) -> Option<Slot> {
        self.state().taken.get(&nonce).copied()
    }

    /// The slot of `nonce` was found written at `last`, by none of this session's commits.
    pub fn moved(&self, nonce: u64, last: u64) {
        if let Some(slot) = self.state().taken.get_mut(&nonce) {
            slot.last = last;
        }
    }

    /// The commit `nonce` is settled, or nobody will ask any more; its slot was last written at
    /// `last`. If that is not so because the commit lands later, the next one to use the slot
    /// finds it [moved](Self::moved); or that one lands first, and then this one never does.
    pub fn settle(&self, nonce: u64, last: u64) {
        let mut state = self.state();
        if let Some(slot) = state.taken.remove(&nonce) {
            state.idle.push(Slot { last, ..slot });
            self.free.add_permits(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn slots_are_used_again_and_never_shared() {
        let slots = Slots::new();
        let (first, second) = (slots.take(1).await, slots.take(2).await);
        assert_ne!(first.number, second.number);
        slots.settle(1, 7);
        assert_eq!(
            slots.take(3).await,
            Slot {
                number: first.number,
                last: 7
            }
        );
        assert_eq!(slots.of(1), None);
        slots.settle(1, 9); // settled already: nothing happens
        assert_eq!(slots.take(4).await.number, 2);
    }

    #[tokio::test]
    async fn there_is_a_bound() {
        let slots = Slots::new();
        for nonce in 0..u64::from(SLOTS) {
            slots.take(nonce).await;
        }
        let waiting = slots.take(1_000);
        let mut waiting = std::pin::pin!(waiting);
        assert!(futures_util::poll!(waiting.as_mut()).is_pending());
        slots.settle(5, 50);
        assert_eq!(
            waiting.await,
            Slot {
                number: 5,
                last: 50
            }
        );
    }
}
