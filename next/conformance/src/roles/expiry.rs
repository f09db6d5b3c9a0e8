//! The end of sessions that are not closed: rules S2 to S4.

use tenure_core::{Holding, Result};
use tokio::time::Instant;

use super::scene::*;
use super::{Held, Role};
use crate::harness::Harness;
use crate::outcome::{Outcome, Step};
use crate::tools::*;

/// Checks S2: the loss is signalled by the deadline, and before another session is granted the object.
pub(crate) async fn loss_is_signalled(harness: &dyn Harness, roles: &[Role]) -> Step<Vec<Outcome>> {
    let (fixture, link) = Fixture::linked(harness, harness.ttl()).await?;
    let ttl = fixture.holder.ttl();
    let limit = ttl * 2 + expiry_bound(harness).await? + slack();
    let set = async |role| {
        let held = fixture.hold(role).await?;
        let signals: Vec<_> = held.iter().flat_map(Held::holdings).map(Holding::lost).collect();
        let signalled = spawn(async move {
            futures_util::future::join_all(signals).await;
            Instant::now()
        });
        Ok((held, signalled))
    };
    let event = async |_: &[_]| {
        link.silence();
        Ok(Instant::now())
    };
    type Waiting = (Vec<Held>, Task<Instant>);
    let judge = async |role, (held, mut signalled): Waiting, silent: &Instant| {
        while is_kept(role, &fixture.other, &named("fixture", role), "").await.is_ok() {
            in_time!(silent.elapsed() < limit, "still kept after {limit:?}");
            tokio::time::sleep(LOOK).await;
        }
        ensure!(
            held.iter().all(|held| held.holdings().iter().all(|it| !it.is_valid())),
            "{:?} into a silence another had it, and the {} counted itself valid",
            silent.elapsed(),
            role.word()
        );
        let signalled = signalled.end(slack(), "the loss signal").await?.duration_since(*silent);
        in_time!(
            signalled <= ttl + slack(),
            "a TTL of {ttl:?}, and the loss was signalled after {signalled:?}"
        );
        held!("a TTL of {ttl:?}, and the loss was signalled after {signalled:?} of silence")
    };
    play(roles, set, event, nothing(), judge).await
}

/// Checks S3: what a silent session holds is free by its TTL and the stated bound.
pub(crate) async fn freed_after_the_ttl(harness: &dyn Harness, roles: &[Role]) -> Step<Vec<Outcome>> {
    let (fixture, link) = Fixture::linked(harness, harness.ttl()).await?;
    let (ttl, bound) = (fixture.holder.ttl(), expiry_bound(harness).await?);
    let event = async |_: &[_]| {
        link.silence();
        Ok(())
    };
    let judge = async |role, _held: Vec<Held>, (): &()| {
        let limit = ttl + bound + slack();
        let took = fixture.becomes_free(role, limit, "in a silence").await?;
        held!("free {took:?} into a silence, with a TTL of {ttl:?} and a bound of {bound:?}")
    };
    play(roles, async |role| fixture.hold(role).await, event, nothing(), judge).await
}

/// Checks S3: what a silent session holds goes to the waiter by its TTL and the stated bound, and both are never valid.
pub(crate) async fn handed_on_after_the_ttl(harness: &dyn Harness, roles: &[Role]) -> Step<Vec<Outcome>> {
    let (fixture, link) = Fixture::linked(harness, harness.ttl()).await?;
    let limit = fixture.holder.ttl() + expiry_bound(harness).await? + slack();
    let set = async |role: Role| {
        let (name, sides) = (named("left", role), (role, role.opponent()));
        Contention::set(harness, sides, &fixture.holder, &fixture.other, &name).await
    };
    let event = async |_: &[_]| {
        link.silence();
        Ok(Instant::now())
    };
    let judge = async |_, mut contention: Contention, silent: &Instant| {
        let next = contention.waiter.end(limit, "the grant to the waiter in a silence");
        let next = next.await??;
        let took = silent.elapsed();
        ensure!(!contention.held.is_valid(), "{took:?} into a silence both were valid");
        end(next).await?;
        held!("granted to the waiter {took:?} into a silence of the holder")
    };
    play(roles, set, event, nothing(), judge).await
}

/// Checks S3: many sessions die at once, holders and waiters; everything is free by the TTL and the stated bound, and
/// goes to the waiter behind the expired ones.
pub(crate) async fn a_mass_death_frees(harness: &dyn Harness, roles: &[Role]) -> Step<Vec<Outcome>> {
    const DEAD: usize = 6;
    let linked = done("a connection", harness.linked()).await?;
    let mut dead = Vec::new();
    for _ in 0..DEAD {
        dead.push(open_on(&linked.store, harness.ttl()).await?);
    }
    let survivor = open(harness, LONG).await?;
    let limit = dead[0].ttl() + expiry_bound(harness).await? + slack();
    let set = async |role: Role| {
        let contested = named("contested", role);
        let (mut held, mut waiters) = (Vec::new(), Vec::new());
        for (number, session) in dead.iter().enumerate() {
            let own = named(&format!("own {number}"), role);
            done("enqueue", role.prepare(&survivor, &own)).await?;
            held.push(done("a grant of what is free", role.acquire(session, &own)).await?);
            if role == Role::Participant {
                continue; // One that waits beside them counts as a participant.
            }
            if number > 0 {
                waiters.push(arrived(harness, role.opponent(), session, &contested).await?);
                continue;
            }
            done("enqueue", role.prepare(&survivor, &contested)).await?;
            let first = role.acquire(session, &contested);
            held.push(done("a grant of what is free", first).await?);
        }
        let waiter = match role {
            Role::Participant => None,
            _ => Some(arrived(harness, role.opponent(), &survivor, &contested).await?),
        };
        Ok((held, waiters, waiter))
    };
    type Dying = (Vec<Held>, Vec<Task<Result<Held>>>, Option<Task<Result<Held>>>);
    let event = async |_: &[Dying]| {
        linked.link.silence();
        Ok(Instant::now())
    };
    let judge = async |role, (held, _dead, waiter): Dying, silent: &Instant| {
        if let Some(mut waiter) = waiter {
            let next = waiter.end(limit, "the grant to the waiter behind the dead").await??;
            ensure!(held.iter().all(|held| !held.is_valid()), "a dead holder is valid");
            end(next).await?;
        }
        for number in 0..DEAD {
            let left = limit.saturating_sub(silent.elapsed());
            let own = named(&format!("own {number}"), role);
            end(becomes_free(role, &survivor, &own, left, "after a mass death").await?).await?;
        }
        held!("free {:?} after the death of {DEAD} sessions", silent.elapsed())
    };
    play(roles, set, event, nothing(), judge).await
}

/// Checks S4: an operator's revocation frees what the session holds, and the holder learns of it.
pub(crate) async fn a_revocation_frees(harness: &dyn Harness, roles: &[Role]) -> Step<Vec<Outcome>> {
    let fixture = Fixture::open(harness, harness.ttl()).await?;
    let limit = fixture.holder.ttl() + slack();
    let event = async |_: &[_]| revoke(harness, fixture.holder.id()).await;
    let judge = async |role, held: Vec<Held>, (): &()| {
        let took = fixture.becomes_free(role, PROMPT, "after a revocation").await?;
        for holding in held.iter().flat_map(Held::holdings) {
            let reason = within(limit, "the loss signal", holding.lost()).await?;
            ensure!(!holding.is_valid(), "signalled as `{reason}`, and valid");
        }
        within(limit, "the end of the session", fixture.holder.lost()).await?;
        held!("free {took:?} after the revocation, and signalled")
    };
    play(roles, async |role| fixture.hold(role).await, event, nothing(), judge).await
}
