//! Elections that break the rules.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tenure_conformance::async_trait;
use tenure_core::backend::{Ask, Election, Grant, Settle, Sighting};
use tenure_core::{Error, ErrorKind, FencingToken, Leader, Name, Result};
use tenure_memory::{Link, MemoryElection};

use super::World;

/// What is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Bug {
    /// Every campaign succeeds.
    EverybodyLeads,
    /// Every leadership has the same token.
    ConstantToken,
    /// Whoever proclaims is believed, and whoever resigns frees the office.
    Unfenced,
    /// A proclamation arrives once more a moment after the next one.
    Echo,
    /// A proclamation that found the link silent is not sent again.
    GivesUp,
    /// An observer looks every 15 seconds.
    PollingObserver,
    /// An observer hears of no vacancy.
    NoVacancies,
    /// What changed behind a silent link stays unseen until the next change.
    Forgetful,
    /// Nothing that happens after a restore of the store is news to an observer from before it.
    LivesInThePast,
    /// After each new state the observer is told the one before once more, as a newer one.
    GoesBack,
    /// Candidates look every 15 seconds whether nobody leads.
    PollingCandidate,
    /// The last to arrive leads first.
    LastInFirstOut,
    /// A refused candidate stays in line.
    TryQueues,
    /// A cancelled candidate stays in line.
    WithdrawNothing,
    /// A resignation does nothing, and says Ok.
    ResignNothing,
    /// A candidate whose session is gone is elected.
    ElectsTheDead,
    /// Nothing can be taken up.
    ReclaimNothing,
}

/// Which case must catch which mutant.
pub(crate) const CAUGHT: &[(super::Bug, &[&str])] = &[
    (
        super::Bug::Election(Bug::EverybodyLeads),
        &["e1_one_leads_at_a_time", "l4_leadership_try_leaves_nothing"],
    ),
    (
        super::Bug::Election(Bug::ConstantToken),
        &["e2_the_token_rises_with_each_leadership"],
    ),
    (
        super::Bug::Election(Bug::Unfenced),
        &[
            "e3_a_deposed_leader_changes_nothing",
            "e5_a_leadership_is_taken_up_after_a_restart",
        ],
    ),
    (
        super::Bug::Election(Bug::Echo),
        &["e3_the_last_proclamation_stands"],
    ),
    (
        super::Bug::Election(Bug::GivesUp),
        &["e3_a_proclamation_is_made_good_after_a_silence"],
    ),
    (
        super::Bug::Election(Bug::PollingObserver),
        &[
            "e4_an_observer_shows_every_change",
            "e4_an_observer_shows_the_end_of_a_dead_leader",
            "e4_an_observer_bears_disturbances",
        ],
    ),
    (
        super::Bug::Election(Bug::NoVacancies),
        &[
            "e4_an_observer_shows_every_change",
            "e4_an_observer_shows_the_end_of_a_dead_leader",
        ],
    ),
    (
        super::Bug::Election(Bug::Forgetful),
        &["e4_an_observer_that_was_cut_off_shows_the_last_state"],
    ),
    (
        super::Bug::Election(Bug::LivesInThePast),
        &["o4_observers_converge_after_a_restore"],
    ),
    (
        super::Bug::Election(Bug::GoesBack),
        &["e4_observers_of_a_turmoil_never_go_back"],
    ),
    (
        super::Bug::Election(Bug::PollingCandidate),
        &[
            "l3_leadership_is_handed_on_at_once",
            "e5_a_mass_death_delays_no_longer_than_stated",
        ],
    ),
    (
        super::Bug::Election(Bug::LastInFirstOut),
        &["l3_leadership_keeps_order_when_waiters_give_up"],
    ),
    (
        super::Bug::Election(Bug::TryQueues),
        &["l4_leadership_try_leaves_nothing"],
    ),
    (
        super::Bug::Election(Bug::WithdrawNothing),
        &["l5_leadership_cancelled_acquire_leaves_nothing"],
    ),
    (
        super::Bug::Election(Bug::ResignNothing),
        &[
            "l5_leadership_cancelled_acquire_leaves_nothing",
            "e5_a_cancelled_resignation_still_resigns",
        ],
    ),
    (
        super::Bug::Election(Bug::ElectsTheDead),
        &["e5_a_dead_candidate_is_never_elected"],
    ),
    (
        super::Bug::Election(Bug::ReclaimNothing),
        &["e5_a_leadership_is_taken_up_after_a_restart"],
    ),
];

/// A grant that the store knows nothing of.
struct Invented;

/// The elections of one session, with something broken.
pub(crate) struct MutantElection {
    inner: Arc<MemoryElection>,
    bug: Option<Bug>,
    world: Arc<World>,
    link: Link,
    /// The proclamation before, for the one that comes twice.
    before: Mutex<Option<Vec<u8>>>,
    echoes: AtomicU64,
    /// The state shown last, and the one before that is to be shown again.
    shown: Mutex<(Option<Sighting>, Option<Option<Leader>>)>,
}

impl MutantElection {
    pub(crate) fn new(
        inner: Arc<MemoryElection>,
        bug: Option<Bug>,
        world: &Arc<World>,
        link: Link,
    ) -> Self {
        Self {
            inner,
            bug,
            world: Arc::clone(world),
            link,
            before: Mutex::default(),
            echoes: AtomicU64::new(1_000),
            shown: Mutex::default(),
        }
    }

    fn is(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    fn invented(&self) -> Grant {
        let token = self.world.token.fetch_add(1, Ordering::SeqCst) + 1_000_000;
        Grant::new(FencingToken::new(token), "nowhere").attach(Invented)
    }

    /// The grant as the mutant shows it, with the true one inside.
    fn shown(&self, grant: Grant) -> Grant {
        let token = match self.bug {
            Some(Bug::ConstantToken) => FencingToken::new(7),
            _ => grant.token(),
        };
        Grant::new(token, grant.key().to_owned()).attach(grant)
    }

    fn leader_shown(&self, leader: Option<Leader>) -> Option<Leader> {
        leader.map(|leader| match self.bug {
            Some(Bug::ConstantToken) => Leader::new(leader.value(), FencingToken::new(7)),
            _ => leader,
        })
    }

    async fn poll(
        &self,
        ask: &Ask,
        value: &[u8],
        every: Duration,
        mine: impl Fn() -> bool,
    ) -> Result<Grant> {
        loop {
            if mine()
                && let Some(grant) = self.inner.try_campaign(ask, value).await?
            {
                return Ok(grant);
            }
            tokio::select! {
                () = tokio::time::sleep(every) => {}
                () = ask.withdrawn() => return Err(Error::withdrawn()),
            }
        }
    }

    async fn last_in_first_out(&self, ask: &Ask, value: &[u8]) -> Result<Grant> {
        let (name, nonce) = (ask.name().as_str().to_owned(), ask.nonce());
        let stack = |change: &dyn Fn(&mut Vec<u64>)| {
            let mut stacks = self.world.stacks.lock().unwrap();
            let stack = stacks.entry(name.clone()).or_default();
            change(stack);
            stack.last() == Some(&nonce)
        };
        stack(&|waiting| waiting.push(nonce));
        let every = Duration::from_millis(2);
        let got = self.poll(ask, value, every, || stack(&|_| {})).await;
        stack(&|waiting| waiting.retain(|other| *other != nonce));
        got
    }

    /// Waits for the next change, and swallows it if it happened behind a silent link.
    async fn forgetful(&self, name: &Name, mut after: Option<u64>) -> Result<Sighting> {
        loop {
            let mut looking = std::pin::pin!(self.inner.observe(name, after));
            let mut silent = false;
            let sighting = loop {
                tokio::select! {
                    biased;
                    sighting = &mut looking => break sighting?,
                    () = tokio::time::sleep(Duration::from_millis(2)) => {
                        silent |= self.link.fault().is_some();
                    }
                }
            };
            if !silent {
                return Ok(sighting);
            }
            // What the store has by now was never read.
            let now = self.inner.observe(name, None).await?;
            after = Some(now.order);
        }
    }

    /// Every second time the state before, under an order of its own.
    async fn back_and_forth(&self, name: &Name, after: Option<u64>) -> Result<Sighting> {
        let again = self.shown.lock().unwrap().1.take();
        if let (Some(leader), Some(after)) = (again, after) {
            return Ok(Sighting {
                order: after + 1,
                leader,
            });
        }
        let mut sighting = self
            .inner
            .observe(name, after.map(|after| after / 2))
            .await?;
        sighting.order *= 2;
        let mut shown = self.shown.lock().unwrap();
        let before = shown.0.replace(sighting.clone());
        shown.1 = before.map(|before| before.leader);
        Ok(sighting)
    }

    /// Writes as the one who leads now, whoever asks.
    async fn unfenced(&self, ask: &Ask, grant: &Grant, number: u64, value: &[u8]) -> Result<()> {
        let inner = grant.attachment::<Grant>().unwrap_or(grant);
        match self.inner.proclaim(ask, inner, number, value).await {
            // As good as done.
            Err(error) if error.kind() == ErrorKind::Lost => Ok(()),
            answer => answer,
        }
    }
}

#[async_trait]
impl Election for MutantElection {
    async fn try_campaign(&self, ask: &Ask, value: &[u8]) -> Result<Option<Grant>> {
        match self.bug {
            Some(Bug::EverybodyLeads) => Ok(Some(self.invented())),
            Some(Bug::TryQueues) => {
                let moment = Duration::from_millis(5);
                let waiting = tokio::time::timeout(moment, self.inner.campaign(ask, value)).await;
                let got = waiting.ok().transpose()?;
                Ok(got.map(|grant| self.shown(grant)))
            }
            _ => {
                let grant = self.inner.try_campaign(ask, value).await?;
                Ok(grant.map(|grant| self.shown(grant)))
            }
        }
    }

    async fn campaign(&self, ask: &Ask, value: &[u8]) -> Result<Grant> {
        let seldom = Duration::from_secs(15);
        let grant = match self.bug {
            Some(Bug::EverybodyLeads) => return Ok(self.invented()),
            Some(Bug::PollingCandidate) => self.poll(ask, value, seldom, || true).await,
            Some(Bug::LastInFirstOut) => self.last_in_first_out(ask, value).await,
            Some(Bug::ElectsTheDead) => match self.inner.campaign(ask, value).await {
                Err(error) if error.kind() == ErrorKind::Lost => return Ok(self.invented()),
                answer => answer,
            },
            _ => self.inner.campaign(ask, value).await,
        }?;
        Ok(self.shown(grant))
    }

    async fn proclaim(&self, ask: &Ask, grant: &Grant, number: u64, value: &[u8]) -> Result<()> {
        let inner = grant.attachment::<Grant>().unwrap_or(grant);
        match self.bug {
            Some(Bug::Unfenced) => self.unfenced(ask, grant, number, value).await,
            Some(Bug::GivesUp) => {
                let moment = Duration::from_millis(150);
                let proclaiming = self.inner.proclaim(ask, inner, number, value);
                let answer = tokio::time::timeout(moment, proclaiming).await;
                answer.unwrap_or(Ok(()))
            }
            Some(Bug::Echo) => {
                let echo = self.before.lock().unwrap().replace(value.to_vec());
                // Late ones are told by their number: this one lies about it.
                let number = self.echoes.fetch_add(2, Ordering::SeqCst);
                self.inner.proclaim(ask, inner, number, value).await?;
                if let Some(echo) = echo {
                    let (again, ask, grant) = (Arc::clone(&self.inner), ask.clone(), inner.clone());
                    tokio::spawn(async move {
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        let _ = again.proclaim(&ask, &grant, number + 1, &echo).await;
                    });
                }
                Ok(())
            }
            _ => self.inner.proclaim(ask, inner, number, value).await,
        }
    }

    async fn leader(&self, name: &Name) -> Result<Option<Leader>> {
        let leader = self.inner.leader(name).await?;
        Ok(self.leader_shown(leader))
    }

    async fn observe(&self, name: &Name, after: Option<u64>) -> Result<Sighting> {
        let sighting = match self.bug {
            Some(Bug::Forgetful) => self.forgetful(name, after).await,
            Some(Bug::GoesBack) => self.back_and_forth(name, after).await,
            Some(Bug::PollingObserver) if after.is_some() => {
                tokio::time::sleep(Duration::from_secs(15)).await;
                self.inner.observe(name, after).await
            }
            Some(Bug::LivesInThePast) => {
                let sighting = self.inner.observe(name, after).await;
                if after.is_some() && self.world.restored.load(Ordering::SeqCst) {
                    std::future::pending::<()>().await;
                }
                sighting
            }
            Some(Bug::NoVacancies) => {
                let mut after = after;
                loop {
                    let sighting = self.inner.observe(name, after).await?;
                    if sighting.leader.is_some() {
                        break Ok(sighting);
                    }
                    after = Some(sighting.order);
                }
            }
            _ => self.inner.observe(name, after).await,
        }?;
        Ok(Sighting {
            leader: self.leader_shown(sighting.leader),
            ..sighting
        })
    }
}

#[async_trait]
impl Settle for MutantElection {
    async fn release(&self, ask: &Ask, grant: &Grant) -> Result<()> {
        if grant.attachment::<Invented>().is_some() || self.is(Bug::ResignNothing) {
            return Ok(());
        }
        if self.is(Bug::Unfenced) {
            let store = self.world.store.backend();
            let name = ask.name().as_str();
            let first = store.keys().into_iter().find(|key| key.contains(name));
            if let Some(key) = first {
                store.delete(&key);
            }
            return Ok(());
        }
        let inner = grant.attachment::<Grant>().unwrap_or(grant);
        self.inner.release(ask, inner).await
    }

    async fn withdraw(&self, ask: &Ask) -> Result<()> {
        match self.bug {
            Some(Bug::WithdrawNothing | Bug::TryQueues) => Ok(()),
            _ => self.inner.withdraw(ask).await,
        }
    }

    async fn reclaim(&self, ask: &Ask, token: FencingToken) -> Result<Option<Grant>> {
        if self.is(Bug::ReclaimNothing) {
            return Ok(None);
        }
        let grant = self.inner.reclaim(ask, token).await?;
        Ok(grant.map(|grant| self.shown(grant)))
    }
}
