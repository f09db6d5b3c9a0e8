//! What holds in addition where a request takes no time: grants come in the order of arrival, and without delay.

use std::time::Duration;

use super::client::Trouble;
use crate::checkers::{Event, What};

/// Timers have whole milliseconds, and a hand-over may take some of them.
const AT_ONCE: Duration = Duration::from_millis(10);

/// An event of a history: a client's request, grant or release.
pub(super) struct Step<'a> {
    pub(super) at: Duration,
    pub(super) client: usize,
    pub(super) what: &'a What,
}

impl<'a> Step<'a> {
    pub(super) fn of(event: &'a Event) -> Self {
        Self {
            at: event.at,
            client: event.client,
            what: &event.what,
        }
    }
}

/// One request that waited until `ended`.
#[derive(Clone, Copy)]
struct Request {
    client: usize,
    asked: Duration,
    ended: Duration,
    granted: bool,
    /// Since when no client was known to hold the object when the wait ended.
    free_since: Option<Duration>,
}

/// Checks that requests are granted in the order of their arrival, and free objects at once. For `patience` after a
/// fault its traces may delay a grant.
pub(super) fn check<'a>(
    steps: impl Iterator<Item = Step<'a>>,
    troubles: &[Trouble],
    patience: Duration,
) -> Result<(), String> {
    let requests = requests(steps);
    let sound = |request: &Request| {
        let own = |t: &&Trouble| t.client.is_none_or(|client| client == request.client);
        !troubles
            .iter()
            .filter(own)
            .any(|t| t.meets(request.asked, request.ended))
    };
    let mut granted: Vec<&Request> = requests.iter().filter(|one| one.granted).collect();
    granted.sort_by_key(|request| request.asked);
    // From the last to the first: the earliest grant among later requests.
    let mut earliest: Option<&Request> = None;
    let mut same: Vec<&Request> = Vec::new();
    for request in granted.into_iter().rev() {
        if same.last().is_some_and(|last| last.asked > request.asked) {
            for other in same.drain(..) {
                if earliest.is_none_or(|one| other.ended < one.ended) {
                    earliest = Some(other);
                }
            }
        }
        same.push(request);
        if let Some(later) = earliest
            && later.ended < request.ended
            && sound(request)
        {
            return Err(format!(
                "client {} asked at {:.3?} and was granted at {:.3?}, after client {}, which asked at {:.3?} and was granted at {:.3?}",
                request.client,
                request.asked,
                request.ended,
                later.client,
                later.asked,
                later.ended
            ));
        }
    }
    for request in &requests {
        let Some(free) = request.free_since else {
            continue;
        };
        let idle = request.ended.saturating_sub(free);
        let calm = |t: &Trouble| t.meets(free.saturating_sub(patience), request.ended);
        if idle > AT_ONCE && !troubles.iter().any(calm) {
            return Err(format!(
                "client {} asked at {:.3?} and was not granted until {:.3?}, though no client had it for {idle:.3?}",
                request.client, request.asked, request.ended
            ));
        }
    }
    Ok(())
}

fn requests<'a>(steps: impl Iterator<Item = Step<'a>>) -> Vec<Request> {
    // The clients that wait, and those that hold it.
    let mut asking: Vec<(usize, Duration)> = Vec::new();
    let mut holding: Vec<usize> = Vec::new();
    let mut free = Some(Duration::ZERO);
    // The client that began to release, and when.
    let mut releasing: Option<(usize, Duration)> = None;
    let mut requests = Vec::new();
    for step in steps {
        let at = step.at;
        match step.what {
            // A holder that asks does not wait: a downgrade.
            What::Asked
                if holding.contains(&step.client) || releasing == Some((step.client, at)) => {}
            What::Asked => {
                // One that it asked before died with it.
                asking.retain(|(client, _)| *client != step.client);
                asking.push((step.client, at));
            }
            What::Granted(_) | What::Refused | What::Unknown => {
                let granted = matches!(step.what, What::Granted(_));
                let asked = asking.iter().position(|(client, _)| *client == step.client);
                if let Some(place) = asked {
                    let (client, asked) = asking.swap_remove(place);
                    requests.push(Request {
                        client,
                        asked,
                        ended: at,
                        granted,
                        free_since: free.map(|since| since.max(asked)),
                    });
                }
                if granted {
                    holding.retain(|client| *client != step.client);
                    holding.push(step.client);
                    free = None;
                }
            }
            What::Released(_) | What::Ended(_) | What::Releasing(_) => {
                holding.retain(|client| *client != step.client);
                if holding.is_empty() {
                    free = Some(free.unwrap_or(at).max(at));
                }
            }
            _ => {}
        }
        if matches!(step.what, What::Releasing(_)) {
            releasing = Some((step.client, at));
        }
    }
    requests
}

#[cfg(test)]
mod tests {
    use tenure_core::FencingToken;

    use super::*;

    fn judged(lines: &[(u64, usize, What)], troubles: &[Trouble]) -> Result<(), String> {
        let steps = lines.iter().map(|(at, client, what)| Step {
            at: Duration::from_secs(*at),
            client: *client,
            what,
        });
        check(steps, troubles, Duration::from_secs(2))
    }

    fn granted(token: u64) -> What {
        What::Granted(FencingToken::new(token))
    }

    fn releasing(token: u64) -> What {
        What::Releasing(FencingToken::new(token))
    }

    fn trouble(client: Option<usize>, from: u64, to: u64) -> Trouble {
        Trouble {
            client,
            from: Duration::from_secs(from),
            to: Duration::from_secs(to),
        }
    }

    #[test]
    fn waiter_overtaken_by_a_later_one_is_found_unless_it_was_in_trouble() {
        let lines = [
            (10, 0, What::Asked),
            (10, 0, granted(1)),
            (11, 1, What::Asked),
            (12, 2, What::Asked),
            (13, 0, releasing(1)),
            (13, 2, granted(2)),
            (14, 2, releasing(2)),
            (14, 1, granted(3)),
        ];
        assert!(judged(&lines, &[]).is_err());
        assert_eq!(judged(&lines, &[trouble(Some(1), 12, 12)]), Ok(()));
        assert!(judged(&lines, &[trouble(Some(2), 12, 12)]).is_err());
    }

    #[test]
    fn request_that_died_with_its_client_is_not_the_next_one() {
        let lines = [
            (1, 0, What::Asked),
            (20, 1, What::Asked),
            (20, 1, granted(1)),
            (21, 1, releasing(1)),
            (22, 0, What::Asked),
            (22, 0, granted(2)),
        ];
        assert_eq!(judged(&lines, &[trouble(Some(0), 1, 2)]), Ok(()));
    }

    #[test]
    fn late_grant_is_found_unless_the_dead_may_have_been_in_the_way() {
        let lines = [
            (10, 0, What::Asked),
            (10, 0, granted(1)),
            (11, 1, What::Asked),
            (13, 0, releasing(1)),
            (14, 1, granted(2)),
        ];
        assert!(judged(&lines, &[]).is_err());
        assert_eq!(judged(&lines, &[trouble(Some(5), 9, 12)]), Ok(()));
        assert!(judged(&lines, &[trouble(Some(5), 1, 2)]).is_err());
        let given_up = [(1, 1, What::Asked), (4, 1, What::Unknown)];
        assert!(judged(&given_up, &[]).is_err());
    }
}
