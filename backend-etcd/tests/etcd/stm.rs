//! Transactional memory on a real etcd: keys and markers, lost answers, restarts, compaction.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use etcd_client::CompactionOptions;
use tenure_core::{
    Compare, ErrorKind, Holding, Isolation, MAX_OPERATIONS, MAX_VALUE_BYTES, Op, OpResult,
};
use tenure_etcd::EtcdConfig;
use tenure_testbed::{Direction, EtcdServer, Flow, Proxy};

use crate::common::*;

#[tokio::test]
async fn keys_are_where_operators_look_for_them() {
    let bed = Bed::new("stm-keys").await;
    let session = bed.session(secs(10)).await;
    let stm = session.stm().unwrap();
    stm.put("a/b", "1").await.unwrap();
    stm.put("a/b", "2").await.unwrap();
    let entry = stm.get("a/b").await.unwrap().unwrap();
    assert_eq!((entry.value.as_slice(), entry.version), (&b"2"[..], 2));
    assert!(entry.created < entry.modified);
    let root = bed.root();
    let lease = session.id();
    let mut expected = vec![
        format!("{root}/data/a%2Fb"),
        format!("{root}/layout"),
        format!("{root}/markers/{lease}/0"),
    ];
    let mut keys = bed.keys().await;
    expected.sort();
    keys.sort();
    assert_eq!(keys, expected);
    assert!(stm.delete("a/b").await.unwrap());
    assert!(!stm.delete("a/b").await.unwrap());
    drop(stm);
    session.close().await.unwrap();
    bed.until_empty(SOON).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn markers_do_not_accumulate() {
    let bed = Bed::new("stm-markers").await;
    let session = bed.session(secs(30)).await;
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..8 {
        let stm = session.stm().unwrap();
        tasks.spawn(async move {
            for _ in 0..25 {
                stm.put(format!("k{task}"), "v").await.unwrap();
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    let markers = bed.list(format!("{}/markers/", bed.root())).await;
    assert!((1..=8).contains(&markers.len()), "{markers:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_interop_mode_keys_are_verbatim() {
    let bed = Bed::new("stm-interop").await;
    let store = connect(bed.config().interop(true)).await;
    let session = open(&store, secs(10)).await;
    let key = format!("verbatim-{}", bed.namespace);
    session.stm().unwrap().put(&key, "x").await.unwrap();
    let found = bed.raw.kv_client().get(key, None).await.unwrap();
    assert_eq!(found.kvs()[0].value(), b"x");
}

/// A counter, and who may have raised it.
async fn increment(
    stm: &tenure_core::StmHandle<tenure_etcd::EtcdStm>,
    tag: &str,
) -> tenure_core::Result<u64> {
    stm.run(async |tx| {
        let count: u64 = tx.get_as("count").await?.unwrap_or(0);
        tx.put_as("count", &(count + 1))?;
        tx.put(tag, "")?;
        Ok(count + 1)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_answer_is_resolved_and_nothing_is_done_twice() {
    let bed = Bed::new("stm-lost-answer").await;
    let proxy = Proxy::start(bed.address).unwrap();
    let store = connect(bed.through(proxy.address()).timeout(ms(500))).await;
    let session = open(&store, secs(30)).await;
    let stm = session.stm().unwrap();
    for round in 1..=3_u64 {
        let tag = format!("tag-of-round-{round}");
        // The request arrives, its answer does not.
        let lost = proxy.when(Direction::Up, tag.as_str(), Direction::Down, Flow::Drop);
        let (stm, sent) = (stm.clone(), tag.clone());
        let committing = tokio::spawn(async move { increment(&stm, &sent).await });
        eventually("the answer is lost", SOON, async || lost.has_fired()).await;
        tokio::time::sleep(ms(50 * round)).await;
        proxy.heal();
        let count = within(LATER, "the outcome", committing).await.unwrap();
        assert_eq!(count.unwrap(), round);
    }
    let entry = stm.get("count").await.unwrap().unwrap();
    assert_eq!((entry.value.as_slice(), entry.version), (&b"3"[..], 3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_request_finds_its_slot_moved_on() {
    let bed = Bed::new("stm-late").await;
    let proxy = Proxy::start(bed.address).unwrap();
    // A second way in, by which the outcome is found out while the first stands still.
    let config = EtcdConfig::new([proxy.address().to_string(), bed.address.to_string()])
        .starting_at(0)
        .namespace(bed.namespace.clone())
        .timeout(ms(300));
    let store = connect(config).await;
    let session = open(&store, secs(30)).await;
    let stm = session.stm().unwrap();
    stm.put("blind", "0").await.unwrap();
    let held = proxy.when(Direction::Up, "late-value", Direction::Up, Flow::Hold);
    // Blind, so that no comparison but the slot's can keep the late request from landing twice.
    let revision = within(LATER, "the commit", stm.put("blind", "late-value"));
    let revision = revision.await.unwrap();
    assert!(held.has_fired());
    let other = bed.session(secs(30)).await;
    let other = other.stm().unwrap();
    other.put("blind", "newer").await.unwrap();
    proxy.heal(); // the first request arrives now, if its connection still lives
    tokio::time::sleep(ms(300)).await;
    let entry = other.get("blind").await.unwrap().unwrap();
    assert_eq!(entry.value, b"newer", "{entry:?}, committed at {revision}");
    assert_eq!(entry.version, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cut_at_any_byte_every_commit_happens_once() {
    let bed = Bed::new("stm-cut").await;
    let proxy = Proxy::start(bed.address).unwrap();
    let store = connect(bed.through(proxy.address()).timeout(ms(500))).await;
    let session = open(&store, secs(60)).await;
    let stm = session.stm().unwrap();
    let mut done = 0;
    for bytes in (0..600).step_by(17) {
        for direction in [Direction::Up, Direction::Down] {
            let cut = proxy.cut_after(direction, bytes);
            increment(&stm, "tag").await.unwrap();
            done += 1;
            while !cut.has_fired() {
                increment(&stm, "tag").await.unwrap();
                done += 1;
            }
        }
    }
    let entry = stm.get("count").await.unwrap().unwrap();
    assert_eq!(String::from_utf8(entry.value).unwrap(), done.to_string());
    assert_eq!(entry.version, done);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_answer_to_an_explicit_transaction_says_which_branch() {
    let bed = Bed::new("stm-txn-lost").await;
    let proxy = Proxy::start(bed.address).unwrap();
    let store = connect(bed.through(proxy.address()).timeout(ms(500))).await;
    let session = open(&store, secs(30)).await;
    let stm = session.stm().unwrap();
    for held in [true, false] {
        for reads in [false, true] {
            let tag = format!("explicit-{held}-{reads}");
            let lost = proxy.when(Direction::Up, tag.as_str(), Direction::Down, Flow::Drop);
            let wanted = if held { 0 } else { 1 };
            let ops = |mark: &str| {
                let mut ops = vec![Op::put(format!("{tag}-{mark}"), "")];
                ops.extend(reads.then(|| Op::get("x")));
                ops
            };
            let txn = stm
                .txn()
                .when([Compare::create("absent").eq(wanted)])
                .then(ops("then"))
                .or_else(ops("else"));
            let committing = tokio::spawn(txn.commit());
            eventually("the answer is lost", SOON, async || lost.has_fired()).await;
            tokio::time::sleep(ms(100)).await;
            proxy.heal();
            let outcome = within(LATER, "the outcome", committing).await.unwrap();
            if reads {
                let error = outcome.unwrap_err();
                assert_eq!(error.effect(), tenure_core::Effect::Applied, "{error}");
            } else {
                let outcome = outcome.unwrap();
                assert_eq!(outcome.succeeded, held);
                assert_eq!(outcome.results, [OpResult::Put]);
            }
            let branch = if held { "then" } else { "else" };
            let entry = stm.get(format!("{tag}-{branch}")).await.unwrap();
            assert_eq!(entry.unwrap().version, 1);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_an_answer_until_the_session_ends_the_outcome_is_unknown() {
    let bed = Bed::new("stm-unknown").await;
    let proxy = Proxy::start(bed.address).unwrap();
    let store = connect(bed.through(proxy.address()).timeout(ms(500))).await;
    let session = open(&store, secs(3)).await;
    let stm = session.stm().unwrap();
    stm.put("a", "0").await.unwrap();
    let lost = proxy.when(Direction::Up, "never-answered", Direction::Down, Flow::Drop);
    let put = within(LATER, "an end", stm.put("a", "never-answered")).await;
    assert!(lost.has_fired());
    let error = put.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::CommitUnknown, "{error}");
    assert_eq!(error.effect(), tenure_core::Effect::Unknown);
    let error = stm.put("a", "later").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Lost, "{error}");
    assert_eq!(error.effect(), tenure_core::Effect::None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_in_the_middle_loses_and_doubles_nothing() {
    let mut server = EtcdServer::start_async().await.unwrap();
    let bed = Bed::on(&server, "stm-restart").await;
    let (sure, unknown) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let stop = Arc::new(AtomicBool::new(false));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let session = open(&connect(bed.config().timeout(ms(500))).await, secs(20)).await;
        let (sure, unknown, stop) = (sure.clone(), unknown.clone(), stop.clone());
        tasks.spawn(async move {
            let stm = session.stm().unwrap().attempts(10_000);
            while !stop.load(Ordering::Relaxed) {
                match increment(&stm, "tag").await {
                    Ok(_) => sure.fetch_add(1, Ordering::Relaxed),
                    Err(error) if error.kind() == ErrorKind::CommitUnknown => {
                        unknown.fetch_add(1, Ordering::Relaxed)
                    }
                    Err(error) => panic!("{error}"),
                };
            }
        });
    }
    let progress = async |more: u64| {
        let before = sure.load(Ordering::Relaxed);
        eventually("progress", LATER, async || {
            sure.load(Ordering::Relaxed) >= before + more
        })
        .await;
    };
    progress(50).await;
    for _ in 0..2 {
        server.kill().unwrap();
        server.restart_async().await.unwrap();
        progress(50).await;
    }
    stop.store(true, Ordering::Relaxed);
    while let Some(done) = within(LATER, "the end", tasks.join_next()).await {
        done.unwrap();
    }
    let session = bed.session(secs(10)).await;
    let entry = session.stm().unwrap().get("count").await.unwrap().unwrap();
    let count: u64 = String::from_utf8(entry.value).unwrap().parse().unwrap();
    let (sure, unknown) = (
        sure.load(Ordering::Relaxed),
        unknown.load(Ordering::Relaxed),
    );
    assert!(
        (sure..=sure + unknown).contains(&count),
        "{count} where {sure} were certain and {unknown} unknown"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compacted_snapshot_restarts_the_attempt() {
    let mut server = EtcdServer::start_async().await.unwrap();
    let bed = Bed::on(&server, "stm-compaction").await;
    let session = bed.session(secs(20)).await;
    let stm = session.stm().unwrap();
    stm.put("a", "1").await.unwrap();
    let mut attempts = 0;
    let seen = stm
        .run(|tx| {
            attempts += 1;
            let (stm, raw, first) = (stm.clone(), bed.raw.clone(), attempts == 1);
            async move {
                let a = tx.get("a").await?;
                if first {
                    stm.put("b", "2").await?;
                    let revision = stm.put("b", "3").await?;
                    let options = CompactionOptions::new().with_physical();
                    let revision = i64::try_from(revision).unwrap();
                    raw.kv_client()
                        .compact(revision, Some(options))
                        .await
                        .unwrap();
                }
                Ok((a, tx.get("b").await?))
            }
        })
        .await
        .unwrap();
    assert_eq!(seen, (Some(b"1".to_vec()), Some(b"3".to_vec())));
    assert_eq!(attempts, 2);
    drop(server.kill());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_is_one_revision_however_many_keys() {
    let bed = Bed::new("stm-snapshot").await;
    let session = bed.session(secs(20)).await;
    let stm = session.stm().unwrap();
    let keys: Vec<String> = (0..250).map(|n| format!("k{n}")).collect();
    for part in keys.chunks(MAX_OPERATIONS) {
        let puts = part.iter().map(|key| Op::put(key, "0"));
        stm.txn().then(puts).commit().await.unwrap();
    }
    // All keys of a transaction of its own always change together: the first and the last.
    let stop = Arc::new(AtomicBool::new(false));
    let writer = tokio::spawn({
        let (stm, stop) = (stm.clone(), Arc::clone(&stop));
        async move {
            let mut n = 0;
            while !stop.load(Ordering::Relaxed) {
                n += 1;
                let puts = ["k0", "k249"].map(|key| Op::put(key, n.to_string()));
                stm.txn().then(puts).commit().await.unwrap();
            }
        }
    });
    for _ in 0..20 {
        let (first, last) = stm
            .run(async |tx| {
                let values = tx.get_many(&keys).await?;
                Ok((values[0].clone(), values[249].clone()))
            })
            .await
            .unwrap();
        assert_eq!(first, last);
    }
    stop.store(true, Ordering::Relaxed);
    writer.await.unwrap();
}

#[tokio::test]
async fn the_largest_transactions_pass_and_larger_ones_are_not_sent() {
    let bed = Bed::new("stm-limits").await;
    let session = bed.session(secs(20)).await;
    let stm = session.stm().unwrap();
    let guard = session.locker("x").unwrap().lock().await.unwrap();
    let many = |count: usize| {
        let key = |n: usize| format!("{n}-{}", "k".repeat(400));
        stm.txn()
            .when((0..count).map(move |n| Compare::create(key(n)).eq(0)))
            .then((0..count).map(move |n| Op::put(key(n), "v")))
            .or_else((0..count).map(move |n| Op::get(key(n))))
    };
    let most = many(MAX_OPERATIONS).fenced_by(&guard).commit().await;
    assert!(most.unwrap().succeeded);
    let error = many(MAX_OPERATIONS + 1).commit().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    stm.put("large", vec![b'x'; MAX_VALUE_BYTES]).await.unwrap();
    // As much as fits into one request, by our own count: etcd must take it.
    let mut rest = 512 * 1024;
    loop {
        let two = [("l", MAX_VALUE_BYTES), ("m", rest)];
        let puts = two.map(|(key, bytes)| Op::put(key, vec![0; bytes]));
        match stm.txn().then(puts).fenced_by(&guard).commit().await {
            Ok(_) => break,
            Err(error) => assert_eq!(error.kind(), ErrorKind::TooLarge, "{error}"),
        }
        rest -= 64;
    }
    assert!(rest > 510 * 1024, "{rest}");
    // Many large values, more than the client takes in one answer.
    for n in 0..5 {
        stm.put(format!("big{n}"), vec![b'x'; MAX_VALUE_BYTES])
            .await
            .unwrap();
    }
    let keys = (0..5).map(|n| format!("big{n}"));
    let read = stm.run(|tx| {
        let keys = keys.clone();
        async move { tx.get_many(keys).await }
    });
    let read = read.await.unwrap();
    assert!(
        read.iter()
            .all(|v| v.as_ref().unwrap().len() == MAX_VALUE_BYTES)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fence_is_judged_by_the_store() {
    let bed = Bed::new("stm-fence").await;
    let store = bed.store().await;
    let (holder, writer) = (open(&store, secs(20)).await, open(&store, secs(20)).await);
    let guard = holder.locker("x").unwrap().lock().await.unwrap();
    let stm = writer.stm().unwrap();
    let fenced = stm.fenced_by(&guard);
    fenced
        .txn()
        .then([Op::put("a", "1")])
        .commit()
        .await
        .unwrap();
    bed.delete(guard.key()).await;
    for read_only in [true, false] {
        let run = fenced.run(async |tx| {
            if read_only {
                return tx.get("a").await.map(drop);
            }
            tx.put("a", "2")
        });
        let error = run.await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Lost, "{error}");
        assert_eq!(error.effect(), tenure_core::Effect::None);
    }
    // Another's lock of that name changes nothing for this guard.
    let again = writer.locker("x").unwrap().lock().await.unwrap();
    let error = fenced
        .txn()
        .then([Op::put("a", "3")])
        .commit()
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Lost);
    stm.fenced_by(&again)
        .txn()
        .then([Op::put("a", "4")])
        .commit()
        .await
        .unwrap();
    assert_eq!(stm.get("a").await.unwrap().unwrap().value, b"4");
    // Of another connection: refused, not taken for somebody else's.
    let elsewhere = bed.session(secs(20)).await;
    let foreign = elsewhere.stm().unwrap();
    let error = foreign.fenced_by(&again).txn().commit().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
}

/// Whatever derefs to a `Holding` can bind a commit: while it is held, and not after (rule T3).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_of_guard_binds_a_commit() {
    let bed = Bed::new("stm-guards").await;
    let store = bed.store().await;
    let (holder, writer) = (open(&store, secs(20)).await, open(&store, secs(20)).await);
    let stm = writer.stm().unwrap();
    let queue = holder.queue("x").unwrap();
    queue.enqueue("a").await.unwrap();
    let rw_lock = holder.rw_lock("x").unwrap();
    let lock = holder.locker("x").unwrap().lock().await.unwrap();
    let reader = rw_lock.read().await.unwrap();
    let leader = holder.election("x").unwrap().campaign("me").await.unwrap();
    let inside = holder.double_barrier("x", 1).unwrap();
    let inside = inside.enter().await.unwrap();
    let delivery = queue.dequeue().await.unwrap();
    let guards: [(&str, &Holding); 5] = [
        ("lock", &lock),
        ("reader", &reader),
        ("leader", &leader),
        ("inside", &inside),
        ("delivery", &delivery),
    ];
    for (what, guard) in guards {
        let put = || stm.txn().then([Op::put(what, "")]).fenced_by(guard);
        put().commit().await.unwrap();
        bed.delete(guard.key()).await;
        let error = put().commit().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Lost, "{what}: {error}");
        assert_eq!(error.effect(), tenure_core::Effect::None, "{what}");
    }
    // Delivered once more, it is not the delivery that was lost.
    let again = within(SOON, "delivered", queue.dequeue()).await.unwrap();
    let late = stm.txn().then([Op::put("a", "")]).fenced_by(&delivery);
    assert_eq!(late.commit().await.unwrap_err().kind(), ErrorKind::Lost);
    let next = stm.txn().then([Op::put("a", "")]).fenced_by(&again);
    next.commit().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resumed_session_commits_on() {
    let bed = Bed::new("stm-resume").await;
    let store = bed.store().await;
    let session = open(&store, secs(20)).await;
    session.stm().unwrap().put("a", "1").await.unwrap();
    let id = session.detach().await.unwrap();
    let session = store.resume(&id).await.unwrap();
    session.stm().unwrap().put("a", "2").await.unwrap();
    assert_eq!(
        session
            .stm()
            .unwrap()
            .get("a")
            .await
            .unwrap()
            .unwrap()
            .version,
        2
    );
    // A marker that an operator removed, or that is another's, is only in the way.
    let markers = bed.list(format!("{}/markers/", bed.root())).await;
    for (marker, _) in markers {
        bed.delete(&marker).await;
    }
    session.stm().unwrap().put("a", "3").await.unwrap();
    assert_eq!(
        session
            .stm()
            .unwrap()
            .get("a")
            .await
            .unwrap()
            .unwrap()
            .version,
        3
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conflicts_of_one_process_cost_no_refused_commits() {
    let bed = Bed::new("stm-storm").await;
    let store = bed.store().await;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..10 {
        let session = open(&store, secs(30)).await;
        tasks.spawn(async move {
            let stm = session.stm().unwrap().isolation(Isolation::Serializable);
            let mut attempts = 0_u64;
            for _ in 0..20 {
                stm.run(|tx| {
                    attempts += 1;
                    async move {
                        let count: u64 = tx.get_as("count").await?.unwrap_or(0);
                        tx.put_as("count", &(count + 1))
                    }
                })
                .await
                .unwrap();
            }
            attempts
        });
    }
    let mut attempts = 0;
    while let Some(done) = tasks.join_next().await {
        attempts += done.unwrap();
    }
    let session = open(&store, secs(10)).await;
    let entry = session.stm().unwrap().get("count").await.unwrap().unwrap();
    assert_eq!((entry.value.as_slice(), entry.version), (&b"200"[..], 200));
    // Each runs its closure twice at most: once too early, and once at the head of the queue.
    assert!(attempts <= 420, "{attempts} attempts for 200 transactions");
    // A refused commit would have written nothing, and so would not show; its marker would not
    // either. What shows is that nobody wrote between two commits: 200 revisions for 200.
    assert!(entry.modified - entry.created < 230, "{entry:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_out_of_space_says_so_and_hangs_nobody() {
    let server = EtcdServer::builder().arg("--quota-backend-bytes=8388608");
    let server = server.start_async().await.unwrap();
    let bed = Bed::on(&server, "stm-nospace").await;
    let session = bed.session(secs(60)).await;
    let stm = session.stm().unwrap();
    let value = vec![b'x'; 512 * 1024];
    let mut full = None;
    for n in 0..40 {
        if let Err(error) = stm.put(format!("k{n}"), value.clone()).await {
            full = Some(error);
            break;
        }
    }
    let full = full.expect("8 MiB hold no 20 MiB");
    assert!(full.to_string().contains("space"), "{full}");
    // More often than there are slots: each is free again.
    for _ in 0..80 {
        let refused = within(SOON, "an error", stm.put("more", "x")).await;
        let error = refused.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        assert_eq!(error.effect(), tenure_core::Effect::None, "{error}");
        assert!(error.chain().to_string().contains("space"), "{error}");
    }
    assert_eq!(stm.get("more").await.unwrap(), None);
}
