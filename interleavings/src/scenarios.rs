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
