//! Locks, with a register behind each: in this process, and in the store.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tenure_core::{Effect, ErrorKind, FenceGate, FencingToken, Holding, LockGuard, Session};
use tokio::time::Instant;

use super::ambush::Ambush;
use super::client::{Client, Epoch, Shared, clients};
use super::progress::Occupancy;
use crate::case::Outcome;
use crate::cases::open_on;
use crate::checkers::{Event, History, What};
use crate::harness::Harness;

/// One lock, what was seen of it, and what it protects.
pub(super) struct Lock {
    name: &'static str,
    history: History,
    register: FenceGate<u64>,
    /// The same without a look at tokens.
    unfenced: Mutex<u64>,
    /// How often the register was counted up.
    increments: AtomicU64,
    pub(super) ambush: Ambush,
    pub(super) occupancy: Occupancy,
}

impl Lock {
    pub(super) fn new(name: &'static str) -> Self {
        Self {
            name,
            history: History::new(),
            register: FenceGate::new(0),
            unfenced: Mutex::default(),
            increments: AtomicU64::new(0),
            ambush: Ambush::new(),
            occupancy: Occupancy::new(),
        }
    }

    pub(super) fn record(&self, client: usize, what: What) {
        match &what {
            What::Granted(_) => self.occupancy.enters(client),
            What::Releasing(_) | What::Ended(_) => self.occupancy.leaves(client),
            _ => {}
        }
        self.history.record(client, what);
    }

    /// The dead believe nothing.
    pub(super) fn died(&self, client: usize) {
        let last = self.events().into_iter().rev().find_map(|event| {
            let granted = match event.what {
                What::Granted(token) => Some(token),
                _ => None,
            };
            granted.filter(|_| event.client == client)
        });
        if let Some(token) = last {
            self.record(client, What::Ended(token));
        }
    }

    pub(super) fn events(&self) -> Vec<Event> {
        self.history.events()
    }

    /// One access to the register, recorded inside it: so the history has the register's own order.
    fn access<R>(
        &self,
        fenced: bool,
        token: FencingToken,
        access: impl FnOnce(&mut u64) -> R,
        record: impl FnOnce(),
    ) -> Option<R> {
        let access = |value: &mut u64| {
            record();
            access(value)
        };
        if fenced {
            return self.register.write(token, access).ok();
        }
        let mut value = self.unfenced.lock().unwrap_or_else(PoisonError::into_inner);
        Some(access(&mut value))
    }

    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    /// One access of a client, under what it holds.
    pub(super) fn access_under<R>(
        &self,
        fenced: bool,
        client: usize,
        holding: &Holding,
        access: impl FnOnce(&mut u64) -> R,
    ) -> Option<R> {
        let token = holding.token();
        let record = || self.record(client, What::Wrote(token));
        let done = self.access(fenced, token, access, record);
        if done.is_none() {
            // Valid after the refusal means valid at it.
            self.record(client, What::WriteRefused(token, holding.is_valid()));
        }
        done
    }

    /// Writes back what was read, plus one.
    pub(super) fn count_up(&self, fenced: bool, client: usize, holding: &Holding, read: u64) {
        let taken = self.access_under(fenced, client, holding, |value| *value = read + 1);
        if taken.is_some() {
            self.increments.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether it was valid at the moment of the first line that this records.
    pub(super) fn looks(&self, client: usize, holding: &Holding) -> bool {
        self.record(client, What::Looks(holding.token()));
        let valid = holding.is_valid();
        let found = match valid {
            true => What::Valid(holding.token()),
            false => What::Ended(holding.token()),
        };
        self.record(client, found);
        valid
    }

    /// The register has counted every update that it took.
    pub(super) fn judge(&self, fenced: bool) -> std::result::Result<(), String> {
        let value = match fenced {
            true => self.register.read(|value| *value),
            false => *self.unfenced.lock().unwrap_or_else(PoisonError::into_inner),
        };
        let taken = self.increments.load(Ordering::Relaxed);
        match value == taken {
            true => Ok(()),
            false => Err(format!(
                "the register behind {} took {taken} increments and has come to {value}: updates were lost",
                self.name
            )),
        }
    }
}

impl Client {
    pub(super) async fn hold_locks(&mut self) {
        while self.goes_on() {
            if let Some(session) = self.session().await {
                let count = self.shared.locks.len() as u64;
                let lock = usize::try_from(self.random.below(count)).unwrap_or_default();
                if let Some(guard) = self.acquire(&session, lock).await {
                    self.achieved();
                    self.hold(&session, lock, guard).await;
                }
            }
            self.think().await;
        }
    }

    fn record(&self, lock: usize, what: What) {
        self.shared.locks[lock].record(self.number, what);
    }

    fn count_one(&self) {
        self.shared.lock_operations.fetch_add(1, Ordering::Relaxed);
    }

    /// One try at a lock, in one way of many, given up in some cases.
    async fn acquire(&mut self, session: &Session, lock: usize) -> Option<LockGuard> {
        let handle = session.locker(self.shared.locks[lock].name).ok()?;
        let short = self.random.up_to(Duration::from_millis(400));
        let way = self.random.below(5);
        self.record(lock, What::Asked);
        let answer = match way {
            0 => self.attempt(handle.try_lock()).await,
            1 => self.attempt(handle.lock_timeout(short)).await,
            2 => {
                let waiting = tokio::time::timeout(short, handle.lock());
                self.attempt(waiting).await.and_then(Result::ok)
            }
            _ => {
                let occupancy = &self.shared.locks[lock].occupancy;
                self.attempt_in(Some(occupancy), handle.lock()).await
            }
        };
        self.count_one();
        match answer {
            Some(Ok(guard)) => {
                self.record(lock, What::Granted(guard.token()));
                Some(guard)
            }
            Some(Err(error)) if error.effect() == Effect::None => {
                self.record(lock, What::Refused);
                None
            }
            _ => {
                self.record(lock, What::Unknown);
                None
            }
        }
    }

    /// Detaches the session with the lock held, as a process that is about to be replaced, and resumes it.
    async fn hand_over(&mut self, lock: usize, guard: LockGuard) -> Option<LockGuard> {
        let token = guard.token();
        let since = self.shared.now();
        let kept = self.detach_and_resume(lock, guard).await;
        if kept.is_none() {
            self.record(lock, What::Ended(token));
            self.lost("a lock over a detach", since);
        }
        kept
    }

    async fn detach_and_resume(&mut self, lock: usize, guard: LockGuard) -> Option<LockGuard> {
        let (token, session) = (guard.token(), self.session.take()?);
        let id = match self.attempt(session.clone().detach()).await {
            Some(Ok(id)) => id,
            Some(Err(error)) if error.kind() == ErrorKind::Unsupported => {
                self.session = Some(session);
                return Some(guard);
            }
            _ => return None,
        };
        if guard.is_valid() {
            let what = "a guard was valid after its session had been detached";
            self.shared.broke(what.to_owned());
        }
        drop((guard, session));
        let store = self.store.clone();
        let session = self.attempt(store.resume(&id)).await?.ok()?;
        if let Some(Ok(_)) = self.attempt(store.resume(&id)).await {
            let what = format!("session {id} was resumed twice");
            self.shared.broke(what);
        }
        self.session = Some(session.clone());
        let handle = session.locker(self.shared.locks[lock].name).ok()?;
        let guard = self.attempt(handle.reclaim(token)).await?.ok()?;
        if guard.token() != token {
            self.shared.broke(format!(
                "a lock that was held under token {token} was reclaimed under token {}",
                guard.token()
            ));
        }
        Some(guard)
    }

    /// Reads the register, thinks, writes back what it read plus one; then lets go in some way.
    async fn hold(&mut self, session: &Session, lock: usize, mut guard: LockGuard) {
        let (token, since) = (guard.token(), self.shared.now());
        // The read is shown to the register too: a late writer between read and write is refused.
        let fenced = self.shared.plan.fenced;
        let read =
            self.shared.locks[lock].access_under(fenced, self.number, &guard, |value| *value);
        self.work(1).await;
        let mut session = session.clone();
        if self.random.below(24) == 0 {
            match self.hand_over(lock, guard).await {
                Some(kept) => guard = kept,
                None => return,
            }
            if let Some(resumed) = &self.session {
                session = resumed.clone();
            }
        }
        if self.shared.locks[lock].ambush.pass(self.number).await {
            // Whoever has the lock by now gets a chance to use it first.
            tokio::time::sleep(self.random.up_to(Duration::from_millis(60))).await;
        }
        if let Some(read) = read {
            // Without a look at the guard: it is for the register to refuse.
            self.shared.locks[lock].count_up(fenced, self.number, &guard, read);
        }
        if self.random.below(3) == 0 {
            self.commit(&session, lock, &guard).await;
        }
        if !self.shared.locks[lock].looks(self.number, &guard) {
            self.lost("a lock", since);
            return;
        }
        self.record(lock, What::Releasing(token));
        if self.random.below(4) == 0 {
            drop(guard);
        } else if let Some(Ok(())) = self.attempt(guard.release()).await {
            self.record(lock, What::Released(token));
        }
        self.count_one();
    }

    /// The register in the store: commits that name the lock have its order, whatever their holders
    /// believe.
    async fn commit(&mut self, session: &Session, lock: usize, guard: &LockGuard) {
        if !self.shared.said.fenced_commits {
            return;
        }
        let Ok(stm) = session.stm() else { return };
        let (name, token) = (self.shared.locks[lock].name, guard.token().get());
        let epoch = self.shared.epoch();
        let key = newest_of(name, &epoch);
        let committed = &epoch.committed[lock];
        let floor = committed.load(Ordering::SeqCst);
        let fenced = stm.fenced_by(guard);
        self.record(lock, What::Commits(guard.token()));
        let committing = fenced.run(async |tx| {
            let newest: Option<u64> = tx.get_as(&key).await?;
            tx.put_as(&key, &token)?;
            Ok(newest)
        });
        match self.attempt(committing).await {
            // What is seen while the store may forget is no evidence.
            Some(Ok(newest)) if newest > Some(token) && epoch.is_open() => self.shared.broke(format!(
                "a commit under token {token} of {name} found one under token {} before it: it had lost the lock",
                newest.unwrap_or_default()
            )),
            Some(Ok(newest)) if newest.unwrap_or_default() < floor && epoch.is_open() => self.shared.broke(format!(
                "a commit under token {token} of {name} found {newest:?}, though one under token {floor} had been acknowledged before: it was lost, or an older came after it"
            )),
            Some(Ok(_)) => {
                committed.fetch_max(token, Ordering::SeqCst);
                // It was held in the store at the commit: a fact, and no belief.
                self.record(lock, What::Committed(guard.token()));
            }
            Some(Err(error)) if error.effect() == Effect::None => {}
            _ => {
                self.shared.unknown_commits.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.shared.transactions.fetch_add(1, Ordering::Relaxed);
    }
}

/// The register in the store.
fn newest_of(lock: &str, epoch: &Epoch) -> String {
    epoch.name(&format!("newest of {lock}"))
}

/// Every lock must be had once more: nobody who is gone stands in the way.
pub(super) async fn last_look(
    harness: &dyn Harness,
    shared: &Shared,
    patience: Duration,
) -> std::result::Result<(), Outcome> {
    for (number, lock) in shared.locks.iter().enumerate() {
        let until = Instant::now() + patience;
        loop {
            lock.record(clients(), What::Asked);
            let error = match once_more(harness, shared, number, until).await {
                Ok(()) => break,
                Err(error) => error,
            };
            lock.record(clients(), What::Unknown);
            if error.kind() == ErrorKind::TimedOut || Instant::now() >= until {
                return Err(Outcome::violated(format!(
                    "{} could not be had {patience:?} after everybody had left: {error}",
                    lock.name,
                    error = error.chain()
                )));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    Ok(())
}

async fn once_more(
    harness: &dyn Harness,
    shared: &Shared,
    number: usize,
    until: Instant,
) -> tenure_core::Result<()> {
    let (lock, epoch) = (&shared.locks[number], shared.epoch());
    let session = open_on(&harness.connect().await?, shared.ttl * 5).await?;
    let floor = epoch.committed[number].load(Ordering::SeqCst);
    if floor > 0 {
        let key = newest_of(lock.name, &epoch);
        let stm = session.stm()?;
        let newest = stm.run(async |tx| tx.get_as::<u64>(&key).await).await?;
        if newest.unwrap_or_default() < floor {
            shared.broke(format!(
                "`{key}` has come to {newest:?}, though a commit under token {floor} had been acknowledged"
            ));
        }
    }
    let patience = until.saturating_duration_since(Instant::now());
    let guard = session.locker(lock.name)?.lock_timeout(patience).await?;
    lock.record(clients(), What::Granted(guard.token()));
    lock.record(clients(), What::Releasing(guard.token()));
    let token = guard.token();
    guard.release().await?;
    lock.record(clients(), What::Released(token));
    session.close().await
}
