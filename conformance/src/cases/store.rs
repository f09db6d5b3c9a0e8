//! What the store itself survives: lines of the matrix that are wider than one rule.

use std::time::Duration;

use tenure_core::{ErrorKind, MinorityLoss};

use super::tools::*;
use crate::case::{Outcome, Verdict};
use crate::harness::Harness;

/// Time for a store to come back, and for clients to notice.
const RECOVERY: Duration = Duration::from_secs(12);

/// L2: a restart of the store does not turn tokens back.
pub async fn l2_tokens_survive_a_restart(harness: &dyn Harness) -> Verdict {
    let session = open(harness, LONG).await?;
    let guard = promptly("lock", session.locker("numbered")?.lock()).await??;
    let before = guard.token();
    // Gone from the store: only what the store remembers of it keeps the order.
    give_back(guard).await?;
    promptly("close", session.close()).await??;
    control("the restart", operator(harness)?.restart()).await?;
    let session = within(RECOVERY, "open", open(harness, LONG)).await??;
    let guard = within(RECOVERY, "lock", session.locker("numbered")?.lock()).await??;
    let after = guard.token();
    ensure!(
        after > before,
        "token {before} before the restart, {after} after it"
    );
    held!("token {before} before the restart, {after} after it")
}

/// An acknowledged grant is still in force after the store crashed.
pub async fn store_a_grant_outlives_a_crash(harness: &dyn Harness) -> Verdict {
    let session = open(harness, LONG).await?;
    let guard = promptly("lock", session.locker("kept")?.lock()).await??;
    control("the restart", operator(harness)?.restart()).await?;
    let other = within(RECOVERY, "open", open(harness, LONG)).await??;
    ensure!(
        is_taken(&other.locker("kept")?).await?,
        "after the store's crash a lock that was acknowledged before it was granted to another"
    );
    ensure!(
        guard.is_valid(),
        "the crash cost the holder its guard: {:?}",
        guard.loss()
    );
    let_go(guard).await?;
    held!("held throughout a crash of the store, and released after it")
}

/// The store goes on when a minority of its members is lost.
pub async fn store_survives_losing_a_minority(harness: &dyn Harness) -> Verdict {
    let session = open(harness, LONG).await?;
    let guard = promptly("lock", session.locker("kept")?.lock()).await??;
    let token = guard.token();
    give_back(guard).await?;
    let patience = match guarantees(harness).await {
        // Members first have to miss the lost ones, and to agree on who goes on.
        Ok(claims) if claims.minority_loss.value == MinorityLoss::Survives => RECOVERY * 3,
        _ => RECOVERY,
    };
    control("the loss", operator(harness)?.lose_minority()).await?;
    let again = within(patience, "a grant without the lost members", async {
        session.locker("kept")?.lock().await
    });
    let guard = match again.await.map_err(Outcome::judged)? {
        // A session that was a part of what is gone.
        Err(error) if error.kind() == ErrorKind::Lost => {
            return Err(Outcome::violated(format!(
                "the session ended with the lost members: {error}",
                error = error.chain()
            )));
        }
        granted => granted?,
    };
    ensure!(
        guard.token() > token,
        "token {token} before the loss, {} after it",
        guard.token()
    );
    held!(
        "granted again without the lost members, token {token}, then {}",
        guard.token()
    )
}
