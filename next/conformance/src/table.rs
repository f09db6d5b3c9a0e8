//! The table of rules and roles: a cell is a case, or a written reason why there is none.
//!
//! The rules E1, E2, Q2 and Q4 are rows of L1, L2 and L7 for their roles.
//!
//! An empty cell does not compile. A rule with a wait is a scene: all roles are put to it at once, in one session.

use tenure_core::guarantees::Line;

use crate::case::{Attack, Case};
use crate::harness::Need;
use crate::promise;
use crate::roles::{self, Role};

/// One cell of the table.
#[derive(Clone, Copy, Debug)]
pub enum Cell {
    /// The case that attacks the rule in the role.
    Case(Case),
    /// The reason why there is no such case.
    Reason(&'static str),
}

/// One rule of the table, with a cell for each role.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Row {
    /// The name of the rule's function: `closing_frees`. A case is called `s1_closing_frees/lock`.
    pub id: &'static str,
    /// The rule of the contract: `S1`.
    pub rule: &'static str,
    /// The requirement, with the role as the subject.
    pub title: &'static str,
    /// Whether one wait serves all roles.
    pub is_scene: bool,
    /// The cells, in the order of [`Role::ALL`].
    pub cells: [Cell; Role::ALL.len()],
}

impl Row {
    /// Returns the cases of the row.
    pub fn cases(&self) -> impl Iterator<Item = Case> + '_ {
        self.cells.iter().filter_map(|cell| match cell {
            Cell::Case(case) => Some(*case),
            Cell::Reason(_) => None,
        })
    }
}

macro_rules! noun {
    (Lock) => {
        "lock"
    };
    (Reader) => {
        "reader"
    };
    (Writer) => {
        "writer"
    };
    (Leadership) => {
        "leadership"
    };
    (Delivery) => {
        "delivery"
    };
    (Batch) => {
        "batch"
    };
    (Hold) => {
        "hold"
    };
    (Participant) => {
        "participant"
    };
}

macro_rules! attack {
    (each $rule:ident $role:ident) => {
        Attack::Cell(|harness, role| Box::pin(roles::$rule(harness, role)), Role::$role)
    };
    (scene $rule:ident $role:ident) => {
        Attack::Scene(
            |harness, roles| Box::pin(async move { roles::of_all(roles, roles::$rule(harness, roles).await) }),
            Role::$role,
        )
    };
}

macro_rules! is_scene {
    (each) => {
        false
    };
    (scene) => {
        true
    };
}

macro_rules! table {
    ($(
        $kind:ident $rule:ident $number:literal $prefix:literal $title:literal
        ($line:expr) $needs:tt $promise:ident
        [$($role:ident)*] { $($none:ident $reason:literal)* }
    )*) => {
        /// The table. An empty cell, or one that is filled twice, does not compile.
        pub const TABLE: &[Row] = &[$(Row {
            id: concat!($prefix, "_", stringify!($rule)),
            rule: $number,
            title: $title,
            is_scene: is_scene!($kind),
            cells: row(&[
                $((Role::$role, Cell::Case(Case {
                    id: concat!($prefix, "_", stringify!($rule), "/", noun!($role)),
                    rule: $number,
                    title: concat!("a ", noun!($role), " ", $title),
                    line: Role::$role.line($line),
                    needs: &needs!($needs),
                    promise: promise::$promise,
                    attack: attack!($kind $rule $role),
                })),)*
                $((Role::$none, Cell::Reason($reason)),)*
            ]),
        },)*];
    };
}

macro_rules! needs {
    ([$($need:ident),*]) => { [$(Need::$need),*] };
}

table! {
    each closing_frees "S1" "s1" "is free at once when its session is closed"
        (None) [] always
        [Lock Reader Writer Leadership Delivery Batch Hold Participant] {}
    each dropping_frees "S1" "s1" "is free soon when its session is dropped"
        (None) [] always
        [Lock Reader Writer Leadership Delivery Batch Hold Participant] {}
    scene kept_for_ttls "S1" "s1" "is kept for more than three TTLs while another waits"
        (None) [] always
        [Lock Reader Writer Leadership Delivery Batch Hold Participant] {}
    scene loss_is_signalled "S2" "s2" "signals its loss in a silence, by the deadline and before the next grant"
        (Some(Line::LossSignal)) [Silence] loss_by_deadline
        [Lock Reader Writer Leadership Delivery Batch Participant]
        { Hold "a held barrier has no signal of its own: it is valid as long as its session" }
    scene a_long_ttl_is_kept "S3" "s3" "is kept for 9/10 of a long TTL that nothing renews"
        (Some(Line::EarlyRelease)) [Silence] never_early
        [Lock Reader Writer Leadership Delivery Batch Hold Participant] {}
    scene kept_in_a_silence "S3" "s3" "is kept in and after a silence shorter than the TTL"
        (Some(Line::EarlyRelease)) [Silence] never_early
        [Lock Reader Writer Leadership Delivery Batch Hold Participant] {}
    scene kept_in_a_cut "S3" "s3" "is kept when its connection is cut"
        (Some(Line::EarlyRelease)) [Cut] never_early
        [Lock Reader Writer Leadership Delivery Batch Hold Participant] {}
    scene kept_when_answers_are_slow "S3" "s3" "is kept while answers come late, but before the TTL is over"
        (None) [Hold] always
        [Lock Reader Writer Leadership Delivery Batch Hold Participant] {}
    scene freed_after_the_ttl "S3" "s3" "is free by its TTL and the stated bound when nothing renews it"
        (Some(Line::Expiry)) [Silence] expiry_is_bounded
        [Lock Reader Writer Leadership Delivery Batch Hold Participant] {}
    scene handed_on_after_the_ttl "S3" "s3" "goes to a waiter by its TTL and the stated bound when nothing renews it"
        (Some(Line::Expiry)) [Silence] expiry_is_bounded
        [Lock Reader Writer Leadership Delivery Batch Hold Participant] {}
    scene a_mass_death_frees "S3" "s3" "is free, and goes to the waiter behind the dead, when many sessions die at once"
        (Some(Line::Expiry)) [Silence] expiry_is_bounded
        [Lock Reader Writer Leadership Delivery Batch Hold Participant] {}
    scene a_revocation_frees "S4" "s4" "is free at once when an operator revokes its session, and its holder learns of it"
        (None) [Revoke] always
        [Lock Reader Writer Leadership Delivery Batch Hold Participant] {}
    each a_resumed_session_takes_it_up "S4" "s4" "is kept for the session that resumes its detached one, once"
        (Some(Line::Resume)) [] resumable
        [Lock Reader Writer Leadership]
        {
            Delivery "a delivery is given back when its session is detached"
            Batch "a delivery is given back when its session is detached"
            Hold "a held barrier ends when its session is detached: close it to keep it closed"
            Participant "a participant leaves when its session is detached"
        }
    each excludes_others "L1" "l1" "excludes the others, in one session and in several"
        (Some(Line::MutualExclusion)) [] always
        [Lock Reader Writer Leadership Delivery Batch]
        {
            Hold "a second hold is refused, never kept waiting: l4_a_try_leaves_nothing"
            Participant "several are inside together: the cases of B2 and B3"
        }
    scene tokens_rise "L2" "l2" "has a token above all before it, also after a drop, a close and idle time"
        (Some(Line::TokenOrder)) [] tokens_rise
        [Lock Reader Writer Leadership Delivery Batch Hold Participant] {}
    each waiters_are_granted_in_order "L3" "l3" "goes to the waiters in the order of their arrival"
        (Some(Line::HandOff)) [] fifo
        [Lock Reader Writer Leadership]
        {
            Delivery "an item goes to one of the waiting consumers, not to the first: Q5"
            Batch "an item goes to one of the waiting consumers, not to the first: Q5"
            Hold "all waiters of a barrier go on at once"
            Participant "all participants go on at once"
        }
    each cancelled_waiters_keep_the_order "L3" "l3"
        "goes on in order when the first, a middle and the last waiter give up"
        (Some(Line::HandOff)) [] fifo
        [Lock Reader Writer Leadership]
        {
            Delivery "an item goes to one of the waiting consumers, not to the first: Q5"
            Batch "an item goes to one of the waiting consumers, not to the first: Q5"
            Hold "all waiters of a barrier go on at once"
            Participant "all participants go on at once"
        }
    each handed_on_by_a_release "L3" "l3" "is handed on to its waiter by each release"
        (None) [] always
        [Lock Reader Writer Leadership Delivery Batch Hold Participant] {}
    scene waiting_sends_nothing "L3" "l3" "is waited for without requests"
        (None) [Requests] always
        [Lock Reader Writer Leadership Delivery Batch Hold Participant] {}
    scene woken_after_a_silence "L3" "l3" "wakes its waiter by a release in or after a silence of the waiter's link"
        (None) [Silence] always
        [Lock Reader Writer Leadership Delivery Batch Hold Participant] {}
    scene woken_after_a_cut "L3" "l3" "wakes its waiter by a release after the waiter's connection was cut"
        (None) [Cut] always
        [Lock Reader Writer Leadership Delivery Batch Hold Participant] {}
    scene woken_though_notifications_are_lost "L3" "l3" "wakes its waiter though answers and notifications were lost"
        (None) [Mute] always
        [Lock Reader Writer Leadership Delivery Batch Hold Participant] {}
    each a_try_leaves_nothing "L4" "l4" "answers a try at once, which leaves nothing"
        (None) [] always
        [Lock Reader Writer Leadership Delivery Hold Participant]
        { Batch "dequeue_many has no form that does not wait" }
    each a_limit_bounds_the_wait "L4" "l4" "is waited for no longer than asked, and the wait leaves nothing"
        (None) [] always
        [Lock Reader Writer Leadership Delivery Hold Participant]
        { Batch "dequeue_many has no form with a limit" }
    each a_cancelled_acquire_leaves_nothing "L5" "l5"
        "leaves nothing when its acquire is dropped at any await point, free or held"
        (Some(Line::Cancellation)) [] prompt_cancellation
        [Lock Reader Writer Leadership Delivery Batch Hold Participant] {}
    each a_late_request_leaves_nothing "L5" "l5" "is not granted to a request that arrives after its caller gave up"
        (Some(Line::Cancellation)) [DelayRequest] prompt_cancellation
        [Lock Reader Writer Leadership Delivery Batch Hold Participant] {}
    each a_repeated_request_counts_once "L5" "l5"
        "is granted, released and handed on once by requests that arrive twice"
        (None) [Repeat] always
        [Lock Reader Writer Leadership Delivery Batch Hold Participant] {}
    each a_waiter_ends_with_its_session "L6" "l6" "gives its waiter an error when the waiter's session is closed"
        (None) [] always
        [Lock Reader Writer Leadership Delivery Batch Hold Participant] {}
    scene a_lost_waiter_is_told "L6" "l6" "gives its waiter an error when the waiter's session runs out"
        (None) [Silence] always
        [Lock Reader Writer Leadership Delivery Batch Hold Participant] {}
    scene a_revoked_waiter_is_told "L6" "l6" "gives its waiter an error when an operator revokes the waiter's session"
        (None) [Revoke] always
        [Lock Reader Writer Leadership Delivery Batch Hold Participant] {}
    each a_drop_releases "L7" "l7" "is given back when its guard is dropped"
        (None) [] always
        [Lock Reader Writer Leadership Delivery Batch Hold Participant] {}
    each a_cancelled_end_still_ends "L7" "l7"
        "ends although its release, or the close of its session, is dropped at an await point"
        (None) [] always
        [Lock Reader Writer Leadership Delivery Batch Hold Participant] {}
    scene a_late_release_is_lost "L7" "l7" "fails with Lost when it is released too late, and spares the next holder"
        (Some(Line::FencedRelease)) [Silence] fenced_release
        [Lock Reader Writer Leadership Delivery Batch Hold Participant] {}
    scene a_deleted_holding_is_lost "L7" "l7" "signals its loss when an operator deletes it, while its session lives"
        (None) [RevokeRequest] always
        [Lock Reader Writer Leadership Delivery Batch Participant]
        { Hold "any client may open a barrier: its holder learns of it by the release" }
    scene a_release_after_a_deletion_is_lost "L7" "l7"
        "fails with Lost when it is released after its deletion, and spares the next holder"
        (Some(Line::FencedRelease)) [Silence, RevokeRequest] fenced_release
        [Lock Reader Writer Leadership Delivery Batch Participant]
        { Hold "any client may open a barrier: its holder learns of it by the release" }
    each names_are_apart "L8" "l8" "meets no other name, and no other kind of the same name"
        (Some(Line::NameIsolation)) [] isolated_names
        [Lock Reader Writer Leadership Delivery Batch Hold Participant] {}
    each namespaces_are_apart "L8" "l8" "meets nothing of another namespace"
        (Some(Line::NameIsolation)) [Elsewhere] isolated_names
        [Lock Reader Writer Leadership Delivery Batch Hold Participant] {}
}

/// Returns the cells of one row in the order of the roles.
const fn row(filled: &[(Role, Cell)]) -> [Cell; Role::ALL.len()] {
    let mut cells = [Cell::Reason(""); Role::ALL.len()];
    assert!(filled.len() == cells.len(), "a row needs a cell for each role");
    let mut next = 0;
    while next < filled.len() {
        let (role, cell) = filled[next];
        let place = role as usize;
        assert!(
            matches!(cells[place], Cell::Reason(reason) if reason.is_empty()),
            "a cell is filled twice"
        );
        cells[place] = cell;
        next += 1;
    }
    cells
}

/// Returns every case: the cells of the table, row by row, and the cases of one primitive each.
pub fn cases() -> Vec<Case> {
    let cells = TABLE.iter().flat_map(Row::cases);
    cells.chain(singles()).collect()
}

fn singles() -> impl Iterator<Item = Case> {
    crate::cases::LISTS.iter().flat_map(|module| module.iter().copied())
}

/// The unit that runs on one harness: a case, or the cases of a scene.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Trial {
    /// The name: that of the case, or that of the scene's row.
    pub id: &'static str,
    /// The cases; those of a scene have the same needs.
    pub cases: Vec<Case>,
}

impl From<Case> for Trial {
    fn from(case: Case) -> Self {
        Self {
            id: case.id,
            cases: vec![case],
        }
    }
}

/// Returns everything that can run, in the order of the table.
pub fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for row in TABLE {
        match row.is_scene {
            true => trials.push(Trial {
                id: row.id,
                cases: row.cases().collect(),
            }),
            false => trials.extend(row.cases().map(Trial::from)),
        }
    }
    trials.extend(singles().map(Trial::from));
    trials
}
