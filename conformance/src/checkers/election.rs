//! An election, as its leaders speak and as others see them.
//!
//! That there is one leader at a time, under a token that rises, is the same as with a
//! [lock](super::linearizable), and judged there. Here it is about what leaders proclaim: whether it
//! takes effect for those who lead and for nobody else, and whether those who look at it ever go back.
//!
//! Each leadership counts its proclamations from 1; 0 is the value of its campaign.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::fencing::Violation;
use super::jsonl::Line;
use super::operation::{Fate, Operation};
use crate::timeline::Timeline;

/// What can be asked of an election.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ElectionCall {
    /// To lead.
    Campaign,
    /// To show others another value.
    Proclaim {
        /// The leadership.
        token: u64,
        /// Which of its proclamations.
        number: u64,
    },
    /// Who leads now.
    Ask,
    /// The same, asked by one who led before it asked and after it had the answer, as far as it could know.
    AskLeading {
        /// Its leadership.
        token: u64,
    },
    /// What comes next to one who follows the election.
    Watch {
        /// Names the observer: each shows one state after the other.
        observer: u64,
    },
}

/// What an election shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Seen {
    /// The leadership.
    pub token: u64,
    /// Which of its proclamations; 0 for the value of the campaign.
    pub number: u64,
}

/// What an election answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ElectionAnswer {
    /// To a campaign.
    Elected {
        /// The leadership.
        token: u64,
    },
    /// It was proclaimed.
    Done,
    /// To a proclamation of one who does not lead any more.
    NotLeader,
    /// Whom it shows, or that nobody leads.
    Shows(Option<Seen>),
}

/// The history of an election.
pub type ElectionOperation = Operation<ElectionCall, ElectionAnswer>;

impl Line for ElectionOperation {
    const KIND: &'static str = "election";
}

/// The picture of a history in which the operations at `places` went wrong.
pub fn timeline(history: &[ElectionOperation], places: &[usize]) -> Timeline {
    Timeline::of_operations(history, places, |call, answer| {
        let told = match answer {
            Some(ElectionAnswer::Elected { token }) => format!(": {token}"),
            Some(ElectionAnswer::NotLeader) => ": not leader".to_owned(),
            Some(ElectionAnswer::Shows(None)) => " nobody".to_owned(),
            Some(ElectionAnswer::Shows(Some(seen))) => format!(" {} {}", seen.token, seen.number),
            Some(ElectionAnswer::Done) | None => String::new(),
        };
        match call {
            ElectionCall::Campaign => format!("campaign{told}"),
            ElectionCall::Proclaim { token, number } => format!("say {token} {number}{told}"),
            ElectionCall::Ask => format!("ask{told}"),
            ElectionCall::AskLeading { token } => format!("ask as {token}{told}"),
            ElectionCall::Watch { .. } => format!("see{told}"),
        }
    })
}

/// Judges what was proclaimed and what was seen of it:
///
/// * an observer never goes back: neither to an earlier leader, nor to an earlier proclamation, nor to one who
///   had left;
/// * nothing is shown that was not proclaimed, or whose proclamation was refused;
/// * whoever asks who leads is told of nobody before the last leader that had been elected by then, and of
///   nothing before its last proclamation;
/// * whoever leads and asks who does is told of itself;
/// * a proclamation that began after a later leader had been elected is refused.
///
/// # Errors
///
/// What breaks this first.
pub fn check(history: &[ElectionOperation]) -> Result<(), Violation> {
    never_back(history)?;
    as_proclaimed(history)?;
    leaders_lead(history)?;
    up_to_date(history)
}

fn shown(operation: &ElectionOperation) -> Option<Option<Seen>> {
    match operation.answer() {
        Some(ElectionAnswer::Shows(seen)) => Some(*seen),
        _ => None,
    }
}

fn never_back(history: &[ElectionOperation]) -> Result<(), Violation> {
    struct Last {
        seen: Seen,
        left: bool,
        place: usize,
    }
    let mut lasts: HashMap<u64, Last> = HashMap::new();
    for (place, operation) in history.iter().enumerate() {
        let ElectionCall::Watch { observer } = operation.input else {
            continue;
        };
        let Some(shown) = shown(operation) else {
            continue;
        };
        let last = lasts.get_mut(&observer);
        let Some(seen) = shown else {
            if let Some(last) = last {
                last.left = true;
            }
            continue;
        };
        if let Some(last) = last
            && (seen < last.seen || (last.left && seen.token == last.seen.token))
        {
            let gone = if last.left { ", who had left" } else { "" };
            let what = format!(
                "an observer went back: it showed proclamation {} of leader {} after proclamation {} of leader {}{gone}",
                seen.number, seen.token, last.seen.number, last.seen.token
            );
            return Err(Violation::new(what, [last.place, place]));
        }
        let last = Last {
            seen,
            left: false,
            place,
        };
        lasts.insert(observer, last);
    }
    Ok(())
}

fn as_proclaimed(history: &[ElectionOperation]) -> Result<(), Violation> {
    let mut proclaimed: HashMap<Seen, usize> = HashMap::new();
    let mut known: HashSet<usize> = HashSet::new();
    for (place, operation) in history.iter().enumerate() {
        if let ElectionCall::Proclaim { token, number } = operation.input {
            proclaimed.insert(Seen { token, number }, place);
            if operation.possible() && operation.answer() != Some(&ElectionAnswer::NotLeader) {
                known.insert(place);
            }
        }
    }
    for (place, operation) in history.iter().enumerate() {
        let Some(Some(seen)) = shown(operation) else {
            continue;
        };
        // The value of a campaign: a leader may be seen before it knows, and one that nobody ever heard of.
        if seen.number == 0 {
            continue;
        }
        let proclamation = proclaimed.get(&seen).copied();
        let began = |at: usize| Some(history[at].called) <= operation.ended;
        let fault = match proclamation {
            Some(at) if known.contains(&at) && began(at) => continue,
            Some(at) if known.contains(&at) => "had not begun",
            Some(_) => "was refused",
            None => "nobody made",
        };
        let what = format!(
            "proclamation {} of leader {} was shown, which {fault}",
            seen.number, seen.token
        );
        let places: Vec<usize> = proclamation.into_iter().chain([place]).collect();
        return Err(Violation::new(what, places));
    }
    Ok(())
}

fn leaders_lead(history: &[ElectionOperation]) -> Result<(), Violation> {
    for (place, operation) in history.iter().enumerate() {
        if let (ElectionCall::AskLeading { token }, Some(seen)) =
            (operation.input, shown(operation))
            && seen.map(|seen| seen.token) != Some(token)
        {
            let what =
                format!("leader {token} asked who leads, and was told of another: {operation}");
            return Err(Violation::new(what, [place]));
        }
    }
    Ok(())
}

/// What had been acknowledged before a moment.
#[derive(Default)]
struct Known {
    leader: Option<(u64, usize)>,
    /// The last proclamation of each leadership.
    words: HashMap<u64, (u64, usize)>,
}

impl Known {
    fn learn(&mut self, operation: &ElectionOperation, place: usize) {
        match (operation.input, operation.answer()) {
            (_, Some(ElectionAnswer::Elected { token })) => {
                self.leader = self.leader.max(Some((*token, place)));
            }
            (ElectionCall::Proclaim { token, number }, Some(ElectionAnswer::Done)) => {
                let last = self.words.entry(token).or_insert((number, place));
                *last = (*last).max((number, place));
            }
            _ => {}
        }
    }

    fn judge(&self, operation: &ElectionOperation, place: usize) -> Result<(), Violation> {
        let (token, number) = match (operation.input, operation.answer()) {
            (ElectionCall::Proclaim { token, .. }, Some(ElectionAnswer::Done)) => (token, None),
            (
                ElectionCall::Ask | ElectionCall::AskLeading { .. },
                Some(ElectionAnswer::Shows(Some(seen))),
            ) => (seen.token, Some(seen.number)),
            _ => return Ok(()),
        };
        if let Some((leader, before)) = self.leader
            && leader > token
        {
            let what = format!(
                "leader {token} was taken for the leader after leader {leader} had been elected: {operation}"
            );
            return Err(Violation::new(what, [before, place]));
        }
        if let (Some(number), Some((word, before))) = (number, self.words.get(&token))
            && *word > number
        {
            let what = format!(
                "proclamation {number} of leader {token} was shown to one who asked after proclamation {word} had been made"
            );
            return Err(Violation::new(what, [*before, place]));
        }
        Ok(())
    }
}

/// One line of time: at equal times calls come first, which decides nothing.
fn up_to_date(history: &[ElectionOperation]) -> Result<(), Violation> {
    let mut moments: Vec<(Duration, bool, usize)> = Vec::new();
    for (place, operation) in history.iter().enumerate() {
        moments.push((operation.called, false, place));
        if let (Fate::Done(_), Some(ended)) = (&operation.fate, operation.ended) {
            moments.push((ended, true, place));
        }
    }
    moments.sort_unstable();
    let mut known = Known::default();
    for (_, ended, place) in moments {
        match ended {
            true => known.learn(&history[place], place),
            false => known.judge(&history[place], place)?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkers::jsonl;

    const ELECTED: fn(u64) -> ElectionAnswer = |token| ElectionAnswer::Elected { token };

    fn operation(
        at: (u64, u64),
        input: ElectionCall,
        fate: Fate<ElectionAnswer>,
    ) -> ElectionOperation {
        ElectionOperation {
            client: 0,
            called: Duration::from_millis(at.0),
            ended: Some(Duration::from_millis(at.1)),
            input,
            fate,
        }
    }

    fn campaign(at: (u64, u64), token: u64) -> ElectionOperation {
        operation(at, ElectionCall::Campaign, Fate::Done(ELECTED(token)))
    }

    fn say(
        at: (u64, u64),
        (token, number): (u64, u64),
        fate: Fate<ElectionAnswer>,
    ) -> ElectionOperation {
        operation(at, ElectionCall::Proclaim { token, number }, fate)
    }

    fn said(at: (u64, u64), words: (u64, u64)) -> ElectionOperation {
        say(at, words, Fate::Done(ElectionAnswer::Done))
    }

    fn shows(seen: Option<(u64, u64)>) -> Fate<ElectionAnswer> {
        let seen = seen.map(|(token, number)| Seen { token, number });
        Fate::Done(ElectionAnswer::Shows(seen))
    }

    fn see(at: u64, seen: Option<(u64, u64)>) -> ElectionOperation {
        operation((at, at), ElectionCall::Watch { observer: 1 }, shows(seen))
    }

    fn ask(at: (u64, u64), seen: Option<(u64, u64)>) -> ElectionOperation {
        operation(at, ElectionCall::Ask, shows(seen))
    }

    fn term() -> Vec<ElectionOperation> {
        vec![
            campaign((0, 2), 5),
            said((3, 5), (5, 1)),
            said((6, 8), (5, 2)),
            campaign((0, 10), 7),
        ]
    }

    fn with(more: &[ElectionOperation]) -> Result<(), Violation> {
        let history = [term(), more.to_vec()].concat();
        jsonl::round_trip(&history);
        check(&history)
    }

    #[test]
    fn states_may_be_skipped_and_answers_lag_while_they_are_asked() {
        let more = [
            see(2, Some((5, 0))),
            see(9, Some((5, 2))),
            see(10, None),
            see(11, Some((7, 0))),
            ask((4, 9), Some((5, 0))),
            ask((9, 12), Some((5, 2))),
            ask((11, 12), None),
        ];
        assert_eq!(with(&more), Ok(()));
    }

    #[test]
    fn an_observer_that_goes_back_is_found() {
        let back = |states: [Option<(u64, u64)>; 3]| {
            with(&states.map(|state| see(20, state))).unwrap_err().what
        };
        assert!(back([Some((7, 0)), None, Some((5, 2))]).contains("back"));
        assert!(back([Some((5, 2)), Some((5, 1)), None]).contains("back"));
        assert!(back([Some((5, 1)), None, Some((5, 2))]).contains("left"));
    }

    #[test]
    fn what_was_not_proclaimed_is_not_shown() {
        let wrong = |more: &[ElectionOperation]| with(more).unwrap_err().what;
        assert!(wrong(&[see(20, Some((5, 3)))]).contains("nobody"));
        assert!(wrong(&[see(4, Some((5, 2)))]).contains("not begun"));
        let refused = Fate::Done(ElectionAnswer::NotLeader);
        let more = [say((12, 13), (5, 3), refused), see(14, Some((5, 3)))];
        assert!(wrong(&more).contains("refused"));
        let more = [say((12, 13), (5, 3), Fate::Failed), see(14, Some((5, 3)))];
        assert!(wrong(&more).contains("refused"));
        let more = [say((9, 13), (5, 3), Fate::Unknown), see(14, Some((5, 3)))];
        assert_eq!(with(&more), Ok(()));
    }

    #[test]
    fn whoever_asks_is_told_of_the_last() {
        assert!(with(&[ask((11, 12), Some((5, 2)))]).is_err());
        assert!(with(&[ask((9, 12), Some((5, 1)))]).is_err());
        assert_eq!(with(&[ask((10, 12), Some((5, 2)))]), Ok(()));
    }

    #[test]
    fn who_leads_is_shown_itself() {
        let asks = |seen, fate: fn(Option<(u64, u64)>) -> Fate<ElectionAnswer>| {
            with(&[operation(
                (11, 12),
                ElectionCall::AskLeading { token: 7 },
                fate(seen),
            )])
        };
        assert_eq!(asks(Some((7, 0)), shows), Ok(()));
        for wrong in [None, Some((9, 0)), Some((5, 2))] {
            let what = asks(wrong, shows).unwrap_err().what;
            assert!(what.contains("leader 7 asked"), "{what}");
        }
        assert_eq!(asks(None, |_| Fate::Failed), Ok(()), "it had lost it");
    }

    #[test]
    fn a_deposed_leader_is_not_heard() {
        let what = with(&[said((11, 12), (5, 3))]).unwrap_err().what;
        assert!(what.contains("elected"), "{what}");
        assert_eq!(with(&[said((9, 12), (5, 3))]), Ok(()));
    }
}
