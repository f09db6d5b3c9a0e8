//! The cases, one public function each, named for the rule that it attacks.
//!
//! A function attacks whatever the store promises; [`Case::run`] asks first, and judges.

pub mod barrier;
pub mod cancel;
pub mod election;
pub mod event;
pub mod floor;
pub mod limits;
pub mod lock;
pub mod names;
pub mod queue;
pub mod random;
pub mod random_queue;
pub mod restore;
pub mod rw_lock;
pub mod session;
pub mod stm;
pub mod store;

mod list;
mod mass_death;
pub(crate) mod promise;
pub(crate) mod tools;

pub use list::CASES;
pub(crate) use tools::{Process, Random, expiry_bound, guarantees, open_on};

#[cfg(doc)]
use crate::Case;
