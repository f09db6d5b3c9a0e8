//! The embedded store under test.

use std::sync::OnceLock;

use async_trait::async_trait;
use tenure_core::{Error, ErrorKind, Namespace, Result, SessionId, Store};
use tenure_memory::{Fault, MemoryBackend, MemoryConfig};

use crate::case::Case;
use crate::harness::{Harness, Link, Linked, Need, Operator, Subject};

/// An embedded store of its own. It comes to life at the first connection, on the runtime of
/// that moment.
#[derive(Debug, Default)]
pub struct MemoryHarness {
    store: OnceLock<Store<MemoryBackend>>,
}

impl MemoryHarness {
    /// A store that nobody else sees.
    pub fn new() -> Self {
        Self::default()
    }

    fn another(&self) -> Result<MemoryBackend> {
        if let Some(store) = self.store.get() {
            return Ok(store.backend().reconnect());
        }
        let store = tenure_memory::connect(MemoryConfig::new())?;
        // Of two that come first at the same time, one store stays.
        Ok(self.store.get_or_init(|| store).backend().reconnect())
    }
}

#[async_trait]
impl Harness for MemoryHarness {
    async fn connect(&self) -> Result<Store> {
        Ok(Store::new(self.another()?).into_dyn())
    }

    fn offers(&self) -> &[Need] {
        &[
            Need::Silence,
            Need::Mute,
            Need::Elsewhere,
            Need::Revoke,
            Need::Delete,
            Need::Keys,
            Need::Sessions,
            Need::Capacity,
        ]
    }

    async fn linked(&self) -> Result<Linked> {
        let backend = self.another()?;
        let link = Box::new(backend.link());
        Ok(Linked {
            store: Store::new(backend).into_dyn(),
            link,
        })
    }

    async fn elsewhere(&self) -> Result<Store> {
        let nested = Namespace::new("default/lock")?;
        Ok(Store::new(self.another()?.in_namespace(nested)).into_dyn())
    }

    fn operator(&self) -> Option<&dyn Operator> {
        Some(self)
    }

    fn capacity(&self) -> Option<usize> {
        Some(tenure_memory::CAPACITY)
    }
}

#[async_trait]
impl Operator for MemoryHarness {
    async fn revoke(&self, session: &SessionId) -> Result<()> {
        existed(self.another()?.revoke(session))
    }

    async fn delete(&self, key: &str) -> Result<()> {
        existed(self.another()?.delete(key))
    }

    async fn keys(&self) -> Result<Vec<String>> {
        Ok(self.another()?.keys())
    }

    async fn sessions(&self) -> Result<usize> {
        Ok(self.another()?.footprint().sessions)
    }
}

fn existed(it_did: bool) -> Result<()> {
    if it_did {
        Ok(())
    } else {
        Err(Error::new(ErrorKind::Conflict, "there is no such thing"))
    }
}

impl Link for tenure_memory::Link {
    fn silence(&self) {
        self.inject(Fault::Silent);
    }

    fn mute(&self) {
        self.inject(Fault::AnswersHeld);
    }

    fn lose(&self) {
        self.inject(Fault::AnswersLost);
    }

    fn heal(&self) {
        self.heal();
    }
}

/// The embedded store as a column of the report: a new one for each case.
#[derive(Clone, Copy, Debug, Default)]
pub struct MemorySubject;

#[async_trait]
impl Subject for MemorySubject {
    fn name(&self) -> &str {
        "memory"
    }

    async fn stage(&self, _: &Case) -> Result<Box<dyn Harness>> {
        Ok(Box::new(MemoryHarness::new()))
    }

    fn parallel(&self) -> usize {
        32
    }
}
