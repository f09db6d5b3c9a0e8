//! Every case can fail: each planted defect of the embedded store is found by the case that names its rule.

use tenure_conformance::{Runner, cases};
use tenure_memory::{Bug, MemoryConfig, MemorySubject};

fn planted(bug: Bug) -> MemorySubject {
    MemorySubject::new(MemoryConfig::new().plant(bug))
}

/// Runs a future on one thread under a paused clock.
pub(crate) fn paused<T>(run: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build();
    runtime.unwrap().block_on(run)
}

/// The case, or the row of the table, that finds each defect.
const FOUND: &[(Bug, &str)] = &[
    (Bug::NeverExpires, "s4_detached_session_expires"),
    (Bug::ExpiresEarly, "s3_a_long_ttl_is_kept"),
    (Bug::TtlCapped, "s3_a_long_ttl_is_kept"),
    (Bug::EndsAfterFiveTtls, "s1_kept_for_ttls"),
    (Bug::ResumedTwice, "s4_a_resumed_session_takes_it_up"),
    (Bug::DetachedActs, "s4_late_request_of_a_detached_session_has_no_effect"),
    (Bug::DetachFreesAll, "s4_a_resumed_session_takes_it_up"),
    (Bug::EntriesOmit, "s1_kept_for_ttls"),
    (Bug::KindsMeet, "l8_names_are_apart"),
    (Bug::NamespacesMeet, "l8_namespaces_are_apart"),
    (Bug::LateJoinActs, "l5_a_late_request_leaves_nothing"),
    (Bug::RepeatedJoinJoinsAgain, "l5_a_repeated_request_counts_once"),
    (Bug::RepeatedStepActsAgain, "q1_enqueue_without_an_answer_adds_one_item"),
    (Bug::LateStepActs, "t4_late_commit_never_lands"),
    (Bug::TwoHolders, "l1_excludes_others/lock"),
    (Bug::TokenRepeated, "l2_tokens_rise/lock"),
    (Bug::TokensRestart, "l2_tokens_rise/lock"),
    (Bug::FloorIgnored, "l2_token_floor_is_kept"),
    (Bug::LeaveReorders, "l3_cancelled_waiters_keep_the_order"),
    (Bug::TryLeavesEntry, "l4_a_try_leaves_nothing"),
    (Bug::ReleaseUnfenced, "l7_a_release_after_a_deletion_is_lost"),
    (Bug::WithdrawalIgnored, "l4_a_limit_bounds_the_wait"),
    (Bug::DeadWaiterGranted, "l6_a_waiter_ends_with_its_session"),
    (Bug::ReaderOvertakes, "r2_waiting_writer_is_not_overtaken"),
    (Bug::ReaderBesideWriter, "l1_excludes_others/reader"),
    (
        Bug::WriterBesideReaders,
        "r2_writer_waits_for_readers_of_its_own_session",
    ),
    (Bug::DowngradeRaisesToken, "r3_downgrade_keeps_token_and_place"),
    (Bug::DowngradeReleases, "r3_downgraded_writer_releases_as_a_reader"),
    (Bug::DowngradeGrantsNoReader, "r3_downgrade_keeps_token_and_place"),
    (Bug::ProclamationIgnored, "e4_observer_shows_every_change"),
    (Bug::LateProclamationWins, "e3_late_proclamation_does_not_win"),
    (Bug::ProclaimUnfenced, "e3_late_proclamation_does_not_win"),
    (Bug::VacancyMissed, "e4_observer_shows_every_change"),
    (Bug::ObserverGoesBack, "e4_observer_shows_every_change"),
    (Bug::NackLosesItem, "q2_returned_item_counts_its_deliveries"),
    (Bug::ItemToTwo, "l1_excludes_others/delivery"),
    (Bug::PriorityIgnored, "q3_items_come_by_priority_then_by_acceptance"),
    (Bug::ReturnedItemLast, "q3_returned_item_keeps_its_place"),
    (Bug::DeliveryNotCounted, "q2_returned_item_counts_its_deliveries"),
    (Bug::DeadLetterDropped, "q2_dead_letters_are_moved"),
    (Bug::CrashedItemDropped, "q2_item_of_crashing_consumers_is_kept"),
    (Bug::LateAckSucceeds, "l7_a_release_after_a_deletion_is_lost/delivery"),
    (Bug::AckIgnored, "q1_popped_items_are_removed"),
    (Bug::PurgeSkipsInFlight, "q1_purge_removes_all_items"),
    (Bug::WithdrawalCounts, "q6_unanswered_dequeue_loses_nothing"),
    (Bug::WithdrawalLosesItems, "q6_cancelled_dequeue_loses_nothing"),
    (Bug::DelayIgnored, "q2_delay_is_kept"),
    (Bug::DuplicateAccepted, "q1_id_makes_an_enqueue_idempotent"),
    (Bug::HeldBarrierLapses, "s1_kept_for_ttls/hold"),
    (Bug::EntersEarly, "b2_participants_enter_and_leave_together"),
    (Bug::LeavesEarly, "b2_participants_enter_and_leave_together"),
    (Bug::OneTooMany, "b3_crowd_enters_in_full_rounds"),
    (Bug::CountIgnored, "b3_another_count_is_refused"),
    (Bug::DeadCount, "l6_a_lost_waiter_is_told/participant"),
    (Bug::CompareIgnored, "t1_comparisons_mean_the_same_everywhere"),
    (Bug::FenceIgnored, "t3_lost_guard_commits_nothing"),
    (Bug::SnapshotMixed, "t1_attempt_reads_one_snapshot"),
    (Bug::StaleRead, "t1_attempt_reads_one_snapshot"),
    (Bug::ResolvedAborted, "t4_lost_answer_is_resolved"),
    (Bug::LateCommitLands, "t4_late_commit_never_lands"),
    (Bug::LeasedKeyOutlives, "b1_hold_ends_with_its_session"),
];

#[test]
fn planted_defect_is_found_by_its_case_each_time() {
    let mut missed = Vec::new();
    for bug in Bug::ALL {
        let Some((_, case)) = FOUND.iter().find(|(found, _)| found == bug) else {
            missed.push(format!("no case finds {bug:?}: {}", bug.what()));
            continue;
        };
        for time in 1..=3 {
            if paused(Runner::paused().only(*case).run(&planted(*bug)))
                .failures()
                .is_empty()
            {
                missed.push(format!("run {time} of {case} did not find {bug:?}"));
            }
        }
    }
    assert!(missed.is_empty(), "{missed:#?}");
}

#[test]
fn finding_case_exists() {
    let ids: Vec<&str> = cases().iter().map(|case| case.id).collect();
    for (bug, case) in FOUND {
        let exists = ids.iter().any(|id| id.contains(case));
        assert!(exists, "{bug:?} is said to be found by {case}, which is no case");
    }
}

#[test]
#[ignore = "prints which cases find each defect; slow"]
fn all_findings() {
    let only = std::env::var("TENURE_BUG").unwrap_or_default();
    for bug in Bug::ALL.iter().filter(|bug| format!("{bug:?}").contains(&only)) {
        let found = paused(Runner::paused().run(&planted(*bug))).failures();
        println!("== {bug:?}: {} findings", found.len());
        for text in found {
            println!("   {}", text.chars().take(230).collect::<String>().replace('\n', " "));
        }
    }
}
