//! What core's threads and tasks meet in, with a point before every step at which shuttle may let
//! another one go on.
//!
//! Mutexes and atomics are shuttle's. Notifications, channels and semaphores are tokio's own, so
//! that they do what they do at home: each call of one is a single step here, and what may happen
//! inside of it is checked by tokio's authors, with loom.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use ::shuttle::scheduler::{
    PctScheduler, RandomScheduler, ReplayScheduler, Scheduler,
    UncontrolledNondeterminismCheckScheduler,
};

/// Another thread may go on here.
pub fn point() {
    // Whatever happens to an atomic is such a point.
    sync::atomic::AtomicBool::new(false).load(sync::atomic::Ordering::SeqCst);
}

thread_local! {
    static PLANTED: Cell<Option<&'static str>> = const { Cell::new(None) };
    static NONCE: Cell<u64> = const { Cell::new(0) };
    static SPAWNED: RefCell<Vec<::shuttle::future::JoinHandle<()>>> = const { RefCell::new(Vec::new()) };
}

/// Whether this fault of `planted.rs` is switched on.
pub fn planted(name: &'static str) -> bool {
    PLANTED.get() == Some(name)
}

pub(crate) fn nonce() -> u64 {
    NONCE.set(NONCE.get() + 1);
    NONCE.get()
}

/// Starts a task. It is waited for at the end, also if nobody has its handle any more: one that does
/// not come to its end is a deadlock.
pub fn spawn<T: Send + 'static>(
    future: impl Future<Output = T> + Send + 'static,
) -> sync::oneshot::Receiver<T> {
    let (done, result) = sync::oneshot::channel();
    let task = ::shuttle::future::spawn(async move {
        let _ = done.send(future.await);
    });
    SPAWNED.with_borrow_mut(|spawned| spawned.push(task));
    result
}

/// Ends when all tasks have.
pub async fn settled() {
    while let Some(task) = SPAWNED.with_borrow_mut(Vec::pop) {
        let _ = task.await;
    }
}

fn explored(scheduler: impl Scheduler + 'static, scenario: fn()) -> usize {
    let mut config = ::shuttle::Config::new();
    config.stack_size = 0x40000;
    config.silence_warnings = true;
    config.max_steps = ::shuttle::MaxSteps::FailAfter(30_000);
    ::shuttle::Runner::new(scheduler, config).run(move || {
        NONCE.set(0);
        time::restart();
        // Those of an execution that failed are not to be waited for in the next.
        SPAWNED.with_borrow_mut(|spawned| spawned.drain(..).for_each(std::mem::forget));
        scenario();
    })
}

const SEED: u64 = 0x7e4;

/// Runs `scenario` in `rounds` interleavings by chance, and in as many with few changes of turn at
/// unlikely places (PCT); says how many ran, and how it failed if it did.
fn ran(fault: Option<&'static str>, rounds: usize, scenario: fn()) -> Result<usize, String> {
    let run = move || {
        PLANTED.set(fault);
        if let (Ok(schedule), None) = (std::env::var("TENURE_SCHEDULE"), fault) {
            return explored(ReplayScheduler::new_from_encoded(&schedule), scenario);
        }
        let by_chance = explored(RandomScheduler::new_from_seed(SEED, rounds), scenario);
        by_chance + explored(PctScheduler::new_from_seed(SEED, 3, rounds), scenario)
    };
    // In a thread of its own: what a failure leaves behind in this one would fail the next, too.
    let run = std::thread::spawn(run);
    run.join().map_err(|panicked| {
        let text = panicked
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned());
        text.or_else(|| panicked.downcast_ref::<String>().cloned())
            .unwrap_or_default()
    })
}

/// Checks that `scenario` holds in `rounds` interleavings of either kind.
pub fn holds(rounds: usize, scenario: fn()) {
    let times = std::env::var("TENURE_INTERLEAVINGS").map_or(1, |times| {
        times.parse().expect("TENURE_INTERLEAVINGS is a number")
    });
    if let Err(text) = ran(None, rounds * times, scenario) {
        panic!("{text}");
    }
}

/// Checks that nothing but the schedule decides what happens in `scenario`: each of `rounds` runs
/// once more, step by step as before.
pub fn repeats(rounds: usize, scenario: fn()) {
    let twice =
        UncontrolledNondeterminismCheckScheduler::new(RandomScheduler::new_from_seed(SEED, rounds));
    explored(twice, scenario);
}

/// Checks that `scenario` fails with `text` within as many once `fault` is planted.
pub fn finds(fault: &'static str, text: &str, rounds: usize, scenario: fn()) {
    match ran(Some(fault), rounds, scenario) {
        Err(found) => assert!(found.contains(text), "{fault}: failed with {found:?}"),
        Ok(rounds) => panic!("not found in {rounds} rounds: {fault}"),
    }
}

/// `std::sync` and `tokio::sync`.
pub mod sync {
    pub use std::sync::{Arc, LazyLock, PoisonError};

    pub use ::shuttle::sync::{Mutex, MutexGuard, atomic};
    pub use ::tokio::sync::{
        Mutex as AsyncMutex, OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock,
    };

    use super::point;

    #[derive(Debug)]
    pub struct OnceLock<T>(std::sync::OnceLock<T>);

    impl<T> OnceLock<T> {
        pub const fn new() -> Self {
            Self(std::sync::OnceLock::new())
        }

        pub fn set(&self, value: T) -> Result<(), T> {
            point();
            self.0.set(value)
        }

        pub fn get(&self) -> Option<&T> {
            point();
            self.0.get()
        }
    }

    #[derive(Debug, Default)]
    pub struct Notify(::tokio::sync::Notify);

    impl Notify {
        pub const fn new() -> Self {
            Self(::tokio::sync::Notify::const_new())
        }

        pub fn notified(&self) -> ::tokio::sync::futures::Notified<'_> {
            point();
            self.0.notified()
        }

        pub fn notify_one(&self) {
            point();
            self.0.notify_one();
        }

        pub fn notify_waiters(&self) {
            point();
            self.0.notify_waiters();
        }
    }

    #[derive(Debug)]
    pub struct Semaphore(::tokio::sync::Semaphore);

    impl Semaphore {
        pub fn new(permits: usize) -> Self {
            Self(::tokio::sync::Semaphore::new(permits))
        }

        pub async fn acquire(
            &self,
        ) -> Result<::tokio::sync::SemaphorePermit<'_>, ::tokio::sync::AcquireError> {
            point();
            self.0.acquire().await
        }

        pub fn add_permits(&self, permits: usize) {
            point();
            self.0.add_permits(permits);
        }
    }

    pub mod oneshot {
        pub use ::tokio::sync::oneshot::Receiver;

        #[derive(Debug)]
        pub struct Sender<T>(::tokio::sync::oneshot::Sender<T>);

        impl<T> Sender<T> {
            pub fn send(self, value: T) -> Result<(), T> {
                super::point();
                self.0.send(value)
            }

            pub async fn closed(&mut self) {
                super::point();
                self.0.closed().await;
            }
        }

        pub fn channel<T>() -> (Sender<T>, Receiver<T>) {
            let (sender, receiver) = ::tokio::sync::oneshot::channel();
            (Sender(sender), receiver)
        }
    }

    pub mod mpsc {
        use ::tokio::sync::mpsc as tokio;

        #[derive(Debug)]
        pub struct UnboundedSender<T>(tokio::UnboundedSender<T>);

        impl<T> UnboundedSender<T> {
            pub fn send(&self, value: T) -> Result<(), tokio::error::SendError<T>> {
                super::point();
                self.0.send(value)
            }
        }

        #[derive(Debug)]
        pub struct UnboundedReceiver<T>(tokio::UnboundedReceiver<T>);

        impl<T> UnboundedReceiver<T> {
            pub async fn recv(&mut self) -> Option<T> {
                super::point();
                self.0.recv().await
            }

            pub fn try_recv(&mut self) -> Result<T, tokio::error::TryRecvError> {
                super::point();
                self.0.try_recv()
            }
        }

        pub fn unbounded_channel<T>() -> (UnboundedSender<T>, UnboundedReceiver<T>) {
            let (sender, receiver) = tokio::unbounded_channel();
            (UnboundedSender(sender), UnboundedReceiver(receiver))
        }
    }
}

/// `tokio::runtime`: there is one, always.
pub mod runtime {
    #[derive(Clone, Debug)]
    pub struct Handle;

    impl Handle {
        pub fn current() -> Self {
            Self
        }

        pub fn try_current() -> Result<Self, ()> {
            Ok(Self)
        }

        pub fn enter(&self) {}

        pub fn spawn<T: Send + 'static>(
            &self,
            future: impl std::future::Future<Output = T> + Send + 'static,
        ) -> super::sync::oneshot::Receiver<T> {
            super::spawn(future)
        }
    }
}

/// `tokio::time`, which passes when a scenario says so.
pub mod time {
    use std::cell::RefCell;
    use std::collections::BTreeMap;
    use std::future::Future;
    use std::pin::Pin;
    use std::task::{Context, Poll, Waker};
    use std::time::Duration;

    struct Time {
        now: Duration,
        sleeping: BTreeMap<(Duration, u64), Waker>,
        sleeps: u64,
    }

    thread_local! {
        static TIME: RefCell<Time> = const { RefCell::new(Time {
            now: Duration::ZERO,
            sleeping: BTreeMap::new(),
            sleeps: 0,
        }) };
    }

    pub(super) fn restart() {
        TIME.with_borrow_mut(|time| {
            time.now = Duration::ZERO;
            time.sleeping.clear();
            time.sleeps = 0;
        });
    }

    /// Goes on to the next time at which somebody wants to wake up; says whether anybody does.
    pub fn pass() -> bool {
        super::point();
        let woken: Vec<Waker> = TIME.with_borrow_mut(|time| {
            let Some((&(next, _), _)) = time.sleeping.first_key_value() else {
                return Vec::new();
            };
            time.now = next.max(time.now);
            let later = time.sleeping.split_off(&(time.now, u64::MAX));
            std::mem::replace(&mut time.sleeping, later)
                .into_values()
                .collect()
        });
        let any = !woken.is_empty();
        woken.into_iter().for_each(Waker::wake);
        any
    }

    /// Without a point at which anybody else could go on.
    pub(crate) fn now() -> Duration {
        TIME.with_borrow(|time| time.now)
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
    pub struct Instant(Duration);

    impl Instant {
        pub fn now() -> Self {
            super::point();
            Self(now())
        }

        pub fn saturating_duration_since(self, earlier: Self) -> Duration {
            self.0.saturating_sub(earlier.0)
        }
    }

    #[derive(Debug)]
    pub struct Sleep {
        until: Duration,
        number: Option<u64>,
    }

    pub fn sleep(period: Duration) -> Sleep {
        Sleep {
            until: now() + period,
            number: None,
        }
    }

    impl Future for Sleep {
        type Output = ();

        fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
            super::point();
            TIME.with_borrow_mut(|time| {
                if time.now >= self.until {
                    return Poll::Ready(());
                }
                let number = *self.number.get_or_insert_with(|| {
                    time.sleeps += 1;
                    time.sleeps
                });
                let waker = context.waker().clone();
                time.sleeping.insert((self.until, number), waker);
                Poll::Pending
            })
        }
    }

    impl Drop for Sleep {
        fn drop(&mut self) {
            if let Some(number) = self.number {
                TIME.with_borrow_mut(|time| time.sleeping.remove(&(self.until, number)));
            }
        }
    }

    pub async fn timeout<F: Future>(limit: Duration, future: F) -> Result<F::Output, ()> {
        let elapsed = sleep(limit);
        tokio::select! {
            biased;
            done = future => Ok(done),
            () = elapsed => Err(()),
        }
    }
}
