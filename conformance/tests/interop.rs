//! The cases on stores in interop mode: among our own the rules hold, and what foreign clients break
//! is not promised. On etcd those of queues, whose layout is another one then; on Redis and PostgreSQL
//! those of locks and sessions.
#![allow(clippy::unwrap_used)] // A test that cannot be set up has to fail.

#[cfg(feature = "etcd")]
mod etcd {
    use tenure_conformance::stores::EtcdHarness;
    use tenure_conformance::{CASES, Outcome, Seen};

    /// What is denied, and may hold all the same.
    const DENIED: &[&str] = &[
        "q1_an_item_is_delivered_until_it_is_acknowledged",
        "q2_random_consumers_lose_and_double_nothing",
        "q2_what_comes_back_counts_its_deliveries",
        "q2_a_dead_consumers_item_comes_back",
        "q2_a_closed_consumers_items_come_back_at_once",
        "q3_by_priority_then_as_accepted",
        "q3_urgent_items_from_elsewhere_come_first",
        "q3_what_comes_back_keeps_its_place",
        "l8_queues_are_isolated",
    ];

    /// What is not there.
    const UNSUPPORTED: &[&str] = &[
        "q1_an_id_makes_an_enqueue_idempotent",
        // One member: nobody takes over.
        "q1_items_outlive_a_failover",
    ];

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn queues_shared_with_go_keep_what_they_promise() {
        let mut wrong = Vec::new();
        for case in CASES {
            if !case.rule.starts_with('Q') && case.id != "l8_queues_are_isolated" {
                continue;
            }
            let harness = EtcdHarness::start().await.unwrap().interop();
            let outcome = case.run(&harness).await;
            println!("{}: {outcome}", case.id);
            let denied = DENIED.contains(&case.id);
            let as_stated = match &outcome {
                // Nobody of Go's is there to break it, and names are verbatim in any case.
                Outcome::NotPromised { seen, .. } => {
                    let shown = matches!(seen, Seen::Counterexample(_));
                    denied && (!shown || case.rule != "Q2")
                }
                Outcome::Held { .. } => !denied,
                Outcome::NotRun { .. } => UNSUPPORTED.contains(&case.id),
                _ => false,
            };
            if !as_stated {
                wrong.push(format!("{}: {outcome}", case.id));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}

#[cfg(feature = "redis")]
mod redis {
    use tenure_conformance::stores::RedisHarness;
    use tenure_conformance::{CASES, Outcome, Seen};

    /// What foreign clients cannot keep, hence nobody is promised. Nobody of theirs is there to break
    /// it; but a name is the same key in every namespace.
    const DENIED: &[&str] = &[
        "s3_freed_no_earlier_than_the_ttl",
        "s3_freed_within_the_stated_bound",
        "s3_a_restart_frees_nothing_early",
        "s3_a_failover_frees_nothing_early",
        "s3_a_clock_jump_frees_nothing_early",
        "s3_a_restart_prolongs_nothing",
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
        "l8_namespaces_are_isolated",
        "l7_a_late_release_spares_the_other_side",
        "l8_read_write_locks_are_isolated",
        "l8_queues_are_isolated",
    ];

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn locks_shared_with_others_keep_what_they_promise() {
        let mut wrong = Vec::new();
        for case in CASES {
            if !case.rule.starts_with(['L', 'S']) || case.id.starts_with("s5_too_many") {
                continue;
            }
            let harness = RedisHarness::start().await.unwrap().interop();
            let outcome = case.run(&harness).await;
            println!("{}: {outcome}", case.id);
            let denied = DENIED.contains(&case.id);
            let as_stated = match &outcome {
                Outcome::NotPromised { seen, .. } => {
                    let shown = matches!(seen, Seen::Counterexample(_));
                    denied && shown == (case.id == "l8_namespaces_are_isolated")
                }
                Outcome::Held { .. } => !denied,
                _ => false,
            };
            if !as_stated {
                wrong.push(format!("{}: {outcome}", case.id));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}

#[cfg(feature = "postgres")]
mod postgres {
    use tenure_conformance::stores::PostgresHarness;
    use tenure_conformance::{CASES, Outcome, Seen};

    /// What foreign clients cannot keep, hence nobody is promised. Nobody of theirs is there to break
    /// it; but a name is the same key in every namespace.
    const DENIED: &[&str] = &[
        "s3_freed_within_the_stated_bound",
        "l2_tokens_rise_with_every_grant",
        "l2_a_stale_token_is_refused_at_the_resource",
        "l2_tokens_survive_a_restart",
        "l3_first_come_first_served_across_connections",
        "l3_first_come_first_served_inside_a_session",
        "l3_try_lock_does_not_overtake",
        "l3_waiters_keep_their_places_in_a_restart",
        "l3_a_dead_waiter_delays_no_longer_than_stated",
        "l8_names_are_isolated",
        "l8_namespaces_are_isolated",
    ];

    /// What a session on PostgreSQL does not promise in any mode.
    const NEVER: &[&str] = &[
        "s3_freed_no_earlier_than_the_ttl",
        "s4_a_detached_session_is_resumed_once",
        "s4_a_wait_in_flight_at_a_detach_leaves_no_place",
        "s4_a_detached_session_expires",
        "s4_only_detached_sessions_are_resumed",
        "s4_nothing_is_valid_before_the_first_renewal",
    ];

    /// Of other primitives, and of what the server has no control for.
    const NOT_HERE: &[&str] = &[
        "l3_no_wake_up_is_lost_in_a_reconnect",
        "l7_a_late_release_spares_the_other_side",
        "l8_read_write_locks_are_isolated",
        "l8_queues_are_isolated",
    ];

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn locks_shared_with_others_keep_what_they_promise() {
        let mut wrong = Vec::new();
        for case in CASES {
            if !case.rule.starts_with(['L', 'S'])
                || case.id.starts_with("s5_too_many")
                || NOT_HERE.contains(&case.id)
                || NEVER.contains(&case.id)
            {
                continue;
            }
            let harness = PostgresHarness::start().await.unwrap().interop();
            let outcome = case.run(&harness).await;
            println!("{}: {outcome}", case.id);
            let denied = DENIED.contains(&case.id);
            let as_stated = match &outcome {
                Outcome::NotPromised { seen, .. } => {
                    let shown = matches!(seen, Seen::Counterexample(_));
                    denied && shown == (case.id == "l8_namespaces_are_isolated")
                }
                Outcome::Held { .. } => !denied,
                _ => false,
            };
            if !as_stated {
                wrong.push(format!("{}: {outcome}", case.id));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}
