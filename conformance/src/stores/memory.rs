//! The embedded store under test.

use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use tenure_core::{Error, ErrorKind, Namespace, Result, SessionId, Store};
use tenure_memory::{Fault, MemoryBackend, MemoryConfig};

use crate::case::Case;
use crate::harness::{Harness, Link, Linked, Need, Operator, Subject};

/// An embedded store of its own. It comes to life at the first connection, on the runtime of
/// that moment.
#[derive(Debug, Default)]
pub struct MemoryHarness {
    process: Mutex<Process>,
}

/// What ends with the process that the store is a part of.
#[derive(Debug, Default)]
struct Process {
    store: Option<Store<MemoryBackend>>,
    links: Vec<tenure_memory::Link>,
}

impl MemoryHarness {
    /// A store that nobody else sees.
    pub fn new() -> Self {
        Self::default()
    }

    fn another(&self) -> Result<MemoryBackend> {
        let mut process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        let another = match &process.store {
            Some(store) => store.backend().reconnect(),
            None => {
                let store = tenure_memory::connect(MemoryConfig::new())?;
                let another = store.backend().reconnect();
                process.store = Some(store);
                another
            }
        };
        process.links.push(another.link());
        Ok(another)
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
            Need::Hold,
            Need::Restart,
            Need::Sessions,
            Need::Capacity,
            Need::Requests,
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

    /// The process ends, and with it the store and all its clients; another begins with nothing.
    async fn restart(&self) -> Result<()> {
        let mut process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        let ended = std::mem::take(&mut *process);
        ended.links.iter().for_each(tenure_memory::Link::silence);
        Ok(())
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

    fn hold(&self) {
        self.inject(Fault::AnswersHeld);
    }

    fn lose(&self) {
        self.inject(Fault::AnswersLost);
    }

    fn heal(&self) {
        self.heal();
    }

    fn requests(&self) -> Option<u64> {
        Some(self.requests())
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
