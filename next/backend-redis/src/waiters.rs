//! The requests of a session that wait, and the messages for them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tenure_core::backend::Nonce;
use tenure_core::{FencingToken, clock};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::script::{Argument, Script, message};

/// By how many milliseconds a waiter looks later than the lease of its predecessor ends, at least and at most: spread, so
/// that the waiters of a mass death do not look at one instant.
const LATER: (u64, u64) = (20, 120);

/// Returns how long to sleep until a lease has ended that lasts for `rest` ms.
pub(crate) fn after_lease(rest: u64) -> Duration {
    Duration::from_millis(rest + LATER.0 + clock::random() % (LATER.1 - LATER.0))
}

/// A request that waits.
pub(crate) struct Waiter {
    /// The step that looks: the one that joined.
    pub(crate) operation: &'static str,
    pub(crate) script: &'static Script,
    pub(crate) arguments: Vec<Argument>,
    state: Mutex<State>,
    changed: Notify,
}

struct State {
    granted: Option<FencingToken>,
    ended: bool,
    /// How often a message asked for a look, and how often the last finished look had been asked for.
    asked: u64,
    answered: u64,
    /// When to look without a message.
    at: Instant,
}

/// The next step of a waiter.
pub(crate) enum Next {
    /// Take the grant.
    Granted(FencingToken),
    /// The store has ended the request.
    Ended,
    /// Look. The number is to be passed to [`Waiter::looked`].
    Look(u64),
    /// Sleep until then or until a message arrives.
    Sleep(Instant),
}

impl Waiter {
    pub(crate) fn new(operation: &'static str, script: &'static Script, arguments: Vec<Argument>) -> Self {
        Self {
            operation,
            script,
            arguments,
            state: Mutex::new(State {
                granted: None,
                ended: false,
                asked: 0,
                answered: 0,
                at: Instant::now(),
            }),
            changed: Notify::new(),
        }
    }

    pub(crate) fn next(&self) -> Next {
        let state = self.state.lock();
        match state.granted {
            _ if state.ended => Next::Ended,
            Some(token) => Next::Granted(token),
            None if state.asked > state.answered || state.at <= Instant::now() => Next::Look(state.asked),
            None => Next::Sleep(state.at),
        }
    }

    /// Notes that a look, which began when there were `asked` messages, found the request waiting. The lease of its
    /// predecessor ends in `rest` ms.
    pub(crate) fn looked(&self, asked: u64, rest: u64) {
        let mut state = self.state.lock();
        state.answered = state.answered.max(asked);
        state.at = Instant::now() + after_lease(rest);
    }

    /// Waits for a message.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock());
        self.changed.notify_one();
    }
}

/// Something that a session learns from its channel.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Message {
    /// An operator has ended the session.
    SessionEnded,
    /// An operator has ended a request.
    RequestEnded(Nonce),
    /// It was for a waiter, or for a request that does not wait any more.
    Delivered,
}

/// The waiters of a session.
pub(crate) struct Waiters {
    waiters: Mutex<HashMap<Nonce, Arc<Waiter>>>,
    /// Whether a grant counts only once replicas or the disk have it. A waiter looks after the message of a grant then: the
    /// answer is confirmed over the connection that it came over. A confirmation over a later one may be of a server that
    /// does not know the grant.
    confirms: bool,
}

impl Waiters {
    pub(crate) fn new(confirms: bool) -> Self {
        Self {
            waiters: Mutex::default(),
            confirms,
        }
    }

    /// Adds a waiter, before its request is sent: the grant may overtake the answer.
    pub(crate) fn add(&self, nonce: Nonce, waiter: Arc<Waiter>) {
        self.waiters.lock().insert(nonce, waiter);
    }

    pub(crate) fn get(&self, nonce: Nonce) -> Option<Arc<Waiter>> {
        self.waiters.lock().get(&nonce).cloned()
    }

    pub(crate) fn remove(&self, nonce: Nonce) {
        self.waiters.lock().remove(&nonce);
    }

    /// Asks every waiter to look: messages may have been missed, and a grant that was told of may be of a lost history.
    pub(crate) fn look(&self) {
        let waiters: Vec<_> = self.waiters.lock().values().cloned().collect();
        for waiter in waiters {
            waiter.change(|state| {
                state.granted = None;
                state.asked += 1;
            });
        }
    }

    /// Delivers a message of the session's channel: `<nonce>` to look, `<nonce> <token>` of a grant, `! <nonce>` of a request
    /// and `!` of a session that an operator has ended.
    pub(crate) fn deliver(&self, bytes: &[u8]) -> Message {
        let mut words = message(bytes).split(' ');
        let (first, second) = (words.next().unwrap_or_default(), words.next());
        let nonce = |word: &str| word.parse().ok().map(Nonce::new);
        if first == "!" {
            let Some(nonce) = second.and_then(nonce) else {
                return Message::SessionEnded;
            };
            if let Some(waiter) = self.get(nonce) {
                waiter.change(|state| state.ended = true);
            }
            return Message::RequestEnded(nonce);
        }
        if let Some(waiter) = nonce(first).and_then(|nonce| self.get(nonce)) {
            let token = second.and_then(|token| token.parse().ok());
            waiter.change(|state| match token {
                Some(token) if !self.confirms => state.granted = Some(token),
                _ => state.asked += 1,
            });
        }
        Message::Delivered
    }
}
