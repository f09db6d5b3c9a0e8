//! Locks: one that is handed over, one that many want.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tenure_core::backend::{HasLocker, Locker};
use tenure_core::{LockHandle, Session};
use tokio::sync::Barrier;

use crate::Fallible;

/// From the call of a release to the return of the lock that has waited for it for a `while`.
///
/// # Errors
///
/// The store's.
pub async fn hand_off<L: Locker>(
    mine: &LockHandle<L>,
    other: &LockHandle<L>,
    parked: Duration,
) -> Fallible<Duration> {
    let guard = mine.lock().await?;
    let waiter = tokio::spawn({
        let other = other.clone();
        async move {
            let guard = other.lock().await?;
            Ok::<_, tenure_core::Error>((Instant::now(), guard))
        }
    });
    tokio::time::sleep(parked).await;
    let begin = Instant::now();
    guard.release().await?;
    let (granted, guard) = waiter.await??;
    let took = granted.saturating_duration_since(begin);
    guard.release().await?;
    Ok(took)
}

/// Contenders in a loop, a session each: how evenly they are served.
///
/// # Errors
///
/// The store's.
///
/// # Panics
///
/// When two hold the lock at once.
pub async fn contended<L: HasLocker>(sessions: Vec<Session<L>>, seconds: u64) -> Fallible {
    let contenders = sessions.len();
    let stop = Arc::new(AtomicBool::new(false));
    let inside = Arc::new(AtomicU64::new(0));
    let ready = Arc::new(Barrier::new(contenders + 1));
    let mut tasks = Vec::new();
    for session in sessions {
        let (stop, inside, ready) = (Arc::clone(&stop), Arc::clone(&inside), Arc::clone(&ready));
        tasks.push(tokio::spawn(async move {
            let lock = session.locker("contended")?;
            let mut grants = 0_u64;
            ready.wait().await;
            while !stop.load(Ordering::Relaxed) {
                let guard = lock.lock().await?;
                assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two holders");
                grants += 1;
                inside.fetch_sub(1, Ordering::SeqCst);
                guard.release().await?;
            }
            session.close().await?;
            Ok::<_, tenure_core::Error>(grants)
        }));
    }
    ready.wait().await;
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    stop.store(true, Ordering::Relaxed);
    let mut grants = Vec::new();
    for task in tasks {
        grants.push(task.await??);
    }
    let total: u64 = grants.iter().sum();
    let off = |grants: u64| 100.0 * (grants as f64 * contenders as f64 / total as f64 - 1.0);
    println!(
        "{contenders:>3} contenders in a loop       {:>7}/s; grants from {:+.1} % to {:+.1} % of the mean",
        total / seconds,
        off(grants.iter().copied().min().unwrap_or_default()),
        off(grants.iter().copied().max().unwrap_or_default()),
    );
    Ok(())
}
