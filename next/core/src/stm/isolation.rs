//! Isolation levels.

use std::fmt;

/// The isolation level of a transaction. The names and their meaning are those of etcd's Go STM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Isolation {
    /// An attempt reads one consistent snapshot. It commits if no key that it read has changed since, and no other
    /// transaction wrote, after the snapshot, a key that it writes.
    #[default]
    SerializableSnapshot,
    /// An attempt reads one consistent snapshot. It commits if no key that it read has changed since. A key that it
    /// writes without reading it may overwrite a newer write of another transaction.
    Serializable,
    /// The same key read twice in an attempt gives the same value. Different keys may be read at different revisions,
    /// so the closure may see a combination that never existed. An attempt commits if no key that it read has changed
    /// since.
    RepeatableReads,
    /// Like `RepeatableReads`, but an attempt commits even if keys have changed since. Updates may be lost: write only
    /// values that do not depend on earlier reads.
    ReadCommitted,
}

impl Isolation {
    /// Returns whether every attempt reads one consistent snapshot.
    pub(super) const fn reads_a_snapshot(self) -> bool {
        matches!(self, Self::SerializableSnapshot | Self::Serializable)
    }

    /// Returns whether a commit checks that the keys read have not changed.
    pub(super) const fn checks_reads(self) -> bool {
        !matches!(self, Self::ReadCommitted)
    }
}

impl fmt::Display for Isolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SerializableSnapshot => "serializable-snapshot",
            Self::Serializable => "serializable",
            Self::RepeatableReads => "repeatable-reads",
            Self::ReadCommitted => "read-committed",
        })
    }
}
