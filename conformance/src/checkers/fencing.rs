//! The order of tokens: as they were granted, and as a fenced register took them.

use std::collections::HashMap;

use tenure_core::FencingToken;

use super::history::{Event, What, excerpt};

/// What is wrong with a history, with the lines that show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// In words.
    pub what: String,
    /// The lines or operations that it is about, by their place in the history.
    pub places: Vec<usize>,
}

impl Violation {
    /// `what` is wrong with the lines or operations at `places`.
    pub fn new(what: impl Into<String>, places: impl Into<Vec<usize>>) -> Self {
        Self {
            what: what.into(),
            places: places.into(),
        }
    }
}

fn wrong<T>(
    events: &[Event],
    at: usize,
    before: Option<usize>,
    what: String,
) -> Result<T, Violation> {
    let places: Vec<usize> = before.into_iter().chain([at]).collect();
    let told = excerpt(events, at);
    Err(Violation::new(format!("{what}{told}"), places))
}

/// No token is granted twice, and a grant that was asked for after another had been granted has
/// the greater token (L2, as far as clients can see it). Returns the number of grants.
///
/// # Errors
///
/// The first grant that breaks this.
pub fn grants_rise(events: &[Event]) -> Result<usize, Violation> {
    let mut asked: HashMap<usize, Option<FencingToken>> = HashMap::new();
    let mut seen: HashMap<FencingToken, (usize, usize)> = HashMap::new();
    let mut greatest: Option<FencingToken> = None;
    for (index, event) in events.iter().enumerate() {
        match event.what {
            // Whatever was granted by now is below what this ask gets.
            What::Asked => {
                asked.insert(event.client, greatest);
            }
            What::Granted(token) => {
                let floor = asked.get(&event.client).copied().flatten();
                if floor >= Some(token) {
                    let before = floor.and_then(|floor| seen.get(&floor)).map(|seen| seen.1);
                    let floor = floor.map_or(0, FencingToken::get);
                    let what = format!(
                        "token {token} was granted for an ask that began after token {floor} had been granted"
                    );
                    return wrong(events, index, before, what);
                }
                if let Some((client, before)) = seen.insert(token, (event.client, index)) {
                    let what = format!("token {token} was granted twice, first to client {client}");
                    return wrong(events, index, Some(before), what);
                }
                greatest = greatest.max(Some(token));
            }
            _ => {}
        }
    }
    Ok(seen.len())
}

/// The tokens that the register took never fall, and it never refused one who held the lock: a
/// refusal means that somebody wrote under a newer token while the older was in force. Returns
/// the number of writes.
///
/// # Errors
///
/// The first write or refusal that breaks this.
pub fn accepted_in_order(events: &[Event]) -> Result<usize, Violation> {
    let mut newest: Option<FencingToken> = None;
    let mut newest_at = None;
    let mut writes = 0;
    for (index, event) in events.iter().enumerate() {
        match event.what {
            What::Wrote(token) => {
                if newest > Some(token) {
                    let what = format!(
                        "a write under token {token} was taken after one under a newer token"
                    );
                    return wrong(events, index, newest_at, what);
                }
                (newest, newest_at, writes) = (Some(token), Some(index), writes + 1);
            }
            What::WriteRefused(token, true) => {
                let what = format!(
                    "the write of a valid holder under token {token} was refused, for another held the lock after it"
                );
                return wrong(events, index, newest_at, what);
            }
            _ => {}
        }
    }
    Ok(writes)
}

#[cfg(test)]
mod tests {
    use super::super::history::told;
    use super::*;

    fn token(number: u64) -> FencingToken {
        FencingToken::new(number)
    }

    #[test]
    fn rising_tokens_pass() {
        let history = told(&[
            (0, What::Asked),
            (1, What::Asked),
            (1, What::Granted(token(5))),
            (0, What::Granted(token(9))),
        ]);
        assert_eq!(grants_rise(&history), Ok(2));
    }

    #[test]
    fn asks_that_overlap_may_be_granted_either_way() {
        let history = told(&[
            (0, What::Asked),
            (1, What::Asked),
            (0, What::Granted(token(9))),
            (1, What::Granted(token(5))),
        ]);
        assert_eq!(grants_rise(&history), Ok(2));
    }

    #[test]
    fn a_token_that_falls_or_repeats_is_found() {
        let falls = told(&[
            (0, What::Asked),
            (0, What::Granted(token(9))),
            (1, What::Asked),
            (1, What::Granted(token(5))),
        ]);
        assert!(grants_rise(&falls).is_err());
        let repeats = told(&[
            (0, What::Asked),
            (1, What::Asked),
            (0, What::Granted(token(9))),
            (1, What::Granted(token(9))),
        ]);
        assert!(grants_rise(&repeats).unwrap_err().what.contains("twice"));
    }

    #[test]
    fn a_register_that_takes_an_old_token_is_found() {
        let history = told(&[(0, What::Wrote(token(2))), (1, What::Wrote(token(1)))]);
        assert!(accepted_in_order(&history).is_err());
        let history = told(&[(0, What::Wrote(token(2))), (0, What::Wrote(token(2)))]);
        assert_eq!(accepted_in_order(&history), Ok(2));
    }

    #[test]
    fn a_valid_holder_that_is_refused_is_found() {
        let late = What::WriteRefused(token(1), false);
        assert_eq!(accepted_in_order(&told(&[(0, late)])), Ok(0));
        let valid = What::WriteRefused(token(1), true);
        assert!(accepted_in_order(&told(&[(0, valid)])).is_err());
    }
}
