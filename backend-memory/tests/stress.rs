//! Many threads, real time, cancellations at random moments: exclusion holds and tokens rise.

#![allow(clippy::unwrap_used, reason = "a test ends with it")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use support::*;
use tenure_core::{LockGuard, Session, SessionOptions};

const TASKS: u64 = 32;
const ROUNDS: u64 = 40;
const NAMES: usize = 2;

/// What the lock protects.
#[derive(Default)]
struct Room {
    inside: AtomicUsize,
    newest: AtomicU64,
    entered: AtomicU64,
}

impl Room {
    async fn visit(&self, guard: &LockGuard, stay: u64) {
        assert_eq!(self.inside.fetch_add(1, Ordering::SeqCst), 0, "two at once");
        let token = guard.token().get();
        let before = self.newest.swap(token, Ordering::SeqCst);
        assert!(before < token, "{before} came before {token}");
        self.entered.fetch_add(1, Ordering::SeqCst);
        for _ in 0..stay {
            tokio::task::yield_now().await;
        }
        self.inside.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn visitor(session: Session, rooms: Arc<Vec<Room>>, mut dice: Dice) {
    for _ in 0..ROUNDS {
        let name = dice.roll(NAMES as u64) as usize;
        let room = &rooms[name];
        let lock = session.locker(format!("room {name}")).unwrap();
        let patience = Duration::from_micros(dice.roll(3_000));
        let stay = dice.roll(4);
        let guard = match dice.roll(5) {
            // Dropped from outside, wherever it is.
            0 => match tokio::time::timeout(patience, lock.lock()).await {
                Ok(guard) => guard.unwrap(),
                Err(_) => continue,
            },
            // Dropped after a few polls.
            1 => match polled(1 + stay as usize, lock.lock()).await {
                Some(guard) => guard.unwrap(),
                None => continue,
            },
            2 => match lock.lock_timeout(patience).await {
                Ok(guard) => guard,
                Err(_) => continue,
            },
            3 => match lock.try_lock().await {
                Ok(guard) => guard,
                Err(_) => continue,
            },
            // However slow the machine is, some get in.
            _ => lock.lock().await.unwrap(),
        };
        room.visit(&guard, stay).await;
        match dice.roll(3) {
            0 => drop(guard),
            1 => drop(polled(1, guard.release()).await),
            _ => guard.release().await.unwrap(),
        }
    }
}

async fn crowd(seed: u64, script: impl Fn(u64) -> Script) {
    let store = store();
    let rooms: Arc<Vec<Room>> = Arc::new((0..NAMES).map(|_| Room::default()).collect());
    let mut sessions = Vec::new();
    for number in 0..TASKS / 4 {
        let (slow, _) = layered(&store, script(number));
        let session = slow.into_dyn().open(SessionOptions::new()).await;
        sessions.push(session.unwrap());
    }
    let visitors: Vec<_> = (0..TASKS)
        .map(|n| {
            let session = sessions[n as usize % sessions.len()].clone();
            let dice = Dice::seeded(seed * TASKS + n);
            tokio::spawn(visitor(session, Arc::clone(&rooms), dice))
        })
        .collect();
    for visitor in visitors {
        visitor.await.unwrap();
    }
    until_no_ghost(store.backend()).await;
    let entered: u64 = rooms.iter().map(|r| r.entered.load(Ordering::SeqCst)).sum();
    assert!(
        entered > TASKS,
        "too few got in to mean anything: {entered}"
    );
    for session in sessions {
        assert!(session.is_valid());
        session.close().await.unwrap();
    }
    assert_eq!(store.backend().footprint(), Default::default());
}

/// `TENURE_STRESS_RUNS` for the long form.
fn runs() -> u64 {
    std::env::var("TENURE_STRESS_RUNS").map_or(3, |runs| runs.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn exclusion_and_rising_tokens_under_random_cancellation() {
    for seed in 0..runs() {
        crowd(seed, |_| Script::new(0)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_same_over_a_slow_backend() {
    for seed in 0..runs() {
        crowd(seed, |_| Script::new(2)).await;
    }
}

/// One thread and a clock that moves only when everybody waits: what happens when depends on the seed
/// alone, but for the order in which `select!` looks at its branches. A seed that fails is worth keeping.
#[test]
fn exclusion_and_rising_tokens_in_many_interleavings() {
    for seed in 0..20 * runs() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        let crowd = crowd(seed, |number| Script::shuffled(seed * TASKS + number));
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            runtime.block_on(crowd);
        }));
        assert!(done.is_ok(), "seed {seed}");
    }
}
