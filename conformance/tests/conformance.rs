//! Every case on every store of this house, from the one list.
//!
//! `--features etcd` adds etcd, which must be installed: one server for the cases that can share
//! it, and one more for each case that its neighbours would feel. `--features redis` does the same
//! with Redis, `--features postgres` with PostgreSQL.
#![allow(clippy::unwrap_used)] // A test that cannot be set up has to fail.

use rstest::rstest;
use tenure_conformance::stores::MemoryHarness;
use tenure_conformance::table::{Square, TABLE};
use tenure_conformance::{Harness, Need, expect, find};

/// Controls without which a row of the table is not run: a call within the process has no connection that could be
/// reset, and one of PostgreSQL is the lease itself. What PostgreSQL denies besides (S3) counts as denied.
const WITHOUT: &[(&str, Need)] = &[
    ("memory", Need::Cut),
    ("postgres", Need::Cut),
    // Its first waiter looks twice a second: see the stage.
    ("postgres", Need::Requests),
];

/// What cannot be attacked on a store for want of a control, and why that is right.
const NOT_RUN: &[(&str, &str)] = &[
    // A call within the process: there is no connection that could be reset,
    ("memory", "l3_lock_wakes_after_a_cut"),
    ("memory", "l3_hold_wakes_after_a_cut"),
    ("memory", "l3_participant_wakes_after_a_cut"),
    // and there are no operators' habits such as compaction.
    ("memory", "l3_no_wake_up_is_lost_in_a_disturbance"),
    ("memory", "e4_an_observer_bears_disturbances"),
    // It ends with its clients: nobody outlives it, and nobody else takes over. Its clock is theirs.
    ("memory", "s3_a_restart_frees_nothing_early"),
    ("memory", "s3_a_restart_prolongs_nothing"),
    ("memory", "s3_a_failover_frees_nothing_early"),
    ("memory", "s3_a_failover_prolongs_nothing"),
    ("memory", "s3_a_clock_jump_frees_nothing_early"),
    ("memory", "s3_a_clock_jump_prolongs_nothing"),
    ("memory", "l1_one_holds_through_a_restart"),
    ("memory", "l1_one_holds_through_a_failover"),
    ("memory", "l1_one_holds_through_a_clock_jump"),
    ("memory", "l2_tokens_survive_clock_jumps"),
    ("memory", "e4_an_observer_never_goes_back_in_a_restart"),
    ("memory", "e4_an_observer_never_goes_back_in_a_failover"),
    // Nothing of it can be backed up.
    ("memory", "o4_no_holding_of_a_lost_history_stays_valid"),
    ("memory", "o4_waiters_of_a_lost_history_fail_or_join_again"),
    ("memory", "o4_observers_converge_after_a_restore"),
    ("memory", "o4_tokens_rise_after_the_floor_is_raised"),
    // One server alone: nobody to take over. Its clock is moved in a set-up of its own; etcd's leases
    // run by another clock, which nothing sets.
    ("etcd", "s3_a_failover_frees_nothing_early"),
    ("etcd", "s3_a_clock_jump_frees_nothing_early"),
    ("etcd", "s3_a_clock_jump_prolongs_nothing"),
    ("etcd", "l1_one_holds_through_a_failover"),
    ("etcd", "l1_one_holds_through_a_clock_jump"),
    ("etcd", "l2_tokens_survive_clock_jumps"),
    ("etcd", "e4_an_observer_never_goes_back_in_a_failover"),
    ("etcd", "q1_items_outlive_a_failover"),
    ("etcd", "store_a_grant_outlives_a_failover"),
    ("etcd", "store_commits_outlive_a_failover"),
    ("redis", "s3_a_failover_prolongs_nothing"),
    ("redis", "l2_tokens_survive_a_failover"),
    ("redis", "l2_tokens_survive_clock_jumps"),
    ("redis", "e4_an_observer_never_goes_back_in_a_failover"),
    ("redis", "q1_items_outlive_a_failover"),
    ("redis", "store_a_grant_outlives_a_failover"),
    ("redis", "store_commits_outlive_a_failover"),
    ("postgres", "l2_tokens_survive_clock_jumps"),
    // Its capacity is far beyond what a test can fill.
    ("etcd", "s5_too_many_holdings_are_refused"),
    // The same: 100,000 for one session. The server has no limit of its own for one session that could be
    // set lower: at `maxmemory` it refuses everybody's new holdings, and with `Unavailable`. Core counts
    // and refuses, as for the embedded store; what Redis does with 10,000 its own tests look at.
    ("redis", "s5_too_many_holdings_are_refused"),
    ("postgres", "s5_too_many_holdings_are_refused"),
    // The connection is the lease: a session does not outlive a reset. What else is reset in passing,
    // the disturbances show.
    ("postgres", "l3_lock_wakes_after_a_cut"),
    ("postgres", "l3_hold_wakes_after_a_cut"),
    // One server alone. One with a standby is a set-up of its own.
    ("postgres", "s3_a_failover_prolongs_nothing"),
    ("postgres", "q1_items_outlive_a_failover"),
    ("postgres", "store_commits_outlive_a_failover"),
    ("postgres", "l2_tokens_survive_a_failover"),
    ("postgres", "e4_an_observer_never_goes_back_in_a_failover"),
    ("postgres", "l3_participant_wakes_after_a_cut"),
];

async fn stage(store: &str, id: &str) -> Box<dyn Harness> {
    let _ = id;
    match store {
        "memory" => Box::new(MemoryHarness::new()),
        #[cfg(feature = "etcd")]
        "etcd" => etcd::stage(id).await,
        #[cfg(feature = "redis")]
        "redis" => redis::stage(id).await,
        #[cfg(feature = "postgres")]
        "postgres" => postgres::stage(id).await,
        other => panic!("no harness for {other}"),
    }
}

#[cfg(feature = "etcd")]
mod etcd {
    use std::sync::{Arc, LazyLock};

    use tenure_conformance::stores::EtcdHarness;
    use tenure_testbed::EtcdServer;

    use super::*;

    /// Ends with the process: its watchdog sees to it.
    static SHARED: LazyLock<Arc<EtcdServer>> =
        LazyLock::new(|| Arc::new(EtcdServer::start().expect("etcd must be installed")));

    pub(super) async fn stage(id: &str) -> Box<dyn Harness> {
        let case = find(id).expect("a case of the list");
        if case.needs.iter().any(|need| need.wants_own_store()) {
            return Box::new(EtcdHarness::start().await.unwrap_or_else(not_started));
        }
        let server = tokio::task::spawn_blocking(|| Arc::clone(&SHARED));
        let server = server.await.expect("the thread that starts etcd");
        Box::new(EtcdHarness::sharing(server).expect("a namespace"))
    }
}

#[cfg(feature = "redis")]
mod redis {
    use std::sync::{Arc, LazyLock};

    use tenure_conformance::stores::RedisHarness;
    use tenure_testbed::RedisServer;

    use super::*;

    /// Ends with the process: its watchdog sees to it.
    static SHARED: LazyLock<Arc<RedisServer>> =
        LazyLock::new(|| Arc::new(RedisServer::start().expect("redis-server must be installed")));

    pub(super) async fn stage(id: &str) -> Box<dyn Harness> {
        let case = find(id).expect("a case of the list");
        if case.needs.iter().any(|need| need.wants_own_store()) {
            return Box::new(RedisHarness::start().await.unwrap_or_else(not_started));
        }
        let server = tokio::task::spawn_blocking(|| Arc::clone(&SHARED));
        let server = server.await.expect("the thread that starts Redis");
        Box::new(RedisHarness::sharing(server).expect("a namespace"))
    }
}

#[cfg(feature = "postgres")]
mod postgres {
    use std::sync::{Arc, LazyLock};

    use tenure_conformance::stores::PostgresHarness;
    use tenure_testbed::PostgresServer;

    use super::*;

    /// Ends with the process: its watchdog sees to it.
    static SHARED: LazyLock<Arc<PostgresServer>> = LazyLock::new(|| {
        Arc::new(PostgresHarness::server().expect("PostgreSQL must be installed"))
    });

    pub(super) async fn stage(id: &str) -> Box<dyn Harness> {
        let case = find(id).expect("a case of the list");
        if case.needs.iter().any(|need| need.wants_own_store()) {
            return Box::new(PostgresHarness::start().await.unwrap_or_else(not_started));
        }
        let server = tokio::task::spawn_blocking(|| Arc::clone(&SHARED));
        let server = server.await.expect("the thread that starts PostgreSQL");
        Box::new(PostgresHarness::sharing(server).await.expect("a database"))
    }
}

/// A server that does not start says nothing of a store.
#[cfg(any(feature = "etcd", feature = "redis", feature = "postgres"))]
fn not_started<H>(error: tenure_core::Error) -> H {
    panic!("NOT JUDGED: the server did not start: {}", error.chain())
}

fn square(id: &str) -> Square {
    Square::Case(find(id).expect("a case of the list").id)
}

async fn check(store: &str, id: &str) {
    let not_run: Vec<&str> = NOT_RUN
        .iter()
        .filter(|exception| **exception == (store, id))
        .map(|_| id)
        .collect();
    let without = |need: &Need| WITHOUT.contains(&(store, *need));
    let of_the_table = TABLE.iter().any(|row| row.squares.contains(&square(id)));
    let case = find(id).unwrap();
    let denied = store == "postgres" && case.rule == "S3";
    let missing = of_the_table && !denied && case.needs.iter().any(without);
    let not_run = if missing { vec![id] } else { not_run };
    expect(&*stage(store, id).await, id, &not_run).await;
}

macro_rules! tests {
    ({} $($module:ident::$id:ident $rest:tt)*) => {$(
        #[rstest]
        #[case::memory("memory")]
        #[cfg_attr(feature = "etcd", case::etcd("etcd"))]
        #[cfg_attr(feature = "redis", case::redis("redis"))]
        #[cfg_attr(feature = "postgres", case::postgres("postgres"))]
        #[tokio::test]
        async fn $id(#[case] store: &str) {
            check(store, stringify!($id)).await;
        }
    )*};
}

tenure_conformance::for_each_case! { [tests] {} }
tenure_conformance::for_each_square! { [tests] {} }

#[test]
fn every_exception_names_a_case() {
    for (_, id) in NOT_RUN {
        assert!(find(id).is_some(), "there is no case `{id}`");
    }
}

#[test]
fn every_line_of_the_matrix_has_a_case() {
    for &line in tenure_core::Line::ALL {
        let mut cases = tenure_conformance::CASES.iter();
        assert!(
            cases.any(|case| case.line == Some(line)),
            "nothing tests {line:?}"
        );
    }
}

#[test]
fn names_begin_with_their_rule_and_are_unique() {
    let mut seen = std::collections::HashSet::new();
    for case in tenure_conformance::CASES {
        let prefix = case.rule.to_lowercase() + "_";
        assert!(
            case.id.starts_with(&prefix),
            "{} is of {}",
            case.id,
            case.rule
        );
        assert!(seen.insert(case.id), "{} twice", case.id);
    }
}

/// A hundred seeds, one after the other: under a paused clock they take no time.
#[tokio::test(start_paused = true)]
async fn a_hundred_random_histories() {
    use tenure_conformance::cases::random::a_random_history;
    for seed in 0..100 {
        let outcome = a_random_history(&MemoryHarness::new(), seed).await;
        assert!(
            matches!(outcome, Ok(tenure_conformance::Outcome::Held { .. })),
            "{seed}: {outcome:?}"
        );
    }
}

/// The same of queues.
#[tokio::test(start_paused = true)]
async fn a_hundred_random_histories_of_queues() {
    use tenure_conformance::cases::random_queue::a_random_history_of_a_queue;
    for seed in 0..100 {
        let outcome = a_random_history_of_a_queue(&MemoryHarness::new(), seed).await;
        assert!(
            matches!(outcome, Ok(tenure_conformance::Outcome::Held { .. })),
            "{seed}: {outcome:?}"
        );
    }
}
