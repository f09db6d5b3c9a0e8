//! Leases, detachment, entries, names, tokens.

use std::sync::Arc;
use std::time::Duration;

use tenure_core::backend::{Backend, EntryState, Joined, Mode, Nonce, SessionEvent, TakeLimit};
use tenure_core::{ErrorKind, FencingToken, Kind, LossReason, Namespace, SessionOptions, Store};
use tenure_memory::{LONGEST_TTL, MemoryBackend, MemoryConfig, SHORTEST_TTL};

use crate::support::{Client, TTL, kind, name, pass, soon, store};

rules! {
    dead_session_is_freed_at_its_ttl_and_not_before: [NeverExpires, ExpiresEarly];
    renewed_session_outlives_its_ttl: [EndsAfterFiveTtls];
    long_ttl_is_kept: [TtlCapped];
    detached_session_keeps_what_it_should_and_resumes_once: [ResumedTwice, DetachFreesAll, DetachedActs];
    entries_list_all_that_a_session_has: [EntriesOmit];
    names_of_two_kinds_or_namespaces_never_meet: [KindsMeet, NamespacesMeet];
    tokens_rise_over_idle_times_and_floors: [TokensRestart, FloorIgnored];
    revoked_session_is_gone_at_once: [];
    operator_ends_a_session_and_a_request: [];
}

async fn dead_session_is_freed_at_its_ttl_and_not_before(store: MemoryBackend) {
    let (a, b) = (Client::open(&store).await, Client::open(&store).await);
    a.lock("x").await;
    let waits = b.queue_up(Kind::Lock, "x", Mode::Exclusive).await;
    let start = tokio::time::Instant::now();
    let alive = async {
        loop {
            pass(3.0).await;
            b.session.renew().await.unwrap();
        }
    };
    tokio::select! {
        _ = b.wait(&waits) => {}
        () = alive => {}
    }
    let took = start.elapsed();
    assert!(took >= TTL && took < TTL + Duration::from_millis(250), "{took:?}");
    let error = a.session.renew().await.unwrap_err();
    assert_eq!(error.loss(), Some(LossReason::Expired));
}

async fn renewed_session_outlives_its_ttl(store: MemoryBackend) {
    let a = Client::open(&store).await;
    a.lock("x").await;
    for _ in 0..20 {
        pass(6.0).await;
        a.session.renew().await.unwrap();
    }
    assert_eq!(a.entries().await.len(), 1);
}

async fn long_ttl_is_kept(store: MemoryBackend) {
    let a = Client::open_for(&store, Duration::from_secs(60)).await.unwrap();
    assert_eq!(a.ttl, Duration::from_secs(60));
    pass(59.0).await;
    a.session.renew().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn ttl_beyond_the_limits_is_rounded_up_or_refused() {
    let store = store();
    let short = Client::open_for(&store, Duration::from_millis(1)).await.unwrap();
    assert_eq!(short.ttl, SHORTEST_TTL);
    for ttl in [Duration::ZERO, LONGEST_TTL + Duration::from_secs(1)] {
        assert_eq!(
            Client::open_for(&store, ttl).await.err().map(|e| e.kind()),
            Some(ErrorKind::Config)
        );
        assert_eq!(
            kind(MemoryBackend::connect(MemoryConfig::new().ttl(ttl))),
            ErrorKind::Config
        );
    }
}

async fn detached_session_keeps_what_it_should_and_resumes_once(store: MemoryBackend) {
    let (a, b) = (Client::open(&store).await, Client::open(&store).await);
    let (kept, grant) = a.hold(Kind::Election, "kept", Mode::Exclusive).await;
    let (freed, _) = a.lock("freed").await;
    a.election().proclaim(&kept, grant.token, 7, b"old").await.unwrap();
    b.lock("other").await;
    a.queue_up(Kind::Lock, "other", Mode::Exclusive).await;
    a.session.detach(&[kept.nonce()]).await.unwrap();
    a.session.detach(&[kept.nonce()]).await.unwrap();
    b.lock("freed").await;
    let late = a.line(Kind::Lock).join(&freed, Mode::Exclusive, None, true).await;
    assert_eq!(late.unwrap_err().loss(), Some(LossReason::Detached));
    assert_eq!(a.session.renew().await.unwrap_err().loss(), Some(LossReason::Detached));

    let again = Client::resume(&store, &a.id).await.unwrap();
    assert_eq!(
        kind(Client::resume(&store, &a.id).await.map(|client| client.id)),
        ErrorKind::Conflict
    );
    assert!(again.nonce() > freed.nonce());
    let entries = again.entries().await;
    assert_eq!(entries.len(), 1);
    assert_eq!(
        (entries[0].nonce, &entries[0].state),
        (kept.nonce(), &EntryState::Granted(vec![grant.clone()]))
    );
    // Its process does not know how many proclamations there were.
    again.election().proclaim(&kept, grant.token, 1, b"new").await.unwrap();
    let update = again.election().observe(&name("kept"), None).await.unwrap();
    assert_eq!(&*update.leader.unwrap().value, b"new");
    assert_eq!(kind(a.session.revoke().await), ErrorKind::Lost);
    again.session.renew().await.unwrap();

    again.session.detach(&[]).await.unwrap();
    pass(11.0).await;
    let expired = Client::resume(&store, &a.id).await.map(|client| client.id).unwrap_err();
    assert_eq!(expired.loss(), Some(LossReason::Expired));
}

async fn entries_list_all_that_a_session_has(store: MemoryBackend) {
    let (a, b) = (Client::open(&store).await, Client::open(&store).await);
    for number in 0..600 {
        a.lock(&format!("lock {number}")).await;
    }
    b.lock("taken").await;
    let waits = a.queue_up(Kind::Lock, "taken", Mode::Exclusive).await;
    let entries = a.entries().await;
    assert_eq!(entries.len(), 601);
    let granted = entries
        .iter()
        .filter(|entry| matches!(&entry.state, EntryState::Granted(one) if one.len() == 1));
    assert_eq!(granted.count(), 600);
    let last = entries.last().unwrap();
    assert_eq!(
        (last.nonce, last.kind, last.name.as_str()),
        (waits.nonce(), Kind::Lock, "taken")
    );
    assert_eq!(last.state, EntryState::Waiting);
    assert_eq!(a.session.entries(None).await.unwrap().entries.len(), 250);
}

async fn names_of_two_kinds_or_namespaces_never_meet(store: MemoryBackend) {
    let a = Client::open(&store).await;
    let elsewhere = store.in_namespace(Namespace::new("default/a").unwrap());
    let other = Client::open(&elsewhere).await;
    for kind in [Kind::Lock, Kind::RwLock, Kind::Election, Kind::Semaphore, Kind::Once] {
        a.hold(kind, "a", Mode::Exclusive).await;
        other.hold(kind, "a", Mode::Exclusive).await;
    }
    for name in ["a/b", "a/", "A", "a%2F", "ä"] {
        a.lock(name).await;
    }
    // A session belongs to its namespace.
    a.session.detach(&[]).await.unwrap();
    assert_eq!(
        kind(Client::resume(&elsewhere, &a.id).await.map(|client| client.id)),
        ErrorKind::Lost
    );
}

async fn tokens_rise_over_idle_times_and_floors(store: MemoryBackend) {
    let a = Client::open(&store).await;
    let (request, first) = a.lock("x").await;
    a.release(&request, first.token).await;
    a.session.revoke().await.unwrap();
    pass(3600.0).await;
    let b = Client::open(&store).await;
    let (_, second) = b.lock("x").await;
    assert!(second.token > first.token);
    store.raise_token_floor(FencingToken::new(1_000_000)).await.unwrap();
    store.raise_token_floor(FencingToken::new(5)).await.unwrap();
    let (_, third) = b.lock("y").await;
    assert!(third.token >= FencingToken::new(1_000_000));
    assert_eq!(
        kind(store.raise_token_floor(FencingToken::MAX).await),
        ErrorKind::TooLarge
    );
}

async fn revoked_session_is_gone_at_once(store: MemoryBackend) {
    let (a, b) = (Client::open(&store).await, Client::open(&store).await);
    a.lock("x").await;
    let waits = b.queue_up(Kind::Lock, "x", Mode::Exclusive).await;
    a.session.revoke().await.unwrap();
    a.session.revoke().await.unwrap();
    assert!(
        tokio::time::timeout(Duration::from_millis(1), b.wait(&waits))
            .await
            .is_ok()
    );
    let late = a
        .line(Kind::Lock)
        .join(&a.request(Kind::Lock, "y"), Mode::Exclusive, None, true)
        .await;
    assert_eq!(late.unwrap_err().loss(), Some(LossReason::Closed));
}

async fn operator_ends_a_session_and_a_request(store: MemoryBackend) {
    let (mut a, b) = (Client::open(&store).await, Client::open(&store).await);
    let (request, grant) = a.lock("x").await;
    assert_eq!(
        store.sessions(),
        [(a.id.clone(), "test".into()), (b.id.clone(), "test".into())]
    );
    assert!(store.take_away(&a.id, request.nonce()));
    assert!(!store.take_away(&a.id, request.nonce()));
    let lost = SessionEvent::RequestLost(request.nonce(), LossReason::Revoked);
    assert_eq!(soon(a.events.recv()).await, Some(lost));
    b.lock("x").await;
    assert_eq!(
        a.release(&request, grant.token).await,
        tenure_core::backend::EndOutcome::NotHeld
    );
    assert!(store.revoke(&a.id));
    assert!(!store.revoke(&a.id));
    assert_eq!(
        soon(a.events.recv()).await,
        Some(SessionEvent::Lost(LossReason::Revoked))
    );
    assert_eq!(a.session.renew().await.unwrap_err().loss(), Some(LossReason::Revoked));
}

#[tokio::test(start_paused = true)]
async fn session_with_too_many_entries_is_refused_more() {
    let store = MemoryBackend::connect(MemoryConfig::new().capacity(3)).unwrap();
    let a = Client::open(&store).await;
    for name in ["1", "2", "3"] {
        a.lock(name).await;
    }
    let request = a.request(Kind::Lock, "4");
    let refused = a.line(Kind::Lock).join(&request, Mode::Exclusive, None, true).await;
    assert_eq!(kind(refused), ErrorKind::TooLarge);
    assert_eq!(a.entries().await.len(), 3);
    let b = Client::open(&store).await;
    assert!(matches!(
        b.join(&b.request(Kind::Lock, "4"), Mode::Exclusive, false).await,
        Joined::Granted(_)
    ));
}

#[tokio::test(start_paused = true)]
async fn stores_with_one_shared_name_are_one() {
    let connect = || MemoryBackend::connect(MemoryConfig::shared("stores_with_one_shared_name_are_one")).unwrap();
    let (a, b) = (Client::open(&connect()).await, Client::open(&connect()).await);
    a.lock("x").await;
    assert_eq!(
        b.join(&b.request(Kind::Lock, "x"), Mode::Exclusive, false).await,
        Joined::Busy
    );
    let alone = Client::open(&store()).await;
    alone.lock("x").await;
}

#[test]
fn url_selects_the_store_and_its_options() {
    let read = |text| MemoryConfig::from_url(tenure_core::url::StoreUrl::parse(text).unwrap());
    let config = format!(
        "{:?}",
        read("memory:a%20b?ttl=500ms&namespace=shop&client_label=me").unwrap()
    );
    for part in ["\"a b\"", "500ms", "\"shop\"", "\"me\""] {
        assert!(config.contains(part), "{config}");
    }
    for refused in ["memory://host/x", "memory:?tll=1s", "memory:?ttl=25h", "etcd:x"] {
        assert_eq!(kind(read(refused)), ErrorKind::Config, "{refused}");
    }
    assert_eq!(kind(read("memory:?namespace=")), ErrorKind::InvalidName);
}

#[test]
fn store_outside_a_runtime_is_refused() {
    assert_eq!(kind(MemoryBackend::connect(MemoryConfig::new())), ErrorKind::Config);
}

#[tokio::test(start_paused = true)]
async fn store_in_steady_use_does_not_grow() {
    let store = store();
    let a = Client::open(&store).await;
    a.lock("held all the time").await;
    for round in 0..1000 {
        let (request, grant) = a.lock("x").await;
        // As core does: no earlier request is in flight.
        a.oldest_open
            .store(request.nonce().get(), std::sync::atomic::Ordering::Release);
        let never_sent = a.nonce();
        assert_ne!(never_sent, Nonce::new(0));
        a.release(&request, grant.token).await;
        assert!(a.take("empty", &TakeLimit::new(1)).await.is_none());
        if round % 100 == 0 {
            a.session.renew().await.unwrap();
        }
        let footprint = store.footprint();
        let kept = (footprint.entries, footprint.waiters, footprint.objects);
        assert_eq!(kept, (1, 0, 1));
        assert!(footprint.past <= 2, "{footprint:?}");
    }
    // Steps without requests, and some nonces never arrive.
    for _ in 0..1000 {
        a.nonce();
        a.enqueue("q", &[]).await;
    }
    assert!(store.footprint().past <= 2, "{:?}", store.footprint());
}

#[tokio::test(start_paused = true)]
async fn entries_tell_readers_from_writers() {
    let store = store();
    let (a, b) = (Client::open(&store).await, Client::open(&store).await);
    let (downgraded, grant) = a.hold(Kind::RwLock, "x", Mode::Exclusive).await;
    let rw_lock = Arc::clone(&a.session).rw_lock().unwrap();
    rw_lock.downgrade(a.marker(), &downgraded, grant.token).await.unwrap();
    a.hold(Kind::RwLock, "x", Mode::Shared).await;
    a.hold(Kind::RwLock, "y", Mode::Exclusive).await;
    b.queue_up(Kind::RwLock, "y", Mode::Shared).await;
    b.queue_up(Kind::RwLock, "y", Mode::Exclusive).await;
    let modes = async |client: &Client| {
        client
            .entries()
            .await
            .iter()
            .map(|entry| entry.mode)
            .collect::<Vec<_>>()
    };
    assert_eq!(modes(&a).await, [Mode::Shared, Mode::Shared, Mode::Exclusive]);
    assert_eq!(modes(&b).await, [Mode::Shared, Mode::Exclusive]);
}

#[tokio::test(start_paused = true)]
async fn resumed_holding_is_reclaimed_in_its_mode_only() {
    let store = Store::new(store());
    let session = store.open(SessionOptions::new()).await.unwrap();
    let reader = session.read_lock("read").await.unwrap();
    let writer = session.write_lock("written").await.unwrap();
    let downgraded = session
        .write_lock("downgraded")
        .await
        .unwrap()
        .downgrade()
        .await
        .unwrap();
    let (read, written, lowered) = (reader.token(), writer.token(), downgraded.token());
    let id = session.detach().await.unwrap();
    drop((reader, writer, downgraded));
    let session = store.resume(&id).await.unwrap();
    for (name, token) in [("read", read), ("downgraded", lowered)] {
        let lock = session.rw_lock(name);
        assert_eq!(kind(lock.reclaim_write(token).await.map(drop)), ErrorKind::Lost);
        let reader = lock.reclaim_read(token).await.unwrap();
        assert!(lock.try_write().await.unwrap().is_none());
        reader.release().await.unwrap();
    }
    let lock = session.rw_lock("written");
    assert_eq!(kind(lock.reclaim_read(written).await.map(drop)), ErrorKind::Lost);
    lock.reclaim_write(written).await.unwrap().release().await.unwrap();
}

#[test]
fn shared_store_outlives_the_runtime_that_connected_first() {
    let runtime = || {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().build().unwrap()
    };
    let connect = || MemoryBackend::connect(MemoryConfig::shared("outlives its runtime")).unwrap();
    let open = async |store: &MemoryBackend| Client::open_for(store, SHORTEST_TTL).await.unwrap();
    let first = runtime();
    let a = first.block_on(async { open(&connect()).await });
    first.block_on(a.lock("x"));
    drop(first);
    runtime().block_on(async {
        let store = connect();
        soon(store.clock().sleep(Duration::from_millis(1))).await;
        // The lease of the holder ends although its runtime is gone. The time is real: a busy machine must not end that of the
        // next one, too.
        let session = Store::new(store)
            .open(SessionOptions::new().ttl(Duration::from_secs(60)))
            .await
            .unwrap();
        let guard = soon(session.lock("x")).await.unwrap();
        assert!(guard.is_valid());
        session.close().await.unwrap();
    });
}
