//! Keys and channels: all of a namespace's begin with its root.

use tenure_core::name::{escape, object_at};
use tenure_core::{Kind, Name, Namespace};

/// The version of the layout. It is behind the hash tag, so that a later layout can look at this one.
pub(crate) const LAYOUT: u64 = 2;

/// How the path of a lock begins whose name is the key of other programs too.
const INTEROP: &str = "interop";

/// Returns the root of a namespace's keys. The braces are Redis Cluster's hash tag: all keys are in one slot.
pub(crate) fn root(namespace: &Namespace) -> String {
    format!("{}{LAYOUT}/", tag(namespace))
}

/// Returns how every key of a namespace begins, in every layout.
pub(crate) fn tag(namespace: &Namespace) -> String {
    format!("{{tenure/{}}}/", escape(namespace.as_str()))
}

/// Returns the path of an object, behind the root. With `interop`, a lock has the verbatim name as a key beside its own.
pub(crate) fn path(kind: Kind, name: &Name, interop: bool) -> String {
    let kind = if interop && kind == Kind::Lock {
        INTEROP
    } else {
        kind.as_str()
    };
    format!("{kind}/{}", escape(name.as_str()))
}

/// Returns whether a name is the key of some namespace. A lock with that name as its key would take the place of what is there.
pub(crate) fn is_reserved(name: &Name) -> bool {
    let rest = name.as_str().strip_prefix("{tenure/");
    rest.is_some_and(|rest| rest.contains("}/"))
}

/// Returns the object of a path: the inverse of [`path`].
pub(crate) fn object(path: &str) -> Option<(Kind, Name)> {
    match path.strip_prefix(INTEROP) {
        Some(rest) => object_at(&format!("{}{rest}", Kind::Lock)),
        None => object_at(path),
    }
}

/// Returns the channel on which a session learns what happens to its requests.
pub(crate) fn session_channel(root: &str, session: &str) -> String {
    format!("{root}session/{session}")
}

/// Returns the channel on which observers learn that an object has changed.
pub(crate) fn topic(root: &str, path: &str) -> String {
    format!("{root}topic/{path}")
}
