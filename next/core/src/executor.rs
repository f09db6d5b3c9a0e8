//! Where the library's own work runs.

use std::cell::Cell;
use std::future::{Future, pending, poll_fn};
use std::io;
use std::pin::pin;
use std::process;
use std::thread;

use parking_lot::Mutex;
use tokio::runtime::{Builder, EnterGuard, Handle};
use tokio::task::JoinHandle;

use crate::error::{Error, ErrorKind, Result};

thread_local! {
    // `const` and without a destructor: it can be read while the thread's other locals are dropped.
    static IS_LIBRARY_THREAD: Cell<bool> = const { Cell::new(false) };
}

/// The library's runtime, and the process in which its thread is.
static LIBRARY: Mutex<Option<(u32, Handle)>> = Mutex::new(None);

/// The runtime on which the library's own work runs: renewals, cleanups, waits and their timers. User code never runs there.
#[derive(Clone, Debug)]
pub struct Executor {
    handle: Handle,
    is_library: bool,
}

impl Executor {
    /// Returns the library's thread: a current-thread runtime, one in each process, which is never shut down.
    ///
    /// The first call starts the thread. After a fork the child has no such thread, and its first call starts one.
    ///
    /// # Errors
    ///
    /// `Internal` if the system refuses the thread.
    pub fn library() -> Result<Self> {
        let mut library = LIBRARY.lock();
        let handle = match &*library {
            Some((process, handle)) if *process == process::id() => handle.clone(),
            _ => {
                let handle = start().map_err(|error| {
                    Error::new(
                        ErrorKind::Internal,
                        "cannot start the library's thread: raise the limit of threads",
                    )
                    .with_source(error)
                })?;
                // After a fork, the runtime of the parent is never dropped here: its thread owns it.
                *library = Some((process::id(), handle.clone()));
                handle
            }
        };
        Ok(Self {
            handle,
            is_library: true,
        })
    }

    /// Returns the current runtime, for stores without input and output, so that a paused clock works. A blocked runtime
    /// blocks the renewals too.
    ///
    /// # Errors
    ///
    /// `Config` outside a tokio runtime.
    pub fn current() -> Result<Self> {
        Handle::try_current().map(Self::given).map_err(|error| {
            Error::new(
                ErrorKind::Config,
                "there is no tokio runtime here: call this from inside one",
            )
            .with_source(error)
        })
    }

    /// Returns the runtime of `handle`, which the application keeps alive and unblocked.
    pub const fn given(handle: Handle) -> Self {
        Self {
            handle,
            is_library: false,
        }
    }

    /// Returns whether this is the library's thread.
    pub const fn is_library(&self) -> bool {
        self.is_library
    }

    /// Returns the runtime's handle.
    pub const fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Enters the runtime: timers and sockets that are made while the guard lives belong to it.
    pub fn enter(&self) -> EnterGuard<'_> {
        self.handle.enter()
    }

    /// Runs `work` in a task.
    pub fn spawn<F>(&self, work: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.handle.spawn(work)
    }

    /// Polls `work` in the caller's task, with the runtime entered at each poll. Cheaper than a task by two thread switches.
    ///
    /// # Cancel safety
    ///
    /// As `work`.
    pub async fn run_in_place<F: Future>(&self, work: F) -> F::Output {
        let mut work = pin!(work);
        poll_fn(|context| {
            let _entered = self.enter();
            work.as_mut().poll(context)
        })
        .await
    }
}

/// Returns whether the caller runs on the library's thread, where a `drop` must not wait for other work of the library.
/// Works in destructors of thread-locals too.
pub fn is_library_thread() -> bool {
    IS_LIBRARY_THREAD.try_with(Cell::get).unwrap_or(true)
}

fn start() -> io::Result<Handle> {
    // One thread on purpose: with several workers, a woken renewal can wait behind a task that blocks its worker.
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    thread::Builder::new().name("tenure".into()).spawn(move || {
        IS_LIBRARY_THREAD.set(true);
        runtime.block_on(pending::<()>())
    })?;
    Ok(handle)
}
