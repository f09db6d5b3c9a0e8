//! Lists that are appended to and read in transactions.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tenure_core::{Effect, Isolation, Result, StmHandle, Tx};

use super::client::{Client, Epoch, Shared, clients};
use crate::case::Outcome;
use crate::cases::open_on;
use crate::checkers::Fate;
use crate::checkers::list_append::{Lists, Step};
use crate::harness::Harness;

/// Which all must keep the same promise, beside each other.
const SERIALIZABLE: [Isolation; 2] = [Isolation::Serializable, Isolation::SerializableSnapshot];

/// So many reads in one transaction of the last look.
const READS: usize = 8;

impl Client {
    pub(super) async fn append_and_read(&mut self) {
        while self.goes_on() {
            let level = usize::try_from(self.random.below(2)).unwrap_or_default();
            let level = self.shared.plan.isolation.unwrap_or(SERIALIZABLE[level]);
            if let Some(session) = self.session().await
                && let Ok(stm) = session.stm()
            {
                self.transact(&stm.isolation(level).attempts(100)).await;
            }
            self.think().await;
        }
    }

    async fn transact(&mut self, stm: &StmHandle) {
        let epoch = self.shared.epoch();
        let steps = self.steps(&epoch);
        let ticket = epoch.lists.call(self.number, steps.clone());
        let running = stm.run(|tx| step_by_step(tx, Arc::clone(&epoch), steps.clone()));
        match self.attempt(running).await {
            Some(Ok(lists)) => {
                epoch.lists.done(ticket, lists);
                self.achieved();
            }
            Some(Err(error)) if error.effect() == Effect::None => {
                epoch.lists.end(ticket, Fate::Failed);
            }
            _ => epoch.lists.end(ticket, Fate::Unknown),
        }
        self.shared.transactions.fetch_add(1, Ordering::Relaxed);
    }

    fn steps(&mut self, epoch: &Epoch) -> Vec<Step> {
        let mut keys = epoch.keys.lock();
        let keys = keys.as_mut().unwrap_or_else(|broken| broken.get_mut());
        let random = &mut self.random;
        let step = |_| match random.below(2) {
            0 => keys.append(random.next()),
            _ => keys.read(random.next()),
        };
        (0..4).map(step).collect()
    }
}

async fn step_by_step(tx: Tx, epoch: Arc<Epoch>, steps: Vec<Step>) -> Result<Lists> {
    let name = |key: u64| epoch.name(&format!("list {key}"));
    let mut lists = Vec::new();
    for step in steps {
        // Others get their turn in between, on a store that never makes anybody wait, too.
        tokio::task::yield_now().await;
        match step {
            Step::Append { key, value } => {
                let key = name(key);
                let mut list: Vec<u64> = tx.get_as(&key).await?.unwrap_or_default();
                list.push(value);
                tx.put_as(&key, &list)?;
            }
            Step::Read { key } => {
                lists.push(tx.get_as(name(key)).await?.unwrap_or_default());
            }
        }
    }
    Ok(lists)
}

/// All lists are read once more: what is missing in the end was lost.
pub(super) async fn last_look(
    harness: &dyn Harness,
    shared: &Shared,
    patience: Duration,
) -> std::result::Result<(), Outcome> {
    let epoch = shared.epoch();
    let keys: BTreeSet<u64> = epoch
        .lists
        .operations()
        .iter()
        .flat_map(|operation| &operation.input)
        .map(|step| match step {
            Step::Append { key, .. } | Step::Read { key } => *key,
        })
        .collect();
    let keys: Vec<u64> = keys.into_iter().collect();
    let until = Instant::now() + patience;
    for some in keys.chunks(READS) {
        let steps: Vec<Step> = some.iter().map(|key| Step::Read { key: *key }).collect();
        loop {
            let ticket = epoch.lists.call(clients(), steps.clone());
            match once_more(harness, shared, &epoch, &steps).await {
                Ok(lists) => {
                    epoch.lists.done(ticket, lists);
                    break;
                }
                Err(error) => {
                    // It writes nothing.
                    epoch.lists.end(ticket, Fate::Failed);
                    if Instant::now() >= until {
                        return Err(Outcome::violated(format!(
                            "the lists could not be read {patience:?} after everybody had left: {error}",
                            error = error.chain()
                        )));
                    }
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    Ok(())
}

async fn once_more(
    harness: &dyn Harness,
    shared: &Shared,
    epoch: &Arc<Epoch>,
    steps: &[Step],
) -> Result<Lists> {
    let session = open_on(&harness.connect().await?, shared.ttl * 5).await?;
    let stm = session.stm()?;
    let lists = stm
        .run(|tx| step_by_step(tx, Arc::clone(epoch), steps.to_vec()))
        .await?;
    session.close().await?;
    Ok(lists)
}
