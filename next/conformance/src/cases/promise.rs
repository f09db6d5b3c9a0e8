//! A deployment's statements on itself: guarantees as data.

use tenure_core::guarantees::{Line, Resume, RwOrder, Transactions};
use tenure_core::{ErrorKind, Guarantees, Result};

use crate::case::cases;
use crate::harness::Harness;
use crate::outcome::{Step, Verdict};
use crate::tools::{LONG, done, ensure, guarantees, held, open, promptly};

cases! { CASES:
    g1_guarantees_are_read_and_explained "G1"
        "every line of the matrix has a value and a reason, the same over each connection"
        (None) [] always;
    g2_requirements_follow_the_claims "G2"
        "a requirement that the store claims is met; one that it denies is refused with the reason"
        (None) [] always;
    g3_claims_match_the_primitives "G3"
        "what the store says that it does not have is Unsupported, and nothing else is" (None) [] always;
}

async fn g1_guarantees_are_read_and_explained(harness: &dyn Harness) -> Verdict {
    let (first, second) = (guarantees(harness).await?, guarantees(harness).await?);
    ensure!(
        first == second,
        "two connections read different guarantees: {first:?} and {second:?}"
    );
    ensure!(!first.deployment.trim().is_empty(), "the deployment has no description");
    for line in Line::ALL {
        let (title, (value, reason)) = (line.title(), first.claim(*line));
        ensure!(!value.trim().is_empty(), "`{title}` has no value");
        ensure!(reason.trim().len() > 3, "`{title}: {value}` has no reason");
    }
    held!("{}: {} lines, each with a reason", first.deployment, Line::ALL.len())
}

fn refusal(guarantees: &Guarantees, line: Line, required: Result<&Guarantees>, claimed: bool) -> Step<()> {
    let title = line.title();
    match (required, claimed) {
        (Ok(_), true) => Ok(()),
        (Ok(_), false) => Err(crate::outcome::Outcome::violated(format!(
            "`{title}` is denied, and a requirement of it is met"
        ))),
        (Err(error), _) => {
            let (_, reason) = guarantees.claim(line);
            ensure!(!claimed, "`{title}` is claimed, and refused: {error}");
            ensure!(
                error.kind() == ErrorKind::Unsupported,
                "`{title}` is refused with {error:?}"
            );
            ensure!(
                error.message().contains(reason),
                "`{title}` is refused without the reason: {error}"
            );
            Ok(())
        }
    }
}

async fn g2_requirements_follow_the_claims(harness: &dyn Harness) -> Verdict {
    use tenure_core::guarantees::{Durability, Exclusion, TokenOrder};

    let g = guarantees(harness).await?;
    let own = g
        .require(g.mutual_exclusion.value)
        .and_then(|g| g.require(g.token_order.value));
    let own = own
        .and_then(|g| g.require(g.durability.value))
        .and_then(|g| g.require(g.isolation.value));
    ensure!(own.is_ok(), "a claim of the store is refused as a requirement: {own:?}");
    let exclusion = g.mutual_exclusion.value;
    refusal(
        &g,
        Line::MutualExclusion,
        g.require(Exclusion::Always),
        exclusion == Exclusion::Always,
    )?;
    let order = g.token_order.value;
    refusal(
        &g,
        Line::TokenOrder,
        g.require(TokenOrder::Failover),
        order == TokenOrder::Failover,
    )?;
    refusal(
        &g,
        Line::TokenOrder,
        g.require(TokenOrder::ClientCrash),
        order >= TokenOrder::ClientCrash,
    )?;
    let durability = g.durability.value;
    refusal(
        &g,
        Line::Durability,
        g.require(Durability::Durable),
        durability == Durability::Durable,
    )?;
    refusal(
        &g,
        Line::Resume,
        g.require(Resume::OneUse),
        g.resume.value == Resume::OneUse,
    )?;
    held!("requirements of exclusion, token order, durability and resumption follow the claims")
}

async fn g3_claims_match_the_primitives(harness: &dyn Harness) -> Verdict {
    let (g, session) = (guarantees(harness).await?, open(harness, LONG).await?);
    let has = |result: Result<()>| match result {
        Err(error) if error.kind() == ErrorKind::Unsupported => Ok(false),
        Err(error) => Err(error),
        Ok(()) => Ok(true),
    };
    let read = async { has(session.rw_lock("probe").try_read().await.map(drop)) };
    let get = async { has(session.stm().get("probe").await.map(drop)) };
    let claims = [
        (
            "read-write locks",
            done("try_read", read).await?,
            g.rw_order.value != RwOrder::Unsupported,
        ),
        (
            "transactions",
            done("get", get).await?,
            g.isolation.value != Transactions::Unsupported,
        ),
        (
            "detached sessions",
            has(promptly("detach", session.detach()).await?.map(drop))?,
            g.resume.value != Resume::Unsupported,
        ),
    ];
    for (what, has, claimed) in claims {
        ensure!(
            has == claimed,
            "the store claims {what}: {claimed}, and has them: {has}"
        );
    }
    held!("{claims:?}")
}
