//! A read-write lock, and two cells behind it that a writer changes one after the other.
//!
//! As with a [lock](super::linearizable) the tokens are the order: a writer's is above all that were
//! granted before, a reader's above those of all writers before it. Readers that stand beside each other
//! share, so among themselves their tokens order nothing. What is left is to place each
//! grant and each end as early as possible, and to see whether the next still fits.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tenure_core::FencingToken;

use super::fencing::{self, Violation};
use super::history::{Event, What};
use super::jsonl::{Line, nanos};

/// One of the two sides of a read-write lock. One who downgrades is a writer first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Side {
    /// Alone.
    Write,
    /// Shared with other readers.
    Read,
}

/// One line of a history.
///
/// [`What::Wrote`] and [`What::WriteRefused`] are accesses to one of the two cells, by readers, too. A downgrade
/// is a confirmed release of the one side, and right after it a grant of the other under the same token: it is asked
/// for before that release. Whoever asks after it asks anew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RwEvent {
    /// When, since the history began.
    #[serde(with = "nanos")]
    pub at: Duration,
    /// Who.
    pub client: usize,
    /// As what.
    pub side: Side,
    /// What.
    pub what: What,
    /// What a reader has seen in the two cells, once it has seen both: the tokens of those who wrote them.
    pub seen: Option<(u64, u64)>,
}

impl Line for RwEvent {
    const KIND: &'static str = "rw_lock";
}

/// The same without the sides, line by line: for pictures.
pub fn plain(events: &[RwEvent]) -> Vec<Event> {
    let plain = |event: &RwEvent| Event {
        at: event.at,
        client: event.client,
        what: event.what.clone(),
    };
    events.iter().map(plain).collect()
}

/// How clients met inside, as far as they believed to be inside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Meetings {
    /// Readers that came in while another was there.
    pub shared: usize,
    /// Those that came in while another was there that excludes them.
    pub overlaps: usize,
}

/// Counts who met whom.
pub fn meetings(events: &[RwEvent]) -> Meetings {
    let mut inside: HashSet<(usize, Side)> = HashSet::new();
    let mut meetings = Meetings::default();
    for event in events {
        let me = (event.client, event.side);
        match event.what {
            What::Granted(_) => {
                let mut others = inside.iter().filter(|(client, _)| *client != event.client);
                let write = |(_, side): &(usize, Side)| Side::Write == *side;
                if event.side == Side::Write {
                    meetings.overlaps += others.count();
                } else if others.clone().any(write) {
                    meetings.overlaps += 1;
                } else {
                    meetings.shared += usize::from(others.next().is_some());
                }
                inside.insert(me);
            }
            What::Releasing(_) | What::Ended(_) | What::Released(_) => {
                inside.remove(&me);
            }
            _ => {}
        }
    }
    meetings
}

/// Tokens rise, the cells took nothing out of order, no reader has seen a half of a change, and there
/// is an order of all holdings in which writers are alone. Returns the number of grants.
///
/// # Errors
///
/// What breaks this first.
pub fn check(events: &[RwEvent]) -> Result<usize, Violation> {
    let grants = grants_rise(events)?;
    accepted_in_order(events)?;
    nothing_torn(events)?;
    in_order(events)?;
    Ok(grants)
}

/// As [`fencing::grants_rise`]: a token is granted once, but for downgrades.
fn grants_rise(events: &[RwEvent]) -> Result<usize, Violation> {
    // What a client has just given up as a writer.
    let mut wrote: HashMap<usize, FencingToken> = HashMap::new();
    let mut grants = plain(events);
    for (event, grant) in events.iter().zip(&mut grants) {
        match (&event.what, event.side) {
            (What::Fault(_), _) => {}
            (What::Released(token), Side::Write) => {
                wrote.insert(event.client, *token);
            }
            (What::Granted(token), Side::Read) if wrote.get(&event.client) == Some(token) => {
                grant.what = What::Released(*token);
                wrote.remove(&event.client);
            }
            _ => {
                wrote.remove(&event.client);
            }
        }
    }
    fencing::grants_rise(&grants)
}

/// No writer wrote after another of a greater token had come to the cells, no reader read after a
/// writer of a greater one, and nobody who held the lock was refused.
fn accepted_in_order(events: &[RwEvent]) -> Result<(), Violation> {
    let mut newest: Option<(FencingToken, usize)> = None;
    let mut newest_writer: Option<(FencingToken, usize)> = None;
    for (place, event) in events.iter().enumerate() {
        match event.what {
            What::Wrote(token) => {
                let before = match event.side {
                    Side::Write => newest,
                    Side::Read => newest_writer,
                };
                if let Some((above, before)) = before
                    && above > token
                {
                    let what = format!(
                        "an access under token {token} was taken after one under {above}, which excludes it"
                    );
                    return Err(Violation::new(what, [before, place]));
                }
                newest = newest.max(Some((token, place)));
                if event.side == Side::Write {
                    newest_writer = Some((token, place));
                }
            }
            What::WriteRefused(token, true) => {
                let what = format!(
                    "the access of a valid holder under token {token} was refused, for another held the lock after it"
                );
                let before = newest.map(|(_, place)| place);
                let places: Vec<usize> = before.into_iter().chain([place]).collect();
                return Err(Violation::new(what, places));
            }
            _ => {}
        }
    }
    Ok(())
}

/// A reader sees both cells from the same writer, or the second from one before it: if the writer of the
/// first had lost the lock on its way to the second.
fn nothing_torn(events: &[RwEvent]) -> Result<(), Violation> {
    let mut writes: HashMap<u64, (usize, usize)> = HashMap::new();
    for (place, event) in events.iter().enumerate() {
        if let (What::Wrote(token), Side::Write) = (&event.what, event.side) {
            let (count, last) = writes.entry(token.get()).or_default();
            (*count, *last) = (*count + 1, place);
        }
    }
    for (place, event) in events.iter().enumerate() {
        let Some((first, second)) = event.seen else {
            continue;
        };
        let of = |token| writes.get(&token).copied().unwrap_or_default();
        let interrupted = second < first && of(first).0 < 2;
        if first != second && !interrupted {
            let what = format!(
                "client {} has read a half of a change: the first cell as written under token {first}, the second under {second}",
                event.client
            );
            return Err(Violation::new(what, [of(first).1, of(second).1, place]));
        }
    }
    Ok(())
}

/// One holding, in the times that a history leaves open.
#[derive(Clone, Copy, Debug)]
struct Holding {
    client: usize,
    asked: Duration,
    granted: Duration,
    /// It cannot have ended before this.
    valid: Duration,
    /// It ended before this, if its release was confirmed.
    released: Option<Duration>,
    place: usize,
}

/// The latest that is known of those who are placed.
#[derive(Clone, Copy, Debug, Default)]
struct Last {
    until: Duration,
    place: Option<usize>,
}

fn in_order(events: &[RwEvent]) -> Result<(), Violation> {
    let holdings = holdings(events);
    let (mut anybody, mut writer) = (Last::default(), Last::default());
    for (&(token, side), holding) in &holdings {
        let before = match side {
            Side::Write => anybody,
            Side::Read => writer,
        };
        let taken = before.until.max(holding.asked);
        let end = taken.max(holding.valid);
        if taken > holding.granted || holding.released.is_some_and(|released| end > released) {
            let what = format!(
                "client {} had token {token} to {side:?} (granted at {:.3?}, released at {:.3?}), though another was inside until {:.3?} at least, and one of them excludes the other",
                holding.client, holding.granted, holding.released, before.until
            );
            let places: Vec<usize> = before.place.into_iter().chain([holding.place]).collect();
            return Err(Violation::new(what, places));
        }
        let last = Last {
            until: end,
            place: Some(holding.place),
        };
        if side == Side::Write {
            writer = last;
        }
        if end >= anybody.until {
            anybody = last;
        }
    }
    Ok(())
}

fn holdings(events: &[RwEvent]) -> BTreeMap<(FencingToken, Side), Holding> {
    let mut began: HashMap<usize, Duration> = HashMap::new();
    let mut asked: HashMap<usize, Duration> = HashMap::new();
    let mut holdings: BTreeMap<(FencingToken, Side), Holding> = BTreeMap::new();
    for (place, event) in events.iter().enumerate() {
        let (client, at) = (event.client, event.at);
        let begun = began.get(&client).copied();
        match event.what {
            What::Asked => {
                asked.insert(client, at);
            }
            What::Looks(_) | What::Releasing(_) => {
                began.insert(client, at);
            }
            What::Granted(token) => {
                let asked = asked.get(&client).copied().unwrap_or_default();
                let holding = Holding {
                    client,
                    asked,
                    granted: at,
                    valid: asked,
                    released: None,
                    place,
                };
                holdings.insert((token, event.side), holding);
            }
            What::Valid(token) | What::Released(token) => {
                if let Some(holding) = holdings.get_mut(&(token, event.side)) {
                    holding.valid = holding.valid.max(begun.unwrap_or_default());
                    if matches!(event.what, What::Released(_)) {
                        holding.released = Some(at);
                    }
                }
            }
            _ => {}
        }
    }
    holdings
}

#[cfg(test)]
mod tests {
    use super::Side::{Read, Write};
    use super::*;
    use crate::checkers::jsonl;

    const fn token(number: u64) -> FencingToken {
        FencingToken::new(number)
    }

    fn told(lines: &[(usize, Side, What)]) -> Vec<RwEvent> {
        let line = |(at, (client, side, what)): (usize, &(usize, Side, What))| RwEvent {
            at: Duration::from_millis(at as u64),
            client: *client,
            side: *side,
            what: what.clone(),
            seen: None,
        };
        lines.iter().enumerate().map(line).collect()
    }

    /// One visit, from its ask to the confirmed release.
    fn visit(client: usize, side: Side, number: u64) -> [(usize, Side, What); 6] {
        let token = token(number);
        [
            (client, side, What::Asked),
            (client, side, What::Granted(token)),
            (client, side, What::Looks(token)),
            (client, side, What::Valid(token)),
            (client, side, What::Releasing(token)),
            (client, side, What::Released(token)),
        ]
    }

    #[test]
    fn readers_share_and_writers_follow() {
        let [a, b, c] = [visit(0, Read, 1), visit(1, Read, 2), visit(2, Write, 3)];
        let mut lines = [&a[..3], &b[..3], &c[..1], &a[3..], &b[3..], &c[1..]].concat();
        let events = told(&lines);
        assert_eq!(check(&events), Ok(3));
        let met = Meetings {
            shared: 1,
            overlaps: 0,
        };
        assert_eq!(meetings(&events), met);
        jsonl::round_trip(&events);
        // Whoever is alone shares nothing.
        lines = [&a[..], &b[..], &c[..]].concat();
        assert_eq!(meetings(&told(&lines)), Meetings::default());
    }

    #[test]
    fn a_writer_beside_a_reader_is_found() {
        let [a, b] = [visit(0, Read, 1), visit(1, Write, 2)];
        let events = told(&[&a[..2], &b[..], &a[2..]].concat());
        assert!(check(&events).unwrap_err().what.contains("Write"));
        assert_eq!(meetings(&events).overlaps, 1);
        let [a, b] = [visit(0, Write, 1), visit(1, Read, 2)];
        let events = told(&[&a[..2], &b[..], &a[2..]].concat());
        assert!(check(&events).unwrap_err().what.contains("Read"));
    }

    #[test]
    fn a_reader_that_lost_the_lock_in_silence_is_no_obstacle() {
        let [a, b] = [visit(0, Read, 1), visit(1, Write, 2)];
        let mut events = told(&[&a[..2], &b[..]].concat());
        assert_eq!(check(&events), Ok(2));
        let late = What::WriteRefused(token(1), false);
        events.extend(told(&[(0, Read, late)]));
        assert_eq!(check(&events), Ok(2));
    }

    #[test]
    fn a_downgrade_keeps_the_token_and_lets_readers_in() {
        let [a, b, c] = [visit(0, Write, 1), visit(0, Read, 1), visit(1, Read, 2)];
        // The reader is asked for before the writer has ended.
        let down = [&a[..5], &b[..1], &a[5..], &b[1..2]].concat();
        let lines = [&down[..], &b[2..3], &c[..], &b[3..]].concat();
        assert_eq!(check(&told(&lines)), Ok(2));
        let lines = [&a[..3], &c[..], &down[3..], &b[2..]].concat();
        assert!(check(&told(&lines)).is_err(), "before the downgrade");
        let [c, d] = [visit(1, Write, 2), visit(1, Read, 1)];
        let lines = [&down[..], &c[..], &b[2..]].concat();
        assert!(check(&told(&lines)).is_err(), "a writer in between");
        let lines = [&a[..], &d[..]].concat();
        assert!(check(&told(&lines)).is_err(), "another's token");
    }

    #[test]
    fn a_reader_that_asks_anew_gets_a_token_of_its_own() {
        let [a, b, c] = [visit(0, Write, 1), visit(0, Read, 1), visit(0, Read, 2)];
        assert_eq!(check(&told(&[&a[..], &c[..]].concat())), Ok(2));
        let anew = check(&told(&[&a[..], &b[..]].concat())).unwrap_err();
        assert!(anew.what.contains("token 1"), "{}", anew.what);
        let down = [&a[..5], &b[..1], &a[5..], &b[1..]].concat();
        let twice = [&down[..], &b[..]].concat();
        assert!(
            check(&told(&twice)).is_err(),
            "one downgrade has one reader"
        );
    }

    #[test]
    fn tokens_that_fall_are_found() {
        let [a, b] = [visit(0, Read, 2), visit(1, Write, 1)];
        let found = check(&told(&[a, b].concat())).unwrap_err();
        assert!(found.what.contains("after token 2"), "{}", found.what);
    }

    #[test]
    fn the_cells_take_readers_in_any_order_and_writers_in_theirs() {
        let wrote = |side, number| (0, side, What::Wrote(token(number)));
        let fine = [
            wrote(Write, 1),
            wrote(Read, 3),
            wrote(Read, 2),
            wrote(Write, 4),
        ];
        assert_eq!(check(&told(&fine)), Ok(0));
        assert!(check(&told(&[wrote(Read, 3), wrote(Write, 2)])).is_err());
        assert!(check(&told(&[wrote(Write, 3), wrote(Read, 2)])).is_err());
        let refused = (0, Read, What::WriteRefused(token(1), true));
        assert!(check(&told(&[wrote(Write, 3), refused])).is_err());
    }

    #[test]
    fn half_a_change_is_found_unless_its_writer_was_interrupted() {
        let wrote = |side, number| (0, side, What::Wrote(token(number)));
        let saw = |lines: &[(usize, Side, What)], seen| {
            let mut events = told(lines);
            if let Some(last) = events.last_mut() {
                last.seen = Some(seen);
            }
            check(&events)
        };
        let whole = [
            wrote(Write, 1),
            wrote(Write, 1),
            wrote(Write, 2),
            wrote(Write, 2),
        ];
        let read = [wrote(Read, 3), wrote(Read, 3)];
        let all = [&whole[..], &read].concat();
        assert_eq!(saw(&all, (2, 2)), Ok(0));
        assert!(saw(&all, (2, 1)).is_err());
        assert!(saw(&all, (1, 2)).is_err());
        let half = [&whole[..3], &read].concat();
        assert_eq!(saw(&half, (2, 1)), Ok(0));
        assert!(saw(&half, (1, 2)).is_err());
    }
}
