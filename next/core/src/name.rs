//! Names, namespaces, and the rule that maps them to keys.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use percent_encoding::percent_decode_str;

use crate::error::{Error, Result};

/// The longest name or namespace, in bytes of UTF-8. The limit is the same on every store.
pub const MAX_NAME_BYTES: usize = 512;

/// The version of the key layout, part of every key that tenure writes (rule H2).
pub const LAYOUT_VERSION: u32 = 1;

macro_rules! text {
    ($(#[$doc:meta])* $type:ident $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
        #[cfg_attr(feature = "serde", serde(try_from = "String"))]
        pub struct $type(Arc<str>);

        impl $type {
            #[doc = concat!("Creates a ", $what, " after checking it.")]
            ///
            /// # Errors
            ///
            /// `InvalidName` when the text is empty, contains a NUL, or is longer than [`MAX_NAME_BYTES`].
            pub fn new(text: impl AsRef<str>) -> Result<Self> {
                validate($what, text.as_ref()).map(Self)
            }

            /// Returns the text as it was given.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

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

        impl FromStr for $type {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $type {
            type Error = Error;

            fn try_from(text: String) -> Result<Self> {
                Self::new(text)
            }
        }
    };
}

text! {
    /// The name of one object, such as a lock, an election or a queue: 1 to [`MAX_NAME_BYTES`] bytes of UTF-8 without NUL.
    ///
    /// Case-sensitive, never normalised and never interpreted: `../`, spaces, quotes and `%2F` are ordinary characters.
    ///
    /// ```
    /// use tenure_core::Name;
    /// assert!(Name::new("orders/eu west").is_ok());
    /// assert!(Name::new("").is_err());
    /// assert!(Name::new("a\0b").is_err());
    /// ```
    Name "name"
}

text! {
    /// The part of a store that one application owns. Two namespaces are isolated from each other.
    ///
    /// The rules are those of [`Name`]. The default is `default`.
    Namespace "namespace"
}

impl Default for Namespace {
    fn default() -> Self {
        Self(Arc::from("default"))
    }
}

fn validate(what: &str, text: &str) -> Result<Arc<str>> {
    let problem = if text.is_empty() {
        format!("a {what} must not be empty: give it 1 to {MAX_NAME_BYTES} bytes")
    } else if text.len() > MAX_NAME_BYTES {
        let length = text.len();
        format!("a {what} has at most {MAX_NAME_BYTES} bytes, this one has {length}: choose a shorter one")
    } else if text.contains('\0') {
        format!("a {what} must not contain a NUL byte: remove it")
    } else {
        return Ok(Arc::from(text));
    };
    Err(Error::invalid_name(text, problem))
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident $text:literal,)*) => {
        /// The kind of a named object. It is part of every key: a lock and an election of the same name are distinct.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum Kind {
            $($(#[$doc])* $kind,)*
        }

        impl Kind {
            /// All kinds.
            pub const ALL: &'static [Self] = &[$(Self::$kind),*];

            /// Returns the text of this kind in keys.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$kind => $text,)* }
            }

            /// Returns the kind that has this text in keys.
            pub fn from_text(text: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|kind| kind.as_str() == text)
            }
        }
    };
}

kinds! {
    /// A mutual-exclusion lock.
    Lock "lock",
    /// An election.
    Election "election",
    /// A read-write lock.
    RwLock "rw_lock",
    /// A queue.
    Queue "queue",
    /// A barrier, which is held and released.
    Barrier "barrier",
    /// A double barrier, which is entered and left.
    DoubleBarrier "double_barrier",
    /// A permit of a semaphore.
    Semaphore "semaphore",
    /// The turn of one tick.
    Once "once",
    /// A key of transactional memory.
    Data "data",
}

impl Kind {
    /// Returns whether a holding of this kind is the head of a wait queue. Only such a holding can be reclaimed by a resumed
    /// session: a delivery or a place in a barrier has no meaning without the process that worked on it.
    pub const fn has_wait_queue(self) -> bool {
        matches!(
            self,
            Self::Lock | Self::Election | Self::RwLock | Self::Semaphore | Self::Once
        )
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Escapes `component`, so that it is one component of a `/`-separated key.
///
/// The result is injective and contains no `/`, hence no key of escaped components equals or contains another (rule L8).
/// Only `/`, `%` and ASCII control characters change; all others stay readable for operators.
///
/// ```
/// use tenure_core::name::escape;
/// assert_eq!(escape("a/b"), "a%2Fb");
/// assert_eq!(escape("a%2Fb"), "a%252Fb");
/// ```
pub fn escape(component: &str) -> String {
    let mut escaped = String::with_capacity(component.len());
    for character in component.chars() {
        match character {
            '/' | '%' | '\0'..='\x1f' | '\x7f' => escaped.push_str(&format!("%{:02X}", character as u32)),
            _ => escaped.push(character),
        }
    }
    escaped
}

/// Returns the root of all keys of `namespace` in a store with `/`-separated keys, without a trailing slash:
/// `tenure/<layout version>/<namespace>`.
pub fn namespace_root(namespace: &Namespace) -> String {
    format!("tenure/{LAYOUT_VERSION}/{}", escape(namespace.as_str()))
}

/// Returns the path of one named object, without a trailing slash: `<namespace root>/<kind>/<name>`.
pub fn path(namespace: &Namespace, kind: Kind, name: &Name) -> String {
    format!("{}/{kind}/{}", namespace_root(namespace), escape(name.as_str()))
}

/// Returns the object that `path` belongs to: the inverse of [`path()`] without the namespace's root and its slash. A part
/// after a further slash, such as a session, is ignored.
pub fn object_at(path: &str) -> Option<(Kind, Name)> {
    let mut parts = path.split('/');
    let kind = Kind::from_text(parts.next()?)?;
    let name = percent_decode_str(parts.next()?).decode_utf8().ok()?;
    Some((kind, Name::new(name).ok()?))
}
