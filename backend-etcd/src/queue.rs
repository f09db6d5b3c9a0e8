//! Queues. An item is a key that stays until it is acknowledged; a claim is another, on the
//! consumer's lease. When that ends, the item is where it was.
//!
//! `queue/interop.rs` is about queues shared with Go's recipes; the rest is about our own layout.
//! `queue/keys.rs` has that, `queue/tail.rs` the producing side, `queue/hub.rs` the consuming one
//! with its `queue/view.rs`, and `queue/lane.rs` how all of them share requests.
//! Here is what is done with an item once a consumer has it, and what only looks.
//!
//! # Delays
//!
//! etcd has no clock that a transaction could compare, and clients' clocks differ. So a delay is a
//! key on a lease of its own, which etcd ends when the delay is over, whoever is still there; and
//! since etcd's leases are of whole seconds, and of two at least, every client that hears of the
//! delay also measures it by its own monotonic clock, from when it heard of it, and may then
//! claim the item with the key. Nobody is early: a client hears of a delay after it began.

mod hub;
mod interop;
mod keys;
mod lane;
mod tail;
mod view;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use etcd_client::{GetOptions, SortOrder, SortTarget, Txn, TxnOp};
use tenure_core::backend::{Ask, Grant, Queue, Settle, Taken, Want, async_trait};
use tenure_core::{
    Depth, Effect, Error, ErrorKind, ID_MEMORY, Item, LossReason, Name, Peeked, Result,
};

pub(crate) use hub::Books;
use hub::Hub;
pub(crate) use interop::Visits;
use interop::{Doors, Shop};
use keys::{Part, Place, absent, created_at, delete, get, put};

use crate::client::Wire;
use crate::history::Forget;
use crate::session::EtcdSession;
use crate::watcher::Watcher;

/// Items in one step of a purge or a search for the head.
const PAGE: i64 = 24;

/// As long as a lease of etcd may live, which is for centuries.
const LONGEST_DELAY: Duration = Duration::from_secs(9_000_000_000);

/// What a take comes to.
type Served = Result<Vec<Taken>>;

/// A delivery, attached to its grant.
#[derive(Clone, Debug)]
pub(crate) struct Claim {
    place: Place,
    /// The create revision of the claim's key.
    token: i64,
    /// Of the ask that took it.
    nonce: u64,
    deliveries: u32,
    /// The id in the item's key, escaped.
    name: Option<Arc<str>>,
}

/// The queues of one session.
pub struct EtcdQueue {
    pub(crate) session: Arc<EtcdSession>,
}

impl EtcdQueue {
    /// The queue as Go knows it, in interop mode.
    fn shop(&self, name: &Name) -> Option<Shop> {
        let interop = self.session.shared.interop;
        interop.then(|| Shop::new(&self.session, name))
    }

    fn hub(&self, name: &Name) -> Arc<Hub> {
        self.session.shared.queues.hub(&self.session, name)
    }

    /// Removes the item `kv` if no consumer has it.
    async fn remove(
        &self,
        hub: &Hub,
        place: Place,
        kv: &etcd_client::proto::PbKeyValue,
    ) -> Result<bool> {
        let queues = &self.session.shared.queues;
        let name = hub.keys.name_in(&kv.key);
        loop {
            let mut ops = vec![
                delete(kv.key.as_slice()),
                delete(hub.keys.count(place)),
                delete(hub.keys.delayed(place)),
            ];
            if let Some(name) = &name {
                ops.push(queues.remember(&hub.keys.id_named(name)).await?);
            }
            let txn = Txn::new()
                .when([
                    created_at(kv.key.as_slice(), kv.create_revision),
                    absent(hub.keys.claim(place)),
                ])
                .and_then(ops);
            match hub.send(&txn).await {
                // Not the session's lease: the one on which ids are remembered.
                Err(error) if error.kind() == ErrorKind::Lost && name.is_some() => {
                    queues.new_memory().await;
                }
                answer => return Ok(answer?.succeeded()),
            }
        }
    }

    /// Takes note of the `answer` to what ends the delivery of `claim`: whether its comparison held.
    fn ended(&self, claim: &Claim, answer: Result<bool>) -> Result<()> {
        let ended = match answer {
            // A lease that an operation names; whether the claim is in force is not known by that.
            Err(error) if error.kind() == ErrorKind::Lost => {
                return Err(
                    Error::new(ErrorKind::Unavailable, "a lease has ended").with_source(error)
                );
            }
            answer => answer?,
        };
        self.session.books.settled(claim);
        if ended {
            Ok(())
        } else {
            Err(Error::lost(LossReason::Revoked))
        }
    }
}

/// Ends the delivery of `claim` by `ops`, if it is in force.
fn ending(hub: &Hub, claim: &Claim, ops: Vec<TxnOp>) -> Txn {
    let key = hub.keys.claim(claim.place);
    Txn::new()
        .when([created_at(key.as_str(), claim.token)])
        .and_then(std::iter::once(delete(key)).chain(ops).collect::<Vec<_>>())
}

fn claim(grant: &Grant) -> Result<&Claim> {
    grant
        .attachment()
        .ok_or_else(|| Error::new(ErrorKind::Internal, "a grant of another store"))
}

#[async_trait]
impl Queue for EtcdQueue {
    async fn enqueue(&self, ask: &Ask, items: &[Item]) -> Result<()> {
        if let Some(shop) = self.shop(ask.name()) {
            return shop.enqueue(ask, items).await;
        }
        let hub = self.hub(ask.name());
        hub.lane.enqueue(&self.session, ask, items).await
    }

    async fn try_take(&self, ask: &Ask, want: &Want) -> Result<Vec<Taken>> {
        if let Some(shop) = self.shop(ask.name()) {
            return shop.try_take(ask, want).await;
        }
        self.hub(ask.name())
            .take(&self.session, ask, want, true)
            .await
    }

    async fn take(&self, ask: &Ask, want: &Want) -> Result<Vec<Taken>> {
        if let Some(shop) = self.shop(ask.name()) {
            return shop.take(ask, want).await;
        }
        self.hub(ask.name())
            .take(&self.session, ask, want, false)
            .await
    }

    async fn ack(&self, ask: &Ask, grant: &Grant) -> Result<()> {
        if let Some(shop) = self.shop(ask.name()) {
            return shop.ack(grant).await;
        }
        let (hub, claim) = (self.hub(ask.name()), claim(grant)?);
        let queues = &self.session.shared.queues;
        let mut ops = vec![
            delete(hub.keys.item_named(claim.place, claim.name.as_deref())),
            delete(hub.keys.count(claim.place)),
        ];
        if let Some(name) = &claim.name {
            ops.push(queues.remember(&hub.keys.id_named(name)).await?);
        }
        let answer = hub.lane.end(claim.place, ending(&hub, claim, ops)).await;
        let ended = self.ended(claim, answer);
        if claim.name.is_some() && ended.is_err() {
            // Perhaps not the claim, but the lease of the memory is gone.
            queues.new_memory().await;
        }
        ended
    }

    async fn nack(&self, ask: &Ask, grant: &Grant, delay: Duration) -> Result<()> {
        if let Some(shop) = self.shop(ask.name()) {
            return shop.nack(grant, delay).await;
        }
        let (hub, claim) = (self.hub(ask.name()), claim(grant)?);
        let mut ops = vec![hub.keys.touch()];
        let delay = delay.min(LONGEST_DELAY);
        let mut life = None;
        if !delay.is_zero() {
            // Rounded up, like the key's own life: never early.
            let millis = delay.as_nanos().div_ceil(1_000_000);
            let lease = lease_for(&hub.wire, delay).await?;
            life = Some(lease);
            ops.push(put(
                hub.keys.delayed(claim.place),
                millis.to_string(),
                lease,
            ));
        }
        let answer = hub.send(&ending(&hub, claim, ops)).await;
        let refused = match &answer {
            Ok(answer) => !answer.succeeded(),
            Err(error) => error.effect() == Effect::None,
        };
        if let Some(lease) = life.filter(|_| refused) {
            // Nothing hangs on it. If this fails it ends with the delay.
            let ending = hub.wire.call_repeatable(|client| {
                let mut client = client.lease_client();
                async move { client.revoke(lease).await }
            });
            let _ = ending.await;
        }
        self.ended(claim, answer.map(|answer| answer.succeeded()))
    }

    async fn depth(&self, name: &Name) -> Result<Depth> {
        if let Some(shop) = self.shop(name) {
            return shop.depth().await;
        }
        let hub = self.hub(name);
        let count = |part| {
            let options = GetOptions::new().with_prefix().with_count_only();
            TxnOp::get(hub.keys.all(part), Some(options))
        };
        let txn = Txn::new().and_then([count("items"), count("claims"), count("delayed")]);
        let answer = hub.wire.call_repeatable(|client| {
            let (mut kv, txn) = (client.kv_client(), txn.clone());
            async move { kv.txn(txn).await }
        });
        let counts: Vec<u64> = answer
            .await?
            .op_responses()
            .iter()
            .map(|answer| match answer {
                etcd_client::TxnOpResponse::Get(get) => get.count().unsigned_abs(),
                _ => 0,
            })
            .collect();
        let [items, claims, delayed] = counts[..] else {
            return Err(Error::new(
                ErrorKind::Internal,
                "etcd's answer has no counts",
            ));
        };
        Ok(Depth::new(
            items.saturating_sub(claims + delayed),
            claims,
            delayed,
        ))
    }

    async fn peek(&self, name: &Name) -> Result<Option<Peeked>> {
        if let Some(shop) = self.shop(name) {
            return shop.peek().await;
        }
        let hub = self.hub(name);
        let mut after = None;
        loop {
            let page = Page::read(&hub, after, PAGE).await?;
            let Some((place, kv)) = page.items.iter().find(|(at, _)| page.is_ready(*at)) else {
                match page.items.last() {
                    Some((last, _)) => after = Some(*last),
                    None => return Ok(None),
                }
                continue;
            };
            let reads = vec![get(kv.key.as_slice()), get(hub.keys.count(*place))];
            let (_, found) = hub.read(reads).await?;
            let mut found = found.into_iter().map(|kvs| kvs.into_iter().next());
            let (item, count) = (found.next().flatten(), found.next().flatten());
            // Gone in between: then another is the first.
            let Some(item) = item else { continue };
            let deliveries = count.map_or(0, |kv| view::number(&kv.value));
            return Ok(Some(Peeked {
                value: item.value,
                priority: place.0,
                deliveries: u32::try_from(deliveries).unwrap_or(u32::MAX),
            }));
        }
    }

    async fn purge(&self, ask: &Ask) -> Result<u64> {
        if let Some(shop) = self.shop(ask.name()) {
            return shop.purge().await;
        }
        let hub = self.hub(ask.name());
        let (mut after, mut purged, mut until) = (None, 0, None);
        loop {
            let page = Page::read(&hub, after, PAGE).await?;
            // What is put in from now on is not meant.
            let until = *until.get_or_insert(page.revision);
            let Some((last, _)) = page.items.last() else {
                return Ok(purged);
            };
            after = Some(*last);
            for (place, kv) in &page.items {
                let claimed = page.claims.contains(place);
                if kv.create_revision > until || claimed {
                    continue;
                }
                purged += u64::from(self.remove(&hub, *place, kv).await?);
            }
        }
    }
}

#[async_trait]
impl Settle for EtcdQueue {
    async fn release(&self, ask: &Ask, grant: &Grant) -> Result<()> {
        self.nack(ask, grant, Duration::ZERO).await
    }

    async fn withdraw(&self, ask: &Ask) -> Result<()> {
        if let Some(shop) = self.shop(ask.name()) {
            return shop.withdraw(ask).await;
        }
        self.hub(ask.name()).withdraw(&self.session, ask).await
    }
}

/// Some items in order, and which of them are not to be had.
struct Page {
    revision: i64,
    items: Vec<(Place, etcd_client::proto::PbKeyValue)>,
    claims: std::collections::HashSet<Place>,
    delayed: std::collections::HashSet<Place>,
}

impl Page {
    async fn read(hub: &Hub, after: Option<Place>, limit: i64) -> Result<Self> {
        let keys = &hub.keys;
        let from = after.map_or_else(|| keys.all("items"), |place| keys.after(place));
        let items = GetOptions::new()
            .with_range(keys.end_of_items())
            .with_keys_only()
            .with_sort(SortTarget::Key, SortOrder::Ascend)
            .with_limit(limit);
        let all = |part| {
            let options = GetOptions::new().with_prefix().with_keys_only();
            TxnOp::get(keys.all(part), Some(options))
        };
        let reads = vec![TxnOp::get(from, Some(items)), all("claims"), all("delayed")];
        let (revision, found) = hub.read(reads).await?;
        let mut found = found.into_iter();
        let items = found.next().unwrap_or_default().into_iter();
        let items = items.filter_map(|kv| match keys.parse(&kv.key) {
            Part::Item(place) => Some((place, kv)),
            _ => None,
        });
        let mut places = || {
            let kvs = found.next().unwrap_or_default().into_iter();
            kvs.filter_map(|kv| match keys.parse(&kv.key) {
                Part::Claim(place) | Part::Delayed(place) => Some(place),
                _ => None,
            })
            .collect()
        };
        Ok(Self {
            revision,
            items: items.collect(),
            claims: places(),
            delayed: places(),
        })
    }

    fn is_ready(&self, place: Place) -> bool {
        !self.claims.contains(&place) && !self.delayed.contains(&place)
    }
}

/// A lease that lives at least as long as `life`, and that nobody renews.
async fn lease_for(wire: &Arc<Wire>, life: Duration) -> Result<i64> {
    let seconds = life.as_secs() + u64::from(life.subsec_nanos() > 0);
    let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
    let granted = wire.call_repeatable(|client| {
        let mut lease = client.lease_client();
        async move { lease.grant(seconds, None).await }
    });
    Ok(granted.await?.id())
}

/// The queues of one client.
pub(crate) struct Hubs {
    wire: Arc<Wire>,
    watcher: Arc<Watcher>,
    known: Arc<Known>,
    /// The lease on which ids are remembered, since when, and in which history of the store.
    memory: tokio::sync::Mutex<Option<(i64, Instant, u64)>>,
    /// Where those wait who share a queue with Go.
    doors: Doors,
}

struct Known(Mutex<(HashMap<String, Arc<Hub>>, usize)>);

impl Known {
    fn lock(&self) -> MutexGuard<'_, (HashMap<String, Arc<Hub>>, usize)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Forget for Known {
    fn forget(&self) {
        // Those who come now find hubs of the present history.
        let hubs = std::mem::take(&mut self.lock().0);
        hubs.values().for_each(|hub| hub.forget());
    }
}

/// Idle hubs are looked for when their number has doubled, and at least this many are there.
const SWEEP_AT: usize = 64;

impl Hubs {
    pub(crate) fn new(wire: Arc<Wire>, watcher: Arc<Watcher>) -> Self {
        let known = Arc::new(Known(Mutex::new((HashMap::new(), SWEEP_AT))));
        let resting: Weak<dyn Forget> = Arc::downgrade(&(Arc::clone(&known) as Arc<dyn Forget>));
        wire.history().rests(resting);
        Self {
            doors: Doors::new(Arc::clone(&watcher)),
            wire,
            watcher,
            known,
            memory: tokio::sync::Mutex::default(),
        }
    }

    fn hub(&self, session: &EtcdSession, name: &Name) -> Arc<Hub> {
        let (layout, floors) = (&session.shared.layout, &session.shared.floors);
        let root = layout.queue(name);
        let mut guard = self.known.lock();
        let (hubs, sweep_at) = &mut *guard;
        if hubs.len() >= *sweep_at {
            // One that somebody has in hand must stay: two would not know each other's claims.
            hubs.retain(|_, hub| Arc::strong_count(hub) > 1 || !hub.is_idle());
            *sweep_at = (hubs.len() * 2).max(SWEEP_AT);
        }
        let new = || {
            let (wire, watcher) = (Arc::clone(&self.wire), Arc::clone(&self.watcher));
            Arc::new(Hub::new(wire, watcher, layout, Arc::clone(floors), name))
        };
        Arc::clone(hubs.entry(root).or_insert_with(new))
    }

    /// What makes the id at `key` be remembered for [`ID_MEMORY`] and then forgotten: one lease for
    /// all that are to be forgotten at about the same time, which nobody renews.
    async fn remember(&self, key: &str) -> Result<TxnOp> {
        let mut memory = self.memory.lock().await;
        let epoch = self.wire.history().epoch();
        let lease = match *memory {
            Some((lease, since, of)) if of == epoch && since.elapsed() < ID_MEMORY => lease,
            _ => {
                let since = Instant::now();
                // Half as long again as is needed, for a clock of ours that is slower.
                let lease = lease_for(&self.wire, ID_MEMORY * 5 / 2).await?;
                *memory = Some((lease, since, epoch));
                lease
            }
        };
        Ok(put(key, "", lease))
    }

    async fn new_memory(&self) {
        *self.memory.lock().await = None;
    }
}
