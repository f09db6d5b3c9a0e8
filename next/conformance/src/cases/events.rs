//! Events of the store itself, and acts of its operators.
//!
//! Everything is held, waited for and stored, one event happens, and then one question is asked. The
//! answer depends on how the store is run: these cases show why a set-up promises less.

use std::time::Duration;

use tenure_core::guarantees::Line;
use tenure_core::{ErrorKind, FencingToken, Leadership, LockGuard, Result, Session};
use tokio::time::Instant;

use super::election::{Watch, is_led, led};
use super::{granted, still_waiting, waiter};
use crate::case::{Attack, Case};
use crate::harness::{Harness, Link, Need};
use crate::outcome::{Outcome, Step, Verdict};
use crate::promise;
use crate::roles::{Fixture, Held, Role};
use crate::tools::{
    LONG, PROMPT, Task, done, ensure, expiry_bound, held, in_time, offered, open, open_linked, operator, promptly,
    slack, spawn,
};

/// How far clocks jump: beyond every lease of these cases.
const JUMP: Duration = Duration::from_secs(300);

/// An event of the store.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Event {
    Restart,
    Failover,
    ClockForward,
    ClockBack,
    Restore,
    LostMinority,
    RaisedFloor,
}

impl Event {
    const fn words(self) -> &'static str {
        match self {
            Self::Restart => "after a restart of the store",
            Self::Failover => "after a failover",
            Self::ClockForward => "after the store's clock was set forward",
            Self::ClockBack => "after the store's clock was set back",
            Self::Restore => "after the store was restored from a backup",
            Self::LostMinority => "after a minority of the members was lost",
            Self::RaisedFloor => "after the token floor was raised",
        }
    }

    /// From here on the event may take away what a member or a backup does not have.
    async fn prepare(self, harness: &dyn Harness) -> Step<()> {
        match self {
            Self::Failover => done("the lag", operator(harness)?.lag()).await,
            Self::Restore => done("the backup", operator(harness)?.snapshot()).await,
            _ => Ok(()),
        }
    }

    async fn happen(self, harness: &dyn Harness) -> Step<()> {
        let happening = async {
            match (self, harness.operator()) {
                (Self::Restart, Some(operator)) => operator.restart().await,
                (Self::Failover, Some(operator)) => operator.fail_over().await,
                (Self::ClockForward, Some(operator)) => operator.clock_forward(JUMP).await,
                (Self::ClockBack, Some(operator)) => operator.clock_back(JUMP).await,
                (Self::Restore, Some(operator)) => operator.restore().await,
                (Self::LostMinority, Some(operator)) => operator.lose_minority().await,
                (_, None) | (Self::RaisedFloor, _) => Ok(()),
            }
        };
        done("the event", happening).await
    }
}

/// A question that a case asks after an event.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Question {
    /// L1: does a second session hold beside a valid holder?
    OneHolder,
    /// S3: does all that a live session holds stay its own?
    Kept,
    /// S3: is what a dead session held free by its TTL and the stated bound?
    Expired,
    /// L2: is the next token above all before?
    Tokens,
    /// L3: are the waiters granted in their order?
    Order,
    /// E4: does an observer show the next proclamation, and nothing older?
    Observed,
    /// Are accepted items and commits there, and no acknowledged item?
    Stored,
    /// T4: is each confirmed commit there once?
    Commits,
    /// O4: does every holding of a lost history end?
    Ended,
    /// O4: does a waiter of a lost history fail or hold alone?
    Waited,
    /// O4, L2: are all tokens at least the floor that an operator raises?
    Floor,
}

macro_rules! events {
    ($(
        $id:ident $rule:literal $title:literal
        ($line:expr) [$($need:ident),*] $promise:ident, $event:ident $question:ident;
    )*) => {
        /// The cases of this module.
        pub(crate) const CASES: &[Case] = &[$(Case {
            id: stringify!($id),
            rule: $rule,
            title: $title,
            line: $line,
            needs: &[$(Need::$need),*],
            promise: promise::$promise,
            attack: Attack::Single(|harness| Box::pin(after(harness, Event::$event, Question::$question))),
        },)*];
    };
}

events! {
    l1_one_holds_through_a_restart "L1" "a restart of the store grants nothing to a second holder beside the first"
        (Some(Line::MutualExclusion)) [Restart, Survive] one_holder_always, Restart OneHolder;
    l1_one_holds_through_a_failover "L1" "a failover grants nothing to a second holder beside the first"
        (Some(Line::MutualExclusion)) [Failover] one_holder_always, Failover OneHolder;
    l1_one_holds_through_a_clock_jump "L1"
        "a store whose clock is set forward grants nothing to a second holder beside the first"
        (Some(Line::MutualExclusion)) [ClockForward] one_holder_always, ClockForward OneHolder;
    s3_restart_frees_nothing_early "S3" "a restart of the store frees nothing that a live session holds"
        (Some(Line::EarlyRelease)) [Restart, Survive] never_early, Restart Kept;
    s3_failover_frees_nothing_early "S3" "a failover frees nothing that a live session holds"
        (Some(Line::EarlyRelease)) [Failover] never_early, Failover Kept;
    s3_clock_jump_frees_nothing_early "S3" "a store whose clock is set forward frees nothing that a live session holds"
        (Some(Line::EarlyRelease)) [ClockForward] never_early, ClockForward Kept;
    s3_restart_prolongs_nothing "S3" "a restart of the store does not prolong the holdings of dead sessions"
        (Some(Line::Expiry)) [Restart, Survive, Silence] expiry_never_restarts, Restart Expired;
    s3_failover_prolongs_nothing "S3" "a failover does not prolong the holdings of dead sessions"
        (Some(Line::Expiry)) [Failover, Silence] expiry_never_restarts, Failover Expired;
    s3_clock_jump_prolongs_nothing "S3" "a store whose clock is set back does not prolong the holdings of dead sessions"
        (Some(Line::Expiry)) [ClockBack, Silence] expiry_ignores_the_wall_clock, ClockBack Expired;
    l2_tokens_rise_over_a_restart "L2" "a restart of the store does not turn tokens back"
        (Some(Line::TokenOrder)) [Restart] tokens_survive_a_restart, Restart Tokens;
    l2_tokens_rise_over_a_failover "L2" "a failover does not turn tokens back, whatever the new member missed"
        (Some(Line::TokenOrder)) [Failover] tokens_survive_a_failover, Failover Tokens;
    l2_tokens_rise_over_a_clock_jump "L2" "a store whose clock is set back does not turn tokens back"
        (Some(Line::TokenOrder)) [ClockBack] tokens_rise, ClockBack Tokens;
    l2_token_floor_is_kept "L2"
        "after the token floor was raised each grant has at least that token; holders keep theirs"
        (Some(Line::TokenOrder)) [] tokens_rise, RaisedFloor Floor;
    l3_waiters_keep_their_places_in_a_restart "L3" "waiters keep their places when the store restarts"
        (Some(Line::HandOff)) [Restart, Survive] durable, Restart Order;
    l3_waiters_keep_their_places_when_members_are_lost "L3"
        "waiters keep their places when a minority of the members is lost"
        (Some(Line::MinorityLoss)) [LoseMinority] survives_minority_loss, LostMinority Order;
    e4_observer_never_goes_back_in_a_restart "E4"
        "an observer shows nothing older after a restart, and the next proclamation"
        (Some(Line::Observers)) [Restart, Survive] observers_converge, Restart Observed;
    e4_observer_never_goes_back_in_a_failover "E4"
        "an observer shows nothing older after a failover, and the next proclamation"
        (Some(Line::Observers)) [Failover] observers_converge, Failover Observed;
    q1_stored_data_outlives_a_restart "Q1" "accepted items and commits are there after the store crashed"
        (Some(Line::Durability)) [Restart] stored, Restart Stored;
    q1_stored_data_outlives_a_failover "Q1" "accepted items and commits are there after a failover"
        (Some(Line::Durability)) [Failover] stored, Failover Stored;
    s3_holdings_outlive_a_restart "S3" "acknowledged grants are in force after the store crashed"
        (Some(Line::Durability)) [Restart, Survive] durable, Restart Kept;
    s3_holdings_outlive_a_failover "S3" "acknowledged grants are in force after a failover"
        (Some(Line::Durability)) [Failover] durable, Failover Kept;
    s3_holdings_outlive_lost_members "S3"
        "the store keeps everything, and serves, when a minority of its members is lost"
        (Some(Line::MinorityLoss)) [LoseMinority] survives_minority_loss, LostMinority Kept;
    t4_restart_loses_and_doubles_no_commit "T4" "confirmed commits are there once after a restart in their midst"
        (Some(Line::UnknownCommit)) [Restart, Survive] stored, Restart Commits;
    t4_failover_loses_and_doubles_no_commit "T4" "confirmed commits are there once after a failover in their midst"
        (Some(Line::UnknownCommit)) [Failover] stored, Failover Commits;
    o4_holdings_of_a_lost_history_end "O4" "each holding that a restore took away is lost by the next renewal"
        (None) [Restore, Survive] always, Restore Ended;
    o4_waiters_of_a_lost_history_fail_or_hold_alone "O4"
        "a waiter of the time before a restore fails or is granted alone"
        (None) [Restore, Survive] always, Restore Waited;
    o4_observers_converge_after_a_restore "O4" "an observer shows what is proclaimed after a restore"
        (None) [Restore, Survive] always, Restore Observed;
    o4_tokens_rise_after_the_floor_was_raised "O4"
        "after a restore each grant has at least the token floor that an operator raised"
        (None) [Restore] always, Restore Floor;
}

/// All that one client holds, waits for, observes and has stored, as far as the store has the primitives.
struct Belongings {
    fixture: Fixture,
    held: Vec<(Role, Vec<Held>)>,
    lock: LockGuard,
    office: Option<(Leadership, Watch)>,
    waiting: Vec<Task<Result<LockGuard>>>,
    newest: FencingToken,
    since: Instant,
}

/// The TTL of the holder: a third of it, the time between two renewals, ends well before it does.
const TTL: Duration = Duration::from_secs(60);

impl Belongings {
    async fn set(harness: &dyn Harness, event: Event) -> Step<Self> {
        let fixture = Fixture::open(harness, TTL).await?;
        let (holder, stored) = (&fixture.holder, fixture.holder.queue("stored"));
        let observing = open(harness, TTL).await?;
        let watch = Watch::start(observing.election("office").observe());
        if event == Event::Restore {
            event.prepare(harness).await?;
        }
        if offered(done("enqueue", stored.enqueue_many(["done", "a", "b"])).await)?.is_some() {
            done("ack", done("dequeue", stored.dequeue()).await?.ack()).await?;
        }
        offered(done("put", holder.stm().put("stored", "committed")).await)?;
        let since = Instant::now();
        if event != Event::Restore {
            event.prepare(harness).await?;
        }
        let lock = done("lock", holder.lock("kept")).await?;
        let mut held = Vec::new();
        for role in Role::ALL {
            held.extend(offered(fixture.hold(role).await)?.map(|held| (role, held)));
        }
        let lead = offered(done("campaign", holder.election("office").campaign("1")).await)?;
        let office = match lead {
            Some(lead) => {
                done("proclaim", lead.proclaim("2")).await?;
                Some((lead, watch))
            }
            None => None,
        };
        let mut waiting = Vec::new();
        for _ in 0..2 {
            let next = open(harness, TTL).await?.locker("kept");
            waiting.push(waiter(harness, async move { next.lock().await }).await?);
        }
        if let Some((lead, watch)) = &office {
            watch.comes_to(&led(lead, "2"), "before the event").await?;
        }
        let mut newest = lock.token();
        for _ in 0..5 {
            let numbered = done("lock", holder.lock("numbered")).await?;
            newest = newest.max(numbered.token());
            done("release", numbered.release()).await?;
        }
        Ok(Self {
            fixture,
            held,
            lock,
            office,
            waiting,
            newest,
            since,
        })
    }

    /// Checks that no other client could acquire what the live holder has, and that the holder can use it.
    async fn are_kept(&self, when: &str) -> Step<()> {
        in_time!(
            self.since.elapsed() < TTL * 10,
            "the event took so long that the holder may have died"
        );
        for (role, held) in &self.held {
            self.fixture.is_kept(*role, when).await?;
            self.fixture.is_valid(held, when)?;
        }
        if let Some((lead, _)) = &self.office {
            done("proclaim", lead.proclaim("3")).await?;
            let leader = done("leader", self.fixture.other.election("office").leader()).await?;
            let token = leader.map(|leader| leader.token);
            ensure!(
                token == Some(lead.token()),
                "{when} the leader has token {token:?} instead of {}",
                lead.token()
            );
        }
        Ok(())
    }
}

async fn after(harness: &dyn Harness, event: Event, question: Question) -> Verdict {
    let when = event.words();
    match question {
        Question::Expired => return expired(harness, event).await,
        Question::Commits => return commits(harness, event).await,
        Question::Floor => return floor(harness, event).await,
        _ => {}
    }
    let mut client = Belongings::set(harness, event).await?;
    event.happen(harness).await?;
    let other = open(harness, LONG).await?;
    client.fixture.other = other.clone();
    match question {
        Question::OneHolder => {
            let second = done("try_lock", other.try_lock("kept")).await?;
            if let (Some(second), true) = (&second, client.lock.is_valid()) {
                let (first, second) = (client.lock.token(), second.token());
                let counterexample = format!("{when} two clients held a lock, under the tokens {first} and {second}");
                return Err(Outcome::violated(counterexample));
            }
            held!("{when} no second client held the lock beside a valid guard")
        }
        Question::Kept => {
            client.are_kept(when).await?;
            held!("{when} what {} roles hold was kept", client.held.len())
        }
        Question::Tokens => {
            let guard = done("lock", other.lock("numbered")).await?;
            ensure!(
                guard.token() > client.newest,
                "{when} token {} followed {}",
                guard.token(),
                client.newest
            );
            held!("{when} token {} followed {}", guard.token(), client.newest)
        }
        Question::Order => {
            still_waiting(when, &client.waiting.iter().collect::<Vec<_>>()).await?;
            done("release", client.lock.release()).await?;
            let late = done("try_lock", other.try_lock("kept")).await?;
            ensure!(late.is_none(), "{when} a try overtook two waiters");
            while !client.waiting.is_empty() {
                let guard = granted(&mut client.waiting.remove(0), "the grant to the next waiter").await?;
                still_waiting(when, &client.waiting.iter().collect::<Vec<_>>()).await?;
                done("release", guard.release()).await?;
            }
            held!("{when} two waiters were granted in their order")
        }
        Question::Observed => {
            let Some((lead, watch)) = client.office else {
                return Err(Outcome::excused("the store has no elections"));
            };
            let (election, mut lead) = (other.election("office"), Some(lead));
            if lead.as_ref().is_none_or(|lead| lead.loss().is_some()) {
                lead = None;
            }
            // The first leadership may have ended with the event, and its client may not know yet.
            let proclaimed = match &lead {
                Some(lead) => promptly("proclaim", lead.proclaim("9")).await?.is_ok(),
                None => false,
            };
            let lead = match lead {
                Some(lead) if proclaimed => lead,
                _ => done("campaign", election.campaign("9")).await?,
            };
            // A store may end the sessions of a lost history, and their observers with them.
            if event == Event::Restore && watch.ends_before(&led(&lead, "9")).await {
                is_led(&election, &led(&lead, "9"), when).await?;
                return held!("{when} the observer ended with its session; a new one shows the next proclamation");
            }
            watch.comes_to(&led(&lead, "9"), when).await?;
            let shown = match event {
                // Tokens may start over: what is older is not known.
                Event::Restore => 0,
                _ => watch.never_went_back()?,
            };
            held!("{when} the observer shows the next proclamation; {shown} states in order")
        }
        Question::Stored => {
            let value = done("get", other.stm().get_string("stored")).await?;
            ensure!(
                value.as_deref() == Some("committed"),
                "{when} a commit is gone: its key is {value:?}"
            );
            let (queue, mut found) = (other.queue("stored"), Vec::new());
            while let Some(next) = done("try_dequeue", queue.try_dequeue()).await? {
                found.push(next.text().into_owned());
                done("ack", next.ack()).await?;
            }
            ensure!(
                found == ["a", "b"],
                "{when} the queue has {found:?} instead of the two accepted items"
            );
            held!("{when} a commit and two accepted items are there, and no acknowledged item")
        }
        Question::Ended => {
            let (served, period) = (Instant::now(), client.fixture.holder.ttl() / 3);
            for (role, held) in &client.held {
                for holding in held.iter().flat_map(Held::holdings) {
                    let left = (period + slack()).saturating_sub(served.elapsed());
                    let told = tokio::time::timeout(left, holding.lost()).await;
                    ensure!(
                        told.is_ok() && !holding.is_valid(),
                        "{when} a {} of the lost history is valid {:?} later; it is renewed every {period:?}",
                        role.word(),
                        served.elapsed()
                    );
                }
            }
            held!("{when} each holding was lost within {:?}", served.elapsed())
        }
        Question::Waited => {
            // Another client holds the lock in the new history.
            let guard = loop {
                if let Some(guard) = done("try_lock", other.try_lock("kept")).await? {
                    break guard;
                }
                in_time!(
                    client.since.elapsed() < TTL + slack() * 2,
                    "{when} the lock was never free"
                );
                tokio::time::sleep(Duration::from_millis(100)).await;
            };
            tokio::time::sleep(TTL / 3).await;
            let (mut ends, mut left) = (Vec::new(), Vec::new());
            for mut waiting in client.waiting {
                if !(waiting.is_finished() && guard.is_valid()) {
                    left.push(waiting);
                    continue;
                }
                match waiting.end(PROMPT, "a waiter's end").await? {
                    Ok(_) => {
                        let counterexample = format!("{when} a waiter of the lost history was granted beside a holder");
                        return Err(Outcome::violated(counterexample));
                    }
                    Err(error) if error.kind() == ErrorKind::Lost => ends.push("lost"),
                    Err(error) => return Err(error.into()),
                }
            }
            done("release", guard.release()).await?;
            for mut waiting in left {
                match waiting
                    .end(TTL + slack(), "the end of a waiter of the lost history")
                    .await?
                {
                    Ok(guard) => {
                        ends.push("granted");
                        done("release", guard.release()).await?;
                    }
                    Err(error) if error.kind() == ErrorKind::Lost => ends.push("lost"),
                    Err(error) => return Err(error.into()),
                }
            }
            held!("{when} the waiters ended as {ends:?}, none beside another holder")
        }
        Question::Expired | Question::Commits | Question::Floor => Err(Outcome::not_run("asked elsewhere")),
    }
}

/// A holder dies, the event follows when most of its TTL is over, and its lock is free by the stated bound.
async fn expired(harness: &dyn Harness, event: Event) -> Verdict {
    let (bound, when) = (expiry_bound(harness).await?, event.words());
    let (dying, link): (Session, Box<dyn Link>) = open_linked(harness, harness.ttl() * 4).await?;
    let guard = done("lock", dying.lock("left")).await?;
    event.prepare(harness).await?;
    link.silence();
    let (at, ttl) = (Instant::now(), dying.ttl());
    tokio::time::sleep(ttl * 4 / 5).await;
    event.happen(harness).await?;
    let other = open(harness, LONG).await?;
    // A store that takes long to come back cannot free it earlier.
    let least = bound + slack().min(ttl / 2);
    let left = (ttl + least).saturating_sub(at.elapsed()).max(least);
    let next = tokio::time::timeout(left, other.lock("left")).await;
    let next = next.map_err(|_| {
        let after = at.elapsed();
        Outcome::violated(format!(
            "{when} the lock of a dead session is held {after:?} after its last renewal; TTL {ttl:?}, bound {bound:?}"
        ))
    })??;
    ensure!(
        !guard.is_valid(),
        "{when} a lock was granted beside a valid guard, token {}",
        next.token()
    );
    link.heal();
    held!(
        "free {:?} after the last sign of life, with a TTL of {ttl:?} and a stated bound of {bound:?}",
        at.elapsed()
    )
}

/// Clients increment a counter while the event happens.
async fn commits(harness: &dyn Harness, event: Event) -> Verdict {
    let when = event.words();
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let mut tasks: Vec<Task<Step<(u64, u64)>>> = Vec::new();
    for _ in 0..3 {
        let (stm, stopped) = (open(harness, LONG).await?.stm().attempts(10_000), stopped.clone());
        tasks.push(spawn(async move {
            let (mut confirmed, mut unknown) = (0, 0);
            while !*stopped.borrow() {
                let increment = stm.run(|tx| async move {
                    let count: u64 = tx.get_as("count").await?.unwrap_or(0);
                    tx.put_as("count", &(count + 1))
                });
                match increment.await {
                    Ok(()) => confirmed += 1,
                    Err(error) if error.kind() == ErrorKind::CommitUnknown => unknown += 1,
                    Err(error) if error.kind() == ErrorKind::Lost => break,
                    Err(error) => return Err(error.into()),
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            Ok((confirmed, unknown))
        }));
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    event.happen(harness).await?;
    let other = open(harness, LONG).await?.stm();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let _ = stop.send(true);
    let (mut confirmed, mut unknown) = (0, 0);
    for task in &mut tasks {
        let (more, unclear) = task.end(LONG + PROMPT, "the end of the increments").await??;
        confirmed += more;
        unknown += unclear;
    }
    in_time!(confirmed > 0, "no increment was confirmed");
    let count: u64 = done("get", other.get_as("count")).await?.unwrap_or(0);
    let possible = confirmed..=confirmed + unknown;
    ensure!(
        possible.contains(&count),
        "{when} {confirmed} increments were confirmed, {unknown} unknown, and {count} are there"
    );
    held!("{when} {confirmed} increments were confirmed, {unknown} unknown, and {count} are there")
}

/// An operator raises the token floor.
async fn floor(harness: &dyn Harness, event: Event) -> Verdict {
    const LIFT: u64 = 100_000;
    let (store, holder) = (
        done("a connection", harness.connect()).await?,
        open(harness, LONG).await?,
    );
    event.prepare(harness).await?;
    let guard = done("lock", holder.lock("held")).await?;
    let (first, second) = (
        open(harness, LONG).await?.locker("held"),
        open(harness, LONG).await?.locker("held"),
    );
    let mut waiting = Vec::new();
    for lock in [first, second] {
        waiting.push(waiter(harness, async move { lock.lock().await }).await?);
    }
    event.happen(harness).await?;
    let floor = FencingToken::new(guard.token().get() + LIFT);
    done("raise_token_floor", store.raise_token_floor(floor)).await?;
    // A lower floor later changes nothing.
    done("raise_token_floor", store.raise_token_floor(FencingToken::new(1))).await?;
    let other = open(harness, LONG).await?;
    let mut tokens = Vec::new();
    for _ in 0..2 {
        let guard = done("lock", other.lock("another")).await?;
        tokens.push(guard.token());
        done("release", guard.release()).await?;
        let write = offered(done("write", other.write_lock("another")).await)?;
        tokens.extend(write.map(|guard| guard.token()));
        let lead = offered(done("campaign", other.election("another").campaign("x")).await)?;
        tokens.extend(lead.map(|lead| lead.token()));
        if offered(done("enqueue", other.queue("another").enqueue("x")).await)?.is_some() {
            tokens.push(done("dequeue", other.queue("another").dequeue()).await?.token());
        }
    }
    ensure!(
        tokens.iter().all(|token| *token >= floor),
        "the floor is {floor}, and tokens {tokens:?} were granted"
    );
    if event == Event::RaisedFloor {
        ensure!(guard.is_valid(), "a raised floor ended a holding: {:?}", guard.loss());
        let mut newest = guard.token();
        done("release", guard.release()).await?;
        while !waiting.is_empty() {
            let guard = granted(&mut waiting.remove(0), "the grant to the next waiter").await?;
            still_waiting("after the floor was raised", &waiting.iter().collect::<Vec<_>>()).await?;
            ensure!(guard.token() > newest, "token {} followed {newest}", guard.token());
            newest = guard.token();
            done("release", guard.release()).await?;
        }
    }
    held!("a floor of {floor}, and tokens {tokens:?}")
}
