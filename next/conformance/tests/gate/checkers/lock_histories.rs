//! Locks, read-write locks and elections.

use proptest::prelude::*;
use tenure_conformance::checkers::lock::{LockAnswer, LockCall, LockOperation, Shown, check, check_arrival};
use tenure_conformance::checkers::{Mode, Outcome, Proof};

use super::simulate::{self, Choices, Fate, World};
use super::{assert_found, assert_round_trip, failed, ok, unknown};
use LockAnswer::{Done, Granted, Refused, Shows};
use LockCall::{Access, Acquire, Check, Confirm, Downgrade, Observe, Proclaim, Release, Waits};
use Mode::{Exclusive, Shared};

#[derive(Clone, Copy, PartialEq)]
struct Guard {
    token: u64,
    mode: Mode,
    number: u64,
}

/// A read-write lock that is an election, too, with a gate.
#[derive(Default)]
struct Object {
    holders: Vec<Guard>,
    newest: u64,
    gate: u64,
    /// Each state that the election showed, with its instant.
    states: Vec<Option<Shown>>,
}

impl Object {
    fn is_free(&self, mode: Mode) -> bool {
        self.holders
            .iter()
            .all(|holder| holder.mode == Shared && mode == Shared)
    }

    fn state(&self) -> Option<Shown> {
        let leader = self.holders.iter().find(|holder| holder.mode == Exclusive)?;
        Some(Shown {
            token: leader.token,
            number: leader.number,
        })
    }

    fn holder(&mut self, token: u64) -> Option<&mut Guard> {
        self.holders.iter_mut().find(|holder| holder.token == token)
    }

    fn changed(&mut self) {
        let state = self.state();
        if self.states.last() != Some(&state) {
            self.states.push(state);
        }
    }
}

const CLIENTS: usize = 7;

/// Returns the history of a correct object with five clients and two observers.
fn history(choices: Choices) -> Vec<LockOperation> {
    let mut world = World::new(CLIENTS, choices);
    let (mut object, mut guards, mut seen) = (Object::default(), [None; CLIENTS], [0; CLIENTS]);
    object.states.push(None);
    while turn(&mut world, &mut object, &mut guards, &mut seen).is_some() {}
    world.finish()
}

fn turn(
    world: &mut World<LockCall, LockAnswer>,
    object: &mut Object,
    guards: &mut [Option<Guard>; CLIENTS],
    seen: &mut [usize; CLIENTS],
) -> Option<()> {
    let client = world.turn()?;
    object.changed();
    if client >= 5 {
        // An observer skips states, and lags behind unless it reads the current one.
        let current = world.choices.below(2)? == 0;
        let newest = object.states.len() - 1;
        let lag = if current {
            0
        } else {
            world.choices.below((newest - seen[client] + 1) as u64)?
        };
        seen[client] = newest - lag as usize;
        let state = object.states[seen[client]];
        let input = Observe {
            observer: client as u64,
            current,
        };
        return world.record(client, input, Outcome::Ok(Shows(state))).map(|_| ());
    }
    // A session expires, known to its client or not.
    if world.choices.below(12)? == 0 && !object.holders.is_empty() {
        let victim = world.choices.below(object.holders.len() as u64)? as usize;
        object.holders.remove(victim);
        return Some(());
    }
    let Some(guard) = guards[client] else {
        let mode = if world.choices.below(2)? == 0 {
            Exclusive
        } else {
            Shared
        };
        let fate = world.fate()?;
        let free = object.is_free(mode);
        let token = object.newest + 1;
        let guard = Guard { token, mode, number: 0 };
        if free && matches!(fate, Fate::Answered | Fate::Lost) {
            object.newest = token;
            object.holders.push(guard);
        }
        let outcome = match fate {
            Fate::Answered if free => Outcome::Ok(Granted(token)),
            Fate::Answered => Outcome::Ok(Refused),
            Fate::Failed => Outcome::Failed,
            Fate::Lost | Fate::Dropped => Outcome::Unknown,
        };
        guards[client] = (outcome == Outcome::Ok(Granted(token))).then_some(guard);
        return world.record(client, Acquire { mode }, outcome).map(|_| ());
    };
    let Guard { token, mode, number } = guard;
    let held = object.holder(token).is_some();
    let fate = world.fate()?;
    let arrives = matches!(fate, Fate::Answered | Fate::Lost);
    let mut answer = if held { Done } else { Refused };
    let input = match world.choices.below(7)? {
        0 => Check { token },
        1 => Confirm { token },
        2 | 3 => {
            answer = if token >= object.gate { Done } else { Refused };
            if arrives {
                object.gate = object.gate.max(token);
            }
            Access { token, mode }
        }
        4 if mode == Exclusive => {
            let after = Guard { mode: Shared, ..guard };
            if let Some(holder) = object.holder(token).filter(|_| arrives) {
                *holder = after;
            }
            guards[client] = (fate == Fate::Answered && held).then_some(after);
            Downgrade { token }
        }
        5 if mode == Exclusive => {
            let number = number + 1;
            if let Some(holder) = object.holder(token).filter(|_| arrives) {
                holder.number = number;
            }
            guards[client] = Some(Guard { number, ..guard });
            Proclaim { token, number }
        }
        _ => {
            if arrives {
                object.holders.retain(|holder| holder.token != token);
            }
            guards[client] = None;
            Release { token }
        }
    };
    let outcome = match fate {
        Fate::Answered => Outcome::Ok(answer),
        Fate::Failed => Outcome::Failed,
        Fate::Lost | Fate::Dropped => Outcome::Unknown,
    };
    world.record(client, input, outcome).map(|_| ())
}

proptest! {
    #![proptest_config(simulate::config())]
    #[test]
    fn lock_history_of_a_correct_object_passes(seed: u64, length in 0_usize..1500) {
        let history = history(Choices::new(seed, length));
        assert_round_trip(&history);
        prop_assert_eq!(check(&history, Proof::Store).err(), None);
        prop_assert_eq!(check(&history, Proof::Guards).err(), None);
    }
}

#[test]
fn lock_history_of_100000_operations_is_judged() {
    let history = history(Choices::new(7, 700_000));
    assert!(history.len() > 100_000, "{}", history.len());
    let summary = check(&history, Proof::Guards).unwrap();
    assert!(summary.grants > 5_000 && summary.shared > 500, "{summary:?}");
    assert!(
        summary.accepted > 5_000 && summary.refused > 100 && summary.shown > 5_000,
        "{summary:?}"
    );
}

fn acquire(span: (u64, u64), mode: Mode, token: u64) -> LockOperation {
    ok(span, Acquire { mode }, Granted(token))
}

fn state(at: u64, observer: u64, shown: Option<(u64, u64)>) -> LockOperation {
    let shown = shown.map(|(token, number)| Shown { token, number });
    ok(
        (at, at),
        Observe {
            observer,
            current: false,
        },
        Shows(shown),
    )
}

fn read(span: (u64, u64), shown: Option<(u64, u64)>) -> LockOperation {
    let shown = shown.map(|(token, number)| Shown { token, number });
    ok(
        span,
        Observe {
            observer: 9,
            current: true,
        },
        Shows(shown),
    )
}

#[test]
fn lock_second_holder_is_found() {
    let late = |first, second, step: LockOperation| {
        check(
            &[acquire((0, 1), first, 1), acquire((2, 3), second, 2), step],
            Proof::Guards,
        )
    };
    for (first, second) in [(Exclusive, Exclusive), (Shared, Exclusive), (Exclusive, Shared)] {
        assert_found(late(first, second, ok((8, 9), Check { token: 1 }, Done)), "two holders");
        assert_found(
            late(first, second, ok((8, 9), Confirm { token: 1 }, Done)),
            "two holders",
        );
        assert_found(
            late(first, second, ok((8, 9), Release { token: 1 }, Done)),
            "two holders",
        );
        assert!(
            late(first, second, ok((2, 9), Release { token: 1 }, Done)).is_ok(),
            "while the other waited"
        );
        assert!(late(first, second, unknown(8, Release { token: 1 })).is_ok());
        assert!(late(first, second, ok((8, 9), Check { token: 1 }, Refused)).is_ok());
    }
    assert!(late(Shared, Shared, ok((8, 9), Check { token: 1 }, Done)).is_ok());
    let after = [
        acquire((0, 1), Shared, 1),
        ok((2, 3), Release { token: 1 }, Done),
        ok((5, 6), Check { token: 1 }, Done),
    ];
    assert_found(check(&after, Proof::Guards), "after that holding had ended");
}

#[test]
fn lock_guard_that_outlives_its_holding_is_found_unless_the_store_frees_early() {
    let believes = [
        acquire((0, 1), Exclusive, 1),
        acquire((2, 3), Exclusive, 2),
        ok((8, 9), Check { token: 1 }, Done),
    ];
    assert_eq!(check(&believes, Proof::Store).unwrap().overlaps, 1);
    assert_found(check(&believes, Proof::Guards), "two holders");
}

#[test]
fn lock_token_that_falls_or_repeats_is_found() {
    let second = |token, invoked| {
        check(
            &[acquire((0, 2), Exclusive, 5), acquire((invoked, 9), Exclusive, token)],
            Proof::Store,
        )
    };
    assert_found(second(4, 3), "tokens fell");
    assert_found(second(5, 3), "granted twice");
    assert!(second(4, 2).is_ok() && second(6, 3).is_ok());
    // A token is known from its use, too, although the answer of its request was lost.
    let used = [
        ok(
            (1, 2),
            Access {
                token: 5,
                mode: Exclusive,
            },
            Done,
        ),
        acquire((3, 4), Exclusive, 5),
    ];
    assert_found(check(&used, Proof::Store), "tokens fell");
}

#[test]
fn gate_that_accepts_an_older_token_is_found() {
    let accesses = |first: (u64, Mode), second: (u64, Mode)| {
        let access = |at, (token, mode)| ok((at, at), Access { token, mode }, Done);
        check(&[access(1, first), access(2, second)], Proof::Store)
    };
    for (first, second) in [(Exclusive, Exclusive), (Shared, Exclusive), (Exclusive, Shared)] {
        assert_found(accesses((5, first), (4, second)), "the gate accepted token 4");
        assert!(accesses((5, first), (6, second)).is_ok());
    }
    assert!(accesses((5, Shared), (4, Shared)).is_ok());
    assert!(accesses((5, Exclusive), (5, Exclusive)).is_ok());
}

#[test]
fn downgrade_lets_readers_in_and_no_writer() {
    let with = |other: LockOperation, step: LockOperation| {
        let down = ok((4, 5), Downgrade { token: 1 }, Done);
        check(&[acquire((0, 1), Exclusive, 1), other, down, step], Proof::Guards)
    };
    let valid = || ok((8, 9), Check { token: 1 }, Done);
    assert!(with(acquire((2, 5), Shared, 2), valid()).is_ok());
    assert_found(with(acquire((2, 3), Shared, 2), valid()), "two holders");
    assert_found(with(acquire((2, 7), Exclusive, 2), valid()), "two holders");
    assert!(with(acquire((2, 9), Exclusive, 2), valid()).is_ok());
}

#[test]
fn observer_that_goes_back_is_found() {
    let sees = |states: &[Option<(u64, u64)>]| {
        let proclaims = ok((1, 2), Proclaim { token: 5, number: 1 }, Done);
        let mut history = vec![acquire((0, 1), Exclusive, 5), proclaims, acquire((1, 9), Exclusive, 7)];
        history.extend(states.iter().map(|shown| state(20, 1, *shown)));
        check(&history, Proof::Store)
    };
    assert!(sees(&[None, Some((5, 0)), Some((5, 1)), None, Some((7, 0)), None]).is_ok());
    assert_found(sees(&[Some((7, 0)), None, Some((5, 1))]), "went back");
    assert_found(sees(&[Some((5, 1)), Some((5, 0))]), "went back");
    assert_found(sees(&[Some((5, 0)), None, Some((5, 0))]), "and then a vacancy");
}

#[test]
fn observer_that_sees_what_was_not_proclaimed_is_found() {
    let sees = |shown, more: Option<LockOperation>| {
        let history = [acquire((2, 3), Exclusive, 5), state(8, 1, Some(shown))];
        check(&more.into_iter().chain(history).collect::<Vec<_>>(), Proof::Store)
    };
    let proclaim = Proclaim { token: 5, number: 1 };
    assert_found(sees((5, 1), None), "never proclaimed");
    assert_found(
        sees((5, 1), Some(ok((9, 10), proclaim, Done))),
        "before it was proclaimed",
    );
    assert_found(sees((5, 1), Some(ok((4, 5), proclaim, Refused))), "refused");
    assert_found(sees((5, 1), Some(failed((4, 5), proclaim))), "failed");
    assert!(sees((5, 1), Some(unknown(4, proclaim))).is_ok());
    assert!(sees((3, 0), None).is_ok(), "the answer to its campaign was lost");
}

#[test]
fn read_that_is_not_current_is_found() {
    let reads = |span, shown| {
        let history = [
            acquire((0, 1), Exclusive, 5),
            ok((2, 3), Proclaim { token: 5, number: 1 }, Done),
            ok((10, 11), Release { token: 5 }, Done),
            acquire((20, 21), Exclusive, 7),
            ok((30, 31), Confirm { token: 7 }, Done),
            read(span, shown),
        ];
        check(&history, Proof::Store)
    };
    assert_found(reads((4, 5), None), "vacancy");
    assert_found(reads((4, 5), Some((5, 0))), "after value 1 had been proclaimed");
    assert_found(reads((12, 13), Some((5, 1))), "after it had resigned");
    assert_found(reads((22, 23), Some((5, 1))), "after token 7 had been granted");
    assert_found(reads((22, 23), None), "vacancy");
    assert!(reads((4, 12), None).is_ok() && reads((9, 12), Some((5, 1))).is_ok());
    assert!(reads((12, 13), None).is_ok() && reads((22, 40), None).is_ok());
    // A second leader beside the first one.
    assert_found(reads((22, 23), Some((9, 0))), "two holders");
}

#[test]
fn lock_request_that_overtakes_a_waiting_one_is_found() {
    let judge = |seen: u64, waits: Mode, later: Mode| {
        let by = |client, op: LockOperation| LockOperation { client, ..op };
        check_arrival(&[
            by(1, acquire((0, 9), waits, 2)),
            by(9, ok((seen, seen), Waits { client: 1 }, Done)),
            by(2, acquire((5, 8), later, 1)),
        ])
    };
    for (waits, later) in [(Exclusive, Exclusive), (Shared, Exclusive), (Exclusive, Shared)] {
        assert_found(judge(4, waits, later), "while that of token 2 waited");
        assert_eq!(judge(5, waits, later), Ok(1), "it may have joined after the other");
    }
    assert_eq!(judge(4, Shared, Shared), Ok(1), "readers that are granted together");
}
