//! Random clients under random faults, judged by the checkers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tenure_core::{FenceGate, LockGuard, Session, Store};

use super::tools::*;
use crate::case::{Outcome, Verdict};
use crate::checkers::{History, What, exclusion, fencing, linearizable};
use crate::harness::{Harness, Link, Need};
use crate::timeline::Timeline;

const CLIENTS: usize = 4;

/// A run in which less happened before the first fault proves nothing.
const WARM: usize = 12;

/// How many faults a run has.
const FAULTS: usize = 4;

/// L1, L2, L6, L7: whatever happens, no update is lost and no valid holder is refused.
pub async fn l1_random_histories_stay_exclusive(harness: &dyn Harness) -> Verdict {
    a_random_history(harness, 1).await
}

/// One run, the same for the same `seed` as far as the machine lets it be: the long form of
/// [`l1_random_histories_stay_exclusive`] is a hundred of them.
///
/// Four clients take one lock again and again, in every way there is, and update a register
/// behind a [`FenceGate`]; they release, drop, or forget. Meanwhile their links are silenced and
/// cut where the harness can. Afterwards the checkers judge, and everyone must get the lock once
/// more.
pub async fn a_random_history(harness: &dyn Harness, seed: u64) -> Verdict {
    let history = Arc::new(History::new());
    let register = Arc::new(FenceGate::new(0_u64));
    let stop = Arc::new(AtomicBool::new(false));
    let mut random = Random::seeded(seed);

    let mut links: Vec<Box<dyn Link>> = Vec::new();
    let mut clients = Vec::new();
    for number in 0..CLIENTS {
        let store = if harness.offers().contains(&Need::Silence) {
            let linked = harness.linked().await?;
            links.push(linked.link);
            linked.store
        } else {
            harness.connect().await?
        };
        let client = Client {
            number,
            store,
            ttl: harness.ttl(),
            random: Random::seeded(random.next()),
            history: Arc::clone(&history),
            register: Arc::clone(&register),
            session: None,
        };
        clients.push(spawn(client.run(Arc::clone(&stop))));
    }

    warm_up(&history).await?;
    for _ in 0..FAULTS {
        torment(harness, &links, &history, &mut random).await;
        tokio::time::sleep(random.up_to(Duration::from_millis(400))).await;
    }
    stop.store(true, Ordering::Relaxed);
    let limit = harness.ttl() * 2 + expiry_bound(harness).await? + PROMPT * 2;
    for client in &mut clients {
        client
            .end(limit, "the last grant to every client, after the faults")
            .await??;
    }
    judge(&history, &register, seed)
}

async fn warm_up(history: &History) -> std::result::Result<(), Outcome> {
    let started = Instant::now();
    loop {
        let events = history.events();
        let granted = events
            .iter()
            .filter(|e| matches!(e.what, What::Granted(_)))
            .count();
        if granted >= WARM {
            return Ok(());
        }
        if started.elapsed() > Duration::from_secs(10) {
            return Err(Outcome::not_run(format!(
                "{granted} grants in ten seconds without a fault: too few to prove anything"
            )));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// One fault, from its beginning to its end.
async fn torment(
    harness: &dyn Harness,
    links: &[Box<dyn Link>],
    history: &History,
    random: &mut Random,
) {
    let ttl = harness.ttl();
    if links.is_empty() {
        tokio::time::sleep(ttl / 2).await;
        return;
    }
    let number = usize::try_from(random.below(links.len() as u64)).unwrap_or_default();
    let link = &links[number];
    match random.below(4) {
        0 if harness.offers().contains(&Need::Cut) => {
            history.record(number, What::Fault("cut".into()));
            link.cut();
        }
        1 if harness.offers().contains(&Need::Mute) => {
            history.record(number, What::Fault("mute".into()));
            link.mute();
            tokio::time::sleep(random.up_to(ttl)).await;
        }
        2 => {
            history.record(number, What::Fault("short silence".into()));
            link.silence();
            tokio::time::sleep(random.up_to(ttl / 4)).await;
        }
        _ => {
            history.record(number, What::Fault("silence".into()));
            link.silence();
            tokio::time::sleep(ttl + ttl / 4).await;
        }
    }
    link.heal();
    history.record(number, What::Fault("healed".into()));
}

struct Client {
    number: usize,
    store: Store,
    ttl: Duration,
    random: Random,
    history: Arc<History>,
    register: Arc<FenceGate<u64>>,
    session: Option<Session>,
}

impl Client {
    async fn run(mut self, stop: Arc<AtomicBool>) -> tenure_core::Result<()> {
        while !stop.load(Ordering::Relaxed) {
            if let Some(guard) = self.acquire().await {
                self.hold(guard).await;
            }
            tokio::time::sleep(self.random.up_to(Duration::from_millis(2))).await;
        }
        // Once more, patiently: nobody is left behind.
        loop {
            let Some(session) = self.session().await else {
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            };
            self.record(What::Asked);
            match session.locker("lock")?.lock().await {
                Ok(guard) => {
                    self.record(What::Granted(guard.token()));
                    self.hold(guard).await;
                    return Ok(());
                }
                Err(_) => self.record(What::Unknown),
            }
        }
    }

    fn record(&self, what: What) {
        self.history.record(self.number, what);
    }

    /// The session, or a new one if it was lost; none if the store cannot be reached just now.
    async fn session(&mut self) -> Option<Session> {
        if self
            .session
            .as_ref()
            .is_none_or(|session| !session.is_valid())
        {
            self.session = None;
            let opening = tokio::time::timeout(self.ttl, open_on(&self.store, self.ttl));
            self.session = opening.await.ok()?.ok();
        }
        self.session.clone()
    }

    /// One try at the lock, in one way of many, given up in some cases.
    async fn acquire(&mut self) -> Option<LockGuard> {
        let session = self.session().await?;
        let handle = session.locker("lock").ok()?;
        let patience = self.random.up_to(Duration::from_millis(400));
        self.record(What::Asked);
        let answer = match self.random.below(4) {
            0 => handle.try_lock().await,
            1 => handle.lock_timeout(patience).await,
            2 => match tokio::time::timeout(patience, handle.lock()).await {
                Ok(answer) => answer,
                Err(_) => {
                    self.record(What::Unknown);
                    return None;
                }
            },
            _ => handle.lock().await,
        };
        match answer {
            Ok(guard) => {
                self.record(What::Granted(guard.token()));
                Some(guard)
            }
            Err(error) => {
                self.record(match error.effect() {
                    tenure_core::Effect::None => What::Refused,
                    _ => What::Unknown,
                });
                None
            }
        }
    }

    /// Whether the guard was valid at the moment of the first line that this records.
    fn looks(&self, guard: &LockGuard) -> bool {
        self.record(What::Looks(guard.token()));
        let valid = guard.is_valid();
        self.record(match valid {
            true => What::Valid(guard.token()),
            false => What::Ended(guard.token()),
        });
        valid
    }

    /// Reads the register, thinks, writes back what it read plus one; then lets go in some way.
    async fn hold(&mut self, guard: LockGuard) {
        let token = guard.token();
        // The read is shown to the gate too: a late writer between read and write is refused.
        let read = self.write(&guard, |value| *value);
        tokio::time::sleep(self.random.up_to(Duration::from_millis(6))).await;
        if self.random.below(12) == 0 {
            // Sometimes for so long that a fault finds it here.
            tokio::time::sleep(self.random.up_to(self.ttl / 4)).await;
        }
        if let Some(read) = read {
            // Without a look at the guard: it is for the gate to refuse.
            self.write(&guard, |value| *value = read + 1);
        }
        if !self.looks(&guard) {
            return;
        }
        self.record(What::Releasing(token));
        if self.random.below(4) == 0 {
            drop(guard);
        } else if guard.release().await.is_ok() {
            self.record(What::Released(token));
        }
    }

    fn write<R>(&self, guard: &LockGuard, write: impl FnOnce(&mut u64) -> R) -> Option<R> {
        let token = guard.token();
        let written = self.register.write(token, |value| {
            // Recorded inside, so that the history has the register's own order.
            self.record(What::Wrote(token));
            write(value)
        });
        if written.is_err() {
            // Valid after the refusal means valid at it.
            self.record(What::WriteRefused(token, guard.is_valid()));
        }
        written.ok()
    }
}

fn judge(history: &History, register: &FenceGate<u64>, seed: u64) -> Verdict {
    let events = history.events();
    let broken = |what: &str, violation: fencing::Violation| {
        Outcome::violated(format!("{what} (seed {seed}): {}", violation.what))
            .with_history(Timeline::of_a_lock(&events, &violation.places))
    };
    let grants = fencing::grants_rise(&events).map_err(|v| broken("tokens", v))?;
    let writes = fencing::accepted_in_order(&events).map_err(|v| broken("the register", v))?;
    linearizable::check(&events).map_err(|v| broken("the lock's history", v))?;
    let overlaps = exclusion::overlaps(&events).len();
    let faults = events
        .iter()
        .filter(|event| matches!(event.what, What::Fault(ref fault) if fault != "healed"))
        .count();
    held!(
        "seed {seed}: {grants} grants, {faults} faults, {writes} accesses to the register in order (value {}), {overlaps} overlaps of belief",
        register.read(|value| *value)
    )
}
