//! Wake-ups: rule L3.

use std::time::Duration;

use tenure_core::Session;

use super::Role;
use super::scene::*;
use crate::harness::{Harness, Link};
use crate::outcome::{Outcome, Step};
use crate::tools::*;

/// Checks L3: a release wakes each waiter, both after `trouble` is over and during it.
async fn woken_after(harness: &dyn Harness, roles: &[Role], what: &str, trouble: fn(&dyn Link)) -> Step<Vec<Outcome>> {
    let (other, link) = open_linked(harness, LONG).await?;
    let holder = open(harness, LONG).await?;
    let set = async |role: Role| {
        let contention = async |name| {
            let (name, sides) = (named(name, role), (role.opponent(), role));
            Contention::set(harness, sides, &holder, &other, &name).await
        };
        Ok([contention("during").await?, contention("after").await?])
    };
    let event = async |_: &[[Contention; 2]]| {
        trouble(&*link);
        tokio::time::sleep(LOOK * 15).await;
        Ok(())
    };
    let heal = async {
        tokio::time::sleep(LOOK * 30).await;
        link.heal();
    };
    let judge = async |_, [mut during, mut after]: [Contention; 2], (): &()| {
        during.waits(what)?;
        after.waits(what)?;
        done("a release", during.held.release()).await?;
        tokio::time::sleep(LOOK * 60).await;
        // The link is healed by now.
        after.waits(what)?;
        let next = during.waiter.end(PROMPT, "the grant of a release during it").await??;
        end(next).await?;
        done("a release", after.held.release()).await?;
        let next = after.waiter.end(PROMPT, "the grant of a release after it").await??;
        end(next).await?;
        held!("granted after {what}, for the release during it and the one after it")
    };
    play(roles, set, event, heal, judge).await
}

/// Checks L3: no wake-up is lost in a silence of the waiter's link.
pub(crate) async fn woken_after_a_silence(harness: &dyn Harness, roles: &[Role]) -> Step<Vec<Outcome>> {
    woken_after(harness, roles, "a silence", |link| link.silence()).await
}

/// Checks L3: no wake-up is lost when the waiter's connection is cut.
pub(crate) async fn woken_after_a_cut(harness: &dyn Harness, roles: &[Role]) -> Step<Vec<Outcome>> {
    woken_after(harness, roles, "a cut", |link| link.cut()).await
}

/// Checks L3: a release wakes the waiter although the store's notification was lost.
pub(crate) async fn woken_though_notifications_are_lost(harness: &dyn Harness, roles: &[Role]) -> Step<Vec<Outcome>> {
    woken_after(harness, roles, "a loss of answers", |link| link.mute()).await
}

/// Checks L3: a waiter sends no requests beyond those that its session sends anyway.
pub(crate) async fn waiting_sends_nothing(harness: &dyn Harness, roles: &[Role]) -> Step<Vec<Outcome>> {
    const PERIOD: Duration = Duration::from_secs(3);
    let (_resting, idle) = open_linked(harness, LONG).await?;
    let holder = open(harness, LONG).await?;
    let set = async |role: Role| {
        let (other, link) = open_linked(harness, LONG).await?;
        let (name, sides) = (named("quiet", role), (role.opponent(), role));
        let contention = Contention::set(harness, sides, &holder, &other, &name).await?;
        Ok((other, link, contention))
    };
    let count = |link: &dyn Link| {
        let missing = || Outcome::not_run("the link does not count its requests");
        link.requests().ok_or_else(missing)
    };
    type Waiting = (Session, Box<dyn Link>, Contention);
    let event = async |all: &[Waiting]| {
        settle().await;
        let mut before = Vec::new();
        for (_, link, _) in all {
            before.push((count(&**link)?, 0));
        }
        let at_rest = count(&*idle)?;
        tokio::time::sleep(PERIOD).await;
        for ((_, link, _), (_, after)) in all.iter().zip(&mut before) {
            *after = count(&**link)?;
        }
        let sent = before.iter().map(|(before, after)| after - before).collect::<Vec<_>>();
        Ok((sent, count(&*idle)? - at_rest))
    };
    let places: Vec<Role> = roles.to_vec();
    let judge = async |role: Role, (_other, _link, mut contention): Waiting, (sent, idle): &(Vec<u64>, u64)| {
        contention.waits("meanwhile")?;
        let place = places.iter().position(|it| *it == role).unwrap_or_default();
        // Where a role could not be prepared, the numbers of the others move up.
        let sent = sent.get(place).or(sent.last()).copied().unwrap_or_default();
        // A slow check for dead holders is allowed; twice a second is not slow. A waiter that has just begun to
        // wait on a busy machine may still send.
        in_time!(
            sent <= idle + 4,
            "in {PERIOD:?} a waiting session sent {sent} requests, an idle one {idle}"
        );
        done("a release", contention.held.release()).await?;
        end(contention.waiter.end(PROMPT, "the grant to the waiter").await??).await?;
        held!("in {PERIOD:?} a waiting session sent {sent} requests, an idle one {idle}")
    };
    play(roles, set, event, nothing(), judge).await
}
