//! A store that has one connection for all steps: whoever takes a step may leave it alone in the
//! middle, and nobody else is to wait for that (see `Lease::one_at_a_time`).

#![allow(clippy::unwrap_used, reason = "a test ends with it")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tenure_core::backend::{
    Ask, Backend, Election, Grant, Lease, Opened, Settle, Sighting, async_trait,
};
use tenure_core::{
    Clock, Effect, ElectionHandle, Error, ErrorKind, FencingToken, Guarantees, Leader, Name,
    Result, Session, SessionId, SessionOptions, Store,
};
use tokio::sync::Mutex;
use tokio::time::{sleep, timeout};

const STEP: Duration = Duration::from_millis(10);

#[derive(Default)]
struct Server {
    connection: Mutex<()>,
    /// Steps on their way.
    under_way: AtomicUsize,
    /// Steps that came to their end.
    ended: AtomicUsize,
    given_back: AtomicUsize,
}

struct UnderWay<'a>(&'a Server);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Server {
    async fn step(&self) {
        self.under_way.fetch_add(1, Ordering::SeqCst);
        let _under_way = UnderWay(self);
        let _connection = self.connection.lock().await;
        sleep(STEP).await;
        self.ended.fetch_add(1, Ordering::SeqCst);
    }
}

struct Single(Arc<Server>);
struct SingleLease(Arc<Server>);

#[async_trait]
impl Backend for Single {
    type Session = SingleLease;

    async fn open(&self, ttl: Duration, _: &SessionOptions) -> Result<Opened<SingleLease>> {
        Ok(Opened {
            lease: Arc::new(SingleLease(Arc::clone(&self.0))),
            id: SessionId::new("single"),
            ttl,
            capacity: 10,
        })
    }

    async fn guarantees(&self) -> Result<Guarantees> {
        Err(Error::unsupported("stating guarantees"))
    }

    fn clock(&self) -> Clock {
        Clock::tokio()
    }
}

#[async_trait]
impl Lease for SingleLease {
    async fn renew(&self) -> Result<()> {
        self.0.step().await;
        Ok(())
    }

    async fn revoke(&self) -> Result<()> {
        Ok(())
    }

    fn one_at_a_time(&self) -> bool {
        true
    }

    fn election(self: Arc<Self>) -> Option<Arc<dyn Election>> {
        Some(self)
    }
}

#[async_trait]
impl Election for SingleLease {
    async fn try_campaign(&self, ask: &Ask, value: &[u8]) -> Result<Option<Grant>> {
        self.campaign(ask, value).await.map(Some)
    }

    async fn campaign(&self, _: &Ask, value: &[u8]) -> Result<Grant> {
        self.0.step().await;
        assert_ne!(value, b"panic", "as the test wants it");
        Ok(Grant::new(FencingToken::new(1), "key"))
    }

    async fn proclaim(&self, _: &Ask, _: &Grant, _: u64, _: &[u8]) -> Result<()> {
        self.0.step().await;
        Ok(())
    }

    async fn leader(&self, _: &Name) -> Result<Option<Leader>> {
        self.0.step().await;
        Ok(None)
    }

    async fn observe(&self, _: &Name, after: Option<u64>) -> Result<Sighting> {
        self.0.step().await;
        match after {
            None => Ok(Sighting {
                order: 1,
                leader: None,
            }),
            Some(_) => {
                self.0.under_way.fetch_add(1, Ordering::SeqCst);
                let _under_way = UnderWay(&self.0);
                std::future::pending().await
            }
        }
    }
}

#[async_trait]
impl Settle for SingleLease {
    async fn release(&self, _: &Ask, _: &Grant) -> Result<()> {
        self.0.step().await;
        self.0.given_back.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    async fn withdraw(&self, _: &Ask) -> Result<()> {
        self.0.given_back.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

async fn open() -> (Arc<Server>, Session, ElectionHandle) {
    let server = Arc::new(Server::default());
    let store = Store::new(Single(Arc::clone(&server))).into_dyn();
    let options = SessionOptions::new().ttl(Duration::from_secs(1));
    let session = store.open(options).await.unwrap();
    let election = session.election("x").unwrap();
    (server, session, election)
}

async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let waiting = async {
        while !holds() {
            sleep(STEP).await;
        }
    };
    timeout(Duration::from_secs(5), waiting).await.expect(what);
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_a_call_that_is_not_polled() {
    let (_, session, election) = open().await;
    let mut observer = election.observe();
    let (mut asking, mut running, mut seeing) = (
        Box::pin(election.leader()),
        Box::pin(election.campaign("a")),
        Box::pin(observer.next()),
    );
    let polled = futures_util::poll!(asking.as_mut()).is_ready()
        || futures_util::poll!(running.as_mut()).is_ready()
        || futures_util::poll!(seeing.as_mut()).is_ready();
    assert!(!polled);
    let asked = timeout(Duration::from_secs(1), election.leader()).await;
    assert_eq!(asked.expect("the connection is free").unwrap(), None);
    sleep(Duration::from_secs(3)).await;
    assert!(session.is_valid(), "renewed over the same connection");
    // And they are where they were left, or further on.
    assert_eq!(asking.await.unwrap(), None);
    assert_eq!(running.await.unwrap().token(), FencingToken::new(1));
    assert_eq!(seeing.await.unwrap().unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn a_question_ends_with_its_caller() {
    let (server, _session, election) = open().await;
    let mut observer = election.observe();
    assert_eq!(observer.next().await.unwrap().unwrap(), None);
    {
        let mut seeing = Box::pin(observer.next());
        assert!(futures_util::poll!(seeing.as_mut()).is_pending());
        sleep(STEP * 5).await;
    }
    // The observer goes on looking: what it misses now, it would have to show.
    assert_eq!(server.under_way.load(Ordering::SeqCst), 1);
    drop(observer);
    eventually("nobody looks any more", || {
        server.under_way.load(Ordering::SeqCst) == 0
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_dropped_wait_is_driven_to_its_end_and_given_back() {
    let (server, _session, election) = open().await;
    {
        let mut running = Box::pin(election.campaign("a"));
        assert!(futures_util::poll!(running.as_mut()).is_pending());
        sleep(STEP / 2).await;
        assert_eq!(server.under_way.load(Ordering::SeqCst), 1);
    }
    eventually("it is given back", || {
        server.given_back.load(Ordering::SeqCst) == 1
    })
    .await;
    assert_eq!(server.under_way.load(Ordering::SeqCst), 0);
    assert!(server.ended.load(Ordering::SeqCst) >= 2, "nothing was cut");
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_the_backend_is_an_error_of_unknown_effect() {
    let (server, session, election) = open().await;
    let error = election.campaign("panic").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal);
    assert_eq!(error.effect(), Effect::Unknown);
    eventually("what it may have left is withdrawn", || {
        server.given_back.load(Ordering::SeqCst) == 1
    })
    .await;
    assert!(session.is_valid());
    drop(election.campaign("a").await.unwrap());
}
