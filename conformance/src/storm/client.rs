//! The clients of a run, and what is done to them.

use std::borrow::Cow;
use std::collections::HashMap;
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tenure_core::{Result, Session, SessionId, Store};
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::ambush::Ambush;
use super::body::Body;
use super::faults::{Fault, Kind};
use super::gates::{GateAnswer, GateCall};
use super::leaders::Office;
use super::locks::Lock;
use super::progress::{Occupancy, Progress};
use super::shelf::Shelf;
use super::{Earlier, Evidence, Histories, Plan, Said};
use crate::case::Outcome;
use crate::cases::{Random, open_on};
use crate::checkers::jsonl::nanos;
use crate::checkers::list_append::{Keys, Lists, Step};
use crate::checkers::queue::{QueueAnswer, QueueCall};
use crate::checkers::rw_lock::Side;
use crate::checkers::{Journal, What};
use crate::harness::{Harness, Link, Need, Operator};

/// Of each role so many.
const ROLES: &[(Role, usize)] = &[
    (Role::Holder, 6),
    (Role::Transactor, 4),
    (Role::Producer, 2),
    (Role::Consumer, 3),
    (Role::Candidate, 3),
    (Role::Observer, 1),
    (Role::ReaderWriter, 3),
    (Role::Gatekeeper, 2),
    (Role::Passer, 2),
    (Role::Participant, 4),
];

/// How far a clock jumps forward at least.
const FAR: Duration = Duration::from_secs(120);

/// All of them, by name.
const LOCKS: [&str; 2] = ["lock one", "lock two"];

/// How many clients there are.
pub(super) fn clients() -> usize {
    ROLES.iter().map(|(_, count)| count).sum()
}

/// The numbers of those who have this role.
pub(super) fn of_role(wanted: Role) -> impl Iterator<Item = usize> {
    let all = ROLES.iter();
    let roles = all.flat_map(|(role, count)| std::iter::repeat_n(*role, *count));
    let numbered = roles.enumerate();
    numbered.filter_map(move |(number, role)| (role == wanted).then_some(number))
}

/// Whether all of a role stand in one line, so that behind a place that nobody gives up none of them gets on.
const fn in_one_line(role: Role) -> bool {
    matches!(role, Role::Candidate | Role::ReaderWriter)
}

/// Who proves, by getting on, that one who waits does so in vain: those in the same role; everybody, where that
/// role is one line, or one client.
fn witnesses(role: Role, client: usize) -> impl Iterator<Item = usize> {
    let alike: Vec<usize> = of_role(role).collect();
    let apart = alike.len() > 1 && !in_one_line(role);
    let known = (0..clients()).filter(move |other| !apart || alike.contains(other));
    known.filter(move |other| *other != client)
}

/// How often they have to get on for that. In one line that is more than those before may take: some twenty steps
/// one after the other, of which everybody else does two or three to get on once.
fn enough(role: Role) -> usize {
    const GET_ON: usize = 12;
    match in_one_line(role) {
        true => GET_ON * 2 * (clients() - 1),
        false => GET_ON,
    }
}

/// What a client does all the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Holder,
    Transactor,
    Producer,
    Consumer,
    Candidate,
    Observer,
    ReaderWriter,
    /// Holds the barrier.
    Gatekeeper,
    /// Waits for the barrier.
    Passer,
    /// Enters the double barrier.
    Participant,
}

/// What all clients of a run share.
pub(super) struct Shared {
    pub(super) plan: Plan,
    pub(super) said: Said,
    pub(super) ttl: Duration,
    /// When the histories began.
    start: Instant,
    pub(super) stop: AtomicBool,
    /// There are as many operations as there have to be: no need to hurry.
    pub(super) enough: AtomicBool,
    pub(super) locks: Vec<Lock>,
    pub(super) office: Office,
    pub(super) shelf: Shelf,
    /// The last is the present one.
    epochs: Mutex<Vec<Arc<Epoch>>>,
    pub(super) next_item: AtomicU64,
    /// Names the sessions of consumers.
    pub(super) shifts: AtomicU64,
    pub(super) lock_operations: AtomicUsize,
    pub(super) transactions: AtomicUsize,
    pub(super) queue_operations: AtomicUsize,
    pub(super) election_operations: AtomicUsize,
    pub(super) rw_operations: AtomicUsize,
    pub(super) gate_operations: AtomicUsize,
    /// The store has no barriers.
    pub(super) no_gates: AtomicBool,
    pub(super) gates: Journal<GateCall, GateAnswer>,
    /// Commits under a lock whose fate is unknown. They stand in no journal.
    pub(super) unknown_commits: AtomicUsize,
    sessions: Mutex<Vec<Option<SessionId>>>,
    /// What a client saw that must not be.
    broken: Mutex<Option<String>>,
    /// Times in which the store was killed, and did not keep what was held.
    killed: Mutex<Vec<(Duration, Duration)>>,
    /// When something went wrong, each time until all was as before.
    troubles: Mutex<Vec<Trouble>>,
    /// Who may believe for longer than it holds, and when: somebody ended its lease.
    excused: Mutex<Vec<Excuse>>,
    pub(super) progress: Progress,
    /// Deliveries that were valid although a newer one of their item was in other hands.
    pub(super) doubled: Mutex<Vec<Doubled>>,
    /// The newest delivery of each item, and since when it was in hand.
    pub(super) in_hand: Mutex<HashMap<u64, (u64, Duration)>>,
    /// By how much the store's clock was set back, all in all: the dead keep so much longer what they had.
    set_back: Mutex<Duration>,
}

/// A time in which a client may believe for longer than it holds; every client, if none is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Excuse {
    pub(super) client: Option<usize>,
    #[serde(with = "nanos")]
    pub(super) from: Duration,
    #[serde(with = "nanos")]
    pub(super) to: Duration,
}

impl Excuse {
    pub(super) fn covers(&self, client: usize, at: Duration) -> bool {
        self.client.is_none_or(|excused| excused == client) && (self.from..=self.to).contains(&at)
    }

    /// Whether it covers any moment from `called` to `ended`.
    pub(super) fn meets(&self, client: usize, called: Duration, ended: Duration) -> bool {
        self.client.is_none_or(|excused| excused == client)
            && self.from <= ended
            && called <= self.to
    }
}

/// A time in which something went wrong: for one client, or for the store or the network of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Trouble {
    #[serde(default)]
    pub(super) client: Option<usize>,
    #[serde(with = "nanos")]
    pub(super) from: Duration,
    #[serde(with = "nanos")]
    pub(super) to: Duration,
}

impl Trouble {
    /// Whether it has a moment in common with the time from `from` to `to`.
    pub(super) fn meets(&self, from: Duration, to: Duration) -> bool {
        self.from <= to && from <= self.to
    }
}

/// A delivery that its session counted as valid, and a newer one of the same item before that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Doubled {
    pub(super) client: usize,
    #[serde(with = "nanos")]
    pub(super) at: Duration,
    pub(super) item: u64,
    pub(super) tokens: [u64; 2],
}

/// The time between two events in which the store may forget what it has acknowledged.
///
/// Clients use other lists and another queue in each, and what they saw there is judged as far as it had
/// ended before the event. What follows from tokens has no epochs: it holds across them.
pub(super) struct Epoch {
    number: usize,
    pub(super) keys: Mutex<Keys>,
    pub(super) lists: Journal<Vec<Step>, Lists>,
    pub(super) items: Journal<QueueCall, QueueAnswer>,
    /// How many items are in the queue, as far as clients know.
    pub(super) depth: AtomicI64,
    /// The greatest token of each lock under which a commit was acknowledged.
    pub(super) committed: [AtomicU64; LOCKS.len()],
    /// When the event began by which it ended.
    closed: OnceLock<Duration>,
}

impl Epoch {
    fn new(number: usize, start: Instant) -> Self {
        Self {
            number,
            keys: Mutex::new(Keys::new(6, 48)),
            lists: Journal::since(start),
            items: Journal::since(start),
            depth: AtomicI64::new(0),
            committed: Default::default(),
            closed: OnceLock::new(),
        }
    }

    /// What `thing` is called in this epoch: as in no other.
    pub(super) fn name(&self, thing: &str) -> String {
        match self.number {
            0 => thing.to_owned(),
            number => format!("{thing}, epoch {number}"),
        }
    }

    /// Whether what is seen by now is judged.
    pub(super) fn is_open(&self) -> bool {
        self.closed.get().is_none()
    }
}

impl Shared {
    pub(super) fn new(plan: &Plan, said: Said, ttl: Duration) -> Self {
        let start = Instant::now();
        Self {
            plan: plan.clone(),
            said,
            ttl,
            start,
            stop: AtomicBool::new(false),
            enough: AtomicBool::new(false),
            locks: LOCKS.map(Lock::new).into(),
            office: Office::new(start),
            shelf: Shelf::new(),
            epochs: Mutex::new(vec![Arc::new(Epoch::new(0, start))]),
            next_item: AtomicU64::new(0),
            shifts: AtomicU64::new(0),
            lock_operations: AtomicUsize::new(0),
            transactions: AtomicUsize::new(0),
            queue_operations: AtomicUsize::new(0),
            election_operations: AtomicUsize::new(0),
            rw_operations: AtomicUsize::new(0),
            gate_operations: AtomicUsize::new(0),
            no_gates: AtomicBool::new(false),
            gates: Journal::since(start),
            unknown_commits: AtomicUsize::new(0),
            sessions: Mutex::new(vec![None; clients()]),
            broken: Mutex::default(),
            killed: Mutex::default(),
            troubles: Mutex::default(),
            excused: Mutex::default(),
            progress: Progress::new(clients()),
            doubled: Mutex::default(),
            in_hand: Mutex::default(),
            set_back: Mutex::default(),
        }
    }

    /// For as long as a client waits for one answer: a dead holder is gone by then, and another that came
    /// right after it.
    pub(super) fn patience(&self) -> Duration {
        self.ttl * 2 + self.late()
    }

    /// Since the histories began.
    pub(super) fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn epochs(&self) -> MutexGuard<'_, Vec<Arc<Epoch>>> {
        self.epochs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The present one. Whoever begins something asks anew, and ends it in the epoch in which it began.
    pub(super) fn epoch(&self) -> Arc<Epoch> {
        let epochs = self.epochs();
        Arc::clone(&epochs[epochs.len() - 1])
    }

    /// From now on the store may forget; clients go on with the names that they have until it is
    /// over.
    fn close_epoch(&self) {
        let _ = self.epoch().closed.set(self.start.elapsed());
    }

    /// The store has forgotten what it may forget.
    fn next_epoch(&self) {
        let mut epochs = self.epochs();
        let next = Epoch::new(epochs.len(), self.start);
        epochs.push(Arc::new(next));
    }

    fn counters(&self) -> [usize; 6] {
        let counters = [
            &self.lock_operations,
            &self.transactions,
            &self.queue_operations,
            &self.election_operations,
            &self.rw_operations,
            &self.gate_operations,
        ];
        counters.map(|counter| counter.load(Ordering::Relaxed))
    }

    /// How many operations came to an end.
    pub(super) fn done(&self) -> usize {
        self.counters().iter().sum()
    }

    /// Whether the store has nothing for this role.
    fn lacks(&self, role: Role) -> bool {
        matches!(role, Role::Gatekeeper | Role::Passer | Role::Participant)
            && self.no_gates.load(Ordering::Relaxed)
    }

    /// How much was achieved in the role in which that is least.
    pub(super) fn least(&self) -> usize {
        let achieved = self.progress.of_each();
        let mut achieved = achieved.into_iter();
        let by_role = ROLES
            .iter()
            .map(|(role, count)| (role, achieved.by_ref().take(*count).sum()))
            .filter(|(role, _)| !self.lacks(**role))
            .map(|(_, sum)| sum);
        by_role.min().unwrap_or_default()
    }

    pub(super) fn histories(&self) -> Histories {
        let epochs = self.epochs().clone();
        let earlier = |epoch: &Arc<Epoch>| {
            Some(Earlier {
                until: *epoch.closed.get()?,
                lists: epoch.lists.operations(),
                items: epoch.items.operations(),
            })
        };
        // One that is closed, and after which none began, has no successor to stand for the present.
        let present = epochs.last().filter(|epoch| epoch.is_open());
        let lists = present.map(|epoch| epoch.lists.operations());
        let items = present.map(|epoch| epoch.items.operations());
        Histories {
            locks: self.locks.iter().map(Lock::events).collect(),
            seat: self.office.seat.events(),
            words: self.office.words.operations(),
            shelf: self.shelf.events(),
            gates: self.gates.operations(),
            lists: lists.unwrap_or_default(),
            items: items.unwrap_or_default(),
            earlier: epochs.iter().filter_map(earlier).collect(),
            evidence: Evidence::default(),
        }
    }

    pub(super) fn broke(&self, what: String) {
        let mut broken = self.broken.lock().unwrap_or_else(PoisonError::into_inner);
        broken.get_or_insert(what);
    }

    pub(super) fn broken(&self) -> Option<String> {
        let broken = self.broken.lock().unwrap_or_else(PoisonError::into_inner);
        broken.clone()
    }

    fn set_back(&self, by: Duration) {
        *self.set_back.lock().unwrap_or_else(PoisonError::into_inner) += by;
    }

    /// How much later than its lease says a dead session may be gone.
    pub(super) fn late(&self) -> Duration {
        self.said.expiry + *self.set_back.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From `since` until the last deadline of a lease that was ended by now: belief ends with that. The rest
    /// is for clocks that were read one after the other.
    fn excuse(&self, client: Option<usize>, since: Duration) {
        const SPARE: Duration = Duration::from_millis(250);
        let mut excused = self.excused.lock().unwrap_or_else(PoisonError::into_inner);
        excused.push(Excuse {
            client,
            from: since.saturating_sub(SPARE),
            to: self.start.elapsed() + self.ttl + SPARE,
        });
    }

    /// No belief of anybody's is judged in this run.
    pub(super) fn never_believe(&self) {
        let mut excused = self.excused.lock().unwrap_or_else(PoisonError::into_inner);
        excused.push(Excuse {
            client: None,
            from: Duration::ZERO,
            to: Duration::MAX,
        });
    }

    pub(super) fn excused(&self) -> Vec<Excuse> {
        let excused = self.excused.lock().unwrap_or_else(PoisonError::into_inner);
        excused.clone()
    }

    pub(super) fn killed(&self) -> Vec<(Duration, Duration)> {
        let killed = self.killed.lock().unwrap_or_else(PoisonError::into_inner);
        killed.clone()
    }

    /// Something goes wrong since then. Until it is [over](Self::trouble_over), it does for ever.
    fn trouble(&self, client: Option<usize>, since: Duration) {
        let mut troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        troubles.push(Trouble {
            client,
            from: since,
            to: Duration::MAX,
        });
    }

    /// It is healed: what the dead have is free some time after this.
    fn trouble_over(&self) {
        let free = self.start.elapsed() + self.patience();
        let mut troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(trouble) = troubles.last_mut() {
            trouble.to = free;
        }
    }

    /// Whether nothing stood in the way of this client since then: not to its own process or link, nor to the store.
    pub(super) fn is_sound(&self, client: usize, since: Duration) -> bool {
        let troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        let met = |trouble: &Trouble| {
            trouble.client.is_none_or(|met| met == client) && trouble.meets(since, Duration::MAX)
        };
        !troubles.iter().any(met)
    }

    /// How many faults have met another client of this role since then.
    fn troubles_in(&self, role: Role, since: Duration) -> u32 {
        let troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        let met = |trouble: &&Trouble| {
            let client = trouble.client;
            trouble.meets(since, Duration::MAX)
                && client.is_some_and(|met| of_role(role).any(|one| one == met))
        };
        u32::try_from(troubles.iter().filter(met).count()).unwrap_or(u32::MAX)
    }

    pub(super) fn troubles(&self) -> Vec<Trouble> {
        let troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        troubles.clone()
    }

    fn session_of(&self, client: usize) -> Option<SessionId> {
        let sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.get(client).cloned().flatten()
    }

    /// The session of a client that was killed ends by itself.
    fn gone(&self, client: usize) {
        let sessions = self.sessions.lock();
        sessions.unwrap_or_else(PoisonError::into_inner)[client] = None;
    }

    fn note(&self, client: usize, what: &'static str) {
        let fault = || What::Fault(Cow::Borrowed(what));
        for lock in self.locks.iter().chain([&self.office.seat]) {
            lock.record(client, fault());
        }
        self.shelf.record(client, Side::Read, fault());
    }

    /// Where the holder of a lock, a leader, or one who is inside the read-write lock is waited for.
    fn ambush(&self, which: usize) -> &Ambush {
        let locks = self.locks.iter().chain([&self.office.seat]);
        let ambushes = locks.map(|lock| &lock.ambush);
        let mut ambushes = ambushes.chain([&self.shelf.ambush]);
        let count = self.locks.len() + 2;
        ambushes.nth(which % count).unwrap_or(&self.shelf.ambush)
    }

    /// The dead believe nothing.
    fn died(&self, client: usize) {
        self.locks.iter().for_each(|lock| lock.died(client));
        self.office.seat.died(client);
        self.shelf.died(client);
    }
}

/// One client, in one life of it.
pub(super) struct Client {
    pub(super) number: usize,
    pub(super) random: Random,
    pub(super) shared: Arc<Shared>,
    pub(super) store: Store,
    pub(super) session: Option<Session>,
    /// When its session was opened.
    opened: Duration,
    role: Role,
    cancel: Arc<Notify>,
}

impl Client {
    async fn run(mut self) {
        match self.role {
            Role::Holder => self.hold_locks().await,
            Role::Transactor => self.append_and_read().await,
            Role::Producer => self.produce().await,
            Role::Consumer => self.consume().await,
            Role::Candidate => self.stand().await,
            Role::Observer => self.look_on().await,
            Role::ReaderWriter => self.read_and_write().await,
            Role::Gatekeeper => self.keep_gate().await,
            Role::Passer => self.pass_gate().await,
            Role::Participant => self.take_part().await,
        }
        if let Some(session) = self.session.take() {
            // The TTL bounds the rest.
            let _ = tokio::time::timeout(self.shared.ttl, session.close()).await;
        }
    }

    pub(super) fn goes_on(&self) -> bool {
        !self.shared.stop.load(Ordering::Relaxed)
    }

    pub(super) fn patience(&self) -> Duration {
        self.shared.patience()
    }

    /// The session, or a new one if it was lost; none if the store cannot be reached just now.
    pub(super) async fn session(&mut self) -> Option<Session> {
        let valid = |session: &Session| session.is_valid();
        if self
            .session
            .as_ref()
            .is_some_and(|session| !session.is_valid())
        {
            self.lost("its session", self.opened);
        }
        if !self.session.as_ref().is_some_and(valid) {
            self.session = None;
            let ttl = self.shared.ttl;
            let opening = tokio::time::timeout(ttl * 2, open_on(&self.store, ttl)).await;
            self.session = opening.ok().and_then(Result::ok);
            self.opened = self.shared.now();
            let id = self.session.as_ref().map(|session| session.id().clone());
            let sessions = self.shared.sessions.lock();
            sessions.unwrap_or_else(PoisonError::into_inner)[self.number] = id;
        }
        if self.session.is_none() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.session.clone()
    }

    /// How much others achieved who prove by it that the machine is not too busy.
    fn of_others(&self) -> usize {
        let achieved = self.shared.progress.of_each();
        let others = witnesses(self.role, self.number);
        others.filter_map(|client| achieved.get(client)).sum()
    }

    /// Returns the answer, or `None` if patience ran out or the call was cancelled: its effect is unknown then.
    pub(super) async fn attempt<T>(&self, call: impl Future<Output = T>) -> Option<T> {
        self.attempt_in(None, call).await
    }

    /// The same for a call that waits in the line of `queue`. To wait in vain is a violation, if others get on: a
    /// machine may be too busy for anybody.
    pub(super) async fn attempt_in<T>(
        &self,
        queue: Option<&Occupancy>,
        call: impl Future<Output = T>,
    ) -> Option<T> {
        let (called, before) = (Instant::now(), self.of_others());
        let mut call = std::pin::pin!(call);
        let mut until = called + self.patience();
        for _ in 0..MOST_LOOKS {
            tokio::select! {
                biased;
                answer = &mut call => return Some(answer),
                () = self.cancel.notified() => return None,
                () = tokio::time::sleep_until(until) => {}
            }
            match self.waited(called, before, queue) {
                Waited::Enough => return None,
                Waited::InVain(others) => {
                    self.shared.broke(format!(
                        "client {} ({:?}) waited {:?} for an answer, in which nothing stood in its way, and others got on {others} times",
                        self.number, self.role, called.elapsed()
                    ));
                    return None;
                }
                Waited::NotLongEnough(more) => until = Instant::now() + more,
            }
        }
        None
    }

    /// Judges a wait: its client's network was sound, the store was up, and no known holder was in its way for as long
    /// as the dead may be, while others got on. Each fault that met another client of the same line may have left one
    /// more dead holder.
    fn waited(&self, called: Instant, before: usize, queue: Option<&Occupancy>) -> Waited {
        let patience = self.patience();
        if !self.goes_on() {
            return Waited::Enough;
        }
        let free = match queue.map(Occupancy::free_since) {
            None => called,
            Some(Some(since)) => since.max(called),
            Some(None) => return Waited::NotLongEnough(patience / 4),
        };
        let others = self.of_others() - before;
        let since = (self.shared.now() - called.elapsed()).saturating_sub(patience);
        let dead = match self.shared.progress.is_calm_since(called) {
            true => 0,
            false if self.shared.is_sound(self.number, since) => {
                self.shared.troubles_in(self.role, since)
            }
            false => return Waited::Enough,
        };
        let due = patience * (1 + dead);
        let waited = free.elapsed();
        if waited < due {
            return Waited::NotLongEnough(due - waited);
        }
        match others >= enough(self.role) {
            true => Waited::InVain(others),
            false => Waited::Enough,
        }
    }

    /// How long a holding lasts: a moment in most cases, some TTLs in a few, so many times rarer than usual. Waits
    /// for that.
    pub(super) async fn work(&mut self, rarer: u64) {
        let plan = &self.shared.plan;
        let (moment, lasting) = (Duration::from_millis(4) * plan.pace, plan.lasting);
        let ttl = self.shared.ttl;
        let period = match self.random.below(lasting * rarer) {
            // While all is well: what comes of it in trouble is over by then.
            0 if self.goes_on() => match self.random.below(6) {
                0 if self.shared.plan.one_thread => ttl * 10 + self.random.up_to(ttl),
                _ => ttl + self.random.up_to(ttl * 2),
            },
            _ => self.random.up_to(moment),
        };
        let until = Instant::now() + period;
        while Instant::now() < until && self.goes_on() {
            let slice = (until - Instant::now()).min(ttl / 8);
            tokio::time::sleep(slice).await;
        }
    }

    /// What the client has had since then was lost. On one thread, where no machine is too busy to renew, something must
    /// have been in its way.
    pub(super) fn lost(&self, what: &str, since: Duration) {
        let since = since.saturating_sub(self.patience());
        if self.shared.plan.one_thread && self.shared.is_sound(self.number, since) {
            self.shared.broke(format!(
                "client {} ({:?}) lost {what} at {:.3?}, though nothing stood in its way",
                self.number,
                self.role,
                self.shared.now()
            ));
        }
    }

    pub(super) fn achieved(&self) {
        self.shared.progress.achieved(self.number);
    }

    /// A moment between two operations.
    pub(super) async fn think(&mut self) {
        let pace = self.shared.plan.pace;
        let most = match self.shared.enough.load(Ordering::Relaxed) {
            false => Duration::from_millis(4) * pace,
            true => Duration::from_millis(60 + 4 * u64::from(pace)),
        };
        tokio::time::sleep(self.random.up_to(most)).await;
    }
}

/// How many times a wait is extended because known holders keep its object.
const MOST_LOOKS: usize = 100;

/// What a wait has come to.
enum Waited {
    /// It is given up.
    Enough,
    /// Others got on so often.
    InVain(usize),
    /// It goes on for so long.
    NotLongEnough(Duration),
}

/// A connection as a client has it, with a link to be disturbed where there is one.
async fn connect(harness: &dyn Harness) -> Result<(Store, Option<Box<dyn Link>>)> {
    if harness.offers().contains(&Need::Silence) {
        let linked = harness.linked().await?;
        return Ok((linked.store, Some(linked.link)));
    }
    Ok((harness.connect().await?, None))
}

/// Has the first of these sessions ended of which the store says that it did. Says of whose that was asked, one
/// after the other, and whether the last of them is the one.
async fn end_one(
    operator: &dyn Operator,
    sessions: impl Iterator<Item = (usize, SessionId)>,
) -> (Vec<usize>, bool) {
    let mut asked = Vec::new();
    for (client, session) in sessions {
        asked.push(client);
        if operator.revoke(&session).await.is_ok() {
            return (asked, true);
        }
    }
    (asked, false)
}

/// Who is there, whatever becomes of their processes.
pub(super) struct Crew(Vec<Hand>);

struct Hand {
    number: usize,
    role: Role,
    /// Of this life.
    link: Option<Box<dyn Link>>,
    cancel: Arc<Notify>,
    seed: u64,
    lives: u64,
    body: Option<Body>,
    /// Tells of the end of this life, unless it breaks.
    ended: Option<oneshot::Receiver<()>>,
}

impl Hand {
    /// A new life, with a process and a connection of its own.
    async fn begin(
        &mut self,
        harness: &dyn Harness,
        shared: &Arc<Shared>,
    ) -> std::result::Result<(), Outcome> {
        let body = Body::start(shared.plan.one_thread)?;
        let connecting = body.lend(connect(harness));
        let connected = tokio::time::timeout(shared.plan.hang, connecting).await;
        let connected = connected
            .map_err(|_| Outcome::not_run("connecting a client does not end"))?
            .map_err(|error| {
                Outcome::not_run(format!(
                    "no connection for a client: {error}",
                    error = error.chain()
                ))
            })?;
        let store;
        (store, self.link) = connected;
        self.lives += 1;
        let client = Client {
            number: self.number,
            random: Random::seeded(self.seed.wrapping_add(self.lives)),
            shared: Arc::clone(shared),
            store,
            session: None,
            opened: Duration::ZERO,
            role: self.role,
            cancel: Arc::clone(&self.cancel),
        };
        let (tell, ended) = oneshot::channel();
        body.start_in(async move {
            client.run().await;
            let _ = tell.send(());
        });
        (self.body, self.ended) = (Some(body), Some(ended));
        Ok(())
    }

    fn broken(&self) -> Outcome {
        Outcome::violated(format!("client {} ({:?}) panicked", self.number, self.role))
    }
}

impl Drop for Hand {
    fn drop(&mut self) {
        if let Some(body) = &self.body {
            body.abandon();
        }
    }
}

impl Crew {
    /// Everybody connects and begins to work.
    pub(super) async fn sign_on(
        harness: &dyn Harness,
        shared: &Arc<Shared>,
        seed: u64,
    ) -> std::result::Result<Self, Outcome> {
        let mut random = Random::seeded(seed);
        let mut crew = Vec::new();
        for (role, count) in ROLES {
            for _ in 0..*count {
                crew.push(Hand {
                    number: crew.len(),
                    role: *role,
                    link: None,
                    cancel: Arc::default(),
                    seed: random.next(),
                    lives: 0,
                    body: None,
                    ended: None,
                });
            }
        }
        for hand in &mut crew {
            hand.begin(harness, shared).await?;
        }
        Ok(Self(crew))
    }

    /// Waits until everybody has achieved something more.
    pub(super) async fn all_get_on(
        &mut self,
        shared: &Shared,
        limit: Duration,
    ) -> std::result::Result<(), Outcome> {
        let progress = || (shared.progress.of_each(), shared.progress.shown());
        let before = progress();
        let until = Instant::now() + limit;
        loop {
            self.all_at_work(shared)?;
            let now = progress();
            let idle = |hand: &&Hand| match hand.role {
                role if shared.lacks(role) => false,
                Role::Observer => now.1.get(hand.number) == before.1.get(hand.number),
                _ => now.0.get(hand.number) == before.0.get(hand.number),
            };
            let mut idle = self.0.iter().filter(idle);
            let Some(hand) = idle.next() else {
                return Ok(());
            };
            if Instant::now() >= until {
                // Not judged yet: see `is_gone`.
                return Err(Outcome::cut_short(format!(
                    "client {} ({:?}) achieved nothing in {limit:?} after all was healed",
                    hand.number, hand.role
                )));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Whether nobody has broken down, or seen what must not be.
    pub(super) fn all_at_work(&mut self, shared: &Shared) -> std::result::Result<(), Outcome> {
        if let Some(broken) = shared.broken() {
            return Err(Outcome::violated(broken));
        }
        for hand in &mut self.0 {
            if let Some(ended) = &mut hand.ended
                && ended.try_recv() == Err(oneshot::error::TryRecvError::Closed)
            {
                return Err(hand.broken());
            }
        }
        Ok(())
    }

    /// Waits until all of these have come to an end.
    pub(super) async fn sign_off(
        &mut self,
        limit: Duration,
        who: impl Fn(Role) -> bool,
    ) -> std::result::Result<(), Outcome> {
        let until = tokio::time::Instant::now() + limit;
        for hand in self.0.iter_mut().filter(|hand| who(hand.role)) {
            if let Some(ended) = hand.ended.take() {
                match tokio::time::timeout_at(until, ended).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => return Err(hand.broken()),
                    Err(_) => {
                        return Err(Outcome::violated(format!(
                            "client {} ({:?}) hangs: {limit:?} after all was healed its last call has not ended",
                            hand.number, hand.role
                        )));
                    }
                }
            }
        }
        Ok(())
    }

    /// One fault, from its beginning to its end. Says whether there was anybody whom it met.
    pub(super) async fn suffer(
        &mut self,
        harness: &dyn Harness,
        shared: &Arc<Shared>,
        fault: Fault,
        limit: Duration,
    ) -> std::result::Result<bool, Outcome> {
        let anybody = usize::try_from(fault.client % self.0.len() as u64).unwrap_or_default();
        let ambush = shared.ambush(anybody);
        let caught = match fault.holder {
            true => ambush.lay(shared.ttl).await,
            false => None,
        };
        let client = caught.unwrap_or(anybody);
        let since = shared.start.elapsed();
        shared.note(client, fault.kind.word());
        shared.trouble(fault.kind.is_about_one().then_some(client), since);
        let forgets = shared.said.forgets(fault.kind) && !shared.plan.durable;
        if forgets {
            shared.close_epoch();
        }
        let suffering = self.bring_about(harness, shared, fault, client);
        let suffered = tokio::time::timeout(limit, suffering).await;
        ambush.lift();
        let met = suffered.map_err(|_| match fault.kind {
            // Nothing but the client itself can keep it from that.
            Kind::ClientPaused => Outcome::violated(format!(
                "client {client} does not stand still: it blocks its thread for {limit:?}"
            )),
            kind => Outcome::not_run(format!("{kind:?} does not end")),
        })??;
        shared.note(client, "healed");
        shared.trouble_over();
        if forgets {
            shared.next_epoch();
        }
        let Some(met) = met else {
            return Ok(false);
        };
        if fault.kind.ends_processes() && shared.said.restart_frees {
            let killed = shared.killed.lock();
            let mut killed = killed.unwrap_or_else(PoisonError::into_inner);
            killed.push((since, shared.start.elapsed()));
            shared.excuse(None, since);
        }
        let takes_over = matches!(
            fault.kind,
            Kind::MinorityLost | Kind::FailedOver | Kind::ClockForward
        );
        if takes_over && shared.said.frees_early {
            shared.excuse(None, since);
        }
        let ends_connection = matches!(
            fault.kind,
            Kind::Reset | Kind::ResetMidway | Kind::AnswersLost
        );
        if ends_connection && shared.said.connection_frees {
            shared.excuse(Some(met), since);
        }
        Ok(true)
    }

    /// Says whom it met, if anybody.
    async fn bring_about(
        &mut self,
        harness: &dyn Harness,
        shared: &Arc<Shared>,
        fault: Fault,
        client: usize,
    ) -> std::result::Result<Option<usize>, Outcome> {
        let failed = |error: tenure_core::Error| {
            let why = error.chain();
            Outcome::not_run(format!("{:?} failed: {why}", fault.kind))
        };
        let operator = || {
            let operator = harness.operator();
            operator.ok_or_else(|| Outcome::not_run("the harness offers an operator and has none"))
        };
        let pass = async { tokio::time::sleep(fault.lasts).await };
        let hand = &mut self.0[client];
        match fault.kind {
            Kind::ClientPaused => {
                if let Some(body) = &hand.body {
                    body.pause(hand.link.as_deref(), pass).await;
                }
            }
            Kind::ClientKilled => {
                if let Some(body) = hand.body.take() {
                    body.kill(hand.link.as_deref()).await;
                    shared.died(client);
                    shared.gone(client);
                }
                hand.begin(harness, shared).await?;
            }
            // Its next call, if it waits for none at the moment.
            Kind::Cancelled => hand.cancel.notify_one(),
            Kind::SessionEnded => {
                // It may be gone by now, and the next client's be there.
                let (count, since) = (self.0.len(), shared.now());
                let next = (0..count).map(|step| (client + step) % count);
                let sessions = next.filter_map(|one| Some((one, shared.session_of(one)?)));
                let (asked, ended) = end_one(operator()?, sessions).await;
                // An answer that was lost has ended a session all the same.
                for client in &asked {
                    shared.excuse(Some(*client), since);
                }
                return Ok(asked.last().copied().filter(|_| ended));
            }
            Kind::CutOff => self.linger([client], pass, |link| link.silence()).await,
            // Where a connection is the lease the link keeps every byte for later: so it ends before that.
            Kind::AnswersLost if shared.said.connection_frees => {
                if let Some(link) = &hand.link {
                    link.hold();
                    pass.await;
                    link.cut();
                    link.heal();
                }
            }
            Kind::AnswersLost => self.linger([client], pass, |link| link.lose()).await,
            Kind::AnswersLate => self.linger([client], pass, |link| link.hold()).await,
            Kind::ResetMidway => {
                let reset = |link: &dyn Link| link.cut_midway(fault.bytes);
                self.linger([client], pass, reset).await;
            }
            Kind::AllCutOff => {
                let all = 0..self.0.len();
                self.linger(all, pass, |link| link.silence()).await;
            }
            Kind::Reset => {
                if let Some(link) = &hand.link {
                    link.cut();
                }
            }
            Kind::StorePaused => {
                operator()?.pause().await.map_err(failed)?;
                pass.await;
                operator()?.resume().await.map_err(failed)?;
            }
            Kind::StoreKilled => operator()?.restart().await.map_err(failed)?,
            Kind::Disturbed => operator()?.disturb().await.map_err(failed)?,
            Kind::MinorityLost => {
                operator()?.lose_minority().await.map_err(failed)?;
                pass.await;
                operator()?.return_members().await.map_err(failed)?;
            }
            Kind::FailedOver => {
                operator()?.lag().await.map_err(failed)?;
                pass.await;
                operator()?.fail_over().await.map_err(failed)?;
                if !fault.kind.only_once(harness) {
                    operator()?.return_members().await.map_err(failed)?;
                }
            }
            Kind::ClockForward => {
                let forward = operator()?.clock_forward(fault.lasts + FAR);
                forward.await.map_err(failed)?;
            }
            Kind::ClockBack => {
                operator()?.clock_back(fault.lasts).await.map_err(failed)?;
                shared.set_back(fault.lasts);
            }
        }
        Ok(Some(client))
    }

    /// Disturbs the links of `clients` for a while.
    async fn linger(
        &self,
        clients: impl IntoIterator<Item = usize> + Clone,
        pass: impl Future<Output = ()>,
        disturb: impl Fn(&dyn Link),
    ) {
        let links = || {
            let clients = clients.clone().into_iter();
            clients.filter_map(|client| self.0[client].link.as_deref())
        };
        links().for_each(disturb);
        pass.await;
        links().for_each(Link::heal);
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use tenure_core::{Error, ErrorKind};

    use super::*;

    /// Ends whatever it is asked to, and says so from the third time on.
    #[derive(Default)]
    struct Mumbling(AtomicUsize);

    #[async_trait]
    impl Operator for Mumbling {
        async fn revoke(&self, _: &SessionId) -> Result<()> {
            match self.0.fetch_add(1, Ordering::Relaxed) {
                0 | 1 => Err(Error::new(ErrorKind::Unavailable, "the answer was lost")),
                _ => Ok(()),
            }
        }
    }

    #[test]
    fn who_stands_in_one_line_is_judged_by_those_who_do_not() {
        let of = |role| witnesses(role, of_role(role).next().unwrap_or_default()).count();
        assert_eq!(of(Role::Holder), 5, "there are two locks");
        assert_eq!(of(Role::Transactor), 3);
        let all = clients() - 1;
        assert_eq!(of(Role::Observer), all, "the only one");
        assert_eq!([of(Role::Candidate), of(Role::ReaderWriter)], [all, all]);
        assert!(enough(Role::Candidate) > enough(Role::Holder) * all);
        let myself = of_role(Role::Candidate).next();
        assert!(myself.is_some_and(|me| witnesses(Role::Candidate, me).all(|one| one != me)));
    }

    #[tokio::test]
    async fn whose_session_may_have_been_ended_is_known_without_an_answer() {
        let sessions = || (4..9).map(|client| (client, SessionId::new(client.to_string())));
        let operator = Mumbling::default();
        let ended = end_one(&operator, sessions()).await;
        assert_eq!(ended, (vec![4, 5, 6], true));
        let operator = Mumbling::default();
        let ended = end_one(&operator, sessions().take(2)).await;
        assert_eq!(ended, (vec![4, 5], false));
    }
}
