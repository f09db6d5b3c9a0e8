//! The faults of a run: links fail, clients pause and die, sessions are revoked.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tenure_core::{Session, SessionId};
use tokio::sync::Notify;

use super::{Plan, Random, World};
use crate::harness::{Harness, Link, Need};
use crate::outcome::Step;
use crate::tools::{done, open, open_linked};

/// One kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Silence,
    Mute,
    Hold,
    Cut,
    /// The client stands still, and its link is silent: what a stopped process is to a store.
    Pause,
    /// The client dies without a message.
    Kill,
    /// An operator ends the session.
    Revoke,
}

impl Fault {
    const ALL: [(Self, Need); 7] = [
        (Self::Silence, Need::Silence),
        (Self::Mute, Need::Mute),
        (Self::Hold, Need::Hold),
        (Self::Cut, Need::Cut),
        (Self::Pause, Need::Silence),
        (Self::Kill, Need::Silence),
        (Self::Revoke, Need::Revoke),
    ];
}

/// One client, as its network sees it.
struct Victim {
    link: Option<Arc<dyn Link>>,
    session: SessionId,
    killed: Arc<Notify>,
    paused: bool,
    reachable: bool,
}

/// All clients, and what happens to them.
pub(super) struct Faults<'a> {
    plan: Plan,
    harness: &'a dyn Harness,
    kinds: Vec<Fault>,
    victims: Mutex<BTreeMap<u64, Victim>>,
    injected: Mutex<Vec<String>>,
}

impl<'a> Faults<'a> {
    pub(super) fn new(plan: &Plan, harness: &'a dyn Harness) -> Self {
        let offered = Fault::ALL
            .into_iter()
            .filter(|(_, need)| harness.offers().contains(need));
        Self {
            plan: plan.clone(),
            harness,
            kinds: offered.map(|(fault, _)| fault).filter(|_| plan.faults).collect(),
            victims: Mutex::default(),
            injected: Mutex::default(),
        }
    }

    /// Opens a session for `client`, over a link that can be disturbed if there is one.
    pub(super) async fn connect(&self, client: u64, harness: &dyn Harness, ttl: Duration) -> Step<Session> {
        let (session, link): (Session, Option<Arc<dyn Link>>) = match self.kinds.contains(&Fault::Silence) {
            true => {
                let (session, link) = open_linked(harness, ttl).await?;
                (session, Some(Arc::from(link)))
            }
            false => (open(harness, ttl).await?, None),
        };
        let victim = Victim {
            link,
            session: session.id().clone(),
            killed: Arc::default(),
            paused: false,
            reachable: true,
        };
        self.victims.lock().insert(client, victim);
        Ok(session)
    }

    /// Waits until `client` dies.
    pub(super) fn killed(&self, client: u64) -> impl Future<Output = ()> + use<> {
        let killed = self
            .victims
            .lock()
            .get(&client)
            .map(|victim| Arc::clone(&victim.killed));
        async move {
            match killed {
                Some(killed) => killed.notified().await,
                None => std::future::pending().await,
            }
        }
    }

    pub(super) fn is_paused(&self, client: u64) -> bool {
        self.victims.lock().get(&client).is_some_and(|victim| victim.paused)
    }

    pub(super) fn is_reachable(&self, client: u64) -> bool {
        self.victims.lock().get(&client).is_none_or(|victim| victim.reachable)
    }

    /// Injects one fault after another until `over`.
    pub(super) async fn inject(&self, world: &World, over: impl Fn() -> bool) -> Step<()> {
        let mut random = Random::new(self.plan.seed ^ 0x5eed);
        while !over() && !self.kinds.is_empty() {
            tokio::time::sleep(random.up_to(Duration::from_millis(800))).await;
            let client = random.below(self.plan.clients);
            let Some(fault) = random.pick(&self.kinds) else {
                break;
            };
            // Shorter or longer than the TTL.
            let lasts = random.up_to(world.ttl * 2);
            let Some((link, session)) = self.begin(client, fault) else {
                continue;
            };
            self.injected
                .lock()
                .push(format!("{fault:?} of client {client} for {lasts:?}"));
            match (fault, &link) {
                (Fault::Revoke, _) => {
                    if let Some(operator) = self.harness.operator() {
                        done("a revocation", operator.revoke(&session)).await?;
                    }
                }
                (Fault::Mute, Some(link)) => link.mute(),
                (Fault::Hold, Some(link)) => link.hold(),
                (Fault::Cut, Some(link)) => link.cut(),
                (_, Some(link)) => link.silence(),
                (_, None) => {}
            }
            if matches!(fault, Fault::Kill | Fault::Revoke) {
                continue;
            }
            tokio::time::sleep(lasts).await;
            if let Some(link) = link {
                link.heal();
            }
            if let Some(victim) = self.victims.lock().get_mut(&client) {
                victim.paused = false;
            }
        }
        Ok(())
    }

    fn begin(&self, client: u64, fault: Fault) -> Option<(Option<Arc<dyn Link>>, SessionId)> {
        let mut victims = self.victims.lock();
        let victim = victims.get_mut(&client).filter(|victim| victim.reachable)?;
        match fault {
            Fault::Pause => victim.paused = true,
            Fault::Kill => {
                victim.reachable = false;
                victim.killed.notify_one();
            }
            _ => {}
        }
        Some((victim.link.clone(), victim.session.clone()))
    }

    /// Returns what happened, in words.
    pub(super) fn words(&self) -> Vec<String> {
        self.injected.lock().clone()
    }
}
