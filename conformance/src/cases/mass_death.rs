//! A holder and everyone behind it die at the same moment, as when a machine with many processes fails.

use std::time::{Duration, Instant};

use tenure_core::{Result, Session};

use super::tools::{
    LONG, Process, SLACK, Task, count_keys, ensure, expiry_bound, held, open, open_on, promptly,
    spawn, within,
};
use crate::case::Verdict;
use crate::harness::Harness;

/// How many waiters die with the holder, each in a session of its own.
const WAITERS: usize = 24;

/// The one name that all of them want.
const NAME: &str = "wanted";

/// What all of them want.
#[derive(Clone, Copy)]
pub(super) enum Wanted {
    Lock,
    Leadership,
    WriteSide,
    ReadSide,
    Item,
}

impl Wanted {
    /// Makes it available.
    async fn offer(self, session: &Session) -> Result<()> {
        if matches!(self, Self::Item) {
            session.queue(NAME)?.enqueue("item").await?;
        }
        Ok(())
    }

    /// Waits for it, keeps it until `kept` ends, and gives it back.
    async fn take(self, session: Session, kept: impl Future<Output = ()>) -> Result<()> {
        match self {
            Self::Lock => {
                let guard = session.locker(NAME)?.lock().await?;
                kept.await;
                guard.release().await
            }
            Self::Leadership => {
                let leadership = session.election(NAME)?.campaign("candidate").await?;
                kept.await;
                leadership.resign().await
            }
            Self::WriteSide => {
                let guard = session.rw_lock(NAME)?.write().await?;
                kept.await;
                guard.release().await
            }
            Self::ReadSide => {
                let guard = session.rw_lock(NAME)?.read().await?;
                kept.await;
                guard.release().await
            }
            Self::Item => {
                let delivery = session.queue(NAME)?.dequeue().await?;
                kept.await;
                delivery.ack().await
            }
        }
    }

    /// What the holder wants, so that the others have to wait.
    const fn of_the_holder(self) -> Self {
        match self {
            // Readers would share it.
            Self::ReadSide => Self::WriteSide,
            other => other,
        }
    }
}

/// Waits until the namespace has this many keys. Where waiters leave none, or nothing tells, time has to do.
async fn in_line(harness: &dyn Harness, keys: usize) -> Result<()> {
    let (mut seen, mut since) = (0, Instant::now());
    while seen < keys && since.elapsed() < SLACK {
        let now = count_keys(harness).await?;
        if now > seen {
            (seen, since) = (now, Instant::now());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// A holder and many waiters of one process are killed; a waiter of another process came last.
pub(super) async fn survivor_is_served(harness: &dyn Harness, wanted: Wanted) -> Verdict {
    let bound = expiry_bound(harness).await?;
    let survivor = open(harness, LONG).await?;
    // A first grant, to learn whether the store offers it at all.
    wanted.offer(&survivor).await?;
    let first = wanted.of_the_holder().take(survivor.clone(), async {});
    promptly("a first grant", first).await??;
    wanted.offer(&survivor).await?;
    let process = Process::start()?;
    let mut ttl = Duration::ZERO;
    let before = count_keys(harness).await?;
    for number in 0..=WAITERS {
        let store = harness.connect().await?;
        let asked = harness.ttl();
        let session = process
            .run(async move { open_on(&store, asked).await })
            .await??;
        ttl = ttl.max(session.ttl());
        let wanted = if number == 0 {
            wanted.of_the_holder()
        } else {
            wanted
        };
        let (tell, told) = tokio::sync::oneshot::channel();
        process.start_in(async move {
            let kept = async move {
                let _ = tell.send(());
                std::future::pending::<()>().await;
            };
            let _ = wanted.take(session, kept).await;
        });
        if number == 0 {
            ensure!(
                promptly("the holder's grant", told).await?.is_ok(),
                "the holder was refused"
            );
        }
    }
    in_line(harness, before + WAITERS).await?;
    let (tell, told) = tokio::sync::oneshot::channel();
    let kept = async move {
        let _ = tell.send(Instant::now());
    };
    let mut waiting: Task<Result<()>> = spawn(wanted.take(survivor.clone(), kept));
    in_line(harness, before + WAITERS + 1).await?;
    ensure!(
        !waiting.is_finished(),
        "a waiter was granted what another holds"
    );
    process.kill().await;
    let killed = Instant::now();
    let granted = within(
        ttl + bound + SLACK,
        "the grant to the only live waiter",
        told,
    );
    let granted = granted.await?;
    waiting.end(SLACK, "the survivor's release").await??;
    match granted {
        Ok(at) => held!(
            "granted {:?} after the death of a holder and {WAITERS} waiters, under a TTL of {ttl:?}",
            at.duration_since(killed)
        ),
        Err(_) => Err(crate::case::Outcome::violated("the survivor was refused")),
    }
}
