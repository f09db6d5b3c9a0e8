//! Reports made by hand, for the tests of all forms.

#![allow(clippy::unwrap_used)] // A test that cannot be set up has to fail.

use std::time::{Duration, UNIX_EPOCH};

use tenure_core::{Guarantees, Line};
use tenure_memory::MemoryConfig;

use super::About;
use crate::case::{Outcome, Seen};
use crate::checkers::queue::{self, QueueCall};
use crate::checkers::{Fate, Operation};
use crate::report::{Column, Entry, Report};

/// Whatever may stand in a name, a reason or an error.
pub(super) const HOSTILE: &str = "<script>alert(1)</script> \"q' onload='x' &amp; | ]]> --> `x` ```\n```\n\0\u{1b}[31m\u{202e}\u{ffff} </style> $& @x";

/// A line of it that would end a block of code.
pub(super) const FENCE: &str = "```";

pub(super) fn about() -> About {
    About::new(UNIX_EPOCH + Duration::from_secs(1_700_000_000))
        .command("tenure conform --only 'l?_*'")
}

fn guarantees(deployment: &str) -> Guarantees {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let mut guarantees = runtime
        .block_on(async {
            tenure_memory::connect(MemoryConfig::new())?
                .guarantees()
                .await
        })
        .unwrap();
    guarantees.deployment = deployment.to_owned();
    guarantees
}

fn entry(id: &str, outcome: Outcome) -> Entry {
    Entry {
        case: crate::find(id).unwrap(),
        outcome,
        flaky: None,
        took: Duration::from_millis(1_500),
    }
}

fn denied(reason: &str, seen: Seen) -> Outcome {
    Outcome::NotPromised {
        line: Line::TokenOrder,
        reason: reason.to_owned(),
        seen,
        history: None,
    }
}

/// An enqueue, and a dequeue whose answer was lost and that went wrong.
fn broken(what: &str) -> Outcome {
    let operation = |client, input, fate, ended| Operation {
        client,
        called: Duration::from_millis(u64::try_from(client).unwrap()),
        ended,
        input,
        fate,
    };
    let put = QueueCall::Enqueue {
        item: 7,
        priority: 0,
    };
    let history = [
        operation(
            0,
            put,
            Fate::Done(queue::QueueAnswer::Done),
            Some(Duration::from_millis(5)),
        ),
        operation(1, QueueCall::Dequeue { by: 3 }, Fate::Unknown, None),
    ];
    Outcome::violated(what).with_history(queue::timeline(&history, &[1]))
}

/// Two stores: one that broke a promise, one of which nothing was proved.
pub(crate) fn report() -> Report {
    let nothing = "there is no way to restart the store";
    Report {
        columns: vec![
            Column {
                store: "memory".to_owned(),
                guarantees: Ok(guarantees("embedded 1.0")),
                entries: vec![
                    entry(
                        "l1_lock_excludes_others",
                        broken("two at once:\n    client 0"),
                    ),
                    entry(
                        "l2_tokens_survive_a_restart",
                        denied(
                            "nothing is kept",
                            Seen::Counterexample("token 1 came again".to_owned()),
                        ),
                    ),
                    entry(
                        "s1_lock_ends_with_its_session",
                        Outcome::held("12 locks, freed in 3 ms"),
                    ),
                ],
            },
            Column {
                store: "plain | redis".to_owned(),
                guarantees: Ok(guarantees("Redis 7.0")),
                entries: vec![
                    entry(
                        "l2_tokens_survive_a_restart",
                        denied("no fsync", Seen::NoControl(nothing.to_owned())),
                    ),
                    entry(
                        "l3_lock_wakes_after_a_cut",
                        Outcome::excused("there is no way to cut a connection"),
                    ),
                ],
            },
        ],
        took: Duration::from_millis(61_200),
    }
}

/// Without a store.
pub(super) fn empty() -> Report {
    Report {
        columns: Vec::new(),
        took: Duration::ZERO,
    }
}

/// The worst of texts, wherever a text may come from outside.
pub(super) fn hostile() -> Report {
    let ends = [
        ("l1_lock_excludes_others", broken(HOSTILE)),
        (
            "l2_tokens_survive_a_restart",
            denied(HOSTILE, Seen::Counterexample(HOSTILE.to_owned())),
        ),
        (
            "l2_lock_tokens_rise",
            denied(HOSTILE, Seen::Survived(HOSTILE.to_owned())),
        ),
        (
            "l2_tokens_survive_clock_jumps",
            denied(HOSTILE, Seen::NotBroughtAbout(HOSTILE.to_owned())),
        ),
        ("s1_lock_ends_with_its_session", Outcome::held(HOSTILE)),
        (
            "s1_lock_ends_with_a_dropped_session",
            Outcome::not_run(HOSTILE),
        ),
    ];
    let mut guarantees = guarantees(HOSTILE);
    guarantees.hand_off.reason = HOSTILE.into();
    let entries = ends
        .into_iter()
        .map(|(id, outcome)| entry(id, outcome))
        .collect();
    let silent = Column {
        store: HOSTILE.to_owned(),
        guarantees: Err(HOSTILE.to_owned()),
        entries: Vec::new(),
    };
    Report {
        columns: vec![
            Column {
                store: HOSTILE.to_owned(),
                guarantees: Ok(guarantees),
                entries,
            },
            silent,
        ],
        took: Duration::ZERO,
    }
}
