//! Watches that only say "read again".
//!
//! A watch never decides anything: not every event arrives, and not in time. A subscription counts if it was open before the read
//! whose state it is to report the end of. A stream that ends, is cut or silent is opened again over another connection: all its
//! subscriptions change when it breaks, and when they are open again.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::Connection;
use crate::keys::end_of;

mod stream;

use stream::Stream;

/// The slow check, which finds what a watch did not report. Not the normal path.
const SLOW_CHECK: Duration = Duration::from_secs(10);

/// Before etcd 3.4.38, 3.5.22 and 3.6.2, a watch that is opened while another client writes is served by a loop that runs every
/// 100 ms. So a waiter also reads at these times after the opening.
const LOOKS: [Duration; 3] = [
    Duration::from_millis(15),
    Duration::from_millis(50),
    Duration::from_millis(110),
];

/// How many watches one stream has. With more, streams were reopened again and again (1,000 waiters of one client).
const WATCHES_OF_A_STREAM: usize = 128;

/// How many watches of single keys a stream keeps open after their last use, until it is silent. Keys are used again: in a rotation
/// the next wait is often for the same key.
const KEPT: usize = 32;

/// The keys that a watch looks at.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Target {
    key: Vec<u8>,
    /// The end of a range; empty for a single key.
    end: Vec<u8>,
    /// Whether puts are reported besides deletions. It costs a message for each.
    puts: bool,
}

impl Target {
    /// Watches the end of a key.
    pub(crate) fn end_of_key(key: impl Into<Vec<u8>>) -> Self {
        Self {
            key: key.into(),
            end: Vec::new(),
            puts: false,
        }
    }

    /// Watches each change of a key.
    pub(crate) fn key(key: impl Into<Vec<u8>>) -> Self {
        Self {
            puts: true,
            ..Self::end_of_key(key)
        }
    }

    /// Watches each change of the keys that begin with `prefix`.
    pub(crate) fn prefix(prefix: &str) -> Self {
        Self {
            end: end_of(prefix),
            ..Self::key(prefix)
        }
    }

    /// Watches the ends of the keys that begin with `prefix`.
    pub(crate) fn ends_of_prefix(prefix: &str) -> Self {
        Self {
            puts: false,
            ..Self::prefix(prefix)
        }
    }
}

/// The reports of a watch so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    changes: u64,
    /// When it was opened last; `None` while it is not open.
    opened: Option<Instant>,
}

impl Seen {
    /// Returns whether the watch is open, so that no change after this moment is missed.
    pub(crate) const fn is_open(self) -> bool {
        self.opened.is_some()
    }
}

/// A watch that waiters of this client share. Dropped by the last of them, it is closed.
pub(crate) type Subscription = Arc<Watched>;

pub(crate) struct Watched {
    target: Target,
    number: i64,
    state: watch::Sender<Seen>,
    commands: mpsc::UnboundedSender<Command>,
    /// Counts the watches of the stream.
    _stream: Arc<()>,
}

impl Watched {
    /// Returns the reports so far. To be called before the read that [`changed`](Self::changed) is to be newer than.
    pub(crate) fn seen(&self) -> Seen {
        *self.state.borrow()
    }

    /// Waits until the watch is open, or until the slow check is due.
    pub(crate) async fn opened(&self) {
        let mut state = self.state.subscribe();
        let open = state.wait_for(|seen| seen.is_open());
        // A timeout is the slow check.
        let _ = tokio::time::timeout(SLOW_CHECK, open).await;
    }

    /// Waits until the watch reports something after `seen`, or until it is time to look all the same.
    pub(crate) async fn changed(&self, seen: Seen) {
        let now = Instant::now();
        let look = |opened: Instant| LOOKS.iter().map(|after| opened + *after).find(|at| *at > now);
        let until = seen.opened.and_then(look).unwrap_or(now + SLOW_CHECK);
        let mut state = self.state.subscribe();
        let news = state.wait_for(|state| state.changes != seen.changes);
        let _ = tokio::time::timeout_at(until, news).await;
    }

    fn report_change(&self) {
        self.state.send_modify(|seen| seen.changes += 1);
    }

    fn report_opened(&self) {
        self.state.send_modify(|seen| {
            seen.changes += 1;
            seen.opened = Some(Instant::now());
        });
    }

    fn report_broken(&self) {
        self.state.send_modify(|seen| {
            seen.changes += 1;
            seen.opened = None;
        });
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        // Without the stream's task there is nothing to close.
        let _ = self.commands.send(Command::Close(self.number));
    }
}

enum Command {
    Open(Subscription),
    Close(i64),
}

/// The watches of one client.
pub(crate) struct Watches {
    connection: Arc<Connection>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    watches: HashMap<Target, Weak<Watched>>,
    streams: Vec<(mpsc::UnboundedSender<Command>, Arc<()>)>,
    last_number: i64,
}

impl Watches {
    pub(crate) fn new(connection: Arc<Connection>) -> Self {
        Self {
            connection,
            known: Mutex::default(),
        }
    }

    /// Returns the watch on `target`, which is opened if there is none.
    pub(crate) fn subscribe(&self, target: Target) -> Subscription {
        let mut known = self.known.lock();
        match known.watches.get(&target).and_then(Weak::upgrade) {
            Some(watched) => watched,
            None => self.open(&mut known, target),
        }
    }

    fn open(&self, known: &mut Known, target: Target) -> Subscription {
        if known.watches.len() > 2 * WATCHES_OF_A_STREAM {
            known.watches.retain(|_, watched| watched.strong_count() > 0);
        }
        let is_free = |(_, count): &&(_, Arc<()>)| Arc::strong_count(count) <= WATCHES_OF_A_STREAM;
        let (commands, stream) = match known.streams.iter().find(is_free).cloned() {
            Some(stream) => stream,
            None => {
                let (commands, inbox) = mpsc::unbounded_channel();
                let stream = Stream::new(Arc::clone(&self.connection), inbox);
                self.connection.executor.spawn(stream.run());
                let opened = (commands, Arc::new(()));
                known.streams.push(opened.clone());
                opened
            }
        };
        known.last_number += 1;
        let (state, _) = watch::channel(Seen {
            changes: 0,
            opened: None,
        });
        let watched = Arc::new(Watched {
            target: target.clone(),
            number: known.last_number,
            state,
            commands,
            _stream: stream,
        });
        known.watches.insert(target, Arc::downgrade(&watched));
        let _ = watched.commands.send(Command::Open(Arc::clone(&watched)));
        watched
    }
}
