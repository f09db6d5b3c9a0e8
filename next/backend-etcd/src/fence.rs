//! The fence of a session: the one way in which it writes.
//!
//! The fence is the revision that wrote the session's key. Every write compares it, so no write arrives after the end of the
//! session, nor after the fence has moved.
//!
//! A write whose answer was lost may have arrived, and may still arrive. No further write leaves then until the fence has moved:
//! the first that comes waits for those in flight, and writes the session's key again. After that, no lost request can arrive any
//! more, and what a read does not show has not happened. So a step is settled by repeating it: either it finds its entry, or it
//! is carried out for the first time. One move settles all requests that were lost at a time.

use std::sync::Arc;

use etcd_client::{Compare, CompareOp, Txn, TxnOp};
use parking_lot::Mutex;
use tenure_core::{Effect, Error, ErrorKind, LossReason, Result};
use tokio::sync::{RwLock, RwLockReadGuard};

use crate::connection::{Connection, Repeat};
use crate::error::{is_answer, revoked};
use crate::txn::{Answer, get, put};

/// How often one write is sent again because other requests of the session lost their answers meanwhile.
const MOST_ATTEMPTS: u32 = 100;

/// How often a session is taken over again whose first answer was lost.
const TAKE_OVERS: u32 = 4;

/// A write of a session. The comparison of the fence is added to it.
#[derive(Clone, Default)]
pub(crate) struct Write {
    pub(crate) compares: Vec<Compare>,
    pub(crate) then: Vec<TxnOp>,
    /// The reads if a comparison does not hold.
    pub(crate) or_else: Vec<TxnOp>,
}

pub(crate) struct Fence {
    connection: Arc<Connection>,
    key: String,
    lease: i64,
    /// The value of the session's key, which no other process writes.
    value: Vec<u8>,
    /// Shared by requests in flight; exclusive for a move.
    gate: RwLock<()>,
    state: Mutex<State>,
}

#[derive(Clone, Copy)]
struct State {
    revision: i64,
    /// Whether a request was sent whose answer was lost.
    is_in_doubt: bool,
}

impl Fence {
    /// Describes the fence of a session whose key has `value` since `revision`.
    pub(crate) fn new(connection: Arc<Connection>, key: String, lease: i64, value: Vec<u8>, revision: i64) -> Self {
        Self {
            connection,
            key,
            lease,
            value,
            gate: RwLock::new(()),
            state: Mutex::new(State {
                revision,
                is_in_doubt: false,
            }),
        }
    }

    /// Compares the fence.
    fn holds(&self, revision: i64) -> Compare {
        Compare::mod_revision(self.key.as_str(), CompareOp::Equal, revision)
    }

    /// Sends a write. The answer says whether its comparisons held; its outputs are those of the write's own operations.
    ///
    /// # Errors
    ///
    /// `Lost` if the session has ended, or another process has resumed it. After an error with an unknown effect the write may be
    /// sent again, and then does not act twice if its comparisons see to it.
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped, the write counts as one whose answer was lost.
    pub(crate) async fn write(&self, write: Write) -> Result<Answer> {
        for _ in 0..MOST_ATTEMPTS {
            let pass = self.enter().await?;
            let Write {
                compares,
                then,
                or_else,
            } = write.clone();
            let txn = Txn::new()
                .when([vec![self.holds(pass.revision)], compares].concat())
                .and_then(then)
                .or_else([vec![get(&self.key)], or_else].concat());
            let sent = self.connection.txn(Repeat::No, txn).await;
            if sent.as_ref().is_ok_and(|answer| answer.succeeded) {
                pass.answered();
                return sent;
            }
            let mut answer = match sent {
                Err(error) if error.effect() == Effect::Unknown && !is_answer(&error) => return Err(error),
                Err(error) => {
                    pass.answered();
                    return Err(error);
                }
                Ok(answer) => answer,
            };
            let used = pass.revision;
            pass.answered();
            match answer.key()? {
                None => return Err(revoked()),
                Some(session) if session.mod_revision == used => return Ok(answer),
                // This process has moved the fence, and has lost the answer to that. A request that is in doubt stays so.
                Some(session) if session.value == self.value => {
                    let mut state = self.state.lock();
                    state.revision = state.revision.max(session.mod_revision);
                }
                Some(_) => return Err(Error::lost(LossReason::Detached)),
            }
        }
        let message = "too many requests of this session lose their answers: retry";
        Err(Error::new(ErrorKind::Unavailable, message))
    }

    /// Makes sure that no lost request of this session arrives any more.
    ///
    /// # Errors
    ///
    /// As [`write`](Self::write), without an effect.
    pub(crate) async fn settle(&self) -> Result<()> {
        self.enter().await.map(Pass::answered)
    }

    /// Writes this process's value into the session's key, which another process has given up.
    ///
    /// # Errors
    ///
    /// `Conflict` if a third process did so before.
    pub(crate) async fn take_over(&self) -> Result<()> {
        let revision = self.state.lock().revision;
        let mut taken = self.replace(revision, &self.value).await;
        for _ in 0..TAKE_OVERS {
            // Given up now, the session would belong to no process, and end with its TTL.
            if !taken.as_ref().is_err_and(Error::is_retryable) {
                break;
            }
            taken = self.replace(revision, &self.value).await;
        }
        self.state.lock().revision = taken.map_err(|error| match error.loss() {
            Some(LossReason::Detached) => Error::new(ErrorKind::Conflict, "another process has resumed the session"),
            _ => error,
        })?;
        Ok(())
    }

    /// Replaces the session's key by the value that `value` makes of the label, for a process that gives the session up. Settles lost requests too. Repeated, it
    /// succeeds.
    pub(crate) async fn give_up(&self, value: impl FnOnce(&str) -> Vec<u8>) -> Result<()> {
        let text = String::from_utf8_lossy(&self.value);
        let value = value(text.split_once('\n').map_or("", |(_, label)| label));
        let _alone = self.gate.write().await;
        let revision = self.state.lock().revision;
        self.replace(revision, &value).await?;
        Ok(())
    }

    /// Waits until a write may leave, and settles lost requests.
    async fn enter(&self) -> Result<Pass<'_>> {
        loop {
            let shared = self.gate.read().await;
            let State { revision, is_in_doubt } = *self.state.lock();
            if !is_in_doubt {
                return Ok(Pass {
                    fence: self,
                    revision,
                    answered: false,
                    _shared: shared,
                });
            }
            drop(shared);
            self.move_on().await.map_err(|error| error.with_effect(Effect::None))?;
        }
    }

    /// Moves the fence if a request is in doubt.
    async fn move_on(&self) -> Result<()> {
        // No request is in flight then.
        let _alone = self.gate.write().await;
        let State { revision, is_in_doubt } = *self.state.lock();
        if is_in_doubt {
            let revision = self.replace(revision, &self.value).await?;
            *self.state.lock() = State {
                revision,
                is_in_doubt: false,
            };
            tracing::debug!(key = %self.key, revision, "the session's requests without an answer are settled");
        }
        Ok(())
    }

    /// Writes the session's key if the fence is at `revision`. It does so at most once, however often it is sent: returns the
    /// revision of the write.
    async fn replace(&self, revision: i64, value: &[u8]) -> Result<i64> {
        let txn = Txn::new()
            .when([self.holds(revision)])
            .and_then([put(&self.key, value, self.lease)])
            .or_else([get(&self.key)]);
        let mut answer = self.connection.txn(Repeat::Yes, txn).await?;
        if answer.succeeded {
            return Ok(answer.revision);
        }
        match answer.key()? {
            None => Err(revoked()),
            // An earlier copy has arrived.
            Some(session) if session.value == value => Ok(session.mod_revision),
            Some(_) => Err(Error::lost(LossReason::Detached)),
        }
    }
}

/// The permission to send one write. Dropped before its answer, the write is in doubt.
struct Pass<'a> {
    fence: &'a Fence,
    revision: i64,
    answered: bool,
    _shared: RwLockReadGuard<'a, ()>,
}

impl Pass<'_> {
    fn answered(mut self) {
        self.answered = true;
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if !self.answered {
            // Before the gate opens.
            self.fence.state.lock().is_in_doubt = true;
        }
    }
}
