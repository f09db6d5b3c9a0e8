//! Is there an order of all operations that a lock with fencing tokens could have had?
//!
//! In general that is a [`search`](super::search). Here it is none: every
//! grant has a token of its own, and tokens rise, so the tokens *are* the order. What is left is
//! to place each grant and each end within the time in which it can have happened, as early as
//! possible, and to see whether the next still fits.
//!
//! The model: an acquire takes effect between its ask and its answer, when nobody holds the lock;
//! a confirmed release between its call and its answer; a holding whose release was not confirmed
//! ends some time after its holder last looked and was valid, and after it began the last commit that was fenced by the
//! lock and acknowledged. Asks without a known grant may have
//! had one that nobody saw and that was given back: they constrain nothing.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use tenure_core::FencingToken;

use super::fencing::Violation;
use super::history::{Event, What};

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
    /// The lines of its grant, of its last proof of validity, and of its release.
    places: [Option<usize>; 3],
}

/// Finds an order, and returns the number of holdings in it.
///
/// # Errors
///
/// The two holdings that no order reconciles.
pub fn check(events: &[Event]) -> Result<usize, Violation> {
    let holdings = holdings(events);
    let mut free_from = Duration::ZERO;
    let mut before: Option<(FencingToken, Holding)> = None;
    for (&token, &holding) in &holdings {
        let taken = free_from.max(holding.asked);
        if taken > holding.granted {
            let earlier = before.map_or_else(String::new, |(token, earlier)| {
                format!(
                    "client {} held it under token {token} (granted at {:.3?}) until {:.3?} at least",
                    earlier.client, earlier.granted, free_from
                )
            });
            let places = before.into_iter().flat_map(|(_, earlier)| earlier.places);
            let places: Vec<usize> = places.chain([holding.places[0]]).flatten().collect();
            let what = format!(
                "client {} had the lock under token {token} at {:.3?}, though {earlier}",
                holding.client, holding.granted
            );
            return Err(Violation::new(what, places));
        }
        free_from = taken.max(holding.valid);
        if let Some(released) = holding.released
            && free_from > released
        {
            let places = before.into_iter().flat_map(|(_, earlier)| earlier.places);
            let places: Vec<usize> = places.chain(holding.places).flatten().collect();
            let what = format!(
                "client {} released token {token} at {released:.3?}, but can have had it from {free_from:.3?} only",
                holding.client
            );
            return Err(Violation::new(what, places));
        }
        before = Some((token, holding));
    }
    Ok(holdings.len())
}

fn holdings(events: &[Event]) -> BTreeMap<FencingToken, Holding> {
    let mut asked: HashMap<usize, Duration> = HashMap::new();
    let mut looked: HashMap<usize, Duration> = HashMap::new();
    let mut committing: HashMap<usize, Duration> = HashMap::new();
    let mut releasing: HashMap<usize, Duration> = HashMap::new();
    let mut holdings: BTreeMap<FencingToken, Holding> = BTreeMap::new();
    for (place, event) in events.iter().enumerate() {
        let (client, at) = (event.client, event.at);
        match event.what {
            What::Asked => {
                asked.insert(client, at);
            }
            What::Granted(token) => {
                let asked = asked.get(&client).copied().unwrap_or_default();
                holdings.insert(
                    token,
                    Holding {
                        client,
                        asked,
                        granted: at,
                        valid: asked,
                        released: None,
                        places: [Some(place), None, None],
                    },
                );
            }
            What::Looks(_) => {
                looked.insert(client, at);
            }
            What::Valid(token) => {
                if let (Some(holding), Some(looked)) =
                    (holdings.get_mut(&token), looked.get(&client))
                {
                    holding.valid = holding.valid.max(*looked);
                    holding.places[1] = Some(place);
                }
            }
            What::Commits(_) => {
                committing.insert(client, at);
            }
            What::Committed(token) => {
                if let (Some(holding), Some(began)) =
                    (holdings.get_mut(&token), committing.get(&client))
                {
                    holding.valid = holding.valid.max(*began);
                    holding.places[1] = Some(place);
                }
            }
            What::Releasing(_) => {
                releasing.insert(client, at);
            }
            What::Released(token) => {
                if let Some(holding) = holdings.get_mut(&token) {
                    holding.released = Some(at);
                    holding.places[2] = Some(place);
                    // Only what is still held can be released.
                    let called = releasing.get(&client).copied().unwrap_or_default();
                    holding.valid = holding.valid.max(called);
                }
            }
            _ => {}
        }
    }
    holdings
}

#[cfg(test)]
mod tests {
    use super::super::history::told;
    use super::*;

    const ONE: FencingToken = FencingToken::new(1);
    const TWO: FencingToken = FencingToken::new(2);

    #[test]
    fn a_hand_over_passes() {
        let history = told(&[
            (0, What::Asked),
            (1, What::Asked),
            (0, What::Granted(ONE)),
            (0, What::Looks(ONE)),
            (0, What::Valid(ONE)),
            (0, What::Releasing(ONE)),
            // Before the first has heard of its release.
            (1, What::Granted(TWO)),
            (0, What::Released(ONE)),
        ]);
        assert_eq!(check(&history), Ok(2));
    }

    #[test]
    fn a_grant_while_another_is_valid_is_found() {
        let history = told(&[
            (0, What::Asked),
            (0, What::Granted(ONE)),
            (1, What::Asked),
            (1, What::Granted(TWO)),
            (0, What::Looks(ONE)),
            (0, What::Valid(ONE)),
        ]);
        assert!(check(&history).unwrap_err().what.contains("token 2"));
    }

    #[test]
    fn a_commit_after_the_next_grant_is_found() {
        let history = told(&[
            (0, What::Asked),
            (0, What::Granted(ONE)),
            (0, What::Looks(ONE)),
            (0, What::Ended(ONE)),
            (1, What::Asked),
            (1, What::Granted(TWO)),
            (0, What::Commits(ONE)),
            (0, What::Committed(ONE)),
        ]);
        assert!(check(&history).unwrap_err().what.contains("token 2"));
        assert_eq!(check(&history[..7]), Ok(2), "nobody knows");
        let began_before = [
            (0, What::Asked),
            (0, What::Granted(ONE)),
            (1, What::Asked),
            (0, What::Commits(ONE)),
            (1, What::Granted(TWO)),
            (0, What::Committed(ONE)),
        ];
        assert_eq!(check(&told(&began_before)), Ok(2));
    }

    #[test]
    fn a_holder_that_lost_its_validity_in_silence_is_no_obstacle() {
        let history = told(&[
            (0, What::Asked),
            (0, What::Granted(ONE)),
            (0, What::Looks(ONE)),
            (0, What::Valid(ONE)),
            (1, What::Asked),
            (1, What::Granted(TWO)),
            (0, What::Looks(ONE)),
            (0, What::Ended(ONE)),
        ]);
        assert_eq!(check(&history), Ok(2));
    }

    #[test]
    fn tokens_against_the_order_of_time_are_found() {
        let history = told(&[
            (0, What::Asked),
            (0, What::Granted(TWO)),
            (0, What::Released(TWO)),
            (1, What::Asked),
            (1, What::Granted(ONE)),
            (1, What::Released(ONE)),
        ]);
        assert!(check(&history).is_err());
    }

    #[test]
    fn a_release_called_after_the_successor_was_granted_is_found() {
        let history = told(&[
            (0, What::Asked),
            (0, What::Granted(ONE)),
            (1, What::Asked),
            (1, What::Granted(TWO)),
            (0, What::Releasing(ONE)),
            (0, What::Released(ONE)),
        ]);
        assert!(check(&history).is_err());
        // Without the confirmation it had lost the lock, and heard of that.
        assert_eq!(check(&history[..5]), Ok(2));
    }

    #[test]
    fn a_release_confirmed_after_the_successor_was_valid_for_a_while_is_found() {
        // The lock was taken twice, and the first release said Ok although it had lost it.
        let history = told(&[
            (0, What::Asked),
            (0, What::Granted(ONE)),
            (1, What::Asked),
            (1, What::Granted(TWO)),
            (0, What::Looks(ONE)),
            (0, What::Valid(ONE)),
            (0, What::Releasing(ONE)),
            (0, What::Released(ONE)),
        ]);
        assert!(check(&history).is_err());
    }
}
