//! Barriers and double barriers, in the layout of Go's recipes.
//!
//! A **barrier** is one key, there while it is held. Its value says which ask put it there, so that
//! a repeated hold whose answer was lost knows its own.
//!
//! A **double barrier** has a key under `waiters/` for each participant, on its lease, and `ready`
//! from the moment when all have come until the last has left. The create revision of a waiter is
//! its place and its token. The value of a waiter says its count; that of `ready` says the count and
//! the tokens of those it lets in: who reads its own there needs to ask no more. What differs from Go: `ready` is put by a transaction that
//! compares that every one it lets in is still there, so the dead never count; nobody is put among
//! the waiters while `ready` is there, so nobody comes too late and passes alone; who is refused
//! takes its key away; and the last to leave takes `ready` away in the transaction that deletes its
//! own key.
//!
//! # Why generations cannot meet
//!
//! A generation is what one `ready` let in; `last` is the greatest token among them.
//!
//! - While `ready` is there, no waiter is put (the placing transaction compares that it is absent).
//!   So the waiters that stand beside it were all put before it: its generation, and some that came
//!   too many (created after `last`) or with another count and have not taken their keys away yet.
//! - `ready` is deleted by whoever finds nobody of its generation left: in one transaction with its
//!   own key when that is the last of all, else by one that compares `ready`'s create revision, and
//!   takes the refused away with it. So the next generation begins among nobody.
//! - Therefore every waiter of a later generation was created after `last`. A slow leaver waits for
//!   those up to `last` alone: never for a later generation. It deletes `ready` only in a
//!   transaction that compares the create revision that it knows, or that its own key stands, and
//!   then `ready` is its own: never a later one.
//! - A request that arrives late finds its key gone, or another's value in it, or the marker of
//!   `ticket.rs`. The late `ready` of a creator finds one of those missing whom it compares: they
//!   cannot all stand unless nothing has happened since.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use etcd_client::proto::PbKeyValue;
use etcd_client::{
    Compare, CompareOp, GetOptions, PutOptions, SortOrder, SortTarget, Txn, TxnOp, TxnOpResponse,
    TxnResponse,
};
use tenure_core::backend::{Ask, Barrier, Grant, Kind, Settle, async_trait};
use tenure_core::{Effect, Error, ErrorKind, FencingToken, HoldFor, LossReason, Name, Result};

use crate::bell::Looks;
use crate::floor::{Asked, Floor, revision, token};
use crate::session::EtcdSession;
use crate::ticket::{Tickets, nonce, odd, ranges};

/// Of etcd's 128 operations a transaction, `ready` needs one compare for each participant.
const MOST: u32 = 120;
/// Refused waiters that are cleared away at once.
const CLEARED: usize = 100;
/// A leaver hears of each one that leaves, and for so long rather waits for the last.
const OTHERS: Duration = Duration::from_millis(20);

/// The barriers and double barriers of one session.
pub struct EtcdBarrier {
    session: Arc<EtcdSession>,
    /// Which hold the lifts on their way are to end: tried again, they spare a newer one.
    lifting: Mutex<HashMap<u64, i64>>,
}

impl EtcdBarrier {
    pub(crate) fn new(session: Arc<EtcdSession>) -> Self {
        Self {
            session,
            lifting: Mutex::default(),
        }
    }

    fn tickets(&self) -> &Tickets {
        &self.session.tickets
    }

    /// Core withdraws an ask of which something may stand; else it is forgotten here.
    fn failed(&self, ask: &Ask, error: Error) -> Error {
        if self.tickets().may_stand(ask) {
            return error.with_effect(Effect::Unknown);
        }
        self.tickets().forget(ask);
        error
    }

    /// Forgets `ask`, which was refused, unless an earlier request of it may still arrive.
    fn forget_answered(&self, ask: &Ask) {
        if self
            .tickets()
            .slot(ask)
            .is_some_and(|slot| !slot.unanswered)
        {
            self.tickets().forget(ask);
        }
    }

    async fn send(&self, txn: Txn) -> Result<TxnResponse> {
        let answer = self.session.shared.wire.call(|client| {
            let (mut kv, txn) = (client.kv_client(), txn.clone());
            async move { kv.txn(txn).await }
        });
        answer.await
    }

    async fn read(&self, operations: impl Into<Vec<TxnOp>>) -> Result<TxnResponse> {
        let txn = Txn::new().and_then(operations);
        let answer = self.session.shared.wire.call_repeatable(|client| {
            let (mut kv, txn) = (client.kv_client(), txn.clone());
            async move { kv.txn(txn).await }
        });
        answer.await
    }

    fn leased(&self) -> PutOptions {
        PutOptions::new().with_lease(self.session.lease)
    }

    /// A marker is only needed where a request of the ask may still be on its way.
    fn mark(&self, ask: &Ask, unanswered: bool) -> Option<TxnOp> {
        let marker = self.tickets().marker(ask);
        unanswered.then(|| TxnOp::put(marker, nonce(ask), Some(self.leased())))
    }
}

fn same(key: impl Into<Vec<u8>>, created: i64) -> Compare {
    Compare::create_revision(key, CompareOp::Equal, created)
}

/// Barriers.
impl EtcdBarrier {
    fn key(&self, name: &Name) -> String {
        self.session.shared.layout.place(Kind::Barrier, name)
    }

    /// What the key of a hold by `ask` has as its value: unique over all sessions.
    fn holder(&self, ask: &Ask) -> String {
        format!("{:x}-{}", self.session.lease, nonce(ask))
    }

    /// One transaction holds, and leaves the marker of its ask, on the lease. So it takes effect
    /// once, whatever happens to the hold meanwhile, and never after the end of the session, a hold
    /// for good included.
    async fn put_up(&self, ask: &Ask, hold_for: HoldFor) -> Result<()> {
        let (key, tickets) = (self.key(ask.name()), self.tickets());
        // For its flags alone.
        tickets.key_under(ask, &format!("{key}/"), self.holder(ask));
        let marker = tickets.marker(ask);
        let lease = (hold_for == HoldFor::Session).then(|| self.leased());
        let txn = Txn::new()
            .when([Tickets::absent(&key), Tickets::absent(&marker)])
            .and_then([
                TxnOp::put(key.as_str(), self.holder(ask), lease),
                TxnOp::put(marker.as_str(), self.holder(ask), Some(self.leased())),
            ])
            .or_else([TxnOp::get(marker.as_str(), None)]);
        let before = tickets.slot(ask).is_some_and(|slot| slot.unanswered);
        let answer = tickets.send(ask, txn).await?;
        let held = answer.succeeded();
        let marked = ranges(answer).into_iter().flat_map(|(kvs, _)| kvs).next();
        match marked {
            _ if held => {}
            // An earlier request of this ask has landed.
            Some(marker) if marker.value == self.holder(ask).into_bytes() => {}
            Some(_) => return Err(Error::withdrawn()),
            None => {
                self.forget_answered(ask);
                return Err(Error::new(
                    ErrorKind::Conflict,
                    "the barrier is held already: wait for its release",
                ));
            }
        }
        if !before {
            // Nothing is on its way that it is for. At worst it stays until the session ends.
            let txn = Txn::new().and_then([TxnOp::delete(marker, None)]);
            if let Err(error) = self.send(txn).await {
                tracing::debug!(error = %error.chain(), "a marker stays until the session ends");
            }
        }
        tickets.forget(ask);
        Ok(())
    }

    /// Takes a hold back that nobody was told of.
    async fn take_down(&self, ask: &Ask) -> Result<()> {
        let Some(slot) = self.tickets().slot(ask) else {
            // Settled: it holds, and was answered, and nobody heard. Nothing is on its way.
            return self.unhold(ask).await;
        };
        if self.tickets().may_stand(ask) {
            let key = self.key(ask.name());
            let mine = Compare::value(key.as_str(), CompareOp::Equal, self.holder(ask));
            let mark = self.mark(ask, slot.unanswered);
            let mut done = vec![TxnOp::delete(key.as_str(), None)];
            done.extend(mark.clone());
            let txn = Txn::new()
                .when([mine])
                .and_then(done)
                .or_else(Vec::from_iter(mark));
            match self.send(txn).await {
                // Nothing can land any more; but a hold for good may have before.
                Err(error) if error.kind() == ErrorKind::Lost => self.unhold(ask).await?,
                Err(error) => return Err(error),
                Ok(_) => {}
            }
        }
        self.tickets().forget(ask);
        Ok(())
    }

    async fn unhold(&self, ask: &Ask) -> Result<()> {
        let key = self.key(ask.name());
        let mine = Compare::value(key.as_str(), CompareOp::Equal, self.holder(ask));
        let delete = TxnOp::delete(key.as_str(), None);
        self.send(Txn::new().when([mine]).and_then([delete]))
            .await
            .map(drop)
    }

    /// The revision at which the hold that stands was put up.
    async fn held_since(&self, key: &str) -> Result<Option<i64>> {
        let options = GetOptions::new().with_keys_only();
        let answer = self.read([TxnOp::get(key, Some(options))]).await?;
        let found = ranges(answer).into_iter().flat_map(|(kvs, _)| kvs).next();
        Ok(found.map(|kv| kv.create_revision))
    }

    fn lifting(&self) -> std::sync::MutexGuard<'_, HashMap<u64, i64>> {
        self.lifting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A participant.
struct Waiter {
    key: Vec<u8>,
    created: i64,
    /// Go's participants do not say theirs.
    count: Option<u32>,
}

impl Waiter {
    fn read(kv: PbKeyValue) -> Self {
        let value = String::from_utf8_lossy(&kv.value);
        let count = value
            .split_once(' ')
            .and_then(|(_, count)| count.parse().ok());
        Self {
            key: kv.key,
            created: kv.create_revision,
            count,
        }
    }

    fn agrees(&self, count: u32) -> bool {
        self.count.is_none_or(|said| said == count)
    }
}

/// What lets a generation in: the value is its count and the tokens of its members.
#[derive(Clone)]
struct Ready {
    created: i64,
    count: Option<u32>,
    /// Their tokens. Empty in Go's.
    members: Vec<FencingToken>,
}

impl Ready {
    fn read(created: i64, value: &[u8]) -> Self {
        let value = String::from_utf8_lossy(value);
        let mut words = value.split(' ');
        Self {
            created,
            count: words.next().and_then(|count| count.parse().ok()),
            members: words
                .filter_map(|token| token.parse().ok())
                .map(FencingToken::new)
                .collect(),
        }
    }

    fn agrees(&self, count: u32) -> bool {
        self.count.is_none_or(|said| said == count)
    }

    /// The last that it let in; whoever stood there, if it does not say.
    fn last(&self) -> i64 {
        let members = self.members.iter().copied().map(revision);
        members.max().unwrap_or(self.created)
    }

    /// The token that it gives to the participant whose key was created at `created`.
    fn member(&self, created: i64) -> Option<FencingToken> {
        let mut members = self.members.iter().copied();
        members.find(|token| revision(*token) == created)
    }

    fn let_in(&self, created: i64) -> Option<FencingToken> {
        let go = self.members.is_empty() && created < self.created;
        self.member(created).or(go.then(|| token(0, created)))
    }
}

/// One look at a double barrier, at one revision.
struct Scene {
    ready: Option<Ready>,
    /// In the order of their coming.
    waiters: Vec<Waiter>,
    floor: Floor,
}

/// What a participant that stands finds.
enum Finding {
    In(FencingToken, Inside),
    Wait,
    /// All have come: these.
    Complete(Vec<(Vec<u8>, i64)>),
    Refused(&'static str),
}

const ANOTHER_COUNT: &str = "those who are there gave another count";
const TOO_MANY: &str =
    "one too many: all have entered already, and not all have left; enter again when they have";

impl Scene {
    fn read(
        floor: Floor,
        found: &mut impl Iterator<Item = (Vec<PbKeyValue>, bool)>,
    ) -> Result<Self> {
        let (Some((ready, _)), Some((waiters, _))) = (found.next(), found.next()) else {
            return Err(odd("too few ranges"));
        };
        Ok(Self {
            ready: ready
                .first()
                .map(|kv| Ready::read(kv.create_revision, &kv.value)),
            waiters: waiters.into_iter().map(Waiter::read).collect(),
            floor,
        })
    }

    /// What the participant `mine` is to do now.
    fn find(&self, mine: i64, count: u32) -> Finding {
        if let Some(ready) = &self.ready {
            return if !ready.agrees(count) {
                Finding::Refused(ANOTHER_COUNT)
            } else if let Some(token) = ready.let_in(mine) {
                Finding::In(token, Inside::of(ready))
            } else {
                Finding::Refused(TOO_MANY)
            };
        }
        let before = self.waiters.iter().filter(|waiter| waiter.created < mine);
        if let Some(first) = before.clone().find_map(|waiter| waiter.count)
            && first != count
        {
            return Finding::Refused(ANOTHER_COUNT);
        }
        let most = usize::try_from(count).unwrap_or(usize::MAX);
        if before.filter(|waiter| waiter.agrees(count)).count() >= most {
            return Finding::Refused(TOO_MANY);
        }
        let agreed = self.waiters.iter().filter(|waiter| waiter.agrees(count));
        let members: Vec<_> = agreed
            .take(most)
            .map(|waiter| (waiter.key.clone(), waiter.created))
            .collect();
        if members.len() == most {
            Finding::Complete(members)
        } else {
            Finding::Wait
        }
    }
}

/// Where a double barrier's keys are.
struct Place {
    prefix: String,
    ready: String,
    waiters: String,
}

/// What a grant remembers of its generation.
#[derive(Clone, Copy)]
struct Inside {
    ready: i64,
    last: i64,
}

impl Inside {
    fn of(ready: &Ready) -> Self {
        Self {
            ready: ready.created,
            last: ready.last(),
        }
    }
}

/// Double barriers.
impl EtcdBarrier {
    fn place(&self, name: &Name) -> Place {
        let path = self.session.shared.layout.place(Kind::DoubleBarrier, name);
        Place {
            ready: format!("{path}/ready"),
            waiters: format!("{path}/waiters/"),
            prefix: path + "/",
        }
    }

    /// Reads the token floor, and everything of a double barrier.
    fn scene(&self, place: &Place) -> Vec<TxnOp> {
        let options = GetOptions::new()
            .with_prefix()
            .with_sort(SortTarget::Create, SortOrder::Ascend);
        let looks = [
            TxnOp::get(place.ready.as_str(), None),
            TxnOp::get(place.waiters.as_str(), Some(options)),
        ];
        let floor = self.session.shared.floors.look();
        floor.into_iter().chain(looks).collect()
    }

    /// What the operations of [`scene`](Self::scene) found.
    fn read_scene(
        &self,
        asked: Asked,
        found: &mut impl Iterator<Item = (Vec<PbKeyValue>, bool)>,
    ) -> Result<Scene> {
        let floor = self.session.shared.floors.hear(asked, found)?;
        Scene::read(floor, found)
    }

    /// What the key of `ask` has as its value. By it a late request knows whether the key is its
    /// own: the session uses the key again.
    fn participant(ask: &Ask, count: u32) -> String {
        format!("{} {count}", nonce(ask))
    }

    async fn go_in(&self, ask: &Ask, count: u32) -> Result<Grant> {
        let place = self.place(ask.name());
        let bells = &self.session.shared.bells;
        let bell = bells.prefix(&place.prefix, &place.ready);
        let mut looks = Looks::from(bell.heard());
        let mut seen = bell.heard();
        let (key, created, mut scene) = self.come(ask, &place, count).await?;
        let mut refused = None;
        loop {
            let mut waiters = scene.waiters.iter();
            if !waiters.any(|waiter| waiter.created == created) {
                let Some(why) = refused else {
                    return Err(Error::lost(LossReason::Revoked));
                };
                // Whoever began the next generation has cleared it away meanwhile.
                self.forget_answered(ask);
                return Err(Error::new(ErrorKind::Conflict, why));
            }
            match scene.find(created, count) {
                Finding::In(token, inside) => return Ok(entered(key, token, inside)),
                Finding::Refused(why) => {
                    if self
                        .turn_back(ask, &place, created, scene.ready.is_some())
                        .await?
                    {
                        return Err(Error::new(ErrorKind::Conflict, why));
                    }
                    refused = Some(why);
                }
                Finding::Complete(members) => {
                    self.open(&place, &members, count, &scene.floor).await?;
                }
                Finding::Wait => tokio::select! {
                    biased;
                    () = ask.withdrawn() => return Err(Error::withdrawn()),
                    () = bell.news(seen, None, &mut looks) => {}
                },
            }
            // The transaction that put it compared that this participant is there: nothing is left
            // to be read.
            self.session.still_known()?;
            if let Some(put) = bell.last_put() {
                let ready = Ready::read(put.create_revision, &put.value);
                if let Some(token) = ready.member(created) {
                    return Ok(entered(key, token, Inside::of(&ready)));
                }
            }
            seen = bell.heard();
            let asked = self.session.shared.floors.asks();
            let found = ranges(self.read(self.scene(&place)).await?);
            scene = self.read_scene(asked, &mut found.into_iter())?;
        }
    }

    /// Puts `ask` among the waiters, or finds it there; never while `ready` is there.
    async fn come(&self, ask: &Ask, place: &Place, count: u32) -> Result<(String, i64, Scene)> {
        let (tickets, value) = (self.tickets(), Self::participant(ask, count));
        loop {
            let key = tickets.key_under(ask, &place.waiters, value.clone());
            let marker = tickets.marker(ask);
            let mut found = self.scene(place);
            found.push(TxnOp::get(marker.as_str(), None));
            let put = TxnOp::put(key.as_str(), value.as_str(), Some(self.leased()));
            let mut done = vec![put];
            done.extend(self.scene(place));
            let txn = Txn::new()
                .when([
                    Tickets::absent(&place.ready),
                    Tickets::absent(&key),
                    Tickets::absent(&marker),
                ])
                .and_then(done)
                .or_else(found);
            let asked = self.session.shared.floors.asks();
            let answer = tickets.send(ask, txn).await?;
            let (put, created) = (
                answer.succeeded(),
                answer.header().map_or(0, |header| header.revision()),
            );
            let found = ranges(answer);
            let mut all = found.iter().flat_map(|(kvs, _)| kvs);
            let mine = all.find(|kv| kv.key == key.as_bytes());
            let there = mine.map(|kv| (kv.create_revision, kv.value == value.as_bytes()));
            let mut found = found.into_iter();
            let scene = self.read_scene(asked, &mut found)?;
            if put {
                return Ok((key, created, scene));
            }
            let withdrawn = found.next().is_some_and(|(marker, _)| !marker.is_empty());
            match (there, &scene.ready) {
                // An earlier request of this very ask has landed.
                (Some((created, true)), _) => return Ok((key, created, scene)),
                _ if withdrawn => return Err(Error::withdrawn()),
                (Some((_, false)), _) if key == tickets.plain_key(&place.waiters) => {
                    tickets.move_aside(ask, &place.waiters);
                }
                (Some((_, false)), _) => return Err(odd("a key with another's nonce")),
                (None, Some(ready)) => {
                    if scene
                        .waiters
                        .iter()
                        .any(|waiter| waiter.created <= ready.last())
                    {
                        let agrees = ready.agrees(count);
                        let why = if agrees { TOO_MANY } else { ANOTHER_COUNT };
                        self.forget_answered(ask);
                        return Err(Error::new(ErrorKind::Conflict, why));
                    }
                    self.clear(place, ready, &scene.waiters).await?;
                }
                // It was there a moment ago.
                (None, None) => {}
            }
        }
    }

    /// Ends a generation whose last participant died, and takes the keys of those away who came too
    /// many: all of it stands still while this `ready` is there.
    async fn clear(&self, place: &Place, ready: &Ready, waiters: &[Waiter]) -> Result<()> {
        let refused = waiters
            .iter()
            .filter(|waiter| waiter.created < ready.created);
        let mut cleared: Vec<_> = refused
            .map(|waiter| TxnOp::delete(waiter.key.clone(), None))
            .collect();
        if cleared.len() <= CLEARED {
            cleared.push(TxnOp::delete(place.ready.as_str(), None));
        }
        cleared.truncate(CLEARED + 1);
        let txn = Txn::new().when([same(place.ready.as_str(), ready.created)]);
        self.send(txn.and_then(cleared)).await.map(drop)
    }

    /// Lets `members` in, if all of them are still there, and `floor` is still the token floor.
    async fn open(
        &self,
        place: &Place,
        members: &[(Vec<u8>, i64)],
        count: u32,
        floor: &Floor,
    ) -> Result<()> {
        let mut here: Vec<_> = members
            .iter()
            .map(|(key, created)| same(key.clone(), *created))
            .collect();
        here.push(Tickets::absent(&place.ready));
        here.extend(self.session.shared.floors.unchanged(floor));
        let mut value = count.to_string();
        for (_, created) in members {
            value.push_str(&format!(" {}", token(floor.epoch(), *created)));
        }
        let put = TxnOp::put(place.ready.as_str(), value, None);
        self.send(Txn::new().when(here).and_then([put]))
            .await
            .map(drop)
    }

    /// Takes a participant out that is not to be let in; says whether that is so. If `ready` came in
    /// between, it may have been let in after all.
    async fn turn_back(
        &self,
        ask: &Ask,
        place: &Place,
        token: i64,
        is_ready: bool,
    ) -> Result<bool> {
        if is_ready {
            self.take_out(ask, None).await?;
            return Ok(true);
        }
        let Some(slot) = self.tickets().slot(ask) else {
            return Ok(true);
        };
        let mut done = vec![TxnOp::delete(slot.key.as_str(), None)];
        done.extend(self.mark(ask, slot.unanswered));
        let mine = same(slot.key.as_str(), token);
        let txn = Txn::new()
            .when([Tickets::absent(&place.ready), mine])
            .and_then(done);
        let out = self.send(txn).await?.succeeded();
        if out {
            self.tickets().settled(ask);
        }
        Ok(out)
    }

    /// Deletes the key of `ask`, of `token` if it is known, and `ready` with it if nobody else is
    /// there. Says whether the key stood.
    async fn take_out(&self, ask: &Ask, token: Option<i64>) -> Result<bool> {
        let Some(slot) = self.tickets().slot(ask).filter(|slot| slot.sent) else {
            self.tickets().settled(ask);
            return Ok(true);
        };
        let (place, key) = (self.place(ask.name()), slot.key.as_str());
        let mut mine = vec![Compare::value(key, CompareOp::Equal, slot.value.as_str())];
        mine.extend(token.map(|token| same(key, token)));
        let after = format!("{key}\0");
        let nobody_else = [
            Tickets::absent(&place.waiters).with_range(key),
            Tickets::absent(&after).with_range(end_of(&place.waiters)),
        ];
        let mark = self.mark(ask, slot.unanswered);
        let mut out = vec![TxnOp::delete(key, None)];
        out.extend(mark.clone());
        let mut last_out = out.clone();
        last_out.push(TxnOp::delete(place.ready.as_str(), None));
        let alone = [&mine[..], &nobody_else].concat();
        let one_of_many = Txn::new()
            .when(mine)
            .and_then(out)
            .or_else(Vec::from_iter(mark));
        let txn = Txn::new()
            .when(alone)
            .and_then(last_out)
            .or_else([TxnOp::txn(one_of_many)]);
        self.tickets().update(ask, |slot| slot.releasing = true);
        let answer = match self.send(txn).await {
            Ok(answer) => answer,
            Err(error) => {
                if error.effect() == Effect::None {
                    let before = slot.releasing;
                    self.tickets().update(ask, |now| now.releasing = before);
                }
                return Err(error);
            }
        };
        let inner = answer.op_responses().into_iter().find_map(|op| match op {
            TxnOpResponse::Txn(inner) => Some(inner.succeeded()),
            _ => None,
        });
        let stood = answer.succeeded() || inner == Some(true);
        self.tickets().settled(ask);
        // Absent after a request whose answer was lost: that one did it.
        Ok(stood || slot.releasing)
    }
}

fn entered(key: String, token: FencingToken, inside: Inside) -> Grant {
    Grant::new(token, key).attach(inside)
}

/// The first key after all that begin with `prefix`, which ends with a slash.
fn end_of(prefix: &str) -> String {
    format!("{}0", prefix.trim_end_matches('/'))
}

#[async_trait]
impl Barrier for EtcdBarrier {
    async fn hold(&self, ask: &Ask, hold_for: HoldFor) -> Result<()> {
        let held = self.put_up(ask, hold_for).await;
        held.map_err(|error| self.failed(ask, error))
    }

    async fn lift(&self, ask: &Ask) -> Result<bool> {
        let key = self.key(ask.name());
        let found = self.held_since(&key).await?;
        let before = self.lifting().get(&ask.nonce()).copied();
        let created = match (found, before) {
            (Some(created), before) if before.is_none_or(|before| before == created) => created,
            // The one that was met at first has gone.
            (_, before) => {
                self.lifting().remove(&ask.nonce());
                return Ok(before.is_some());
            }
        };
        self.lifting().insert(ask.nonce(), created);
        let delete = TxnOp::delete(key.as_str(), None);
        let txn = Txn::new().when([same(key, created)]).and_then([delete]);
        self.send(txn).await?;
        self.lifting().remove(&ask.nonce());
        Ok(true)
    }

    async fn is_held(&self, name: &Name) -> Result<bool> {
        let since = self.held_since(&self.key(name)).await?;
        Ok(since.is_some())
    }

    async fn wait(&self, name: &Name) -> Result<()> {
        let key = self.key(name);
        let Some(created) = self.held_since(&key).await? else {
            return Ok(());
        };
        let bell = self.session.shared.bells.key(&key);
        let mut looks = Looks::from(bell.heard());
        let mut seen = bell.heard();
        // Read again once the watch stands: nothing is missed from then on.
        while !bell.deleted_after(created) && self.held_since(&key).await? == Some(created) {
            bell.news(seen, None, &mut looks).await;
            seen = bell.heard();
        }
        // An end that only the loss of history brought about is no release.
        self.session.still_known()
    }

    async fn enter(&self, ask: &Ask, count: NonZeroU32) -> Result<Grant> {
        if count.get() > MOST {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!(
                    "a double barrier on etcd takes {MOST} participants at most: its transactions have 128 operations"
                ),
            ));
        }
        let entered = self.go_in(ask, count.get()).await;
        entered.map_err(|error| self.failed(ask, error))
    }

    async fn all_left(&self, name: &Name, grant: &Grant) -> Result<()> {
        let place = self.place(name);
        let Some(&Inside { ready, last }) = grant.attachment::<Inside>() else {
            return Err(odd("a grant of another barrier"));
        };
        let bell = self
            .session
            .shared
            .bells
            .prefix(&place.prefix, &place.ready);
        let mut looks = Looks::from(bell.heard());
        let of_mine = GetOptions::new()
            .with_prefix()
            .with_keys_only()
            .with_max_create_revision(last)
            .with_limit(1);
        let keys_only = GetOptions::new().with_keys_only();
        loop {
            let seen = bell.heard();
            let look = [
                TxnOp::get(place.ready.as_str(), Some(keys_only.clone())),
                TxnOp::get(place.waiters.as_str(), Some(of_mine.clone())),
            ];
            let found = ranges(self.read(look).await?);
            let scene = Scene::read(Floor::default(), &mut found.into_iter())?;
            self.session.still_known()?;
            if scene.waiters.is_empty() {
                if scene.ready.is_some_and(|found| found.created == ready) {
                    // The last one died, or was a foreigner.
                    let nobody = Tickets::absent(&place.waiters).with_prefix();
                    let txn = Txn::new().when([same(place.ready.as_str(), ready), nobody]);
                    let delete = TxnOp::delete(place.ready.as_str(), None);
                    self.send(txn.and_then([delete])).await?;
                }
                return Ok(());
            }
            bell.news(seen, Some(OTHERS), &mut looks).await;
        }
    }
}

#[async_trait]
impl Settle for EtcdBarrier {
    async fn release(&self, ask: &Ask, grant: &Grant) -> Result<()> {
        if self.take_out(ask, Some(revision(grant.token()))).await? {
            Ok(())
        } else {
            Err(Error::lost(LossReason::Revoked))
        }
    }

    async fn withdraw(&self, ask: &Ask) -> Result<()> {
        if ask.kind() == Kind::Barrier {
            return self.take_down(ask).await;
        }
        match self.take_out(ask, None).await {
            // With the lease, everything is gone.
            Err(error) if error.kind() != ErrorKind::Lost => Err(error),
            _ => Ok(()),
        }
    }
}
