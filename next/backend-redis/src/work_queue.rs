//! Work queues.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tenure_core::backend::{
    Claim, EndOutcome, EntryState, Grant, Item, Joined, Marker, Nonce, PeekedItem, Queue, QueueDepth, Request, Return,
    TakeLimit, TakenItem,
};
use tenure_core::value::MAX_VALUE_BYTES;
use tenure_core::{Error, ErrorKind, FencingToken, Kind, Name, Result};
use tokio::time::sleep_until;

use crate::script::{Answer, Argument, WORK_QUEUE};
use crate::session::{Call, RedisSession, revoked};
use crate::waiters::{Next, Waiter};

/// The fields of an item in the answer of a take.
const FIELDS: usize = 5;

fn micros(delay: Duration) -> Argument {
    Argument::Int(u64::try_from(delay.as_micros()).unwrap_or(u64::MAX))
}

/// Reads an id; an item without one has an empty one.
fn id(answer: &Answer, index: usize) -> Result<Option<Name>> {
    match answer.text(index)? {
        "" => Ok(None),
        id => Name::new(id).map(Some),
    }
}

fn count(answer: &Answer, index: usize) -> Result<u32> {
    u32::try_from(answer.number(index)?).map_err(|_| answer.unexpected())
}

fn priority(answer: &Answer, index: usize) -> Result<u16> {
    u16::try_from(answer.number(index)?).map_err(|_| answer.unexpected())
}

impl RedisSession {
    fn path_of_queue(&self, name: &Name) -> String {
        self.path(Kind::Queue, name)
    }

    /// Returns how the store calls a claim, for operators.
    fn claim_key(&self, path: &str, nonce: Nonce, token: FencingToken) -> Arc<str> {
        format!("{}:{token}", self.grant(path, nonce, token).key).into()
    }

    /// Reads the claims of a take's entry: `<token>@<place>,...`, or `-` for one that waits.
    pub(crate) fn take_state(&self, path: &str, nonce: Nonce, claims: &str) -> Option<EntryState> {
        if claims == "-" {
            return Some(EntryState::Waiting);
        }
        let grant = |claim: &str| {
            let token = FencingToken::new(claim.split('@').next()?.parse().ok()?);
            Some(Grant::new(token, self.claim_key(path, nonce, token)))
        };
        claims
            .split(',')
            .map(grant)
            .collect::<Option<_>>()
            .map(EntryState::Granted)
    }

    fn items(&self, request: &Request, answer: &Answer) -> Result<Vec<TakenItem>> {
        let path = self.path_of(request);
        let item = |index| {
            let token = answer.token(index)?;
            let key = self.claim_key(&path, request.nonce(), token);
            let mut item = TakenItem::new(token, key, answer.bytes(index + 4)?);
            item.priority = priority(answer, index + 1)?;
            item.deliveries = count(answer, index + 2)?;
            item.id = id(answer, index + 3)?;
            Ok(item)
        };
        (2..answer.len()).step_by(FIELDS).map(item).collect()
    }

    /// Takes, or looks after a take: it is the same step.
    async fn look_for_items(&self, request: &Request, waiter: &Waiter, asked: u64) -> Result<Joined<Vec<TakenItem>>> {
        let call = Call::new(
            waiter.script,
            waiter.operation,
            request.nonce(),
            waiter.arguments.clone(),
        );
        let answer = self.call(&call).await?;
        match answer.word()? {
            "items" => {
                self.sweep_if(&answer, 1);
                self.items(request, &answer).map(Joined::Granted)
            }
            "waiting" => {
                self.sweep_if(&answer, 2);
                waiter.looked(asked, answer.number(1)?);
                Ok(Joined::Waiting)
            }
            "busy" => {
                self.sweep_if(&answer, 2);
                Ok(Joined::Busy)
            }
            "revoked" => Err(revoked()),
            _ => Err(answer.unexpected()),
        }
    }

    /// Starts the sweeper if the script has left work for it.
    fn sweep_if(&self, answer: &Answer, more: usize) {
        if answer.flag(more) {
            self.sweeper.start();
        }
    }

    /// Sends the ends of claims, and reads whether they were held.
    async fn end_claims(
        &self,
        operation: &'static str,
        marker: Marker,
        arguments: Vec<Argument>,
        count: usize,
    ) -> Result<Vec<EndOutcome>> {
        let answer = self
            .call(&Call::marked(&WORK_QUEUE, operation, marker, arguments))
            .await?;
        self.sweep_if(&answer, 2);
        let results = answer.bytes(1)?;
        if answer.word()? != "ended" || results.len() != count {
            return Err(answer.unexpected());
        }
        let outcome = |result: &u8| match result {
            b'1' => EndOutcome::Ended,
            _ => EndOutcome::NotHeld,
        };
        Ok(results.iter().map(outcome).collect())
    }

    fn claim_arguments(&self, claim: &Claim) -> [Argument; 3] {
        [
            claim.request.nonce().get().into(),
            self.path_of(&claim.request).into(),
            claim.token.into(),
        ]
    }
}

#[async_trait]
impl Queue for RedisSession {
    async fn enqueue(&self, marker: Marker, name: &Name, items: &[Item]) -> Result<()> {
        let mut arguments = vec![self.path_of_queue(name).into()];
        for item in items {
            let size = item.value.len();
            if size > MAX_VALUE_BYTES {
                let message = format!("an item of {size} bytes; {MAX_VALUE_BYTES} is the most: store it elsewhere");
                return Err(Error::new(ErrorKind::TooLarge, message).on(name.as_str()));
            }
            arguments.extend([
                u64::from(item.priority).into(),
                item.id.as_ref().map_or("", Name::as_str).into(),
                micros(item.delay),
                Argument::Bytes(item.value.to_vec()),
            ]);
        }
        let answer = self
            .call(&Call::marked(&WORK_QUEUE, "enqueue", marker, arguments))
            .await?;
        self.sweep_if(&answer, 1);
        match answer.word()? {
            "ok" => Ok(()),
            _ => Err(answer.unexpected()),
        }
    }

    async fn take(&self, request: &Request, limit: &TakeLimit, wait: bool) -> Result<Joined<Vec<TakenItem>>> {
        let how = if wait { "wait" } else { "try" };
        let (deliveries, dead) = match &limit.dead_letter {
            Some((deliveries, name)) => ((*deliveries).max(1), self.path_of_queue(name)),
            None => (0, String::new()),
        };
        let wanted = format!("{} {} {deliveries} {dead}", limit.items.max(1), limit.bytes);
        let arguments = vec![self.path_of(request).into(), how.into(), wanted.into()];
        let waiter = Arc::new(Waiter::new("take", &WORK_QUEUE, arguments));
        // Before the request is sent: the items may overtake the answer.
        self.waiters.add(request.nonce(), Arc::clone(&waiter));
        let taken = self.look_for_items(request, &waiter, 0).await;
        if !matches!(taken, Ok(Joined::Waiting) | Err(_)) {
            self.waiters.remove(request.nonce());
        }
        taken
    }

    async fn wait(&self, request: &Request) -> Result<Option<Vec<TakenItem>>> {
        let nonce = request.nonce();
        let Some(waiter) = self.waiters.get(nonce) else {
            let message = "the request has no place any more: join again";
            return Err(Error::new(ErrorKind::Conflict, message));
        };
        loop {
            match waiter.next() {
                Next::Ended => return Err(revoked()),
                Next::Sleep(until) => {
                    tokio::select! {
                        () = waiter.changed() => {}
                        () = sleep_until(until) => {}
                    }
                }
                // The items come with the answer to a look, not with the message.
                Next::Granted(_) => return Err(crate::error::unexpected("take", "a message of another kind")),
                Next::Look(asked) => match self.look_for_items(request, &waiter, asked).await? {
                    Joined::Granted(items) => {
                        self.waiters.remove(nonce);
                        return Ok(Some(items));
                    }
                    Joined::Waiting | Joined::Busy => {}
                },
            }
        }
    }

    async fn ack(&self, marker: Marker, claims: &[Claim]) -> Result<Vec<EndOutcome>> {
        let arguments = claims.iter().flat_map(|claim| self.claim_arguments(claim)).collect();
        self.end_claims("ack", marker, arguments, claims.len()).await
    }

    async fn nack(&self, marker: Marker, returns: &[Return]) -> Result<Vec<EndOutcome>> {
        let mut arguments = Vec::with_capacity(4 * returns.len());
        for back in returns {
            arguments.extend(self.claim_arguments(&back.claim));
            arguments.push(micros(back.delay));
        }
        self.end_claims("nack", marker, arguments, returns.len()).await
    }

    async fn leave(&self, requests: &[Request]) -> Result<()> {
        let mut arguments = Vec::with_capacity(2 * requests.len());
        for request in requests {
            arguments.extend([request.nonce().get().into(), self.path_of(request).into()]);
        }
        let answer = self
            .call(&Call::new(&WORK_QUEUE, "leave", Nonce::new(0), arguments))
            .await?;
        self.sweep_if(&answer, 1);
        for request in requests {
            self.waiters.remove(request.nonce());
        }
        match answer.word()? {
            "ok" => Ok(()),
            _ => Err(answer.unexpected()),
        }
    }

    async fn depth(&self, name: &Name) -> Result<QueueDepth> {
        let arguments = vec![self.path_of_queue(name).into()];
        let answer = self
            .call(&Call::new(&WORK_QUEUE, "depth", Nonce::new(0), arguments))
            .await?;
        match answer.word()? {
            "ok" => Ok(QueueDepth::new(answer.number(1)?, answer.number(2)?, answer.number(3)?)),
            _ => Err(answer.unexpected()),
        }
    }

    async fn peek(&self, name: &Name) -> Result<Option<PeekedItem>> {
        let arguments = vec![self.path_of_queue(name).into()];
        let answer = self
            .call(&Call::new(&WORK_QUEUE, "peek", Nonce::new(0), arguments))
            .await?;
        match answer.word()? {
            "empty" => Ok(None),
            "item" => {
                let mut item = PeekedItem::new(answer.bytes(4)?, priority(&answer, 1)?);
                item.deliveries = count(&answer, 2)?;
                item.id = id(&answer, 3)?;
                Ok(Some(item))
            }
            _ => Err(answer.unexpected()),
        }
    }

    async fn purge(&self, marker: Marker, name: &Name) -> Result<u64> {
        let arguments = vec![self.path_of_queue(name).into()];
        // One script removes a part, and notes in the slot of `marker` how far it came.
        let call = Call::marked(&WORK_QUEUE, "purge", marker, arguments);
        loop {
            let answer = self.call(&call).await?;
            match answer.word()? {
                "more" => {}
                "ok" => return answer.number(1),
                _ => return Err(answer.unexpected()),
            }
        }
    }
}
