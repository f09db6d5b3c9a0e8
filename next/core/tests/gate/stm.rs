//! Transactional memory: snapshots, conflicts, lost answers, fences, limits.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use tenure_core::{
    Compare, DEFAULT_ATTEMPTS, Effect, Error, ErrorKind, Isolation, LossReason, MAX_OPERATIONS, MAX_TRANSACTION_BYTES,
    Op, OpResult, Result, StmHandle, Tx,
};
use tokio::time::Instant;

use crate::stm_store::{Fault, StmStore};

async fn increment(stm: &StmHandle) -> Result<u64> {
    let incrementing = stm.run(async |tx| {
        let count: u64 = tx.get_as("count").await?.unwrap_or(0);
        tx.put_as("count", &(count + 1))?;
        Ok(count + 1)
    });
    incrementing.await
}

#[tokio::test(start_paused = true)]
async fn transaction_without_a_conflict_needs_one_read_and_one_commit() {
    let store = StmStore::new();
    let stm = store.session().await.stm();
    for count in 1..=3 {
        assert_eq!(increment(&stm).await.unwrap(), count);
    }
    assert_eq!(stm.get_string("count").await.unwrap().as_deref(), Some("3"));
    assert_eq!((store.calls("read"), store.calls("commit")), (4, 3));
    let entry = stm.entry("count").await.unwrap().unwrap();
    assert_eq!((entry.version, entry.created < entry.modified), (3, true));
}

#[tokio::test(start_paused = true)]
async fn transaction_that_met_a_conflict_runs_again_with_the_new_values() {
    for store in [StmStore::new(), StmStore::with_snapshots()] {
        let session = store.session().await;
        let (stm, other) = (session.stm(), session.stm());
        stm.put_as("count", &5).await.unwrap();
        let mut attempts = 0;
        let counted = stm.run(|tx| {
            attempts += 1;
            let (other, first) = (other.clone(), attempts == 1);
            async move {
                let count: u64 = tx.get_as("count").await?.unwrap_or(0);
                if first {
                    other.put_as("count", &10).await?;
                }
                tx.put_as("count", &(count + 1))?;
                Ok(count + 1)
            }
        });
        assert_eq!(counted.await.unwrap(), 11);
        assert_eq!(attempts, 2);
        // The failed commit returned what the second attempt read.
        assert_eq!(store.calls("read"), 1);
    }
}

/// Moves one unit from `a` to `b` while the transaction is between its two reads.
async fn reads_around_a_move(store: &StmStore, isolation: Isolation) -> (Vec<(i64, i64)>, Result<()>) {
    let session = store.session().await;
    let (stm, other) = (session.stm().isolation(isolation), session.stm());
    other.put_as("a", &10).await.unwrap();
    other.put_as("b", &0).await.unwrap();
    let mut seen = Vec::new();
    let mut attempts = 0;
    let (send, mut receive) = tokio::sync::mpsc::unbounded_channel();
    let run = stm.run(|tx: Tx| {
        attempts += 1;
        let (other, first, send) = (other.clone(), attempts == 1, send.clone());
        async move {
            let a: i64 = tx.get_as("a").await?.unwrap_or(0);
            if first {
                let moved = other.txn().then([Op::put("a", "9"), Op::put("b", "1")]);
                assert!(moved.commit().await?.succeeded);
            }
            let b: i64 = tx.get_as("b").await?.unwrap_or(0);
            send.send((a, b)).unwrap();
            tx.put("seen", format!("{a} {b}"))
        }
    });
    let done = run.await;
    while let Ok(pair) = receive.try_recv() {
        seen.push(pair);
    }
    (seen, done)
}

#[tokio::test(start_paused = true)]
async fn attempt_reads_one_snapshot_on_a_store_without_snapshots() {
    for isolation in [Isolation::SerializableSnapshot, Isolation::Serializable] {
        let (seen, done) = reads_around_a_move(&StmStore::new(), isolation).await;
        done.unwrap();
        // The first attempt ended at its second read.
        assert_eq!(seen, [(9, 1)], "{isolation}");
    }
}

#[tokio::test(start_paused = true)]
async fn attempt_reads_one_snapshot_on_a_store_with_snapshots() {
    for isolation in [Isolation::SerializableSnapshot, Isolation::Serializable] {
        let (seen, done) = reads_around_a_move(&StmStore::with_snapshots(), isolation).await;
        done.unwrap();
        assert_eq!(seen, [(10, 0), (9, 1)], "{isolation}");
    }
}

#[tokio::test(start_paused = true)]
async fn repeatable_reads_see_a_mix_and_commit_only_what_is_current() {
    let (seen, done) = reads_around_a_move(&StmStore::new(), Isolation::RepeatableReads).await;
    done.unwrap();
    assert_eq!(seen, [(10, 1), (9, 1)]);
}

#[tokio::test(start_paused = true)]
async fn read_committed_commits_although_what_it_read_has_changed() {
    let store = StmStore::new();
    let (seen, done) = reads_around_a_move(&store, Isolation::ReadCommitted).await;
    done.unwrap();
    assert_eq!(seen, [(10, 1)]);
}

#[tokio::test(start_paused = true)]
async fn blind_write_over_a_newer_one_is_a_conflict_only_for_serializable_snapshot() {
    for (isolation, expected) in [(Isolation::SerializableSnapshot, 2), (Isolation::Serializable, 1)] {
        let session = StmStore::new().session().await;
        let (stm, other) = (session.stm().isolation(isolation), session.stm());
        let mut attempts = 0;
        let run = stm.run(|tx: Tx| {
            attempts += 1;
            let (other, first) = (other.clone(), attempts == 1);
            async move {
                tx.get("read").await?;
                if first {
                    other.put("blind", "theirs").await?;
                }
                tx.put("blind", "ours")
            }
        });
        run.await.unwrap();
        assert_eq!(attempts, expected, "{isolation}");
        assert_eq!(other.get_string("blind").await.unwrap().as_deref(), Some("ours"));
    }
}

#[tokio::test(start_paused = true)]
async fn value_is_sent_once_however_many_keys_an_attempt_reads() {
    const KEYS: usize = 40;
    const BYTES: usize = 1000;
    for store in [StmStore::new(), StmStore::with_snapshots()] {
        let session = store.session().await;
        let (stm, other) = (session.stm(), session.stm());
        for key in 0..KEYS {
            stm.put(format!("{key}"), vec![1; BYTES]).await.unwrap();
        }
        let read = stm.run(|tx: Tx| {
            let other = other.clone();
            async move {
                for key in 0..KEYS {
                    tx.get(format!("{key}")).await?;
                    // Moves the store's revision.
                    other.put("elsewhere", "").await?;
                }
                Ok(())
            }
        });
        read.await.unwrap();
        assert_eq!(store.bytes(), KEYS * BYTES);
    }
}

#[tokio::test(start_paused = true)]
async fn conflict_sends_again_only_the_large_values_that_have_changed() {
    const BYTES: usize = 40_000;
    let store = StmStore::new();
    let session = store.session().await;
    let (stm, other) = (session.stm(), session.stm());
    for key in ["a", "b", "c"] {
        stm.put(key, vec![1; BYTES]).await.unwrap();
    }
    let mut attempts = 0;
    let run = stm.run(|tx: Tx| {
        attempts += 1;
        let (other, first) = (other.clone(), attempts == 1);
        async move {
            tx.get_many(["a", "b", "c"]).await?;
            if first {
                other.put("b", vec![2; BYTES]).await?;
            }
            tx.put("d", "done")
        }
    });
    run.await.unwrap();
    assert_eq!(attempts, 2);
    assert_eq!(store.bytes(), 4 * BYTES);
}

#[tokio::test(start_paused = true)]
async fn prefetched_keys_come_with_the_first_read() {
    let store = StmStore::new();
    let stm = store.session().await.stm().prefetch(["a", "b", "c"]);
    stm.run(async |tx| {
        for key in ["a", "b", "c"] {
            tx.get(key).await?;
        }
        Ok(())
    })
    .await
    .unwrap();
    assert_eq!(store.calls("read"), 1);
}

#[tokio::test(start_paused = true)]
async fn attempt_reads_its_own_writes() {
    let stm = StmStore::new().session().await.stm();
    stm.put("b", "old").await.unwrap();
    let read = stm.run(async |tx| {
        tx.put("a", "new")?;
        tx.delete("b")?;
        let values = tx.get_many(["a", "b", "c"]).await?;
        assert!(tx.rev("b").await? > 0);
        Ok(values)
    });
    assert_eq!(read.await.unwrap(), [Some(b"new".to_vec()), None, None]);
}

#[tokio::test(start_paused = true)]
async fn aborted_closure_writes_nothing_and_its_attempt_is_over() {
    let store = StmStore::new();
    let stm = store.session().await.stm();
    let mut kept = None;
    let run = stm.run(|tx: Tx| {
        kept = Some(tx.clone());
        async move {
            tx.put("a", "1")?;
            Err::<(), _>(Error::new(ErrorKind::Config, "the application's own"))
        }
    });
    assert_eq!(run.await.unwrap_err().kind(), ErrorKind::Config);
    assert_eq!((store.calls("commit"), store.keys()), (0, 0));
    let kept = kept.unwrap();
    assert_eq!(kept.put("a", "2").unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(kept.get("a").await.unwrap_err().kind(), ErrorKind::Conflict);
}

#[tokio::test(start_paused = true)]
async fn attempt_of_a_dropped_transaction_is_over() {
    let stm = StmStore::new().session().await.stm();
    let (send, receive) = tokio::sync::oneshot::channel();
    let mut send = Some(send);
    let run = stm.run(|tx: Tx| {
        let _ = send.take().unwrap().send(tx);
        std::future::pending::<Result<()>>()
    });
    let mut run = Box::pin(run);
    assert!((&mut run).now_or_never().is_none());
    let kept = receive.await.unwrap();
    kept.put("a", "1").unwrap();
    drop(run);
    assert_eq!(kept.put("a", "2").unwrap_err().kind(), ErrorKind::Conflict);
}

#[tokio::test(start_paused = true)]
async fn put_whose_messages_are_lost_takes_effect_once() {
    for fault in [
        Fault::LoseRequest,
        Fault::LoseAnswer,
        Fault::Late(Duration::from_secs(2)),
    ] {
        for (commits, resolves) in [(1, 0), (1, 1), (1, 3), (2, 0), (2, 2)] {
            let store = StmStore::new();
            let stm = store.session().await.stm();
            stm.put("a", "0").await.unwrap();
            (0..commits).for_each(|_| store.once("commit", fault));
            (0..resolves).for_each(|_| store.once("resolve", fault));
            let revision = stm.put("a", "1").await.unwrap();
            tokio::time::sleep(Duration::from_secs(3)).await;
            let entry = stm.entry("a").await.unwrap().unwrap();
            assert_eq!((&entry.value[..], entry.version), (&b"1"[..], 2), "{fault:?}");
            assert_eq!(entry.modified, revision);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn commit_that_arrives_after_its_session_reused_the_slot_has_no_effect() {
    let store = StmStore::new();
    let stm = store.session().await.stm();
    store.once("commit", Fault::Late(Duration::from_secs(5)));
    stm.put("a", "1").await.unwrap();
    // Blind: only the slot keeps the late request from landing.
    stm.put("a", "2").await.unwrap();
    tokio::time::sleep(Duration::from_secs(6)).await;
    let entry = stm.entry("a").await.unwrap().unwrap();
    assert_eq!((&entry.value[..], entry.version), (&b"2"[..], 2));
}

#[tokio::test(start_paused = true)]
async fn reads_of_a_commit_whose_answer_was_lost_are_reported_as_lost() {
    let store = StmStore::new();
    let stm = store.session().await.stm();
    store.once("commit", Fault::LoseAnswer);
    let txn = stm.txn().then([Op::put("a", "1"), Op::get("a")]);
    let error = txn.commit().await.unwrap_err();
    assert_eq!(
        (error.kind(), error.effect()),
        (ErrorKind::Unavailable, Effect::Applied)
    );
    assert!(!error.is_retryable());
    assert_eq!(stm.entry("a").await.unwrap().unwrap().version, 1);
}

#[tokio::test(start_paused = true)]
async fn commit_is_unknown_if_the_session_ends_before_the_outcome_is_known() {
    let store = StmStore::new();
    let session = store.session().await;
    let stm = session.stm();
    store.always("commit", Fault::LoseAnswer);
    store.always("renew", Fault::LoseRequest);
    store.always("resolve", Fault::LoseRequest);
    let error = stm.put("a", "1").await.unwrap_err();
    assert_eq!(
        (error.kind(), error.effect()),
        (ErrorKind::CommitUnknown, Effect::Unknown)
    );
    assert_eq!((error.operation(), error.needs_new_session()), (Some("put"), true));
    assert_eq!(store.calls("commit"), 1);
    // Nothing is sent in a lost session.
    let error = stm.put("a", "2").await.unwrap_err();
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Lost, Effect::None));
    assert_eq!(error.loss(), Some(LossReason::Unreachable));
    assert_eq!(store.calls("commit"), 1);
}

#[tokio::test(start_paused = true)]
async fn commit_that_was_refused_without_effect_is_not_sent_after_the_loss() {
    let store = StmStore::new();
    let stm = store.session().await.stm();
    store.always("renew", Fault::LoseRequest);
    store.always("commit", Fault::Refuse(ErrorKind::Unavailable));
    let error = stm.put("a", "1").await.unwrap_err();
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Lost, Effect::None));
    store.heal("commit");
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(store.keys(), 0);
}

#[tokio::test(start_paused = true)]
async fn commit_that_was_refused_without_effect_is_not_sent_after_the_drop() {
    let store = StmStore::new();
    let stm = store.session().await.stm();
    store.always("commit", Fault::Refuse(ErrorKind::Unavailable));
    let putting = tokio::time::timeout(Duration::from_secs(2), stm.put("a", "1"));
    assert!(putting.await.is_err());
    store.heal("commit");
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(store.keys(), 0);
    stm.put("a", "1").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn refused_commit_is_reported_and_not_resolved() {
    let store = StmStore::new();
    let stm = store.session().await.stm();
    store.once("commit", Fault::Refuse(ErrorKind::Unauthorized));
    let error = stm.put("a", "1").await.unwrap_err();
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Unauthorized, Effect::None));
    assert_eq!(store.calls("resolve"), 0);
}

#[tokio::test(start_paused = true)]
async fn dropped_commit_is_settled_in_the_background() {
    let store = StmStore::new();
    let session = store.session().await;
    let stm = session.stm();
    store.once("commit", Fault::LoseAnswer);
    let mut putting = Box::pin(stm.put("a", "1"));
    assert!((&mut putting).now_or_never().is_none());
    drop(putting);
    while store.calls("resolve") == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(stm.entry("a").await.unwrap().unwrap().version, 1);
}

#[tokio::test(start_paused = true)]
async fn fenced_transaction_commits_while_the_guard_holds_in_the_store() {
    let store = StmStore::new();
    let session = store.session().await;
    let (stm, guard) = (session.stm(), session.lock("a").await.unwrap());
    let fenced = stm.fenced_by(&guard);
    fenced.run(async |tx| tx.put("a", "1")).await.unwrap();
    // A transaction that only reads is committed too.
    fenced.run(async |tx| tx.get("a").await).await.unwrap();
    let txn = stm.txn().then([Op::put("a", "2")]).fenced_by(&guard);
    assert!(txn.commit().await.unwrap().succeeded);
    assert_eq!(store.fences(), [true; 3]);
    store.lose_fences();
    let error = fenced.run(async |tx| tx.put("a", "3")).await.unwrap_err();
    assert_eq!((error.kind(), error.name()), (ErrorKind::Lost, Some("a")));
    assert!(!error.needs_new_session());
    assert_eq!(stm.get_string("a").await.unwrap().as_deref(), Some("2"));
}

#[tokio::test(start_paused = true)]
async fn guard_of_another_session_is_refused_before_anything_is_sent() {
    let store = StmStore::new();
    let (session, other) = (store.session().await, store.session().await);
    let (stm, guard) = (session.stm(), other.lock("a").await.unwrap());
    let fenced = stm.fenced_by(&guard);
    let run = fenced.run(async |_| -> Result<()> { panic!("the closure must not run") });
    let refused = [
        run.await.err(),
        fenced.txn().then([Op::put("a", "1")]).commit().await.err(),
        stm.txn()
            .when([Compare::create("a").eq(0)])
            .fenced_by(&guard)
            .commit()
            .await
            .err(),
    ];
    for error in refused {
        let error = error.unwrap();
        assert_eq!(
            (error.kind(), error.effect(), error.name()),
            (ErrorKind::Config, Effect::None, Some("a"))
        );
        assert!(error.message().contains("another session"), "{error}");
    }
    assert_eq!(store.calls("read") + store.calls("commit"), 0);
}

#[tokio::test(start_paused = true)]
async fn commit_is_unknown_at_once_when_the_store_cannot_resolve_it() {
    use ErrorKind::{Conflict, Foreign, Internal, Lost, Unsupported};
    for kind in [Conflict, Foreign, Internal, Lost, Unsupported] {
        let store = StmStore::new();
        let session = store.session().await;
        store.once("commit", Fault::LoseAnswer);
        store.always("resolve", Fault::Refuse(kind));
        // For a slot that holds a later step, repeating the question cannot help.
        let error = session.stm().put("a", "1").await.unwrap_err();
        assert_eq!(
            (error.kind(), error.effect()),
            (ErrorKind::CommitUnknown, Effect::Unknown),
            "{kind:?}"
        );
        assert_eq!(error.needs_new_session(), kind == Lost, "{kind:?}");
        assert_eq!((store.calls("commit"), store.calls("resolve")), (1, 1), "{kind:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn explicit_transaction_carries_out_the_branch_of_its_comparisons() {
    let stm = StmStore::new().session().await.stm();
    let txn = || {
        stm.txn()
            .when([Compare::create("a").eq(0)])
            .then([Op::put("a", "new")])
            .or_else([Op::get("a"), Op::delete("a"), Op::get("a")])
    };
    let done = txn().commit().await.unwrap();
    assert_eq!((done.succeeded, done.results), (true, vec![OpResult::Put]));
    let done = txn().commit().await.unwrap();
    assert!(!done.succeeded);
    assert!(matches!(
        &done.results[..],
        [OpResult::Get(Some(_)), OpResult::Delete, OpResult::Get(None)]
    ));
    assert!(stm.put("a", "1").await.unwrap() > done.revision);
    assert!(stm.delete("a").await.unwrap());
    assert!(!stm.delete("a").await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn transaction_beyond_a_limit_is_refused_before_anything_is_sent() {
    let store = StmStore::new();
    let stm = store.session().await.stm();
    let puts = |count, bytes| (0..count).map(move |key| Op::put(format!("{key}"), vec![0; bytes]));
    let fits = stm.txn().then(puts(MAX_OPERATIONS, 1)).commit().await.unwrap();
    assert!(fits.succeeded);
    let refused = [
        (stm.txn().then(puts(MAX_OPERATIONS + 1, 1)), ErrorKind::TooLarge),
        (stm.txn().then(puts(1, 1024 * 1024 + 1)), ErrorKind::TooLarge),
        (stm.txn().then(puts(2, 1024 * 1024)), ErrorKind::TooLarge),
        (
            stm.txn().then([Op::put("a", "1"), Op::delete("a")]),
            ErrorKind::Conflict,
        ),
        (stm.txn().then([Op::put("", "1")]), ErrorKind::InvalidName),
    ];
    for (txn, kind) in refused {
        let error = txn.commit().await.unwrap_err();
        assert_eq!((error.kind(), error.operation()), (kind, Some("txn")));
    }
    let error = stm.put("a", vec![0; 1024 * 1024 + 1]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    assert_eq!(store.calls("commit"), 1);
}

#[tokio::test(start_paused = true)]
async fn reads_for_the_next_attempt_make_no_transaction_too_large() {
    let stm = StmStore::new().session().await.stm();
    let keys: Vec<String> = (0..MAX_OPERATIONS - 2).map(|key| format!("{key:0500}")).collect();
    stm.run(async |tx| {
        tx.get_many(&keys).await?;
        tx.put("a", vec![0; 1024 * 1024])?;
        tx.put("b", vec![0; MAX_TRANSACTION_BYTES - 1024 * 1024 - 100_000])
    })
    .await
    .unwrap();
}

#[tokio::test(start_paused = true)]
async fn values_are_read_as_their_type_and_never_shown() {
    let stm = StmStore::new().session().await.stm();
    stm.put("a", [0xff, b's', b'e', b'c']).await.unwrap();
    stm.put("b", "\"secret\"").await.unwrap();
    for error in [
        stm.get_string("a").await.unwrap_err(),
        stm.get_as::<u64>("b").await.unwrap_err(),
        stm.get_as::<u64>("a").await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Conflict);
        let shown = format!("{error:?} {error} {}", error.chain());
        assert!(!shown.contains("sec"), "{shown}");
    }
    assert_eq!(stm.get_as::<String>("b").await.unwrap().as_deref(), Some("secret"));
}

/// Runs a transaction that meets a conflict in every attempt. Returns the pauses between its attempts.
async fn pauses(attempts: u32, work: Duration) -> Vec<Duration> {
    let session = StmStore::new().session().await;
    let (stm, other) = (session.stm().attempts(attempts), session.stm());
    let mut pauses = Vec::new();
    let ended = std::cell::Cell::new(None::<Instant>);
    let run = stm.run(|tx: Tx| {
        pauses.extend(ended.get().map(|ended| ended.elapsed()));
        let (other, ended) = (other.clone(), &ended);
        async move {
            tx.get("a").await?;
            tokio::time::sleep(work).await;
            other.put("a", "theirs").await?;
            ended.set(Some(Instant::now()));
            tx.put("a", "ours")
        }
    });
    let error = run.await.unwrap_err();
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Conflict, true));
    pauses
}

#[tokio::test(start_paused = true)]
async fn pauses_between_attempts_are_bounded_and_end_with_age() {
    let mut longest = [Duration::ZERO; 40];
    for _ in 0..20 {
        let pauses = pauses(41, Duration::from_secs(1)).await;
        assert_eq!(pauses.len(), 40);
        for (longest, pause) in longest.iter_mut().zip(pauses) {
            *longest = pause.max(*longest);
        }
    }
    assert!(
        longest.iter().all(|pause| *pause <= Duration::from_millis(101)),
        "{longest:?}"
    );
    assert!(
        longest[1..6].iter().any(|pause| *pause > Duration::from_millis(10)),
        "{longest:?}"
    );
    // From the tenth attempt on.
    assert_eq!(longest[8..].iter().max(), Some(&Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn attempts_are_limited() {
    assert_eq!(pauses(1, Duration::ZERO).await.len(), 0);
    assert_eq!(pauses(3, Duration::ZERO).await.len(), 2);
    assert_eq!(pauses(DEFAULT_ATTEMPTS, Duration::ZERO).await.len(), 99);
}

#[tokio::test(start_paused = true)]
async fn concurrent_transactions_lose_no_update() {
    for store in [StmStore::new(), StmStore::with_snapshots()] {
        let mut tasks = tokio::task::JoinSet::new();
        let done = std::sync::Arc::new(AtomicU32::new(0));
        for client in 0..8 {
            let (session, done) = (store.session().await, std::sync::Arc::clone(&done));
            tasks.spawn(async move {
                let stm = session.stm();
                for turn in 0..20 {
                    let (from, to) = (format!("{}", client % 3), format!("{}", (client + turn) % 3));
                    let (from, to) = (&from, &to);
                    stm.run(|tx: Tx| async move {
                        let amount: i64 = tx.get_as(from).await?.unwrap_or(0);
                        tx.put_as(from, &(amount - 1))?;
                        let amount: i64 = tx.get_as(to).await?.unwrap_or(0);
                        tx.put_as(to, &(amount + 1))?;
                        let total: i64 = tx.get_as("total").await?.unwrap_or(0);
                        tx.put_as("total", &(total + 1))
                    })
                    .await
                    .unwrap();
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        while let Some(task) = tasks.join_next().await {
            task.unwrap();
        }
        let stm = store.session().await.stm();
        let sum = stm.run(async |tx| {
            let mut sum = 0;
            for key in ["0", "1", "2"] {
                sum += tx.get_as::<i64>(key).await?.unwrap_or(0);
            }
            Ok((sum, tx.get_as::<u32>("total").await?.unwrap_or(0)))
        });
        assert_eq!(sum.await.unwrap(), (0, done.load(Ordering::Relaxed)));
        assert_eq!(done.load(Ordering::Relaxed), 160);
    }
}
