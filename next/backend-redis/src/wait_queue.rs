//! Locks, read-write locks and elections.

use async_trait::async_trait;
use tenure_core::backend::{
    Departure, Election, EndOutcome, Grant, Joined, Leader, LeaderUpdate, Locker, Marker, Mode, Nonce, Request, RwLock,
    WaitQueue,
};
use tenure_core::{Error, ErrorKind, FencingToken, Kind, Name, Result};
use tokio::time::{Instant, sleep_until};

use crate::keys;
use crate::script::{Answer, Argument, Script, WAIT, WAIT_INTEROP};
use crate::session::{Call, RedisSession, revoked};
use crate::waiters::{Next, Waiter};

impl RedisSession {
    fn script(&self, kind: Kind) -> &'static Script {
        match self.client.config().interop && kind == Kind::Lock {
            true => &WAIT_INTEROP,
            false => &WAIT,
        }
    }

    /// Starts the sweeper if the script has left work for it.
    fn go_on(&self, answer: &Answer, more: usize) {
        if answer.flag(more) {
            self.sweeper.start();
        }
    }

    /// Joins with a waiter that is registered before the request is sent: a grant may overtake the answer.
    pub(crate) async fn join_as(&self, request: &Request, waiter: Waiter) -> Result<Joined> {
        let nonce = request.nonce();
        let waiter = std::sync::Arc::new(waiter);
        self.waiters.add(nonce, std::sync::Arc::clone(&waiter));
        let joined = self.look(request, &waiter, 0).await;
        if !matches!(joined, Ok(Joined::Waiting) | Err(_)) {
            self.waiters.remove(nonce);
        }
        joined
    }

    /// Joins, or looks after a request that has joined: it is the same step.
    async fn look(&self, request: &Request, waiter: &Waiter, asked: u64) -> Result<Joined> {
        let nonce = request.nonce();
        let call = Call::new(waiter.script, waiter.operation, nonce, waiter.arguments.clone());
        let answer = self.call(&call).await?;
        self.go_on(&answer, 2);
        Ok(match answer.word()? {
            "granted" => Joined::Granted(self.grant(&self.path_of(request), nonce, answer.token(1)?)),
            "waiting" => {
                waiter.looked(asked, answer.number(1)?);
                Joined::Waiting
            }
            "busy" => Joined::Busy,
            "revoked" => return Err(revoked()),
            "foreign" => {
                let message = format!(
                    "the key of this name is a {}, so another program uses it: use another name",
                    answer.text(1)?
                );
                return Err(Error::new(ErrorKind::Foreign, message));
            }
            "full" => {
                let message = "the participants of the barrier are inside: enter again when they have left";
                return Err(Error::new(ErrorKind::Conflict, message));
            }
            "size" => {
                let message = format!(
                    "participants wait to be {}: all must give the same count",
                    answer.text(1)?
                );
                return Err(Error::new(ErrorKind::Conflict, message));
            }
            _ => return Err(answer.unexpected()),
        })
    }

    /// Waits for the grant of a request that has joined. No polling: it looks when a message asks for it, after a
    /// reconnection, and when the lease of its predecessor has ended.
    pub(crate) async fn wait_for(&self, request: &Request) -> Result<Option<Grant>> {
        let nonce = request.nonce();
        let Some(waiter) = self.waiters.get(nonce) else {
            let message = "the request has no place any more: join again";
            return Err(Error::new(ErrorKind::Conflict, message));
        };
        loop {
            let grant = match waiter.next() {
                Next::Granted(token) => self.grant(&self.path_of(request), nonce, token),
                Next::Ended => return Err(revoked()),
                Next::Look(asked) => match self.look(request, &waiter, asked).await? {
                    Joined::Granted(grant) => grant,
                    Joined::Waiting | Joined::Busy => continue,
                },
                Next::Sleep(until) => {
                    tokio::select! {
                        () = waiter.changed() => {}
                        () = sleep_until(until) => {}
                    }
                    continue;
                }
            };
            self.waiters.remove(nonce);
            return Ok(Some(grant));
        }
    }

    pub(crate) async fn leave_all(&self, marker: Marker, departures: &[Departure]) -> Result<Vec<EndOutcome>> {
        let Some(first) = departures.first() else {
            return Ok(Vec::new());
        };
        let mut arguments = Vec::with_capacity(3 * departures.len());
        for Departure { request, token, .. } in departures {
            arguments.push(request.nonce().get().into());
            arguments.push(self.path_of(request).into());
            arguments.push(token.map_or("".into(), Argument::from));
        }
        let script = self.script(first.request.kind());
        let answer = self.call(&Call::marked(script, "leave", marker, arguments)).await?;
        self.go_on(&answer, 2);
        for departure in departures {
            self.waiters.remove(departure.request.nonce());
        }
        let results = answer.bytes(1)?;
        if answer.word()? != "left" || results.len() != departures.len() {
            return Err(answer.unexpected());
        }
        let outcome = |result: &u8| match result {
            b'1' => EndOutcome::Ended,
            _ => EndOutcome::NotHeld,
        };
        Ok(results.iter().map(outcome).collect())
    }

    /// Reads the state of an election, and how long the lease of its leader lasts, in ms.
    async fn head(&self, path: &str, after: u64) -> Result<(LeaderUpdate, Option<u64>)> {
        let answer = self
            .call(&Call::new(&WAIT, "head", Nonce::new(0), vec![path.into()]))
            .await?;
        // Odd for a leader and even for a vacancy: an observer of a vacancy does not take the tokens that are drawn
        // elsewhere for news.
        match answer.word()? {
            "leader" => {
                let leader = Leader::new(answer.token(1)?, answer.bytes(3)?);
                let update = LeaderUpdate::new(2 * answer.number(2)? + 1, Some(leader));
                Ok((update, Some(answer.number(4)?)))
            }
            "vacant" if after % 2 == 1 => Ok((LeaderUpdate::new((2 * answer.number(1)?).max(after + 1), None), None)),
            "vacant" if after > 0 => Ok((LeaderUpdate::new(after, None), None)),
            "vacant" => Ok((LeaderUpdate::new(2 * answer.number(1)?, None), None)),
            _ => Err(answer.unexpected()),
        }
    }
}

#[async_trait]
impl WaitQueue for RedisSession {
    async fn join(&self, request: &Request, mode: Mode, value: Option<&[u8]>, wait: bool) -> Result<Joined> {
        let mode = match mode {
            Mode::Exclusive => "x",
            Mode::Shared => "s",
            _ => return Err(Error::unsupported("this mode of a wait queue")),
        };
        if self.client.config().interop && request.kind() == Kind::Lock && keys::is_reserved(request.name()) {
            let message = "the name is a key of a namespace of tenure: use another name";
            return Err(Error::new(ErrorKind::InvalidName, message));
        }
        let how = if wait { "wait" } else { "try" };
        let mut arguments = vec![self.path_of(request).into(), mode.into(), how.into()];
        let operation = match request.kind() {
            Kind::Election => "campaign",
            _ => "join",
        };
        arguments.push(value.unwrap_or_default().into());
        let waiter = Waiter::new(operation, self.script(request.kind()), arguments);
        self.join_as(request, waiter).await
    }

    async fn wait(&self, request: &Request) -> Result<Option<Grant>> {
        self.wait_for(request).await
    }

    async fn leave(&self, marker: Marker, departures: &[Departure]) -> Result<Vec<EndOutcome>> {
        self.leave_all(marker, departures).await
    }
}

impl Locker for RedisSession {}

#[async_trait]
impl RwLock for RedisSession {
    async fn downgrade(&self, marker: Marker, request: &Request, token: FencingToken) -> Result<()> {
        let arguments = vec![request.nonce().get().into(), self.path_of(request).into(), token.into()];
        let answer = self.call(&Call::marked(&WAIT, "downgrade", marker, arguments)).await?;
        self.go_on(&answer, 1);
        match answer.word()? {
            "ok" => Ok(()),
            "gone" => Err(revoked()),
            _ => Err(answer.unexpected()),
        }
    }
}

#[async_trait]
impl Election for RedisSession {
    async fn proclaim(&self, request: &Request, token: FencingToken, number: u64, value: &[u8]) -> Result<()> {
        self.note_nonce(number);
        let arguments = vec![self.path_of(request).into(), token.into(), number.into(), value.into()];
        let answer = self
            .call(&Call::new(&WAIT, "proclaim", request.nonce(), arguments))
            .await?;
        match answer.word()? {
            "ok" => Ok(()),
            "gone" => Err(revoked()),
            _ => Err(answer.unexpected()),
        }
    }

    async fn observe(&self, name: &Name, after: Option<u64>) -> Result<LeaderUpdate> {
        let path = self.path(Kind::Election, name);
        let Some(after) = after else {
            return self.head(&path, 0).await.map(|(update, _)| update);
        };
        let mut topic = self.client.subscribe(keys::topic(&self.root, &path));
        // The confirmation: no change is missed after it.
        topic.next().await;
        loop {
            let (update, rest) = self.head(&path, after).await?;
            if update.version > after {
                return Ok(update);
            }
            let until = rest.map(|rest| Instant::now() + crate::waiters::after_lease(rest));
            tokio::select! {
                _ = topic.next() => {}
                () = async { sleep_until(until.unwrap_or_else(Instant::now)).await }, if until.is_some() => {}
            }
        }
    }
}
