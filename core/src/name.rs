//! Names, namespaces, and the one rule by which they become keys.

use std::fmt;
use std::sync::Arc;

use crate::{Error, Result};

/// The longest name or namespace, in bytes of UTF-8. The same on every store.
pub const MAX_NAME_BYTES: usize = 512;

/// The version of the key layout, part of every key that tenure writes (rule H2).
pub const LAYOUT_VERSION: u32 = 1;

/// The name of one lock, election, queue, ...: 1 to [`MAX_NAME_BYTES`] bytes of UTF-8 without NUL.
///
/// Case-sensitive, never normalised, and never interpreted: `../`, blanks, quotes and `%2F` are
/// characters like any other.
///
/// ```
/// use tenure_core::Name;
/// assert!(Name::new("orders/eu west").is_ok());
/// assert!(Name::new("").is_err());
/// assert!(Name::new("a\0b").is_err());
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(Arc<str>);

impl Name {
    /// Checks `name`.
    ///
    /// # Errors
    ///
    /// `InvalidName` when it is empty, holds a NUL, or is longer than [`MAX_NAME_BYTES`].
    pub fn new(name: impl AsRef<str>) -> Result<Self> {
        validate("name", name.as_ref()).map(Self)
    }

    /// The name as it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The part of a store that one application owns. Two namespaces never see each other.
///
/// The rules are those of [`Name`]. The default is `default`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Namespace(Arc<str>);

impl Namespace {
    /// Checks `namespace`.
    ///
    /// # Errors
    ///
    /// `InvalidName`, as for [`Name::new`].
    pub fn new(namespace: impl AsRef<str>) -> Result<Self> {
        validate("namespace", namespace.as_ref()).map(Self)
    }

    /// The namespace as it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Namespace {
    fn default() -> Self {
        Self(Arc::from("default"))
    }
}

fn validate(what: &str, text: &str) -> Result<Arc<str>> {
    let refuse = |why: String| Err(Error::invalid_name(text, why));
    if text.is_empty() {
        return refuse(format!(
            "a {what} must not be empty: give it 1 to {MAX_NAME_BYTES} bytes"
        ));
    }
    if text.len() > MAX_NAME_BYTES {
        return refuse(format!(
            "a {what} may have at most {MAX_NAME_BYTES} bytes, this one has {}",
            text.len()
        ));
    }
    if text.contains('\0') {
        return refuse(format!("a {what} must not contain a NUL byte"));
    }
    Ok(Arc::from(text))
}

/// What a name is the name of. Part of every key, so that a lock and an election of one name
/// are two things.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// A mutual-exclusion lock.
    Lock,
    /// An election.
    Election,
    /// A read-write lock.
    RwLock,
    /// A queue.
    Queue,
    /// A barrier that is held and released.
    Barrier,
    /// A double barrier, which is entered and left.
    DoubleBarrier,
    /// A key of transactional memory.
    Data,
}

impl Kind {
    /// The word that stands for this kind in keys.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Lock => "lock",
            Self::Election => "election",
            Self::RwLock => "rw_lock",
            Self::Queue => "queue",
            Self::Barrier => "barrier",
            Self::DoubleBarrier => "double_barrier",
            Self::Data => "data",
        }
    }
}

impl Kind {
    /// Whether a resumed session can take up what it held of this kind. A delivery or a place inside
    /// a barrier means nothing without the work that went on beside it.
    pub(crate) const fn can_be_taken_up(self) -> bool {
        matches!(self, Self::Lock | Self::Election | Self::RwLock)
    }
}

/// Makes `component` safe as one component of a `/`-separated key.
///
/// Injective, and free of `/`: so no key built from escaped components can equal or contain
/// another (rule L8). Only `/`, `%` and ASCII control characters change; everything else stays
/// readable for operators.
///
/// ```
/// use tenure_core::backend::escape;
/// assert_eq!(escape("orders"), "orders");
/// assert_eq!(escape("a/b"), "a%2Fb");
/// assert_eq!(escape("a%2Fb"), "a%252Fb");
/// ```
pub fn escape(component: &str) -> String {
    const ESCAPED: percent_encoding::AsciiSet = percent_encoding::CONTROLS.add(b'/').add(b'%');
    // `utf8_percent_encode` would encode every non-ASCII byte: keep those readable.
    let mut out = String::with_capacity(component.len());
    for ch in component.chars() {
        if ch.is_ascii() {
            let mut buffer = [0; 4];
            out.extend(percent_encoding::utf8_percent_encode(
                ch.encode_utf8(&mut buffer),
                &ESCAPED,
            ));
        } else {
            out.push(ch);
        }
    }
    out
}

/// The root of everything that tenure keeps for `namespace` in a store with `/`-separated keys:
/// `tenure/<layout version>/<namespace>`, without a trailing slash.
pub fn namespace_root(namespace: &Namespace) -> String {
    format!("tenure/{LAYOUT_VERSION}/{}", escape(namespace.as_str()))
}

/// The path of one named object: `tenure/<layout version>/<namespace>/<kind>/<name>`, without a
/// trailing slash.
pub fn path(namespace: &Namespace, kind: Kind, name: &Name) -> String {
    format!(
        "{}/{}/{}",
        namespace_root(namespace),
        kind.as_str(),
        escape(name.as_str())
    )
}

macro_rules! text {
    ($type:ident) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }

        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl std::str::FromStr for $type {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self> {
                Self::new(text)
            }
        }
    };
}

text!(Name);
text!(Namespace);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;
    use proptest::prelude::*;

    #[test]
    fn hostile_names_are_names() {
        for name in [
            "../", "..", " ", "a b", "'; drop", "%2F", "%", "a//b", "ключ", "\n", "\u{202e}",
        ] {
            assert_eq!(Name::new(name).unwrap().as_str(), name);
        }
    }

    #[test]
    fn limits() {
        assert!(Name::new("x".repeat(MAX_NAME_BYTES)).is_ok());
        for bad in [
            String::new(),
            "x".repeat(MAX_NAME_BYTES + 1),
            "a\0".into(),
            "x".repeat(10_000),
        ] {
            let error = Name::new(&bad).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidName);
            assert!(
                error.to_string().len() < 400,
                "the message must not carry the whole name"
            );
        }
        assert!(Namespace::new("").is_err());
    }

    proptest! {
        #[test]
        fn escaping_is_injective_and_flat(a in "\\PC{1,20}|[/%.a2F]{1,8}", b in "\\PC{1,20}|[/%.a2F]{1,8}") {
            let (x, y) = (escape(&a), escape(&b));
            prop_assert!(!x.contains('/'));
            prop_assert_eq!(a == b, x == y);
        }

        #[test]
        fn no_path_contains_another(
            ns_a in "[/%.a2F]{1,5}", a in "[/%.a2F]{1,8}",
            ns_b in "[/%.a2F]{1,5}", b in "[/%.a2F]{1,8}",
        ) {
            let make = |ns: &str, n: &str| {
                path(&Namespace::new(ns).unwrap(), Kind::Lock, &Name::new(n).unwrap()) + "/"
            };
            let (x, y) = (make(&ns_a, &a), make(&ns_b, &b));
            prop_assert_eq!((&ns_a, &a) == (&ns_b, &b), x == y);
            prop_assert!(x == y || (!x.starts_with(&y) && !y.starts_with(&x)));
        }
    }
}
