//! The sweeper: frees what dead sessions had, in steps of at most about 2 ms of the server.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tenure_core::Result;
use tenure_core::executor::Executor;
use tokio::time::{Instant, sleep};

use crate::connection::{Client, Line, Link};
use crate::script::{Answer, Argument, SWEEP};

/// The sweeper of one store, shared by its sessions.
pub(crate) struct Sweeper {
    client: Client,
    executor: Executor,
    wanted: AtomicBool,
    running: AtomicBool,
}

impl Sweeper {
    pub(crate) fn new(client: Client, executor: Executor) -> Arc<Self> {
        Arc::new(Self {
            client,
            executor,
            wanted: AtomicBool::new(false),
            running: AtomicBool::new(false),
        })
    }

    /// Sweeps in the background until nothing is due. A failure ends it: the client that meets the rest starts it again, the next
    /// renewal of any session at the latest.
    pub(crate) fn start(self: &Arc<Self>) {
        self.wanted.store(true, Ordering::Release);
        if self.running.swap(true, Ordering::AcqRel) {
            return;
        }
        let this = Arc::clone(self);
        drop(self.executor.spawn(async move {
            while this.wanted.swap(false, Ordering::AcqRel) {
                while let Ok(true) = this.rested_step().await {}
            }
            this.running.store(false, Ordering::Release);
            // One that was wanted since the last look at the flag.
            if this.wanted.load(Ordering::Acquire) {
                this.start();
            }
        }));
    }

    /// Rests for as long as the step took: nothing else slows the uncontended steps of others while a fleet dies.
    async fn rested_step(&self) -> Result<bool> {
        let began = Instant::now();
        let link = self.client.link().await?;
        let more = step(&link).await?;
        sleep(began.elapsed()).await;
        Ok(more)
    }
}

/// Frees at most 100 entries of what is due. Returns whether more is due.
pub(crate) async fn step(link: &Link) -> Result<bool> {
    let nothing = || Argument::from("");
    let arguments = vec![Argument::from("sweep"), nothing(), 0.into(), nothing(), 0.into()];
    let answer = link.call(Line::Commands, &SWEEP, arguments).await?;
    Ok(Answer::read("sweep", answer)?.word()? == "more")
}
