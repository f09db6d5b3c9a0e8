//! The embedded store under the conformance suite, with every control that needs no server.

use tenure_conformance::{Case, EmbeddedStore, FaultLayer, Harness, Subject, async_trait};
use tenure_core::{Namespace, Result};

use crate::{MemoryBackend, MemoryConfig};

/// How many entries a session has at most here: a case reaches this number.
const CAPACITY: usize = 2_000;

/// The column of the embedded store: a new store for each case.
#[derive(Clone, Debug)]
pub struct MemorySubject(MemoryConfig);

impl MemorySubject {
    /// Describes the column of stores with this configuration; a session of them has at most 2,000 entries.
    #[must_use]
    pub fn new(config: MemoryConfig) -> Self {
        Self(config.capacity(CAPACITY))
    }

    /// Creates a store, behind a layer that disturbs it.
    ///
    /// # Errors
    ///
    /// Those of [`MemoryBackend::connect`].
    pub fn start(&self) -> Result<FaultLayer> {
        let config = self.0.clone();
        FaultLayer::new(move || {
            let memory = MemoryBackend::connect(config.clone())?;
            let elsewhere = memory.in_namespace(Namespace::new("default/lock")?);
            let operator = memory.clone();
            Ok(EmbeddedStore::new(memory)
                .elsewhere(elsewhere)
                .revoke_request(move |session, request| operator.take_away(session, request))
                .capacity(CAPACITY))
        })
    }
}

#[async_trait]
impl Subject for MemorySubject {
    fn name(&self) -> &str {
        "memory"
    }

    async fn harness(&self, _: &Case) -> Result<Box<dyn Harness>> {
        Ok(Box::new(self.start()?))
    }

    fn parallel(&self) -> usize {
        32
    }
}
