//! The cores of waiting, by themselves.

use crate::exploring::sync::atomic::{AtomicUsize, Ordering};
use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::FutureExt;
use shuttle::future::block_on;
use shuttle::thread;

use crate::ask::{Ask, Book};
use crate::backend::{Bell, Kind, News, Slots, Topic, Waits};
use crate::exploring::sync::Mutex;
use crate::ledger::{Ledger, Picture, Places, Seen};
use crate::signal::Signal;
use crate::{FenceGate, FencingToken, Name};

/// Whoever waits for a signal wakes up, whenever it is set; of those who set it one is first, and
/// what it said is what all hear.
fn a_signal_is_set_once_and_heard_by_all() {
    let signal = Signal::<u8>::new();
    let setting = [1, 2].map(|value| {
        let signal = signal.clone();
        thread::spawn(move || signal.set(value).then_some(value))
    });
    let waiting = signal.clone();
    let waiting = thread::spawn(move || {
        let heard = block_on(waiting.wait());
        assert_eq!(waiting.get(), Some(heard), "set is set");
        heard
    });
    let first = setting.map(|thread| thread.join().unwrap());
    let first: Vec<u8> = first.into_iter().flatten().collect();
    assert_eq!(first, [waiting.join().unwrap()], "one is first");
}

/// News are heard, by whoever waits at the time and by whoever looks later; the latest counts; and
/// nothing stays behind.
fn news_are_heard() {
    let waits = Arc::new(Waits::default());
    let waiting = waits.enter(1);
    let telling = Arc::clone(&waits);
    let telling = thread::spawn(move || {
        telling.missed();
        telling.message("1 7");
        // Of somebody else.
        telling.message("2 8");
    });
    let granted = News::Granted(FencingToken::new(7));
    let mut heard = Vec::new();
    while heard.last() != Some(&granted) {
        // What is cancelled takes no news with it.
        let _ = waiting.news().now_or_never().map(|news| heard.push(news));
        if heard.last() != Some(&granted) {
            heard.push(block_on(waiting.news()));
        }
    }
    telling.join().unwrap();
    assert!(heard.len() <= 2, "one word, one piece of news: {heard:?}");
    assert_eq!(waiting.news().now_or_never(), None);
    drop(waiting);
    assert_eq!(waits.len(), 0, "it stays behind");
}

/// An ask that waits once more is heard, although its first wait ends at the same time elsewhere.
fn a_wait_that_ends_does_not_end_the_next() {
    let waits = Arc::new(Waits::default());
    let first = waits.enter(1);
    let ending = thread::spawn(move || drop(first));
    let second = waits.enter(1);
    let telling = Arc::clone(&waits);
    let telling = thread::spawn(move || telling.tell(1, News::Look));
    assert_eq!(block_on(second.news()), News::Look);
    ending.join().unwrap();
    telling.join().unwrap();
    drop(second);
    assert_eq!(waits.len(), 0, "it stays behind");
}

/// Whoever heard the bell sees all that was done before it was rung, and no ring is missed.
fn a_bell_is_heard() {
    let (bell, version) = (Arc::<Bell>::default(), Arc::new(AtomicUsize::new(0)));
    let topic = Topic::new(Arc::clone(&bell), ());
    let ringing = [(); 2].map(|()| {
        let (bell, version) = (Arc::clone(&bell), Arc::clone(&version));
        thread::spawn(move || {
            version.fetch_add(1, Ordering::SeqCst);
            bell.ring();
        })
    });
    while version.load(Ordering::SeqCst) < 2 {
        block_on(topic.changed());
    }
    ringing
        .into_iter()
        .for_each(|thread| thread.join().unwrap());
}

/// No two commits have one slot at the same time, there are never more than so many, each knows
/// the revision that the one before left, and nobody waits for ever.
fn slots_are_never_shared() {
    let slots = Arc::new(Slots::new());
    let used = Arc::new(Mutex::new(BTreeMap::<u32, (bool, u64)>::new()));
    let committing = [1_u64, 2, 3].map(|nonce| {
        let (slots, used) = (Arc::clone(&slots), Arc::clone(&used));
        thread::spawn(move || {
            let slot = block_on(slots.take(nonce));
            assert!(slot.number < 2, "more than there may be");
            {
                let mut used = used.lock().unwrap();
                let (taken, last) = used.entry(slot.number).or_default();
                assert!(!*taken, "one slot for two");
                assert_eq!(*last, slot.last, "what another left is not known");
                (*taken, *last) = (true, nonce);
            }
            assert_eq!(slots.of(nonce), Some(slot));
            used.lock().unwrap().get_mut(&slot.number).unwrap().0 = false;
            // Who commits and who takes back may both say so.
            let twice = Arc::clone(&slots);
            let twice = thread::spawn(move || twice.settle(nonce, nonce));
            slots.settle(nonce, nonce);
            twice.join().unwrap();
        })
    });
    committing
        .into_iter()
        .for_each(|thread| thread.join().unwrap());
}

fn keys(keys: &[(&str, bool)]) -> BTreeMap<Name, bool> {
    let named = |(key, alone): &(&str, bool)| (Name::new(key).unwrap(), *alone);
    keys.iter().map(named).collect()
}

/// Whoever writes stands alone at a key, whoever stands there later finds what was left, and when
/// all have gone nothing is kept.
fn places_are_taken_in_turn() {
    let ledger = Arc::<Ledger>::default();
    let inside = Arc::new(AtomicUsize::new(0));
    let wanted = [
        [("a", true), ("b", false)],
        [("b", true), ("a", true)],
        [("a", true), ("b", true)],
    ];
    let taking = wanted.map(|wanted| {
        let (ledger, inside) = (Arc::clone(&ledger), Arc::clone(&inside));
        thread::spawn(move || {
            let places = block_on(Places::take(&ledger, keys(&wanted)));
            assert!(places.cover(&keys(&wanted)), "no time has passed");
            assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "not alone");
            let before = places.newest(0).map_or(0, |picture| picture.revision);
            let seen = Seen {
                value: None,
                modified: before + 1,
            };
            let seen = BTreeMap::from([(Name::new("a").unwrap(), seen)]);
            ledger.leave(&Arc::new(Picture {
                revision: before + 1,
                seen,
            }));
            assert!(
                places.newest(before).is_some(),
                "what was left is not there"
            );
            inside.fetch_sub(1, Ordering::SeqCst);
        })
    });
    taking.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(ledger.standing(), 0, "queues stay behind");
}

/// What one writer was admitted with is never followed by a write with an older token.
fn a_gate_lets_no_older_token_pass() {
    let gate = Arc::new(FenceGate::new(Vec::new()));
    let writing = [1, 2, 3].map(|token| {
        let gate = Arc::clone(&gate);
        thread::spawn(move || {
            let token = FencingToken::new(token);
            let written = gate.write(token, |tokens| tokens.push(token)).is_ok();
            assert!(gate.newest() >= Some(token), "it forgot a newer one");
            written
        })
    });
    let written = writing.map(|thread| thread.join().unwrap());
    let tokens = gate.read(Vec::clone);
    assert!(tokens.is_sorted(), "an older one passed: {tokens:?}");
    assert_eq!(tokens.len(), written.into_iter().filter(|w| *w).count());
}

/// No more asks than there is room for, and the room comes back.
fn there_is_no_more_room_than_there_is() {
    let book = Arc::<Book>::default();
    let name = Name::new("a").unwrap();
    let inside = Arc::new(AtomicUsize::new(0));
    let asking = [(); 3].map(|()| {
        let (book, name, inside) = (Arc::clone(&book), name.clone(), Arc::clone(&inside));
        thread::spawn(move || {
            if let Ok(Some(ask)) = Ask::new(Kind::Lock, &name, &book, 2) {
                assert!(inside.fetch_add(1, Ordering::SeqCst) < 2, "too many");
                assert!(book.places() <= 2, "too many");
                inside.fetch_sub(1, Ordering::SeqCst);
                drop(ask);
            }
        })
    });
    asking.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(book.places(), 0);
}

/// One token, one ask; and when that is gone, another.
fn one_ask_claims_a_token() {
    let book = Arc::<Book>::default();
    let name = Name::new("a").unwrap();
    let inside = Arc::new(AtomicUsize::new(0));
    let claiming = [(); 3].map(|()| {
        let (book, name, inside) = (Arc::clone(&book), name.clone(), Arc::clone(&inside));
        thread::spawn(move || {
            let ask = Ask::new(Kind::Lock, &name, &book, 9).unwrap().unwrap();
            if ask.claim(FencingToken::new(7)) {
                assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two have it");
                assert!(ask.claim(FencingToken::new(7)), "its own");
                inside.fetch_sub(1, Ordering::SeqCst);
            }
        })
    });
    claiming
        .into_iter()
        .for_each(|thread| thread.join().unwrap());
    let ask = Ask::new(Kind::Lock, &name, &book, 9).unwrap().unwrap();
    assert!(ask.claim(FencingToken::new(7)), "it is free again");
}

mod tests {
    super::super::explored! {
        a_signal_is_set_once_and_heard_by_all in 1_000,
            "signal: looks, then registers" by "deadlock",
            "signal: notifies, then stores" by "deadlock",
            "signal: two are first" by "one is first";
        news_are_heard in 1_000,
            "waits: notifies, then stores" by "deadlock",
            "waits: wakes only who waits already" by "deadlock",
            "waits: stays behind" by "stays behind";
        a_wait_that_ends_does_not_end_the_next in 1_000,
            "waits: the end of one wait is that of the next" by "deadlock",
            "waits: looks for itself, then removes" by "deadlock";
        a_bell_is_heard in 1_000,
            "bell: notifies, then stores" by "deadlock";
        slots_are_never_shared in 1_000,
            "slots: looks, then takes" by "one slot for two",
            "slots: settled twice" by "what another left is not known";
        places_are_taken_in_turn in 1_000,
            "ledger: looks whether it is the last, then removes" by "what was left is not there",
            "ledger: leaves while it has a turn" by "what was left is not there";
        a_gate_lets_no_older_token_pass in 1_000,
            "gate: checks, then writes" by "an older one passed";
        there_is_no_more_room_than_there_is in 1_000,
            "ask: looks for room, then takes it" by "too many";
        one_ask_claims_a_token in 1_000,
            "ask: two claim one token" by "two have it";
    }
}
