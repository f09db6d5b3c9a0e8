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
            Fails::Refused(first) if number >= first => {
                return Err(Error::new(ErrorKind::Unauthorized, "wrong password"));
            }
            _ => {}
        }
        Ok(Store::new(self.store.backend().reconnect()).into_dyn())
    }

    fn offers(&self) -> &[Need] {
        match self.moves {
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
}

struct Column(Fails, bool);

#[async_trait]
impl Subject for Column {
    fn name(&self) -> &str {
        "shy"
    }

    async fn stage(&self, _: &Case) -> Result<Box<dyn Harness>> {
        let Self(fails, moves) = *self;
        Ok(Box::new(Shy {
            store: Arc::new(tenure_memory::connect(MemoryConfig::new())?),
            connections: Arc::default(),
            fails,
            moves,
        }))
    }
}

async fn outcome(id: &str, fails: Fails, moves: bool) -> Outcome {
    let subject: Arc<dyn Subject> = Arc::new(Column(fails, moves));
    let report = run(vec![subject], |case| case.id == id, |_| {}).await;
    let outcome = report.columns[0].outcome(id).unwrap();
    println!("{outcome}");
    outcome.clone()
}

fn not_run(outcome: &Outcome, why: &str) {
    match outcome {
        Outcome::NotRun { why: said } => assert!(said.contains(why), "{said}"),
        other => panic!("{other}"),
    }
}

/// Two connections ask what is promised.
const ASKED: u32 = 2;

/// A case that no event belongs to, and one that connects before a restart of the store and after it.
const PLAIN: &str = "s1_the_ttl_is_at_least_what_was_asked";
const RESTART: &str = "l1_one_holds_through_a_restart";

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_fails_now_and_then_is_tried_again() {
    let outcome = outcome(PLAIN, Fails::EverySecond, false).await;
    assert!(matches!(outcome, Outcome::Held { .. }), "{outcome}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_connection_a_case_is_not_run() {
    let fails = Fails::From(ASKED + 1);
    let outcome = outcome(PLAIN, fails, false).await;
    not_run(
        &outcome,
        "the store could not be reached: no connection within 1s",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn nor_is_one_whose_connection_takes_too_long() {
    let fails = Fails::Silently(ASKED + 1);
    let outcome = outcome(RESTART, fails, true).await;
    not_run(&outcome, "was not made in time");
}

/// What is refused is an answer.
#[tokio::test(flavor = "multi_thread")]
async fn who_is_refused_is_not_tried_again() {
    let outcome = outcome(PLAIN, Fails::Refused(ASKED + 1), false).await;
    assert!(matches!(outcome, Outcome::Violated { .. }), "{outcome}");
}

/// A store that does not come back broke its promise.
#[tokio::test(flavor = "multi_thread")]
async fn what_an_event_did_to_the_store_counts() {
    let outcome = outcome(RESTART, Fails::From(ASKED + 2), true).await;
    assert!(matches!(outcome, Outcome::Violated { .. }), "{outcome}");
}
