//! Scenarios of the registry for `extra/interleavings`, and the faults that they have to find.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use shuttle::future::{block_on, spawn};

use super::{Entry, HeldToken, RequestRegistry, Stage, Unclaimed};
use crate::backend::{Entry as Listed, EntryState, Grant, Mode, Nonce, Request};
use crate::error::{LossReason, Result};
use crate::name::{Kind, Name};
use crate::runtime::signal::Signal;
use crate::runtime::slots::Slots;
use crate::sync::{Mutex, fault};
use crate::token::FencingToken;

/// One scenario.
#[derive(Clone, Copy)]
pub struct Scenario {
    /// The part, and the invariant.
    pub name: &'static str,
    /// Runs it once, under a scheduler of shuttle.
    pub run: fn(),
    /// The planted faults that it finds.
    pub faults: &'static [&'static str],
}

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "registry: a loss that crosses with the grant reaches the guard",
        run: loss_crosses_with_the_grant,
        faults: &["the loss is read before the lock is taken"],
    },
    Scenario {
        name: "registry: one of two reclaims succeeds, and sees the loss",
        run: one_reclaim_succeeds,
        faults: &["an unclaimed holding is looked at, then taken"],
    },
    Scenario {
        name: "registry: the capacity is never exceeded, and a freed place wakes those that wait for room",
        run: capacity_is_kept,
        faults: &["room is looked at, then taken", "one notification is lost"],
    },
    Scenario {
        name: "slots: no slot is given twice at the same time, and each comes back",
        run: slots_differ,
        faults: &["there are more permits than slots"],
    },
    Scenario {
        name: "registry: `quiet`, `ended` and `until_free` return",
        run: quiet_and_ended_return,
        faults: &["a value is looked at, then awaited"],
    },
    Scenario {
        name: "registry: a comparison finds no fault with what ends or begins meanwhile",
        run: comparison_finds_no_fault,
        faults: &[
            "a comparison forgets what ended meanwhile",
            "a grant that crosses counts as older",
        ],
    },
    Scenario {
        name: "registry: the lowest nonce in use never passes a request that is open",
        run: oldest_nonce_is_exact,
        faults: &["the lowest nonce goes back"],
    },
];

fn registry(capacity: usize) -> Arc<RequestRegistry> {
    Arc::new(RequestRegistry::new(Nonce::new(1), capacity))
}

fn name() -> Name {
    Name::new("a").expect("a name")
}

fn grant(token: u64) -> Grant {
    Grant::new(FencingToken::new(token), "a")
}

async fn open(registry: &RequestRegistry) -> Request {
    registry.register(Kind::Lock, &name()).await.expect("room").0
}

fn settled(registry: &RequestRegistry) {
    let state = registry.state.lock();
    assert_eq!(state.departing, 0, "departures that are counted and not there");
    let sizes = state.entries.values().map(|entry| entry.weight().size);
    assert_eq!(state.size, sizes.sum::<usize>(), "room that is counted and not taken");
    drop(state);
}

fn loss_crosses_with_the_grant() {
    let registry = registry(1);
    let nonce = block_on(open(&registry)).nonce();
    let losing = spawn({
        let registry = Arc::clone(&registry);
        async move { registry.lose(nonce, LossReason::Revoked) }
    });
    if fault::is("the loss is read before the lock is taken") {
        let lost = registry.state.lock().entries[&nonce].lost;
        registry.state.lock().change(nonce, |entry| {
            entry.lost = lost;
            true
        });
    }
    let signals = registry.hold(nonce, &[grant(1), grant(2)]);
    block_on(losing).expect("no abort");
    for signal in signals {
        assert_eq!(
            signal.get(),
            Some(LossReason::Revoked),
            "the guard does not see the loss"
        );
    }
}

fn one_reclaim_succeeds() {
    let registry = registry(10);
    let listed = Listed::new(Nonce::new(5), Kind::Lock, name(), EntryState::Granted(vec![grant(7)]));
    assert!(registry.resume(vec![listed]).is_empty());
    let unclaimed = Unclaimed {
        kind: Kind::Lock,
        name: name(),
        mode: Mode::Exclusive,
        token: FencingToken::new(7),
    };
    let reclaiming = || {
        let (registry, unclaimed) = (Arc::clone(&registry), unclaimed.clone());
        spawn(async move {
            if fault::is("an unclaimed holding is looked at, then taken") {
                let nonce = registry.state.lock().unclaimed.get(&unclaimed).copied()?;
                registry.state.lock().unclaimed.insert(unclaimed.clone(), nonce);
            }
            registry.reclaim(&unclaimed)
        })
    };
    let reclaiming = [reclaiming(), reclaiming()];
    registry.lose(Nonce::new(5), LossReason::Revoked);
    let reclaimed: Vec<_> = reclaiming
        .into_iter()
        .filter_map(|task| block_on(task).expect("no abort"))
        .collect();
    assert_eq!(reclaimed.len(), 1, "reclaimed {} times", reclaimed.len());
    let loss = block_on(reclaimed[0].2.wait());
    assert_eq!(loss, LossReason::Revoked);
}

async fn open_where_there_is_room(registry: &RequestRegistry) -> Result<Request> {
    if fault::is("room is looked at, then taken") && registry.state.lock().size < registry.capacity {
        let mut state = registry.state.lock();
        let nonce = state.take_nonce();
        state.insert(nonce, Entry::new(Kind::Lock, Stage::Open));
        return Ok(state.request(nonce, Kind::Lock, &name()));
    }
    registry.register(Kind::Lock, &name()).await.map(|(request, _)| request)
}

fn capacity_is_kept() {
    let registry = registry(2);
    let full = [block_on(open(&registry)).nonce(), block_on(open(&registry)).nonce()];
    for nonce in full {
        registry.begin_end(nonce, None);
    }
    let openers: Vec<_> = (0..3)
        .map(|_| {
            let registry = Arc::clone(&registry);
            spawn(async move {
                // Refused at once while no entry is departing.
                if let Ok(request) = open_where_there_is_room(&registry).await {
                    let size = registry.state.lock().size;
                    assert!(size <= registry.capacity, "{size} entries");
                    registry.begin_end(request.nonce(), None);
                    registry.confirm_end(request.nonce(), None);
                }
            })
        })
        .collect();
    for nonce in full {
        registry.confirm_end(nonce, None);
    }
    for opener in openers {
        block_on(opener).expect("no abort");
    }
    settled(&registry);
}

fn slots_differ() {
    let (registry, slots) = (registry(1), Slots::of_steps());
    // All but two.
    let others: Vec<_> = (2..64).map(|_| block_on(slots.marker(&registry))).collect();
    let taken: BTreeSet<_> = others.iter().map(|lease| lease.marker().slot).collect();
    let taken = Arc::new(Mutex::new(taken));
    let tasks: Vec<_> = (0..3)
        .map(|_| {
            let (registry, slots, taken) = (Arc::clone(&registry), Arc::clone(&slots), Arc::clone(&taken));
            spawn(async move {
                let lease = slots.marker(&registry).await;
                let slot = lease.marker().slot;
                assert!(taken.lock().insert(slot), "{slot:?} was given twice");
                taken.lock().remove(&slot);
                drop(lease);
            })
        })
        .collect();
    for task in tasks {
        block_on(task).expect("no abort");
    }
    let last = [(); 2].map(|()| block_on(slots.marker(&registry)));
    for lease in &last {
        assert!(taken.lock().insert(lease.marker().slot), "a slot is lost");
    }
}

fn quiet_and_ended_return() {
    let (registry, slots) = (registry(2), Slots::of_departures(0));
    let nonce = block_on(open(&registry)).nonce();
    let lease = block_on(slots.marker(&registry));
    registry.begin_end(nonce, None);
    let ended = spawn({
        let registry = Arc::clone(&registry);
        async move { registry.ended(nonce).await }
    });
    let confirming = spawn({
        let registry = Arc::clone(&registry);
        async move { registry.confirm_end(nonce, None) }
    });
    let stepping = spawn(async move { drop(lease) });
    block_on(registry.quiet());
    settled(&registry);
    block_on(slots.until_free());
    for task in [confirming, stepping, ended] {
        block_on(task).expect("no abort");
    }
}

fn comparison_finds_no_fault() {
    let registry = registry(10);
    let old = block_on(open(&registry)).nonce();
    registry.hold(old, &[grant(1)]);
    let entry = |nonce, token| Listed::new(nonce, Kind::Lock, name(), EntryState::Granted(vec![grant(token)]));
    let store = Arc::new(Mutex::new(vec![entry(old, 1)]));
    let releasing = spawn({
        let (registry, store) = (Arc::clone(&registry), Arc::clone(&store));
        async move {
            registry.begin_end(old, Some(FencingToken::new(1)));
            store.lock().retain(|entry| entry.nonce != old);
            registry.confirm_end(old, Some(FencingToken::new(1)));
        }
    });
    let acquiring = spawn({
        let (registry, store) = (Arc::clone(&registry), Arc::clone(&store));
        async move {
            let new = open(&registry).await.nonce();
            store.lock().push(entry(new, 2));
            let signals = registry.hold(new, &[grant(2)]);
            if fault::is("a grant that crosses counts as older")
                && let Some(entry) = registry.state.lock().entries.get_mut(&new)
                && let Stage::Held { comparisons, .. } = &mut entry.stage
            {
                *comparisons = 0;
            }
            (new, signals)
        }
    });
    let losing = spawn({
        let registry = Arc::clone(&registry);
        async move { registry.lose(old, LossReason::Revoked) }
    });
    for _ in 0..2 {
        registry.begin_comparison();
        if fault::is("a comparison forgets what ended meanwhile") {
            registry.state.lock().removed = None;
        }
        let listed = store.lock().clone();
        let orphans = registry.end_comparison(Some(listed));
        assert!(orphans.is_empty(), "an entry that ended meanwhile counts as an orphan");
    }
    let (new, signals) = block_on(acquiring).expect("no abort");
    assert!(
        signals.iter().all(|signal: &Signal<_>| signal.get().is_none()),
        "a new holding counts as lost"
    );
    block_on(releasing).expect("no abort");
    block_on(losing).expect("no abort");
    let state = registry.state.lock();
    assert!(state.entries.keys().eq([&new]));
    let held = |held: &HeldToken| held.grant.token.get() == 2 && !held.departing;
    assert!(matches!(&state.entries[&new].stage, Stage::Held { tokens, .. } if tokens.iter().all(held)));
    drop(state);
    settled(&registry);
}

fn oldest_nonce_is_exact() {
    let registry = registry(10);
    let first = [block_on(open(&registry)).nonce(), block_on(open(&registry)).nonce()];
    let confirm = |registry: &RequestRegistry, nonce| {
        registry.confirm_end(nonce, None);
        if fault::is("the lowest nonce goes back") {
            let oldest = registry.state.lock().oldest_open();
            registry.state.lock().oldest_open.store(oldest, Ordering::Release);
        }
    };
    let tasks = first.map(|nonce| {
        let registry = Arc::clone(&registry);
        spawn(async move { confirm(&registry, nonce) })
    });
    let request = block_on(open(&registry));
    assert!(request.oldest_open() <= request.nonce());
    for task in tasks {
        block_on(task).expect("no abort");
        assert!(request.oldest_open() <= request.nonce());
    }
    assert_eq!(request.oldest_open(), request.nonce());
}
