//! The connection of a store on real servers.

mod faults;
mod guarantees;
mod home;
mod login;
mod messages;
mod topology;

use std::time::Duration;

use tenure_core::backend::Backend;
use tenure_core::url::StoreUrl;
use tenure_core::{FencingToken, Result};
use tenure_redis::{RedisBackend, RedisConfig};
use tokio::time::{Instant, sleep};

pub(crate) fn config(url: &str) -> RedisConfig {
    RedisConfig::from_url(StoreUrl::parse(url).unwrap()).unwrap()
}

pub(crate) async fn connect(url: &str) -> Result<RedisBackend> {
    RedisBackend::connect(config(url)).await
}

/// Sends one write.
async fn write(backend: &RedisBackend) -> Result<()> {
    backend.raise_token_floor(FencingToken::new(1)).await
}

/// Calls `action` until it succeeds.
async fn eventually<T>(what: &str, mut action: impl AsyncFnMut() -> Result<T>) -> T {
    let start = Instant::now();
    loop {
        match action().await {
            Ok(value) => return value,
            Err(error) if start.elapsed() > Duration::from_secs(30) => panic!("{what}: {}", error.chain()),
            Err(_) => sleep(Duration::from_millis(10)).await,
        }
    }
}
