//! The long form of the suite: everything at once, for a while, under one fault after another.
//!
//! A *run* is a store and a seed. Clients, each a process of its own as far as a test can have that,
//! use locks, transactions, a queue, an election and a read-write lock at the same time. When they have shown that they
//! get on, faults begin, drawn from the seed: clients are paused, killed, cut off and cancelled; the
//! store is paused and killed. In the end all is healed, what was left open is read, and the
//! [checkers](crate::checkers) judge what the clients saw:
//!
//! * the tokens of each lock, as granted and as a fenced register took them, and an order of all holdings;
//! * a register in the store, behind commits that are fenced by the lock;
//! * lists that are appended to and read, which must be strictly serializable;
//! * what went into the queue and what came out;
//! * leaders, as if they held a lock, and what they proclaim to those who look on;
//! * readers and writers, and whether a reader ever saw a half of what a writer changed.
//!
//! A run in which too little happened, in particular before the first fault, is [invalid](Verdict::Invalid):
//! it counts for nothing. [`run`] is one run, [`sweep`] is many.

mod ambush;
mod body;
mod client;
mod faults;
mod gates;
mod items;
mod judge;
mod leaders;
mod lists;
mod locks;
mod progress;
mod prompt;
mod replay;
mod report;
mod shelf;
mod sweep;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tenure_core::{
    Durability, EarlyRelease, Error, ErrorKind, FencedCommit, Isolation, Observers, QueueOrder,
    TokenOrder,
};
use tokio::time::Instant;

use crate::case::{Case, Outcome, Promise};
use crate::cases::{expiry_bound, guarantees};
use crate::harness::{Harness, Need, Subject};
use crate::patient::unless_away;
use crate::timeline::Timeline;
use client::{Crew, Role, Shared};
pub use faults::{Fault, Kind, Schedule};
pub use gates::{GateAnswer, GateCall, GateOperation};
pub use judge::{Earlier, Evidence, Histories, Span, Stopped};
pub use replay::{elle, replay};
pub use report::{Row, Summary};
pub use sweep::{Progress, Sweep, sweep};

/// How a run goes. [`Plan::long`] and [`Plan::short`] are the two that are meant to be used.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Plan {
    /// How many operations there have to be, all in all.
    pub operations: usize,
    /// How many of them before the first fault.
    pub calm: usize,
    /// How many faults there have to be.
    pub faults: usize,
    /// For all that. What is missing then makes the run invalid.
    pub limit: Duration,
    /// How long a client may take to end, and the store to be quiet, when all is healed. Whatever takes
    /// longer hangs.
    pub hang: Duration,
    /// Only faults of these kinds; all if empty.
    pub kinds: Vec<Kind>,
    /// Whether it is looked, when all is healed, that everybody gets on.
    pub patient: bool,
    /// Whether the register behind the locks looks at tokens. One that does not is a control: it
    /// has to go wrong.
    pub fenced: bool,
    /// The level of all transactions; each chooses among the serializable ones if there is none here. A
    /// weaker one is a control: it has to go wrong.
    pub isolation: Option<Isolation>,
    /// Judges as if the store had said that it forgets nothing. Where it does forget, a control: it has to go
    /// wrong.
    pub durable: bool,
    /// Runs all clients as tasks of the caller's runtime, which must have one thread and a paused clock. Then a
    /// request takes no time, a run is the same each time for its seed, and promptness and order of arrival are judged
    /// as well. For a store in this process.
    pub one_thread: bool,
    /// How much slower than usual clients are: with how many operations a second the store is busy.
    pub pace: u32,
    /// Of so many holdings one lasts for some TTLs.
    pub lasting: u64,
}

impl Plan {
    /// Ten thousand operations and eight faults at least.
    pub fn long() -> Self {
        Self {
            operations: 10_000,
            calm: 500,
            faults: 8,
            limit: Duration::from_secs(300),
            hang: Duration::from_secs(90),
            kinds: Vec::new(),
            patient: true,
            fenced: true,
            isolation: None,
            durable: false,
            one_thread: false,
            pace: 1,
            lasting: 400,
        }
    }

    /// Some hundred operations and three faults: for the tests of every day.
    pub fn short() -> Self {
        Self {
            operations: 600,
            calm: 100,
            faults: 3,
            limit: Duration::from_secs(120),
            ..Self::long()
        }
    }

    /// On one thread under tokio's paused clock: some virtual minutes with ten faults, in a second.
    pub fn paused() -> Self {
        Self {
            operations: 4_000,
            calm: 1_000,
            faults: 10,
            limit: Duration::from_secs(1_200),
            one_thread: true,
            pace: 40,
            lasting: 60,
            ..Self::long()
        }
    }

    /// With faults of these kinds alone.
    #[must_use]
    pub fn only(mut self, kinds: impl Into<Vec<Kind>>) -> Self {
        self.kinds = kinds.into();
        self
    }

    /// With a register that takes every write.
    #[must_use]
    pub fn unfenced(mut self) -> Self {
        self.fenced = false;
        self
    }

    /// Without the look, when all is healed, whether everybody gets on: for what shows before that.
    #[must_use]
    pub fn in_a_hurry(mut self) -> Self {
        self.patient = false;
        self
    }

    /// With a judge who takes the store for one that forgets nothing.
    #[must_use]
    pub fn as_if_durable(mut self) -> Self {
        self.durable = true;
        self
    }

    /// With all transactions at this level.
    #[must_use]
    pub fn isolation(mut self, isolation: Isolation) -> Self {
        self.isolation = Some(isolation);
        self
    }
}

/// What came of a run.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// Everything held.
    Passed,
    /// Something did not.
    Violated {
        /// What.
        what: String,
        /// The history that shows it.
        history: Option<Box<Timeline>>,
    },
    /// Too little happened, or the stage could not be set: proves nothing.
    Invalid {
        /// Why.
        why: String,
    },
}

/// How much was done in a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Asks for locks and releases.
    pub locks: usize,
    /// Transactions, those among them that are fenced by a lock.
    pub transactions: usize,
    /// What was asked of the queue.
    pub queue: usize,
    /// Campaigns, resignations, proclamations, and asks who leads.
    pub elections: usize,
    /// Asks for read-write locks, downgrades and releases.
    pub rw_locks: usize,
    /// What was asked of barriers.
    pub gates: usize,
    /// Operations of which nobody knows whether they had an effect: lost answers, clients that died or
    /// gave up.
    pub unknown: usize,
    /// Writes under an old token that the register refused. One without a look at tokens takes them.
    pub refused: usize,
    /// Deliveries from the queue.
    pub deliveries: usize,
    /// Those of them that would have been found out of order, had another item been handed out in their place: more
    /// certainly waited than somebody may have had whom nobody saw.
    pub ordered: usize,
    /// Readers that came in while another was there. Where there are none, nothing was shared.
    pub shared: usize,
    /// Times in which two clients believed that they had the same lock, or led. Informational: belief ends late
    /// where an operator or a restart of the store ends a lease early.
    pub overlaps: usize,
}

impl Counts {
    /// All that was asked of the store.
    pub const fn operations(&self) -> usize {
        self.locks + self.transactions + self.queue + self.elections + self.rw_locks + self.gates
    }
}

/// One run.
#[derive(Debug)]
#[non_exhaustive]
pub struct Run {
    /// What makes the same schedule and the same choices again.
    pub seed: u64,
    /// What came of it.
    pub verdict: Verdict,
    /// How much was done.
    pub counts: Counts,
    /// How much of it before the first fault.
    pub calm: usize,
    /// The faults, by kind.
    pub faults: BTreeMap<Kind, usize>,
    /// How long it took.
    pub took: Duration,
    /// What the clients saw.
    pub histories: Histories,
}

impl Run {
    fn new(seed: u64) -> Self {
        Self {
            seed,
            verdict: Verdict::Passed,
            counts: Counts::default(),
            calm: 0,
            faults: BTreeMap::new(),
            took: Duration::ZERO,
            histories: Histories::default(),
        }
    }

    fn not_staged(seed: u64, error: &tenure_core::Error) -> Self {
        let why = format!("the store does not start: {error}", error = error.chain());
        Self {
            verdict: Verdict::Invalid { why },
            ..Self::new(seed)
        }
    }

    /// How many faults there were.
    pub fn faults(&self) -> usize {
        self.faults.values().sum()
    }
}

/// The stage of a run: a store that nobody else feels.
///
/// # Errors
///
/// Whatever keeps the store from being started or reached.
pub async fn stage(subject: &dyn Subject) -> tenure_core::Result<Box<dyn Harness>> {
    /// Never attacks: it says what a run needs of its store.
    const STAGE: Case = Case {
        id: "storm",
        rule: "store",
        title: "everything at once, under one fault after another",
        line: None,
        needs: &[Need::Restart, Need::Pause],
        promise: |_| Promise::Made,
        attack: |_| Box::pin(async { Err(Outcome::not_run("a stage, and no case")) }),
    };
    subject.stage(&STAGE).await
}

/// One run on a stage of its own, the same for the same `seed` as far as the machine lets it be.
///
/// # Cancel safety
///
/// Dropped, it leaves the clean-up to the TTL.
pub async fn run(harness: &dyn Harness, seed: u64, plan: &Plan) -> Run {
    let started = Instant::now();
    let mut run = Run::new(seed);
    if let Err(stopped) = weather(harness, plan, &mut run).await {
        let gone = match stopped {
            Outcome::Violated { judged: false, .. } => is_gone(harness).await,
            _ => None,
        };
        run.verdict = match gone {
            Some(error) => {
                let why = format!("the store is gone: {error}", error = error.chain());
                run.histories.evidence.stopped = Some(Stopped {
                    violated: false,
                    why: why.clone(),
                });
                Verdict::Invalid { why }
            }
            None => verdict(stopped),
        };
    }
    let cleaned = tokio::time::timeout(plan.hang, harness.clean_up()).await;
    let cleaned = cleaned.unwrap_or_else(|_| {
        let limit = plan.hang;
        Err(Error::new(
            ErrorKind::TimedOut,
            format!("not within {limit:?}"),
        ))
    });
    if let (Verdict::Passed, Err(error)) = (&run.verdict, cleaned) {
        let why = format!(
            "what was left could not be removed: {error}",
            error = error.chain()
        );
        run.histories.evidence.insufficient = Some(why.clone());
        run.verdict = Verdict::Invalid { why };
    }
    run.took = started.elapsed();
    run
}

/// Whether a store that is not ours serves nobody any more. What clients of one that is away could not do says nothing
/// about it. One that was started here, and healed, has to serve.
async fn is_gone(harness: &dyn Harness) -> Option<Error> {
    if harness.offers().contains(&Need::Restart) {
        return None;
    }
    let answer = unless_away(async || harness.connect().await?.guarantees().await).await;
    let error = answer.err()?;
    (error.kind() == ErrorKind::Unavailable).then_some(error)
}

fn verdict(stopped: Outcome) -> Verdict {
    match stopped {
        Outcome::Violated {
            counterexample,
            history,
            ..
        } => Verdict::Violated {
            what: counterexample,
            history,
        },
        Outcome::Held { .. } => Verdict::Passed,
        other => Verdict::Invalid {
            why: other.details(),
        },
    }
}

/// What the store says, as far as it decides how a run is judged.
#[derive(Clone, Copy, Debug)]
struct Said {
    /// A restart of the store may end leases before their time, and forget a delivery.
    restart_frees: bool,
    /// So may some other event end leases: a change of leader, another clock.
    frees_early: bool,
    /// So may the end of a connection.
    connection_frees: bool,
    /// Observers of an election never go back, whatever becomes of the store.
    converges: bool,
    /// The queue has an order.
    ordered: bool,
    /// Commits can be fenced by a lock.
    fenced_commits: bool,
    /// What the order of tokens survives.
    tokens: TokenOrder,
    /// What is stored outlives the process that acknowledged it.
    keeps: bool,
    /// How much later than its TTL a dead session is gone.
    expiry: Duration,
}

impl Said {
    /// Whether what was acknowledged, items and transactions, may be gone after it.
    const fn forgets(self, kind: Kind) -> bool {
        let dies = kind.ends_processes() || matches!(kind, Kind::MinorityLost);
        dies && !self.keeps
    }

    /// Whether tokens rise over it. All that is judged rests on them, so nothing is left of a run with an event in
    /// which they may begin anew.
    fn orders_over(self, kind: Kind) -> bool {
        let survives = match kind {
            Kind::FailedOver | Kind::MinorityLost => TokenOrder::Failover,
            Kind::StoreKilled | Kind::ClockForward | Kind::ClockBack => TokenOrder::StoreRestart,
            _ => return true,
        };
        self.tokens >= survives
    }
}

async fn weather(
    harness: &dyn Harness,
    plan: &Plan,
    run: &mut Run,
) -> std::result::Result<(), Outcome> {
    let promised = guarantees(harness).await.map_err(no_stage)?;
    let frees = promised.early_release.value != EarlyRelease::Never;
    let said = Said {
        restart_frees: frees && promised.durability.value != Durability::Durable,
        frees_early: frees,
        // Such a connection cannot be cut and looked behind, so the harness does not offer it.
        connection_frees: frees && !harness.offers().contains(&Need::Cut),
        converges: promised.observers.value == Observers::Converge,
        ordered: promised.queue_order.value == QueueOrder::PriorityThenFifo,
        fenced_commits: promised.fenced_commit.value == FencedCommit::Atomic,
        tokens: promised.token_order.value,
        keeps: promised.durability.value != Durability::Volatile,
        expiry: expiry_bound(harness).await.map_err(no_stage)?,
    };
    let kinds = Kind::ALL.iter().copied().filter(|kind| {
        kind.possible(harness)
            && said.orders_over(*kind)
            && (plan.kinds.is_empty() || plan.kinds.contains(kind))
    });
    let kinds: Vec<Kind> = kinds.collect();
    let of = |wanted: &dyn Fn(Kind) -> bool| -> Vec<Kind> {
        kinds.iter().copied().filter(|kind| wanted(*kind)).collect()
    };
    // What the set-up is there for, and what a store forgets in, comes early.
    let due = of(&|kind| kind.is_event() || said.forgets(kind));
    let once = of(&|kind| kind.only_once(harness));
    let schedule = Schedule::new(kinds.clone(), harness.ttl(), run.seed);
    let mut schedule = schedule.due(due).once(&once);

    let shared = Arc::new(Shared::new(plan, said, harness.ttl()));
    let signing = tokio::time::timeout(plan.hang, Crew::sign_on(harness, &shared, run.seed));
    if frees && harness.offers().contains(&Need::ReturnMembers) {
        // Members may elect another leader whenever the machine is busy, and nobody sees that from here.
        shared.never_believe();
    }
    let mut crew = signing
        .await
        .map_err(|_| Outcome::not_run("the clients do not come to connect"))??;
    let until = Instant::now() + plan.limit;
    let stormed = storm(harness, plan, run, &shared, &mut crew, &mut schedule, until).await;
    let ended = match stormed {
        Ok(()) => {
            match tokio::time::timeout(plan.hang * 4, quiet(harness, plan, &shared, &mut crew))
                .await
            {
                Ok(ended) => ended,
                Err(_) => Err(Outcome::violated(format!(
                    "{:?} after all was healed the last look had not ended",
                    plan.hang * 4
                ))),
            }
        }
        Err(stopped) => Err(stopped),
    };
    drop(crew);
    // Whatever came of it, what the clients saw is kept, and judged: a run that is cut short may have
    // shown enough.
    run.histories = shared.histories();
    run.histories.evidence = Evidence::of(run.seed, &shared, &ended);
    run.counts = judge::count(&run.histories, &shared);
    judge::judge(&run.histories)?;
    ended?;
    let proved = proves(plan, run, &shared, &schedule);
    run.histories.evidence.insufficient = proved.as_ref().err().map(Outcome::details);
    proved
}

/// Whether enough happened in a run in which nothing was broken.
fn proves(
    plan: &Plan,
    run: &Run,
    shared: &Shared,
    schedule: &Schedule,
) -> std::result::Result<(), Outcome> {
    if shared.least() * 100 < plan.operations {
        return Err(Outcome::not_run(format!(
            "among {} operations only {} of one kind came to something: too few to prove anything",
            run.counts.operations(),
            shared.least()
        )));
    }
    let (operations, faults) = (run.counts.operations(), run.faults());
    if operations < plan.operations || faults < plan.faults {
        return Err(Outcome::not_run(format!(
            "{operations} operations and {faults} faults in {:?}, where {} and {} were due: too few to prove anything",
            plan.limit, plan.operations, plan.faults
        )));
    }
    if run.counts.shared == 0 {
        let why =
            "no two readers were inside at a time: that no writer was beside them proves nothing";
        return Err(Outcome::not_run(why));
    }
    match schedule.missing() {
        [] => Ok(()),
        missing => Err(Outcome::not_run(format!(
            "the event for which the set-up is there was not dealt within {:?}: {missing:?}",
            plan.limit
        ))),
    }
}

fn no_stage(error: tenure_core::Error) -> Outcome {
    Outcome::not_run(format!(
        "the store does not say what it promises: {error}",
        error = error.chain()
    ))
}

/// First peace, until enough was done; then one fault after another, until there was enough of everything.
async fn storm(
    harness: &dyn Harness,
    plan: &Plan,
    run: &mut Run,
    shared: &Arc<Shared>,
    crew: &mut Crew,
    schedule: &mut Schedule,
    until: Instant,
) -> std::result::Result<(), Outcome> {
    const LOOK: Duration = Duration::from_millis(20);
    loop {
        run.calm = shared.done();
        if run.calm >= plan.calm && shared.least() * 20 >= plan.calm {
            break;
        }
        if Instant::now() >= until {
            return Err(Outcome::not_run(format!(
                "{} operations in {:?} before the first fault, where {} were due, and {} of one kind came to something: too few to prove anything",
                run.calm,
                plan.limit,
                plan.calm,
                shared.least()
            )));
        }
        crew.all_at_work(shared)?;
        tokio::time::sleep(LOOK).await;
    }
    judge_so_far(shared, run.seed)?;
    shared.progress.trouble();
    while let Some(fault) = schedule.next() {
        if crew.suffer(harness, shared, fault, plan.hang).await? {
            *run.faults.entry(fault.kind).or_default() += 1;
            if run.faults() * 2 == plan.faults {
                judge_so_far(shared, run.seed)?;
            }
        }
        tokio::time::sleep(fault.peace).await;
        crew.all_at_work(shared)?;
        let enough = shared.done() >= plan.operations;
        if enough {
            // What is missing now is time, and not work.
            shared.enough.store(true, Ordering::Relaxed);
        }
        let suffered = run.faults() >= plan.faults && schedule.missing().is_empty();
        if (enough && suffered) || Instant::now() >= until {
            break;
        }
    }
    // All is healed. As soon as what the dead had is free, everybody has to get on, and nobody waits in vain.
    if !plan.patient {
        return Ok(());
    }
    let grace = harness.ttl() * 2 + shared.late();
    shared.progress.calm_in(grace);
    tokio::time::sleep(grace).await;
    // Everybody is in everybody's way again, for long enough that a wait in vain is one.
    shared.enough.store(false, Ordering::Relaxed);
    let busy = tokio::time::sleep(shared.patience() + LOOK * 25);
    crew.all_get_on(shared, plan.hang).await?;
    busy.await;
    crew.all_at_work(shared)
}

/// Judges the history so far in runs on one thread, where it costs no time, so that a violation ends the run early.
fn judge_so_far(shared: &Shared, seed: u64) -> std::result::Result<(), Outcome> {
    if !shared.plan.one_thread {
        return Ok(());
    }
    let mut histories = shared.histories();
    let under_way = Err(Outcome::not_run("the run goes on"));
    histories.evidence = Evidence::of(seed, shared, &under_way);
    judge::judge(&histories)
}

/// All is healed: everybody leaves, and what they have left behind is looked at.
async fn quiet(
    harness: &dyn Harness,
    plan: &Plan,
    shared: &Arc<Shared>,
    crew: &mut Crew,
) -> std::result::Result<(), Outcome> {
    shared.stop.store(true, Ordering::Relaxed);
    // Those who look on have to see what comes last.
    crew.sign_off(plan.hang, |role| role != Role::Observer)
        .await?;
    let patience = plan.hang + harness.ttl() + shared.late();
    leaders::last_look(harness, shared, patience).await?;
    crew.sign_off(plan.hang, |_| true).await?;
    shelf::last_look(harness, shared, patience).await?;
    gates::last_look(harness, shared, patience).await?;
    locks::last_look(harness, shared, patience).await?;
    lists::last_look(harness, shared, patience).await?;
    items::last_look(harness, shared, patience).await
}
