//! How a store is run decides what it promises: each set-up denies something, and the suite has to
//! show why, by a counterexample that it really produced.
#![allow(clippy::unwrap_used)] // A test that cannot be set up has to fail.

use std::sync::Arc;

use tenure_conformance::stores::MemorySubject;
use tenure_conformance::{Column, Need, Subject, run};
use tenure_core::Line;

/// Puts the subject to the cases of events, and prints what came of it.
async fn column(subject: impl Subject + 'static) -> Column {
    const EVENTS: &[Need] = &[
        Need::Restart,
        Need::LoseMinority,
        Need::Failover,
        Need::ClockJump,
    ];
    let subjects: Vec<Arc<dyn Subject>> = vec![Arc::new(subject)];
    let events = |case: &tenure_conformance::Case| {
        let mut needs = case.needs.iter();
        needs.any(|need| EVENTS.contains(need))
    };
    let mut report = run(subjects, events, |_| {}).await;
    for entry in &report.columns[0].entries {
        println!("{:?} {}: {}", entry.took, entry.case.id, entry.outcome);
    }
    println!("{report}");
    assert!(report.exit_ok(), "{report}");
    report.columns.remove(0)
}

/// Denied and shown are exactly `shown`; the other denials are `not_shown`, and `held` was attacked
/// in an event and held.
fn stands(column: &Column, shown: &[Line], not_shown: &[Line], held: &[Line]) {
    for &line in Line::ALL {
        let standing = column.standing(line);
        let evidence = !standing.shown.is_empty();
        assert_eq!(evidence, shown.contains(&line), "{line:?}: {standing:?}");
        let denied = standing.is_denied() && !evidence;
        assert_eq!(denied, not_shown.contains(&line), "{line:?}: {standing:?}");
        if held.contains(&line) {
            assert!(!standing.held.is_empty(), "{line:?}: {standing:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_embedded_store_ends_with_its_process() {
    let column = column(MemorySubject).await;
    stands(
        &column,
        &[Line::TokenOrder, Line::Durability],
        // There is one process, and nothing beside it that could be lost.
        &[Line::MinorityLoss],
        &[],
    );
}

#[cfg(feature = "etcd")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_of_one_member() {
    let subject = tenure_conformance::stores::EtcdSubject::start().await;
    stands(
        &column(subject.unwrap()).await,
        &[Line::Expiry, Line::MinorityLoss],
        // Nobody is there to take over.
        &[Line::TokenOrder],
        &[
            Line::MutualExclusion,
            Line::TokenOrder,
            Line::EarlyRelease,
            Line::Observers,
            Line::Durability,
        ],
    );
}

#[cfg(feature = "etcd")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_of_three_members() {
    use tenure_conformance::stores::{EtcdSetup, EtcdSubject};

    let column = column(EtcdSubject::set_up(EtcdSetup::ThreeMembers)).await;
    stands(
        &column,
        &[Line::Expiry],
        // What an old etcd may do to leases in a change of leader, it need not.
        &[Line::MutualExclusion, Line::EarlyRelease],
        &[
            Line::TokenOrder,
            Line::Observers,
            Line::Durability,
            Line::MinorityLoss,
        ],
    );
}

/// A maintained etcd keeps what the installed one keeps: in the events that hit servers, and in the first case of each
/// primitive.
#[cfg(feature = "etcd")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a second etcd, which TENURE_ETCD_NEWER names; scripts/test.sh fetches and runs one"]
async fn a_newer_etcd_of_one_member() {
    use tenure_conformance::{CASES, Case, Outcome};

    const EVENTS: &[Need] = &[Need::Restart, Need::Restore];
    let of_rule = |rule| {
        CASES
            .iter()
            .find(|case| case.rule == rule && case.needs.is_empty())
    };
    let rules = ["L1", "L3", "R1", "E1", "Q1", "Q2", "B1", "B2", "T1"];
    let first: Vec<&Case> = rules.into_iter().filter_map(of_rule).collect();
    assert!(first.len() >= 7, "{} cases without an event", first.len());
    let chosen = move |case: &Case| {
        let event = case.needs.iter().any(|need| EVENTS.contains(need));
        event || first.iter().any(|one| one.id == case.id)
    };
    let subject = tenure_conformance::stores::EtcdSubject::newer().await;
    let subject: Arc<dyn Subject> = Arc::new(subject.unwrap());
    let report = run(vec![subject], chosen, |_| {}).await;
    println!("{report}");
    assert!(report.exit_ok(), "{report}");
    let entries = &report.columns[0].entries;
    let held = entries
        .iter()
        .filter(|it| matches!(it.outcome, Outcome::Held { .. }));
    assert!(held.count() >= 15, "{report}");
}

#[cfg(feature = "redis")]
mod redis {
    use tenure_conformance::stores::{RedisSetup, RedisSubject};

    use super::*;

    async fn set_up(setup: RedisSetup) -> Column {
        column(RedisSubject::set_up(setup).await.unwrap()).await
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn one_that_keeps_everything() {
        stands(
            &column(RedisSubject::start().await.unwrap()).await,
            &[Line::MinorityLoss],
            // What could show these is a jump of the clock: another column.
            &[Line::MutualExclusion, Line::EarlyRelease, Line::Expiry],
            &[
                Line::TokenOrder,
                Line::Expiry,
                Line::Observers,
                Line::Durability,
            ],
        );
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn one_without_persistence() {
        let column = set_up(RedisSetup::NoPersistence).await;
        stands(
            &column,
            &[
                Line::MutualExclusion,
                Line::EarlyRelease,
                Line::Observers,
                Line::Durability,
            ],
            &[],
            &[Line::TokenOrder, Line::Expiry],
        );
        let (_, seen) = column.standing(Line::MutualExclusion).shown[0];
        assert!(seen.contains("at once"), "{seen}");
        assert!(seen.contains("which is greater"), "{seen}");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn one_with_a_replica_that_lags() {
        let column = set_up(RedisSetup::AsynchronousReplica).await;
        stands(
            &column,
            &[
                Line::MutualExclusion,
                Line::EarlyRelease,
                Line::Observers,
                Line::Durability,
            ],
            &[],
            &[Line::TokenOrder, Line::Expiry, Line::MinorityLoss],
        );
        let (_, seen) = column.standing(Line::MutualExclusion).shown[0];
        assert!(seen.contains("which is greater"), "{seen}");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_cluster_that_loses_a_primary() {
        let column = set_up(RedisSetup::Cluster).await;
        stands(
            &column,
            &[
                Line::MutualExclusion,
                Line::EarlyRelease,
                Line::Observers,
                Line::Durability,
            ],
            &[],
            &[Line::TokenOrder, Line::Expiry, Line::MinorityLoss],
        );
        let (_, seen) = column.standing(Line::MutualExclusion).shown[0];
        assert!(seen.contains("which is greater"), "{seen}");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn one_whose_clock_jumps() {
        let column = set_up(RedisSetup::SteppedClock).await;
        stands(
            &column,
            &[Line::MutualExclusion, Line::EarlyRelease, Line::Expiry],
            &[],
            &[Line::TokenOrder],
        );
        let (_, seen) = column.standing(Line::MutualExclusion).shown[0];
        assert!(seen.contains("which is greater"), "{seen}");
    }
}

#[cfg(feature = "postgres")]
mod postgres {
    use tenure_conformance::stores::{PostgresSetup, PostgresSubject};
    use tenure_conformance::{Outcome, Seen};

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn one_alone() {
        let column = column(PostgresSubject::start().await.unwrap()).await;
        // The restart frees what is held, and its holder learns of that at the same moment: whether the
        // next is granted before is a matter of luck.
        let mut shown = vec![Line::EarlyRelease, Line::Durability, Line::MinorityLoss];
        // Nothing here can move the server's clock.
        let mut not_shown = vec![Line::Expiry];
        let exclusion = column.standing(Line::MutualExclusion);
        let side = if exclusion.shown.is_empty() {
            &mut not_shown
        } else {
            &mut shown
        };
        side.push(Line::MutualExclusion);
        stands(
            &column,
            &shown,
            &not_shown,
            &[
                Line::TokenOrder,
                Line::Expiry,
                Line::Observers,
                Line::Durability,
            ],
        );
    }

    async fn set_up(setup: PostgresSetup) -> Column {
        column(PostgresSubject::set_up(setup)).await
    }

    fn held(column: &Column, id: &str) -> bool {
        matches!(column.outcome(id), Some(Outcome::Held { .. }))
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn one_with_a_standby_that_lags() {
        let column = set_up(PostgresSetup::AsynchronousStandby).await;
        stands(
            &column,
            &[Line::EarlyRelease, Line::Durability],
            // Whoever holds learns with the end of its connection that the primary is dead.
            &[Line::MutualExclusion],
            &[Line::TokenOrder, Line::Observers],
        );
        let shown = &column.standing(Line::Durability).shown;
        for id in [
            "q1_items_outlive_a_failover",
            "store_commits_outlive_a_failover",
            "store_a_grant_outlives_a_failover",
        ] {
            assert!(shown.iter().any(|(case, _)| case.id == id), "{shown:?}");
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn one_that_waits_for_its_standby() {
        let column = set_up(PostgresSetup::SynchronousStandby).await;
        stands(
            &column,
            &[Line::EarlyRelease, Line::Durability],
            &[Line::MutualExclusion],
            &[Line::TokenOrder, Line::Observers, Line::Durability],
        );
        assert!(held(&column, "q1_items_outlive_a_failover"));
        assert!(held(&column, "store_commits_outlive_a_failover"));
        let lost = &column.standing(Line::Durability).shown;
        let [(case, _)] = lost[..] else {
            panic!("only grants are lost: {lost:?}");
        };
        assert_eq!(case.id, "store_a_grant_outlives_a_failover");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn one_whose_primary_lives_on() {
        let column = set_up(PostgresSetup::TwoPrimaries).await;
        stands(
            &column,
            &[Line::MutualExclusion, Line::EarlyRelease, Line::Durability],
            &[],
            &[Line::TokenOrder, Line::Observers, Line::Durability],
        );
        let (_, seen) = column.standing(Line::MutualExclusion).shown[0];
        assert!(seen.contains("at once"), "{seen}");
        assert!(seen.contains("which is greater"), "{seen}");
        assert!(held(&column, "store_commits_outlive_a_failover"));
    }

    /// Only the crash of a machine would show it, and that is not ours to bring about.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn one_that_leaves_its_disk_to_luck() {
        let subject: Arc<dyn Subject> = Arc::new(PostgresSubject::set_up(PostgresSetup::NoFsync));
        let report = run(vec![subject], |_| true, |_| {}).await;
        println!("{report}");
        let column = &report.columns[0];
        for line in [Line::TokenOrder, Line::Durability] {
            assert!(column.standing(line).is_denied(), "{line:?}");
        }
        for entry in &column.entries {
            let Outcome::NotPromised {
                seen: Seen::NoControl(why) | Seen::NotBroughtAbout(why),
                ..
            } = &entry.outcome
            else {
                panic!("{}: {}", entry.case.id, entry.outcome);
            };
            assert!(why.contains("a crash of the machine"), "{why}");
        }
    }
}
