//! The end of a holding: rule L7, and requests that arrive twice.

use futures_util::future::BoxFuture;
use tenure_core::ErrorKind;
use tokio::time::Instant;

use super::scene::*;
use super::{Held, Role};
use crate::harness::Harness;
use crate::outcome::{Outcome, Step, Verdict};
use crate::tools::*;

/// Checks L7: dropping a guard releases the holding, although its session lives.
pub(crate) async fn a_drop_releases(harness: &dyn Harness, role: Role) -> Verdict {
    let fixture = Fixture::open(harness, LONG).await?;
    let held = fixture.hold(role).await?;
    fixture.is_kept(role, "before the drop").await?;
    drop(held);
    let took = fixture.becomes_free(role, PROMPT, "after a drop").await?;
    ensure!(fixture.holder.is_valid(), "the session ended");
    held!("free {took:?} after the drop")
}

/// Checks L7: a release after the loss reports the loss, and frees nothing of the next holder.
pub(crate) async fn a_late_release_is_lost(harness: &dyn Harness, roles: &[Role]) -> Step<Vec<Outcome>> {
    let (fixture, link) = Fixture::linked(harness, harness.ttl()).await?;
    let (ttl, bound) = (fixture.holder.ttl(), expiry_bound(harness).await?);
    let limit = ttl + bound + slack();
    let third = open(harness, LONG).await?;
    let event = async |_: &[Vec<Held>]| {
        link.silence();
        Ok(())
    };
    let heal = async {
        fixture.holder.lost().await;
        tokio::time::sleep(ttl / 2 + bound).await;
        link.heal();
    };
    let judge = async |role, held: Vec<Held>, (): &()| {
        let name = named("fixture", role);
        let next = becomes_free(role, &fixture.other, &name, limit, "in a silence").await?;
        for (held, returns) in held.into_iter().zip([false, true]) {
            let ending = async {
                if returns {
                    held.release().await
                } else {
                    held.finish().await
                }
            };
            let late = within(limit * 2, "an answer to a late release", ending).await?;
            refused("a release after the loss", late, &[ErrorKind::Lost])?;
        }
        for _ in 0..10 {
            is_kept(role.opponent(), &third, &name, "after a late release").await?;
            tokio::time::sleep(LOOK * 5).await;
        }
        ensure!(next.is_valid(), "the next holder lost it: {:?}", next.loss());
        end(next).await?;
        held!("late releases failed with Lost and freed nothing")
    };
    play(roles, async |role| fixture.hold(role).await, event, heal, judge).await
}

/// Checks L7: a holder learns that an operator deleted one of its holdings, and loses no other.
pub(crate) async fn a_deleted_holding_is_lost(harness: &dyn Harness, roles: &[Role]) -> Step<Vec<Outcome>> {
    let fixture = Fixture::open(harness, harness.ttl()).await?;
    let limit = fixture.holder.ttl() + slack();
    let event = async |all: &[Vec<Held>]| {
        fixture.renewed().await?;
        for held in all {
            let key = held[0].holdings()[0].key().to_owned();
            done("the deletion", operator(harness)?.revoke_request(&key)).await?;
        }
        Ok(Instant::now())
    };
    let judge = async |role: Role, held: Vec<Held>, deleted: &Instant| {
        if let Some(first) = held[0].holdings().first() {
            within(limit, "the loss signal after a deletion", first.lost()).await?;
            ensure!(!first.is_valid(), "a deleted {} is valid", role.word());
            let error = first.loss_error();
            ensure!(
                error.is_some_and(|error| !error.needs_new_session()),
                "the error of a deleted holding asks for a new session, though its session lives"
            );
        }
        let took = deleted.elapsed();
        tokio::time::sleep(fixture.holder.ttl()).await;
        ensure!(
            fixture.holder.is_valid() && held[1].is_valid(),
            "the deletion of one holding ended its session, or another one as {:?}",
            held[1].loss()
        );
        held!("noticed after {took:?}, with a TTL of {:?}", fixture.holder.ttl())
    };
    play(roles, async |role| fixture.hold(role).await, event, nothing(), judge).await
}

/// Checks L7: a release that reaches the store after an operator deleted the holding reports the loss, and frees
/// nothing of the next holder, although its session lives.
pub(crate) async fn a_release_after_a_deletion_is_lost(harness: &dyn Harness, roles: &[Role]) -> Step<Vec<Outcome>> {
    let (fixture, link) = Fixture::linked(harness, LONG).await?;
    let third = open(harness, LONG).await?;
    let event = async |all: &[Vec<Held>]| {
        // The holder does not learn of the deletion before it releases.
        link.silence();
        for held in all {
            let key = held[0].holdings()[0].key().to_owned();
            done("the deletion", operator(harness)?.revoke_request(&key)).await?;
        }
        Ok(())
    };
    let heal = async {
        settle().await;
        settle().await;
        link.heal();
    };
    let judge = async |role: Role, held: Vec<Held>, (): &()| {
        let name = named("fixture", role);
        let next = becomes_free(role, &fixture.other, &name, PROMPT, "after a deletion").await?;
        let mut held = held.into_iter();
        let deleted = held.next().unwrap_or(Held::Passed);
        let late = promptly("an answer to a late release", deleted.finish()).await?;
        refused("a release after a deletion", late, &[ErrorKind::Lost])?;
        is_kept(role.opponent(), &third, &name, "after a late release").await?;
        ensure!(next.is_valid(), "the next holder lost it: {:?}", next.loss());
        end(next).await?;
        ensure!(fixture.holder.is_valid(), "the session ended");
        held!("the late release failed with Lost and freed nothing")
    };
    play(roles, async |role| fixture.hold(role).await, event, heal, judge).await
}

/// One way to end a holding.
type End = fn(Held) -> BoxFuture<'static, tenure_core::Result<()>>;

/// Checks L7: an end that is dropped at any await point still takes place: a release, an acknowledgement, a downgrade.
pub(crate) async fn a_cancelled_end_still_ends(harness: &dyn Harness, role: Role) -> Verdict {
    let (holder, other) = (open(harness, LONG).await?, open(harness, LONG).await?);
    let release: End = |held| Box::pin(held.release());
    let downgrade: End = |held| {
        Box::pin(async {
            match held {
                // The guard that the caller does not receive releases the rest.
                Held::Writer(guard) => guard.downgrade().await.map(drop),
                held => held.release().await,
            }
        })
    };
    let ends: &[End] = match role {
        Role::Writer => &[release, downgrade],
        _ => &[release],
    };
    let name = "ended";
    done("enqueue", role.prepare(&other, name)).await?;
    let mut dropped = 0;
    for end in ends {
        let baseline = count_keys(harness).await?;
        let make = async || {
            let held = becomes_free(role, &other, name, PROMPT, "after a cancelled end").await?;
            done("a release", held.release()).await?;
            let held = promptly("a grant of what is free", hold_again(role, &holder, name)).await??;
            Ok(end(held))
        };
        let after = async |_| {
            let held = becomes_free(role, &other, name, PROMPT, "after a cancelled end").await?;
            done("a release", held.release()).await?;
            keys_return_to(baseline, harness).await
        };
        dropped += at_every_await_point(make, after).await?;
    }
    if role == Role::Delivery {
        dropped += acknowledgements(harness).await?;
    }
    dropped += closes(harness, role).await?;
    held!("{dropped} ends were dropped at their await points and took place")
}

/// Acquires, although a participant or a hold of an end in the background may still be there.
async fn hold_again(role: Role, session: &tenure_core::Session, name: &str) -> tenure_core::Result<Held> {
    loop {
        match role.acquire(session, name).await {
            Err(error) if error.kind() == ErrorKind::Conflict => tokio::time::sleep(LOOK).await,
            answer => return answer,
        }
    }
}

/// Drops acknowledgements at their await points: the items are gone all the same.
async fn acknowledgements(harness: &dyn Harness) -> Step<usize> {
    let session = open(harness, LONG).await?;
    let queue = session.queue("acknowledged");
    let make = async || {
        done("enqueue", queue.enqueue("work")).await?;
        let delivery = done("dequeue", queue.dequeue()).await?;
        Ok(delivery.ack())
    };
    let after = async |_| {
        let gone = async {
            while queue.len().await? > 0 {
                tokio::time::sleep(LOOK).await;
            }
            Ok(())
        };
        done("the end of an acknowledged item", gone).await
    };
    at_every_await_point(make, after).await
}

/// Drops the close of a session at its await points: what it held is free all the same.
async fn closes(harness: &dyn Harness, role: Role) -> Step<usize> {
    let name = "closed";
    let other = open(harness, LONG).await?;
    done("enqueue", role.prepare(&other, name)).await?;
    let mut kept = Vec::new();
    let make = async || {
        let session = open(harness, LONG).await?;
        kept.push(promptly("a grant of what is free", hold_again(role, &session, name)).await??);
        Ok(async move { session.close().await })
    };
    let after = async |_| {
        let held = becomes_free(role, &other, name, PROMPT, "after a cancelled close").await?;
        done("a release", held.release()).await
    };
    at_every_await_point(make, after).await
}

/// Checks the rules for a store: a request that arrives twice does what it does once.
pub(crate) async fn a_repeated_request_counts_once(harness: &dyn Harness, role: Role) -> Verdict {
    let linked = done("a connection", harness.linked()).await?;
    let (holder, other) = (open_on(&linked.store, LONG).await?, open_on(&linked.store, LONG).await?);
    let third = open(harness, LONG).await?;
    let baseline = count_keys(harness).await?;
    linked.link.repeat();
    for number in 0..3 {
        let (name, sides) = (format!("repeated {number}"), (role.opponent(), role));
        let mut contention = Contention::set(harness, sides, &holder, &other, &name).await?;
        if role.is_of_a_queue() {
            let depth = done("depth", third.queue(&name).len()).await?;
            ensure!(
                depth == role.units() as u64,
                "{} items were enqueued once, and there are {depth}",
                role.units()
            );
        }
        contention.waits("while every request arrived twice")?;
        done("a release", contention.held.release()).await?;
        let next = contention.waiter.end(PROMPT, "the grant to the waiter").await??;
        done("the end", next.finish()).await?;
        done("enqueue", role.prepare(&third, &name)).await?;
        let free = becomes_free(role, &third, &name, PROMPT, "after repeated releases").await?;
        done("the end", free.finish()).await?;
    }
    linked.link.heal();
    keys_return_to(baseline, harness).await?;
    held!("requests that arrived twice were granted, released and handed on once")
}
