//! Defects that a test can plant in a store, in order to show that a suite finds them.
//!
//! Each one is planted at the line that it breaks: `if self.planted.has(Bug::X)`. Without the feature `planted` no store
//! has any, and the compiler removes the checks.

macro_rules! bugs {
    ($($bug:ident $what:literal;)*) => {
        /// A defect that [`MemoryConfig::plant`](crate::MemoryConfig::plant) plants in a store.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        #[cfg_attr(not(feature = "planted"), allow(unreachable_pub))]
        pub enum Bug {
            $(#[doc = $what] $bug,)*
        }

        #[cfg(feature = "planted")]
        impl Bug {
            /// All defects.
            pub const ALL: &'static [Self] = &[$(Self::$bug),*];

            /// Returns what is wrong, in a few words.
            pub const fn what(self) -> &'static str {
                match self { $(Self::$bug => $what,)* }
            }
        }
    };
}

bugs! {
    // Sessions and names.
    NeverExpires "A lease never expires.";
    ExpiresEarly "A lease expires after two thirds of its TTL.";
    TtlCapped "A TTL above five seconds is cut to five seconds, silently.";
    EndsAfterFiveTtls "A session ends after five TTLs although it is renewed.";
    ResumedTwice "A session can be resumed twice.";
    DetachedActs "A session still acts after it was detached.";
    DetachFreesAll "A detachment frees the holdings that it should keep.";
    EntriesOmit "The list of entries omits a holding.";
    KindsMeet "Objects with wait queues of different kinds and the same name are one.";
    NamespacesMeet "All namespaces are one.";
    // Requests and markers.
    LateJoinActs "A request that arrives after its withdrawal leaves an entry.";
    RepeatedJoinJoinsAgain "A repeated request gets another place.";
    RepeatedStepActsAgain "A repeated step acts again.";
    LateStepActs "A step acts although its slot holds a later one.";
    // Wait queues.
    TwoHolders "Two requests hold an exclusive object.";
    TokenRepeated "All grants of wait queues have the same token.";
    TokensRestart "Tokens start from 1 when no session is left.";
    FloorIgnored "Raising the token floor has no effect.";
    LeaveReorders "A waiter that leaves the middle of a wait queue reverses the order.";
    TryLeavesEntry "A refused request that was not to wait leaves a place.";
    ReleaseUnfenced "A release of a lost holding frees that of another.";
    WithdrawalIgnored "A withdrawal leaves the waiter in its place.";
    DeadWaiterGranted "The waiters of an ended session stay, and are granted.";
    ReaderOvertakes "A reader overtakes a waiting writer.";
    ReaderBesideWriter "A reader is granted beside a writer.";
    WriterBesideReaders "A writer is granted beside readers if its own session reads.";
    DowngradeRaisesToken "A downgrade grants a new token.";
    DowngradeReleases "A downgrade releases the holding.";
    DowngradeGrantsNoReader "A downgrade does not grant the readers behind it.";
    // Elections.
    ProclamationIgnored "A proclamation does not replace the value.";
    LateProclamationWins "A proclamation that arrives late replaces a later one.";
    ProclaimUnfenced "A session that does not lead replaces the leader's value.";
    VacancyMissed "Observers miss a vacancy.";
    ObserverGoesBack "Observers sometimes get the first value of a leadership after a later one.";
    // Queues.
    NackLosesItem "An item that is given back is lost.";
    ItemToTwo "An item stays available after it was taken.";
    PriorityIgnored "Priorities are ignored.";
    ReturnedItemLast "An item that comes back goes to the end of the queue.";
    DeliveryNotCounted "Deliveries are not counted.";
    DeadLetterDropped "An item that was delivered too often is dropped instead of moved.";
    CrashedItemDropped "An item whose consumers crashed three times is dropped.";
    LateAckSucceeds "An acknowledgement of a lost item reports success.";
    AckIgnored "An acknowledged item stays, and comes back with the end of the session.";
    PurgeSkipsInFlight "A purge leaves the items that are with consumers.";
    WithdrawalCounts "A withdrawn take leaves the delivery counted.";
    WithdrawalLosesItems "A withdrawn take loses its items.";
    DelayIgnored "Delays are ignored.";
    DuplicateAccepted "An item with a known id is accepted.";
    // Barriers.
    HeldBarrierLapses "A key bound to a session vanishes after two TTLs although the session is renewed.";
    EntersEarly "The last but one participant lets all in.";
    LeavesEarly "A participant leaves before the others.";
    OneTooMany "One participant too many enters.";
    CountIgnored "A participant with another count is accepted.";
    DeadCount "A participant whose session ended while it waited still counts.";
    // Transactions.
    CompareIgnored "The comparisons of a commit are ignored.";
    FenceIgnored "The fence of a commit is ignored.";
    SnapshotMixed "A read at a past revision answers with present values.";
    StaleRead "A reader that knows a revision of a key gets the answer that it has not changed.";
    ResolvedAborted "A committed transaction is reported as aborted.";
    LateCommitLands "A commit is carried out after it was reported as aborted.";
    LeasedKeyOutlives "A key bound to a session outlives it.";
}

/// The defects of one store.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Planted(#[cfg(feature = "planted")] u128);

impl Planted {
    #[cfg(feature = "planted")]
    pub(crate) fn insert(&mut self, bug: Bug) {
        self.0 |= 1 << bug as u32;
    }

    #[cfg(feature = "planted")]
    pub(crate) const fn has(self, bug: Bug) -> bool {
        self.0 & (1 << bug as u32) != 0
    }

    #[cfg(not(feature = "planted"))]
    pub(crate) const fn has(self, bug: Bug) -> bool {
        let _ = (self, bug);
        false
    }
}
