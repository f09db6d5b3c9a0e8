//! Locks over real stores between real processes: paused, killed, waiting in line.
//!
//! Nothing here sleeps to wait for something. Times are only ever compared with what the contract
//! promises: the TTL as a lower bound, counted from before what it is counted from, and the store's
//! own bound as an upper one.
#![cfg(any(feature = "etcd", feature = "redis", feature = "postgres"))]

#[macro_use]
mod support;

use std::path::Path;
use std::time::{Duration, Instant};

use support::Bed;
use tenure::{FenceGate, FencingToken};
use tenure_testbed::holder::{HolderGrant, PATIENCE};
use tenure_testbed::{Error, Holder};

const TTL: Duration = Duration::from_secs(4);
/// The backends' claim: a store that runs frees a dead session's locks at most this long after its
/// TTL (rule S3).
const SLACK: Duration = Duration::from_secs(2);
/// Validity ends this much before the store may free anything (rule S2): TTL/20.
const MARGIN: Duration = Duration::from_millis(200);

impl Bed {
    fn holder(&self) -> Holder {
        self.holder_with(TTL)
    }

    fn holder_with(&self, ttl: Duration) -> Holder {
        let mut holder = Holder::start().expect("a holder");
        let session = holder.open_session(&self.url, ttl).expect("a session");
        assert_eq!(session.ttl, ttl, "it grants what is asked for");
        holder
    }

    /// A process that has its place in line once this returns, `places` then being taken.
    fn waiter(&self, name: &str, places: usize) -> Holder {
        let mut waiter = self.holder();
        waiter.begin_lock(name).expect("asked");
        self.until_line_is(name, places);
        waiter
    }

    /// Waits until so many hold the lock or wait for it, in the eyes of the store.
    fn until_line_is(&self, name: &str, places: usize) {
        let start = Instant::now();
        loop {
            let found = self.line(name);
            if found == places {
                return;
            }
            assert!(
                start.elapsed() < PATIENCE,
                "{found} in line for {name}, not {places}"
            );
        }
    }
}

on_every_store! {
    "processes":
    a_holder_paused_past_its_ttl_knows_at_its_first_check_and_its_write_is_stale
    a_holder_paused_for_less_than_its_ttl_stays_valid
    a_holder_that_waits_for_its_loss_is_told_after_a_pause
    processes_are_granted_in_order_of_arrival
    a_waiter_killed_in_the_middle_of_the_line_is_passed_over
    a_waiter_paused_past_its_ttl_gets_an_error_and_never_the_lock
    a_waiter_whose_turn_comes_while_it_is_paused_past_its_ttl_is_never_granted
    ;
    leases:
    a_killed_holders_lock_is_freed_after_its_ttl_and_not_before
    ;
    connections:
    a_stopped_holders_lock_is_free_within_a_second_of_its_ttl
    a_killed_holders_lock_goes_to_the_next_at_once
    a_killed_waiter_delays_nobody
}

/// What is noticed without a TTL is noticed this soon.
#[cfg(feature = "postgres")]
const AT_ONCE: Duration = Duration::from_millis(1500);

#[track_caller]
fn granted(holder: &mut Holder) -> HolderGrant {
    let grant = holder.granted(PATIENCE).expect("the lock");
    assert!(grant.valid, "a grant is valid when it is made");
    grant
}

#[track_caller]
fn is_refused<T: std::fmt::Debug>(result: Result<T, Error>, expected: &str) {
    match result {
        Err(Error::Refused { kind, .. }) if kind == expected => {}
        other => panic!("{expected} was to be the answer, not {other:?}"),
    }
}

/// What arrived at the resource, in order: who wrote (by token) what.
fn arrived(resource: &Path) -> Vec<(FencingToken, String)> {
    let text = std::fs::read_to_string(resource).expect("the resource");
    text.lines()
        .map(|line| {
            let (token, text) = line.split_once(' ').expect("a token and a text");
            (token.parse().expect("a token"), text.to_owned())
        })
        .collect()
}

/// S2: `is_valid` is right in the first check after SIGCONT. L1, L2: the next holder has a greater
/// token. And what a holder that never asks does to a resource, with a gate and without.
fn a_holder_paused_past_its_ttl_knows_at_its_first_check_and_its_write_is_stale(bed: Bed) {
    let folder = tempfile::tempdir().expect("a folder");
    let resource = folder.path().join("resource");
    let (mut old, mut new) = (bed.holder(), bed.holder());
    let first = old.lock("orders").expect("the lock");
    old.write(&resource, "first").expect("written");

    // From here on the old holder does nothing but check, on its only thread: no task of its
    // session can notice anything before the check does.
    old.begin_spin(TTL / 2).expect("spinning");
    old.pause().expect("paused");
    let second = new.lock("orders").expect("the lock, from a paused holder");
    new.write(&resource, "second").expect("written");
    old.resume().expect("resumed");

    let gap = old.gap(PATIENCE).expect("the first check");
    assert!(gap.before, "paused too late to prove anything: {gap:?}");
    assert!(!gap.after.valid, "{gap:?}");
    assert_eq!(gap.after.remaining, Duration::ZERO);
    assert!(second.token > first.token, "{second:?} after {first:?}");

    // This one does not ask whether it still holds anything.
    old.write(&resource, "stale").expect("written");
    is_refused(old.release(), "Lost");
    let still = new.validity().expect("an answer");
    assert!(still.valid, "the late release has spared the new holder");

    let (first, second) = (
        FencingToken::new(first.token),
        FencingToken::new(second.token),
    );
    let arrived = arrived(&resource);
    // The control: without a fence the stale write went through, on top of the newer one.
    let texts: Vec<&str> = arrived.iter().map(|(_, text)| text.as_str()).collect();
    assert_eq!(texts, ["first", "second", "stale"]);
    assert_eq!(arrived[2].0, first);
    // The same writes, in the order in which they arrived, at a resource with a gate.
    let gate = FenceGate::new(Vec::new());
    let mut refused = Vec::new();
    for (token, text) in arrived {
        if let Err(stale) = gate.write(token, |texts| texts.push(text.clone())) {
            assert_eq!((stale.offered, stale.newest), (first, second));
            refused.push(text);
        }
    }
    assert_eq!(refused, ["stale"]);
    assert_eq!(
        gate.read(|texts| texts.clone()),
        ["first", "second"],
        "the resource behind the gate"
    );
}

/// The control of the test above: a check after a pause is not false because of the pause.
fn a_holder_paused_for_less_than_its_ttl_stays_valid(bed: Bed) {
    let (mut holder, mut other) = (bed.holder_with(TTL * 15), bed.holder());
    holder.lock("orders").expect("the lock");
    holder
        .begin_spin(Duration::from_millis(100))
        .expect("spinning");
    holder.pause().expect("paused");
    let waited = other.lock_timeout("orders", Duration::from_millis(300));
    is_refused(waited, "TimedOut");
    holder.resume().expect("resumed");
    let gap = holder.gap(PATIENCE).expect("the first check");
    assert!(gap.before && gap.after.valid, "{gap:?}");
    holder.release().expect("released");
    other.lock("orders").expect("the lock");
}

/// S2: the loss is signalled to a process that goes on after its deadline, and says why.
fn a_holder_that_waits_for_its_loss_is_told_after_a_pause(bed: Bed) {
    let (mut old, mut new) = (bed.holder(), bed.holder());
    old.lock("orders").expect("the lock");
    old.begin_lost().expect("waiting");
    old.pause().expect("paused");
    new.lock("orders").expect("the lock");
    old.resume().expect("resumed");
    let loss = old.lost(PATIENCE).expect("the loss");
    assert_eq!(loss.reason, "expired");
    is_refused(old.try_lock("orders"), "Lost");
}

/// S3, where the server ends who is silent: no earlier than the TTL after the last that it heard, no later
/// than a second after the TTL, and who waits has it another second later at most.
#[cfg(feature = "postgres")]
fn a_stopped_holders_lock_is_free_within_a_second_of_its_ttl(bed: Bed) {
    let second = Duration::from_secs(1);
    let mut holder = bed.holder();
    let first = holder.lock("orders").expect("the lock");
    let mut waiter = bed.waiter("orders", 2);
    // The lower bound is reckoned as for a killed holder of a lease.
    let asked = Instant::now();
    let remaining = holder.validity().expect("an answer").remaining;
    holder.pause().expect("paused");
    let stopped = Instant::now();
    bed.until_line_is("orders", 1);
    let freed = Instant::now();
    let next = granted(&mut waiter);
    let had = Instant::now();
    println!(
        "free {:?} after the stop, had {:?} later",
        freed - stopped,
        had - freed
    );
    assert!(freed - asked >= remaining + MARGIN, "{remaining:?} left");
    assert!(freed - stopped <= TTL + second, "{:?}", freed - stopped);
    assert!(had - freed <= second, "{:?}", had - freed);
    assert!(next.token > first.token, "{next:?} after {first:?}");
}

/// S3, where a session ends with its connection: what the kernel closes for the killed is free.
#[cfg(feature = "postgres")]
fn a_killed_holders_lock_goes_to_the_next_at_once(bed: Bed) {
    let mut holder = bed.holder();
    let mut last = holder.lock("orders").expect("the lock").token;
    let mut line: Vec<Holder> = (2..=4).map(|places| bed.waiter("orders", places)).collect();
    while !line.is_empty() {
        let mut next = line.remove(0);
        let killed = Instant::now();
        holder.kill().expect("killed");
        let grant = granted(&mut next);
        let after = killed.elapsed();
        println!("granted {after:?} after the kill");
        assert!(after <= AT_ONCE, "{after:?}");
        assert!(grant.token > last, "{grant:?} after {last}");
        last = grant.token;
        holder = next;
    }
}

/// L3, likewise: neither one killed behind a holder nor one killed as its turn comes.
#[cfg(feature = "postgres")]
fn a_killed_waiter_delays_nobody(bed: Bed) {
    for stopped in [false, true] {
        let mut holder = bed.holder();
        let held = holder.lock("orders").expect("the lock");
        let mut dead = bed.waiter("orders", 2);
        let mut behind = bed.waiter("orders", 3);
        if stopped {
            // Told of its turn, it dies before it hears of it.
            dead.pause().expect("paused");
            holder.release().expect("released");
        }
        let at = Instant::now();
        dead.kill().expect("killed");
        if !stopped {
            holder.release().expect("released");
        }
        let next = granted(&mut behind);
        let after = at.elapsed();
        println!("granted {after:?} after the kill");
        assert!(after <= AT_ONCE, "{after:?}");
        assert!(next.token > held.token);
        behind.release().expect("released");
    }
}

/// S3: no earlier than the TTL after the last renewal reached the store, and no later than the TTL
/// and two seconds. L2: the next token is greater.
#[cfg(any(feature = "etcd", feature = "redis"))]
fn a_killed_holders_lock_is_freed_after_its_ttl_and_not_before(bed: Bed) {
    let mut holder = bed.holder();
    let first = holder.lock("orders").expect("the lock");
    let mut waiter = bed.waiter("orders", 2);

    // The holder's deadline is: when its last renewal was sent, plus the TTL, less the margin. It
    // reads the clock after `asked`, so that renewal was sent no earlier than `asked` plus what
    // remains, plus the margin, less the TTL; the store cannot have heard it before that, and any
    // later renewal only moves the end further away.
    let asked = Instant::now();
    let remaining = holder.validity().expect("an answer").remaining;
    holder.kill().expect("killed");
    let killed = Instant::now();

    let second = granted(&mut waiter);
    let freed = Instant::now();
    assert!(
        remaining > TTL / 4,
        "the holder was renewing: {remaining:?}"
    );
    assert!(
        freed - asked >= remaining + MARGIN,
        "freed {:?} after {remaining:?} were left",
        freed - asked
    );
    assert!(
        freed - killed <= TTL + SLACK,
        "freed {:?} after the kill",
        freed - killed
    );
    assert!(second.token > first.token, "{second:?} after {first:?}");
}

/// L3: in order of arrival, across processes; a release wakes the next and nobody else.
fn processes_are_granted_in_order_of_arrival(bed: Bed) {
    let mut holder = bed.holder();
    let mut last = holder.lock("orders").expect("the lock").token;
    let mut line: Vec<Holder> = (2..=6).map(|places| bed.waiter("orders", places)).collect();
    while !line.is_empty() {
        assert!(
            !line.iter().any(Holder::has_answered),
            "granted while it is held"
        );
        holder.release().expect("released");
        // Were another one granted, this would wait for ever.
        let mut next = line.remove(0);
        let grant = granted(&mut next);
        assert!(grant.token > last, "{grant:?} after {last}");
        last = grant.token;
        holder = next;
    }
}

/// L3: a dead waiter delays those behind it by no more than its TTL and the store's bound, and
/// nobody is skipped or overtaken.
fn a_waiter_killed_in_the_middle_of_the_line_is_passed_over(bed: Bed) {
    let mut holder = bed.holder();
    let held = holder.lock("orders").expect("the lock");
    let mut before = bed.waiter("orders", 2);
    let mut dead = bed.waiter("orders", 3);
    let mut behind = bed.waiter("orders", 4);
    let mut last = bed.waiter("orders", 5);
    dead.kill().expect("killed");
    let killed = Instant::now();

    holder.release().expect("released");
    let first = granted(&mut before);
    assert!(!behind.has_answered() && !last.has_answered());
    before.release().expect("released");
    let second = granted(&mut behind);
    assert!(
        killed.elapsed() <= TTL + SLACK,
        "{:?} after the kill",
        killed.elapsed()
    );
    assert!(!last.has_answered());
    behind.release().expect("released");
    let third = granted(&mut last);
    let tokens = [held.token, first.token, second.token, third.token];
    assert!(tokens.is_sorted_by(|a, b| a < b), "{tokens:?}");
}

/// L6: a waiter that was paused until its session ended gets an error, and never the lock.
fn a_waiter_paused_past_its_ttl_gets_an_error_and_never_the_lock(bed: Bed) {
    let mut holder = bed.holder();
    let held = holder.lock("orders").expect("the lock");
    let mut paused = bed.waiter("orders", 2);
    let mut behind = bed.waiter("orders", 3);
    paused.pause().expect("paused");
    bed.until_line_is("orders", 2);
    paused.resume().expect("resumed");
    is_refused(paused.granted(PATIENCE), "Lost");
    assert!(!behind.has_answered());

    holder.release().expect("released");
    let next = granted(&mut behind);
    assert!(next.token > held.token);
    is_refused(paused.try_lock("orders"), "Lost");
    assert!(!paused.validity().expect("an answer").valid);
    assert!(behind.validity().expect("an answer").valid);
}

/// L6, the narrow case: its turn comes while it is paused, so the store counts it as the holder
/// until its lease ends; going on after that, it reads first that it is its turn.
fn a_waiter_whose_turn_comes_while_it_is_paused_past_its_ttl_is_never_granted(bed: Bed) {
    let mut holder = bed.holder();
    holder.lock("orders").expect("the lock");
    let mut paused = bed.waiter("orders", 2);
    let mut behind = bed.waiter("orders", 3);
    paused.pause().expect("paused");
    let at = Instant::now();
    holder.release().expect("released");
    let next = granted(&mut behind);
    assert!(
        at.elapsed() <= TTL + SLACK,
        "{:?} after the pause",
        at.elapsed()
    );
    paused.resume().expect("resumed");
    is_refused(paused.granted(PATIENCE), "Lost");
    assert!(!paused.validity().expect("an answer").valid);
    assert!(behind.validity().expect("an answer").valid);
    behind.release().expect("released");
    let mut after = bed.holder();
    assert!(after.lock("orders").expect("the lock").token > next.token);
}
