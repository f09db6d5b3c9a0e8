//! Sessions: handed over, revoked, audited, and left alone by their runtime.

use std::time::Instant;

use tenure_core::{ErrorKind, LossReason, SessionId};
use tenure_testbed::EtcdServer;

use crate::common::*;

#[tokio::test]
async fn a_detached_session_is_resumed_once_with_what_it_holds() {
    let bed = Bed::new("resume").await;
    let old = bed.session(secs(4)).await;
    let held = old.locker("x").unwrap().lock().await.unwrap();
    let (token, key) = (held.token(), held.key().to_owned());
    let id = old.clone().detach().await.unwrap();
    assert_eq!(held.loss(), Some(LossReason::Detached));
    assert_eq!(held.release().await.unwrap_err().kind(), ErrorKind::Lost);
    bed.until_in_line("x", 1).await; // it stays held

    let store = bed.store().await;
    let session = store.resume(&id).await.unwrap();
    assert!(session.is_valid());
    assert_eq!((session.id(), session.ttl()), (&id, secs(4)));
    let again = bed.store().await.resume(&id).await.unwrap_err();
    assert_eq!(again.kind(), ErrorKind::Conflict);

    // Renewed at once, and from then on: two TTLs pass.
    assert!(session.remaining() > secs(3));
    let lock = session.locker("x").unwrap();
    // A new ask, before anybody took up the old holding, finds its plain key in use.
    let waiting = tokio::spawn({
        let lock = lock.clone();
        async move { lock.lock().await }
    });
    bed.until_in_line("x", 2).await;
    let until = Instant::now() + secs(8);
    while Instant::now() < until {
        assert!(session.is_valid());
        tokio::time::sleep(ms(50)).await;
    }
    assert!(!waiting.is_finished());

    let guard = lock.reclaim(token).await.unwrap();
    assert_eq!((guard.token(), guard.key()), (token, key.as_str()));
    assert!(guard.is_valid());
    guard.release().await.unwrap();
    let next = within(SOON, "the new ask", waiting).await.unwrap().unwrap();
    assert!(next.token() > token && next.key() != key);
    next.release().await.unwrap();
    assert_eq!(
        lock.reclaim(token).await.unwrap_err().kind(),
        ErrorKind::Lost
    );
    // Both keys are free again.
    let guard = lock.try_lock().await.unwrap();
    assert_eq!(guard.key(), key);
    guard.release().await.unwrap();
    session.close().await.unwrap();
    bed.until_empty(SOON).await;
}

#[tokio::test]
async fn what_was_never_detached_or_is_gone_is_not_resumed() {
    let bed = Bed::new("no-resume").await;
    let store = bed.store().await;
    let session = open(&store, secs(10)).await;
    let conflict = store.resume(session.id()).await.unwrap_err();
    assert_eq!(conflict.kind(), ErrorKind::Conflict);
    let id = session.id().clone();
    session.close().await.unwrap();
    let lost = store.resume(&id).await.unwrap_err();
    assert_eq!(lost.kind(), ErrorKind::Lost);
    let nonsense = store.resume(&SessionId::new("nonsense")).await;
    assert_eq!(nonsense.unwrap_err().kind(), ErrorKind::Config);
}

#[tokio::test]
async fn many_who_resume_at_once_are_one_who_does() {
    let bed = Bed::new("race").await;
    let id = bed.session(secs(10)).await.detach().await.unwrap();
    let mut all = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (store, id) = (bed.store().await, id.clone());
        all.spawn(async move { store.resume(&id).await });
    }
    let results = all.join_all().await;
    let won = results.iter().filter(|result| result.is_ok()).count();
    assert_eq!(won, 1);
    for lost in results.iter().filter_map(|result| result.as_ref().err()) {
        assert_eq!(lost.kind(), ErrorKind::Conflict);
    }
}

#[tokio::test]
async fn a_key_deleted_by_an_operator_alarms_its_holder() {
    let bed = Bed::new("audit").await;
    let session = bed.session(secs(6)).await;
    let guard = session.locker("x").unwrap().lock().await.unwrap();
    let spared = session.locker("y").unwrap().lock().await.unwrap();
    bed.delete(guard.key()).await;
    // Nobody waits, so nothing watches: the audit after the next renewal finds it.
    let deleted = Instant::now();
    let reason = within(SOON, "the alarm", guard.lost()).await;
    assert_eq!(reason, LossReason::Revoked);
    let took = deleted.elapsed();
    assert!(took < secs(3), "about a third of the TTL: {took:?}");
    assert!(spared.is_valid() && session.is_valid());
    assert_eq!(guard.release().await.unwrap_err().kind(), ErrorKind::Lost);
    spared.release().await.unwrap();
}

#[tokio::test]
async fn a_key_taken_from_its_holder_is_not_given_back_by_it() {
    let bed = Bed::new("taken").await;
    let (a, b) = (bed.session(secs(30)).await, bed.session(secs(30)).await);
    let guard = a.locker("x").unwrap().lock().await.unwrap();
    bed.delete(guard.key()).await;
    let other = b.locker("x").unwrap().lock().await.unwrap();
    // The release compares the token, so it harms nobody even before the audit.
    assert_eq!(guard.release().await.unwrap_err().kind(), ErrorKind::Lost);
    assert_eq!(bed.line("x").await.len(), 1);
    other.release().await.unwrap();
    // And its own key, taken away and taken up again by itself, is another incarnation.
    let lock = a.locker("x").unwrap();
    let first = lock.lock().await.unwrap();
    bed.delete(first.key()).await;
    let second = lock.lock().await.unwrap();
    assert_eq!(first.release().await.unwrap_err().kind(), ErrorKind::Lost);
    assert!(second.is_valid());
    second.release().await.unwrap();
}

#[tokio::test]
async fn a_revoked_lease_is_a_revoked_session() {
    let bed = Bed::new("revoked").await;
    let session = bed.session(secs(6)).await;
    let guard = session.locker("x").unwrap().lock().await.unwrap();
    bed.revoke(&session).await;
    let revoked = Instant::now();
    assert_eq!(guard.lost().await, LossReason::Revoked);
    assert!(revoked.elapsed() < secs(3), "{:?}", revoked.elapsed());
    assert_eq!(session.loss(), Some(LossReason::Revoked));
    let refused = session.locker("x").unwrap().lock().await.unwrap_err();
    assert_eq!(refused.loss(), Some(LossReason::Revoked));
}

#[tokio::test]
async fn closing_and_dropping_free_at_once() {
    let bed = Bed::new("close").await;
    let store = bed.store().await;
    let session = open(&store, secs(60)).await;
    let guard = session.locker("x").unwrap().lock().await.unwrap();
    let closing = session.clone();
    closing.close().await.unwrap();
    assert_eq!(guard.loss(), Some(LossReason::Closed));
    assert_eq!(bed.line("x").await, []);
    drop((guard, session));

    let session = open(&store, secs(60)).await;
    let guard = session.locker("x").unwrap().lock().await.unwrap();
    drop((session, guard));
    bed.until_in_line("x", 0).await;

    // A guard keeps its session open, and takes it along.
    let session = open(&store, secs(60)).await;
    let guard = session.locker("x").unwrap().lock().await.unwrap();
    let lease = lease(&session);
    drop(session);
    assert!(guard.is_valid());
    drop((guard, store));
    eventually("revoked", SOON, async || {
        let left = bed.raw.lease_client().time_to_live(lease, None).await;
        left.unwrap().ttl() <= 0
    })
    .await;
}

/// The runtime of a holder and of a waiter ends under them: nothing panics, the TTL frees.
#[test]
fn a_runtime_that_shuts_down_leaves_it_to_the_ttl() {
    let runtime = || {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap()
    };
    let (outer, inner) = (runtime(), runtime());
    let bed = outer.block_on(Bed::new("shutdown"));
    let (guard, session, store) = inner.block_on(async {
        let store = bed.store().await;
        let session = open(&store, secs(2)).await;
        let guard = session.locker("x").unwrap().lock().await.unwrap();
        let waiter = bed.session(secs(2)).await;
        tokio::spawn(async move { waiter.locker("x").unwrap().lock().await.map(drop) });
        bed.until_in_line("x", 2).await;
        (guard, session, store)
    });
    inner.shutdown_background();
    // Used outside and inside another runtime, and dropped anywhere.
    outer.block_on(async {
        eventually("it knows", secs(4), async || !guard.is_valid()).await;
        assert!(session.locker("x").unwrap().try_lock().await.is_err());
        assert!(guard.release().await.is_err());
        bed.until_in_line("x", 0).await;
        let other = bed.session(secs(5)).await;
        drop(other.locker("x").unwrap().try_lock().await.unwrap());
    });
    drop((session, store));
}

#[tokio::test]
async fn watches_and_leases_go_with_their_sessions() {
    let server = EtcdServer::start_async().await.unwrap();
    let bed = Bed::on(&server, "leak").await;
    let count = |metric: &str| {
        let metrics = server.metrics().unwrap();
        let line = metrics.lines().find(|line| {
            line.strip_prefix(metric)
                .is_some_and(|rest| rest.starts_with(' '))
        });
        let value = line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        value.unwrap_or_else(|| panic!("no {metric}"))
    };
    let watchers = "etcd_debugging_mvcc_watcher_total";
    let before = count(watchers);
    for _ in 0..3 {
        let store = bed.store().await;
        let a = open(&store, secs(30)).await;
        let b = open(&store, secs(30)).await;
        // Waits on many names: each has had a watch.
        for number in 0..300 {
            let name = format!("n{number}");
            let guard = a.locker(&name).unwrap().lock().await.unwrap();
            let lock = b.locker(&name).unwrap();
            let waiting = tokio::spawn(async move { lock.lock().await.map(drop) });
            tokio::task::yield_now().await;
            guard.release().await.unwrap();
            within(SOON, "a turn", waiting).await.unwrap().unwrap();
        }
        let now = count(watchers);
        assert!(now - before < 500.0, "{now} watches for 300 idle names");
        a.close().await.unwrap();
        b.close().await.unwrap();
    }
    bed.until_empty(SOON).await;
    eventually("no watch is left", SOON, async || count(watchers) <= before).await;
    let leases = bed.raw.lease_client().leases().await.unwrap();
    assert_eq!(leases.leases().len(), 0);
}

/// One transaction deletes the holder's key and the waiter's: the waiter must not take the first
/// deletion for its turn.
#[tokio::test]
async fn a_waiter_that_goes_with_its_holder_is_not_granted() {
    let bed = Bed::new("both-gone").await;
    for round in 0..10 {
        let (holder, waiter) = (bed.session(secs(30)).await, bed.session(secs(30)).await);
        let guard = holder.locker("x").unwrap().lock().await.unwrap();
        let lock = waiter.locker("x").unwrap();
        let waiting = tokio::spawn(async move { lock.lock().await });
        bed.until_in_line("x", 2).await;
        let options = etcd_client::DeleteOptions::new().with_prefix();
        let mut raw = bed.raw.kv_client();
        raw.delete(bed.prefix("x"), Some(options)).await.unwrap();
        let ended = within(SOON, "the waiter's end", waiting).await.unwrap();
        match ended {
            Err(error) => assert_eq!(error.kind(), ErrorKind::Lost, "{round}"),
            Ok(granted) => panic!("{round}: granted {granted:?} without a key in the store"),
        }
        drop(guard); // nobody tells the holder before its next audit
        let (one, other) = tokio::join!(holder.close(), waiter.close());
        one.and(other).unwrap();
    }
}

/// The same by the end of the lease that both hang on.
#[tokio::test]
async fn a_second_ask_that_goes_with_its_lease_is_not_granted() {
    let bed = Bed::new("lease-gone").await;
    for round in 0..10 {
        let session = bed.session(secs(30)).await;
        let guard = session.locker("x").unwrap().lock().await.unwrap();
        let lock = session.locker("x").unwrap();
        let waiting = tokio::spawn(async move { lock.lock().await });
        bed.until_in_line("x", 2).await;
        bed.revoke(&session).await;
        let ended = within(SOON, "the waiter's end", waiting).await.unwrap();
        assert_eq!(ended.unwrap_err().kind(), ErrorKind::Lost, "{round}");
        drop(guard);
    }
}

/// A process detaches while one of its tasks waits, and ends before anything can be withdrawn.
#[tokio::test]
async fn a_place_that_could_not_be_withdrawn_is_gone_when_the_session_is_resumed() {
    let bed = Bed::new("detach-waiting").await;
    let holder = bed.session(secs(30)).await;
    let guard = holder.locker("x").unwrap().lock().await.unwrap();
    let old = bed.session(secs(8)).await;
    let kept = old.locker("y").unwrap().lock().await.unwrap();
    let lock = old.locker("x").unwrap();
    // Polled until it stands in line, and then never again: it cannot give its place up.
    let mut waiting = Box::pin(async move { lock.lock().await });
    let standing = bed.until_in_line("x", 2);
    tokio::select! {
        _ = &mut waiting => panic!("granted while it is held"),
        () = standing => {}
    }
    let token = kept.token();
    let id = within(secs(8), "detach", old.detach()).await.unwrap();
    bed.until_in_line("x", 2).await;
    let session = bed.store().await.resume(&id).await.unwrap();
    bed.until_in_line("x", 1).await;
    let again = session.locker("y").unwrap().reclaim(token).await.unwrap();
    let lock = session.locker("x").unwrap();
    let next = tokio::spawn(async move { lock.lock().await });
    bed.until_in_line("x", 2).await;
    guard.release().await.unwrap();
    let next = within(SOON, "its turn", next).await.unwrap().unwrap();
    next.release().await.unwrap();
    again.release().await.unwrap();
    drop((waiting, kept));
}

/// What was taken up bears the new nonce: a release that the old process sent, and that arrives
/// late, compares the old one.
#[tokio::test]
async fn a_late_release_of_the_old_process_spares_what_was_taken_up() {
    let bed = Bed::new("late-release").await;
    let old = bed.session(secs(8)).await;
    let held = old.locker("x").unwrap().lock().await.unwrap();
    let (token, key) = (held.token(), held.key().to_owned());
    let before = bed.raw.kv_client().get(key.as_str(), None).await.unwrap();
    let id = old.detach().await.unwrap();
    let session = bed.store().await.resume(&id).await.unwrap();
    let guard = session.locker("x").unwrap().reclaim(token).await.unwrap();
    // What the old process's release looks like.
    let late = etcd_client::Txn::new()
        .when([
            etcd_client::Compare::create_revision(
                key.as_str(),
                etcd_client::CompareOp::Equal,
                i64::try_from(token.get()).unwrap(),
            ),
            etcd_client::Compare::value(
                key.as_str(),
                etcd_client::CompareOp::Equal,
                before.kvs()[0].value(),
            ),
        ])
        .and_then([etcd_client::TxnOp::delete(key.as_str(), None)]);
    assert!(!bed.raw.kv_client().txn(late).await.unwrap().succeeded());
    drop(held);
    bed.until_in_line("x", 1).await;
    guard.release().await.unwrap();
    bed.until_in_line("x", 0).await;
}
