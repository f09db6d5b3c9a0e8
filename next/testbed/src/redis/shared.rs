//! The one Redis of a test run.

use std::sync::OnceLock;

use parking_lot::Mutex;

use super::admin::RedisAdmin;
use super::options::RedisOptions;
use super::server::RedisServer;
use crate::error::Result;

/// The environment variable with the URL of the Redis of the test run.
pub(crate) const REDIS_VARIABLE: &str = "TENURE_TEST_REDIS";

/// The Redis that all tests of a run share. A test works in a namespace of [`unique_name`](crate::unique_name), and changes
/// nothing that concerns others: no flush, no setting, no pause.
#[derive(Debug)]
pub struct SharedRedis {
    url: String,
    admin: RedisAdmin,
    _own: Option<RedisServer>,
}

impl SharedRedis {
    /// The URL: `redis://127.0.0.1:PORT`, or the value of `TENURE_TEST_REDIS`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// An operator's access.
    pub fn admin(&self) -> &RedisAdmin {
        &self.admin
    }
}

/// Returns the Redis that `TENURE_TEST_REDIS` names, as under `tenure-testbed serve`; without that variable, one that this
/// process starts at the first call.
///
/// # Errors
///
/// As [`RedisServer::start`]; [`Error::Redis`](crate::Error::Redis) when the variable is no URL.
pub fn shared_redis() -> Result<&'static SharedRedis> {
    static SHARED: OnceLock<SharedRedis> = OnceLock::new();
    static START: Mutex<()> = Mutex::new(());
    let _one_starts_it = START.lock();
    if let Some(shared) = SHARED.get() {
        return Ok(shared);
    }
    let shared = match std::env::var(REDIS_VARIABLE).ok().filter(|url| !url.is_empty()) {
        Some(url) => SharedRedis {
            admin: RedisAdmin::by_url(&url)?,
            url,
            _own: None,
        },
        None => {
            let server = RedisServer::start(RedisOptions::default())?;
            SharedRedis {
                url: server.url(),
                admin: server.admin().clone(),
                _own: Some(server),
            }
        }
    };
    Ok(SHARED.get_or_init(|| shared))
}
