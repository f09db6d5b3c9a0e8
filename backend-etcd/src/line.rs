//! The waiting line of one name: who is at its head, and how a waiter learns that it is.
//!
//! Every waiter has a key under the line's prefix; the lowest create revision is the head. A line
//! may have readers (see `sides.rs`): those wait for the writers before them only, so all readers
//! before the first writer are granted together. In a lock's line everybody writes. A waiter knows
//! from its own transaction who stood before it, so deletions are all that it must hear of (and
//! the downgrades of writers), and there are two ways to hear of them:
//!
//! - **Near the head** one standing watch on the prefix feeds a *view* that all waiters of this
//!   client share: a release wakes its successor without a further request.
//! - **Far from it** that would send every release to every waiting process, so a waiter watches
//!   the nearest that it waits for alone, and asks for the rest when that is gone. Those watches are kept for
//!   the next round, in which the predecessor is most likely the same: opening a watch costs a
//!   request, and up to 100 ms when a write slips in between.
//!
//! Measured on 2 cores (docs/etcd.md): 16 contenders in one process 2,100 cycles/s (Go's mutex
//! 160), 100 processes 1,400 to 1,500 (Go's 960; the shared view alone 700 to 950).
//!
//! Revisions decide, never the order of messages: a deletion at revision `d` ends the
//! incarnations of its key that were created before `d`, and often arrives before the answer to
//! the transaction that it follows.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use etcd_client::proto::PbKeyValue;
use etcd_client::{GetOptions, SortOrder, SortTarget};
use tenure_core::backend::{Alarm, Side};
use tenure_core::{Error, LossReason, Result};
use tokio::sync::{Notify, oneshot};

use crate::client::Wire;
use crate::history::Forget;
use crate::sides::{self, Sides, waits_for};
use crate::watcher::{Sink, Target, Watch, Watcher};

/// How many predecessors of other clients still count as near the head...
const NEAR: usize = 16;
/// ...also while the prefix is watched anyway.
const NEAR_WHILE_STANDING: usize = 2 * NEAR;
/// After so many far waits in a row, nobody needs the prefix watch.
const FAR_STREAK: u32 = 4;
/// Point watches kept for the next round.
const POINTS: usize = 4;
/// The check that finds what all watches missed. Not the normal path.
const SLOW_CHECK: Duration = Duration::from_secs(10);
/// How many other readers a reader looks past at first when it looks for a writer.
const LOOK_PAST: i64 = 32;
/// An unused prefix watch is closed when it is disturbed after so long.
const IDLE: Duration = Duration::from_secs(10);

type Key = Vec<u8>;

/// One who holds or waits.
#[derive(Clone, Debug)]
pub(crate) struct Stander {
    pub(crate) key: Key,
    /// The key's create revision: its place, and its token.
    pub(crate) created: i64,
    pub(crate) side: Side,
}

/// Where a transaction put a key: what it needs to know to wait.
pub(crate) struct Placed {
    pub(crate) side: Side,
    /// The key's create revision: its place, and its token.
    pub(crate) token: i64,
    /// The revision at which `list` was read.
    pub(crate) read_at: i64,
    /// Who stands in the line, the newest first, the key itself among them.
    pub(crate) list: Vec<Stander>,
    /// Whether the line has more than `list` says.
    pub(crate) more: bool,
}

/// One name's line, as this client sees it.
pub(crate) struct Line {
    wire: Arc<Wire>,
    watcher: Arc<Watcher>,
    prefix: String,
    sides: Sides,
    view: Arc<View>,
    points: Mutex<Vec<(Arc<Point>, Watch)>>,
}

impl Line {
    fn new(wire: Arc<Wire>, watcher: Arc<Watcher>, prefix: String, sides: Sides) -> Self {
        Self {
            wire,
            watcher,
            prefix,
            sides,
            view: Arc::default(),
            points: Mutex::default(),
        }
    }

    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }

    pub(crate) fn sides(&self) -> Sides {
        self.sides
    }

    /// Who has the key `key`, as the server shows it.
    pub(crate) fn stander(&self, key: Key, created: i64, value: &[u8]) -> Stander {
        let side = self.sides.of(&self.prefix, &key, value);
        Stander { key, created, side }
    }

    /// What a list of those who stand here needs.
    pub(crate) fn list_options(&self) -> GetOptions {
        let options = GetOptions::new().with_prefix();
        if self.sides.show_in_keys() {
            options.with_keys_only()
        } else {
            options
        }
    }

    /// What is to be heard of `target`. Writers become readers only where the value says which they
    /// are: there, puts are news too.
    fn news(&self, target: Target) -> Target {
        match self.sides {
            Sides::InValue => target.with_puts(),
            Sides::Alone | Sides::InKey => target,
        }
    }

    /// Announces `key` before its transaction is sent: deletions are noted from here on.
    pub(crate) fn enter<'a>(&'a self, key: &'a str, alarm: Alarm) -> Entering<'a> {
        let mut state = self.view.lock();
        state.in_flight += 1;
        state
            .ours
            .insert(key.as_bytes().to_vec(), Ours { token: None, alarm });
        drop(state);
        Entering {
            line: self,
            key,
            landed: false,
        }
    }

    /// Forgets `key`, which is about to be deleted by ourselves, or never was.
    pub(crate) fn leave(&self, key: &str) {
        self.view.lock().ours.remove(key.as_bytes());
    }

    /// Takes back the announcement of `key`, which went to another key after all.
    pub(crate) fn unannounce(&self, key: &str) {
        let mut state = self.view.lock();
        let announced = state.ours.get(key.as_bytes());
        if announced.is_some_and(|ours| ours.token.is_none()) {
            state.ours.remove(key.as_bytes());
        }
    }

    /// Notes that `key` stands in the line since `token`, to wait or to hold: its deletion by
    /// somebody else raises its alarm. To be called before the [`Entering`] is gone, which still
    /// knows of a deletion that came before the answer.
    pub(crate) fn stands(&self, key: &str, token: i64, alarm: Alarm) {
        let mut state = self.view.lock();
        let early = state.early.get(key.as_bytes()).copied();
        if state.lost || early.is_some_and(|deleted| deleted > token) {
            alarm.raise(LossReason::Revoked);
            state.ours.remove(key.as_bytes());
            return;
        }
        let ours = Ours {
            token: Some(token),
            alarm,
        };
        state.ours.insert(key.as_bytes().to_vec(), ours);
    }

    /// Waits until the key that `entering` announced, placed at `placed`, has nobody before it for
    /// whom its side waits. Returns whether more than `placed` was needed to know that.
    ///
    /// # Errors
    ///
    /// `Lost` when the key was deleted meanwhile; whatever a read failed with.
    pub(crate) async fn wait_turn(
        &self,
        mut entering: Entering<'_>,
        placed: Placed,
    ) -> Result<bool> {
        let key = entering.key;
        let before: Vec<_> = placed
            .list
            .iter()
            .filter(|stander| stander.created < placed.token)
            .collect();
        let blocker = before
            .iter()
            .find(|stander| waits_for(placed.side, stander.side));
        let blocker = match blocker {
            Some(nearest) => (*nearest).clone(),
            None if !placed.more => return Ok(false),
            // The list is full of others: of readers like us, or of those who came behind us before
            // we asked again after a failure.
            None => {
                let (token, read_at) = (placed.token, placed.read_at);
                match self.blocker(placed.side, token, read_at).await? {
                    (_, None) => return Ok(true),
                    (_, Some(blocker)) => blocker,
                }
            }
        };
        let near = {
            let state = self.view.lock();
            let others = before
                .iter()
                .filter(|stander| !state.ours.contains_key(&stander.key))
                .count();
            let limit = if state.stage == Stage::Closed {
                NEAR
            } else {
                NEAR_WHILE_STANDING
            };
            !placed.more && others <= limit
        };
        if near {
            let turn = self.view.join(&placed);
            entering.land();
            self.wait_near(placed.side, placed.token, turn).await?;
        } else {
            entering.land();
            self.view.far_wait();
            self.wait_far(key, &placed, blocker).await?;
        }
        Ok(true)
    }

    async fn wait_near(&self, side: Side, token: i64, mut turn: Waiting) -> Result<()> {
        loop {
            self.still_known()?;
            let mut changed = std::pin::pin!(self.view.changed.notified());
            changed.as_mut().enable();
            match self.view.stage() {
                Stage::Closed => self.open_view(),
                Stage::Stale { since, epoch } => self.read_view(since, epoch).await?,
                Stage::Opening | Stage::Reading | Stage::Complete => {}
            }
            tokio::select! {
                biased;
                turn = &mut turn.turn => return match turn {
                    Ok(Turn::Head) => Ok(()),
                    Ok(Turn::Gone) | Err(_) => Err(Error::lost(LossReason::Revoked)),
                },
                () = changed => {}
                () = tokio::time::sleep(SLOW_CHECK) => {
                    if self.blocker(side, token, token).await?.1.is_none() {
                        tracing::warn!(prefix = %self.prefix, "a slow check found what the watch had missed");
                        return Ok(());
                    }
                }
            }
        }
    }

    fn open_view(&self) {
        let mut state = self.view.lock();
        if state.stage == Stage::Closed && !state.lost {
            state.stage = Stage::Opening;
            let sink: Weak<dyn Sink> = Arc::downgrade(&(Arc::clone(&self.view) as Arc<dyn Sink>));
            let target = Target::prefix(&self.prefix);
            state.watch = Some(self.watcher.open(self.news(target), sink));
        }
    }

    /// Reads the whole line once, after the watch stands: nothing is missed from then on.
    async fn read_view(&self, since: i64, epoch: u64) -> Result<()> {
        if !self.view.start_reading(epoch) {
            return Ok(()); // somebody else reads
        }
        let mut reading = Reading {
            view: &self.view,
            since,
            epoch,
            done: false,
        };
        let options = self.list_options();
        let answer = self.wire.call_repeatable(|client| {
            // The client's own limit of 4 MiB would fail the head of a line for its length.
            let mut kv = client.kv_client().max_decoding_message_size(usize::MAX);
            let (prefix, options) = (self.prefix.clone(), options.clone());
            async move { kv.get(prefix, Some(options)).await }
        });
        let answer = answer.await?;
        let revision = answer.header().map_or(0, |header| header.revision());
        let list = answer
            .kvs()
            .iter()
            .map(|kv| self.stander(kv.key().to_vec(), kv.create_revision(), kv.value()))
            .collect();
        reading.done = self.view.complete(epoch, revision, list);
        Ok(())
    }

    async fn wait_far(&self, key: &str, placed: &Placed, mut blocker: Stander) -> Result<()> {
        let (side, token, mut seen) = (placed.side, placed.token, placed.read_at);
        loop {
            let point = self.point(&blocker.key);
            let gone_at = self.wait_gone(&point, side, blocker.created, seen).await?;
            match self.blocker(side, token, gone_at).await? {
                (_, None) => {
                    tracing::trace!(key, "at the head");
                    return Ok(());
                }
                (read_at, Some(next)) => (seen, blocker) = (read_at, next),
            }
        }
    }

    /// Waits until the incarnation `created` of the point's key, for which `side` waits at revision
    /// `seen`, is gone or was written once more, or it is time for a slow check; returns the
    /// revision of the news.
    async fn wait_gone(
        &self,
        point: &Point,
        side: Side,
        created: i64,
        mut seen: i64,
    ) -> Result<i64> {
        // When a write slipped in between, a new watch may be served by the 100 ms loop at first:
        // look a few times meanwhile. A watch that stood before we came needs no looks.
        let mut looks = None;
        loop {
            let mut changed = std::pin::pin!(point.changed.notified());
            changed.as_mut().enable();
            self.still_known()?;
            let (opened, touched) = point.state();
            if touched > seen {
                return Ok(touched);
            }
            let look = match opened {
                Some(opened) if opened <= seen => looks.as_mut().and_then(Iterator::next),
                // It stands since after we last knew: what happened before that must be read.
                Some(_) => {
                    looks = Some([15, 50, 110].map(Duration::from_millis).into_iter());
                    Some(Duration::ZERO)
                }
                None => None,
            };
            if look != Some(Duration::ZERO) {
                tokio::select! {
                    biased;
                    () = changed => continue,
                    () = tokio::time::sleep(look.unwrap_or(SLOW_CHECK)) => {}
                }
            }
            if look.is_none() {
                return Ok(seen);
            }
            let answer = self.wire.call_repeatable(|client| {
                let (mut kv, key) = (client.kv_client(), point.key.clone());
                async move { kv.get(key, None).await }
            });
            let answer = answer.await?;
            let revision = answer.header().map_or(0, |header| header.revision());
            let stands = answer.kvs().first().is_some_and(|kv| {
                let stander = self.stander(kv.key().to_vec(), kv.create_revision(), kv.value());
                stander.created == created && waits_for(side, stander.side)
            });
            if !stands {
                return Ok(revision);
            }
            seen = revision;
        }
    }

    /// Who stands nearest before `token` of those for whom `side` waits, read at a revision no older
    /// than `at_least`.
    ///
    /// A member that lags shows too many of them, never too few: what stood before a token can
    /// only go, and only writers change their side. So a local read is good enough if it knows the
    /// token and the event.
    async fn blocker(
        &self,
        side: Side,
        token: i64,
        at_least: i64,
    ) -> Result<(i64, Option<Stander>)> {
        let options = self
            .list_options()
            .with_sort(SortTarget::Create, SortOrder::Descend)
            .with_max_create_revision(token);
        let mut local = true;
        let mut limit = match side {
            Side::Write => 2,
            Side::Read => LOOK_PAST, // other readers
        };
        loop {
            let options = options.clone().with_limit(limit);
            let options = if local {
                options.with_serializable()
            } else {
                options
            };
            let read = |client: &etcd_client::Client| {
                let mut kv = client.kv_client().max_decoding_message_size(usize::MAX);
                let (prefix, options) = (self.prefix.clone(), options.clone());
                async move { kv.get(prefix, Some(options)).await }
            };
            let answer = match local {
                true => self.wire.call_local(read).await?,
                false => self.wire.call_repeatable(read).await?,
            };
            self.still_known()?;
            let revision = answer.header().map_or(0, |header| header.revision());
            if local && revision < at_least.max(token) {
                local = false;
                continue;
            }
            let mut list = answer
                .kvs()
                .iter()
                .map(|kv| self.stander(kv.key().to_vec(), kv.create_revision(), kv.value()));
            if list.next().is_none_or(|own| own.created != token) {
                return Err(Error::lost(LossReason::Revoked));
            }
            match list.find(|stander| waits_for(side, stander.side)) {
                None if answer.more() => limit *= 8,
                found => return Ok((revision, found)),
            }
        }
    }

    /// The standing watch on `key`; opened if there is none.
    fn point(&self, key: &[u8]) -> Arc<Point> {
        let mut points = self.points.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = points.iter().position(|(point, _)| point.key == key) {
            let entry = points.remove(at);
            let point = Arc::clone(&entry.0);
            points.push(entry); // the most recently used is last
            return point;
        }
        let point = Arc::new(Point {
            key: key.to_vec(),
            state: Mutex::default(),
            changed: Notify::new(),
        });
        let sink: Weak<dyn Sink> = Arc::downgrade(&(Arc::clone(&point) as Arc<dyn Sink>));
        let target = Target::key(key);
        let watch = self.watcher.open(self.news(target), sink);
        points.push((Arc::clone(&point), watch));
        let idle = |points: &Vec<(Arc<Point>, Watch)>| {
            points.iter().position(|(p, _)| Arc::strong_count(p) == 1)
        };
        while points.len() > POINTS {
            match idle(&points) {
                Some(at) => drop(points.remove(at)),
                None => break,
            }
        }
        point
    }

    /// Ends whatever stands here: the history in which it was granted, or waited, is lost.
    fn forget(&self) {
        self.view.lock().forget();
        self.view.changed.notify_waiters();
        let points = self.points.lock().unwrap_or_else(PoisonError::into_inner);
        for (point, _) in points.iter() {
            point.changed.notify_waiters();
        }
    }

    fn still_known(&self) -> Result<()> {
        match self.view.lock().lost {
            true => Err(Error::lost(LossReason::Revoked)),
            false => Ok(()),
        }
    }

    /// Whether nobody of this client holds, waits or asks here.
    fn is_idle(&self) -> bool {
        let state = self.view.lock();
        state.ours.is_empty() && state.waiters.is_empty() && state.in_flight == 0
    }
}

/// A key whose transaction is on its way.
pub(crate) struct Entering<'a> {
    line: &'a Line,
    key: &'a str,
    landed: bool,
}

impl Entering<'_> {
    fn land(&mut self) {
        if !std::mem::replace(&mut self.landed, true) {
            let mut state = self.line.view.lock();
            state.finish_flight();
        }
    }
}

impl Drop for Entering<'_> {
    fn drop(&mut self) {
        self.land();
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// No prefix watch.
    Closed,
    /// Asked for, not standing.
    Opening,
    /// Standing since a revision; what was before is not read.
    Stale {
        since: i64,
        epoch: u64,
    },
    Reading,
    /// Every live key below any waiter's is known.
    Complete,
}

enum Turn {
    Head,
    Gone,
}

/// A waiter's registration in the view, withdrawn when dropped.
struct Waiting {
    view: Arc<View>,
    token: i64,
    turn: oneshot::Receiver<Turn>,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut state = self.view.lock();
        state.waiters.remove(&self.token);
        state.used = Instant::now();
    }
}

/// One waiter reads the line for all; if it is interrupted, another must.
struct Reading<'a> {
    view: &'a View,
    since: i64,
    epoch: u64,
    done: bool,
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        if !self.done {
            let mut state = self.view.lock();
            if state.epoch == self.epoch && state.stage == Stage::Reading {
                state.stage = Stage::Stale {
                    since: self.since,
                    epoch: self.epoch,
                };
            }
            state.finish_flight();
            drop(state);
            self.view.changed.notify_waiters();
        }
    }
}

/// A key of this client, waiting or holding.
struct Ours {
    token: Option<i64>,
    alarm: Alarm,
}

struct State {
    stage: Stage,
    /// Counts the streams: what was asked on one says nothing about the next.
    epoch: u64,
    watch: Option<Watch>,
    /// The revision of the last complete reading.
    known_at: i64,
    live: BTreeMap<i64, Key>,
    /// Those of them that write.
    writers: BTreeSet<i64>,
    revision_of: HashMap<Key, i64>,
    /// Deletions that may be ahead of a list in flight.
    early: HashMap<Key, i64>,
    /// Writers that became readers, which a list in flight may not know.
    downgraded: HashSet<i64>,
    in_flight: usize,
    waiters: BTreeMap<i64, oneshot::Sender<Turn>>,
    ours: HashMap<Key, Ours>,
    far_streak: u32,
    used: Instant,
    /// The history that this was read from is lost: nothing is granted by it any more.
    lost: bool,
}

impl Default for State {
    fn default() -> Self {
        Self {
            stage: Stage::Closed,
            epoch: 0,
            watch: None,
            known_at: 0,
            live: BTreeMap::new(),
            writers: BTreeSet::new(),
            revision_of: HashMap::new(),
            early: HashMap::new(),
            downgraded: HashSet::new(),
            in_flight: 0,
            waiters: BTreeMap::new(),
            ours: HashMap::new(),
            far_streak: 0,
            used: Instant::now(),
            lost: false,
        }
    }
}

impl State {
    /// Raises every alarm and fails every waiter: what stands here stood in a history that is lost.
    fn forget(&mut self) {
        self.close();
        self.lost = true;
        for (_, ours) in self.ours.drain() {
            ours.alarm.raise(LossReason::Revoked);
        }
        for (_, waiter) in std::mem::take(&mut self.waiters) {
            let _ = waiter.send(Turn::Gone); // it may have left
        }
    }

    fn merge(&mut self, list: impl IntoIterator<Item = Stander>) {
        for Stander { key, created, side } in list {
            // Whoever once reads never writes again, so this is news however old the list.
            if side == Side::Read {
                self.writers.remove(&created);
            }
            // What was complete at a revision knows all that was created until then: a list that
            // was read before, and arrives only now, may show the dead.
            if self.stage == Stage::Complete && created <= self.known_at {
                continue;
            }
            if self
                .early
                .get(&key)
                .is_some_and(|deleted| *deleted > created)
            {
                continue;
            }
            match self.revision_of.get(&key) {
                Some(known) if *known >= created => continue,
                Some(known) => {
                    self.writers.remove(known);
                    self.live.remove(known);
                }
                None => {}
            }
            self.revision_of.insert(key.clone(), created);
            self.live.insert(created, key);
            if side == Side::Write && !self.downgraded.contains(&created) {
                self.writers.insert(created);
            }
        }
    }

    fn downgraded(&mut self, created: i64) {
        if self.in_flight > 0 {
            self.downgraded.insert(created);
        }
        self.writers.remove(&created);
    }

    fn remove(&mut self, created: i64) {
        self.writers.remove(&created);
        if let Some(key) = self.live.remove(&created)
            && self.revision_of.get(&key) == Some(&created)
        {
            self.revision_of.remove(&key);
        }
        if let Some(waiter) = self.waiters.remove(&created) {
            let _ = waiter.send(Turn::Gone); // it may have left
        }
    }

    fn deleted(&mut self, key: &[u8], revision: i64) {
        if self.in_flight > 0 {
            let early = self.early.entry(key.to_vec()).or_default();
            *early = revision.max(*early);
        }
        if let Some(created) = self.revision_of.get(key).copied()
            && created < revision
        {
            self.remove(created);
        }
        // Our own release forgets the key before it deletes it: this was somebody else.
        let ours = self.ours.get(key).and_then(|ours| ours.token);
        if ours.is_some_and(|token| token < revision)
            && let Some(ours) = self.ours.remove(key)
        {
            ours.alarm.raise(LossReason::Revoked);
        }
    }

    /// Wakes the first in line, and every reader before the first writer.
    fn wake_head(&mut self) {
        if self.stage != Stage::Complete {
            return;
        }
        let head = self.live.first_key_value().map(|(created, _)| *created);
        let first_writer = self.writers.first().copied();
        while let Some(waiter) = self.waiters.first_entry() {
            let token = *waiter.key();
            if Some(token) != head && first_writer.is_some_and(|writer| writer <= token) {
                return;
            }
            let _ = waiter.remove().send(Turn::Head); // it may have left
        }
    }

    fn finish_flight(&mut self) {
        self.in_flight -= 1;
        if self.in_flight == 0 {
            self.early.clear();
            self.downgraded.clear();
        }
    }

    fn close(&mut self) {
        self.stage = Stage::Closed;
        self.epoch += 1;
        self.watch = None;
        self.live.clear();
        self.writers.clear();
        self.revision_of.clear();
    }
}

/// What is known of a line near its head.
#[derive(Default)]
struct View {
    state: Mutex<State>,
    changed: Notify,
}

impl View {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stage(&self) -> Stage {
        self.lock().stage
    }

    /// Adds a waiter and what its transaction told of the line.
    fn join(self: &Arc<Self>, placed: &Placed) -> Waiting {
        let (sender, turn) = oneshot::channel();
        let mut state = self.lock();
        state.far_streak = 0;
        state.merge(placed.list.iter().cloned());
        if !state.lost && state.live.contains_key(&placed.token) {
            state.waiters.insert(placed.token, sender);
        } else {
            let _ = sender.send(Turn::Gone);
        }
        state.wake_head();
        drop(state);
        Waiting {
            view: Arc::clone(self),
            token: placed.token,
            turn,
        }
    }

    fn far_wait(&self) {
        let mut state = self.lock();
        state.far_streak += 1;
        if state.far_streak >= FAR_STREAK
            && state.waiters.is_empty()
            && state.stage != Stage::Closed
        {
            state.close();
        }
    }

    fn start_reading(&self, epoch: u64) -> bool {
        let mut state = self.lock();
        let mine = matches!(state.stage, Stage::Stale { epoch: current, .. } if current == epoch);
        if mine {
            state.stage = Stage::Reading;
            state.in_flight += 1;
        }
        mine
    }

    /// Takes over a list of the whole line, read at `revision`. Says no if the stream it was read
    /// for has broken since.
    fn complete(&self, epoch: u64, revision: i64, list: Vec<Stander>) -> bool {
        let mut state = self.lock();
        if state.epoch != epoch || state.stage != Stage::Reading {
            return false;
        }
        let listed: HashSet<i64> = list.iter().map(|stander| stander.created).collect();
        let gone: Vec<i64> = state
            .live
            .range(..=revision)
            .map(|(created, _)| *created)
            .filter(|created| !listed.contains(created))
            .collect();
        for created in gone {
            state.remove(created);
        }
        state.merge(list);
        state.finish_flight();
        state.stage = Stage::Complete;
        state.known_at = revision;
        state.wake_head();
        drop(state);
        self.changed.notify_waiters();
        true
    }
}

impl Sink for View {
    fn opened(&self, watch: i64, revision: i64) {
        let mut state = self.lock();
        // A watch that was closed and replaced may still be answered: it is of no use any more.
        let current = state.watch.as_ref().is_some_and(|own| own.id() == watch);
        if current && state.stage == Stage::Opening {
            state.stage = Stage::Stale {
                since: revision,
                epoch: state.epoch,
            };
        }
        drop(state);
        self.changed.notify_waiters();
    }

    fn put(&self, kv: &PbKeyValue) {
        if rewritten(kv) && sides::reads(&kv.value) {
            self.lock().downgraded(kv.create_revision);
        }
    }

    fn deleted(&self, deletions: &[(&[u8], i64)], whole: bool) {
        let mut state = self.lock();
        for &(key, revision) in deletions {
            state.deleted(key, revision);
        }
        // Only now: who seems to be at the head after the first deletion may go with the second.
        if whole {
            state.wake_head();
        }
        if state.waiters.is_empty()
            && state.ours.is_empty()
            && state.in_flight == 0
            && state.used.elapsed() > IDLE
        {
            state.close();
        }
    }

    fn broken(&self) {
        let mut state = self.lock();
        if state.stage != Stage::Closed {
            state.epoch += 1;
            state.stage = Stage::Opening;
        }
        drop(state);
        self.changed.notify_waiters();
    }
}

/// A standing watch on one key.
struct Point {
    key: Key,
    /// Since which revision nothing is missed, if so; and the last deletion or rewrite seen.
    state: Mutex<(Option<i64>, i64)>,
    changed: Notify,
}

impl Point {
    fn state(&self) -> (Option<i64>, i64) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, change: impl FnOnce(&mut (Option<i64>, i64))) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_waiters();
    }
}

impl Sink for Point {
    fn opened(&self, _watch: i64, revision: i64) {
        self.update(|state| state.0 = Some(revision));
    }

    fn put(&self, kv: &PbKeyValue) {
        if rewritten(kv) {
            self.update(|state| state.1 = state.1.max(kv.mod_revision));
        }
    }

    fn deleted(&self, deletions: &[(&[u8], i64)], _whole: bool) {
        let newest = deletions.iter().map(|(_, revision)| *revision).max();
        self.update(|state| state.1 = state.1.max(newest.unwrap_or(0)));
    }

    fn broken(&self) {
        self.update(|state| state.0 = None);
    }
}

/// Whether a key that was there was written once more.
fn rewritten(kv: &PbKeyValue) -> bool {
    kv.create_revision < kv.mod_revision
}

type BySides = HashMap<(String, Sides), Arc<Line>>;

/// The lines of one client.
pub(crate) struct Lines {
    wire: Arc<Wire>,
    watcher: Arc<Watcher>,
    known: Arc<Known>,
}

struct Known(Mutex<(BySides, usize)>);

impl Known {
    fn lock(&self) -> MutexGuard<'_, (BySides, usize)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Forget for Known {
    fn forget(&self) {
        // Those who come now find lines of the present history.
        let lines = std::mem::take(&mut self.lock().0);
        lines.values().for_each(|line| line.forget());
    }
}

/// Idle lines are looked for when their number has doubled, and at least this many are there.
const SWEEP_AT: usize = 128;

impl Lines {
    pub(crate) fn new(wire: Arc<Wire>) -> Self {
        let watcher = Arc::new(Watcher::start(Arc::clone(&wire)));
        let known = Arc::new(Known(Mutex::new((HashMap::new(), SWEEP_AT))));
        let resting: Weak<dyn Forget> = Arc::downgrade(&(Arc::clone(&known) as Arc<dyn Forget>));
        wire.history().rests(resting);
        Self {
            wire,
            watcher,
            known,
        }
    }

    /// The watch stream that the lines share.
    pub(crate) fn watcher(&self) -> Arc<Watcher> {
        Arc::clone(&self.watcher)
    }

    /// The line under `prefix`.
    pub(crate) fn line(&self, prefix: String, sides: Sides) -> Arc<Line> {
        let mut guard = self.known.lock();
        let (lines, sweep_at) = &mut *guard;
        if lines.len() >= *sweep_at {
            // A line that somebody has in hand must stay: two lines of one prefix would not see
            // each other's deletions.
            lines.retain(|_, line| Arc::strong_count(line) > 1 || !line.is_idle());
            *sweep_at = (lines.len() * 2).max(SWEEP_AT);
        }
        let key = (prefix, sides);
        if let Some(line) = lines.get(&key) {
            return Arc::clone(line);
        }
        let line = Arc::new(Line::new(
            Arc::clone(&self.wire),
            Arc::clone(&self.watcher),
            key.0.clone(),
            sides,
        ));
        lines.insert(key, Arc::clone(&line));
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A view whose watch, number 1, was asked for.
    fn opening() -> Arc<View> {
        let view = Arc::<View>::default();
        let mut state = view.lock();
        state.stage = Stage::Opening;
        state.watch = Some(Watch::unconnected(1));
        drop(state);
        view
    }

    fn read(view: &View, revision: i64, list: &[(&str, i64)]) {
        let Stage::Stale { epoch, .. } = view.stage() else {
            panic!("{:?}", view.stage());
        };
        assert!(view.start_reading(epoch));
        assert!(view.complete(epoch, revision, standers(list)));
    }

    /// Those whose name begins with `r` read.
    fn standers(list: &[(&str, i64)]) -> Vec<Stander> {
        let stander = |(key, created): &(&str, i64)| Stander {
            key: key.as_bytes().to_vec(),
            created: *created,
            side: match key.starts_with('r') {
                true => Side::Read,
                false => Side::Write,
            },
        };
        list.iter().map(stander).collect()
    }

    fn placed(token: i64, list: &[(&str, i64)]) -> Placed {
        let list = standers(list);
        let own = list.iter().find(|stander| stander.created == token);
        Placed {
            side: own.map_or(Side::Write, |own| own.side),
            token,
            read_at: token,
            list,
            more: false,
        }
    }

    fn downgrade(view: &View, created: i64, revision: i64) {
        let kv = PbKeyValue {
            create_revision: created,
            mod_revision: revision,
            value: b"r 1".to_vec(),
            ..PbKeyValue::default()
        };
        view.put(&kv);
        view.deleted(&[], true);
    }

    #[test]
    fn readers_are_granted_up_to_the_first_writer() {
        let view = opening();
        view.opened(1, 10);
        let line = [("w", 5), ("r1", 6), ("r2", 7), ("x", 8), ("r3", 9)];
        read(&view, 11, &line);
        let join = |token| view.join(&placed(token, &line));
        let (mut r1, mut r2, mut x, mut r3) = (join(6), join(7), join(8), join(9));
        assert!(r1.turn.try_recv().is_err());
        view.deleted(&[(b"w", 12)], true);
        assert!(matches!(r1.turn.try_recv(), Ok(Turn::Head)));
        assert!(matches!(r2.turn.try_recv(), Ok(Turn::Head)));
        view.deleted(&[(b"r1", 13)], true);
        assert!(x.turn.try_recv().is_err());
        assert!(r3.turn.try_recv().is_err());
        view.deleted(&[(b"x", 14)], true);
        assert!(matches!(r3.turn.try_recv(), Ok(Turn::Head)));
    }

    #[test]
    fn a_downgrade_lets_the_readers_in_and_no_writer() {
        let view = opening();
        view.opened(1, 10);
        let line = [("w", 5), ("r1", 6), ("x", 8)];
        read(&view, 11, &line);
        let (mut r1, mut x) = (view.join(&placed(6, &line)), view.join(&placed(8, &line)));
        downgrade(&view, 5, 12);
        assert!(matches!(r1.turn.try_recv(), Ok(Turn::Head)));
        view.deleted(&[(b"r1", 13)], true);
        assert!(x.turn.try_recv().is_err());
        view.deleted(&[(b"w", 14)], true);
        assert!(matches!(x.turn.try_recv(), Ok(Turn::Head)));
    }

    #[test]
    fn a_list_older_than_a_downgrade_does_not_undo_it() {
        let view = opening();
        view.opened(1, 10);
        read(&view, 11, &[]);
        view.lock().in_flight += 1;
        downgrade(&view, 12, 14);
        let mut r1 = view.join(&placed(13, &[("r1", 13), ("w", 12)]));
        assert!(matches!(r1.turn.try_recv(), Ok(Turn::Head)));
    }

    #[test]
    fn a_downgrade_missed_in_a_break_is_read() {
        let view = opening();
        view.opened(1, 10);
        let line = [("w", 5), ("r1", 6)];
        read(&view, 11, &line);
        let mut r1 = view.join(&placed(6, &line));
        view.broken();
        view.opened(1, 14);
        let Stage::Stale { epoch, .. } = view.stage() else {
            panic!("{:?}", view.stage());
        };
        assert!(view.start_reading(epoch));
        let mut list = standers(&line);
        list[0].side = Side::Read;
        assert!(view.complete(epoch, 15, list));
        assert!(matches!(r1.turn.try_recv(), Ok(Turn::Head)));
    }

    #[test]
    fn a_list_older_than_the_reading_does_not_raise_the_dead() {
        let view = opening();
        // `x` went at 11, before the watch stood; the answer that still lists it comes last.
        view.opened(1, 12);
        read(&view, 13, &[("a", 10)]);
        let mut waiting = view.join(&placed(10, &[("a", 10), ("x", 5)]));
        assert!(matches!(waiting.turn.try_recv(), Ok(Turn::Head)));
    }

    #[test]
    fn a_watch_that_was_replaced_does_not_open_the_view() {
        let view = opening();
        view.lock().watch = Some(Watch::unconnected(2));
        view.opened(1, 10);
        assert_eq!(view.stage(), Stage::Opening);
        view.opened(2, 12);
        assert!(matches!(view.stage(), Stage::Stale { since: 12, .. }));
    }

    #[test]
    fn nobody_is_granted_between_a_break_and_the_next_reading() {
        let view = opening();
        view.opened(1, 10);
        read(&view, 11, &[("x", 5), ("a", 9)]);
        let mut waiting = view.join(&placed(9, &[("a", 9), ("x", 5)]));
        view.broken();
        view.deleted(&[(b"x", 12)], true); // a straggler of the old stream
        assert!(waiting.turn.try_recv().is_err());
        view.opened(1, 14);
        read(&view, 15, &[("a", 9)]);
        assert!(matches!(waiting.turn.try_recv(), Ok(Turn::Head)));
    }

    #[test]
    fn a_waiter_whose_key_went_during_a_break_hears_of_it() {
        let view = opening();
        view.opened(1, 10);
        read(&view, 11, &[("x", 5), ("a", 9)]);
        let mut waiting = view.join(&placed(9, &[("a", 9), ("x", 5)]));
        view.broken();
        view.opened(1, 14);
        read(&view, 15, &[("x", 5)]);
        assert!(matches!(waiting.turn.try_recv(), Ok(Turn::Gone)));
    }

    #[test]
    fn a_late_deletion_of_an_earlier_incarnation_changes_nothing() {
        let view = opening();
        view.opened(1, 10);
        read(&view, 20, &[("x", 15), ("a", 18)]);
        let mut waiting = view.join(&placed(18, &[("a", 18), ("x", 15)]));
        view.deleted(&[(b"x", 12)], true);
        view.deleted(&[(b"a", 13)], true);
        assert!(waiting.turn.try_recv().is_err());
        view.deleted(&[(b"x", 21)], true);
        assert!(matches!(waiting.turn.try_recv(), Ok(Turn::Head)));
    }

    #[test]
    fn who_goes_with_its_predecessor_is_not_granted() {
        let view = opening();
        view.opened(1, 10);
        read(&view, 11, &[("x", 5), ("a", 9)]);
        let mut waiting = view.join(&placed(9, &[("a", 9), ("x", 5)]));
        view.deleted(&[(b"x", 12), (b"a", 12)], true);
        assert!(matches!(waiting.turn.try_recv(), Ok(Turn::Gone)));
    }

    #[test]
    fn a_split_revision_wakes_nobody_before_its_last_part() {
        let view = opening();
        view.opened(1, 10);
        read(&view, 11, &[("x", 5), ("a", 9)]);
        let mut waiting = view.join(&placed(9, &[("a", 9), ("x", 5)]));
        view.deleted(&[(b"x", 12)], false);
        assert!(waiting.turn.try_recv().is_err());
        view.deleted(&[(b"a", 12)], true);
        assert!(matches!(waiting.turn.try_recv(), Ok(Turn::Gone)));
    }

    #[test]
    fn a_deletion_that_overtakes_the_answer_is_remembered() {
        let view = opening();
        view.opened(1, 10);
        read(&view, 11, &[("x", 5)]);
        view.lock().in_flight += 1;
        view.deleted(&[(b"x", 13)], true);
        let mut waiting = view.join(&placed(12, &[("a", 12), ("x", 5)]));
        assert!(matches!(waiting.turn.try_recv(), Ok(Turn::Head)));
    }
}
