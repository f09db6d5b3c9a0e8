//! The embedded store under the suite, with every control that the fault layer has.

use tenure_conformance::{Case, EmbeddedStore, FaultLayer, Harness, Subject, async_trait};
use tenure_core::{Namespace, Result};
use tenure_memory::{MemoryBackend, MemoryConfig};

/// How many entries a session of the embedded store may have here.
const CAPACITY: usize = 2_000;

pub(crate) struct Memory;

pub(crate) fn harness(config: MemoryConfig) -> Result<FaultLayer> {
    FaultLayer::new(move || {
        let memory = MemoryBackend::connect(config.clone().capacity(CAPACITY))?;
        let nested = memory.in_namespace(Namespace::new("default/lock")?);
        let operator = memory.clone();
        Ok(EmbeddedStore::new(memory)
            .elsewhere(nested)
            .take_away(move |session, nonce| operator.take_away(session, nonce))
            .capacity(CAPACITY))
    })
}

#[async_trait]
impl Subject for Memory {
    fn name(&self) -> &str {
        "memory"
    }

    async fn stage(&self, _: &Case) -> Result<Box<dyn Harness>> {
        Ok(Box::new(harness(MemoryConfig::new())?))
    }

    fn parallel(&self) -> usize {
        32
    }
}
