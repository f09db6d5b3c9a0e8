//! The table of rules and roles: a square is a case, or a written reason why there is none.
//!
//! An empty square does not compile. The catalogue in the docs is written from this table.

use tenure_core::Line;

use crate::case::Case;
use crate::cases::promise;
use crate::harness::Need;
use crate::roles::{self, Role};

/// Calls `$callback! { $args row row ... }`, where a row is a rule with its squares.
#[doc(hidden)]
#[macro_export]
macro_rules! for_each_rule {
    ([$($callback:tt)*] $args:tt) => { $($callback)* ! { $args
        closing_frees {
            "S1", "is free at once when its session is closed",
            None, [], always
        } {
            Lock lock::s1_lock_ends_with_its_session
            Reader rw_lock::s1_reader_ends_with_its_session
            Writer rw_lock::s1_writer_ends_with_its_session
            Leadership election::s1_leadership_ends_with_its_session
            Delivery queue::s1_delivery_ends_with_its_session
            Batch queue::s1_batch_ends_with_its_session
            Hold barrier::s1_hold_ends_with_its_session
            Participant barrier::s1_participant_ends_with_its_session
        } {
        }
        dropping_frees {
            "S1", "is free soon when its session is dropped",
            None, [], always
        } {
            Lock lock::s1_lock_ends_with_a_dropped_session
            Reader rw_lock::s1_reader_ends_with_a_dropped_session
            Writer rw_lock::s1_writer_ends_with_a_dropped_session
            Leadership election::s1_leadership_ends_with_a_dropped_session
            Delivery queue::s1_delivery_ends_with_a_dropped_session
            Batch queue::s1_batch_ends_with_a_dropped_session
            Hold barrier::s1_hold_ends_with_a_dropped_session
            Participant barrier::s1_participant_ends_with_a_dropped_session
        } {
        }
        kept_for_ttls {
            "S1", "is kept for more than three TTLs while another waits",
            None, [], always
        } {
            Lock lock::s1_lock_outlives_three_ttls
            Reader rw_lock::s1_reader_outlives_three_ttls
            Writer rw_lock::s1_writer_outlives_three_ttls
            Leadership election::s1_leadership_outlives_three_ttls
            Delivery queue::s1_delivery_outlives_three_ttls
            Batch queue::s1_batch_outlives_three_ttls
            Hold barrier::s1_hold_outlives_three_ttls
            Participant barrier::s1_participant_outlives_three_ttls
        } {
        }
        loss_is_signalled {
            "S2", "signals its loss in a silence, by the deadline and before another has it",
            Some(Line::LossSignal), [Silence], loss_by_deadline
        } {
            Lock lock::s2_lock_loss_is_signalled
            Reader rw_lock::s2_reader_loss_is_signalled
            Writer rw_lock::s2_writer_loss_is_signalled
            Leadership election::s2_leadership_loss_is_signalled
            Delivery queue::s2_delivery_loss_is_signalled
            Batch queue::s2_batch_loss_is_signalled
            Participant barrier::s2_participant_loss_is_signalled
        } {
            Hold "a held barrier has no guard that could be valid: nothing of it is signalled"
        }
        a_long_ttl_is_kept {
            "S3", "is kept for 9/10 of a long TTL that nothing renews",
            Some(Line::EarlyRelease), [Silence], never_early
        } {
            Lock lock::s3_lock_keeps_a_long_ttl
            Reader rw_lock::s3_reader_keeps_a_long_ttl
            Writer rw_lock::s3_writer_keeps_a_long_ttl
            Leadership election::s3_leadership_keeps_a_long_ttl
            Delivery queue::s3_delivery_keeps_a_long_ttl
            Batch queue::s3_batch_keeps_a_long_ttl
            Hold barrier::s3_hold_keeps_a_long_ttl
            Participant barrier::s3_participant_keeps_a_long_ttl
        } {
        }
        kept_in_a_silence {
            "S3", "is kept in and after a silence shorter than the TTL",
            Some(Line::EarlyRelease), [Silence], never_early
        } {
            Lock lock::s3_lock_outlives_a_silence
            Reader rw_lock::s3_reader_outlives_a_silence
            Writer rw_lock::s3_writer_outlives_a_silence
            Leadership election::s3_leadership_outlives_a_silence
            Delivery queue::s3_delivery_outlives_a_silence
            Batch queue::s3_batch_outlives_a_silence
            Hold barrier::s3_hold_outlives_a_silence
            Participant barrier::s3_participant_outlives_a_silence
        } {
        }
        kept_in_a_cut {
            "S3", "is kept when its connection is cut",
            Some(Line::EarlyRelease), [Cut], never_early
        } {
            Lock lock::s3_lock_outlives_a_cut
            Reader rw_lock::s3_reader_outlives_a_cut
            Writer rw_lock::s3_writer_outlives_a_cut
            Leadership election::s3_leadership_outlives_a_cut
            Delivery queue::s3_delivery_outlives_a_cut
            Batch queue::s3_batch_outlives_a_cut
            Hold barrier::s3_hold_outlives_a_cut
            Participant barrier::s3_participant_outlives_a_cut
        } {
        }
        kept_when_answers_are_slow {
            "S3", "is kept while answers come late, but before the TTL is over",
            None, [Hold], always
        } {
            Lock lock::s3_lock_outlives_slow_answers
            Reader rw_lock::s3_reader_outlives_slow_answers
            Writer rw_lock::s3_writer_outlives_slow_answers
            Leadership election::s3_leadership_outlives_slow_answers
            Delivery queue::s3_delivery_outlives_slow_answers
            Batch queue::s3_batch_outlives_slow_answers
            Hold barrier::s3_hold_outlives_slow_answers
            Participant barrier::s3_participant_outlives_slow_answers
        } {
        }
        freed_after_the_ttl {
            "S3", "is free by its TTL and the stated bound when nothing renews it",
            Some(Line::Expiry), [Silence], expiry_is_bounded
        } {
            Lock lock::s3_lock_ends_after_a_silence
            Reader rw_lock::s3_reader_ends_after_a_silence
            Writer rw_lock::s3_writer_ends_after_a_silence
            Leadership election::s3_leadership_ends_after_a_silence
            Delivery queue::s3_delivery_ends_after_a_silence
            Batch queue::s3_batch_ends_after_a_silence
            Hold barrier::s3_hold_ends_after_a_silence
            Participant barrier::s3_participant_ends_after_a_silence
        } {
        }
        handed_on_after_the_ttl {
            "S3", "goes to a waiter by its TTL and the stated bound when nothing renews it",
            Some(Line::Expiry), [Silence], expiry_is_bounded
        } {
            Lock lock::s3_lock_goes_to_a_waiter_after_a_silence
            Reader rw_lock::s3_reader_goes_to_a_waiter_after_a_silence
            Writer rw_lock::s3_writer_goes_to_a_waiter_after_a_silence
            Leadership election::s3_leadership_goes_to_a_waiter_after_a_silence
            Delivery queue::s3_delivery_goes_to_a_waiter_after_a_silence
            Batch queue::s3_batch_goes_to_a_waiter_after_a_silence
            Hold barrier::s3_hold_goes_to_a_waiter_after_a_silence
            Participant barrier::s3_participant_goes_to_a_waiter_after_a_silence
        } {
        }
        a_revocation_frees {
            "S4", "is free at once when an operator revokes its session, and says so",
            None, [Revoke], always
        } {
            Lock lock::s4_lock_ends_with_a_revoked_session
            Reader rw_lock::s4_reader_ends_with_a_revoked_session
            Writer rw_lock::s4_writer_ends_with_a_revoked_session
            Leadership election::s4_leadership_ends_with_a_revoked_session
            Delivery queue::s4_delivery_ends_with_a_revoked_session
            Batch queue::s4_batch_ends_with_a_revoked_session
            Hold barrier::s4_hold_ends_with_a_revoked_session
            Participant barrier::s4_participant_ends_with_a_revoked_session
        } {
        }
        one_at_a_time {
            "L1", "keeps the others out, in one session and in several",
            Some(Line::MutualExclusion), [], always
        } {
            Lock lock::l1_lock_excludes_others
            Reader rw_lock::l1_reader_excludes_others
            Writer rw_lock::l1_writer_excludes_others
            Leadership election::l1_leadership_excludes_others
            Delivery queue::l1_delivery_excludes_others
            Batch queue::l1_batch_excludes_others
        } {
            Hold "a second hold is refused, never kept waiting: b1_a_second_hold_is_refused"
            Participant "several are inside together: the cases of B2 and B3"
        }
        tokens_rise {
            "L2", "has a token above all before it, also after a drop, a close and idle time",
            Some(Line::TokenOrder), [], tokens_rise
        } {
            Lock lock::l2_lock_tokens_rise
            Reader rw_lock::l2_reader_tokens_rise
            Writer rw_lock::l2_writer_tokens_rise
            Leadership election::l2_leadership_tokens_rise
            Delivery queue::l2_delivery_tokens_rise
            Batch queue::l2_batch_tokens_rise
            Participant barrier::l2_participant_tokens_rise
        } {
            Hold "a held barrier has no token"
        }
        cancelled_waiters_keep_the_order {
            "L3", "goes to the waiters in order when the first, a middle and the last give up",
            Some(Line::HandOff), [], fifo
        } {
            Lock lock::l3_lock_keeps_order_when_waiters_give_up
            Reader rw_lock::l3_reader_keeps_order_when_waiters_give_up
            Writer rw_lock::l3_writer_keeps_order_when_waiters_give_up
            Leadership election::l3_leadership_keeps_order_when_waiters_give_up
        } {
            Delivery "an item is promised to one of those who wait, not to the first: Q5"
            Batch "an item is promised to one of those who wait, not to the first: Q5"
            Hold "all waiters of a barrier go on at once"
            Participant "all participants go on at once"
        }
        handed_on_at_once {
            "L3", "is the waiter's within moments of a release",
            None, [], always
        } {
            Lock lock::l3_lock_is_handed_on_at_once
            Reader rw_lock::l3_reader_is_handed_on_at_once
            Writer rw_lock::l3_writer_is_handed_on_at_once
            Leadership election::l3_leadership_is_handed_on_at_once
            Delivery queue::l3_delivery_is_handed_on_at_once
            Batch queue::l3_batch_is_handed_on_at_once
            Hold barrier::l3_hold_is_handed_on_at_once
            Participant barrier::l3_participant_is_handed_on_at_once
        } {
        }
        waiting_sends_nothing {
            "L3", "is waited for without requests",
            None, [Requests], always
        } {
            Lock lock::l3_lock_is_waited_for_without_requests
            Reader rw_lock::l3_reader_is_waited_for_without_requests
            Writer rw_lock::l3_writer_is_waited_for_without_requests
            Leadership election::l3_leadership_is_waited_for_without_requests
            Delivery queue::l3_delivery_is_waited_for_without_requests
            Batch queue::l3_batch_is_waited_for_without_requests
            Hold barrier::l3_hold_is_waited_for_without_requests
            Participant barrier::l3_participant_is_waited_for_without_requests
        } {
        }
        woken_after_a_silence {
            "L3", "wakes its waiter by a release in or after a silence of the waiter's link",
            None, [Silence], always
        } {
            Lock lock::l3_lock_wakes_after_a_silence
            Reader rw_lock::l3_reader_wakes_after_a_silence
            Writer rw_lock::l3_writer_wakes_after_a_silence
            Leadership election::l3_leadership_wakes_after_a_silence
            Delivery queue::l3_delivery_wakes_after_a_silence
            Batch queue::l3_batch_wakes_after_a_silence
            Hold barrier::l3_hold_wakes_after_a_silence
            Participant barrier::l3_participant_wakes_after_a_silence
        } {
        }
        woken_after_a_cut {
            "L3", "wakes its waiter by a release after the waiter's connection was cut",
            None, [Cut], always
        } {
            Lock lock::l3_lock_wakes_after_a_cut
            Reader rw_lock::l3_reader_wakes_after_a_cut
            Writer rw_lock::l3_writer_wakes_after_a_cut
            Leadership election::l3_leadership_wakes_after_a_cut
            Delivery queue::l3_delivery_wakes_after_a_cut
            Batch queue::l3_batch_wakes_after_a_cut
            Hold barrier::l3_hold_wakes_after_a_cut
            Participant barrier::l3_participant_wakes_after_a_cut
        } {
        }
        woken_though_notifications_are_lost {
            "L3", "wakes its waiter though answers and notifications were lost",
            None, [Mute], always
        } {
            Lock lock::l3_lock_wakes_though_news_is_lost
            Reader rw_lock::l3_reader_wakes_though_news_is_lost
            Writer rw_lock::l3_writer_wakes_though_news_is_lost
            Leadership election::l3_leadership_wakes_though_news_is_lost
            Delivery queue::l3_delivery_wakes_though_news_is_lost
            Batch queue::l3_batch_wakes_though_news_is_lost
            Hold barrier::l3_hold_wakes_though_news_is_lost
            Participant barrier::l3_participant_wakes_though_news_is_lost
        } {
        }
        a_try_leaves_nothing {
            "L4", "answers a try at once, which leaves nothing",
            None, [], always
        } {
            Lock lock::l4_lock_try_leaves_nothing
            Reader rw_lock::l4_reader_try_leaves_nothing
            Writer rw_lock::l4_writer_try_leaves_nothing
            Leadership election::l4_leadership_try_leaves_nothing
            Delivery queue::l4_delivery_try_leaves_nothing
            Hold barrier::l4_hold_try_leaves_nothing
            Participant barrier::l4_participant_try_leaves_nothing
        } {
            Batch "dequeue_many has no form that does not wait"
        }
        a_limit_bounds_the_wait {
            "L4", "is waited for no longer than asked, which leaves nothing",
            None, [], always
        } {
            Lock lock::l4_lock_limit_bounds_the_wait
            Reader rw_lock::l4_reader_limit_bounds_the_wait
            Writer rw_lock::l4_writer_limit_bounds_the_wait
            Leadership election::l4_leadership_limit_bounds_the_wait
            Delivery queue::l4_delivery_limit_bounds_the_wait
            Hold barrier::l4_hold_limit_bounds_the_wait
            Participant barrier::l4_participant_limit_bounds_the_wait
        } {
            Batch "dequeue_many has no form with a limit"
        }
        a_cancelled_acquire_leaves_nothing {
            "L5", "leaves nothing when its acquire is dropped at any await point, free or held",
            Some(Line::Cancellation), [], prompt_cancellation
        } {
            Lock lock::l5_lock_cancelled_acquire_leaves_nothing
            Reader rw_lock::l5_reader_cancelled_acquire_leaves_nothing
            Writer rw_lock::l5_writer_cancelled_acquire_leaves_nothing
            Leadership election::l5_leadership_cancelled_acquire_leaves_nothing
            Delivery queue::l5_delivery_cancelled_acquire_leaves_nothing
            Batch queue::l5_batch_cancelled_acquire_leaves_nothing
            Hold barrier::l5_hold_cancelled_acquire_leaves_nothing
            Participant barrier::l5_participant_cancelled_acquire_leaves_nothing
        } {
        }
        a_waiter_ends_with_its_session {
            "L6", "gives its waiter an error when the waiter's session is closed",
            None, [], always
        } {
            Lock lock::l6_lock_waiter_ends_with_its_session
            Reader rw_lock::l6_reader_waiter_ends_with_its_session
            Writer rw_lock::l6_writer_waiter_ends_with_its_session
            Leadership election::l6_leadership_waiter_ends_with_its_session
            Delivery queue::l6_delivery_waiter_ends_with_its_session
            Batch queue::l6_batch_waiter_ends_with_its_session
            Hold barrier::l6_hold_waiter_ends_with_its_session
            Participant barrier::l6_participant_waiter_ends_with_its_session
        } {
        }
        a_waiter_ends_when_its_session_is_lost {
            "L6", "gives its waiter an error when the waiter's session runs out",
            None, [Silence], always
        } {
            Lock lock::l6_lock_waiter_ends_when_its_session_is_lost
            Reader rw_lock::l6_reader_waiter_ends_when_its_session_is_lost
            Writer rw_lock::l6_writer_waiter_ends_when_its_session_is_lost
            Leadership election::l6_leadership_waiter_ends_when_its_session_is_lost
            Delivery queue::l6_delivery_waiter_ends_when_its_session_is_lost
            Batch queue::l6_batch_waiter_ends_when_its_session_is_lost
            Hold barrier::l6_hold_waiter_ends_when_its_session_is_lost
            Participant barrier::l6_participant_waiter_ends_when_its_session_is_lost
        } {
        }
        a_drop_releases {
            "L7", "is given back when it is dropped",
            None, [], always
        } {
            Lock lock::l7_lock_drop_releases
            Reader rw_lock::l7_reader_drop_releases
            Writer rw_lock::l7_writer_drop_releases
            Leadership election::l7_leadership_drop_releases
            Delivery queue::l7_delivery_drop_releases
            Batch queue::l7_batch_drop_releases
            Participant barrier::l7_participant_drop_releases
        } {
            Hold "a held barrier has no guard to drop: it ends by a release or with its session"
        }
        a_late_release_spares_the_next {
            "L7", "says Lost when it is released too late, and spares the next holder",
            Some(Line::FencedRelease), [Silence], fenced_release
        } {
            Lock lock::l7_lock_late_release_spares_the_next
            Reader rw_lock::l7_reader_late_release_spares_the_next
            Writer rw_lock::l7_writer_late_release_spares_the_next
            Leadership election::l7_leadership_late_release_spares_the_next
            Delivery queue::l7_delivery_late_release_spares_the_next
            Batch queue::l7_batch_late_release_spares_the_next
            Participant barrier::l7_participant_late_release_spares_the_next
        } {
            Hold "any client may release a barrier: a release is not bound to a holder"
        }
        names_are_apart {
            "L8", "meets no other name, and no other kind of the same name",
            Some(Line::NameIsolation), [], isolated_names
        } {
            Lock lock::l8_lock_meets_no_other_name_or_kind
            Reader rw_lock::l8_reader_meets_no_other_name_or_kind
            Writer rw_lock::l8_writer_meets_no_other_name_or_kind
            Leadership election::l8_leadership_meets_no_other_name_or_kind
            Delivery queue::l8_delivery_meets_no_other_name_or_kind
            Batch queue::l8_batch_meets_no_other_name_or_kind
            Hold barrier::l8_hold_meets_no_other_name_or_kind
            Participant barrier::l8_participant_meets_no_other_name_or_kind
        } {
        }
        namespaces_are_apart {
            "L8", "meets nothing of another namespace",
            Some(Line::NameIsolation), [Elsewhere], isolated_names
        } {
            Lock lock::l8_lock_meets_no_other_namespace
            Reader rw_lock::l8_reader_meets_no_other_namespace
            Writer rw_lock::l8_writer_meets_no_other_namespace
            Leadership election::l8_leadership_meets_no_other_namespace
            Delivery queue::l8_delivery_meets_no_other_namespace
            Batch queue::l8_batch_meets_no_other_namespace
            Hold barrier::l8_hold_meets_no_other_namespace
            Participant barrier::l8_participant_meets_no_other_namespace
        } {
        }
    }};
}

/// As [`for_each_case`](crate::for_each_case), of the cases that fill the squares of the table.
#[doc(hidden)]
#[macro_export]
macro_rules! for_each_square {
    ($callback:tt $args:tt) => {
        $crate::for_each_rule! { [$crate::__squares] {$callback $args} }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __squares {
    ({[$($callback:tt)*] $args:tt} $(
        $attack:ident { $rule:literal, $title:literal, $line:expr, $needs:tt, $promise:ident }
        { $($role:ident $module:ident::$id:ident)* }
        { $($none:ident $reason:literal)* }
    )*) => {
        $($callback)* ! { $args
            $($($module::$id { $attack $role $rule $title ($line) $needs $promise })*)*
        }
    };
}

macro_rules! noun {
    (Lock) => {
        "a lock"
    };
    (Reader) => {
        "a reader's side of a read-write lock"
    };
    (Writer) => {
        "a writer's side of a read-write lock"
    };
    (Leadership) => {
        "a leadership"
    };
    (Delivery) => {
        "a delivery"
    };
    (Batch) => {
        "a batch of deliveries"
    };
    (Hold) => {
        "a held barrier"
    };
    (Participant) => {
        "a place inside a double barrier"
    };
}

macro_rules! cases {
    ({} $($module:ident::$id:ident {
        $attack:ident $role:ident $rule:literal $title:literal ($line:expr) [$($need:ident),*] $promise:ident
    })*) => {
        /// The cases that fill the squares, rule by rule.
        pub(crate) const SQUARES: &[Case] = &[$(Case {
            id: stringify!($id),
            rule: $rule,
            title: concat!(noun!($role), " ", $title),
            line: Role::$role.line($line),
            needs: &[$(Need::$need),*],
            promise: |guarantees| Role::$role.promise($line, promise::$promise, guarantees),
            attack: |harness| Box::pin(roles::$attack(harness, Role::$role)),
        },)*];
    };
}

for_each_square! { [cases] {} }

/// One square of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Square {
    /// The case that attacks the rule in the role.
    Case(&'static str),
    /// Why there is no such case.
    Reason(&'static str),
}

/// One rule of the table, with a square for each role.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The rule of the contract: `S1`.
    pub rule: &'static str,
    /// What must hold, with the role as the subject.
    pub title: &'static str,
    /// The squares, in the order of [`Role::ALL`].
    pub squares: [Square; Role::ALL.len()],
}

macro_rules! rows {
    ({} $(
        $attack:ident { $rule:literal, $title:literal, $line:expr, $needs:tt, $promise:ident }
        { $($role:ident $module:ident::$id:ident)* }
        { $($none:ident $reason:literal)* }
    )*) => {
        /// The table. An empty square, or one that is filled twice, does not compile.
        pub const TABLE: &[Row] = &[$(Row {
            rule: $rule,
            title: $title,
            squares: row(&[
                $((Role::$role, Square::Case(stringify!($id))),)*
                $((Role::$none, Square::Reason($reason)),)*
            ]),
        },)*];
    };
}

for_each_rule! { [rows] {} }

/// The squares of one row in the order of the roles.
const fn row(filled: &[(Role, Square)]) -> [Square; Role::ALL.len()] {
    let mut squares = [Square::Reason(""); Role::ALL.len()];
    assert!(
        filled.len() == squares.len(),
        "a row needs a square for each role"
    );
    let mut next = 0;
    while next < filled.len() {
        let (role, square) = filled[next];
        let place = role as usize;
        assert!(
            matches!(squares[place], Square::Reason(reason) if reason.is_empty()),
            "a square is filled twice"
        );
        squares[place] = square;
        next += 1;
    }
    squares
}

/// The role in whose column the case stands.
pub(crate) fn role(id: &str) -> Option<Role> {
    let stands = |square: &Square| matches!(square, Square::Case(it) if *it == id);
    let place = TABLE
        .iter()
        .find_map(|row| row.squares.iter().position(stands))?;
    Role::ALL.get(place).copied()
}

/// The table and all cases as a page of the docs.
pub fn catalogue() -> String {
    let mut page = String::from(CATALOGUE);
    page.push_str("| | holds |");
    for role in Role::ALL {
        page.push_str(&format!(" {} |", role.word()));
    }
    page.push_str("\n|---|---|");
    page.push_str(&"---|".repeat(Role::ALL.len()));
    let mut reasons: Vec<&str> = Vec::new();
    for row in TABLE {
        page.push_str(&format!("\n| {} | {} |", row.rule, row.title));
        for square in row.squares {
            let square = match square {
                Square::Case(_) => "case".to_owned(),
                Square::Reason(reason) => {
                    let known = reasons.iter().position(|known| *known == reason);
                    let number = known.unwrap_or_else(|| {
                        reasons.push(reason);
                        reasons.len() - 1
                    });
                    format!("({})", number + 1)
                }
            };
            page.push_str(&format!(" {square} |"));
        }
    }
    page.push_str("\n\nWhere there is no case:\n");
    for (number, reason) in (1..).zip(reasons) {
        page.push_str(&format!("\n{number}. {reason}"));
    }
    page.push_str(
        "\n\n## All cases\n\n| case | rule | what must hold | needs |\n|---|---|---|---|",
    );
    for case in crate::cases::CASES {
        let needs: Vec<&str> = case.needs.iter().map(|need| need.word()).collect();
        let (id, rule, title) = (case.id, case.rule, case.title);
        page.push_str(&format!(
            "\n| `{id}` | {rule} | {title} | {} |",
            needs.join(", ")
        ));
    }
    page.push('\n');
    page
}

const CATALOGUE: &str = "\
# The catalogue of cases

Written from the table in `conformance/src/table.rs` by a test, which fails when this page is stale:
`TENURE_WRITE_DOCS=1 cargo test -p tenure-conformance --test squares catalogue` rewrites it.

## Rules and roles

Each rule that holds for everything that can be held is written once. In each square stands `case`
(`<rule>_<role>_...` in the list below), or the number of the reason why there is none. An empty
square does not compile. Each case is proved by mutants that it catches (`conformance/tests/squares.rs`).

";
