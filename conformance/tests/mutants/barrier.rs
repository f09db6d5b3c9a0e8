//! Barriers that break the rules.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use tenure_conformance::{
    CASES, Case, Harness, Link, Linked, Need, Operator, Subject, async_trait,
};
use tenure_core::backend::{Ask, Backend, Barrier, Grant, HasBarrier, Kind, Lease, Opened, Settle};
use tenure_core::{
    Clock, Error, ErrorKind, FencingToken, Guarantees, HoldFor, Name, Result, SessionOptions, Store,
};
use tenure_memory::{MemoryBackend, MemoryBarrier, MemoryConfig, MemorySession};

/// What is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Bug {
    Nothing,
    /// `wait` returns at once.
    OpenGate,
    /// `wait` looks every 15 seconds whether nobody holds it.
    PollingWait,
    /// A wait returns when it was disturbed.
    WokenForNothing,
    /// A second hold is accepted.
    SharedHold,
    /// Every hold is for good.
    HeldForGood,
    /// Every hold is for the session.
    HeldForSession,
    /// What was given up stays.
    WithdrawNothing,
    /// What somebody was inside of, or waited at, is left by nobody.
    ReleaseNothing,
    /// `enter` waits for one fewer.
    OneFewer,
    /// `enter` waits for nobody.
    AnyoneGoesIn,
    /// `leave` waits for nobody.
    AnyoneGoesOut,
    /// `enter` and `leave` look every 15 seconds.
    SlowToHear,
    /// One too many waits for the next generation's party, and is not told.
    Patient,
    /// Those with another count have a barrier of their own.
    CountsApart,
    /// A session that is killed is never buried.
    Immortal,
}

pub(crate) const CAUGHT: &[(Bug, &[&str])] = &[
    (
        Bug::OpenGate,
        &[
            "b1_wait_returns_only_after_a_release",
            "b1_a_hold_ends_with_its_session_or_outlives_it",
        ],
    ),
    (
        Bug::PollingWait,
        &[
            "b1_wait_returns_only_after_a_release",
            "b1_every_release_is_heard",
            "l3_hold_wakes_after_a_silence",
            "l3_hold_wakes_after_a_cut",
        ],
    ),
    (
        Bug::WokenForNothing,
        &["b1_wait_returns_only_after_a_release"],
    ),
    (Bug::SharedHold, &["b1_a_second_hold_is_refused"]),
    (
        Bug::HeldForGood,
        &[
            "b1_a_hold_ends_with_its_session_or_outlives_it",
            "s3_hold_ends_after_a_silence",
        ],
    ),
    (
        Bug::HeldForSession,
        &["b1_a_hold_ends_with_its_session_or_outlives_it"],
    ),
    (
        Bug::WithdrawNothing,
        &[
            "l5_hold_cancelled_acquire_leaves_nothing",
            "b4_a_cancelled_enter_leaves_nothing",
        ],
    ),
    (
        Bug::ReleaseNothing,
        &[
            "b2_nobody_passes_before_all_are_there",
            "b2_a_cancelled_leave_still_leaves",
            "b4_a_cancelled_last_enter_holds_nobody_up",
        ],
    ),
    (
        Bug::OneFewer,
        &[
            "b2_nobody_passes_before_all_are_there",
            "b2_generations_do_not_meet",
            "b3_a_crowd_is_let_in_by_the_party",
            "b4_the_dead_let_nobody_in",
            "b4_a_barrier_outlives_its_participants",
        ],
    ),
    (
        Bug::AnyoneGoesIn,
        &[
            "b2_nobody_passes_before_all_are_there",
            "b2_generations_do_not_meet",
            "b3_one_too_many_is_refused",
        ],
    ),
    (
        Bug::AnyoneGoesOut,
        &[
            "b2_nobody_passes_before_all_are_there",
            "b2_generations_do_not_meet",
        ],
    ),
    (
        Bug::SlowToHear,
        &[
            "b2_nobody_passes_before_all_are_there",
            "l3_participant_wakes_after_a_cut",
            "l3_participant_wakes_after_a_silence",
        ],
    ),
    (Bug::Patient, &["b3_one_too_many_is_refused"]),
    (Bug::CountsApart, &["b3_another_count_is_refused"]),
    (
        Bug::Immortal,
        &[
            "s3_hold_ends_after_a_silence",
            "b4_leaving_does_not_wait_for_the_dead",
            "b4_the_dead_let_nobody_in",
            "b4_a_barrier_outlives_its_participants",
        ],
    ),
];

pub(crate) struct Gates(pub(crate) Bug);

#[async_trait]
impl Subject for Gates {
    fn name(&self) -> &str {
        "gates"
    }

    async fn stage(&self, _: &Case) -> Result<Box<dyn Harness>> {
        Ok(Box::new(Grounds {
            bug: self.0,
            store: tenure_memory::connect(MemoryConfig::new())?,
        }))
    }

    fn parallel(&self) -> usize {
        CASES.len()
    }
}

/// A case's stage.
struct Grounds {
    bug: Bug,
    store: Store<MemoryBackend>,
}

#[async_trait]
impl Harness for Grounds {
    async fn connect(&self) -> Result<Store> {
        Ok(self.linked().await?.store)
    }

    fn offers(&self) -> &[Need] {
        &[Need::Silence, Need::Cut, Need::Keys]
    }

    async fn linked(&self) -> Result<Linked> {
        let inner = self.store.backend().reconnect();
        let link: Box<dyn Link> = Box::new(inner.link());
        let backend = Gate {
            bug: self.bug,
            inner,
        };
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
impl Operator for Grounds {
    async fn keys(&self) -> Result<Vec<String>> {
        Ok(self.store.backend().keys())
    }
}

struct Gate {
    bug: Bug,
    inner: MemoryBackend,
}

#[async_trait]
impl Backend for Gate {
    type Session = GateLease;

    async fn open(&self, ttl: Duration, options: &SessionOptions) -> Result<Opened<GateLease>> {
        let real = match self.bug {
            Bug::Immortal => ttl * 10,
            _ => ttl,
        };
        let opened = self.inner.open(real, options).await?;
        Ok(Opened {
            lease: Arc::new(GateLease {
                bug: self.bug,
                barrier: Arc::new(MutantBarrier {
                    bug: self.bug,
                    inner: Arc::clone(&opened.lease).typed_barrier(),
                }),
                inner: opened.lease,
            }),
            id: opened.id,
            ttl,
            capacity: opened.capacity,
        })
    }

    async fn guarantees(&self) -> Result<Guarantees> {
        self.inner.guarantees().await
    }

    fn clock(&self) -> Clock {
        self.inner.clock()
    }
}

struct GateLease {
    bug: Bug,
    barrier: Arc<MutantBarrier>,
    inner: Arc<MemorySession>,
}

#[async_trait]
impl Lease for GateLease {
    async fn renew(&self) -> Result<()> {
        self.inner.renew().await
    }

    async fn revoke(&self) -> Result<()> {
        match self.bug {
            Bug::ReleaseNothing => Ok(()),
            _ => self.inner.revoke().await,
        }
    }

    fn barrier(self: Arc<Self>) -> Option<Arc<dyn Barrier>> {
        Some(Arc::clone(&self.barrier) as Arc<dyn Barrier>)
    }
}

struct MutantBarrier {
    bug: Bug,
    inner: Arc<MemoryBarrier>,
}

/// A grant that the store knows nothing of.
struct Free;

const SELDOM: Duration = Duration::from_secs(15);

impl MutantBarrier {
    /// `future`, of whose end one hears late unless it comes at once.
    async fn slowly<T>(&self, future: impl Future<Output = T>) -> T {
        let started = tokio::time::Instant::now();
        let done = future.await;
        if started.elapsed() > Duration::from_millis(15) {
            tokio::time::sleep(SELDOM).await;
        }
        done
    }
}

#[async_trait]
impl Barrier for MutantBarrier {
    async fn hold(&self, ask: &Ask, hold_for: HoldFor) -> Result<()> {
        let hold_for = match self.bug {
            Bug::HeldForGood => HoldFor::Good,
            Bug::HeldForSession => HoldFor::Session,
            _ => hold_for,
        };
        match self.inner.hold(ask, hold_for).await {
            Err(error) if self.bug == Bug::SharedHold && error.kind() == ErrorKind::Conflict => {
                Ok(())
            }
            held => {
                if self.bug == Bug::WithdrawNothing {
                    // Something to be dropped at.
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                held
            }
        }
    }

    async fn lift(&self, ask: &Ask) -> Result<bool> {
        self.inner.lift(ask).await
    }

    async fn is_held(&self, name: &Name) -> Result<bool> {
        self.inner.is_held(name).await
    }

    async fn wait(&self, name: &Name) -> Result<()> {
        match self.bug {
            Bug::OpenGate => Ok(()),
            Bug::PollingWait => {
                while self.inner.is_held(name).await? {
                    tokio::time::sleep(SELDOM).await;
                }
                Ok(())
            }
            Bug::WokenForNothing => {
                let moment = Duration::from_millis(100);
                let woken = tokio::time::timeout(moment, self.inner.wait(name)).await;
                woken.unwrap_or(Ok(()))
            }
            _ => self.inner.wait(name).await,
        }
    }

    async fn enter(&self, ask: &Ask, count: NonZeroU32) -> Result<Grant> {
        match self.bug {
            Bug::AnyoneGoesIn => {
                Ok(Grant::new(FencingToken::new(ask.nonce() >> 12), "nowhere").attach(Free))
            }
            Bug::OneFewer => {
                let fewer = NonZeroU32::new(count.get() - 1).unwrap_or(count);
                self.inner.enter(ask, fewer).await
            }
            Bug::SlowToHear => self.slowly(self.inner.enter(ask, count)).await,
            Bug::Patient => loop {
                match self.inner.enter(ask, count).await {
                    Err(error) if error.kind() == ErrorKind::Conflict => tokio::select! {
                        () = tokio::time::sleep(Duration::from_millis(5)) => {}
                        () = ask.withdrawn() => return Err(Error::withdrawn()),
                    },
                    entered => return entered,
                }
            },
            Bug::CountsApart => match self.inner.enter(ask, count).await {
                Err(error) if error.kind() == ErrorKind::Conflict => {
                    ask.withdrawn().await;
                    Err(Error::withdrawn())
                }
                entered => entered,
            },
            _ => self.inner.enter(ask, count).await,
        }
    }

    async fn all_left(&self, name: &Name, grant: &Grant) -> Result<()> {
        match self.bug {
            Bug::AnyoneGoesIn | Bug::AnyoneGoesOut => Ok(()),
            Bug::SlowToHear => self.slowly(self.inner.all_left(name, grant)).await,
            _ => self.inner.all_left(name, grant).await,
        }
    }
}

#[async_trait]
impl Settle for MutantBarrier {
    async fn release(&self, ask: &Ask, grant: &Grant) -> Result<()> {
        match self.bug {
            Bug::ReleaseNothing => Ok(()),
            _ if grant.attachment::<Free>().is_some() => Ok(()),
            _ => self.inner.release(ask, grant).await,
        }
    }

    async fn withdraw(&self, ask: &Ask) -> Result<()> {
        match self.bug {
            Bug::WithdrawNothing => Ok(()),
            Bug::ReleaseNothing if ask.kind() == Kind::DoubleBarrier => Ok(()),
            _ => self.inner.withdraw(ask).await,
        }
    }
}
