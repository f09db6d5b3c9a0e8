//! The suite as a stranger's crate uses it: a harness with no controls at all.
#![allow(clippy::unwrap_used)] // A test that cannot be set up has to fail.

use tenure_conformance::{Harness, async_trait, conformance};
use tenure_core::{Result, Store};
use tenure_memory::{MemoryBackend, MemoryConfig};

struct Bare(Store<MemoryBackend>);

impl Bare {
    fn start() -> Result<Self> {
        tenure_memory::connect(MemoryConfig::new()).map(Self)
    }
}

#[async_trait]
impl Harness for Bare {
    async fn connect(&self) -> Result<Store> {
        Ok(Store::new(self.0.backend().reconnect()).into_dyn())
    }
}

conformance!(bare, Bare::start().unwrap(), not_run: [
    s2_loss_is_signalled_against_a_silent_store,
    s2_loss_is_signalled_when_answers_are_lost,
    s2_a_short_silence_is_survived,
    s3_freed_no_earlier_than_the_ttl,
    s4_a_revoked_session_is_noticed,
    s4_nothing_is_valid_before_the_first_renewal,
    s5_too_many_holdings_are_refused,
    l3_no_wake_up_is_lost_in_a_reconnect,
    l3_no_wake_up_is_lost_in_a_silence,
    l3_no_wake_up_is_lost_in_a_disturbance,
    l5_cancelled_open_leaves_no_session,
    l5_an_unheard_grant_is_given_back,
    l5_a_late_request_leaves_nothing,
    l5_a_late_read_or_write_leaves_nothing,
    l6_a_waiter_ends_when_its_session_is_lost,
    l6_a_waiter_ends_when_its_session_is_revoked,
    l6_a_waiter_deleted_with_its_predecessor_is_not_granted,
    l7_releasing_a_deleted_holding_spares_the_successor,
    l7_a_deleted_holding_is_noticed,
    l7_an_unconfirmed_release_is_repeated,
    l8_namespaces_are_isolated,
    e3_a_deposed_leader_changes_nothing, e3_a_proclamation_is_made_good_after_a_silence, e4_an_observer_that_was_cut_off_shows_the_last_state, e4_an_observer_bears_disturbances, e5_a_dead_candidate_is_never_elected, b1_no_release_is_missed_in_a_silence, b1_no_release_is_missed_in_a_reconnect, b2_nothing_is_missed_in_a_reconnect, b2_nothing_is_missed_in_a_silence, l8_keys_are_isolated, t3_a_lost_guard_commits_nothing, t3_a_revoked_holder_commits_nothing, t4_a_lost_answer_is_resolved, t4_what_cannot_be_known_is_reported, t5_limits_are_errors_before_sending,
    q1_a_queue_in_use_does_not_grow,
    q1_an_enqueue_without_an_answer_yields_one_item,
    q4_a_late_ack_is_refused,
    q6_a_dequeue_cut_off_loses_nothing,
]);
