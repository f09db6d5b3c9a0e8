//! Keys: all of a namespace's begin with its root.
//!
//! ```text
//! tenure/2/<namespace>/
//!     layout                                the version, `2`
//!     token_floor                           see `tokens.rs`
//!     sessions/<lease>                      leased; its revision is the fence of the session
//!     sessions/<lease>/<slot>               leased; the outcome of a step that leaves no entry
//!     lock/<name>/<lease>-<place>           leased
//!     election/<name>/<lease>-<place>       leased; the candidate's value
//!     rw_lock/<name>/read/<lease>-<place>   leased; writers are under `write/`
//!     double_barrier/<name>/<lease>-<place> leased; see `barrier.rs`
//!     barrier/<name>, data/<name>           keys of transactional memory
//! ```
//!
//! The wait queues are those of Go's `concurrency` package: the lowest create revision holds. `<lease>` is in hexadecimal digits.
//! `<place>` is a small number that the session uses again: etcd keeps a key that was deleted until it compacts, and a range
//! visits it, so a lock with a new key for each holding would become slow.

use tenure_core::name::{escape, object_at};
use tenure_core::{Kind, Name, Namespace};

/// The version of the layout.
pub(crate) const LAYOUT: &str = "2";

/// The keys of one namespace.
#[derive(Clone, Debug)]
pub(crate) struct Keys {
    root: String,
    layout_1: String,
}

impl Keys {
    pub(crate) fn new(namespace: &Namespace) -> Self {
        let namespace = escape(namespace.as_str());
        Self {
            root: format!("tenure/{LAYOUT}/{namespace}/"),
            layout_1: format!("tenure/1/{namespace}/layout"),
        }
    }

    /// Returns how every key of the namespace begins.
    pub(crate) fn root(&self) -> &str {
        &self.root
    }

    /// Returns the key with the version of the layout.
    pub(crate) fn layout(&self) -> String {
        format!("{}layout", self.root)
    }

    /// Returns the key with the version of a namespace of layout 1.
    pub(crate) fn layout_1(&self) -> &str {
        &self.layout_1
    }

    /// Returns the key with the token floors.
    pub(crate) fn token_floor(&self) -> String {
        format!("{}token_floor", self.root)
    }

    /// Returns how the keys of all sessions begin.
    pub(crate) fn sessions(&self) -> String {
        format!("{}sessions/", self.root)
    }

    /// Returns the key of a session.
    pub(crate) fn session(&self, lease: i64) -> String {
        format!("{}sessions/{lease:x}", self.root)
    }

    /// Returns the key with the outcome of the last step in a slot.
    pub(crate) fn slot(&self, lease: i64, slot: u16) -> String {
        format!("{}sessions/{lease:x}/{slot}", self.root)
    }

    /// Returns the key of an object, without a trailing slash.
    pub(crate) fn object(&self, kind: Kind, name: &Name) -> String {
        format!("{}{kind}/{}", self.root, escape(name.as_str()))
    }

    /// Returns the object of a key: the inverse of [`object`](Self::object), whatever follows behind a slash.
    pub(crate) fn object_of(&self, key: &str) -> Option<(Kind, Name)> {
        object_at(key.strip_prefix(&*self.root)?)
    }
}

/// Returns the end of the range of all keys that begin with `prefix`.
pub(crate) fn end_of(prefix: &str) -> Vec<u8> {
    // Prefixes end with `/`, and no key has a byte 0xFF behind one: names are UTF-8.
    let mut end = prefix.as_bytes().to_vec();
    end.push(0xff);
    end
}
