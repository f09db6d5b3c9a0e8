//! Who waits for what: the asks that are told of their turn, and objects that are watched.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::FencingToken;

/// What a waiting ask is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// To look again.
    Look,
    /// That it holds now, under this token.
    Granted(FencingToken),
}

/// The asks that wait for a message of the store, by their nonces: of one session, or of all sessions
/// of a process, where nonces are unique.
#[derive(Default)]
pub struct Waits {
    cells: Mutex<HashMap<u64, Arc<Cell>>>,
    only_look: bool,
}

impl fmt::Debug for Waits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waits")
            .field("waiting", &self.len())
            .finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Cell {
    news: Mutex<Option<News>>,
    told: Notify,
}

impl Cell {
    fn tell(&self, news: News) {
        *self.news.lock().unwrap_or_else(PoisonError::into_inner) = Some(news);
        self.told.notify_one();
    }
}

impl Waits {
    /// Where a grant that is pushed does not count before it is confirmed: whoever gets one is told to
    /// look.
    pub fn only_look() -> Self {
        Self {
            only_look: true,
            ..Self::default()
        }
    }

    fn cells(&self) -> MutexGuard<'_, HashMap<u64, Arc<Cell>>> {
        self.cells.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A message came: `<nonce>` in hexadecimal digits, or `<nonce> <token>`. What is neither is passed
    /// over. Does not block.
    pub fn message(&self, payload: &str) {
        let (nonce, token) = match payload.split_once(' ') {
            Some((nonce, token)) => (nonce, token.parse().ok().map(FencingToken::new)),
            None => (payload, None),
        };
        let Ok(nonce) = u64::from_str_radix(nonce, 16) else {
            return;
        };
        let token = token.filter(|_| !self.only_look);
        self.tell(nonce, token.map_or(News::Look, News::Granted));
    }

    /// Messages may have been missed: all look again. Does not block.
    pub fn missed(&self) {
        for cell in self.cells().values() {
            cell.tell(News::Look);
        }
    }

    /// Tells the ask `nonce`, if it waits here. Does not block.
    pub fn tell(&self, nonce: u64, news: News) {
        if let Some(cell) = self.cells().get(&nonce) {
            cell.tell(news);
        }
    }

    /// How many wait.
    #[allow(
        clippy::len_without_is_empty,
        reason = "nobody asks whether nobody waits"
    )]
    pub fn len(&self) -> usize {
        self.cells().len()
    }

    /// From now on the ask `nonce` hears its news.
    pub fn enter(self: &Arc<Self>, nonce: u64) -> Waiting {
        let cell = Arc::<Cell>::default();
        self.cells().insert(nonce, Arc::clone(&cell));
        Waiting {
            waits: Arc::clone(self),
            nonce,
            cell,
        }
    }
}

/// An ask that waits; it hears nothing more once this is dropped.
#[must_use = "it hears nothing more once this is dropped"]
pub struct Waiting {
    waits: Arc<Waits>,
    nonce: u64,
    cell: Arc<Cell>,
}

impl fmt::Debug for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waiting")
            .field("nonce", &self.nonce)
            .finish_non_exhaustive()
    }
}

impl Waiting {
    /// The news, the latest if there were several, also those from before this call.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: news that were not returned are there the next time.
    pub async fn news(&self) -> News {
        loop {
            let news = self
                .cell
                .news
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take();
            match news {
                Some(news) => return news,
                None => self.cell.told.notified().await,
            }
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut cells = self.waits.cells();
        // An ask that waits once more has a cell of its own.
        if let Some(cell) = cells.get(&self.nonce)
            && Arc::ptr_eq(cell, &self.cell)
        {
            cells.remove(&self.nonce);
        }
    }
}

/// What rings when a watched object may have changed.
#[derive(Debug, Default)]
pub struct Bell {
    rung: AtomicBool,
    told: Notify,
}

impl Bell {
    /// It may have changed, or a message that says so may have been missed. Does not block.
    pub fn ring(&self) {
        self.rung.store(true, Ordering::Release);
        self.told.notify_one();
    }

    async fn rung(&self) {
        while !self.rung.swap(false, Ordering::AcqRel) {
            self.told.notified().await;
        }
    }
}

/// An object that one task watches, for as long as `L` lives, by which its bell hears of it.
#[derive(Debug)]
pub struct Topic<L> {
    bell: Arc<Bell>,
    _listening: L,
}

impl<L> Topic<L> {
    /// What rings `bell` is `listening`.
    pub fn new(bell: Arc<Bell>, listening: L) -> Self {
        Self {
            bell,
            _listening: listening,
        }
    }

    /// Ends when something may have changed since the last time.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn changed(&self) {
        self.bell.rung().await;
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn news_are_there_until_they_are_taken() {
        let waits = Arc::new(Waits::default());
        let waiting = waits.enter(0x5f);
        waits.message("5f 7");
        waits.message("5e 8");
        waits.message("nonsense");
        // A wait that is given up takes nothing with it.
        drop(waiting.news());
        let granted = News::Granted(FencingToken::new(7));
        assert_eq!(waiting.news().now_or_never(), Some(granted));
        assert_eq!(waiting.news().now_or_never(), None);
        waits.message("5f 7");
        waits.missed();
        assert_eq!(
            waiting.news().now_or_never(),
            Some(News::Look),
            "the latest"
        );
        let confirmed = Arc::new(Waits::only_look());
        let waiting = confirmed.enter(1);
        confirmed.message("1 7");
        assert_eq!(waiting.news().now_or_never(), Some(News::Look));
    }

    #[test]
    fn who_waits_is_told_and_who_has_waited_is_not() {
        let waits = Arc::new(Waits::default());
        let first = waits.enter(1);
        let mut told = Box::pin(first.news());
        assert_eq!(told.as_mut().now_or_never(), None);
        waits.message("1");
        assert_eq!(told.as_mut().now_or_never(), Some(News::Look));
        drop(told);
        // The same ask once more: the end of the first wait is not that of the second.
        let second = waits.enter(1);
        drop(first);
        assert_eq!(waits.len(), 1);
        waits.message("1");
        assert_eq!(second.news().now_or_never(), Some(News::Look));
        drop(second);
        assert_eq!(waits.len(), 0);
    }

    #[test]
    fn a_bell_is_heard_once_also_afterwards() {
        let bell = Arc::<Bell>::default();
        let topic = Topic::new(Arc::clone(&bell), ());
        bell.ring();
        bell.ring();
        assert!(topic.changed().now_or_never().is_some());
        assert!(topic.changed().now_or_never().is_none());
        let mut changed = Box::pin(topic.changed());
        assert!(changed.as_mut().now_or_never().is_none());
        bell.ring();
        assert!(changed.as_mut().now_or_never().is_some());
    }
}
