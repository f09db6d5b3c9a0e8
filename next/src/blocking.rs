//! The same calls without `async`.
//!
//! ```
//! use tenure::{SessionOptions, blocking};
//!
//! fn main() -> tenure::Result<()> {
//!     let store = blocking::connect("memory:")?;
//!     store.with_session(SessionOptions::new(), |session| {
//!         let guard = session.lock("orders")?; // blocks until its turn
//!         println!("charge the order, with token {}", guard.token());
//!         let left = session.stm().run(|tx| {
//!             let left = tx.get_as("apples")?.unwrap_or(100) - 1;
//!             tx.put_as("apples", &left)?;
//!             Ok(left)
//!         })?;
//!         assert_eq!(left, 99);
//!         guard.release() // Ok: held until now
//!     })
//! }
//! ```
//!
//! Options, values, errors and tokens are those of the async API. Calls that stop their work at a loss exist there only, because
//! a blocking closure cannot be stopped: `Store::lead`, `consume`, `LockHandle::with`, `Holding::while_held`. Check
//! [`is_valid`](crate::Holding::is_valid) between the steps of such work.
//!
//! These calls exist there only too: `Store::supervise`, `StmHandle::txn` and `try_run`, and `get_as` and `put_as` outside a
//! transaction.
//!
//! The first call starts a tokio runtime with one thread, which lives until the process ends and renews the leases while the
//! program's threads work or wait. A call inside an async runtime fails with `Config`: it would block that runtime.

use std::cell::Cell;
use std::fmt;
use std::ops::Deref;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::runtime::{Builder, Handle, Runtime};

use crate::{
    ConnectOptions, Error, ErrorKind, FencingToken, Guarantees, Holding, Isolation, Leader, LeaderUpdate, NewItem,
    PeekedItem, QueueDepth, Result, SessionId, SessionOptions, StmEntry,
};

thread_local! {
    /// Whether this thread polls a future of a blocking call, whose closure may make further blocking calls.
    static WAITING: Cell<bool> = const { Cell::new(false) };
}

fn runtime() -> Result<&'static Runtime> {
    static RUNTIME: LazyLock<std::io::Result<Runtime>> = LazyLock::new(|| {
        let mut builder = Builder::new_multi_thread();
        builder
            .worker_threads(1)
            .thread_name("tenure-blocking")
            .enable_all()
            .build()
    });
    let refused = match Handle::try_current() {
        Ok(_) if !WAITING.get() => "a blocking call inside an async runtime would block it: await the async call",
        Err(error) if error.is_thread_local_destroyed() => "a blocking call while its thread ends: make it earlier",
        _ => {
            return RUNTIME.as_ref().map_err(|error| {
                Error::new(
                    ErrorKind::Internal,
                    format!("the runtime of the blocking calls did not start: {error}"),
                )
            });
        }
    };
    Err(Error::new(ErrorKind::Config, refused))
}

struct Unpark {
    thread: Thread,
    // A call within a closure parks the same thread, and may take a wake-up that is not its own.
    woken: AtomicBool,
}

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.woken.store(true, Ordering::Release);
        self.thread.unpark();
    }
}

/// Blocks until `future` is ready. The calling thread polls it, within the runtime's context.
///
/// tokio's own `block_on` refuses to run within another, which a call in the closure of a transaction needs.
fn wait<T, E: From<Error>>(future: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            WAITING.set(self.0);
        }
    }

    let _entered = runtime()?.enter();
    let _restore = Restore(WAITING.replace(true));
    let unpark = Arc::new(Unpark {
        thread: thread::current(),
        woken: AtomicBool::new(false),
    });
    let waker = Waker::from(Arc::clone(&unpark));
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        while !unpark.woken.swap(false, Ordering::Acquire) {
            thread::park();
        }
    }
}

/// Connects to the store at `url`: [`crate::connect`].
///
/// # Errors
///
/// Those of [`crate::connect`].
pub fn connect(url: impl AsRef<str>) -> Result<Store> {
    wait(crate::connect(url)).map(Store)
}

/// Connects with options that override the URL: [`crate::connect_with`].
///
/// # Errors
///
/// Those of [`crate::connect_with`].
pub fn connect_with(url: impl AsRef<str>, options: ConnectOptions) -> Result<Store> {
    wait(crate::connect_with(url, options)).map(Store)
}

/// Defines a type around that of the same name of the async API: its calls that make a `handle`, that set an option
/// (`with`), that return at once (`plain`), that block (`async`), and that `end` it.
macro_rules! blocking {
    ($(
        $(#[$meta:meta])*
        $name:ident $(<$life:lifetime>)? $(derefs to $target:ty)? {
            $(handle $handle:ident($($h_arg:ident: $h_type:ty),*) -> $h_type_out:ident;)*
            $(with $with:ident($($w_arg:ident: $w_type:ty),*);)*
            $(plain $plain:ident($($p_arg:ident: $p_type:ty),*) -> $p_output:ty;)*
            $(async $call:ident($($arg:ident: $type:ty),*) -> $output:ty $(as $convert:expr)?;)*
            $(end $end:ident($($e_arg:ident: $e_type:ty),*) -> $end_output:ty $(as $end_convert:expr)?;)*
        }
    )*) => {$(
        #[doc = concat!("The blocking form of [`crate::", stringify!($name), "`].")]
        $(#[$meta])*
        pub struct $name $(<$life>)? (crate::$name $(<$life>)?);

        impl $(<$life>)? fmt::Debug for $name $(<$life>)? {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        $(impl Deref for $name {
            type Target = $target;

            fn deref(&self) -> &$target {
                &self.0
            }
        })?

        #[allow(clippy::len_without_is_empty, reason = "the length of a queue is a request")]
        impl $(<$life>)? $name $(<$life>)? {
            $(
                #[doc = concat!("Returns a handle: [`crate::", stringify!($name), "::", stringify!($handle), "`].")]
                pub fn $handle(&self $(, $h_arg: $h_type)*) -> $h_type_out {
                    $h_type_out(self.0.$handle($($h_arg),*))
                }
            )*
            $(
                #[doc = concat!("Sets an option: [`crate::", stringify!($name), "::", stringify!($with), "`].")]
                #[must_use]
                pub fn $with(self $(, $w_arg: $w_type)*) -> Self {
                    Self(self.0.$with($($w_arg),*))
                }
            )*
            $(
                #[doc = concat!("Calls [`crate::", stringify!($name), "::", stringify!($plain), "`], with its errors.")]
                pub fn $plain(&self $(, $p_arg: $p_type)*) -> $p_output {
                    self.0.$plain($($p_arg),*)
                }
            )*
            $(
                #[doc = concat!("Blocks until [`crate::", stringify!($name), "::", stringify!($call), "`] returns.")]
                ///
                /// # Errors
                ///
                /// Those of the async call; `Config` inside an async runtime.
                pub fn $call(&self $(, $arg: $type)*) -> Result<$output> {
                    wait(self.0.$call($($arg),*))$(.map($convert))?
                }
            )*
            $(
                #[doc = concat!("Blocks until [`crate::", stringify!($name), "::", stringify!($end), "`] returns.")]
                ///
                /// # Errors
                ///
                /// Those of the async call; `Config` inside an async runtime: the guard is dropped then.
                pub fn $end(self $(, $e_arg: $e_type)*) -> Result<$end_output> {
                    wait(self.0.$end($($e_arg),*))$(.map($end_convert))?
                }
            )*
        }
    )*};
}

blocking! {
    #[derive(Clone)]
    Store {
        async open(options: SessionOptions) -> Session as Session;
        async resume(id: &SessionId) -> Session as Session;
        async guarantees() -> Guarantees;
        async raise_token_floor(floor: FencingToken) -> ();
    }

    /// Derefs to it for what does not block: its id, its validity.
    #[derive(Clone)]
    Session derefs to crate::Session {
        handle locker(name: impl AsRef<str>) -> LockHandle;
        handle rw_lock(name: impl AsRef<str>) -> RwLockHandle;
        handle election(name: impl AsRef<str>) -> ElectionHandle;
        handle queue(name: impl AsRef<str>) -> QueueHandle;
        handle barrier(name: impl AsRef<str>) -> BarrierHandle;
        handle double_barrier(name: impl AsRef<str>, count: u32) -> DoubleBarrierHandle;
        handle stm() -> StmHandle;
        async lock(name: impl AsRef<str>) -> LockGuard as LockGuard;
        async try_lock(name: impl AsRef<str>) -> Option<LockGuard> as |guard| guard.map(LockGuard);
        async read_lock(name: impl AsRef<str>) -> ReadGuard as ReadGuard;
        async write_lock(name: impl AsRef<str>) -> WriteGuard as WriteGuard;
        async close() -> ();
        async detach() -> SessionId;
    }

    #[derive(Clone)]
    LockHandle {
        async lock() -> LockGuard as LockGuard;
        async try_lock() -> Option<LockGuard> as |guard| guard.map(LockGuard);
        async lock_timeout(limit: Duration) -> LockGuard as LockGuard;
        async reclaim(token: FencingToken) -> LockGuard as LockGuard;
    }

    #[must_use = "a guard that is not bound releases the lock at once"]
    LockGuard derefs to Holding {
        end release() -> ();
    }

    #[derive(Clone)]
    RwLockHandle {
        async read() -> ReadGuard as ReadGuard;
        async try_read() -> Option<ReadGuard> as |guard| guard.map(ReadGuard);
        async read_timeout(limit: Duration) -> ReadGuard as ReadGuard;
        async reclaim_read(token: FencingToken) -> ReadGuard as ReadGuard;
        async write() -> WriteGuard as WriteGuard;
        async try_write() -> Option<WriteGuard> as |guard| guard.map(WriteGuard);
        async write_timeout(limit: Duration) -> WriteGuard as WriteGuard;
        async reclaim_write(token: FencingToken) -> WriteGuard as WriteGuard;
    }

    #[must_use = "a guard that is not bound releases the lock at once"]
    ReadGuard derefs to Holding {
        end release() -> ();
    }

    #[must_use = "a guard that is not bound releases the lock at once"]
    WriteGuard derefs to Holding {
        end release() -> ();
        end downgrade() -> ReadGuard as ReadGuard;
    }

    #[derive(Clone)]
    ElectionHandle {
        handle observe() -> Observer;
        async campaign(value: impl AsRef<[u8]>) -> Leadership as Leadership;
        async try_campaign(value: impl AsRef<[u8]>) -> Option<Leadership> as |guard| guard.map(Leadership);
        async campaign_timeout(value: impl AsRef<[u8]>, limit: Duration) -> Leadership as Leadership;
        async reclaim(token: FencingToken) -> Leadership as Leadership;
        async leader() -> Option<Leader>;
    }

    #[must_use = "a leadership that is not bound is resigned at once"]
    Leadership derefs to Holding {
        async proclaim(value: impl AsRef<[u8]>) -> ();
        end resign() -> ();
    }

    /// It is an iterator whose `next` blocks until the next state.
    Observer {}

    #[derive(Clone)]
    QueueHandle {
        with dead_letter(max_deliveries: u32, name: impl AsRef<str>);
        async enqueue(item: impl Into<NewItem>) -> ();
        async enqueue_many(items: impl IntoIterator<Item = impl Into<NewItem>>) -> ();
        async dequeue() -> Delivery as Delivery;
        async try_dequeue() -> Option<Delivery> as |guard| guard.map(Delivery);
        async dequeue_timeout(limit: Duration) -> Delivery as Delivery;
        async dequeue_many(max: usize) -> Vec<Delivery> as |many| many.into_iter().map(Delivery).collect();
        async pop() -> Vec<u8>;
        async try_pop() -> Option<Vec<u8>>;
        async len() -> u64;
        async depth() -> QueueDepth;
        async peek() -> Option<PeekedItem>;
        async purge() -> u64;
    }

    #[must_use = "an item that is not bound goes back at once"]
    Delivery derefs to crate::Delivery {
        end ack() -> ();
        end nack() -> ();
        end nack_after(delay: Duration) -> ();
    }

    #[derive(Clone)]
    BarrierHandle {
        async hold() -> BarrierGuard as BarrierGuard;
        async close() -> ();
        async open() -> bool;
        async is_held() -> bool;
        async wait() -> ();
        async wait_timeout(limit: Duration) -> ();
    }

    #[must_use = "a guard that is not bound releases the barrier at once"]
    BarrierGuard derefs to crate::BarrierGuard {
        end release() -> ();
    }

    #[derive(Clone)]
    DoubleBarrierHandle {
        async enter() -> Participant as Participant;
        async enter_timeout(limit: Duration) -> Participant as Participant;
    }

    #[must_use = "a participant that is not bound leaves at once"]
    Participant derefs to Holding {
        end leave() -> ();
    }

    #[derive(Clone)]
    StmHandle {
        with isolation(isolation: Isolation);
        with attempts(attempts: u32);
        async get(key: impl AsRef<str>) -> Option<Vec<u8>>;
        async get_string(key: impl AsRef<str>) -> Option<String>;
        async entry(key: impl AsRef<str>) -> Option<StmEntry>;
        async put(key: impl AsRef<str>, value: impl Into<Vec<u8>>) -> u64;
        async delete(key: impl AsRef<str>) -> bool;
    }

    FencedStm<'g> {}

    #[derive(Clone)]
    Tx {
        plain put(key: impl AsRef<str>, value: impl Into<Vec<u8>>) -> Result<()>;
        plain put_as(key: impl AsRef<str>, value: &(impl Serialize + ?Sized)) -> Result<()>;
        plain delete(key: impl AsRef<str>) -> Result<()>;
        async get(key: impl AsRef<str>) -> Option<Vec<u8>>;
        async get_string(key: impl AsRef<str>) -> Option<String>;
        async rev(key: impl AsRef<str>) -> u64;
    }
}

impl Store {
    /// Opens a session, runs `work` with it, and closes the session on every path, also when `work` panics.
    ///
    /// # Errors
    ///
    /// Those of [`open`](Self::open), and those of `work`.
    pub fn with_session<T>(&self, options: SessionOptions, work: impl FnOnce(&Session) -> Result<T>) -> Result<T> {
        struct Closing(Session);
        impl Drop for Closing {
            fn drop(&mut self) {
                // A failure to close does not discard the output: the TTL ends the session.
                let _ = self.0.close();
            }
        }

        let session = Closing(self.open(options)?);
        work(&session.0)
    }
}

impl Iterator for Observer {
    type Item = Result<LeaderUpdate>;

    fn next(&mut self) -> Option<Self::Item> {
        wait(async { Ok(self.0.next().await) }).unwrap_or_else(|error: Error| Some(Err(error)))
    }
}

impl StmHandle {
    /// Returns a handle whose transactions commit only if `guard` is held in the store: [`crate::StmHandle::fenced_by`].
    pub fn fenced_by<'g>(&self, guard: &'g Holding) -> FencedStm<'g> {
        FencedStm(self.0.fenced_by(guard))
    }

    /// Runs `work` as a transaction and repeats it until it commits: [`crate::StmHandle::run`].
    ///
    /// # Errors
    ///
    /// Those of the async call; `Config` inside an async runtime.
    pub fn run<T>(&self, mut work: impl FnMut(&Tx) -> Result<T>) -> Result<T> {
        wait(self.0.run(|tx| std::future::ready(work(&Tx(tx)))))
    }
}

impl FencedStm<'_> {
    /// Runs `work` as a transaction that commits only if the guard is held: [`crate::FencedStm::run`].
    ///
    /// # Errors
    ///
    /// Those of the async call; `Config` inside an async runtime.
    pub fn run<T>(&self, mut work: impl FnMut(&Tx) -> Result<T>) -> Result<T> {
        wait(self.0.run(|tx| std::future::ready(work(&Tx(tx)))))
    }
}

impl Tx {
    /// Reads and deserializes a JSON value: [`crate::Tx::get_as`].
    ///
    /// # Errors
    ///
    /// Those of the async call.
    pub fn get_as<T: DeserializeOwned>(&self, key: impl AsRef<str>) -> Result<Option<T>> {
        wait(self.0.get_as(key))
    }
}
