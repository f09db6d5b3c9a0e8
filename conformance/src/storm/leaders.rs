//! An election: candidates that lead, speak and leave, and others that look on.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tenure_core::{Effect, ElectionHandle, Error, ErrorKind, Leader, Leadership, Observer, Result};
use tokio::time::Instant;

use super::client::{Client, Role, Shared, clients, of_role};
use super::locks::Lock;
use crate::case::Outcome;
use crate::cases::open_on;
use crate::checkers::election::{ElectionAnswer, ElectionCall, Seen};
use crate::checkers::operation::Ticket;
use crate::checkers::{Fate, Journal, What};
use crate::harness::Harness;

/// One election.
pub(super) struct Office {
    /// Whoever leads, as if it were a lock: with tokens, and a register behind it.
    pub(super) seat: Lock,
    /// What was proclaimed and seen.
    pub(super) words: Journal<ElectionCall, ElectionAnswer>,
    /// Every campaign that was ever begun, and under which token it was won.
    stood: Mutex<HashMap<u64, Option<u64>>>,
    /// Names the observers: a client has one after the other.
    observers: AtomicU64,
    /// What each client that looks on saw last.
    latest: Mutex<BTreeMap<usize, Option<Seen>>>,
    /// How often somebody who looks on has waited for a moment, or been shown something.
    looks: AtomicU64,
    /// Nobody need look on any more.
    over: AtomicBool,
}

impl Office {
    pub(super) fn new(start: Instant) -> Self {
        Self {
            seat: Lock::new("the office"),
            words: Journal::since(start),
            stood: Mutex::default(),
            observers: AtomicU64::new(0),
            latest: Mutex::default(),
            looks: AtomicU64::new(0),
            over: AtomicBool::new(false),
        }
    }

    fn saw(&self, client: usize, seen: Option<Seen>) {
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        latest.insert(client, seen);
    }

    fn latest(&self) -> BTreeMap<usize, Option<Seen>> {
        let latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        latest.clone()
    }

    fn stood(&self) -> MutexGuard<'_, HashMap<u64, Option<u64>>> {
        self.stood.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody is about to stand: its number, and the value that nobody else has.
    fn stands(&self) -> (u64, String) {
        let mut stood = self.stood();
        let number = stood.len() as u64;
        stood.insert(number, None);
        (number, format!("candidate {number}"))
    }

    /// Elected, in all records.
    fn elected(&self, client: usize, candidate: u64, lead: &Leadership) {
        let token = lead.token().get();
        self.stood().insert(candidate, Some(token));
        self.seat.record(client, What::Granted(lead.token()));
        let ticket = self.words.call(client, ElectionCall::Campaign);
        self.words.done(ticket, ElectionAnswer::Elected { token });
    }

    /// A leader is about to speak: so and so it is noted, and these are its words.
    fn speaks(&self, client: usize, lead: &Leadership, number: u64) -> (Ticket, String) {
        let token = lead.token().get();
        let call = ElectionCall::Proclaim { token, number };
        (self.words.call(client, call), format!("{token} {number}"))
    }

    /// What is known of what became of it; whether it was heard.
    fn spoke(&self, ticket: Ticket, answer: Option<Result<()>>) -> bool {
        let fate = match answer {
            Some(Ok(())) => Fate::Done(ElectionAnswer::Done),
            Some(Err(error)) if error.effect() == Effect::None => match error.kind() {
                ErrorKind::Lost => Fate::Done(ElectionAnswer::NotLeader),
                _ => Fate::Failed,
            },
            _ => Fate::Unknown,
        };
        let heard = fate == Fate::Done(ElectionAnswer::Done);
        self.words.end(ticket, fate);
        heard
    }
}

/// What a leader's value says. Its own token has to be in it, once it has proclaimed anything; before that, the number
/// of a campaign, of which nothing is left to win once it was won. An earlier try at it, whose answer was lost, may have led
/// under a lower token.
fn seen(leader: Option<&Leader>, stood: &HashMap<u64, Option<u64>>) -> Result<Option<Seen>> {
    let Some(leader) = leader else {
        return Ok(None);
    };
    let (text, token) = (leader.text(), leader.token().get());
    let number = match text.split_once(' ') {
        Some(("candidate", number)) => {
            let won = number
                .parse()
                .ok()
                .and_then(|number: u64| stood.get(&number));
            won.filter(|won| won.is_none_or(|won| token <= won))
                .map(|_| 0)
        }
        Some((own, number)) if own == token.to_string() => number.parse().ok(),
        _ => None,
    };
    let seen = number.map(|number| Seen { token, number });
    seen.map(Some).ok_or_else(|| {
        let what =
            format!("the leader with token {token} is shown with `{text}`, which it never said");
        Error::new(ErrorKind::Internal, what)
    })
}

impl Client {
    pub(super) async fn stand(&mut self) {
        while self.goes_on() {
            if let Some(session) = self.session().await
                && let Ok(election) = session.election(self.shared.office.seat.name())
                && let Some(lead) = self.campaign(&election).await
            {
                self.achieved();
                self.reign(&election, lead).await;
            }
            self.think().await;
        }
    }

    fn count_election(&self) {
        let counter = &self.shared.election_operations;
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// One try to be elected, in one way of many, given up in some cases.
    async fn campaign(&mut self, election: &ElectionHandle) -> Option<Leadership> {
        let short = self.random.up_to(Duration::from_millis(400));
        let way = self.random.below(6);
        let seat = &self.shared.office.seat;
        let (candidate, value) = self.shared.office.stands();
        seat.record(self.number, What::Asked);
        let answer = match way {
            0 => self.attempt(election.try_campaign(value)).await,
            1 => self.attempt(election.campaign_timeout(value, short)).await,
            2 => {
                let waiting = tokio::time::timeout(short, election.campaign(value));
                self.attempt(waiting).await.and_then(|in_time| in_time.ok())
            }
            _ => {
                let campaigning = election.campaign(value);
                self.attempt_in(Some(&seat.occupancy), campaigning).await
            }
        };
        self.count_election();
        match answer {
            Some(Ok(lead)) => {
                self.shared.office.elected(self.number, candidate, &lead);
                Some(lead)
            }
            Some(Err(error)) if error.effect() == Effect::None => {
                seat.record(self.number, What::Refused);
                None
            }
            _ => {
                seat.record(self.number, What::Unknown);
                None
            }
        }
    }

    /// Reads the register, speaks a few times, writes back what it read plus one; then leaves in some way.
    async fn reign(&mut self, election: &ElectionHandle, lead: Leadership) {
        let shared = std::sync::Arc::clone(&self.shared);
        let (seat, token) = (&shared.office.seat, lead.token());
        let (fenced, since) = (shared.plan.fenced, shared.now());
        let read = seat.access_under(fenced, self.number, &lead, |value| *value);
        for number in 1..=self.random.below(4) {
            self.speak(&lead, number).await;
            if self.random.below(4) == 0 {
                self.ask(election, Some(&lead)).await;
            }
        }
        if self.random.below(16) == 0 {
            // Sometimes for so long that what comes late finds it here.
            tokio::time::sleep(self.random.up_to(Duration::from_millis(200))).await;
            self.work(1).await;
            self.ask(election, Some(&lead)).await;
        }
        if seat.ambush.pass(self.number).await {
            // Whoever leads by now gets a chance to come to the register first.
            tokio::time::sleep(self.random.up_to(Duration::from_millis(60))).await;
        }
        if let Some(read) = read {
            // Without a look at the leadership: it is for the register to refuse.
            seat.count_up(fenced, self.number, &lead, read);
        }
        if self.random.below(4) == 0 {
            // The same: it is for the store to refuse.
            self.speak(&lead, 9).await;
        }
        if !seat.looks(self.number, &lead) {
            self.lost("its leadership", since);
            return;
        }
        seat.record(self.number, What::Releasing(token));
        if self.random.below(4) == 0 {
            drop(lead);
        } else if let Some(Ok(())) = self.attempt(lead.resign()).await {
            seat.record(self.number, What::Released(token));
        }
        self.count_election();
    }

    /// One proclamation, of which one in eight is given up at some moment.
    async fn speak(&mut self, lead: &Leadership, number: u64) {
        let hasty = self.random.below(8) == 0;
        let moment = self.random.up_to(Duration::from_millis(3));
        let office = &self.shared.office;
        let (ticket, words) = office.speaks(self.number, lead, number);
        let proclaiming = lead.proclaim(words);
        let answer = match hasty {
            true => tokio::time::timeout(moment, proclaiming).await.ok(),
            false => self.attempt(proclaiming).await,
        };
        office.spoke(ticket, answer);
        self.count_election();
    }

    /// Who leads? Says whether there was an answer. One who leads itself has to be shown itself.
    async fn ask(&self, election: &ElectionHandle, lead: Option<&Leadership>) -> bool {
        let office = &self.shared.office;
        let words = &office.words;
        let leads = lead.filter(|lead| lead.is_valid());
        let call = leads.map_or(ElectionCall::Ask, |lead| ElectionCall::AskLeading {
            token: lead.token().get(),
        });
        let ticket = words.call(self.number, call);
        let answer = self.attempt(election.leader()).await;
        self.count_election();
        let Some(Ok(leader)) = answer else {
            // It changes nothing.
            words.end(ticket, Fate::Failed);
            return false;
        };
        let seen = seen(leader.as_ref(), &office.stood());
        match seen {
            // Whom it may be told of is open.
            Ok(_) if leads.is_some_and(|lead| !lead.is_valid()) => words.end(ticket, Fate::Failed),
            Ok(seen) => words.done(ticket, ElectionAnswer::Shows(seen)),
            Err(error) => self.shared.broke(error.chain().to_string()),
        }
        true
    }

    /// Looks on until there is nothing more to be seen.
    pub(super) async fn look_on(&mut self) {
        const MOMENT: Duration = Duration::from_millis(200);
        let mut watch: Option<(u64, Observer)> = None;
        while !self.shared.office.over.load(Ordering::Relaxed) {
            if watch.is_none() {
                watch = self.observe().await;
            }
            let Some((observer, following)) = &mut watch else {
                continue;
            };
            let next = self.attempt(tokio::time::timeout(MOMENT, following.next()));
            let next = next.await;
            self.shared.office.looks.fetch_add(1, Ordering::Relaxed);
            match next {
                Some(Ok(Some(Ok(leader)))) => self.note_sight(*observer, leader.as_ref()),
                Some(Ok(Some(Err(error)))) => {
                    let what = format!(
                        "an observer ended with an error: {error}",
                        error = error.chain()
                    );
                    self.shared.broke(what);
                    watch = None;
                }
                Some(Ok(None)) => {
                    let what = "an observer ended though its session was not closed";
                    self.shared.broke(what.to_owned());
                    watch = None;
                }
                _ => {}
            }
            // In the end it has to see the last with what it has: another one would begin with that.
            if self.random.below(100) == 0 && self.goes_on() {
                watch = None;
            }
            if self.random.below(8) == 0
                && self.goes_on()
                && let Some(session) = self.session().await
                && let Ok(election) = session.election(self.shared.office.seat.name())
                && self.ask(&election, None).await
            {
                self.achieved();
            }
        }
    }

    async fn observe(&mut self) -> Option<(u64, Observer)> {
        let session = self.session().await?;
        let office = &self.shared.office;
        let election = session.election(office.seat.name()).ok()?;
        let observer = office.observers.fetch_add(1, Ordering::Relaxed);
        Some((observer, election.observe()))
    }

    fn note_sight(&self, observer: u64, leader: Option<&Leader>) {
        let office = &self.shared.office;
        let seen = seen(leader, &office.stood());
        match seen {
            Ok(seen) => {
                let call = ElectionCall::Watch { observer };
                let ticket = office.words.call(self.number, call);
                office.words.done(ticket, ElectionAnswer::Shows(seen));
                office.saw(self.number, seen);
                self.shared.progress.was_shown(self.number);
            }
            Err(error) => self.shared.broke(error.chain().to_string()),
        }
    }
}

/// There must be a leader once more, and everybody who looks on must come to see it.
pub(super) async fn last_look(
    harness: &dyn Harness,
    shared: &Shared,
    patience: Duration,
) -> std::result::Result<(), Outcome> {
    let office = &shared.office;
    let until = Instant::now() + patience;
    loop {
        office.seat.record(clients(), What::Asked);
        let error = match once_more(harness, shared, until).await {
            Ok(last) => {
                office.over.store(true, Ordering::Relaxed);
                return last.map_err(Outcome::violated);
            }
            Err(error) => error,
        };
        office.seat.record(clients(), What::Unknown);
        if error.kind() == ErrorKind::TimedOut || Instant::now() >= until {
            return Err(Outcome::violated(format!(
                "nobody could be elected {patience:?} after everybody had left: {error}",
                error = error.chain()
            )));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Leads until all have seen it.
async fn once_more(
    harness: &dyn Harness,
    shared: &Shared,
    until: Instant,
) -> Result<std::result::Result<(), String>> {
    let office = &shared.office;
    let session = open_on(&harness.connect().await?, shared.ttl * 5).await?;
    let election = session.election(office.seat.name())?;
    let patience = until.saturating_duration_since(Instant::now());
    let (candidate, value) = office.stands();
    let lead = election.campaign_timeout(value, patience).await?;
    office.elected(clients(), candidate, &lead);
    let (ticket, words) = office.speaks(clients(), &lead, 1);
    if !office.spoke(ticket, Some(lead.proclaim(words).await)) {
        let what = "the last leader could not proclaim";
        return Err(Error::new(ErrorKind::Unavailable, what));
    }
    let token = lead.token().get();
    let converged = converge(shared, Seen { token, number: 1 }, until).await;
    office.seat.record(clients(), What::Releasing(lead.token()));
    let token = lead.token();
    lead.resign().await?;
    office.seat.record(clients(), What::Released(token));
    session.close().await?;
    Ok(converged)
}

/// Where all is calm, those who look on have to see it as soon as anybody has to have anything; they must have come to
/// look for that, so often that the machine cannot be what keeps it from them.
async fn converge(shared: &Shared, last: Seen, until: Instant) -> std::result::Result<(), String> {
    const LOOKS: u64 = 12;
    let looks = || shared.office.looks.load(Ordering::Relaxed);
    let (began, before) = (Instant::now(), looks());
    let late =
        || shared.plan.patient && began.elapsed() >= shared.patience() && looks() - before >= LOOKS;
    loop {
        let latest = shared.office.latest();
        let behind = |client: &usize| latest.get(client) != Some(&Some(last));
        let Some(client) = of_role(Role::Observer).find(behind) else {
            return Ok(());
        };
        if Instant::now() >= until || late() {
            return Err(format!(
                "the election: client {client} looks on, and has not come to see {last:?} in {:?}, but {:?}",
                began.elapsed(),
                latest.get(&client)
            ));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[cfg(test)]
mod tests {
    use tenure_core::FencingToken;

    use super::*;

    #[test]
    fn a_leader_is_one_who_stood_with_what_it_said() {
        let stood = HashMap::from([(0, Some(5)), (1, None)]);
        let shown = |token, value: &str| {
            let leader = Leader::new(value.as_bytes(), FencingToken::new(token));
            seen(Some(&leader), &stood).ok().flatten()
        };
        let number = |token, number| Some(Seen { token, number });
        assert_eq!(shown(5, "5 2"), number(5, 2));
        assert_eq!(shown(5, "candidate 0"), number(5, 0));
        assert_eq!(
            shown(4, "candidate 0"),
            number(4, 0),
            "a try that nobody heard of"
        );
        assert_eq!(shown(9, "candidate 1"), number(9, 0), "it may not know yet");
        for (token, value) in [(6, "candidate 0"), (9, "candidate 2"), (9, "0"), (6, "5 2")] {
            assert_eq!(shown(token, value), None, "{token} {value}");
        }
        assert_eq!(seen(None, &stood).ok(), Some(None));
    }
}
