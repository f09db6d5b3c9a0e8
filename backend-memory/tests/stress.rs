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

/// Enough for a test, and without a dependency: xorshift64* (S. Vigna, 2016).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32) % sides
    }
}

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
        let guard = match dice.roll(4) {
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
            _ => match lock.try_lock().await {
                Ok(guard) => guard,
                Err(_) => continue,
            },
        };
        room.visit(&guard, stay).await;
        match dice.roll(3) {
            0 => drop(guard),
            1 => drop(polled(1, guard.release()).await),
            _ => guard.release().await.unwrap(),
        }
    }
}

async fn crowd(seed: u64, yields: usize) {
    let store = store();
    let rooms: Arc<Vec<Room>> = Arc::new((0..NAMES).map(|_| Room::default()).collect());
    let mut sessions = Vec::new();
    for _ in 0..TASKS / 4 {
        let (slow, _) = layered(&store, Script::new(yields));
        let session = slow.into_dyn().open(SessionOptions::new()).await;
        sessions.push(session.unwrap());
    }
    let visitors: Vec<_> = (0..TASKS)
        .map(|n| {
            let session = sessions[n as usize % sessions.len()].clone();
            let dice = Dice((seed * TASKS + n + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
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
        crowd(seed, 0).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_same_over_a_slow_backend() {
    for seed in 0..runs() {
        crowd(seed, 2).await;
    }
}
