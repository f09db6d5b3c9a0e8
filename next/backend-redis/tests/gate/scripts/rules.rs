//! The rules that hold after every script.

use std::collections::{BTreeMap, BTreeSet};

use super::server::{list, text};
use super::world::World;
use redis::Value;

/// A place of a wait queue, as the server has it.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) session: String,
    pub(crate) nonce: u64,
    pub(crate) mode: String,
    pub(crate) score: u64,
    pub(crate) deadline: u64,
    pub(crate) entry: String,
}

impl Place {
    fn read(value: &Value) -> Self {
        let fields: Vec<_> = list(value).iter().map(text).collect();
        let mut parts = fields[0].splitn(3, ':').map(str::to_owned);
        let mut part = || parts.next().unwrap_or_default();
        Self {
            session: part(),
            nonce: part().parse().unwrap_or_default(),
            mode: part(),
            score: fields[1].parse::<f64>().unwrap_or_default() as u64,
            deadline: fields[2].parse().unwrap_or_default(),
            entry: fields[3].clone(),
        }
    }

    pub(crate) fn id(&self) -> (String, u64) {
        (self.session.clone(), self.nonce)
    }

    /// Returns the first token of the group that it is inside with.
    pub(crate) fn generation(&self) -> Option<u64> {
        self.mode.split_once('.').and_then(|(_, first)| first.parse().ok())
    }
}

/// The knowledge of one object.
#[derive(Clone, Debug, Default)]
pub(crate) struct Object {
    pub(crate) holders: Vec<Place>,
    pub(crate) waiters: Vec<Place>,
    /// The first waiter that fits, and since when.
    fits_since: Option<((String, u64), u64)>,
}

impl Object {
    pub(crate) fn live_holders(&self, now: u64) -> Vec<&Place> {
        self.holders.iter().filter(|place| place.deadline > now).collect()
    }

    pub(crate) fn live_waiters(&self, now: u64) -> Vec<&Place> {
        self.waiters.iter().filter(|place| place.deadline > now).collect()
    }
}

/// The longest time for which a waiter that fits may wait: its own timer ends at most 120 ms late, and a sweep follows.
const LONGEST: u64 = 302_000;

impl World<'_> {
    /// Reads the state after a script, checks the rules, and delivers the messages.
    pub(crate) fn check(&mut self) -> Result<(), String> {
        let state = self.read_state();
        let mut messages = list(&state[0]).iter().map(text);
        let mut received = Vec::new();
        while let (Some(channel), Some(message)) = (messages.next(), messages.next()) {
            received.push((channel, message));
        }
        let floor = self.last_token;
        for (index, path) in self.paths.clone().into_iter().enumerate() {
            let places = |value: &Value| list(value).iter().map(Place::read).collect::<Vec<_>>();
            let before = self.objects.remove(&path).unwrap_or_default();
            let mut object = Object {
                holders: places(&state[1 + 2 * index]),
                waiters: places(&state[2 + 2 * index]),
                fits_since: before.fits_since.clone(),
            };
            self.check_holders(&path, &object)?;
            self.check_grants(&path, &before, &object, floor)?;
            self.check_entries(&path, &object)?;
            self.check_progress(&path, &mut object)?;
            let leader = |object: &Object| object.holders.first().map(Place::id);
            let topic = format!("{}topic/{path}", super::server::ROOT);
            if path.starts_with("election/")
                && leader(&before) != leader(&object)
                && !self.edited
                && !received.iter().any(|(channel, _)| *channel == topic)
            {
                return Err(format!(
                    "the leader of {path} changed and its observers were not notified"
                ));
            }
            self.objects.insert(path, object);
        }
        self.edited = false;
        for (channel, message) in received {
            if let Some(session) = channel.split("session/").nth(1) {
                self.deliver(session, &message)?;
            }
        }
        Ok(())
    }

    fn check_holders(&self, path: &str, object: &Object) -> Result<(), String> {
        let holders = object.live_holders(self.now);
        let alone = holders.iter().any(|place| place.mode == "x");
        if alone && holders.len() > 1 {
            return Err(format!("L1: {holders:?} hold {path}"));
        }
        let ids: BTreeSet<_> = object.holders.iter().map(Place::id).collect();
        if let Some(both) = object.waiters.iter().find(|place| ids.contains(&place.id())) {
            return Err(format!("{both:?} waits and holds {path}"));
        }
        Ok(())
    }

    fn check_grants(&mut self, path: &str, before: &Object, object: &Object, floor: u64) -> Result<(), String> {
        let old: BTreeMap<_, _> = before.holders.iter().map(|place| (place.id(), place)).collect();
        let order: Vec<_> = before.waiters.iter().map(Place::id).collect();
        let waiting: BTreeSet<_> = object.live_waiters(self.now).iter().map(|place| place.id()).collect();
        let new: Vec<_> = object
            .holders
            .iter()
            .filter(|place| !old.contains_key(&place.id()))
            .collect();
        let mut last = floor;
        for place in &new {
            if place.deadline <= self.now {
                return Err(format!("{place:?} was granted {path} after the end of its session"));
            }
            if place.score <= last {
                return Err(format!("L2: token {} of {path} is not above {last}", place.score));
            }
            last = place.score;
            self.last_token = self.last_token.max(last);
            let position = order.iter().position(|id| *id == place.id()).unwrap_or(order.len());
            if let Some(ahead) = order[..position].iter().find(|id| waiting.contains(id)) {
                return Err(format!(
                    "L3: {place:?} was granted {path}, and {ahead:?} waits since earlier"
                ));
            }
        }
        for place in &object.holders {
            if let Some(known) = old.get(&place.id())
                && known.score != place.score
            {
                return Err(format!("the token of {place:?} was {}", known.score));
            }
        }
        if let Some(first) = new.iter().find(|place| place.mode.starts_with('g')) {
            let size = first.mode[1..].split('.').next().and_then(|size| size.parse().ok());
            let same = object.holders.iter().all(|place| place.mode == first.mode);
            if !same || size != Some(new.len()) {
                return Err(format!(
                    "B2: {:?} are inside {path}, new are {}",
                    object.holders,
                    new.len()
                ));
            }
        }
        Ok(())
    }

    fn check_entries(&self, path: &str, object: &Object) -> Result<(), String> {
        let holders = object.holders.iter().map(|place| (place, place.score.to_string()));
        let waiters = object.waiters.iter().map(|place| (place, "-".to_owned()));
        for (place, token) in holders.chain(waiters) {
            let expected = format!("{token} {} {path}", place.mode);
            let missing = place.entry.is_empty() && (place.deadline <= self.now || self.edits);
            if place.entry != expected && !missing {
                return Err(format!("the entry of {place:?} of {path} is not {expected:?}"));
            }
        }
        Ok(())
    }

    /// A waiter that fits beside the living holders is granted within a bound.
    fn check_progress(&self, path: &str, object: &mut Object) -> Result<(), String> {
        let holders = object.live_holders(self.now);
        let waiters = object.live_waiters(self.now);
        let first = waiters.first().filter(|place| self.acts(&place.session));
        let fits = first.is_some_and(|first| match first.mode.strip_prefix('g') {
            Some(size) => {
                let all = waiters.iter().all(|place| self.acts(&place.session));
                all && holders.is_empty() && waiters.len() >= size.parse().unwrap_or(usize::MAX)
            }
            None => holders.is_empty() || first.mode == "s" && holders.iter().all(|place| place.mode == "s"),
        });
        let id = first.filter(|_| fits).map(|first| first.id());
        object.fits_since = match (&object.fits_since, id) {
            (_, None) => None,
            (Some((known, since)), Some(id)) if *known == id => Some((id, *since)),
            (_, Some(id)) => Some((id, self.now)),
        };
        match &object.fits_since {
            Some((id, since)) if self.now.saturating_sub(*since) > LONGEST && !self.edits && !self.clock_jumps => {
                Err(format!(
                    "{id:?} fits {path} and was not granted for {} ms",
                    self.now.saturating_sub(*since) / 1000
                ))
            }
            _ => Ok(()),
        }
    }
}
