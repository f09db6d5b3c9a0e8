//! What the tests share.

use std::future::Future;
use std::time::{Duration, Instant};

use tenure_core::backend::StoreUrl;
use tenure_core::{Error, LockGuard, Result, Session, SessionOptions, Store};
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
    tokio::time::timeout(limit, doing)
        .await
        .unwrap_or_else(|_| panic!("{what}: not within {limit:?}"))
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
