//! Transactions: rules T3 to T5, on commits, their guards, their lost answers and their limits.

use std::sync::Arc;
use std::time::Duration;

use tenure_core::guarantees::Line;
use tenure_core::value::MAX_VALUE_BYTES;
use tenure_core::{Compare, Effect, ErrorKind, Holding, MAX_OPERATIONS, Op, Session};

use super::stm::{has, increment, number};
use super::{granted, request_is_delayed};
use crate::case::cases;
use crate::harness::Harness;
use crate::outcome::{Outcome, Step, Verdict};
use crate::tools::{
    LONG, PROMPT, done, ensure, held, in_time, offered, open, open_linked, operator, promptly, refused, revoke, settle,
    spawn, within,
};

cases! { CASES:
    t3_lost_guard_commits_nothing "T3"
        "a transaction bound to a guard that the store does not hold any more does not commit"
        (Some(Line::FencedCommit)) [RevokeRequest] fenced_commit;
    t3_every_kind_of_guard_binds "T3"
        "leaderships, readers, writers, deliveries and participants bind commits as locks do"
        (Some(Line::FencedCommit)) [RevokeRequest] fenced_commit;
    t3_revoked_holder_commits_nothing "T3" "a holder whose session was ended commits nothing, bound to its guard or not"
        (Some(Line::FencedCommit)) [Revoke] fenced_commit;
    t3_no_commit_follows_a_successors "T3"
        "a deposed holder that commits as fast as it can commits nothing after its successor"
        (Some(Line::FencedCommit)) [RevokeRequest] fenced_commit;
    t3_late_commit_of_a_writer_spares_the_readers "T3"
        "a writer's commit that arrives after its downgrade has no effect"
        (Some(Line::FencedCommit)) [DelayRequest] fenced_commit;
    t4_lost_answer_is_resolved "T4" "a commit whose answer was lost is resolved, and never done twice"
        (Some(Line::UnknownCommit)) [Mute] commits_are_resolved;
    t4_late_commit_never_lands "T4" "a commit that arrives after it was resolved as aborted has no effect"
        (Some(Line::UnknownCommit)) [DelayRequest] commits_are_resolved;
    t4_unknown_outcome_is_reported "T4" "a commit that cannot be resolved before its session ends is CommitUnknown"
        (Some(Line::UnknownCommit)) [Mute] transactions;
    t5_limits_are_errors_before_sending "T5"
        "a transaction that is too large, or writes a key twice, is refused before anything is sent"
        (None) [Silence] transactions;
}

async fn t3_lost_guard_commits_nothing(harness: &dyn Harness) -> Verdict {
    let (session, other) = (open(harness, LONG).await?, open(harness, LONG).await?);
    let guard = done("lock", session.lock("fence")).await?;
    let stm = session.stm();
    let fenced = stm.fenced_by(&guard);
    done("a commit while held", fenced.run(async |tx| tx.put("guarded", "first"))).await?;
    done("a deletion", operator(harness)?.revoke_request(guard.key())).await?;
    let successor = done("lock", other.lock("fence")).await?;
    let mut refusals = Vec::new();
    let writes = fenced.run(async |tx| {
        tx.get("guarded").await?;
        tx.put("guarded", "late")
    });
    refusals.push(promptly("an answer", writes).await?);
    let reads = fenced.run(async |tx| tx.get("guarded").await.map(drop));
    refusals.push(promptly("an answer", reads).await?);
    for holds in [0, 1] {
        let txn = stm.txn().fenced_by(&guard).when([Compare::create("absent").eq(holds)]);
        let txn = txn
            .then([Op::put("guarded", "late")])
            .or_else([Op::put("guarded", "later")]);
        refusals.push(promptly("an answer", txn.commit()).await?.map(drop));
    }
    for refusal in refusals {
        let error = refused("a commit bound to a lost guard", refusal, &[ErrorKind::Lost])?;
        ensure!(
            error.effect() == Effect::None,
            "a refused commit leaves its effect open: {error:?}"
        );
    }
    has(
        &other.stm(),
        "guarded",
        Some("first"),
        "after the commits of a lost guard",
    )
    .await?;
    let own = other
        .stm()
        .txn()
        .fenced_by(&successor)
        .then([Op::put("guarded", "second")]);
    done("the successor's commit", own.commit()).await?;
    let foreign = promptly("an answer", session.stm().txn().fenced_by(&successor).commit()).await?;
    refused(
        "a commit bound to a guard of another session",
        foreign,
        &[ErrorKind::Config],
    )?;
    held!("four commits were refused with Lost after the guard had ended, the successor's took effect")
}

/// Checks that commits bound to `guard` take effect while it is held, and none after an operator has deleted it.
async fn binds(harness: &dyn Harness, session: &Session, kind: &str, guard: &Holding) -> Step<()> {
    let stm = session.stm();
    let bound = |value: &str| stm.txn().fenced_by(guard).then([Op::put("guarded", value)]).commit();
    let first = promptly("a commit while held", bound(kind)).await?;
    first.map_err(|error| Outcome::violated(format!("a commit bound to a {kind} that is held: {error}")))?;
    done("a deletion", operator(harness)?.revoke_request(guard.key())).await?;
    let late = promptly("an answer", bound("late")).await?;
    let error = refused(&format!("a commit bound to a lost {kind}"), late, &[ErrorKind::Lost])?;
    ensure!(
        error.effect() == Effect::None,
        "a refused commit leaves its effect open: {error:?}"
    );
    has(&stm, "guarded", Some(kind), "after the commit of a lost guard").await
}

async fn t3_every_kind_of_guard_binds(harness: &dyn Harness) -> Verdict {
    let session = open(harness, LONG).await?;
    let lead = done("campaign", session.election("fence").campaign("me")).await?;
    binds(harness, &session, "leadership", &lead).await?;
    // Another reader of the same session does not stand in for it.
    let (reader, _other) = (
        done("read", session.read_lock("r")).await?,
        done("read", session.read_lock("r")).await?,
    );
    binds(harness, &session, "reader", &reader).await?;
    let writer = done("write", session.write_lock("w")).await?;
    binds(harness, &session, "writer", &writer).await?;
    let writer = done("write", session.write_lock("d")).await?;
    let downgraded = done("downgrade", writer.downgrade()).await?;
    binds(harness, &session, "downgraded writer", &downgraded).await?;
    let jobs = session.queue("fence");
    if offered(done("enqueue", jobs.enqueue_many(["work", "more work"])).await)?.is_some() {
        let (delivery, _other) = (
            done("dequeue", jobs.dequeue()).await?,
            done("dequeue", jobs.dequeue()).await?,
        );
        binds(harness, &session, "delivery", &delivery).await?;
    }
    let inside = done("enter", session.double_barrier("fence", 1).enter()).await?;
    binds(harness, &session, "participant", &inside).await?;
    held!(
        "leadership, reader, writer, downgraded writer, participant and, on a store with queues, delivery bound their commits"
    )
}

async fn t3_revoked_holder_commits_nothing(harness: &dyn Harness) -> Verdict {
    let (holder, other) = (open(harness, LONG).await?, open(harness, LONG).await?);
    let guard = done("lock", holder.lock("fence")).await?;
    revoke(harness, holder.id()).await?;
    let stm = holder.stm();
    let bound = stm.txn().fenced_by(&guard).then([Op::put("guarded", "late")]);
    // The news of the end may arrive while the first commit is under way, whose outcome is not waited for then.
    refused(
        "a commit bound to a lost guard",
        promptly("an answer", bound.commit()).await?,
        &[ErrorKind::Lost, ErrorKind::CommitUnknown],
    )?;
    within(PROMPT, "the news of the end", holder.lost()).await?;
    let own = promptly("an answer", stm.put("guarded", "late")).await?;
    refused("a commit of a revoked session", own, &[ErrorKind::Lost])?;
    has(&other.stm(), "guarded", None, "after the commits of a revoked session").await?;
    held!("refused, and nothing was written")
}

async fn t3_no_commit_follows_a_successors(harness: &dyn Harness) -> Verdict {
    let (holder, next) = (open(harness, LONG).await?, open(harness, LONG).await?);
    let mut commits = 0;
    for _ in 0..4 {
        let guard = Arc::new(done("lock", holder.lock("fence")).await?);
        let (late, stm) = (Arc::clone(&guard), holder.stm());
        let mut deposed = spawn(async move {
            let mut count = 0;
            loop {
                match stm
                    .txn()
                    .fenced_by(&late)
                    .then([Op::put("guarded", "deposed")])
                    .commit()
                    .await
                {
                    Ok(_) => count += 1,
                    Err(error) if error.kind() == ErrorKind::Lost => return Ok(count),
                    Err(error) => return Err(error),
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
        tokio::time::sleep(Duration::from_millis(20)).await;
        done("a deletion", operator(harness)?.revoke_request(guard.key())).await?;
        let successor = done("lock", next.lock("fence")).await?;
        let own = next
            .stm()
            .txn()
            .fenced_by(&successor)
            .then([Op::put("guarded", "successor")]);
        done("the successor's commit", own.commit()).await?;
        commits += granted(&mut deposed, "the refusal of the deposed holder").await?;
        has(
            &next.stm(),
            "guarded",
            Some("successor"),
            "after the successor's commit",
        )
        .await?;
        done("release", successor.release()).await?;
    }
    in_time!(commits > 0, "the deposed holders never committed");
    held!("{commits} commits of holders until they were deposed, none after their successors'")
}

async fn t3_late_commit_of_a_writer_spares_the_readers(harness: &dyn Harness) -> Verdict {
    let other = open(harness, LONG).await?;
    let (session, link) = open_linked(harness, LONG).await?;
    let stm = session.stm();
    let writer = Arc::new(done("write", session.write_lock("turned")).await?);
    done("put", other.stm().put("guarded", "before")).await?;
    let (bound, late) = (stm.clone(), Arc::clone(&writer));
    link.delay_request();
    let committing = spawn(async move {
        bound
            .txn()
            .fenced_by(&late)
            .then([Op::put("guarded", "by the writer")])
            .commit()
            .await
    });
    // Its caller gives up as soon as the request is on its way.
    request_is_delayed(&*link).await?;
    drop(committing);
    let writer = unshare(writer).await?;
    let downgraded = done("downgrade", writer.downgrade()).await?;
    let beside = done("read", other.read_lock("turned")).await?;
    let found = done("get", other.stm().get_string("guarded")).await?;
    link.deliver();
    settle().await;
    let later = done("get", other.stm().get_string("guarded")).await?;
    ensure!(
        found == later,
        "beside a reader a commit of the downgraded writer changed {found:?} to {later:?}"
    );
    ensure!(beside.is_valid() && downgraded.is_valid(), "a reader was lost");
    let own = stm
        .txn()
        .fenced_by(&downgraded)
        .then([Op::put("guarded", "by a reader")]);
    done("a commit of the downgraded guard", own.commit()).await?;
    held!("a commit that arrived after the downgrade changed nothing; the downgraded guard commits as a reader")
}

/// Returns the value once no task shares it.
async fn unshare<T>(mut shared: Arc<T>) -> Step<T> {
    for _ in 0..100 {
        match Arc::try_unwrap(shared) {
            Ok(value) => return Ok(value),
            Err(still) => shared = still,
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Err(Outcome::unjudged("a dropped task did not end"))
}

async fn t4_lost_answer_is_resolved(harness: &dyn Harness) -> Verdict {
    let other = open(harness, LONG).await?.stm();
    let (session, link) = open_linked(harness, LONG).await?;
    let stm = session.stm();
    let rounds = 3_u64;
    for round in 0..rounds {
        done("an increment", increment(&stm, "count")).await?;
        // In flight when the answers cease. A blind write shows by its version whether it happened twice.
        let (counting, writing) = (stm.clone(), stm.clone());
        let mut counting = spawn(async move { increment(&counting, "count").await });
        let mut writing = spawn(async move { writing.put("blind", "x").await });
        for _ in 0..round {
            tokio::task::yield_now().await;
        }
        link.mute();
        settle().await;
        link.heal();
        granted(&mut counting, "the outcome of an increment").await?;
        granted(&mut writing, "the outcome of a blind write").await?;
        // From the start without answers, in one branch or the other.
        link.mute();
        let (branching, holds) = (stm.clone(), round % 2 == 0);
        let mut branching = spawn(async move {
            let absent = Compare::create("absent").eq(if holds { 0 } else { 1 });
            let txn = branching.txn().when([absent]).then([Op::put("blind", "y")]);
            txn.or_else([Op::put("blind", "z")]).commit().await
        });
        settle().await;
        ensure!(
            !branching.is_finished(),
            "a commit was confirmed over a link without answers"
        );
        link.heal();
        let outcome = granted(&mut branching, "the outcome of a commit").await?;
        ensure!(
            outcome.succeeded == holds,
            "its comparison was {holds}, and the outcome is {}",
            outcome.succeeded
        );
        has(
            &other,
            "blind",
            Some(if holds { "y" } else { "z" }),
            "after a commit without an answer",
        )
        .await?;
    }
    let (count, blind) = (
        number(&other, "count").await?,
        done("entry", other.entry("blind")).await?,
    );
    let version = blind.map_or(0, |entry| entry.version);
    ensure!(
        count == 2 * rounds,
        "{} increments were confirmed, and the counter is {count}",
        2 * rounds
    );
    ensure!(
        version == 2 * rounds,
        "{} writes were confirmed, and the key has version {version}",
        2 * rounds
    );
    in_time!(session.is_valid(), "the session was lost: {:?}", session.loss());
    held!("{count} increments and {version} blind writes over a link that lost answers, each done once")
}

async fn t4_late_commit_never_lands(harness: &dyn Harness) -> Verdict {
    let other = open(harness, LONG).await?.stm();
    let (session, link) = open_linked(harness, LONG).await?;
    let stm = session.stm();
    // It arrives while the commit is under way again, after it was resolved.
    link.delay_request();
    let writing = stm.clone();
    let mut writing = spawn(async move { writing.put("resolved", "once").await });
    request_is_delayed(&*link).await?;
    link.deliver();
    granted(&mut writing, "the outcome of a commit").await?;
    settle().await;
    let version = done("entry", other.entry("resolved"))
        .await?
        .map_or(0, |entry| entry.version);
    ensure!(
        version == 1,
        "one commit was confirmed, and the key has version {version}"
    );
    // It arrives after the commit was done.
    done("put", stm.put("blind", "before")).await?;
    link.delay_request();
    let writing = stm.clone();
    let mut writing = spawn(async move { writing.put("blind", "late").await });
    request_is_delayed(&*link).await?;
    let ended = writing
        .end(PROMPT, "the outcome of a commit whose request was kept")
        .await?;
    let confirmed = match ended {
        Ok(_) => 1,
        Err(error) if error.effect() == Effect::None => 0,
        Err(error) => return Err(error.into()),
    };
    let before = done("entry", other.entry("blind"))
        .await?
        .map_or(0, |entry| entry.version);
    ensure!(
        before == 1 + confirmed,
        "{confirmed} commits were confirmed after the first, and the version is {before}"
    );
    done("put", other.put("blind", "newer")).await?;
    link.deliver();
    settle().await;
    has(&other, "blind", Some("newer"), "after the early commit arrived").await?;
    let version = done("entry", other.entry("blind"))
        .await?
        .map_or(0, |entry| entry.version);
    ensure!(
        version == before + 1,
        "a commit that arrived late raised the version to {version}"
    );
    held!("resolved while its request was under way, and without effect when it arrived")
}

async fn t4_unknown_outcome_is_reported(harness: &dyn Harness) -> Verdict {
    let (session, link) = open_linked(harness, harness.ttl()).await?;
    let stm = session.stm();
    done("put", stm.put("key", "known")).await?;
    link.mute();
    let unknown = promptly("the end of a commit", stm.put("key", "unknown")).await?;
    let error = refused("a commit without an answer", unknown, &[ErrorKind::CommitUnknown])?;
    ensure!(
        error.effect() == Effect::Unknown && !error.is_retryable(),
        "an unknown commit ended with {error:?}"
    );
    ensure!(!session.is_valid(), "a commit was given up although its session lives");
    let after = promptly("the end of a commit", stm.put("key", "after")).await?;
    let after = refused("a commit after the loss", after, &[ErrorKind::Lost])?;
    ensure!(
        after.effect() == Effect::None,
        "a commit that was not sent ended with {after:?}"
    );
    link.heal();
    held!("reported when the session ended: {error}")
}

async fn t5_limits_are_errors_before_sending(harness: &dyn Harness) -> Verdict {
    let (session, link) = open_linked(harness, LONG).await?;
    let stm = session.stm();
    let puts = |count: usize| (0..count).map(|number| Op::put(format!("key {number}"), "v"));
    let gets = |count: usize| (0..count).map(|number| Op::get(format!("key {number}")));
    let compares = |count: usize| (0..count).map(|number| Compare::create(format!("key {number}")).eq(0));
    let quarters =
        |count: usize| (0..count).map(|at| Op::put(format!("quarter {at}"), vec![b'x'; MAX_VALUE_BYTES / 4]));
    let most = stm
        .txn()
        .when(compares(MAX_OPERATIONS))
        .then(puts(MAX_OPERATIONS))
        .or_else(gets(MAX_OPERATIONS));
    ensure!(
        done("the largest transaction", most.commit()).await?.succeeded,
        "absent keys were not absent"
    );
    done(
        "five quarters of the largest value",
        stm.txn().then(quarters(5)).commit(),
    )
    .await?;
    // A request that is sent from here on has no answer.
    link.silence();
    let one_more = MAX_OPERATIONS + 1;
    let large = || Op::put("large", vec![b'x'; MAX_VALUE_BYTES + 1]);
    let twice = [
        [Op::put("k", "1"), Op::put("k", "2")],
        [Op::put("k", "1"), Op::delete("k")],
    ]
    .map(|ops| stm.txn().then(ops));
    let [put_twice, put_and_deleted] = twice;
    let refusals = [
        (
            "too many comparisons",
            stm.txn().when(compares(one_more)),
            ErrorKind::TooLarge,
        ),
        (
            "too many operations",
            stm.txn().then(puts(one_more)),
            ErrorKind::TooLarge,
        ),
        ("too many reads", stm.txn().or_else(gets(one_more)), ErrorKind::TooLarge),
        (
            "a value that is too large",
            stm.txn().then([large()]),
            ErrorKind::TooLarge,
        ),
        (
            "too many bytes",
            stm.txn().then(quarters(4)).or_else(quarters(3)),
            ErrorKind::TooLarge,
        ),
        ("a key that is put twice", put_twice, ErrorKind::Conflict),
        ("a key that is put and deleted", put_and_deleted, ErrorKind::Conflict),
        (
            "an invalid name",
            stm.txn().then([Op::put("", "")]),
            ErrorKind::InvalidName,
        ),
    ];
    let checked = refusals.len() + 2;
    for (what, txn, kind) in refusals {
        let error = refused(what, not_sent(what, txn.commit()).await?, &[kind])?;
        ensure!(error.effect() == Effect::None, "{what}: {error:?}");
    }
    let many = stm.run(async |tx| (0..one_more).try_for_each(|number| tx.put(format!("key {number}"), "w")));
    refused(
        "too many writes",
        not_sent("too many writes", many).await?,
        &[ErrorKind::TooLarge],
    )?;
    let value = stm.run(async |tx| tx.put("large", vec![b'x'; MAX_VALUE_BYTES + 1]));
    refused(
        "a value that is too large",
        not_sent("a large value", value).await?,
        &[ErrorKind::TooLarge],
    )?;
    link.heal();
    held!("the largest transactions commit; {checked} others were refused over a silent link")
}

/// Awaits an answer that needs no request.
pub(super) async fn not_sent<T>(what: &str, answer: impl Future<Output = T>) -> Step<T> {
    let answer = tokio::time::timeout(PROMPT, answer).await;
    answer.map_err(|_| Outcome::violated(format!("{what}: sent instead of refused")))
}
