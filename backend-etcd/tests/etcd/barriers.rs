//! Barriers and double barriers: with Go's recipes, over lost answers, after operators.

use etcd_client::{Compare, CompareOp, PutOptions, Txn, TxnOp};
use tenure_core::{Barriers, DoubleBarrierHandle, ErrorKind, HoldFor, LossReason};
use tenure_testbed::{Direction, Flow, Proxy};

use crate::common::*;

async fn put(bed: &Bed, key: &str, lease: Option<i64>) -> i64 {
    let options = lease.map(|lease| PutOptions::new().with_lease(lease));
    let put = bed.raw.kv_client().put(key, "", options).await.unwrap();
    put.header().unwrap().revision()
}

async fn value(bed: &Bed, key: &str) -> Option<String> {
    let got = bed.raw.kv_client().get(key, None).await.unwrap();
    let kv = got.kvs().first()?;
    Some(String::from_utf8(kv.value().to_vec()).unwrap())
}

/// Go's `Barrier`: `Hold` puts the key if it is not there, `Release` deletes it, `Wait` waits for
/// its deletion.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_barrier_is_shared_with_gos_recipe() {
    let bed = Bed::new("go-barrier").await;
    let name = format!("{}/gate", bed.namespace);
    let store = connect(bed.config().interop(true)).await;
    let session = open(&store, secs(20)).await;
    let gate = session.barrier(&name).unwrap();

    // They hold: we are refused, and wait for their release.
    put(&bed, &name, None).await;
    assert!(gate.is_held().await.unwrap());
    let refused = gate.hold(HoldFor::Good).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Conflict);
    let waiting = tokio::spawn({
        let gate = gate.clone();
        async move { gate.wait().await }
    });
    tokio::time::sleep(ms(100)).await;
    assert!(!waiting.is_finished());
    bed.delete(&name).await;
    let waited = within(SOON, "the release", waiting).await.unwrap();
    waited.unwrap();

    // We hold: they find the key, and release us by deleting it.
    for (hold_for, leased) in [(HoldFor::Session, true), (HoldFor::Good, false)] {
        gate.hold(hold_for).await.unwrap();
        let got = bed.raw.kv_client().get(name.as_str(), None).await.unwrap();
        assert_eq!(got.kvs()[0].lease() != 0, leased);
        let theirs = Txn::new()
            .when([Compare::version(name.as_str(), CompareOp::Equal, 0)])
            .and_then([TxnOp::put(name.as_str(), "", None)]);
        let hold = bed.raw.kv_client().txn(theirs).await.unwrap();
        assert!(!hold.succeeded());
        bed.delete(&name).await;
        within(SOON, "their release", gate.wait()).await.unwrap();
        assert!(!gate.release().await.unwrap());
    }
    let left = bed.list(format!("{name}/")).await;
    assert!(left.is_empty(), "{left:?}");
    let promised = store.guarantees().await.unwrap().barriers.value;
    assert_eq!(promised, Barriers::Cooperative);
}

/// Go's `DoubleBarrier`: `waiters/<unique>` with the lease, `ready` when the count is reached;
/// `Leave` deletes its key and waits for the lowest, the lowest for the highest.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_double_barrier_is_shared_with_gos_recipe() {
    let bed = Bed::new("go-double").await;
    let name = format!("{}/phase", bed.namespace);
    let (waiters, ready) = (format!("{name}/waiters"), format!("{name}/ready"));
    let store = connect(bed.config().interop(true)).await;
    let session = open(&store, secs(20)).await;
    let barrier = session.double_barrier(&name, 2).unwrap();
    let lease = bed.raw.lease_client().grant(60, None).await.unwrap().id();
    let entering =
        |barrier: DoubleBarrierHandle<_>| tokio::spawn(async move { barrier.enter().await });

    // We wait, they are the second and open: `len(resp.Kvs) == b.count`, so they put `ready`.
    let waiting = entering(barrier.clone());
    let count = async || bed.list(format!("{waiters}/")).await.len();
    eventually("we wait", SOON, async || count().await == 1).await;
    let theirs = format!("{waiters}/1700000000000000001");
    put(&bed, &theirs, Some(lease)).await;
    assert_eq!(count().await, 2);
    put(&bed, &ready, None).await;
    let inside = within(SOON, "let in by them", waiting)
        .await
        .unwrap()
        .unwrap();
    assert!(
        inside
            .key()
            .starts_with(&format!("{waiters}/{}", session.id()))
    );
    // We leave: our key goes, we wait for theirs. They are the last, delete `ready`, then their key.
    let leaving = tokio::spawn(inside.leave());
    eventually("we left", SOON, async || count().await == 1).await;
    tokio::time::sleep(ms(100)).await;
    assert!(!leaving.is_finished());
    bed.delete(&ready).await;
    bed.delete(&theirs).await;
    within(SOON, "all left", leaving).await.unwrap().unwrap();

    // They wait, we are the second: our `ready` opens.
    put(&bed, &theirs, Some(lease)).await;
    let inside = within(SOON, "let in with them", barrier.enter())
        .await
        .unwrap();
    assert!(value(&bed, &ready).await.is_some());
    // They leave first, and find us the highest and lowest left; we are the last, and clean up.
    bed.delete(&theirs).await;
    within(SOON, "left as the last", inside.leave())
        .await
        .unwrap();
    assert!(bed.list(format!("{name}/")).await.is_empty());

    // One of theirs dies inside, without a word: its lease ends, and we are out.
    put(&bed, &theirs, Some(lease)).await;
    let inside = within(SOON, "let in with them", barrier.enter())
        .await
        .unwrap();
    let leaving = tokio::spawn(inside.leave());
    eventually("we left", SOON, async || count().await == 1).await;
    bed.raw.lease_client().revoke(lease).await.unwrap();
    within(SOON, "left after their death", leaving)
        .await
        .unwrap()
        .unwrap();
    eventually("nothing is left", SOON, async || {
        bed.list(format!("{name}/")).await.is_empty()
    })
    .await;
}

/// The answer to a hold is lost, and somebody releases what it held: it is not held again.
#[tokio::test]
async fn a_hold_takes_effect_once() {
    let bed = Bed::new("hold-once").await;
    let path = format!("{}/barrier/gate", bed.root());
    for hold_for in [HoldFor::Session, HoldFor::Good] {
        let proxy = Proxy::start(bed.address).unwrap();
        let store = connect(bed.through(proxy.address()).timeout(ms(400))).await;
        let session = open(&store, secs(20)).await;
        let gate = session.barrier("gate").unwrap();
        let dropped = proxy.when(
            Direction::Up,
            path.clone().into_bytes(),
            Direction::Down,
            Flow::Drop,
        );
        let holding = tokio::spawn(async move { gate.hold(hold_for).await });
        eventually("the hold landed", SOON, async || {
            value(&bed, &path).await.is_some()
        })
        .await;
        assert!(dropped.has_fired());
        bed.delete(&path).await;
        proxy.cut();
        proxy.heal();
        within(SOON, "an answer", holding).await.unwrap().unwrap();
        assert_eq!(value(&bed, &path).await, None, "held a second time");
        session.close().await.unwrap();
    }
    bed.until_empty(SOON).await;
}

/// The answer to a hold is lost, and its caller goes away: it is lifted.
#[tokio::test]
async fn a_hold_that_nobody_heard_of_is_lifted() {
    let bed = Bed::new("hold-lost").await;
    let path = format!("{}/barrier/gate", bed.root());
    for hold_for in [HoldFor::Session, HoldFor::Good] {
        let proxy = Proxy::start(bed.address).unwrap();
        let store = connect(bed.through(proxy.address()).timeout(ms(400))).await;
        let session = open(&store, secs(20)).await;
        let gate = session.barrier("gate").unwrap();
        proxy.when(
            Direction::Up,
            path.clone().into_bytes(),
            Direction::Down,
            Flow::Drop,
        );
        let holding = tokio::spawn(async move { gate.hold(hold_for).await });
        eventually("the hold landed", SOON, async || {
            value(&bed, &path).await.is_some()
        })
        .await;
        holding.abort();
        proxy.heal();
        proxy.cut();
        eventually("it is lifted", SOON, async || {
            value(&bed, &path).await.is_none()
        })
        .await;
        session.close().await.unwrap();
    }
    bed.until_empty(SOON).await;
}

/// The answer to an enter is lost: it comes in once, under the token of its first request.
#[tokio::test]
async fn a_lost_answer_to_enter_is_found_again() {
    let bed = Bed::new("enter-lost").await;
    let waiters = format!("{}/double_barrier/phase/waiters/", bed.root());
    let other = bed.session(secs(20)).await;
    for _ in 0..5 {
        let proxy = Proxy::start(bed.address).unwrap();
        let store = connect(bed.through(proxy.address()).timeout(ms(400))).await;
        let session = open(&store, secs(20)).await;
        let barrier = session.double_barrier("phase", 2).unwrap();
        let dropped = proxy.when(
            Direction::Up,
            b"phase/waiters/".to_vec(),
            Direction::Down,
            Flow::Drop,
        );
        let entering = tokio::spawn(async move { barrier.enter().await });
        eventually("it landed", SOON, async || {
            bed.list(waiters.clone()).await.len() == 1
        })
        .await;
        assert!(dropped.has_fired());
        let placed = bed.list(waiters.clone()).await;
        proxy.cut();
        proxy.heal();
        let second = other.double_barrier("phase", 2).unwrap();
        let second = within(SOON, "the second is in", second.enter())
            .await
            .unwrap();
        let first = within(SOON, "the first is in", entering)
            .await
            .unwrap()
            .unwrap();
        assert_eq!((first.key().to_owned(), first.token().get()), {
            let (key, created) = placed[0].clone();
            (key, created.unsigned_abs())
        });
        let (first, second) = tokio::join!(first.leave(), second.leave());
        first.unwrap();
        second.unwrap();
        session.close().await.unwrap();
    }
    other.close().await.unwrap();
    bed.until_empty(SOON).await;
}

/// Who is removed by an operator is not let in, and what it was inside of ends for it.
#[tokio::test]
async fn an_operator_removes_participants() {
    let bed = Bed::new("removed").await;
    let waiters = format!("{}/double_barrier/phase/waiters/", bed.root());
    let (one, two) = (bed.session(secs(12)).await, bed.session(secs(20)).await);
    let (one, two) = (
        one.double_barrier("phase", 2).unwrap(),
        two.double_barrier("phase", 2).unwrap(),
    );
    let entering = tokio::spawn({
        let one = one.clone();
        async move { one.enter().await }
    });
    eventually("it waits", SOON, async || {
        bed.list(waiters.clone()).await.len() == 1
    })
    .await;
    bed.delete(&bed.list(waiters.clone()).await[0].0).await;
    let alone = two.enter_timeout(ms(300)).await.unwrap_err();
    assert_eq!(alone.kind(), ErrorKind::TimedOut, "{alone}");
    entering.abort();
    let _ = entering.await;
    bed.until_empty(SOON).await;
    let both = async { tokio::join!(one.enter(), two.enter()) };
    let (first, second) = within(SOON, "both are in", both).await;
    let (first, second) = (first.unwrap(), second.unwrap());
    bed.delete(first.key()).await;
    let reason = within(SOON, "the loss", first.lost()).await;
    assert_eq!(reason, LossReason::Revoked);
    let lost = first.leave().await.unwrap_err();
    assert_eq!(lost.kind(), ErrorKind::Lost);
    within(SOON, "the other leaves", second.leave())
        .await
        .unwrap();
}

/// A barrier that is held for a session stays when that is detached and resumed.
#[tokio::test]
async fn a_hold_survives_its_sessions_resumption() {
    let bed = Bed::new("resumed").await;
    let store = bed.store().await;
    let session = open(&store, secs(20)).await;
    let id = session.id().clone();
    session
        .barrier("gate")
        .unwrap()
        .hold(HoldFor::Session)
        .await
        .unwrap();
    session.detach().await.unwrap();
    let session = store.resume(&id).await.unwrap();
    assert!(session.barrier("gate").unwrap().is_held().await.unwrap());
    session.close().await.unwrap();
    bed.until_empty(SOON).await;
}

/// More than etcd's transactions can compare is refused before anything is sent.
#[tokio::test]
async fn too_large_a_party_is_refused() {
    let bed = Bed::new("crowd").await;
    let session = bed.session(secs(20)).await;
    let barrier = session.double_barrier("phase", 121).unwrap();
    let refused = barrier.enter().await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::TooLarge);
    // The largest works.
    let mut party = tokio::task::JoinSet::new();
    for _ in 0..120 {
        let barrier = session.double_barrier("phase", 120).unwrap();
        party.spawn(async move { barrier.enter().await?.leave().await });
    }
    while let Some(done) = within(LATER, "all are through", party.join_next()).await {
        done.unwrap().unwrap();
    }
    session.close().await.unwrap();
    bed.until_empty(SOON).await;
}
