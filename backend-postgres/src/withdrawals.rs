//! Those who leave lines at the same time.
//!
//! A thousand waits that are dropped at once would take as many turns on the session's connection, and what
//! is left of the last would stay for as long. So whoever has a turn takes others along.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// How many go in one step.
const TOGETHER: usize = 100;

/// An ask that leaves: its nonce, and the key of its line.
type Leaving = (u64, i64);

type All = HashMap<Leaving, oneshot::Sender<()>>;

/// The asks of a session that are to leave their lines.
#[derive(Default)]
pub(crate) struct Withdrawals(Mutex<All>);

/// One of them, for as long as it wants to be taken along.
pub(crate) struct Entry<'w> {
    all: &'w Withdrawals,
    leaving: Leaving,
    /// Hears that another has done it.
    pub(crate) done: oneshot::Receiver<()>,
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.all.all().remove(&self.leaving);
    }
}

/// Some of them, in one step. Those who wait for it go by themselves if this is dropped.
pub(crate) struct Together {
    first: Leaving,
    others: Vec<(Leaving, oneshot::Sender<()>)>,
}

impl Withdrawals {
    fn all(&self) -> MutexGuard<'_, All> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on another may take it along: then it is told.
    pub(crate) fn enter(&self, leaving: Leaving) -> Entry<'_> {
        let (tell, done) = oneshot::channel();
        self.all().insert(leaving, tell);
        Entry {
            all: self,
            leaving,
            done,
        }
    }

    /// `first`, whose turn it is, and of the others as many as fit that `may` be taken along.
    pub(crate) fn take(&self, first: Leaving, may: impl Fn(u64) -> bool) -> Together {
        let mut all = self.all();
        all.remove(&first);
        let fit = all.keys().copied().filter(|(nonce, _)| may(*nonce));
        let fit: Vec<_> = fit.take(TOGETHER - 1).collect();
        let others = fit
            .into_iter()
            .filter_map(|leaving| all.remove_entry(&leaving));
        Together {
            first,
            others: others.collect(),
        }
    }
}

impl Together {
    pub(crate) fn asks(&self) -> impl Iterator<Item = Leaving> {
        let others = self.others.iter().map(|(leaving, _)| *leaving);
        std::iter::once(self.first).chain(others)
    }

    /// All have left.
    pub(crate) fn done(self) {
        for (_, tell) in self.others {
            let _ = tell.send(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn some_go_together_and_the_rest_next() {
        let all = Withdrawals::default();
        let mut entries: Vec<_> = (0..150).map(|nonce| all.enter((nonce, 7))).collect();
        // One has gone by itself.
        drop(entries.remove(2));
        assert_eq!(all.all().len(), 149);
        let together = all.take((120, 7), |nonce| nonce != 5);
        let nonces: Vec<_> = together.asks().map(|(nonce, _)| nonce).collect();
        assert_eq!(nonces.len(), TOGETHER);
        assert_eq!(nonces[0], 120);
        assert!(!nonces.contains(&2) && !nonces.contains(&5), "{nonces:?}");
        together.done();
        let mut told = 0;
        for entry in &mut entries {
            told += usize::from(entry.done.try_recv().is_ok());
        }
        assert_eq!(told, TOGETHER - 1);
        // A step that fails is nobody's but one's own.
        drop(all.take((5, 7), |_| true));
        for entry in &mut entries {
            assert!(entry.done.try_recv().is_err());
        }
        assert!(all.all().is_empty());
    }

    #[tokio::test]
    async fn nothing_is_kept_of_who_has_gone_by_itself() {
        let all = Withdrawals::default();
        for nonce in 0..1000 {
            drop(all.enter((nonce, 7)));
        }
        assert!(all.all().is_empty());
    }
}
