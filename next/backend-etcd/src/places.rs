//! The entries of a session, as this process knows them: one key for each request that waits or holds.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use parking_lot::Mutex;
use tenure_core::backend::{EndOutcome, Mode, Nonce, Request};
use tenure_core::{Error, ErrorKind, FencingToken, Kind, Name, Result};

/// A request with a key.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) nonce: Nonce,
    pub(crate) kind: Kind,
    pub(crate) name: Name,
    pub(crate) mode: Mode,
    /// The number in the key, which no other request of this session for this object has.
    pub(crate) number: u32,
    pub(crate) key: Arc<str>,
    /// The revision that created the key; 0 until an answer has shown it.
    pub(crate) created: i64,
    pub(crate) token: Option<FencingToken>,
    /// Whether the key has a note of the token.
    pub(crate) is_noted: bool,
    /// The key whose end a waiter waits for, if the answer to its join has named one.
    pub(crate) blocker: Option<String>,
    /// How many participants a double barrier waits for.
    pub(crate) count: u32,
    /// The revision that let the participants of a double barrier in.
    pub(crate) generation: i64,
    /// The step by which a deletion of the key was sent last.
    pub(crate) left_by: Option<Nonce>,
    /// The outcome of the deletion.
    pub(crate) ended: Option<EndOutcome>,
    /// The number of the last proclamation; locked while one is in flight.
    pub(crate) proclaimed: Arc<tokio::sync::Mutex<u64>>,
}

impl Place {
    /// Describes a request that has just got its key.
    pub(crate) fn new(nonce: Nonce, (kind, name): (Kind, Name), mode: Mode, number: u32, key: &str) -> Self {
        Self {
            nonce,
            kind,
            name,
            mode,
            number,
            key: key.into(),
            created: 0,
            token: None,
            is_noted: false,
            blocker: None,
            count: 0,
            generation: 0,
            left_by: None,
            ended: None,
            proclaimed: Arc::default(),
        }
    }
}

#[derive(Default)]
pub(crate) struct Places(Mutex<State>);

#[derive(Default)]
struct State {
    places: HashMap<u64, Place>,
    /// The numbers in use.
    numbers: HashMap<(Kind, Name), BTreeSet<u32>>,
    /// The requests that ended and are not older than every open one: a late copy of their first step must do nothing.
    ended: BTreeSet<u64>,
}

/// Returns the error of a step that arrives after its request has ended, or whose key is gone.
pub(crate) fn no_place() -> Error {
    let message = "the request has no place any more: join again";
    Error::new(ErrorKind::Conflict, message)
}

impl Places {
    /// Returns the place of `request`, or reserves one whose key `key` makes of a number. The answer says whether the request had it
    /// before.
    ///
    /// # Errors
    ///
    /// `Conflict` if the request has ended.
    pub(crate) fn reserve(
        &self,
        request: &Request,
        mode: Mode,
        key: impl FnOnce(u32) -> String,
    ) -> Result<(Place, bool)> {
        let mut state = self.0.lock();
        let nonce = request.nonce();
        if let Some(place) = state.places.get(&nonce.get()) {
            return match place.left_by {
                Some(_) => Err(no_place()),
                None => Ok((place.clone(), true)),
            };
        }
        if nonce < request.oldest_open() || state.ended.contains(&nonce.get()) {
            return Err(no_place());
        }
        let object = (request.kind(), request.name().clone());
        let numbers = state.numbers.entry(object.clone()).or_default();
        let number = (0..).find(|number| !numbers.contains(number)).unwrap_or(0);
        numbers.insert(number);
        let place = Place::new(nonce, object, mode, number, &key(number));
        state.places.insert(nonce.get(), place.clone());
        Ok((place, false))
    }

    /// Adds the place of a key that the store has and this process did not know, and returns it. Returns the place of this process
    /// if it has joined meanwhile, and `None` if the key must have been deleted since it was read.
    pub(crate) fn adopt(&self, place: Place) -> Option<Place> {
        let mut state = self.0.lock();
        let nonce = place.nonce.get();
        if let Some(known) = state.places.get(&nonce) {
            return Some(known.clone());
        }
        let numbers = state.numbers.entry((place.kind, place.name.clone())).or_default();
        let is_free = numbers.insert(place.number);
        if !is_free || state.ended.contains(&nonce) {
            if is_free {
                remove_number(&mut state, &place);
            }
            return None;
        }
        state.places.insert(nonce, place.clone());
        Some(place)
    }

    pub(crate) fn get(&self, nonce: Nonce) -> Option<Place> {
        self.0.lock().places.get(&nonce.get()).cloned()
    }

    /// Returns the place that `request` holds under `token`.
    pub(crate) fn holding(&self, nonce: Nonce, token: FencingToken) -> Option<Place> {
        self.get(nonce)
            .filter(|place| place.token == Some(token) && place.left_by.is_none())
    }

    /// Returns all places whose key is in the store, as far as this process knows.
    pub(crate) fn all(&self) -> Vec<Place> {
        let state = self.0.lock();
        let is_there = |place: &&Place| place.created != 0 && place.ended.is_none();
        state.places.values().filter(is_there).cloned().collect()
    }

    /// Changes a place, if it is still there.
    pub(crate) fn update(&self, nonce: Nonce, change: impl FnOnce(&mut Place)) {
        if let Some(place) = self.0.lock().places.get_mut(&nonce.get()) {
            change(place);
        }
    }

    /// Frees the place of a request that has ended, and refuses its late copies.
    pub(crate) fn end(&self, request: &Request) {
        let mut state = self.0.lock();
        let oldest = request.oldest_open().get();
        state.ended = state.ended.split_off(&oldest);
        if request.nonce().get() >= oldest {
            state.ended.insert(request.nonce().get());
        }
        let Some(place) = state.places.remove(&request.nonce().get()) else {
            return;
        };
        remove_number(&mut state, &place);
    }
}

fn remove_number(state: &mut State, place: &Place) {
    let object = (place.kind, place.name.clone());
    if let Some(numbers) = state.numbers.get_mut(&object) {
        numbers.remove(&place.number);
        if numbers.is_empty() {
            state.numbers.remove(&object);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    /// The requests of a session for one lock.
    #[derive(Default)]
    struct Requests(Arc<AtomicU64>);

    fn lock() -> Name {
        "a".parse().expect("a name")
    }

    impl Requests {
        fn number(&self, nonce: u64) -> Request {
            Request::new(Nonce::new(nonce), Kind::Lock, lock(), Arc::clone(&self.0))
        }
    }

    fn reserve(places: &Places, request: &Request) -> Result<u32> {
        let reserved = places.reserve(request, Mode::Exclusive, |number| format!("key-{number}"));
        reserved.map(|(place, _)| place.number)
    }

    #[test]
    fn number_of_a_place_is_used_again_when_its_request_has_ended() {
        let (places, requests) = (Places::default(), Requests::default());
        let [first, second, third] = [1, 2, 3].map(|nonce| requests.number(nonce));
        assert_eq!(reserve(&places, &first).ok(), Some(0));
        assert_eq!(reserve(&places, &second).ok(), Some(1));
        assert_eq!(reserve(&places, &first).ok(), Some(0), "repeated");
        places.end(&first);
        assert_eq!(reserve(&places, &third).ok(), Some(0));
    }

    #[test]
    fn late_copy_of_a_request_that_has_ended_gets_no_place() {
        let (places, requests) = (Places::default(), Requests::default());
        let [first, second] = [1, 2].map(|nonce| requests.number(nonce));
        reserve(&places, &first).expect("a place");
        places.end(&first);
        // Withdrawn before its join.
        places.end(&second);
        let refused = |request| reserve(&places, request).map_err(|error| error.kind());
        assert_eq!(refused(&first), Err(ErrorKind::Conflict));
        assert_eq!(refused(&second), Err(ErrorKind::Conflict));
        // Forgotten, and still refused.
        requests.0.store(5, Ordering::SeqCst);
        places.end(&requests.number(5));
        assert_eq!(places.0.lock().ended, BTreeSet::from([5]));
        assert_eq!(refused(&first), Err(ErrorKind::Conflict));
    }

    #[test]
    fn key_that_was_deleted_since_it_was_read_is_not_adopted() {
        let (places, requests) = (Places::default(), Requests::default());
        let found = |nonce| Place {
            created: 7,
            ..Place::new(Nonce::new(nonce), (Kind::Lock, lock()), Mode::Exclusive, 0, "key-0")
        };
        reserve(&places, &requests.number(2)).expect("a place");
        assert!(places.adopt(found(1)).is_none(), "another request has its number");
        assert_eq!(places.adopt(found(2)).map(|place| place.created), Some(0), "its own");
        places.end(&requests.number(2));
        assert!(places.adopt(found(2)).is_none(), "it has ended");
        assert!(places.adopt(found(3)).is_some());
        assert_eq!(reserve(&places, &requests.number(4)).ok(), Some(1));
    }
}
