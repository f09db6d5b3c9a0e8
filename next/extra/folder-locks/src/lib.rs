//! Locks in a folder, for the processes of one Linux machine. An example of a store outside the library: it implements
//! [`Backend`], [`Lease`], [`BackendSession`], [`WaitQueue`] and [`Locker`] of `tenure_core`, and nothing else.
//!
//! Each namespace has a folder with two files. `state` is JSON, replaced as a whole by `rename`. `lock` is locked with
//! [`File::lock`](std::fs::File::lock) by each step, from its read to its rename, and the system unlocks it if the process dies.
//! A step therefore costs O(sessions + places in all wait queues of the namespace), and a process that is stopped in the middle
//! of one stops the steps of the others.
//!
//! Leases are judged by the boot-time clock, which all processes of the machine share and which no operator sets. A reboot ends
//! all sessions.

mod guarantees;
mod session;
mod space;
mod state;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tenure_core::backend::{Backend, Opened, SessionEvents};
use tenure_core::{Error, ErrorKind, FencingToken, Guarantees, Namespace, Result, SessionId};

use crate::session::FolderSession;
use crate::space::Space;

/// The shortest TTL. A shorter one is rounded up.
pub const SHORTEST_TTL: Duration = Duration::from_millis(500);

/// The longest TTL. A longer one is refused.
pub const LONGEST_TTL: Duration = Duration::from_secs(24 * 60 * 60);

/// How many locks and waits a session may have: every step reads and writes them all.
const CAPACITY: usize = 1_000;

/// A connection to one namespace of a folder.
#[derive(Clone, Debug)]
pub struct FolderBackend(Arc<Space>);

impl FolderBackend {
    /// Connects to the namespace in `folder`, and creates both if they do not exist.
    ///
    /// # Errors
    ///
    /// `Unavailable` if the folder cannot be created, or this is no Linux.
    pub fn connect(folder: impl Into<PathBuf>, namespace: &Namespace) -> Result<Self> {
        Space::open(folder.into(), namespace).map(|space| Self(Arc::new(space)))
    }
}

#[async_trait]
impl Backend for FolderBackend {
    async fn open(&self, ttl: Duration, label: &str, _: SessionEvents) -> Result<Opened> {
        if ttl.is_zero() || ttl > LONGEST_TTL {
            let message = format!("a TTL of {ttl:?}: give more than zero and at most {LONGEST_TTL:?}");
            return Err(Error::new(ErrorKind::Config, message));
        }
        let (ttl, label) = (ttl.max(SHORTEST_TTL), label.to_owned());
        let session = self.0.step(move |state| Ok(state.open(ttl, label))).await?;
        let id = SessionId::new(format!("{}{session}", self.0.prefix()));
        let session = Arc::new(FolderSession::new(Arc::clone(&self.0), session));
        Ok(Opened::new(session, id, ttl).capacity(CAPACITY))
    }

    async fn guarantees(&self) -> Result<Guarantees> {
        Ok(guarantees::guarantees(self.0.folder()))
    }

    async fn raise_token_floor(&self, floor: FencingToken) -> Result<()> {
        self.0.step(move |state| state.raise_token_floor(floor)).await
    }
}
