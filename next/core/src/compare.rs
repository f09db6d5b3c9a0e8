//! Comparisons and operations of transactions, as data.

use std::fmt;
use std::sync::Arc;

use crate::value::Redacted;

/// A key's value and revisions.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct StmEntry {
    /// The value.
    pub value: Arc<[u8]>,
    /// The store's revision at which the key was created.
    pub created: u64,
    /// The store's revision at which the key was last written.
    pub modified: u64,
    /// The number of writes since the key was created; 1 after the first.
    pub version: u64,
}

impl StmEntry {
    /// Describes a key's value and revisions.
    pub fn new(value: impl Into<Arc<[u8]>>, created: u64, modified: u64, version: u64) -> Self {
        Self {
            value: value.into(),
            created,
            modified,
            version,
        }
    }
}

impl fmt::Debug for StmEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StmEntry")
            .field("value", &Redacted(&self.value))
            .field("created", &self.created)
            .field("modified", &self.modified)
            .field("version", &self.version)
            .finish()
    }
}

/// The relation that a comparison requires.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Relation {
    /// `=`
    Equal,
    /// `!=`
    NotEqual,
    /// `<`
    Less,
    /// `>`
    Greater,
}

impl Relation {
    fn holds<T: Ord + ?Sized>(self, found: &T, wanted: &T) -> bool {
        match self {
            Self::Equal => found == wanted,
            Self::NotEqual => found != wanted,
            Self::Less => found < wanted,
            Self::Greater => found > wanted,
        }
    }
}

impl fmt::Display for Relation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Equal => "=",
            Self::NotEqual => "!=",
            Self::Less => "<",
            Self::Greater => ">",
        })
    }
}

/// The attribute of a key that is compared, and the value to compare it with.
#[derive(Clone, PartialEq, Eq)]
pub enum Target {
    /// [`StmEntry::value`], byte by byte. No such comparison holds for an absent key.
    Value(Vec<u8>),
    /// [`StmEntry::version`]; 0 for an absent key.
    Version(u64),
    /// [`StmEntry::created`]; 0 for an absent key.
    Created(u64),
    /// [`StmEntry::modified`]; 0 for an absent key.
    Modified(u64),
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value(value) => f.debug_tuple("Value").field(&Redacted(value)).finish(),
            Self::Version(number) => f.debug_tuple("Version").field(number).finish(),
            Self::Created(number) => f.debug_tuple("Created").field(number).finish(),
            Self::Modified(number) => f.debug_tuple("Modified").field(number).finish(),
        }
    }
}

/// One comparison of a transaction: `Compare::value("k").eq("v")`.
///
/// An absent key has version 0 and was created and modified at revision 0. No comparison of its value holds, not even `!=`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compare<K = String> {
    key: K,
    target: Target,
    relation: Relation,
}

impl Compare {
    /// Compares the value under `key`.
    pub fn value(key: impl Into<String>) -> CompareValue {
        CompareValue(key.into())
    }

    /// Compares the number of writes to `key` since it was created.
    pub fn version(key: impl Into<String>) -> CompareNumber {
        CompareNumber(key.into(), Target::Version)
    }

    /// Compares the revision at which `key` was created. `.eq(0)` holds if the key is absent.
    pub fn create(key: impl Into<String>) -> CompareNumber {
        CompareNumber(key.into(), Target::Created)
    }

    /// Compares the revision at which `key` was last written.
    pub fn modified(key: impl Into<String>) -> CompareNumber {
        CompareNumber(key.into(), Target::Modified)
    }
}

impl<K> Compare<K> {
    /// Creates a comparison from its parts.
    pub fn new(key: K, target: Target, relation: Relation) -> Self {
        Self { key, target, relation }
    }

    /// Returns the compared key.
    pub fn key(&self) -> &K {
        &self.key
    }

    /// Returns the compared attribute and the value to compare it with.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Returns the required relation.
    pub fn relation(&self) -> Relation {
        self.relation
    }

    /// Returns whether the comparison holds for `found`, the key's entry, or `None` for an absent key.
    pub fn holds(&self, found: Option<&StmEntry>) -> bool {
        let number = |of: fn(&StmEntry) -> u64, wanted: &u64| self.relation.holds(&found.map_or(0, of), wanted);
        match &self.target {
            Target::Value(wanted) => found.is_some_and(|entry| self.relation.holds(&*entry.value, &**wanted)),
            Target::Version(wanted) => number(|entry| entry.version, wanted),
            Target::Created(wanted) => number(|entry| entry.created, wanted),
            Target::Modified(wanted) => number(|entry| entry.modified, wanted),
        }
    }
}

/// A comparison of a value, whose right-hand side is not yet set.
#[derive(Clone, Debug)]
#[must_use]
pub struct CompareValue(String);

/// A comparison of a number, whose right-hand side is not yet set.
#[derive(Clone, Debug)]
#[must_use]
pub struct CompareNumber(String, fn(u64) -> Target);

macro_rules! relations {
    ($($name:ident $relation:ident $words:literal;)*) => {
        impl CompareValue {
            $(#[doc = concat!("The value is ", $words, " `value`.")]
            pub fn $name(self, value: impl Into<Vec<u8>>) -> Compare {
                Compare::new(self.0, Target::Value(value.into()), Relation::$relation)
            })*
        }

        impl CompareNumber {
            $(#[doc = concat!("The number is ", $words, " `number`.")]
            pub fn $name(self, number: u64) -> Compare {
                Compare::new(self.0, self.1(number), Relation::$relation)
            })*
        }
    };
}

relations! {
    eq Equal "equal to";
    ne NotEqual "other than";
    lt Less "less than";
    gt Greater "greater than";
}

/// One operation of a transaction.
#[derive(Clone, PartialEq, Eq)]
pub enum Op {
    /// Reads the key, after the operations before it in the branch.
    Get(String),
    /// Writes the value under the key.
    Put(String, Vec<u8>),
    /// Deletes the key. An absent key stays absent.
    Delete(String),
}

impl Op {
    /// Returns an operation that reads `key`.
    pub fn get(key: impl Into<String>) -> Self {
        Self::Get(key.into())
    }

    /// Returns an operation that writes `value` under `key`.
    pub fn put(key: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        Self::Put(key.into(), value.into())
    }

    /// Returns an operation that deletes `key`.
    pub fn delete(key: impl Into<String>) -> Self {
        Self::Delete(key.into())
    }

    /// Returns the operation's key.
    pub fn key(&self) -> &str {
        match self {
            Self::Get(key) | Self::Put(key, _) | Self::Delete(key) => key,
        }
    }
}

impl fmt::Debug for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Get(key) => f.debug_tuple("Get").field(key).finish(),
            Self::Put(key, value) => {
                let mut put = f.debug_tuple("Put");
                put.field(key).field(&Redacted(value)).finish()
            }
            Self::Delete(key) => f.debug_tuple("Delete").field(key).finish(),
        }
    }
}

/// The result of one operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpResult {
    /// The entry under the key; `None` if it is absent.
    Get(Option<StmEntry>),
    /// The value is written.
    Put,
    /// The key is absent now.
    Delete,
}
