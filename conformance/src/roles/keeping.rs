//! What a session keeps, and when it ends: rules S1 to S4.

use std::time::Duration;

use tokio::time::Instant;

use super::Role;
use super::scene::{Contest, Scene, end, is_kept, settle};
use crate::case::Verdict;
use crate::cases::tools::*;
use crate::harness::Harness;
use crate::patient::patience;

/// S1: closing a session frees all that it held at once.
pub(crate) async fn closing_frees(harness: &dyn Harness, role: Role) -> Verdict {
    let baseline = count_keys(harness).await?;
    let scene = Scene::set(harness, role, LONG).await?;
    scene.is_kept("before the close").await?;
    promptly("close", scene.holder.clone().close()).await??;
    for held in &scene.held {
        ensure!(
            held.holdings().is_empty() || !held.is_valid(),
            "after the close of its session, a {} is valid",
            role.word()
        );
    }
    let took = scene.becomes_free(PROMPT, "after a close").await?;
    promptly("close", scene.other.close()).await??;
    keys_return_to(baseline, PROMPT, harness).await?;
    held!("free {took:?} after the close of a session of {LONG:?}")
}

/// S1: dropping a session and all that came of it frees in the background.
pub(crate) async fn dropping_frees(harness: &dyn Harness, role: Role) -> Verdict {
    let baseline = count_keys(harness).await?;
    let mut scene = Scene::set(harness, role, LONG).await?;
    scene.is_kept("before the drop").await?;
    let gone = open(harness, LONG).await?;
    let dropped = std::mem::replace(&mut scene.holder, gone);
    drop((std::mem::take(&mut scene.held), dropped));
    let took = scene.becomes_free(PROMPT, "after a drop").await?;
    promptly("close", scene.holder.close()).await??;
    promptly("close", scene.other.close()).await??;
    keys_return_to(baseline, PROMPT, harness).await?;
    held!("free {took:?} after the drop of a session of {LONG:?}")
}

/// S1: what is renewed is held for several TTLs, while another waits for it.
pub(crate) async fn kept_for_ttls(harness: &dyn Harness, role: Role) -> Verdict {
    let rival = open(harness, LONG).await?;
    let scene = Scene::set(harness, role, harness.ttl()).await?;
    let contest = Contest::set(
        harness,
        (role, role.opponent()),
        &scene.holder,
        &rival,
        "contested",
    )
    .await?;
    let ttl = scene.holder.ttl();
    let period = ttl * 33 / 10;
    scene
        .is_kept_for(period, "while its session was renewed")
        .await?;
    scene.is_valid("while its session was renewed")?;
    in_time!(contest.held.is_valid(), "lost: {:?}", contest.held.loss());
    contest.waits("while the holder's session was renewed")?;
    let mut waiter = contest.waiter;
    promptly("a release", contest.held.release()).await??;
    let next = waiter.end(PROMPT, "the grant to the waiter").await??;
    end(next).await?;
    held!("held for {period:?} with a TTL of {ttl:?} while another waited")
}

/// S3: a long TTL is kept whole by the store, renewed or not.
pub(crate) async fn a_long_ttl_is_kept(harness: &dyn Harness, role: Role) -> Verdict {
    let (scene, link) = Scene::linked(harness, role, harness.ttl() * 4).await?;
    let ttl = scene.holder.ttl();
    let deadline = scene.renewed().await?;
    link.silence();
    let silent = Instant::now();
    scene
        .is_kept_in_a_silence(ttl * 9 / 10, deadline, "in a silence of 9/10 of its TTL")
        .await?;
    link.heal();
    held!(
        "kept for {:?} without a renewal, of a TTL of {ttl:?}",
        silent.elapsed()
    )
}

/// S3: a silence that is shorter than the TTL frees nothing, and nothing after it.
pub(crate) async fn kept_in_a_silence(harness: &dyn Harness, role: Role) -> Verdict {
    let (scene, link) = Scene::linked(harness, role, harness.ttl()).await?;
    let ttl = scene.holder.ttl();
    let deadline = scene.renewed().await?;
    link.silence();
    scene
        .is_kept_in_a_silence(ttl / 2, deadline, "in a silence of half its TTL")
        .await?;
    link.heal();
    scene
        .is_kept_for(ttl * 5 / 4, "after a silence of half its TTL")
        .await?;
    scene.is_valid("after a silence of half its TTL")?;
    held!(
        "kept in and after a silence of {:?} with a TTL of {ttl:?}",
        ttl / 2
    )
}

/// S3: a cut connection frees nothing.
pub(crate) async fn kept_in_a_cut(harness: &dyn Harness, role: Role) -> Verdict {
    let (scene, link) = Scene::linked(harness, role, harness.ttl()).await?;
    let ttl = scene.holder.ttl();
    for _ in 0..2 {
        link.cut();
        scene
            .is_kept_for(ttl / 4, "after a cut of its connection")
            .await?;
    }
    scene
        .is_kept_for(ttl * 5 / 4, "after two cuts of its connection")
        .await?;
    scene.is_valid("after two cuts of its connection")?;
    held!("kept in and after two cuts with a TTL of {ttl:?}")
}

/// S3: answers that are slow, but come before the TTL is over, cost nothing.
pub(crate) async fn kept_when_answers_are_slow(harness: &dyn Harness, role: Role) -> Verdict {
    let (scene, link) = Scene::linked(harness, role, harness.ttl()).await?;
    let ttl = scene.holder.ttl();
    for _ in 0..5 {
        link.hold();
        scene
            .is_kept_for(ttl / 5, "while answers were slow")
            .await?;
        link.heal();
        scene
            .is_kept_for(ttl / 10, "after answers had been slow")
            .await?;
    }
    scene.is_valid("after answers had been slow")?;
    held!("kept with answers that took up to {:?}", ttl / 5)
}

/// S2: the loss is signalled by the deadline, and before another has it.
pub(crate) async fn loss_is_signalled(harness: &dyn Harness, role: Role) -> Verdict {
    let (scene, link) = Scene::linked(harness, role, harness.ttl()).await?;
    let ttl = scene.holder.ttl();
    let signals: Vec<_> = scene
        .held
        .iter()
        .flat_map(|held| held.holdings())
        .map(|it| it.lost())
        .collect();
    let count = signals.len();
    let mut signalled = spawn(async move {
        futures_util::future::join_all(signals).await;
        Instant::now()
    });
    link.silence();
    let silent = Instant::now();
    let limit = ttl * 2 + expiry_bound(harness).await? + SLACK * 2;
    while is_kept(role, &scene.other, "stage", "in a silence")
        .await
        .is_ok()
    {
        in_time!(
            silent.elapsed() < limit * patience(),
            "still kept {limit:?} later"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for held in &scene.held {
        ensure!(
            !held.is_valid(),
            "{:?} into a silence another had it, and the {} counted itself valid",
            silent.elapsed(),
            role.word()
        );
    }
    let signalled = signalled
        .end(SLACK, "the loss signal")
        .await?
        .duration_since(silent);
    in_time!(
        signalled <= ttl + SLACK * patience(),
        "{count} holdings of a TTL of {ttl:?} signalled their loss after {signalled:?}"
    );
    held!(
        "{count} holdings of a TTL of {ttl:?} signalled their loss after {signalled:?} of silence"
    )
}

/// S3: what a silent session held is free by its TTL and the stated bound.
pub(crate) async fn freed_after_the_ttl(harness: &dyn Harness, role: Role) -> Verdict {
    let (scene, link) = Scene::linked(harness, role, harness.ttl()).await?;
    let ttl = scene.holder.ttl();
    let bound = expiry_bound(harness).await?;
    link.silence();
    let took = scene
        .becomes_free(ttl + bound + SLACK, "in a silence")
        .await?;
    held!("free {took:?} into a silence, with a TTL of {ttl:?} and a bound of {bound:?}")
}

/// S3: a waiter gets what a silent session held.
pub(crate) async fn handed_on_after_the_ttl(harness: &dyn Harness, role: Role) -> Verdict {
    let linked = harness.linked().await?;
    let holder = promptly("open", open_on(&linked.store, harness.ttl())).await??;
    let rival = open(harness, LONG).await?;
    let mut contest =
        Contest::set(harness, (role, role.opponent()), &holder, &rival, "left").await?;
    let limit = holder.ttl() + expiry_bound(harness).await? + SLACK;
    linked.link.silence();
    let silent = Instant::now();
    let next = contest
        .waiter
        .end(limit, "the grant to the waiter in a silence of the holder")
        .await??;
    let took = silent.elapsed();
    ensure!(
        contest.held.holdings().is_empty() || !contest.held.is_valid(),
        "{took:?} into a silence both were valid"
    );
    end(next).await?;
    held!("granted to the waiter {took:?} into a silence of the holder")
}

/// S4: an operator's revocation frees what the session held, and its holder learns of it.
pub(crate) async fn a_revocation_frees(harness: &dyn Harness, role: Role) -> Verdict {
    let scene = Scene::set(harness, role, harness.ttl()).await?;
    settle().await;
    promptly(
        "the revocation",
        operator(harness)?.revoke(scene.holder.id()),
    )
    .await??;
    let took = scene.becomes_free(PROMPT, "after a revocation").await?;
    for held in &scene.held {
        for holding in held.holdings() {
            let lost = within(
                scene.holder.ttl() + SLACK,
                "the loss signal",
                holding.lost(),
            );
            lost.await?;
        }
    }
    held!("free {took:?} after the revocation, and signalled")
}
