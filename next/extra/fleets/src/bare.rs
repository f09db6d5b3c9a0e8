//! The bare client, for the same purpose: the least that is correct as long as nothing fails.

use redis::aio::MultiplexedConnection;
use redis::{AsyncCommands as _, Client, Script};

use crate::Result;

/// Connects.
///
/// # Errors
///
/// Those of the client.
pub async fn connect(url: &str) -> Result<MultiplexedConnection> {
    Ok(Client::open(url)?.get_multiplexed_async_connection().await?)
}

/// A lock that is two scripts: set if absent, delete if it is still mine.
pub struct Lock {
    take: Script,
    release: Script,
}

impl Default for Lock {
    fn default() -> Self {
        Self {
            take: Script::new("return redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2])"),
            release: Script::new(
                "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0",
            ),
        }
    }
}

impl Lock {
    /// Takes and releases the lock once.
    ///
    /// # Errors
    ///
    /// Those of the client, and if another client has the lock.
    pub async fn pair(&self, link: &mut MultiplexedConnection, key: &str, me: &str) -> Result {
        let taken: Option<String> = self.take.key(key).arg(me).arg(30_000).invoke_async(link).await?;
        taken.ok_or("the lock was taken")?;
        let released: u64 = self.release.key(key).arg(me).invoke_async(link).await?;
        if released == 1 {
            Ok(())
        } else {
            Err("the lock was lost".into())
        }
    }
}

/// Passes a baton once: the barest hand-off that waits in the server.
///
/// # Errors
///
/// Those of the client.
pub async fn baton(link: &mut MultiplexedConnection, key: &str) -> Result {
    let _: (String, String) = link.blpop(key, 0.0).await?;
    let _: u64 = link.rpush(key, "baton").await?;
    Ok(())
}

/// A transfer that is one script.
pub fn transfer() -> Script {
    Script::new(
        "local from, to = tonumber(redis.call('GET', KEYS[1]) or 0), tonumber(redis.call('GET', KEYS[2]) or 0) \
         redis.call('SET', KEYS[1], from - 1) redis.call('SET', KEYS[2], to + 1) return from",
    )
}
