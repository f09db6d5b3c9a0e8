//! The cases that one primitive alone has. A rule that holds for every role is in the table.

use tenure_core::Result;

use crate::case::Case;
use crate::harness::{Harness, Link};
use crate::outcome::Step;
use crate::tools::{Arrivals, LOOK, PROMPT, Task, ensure, settle, spawn, within};

mod barrier;
mod commit;
mod delivery;
mod double_barrier;
mod election;
mod events;
mod limits;
mod lock;
mod promise;
mod queue;
mod rw_lock;
mod session;
mod stm;

/// All cases, in the order of the contract.
pub(crate) const LISTS: &[&[Case]] = &[
    promise::CASES,
    session::CASES,
    lock::CASES,
    election::CASES,
    rw_lock::CASES,
    queue::CASES,
    delivery::CASES,
    barrier::CASES,
    double_barrier::CASES,
    stm::CASES,
    commit::CASES,
    limits::CASES,
    events::CASES,
];

/// Starts `waiting` in a task, and returns once the store has its place in the wait queue.
async fn waiter<T: Send + 'static>(
    harness: &dyn Harness,
    waiting: impl Future<Output = T> + Send + 'static,
) -> Step<Task<T>> {
    let mut arrivals = Arrivals::watch(harness).await?;
    let task = spawn(waiting);
    arrivals.one_more().await?;
    Ok(task)
}

/// Waits until the link has kept a request. The client's reaction has not begun then, on a fast machine.
async fn request_is_delayed(link: &dyn Link) -> Step<()> {
    let kept = async {
        while !link.has_delayed_request() {
            tokio::time::sleep(LOOK / 10).await;
        }
    };
    within(PROMPT, "a request that is kept", kept).await
}

/// Waits for the result of a waiter, which must succeed.
async fn granted<T>(task: &mut Task<Result<T>>, what: &str) -> Step<T> {
    Ok(task.end(PROMPT, what).await??)
}

/// Breaks the promise if one of `tasks` ends within a while.
async fn still_waiting<T>(when: &str, tasks: &[&Task<T>]) -> Step<()> {
    settle().await;
    for (number, task) in tasks.iter().enumerate() {
        ensure!(!task.is_finished(), "{when}, waiter {number} did not wait");
    }
    Ok(())
}
