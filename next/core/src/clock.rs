//! The clock against which the validity of a session is measured.

use std::future::Future;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::ops::{Add, Sub};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::{Instant, sleep};

/// Returns a random number, for identifiers that must not collide. It is not a secret.
pub fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// An instant on a [`Clock`]. Comparable only with instants of the same clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(Duration);

impl Moment {
    /// Returns the time from `earlier` to `self`; zero if `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// Returns the instant as nanoseconds, for an atomic.
    pub(crate) fn as_nanos(self) -> u64 {
        u64::try_from(self.0.as_nanos()).unwrap_or(u64::MAX)
    }

    /// Returns the instant that [`as_nanos`](Self::as_nanos) has converted.
    pub(crate) const fn from_nanos(nanos: u64) -> Self {
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

/// The time source of leases, and of the delays that spread retries.
///
/// With a real store, the clock must count while the machine is suspended, because the store's clock does:
/// [`boot_time`](Self::boot_time). The embedded store uses the time of its runtime, so that its leases expire under a paused
/// clock: [`tokio`](Self::tokio).
#[derive(Clone, Debug)]
pub struct Clock {
    source: Source,
    /// The number of random numbers drawn, beginning with a seed; `None` if they are unpredictable.
    draws: Option<Arc<AtomicU64>>,
}

#[derive(Clone, Debug)]
enum Source {
    BootTime,
    Tokio {
        runtime: Handle,
        start: Instant,
    },
    #[cfg(feature = "test-util")]
    Manual(tokio::sync::watch::Sender<Moment>),
}

/// The longest sleep before the boot-time clock is read again. Tokio's timer stops while the machine is suspended, that clock
/// does not. This is therefore the longest delay of a loss signal after a resume.
const SLICE: Duration = Duration::from_millis(500);

impl Clock {
    /// Returns the clock that counts while the machine is suspended: `CLOCK_BOOTTIME` on Linux and Android,
    /// `CLOCK_MONOTONIC` on other systems.
    pub const fn boot_time() -> Self {
        Self {
            source: Source::BootTime,
            draws: None,
        }
    }

    /// Returns the clock of the current tokio runtime, paused or not. Its random numbers are the same in each run.
    ///
    /// # Panics
    ///
    /// Panics outside a tokio runtime.
    pub fn tokio() -> Self {
        let source = Source::Tokio {
            runtime: Handle::current(),
            start: Instant::now(),
        };
        Self {
            source,
            draws: Some(Arc::default()),
        }
    }

    /// Returns a clock that starts at zero and moves only by [`advance`](Self::advance). Its random numbers are the same in
    /// each run.
    #[cfg(feature = "test-util")]
    pub fn manual() -> Self {
        let now = Moment(Duration::ZERO);
        Self {
            source: Source::Manual(tokio::sync::watch::Sender::new(now)),
            draws: Some(Arc::default()),
        }
    }

    /// Advances a [`manual`](Self::manual) clock, and all its clones, and wakes what sleeps until then.
    ///
    /// # Panics
    ///
    /// Panics on any other clock.
    #[cfg(feature = "test-util")]
    pub fn advance(&self, by: Duration) {
        let Source::Manual(now) = &self.source else {
            panic!("only a manual clock can be advanced")
        };
        now.send_modify(|now| *now = *now + by);
    }

    /// Makes the random numbers a sequence that `seed` determines, shared by all clones.
    #[must_use]
    pub fn seeded(mut self, seed: u64) -> Self {
        self.draws = Some(Arc::new(AtomicU64::new(scramble(seed))));
        self
    }

    /// Returns the present instant.
    pub fn now(&self) -> Moment {
        match &self.source {
            Source::BootTime => boot_time(),
            Source::Tokio { runtime, start } => {
                // A paused clock belongs to one runtime, and the caller may be outside.
                let _entered = runtime.enter();
                Moment(Instant::now().saturating_duration_since(*start))
            }
            #[cfg(feature = "test-util")]
            Source::Manual(now) => *now.borrow(),
        }
    }

    /// Returns a random number, for delays that spread the retries of clients.
    pub fn random(&self) -> u64 {
        match &self.draws {
            None => random(),
            Some(draws) => scramble(draws.fetch_add(1, Ordering::Relaxed)),
        }
    }

    /// Waits until `deadline`, by this clock.
    ///
    /// On the boot-time clock, the timer belongs to the runtime that polls the future.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub fn sleep_until(&self, deadline: Moment) -> impl Future<Output = ()> + Send + 'static + use<> {
        let clock = self.clone();
        async move {
            // Tokio rounds up to whole milliseconds: the last sleep ends at or after `deadline`.
            loop {
                let left = deadline.since(clock.now());
                if left.is_zero() {
                    return;
                }
                match &clock.source {
                    Source::BootTime => sleep(left.min(SLICE)).await,
                    Source::Tokio { runtime, .. } => {
                        let timer = {
                            let _entered = runtime.enter();
                            sleep(left)
                        };
                        timer.await;
                    }
                    #[cfg(feature = "test-util")]
                    // The sender is a part of `clock`: the channel cannot close.
                    Source::Manual(now) => drop(now.subscribe().wait_for(|now| *now >= deadline).await),
                }
            }
        }
    }

    /// Waits for `period` from now, by this clock.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub fn sleep(&self, period: Duration) -> impl Future<Output = ()> + Send + 'static + use<> {
        self.sleep_until(self.now() + period)
    }
}

/// Scrambles a number by the finalizer of SplitMix64.
const fn scramble(number: u64) -> u64 {
    let mut bits = number.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    bits ^ (bits >> 31)
}

#[cfg(unix)]
fn boot_time() -> Moment {
    use rustix::time::{ClockId, clock_gettime};

    #[cfg(any(target_os = "linux", target_os = "android"))]
    let now = clock_gettime(ClockId::Boottime);
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let now = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    let nanos = u32::try_from(now.tv_nsec).unwrap_or_default();
    Moment(Duration::new(seconds, nanos))
}

#[cfg(not(unix))]
fn boot_time() -> Moment {
    // The monotonic clock of the platform. Whether it counts a suspension depends on the platform.
    static START: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
    Moment(START.get_or_init(std::time::Instant::now).elapsed())
}
