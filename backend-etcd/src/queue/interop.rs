//! Queues shared with Go's recipes (`recipe.Queue`, `recipe.PriorityQueue`): the name is their
//! prefix, verbatim.
//!
//! `<name>/<priority>/<number>` is an item of Go's priority queue, `<name>/<nanoseconds>` one of its
//! plain queue, for us of priority 0. Within a priority the order is that of mod revisions, which
//! is that of acceptance. We put every item where a priority queue has it: Go's plain queue takes
//! whatever is under its prefix by the lowest mod revision, so both kinds of Go's consumers find
//! it, in the order that they know. The number is the last one there plus one, under the comparison
//! of `__<name>/<priority>` that keeps Go's producers from taking it twice.
//!
//! What Go does not know stands in our own namespace, under `<queue>/`, each about one item at one
//! mod revision (Go uses keys again): `claims/...` on the consumer's lease, with the nonce of the ask
//! and a create revision that is the token; `counts/...`, of deliveries; `delayed/...`, on a lease of
//! its own that etcd ends when the delay is over; `batches/...`, from a batch's landing to its
//! answer. Go's consumers heed none of it and delete what they take: an acknowledgement finds that
//! out, by comparing the item's mod revision.
//!
//! # Why nothing is lost or doubled among our own
//!
//! - A claim without an answer may land later. It compares the fence of its ask, the key
//!   `withdrawn/<lease>-<nonce>`, which whoever wants to know touches in the transaction that reads
//!   what landed. What did is undone, as if it had never been delivered.
//! - A batch without an answer is found by its marker. It may also land after it was repeated, but
//!   for the comparison of the base keys, which the repetition has put.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use etcd_client::proto::PbKeyValue;
use etcd_client::{Compare, CompareOp, GetOptions, SortOrder, SortTarget, Txn, TxnOp, TxnResponse};
use tenure_core::backend::{Ask, DeadLetters, Grant, Taken, Want};
use tenure_core::{Depth, Effect, Error, ErrorKind, Item, LossReason, Name, Peeked, Result};
use tokio::sync::watch;

use super::keys::{absent, changed_at, created_at, delete, get, look, put};
use super::{Served, lease_for, view};
use crate::floor;
use crate::layout::Layout;
use crate::session::EtcdSession;
use crate::ticket::ranges;
use crate::watcher::{Sink, Target, Watch, Watcher};

/// Items of each layout that are looked at first.
const PAGE: i64 = 256;
/// Counts without an item that are cleared away at once.
const SWEPT: usize = 16;
/// The check that finds what the watch missed. Not the normal path.
const SLOW_CHECK: Duration = Duration::from_secs(10);
/// A door that nobody waits at is kept for so long.
const IDLE: Duration = Duration::from_secs(30);
/// etcd's own limit for a request is 1.5 MiB, keys and all.
const MOST_BYTES: usize = 1536 * 1024 - 64 * 1024;

/// One item, at one revision. The order is that of delivery.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Spot {
    priority: u64,
    revision: i64,
    /// What its key has after the prefix.
    rest: String,
}

/// What tells an item in our records: the rest of its key, and its mod revision.
type Tag = (String, i64);

impl Spot {
    fn tag(&self) -> Tag {
        (self.rest.clone(), self.revision)
    }

    /// As far as our own priorities go.
    fn priority(&self) -> u16 {
        u16::try_from(self.priority).unwrap_or(u16::MAX)
    }
}

#[derive(Clone, Debug)]
struct Keys {
    name: String,
    records: String,
}

impl Keys {
    fn new(layout: &Layout, name: &Name) -> Self {
        Self {
            name: name.to_string(),
            records: layout.queue(name),
        }
    }

    fn item(&self, spot: &Spot) -> String {
        format!("{}/{}", self.name, spot.rest)
    }

    /// What Go calls the prefix of a priority.
    fn shelf(&self, priority: u64) -> String {
        format!("{}/{priority:05}", self.name)
    }

    /// What is put together with each item of a priority.
    fn base(&self, priority: u64) -> String {
        format!("__{}", self.shelf(priority))
    }

    fn all(&self, part: &str) -> String {
        format!("{}/{part}/", self.records)
    }

    fn record(&self, part: &str, (rest, revision): &Tag) -> String {
        format!("{}/{part}/{rest}@{revision}", self.records)
    }

    fn claim(&self, spot: &Spot) -> String {
        self.record("claims", &spot.tag())
    }

    fn count(&self, spot: &Spot) -> String {
        self.record("counts", &spot.tag())
    }

    fn delayed(&self, spot: &Spot) -> String {
        self.record("delayed", &spot.tag())
    }

    /// The item at `key`, if there can be one: whatever else is under the name is left alone.
    fn parse(&self, kv: &PbKeyValue) -> Option<Spot> {
        let key = std::str::from_utf8(&kv.key).ok()?;
        let rest = key.strip_prefix(self.name.as_str())?.strip_prefix('/')?;
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|it| it.is_ascii_digit());
        let priority = match rest.split_once('/') {
            None if digits(rest) => 0,
            Some((priority, number)) if priority.len() >= 5 && digits(priority) => {
                digits(number).then(|| priority.parse().ok())??
            }
            _ => return None,
        };
        Some(Spot {
            priority,
            revision: kv.mod_revision,
            rest: rest.to_owned(),
        })
    }

    /// Which item a record is about.
    fn tag(&self, part: &str, key: &[u8]) -> Option<Tag> {
        let key = std::str::from_utf8(key).ok()?;
        let (rest, revision) = key.strip_prefix(&self.all(part))?.split_once('@')?;
        Some((rest.to_owned(), revision.parse().ok()?))
    }
}

/// A delivery, attached to its grant.
#[derive(Clone, Debug)]
struct Claim {
    spot: Spot,
    token: i64,
    /// Of the ask that took it.
    nonce: u64,
}

/// What one session has of queues that it shares with Go.
#[derive(Default)]
pub(crate) struct Visits {
    /// By the nonce of the ask.
    asks: Mutex<HashMap<u64, Visit>>,
    /// Where it left each priority when it put something in last, and nothing is on its way.
    ends: Mutex<HashMap<String, End>>,
}

/// The number that comes next in a priority, if nobody has put anything in since a revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct End {
    next: u64,
    since: i64,
}

#[derive(Default)]
struct Visit {
    /// When the fence was last touched.
    fence: i64,
    /// Whether a claim was sent that may still land.
    unanswered: bool,
    /// What it has claimed, until that is settled.
    claims: Vec<String>,
}

impl Visits {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Visit>> {
        self.asks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ends(&self) -> MutexGuard<'_, HashMap<String, End>> {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn may_have(&self, nonce: u64) -> bool {
        let visits = self.lock();
        let visit = visits.get(&nonce);
        visit.is_some_and(|visit| visit.unanswered || !visit.claims.is_empty())
    }

    /// Whether a later attempt of the same ask must know of this one.
    fn matters(&self, nonce: u64) -> bool {
        self.may_have(nonce) || self.lock().get(&nonce).is_some_and(|it| it.fence != 0)
    }

    /// A claim is about to be sent: what it compares the fence with.
    fn sending(&self, nonce: u64) -> i64 {
        let mut visits = self.lock();
        let visit = visits.entry(nonce).or_default();
        visit.unanswered = true;
        visit.fence
    }

    fn answered(&self, nonce: u64, claim: Option<String>) {
        if let Some(visit) = self.lock().get_mut(&nonce) {
            visit.unanswered = false;
            visit.claims.extend(claim);
        }
    }

    /// Nothing of it is in force, or on its way, since the fence was touched.
    fn fenced(&self, nonce: u64, fence: i64) {
        let visit = Visit {
            fence,
            ..Visit::default()
        };
        self.lock().insert(nonce, visit);
    }

    fn forget(&self, nonce: u64) {
        self.lock().remove(&nonce);
    }

    fn settled(&self, nonce: u64, claim: &str) {
        let mut visits = self.lock();
        if let Some(visit) = visits.get_mut(&nonce) {
            visit.claims.retain(|other| other != claim);
            if visit.claims.is_empty() && !visit.unanswered {
                visits.remove(&nonce);
            }
        }
    }
}

/// What there is, at one revision.
struct Scene {
    /// In the order of delivery; not all, unless `complete`.
    items: Vec<Spot>,
    complete: bool,
    /// Whether the first that is free among the items is so among all.
    decides: bool,
    claims: HashSet<Tag>,
    delayed: HashSet<Tag>,
    /// With the revision of the last change.
    counts: HashMap<Tag, (i64, u32)>,
}

impl Scene {
    fn is_free(&self, spot: &Spot) -> bool {
        let tag = spot.tag();
        !self.claims.contains(&tag) && !self.delayed.contains(&tag)
    }

    fn free(&self) -> impl Iterator<Item = &Spot> {
        self.items.iter().filter(|spot| self.is_free(spot))
    }

    fn count(&self, spot: &Spot) -> (i64, u32) {
        self.counts.get(&spot.tag()).copied().unwrap_or((0, 0))
    }
}

/// One queue, as one session sees it.
pub(super) struct Shop {
    session: Arc<EtcdSession>,
    keys: Keys,
}

impl Shop {
    pub(super) fn new(session: &Arc<EtcdSession>, name: &Name) -> Self {
        Self {
            session: Arc::clone(session),
            keys: Keys::new(&session.shared.layout, name),
        }
    }

    async fn send(&self, txn: &Txn) -> Result<TxnResponse> {
        let sending = self.session.shared.wire.call(|client| {
            let (mut kv, txn) = (client.kv_client(), txn.clone());
            async move { kv.txn(txn).await }
        });
        sending.await
    }

    async fn read(&self, reads: Vec<TxnOp>) -> Result<(i64, Vec<(Vec<PbKeyValue>, bool)>)> {
        let txn = Txn::new().and_then(reads);
        let answer = self.session.shared.wire.call_repeatable(|client| {
            // The client's own limit of 4 MiB is less than the keys of a long queue.
            let mut kv = client.kv_client().max_decoding_message_size(usize::MAX);
            let txn = txn.clone();
            async move { kv.txn(txn).await }
        });
        let answer = answer.await?;
        Ok((revision(&answer), ranges(answer)))
    }

    fn fence(&self, nonce: u64) -> String {
        let layout = &self.session.shared.layout;
        layout.withdrawn(self.session.lease, nonce)
    }
}

fn revision(answer: &TxnResponse) -> i64 {
    answer.header().map_or(0, |header| header.revision())
}

/// Looking.
impl Shop {
    /// What can be delivered next, and all records.
    async fn look(&self) -> Result<Scene> {
        let scene = self.scene(PAGE).await?;
        if scene.decides {
            return Ok(scene);
        }
        self.scene(0).await
    }

    /// Up to `limit` items of each part of the key space; all, if it is 0.
    async fn scene(&self, limit: i64) -> Result<Scene> {
        let keys = &self.keys;
        let part = |from: char, to: char, target| {
            let options = GetOptions::new()
                .with_range(format!("{}/{to}", keys.name))
                .with_keys_only()
                .with_sort(target, SortOrder::Ascend)
                .with_limit(limit);
            TxnOp::get(format!("{}/{from}", keys.name), Some(options))
        };
        let all =
            |part, options: GetOptions| TxnOp::get(keys.all(part), Some(options.with_prefix()));
        let reads = vec![
            // Priorities below 10,000, by key. Nanoseconds since 1970 do not begin with a zero.
            part('0', '1', SortTarget::Key),
            // Plain items, by mod revision, and the other priorities.
            part('1', ':', SortTarget::Mod),
            all("claims", GetOptions::new().with_keys_only()),
            all("delayed", GetOptions::new().with_keys_only()),
            all("counts", GetOptions::new()),
        ];
        let (_, found) = self.read(reads).await?;
        let mut found = found.into_iter();
        let mut next = || found.next().unwrap_or_default();
        let (ranked, plain) = (next(), next());
        let mut tags = |part| -> HashSet<Tag> {
            let (kvs, _) = next();
            kvs.iter()
                .filter_map(|kv| keys.tag(part, &kv.key))
                .collect()
        };
        let (claims, delayed) = (tags("claims"), tags("delayed"));
        let counts = next().0.into_iter().filter_map(|kv| {
            let count = u32::try_from(view::number(&kv.value)).unwrap_or(u32::MAX);
            Some((keys.tag("counts", &kv.key)?, (kv.mod_revision, count)))
        });
        let spots = |kvs: &[PbKeyValue]| -> Vec<Spot> {
            kvs.iter().filter_map(|kv| keys.parse(kv)).collect()
        };
        let (first, second) = (spots(&ranked.0), spots(&plain.0));
        let mut scene = Scene {
            items: Vec::new(),
            complete: !ranked.1 && !plain.1,
            decides: false,
            claims,
            delayed,
            counts: counts.collect(),
        };
        let any_free = |spots: &[Spot]| spots.iter().any(|spot| scene.is_free(spot));
        // Beyond a full page of the second part there may be a plain item, before what is there.
        scene.decides = (!ranked.1 || any_free(&first))
            && (!plain.1 || any_free(&second) && second.iter().all(|spot| spot.priority == 0));
        scene.items = first.into_iter().chain(second).collect();
        scene.items.sort();
        Ok(scene)
    }

    /// Clears away counts of items that somebody of Go's took.
    async fn sweep(&self, scene: &Scene) -> Result<()> {
        if !scene.complete || scene.counts.is_empty() {
            return Ok(());
        }
        let there: HashSet<Tag> = scene.items.iter().map(Spot::tag).collect();
        let gone = scene.counts.keys();
        let gone = gone.filter(|tag| !there.contains(*tag) && !scene.claims.contains(*tag));
        for tag in gone.take(SWEPT) {
            let item = format!("{}/{}", self.keys.name, tag.0);
            let txn = Txn::new()
                .when([Compare::mod_revision(item, CompareOp::NotEqual, tag.1)])
                .and_then([delete(self.keys.record("counts", tag))]);
            self.send(&txn).await?;
        }
        Ok(())
    }

    pub(super) async fn depth(&self) -> Result<Depth> {
        let scene = self.scene(0).await?;
        let (mut ready, mut in_flight, mut delayed) = (0, 0, 0);
        for spot in &scene.items {
            let tag = spot.tag();
            match () {
                () if scene.claims.contains(&tag) => in_flight += 1,
                () if scene.delayed.contains(&tag) => delayed += 1,
                () => ready += 1,
            }
        }
        Ok(Depth::new(ready, in_flight, delayed))
    }

    pub(super) async fn peek(&self) -> Result<Option<Peeked>> {
        loop {
            let scene = self.look().await?;
            let Some(first) = scene.free().next() else {
                return Ok(None);
            };
            let (_, found) = self.read(vec![get(self.keys.item(first))]).await?;
            let item = found.into_iter().flat_map(|(kvs, _)| kvs).next();
            // Gone in between: then another is the first.
            if let Some(item) = item.filter(|kv| kv.mod_revision == first.revision) {
                return Ok(Some(Peeked {
                    value: item.value,
                    priority: first.priority(),
                    deliveries: scene.count(first).1,
                }));
            }
        }
    }

    pub(super) async fn purge(&self) -> Result<u64> {
        let (scene, mut purged) = (self.scene(0).await?, 0);
        for spot in &scene.items {
            if scene.claims.contains(&spot.tag()) {
                continue;
            }
            let item = self.keys.item(spot);
            let txn = Txn::new()
                .when([
                    changed_at(item.as_str(), spot.revision),
                    absent(self.keys.claim(spot)),
                ])
                .and_then([
                    delete(item),
                    delete(self.keys.count(spot)),
                    delete(self.keys.delayed(spot)),
                ]);
            purged += u64::from(self.send(&txn).await?.succeeded());
        }
        Ok(purged)
    }
}

/// Producing.
impl Shop {
    /// The last item of a priority.
    fn last(&self, priority: u64) -> TxnOp {
        let options = GetOptions::new()
            .with_prefix()
            .with_keys_only()
            .with_sort(SortTarget::Key, SortOrder::Descend)
            .with_limit(1);
        TxnOp::get(self.keys.shelf(priority) + "/", Some(options))
    }

    /// The number that comes next after what [`last`](Self::last) found.
    fn next_number(found: &[PbKeyValue]) -> u64 {
        let last = found.first().and_then(|kv| {
            let key = std::str::from_utf8(&kv.key).ok()?;
            key.rsplit('/').next()?.parse::<u64>().ok()
        });
        last.map_or(0, |last| last + 1)
    }

    /// Nothing of a priority was put since `revision`.
    fn unchanged(&self, priority: u64, revision: i64) -> Compare {
        Compare::mod_revision(self.keys.base(priority), CompareOp::Less, revision + 1)
    }

    fn put_item(&self, priority: u64, number: u64, value: &[u8]) -> TxnOp {
        put(
            format!("{}/{number:016}", self.keys.shelf(priority)),
            value,
            0,
        )
    }

    pub(super) async fn enqueue(&self, ask: &Ask, items: &[Item]) -> Result<()> {
        if items.iter().any(|item| item.get_id().is_some()) {
            return Err(Error::unsupported(
                "an item with an id, in a queue shared with Go, whose consumers leave no trace of what they took",
            ));
        }
        let key = self.keys.shelf(0).len() * 2 + 32;
        let bytes: usize = items.iter().map(|item| item.value().len() + key).sum();
        if bytes > MOST_BYTES {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!(
                    "a batch of {bytes} bytes is above etcd's limit for one request (1.5 MiB): split it"
                ),
            ));
        }
        let (lease, nonce) = (self.session.lease, ask.nonce());
        let marker = format!("{}{lease:x}-{nonce:x}", self.keys.all("batches"));
        let priorities: BTreeSet<u64> = items
            .iter()
            .map(|item| item.get_priority().into())
            .collect();
        let mut known = self.known_ends(&priorities);
        loop {
            let ends = match known.take() {
                Some(ends) => ends,
                None => {
                    let lasts = priorities.iter().map(|priority| self.last(*priority));
                    let reads = lasts.chain([look(marker.as_str())]).collect();
                    let (since, mut found) = self.read(reads).await?;
                    // An earlier request of this ask has landed.
                    if found.pop().is_some_and(|(kvs, _)| !kvs.is_empty()) {
                        break;
                    }
                    let ends = found.iter().map(|(kvs, _)| End {
                        next: Self::next_number(kvs),
                        since,
                    });
                    priorities.iter().copied().zip(ends).collect()
                }
            };
            if self.append(&marker, items, ends).await? {
                break;
            }
        }
        // At worst it stays until the session ends.
        if let Err(error) = self.send(&Txn::new().and_then([delete(marker)])).await {
            tracing::debug!(error = %error.chain(), "the marker of a batch stays until the session ends");
        }
        Ok(())
    }

    /// Where this session left all of `priorities`. Only for one who puts something there now.
    fn known_ends(&self, priorities: &BTreeSet<u64>) -> Option<BTreeMap<u64, End>> {
        let mut ends = self.session.visits.ends();
        let mut take =
            |priority: &u64| Some((*priority, ends.remove(&self.keys.shelf(*priority))?));
        priorities.iter().map(&mut take).collect()
    }

    /// Puts `items` behind `ends`, and the batch's marker; says whether nobody else was faster.
    async fn append(
        &self,
        marker: &str,
        items: &[Item],
        mut ends: BTreeMap<u64, End>,
    ) -> Result<bool> {
        let unchanged = ends.iter().map(|(it, end)| self.unchanged(*it, end.since));
        let compares: Vec<_> = unchanged.chain([absent(marker)]).collect();
        let mut ops = vec![put(marker, "", self.session.lease)];
        ops.extend(ends.keys().map(|it| put(self.keys.base(*it), "", 0)));
        for item in items {
            let priority = u64::from(item.get_priority());
            if let Some(end) = ends.get_mut(&priority) {
                ops.push(self.put_item(priority, end.next, item.value()));
                end.next += 1;
            }
        }
        let answer = self.send(&Txn::new().when(compares).and_then(ops)).await?;
        if answer.succeeded() {
            let since = revision(&answer);
            let ends = ends.into_iter().map(|(priority, end)| {
                let next = end.next;
                (self.keys.shelf(priority), End { next, since })
            });
            self.session.visits.ends().extend(ends);
        }
        Ok(answer.succeeded())
    }
}

/// Consuming.
impl Shop {
    /// Takes at least one item, waiting in line for it.
    pub(super) async fn take(&self, ask: &Ask, want: &Want) -> Served {
        let door = self.session.shared.queues.doors.door(&self.keys);
        let taking = async {
            // One waits for all of this client, in the order in which they came.
            let _turn = door.turn.lock().await;
            loop {
                // Before the look, so that news in between still wakes us.
                let mut news = door.rung.subscribe();
                let taken = self.try_take(ask, want).await?;
                if !taken.is_empty() {
                    return Ok(taken);
                }
                // Time to look all the same.
                let _ = tokio::time::timeout(SLOW_CHECK, news.changed()).await;
            }
        };
        tokio::select! {
            biased;
            () = ask.withdrawn() => Err(Error::withdrawn()),
            taken = taking => taken,
        }
    }

    pub(super) async fn try_take(&self, ask: &Ask, want: &Want) -> Served {
        let (visits, nonce) = (&self.session.visits, ask.nonce());
        match self.grab(nonce, want).await {
            // Core is to ask for it back.
            Err(error) if visits.matters(nonce) => Err(error.with_effect(Effect::Unknown)),
            taken => {
                if !visits.matters(nonce) {
                    visits.forget(nonce);
                }
                taken
            }
        }
    }

    async fn grab(&self, nonce: u64, want: &Want) -> Served {
        // A failure interrupted the attempt before this one.
        self.undo_all(nonce).await?;
        loop {
            let scene = self.look().await?;
            self.sweep(&scene).await?;
            let (mut taken, mut conflict) = (Vec::new(), false);
            for spot in scene.free() {
                if taken.len() >= want.most {
                    break;
                }
                let count = scene.count(spot);
                match &want.dead_letters {
                    Some(letters) if count.1 >= letters.after.get() => {
                        conflict |= !self.bury(spot, count.0, letters).await?;
                    }
                    _ => match self.claim(nonce, spot, count).await? {
                        Some(claimed) => taken.push(claimed),
                        // Another was faster: what comes next is to be had, most likely.
                        None => conflict = true,
                    },
                }
            }
            if !taken.is_empty() || !conflict {
                return Ok(taken);
            }
        }
    }

    /// Claims an item, unless something has happened to it.
    async fn claim(&self, nonce: u64, spot: &Spot, count: (i64, u32)) -> Result<Option<Taken>> {
        let (keys, visits, lease) = (&self.keys, &self.session.visits, self.session.lease);
        let (item, claim, counter) = (keys.item(spot), keys.claim(spot), keys.count(spot));
        let fence = visits.sending(nonce);
        let txn = Txn::new()
            .when([
                changed_at(self.fence(nonce), fence),
                changed_at(item.as_str(), spot.revision),
                absent(claim.as_str()),
                absent(keys.delayed(spot)),
                changed_at(counter.as_str(), count.0),
            ])
            .and_then([
                put(claim.as_str(), format!("{nonce:x}"), lease),
                put(counter, (count.1 + 1).to_string(), 0),
                get(item),
            ]);
        let answer = match self.send(&txn).await {
            // It never left, or was answered by an error: nothing of it is on its way.
            Err(error) if error.effect() == Effect::None || !error.is_retryable() => {
                visits.answered(nonce, None);
                return Err(error);
            }
            answer => answer?,
        };
        let token = revision(&answer);
        visits.answered(nonce, answer.succeeded().then(|| claim.clone()));
        let item = ranges(answer).into_iter().flat_map(|(kvs, _)| kvs).next();
        Ok(item.map(|item| Taken {
            grant: Grant::new(floor::token(0, token), claim).attach(Claim {
                spot: spot.clone(),
                token,
                nonce,
            }),
            value: item.value,
            priority: spot.priority(),
            deliveries: count.1 + 1,
        }))
    }

    /// Puts an item that was delivered too often into another queue; says whether it is gone.
    async fn bury(&self, spot: &Spot, counted: i64, letters: &DeadLetters) -> Result<bool> {
        let there = Shop::new(&self.session, &letters.queue);
        let (item, counter) = (self.keys.item(spot), self.keys.count(spot));
        let reads = vec![get(item.as_str()), there.last(spot.priority)];
        let (read_at, found) = self.read(reads).await?;
        let mut found = found.into_iter().map(|(kvs, _)| kvs);
        let value = found.next().and_then(|kvs| kvs.into_iter().next());
        let number = Self::next_number(&found.next().unwrap_or_default());
        let Some(value) = value.filter(|kv| kv.mod_revision == spot.revision) else {
            return Ok(true);
        };
        let txn = Txn::new()
            .when([
                there.unchanged(spot.priority, read_at),
                changed_at(item.as_str(), spot.revision),
                absent(self.keys.claim(spot)),
                changed_at(counter.as_str(), counted),
            ])
            .and_then([
                put(there.keys.base(spot.priority), "", 0),
                there.put_item(spot.priority, number, &value.value),
                delete(item),
                delete(counter),
            ]);
        Ok(self.send(&txn).await?.succeeded())
    }

    /// Takes back what `ask` got, or may get, as if nothing had been delivered.
    pub(super) async fn withdraw(&self, ask: &Ask) -> Result<()> {
        match self.undo_all(ask.nonce()).await {
            // With the session everything of it is gone.
            Err(error) if error.kind() != ErrorKind::Lost => return Err(error),
            _ => {}
        }
        self.session.visits.forget(ask.nonce());
        Ok(())
    }

    async fn undo_all(&self, nonce: u64) -> Result<()> {
        let (keys, visits, lease) = (&self.keys, &self.session.visits, self.session.lease);
        if !visits.may_have(nonce) {
            return Ok(());
        }
        let mark = format!("{nonce:x}");
        let all = |part| TxnOp::get(keys.all(part), Some(GetOptions::new().with_prefix()));
        let txn = Txn::new().and_then([
            put(self.fence(nonce), mark.as_str(), lease),
            all("claims"),
            all("counts"),
        ]);
        let answer = self.send(&txn).await?;
        let fence = revision(&answer);
        let mut found = ranges(answer).into_iter().map(|(kvs, _)| kvs);
        let (claims, counts) = (
            found.next().unwrap_or_default(),
            found.next().unwrap_or_default(),
        );
        let own = |kv: &&PbKeyValue| (kv.lease, kv.value.as_slice()) == (lease, mark.as_bytes());
        for claim in claims.iter().filter(own) {
            let Some(tag) = keys.tag("claims", &claim.key) else {
                continue;
            };
            let counter = keys.record("counts", &tag);
            let count = counts.iter().find(|kv| kv.key == counter.as_bytes());
            let count = match count.map_or(0, |kv| view::number(&kv.value)) {
                0 | 1 => delete(counter),
                n => put(counter, (n - 1).to_string(), 0),
            };
            let key = claim.key.as_slice();
            let txn = Txn::new()
                .when([created_at(key, claim.create_revision)])
                .and_then([delete(key), count]);
            self.send(&txn).await?;
        }
        visits.fenced(nonce, fence);
        Ok(())
    }

    pub(super) async fn ack(&self, grant: &Grant) -> Result<()> {
        let claim = claim(grant)?;
        let done = vec![
            delete(self.keys.item(&claim.spot)),
            delete(self.keys.count(&claim.spot)),
        ];
        self.end(claim, done).await
    }

    pub(super) async fn nack(&self, grant: &Grant, delay: Duration) -> Result<()> {
        let claim = claim(grant)?;
        let mut done = Vec::new();
        if !delay.is_zero() {
            let lease = lease_for(&self.session.shared.wire, delay).await?;
            done.push(put(self.keys.delayed(&claim.spot), "", lease));
        }
        self.end(claim, done).await
    }

    /// Ends a delivery by `done`, if the item is still there.
    async fn end(&self, claim: &Claim, done: Vec<TxnOp>) -> Result<()> {
        let key = self.keys.claim(&claim.spot);
        let ours = || created_at(key.as_str(), claim.token);
        let there = changed_at(self.keys.item(&claim.spot), claim.spot.revision);
        let taken_away = Txn::new()
            .when([ours()])
            .and_then([delete(key.as_str()), delete(self.keys.count(&claim.spot))]);
        let done = std::iter::once(delete(key.as_str())).chain(done);
        let txn = Txn::new()
            .when([ours(), there])
            .and_then(done.collect::<Vec<_>>())
            .or_else([TxnOp::txn(taken_away)]);
        let ended = match self.send(&txn).await {
            // A lease that an operation names; whether the claim is in force is not known by that.
            Err(error) if error.kind() == ErrorKind::Lost => {
                return Err(
                    Error::new(ErrorKind::Unavailable, "a lease has ended").with_source(error)
                );
            }
            answer => answer?.succeeded(),
        };
        self.session.visits.settled(claim.nonce, &key);
        if ended {
            Ok(())
        } else {
            Err(Error::lost(LossReason::Revoked))
        }
    }
}

fn claim(grant: &Grant) -> Result<&Claim> {
    grant
        .attachment()
        .ok_or_else(|| Error::new(ErrorKind::Internal, "a grant of another store"))
}

/// Where those of one client wait for one queue.
struct Door {
    records: Vec<u8>,
    turn: tokio::sync::Mutex<()>,
    /// Counts what may have made an item free.
    rung: watch::Sender<u64>,
}

impl Door {
    fn ring(&self) {
        self.rung.send_modify(|count| *count += 1);
    }
}

impl Sink for Door {
    fn opened(&self, _watch: i64, _revision: i64) {
        self.ring(); // what was before nobody heard
    }

    fn deleted(&self, deletions: &[(&[u8], i64)], _whole: bool) {
        let mut keys = deletions.iter().map(|(key, _)| key);
        // Claims and delays that have ended; that an item is gone is no news for who waits for one.
        if keys.any(|key| key.starts_with(&self.records)) {
            self.ring();
        }
    }

    fn put(&self, _kv: &PbKeyValue) {
        self.ring();
    }

    fn broken(&self) {}
}

/// The doors of one client. One stays for a while after its last use, for the sake of its watches.
pub(super) struct Doors {
    watcher: Arc<Watcher>,
    doors: Mutex<HashMap<String, Hung>>,
}

struct Hung {
    door: Arc<Door>,
    used: Instant,
    _watches: [Watch; 2],
}

impl Doors {
    pub(super) fn new(watcher: Arc<Watcher>) -> Self {
        Self {
            watcher,
            doors: Mutex::default(),
        }
    }

    fn door(&self, keys: &Keys) -> Arc<Door> {
        let mut doors = self.doors.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(hung) = doors.get_mut(&keys.name) {
            hung.used = Instant::now();
            return Arc::clone(&hung.door);
        }
        doors.retain(|_, hung| Arc::strong_count(&hung.door) > 1 || hung.used.elapsed() < IDLE);
        let door = Arc::new(Door {
            records: format!("{}/", keys.records).into(),
            turn: tokio::sync::Mutex::default(),
            rung: watch::Sender::new(0),
        });
        let sink: Weak<dyn Sink> = Arc::downgrade(&(Arc::clone(&door) as Arc<dyn Sink>));
        let items = Target::prefix(format!("{}/", keys.name)).with_puts();
        let records = Target::prefix(format!("{}/", keys.records));
        let watches = [items, records].map(|it| self.watcher.open(it, Weak::clone(&sink)));
        let hung = Hung {
            door: Arc::clone(&door),
            used: Instant::now(),
            _watches: watches,
        };
        doors.insert(keys.name.clone(), hung);
        door
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tenure_core::Namespace;

    #[test]
    fn items_of_both_layouts_are_known_and_nothing_else() {
        let layout = Layout::new(Namespace::default(), true);
        let keys = Keys::new(&layout, &Name::new("jobs").unwrap());
        let spot = |key: &str| {
            keys.parse(&PbKeyValue {
                key: key.into(),
                mod_revision: 7,
                ..PbKeyValue::default()
            })
        };
        for (key, priority) in [
            ("jobs/1732112345678901234", 0),
            ("jobs/00000/0000000000000000", 0),
            ("jobs/00012/0000000000000003", 12),
            ("jobs/123456/0000000000000003", 123_456),
        ] {
            let spot = spot(key).unwrap();
            assert_eq!((spot.priority, keys.item(&spot).as_str()), (priority, key));
            let record = keys.count(&spot);
            assert_eq!(keys.tag("counts", record.as_bytes()), Some(spot.tag()));
        }
        for key in [
            "jobs",
            "jobs/",
            "jobs/x",
            "jobs2/1732112345678901234",
            "jobs/1/0000000000000000",
            "jobs/00001/0000000000000000/0",
            "jobs/high/0000000000000000",
            "__jobs/00001",
        ] {
            assert_eq!(spot(key), None, "{key}");
        }
    }
}
