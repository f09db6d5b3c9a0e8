//! Those who leave lines at the same time.
//!
//! A thousand waits that are dropped at once would take as many turns on the session's connection, and what
//! is left of the last would stay for as long. So whoever has a turn takes others along.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// How many go in one step.
const TOGETHER: usize = 100;

/// An ask that leaves: its nonce, and the key of its line.
type Leaving = (u64, i64);

/// The asks of a session that are to leave their lines.
#[derive(Default)]
pub(crate) struct Withdrawals(Mutex<Vec<(Leaving, oneshot::Sender<()>)>>);

/// Some of them, in one step. Those who wait for it go by themselves if this is dropped.
pub(crate) struct Together {
    first: Leaving,
    others: Vec<(Leaving, oneshot::Sender<()>)>,
}

impl Withdrawals {
    fn all(&self) -> MutexGuard<'_, Vec<(Leaving, oneshot::Sender<()>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on another may take it along: then it is told.
    pub(crate) fn enter(&self, leaving: Leaving) -> oneshot::Receiver<()> {
        let (tell, told) = oneshot::channel();
        self.all().push((leaving, tell));
        told
    }

    /// `first`, whose turn it is, and of the others as many as fit that `may` be taken along.
    pub(crate) fn take(&self, first: Leaving, may: impl Fn(u64) -> bool) -> Together {
        let mut all = self.all();
        all.retain(|(leaving, _)| *leaving != first);
        let mut others = Vec::new();
        for entry in std::mem::take(&mut *all) {
            // Of those who have gone by themselves nobody listens any more.
            if entry.1.is_closed() {
                continue;
            }
            match others.len() + 1 < TOGETHER && may(entry.0.0) {
                true => others.push(entry),
                false => all.push(entry),
            }
        }
        Together { first, others }
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
        let mut told: Vec<_> = (0..150).map(|nonce| all.enter((nonce, 7))).collect();
        // One has gone by itself.
        drop(told.remove(2));
        let together = all.take((120, 7), |nonce| nonce != 5);
        let nonces: Vec<_> = together.asks().map(|(nonce, _)| nonce).collect();
        assert_eq!(nonces.len(), TOGETHER);
        assert_eq!(nonces[0], 120);
        assert!(!nonces.contains(&2) && !nonces.contains(&5), "{nonces:?}");
        together.done();
        told.remove(0).await.unwrap();
        // A step that fails is nobody's but one's own.
        drop(all.take((5, 7), |_| true));
        assert!(told.pop().unwrap().await.is_err());
        assert!(all.all().is_empty());
    }
}
