//! Where things stand: every key of a namespace, and every channel, begins with its root.

use tenure_core::backend::{Ask, Kind, escape, namespace_root};
use tenure_core::{Name, Namespace};

/// `{tenure/1/<namespace>}/`. The braces are Redis Cluster's hash tag: all keys of a namespace are
/// in one slot, so that one script can work on all of them.
pub(crate) fn root(namespace: &Namespace) -> String {
    format!("{{{}}}/", namespace_root(namespace))
}

/// The place of an object below the root: `lock/orders`.
pub(crate) fn path(kind: Kind, name: &Name) -> String {
    format!("{}/{}", kind.as_str(), escape(name.as_str()))
}

/// The path of what is asked for.
pub(crate) fn path_of(ask: &Ask) -> String {
    path(ask.kind(), ask.name())
}

/// A nonce as it stands in keys and values.
pub(crate) fn hex(nonce: u64) -> String {
    format!("{nonce:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_slot_whatever_the_namespace() {
        for namespace in ["orders", "a}b", "{", "}", "{}", "a{b}c"] {
            let root = root(&Namespace::new(namespace).unwrap());
            // The tag is what stands between the first brace and the first closing one after it.
            let tag = root.strip_prefix('{').unwrap().split('}').next().unwrap();
            assert!(tag.starts_with("tenure/1/"), "{root}");
        }
    }
}
