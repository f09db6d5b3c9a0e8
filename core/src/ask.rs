//! What core asks of a backend's primitive, and what it gets.

use std::any::Any;
use std::collections::HashSet;
use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError};

use tokio::sync::Notify;

use crate::name::{Kind, Name};
use crate::session::LossReason;
use crate::signal::Signal;
use crate::{Error, ErrorKind, FencingToken, Result};

/// One attempt to get hold of something: the ticket that exists before the first message is sent.
///
/// Everything that a backend does for an attempt is idempotent under its [`nonce`](Self::nonce):
/// core may call `acquire` again with the same ask after a failure, and the attempt keeps its
/// place. Only core makes one.
#[derive(Clone)]
pub struct Ask(Arc<AskInner>);

struct AskInner {
    kind: Kind,
    name: Name,
    nonce: u64,
    withdrawn: Signal<()>,
    alarm: Alarm,
    book: Arc<Book>,
    /// The token that this ask has, or has asked for: nobody else in the session may take it up
    /// before the last clone is gone, and with it whatever still runs in the background.
    claim: OnceLock<FencingToken>,
    /// Whether somebody still waits for it or holds what it got.
    live: AtomicBool,
}

/// What the asks of one session share.
#[derive(Debug, Default)]
pub(crate) struct Book {
    places: AtomicUsize,
    /// Those of them that somebody waits for or holds: not what is only being let go of.
    live: AtomicUsize,
    freed: Notify,
    claimed: Mutex<HashSet<(Kind, Name, FencingToken)>>,
}

impl Book {
    /// How many asks there are, from before their first message to after their last.
    pub(crate) fn places(&self) -> usize {
        self.places.load(Ordering::Relaxed)
    }

    /// Ends when a place that was taken at this call has been given back.
    pub(crate) fn freed(&self) -> impl Future<Output = ()> + Send {
        self.freed.notified()
    }

    fn leave(&self, live: &AtomicBool) {
        if live.swap(false, Ordering::Relaxed) {
            self.live.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for AskInner {
    fn drop(&mut self) {
        if let Some(&token) = self.claim.get() {
            let mut claimed = self
                .book
                .claimed
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            claimed.remove(&(self.kind, self.name.clone(), token));
        }
        self.book.leave(&self.live);
        self.book.places.fetch_sub(1, Ordering::Relaxed);
        // Those who wait look again, each for itself.
        self.book.freed.notify_waiters();
    }
}

impl Ask {
    /// A new ask that takes one of the session's `capacity` places until its last clone is gone. `None` if the
    /// places that are left are still taken by what is being let go of.
    pub(crate) fn new(
        kind: Kind,
        name: &Name,
        book: &Arc<Book>,
        capacity: usize,
    ) -> Result<Option<Self>> {
        let taken = book
            .places
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| {
                (taken < capacity).then_some(taken + 1)
            });
        if taken.is_err() && book.live.load(Ordering::Relaxed) < capacity {
            return Ok(None);
        }
        if taken.is_err() {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!(
                    "the session holds or waits for {capacity} things, the most that this store carries for one session: open another session"
                ),
            ));
        }
        Ok(Some(Self::made(kind, name, book)))
    }

    fn made(kind: Kind, name: &Name, book: &Arc<Book>) -> Self {
        book.live.fetch_add(1, Ordering::Relaxed);
        Self(Arc::new(AskInner {
            kind,
            name: name.clone(),
            nonce: nonce(),
            withdrawn: Signal::new(),
            alarm: Alarm(Signal::new()),
            book: Arc::clone(book),
            claim: OnceLock::new(),
            live: AtomicBool::new(true),
        }))
    }

    /// Another ask about the same object: a step on what is held, or one of several things that one
    /// ask got. Takes a place even beyond the session's capacity, which was asked for before.
    pub(crate) fn again(&self) -> Self {
        self.0.book.places.fetch_add(1, Ordering::Relaxed);
        Self::made(self.0.kind, &self.0.name, &self.0.book)
    }

    /// What kind of thing is asked for.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// The name of what is asked for.
    pub fn name(&self) -> &Name {
        &self.0.name
    }

    /// Tells this attempt from every other of the session.
    pub fn nonce(&self) -> u64 {
        self.0.nonce
    }

    /// Whether nobody waits for the answer any more.
    pub fn is_withdrawn(&self) -> bool {
        self.0.withdrawn.get().is_some()
    }

    /// Ends when nobody waits for the answer any more. An `acquire` that waits must then return
    /// [`Error::withdrawn`] without delay; core calls `withdraw` next.
    pub fn withdrawn(&self) -> impl Future<Output = ()> + Send + use<> {
        self.0.withdrawn.wait()
    }

    /// With this the backend tells that what was granted is gone although its session lives
    /// (an operator deleted the key).
    pub fn alarm(&self) -> Alarm {
        self.0.alarm.clone()
    }

    /// Says whether the holding under `token` is this ask's from now on; not if another ask of the
    /// session has it, or is still letting go of it.
    pub(crate) fn claim(&self, token: FencingToken) -> bool {
        let inner = &*self.0;
        let mut claimed = inner
            .book
            .claimed
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match inner.claim.get() {
            Some(mine) => *mine == token,
            None => {
                let free = claimed.insert((inner.kind, inner.name.clone(), token));
                free && inner.claim.set(token).is_ok()
            }
        }
    }

    pub(crate) fn withdraw(&self) {
        self.0.withdrawn.set(());
        self.let_go();
    }

    /// Nobody waits for it or holds what it got any more; what remains to be done is done in the background.
    pub(crate) fn let_go(&self) {
        self.0.book.leave(&self.0.live);
    }
}

impl fmt::Debug for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Ask({} {} #{:x})",
            self.0.kind.as_str(),
            self.0.name,
            self.0.nonce
        )
    }
}

/// Unique in this process, and most likely elsewhere: a random start, counted up.
pub(crate) fn nonce() -> u64 {
    static NEXT: LazyLock<AtomicU64> = LazyLock::new(|| {
        let mut hasher = RandomState::new().build_hasher();
        hasher.write_u32(std::process::id());
        AtomicU64::new(hasher.finish())
    });
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Raised by a backend when a single holding is gone before its session.
#[derive(Clone, Debug)]
pub struct Alarm(Signal<LossReason>);

impl Alarm {
    /// Tells the holder. Only the first call counts.
    pub fn raise(&self, reason: LossReason) {
        self.0.set(reason);
    }

    /// Whether it was raised, and why.
    pub fn reason(&self) -> Option<LossReason> {
        self.0.get()
    }

    pub(crate) fn raised(&self) -> impl Future<Output = LossReason> + Send + use<> {
        self.0.wait()
    }
}

/// What a backend answers to an [`Ask`] that succeeded.
#[derive(Clone)]
pub struct Grant {
    token: FencingToken,
    key: Arc<str>,
    attachment: Option<Arc<dyn Any + Send + Sync>>,
}

impl Grant {
    /// A holding with `token`, which the store knows as `key`.
    pub fn new(token: FencingToken, key: impl Into<Arc<str>>) -> Self {
        Self {
            token,
            key: key.into(),
            attachment: None,
        }
    }

    /// Adds whatever the backend wants to find again at the release.
    #[must_use]
    pub fn attach(mut self, attachment: impl Any + Send + Sync) -> Self {
        self.attachment = Some(Arc::new(attachment));
        self
    }

    /// The fencing token.
    pub fn token(&self) -> FencingToken {
        self.token
    }

    /// How the store names the holding, for operators.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// What was attached, if it is a `T`.
    pub fn attachment<T: Any + Send + Sync>(&self) -> Option<&T> {
        self.attachment.as_ref()?.downcast_ref()
    }
}

impl fmt::Debug for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Grant({} {})", self.key, self.token)
    }
}
