//! A stage whose store may take its time to answer a new client.
//!
//! On a loaded machine, or while the store is disturbed, a connection may fail or break although the store is sound.
//! This is no answer of the store, and breaks no promise.

use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tenure_core::{Error, ErrorKind, Result, Store};

use crate::case::{Case, Outcome};
use crate::harness::{Harness, Linked, Need, Operator};

/// How often a connection is tried before it is given up.
const ATTEMPTS: u32 = 3;

/// How long until it is tried again.
const PAUSE: Duration = Duration::from_millis(500);

/// By how much limits are longer now, at the same time for the whole process.
static PATIENCE: AtomicU32 = AtomicU32::new(0);

/// Returns the factor by which limits are longer: 1, 2 while a case is repeated alone, or what `TENURE_TEST_PATIENCE`
/// says.
pub(crate) fn patience() -> u32 {
    let now = PATIENCE.load(Ordering::Relaxed);
    if now != 0 {
        return now;
    }
    static GIVEN: LazyLock<u32> = LazyLock::new(|| {
        let given = std::env::var("TENURE_TEST_PATIENCE").ok();
        let given = given.and_then(|factor| factor.parse().ok());
        given.unwrap_or(1).clamp(1, 10)
    });
    *GIVEN
}

/// Doubled limits for as long as it lives.
pub(crate) struct MorePatience(());

impl MorePatience {
    pub(crate) fn new() -> Self {
        PATIENCE.store(2, Ordering::Relaxed);
        Self(())
    }
}

impl Drop for MorePatience {
    fn drop(&mut self) {
        PATIENCE.store(0, Ordering::Relaxed);
    }
}

/// A harness that tries again to connect, and remembers that it was in vain.
pub(crate) struct Patient<'a> {
    harness: &'a dyn Harness,
    /// Whether the case's operator brings about an event after which the store has to serve again.
    strikes: bool,
    struck: AtomicBool,
    unreached: Mutex<Option<String>>,
}

impl<'a> Patient<'a> {
    pub(crate) fn new(harness: &'a dyn Harness, case: &Case) -> Self {
        Self {
            harness,
            strikes: case.needs.iter().any(|need| need.is_event()),
            struck: AtomicBool::new(false),
            unreached: Mutex::new(None),
        }
    }

    /// The outcome of the case; nothing was shown by one that had no connection.
    pub(crate) fn excuse(&self, outcome: Outcome) -> Outcome {
        let unreached = self.unreached.lock();
        match (
            outcome,
            unreached.unwrap_or_else(PoisonError::into_inner).take(),
        ) {
            (Outcome::Violated { judged: false, .. }, Some(why)) => Outcome::not_run(why),
            (outcome, _) => outcome,
        }
    }

    /// The outcome of a case that ended in an unexpected error of the kind `Unavailable`, if the store serves a new
    /// client now. A store that is gone breaks no promise, unless the event that the case brought about took it away.
    pub(crate) async fn unless_gone(&self, outcome: Outcome) -> Outcome {
        let serves = unless_away(async || self.harness.connect().await?.guarantees().await);
        match serves.await {
            Err(error) if error.kind() == ErrorKind::Unavailable && !self.is_struck() => {
                Outcome::not_run(format!(
                    "the store became unavailable: {error}",
                    error = error.chain()
                ))
            }
            _ => outcome,
        }
    }

    async fn reach<T, F: Future<Output = Result<T>>>(
        &self,
        connect: impl Fn() -> F + Send,
    ) -> Result<T> {
        let mut attempt = Attempt {
            patient: self,
            given_up: Some("a connection was not made in time".to_owned()),
        };
        let reached = unless_away(connect).await;
        if reached.is_ok() {
            self.unreached
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take();
        }
        attempt.given_up = match &reached {
            Err(error) if error.kind() == ErrorKind::Unavailable => Some(error.chain().to_string()),
            _ => None,
        };
        reached
    }
}

/// Tries again what failed only because the store was not there.
pub(crate) async fn unless_away<T, F: Future<Output = Result<T>>>(
    connect: impl Fn() -> F,
) -> Result<T> {
    let away = |error: &Error| error.kind() == ErrorKind::Unavailable;
    for _ in 1..ATTEMPTS {
        match connect().await {
            Err(error) if away(&error) => tokio::time::sleep(PAUSE).await,
            done => return done,
        }
    }
    connect().await
}

/// An attempt to connect. Who drops it waited no longer.
struct Attempt<'a> {
    patient: &'a Patient<'a>,
    given_up: Option<String>,
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        let Some(why) = self.given_up.take() else {
            return;
        };
        if self.patient.is_struck() {
            return;
        }
        let unreached = self.patient.unreached.lock();
        *unreached.unwrap_or_else(PoisonError::into_inner) =
            Some(format!("the store could not be reached: {why}"));
    }
}

#[async_trait]
impl Harness for Patient<'_> {
    async fn connect(&self) -> Result<Store> {
        self.reach(|| self.harness.connect()).await
    }

    fn is_struck(&self) -> bool {
        self.struck.load(Ordering::SeqCst)
    }

    fn offers(&self) -> &[Need] {
        self.harness.offers()
    }

    async fn linked(&self) -> Result<Linked> {
        self.reach(|| self.harness.linked()).await
    }

    async fn elsewhere(&self) -> Result<Store> {
        self.reach(|| self.harness.elsewhere()).await
    }

    fn operator(&self) -> Option<&dyn Operator> {
        // From here on it is the operator's doing.
        self.struck.fetch_or(self.strikes, Ordering::SeqCst);
        self.harness.operator()
    }

    fn ttl(&self) -> Duration {
        self.harness.ttl()
    }

    fn capacity(&self) -> Option<usize> {
        self.harness.capacity()
    }

    async fn clean_up(&self) -> Result<()> {
        self.harness.clean_up().await
    }
}
