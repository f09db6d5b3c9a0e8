//! The runtime of the application, where the connection for commands lives while that runtime works.
//!
//! A request and its answer cross no thread there: an uncontended lock and its release take 1.3 times two bare scripts, and 1.7
//! to 1.9 times on the library's thread. Everything that keeps a lease stays on the library's thread. A runtime that is blocked
//! or gone is noticed by an empty task that does not run; the next link then has all its connections on the library's thread,
//! and its epoch refuses what the blocked runtime still sends.

use std::future::pending;
use std::time::Duration;

use tenure_core::executor::{Executor, is_library_thread};
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep, timeout};

use super::socket::{Ended, Socket};

/// The part in which the time of a runtime is counted.
const SLICE: Duration = Duration::from_millis(100);

/// How many slices the runtime may take to run an empty task while the library's own work waits for it, such as the release of a
/// guard that the end of `main` dropped.
const PATIENCE: u32 = 3;

/// The same while only requests of the application wait. A runtime that has much to do is not blocked.
const LONG_PATIENCE: u32 = 10;

/// Returns the current runtime, if it is one of the application.
pub(super) fn here(executor: &Executor) -> Option<Handle> {
    let is_elsewhere = executor.is_library() && !is_library_thread();
    Handle::try_current().ok().filter(|_| is_elsewhere)
}

/// Returns whether `home` runs tasks.
pub(super) async fn works(home: &Handle) -> bool {
    let probe = timeout(SLICE, home.spawn(async {}));
    matches!(probe.await, Ok(Ok(())))
}

/// Returns when the runtime of a connection does not run tasks although requests are in flight; never for one on the library's
/// thread.
pub(super) async fn watch(socket: &Socket) -> Ended {
    let Some(home) = socket.home() else {
        return pending().await;
    };
    loop {
        sleep(SLICE).await;
        if socket.is_busy() && !runs_in_time(home, socket).await && socket.is_busy() {
            return Ended::Blocked;
        }
    }
}

/// Returns whether `home` runs an empty task before the patience for the requests of `socket` ends.
async fn runs_in_time(home: &Handle, socket: &Socket) -> bool {
    let mut probe = home.spawn(async {});
    let mut waited = 0;
    while waited < if socket.has_cleanups() { PATIENCE } else { LONG_PATIENCE } {
        let began = Instant::now();
        if let Ok(ran) = timeout(SLICE, &mut probe).await {
            return ran.is_ok();
        }
        // This thread did not get the processor either: that tells nothing of the runtime.
        waited += u32::from(began.elapsed() < SLICE * 2);
    }
    false
}
