//! Double barriers over Redis, side by side with the raw commands that a barrier without leases,
//! generations and counts of the dead would need (INCR, SUBSCRIBE, PUBLISH), on one server in one
//! run: from the moment when the last participant enters until each of them is inside.
//!
//! ```text
//! cargo bench -p tenure-redis --bench barrier             # 300 rounds
//! cargo bench -p tenure-redis --bench barrier -- 50       # so many
//! ```
//!
//! Needs redis-server on the PATH. Only the ratios mean something on another machine.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use redis::AsyncCommands;
use tenure_bench_kit::barrier::{Round, all_of};
use tenure_bench_kit::{Fallible, how_much};
use tenure_core::SessionOptions;
use tenure_redis::RedisConfig;
use tenure_testbed::RedisServer;

/// Every participant with a session of its own; the last enters a while after the others.
async fn ours(redis: &RedisServer, party: u32, rounds: u32) -> Fallible {
    let store = tenure_redis::connect(RedisConfig::new(redis.address().to_string())).await?;
    let round = Round::new(party)?;
    let left = Round::new(party)?;
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..party {
        let session = store
            .open(SessionOptions::new().ttl(Duration::from_secs(60)))
            .await?;
        let (round, left) = (Arc::clone(&round), Arc::clone(&left));
        tasks.spawn(async move {
            let barrier = session.double_barrier("standing", party)?;
            for _ in 0..rounds {
                round.begin(number).await;
                let inside = barrier.enter().await?;
                round.through()?;
                left.begin(number).await;
                inside.leave().await?;
                left.through()?;
            }
            session.close().await?;
            Fallible::Ok(())
        });
    }
    all_of(tasks).await?;
    round.print("tenure, enter");
    left.print("tenure, leave (outside after the last one's leave)");
    Ok(())
}

/// A counter, and a channel on which the last one calls.
async fn raw(redis: &RedisServer, party: u32, rounds: u32) -> Fallible {
    let round = Round::new(party)?;
    let client = redis::Client::open(redis.url())?;
    let connection = client.get_multiplexed_async_connection().await?;
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..party {
        let (mut connection, round) = (connection.clone(), Arc::clone(&round));
        let mut channel = client.get_async_pubsub().await?;
        tasks.spawn(async move {
            channel.subscribe("raw").await?;
            for turn in 0..rounds {
                round.begin(number).await;
                let count: u32 = connection.incr(format!("raw/{turn}"), 1).await?;
                if count == party {
                    let () = connection.publish("raw", turn).await?;
                }
                channel.on_message().next().await.ok_or("no message")?;
                round.through()?;
            }
            Fallible::Ok(())
        });
    }
    all_of(tasks).await?;
    round.print("INCR and PUBLISH");
    Ok(())
}

#[tokio::main]
async fn main() -> Fallible {
    let rounds = how_much(300, 3);
    let redis = RedisServer::start()?;
    println!("Redis {}, {rounds} rounds", redis.version());
    raw(&redis, 10, rounds).await?;
    ours(&redis, 10, rounds).await?;
    raw(&redis, 100, rounds.div_ceil(10)).await?;
    ours(&redis, 100, rounds.div_ceil(10)).await?;
    Ok(())
}
