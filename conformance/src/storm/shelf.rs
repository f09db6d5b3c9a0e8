//! A read-write lock, with two cells behind it that a writer changes one after the other.

use std::ops::Deref;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tenure_core::{
    Effect, ErrorKind, FencingToken, Holding, ReadGuard, Result, RwLockHandle, WriteGuard,
};
use tokio::time::Instant;

use super::ambush::Ambush;
use super::client::{Client, Shared, clients};
use super::progress::Occupancy;
use crate::case::Outcome;
use crate::cases::open_on;
use crate::checkers::What;
use crate::checkers::rw_lock::{RwEvent, Side};
use crate::harness::Harness;

const NAME: &str = "the shelf";

/// The lock, what was seen of it, and what it protects.
pub(super) struct Shelf {
    pub(super) ambush: Ambush,
    pub(super) occupancy: Occupancy,
    start: Instant,
    events: Mutex<Vec<RwEvent>>,
    cells: Mutex<Cells>,
}

/// Each has the token of the one who wrote it last.
///
/// A [`FenceGate`](tenure_core::FenceGate) knows one order only. Here, a writer must come after everybody, and a reader
/// after all writers: readers do not exclude each other, whatever their tokens.
#[derive(Default)]
struct Cells {
    values: [u64; 2],
    newest: Option<FencingToken>,
    newest_writer: Option<FencingToken>,
}

impl Cells {
    fn admits(&mut self, side: Side, token: FencingToken) -> bool {
        let before = match side {
            Side::Write => self.newest,
            Side::Read => self.newest_writer,
        };
        if before > Some(token) {
            return false;
        }
        self.newest = self.newest.max(Some(token));
        if side == Side::Write {
            self.newest_writer = Some(token);
        }
        true
    }
}

impl Shelf {
    pub(super) fn new() -> Self {
        Self {
            ambush: Ambush::new(),
            occupancy: Occupancy::new(),
            start: Instant::now(),
            events: Mutex::default(),
            cells: Mutex::default(),
        }
    }

    pub(super) fn record(&self, client: usize, side: Side, what: What) {
        self.record_seen(client, side, what, None);
    }

    fn record_seen(&self, client: usize, side: Side, what: What, seen: Option<(u64, u64)>) {
        match &what {
            What::Granted(_) => self.occupancy.enters(client),
            What::Releasing(_) | What::Ended(_) => self.occupancy.leaves(client),
            _ => {}
        }
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        let at = self.start.elapsed();
        events.push(RwEvent {
            at,
            client,
            side,
            what,
            seen,
        });
    }

    pub(super) fn events(&self) -> Vec<RwEvent> {
        let events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        events.clone()
    }

    /// The dead believe nothing.
    pub(super) fn died(&self, client: usize) {
        let granted = |event: RwEvent| match event.what {
            What::Granted(token) if event.client == client => Some((event.side, token)),
            _ => None,
        };
        let last = self.events().into_iter().rev().find_map(granted);
        if let Some((side, token)) = last {
            self.record(client, side, What::Ended(token));
        }
    }

    /// One access to a cell, recorded inside it. A reader's second comes with what its first has seen.
    fn access(
        &self,
        fenced: bool,
        client: usize,
        guard: &Guard,
        cell: usize,
        first: Option<u64>,
    ) -> Option<u64> {
        let (side, token) = (guard.side(), guard.token());
        let mut cells = self.cells.lock().unwrap_or_else(PoisonError::into_inner);
        if fenced && !cells.admits(side, token) {
            drop(cells);
            // Valid after the refusal means valid at it.
            let refused = What::WriteRefused(token, guard.is_valid());
            self.record(client, side, refused);
            return None;
        }
        if side == Side::Write {
            cells.values[cell] = token.get();
        }
        let value = cells.values[cell];
        let seen = first.filter(|_| side == Side::Read);
        let seen = seen.map(|first| (first, value));
        self.record_seen(client, side, What::Wrote(token), seen);
        Some(value)
    }
}

/// Either side, held.
enum Guard {
    Read(ReadGuard),
    Write(WriteGuard),
}

impl Guard {
    const fn side(&self) -> Side {
        match self {
            Self::Read(_) => Side::Read,
            Self::Write(_) => Side::Write,
        }
    }

    async fn release(self) -> Result<()> {
        match self {
            Self::Read(guard) => guard.release().await,
            Self::Write(guard) => guard.release().await,
        }
    }
}

impl Deref for Guard {
    type Target = Holding;

    fn deref(&self) -> &Holding {
        match self {
            Self::Read(guard) => guard,
            Self::Write(guard) => guard,
        }
    }
}

impl Client {
    pub(super) async fn read_and_write(&mut self) {
        while self.goes_on() {
            if let Some(session) = self.session().await
                && let Ok(lock) = session.rw_lock(NAME)
                && let Some(guard) = self.enter(&lock).await
            {
                self.achieved();
                self.visit(guard).await;
            }
            self.think().await;
        }
    }

    fn count_rw(&self) {
        self.shared.rw_operations.fetch_add(1, Ordering::Relaxed);
    }

    fn on_shelf(&self, side: Side, what: What) {
        self.shared.shelf.record(self.number, side, what);
    }

    /// One try at the lock, of either side and in one way of many, given up in some cases.
    async fn enter(&mut self, lock: &RwLockHandle) -> Option<Guard> {
        let short = self.random.up_to(Duration::from_millis(400));
        let way = self.random.below(5);
        let side = match self.random.below(3) {
            0 => Side::Write,
            _ => Side::Read,
        };
        let reading = async {
            let guard = match way {
                0 => lock.try_read().await,
                1 => lock.read_timeout(short).await,
                _ => lock.read().await,
            };
            guard.map(Guard::Read)
        };
        let writing = async {
            let guard = match way {
                0 => lock.try_write().await,
                1 => lock.write_timeout(short).await,
                _ => lock.write().await,
            };
            guard.map(Guard::Write)
        };
        let asking = async {
            match side {
                Side::Read => reading.await,
                Side::Write => writing.await,
            }
        };
        self.on_shelf(side, What::Asked);
        let answer = match way {
            2 => {
                let waiting = tokio::time::timeout(short, asking);
                self.attempt(waiting).await.and_then(|in_time| in_time.ok())
            }
            _ => {
                let occupancy = Some(&self.shared.shelf.occupancy);
                self.attempt_in(occupancy, asking).await
            }
        };
        self.count_rw();
        match answer {
            Some(Ok(guard)) => {
                self.on_shelf(side, What::Granted(guard.token()));
                Some(guard)
            }
            Some(Err(error)) if error.effect() == Effect::None => {
                self.on_shelf(side, What::Refused);
                None
            }
            _ => {
                self.on_shelf(side, What::Unknown);
                None
            }
        }
    }

    /// Both cells, one after the other; then the way out, for a writer perhaps as a reader.
    async fn visit(&mut self, mut guard: Guard) {
        let since = self.shared.now();
        loop {
            self.use_cells(&guard).await;
            if !self.looks_on_shelf(&guard) {
                self.lost("a read-write lock", since);
                return;
            }
            guard = match guard {
                Guard::Write(writer) if self.random.below(4) == 0 => {
                    match self.downgrade(writer).await {
                        Some(reader) => Guard::Read(reader),
                        None => return,
                    }
                }
                guard => return self.leave(guard).await,
            };
        }
    }

    async fn use_cells(&mut self, guard: &Guard) {
        let shared = Arc::clone(&self.shared);
        let (shelf, fenced) = (&shared.shelf, shared.plan.fenced);
        // Without a look at the guard: it is for the cells to refuse.
        let first = shelf.access(fenced, self.number, guard, 0, None);
        self.work(1).await;
        if shelf.ambush.pass(self.number).await {
            // Whoever is inside by now gets a chance to come to the cells first.
            tokio::time::sleep(self.random.up_to(Duration::from_millis(60))).await;
        }
        if first.is_some() {
            shelf.access(fenced, self.number, guard, 1, first);
        }
    }

    /// Whether the guard was valid at the moment of the first line that this records.
    fn looks_on_shelf(&self, guard: &Guard) -> bool {
        let (side, token) = (guard.side(), guard.token());
        self.on_shelf(side, What::Looks(token));
        let valid = guard.is_valid();
        let found = match valid {
            true => What::Valid(token),
            false => What::Ended(token),
        };
        self.on_shelf(side, found);
        valid
    }

    async fn downgrade(&self, writer: WriteGuard) -> Option<ReadGuard> {
        let token = writer.token();
        self.on_shelf(Side::Write, What::Releasing(token));
        self.on_shelf(Side::Read, What::Asked);
        let answer = self.attempt(writer.downgrade()).await;
        self.count_rw();
        match answer {
            Some(Ok(reader)) => {
                self.on_shelf(Side::Write, What::Released(token));
                self.on_shelf(Side::Read, What::Granted(token));
                Some(reader)
            }
            // It is not a writer any more, and nobody else saw whether it was a reader.
            _ => {
                self.on_shelf(Side::Read, What::Unknown);
                None
            }
        }
    }

    async fn leave(&mut self, guard: Guard) {
        let (side, token) = (guard.side(), guard.token());
        self.on_shelf(side, What::Releasing(token));
        if self.random.below(4) == 0 {
            drop(guard);
        } else if let Some(Ok(())) = self.attempt(guard.release()).await {
            self.on_shelf(side, What::Released(token));
        }
        self.count_rw();
    }
}

/// Checks that the lock is granted to a writer again: no client that is gone keeps it.
pub(super) async fn last_look(
    harness: &dyn Harness,
    shared: &Shared,
    patience: Duration,
) -> std::result::Result<(), Outcome> {
    let until = Instant::now() + patience;
    let shelf = &shared.shelf;
    loop {
        shelf.record(clients(), Side::Write, What::Asked);
        let error = match once_more(harness, shared, until).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        shelf.record(clients(), Side::Write, What::Unknown);
        if error.kind() == ErrorKind::TimedOut || Instant::now() >= until {
            return Err(Outcome::violated(format!(
                "{NAME} could not be had {patience:?} after everybody had left: {error}",
                error = error.chain()
            )));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn once_more(harness: &dyn Harness, shared: &Shared, until: Instant) -> Result<()> {
    let session = open_on(&harness.connect().await?, shared.ttl * 5).await?;
    let patience = until.saturating_duration_since(Instant::now());
    let guard = session.rw_lock(NAME)?.write_timeout(patience).await?;
    let token = guard.token();
    for what in [What::Granted(token), What::Releasing(token)] {
        shared.shelf.record(clients(), Side::Write, what);
    }
    guard.release().await?;
    let released = What::Released(token);
    shared.shelf.record(clients(), Side::Write, released);
    session.close().await
}
