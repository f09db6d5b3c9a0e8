//! etcd: one member.
//!
//! The program is `etcd` (3.4 or later) from `PATH`, or the one that `TENURE_ETCD_SERVER` names; the operator's is `etcdctl`, or
//! the one that `TENURE_ETCDCTL` names.

mod admin;
mod options;
mod server;
mod shared;

pub use admin::EtcdAdmin;
pub use options::EtcdOptions;
pub use server::EtcdServer;
pub(crate) use shared::ETCD_VARIABLE;
pub use shared::{SharedEtcd, shared_etcd};
