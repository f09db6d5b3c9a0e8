//! Barriers: rule B1.

use std::time::Duration;

use tenure_core::{BarrierHandle, ErrorKind, LossReason, Result};

use super::{granted, still_waiting, waiter};
use crate::case::cases;
use crate::harness::Harness;
use crate::outcome::{Outcome, Step, Verdict};
use crate::tools::{LONG, PROMPT, Task, done, ensure, held, open, promptly, refused};

cases! { CASES:
    b1_wait_returns_after_a_release "B1"
        "a wait ends after a release by any client, or at once if the barrier is not held"
        (None) [] always;
    b1_second_hold_is_refused "B1"
        "a barrier has one hold at a time: a second hold and a second closure are refused" (None) [] always;
    b1_hold_ends_with_its_session "B1" "a hold ends with its guard or its session, a closure does not" (None) [] always;
    b1_every_release_ends_the_waits "B1" "a release ends all waits, also if the barrier is held again directly after it"
        (None) [] always;
    b1_guard_of_an_opened_barrier_frees_no_other "B1"
        "a guard whose hold was ended does not end a later hold" (None) [] always;
}

async fn sleeper(harness: &dyn Harness, barrier: &BarrierHandle) -> Step<Task<Result<()>>> {
    let barrier = barrier.clone();
    waiter(harness, async move { barrier.wait().await }).await
}

async fn b1_wait_returns_after_a_release(harness: &dyn Harness) -> Verdict {
    let (holder, guest) = (open(harness, LONG).await?, open(harness, LONG).await?);
    let (held, seen) = (holder.barrier("gate"), guest.barrier("gate"));
    done("wait at a free barrier", seen.wait()).await?;
    ensure!(
        !done("is_held", seen.is_held()).await?,
        "a barrier that no client holds is held"
    );
    for opened in [false, true] {
        let guard = done("hold", held.hold()).await?;
        ensure!(
            done("is_held", seen.is_held()).await? && guard.is_valid(),
            "a held barrier is not held"
        );
        let mut waiters = [sleeper(harness, &seen).await?, sleeper(harness, &held).await?];
        still_waiting("at a held barrier", &waiters.each_ref()).await?;
        let timed = promptly("wait_timeout", seen.wait_timeout(Duration::from_millis(50))).await?;
        refused("a wait with a limit", timed, &[ErrorKind::TimedOut])?;
        match opened {
            false => done("release", guard.release()).await?,
            // Another session than the holder's ends the hold.
            true => ensure!(done("open", seen.open()).await?, "a held barrier was not there to open"),
        }
        for waiter in &mut waiters {
            granted(waiter, "the end of a wait after a release").await?;
        }
        ensure!(!done("open", seen.open()).await?, "a free barrier was there to open");
        done("wait at a free barrier", seen.wait()).await?;
    }
    held!("two waiters went on after a release, and after another session opened the barrier")
}

async fn b1_second_hold_is_refused(harness: &dyn Harness) -> Verdict {
    let (first, second) = (open(harness, LONG).await?, open(harness, LONG).await?);
    let (mine, other) = (first.barrier("gate"), second.barrier("gate"));
    for closed in [false, true] {
        let guard = match closed {
            true => {
                done("close", mine.close()).await?;
                None
            }
            false => Some(done("hold", mine.hold()).await?),
        };
        for barrier in [&other, &mine] {
            refused(
                "a second hold",
                promptly("hold", barrier.hold()).await?,
                &[ErrorKind::Conflict],
            )?;
            refused(
                "a second closure",
                promptly("close", barrier.close()).await?,
                &[ErrorKind::Conflict],
            )?;
        }
        ensure!(done("is_held", mine.is_held()).await?, "a refused hold ended the first");
        match guard {
            Some(guard) => done("release", guard.release()).await?,
            None => ensure!(
                done("open", other.open()).await?,
                "a closed barrier was not there to open"
            ),
        }
        ensure!(
            !done("is_held", other.is_held()).await?,
            "a refused hold was left behind"
        );
    }
    held!("each second hold and closure was refused with Conflict")
}

async fn b1_hold_ends_with_its_session(harness: &dyn Harness) -> Verdict {
    let guest = open(harness, LONG).await?.barrier("gate");
    for dropped in [true, false] {
        let session = open(harness, LONG).await?;
        let guard = done("hold", session.barrier("gate").hold()).await?;
        let mut waiter = sleeper(harness, &guest).await?;
        still_waiting("at a held barrier", &[&waiter]).await?;
        match dropped {
            true => drop(guard),
            false => {
                done("close", session.close()).await?;
                ensure!(
                    guard.loss() == Some(LossReason::Closed),
                    "a hold outlived its session: {:?}",
                    guard.loss()
                );
            }
        }
        granted(&mut waiter, "the end of a hold with its guard or its session").await?;
    }
    let session = open(harness, LONG).await?;
    done("close of a barrier", session.barrier("gate").close()).await?;
    let mut waiter = sleeper(harness, &guest).await?;
    done("close", session.close()).await?;
    still_waiting(
        "at a closed barrier, after the end of the session that closed it",
        &[&waiter],
    )
    .await?;
    ensure!(
        done("open", guest.open()).await?,
        "a closed barrier was not there to open"
    );
    granted(&mut waiter, "the end of a wait at an opened barrier").await?;
    held!("a hold ended with its guard and with its session, a closure when it was opened")
}

async fn b1_every_release_ends_the_waits(harness: &dyn Harness) -> Verdict {
    const ROUNDS: usize = 10;
    let (holder, guest) = (open(harness, LONG).await?, open(harness, LONG).await?);
    let (held, seen) = (holder.barrier("gate"), guest.barrier("gate"));
    let mut guard = done("hold", held.hold()).await?;
    for round in 0..ROUNDS {
        let mut waiter = sleeper(harness, &seen).await?;
        done("release", guard.release()).await?;
        guard = done("hold", held.hold()).await?;
        let ended = tokio::time::timeout(PROMPT, granted(&mut waiter, "the end of a wait")).await;
        let missed = |_| {
            Outcome::violated(format!(
                "round {round}: a release with another hold after it ended no wait"
            ))
        };
        ended.map_err(missed)??;
    }
    held!("{ROUNDS} releases, each with another hold directly after it, ended each wait")
}

async fn b1_guard_of_an_opened_barrier_frees_no_other(harness: &dyn Harness) -> Verdict {
    let (first, second) = (open(harness, LONG).await?, open(harness, LONG).await?);
    for dropped in [false, true] {
        let stale = done("hold", first.barrier("gate").hold()).await?;
        ensure!(
            done("open", second.barrier("gate").open()).await?,
            "a held barrier was not there to open"
        );
        let guard = done("hold", second.barrier("gate").hold()).await?;
        ensure!(
            guard.token() > stale.token(),
            "token {} followed {}",
            guard.token(),
            stale.token()
        );
        match dropped {
            true => drop(stale),
            false => drop(refused(
                "a late release",
                promptly("release", stale.release()).await?,
                &[ErrorKind::Lost],
            )?),
        }
        let mut waiter = sleeper(harness, &first.barrier("gate")).await?;
        still_waiting("after a late release of an earlier hold", &[&waiter]).await?;
        done("release", guard.release()).await?;
        granted(&mut waiter, "the end of a wait").await?;
    }
    held!("a late release and a late drop left the later hold alone")
}
