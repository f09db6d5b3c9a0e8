//! Barriers: one that is held and waited for, and one that is entered and left.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tenure_core::{DoubleBarrierHandle, Effect, ErrorKind, HoldFor, Result};
use tokio::time::Instant;

use super::client::{Client, Shared, Trouble, clients};
use super::prompt::{self, Step};
use crate::case::Outcome;
use crate::cases::open_on;
use crate::checkers::jsonl::Line;
use crate::checkers::operation::Operation;
use crate::checkers::{Fate, What};
use crate::harness::Harness;
use tenure_core::FencingToken;

const GATE: &str = "gate";
const ROOM: &str = "room";

/// How many participants the double barrier waits for: fewer than there are.
const COUNT: u32 = 3;

/// What a run asks of barriers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum GateCall {
    /// To hold the barrier for a session.
    Hold,
    /// To release it.
    Lift,
    /// To wait for its release.
    Wait,
    /// To enter the double barrier with so many.
    Enter {
        /// How many.
        count: u32,
    },
    /// To leave it.
    Leave {
        /// The participant's token.
        token: u64,
    },
}

/// What barriers answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum GateAnswer {
    /// It was done.
    Done,
    /// Another holds it, or the double barrier is full or has another count.
    Refused,
    /// The participant is inside.
    Entered {
        /// Its token.
        token: u64,
    },
}

/// The history of both barriers.
pub type GateOperation = Operation<GateCall, GateAnswer>;

impl Line for GateOperation {
    const KIND: &'static str = "barrier";
}

fn fate<T>(answer: Option<&Result<T>>) -> Fate<GateAnswer> {
    match answer {
        Some(Ok(_)) => Fate::Done(GateAnswer::Done),
        Some(Err(error)) if error.kind() == ErrorKind::Conflict => Fate::Done(GateAnswer::Refused),
        Some(Err(error))
            if error.effect() == Effect::None && error.kind() == ErrorKind::WouldBlock =>
        {
            Fate::Failed
        }
        _ => Fate::Unknown,
    }
}

impl Client {
    fn count_gate(&self) {
        let counter = &self.shared.gate_operations;
        counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }

    /// A handle, unless the store has no barriers.
    fn offered<T>(&self, handle: Result<T>) -> Option<T> {
        if let Err(error) = &handle
            && error.kind() == ErrorKind::Unsupported
        {
            let lacking = &self.shared.no_gates;
            lacking.store(true, std::sync::atomic::Ordering::Relaxed);
        }
        handle.ok()
    }

    /// Holds the barrier now and then, and releases it.
    pub(super) async fn keep_gate(&mut self) {
        while self.goes_on() {
            if let Some(session) = self.session().await
                && let Some(gate) = self.offered(session.barrier(GATE))
            {
                let shared = std::sync::Arc::clone(&self.shared);
                let ticket = shared.gates.call(self.number, GateCall::Hold);
                let held = self.attempt(gate.hold(HoldFor::Session)).await;
                shared.gates.end(ticket, fate(held.as_ref()));
                self.count_gate();
                if let Some(Ok(())) = held {
                    self.achieved();
                    self.work(4).await;
                    let ticket = shared.gates.call(self.number, GateCall::Lift);
                    let lifted = self.attempt(gate.release()).await;
                    shared.gates.end(ticket, fate(lifted.as_ref()));
                    self.count_gate();
                }
            }
            self.think().await;
        }
    }

    /// Waits for releases.
    pub(super) async fn pass_gate(&mut self) {
        while self.goes_on() {
            let short = self.random.up_to(Duration::from_millis(400));
            let way = self.random.below(5);
            if let Some(session) = self.session().await
                && let Some(gate) = self.offered(session.barrier(GATE))
            {
                let shared = std::sync::Arc::clone(&self.shared);
                let ticket = shared.gates.call(self.number, GateCall::Wait);
                let passed = match way {
                    0 => self.attempt(gate.wait_timeout(short)).await,
                    1 => {
                        let waiting = tokio::time::timeout(short, gate.wait());
                        self.attempt(waiting).await.and_then(|in_time| in_time.ok())
                    }
                    _ => self.attempt(gate.wait()).await,
                };
                shared.gates.end(ticket, fate(passed.as_ref()));
                self.count_gate();
                if let Some(Ok(())) = passed {
                    self.achieved();
                }
            }
            self.think().await;
        }
    }

    /// Enters the double barrier and leaves it.
    pub(super) async fn take_part(&mut self) {
        while self.goes_on() {
            // Some ask for another count: two of them may meet.
            let count = match self.random.below(16) {
                0 => COUNT - 1,
                _ => COUNT,
            };
            if let Some(session) = self.session().await
                && let Some(room) = self.offered(session.double_barrier(ROOM, count))
            {
                self.visit_room(&room, count).await;
            }
            self.think().await;
        }
    }

    async fn visit_room(&mut self, room: &DoubleBarrierHandle, count: u32) {
        let short = self.random.up_to(Duration::from_millis(400));
        let shared = std::sync::Arc::clone(&self.shared);
        let ticket = shared.gates.call(self.number, GateCall::Enter { count });
        let entered = match self.random.below(4) {
            0 => self.attempt(room.enter_timeout(short)).await,
            _ if count != COUNT => self.attempt(room.enter_timeout(short)).await,
            _ => self.attempt(room.enter()).await,
        };
        self.count_gate();
        let inside = match entered {
            Some(Ok(inside)) => inside,
            refused => return shared.gates.end(ticket, fate(refused.as_ref())),
        };
        let (token, since) = (inside.token().get(), shared.now());
        shared.gates.done(ticket, GateAnswer::Entered { token });
        self.achieved();
        self.work(4).await;
        if !inside.is_valid() {
            self.lost("its place inside a double barrier", since);
        }
        let ticket = shared.gates.call(self.number, GateCall::Leave { token });
        if self.random.below(6) == 0 {
            // It leaves in the background.
            drop(inside);
        } else {
            let left = self.attempt(inside.leave()).await;
            shared.gates.end(ticket, fate(left.as_ref()));
        }
        self.count_gate();
    }
}

/// A time in which a client certainly held the barrier, or was inside.
#[derive(Clone, Copy)]
struct Stay {
    client: usize,
    from: Duration,
    to: Duration,
}

impl Stay {
    fn meets(&self, other: &Self) -> bool {
        self.from.max(other.from) < self.to.min(other.to)
    }
}

/// What rules B1 to B3 say of a history.
pub(super) fn judge(
    history: &[GateOperation],
    troubles: &[Trouble],
    patience: Duration,
    one_thread: bool,
) -> std::result::Result<(), String> {
    let sound = |client: usize, from: Duration, to: Duration| {
        let own = |t: &&Trouble| t.client.is_none_or(|met| met == client);
        let mut own = troubles.iter().filter(own);
        !own.any(|t| t.meets(from.saturating_sub(patience), to))
    };
    held_barrier(history, &sound, patience)?;
    double_barrier(history, &sound)?;
    match one_thread {
        true => prompt::check(steps(history).iter().map(Timed::step), troubles, patience)
            .map_err(|found| format!("one who waited for its release: {found}")),
        false => Ok(()),
    }
}

fn is_done(operation: &GateOperation) -> bool {
    operation.answer() == Some(&GateAnswer::Done)
}

fn held_barrier(
    history: &[GateOperation],
    sound: &dyn Fn(usize, Duration, Duration) -> bool,
    patience: Duration,
) -> std::result::Result<(), String> {
    // A release whose answer was lost may come later.
    let lifts: Vec<(Duration, Duration)> = history
        .iter()
        .filter(|operation| operation.input == GateCall::Lift)
        .map(|lift| match (lift.answer(), lift.ended) {
            (Some(_), Some(ended)) => (lift.called, ended),
            (_, Some(ended)) => (lift.called, ended + patience),
            _ => (lift.called, lift.called + patience * 2),
        })
        .collect();
    let holds = history
        .iter()
        .filter(|operation| operation.input == GateCall::Hold && is_done(operation));
    let held = holds.filter_map(|hold| {
        let from = hold.ended?;
        let over = lifts.iter().filter(|(_, ended)| *ended >= hold.called);
        let to = over.map(|(called, _)| (*called).max(hold.called)).min()?;
        let certain = from < to && sound(hold.client, hold.called, to);
        certain.then_some(Stay {
            client: hold.client,
            from,
            to,
        })
    });
    let mut held: Vec<Stay> = held.collect();
    held.sort_by_key(|stay| stay.from);
    for pair in held.windows(2) {
        if pair[0].meets(&pair[1]) {
            return Err(format!(
                "clients {} and {} both held it at {:.3?}",
                pair[0].client, pair[1].client, pair[1].from
            ));
        }
    }
    for wait in history
        .iter()
        .filter(|operation| operation.input == GateCall::Wait && is_done(operation))
    {
        let Some(ended) = wait.ended else { continue };
        let place = held.partition_point(|stay| stay.from < wait.called);
        let stay = place.checked_sub(1).and_then(|place| held.get(place));
        if let Some(stay) = stay.filter(|stay| ended < stay.to) {
            return Err(format!(
                "client {} waited from {:.3?} and passed at {ended:.3?}, while client {} held it from {:.3?} to {:.3?}",
                wait.client, wait.called, stay.client, stay.from, stay.to
            ));
        }
    }
    Ok(())
}

fn double_barrier(
    history: &[GateOperation],
    sound: &dyn Fn(usize, Duration, Duration) -> bool,
) -> std::result::Result<(), String> {
    let leaves: std::collections::HashMap<u64, &GateOperation> = history
        .iter()
        .filter_map(|operation| match operation.input {
            GateCall::Leave { token } => Some((token, operation)),
            _ => None,
        })
        .collect();
    let mut inside: Vec<(Stay, u32, u64)> = Vec::new();
    // Of each that may have been let in: when it asked, and until when it may have been there.
    let mut possible: Vec<(u32, Duration, Duration)> = Vec::new();
    for enter in history {
        let GateCall::Enter { count } = enter.input else {
            continue;
        };
        match enter.answer() {
            Some(&GateAnswer::Entered { token }) => {
                let leave = leaves.get(&token);
                possible.push((
                    count,
                    enter.called,
                    leave.map_or(Duration::MAX, |leave| leave.called),
                ));
                if let (Some(from), Some(leave)) = (enter.ended, leave)
                    && from < leave.called
                    && sound(enter.client, enter.called, leave.called)
                {
                    let stay = Stay {
                        client: enter.client,
                        from,
                        to: leave.called,
                    };
                    inside.push((stay, count, token));
                }
            }
            Some(_) => {}
            None if enter.possible() => possible.push((count, enter.called, Duration::MAX)),
            None => {}
        }
    }
    // By the time of the request, as the history is.
    let mut at = 0;
    for enter in history {
        let (GateCall::Enter { count }, Some(GateAnswer::Entered { token }), Some(ended)) =
            (&enter.input, enter.answer(), enter.ended)
        else {
            continue;
        };
        while possible.get(at).is_some_and(|(.., to)| *to < enter.called) {
            at += 1;
        }
        let there = possible[at..].iter();
        let there = there.take_while(|(_, asked, _)| *asked <= ended);
        let there = there.filter(|(other, _, to)| other == count && *to >= enter.called);
        let there = there.count();
        if there < *count as usize {
            return Err(format!(
                "client {} was let in under token {token} at {ended:.3?}, where {there} of {count} can have entered",
                enter.client
            ));
        }
    }
    inside.sort_by_key(|(stay, ..)| stay.from);
    for (number, (stay, count, token)) in inside.iter().enumerate() {
        let beside = inside[..number].iter().rev().take(64);
        let beside = beside.filter(|(other, ..)| other.from <= stay.from && stay.from < other.to);
        let beside: Vec<_> = beside.collect();
        if beside.len() >= *count as usize || beside.iter().any(|(_, other, _)| other != count) {
            return Err(format!(
                "client {} was let in under token {token} at {:.3?} beside {} others, where {count} may be inside",
                stay.client,
                stay.from,
                beside.len()
            ));
        }
        let left = leaves.get(token).copied().filter(|leave| is_done(leave));
        let Some(ended) = left.and_then(|leave| leave.ended) else {
            continue;
        };
        let near = number.saturating_sub(64)..(number + 64).min(inside.len());
        let stays = inside[near].iter();
        let mut stays = stays.filter(|(other, ..)| other.client != stay.client);
        if let Some((other, ..)) = stays.find(|(other, ..)| other.meets(stay) && other.to > ended) {
            return Err(format!(
                "client {} had left at {ended:.3?}, though client {} was inside until {:.3?}",
                stay.client, other.client, other.to
            ));
        }
    }
    Ok(())
}

struct Timed {
    at: Duration,
    client: usize,
    what: What,
}

impl Timed {
    const fn step(&self) -> Step<'_> {
        Step {
            at: self.at,
            client: self.client,
            what: &self.what,
        }
    }
}

/// The history of the held barrier as that of a lock, which its waiters request.
fn steps(history: &[GateOperation]) -> Vec<Timed> {
    let token = FencingToken::new(1);
    let mut steps = Vec::new();
    for operation in history {
        let mut step = |at: Option<Duration>, what| {
            if let Some(at) = at {
                let client = operation.client;
                steps.push(Timed { at, client, what });
            }
        };
        match operation.input {
            GateCall::Hold if is_done(operation) => step(operation.ended, What::Granted(token)),
            GateCall::Lift => step(Some(operation.called), What::Releasing(token)),
            // One that took no time did not wait.
            GateCall::Wait if operation.ended != Some(operation.called) => {
                step(Some(operation.called), What::Asked);
                step(operation.ended, What::Unknown);
            }
            _ => {}
        }
    }
    // Of what happened at one moment, ends of waits come first: they judge what was before.
    steps.sort_by_key(|step| (step.at, !matches!(step.what, What::Unknown)));
    steps
}

/// Checks that no client that is gone holds the barrier or keeps a new participant out.
pub(super) async fn last_look(
    harness: &dyn Harness,
    shared: &Shared,
    patience: Duration,
) -> std::result::Result<(), Outcome> {
    let until = Instant::now() + patience;
    loop {
        let Err(error) = once_more(harness, shared, patience).await else {
            return Ok(());
        };
        if error.kind() == ErrorKind::Unsupported {
            return Ok(());
        }
        if Instant::now() >= until {
            return Err(Outcome::violated(format!(
                "the barriers were not free {patience:?} after everybody had left: {error}"
            )));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn once_more(harness: &dyn Harness, shared: &Shared, patience: Duration) -> Result<()> {
    let session = open_on(&harness.connect().await?, shared.ttl * 5).await?;
    let gate = session.barrier(GATE)?;
    gate.wait_timeout(patience).await?;
    let ticket = shared.gates.call(clients(), GateCall::Hold);
    let held = gate.hold(HoldFor::Session).await;
    shared.gates.end(ticket, fate(Some(&held)));
    held?;
    let ticket = shared.gates.call(clients(), GateCall::Lift);
    let lifted = gate.release().await;
    shared.gates.end(ticket, fate(Some(&lifted)));
    lifted?;
    let room = session.double_barrier(ROOM, 1)?;
    room.enter_timeout(patience).await?.leave().await?;
    session.close().await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(
        client: usize,
        called: u64,
        ended: u64,
        input: GateCall,
        answer: GateAnswer,
    ) -> GateOperation {
        GateOperation {
            client,
            called: Duration::from_secs(called),
            ended: Some(Duration::from_secs(ended)),
            input,
            fate: Fate::Done(answer),
        }
    }

    fn judged(history: &[GateOperation]) -> std::result::Result<(), String> {
        judge(history, &[], Duration::from_secs(1), false)
    }

    fn enters(client: usize, called: u64, ended: u64) -> GateOperation {
        let token = client as u64;
        line(
            client,
            called,
            ended,
            GateCall::Enter { count: 2 },
            GateAnswer::Entered { token },
        )
    }

    fn leaves(client: usize, called: u64, ended: u64) -> GateOperation {
        let token = client as u64;
        line(
            client,
            called,
            ended,
            GateCall::Leave { token },
            GateAnswer::Done,
        )
    }

    #[test]
    fn wait_that_ends_while_the_barrier_is_held_is_found() {
        let history = |waited: u64| {
            [
                line(0, 1, 2, GateCall::Hold, GateAnswer::Done),
                line(1, 3, waited, GateCall::Wait, GateAnswer::Done),
                line(0, 6, 7, GateCall::Lift, GateAnswer::Done),
            ]
        };
        assert!(judged(&history(5)).is_err());
        assert_eq!(judged(&history(6)), Ok(()));
        let trouble = Trouble {
            client: Some(0),
            from: Duration::from_secs(2),
            to: Duration::from_secs(3),
        };
        assert_eq!(
            judge(&history(5), &[trouble], Duration::from_secs(1), false),
            Ok(())
        );
    }

    #[test]
    fn two_holders_of_a_barrier_are_found() {
        let history = [
            line(0, 1, 2, GateCall::Hold, GateAnswer::Done),
            line(1, 3, 4, GateCall::Hold, GateAnswer::Done),
            line(0, 6, 7, GateCall::Lift, GateAnswer::Done),
        ];
        assert!(judged(&history).is_err());
    }

    #[test]
    fn participants_come_in_and_leave_together() {
        let good = [
            enters(1, 1, 3),
            enters(2, 2, 3),
            leaves(1, 4, 6),
            leaves(2, 5, 6),
        ];
        assert_eq!(judged(&good), Ok(()));
        let early = [
            enters(1, 1, 2),
            enters(2, 3, 3),
            leaves(1, 4, 6),
            leaves(2, 5, 6),
        ];
        assert!(judged(&early).is_err(), "let in alone");
        let left = [
            enters(1, 1, 3),
            enters(2, 2, 3),
            leaves(1, 4, 5),
            leaves(2, 6, 7),
        ];
        assert!(judged(&left).is_err(), "left alone");
        let third = [
            enters(1, 1, 3),
            enters(2, 2, 3),
            enters(3, 3, 4),
            leaves(1, 5, 6),
            leaves(2, 5, 6),
            leaves(3, 5, 6),
        ];
        assert!(judged(&third).is_err(), "one too many");
    }
}
