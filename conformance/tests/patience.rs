//! What a store that cannot be reached shows of its promises: nothing.
#![allow(clippy::unwrap_used)] // A test that cannot be set up has to fail.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tenure_conformance::{Case, Harness, Need, Operator, Outcome, Subject, async_trait, run};
use tenure_core::{Error, ErrorKind, Result, Store};
use tenure_memory::{MemoryBackend, MemoryConfig};

/// An embedded store to which some connections fail.
struct Shy {
    store: Arc<Store<MemoryBackend>>,
    connections: Arc<AtomicU32>,
    fails: Fails,
    moves: bool,
    disturbed: Arc<AtomicU32>,
}

#[derive(Clone, Copy)]
enum Fails {
    /// These connections, counted from 1, and those after them.
    From(u32),
    /// Every second.
    EverySecond,
    /// The connections from this on are not answered.
    Silently(u32),
    /// Refused, from this on: not a question of time.
    Refused(u32),
    /// Those from this on, once the store has been disturbed.
    Gone,
    /// None: the first so many disturbances, over all stages, break the operator's own connection.
    Disturbances(u32),
}

#[async_trait]
impl Harness for Shy {
    async fn connect(&self) -> Result<Store> {
        let number = self.connections.fetch_add(1, Ordering::SeqCst) + 1;
        let away = || Error::new(ErrorKind::Unavailable, "no connection within 1s");
        match self.fails {
            Fails::From(first) if number >= first => return Err(away()),
            Fails::EverySecond if number % 2 == 1 => return Err(away()),
            Fails::Silently(first) if number >= first => {
                std::future::pending::<()>().await;
            }
            Fails::Gone if self.disturbed.load(Ordering::SeqCst) > 0 => return Err(away()),
            Fails::Refused(first) if number >= first => {
                return Err(Error::new(ErrorKind::Unauthorized, "wrong password"));
            }
            _ => {}
        }
        Ok(Store::new(self.store.backend().reconnect()).into_dyn())
    }

    fn offers(&self) -> &[Need] {
        match self.moves {
            _ if matches!(self.fails, Fails::Gone | Fails::Disturbances(_)) => &[Need::Disturb],
            true => &[Need::Restart, Need::Survivors],
            false => &[],
        }
    }

    fn operator(&self) -> Option<&dyn Operator> {
        Some(self)
    }
}

#[async_trait]
impl Operator for Shy {
    async fn restart(&self) -> Result<()> {
        Ok(())
    }

    async fn disturb(&self) -> Result<()> {
        let number = self.disturbed.fetch_add(1, Ordering::SeqCst) + 1;
        match self.fails {
            Fails::Disturbances(most) if number > most => Ok(()),
            _ => Err(Error::new(ErrorKind::Unavailable, "broken pipe")),
        }
    }
}

struct Column(Fails, bool, Arc<AtomicU32>);

#[async_trait]
impl Subject for Column {
    fn name(&self) -> &str {
        "shy"
    }

    async fn stage(&self, _: &Case) -> Result<Box<dyn Harness>> {
        let Self(fails, moves, disturbed) = self;
        Ok(Box::new(Shy {
            store: Arc::new(tenure_memory::connect(MemoryConfig::new())?),
            connections: Arc::default(),
            fails: *fails,
            moves: *moves,
            disturbed: Arc::clone(disturbed),
        }))
    }
}

async fn outcome(id: &str, fails: Fails, moves: bool) -> Outcome {
    let subject: Arc<dyn Subject> = Arc::new(Column(fails, moves, Arc::default()));
    let report = run(vec![subject], |case| case.id == id, |_| {}).await;
    let outcome = report.columns[0].outcome(id).unwrap();
    println!("{outcome}");
    outcome.clone()
}

fn not_run(outcome: &Outcome, why: &str) {
    match outcome {
        Outcome::NotRun { why: said, .. } => assert!(said.contains(why), "{said}"),
        other => panic!("{other}"),
    }
}

/// Two connections ask what is promised.
const ASKED: u32 = 2;

/// A case that no event belongs to, and one that connects before a restart of the store and after it.
const PLAIN: &str = "s1_the_ttl_is_at_least_what_was_asked";
const RESTART: &str = "l1_one_holds_through_a_restart";

#[tokio::test(start_paused = true)]
async fn a_connection_that_fails_now_and_then_is_tried_again() {
    let outcome = outcome(PLAIN, Fails::EverySecond, false).await;
    assert!(matches!(outcome, Outcome::Held { .. }), "{outcome}");
}

#[tokio::test(start_paused = true)]
async fn without_a_connection_a_case_is_not_run() {
    let fails = Fails::From(ASKED + 1);
    let outcome = outcome(PLAIN, fails, false).await;
    not_run(
        &outcome,
        "the store could not be reached: no connection within 1s",
    );
}

#[tokio::test(start_paused = true)]
async fn nor_is_one_whose_connection_takes_too_long() {
    let fails = Fails::Silently(ASKED + 1);
    let outcome = outcome(RESTART, fails, true).await;
    not_run(&outcome, "was not made in time");
}

/// What is refused is an answer.
#[tokio::test(start_paused = true)]
async fn who_is_refused_is_not_tried_again() {
    let outcome = outcome(PLAIN, Fails::Refused(ASKED + 1), false).await;
    assert!(matches!(outcome, Outcome::Violated { .. }), "{outcome}");
}

const DISTURBED: &str = "e4_an_observer_bears_disturbances";

/// A connection that breaks while the case disturbs the store says nothing about the store's promises.
#[tokio::test(start_paused = true)]
async fn an_error_in_passing_while_the_store_is_disturbed_repeats_the_case() {
    let outcome = outcome(DISTURBED, Fails::Disturbances(2), false).await;
    assert!(matches!(outcome, Outcome::Held { .. }), "{outcome}");
}

/// One that fails in each attempt, while the store serves other clients, is refused.
#[tokio::test(start_paused = true)]
async fn an_error_in_each_attempt_is_a_violation() {
    let outcome = outcome(DISTURBED, Fails::Disturbances(u32::MAX), false).await;
    assert!(matches!(outcome, Outcome::Violated { .. }), "{outcome}");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_gone_after_a_disturbance_proves_nothing() {
    let outcome = outcome(DISTURBED, Fails::Gone, false).await;
    not_run(&outcome, "no connection within 1s");
}

/// A store that serves the first cases and no further client.
struct Refuses(Arc<AtomicU32>);

#[async_trait]
impl Subject for Refuses {
    fn name(&self) -> &str {
        "refuses"
    }

    async fn stage(&self, _: &Case) -> Result<Box<dyn Harness>> {
        let fails = match self.0.fetch_add(1, Ordering::SeqCst) {
            ..3 => Fails::From(u32::MAX),
            _ => Fails::From(ASKED + 1),
        };
        Ok(Box::new(Shy {
            store: Arc::new(tenure_memory::connect(MemoryConfig::new())?),
            connections: Arc::default(),
            fails,
            moves: false,
            disturbed: Arc::default(),
        }))
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_refuses_further_clients_fails_the_report() {
    let subject: Arc<dyn Subject> = Arc::new(Refuses(Arc::default()));
    let some = |case: &Case| case.rule == "S1" || case.id.starts_with("l8_bad");
    let report = run(vec![subject], some, |_| {}).await;
    let tally = report.tally();
    assert!(tally.violated == 0 && tally.held > 0, "{report}");
    assert!(tally.not_run > tally.excused, "{report}");
    assert!(!report.exit_ok(), "{report}");
    assert!(
        report.to_string().contains("TOO FEW CASES RAN on refuses"),
        "{report}"
    );
}

/// A store that does not come back broke its promise.
#[tokio::test(start_paused = true)]
async fn what_an_event_did_to_the_store_counts() {
    let outcome = outcome(RESTART, Fails::From(ASKED + 2), true).await;
    assert!(matches!(outcome, Outcome::Violated { .. }), "{outcome}");
}
