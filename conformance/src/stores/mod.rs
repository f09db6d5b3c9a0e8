//! The stores of this house, ready to be put to the test.

#[cfg(feature = "etcd")]
mod etcd;
#[cfg(feature = "memory")]
mod memory;

#[cfg(feature = "etcd")]
pub use etcd::{EtcdHarness, EtcdSubject};
#[cfg(feature = "memory")]
pub use memory::{MemoryHarness, MemorySubject};
