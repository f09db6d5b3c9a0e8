//! Attacks on the runtime of a session: what it must survive, on a store that fails in part.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use tenure_core::backend::{
    Backend, BackendSession, EndOutcome, Joined, Lease, Locker, Mode, Nonce, Opened, Page, SessionEvents,
};
use tenure_core::clock::Clock;
use tenure_core::executor::Executor;
use tenure_core::{Error, ErrorKind, Guarantees, Kind, Result, SessionId, SessionOptions, Store};
use tenure_memory::MemoryBackend;

use crate::ends::faulty;
use crate::support::{Client, TTL, kind, pass, store};

#[tokio::test(start_paused = true)]
async fn request_of_a_resumed_session_is_not_late_although_its_nonces_were_used_before() {
    let store = store();
    let client = Client::open(&store).await;
    let (kept, _) = client.lock("kept").await;
    let (other, grant) = client.lock("other").await;
    // The steps with these nonces never reached the store.
    client.oldest_open.store(50, Ordering::Relaxed);
    assert_eq!(client.release(&other, grant.token).await, EndOutcome::Ended);
    client.session.detach(&[kept.nonce()]).await.unwrap();
    let resumed = Client::resume(&store, &client.id).await.unwrap();
    let request = resumed.request(Kind::Lock, "new");
    let joined = resumed.join(&request, Mode::Exclusive, true).await;
    assert!(matches!(joined, Joined::Granted(_)), "{joined:?}");
}

#[tokio::test(start_paused = true)]
async fn steps_without_a_caller_whose_effect_stays_unknown_hold_up_no_other() {
    let (_backend, _store, session) = faulty().await;
    let enqueue = |number: i32| {
        let queue = session.queue(format!("silent-{number}"));
        tokio::spawn(async move { queue.enqueue("item").await })
    };
    let silent: Vec<_> = (0..200).map(enqueue).collect();
    pass(1.0).await;
    silent.iter().for_each(|step| step.abort());
    let queue = session.queue("healthy");
    tokio::time::timeout(TTL, queue.enqueue("item")).await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn supervised_session_is_opened_although_each_call_waits_for_less_than_the_pause() {
    let sessions = Store::new(store()).supervise(SessionOptions::new());
    for _ in 0..8 {
        sessions.session().await.unwrap().close().await.unwrap();
    }
    let began = tokio::time::Instant::now();
    let limit = Duration::from_millis(500);
    while tokio::time::timeout(limit, sessions.session()).await.is_err() {}
    assert!(began.elapsed() <= Duration::from_millis(5500), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn reclaim_of_a_holding_that_was_taken_away_is_refused() {
    let backend = store();
    let store = Store::new(backend.clone());
    let session = store.open(SessionOptions::new().ttl(TTL)).await.unwrap();
    let guard = session.lock("l").await.unwrap();
    let token = guard.token();
    let id = session.detach().await.unwrap();
    drop((guard, session));
    let resumed = store.resume(&id).await.unwrap();
    // The first request of the session has the first nonce.
    assert!(backend.take_away(&id, Nonce::new(1)));
    pass(0.1).await;
    assert_eq!(kind(resumed.locker("l").reclaim(token).await), ErrorKind::Lost);
}

#[tokio::test(start_paused = true)]
async fn release_is_answered_soon_after_others_whose_answers_are_lost() {
    let (_backend, _store, session) = faulty().await;
    for number in 0..100 {
        let guard = session.lock(format!("silent-{number}")).await.unwrap();
        tokio::spawn(guard.release());
        pass(0.01).await;
    }
    let healthy = session.lock("healthy").await.unwrap();
    tokio::time::timeout(TTL / 10, healthy.release())
        .await
        .unwrap()
        .unwrap();
}

/// A store whose resumed sessions do not answer to the first renewals.
struct SlowToResume(MemoryBackend);

struct ResumedSession {
    inner: Arc<dyn BackendSession>,
    renewals: AtomicUsize,
}

#[async_trait]
impl Backend for SlowToResume {
    async fn open(&self, ttl: Duration, label: &str, events: SessionEvents) -> Result<Opened> {
        self.0.open(ttl, label, events).await
    }

    async fn resume(&self, id: &SessionId, events: SessionEvents) -> Result<Opened> {
        let mut opened = self.0.resume(id, events).await?;
        opened.session = Arc::new(ResumedSession {
            inner: opened.session,
            renewals: AtomicUsize::new(0),
        });
        Ok(opened)
    }

    async fn guarantees(&self) -> Result<Guarantees> {
        self.0.guarantees().await
    }

    fn clock(&self) -> Clock {
        self.0.clock()
    }

    fn executor(&self) -> Result<Executor> {
        self.0.executor()
    }
}

#[async_trait]
impl Lease for ResumedSession {
    async fn renew(&self) -> Result<()> {
        if self.renewals.fetch_add(1, Ordering::Relaxed) < 2 {
            return Err(Error::new(ErrorKind::Unavailable, "the connection was reset"));
        }
        self.inner.renew().await
    }

    async fn revoke(&self) -> Result<()> {
        self.inner.revoke().await
    }

    async fn entries(&self, cursor: Option<&[u8]>) -> Result<Page> {
        self.inner.entries(cursor).await
    }
}

impl BackendSession for ResumedSession {
    fn locker(self: Arc<Self>) -> Option<Arc<dyn Locker>> {
        Arc::clone(&self.inner).locker()
    }
}

#[tokio::test(start_paused = true)]
async fn resumed_session_survives_a_renewal_that_fails_at_first() {
    let store = Store::new(SlowToResume(store()));
    let session = store.open(SessionOptions::new().ttl(TTL)).await.unwrap();
    let guard = session.lock("l").await.unwrap();
    let token = guard.token();
    let id = session.detach().await.unwrap();
    drop((guard, session));
    let resumed = store.resume(&id).await.unwrap();
    assert!(resumed.locker("l").reclaim(token).await.unwrap().is_valid());
}
