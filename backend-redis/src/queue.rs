//! Queues: a step for each thing done with items (see `lua/queue.lua`).
//!
//! Whoever puts an item in gives it to the consumer that waits longest in the same step, and tells
//! that one alone. It then asks once more what it has: the same take brings the same items.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tenure_core::backend::{Ask, Grant, Kind, Queue, Settle, Taken, Want, escape};
use tenure_core::{
    Depth, Error, ErrorKind, ID_MEMORY, Item, LossReason, MAX_BATCH, Name, Peeked, Result,
};

use crate::error;
use crate::index::Repeat;
use crate::layout::{hex, path, path_of};
use crate::scripts::{self, Script};
use crate::session::RedisSession;
use crate::step::{Arg, Reply};

/// The most bytes that one batch of items may have: a script on more would keep everybody else
/// waiting for longer than 5 ms.
pub const MAX_BATCH_BYTES: usize = 2 * 1024 * 1024;

// As `lua/queue.lua` has them.
const _: () = assert!(MAX_BATCH == 32 && ID_MEMORY.as_millis() == 600_000);

/// The queues of a session on Redis.
pub struct RedisQueue {
    session: Arc<RedisSession>,
}

impl fmt::Debug for RedisQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisQueue")
            .field("session", &self.session)
            .finish()
    }
}

/// A delivery, attached to its grant.
struct Claim {
    /// Where the item stands: `<priority>:<number>`.
    place: String,
    /// Of the ask that took it.
    nonce: u64,
}

/// What a take wants, in the script's words: none for one item however often it was delivered.
fn words(want: &Want) -> String {
    match &want.dead_letters {
        None if want.most == 1 => String::new(),
        None => format!("{} 0 ", want.most),
        Some(letters) => {
            let elsewhere = path(Kind::Queue, &letters.queue);
            format!("{} {} {elsewhere}", want.most, letters.after)
        }
    }
}

/// The priority in a place.
fn priority_of(place: &str) -> Option<u16> {
    place.get(..5)?.parse().ok()
}

fn check_bytes(items: &[Item]) -> Result<()> {
    let bytes: usize = items.iter().map(|item| item.value().len()).sum();
    if bytes <= MAX_BATCH_BYTES {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::TooLarge,
        format!(
            "a batch on Redis may have at most {MAX_BATCH_BYTES} bytes in all, this one has {bytes}: split it"
        ),
    ))
}

impl RedisQueue {
    pub(crate) fn new(session: Arc<RedisSession>) -> Self {
        Self { session }
    }

    /// Takes items, or finds those that the same take got before.
    async fn look(&self, ask: &Ask, want: &Want, waits: bool) -> Result<Reply> {
        let (path, words) = (path_of(ask), words(want));
        let arguments = [
            (&path).into(),
            u64::from(waits).into(),
            Arg::from(words.as_str()),
        ];
        loop {
            let script = &scripts::QUEUE_TAKE;
            let found = self.session.step(script, ask.nonce(), &arguments).await?;
            if found.status() != "again" {
                return Ok(found);
            }
            if ask.is_withdrawn() {
                return Err(Error::withdrawn());
            }
        }
    }

    /// Waits for items in the queue's line.
    async fn taken_in_turn(&self, ask: &Ask, want: &Want) -> Result<Vec<Taken>> {
        // Before the first look: what is told right after that is heard.
        let waiting = self.session.waiting(ask.nonce());
        let mut found = self.look(ask, want, true).await?;
        loop {
            let patience = match found.status() {
                "items" => return self.taken(ask, &found),
                "damaged" => return Err(self.damaged(&path_of(ask), &found, true)),
                "wait" => Duration::from_millis(found.unsigned(0)?),
                _ => return Err(found.unexpected()),
            };
            tokio::select! {
                _ = waiting.news() => {}
                () = tokio::time::sleep(patience) => {}
                () = ask.withdrawn() => return Err(Error::withdrawn()),
            }
            let looked = self.look(ask, want, true).await;
            found = looked.map_err(error::of_one_who_waits)?;
        }
    }

    /// The error of an item without a value.
    fn damaged(&self, path: &str, found: &Reply, taken: bool) -> Error {
        match found.text(0) {
            Ok(place) => {
                let key = format!("{}{path}/values", self.session.root);
                error::damaged_item(&key, place, taken)
            }
            Err(error) => error,
        }
    }

    fn taken(&self, ask: &Ask, found: &Reply) -> Result<Vec<Taken>> {
        let nonce = hex(ask.nonce());
        let item = |at: usize| {
            let place = found.text(at + 1)?;
            self.session.index.expect(format!("{nonce}:{place}"));
            let key = format!("{}{}/claims#{place}", self.session.root, path_of(ask));
            let claim = Claim {
                place: place.to_owned(),
                nonce: ask.nonce(),
            };
            Ok(Taken {
                grant: Grant::new(found.token(at)?, key).attach(claim),
                priority: priority_of(place).ok_or_else(|| found.unexpected())?,
                deliveries: u32::try_from(found.unsigned(at + 2)?).unwrap_or(u32::MAX),
                value: found.bytes(at + 3)?.unwrap_or_default().to_vec(),
            })
        };
        (0..found.len()).step_by(4).map(item).collect()
    }

    /// Ends the delivery that `grant` says.
    async fn end(
        &self,
        script: &'static Script,
        ask: &Ask,
        grant: &Grant,
        more: Option<u64>,
    ) -> Result<()> {
        let claim: &Claim = grant
            .attachment()
            .ok_or_else(|| Error::new(ErrorKind::Internal, "a grant of another store"))?;
        let (path, nonce) = (path_of(ask), hex(claim.nonce));
        let mut arguments = vec![
            (&path).into(),
            (&claim.place).into(),
            (&nonce).into(),
            grant.token().into(),
        ];
        arguments.extend(more.map(Arg::from));
        let ended = self.session.step_once(script, ask.nonce(), &arguments);
        let ended = ended.await?;
        let index = &self.session.index;
        if script.name == scripts::QUEUE_ACK.name && ended.status() == "ok" {
            let repeat = Repeat {
                what: "ack",
                path,
                of: claim.place.clone(),
            };
            index.may_repeat(self.session.ttl(), repeat);
        }
        index.forget(&format!("{nonce}:{}", claim.place));
        match ended.status() {
            "ok" => Ok(()),
            "gone" => Err(Error::lost(LossReason::Revoked)),
            _ => Err(ended.unexpected()),
        }
    }

    /// Asks about a queue, until it has been brought up to date.
    async fn ask_about(&self, script: &'static Script, name: &Name) -> Result<Reply> {
        let path = path(Kind::Queue, name);
        loop {
            let found = self.session.step(script, 0, &[(&path).into()]).await?;
            if found.status() != "again" {
                return Ok(found);
            }
        }
    }
}

#[async_trait]
impl Queue for RedisQueue {
    async fn enqueue(&self, ask: &Ask, items: &[Item]) -> Result<()> {
        check_bytes(items)?;
        let path = path_of(ask);
        let id = |item: &Item| item.get_id().map(|id| escape(id.as_str()));
        let ids: Vec<String> = items.iter().map(|it| id(it).unwrap_or_default()).collect();
        let mut arguments = vec![(&path).into()];
        for (item, id) in items.iter().zip(&ids) {
            arguments.push(u64::from(item.get_priority()).into());
            arguments.push(id.into());
            arguments.push(item.value().into());
        }
        let script = &scripts::QUEUE_ENQUEUE;
        let accepted = self.session.step_once(script, ask.nonce(), &arguments);
        let accepted = accepted.await?;
        match accepted.status() {
            "ok" => Ok(()),
            _ => Err(accepted.unexpected()),
        }
    }

    async fn try_take(&self, ask: &Ask, want: &Want) -> Result<Vec<Taken>> {
        let taking = async {
            let found = self.look(ask, want, false).await?;
            match found.status() {
                "items" => self.taken(ask, &found),
                "none" => Ok(Vec::new()),
                "damaged" => Err(self.damaged(&path_of(ask), &found, true)),
                _ => Err(found.unexpected()),
            }
        };
        // The items have entries of their own.
        let index = &self.session.index;
        index.expecting(ask.nonce(), taking, |_| true).await
    }

    async fn take(&self, ask: &Ask, want: &Want) -> Result<Vec<Taken>> {
        let taking = self.taken_in_turn(ask, want);
        let index = &self.session.index;
        index.expecting(ask.nonce(), taking, |_| true).await
    }

    async fn ack(&self, ask: &Ask, grant: &Grant) -> Result<()> {
        self.end(&scripts::QUEUE_ACK, ask, grant, None).await
    }

    async fn nack(&self, ask: &Ask, grant: &Grant, delay: Duration) -> Result<()> {
        // Rounded up; the script's numbers are exact up to 2^53, and this is for centuries.
        let delay = delay.as_nanos().div_ceil(1_000_000).min(1 << 43);
        let delay = u64::try_from(delay).unwrap_or(1 << 43);
        self.end(&scripts::QUEUE_NACK, ask, grant, Some(delay))
            .await
    }

    async fn depth(&self, name: &Name) -> Result<Depth> {
        let found = self.ask_about(&scripts::QUEUE_DEPTH, name).await?;
        match found.status() {
            "ok" => Ok(Depth::new(
                found.unsigned(0)?,
                found.unsigned(1)?,
                found.unsigned(2)?,
            )),
            _ => Err(found.unexpected()),
        }
    }

    async fn peek(&self, name: &Name) -> Result<Option<Peeked>> {
        let found = self.ask_about(&scripts::QUEUE_PEEK, name).await?;
        match found.status() {
            "ok" => Ok(Some(Peeked {
                priority: priority_of(found.text(0)?).ok_or_else(|| found.unexpected())?,
                deliveries: u32::try_from(found.unsigned(1)?).unwrap_or(u32::MAX),
                value: found.bytes(2)?.unwrap_or_default().to_vec(),
            })),
            "none" => Ok(None),
            "damaged" => Err(self.damaged(&path(Kind::Queue, name), &found, false)),
            _ => Err(found.unexpected()),
        }
    }

    async fn purge(&self, ask: &Ask) -> Result<u64> {
        let path = path_of(ask);
        let (mut after, mut last, mut purged) = (String::new(), String::new(), 0);
        loop {
            let arguments = [(&path).into(), (&after).into(), (&last).into()];
            let script = &scripts::QUEUE_PURGE;
            let done = self.session.step(script, ask.nonce(), &arguments).await?;
            purged += done.unsigned(0)?;
            match done.status() {
                "ok" => return Ok(purged),
                "again" => (after, last) = (done.text(1)?.to_owned(), done.text(2)?.to_owned()),
                _ => return Err(done.unexpected()),
            }
        }
    }
}

#[async_trait]
impl Settle for RedisQueue {
    async fn release(&self, ask: &Ask, grant: &Grant) -> Result<()> {
        self.nack(ask, grant, Duration::ZERO).await
    }

    async fn withdraw(&self, ask: &Ask) -> Result<()> {
        let path = path_of(ask);
        let script = &scripts::QUEUE_LEAVE;
        let arguments = [(&path).into()];
        let left = self.session.step(script, ask.nonce(), &arguments).await?;
        match left.status() {
            "ok" => {
                self.session.index.forget_all(ask.nonce());
                Ok(())
            }
            _ => Err(left.unexpected()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_take_says_what_it_wants() {
        let mut want = Want::new(1);
        assert_eq!(words(&want), "");
        want.most = 7;
        assert_eq!(words(&want), "7 0 ");
    }

    #[test]
    fn a_batch_has_an_end() {
        let items = |count, size| vec![Item::new(vec![0; size]); count];
        assert!(check_bytes(&items(2, 1024 * 1024)).is_ok());
        let error = check_bytes(&items(3, 1024 * 1024)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TooLarge);
    }
}
