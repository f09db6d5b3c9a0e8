//! Transactional memory.

use std::sync::Arc;
use std::time::Duration;

use tenure_core::backend::{
    Commit, CommitOutcome, CommitRecord, Fence, Item, Key, KeyRead, Marker, Mode, Resolution, Snapshot, Write,
};
use tenure_core::compare::{Compare, OpResult, Relation, Target};
use tenure_core::{ErrorKind, Kind};
use tenure_memory::MemoryBackend;

use crate::support::{Client, kind, name, not_yet, pass, soon};

rules! {
    commit_compares_before_it_writes: [CompareIgnored];
    fence_holds_in_the_step_of_the_commit: [FenceIgnored];
    fence_of_a_downgraded_writer_is_lost: [FenceIgnored];
    fence_of_a_delivery_or_participant_counts: [FenceIgnored];
    snapshot_tells_its_true_revision: [SnapshotMixed];
    known_value_is_not_sent_and_a_new_one_is: [StaleRead];
    lost_commit_is_resolved: [ResolvedAborted];
    aborted_commit_never_lands: [LateCommitLands];
    repeated_commit_answers_as_at_first: [RepeatedStepActsAgain];
    leased_key_ends_with_its_session: [LeasedKeyOutlives];
    leased_key_stays_while_its_session_is_renewed: [HeldBarrierLapses];
    leased_key_ends_with_a_detachment: [];
    change_wakes_its_waiters: [];
}

fn key(of: &str) -> Key {
    Key::data(name(of))
}

fn put(of: &str, value: &str) -> Write {
    Write::Put {
        key: key(of),
        value: value.as_bytes().into(),
        leased: false,
    }
}

fn leased(of: &str) -> Write {
    Write::Put {
        key: Key {
            kind: Kind::Barrier,
            name: name(of),
        },
        value: Arc::default(),
        leased: true,
    }
}

fn writing(client: &Client, writes: impl IntoIterator<Item = Write>) -> Commit {
    let mut commit = Commit::new(client.marker());
    commit.then = writes.into_iter().collect();
    commit
}

async fn commit(client: &Client, commit: &Commit) -> CommitRecord {
    match client.stm().commit(commit).await.unwrap() {
        CommitOutcome::Done(record) => record,
        CommitOutcome::FenceLost => panic!("the fence is lost"),
    }
}

async fn write(client: &Client, writes: impl IntoIterator<Item = Write>) -> u64 {
    commit(client, &writing(client, writes)).await.revision
}

async fn read(client: &Client, keys: &[(&str, Option<u64>)], at: Option<u64>) -> Snapshot {
    let keys: Vec<_> = keys
        .iter()
        .map(|&(of, known)| KeyRead { key: key(of), known })
        .collect();
    client.stm().read(&keys, at).await.unwrap()
}

async fn fence_lost(client: &Client, fence: Fence) -> bool {
    let mut fenced = writing(client, [put("fenced", "1")]);
    fenced.fence = Some(fence);
    matches!(client.stm().commit(&fenced).await.unwrap(), CommitOutcome::FenceLost)
}

async fn commit_compares_before_it_writes(store: MemoryBackend) {
    let a = Client::open(&store).await;
    let first = write(&a, [put("x", "1"), put("y", "1")]).await;
    let second = write(&a, [put("x", "2")]).await;
    assert!(second > first);
    let holds = |of: &str, target, relation| (Compare::new(key(of), target, relation), true);
    let fails = |of: &str, target, relation| (Compare::new(key(of), target, relation), false);
    for (compare, expected) in [
        holds("x", Target::Value(b"2".into()), Relation::Equal),
        holds("x", Target::Version(2), Relation::Equal),
        holds("x", Target::Created(first), Relation::Equal),
        holds("x", Target::Modified(first), Relation::Greater),
        holds("absent", Target::Version(0), Relation::Equal),
        fails("x", Target::Value(b"1".into()), Relation::Equal),
        fails("absent", Target::Value(b"1".into()), Relation::NotEqual),
        fails("y", Target::Modified(first), Relation::NotEqual),
    ] {
        let mut both = Commit::new(a.marker());
        both.compares = vec![
            Compare::new(key("y"), Target::Version(1), Relation::Equal),
            compare.clone(),
        ];
        both.then = vec![Write::Get(key("x"))];
        both.or_else = vec![Write::Get(key("y")), Write::Get(key("absent"))];
        let record = commit(&a, &both).await;
        assert_eq!((record.succeeded, record.revision), (expected, second), "{compare:?}");
        let OpResult::Get(Some(found)) = &record.results[0] else {
            panic!("{record:?}")
        };
        assert_eq!(&*found.value, if expected { b"2" } else { b"1" });
    }
    let mut in_order = writing(
        &a,
        [
            Write::Delete(key("x")),
            Write::Get(key("x")),
            put("x", "3"),
            Write::Get(key("x")),
        ],
    );
    in_order.compares = vec![Compare::new(key("x"), Target::Version(2), Relation::Equal)];
    let record = commit(&a, &in_order).await;
    let OpResult::Get(Some(found)) = &record.results[3] else {
        panic!("{record:?}")
    };
    assert_eq!((found.version, found.created), (1, record.revision));
    assert_eq!(record.results[1], OpResult::Get(None));
}

async fn fence_holds_in_the_step_of_the_commit(store: MemoryBackend) {
    let a = Client::open(&store).await;
    let (request, grant) = a.lock("x").await;
    let fence = Fence::new(request.nonce(), Kind::Lock, name("x"), grant.token, true);
    assert!(!fence_lost(&a, fence.clone()).await);
    let mut wrong = fence.clone();
    wrong.name = name("y");
    assert!(fence_lost(&a, wrong).await);
    let b = Client::open(&store).await;
    assert!(fence_lost(&b, fence.clone()).await);
    a.release(&request, grant.token).await;
    assert!(fence_lost(&a, fence).await);
    assert_eq!(
        read(&a, &[("fenced", None)], None).await.values[0]
            .as_ref()
            .unwrap()
            .version,
        1
    );
}

async fn fence_of_a_downgraded_writer_is_lost(store: MemoryBackend) {
    let a = Client::open(&store).await;
    let rw = Arc::clone(&a.session).rw_lock().unwrap();
    let (request, grant) = a.hold(Kind::RwLock, "x", Mode::Exclusive).await;
    let mut fence = Fence::new(request.nonce(), Kind::RwLock, name("x"), grant.token, true);
    assert!(!fence_lost(&a, fence.clone()).await);
    rw.downgrade(a.marker(), &request, grant.token).await.unwrap();
    assert!(fence_lost(&a, fence.clone()).await);
    fence.exclusive = false;
    assert!(!fence_lost(&a, fence).await);
}

async fn fence_of_a_delivery_or_participant_counts(store: MemoryBackend) {
    let a = Client::open(&store).await;
    a.enqueue("q", &[Item::new(*b"1")]).await;
    let (claim, _) = a.take_one("q").await;
    let fence = Fence::new(claim.request.nonce(), Kind::Queue, name("q"), claim.token, true);
    assert!(!fence_lost(&a, fence.clone()).await);
    a.ack(claim).await;
    assert!(fence_lost(&a, fence).await);
    let enter = a.request(Kind::DoubleBarrier, "d");
    a.barrier().enter(&enter, 1.try_into().unwrap()).await.unwrap();
    let grant = a.barrier().wait(&enter).await.unwrap().unwrap();
    let fence = Fence::new(enter.nonce(), Kind::DoubleBarrier, name("d"), grant.token, false);
    assert!(!fence_lost(&a, fence).await);
}

async fn snapshot_tells_its_true_revision(store: MemoryBackend) {
    let a = Client::open(&store).await;
    let first = write(&a, [put("x", "1"), put("y", "1")]).await;
    assert_eq!(read(&a, &[("x", None)], None).await.revision, first);
    let second = write(&a, [put("x", "2"), put("y", "2")]).await;
    let snapshot = read(&a, &[("y", None), ("absent", None)], Some(first)).await;
    // No history is kept: the caller compares the revision.
    assert_eq!(
        (snapshot.revision, snapshot.values[0].as_ref().unwrap().modified),
        (second, second)
    );
    assert!(snapshot.values[1].is_none());
}

async fn known_value_is_not_sent_and_a_new_one_is(store: MemoryBackend) {
    let a = Client::open(&store).await;
    let first = write(&a, [put("x", "1"), put("y", "1")]).await;
    let second = write(&a, [put("y", "2"), Write::Delete(key("never"))]).await;
    let keys = [
        ("x", Some(first)),
        ("y", Some(first)),
        ("absent", Some(0)),
        ("x", Some(0)),
    ];
    let values = read(&a, &keys, None).await.values;
    let one = values[0].as_ref().unwrap();
    assert_eq!((&one.value, one.modified, one.version), (&None, first, 1));
    let two = values[1].as_ref().unwrap();
    assert_eq!(
        (two.value.as_deref(), two.created, two.modified, two.version),
        (Some(&b"2"[..]), first, second, 2)
    );
    assert!(values[2].is_none());
    assert_eq!(values[3].as_ref().unwrap().value.as_deref(), Some(&b"1"[..]));
}

async fn lost_commit_is_resolved(store: MemoryBackend) {
    let a = Client::open(&store).await;
    let landed = writing(&a, [put("x", "1")]);
    let revision = commit(&a, &landed).await.revision;
    let committed = Resolution::Committed {
        succeeded: true,
        revision,
    };
    assert_eq!(a.stm().resolve(landed.marker).await.unwrap(), committed);
    assert_eq!(a.stm().resolve(landed.marker).await.unwrap(), committed);
    let mut refused = writing(&a, [put("x", "2")]);
    refused.compares = vec![Compare::new(key("x"), Target::Version(9), Relation::Equal)];
    commit(&a, &refused).await;
    let refused = a.stm().resolve(refused.marker).await.unwrap();
    assert_eq!(
        refused,
        Resolution::Committed {
            succeeded: false,
            revision
        }
    );
}

async fn aborted_commit_never_lands(store: MemoryBackend) {
    let a = Client::open(&store).await;
    let late = writing(&a, [put("x", "1")]);
    for _ in 0..2 {
        assert_eq!(a.stm().resolve(late.marker).await.unwrap(), Resolution::Aborted);
    }
    assert_eq!(kind(a.stm().commit(&late).await), ErrorKind::Conflict);
    let overtaken = writing(&a, [put("x", "2")]);
    write(&a, [put("y", "1")]).await;
    assert_eq!(kind(a.stm().commit(&overtaken).await), ErrorKind::Conflict);
    assert!(read(&a, &[("x", None)], None).await.values[0].is_none());
    let elsewhere = Marker {
        slot: tenure_core::backend::Slot::new(3),
        ..a.marker()
    };
    assert_eq!(a.stm().resolve(elsewhere).await.unwrap(), Resolution::Aborted);
}

async fn repeated_commit_answers_as_at_first(store: MemoryBackend) {
    let a = Client::open(&store).await;
    let once = writing(&a, [put("x", "1"), Write::Get(key("x"))]);
    let (first, second) = (commit(&a, &once).await, commit(&a, &once).await);
    assert_eq!((first.revision, first.results), (second.revision, second.results));
    assert_eq!(
        read(&a, &[("x", None)], None).await.values[0].as_ref().unwrap().version,
        1
    );
}

async fn leased_key_ends_with_its_session(store: MemoryBackend) {
    let (a, b) = (
        Client::open(&store).await,
        Client::open_for(&store, Duration::from_secs(60)).await.unwrap(),
    );
    let revision = write(&a, [leased("held"), leased("taken over"), put("plain", "1")]).await;
    write(&b, [leased("taken over")]).await;
    let held = Key {
        kind: Kind::Barrier,
        name: name("held"),
    };
    let start = tokio::time::Instant::now();
    soon(b.stm().changed(std::slice::from_ref(&held), revision))
        .await
        .unwrap();
    assert_eq!(start.elapsed().as_secs(), 10);
    let keys = [
        held,
        Key {
            kind: Kind::Barrier,
            name: name("taken over"),
        },
        key("plain"),
    ];
    let keys = keys.map(|key| KeyRead { key, known: None });
    let values = b.stm().read(&keys, None).await.unwrap().values;
    assert_eq!(
        values.iter().map(Option::is_some).collect::<Vec<_>>(),
        [false, true, true]
    );
}

async fn leased_key_stays_while_its_session_is_renewed(store: MemoryBackend) {
    let a = Client::open(&store).await;
    let revision = write(&a, [leased("held")]).await;
    for _ in 0..10 {
        pass(5.0).await;
        a.session.renew().await.unwrap();
    }
    let held = Key {
        kind: Kind::Barrier,
        name: name("held"),
    };
    not_yet(a.stm().changed(&[held], revision)).await;
}

async fn leased_key_ends_with_a_detachment(store: MemoryBackend) {
    let (a, b) = (Client::open(&store).await, Client::open(&store).await);
    let (lock, _) = a.lock("kept").await;
    let revision = write(&a, [leased("held"), put("plain", "1")]).await;
    let keys = [
        Key {
            kind: Kind::Barrier,
            name: name("held"),
        },
        key("plain"),
    ];
    let stm = b.stm();
    let held = keys[0].clone();
    let waits = tokio::spawn(async move { stm.changed(&[held], revision).await });
    tokio::task::yield_now().await;
    a.session.detach(&[lock.nonce()]).await.unwrap();
    soon(waits).await.unwrap().unwrap();
    let resumed = Client::resume(&store, &a.id).await.unwrap();
    assert_eq!(resumed.entries().await.len(), 1);
    let keys = keys.map(|key| KeyRead { key, known: None });
    for client in [&b, &resumed] {
        let values = client.stm().read(&keys, None).await.unwrap().values;
        assert_eq!((values[0].is_some(), values[1].is_some()), (false, true));
    }
    write(&resumed, [leased("held")]).await;
}

async fn change_wakes_its_waiters(store: MemoryBackend) {
    let a = Client::open(&store).await;
    let mut revision = write(&a, [put("x", "1")]).await;
    for writes in [put("x", "2"), Write::Delete(key("x")), put("x", "3")] {
        let stm = a.stm();
        let waits = tokio::spawn(async move { stm.changed(&[key("x"), key("y")], revision).await });
        tokio::task::yield_now().await;
        assert!(!waits.is_finished());
        let next = write(&a, [writes]).await;
        soon(waits).await.unwrap().unwrap();
        // A late waiter does not wait.
        soon(a.stm().changed(&[key("x")], revision)).await.unwrap();
        revision = next;
    }
    write(&a, [put("z", "1")]).await;
    not_yet(a.stm().changed(&[key("x"), key("y")], revision)).await;
    assert_eq!(store.footprint().waiters, 0);
}
