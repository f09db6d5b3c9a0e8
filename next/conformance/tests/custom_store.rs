//! A store of another crate, held to the suite in ten lines: here the embedded one, without any control.

use tenure_conformance::{Harness, async_trait, conformance};
use tenure_core::{Result, Store};
use tenure_memory::{MemoryBackend, MemoryConfig};

struct Plain(MemoryBackend);

#[async_trait]
impl Harness for Plain {
    async fn connect(&self) -> Result<Store> {
        Ok(Store::new(self.0.clone()))
    }
}

conformance!(custom_store, Plain(MemoryBackend::connect(MemoryConfig::new())?), without: [
    silence, mute, hold, cut, delay_request, repeat, requests, elsewhere, capacity, revoke, revoke_request, keys, sessions,
    restart, survive, disturb, pause, restore, clock_forward, clock_back, failover, lose_minority, return_members,
]);
