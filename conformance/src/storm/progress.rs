//! Who gets on: what was achieved, not only tried, and whether somebody waits in vain.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// The clients that are known to hold an object for which others wait.
pub(super) struct Occupancy(Mutex<(Vec<usize>, Instant)>);

impl Occupancy {
    pub(super) fn new() -> Self {
        Self(Mutex::new((Vec::new(), Instant::now())))
    }

    fn state(&self) -> std::sync::MutexGuard<'_, (Vec<usize>, Instant)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn enters(&self, client: usize) {
        self.state().0.push(client);
    }

    /// Does nothing for a client that is not known to hold it.
    pub(super) fn leaves(&self, client: usize) {
        let mut state = self.state();
        state.0.retain(|known| *known != client);
        state.1 = Instant::now();
    }

    /// Returns since when no client is known to hold it; `None` while one does.
    pub(super) fn free_since(&self) -> Option<Instant> {
        let state = self.state();
        state.0.is_empty().then_some(state.1)
    }
}

/// What clients achieved: grants, commits, items put in and acknowledged.
pub(super) struct Progress {
    by_client: Vec<AtomicUsize>,
    /// What each of those who look on was shown, which is less than it achieved: it asks, too.
    shown: Vec<AtomicUsize>,
    /// From when on nothing stands in anybody's way, if nothing does.
    calm: Mutex<Option<Instant>>,
}

impl Progress {
    /// Of so many clients, in peace.
    pub(super) fn new(clients: usize) -> Self {
        let zero = || (0..clients).map(|_| AtomicUsize::new(0)).collect();
        Self {
            by_client: zero(),
            shown: zero(),
            calm: Mutex::new(Some(Instant::now())),
        }
    }

    /// A client achieved something.
    pub(super) fn achieved(&self, client: usize) {
        if let Some(count) = self.by_client.get(client) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A client that looks on was shown something: whoever is deaf can still ask.
    pub(super) fn was_shown(&self, client: usize) {
        self.achieved(client);
        if let Some(count) = self.shown.get(client) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How much each client was shown.
    pub(super) fn shown(&self) -> Vec<usize> {
        let counts = self.shown.iter();
        counts.map(|count| count.load(Ordering::Relaxed)).collect()
    }

    /// How much each client achieved.
    pub(super) fn of_each(&self) -> Vec<usize> {
        let counts = self.by_client.iter();
        counts.map(|count| count.load(Ordering::Relaxed)).collect()
    }

    fn calm(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.calm.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something goes wrong: nobody can be blamed for waiting.
    pub(super) fn trouble(&self) {
        *self.calm() = None;
    }

    /// All is healed, and what the dead had is free by then.
    pub(super) fn calm_in(&self, grace: Duration) {
        *self.calm() = Some(Instant::now() + grace);
    }

    /// Whether nothing has stood in the way of an operation called at that time.
    pub(super) fn is_calm_since(&self, called: Instant) -> bool {
        self.calm().is_some_and(|calm| calm <= called)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_has_been_shown_nothing() {
        let progress = Progress::new(2);
        progress.achieved(1);
        assert_eq!(
            (progress.of_each(), progress.shown()),
            (vec![0, 1], vec![0, 0])
        );
        progress.was_shown(1);
        assert_eq!(
            (progress.of_each(), progress.shown()),
            (vec![0, 2], vec![0, 1])
        );
    }
}
