//! Scenarios of the runtime that `extra/interleavings` explores under shuttle. Compiled only for it.
//!
//! A scenario is one execution: it asserts its invariant, and a lost wake-up shows as a deadlock. Each is seen to be able to
//! fail: it names the planted faults that an exploration has to find.

use std::sync::Arc;

use shuttle::future::{block_on, spawn};

use crate::runtime::registry::interleavings as registry;
use crate::runtime::signal::Signal;

mod sessions;

pub use crate::runtime::registry::interleavings::Scenario;

const SIGNALS: &[Scenario] = &[
    Scenario {
        name: "signal: a value that is set wakes all waiters",
        run: signal_wakes_all_waiters,
        faults: &["a value is looked at, then awaited"],
    },
    Scenario {
        name: "signal: one of two values is first, and all see it",
        run: one_value_is_first,
        faults: &["a value is looked at, then set"],
    },
];

/// Returns every scenario.
pub fn scenarios() -> Vec<Scenario> {
    [SIGNALS, registry::SCENARIOS, sessions::SCENARIOS].concat()
}

/// Plants a fault for the explorations that follow; an empty name removes it.
pub fn plant(fault: &'static str) {
    crate::sync::fault::plant(fault);
}

fn signal_wakes_all_waiters() {
    let signal = Signal::new();
    let waiters = [(); 2].map(|()| spawn(signal.wait()));
    assert!(signal.set(1));
    for waiter in waiters {
        assert_eq!(block_on(waiter).expect("no abort"), 1);
    }
}

fn one_value_is_first() {
    let signal = Signal::new();
    let waiter = spawn(signal.wait());
    let setter = spawn({
        let signal = Arc::new(signal.clone());
        async move { signal.set(1) }
    });
    let first = [signal.set(0), block_on(setter).expect("no abort")];
    assert_ne!(first[0], first[1], "first: {first:?}");
    let value = usize::from(first[1]);
    assert_eq!(block_on(waiter).expect("no abort"), value);
    assert_eq!(signal.get(), Some(value));
}
