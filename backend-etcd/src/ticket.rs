//! One key in a waiting line: how it is put there, and how it is certain to be gone.
//!
//! The key is the session's own, `<prefix>/<lease>`, used again for each turn: new names would
//! leave tombstones in etcd's index and slow every read of the line until compaction. Only while
//! the session already stands in that line does a second ask get `<prefix>/<lease>-<nonce>`.
//!
//! The value is the ask's nonce (with its side, where a line has two), by which a lost answer is
//! recognised: the same transaction sent again finds its own key. A request may also arrive *after* its ask was withdrawn or released.
//! So whoever ends an ask of which a request went unanswered writes a marker in the same
//! transaction, and every placing transaction compares that its marker is absent: whichever lands
//! first decides. The markers hang on the lease and go with it.
//!
//! The value of a candidate's key is the candidate's, for all who read it. Such a key is told by
//! its name alone, `<prefix>/<lease>-<nonce>` at every turn. Whoever takes a leadership up in a
//! resumed session cannot write a nonce of its own there, so it writes it beside the marker of the
//! ask that was granted, and everything done to the key compares that.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use etcd_client::proto::{PbKeyValue, PbTxnOpResponse, PbTxnResponse};
use etcd_client::{
    Compare, CompareOp, GetOptions, PutOptions, SortOrder, SortTarget, Txn, TxnOp, TxnResponse,
};
use tenure_core::backend::{Ask, Kind, Side};
use tenure_core::{Effect, Error, ErrorKind, LossReason, Result};

use crate::client::Wire;
use crate::floor::{Floor, Floors};
use crate::layout::Layout;
use crate::line::{Line, Placed, Stander};
use crate::sides::{ABOVE_READERS, Sides, waits_for};

/// How much of a line a waiter is told.
const LIST: i64 = 128;

/// The tickets of one session.
pub(crate) struct Tickets {
    wire: Arc<Wire>,
    layout: Layout,
    floors: Arc<Floors>,
    lease: i64,
    slots: Mutex<Slots>,
}

#[derive(Default)]
struct Slots {
    by_nonce: HashMap<u64, Slot>,
    /// The plain keys in use.
    plain: HashSet<String>,
}

#[derive(Clone)]
pub(crate) struct Slot {
    pub(crate) key: String,
    /// What the key has as its value: the nonce, and whatever the primitive adds to it.
    pub(crate) value: String,
    /// What the value still is if a downgrade has not landed that was sent and not answered.
    before: Option<String>,
    /// For a key whose value is not the nonce.
    named: Option<Named>,
    /// Whether a placing request was sent that may have put the key there.
    pub(crate) sent: bool,
    /// Whether one of them was never answered, so that it may still arrive.
    pub(crate) unanswered: bool,
    /// Whether a release was sent and not answered: then an absent key means that it landed.
    pub(crate) releasing: bool,
}

/// A key that is told by its name.
#[derive(Clone)]
struct Named {
    /// The nonce in it: that of the ask which put it there.
    nonce: u64,
    value: Arc<[u8]>,
}

impl Tickets {
    pub(crate) fn new(wire: Arc<Wire>, layout: Layout, floors: Arc<Floors>, lease: i64) -> Self {
        Self {
            wire,
            layout,
            floors,
            lease,
            slots: Mutex::default(),
        }
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn plain_key(&self, stem: &str) -> String {
        format!("{stem}{:x}", self.lease)
    }

    fn own_key(&self, stem: &str, nonce: u64) -> String {
        format!("{stem}{:x}-{nonce:x}", self.lease)
    }

    /// The key of `ask`: the same one at every call until the ask is settled.
    pub(crate) fn key(&self, ask: &Ask, line: &Line, side: Side) -> String {
        let stem = line.sides().stem(side, line.prefix());
        self.key_under(ask, &stem, line.sides().value(side, ask.nonce()))
    }

    /// The same for what stands in no line: a key that begins with `stem`, and has `value`.
    pub(crate) fn key_under(&self, ask: &Ask, stem: &str, value: String) -> String {
        let mut slots = self.slots();
        if let Some(slot) = slots.by_nonce.get(&ask.nonce()) {
            return slot.key.clone();
        }
        let plain = self.plain_key(stem);
        let key = if slots.plain.contains(&plain) {
            self.own_key(stem, ask.nonce())
        } else {
            slots.plain.insert(plain.clone());
            plain
        };
        slots
            .by_nonce
            .insert(ask.nonce(), Slot::new(key.clone(), value));
        key
    }

    /// Gives `ask` a key of its own with `value`, before it is placed.
    pub(crate) fn stand_for(&self, ask: &Ask, prefix: &str, value: &[u8]) {
        let mut slot = Slot::new(self.own_key(prefix, ask.nonce()), String::new());
        slot.named = Some(Named {
            nonce: ask.nonce(),
            value: Arc::from(value),
        });
        self.slots().by_nonce.entry(ask.nonce()).or_insert(slot);
    }

    /// What is so as long as the key of `ask` is its own.
    pub(crate) fn own(&self, ask: &Ask) -> Option<(String, Vec<Compare>)> {
        let slot = self.slot(ask)?;
        let own = self.owned(ask, &slot, &slot.value);
        Some((slot.key, own))
    }

    /// The same, as long as `value` is there (where the value says whose key it is).
    fn owned(&self, ask: &Ask, slot: &Slot, value: &str) -> Vec<Compare> {
        let key = slot.key.as_str();
        let Some(named) = &slot.named else {
            return vec![Compare::value(key, CompareOp::Equal, value)];
        };
        let taken = self.layout.taken_up(self.lease, named.nonce);
        let by = if named.nonce == ask.nonce() {
            Self::absent(&taken)
        } else {
            Compare::value(taken, CompareOp::Equal, nonce(ask))
        };
        vec![Compare::create_revision(key, CompareOp::Greater, 0), by]
    }

    /// Gives `ask`, which found its plain key taken (by what this session held before it was
    /// resumed), a key that nobody else can have.
    pub(crate) fn move_aside(&self, ask: &Ask, stem: &str) {
        let own = self.own_key(stem, ask.nonce());
        let mut slots = self.slots();
        if let Some(slot) = slots.by_nonce.get_mut(&ask.nonce()) {
            // The plain key stays marked as used: it is.
            slot.key = own;
        }
    }

    pub(crate) fn settled(&self, ask: &Ask) {
        let mut slots = self.slots();
        if let Some(slot) = slots.by_nonce.remove(&ask.nonce()) {
            slots.plain.remove(&slot.key);
        }
    }

    /// The key of `ask`, if it was given one.
    pub(crate) fn known_key(&self, ask: &Ask) -> Option<String> {
        self.slot(ask).map(|slot| slot.key)
    }

    pub(crate) fn slot(&self, ask: &Ask) -> Option<Slot> {
        self.slots().by_nonce.get(&ask.nonce()).cloned()
    }

    fn is_named(&self, ask: &Ask) -> bool {
        self.slot(ask).is_some_and(|slot| slot.named.is_some())
    }

    pub(crate) fn update(&self, ask: &Ask, change: impl FnOnce(&mut Slot)) {
        if let Some(slot) = self.slots().by_nonce.get_mut(&ask.nonce()) {
            change(slot);
        }
    }

    /// Whether the key of `ask` may stand in the line, now or later.
    pub(crate) fn may_stand(&self, ask: &Ask) -> bool {
        self.slot(ask).is_some_and(|slot| slot.sent)
    }

    /// Forgets `ask`, of which nothing stands and nothing is on its way.
    pub(crate) fn forget(&self, ask: &Ask) {
        self.settled(ask);
    }

    /// Sends one placing transaction, noting whether it may still land later.
    pub(crate) async fn send(&self, ask: &Ask, txn: Txn) -> Result<TxnResponse> {
        let before = self
            .slot(ask)
            .map_or((false, false), |slot| (slot.sent, slot.unanswered));
        // Unanswered until it is answered: this future may be dropped with its runtime.
        self.update(ask, |slot| (slot.sent, slot.unanswered) = (true, true));
        let answer = self.wire.call(|client| {
            let (mut kv, txn) = (client.kv_client(), txn.clone());
            async move { kv.txn(txn).await }
        });
        let answer = answer.await;
        match &answer {
            Err(error) if error.effect() == Effect::None => {
                self.update(ask, |slot| (slot.sent, slot.unanswered) = before);
            }
            Err(error) if error.is_retryable() => {}
            // Answered, if only by an error (no space): nothing of it is on its way any more. A
            // marker would be refused then, too.
            Ok(_) | Err(_) => self.update(ask, |slot| slot.unanswered = before.1),
        }
        answer
    }

    fn put(&self, key: &str, value: impl Into<Vec<u8>>) -> TxnOp {
        TxnOp::put(key, value, Some(PutOptions::new().with_lease(self.lease)))
    }

    /// What a late request of `ask` must find.
    fn mark(&self, ask: &Ask) -> TxnOp {
        self.put(&self.marker(ask), nonce(ask))
    }

    /// Puts the key of `ask` into its line.
    fn put_in_line(&self, key: &str, ask: &Ask) -> TxnOp {
        match self.slot(ask) {
            Some(Slot {
                named: Some(named), ..
            }) => self.put(key, &*named.value),
            Some(slot) => self.put(key, slot.value),
            None => self.put(key, nonce(ask)),
        }
    }

    pub(crate) fn absent(key: &str) -> Compare {
        Compare::create_revision(key, CompareOp::Equal, 0)
    }

    pub(crate) fn marker(&self, ask: &Ask) -> String {
        self.layout.withdrawn(self.lease, ask.nonce())
    }

    /// Puts `ask` at the end of the line, or finds where it stands already. Reads the token floor with it.
    pub(crate) async fn place(
        &self,
        ask: &Ask,
        line: &Line,
        side: Side,
    ) -> Result<(Placed, Floor)> {
        let list = || {
            let options = line
                .list_options()
                .with_sort(SortTarget::Create, SortOrder::Descend)
                .with_limit(LIST);
            TxnOp::get(line.prefix(), Some(options))
        };
        let stem = line.sides().stem(side, line.prefix());
        let value = line.sides().value(side, ask.nonce());
        loop {
            let (key, marker) = (self.key(ask, line, side), self.marker(ask));
            let txn = Txn::new()
                .when([Self::absent(&key), Self::absent(&marker)])
                .and_then(self.with_floor([self.put_in_line(&key, ask), list()]))
                .or_else(self.with_floor([
                    list(),
                    TxnOp::get(key.as_str(), None),
                    TxnOp::get(marker.as_str(), None),
                ]));
            let asked = self.floors.asks();
            let answer = self.send(ask, txn).await?;
            let placed = answer.succeeded();
            let read_at = answer.header().map_or(0, |header| header.revision());
            let mut ranges = ranges(answer).into_iter();
            let floor = self.floors.hear(asked, &mut ranges)?;
            let (list, more) = ranges.next().ok_or_else(|| odd("no list"))?;
            let list = list
                .into_iter()
                .map(|kv| line.stander(kv.key, kv.create_revision, &kv.value))
                .collect();
            let placed_at = |token| Placed {
                side,
                token,
                read_at,
                list,
                more,
            };
            if placed {
                return Ok((placed_at(read_at), floor));
            }
            let existing = ranges.next().and_then(|(kvs, _)| kvs.into_iter().next());
            match existing {
                // An earlier request of this very ask has landed.
                Some(kv) if self.is_named(ask) || kv.value == value.as_bytes() => {
                    return Ok((placed_at(kv.create_revision), floor));
                }
                Some(_) if key == self.plain_key(&stem) => self.move_aside(ask, &stem),
                Some(_) => return Err(odd("a key with another's nonce")),
                None => return Err(Error::withdrawn()),
            }
        }
    }

    /// The operations of a placing transaction, after one that reads the token floor.
    fn with_floor(&self, ops: impl IntoIterator<Item = TxnOp>) -> Vec<TxnOp> {
        self.floors.look().into_iter().chain(ops).collect()
    }

    /// Puts `ask` into the line if nobody is there for whom it would have to wait; leaves nothing
    /// if not. Reads the token floor with it.
    pub(crate) async fn place_if_free(
        &self,
        ask: &Ask,
        line: &Line,
        side: Side,
    ) -> Result<Option<(i64, Floor)>> {
        let stem = line.sides().stem(side, line.prefix());
        // Where only readers stand, all of them hold: nobody waits.
        let nobody = match (line.sides(), side) {
            (Sides::InKey, Side::Read) => format!("{}write", line.prefix()),
            _ => line.prefix().to_owned(),
        };
        loop {
            let (key, marker) = (self.key(ask, line, side), self.marker(ask));
            let put = || self.put_in_line(&key, ask);
            // Among readers, the key itself may be there: of what was held before a detach.
            let new = || [Self::absent(&key), Self::absent(&marker)];
            let mut when = vec![Self::absent(&nobody).with_prefix()];
            when.extend(new());
            let mut otherwise = Vec::new();
            if (line.sides(), side) == (Sides::InValue, Side::Read) {
                // In a transaction of its own: a comparison of values fails where there is none.
                let readers = Compare::value(line.prefix(), CompareOp::Less, ABOVE_READERS);
                let mut when = vec![readers.with_prefix()];
                when.extend(new());
                let among_readers = Txn::new().when(when).and_then([put()]);
                otherwise.push(TxnOp::txn(among_readers));
            }
            if side == Side::Read {
                let look = GetOptions::new().with_keys_only();
                otherwise.push(TxnOp::get(key.as_str(), Some(look)));
            }
            let txn = Txn::new()
                .when(when)
                .and_then(self.with_floor([put()]))
                .or_else(self.with_floor(otherwise));
            let asked = self.floors.asks();
            let answer = self.send(ask, txn).await?;
            let (placed, created) = (
                succeeded(&answer),
                answer.header().map_or(0, |header| header.revision()),
            );
            let mut ranges = ranges(answer).into_iter();
            let floor = self.floors.hear(asked, &mut ranges)?;
            if placed {
                return Ok(Some((created, floor)));
            }
            let taken = ranges.any(|(kvs, _)| !kvs.is_empty());
            if taken && key == self.plain_key(&stem) {
                self.move_aside(ask, &stem);
                continue;
            }
            self.settled(ask);
            return Ok(None);
        }
    }

    /// Makes the writer `ask`, whose key was created at `token`, a reader: in its place, for a put
    /// keeps the create revision.
    pub(crate) async fn downgrade(&self, ask: &Ask, token: i64) -> Result<()> {
        let gone = || Error::lost(LossReason::Revoked);
        let slot = self.slot(ask).ok_or_else(gone)?;
        let reads = Sides::InValue.value(Side::Read, ask.nonce());
        let writes = match &slot.before {
            Some(before) => before.clone(),
            None if slot.value == reads => return Ok(()),
            None => slot.value.clone(),
        };
        // By the value too: a late one must find neither a reader nor another's holding.
        let txn = Txn::new()
            .when([
                Compare::create_revision(slot.key.as_str(), CompareOp::Equal, token),
                Compare::value(slot.key.as_str(), CompareOp::Equal, writes.as_str()),
            ])
            .and_then([self.put(&slot.key, reads.as_str())])
            .or_else([TxnOp::get(slot.key.as_str(), None)]);
        self.update(ask, |slot| {
            slot.value = reads.clone();
            slot.before = Some(writes);
        });
        let answer = self.wire.call(|client| {
            let (mut kv, txn) = (client.kv_client(), txn.clone());
            async move { kv.txn(txn).await }
        });
        let answer = match answer.await {
            Ok(answer) => answer,
            Err(error) => {
                if error.effect() == Effect::None {
                    self.update(ask, |now| {
                        (now.value, now.before) = (slot.value.clone(), slot.before.clone());
                    });
                }
                return Err(error);
            }
        };
        // Not a writer's any more: by an earlier attempt whose answer was lost?
        let landed = answer.succeeded()
            || ranges(answer)
                .into_iter()
                .flat_map(|(kvs, _)| kvs)
                .any(|kv| kv.create_revision == token && kv.value == reads.as_bytes());
        if !landed {
            return Err(gone());
        }
        self.update(ask, |slot| slot.before = None);
        Ok(())
    }

    /// Deletes the key of `ask` if it is still the one created at `token`.
    pub(crate) async fn release(&self, ask: &Ask, token: i64) -> Result<()> {
        let Some(slot) = self.slot(ask) else {
            return Ok(());
        };
        self.update(ask, |slot| slot.releasing = true);
        let deleted = match self.remove(ask, &slot, Some(token)).await {
            Ok(deleted) => deleted,
            Err(error) => {
                if error.effect() == Effect::None {
                    self.update(ask, |now| now.releasing = slot.releasing);
                }
                return Err(error);
            }
        };
        self.settled(ask);
        // Absent after a release whose answer was lost: that release did it.
        if deleted || slot.releasing {
            Ok(())
        } else {
            Err(Error::lost(LossReason::Revoked))
        }
    }

    /// Removes what `ask` left, and makes sure that nothing of it can land later.
    pub(crate) async fn withdraw(&self, ask: &Ask) -> Result<()> {
        let Some(slot) = self.slot(ask).filter(|slot| slot.sent) else {
            self.settled(ask);
            return Ok(());
        };
        match self.remove(ask, &slot, None).await {
            // With the lease, everything is gone.
            Err(error) if error.kind() == ErrorKind::Lost => {}
            Err(error) => return Err(error),
            Ok(_) => {}
        }
        self.settled(ask);
        Ok(())
    }

    /// Deletes the key of `ask` if it still says so, and (where that is known) was created at
    /// `created`; with the marker, if something may be on its way. Says whether it was there.
    async fn remove(&self, ask: &Ask, slot: &Slot, created: Option<i64>) -> Result<bool> {
        let key = slot.key.as_str();
        // A downgrade of which nobody knows whether it landed may still do so in between.
        for value in slot.before.iter().chain([&slot.value]) {
            // By the value: whoever took the holding up in a resumed session has its own there.
            let mut mine = self.owned(ask, slot, value);
            if let Some(created) = created {
                mine.push(Compare::create_revision(key, CompareOp::Equal, created));
            }
            let (txn, delete) = (Txn::new().when(mine), TxnOp::delete(key, None));
            let txn = if slot.unanswered {
                let mark = self.mark(ask);
                txn.and_then([delete, mark.clone()]).or_else([mark])
            } else {
                txn.and_then([delete])
            };
            if self.end(txn).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn end(&self, txn: Txn) -> Result<bool> {
        let answer = self.wire.call(|client| {
            let (mut kv, txn) = (client.kv_client(), txn.clone());
            async move { kv.txn(txn).await }
        });
        Ok(answer.await?.succeeded())
    }

    /// Takes over what this session holds in the line as `token`, under the nonce of `ask`: whatever
    /// is still on its way for the one who held it before finds another's nonce.
    pub(crate) async fn take_up(
        &self,
        ask: &Ask,
        line: &Line,
        side: Side,
        token: i64,
    ) -> Result<Option<String>> {
        let options = GetOptions::new()
            .with_prefix()
            .with_sort(SortTarget::Create, SortOrder::Ascend)
            .with_max_create_revision(token);
        let options = match side {
            Side::Write => options.with_limit(1), // the head, or nothing
            Side::Read => options,
        };
        let answer = self.wire.call_repeatable(|client| {
            let mut kv = client.kv_client().max_decoding_message_size(usize::MAX);
            let (prefix, options) = (line.prefix().to_owned(), options.clone());
            async move { kv.get(prefix, Some(options)).await }
        });
        let answer = answer.await?;
        let stander = |kv: &etcd_client::KeyValue| -> Stander {
            line.stander(kv.key().to_vec(), kv.create_revision(), kv.value())
        };
        let Some((own, before)) = answer.kvs().split_last() else {
            return Ok(None);
        };
        let held = own.create_revision() == token
            && own.lease() == self.lease
            && stander(own).side == side
            && !before.iter().any(|kv| waits_for(side, stander(kv).side));
        if !held {
            return Ok(None);
        }
        let key = String::from_utf8_lossy(own.key()).into_owned();
        if ask.kind() == Kind::Election {
            let value = Arc::from(own.value());
            let prefix = line.prefix();
            return self.take_up_named(ask, prefix, key, value, token).await;
        }
        let value = line.sides().value(side, ask.nonce());
        // Repeated after a lost answer, it finds its own nonce and writes it once more.
        let txn = Txn::new()
            .when([
                Compare::create_revision(key.as_str(), CompareOp::Equal, token),
                Compare::value(key.as_str(), CompareOp::Equal, own.value()),
            ])
            .and_then([self.put(&key, value.as_str())]);
        if !self.end(txn).await? {
            return Ok(None);
        }
        let mut slots = self.slots();
        if key == self.plain_key(line.prefix()) {
            slots.plain.insert(key.clone());
        }
        let slot = Slot {
            sent: true,
            ..Slot::new(key.clone(), value)
        };
        slots.by_nonce.insert(ask.nonce(), slot);
        Ok(Some(key))
    }

    /// The same with a key that is told by its name, and whose value stays.
    async fn take_up_named(
        &self,
        ask: &Ask,
        prefix: &str,
        key: String,
        value: Arc<[u8]>,
        token: i64,
    ) -> Result<Option<String>> {
        let before = key
            .strip_prefix(&self.plain_key(prefix))
            .and_then(|rest| rest.strip_prefix('-'))
            .and_then(|before| u64::from_str_radix(before, 16).ok());
        let Some(before) = before else {
            return Ok(None);
        };
        // The marker, too: a request that put this key may still be on its way a second time.
        let marker = self.layout.withdrawn(self.lease, before);
        let taken = self.layout.taken_up(self.lease, before);
        let same = Compare::create_revision(key.as_str(), CompareOp::Equal, token);
        let txn = Txn::new()
            .when([same])
            .and_then([self.put(&marker, nonce(ask)), self.put(&taken, nonce(ask))]);
        if !self.end(txn).await? {
            return Ok(None);
        }
        let slot = Slot {
            sent: true,
            named: Some(Named {
                nonce: before,
                value,
            }),
            ..Slot::new(key.clone(), String::new())
        };
        self.slots().by_nonce.insert(ask.nonce(), slot);
        Ok(Some(key))
    }
}

impl Slot {
    fn new(key: String, value: String) -> Self {
        Self {
            key,
            value,
            before: None,
            named: None,
            sent: false,
            unanswered: false,
            releasing: false,
        }
    }
}

/// What the key of `ask` holds as its value.
pub(crate) fn nonce(ask: &Ask) -> String {
    format!("{:x}", ask.nonce())
}

pub(crate) fn odd(what: &str) -> Error {
    Error::new(ErrorKind::Internal, format!("etcd's answer has {what}"))
}

/// The answers to the reads of a transaction, in order. By move: etcd-client's own accessor
/// clones every key.
pub(crate) fn ranges(answer: TxnResponse) -> Vec<(Vec<PbKeyValue>, bool)> {
    let responses =
        answer
            .0
            .responses
            .into_iter()
            .filter_map(|operation| match operation.response {
                Some(PbTxnOpResponse::ResponseRange(range)) => Some((range.kvs, range.more)),
                _ => None,
            });
    responses.collect()
}

/// Whether the transaction, or the one inside it, found what it compared.
fn succeeded(answer: &TxnResponse) -> bool {
    let inside = |response: &PbTxnOpResponse| match response {
        PbTxnOpResponse::ResponseTxn(PbTxnResponse { succeeded, .. }) => *succeeded,
        _ => false,
    };
    let mut inner = answer.0.responses.iter().flat_map(|it| &it.response);
    answer.succeeded() || inner.any(inside)
}
