//! The gate on the side of the resource.

use std::panic::{AssertUnwindSafe, catch_unwind};

use tenure_core::{FenceGate, FencingToken};

#[test]
fn gate_refuses_only_older_tokens() {
    let gate = FenceGate::default();
    for (token, admitted) in [(5, true), (5, true), (4, false), (9, true), (5, false), (9, true)] {
        assert_eq!(gate.admit(FencingToken::new(token)).is_ok(), admitted, "token {token}");
    }
    assert_eq!(gate.newest(), Some(FencingToken::new(9)));
}

#[test]
fn stored_token_is_respected_and_a_refused_write_does_not_run() {
    let gate = FenceGate::with_newest(0, FencingToken::new(7));
    let stale = gate.write(FencingToken::new(6), |value| *value = 6).unwrap_err();
    assert_eq!((stale.offered.get(), stale.newest.get()), (6, 7));
    assert_eq!(gate.read(|value| *value), 0);
    assert_eq!(
        gate.write(FencingToken::new(8), |value| std::mem::replace(value, 8)),
        Ok(0)
    );
    assert_eq!(gate.read(|value| *value), 8);
}

#[test]
fn panicking_writer_does_not_let_an_older_token_in() {
    let gate = FenceGate::new(0);
    let write = || gate.write(FencingToken::new(3), |_| panic!("on purpose"));
    assert!(catch_unwind(AssertUnwindSafe(write)).is_err());
    assert!(gate.write(FencingToken::new(2), |value| *value = 1).is_err());
    assert!(gate.write(FencingToken::new(3), |value| *value = 1).is_ok());
}
