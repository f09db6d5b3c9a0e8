//! Transactional memory, broken.

use std::sync::Arc;
use std::time::Duration;

use tenure_conformance::async_trait;
use tenure_core::backend::{Outcome, Read, Resolution, Stm, Transaction};
use tenure_core::{Name, Op, Result};
use tenure_memory::MemoryStm;

use super::{Bug, World};

pub(crate) struct MutantStm {
    pub(crate) inner: Arc<MemoryStm>,
    pub(crate) world: Arc<World>,
}

#[async_trait]
impl Stm for MutantStm {
    async fn read(&self, keys: &[Name], at: Option<u64>) -> Result<Read> {
        if self.world.bug == Bug::TornReads {
            let mut read = self.inner.read(keys, None).await?;
            read.revision = at.unwrap_or(read.revision);
            read.repeatable = true;
            return Ok(read);
        }
        self.inner.read(keys, at).await
    }

    async fn commit(&self, transaction: &Transaction) -> Result<Outcome> {
        let mut changed = transaction.clone();
        match self.world.bug {
            Bug::BlindCommit => changed.compares.clear(),
            Bug::UnfencedCommit => changed.fence = None,
            Bug::HalfCommit if changed.then.len() > 1 => {
                let writes = |op: &Op<Name>| op.writes();
                if let Some(last) = changed.then.iter().rposition(writes) {
                    changed.then.remove(last);
                }
            }
            Bug::BothBranches => {
                let missing = |op: &&Op<Name>| op.writes();
                let then: Vec<_> = changed.then.iter().filter(missing).cloned().collect();
                changed.or_else.extend(then);
            }
            _ => {}
        }
        self.inner.commit(&changed).await
    }

    async fn resolve(&self, transaction: &Transaction) -> Result<Resolution> {
        match self.world.bug {
            Bug::BlindRetry => {
                // Else the slot would be lost.
                let inner = Arc::clone(&self.inner);
                let transaction = transaction.clone();
                tokio::spawn(async move { inner.resolve(&transaction).await });
                tokio::time::sleep(Duration::from_millis(20)).await;
                Ok(Resolution::Aborted)
            }
            Bug::HopefulResolve => Ok(Resolution::Committed {
                revision: 0,
                succeeded: true,
            }),
            _ => self.inner.resolve(transaction).await,
        }
    }

    fn check(&self, transaction: &Transaction) -> Result<()> {
        match self.world.bug {
            Bug::NoLimits => Ok(()),
            _ => self.inner.check(transaction),
        }
    }
}
