//! Who waits for what: the asks that are told of their turn, and objects that are watched.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tenure_core::FencingToken;
use tokio::sync::Notify;

use crate::client::{Listener, Listening};

/// What a waiting ask is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum News {
    /// To look again.
    Look,
    /// That it holds now, under this token.
    Granted(FencingToken),
}

/// The asks of a store that wait, of all its sessions: nonces are unique in a process.
#[derive(Default)]
pub(crate) struct Waits {
    cells: Mutex<HashMap<u64, Arc<Cell>>>,
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
    fn cells(&self) -> MutexGuard<'_, HashMap<u64, Arc<Cell>>> {
        self.cells.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the ask `nonce`, if it waits here.
    pub(crate) fn tell(&self, nonce: u64, news: News) {
        if let Some(cell) = self.cells().get(&nonce) {
            cell.tell(news);
        }
    }

    /// How many wait.
    pub(crate) fn len(&self) -> usize {
        self.cells().len()
    }

    /// From now on the ask `nonce` hears its news.
    pub(crate) fn enter(self: &Arc<Self>, nonce: u64) -> Waiting {
        let cell = Arc::<Cell>::default();
        self.cells().insert(nonce, Arc::clone(&cell));
        Waiting {
            waits: Arc::clone(self),
            nonce,
            cell,
        }
    }
}

impl Listener for Waits {
    /// `<nonce>`, or `<nonce> <token>`.
    fn message(&self, payload: &str) {
        let (nonce, token) = match payload.split_once(' ') {
            Some((nonce, token)) => (nonce, token.parse().ok().map(FencingToken::new)),
            None => (payload, None),
        };
        let Ok(nonce) = u64::from_str_radix(nonce, 16) else {
            return;
        };
        self.tell(nonce, token.map_or(News::Look, News::Granted));
    }

    fn missed(&self) {
        for cell in self.cells().values() {
            cell.tell(News::Look);
        }
    }
}

/// An ask that waits; it hears nothing more once this is dropped.
pub(crate) struct Waiting {
    waits: Arc<Waits>,
    nonce: u64,
    cell: Arc<Cell>,
}

impl Waiting {
    /// The news, the latest if there were several. Cancel safe.
    pub(crate) async fn news(&self) -> News {
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

/// An object that is watched.
pub(crate) struct Topic {
    bell: Arc<Bell>,
    _listening: Listening,
}

#[derive(Default)]
pub(crate) struct Bell {
    rung: AtomicBool,
    told: Notify,
}

impl Bell {
    fn ring(&self) {
        self.rung.store(true, Ordering::Release);
        self.told.notify_one();
    }
}

impl Listener for Bell {
    fn message(&self, _: &str) {
        self.ring();
    }

    fn missed(&self) {
        self.ring();
    }
}

impl Topic {
    pub(crate) fn new(bell: Arc<Bell>, listening: Listening) -> Self {
        Self {
            bell,
            _listening: listening,
        }
    }

    /// Ends when something may have changed since the last time. Cancel safe.
    pub(crate) async fn changed(&self) {
        while !self.bell.rung.swap(false, Ordering::AcqRel) {
            self.bell.told.notified().await;
        }
    }
}
