//! The holdings of a session, for as long as it lives and when it ends: rules S1 to S4.

use std::time::Duration;

use tenure_core::{ErrorKind, FencingToken, LossReason, Session};
use tokio::time::Instant;

use super::scene::*;
use super::{Held, Role};
use crate::harness::{Harness, Link};
use crate::outcome::{Outcome, Step, Verdict};
use crate::tools::*;

/// Checks S1: closing a session releases its holdings at once.
pub(crate) async fn closing_frees(harness: &dyn Harness, role: Role) -> Verdict {
    let baseline = count_keys(harness).await?;
    let fixture = Fixture::open(harness, LONG).await?;
    let held = fixture.hold(role).await?;
    fixture.is_kept(role, "before the close").await?;
    let waiters = fixture.waiters(harness, role).await?;
    done("close", fixture.holder.clone().close()).await?;
    ensure!(
        held.iter().all(|held| !held.is_valid()),
        "after the close of its session, a {} is valid",
        role.word()
    );
    for mut waiter in waiters {
        let next = waiter.end(PROMPT, "the grant to a waiter after a close");
        done("a release", next.await??.release()).await?;
    }
    let took = fixture.becomes_free(role, PROMPT, "after a close").await?;
    drop(held);
    done("close", fixture.other.close()).await?;
    keys_return_to(baseline, harness).await?;
    held!("free {took:?} after the close of a session of {LONG:?}")
}

/// Checks S1: dropping a session and everything created from it releases its holdings in the background.
pub(crate) async fn dropping_frees(harness: &dyn Harness, role: Role) -> Verdict {
    let baseline = count_keys(harness).await?;
    let fixture = Fixture::open(harness, LONG).await?;
    let held = fixture.hold(role).await?;
    fixture.is_kept(role, "before the drop").await?;
    let Fixture { holder, other } = fixture;
    drop((held, holder));
    let fixture = Fixture {
        holder: other.clone(),
        other,
    };
    let took = fixture.becomes_free(role, PROMPT, "after a drop").await?;
    done("close", fixture.other.close()).await?;
    keys_return_to(baseline, harness).await?;
    held!("free {took:?} after the drop of a session of {LONG:?}")
}

/// Checks S1: renewed holdings last for several TTLs while another session waits for them.
pub(crate) async fn kept_for_ttls(harness: &dyn Harness, roles: &[Role]) -> Step<Vec<Outcome>> {
    let fixture = Fixture::open(harness, harness.ttl()).await?;
    let ttl = fixture.holder.ttl();
    // Ten cost nothing where the clock is not a real one.
    let period = if is_paused() { ttl * 10 } else { ttl * 33 / 10 };
    let set = async |role| {
        let held = fixture.hold(role).await?;
        let (name, sides) = (named("contested", role), (role, role.opponent()));
        let contention = Contention::set(harness, sides, &fixture.holder, &fixture.other, &name).await?;
        Ok((held, contention))
    };
    let judge = async |role, (held, mut contention): (Vec<Held>, Contention), (): &()| {
        let when = "while its session was renewed";
        fixture.is_kept_for(role, period, when).await?;
        fixture.is_valid(&held, when)?;
        fixture.is_valid(std::slice::from_ref(&contention.held), when)?;
        contention.waits(when)?;
        done("a release", contention.held.release()).await?;
        let next = contention.waiter.end(PROMPT, "the grant to the waiter").await??;
        end(next).await?;
        held!("held for {period:?} with a TTL of {ttl:?} while another waited")
    };
    play(roles, set, async |_| Ok(()), nothing(), judge).await
}

/// A fault on the link of a holder, and the loss that it must not cause.
struct Trouble {
    what: &'static str,
    /// How often the shortest TTL the session's TTL is.
    ttls: u32,
    /// For how many twentieths of the TTL the holdings are watched.
    watched: u32,
    /// Whether the lease is not renewed meanwhile, so that only the store is judged.
    unrenewed: bool,
}

impl Trouble {
    const fn new(what: &'static str, ttls: u32, watched: u32, unrenewed: bool) -> Self {
        Self {
            what,
            ttls,
            watched,
            unrenewed,
        }
    }
}

/// Plays a scene in which the holder's link is disturbed from the moment of a renewal.
async fn kept_in(
    harness: &dyn Harness,
    roles: &[Role],
    trouble: Trouble,
    disturb: impl AsyncFnOnce(&dyn Link, Duration),
) -> Step<Vec<Outcome>> {
    let (fixture, link) = Fixture::linked(harness, harness.ttl() * trouble.ttls).await?;
    let ttl = fixture.holder.ttl();
    let (period, when) = (ttl * trouble.watched / 20, trouble.what);
    let set = async |role| fixture.hold(role).await;
    let event = async |_: &[_]| fixture.renewed().await;
    let meanwhile = async {
        disturb(&*link, ttl).await;
        link.heal();
    };
    let judge = async |role, held: Vec<Held>, deadline: &Instant| {
        if trouble.unrenewed {
            fixture.is_kept_until(role, period, *deadline, when).await?;
        } else {
            fixture.is_kept_for(role, period, when).await?;
            fixture.is_valid(&held, when)?;
        }
        held!("kept {when}, watched for {period:?} of a TTL of {ttl:?}")
    };
    play(roles, set, event, meanwhile, judge).await
}

/// Checks S3: the store keeps holdings for the whole of a long TTL, renewed or not.
pub(crate) async fn a_long_ttl_is_kept(harness: &dyn Harness, roles: &[Role]) -> Step<Vec<Outcome>> {
    let disturb = async |link: &dyn Link, ttl: Duration| {
        link.silence();
        tokio::time::sleep(ttl * 9 / 10).await;
    };
    let trouble = Trouble::new("in a silence of 9/10 of a long TTL", 4, 18, true);
    kept_in(harness, roles, trouble, disturb).await
}

/// Checks S3: a silence shorter than the TTL frees nothing, neither during the silence nor after it.
pub(crate) async fn kept_in_a_silence(harness: &dyn Harness, roles: &[Role]) -> Step<Vec<Outcome>> {
    let disturb = async |link: &dyn Link, ttl: Duration| {
        link.silence();
        tokio::time::sleep(ttl / 2).await;
    };
    let trouble = Trouble::new("in and after a silence of half the TTL", 1, 35, false);
    kept_in(harness, roles, trouble, disturb).await
}

/// Checks S3: a connection that is cut frees nothing.
pub(crate) async fn kept_in_a_cut(harness: &dyn Harness, roles: &[Role]) -> Step<Vec<Outcome>> {
    let disturb = async |link: &dyn Link, ttl: Duration| {
        link.cut();
        tokio::time::sleep(ttl / 4).await;
        link.cut();
    };
    let trouble = Trouble::new("after two cuts of its connection", 1, 35, false);
    kept_in(harness, roles, trouble, disturb).await
}

/// Checks S3: slow answers that arrive before the end of the TTL cost nothing.
pub(crate) async fn kept_when_answers_are_slow(harness: &dyn Harness, roles: &[Role]) -> Step<Vec<Outcome>> {
    let disturb = async |link: &dyn Link, ttl: Duration| {
        for _ in 0..5 {
            link.hold();
            tokio::time::sleep(ttl / 5).await;
            link.heal();
            tokio::time::sleep(ttl / 10).await;
        }
    };
    let trouble = Trouble::new("while answers took a fifth of the TTL", 1, 30, false);
    kept_in(harness, roles, trouble, disturb).await
}

/// Checks S4: a detached session keeps its holding for the session that resumes it, once.
pub(crate) async fn a_resumed_session_takes_it_up(harness: &dyn Harness, role: Role) -> Verdict {
    let store = done("a connection", harness.connect()).await?;
    let fixture = Fixture::open(harness, LONG).await?;
    let held = fixture.hold(role).await?;
    let token = held[0].tokens()[0];
    let id = done("detach", fixture.holder.clone().detach()).await?;
    ensure!(
        held[0].loss() == Some(LossReason::Detached) && !held[1].is_valid(),
        "a holding of a detached session is valid, or lost as {:?}",
        held[0].loss()
    );
    fixture.is_kept(role, "after its session was detached").await?;
    let attempts = futures_util::future::join_all((0..3).map(|_| store.resume(&id)));
    let (resumed, refusals): (Vec<_>, Vec<_>) =
        promptly("resume", attempts).await?.into_iter().partition(Result::is_ok);
    for refusal in refusals {
        refused("a second resume", refusal, &[ErrorKind::Conflict])?;
    }
    ensure!(
        resumed.len() == 1,
        "{} of 3 clients resumed one detached session",
        resumed.len()
    );
    let Some(Ok(resumed)) = resumed.into_iter().next() else {
        return Err(Outcome::not_run("no client resumed it"));
    };
    ensure!(resumed.id() == &id, "session {id} was resumed as {}", resumed.id());
    let name = named("fixture", role);
    let other_mode = match role {
        Role::Reader => Role::Writer,
        Role::Writer => Role::Reader,
        role => role,
    };
    if other_mode != role {
        let wrong = promptly("reclaim", reclaim(other_mode, &resumed, &name, token)).await?;
        refused("reclaiming it in the other mode", wrong, &[ErrorKind::Lost])?;
    }
    let reclaimed = done("reclaim", reclaim(role, &resumed, &name, token)).await?;
    ensure!(
        reclaimed.is_valid() && reclaimed.tokens() == [token],
        "token {token} was reclaimed as {:?}",
        reclaimed.tokens()
    );
    let twice = promptly("reclaim", reclaim(role, &resumed, &name, token)).await?;
    refused("a second reclaim", twice, &[ErrorKind::Lost])?;
    for stale in held {
        let late = promptly("an answer to a late release", stale.release()).await?;
        refused("a release by the detached session", late, &[ErrorKind::Lost])?;
    }
    fixture.is_kept(role, "after its session was resumed").await?;
    ensure!(
        reclaimed.is_valid(),
        "the end of the detached guards ended the reclaimed one"
    );
    done("a release", reclaimed.release()).await?;
    end(becomes_free(role, &fixture.other, &name, PROMPT, "after the release").await?).await?;
    done("close", resumed.close()).await?;
    let took = fixture.becomes_free(role, PROMPT, "after the close").await?;
    held!("reclaimed under {token}; what was not reclaimed was free {took:?} after the close")
}

async fn reclaim(role: Role, session: &Session, name: &str, token: FencingToken) -> tenure_core::Result<Held> {
    Ok(match role {
        Role::Lock => Held::Lock(session.locker(name).reclaim(token).await?),
        Role::Reader => Held::Reader(session.rw_lock(name).reclaim_read(token).await?),
        Role::Writer => Held::Writer(session.rw_lock(name).reclaim_write(token).await?),
        Role::Leadership => Held::Leadership(session.election(name).reclaim(token).await?),
        _ => return Err(tenure_core::Error::unsupported("reclaiming this")),
    })
}
