//! A session: its lease, and the way of all its requests to the server.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tenure_core::backend::{
    BackendSession, Barrier, Election, Entry, EntryState, Grant, Lease, Locker, Marker, Mode, Nonce, Page, Queue,
    Request, RwLock, SessionEvent, SessionEvents, Stm,
};
use tenure_core::clock::{Clock, Moment};
use tenure_core::{Error, ErrorKind, FencingToken, Kind, LossReason, Name, Result};
use tokio::task::JoinHandle;

use crate::connection::{Client, Line, Link};
use crate::keys;
use crate::script::{Answer, Argument, LEASE, SWEEP, Script, WAIT_INTEROP};
use crate::sweep::{self, Sweeper};
use crate::waiters::Waiters;

mod open;

pub(crate) use open::Sessions;

/// How many nonces one script of a detachment takes.
const KEPT_AT_ONCE: usize = 500;

/// How often one request is repeated because dead sessions were in its way or its link was replaced.
const MOST_ATTEMPTS: u32 = 1000;

/// A session of a store on Redis.
pub(crate) struct RedisSession {
    pub(crate) client: Client,
    pub(crate) root: Arc<str>,
    pub(crate) waiters: Arc<Waiters>,
    pub(crate) sweeper: Arc<Sweeper>,
    id: String,
    ttl: Duration,
    events: SessionEvents,
    clock: Clock,
    /// Added to the epoch of each link, so that it is above that of the process that detached the session.
    ahead: u64,
    /// How many renewals the server has acknowledged.
    renewals: AtomicU64,
    /// The start of the last renewal that the server acknowledged.
    renewed: Mutex<Moment>,
    /// The greatest nonce that was sent.
    last_nonce: AtomicU64,
    revoked: Arc<AtomicBool>,
    listener: JoinHandle<()>,
}

impl Drop for RedisSession {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

fn too_many_dead() -> Error {
    let message = "many sessions have ended at once, and what they had is still being freed: retry";
    Error::new(ErrorKind::Unavailable, message)
}

/// The error of a request whose session or holding was ended by an operator, or by a lost history.
pub(crate) fn revoked() -> Error {
    Error::lost(LossReason::Revoked)
}

/// A script and its arguments, as a session sends them.
pub(crate) struct Call {
    pub(crate) script: &'static Script,
    pub(crate) operation: &'static str,
    /// The slot of a step that leaves no entry.
    pub(crate) slot: Option<u16>,
    pub(crate) nonce: Nonce,
    pub(crate) arguments: Vec<Argument>,
}

impl Call {
    /// Describes a step of a request.
    pub(crate) fn new(
        script: &'static Script,
        operation: &'static str,
        nonce: Nonce,
        arguments: Vec<Argument>,
    ) -> Self {
        Self {
            script,
            operation,
            slot: None,
            nonce,
            arguments,
        }
    }

    /// Describes a step whose result the server remembers.
    pub(crate) fn marked(
        script: &'static Script,
        operation: &'static str,
        marker: Marker,
        arguments: Vec<Argument>,
    ) -> Self {
        Self {
            slot: Some(marker.slot.get()),
            ..Self::new(script, operation, marker.nonce, arguments)
        }
    }
}

impl RedisSession {
    /// Sends a call over the commands' line. See [`call_over`](Self::call_over).
    pub(crate) async fn call(&self, call: &Call) -> Result<Answer> {
        self.call_over(Line::Commands, call).await.map(|(answer, _)| answer)
    }

    /// Sends a call, and frees the dead sessions that are in its way. Returns the answer, and the link that it came over.
    ///
    /// # Errors
    ///
    /// `Lost` if the session has ended, `Conflict` if the call arrives after a later one of its slot.
    ///
    /// # Cancel safety
    ///
    /// The request may be sent or not. A later request comes after it: over the same line by the order of the line, over a
    /// later link by its epoch, which shuts earlier links out.
    pub(crate) async fn call_over(&self, line: Line, call: &Call) -> Result<(Answer, Link)> {
        self.note_nonce(call.nonce.get());
        for _ in 0..MOST_ATTEMPTS {
            let link = self.client.link().await?;
            let slot = call.slot.map_or_else(String::new, |slot| slot.to_string());
            let mut arguments = vec![
                call.operation.into(),
                self.id.as_str().into(),
                (link.epoch() + self.ahead).into(),
                slot.into(),
                call.nonce.get().into(),
            ];
            arguments.extend(call.arguments.iter().cloned());
            let answer = Answer::read(call.operation, link.call(line, call.script, arguments).await?)?;
            match answer.word()? {
                "sweep" => drop(sweep::step(&link).await?),
                // The link was replaced while the request was on its way. Otherwise, another process has resumed the session.
                "stale" if self.client.link().await?.epoch() > link.epoch() => {}
                "stale" | "detached" => return Err(Error::lost(LossReason::Detached)),
                "lost" => return Err(self.lost()),
                "late" => {
                    let message = "the request arrived after it was replaced: nothing was changed";
                    return Err(Error::new(ErrorKind::Conflict, message));
                }
                _ => return Ok((answer, link)),
            }
        }
        Err(too_many_dead())
    }

    /// Notes that a number was used: a process that resumes the session goes on above it.
    pub(crate) fn note_nonce(&self, nonce: u64) {
        self.last_nonce.fetch_max(nonce, Ordering::AcqRel);
    }

    fn lost(&self) -> Error {
        let expires = self.clock.now().since(*self.renewed.lock()) >= self.ttl;
        Error::lost(match self.revoked.load(Ordering::Acquire) || !expires {
            true => LossReason::Revoked,
            false => LossReason::Expired,
        })
    }

    pub(crate) fn path(&self, kind: Kind, name: &Name) -> String {
        keys::path(kind, name, self.client.config().interop)
    }

    pub(crate) fn path_of(&self, request: &Request) -> String {
        self.path(request.kind(), request.name())
    }

    /// Returns the grant of `nonce`. Its key is what operators see: `<root><path>#<session>:<nonce>`.
    pub(crate) fn grant(&self, path: &str, nonce: Nonce, token: FencingToken) -> Grant {
        Grant::new(token, format!("{}{path}#{}:{nonce}", self.root, self.id))
    }

    /// Reads an entry. Nothing for one that an operator has ended, and for a holding whose place is gone: core finds it lost.
    fn entry(&self, nonce: Nonce, is_there: bool, entry: &str) -> Option<Entry> {
        let mut words = entry.splitn(3, ' ');
        let (token, mode, path) = (words.next()?, words.next()?, words.next()?);
        let (kind, name) = keys::object(path)?;
        if token == "q" {
            return Some(Entry::new(nonce, kind, name, self.take_state(path, nonce, mode)?));
        }
        let state = match token {
            "-" => EntryState::Waiting,
            token if is_there => EntryState::Granted(vec![self.grant(path, nonce, token.parse().ok()?)]),
            _ => return None,
        };
        let mode = if mode == "s" { Mode::Shared } else { Mode::Exclusive };
        Some(Entry::new(nonce, kind, name, state).mode(mode))
    }

    /// Renews the keys that locks share with other programs. Those that are gone have ended. 100 keys a round trip.
    async fn renew_keys(&self) -> Result<()> {
        let mut cursor = Argument::from("0");
        loop {
            let (answer, _) = self
                .call_over(
                    Line::Control,
                    &Call::new(&WAIT_INTEROP, "keep", Nonce::new(0), vec![cursor]),
                )
                .await?;
            for index in 2..answer.len() {
                let nonce = Nonce::new(answer.number(index)?);
                self.events
                    .report(SessionEvent::RequestLost(nonce, LossReason::Revoked));
            }
            match answer.text(1)? {
                "0" => return Ok(()),
                next => cursor = next.into(),
            }
        }
    }
}

#[async_trait]
impl Lease for RedisSession {
    async fn renew(&self) -> Result<()> {
        let began = self.clock.now();
        let known = self.renewals.load(Ordering::Acquire);
        let millis = u64::try_from(self.ttl.as_millis()).unwrap_or(u64::MAX);
        let call = Call::new(&LEASE, "renew", Nonce::new(0), vec![millis.into(), known.into()]);
        let (answer, link) = self.call_over(Line::Control, &call).await?;
        let counted = answer.number(1)?;
        if counted < known {
            // The server has lost what it acknowledged over this very connection, as after a demotion and a promotion. The
            // next link makes core compare.
            self.client.replace(&link);
        }
        self.renewals.fetch_max(counted.max(known) + 1, Ordering::AcqRel);
        if answer.flag(2) {
            self.sweeper.start();
        }
        if self.client.config().interop {
            self.renew_keys().await?;
        }
        *self.renewed.lock() = began;
        Ok(())
    }

    async fn revoke(&self) -> Result<()> {
        loop {
            let answer = match self.call(&Call::new(&SWEEP, "revoke", Nonce::new(0), Vec::new())).await {
                Ok(answer) => answer,
                Err(error) if error.kind() == ErrorKind::Lost && error.loss() != Some(LossReason::Detached) => {
                    return Ok(());
                }
                Err(error) => return Err(error),
            };
            if answer.flag(1) {
                self.sweeper.start();
            }
            if answer.word()? == "ok" {
                return Ok(());
            }
        }
    }

    async fn detach(&self, kept: &[Nonce]) -> Result<()> {
        let next = self.last_nonce.load(Ordering::Acquire) + 1;
        let mut chunks = kept.chunks(KEPT_AT_ONCE).peekable();
        loop {
            let chunk = chunks.next().unwrap_or_default();
            let is_last = chunks.peek().is_none();
            let mut arguments = vec![u64::from(is_last).into(), next.into()];
            arguments.extend(chunk.iter().map(|nonce| Argument::Int(nonce.get())));
            let answer = self
                .call(&Call::new(&SWEEP, "detach", Nonce::new(0), arguments))
                .await?;
            if is_last {
                let mut more = answer.word()? == "more" || answer.flag(1);
                while more {
                    more = sweep::step(&self.client.link().await?).await?;
                }
                return Ok(());
            }
        }
    }

    async fn entries(&self, cursor: Option<&[u8]>) -> Result<Page> {
        let cursor = Argument::from(cursor.unwrap_or(b"0"));
        let answer = self
            .call(&Call::new(&LEASE, "entries", Nonce::new(0), vec![cursor]))
            .await?;
        let mut entries = Vec::new();
        for index in (2..answer.len()).step_by(3) {
            // A field that is no nonce is of a leased key.
            let Ok(nonce) = answer.number(index) else {
                continue;
            };
            let (is_there, entry) = (answer.flag(index + 1), answer.text(index + 2)?);
            entries.extend(self.entry(Nonce::new(nonce), is_there, entry));
        }
        Ok(match answer.text(1)? {
            "0" => Page::last(entries),
            next => Page::with_next(entries, next.into()),
        })
    }
}

impl BackendSession for RedisSession {
    fn locker(self: Arc<Self>) -> Option<Arc<dyn Locker>> {
        Some(self)
    }

    fn rw_lock(self: Arc<Self>) -> Option<Arc<dyn RwLock>> {
        Some(self)
    }

    fn election(self: Arc<Self>) -> Option<Arc<dyn Election>> {
        Some(self)
    }

    fn barrier(self: Arc<Self>) -> Option<Arc<dyn Barrier>> {
        Some(self)
    }

    fn queue(self: Arc<Self>) -> Option<Arc<dyn Queue>> {
        Some(self)
    }

    fn stm(self: Arc<Self>) -> Option<Arc<dyn Stm>> {
        Some(self)
    }
}
