//! A history as a picture: who did what, from when to when.

use std::fmt;
use std::time::Duration;

use crate::checkers::{Event, Fate, Operation, What};

/// More than this is no picture any more.
const MOST: usize = 160;

/// What clients did, a lane for each of them.
///
/// The checkers' own histories turn into one by [`of_operations`](Self::of_operations) and
/// [`of_a_lock`](Self::of_a_lock).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Timeline {
    /// The names of the lanes, in the order in which they are drawn.
    pub lanes: Vec<String>,
    /// What happened, in the order in which it began.
    pub bars: Vec<Bar>,
    /// How much more the history has, further away from what went wrong.
    pub left_out: usize,
}

/// One thing that took some time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bar {
    /// The place of its lane in [`Timeline::lanes`].
    pub lane: usize,
    /// From when, since the history began.
    pub from: Duration,
    /// Until when; `None` if it never ended, or may have had its effect at any time later.
    pub to: Option<Duration>,
    /// What it was, in a word or two.
    pub label: String,
    /// All that there is to say about it.
    pub text: String,
    /// What kind of thing it was.
    pub kind: Kind,
    /// Whether the counterexample is about this.
    pub offends: bool,
}

/// What a bar stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// A call that was answered.
    Done,
    /// A call that certainly had no effect.
    Failed,
    /// A call whose answer nobody saw.
    Unknown,
    /// A time in which a client believed that it held something.
    Held,
    /// A fault that the case provoked.
    Fault,
}

impl Kind {
    /// In a word: `done`, `failed`, `unknown`, `held`, `fault`.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
            Self::Held => "held",
            Self::Fault => "fault",
        }
    }
}

impl Timeline {
    /// The picture of `history`, in which the operations at `places` went wrong. `label` says in a
    /// word or two what an operation was, and what came of it.
    pub fn of_operations<I: fmt::Debug, O: fmt::Debug>(
        history: &[Operation<I, O>],
        places: &[usize],
        label: impl Fn(&I, Option<&O>) -> String,
    ) -> Self {
        let mut timeline = Self::default();
        for (place, operation) in history.iter().enumerate() {
            let (kind, to) = match operation.fate {
                Fate::Done(_) => (Kind::Done, operation.ended),
                Fate::Failed => (Kind::Failed, operation.ended),
                Fate::Unknown => (Kind::Unknown, None),
            };
            timeline.bars.push(Bar {
                lane: operation.client,
                from: operation.called,
                to,
                label: label(&operation.input, operation.answer()),
                text: operation.to_string(),
                kind,
                offends: places.contains(&place),
            });
        }
        timeline.finished()
    }

    /// The picture of a lock's history, in which the lines at `places` went wrong: asks, holdings,
    /// releases, and what the register said.
    pub fn of_a_lock(events: &[Event], places: &[usize]) -> Self {
        let mut scribe = Scribe::default();
        for (place, event) in events.iter().enumerate() {
            scribe.read(event, places.contains(&place));
        }
        Self {
            bars: scribe.bars,
            ..Self::default()
        }
        .finished()
    }

    /// Sorted, as short as a picture must be, and with lanes for those who are still in it.
    fn finished(mut self) -> Self {
        if self.bars.len() > MOST {
            self.left_out = self.bars.len() - MOST;
            let wrong: Vec<Duration> = self
                .bars
                .iter()
                .filter(|bar| bar.offends)
                .map(|bar| bar.from)
                .collect();
            let distance = |bar: &Bar| {
                let near = wrong.iter().map(|wrong| wrong.abs_diff(bar.from)).min();
                // Where nothing stands out, the beginning is as good as any part.
                (!bar.offends, near.unwrap_or(bar.from))
            };
            self.bars.sort_by_key(distance);
            self.bars.truncate(MOST);
        }
        self.bars.sort_by_key(|bar| (bar.from, bar.lane));
        let mut clients: Vec<usize> = self.bars.iter().map(|bar| bar.lane).collect();
        clients.sort_unstable();
        clients.dedup();
        for bar in &mut self.bars {
            bar.lane = clients.partition_point(|client| *client < bar.lane);
        }
        let name = |client: &usize| format!("client {client}");
        self.lanes = clients.iter().map(name).collect();
        self
    }
}

/// Reads the lines of a lock's history, each of which is an end or a beginning.
#[derive(Default)]
struct Scribe {
    bars: Vec<Bar>,
    /// The bar that a client has open, of each kind that it can have.
    open: std::collections::HashMap<(usize, Open), usize>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Open {
    Ask,
    Holding,
    Release,
    Look,
    Commit,
    Fault,
}

impl Scribe {
    fn read(&mut self, event: &Event, offends: bool) {
        let what = &event.what;
        match what {
            What::Asked => self.begin(event, Open::Ask, "ask", Kind::Unknown, offends),
            What::Granted(token) => {
                let label = format!("granted {token}");
                self.end(event, Open::Ask, &label, Kind::Done, offends);
                let label = format!("holds {token}");
                self.begin(event, Open::Holding, &label, Kind::Held, offends);
            }
            What::Refused => self.end(event, Open::Ask, "refused", Kind::Failed, offends),
            // Its effect may come later: the bar stays open.
            What::Unknown => {
                self.open.remove(&(event.client, Open::Ask));
            }
            What::Wrote(token) => {
                self.at(event, format!("write {token}"), Kind::Done, offends);
            }
            What::WriteRefused(token, valid) => {
                let belief = if *valid { ", though valid" } else { "" };
                let label = format!("write {token} refused{belief}");
                self.at(event, label, Kind::Failed, offends);
            }
            What::Looks(token) => {
                let label = format!("looks at {token}");
                self.begin(event, Open::Look, &label, Kind::Unknown, offends);
            }
            What::Valid(token) => {
                let label = format!("{token} is valid");
                self.end(event, Open::Look, &label, Kind::Done, offends);
            }
            What::Ended(token) => {
                let label = format!("{token} is lost");
                self.end(event, Open::Look, &label, Kind::Failed, offends);
                let label = format!("holds {token}");
                self.end(event, Open::Holding, &label, Kind::Held, offends);
            }
            What::Releasing(token) => {
                let label = format!("holds {token}");
                self.end(event, Open::Holding, &label, Kind::Held, offends);
                let label = format!("release {token}");
                self.begin(event, Open::Release, &label, Kind::Unknown, offends);
            }
            What::Released(token) => {
                let label = format!("released {token}");
                self.end(event, Open::Release, &label, Kind::Done, offends);
            }
            What::Commits(token) => {
                let label = format!("commits under {token}");
                self.begin(event, Open::Commit, &label, Kind::Unknown, offends);
            }
            What::Committed(token) => {
                let label = format!("committed under {token}");
                self.end(event, Open::Commit, &label, Kind::Done, offends);
            }
            What::Fault(fault) if fault == "healed" => {
                if let Some(index) = self.open.remove(&(event.client, Open::Fault)) {
                    self.bars[index].to = Some(event.at);
                }
            }
            What::Fault(fault) => self.begin(event, Open::Fault, fault, Kind::Fault, offends),
        }
    }

    fn begin(&mut self, event: &Event, open: Open, label: &str, kind: Kind, offends: bool) {
        self.open.insert((event.client, open), self.bars.len());
        self.add(event, None, label.to_owned(), kind, offends);
    }

    fn end(&mut self, event: &Event, open: Open, label: &str, kind: Kind, offends: bool) {
        let Some(index) = self.open.remove(&(event.client, open)) else {
            return self.at(event, label.to_owned(), kind, offends);
        };
        let bar = &mut self.bars[index];
        bar.to = Some(event.at);
        (bar.label, bar.kind) = (label.to_owned(), kind);
        bar.offends |= offends;
    }

    fn at(&mut self, event: &Event, label: String, kind: Kind, offends: bool) {
        self.add(event, Some(event.at), label, kind, offends);
    }

    fn add(
        &mut self,
        event: &Event,
        to: Option<Duration>,
        label: String,
        kind: Kind,
        offends: bool,
    ) {
        self.bars.push(Bar {
            lane: event.client,
            from: event.at,
            to,
            text: String::new(),
            label,
            kind,
            offends,
        });
    }
}

impl fmt::Display for Bar {
    /// Without its lane.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (from, label) = (self.from, &self.label);
        if !self.text.is_empty() {
            return f.write_str(&self.text);
        }
        match self.to {
            Some(to) if to == from => write!(f, "{label} [at {from:.3?}]"),
            Some(to) => write!(f, "{label} [{from:.3?} to {to:.3?}]"),
            None => write!(f, "{label} [from {from:.3?}]"),
        }
    }
}

#[cfg(test)]
mod tests {
    use tenure_core::FencingToken;

    use super::*;

    fn millis(at: u64) -> Duration {
        Duration::from_millis(at)
    }

    #[test]
    fn a_locks_history_becomes_asks_holdings_and_faults() {
        let token = FencingToken::new;
        let lines = [
            (0, What::Asked),
            (0, What::Granted(token(1))),
            (3, What::Asked),
            (0, What::Fault("silence".into())),
            (3, What::Unknown),
            (0, What::Wrote(token(1))),
            (0, What::Fault("healed".into())),
            (0, What::Releasing(token(1))),
            (0, What::Released(token(1))),
            (3, What::Asked),
            (3, What::Granted(token(2))),
        ];
        let events: Vec<Event> = (0..)
            .zip(lines)
            .map(|(at, (client, what))| Event {
                at: millis(at),
                client,
                what,
            })
            .collect();
        let timeline = Timeline::of_a_lock(&events, &[10]);
        assert_eq!(timeline.lanes, ["client 0", "client 3"]);
        let told: Vec<String> = timeline
            .bars
            .iter()
            .map(|bar| format!("{} {bar} {}", bar.lane, bar.kind.word()))
            .collect();
        assert_eq!(
            told,
            [
                "0 granted 1 [0.000ns to 1.000ms] done",
                "0 holds 1 [1.000ms to 7.000ms] held",
                "1 ask [from 2.000ms] unknown",
                "0 silence [3.000ms to 6.000ms] fault",
                "0 write 1 [at 5.000ms] done",
                "0 released 1 [7.000ms to 8.000ms] done",
                "1 granted 2 [9.000ms to 10.000ms] done",
                "1 holds 2 [from 10.000ms] held",
            ]
        );
        let offends: Vec<bool> = timeline.bars.iter().map(|bar| bar.offends).collect();
        assert_eq!(
            offends,
            [false, false, false, false, false, false, true, true]
        );
    }

    #[test]
    fn a_long_history_is_cut_around_what_went_wrong() {
        let operations: Vec<Operation<u64, u64>> = (0..1000)
            .map(|number| Operation {
                client: usize::try_from(number % 7).unwrap_or_default(),
                called: millis(10 * number),
                ended: Some(millis(10 * number + 5)),
                input: number,
                fate: Fate::Done(number),
            })
            .collect();
        let brief = |input: &u64, _: Option<&u64>| input.to_string();
        let timeline = Timeline::of_operations(&operations, &[3, 700], brief);
        assert_eq!(timeline.bars.len(), MOST);
        assert_eq!(timeline.left_out, 1000 - MOST);
        let wrong: Vec<&str> = timeline
            .bars
            .iter()
            .filter(|bar| bar.offends)
            .map(|bar| bar.label.as_str())
            .collect();
        assert_eq!(wrong, ["3", "700"]);
        assert!(timeline.bars.is_sorted_by_key(|bar| bar.from));
        assert!(timeline.bars.iter().any(|bar| bar.label == "699"));
        assert_eq!(timeline.lanes.len(), 7);
    }
}
