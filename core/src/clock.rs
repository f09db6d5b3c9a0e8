//! The clock by which validity is judged.

use std::future::Future;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::ops::{Add, Sub};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::runtime::Handle;

/// An instant on a [`Clock`]. Only comparable with instants of the same clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(Duration);

impl Moment {
    /// How long it is from `earlier` to here; zero if `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    pub(crate) fn as_nanos(self) -> u64 {
        u64::try_from(self.0.as_nanos()).unwrap_or(u64::MAX)
    }

    pub(crate) fn from_nanos(nanos: u64) -> Self {
        Self(Duration::from_nanos(nanos))
    }
}

impl Add<Duration> for Moment {
    type Output = Self;

    fn add(self, by: Duration) -> Self {
        Self(self.0.saturating_add(by))
    }
}

impl Sub<Duration> for Moment {
    type Output = Self;

    fn sub(self, by: Duration) -> Self {
        Self(self.0.saturating_sub(by))
    }
}

/// Where the time of a lease comes from.
///
/// For a real store it must keep counting while the machine is suspended, because the store's
/// clock does: [`boottime`](Self::boottime). The embedded store lives on the time of its tokio
/// runtime, so that its leases expire under a paused clock too: [`tokio`](Self::tokio).
#[derive(Clone, Debug)]
pub struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    Boottime,
    Tokio {
        runtime: Handle,
        start: tokio::time::Instant,
        /// How many random numbers were drawn.
        draws: Arc<AtomicU64>,
    },
}

/// The longest sleep without a look at the clock. Tokio's timer stands still while the machine
/// is suspended and the clock does not, so this is how late a loss may be signalled after resume.
const SLICE: Duration = Duration::from_millis(500);

impl Clock {
    /// The clock that counts on while the machine sleeps (`CLOCK_BOOTTIME` on Linux and Android,
    /// `CLOCK_MONOTONIC` on other systems).
    pub fn boottime() -> Self {
        Self(Source::Boottime)
    }

    /// The time of the current tokio runtime, paused or not.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn tokio() -> Self {
        Self(Source::Tokio {
            runtime: Handle::current(),
            start: tokio::time::Instant::now(),
            draws: Arc::default(),
        })
    }

    /// What time it is.
    pub fn now(&self) -> Moment {
        match &self.0 {
            Source::Boottime => boottime(),
            Source::Tokio { runtime, start, .. } => {
                // A paused clock belongs to one runtime: read it there, wherever we are called.
                let _inside = runtime.enter();
                Moment(tokio::time::Instant::now().saturating_duration_since(*start))
            }
        }
    }

    /// Returns a number that spreads the retries of contenders. It is unpredictable, except on the embedded store: its
    /// clients share one clock and a counter, so that a run can be repeated.
    pub(crate) fn random(&self) -> u64 {
        match &self.0 {
            Source::Boottime => RandomState::new().build_hasher().finish(),
            Source::Tokio { draws, .. } => scrambled(draws.fetch_add(1, Ordering::Relaxed)),
        }
    }

    /// Ends when `deadline` has come, by this clock.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub fn sleep_until(&self, deadline: Moment) -> impl Future<Output = ()> + Send + use<> {
        let clock = self.clone();
        async move {
            while let Some(left) = clock.left(deadline) {
                tokio::time::sleep(left).await;
            }
        }
    }

    /// [`sleep_until`](Self::sleep_until), also outside of a runtime: then on the timer of `home`.
    pub(crate) fn sleep_until_on(
        &self,
        deadline: Moment,
        home: Handle,
    ) -> impl Future<Output = ()> + Send + use<> {
        let clock = self.clone();
        async move {
            while let Some(left) = clock.left(deadline) {
                let sleep = {
                    let _inside = Handle::try_current().is_err().then(|| home.enter());
                    tokio::time::sleep(left)
                };
                sleep.await;
            }
        }
    }

    /// How long to sleep before the next look at the clock. Tokio rounds up to whole milliseconds, so that the last
    /// sleep ends at or after `deadline`.
    fn left(&self, deadline: Moment) -> Option<Duration> {
        let left = deadline.since(self.now());
        (!left.is_zero()).then(|| left.min(SLICE))
    }

    /// Ends after `period`, by this clock.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub fn sleep(&self, period: Duration) -> impl Future<Output = ()> + Send + use<> {
        self.sleep_until(self.now() + period)
    }
}

/// The finalizer of SplitMix64.
const fn scrambled(number: u64) -> u64 {
    let mut bits = number.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    bits ^ (bits >> 31)
}

#[cfg(any(target_os = "linux", target_os = "android"))]
const CLOCK_ID: rustix::time::ClockId = rustix::time::ClockId::Boottime;
#[cfg(all(unix, not(any(target_os = "linux", target_os = "android"))))]
const CLOCK_ID: rustix::time::ClockId = rustix::time::ClockId::Monotonic;

#[cfg(unix)]
fn boottime() -> Moment {
    let now = rustix::time::clock_gettime(CLOCK_ID);
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    let nanos = u32::try_from(now.tv_nsec).unwrap_or_default();
    Moment(Duration::new(seconds, nanos))
}

#[cfg(not(unix))]
fn boottime() -> Moment {
    // The platform's monotonic clock: whether it counts a suspension is the platform's word.
    static START: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
    Moment(START.get_or_init(std::time::Instant::now).elapsed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn tokio_clock_follows_the_paused_time_even_from_outside() {
        let clock = Clock::tokio();
        let start = clock.now();
        tokio::time::advance(Duration::from_secs(60)).await;
        let inside = clock.now().since(start);
        let outside = std::thread::spawn(move || clock.now().since(start))
            .join()
            .unwrap();
        assert_eq!(inside, Duration::from_secs(60));
        assert_eq!(outside, inside);
    }

    #[tokio::test]
    async fn boottime_sleeps_at_least_as_long_as_asked() {
        let clock = Clock::boottime();
        let start = clock.now();
        clock.sleep(Duration::from_millis(20)).await;
        assert!(clock.now().since(start) >= Duration::from_millis(20));
    }
}
