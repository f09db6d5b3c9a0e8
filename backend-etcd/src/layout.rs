//! Where things are in etcd.
//!
//! A lock is `<prefix>/<lease>`, as in Go's `concurrency` package: the lease in lower-case hex,
//! unpadded; the lowest create revision under `<prefix>/` holds the lock. A second ask of the
//! same session appends `-<nonce>`, which Go takes for any other waiter. Read-write locks stand in
//! one line likewise (see `sides.rs`); with interop below `<prefix>/read/` and `<prefix>/write/`, as
//! in Go's recipes.
//!
//! Queues have a layout of their own (see `queue/keys.rs`); with interop that of Go's recipes (see
//! `queue/interop.rs`).
//!
//! A barrier is one key, there while it is held. A double barrier has `waiters/<lease>` for each
//! participant, and `ready` from the moment when all have come until the last has left.

use tenure_core::Name;
use tenure_core::Namespace;
use tenure_core::backend::{Kind, LAYOUT_VERSION, escape, namespace_root, path};

#[derive(Clone, Debug)]
pub(crate) struct Layout {
    namespace: Namespace,
    root: String,
    interop: bool,
}

impl Layout {
    pub(crate) fn new(namespace: Namespace, interop: bool) -> Self {
        Self {
            root: namespace_root(&namespace),
            namespace,
            interop,
        }
    }

    /// What the waiting line of `name` stands under, with its slash.
    pub(crate) fn line(&self, kind: Kind, name: &Name) -> String {
        if self.interop {
            format!("{name}/")
        } else {
            path(&self.namespace, kind, name) + "/"
        }
    }

    /// Where `name` is, without a slash: a barrier's own key, or what a double barrier is under.
    pub(crate) fn place(&self, kind: Kind, name: &Name) -> String {
        if self.interop {
            name.to_string()
        } else {
            path(&self.namespace, kind, name)
        }
    }

    /// What all barriers begin with; in interop mode nothing tells them from other keys.
    pub(crate) fn barriers(&self) -> String {
        format!("{}/{}/", self.root, Kind::Barrier.as_str())
    }

    /// The key of transactional memory called `name`. As long as it is in the namespace's own
    /// part, no other kind's key can be equal to it.
    pub(crate) fn data(&self, name: &Name) -> String {
        if self.interop {
            name.to_string()
        } else {
            path(&self.namespace, Kind::Data, name)
        }
    }

    /// Where the commits of `lease` that use this slot leave their marker.
    pub(crate) fn marker(&self, lease: i64, slot: u32) -> String {
        format!("{}/markers/{lease:x}/{slot}", self.root)
    }

    /// What the markers of all commits begin with.
    pub(crate) fn commit_markers(&self) -> String {
        format!("{}/markers/", self.root)
    }

    /// What the queue `name` stands under, without a slash at its end.
    pub(crate) fn queue(&self, name: &Name) -> String {
        path(&self.namespace, Kind::Queue, name)
    }

    /// What is kept of queues that consumers need not hear of, without a slash at its end: the ids
    /// of items, and each producer's last batch.
    pub(crate) fn queue_records(&self, what: &str, name: &Name) -> String {
        format!("{}/queue_{what}/{}", self.root, escape(name.as_str()))
    }

    /// The key that says by which version of the layout this namespace is written.
    pub(crate) fn version_key(&self) -> String {
        format!("{}/layout", self.root)
    }

    /// The key of the token floor (see `floor.rs`).
    pub(crate) fn token_floor(&self) -> String {
        format!("{}/token_floor", self.root)
    }

    pub(crate) fn version() -> String {
        LAYOUT_VERSION.to_string()
    }

    /// Exists once the ask `nonce` of `lease` was withdrawn: its late request must find it.
    pub(crate) fn withdrawn(&self, lease: i64, nonce: u64) -> String {
        format!("{}{lease:x}-{nonce:x}", self.markers())
    }

    /// Says, by its nonce, which ask has taken up what the ask `nonce` of `lease` was granted.
    pub(crate) fn taken_up(&self, lease: i64, nonce: u64) -> String {
        self.withdrawn(lease, nonce) + "/taken"
    }

    /// What all of those begin with.
    pub(crate) fn markers(&self) -> String {
        format!("{}/withdrawn/", self.root)
    }

    /// Exists while `lease` is detached and not resumed.
    pub(crate) fn detached(&self, lease: i64) -> String {
        format!("{}/detached/{lease:x}", self.root)
    }
}
