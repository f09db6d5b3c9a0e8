//! The cases on stores in interop mode: among our own the rules hold, and what foreign clients break
//! is not promised. On etcd those of queues, whose layout is another one then; on Redis and PostgreSQL
//! those of locks and sessions.
#![cfg(any(feature = "etcd", feature = "redis", feature = "postgres"))]
#![allow(clippy::unwrap_used)] // A test that cannot be set up has to fail.

use futures_util::{StreamExt, stream};
use tenure_conformance::{CASES, Case, Harness, Outcome, Seen};
use tenure_core::Line;

/// So many servers at once.
const AT_ONCE: usize = 6;

/// What the guarantees of a mode deny. What they promise has to hold.
struct Denied {
    /// Only foreign clients break these lines, and none takes part; or the store has no such event.
    survived: &'static [Line],
    /// The case shows why.
    shown: &'static [(&'static str, Line)],
}

impl Denied {
    fn is_met(&self, case: &Case, outcome: &Outcome) -> bool {
        match outcome {
            Outcome::Held { .. } => true,
            Outcome::NotPromised { seen, line, .. } => match seen {
                Seen::Counterexample(_) => self.shown.contains(&(case.id, *line)),
                _ => self.survived.contains(line),
            },
            Outcome::NotRun { excused, .. } => *excused,
            _ => false,
        }
    }

    /// Runs each of `cases` on a server of its own. At least `held` have to hold.
    async fn check<H: Harness>(
        &self,
        cases: impl Fn(&Case) -> bool,
        held: usize,
        start: impl AsyncFn() -> H,
    ) {
        let cases = CASES.iter().filter(|case| cases(case));
        let outcomes = stream::iter(cases).map(async |case| {
            let harness = start().await;
            (case, case.run(&harness).await)
        });
        let outcomes: Vec<_> = outcomes.buffer_unordered(AT_ONCE).collect().await;
        let wrong: Vec<String> = outcomes
            .iter()
            .filter(|(case, outcome)| !self.is_met(case, outcome))
            .map(|(case, outcome)| format!("{}: {outcome}", case.id))
            .collect();
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        let has_held = |(_, outcome): &&(_, Outcome)| matches!(outcome, Outcome::Held { .. });
        let count = outcomes.iter().filter(has_held).count();
        println!("{count} cases held, of {}", outcomes.len());
        assert!(count >= held, "only {count} cases held");
        let is_denied = |denied: &Line| {
            outcomes.iter().any(|(_, outcome)| {
                matches!(outcome, Outcome::NotPromised { line, .. } if line == denied)
            })
        };
        let unmet: Vec<_> = self
            .survived
            .iter()
            .filter(|line| !is_denied(line))
            .collect();
        assert!(unmet.is_empty(), "nothing denies {unmet:?}");
        for (id, _) in self.shown {
            let is_shown = |(case, outcome): &(&Case, Outcome)| {
                case.id == *id && matches!(outcome, Outcome::NotPromised { .. })
            };
            assert!(outcomes.iter().any(is_shown), "{id} shows nothing");
        }
    }
}

/// Of locks and sessions, without those that need a limit of the store's. What else can be held is kept as ever.
#[cfg(any(feature = "redis", feature = "postgres"))]
fn of_locks(case: &Case) -> bool {
    const OTHERS: &[&str] = &[
        "_reader_",
        "_writer_",
        "_leadership_",
        "_delivery_",
        "_batch_",
        "_hold_",
        "_participant_",
    ];
    case.rule.starts_with(['L', 'S'])
        && !case.id.starts_with("s5_too_many")
        && !OTHERS.iter().any(|role| case.id.contains(role))
}

#[cfg(feature = "etcd")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queues_shared_with_go_keep_what_they_promise() {
    use tenure_conformance::stores::EtcdHarness;
    let denied = Denied {
        survived: &[Line::QueueDelivery, Line::QueueOrder],
        // A lock waits for all keys below its name, and the items of a queue are such keys: docs/etcd.md.
        shown: &[
            (
                "l8_delivery_meets_no_other_name_or_kind",
                Line::QueueDelivery,
            ),
            ("l8_batch_meets_no_other_name_or_kind", Line::QueueDelivery),
            // A name is the same key in every namespace.
            ("l8_delivery_meets_no_other_namespace", Line::QueueDelivery),
            ("l8_batch_meets_no_other_namespace", Line::QueueDelivery),
        ],
    };
    let cases = |case: &Case| {
        case.rule.starts_with('Q')
            || ["_delivery_", "_batch_"]
                .iter()
                .any(|role| case.id.contains(role))
    };
    let start = async || EtcdHarness::start().await.unwrap().interop();
    denied.check(cases, 13, start).await;
}

#[cfg(feature = "redis")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locks_shared_with_redis_py_keep_what_they_promise() {
    use tenure_conformance::stores::RedisHarness;
    let denied = Denied {
        survived: &[
            Line::MutualExclusion,
            Line::TokenOrder,
            Line::HandOff,
            Line::Expiry,
            Line::EarlyRelease,
            Line::FencedRelease,
            Line::NameIsolation,
        ],
        // A name is the same key in every namespace.
        shown: &[("l8_lock_meets_no_other_namespace", Line::NameIsolation)],
    };
    let start = async || RedisHarness::start().await.unwrap().interop();
    denied.check(of_locks, 54, start).await;
}

#[cfg(feature = "postgres")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locks_shared_with_sql_clients_keep_what_they_promise() {
    use tenure_conformance::stores::PostgresHarness;
    let denied = Denied {
        // No session is taken up by another process, nor outlives its connection; a standby that is promoted knows of
        // no lock.
        survived: &[
            Line::MutualExclusion,
            Line::TokenOrder,
            Line::HandOff,
            Line::Expiry,
            Line::EarlyRelease,
            Line::NameIsolation,
            Line::Resume,
            Line::Durability,
        ],
        shown: &[
            // A name is the same key in every namespace.
            ("l8_lock_meets_no_other_namespace", Line::NameIsolation),
            // A session ends with its connection.
            ("s3_a_restart_frees_nothing_early", Line::EarlyRelease),
        ],
    };
    let start = async || PostgresHarness::start().await.unwrap().interop();
    denied.check(of_locks, 46, start).await;
}
