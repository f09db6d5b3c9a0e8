//! The consuming side: one for each queue and client. It hands items to those of this client who
//! wait, in the order in which they came; one transaction claims for all who can be served.
//!
//! As long as somebody waits, a task does the work for all; they sleep until they are served. Not
//! one of them: a future that its owner does not poll for a while would hold up all others.
//! Whoever changes something has the *turn*; nobody keeps it while there is nothing to do.
//!
//! # Why the order is exact
//!
//! A claim must take the first item that is to be had at the revision at which it lands, also if
//! another client changed the queue a moment ago. Let `V` be the revision up to which the view has
//! heard everything, `T` that of the transaction, and `x` what it claims: the first that is ready
//! in the view. Suppose that an earlier `y` is to be had at `T`.
//!
//! - `y` was put in after `V`. Its number is greater than that of `x`, so its priority is lower, and
//!   lower than the highest ever seen. Such an enqueue touches the `epoch`, which the transaction
//!   compares: it fails.
//! - `y` was there at `V`, with a consumer or delayed. If it was given back since, the epoch was
//!   touched, too. If its consumer's session ended, so did `consumers/<lease>`, which the
//!   transaction compares for every session that has something before `x`: it fails.
//! - A delay has no such fence: an item is delayed until the one who delivers has seen its end.
//!
//! An ordinary enqueue goes to the end, touches nothing, and makes no claim fail.
//!
//! # Why nothing is lost
//!
//! A claim without an answer may land later. It compares the revision of its own session's
//! `consumers/<lease>`, which whoever wants to know touches in the transaction that reads what
//! landed: after that it cannot land any more. Until then nobody else gets the turn.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use etcd_client::proto::PbKeyValue;
use etcd_client::{Compare, CompareOp, GetOptions, SortOrder, SortTarget, Txn, TxnOp, TxnResponse};
use tenure_core::backend::{Ask, DeadLetters, Grant, Taken, Want};
use tenure_core::{Effect, Error, ErrorKind, LossReason, MAX_BATCH, Result};
use tokio::sync::Notify;

use super::keys::{Keys, Part, Place, absent, changed_at, created_at, delete, get, look, put};
use super::lane::{Lane, Passage};
use super::tail::{Tail, copy};
use super::view::{Change, PAGE, Put, Stage, View, Waiter, number};
use super::{Claim, Served};
use crate::client::Wire;
use crate::floor::{Floor, Floors, token};
use crate::layout::Layout;
use crate::session::EtcdSession;
use crate::ticket::ranges;
use crate::watcher::{Sink, Target, Watcher};

/// The check that finds what the watch missed. Not the normal path.
const SLOW_CHECK: Duration = Duration::from_secs(10);
/// How long the news of what the store has just shown may take.
const NEWS: Duration = Duration::from_millis(200);
/// How long it may take until the watch stands, before it is asked for again.
const OPENING: Duration = Duration::from_secs(3);
/// Between two attempts, while the store does not answer.
pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(20);
pub(super) const LAST_PAUSE: Duration = Duration::from_millis(500);
/// Comparisons in one transaction; etcd takes 128.
const COMPARES: usize = 124;

/// One queue, as this client sees it.
pub(super) struct Hub {
    pub(super) wire: Arc<Wire>,
    watcher: Arc<Watcher>,
    layout: Layout,
    floors: Arc<Floors>,
    pub(super) keys: Keys,
    view: Arc<View>,
    turn: tokio::sync::Mutex<Turn>,
    /// Whether the task is there.
    at_work: AtomicBool,
    pub(super) lane: Arc<Lane>,
}

#[derive(Default)]
struct Turn {
    /// Claims that were sent, and of which it is not known whether they landed.
    unresolved: Vec<Pick>,
}

/// An item for a waiter.
#[derive(Clone)]
struct Pick {
    session: Arc<EtcdSession>,
    nonce: u64,
    place: Place,
    created: i64,
    name: Option<Arc<str>>,
    /// The revision of the count, and the count before this delivery.
    count: (i64, u32),
    delayed: Option<i64>,
}

/// What the view said when something was picked: a claim holds only as long as that is so.
struct Sight {
    epoch: i64,
    /// The sessions that have something before the last pick.
    before: Vec<i64>,
}

enum Plan {
    Claim(Vec<Pick>, Sight),
    Bury(Pick, DeadLetters),
    ReadOn,
    /// Somebody does not wait, and nothing is ready.
    Confirm,
    Sleep(Option<Instant>),
}

impl Hub {
    pub(super) fn new(
        wire: Arc<Wire>,
        watcher: Arc<Watcher>,
        layout: &Layout,
        floors: Arc<Floors>,
        name: &tenure_core::Name,
    ) -> Self {
        let keys = Keys::new(layout, name);
        let view = Arc::new(View::new(keys.clone()));
        let lane = Lane::new(Arc::clone(&wire), keys.clone(), Arc::clone(&view));
        Self {
            lane: Arc::new(lane),
            view,
            wire,
            watcher,
            layout: layout.clone(),
            floors,
            keys,
            turn: tokio::sync::Mutex::default(),
            at_work: AtomicBool::new(false),
        }
    }

    /// Whether nobody of this client has anything to do with this queue now.
    pub(super) fn is_idle(&self) -> bool {
        let state = self.view.lock();
        state.waiters.is_empty()
            && state.served.is_empty()
            && state.used.elapsed() > SLOW_CHECK
            && self
                .turn
                .try_lock()
                .is_ok_and(|turn| turn.unresolved.is_empty())
            && self.lane.is_idle()
    }

    /// Takes items for `ask`: at least one, unless it is `at_once`.
    pub(super) async fn take(
        self: &Arc<Self>,
        session: &Arc<EtcdSession>,
        ask: &Ask,
        want: &Want,
        at_once: bool,
    ) -> Served {
        let told = self.join(session, ask, want, at_once);
        loop {
            let served = self.view.lock().served.remove(&ask.nonce());
            if let Some(served) = served {
                if served.as_ref().is_ok_and(Vec::is_empty) {
                    session.books.forget(ask.nonce());
                }
                return served;
            }
            self.set_to_work();
            tokio::select! {
                biased;
                () = ask.withdrawn() => return Err(Error::withdrawn()),
                () = told.notified() => {}
            }
        }
    }

    /// A place among those who wait: the same one, when asked again after a failure.
    fn join(
        &self,
        session: &Arc<EtcdSession>,
        ask: &Ask,
        want: &Want,
        at_once: bool,
    ) -> Arc<Notify> {
        let mut state = self.view.lock();
        state.used = Instant::now();
        if let Some((_, waiter)) = state.waiter(ask.nonce()) {
            return Arc::clone(&waiter.told);
        }
        let told = Arc::new(Notify::new());
        if !state.served.contains_key(&ask.nonce()) {
            state.arrivals += 1;
            let arrival = state.arrivals;
            let waiter = Waiter {
                session: Arc::clone(session),
                nonce: ask.nonce(),
                want: want.clone(),
                at_once,
                told: Arc::clone(&told),
            };
            state.waiters.insert(arrival, waiter);
            drop(state);
            if at_once {
                // Whoever has the turn sleeps until something happens: this has.
                self.view.changed.notify_waiters();
            }
        }
        told
    }

    /// Takes back what `ask` got, or may get, as if nothing had been delivered.
    pub(super) async fn withdraw(&self, session: &Arc<EtcdSession>, ask: &Ask) -> Result<()> {
        let nonce = ask.nonce();
        let leave = || {
            let mut state = self.view.lock();
            if let Some((arrival, _)) = state.waiter(nonce) {
                state.waiters.remove(&arrival);
            }
            state.served.remove(&nonce);
            if state.waiters.is_empty() {
                // The task is not needed any more.
                self.view.changed.notify_waiters();
            }
        };
        leave();
        if session.books.may_have(nonce) {
            let mut turn = self.turn.lock().await;
            if turn.unresolved.iter().any(|pick| pick.nonce == nonce) {
                self.resolve(&mut turn).await?;
            }
            drop(turn);
            leave();
            for claim in session.books.taken_by(nonce) {
                self.undo(session, &claim).await?;
            }
            session.books.forget(nonce);
        }
        Ok(())
    }

    async fn undo(&self, session: &Arc<EtcdSession>, claim: &Claim) -> Result<()> {
        let key = self.keys.count(claim.place);
        let count = match claim.deliveries {
            0 | 1 => delete(key),
            n => put(key, (n - 1).to_string(), 0),
        };
        let txn = Txn::new()
            .when([created_at(self.keys.claim(claim.place), claim.token)])
            .and_then([
                delete(self.keys.claim(claim.place)),
                count,
                self.keys.touch(),
            ]);
        // Not in force any more: then somebody else has given it back.
        match self.send(&txn).await {
            Err(error) if error.kind() == ErrorKind::Lost => Ok(()),
            answer => {
                answer?;
                session.books.settled(claim);
                Ok(())
            }
        }
    }

    pub(super) async fn send(&self, txn: &Txn) -> Result<TxnResponse> {
        self.lane.send(txn.clone()).await
    }

    pub(super) async fn read(&self, reads: Vec<TxnOp>) -> Result<(i64, Vec<Vec<PbKeyValue>>)> {
        let txn = Txn::new().and_then(reads);
        let answer = self.wire.call_repeatable(|client| {
            let mut kv = client.kv_client().max_decoding_message_size(usize::MAX);
            let txn = txn.clone();
            async move { kv.txn(txn).await }
        });
        let answer = answer.await?;
        let revision = answer.header().map_or(0, |header| header.revision());
        let found = ranges(answer).into_iter().map(|(kvs, _)| kvs);
        Ok((revision, found.collect()))
    }
}

/// The work.
impl Hub {
    /// Sees to it that the task is there.
    fn set_to_work(self: &Arc<Self>) {
        if self.at_work.swap(true, Ordering::AcqRel) {
            return;
        }
        let post = Post(Arc::clone(self));
        tokio::spawn(async move {
            let mut pause = FIRST_PAUSE;
            while !post.0.view.lock().waiters.is_empty() {
                match post.0.work().await {
                    Ok(()) => pause = FIRST_PAUSE,
                    Err(error) => {
                        post.0.fail(&error);
                        tokio::time::sleep(pause).await;
                        pause = (pause * 2).min(LAST_PAUSE);
                    }
                }
            }
        });
    }

    /// Fails all who wait: what is known of this queue is of a history that the store has lost.
    pub(super) fn forget(&self) {
        let mut state = self.view.lock();
        state.close();
        let nonces: Vec<_> = state.waiters.values().map(|waiter| waiter.nonce).collect();
        for nonce in nonces {
            state.serve(nonce, Err(Error::lost(LossReason::Revoked)));
        }
        drop(state);
        self.view.changed.notify_waiters();
    }

    /// Tells all who wait. They keep their places: what is on its way for them is theirs if they
    /// ask again, and goes back if they withdraw.
    fn fail(&self, error: &Error) {
        let mut state = self.view.lock();
        let state = &mut *state;
        for waiter in state.waiters.values() {
            // Something may have been claimed: core is to ask for it back.
            let copy = copy(error.kind(), error)
                .retryable(error.is_retryable())
                .with_effect(Effect::Unknown);
            state.served.insert(waiter.nonce, Err(copy));
            waiter.told.notify_one();
        }
    }

    /// Does what there is to do, and sleeps until there may be more.
    async fn work(&self) -> Result<()> {
        let mut changed = std::pin::pin!(self.view.changed.notified());
        // Registered before the look, so that news in between still wakes us.
        changed.as_mut().enable();
        let Some((until, doubt)) = self.step().await? else {
            return Ok(());
        };
        let timed_out = tokio::select! {
            biased;
            () = changed => false,
            () = tokio::time::sleep_until(until.into()) => true,
        };
        if timed_out && doubt {
            self.view.distrust();
            self.reopen().await?;
        }
        Ok(())
    }

    /// One step. None if there may be another; else until when to wait for news, and whether to
    /// read everything anew if there are none.
    async fn step(&self) -> Result<Option<(Instant, bool)>> {
        let mut turn = self.turn.lock().await;
        if self.view.lock().waiters.is_empty() {
            return Ok(None);
        }
        if !turn.unresolved.is_empty() {
            self.resolve(&mut turn).await?;
            return Ok(None);
        }
        let stage = self.view.lock().stage;
        let known = match stage {
            Stage::Closed | Stage::Opening => {
                self.open();
                return Ok(Some((Instant::now() + OPENING, true)));
            }
            Stage::Stale | Stage::Reading => {
                self.read_all().await?;
                true
            }
            Stage::Complete => match self.plan() {
                Plan::Claim(..) => {
                    let passage = self.lane.enter().await;
                    // Others may have come since, and who was there may have gone.
                    match self.plan() {
                        Plan::Claim(picks, _) if self.register(&picks).await? => true,
                        Plan::Claim(picks, sight) => {
                            self.claim(&mut turn, picks, sight, passage).await?
                        }
                        _ => true,
                    }
                }
                Plan::Bury(pick, letters) => self.bury(&pick, &letters).await?,
                Plan::ReadOn => {
                    self.read_on().await?;
                    true
                }
                Plan::Confirm => self.confirm().await?,
                Plan::Sleep(due) => {
                    let check = Instant::now() + SLOW_CHECK;
                    // A delay that is over needs no reading.
                    let due = due.filter(|due| *due < check);
                    return Ok(Some(due.map_or((check, true), |due| (due, false))));
                }
            },
        };
        Ok((!known).then(|| (Instant::now() + NEWS, true)))
    }

    /// Asks for the watch anew if it was not opened: it may have been refused. Whether we may look
    /// at the queue at all, a reading tells.
    async fn reopen(&self) -> Result<()> {
        if self.view.lock().stage == Stage::Opening {
            self.read(vec![look(self.keys.epoch())]).await?;
            let mut state = self.view.lock();
            if state.stage == Stage::Opening {
                state.close();
            }
        }
        Ok(())
    }

    fn open(&self) {
        let mut state = self.view.lock();
        if state.stage == Stage::Closed {
            state.stage = Stage::Opening;
            let sink: Weak<dyn Sink> = Arc::downgrade(&(Arc::clone(&self.view) as Arc<dyn Sink>));
            let target = Target::prefix(self.keys.watched()).with_puts();
            state.watch = Some(self.watcher.open(target, sink));
        }
    }

    /// What to do next.
    fn plan(&self) -> Plan {
        let mut state = self.view.lock();
        let due = state.advance();
        let mut picks: Vec<Pick> = Vec::new();
        let mut ready = state.ready.iter().copied().peekable();
        'waiters: for waiter in state.waiters.values() {
            for _ in 0..waiter.want.most {
                if picks.len() >= MAX_BATCH {
                    break 'waiters;
                }
                let Some(place) = ready.peek().copied() else {
                    break 'waiters;
                };
                let Some((created, name)) = state.items.get(&place).cloned() else {
                    break 'waiters;
                };
                let count = state.counts.get(&place).copied().unwrap_or((0, 0));
                let pick = Pick {
                    session: Arc::clone(&waiter.session),
                    nonce: waiter.nonce,
                    place,
                    created,
                    name,
                    count,
                    delayed: state.delayed.get(&place).map(|(changed, _)| *changed),
                };
                match &waiter.want.dead_letters {
                    Some(letters) if count.1 >= letters.after.get() => {
                        if picks.is_empty() {
                            return Plan::Bury(pick, letters.clone());
                        }
                        break 'waiters;
                    }
                    _ => {}
                }
                ready.next();
                // Under this lock: a withdrawal that comes now knows that it has to look.
                waiter.session.books.may_take(waiter.nonce);
                picks.push(pick);
            }
        }
        let at_once = state.waiters.values().any(|waiter| waiter.at_once);
        match () {
            () if !picks.is_empty() => {
                let last = picks.last().map_or((0, 0), |pick| pick.place);
                let sight = Sight {
                    epoch: state.epoch,
                    before: state.leases_before(last),
                };
                Plan::Claim(picks, sight)
            }
            () if state.horizon.is_some() && !state.waiters.is_empty() => Plan::ReadOn,
            () if at_once => Plan::Confirm,
            () => Plan::Sleep(due),
        }
    }

    /// The comparisons and operations that claim as many of `picks` as one transaction takes, after one that reads
    /// the token floor.
    fn claiming(&self, picks: &mut Vec<Pick>, sight: Sight) -> (Vec<Compare>, Vec<TxnOp>) {
        let own: HashSet<i64> = picks.iter().map(|pick| pick.session.lease).collect();
        let mut compares = vec![changed_at(self.keys.epoch(), sight.epoch)];
        let mut sessions: Vec<&Pick> = Vec::new();
        for pick in picks.iter() {
            if !sessions
                .iter()
                .any(|other| other.session.lease == pick.session.lease)
            {
                sessions.push(pick);
            }
        }
        for pick in sessions {
            let key = self.keys.consumer(pick.session.lease);
            let fence = pick.session.books.fence(&key);
            compares.push(changed_at(key, fence));
        }
        let others = sight
            .before
            .into_iter()
            .filter(|lease| !own.contains(lease));
        // With more sessions at work than fit, the order is that of the news for the rest.
        let room = COMPARES - compares.len() - 4;
        compares.extend(others.take(room).map(|lease| {
            Compare::create_revision(self.keys.consumer(lease), CompareOp::Greater, 0)
        }));
        let mut ops = Vec::from_iter(self.floors.look());
        let mut fit = 0;
        for pick in picks.iter() {
            if compares.len() + 4 > COMPARES || ops.len() + 4 > COMPARES {
                break;
            }
            fit += 1;
            let (place, claim) = (pick.place, self.keys.claim(pick.place));
            let item = self.keys.item_named(place, pick.name.as_deref());
            compares.push(created_at(item.as_str(), pick.created));
            compares.push(absent(claim.as_str()));
            compares.push(changed_at(self.keys.count(place), pick.count.0));
            let nonce = format!("{:x}", pick.nonce);
            let count = (pick.count.1 + 1).to_string();
            ops.push(put(claim, nonce, pick.session.lease));
            ops.push(put(self.keys.count(place), count, 0));
            ops.push(get(item));
            if let Some(changed) = pick.delayed {
                compares.push(changed_at(self.keys.delayed(place), changed));
                ops.push(delete(self.keys.delayed(place)));
            }
        }
        picks.truncate(fit);
        (compares, ops)
    }

    /// Claims `picks`; says whether the view may go on without news.
    async fn claim(
        &self,
        turn: &mut Turn,
        mut picks: Vec<Pick>,
        sight: Sight,
        passage: Passage<'_>,
    ) -> Result<bool> {
        let (compares, ops) = self.claiming(&mut picks, sight);
        let (size, places) = (compares.len().max(ops.len()), places(&picks));
        let own: Vec<String> = consumers(&self.keys, &picks).into_keys().collect();
        let txn = Txn::new()
            .when(compares)
            .and_then(ops)
            .or_else(own.iter().map(|key| look(key.as_str())).collect::<Vec<_>>());
        // Kept there, not here: dropped in the middle, this leaves the question to the next one.
        turn.unresolved = picks;
        let asked = self.floors.asks();
        let answer = match passage.send(txn, size, &places).await {
            Ok(answer) => answer,
            Err(error) if error.effect() == Effect::None => {
                // Some session has ended in the store: to be found by asking for each.
                if error.kind() != ErrorKind::Lost {
                    turn.unresolved.clear();
                    return Err(error);
                }
                self.resolve(turn).await?;
                return Ok(true);
            }
            Err(error) => return Err(error),
        };
        let revision = answer.header().map_or(0, |header| header.revision());
        let claimed = answer.succeeded();
        let mut found = ranges(answer).into_iter();
        let floor = match claimed {
            true => self.floors.hear(asked, &mut found)?,
            false => Floor::default(),
        };
        let picks = std::mem::take(&mut turn.unresolved);
        if claimed {
            let epoch = floor.epoch();
            let found = found.map(|(kvs, _)| kvs.into_iter().next());
            let values = found.map(|kv| kv.map(|kv| kv.value).unwrap_or_default());
            let claimed = picks.into_iter().zip(values);
            let claimed = claimed.map(|(pick, value)| (pick, value, epoch));
            self.deliver(revision, claimed.collect());
            return Ok(true);
        }
        let found = found.map(|(kvs, _)| kvs.into_iter().next());
        // A fence that somebody touched, or the view is behind.
        let mut stale = false;
        for (key, kv) in own.iter().zip(found) {
            let books = picks.iter().map(|pick| &pick.session.books);
            for books in books.filter(|books| books.knows(key)) {
                let changed = kv.as_ref().map_or(0, |kv| kv.mod_revision);
                stale |= books.fence(key) != changed;
                books.set_fence(key, changed);
            }
        }
        Ok(stale)
    }

    /// Gives those sessions that have none yet a key that says that they live; says whether
    /// anything was done.
    async fn register(&self, picks: &[Pick]) -> Result<bool> {
        let mut done = false;
        for (key, pick) in consumers(&self.keys, picks) {
            if pick.session.books.fence(&key) != 0 {
                continue;
            }
            done = true;
            let txn = Txn::new().and_then([put(key.as_str(), "", pick.session.lease)]);
            match self.send(&txn).await {
                Ok(answer) => {
                    let revision = answer.header().map_or(0, |header| header.revision());
                    pick.session.books.set_fence(&key, revision);
                }
                Err(error) if error.kind() == ErrorKind::Lost => self.lost(pick, &error),
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    /// The session of `pick` has ended in the store.
    fn lost(&self, pick: &Pick, error: &Error) {
        let mut state = self.view.lock();
        let theirs = state.waiters.values();
        let theirs = theirs.filter(|waiter| waiter.session.lease == pick.session.lease);
        let nonces: Vec<_> = theirs.map(|waiter| waiter.nonce).collect();
        for nonce in nonces {
            let reason = error.loss().unwrap_or(LossReason::Revoked);
            state.serve(nonce, Err(Error::lost(reason)));
        }
    }

    /// Finds out which of the unresolved claims landed, and makes sure that no other will.
    async fn resolve(&self, turn: &mut Turn) -> Result<()> {
        let mut landed = Vec::new();
        let sessions: Vec<(String, Pick)> = consumers(&self.keys, &turn.unresolved)
            .into_iter()
            .map(|(key, pick)| (key, pick.clone()))
            .collect();
        for (key, first) in &sessions {
            let lease = first.session.lease;
            let picks = turn.unresolved.iter();
            let picks: Vec<_> = picks
                .filter(|it| it.session.lease == lease)
                .cloned()
                .collect();
            let mut ops = vec![put(key.as_str(), "", lease)];
            ops.extend(self.floors.look());
            for pick in &picks {
                ops.push(get(self.keys.claim(pick.place)));
                ops.push(get(self.keys.item_named(pick.place, pick.name.as_deref())));
            }
            let asked = self.floors.asks();
            let answer = match self.send(&Txn::new().and_then(ops)).await {
                // With the session everything of it is gone.
                Err(error) if error.kind() == ErrorKind::Lost => {
                    self.lost(first, &error);
                    continue;
                }
                answer => answer?,
            };
            let revision = answer.header().map_or(0, |header| header.revision());
            first.session.books.set_fence(key, revision);
            let mut found = ranges(answer).into_iter();
            // With the claims that are there: no client can have claimed these items after them.
            let epoch = self.floors.hear(asked, &mut found)?.epoch();
            let mut found = found.map(|(kvs, _)| kvs.into_iter().next());
            for pick in picks {
                let (claim, item) = (found.next().flatten(), found.next().flatten());
                let nonce = format!("{:x}", pick.nonce).into_bytes();
                if let (Some(claim), Some(item)) = (claim, item)
                    && (claim.lease, claim.value) == (lease, nonce)
                {
                    landed.push((claim.create_revision, (pick, item.value, epoch)));
                }
            }
        }
        turn.unresolved.clear();
        landed.sort_by_key(|(_, (pick, ..))| pick.place);
        if let Some((created, _)) = landed.first() {
            let created = *created; // one transaction, one revision
            self.deliver(created, landed.into_iter().map(|(_, it)| it).collect());
        }
        Ok(())
    }

    /// Hands out what was claimed at `created`: the items with their values, and the epochs of their tokens.
    fn deliver(&self, created: i64, claimed: Vec<(Pick, Vec<u8>, u64)>) {
        let mut state = self.view.lock();
        let mut by_nonce: Vec<(u64, Vec<Taken>)> = Vec::new();
        for (pick, value, epoch) in claimed {
            let deliveries = pick.count.1 + 1;
            let claim = Claim {
                place: pick.place,
                token: created,
                nonce: pick.nonce,
                deliveries,
                name: pick.name,
            };
            let note = |part, number| Change {
                part,
                put: Some(Put {
                    created,
                    lease: pick.session.lease,
                    number,
                    name: None,
                }),
                revision: created,
            };
            state.apply(note(Part::Claim(pick.place), 0));
            state.apply(note(Part::Count(pick.place), u64::from(deliveries)));
            pick.session.books.took(claim.clone());
            let taken = Taken {
                grant: Grant::new(token(epoch, created), self.keys.claim(pick.place)).attach(claim),
                value,
                priority: pick.place.0,
                deliveries,
            };
            match by_nonce.iter_mut().find(|(nonce, _)| *nonce == pick.nonce) {
                Some((_, all)) => all.push(taken),
                None => by_nonce.push((pick.nonce, vec![taken])),
            }
        }
        for (nonce, taken) in by_nonce {
            // Nobody waits for it any more: its withdrawal finds it in the session's books.
            state.serve(nonce, Ok(taken));
        }
    }

    /// Tells those who do not wait that there is nothing, if that is still so at a revision after
    /// they came.
    async fn confirm(&self) -> Result<bool> {
        let (asking, leases) = {
            let state = self.view.lock();
            let asking = state.waiters.values().filter(|waiter| waiter.at_once);
            let asking: Vec<_> = asking.map(|waiter| waiter.nonce).collect();
            (asking, state.by_lease.keys().copied().collect::<Vec<_>>())
        };
        let reads = [look(self.keys.tail()), look(self.keys.epoch())];
        let leases = leases.into_iter().take(COMPARES - 2);
        let consumers = leases.map(|lease| look(self.keys.consumer(lease)));
        let (_, found) = self
            .read(reads.into_iter().chain(consumers).collect())
            .await?;
        let mut found = found.into_iter();
        let mut changed = || found.next().and_then(|kvs| Some(kvs.first()?.mod_revision));
        let (tail, epoch) = (changed().unwrap_or(0), changed().unwrap_or(0));
        let all_live = found.all(|kvs| !kvs.is_empty());
        let mut state = self.view.lock();
        state.advance();
        if !state.ready.is_empty() || state.horizon.is_some() || state.stage != Stage::Complete {
            return Ok(true);
        }
        if state.tail < tail || state.epoch < epoch || !all_live {
            return Ok(false); // the news is on its way
        }
        for nonce in asking {
            state.serve(nonce, Ok(Vec::new()));
        }
        Ok(true)
    }
}

/// Reading.
impl Hub {
    fn items_after(&self, place: Option<Place>, limit: usize) -> TxnOp {
        let from = place.map_or_else(|| self.keys.all("items"), |place| self.keys.after(place));
        let options = GetOptions::new()
            .with_range(self.keys.end_of_items())
            .with_keys_only()
            .with_sort(SortTarget::Key, SortOrder::Ascend)
            .with_limit(i64::try_from(limit).unwrap_or(i64::MAX));
        TxnOp::get(from, Some(options))
    }

    fn changes(&self, kvs: Vec<PbKeyValue>) -> Vec<Change> {
        let change = |kv: PbKeyValue| Change {
            part: self.keys.parse(&kv.key),
            put: Some(Put {
                created: kv.create_revision,
                lease: kv.lease,
                number: number(&kv.value),
                name: self.keys.name_in(&kv.key),
            }),
            revision: kv.mod_revision,
        };
        kvs.into_iter().map(change).collect()
    }

    /// Where a reading of items ends; everything was read, if that is nowhere.
    fn horizon(&self, items: &[Change], limit: usize) -> Option<Place> {
        let last = items.last().filter(|_| items.len() >= limit)?;
        match last.part {
            Part::Item(place) => Some(place),
            _ => None,
        }
    }

    /// Reads the queue once, after the watch stands: nothing is missed from then on.
    async fn read_all(&self) -> Result<()> {
        let stream = {
            let mut state = self.view.lock();
            state.start_reading();
            state.stream
        };
        let all = |part, options: GetOptions| {
            TxnOp::get(self.keys.all(part), Some(options.with_prefix()))
        };
        let reads = vec![
            self.items_after(None, PAGE),
            all("claims", GetOptions::new().with_keys_only()),
            all("counts", GetOptions::new()),
            all("delayed", GetOptions::new()),
            look(self.keys.tail()),
            look(self.keys.epoch()),
        ];
        let (revision, found) = self.read(reads).await?;
        let mut found = found.into_iter();
        let items = self.changes(found.next().unwrap_or_default());
        let horizon = self.horizon(&items, PAGE);
        let rest = found.flat_map(|kvs| self.changes(kvs));
        let all = items.into_iter().chain(rest).collect();
        let mut state = self.view.lock();
        if state.stream == stream && state.stage == Stage::Reading {
            state.complete(revision, all, horizon);
        }
        Ok(())
    }

    /// Reads further items.
    async fn read_on(&self) -> Result<()> {
        let (stream, horizon) = {
            let mut state = self.view.lock();
            (state.stream, state.start_page())
        };
        let (revision, found) = self.read(vec![self.items_after(horizon, PAGE)]).await?;
        let items = self.changes(found.into_iter().flatten().collect());
        let horizon = self.horizon(&items, PAGE);
        let mut state = self.view.lock();
        if state.stream == stream && state.stage == Stage::Complete {
            state.complete_page(revision, items, horizon);
        }
        Ok(())
    }

    /// Puts an item that was delivered too often into another queue; says whether the view may go
    /// on without news.
    async fn bury(&self, pick: &Pick, letters: &DeadLetters) -> Result<bool> {
        let there = Keys::new(&self.layout, &letters.queue);
        let item = self.keys.item_named(pick.place, pick.name.as_deref());
        loop {
            let (_, found) = self
                .read(vec![get(item.as_str()), get(there.tail())])
                .await?;
            let mut found = found.into_iter();
            let value = found.next().and_then(|kvs| kvs.into_iter().next());
            let Some(value) = value.filter(|kv| kv.create_revision == pick.created) else {
                return Ok(false); // gone: an earlier request did it, or an acknowledgement
            };
            let tail = Tail::read(&found.next().unwrap_or_default());
            let append = [(pick.place.0, value.value.as_slice(), None)];
            let (unchanged, mut ops, _) = tail.append(&there, append);
            ops.extend([
                delete(item.as_str()),
                delete(self.keys.count(pick.place)),
                delete(self.keys.delayed(pick.place)),
            ]);
            if let Some(name) = &pick.name {
                ops.push(
                    pick.session
                        .shared
                        .queues
                        .remember(&self.keys.id_named(name))
                        .await?,
                );
            }
            let txn = Txn::new()
                .when([
                    unchanged,
                    created_at(item.as_str(), pick.created),
                    absent(self.keys.claim(pick.place)),
                    changed_at(self.keys.count(pick.place), pick.count.0),
                ])
                .and_then(ops)
                .or_else([
                    look(self.keys.claim(pick.place)),
                    look(self.keys.count(pick.place)),
                ]);
            let answer = match self.send(&txn).await {
                // Not the lease of a session: the one on which ids are remembered.
                Err(error) if error.kind() == ErrorKind::Lost && pick.name.is_some() => {
                    pick.session.shared.queues.new_memory().await;
                    continue;
                }
                answer => answer?,
            };
            if answer.succeeded() {
                return Ok(false);
            }
            let found = ranges(answer);
            let changed = |at: usize| {
                found
                    .get(at)
                    .and_then(|(kvs, _)| kvs.first())
                    .map_or(0, |kv| kv.mod_revision)
            };
            if changed(0) != 0 || changed(1) != pick.count.0 {
                return Ok(false); // somebody else had it since
            }
        }
    }
}

/// The task's place. Given up when the task ends, however it does.
struct Post(Arc<Hub>);

impl Drop for Post {
    fn drop(&mut self) {
        self.0.at_work.store(false, Ordering::Release);
        if std::thread::panicking() {
            // The next one would, too.
            let error = Error::new(ErrorKind::Internal, "the work at this queue panicked");
            return self.0.fail(&error);
        }
        // Who came too late to be seen, or is left behind by a runtime that ends, sets another to
        // work.
        for waiter in self.0.view.lock().waiters.values() {
            waiter.told.notify_one();
        }
    }
}

fn places(picks: &[Pick]) -> HashSet<Place> {
    picks.iter().map(|pick| pick.place).collect()
}

/// The sessions of `picks`, each by the key that says that it lives.
fn consumers<'a>(keys: &Keys, picks: &'a [Pick]) -> HashMap<String, &'a Pick> {
    let keyed = picks
        .iter()
        .map(|pick| (keys.consumer(pick.session.lease), pick));
    keyed.collect()
}

/// What one session has of queues.
#[derive(Default)]
pub(crate) struct Books(Mutex<Entries>);

#[derive(Default)]
struct Entries {
    /// When each of its consumer keys was last touched.
    fences: HashMap<String, i64>,
    /// The claims by the nonce of the ask that made them, until they are settled. An entry without
    /// any says that there may be some.
    taken: HashMap<u64, Vec<Claim>>,
}

impl Books {
    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn knows(&self, key: &str) -> bool {
        self.lock().fences.contains_key(key)
    }

    fn fence(&self, key: &str) -> i64 {
        self.lock().fences.get(key).copied().unwrap_or(0)
    }

    fn set_fence(&self, key: &str, revision: i64) {
        self.lock().fences.insert(key.to_owned(), revision);
    }

    fn may_take(&self, nonce: u64) {
        self.lock().taken.entry(nonce).or_default();
    }

    fn may_have(&self, nonce: u64) -> bool {
        self.lock().taken.contains_key(&nonce)
    }

    fn took(&self, claim: Claim) {
        self.lock()
            .taken
            .entry(claim.nonce)
            .or_default()
            .push(claim);
    }

    fn taken_by(&self, nonce: u64) -> Vec<Claim> {
        self.lock().taken.get(&nonce).cloned().unwrap_or_default()
    }

    fn forget(&self, nonce: u64) {
        self.lock().taken.remove(&nonce);
    }

    /// The claim is not in force any more.
    pub(super) fn settled(&self, claim: &Claim) {
        let mut entries = self.lock();
        if let Some(claims) = entries.taken.get_mut(&claim.nonce) {
            claims.retain(|other| other.place != claim.place);
            if claims.is_empty() {
                entries.taken.remove(&claim.nonce);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::EtcdBackend;
    use tenure_core::Name;

    fn item(place: Place, revision: i64) -> Change {
        let put = Put {
            created: revision,
            lease: 0,
            number: 0,
            name: None,
        };
        Change {
            part: Part::Item(place),
            put: Some(put),
            revision,
        }
    }

    /// News may come between the choice of an item and the claim: the claim must fail by them.
    #[tokio::test]
    async fn a_claim_holds_only_for_what_was_seen_when_it_was_chosen() {
        let session = EtcdBackend::unmet().await;
        let hub = session
            .shared
            .queues
            .hub(&session, &Name::new("x").unwrap());
        {
            let mut state = hub.view.lock();
            state.complete(10, vec![item((5, 1), 9)], None);
            let held = Put {
                created: 8,
                lease: 3,
                number: 0,
                name: None,
            };
            state.apply(item((4, 2), 8));
            state.apply(Change {
                part: Part::Claim((4, 2)),
                put: Some(held),
                revision: 8,
            });
            let waiter = Waiter {
                session: Arc::clone(&session),
                nonce: 1,
                want: Want::new(1),
                at_once: false,
                told: Arc::default(),
            };
            state.waiters.insert(1, waiter);
        }
        let Plan::Claim(mut picks, sight) = hub.plan() else {
            panic!("there is something to claim");
        };
        {
            let mut state = hub.view.lock();
            state.apply(Change {
                part: Part::Epoch,
                put: None,
                revision: 20,
            });
            state.apply(item((0, 3), 20));
            state.apply(Change {
                part: Part::Claim((4, 2)),
                put: None,
                revision: 21,
            });
        }
        let (compares, _) = hub.claiming(&mut picks, sight);
        let compares: Vec<_> = compares.iter().map(|it| format!("{it:?}")).collect();
        let due = [
            changed_at(hub.keys.epoch(), 0),
            Compare::create_revision(hub.keys.consumer(3), CompareOp::Greater, 0),
        ];
        for compare in due {
            assert!(compares.contains(&format!("{compare:?}")), "{compares:#?}");
        }
    }
}
