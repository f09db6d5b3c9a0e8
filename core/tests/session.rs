//! The machinery behind a session, against a lease whose every answer the test decides: renewal
//! timing, deadlines, loss, audits, the end (rules S1, S2, S4).

#![allow(clippy::unwrap_used, reason = "a test ends with it")]

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tenure_core::backend::{Ask, Backend, Grant, Held, Lease, Locker, Opened, Settle, async_trait};
use tenure_core::{
    Clock, Error, ErrorKind, FencingToken, Guarantees, LossReason, Result, Session, SessionId,
    SessionOptions, Store,
};
use tokio::time::{Instant, sleep};

const TTL: Duration = Duration::from_secs(10);
const MARGIN: Duration = Duration::from_millis(500);

/// What a renewal comes to.
enum Answer {
    After(Duration),
    Never,
    Fails(fn() -> Error),
    Panics,
}

#[derive(Default)]
struct Server {
    answers: Mutex<VecDeque<Answer>>,
    renewals: Mutex<Vec<Instant>>,
    /// Renewals that core dropped before their answer.
    given_up: AtomicUsize,
    revokes: AtomicUsize,
    audits: Mutex<Vec<Vec<u64>>>,
    missing: Mutex<Vec<u64>>,
    released: Mutex<Vec<u64>>,
    granted: AtomicUsize,
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
            capacity: 2,
        })
    }

    async fn guarantees(&self) -> Result<Guarantees> {
        Err(Error::unsupported("stating guarantees"))
    }

    fn clock(&self) -> Clock {
        Clock::tokio()
    }
}

struct GivenUp<'a>(&'a AtomicUsize, bool);

impl Drop for GivenUp<'_> {
    fn drop(&mut self) {
        if self.1 {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
}

#[async_trait]
impl Lease for MockLease {
    async fn renew(&self) -> Result<()> {
        self.0.renewals.lock().unwrap().push(Instant::now());
        let answer = self.0.answers.lock().unwrap().pop_front();
        let mut given_up = GivenUp(&self.0.given_up, true);
        let answer = match answer {
            None => Ok(()),
            Some(Answer::After(delay)) => {
                sleep(delay).await;
                Ok(())
            }
            Some(Answer::Never) => std::future::pending().await,
            Some(Answer::Fails(error)) => Err(error()),
            Some(Answer::Panics) => panic!("on command"),
        };
        given_up.1 = false;
        answer
    }

    async fn revoke(&self) -> Result<()> {
        self.0.revokes.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    async fn audit(&self, held: &[Held]) -> Result<Vec<u64>> {
        let nonces = held.iter().map(|held| held.nonce).collect();
        self.0.audits.lock().unwrap().push(nonces);
        assert!(held.iter().all(|held| held.name.as_str() != "audit panics"));
        Ok(std::mem::take(&mut self.0.missing.lock().unwrap()))
    }

    fn locker(self: Arc<Self>) -> Option<Arc<dyn Locker>> {
        Some(self)
    }
}

/// Grants whatever is asked for.
#[async_trait]
impl Locker for MockLease {
    async fn try_acquire(&self, ask: &Ask) -> Result<Option<Grant>> {
        self.acquire(ask).await.map(Some)
    }

    async fn acquire(&self, _: &Ask) -> Result<Grant> {
        let token = self.0.granted.fetch_add(1, Ordering::SeqCst) as u64;
        Ok(Grant::new(FencingToken::new(token), "key"))
    }
}

#[async_trait]
impl Settle for MockLease {
    async fn release(&self, ask: &Ask, _: &Grant) -> Result<()> {
        assert_ne!(ask.name().as_str(), "release panics");
        self.0.released.lock().unwrap().push(ask.nonce());
        Ok(())
    }

    async fn withdraw(&self, _: &Ask) -> Result<()> {
        Ok(())
    }
}

async fn open(answers: impl IntoIterator<Item = Answer>) -> (Arc<Server>, Session) {
    let server = Arc::new(Server::default());
    server.answers.lock().unwrap().extend(answers);
    let store = Store::new(Mock(Arc::clone(&server))).into_dyn();
    let session = store.open(SessionOptions::new().ttl(TTL)).await.unwrap();
    (server, session)
}

async fn until(condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), waiting)
        .await
        .unwrap();
}

fn close_to(moment: Duration, expected: Duration) {
    assert!(
        moment >= expected && moment <= expected + Duration::from_millis(5),
        "{moment:?} instead of {expected:?}"
    );
}

fn away() -> Error {
    Error::new(ErrorKind::Unavailable, "away")
}

#[tokio::test(start_paused = true)]
async fn renewals_are_sent_every_third_of_a_ttl() {
    let start = Instant::now();
    let (server, session) = open([]).await;
    sleep(3 * TTL).await;
    let renewals = server.renewals.lock().unwrap().clone();
    assert!((8..=9).contains(&renewals.len()), "{}", renewals.len());
    close_to(renewals[0] - start, TTL / 3);
    assert!(session.is_valid());
}

/// The deadline counts from the send: an answer that takes long buys less.
#[tokio::test(start_paused = true)]
async fn a_slow_answer_extends_from_its_send() {
    let start = Instant::now();
    let slow = Duration::from_secs(3);
    let (_, session) = open([
        Answer::After(slow),
        Answer::Never,
        Answer::Never,
        Answer::Never,
    ])
    .await;
    assert_eq!(session.lost().await, LossReason::Unreachable);
    close_to(start.elapsed(), TTL / 3 + TTL - MARGIN);
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_hangs_is_given_up_after_a_third_and_sent_again() {
    let (server, session) = open([Answer::Never]).await;
    sleep(TTL).await;
    assert!(session.is_valid());
    assert_eq!(server.given_up.load(Ordering::SeqCst), 1);
    let renewals = server.renewals.lock().unwrap().clone();
    assert!(renewals[1] - renewals[0] < TTL / 3 + TTL / 10);
}

#[tokio::test(start_paused = true)]
async fn failures_are_tried_again_until_the_deadline() {
    let start = Instant::now();
    let (server, session) = open((0..1_000).map(|_| Answer::Fails(away))).await;
    assert_eq!(session.lost().await, LossReason::Unreachable);
    close_to(start.elapsed(), TTL - MARGIN);
    // Neither a single try nor a storm.
    let tries = server.renewals.lock().unwrap().len();
    assert!((5..=50).contains(&tries), "{tries}");
    until(|| server.revokes.load(Ordering::SeqCst) > 0).await;
}

#[tokio::test(start_paused = true)]
async fn a_store_that_says_lost_ends_the_session_at_once() {
    for (error, reason) in [
        (
            (|| Error::lost(LossReason::Revoked)) as fn() -> Error,
            LossReason::Revoked,
        ),
        (|| Error::lost(LossReason::Expired), LossReason::Expired),
        (|| Error::new(ErrorKind::Lost, "gone"), LossReason::Revoked),
    ] {
        let start = Instant::now();
        let (_, session) = open([Answer::Fails(error)]).await;
        let guard = session.locker("x").unwrap().lock().await.unwrap();
        assert_eq!(guard.lost().await, reason);
        close_to(start.elapsed(), TTL / 3);
        assert_eq!(session.loss(), Some(reason));
        assert!(!guard.is_valid());
        assert_eq!(guard.remaining(), Duration::ZERO);
        let error = guard.while_held(async {}).await.unwrap_err();
        assert_eq!(error.loss(), Some(reason));
        assert_eq!(session.close().await.unwrap_err().loss(), Some(reason));
    }
}

/// One panic of the backend in a renewal is a renewal that failed.
#[tokio::test(start_paused = true)]
async fn a_renewal_that_panics_is_tried_again() {
    let (server, session) = open([Answer::Panics]).await;
    let guard = session.locker("x").unwrap().lock().await.unwrap();
    sleep(3 * TTL).await;
    assert!(guard.is_valid());
    session.close().await.unwrap();
    assert_eq!(server.revokes.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn renewals_that_only_panic_end_the_session_at_its_deadline() {
    let start = Instant::now();
    let (server, session) = open((0..1_000).map(|_| Answer::Panics)).await;
    let guard = session.locker("x").unwrap().lock().await.unwrap();
    assert_eq!(session.lost().await, LossReason::Failed);
    close_to(start.elapsed(), TTL - MARGIN);
    assert_eq!(guard.loss(), Some(LossReason::Failed));
    until(|| server.revokes.load(Ordering::SeqCst) > 0).await;
}

/// A panic in one release costs nobody else anything.
#[tokio::test(start_paused = true)]
async fn a_release_that_panics_leaves_the_other_guards_and_the_session_alone() {
    let (server, session) = open([]).await;
    let good = session.locker("good").unwrap().lock().await.unwrap();
    let bad = session.locker("release panics").unwrap().lock().await;
    drop(bad.unwrap());
    sleep(3 * TTL).await;
    assert!(session.is_valid() && good.is_valid());
    good.release().await.unwrap();
    assert_eq!(server.released.lock().unwrap().len(), 1);
    session.close().await.unwrap();
    assert_eq!(server.revokes.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn an_audit_that_panics_leaves_the_session_alone() {
    let (server, session) = open([]).await;
    let guard = session
        .locker("audit panics")
        .unwrap()
        .lock()
        .await
        .unwrap();
    sleep(3 * TTL).await;
    assert!(guard.is_valid());
    assert!(server.audits.lock().unwrap().len() > 1);
}

/// The session's runtime is there, and nobody drives it.
#[test]
fn whoever_waits_elsewhere_keeps_the_time_and_a_request_to_the_task_is_bounded() {
    let runtime = || {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().build().unwrap()
    };
    let ttl = Duration::from_millis(400);
    let (home, elsewhere) = (runtime(), runtime());
    let open = || {
        home.block_on(async {
            let store = Store::new(Mock(Arc::default())).into_dyn();
            let session = store.open(SessionOptions::new().ttl(ttl)).await.unwrap();
            let guard = session.locker("x").unwrap().lock().await.unwrap();
            (session, guard)
        })
    };
    let (session, guard) = open();
    elsewhere.block_on(async {
        let at = Instant::now();
        assert_eq!(guard.lost().await, LossReason::Expired);
        assert!(at.elapsed() < ttl * 3, "{:?}", at.elapsed());
        let error = session.clone().close().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Lost);
    });
    let (valid, guard) = open();
    elsewhere.block_on(async {
        let closed = tokio::time::timeout(Duration::from_secs(5), valid.close());
        let error = closed.await.unwrap().unwrap_err();
        assert!(matches!(
            error.kind(),
            ErrorKind::Unavailable | ErrorKind::Lost
        ));
        assert!(!guard.is_valid());
    });
    // Outside of any runtime.
    let (_session, guard) = open();
    assert_eq!(
        futures_util::FutureExt::now_or_never(guard.lost()),
        None,
        "still held"
    );
}

#[tokio::test(start_paused = true)]
async fn an_audit_asks_for_what_is_held_and_alarms_for_what_is_missing() {
    let (server, session) = open([]).await;
    let released = session.locker("a").unwrap().lock().await.unwrap();
    let kept = session.locker("b").unwrap().lock().await.unwrap();
    released.release().await.unwrap();
    until(|| !server.audits.lock().unwrap().is_empty()).await;
    let held = server.audits.lock().unwrap()[0].clone();
    assert_eq!(held.len(), 1, "what was released is not asked for");
    assert!(kept.is_valid());
    *server.missing.lock().unwrap() = held;
    assert_eq!(kept.lost().await, LossReason::Revoked);
    assert!(session.is_valid());
    assert_eq!(kept.loss(), Some(LossReason::Revoked));
}

/// A nonce that is not held (any more) is nobody's alarm.
#[tokio::test(start_paused = true)]
async fn an_audit_of_what_is_gone_is_ignored() {
    let (server, session) = open([]).await;
    let guard = session.locker("a").unwrap().lock().await.unwrap();
    *server.missing.lock().unwrap() = vec![u64::MAX / 3];
    sleep(TTL).await;
    assert!(guard.is_valid());
}

#[tokio::test(start_paused = true)]
async fn the_end_is_sent_once_and_a_place_is_freed_with_its_guard() {
    let (server, session) = open([]).await;
    for _ in 0..100 {
        let (x, y) = (session.locker("x").unwrap(), session.locker("y").unwrap());
        let both = (x.lock().await.unwrap(), y.try_lock().await.unwrap());
        let full = session.locker("z").unwrap().lock().await.unwrap_err();
        assert_eq!(full.kind(), ErrorKind::TooLarge);
        let before = server.released.lock().unwrap().len();
        drop(both);
        until(|| server.released.lock().unwrap().len() == before + 2).await;
        // A place is free once the release is through, and no earlier.
        until_ok(&session).await;
    }
    let clone = session.clone();
    session.close().await.unwrap();
    clone.close().await.unwrap();
    sleep(TTL).await;
    assert_eq!(server.revokes.load(Ordering::SeqCst), 1);
}

async fn until_ok(session: &Session) {
    let lock = session.locker("z").unwrap();
    let waiting = async {
        while lock.try_lock().await.is_err() {
            sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(TTL, waiting).await.unwrap();
    // The guard of the last round is dropped: let its release through as well.
    sleep(Duration::from_millis(1)).await;
}

#[tokio::test(start_paused = true)]
async fn work_stops_at_the_loss() {
    let start = Instant::now();
    let (_, session) = open([Answer::Never, Answer::Never, Answer::Never, Answer::Never]).await;
    let lock = session.locker("x").unwrap();
    let worked = lock.with(async |_| std::future::pending::<()>().await);
    let error = worked.await.unwrap_err();
    assert_eq!(error.loss(), Some(LossReason::Unreachable));
    close_to(start.elapsed(), TTL - MARGIN);
}

/// A refusal is told as one, with its cause; and one who only waited has no work to stop.
#[tokio::test(start_paused = true)]
async fn a_refused_renewal_says_why() {
    let refuses = || Error::new(ErrorKind::Unauthorized, "no right to renew");
    let (_, session) = open((0..1_000).map(|_| Answer::Fails(refuses))).await;
    let guard = session.locker("x").unwrap().try_lock().await.unwrap();
    assert_eq!(session.lost().await, LossReason::Refused);
    let lost = guard.loss_error().unwrap();
    let late = session.locker("y").unwrap().lock().await.unwrap_err();
    let release = guard.release().await.unwrap_err();
    for (error, stops) in [(lost, true), (release, true), (late, false)] {
        assert_eq!(error.loss(), Some(LossReason::Refused));
        let text = error.chain().to_string();
        assert_eq!(text.matches("no right to renew").count(), 1, "{text}");
        assert!(text.contains("refused to renew"), "{text}");
        assert_eq!(text.contains("stop the work"), stops, "{text}");
    }
}

/// A session may be watched from another runtime than its own.
#[test]
fn the_loss_reaches_other_runtimes() {
    let build = || {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap()
    };
    let (one, two) = (build(), build());
    let (_, session) = one.block_on(open([]));
    let guard = one.block_on(async { session.locker("x").unwrap().lock().await.unwrap() });
    let watching = two.spawn(guard.lost());
    one.block_on(session.close()).unwrap();
    let reason = two.block_on(async { tokio::time::timeout(TTL, watching).await });
    assert_eq!(reason.unwrap().unwrap(), LossReason::Closed);
}
