//! Locks over Redis, side by side with bare script calls over the same client, on one server in one
//! run.
//!
//! ```text
//! cargo bench -p tenure-redis --bench lock             # everything, about a minute and a half
//! cargo bench -p tenure-redis --bench lock -- 5        # seconds for each measurement
//! ```
//!
//! Needs redis-server on the PATH (or `TENURE_REDIS_SERVER`). Only the ratios mean something on
//! another machine.

use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use redis::io::tcp::TcpSettings;
use redis::{IntoConnectionInfo, Script};
use tenure_bench_kit::lock::{contended, hand_off};
use tenure_bench_kit::{Fallible, histogram, how_much, nanos, on_two_workers};
use tenure_core::{Session, SessionOptions, Store};
use tenure_redis::{RedisBackend, RedisConfig, RedisSession};
use tenure_testbed::RedisServer;

/// The lock of the tutorials: set if absent, with a time to live.
const BARE_LOCK: &str = "return redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2])";
/// Its release: delete if it is one's own.
const BARE_UNLOCK: &str =
    "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0";

async fn store(server: &RedisServer) -> Fallible<Store<RedisBackend>> {
    Ok(tenure_redis::connect(RedisConfig::new(server.address().to_string())).await?)
}

async fn session(server: &RedisServer) -> Fallible<Session<RedisSession>> {
    let options = SessionOptions::new().ttl(Duration::from_secs(30));
    Ok(store(server).await?.open(options).await?)
}

async fn raw(server: &RedisServer) -> Fallible<MultiplexedConnection> {
    let info = format!("redis://{}/?protocol=resp3", server.address())
        .into_connection_info()?
        .set_tcp_settings(TcpSettings::default().set_nodelay(true));
    Ok(redis::Client::open(info)?
        .get_multiplexed_async_connection()
        .await?)
}

/// Lock and release with nobody else there, in turns with two bare scripts.
async fn uncontended(server: &RedisServer, seconds: u64) -> Fallible {
    let session = session(server).await?;
    let lock = session.locker("uncontended")?;
    let mut bare = raw(server).await?;
    let (take, give) = (Script::new(BARE_LOCK), Script::new(BARE_UNLOCK));
    let (mut ours, mut theirs) = (histogram()?, histogram()?);
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        for _ in 0..100 {
            let begin = Instant::now();
            let guard = lock.lock().await?;
            guard.release().await?;
            ours.saturating_record(nanos(begin.elapsed()));
        }
        for _ in 0..100 {
            let begin = Instant::now();
            let _: () = take
                .key("bare")
                .arg("me")
                .arg(30_000)
                .invoke_async(&mut bare)
                .await?;
            let _: () = give.key("bare").arg("me").invoke_async(&mut bare).await?;
            theirs.saturating_record(nanos(begin.elapsed()));
        }
    }
    #[expect(clippy::cast_precision_loss, reason = "for a ratio")]
    let ratio = ours.value_at_quantile(0.5) as f64 / theirs.value_at_quantile(0.5) as f64;
    println!(
        "uncontended lock + release     {:>7.1} us (p99 {:.1}); two bare scripts {:.1} us (p99 {:.1}); ratio {ratio:.2}",
        ours.value_at_quantile(0.5) as f64 / 1e3,
        ours.value_at_quantile(0.99) as f64 / 1e3,
        theirs.value_at_quantile(0.5) as f64 / 1e3,
        theirs.value_at_quantile(0.99) as f64 / 1e3,
    );
    session.close().await?;
    Ok(())
}

/// From the call of a release to the return of the lock that waits for it, in another process's stead.
async fn parked(server: &RedisServer, seconds: u64) -> Fallible {
    let (here, there) = (session(server).await?, session(server).await?);
    let (mine, other) = (here.locker("parked")?, there.locker("parked")?);
    let mut times = histogram()?;
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        let took = hand_off(&mine, &other, Duration::from_millis(2)).await?;
        times.saturating_record(u64::try_from(took.as_micros())?);
    }
    println!(
        "parked hand-off                {:>7} us (p99 {}) from the release's call to the waiter's return",
        times.value_at_quantile(0.5),
        times.value_at_quantile(0.99),
    );
    Ok(())
}

/// One session with many locks: what taking, keeping and closing them costs Redis.
async fn many(server: &RedisServer, locks: usize) -> Fallible {
    server.command(&["CONFIG", "SET", "slowlog-log-slower-than", "5000"])?;
    server.command(&["SLOWLOG", "RESET"])?;
    let session = session(server).await?;
    let mut guards = Vec::new();
    for number in 0..locks {
        guards.push(session.locker(format!("many/{number}"))?.lock().await?);
    }
    // The same number of bare keys, each with a time to live of its own.
    let mut bare = raw(server).await?;
    for number in 0..locks {
        let mut set = redis::cmd("SET");
        set.arg(format!("bare/{number}")).arg("me").arg("PX");
        let _: () = set.arg(60_000).query_async(&mut bare).await?;
    }
    server.command(&["CONFIG", "RESETSTAT"])?;
    for first in (0..locks).step_by(500) {
        let mut pipeline = redis::pipe();
        for number in first..(first + 500).min(locks) {
            let expire = pipeline.cmd("PEXPIRE").arg(format!("bare/{number}"));
            expire.arg(60_000).ignore();
        }
        let _: () = pipeline.query_async(&mut bare).await?;
    }
    let expiring = spent(server, "pexpire")?;
    server.command(&["CONFIG", "RESETSTAT"])?;
    tokio::time::sleep(Duration::from_secs(61)).await;
    let renewing = spent(server, "evalsha")?;
    assert!(guards.iter().all(|guard| guard.is_valid()), "one expired");
    drop(guards);
    session.close().await?;
    println!(
        "{locks} locks of one session: all renewals of a minute {renewing} us of Redis's time, {locks} bare PEXPIRE once {expiring} us; scripts over 5 ms: {}",
        server.command(&["SLOWLOG", "LEN"])?.trim(),
    );
    Ok(())
}

/// Redis's own time for all calls of a command since the last reset, in microseconds.
fn spent(server: &RedisServer, command: &str) -> Fallible<u64> {
    let stats = server.command(&["INFO", "commandstats"])?;
    let start = format!("cmdstat_{command}:");
    let line = stats.lines().find(|line| line.starts_with(&start));
    let usec = line
        .and_then(|line| line.split(',').find_map(|part| part.strip_prefix("usec=")))
        .ok_or("no such command")?;
    Ok(usec.parse()?)
}

fn main() -> Fallible {
    let seconds = how_much(3, 3);
    on_two_workers(async {
        let server = RedisServer::builder().no_persistence().start()?;
        println!("Redis without persistence:");
        uncontended(&server, seconds).await?;
        parked(&server, seconds).await?;
        for contenders in [2, 16] {
            let mut sessions = Vec::new();
            for _ in 0..contenders {
                sessions.push(session(&server).await?);
            }
            contended(sessions, seconds).await?;
        }
        many(&server, 10_000).await
    })
}
