//! A standing watch that only says "look again": for those who wait for a state, and can read it.
//!
//! Everybody of this client who waits at one place shares a bell, and a bell stays for a while
//! after its last use: opened anew for each round, a watch would cost a request, and up to 100 ms
//! when a write slips in between (see `watcher.rs`).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use etcd_client::proto::PbKeyValue;
use tokio::sync::Notify;

use crate::client::Wire;
use crate::history::Forget;
use crate::watcher::{Sink, Target, Watch, Watcher};

/// The check that finds what the watch missed. Not the normal path.
const SLOW_CHECK: Duration = Duration::from_secs(15);
/// A watch that was only just opened may be served by the 100 ms loop at first: look meanwhile,
/// after so many milliseconds each.
const LOOKS: [u64; 5] = [5, 10, 20, 40, 80];
/// A bell that nobody has in hand is kept for so long...
const IDLE: Duration = Duration::from_secs(30);
/// ...and only while there are no more than this.
const KEPT: usize = 64;

/// Rings at news about one place.
pub(crate) struct Bell {
    /// Deletions of other keys than this are told apart: see [`Heard::gone`].
    main: Vec<u8>,
    heard: Mutex<Heard>,
    /// What the main key was put to last, as far as was heard.
    put: Mutex<Option<PbKeyValue>>,
    rung: Notify,
}

/// What a bell has heard so far. What was seen before a read, and has changed after it, is news.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Heard {
    /// How often the watch was opened or broken, or the main key changed.
    news: u64,
    /// How often another key was deleted.
    gone: u64,
    /// How often the watch was opened.
    opened: u32,
    standing: bool,
    /// The revision at which the main key was deleted last.
    deleted: i64,
}

impl Bell {
    fn state(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be called before the read that [`news`](Self::news) is to be newer than.
    pub(crate) fn heard(&self) -> Heard {
        *self.state()
    }

    /// What the main key was put to last, as far as was heard.
    pub(crate) fn last_put(&self) -> Option<PbKeyValue> {
        let put = self.put.lock().unwrap_or_else(PoisonError::into_inner);
        put.clone()
    }

    /// Whether the main key was deleted after `revision`.
    pub(crate) fn deleted_after(&self, revision: i64) -> bool {
        self.state().deleted > revision
    }

    fn change(&self, change: impl FnOnce(&mut Heard)) {
        change(&mut self.state());
        self.rung.notify_waiters();
    }

    /// Ends when there is something new since `seen`, or it is time to look all the same.
    /// Deletions of other keys than the main one end it after `gone`, if that is said.
    pub(crate) async fn news(&self, seen: Heard, gone: Option<Duration>, looks: &mut Looks) {
        let patience = looks.next(seen);
        let waiting = async {
            // Most likely the first of many deletions: the last of them is main news.
            let mut pause = None;
            loop {
                let mut rung = std::pin::pin!(self.rung.notified());
                rung.as_mut().enable();
                let now = self.heard();
                if now.news != seen.news {
                    return;
                }
                if now.gone != seen.gone && pause.is_none() {
                    pause = gone.map(tokio::time::sleep).map(Box::pin);
                }
                match &mut pause {
                    None => rung.await,
                    Some(pause) => tokio::select! {
                        () = rung => {}
                        () = pause => return,
                    },
                }
            }
        };
        // Time to look all the same.
        let _ = tokio::time::timeout(patience, waiting).await;
    }
}

/// One waiter's looks beside the news.
pub(crate) struct Looks {
    opened: u32,
    made: usize,
}

impl Looks {
    /// For a waiter who met the bell as `seen`: a watch that stood before needs no looks.
    pub(crate) fn from(seen: Heard) -> Self {
        Self {
            opened: if seen.standing { seen.opened } else { u32::MAX },
            made: LOOKS.len(),
        }
    }

    fn next(&mut self, seen: Heard) -> Duration {
        if seen.standing && seen.opened != self.opened {
            (self.opened, self.made) = (seen.opened, 0);
        }
        let look = LOOKS.get(self.made).copied();
        self.made += 1;
        look.map_or(SLOW_CHECK, Duration::from_millis)
    }
}

impl Sink for Bell {
    fn opened(&self, _watch: i64, _revision: i64) {
        self.change(|heard| {
            heard.news += 1;
            heard.opened = heard.opened.wrapping_add(1) % u32::MAX;
            heard.standing = true;
        });
    }

    fn deleted(&self, deletions: &[(&[u8], i64)], _whole: bool) {
        if deletions.is_empty() {
            return;
        }
        self.change(|heard| {
            for &(key, revision) in deletions {
                if key == self.main {
                    heard.news += 1;
                    heard.deleted = heard.deleted.max(revision);
                } else {
                    heard.gone += 1;
                }
            }
        });
    }

    fn put(&self, kv: &PbKeyValue) {
        if kv.key == self.main {
            *self.put.lock().unwrap_or_else(PoisonError::into_inner) = Some(kv.clone());
            self.change(|heard| heard.news += 1);
        }
    }

    fn broken(&self) {
        self.change(|heard| {
            heard.news += 1;
            heard.standing = false;
        });
    }
}

/// A bell, the watch that rings it, and when it was asked for last.
struct Hung {
    bell: Arc<Bell>,
    used: Instant,
    _watch: Watch,
}

/// The bells of one client.
pub(crate) struct Bells {
    watcher: Arc<Watcher>,
    known: Arc<Known>,
}

/// By the main key, and whether the watch is on all that changes around it.
struct Known(Mutex<HashMap<(Vec<u8>, bool), Hung>>);

impl Known {
    fn lock(&self) -> MutexGuard<'_, HashMap<(Vec<u8>, bool), Hung>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Forget for Known {
    fn forget(&self) {
        // Revisions of a lost history must not reach those who wait in the present one.
        let hung = std::mem::take(&mut *self.lock());
        for hung in hung.values() {
            hung.bell.change(|heard| heard.news += 1);
        }
    }
}

impl Bells {
    pub(crate) fn new(wire: &Wire, watcher: Arc<Watcher>) -> Self {
        let known = Arc::new(Known(Mutex::default()));
        let resting: Weak<dyn Forget> = Arc::downgrade(&(Arc::clone(&known) as Arc<dyn Forget>));
        wire.history().rests(resting);
        Self { watcher, known }
    }

    /// Rings when `key` is deleted.
    pub(crate) fn key(&self, key: &str) -> Arc<Bell> {
        self.hang(key, Target::key(key))
    }

    /// Rings when `main`, which is under `prefix`, is put or deleted, and knows of other deletions.
    pub(crate) fn prefix(&self, prefix: &str, main: &str) -> Arc<Bell> {
        self.hang(main, Target::prefix(prefix).with_puts())
    }

    fn hang(&self, main: &str, target: Target) -> Arc<Bell> {
        let mut hung = self.known.lock();
        let now = Instant::now();
        let place = (main.into(), target.has_puts());
        if let Some(there) = hung.get_mut(&place) {
            there.used = now;
            return Arc::clone(&there.bell);
        }
        let idle = |hung: &Hung| Arc::strong_count(&hung.bell) == 1;
        hung.retain(|_, hung| !idle(hung) || now.duration_since(hung.used) < IDLE);
        if hung.len() >= KEPT {
            hung.retain(|_, hung| !idle(hung));
        }
        let bell = Arc::new(Bell {
            main: main.into(),
            heard: Mutex::default(),
            put: Mutex::default(),
            rung: Notify::new(),
        });
        let sink: Weak<dyn Sink> = Arc::downgrade(&(Arc::clone(&bell) as Arc<dyn Sink>));
        let entry = Hung {
            bell: Arc::clone(&bell),
            used: now,
            _watch: self.watcher.open(target, sink),
        };
        hung.insert(place, entry);
        bell
    }
}
