//! Double barriers: groups that are granted as a whole.
//!
//! A participant has a key on its session's lease, which stays until it leaves. The one that finds as many as are expected writes the
//! keys of them all again, on the leases of their sessions, and compares that each is still there: a participant that died before
//! does not count. So the keys of those inside were written twice, by one revision, and those of waiting ones once. While a key
//! that was written twice is there, none can join, so "all of the generation have left" cannot become false again. Nothing is left
//! when they have left or died.

use std::num::NonZeroU32;

use async_trait::async_trait;
use etcd_client::proto::PbKeyValue;
use etcd_client::{Compare, CompareOp, GetOptions, PutOptions, Txn, TxnOp};
use tenure_core::backend::{Barrier, Departure, EndOutcome, Grant, Joined, Marker, Mode, Request};
use tenure_core::{Error, ErrorKind, FencingToken, Kind, Name, Result};

use crate::connection::Target;
use crate::fence::Write;
use crate::keys::end_of;
use crate::places::{Place, no_place};
use crate::session::{EtcdSession, Header};
use crate::tokens::Floors;
use crate::txn::{Answer, get, get_all, is_absent, put};

/// The most participants: one transaction compares all their keys.
const MOST_PARTICIPANTS: u32 = 100;

/// How often a completion begins again because a participant has left meanwhile.
const MOST_ATTEMPTS: u32 = 100;

/// How many generations that were left are remembered, for participants that wait for the others.
const MOST_LEFT: usize = 1_000;

/// A barrier, as one read found it.
struct Scene {
    /// In the order of their arrival.
    participants: Vec<Participant>,
    floors: Floors,
}

struct Participant {
    found: PbKeyValue,
    /// How many participants it expects.
    count: u32,
}

impl Participant {
    fn is_inside(&self) -> bool {
        self.found.version > 1
    }
}

impl Scene {
    /// Reads the answers to [`EtcdSession::barrier_reads`].
    fn read(answer: &mut Answer) -> Result<Self> {
        let participant = |found: PbKeyValue| {
            let count = Header::read(&found.value)?.note.parse().ok()?;
            Some(Participant { found, count })
        };
        let mut participants: Vec<_> = answer.range()?.into_iter().filter_map(participant).collect();
        participants.sort_by_key(|participant| participant.found.create_revision);
        let floors = Floors::read(answer.key()?.as_ref());
        Ok(Self { participants, floors })
    }

    fn is_complete(&self) -> bool {
        self.participants.iter().any(Participant::is_inside)
    }
}

fn refuse(message: String) -> Error {
    Error::new(ErrorKind::Conflict, message)
}

impl EtcdSession {
    /// Returns how the keys of a barrier's participants begin.
    fn participants(&self, name: &Name) -> String {
        self.shared.keys.object(Kind::DoubleBarrier, name) + "/"
    }

    fn barrier_reads(&self, name: &Name) -> Vec<TxnOp> {
        vec![
            get_all(&self.participants(name), GetOptions::new()),
            get(&self.shared.keys.token_floor()),
        ]
    }

    async fn scene(&self, name: &Name) -> Result<Scene> {
        let mut answer = self.read(Txn::new().and_then(self.barrier_reads(name))).await?;
        Scene::read(&mut answer)
    }

    /// Compares that no generation is inside.
    fn is_open(&self, name: &Name) -> Compare {
        let participants = self.participants(name);
        let version = Compare::version(participants.as_str(), CompareOp::Less, 2);
        version.with_range(end_of(&participants))
    }

    /// Puts the key of a participant, unless a generation is inside. Returns the barrier after it.
    async fn arrive(&self, place: &Place, count: u32) -> Result<Scene> {
        let value = Header::write(place.nonce, &count.to_string(), &[]);
        let write = Write {
            compares: vec![is_absent(&place.key), self.is_open(&place.name)],
            then: [
                vec![put(&place.key, value, self.lease)],
                self.barrier_reads(&place.name),
            ]
            .concat(),
            or_else: [vec![get(&place.key)], self.barrier_reads(&place.name)].concat(),
        };
        let mut answer = self.write(write).await?;
        let created = match answer.succeeded {
            true => {
                answer.put()?;
                answer.revision
            }
            // An earlier copy has arrived.
            false => answer.key()?.map_or(0, |own| own.create_revision),
        };
        if created == 0 {
            let message = "the participants of the barrier are inside: enter again when they have left";
            return Err(refuse(message.to_owned()));
        }
        self.places.update(place.nonce, |place| place.created = created);
        Scene::read(&mut answer)
    }

    /// Lets the generation in if `scene` has all of its participants. Returns the barrier after it.
    async fn complete(&self, name: &Name, mut scene: Scene, count: u32) -> Result<Scene> {
        for _ in 0..MOST_ATTEMPTS {
            let agreeing = scene.participants.iter().filter(|one| one.count == count);
            let members: Vec<_> = agreeing.take(count as usize).map(|one| &one.found).collect();
            if scene.is_complete() || members.len() < count as usize {
                return Ok(scene);
            }
            let mut compares = vec![self.is_open(name)];
            compares.extend(
                members.iter().map(|found| {
                    Compare::create_revision(found.key.as_slice(), CompareOp::Equal, found.create_revision)
                }),
            );
            let again = members.iter().map(|found| {
                let lease = PutOptions::new().with_lease(found.lease);
                TxnOp::put(found.key.as_slice(), found.value.as_slice(), Some(lease))
            });
            let write = Write {
                compares,
                then: again.chain(self.barrier_reads(name)).collect(),
                or_else: self.barrier_reads(name),
            };
            let puts = members.len();
            let mut answer = self.write(write).await?;
            for _ in 0..if answer.succeeded { puts } else { 0 } {
                answer.put()?;
            }
            scene = Scene::read(&mut answer)?;
        }
        Ok(scene)
    }

    /// Returns the grant of a participant if its generation is complete.
    ///
    /// # Errors
    ///
    /// `Conflict` if another generation is complete, or the participants disagree.
    fn judge_scene(&self, place: &Place, scene: &Scene, count: u32) -> Result<Option<Grant>> {
        let is_own = |one: &&Participant| one.found.create_revision == place.created;
        let own = scene.participants.iter().find(is_own).ok_or_else(no_place)?;
        if own.is_inside() {
            let token = scene.floors.latest(place.created);
            self.places.update(place.nonce, |place| {
                place.token = Some(token);
                place.generation = own.found.mod_revision;
            });
            return Ok(Some(self.grant(place, token)));
        }
        if scene.is_complete() {
            let message = "all participants that the barrier expects are inside: enter again when they have left";
            return Err(refuse(message.to_owned()));
        }
        match scene.participants.first() {
            Some(first) if first.count != count => Err(refuse(format!(
                "participants wait to be {}, not {count}: all must give the same count",
                first.count
            ))),
            _ => Ok(None),
        }
    }
}

#[async_trait]
impl Barrier for EtcdSession {
    async fn enter(&self, request: &Request, count: NonZeroU32) -> Result<Joined> {
        let count = count.get();
        if count > MOST_PARTICIPANTS {
            let message = format!("a double barrier on etcd has at most {MOST_PARTICIPANTS} participants, not {count}");
            return Err(Error::new(ErrorKind::TooLarge, message));
        }
        self.note_request(request);
        let name = request.name();
        let key = |number| format!("{}{}", self.participants(name), self.member(number));
        let (place, _) = self.places.reserve(request, Mode::Exclusive, key)?;
        let scene = match place.created {
            0 => self.arrive(&place, count).await?,
            _ => self.scene(name).await?,
        };
        let place = self.places.get(place.nonce).ok_or_else(no_place)?;
        if let Some(grant) = self.judge_scene(&place, &scene, count)? {
            return Ok(Joined::Granted(grant));
        }
        let scene = self.complete(name, scene, count).await?;
        Ok(match self.judge_scene(&place, &scene, count)? {
            Some(grant) => Joined::Granted(grant),
            None => {
                self.places.update(place.nonce, |place| place.count = count);
                Joined::Waiting
            }
        })
    }

    async fn wait(&self, request: &Request) -> Result<Option<Grant>> {
        let place = self.places.get(request.nonce()).filter(|place| place.created != 0);
        let place = place.ok_or_else(no_place)?;
        let own = self.shared.watches.subscribe(Target::key(&*place.key));
        own.opened().await;
        loop {
            let seen = own.seen();
            let scene = self.scene(request.name()).await?;
            // Not `complete`: this future may be dropped, and a write may not. The participant that arrived last writes, until it
            // succeeds or its session ends.
            if let Some(grant) = self.judge_scene(&place, &scene, place.count)? {
                return Ok(Some(grant));
            }
            own.changed(seen).await;
        }
    }

    async fn leave(&self, marker: Marker, departures: &[Departure]) -> Result<Vec<EndOutcome>> {
        let places = departures
            .iter()
            .filter_map(|departure| self.places.get(departure.request.nonce()));
        let inside: Vec<_> = places
            .filter_map(|place| Some((place.token?, place.generation)))
            .collect();
        let outcomes = self.leave_all(marker, departures).await?;
        let mut left = self.left.lock();
        left.extend(inside);
        while left.len() > MOST_LEFT {
            // Those that left first.
            left.pop_first();
        }
        Ok(outcomes)
    }

    async fn all_left(&self, name: &Name, token: FencingToken) -> Result<bool> {
        let generation = self.left.lock().get(&token).copied();
        let ends = self
            .shared
            .watches
            .subscribe(Target::ends_of_prefix(&self.participants(name)));
        ends.opened().await;
        loop {
            let seen = ends.seen();
            let scene = self.scene(name).await?;
            let inside = scene.participants.iter().filter(|one| one.is_inside());
            let mut revisions = inside.map(|one| one.found.mod_revision);
            // The next generation is written by another revision.
            if !revisions.any(|revision| generation.is_none_or(|generation| revision == generation)) {
                self.left.lock().remove(&token);
                return Ok(true);
            }
            ends.changed(seen).await;
        }
    }
}
