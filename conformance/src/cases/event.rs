//! What befalls the store itself, and not its clients: a restart that may forget, a failover to a
//! member that lags, a clock that jumps.
//!
//! What becomes of a promise then depends on how the store is run. So these are the cases that show
//! why a set-up promises less: each attacks one line of the matrix in one event.

use std::time::{Duration, Instant};

use tenure_core::{EarlyRelease, ErrorKind, FencingToken, Leader, LossReason, Observers};

use super::tools::*;
use crate::case::{Outcome, Verdict};
use crate::harness::Harness;

/// Time for a store to come back, or for another member to take over, and for clients to notice. What goes before
/// the event has as much: the servers of a set-up take a machine's attention, and nothing of that is judged.
const RECOVERY: Duration = Duration::from_secs(20);

/// How far clocks jump: beyond every lease of these cases.
const JUMP: Duration = Duration::from_secs(120);

/// What happens to the store.
#[derive(Clone, Copy)]
enum Event {
    Restart,
    Failover,
    ClockForward,
}

impl Event {
    const fn name(self) -> &'static str {
        match self {
            Self::Restart => "a restart of the store",
            Self::Failover => "a failover",
            Self::ClockForward => "a jump of the store's clock",
        }
    }

    /// From here on a member that could take over misses what it may miss.
    async fn prepare(self, harness: &dyn Harness) -> Result<(), Outcome> {
        if matches!(self, Self::Failover) {
            control("the lag", operator(harness)?.lag()).await?;
        }
        Ok(())
    }

    async fn happen(self, harness: &dyn Harness) -> Result<(), Outcome> {
        let operator = operator(harness)?;
        let happening = async {
            match self {
                Self::Restart => operator.restart().await,
                Self::Failover => operator.fail_over().await,
                Self::ClockForward => operator.clock_forward(JUMP).await,
            }
        };
        control(self.name(), happening).await
    }
}

/// A holder that lives through an event, and another who tries to take the lock after it.
struct Aftermath {
    tokens: (FencingToken, Option<FencingToken>),
    /// Whether the first holder counted itself valid when the other one was granted the lock.
    overlap: bool,
    /// How long before the granted lease could have ended.
    early: Duration,
    /// Why the first holder lost it, if it did.
    loss: Option<LossReason>,
}

impl Aftermath {
    fn is_kept(&self, event: Event) -> Result<(), Outcome> {
        ensure!(
            self.tokens.1.is_none(),
            "after {} the lock was granted to another {:?} before the lease of its holder could end",
            event.name(),
            self.early
        );
        ensure!(
            self.loss.is_none(),
            "{} cost the holder its guard: {:?}",
            event.name(),
            self.loss
        );
        Ok(())
    }
}

async fn aftermath(harness: &dyn Harness, event: Event) -> Result<Aftermath, Outcome> {
    let holder = within(RECOVERY, "open", open(harness, LONG)).await??;
    event.prepare(harness).await?;
    let guard = within(RECOVERY, "lock", holder.locker("kept")?.lock()).await??;
    let granted = Instant::now();
    event.happen(harness).await?;
    let other = within(RECOVERY, "open", open(harness, LONG)).await??;
    let tried = within(RECOVERY, "an answer to try_lock", async {
        other.locker("kept")?.try_lock().await
    });
    let second = match tried.await? {
        Ok(second) => Some(second),
        Err(error) if error.kind() == ErrorKind::WouldBlock => None,
        Err(error) => return Err(error.into()),
    };
    let overlap = second.is_some() && guard.is_valid();
    let early = LONG.saturating_sub(granted.elapsed());
    let aftermath = Aftermath {
        tokens: (guard.token(), second.as_ref().map(|second| second.token())),
        overlap,
        early,
        loss: guard.loss(),
    };
    Ok(aftermath)
}

/// L1 in an event: nobody is granted the lock while another counts itself its holder.
async fn no_two_holders(harness: &dyn Harness, event: Event) -> Verdict {
    let seen = aftermath(harness, event).await?;
    let (first, second) = seen.tokens;
    if let (Some(second), true) = (second, seen.overlap) {
        let order = match second > first {
            true => "greater: a resource that checks tokens refuses the first",
            false => "not greater",
        };
        return Err(Outcome::violated(format!(
            "two held the lock at once after {}: the first under token {first}, the second under {second}, which is {order}",
            event.name()
        )));
    }
    held!("after {} one held the lock", event.name())
}

/// S3 in an event: what a live session holds stays its own until the TTL has passed.
async fn not_freed_early(harness: &dyn Harness, event: Event) -> Verdict {
    aftermath(harness, event).await?.is_kept(event)?;
    held!("after {} the lock was still its holder's", event.name())
}

/// L1: a restart of the store does not let a second holder in beside the first.
pub async fn l1_one_holds_through_a_restart(harness: &dyn Harness) -> Verdict {
    no_two_holders(harness, Event::Restart).await
}

/// L1: nor does a failover.
pub async fn l1_one_holds_through_a_failover(harness: &dyn Harness) -> Verdict {
    no_two_holders(harness, Event::Failover).await
}

/// L1: nor a jump of the store's clock.
pub async fn l1_one_holds_through_a_clock_jump(harness: &dyn Harness) -> Verdict {
    no_two_holders(harness, Event::ClockForward).await
}

/// S3: a restart of the store frees nothing that a live session holds.
pub async fn s3_a_restart_frees_nothing_early(harness: &dyn Harness) -> Verdict {
    not_freed_early(harness, Event::Restart).await
}

/// S3: nor does a failover.
pub async fn s3_a_failover_frees_nothing_early(harness: &dyn Harness) -> Verdict {
    not_freed_early(harness, Event::Failover).await
}

/// S3: nor a jump of the store's clock.
pub async fn s3_a_clock_jump_frees_nothing_early(harness: &dyn Harness) -> Verdict {
    not_freed_early(harness, Event::ClockForward).await
}

/// A holder dies, and `meanwhile` befalls the store when most of the TTL is over; the
/// lock is free by the stated bound, counted from the holder's last renewal.
async fn freed_within_the_bound(
    harness: &dyn Harness,
    what: &str,
    meanwhile: impl AsyncFnOnce() -> Result<(), Outcome>,
) -> Verdict {
    let bound = expiry_bound(harness).await?;
    let process = Process::start()?;
    let store = harness.connect().await?;
    // Long enough that a lease that begins anew outlasts bound and slack.
    let ttl = harness.ttl() * 3;
    let (session, _guard) = process.holds(store, ttl, "left").await?;
    process.kill().await;
    let killed = Instant::now();
    tokio::time::sleep(ttl * 4 / 5).await;
    meanwhile().await?;
    let other = within(RECOVERY, "open", open(harness, LONG)).await??;
    let limit = session.ttl() + bound + SLACK;
    // A store that took long to come back could not have freed it earlier.
    let left = limit.saturating_sub(killed.elapsed()).max(bound + SLACK);
    let what_then = format!(
        "the holder of a lock died (TTL {:?}, stated bound {bound:?}), and {what} followed {:?} later",
        session.ttl(),
        ttl * 4 / 5
    );
    let freed = becomes_free(left, &what_then, &other.locker("left")?).await?;
    let took = killed.elapsed();
    give_back(freed).await?;
    held!(
        "free {took:?} after the crash, with {what} in between; TTL {:?}, stated bound {bound:?}",
        session.ttl()
    )
}

/// S3: a restart of the store does not prolong what the dead held.
pub async fn s3_a_restart_prolongs_nothing(harness: &dyn Harness) -> Verdict {
    freed_within_the_bound(harness, "a restart of the store", async || {
        Event::Restart.happen(harness).await
    })
    .await
}

/// S3: nor does a failover.
pub async fn s3_a_failover_prolongs_nothing(harness: &dyn Harness) -> Verdict {
    freed_within_the_bound(harness, "a failover", async || {
        Event::Failover.happen(harness).await
    })
    .await
}

/// S3: nor does a clock that is set back.
pub async fn s3_a_clock_jump_prolongs_nothing(harness: &dyn Harness) -> Verdict {
    freed_within_the_bound(harness, "a jump of the clock back", async || {
        let back = operator(harness)?.clock_back(JUMP);
        control("the jump of the clock", back).await
    })
    .await
}

/// Takes the lock and gives it back; its token.
async fn a_grant(harness: &dyn Harness) -> Result<FencingToken, Outcome> {
    let session = within(RECOVERY, "open", open(harness, LONG)).await??;
    let guard = within(RECOVERY, "lock", session.locker("numbered")?.lock()).await??;
    let token = guard.token();
    give_back(guard).await?;
    within(RECOVERY, "close", session.close()).await??;
    Ok(token)
}

/// L2: a failover does not turn tokens back, whatever the new member missed.
pub async fn l2_tokens_survive_a_failover(harness: &dyn Harness) -> Verdict {
    a_grant(harness).await?;
    Event::Failover.prepare(harness).await?;
    let mut before = FencingToken::new(0);
    for _ in 0..10 {
        before = a_grant(harness).await?;
    }
    Event::Failover.happen(harness).await?;
    let after = a_grant(harness).await?;
    ensure!(
        after > before,
        "token {before} before the failover, {after} after it"
    );
    held!("token {before} before the failover, {after} after it")
}

/// L2: nor does the store's clock, whichever way it jumps.
pub async fn l2_tokens_survive_clock_jumps(harness: &dyn Harness) -> Verdict {
    let operator = operator(harness)?;
    let mut tokens = vec![a_grant(harness).await?];
    for step in ["back", "back", "forward", "back"] {
        let jump = async {
            match step {
                "back" => operator.clock_back(JUMP).await,
                _ => operator.clock_forward(JUMP).await,
            }
        };
        control("the jump of the clock", jump).await?;
        let token = a_grant(harness).await?;
        let last = tokens.last().copied();
        ensure!(
            Some(token) > last,
            "after the clock jumped {step} by {JUMP:?}, token {token} came after {last:?}"
        );
        tokens.push(token);
    }
    held!("tokens rose while the clock jumped back and forth: {tokens:?}")
}

/// An acknowledged grant is still in force after a failover.
pub async fn store_a_grant_outlives_a_failover(harness: &dyn Harness) -> Verdict {
    let event = Event::Failover;
    aftermath(harness, event).await?.is_kept(event)?;
    held!("held throughout a failover")
}

/// Q1: accepted items are there after a failover.
pub async fn q1_items_outlive_a_failover(harness: &dyn Harness) -> Verdict {
    let session = within(RECOVERY, "open", open(harness, LONG)).await??;
    let queue = session.queue("kept")?;
    within(RECOVERY, "enqueue", queue.enqueue("before")).await??;
    Event::Failover.prepare(harness).await?;
    within(RECOVERY, "enqueue", queue.enqueue("accepted")).await??;
    Event::Failover.happen(harness).await?;
    let other = within(RECOVERY, "open", open(harness, LONG)).await??;
    let queue = other.queue("kept")?;
    let left = within(RECOVERY, "the depth", queue.len()).await??;
    ensure!(
        left == 2,
        "of two accepted items {left} were there after the failover"
    );
    held!("both accepted items were there after the failover")
}

/// Acknowledged commits are there after an event.
async fn commits_outlive(harness: &dyn Harness, event: Event) -> Verdict {
    let session = within(RECOVERY, "open", open(harness, LONG)).await??;
    let stm = session.stm()?;
    within(RECOVERY, "a commit", stm.put("kept", "before")).await??;
    event.prepare(harness).await?;
    within(RECOVERY, "a commit", stm.put("kept", "acknowledged")).await??;
    event.happen(harness).await?;
    let other = within(RECOVERY, "open", open(harness, LONG)).await??;
    let other = other.stm()?;
    let kept = within(RECOVERY, "a read", other.get("kept")).await??;
    let kept = kept.map(|entry| String::from_utf8_lossy(&entry.value).into_owned());
    ensure!(
        kept.as_deref() == Some("acknowledged"),
        "`acknowledged` was committed, and after {} there was {}",
        event.name(),
        kept.map_or_else(|| "nothing".to_owned(), |value| format!("`{value}`"))
    );
    held!("what was committed was there after {}", event.name())
}

/// An acknowledged commit is there after the store crashed.
pub async fn store_commits_outlive_a_crash(harness: &dyn Harness) -> Verdict {
    commits_outlive(harness, Event::Restart).await
}

/// And after a failover.
pub async fn store_commits_outlive_a_failover(harness: &dyn Harness) -> Verdict {
    commits_outlive(harness, Event::Failover).await
}

/// What an observer shows last before and after an event in which nobody resigns.
async fn observed_through(harness: &dyn Harness, event: Event) -> Verdict {
    let leader = within(RECOVERY, "open", open(harness, LONG)).await??;
    let lead = within(
        RECOVERY,
        "campaign",
        leader.election("seen")?.campaign("one"),
    )
    .await??;
    let watcher = within(RECOVERY, "open", open(harness, LONG)).await??;
    let mut observer = watcher.election("seen")?.observe();
    event.prepare(harness).await?;
    within(RECOVERY, "proclaim", lead.proclaim("two")).await??;
    let shows = |leader: &Option<Leader>| leader.as_ref().map(|leader| leader.text().into_owned());
    let two = Some("two".to_owned());
    let showing = async {
        while let Some(state) = observer.next().await {
            if shows(&state?) == two {
                break;
            }
        }
        Ok::<_, tenure_core::Error>(())
    };
    within(RECOVERY, "the observer's showing `two`", showing).await??;
    event.happen(harness).await?;
    // What it shows next, if it shows anything, comes soon after it has a connection again.
    let patience = Duration::from_secs(4);
    let next = tokio::time::timeout(patience, observer.next()).await;
    if let Ok(Some(state)) = next {
        let state = shows(&state?);
        // A vacancy is news, and true, where a store that says so ended the leader's session.
        let claims = guarantees(harness).await?;
        let may_free = claims.early_release.value == EarlyRelease::OnEvents
            && claims.observers.value == Observers::Converge;
        let deposed =
            state.is_none() && may_free && tokio::time::timeout(LONG, lead.lost()).await.is_ok();
        ensure!(
            state == two || deposed,
            "after {} the observer showed {}, though `two` had been proclaimed and shown and nobody had resigned",
            event.name(),
            state.map_or_else(|| "a vacancy".to_owned(), |value| format!("`{value}`"))
        );
    }
    held!(
        "after {} the observer showed nothing older than before",
        event.name()
    )
}

/// E4: an observer does not go back in a restart of the store.
pub async fn e4_an_observer_never_goes_back_in_a_restart(harness: &dyn Harness) -> Verdict {
    observed_through(harness, Event::Restart).await
}

/// E4: nor in a failover.
pub async fn e4_an_observer_never_goes_back_in_a_failover(harness: &dyn Harness) -> Verdict {
    observed_through(harness, Event::Failover).await
}
