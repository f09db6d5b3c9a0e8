//! The rules of the backend API, one by one, on the embedded store under a paused clock. With the feature `planted`, each planted
//! defect has to be found by the rule that it breaks.
#![allow(clippy::unwrap_used, unreachable_pub)]

/// Declares rules: functions that get a store. Each becomes a test; the defects that it finds follow the colon.
macro_rules! rules {
    ($($rule:ident: [$($bug:ident),*];)*) => {
        mod tests {
            use crate::support::store;

            $(#[tokio::test(start_paused = true)]
            async fn $rule() {
                super::$rule(store()).await;
            })*
        }

        #[cfg(feature = "planted")]
        pub fn planted() -> Vec<(tenure_memory::Bug, &'static str, crate::support::Rule)> {
            vec![$($((
                tenure_memory::Bug::$bug,
                stringify!($rule),
                (|store| Box::pin($rule(store))) as crate::support::Rule,
            ),)*)*]
        }
    };
}

mod attack;
mod barriers;
mod elections;
mod ends;
mod handles;
mod histories;
mod locks;
#[cfg(feature = "planted")]
mod planted;
mod queues;
mod requests;
mod runners;
mod sessions;
mod stm;
mod support;
mod whole;
