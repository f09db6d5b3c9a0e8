//! Read-write locks that break the rules, and the cases that must notice.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tenure_conformance::{Case, Harness, Link, Linked, Need, Operator, Subject, async_trait};
use tenure_core::backend::{
    Ask, Backend, Election, Grant, HasLocker, HasRwLock, Held, Lease, Locker, Opened, Queue,
    RwLock, Settle, Side, Stm,
};
use tenure_core::{
    Error, ErrorKind, FencingToken, Guarantees, LossReason, Result, SessionId, SessionOptions,
    Store,
};
use tenure_memory::{MemoryBackend, MemoryConfig, MemoryRwLock, MemorySession};

/// What is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Bug {
    /// Nothing: the control.
    Nothing,
    /// Readers exclude each other.
    LoneReaders,
    /// Writers share like readers.
    SharedWriters,
    /// A writer does not stand in line, but looks now and then whether it can come in.
    MeekWriters,
    /// Readers do not stand in line, but look now and then.
    MeekReaders,
    /// A reader that waits is granted only when it has been looked for, every ten seconds.
    SleepyReaders,
    /// A writer waits for those that live when it comes, and then takes itself for granted.
    ImpatientWriters,
    /// A writer that would have to wait is refused.
    ProudWriters,
    /// A writer's token is the same each time.
    ConstantToken,
    /// A downgrade does nothing, and says Ok.
    DowngradeNothing,
    /// A downgrade lets go, and says Ok.
    DowngradeReleases,
    /// A resumed session takes up whatever has that token.
    SideBlind,
    /// A refused try leaves its place in line.
    TryQueues,
    /// A cancelled wait stays in line.
    WithdrawNothing,
    /// A release does nothing, and says Ok.
    ReleaseNothing,
    /// Ending a session leaves its places.
    Ghosts,
    /// A release frees whatever lock has that name now, whoever has it.
    PlainRelease,
    /// A dead session's lease goes on for ten times its TTL.
    LateExpiry,
    /// Names are told apart without regard to case.
    FoldedNames,
}

/// Which case must catch which mutant.
pub(crate) const CAUGHT: &[(Bug, &[&str])] = &[
    (
        Bug::LoneReaders,
        &[
            "r1_readers_share_and_keep_writers_out",
            "r1_contenders_share_or_exclude_each_other",
            "r2_arrival_order_with_batches_of_readers",
            "r2_a_writer_that_gives_up_lets_the_readers_in",
        ],
    ),
    (
        Bug::SharedWriters,
        &[
            "r1_readers_share_and_keep_writers_out",
            "r1_a_writer_is_alone",
            "r1_contenders_share_or_exclude_each_other",
            "r1_random_readers_and_writers_stay_exclusive",
            "r1_an_upgrade_is_refused",
            "r2_writer_waits_for_a_reader_of_the_same_session",
            "l4_writer_try_leaves_nothing",
            "l4_writer_limit_bounds_the_wait",
        ],
    ),
    (
        Bug::MeekWriters,
        &[
            "r2_arrival_order_with_batches_of_readers",
            "r2_a_waiting_writer_is_not_overtaken",
        ],
    ),
    (Bug::MeekReaders, &["r2_a_reader_is_not_starved"]),
    (
        Bug::SleepyReaders,
        &[
            "r2_a_writer_that_gives_up_lets_the_readers_in",
            "r3_a_downgrade_keeps_token_and_place",
        ],
    ),
    (
        Bug::ImpatientWriters,
        &["r2_a_dead_reader_frees_the_writer_and_nobody_else"],
    ),
    (
        Bug::ProudWriters,
        &["r2_writer_waits_for_a_reader_of_the_same_session"],
    ),
    (
        Bug::ConstantToken,
        &[
            "r1_random_readers_and_writers_stay_exclusive",
            "r3_a_writers_token_is_above_every_earlier_one",
            "r3_a_downgrade_keeps_token_and_place",
        ],
    ),
    (
        Bug::DowngradeNothing,
        &["r3_a_downgrade_keeps_token_and_place"],
    ),
    (
        Bug::DowngradeReleases,
        &["r3_a_downgrade_keeps_token_and_place"],
    ),
    (Bug::SideBlind, &["s4_a_resumed_session_takes_up_its_side"]),
    (Bug::TryQueues, &["l4_writer_try_leaves_nothing"]),
    (
        Bug::WithdrawNothing,
        &[
            "r2_a_writer_that_gives_up_lets_the_readers_in",
            "l4_writer_limit_bounds_the_wait",
            "l5_writer_cancelled_acquire_leaves_nothing",
        ],
    ),
    (
        Bug::ReleaseNothing,
        &[
            "l5_cancelled_downgrade_releases",
            "l5_a_late_read_or_write_leaves_nothing",
            "l7_dropping_a_read_or_write_guard_releases",
        ],
    ),
    (Bug::Ghosts, &["l6_writer_waiter_ends_with_its_session"]),
    (
        Bug::PlainRelease,
        &["l7_writer_late_release_spares_the_next"],
    ),
    (
        Bug::LateExpiry,
        &[
            "r2_a_dead_reader_frees_the_writer_and_nobody_else",
            "r2_a_mass_death_of_writers_delays_no_longer_than_stated",
            "r2_a_mass_death_of_readers_delays_no_longer_than_stated",
        ],
    ),
    (Bug::FoldedNames, &["l8_writer_meets_no_other_name_or_kind"]),
];

pub(crate) struct Mutants(pub(crate) Bug);

#[async_trait]
impl Subject for Mutants {
    fn name(&self) -> &str {
        "mutant"
    }

    async fn stage(&self, _: &Case) -> Result<Box<dyn Harness>> {
        Ok(Box::new(stage(self.0)?))
    }

    fn parallel(&self) -> usize {
        64
    }
}

/// A stage of its own, also for what is no case.
pub(crate) fn stage(bug: Bug) -> Result<Stage> {
    let world = World {
        bug,
        store: tenure_memory::connect(MemoryConfig::new())?,
        held: Mutex::default(),
        invented: AtomicU64::new(1_000_000),
    };
    Ok(Stage(Arc::new(world)))
}

/// What all connections to one mutant share.
struct World {
    bug: Bug,
    store: Store<MemoryBackend>,
    /// Which name is held, by its folded form.
    held: Mutex<HashMap<String, String>>,
    invented: AtomicU64,
}

impl World {
    fn connect(self: &Arc<Self>) -> Mutant {
        Mutant {
            inner: self.store.backend().reconnect(),
            world: Arc::clone(self),
        }
    }
}

pub(crate) struct Stage(Arc<World>);

#[async_trait]
impl Harness for Stage {
    async fn connect(&self) -> Result<Store> {
        Ok(Store::new(self.0.connect()).into_dyn())
    }

    fn offers(&self) -> &[Need] {
        &[Need::Silence, Need::Keys]
    }

    async fn linked(&self) -> Result<Linked> {
        let backend = self.0.connect();
        let link: Box<dyn Link> = Box::new(backend.inner.link());
        Ok(Linked {
            store: Store::new(backend).into_dyn(),
            link,
        })
    }

    fn operator(&self) -> Option<&dyn Operator> {
        Some(self)
    }
}

#[async_trait]
impl Operator for Stage {
    async fn keys(&self) -> Result<Vec<String>> {
        Ok(self.0.store.backend().keys())
    }
}

struct Mutant {
    inner: MemoryBackend,
    world: Arc<World>,
}

impl Mutant {
    fn opened(&self, opened: Opened<MemorySession>, ttl: Duration) -> Opened<MutantLease> {
        Opened {
            lease: Arc::new(MutantLease {
                inner: opened.lease,
                world: Arc::clone(&self.world),
            }),
            id: opened.id,
            ttl,
            capacity: opened.capacity,
        }
    }
}

#[async_trait]
impl Backend for Mutant {
    type Session = MutantLease;

    async fn open(&self, ttl: Duration, options: &SessionOptions) -> Result<Opened<MutantLease>> {
        let real = match self.world.bug {
            Bug::LateExpiry => ttl * 10,
            _ => ttl,
        };
        let opened = self.inner.open(real, options).await?;
        Ok(self.opened(opened, ttl))
    }

    async fn resume(&self, id: &SessionId) -> Result<Opened<MutantLease>> {
        let opened = self.inner.resume(id).await?;
        let ttl = opened.ttl;
        Ok(self.opened(opened, ttl))
    }

    async fn guarantees(&self) -> Result<Guarantees> {
        self.inner.guarantees().await
    }

    fn clock(&self) -> tenure_core::Clock {
        self.inner.clock()
    }
}

struct MutantLease {
    inner: Arc<MemorySession>,
    world: Arc<World>,
}

#[async_trait]
impl Lease for MutantLease {
    async fn renew(&self) -> Result<()> {
        self.inner.renew().await
    }

    async fn revoke(&self) -> Result<()> {
        match self.world.bug {
            Bug::Ghosts => Ok(()),
            _ => self.inner.revoke().await,
        }
    }

    async fn audit(&self, held: &[Held]) -> Result<Vec<u64>> {
        self.inner.audit(held).await
    }

    fn detachable(&self) -> bool {
        true
    }

    async fn detach(&self, held: &[Held]) -> Result<()> {
        self.inner.detach(held).await
    }

    fn locker(self: Arc<Self>) -> Option<Arc<dyn Locker>> {
        Some(Arc::clone(&self.inner).typed_locker())
    }

    fn election(self: Arc<Self>) -> Option<Arc<dyn Election>> {
        Arc::clone(&self.inner).election()
    }

    fn queue(self: Arc<Self>) -> Option<Arc<dyn Queue>> {
        Arc::clone(&self.inner).queue()
    }

    fn stm(self: Arc<Self>) -> Option<Arc<dyn Stm>> {
        Arc::clone(&self.inner).stm()
    }

    fn rw_lock(self: Arc<Self>) -> Option<Arc<dyn RwLock>> {
        Some(Arc::new(MutantRwLock {
            inner: Arc::clone(&self.inner).typed_rw_lock(),
            world: Arc::clone(&self.world),
        }))
    }
}

struct MutantRwLock {
    inner: Arc<MemoryRwLock>,
    world: Arc<World>,
}

/// A grant that the store knows nothing of.
struct Invented;

/// What the store was asked for in truth.
struct True(Grant);

impl MutantRwLock {
    fn asked(&self, side: Side) -> Side {
        match self.world.bug {
            Bug::LoneReaders => Side::Write,
            Bug::SharedWriters => Side::Read,
            _ => side,
        }
    }

    fn shown(&self, ask: &Ask, side: Side, grant: Grant) -> Grant {
        let token = match (self.world.bug, side) {
            (Bug::ConstantToken, Side::Write) => FencingToken::new(7),
            _ => grant.token(),
        };
        let name = ask.name().as_str();
        let mut held = self.world.held.lock().unwrap();
        held.insert(name.to_lowercase(), name.to_owned());
        Grant::new(token, grant.key().to_owned()).attach(True(grant))
    }

    fn folded(&self, ask: &Ask) -> bool {
        let name = ask.name().as_str();
        let held = self.world.held.lock().unwrap();
        let other = |held: &String| held != name;
        self.world.bug == Bug::FoldedNames && held.get(&name.to_lowercase()).is_some_and(other)
    }

    async fn look_now_and_then(&self, ask: &Ask, side: Side, every: Duration) -> Result<Grant> {
        loop {
            if let Some(grant) = self.inner.try_acquire(ask, side).await? {
                return Ok(grant);
            }
            tokio::select! {
                () = tokio::time::sleep(every) => {}
                () = ask.withdrawn() => return Err(Error::withdrawn()),
            }
        }
    }
}

#[async_trait]
impl RwLock for MutantRwLock {
    async fn try_acquire(&self, ask: &Ask, side: Side) -> Result<Option<Grant>> {
        if self.folded(ask) {
            return Ok(None);
        }
        let asked = self.asked(side);
        let grant = match self.world.bug {
            Bug::TryQueues => {
                let moment = Duration::from_millis(5);
                let waiting = tokio::time::timeout(moment, self.inner.acquire(ask, asked)).await;
                waiting.ok().transpose()?
            }
            _ => self.inner.try_acquire(ask, asked).await?,
        };
        Ok(grant.map(|grant| self.shown(ask, side, grant)))
    }

    async fn acquire(&self, ask: &Ask, side: Side) -> Result<Grant> {
        let asked = self.asked(side);
        let often = Duration::from_millis(2);
        let grant = match (self.world.bug, side) {
            (Bug::MeekWriters, Side::Write) | (Bug::MeekReaders, Side::Read) => {
                self.look_now_and_then(ask, asked, often).await?
            }
            (Bug::SleepyReaders, Side::Read) => {
                let seldom = Duration::from_secs(10);
                self.look_now_and_then(ask, asked, seldom).await?
            }
            (Bug::ProudWriters, Side::Write) => {
                let refused = || Error::new(ErrorKind::Conflict, "somebody reads");
                let grant = self.inner.try_acquire(ask, asked).await?;
                grant.ok_or_else(refused)?
            }
            (Bug::ImpatientWriters, Side::Write) => {
                let waiting = self.inner.acquire(ask, asked);
                match tokio::time::timeout(Duration::from_millis(1500), waiting).await {
                    Ok(grant) => grant?,
                    Err(_) => {
                        let token = self.world.invented.fetch_add(1, Ordering::SeqCst);
                        return Ok(Grant::new(FencingToken::new(token), "").attach(Invented));
                    }
                }
            }
            _ => self.inner.acquire(ask, asked).await?,
        };
        Ok(self.shown(ask, side, grant))
    }

    async fn downgrade(&self, ask: &Ask, grant: &Grant) -> Result<()> {
        let inner = grant.attachment::<True>().map_or(grant, |grant| &grant.0);
        match self.world.bug {
            Bug::DowngradeNothing => Ok(()),
            Bug::DowngradeReleases => self.inner.release(ask, inner).await,
            _ => self.inner.downgrade(ask, inner).await,
        }
    }

    async fn take_up(&self, ask: &Ask, token: FencingToken, side: Side) -> Result<Option<Grant>> {
        let mut grant = self.inner.take_up(ask, token, side).await?;
        if grant.is_none() && self.world.bug == Bug::SideBlind {
            let other = match side {
                Side::Read => Side::Write,
                Side::Write => Side::Read,
            };
            grant = self.inner.take_up(ask, token, other).await?;
        }
        Ok(grant.map(|grant| self.shown(ask, side, grant)))
    }
}

#[async_trait]
impl Settle for MutantRwLock {
    async fn release(&self, ask: &Ask, grant: &Grant) -> Result<()> {
        if grant.attachment::<Invented>().is_some() {
            return self.inner.withdraw(ask).await;
        }
        let name = ask.name().as_str();
        self.world.held.lock().unwrap().remove(&name.to_lowercase());
        match self.world.bug {
            Bug::ReleaseNothing => Ok(()),
            Bug::Ghosts if ask.is_withdrawn() => Ok(()),
            Bug::PlainRelease => {
                let store = self.world.store.backend();
                let held = store.keys().into_iter().find(|key| key.contains(name));
                let freed = held.is_some_and(|key| store.delete(&key));
                freed
                    .then_some(())
                    .ok_or_else(|| Error::lost(LossReason::Revoked))
            }
            _ => {
                let inner = grant.attachment::<True>().map_or(grant, |grant| &grant.0);
                self.inner.release(ask, inner).await
            }
        }
    }

    async fn withdraw(&self, ask: &Ask) -> Result<()> {
        match self.world.bug {
            Bug::WithdrawNothing | Bug::Ghosts => Ok(()),
            _ => self.inner.withdraw(ask).await,
        }
    }
}
