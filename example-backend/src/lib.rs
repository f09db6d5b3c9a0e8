#![forbid(unsafe_code)]
//! An example of a backend for tenure: locks in a folder of files.
//!
//! Everything that a new store has to bring is here, for one primitive: [`FileBackend`] opens
//! sessions, [`FileSession`] is a lease, [`FileLocker`] stands in line. Core brings the rest: guards,
//! deadlines, renewals, cancellation, retries. The folder's state and the steps on it are in
//! `state.rs`; `tests/conformance.rs` puts it all to the test.
//!
//! The processes of one machine share a folder on a local disk. It is an example, not a product: a
//! waiter polls, and a folder of a network file system would need a clock that its machines share.

mod state;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tenure_core::backend::{Ask, Backend, Grant, Held, Lease, Locker, Opened, Settle, path};
use tenure_core::{
    Barriers, Cancellation, Claim, Durability, EarlyRelease, Error, Exclusion, Expiry,
    FencedCommit, FencingToken, Guarantees, HandOff, LossReason, LossSignal, MinorityLoss,
    NameIsolation, Namespace, Observers, QueueDelivery, QueueOrder, Release, Result, Resume,
    RwOrder, SessionId, SessionOptions, Store, TokenOrder, Transactions, UnknownCommit,
};

use crate::state::{Folder, State};

/// How soon the first waiter looks again whether it is its turn. One with n before it looks after n times that: as
/// long as n holders hold at least, so that n waiters look n log n times until all are served.
const POLL: Duration = Duration::from_millis(10);

/// How soon every waiter looks again, for those before it may all be dead.
const SLOWEST_POLL: Duration = Duration::from_millis(400);

/// A mistake to make on purpose, to see that the suite finds it.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mistake {
    /// None.
    #[default]
    None,
    /// Tokens are counted in the process, and not in the folder that all processes share.
    CountAtHome,
    /// A release frees whatever is held under the name.
    ReleaseByName,
}

/// Locks in a folder.
#[derive(Clone, Debug)]
pub struct FileBackend {
    folder: Arc<Folder>,
    namespace: Namespace,
}

/// Connects to the locks in `folder`, which is made if it is not there.
///
/// # Errors
///
/// `Unavailable` if it cannot be written.
pub fn connect(folder: impl Into<PathBuf>) -> Result<Store<FileBackend>> {
    connect_mistaken(folder, Mistake::None)
}

#[doc(hidden)]
pub fn connect_mistaken(
    folder: impl Into<PathBuf>,
    mistake: Mistake,
) -> Result<Store<FileBackend>> {
    Ok(Store::new(FileBackend {
        folder: Arc::new(Folder::open(folder.into(), mistake)?),
        namespace: Namespace::default(),
    }))
}

#[async_trait]
impl Backend for FileBackend {
    type Session = FileSession;

    async fn open(&self, ttl: Duration, _: &SessionOptions) -> Result<Opened<FileSession>> {
        let id = self.folder.step(move |state| state.open(ttl)).await?;
        let lease = FileSession {
            backend: self.clone(),
            id,
            ttl,
        };
        Ok(Opened {
            lease: Arc::new(lease),
            id: SessionId::new(id.to_string()),
            ttl,
            capacity: 10_000,
        })
    }

    /// Only what the cases bear out. A line about something that is not offered says so.
    async fn guarantees(&self) -> Result<Guarantees> {
        const NONE: &str = "this store has locks only";
        Ok(Guarantees {
            deployment: "a folder of files on this machine".into(),
            mutual_exclusion: Claim::new(
                Exclusion::Always,
                "every step happens under an exclusive lock of the folder, and all processes read one clock",
            ),
            token_order: Claim::new(
                TokenOrder::ClientCrash,
                "the last token is in the folder, replaced whole with each step; not forced to the disk, so that a crash of the machine may bring an older one back",
            ),
            hand_off: Claim::new(
                HandOff::Fifo,
                "a line for each name, in the order of arrival",
            ),
            expiry: Claim::new(
                Expiry::Within(Duration::from_millis(500)),
                "each step removes expired sessions; a waiter takes one every 400 ms at the latest",
            ),
            early_release: Claim::new(
                EarlyRelease::Never,
                "a lease ends its TTL after the last renewal; its clock counts while the machine sleeps",
            ),
            loss_signal: Claim::new(LossSignal::ByDeadline, "judged by the local clock"),
            cancellation: Claim::new(
                Cancellation::Prompt,
                "a cancelled wait is withdrawn at once",
            ),
            fenced_release: Claim::new(
                Release::Fenced,
                "a release names its session, nonce and token",
            ),
            name_isolation: Claim::new(NameIsolation::Isolated, "names are compared whole"),
            resume: Claim::new(
                Resume::Unsupported,
                "sessions are not written down for others",
            ),
            durability: Claim::new(Durability::Volatile, "nothing is forced to the disk"),
            minority_loss: Claim::new(MinorityLoss::SingleMember, "there is one folder"),
            observers: Claim::new(Observers::MayMiss, NONE),
            barriers: Claim::new(Barriers::HeldUp, NONE),
            isolation: Claim::new(Transactions::Unsupported, NONE),
            fenced_commit: Claim::new(FencedCommit::Unsupported, NONE),
            unknown_commit: Claim::new(UnknownCommit::Unsupported, NONE),
            queue_delivery: Claim::new(QueueDelivery::AtMostOnce, NONE),
            queue_order: Claim::new(QueueOrder::Unordered, NONE),
            rw_order: Claim::new(RwOrder::Unsupported, NONE),
        })
    }
}

/// A lease in the folder.
pub struct FileSession {
    backend: FileBackend,
    id: u64,
    ttl: Duration,
}

impl fmt::Debug for FileSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileSession")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl FileSession {
    async fn step<T: Send + 'static>(
        &self,
        step: impl FnOnce(&mut State) -> T + Send + 'static,
    ) -> Result<T> {
        self.backend.folder.step(step).await
    }

    /// The object's name in the folder: with the namespace and the kind, so that nothing collides.
    fn path(&self, ask: &Ask) -> String {
        path(&self.backend.namespace, ask.kind(), ask.name())
    }
}

fn revoked() -> Error {
    Error::lost(LossReason::Expired)
}

#[async_trait]
impl Lease for FileSession {
    async fn renew(&self) -> Result<()> {
        let (id, ttl) = (self.id, self.ttl);
        let alive = self.step(move |state| state.renew(id, ttl)).await?;
        if alive { Ok(()) } else { Err(revoked()) }
    }

    async fn revoke(&self) -> Result<()> {
        let id = self.id;
        self.step(move |state| state.end(id)).await
    }

    async fn audit(&self, held: &[Held]) -> Result<Vec<u64>> {
        let (id, nonces) = (self.id, held.iter().map(|held| held.nonce).collect());
        self.step(move |state| state.missing(id, nonces)).await
    }

    fn locker(self: Arc<Self>) -> Option<Arc<dyn Locker>> {
        Some(Arc::new(FileLocker(self)))
    }
}

/// The locks of one session.
#[derive(Debug)]
pub struct FileLocker(Arc<FileSession>);

impl FileLocker {
    /// Joins the line, or looks how far one has come in it.
    async fn stand(&self, ask: &Ask, waits: bool) -> Result<std::result::Result<Grant, usize>> {
        let (id, path, asked) = (self.0.id, self.0.path(ask), ask.clone());
        let name = path.clone();
        let stood = self.0.step(move |state| {
            // Nobody waits for it any more, and `withdraw` may have been here already.
            if asked.is_withdrawn() {
                return Err(Error::withdrawn());
            }
            if !state.lives(id) {
                return Err(revoked());
            }
            Ok(state.stand(&name, id, asked.nonce(), waits))
        });
        let token = stood.await??;
        Ok(token.map(|token| {
            let key = format!("{path}#{}:{:x}", self.0.id, ask.nonce());
            Grant::new(FencingToken::new(token), key)
        }))
    }
}

#[async_trait]
impl Locker for FileLocker {
    async fn try_acquire(&self, ask: &Ask) -> Result<Option<Grant>> {
        Ok(self.stand(ask, false).await?.ok())
    }

    async fn acquire(&self, ask: &Ask) -> Result<Grant> {
        loop {
            let ahead = match self.stand(ask, true).await? {
                Ok(grant) => return Ok(grant),
                Err(ahead) => u32::try_from(ahead).unwrap_or(u32::MAX),
            };
            let pause = POLL.saturating_mul(ahead).min(SLOWEST_POLL);
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = ask.withdrawn() => return Err(Error::withdrawn()),
            }
        }
    }
}

#[async_trait]
impl Settle for FileLocker {
    async fn release(&self, ask: &Ask, grant: &Grant) -> Result<()> {
        let (id, path, nonce) = (self.0.id, self.0.path(ask), ask.nonce());
        let token = grant.token().get();
        let leaving = self
            .0
            .step(move |state| state.leave(&path, id, nonce, token));
        if leaving.await? {
            Ok(())
        } else {
            Err(revoked())
        }
    }

    async fn withdraw(&self, ask: &Ask) -> Result<()> {
        let (id, path, nonce) = (self.0.id, self.0.path(ask), ask.nonce());
        self.0
            .step(move |state| state.withdraw(&path, id, nonce))
            .await
    }
}
