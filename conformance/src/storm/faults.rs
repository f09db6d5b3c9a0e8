//! What goes wrong in a run, and when: drawn from the seed before anything begins.

use std::time::Duration;

use crate::cases::Random;
use crate::harness::{Harness, Need};

/// What can be done to a client, to its link, or to the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Kind {
    /// The process of a client stands still, as by SIGSTOP, and goes on.
    ClientPaused,
    /// The process of a client ends without a farewell, as by SIGKILL, and another takes its place.
    ClientKilled,
    /// A client gives up what it is waiting for.
    Cancelled,
    /// An operator ends the session of a client.
    SessionEnded,
    /// Nothing passes between a client and the store.
    CutOff,
    /// What a client asks arrives, and the answers do not.
    AnswersLost,
    /// What a client asks arrives, and the answers come later.
    AnswersLate,
    /// A client's connection is reset.
    Reset,
    /// A client's connection is reset in the middle of an answer.
    ResetMidway,
    /// Nothing passes between anybody and the store.
    AllCutOff,
    /// The store stands still, as by SIGSTOP, and goes on.
    StorePaused,
    /// The store is killed, as by SIGKILL, and started again with what it has kept.
    StoreKilled,
    /// What operators do in passing: compaction, scripts forgotten, connections closed.
    Disturbed,
    /// A minority of the members falls silent, with the leader in it, and comes back.
    MinorityLost,
    /// The member that would take over misses what is acknowledged without it for a while. Then the one that serves
    /// is killed, and that takes over; where members come back, the one that was killed does.
    FailedOver,
    /// The store's wall clock jumps forward, by much more than a TTL.
    ClockForward,
    /// The store's wall clock jumps back.
    ClockBack,
}

impl Kind {
    /// All there are, in the order of reports.
    pub const ALL: &[Self] = &[
        Self::ClientPaused,
        Self::ClientKilled,
        Self::Cancelled,
        Self::SessionEnded,
        Self::CutOff,
        Self::AnswersLost,
        Self::AnswersLate,
        Self::Reset,
        Self::ResetMidway,
        Self::AllCutOff,
        Self::StorePaused,
        Self::StoreKilled,
        Self::Disturbed,
        Self::MinorityLost,
        Self::FailedOver,
        Self::ClockForward,
        Self::ClockBack,
    ];

    /// In the words of a report.
    pub const fn word(self) -> &'static str {
        match self {
            Self::ClientPaused => "client paused",
            Self::ClientKilled => "client killed",
            Self::Cancelled => "call cancelled",
            Self::SessionEnded => "session ended by operator",
            Self::CutOff => "client cut off",
            Self::AnswersLost => "answers lost",
            Self::AnswersLate => "answers late",
            Self::Reset => "connection reset",
            Self::ResetMidway => "reset midway",
            Self::AllCutOff => "all cut off",
            Self::StorePaused => "store paused",
            Self::StoreKilled => "store killed",
            Self::Disturbed => "store disturbed",
            Self::MinorityLost => "minority lost, returned",
            Self::FailedOver => "failover",
            Self::ClockForward => "clock set forward",
            Self::ClockBack => "clock set back",
        }
    }

    /// Whether this harness can bring it about.
    pub fn possible(self, harness: &dyn Harness) -> bool {
        let offers = |need| harness.offers().contains(&need);
        match self {
            // Clients are ours, whatever the store.
            Self::ClientPaused | Self::ClientKilled | Self::Cancelled => true,
            Self::SessionEnded => offers(Need::Revoke),
            Self::CutOff | Self::AllCutOff => offers(Need::Silence),
            Self::AnswersLost => offers(Need::Silence) && offers(Need::Mute),
            Self::AnswersLate => offers(Need::Silence) && offers(Need::Hold),
            // Where a connection is the lease no case can look behind its reset, so it is not
            // offered; here it ends a session, as much else does.
            Self::Reset | Self::ResetMidway => {
                offers(Need::Cut) || (offers(Need::Silence) && offers(Need::Survivors))
            }
            Self::StorePaused => offers(Need::Pause),
            // A store that ends with its clients has no clients to judge it.
            Self::StoreKilled => offers(Need::Restart) && offers(Need::Survivors),
            Self::Disturbed => offers(Need::Disturb),
            Self::MinorityLost => offers(Need::LoseMinority) && offers(Need::ReturnMembers),
            Self::FailedOver => offers(Need::Failover) && offers(Need::Survivors),
            Self::ClockForward | Self::ClockBack => offers(Need::ClockJump),
        }
    }

    /// Whether it meets exactly one client, which is known before it begins.
    pub(super) const fn is_about_one(self) -> bool {
        matches!(
            self,
            Self::ClientPaused
                | Self::ClientKilled
                | Self::Cancelled
                | Self::CutOff
                | Self::AnswersLost
                | Self::AnswersLate
                | Self::Reset
                | Self::ResetMidway
        )
    }

    /// Whether a process of the store ends by it, and with that what is in its memory alone.
    pub(super) const fn ends_processes(self) -> bool {
        matches!(self, Self::StoreKilled | Self::FailedOver)
    }

    /// Whether this harness can bring it about one time only: nobody is left to take over then, for the dead stay
    /// dead.
    pub fn only_once(self, harness: &dyn Harness) -> bool {
        self == Self::FailedOver && !harness.offers().contains(&Need::ReturnMembers)
    }

    /// Whether set-ups of one store are there for its sake: a run without it says nothing about them.
    pub const fn is_event(self) -> bool {
        matches!(
            self,
            Self::MinorityLost | Self::FailedOver | Self::ClockForward | Self::ClockBack
        )
    }
}

/// One fault of a schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What.
    pub kind: Kind,
    /// To which client, where it is about one; any number.
    pub client: u64,
    /// Rather to whoever has one of the locks, or leads, at that moment.
    pub holder: bool,
    /// For how long, where it lasts.
    pub lasts: Duration,
    /// How many bytes pass before a reset midway.
    pub bytes: u64,
    /// How long everybody is left in peace after it.
    pub peace: Duration,
}

/// The faults of a seed: of each kind one, in some order, before any comes again. Events that there must be come
/// early, with others between them.
#[derive(Clone, Debug)]
pub struct Schedule {
    /// What is dealt again and again.
    kinds: Vec<Kind>,
    deck: Vec<Kind>,
    /// What has to come yet.
    due: Vec<Kind>,
    /// Whether it is the turn of something that is due.
    turn: bool,
    ttl: Duration,
    random: Random,
}

impl Schedule {
    /// The schedule of `seed` for a store on which these `kinds` are possible.
    pub(super) fn new(kinds: Vec<Kind>, ttl: Duration, seed: u64) -> Self {
        Self {
            deck: kinds.clone(),
            kinds,
            due: Vec::new(),
            turn: true,
            ttl,
            random: Random::seeded(seed ^ 0xFA_17),
        }
    }

    /// The same, in which these kinds come early: at every other place, until all of them were there.
    pub(super) fn due(mut self, kinds: Vec<Kind>) -> Self {
        self.deck.retain(|kind| !kinds.contains(kind));
        self.due = kinds;
        self
    }

    /// The same, in which these kinds come no second time.
    pub(super) fn once(mut self, kinds: &[Kind]) -> Self {
        self.kinds.retain(|kind| !kinds.contains(kind));
        self
    }

    /// What should have come and has not.
    pub(super) fn missing(&self) -> &[Kind] {
        &self.due
    }
}

impl Iterator for Schedule {
    type Item = Fault;

    fn next(&mut self) -> Option<Fault> {
        if self.deck.is_empty() {
            self.deck.clone_from(&self.kinds);
        }
        let random = &mut self.random;
        let turn = !self.due.is_empty() && (self.turn || self.deck.is_empty());
        self.turn = !turn;
        let deck = match turn {
            true => &mut self.due,
            false => &mut self.deck,
        };
        let card = random.below(deck.len() as u64);
        let card = usize::try_from(card).unwrap_or_default();
        let kind = (card < deck.len()).then(|| deck.swap_remove(card))?;
        // Half of them are over before a lease is; the others are not.
        let lasts = match random.below(2) {
            0 => random.up_to(self.ttl / 2),
            _ => self.ttl + random.up_to(self.ttl / 2),
        };
        Some(Fault {
            kind,
            client: random.next(),
            holder: random.below(4) != 0,
            lasts,
            bytes: random.below(4_000),
            peace: self.ttl / 8 + random.up_to(self.ttl / 2),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_schedule_is_the_seeds_alone_and_leaves_no_kind_out() {
        let ttl = Duration::from_secs(2);
        let of = |seed| Schedule::new(Kind::ALL.to_vec(), ttl, seed).take(40);
        let first: Vec<_> = of(7).collect();
        assert_eq!(first, of(7).collect::<Vec<_>>());
        assert_ne!(first, of(8).collect::<Vec<_>>());
        let round: HashSet<_> = first.iter().take(Kind::ALL.len()).map(|f| f.kind).collect();
        assert_eq!(round.len(), Kind::ALL.len());
        assert!(first.iter().any(|fault| fault.lasts > ttl));
        assert_eq!(Schedule::new(Vec::new(), ttl, 1).next(), None);
    }

    #[test]
    fn events_come_early_and_what_can_be_once_is() {
        const CLIENTS: [Kind; 3] = [Kind::ClientPaused, Kind::ClientKilled, Kind::Cancelled];
        let ttl = Duration::from_secs(2);
        let kinds = [&CLIENTS[..], &[Kind::ClockForward, Kind::FailedOver]].concat();
        let mut orders = HashSet::new();
        for seed in 1..=20 {
            let schedule = Schedule::new(kinds.clone(), ttl, seed);
            let schedule = schedule.due(vec![Kind::ClockForward, Kind::FailedOver]);
            let mut schedule = schedule.once(&[Kind::FailedOver]);
            assert_eq!(schedule.missing().len(), 2);
            let first: Vec<Kind> = schedule.by_ref().take(3).map(|fault| fault.kind).collect();
            assert!(schedule.missing().is_empty());
            assert!(first[0].is_event() && first[2].is_event(), "{first:?}");
            assert!(CLIENTS.contains(&first[1]), "{first:?}");
            orders.insert(first[0]);
            let later: Vec<Kind> = schedule.take(40).map(|fault| fault.kind).collect();
            assert!(later.contains(&Kind::ClockForward), "{later:?}");
            assert!(!later.contains(&Kind::FailedOver), "{later:?}");
        }
        assert_eq!(orders.len(), 2, "either comes first");
    }
}
