//! Transactions: rules T1 and T2, on isolation and attempts.

use std::cell::Cell;
use std::sync::Arc;

use parking_lot::Mutex;
use tenure_core::guarantees::Line;
use tenure_core::{Compare, Effect, Error, ErrorKind, Isolation, Op, OpResult, Result, Session, StmHandle, Tx};

use super::granted;
use crate::case::cases;
use crate::checkers::list_append::{self, Level};
use crate::harness::Harness;
use crate::outcome::{Outcome, Step, Verdict};
use crate::stress::append_to_lists;
use crate::tools::{
    LONG, at_every_await_point, done, ensure, held, in_time, open, open_on, promptly, refused, settle, spawn,
};

cases! { CASES:
    t1_appended_lists_have_no_cycle "T1"
        "lists that ten clients append to and read, at both serializable levels, show no cycle"
        (Some(Line::Isolation)) [] strictly_serializable;
    t1_no_write_skew "T1"
        "of two transactions that each check what the other changes, one runs again; the control shows the skew"
        (Some(Line::Isolation)) [] transactions;
    t1_attempt_reads_one_snapshot "T1"
        "no attempt reads half of another commit; the control, under repeatable-reads, does"
        (Some(Line::Isolation)) [] transactions;
    t1_snapshot_level_notices_newer_writes "T1"
        "the snapshot level overwrites no unread key that is newer than its snapshot"
        (Some(Line::Isolation)) [] transactions;
    t1_attempt_reads_its_own_writes "T1"
        "an attempt reads its own writes and deletions, and no other client does before the commit"
        (None) [] transactions;
    t1_changed_and_recreated_keys_are_noticed "T1"
        "a key that was deleted, created, or put again with the same bytes has changed"
        (Some(Line::Isolation)) [] transactions;
    t1_prefetch_changes_no_result "T1"
        "prefetched keys are read at the snapshot of the attempt, and bind it only if it reads them"
        (None) [] transactions;
    t1_limit_of_attempts_is_kept "T1"
        "a transaction that meets a conflict in each of its attempts ends with Conflict and no trace"
        (None) [] transactions;
    t1_comparisons_mean_the_same_everywhere "T1"
        "comparisons and operations of explicit transactions mean what they mean in etcd"
        (None) [] transactions;
    t2_aborted_attempt_leaves_no_trace "T2"
        "the writes of an attempt that failed or met a conflict are never seen" (None) [] transactions;
    t2_cancelled_transaction_is_whole_or_nothing "T2"
        "a transaction dropped at any await point happens whole or not at all"
        (None) [] transactions;
}

/// The levels under which committed transactions are serializable.
const SERIALIZABLE: [Isolation; 2] = [Isolation::SerializableSnapshot, Isolation::Serializable];

pub(super) async fn number(stm: &StmHandle, key: &str) -> Step<u64> {
    Ok(done("get", stm.get_as(key)).await?.unwrap_or(0))
}

pub(super) async fn increment(stm: &StmHandle, key: &'static str) -> Result<u64> {
    stm.run(|tx| async move {
        let count: u64 = tx.get_as(key).await?.unwrap_or(0);
        // Others have a turn in between, also on a store that makes no client wait.
        tokio::task::yield_now().await;
        tx.put_as(key, &(count + 1))?;
        Ok(count + 1)
    })
    .await
}

pub(super) async fn has(stm: &StmHandle, key: &str, value: Option<&str>, when: &str) -> Step<()> {
    let found = done("get", stm.get_string(key)).await?;
    ensure!(
        found.as_deref() == value,
        "{when}, {key:?} is {found:?} instead of {value:?}"
    );
    Ok(())
}

async fn t1_appended_lists_have_no_cycle(harness: &dyn Harness) -> Verdict {
    let mut committed = 0;
    for isolation in SERIALIZABLE {
        let history = append_to_lists(harness, isolation, 10, 15).await?;
        let judged = list_append::check(&history, Level::StrictSerializable);
        let summary = judged.map_err(|violation| Outcome::violated(format!("under {isolation}: {violation}")))?;
        committed += summary.committed;
    }
    // The control: the same clients without the checks, and the same judge.
    for _ in 0..5 {
        let history = append_to_lists(harness, Isolation::ReadCommitted, 10, 15).await?;
        if let Some(anomaly) = list_append::anomalies(&history).first() {
            let class = anomaly.class;
            return held!(
                "{committed} transactions without an anomaly; the control, under read-committed, shows: {class}"
            );
        }
    }
    Err(Outcome::unjudged(
        "the control, under read-committed, shows no anomaly: too little happened at a time",
    ))
}

/// Two doctors on call each leave if the other stays, at the same time. Returns how many are left.
async fn leave_together(sessions: [&Session; 2], isolation: Isolation) -> Step<u64> {
    let name = move |who: usize| format!("{isolation}: on call {who}");
    let stm = sessions[0].stm();
    done(
        "put",
        stm.txn().then([0, 1].map(|who| Op::put(name(who), "1"))).commit(),
    )
    .await?;
    let together = Arc::new(tokio::sync::Barrier::new(2));
    let mut leaving = Vec::new();
    for (me, session) in sessions.into_iter().enumerate() {
        let (stm, together) = (session.stm().isolation(isolation), Arc::clone(&together));
        leaving.push(spawn(async move {
            let mut attempts = 0;
            let run = stm.run(|tx: Tx| {
                attempts += 1;
                let (first, together) = (attempts == 1, Arc::clone(&together));
                async move {
                    let on_call = tx.get_many([name(0), name(1)]).await?;
                    if first {
                        together.wait().await;
                    }
                    if on_call.iter().all(|value| value.as_deref() == Some(b"1")) {
                        tx.put(name(me), "0")?;
                    }
                    Ok(())
                }
            });
            run.await
        }));
    }
    for task in &mut leaving {
        granted(task, "a transaction").await?;
    }
    Ok(number(&stm, &name(0)).await? + number(&stm, &name(1)).await?)
}

async fn t1_no_write_skew(harness: &dyn Harness) -> Verdict {
    let store = done("a connection", harness.connect()).await?;
    let (one, two) = (open_on(&store, LONG).await?, open_on(&store, LONG).await?);
    let far = open(harness, LONG).await?;
    for isolation in [
        Isolation::SerializableSnapshot,
        Isolation::Serializable,
        Isolation::RepeatableReads,
    ] {
        for (second, whose) in [(&two, "one connection"), (&far, "two connections")] {
            let left = leave_together([&one, second], isolation).await?;
            ensure!(
                left == 1,
                "under {isolation}, {left} of two are on call after both left, over {whose}"
            );
        }
    }
    match leave_together([&one, &far], Isolation::ReadCommitted).await? {
        0 => held!("one stays at each level that checks its reads; under read-committed both left"),
        left => Err(Outcome::unjudged(format!(
            "the control, under read-committed, kept {left} on call"
        ))),
    }
}

/// Returns what the attempts of a transaction read of two keys that are always written together, with a write between
/// the reads of the first two attempts.
async fn seen_around_a_write(stm: &StmHandle, other: &StmHandle) -> Step<Vec<(u64, u64)>> {
    let both = |value: u64| {
        other
            .txn()
            .then(["left", "right"].map(|key| Op::put(key, value.to_string())))
            .commit()
    };
    done("a write of both keys", both(1)).await?;
    let (seen, attempts) = (Mutex::new(Vec::new()), Cell::new(0));
    let run = stm.run(async |tx| {
        let left: u64 = tx.get_as("left").await?.unwrap_or(0);
        attempts.set(attempts.get() + 1);
        if attempts.get() <= 2 {
            both(1 + attempts.get()).await?;
        }
        let right: u64 = tx.get_as("right").await?.unwrap_or(0);
        seen.lock().push((left, right));
        Ok(())
    });
    done("a transaction", run).await?;
    Ok(seen.into_inner())
}

async fn t1_attempt_reads_one_snapshot(harness: &dyn Harness) -> Verdict {
    let (stm, other) = (open(harness, LONG).await?.stm(), open(harness, LONG).await?.stm());
    for isolation in SERIALIZABLE {
        let seen = seen_around_a_write(&stm.clone().isolation(isolation), &other).await?;
        let whole = seen.iter().all(|(left, right)| left == right);
        ensure!(
            whole,
            "under {isolation}, attempts read {seen:?} of two keys that are always the same"
        );
    }
    let seen = seen_around_a_write(&stm.isolation(Isolation::RepeatableReads), &other).await?;
    let torn = seen.iter().any(|(left, right)| left != right);
    in_time!(torn, "the control, under repeatable-reads, read {seen:?}");
    held!("no attempt read half of a write; under repeatable-reads one read {seen:?}")
}

async fn t1_snapshot_level_notices_newer_writes(harness: &dyn Harness) -> Verdict {
    let (stm, other) = (open(harness, LONG).await?.stm(), open(harness, LONG).await?.stm());
    let mut counts = Vec::new();
    for isolation in SERIALIZABLE {
        let attempts = Cell::new(0);
        let run = stm.clone().isolation(isolation);
        let run = run.run(async |tx| {
            tx.get("read").await?;
            attempts.set(attempts.get() + 1);
            if attempts.get() == 1 {
                other.put("blind", "theirs").await?;
            }
            tx.put("blind", "ours")
        });
        done("a transaction", run).await?;
        has(&other, "blind", Some("ours"), "after the transaction").await?;
        counts.push(attempts.get());
    }
    ensure!(
        counts == [2, 1],
        "under the snapshot level and the serializable one there were {counts:?} attempts"
    );
    held!("ran again under the snapshot level; under serializable it overwrote the newer write")
}

async fn t1_attempt_reads_its_own_writes(harness: &dyn Harness) -> Verdict {
    let (stm, other) = (open(harness, LONG).await?.stm(), open(harness, LONG).await?.stm());
    done("put", stm.put("deleted", "before")).await?;
    for isolation in [Isolation::SerializableSnapshot, Isolation::ReadCommitted] {
        let run = stm.clone().isolation(isolation);
        let run = run.run(async |tx| {
            let revision = tx.rev("new").await?;
            tx.put("new", "1")?;
            tx.put("new", "2")?;
            tx.delete("deleted")?;
            let own = tx.get_many(["new", "deleted"]).await?;
            let outside = other.get("new").await?;
            Ok((revision == tx.rev("new").await?, own, outside))
        });
        let (kept, own, outside) = done("a transaction", run).await?;
        ensure!(
            own == [Some(b"2".to_vec()), None],
            "after two puts and a deletion the attempt read {own:?}"
        );
        ensure!(kept, "the attempt's own write changed the revision that it read");
        ensure!(outside.is_none(), "a write was seen before its commit: {outside:?}");
        has(&other, "new", Some("2"), "after the commit").await?;
        has(&other, "deleted", None, "after the commit").await?;
        ensure!(
            done("delete", other.delete("new")).await?,
            "a key that is there was not deleted"
        );
        ensure!(!done("delete", other.delete("new")).await?, "an absent key was deleted");
    }
    held!("own puts and deletions were read, and seen by others after the commit alone")
}

async fn t1_changed_and_recreated_keys_are_noticed(harness: &dyn Harness) -> Verdict {
    let (stm, other) = (open(harness, LONG).await?.stm(), open(harness, LONG).await?.stm());
    for change in [
        "delete",
        "create",
        "put the same bytes",
        "delete and create with the same bytes",
    ] {
        let is_there = change != "create";
        match is_there {
            true => drop(done("put", other.put("k", "v")).await?),
            false => drop(done("delete", other.delete("k")).await?),
        }
        let seen = Mutex::new(Vec::new());
        let run = stm.run(async |tx| {
            let read = tx.get("k").await?;
            seen.lock().push(read);
            if seen.lock().len() == 1 {
                if change.starts_with("delete") {
                    other.delete("k").await?;
                }
                if change != "delete" {
                    other.put("k", "v").await?;
                }
            }
            tx.put("result", "done")
        });
        done("a transaction", run).await?;
        let seen = seen.into_inner();
        ensure!(
            seen.len() == 2,
            "{change} between read and commit: the closure ran {} times",
            seen.len()
        );
        let due = (change != "delete").then(|| b"v".to_vec());
        ensure!(
            seen[1] == due,
            "{change}: the second attempt read {:?} instead of {due:?}",
            seen[1]
        );
    }
    held!("each change between read and commit made the closure run again")
}

async fn t1_prefetch_changes_no_result(harness: &dyn Harness) -> Verdict {
    let (stm, other) = (open(harness, LONG).await?.stm(), open(harness, LONG).await?.stm());
    done(
        "put",
        other
            .txn()
            .then(["a", "b", "c"].map(|key| Op::put(key, "old")))
            .commit(),
    )
    .await?;
    let (attempts, seen) = (Cell::new(0), Mutex::new(Vec::new()));
    let prefetching = stm.clone().prefetch(["a", "b", "c", "absent"]);
    let run = prefetching.run(async |tx| {
        attempts.set(attempts.get() + 1);
        let a = tx.get_string("a").await?;
        if attempts.get() == 1 {
            // The attempt reads b, and not c.
            other
                .txn()
                .then(["b", "c"].map(|key| Op::put(key, "new")))
                .commit()
                .await?;
        }
        let b = tx.get_string("b").await?;
        let absent = tx.get("absent").await?;
        seen.lock().push((a, b, absent));
        tx.put("result", "done")
    });
    done("a transaction", run).await?;
    let (attempts, seen) = (attempts.get(), seen.into_inner());
    let due = |b: &str| (Some("old".to_owned()), Some(b.to_owned()), None);
    ensure!(
        attempts == 2,
        "a prefetched key that was read has changed, and there were {attempts} attempts"
    );
    ensure!(
        seen == [due("old"), due("new")],
        "prefetched keys were read as {seen:?}"
    );
    attempts_of_an_unread_key(&prefetching, &other).await?;
    held!("a change of a prefetched key counted where the attempt read it, and not elsewhere")
}

async fn attempts_of_an_unread_key(prefetching: &StmHandle, other: &StmHandle) -> Step<()> {
    let attempts = Cell::new(0);
    let run = prefetching.run(async |tx| {
        attempts.set(attempts.get() + 1);
        tx.get("a").await?;
        if attempts.get() == 1 {
            other.put("c", "newer").await?;
        }
        tx.put("result", "done")
    });
    done("a transaction", run).await?;
    ensure!(
        attempts.get() == 1,
        "a prefetched key that was not read has changed, and there were {} attempts",
        attempts.get()
    );
    Ok(())
}

async fn t1_limit_of_attempts_is_kept(harness: &dyn Harness) -> Verdict {
    let (stm, other) = (open(harness, LONG).await?.stm(), open(harness, LONG).await?.stm());
    let attempts = Cell::new(0);
    let limited = stm.clone().attempts(3);
    let run = limited.run(async |tx| {
        attempts.set(attempts.get() + 1);
        let seen = tx.get("contended").await?;
        increment(&other, "contended").await?;
        tx.put("trace", seen.unwrap_or_default())
    });
    let ended = promptly("the end of three attempts", run).await?;
    let error = refused("three attempts with a conflict in each", ended, &[ErrorKind::Conflict])?;
    ensure!(
        attempts.get() == 3,
        "there were {} attempts, 3 were allowed",
        attempts.get()
    );
    ensure!(
        error.effect() == Effect::None && error.is_retryable(),
        "three attempts ended with {error:?}: nothing was done, and a retry can help"
    );
    has(&other, "trace", None, "after three attempts with a conflict").await?;
    held!("{error}")
}

async fn t1_comparisons_mean_the_same_everywhere(harness: &dyn Harness) -> Verdict {
    let stm = open(harness, LONG).await?.stm();
    for value in ["a", "m", "m"] {
        done("put", stm.put("here", value)).await?;
    }
    let here = done("entry", stm.entry("here")).await?;
    let here = here.ok_or_else(|| Outcome::violated("a key that was written is absent"))?;
    ensure!(
        here.version == 3 && here.created < here.modified,
        "after three writes the entry is {here:?}"
    );
    let (created, modified) = (here.created, here.modified);
    let table = [
        (Compare::value("here").eq("m"), true),
        (Compare::value("here").ne("m"), false),
        (Compare::value("here").lt("n"), true),
        (Compare::value("here").gt("m"), false),
        (Compare::version("here").eq(3), true),
        (Compare::version("here").gt(3), false),
        (Compare::create("here").eq(created), true),
        (Compare::create("here").lt(created), false),
        (Compare::modified("here").ne(modified), false),
        (Compare::modified("here").gt(created), true),
        (Compare::value("absent").eq(""), false),
        (Compare::value("absent").ne("x"), false),
        (Compare::value("absent").lt("x"), false),
        (Compare::version("absent").eq(0), true),
        (Compare::create("absent").eq(0), true),
        (Compare::modified("absent").lt(1), true),
    ];
    for (compare, holds) in table {
        let what = format!("{compare:?}");
        let txn = stm
            .txn()
            .when([compare])
            .then([Op::get("here")])
            .or_else([Op::get("absent")]);
        let outcome = done("txn", txn.commit()).await?;
        let due = OpResult::Get(holds.then(|| here.clone()));
        ensure!(
            outcome.succeeded == holds && outcome.results == [due],
            "{what}: the outcome is {outcome:?}"
        );
    }
    let failing = [Compare::version("here").eq(3), Compare::create("absent").gt(0)];
    let ordered = stm.txn().when(failing).then([Op::put("wrong", "")]);
    let ordered = ordered.or_else([
        Op::get("here"),
        Op::put("here", "z"),
        Op::get("here"),
        Op::delete("absent"),
    ]);
    let outcome = done("txn", ordered.commit()).await?;
    let found: Vec<_> = outcome
        .results
        .iter()
        .map(|result| match result {
            OpResult::Get(entry) => entry.as_ref().map(|it| (&*it.value, it.version, it.created)),
            _ => None,
        })
        .collect();
    let due = [
        Some((b"m".as_slice(), 3, created)),
        None,
        Some((b"z".as_slice(), 4, created)),
        None,
    ];
    ensure!(
        !outcome.succeeded && found == due,
        "one of two comparisons failed, and the outcome is {outcome:?}"
    );
    has(&stm, "wrong", None, "after the other branch").await?;
    ensure!(
        done("delete", stm.delete("here")).await?,
        "a key that is there was not deleted"
    );
    let revision = done("put", stm.put("here", "again")).await?;
    let again = done("entry", stm.entry("here")).await?;
    let fresh = again
        .as_ref()
        .is_some_and(|it| it.version == 1 && it.created == revision && it.modified == revision);
    ensure!(
        fresh,
        "a key that was deleted and put at revision {revision} has {again:?}"
    );
    held!("16 comparisons of present and absent keys, the order of operations, and a recreated key")
}

async fn t2_aborted_attempt_leaves_no_trace(harness: &dyn Harness) -> Verdict {
    let (stm, other) = (open(harness, LONG).await?.stm(), open(harness, LONG).await?.stm());
    done("put", other.put("seen", "1")).await?;
    let aborted = stm.run(async |tx| {
        tx.get("seen").await?;
        tx.put("aborted", "1")?;
        tx.delete("seen")?;
        Err::<(), _>(Error::new(ErrorKind::Foreign, "enough"))
    });
    refused(
        "an aborted closure",
        promptly("an error", aborted).await?,
        &[ErrorKind::Foreign],
    )?;
    let passed_on = stm.run(async |tx| {
        tx.put("aborted", "2")?;
        tx.put("", "an invalid name")
    });
    refused(
        "a refused write",
        promptly("an error", passed_on).await?,
        &[ErrorKind::InvalidName],
    )?;
    let (attempts, leaked) = (Cell::new(0), Mutex::new(None));
    let run = stm.run(async |tx| {
        tx.get("contended").await?;
        attempts.set(attempts.get() + 1);
        if attempts.get() == 1 {
            increment(&other, "contended").await?;
            tx.put("first attempt", "1")?;
            *leaked.lock() = Some(tx.clone());
        } else {
            tx.put("second attempt", "1")?;
        }
        Ok(())
    });
    done("a transaction", run).await?;
    ensure!(
        attempts.get() == 2,
        "a conflict did not end the attempt: there were {}",
        attempts.get()
    );
    if let Some(tx) = leaked.into_inner() {
        refused(
            "a write to an ended attempt",
            tx.put("late", ""),
            &[ErrorKind::Conflict],
        )?;
        refused(
            "a read in an ended attempt",
            promptly("get", tx.get("late")).await?,
            &[ErrorKind::Conflict],
        )?;
    }
    let branch = stm
        .txn()
        .when([Compare::create("nowhere").gt(0)])
        .then([Op::put("then", "1")]);
    done("txn", branch.commit()).await?;
    for key in ["aborted", "first attempt", "then", "late"] {
        has(&other, key, None, "after attempts that did not commit").await?;
    }
    for key in ["seen", "second attempt"] {
        has(&other, key, Some("1"), "after attempts that did not commit").await?;
    }
    held!("no trace of an error, of a refused call, of a lost race, or of the other branch")
}

async fn t2_cancelled_transaction_is_whole_or_nothing(harness: &dyn Harness) -> Verdict {
    let (stm, other) = (open(harness, LONG).await?.stm(), open(harness, LONG).await?.stm());
    let (round, mut dropped, mut whole) = (Cell::new(0_u32), 0, 0);
    for explicit in [false, true] {
        let write = |value: String| {
            let stm = stm.clone();
            async move {
                if explicit {
                    let puts = ["a", "b"].map(|key| Op::put(key, value.as_str()));
                    return stm.txn().then(puts).commit().await.map(drop);
                }
                stm.run(async |tx| {
                    tx.get_many(["a", "b"]).await?;
                    tx.put("a", value.as_str())?;
                    tx.put("b", value.as_str())
                })
                .await
            }
        };
        dropped += at_every_await_point(
            async || {
                round.set(round.get() + 1);
                Ok(write(round.get().to_string()))
            },
            async |_| {
                // The session goes on at once; what is still on its way happens whole.
                done("put", stm.put("next", "1")).await?;
                settle().await;
                let both = done("txn", other.txn().then(["a", "b"].map(Op::get)).commit())
                    .await?
                    .results;
                let value = |result: &OpResult| match result {
                    OpResult::Get(Some(entry)) => Some(entry.value.clone()),
                    _ => None,
                };
                ensure!(
                    value(&both[0]) == value(&both[1]),
                    "one of two writes of a dropped transaction happened"
                );
                whole += u32::from(value(&both[0]) == Some(round.get().to_string().into_bytes().into()));
                Ok(())
            },
        )
        .await?;
    }
    ensure!(whole > 0, "no transaction of {} happened", round.get());
    held!(
        "{dropped} transactions were dropped; {whole} of {} happened, all of them whole",
        round.get()
    )
}
