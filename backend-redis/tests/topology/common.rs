//! What the tests share.

use std::future::Future;
use std::time::{Duration, Instant};

use tenure_core::backend::StoreUrl;
use tenure_core::{Error, HoldFor, Item, LockGuard, Result, Session, SessionOptions, Store};
use tenure_redis::{RedisBackend, RedisConfig, RedisSession};

/// For what must happen at once: generous, because the machine may be busy.
pub(crate) const SOON: Duration = Duration::from_secs(10);
/// For what takes many steps.
pub(crate) const LATER: Duration = Duration::from_secs(45);

pub(crate) fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub(crate) fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

pub(crate) fn config(url: impl AsRef<str>) -> RedisConfig {
    RedisConfig::from_url(StoreUrl::parse(url.as_ref()).unwrap()).unwrap()
}

pub(crate) async fn store(url: impl AsRef<str>) -> Store<RedisBackend> {
    tenure_redis::connect(config(url)).await.unwrap()
}

pub(crate) async fn open(store: &Store<RedisBackend>, ttl: Duration) -> Session<RedisSession> {
    store.open(SessionOptions::new().ttl(ttl)).await.unwrap()
}

/// A session over a connection of its own.
pub(crate) async fn session(url: impl AsRef<str>, ttl: Duration) -> Session<RedisSession> {
    open(&store(url).await, ttl).await
}

pub(crate) async fn lock(session: &Session<RedisSession>, name: &str) -> LockGuard {
    within(LATER, "a lock", session.locker(name).unwrap().lock())
        .await
        .unwrap()
}

/// Connects, takes a lock and lets go.
pub(crate) async fn use_it(config: RedisConfig) -> Result<()> {
    let store = tenure_redis::connect(config).await?;
    let session = store.open(SessionOptions::default()).await?;
    session.locker("x")?.lock().await?.release().await?;
    session.close().await
}

/// The refusal, which must come promptly.
pub(crate) async fn refused(what: &str, config: RedisConfig) -> Error {
    let start = Instant::now();
    let Err(error) = use_it(config).await else {
        panic!("{what}: accepted");
    };
    assert!(start.elapsed() < secs(5), "{what}: {:?}", start.elapsed());
    error
}

pub(crate) async fn within<T>(limit: Duration, what: &str, doing: impl Future<Output = T>) -> T {
    let limit = limit * tenure_testbed::patience();
    tokio::time::timeout(limit, doing)
        .await
        .unwrap_or_else(|_| panic!("NOT JUDGED: {what}: not within {limit:?}"))
}

/// Waits until it is so.
pub(crate) async fn until(what: &str, mut so: impl FnMut() -> bool) {
    within(LATER, what, async {
        while !so() {
            tokio::time::sleep(ms(10)).await;
        }
    })
    .await;
}

/// All that there is, once: each script where it is allowed, or on the node where it belongs.
pub(crate) async fn use_everything(store: &Store<RedisBackend>) -> Result<()> {
    let (session, other) = (open(store, secs(30)).await, open(store, secs(30)).await);
    let guard = session.locker("all")?.lock().await?;
    assert!(other.locker("all")?.try_lock().await.is_err());

    let election = session.election("all")?;
    let leadership = election.campaign("a").await?;
    let mut observer = other.election("all")?.observe();
    within(SOON, "the leader", observer.next()).await;
    leadership.proclaim("b").await?;
    assert!(election.leader().await?.is_some());
    leadership.resign().await?;

    let lock = session.rw_lock("all")?;
    let reading = lock.write().await?.downgrade().await?;
    other.rw_lock("all")?.read().await?.release().await?;
    reading.release().await?;

    let queue = session.queue("all")?;
    queue.enqueue("a").await?;
    queue.enqueue(Item::new("b").priority(3).id("b")?).await?;
    assert!(queue.peek().await?.is_some());
    queue.dequeue().await?.nack_after(ms(1)).await?;
    queue.dequeue().await?.nack().await?;
    queue.dequeue().await?.ack().await?;
    queue.depth().await?;
    queue.purge().await?;

    let barrier = session.barrier("all")?;
    barrier.hold(HoldFor::Session).await?;
    let waits = other.barrier("all")?;
    let waiting = tokio::spawn(async move { waits.wait().await });
    barrier.release().await?;
    within(SOON, "the barrier", waiting).await.unwrap()?;
    let (one, two) = (
        session.double_barrier("all", 2)?,
        other.double_barrier("all", 2)?,
    );
    let inside = within(SOON, "entering", async {
        tokio::try_join!(one.enter(), two.enter())
    });
    let (one, two) = inside.await?;
    within(SOON, "leaving", async {
        tokio::try_join!(one.leave(), two.leave())
    })
    .await?;

    let stm = session.stm()?;
    stm.put("k", "1").await?;
    stm.fenced_by(&guard)
        .run(async |tx| {
            tx.get("k").await?;
            tx.put("k", "2")
        })
        .await?;
    stm.delete("k").await?;

    let token = guard.token();
    let name = guard.name().as_str().to_owned();
    std::mem::forget(guard);
    let id = session.detach().await?;
    let resumed = store.resume(&id).await?;
    resumed
        .locker(&*name)?
        .reclaim(token)
        .await?
        .release()
        .await?;
    resumed.close().await?;
    other.close().await
}
