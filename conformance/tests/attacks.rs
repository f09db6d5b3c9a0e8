//! No field of `Guarantees` stands there unattacked: whoever claims it meets a case, and whoever
//! denies it is asked for a counterexample.
#![allow(clippy::unwrap_used)] // A test that cannot be set up has to fail.

use std::collections::HashMap;
use std::time::Duration;

use tenure_conformance::attacks::{NOT_ATTACKED, attacks};
use tenure_conformance::{CASES, Promise};
use tenure_core::*;
use tenure_memory::MemoryConfig;

/// The most that can be claimed.
async fn strongest() -> Guarantees {
    let store = tenure_memory::connect(MemoryConfig::new()).unwrap();
    let mut all = store.guarantees().await.unwrap();
    all.token_order.value = TokenOrder::Failover;
    all.durability.value = Durability::Durable;
    all.minority_loss.value = MinorityLoss::Survives;
    all
}

/// A claim that is less than the strongest.
type Weaker = (Line, &'static str, fn(&mut Guarantees));

macro_rules! weaker {
    ($($line:ident $field:ident: $($value:expr),*;)*) => {
        &[$($((Line::$line, stringify!($value), |it| it.$field.value = $value)),*),*]
    };
}

const BOUND: Duration = Duration::from_secs(1);

/// Every value of every line but the strongest.
const WEAKER: &[Weaker] = weaker! {
    MutualExclusion mutual_exclusion: Exclusion::UnlessReleasedEarly, Exclusion::Cooperative;
    TokenOrder token_order: TokenOrder::None, TokenOrder::ClientCrash, TokenOrder::StoreRestart;
    HandOff hand_off: HandOff::Unordered;
    Expiry expiry: Expiry::WithinOrAnew(BOUND), Expiry::WithinByClock(BOUND), Expiry::Unbounded;
    EarlyRelease early_release: EarlyRelease::OnEvents;
    Cancellation cancellation: Cancellation::UntilSessionEnds;
    FencedRelease fenced_release: Release::Unfenced;
    NameIsolation name_isolation: NameIsolation::Verbatim;
    Resume resume: Resume::Unsupported;
    RwOrder rw_order: RwOrder::Unordered, RwOrder::Unsupported;
    Observers observers: Observers::MayMiss;
    QueueDelivery queue_delivery: QueueDelivery::AtMostOnce;
    QueueOrder queue_order: QueueOrder::Unordered;
    Barriers barriers: Barriers::Cooperative, Barriers::HeldUp;
    Isolation isolation: Transactions::Serializable, Transactions::Unsupported;
    FencedCommit fenced_commit: FencedCommit::Unsupported;
    UnknownCommit unknown_commit: UnknownCommit::Reported, UnknownCommit::Unsupported;
    Durability durability: Durability::Stored, Durability::Volatile;
    MinorityLoss minority_loss: MinorityLoss::SingleMember;
};

/// Lines that can be claimed in one way only.
const ONE_VALUE: &[Line] = &[Line::LossSignal];

#[tokio::test]
async fn the_strongest_claim_meets_every_case() {
    let claims = strongest().await;
    for case in CASES {
        assert_eq!((case.promise)(&claims), Promise::Made, "{}", case.id);
    }
}

#[test]
fn every_line_is_attacked_or_says_why_not() {
    for &line in Line::ALL {
        let excused = NOT_ATTACKED.iter().any(|(other, _)| *other == line);
        let attacked = attacks(line).next().is_some();
        assert!(attacked != excused, "{line:?}: attacked {attacked}");
        let weaker = WEAKER.iter().any(|(other, ..)| *other == line);
        assert!(weaker != ONE_VALUE.contains(&line), "{line:?}");
    }
    for (_, why) in NOT_ATTACKED {
        assert!(!why.is_empty());
    }
}

/// And by the case's own line, so that its outcome counts where it belongs.
#[tokio::test]
async fn whoever_claims_less_is_asked_for_a_counterexample() {
    let mut asked: HashMap<&str, Vec<&str>> = HashMap::new();
    for (line, value, weaken) in WEAKER {
        let mut claims = strongest().await;
        weaken(&mut claims);
        for case in CASES {
            match (case.promise)(&claims) {
                Promise::Denied { line: denied, .. } => {
                    assert_eq!(denied, *line, "{value}: {}", case.id);
                    asked.entry(value).or_default().push(case.id);
                }
                Promise::Made => {}
            }
        }
        let asked = asked.get(value).map(Vec::as_slice).unwrap_or_default();
        let attack = attacks(*line).any(|case| asked.contains(&case.id));
        assert!(attack, "no case of {line:?} would show {value}");
    }
}
