//! Clocks and their random numbers.

use std::pin::pin;
use std::time::Duration;

use futures_util::FutureExt;
use tenure_core::clock::{Clock, random};
use tokio::time::advance;

const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test(start_paused = true)]
async fn tokio_clock_follows_the_paused_time_even_from_outside() {
    let clock = Clock::tokio();
    let start = clock.now();
    advance(MINUTE).await;
    let inside = clock.now().since(start);
    let outside = std::thread::spawn(move || clock.now().since(start)).join().unwrap();
    assert_eq!((inside, outside), (MINUTE, MINUTE));
}

#[tokio::test(start_paused = true)]
async fn tokio_clock_wakes_a_sleeper_on_another_runtime() {
    let sleep = Clock::tokio().sleep(MINUTE);
    // The other runtime has no timers of its own.
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let (send, asleep) = tokio::sync::oneshot::channel();
    let sleeper = tokio::task::spawn_blocking(move || {
        runtime.block_on(async {
            let mut sleep = pin!(sleep);
            let first = sleep.as_mut().now_or_never();
            send.send(first).unwrap();
            sleep.await;
        });
    });
    assert_eq!(asleep.await.unwrap(), None);
    advance(MINUTE).await;
    sleeper.await.unwrap();
}

#[tokio::test]
async fn boot_time_sleeps_at_least_as_long_as_asked() {
    let clock = Clock::boot_time();
    let start = clock.now();
    clock.sleep(Duration::from_micros(20_300)).await;
    assert!(clock.now().since(start) >= Duration::from_micros(20_300));
}

#[tokio::test]
async fn manual_clock_moves_only_when_it_is_advanced() {
    let clock = Clock::manual();
    let start = clock.now();
    let mut sleep = pin!(clock.sleep(MINUTE));
    assert_eq!(sleep.as_mut().now_or_never(), None);
    clock.advance(MINUTE - Duration::from_nanos(1));
    assert_eq!(sleep.as_mut().now_or_never(), None);
    let waiting = tokio::spawn(clock.sleep_until(start + MINUTE));
    tokio::task::yield_now().await;
    clock.clone().advance(Duration::from_nanos(1));
    waiting.await.unwrap();
    assert_eq!(sleep.now_or_never(), Some(()));
    assert_eq!(clock.now().since(start), MINUTE);
}

#[test]
fn moments_saturate() {
    let clock = Clock::manual();
    let start = clock.now();
    assert_eq!(start - MINUTE, start);
    assert_eq!(start.since(start + MINUTE), Duration::ZERO);
    assert!(start + Duration::MAX + MINUTE > start);
}

#[test]
fn random_numbers_repeat_only_with_a_seed() {
    let draw = |clock: Clock| [clock.random(), clock.clone().random(), clock.random()];
    assert_eq!(draw(Clock::manual()), draw(Clock::manual()));
    assert_eq!(draw(Clock::boot_time().seeded(7)), draw(Clock::manual().seeded(7)));
    assert_ne!(draw(Clock::manual().seeded(7)), draw(Clock::manual().seeded(8)));
    assert_ne!(draw(Clock::boot_time()), draw(Clock::boot_time()));
    let [first, second, third] = draw(Clock::manual());
    assert!(first != second && second != third);
    assert_ne!(random(), random());
}
