//! Double barriers over etcd, side by side with the algorithm of Go's recipe, on one server in one
//! run: from the moment when the last participant enters until each of them is inside.
//!
//! ```text
//! cargo bench -p tenure-etcd --bench barrier             # 300 rounds
//! cargo bench -p tenure-etcd --bench barrier -- 50       # so many
//! ```
//!
//! Needs etcd on the PATH (or `TENURE_ETCD`). Only the ratios mean something on another machine.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Client, EventType, GetOptions, PutOptions, WatchOptions};
use tenure_bench_kit::barrier::{Round, all_of};
use tenure_bench_kit::{Fallible, how_much};
use tenure_core::SessionOptions;
use tenure_etcd::EtcdConfig;
use tenure_testbed::EtcdServer;

const PARTY: u32 = 10;

/// Every participant with a session of its own; the last enters a while after the others.
async fn ours(etcd: &EtcdServer, rounds: u32, fresh: bool) -> Fallible {
    let store = tenure_etcd::connect(EtcdConfig::new([etcd.address().to_string()])).await?;
    let round = Round::new(PARTY)?;
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..PARTY {
        let session = store
            .open(SessionOptions::new().ttl(Duration::from_secs(60)))
            .await?;
        let round = Arc::clone(&round);
        tasks.spawn(async move {
            for turn in 0..rounds {
                let name = if fresh {
                    format!("fresh-{turn}")
                } else {
                    "standing".to_owned()
                };
                let barrier = session.double_barrier(name, PARTY)?;
                round.begin(number).await;
                let inside = barrier.enter().await?;
                round.through()?;
                inside.leave().await?;
            }
            session.close().await?;
            Fallible::Ok(())
        });
    }
    all_of(tasks).await?;
    round.print(if fresh {
        "tenure, a new barrier each round"
    } else {
        "tenure, one barrier"
    });
    Ok(())
}

/// The algorithm of etcd's `client/v3/experimental/recipes/double_barrier.go`, `Enter`.
async fn go(etcd: &EtcdServer, rounds: u32) -> Fallible {
    let round = Round::new(PARTY)?;
    let mut tasks = tokio::task::JoinSet::new();
    let shared = Client::connect([etcd.endpoint()], None).await?;
    for number in 0..PARTY {
        let (mut client, round) = (shared.clone(), Arc::clone(&round));
        tasks.spawn(async move {
            let lease = client.lease_grant(60, None).await?.id();
            for turn in 0..rounds {
                let (waiters, ready) = (format!("/go/{turn}/waiters"), format!("/go/{turn}/ready"));
                round.begin(number).await;
                let leased = Some(PutOptions::new().with_lease(lease));
                let put = client
                    .put(format!("{waiters}/{number}"), "", leased)
                    .await?;
                let revision = put.header().ok_or("no header")?.revision();
                let all = client
                    .get(waiters, Some(GetOptions::new().with_prefix()))
                    .await?;
                if all.kvs().len() == PARTY as usize {
                    client.put(ready, "", None).await?;
                } else {
                    let since = WatchOptions::new().with_start_revision(revision);
                    let mut watch = client.watch(ready, Some(since)).await?;
                    'ready: while let Some(answer) = watch.message().await? {
                        for event in answer.events() {
                            if event.event_type() == EventType::Put {
                                break 'ready;
                            }
                        }
                    }
                }
                round.through()?;
            }
            Fallible::Ok(())
        });
    }
    all_of(tasks).await?;
    round.print("Go's algorithm");
    Ok(())
}

#[tokio::main]
async fn main() -> Fallible {
    let rounds = how_much(300, 3);
    let etcd = EtcdServer::builder().fsync(true).start()?;
    println!("etcd {}, {rounds} rounds", etcd.version());
    ours(&etcd, rounds, false).await?;
    ours(&etcd, rounds, true).await?;
    go(&etcd, rounds.min(100)).await?;
    Ok(())
}
