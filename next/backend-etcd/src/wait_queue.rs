//! Locks, read-write locks and elections: the lowest create revision holds, as in Go's `concurrency` package.
//!
//! A reader is blocked by the writers before it, every other request by all requests before it. A waiter watches only the nearest
//! key that blocks it, so a release wakes one waiter, or the readers behind a writer.

use async_trait::async_trait;
use etcd_client::proto::PbKeyValue;
use etcd_client::{Compare, CompareOp, GetOptions, SortOrder, SortTarget, Txn, TxnOp};
use tenure_core::backend::{
    Departure, Election, EndOutcome, Grant, Joined, Leader, LeaderUpdate, Locker, Marker, Mode, Nonce, Request, RwLock,
    WaitQueue,
};
use tenure_core::{Error, ErrorKind, FencingToken, Kind, Name, Result};

use crate::connection::{Subscription, Target};
use crate::error::{is_answer, revoked, unexpected};
use crate::fence::Write;
use crate::keys::end_of;
use crate::places::{Place, no_place};
use crate::session::{EtcdSession, Header};
use crate::tokens::Floors;
use crate::txn::{Answer, KEYS_AT_ONCE, delete, get, get_all, get_revisions, is_absent, put, was_created};

/// The state of a request in its queue.
enum Look {
    Granted(Grant),
    /// The nearest key that blocks it.
    Blocked(String),
}

fn joined(look: Look) -> Joined {
    match look {
        Look::Granted(grant) => Joined::Granted(grant),
        Look::Blocked(_) => Joined::Waiting,
    }
}

fn text(key: &PbKeyValue) -> String {
    String::from_utf8_lossy(&key.key).into_owned()
}

fn is_downgraded(key: &PbKeyValue) -> bool {
    Header::read(&key.value).is_some_and(|header| header.is_downgraded())
}

impl EtcdSession {
    /// Returns how the keys of a queue begin.
    fn queue(&self, kind: Kind, name: &Name) -> String {
        self.shared.keys.object(kind, name) + "/"
    }

    /// Returns how the keys begin that can block a request.
    fn blockers(&self, kind: Kind, name: &Name, mode: Mode) -> String {
        let queue = self.queue(kind, name);
        match mode {
            Mode::Shared => queue + "write/",
            _ => queue,
        }
    }

    fn place_key(&self, request: &Request, mode: Mode, number: u32) -> String {
        let queue = self.queue(request.kind(), request.name());
        let folder = match (request.kind(), mode) {
            (Kind::RwLock, Mode::Shared) => "read/",
            (Kind::RwLock, _) => "write/",
            _ => "",
        };
        format!("{queue}{folder}{}", self.member(number))
    }

    /// Reads the newest keys that may block a request, besides its own. A reader has to look at the values: it passes a writer that
    /// was downgraded.
    fn newest_blockers(&self, place: &Place, before: Option<i64>) -> TxnOp {
        let mut options = GetOptions::new()
            .with_sort(SortTarget::Create, SortOrder::Descend)
            .with_limit(2);
        if place.mode != Mode::Shared {
            options = options.with_keys_only();
        }
        if let Some(revision) = before {
            options = options.with_max_create_revision(revision - 1);
        }
        get_all(&self.blockers(place.kind, &place.name, place.mode), options)
    }

    /// Returns the nearest of `newest` that blocks the request. At most one writer is downgraded at a time, and it is the oldest.
    fn nearest(place: &Place, newest: &[PbKeyValue]) -> Option<String> {
        let nearest = newest.iter().find(|key| key.key != place.key.as_bytes())?;
        let passes = place.mode == Mode::Shared && is_downgraded(nearest);
        (!passes).then(|| text(nearest))
    }

    /// Notes the key of a request, and the state that an answer shows. `floors` and `newest` are of the revision of the answer.
    fn judge(&self, place: &Place, created: i64, floors: &Floors, newest: &[PbKeyValue]) -> Look {
        let blocker = Self::nearest(place, newest);
        let token = floors.token(created);
        self.places.update(place.nonce, |place| {
            place.created = created;
            place.blocker.clone_from(&blocker);
            place.token = blocker.is_none().then_some(token);
        });
        match blocker {
            None => Look::Granted(self.grant(place, token)),
            Some(key) => Look::Blocked(key),
        }
    }

    /// Grants a request that has come before the last raise of the floor: notes in its key the token that it gets.
    async fn grant_above(&self, place: &Place, floors: &Floors) -> Result<Look> {
        let mut answer = self.read(Txn::new().and_then([get(&place.key)])).await?;
        let own = answer.key()?.filter(|own| own.create_revision == place.created);
        let own = own.and_then(|own| Header::read(&own.value)).ok_or_else(no_place)?;
        let token = own.token().unwrap_or_else(|| floors.latest(place.created));
        let noted = Place {
            token: Some(token),
            is_noted: true,
            ..place.clone()
        };
        let value = Header::write(place.nonce, &Header::note_of(&noted, own.is_downgraded()), &own.value);
        let write = Write {
            compares: vec![was_created(&place.key, place.created)],
            then: vec![put(&place.key, value, self.lease)],
            or_else: Vec::new(),
        };
        // Repeated, it finds its note.
        if own.token().is_none() && !self.write(write).await?.succeeded {
            return Err(no_place());
        }
        self.places.update(place.nonce, |place| {
            place.token = Some(token);
            place.is_noted = true;
            place.blocker = None;
        });
        Ok(Look::Granted(self.grant(place, token)))
    }

    /// Reads the state of a request that has joined.
    async fn look(&self, place: &Place) -> Result<Look> {
        let reads = [
            get_revisions(&place.key),
            get(&self.shared.keys.token_floor()),
            self.newest_blockers(place, Some(place.created)),
        ];
        let mut answer = self.read(Txn::new().and_then(reads)).await?;
        let (own, floors) = (answer.key()?, Floors::read(answer.key()?.as_ref()));
        if own.is_none_or(|own| own.create_revision != place.created) {
            // An operator has deleted it, or the session has ended.
            return Err(no_place());
        }
        let newest = answer.range()?;
        if floors.are_raised_after(place.created) && Self::nearest(place, &newest).is_none() {
            return self.grant_above(place, &floors).await;
        }
        Ok(self.judge(place, place.created, &floors, &newest))
    }

    /// Puts the key of a request. `guards` must hold besides; `None` if they do not.
    async fn put_place(&self, place: &Place, value: &[u8], guards: Vec<Compare>) -> Result<Option<Look>> {
        let reads = || vec![get(&self.shared.keys.token_floor()), self.newest_blockers(place, None)];
        let put = put(&place.key, Header::write(place.nonce, "", value), self.lease);
        let write = Write {
            compares: [vec![is_absent(&place.key)], guards].concat(),
            then: [vec![put], reads()].concat(),
            or_else: vec![get(&place.key)],
        };
        let mut answer = self.write(write).await?;
        if answer.succeeded {
            answer.put()?;
            let floors = Floors::read(answer.key()?.as_ref());
            return Ok(Some(self.judge(place, answer.revision, &floors, &answer.range()?)));
        }
        match answer.key()? {
            Some(own) => self.look_at(place, &own).await.map(Some),
            None => Ok(None),
        }
    }

    /// Reads the key that an earlier copy of a request may have made.
    async fn find(&self, place: &Place) -> Result<Option<Look>> {
        let mut answer = self.read(Txn::new().and_then([get(&place.key)])).await?;
        match answer.key()? {
            Some(own) => self.look_at(place, &own).await.map(Some),
            None => Ok(None),
        }
    }

    /// Looks for a request whose key an earlier copy has made.
    async fn look_at(&self, place: &Place, own: &PbKeyValue) -> Result<Look> {
        if Header::read(&own.value).is_none_or(|header| header.nonce != place.nonce) {
            return Err(unexpected("join"));
        }
        let created = own.create_revision;
        self.places.update(place.nonce, |place| place.created = created);
        let found = Place {
            created,
            ..place.clone()
        };
        self.look(&found).await
    }

    /// Returns what must hold so that a request need not wait; `None` if it has to.
    async fn is_free(&self, place: &Place) -> Result<Option<Compare>> {
        let mut answer = self
            .read(Txn::new().and_then([self.newest_blockers(place, None)]))
            .await?;
        let newest = answer.range()?;
        if Self::nearest(place, &newest).is_some() {
            return Ok(None);
        }
        let blockers = self.blockers(place.kind, &place.name, place.mode);
        // The writers that are there are downgraded; none may come.
        let before = Compare::create_revision(blockers.as_str(), CompareOp::Less, answer.revision + 1);
        let none = Compare::create_revision(blockers.as_str(), CompareOp::Equal, 0);
        let guard = if place.mode == Mode::Shared { before } else { none };
        Ok(Some(guard.with_range(end_of(&blockers))))
    }

    async fn join_as(&self, place: &Place, value: &[u8], wait: bool) -> Result<Joined> {
        let look = if place.created != 0 {
            Some(self.look(place).await?)
        } else if wait {
            self.put_place(place, value, Vec::new()).await?
        } else {
            match self.is_free(place).await? {
                Some(guard) => self.put_place(place, value, vec![guard]).await?,
                None => None,
            }
        };
        Ok(look.map_or(Joined::Busy, joined))
    }

    /// Ends requests. The key of each is deleted if it is the one that the request made.
    pub(crate) async fn leave_all(&self, marker: Marker, departures: &[Departure]) -> Result<Vec<EndOutcome>> {
        self.note_nonce(marker.nonce);
        let places: Vec<_> = departures.iter().map(|departure| self.leaving(departure)).collect();
        let open: Vec<_> = places.iter().flatten().filter(|place| place.ended.is_none()).collect();
        for (part, some) in open.chunks(KEYS_AT_ONCE).enumerate() {
            self.delete_places(marker, part, some).await?;
        }
        let mut outcomes = Vec::with_capacity(places.len());
        for place in places {
            let ended = place.and_then(|place| self.places.get(place.nonce)?.ended);
            outcomes.push(ended.unwrap_or(EndOutcome::NotHeld));
        }
        for (departure, outcome) in departures.iter().zip(&outcomes) {
            // A release under a wrong token ends nothing.
            if *outcome == EndOutcome::Ended || departure.token.is_none() || self.is_gone(departure) {
                self.places.end(&departure.request);
            }
        }
        Ok(outcomes)
    }

    /// Returns the place that ends by `departure`, if there is one.
    fn leaving(&self, departure: &Departure) -> Option<Place> {
        let place = self.places.get(departure.request.nonce())?;
        let is_it = departure.token.is_none_or(|token| place.token == Some(token));
        is_it.then_some(place)
    }

    fn is_gone(&self, departure: &Departure) -> bool {
        self.leaving(departure).is_some_and(|place| place.ended.is_some())
    }

    /// Deletes the keys of one part of a message, and records in the message's slot that it has.
    async fn delete_places(&self, marker: Marker, part: usize, places: &[&Place]) -> Result<()> {
        let record = format!("{} {part}", marker.nonce);
        let slot = self.shared.keys.slot(self.lease, marker.slot.get());
        if places.iter().any(|place| place.left_by == Some(marker.nonce))
            && let Some(revision) = self.carried_out(&slot, &record).await?
        {
            return self.recall(places, revision - 1).await;
        }
        let deletion = |place: &&Place| match place.created {
            // The answer to its join was lost. Its number is of no other request.
            0 => delete(&place.key),
            created => {
                let deletion = Txn::new().when([was_created(&place.key, created)]);
                TxnOp::txn(deletion.and_then([delete(&place.key)]))
            }
        };
        let record = put(&slot, record, self.lease);
        let write = |record: Option<TxnOp>| Write {
            then: places.iter().map(deletion).chain(record).collect(),
            ..Write::default()
        };
        for place in places {
            self.places
                .update(place.nonce, |place| place.left_by = Some(marker.nonce));
        }
        let (mut answer, is_full) = match self.write(write(Some(record))).await {
            // A full etcd takes deletions alone.
            Err(error) if is_answer(&error) => (self.write(write(None)).await?, true),
            answer => (answer?, false),
        };
        for place in places {
            let is_deleted = match place.created {
                0 => answer.deleted()? > 0,
                _ => answer.txn()?.succeeded,
            };
            // The refused request may have deleted it.
            self.note_end(place, is_deleted || is_full);
        }
        Ok(())
    }

    fn note_end(&self, place: &Place, is_deleted: bool) {
        let outcome = if is_deleted {
            EndOutcome::Ended
        } else {
            EndOutcome::NotHeld
        };
        self.places.update(place.nonce, |place| place.ended = Some(outcome));
    }

    /// Returns the revision of a step whose answer was lost, if it has written this record. Otherwise it never will.
    async fn carried_out(&self, slot: &str, record: &str) -> Result<Option<i64>> {
        self.settle().await?;
        let mut answer = self.read(Txn::new().and_then([get(slot)])).await?;
        let found = answer.key()?.filter(|found| found.value == record.as_bytes());
        Ok(found.map(|found| found.mod_revision))
    }

    /// Notes the ends of requests whose keys were deleted by the revision after this one. A key that was not there was deleted
    /// before, by an operator.
    async fn recall(&self, places: &[&Place], revision: i64) -> Result<()> {
        let before = |place: &&Place| {
            let options = GetOptions::new().with_keys_only().with_revision(revision);
            TxnOp::get(&*place.key, Some(options))
        };
        let reads: Vec<_> = places.iter().map(before).collect();
        match self.read(Txn::new().and_then(reads)).await {
            Ok(mut answer) => {
                for place in places {
                    let found = answer.key()?;
                    let is_it = |found: PbKeyValue| place.created == 0 || found.create_revision == place.created;
                    self.note_end(place, found.is_some_and(is_it));
                }
                Ok(())
            }
            // Compacted.
            Err(error) if error.kind() == ErrorKind::Conflict => {
                places.iter().for_each(|place| self.note_end(place, true));
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Reads the leader of an election, at a past revision if one is given.
    fn head(&self, name: &Name, revision: i64) -> TxnOp {
        let options = GetOptions::new()
            .with_sort(SortTarget::Create, SortOrder::Ascend)
            .with_limit(1)
            .with_revision(revision);
        get_all(&self.queue(Kind::Election, name), options)
    }

    /// Reads the leader of an election and the floors.
    async fn leader(&self, name: &Name) -> Result<(Answer, Option<PbKeyValue>, Floors)> {
        let reads = [get(&self.shared.keys.token_floor()), self.head(name, 0)];
        let mut answer = self.read(Txn::new().and_then(reads)).await?;
        let floors = Floors::read(answer.key()?.as_ref());
        let head = answer.key()?;
        Ok((answer, head, floors))
    }

    /// Returns whether the leader at a past revision is `head`. If the past is compacted, it may be another.
    async fn was_leader(&self, name: &Name, head: Option<&PbKeyValue>, revision: u64) -> Result<bool> {
        let at = i64::try_from(revision).unwrap_or(i64::MAX);
        match self.read(Txn::new().and_then([self.head(name, at)])).await {
            Ok(mut answer) => {
                let identity = |key: &PbKeyValue| (key.create_revision, key.mod_revision);
                Ok(answer.key()?.as_ref().map(identity) == head.map(identity))
            }
            Err(error) if error.kind() == ErrorKind::Conflict => Ok(false),
            Err(error) => Err(error),
        }
    }
}

#[async_trait]
impl WaitQueue for EtcdSession {
    async fn join(&self, request: &Request, mode: Mode, value: Option<&[u8]>, wait: bool) -> Result<Joined> {
        if !matches!(mode, Mode::Exclusive | Mode::Shared) {
            return Err(Error::unsupported("this mode of a wait queue"));
        }
        self.note_request(request);
        let key = |number| self.place_key(request, mode, number);
        let (place, is_repeated) = self.places.reserve(request, mode, key)?;
        if is_repeated && place.created == 0 && !wait {
            // The key may be there, or still arrive.
            self.settle().await?;
            if let Some(look) = self.find(&place).await? {
                return Ok(joined(look));
            }
        }
        let joined = self.join_as(&place, value.unwrap_or_default(), wait).await?;
        if joined == Joined::Busy {
            self.places.end(request);
        }
        Ok(joined)
    }

    async fn wait(&self, request: &Request) -> Result<Option<Grant>> {
        let place = self.places.get(request.nonce()).filter(|place| place.created != 0);
        let place = place.ok_or_else(no_place)?;
        let mut watch: Option<(String, Subscription)> = None;
        let mut blocker = place.blocker.clone();
        loop {
            if let Some(key) = blocker.take()
                && watch.as_ref().is_none_or(|(watched, _)| *watched != key)
            {
                // A writer that is downgraded lets readers pass.
                let target = match place.mode {
                    Mode::Shared => Target::key(key.as_str()),
                    _ => Target::end_of_key(key.as_str()),
                };
                let subscription = self.shared.watches.subscribe(target);
                subscription.opened().await;
                watch = Some((key, subscription));
            }
            let seen = watch.as_ref().map(|(_, watch)| watch.seen());
            let key = match self.look(&place).await? {
                Look::Granted(grant) => return Ok(Some(grant)),
                Look::Blocked(key) => key,
            };
            if let (Some((watched, watch)), Some(seen)) = (&watch, seen)
                && *watched == key
            {
                // One that is not open yet reports its opening.
                watch.changed(seen).await;
            }
            blocker = Some(key);
        }
    }

    async fn leave(&self, marker: Marker, departures: &[Departure]) -> Result<Vec<EndOutcome>> {
        self.leave_all(marker, departures).await
    }
}

impl Locker for EtcdSession {}

#[async_trait]
impl RwLock for EtcdSession {
    async fn downgrade(&self, marker: Marker, request: &Request, token: FencingToken) -> Result<()> {
        self.note_nonce(marker.nonce);
        let place = self.places.holding(request.nonce(), token).ok_or_else(revoked)?;
        let value = Header::write(place.nonce, &Header::note_of(&place, true), &[]);
        let write = Write {
            compares: vec![was_created(&place.key, place.created)],
            then: vec![put(&place.key, value, self.lease)],
            or_else: Vec::new(),
        };
        if !self.write(write).await?.succeeded {
            return Err(revoked());
        }
        // Repeated, it writes the same again.
        self.places.update(place.nonce, |place| place.mode = Mode::Shared);
        Ok(())
    }
}

#[async_trait]
impl Election for EtcdSession {
    async fn proclaim(&self, request: &Request, token: FencingToken, number: u64, value: &[u8]) -> Result<()> {
        self.note_nonce(Nonce::new(number));
        let place = self.places.holding(request.nonce(), token).ok_or_else(revoked)?;
        // One at a time: two in flight could arrive in any order.
        let mut last = place.proclaimed.lock().await;
        if number < *last {
            return Ok(());
        }
        let value = Header::write(place.nonce, &Header::note_of(&place, false), value);
        let write = Write {
            compares: vec![was_created(&place.key, place.created)],
            then: vec![put(&place.key, value, self.lease)],
            or_else: Vec::new(),
        };
        match self.write(write).await?.succeeded {
            true => {
                *last = number;
                Ok(())
            }
            false => Err(revoked()),
        }
    }

    async fn observe(&self, name: &Name, after: Option<u64>) -> Result<LeaderUpdate> {
        let mut watch: Option<(String, Subscription)> = None;
        loop {
            let seen = match &watch {
                Some((_, watch)) => {
                    watch.opened().await;
                    Some(watch.seen())
                }
                None => None,
            };
            let (answer, head, floors) = self.leader(name).await?;
            let revision = answer.revision.unsigned_abs();
            let is_news = match after {
                None => true,
                Some(after) if revision <= after => false,
                Some(after) => !self.was_leader(name, head.as_ref(), after).await?,
            };
            // With a leader, only its end and its proclamations are news; candidates come and go.
            let target = head.as_ref().map_or_else(|| self.queue(Kind::Election, name), text);
            if is_news {
                let leader = head.map(|head| {
                    let token = floors.token(head.create_revision);
                    match Header::read(&head.value) {
                        Some(header) => Leader::new(header.token().unwrap_or(token), header.value),
                        None => Leader::new(token, head.value),
                    }
                });
                return Ok(LeaderUpdate::new(revision, leader));
            }
            match (&watch, seen) {
                (Some((watched, watch)), Some(seen)) if *watched == target => watch.changed(seen).await,
                _ => {
                    let subscribed = match head {
                        Some(_) => Target::key(target.as_str()),
                        None => Target::prefix(&target),
                    };
                    watch = Some((target, self.shared.watches.subscribe(subscribed)));
                }
            }
        }
    }
}
