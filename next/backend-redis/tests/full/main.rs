//! Tests on servers of their own, of processes that end, of runtimes that are blocked, and with other programs.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

mod blocked;
mod events;
mod histories;
mod keys;
mod process_ends;
mod redis_py;

use tenure_core::Store;
use tenure_core::url::StoreUrl;
use tenure_redis::{RedisBackend, RedisConfig};

async fn connect(url: &str) -> tenure_core::Result<Store> {
    backend(url).await.map(Store::new)
}

async fn backend(url: &str) -> tenure_core::Result<RedisBackend> {
    RedisBackend::connect(RedisConfig::from_url(StoreUrl::parse(url)?)?).await
}

/// Waits for what has to happen, however slow the machine is.
async fn soon<T>(what: &str, happens: impl Future<Output = T>) -> T {
    let limit = std::time::Duration::from_secs(30);
    let happened = tokio::time::timeout(limit, happens).await;
    happened.unwrap_or_else(|_| panic!("{what}: not within {limit:?}"))
}
