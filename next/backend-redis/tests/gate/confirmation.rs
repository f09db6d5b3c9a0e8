//! Grants that replicas have to confirm.

use std::time::Duration;

use tenure_core::{LockGuard, Session, SessionOptions, Store};
use tenure_redis::{RedisBackend, connect};
use tenure_testbed::{RedisAdmin, RedisOptions, RedisPair, wait_until};
use tokio::time::timeout;

use crate::connection::config;

/// Longer than any test: nothing ends by itself.
const LONG: Duration = Duration::from_secs(600);

async fn soon<T>(what: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(30), what)
        .await
        .expect("it did not happen within 30 s")
}

async fn open(store: &Store) -> Session {
    store.open(SessionOptions::new().ttl(LONG)).await.unwrap()
}

/// Waits, without blocking the runtime, until `look` returns something.
async fn seen<T: Send + 'static>(
    what: &'static str,
    admin: &RedisAdmin,
    look: impl Fn(&RedisAdmin) -> tenure_testbed::Result<Option<T>> + Send + 'static,
) -> T {
    let admin = admin.clone();
    tokio::task::spawn_blocking(move || wait_until(what, || look(&admin)).unwrap())
        .await
        .unwrap()
}

/// Returns the holder of the lock `x` with its token.
fn holder(admin: &RedisAdmin) -> tenure_testbed::Result<Option<(String, u64)>> {
    let holders: Vec<(String, u64)> =
        admin.query(&["ZRANGE", "{tenure/default}/2/lock/x/holders", "0", "-1", "WITHSCORES"])?;
    Ok(holders.into_iter().next())
}

/// The message of a grant, then the loss of the grant: another link's server has what the grant needs, but not the grant.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grant_that_waits_for_its_confirmation_is_not_that_of_a_later_history() {
    let pair = RedisPair::start(RedisOptions::default()).unwrap();
    let (server, admin) = (&pair.primary, pair.primary.admin());
    let url = format!("{}?wait_replicas=1&timeout=4s", server.url());
    let holding = RedisBackend::connect(config(&server.url())).await.unwrap();
    let operator = holding.clone();
    let (first, second) = (Store::new(holding), connect(config(&url)).await.unwrap());
    let (a, b) = (open(&first).await, open(&second).await);
    let guard = a.lock("x").await.unwrap();
    let waiting: tokio::task::JoinHandle<LockGuard> = tokio::spawn(async move { b.lock("x").await.unwrap() });
    seen("a waiter", admin, |admin| {
        let waiters: u64 = admin.query(&["ZCARD", "{tenure/default}/2/lock/x/waiters"])?;
        Ok((waiters == 1).then_some(()))
    })
    .await;
    server.save_snapshot().unwrap();
    pair.stop_replication();
    let asked = admin.calls("wait").unwrap();
    let (id, first_token) = (a.id().clone(), guard.token().get());
    guard.release().await.unwrap();
    let (_, lost_token) = seen("a grant without its confirmation", admin, move |admin| {
        Ok(holder(admin)?
            .filter(|(_, token)| *token > first_token && admin.calls("wait").is_ok_and(|calls| calls > asked)))
    })
    .await;
    // The client of the first session is gone: it does not take back what the older history has of it.
    std::mem::forget(a);
    drop(first);
    server.restore_snapshot().unwrap();
    pair.resume_replication();
    seen("the waiter, or what it believes", admin, |admin| {
        let waiters: u64 = admin.query(&["ZCARD", "{tenure/default}/2/lock/x/waiters"])?;
        Ok((waiters == 1).then_some(()))
    })
    .await;
    soon(async {
        while !operator.end_session(&id).await.unwrap_or(false) {
            tokio::time::sleep(Duration::from_millis(10)).await; // real time: the link is being replaced
        }
    })
    .await;
    let guard = soon(waiting).await.unwrap();
    let (_, token) = holder(admin).unwrap().unwrap();
    assert_eq!(
        guard.token().get(),
        token,
        "not held in the store: {lost_token} is of the lost history"
    );
}
