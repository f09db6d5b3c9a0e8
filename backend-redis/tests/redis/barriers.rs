//! Barriers and double barriers: over lost answers, after deaths and operators, in crowds.

use std::time::Instant;

use tenure_core::{ErrorKind, HoldFor};
use tenure_testbed::{Direction, Flow, Proxy};

use crate::common::*;

fn held(bed: &Bed<'_>) -> bool {
    bed.of("EXISTS", "barrier/gate", &[]) == "1"
}

fn in_room(bed: &Bed<'_>) -> usize {
    let count = bed.of("ZCARD", "double_barrier/phase", &[]);
    count.parse().unwrap()
}

/// Makes Redis know the scripts: what follows counts on one request for each step.
async fn warm(bed: &Bed<'_>) {
    let session = bed.session(secs(20)).await;
    let gate = session.barrier("warm").unwrap();
    gate.hold(HoldFor::Session).await.unwrap();
    assert!(gate.release().await.unwrap());
    let inside = session.double_barrier("warm", 1).unwrap();
    inside.enter().await.unwrap().leave().await.unwrap();
    session.close().await.unwrap();
}

/// The answer to a hold is lost, and somebody releases what it held: it is not held again.
#[tokio::test]
async fn a_hold_takes_effect_once() {
    let bed = Bed::new("hold-once");
    warm(&bed).await;
    for hold_for in [HoldFor::Session, HoldFor::Good] {
        let proxy = Proxy::start(bed.server.address()).unwrap();
        let store = connect(bed.through(proxy.address()).timeout(ms(400))).await;
        let session = open(&store, secs(20)).await;
        let gate = session.barrier("gate").unwrap();
        let pattern = b"barrier/gate".to_vec();
        let dropped = proxy.when(Direction::Up, pattern, Direction::Down, Flow::Drop);
        let holding = tokio::spawn(async move { gate.hold(hold_for).await });
        eventually("the hold landed", || held(&bed)).await;
        assert!(dropped.has_fired());
        let other = bed.session(secs(20)).await;
        assert!(other.barrier("gate").unwrap().release().await.unwrap());
        proxy.cut();
        proxy.heal();
        within(SOON, "an answer", holding).await.unwrap().unwrap();
        assert!(!held(&bed), "held a second time");
        session.close().await.unwrap();
        other.close().await.unwrap();
    }
    bed.until_empty().await;
}

/// The answer to a hold is lost, and its caller goes away: it is lifted.
#[tokio::test]
async fn a_hold_that_nobody_heard_of_is_lifted() {
    let bed = Bed::new("hold-lost");
    warm(&bed).await;
    for hold_for in [HoldFor::Session, HoldFor::Good] {
        let proxy = Proxy::start(bed.server.address()).unwrap();
        let store = connect(bed.through(proxy.address()).timeout(ms(400))).await;
        let session = open(&store, secs(20)).await;
        let gate = session.barrier("gate").unwrap();
        let pattern = b"barrier/gate".to_vec();
        proxy.when(Direction::Up, pattern, Direction::Down, Flow::Drop);
        let holding = tokio::spawn(async move { gate.hold(hold_for).await });
        eventually("the hold landed", || held(&bed)).await;
        holding.abort();
        proxy.heal();
        proxy.cut();
        eventually("it is lifted", || !held(&bed)).await;
        session.close().await.unwrap();
    }
    bed.until_empty().await;
}

/// The answer to a release is lost, and another holds meanwhile: that hold stays.
#[tokio::test]
async fn a_release_ends_one_hold() {
    let bed = Bed::new("release-once");
    warm(&bed).await;
    let proxy = Proxy::start(bed.server.address()).unwrap();
    let store = connect(bed.through(proxy.address()).timeout(ms(400))).await;
    let session = open(&store, secs(20)).await;
    let gate = session.barrier("gate").unwrap();
    gate.hold(HoldFor::Good).await.unwrap();
    let pattern = b"barrier/gate".to_vec();
    proxy.when(Direction::Up, pattern, Direction::Down, Flow::Drop);
    let releasing = tokio::spawn(async move { gate.release().await });
    eventually("the release landed", || !held(&bed)).await;
    let other = bed.session(secs(20)).await;
    let others = other.barrier("gate").unwrap();
    others.hold(HoldFor::Good).await.unwrap();
    proxy.cut();
    proxy.heal();
    let released = within(SOON, "an answer", releasing).await.unwrap();
    assert!(released.unwrap(), "it found what it released");
    assert!(held(&bed), "a newer hold was ended");
    assert!(others.release().await.unwrap());
    other.close().await.unwrap();
    session.close().await.unwrap();
    bed.until_empty().await;
}

/// A hold for good has no lease that a waiter could wait for: also one that is removed by hand is
/// noticed.
#[tokio::test]
async fn a_hold_that_is_removed_by_hand_is_noticed() {
    let bed = Bed::new("by-hand");
    let session = bed.session(secs(20)).await;
    let gate = session.barrier("gate").unwrap();
    gate.hold(HoldFor::Good).await.unwrap();
    let waiting = tokio::spawn(async move { gate.wait().await });
    tokio::time::sleep(ms(100)).await;
    bed.of("DEL", "barrier/gate", &[]);
    within(SOON, "the end of the wait", waiting)
        .await
        .unwrap()
        .unwrap();
}

/// The answer to an enter is lost: it comes in once, under the token of its first request.
#[tokio::test]
async fn a_lost_answer_to_enter_is_found_again() {
    let bed = Bed::new("enter-lost");
    warm(&bed).await;
    let other = bed.session(secs(20)).await;
    for _ in 0..5 {
        let proxy = Proxy::start(bed.server.address()).unwrap();
        let store = connect(bed.through(proxy.address()).timeout(ms(400))).await;
        let session = open(&store, secs(20)).await;
        let barrier = session.double_barrier("phase", 2).unwrap();
        let pattern = b"double_barrier/phase".to_vec();
        let dropped = proxy.when(Direction::Up, pattern, Direction::Down, Flow::Drop);
        let entering = tokio::spawn(async move { barrier.enter().await });
        eventually("it landed", || in_room(&bed) == 1).await;
        assert!(dropped.has_fired());
        let placed = bed.of("ZRANGE", "double_barrier/phase", &["0", "0", "WITHSCORES"]);
        proxy.cut();
        proxy.heal();
        let second = other.double_barrier("phase", 2).unwrap();
        let second = within(SOON, "the second is in", second.enter()).await;
        let second = second.unwrap();
        let first = within(SOON, "the first is in", entering).await;
        let first = first.unwrap().unwrap();
        let (_, member) = first.key().rsplit_once('#').unwrap();
        assert_eq!(placed, format!("{member}\n{}", first.token()));
        let (first, second) = tokio::join!(first.leave(), second.leave());
        first.unwrap();
        second.unwrap();
        session.close().await.unwrap();
    }
    other.close().await.unwrap();
    bed.until_empty().await;
}

/// The answer to a leave is lost: it has left all the same, and is told so.
#[tokio::test]
async fn a_lost_answer_to_leave_is_found_again() {
    let bed = Bed::new("leave-lost");
    warm(&bed).await;
    let proxy = Proxy::start(bed.server.address()).unwrap();
    let store = connect(bed.through(proxy.address()).timeout(ms(400))).await;
    let session = open(&store, secs(20)).await;
    let barrier = session.double_barrier("phase", 1).unwrap();
    // So that the server knows the script: else the answer that is lost says that it does not.
    barrier.enter().await.unwrap().leave().await.unwrap();
    let inside = barrier.enter().await.unwrap();
    let pattern = b"double_barrier/phase".to_vec();
    proxy.when(Direction::Up, pattern, Direction::Down, Flow::Drop);
    let leaving = tokio::spawn(inside.leave());
    eventually("it left", || in_room(&bed) == 0).await;
    proxy.cut();
    proxy.heal();
    within(SOON, "an answer", leaving).await.unwrap().unwrap();
    session.close().await.unwrap();
    bed.until_empty().await;
}

/// Who is removed by an operator is not let in, and has not left.
#[tokio::test]
async fn an_operator_removes_participants() {
    let bed = Bed::new("removed");
    let (one, two) = (bed.session(secs(12)).await, bed.session(secs(20)).await);
    let (first, second) = (
        one.double_barrier("phase", 2).unwrap(),
        two.double_barrier("phase", 2).unwrap(),
    );
    let entering = tokio::spawn({
        let first = first.clone();
        async move { first.enter().await }
    });
    eventually("it waits", || in_room(&bed) == 1).await;
    bed.of("ZREMRANGEBYRANK", "double_barrier/phase", &["0", "0"]);
    let alone = second.enter_timeout(ms(300)).await.unwrap_err();
    assert_eq!(alone.kind(), ErrorKind::TimedOut, "{alone}");
    // It finds out when it looks.
    let removed = within(SOON, "an end", entering).await.unwrap();
    assert_eq!(removed.unwrap_err().kind(), ErrorKind::Lost);
    let both = async { tokio::join!(first.enter(), second.enter()) };
    let (first, second) = within(SOON, "both are in", both).await;
    let (first, second) = (first.unwrap(), second.unwrap());
    let (_, member) = first.key().rsplit_once('#').unwrap();
    bed.of("ZREM", "double_barrier/phase", &[member]);
    let lost = first.leave().await.unwrap_err();
    assert_eq!(lost.kind(), ErrorKind::Lost);
    let left = within(SOON, "the other leaves", second.leave()).await;
    left.unwrap();
    one.close().await.unwrap();
    two.close().await.unwrap();
    bed.until_empty().await;
}

/// Who leaves waits for several that died, each for as long as its own lease, and no longer.
#[tokio::test]
async fn leaving_waits_for_the_longest_lease_of_the_dead() {
    let bed = Bed::new("dead-inside");
    let one = bed.session(secs(20)).await;
    let mut party = Vec::new();
    // Their clients live on, and renew nothing: stopped by a link that swallows everything.
    let proxy = Proxy::start(bed.server.address()).unwrap();
    for ttl in [ms(900), ms(1800)] {
        let store = connect(bed.through(proxy.address())).await;
        party.push(open(&store, ttl).await);
    }
    let entering: Vec<_> = party
        .iter()
        .map(|session| {
            let barrier = session.double_barrier("phase", 3).unwrap();
            tokio::spawn(async move { barrier.enter().await })
        })
        .collect();
    let inside = one.double_barrier("phase", 3).unwrap().enter().await;
    let mut others = Vec::new();
    for other in entering {
        others.push(other.await.unwrap().unwrap());
    }
    proxy.silence();
    let silent = Instant::now();
    within(SOON, "left the dead", inside.unwrap().leave())
        .await
        .unwrap();
    let took = silent.elapsed();
    // The last renewal may be a third of the TTL old.
    assert!(took >= ms(1100), "left a live lease after {took:?}");
    drop(others);
    drop(party);
    one.close().await.unwrap();
    // Their entries in the list of sessions wait for somebody's next renewal.
    bed.of("DEL", "sessions", &[]);
    bed.until_empty().await;
}

/// A barrier that is held for a session stays when that is detached and resumed, and ends with it; a
/// participant leaves.
#[tokio::test]
async fn a_hold_survives_its_sessions_resumption() {
    let bed = Bed::new("resumed");
    let store = bed.store().await;
    let session = open(&store, secs(20)).await;
    let gate = session.barrier("gate").unwrap();
    gate.hold(HoldFor::Session).await.unwrap();
    let inside = session.double_barrier("phase", 1).unwrap();
    let inside = inside.enter().await.unwrap();
    let id = session.detach().await.unwrap();
    assert!(held(&bed));
    assert_eq!(in_room(&bed), 0);
    drop(inside);
    let session = store.resume(&id).await.unwrap();
    let gate = session.barrier("gate").unwrap();
    assert!(gate.is_held().await.unwrap());
    session.close().await.unwrap();
    assert!(!held(&bed));
    bed.until_empty().await;
}

/// The largest party passes; a larger one is refused before anything is sent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_party_passes() {
    const PARTY: u32 = 1_000;
    let bed = Bed::new("crowd");
    let session = bed.session(secs(30)).await;
    let refused = session.double_barrier("phase", PARTY + 1).unwrap();
    let refused = refused.enter().await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::TooLarge);
    let mut party = tokio::task::JoinSet::new();
    for _ in 0..PARTY {
        let barrier = session.double_barrier("phase", PARTY).unwrap();
        party.spawn(async move { barrier.enter().await?.leave().await });
    }
    while let Some(done) = within(LATER, "all are through", party.join_next()).await {
        done.unwrap().unwrap();
    }
    session.close().await.unwrap();
    bed.until_empty().await;
}
