//! The one list of cases: it feeds [`CASES`], the tests, and so the report.

use tenure_core::Line;

use super::{
    barrier, cancel, election, event, floor, lock, names, promise, queue, random, random_queue,
    restore, rw_lock, session, stm, store,
};
use crate::case::Case;
use crate::harness::Need;
use crate::table::SQUARES;

/// Calls `$callback! { $args case case ... }`, where a case is
/// `module::function { rule, title, line, [needs], promise }`.
#[doc(hidden)]
#[macro_export]
macro_rules! for_each_case {
    ([$($callback:tt)*] $args:tt) => { $($callback)* ! { $args

        session::s1_the_ttl_is_at_least_what_was_asked {
            "S1", "a lease has at least the TTL asked for, and a TTL of zero is refused",
            None, [], always
        }
        session::s2_loss_is_signalled_when_answers_are_lost {
            "S2", "renewals that arrive but are not answered do not prolong validity",
            Some(Line::LossSignal), [Mute], loss_by_deadline
        }
        session::s2_validity_is_right_after_a_pause {
            "S2", "a process that was stopped beyond its deadline knows in its first instruction",
            Some(Line::LossSignal), [], loss_by_deadline
        }
        session::s2_loss_is_signalled_while_the_sessions_runtime_stands_still {
            "S2", "the loss is signalled by the deadline to those who wait on another runtime, though the session's own stands still",
            Some(Line::LossSignal), [], loss_by_deadline
        }
        session::s2_slow_answers_do_not_prolong_validity {
            "S2", "validity is counted from the request of a renewal, however late its answer comes",
            Some(Line::LossSignal), [Silence, Hold], loss_by_deadline
        }
        session::s3_freed_within_the_stated_bound {
            "S3", "a crashed holder's lock is free by TTL plus the stated bound",
            Some(Line::Expiry), [], expiry_is_bounded
        }
        event::s3_a_restart_frees_nothing_early {
            "S3", "a restart of the store frees nothing that a live session holds",
            Some(Line::EarlyRelease), [Restart, Survivors], never_early
        }
        event::s3_a_failover_frees_nothing_early {
            "S3", "a failover frees nothing that a live session holds",
            Some(Line::EarlyRelease), [Failover], never_early
        }
        event::s3_a_clock_jump_frees_nothing_early {
            "S3", "a store whose clock is set forward frees nothing that a live session holds",
            Some(Line::EarlyRelease), [ClockJump], never_early
        }
        event::s3_a_restart_prolongs_nothing {
            "S3", "a restart of the store does not prolong what the dead held",
            Some(Line::Expiry), [Restart, Survivors], expiry_is_never_counted_anew
        }
        event::s3_a_failover_prolongs_nothing {
            "S3", "a failover does not prolong what the dead held",
            Some(Line::Expiry), [Failover], expiry_is_never_counted_anew
        }
        event::s3_a_clock_jump_prolongs_nothing {
            "S3", "a store whose clock is set back does not prolong what the dead held",
            Some(Line::Expiry), [ClockJump], expiry_heeds_no_wall_clock
        }
        session::s4_a_closed_session_says_closed {
            "S4", "a closed session says so to its guards, and to those who ask it for more",
            None, [], always
        }
        session::s4_a_detached_session_is_resumed_once {
            "S4", "of several processes one resumes a detached session, with what it holds",
            Some(Line::Resume), [], resumable
        }
        session::s4_a_wait_in_flight_at_a_detach_leaves_no_place {
            "S4", "a wait that a detach meets ends with Detached, and leaves no place in line",
            Some(Line::Resume), [], resumable
        }
        session::s4_a_detached_session_expires {
            "S4", "a detached session that nobody resumes ends with its TTL",
            Some(Line::Resume), [], resumable
        }
        session::s4_only_detached_sessions_are_resumed {
            "S4", "live, closed and unknown sessions cannot be resumed",
            Some(Line::Resume), [], resumable
        }
        session::s4_nothing_is_valid_before_the_first_renewal {
            "S4", "a resumed session that could not renew is not handed out",
            Some(Line::Resume), [Silence], resumable
        }
        session::s5_too_many_holdings_are_refused {
            "S5", "more holdings than a session carries are refused with TooLarge, and harm nobody",
            None, [Capacity], always
        }
        lock::l1_a_paused_holder_is_succeeded_after_its_end {
            "L1", "a stopped holder is succeeded only once it is no longer valid",
            Some(Line::MutualExclusion), [], always
        }
        random::l1_random_histories_stay_exclusive {
            "L1", "random clients under random faults: no update is lost, no valid holder refused",
            Some(Line::MutualExclusion), [], always
        }
        event::l1_one_holds_through_a_restart {
            "L1", "a restart of the store lets no second holder in beside the first",
            Some(Line::MutualExclusion), [Restart, Survivors], one_holder_always
        }
        event::l1_one_holds_through_a_failover {
            "L1", "a failover lets no second holder in beside the first",
            Some(Line::MutualExclusion), [Failover], one_holder_always
        }
        event::l1_one_holds_through_a_clock_jump {
            "L1", "a store whose clock is set forward lets no second holder in beside the first",
            Some(Line::MutualExclusion), [ClockJump], one_holder_always
        }
        lock::l2_a_stale_token_is_refused_at_the_resource {
            "L2", "a resource that checks tokens refuses a late writer; one that does not, does not",
            Some(Line::TokenOrder), [], tokens_rise
        }
        store::l2_tokens_survive_a_restart {
            "L2", "a restart of the store does not turn tokens back",
            Some(Line::TokenOrder), [Restart], tokens_survive_a_restart
        }
        event::l2_tokens_survive_a_failover {
            "L2", "a failover does not turn tokens back, whatever the new member missed",
            Some(Line::TokenOrder), [Failover], tokens_survive_a_failover
        }
        event::l2_tokens_survive_clock_jumps {
            "L2", "the store's clock does not turn tokens back, whichever way it jumps",
            Some(Line::TokenOrder), [ClockJump], tokens_rise
        }
        lock::l3_try_lock_does_not_overtake {
            "L3", "try_lock does not overtake those who stand in line",
            Some(Line::HandOff), [], fifo
        }
        lock::l3_no_wake_up_is_lost_in_a_disturbance {
            "L3", "what operators do to the store in passing leaves no waiter asleep",
            None, [Disturb], always
        }
        lock::l3_waiters_keep_their_places_in_a_restart {
            "L3", "waiters keep their places when the store restarts",
            Some(Line::HandOff), [Restart], fifo_and_durable
        }
        lock::l3_a_dead_waiter_delays_no_longer_than_stated {
            "L3", "a dead waiter at the head is in the way no longer than stated",
            Some(Line::Expiry), [], expiry_is_bounded
        }
        lock::l3_a_mass_death_delays_no_longer_than_stated {
            "L3", "when a holder and many waiters die together, the next live waiter holds by TTL plus the stated bound",
            Some(Line::Expiry), [], expiry_is_bounded
        }
        cancel::l5_cancelled_try_lock_leaves_nothing {
            "L5", "try_lock, dropped at any await point, leaves nothing",
            Some(Line::Cancellation), [], prompt_cancellation
        }
        cancel::l5_cancelled_lock_timeout_leaves_nothing {
            "L5", "lock_timeout, dropped or timed out, leaves nothing",
            Some(Line::Cancellation), [], prompt_cancellation
        }
        cancel::l5_cancelled_release_still_releases {
            "L5", "release, dropped at any await point, releases all the same",
            Some(Line::Cancellation), [], prompt_cancellation
        }
        cancel::l5_cancelled_close_still_closes {
            "L5", "close, dropped at any await point, closes all the same",
            Some(Line::Cancellation), [], prompt_cancellation
        }
        cancel::l5_cancelled_open_leaves_no_session {
            "L5", "open, dropped at any await point, leaves no session",
            Some(Line::Cancellation), [Sessions], prompt_cancellation
        }
        cancel::l5_cancelled_detach_leaves_no_orphan {
            "L5", "detach, dropped at any await point, leaves a session that can be resumed",
            Some(Line::Cancellation), [], resumable_and_prompt
        }
        cancel::l5_cancelled_reclaim_leaves_no_orphan {
            "L5", "reclaim, dropped at any await point, leaves a lock that can be reclaimed or is free",
            Some(Line::Cancellation), [], resumable_and_prompt
        }
        cancel::l5_a_storm_of_cancelled_callers_leaves_nothing {
            "L5", "hundreds of callers gone at random moments leave nothing within a second",
            Some(Line::Cancellation), [], prompt_cancellation
        }
        cancel::l5_an_unheard_grant_is_given_back {
            "L5", "a grant whose answer was lost is given back",
            Some(Line::Cancellation), [Mute], prompt_cancellation
        }
        cancel::l5_a_late_request_leaves_nothing {
            "L5", "a request that arrives after its caller has gone leaves nothing",
            Some(Line::Cancellation), [Silence], prompt_cancellation
        }
        lock::l6_a_waiter_ends_when_its_session_is_revoked {
            "L6", "a waiter whose session an operator revoked gets an error, and is in nobody's way",
            None, [Revoke], always
        }
        lock::l6_a_waiter_deleted_with_its_predecessor_is_not_granted {
            "L6", "a waiter that an operator removed with the holder before it is not granted its place",
            None, [Revoke, Delete, Keys], always
        }
        lock::l7_a_late_release_spares_the_successor {
            "L7", "a release after the loss says Lost, and frees nothing of the new holder's",
            Some(Line::FencedRelease), [], fenced_release
        }
        lock::l7_a_late_release_spares_a_reclaimed_holding {
            "L7", "what was reclaimed elsewhere is not freed by whatever the first holder still does",
            Some(Line::FencedRelease), [], resumable_and_fenced
        }
        lock::l7_releasing_a_deleted_holding_spares_the_successor {
            "L7", "a release of a holding that an operator deleted says Lost, and frees nothing",
            Some(Line::FencedRelease), [Delete], fenced_release
        }
        lock::l7_a_deleted_holding_is_noticed {
            "L7", "a holder whose holding an operator deleted is told, though its session lives",
            None, [Delete], always
        }
        lock::l7_an_unconfirmed_release_is_repeated {
            "L7", "a release that the store did not confirm is repeated until it does",
            None, [Silence], always
        }
        names::l8_names_are_isolated {
            "L8", "names that look alike, nest or are hostile never block each other",
            Some(Line::NameIsolation), [], isolated_names
        }
        names::l8_bad_names_are_refused {
            "L8", "empty, oversized and NUL-bearing names are refused",
            None, [], always
        }
        rw_lock::r1_readers_share_and_keep_writers_out {
            "R1", "readers share, in one session and across sessions, and keep writers out",
            Some(Line::RwOrder), [], rw_locks
        }
        rw_lock::r1_a_writer_is_alone {
            "R1", "nobody comes in beside a writer, in its own session either",
            Some(Line::RwOrder), [], rw_locks
        }
        rw_lock::r1_contenders_share_or_exclude_each_other {
            "R1", "many readers and writers, no faults: never a writer beside anybody",
            Some(Line::RwOrder), [], rw_locks
        }
        rw_lock::r1_random_readers_and_writers_stay_exclusive {
            "R1", "random readers and writers under random faults exclude each other, and tokens rise",
            Some(Line::RwOrder), [], rw_locks
        }
        rw_lock::r1_an_upgrade_is_refused {
            "R1", "writing while reading is refused with Conflict, not waited for in vain",
            None, [], rw_locks
        }
        rw_lock::r2_writer_waits_for_a_reader_of_the_same_session {
            "R2", "a writer waits for readers that other tasks of its own session hold, and is then granted",
            Some(Line::RwOrder), [], rw_by_arrival
        }
        rw_lock::r2_arrival_order_with_batches_of_readers {
            "R2", "granted in the order of arrival, neighbouring readers together",
            Some(Line::RwOrder), [], rw_by_arrival
        }
        rw_lock::r2_a_waiting_writer_is_not_overtaken {
            "R2", "later readers, trying ones too, do not overtake a writer that waits",
            Some(Line::RwOrder), [], rw_by_arrival
        }
        rw_lock::r2_a_reader_is_not_starved {
            "R2", "writers that come again and again do not keep a reader out",
            Some(Line::RwOrder), [], rw_by_arrival
        }
        rw_lock::r2_a_writer_that_gives_up_lets_the_readers_in {
            "R2", "when a waiting writer gives up, the readers behind it join those before it",
            Some(Line::RwOrder), [], rw_by_arrival
        }
        rw_lock::r2_a_dead_reader_frees_the_writer_and_nobody_else {
            "R2", "a dead reader is out of the writer's way after its TTL; a living one is not",
            Some(Line::RwOrder), [], rw_by_arrival_and_expiry
        }
        rw_lock::r2_a_mass_death_of_writers_delays_no_longer_than_stated {
            "R2", "when a writer and many waiting writers die together, the next live writer holds by TTL plus the stated bound",
            Some(Line::RwOrder), [], rw_by_arrival_and_expiry
        }
        rw_lock::r2_a_mass_death_of_readers_delays_no_longer_than_stated {
            "R2", "when a writer and many waiting readers die together, the next live reader holds by TTL plus the stated bound",
            Some(Line::RwOrder), [], rw_by_arrival_and_expiry
        }
        rw_lock::r3_a_writers_token_is_above_every_earlier_one {
            "R3", "a writer's token is above every token granted before, of either side",
            Some(Line::TokenOrder), [], rw_tokens_rise
        }
        rw_lock::r3_a_downgrade_keeps_token_and_place {
            "R3", "a downgrade keeps token and place: readers behind come in, no writer",
            Some(Line::RwOrder), [], rw_by_arrival
        }
        rw_lock::s4_a_resumed_session_takes_up_its_side {
            "S4", "a resumed session takes up reading what it read, writing what it wrote",
            Some(Line::Resume), [], rw_resumable
        }
        rw_lock::l5_cancelled_downgrade_releases {
            "L5", "downgrade, dropped at any await point, releases",
            Some(Line::Cancellation), [], rw_prompt_cancellation
        }
        rw_lock::l5_a_late_read_or_write_leaves_nothing {
            "L5", "a reader or writer whose request arrives after its caller has gone leaves nothing",
            Some(Line::Cancellation), [Silence], rw_prompt_cancellation
        }
        rw_lock::l7_dropping_a_read_or_write_guard_releases {
            "L7", "dropping a guard of a reader, a writer or a downgraded writer releases",
            None, [], rw_locks
        }
        election::e1_one_leads_at_a_time {
            "E1", "many candidates, never two leaders, and leader() sees the one there is",
            Some(Line::MutualExclusion), [], always
        }
        election::e2_the_token_rises_with_each_leadership {
            "E2", "the token rises with each leadership, and stays for as long as it lasts",
            Some(Line::TokenOrder), [], tokens_rise
        }
        election::e3_a_deposed_leader_changes_nothing {
            "E3", "a deposed leader's proclamation and resignation are refused with Lost",
            Some(Line::FencedRelease), [Delete], fenced_release
        }
        election::e3_the_last_proclamation_stands {
            "E3", "a proclamation that its caller gave up does not land after a later one",
            None, [], always
        }
        election::e3_a_proclamation_is_made_good_after_a_silence {
            "E3", "of two proclamations in a silence the last stands after it",
            None, [Silence], always
        }
        election::e4_an_observer_shows_every_change {
            "E4", "an observer starts with the present and shows elections, proclamations and vacancies",
            Some(Line::Observers), [], observers_converge
        }
        election::e4_an_observer_shows_the_end_of_a_dead_leader {
            "E4", "an observer shows the vacancy that a dead leader leaves",
            Some(Line::Observers), [], observers_converge_and_expiry_is_bounded
        }
        election::e4_an_observer_that_was_cut_off_shows_the_last_state {
            "E4", "what an observer missed while it was cut off it makes up for, and never goes back",
            Some(Line::Observers), [Silence], observers_converge
        }
        election::e4_an_observer_bears_disturbances {
            "E4", "what operators do to the store in passing hides nothing from an observer",
            Some(Line::Observers), [Disturb], observers_converge
        }
        election::e4_observers_of_a_turmoil_never_go_back {
            "E4", "however fast leaders change, observers never go back and end up at the last",
            Some(Line::Observers), [], observers_converge
        }
        event::e4_an_observer_never_goes_back_in_a_restart {
            "E4", "an observer shows nothing older after a restart of the store",
            Some(Line::Observers), [Restart, Survivors], observers_converge
        }
        event::e4_an_observer_never_goes_back_in_a_failover {
            "E4", "an observer shows nothing older after a failover",
            Some(Line::Observers), [Failover], observers_converge
        }
        election::e5_a_cancelled_resignation_still_resigns {
            "E5", "resign, dropped at any await point, resigns all the same",
            Some(Line::Cancellation), [], prompt_cancellation
        }
        election::e5_a_dead_candidate_is_never_elected {
            "E5", "a candidate whose session is gone gets an error, and is never elected",
            None, [Revoke], always
        }
        election::e5_a_mass_death_delays_no_longer_than_stated {
            "E5", "when a leader and many candidates die together, the next live candidate leads by TTL plus the stated bound",
            Some(Line::Expiry), [], expiry_is_bounded
        }
        election::e5_a_leadership_is_taken_up_after_a_restart {
            "E5", "a resumed session takes up its leadership, and the one who left it has no say",
            Some(Line::Resume), [], resumable
        }
        barrier::b1_wait_returns_only_after_a_release {
            "B1", "who waits at a barrier goes on after a release, whoever made it, or at once if nobody holds it",
            None, [], always
        }
        barrier::b1_a_second_hold_is_refused {
            "B1", "a barrier has one hold at a time: a second is refused with Conflict",
            None, [], always
        }
        barrier::b1_a_hold_ends_with_its_session_or_outlives_it {
            "B1", "a hold for the session ends when that is closed, a hold for good does not",
            None, [], always
        }
        barrier::b1_every_release_is_heard {
            "B1", "a release lets those go who wait, also if the barrier is held again right after it",
            None, [], always
        }
        barrier::b2_nobody_passes_before_all_are_there {
            "B2", "nobody is let in before all have come, nor out before all have left",
            None, [], always
        }
        barrier::b2_generations_do_not_meet {
            "B2", "round after round, nobody meets one of another round",
            None, [], always
        }
        barrier::b2_a_cancelled_leave_still_leaves {
            "B2", "who gives up leaving, at any await point, has left all the same",
            None, [], always
        }
        barrier::b3_one_too_many_is_refused {
            "B3", "one too many, and a latecomer, are refused until all have left; then the barrier serves again",
            None, [], always
        }
        barrier::b3_a_crowd_is_let_in_by_the_party {
            "B3", "of a crowd as many are let in as are wanted, or twice as many, never another number",
            None, [], always
        }
        barrier::b3_another_count_is_refused {
            "B3", "who gives another count than those who are there is refused",
            None, [], always
        }
        barrier::b4_the_dead_let_nobody_in {
            "B4", "one who died while waiting lets nobody in",
            Some(Line::Barriers), [], the_dead_do_not_count
        }
        barrier::b4_leaving_does_not_wait_for_the_dead {
            "B4", "one who died inside keeps nobody from leaving beyond its TTL plus the stated bound",
            Some(Line::Barriers), [], the_dead_do_not_count
        }
        barrier::b4_a_barrier_outlives_its_participants {
            "B4", "a double barrier whose participants all died inside serves others",
            Some(Line::Barriers), [], the_dead_do_not_count
        }
        barrier::b4_a_cancelled_enter_leaves_nothing {
            "B4", "one who timed out, or went away at any await point, does not count and leaves nothing",
            Some(Line::Cancellation), [], prompt_cancellation
        }
        barrier::b4_a_cancelled_last_enter_holds_nobody_up {
            "B4", "one who went away in the moment of being let in holds nobody up",
            Some(Line::Cancellation), [Keys], prompt_cancellation
        }

        stm::l8_keys_are_isolated {
            "L8", "keys that look alike, nest or are hostile never meet, nor other namespaces'",
            None, [Elsewhere], transactions
        }
        stm::t1_appended_lists_have_no_cycles {
            "T1", "lists that ten clients append to and read, at both serializable levels, show no cycle",
            Some(Line::Isolation), [], strictly_serializable
        }
        stm::t1_the_bank_keeps_its_money {
            "T1", "transfers between accounts keep the sum, in every snapshot",
            Some(Line::Isolation), [], serializable
        }
        stm::t1_an_attempt_reads_one_snapshot {
            "T1", "no attempt sees another's commit by halves, not even one that cannot commit itself",
            Some(Line::Isolation), [], serializable
        }
        stm::t1_no_write_skew {
            "T1", "two that each check what the other one changes do not both commit",
            Some(Line::Isolation), [], serializable
        }
        stm::t1_a_snapshot_notices_newer_writes {
            "T1", "the snapshot level does not overwrite unread what is newer than its snapshot",
            Some(Line::Isolation), [], serializable
        }
        stm::t1_a_conflict_storm_ends {
            "T1", "under contention everybody commits in the end, and a limit of attempts is kept",
            None, [], transactions
        }
        stm::t1_comparisons_mean_the_same_everywhere {
            "T1", "comparisons and operations of explicit transactions mean what they mean in etcd",
            None, [], transactions
        }
        stm::t2_an_aborted_attempt_leaves_no_trace {
            "T2", "what an attempt wrote that failed or lost a race is seen by nobody",
            None, [], transactions
        }
        stm::t2_a_cancelled_transaction_is_whole_or_nothing {
            "T2", "a transaction dropped at any await point happens whole or not at all",
            None, [], transactions
        }
        stm::t3_a_lost_guard_commits_nothing {
            "T3", "a transaction bound to a guard that is gone in the store does not commit",
            Some(Line::FencedCommit), [Delete], fenced_commit
        }
        stm::t3_every_kind_of_guard_binds {
            "T3", "so it is with leaderships, both sides of read-write locks, deliveries and places in double barriers",
            Some(Line::FencedCommit), [Delete], fenced_commit
        }
        stm::t3_no_commit_lands_after_a_successors {
            "T3", "a deposed holder that commits as fast as it can lands nothing after its successor's commit",
            Some(Line::FencedCommit), [Delete], fenced_commit
        }
        stm::t3_a_revoked_holder_commits_nothing {
            "T3", "nor does one whose holder's session was ended",
            Some(Line::FencedCommit), [Revoke], fenced_commit
        }
        stm::t4_a_lost_answer_is_resolved {
            "T4", "a commit whose answer was lost is found out, and never done twice",
            Some(Line::UnknownCommit), [Mute], commits_are_resolved
        }
        stm::t4_what_cannot_be_known_is_reported {
            "T4", "a commit of which nothing can be found out ends with CommitUnknown",
            Some(Line::UnknownCommit), [Mute], transactions
        }
        stm::t4_a_restart_loses_and_doubles_nothing {
            "T4", "commits over a crash of the store are neither lost nor doubled",
            Some(Line::UnknownCommit), [Restart], durable_transactions
        }
        stm::t5_limits_are_errors_before_sending {
            "T5", "what is too large, written twice or misnamed is refused before anything is sent",
            None, [Silence], transactions
        }

        queue::q1_an_item_is_delivered_until_it_is_acknowledged {
            "Q1", "an item that a consumer lets go of is delivered again; one that was acknowledged is gone",
            Some(Line::QueueDelivery), [], delivers_until_acknowledged
        }
        queue::q1_an_enqueue_without_an_answer_yields_one_item {
            "Q1", "an enqueue whose answer was lost, and which is repeated, puts in one item",
            None, [Mute], always
        }
        queue::q1_an_id_makes_an_enqueue_idempotent {
            "Q1", "two items with one id are one, also when the first has left the queue",
            None, [], always
        }
        queue::q1_a_batch_is_all_or_nothing {
            "Q1", "a batch is accepted whole and in its order, and delivered as one; one too large is refused",
            None, [], always
        }
        queue::q1_depth_peek_and_purge_tell_the_truth {
            "Q1", "depth and peek see what is there, and purge spares what is with a consumer",
            None, [], always
        }
        queue::q1_popped_items_are_gone {
            "Q1", "pop acknowledges before it returns",
            None, [], always
        }
        queue::q1_a_queue_in_use_does_not_grow {
            "Q1", "items that have passed leave nothing behind",
            None, [Keys], always
        }
        queue::q1_items_outlive_a_crash {
            "Q1", "accepted items are there after the store crashed",
            Some(Line::Durability), [Restart], stored
        }
        event::q1_items_outlive_a_failover {
            "Q1", "accepted items are there after a failover",
            Some(Line::Durability), [Failover], stored
        }
        queue::q2_a_delivery_outlives_a_crash {
            "Q2", "an item that is with a consumer stays there when the store crashes",
            Some(Line::Durability), [Restart], durable
        }
        queue::q2_one_consumer_at_a_time {
            "Q2", "of many consumers on many connections each item is with one, once",
            None, [], always
        }
        random_queue::q2_random_consumers_lose_and_double_nothing {
            "Q2", "random consumers that give up, give back and leave: every item is accounted for",
            Some(Line::QueueDelivery), [], delivers_until_acknowledged
        }
        queue::q2_what_comes_back_counts_its_deliveries {
            "Q2", "a nacked item comes back with its count raised, and under a greater token",
            Some(Line::QueueDelivery), [], delivers_until_acknowledged
        }
        queue::q2_a_mass_death_delays_no_longer_than_stated {
            "Q2", "when a consumer and many waiting consumers die together, its item reaches the next by TTL plus the stated bound",
            Some(Line::QueueDelivery), [], delivers_until_acknowledged
        }
        queue::q2_a_delay_is_kept {
            "Q2", "an item given back with a delay is not delivered before it is over, and is after",
            None, [], always
        }
        queue::q2_dead_letters_go_elsewhere {
            "Q2", "an item delivered too often goes to the end of another queue",
            None, [], always
        }
        queue::q3_by_priority_then_as_accepted {
            "Q3", "items come by priority, then in the order in which the store accepted them",
            Some(Line::QueueOrder), [], queues_in_order
        }
        queue::q3_urgent_items_from_elsewhere_come_first {
            "Q3", "a dequeue that begins after an urgent item was accepted elsewhere delivers that",
            Some(Line::QueueOrder), [], queues_in_order
        }
        queue::q3_what_comes_back_keeps_its_place {
            "Q3", "an item that comes back is delivered before those accepted after it",
            Some(Line::QueueOrder), [], queues_in_order
        }
        queue::q4_a_late_ack_is_refused {
            "Q4", "acknowledging an item that another has by now fails with Lost, and spares the other",
            Some(Line::FencedRelease), [Delete], fenced_release
        }
        queue::q5_an_item_wakes_one_consumer {
            "Q5", "of those who wait an item wakes one",
            None, [], always
        }
        queue::q6_a_dequeue_cut_off_loses_nothing {
            "Q6", "what a dequeue got or may get over a silent connection goes back when it is dropped",
            Some(Line::Cancellation), [Silence, Mute], prompt_cancellation
        }
        floor::l2_token_floor_is_kept {
            "L2", "after the token floor was raised every grant has at least that token; holders and waiters from before keep what they have",
            Some(Line::TokenOrder), [], tokens_rise
        }
        floor::l2_token_floor_survives_a_restart {
            "L2", "a token floor that was raised holds after a restart of the store",
            Some(Line::Durability), [Restart], durable
        }
        lock::l3_two_hundred_waiters_are_served {
            "L3", "two hundred waiters of several sessions are all served",
            None, [], always
        }
        election::e4_values_of_every_size_are_seen {
            "E4", "a leader's value of any size up to the limit is seen byte by byte",
            None, [], always
        }
        stm::t2_a_delete_deletes {
            "T2", "what is deleted is gone for reads, comparisons and the next put",
            None, [], transactions
        }
        stm::t5_values_of_every_size_come_back {
            "T5", "values of any size up to the limit are read back byte by byte",
            None, [], transactions
        }
        stm::t5_every_operation_counts {
            "T5", "every write, delete, read and comparison counts, up to the last that is allowed",
            None, [], transactions
        }
        queue::q1_items_of_every_size_come_back {
            "Q1", "items of any size up to the limit are delivered, peeked and popped byte by byte",
            Some(Line::QueueDelivery), [], delivers_until_acknowledged
        }
        queue::q1_a_deep_queue_is_whole {
            "Q1", "a thousand items come out as they went in",
            Some(Line::QueueOrder), [], queues_in_order
        }
        queue::q2_a_whole_batch_comes_back {
            "Q2", "of the largest batch every item is delivered, and comes back when its consumer goes",
            Some(Line::QueueDelivery), [], delivers_until_acknowledged
        }
        queue::q3_every_priority_counts {
            "Q3", "every priority counts, from the lowest number to the highest",
            Some(Line::QueueOrder), [], queues_in_order
        }
        store::store_a_grant_outlives_a_crash {
            "store", "an acknowledged grant is in force after the store crashed",
            Some(Line::Durability), [Restart], durable
        }
        event::store_a_grant_outlives_a_failover {
            "store", "an acknowledged grant is in force after a failover",
            Some(Line::Durability), [Failover], durable
        }
        event::store_commits_outlive_a_crash {
            "store", "acknowledged commits are there after the store crashed",
            Some(Line::Durability), [Restart], stored_transactions
        }
        event::store_commits_outlive_a_failover {
            "store", "acknowledged commits are there after a failover",
            Some(Line::Durability), [Failover], stored_transactions
        }
        store::store_survives_losing_a_minority {
            "store", "the store goes on when a minority of its members is lost",
            Some(Line::MinorityLoss), [LoseMinority], survives_minority_loss
        }
        restore::o4_no_holding_of_a_lost_history_stays_valid {
            "O4", "who holds what a restore of the store took away is told by the next renewal",
            None, [Restore, Survivors], always
        }
        restore::o4_waiters_of_a_lost_history_fail_or_join_again {
            "O4", "who waited when the store was restored fails or is granted beside nobody, and never hangs",
            None, [Restore, Survivors], always
        }
        restore::o4_observers_converge_after_a_restore {
            "O4", "an observer shows what is proclaimed after the store was restored",
            None, [Restore, Survivors], always
        }
        restore::o4_tokens_rise_after_the_floor_is_raised {
            "O4", "every grant has a token of at least the floor that an operator raised after a restore",
            None, [Restore], always
        }
    }};
}

macro_rules! list {
    ({} $($module:ident::$id:ident {
        $rule:literal, $title:literal, $line:expr, [$($need:ident),*], $promise:ident
    })*) => {
        const LIST: &[Case] = &[$(Case {
            id: stringify!($id),
            rule: $rule,
            title: $title,
            line: $line,
            needs: &[$(Need::$need),*],
            promise: promise::$promise,
            attack: |harness| Box::pin($module::$id(harness)),
        },)*];
    };
}

for_each_case! { [list] {} }

/// Every case: those of the table, then those that only one primitive has, in the order of the contract.
pub static CASES: &[Case] = &joined::<{ SQUARES.len() + LIST.len() }>();

const fn joined<const N: usize>() -> [Case; N] {
    let mut all = [LIST[0]; N];
    let mut next = 0;
    while next < N {
        all[next] = match next < SQUARES.len() {
            true => SQUARES[next],
            false => LIST[next - SQUARES.len()],
        };
        next += 1;
    }
    all
}
