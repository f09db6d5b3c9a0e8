//! The suite on the example: a test for each case, `ignored` where the case cannot run here.
#![allow(clippy::unwrap_used)] // A test that cannot be set up has to fail.

use tenure_conformance::{Harness, async_trait, conformance};
use tenure_core::{Result, Store};
use tenure_example_files::connect;

struct Files(tempfile::TempDir);

#[async_trait]
impl Harness for Files {
    async fn connect(&self) -> Result<Store> {
        Ok(connect(self.0.path())?.into_dyn())
    }
}

conformance!(files, Files(tempfile::tempdir().unwrap()), without: [
    election, rw_lock, queue, barrier, stm,
    silence, mute, hold, cut, elsewhere, revoke, delete, keys, sessions, disturb, restart, survivors, failover,
    restore, clock_jump, capacity, requests,
], not_run: [
    l2_token_floor_is_kept, // its tokens cannot be raised
]);
