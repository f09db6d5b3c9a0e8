//! The embedded store with one thing broken in between.

#[path = "election.rs"]
pub(crate) mod election;
#[path = "queue.rs"]
pub(crate) mod queue;
#[path = "stm.rs"]
mod stm;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use tenure_conformance::{
    CASES, Case, Harness, Link, Linked, Need, Operator, Subject, async_trait,
};
use tenure_core::backend::{
    Ask, Backend, Barrier, Election, Grant, HasElection, HasLocker, HasQueue, HasStm, Held, Lease,
    Locker, Opened, Queue, RwLock, Settle, Stm,
};
use tenure_core::{
    Claim, Clock, Durability, Error, ErrorKind, FencingToken, Guarantees, LossReason, MinorityLoss,
    Namespace, Result, SessionId, SessionOptions, Store, TokenOrder,
};
use tenure_memory::{Fault, MemoryBackend, MemoryConfig, MemoryLocker, MemorySession};

/// What is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Bug {
    /// Nothing: the control.
    Nothing,
    /// Every acquire is granted.
    NoExclusion,
    /// A session that holds the lock gets it again.
    Reentrant,
    /// Every grant has the same token.
    ConstantToken,
    /// Tokens fall.
    FallingTokens,
    /// A waiter looks every 15 seconds whether the lock is free.
    Polling,
    /// As `Polling`; and the store's word that the session is gone goes unheard.
    DeafPolling,
    /// The last to arrive is the first to be granted.
    LastInFirstOut,
    /// A release frees whatever lock has that name now.
    PlainRelease,
    /// A release does nothing, and says Ok.
    ReleaseNothing,
    /// Ending a session does nothing, and says Ok.
    RevokeNothing,
    /// Neither a release nor ending a session does anything.
    NeverLetsGo,
    /// Ending a session fails.
    RevokeFails,
    /// A cancelled wait stays in line.
    WithdrawNothing,
    /// A cancelled wait stays in line, even when its session is closed.
    Ghosts,
    /// A waiter that was removed takes itself for the head.
    GrantsTheRemoved,
    /// A waiter whose place a restore took away takes itself for the head.
    WaitsInThePast,
    /// A refused `try_lock` leaves its place in line.
    TryQueues,
    /// Less is granted than was asked for.
    ShortTtl,
    /// The lease ends after half of the TTL that was reported: renewals keep it, and nothing else.
    EarlyExpiry,
    /// The lease goes on for four times the TTL that was reported.
    LateExpiry,
    /// A renewal never reaches the store, and says Ok.
    DeafRenewal,
    /// A renewal is taken for acknowledged when it was sent.
    OptimisticRenewal,
    /// A renewal that takes more than a moment is taken for a loss.
    BrittleRenewal,
    /// The clock by which validity is judged stands still.
    FrozenClock,
    /// Detaching frees everything.
    DetachFrees,
    /// Detaching leaves a place in line for each wait.
    DetachGhosts,
    /// What was held at a detach is released a moment later.
    LateDetachRelease,
    /// Anybody may resume any session, as often as they like, and unheard.
    ResumeForAll,
    /// A session carries less than it should.
    SmallCapacity,
    /// A holding that is gone is not missed.
    BlindAudit,
    /// Names are told apart without regard to case.
    FoldedNames,
    /// Names beyond 255 bytes are refused.
    ShortNames,
    /// Two namespaces are one.
    OneNamespace,
    /// A restart loses everything.
    Amnesia,
    /// Losing a minority silences the store.
    Collapse,
    /// A restart, a failover or a jump of the clock ends the oldest session in the store.
    FreesAtEvents,
    /// A renewal counts from when its answer came.
    CountsFromArrival,
    /// A holding is reclaimed under whatever token.
    ReclaimsAnyToken,
    /// Something about elections.
    Election(election::Bug),
    /// A commit compares nothing.
    BlindCommit,
    /// A later read of an attempt is not of its snapshot.
    TornReads,
    /// A commit leaves out the last of its writes.
    HalfCommit,
    /// A transaction whose comparisons fail writes what it would have written else, too.
    BothBranches,
    /// A commit does not look at its guard.
    UnfencedCommit,
    /// A commit without an answer is taken for one that did not happen.
    BlindRetry,
    /// A commit without an answer is taken for one that happened.
    HopefulResolve,
    /// Whatever the size, it is sent.
    NoLimits,
    /// Raising the token floor does nothing, and says Ok.
    FloorIgnored,
    /// Raising the token floor raises the tokens of locks, and of nothing else.
    FloorForLocksOnly,
    /// A lower token floor lowers the tokens of locks.
    FloorFalls,
    /// Who waits when the token floor is raised is granted below it.
    FloorSparesWaiters,
    /// Raising the token floor removes what is held.
    FloorRemovesHolders,
    /// A restart forgets the token floor, and nothing else.
    FloorIsForgotten,
    /// Something about queues.
    Queue(queue::Bug),
}

/// Which case must catch which mutant.
pub(crate) const CAUGHT: &[(Bug, &[&str])] = &[
    (
        Bug::NoExclusion,
        &[
            "l1_lock_excludes_others",
            "l1_random_histories_stay_exclusive",
            "l4_lock_limit_bounds_the_wait",
        ],
    ),
    (Bug::Reentrant, &["l1_lock_excludes_others"]),
    (
        Bug::ConstantToken,
        &[
            "l1_random_histories_stay_exclusive",
            "l2_lock_tokens_rise",
            "l2_a_stale_token_is_refused_at_the_resource",
        ],
    ),
    (
        Bug::FallingTokens,
        &[
            "l1_random_histories_stay_exclusive",
            "l2_lock_tokens_rise",
            "l2_a_stale_token_is_refused_at_the_resource",
            "l2_tokens_survive_a_restart",
            "l2_tokens_survive_clock_jumps",
        ],
    ),
    (
        Bug::Polling,
        &[
            "l3_try_lock_does_not_overtake",
            "l3_lock_is_handed_on_at_once",
            "l3_lock_wakes_after_a_cut",
            "l3_lock_wakes_after_a_silence",
            "l3_no_wake_up_is_lost_in_a_disturbance",
            "l3_a_dead_waiter_delays_no_longer_than_stated",
            "l3_a_mass_death_delays_no_longer_than_stated",
        ],
    ),
    (
        Bug::DeafPolling,
        &["l6_a_waiter_ends_when_its_session_is_revoked"],
    ),
    (
        Bug::LastInFirstOut,
        &["l3_lock_keeps_order_when_waiters_give_up"],
    ),
    (
        Bug::PlainRelease,
        &[
            "l7_a_late_release_spares_the_successor",
            "l7_releasing_a_deleted_holding_spares_the_successor",
        ],
    ),
    (
        Bug::ReleaseNothing,
        &[
            "l5_lock_cancelled_acquire_leaves_nothing",
            "l5_cancelled_release_still_releases",
            "l5_cancelled_reclaim_leaves_no_orphan",
            "l5_an_unheard_grant_is_given_back",
            "l5_a_late_request_leaves_nothing",
            "l7_lock_drop_releases",
            "l7_an_unconfirmed_release_is_repeated",
        ],
    ),
    (
        Bug::RevokeNothing,
        &[
            "s1_lock_ends_with_its_session",
            "l5_cancelled_close_still_closes",
            "l5_cancelled_open_leaves_no_session",
        ],
    ),
    (Bug::NeverLetsGo, &["s1_lock_ends_with_a_dropped_session"]),
    (Bug::RevokeFails, &["s4_a_closed_session_says_closed"]),
    (
        Bug::WithdrawNothing,
        &[
            "l4_lock_limit_bounds_the_wait",
            "l5_lock_cancelled_acquire_leaves_nothing",
            "l5_cancelled_lock_timeout_leaves_nothing",
            "l5_a_storm_of_cancelled_callers_leaves_nothing",
        ],
    ),
    (Bug::Ghosts, &["l6_lock_waiter_ends_with_its_session"]),
    (
        Bug::GrantsTheRemoved,
        &["l6_a_waiter_deleted_with_its_predecessor_is_not_granted"],
    ),
    (
        Bug::WaitsInThePast,
        &["o4_waiters_of_a_lost_history_fail_or_join_again"],
    ),
    (
        Bug::TryQueues,
        &[
            "l4_lock_try_leaves_nothing",
            "l5_cancelled_try_lock_leaves_nothing",
        ],
    ),
    (Bug::ShortTtl, &["s1_the_ttl_is_at_least_what_was_asked"]),
    (
        Bug::EarlyExpiry,
        &[
            "s2_lock_loss_is_signalled",
            "s3_lock_keeps_a_long_ttl",
            "l1_a_paused_holder_is_succeeded_after_its_end",
        ],
    ),
    (
        Bug::LateExpiry,
        &[
            "s3_freed_within_the_stated_bound",
            "s3_a_restart_prolongs_nothing",
            "s3_a_failover_prolongs_nothing",
            "s3_a_clock_jump_prolongs_nothing",
            "s4_a_detached_session_expires",
            "l3_a_dead_waiter_delays_no_longer_than_stated",
            "l6_lock_waiter_ends_when_its_session_is_lost",
        ],
    ),
    (
        Bug::DeafRenewal,
        &[
            "s1_lock_outlives_three_ttls",
            "s4_lock_ends_with_a_revoked_session",
        ],
    ),
    (
        Bug::OptimisticRenewal,
        &[
            "s2_lock_loss_is_signalled",
            "s2_loss_is_signalled_when_answers_are_lost",
        ],
    ),
    (Bug::BrittleRenewal, &["s3_lock_outlives_a_silence"]),
    (
        Bug::FrozenClock,
        &[
            "s2_validity_is_right_after_a_pause",
            "s2_loss_is_signalled_while_the_sessions_runtime_stands_still",
            "s2_lock_loss_is_signalled",
            "l1_a_paused_holder_is_succeeded_after_its_end",
        ],
    ),
    (
        Bug::DetachFrees,
        &[
            "s4_a_detached_session_is_resumed_once",
            "l5_cancelled_detach_leaves_no_orphan",
        ],
    ),
    (
        Bug::DetachGhosts,
        &["s4_a_wait_in_flight_at_a_detach_leaves_no_place"],
    ),
    (
        Bug::LateDetachRelease,
        &["l7_a_late_release_spares_a_reclaimed_holding"],
    ),
    (
        Bug::ResumeForAll,
        &[
            "s4_a_detached_session_is_resumed_once",
            "s4_only_detached_sessions_are_resumed",
            "s4_nothing_is_valid_before_the_first_renewal",
        ],
    ),
    (Bug::SmallCapacity, &["s5_too_many_holdings_are_refused"]),
    (
        Bug::BlindAudit,
        &[
            "l7_a_deleted_holding_is_noticed",
            "o4_no_holding_of_a_lost_history_stays_valid",
        ],
    ),
    (Bug::FoldedNames, &["l8_names_are_isolated"]),
    (Bug::ShortNames, &["l8_bad_names_are_refused"]),
    (
        Bug::OneNamespace,
        &["l8_lock_meets_no_other_namespace", "l8_keys_are_isolated"],
    ),
    (
        Bug::Amnesia,
        &[
            "l2_tokens_survive_a_restart",
            "l2_token_floor_survives_a_restart",
            "l2_tokens_survive_a_failover",
            "l3_waiters_keep_their_places_in_a_restart",
            "q1_items_outlive_a_failover",
            "store_a_grant_outlives_a_crash",
            "store_commits_outlive_a_crash",
            "store_commits_outlive_a_failover",
            "t4_a_restart_loses_and_doubles_nothing",
        ],
    ),
    (
        Bug::BlindCommit,
        &[
            "t1_appended_lists_have_no_cycles",
            "t1_no_write_skew",
            "t1_a_snapshot_notices_newer_writes",
            "t1_a_conflict_storm_ends",
            "t1_comparisons_mean_the_same_everywhere",
            "t2_an_aborted_attempt_leaves_no_trace",
        ],
    ),
    (Bug::TornReads, &["t1_an_attempt_reads_one_snapshot"]),
    (
        Bug::HalfCommit,
        &[
            "t1_the_bank_keeps_its_money",
            "t2_a_cancelled_transaction_is_whole_or_nothing",
        ],
    ),
    (
        Bug::BothBranches,
        &["t2_an_aborted_attempt_leaves_no_trace"],
    ),
    (
        Bug::UnfencedCommit,
        &[
            "t3_a_lost_guard_commits_nothing",
            "t3_every_kind_of_guard_binds",
            "t3_no_commit_lands_after_a_successors",
            "t3_a_revoked_holder_commits_nothing",
        ],
    ),
    (Bug::BlindRetry, &["t4_a_lost_answer_is_resolved"]),
    (
        Bug::HopefulResolve,
        &["t4_what_cannot_be_known_is_reported"],
    ),
    (Bug::NoLimits, &["t5_limits_are_errors_before_sending"]),
    (Bug::Collapse, &["store_survives_losing_a_minority"]),
    (
        Bug::FreesAtEvents,
        &[
            "l1_one_holds_through_a_restart",
            "l1_one_holds_through_a_failover",
            "l1_one_holds_through_a_clock_jump",
            "s3_a_restart_frees_nothing_early",
            "s3_a_failover_frees_nothing_early",
            "s3_a_clock_jump_frees_nothing_early",
            "e4_an_observer_never_goes_back_in_a_restart",
            "e4_an_observer_never_goes_back_in_a_failover",
            "store_a_grant_outlives_a_failover",
        ],
    ),
    (
        Bug::CountsFromArrival,
        &["s2_slow_answers_do_not_prolong_validity"],
    ),
    (
        Bug::FloorIgnored,
        &[
            "l2_token_floor_is_kept",
            "o4_tokens_rise_after_the_floor_is_raised",
        ],
    ),
    (Bug::FloorForLocksOnly, &["l2_token_floor_is_kept"]),
    (Bug::FloorFalls, &["l2_token_floor_is_kept"]),
    (Bug::FloorSparesWaiters, &["l2_token_floor_is_kept"]),
    (Bug::FloorRemovesHolders, &["l2_token_floor_is_kept"]),
    (
        Bug::FloorIsForgotten,
        &["l2_token_floor_survives_a_restart"],
    ),
    (
        Bug::ReclaimsAnyToken,
        &["s4_a_detached_session_is_resumed_once"],
    ),
];

pub(crate) struct Mutants(pub(crate) Bug);

#[async_trait]
impl Subject for Mutants {
    fn name(&self) -> &str {
        "mutant"
    }

    async fn stage(&self, _: &Case) -> Result<Box<dyn Harness>> {
        Ok(Box::new(Stage::new(self.0)?))
    }

    fn parallel(&self) -> usize {
        CASES.len()
    }
}

/// What all connections to one mutant share.
pub(crate) struct World {
    bug: Bug,
    store: Store<MemoryBackend>,
    /// Every link that was ever made.
    links: Mutex<Vec<tenure_memory::Link>>,
    token: AtomicU64,
    /// Who waits, by name, the last to arrive at the end.
    stacks: Mutex<HashMap<String, Vec<u64>>>,
    /// Which name is held, by its folded form.
    folded: Mutex<HashMap<String, String>>,
    /// What was granted, by session and name.
    reentrant: Mutex<HashSet<(usize, String)>>,
    /// Who ever waited, by session and name.
    waited: Mutex<HashSet<(usize, String)>>,
    leases: Mutex<HashMap<String, (Arc<MemorySession>, Duration)>>,
    /// The token floor that was asked for first.
    floor: AtomicU64,
    /// How much less than the store's is shown as the token of a lock (modulo 2^64).
    less: AtomicU64,
    /// What there was at the last snapshot.
    kept: Mutex<Kept>,
    /// Whether it was returned to.
    restored: AtomicBool,
}

/// The keys and sessions of a snapshot.
#[derive(Default)]
struct Kept {
    keys: HashSet<String>,
    sessions: HashSet<String>,
}

impl World {
    fn new(bug: Bug) -> Result<Arc<Self>> {
        Ok(Arc::new(Self {
            bug,
            store: tenure_memory::connect(MemoryConfig::new())?,
            links: Mutex::default(),
            token: AtomicU64::new(match bug {
                Bug::FallingTokens => 1_000_000,
                _ => 0,
            }),
            stacks: Mutex::default(),
            folded: Mutex::default(),
            reentrant: Mutex::default(),
            waited: Mutex::default(),
            leases: Mutex::default(),
            floor: AtomicU64::default(),
            less: AtomicU64::default(),
            kept: Mutex::default(),
            restored: AtomicBool::new(false),
        }))
    }

    /// The embedded store tells its clients at once of what an operator does; behind a silence it
    /// takes a renewal or an audit, as with other stores.
    fn in_silence<T>(&self, operate: impl FnOnce(&MemoryBackend) -> T) -> T {
        let links = self.links.lock().unwrap().clone();
        links.iter().for_each(|link| link.inject(Fault::Silent));
        let done = operate(self.store.backend());
        links.iter().for_each(|link| link.heal());
        done
    }

    fn frees_at_events(&self) {
        if self.bug != Bug::FreesAtEvents {
            return;
        }
        let leases = self.leases.lock().unwrap();
        // Their ids are numbers.
        let oldest = leases.keys().min_by_key(|id| id.parse::<u64>().unwrap());
        let oldest = SessionId::new(oldest.unwrap().clone());
        assert!(self.in_silence(|store| store.revoke(&oldest)));
    }

    fn keep(&self) {
        *self.kept.lock().unwrap() = Kept {
            keys: self.store.backend().keys().into_iter().collect(),
            sessions: self.leases.lock().unwrap().keys().cloned().collect(),
        };
    }

    /// Takes away what came after the snapshot. What went after it, and the tokens, stay as they are: that is
    /// all that the cases need.
    fn return_to_kept(&self) {
        self.restored.store(true, Ordering::SeqCst);
        let kept = self.kept.lock().unwrap();
        let late: Vec<_> = self.leases.lock().unwrap().keys().cloned().collect();
        self.in_silence(|store| {
            for session in late.iter().filter(|id| !kept.sessions.contains(*id)) {
                store.revoke(&SessionId::new(session.clone()));
            }
            for key in store.keys().iter().filter(|key| !kept.keys.contains(*key)) {
                store.delete(key);
            }
        });
    }

    fn connect(self: &Arc<Self>) -> Mutant {
        let inner = self.store.backend().reconnect();
        self.links.lock().unwrap().push(inner.link());
        Mutant {
            inner,
            world: Arc::clone(self),
        }
    }
}

/// A case's stage. A restart may replace the world.
pub(crate) struct Stage(Mutex<Arc<World>>);

impl Stage {
    pub(crate) fn new(bug: Bug) -> Result<Self> {
        Ok(Self(Mutex::new(World::new(bug)?)))
    }

    fn world(&self) -> Arc<World> {
        Arc::clone(&self.0.lock().unwrap())
    }
}

#[async_trait]
impl Harness for Stage {
    async fn connect(&self) -> Result<Store> {
        Ok(Store::new(self.world().connect()).into_dyn())
    }

    fn offers(&self) -> &[Need] {
        &[
            Need::Silence,
            Need::Cut,
            Need::Mute,
            Need::Elsewhere,
            Need::Revoke,
            Need::Delete,
            Need::Keys,
            Need::Restart,
            Need::Disturb,
            Need::LoseMinority,
            Need::Sessions,
            Need::Capacity,
            Need::Hold,
            Need::Survivors,
            Need::Failover,
            Need::ClockJump,
            Need::Restore,
        ]
    }

    async fn linked(&self) -> Result<Linked> {
        let backend = self.world().connect();
        let link: Box<dyn Link> = Box::new(backend.inner.link());
        Ok(Linked {
            store: Store::new(backend).into_dyn(),
            link,
        })
    }

    async fn elsewhere(&self) -> Result<Store> {
        let mut there = self.world().connect();
        if self.world().bug != Bug::OneNamespace {
            there.inner = there.inner.in_namespace(Namespace::new("elsewhere")?);
        }
        Ok(Store::new(there).into_dyn())
    }

    fn operator(&self) -> Option<&dyn Operator> {
        Some(self)
    }

    fn capacity(&self) -> Option<usize> {
        Some(tenure_memory::CAPACITY)
    }
}

#[async_trait]
impl Operator for Stage {
    async fn revoke(&self, session: &SessionId) -> Result<()> {
        // Gone already is as good.
        self.world().in_silence(|store| store.revoke(session));
        Ok(())
    }

    async fn delete(&self, key: &str) -> Result<()> {
        assert!(self.world().in_silence(|store| store.delete(key)));
        Ok(())
    }

    async fn keys(&self) -> Result<Vec<String>> {
        Ok(self.world().store.backend().keys())
    }

    async fn sessions(&self) -> Result<usize> {
        Ok(self.world().store.backend().footprint().sessions)
    }

    async fn restart(&self) -> Result<()> {
        if self.world().bug == Bug::Amnesia {
            let links = self.world().links.lock().unwrap().clone();
            links.iter().for_each(|link| link.inject(Fault::Silent));
            *self.0.lock().unwrap() = World::new(Bug::Amnesia)?;
        }
        self.world().frees_at_events();
        if self.world().bug == Bug::FloorIsForgotten {
            let floor = self.world().floor.load(Ordering::SeqCst);
            self.world().less.store(floor, Ordering::SeqCst);
        }
        Ok(())
    }

    async fn snapshot(&self) -> Result<()> {
        self.world().keep();
        Ok(())
    }

    async fn restore(&self) -> Result<()> {
        self.world().return_to_kept();
        Ok(())
    }

    async fn lag(&self) -> Result<()> {
        Ok(())
    }

    async fn fail_over(&self) -> Result<()> {
        self.restart().await
    }

    async fn clock_forward(&self, _: Duration) -> Result<()> {
        self.world().frees_at_events();
        Ok(())
    }

    async fn clock_back(&self, _: Duration) -> Result<()> {
        Ok(())
    }

    async fn disturb(&self) -> Result<()> {
        Ok(())
    }

    async fn lose_minority(&self) -> Result<()> {
        if self.world().bug == Bug::Collapse {
            let links = self.world().links.lock().unwrap().clone();
            links.iter().for_each(|link| link.inject(Fault::Silent));
        }
        Ok(())
    }
}

struct Mutant {
    inner: MemoryBackend,
    world: Arc<World>,
}

impl Mutant {
    fn opened(
        &self,
        lease: Arc<MemorySession>,
        id: SessionId,
        ttl: Duration,
        capacity: usize,
    ) -> Opened<MutantLease> {
        let mut leases = self.world.leases.lock().unwrap();
        leases.insert(id.as_str().to_owned(), (Arc::clone(&lease), ttl));
        Opened {
            lease: Arc::new(MutantLease {
                locker: Arc::clone(&lease).typed_locker(),
                inner: lease,
                link: self.inner.link(),
                world: Arc::clone(&self.world),
                answered: AtomicBool::new(false),
            }),
            id,
            ttl,
            capacity: match self.world.bug {
                Bug::SmallCapacity => capacity / 2,
                _ => capacity,
            },
        }
    }
}

/// A clock on a runtime whose time is paused: it never moves.
static FROZEN: LazyLock<(tokio::runtime::Runtime, Clock)> = LazyLock::new(|| {
    std::thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        let clock = runtime.block_on(async { Clock::tokio() });
        (runtime, clock)
    })
    .join()
    .unwrap()
});

#[async_trait]
impl Backend for Mutant {
    type Session = MutantLease;

    async fn open(&self, ttl: Duration, options: &SessionOptions) -> Result<Opened<MutantLease>> {
        let (real, told) = match self.world.bug {
            Bug::ShortTtl => (ttl / 2, ttl / 2),
            Bug::EarlyExpiry => (ttl / 2, ttl),
            Bug::LateExpiry => (ttl * 4, ttl),
            _ => (ttl, ttl),
        };
        let opened = self.inner.open(real, options).await?;
        Ok(self.opened(opened.lease, opened.id, told, opened.capacity))
    }

    async fn resume(&self, id: &SessionId) -> Result<Opened<MutantLease>> {
        if self.world.bug == Bug::ResumeForAll {
            let known = self.world.leases.lock().unwrap().get(id.as_str()).cloned();
            let (lease, ttl) = known.ok_or_else(|| Error::lost(LossReason::Expired))?;
            return Ok(self.opened(lease, id.clone(), ttl, 100));
        }
        let opened = self.inner.resume(id).await?;
        let told = match self.world.bug {
            Bug::LateExpiry => opened.ttl / 4,
            _ => opened.ttl,
        };
        Ok(self.opened(opened.lease, opened.id, told, opened.capacity))
    }

    async fn guarantees(&self) -> Result<Guarantees> {
        let mut claims = self.inner.guarantees().await?;
        claims.token_order = Claim::new(TokenOrder::Failover, "so it says");
        claims.durability = Claim::new(Durability::Durable, "so it says");
        claims.minority_loss = Claim::new(MinorityLoss::Survives, "so it says");
        Ok(claims)
    }

    async fn raise_token_floor(&self, floor: FencingToken) -> Result<()> {
        let world = &self.world;
        let unset =
            world
                .floor
                .compare_exchange(0, floor.get(), Ordering::SeqCst, Ordering::SeqCst);
        match world.bug {
            Bug::FloorIgnored => return Ok(()),
            Bug::FloorForLocksOnly => {
                let more = world.floor.load(Ordering::SeqCst);
                world.less.store(0u64.wrapping_sub(more), Ordering::SeqCst);
                return Ok(());
            }
            Bug::FloorFalls => {
                let less = unset.err().map_or(0, |first| first - floor.get());
                world.less.store(less, Ordering::SeqCst);
            }
            Bug::FloorRemovesHolders => world.in_silence(|store| {
                for key in store.keys() {
                    store.delete(&key);
                }
            }),
            _ => {}
        }
        self.inner.raise_token_floor(floor).await
    }

    fn clock(&self) -> Clock {
        match self.world.bug {
            Bug::FrozenClock => FROZEN.1.clone(),
            _ => self.inner.clock(),
        }
    }
}

struct MutantLease {
    inner: Arc<MemorySession>,
    locker: Arc<MemoryLocker>,
    link: tenure_memory::Link,
    world: Arc<World>,
    /// A renewal was answered that has not been counted yet.
    answered: AtomicBool,
}

impl MutantLease {
    /// The names in `noted` that are this session's.
    fn names(&self, noted: &Mutex<HashSet<(usize, String)>>) -> Vec<String> {
        let me = Arc::as_ptr(&self.inner) as usize;
        let noted = noted.lock().unwrap();
        let mine = noted.iter().filter(|(session, _)| *session == me);
        mine.map(|(_, name)| name.clone()).collect()
    }
}

#[async_trait]
impl Lease for MutantLease {
    async fn renew(&self) -> Result<()> {
        match self.world.bug {
            Bug::DeafRenewal | Bug::ResumeForAll => Ok(()),
            Bug::OptimisticRenewal => {
                let inner = Arc::clone(&self.inner);
                tokio::spawn(async move { inner.renew().await });
                Ok(())
            }
            Bug::CountsFromArrival => {
                if self.answered.swap(false, Ordering::SeqCst) {
                    return Ok(());
                }
                self.inner.renew().await?;
                self.answered.store(true, Ordering::SeqCst);
                Err(Error::new(ErrorKind::Unavailable, "ask again"))
            }
            Bug::BrittleRenewal => {
                let moment = Duration::from_millis(200);
                let answer = tokio::time::timeout(moment, self.inner.renew()).await;
                answer.unwrap_or_else(|_| Err(Error::lost(LossReason::Revoked)))
            }
            Bug::DeafPolling => {
                let _ = self.inner.renew().await;
                Ok(())
            }
            _ => self.inner.renew().await,
        }
    }

    async fn revoke(&self) -> Result<()> {
        match self.world.bug {
            Bug::RevokeNothing | Bug::NeverLetsGo | Bug::Ghosts => Ok(()),
            Bug::RevokeFails => Err(Error::new(ErrorKind::Internal, "no")),
            _ => self.inner.revoke().await,
        }
    }

    async fn audit(&self, held: &[Held]) -> Result<Vec<u64>> {
        match self.world.bug {
            // Nor is what was invented: it is nowhere.
            Bug::BlindAudit | Bug::WaitsInThePast => Ok(Vec::new()),
            _ => self.inner.audit(held).await,
        }
    }

    fn detachable(&self) -> bool {
        true
    }

    async fn detach(&self, held: &[Held]) -> Result<()> {
        match self.world.bug {
            Bug::DetachFrees => self.inner.revoke().await,
            Bug::DetachGhosts => {
                self.inner.detach(held).await?;
                for name in self.names(&self.world.waited) {
                    let ghost = self.world.store.open(SessionOptions::new()).await?;
                    let handle = ghost.locker(name)?;
                    tokio::spawn(async move {
                        let _guard = handle.lock().await;
                        std::future::pending::<()>().await;
                    });
                }
                Ok(())
            }
            Bug::LateDetachRelease => {
                self.inner.detach(held).await?;
                let (world, names) = (Arc::clone(&self.world), self.names(&self.world.reentrant));
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                    let store = world.store.backend();
                    for key in store.keys() {
                        if names.iter().any(|name| key.contains(name)) {
                            store.delete(&key);
                        }
                    }
                });
                Ok(())
            }
            Bug::ResumeForAll => Ok(()),
            _ => self.inner.detach(held).await,
        }
    }

    fn barrier(self: Arc<Self>) -> Option<Arc<dyn Barrier>> {
        Arc::clone(&self.inner).barrier()
    }

    fn rw_lock(self: Arc<Self>) -> Option<Arc<dyn RwLock>> {
        Arc::clone(&self.inner).rw_lock()
    }

    fn locker(self: Arc<Self>) -> Option<Arc<dyn Locker>> {
        Some(Arc::new(MutantLocker {
            inner: Arc::clone(&self.locker),
            session: Arc::as_ptr(&self.inner) as usize,
            world: Arc::clone(&self.world),
        }))
    }

    fn election(self: Arc<Self>) -> Option<Arc<dyn Election>> {
        let bug = match self.world.bug {
            Bug::Election(bug) => Some(bug),
            _ => None,
        };
        let election = Arc::clone(&self.inner).typed_election();
        let link = self.link.clone();
        let mutant = election::MutantElection::new(election, bug, &self.world, link);
        Some(Arc::new(mutant))
    }

    fn stm(self: Arc<Self>) -> Option<Arc<dyn Stm>> {
        Some(Arc::new(stm::MutantStm {
            inner: Arc::clone(&self.inner).typed_stm(),
            world: Arc::clone(&self.world),
        }))
    }

    fn queue(self: Arc<Self>) -> Option<Arc<dyn Queue>> {
        let bug = match self.world.bug {
            Bug::Queue(bug) => Some(bug),
            _ => None,
        };
        let queue = Arc::clone(&self.inner).typed_queue();
        Some(Arc::new(queue::MutantQueue::new(queue, bug, &self.world)))
    }
}

struct MutantLocker {
    inner: Arc<MemoryLocker>,
    session: usize,
    world: Arc<World>,
}

/// A grant that the store knows nothing of.
struct Invented;

impl MutantLocker {
    fn invented(&self) -> Grant {
        let token = self.world.token.fetch_add(1, Ordering::SeqCst) + 1_000;
        Grant::new(FencingToken::new(token), "nowhere").attach(Invented)
    }

    /// The grant as the mutant shows it, with the true one inside.
    fn shown(&self, ask: &Ask, grant: Grant) -> Grant {
        let token = match self.world.bug {
            Bug::ConstantToken => 7,
            Bug::FallingTokens => self.world.token.fetch_sub(1, Ordering::SeqCst),
            _ => {
                let less = self.world.less.load(Ordering::SeqCst);
                grant.token().get().wrapping_sub(less)
            }
        };
        let name = ask.name().as_str();
        self.world
            .folded
            .lock()
            .unwrap()
            .insert(name.to_lowercase(), name.to_owned());
        self.world
            .reentrant
            .lock()
            .unwrap()
            .insert((self.session, name.to_owned()));
        Grant::new(FencingToken::new(token), grant.key().to_owned()).attach(grant)
    }

    /// An answer that the bug gives before the store is asked.
    fn at_once(&self, ask: &Ask) -> Option<Result<Option<Grant>>> {
        let name = ask.name().as_str();
        let mine = (self.session, name.to_owned());
        match self.world.bug {
            Bug::NoExclusion => Some(Ok(Some(self.invented()))),
            Bug::Reentrant if self.world.reentrant.lock().unwrap().contains(&mine) => {
                Some(Ok(Some(self.invented())))
            }
            Bug::FoldedNames => {
                let folded = self.world.folded.lock().unwrap();
                let taken = folded
                    .get(&name.to_lowercase())
                    .is_some_and(|held| held != name);
                taken.then_some(Ok(None))
            }
            Bug::ShortNames if name.len() > 255 => Some(Err(Error::new(
                ErrorKind::TooLarge,
                "a key of 255 bytes at most",
            ))),
            _ => None,
        }
    }

    async fn poll(&self, ask: &Ask, every: Duration, mine: impl Fn() -> bool) -> Result<Grant> {
        loop {
            if mine()
                && let Some(grant) = self.inner.try_acquire(ask).await?
            {
                return Ok(grant);
            }
            tokio::select! {
                () = tokio::time::sleep(every) => {}
                () = ask.withdrawn() => return Err(Error::withdrawn()),
            }
        }
    }

    async fn last_in_first_out(&self, ask: &Ask) -> Result<Grant> {
        let (name, nonce) = (ask.name().as_str().to_owned(), ask.nonce());
        let stack = |change: &dyn Fn(&mut Vec<u64>)| {
            let mut stacks = self.world.stacks.lock().unwrap();
            let stack = stacks.entry(name.clone()).or_default();
            change(stack);
            stack.last() == Some(&nonce)
        };
        stack(&|waiting| waiting.push(nonce));
        let every = Duration::from_millis(2);
        let got = self.poll(ask, every, || stack(&|_| {})).await;
        stack(&|waiting| waiting.retain(|other| *other != nonce));
        got
    }
}

#[async_trait]
impl Locker for MutantLocker {
    async fn try_acquire(&self, ask: &Ask) -> Result<Option<Grant>> {
        if let Some(answer) = self.at_once(ask) {
            return answer;
        }
        if self.world.bug == Bug::TryQueues {
            let moment = Duration::from_millis(5);
            let waiting = tokio::time::timeout(moment, self.inner.acquire(ask)).await;
            return waiting
                .ok()
                .transpose()
                .map(|it| it.map(|it| self.shown(ask, it)));
        }
        let grant = self.inner.try_acquire(ask).await?;
        Ok(grant.map(|grant| self.shown(ask, grant)))
    }

    async fn acquire(&self, ask: &Ask) -> Result<Grant> {
        if let Some(answer) = self.at_once(ask) {
            return answer?.ok_or_else(|| Error::new(ErrorKind::Internal, "taken"));
        }
        let mine = (self.session, ask.name().as_str().to_owned());
        self.world.waited.lock().unwrap().insert(mine);
        let seldom = Duration::from_secs(15);
        let floor = self.world.floor.load(Ordering::SeqCst);
        let grant = match self.world.bug {
            Bug::Polling | Bug::DeafPolling => self.poll(ask, seldom, || true).await,
            Bug::LastInFirstOut => self.last_in_first_out(ask).await,
            Bug::GrantsTheRemoved => match self.inner.acquire(ask).await {
                Err(error) if error.kind() == ErrorKind::Lost => return Ok(self.invented()),
                answer => answer,
            },
            Bug::FloorSparesWaiters => {
                let grant = self.inner.acquire(ask).await?;
                let token = match self.world.floor.load(Ordering::SeqCst) {
                    now if now > floor => grant.token().get() - now,
                    _ => grant.token().get(),
                };
                let shown = Grant::new(FencingToken::new(token), grant.key().to_owned());
                return Ok(shown.attach(grant));
            }
            Bug::WaitsInThePast if !self.world.restored.load(Ordering::SeqCst) => {
                let restored = async {
                    while !self.world.restored.load(Ordering::SeqCst) {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                };
                let ended = tokio::select! {
                    grant = self.inner.acquire(ask) => grant,
                    () = restored => return Ok(self.invented()),
                };
                match ended {
                    // Its place went with the history.
                    Err(_) if self.world.restored.load(Ordering::SeqCst) => {
                        return Ok(self.invented());
                    }
                    ended => ended,
                }
            }
            _ => self.inner.acquire(ask).await,
        }?;
        Ok(self.shown(ask, grant))
    }
}

#[async_trait]
impl Settle for MutantLocker {
    async fn release(&self, ask: &Ask, grant: &Grant) -> Result<()> {
        if grant.attachment::<Invented>().is_some() {
            return Ok(());
        }
        let name = ask.name().as_str();
        self.world
            .folded
            .lock()
            .unwrap()
            .remove(&name.to_lowercase());
        let mine = (self.session, name.to_owned());
        self.world.reentrant.lock().unwrap().remove(&mine);
        match self.world.bug {
            Bug::ReleaseNothing | Bug::NeverLetsGo => Ok(()),
            Bug::Ghosts if ask.is_withdrawn() => Ok(()),
            Bug::PlainRelease => {
                let store = self.world.store.backend();
                let holder = store.keys().into_iter().find(|key| key.contains(name));
                if let Some(key) = holder {
                    store.delete(&key);
                }
                Ok(())
            }
            _ => {
                let inner = grant.attachment::<Grant>().unwrap_or(grant);
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

    async fn reclaim(&self, ask: &Ask, token: FencingToken) -> Result<Option<Grant>> {
        let mut grant = self.inner.reclaim(ask, token).await?;
        if self.world.bug == Bug::ReclaimsAnyToken {
            // The store's tokens are small numbers.
            for other in 0..token.get() {
                if grant.is_none() {
                    grant = self.inner.reclaim(ask, FencingToken::new(other)).await?;
                }
            }
        }
        Ok(grant.map(|grant| self.shown(ask, grant)))
    }
}
