//! Holders and waiters in processes of their own, killed and paused.

use std::time::Instant;

use tenure_testbed::Holder;

use crate::common::*;

/// Runs what blocks its thread.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_holders_lock_goes_on() {
    let bed = Bed::new("killed");
    let url = bed.url();
    let (mut holder, old) = blocking(move || {
        let mut holder = Holder::open(&url, secs(2)).unwrap();
        let old = holder.lock("x").unwrap();
        (holder, old)
    })
    .await;
    let session = bed.session(secs(20)).await;
    let lock = session.locker("x").unwrap();
    let waiting = tokio::spawn(async move { lock.lock().await });
    bed.until_in_line("lock/x", 2).await;
    let killed = Instant::now();
    holder.kill().unwrap();
    let guard = within(SOON, "the lock of the dead", waiting)
        .await
        .unwrap()
        .unwrap();
    assert!(guard.token().get() > old.token);
    // Renewed at the latest two thirds of a TTL before.
    assert!(killed.elapsed() > ms(500), "freed before its TTL");
    assert_eq!(bed.in_line("lock/x"), 1, "the dead place is buried");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_holder_knows_when_it_goes_on() {
    let bed = Bed::new("paused");
    let url = bed.url();
    let (mut holder, old) = blocking(move || {
        let mut holder = Holder::open(&url, secs(1)).unwrap();
        let old = holder.lock("x").unwrap();
        holder.begin_spin(ms(800)).unwrap();
        (holder, old)
    })
    .await;
    holder.pause().unwrap();
    let session = bed.session(secs(20)).await;
    let lock = session.locker("x").unwrap();
    let guard = within(SOON, "the lock of the paused", lock.lock())
        .await
        .unwrap();
    assert!(guard.token().get() > old.token);
    holder.resume().unwrap();
    let gap = blocking(move || holder.gap(SOON).unwrap()).await;
    assert!(gap.before && !gap.after.valid, "{gap:?}");
    assert!(guard.is_valid());
    guard.release().await.unwrap();
}

/// Two dead ones stand at the head; whoever is behind gets the lock when they have expired.
#[tokio::test(flavor = "multi_thread")]
async fn dead_waiters_delay_nobody_beyond_their_ttl() {
    let bed = Bed::new("waiters");
    let session = bed.session(secs(20)).await;
    let guard = session.locker("x").unwrap().lock().await.unwrap();
    let mut dead = Vec::new();
    for number in 2..4 {
        let url = bed.url();
        dead.push(
            blocking(move || {
                let mut holder = Holder::open(&url, secs(2)).unwrap();
                holder.begin_lock("x").unwrap();
                holder
            })
            .await,
        );
        bed.until_in_line("lock/x", number).await;
    }
    let other = bed.session(secs(20)).await;
    let lock = other.locker("x").unwrap();
    let waiting = tokio::spawn(async move { lock.lock().await });
    bed.until_in_line("lock/x", 4).await;
    dead[0].kill().unwrap();
    dead[1].pause().unwrap();
    let died = Instant::now();
    guard.release().await.unwrap();
    let guard = within(SOON, "the lock behind the dead", waiting)
        .await
        .unwrap()
        .unwrap();
    let delay = died.elapsed();
    assert!(delay < secs(2) + secs(2), "{delay:?}");
    dead[1].resume().unwrap();
    // It is told that it lost its place, and holds nothing.
    let granted = blocking(move || dead[1].granted(SOON)).await;
    assert!(granted.is_err(), "{granted:?}");
    assert!(guard.is_valid());
    guard.release().await.unwrap();
}
