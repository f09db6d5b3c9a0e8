//! The guarantees of a deployment, and the requirements of an application.

use std::collections::HashSet;
use std::time::Duration;

use tenure_core::guarantees::{
    Barriers, Cancellation, Durability, EarlyRelease, Exclusion, Expiry, FencedCommit, Guarantee, HandOff, Line,
    LossSignal, MinorityLoss, NameIsolation, Observers, QueueDelivery, QueueOrder, Release, Requirement, Resume,
    RwOrder, Scope, TokenOrder, Transactions, UnknownCommit,
};
use tenure_core::{ErrorKind, Guarantees};

const SECOND: Duration = Duration::from_secs(1);

fn claim<T>(value: T) -> Guarantee<T> {
    Guarantee::new(value, "because of the test")
}

fn guarantees() -> Guarantees {
    Guarantees {
        deployment: "store 1.2".into(),
        scope: Scope::Host,
        mutual_exclusion: claim(Exclusion::UnlessReleasedEarly),
        token_order: claim(TokenOrder::StoreRestart),
        hand_off: claim(HandOff::Fifo),
        expiry: claim(Expiry::Within(SECOND)),
        early_release: claim(EarlyRelease::OnEvents),
        loss_signal: claim(LossSignal::ByDeadline),
        cancellation: claim(Cancellation::Prompt),
        fenced_release: claim(Release::Fenced),
        name_isolation: claim(NameIsolation::Verbatim),
        resume: claim(Resume::Unsupported),
        rw_order: claim(RwOrder::Arrival),
        observers: claim(Observers::Converge),
        queue_delivery: claim(QueueDelivery::AtLeastOnce),
        queue_order: claim(QueueOrder::Unordered),
        barriers: claim(Barriers::Cooperative),
        isolation: claim(Transactions::Serializable),
        fenced_commit: claim(FencedCommit::Unsupported),
        unknown_commit: claim(UnknownCommit::Resolved),
        durability: claim(Durability::Stored),
        minority_loss: claim(MinorityLoss::SingleMember),
    }
}

#[test]
fn weaker_requirements_are_met_and_chained() {
    fn require(wanted: impl Requirement) {
        guarantees().require(wanted).unwrap();
    }
    guarantees()
        .require(Scope::Process)
        .unwrap()
        .require(Scope::Host)
        .unwrap()
        .require(HandOff::Unordered)
        .unwrap();
    require(Exclusion::UnlessReleasedEarly);
    require(TokenOrder::ClientCrash);
    require(EarlyRelease::OnEvents);
    require(RwOrder::Unsupported);
    require(QueueDelivery::AtLeastOnce);
    require(Barriers::Blocked);
    require(UnknownCommit::Reported);
    require(Durability::Volatile);
    require(Expiry::Within(2 * SECOND));
    require(Expiry::WithinByClock(SECOND));
    require(Expiry::Unbounded);
}

#[test]
fn stronger_requirements_are_refused() {
    fn refuse(wanted: impl Requirement) {
        let error = guarantees().require(wanted).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
    }
    refuse(Scope::Network);
    refuse(Exclusion::Always);
    refuse(TokenOrder::Failover);
    refuse(EarlyRelease::Never);
    refuse(NameIsolation::Isolated);
    refuse(Resume::OneUse);
    refuse(QueueOrder::PriorityThenFifo);
    refuse(Barriers::DeadRemoved);
    refuse(Transactions::StrictSerializable);
    refuse(FencedCommit::Atomic);
    refuse(Durability::Durable);
    refuse(MinorityLoss::Survives);
    refuse(Expiry::Within(SECOND / 2));
    refuse(Expiry::WithinSinceRestart(SECOND / 2));
}

#[test]
fn values_that_exclude_each_other_include_only_themselves() {
    assert!(guarantees().require(Exclusion::Cooperative).is_err());
    assert!(guarantees().require(QueueDelivery::AtMostOnce).is_err());
    let mut weaker = guarantees();
    weaker.queue_delivery = claim(QueueDelivery::AtMostOnce);
    weaker.expiry = claim(Expiry::WithinByClock(SECOND));
    assert!(weaker.require(QueueDelivery::AtLeastOnce).is_err());
    assert!(weaker.require(Expiry::Within(SECOND)).is_err());
    assert!(weaker.require(Expiry::WithinSinceRestart(SECOND)).is_err());
    let mut stronger = guarantees();
    stronger.mutual_exclusion = claim(Exclusion::Always);
    assert!(stronger.require(Exclusion::Cooperative).is_ok());
}

#[test]
fn refusal_says_what_is_required_and_what_is_guaranteed_and_why() {
    let error = guarantees().require(TokenOrder::Failover).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the application requires `token order survives: failover`, \
         but store 1.2 guarantees `store restart`: because of the test"
    );
    let error = guarantees().require(Scope::Network).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the application requires `scope: a network`, but store 1.2 guarantees `one machine`"
    );
}

#[test]
fn lines_have_distinct_ids_and_give_their_claims() {
    let guarantees = guarantees();
    let ids: HashSet<_> = Line::ALL.iter().map(|line| line.id()).collect();
    let titles: HashSet<_> = Line::ALL.iter().map(|line| line.title()).collect();
    assert_eq!((ids.len(), titles.len()), (Line::ALL.len(), Line::ALL.len()));
    assert_eq!((Line::HandOff.id(), Line::HandOff.rule()), ("hand_off", "L3"));
    assert_eq!(
        guarantees.claim(Line::HandOff),
        ("FIFO".to_owned(), "because of the test")
    );
    assert_eq!(guarantees.claim(Line::Expiry).0, "TTL + 1s");
    for line in Line::ALL {
        assert!(!guarantees.claim(*line).0.is_empty(), "{line:?}");
    }
}
