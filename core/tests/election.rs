//! Elections against a store whose every answer the test decides: what core makes of sightings and
//! proclamations (rules E3, E4).

#![allow(clippy::unwrap_used, reason = "a test ends with it")]

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tenure_core::backend::{
    Ask, Backend, Election, Grant, Lease, Opened, Settle, Sighting, async_trait,
};
use tenure_core::{
    Clock, Effect, ElectionHandle, Error, ErrorKind, FencingToken, Guarantees, Leader, LossReason,
    Name, Observer, Result, Session, SessionId, SessionOptions, Store,
};
use tokio::time::{sleep, timeout};

/// What the store answers; none: nothing, for ever.
#[derive(Default)]
struct Server {
    sightings: Mutex<VecDeque<Result<Sighting>>>,
    /// What `observe` was asked: the order seen last.
    asked: Mutex<Vec<Option<u64>>>,
    /// A proclamation that finds nothing here succeeds.
    refusals: Mutex<VecDeque<Error>>,
    said: Mutex<Vec<(u64, Vec<u8>)>>,
    release: Mutex<Option<Error>>,
}

struct Mock(Arc<Server>);
struct MockLease(Arc<Server>);

#[async_trait]
impl Backend for Mock {
    type Session = MockLease;

    async fn open(&self, ttl: Duration, _: &SessionOptions) -> Result<Opened<MockLease>> {
        Ok(Opened {
            lease: Arc::new(MockLease(Arc::clone(&self.0))),
            id: SessionId::new("mock"),
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
impl Lease for MockLease {
    async fn renew(&self) -> Result<()> {
        Ok(())
    }

    async fn revoke(&self) -> Result<()> {
        Ok(())
    }

    fn election(self: Arc<Self>) -> Option<Arc<dyn Election>> {
        Some(self)
    }
}

#[async_trait]
impl Election for MockLease {
    async fn try_campaign(&self, ask: &Ask, value: &[u8]) -> Result<Option<Grant>> {
        self.campaign(ask, value).await.map(Some)
    }

    async fn campaign(&self, _: &Ask, _: &[u8]) -> Result<Grant> {
        Ok(Grant::new(FencingToken::new(1), "key"))
    }

    async fn proclaim(&self, _: &Ask, _: &Grant, number: u64, value: &[u8]) -> Result<()> {
        self.0.said.lock().unwrap().push((number, value.to_vec()));
        match self.0.refusals.lock().unwrap().pop_front() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    async fn leader(&self, _: &Name) -> Result<Option<Leader>> {
        Ok(None)
    }

    async fn observe(&self, _: &Name, after: Option<u64>) -> Result<Sighting> {
        self.0.asked.lock().unwrap().push(after);
        let sighting = self.0.sightings.lock().unwrap().pop_front();
        match sighting {
            Some(sighting) => sighting,
            None => std::future::pending().await,
        }
    }
}

#[async_trait]
impl Settle for MockLease {
    async fn release(&self, _: &Ask, _: &Grant) -> Result<()> {
        self.0.release.lock().unwrap().take().map_or(Ok(()), Err)
    }

    async fn withdraw(&self, _: &Ask) -> Result<()> {
        Ok(())
    }
}

async fn open(
    sightings: impl IntoIterator<Item = Result<Sighting>>,
) -> (Arc<Server>, Session, ElectionHandle) {
    let server = Arc::new(Server::default());
    server.sightings.lock().unwrap().extend(sightings);
    let store = Store::new(Mock(Arc::clone(&server))).into_dyn();
    let session = store.open(SessionOptions::new()).await.unwrap();
    let election = session.election("x").unwrap();
    (server, session, election)
}

fn leader(value: &str) -> Option<Leader> {
    Some(Leader::new(value.as_bytes(), FencingToken::new(1)))
}

fn sighting(order: u64, leader: Option<Leader>) -> Result<Sighting> {
    Ok(Sighting { order, leader })
}

async fn next(observer: &mut Observer) -> Option<Leader> {
    observer.next().await.unwrap().unwrap()
}

async fn nothing_more(observer: &mut Observer) {
    let more = timeout(Duration::from_secs(1), observer.next()).await;
    assert!(more.is_err(), "{more:?}");
}

fn away() -> Error {
    Error::new(ErrorKind::Unavailable, "away").with_effect(Effect::Unknown)
}

#[tokio::test(start_paused = true)]
async fn an_observer_shows_changes_in_the_order_of_the_store() {
    let (server, _session, election) = open([
        sighting(3, None),
        sighting(5, leader("a")),
        // The same again, under a greater order.
        sighting(6, leader("a")),
        Err(away()),
        // From a member that lags, twice.
        sighting(4, None),
        sighting(6, leader("b")),
        sighting(9, leader("c")),
    ])
    .await;
    let mut observer = election.observe();
    assert_eq!(next(&mut observer).await, None);
    assert_eq!(next(&mut observer).await, leader("a"));
    assert_eq!(next(&mut observer).await, leader("c"));
    nothing_more(&mut observer).await;
    let asked = server.asked.lock().unwrap().clone();
    let (none, some) = (asked[0], &asked[1..]);
    assert_eq!(none, None);
    assert_eq!(some, [3, 5, 6, 6, 6, 6, 9].map(Some));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_repeats_an_old_state_does_not_keep_the_thread() {
    let stale = (0..100).map(|_| sighting(1, leader("stale")));
    let (server, _session, election) =
        open([sighting(1, leader("a"))].into_iter().chain(stale)).await;
    let mut observer = election.observe();
    assert_eq!(next(&mut observer).await, leader("a"));
    let watching = tokio::spawn(async move { observer.next().await.unwrap().unwrap() });
    sleep(Duration::from_millis(200)).await;
    assert!(server.asked.lock().unwrap().len() < 20, "a busy loop");
    server.sightings.lock().unwrap().clear();
    let newer = sighting(2, leader("b"));
    server.sightings.lock().unwrap().push_back(newer);
    assert_eq!(watching.await.unwrap(), leader("b"));
}

#[tokio::test(start_paused = true)]
async fn an_observer_that_was_not_waited_for_misses_nothing() {
    let (_server, _session, election) = open([sighting(1, None), sighting(2, leader("a"))]).await;
    let mut observer = election.observe();
    assert_eq!(next(&mut observer).await, None);
    // Polled once, given up, and asked again: the look goes on.
    {
        let mut given_up = std::pin::pin!(observer.next());
        let polled = futures_util::poll!(given_up.as_mut());
        assert!(polled.is_ready());
    }
    nothing_more(&mut observer).await;
}

#[tokio::test(start_paused = true)]
async fn an_observer_ends_with_what_no_retry_can_mend() {
    let refused = Error::new(ErrorKind::Unauthorized, "no");
    let (_server, _session, election) = open([sighting(1, None), Err(refused)]).await;
    let mut observer = election.observe();
    assert_eq!(next(&mut observer).await, None);
    let error = observer.next().await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized);
    assert_eq!(error.operation(), Some("observe"));
    assert_eq!(error.name(), Some("x"));
    assert!(observer.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn an_observer_ends_with_its_session_here() {
    for detached in [false, true] {
        let (_server, session, election) = open([sighting(1, None)]).await;
        let mut observer = election.observe();
        assert_eq!(next(&mut observer).await, None);
        let mut watching = tokio::spawn(async move { observer.next().await.is_none() });
        nothing_happens(&mut watching).await;
        if detached {
            // This store cannot: the observer goes on.
            session.clone().detach().await.unwrap_err();
            nothing_happens(&mut watching).await;
        }
        session.close().await.unwrap();
        assert!(watching.await.unwrap());
    }
}

async fn nothing_happens(task: &mut tokio::task::JoinHandle<bool>) {
    assert!(timeout(Duration::from_secs(1), task).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn proclamations_are_numbered_and_repeated_under_their_number() {
    let (server, _session, election) = open([]).await;
    let lead = election.campaign("a").await.unwrap();
    server.refusals.lock().unwrap().extend([away(), away()]);
    lead.proclaim("b").await.unwrap();
    lead.proclaim("c").await.unwrap();
    let said = server.said.lock().unwrap().clone();
    let said: Vec<_> = said
        .iter()
        .map(|(n, value)| (*n, value.as_slice()))
        .collect();
    assert_eq!(said, [(1, &b"b"[..]), (1, b"b"), (1, b"b"), (2, b"c")]);
}

#[tokio::test(start_paused = true)]
async fn a_lost_leadership_is_lost_in_every_call() {
    let gone = || Error::lost(LossReason::Revoked);
    let (server, session, election) = open([]).await;
    let lead = election.campaign("a").await.unwrap();
    server.refusals.lock().unwrap().push_back(gone());
    let error = lead.proclaim("b").await.unwrap_err();
    assert_eq!(
        (error.kind(), error.operation(), error.name()),
        (ErrorKind::Lost, Some("proclaim"), Some("x"))
    );
    *server.release.lock().unwrap() = Some(gone());
    let error = lead.resign().await.unwrap_err();
    assert_eq!(
        (error.kind(), error.operation(), error.loss()),
        (ErrorKind::Lost, Some("resign"), Some(LossReason::Revoked))
    );
    // Known without asking the store.
    let lead = election.campaign("a").await.unwrap();
    session.close().await.unwrap();
    let before = server.said.lock().unwrap().len();
    let error = lead.while_held(async {}).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Lost);
    let error = lead.proclaim("b").await.unwrap_err();
    assert_eq!(
        (error.kind(), error.effect()),
        (ErrorKind::Lost, Effect::None)
    );
    assert_eq!(server.said.lock().unwrap().len(), before);
    let error = lead.resign().await.unwrap_err();
    assert_eq!(error.loss(), Some(LossReason::Closed));
}
