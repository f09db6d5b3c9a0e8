//! The folder, held to the suite.

use folder_locks::FolderBackend;
use tempfile::TempDir;
use tenure_conformance::{Harness, async_trait, conformance};
use tenure_core::{Namespace, Result, Store};

struct Folder(TempDir);

#[async_trait]
impl Harness for Folder {
    async fn connect(&self) -> Result<Store> {
        FolderBackend::connect(self.0.path(), &Namespace::default()).map(Store::new)
    }
}

conformance!(folder, Folder(TempDir::new().expect("a scratch folder")), without: [
    election, rw_lock, queue, barrier, stm,
    silence, mute, hold, cut, delay_request, repeat, requests, elsewhere, capacity, revoke, revoke_request, keys, waiters,
    sessions, restart, survive, disturb, pause, restore, clock_forward, clock_back, failover, lose_minority, return_members,
]);
