//! Where things stand: every key of a namespace, and every channel, begins with its root.

use tenure_core::backend::{Ask, Kind, escape, namespace_root};
use tenure_core::{Error, ErrorKind, Name, Namespace, Result};

/// `{tenure/1/<namespace>}/`. The braces are Redis Cluster's hash tag: all keys of a namespace are
/// in one slot, so that one script can work on all of them.
pub(crate) fn root(namespace: &Namespace) -> String {
    format!("{{{}}}/", namespace_root(namespace))
}

/// The place of an object below the root: `lock/orders`.
pub(crate) fn path(kind: Kind, name: &Name) -> String {
    format!("{}/{}", kind.as_str(), escape(name.as_str()))
}

/// The path of the line for a lock that is shared with other programs under its verbatim name. Not that
/// of a lock of ours alone: who waits there knows nothing of the other key.
pub(crate) fn interop_path(name: &Name) -> String {
    format!("interop/{}", escape(name.as_str()))
}

/// What decides the slot of a key on a cluster: what stands between its first brace and the first
/// closing one after it, or all of it.
fn hash_tag(key: &str) -> Option<&str> {
    let (_, rest) = key.split_once('{')?;
    let (tag, _) = rest.split_once('}')?;
    (!tag.is_empty()).then_some(tag)
}

/// Whether a lock may be called so in interop mode, where its name is a key of its own.
///
/// # Errors
///
/// `InvalidName` if not.
pub(crate) fn check_verbatim(name: &Name, root: &str, cluster: bool) -> Result<()> {
    let refuse = |why: String| Err(Error::new(ErrorKind::InvalidName, why));
    if name.as_str().starts_with("{tenure/") {
        return refuse(
            "with `interop` a lock's name is a key, and keys that begin with `{tenure/` are tenure's own".into(),
        );
    }
    let tag = hash_tag(root).unwrap_or_default();
    if cluster && hash_tag(name.as_str()) != Some(tag) {
        return refuse(format!(
            "with `interop` a lock's name is a key, which on a cluster must be in the slot of its namespace: put the hash tag `{{{tag}}}` into the name, not at its beginning, as in `orders:{{{tag}}}`"
        ));
    }
    Ok(())
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

    #[test]
    fn names_that_are_keys() {
        let root = root(&Namespace::new("orders").unwrap());
        let check = |name: &str, cluster| {
            let name = Name::new(name).unwrap();
            check_verbatim(&name, &root, cluster).map_err(|error| error.kind())
        };
        for name in ["a", "a b", "../%2F", "{a}", "tenure/1/orders", "{tenure"] {
            assert_eq!(check(name, false), Ok(()), "{name}");
            assert_eq!(check(name, true), Err(ErrorKind::InvalidName), "{name}");
        }
        for name in ["{tenure/1/orders}/lock/a", "{tenure/1/other}x"] {
            assert_eq!(check(name, false), Err(ErrorKind::InvalidName), "{name}");
        }
        assert_eq!(check("a:{tenure/1/orders}", true), Ok(()));
        for name in [
            "a:{tenure/1/order}",
            "{}a:{tenure/1/orders}",
            "{a}{tenure/1/orders}",
        ] {
            assert_eq!(check(name, true), Err(ErrorKind::InvalidName), "{name}");
        }
    }
}
