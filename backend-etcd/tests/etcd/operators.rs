//! What operators do to an etcd, and what comes of it: see the table in docs/etcd.md.

use std::time::Instant;

use etcd_client::MemberAddOptions;
use tenure_core::backend::StoreUrl;
use tenure_core::{ErrorKind, FencingToken};
use tenure_etcd::EtcdConfig;
use tenure_testbed::{Certs, EtcdCluster, EtcdServer, Identity};

use crate::common::*;

/// How often etcd answered requests of this method.
fn handled(server: &EtcdServer, method: &str) -> u64 {
    let metrics = server.metrics().unwrap();
    let line = metrics.lines().find(|line| {
        line.starts_with("grpc_server_handled_total{grpc_code=\"OK\"")
            && line.contains(&format!("grpc_method=\"{method}\""))
    });
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok())
        .unwrap_or(0)
}

#[tokio::test]
async fn namespace_removal_deletes_a_bounded_number_of_keys_a_request() {
    let server = EtcdServer::start_async().await.unwrap();
    let bed = Bed::on(&server, "pages").await;
    let neighbour = Bed::on(&server, "pages").await;
    let kept = format!("{}/data/kept", neighbour.root());
    neighbour
        .raw
        .kv_client()
        .put(kept.as_str(), "", None)
        .await
        .unwrap();
    let keys = 1_700;
    for number in 0..keys {
        let key = format!("{}/data/{number}", bed.root());
        bed.raw.kv_client().put(key, "", None).await.unwrap();
    }
    let before = (handled(&server, "DeleteRange"), handled(&server, "Range"));
    tenure_etcd::remove_namespace(bed.config()).await.unwrap();
    let deletions = handled(&server, "DeleteRange") - before.0;
    let reads = handled(&server, "Range") - before.1;
    assert_eq!(bed.keys().await, Vec::<String>::new());
    assert_eq!(neighbour.keys().await, [kept], "of another namespace");
    assert_eq!((deletions, reads), (4, 5), "for {keys} keys");
}

/// The session, waiter and observer of a lost history end, and those that come after it work at once.
#[tokio::test]
async fn sessions_end_with_a_restore_and_new_ones_work_on_the_same_connection() {
    let mut server = EtcdServer::start_async().await.unwrap();
    let bed = Bed::on(&server, "restored").await;
    let store = bed.store().await;
    let session = open(&store, secs(6)).await;
    let kept = session.locker("kept").unwrap().lock().await.unwrap();
    server.save_snapshot().unwrap();
    let lost = session.locker("lost").unwrap().lock().await.unwrap();
    let released = session.locker("again").unwrap();
    for _ in 0..20 {
        released.lock().await.unwrap().release().await.unwrap();
    }
    server.restore_async().await.unwrap();
    // Whatever this client asks first shows it, and so does its watch or renewal.
    let start = Instant::now();
    let fresh = loop {
        match store.open(Default::default()).await {
            Ok(fresh) => break fresh,
            Err(error) => assert!(start.elapsed() < SOON, "{error}"),
        }
    };
    // The revision was above the restored one: the history is known to be lost.
    assert!(
        !lost.is_valid() && !kept.is_valid(),
        "after {:?}",
        start.elapsed()
    );
    let error = session.locker("x").unwrap().try_lock().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Lost, "{error}");
    let guard = fresh.locker("lost").unwrap().try_lock().await.unwrap();
    assert!(guard.is_valid());
    guard.release().await.unwrap();
    // With its next renewal, the lost session lets go of what the snapshot says it holds.
    let guard = fresh
        .locker("kept")
        .unwrap()
        .lock_timeout(SOON)
        .await
        .unwrap();
    guard.release().await.unwrap();
}

/// A client certificate that is replaced on disk is used by the next connection.
#[tokio::test]
async fn rotated_certificates_are_read_at_the_next_connection() {
    let certs = Certs::generate().unwrap();
    let server = EtcdServer::builder().tls(certs.mutual_tls());
    let mut server = server.start_async().await.unwrap();
    let folder = std::env::temp_dir().join(format!("tenure-rotation-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let files = Identity {
        cert: folder.join("client.pem"),
        key: folder.join("client.key"),
    };
    let write = |identity: &Identity| {
        std::fs::copy(&identity.cert, &files.cert).unwrap();
        std::fs::copy(&identity.key, &files.key).unwrap();
    };
    write(&certs.client);
    let url = format!(
        "etcds://{}/tls?ca={}&cert={}&key={}",
        server.address(),
        certs.ca.display(),
        files.cert.display(),
        files.key.display()
    );
    let config = EtcdConfig::from_url(StoreUrl::parse(&url).unwrap()).unwrap();
    let store = tenure_etcd::connect(config).await.unwrap();
    store.open(Default::default()).await.unwrap();
    // With the old one gone, the client is refused; with a good one there again, it is served.
    server.kill().unwrap();
    write(&certs.foreign_client);
    let error = store.open(Default::default()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    server.restart_async().await.unwrap();
    let error = store.open(Default::default()).await.unwrap_err();
    write(&certs.client);
    let start = Instant::now();
    while let Err(error) = store.open(Default::default()).await {
        assert!(start.elapsed() < SOON, "{error}");
        tokio::time::sleep(ms(20)).await;
    }
    assert!(
        matches!(
            error.kind(),
            ErrorKind::Unauthorized | ErrorKind::Unavailable
        ),
        "{error}"
    );
    std::fs::remove_dir_all(&folder).unwrap();
}

/// The token that observers see is that under which the leader was granted, before and after the floor rose.
#[tokio::test]
async fn raised_floor_reaches_waiting_candidates_and_observers() {
    let bed = Bed::new("floor").await;
    let (a, b) = (bed.session(secs(60)).await, bed.session(secs(60)).await);
    let looks = bed.session(secs(60)).await.election("x").unwrap();
    let first = a.election("x").unwrap().campaign("a").await.unwrap();
    let candidate = b.election("x").unwrap();
    let waiting = tokio::spawn(async move { candidate.campaign("b").await });
    let root = format!("{}/election/", bed.root());
    eventually("two candidates", LATER, async || {
        bed.list(root.clone()).await.len() == 2
    })
    .await;
    let floor = FencingToken::new(1_000_000);
    bed.store().await.raise_token_floor(floor).await.unwrap();
    let seen = looks.leader().await.unwrap().unwrap();
    assert_eq!(seen.token(), first.token(), "granted before the raise");
    assert!(first.is_valid() && first.token() < floor);
    first.proclaim("still a").await.unwrap();
    let mut observer = looks.observe();
    first.resign().await.unwrap();
    let second = within(SOON, "the hand-over", waiting).await;
    let second = second.unwrap().unwrap();
    assert!(second.token() >= floor, "{}", second.token());
    second.proclaim("b leads").await.unwrap();
    let converged = async {
        while let Some(seen) = observer.next().await {
            let seen = seen.unwrap();
            if seen.is_some_and(|seen| (&*seen.text(), seen.token()) == ("b leads", second.token()))
            {
                return;
            }
        }
        panic!("the observer ended");
    };
    within(SOON, "the observer's last state", converged).await;
    // The token is that of the leadership also for a later process of the session.
    let (token, id) = (second.token(), b.detach().await.unwrap());
    let resumed = bed.store().await.resume(&id).await.unwrap();
    let again = resumed.election("x").unwrap().resume(token).await.unwrap();
    assert_eq!(again.token(), token);
    assert_eq!(looks.leader().await.unwrap().unwrap().token(), token);
    again.resign().await.unwrap();
    // A later leader has the raised floor from the beginning.
    let third = looks.campaign("c").await.unwrap();
    assert!(third.token() > token);
    assert_eq!(
        looks.leader().await.unwrap().unwrap().token(),
        third.token()
    );
}

/// A holding under a raised floor is what it was for renewals, audits, resumption and release.
#[tokio::test]
async fn holdings_above_a_raised_floor_survive_audits_and_resumption() {
    let server = EtcdServer::start_async().await.unwrap();
    let bed = Bed::on(&server, "floor").await;
    let store = bed.store().await;
    store.raise_token_floor(FencingToken::new(1)).await.unwrap();
    let session = open(&store, secs(3)).await;
    let lock = session.locker("l").unwrap().lock().await.unwrap();
    let write = session.rw_lock("rw").unwrap().write().await.unwrap();
    let queue = session.queue("q").unwrap();
    queue.enqueue("item").await.unwrap();
    let delivery = queue.dequeue().await.unwrap();
    let entered = session.double_barrier("d", 1).unwrap().enter().await;
    let entered = entered.unwrap();
    let audits = || handled(&server, "LeaseTimeToLive");
    let before = audits();
    eventually("three audits", LATER, async || audits() >= before + 3).await;
    assert!(lock.is_valid() && write.is_valid() && delivery.is_valid() && entered.is_valid());
    let stm = session.stm().unwrap();
    let fenced = stm.fenced_by(&lock);
    fenced.run(async |tx| tx.put("k", "v")).await.unwrap();
    delivery.ack().await.unwrap();
    entered.leave().await.unwrap();
    let read = write.downgrade().await.unwrap();
    read.release().await.unwrap();
    let token = lock.token();
    let id = session.detach().await.unwrap();
    let resumed = store.resume(&id).await.unwrap();
    let lock = resumed.locker("l").unwrap().reclaim(token).await.unwrap();
    assert_eq!(lock.token(), token);
    lock.release().await.unwrap();
    resumed.close().await.unwrap();
}

/// A raise that was cut off after its first step costs waiters a request, and the next raise completes it.
#[tokio::test]
async fn a_raise_that_was_cut_off_is_completed_by_the_next() {
    let bed = Bed::new("floor").await;
    let (a, b) = (bed.session(secs(60)).await, bed.session(secs(60)).await);
    let key = format!("{}/token_floor", bed.root());
    let put = bed.raw.kv_client().put(key.as_str(), "rising", None).await;
    put.unwrap();
    let held = a.locker("l").unwrap().lock().await.unwrap();
    let waits = b.locker("l").unwrap();
    let waiting = tokio::spawn(async move { waits.lock().await });
    bed.until_in_line("l", 2).await;
    let before = held.token();
    held.release().await.unwrap();
    let second = within(SOON, "the turn", waiting).await.unwrap().unwrap();
    assert!(second.token() > before);
    let store = bed.store().await;
    let floor = FencingToken::new(second.token().get() + 1_000);
    // Two operators at once: both find it raised.
    let (one, other) = tokio::join!(
        store.raise_token_floor(floor),
        store.raise_token_floor(floor)
    );
    one.unwrap();
    other.unwrap();
    second.release().await.unwrap();
    let third = a.locker("l").unwrap().try_lock().await.unwrap();
    assert!(third.token() >= floor);
    let kept = bed.list(key).await.len();
    assert_eq!(kept, 1, "one key");
    // What Go's library compares cannot be raised.
    let foreign = connect(bed.config().interop(true)).await;
    let refused = foreign.raise_token_floor(floor).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported, "{refused}");
}

/// The members of a cluster by their addresses, the one that `first` says first.
fn members(cluster: &EtcdCluster, first: usize) -> EtcdConfig {
    let members = cluster.members.iter();
    EtcdConfig::new(members.map(|member| member.address().to_string())).starting_at(first)
}

/// A lock is held, and handed over, while a member joins and the one that its client is connected to is removed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_membership_change_costs_no_lock() {
    let cluster = EtcdCluster::start_async().await.unwrap();
    let leader = cluster.leader().expect("a leader");
    let removed = (leader + 1) % 3;
    let bed = Bed::on(&cluster.members[leader], "members").await;
    let config = members(&cluster, removed).namespace(bed.namespace.clone());
    let store = connect(config).await;
    let (session, other) = (open(&store, secs(6)).await, open(&store, secs(6)).await);
    let guard = session.locker("x").unwrap().lock().await.unwrap();
    let waits = other.locker("x").unwrap();
    let waiting = tokio::spawn(async move { waits.lock().await?.release().await });
    bed.until_in_line("x", 2).await;
    // Refused until all members have been connected for some seconds.
    eventually("a new member", LATER, async || {
        let learner = MemberAddOptions::new().with_is_learner();
        let mut cluster = bed.raw.cluster_client();
        let added = cluster.member_add(["http://127.0.0.1:1".to_owned()], Some(learner));
        added.await.is_ok()
    })
    .await;
    let name = format!("etcd-{}", removed + 1);
    let list = bed.raw.cluster_client().member_list().await.unwrap();
    let ids = |wanted: &dyn Fn(&str) -> bool| {
        let members = list.members().iter();
        let found: Vec<_> = members.filter(|it| wanted(it.name())).collect();
        assert_eq!(found.len(), 1, "{list:?}");
        found[0].id()
    };
    for id in [ids(&|it| it.is_empty()), ids(&|it| it == name)] {
        eventually("a removal", LATER, async || {
            bed.raw.cluster_client().member_remove(id).await.is_ok()
        })
        .await;
    }
    // The removed member stops, and takes the client's connection along.
    let gone = Instant::now();
    while gone.elapsed() < secs(8) {
        assert!(guard.is_valid(), "{:?} after the removal", gone.elapsed());
        tokio::time::sleep(ms(20)).await;
    }
    guard.release().await.unwrap();
    let turn = within(SOON, "the waiter's turn", waiting).await.unwrap();
    turn.unwrap();
}

/// A member that stops answering is left well before the leases of its clients end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_stands_still_is_left_within_the_ttl() {
    let cluster = EtcdCluster::start_async().await.unwrap();
    let leader = cluster.leader().expect("a leader");
    let slow = (leader + 1) % 3;
    let bed = Bed::on(&cluster.members[leader], "slow").await;
    let config = members(&cluster, slow).namespace(bed.namespace.clone());
    let store = connect(config).await;
    let session = open(&store, secs(4)).await;
    let guard = session.locker("x").unwrap().lock().await.unwrap();
    cluster.members[slow].pause().unwrap();
    let still = Instant::now();
    while still.elapsed() < secs(9) {
        assert!(guard.is_valid(), "after {:?}", still.elapsed());
        tokio::time::sleep(ms(20)).await;
    }
    // The connection is another one by now.
    let other = session.locker("y").unwrap();
    let taken = within(secs(1), "an answer", other.try_lock()).await;
    taken.unwrap().release().await.unwrap();
    guard.release().await.unwrap();
    cluster.members[slow].resume().unwrap();
}
