//! Each test: a scenario that holds in every interleaving that is tried, and the planted faults
//! that it finds within as many.

mod cores;
mod sessions;
mod store;

/// A scenario, how many interleavings of each kind are tried, and the faults it has to find.
macro_rules! explored {
    ($($scenario:ident in $rounds:literal, $($fault:literal by $text:literal),+ $(,)?;)*) => {$(
        #[test]
        fn $scenario() {
            crate::exploring::holds($rounds, super::$scenario);
            $(crate::exploring::finds($fault, $text, $rounds, super::$scenario);)+
        }
    )*};
}
pub(crate) use explored;

include!("../planted.rs");

/// A fault that no scenario looks for would prove nothing.
#[test]
fn every_fault_is_looked_for() {
    let looked_for = concat!(
        include_str!("scenarios/cores.rs"),
        include_str!("scenarios/sessions.rs")
    );
    for planted in PLANTED {
        let named = format!("{:?} by ", planted.name);
        assert!(looked_for.contains(&named), "{}", planted.name);
    }
}
