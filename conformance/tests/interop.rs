//! The cases on stores in interop mode: among our own the rules hold, and what foreign clients break
//! is not promised. On etcd those of queues, whose layout is another one then; on Redis and PostgreSQL
//! those of locks and sessions.
#![cfg(any(feature = "etcd", feature = "redis", feature = "postgres"))]
#![allow(clippy::unwrap_used)] // A test that cannot be set up has to fail.

use futures_util::{StreamExt, stream};
use tenure_conformance::{CASES, Case, Harness, Outcome, Seen};

/// So many servers at once.
const AT_ONCE: usize = 6;

/// What is to come of the cases. All others hold.
struct Expected {
    /// What foreign clients cannot keep, hence nobody is promised. Nobody of theirs is there to break it.
    denied: &'static [&'static str],
    /// What is denied, in interop mode or in any, and is seen without them.
    shown: &'static [&'static str],
    /// What this store does not promise in any mode, or has no means for.
    never: &'static [&'static str],
}

impl Expected {
    fn is_met(&self, case: &Case, outcome: &Outcome) -> bool {
        let is_in = |list: &[&str]| list.contains(&case.id);
        match outcome {
            Outcome::Held { .. } => ![self.denied, self.shown, self.never].into_iter().any(is_in),
            Outcome::NotPromised { seen, .. } => match seen {
                Seen::Counterexample(_) => is_in(self.shown),
                _ => is_in(self.denied) || is_in(self.never),
            },
            Outcome::NotRun { .. } => is_in(self.never),
            _ => false,
        }
    }

    /// Runs each of `cases` on a server of its own.
    async fn check<H: Harness>(&self, cases: impl Fn(&Case) -> bool, start: impl AsyncFn() -> H) {
        let cases: Vec<&Case> = CASES.iter().filter(|case| cases(case)).collect();
        for id in [self.denied, self.shown, self.never].concat() {
            assert!(cases.iter().any(|case| case.id == id), "no case {id}");
        }
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
    }
}

/// Of locks and sessions, without those that need a limit of the store's.
#[cfg(any(feature = "redis", feature = "postgres"))]
fn of_locks(case: &Case) -> bool {
    case.rule.starts_with(['L', 'S']) && !case.id.starts_with("s5_too_many")
}

#[cfg(feature = "etcd")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queues_shared_with_go_keep_what_they_promise() {
    use tenure_conformance::stores::EtcdHarness;
    let expected = Expected {
        denied: &[
            "q2_random_consumers_lose_and_double_nothing",
            "q2_what_comes_back_counts_its_deliveries",
            "q2_a_dead_consumers_item_comes_back",
            "q2_a_closed_consumers_items_come_back_at_once",
            "q1_an_item_is_delivered_until_it_is_acknowledged",
            "q3_by_priority_then_as_accepted",
            "q3_urgent_items_from_elsewhere_come_first",
            "q3_what_comes_back_keeps_its_place",
            "l8_queues_are_isolated",
        ],
        shown: &[],
        never: &[
            "q1_an_id_makes_an_enqueue_idempotent",
            "q1_items_outlive_a_failover",
        ],
    };
    let cases = |case: &Case| case.rule.starts_with('Q') || case.id == "l8_queues_are_isolated";
    let start = async || EtcdHarness::start().await.unwrap().interop();
    expected.check(cases, start).await;
}

#[cfg(feature = "redis")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locks_shared_with_redis_py_keep_what_they_promise() {
    use tenure_conformance::stores::RedisHarness;
    let expected = Expected {
        denied: &[
            "s3_freed_no_earlier_than_the_ttl",
            "s3_freed_within_the_stated_bound",
            "s3_a_restart_frees_nothing_early",
            "s3_a_failover_frees_nothing_early",
            "s3_a_clock_jump_frees_nothing_early",
            "s3_a_restart_prolongs_nothing",
            "s3_a_failover_prolongs_nothing",
            "s3_a_clock_jump_prolongs_nothing",
            "l1_one_holds_through_a_restart",
            "l1_one_holds_through_a_failover",
            "l1_one_holds_through_a_clock_jump",
            "l2_tokens_survive_a_failover",
            "l2_tokens_survive_clock_jumps",
            "l2_tokens_rise_with_every_grant",
            "l2_a_stale_token_is_refused_at_the_resource",
            "l2_tokens_survive_a_restart",
            "l3_first_come_first_served_across_connections",
            "l3_first_come_first_served_inside_a_session",
            "l3_try_lock_does_not_overtake",
            "l3_waiters_keep_their_places_in_a_restart",
            "l3_a_dead_waiter_delays_no_longer_than_stated",
            "l7_a_late_release_spares_the_successor",
            "l7_a_late_release_spares_a_reclaimed_holding",
            "l7_releasing_a_deleted_holding_spares_the_successor",
            "l8_names_are_isolated",
            "l7_a_late_release_spares_the_other_side",
            "l8_read_write_locks_are_isolated",
            "l8_queues_are_isolated",
        ],
        // A name is the same key in every namespace.
        shown: &["l8_namespaces_are_isolated"],
        never: &[],
    };
    let start = async || RedisHarness::start().await.unwrap().interop();
    expected.check(of_locks, start).await;
}

#[cfg(feature = "postgres")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locks_shared_with_sql_clients_keep_what_they_promise() {
    use tenure_conformance::stores::PostgresHarness;
    let expected = Expected {
        denied: &[
            "s3_freed_within_the_stated_bound",
            "s3_a_restart_prolongs_nothing",
            "l2_tokens_rise_with_every_grant",
            "l2_a_stale_token_is_refused_at_the_resource",
            "l2_tokens_survive_a_restart",
            "l3_first_come_first_served_across_connections",
            "l3_first_come_first_served_inside_a_session",
            "l3_try_lock_does_not_overtake",
            "l3_waiters_keep_their_places_in_a_restart",
            "l3_a_dead_waiter_delays_no_longer_than_stated",
            "l8_names_are_isolated",
            "l8_read_write_locks_are_isolated",
            "l8_queues_are_isolated",
        ],
        shown: &[
            // A name is the same key in every namespace.
            "l8_namespaces_are_isolated",
            // A session ends with its connection.
            "s3_a_restart_frees_nothing_early",
        ],
        // No session is taken up by another process, nor outlives its connection; nobody takes over from
        // this server, and it knows of no time.
        never: &[
            "s3_freed_no_earlier_than_the_ttl",
            "s3_a_failover_frees_nothing_early",
            "s3_a_clock_jump_frees_nothing_early",
            "s3_a_failover_prolongs_nothing",
            "s3_a_clock_jump_prolongs_nothing",
            "s4_a_detached_session_is_resumed_once",
            "s4_a_wait_in_flight_at_a_detach_leaves_no_place",
            "s4_a_detached_session_expires",
            "s4_only_detached_sessions_are_resumed",
            "s4_nothing_is_valid_before_the_first_renewal",
            "s4_a_resumed_session_takes_up_its_side",
            "l1_one_holds_through_a_restart",
            "l1_one_holds_through_a_failover",
            "l1_one_holds_through_a_clock_jump",
            "l2_tokens_survive_a_failover",
            "l2_tokens_survive_clock_jumps",
            "l3_no_wake_up_is_lost_in_a_reconnect",
            "l5_cancelled_detach_leaves_no_orphan",
            "l5_cancelled_reclaim_leaves_no_orphan",
            "l7_a_late_release_spares_a_reclaimed_holding",
        ],
    };
    let start = async || PostgresHarness::start().await.unwrap().interop();
    expected.check(of_locks, start).await;
}
